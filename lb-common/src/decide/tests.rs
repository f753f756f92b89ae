//! The decision on plain collections.

extern crate std;

use core::{
    cell::{Cell, RefCell, RefMut},
    net::IpAddr,
};
use std::{collections::BTreeMap, vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{address::Protocol, prefix::Prefix};

#[derive(Default)]
struct Fake {
    frontends: BTreeMap<FrontendKey, FrontendEntry>,
    node_addresses: BTreeMap<Address, NodeAddress>,
    services: Vec<ServiceRecord>,
    backends: Vec<Backend>,
    maglev: Vec<u32>,
    service_cidrs: Option<ServiceCidrs>,
    source_ranges: Vec<(u32, Prefix)>,
    affinity: RefCell<BTreeMap<AffinityKey, AffinityValue>>,
    random: Cell<u32>,
    seconds: Cell<u32>,
    /// What look-ups of a reused element give, before the true entry.
    foreign: Cell<u32>,
}

impl Tables for Fake {
    type Affinity<'a> = RefMut<'a, AffinityValue>;

    fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry> {
        let mut entry = *self.frontends.get(key)?;
        if self.foreign.get() > 0 {
            self.foreign.set(self.foreign.get() - 1);
            entry.tag ^= 1;
            entry.record = 999;
        }
        Some(entry)
    }
    fn node_address(&self, address: &Address) -> Option<NodeAddress> {
        self.node_addresses.get(address).copied()
    }
    fn service(&self, index: u32) -> Option<&ServiceRecord> {
        self.services.get(index as usize)
    }
    fn backend(&self, slot: u32) -> Option<&Backend> {
        self.backends.get(slot as usize)
    }
    fn service_cidrs(&self) -> Option<&ServiceCidrs> {
        self.service_cidrs.as_ref()
    }
    fn maglev(&self, position: u32) -> Option<u32> {
        self.maglev.get(position as usize).copied()
    }
    fn is_admitted(&self, key: &SourceKey) -> bool {
        let is_in = |prefix: &Prefix| Prefix::new(key.address, prefix.bits()) == *prefix;
        self.source_ranges.iter().any(|(record, prefix)| *record == key.record && is_in(prefix))
    }
    fn affinity(&self, key: &AffinityKey) -> Option<RefMut<'_, AffinityValue>> {
        RefMut::filter_map(self.affinity.borrow_mut(), |affinity| affinity.get_mut(key)).ok()
    }
    fn remember_affinity(&self, key: &AffinityKey, value: &AffinityValue) {
        self.affinity.borrow_mut().insert(*key, *value);
    }
    fn random(&self) -> u32 {
        self.random.get()
    }
    fn seconds(&self) -> u32 {
        self.seconds.get()
    }
}

fn address(ip: &str) -> Address {
    ip.parse::<IpAddr>().map_or(Address::UNSPECIFIED, Into::into)
}

fn key(ip: &str, port: u16) -> FrontendKey {
    FrontendKey::new(address(ip), Port::new(port), Protocol::Tcp)
}

fn backend(id: BackendId) -> Backend {
    Backend { address: Address::from_v4_bytes([10, 0, 0, id as u8]), port: Port::new(8080), flags: 0, id }
}

impl Fake {
    /// A service with ten cluster backends (ids 0, 2, 4, …) in slots 5 to 14, and the given frontend.
    fn with(frontend: FrontendKey, kind: FrontendKind, settings: Settings) -> Self {
        let record =
            ServiceRecord::new(1, settings, Range { first: 5, count: 10 }, Range { first: 15, count: 1 });
        let mut fake = Self { services: vec![record], ..Self::default() };
        fake.frontends.insert(frontend, FrontendEntry::new(&frontend, kind, 0));
        fake.backends = vec![backend(250); 5];
        fake.backends.extend((0..10).map(|i| backend(i * 2)));
        fake.backends.push(backend(100));
        fake
    }

    fn choose(&self, key: &FrontendKey, source: Source) -> Result<BackendId, Reason> {
        self.choose_for(key, source, Client::Namespace(1))
    }

