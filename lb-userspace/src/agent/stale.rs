//! Ends connected UDP sockets whose backend has left their service, in every network namespace of the machine.
//!
//! Whenever backends have left, and once after the start, all connected UDP sockets are looked at that went through a
//! service. The reconciler says which of them are stale: nothing else is remembered, so nothing can be missed. Those that
//! talk to a pod directly, or through another service that still has the backend, are not touched. Unconnected ones move
//! on by themselves with the next datagram, and TCP connections have an end of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lb_common::{
    address::SocketAddress,
    socket::{ConnectedSocket, SocketState},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::{debug, info, warn};

use super::namespaces::Known;
use crate::{
    kernel::{ConnectedSockets, KernelError},
    model::{Change, Problem},
    netns::{self, Namespace},
    reconcile::{Notices, Progress, Question},
    sock_diag::SockDiag,
    telemetry::chain,
};

/// What this module's problems come from, for the reconciler.
const ORIGIN: &str = "stale sockets";
/// Between two sweeps, so that a flood of changes is answered in turn with the rest of the machine's work.
const PAUSE: Duration = Duration::from_millis(50);
/// A socket that is not found yet is connecting at this moment: it is looked for again so much later.
const AGAIN: Duration = Duration::from_millis(200);
/// How often a socket is looked for. One that is not found then has been ended or disconnected, or its `connect()` failed
/// after the program ran: the kernel tells programs of none of these.
const LOOKS: u8 = 3;

/// Ends sockets.
#[derive(Debug)]
pub(super) struct Sweeper {
    /// None: this kernel cannot do it, which the features tell.
    sockets: Option<ConnectedSockets>,
    namespaces: watch::Receiver<Known>,
    reconciler: mpsc::Sender<Question>,
    /// How many have been ended.
    ended: Arc<AtomicU64>,
    /// Stale sockets that were not found, and how often they were looked for.
    absent: BTreeMap<u64, (SocketState, u8)>,
}

/// When to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// At once.
    Now,
    /// After all programs have ended that run now.
    Settled,
}

/// Why a sweep did not do all.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("looking for network namespaces")]
    Namespaces(#[source] io::Error),
    #[error("ending sockets of the network namespace {cookie}")]
    End {
        cookie: u64,
        #[source]
        source: io::Error,
    },
    #[error("the agent is stopping")]
    Stopping,
}

impl Sweeper {
    pub(super) fn new(
        sockets: Option<ConnectedSockets>,
        namespaces: watch::Receiver<Known>,
        reconciler: mpsc::Sender<Question>,
        ended: Arc<AtomicU64>,
    ) -> Self {
        Self { sockets, namespaces, reconciler, ended, absent: BTreeMap::new() }
    }

    /// Sweeps once when all is in force, and then whenever backends have left, until the reconciler ends.
    pub(super) async fn run(
        mut self,
        mut progress: watch::Receiver<Progress>,
        mut notices: watch::Receiver<Notices>,
    ) {
        if self.sockets.is_none() {
            return pending().await;
        }
        if progress.wait_for(|progress| progress.in_force).await.is_err() {
            return;
        }
        loop {
            let left = notices.borrow_and_update().left;
            let again = match self.sweep_twice().await {
                Ok(again) => again,
                Err(SweepError::Stopping) => return,
                Err(error) => {
                    warn!(error = chain(&error), "cannot end all stale sockets; trying again");
                    true
                }
            };
            sleep(PAUSE).await;
            tokio::select! {
                changed = notices.wait_for(|notices| notices.left != left) => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep(AGAIN), if again => {}
            }
        }
    }

    /// Looks at once, and again when nobody can be on the way any more whom the tables sent to a backend that has left.
    async fn sweep_twice(&mut self) -> Result<bool, SweepError> {
        self.sweep(When::Now).await?;
        self.sweep(When::Settled).await
    }

    /// Looks at all sockets once. True: some may yet turn up.
    async fn sweep(&mut self, when: When) -> Result<bool, SweepError> {
        let stale = self.find_stale(when).await?;
        let mut by_namespace: BTreeMap<u64, Vec<ConnectedSocket>> = BTreeMap::new();
        for socket in stale {
            by_namespace.entry(socket.state.namespace).or_default().push(socket);
        }
        if by_namespace.is_empty() {
            return Ok(false);
        }
        let namespaces = Arc::clone(&self.namespaces.borrow());
        let start = Instant::now();
        let (done, failed) = spawn_blocking(move || end_all(&by_namespace, &namespaces))
            .await
            .map_err(|_| SweepError::Stopping)?;
        debug!(sockets = done.len(), took = ?start.elapsed(), "asked the kernel to end sockets");
        let again = self.note(done);
        failed.map_or(Ok(again), Err)
    }

