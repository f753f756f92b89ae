//! The maps, and the decision's look-ups on them.
//!
//! Only this module touches maps. Programs never write what the agent configures; they write what sockets, flows and
//! counters remember. `docs/maps.md` describes each map for operators.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage, lpm_trie::Key},
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    address::Address,
    affinity::{AffinityKey, AffinityValue},
    backend::Backend,
    config::{Config, Device, NodeAddress, capacity},
    decide::Tables,
    flow::{Flow, FlowKey, SECOND},
    fragment::{FragmentKey, FragmentPorts},
    frontend::{FrontendEntry, FrontendKey},
    maglev::Position,
    namespace::NamespaceAddresses,
    outcome,
    service::ServiceRecord,
    service_cidr::ServiceCidrs,
    socket::{DatagramKey, DatagramValue, SocketState},
    source::{SourceKey, SourceRange},
};

/// `BPF_F_MMAPABLE`: the agent writes through a mapping, without system calls.
const MAPPED: usize = 1 << 10;

/// Preallocated: an insertion never allocates, hence cannot fail for memory in any context.
#[btf_map]
static FRONTENDS: HashMap<FrontendKey, FrontendEntry, { capacity::FRONTENDS as usize }> = HashMap::new();

#[btf_map]
static SERVICES: Array<ServiceRecord, { capacity::SERVICES as usize }, MAPPED> = Array::new();

#[btf_map]
static BACKENDS: Array<Backend, { capacity::BACKENDS as usize }, MAPPED> = Array::new();

#[btf_map]
static MAGLEV: Array<Position, { capacity::MAGLEV as usize }, MAPPED> = Array::new();

#[btf_map]
static NODE_ADDRESSES: HashMap<Address, NodeAddress, { capacity::NODE_ADDRESSES as usize }> = HashMap::new();

#[btf_map]
static AFFINITY: LruHashMap<AffinityKey, AffinityValue, { capacity::AFFINITY as usize }> = LruHashMap::new();

#[btf_map]
static SOCKETS: SkStorage<SocketState> = SkStorage::new();

#[btf_map]
static DATAGRAMS: LruHashMap<DatagramKey, DatagramValue, { capacity::DATAGRAMS as usize }> =
    LruHashMap::new();

#[btf_map]
static FLOWS: LruHashMap<FlowKey, Flow, { capacity::FLOWS as usize }> = LruHashMap::new();

#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { capacity::FRAGMENTS as usize }> =
    LruHashMap::new();

#[btf_map]
static DEVICES: HashMap<u32, Device, { capacity::DEVICES as usize }> = HashMap::new();

#[btf_map]
static SERVICE_CIDRS: Array<ServiceCidrs, 1> = Array::new();

#[btf_map]
static SOURCE_RANGES: LpmTrie<SourceKey, SourceRange, { capacity::SOURCE_RANGES as usize }> = LpmTrie::new();

#[btf_map]
static NAMESPACES: HashMap<u64, NamespaceAddresses, { capacity::NAMESPACES as usize }> = HashMap::new();

#[btf_map]
static OUTCOMES: PerCpuArray<u64, { outcome::COUNT as usize }> = PerCpuArray::new();

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

/// Never read by a program: the kernel waits for all running programs when an element of such a map is updated.
#[btf_map]
static GRACE: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();

/// The decision's look-ups, on the maps.
pub(crate) struct Maps;

impl Tables for Maps {
    type Affinity<'a> = &'static mut AffinityValue;

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry> {
        let entry = FRONTENDS.get_ptr(key)?;
        // SAFETY: the kernel returned a pointer to an element of this size, aligned to eight bytes. It may be reused
        // for another key at any time, so it is read in one load, and the tag tells.
        Some(FrontendEntry::from_bits(unsafe { entry.cast::<u64>().read_volatile() }))
    }