    fn choose_for(&self, key: &FrontendKey, source: Source, client: Client) -> Result<BackendId, Reason> {
        let found = find(self, key, || source)?;
        let selection = if source == Source::Outside {
            let source = SocketAddress::new(address("192.0.2.7"), Port::new(40_000));
            select_for_packet(self, &found, &source, true)
        } else {
            select(self, &found, || client)
        };
        selection.map(|selection| selection.backend.id)
    }
}

#[test]
fn a_missing_entry_is_not_a_service() {
    let fake = Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, Settings::default());
    assert_eq!(fake.choose(&key("10.96.0.1", 81), Source::Pod), Err(Reason::NotAService));
    assert_eq!(fake.choose(&key("10.96.0.2", 80), Source::Pod), Err(Reason::NotAService));
}

#[test]
fn the_random_number_spreads_over_the_whole_range() {
    let fake = Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, Settings::default());
    let mut seen = [0; 10];
    for step in 0..1000_u32 {
        fake.random.set(step * (u32::MAX / 1000));
        let id = fake.choose(&key("10.96.0.1", 80), Source::Host);
        seen[id.map_or(0, |id| id as usize / 2)] += 1;
    }
    assert!(seen.iter().all(|n| (99..=101).contains(n)), "{seen:?}");
}

#[test]
fn a_reused_element_is_looked_up_again() {
    let fake = Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, Settings::default());
    fake.foreign.set(1);
    assert_eq!(fake.choose(&key("10.96.0.1", 80), Source::Pod), Ok(0));
    fake.foreign.set(2);
    assert_eq!(fake.choose(&key("10.96.0.1", 80), Source::Pod), Err(Reason::NotAService));
}

#[test]
fn policies_choose_the_set() {
    let any = flags::ANY_ENDPOINTS;
    let cases = [
        (FrontendKind::ClusterIp, 0, Source::Pod, 0),
        (FrontendKind::ClusterIp, flags::INTERNAL_LOCAL, Source::Pod, 100),
        (FrontendKind::ClusterIp, flags::EXTERNAL_LOCAL, Source::Pod, 0),
        (FrontendKind::ClusterIp, flags::EXTERNAL_LOCAL, Source::Outside, 0),
        (FrontendKind::ClusterIp, flags::INTERNAL_LOCAL, Source::Outside, 100),
        (FrontendKind::LoadBalancer, flags::EXTERNAL_LOCAL, Source::Pod, 0),
        (FrontendKind::LoadBalancer, flags::EXTERNAL_LOCAL, Source::Host, 0),
        (FrontendKind::LoadBalancer, flags::EXTERNAL_LOCAL, Source::Outside, 100),
        (FrontendKind::ExternalIp, flags::INTERNAL_LOCAL, Source::Outside, 0),
        (FrontendKind::NodePort, flags::EXTERNAL_LOCAL, Source::Outside, 100),
    ];
    for (kind, policy, source, expected) in cases {
        let settings = Settings { flags: policy | any, affinity_seconds: 0 };
        let fake = Fake::with(key("10.96.0.1", 80), kind, settings);
        assert_eq!(
            fake.choose(&key("10.96.0.1", 80), source),
            Ok(expected),
            "{kind:?} flags {policy} from {source:?}"
        );
    }
}

#[test]
fn an_empty_set_says_why() {
    let local = flags::INTERNAL_LOCAL;
    for (flags, expected) in [
        (0, Reason::NoBackends),
        (local, Reason::NoBackends),
        (local | flags::ANY_ENDPOINTS, Reason::NoLocalBackends),
    ] {
        let settings = Settings { flags, affinity_seconds: 0 };
        let mut fake = Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, settings);
        fake.services[0] = ServiceRecord::new(1, settings, Range::EMPTY, Range::EMPTY);
        assert_eq!(fake.choose(&key("10.96.0.1", 80), Source::Pod), Err(expected));
    }
}

