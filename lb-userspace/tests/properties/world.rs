//! A small cluster in which names, addresses and ports collide often.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_userspace::model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Kind, Node, Object, ObjectName,
    Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};
use proptest::{collection::vec, option, prelude::*, sample::subsequence};

pub(crate) const NODE: &str = "node-1";

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Apply(Object),
    Delete(Kind, ObjectName),
    /// A relist: of the objects of a kind, those whose bit is set are left.
    Relist(Kind, u8),
    Interfaces(Vec<IpAddr>),
    Sync,
    Reclaim,
    Restart,
}

/// The objects that exist.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) objects: BTreeMap<(Kind, ObjectName), Object>,
    pub(crate) interfaces: Vec<IpAddr>,
}

impl World {
    /// Takes an action in; the change that a source would send.
    pub(crate) fn apply(&mut self, action: &Action) -> Option<Change> {
        match action {
            Action::Apply(object) => {
                self.objects.insert((object.kind(), object.name()), object.clone());
                Some(Change::Apply(object.clone()))
            }
            Action::Delete(kind, name) => {
                self.objects.remove(&(*kind, name.clone()));
                Some(Change::Delete(*kind, name.clone()))
            }
            Action::Relist(kind, mask) => {
                let mut position = 0;
                self.objects.retain(|(other, _), _| {
                    if other != kind {
                        return true;
                    }
                    position += 1;
                    mask & (1 << (position % 8)) != 0
                });
                Some(self.reset(*kind))
            }
            Action::Interfaces(addresses) => {
                self.interfaces.clone_from(addresses);
                Some(Change::Interfaces(addresses.clone()))
            }
            Action::Sync | Action::Reclaim | Action::Restart => None,
        }
    }

    /// What a source sends at its start.
    pub(crate) fn initial(&self) -> Vec<Change> {
        let resets = Kind::ALL.map(|kind| self.reset(kind));
        [Change::Interfaces(self.interfaces.clone())].into_iter().chain(resets).collect()
    }

    fn reset(&self, kind: Kind) -> Change {
        let of_kind = self.objects.iter().filter(|((other, _), _)| *other == kind);
        Change::Reset(kind, of_kind.map(|(_, object)| object.clone()).collect())
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Service> {
        self.objects.values().filter_map(|object| match object {
            Object::Service(service) => Some(service),
            _ => None,
        })
    }

    pub(crate) fn node(&self) -> Option<&Node> {
        self.objects.values().find_map(|object| match object {
            Object::Node(node) if *node.name == *NODE => Some(node),
            _ => None,
        })
    }

    /// The slices of a Service, or else its Endpoints object.
    pub(crate) fn endpoint_slices(&self, service: &ObjectName) -> Vec<EndpointSlice> {
        let belongs = |slice: &&EndpointSlice| {
            slice.name.namespace == service.namespace && slice.service == service.name
        };
        let slices = self.objects.values().filter_map(|object| match object {
            Object::EndpointSlice(slice) => Some(slice),
            _ => None,
        });
        let slices: Vec<_> = slices.filter(belongs).cloned().collect();
        match self.objects.get(&(Kind::Endpoints, service.clone())) {
            Some(Object::Endpoints(_, parts)) if slices.is_empty() => parts.clone(),
            _ => slices,
        }
    }
}

pub(crate) fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => service().prop_map(|service| Action::Apply(Object::Service(service))),
        8 => slice().prop_map(|slice| Action::Apply(Object::EndpointSlice(slice))),
        1 => (service_name(), vec(slice(), 0..2)).prop_map(endpoints_object),
        1 => node().prop_map(|node| Action::Apply(Object::Node(node))),
        2 => service_name().prop_map(|name| Action::Delete(Kind::Service, name)),
        2 => slice_name().prop_map(|name| Action::Delete(Kind::EndpointSlice, name)),
        1 => (kind(), any::<u8>()).prop_map(|(kind, mask)| Action::Relist(kind, mask)),
        1 => ips(&["127.0.0.1", "172.18.0.2", "10.244.0.1", "fd00:18::2"]).prop_map(Action::Interfaces),
        6 => Just(Action::Sync),
        1 => Just(Action::Reclaim),
        1 => Just(Action::Restart),
    ]
}

/// Two Services that claim the same addresses, and all their endpoints: any of the four changes, or several at once.
pub(crate) fn change_of_two_services() -> impl Strategy<Value = Vec<Action>> {
    let of = |name: &'static str| {
        (0..8u8, service(), slice()).prop_map(move |(what, service, slice)| {
            let name = ObjectName::new("default", name);
            let port = ServicePort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: service.ports.first().and_then(|port| port.node_port),
            };
            let slice = EndpointSlice { name: name.clone(), service: name.name.clone(), ..slice };
            let service = Service { name: name.clone(), ports: vec![port], ..service };
            let (service, slice) = (Object::Service(service), Object::EndpointSlice(slice));
            match what {
                0 => vec![Action::Delete(Kind::Service, name)],
                1 | 2 => vec![Action::Apply(service)],
                3 | 4 => vec![Action::Apply(slice)],
                _ => vec![Action::Apply(service), Action::Apply(slice)],
            }
        })
    };
    (of("a"), of("b")).prop_map(|(a, b)| [a, b].concat())
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL.to_vec())
}

