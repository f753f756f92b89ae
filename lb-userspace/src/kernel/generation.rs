//! Generations of maps: which pinned ones can be kept, and how new ones take their place.
//!
//! The maps of the tables belong together: they are kept all, or replaced all. The others (what sockets, flows and
//! counters remember, and the pods' addresses) are kept one by one, so that a change of capacity ends no connection. Nothing of another layout
//! is kept.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, MapInfo},
};
use lb_common::{
    config::{Config, LAYOUT_VERSION, maps},
    service::Range,
};

use super::{
    error::KernelError,
    load::Definition,
    pins::{self, Pins},
};
use crate::store::{
    Store as _, Tables, Write,
    kernel::{KernelStore, TableMaps},
};

/// The maps that are kept or replaced together.
const TABLES: [&str; 10] = [
    maps::FRONTENDS,
    maps::SERVICES,
    maps::BACKENDS,
    maps::MAGLEV,
    maps::SOURCE_RANGES,
    maps::SERVICE_CIDRS,
    maps::NODE_ADDRESSES,
    maps::CONFIG,
    maps::DEVICES,
    maps::GRACE,
];

/// What is pinned, as far as it can be used.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Inheritance {
    /// The maps to go on with.
    pub(crate) kept: Vec<&'static str>,
    /// What becomes of the tables.
    pub(crate) tables: TablesFrom,
}

/// Where the content of the tables comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TablesFrom {
    /// Nothing usable is pinned.
    Nothing,
    /// The pinned maps themselves.
    SameMaps,
    /// Pinned maps of the same layout and other sizes.
    OtherSizes,
}

/// Looks at what is pinned.
pub(crate) fn inspect(
    pins: &Pins,
    wanted: &BTreeMap<&'static str, Definition>,
) -> Result<Inheritance, KernelError> {
    let pinned = pinned(pins)?;
    if layout_version(pins)? != Some(LAYOUT_VERSION) {
        return Ok(Inheritance { kept: Vec::new(), tables: TablesFrom::Nothing });
    }
    Ok(choose(&pinned, wanted))
}

fn choose(
    pinned: &BTreeMap<&'static str, Definition>,
    wanted: &BTreeMap<&'static str, Definition>,
) -> Inheritance {
    let same = |name: &&str| pinned.contains_key(*name) && pinned.get(*name) == wanted.get(*name);
    let readable = |name: &&str| match (pinned.get(*name), wanted.get(*name)) {
        (Some(pinned), Some(wanted)) => Definition { max_entries: wanted.max_entries, ..*pinned } == *wanted,
        _ => false,
    };
    let tables = if TABLES.iter().all(same) {
        TablesFrom::SameMaps
    } else if TABLES.iter().all(readable) {
        TablesFrom::OtherSizes
    } else {
        TablesFrom::Nothing
    };
    let keep = |name: &&'static str| {
        let with_tables = TABLES.contains(name);
        (!with_tables || tables == TablesFrom::SameMaps) && same(name)
    };
    Inheritance { kept: maps::ALL.iter().copied().filter(|name| keep(name)).collect(), tables }
}

/// Copies the tables of the generation in force into a new one, so that its numbers go on; false if they do not fit.
pub(crate) fn copy_tables(pins: &Pins, store: &mut KernelStore) -> Result<bool, KernelError> {
    let tables = TableMaps::pinned(pins.root())?.read().map_err(KernelError::Copy)?;
    if !fits(&tables, store) {
        return Ok(false);
    }
    writes(&tables).try_for_each(|write| store.apply(&write)).map_err(KernelError::Copy)?;
    Ok(true)
}

fn fits(tables: &Tables, store: &KernelStore) -> bool {
    let capacity = store.capacity();
    let last = |key: Option<u32>| key.map_or(0, |index| index.saturating_add(1));
    let source_ranges: usize = tables.source_ranges.values().map(BTreeSet::len).sum();
    tables.frontends.len() + tables.foreign.len() <= capacity.frontends as usize
        && source_ranges <= capacity.source_ranges as usize
        && tables.node_addresses.len() <= capacity.node_addresses as usize
        && last(tables.services.keys().next_back().copied()) <= capacity.services
        && last(tables.backends.keys().next_back().copied()) <= capacity.backends
}

/// What fills empty tables: what is led to before what leads there.
fn writes(tables: &Tables) -> impl Iterator<Item = Write> {
    let slots =
        tables.backends.iter().map(|(slot, backend)| Write::Slots { first: *slot, backends: vec![*backend] });
    // Maglev tables are made anew before the generation is switched to: they follow from the sets.
    let records = tables
        .services
        .iter()
        .map(|(index, record)| Write::Record { index: *index, record: record.with_maglev(Range::EMPTY) });
    let source_ranges = tables.source_ranges.iter().flat_map(|(record, prefixes)| {
        prefixes.iter().map(|prefix| Write::PutSourceRange { record: *record, prefix: *prefix })
    });
    let addresses = tables
        .node_addresses
        .iter()
        .map(|(address, value)| Write::PutNodeAddress { address: *address, value: *value });
    let frontends =
        tables.frontends.iter().map(|(key, entry)| Write::PutFrontend { key: *key, entry: *entry });
    let foreign = tables.foreign.iter().map(|address| Write::PutForeign { address: *address });
    // What refuses comes last.
    let service_cidrs = Write::ServiceCidrs { networks: tables.service_cidrs.clone() };
    slots
        .chain(source_ranges)
        .chain(records)
        .chain(addresses)
        .chain(frontends)
        .chain(foreign)
        .chain([service_cidrs])
}

