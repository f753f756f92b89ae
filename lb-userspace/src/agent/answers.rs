//! The agent's answers to whoever asks on the status socket: the parts of the agent know the facts, this puts them
//! together.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::{mpsc, oneshot, watch};

use super::datapath;
use crate::{
    config::{Instance, NodeIps},
    reconcile::{self, Progress, SourceState},
    status::{
        AgentStatus, BackendList, NodeStatus, ProblemStatus, Request, ServiceList, SourceKind, SourceStatus,
        State, Status,
        from_kernel::{attachments, kernel, outcomes},
        from_pipeline::tables,
        server::{Answer, document, refusal},
    },
    telemetry::chain,
    version,
};

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    started: Instant,
    bpffs: String,
    node_name: String,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) kind: SourceKind,
    pub(super) location: String,
}

/// Knows whom to ask.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) facts: Facts,
    pub(super) origin: Origin,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) ready: watch::Receiver<bool>,
    pub(super) reconciler: mpsc::Sender<reconcile::Question>,
    /// UDP sockets ended because their backend had left.
    pub(super) ended: Arc<AtomicU64>,
    pub(super) datapath: mpsc::Sender<datapath::Question>,
}

/// A part of the agent has ended: the agent is about to.
struct Ending;

impl Facts {
    pub(super) fn new(instance: &Instance, node_name: &str) -> Self {
        Self {
            started: Instant::now(),
            bpffs: instance.bpffs.display().to_string(),
            node_name: node_name.to_owned(),
        }
    }
}

impl Answer for Answers {
    async fn answer(&self, request: Request) -> Vec<u8> {
        let answer = match request {
            Request::Status => self.status().await.map(|status| document(&status)),
            Request::Services => self.services().await.map(|services| document(&services)),
            Request::Backends => {
                self.services().await.map(|services| document(&BackendList::from(&services)))
            }
        };
        answer.unwrap_or_else(|Ending| refusal("the agent is stopping"))
    }
}

impl Answers {
    async fn services(&self) -> Result<ServiceList, Ending> {
        let (reply, answer) = oneshot::channel();
        self.reconciler.send(reconcile::Question::Services(reply)).await.map_err(|_| Ending)?;
        answer.await.map(ServiceList::from).map_err(|_| Ending)
    }

    async fn status(&self) -> Result<Status, Ending> {
        let (reply, answer) = oneshot::channel();
        self.reconciler.send(reconcile::Question::Report(reply)).await.map_err(|_| Ending)?;
        let reconcile::Report { summary, problems, source } = answer.await.map_err(|_| Ending)?;
        let (reply, answer) = oneshot::channel();
        self.datapath.send(datapath::Question::Report(reply)).await.map_err(|_| Ending)?;
        let (datapath, mut problems): (_, Vec<ProblemStatus>) =
            (answer.await.map_err(|_| Ending)?, problems.into_iter().map(ProblemStatus::from).collect());
        let report = datapath.unwrap_or_else(|error| {
            problems.push(ProblemStatus {
                object: "kernel".to_owned(),
                field: String::new(),
                what: chain(&error),
            });
            datapath::Report::default()
        });
        let progress = self.progress.borrow().clone();
        let ready = *self.ready.borrow();
        Ok(Status {
            state: if ready { State::Ready } else { State::Waiting },
            waiting_for: if ready { Vec::new() } else { waiting_for(&progress) },
            agent: Some(self.agent()),
            source: Some(self.source(&source)),
            node: Some(self.node(&progress, report.source_addresses)),
            tables: tables(&summary),
            kernel: kernel(report.features),
            devices: report.devices,
            attachments: attachments(report.attachments),
            outcomes: outcomes(&report.outcomes),
            problems,
        })
    }

    fn agent(&self) -> AgentStatus {
        AgentStatus {
            version: version::VERSION.to_owned(),
            commit: version::COMMIT.map(str::to_owned),
            pid: std::process::id(),
            uptime_seconds: self.facts.started.elapsed().as_secs(),
            bpffs: self.facts.bpffs.clone(),
            ended_sockets: self.ended.load(Ordering::Relaxed),
        }
    }

    fn source(&self, state: &SourceState) -> SourceStatus {
        SourceStatus {
            kind: self.origin.kind,
            location: self.origin.location.clone(),
            reachable: state.reachable,
            since_seconds: state.since.elapsed().as_secs(),
            last_heard_seconds: state.last_heard.map(|time| time.elapsed().as_secs()),
        }
    }

    fn node(&self, progress: &Progress, ips: NodeIps) -> NodeStatus {
        let v4 = ips.v4.map(IpAddr::V4);
        let v6 = ips.v6.map(IpAddr::V6);
        NodeStatus {
            name: self.facts.node_name.clone(),
            zone: progress.node.as_ref().and_then(|node| node.zone.as_deref()).map(str::to_owned),
            source_addresses: v4.into_iter().chain(v6).collect(),
        }
    }
}

fn waiting_for(progress: &Progress) -> Vec<String> {
    if !progress.unlisted.is_empty() {
        return progress.unlisted.iter().map(|kind| format!("the list of {kind}")).collect();
    }
    let step = if progress.in_force { "the programs to be attached" } else { "the tables to be written" };
    vec![step.to_owned()]
}
