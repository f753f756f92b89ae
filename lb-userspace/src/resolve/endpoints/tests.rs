use std::sync::Arc;

use super::*;
use crate::model::{EndpointPort, ObjectName, Protocol};

fn context() -> Context {
    Context {
        node_name: "node-1".into(),
        zone: None,
        external_ips: true,
        algorithm: crate::resolve::DefaultAlgorithm::default(),
    }
}

fn port(name: &str) -> PortSpec {
    PortSpec { name: name.into(), protocol: Protocol::Tcp, family: Family::V4, frontends: Vec::new() }
}

/// An endpoint: `IP STATE [NODE]`.
fn endpoint(text: &str) -> Endpoint {
    let mut words = text.split(' ');
    let address = words.next().unwrap().parse().unwrap();
    let conditions = match words.next().unwrap() {
        "ready" => Conditions::default(),
        "terminating" => Conditions { ready: false, serving: true, terminating: true },
        "gone" => Conditions { ready: false, serving: false, terminating: true },
        "unready" => Conditions { ready: false, serving: false, terminating: false },
        "published" => Conditions { ready: true, serving: false, terminating: true },
        other => panic!("{other}"),
    };
    let node = words.next().map(Arc::from);
    Endpoint { address, conditions, node, zone_hints: Vec::new(), node_hints: Vec::new() }
}

fn slice(name: &str, endpoints: &[&str]) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("default", name),
        service: "web".into(),
        family: Family::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
    }
}

fn lines(slices: &[EndpointSlice]) -> Vec<String> {
    let mut problems = Vec::new();
    let endpoints = resolve(&port("http"), slices, &context(), &mut problems);
    let line = |e: &ResolvedEndpoint<'_>| {
        let star = if e.local { "*" } else { "" };
        format!("{}{star} {} | {} | {}", e.address, e.slice.name.name, e.cluster.name(), e.local_set.name())
    };
    endpoints.iter().map(line).chain(problems.iter().map(ToString::to_string)).collect()
}

#[test]
fn each_endpoint_gets_its_reason_in_both_sets() {
    let slices = [slice(
        "a",
        &["10.0.0.4 ready", "10.0.0.1 ready node-1", "10.0.0.2 terminating node-1", "10.0.0.3 gone node-2"],
    )];
    assert_eq!(
        lines(&slices),
        [
            "10.0.0.1:8080* a | used: ready | used: ready",
            "10.0.0.2:8080* a | unused: terminating, and others are ready | unused: terminating, and others are ready",
            "10.0.0.3:8080 a | unused: not ready | unused: not ready",
            "10.0.0.4:8080 a | used: ready | unused: on another node",
        ]
    );
}

#[test]
fn the_conditions_of_publish_not_ready_addresses_count_as_ready() {
    assert_eq!(
        lines(&[slice("a", &["10.0.0.1 published"])]),
        ["10.0.0.1:8080 a | used: ready | unused: on another node"]
    );
}

#[test]
fn a_duplicate_counts_once_in_its_best_state() {
    for (first, second, winner) in [
        ("10.0.0.1 unready", "10.0.0.1 ready", "b"),
        ("10.0.0.1 unready", "10.0.0.1 terminating", "b"),
        ("10.0.0.1 terminating node-1", "10.0.0.1 ready", "b"),
        ("10.0.0.1 ready", "10.0.0.1 terminating", "a"),
        ("10.0.0.1 ready", "10.0.0.1 ready node-1", "b"),
        ("10.0.0.1 ready node-1", "10.0.0.1 ready", "a"),
        ("10.0.0.1 ready", "10.0.0.1 ready", "a"),
    ] {
        let slices = [slice("a", &[first]), slice("b", &[second])];
        let mut problems = Vec::new();
        let endpoints = resolve(&port("http"), &slices, &context(), &mut problems);
        let used: Vec<_> = endpoints.iter().filter(|e| e.cluster.is_used()).collect();
        assert_eq!(used.len(), 1, "{first}, {second}");
        assert_eq!(&*used[0].slice.name.name, winner, "{first}, {second}");
        let other = endpoints.iter().find(|e| !e.cluster.is_used()).unwrap();
        assert_eq!((other.cluster, other.local_set), (Verdict::Duplicate, Verdict::Duplicate));
    }
}

#[test]
fn a_slice_port_belongs_to_the_port_of_its_name_protocol_and_family() {
    let mut other_name = slice("name", &["10.0.0.1 ready"]);
    other_name.ports[0].name = "metrics".into();
    let mut other_protocol = slice("protocol", &["10.0.0.2 ready"]);
    other_protocol.ports[0].protocol = Protocol::Udp;
    let mut other_family = slice("family", &["fd00::3 ready"]);
    other_family.family = Family::V6;
    let mut several = slice("several", &["10.0.0.4 ready"]);
    several.ports.insert(0, EndpointPort { name: "metrics".into(), protocol: Protocol::Tcp, port: 9090 });
    assert_eq!(
        lines(&[other_name, other_protocol, other_family, several]),
        ["10.0.0.4:8080 several | used: ready | unused: on another node"]
    );
}

#[test]
fn an_address_of_the_wrong_family_is_named_and_the_others_stay() {
    assert_eq!(
        lines(&[slice("a", &["fd00::1 ready", "10.0.0.1 ready", "0.0.0.0 ready"])]),
        [
            "10.0.0.1:8080 a | used: ready | unused: on another node",
            "EndpointSlice default/a: endpoints[0].addresses[0]: fd00::1 is not of the slice's address type: \
             the endpoint is ignored",
            "EndpointSlice default/a: endpoints[2].addresses[0]: 0.0.0.0 is no address of an endpoint: it is ignored",
        ]
    );
}

#[test]
fn a_v4_mapped_address_is_the_v4_address() {
    assert_eq!(
        lines(&[slice("a", &["::ffff:10.0.0.1 ready"])]),
        ["10.0.0.1:8080 a | used: ready | unused: on another node"]
    );
}
