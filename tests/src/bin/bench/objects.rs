//! A cluster of any size, as objects in memory.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
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

/// All that the initial lists of a source hold.
pub(crate) fn initial(services: u32) -> Vec<Change> {
    let slices = (0..services).map(|number| Object::EndpointSlice(slice(number, 0))).collect();
    vec![
        Change::Reset(Kind::Node, vec![Object::Node(node())]),
        Change::Reset(Kind::Service, (0..services).map(|number| Object::Service(service(number))).collect()),
        Change::Reset(Kind::EndpointSlice, slices),
        Change::Reset(Kind::Endpoints, Vec::new()),
    ]
}

/// One endpoint of a Service is replaced by another, as when a pod is rescheduled; of each generation there is one.
pub(crate) fn replaced_endpoint(number: u32, generation: u32) -> Change {
    Change::Apply(Object::EndpointSlice(slice(number, generation)))
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
    }
}

fn slice(number: u32, generation: u32) -> EndpointSlice {
    // The last endpoint's address moves through the six that the Service has left.
    let last = ENDPOINTS - 1 + generation % (16 - ENDPOINTS + 1);
    let endpoints = (0..ENDPOINTS - 1).chain([last]).map(|endpoint| Endpoint {
        address: at(PODS + number * 16 + endpoint, TARGET_PORT).ip(),
        conditions: Conditions::default(),
        node: Some(Arc::from(format!("node-{}", (number * ENDPOINTS + endpoint) % NODES))),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    });
    EndpointSlice {
        name: ObjectName::new("bench", format!("{}-x2k9q", name(number))),
        service: name(number).into(),
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
