use expect_test::expect;
use lb_common::address::Protocol;
use serde_json::{Value, json};

use super::*;

fn convert(object: Value) -> (Option<Service>, Vec<String>) {
    let (converted, problems) = service(&serde_json::from_value(object).unwrap());
    (converted, problems.iter().map(ToString::to_string).collect())
}

/// A Service `shop/web` with one port and this besides in its spec.
fn with(spec: &Value) -> (Service, Vec<String>) {
    let mut object = json!({
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    let (converted, problems) = convert(object);
    (converted.unwrap(), problems)
}

fn strings(ips: &[IpAddr]) -> Vec<String> {
    ips.iter().map(ToString::to_string).collect()
}

#[test]
fn everything_at_once() {
    let (service, problems) = convert(json!({
        "metadata": {
            "namespace": "shop", "name": "web", "creationTimestamp": "2026-01-02T03:04:05Z",
            "labels": {"app": "web", PROXY_NAME: "other"},
        },
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
            "externalIPs": ["198.51.100.1", "::ffff:198.51.100.2", "198.51.100.1"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 0},
                {"name": "sctp", "port": 65535, "protocol": "SCTP"},
            ],
            "sessionAffinity": "ClientIP",
            "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": [" 192.0.2.0/24 ", "fd00::/8", "192.0.2.77/24"],
            "healthCheckNodePort": 32000,
        },
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
            {"hostname": "lb.example"}, {"ip": "203.0.113.001"},
        ]}},
    }));
    expect![[r#"
        Service {
            name: ObjectName {
                namespace: "shop",
                name: "web",
            },
            created: Some(
                1767323045,
            ),
            labels: {
                "service.kubernetes.io/service-proxy-name": "other",
            },
            service_type: LoadBalancer,
            cluster_ips: [
                10.96.0.1,
                fd00::1,
            ],
            headless: false,
            external_ips: [
                198.51.100.1,
                198.51.100.2,
            ],
            ingress_ips: [
                203.0.113.1,
                203.0.113.2,
            ],
            ports: [
                ServicePort {
                    name: "http",
                    protocol: Tcp,
                    port: 80,
                    node_port: Some(
                        30080,
                    ),
                },
                ServicePort {
                    name: "dns",
                    protocol: Udp,
                    port: 53,
                    node_port: None,
                },
                ServicePort {
                    name: "sctp",
                    protocol: Sctp,
                    port: 65535,
                    node_port: None,
                },
            ],
            affinity_seconds: Some(
                10800,
            ),
            internal_policy: Local,
            external_policy: Local,
            source_ranges: [
                192.0.2.0/24,
                fd00::/8,
            ],
            health_check_node_port: Some(
                32000,
            ),
            algorithm: None,
        }"#]]
    .assert_eq(&format!("{:#?}", service.unwrap()));
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn types() {
    for (text, expected, problem) in [
        (json!(null), ServiceType::ClusterIp, false),
        (json!("ClusterIP"), ServiceType::ClusterIp, false),
        (json!("NodePort"), ServiceType::NodePort, false),
        (json!("LoadBalancer"), ServiceType::LoadBalancer, false),
        (json!("ExternalName"), ServiceType::ExternalName, false),
        (json!("nodeport"), ServiceType::ClusterIp, true),
    ] {
        let (service, problems) = with(&json!({"type": text}));
        assert_eq!((service.service_type, !problems.is_empty()), (expected, problem), "{text}");
    }
}

#[test]
fn cluster_addresses() {
    let table = [
        (json!({"clusterIP": null}), &[][..], None),
        (json!({"clusterIP": ""}), &[], None),
        (json!({"clusterIP": "010.096.0.1"}), &["10.96.0.1"], None),
        (json!({"clusterIP": null, "clusterIPs": ["10.96.0.2", "fd00::2"]}), &["10.96.0.2", "fd00::2"], None),
        (json!({"clusterIP": "10.96.0.2", "clusterIPs": []}), &["10.96.0.2"], None),
        (
            json!({"clusterIP": "10.96.0.3", "clusterIPs": ["10.96.0.2"]}),
            &["10.96.0.2"],
            Some("spec.clusterIP: \"10.96.0.3\" is not the first of clusterIPs; it is ignored"),
        ),
        (
            json!({"clusterIP": "web"}),
            &[],
            Some("spec.clusterIP: \"web\" is not an IP address; it is skipped"),
        ),
        (
            json!({"clusterIP": null, "clusterIPs": ["10.96.0.2", "0.0.0.0"]}),
            &["10.96.0.2"],
            Some("spec.clusterIPs[1]: 0.0.0.0 is not the address of one machine; it is skipped"),
        ),
    ];
    for (spec, expected, problem) in table {
        let (service, problems) = with(&spec);
        assert_eq!(strings(&service.cluster_ips), expected, "{spec}");
        let expected = problem.map(|problem| format!("Service shop/web: {problem}"));
        assert_eq!(problems, Vec::from_iter(expected), "{spec}");
    }
}

#[test]
fn headless_services_have_no_address() {
    for spec in [json!({"clusterIP": "None"}), json!({"clusterIP": null, "clusterIPs": ["None"]})] {
        let (service, problems) = with(&spec);
        assert!(service.headless && service.cluster_ips.is_empty() && problems.is_empty());
    }
}

#[test]
fn bad_ports_are_named_and_the_rest_goes_on() {
    let (service, problems) = with(&json!({"type": "NodePort", "ports": [
        {"name": "a", "port": 0},
        {"name": "b", "port": 80, "nodePort": 65536},
        {"name": "c", "port": 65536},
        {"name": "d", "port": 81, "protocol": "tcp"},
        {"name": "e", "port": 80},
        {"name": "b", "port": 82},
        {"name": "b", "port": 82, "protocol": "UDP"},
        {"name": "g", "port": -1},
        {"name": "h", "port": 65535, "nodePort": -3},
        {"name": "i", "port": 82},
    ]}));
    let ports: Vec<_> = service.ports.iter().map(|port| (&*port.name, port.port, port.protocol)).collect();
    assert_eq!(
        ports,
        [
            ("b", 80, Protocol::Tcp),
            ("b", 82, Protocol::Udp),
            ("h", 65535, Protocol::Tcp),
            ("i", 82, Protocol::Tcp)
        ]
    );
    assert!(service.ports.iter().all(|port| port.node_port.is_none()));
    expect![[r#"
        Service shop/web: spec.ports[0].port: 0 is not a port (1-65535); this port is skipped
        Service shop/web: spec.ports[1].nodePort: 65536 is not a port (1-65535); it is not served
        Service shop/web: spec.ports[2].port: 65536 is not a port (1-65535); this port is skipped
        Service shop/web: spec.ports[3].protocol: "tcp" is not TCP, UDP or SCTP; this port is skipped
        Service shop/web: spec.ports[4].port: 80/TCP is listed before; this port is skipped
        Service shop/web: spec.ports[5].name: "b" is the name of a port before; this port is skipped
        Service shop/web: spec.ports[7].port: -1 is not a port (1-65535); this port is skipped
        Service shop/web: spec.ports[8].nodePort: -3 is not a port (1-65535); it is not served"#]]
    .assert_eq(&problems.join("\n"));
}

#[test]
fn node_ports_belong_to_types_that_have_them() {
    for (service_type, expected) in [
        ("ClusterIP", None),
        ("NodePort", Some(30000)),
        ("LoadBalancer", Some(30000)),
        ("ExternalName", None),
    ] {
        let (service, problems) =
            with(&json!({"type": service_type, "ports": [{"port": 80, "nodePort": 30000}]}));
        assert_eq!(service.ports[0].node_port, expected, "{service_type}");
        assert_eq!(problems.is_empty(), expected.is_some(), "{service_type}");
    }
}

#[test]
fn a_service_without_ports_is_a_problem_unless_it_needs_none() {
    for (spec, problem) in [
        (json!({"ports": []}), true),
        (json!({"ports": null}), true),
        (json!({"ports": [], "clusterIP": "None"}), false),
        (json!({"ports": [], "type": "ExternalName"}), false),
    ] {
        assert_eq!(!with(&spec).1.is_empty(), problem, "{spec}");
    }
}

#[test]
fn affinity_at_its_limits() {
    let client_ip = |seconds: Value| json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}}});
    let table = [
        (json!({}), None, false),
        (json!({"sessionAffinity": "None"}), None, false),
        (json!({"sessionAffinity": "Cookie"}), None, true),
        (json!({"sessionAffinity": "ClientIP"}), Some(10_800), false),
        (json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {}}), Some(10_800), false),
        (client_ip(json!(null)), Some(10_800), false),
        (client_ip(json!(1)), Some(1), false),
        (client_ip(json!(86_400)), Some(86_400), false),
        (client_ip(json!(86_401)), Some(10_800), true),
        (client_ip(json!(0)), Some(10_800), true),
        (client_ip(json!(-1)), Some(10_800), true),
    ];
    for (spec, expected, problem) in table {
        let (service, problems) = with(&spec);
        assert_eq!((service.affinity_seconds, !problems.is_empty()), (expected, problem), "{spec}");
    }
}

