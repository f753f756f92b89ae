//! `./x bench`: measures with optimised programs on this machine, and writes docs/benchmarks.md.

use crate::{
    command::{cargo, check},
    root::Root,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Show the figures only; leave docs/benchmarks.md as it is
    #[arg(long)]
    dry_run: bool,
    /// A tenth of the rounds: for a look, not for the record (implies --dry-run)
    #[arg(long)]
    quick: bool,
    /// Only what packets cost (implies --dry-run)
    #[arg(long)]
    packets: bool,
}

pub(crate) fn run(Options { dry_run, quick, packets }: Options) -> anyhow::Result<()> {
    // The benchmark starts the agent to look at its memory.
    check(cargo().args(["build", "--release", "--package", "lb-userspace", "--bin", "sockeye"]))?;
    let mut command = cargo();
    Root::find("bench")?.runner(&mut command);
    command.args(["run", "--quiet", "--release", "--package", "lb-tests", "--bin", "bench", "--"]);
    if quick {
        command.arg("--quick");
    }
    if packets {
        command.arg("--packets");
    }
    if !dry_run && !quick && !packets {
        command.args(["--output", "docs/benchmarks.md"]);
    }
    check(&mut command)
}
