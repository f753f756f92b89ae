//! The tables of an agent that ran before: read back, not trusted.

use std::collections::BTreeSet;

use lb_common::{
    address::Protocol,
    backend::Backend,
    frontend::{FrontendKey, FrontendKind},
    service::{Range, ServiceRecord},
};

use super::{Actual, Owner, Record, source_ranges::SourceRanges};
use crate::{
    desired::{
        ids::BackendKey,
        maglev::{self, Candidate},
        records::RecordIndices,
        slots::Slots,
    },
    store::{Capacity, Tables},
};

impl Actual {
    /// From what the maps hold.
    ///
    /// A record that frontends lead to waits for the service port that has them. All else is retired: a program that was
    /// running when the agent before ended may still read it. A record whose sets make no sense (beyond the map, across
    /// another's) serves on as it is until its frontends have been led elsewhere.
    pub fn adopt(capacity: Capacity, tables: Tables) -> Self {
        let mut actual = Self::new(capacity);
        for (index, record) in &tables.services {
            actual.adopt_record(*index, record);
        }
        for (key, entry) in &tables.frontends {
            if let Some(record) = actual.records.get_mut(entry.record as usize).filter(|r| !r.is_free()) {
                record.frontends.push(*key);
            }
        }
        let (mut used, mut used_positions) = (BTreeSet::new(), BTreeSet::new());
        for index in 0..actual.records.len() {
            actual.adopt_sets(index, &tables, &mut used);
            actual.adopt_table(index, &tables, &mut used_positions);
        }
        let in_use = tables.services.keys().copied().filter(|index| *index < capacity.services);
        actual.indices = RecordIndices::adopt(capacity.services, in_use);
        actual.slots = Slots::adopt(capacity.backends, &used);
        actual.positions = Slots::adopt(capacity.maglev, &used_positions);
        for index in 0..actual.records.len() {
            actual.retire_if_unused(index as u32);
        }
        (actual.foreign, actual.service_cidrs) = (tables.foreign, tables.service_cidrs);
        actual.source_ranges = SourceRanges::adopt(tables.source_ranges);
        actual.frontends = tables.frontends.into_iter().collect();
        actual.node_addresses = tables.node_addresses;
        actual
    }

    /// The record that was a service port's before the restart, told by its frontends: the one that its cluster address
    /// leads to, or else one that no other frontends lead to.
    pub fn awaited_record(&self, frontends: &[(FrontendKey, FrontendKind)]) -> Option<u32> {
        let led_to = |key: &FrontendKey| {
            let index = self.frontends.get(key)?.record;
            self.record(index).filter(|record| record.owner == Owner::Awaited).map(|record| (index, record))
        };
        let is_own = |key: &FrontendKey| frontends.iter().any(|(own, _)| own == key);
        frontends.iter().find_map(|(key, kind)| {
            let (index, record) = led_to(key)?;
            let is_ours = *kind == FrontendKind::ClusterIp || record.frontends.iter().all(is_own);
            is_ours.then_some(index)
        })
    }

    /// A service port has found its record.
    pub fn take_over(&mut self, index: u32) {
        if let Some(record) = self.records.get_mut(index as usize) {
            record.owner = Owner::Port;
        }
    }

    /// The inputs are complete and written: what has found no service port by now finds none.
    pub fn end_adoption(&mut self) {
        for index in 0..self.records.len() {
            if self.records[index].owner == Owner::Awaited {
                self.records[index].owner = Owner::Nobody;
                self.retire_if_unused(index as u32);
            }
        }
    }

    fn adopt_record(&mut self, index: u32, record: &ServiceRecord) {
        self.last_service_id = self.last_service_id.max(record.service_id);
        if index >= self.capacity.services {
            return;
        }
        let end = index as usize + 1;
        if self.records.len() < end {
            self.records.resize(end, Record::FREE);
        }
        self.records[index as usize] = Record {
            cluster: record.cluster,
            local: record.local,
            maglev: record.maglev,
            maglev_of: Range::EMPTY,
            settings: record.settings,
            service_id: record.service_id,
            frontends: Vec::new(),
            owner: Owner::Awaited,
        };
    }

    /// Takes note of a record's Maglev table, if it makes sense and something leads to it. One that is not what its set asks
    /// for is in force until the service port replaces it.
    fn adopt_table(&mut self, index: usize, tables: &Tables, used: &mut BTreeSet<Range>) {
        let Record { cluster, maglev: table, .. } = self.records[index];
        let is_led_to = !self.records[index].is_free() && !self.records[index].frontends.is_empty();
        let fits = fits(table, self.capacity.maglev) && !touches(used, table);
        if table.count == 0 || !is_led_to || !fits {
            self.records[index].maglev = Range::EMPTY;
            return;
        }
        used.insert(table);
        let candidates: Vec<_> = self.set(cluster).iter().map(Candidate::from).collect();
        let expected = maglev::table(&candidates).into_iter().map(|offset| cluster.first + offset);
        if tables.maglev.get(&table.first).is_some_and(|slots| expected.eq(slots.iter().copied())) {
            self.records[index].maglev_of = cluster;
        }
    }

    /// Takes a record's sets into the mirror, if they make sense; a record that nothing leads to keeps none.
    fn adopt_sets(&mut self, index: usize, tables: &Tables, used: &mut BTreeSet<Range>) {
        let record = &self.records[index];
        let protocol =
            record.frontends.first().and_then(|key| Protocol::try_from(key.protocol_number()).ok());
        let mut ranges = vec![record.cluster];
        if record.local != record.cluster {
            ranges.push(record.local);
        }
        ranges.retain(|range| range.count != 0);
        let sets: Option<Vec<_>> = ranges.iter().map(|range| backends(tables, *range)).collect();
        let is_disjoint = ranges.len() < 2 || !ranges[0].overlaps(ranges[1]);
        let is_free = |range: &Range| fits(*range, self.capacity.backends) && !touches(used, *range);
        if let (Some(protocol), Some(sets), true) =
            (protocol, sets, is_disjoint && ranges.iter().all(is_free))
        {
            for (range, backends) in ranges.into_iter().zip(sets) {
                used.insert(range);
                for backend in &backends {
                    let key = BackendKey { address: backend.socket_address(), protocol };
                    self.ids.adopt(key, backend.id);
                }
                self.fill(range, &backends, protocol);
            }
        } else {
            let record = &mut self.records[index];
            (record.cluster, record.local) = (Range::EMPTY, Range::EMPTY);
            if !record.is_free() {
                record.owner = Owner::Nobody;
            }
        }
    }
}

/// The backends of a range, if all are there.
fn backends(tables: &Tables, range: Range) -> Option<Vec<Backend>> {
    let in_range: Vec<_> = tables.backends.range(range.slots()).map(|(_, backend)| *backend).collect();
    (in_range.len() == range.count as usize).then_some(in_range)
}

fn fits(range: Range, capacity: u32) -> bool {
    u64::from(range.first) + u64::from(range.count) <= u64::from(capacity)
}

/// Whether a range shares a slot with one of these, which share none among each other.
fn touches(used: &BTreeSet<Range>, range: Range) -> bool {
    let before = used.range(..range).next_back();
    let after = used.range(range..).next();
    before.into_iter().chain(after).any(|other| other.overlaps(range))
}
