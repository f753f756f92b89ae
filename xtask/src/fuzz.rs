//! `./x fuzz`: lets libFuzzer look for inputs that break the agent's pure middle (fuzz/README.md).

use std::fs;

use anyhow::Context as _;

use crate::command::{cargo, check, root_dir};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What reads the bytes
    target: Target,
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Target {
    /// As a manifest
    Manifests,
    /// As an order of events
    Events,
}

pub(crate) fn run(Options { target, seconds }: Options) -> anyhow::Result<()> {
    let name = match target {
        Target::Manifests => "manifests",
        Target::Events => "events",
    };
    // What is new goes to the first folder that is named, so that the committed corpus stays small.
    let (found, corpus) = (format!("fuzz/found/{name}"), format!("fuzz/corpus/{name}"));
    fs::create_dir_all(root_dir().join(&found)).with_context(|| format!("cannot create {found}"))?;
    // Safe code: a sanitizer would only make it slower, and need a nightly compiler.
    check(
        cargo()
            .args(["fuzz", "run", "--sanitizer", "none", name, &found, &corpus, "--"])
            .arg(format!("-max_total_time={seconds}"))
            .args(["-max_len=16384", "-timeout=20"]),
    )
}
