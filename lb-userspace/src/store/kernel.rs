//! The tables in the kernel's maps.
//!
//! `SERVICES` and `BACKENDS` are written through a mapping, without system calls: a changed set is one store of eight
//! bytes. The others are written by system calls, only when a frontend, a source range or an address comes or goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::offset_of,
    os::fd::AsFd as _,
    path::Path,
};

use aya::{
    Ebpf,
    maps::{
        Array, ArrayOfMaps, HashMap, Map, MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
    sys::SyscallError,
};
use aya_obj::generated::bpf_map_type;
use lb_common::{
    address::Address,
    backend::Backend,
    config::{NodeAddress, maps},
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    maglev::Position,
    prefix::Prefix,
    service::{Range, ServiceRecord, Set},
    service_cidr::ServiceCidrs,
    source::{SourceKey, SourceRange},
};

use super::{Capacity, Store, StoreError, Tables, Write};
use crate::kernel::{
    error::KernelError,
    mapped::{MappedArray, OutOfBounds},
};

/// The tables, for writing. There is one writer at a time: the agent holds the pin directory's lock.
#[derive(Debug)]
pub struct KernelStore {
    tables: TableMaps,
    grace: Grace,
}

/// Waiting until every program that runs now has ended.
#[derive(Debug)]
pub(crate) struct Grace {
    map: ArrayOfMaps<MapData>,
    /// What the element of `GRACE` is set to, again and again.
    inner: MapData,
}

/// The maps of the tables.
#[derive(Debug)]
pub(crate) struct TableMaps {
    frontends: HashMap<MapData, FrontendKey, FrontendEntry>,
    node_addresses: HashMap<MapData, Address, NodeAddress>,
    source_ranges: LpmTrie<MapData, SourceKey, SourceRange>,
    /// An array of one element.
    service_cidrs: Map,
    services: MappedArray<ServiceRecord>,
    backends: MappedArray<Backend>,
    maglev: MappedArray<Position>,
    capacity: Capacity,
}

impl KernelStore {
    /// On the maps that a loaded object uses.
    pub(crate) fn new(ebpf: &Ebpf) -> Result<Self, KernelError> {
        let tables = TableMaps::new(true, |name| {
            let map = ebpf.map(name).ok_or(MapError::ElementNotFound)?;
            duplicate(map)
        })?;
        Ok(Self { tables, grace: Grace::new(ebpf)? })
    }
}

impl Grace {
    /// On the map that a loaded object uses.
    pub(crate) fn new(ebpf: &Ebpf) -> Result<Self, KernelError> {
        let error = || KernelError::map("opening", maps::GRACE);
        let data = ebpf.map(maps::GRACE).ok_or(MapError::ElementNotFound).and_then(duplicate);
        let map = data.and_then(Map::from_map_data).and_then(ArrayOfMaps::try_from).map_err(error())?;
        Ok(Self { map, inner: inner_map().map_err(error())? })
    }

    /// Waits.
    ///
    /// The kernel calls `synchronize_rcu` before an update of an element of a map of maps returns, since 4.20
    /// (`maybe_wait_bpf_programs`, kernel/bpf/syscall.c): whether the element really changed does not matter. Programs
    /// run in RCU read-side sections. It takes 8 to 20 ms, so one wait serves all that was retired before it.
    pub(crate) fn wait(&mut self) -> Result<(), StoreError> {
        self.map.set(0, &self.inner, 0).map_err(|error| store_error("updating", maps::GRACE, error))
    }
}

impl Store for KernelStore {
    fn capacity(&self) -> Capacity {
        self.tables.capacity
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        let tables = &mut self.tables;
        match write {
            Write::Slots { first, backends } => tables.backends.fill(*first, backends).map_err(no_slot),
            Write::MaglevTable { first, slots } => {
                let positions: Vec<_> = slots.iter().map(|slot| Position::new(*slot)).collect();
                tables.maglev.fill(*first, &positions).map_err(no_position)
            }
            Write::MaglevRange { index, range } => {
                let offset = offset_of!(ServiceRecord, maglev);
                tables.services.store(*index, offset, bytemuck::cast(*range)).map_err(no_record)
            }
            Write::Record { index, record } => tables.services.fill(*index, &[*record]).map_err(no_record),
            Write::Range { index, set, range } => {
                let offset = match set {
                    Set::Cluster => offset_of!(ServiceRecord, cluster),
                    Set::Local => offset_of!(ServiceRecord, local),
                };
                tables.services.store(*index, offset, bytemuck::cast(*range)).map_err(no_record)
            }
            Write::Settings { index, settings } => {
                let offset = offset_of!(ServiceRecord, settings);
                tables.services.store(*index, offset, bytemuck::cast(*settings)).map_err(no_record)
            }
            Write::PutFrontend { key, entry } => {
                let done = tables.frontends.insert(key, entry, 0);
                done.map_err(|error| store_error("inserting into", maps::FRONTENDS, error))
            }
            Write::DeleteFrontend { key } => deleted(tables.frontends.remove(key), maps::FRONTENDS),
            Write::PutSourceRange { record, prefix } => {
                let done =
                    tables.source_ranges.insert(&source_key(*record, prefix), &SourceRange { flags: 0 }, 0);
                done.map_err(|error| store_error("inserting into", maps::SOURCE_RANGES, error))
            }
            Write::DeleteSourceRange { record, prefix } => {
                deleted(tables.source_ranges.remove(&source_key(*record, prefix)), maps::SOURCE_RANGES)
            }
            Write::PutForeign { address } => {
                let key = FrontendKey::other_proxy(*address);
                let entry = FrontendEntry::new(&key, FrontendKind::OtherProxy, 0);
                let done = tables.frontends.insert(&key, &entry, 0);
                done.map_err(|error| store_error("inserting into", maps::FRONTENDS, error))
            }
            Write::DeleteForeign { address } => {
                let key = FrontendKey::other_proxy(*address);
                deleted(tables.frontends.remove(&key), maps::FRONTENDS)
            }
            Write::ServiceCidrs { networks } => {
                let cidrs = ServiceCidrs::new(networks.iter().copied());
                let done = Array::try_from(&mut tables.service_cidrs)
                    .and_then(|mut map: Array<&mut MapData, ServiceCidrs>| map.set(0, &cidrs, 0));
                done.map_err(|error| store_error("writing", maps::SERVICE_CIDRS, error))
            }
            Write::PutNodeAddress { address, value } => {
                let done = tables.node_addresses.insert(address, value, 0);
                done.map_err(|error| store_error("inserting into", maps::NODE_ADDRESSES, error))
            }
            Write::DeleteNodeAddress { address } => {
                deleted(tables.node_addresses.remove(address), maps::NODE_ADDRESSES)
            }
            Write::Grace => self.grace.wait(),
        }
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.tables.read()
    }
}

impl TableMaps {
    /// On the maps that are pinned in a directory, for reading.
    pub(crate) fn pinned(directory: &Path) -> Result<Self, KernelError> {
        Self::new(false, |name| MapData::from_pin(directory.join(name)))
    }

    fn new(
        writable: bool,
        open: impl Fn(&'static str) -> Result<MapData, MapError>,
    ) -> Result<Self, KernelError> {
        let error = |name| KernelError::map("opening", name);
        let opened = |name| open(name).and_then(Map::from_map_data).map_err(error(name));
        let array = |name| open(name).map_err(error(name));
        let (frontends, node_addresses) = (opened(maps::FRONTENDS)?, opened(maps::NODE_ADDRESSES)?);
        let (source_ranges, service_cidrs) = (opened(maps::SOURCE_RANGES)?, opened(maps::SERVICE_CIDRS)?);
        let (services, backends) = (array(maps::SERVICES)?, array(maps::BACKENDS)?);
        let entries = |name, map: &Map| match map {
            Map::HashMap(data) | Map::LpmTrie(data) => {
                data.info().map(|info| info.max_entries()).map_err(error(name))
            }
            _ => Err(KernelError::Object { what: format!("{name} is of another type") }),
        };
        let services = MappedArray::new(&services, writable).map_err(error(maps::SERVICES))?;
        let backends = MappedArray::new(&backends, writable).map_err(error(maps::BACKENDS))?;
        let maglev = MappedArray::new(&array(maps::MAGLEV)?, writable).map_err(error(maps::MAGLEV))?;
        let capacity = Capacity {
            frontends: entries(maps::FRONTENDS, &frontends)?,
            services: services.len(),
            backends: backends.len(),
            maglev: maglev.len(),
            source_ranges: entries(maps::SOURCE_RANGES, &source_ranges)?,
            node_addresses: entries(maps::NODE_ADDRESSES, &node_addresses)?,
        };
        Ok(Self {
            frontends: HashMap::try_from(frontends).map_err(error(maps::FRONTENDS))?,
            node_addresses: HashMap::try_from(node_addresses).map_err(error(maps::NODE_ADDRESSES))?,
            service_cidrs,
            source_ranges: LpmTrie::try_from(source_ranges).map_err(error(maps::SOURCE_RANGES))?,
            services,
            backends,
            maglev,
            capacity,
        })
    }

    /// How much fits.
    pub(crate) const fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// What the tables hold. While somebody writes, a set may be read from slots that are used again already.
    pub(crate) fn read(&self) -> Result<Tables, StoreError> {
        let services = self.services_in_use()?;
        let mut backends = BTreeMap::new();
        for record in services.values() {
            for slot in record.cluster.slots().chain(record.local.slots()) {
                // A range beyond the map would be a defect; the reconciler finds it by its missing slots.
                if let Ok(backend) = self.backends.load(slot) {
                    backends.insert(slot, backend);
                }
            }
        }
        let (foreign, frontends): (BTreeMap<_, _>, BTreeMap<_, _>) =
            entries(&self.frontends, maps::FRONTENDS)?
                .into_iter()
                .partition(|(key, _)| *key == FrontendKey::other_proxy(key.address()));
        let service_cidrs = Array::try_from(&self.service_cidrs)
            .and_then(|map: Array<&MapData, ServiceCidrs>| map.get(&0, 0));
        let service_cidrs =
            service_cidrs.map_err(|error| store_error("reading", maps::SERVICE_CIDRS, error))?;
        Ok(Tables {
            frontends,
            foreign: foreign.keys().map(FrontendKey::address).collect(),
            service_cidrs: service_cidrs.prefixes().collect(),
            maglev: self.maglev_tables(&services),
            services,
            backends,
            source_ranges: self.source_ranges()?,
            node_addresses: entries(&self.node_addresses, maps::NODE_ADDRESSES)?,
        })
    }

    /// A table beyond the map would be a defect; the pipeline finds it by its missing positions.
    fn maglev_tables(&self, services: &BTreeMap<u32, ServiceRecord>) -> BTreeMap<u32, Vec<u32>> {
        let tables = services.values().map(|record| record.maglev).filter(|table| table.count != 0);
        let slots = |table: Range| {
            table.slots().map_while(|position| Some(self.maglev.load(position).ok()?.slot)).collect()
        };
        tables.map(|table| (table.first, slots(table))).collect()
    }

    fn source_ranges(&self) -> Result<BTreeMap<u32, BTreeSet<Prefix>>, StoreError> {
        let mut by_record: BTreeMap<u32, BTreeSet<Prefix>> = BTreeMap::new();
        for key in self.source_ranges.keys() {
            let key = key.map_err(|error| store_error("reading", maps::SOURCE_RANGES, error))?;
            let SourceKey { record, address } = key.data();
            let prefix = Prefix::new(address, key.prefix_len().saturating_sub(SourceKey::RECORD_BITS));
            by_record.entry(record).or_default().insert(prefix);
        }
        Ok(by_record)
    }

    fn services_in_use(&self) -> Result<BTreeMap<u32, ServiceRecord>, StoreError> {
        (0..self.services.len())
            .map(|index| self.services.load(index).map(|record| (index, record)).map_err(no_record))
            .filter(|entry| !matches!(entry, Ok((_, record)) if record.service_id == 0))
            .collect()
    }
}

fn source_key(record: u32, prefix: &Prefix) -> Key<SourceKey> {
    Key::new(SourceKey::RECORD_BITS + prefix.bits(), SourceKey { record, address: prefix.address() })
}

fn entries<K, V>(map: &HashMap<MapData, K, V>, name: &'static str) -> Result<BTreeMap<K, V>, StoreError>
where
    K: aya::Pod + Ord,
    V: aya::Pod,
{
    map.iter().collect::<Result<_, _>>().map_err(|error| store_error("reading", name, error))
}

/// A map as `GRACE` takes them.
fn inner_map() -> Result<MapData, MapError> {
    let array = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let word = size_of::<u32>() as u32;
    MapData::create(aya_obj::Map::new_from_params(array, word, word, 1, 0), "GRACE.inner", None)
}

/// A second handle on the map.
pub(crate) fn duplicate(map: &Map) -> Result<MapData, MapError> {
    MapData::from_fd(data(map)?.fd().as_fd().try_clone_to_owned()?)
}

/// The untyped handle inside, for the kinds that Sockeye uses.
pub(crate) fn data(map: &Map) -> Result<&MapData, MapError> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::SkStorage(data) => Ok(data),
        other => Err(io::Error::other(format!("an unexpected kind of map: {other:?}")).into()),
    }
}

/// A key that is not there is as well deleted.
pub(crate) fn absent_is_fine(done: Result<(), MapError>) -> Result<(), MapError> {
    match done {
        Err(MapError::SyscallError(SyscallError { io_error, .. }))
            if io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

fn deleted(done: Result<(), MapError>, map: &'static str) -> Result<(), StoreError> {
    absent_is_fine(done).map_err(|error| store_error("deleting from", map, error))
}

fn store_error(operation: &'static str, map: &'static str, error: MapError) -> StoreError {
    let source = match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => io_error,
        other => io::Error::other(other),
    };
    // `htab_map_update_elem`: a preallocated hash without a free element; `trie_update_elem`: a trie with all its nodes.
    if matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) {
        StoreError::Full { map }
    } else {
        StoreError::Kernel { map, operation, source }
    }
}

fn no_position(OutOfBounds { index }: OutOfBounds) -> StoreError {
    StoreError::OutOfBounds { map: maps::MAGLEV, index }
}

fn no_slot(OutOfBounds { index }: OutOfBounds) -> StoreError {
    StoreError::OutOfBounds { map: maps::BACKENDS, index }
}

fn no_record(OutOfBounds { index }: OutOfBounds) -> StoreError {
    StoreError::OutOfBounds { map: maps::SERVICES, index }
}
