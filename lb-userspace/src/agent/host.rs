//! Follows the settings of the node's network: reserves the ports for translated sources, and tells what is wrong.
//!
//! The kernel announces no change of them, so they are read again every few seconds: some small files.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};
use tracing::info;

use crate::{
    config::PortRange,
    host::{self, Facing, RESERVED, Values, sysctl},
    kernel::Reservation,
    model::{Change, Problem},
    telemetry::chain,
};

/// What this module's problems come from, for the reconciler.
const ORIGIN: &str = "host";
const INTERVAL: Duration = Duration::from_secs(5);

/// Follows until the agent ends. `reserve` are the ports to be reserved; none: those of an earlier agent are given back.
pub(super) async fn follow(
    mut facing: watch::Receiver<Option<Facing>>,
    reservation: Reservation,
    reserve: Option<PortRange>,
    changes: mpsc::Sender<Change>,
) {
    let mut said = Vec::new();
    loop {
        // Nothing is changed, and nothing can be said, before the programs are in force.
        let now = facing.borrow_and_update().clone();
        if let Some(now) = now {
            let reservation = reservation.clone();
            let look = spawn_blocking(move || look(&now, &reservation, reserve));
            // It panicked, which has been printed, or the agent ends.
            let Ok(problems) = look.await else { return };
            if said != problems {
                said.clone_from(&problems);
                let change = Change::Problems { origin: ORIGIN.to_owned(), problems };
                if changes.send(change).await.is_err() {
                    return;
                }
            }
        }
        tokio::select! {
            changed = facing.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep(INTERVAL) => {}
        }
    }
}

fn look(facing: &Facing, reservation: &Reservation, reserve: Option<PortRange>) -> Vec<Problem> {
    // Where no client comes in, no source is translated.
    let wanted = reserve.filter(|_| !facing.devices.is_empty());
    let refused = match reservation.set(wanted) {
        Ok(changed) => {
            if changed {
                info!(ours = wanted.map(|range| range.to_string()), "changed the node's reserved ports");
            }
            None
        }
        Err(error) => Some(Problem {
            object: format!("sysctl {RESERVED}"),
            field: String::new(),
            what: format!("cannot reserve the ports for translated sources: {}; trying again", chain(&error)),
        }),
    };
    let values: Values =
        host::names(facing).into_iter().filter_map(|name| Some((sysctl::read(&name).ok()?, name))).map(|(value, name)| (name, value)).collect();
    refused.into_iter().chain(host::problems(facing, &values)).collect()
}
