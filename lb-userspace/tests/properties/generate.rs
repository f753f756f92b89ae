//! Random objects and events. Small pools, so that everything collides with everything.

use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use lb_userspace::model::{Kind, ObjectName};
use proptest::{collection::vec, option, prelude::*, sample::select, sample::subsequence};

use crate::world::{Action, ApiObject, NODE, Operator};

/// Namespaces and names of Services.
const SERVICES: [(&str, &str); 5] =
    [("default", "a"), ("default", "b"), ("default", "c"), ("default", "d"), ("other", "a")];

pub(crate) fn operator() -> impl Strategy<Value = Operator> {
    let addresses = select(vec![
        "primary,localhost",
        "primary",
        "localhost",
        "all",
        "all,localhost",
        "172.18.0.0/16,fd00:18::/64",
    ]);
    (addresses, prop::bool::weighted(0.8))
        .prop_map(|(node_port_addresses, external_ips)| Operator { node_port_addresses, external_ips })
}

pub(crate) fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => service().prop_map(apply_service),
        8 => slice().prop_map(apply_slice),
        1 => endpoints_object().prop_map(|endpoints| Action::Apply(ApiObject::Endpoints(Box::new(endpoints)))),
        1 => node().prop_map(|node| Action::Apply(ApiObject::Node(Box::new(node)))),
        1 => service_name().prop_map(|name| Action::Delete(Kind::Service, name)),
        2 => slice_name().prop_map(|name| Action::Delete(Kind::EndpointSlice, name)),
        1 => (kind(), any::<u8>()).prop_map(|(kind, mask)| Action::Relist(kind, mask)),
        1 => subsequence(vec!["127.0.0.1", "::1", "172.18.0.2", "10.244.0.1", "fd00:18::2", "fe80::1"], 0..=6)
            .prop_map(Action::Interfaces),
        6 => Just(Action::Sync),
        1 => Just(Action::Reclaim),
        1 => Just(Action::Restart),
    ]
}

/// Two Services that claim the same addresses, and all their endpoints: any of the four changes, or several at once.
pub(crate) fn change_of_two_services() -> impl Strategy<Value = Vec<Action>> {
    let of = |name: &'static str| {
        (0..8u8, service(), slice()).prop_map(move |(what, mut service, mut slice)| {
            service.metadata.name = Some(name.to_owned());
            service.metadata.namespace = Some("default".to_owned());
            let spec = service.spec.get_or_insert_default();
            let node_port = spec.ports.iter().flatten().next().and_then(|port| port.node_port);
            let port = v1::ServicePort {
                name: Some("http".to_owned()),
                port: 80,
                node_port,
                ..v1::ServicePort::default()
            };
            spec.ports = Some(vec![port]);
            // No endpoint of both: who is led to the other's is seen.
            if name == "b" {
                for endpoint in slice.endpoints.iter_mut().flatten() {
                    let own =
                        |address: &String| address.replace("0.0.", "0.1.").replace("fd00::", "fd00:1::");
                    endpoint.addresses = endpoint.addresses.iter().map(own).collect();
                }
            }
            slice.metadata.name = Some(name.to_owned());
            slice.metadata.namespace = Some("default".to_owned());
            slice
                .metadata
                .labels
                .get_or_insert_default()
                .insert("kubernetes.io/service-name".to_owned(), name.to_owned());
            match what {
                0 => vec![Action::Delete(Kind::Service, ObjectName::new("default", name))],
                1 | 2 => vec![apply_service(service)],
                3 | 4 => vec![apply_slice(slice)],
                _ => vec![apply_service(service), apply_slice(slice)],
            }
        })
    };
    (of("a"), of("b")).prop_map(|(a, b)| [a, b].concat())
}

fn apply_service(service: v1::Service) -> Action {
    Action::Apply(ApiObject::Service(Box::new(service)))
}

fn apply_slice(slice: discovery::EndpointSlice) -> Action {
    Action::Apply(ApiObject::Slice(Box::new(slice)))
}

fn kind() -> impl Strategy<Value = Kind> {
    select(Kind::ALL.to_vec())
}

