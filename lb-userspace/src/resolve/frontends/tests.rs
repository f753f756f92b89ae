use std::collections::BTreeMap;

use lb_common::service::flags;

use super::*;
use crate::{
    model::{ObjectName, TrafficPolicy},
    resolve::{settings, source_ranges},
    store::dump::frontend_name,
};

fn context() -> Context {
    Context {
        node_name: "node-1".into(),
        zone: None,
        external_ips: true,
        algorithm: crate::resolve::DefaultAlgorithm::default(),
    }
}

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn port(name: &str, protocol: Protocol, port: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port }
}

fn service(cluster_ips: &[&str]) -> Service {
    Service {
        name: ObjectName::new("default", "web"),
        created: None,
        labels: BTreeMap::new(),
        service_type: ServiceType::ClusterIp,
        cluster_ips: ips(cluster_ips),
        headless: false,
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        ports: vec![port("http", Protocol::Tcp, 80, None)],
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        algorithm: None,
    }
}

/// `PORT-NAME FRONTEND KIND` of each frontend, then the problems.
fn lines(service: &Service) -> Vec<String> {
    lines_with(service, &context())
}

fn lines_with(service: &Service, context: &Context) -> Vec<String> {
    let mut problems = Vec::new();
    let specs = match resolve(service, context, &mut problems) {
        Ok(specs) => specs,
        Err(skip) => return vec![format!("skipped: {}", skip.name())],
    };
    let mut lines = Vec::new();
    for spec in specs {
        let line = |(key, kind): &(FrontendKey, FrontendKind)| {
            format!("{} {} {}", spec.name, frontend_name(key), kind.name())
        };
        lines.extend(spec.frontends.iter().map(line));
    }
    lines.extend(problems.iter().map(ToString::to_string));
    lines
}

#[test]
fn some_services_are_never_translated_and_never_a_problem() {
    let mut external_name = service(&["10.96.0.1"]);
    external_name.service_type = ServiceType::ExternalName;
    assert_eq!(lines(&external_name), ["skipped: external name"]);

    let mut headless = service(&[]);
    headless.headless = true;
    assert_eq!(lines(&headless), ["skipped: headless"]);

    let mut other_proxy = service(&["10.96.0.1"]);
    other_proxy.labels.insert(PROXY_NAME_LABEL.to_owned(), String::new());
    assert_eq!(lines(&other_proxy), ["skipped: other proxy"]);

    assert_eq!(lines(&service(&[])), ["skipped: no cluster address"]);

    // Of these, only what another proxy serves has addresses that must pass.
    assert_eq!(foreign_addresses(&other_proxy), BTreeSet::from([Address::from_v4_bytes([10, 96, 0, 1])]));
    external_name.labels.clone_from(&other_proxy.labels);
    for other in [external_name, headless, service(&["10.96.0.1"])] {
        assert_eq!(foreign_addresses(&other), BTreeSet::new());
    }
}

#[test]
fn every_kind_of_address_in_each_family_with_a_cluster_address() {
    let mut service = service(&["10.96.0.1", "fd00:96::1"]);
    service.service_type = ServiceType::LoadBalancer;
    service.ports = vec![port("http", Protocol::Tcp, 80, Some(30080)), port("dns", Protocol::Udp, 53, None)];
    service.ingress_ips = ips(&["192.0.2.10"]);
    service.external_ips = ips(&["198.51.100.1", "2001:db8::1"]);
    assert_eq!(
        lines(&service),
        [
            "http 10.96.0.1:80/TCP ClusterIP",
            "http 192.0.2.10:80/TCP LoadBalancer",
            "http 198.51.100.1:80/TCP ExternalIP",
            "http 0.0.0.0:30080/TCP NodePort",
            "http [fd00:96::1]:80/TCP ClusterIP",
            "http [2001:db8::1]:80/TCP ExternalIP",
            "http [::]:30080/TCP NodePort",
            "dns 10.96.0.1:53/UDP ClusterIP",
            "dns 192.0.2.10:53/UDP LoadBalancer",
            "dns 198.51.100.1:53/UDP ExternalIP",
            "dns [fd00:96::1]:53/UDP ClusterIP",
            "dns [2001:db8::1]:53/UDP ExternalIP",
        ]
    );
}

#[test]
fn addresses_of_a_family_without_cluster_address_are_named_and_ignored() {
    let mut service = service(&["10.96.0.1"]);
    service.external_ips = ips(&["2001:db8::1"]);
    assert_eq!(
        lines(&service),
        [
            "http 10.96.0.1:80/TCP ClusterIP",
            "Service default/web: spec.externalIPs: 2001:db8::1 is ignored: \
             the Service has no cluster address of that family",
        ]
    );
}

