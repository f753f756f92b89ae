use std::collections::BTreeMap;

use super::*;
use crate::model::{Conditions, Endpoint, EndpointPort, ObjectName, Protocol};

fn context() -> Context {
    Context {
        node_name: "node-1".into(),
        zone: None,
        external_ips: true,
        algorithm: crate::resolve::DefaultAlgorithm::default(),
    }
}

fn service(cluster_ips: &[&str]) -> Service {
    Service {
        name: ObjectName::new("default", "web"),
        created: None,
        labels: BTreeMap::new(),
        service_type: ServiceType::LoadBalancer,
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        headless: false,
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        ports: Vec::new(),
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Local,
        source_ranges: Vec::new(),
        health_check_node_port: Some(32_000),
        algorithm: None,
    }
}

/// A slice with this many ports; an endpoint is written `IP STATE NODE`.
fn slice(ports: usize, endpoints: &[&str]) -> EndpointSlice {
    let endpoint = |text: &&str| {
        let words: Vec<_> = text.split(' ').collect();
        let conditions = match words[1] {
            "ready" => Conditions::default(),
            "terminating" => Conditions { ready: false, serving: true, terminating: true },
            "unready" => Conditions { ready: false, serving: false, terminating: false },
            other => panic!("{other}"),
        };
        Endpoint {
            address: words[0].parse().unwrap(),
            conditions,
            node: Some(words[2].into()),
            zone_hints: Vec::new(),
            node_hints: Vec::new(),
        }
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    let port = |number| EndpointPort { name: "any".into(), protocol: Protocol::Tcp, port: number };
    EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: "web".into(),
        family: Family::of(&endpoints[0].address),
        ports: (1..=ports as u16).map(port).collect(),
        endpoints,
    }
}

/// What clients of the node's IPv4 and of its IPv6 address are told.
fn told(service: &Service, slices: &[EndpointSlice]) -> Option<(u32, u32)> {
    let check = resolve(service, slices, &context())?;
    assert_eq!(check.port, 32_000);
    let told = check.local_endpoints;
    Some((told.seen_from(Family::V4), told.seen_from(Family::V6)))
}

#[test]
fn only_a_load_balancer_with_the_local_policy_and_a_port_has_a_health_check() {
    let good = service(&["10.96.0.1"]);
    assert_eq!(told(&good, &[]), Some((0, 0)));
    let changes: [fn(&mut Service); 6] = [
        |service| service.service_type = ServiceType::NodePort,
        |service| service.external_policy = TrafficPolicy::Cluster,
        |service| service.health_check_node_port = None,
        |service| service.headless = true,
        |service| service.cluster_ips.clear(),
        |service| drop(service.labels.insert(frontends::PROXY_NAME_LABEL.to_owned(), "other".to_owned())),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut service = good.clone();
        change(&mut service);
        assert_eq!(resolve(&service, &[], &context()), None, "change {number}");
    }
}

#[test]
fn ready_endpoints_of_this_node_count_once_for_each_address() {
    let service = service(&["10.96.0.1"]);
    for (endpoints, expected) in [
        (vec!["10.0.0.1 ready node-1"], 1),
        (vec!["10.0.0.1 ready node-2"], 0),
        (vec!["10.0.0.1 unready node-1"], 0),
        (vec!["10.0.0.1 terminating node-1"], 0),
        (vec!["10.0.0.1 terminating node-1", "10.0.0.2 ready node-1", "10.0.0.3 ready node-1"], 2),
        (vec!["10.0.0.1 ready node-1", "10.0.0.1 ready node-1"], 1),
    ] {
        for ports in [1, 3] {
            let told = told(&service, &[slice(ports, &endpoints)]);
            assert_eq!(told, Some((expected, expected)), "{endpoints:?} {ports}");
        }
        assert_eq!(told(&service, &[slice(0, &endpoints)]), Some((0, 0)), "without ports nothing serves");
    }
    let twice = [slice(1, &["10.0.0.1 unready node-1"]), slice(1, &["10.0.0.1 ready node-1"])];
    assert_eq!(told(&service, &twice), Some((1, 1)));
}

#[test]
fn each_family_tells_of_its_own_endpoints_where_the_service_has_it() {
    let slices = [
        slice(1, &["10.0.0.1 ready node-1", "10.0.0.2 ready node-1"]),
        slice(1, &["fd00::1 ready node-1", "fd00::2 terminating node-1"]),
    ];
    for (cluster_ips, expected) in
        [(vec!["10.96.0.1", "fd00:96::1"], (2, 1)), (vec!["10.96.0.1"], (2, 2)), (vec!["fd00:96::1"], (1, 1))]
    {
        assert_eq!(told(&service(&cluster_ips), &slices), Some(expected), "{cluster_ips:?}");
    }
}
