//! `./x run`: builds the agent and calls `sockeye run`.

use crate::load::sockeye;

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Arguments of `sockeye run`; `./x run --help` shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(Options { arguments }: Options) -> anyhow::Result<()> {
    sockeye("run", &arguments)
}
