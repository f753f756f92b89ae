//! The numbers of backends and of service ports.
//!
//! Both count up and continue above whatever the maps held at the start. A backend keeps its number while any slot holds
//! it, retired slots included. A service port's number is never used again while the maps live: sockets and affinity
//! entries outlive the port.

use std::hash::{Hash, Hasher};

use lb_common::{
    address::{Protocol, SocketAddress},
    backend::BackendId,
};

use crate::lookup::LookupMap;

/// What has a number: an address and port that serves a protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendKey {
    /// Where it serves.
    pub address: SocketAddress,
    /// What it serves.
    pub protocol: Protocol,
}

impl Hash for BackendKey {
    /// In few words: the derived one hashes byte by byte.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d] = self.address.address.words();
        state.write_u64(u64::from(a) << 32 | u64::from(b));
        state.write_u64(u64::from(c) << 32 | u64::from(d));
        state.write_u32(u32::from(self.address.port.wire()) << 8 | self.protocol as u32);
    }
}

/// The numbers of backends.
#[derive(Debug, Default)]
pub struct BackendIds {
    ids: LookupMap<BackendKey, Entry>,
    last: BackendId,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: BackendId,
    /// How many slots hold it.
    slots: u32,
}

impl BackendIds {
    /// The number of a backend, given now if it has none. None: all numbers have been given (2³² of them).
    ///
    /// A number that no slot holds afterwards goes with [`BackendIds::forget_unused`].
    pub fn intern(&mut self, key: BackendKey) -> Option<BackendId> {
        if let Some(entry) = self.ids.get(&key) {
            return Some(entry.id);
        }
        self.last = self.last.checked_add(1)?;
        self.ids.insert(key, Entry { id: self.last, slots: 0 });
        Some(self.last)
    }

    /// The number of a backend that has one.
    pub fn get(&self, key: &BackendKey) -> Option<BackendId> {
        self.ids.get(key).map(|entry| entry.id)
    }

    /// The backend in a slot that was read back from the maps. The first number found for it stays.
    pub fn adopt(&mut self, key: BackendKey, id: BackendId) {
        self.last = self.last.max(id);
        self.ids.entry(key).or_insert(Entry { id, slots: 0 });
    }

    /// One more slot holds the backend.
    pub fn hold(&mut self, key: &BackendKey) {
        if let Some(entry) = self.ids.get_mut(key) {
            entry.slots += 1;
        }
    }

    /// One slot less holds the backend; with the last, its number goes.
    pub fn release(&mut self, key: &BackendKey) {
        if let Some(entry) = self.ids.get_mut(key) {
            entry.slots = entry.slots.saturating_sub(1);
        }
        self.forget_unused(key);
    }

    /// Drops the number of a backend that no slot holds.
    pub fn forget_unused(&mut self, key: &BackendKey) {
        if self.ids.get(key).is_some_and(|entry| entry.slots == 0) {
            self.ids.remove(key);
        }
    }

    /// How many backends have a number.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use lb_common::address::{Address, Port};

    use super::*;

    fn key(host: u8, protocol: Protocol) -> BackendKey {
        BackendKey {
            address: SocketAddress::new(Address::from_v4_bytes([10, 0, 0, host]), Port::new(8080)),
            protocol,
        }
    }

    #[test]
    fn a_backend_keeps_its_number_while_a_slot_holds_it() {
        let mut ids = BackendIds::default();
        let backend = key(1, Protocol::Tcp);
        assert_eq!(ids.intern(backend), Some(1));
        ids.hold(&backend);
        ids.hold(&backend);
        ids.release(&backend);
        assert_eq!(ids.intern(backend), Some(1));
        ids.release(&backend);
        assert_eq!(ids.get(&backend), None);
        assert_eq!(ids.intern(backend), Some(2));
    }

    #[test]
    fn the_protocol_is_part_of_the_backend() {
        let mut ids = BackendIds::default();
        assert_ne!(ids.intern(key(1, Protocol::Tcp)), ids.intern(key(1, Protocol::Udp)));
    }

    #[test]
    fn continues_above_what_the_maps_held() {
        let mut ids = BackendIds::default();
        ids.adopt(key(1, Protocol::Tcp), 700);
        ids.adopt(key(2, Protocol::Tcp), 5);
        assert_eq!(ids.intern(key(1, Protocol::Tcp)), Some(700));
        assert_eq!(ids.intern(key(3, Protocol::Tcp)), Some(701));
    }

    #[test]
    fn a_number_that_came_to_nothing_goes() {
        let mut ids = BackendIds::default();
        ids.intern(key(1, Protocol::Tcp));
        ids.forget_unused(&key(1, Protocol::Tcp));
        assert!(ids.is_empty());
    }

    #[test]
    fn ends_when_all_numbers_have_been_given() {
        let mut ids = BackendIds::default();
        ids.adopt(key(1, Protocol::Tcp), BackendId::MAX);
        assert_eq!(ids.intern(key(2, Protocol::Tcp)), None);
        assert_eq!(ids.intern(key(1, Protocol::Tcp)), Some(BackendId::MAX));
    }
}