fn service_name() -> impl Strategy<Value = ObjectName> {
    select(SERVICES.to_vec()).prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

fn slice_name() -> impl Strategy<Value = ObjectName> {
    let names = [("default", "s1"), ("default", "s2"), ("default", "s3"), ("default", "s4"), ("other", "s1")];
    select(names.to_vec()).prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

/// Mostly nothing, sometimes one of these.
fn rarely(words: &'static [&'static str]) -> impl Strategy<Value = Option<String>> {
    option::weighted(0.1, select(words).prop_map(str::to_owned))
}

fn some_of(texts: &'static [&'static str]) -> impl Strategy<Value = Option<Vec<String>>> {
    subsequence(texts, 0..=texts.len())
        .prop_map(|texts| (!texts.is_empty()).then(|| texts.into_iter().map(str::to_owned).collect()))
}

fn policy() -> impl Strategy<Value = Option<String>> {
    option::weighted(0.5, select(vec!["Cluster", "Local", "Local", ""]).prop_map(str::to_owned))
}

fn service() -> impl Strategy<Value = v1::Service> {
    let meta = (
        service_name(),
        option::weighted(0.7, 0..3i64),
        rarely(&["service.kubernetes.io/service-proxy-name"]),
        option::weighted(0.3, select(vec!["maglev", "random", "best"])),
    );
    let service_type = prop_oneof![
        6 => Just(Some("LoadBalancer")), 2 => Just(Some("NodePort")), 2 => Just(Some("ClusterIP")),
        1 => Just(Some("ExternalName")), 1 => Just(None), 1 => Just(Some("Anycast")),
    ];
    let addresses = (cluster_ips(), external_ips(), (ingress(), source_ranges()));
    let affinity =
        prop_oneof![8 => Just(None), 1 => Just(Some(None)), 4 => (0..4i32).prop_map(|s| Some(Some(s)))];
    (meta, service_type, addresses, vec(port(), 0..4), (policy(), policy(), affinity)).prop_map(
        |(
            (name, created, proxy, algorithm),
            service_type,
            (cluster, external, (ingress, source_ranges)),
            ports,
            (internal, outside, affinity),
        )| {
            let affinity_config = affinity.flatten().map(|seconds| v1::SessionAffinityConfig {
                client_ip: Some(v1::ClientIPConfig { timeout_seconds: Some(seconds) }),
            });
            v1::Service {
                metadata: ObjectMeta {
                    creation_timestamp: created.map(|second| Time(Timestamp::from_second(second).unwrap())),
                    labels: proxy.map(|label| [(label, "x".to_owned())].into()),
                    annotations: algorithm
                        .map(|name| [("sockeye.io/algorithm".to_owned(), name.to_owned())].into()),
                    ..metadata(&name)
                },
                spec: Some(v1::ServiceSpec {
                    type_: service_type.map(str::to_owned),
                    cluster_ip: cluster.as_ref().and_then(|ips| ips.first().cloned()),
                    cluster_ips: cluster,
                    external_ips: external,
                    load_balancer_source_ranges: source_ranges,
                    ports: Some(ports),
                    session_affinity: affinity.map(|_| "ClientIP".to_owned()),
                    session_affinity_config: affinity_config,
                    internal_traffic_policy: internal,
                    external_traffic_policy: outside,
                    publish_not_ready_addresses: Some(created == Some(1)),
                    ..v1::ServiceSpec::default()
                }),
                status: Some(v1::ServiceStatus {
                    load_balancer: Some(v1::LoadBalancerStatus { ingress: Some(ingress) }),
                    ..v1::ServiceStatus::default()
                }),
            }
        },
    )
}

fn metadata(name: &ObjectName) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        ..ObjectMeta::default()
    }
}

fn cluster_ips() -> impl Strategy<Value = Option<Vec<String>>> {
    let listed =
        some_of(&["10.96.0.1", "10.96.000.02", "::ffff:10.96.0.1", "fd00:96::1", "10.96.0.3", "10.96.0.300"]);
    prop_oneof![12 => listed, 1 => Just(Some(vec!["None".to_owned()]))]
}

fn source_ranges() -> impl Strategy<Value = Option<Vec<String>>> {
    let listed = some_of(&["10.0.0.0/8", " 10.1.0.0/16", "203.0.113.7/24", "fd00::/8", "everybody"]);
    prop_oneof![3 => Just(None), 2 => listed]
}

fn external_ips() -> impl Strategy<Value = Option<Vec<String>>> {
    some_of(&["192.0.2.1", "192.0.2.02", "10.96.0.1", "fd00:2::1", "127.0.0.1", "0.0.0.0", "elsewhere"])
}

