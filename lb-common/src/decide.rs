//! The decision: which backend a connection to an address, port and protocol gets, and why.
//!
//! Pure: all that it needs comes through [`Tables`], which the kernel programs implement on maps, and host tests and
//! `sockeye explain` on plain collections. Bodies are inlined into each program: a BPF call would spill the
//! references that the verifier follows.

use core::ops::DerefMut;

use crate::{
    address::{Address, Port, SocketAddress},
    affinity::{AffinityKey, AffinityValue, Client},
    backend::{Backend, BackendId},
    config::{NodeAddress, node_address},
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    maglev,
    outcome::Reason,
    service::{Range, ServiceRecord, Set, Settings, flags},
    service_cidr::ServiceCidrs,
    source::SourceKey,
};

/// The look-ups of a decision.
pub trait Tables {
    /// What a client was given last, where it stands: what is written to it is kept.
    type Affinity<'a>: DerefMut<Target = AffinityValue>
    where
        Self: 'a;

    /// The frontend stored under `key`, in one load. The tag may be that of another key: the caller checks it.
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry>;
    /// What is known of an address of the node.
    fn node_address(&self, address: &Address) -> Option<NodeAddress>;
    /// A service record. Its words may change at any time: read them with [`Tables::range`] and [`Tables::settings`].
    fn service(&self, index: u32) -> Option<&ServiceRecord>;
    /// A slot; it does not change while a program that loaded a range with it runs.
    fn backend(&self, slot: u32) -> Option<&Backend>;
    /// The networks that cluster addresses come from.
    fn service_cidrs(&self) -> Option<&ServiceCidrs>;
    /// The slot that a position of a Maglev table leads to.
    fn maglev(&self, position: u32) -> Option<u32>;
    /// Whether a client is in one of a record's source ranges.
    fn is_admitted(&self, key: &SourceKey) -> bool;
    /// Which backend a client was given last.
    fn affinity(&self, key: &AffinityKey) -> Option<Self::Affinity<'_>>;
    /// Remembers which backend a client was given. Where it cannot, the next connection chooses anew.
    fn remember_affinity(&self, key: &AffinityKey, value: &AffinityValue);
    /// A number that is spread evenly over all 2³² values.
    fn random(&self) -> u32;
    /// Seconds of a clock that never goes back.
    fn seconds(&self) -> u32;

    /// Loads a set's range, once.
    #[inline(always)]
    fn range(&self, record: &ServiceRecord, set: Set) -> Range {
        let word: *const Range = match set {
            Set::Cluster => &raw const record.cluster,
            Set::Local => &raw const record.local,
        };
        // SAFETY: derived from a reference to a record, aligned to eight bytes; volatile, so that it is one load.
        Range::from_bits(unsafe { word.cast::<u64>().read_volatile() })
    }

    /// Loads the range of the Maglev table, once.
    #[inline(always)]
    fn maglev_table(&self, record: &ServiceRecord) -> Range {
        let word: *const Range = &raw const record.maglev;
        // SAFETY: derived from a reference to a record, aligned to eight bytes; volatile, so that it is one load.
        Range::from_bits(unsafe { word.cast::<u64>().read_volatile() })
    }

    /// Loads the settings, once.
    #[inline(always)]
    fn settings(&self, record: &ServiceRecord) -> Settings {
        let word: *const Settings = &raw const record.settings;
        // SAFETY: derived from a reference to a record, aligned to eight bytes; volatile, so that it is one load.
        Settings::from_bits(unsafe { word.cast::<u64>().read_volatile() })
    }
}

/// Where a connection comes from. It decides which set external frontends use, and who may use loopback addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A socket on this node in the host's network namespace.
    Host,
    /// A socket on this node in another network namespace.
    Pod,
    /// A packet from outside.
    Outside,
}

/// A frontend that was found.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Its entry.
    pub entry: FrontendEntry,
    /// Its service's record.
    pub record: &'a ServiceRecord,
}

/// A backend that was chosen.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// Where it was found.
    pub slot: u32,
    /// The backend.
    pub backend: &'a Backend,
    /// The service port's number.
    pub service_id: u32,
}

