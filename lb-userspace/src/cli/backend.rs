//! `sockeye backend list`: the backends in use, and by whom.

use clap::{Args, Subcommand};

use super::{Verdict, service::pinned_services};
use crate::{
    config::{Instance, InstanceFlags},
    output::{FormatFlag, print},
    status::{
        BackendList, Request,
        client::{ClientError, ask},
    },
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the backends in use with the Services that use them; without an agent, addresses only
    List {
        #[command(flatten)]
        format: FormatFlag,
        #[command(flatten)]
        instance: InstanceFlags,
    },
}

pub(super) fn run(flags: Flags) -> anyhow::Result<Verdict> {
    let Flags { verb: Verb::List { format, instance } } = flags;
    print(&backends(&instance.resolve()?)?, format.output)?;
    Ok(Verdict::Fine)
}

fn backends(instance: &Instance) -> anyhow::Result<BackendList> {
    match ask(&instance.socket, Request::Backends) {
        Ok(backends) => Ok(backends),
        Err(error @ ClientError::NotRunning { .. }) => {
            Ok(BackendList::from(&pinned_services(instance, &error)?))
        }
        Err(error) => Err(error.into()),
    }
}
