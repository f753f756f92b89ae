//! A store that fails now and then: every plan must survive it.

use std::io;

use lb_common::config::maps;

use super::{Capacity, Store, StoreError, Tables, Write};

/// Lets a share of the writes fail, before they reach the store inside.
///
/// Which ones depends on the seed and the number of writes alone.
#[derive(Clone, Debug)]
pub struct FaultyStore<S> {
    inner: S,
    percent: u64,
    state: u64,
    failures: u64,
}

impl<S: Store> FaultyStore<S> {
    /// Lets `percent` of 100 writes fail.
    pub fn new(inner: S, percent: u8, seed: u64) -> Self {
        // Spread the seed over all bits; the generator needs one that is set.
        let state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { inner, percent: u64::from(percent), state, failures: 0 }
    }

    /// From now on, `percent` of 100 writes fail.
    pub fn set_percent(&mut self, percent: u8) {
        self.percent = u64::from(percent);
    }

    /// How many writes have failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The store inside.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Xorshift (Marsaglia 2003).
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

/// The map that a write goes to, and the operation.
const fn describe(write: &Write) -> (&'static str, &'static str) {
    match write {
        Write::Slots { .. } => (maps::BACKENDS, "write slots"),
        Write::MaglevTable { .. } => (maps::MAGLEV, "write positions"),
        Write::MaglevRange { .. } => (maps::SERVICES, "store Maglev range"),
        Write::Record { .. } => (maps::SERVICES, "write record"),
        Write::Range { .. } => (maps::SERVICES, "store range"),
        Write::Settings { .. } => (maps::SERVICES, "store settings"),
        Write::PutFrontend { .. } | Write::PutForeign { .. } => (maps::FRONTENDS, "update"),
        Write::DeleteFrontend { .. } | Write::DeleteForeign { .. } => (maps::FRONTENDS, "delete"),
        Write::PutSourceRange { .. } => (maps::SOURCE_RANGES, "update"),
        Write::DeleteSourceRange { .. } => (maps::SOURCE_RANGES, "delete"),
        Write::ServiceCidrs { .. } => (maps::SERVICE_CIDRS, "update"),
        Write::PutNodeAddress { .. } => (maps::NODE_ADDRESSES, "update"),
        Write::DeleteNodeAddress { .. } => (maps::NODE_ADDRESSES, "delete"),
        Write::Grace => (maps::GRACE, "wait for running programs"),
    }
}

impl<S: Store> Store for FaultyStore<S> {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        if (self.next() >> 33) % 100 < self.percent {
            self.failures += 1;
            let (map, operation) = describe(write);
            return Err(StoreError::Kernel { map, operation, source: io::Error::other("injected fault") });
        }
        self.inner.apply(write)
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fake::FakeStore;

    #[test]
    fn about_the_given_share_fails_and_the_seed_decides_which() {
        let capacity = Capacity {
            frontends: 1,
            services: 1,
            backends: 1,
            source_ranges: 1,
            maglev: 1 << 17,
            node_addresses: 1,
        };
        let outcomes = |seed| {
            let mut store = FaultyStore::new(FakeStore::new(capacity), 10, seed);
            (0..10_000).map(|_| store.apply(&Write::Grace).is_err()).collect::<Vec<_>>()
        };
        let failures = outcomes(1).into_iter().filter(|failed| *failed).count();
        assert!((800..1_200).contains(&failures), "{failures} failures");
        assert_eq!(outcomes(1), outcomes(1));
        assert_ne!(outcomes(1), outcomes(2));
    }
}
