//! The one task that writes tables: gathers changes, has the pipeline write what they make necessary, retries what
//! failed, and frees what is retired when things are quiet.
//!
//! A change after a quiet time is written at once. What arrives while a batch is being written makes the next batch.
//! Waiting for a grace period takes the kernel 8–20 ms, in which nothing else is written: that is done after
//! [`QUIET`] without a change, and at least every [`LATEST`], so it costs at most a fiftieth of the time however
//! busy the cluster is. Nothing here fails: what could not be written is tried again, and stands in the problems.

mod backoff;
mod observed;
mod problem_log;

use std::{collections::BTreeSet, time::Duration};

use lb_common::address::SocketAddress;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

pub(crate) use self::backoff::Backoff;
pub use self::observed::SourceState;
use self::problem_log::ProblemLog;
use crate::{
    health_check::HealthChecks,
    model::{Change, Kind, Node, Object, Problem},
    pipeline::{NodePorts, Pipeline, ServiceView, Summary, SyncReport},
    store::Store,
    telemetry::chain,
};

/// How long nothing must have changed before a grace period is waited for, and problems are logged.
pub const QUIET: Duration = Duration::from_millis(100);
/// How long that waits at most, even if things are never quiet.
pub const LATEST: Duration = Duration::from_secs(1);
/// The pause before the first retry of a failed write; it doubles up to [`RETRY_LATEST`].
pub const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest pause before a retry.
pub const RETRY_LATEST: Duration = Duration::from_secs(10);

/// Changes that are taken at once, so that questions and retries get their turn in a flood of changes.
const BATCH: usize = 1024;
/// After so many retries in a row without one successful write, the initial state counts as in force without what fails.
const FRUITLESS_RETRIES: u32 = 5;

/// How far the tables are, and what else in the agent depends on objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The kinds whose initial list has not arrived.
    pub unlisted: BTreeSet<Kind>,
    /// All that the initial lists hold is written, except what cannot be.
    pub in_force: bool,
    /// The own Node.
    pub node: Option<Node>,
    /// Since when a change has been waiting to be written, because writes fail. What does not fit does not count.
    pub waiting_since: Option<Instant>,
}

/// What has happened to the tables that others look into. Each number counts up when it has happened once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Backends have left a UDP service port: sockets may be connected to them.
    pub left: u64,
    /// Other node ports are in use, or they answer elsewhere.
    pub node_ports: u64,
}

/// What others may ask the reconciler.
#[derive(Debug)]
pub enum Question {
    /// The state in short.
    Report(oneshot::Sender<Report>),
    /// All Services.
    Services(oneshot::Sender<Vec<ServiceView>>),
    /// Which of these backends serve the UDP service port of that number. As many answers, in the same order.
    Serving(Vec<(u32, SocketAddress)>, oneshot::Sender<Vec<bool>>),
    /// The node ports in force.
    NodePorts(oneshot::Sender<NodePorts>),
}

/// The state in short.
#[derive(Clone, Debug)]
pub struct Report {
    /// The pipeline's counts.
    pub summary: Summary,
    /// What is wrong now.
    pub problems: Vec<Problem>,
    /// The source.
    pub source: SourceState,
}

/// The task's state.
#[derive(Debug)]
pub struct Reconciler<S> {
    pipeline: Pipeline,
    store: S,
    progress: watch::Sender<Progress>,
    health_checks: watch::Sender<HealthChecks>,
    notices: watch::Sender<Notices>,
    source: SourceState,
    retry: Backoff,
    fruitless: u32,
    last_change: Instant,
    /// Since when something is retired.
    retired_since: Option<Instant>,
    /// Since when something may have changed that the log does not tell of.
    unlogged_since: Option<Instant>,
    logged: ProblemLog,
}

impl<S: Store> Reconciler<S> {
    /// Takes over a pipeline, which may have adopted tables, and the store to write. Needs a tokio runtime.
    pub fn new(pipeline: Pipeline, store: S) -> (Self, watch::Receiver<Progress>) {
        let unlisted = Kind::ALL.into_iter().collect();
        let (progress, watched) = watch::channel(Progress { unlisted, ..Progress::default() });
        let now = Instant::now();
        let reconciler = Self {
            pipeline,
            store,
            progress,
            health_checks: watch::Sender::default(),
            notices: watch::Sender::default(),
            source: SourceState::new(now),
            retry: Backoff::new(RETRY_FIRST, RETRY_LATEST),
            fruitless: 0,
            last_change: now,
            retired_since: None,
            unlogged_since: None,
            logged: ProblemLog::default(),
        };
        (reconciler, watched)
    }

    /// The health checks that the objects ask for. Only changes of who listens where wake those who wait for one.
    pub fn health_checks(&self) -> watch::Receiver<HealthChecks> {
        self.health_checks.subscribe()
    }

    /// What happens to the tables from now on.
    pub fn notices(&self) -> watch::Receiver<Notices> {
        self.notices.subscribe()
    }