/// Finds the frontend that serves `key` for a client from `source`.
///
/// An exact frontend wins over a node port. `source` is asked for only at a node's address that serves the host alone.
#[inline(always)]
pub fn find<'a, T: Tables>(
    tables: &'a T,
    key: &FrontendKey,
    source: impl Fn() -> Source,
) -> Result<Found<'a>, Reason> {
    let entry = match lookup(tables, key) {
        Some(entry) => entry,
        None => lookup_node_port(tables, key, source)?,
    };
    let record = tables.service(entry.record).ok_or(Reason::BrokenTables)?;
    Ok(Found { entry, record })
}

/// One look-up in `FRONTENDS`, repeated once if the element was reused for another key meanwhile.
#[inline(always)]
fn lookup<T: Tables>(tables: &T, key: &FrontendKey) -> Option<FrontendEntry> {
    let entry = tables.frontend(key)?;
    if entry.tag == key.tag() {
        return Some(entry);
    }
    tables.frontend(key).filter(|entry| entry.tag == key.tag())
}

#[inline(always)]
fn lookup_node_port<T: Tables>(
    tables: &T,
    key: &FrontendKey,
    source: impl Fn() -> Source,
) -> Result<FrontendEntry, Reason> {
    let Some(node_address) = tables.node_address(&key.address()) else { return Err(absence(tables, key)) };
    if node_address.flags & node_address::NODE_PORTS == 0 {
        return Err(Reason::NotAService);
    }
    let entry = lookup(tables, &key.node_port()).ok_or(Reason::NotAService)?;
    if node_address.flags & node_address::HOST_ONLY != 0 && source() != Source::Host {
        return Err(Reason::NotAService);
    }
    Ok(entry)
}

/// What it means that there is no frontend at an address which is not the node's: a cluster address refuses, unless it is
/// one that another proxy serves.
#[inline(always)]
fn absence<T: Tables>(tables: &T, key: &FrontendKey) -> Reason {
    let address = key.address();
    if !tables.service_cidrs().is_some_and(|cidrs| cidrs.contains(&address))
        || lookup(tables, &FrontendKey::other_proxy(address)).is_some()
    {
        return Reason::NotAService;
    }
    Reason::NoSuchService
}

/// Whether a socket bound to `key` would stand behind a node port: one in use, at an address that answers node ports, or
/// at all addresses.
#[inline(always)]
pub fn is_node_port<T: Tables>(tables: &T, key: &FrontendKey) -> bool {
    let Some(entry) = lookup(tables, &key.node_port()) else { return false };
    let unspecified = key.address().words() == key.node_port().address().words();
    entry.kind == FrontendKind::NodePort as u8
        && (unspecified
            || tables
                .node_address(&key.address())
                .is_some_and(|node_address| node_address.flags & node_address::NODE_PORTS != 0))
}

/// Whether the frontend admits the client: a load balancer's address may serve some sources only.
///
/// `source` is asked for only if it does.
#[inline(always)]
pub fn admit<T: Tables>(
    tables: &T,
    found: &Found<'_>,
    source: impl Fn() -> Option<Address>,
) -> Result<(), Reason> {
    if found.entry.kind != FrontendKind::LoadBalancer as u8
        || tables.settings(found.record).flags & flags::SOURCE_RANGES == 0
    {
        return Ok(());
    }
    let address = source().ok_or(Reason::SourceUnknown)?;
    if tables.is_admitted(&SourceKey { record: found.entry.record, address }) {
        Ok(())
    } else {
        Err(Reason::SourceNotAllowed)
    }
}

/// Chooses a backend for a packet. A Maglev table is asked by the client's address and port.
///
/// `outside`: the client is neither on this node nor a pod of another.
#[inline(always)]
pub fn select_for_packet<'a, T: Tables>(
    tables: &'a T,
    found: &Found<'a>,
    source: &SocketAddress,
    outside: bool,
) -> Result<Selection<'a>, Reason> {
    let client = || Client::Address(source.address);
    choose(tables, found, outside, flags::MAGLEV_OUTSIDE, client, source.port)
}

