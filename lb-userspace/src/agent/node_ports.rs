//! Tells of sockets of the host that hold a node port: bound before the port came into use, they hear nothing of what is
//! sent to it.
//!
//! Looked for when node ports change, and every few seconds, since the kernel announces no end of a socket. It takes two
//! listings of listeners and two of unconnected UDP sockets, in the host's network namespace only.

use std::{collections::BTreeMap, fs, io, path::Path, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_blocking,
    time::sleep,
};
use tracing::warn;

use crate::{
    bound::held,
    model::{Change, Problem},
    pipeline::{NodePort, NodePorts},
    reconcile::{Notices, Question},
    sock_diag::{BoundSocket, SockDiag},
};

/// What this module's problems come from, for the reconciler.
const ORIGIN: &str = "node ports";
const INTERVAL: Duration = Duration::from_secs(5);

/// The processes that hold sockets, by the sockets' inodes; none: not found.
type Owners = BTreeMap<u32, Option<String>>;

/// The node ports in force, asked for when others are.
#[derive(Debug)]
pub(super) struct InForce {
    notices: watch::Receiver<Notices>,
    reconciler: mpsc::Sender<Question>,
    /// The number of the notice that they were asked for after.
    seen: Option<u64>,
    node_ports: Arc<NodePorts>,
}

impl InForce {
    pub(super) fn new(notices: watch::Receiver<Notices>, reconciler: mpsc::Sender<Question>) -> Self {
        Self { notices, reconciler, seen: None, node_ports: Arc::default() }
    }

    /// None when the reconciler has ended.
    pub(super) async fn now(&mut self) -> Option<Arc<NodePorts>> {
        let now = self.notices.borrow_and_update().node_ports;
        if self.seen != Some(now) {
            let (reply, answer) = oneshot::channel();
            self.reconciler.send(Question::NodePorts(reply)).await.ok()?;
            (self.node_ports, self.seen) = (Arc::new(answer.await.ok()?), Some(now));
        }
        Some(Arc::clone(&self.node_ports))
    }

    /// Waits for others than these. False when the reconciler has ended.
    pub(super) async fn changed(&mut self) -> bool {
        let seen = self.seen;
        self.notices.wait_for(|notices| Some(notices.node_ports) != seen).await.is_ok()
    }
}

/// Looks for such sockets until the reconciler ends.
pub(super) async fn watch_binds(mut in_force: InForce, changes: mpsc::Sender<Change>) {
    let mut said = Vec::new();
    let mut owners = Owners::new();
    loop {
        let Some(node_ports) = in_force.now().await else { return };
        // They go through the task and come back, uncopied.
        let look = move || (problems(&node_ports, &mut owners), owners);
        let Ok((found, known)) = spawn_blocking(look).await else { return };
        owners = known;
        match found {
            Ok(problems) if said != problems => {
                said.clone_from(&problems);
                let change = Change::Problems { origin: ORIGIN.to_owned(), problems };
                if changes.send(change).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "cannot list the sockets of the host; trying again"),
        }
        tokio::select! {
            goes_on = in_force.changed() => {
                if !goes_on {
                    return;
                }
            }
            () = sleep(INTERVAL) => {}
        }
    }
}

/// What is wrong now.
fn problems(node_ports: &NodePorts, owners: &mut Owners) -> io::Result<Vec<Problem>> {
    if node_ports.ports.is_empty() {
        owners.clear();
        return Ok(Vec::new());
    }
    let sockets = SockDiag::open()?.bound()?;
    let mut holding = Vec::new();
    for socket in &sockets {
        let mut ports: Vec<_> = held(socket, node_ports).map(|(_, port)| port).collect();
        ports.dedup();
        holding.extend(ports.into_iter().map(|port| (socket, port)));
    }
    owners.retain(|inode, _| holding.iter().any(|(socket, _)| socket.inode == *inode));
    let unknown: Vec<u32> =
        holding.iter().map(|(socket, _)| socket.inode).filter(|inode| !owners.contains_key(inode)).collect();
    if !unknown.is_empty() {
        let found = find_owners(Path::new("/proc"), &unknown);
        owners.extend(unknown.iter().map(|inode| (*inode, found.get(inode).cloned())));
    }
    let owner = |socket: &BoundSocket| owners.get(&socket.inode).and_then(Option::as_deref);
    let mut problems: Vec<_> =
        holding.iter().map(|(socket, port)| problem(socket, port, owner(socket))).collect();
    problems.sort();
    problems.dedup();
    Ok(problems)
}

fn problem(socket: &BoundSocket, port: &NodePort, owner: Option<&str>) -> Problem {
    let who = owner.unwrap_or("a process that cannot be found");
    Problem {
        object: format!("Service {}", port.service),
        field: format!("spec.ports[{}].nodePort", port.port),
        what: format!(
            "{who} has bound {} since before the node port came into use: it does not hear what is sent to the node port",
            socket.local
        ),
    }
}

/// Which processes hold these sockets. Reads the descriptors of all processes, so it is asked for new sockets only.
fn find_owners(proc: &Path, inodes: &[u32]) -> BTreeMap<u32, String> {
    let mut owners = BTreeMap::new();
    for process in fs::read_dir(proc).into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            if let Some(inode) = fs::read_link(descriptor.path()).ok().as_deref().and_then(socket_inode)
                && inodes.contains(&inode)
            {
                let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                owners.entry(inode).or_insert_with(|| format!("process {pid} ({})", command.trim()));
            }
        }
    }
    owners
}

/// The inode that a descriptor's link names: `socket:[4711]` (`proc_pid_fd(5)`).
fn socket_inode(link: &Path) -> Option<u32> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd as _};

    use super::*;

    #[test]
    fn the_process_that_holds_a_socket_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let inode = socket_inode(&link).unwrap();
        let owners = find_owners(Path::new("/proc"), &[inode, u32::MAX]);
        let expected = format!("process {} (", std::process::id());
        assert!(owners[&inode].starts_with(&expected), "{owners:?}");
        assert_eq!(owners.len(), 1);
        let bound = SockDiag::open().unwrap().bound().unwrap();
        let found = bound.iter().find(|socket| socket.inode == inode).unwrap();
        assert_eq!(found.local, listener.local_addr().unwrap());
    }
}