    /// Reconciles until nobody is left who could send a change.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Change>, mut questions: mpsc::Receiver<Question>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                taken = changes.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    self.take_in(batch.drain(..));
                    self.sync();
                }
                () = self.retry.wait() => {
                    self.retry.fire();
                    self.sync();
                }
                () = at(self.quiet_after(self.retired_since)) => self.reclaim(),
                () = at(self.quiet_after(self.unlogged_since)) => {
                    self.unlogged_since = None;
                    self.logged.update(self.pipeline.problems());
                }
                Some(question) = questions.recv() => self.answer(question),
            }
            // Writing does not wait for anything, so the runtime would not get to the other tasks in a flood.
            tokio::task::yield_now().await;
        }
    }

    fn take_in(&mut self, batch: impl Iterator<Item = Change>) {
        let now = Instant::now();
        self.last_change = now;
        self.unlogged_since.get_or_insert(now);
        for change in batch {
            self.source.note(&change, now);
            self.note_progress(&change);
            self.pipeline.apply(change);
        }
    }

    /// Publishes what the rest of the agent waits for.
    fn note_progress(&self, change: &Change) {
        self.progress.send_if_modified(|progress| match change {
            Change::Reset(kind, objects) => {
                let listed = progress.unlisted.remove(kind);
                let node = objects.iter().find_map(node_of);
                (*kind == Kind::Node && replace(&mut progress.node, node)) || listed
            }
            Change::Apply(object) => {
                node_of(object).is_some_and(|node| replace(&mut progress.node, Some(node)))
            }
            Change::Delete(Kind::Node, _) => replace(&mut progress.node, None),
            Change::Delete(..) | Change::Problems { .. } | Change::Interfaces(_) | Change::Connected(_) => {
                false
            }
        });
    }

    fn sync(&mut self) {
        if !self.pipeline.is_synced() {
            return;
        }
        let report = self.pipeline.sync(&mut self.store);
        debug!(?report, "reconciled");
        let now = Instant::now();
        self.unlogged_since.get_or_insert(now);
        if report.retired {
            self.retired_since.get_or_insert(now);
        }
        if report.dirty == 0 {
            if self.retry.reset() {
                info!("all failed writes have succeeded");
            }
        } else if self.retry.schedule(now) {
            warn!(services = report.dirty, "writes failed; trying again");
        }
        self.fruitless = if report.dirty > 0 && report.written == 0 { self.fruitless + 1 } else { 0 };
        self.note_waiting(report.dirty > 0, now);
        self.tell_health_checks();
        self.judge_initial_state(&report);
        self.give_notice(&report);
    }

    fn give_notice(&self, report: &SyncReport) {
        let (left, node_ports) = (u64::from(report.left > 0), u64::from(report.node_ports));
        if left + node_ports > 0 {
            self.notices.send_modify(|notices| {
                notices.left += left;
                notices.node_ports += node_ports;
            });
        }
    }

    /// Publishes since when writes have been failing.
    fn note_waiting(&self, waiting: bool, now: Instant) {
        self.progress.send_if_modified(|progress| {
            let since = if waiting { progress.waiting_since.or(Some(now)) } else { None };
            replace(&mut progress.waiting_since, since)
        });
    }

    /// Publishes what health checks answer, once the tables say so too.
    fn tell_health_checks(&mut self) {
        let changes = self.pipeline.take_health_check_changes();
        self.health_checks.send_if_modified(|checks| {
            let mut differs = false;
            for change in changes {
                differs |= checks.apply(change);
            }
            differs
        });
    }

    /// Whether the initial state is in force now. What is blocked while something is retired may fit in a moment.
    fn judge_initial_state(&self, report: &SyncReport) {
        let settled = report.dirty == 0 || self.fruitless > FRUITLESS_RETRIES;
        let room_to_come = report.blocked > 0 && report.retired;
        if settled && !room_to_come {
            let first =
                self.progress.send_if_modified(|progress| !std::mem::replace(&mut progress.in_force, true));
            if first {
                let Summary { services, backends, blocked, .. } = self.pipeline.summary();
                info!(services, backends, blocked, dirty = report.dirty, "the initial state is written");
            }
        }
    }

    /// When something is to be done that has waited since then: when things are quiet, or it has waited long enough.
    fn quiet_after(&self, since: Option<Instant>) -> Option<Instant> {
        since.map(|since| (self.last_change + QUIET).min(since + LATEST))
    }

    fn reclaim(&mut self) {
        match self.pipeline.reclaim(&mut self.store) {
            Ok(reclaimed) => {
                self.retired_since = None;
                debug!(?reclaimed, "freed what was retired");
                if reclaimed.unblocked > 0 {
                    self.sync();
                }
            }
            Err(error) => {
                warn!(error = chain(&error), "waiting for a grace period failed; trying again");
                let now = Instant::now();
                self.retired_since = Some(now);
                // The next attempt comes after the longer of the two pauses.
                self.last_change = now + LATEST;
            }
        }
    }

    fn answer(&self, question: Question) {
        // Whoever asked may have gone away meanwhile.
        match question {
            Question::Report(reply) => drop(reply.send(Report {
                summary: self.pipeline.summary(),
                problems: self.pipeline.problems(),
                source: self.source.clone(),
            })),
            Question::Services(reply) => drop(reply.send(self.pipeline.services())),
            Question::Serving(backends, reply) => {
                let serves = |(service_id, backend): &(u32, SocketAddress)| {
                    self.pipeline.is_serving(*service_id, backend)
                };
                drop(reply.send(backends.iter().map(serves).collect()));
            }
            Question::NodePorts(reply) => drop(reply.send(self.pipeline.node_ports())),
        }
    }
}

/// Sleeps until then; forever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn node_of(object: &Object) -> Option<Node> {
    match object {
        Object::Node(node) => Some(node.clone()),
        Object::Service(_) | Object::EndpointSlice(_) | Object::Endpoints(..) | Object::ServiceCidr(_) => {
            None
        }
    }
}

/// Stores a value and says whether it differs from the one before.
fn replace<T: PartialEq>(place: &mut T, value: T) -> bool {
    let differs = *place != value;
    *place = value;
    differs
}

#[cfg(test)]
mod tests;
