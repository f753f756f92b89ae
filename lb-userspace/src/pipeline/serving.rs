//! Which backends serve each UDP service port, whatever policy, topology or termination say of new connections.
//!
//! A connected UDP socket stays with its backend. It is ended when the backend no longer serves the service port that the
//! socket went through: kube-proxy's rule for conntrack entries (pkg/proxy/conntrack/cleanup.go, v1.37). Here is noted
//! what is in force: a change counts once its writes have succeeded, so that nobody comes back to what has just left.

use lb_common::address::SocketAddress;

use crate::{lookup::LookupMap, resolve::ResolvedEndpoint};

/// The serving backends of the UDP service ports in force, by the port's number.
#[derive(Debug, Default)]
pub(super) struct Serving {
    ports: LookupMap<u32, Box<[SocketAddress]>>,
    left: usize,
}

impl Serving {
    /// These serve the port now. `endpoints` are sorted by address.
    pub(super) fn set(&mut self, service_id: u32, endpoints: &[ResolvedEndpoint<'_>]) {
        let now = serving(endpoints);
        let before = self.ports.insert(service_id, now);
        let Some(now) = self.ports.get(&service_id) else { return };
        let gone = before.iter().flatten().filter(|backend| now.binary_search(backend).is_err());
        self.left += gone.count();
    }

    /// These should serve the port. If it has others in force, it keeps them.
    pub(super) fn set_if_unknown(&mut self, service_id: u32, endpoints: &[ResolvedEndpoint<'_>]) {
        self.ports.entry(service_id).or_insert_with(|| serving(endpoints));
    }

    /// The port is gone.
    pub(super) fn remove(&mut self, service_id: u32) {
        self.left += self.ports.remove(&service_id).map_or(0, |backends| backends.len());
    }

    /// Whether a backend serves a port. A port that is not known is gone, and nothing serves it.
    pub(super) fn contains(&self, service_id: u32, backend: &SocketAddress) -> bool {
        self.ports.get(&service_id).is_some_and(|backends| backends.binary_search(backend).is_ok())
    }

    /// How many have left a port since they were last taken. What is not final is counted once more.
    pub(super) fn take_left(&mut self, is_final: bool) -> usize {
        let left = self.left;
        if is_final {
            self.left = 0;
        }
        left
    }
}

fn serving(endpoints: &[ResolvedEndpoint<'_>]) -> Box<[SocketAddress]> {
    let mut backends: Vec<_> = endpoints.iter().filter(|e| e.is_usable()).map(|e| e.address).collect();
    backends.dedup();
    backends.into_boxed_slice()
}
