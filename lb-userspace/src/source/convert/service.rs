//! Service.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1;

use super::{Report, address::parse_net, has_label, nameless, namespaced};
use crate::model::{Kind, Problem, Service, ServicePort, ServiceType, TrafficPolicy};

const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// `sessionAffinityConfig.clientIP.timeoutSeconds`, where none is given.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// Its largest value: a day.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Ranges that no client's address lies in.
const NOBODY: [&str; 2] = ["0.0.0.0/32", "::/128"];

/// Whether the Service is left to another proxy: Sockeye, like kube-proxy, does not watch those.
pub fn is_for_another_proxy(service: &v1::Service) -> bool {
    has_label(&service.metadata, PROXY_NAME)
}

/// Converts a Service.
pub fn service(service: &v1::Service) -> (Option<Service>, Vec<Problem>) {
    let Some(name) = namespaced(&service.metadata) else {
        return (None, nameless(Kind::Service));
    };
    let mut report = Report::new(Kind::Service, &name);
    let absent = v1::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&absent);
    let service_type = service_type(spec.type_.as_deref(), &mut report);
    let headless = is_headless(spec);
    let converted = Service {
        name,
        created: service.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second()),
        labels: service
            .metadata
            .labels
            .iter()
            .flatten()
            .filter(|(key, _)| *key == PROXY_NAME)
            .map(owned)
            .collect(),
        service_type,
        cluster_ips: if headless { Vec::new() } else { cluster_ips(spec, &mut report) },
        headless,
        external_ips: external_ips(spec, &mut report),
        ingress_ips: ingress_ips(service, &mut report),
        ports: ports(spec, service_type, headless, &mut report),
        affinity_seconds: affinity_seconds(spec, &mut report),
        internal_policy: policy(
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
            &mut report,
        ),
        external_policy: policy(
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
            &mut report,
        ),
        source_ranges: source_ranges(spec, &mut report),
        health_check_node_port: spec
            .health_check_node_port
            .filter(|number| *number != 0)
            .and_then(|number| report.port("spec.healthCheckNodePort", number, "it is not served")),
    };
    (Some(converted), report.finish())
}

fn owned((key, value): (&String, &String)) -> (String, String) {
    (key.clone(), value.clone())
}

fn is_headless(spec: &v1::ServiceSpec) -> bool {
    let first = spec.cluster_ips.iter().flatten().next();
    spec.cluster_ip.as_ref().or(first).is_some_and(|ip| ip == "None")
}

fn service_type(text: Option<&str>, report: &mut Report) -> ServiceType {
    match text {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            report.add("spec.type", format!("\"{other}\" is unknown; the Service is served as ClusterIP"));
            ServiceType::ClusterIp
        }
    }
}

/// `clusterIPs`, or the older `clusterIP` alone. The API server keeps the first one and `clusterIP` alike.
fn cluster_ips(spec: &v1::ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let given = |ip: &&String| !ip.is_empty();
    match spec.cluster_ips.as_deref() {
        Some(listed) if listed.iter().any(|ip| !ip.is_empty()) => {
            if let Some(single) =
                spec.cluster_ip.as_ref().filter(given).filter(|ip| listed.first() != Some(ip))
            {
                report.add(
                    "spec.clusterIP",
                    format!("\"{single}\" is not the first of clusterIPs; it is ignored"),
                );
            }
            addresses("spec.clusterIPs", listed, report)
        }
        _ => {
            let single = spec.cluster_ip.as_ref().filter(given);
            single.and_then(|ip| report.address("spec.clusterIP", ip)).into_iter().collect()
        }
    }
}

/// The API server refuses external addresses that are the machine's own business; so does this.
fn external_ips(spec: &v1::ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let listed = spec.external_ips.as_deref().unwrap_or_default();
    let mut ips = addresses("spec.externalIPs", listed, report);
    ips.retain(|ip| {
        let special = ip.is_loopback() || is_link_local(ip);
        if special {
            report
                .add("spec.externalIPs", format!("{ip} is a loopback or link-local address; it is skipped"));
        }
        !special
    });
    ips
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn addresses(field: &str, listed: &[String], report: &mut Report) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (i, text) in listed.iter().enumerate() {
        let ip = report.address(format!("{field}[{i}]"), text);
        ips.extend(ip.filter(|ip| !ips.contains(ip)));
    }
    ips
}

/// Of `ipMode` Proxy or with a host name alone, an ingress is reached outside the node: KEP-1860.
fn ingress_ips(service: &v1::Service, report: &mut Report) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let listed = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let mut ips = Vec::new();
    for (i, ingress) in listed.iter().enumerate() {
        let field = |field| format!("status.loadBalancer.ingress[{i}].{field}");
        let Some(text) = ingress.ip.as_ref().filter(|ip| !ip.is_empty()) else { continue };
        match ingress.ip_mode.as_deref() {
            None | Some("" | "VIP") => {
                let ip = report.address(field("ip"), text);
                ips.extend(ip.filter(|ip| !ips.contains(ip)));
            }
            Some("Proxy") => {}
            Some(other) => {
                report.add(field("ipMode"), format!("\"{other}\" is not VIP or Proxy; {text} is not served"));
            }
        }
    }
    ips
}

