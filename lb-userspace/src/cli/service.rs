//! `sockeye service list`: Services as the agent knows them; without one, what the pinned maps hold.

use clap::{Args, Subcommand};

use super::Verdict;
use crate::{
    config::{Instance, InstanceFlags},
    kernel::open_pinned,
    output::{FormatFlag, print, remark},
    status::{
        Request, ServiceList,
        client::{ClientError, ask},
        from_kernel,
    },
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List Services with their frontends and backends; without an agent, addresses only
    List {
        #[command(flatten)]
        format: FormatFlag,
        #[command(flatten)]
        instance: InstanceFlags,
    },
}

pub(super) fn run(flags: Flags) -> anyhow::Result<Verdict> {
    let Flags { verb: Verb::List { format, instance } } = flags;
    print(&services(&instance.resolve()?)?, format.output)?;
    Ok(Verdict::Fine)
}

/// From the agent, else from the pinned maps with a remark.
fn services(instance: &Instance) -> anyhow::Result<ServiceList> {
    match ask(&instance.socket, Request::Services) {
        Ok(services) => Ok(services),
        Err(error @ ClientError::NotRunning { .. }) => pinned_services(instance, &error),
        Err(error) => Err(error.into()),
    }
}

/// What the pinned maps tell of services, with a remark that there is no agent.
pub(super) fn pinned_services(instance: &Instance, why: &ClientError) -> anyhow::Result<ServiceList> {
    let maps = open_pinned(&instance.bpffs)?;
    remark(&format!("sockeye: {why}; the pinned maps tell addresses and numbers, but no names"));
    Ok(from_kernel::services(&maps.tables()?))
}
