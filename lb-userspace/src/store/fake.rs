//! A store in memory, with the bounds and the errors of the kernel's maps.

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable;
use lb_common::{
    address::Address,
    backend::Backend,
    config::{NodeAddress, maps},
    frontend::{FrontendEntry, FrontendKey},
    prefix::Prefix,
    service::{Range, ServiceRecord, Set},
};

use super::{Capacity, Store, StoreError, Tables, Write};

/// A store in memory. Its arrays keep what was written, like the kernel's: nothing is ever emptied by itself.
#[derive(Clone, Debug)]
pub struct FakeStore {
    capacity: Capacity,
    frontends: BTreeMap<FrontendKey, FrontendEntry>,
    services: Vec<ServiceRecord>,
    backends: Vec<Backend>,
    maglev: Vec<u32>,
    source_ranges: BTreeSet<(u32, Prefix)>,
    foreign: BTreeSet<Address>,
    service_cidrs: Vec<Prefix>,
    node_addresses: BTreeMap<Address, NodeAddress>,
}

impl FakeStore {
    /// Empty maps of these sizes.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            frontends: BTreeMap::new(),
            services: Vec::new(),
            backends: Vec::new(),
            maglev: Vec::new(),
            source_ranges: BTreeSet::new(),
            foreign: BTreeSet::new(),
            service_cidrs: Vec::new(),
            node_addresses: BTreeMap::new(),
        }
    }

    fn write_slots(&mut self, first: u32, backends: &[Backend]) -> Result<(), StoreError> {
        let end = u64::from(first) + backends.len() as u64;
        if end > u64::from(self.capacity.backends) {
            return Err(StoreError::OutOfBounds { map: maps::BACKENDS, index: self.capacity.backends });
        }
        let (first, end) = (first as usize, end as usize);
        if self.backends.len() < end {
            self.backends.resize(end, Backend::zeroed());
        }
        self.backends[first..end].copy_from_slice(backends);
        Ok(())
    }

    fn write_positions(&mut self, first: u32, slots: &[u32]) -> Result<(), StoreError> {
        let end = u64::from(first) + slots.len() as u64;
        if end > u64::from(self.capacity.maglev) {
            return Err(StoreError::OutOfBounds { map: maps::MAGLEV, index: self.capacity.maglev });
        }
        let (first, end) = (first as usize, end as usize);
        if self.maglev.len() < end {
            self.maglev.resize(end, 0);
        }
        self.maglev[first..end].copy_from_slice(slots);
        Ok(())
    }

    /// The slots that the positions of a Maglev table lead to.
    pub fn maglev(&self, table: Range) -> &[u32] {
        let positions = table.slots();
        self.maglev.get(positions.start as usize..positions.end as usize).unwrap_or_default()
    }

    fn record(&mut self, index: u32) -> Result<&mut ServiceRecord, StoreError> {
        if index >= self.capacity.services {
            return Err(StoreError::OutOfBounds { map: maps::SERVICES, index });
        }
        let index = index as usize;
        if self.services.len() <= index {
            self.services.resize(index + 1, ServiceRecord::default());
        }
        Ok(&mut self.services[index])
    }

    fn write_range(&mut self, index: u32, set: Set, range: Range) -> Result<(), StoreError> {
        let record = self.record(index)?;
        match set {
            Set::Cluster => record.cluster = range,
            Set::Local => record.local = range,
        }
        Ok(())
    }
}

/// Puts into a hash map with room for `capacity` entries.
fn put<K: Ord, V>(
    map: &mut BTreeMap<K, V>,
    capacity: u32,
    name: &'static str,
    key: K,
    value: V,
) -> Result<(), StoreError> {
    if map.len() >= capacity as usize && !map.contains_key(&key) {
        return Err(StoreError::Full { map: name });
    }
    map.insert(key, value);
    Ok(())
}

