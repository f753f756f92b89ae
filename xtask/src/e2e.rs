//! `./x e2e`: the tests against a real API server. They build the control plane themselves, once.

use crate::{
    command::{cargo, check},
    root::Root,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Arguments of the test binary, such as a part of a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(Options { arguments }: Options) -> anyhow::Result<()> {
    let root = Root::find("e2e")?;
    check(cargo().args(["build", "--package", "lb-userspace", "--bin", "sockeye"]))?;
    let mut command = cargo();
    root.runner(&mut command).args([
        "test",
        "--package",
        "lb-tests",
        "--features",
        "e2e",
        "--test",
        "e2e",
        "--",
    ]);
    check(command.args(arguments))
}