fn ingress() -> impl Strategy<Value = Vec<v1::LoadBalancerIngress>> {
    let ingress = |(ip, mode): (&str, Option<&str>)| v1::LoadBalancerIngress {
        ip: Some(ip.to_owned()),
        ip_mode: mode.map(str::to_owned),
        hostname: ip.is_empty().then(|| "lb.example".to_owned()),
        ..v1::LoadBalancerIngress::default()
    };
    let pool = vec![
        ("198.51.100.1", None),
        ("192.0.2.2", Some("VIP")),
        ("198.51.100.2", Some("Proxy")),
        ("fd00:51::1", Some("VIP")),
        ("198.51.100.3", Some("Tunnel")),
        ("", None),
    ];
    subsequence(pool, 0..=6).prop_map(move |chosen| chosen.into_iter().map(ingress).collect())
}

fn port() -> impl Strategy<Value = v1::ServicePort> {
    let protocol = prop_oneof![
        3 => Just(None), 3 => Just(Some("TCP")), 4 => Just(Some("UDP")), 1 => Just(Some("SCTP")), 1 => Just(Some("QUIC")),
    ];
    let name = select(vec![Some("http"), Some("dns"), Some(""), None]);
    let node_port = option::weighted(0.4, select(vec![30_080, 30_080, 30_053, 0, 65_536]));
    (name, protocol, select(vec![80, 80, 53, 53, 0, 65_536]), node_port).prop_map(
        |(name, protocol, port, node_port)| v1::ServicePort {
            name: name.map(str::to_owned),
            protocol: protocol.map(str::to_owned),
            port,
            node_port,
            ..v1::ServicePort::default()
        },
    )
}

fn slice() -> impl Strategy<Value = discovery::EndpointSlice> {
    let labels = (
        option::weighted(0.95, select(vec!["a", "a", "b", "c", "d"])),
        rarely(&["service.kubernetes.io/headless"]),
        option::of(select(vec!["endpointslice-controller.k8s.io", "mesh.example"])),
    );
    let address_type =
        prop_oneof![8 => Just("IPv4"), 3 => Just("IPv6"), 1 => Just("FQDN"), 1 => Just("IPv5")];
    let port = |(name, protocol, port): (Option<&str>, Option<&str>, Option<i32>)| discovery::EndpointPort {
        name: name.map(str::to_owned),
        protocol: protocol.map(str::to_owned),
        port,
        ..discovery::EndpointPort::default()
    };
    let ports = vec![
        (Some("http"), Some("TCP"), Some(8080)),
        (Some("dns"), Some("UDP"), Some(53)),
        (None, None, Some(9090)),
        (Some("http"), Some("TCP"), Some(0)),
        (Some("dns"), Some("UDP"), None),
        (Some("http"), None, Some(8081)),
    ];
    (slice_name(), labels, address_type, subsequence(ports, 1..=6)).prop_flat_map(
        move |(name, labels, address_type, ports)| {
            vec(endpoint(address_type == "IPv6"), 0..5).prop_map(move |endpoints| {
                let (service, headless, manager) = labels.clone();
                let labels = [
                    service.map(|service| ("kubernetes.io/service-name".to_owned(), service.to_owned())),
                    headless.map(|label| (label, String::new())),
                    manager.map(|manager| {
                        ("endpointslice.kubernetes.io/managed-by".to_owned(), manager.to_owned())
                    }),
                ];
                discovery::EndpointSlice {
                    metadata: ObjectMeta {
                        labels: Some(labels.into_iter().flatten().collect()),
                        ..metadata(&name)
                    },
                    address_type: address_type.to_owned(),
                    ports: Some(ports.iter().copied().map(port).collect()),
                    endpoints: Some(endpoints),
                }
            })
        },
    )
}

