//! `./x build`: the agent, with the eBPF programs inside.

use crate::command::{cargo, check};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Optimise
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(Options { release }: Options) -> anyhow::Result<()> {
    let mut command = cargo();
    command.args(["build", "--package", "lb-userspace"]);
    if release {
        command.arg("--release");
    }
    check(&mut command)
}