fn service_name() -> impl Strategy<Value = ObjectName> {
    prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(|name| ObjectName::new("default", name))
}

fn slice_name() -> impl Strategy<Value = ObjectName> {
    prop::sample::select(vec!["s1", "s2", "s3", "s4", "s5"]).prop_map(|name| ObjectName::new("default", name))
}

fn ips(pool: &[&str]) -> impl Strategy<Value = Vec<IpAddr>> + use<> {
    let pool: Vec<IpAddr> = pool.iter().map(|ip| ip.parse().unwrap()).collect();
    let count = pool.len();
    subsequence(pool, 0..=count)
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![3 => Just(TrafficPolicy::Cluster), 1 => Just(TrafficPolicy::Local)]
}

fn service() -> impl Strategy<Value = Service> {
    let addresses = (
        ips(&["10.96.0.1", "10.96.0.2", "10.96.0.3", "fd00:96::1"]),
        ips(&["192.0.2.1", "192.0.2.2"]),
        ips(&["198.51.100.1", "192.0.2.2"]),
    );
    let policies = (policy(), policy(), option::weighted(0.2, 1..3u32));
    let rank = option::weighted(0.7, 0..3i64);
    let headless = prop::bool::weighted(0.05);
    (service_name(), rank, addresses, ports(), policies, headless, source_ranges()).prop_map(
        |(name, created, addresses, ports, policies, headless, source_ranges)| Service {
            name,
            created,
            labels: BTreeMap::new(),
            service_type: ServiceType::LoadBalancer,
            cluster_ips: addresses.0,
            headless,
            external_ips: addresses.1,
            ingress_ips: addresses.2,
            ports,
            affinity_seconds: policies.2,
            internal_policy: policies.0,
            external_policy: policies.1,
            source_ranges,
            health_check_node_port: None,
        },
    )
}

fn source_ranges() -> impl Strategy<Value = Vec<ipnet::IpNet>> {
    let ranges = ["10.0.0.0/8", "10.1.0.0/16", "203.0.113.0/24", "fd00::/8"];
    let ranges = ranges.map(|range| range.parse().unwrap()).to_vec();
    prop_oneof![3 => Just(Vec::new()), 2 => subsequence(ranges, 0..=4)]
}

fn ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let port = |(name, udp, port, node_port): (&str, bool, u16, Option<u16>)| ServicePort {
        name: name.into(),
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        port,
        node_port,
    };
    let name = prop::sample::select(vec!["http", "dns"]);
    let number = prop::sample::select(vec![80u16, 53]);
    let node_port = option::weighted(0.4, prop::sample::select(vec![30_080u16, 30_053]));
    vec((name, any::<bool>(), number, node_port).prop_map(port), 0..3)
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let family = prop_oneof![4 => Just(Family::V4), 1 => Just(Family::V6)];
    let service = prop::sample::select(vec!["a", "b", "c", "d"]);
    let ports = subsequence(vec![("http", Protocol::Tcp, 8080u16), ("dns", Protocol::Udp, 53)], 1..=2);
    (slice_name(), service, family, ports).prop_flat_map(|(name, service, family, ports)| {
        vec(endpoint(family), 0..5).prop_map(move |endpoints| EndpointSlice {
            name: name.clone(),
            service: service.into(),
            family,
            ports: ports
                .iter()
                .map(|(name, protocol, port)| EndpointPort {
                    name: (*name).into(),
                    protocol: *protocol,
                    port: *port,
                })
                .collect(),
            endpoints,
        })
    })
}

fn endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let host = 1..7u8;
    let conditions = prop_oneof![
        5 => Just(Conditions::default()),
        2 => Just(Conditions { ready: false, serving: true, terminating: true }),
        1 => Just(Conditions { ready: false, serving: false, terminating: false }),
    ];
    let node = option::weighted(0.8, prop::sample::select(vec![NODE, "node-2"]));
    let zones = option::weighted(0.3, prop::sample::select(vec!["zone-a", "zone-b"]));
    (host, conditions, node, zones).prop_map(move |(host, conditions, node, zone)| Endpoint {
        address: match family {
            Family::V4 => IpAddr::from([10, 0, 0, host]),
            Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)]),
        },
        conditions,
        node: node.map(Into::into),
        zone_hints: zone.into_iter().map(Into::into).collect(),
        node_hints: Vec::new(),
    })
}

fn endpoints_object((name, parts): (ObjectName, Vec<EndpointSlice>)) -> Action {
    let names: BTreeSet<_> = parts.iter().map(|part| part.name.clone()).collect();
    let distinct = names.into_iter().filter_map(|name| parts.iter().find(|part| part.name == name).cloned());
    let parts = distinct.map(|part| EndpointSlice { service: name.name.clone(), ..part }).collect();
    Action::Apply(Object::Endpoints(name, parts))
}

fn node() -> impl Strategy<Value = Node> {
    let name = prop_oneof![4 => Just(NODE), 1 => Just("node-2")];
    let zone = option::weighted(0.7, prop::sample::select(vec!["zone-a", "zone-b"]));
    (name, zone, ips(&["172.18.0.2", "172.18.0.3", "fd00:18::2"])).prop_map(|(name, zone, addresses)| Node {
        name: name.into(),
        zone: zone.map(Into::into),
        addresses,
    })
}
