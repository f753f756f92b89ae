//! A cluster of any size, as objects in memory.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::Arc,
};

use lb_userspace::model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Kind, Node, Object, ObjectName,
    Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

/// The node that the agent under test runs on.
pub(crate) const NODE: &str = "node-1";
/// Endpoints of each Service.
pub(crate) const ENDPOINTS: u32 = 10;

const PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;
/// Of the cluster's nodes, each with an equal share of the endpoints.
const NODES: u32 = 500;

/// The cluster addresses: `10.96.0.0/16`.
const SERVICES: u32 = 0x0a60_0000;
/// Addresses that are nobody's: `10.200.0.0/16`.
const NOBODY: u32 = 0x0ac8_0000;
/// The pods: `10.128.0.0/10`, sixteen addresses a Service.
const PODS: u32 = 0x0a80_0000;

/// Endpoints of the wide Service, and in each of its slices (what the EndpointSlice controller puts into one).
pub(crate) const WIDE: u32 = 1_000;
const WIDE_SLICE: u32 = 100;

/// All that the initial lists of a source hold.
pub(crate) fn initial(services: u32) -> Vec<Change> {
    lists((0..services).map(service), (0..services).map(|number| slice(number, 0)))
}

/// The same, but the Services from this number on have session affinity.
pub(crate) fn initial_affine(services: u32, affine_from: u32) -> Vec<Change> {
    let affinity = |number| (number >= affine_from).then_some(10_800);
    let service = |number| Service { affinity_seconds: affinity(number), ..service(number) };
    lists((0..services).map(service), (0..services).map(|number| slice(number, 0)))
}

/// The same over TCP and with node ports, on a node with this address.
pub(crate) fn initial_node_ports(services: u32, node: Ipv4Addr) -> Vec<Change> {
    let port = |number: u32| ServicePort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: PORT,
        node_port: Some(node_port(number)),
    };
    let service = |number| Service {
        service_type: ServiceType::NodePort,
        ports: vec![port(number)],
        ..service(number)
    };
    let slice = |number| EndpointSlice {
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: TARGET_PORT }],
        ..slice(number, 0)
    };
    let mut lists = lists((0..services).map(service), (0..services).map(slice));
    for change in &mut lists {
        if let Change::Reset(Kind::Node, nodes) = change {
            *nodes = vec![Object::Node(Node { addresses: vec![node.into()], ..self::node() })];
        }
    }
    lists.push(Change::Interfaces([node.into()].into()));
    lists
}

/// A Service's node port: any number will do that is not of the range for translated sources.
fn node_port(number: u32) -> u16 {
    (10_000 + number) as u16
}

/// Node ports of the Services, in an order in which no two neighbours share a cache line of any map.
pub(crate) fn node_ports(services: u32) -> impl Iterator<Item = u16> {
    scattered(services).map(node_port)
}

/// An address that is nobody's.
pub(crate) fn stranger(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(NOBODY + number)
}

/// One Service of many endpoints.
pub(crate) fn initial_wide() -> Vec<Change> {
    lists([service(0)], (0..WIDE / WIDE_SLICE).map(|number| wide_slice(number, 0)))
}

/// Each list once, as a source sends them first.
fn lists(
    services: impl IntoIterator<Item = Service>,
    slices: impl IntoIterator<Item = EndpointSlice>,
) -> Vec<Change> {
    let mut objects = BTreeMap::from([
        (Kind::Node, vec![Object::Node(node())]),
        (Kind::Service, services.into_iter().map(Object::Service).collect()),
        (Kind::EndpointSlice, slices.into_iter().map(Object::EndpointSlice).collect()),
    ]);
    Kind::ALL.map(|kind| Change::Reset(kind, objects.remove(&kind).unwrap_or_default())).into()
}

/// One endpoint of a Service is replaced by another, as when a pod is rescheduled; of each generation there is one.
pub(crate) fn replaced_endpoint(number: u32, generation: u32) -> Change {
    Change::Apply(Object::EndpointSlice(slice(number, generation)))
}

