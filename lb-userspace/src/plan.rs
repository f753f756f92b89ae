//! From what a service port should be and what the tables hold: the writes between, in order.
//!
//! The order keeps a promise: after any number of these writes, every frontend leads to a complete record whose sets are
//! ones that were intended, before or after, and no client is refused whom neither the state before nor the one after
//! refuses.
//!
//! * A set is written into free slots before a range leads there; a record before a frontend leads there.
//! * **Policies that go** are cleared before the ranges change, **policies that come** are set after. A record always holds
//!   both sets, and where the local set has an endpoint the cluster set has one too ([`crate::resolve::categorize`]): so a
//!   client on its way between policies meets the cluster set before, or the cluster set after, and is refused only if one
//!   of the two states refuses it. The flag for "endpoints exist elsewhere" follows the same rule.
//! * **Source ranges** are complete before the settings name them, and go after the settings have ceased to: on the way from
//!   one list to another, the clients of both are admitted.
//! * **A Maglev table** follows the set that it is of. Between the two stores a position leads to a slot of the set before,
//!   which programs find out and choose at random.
//! * A frontend that another service port has won still leads here until that port writes it. Its clients must not see
//!   this port's new sets: if those change, the port moves to **another record** and leaves the old one, unchanged, to the
//!   frontends that wait. So it does if one of its frontends becomes one of another kind: until that is written, the
//!   policy of the kind before applies there.
//!
//! Frontends that nobody claims are not part of a plan: they are deleted before any plan is made.

pub mod actual;

use lb_common::{
    address::Protocol,
    backend::Backend,
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    prefix::Prefix,
    service::{Range, ServiceRecord, Set, Settings, flags},
};

use self::actual::{Actual, Record};
use crate::{
    desired::maglev::{self, Candidate},
    store::Write,
};

/// What a service port should be.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Its number.
    pub service_id: u32,
    /// What its backends speak.
    pub protocol: Protocol,
    /// Its policies.
    pub settings: Settings,
    /// The set for policy `Cluster`, sorted by id.
    pub cluster: &'a [Backend],
    /// The set for policy `Local`, sorted by id. If it has a backend, `cluster` has one.
    pub local: &'a [Backend],
    /// The clients that it admits at load balancers' addresses, sorted; they count if the settings say so.
    pub source_ranges: &'a [Prefix],
    /// The frontends that it has.
    pub frontends: &'a [(FrontendKey, FrontendKind)],
}

/// Writes in order, and what they rely on.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The service port's record afterwards.
    pub record: u32,
    /// The writes.
    pub writes: Vec<Write>,
    /// Sets that the plan has reserved slots for: to be settled with [`Actual::settle`] after the writes.
    pub reserved: Vec<Range>,
    /// The Maglev table that the plan has reserved positions for.
    pub reserved_table: Range,
}

/// Why there is no plan: something is full. Nothing has been reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// `BACKENDS` has not so many free slots in a row.
    Slots(u32),
    /// `MAGLEV` has not so many free positions in a row.
    Positions(u32),
    /// `SERVICES` has no free record.
    Record,
    /// `FRONTENDS` has no room for so many more.
    Frontends(u32),
    /// `SOURCE_RANGES` has no room for so many more.
    SourceRanges(u32),
    /// All numbers of service ports or backends have been given.
    Numbers,
}

impl NoRoom {
    /// Whether it may fit when what is retired is free.
    pub fn is_helped_by_grace(self, actual: &Actual) -> bool {
        match self {
            Self::Slots(count) => {
                actual.slots().retired() != 0 && actual.slots().free() + actual.slots().retired() >= count
            }
            Self::Positions(count) => {
                actual.positions().retired() != 0
                    && actual.positions().free() + actual.positions().retired() >= count
            }
            Self::Record => actual.records().retired().len() != 0,
            Self::SourceRanges(count) => {
                let unused =
                    actual.unused_source_ranges().map(|(_, ranges)| ranges.len() as u32).sum::<u32>();
                unused != 0 && actual.free_source_ranges() + unused >= count
            }
            Self::Frontends(_) | Self::Numbers => false,
        }
    }

    /// Whether it is worth another try: as much as is needed is free, if not in a row.
    pub fn may_fit(self, actual: &Actual) -> bool {
        match self {
            Self::Slots(count) => actual.slots().free() >= count || self.is_helped_by_grace(actual),
            Self::Positions(count) => actual.positions().free() >= count || self.is_helped_by_grace(actual),
            Self::Record => actual.records().free() != 0 || self.is_helped_by_grace(actual),
            Self::Frontends(count) => actual.capacity().frontends - actual.frontends() >= count,
            Self::SourceRanges(count) => {
                actual.free_source_ranges() >= count || self.is_helped_by_grace(actual)
            }
            Self::Numbers => false,
        }
    }
}

