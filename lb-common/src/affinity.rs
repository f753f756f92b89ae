//! Session affinity: which backend a client was given last (`AFFINITY`).
//!
//! Scoped to the service port, not to the frontend that was used (kube-proxy's rule), as long as the sets of the frontends
//! allow it: a client may have one backend in the local set and another in the cluster set, and each stays. The timer is
//! refreshed by each new connection, not by traffic on an open one.

use bytemuck::{Pod, Zeroable};

use crate::{address::Address, backend::BackendId, service::Set};

/// Who connects.
///
/// At the socket a client has no address yet, so a pod is known by its network namespace. Processes of the host's network
/// namespace are told apart by their pod's, or their service's, cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Cookie of a pod's network namespace.
    Namespace(u64),
    /// Id of a cgroup of the host's network namespace.
    Cgroup(u64),
    /// Source address of a packet.
    Address(Address),
}

/// Key of `AFFINITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// An address, or a number in its last eight bytes (in the byte order of the machine).
    client: Address,
    /// The service port's number.
    service_id: u32,
    /// What `client` holds: 1 a namespace cookie, 2 a cgroup id, 3 an address.
    kind: u16,
    /// The set that the backend was chosen from: 0 of policy `Cluster`, 1 of policy `Local`.
    set: u16,
}

impl AffinityKey {
    /// The key of a client, a service port and one of its sets.
    #[inline(always)]
    pub const fn new(client: Client, service_id: u32, set: Set) -> Self {
        let (client, kind) = match client {
            Client::Namespace(cookie) => (number(cookie), 1),
            Client::Cgroup(id) => (number(id), 2),
            Client::Address(address) => (address, 3),
        };
        let set = match set {
            Set::Cluster => 0,
            Set::Local => 1,
        };
        Self { client, service_id, kind, set }
    }

    /// The service port's number.
    pub const fn service_id(&self) -> u32 {
        self.service_id
    }
}

#[inline(always)]
const fn number(number: u64) -> Address {
    let halves: [u32; 2] = bytemuck::must_cast(number);
    Address::from_words([0, 0, halves[0], halves[1]])
}

/// Value of `AFFINITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityValue {
    /// The backend's number.
    pub backend_id: BackendId,
    /// The slot that the backend was found in, tried first.
    pub slot: u32,
    /// Time of the last connection: seconds of the monotonic clock.
    pub last_used: u32,
}

impl AffinityValue {
    /// Whether the client still belongs to the backend.
    #[inline(always)]
    pub const fn is_current(&self, now: u32, timeout: u32) -> bool {
        now.wrapping_sub(self.last_used) < timeout
    }

    /// Notes another connection. Writes only what differs: many processors may share the cache line.
    #[inline(always)]
    pub const fn refresh(&mut self, slot: u32, now: u32) {
        if self.slot != slot {
            self.slot = slot;
        }
        if self.last_used != now {
            self.last_used = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_clients_never_meet() {
        let address = Client::Address(Address::from_words([0, 0, 7, 0]));
        let keys = [Client::Namespace(7), Client::Cgroup(7), address]
            .map(|client| AffinityKey::new(client, 1, Set::Cluster));
        assert_ne!(keys[0], keys[1]);
        assert_ne!(keys[0], keys[2]);
        assert_ne!(keys[1], keys[2]);
        assert_ne!(keys[0], AffinityKey::new(Client::Namespace(7), 2, Set::Cluster));
        assert_ne!(keys[0], AffinityKey::new(Client::Namespace(7 << 32), 1, Set::Cluster));
        assert_ne!(keys[0], AffinityKey::new(Client::Namespace(7), 1, Set::Local));
    }

    #[test]
    fn the_timeout_counts_from_the_last_connection() {
        let value = AffinityValue { backend_id: 1, slot: 0, last_used: 100 };
        assert!(value.is_current(100, 10) && value.is_current(109, 10));
        assert!(!value.is_current(110, 10));
    }
}
