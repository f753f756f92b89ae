//! `./x lint`: everything that can be said about the code without running it.

use std::process::Command;

use anyhow::bail;

use crate::{
    command::{cargo, check, program, say},
    tidy,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Check the dependencies against the database of security advisories too (downloads it)
    #[arg(long)]
    advisories: bool,
}

pub(crate) fn run(Options { advisories }: Options) -> anyhow::Result<()> {
    let checks: [(&str, &dyn Fn() -> anyhow::Result<()>); 6] = [
        ("format", &|| check(cargo().args(["fmt", "--all", "--check"]))),
        ("house rules", &tidy::check_repository),
        ("spelling", &|| check(&mut program("typos"))),
        ("dependencies", &|| check(&mut deny(advisories))),
        ("clippy, host", &|| check(&mut clippy_host())),
        ("clippy, BPF", &|| check(&mut clippy_bpf())),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        say(&format!("lint: {name}"));
        if let Err(error) = check() {
            say(&format!("{error:#}"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint: {} of {} checks failed: {}", failed.len(), checks.len(), failed.join("; "));
    }
    Ok(())
}

fn deny(advisories: bool) -> Command {
    let mut command = program("cargo-deny");
    if advisories {
        command.args(["check", "advisories"]);
    } else {
        command.arg("--offline").arg("check");
    }
    command.args(["bans", "licenses", "sources"]);
    command
}

fn clippy_host() -> Command {
    let mut command = cargo();
    command.args(["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--all-features"]);
    command.args(["--", "--deny", "warnings"]);
    command
}

/// The eBPF programs are linted for their own target, with the flags that the build passes to the compiler.
fn clippy_bpf() -> Command {
    let mut command = cargo();
    command
        .args(["clippy", "--package", "lb-ebpf", "--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        // A folder of its own: build scripts run again whenever RUSTC_BOOTSTRAP changes.
        .args(["--target-dir", "target/clippy-bpf", "--", "--deny", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH));
    command
}