/// The writes that make a service port what it should be. `current`: the record that it has.
///
/// Reserves the slots and the record that it needs. No writes: all is as it should be.
pub fn plan(target: &Target<'_>, current: Option<u32>, actual: &mut Actual) -> Result<Plan, NoRoom> {
    let appearing = target.frontends.iter().filter(|(key, _)| actual.frontend(key).is_none()).count() as u32;
    if actual.capacity().frontends.saturating_sub(actual.frontends()) < appearing {
        return Err(NoRoom::Frontends(appearing));
    }
    let known = current.and_then(|index| Some((index, actual.record(index)?)));
    let Change { record, writes, reserved, reserved_table } = match known {
        Some((index, record)) if !must_move(target, index, record, actual) => {
            let present = Present {
                settings: record.settings,
                cluster: record.cluster,
                local: record.local,
                maglev: record.maglev,
                maglev_of: record.maglev_of,
            };
            change_in_place(target, index, present, actual)?
        }
        _ => fill_new_record(target, actual)?,
    };
    let mut plan = Plan { record, writes, reserved, reserved_table };
    lead_frontends_to(&mut plan, target, actual);
    Ok(plan)
}

struct Change {
    record: u32,
    writes: Vec<Write>,
    reserved: Vec<Range>,
    reserved_table: Range,
}

/// Whether the record has to change while frontends lead to it that are no longer this port's, or of another kind.
fn must_move(target: &Target<'_>, index: u32, record: &Record, actual: &Actual) -> bool {
    let is_unchanged = record.settings == target.settings
        && actual.set(record.cluster) == target.cluster
        && actual.set(record.local) == target.local
        && actual.source_ranges(index).iter().eq(target.source_ranges);
    let stays = |key: &FrontendKey| {
        let kind = target.frontends.iter().find(|(own, _)| own == key).map(|(_, kind)| *kind as u8);
        kind.is_some() && actual.frontend(key).map(|entry| entry.kind) == kind
    };
    !is_unchanged && !record.frontends.iter().all(stays)
}

/// What a record holds.
#[derive(Clone, Copy)]
struct Present {
    settings: Settings,
    cluster: Range,
    local: Range,
    maglev: Range,
    maglev_of: Range,
}

fn change_in_place(
    target: &Target<'_>,
    index: u32,
    record: Present,
    actual: &mut Actual,
) -> Result<Change, NoRoom> {
    let SourceRanges { coming, going } = source_ranges(target, index, actual)?;
    let mut sets =
        Sets { target, present: vec![record.cluster, record.local], writes: Vec::new(), new: Vec::new() };
    let cluster = sets.place(target.cluster, record.cluster, actual)?;
    let local = sets.place(target.local, record.local, actual)?;
    let known = (record.maglev_of == cluster).then_some(record.maglev);
    let maglev = match known.filter(|table| (table.count != 0) == needs_table(target)) {
        Some(table) => table,
        None => sets.place_table(cluster, actual)?,
    };
    let reserved_table = if maglev == record.maglev { Range::EMPTY } else { maglev };
    let Sets { mut writes, new, .. } = sets;
    writes.extend(coming);
    let changes_ranges = (cluster, local) != (record.cluster, record.local);
    let kept_flags = record.settings.flags & target.settings.flags;
    let mut settings = record.settings;
    if changes_ranges && kept_flags != settings.flags {
        settings = Settings { flags: kept_flags, ..target.settings };
        writes.push(Write::Settings { index, settings });
    }
    for (set, range, before) in [(Set::Cluster, cluster, record.cluster), (Set::Local, local, record.local)] {
        if range != before {
            writes.push(Write::Range { index, set, range });
        }
    }
    if maglev != record.maglev {
        writes.push(Write::MaglevRange { index, range: maglev });
    }
    writes.extend(unfiltered_frontends(target, index, actual));
    if settings != target.settings {
        writes.push(Write::Settings { index, settings: target.settings });
    }
    writes.extend(going);
    Ok(Change { record: index, writes, reserved: new, reserved_table })
}

fn fill_new_record(target: &Target<'_>, actual: &mut Actual) -> Result<Change, NoRoom> {
    let mut sets = Sets { target, present: Vec::new(), writes: Vec::new(), new: Vec::new() };
    let cluster = sets.place(target.cluster, Range::EMPTY, actual)?;
    let local = sets.place(target.local, Range::EMPTY, actual)?;
    let maglev = sets.place_table(cluster, actual)?;
    let Some(index) = actual.reserve_record() else {
        sets.give_back(actual);
        actual.give_back_table(maglev);
        return Err(NoRoom::Record);
    };
    // What stands at a free record are the left-overs of a plan that failed.
    let SourceRanges { coming, going } = match source_ranges(target, index, actual) {
        Ok(changes) => changes,
        Err(no_room) => {
            sets.give_back(actual);
            actual.give_back_table(maglev);
            actual.give_back_record(index);
            return Err(no_room);
        }
    };
    let Sets { mut writes, new, .. } = sets;
    writes.extend(coming.into_iter().chain(going));
    let record = ServiceRecord::new(target.service_id, target.settings, cluster, local).with_maglev(maglev);
    writes.push(Write::Record { index, record });
    Ok(Change { record: index, writes, reserved: new, reserved_table: maglev })
}

