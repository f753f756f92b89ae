//! Where objects come from: a cluster's API server or a folder of manifests.
//!
//! Both edges turn Kubernetes objects into the [model](crate::model) on arrival, keep no Kubernetes object, and say what
//! changed as [`Change`]s. A source sends one [`Change::Reset`] for **every** kind in [`Kind::ALL`] before anything of
//! that kind counts as known, kinds that it does not watch included. Bad input never ends a source: it becomes a
//! [`Problem`](crate::model::Problem).
//!
//! `kube` and `k8s_openapi` appear only below this module.

pub mod allocate;
pub mod cluster;
pub mod convert;
mod decode;
pub mod folder;
pub mod manifest;

use tokio::sync::mpsc;

use crate::model::{Change, Kind, ObjectName};

/// How many changes may wait for the reconciler.
///
/// Bounded, so that a reconciler that is busy with retries slows the watch down instead of filling memory: the API server
/// and inotify buffer, and both sources recover from being cut off. One [`Change::Reset`] counts as one, whatever its size.
const CAPACITY: usize = 4096;

/// Where a source sends its changes. Sending fails only when the receiver is gone, and then the source ends.
pub type Sender = mpsc::Sender<Change>;

/// Where the reconciler takes changes from; `recv_many` drains what has arrived.
pub type Receiver = mpsc::Receiver<Change>;

/// A channel between the sources and the reconciler.
pub fn channel() -> (Sender, Receiver) {
    mpsc::channel(CAPACITY)
}

/// The receiver of the changes is gone: the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gone;

async fn send(changes: &Sender, change: Change) -> Result<(), Gone> {
    changes.send(change).await.map_err(|_| Gone)
}

/// How an object is named in problems and as their origin: `Service default/web`.
pub fn origin(kind: Kind, name: &ObjectName) -> String {
    format!("{kind} {name}")
}
