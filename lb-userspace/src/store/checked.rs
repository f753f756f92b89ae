//! A store that checks the rules of writing: for tests.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    backend::{Backend, BackendId},
    frontend::{FrontendEntry, FrontendKey},
    prefix::Prefix,
    service::{Range, ServiceRecord, Set, Settings, flags},
};

use super::{Capacity, Store, StoreError, Tables, Write};

/// Passes writes on and collects what breaks the rules that programs rely on:
///
/// * slots and records are filled only while no program can see them: not since the last grace period;
/// * ranges lead to filled slots, sorted by id, that no other record in use has;
/// * frontends lead to records in use, with their own tag;
/// * a record that admits some sources only has their ranges, for as long as a frontend leads to it.
///
/// What the store inside held before counts as seen.
#[derive(Clone, Debug)]
pub struct CheckedStore<S> {
    inner: S,
    frontends: BTreeMap<FrontendKey, FrontendEntry>,
    records: BTreeMap<u32, ServiceRecord>,
    slots: BTreeMap<u32, BackendId>,
    source_ranges: BTreeMap<u32, BTreeSet<Prefix>>,
    seen_records: BTreeSet<u32>,
    seen_slots: BTreeSet<u32>,
    /// What each position of `MAGLEV` leads to, as far as was written here.
    positions: Vec<Option<u32>>,
    /// The Maglev tables that programs may read: there are many positions, and few tables.
    seen_tables: BTreeSet<Range>,
    violations: Vec<String>,
}

impl<S: Store> CheckedStore<S> {
    /// Checks all writes to `inner` from now on.
    pub fn new(inner: S) -> Result<Self, StoreError> {
        let tables = inner.read()?;
        let mut checked = Self {
            inner,
            seen_records: tables.services.keys().copied().collect(),
            seen_slots: tables.backends.keys().copied().collect(),
            positions: Vec::new(),
            seen_tables: BTreeSet::new(),
            frontends: tables.frontends,
            records: tables.services,
            source_ranges: tables.source_ranges,
            slots: tables.backends.iter().map(|(slot, backend)| (*slot, backend.id)).collect(),
            violations: Vec::new(),
        };
        tables.maglev.iter().for_each(|(first, slots)| checked.fill_positions(*first, slots));
        checked.forget_unseen();
        Ok(checked)
    }

