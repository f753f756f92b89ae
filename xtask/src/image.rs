//! `./x image`: a static binary, and beside it the Containerfile: the context of an image from scratch.

use std::{fs, path::Path};

use anyhow::Context as _;

use crate::command::{cargo, check, root_dir, say};

#[derive(clap::Args)]
pub(crate) struct Options {}

/// Where the context is laid out.
const CONTEXT: &str = "target/image";

pub(crate) fn run(Options {}: Options) -> anyhow::Result<()> {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    check(cargo().args([
        "build",
        "--release",
        "--package",
        "lb-userspace",
        "--bin",
        "sockeye",
        "--target",
        &target,
    ]))?;
    let context = root_dir().join(CONTEXT);
    fs::create_dir_all(&context).with_context(|| format!("cannot create {}", context.display()))?;
    let binary = format!("target/{target}/release/sockeye");
    for (from, to) in [(Path::new(&binary), "sockeye"), (Path::new("deploy/Containerfile"), "Containerfile")]
    {
        let from = root_dir().join(from);
        fs::copy(&from, context.join(to)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    say(&format!("the image's context is in {CONTEXT}; build it with: podman build --tag sockeye {CONTEXT}"));
    Ok(())
}
