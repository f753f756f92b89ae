//! Follows the settings of the node's network, and tells which of them are in the way of clients outside.
//!
//! The kernel announces few changes of them, so they are read again every few seconds: some small files.

use std::time::Duration;

use tokio::{
    sync::{mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};

use super::node_ports;
use crate::{
    host::{self, Facing, Values, sysctl},
    model::{Change, Problem},
    pipeline::NodePorts,
};

/// What this module's problems come from, for the reconciler.
const ORIGIN: &str = "host";
const INTERVAL: Duration = Duration::from_secs(5);

/// Follows until the agent ends. Nothing is said before the programs are in force.
pub(super) async fn follow(
    mut facing: watch::Receiver<Option<Facing>>,
    mut node_ports: node_ports::InForce,
    changes: mpsc::Sender<Change>,
) {
    let mut said = Vec::new();
    loop {
        let known = facing.borrow_and_update().clone();
        let Some(in_force) = node_ports.now().await else { return };
        if let Some(now) = known {
            // It panicked, which has been printed, or the agent ends.
            let Ok(problems) = spawn_blocking(move || look(&now, &in_force)).await else { return };
            if said != problems {
                said.clone_from(&problems);
                let change = Change::Problems { origin: ORIGIN.to_owned(), problems };
                if changes.send(change).await.is_err() {
                    return;
                }
            }
        }
        let goes_on = tokio::select! {
            told = facing.changed() => told.is_ok(),
            goes_on = node_ports.changed() => goes_on,
            () = sleep(INTERVAL) => true,
        };
        if !goes_on {
            return;
        }
    }
}

fn look(facing: &Facing, node_ports: &NodePorts) -> Vec<Problem> {
    // What cannot be read cannot be judged: a kernel without IPv6 has none of its settings.
    let read = |name: String| sysctl::read(&name).ok().map(|value| (name, value));
    let values: Values = host::names(facing).into_iter().filter_map(read).collect();
    host::problems(facing, &values, node_ports)
}