#[test]
fn node_ports_answer_at_node_addresses_only() {
    let mut fake = Fake::with(key("0.0.0.0", 30080), FrontendKind::NodePort, Settings::default());
    let node_ports = node_address::NODE_PORTS;
    fake.node_addresses.insert(address("172.18.0.2"), NodeAddress { flags: node_ports });
    fake.node_addresses
        .insert(address("127.0.0.1"), NodeAddress { flags: node_ports | node_address::HOST_ONLY });
    fake.node_addresses.insert(address("172.18.0.9"), NodeAddress { flags: 0 });
    fake.node_addresses.insert(address("fd00::2"), NodeAddress { flags: node_ports });
    let cases = [
        ("172.18.0.2", 30080, Source::Pod, Ok(0)),
        ("172.18.0.2", 30080, Source::Outside, Ok(0)),
        ("172.18.0.2", 30081, Source::Pod, Err(Reason::NotAService)),
        ("172.18.0.3", 30080, Source::Host, Err(Reason::NotAService)),
        ("172.18.0.9", 30080, Source::Host, Err(Reason::NotAService)),
        ("127.0.0.1", 30080, Source::Host, Ok(0)),
        ("127.0.0.1", 30080, Source::Pod, Err(Reason::NotAService)),
        ("fd00::2", 30080, Source::Host, Err(Reason::NotAService)),
    ];
    for (ip, port, source, expected) in cases {
        assert_eq!(fake.choose(&key(ip, port), source), expected, "{ip}:{port} from {source:?}");
    }
}

#[test]
fn a_node_port_is_taken_at_node_addresses_and_at_all_addresses() {
    let mut fake = Fake::with(key("0.0.0.0", 30080), FrontendKind::NodePort, Settings::default());
    fake.node_addresses.insert(address("172.18.0.2"), NodeAddress { flags: node_address::NODE_PORTS });
    fake.node_addresses.insert(address("172.18.0.9"), NodeAddress { flags: 0 });
    let cases = [
        ("0.0.0.0", 30080, true),
        ("172.18.0.2", 30080, true),
        ("172.18.0.9", 30080, false),
        ("10.0.0.1", 30080, false),
        ("0.0.0.0", 30081, false),
        ("::", 30080, false),
    ];
    for (ip, port, taken) in cases {
        assert_eq!(is_node_port(&fake, &key(ip, port)), taken, "{ip}:{port}");
    }
    let other = Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, Settings::default());
    assert!(!is_node_port(&other, &key("10.96.0.1", 80)));
}

#[test]
fn a_frontend_at_a_node_address_wins_over_the_node_port() {
    let mut fake = Fake::with(key("172.18.0.2", 30080), FrontendKind::ExternalIp, Settings::default());
    fake.node_addresses.insert(address("172.18.0.2"), NodeAddress { flags: node_address::NODE_PORTS });
    let other = ServiceRecord::new(2, Settings::default(), Range { first: 15, count: 1 }, Range::EMPTY);
    fake.services.push(other);
    let node_port = key("0.0.0.0", 30080);
    fake.frontends.insert(node_port, FrontendEntry::new(&node_port, FrontendKind::NodePort, 1));
    assert_eq!(fake.choose(&key("172.18.0.2", 30080), Source::Pod), Ok(0));
}

#[test]
fn a_cluster_address_without_such_a_port_or_service_refuses() {
    let mut fake = Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, Settings::default());
    let networks = [("10.96.0.0", 16), ("fd00:10:96::", 112)];
    let networks =
        networks.map(|(ip, bits)| Prefix::new(address(ip), if bits == 16 { 96 + bits } else { bits }));
    fake.service_cidrs = Some(ServiceCidrs::new(networks));
    let theirs = FrontendKey::other_proxy(address("10.96.0.9"));
    fake.frontends.insert(theirs, FrontendEntry::new(&theirs, FrontendKind::OtherProxy, 0));
    fake.node_addresses.insert(address("10.96.0.2"), NodeAddress { flags: node_address::NODE_PORTS });
    let cases = [
        ("10.96.0.1", 80, Ok(0)),
        ("10.96.0.1", 81, Err(Reason::NoSuchService)),
        ("10.96.7.7", 80, Err(Reason::NoSuchService)),
        ("fd00:10:96::7", 80, Err(Reason::NoSuchService)),
        // Another proxy's, whatever the port; the node's own; no cluster address.
        ("10.96.0.9", 80, Err(Reason::NotAService)),
        ("10.96.0.9", 9999, Err(Reason::NotAService)),
        ("10.96.0.2", 22, Err(Reason::NotAService)),
        ("10.97.0.1", 80, Err(Reason::NotAService)),
        ("fd00:10:97::7", 80, Err(Reason::NotAService)),
    ];
    for (ip, port, expected) in cases {
        for source in [Source::Host, Source::Pod, Source::Outside] {
            assert_eq!(fake.choose(&key(ip, port), source), expected, "{ip}:{port} from {source:?}");
        }
    }
    fake.service_cidrs = None;
    assert_eq!(fake.choose(&key("10.96.7.7", 80), Source::Pod), Err(Reason::NotAService));
}