/// Chooses a backend for a socket of this node.
///
/// `client` is asked for only if the service has session affinity or a Maglev table.
#[inline(always)]
pub fn select<'a, T: Tables>(
    tables: &'a T,
    found: &Found<'a>,
    client: impl Fn() -> Client,
) -> Result<Selection<'a>, Reason> {
    // At connect() a socket mostly has no port yet.
    choose(tables, found, false, flags::MAGLEV_SOCKETS, client, Port::new(0))
}

/// Chooses from the set that applies: the client's own with session affinity, else by the service's algorithm.
///
/// `by_table`: the flag of services that give such clients a backend by their Maglev table.
#[inline(always)]
fn choose<'a, T: Tables>(
    tables: &'a T,
    found: &Found<'a>,
    outside: bool,
    by_table: u32,
    client: impl Fn() -> Client,
    port: Port,
) -> Result<Selection<'a>, Reason> {
    let settings = tables.settings(found.record);
    let set = applicable_set(found, settings, outside);
    let range = range_of(tables, found.record, settings, set)?;
    let affinity = (settings.affinity_seconds != 0).then(|| (client(), tables.seconds()));
    if let Some((client, now)) = affinity
        && let Some(selection) = affine(tables, found.record, settings, set, range, client, now)
    {
        return Ok(selection);
    }
    let consistent = if settings.flags & by_table != 0 {
        consistent(tables, found.record, range, maglev::hash(client(), port))
    } else {
        None
    };
    let selection = match consistent {
        Some(selection) => selection,
        None => draw(tables, found.record, range)?,
    };
    if let Some((client, now)) = affinity {
        let key = AffinityKey::new(client, found.record.service_id, set);
        let value = AffinityValue { backend_id: selection.backend.id, slot: selection.slot, last_used: now };
        tables.remember_affinity(&key, &value);
    }
    Ok(selection)
}

/// The backend that the client was given last, if it is in the set that was loaded.
#[inline(always)]
fn affine<'a, T: Tables>(
    tables: &'a T,
    record: &ServiceRecord,
    settings: Settings,
    set: Set,
    range: Range,
    client: Client,
    now: u32,
) -> Option<Selection<'a>> {
    // Frontends of one service port may use different sets: a backend that is in both serves both.
    let sets = if settings.flags & (flags::INTERNAL_LOCAL | flags::EXTERNAL_LOCAL) != 0 { 2 } else { 1 };
    let mut looked_in = set;
    for _ in 0..sets {
        let key = AffinityKey::new(client, record.service_id, looked_in);
        if let Some(mut known) = current(tables, settings, &key, now)
            && let Some((slot, backend)) = locate(tables, range, known.backend_id, known.slot)
        {
            known.refresh(slot, now);
            return Some(Selection { slot, backend, service_id: record.service_id });
        }
        looked_in = set.other();
    }
    None
}

/// The one that the Maglev table gives, if it is of the set that was loaded: a table is stored after its set, and the local
/// set has none.
#[inline(always)]
fn consistent<'a, T: Tables>(
    tables: &'a T,
    record: &ServiceRecord,
    range: Range,
    hash: u32,
) -> Option<Selection<'a>> {
    let table = tables.maglev_table(record);
    let offset = ((u64::from(hash) * u64::from(table.count)) >> 32) as u32;
    let slot = tables.maglev(table.first.wrapping_add(offset))?;
    if !range.contains(slot) {
        return None;
    }
    let backend = tables.backend(slot)?;
    Some(Selection { slot, backend, service_id: record.service_id })
}

/// One at random.
#[inline(always)]
fn draw<'a, T: Tables>(tables: &'a T, record: &ServiceRecord, range: Range) -> Result<Selection<'a>, Reason> {
    // Multiplication instead of a remainder: the same spread without a division.
    let offset = ((u64::from(tables.random()) * u64::from(range.count)) >> 32) as u32;
    let slot = range.first.wrapping_add(offset);
    let backend = tables.backend(slot).ok_or(Reason::BrokenTables)?;
    Ok(Selection { slot, backend, service_id: record.service_id })
}

/// What the client was given last, as long as its time has not run out.
///
/// It is refreshed in place: replacing an element of a hash map costs more than all the rest of a decision.
#[inline(always)]
fn current<'a, T: Tables>(
    tables: &'a T,
    settings: Settings,
    key: &AffinityKey,
    now: u32,
) -> Option<T::Affinity<'a>> {
    tables.affinity(key).filter(|known| known.is_current(now, settings.affinity_seconds))
}