    /// What broke a rule, in order.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The store inside.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    fn check(&mut self, write: &Write) {
        match write {
            Write::Slots { first, backends } => self.check_slots(*first, backends),
            Write::MaglevTable { first, slots } => self.check_positions(*first, slots),
            Write::MaglevRange { index, range } => self.check_maglev(*index, *range),
            Write::Record { index, record } => self.check_record(*index, record),
            Write::Range { index, set, range } => self.check_range(*index, *set, *range),
            Write::Settings { index, settings } => match self.records.get_mut(index) {
                Some(record) => {
                    record.settings = *settings;
                    self.check_source_ranges(*index);
                }
                None => self.violation(format!("settings of free record {index}")),
            },
            Write::PutFrontend { key, entry } => self.check_frontend(key, *entry),
            Write::DeleteFrontend { key } => {
                self.frontends.remove(key);
            }
            Write::PutSourceRange { record, prefix } => {
                self.source_ranges.entry(*record).or_default().insert(*prefix);
            }
            Write::DeleteSourceRange { record, prefix } => {
                self.source_ranges.entry(*record).or_default().remove(prefix);
                self.check_source_ranges(*record);
            }
            Write::Grace => self.forget_unseen(),
            Write::PutForeign { .. }
            | Write::DeleteForeign { .. }
            | Write::ServiceCidrs { .. }
            | Write::PutNodeAddress { .. }
            | Write::DeleteNodeAddress { .. } => {}
        }
    }

    fn check_slots(&mut self, first: u32, backends: &[Backend]) {
        for (slot, backend) in (first..).zip(backends) {
            if self.seen_slots.contains(&slot) {
                self.violation(format!("slot {slot} filled while programs may read it"));
            }
            self.slots.insert(slot, backend.id);
        }
    }

    fn check_record(&mut self, index: u32, record: &ServiceRecord) {
        if self.seen_records.contains(&index) {
            self.violation(format!("record {index} filled while programs may read it"));
        }
        if record.service_id == 0 {
            self.records.remove(&index);
        } else {
            self.records.insert(index, *record);
            self.check_set(index, record.cluster);
            self.check_set(index, record.local);
            self.check_maglev(index, record.maglev);
        }
    }

    fn check_range(&mut self, index: u32, set: Set, range: Range) {
        match self.records.get_mut(&index) {
            Some(record) => match set {
                Set::Cluster => record.cluster = range,
                Set::Local => record.local = range,
            },
            None => self.violation(format!("range of free record {index}")),
        }
        self.check_set(index, range);
    }

    fn check_set(&mut self, index: u32, range: Range) {
        let ids: Vec<_> = range.slots().map(|slot| self.slots.get(&slot).copied()).collect();
        if ids.contains(&None) {
            self.violation(format!("record {index} leads to an empty slot of {range:?}"));
        } else if !ids.is_sorted_by(|a, b| a < b) {
            self.violation(format!("record {index}: {range:?} is not sorted by id"));
        }
        let others = self.records.iter().filter(|(other, _)| **other != index && self.is_led_to(**other));
        let taken: BTreeSet<u32> =
            others.flat_map(|(_, record)| [record.cluster, record.local]).flat_map(Range::slots).collect();
        if range.slots().any(|slot| taken.contains(&slot)) {
            self.violation(format!("record {index}: {range:?} is another record's"));
        }
        self.seen_slots.extend(range.slots());
    }

    fn check_positions(&mut self, first: u32, slots: &[u32]) {
        let filled = Range { first, count: slots.len() as u32 };
        if self.seen_tables.iter().any(|seen| seen.overlaps(filled)) {
            self.violation(format!("positions {filled:?} filled while programs may read them"));
        }
        self.fill_positions(first, slots);
    }

    fn fill_positions(&mut self, first: u32, slots: &[u32]) {
        let (first, end) = (first as usize, first as usize + slots.len());
        self.positions.resize(self.positions.len().max(end), None);
        for (position, slot) in self.positions[first..end].iter_mut().zip(slots) {
            *position = Some(*slot);
        }
    }

    fn check_maglev(&mut self, index: u32, table: Range) {
        let Some(record) = self.records.get_mut(&index) else {
            return self.violation(format!("Maglev table of free record {index}"));
        };
        record.maglev = table;
        if table.count == 0 {
            return;
        }
        let cluster = record.cluster;
        let slots = self.positions.get(table.slots().start as usize..table.slots().end as usize);
        if !slots.is_some_and(|slots| {
            slots.iter().flatten().filter(|slot| cluster.contains(**slot)).count() == slots.len()
        }) {
            self.violation(format!("record {index}: the table {table:?} leads out of {cluster:?}"));
        }
        let mut others = self.records.iter().filter(|(other, _)| **other != index && self.is_led_to(**other));
        if others.any(|(_, other)| other.maglev.overlaps(table)) {
            self.violation(format!("record {index}: {table:?} is another record's"));
        }
        self.seen_tables.insert(table);
    }

    fn check_frontend(&mut self, key: &FrontendKey, entry: FrontendEntry) {
        if !self.records.contains_key(&entry.record) {
            self.violation(format!("{key:?} leads to free record {}", entry.record));
        }
        if entry.tag != key.tag() {
            self.violation(format!("{key:?} has another key's tag"));
        }
        self.seen_records.insert(entry.record);
        self.frontends.insert(*key, entry);
        self.check_source_ranges(entry.record);
    }

    fn check_source_ranges(&mut self, index: u32) {
        let is_filtered = |settings: Settings| settings.flags & flags::SOURCE_RANGES != 0;
        let filtered = self.records.get(&index).is_some_and(|record| is_filtered(record.settings));
        let admits_nobody = self.source_ranges.get(&index).is_none_or(BTreeSet::is_empty);
        if filtered && admits_nobody && self.is_led_to(index) {
            self.violation(format!("record {index} admits nobody"));
        }
    }

    fn is_led_to(&self, record: u32) -> bool {
        self.frontends.values().any(|entry| entry.record == record)
    }

    /// After a grace period, programs see only what frontends lead to.
    fn forget_unseen(&mut self) {
        self.seen_records = self.frontends.values().map(|entry| entry.record).collect();
        let records = self.seen_records.iter().filter_map(|index| self.records.get(index));
        self.seen_tables = records.clone().map(|record| record.maglev).collect();
        self.seen_slots =
            records.flat_map(|record| [record.cluster, record.local]).flat_map(Range::slots).collect();
    }

    fn violation(&mut self, what: String) {
        self.violations.push(what);
    }
}

