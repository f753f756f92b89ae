//! `./x load`: builds the agent and calls `sockeye load`.

use crate::{
    command::{cargo, check},
    root::Root,
};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Arguments of `sockeye load`; `./x load --help` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(Options { arguments }: Options) -> anyhow::Result<()> {
    sockeye("load", &arguments)
}

/// Builds the agent and runs one of its verbs as root.
pub(crate) fn sockeye(verb: &str, arguments: &[String]) -> anyhow::Result<()> {
    let mut command = cargo();
    let asks_for_help = arguments.iter().any(|argument| matches!(argument.as_str(), "-h" | "--help"));
    if !asks_for_help {
        Root::find(verb)?.runner(&mut command);
    }
    command.args(["run", "--quiet", "--package", "lb-userspace", "--bin", "sockeye", "--", verb]);
    check(command.args(arguments))
}