#[test]
fn policies() {
    for (text, expected, problem) in [
        (json!(null), TrafficPolicy::Cluster, 0),
        (json!("Cluster"), TrafficPolicy::Cluster, 0),
        (json!("Local"), TrafficPolicy::Local, 0),
        (json!("PreferLocal"), TrafficPolicy::Cluster, 2),
    ] {
        let (service, problems) =
            with(&json!({"internalTrafficPolicy": text, "externalTrafficPolicy": text}));
        assert_eq!((service.internal_policy, service.external_policy), (expected, expected), "{text}");
        assert_eq!(problems.len(), problem, "{text}");
    }
}

#[test]
fn unreadable_source_ranges_let_nobody_in() {
    let (service, problems) = with(&json!({"loadBalancerSourceRanges": ["192.0.2.1"]}));
    assert_eq!(service.source_ranges.len(), 2);
    assert!(
        service.source_ranges.iter().all(|range| range.addr().is_unspecified() && range.prefix_len() >= 32)
    );
    assert_eq!(problems.len(), 1);
    let (service, problems) = with(&json!({"loadBalancerSourceRanges": ["192.0.2.1", "192.0.2.0/24"]}));
    assert_eq!((service.source_ranges.len(), problems.len()), (1, 1));
    let (service, problems) = with(&json!({"loadBalancerSourceRanges": []}));
    assert_eq!((service.source_ranges.len(), problems.len()), (0, 0));
}