/// Pins the maps of `ebpf` that are not pinned yet: first aside, then, once the links lead to them, in their places.
pub(crate) fn stage(pins: &Pins, ebpf: &Ebpf) -> Result<bool, KernelError> {
    // An earlier attempt of this process may have failed half-way.
    pins.drop_staged()?;
    let missing: Vec<(&'static str, &Map)> = maps::ALL
        .iter()
        .filter_map(|name| ebpf.map(name).map(|map| (*name, map)))
        .filter_map(|(name, map)| match is_pinned(pins, name, map) {
            Ok(true) => None,
            Ok(false) => Some(Ok((name, map))),
            Err(error) => Some(Err(error)),
        })
        .collect::<Result<_, _>>()?;
    if missing.is_empty() {
        return Ok(false);
    }
    let staged = pins.staged();
    pins::create_directory(&staged)?;
    for (name, map) in missing {
        map.pin(staged.join(name)).map_err(|error| {
            let source = MapError::PinError { name: Some(name.to_owned()), error };
            KernelError::map("pinning", name)(source)
        })?;
    }
    Ok(true)
}

fn is_pinned(pins: &Pins, name: &'static str, map: &Map) -> Result<bool, KernelError> {
    let path = pins.map(name);
    if !path.exists() {
        return Ok(false);
    }
    let error = || KernelError::map("looking at", name);
    let pinned = MapInfo::from_pin(path).map_err(error())?.id();
    let ours = crate::store::kernel::data(map).and_then(MapData::info).map_err(error())?.id();
    Ok(pinned == ours)
}

/// The definitions of the maps that are pinned.
fn pinned(pins: &Pins) -> Result<BTreeMap<&'static str, Definition>, KernelError> {
    let mut definitions = BTreeMap::new();
    for name in maps::ALL {
        let path = pins.map(name);
        if path.exists() {
            let info = MapInfo::from_pin(path).map_err(KernelError::map("looking at", name))?;
            let definition = Definition {
                map_type: info.map_type().map_err(KernelError::map("looking at", name))? as u32,
                key_size: info.key_size(),
                value_size: info.value_size(),
                max_entries: info.max_entries(),
                flags: info.map_flags(),
            };
            definitions.insert(name, definition);
        }
    }
    Ok(definitions)
}

/// The version that the pinned `CONFIG` tells, if it is one of this size.
pub(crate) fn layout_version(pins: &Pins) -> Result<Option<u32>, KernelError> {
    Ok(pinned_config(pins)?.map(|config| config.layout_version))
}

/// The pinned `CONFIG`, if it is one of this size.
pub(crate) fn pinned_config(pins: &Pins) -> Result<Option<Config>, KernelError> {
    let path = pins.map(maps::CONFIG);
    if !path.exists() {
        return Ok(None);
    }
    let error = || KernelError::map("reading", maps::CONFIG);
    let data = MapData::from_pin(path).map_err(error())?;
    if data.info().map_err(error())?.value_size() as usize != size_of::<Config>() {
        return Ok(None);
    }
    let map = Map::from_map_data(data).map_err(error())?;
    let config: Array<&MapData, Config> = (&map).try_into().map_err(error())?;
    config.get(&0, 0).map(Some).map_err(error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definitions(entries: u32) -> BTreeMap<&'static str, Definition> {
        let definition =
            |max_entries| Definition { map_type: 1, key_size: 4, value_size: 8, max_entries, flags: 0 };
        maps::ALL.iter().map(|name| (*name, definition(entries))).collect()
    }

    #[test]
    fn the_same_definitions_are_kept() {
        let inheritance = choose(&definitions(10), &definitions(10));
        assert_eq!(inheritance.kept, maps::ALL);
        assert_eq!(inheritance.tables, TablesFrom::SameMaps);
    }

    #[test]
    fn another_capacity_replaces_the_tables_together_and_keeps_what_sockets_remember() {
        let mut wanted = definitions(10);
        wanted.get_mut(maps::FRONTENDS).unwrap().max_entries = 20;
        let inheritance = choose(&definitions(10), &wanted);
        assert_eq!(
            inheritance.kept,
            [
                maps::AFFINITY,
                maps::SOCKETS,
                maps::DATAGRAMS,
                maps::FLOWS,
                maps::FRAGMENTS,
                maps::OUTCOMES,
                maps::NAMESPACES
            ]
        );
        assert_eq!(inheritance.tables, TablesFrom::OtherSizes);
    }

    #[test]
    fn another_size_of_a_map_beside_the_tables_replaces_it_alone() {
        let mut wanted = definitions(10);
        wanted.get_mut(maps::FLOWS).unwrap().max_entries = 20;
        let inheritance = choose(&definitions(10), &wanted);
        assert!(!inheritance.kept.contains(&maps::FLOWS));
        assert_eq!(inheritance.kept.len(), maps::ALL.len() - 1);
        assert_eq!(inheritance.tables, TablesFrom::SameMaps);
    }

    #[test]
    fn another_type_or_a_missing_map_makes_the_tables_unreadable() {
        let mut wanted = definitions(10);
        wanted.get_mut(maps::BACKENDS).unwrap().value_size = 32;
        assert_eq!(choose(&definitions(10), &wanted).tables, TablesFrom::Nothing);
        let mut pinned = definitions(10);
        pinned.remove(maps::CONFIG);
        let inheritance = choose(&pinned, &definitions(10));
        assert_eq!(inheritance.tables, TablesFrom::Nothing);
        assert!(!inheritance.kept.contains(&maps::FRONTENDS));
    }
}
