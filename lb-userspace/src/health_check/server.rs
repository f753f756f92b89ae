//! Listening on health check ports, and answering.
//!
//! Each turn compares where to listen with where we do and does the difference; what fails is a problem that names the
//! Service, and is tried again. Answers are looked up when they are asked for, so a change of endpoints costs nothing here.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use http::{Response, StatusCode};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info};

use super::{HealthChecks, answer::answer};
use crate::{
    model::{Change, Problem},
    reconcile::{Backoff, Progress},
};

/// What this module's problems come from, for the reconciler.
const ORIGIN: &str = "health checks";
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LATEST: Duration = Duration::from_secs(10);
/// How long a change may wait to be written before this node is no good (kube-proxy: twice its sync period).
const LATE: Duration = Duration::from_secs(60);
/// Clients of one socket at a time; others wait in its queue.
const MAX_CLIENTS: usize = 64;
/// How long one question and its answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What answers depend on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// All health checks.
    pub checks: watch::Receiver<HealthChecks>,
    /// How far the reconciler is.
    pub progress: watch::Receiver<Progress>,
    /// Whether tables and programs are in force.
    pub ready: watch::Receiver<bool>,
}

impl Facts {
    fn is_healthy(&self, now: Instant) -> bool {
        let waits = self.progress.borrow().waiting_since.map(|since| now.duration_since(since));
        *self.ready.borrow() && waits.is_none_or(|waits| waits <= LATE)
    }

    /// The answer to whoever asks at a socket.
    fn answer(&self, socket: &SocketAddr) -> Response<String> {
        let healthy = self.is_healthy(Instant::now());
        if let Some((service, local_endpoints)) = self.checks.borrow().at(socket) {
            return answer(service, local_endpoints, healthy);
        }
        // The socket is about to be closed.
        let mut gone = Response::new(String::new());
        *gone.status_mut() = StatusCode::NOT_FOUND;
        gone
    }
}

/// Listens on every health check's port.
#[derive(Debug)]
pub struct HealthServer {
    facts: Arc<Facts>,
    changes: mpsc::Sender<Change>,
    listening: BTreeMap<SocketAddr, JoinSet<()>>,
    failures: BTreeMap<SocketAddr, String>,
    said: Vec<Problem>,
    retry: Backoff,
}

impl HealthServer {
    /// Tells its problems through `changes`.
    pub fn new(facts: Facts, changes: mpsc::Sender<Change>) -> Self {
        Self {
            facts: Arc::new(facts),
            changes,
            listening: BTreeMap::new(),
            failures: BTreeMap::new(),
            said: Vec::new(),
            retry: Backoff::new(RETRY_FIRST, RETRY_LATEST),
        }
    }

    /// Follows the health checks until nobody is left who could change them.
    pub async fn run(mut self) {
        let mut checks = self.facts.checks.clone();
        loop {
            let sockets = checks.borrow_and_update().sockets();
            self.converge(sockets).await;
            tokio::select! {
                changed = checks.changed() => if changed.is_err() {
                    return;
                },
                () = self.retry.wait() => self.retry.fire(),
            }
        }
    }

    /// Listens where it should, and nowhere else.
    async fn converge(&mut self, sockets: BTreeSet<SocketAddr>) {
        let unwanted = self.listening.extract_if(.., |socket, _| !sockets.contains(socket));
        for (socket, mut listener) in unwanted {
            listener.shutdown().await;
            info!(%socket, "no longer answering health checks");
        }
        self.failures.clear();
        for socket in sockets {
            if self.listening.contains_key(&socket) {
                continue;
            }
            match TcpListener::bind(socket).await {
                Ok(listener) => {
                    info!(%socket, "answering health checks");
                    let mut task = JoinSet::new();
                    task.spawn(listen(listener, socket, Arc::clone(&self.facts)));
                    self.listening.insert(socket, task);
                }
                Err(error) => {
                    self.failures.insert(socket, error.to_string());
                }
            }
        }
        if self.failures.is_empty() {
            self.retry.reset();
        } else {
            self.retry.schedule(Instant::now());
        }
        let problems = self.facts.checks.borrow().problems(&self.failures);
        self.tell(problems).await;
    }

    async fn tell(&mut self, problems: Vec<Problem>) {
        if self.said != problems {
            self.said.clone_from(&problems);
            // The receiver goes away only when the agent ends.
            drop(self.changes.send(Change::Problems { origin: ORIGIN.to_owned(), problems }).await);
        }
    }
}

/// Answers at one socket until the future is dropped, and its clients with it.
async fn listen(listener: TcpListener, socket: SocketAddr, facts: Arc<Facts>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                Ok((stream, _)) => drop(clients.spawn(converse(stream, socket, Arc::clone(&facts)))),
                Err(error) => {
                    debug!(%error, %socket, "accepting a health check");
                    // Out of descriptors, most likely: trying at once again would only burn time.
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
}

/// One question and its answer, whatever the method and the path are.
async fn converse(stream: TcpStream, socket: SocketAddr, facts: Arc<Facts>) {
    let service = service_fn(|_| {
        let answer = facts.answer(&socket);
        async { Ok::<_, Infallible>(answer) }
    });
    let connection =
        pin!(http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service));
    match timeout(PATIENCE, connection).await.map_err(io::Error::from) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, %socket, "a health check broke off"),
        Err(error) => debug!(%error, %socket, "a health check took too long"),
    }
}

#[cfg(test)]
mod tests;