#[test]
fn external_and_ingress_addresses_that_cannot_be_are_named() {
    let (service, problems) = with(&json!({"externalIPs": ["127.0.0.1", "fe80::1", "x", "198.51.100.1"]}));
    assert_eq!(strings(&service.external_ips), ["198.51.100.1"]);
    assert_eq!(problems.len(), 3);
    let (service, problems) = convert(json!({
        "metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "DSR"}, {"ip": "x"}, {"ip": ""}]}},
    }));
    assert!(service.unwrap().ingress_ips.is_empty());
    expect![[r#"
        Service default/web: status.loadBalancer.ingress[0].ipMode: "DSR" is not VIP or Proxy; 203.0.113.1 is not served
        Service default/web: status.loadBalancer.ingress[1].ip: "x" is not an IP address; it is skipped"#]]
    .assert_eq(&problems.join("\n"));
}

#[test]
fn without_spec_or_name() {
    let (service, problems) = convert(json!({"metadata": {"name": "web"}}));
    assert_eq!(service.unwrap().name.to_string(), "default/web");
    assert_eq!(problems, ["Service default/web: spec.ports: no port; the Service serves nothing"]);
    assert_eq!(
        convert(json!({})),
        (None, vec!["Service: metadata.name: no name; the object is skipped".to_owned()])
    );
}