/// One endpoint of the wide Service is replaced by another.
pub(crate) fn replaced_wide_endpoint(generation: u32) -> Change {
    let number = generation % (WIDE / WIDE_SLICE);
    Change::Apply(Object::EndpointSlice(wide_slice(number, generation)))
}

/// The frontends of the Services of these numbers.
pub(crate) fn frontends_of(numbers: Range<u32>) -> Vec<SocketAddr> {
    numbers.map(|number| at(SERVICES + number, PORT)).collect()
}

/// The frontends, each once, in an order in which no two neighbours share a cache line of any map.
pub(crate) fn frontends(services: u32) -> Vec<SocketAddr> {
    scattered(services).map(|number| at(SERVICES + number, PORT)).collect()
}

/// As many addresses that are no frontends.
pub(crate) fn strangers(services: u32) -> Vec<SocketAddr> {
    scattered(services).map(|number| at(NOBODY + number, PORT)).collect()
}

/// Steps by a large prime meet each number once, if it does not divide the number of numbers.
pub(crate) fn scattered(numbers: u32) -> impl Iterator<Item = u32> {
    (0..u64::from(numbers)).map(move |step| (step * 7_919 % u64::from(numbers)) as u32)
}

fn service(number: u32) -> Service {
    Service {
        name: ObjectName::new("bench", name(number)),
        created: Some(1_700_000_000 + i64::from(number)),
        labels: [("app".to_owned(), name(number))].into(),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![at(SERVICES + number, PORT).ip()],
        headless: false,
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        ports: vec![ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: PORT, node_port: None }],
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        algorithm: None,
    }
}

fn slice(number: u32, generation: u32) -> EndpointSlice {
    // The last endpoint's address moves through the six that the Service has left.
    let last = ENDPOINTS - 1 + generation % (16 - ENDPOINTS + 1);
    let pods = (0..ENDPOINTS - 1).chain([last]);
    slice_of(number, "x2k9q", pods.map(|pod| (number * 16 + pod, number * ENDPOINTS + pod)))
}

/// A slice of the wide Service; its last endpoint is another in each generation.
fn wide_slice(number: u32, generation: u32) -> EndpointSlice {
    let first = number * WIDE_SLICE;
    let last = WIDE * (1 + generation) + first;
    let pods = (first..first + WIDE_SLICE - 1).chain([last]);
    slice_of(0, &format!("wide-{number}"), pods.map(|pod| (pod % (1 << 22), pod)))
}

/// A slice of a Service, with its pods: the number of the address, and of the node.
fn slice_of(service: u32, suffix: &str, pods: impl Iterator<Item = (u32, u32)>) -> EndpointSlice {
    let endpoints = pods.map(|(address, node)| Endpoint {
        address: at(PODS + address, TARGET_PORT).ip(),
        conditions: Conditions::default(),
        node: Some(Arc::from(format!("node-{}", node % NODES))),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    });
    EndpointSlice {
        name: ObjectName::new("bench", format!("{}-{suffix}", name(service))),
        service: name(service).into(),
        family: Family::V4,
        ports: vec![EndpointPort { name: "dns".into(), protocol: Protocol::Udp, port: TARGET_PORT }],
        endpoints: endpoints.collect(),
    }
}

fn node() -> Node {
    Node { name: NODE.into(), zone: None, addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))] }
}

fn name(number: u32) -> String {
    format!("service-{number}")
}

fn at(address: u32, port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from_bits(address), port))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_scattered_order_meets_each_number_once() {
        for numbers in [1, 10, 50_000] {
            assert_eq!(scattered(numbers).collect::<BTreeSet<_>>().len() as u32, numbers);
        }
    }

    #[test]
    fn each_generation_replaces_one_endpoint() {
        let addresses = |generation| -> BTreeSet<IpAddr> {
            slice(7, generation).endpoints.iter().map(|endpoint| endpoint.address).collect()
        };
        for generation in 0..20 {
            let (before, after) = (addresses(generation), addresses(generation + 1));
            assert_eq!(before.len() as u32, ENDPOINTS);
            assert_eq!(before.difference(&after).count(), 1);
        }
    }
}
