//! `./x test`: everything that needs no cluster, first without root, then against this kernel.

use crate::{
    command::{cargo, check},
    root::Root,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the tests that need no root
    #[arg(long)]
    unit: bool,
    /// Arguments of the test binaries, such as a part of a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(Options { unit, arguments }: Options) -> anyhow::Result<()> {
    // Found out first, so that nobody waits for the build to hear of it.
    let root = if unit { None } else { Some(Root::find("test")?) };
    check(cargo().args(["test", "--"]).args(&arguments))?;
    let Some(root) = root else { return Ok(()) };
    check(cargo().args(["build", "--package", "lb-userspace", "--bin", "sockeye"]))?;
    let mut command = cargo();
    root.runner(&mut command).args(["test", "--package", "lb-tests", "--"]);
    check(command.args(&arguments))
}
