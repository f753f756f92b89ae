//! What the tables hold, as far as the writes so far say, and what is free in them.
//!
//! Each write that succeeded is noted at once ([`Actual::note`]), and from it follows what is retired: a set when no range
//! leads to it any more, a record when its last frontend has really gone. Nothing here is planned or wished.

mod adopt;
mod source_ranges;

use std::collections::{BTreeMap, BTreeSet};

use bytemuck::Zeroable;
use lb_common::{
    address::{Address, Protocol},
    backend::{Backend, BackendId},
    config::NodeAddress,
    frontend::{FrontendEntry, FrontendKey},
    prefix::Prefix,
    service::{Range, ServiceRecord, Set, Settings},
};

use self::source_ranges::SourceRanges;
use crate::{
    desired::{
        ids::{BackendIds, BackendKey},
        records::RecordIndices,
        slots::Slots,
    },
    lookup::LookupMap,
    store::{Capacity, Write},
};

/// The tables, as far as is known, and their free places.
#[derive(Debug)]
pub struct Actual {
    capacity: Capacity,
    frontends: LookupMap<FrontendKey, FrontendEntry>,
    records: Vec<Record>,
    indices: RecordIndices,
    slots: Slots,
    /// The positions of `MAGLEV`.
    positions: Slots,
    /// What each slot holds, up to the highest that was ever used.
    contents: Vec<Backend>,
    /// The protocol for which each of these slots holds its backend's number; none: it holds none.
    holds: Vec<Option<Protocol>>,
    ids: BackendIds,
    source_ranges: SourceRanges,
    foreign: BTreeSet<Address>,
    service_cidrs: Vec<Prefix>,
    node_addresses: BTreeMap<Address, NodeAddress>,
    /// The highest number that was ever given to a service port.
    last_service_id: u32,
    /// Ranges that were replaced since the last plan was settled: a later write of the plan may lead there again.
    left: Vec<Range>,
    /// The same of Maglev tables.
    left_tables: Vec<Range>,
}

/// A record of `SERVICES`.
#[derive(Clone, Debug)]
pub struct Record {
    /// The set for policy `Cluster`.
    pub cluster: Range,
    /// The set for policy `Local`; may be the same slots as `cluster`.
    pub local: Range,
    /// The Maglev table.
    pub maglev: Range,
    /// The cluster set that the table was made for; empty: not known.
    pub maglev_of: Range,
    /// The policies.
    pub settings: Settings,
    /// The service port's number; zero: the record is free.
    pub service_id: u32,
    /// The frontends that lead here.
    pub frontends: Vec<FrontendKey>,
    owner: Owner,
}

/// Who cares for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// A service port.
    Port,
    /// Nobody: it is retired when its last frontend has gone or led elsewhere.
    Nobody,
    /// Nobody yet: read back from the maps, for the service port that has its frontends.
    Awaited,
    /// Nobody any more: free after a grace period.
    Retired,
}

/// What a grace period has freed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// So many slots.
    pub slots: u32,
    /// These records, once they are emptied.
    pub records: Vec<u32>,
}

impl Record {
    const FREE: Self = Self {
        cluster: Range::EMPTY,
        local: Range::EMPTY,
        maglev: Range::EMPTY,
        maglev_of: Range::EMPTY,
        settings: Settings { flags: 0, affinity_seconds: 0 },
        service_id: 0,
        frontends: Vec::new(),
        owner: Owner::Nobody,
    };

    /// The range of one set.
    pub fn range(&self, set: Set) -> Range {
        match set {
            Set::Cluster => self.cluster,
            Set::Local => self.local,
        }
    }

    fn is_free(&self) -> bool {
        self.service_id == 0
    }
}