/// Another backend of the set that applies, at random, whatever the client had before.
#[inline(always)]
pub fn select_another<'a, T: Tables>(tables: &'a T, found: &Found<'a>) -> Result<Selection<'a>, Reason> {
    let settings = tables.settings(found.record);
    let range = range_of(tables, found.record, settings, applicable_set(found, settings, false))?;
    draw(tables, found.record, range)
}

/// The backend that was chosen before, if it is still in the set that applies.
///
/// `slot` is where it was then: the set may have moved since, so it is only tried first.
#[inline(always)]
pub fn reselect<'a, T: Tables>(
    tables: &'a T,
    found: &Found<'a>,
    id: BackendId,
    slot: u32,
) -> Option<Selection<'a>> {
    let settings = tables.settings(found.record);
    let set = applicable_set(found, settings, false);
    let range = range_of(tables, found.record, settings, set).ok()?;
    let (slot, backend) = locate(tables, range, id, slot)?;
    Some(Selection { slot, backend, service_id: found.record.service_id })
}

/// Whether a backend is in either of the service's sets: a connection that has it keeps it, whatever the policies say.
#[inline(always)]
pub fn is_usable<T: Tables>(tables: &T, record: &ServiceRecord, id: BackendId, slot: u32) -> bool {
    [Set::Cluster, Set::Local]
        .into_iter()
        .any(|set| locate(tables, tables.range(record, set), id, slot).is_some())
}

/// The slot that holds a backend now: where it was, or where a search finds it.
#[inline(always)]
fn locate<T: Tables>(tables: &T, range: Range, id: BackendId, slot: u32) -> Option<(u32, &Backend)> {
    if range.contains(slot)
        && let Some(backend) = tables.backend(slot)
        && backend.id == id
    {
        return Some((slot, backend));
    }
    search(tables, range, id)
}

/// Binary search in a range, which is sorted by backend id.
#[inline(always)]
fn search<T: Tables>(tables: &T, range: Range, id: BackendId) -> Option<(u32, &Backend)> {
    let (mut low, mut high) = (range.first, range.first.wrapping_add(range.count));
    // The verifier wants a bound: 2²⁴ slots are more than any map has.
    for _ in 0..24 {
        if low >= high {
            return None;
        }
        let middle = low + (high - low) / 2;
        let backend = tables.backend(middle)?;
        if backend.id == id {
            return Some((middle, backend));
        }
        if backend.id < id {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    None
}

/// The set that applies to this frontend and client.
///
/// Clients on the node use the cluster set of external frontends whatever the external policy: their traffic is as if
/// it had gone out to the load balancer and come back (kube-proxy's short-circuit).
#[inline(always)]
const fn applicable_set(found: &Found<'_>, settings: Settings, outside: bool) -> Set {
    let local = if found.entry.kind == FrontendKind::ClusterIp as u8 {
        settings.flags & flags::INTERNAL_LOCAL != 0
    } else {
        outside && settings.flags & flags::EXTERNAL_LOCAL != 0
    };
    if local { Set::Local } else { Set::Cluster }
}

/// The range of a set, or the reason for having none.
#[inline(always)]
fn range_of<T: Tables>(
    tables: &T,
    record: &ServiceRecord,
    settings: Settings,
    set: Set,
) -> Result<Range, Reason> {
    let range = tables.range(record, set);
    if range.count != 0 {
        Ok(range)
    } else if set == Set::Local && settings.flags & flags::ANY_ENDPOINTS != 0 {
        Err(Reason::NoLocalBackends)
    } else {
        Err(Reason::NoBackends)
    }
}

/// Whether a translated peer is the one a socket remembers.
#[inline(always)]
pub fn same_peer(a: &SocketAddress, b: &SocketAddress) -> bool {
    let (x, y) = (a.address.words(), b.address.words());
    x[3] == y[3] && a.port.wire() == b.port.wire() && x[2] == y[2] && x[1] == y[1] && x[0] == y[0]
}

#[cfg(test)]
mod tests;