/// Whether programs may choose by a Maglev table: a backend alone needs none, and beyond some number none helps.
fn needs_table(target: &Target<'_>) -> bool {
    let asked = target.settings.flags & (flags::MAGLEV_OUTSIDE | flags::MAGLEV_SOCKETS) != 0;
    asked && maglev::size(target.cluster.len()) != 0
}

/// The writes between the source ranges of a record and those that it should have.
struct SourceRanges {
    coming: Vec<Write>,
    going: Vec<Write>,
}

fn source_ranges(target: &Target<'_>, record: u32, actual: &Actual) -> Result<SourceRanges, NoRoom> {
    let present = actual.source_ranges(record);
    let coming = target.source_ranges.iter().filter(|prefix| !present.contains(prefix));
    let coming: Vec<_> = coming.map(|prefix| Write::PutSourceRange { record, prefix: *prefix }).collect();
    let count = coming.len() as u32;
    if count > actual.free_source_ranges() {
        return Err(NoRoom::SourceRanges(count));
    }
    let going = present.iter().filter(|prefix| target.source_ranges.binary_search(prefix).is_err());
    let going = going.map(|prefix| Write::DeleteSourceRange { record, prefix: *prefix }).collect();
    Ok(SourceRanges { coming, going })
}

/// Finds or makes a place for each set of a record.
struct Sets<'a> {
    target: &'a Target<'a>,
    /// Sets that a range may lead to, this record's present ones and the new ones.
    present: Vec<Range>,
    writes: Vec<Write>,
    new: Vec<Range>,
}

impl Sets<'_> {
    /// The range of a set: the one that it has, if nothing changes; another of the record that holds the same; new slots.
    fn place(&mut self, set: &[Backend], before: Range, actual: &mut Actual) -> Result<Range, NoRoom> {
        if set.is_empty() {
            return Ok(Range::EMPTY);
        }
        if actual.set(before) == set {
            return Ok(before);
        }
        if let Some(range) = self.present.iter().find(|range| actual.set(**range) == set) {
            return Ok(*range);
        }
        let Some(range) = actual.reserve_set(set, self.target.protocol) else {
            self.give_back(actual);
            return Err(NoRoom::Slots(self.new_slots() + set.len() as u32));
        };
        self.writes.push(Write::Slots { first: range.first, backends: set.to_vec() });
        self.present.push(range);
        self.new.push(range);
        Ok(range)
    }

    /// A Maglev table of the cluster set at its place; the empty range if none is asked for. Nothing else leads to it, so it
    /// may be written before the range of the set.
    fn place_table(&mut self, cluster: Range, actual: &mut Actual) -> Result<Range, NoRoom> {
        if !needs_table(self.target) {
            return Ok(Range::EMPTY);
        }
        let candidates: Vec<_> = self.target.cluster.iter().map(Candidate::from).collect();
        let table = maglev::table(&candidates);
        let Some(range) = actual.reserve_table(table.len() as u32) else {
            self.give_back(actual);
            return Err(NoRoom::Positions(table.len() as u32));
        };
        let slots = table.into_iter().map(|offset| cluster.first + offset).collect();
        self.writes.push(Write::MaglevTable { first: range.first, slots });
        Ok(range)
    }

    fn new_slots(&self) -> u32 {
        self.new.iter().map(|range| range.count).sum()
    }

    fn give_back(&self, actual: &mut Actual) {
        for range in &self.new {
            actual.give_back_set(*range);
        }
    }
}

/// The frontends that were a load balancer's and are external addresses now: the settings may name source ranges next,
/// which do not hold there. Both kinds follow the same traffic policy.
fn unfiltered_frontends(target: &Target<'_>, record: u32, actual: &Actual) -> Vec<Write> {
    let was_filtered = |key: &FrontendKey| {
        let before = FrontendEntry::new(key, FrontendKind::LoadBalancer, record);
        actual.frontend(key) == Some(before)
    };
    let unfiltered =
        target.frontends.iter().filter(|(key, kind)| *kind == FrontendKind::ExternalIp && was_filtered(key));
    unfiltered
        .map(|(key, kind)| Write::PutFrontend { key: *key, entry: FrontendEntry::new(key, *kind, record) })
        .collect()
}

/// The frontends of the port that do not lead to its record yet.
fn lead_frontends_to(plan: &mut Plan, target: &Target<'_>, actual: &Actual) {
    for (key, kind) in target.frontends {
        let entry = FrontendEntry::new(key, *kind, plan.record);
        let write = Write::PutFrontend { key: *key, entry };
        if actual.frontend(key) != Some(entry) && !plan.writes.contains(&write) {
            plan.writes.push(write);
        }
    }
}

#[cfg(test)]
mod tests;