impl Actual {
    /// Empty tables.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            frontends: LookupMap::default(),
            records: Vec::new(),
            indices: RecordIndices::new(capacity.services),
            slots: Slots::new(capacity.backends),
            positions: Slots::new(capacity.maglev),
            contents: Vec::new(),
            holds: Vec::new(),
            ids: BackendIds::default(),
            source_ranges: SourceRanges::default(),
            foreign: BTreeSet::new(),
            service_cidrs: Vec::new(),
            node_addresses: BTreeMap::new(),
            last_service_id: 0,
            left: Vec::new(),
            left_tables: Vec::new(),
        }
    }

    /// How much fits.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What a frontend leads to.
    pub fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry> {
        self.frontends.get(key).copied()
    }

    /// How many frontends there are, the addresses that another proxy serves included.
    pub fn frontends(&self) -> u32 {
        (self.frontends.len() + self.foreign.len()) as u32
    }

    /// The addresses that another proxy serves.
    pub fn foreign(&self) -> &BTreeSet<Address> {
        &self.foreign
    }

    /// The networks that cluster addresses come from.
    pub fn service_cidrs(&self) -> &[Prefix] {
        &self.service_cidrs
    }

    /// A record in use or retired.
    pub fn record(&self, index: u32) -> Option<&Record> {
        self.records.get(index as usize).filter(|record| !record.is_free())
    }

    /// The records: which are free, which retired.
    pub fn records(&self) -> &RecordIndices {
        &self.indices
    }

    /// The slots: which are free, which retired.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The positions of Maglev tables: which are free, which retired.
    pub fn positions(&self) -> &Slots {
        &self.positions
    }

    /// The backends of a set.
    pub fn set(&self, range: Range) -> &[Backend] {
        let slots = range.slots();
        self.contents.get(slots.start as usize..slots.end as usize).unwrap_or_default()
    }

    /// The numbers of the backends.
    pub fn ids(&self) -> &BackendIds {
        &self.ids
    }

    /// The source ranges of a record.
    pub fn source_ranges(&self, record: u32) -> &BTreeSet<Prefix> {
        self.source_ranges.of(record)
    }

    /// How many source ranges there are.
    pub fn source_range_count(&self) -> u32 {
        self.source_ranges.count()
    }

    /// How many source ranges can be added.
    pub fn free_source_ranges(&self) -> u32 {
        self.capacity.source_ranges.saturating_sub(self.source_ranges.count())
    }

    /// The source ranges of records that are free or retired: left-overs, to be deleted after a grace period.
    pub fn unused_source_ranges(&self) -> impl Iterator<Item = (u32, &BTreeSet<Prefix>)> {
        let is_used = |index| self.record(index).is_some_and(|record| record.owner != Owner::Retired);
        self.source_ranges.iter().filter(move |(index, _)| !is_used(*index))
    }

    /// The node's addresses.
    pub fn node_addresses(&self) -> &BTreeMap<Address, NodeAddress> {
        &self.node_addresses
    }

    /// The number of a backend, given now if it has none.
    pub fn intern(&mut self, key: BackendKey) -> Option<BackendId> {
        self.ids.intern(key)
    }

    /// Drops the number of a backend that came into no slot.
    pub fn forget_unused(&mut self, key: &BackendKey) {
        self.ids.forget_unused(key);
    }

    /// A number for a service port, never given before. None: all have been given.
    pub fn next_service_id(&mut self) -> Option<u32> {
        self.last_service_id = self.last_service_id.checked_add(1)?;
        Some(self.last_service_id)
    }

    /// Takes free slots for a set, which is then to be written there.
    pub fn reserve_set(&mut self, backends: &[Backend], protocol: Protocol) -> Option<Range> {
        let range = self.slots.allocate(backends.len() as u32)?;
        self.fill(range, backends, protocol);
        Some(range)
    }

    /// Takes free positions for a Maglev table, which is then to be written there.
    pub fn reserve_table(&mut self, size: u32) -> Option<Range> {
        self.positions.allocate(size)
    }

    /// Gives positions back that were reserved and that no program can have seen.
    pub fn give_back_table(&mut self, table: Range) {
        self.positions.release(table);
    }

    /// Takes a free record, which is then to be written.
    pub fn reserve_record(&mut self) -> Option<u32> {
        let index = self.indices.allocate()?;
        let end = index as usize + 1;
        if self.records.len() < end {
            self.records.resize(end, Record::FREE);
        }
        Some(index)
    }

    /// Gives a record back that was reserved and not written.
    pub fn give_back_record(&mut self, index: u32) {
        self.indices.release(index);
    }

    /// Gives slots back that were reserved and that no program can have seen.
    pub fn give_back_set(&mut self, range: Range) {
        range.slots().for_each(|slot| self.empty_slot(slot));
        self.slots.release(range);
    }

    /// After a plan for the record at `index` was carried out as far as it went: gives back what was reserved and nothing
    /// leads to, and retires what nothing leads to any more.
    pub fn settle(&mut self, index: u32, reserved: &[Range], reserved_table: Range) {
        let record = &self.records[index as usize];
        let in_use = [record.cluster, record.local];
        let table = record.maglev;
        if record.is_free() {
            self.indices.release(index);
        }
        for range in reserved.iter().filter(|range| !in_use.contains(range)) {
            self.give_back_set(*range);
        }
        let mut left = std::mem::take(&mut self.left);
        left.sort_unstable();
        left.dedup();
        for range in left.into_iter().filter(|range| !in_use.contains(range)) {
            self.slots.retire(range);
        }
        if reserved_table != table {
            self.positions.release(reserved_table);
        }
        for left in std::mem::take(&mut self.left_tables).into_iter().filter(|left| *left != table) {
            self.positions.retire(left);
        }
    }

    /// Notes a write that succeeded.
    pub fn note(&mut self, write: &Write) {
        match write {
            Write::Record { index, record } => self.note_record(*index, record),
            Write::Range { index, set, range } => self.note_range(*index, *set, *range),
            Write::MaglevRange { index, range } => {
                if let Some(record) = self.records.get_mut(*index as usize) {
                    record.maglev_of = record.cluster;
                    self.left_tables.push(std::mem::replace(&mut record.maglev, *range));
                }
            }
            Write::Settings { index, settings } => {
                if let Some(record) = self.records.get_mut(*index as usize) {
                    record.settings = *settings;
                }
            }
            Write::PutFrontend { key, entry } => {
                let before = self.frontends.insert(*key, *entry);
                if before.map(|before| before.record) != Some(entry.record) {
                    if let Some(record) = self.records.get_mut(entry.record as usize) {
                        record.frontends.push(*key);
                    }
                    self.leave(before, key);
                }
            }
            Write::DeleteFrontend { key } => {
                let before = self.frontends.remove(key);
                self.leave(before, key);
            }
            Write::PutSourceRange { record, prefix } => self.source_ranges.insert(*record, *prefix),
            Write::DeleteSourceRange { record, prefix } => self.source_ranges.remove(*record, prefix),
            Write::PutForeign { address } => {
                self.foreign.insert(*address);
            }
            Write::DeleteForeign { address } => {
                self.foreign.remove(address);
            }
            Write::ServiceCidrs { networks } => self.service_cidrs.clone_from(networks),
            Write::PutNodeAddress { address, value } => {
                self.node_addresses.insert(*address, *value);
            }
            Write::DeleteNodeAddress { address } => {
                self.node_addresses.remove(address);
            }
            // Slots and positions were noted when they were reserved; what a grace period frees is taken with free_retired.
            Write::Slots { .. } | Write::MaglevTable { .. } | Write::Grace => {}
        }
    }

    /// The service port of a record is gone, or has another record now.
    pub fn abandon(&mut self, index: u32) {
        if let Some(record) = self.records.get_mut(index as usize)
            && record.owner == Owner::Port
        {
            record.owner = Owner::Nobody;
        }
        self.retire_if_unused(index);
    }

    /// After a grace period: frees the retired slots, and says which records are free once they are emptied.
    ///
    /// The record that witnesses the highest number ever given stays, so that a restart does not give it again; unless
    /// it is the last one that can be had: then the next service port overwrites it, and with a higher number.
    pub fn free_retired(&mut self) -> Freed {
        let records: Vec<_> = self.emptiable_records().collect();
        if records.is_empty() && self.indices.free() == 0 {
            for witness in self.indices.retired().collect::<Vec<_>>() {
                self.records[witness as usize] = Record::FREE;
                self.indices.release(witness);
            }
        }
        let count = self.slots.retired();
        for range in self.slots.free_retired() {
            range.slots().for_each(|slot| self.empty_slot(slot));
        }
        self.positions.free_retired();
        Freed { slots: count, records }
    }

    /// Whether a grace period would free anything.
    pub fn has_retired(&self) -> bool {
        self.slots.retired() != 0
            || self.positions.retired() != 0
            || self.emptiable_records().next().is_some()
            || self.unused_source_ranges().next().is_some()
    }

    /// The retired records but the witness.
    fn emptiable_records(&self) -> impl Iterator<Item = u32> {
        let is_witness = |index: &u32| self.records[*index as usize].service_id == self.last_service_id;
        self.indices.retired().filter(move |index| !is_witness(index))
    }

    fn note_record(&mut self, index: u32, written: &ServiceRecord) {
        let Some(record) = self.records.get_mut(index as usize) else { return };
        if written.service_id == 0 {
            *record = Record::FREE;
            self.indices.release(index);
        } else {
            record.cluster = written.cluster;
            record.local = written.local;
            record.maglev = written.maglev;
            record.maglev_of = written.cluster;
            record.settings = written.settings;
            record.service_id = written.service_id;
            record.owner = Owner::Port;
        }
    }

    fn note_range(&mut self, index: u32, set: Set, range: Range) {
        let Some(record) = self.records.get_mut(index as usize) else { return };
        let word = match set {
            Set::Cluster => &mut record.cluster,
            Set::Local => &mut record.local,
        };
        self.left.push(std::mem::replace(word, range));
    }

    /// A frontend leads no longer where it led before.
    fn leave(&mut self, before: Option<FrontendEntry>, key: &FrontendKey) {
        let Some(before) = before else { return };
        if let Some(record) = self.records.get_mut(before.record as usize) {
            record.frontends.retain(|other| other != key);
        }
        self.retire_if_unused(before.record);
    }

    fn retire_if_unused(&mut self, index: u32) {
        let Some(record) = self.records.get_mut(index as usize) else { return };
        let is_owned = matches!(record.owner, Owner::Port | Owner::Retired);
        if record.is_free() || is_owned || !record.frontends.is_empty() {
            return;
        }
        record.owner = Owner::Retired;
        let (cluster, local, maglev) = (record.cluster, record.local, record.maglev);
        self.indices.retire(index);
        self.positions.retire(maglev);
        self.slots.retire(cluster);
        if local != cluster {
            self.slots.retire(local);
        }
    }

    /// Writes a set into the mirror; its slots hold the numbers of their backends.
    fn fill(&mut self, range: Range, backends: &[Backend], protocol: Protocol) {
        let (first, end) = (range.first as usize, range.slots().end as usize);
        if self.contents.len() < end {
            self.contents.resize(end, Backend::zeroed());
            self.holds.resize(end, None);
        }
        self.contents[first..end].copy_from_slice(backends);
        self.holds[first..end].fill(Some(protocol));
        for backend in backends {
            self.ids.hold(&BackendKey { address: backend.socket_address(), protocol });
        }
    }

    /// A slot holds its backend's number no longer.
    fn empty_slot(&mut self, slot: u32) {
        let slot = slot as usize;
        if let Some(protocol) = self.holds.get_mut(slot).and_then(Option::take) {
            self.ids.release(&BackendKey { address: self.contents[slot].socket_address(), protocol });
        }
    }
}

#[cfg(test)]
mod tests;