    #[inline(always)]
    fn node_address(&self, address: &Address) -> Option<NodeAddress> {
        let value = NODE_ADDRESSES.get_ptr(address)?;
        // SAFETY: the kernel returned a pointer to an element of this size; one 32-bit load.
        Some(NodeAddress { flags: unsafe { value.cast::<u32>().read_volatile() } })
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<&ServiceRecord> {
        SERVICES.get(index)
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<&Backend> {
        BACKENDS.get(slot)
    }

    #[inline(always)]
    fn service_cidrs(&self) -> Option<&ServiceCidrs> {
        SERVICE_CIDRS.get(0)
    }

    #[inline(always)]
    fn maglev(&self, position: u32) -> Option<u32> {
        MAGLEV.get(position).map(|position| position.slot)
    }

    #[inline(always)]
    fn is_admitted(&self, key: &SourceKey) -> bool {
        SOURCE_RANGES.get(&Key::new(SourceKey::BITS, *key)).is_some()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<&'static mut AffinityValue> {
        let value = AFFINITY.get_ptr_mut(key)?;
        // SAFETY: the kernel returned a pointer to an element of this size; it stays mapped while the program runs. An
        // entry that is reused meanwhile names a backend that is then looked for in the set that applies; its new
        // owner's time may be prolonged by this.
        Some(unsafe { &mut *value })
    }

    #[inline(always)]
    fn remember_affinity(&self, key: &AffinityKey, value: &AffinityValue) {
        // Two first connections of one client may meet here on two CPUs: the last one wins. A full map makes room.
        let (Ok(()) | Err(_)) = AFFINITY.insert(key, value, 0);
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments, no memory.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn seconds(&self) -> u32 {
        (now() / SECOND) as u32
    }
}

/// Counts one end of a decision on this CPU.
#[inline(always)]
pub(crate) fn count(number: u32) {
    if let Some(counter) = OUTCOMES.get_ptr_mut(number) {
        // SAFETY: this CPU's slot. Programs on one CPU may nest (a softirq inside a system call): a lost increment is
        // the price of not paying for an atomic one.
        unsafe { *counter += 1 }
    }
}

/// The run-time switches.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// What this socket remembers, if anything.
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the storage is the kernel's, not the context's")]
pub(crate) fn socket_state(ctx: &SockAddrContext) -> Option<&mut SocketState> {
    // SAFETY: storage of a socket that the context holds; written only by programs that run for this socket.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_mut() }
}

/// The storage of this socket; zero if it is new. None: its memory limit (`net.core.optmem_max`) or the kernel's does not
/// allow it.
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the storage is the kernel's, not the context's")]
pub(crate) fn socket_storage(ctx: &SockAddrContext) -> Option<&mut SocketState> {
    // SAFETY: as in `socket_state`.
    unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None).as_mut() }
}

/// Makes the socket remember `state`. False: as in [`socket_storage`].
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext, state: &SocketState) -> bool {
    let Some(stored) = socket_storage(ctx) else { return false };
    *stored = *state;
    true
}

/// A pair that did not fit into the socket's own storage.
#[inline(always)]
pub(crate) fn datagram(key: &DatagramKey) -> Option<DatagramValue> {
    // SAFETY: copied at once. An entry that is reused while it is copied belongs to another socket: the caller checks
    // that what it says is still in the service's set.
    unsafe { DATAGRAMS.get(key).copied() }
}

/// Remembers a pair that did not fit into the socket's own storage.
#[inline(always)]
pub(crate) fn remember_datagram(key: &DatagramKey, value: &DatagramValue) -> bool {
    DATAGRAMS.insert(key, value, 0).is_ok()
}

/// Forgets a pair; one that is not there is as well forgotten.
#[inline(always)]
pub(crate) fn forget_datagram(key: &DatagramKey) {
    let (Ok(()) | Err(_)) = DATAGRAMS.remove(key);
}

/// `BPF_NOEXIST`: only where there is no entry.
const NOT_THERE: u64 = 1;

/// A flow, to be read and kept up to date.
///
/// Two packets of one flow on two CPUs may both write: each word is written in one piece, and the last one wins. An
/// entry that the kernel reuses meanwhile loses a time stamp or a mark at worst.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: the kernel returned a pointer to an element of this size; it stays mapped while the program runs.
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Stores a flow.
#[inline(always)]
pub(crate) fn put_flow(key: &FlowKey, flow: &Flow) -> bool {
    FLOWS.insert(key, flow, 0).is_ok()
}

/// Stores a flow unless its key is taken.
#[inline(always)]
pub(crate) fn add_flow(key: &FlowKey, flow: &Flow) -> bool {
    FLOWS.insert(key, flow, NOT_THERE).is_ok()
}

/// The ports of the datagram that a fragment belongs to.
#[inline(always)]
pub(crate) fn fragment(key: &FragmentKey) -> Option<FragmentPorts> {
    // SAFETY: copied at once, four bytes; an entry that is reused while it is copied leads to no flow, or to one of the
    // same two addresses.
    unsafe { FRAGMENTS.get(key).copied() }
}

/// Remembers the ports of a fragmented datagram. Where it cannot, the other fragments are the stack's.
#[inline(always)]
pub(crate) fn put_fragment(key: &FragmentKey, ports: &FragmentPorts) {
    let (Ok(()) | Err(_)) = FRAGMENTS.insert(key, ports, 0);
}

/// Whether this is one of the external devices.
#[inline(always)]
pub(crate) fn is_external(device: u32) -> bool {
    DEVICES.get_ptr(&device).is_some()
}

/// What is known of an external device; zero for others (`lb_common::config::device`).
#[inline(always)]
pub(crate) fn device_flags(device: u32) -> u32 {
    // SAFETY: the kernel returned a pointer to an element of this size; one 32-bit load.
    DEVICES.get_ptr(&device).map_or(0, |device| unsafe { device.cast::<u32>().read_volatile() })
}

/// The addresses that the sockets of a network namespace connect from, if it is a pod's that is known.
#[inline(always)]
pub(crate) fn namespace_addresses(cookie: u64) -> Option<&'static NamespaceAddresses> {
    // SAFETY: the kernel returned a pointer to an element of this size; it stays mapped while the program runs. An
    // element that is reused meanwhile for another pod is one of a pod that is gone, with its sockets.
    NAMESPACES.get_ptr(&cookie).map(|addresses| unsafe { &*addresses })
}

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments, no memory.
    unsafe { bpf_ktime_get_ns() }
}