fn endpoint(six: bool) -> impl Strategy<Value = discovery::Endpoint> {
    let address = (1..6u8, 0..24u8).prop_map(move |(host, form)| match (form, six) {
        (0, _) => "0.0.0.0".to_owned(),
        (1, _) => "web.example".to_owned(),
        (2, false) | (3.., true) => format!("fd00::{host}"),
        (3 | 4, false) => format!("010.0.0.00{host}"),
        (5 | 2, _) => format!("::ffff:10.0.0.{host}"),
        _ => format!("10.0.0.{host}"),
    });
    let condition = || prop_oneof![4 => Just(None), 2 => Just(Some(true)), 3 => Just(Some(false))];
    let conditions = option::weighted(0.6, (condition(), condition(), condition()));
    let node = option::weighted(0.8, select(vec![NODE, "node-2", ""]));
    let names = |pool: &'static [&'static str]| {
        // Mostly hinted: one endpoint without a hint disables them all.
        prop_oneof![1 => Just(Vec::new()), 2 => subsequence(pool, 1..=pool.len())]
    };
    let hints = prop_oneof![
        2 => Just((Vec::new(), Vec::new())),
        1 => (names(&["zone-a", "zone-b"]), Just(Vec::new())),
        1 => (names(&["zone-a", "zone-b"]), names(&[NODE, "node-2"])),
    ];
    (vec(address, 1..3), conditions, node, hints).prop_map(|(addresses, conditions, node, (zones, nodes))| {
        let for_zones = zones.iter().map(|zone| discovery::ForZone { name: (*zone).to_owned() }).collect();
        let for_nodes = nodes.iter().map(|node| discovery::ForNode { name: (*node).to_owned() }).collect();
        discovery::Endpoint {
            addresses,
            conditions: conditions.map(|(ready, serving, terminating)| discovery::EndpointConditions {
                ready,
                serving,
                terminating,
            }),
            node_name: node.map(str::to_owned),
            hints: Some(discovery::EndpointHints { for_zones: Some(for_zones), for_nodes: Some(for_nodes) }),
            ..discovery::Endpoint::default()
        }
    })
}

fn endpoints_object() -> impl Strategy<Value = v1::Endpoints> {
    let label = option::weighted(
        0.2,
        select(vec![
            ("endpointslice.kubernetes.io/skip-mirror", "true"),
            ("endpointslice.kubernetes.io/skip-mirror", "false"),
            ("service.kubernetes.io/headless", ""),
        ]),
    );
    let addresses = || {
        vec(
            (
                select(vec!["10.0.0.1", "10.0.0.7", "fd00::7", "10.0.0.256"]),
                option::of(Just(NODE.to_owned())),
            ),
            0..3,
        )
        .prop_map(|listed| {
            let address = |(ip, node_name): (&str, Option<String>)| v1::EndpointAddress {
                ip: ip.to_owned(),
                node_name,
                ..v1::EndpointAddress::default()
            };
            Some(listed.into_iter().map(address).collect())
        })
    };
    let ports = subsequence(vec![(Some("http"), 8080), (None, 9090), (Some("http"), 0)], 0..=3);
    let subset = (addresses(), addresses(), ports).prop_map(|(addresses, not_ready_addresses, ports)| {
        let port = |(name, port): (Option<&str>, i32)| v1::EndpointPort {
            name: name.map(str::to_owned),
            port,
            ..v1::EndpointPort::default()
        };
        v1::EndpointSubset {
            addresses,
            not_ready_addresses,
            ports: Some(ports.into_iter().map(port).collect()),
        }
    });
    (service_name(), label, vec(subset, 0..3)).prop_map(|(name, label, subsets)| v1::Endpoints {
        metadata: ObjectMeta {
            labels: label.map(|(key, value)| [(key.to_owned(), value.to_owned())].into()),
            ..metadata(&name)
        },
        subsets: Some(subsets),
    })
}

fn node() -> impl Strategy<Value = v1::Node> {
    let name = prop_oneof![4 => Just(NODE), 1 => Just("node-2")];
    let zone = option::weighted(0.8, select(vec!["zone-a", "zone-b", ""]));
    let addresses = subsequence(
        vec![
            ("ExternalIP", "172.18.0.3"),
            ("InternalIP", "172.18.0.2"),
            ("Hostname", "172.18.0.9"),
            ("InternalIP", "fd00:18::2"),
            ("InternalIP", "172.018.0.004"),
        ],
        0..=5,
    );
    (name, zone, addresses).prop_map(|(name, zone, addresses)| {
        let address = |(type_, address): (&str, &str)| v1::NodeAddress {
            type_: type_.to_owned(),
            address: address.to_owned(),
        };
        v1::Node {
            metadata: ObjectMeta {
                labels: zone.map(|zone| [("topology.kubernetes.io/zone".to_owned(), zone.to_owned())].into()),
                ..metadata(&ObjectName::new("", name))
            },
            status: Some(v1::NodeStatus {
                addresses: Some(addresses.into_iter().map(address).collect()),
                ..v1::NodeStatus::default()
            }),
            ..v1::Node::default()
        }
    })
}
