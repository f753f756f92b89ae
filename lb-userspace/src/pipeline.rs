//! From changes of objects to writes of tables: the pure middle, as one value.

mod view;

use std::{collections::BTreeMap, sync::Arc};

pub use self::view::{
    BackendView, FrontendView, PortView, Reclaimed, ServiceView, Summary, SyncReport, Usage,
};
pub use crate::resolve::node_addresses::{NodePortAddresses, NodePortAddressesError};
use crate::{
    model::{Change, Kind, Problem},
    store::{Capacity, Store, StoreError, Tables},
};

/// What the operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineSettings {
    /// The own node: its endpoints are local.
    pub node_name: Arc<str>,
    /// Where node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// Whether `spec.externalIPs` are served (kube-proxy's default: yes).
    pub external_ips: bool,
}

/// From changes of objects to writes of tables.
#[derive(Debug)]
pub struct Pipeline {
    settings: PipelineSettings,
    capacity: Capacity,
    synced: [bool; Kind::ALL.len()],
    problems: BTreeMap<String, Vec<Problem>>,
}

impl Pipeline {
    /// Nothing known, nothing written.
    pub fn new(settings: PipelineSettings, capacity: Capacity) -> Self {
        Self { settings, capacity, synced: [false; 4], problems: BTreeMap::new() }
    }

    /// After a restart: what the maps hold. Keeps records, ids and slots. Call it before the first [`Pipeline::apply`].
    pub fn adopt(&mut self, _actual: Tables) {}

    /// Takes a change in and marks what it touches, nothing else.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Reset(kind, _) => self.synced[kind as usize] = true,
            Change::Problems { origin, problems } => {
                self.problems.insert(origin, problems);
            }
            _ => {}
        }
    }

    /// Whether the initial list of every kind has arrived. Before that, nothing is written.
    pub fn is_synced(&self) -> bool {
        self.synced.iter().all(|synced| *synced)
    }

    /// Writes what the changes so far have made necessary. Before [`Pipeline::is_synced`] it writes nothing.
    ///
    /// A service whose write fails stays dirty for the next call; the others go on.
    pub fn sync(&mut self, _store: &mut dyn Store) -> SyncReport {
        SyncReport::default()
    }

    /// Waits for one grace period and frees all that is retired. For quiet moments: it takes milliseconds.
    pub fn reclaim(&mut self, _store: &mut dyn Store) -> Result<Reclaimed, StoreError> {
        Ok(Reclaimed::default())
    }

    /// What is wrong now: from the sources, from the objects' conflicts, from the store. Sorted.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.values().flatten().cloned().collect()
    }

    /// All Services, sorted by namespace and name.
    pub fn services(&self) -> Vec<ServiceView> {
        Vec::new()
    }

    /// `namespace/name:port` of each record in force, for dumps of the tables.
    pub fn record_names(&self) -> BTreeMap<u32, String> {
        BTreeMap::new()
    }

    /// Counts.
    pub fn summary(&self) -> Summary {
        let slots = Usage { capacity: self.capacity.backends, ..Usage::default() };
        Summary { synced: self.is_synced(), slots, ..Summary::default() }
    }

    /// What the operator decided.
    pub fn settings(&self) -> &PipelineSettings {
        &self.settings
    }
}
