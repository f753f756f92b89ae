//! `./x demo`: nodes, pods and a client in namespaces, and what the agent does for them.

use crate::{
    command::{cargo, check},
    root::Root,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave everything running, and print how to enter it
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(Options { keep }: Options) -> anyhow::Result<()> {
    let root = Root::find("demo")?;
    check(cargo().args(["build", "--quiet", "--package", "lb-userspace", "--bin", "sockeye"]))?;
    // The demo starts its servers and clients as processes of their own.
    check(cargo().args(["build", "--quiet", "--package", "lb-tests", "--bins"]))?;
    let mut command = cargo();
    root.runner(&mut command).args(["run", "--quiet", "--package", "lb-tests", "--bin", "demo", "--"]);
    if keep {
        command.arg("--keep");
    }
    check(&mut command)
}
