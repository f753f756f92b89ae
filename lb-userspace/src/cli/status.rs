//! `sockeye status`: how the agent is; without one, what is pinned in the kernel.

use std::path::Path;

use clap::Args;

use super::Verdict;
use crate::{
    config::{Instance, InstanceFlags},
    kernel::{KernelError, open_pinned, probe_features},
    output::{FormatFlag, print, remark},
    status::{
        ProblemStatus, Request, State, Status,
        client::{ClientError, ask},
        from_kernel,
    },
    telemetry::chain,
};

/// Exit code: 0 the agent is ready, 1 it is not, or none runs, 2 an error.
#[derive(Debug, Args)]
pub(super) struct Flags {
    #[command(flatten)]
    format: FormatFlag,
    #[command(flatten)]
    instance: InstanceFlags,
}

pub(super) fn run(flags: Flags) -> anyhow::Result<Verdict> {
    let Flags { format, instance } = flags;
    let Instance { bpffs, socket } = instance.resolve()?;
    let status = match ask(&socket, Request::Status) {
        Ok(status) => status,
        Err(error @ ClientError::NotRunning { .. }) => {
            remark(&format!("sockeye: {error}"));
            pinned_status(&bpffs)?
        }
        Err(error) => return Err(error.into()),
    };
    print(&status, format.output)?;
    Ok(if status.state == State::Ready { Verdict::Fine } else { Verdict::No })
}

/// What can be told without an agent.
fn pinned_status(bpffs: &Path) -> anyhow::Result<Status> {
    let mut status = Status {
        state: State::NotRunning,
        waiting_for: Vec::new(),
        agent: None,
        source: None,
        node: None,
        tables: Vec::new(),
        kernel: from_kernel::kernel(Vec::new()),
        devices: Vec::new(),
        attachments: Vec::new(),
        outcomes: Vec::new(),
        problems: Vec::new(),
    };
    let problem = |object: &str, error: &KernelError| ProblemStatus {
        object: object.to_owned(),
        field: String::new(),
        what: chain(error),
    };
    match probe_features() {
        Ok(features) => status.kernel = from_kernel::kernel(features),
        Err(error) => status.problems.push(problem("kernel", &error)),
    }
    let maps = match open_pinned(bpffs) {
        Ok(maps) => maps,
        Err(error @ (KernelError::NotPinned { .. } | KernelError::OtherLayout { .. })) => {
            status.problems.push(problem("pinned maps", &error));
            return Ok(status);
        }
        Err(error) => return Err(error.into()),
    };
    status.tables = from_kernel::tables(&maps.tables()?, maps.capacity());
    status.attachments = from_kernel::attachments(maps.attachments()?);
    status.outcomes = from_kernel::outcomes(&maps.outcomes()?);
    Ok(status)
}