#[test]
fn the_same_address_twice_is_one_frontend_of_the_first_kind() {
    let mut service = service(&["10.96.0.1"]);
    service.ingress_ips = ips(&["192.0.2.10", "192.0.2.10"]);
    service.external_ips = ips(&["192.0.2.10", "10.96.0.1", "::ffff:10.96.0.1"]);
    assert_eq!(lines(&service), ["http 10.96.0.1:80/TCP ClusterIP", "http 192.0.2.10:80/TCP LoadBalancer"]);
}

#[test]
fn external_addresses_can_be_switched_off() {
    let mut service = service(&["10.96.0.1"]);
    service.external_ips = ips(&["198.51.100.1"]);
    let context = Context { external_ips: false, ..context() };
    assert_eq!(lines_with(&service, &context), ["http 10.96.0.1:80/TCP ClusterIP"]);
}

#[test]
fn addresses_that_would_hide_others_are_refused() {
    let mut service = service(&["10.96.0.1"]);
    service.external_ips = ips(&["0.0.0.0", "127.0.0.1", "224.0.0.1"]);
    assert_eq!(
        lines(&service),
        [
            "http 10.96.0.1:80/TCP ClusterIP",
            "Service default/web: spec.externalIPs: 0.0.0.0 cannot be a service's address: it is ignored",
            "Service default/web: spec.externalIPs: 127.0.0.1 cannot be a service's address: it is ignored",
            "Service default/web: spec.externalIPs: 224.0.0.1 cannot be a service's address: it is ignored",
        ]
    );
}

#[test]
fn what_is_external_address_and_load_balancer_address_counts_as_the_latter() {
    let mut service = service(&["10.96.0.1"]);
    service.service_type = ServiceType::LoadBalancer;
    service.ingress_ips = ips(&["192.0.2.10"]);
    service.external_ips = ips(&["192.0.2.10", "198.51.100.1"]);
    service.source_ranges = vec!["203.0.113.0/24".parse().unwrap()];
    assert_eq!(
        lines(&service),
        [
            "http 10.96.0.1:80/TCP ClusterIP",
            "http 192.0.2.10:80/TCP LoadBalancer",
            "http 198.51.100.1:80/TCP ExternalIP",
        ]
    );
}

#[test]
fn source_ranges_filter_the_clients_of_their_family_alone() {
    let mut service = service(&["10.96.0.1", "fd00:96::1"]);
    let listed = ["203.0.113.0/24", "2001:db8::/32", "10.0.0.0/8", "203.0.113.0/24"];
    service.source_ranges = listed.iter().map(|range| range.parse().unwrap()).collect();
    let words = |service: &Service, family| -> Vec<String> {
        source_ranges(service, family).iter().map(ToString::to_string).collect()
    };
    assert_eq!(words(&service, Family::V4), ["10.0.0.0/8", "203.0.113.0/24"]);
    assert_eq!(words(&service, Family::V6), ["2001:db8::/32"]);
    service.source_ranges.retain(|range| Family::of(&range.addr()) == Family::V6);
    let spec =
        PortSpec { name: "".into(), protocol: Protocol::Tcp, family: Family::V4, frontends: Vec::new() };
    let filter = |family| settings(&service, &spec, &context(), &source_ranges(&service, family), &[]).flags;
    assert_eq!([Family::V4, Family::V6].map(filter), [0, flags::SOURCE_RANGES]);
}

#[test]
fn sctp_and_repeated_ports_are_named_and_the_others_stay() {
    let mut service = service(&["10.96.0.1"]);
    service.ports = vec![
        port("sctp", Protocol::Sctp, 80, None),
        port("http", Protocol::Tcp, 80, Some(30080)),
        port("http", Protocol::Udp, 80, Some(30080)),
        port("http", Protocol::Tcp, 81, None),
        port("again", Protocol::Tcp, 80, Some(30080)),
    ];
    assert_eq!(
        lines(&service),
        [
            "http 10.96.0.1:80/TCP ClusterIP",
            "http 0.0.0.0:30080/TCP NodePort",
            "http 10.96.0.1:80/UDP ClusterIP",
            "http 0.0.0.0:30080/UDP NodePort",
            "Service default/web: spec.ports[0]: SCTP is not supported at the socket: the port is left untouched",
            "Service default/web: spec.ports[3]: another port of the Service has the same name and protocol: \
             this one is ignored",
            "Service default/web: spec.ports[4].port: another port of the Service stands at 80 already: \
             this one is not reachable there",
            "Service default/web: spec.ports[4].nodePort: another port of the Service stands at 30080 already: \
             this one is not reachable there",
        ]
    );
}