#[test]
fn source_ranges_hold_at_load_balancers_addresses_alone() {
    let (inside, outside) = (Some(address("203.0.113.7")), Some(address("203.0.114.7")));
    let filtered = flags::SOURCE_RANGES;
    let cases = [
        (FrontendKind::LoadBalancer, filtered, inside, Ok(())),
        (FrontendKind::LoadBalancer, filtered, outside, Err(Reason::SourceNotAllowed)),
        (FrontendKind::LoadBalancer, filtered, None, Err(Reason::SourceUnknown)),
        (FrontendKind::LoadBalancer, filtered, Some(address("2001:db8::1")), Err(Reason::SourceNotAllowed)),
        (FrontendKind::LoadBalancer, flags::EXTERNAL_LOCAL, outside, Ok(())),
        (FrontendKind::ClusterIp, filtered, outside, Ok(())),
        (FrontendKind::NodePort, filtered, outside, Ok(())),
        (FrontendKind::ExternalIp, filtered, None, Ok(())),
    ];
    for (kind, flags, client, expected) in cases {
        let frontend = key("192.0.2.10", 443);
        let mut fake = Fake::with(frontend, kind, Settings { flags, affinity_seconds: 0 });
        let range = Prefix::of(IpAddr::from([203, 0, 113, 0]), 24);
        // Another record's range admits nobody here.
        let others = Prefix::of(IpAddr::from([0, 0, 0, 0]), 0);
        fake.source_ranges = vec![(0, range), (1, others)];
        let entry = fake.frontends[&frontend];
        let found = Found { entry, record: &fake.services[0] };
        assert_eq!(admit(&fake, &found, || client), expected, "{kind:?} flags {flags} from {client:?}");
    }
}

#[test]
fn the_client_is_asked_for_only_where_there_are_ranges() {
    let frontend = key("192.0.2.10", 443);
    let fake = Fake::with(frontend, FrontendKind::LoadBalancer, Settings::default());
    let found = Found { entry: fake.frontends[&frontend], record: &fake.services[0] };
    let asked = Cell::new(false);
    let admitted = admit(&fake, &found, || {
        asked.set(true);
        None
    });
    assert_eq!((admitted, asked.get()), (Ok(()), false));
}

/// A service with ten backends whose clients stay with theirs for ten seconds.
fn sticky() -> Fake {
    let settings = Settings { flags: 0, affinity_seconds: 10 };
    Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, settings)
}

#[test]
fn a_client_stays_with_its_backend_until_the_timeout() {
    let (fake, frontend) = (sticky(), key("10.96.0.1", 80));
    let (one, other) = (Client::Namespace(1), Client::Namespace(2));
    assert_eq!(fake.choose_for(&frontend, Source::Pod, one), Ok(0));
    fake.random.set(u32::MAX);
    fake.seconds.set(9);
    assert_eq!(fake.choose_for(&frontend, Source::Pod, one), Ok(0), "and refreshes");
    assert_eq!(fake.choose_for(&frontend, Source::Pod, other), Ok(18), "another client is free");
    fake.seconds.set(18);
    assert_eq!(fake.choose_for(&frontend, Source::Pod, one), Ok(0), "nine seconds after the last one");
    fake.seconds.set(28);
    assert_eq!(fake.choose_for(&frontend, Source::Pod, one), Ok(18), "ten seconds are over");
}