fn ports(
    spec: &v1::ServiceSpec,
    service_type: ServiceType,
    headless: bool,
    report: &mut Report,
) -> Vec<ServicePort> {
    let listed = spec.ports.as_deref().unwrap_or_default();
    if listed.is_empty() && !headless && service_type != ServiceType::ExternalName {
        report.add("spec.ports", "no port; the Service serves nothing");
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let mut ports: Vec<ServicePort> = Vec::with_capacity(listed.len());
    for (i, port) in listed.iter().enumerate() {
        let Some(port) = convert_port(i, port, service_type, report) else { continue };
        if !numbers.insert((port.port, port.protocol)) {
            let what = format!("{}/{} is listed before; this port is skipped", port.port, port.protocol);
            report.add(format!("spec.ports[{i}].port"), what);
        } else if !names.insert((port.name.clone(), port.protocol)) {
            let what = format!("\"{}\" is the name of a port before; this port is skipped", port.name);
            report.add(format!("spec.ports[{i}].name"), what);
        } else {
            ports.push(port);
        }
    }
    ports
}

fn convert_port(
    i: usize,
    port: &v1::ServicePort,
    service_type: ServiceType,
    report: &mut Report,
) -> Option<ServicePort> {
    let number = report.port(format!("spec.ports[{i}].port"), port.port, "this port is skipped")?;
    let protocol = report.protocol(format!("spec.ports[{i}].protocol"), port.protocol.as_deref())?;
    let name = port.name.as_deref().unwrap_or_default().into();
    Some(ServicePort { name, protocol, port: number, node_port: node_port(i, port, service_type, report) })
}

fn node_port(
    i: usize,
    port: &v1::ServicePort,
    service_type: ServiceType,
    report: &mut Report,
) -> Option<u16> {
    let field = format!("spec.ports[{i}].nodePort");
    let number = port.node_port.filter(|number| *number != 0)?;
    match service_type {
        ServiceType::NodePort | ServiceType::LoadBalancer => report.port(field, number, "it is not served"),
        ServiceType::ClusterIp | ServiceType::ExternalName => {
            report
                .add(field, "only a Service of type NodePort or LoadBalancer has node ports; it is ignored");
            None
        }
    }
}

fn affinity_seconds(spec: &v1::ServiceSpec, report: &mut Report) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => None,
        Some("ClientIP") => Some(affinity_timeout(spec, report)),
        Some(other) => {
            report.add(
                "spec.sessionAffinity",
                format!("\"{other}\" is not None or ClientIP; there is no affinity"),
            );
            None
        }
    }
}

fn affinity_timeout(spec: &v1::ServiceSpec, report: &mut Report) -> u32 {
    let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let Some(given) = client_ip.and_then(|client_ip| client_ip.timeout_seconds) else {
        return DEFAULT_AFFINITY_SECONDS;
    };
    let seconds = u32::try_from(given).ok().filter(|seconds| (1..=MAX_AFFINITY_SECONDS).contains(seconds));
    seconds.unwrap_or_else(|| {
        let what = format!("{given} is not in 1-{MAX_AFFINITY_SECONDS}; {DEFAULT_AFFINITY_SECONDS} is used");
        report.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", what);
        DEFAULT_AFFINITY_SECONDS
    })
}

fn policy(field: &str, text: Option<&str>, report: &mut Report) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            report.add(field, format!("\"{other}\" is not Cluster or Local; Cluster is used"));
            TrafficPolicy::Cluster
        }
    }
}

/// Where ranges are given and none can be read, nobody is let in: no range at all would mean everybody.
fn source_ranges(spec: &v1::ServiceSpec, report: &mut Report) -> Vec<IpNet> {
    let listed = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let mut ranges = Vec::new();
    for (i, text) in listed.iter().enumerate() {
        match parse_net(text) {
            Some(range) if ranges.contains(&range) => {}
            Some(range) => ranges.push(range),
            None => {
                let what = format!("\"{text}\" is not a range such as 192.0.2.0/24; it lets nobody in");
                report.add(format!("spec.loadBalancerSourceRanges[{i}]"), what);
            }
        }
    }
    if ranges.is_empty() && !listed.is_empty() {
        ranges.extend(NOBODY.iter().filter_map(|range| parse_net(range)));
    }
    ranges
}

#[cfg(test)]
mod tests {
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
            (
                json!({"clusterIP": null, "clusterIPs": ["10.96.0.2", "fd00::2"]}),
                &["10.96.0.2", "fd00::2"],
                None,
            ),
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
        ]}));
        let ports: Vec<_> =
            service.ports.iter().map(|port| (&*port.name, port.port, port.protocol)).collect();
        assert_eq!(ports, [("b", 80, Protocol::Tcp), ("b", 82, Protocol::Udp), ("h", 65535, Protocol::Tcp)]);
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
            service
                .source_ranges
                .iter()
                .all(|range| range.addr().is_unspecified() && range.prefix_len() >= 32)
        );
        assert_eq!(problems.len(), 1);
        let (service, problems) = with(&json!({"loadBalancerSourceRanges": ["192.0.2.1", "192.0.2.0/24"]}));
        assert_eq!((service.source_ranges.len(), problems.len()), (1, 1));
        let (service, problems) = with(&json!({"loadBalancerSourceRanges": []}));
        assert_eq!((service.source_ranges.len(), problems.len()), (0, 0));
    }

    #[test]
    fn external_and_ingress_addresses_that_cannot_be_are_named() {
        let (service, problems) =
            with(&json!({"externalIPs": ["127.0.0.1", "fe80::1", "x", "198.51.100.1"]}));
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
}