    /// The stale sockets, without those that were looked for in vain.
    async fn find_stale(&mut self, when: When) -> Result<Vec<ConnectedSocket>, SweepError> {
        let mut sockets = self.sockets.take().ok_or(SweepError::Stopping)?;
        let start = Instant::now();
        let read = spawn_blocking(move || {
            let settled = if when == When::Settled { sockets.settle() } else { Ok(()) };
            (settled.and_then(|()| sockets.read()), sockets)
        });
        let (connected, sockets) = read.await.map_err(|_| SweepError::Stopping)?;
        self.sockets = Some(sockets);
        let connected = connected?;
        let pairs: BTreeSet<_> = connected.iter().map(pair).collect();
        let (reply, answer) = oneshot::channel();
        let question = Question::Serving(pairs.iter().copied().collect(), reply);
        self.reconciler.send(question).await.map_err(|_| SweepError::Stopping)?;
        let serving = answer.await.map_err(|_| SweepError::Stopping)?;
        let gone: BTreeSet<_> =
            pairs.into_iter().zip(serving).filter(|(_, serves)| !serves).map(|(pair, _)| pair).collect();
        let stale: BTreeMap<u64, SocketState> = connected
            .iter()
            .filter(|socket| gone.contains(&pair(socket)))
            .map(|socket| (socket.cookie, socket.state))
            .collect();
        let (connected, took) = (connected.len(), start.elapsed());
        debug!(connected, stale = stale.len(), ?took, "looked at the connected UDP sockets");
        self.absent.retain(|cookie, (state, _)| stale.get(cookie) == Some(state));
        let is_given_up = |cookie: &u64| self.absent.get(cookie).is_some_and(|(_, looks)| *looks >= LOOKS);
        let wanted = stale.into_iter().filter(|(cookie, _)| !is_given_up(cookie));
        Ok(wanted.map(|(cookie, state)| ConnectedSocket { cookie, state }).collect())
    }

    /// Notes what was done. True: some were not found, and may be yet.
    fn note(&mut self, done: Vec<(ConnectedSocket, bool)>) -> bool {
        let ended = done.iter().filter(|(_, ended)| *ended).count();
        if ended > 0 {
            info!(ended, "ended connected UDP sockets whose backends have left");
            self.ended.fetch_add(ended as u64, Ordering::Relaxed);
        }
        let mut again = false;
        for (ConnectedSocket { cookie, state }, ended) in done {
            let (_, looks) = self.absent.entry(cookie).or_insert((state, 0));
            *looks = if ended { LOOKS } else { *looks + 1 };
            again |= *looks < LOOKS;
        }
        again
    }
}

/// For the status: this kernel should be able to do it, and something else is wrong.
pub(super) fn impossible(error: &KernelError) -> Change {
    let what = format!("connected UDP sockets stay with backends that have left: {}", chain(error));
    let problem = Problem { object: "kernel".to_owned(), field: String::new(), what };
    Change::Problems { origin: ORIGIN.to_owned(), problems: vec![problem] }
}

const fn pair(socket: &ConnectedSocket) -> (u32, SocketAddress) {
    (socket.state.service_id, socket.state.backend)
}

/// Ends sockets in their namespaces. Says which were ended and which not found, and what went wrong last.
fn end_all(
    by_namespace: &BTreeMap<u64, Vec<ConnectedSocket>>,
    known: &Known,
) -> (Vec<(ConnectedSocket, bool)>, Option<SweepError>) {
    let (mut done, mut failed) = (Vec::new(), None);
    let mut fresh: Option<Vec<Namespace>> = None;
    for (cookie, sockets) in by_namespace {
        let result = match end_in(known, *cookie, sockets) {
            // Not known yet, or known by a process that has ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fresh.is_none() {
                    match netns::look() {
                        Ok(found) => fresh = Some(found),
                        Err(error) => failed = Some(SweepError::Namespaces(error)),
                    }
                }
                end_in(fresh.as_deref().unwrap_or_default(), *cookie, sockets)
            }
            result => result,
        };
        match result {
            Ok(ended) => {
                done.extend(sockets.iter().map(|socket| (*socket, ended.contains(&socket.cookie))));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                done.extend(sockets.iter().map(|socket| (*socket, false)));
            }
            Err(source) => failed = Some(SweepError::End { cookie: *cookie, source }),
        }
    }
    (done, failed)
}

fn end_in(namespaces: &[Namespace], cookie: u64, sockets: &[ConnectedSocket]) -> io::Result<BTreeSet<u64>> {
    let place = namespaces.iter().find(|namespace| namespace.cookie == cookie);
    let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    place.inside(|| SockDiag::open()?.end(sockets))
}
