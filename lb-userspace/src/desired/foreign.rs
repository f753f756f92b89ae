//! The cluster addresses of Services that are left to another proxy: what goes there passes untouched.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::address::Address;

use crate::state::ServiceIndex;

/// The addresses of all such Services; several may have the same one.
#[derive(Debug, Default)]
pub struct Foreign {
    by_service: BTreeMap<ServiceIndex, BTreeSet<Address>>,
    services: BTreeMap<Address, u32>,
}

impl Foreign {
    /// Sets the addresses of a Service; none: it is gone, or ours. Returns whether any address came or went.
    pub fn set_service(&mut self, service: ServiceIndex, addresses: &BTreeSet<Address>) -> bool {
        let before = if addresses.is_empty() {
            self.by_service.remove(&service)
        } else {
            self.by_service.insert(service, addresses.clone())
        };
        let before = before.unwrap_or_default();
        for address in addresses.difference(&before) {
            *self.services.entry(*address).or_default() += 1;
        }
        for address in before.difference(addresses) {
            if let Some(count) = self.services.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.services.remove(address);
                }
            }
        }
        before != *addresses
    }

    /// Whether a Service of another proxy has the address.
    pub fn contains(&self, address: &Address) -> bool {
        self.services.contains_key(address)
    }

    /// All addresses, sorted.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.services.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_foreign_as_long_as_one_service_has_it() {
        let address = |last| Address::from_v4_bytes([10, 96, 0, last]);
        let set = |hosts: &[u8]| hosts.iter().map(|host| address(*host)).collect::<BTreeSet<_>>();
        let mut foreign = Foreign::default();
        assert!(!foreign.set_service(3, &BTreeSet::new()));
        assert!(foreign.set_service(1, &set(&[1, 2])));
        assert!(!foreign.set_service(1, &set(&[1, 2])));
        assert!(foreign.set_service(2, &set(&[2, 3])));
        assert!(foreign.set_service(1, &set(&[4])));
        assert_eq!(foreign.addresses().collect::<Vec<_>>(), [2, 3, 4].map(address));
        assert!(foreign.set_service(2, &BTreeSet::new()));
        assert!(foreign.contains(&address(4)) && !foreign.contains(&address(2)));
    }
}
