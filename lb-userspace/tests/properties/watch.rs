//! A store that looks, after every single write, at what clients would meet.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::service::Set;
use lb_userspace::store::{Capacity, Store, StoreError, Tables, Write};

use crate::oracle::{Meanings, applicable_set, read};

/// Clients in some of the source ranges of [`crate::generate`], in all, and in none.
const CLIENTS: [[u8; 4]; 4] = [[10, 1, 0, 1], [10, 2, 0, 1], [203, 0, 113, 1], [198, 51, 100, 1]];

/// Checks that every frontend leads to sets that were intended: before the change or after it, or in between where
/// writes failed.
pub(crate) struct Watch<S> {
    pub(crate) inner: S,
    /// The states that were intended since everything was last in force, the newest last.
    intended: Vec<Meanings>,
    pub(crate) violations: Vec<String>,
}

impl<S: Store> Watch<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, intended: vec![Meanings::new()], violations: Vec::new() }
    }

    /// From now on this is intended as well.
    pub(crate) fn intend(&mut self, meanings: Meanings) {
        self.intended.push(meanings);
    }

    /// The newest intention is in force.
    pub(crate) fn settle(&mut self) {
        self.intended.drain(..self.intended.len() - 1);
    }

    fn look(&mut self, write: &Write) {
        let meanings = match self.inner.read().map_err(|error| error.to_string()).and_then(|t| read(&t)) {
            Ok(meanings) => meanings,
            Err(what) => return self.violations.push(format!("after {write:?}: {what}")),
        };
        let mut violations = Vec::new();
        for (key, met) in &meanings {
            let intended: Vec<_> = self.intended.iter().filter_map(|state| state.get(key)).collect();
            for set in [Set::Cluster, Set::Local] {
                let sets: BTreeSet<_> = intended.iter().map(|meaning| meaning.set(set)).collect();
                if !sets.contains(met.set(set)) {
                    violations.push(format!("{key:?}: {set:?} set {:?} was never intended", met.set(set)));
                }
            }
            for client in CLIENTS.map(IpAddr::from) {
                let admits = met.admits(client);
                if !intended.iter().any(|meaning| meaning.admits(client) == admits) {
                    violations.push(format!("{key:?}: admits {client}: {admits}, which was never intended"));
                }
            }
            for outside in [false, true] {
                let refuses = met.set(applicable_set(met.kind, met.settings, outside)).is_empty();
                if refuses && !intended.iter().any(|meaning| meaning.refuses(outside)) {
                    violations
                        .push(format!("{key:?}: refuses (outside: {outside}), which was never intended"));
                }
            }
        }
        let always = |key| self.intended.iter().all(|state| state.contains_key(key));
        let newest = self.intended.last().into_iter().flat_map(Meanings::keys);
        for key in newest.filter(|key| always(key) && !meanings.contains_key(key)) {
            violations.push(format!("{key:?} is gone, which was never intended"));
        }
        self.violations.extend(violations.into_iter().map(|what| format!("after {write:?}: {what}")));
    }
}

impl<S: Store> Store for Watch<S> {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        self.inner.apply(write)?;
        self.look(write);
        Ok(())
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }
}