impl Store for FakeStore {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        match write {
            Write::Slots { first, backends } => self.write_slots(*first, backends)?,
            Write::MaglevTable { first, slots } => self.write_positions(*first, slots)?,
            Write::MaglevRange { index, range } => self.record(*index)?.maglev = *range,
            Write::Record { index, record } => *self.record(*index)? = *record,
            Write::Range { index, set, range } => self.write_range(*index, *set, *range)?,
            Write::Settings { index, settings } => self.record(*index)?.settings = *settings,
            Write::PutFrontend { key, entry } => {
                let room = self.capacity.frontends.saturating_sub(self.foreign.len() as u32);
                put(&mut self.frontends, room, maps::FRONTENDS, *key, *entry)?;
            }
            Write::DeleteFrontend { key } => {
                self.frontends.remove(key);
            }
            Write::PutSourceRange { record, prefix } => {
                let key = (*record, *prefix);
                let is_full = self.source_ranges.len() >= self.capacity.source_ranges as usize;
                if is_full && !self.source_ranges.contains(&key) {
                    return Err(StoreError::Full { map: maps::SOURCE_RANGES });
                }
                self.source_ranges.insert(key);
            }
            Write::DeleteSourceRange { record, prefix } => {
                self.source_ranges.remove(&(*record, *prefix));
            }
            Write::PutForeign { address } => {
                let is_full = self.frontends.len() + self.foreign.len() >= self.capacity.frontends as usize;
                if is_full && !self.foreign.contains(address) {
                    return Err(StoreError::Full { map: maps::FRONTENDS });
                }
                self.foreign.insert(*address);
            }
            Write::DeleteForeign { address } => {
                self.foreign.remove(address);
            }
            Write::ServiceCidrs { networks } => self.service_cidrs.clone_from(networks),
            Write::PutNodeAddress { address, value } => {
                let room = self.capacity.node_addresses;
                put(&mut self.node_addresses, room, maps::NODE_ADDRESSES, *address, *value)?;
            }
            Write::DeleteNodeAddress { address } => {
                self.node_addresses.remove(address);
            }
            Write::Grace => {}
        }
        Ok(())
    }

    fn read(&self) -> Result<Tables, StoreError> {
        let records = (0..).zip(&self.services).filter(|(_, record)| record.service_id != 0);
        let services: BTreeMap<u32, ServiceRecord> =
            records.map(|(index, record)| (index, *record)).collect();
        let ranges = services.values().flat_map(|record| [record.cluster, record.local]);
        let slots = ranges.flat_map(Range::slots);
        let backends = slots.filter_map(|slot| Some((slot, *self.backends.get(slot as usize)?))).collect();
        let mut source_ranges: BTreeMap<u32, BTreeSet<Prefix>> = BTreeMap::new();
        for (record, prefix) in &self.source_ranges {
            source_ranges.entry(*record).or_default().insert(*prefix);
        }
        let tables = services.values().map(|record| record.maglev).filter(|table| table.count != 0);
        let maglev = tables.map(|table| (table.first, self.maglev(table).to_vec())).collect();
        Ok(Tables {
            frontends: self.frontends.clone(),
            services,
            backends,
            maglev,
            source_ranges,
            foreign: self.foreign.clone(),
            service_cidrs: self.service_cidrs.clone(),
            node_addresses: self.node_addresses.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        address::{Port, Protocol},
        frontend::FrontendKind,
        service::Settings,
    };

    use super::*;

    const CAPACITY: Capacity = Capacity {
        frontends: 1,
        services: 2,
        backends: 4,
        source_ranges: 1,
        maglev: 1 << 17,
        node_addresses: 1,
    };

    fn key(port: u16) -> FrontendKey {
        FrontendKey::new(Address::from_v4_bytes([10, 96, 0, 1]), Port::new(port), Protocol::Tcp)
    }

    fn put_frontend(port: u16) -> Write {
        Write::PutFrontend {
            key: key(port),
            entry: FrontendEntry::new(&key(port), FrontendKind::ClusterIp, 0),
        }
    }

    #[test]
    fn a_full_hash_takes_no_new_key_but_a_new_value() {
        let mut store = FakeStore::new(CAPACITY);
        store.apply(&put_frontend(80)).unwrap();
        store.apply(&put_frontend(80)).unwrap();
        assert!(matches!(store.apply(&put_frontend(81)), Err(StoreError::Full { map: "FRONTENDS" })));
        store.apply(&Write::DeleteFrontend { key: key(80) }).unwrap();
        store.apply(&put_frontend(81)).unwrap();
    }

    #[test]
    fn slots_and_records_beyond_the_end_are_refused() {
        let mut store = FakeStore::new(CAPACITY);
        let backends = vec![Backend::zeroed(); 2];
        store.apply(&Write::Slots { first: 2, backends: backends.clone() }).unwrap();
        assert!(store.apply(&Write::Slots { first: 3, backends }).is_err());
        assert!(store.apply(&Write::Settings { index: 2, settings: Settings::default() }).is_err());
    }

    #[test]
    fn it_reads_back_what_records_in_use_lead_to() {
        let mut store = FakeStore::new(CAPACITY);
        let backends: Vec<_> = (1..5).map(|id| Backend { id, ..Backend::zeroed() }).collect();
        store.apply(&Write::Slots { first: 0, backends: backends.clone() }).unwrap();
        let record = ServiceRecord::new(7, Settings::default(), Range { first: 1, count: 2 }, Range::EMPTY);
        store.apply(&Write::Record { index: 1, record }).unwrap();
        let tables = store.read().unwrap();
        assert_eq!(tables.services, BTreeMap::from([(1, record)]));
        assert_eq!(tables.backends, BTreeMap::from([(1, backends[1]), (2, backends[2])]));
    }
}
