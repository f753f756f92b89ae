//! `sockeye run`: the node agent.

use clap::Args;

use super::{Verdict, runtime};
use crate::{
    agent,
    config::{Machine, RunFlags},
    telemetry,
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    #[command(flatten)]
    run: RunFlags,
}

pub(super) fn run(flags: Flags) -> anyhow::Result<Verdict> {
    let config = flags.run.resolve(&Machine::look())?;
    telemetry::start(&config.log)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(agent::run(config));
    runtime.shutdown_timeout(agent::SHUTDOWN);
    ended?;
    Ok(Verdict::Fine)
}