#[test]
fn an_affine_backend_counts_only_within_the_set_that_applies() {
    let (mut fake, frontend) = (sticky(), key("10.96.0.1", 80));
    assert_eq!(fake.choose(&frontend, Source::Pod), Ok(0));
    // Its backend leaves, others move to other slots: slots 6 to 14 hold ids 2 to 18.
    let settings = fake.services[0].settings;
    fake.services[0] = ServiceRecord::new(1, settings, Range { first: 6, count: 9 }, Range::EMPTY);
    assert_eq!(fake.choose(&frontend, Source::Pod), Ok(2));
    // Then it comes back: the client stays with the one that it has now, wherever it stands.
    fake.services[0] = ServiceRecord::new(1, settings, Range { first: 5, count: 10 }, Range::EMPTY);
    assert_eq!(fake.choose(&frontend, Source::Pod), Ok(2));
}

#[test]
fn a_client_has_a_backend_in_each_set_and_one_if_the_sets_allow_it() {
    let (mut fake, inside, outside) = (sticky(), key("10.96.0.1", 80), key("198.51.100.1", 80));
    fake.frontends.insert(outside, FrontendEntry::new(&outside, FrontendKind::ExternalIp, 0));
    fake.services[0].settings.flags = flags::INTERNAL_LOCAL;
    // No backend is in both sets: in turns, the client keeps the one of each.
    for random in [0, u32::MAX, 0] {
        fake.random.set(random);
        assert_eq!(fake.choose(&inside, Source::Pod), Ok(100));
        assert_eq!(fake.choose(&outside, Source::Pod), Ok(0));
    }
    // The one it had in the cluster set has left; the one of the other set has joined.
    let record = fake.services[0];
    fake.services[0].cluster = Range { first: 10, count: 6 };
    assert_eq!(fake.choose(&outside, Source::Pod), Ok(100));
    fake.services[0] = record;
    // The local set lies in the cluster set: what the client has there serves both frontends.
    let settings = fake.services[0].settings;
    fake.services[0] =
        ServiceRecord::new(2, settings, Range { first: 5, count: 10 }, Range { first: 12, count: 1 });
    assert_eq!(fake.choose(&inside, Source::Pod), Ok(14));
    assert_eq!(fake.choose(&outside, Source::Pod), Ok(14));
}

#[test]
fn affinity_switched_off_spreads_again() {
    let (mut fake, frontend) = (sticky(), key("10.96.0.1", 80));
    assert_eq!(fake.choose(&frontend, Source::Pod), Ok(0));
    fake.random.set(u32::MAX);
    fake.services[0].settings.affinity_seconds = 0;
    assert_eq!(fake.choose(&frontend, Source::Pod), Ok(18));
}

#[test]
fn broken_tables_are_a_reason_and_not_a_wrong_backend() {
    let mut fake = Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, Settings::default());
    fake.backends.truncate(3);
    assert_eq!(fake.choose(&key("10.96.0.1", 80), Source::Pod), Err(Reason::BrokenTables));
    fake.services.clear();
    assert_eq!(fake.choose(&key("10.96.0.1", 80), Source::Pod), Err(Reason::BrokenTables));
}

proptest! {
    #[test]
    fn reselect_finds_exactly_what_is_in_the_set(
        ids in prop::collection::btree_set(0_u32..500, 0..64),
        first in 0_u32..32,
        wanted in 0_u32..500,
        hint in 0_u32..128,
    ) {
        let mut fake = Fake::with(key("10.96.0.1", 80), FrontendKind::ClusterIp, Settings::default());
        fake.backends = vec![backend(wanted); first as usize];
        fake.backends.extend(ids.iter().map(|id| backend(*id)));
        fake.backends.push(backend(wanted));
        let range = Range { first, count: ids.len() as u32 };
        fake.services[0] = ServiceRecord::new(1, Settings::default(), range, Range::EMPTY);
        let found = find(&fake, &key("10.96.0.1", 80), || Source::Pod);
        prop_assert!(found.is_ok());
        if let Ok(found) = found {
            let again = reselect(&fake, &found, wanted, hint);
            prop_assert_eq!(again.is_some(), ids.contains(&wanted));
            if let Some(selection) = again {
                prop_assert_eq!(selection.backend.id, wanted);
                prop_assert!(range.contains(selection.slot));
            }
        }
    }
}

