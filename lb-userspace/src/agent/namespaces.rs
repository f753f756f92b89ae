//! Follows the network namespaces of the machine: keeps `NAMESPACES` and tells the rest of the agent which there are.
//!
//! The kernel announces no namespaces. A pod's comes with a device on the host, so they are looked at again when a device
//! comes or goes, a few times, since the address comes a moment later; and every few seconds, for those without a device.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lb_common::{config::maps, namespace::NamespaceAddresses};
use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::{debug, trace, warn};

use crate::{
    kernel::Namespaces,
    model::{Change, Problem},
    netns::{self, Namespace},
    telemetry::chain,
};

/// What this module's problems come from, for the reconciler.
const ORIGIN: &str = "namespaces";
/// The looks after an event of a device.
const LOOKS: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1500),
];
/// The pause between looks where nothing has happened.
const INTERVAL: Duration = Duration::from_secs(5);

/// The network namespaces as they were found last.
pub(super) type Known = Arc<Vec<Namespace>>;

/// Follows them until the agent ends.
pub(super) async fn follow(
    mut map: Namespaces,
    mut devices: watch::Receiver<u64>,
    changes: mpsc::Sender<Change>,
    known: watch::Sender<Known>,
) {
    let mut written = None;
    let mut said = Vec::new();
    let mut looks = LOOKS.iter();
    while !changes.is_closed() {
        let start = Instant::now();
        match spawn_blocking(netns::look).await {
            Ok(Ok(found)) => {
                trace!(namespaces = found.len(), took = ?start.elapsed(), "looked for network namespaces");
                let problems = write(&mut map, &found, &mut written);
                if said != problems {
                    said.clone_from(&problems);
                    drop(changes.send(Change::Problems { origin: ORIGIN.to_owned(), problems }).await);
                }
                known.send_if_modified(|known| {
                    let differs = **known != found;
                    if differs {
                        *known = Arc::new(found);
                    }
                    differs
                });
            }
            Ok(Err(error)) => warn!(%error, "cannot look for network namespaces; trying again"),
            // It panicked, which has been printed, or the agent ends.
            Err(_) => return,
        }
        let next = Instant::now() + looks.next().copied().unwrap_or(INTERVAL);
        tokio::select! {
            () = sleep_until(next) => {}
            event = devices.changed() => {
                if event.is_err() {
                    return;
                }
                looks = LOOKS.iter();
                sleep_until(Instant::now() + LOOKS[0]).await;
            }
            () = changes.closed() => return,
        }
    }
}

/// Writes the addresses of all namespaces but the host's. Tells what does not fit.
fn write(
    map: &mut Namespaces,
    found: &[Namespace],
    written: &mut Option<BTreeMap<u64, NamespaceAddresses>>,
) -> Vec<Problem> {
    let wanted: BTreeMap<u64, NamespaceAddresses> = found
        .iter()
        .filter(|namespace| !namespace.own && namespace.addresses != NamespaceAddresses::NONE)
        .map(|namespace| (namespace.cookie, namespace.addresses))
        .collect();
    if written.as_ref() == Some(&wanted) {
        return Vec::new();
    }
    let what = match map.set(&wanted) {
        Ok(unfit) if unfit.is_empty() => {
            debug!(namespaces = wanted.len(), "addresses of the pods' network namespaces");
            *written = Some(wanted);
            return Vec::new();
        }
        Ok(unfit) => format!("map {} is full: {} pods are not in it", maps::NAMESPACES, unfit.len()),
        Err(error) => format!("{}; trying again", chain(&error)),
    };
    vec![Problem { object: "Node".to_owned(), field: String::new(), what }]
}
