//! The decision on tables that were read back, asked from every side.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    address::{Address, Port, Protocol, SocketAddress},
    affinity::{AffinityKey, AffinityValue, Client},
    backend::Backend,
    config::NodeAddress,
    decide::{self, Found, Selection, Source, Tables as _},
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    outcome::Reason,
    prefix::Prefix,
    service::{ServiceRecord, Set},
    service_cidr::ServiceCidrs,
    source::SourceKey,
};
use lb_userspace::store::Tables;
use proptest::prelude::*;

use crate::model::{Answer, Model, Place};

/// All that is asked for: what Services, nodes and nobody stands at.
const ADDRESSES: [&str; 22] = [
    "10.96.0.1",
    "10.96.0.2",
    "10.96.0.3",
    "fd00:96::1",
    "192.0.2.1",
    "192.0.2.2",
    "fd00:2::1",
    "198.51.100.1",
    "198.51.100.2",
    "198.51.100.3",
    "fd00:51::1",
    "127.0.0.1",
    "::1",
    "172.18.0.2",
    "172.18.0.3",
    "172.18.0.4",
    "10.244.0.1",
    "fd00:18::2",
    "fe80::1",
    "203.0.113.1",
    "0.0.0.0",
    "::",
];
const PORTS: [u16; 5] = [80, 53, 30_080, 30_053, 81];

/// Tables, a clock, a die, and what clients were given.
struct Kernel<'a> {
    tables: &'a Tables,
    service_cidrs: ServiceCidrs,
    random: Cell<u32>,
    seconds: Cell<u32>,
    affinity: RefCell<BTreeMap<AffinityKey, AffinityValue>>,
}

impl decide::Tables for Kernel<'_> {
    type Affinity<'b>
        = RefMut<'b, AffinityValue>
    where
        Self: 'b;

    fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry> {
        if *key == FrontendKey::other_proxy(key.address()) {
            let foreign = self.tables.foreign.contains(&key.address());
            return foreign.then(|| FrontendEntry::new(key, FrontendKind::OtherProxy, 0));
        }
        self.tables.frontends.get(key).copied()
    }

    fn node_address(&self, address: &Address) -> Option<NodeAddress> {
        self.tables.node_addresses.get(address).copied()
    }

    fn service(&self, index: u32) -> Option<&ServiceRecord> {
        self.tables.services.get(&index)
    }

    fn backend(&self, slot: u32) -> Option<&Backend> {
        self.tables.backends.get(&slot)
    }

    fn service_cidrs(&self) -> Option<&ServiceCidrs> {
        Some(&self.service_cidrs)
    }

    /// None: with a table, a client would always get the same backend, and here all of a set are to be seen. That tables
    /// lead to their sets' slots is for [`lb_userspace::store::checked`].
    fn maglev(&self, _: u32) -> Option<u32> {
        None
    }

    fn is_admitted(&self, key: &SourceKey) -> bool {
        let is_in = |range: &Prefix| Prefix::new(key.address, range.bits()) == *range;
        self.tables.source_ranges.get(&key.record).is_some_and(|ranges| ranges.iter().any(is_in))
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

impl Kernel<'_> {
    fn answer(&self, source: Source, client: IpAddr, (ip, port, protocol): Place) -> Answer {
        let key = FrontendKey::new(Address::from(ip), Port::new(port), protocol);
        let found = match decide::find(self, &key, || source) {
            Ok(found) => found,
            Err(reason) => return refusal(reason),
        };
        if let Err(reason) = decide::admit(self, &found, || Some(client.into())) {
            return refusal(reason);
        }
        let range = |set| self.range(found.record, set).count;
        let mut set = BTreeSet::new();
        // Each draw of either set's size: whichever applies, all of it is seen.
        for count in [range(Set::Cluster), range(Set::Local)].map(|count| count.max(1)) {
            for position in 0..count {
                let first_of = (u64::from(position) << 32).div_ceil(u64::from(count));
                self.random.set(u32::try_from(first_of).unwrap());
                // A new client each time.
                match self.select(source, &found, [position, count]) {
                    Ok(selection) => set.insert(socket_address(selection.backend.socket_address())),
                    Err(reason) => return refusal(reason),
                };
            }
        }
        let affinity = self.seconds_of_affinity(source, &found, &set);
        Answer::Backends { set, affinity }
    }

    /// What a client gets that is no other's: a pod, or an address outside.
    fn select<'a>(
        &'a self,
        source: Source,
        found: &Found<'a>,
        [high, low]: [u32; 2],
    ) -> Result<Selection<'a>, Reason> {
        if source == Source::Outside {
            let address = Address::from_words([1, 0, high, low]);
            decide::select_for_packet(self, found, &SocketAddress::new(address, Port::new(1)), true)
        } else {
            decide::select(self, found, || Client::Namespace(u64::from(high) << 32 | u64::from(low)))
        }
    }

    /// How long a client keeps its backend, whatever is drawn: asked for at the times that matter.
    fn seconds_of_affinity(&self, source: Source, found: &Found<'_>, set: &BTreeSet<SocketAddr>) -> u32 {
        let seconds = self.settings(found.record).affinity_seconds;
        let connect = |random: u32, at: u32| {
            self.random.set(random);
            self.seconds.set(at);
            let selection = self.select(source, found, [u32::MAX; 2]).unwrap();
            socket_address(selection.backend.socket_address())
        };
        let first = connect(0, 0);
        if seconds != 0 {
            assert_eq!(connect(u32::MAX, seconds - 1), first, "kept until the timeout");
            // That connection has begun the time anew.
            assert_eq!(connect(u32::MAX, 2 * seconds - 2), first, "refreshed by a connection");
        }
        if set.len() > 1 {
            assert_ne!(connect(u32::MAX, 3 * seconds), first, "chosen anew after the timeout");
        }
        self.seconds.set(0);
        self.affinity.borrow_mut().clear();
        seconds
    }
}

fn refusal(reason: Reason) -> Answer {
    match reason {
        Reason::NotAService => Answer::Pass,
        Reason::NoBackends => Answer::Refused,
        Reason::NoLocalBackends => Answer::OnlyElsewhere,
        Reason::SourceNotAllowed => Answer::NotAdmitted,
        other => panic!("{other:?}"),
    }
}

fn socket_address(address: SocketAddress) -> SocketAddr {
    address.to_string().parse().unwrap()
}

/// Whether the tables answer as the model does, from everywhere and to everywhere.
pub(crate) fn agree(model: &Model, tables: &Tables) -> Result<(), TestCaseError> {
    let (random, seconds) = (Cell::new(0), Cell::new(0));
    let service_cidrs = ServiceCidrs::new(tables.service_cidrs.iter().copied());
    let kernel = Kernel { tables, service_cidrs, random, seconds, affinity: RefCell::default() };
    for ip in ADDRESSES.map(|text| text.parse::<IpAddr>().unwrap()) {
        for port in PORTS {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                // A process of the host, a pod, and clients outside: in one of the ranges and in none.
                for (source, client) in [
                    (Source::Host, "172.18.0.2"),
                    (Source::Pod, "10.1.0.1"),
                    (Source::Outside, "203.0.113.1"),
                    (Source::Outside, "198.51.100.77"),
                    (Source::Outside, "fd00:7::1"),
                ] {
                    let (client, place) = (client.parse().unwrap(), (ip, port, protocol));
                    let expected = model.answer(source, client, place);
                    let given = kernel.answer(source, client, place);
                    prop_assert_eq!(given, expected, "{:?} {:?} to {:?}", source, client, place);
                }
            }
        }
    }
    Ok(())
}
