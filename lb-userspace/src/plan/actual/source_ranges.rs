//! The source ranges in the tables, by record.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::prefix::Prefix;

/// No ranges: what a record without any has.
static NONE: BTreeSet<Prefix> = BTreeSet::new();

/// The source ranges of all records.
#[derive(Debug, Default)]
pub(super) struct SourceRanges {
    /// None is empty.
    by_record: BTreeMap<u32, BTreeSet<Prefix>>,
    count: u32,
}

impl SourceRanges {
    /// What the tables of an agent before hold.
    pub(super) fn adopt(by_record: BTreeMap<u32, BTreeSet<Prefix>>) -> Self {
        let count = by_record.values().map(|prefixes| prefixes.len() as u32).sum();
        Self { by_record, count }
    }

    pub(super) fn of(&self, record: u32) -> &BTreeSet<Prefix> {
        self.by_record.get(&record).unwrap_or(&NONE)
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &BTreeSet<Prefix>)> {
        self.by_record.iter().map(|(record, prefixes)| (*record, prefixes))
    }

    pub(super) fn insert(&mut self, record: u32, prefix: Prefix) {
        self.count += u32::from(self.by_record.entry(record).or_default().insert(prefix));
    }

    pub(super) fn remove(&mut self, record: u32, prefix: &Prefix) {
        let Some(prefixes) = self.by_record.get_mut(&record) else { return };
        self.count -= u32::from(prefixes.remove(prefix));
        if prefixes.is_empty() {
            self.by_record.remove(&record);
        }
    }
}