impl<S: Store> Store for CheckedStore<S> {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        self.inner.apply(write)?;
        self.check(write);
        Ok(())
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use lb_common::{
        address::{Address, Port, Protocol},
        frontend::FrontendKind,
        service::Settings,
    };

    use super::*;
    use crate::store::fake::FakeStore;

    fn store() -> CheckedStore<FakeStore> {
        let capacity = Capacity {
            frontends: 8,
            services: 8,
            backends: 8,
            source_ranges: 8,
            maglev: 1 << 17,
            node_addresses: 8,
        };
        CheckedStore::new(FakeStore::new(capacity)).unwrap()
    }

    fn slots(first: u32, ids: &[u32]) -> Write {
        Write::Slots {
            first,
            backends: ids.iter().map(|id| Backend { id: *id, ..Backend::zeroed() }).collect(),
        }
    }

    fn record(index: u32, cluster: Range) -> Write {
        Write::Record { index, record: ServiceRecord::new(1, Settings::default(), cluster, Range::EMPTY) }
    }

    fn frontend(record: u32) -> Write {
        let key = FrontendKey::new(Address::from_v4_bytes([10, 96, 0, 1]), Port::new(80), Protocol::Tcp);
        Write::PutFrontend { key, entry: FrontendEntry::new(&key, FrontendKind::ClusterIp, record) }
    }

    fn violations(writes: &[Write]) -> Vec<String> {
        let mut store = store();
        for write in writes {
            store.apply(write).unwrap();
        }
        store.violations
    }

    const TWO: Range = Range { first: 0, count: 2 };

    #[test]
    fn the_right_order_breaks_nothing() {
        let other = Range { first: 2, count: 1 };
        let writes = [
            slots(0, &[1, 2]),
            record(0, TWO),
            frontend(0),
            slots(2, &[1]),
            Write::Range { index: 0, set: Set::Cluster, range: other },
            Write::Grace,
            slots(0, &[7, 8]),
        ];
        assert_eq!(violations(&writes), [] as [&str; 0]);
    }

    #[test]
    fn each_wrong_order_is_named() {
        let lead = [slots(0, &[1, 2]), record(0, TWO), frontend(0)];
        let with = |more: &[Write]| violations(&[&lead, more].concat());
        let away = Write::Range { index: 0, set: Set::Cluster, range: Range::EMPTY };
        assert_eq!(
            violations(&[record(0, TWO)]),
            ["record 0 leads to an empty slot of Range { first: 0, count: 2 }"]
        );
        assert_eq!(violations(&[frontend(3)]).len(), 1);
        assert_eq!(violations(&[slots(0, &[2, 1]), record(0, TWO)]).len(), 1);
        assert_eq!(with(&[slots(1, &[3])]), ["slot 1 filled while programs may read it"]);
        assert_eq!(with(&[away.clone(), slots(1, &[3])]), ["slot 1 filled while programs may read it"]);
        assert_eq!(with(&[record(0, TWO)]), ["record 0 filled while programs may read it"]);
        assert_eq!(with(&[record(1, TWO)]), ["record 1: Range { first: 0, count: 2 } is another record's"]);
        let filter = Write::Settings {
            index: 0,
            settings: Settings { flags: flags::SOURCE_RANGES, affinity_seconds: 0 },
        };
        assert_eq!(with(std::slice::from_ref(&filter)), ["record 0 admits nobody"]);
        let prefix = Prefix::new(Address::UNSPECIFIED, 0);
        let put = Write::PutSourceRange { record: 0, prefix };
        assert_eq!(with(&[put.clone(), filter.clone()]), [""; 0]);
        let delete = Write::DeleteSourceRange { record: 0, prefix };
        assert_eq!(with(&[put, filter, delete]), ["record 0 admits nobody"]);
    }
}