/// A service whose table leads from position `i` of 100 to slot `5 + i % 10`.
fn with_table(maglev_flags: u32) -> Fake {
    let settings = Settings { flags: maglev_flags, affinity_seconds: 0 };
    let mut fake = Fake::with(key("198.51.100.1", 80), FrontendKind::LoadBalancer, settings);
    fake.maglev = vec![999; 7];
    fake.maglev.extend((0..100).map(|position| 5 + position % 10));
    fake.services[0].maglev = Range { first: 7, count: 100 };
    fake
}

fn from_outside(fake: &Fake, client: &str, port: u16) -> Result<u32, Reason> {
    let found = find(fake, &key("198.51.100.1", 80), || Source::Outside)?;
    let source = SocketAddress::new(address(client), Port::new(port));
    select_for_packet(fake, &found, &source, true).map(|selection| selection.slot)
}

#[test]
fn a_maglev_table_gives_a_client_the_same_backend_whatever_chance_says() {
    let fake = with_table(flags::MAGLEV_OUTSIDE);
    let mut slots = std::collections::BTreeSet::new();
    for port in 40_000..40_100 {
        let first = from_outside(&fake, "192.0.2.1", port);
        fake.random.set(u32::MAX);
        assert_eq!(from_outside(&fake, "192.0.2.1", port), first, "{port}");
        fake.random.set(0);
        slots.insert(first.unwrap());
    }
    assert_eq!(slots, (5..15).collect(), "clients are spread over all");
}

#[test]
fn sockets_and_packets_use_the_table_only_where_their_flag_is_set() {
    for (flags, outside, by_table) in [
        (0, true, false),
        (0, false, false),
        (flags::MAGLEV_OUTSIDE, true, true),
        (flags::MAGLEV_OUTSIDE, false, false),
        (flags::MAGLEV_SOCKETS, true, false),
        (flags::MAGLEV_SOCKETS, false, true),
    ] {
        let fake = with_table(flags);
        let source = if outside { Source::Outside } else { Source::Pod };
        let choose = |random| {
            fake.random.set(random);
            fake.choose_for(&key("198.51.100.1", 80), source, Client::Namespace(7)).unwrap()
        };
        assert_eq!(choose(0) == choose(u32::MAX), by_table, "{flags} {outside}");
    }
}

#[test]
fn a_table_of_another_set_is_not_used() {
    let mut fake = with_table(flags::MAGLEV_OUTSIDE);
    let set = Range { first: 15, count: 1 };
    for (cluster, table) in [
        // The set has been switched, the table not yet.
        (set, Range { first: 7, count: 100 }),
        (set, Range::EMPTY),
        (set, Range { first: 0, count: 7 }),
        // Beyond the map.
        (set, Range { first: u32::MAX, count: 100 }),
    ] {
        fake.services[0].cluster = cluster;
        fake.services[0].maglev = table;
        assert_eq!(from_outside(&fake, "192.0.2.1", 40_000), Ok(15), "{table:?}");
    }
    fake.services[0].cluster = Range::EMPTY;
    assert_eq!(from_outside(&fake, "192.0.2.1", 40_000), Err(Reason::NoBackends));
}

#[test]
fn session_affinity_comes_before_the_table_and_remembers_what_it_gave() {
    let fake = with_table(flags::MAGLEV_OUTSIDE);
    let mut other = with_table(flags::MAGLEV_OUTSIDE);
    other.services[0].settings.affinity_seconds = 10;
    let given = from_outside(&fake, "192.0.2.1", 40_000);
    assert_eq!(from_outside(&other, "192.0.2.1", 40_000), given, "the first connection asks the table");
    for port in 40_001..40_020 {
        assert_eq!(from_outside(&other, "192.0.2.1", port), given, "{port}");
    }
}
