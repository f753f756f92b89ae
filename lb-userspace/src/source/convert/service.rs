//! Service.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1;

use super::{Report, address::parse_net, nameless, namespaced};
use crate::model::{Algorithm, Kind, Problem, Service, ServicePort, ServiceType, TrafficPolicy};

/// How backends are chosen.
const ALGORITHM: &str = "sockeye.io/algorithm";
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// `sessionAffinityConfig.clientIP.timeoutSeconds`, where none is given.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
/// Its largest value: a day.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

/// Ranges that no client's address lies in.
const NOBODY: [&str; 2] = ["0.0.0.0/32", "::/128"];

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
        algorithm: algorithm(service, &mut report),
    };
    (Some(converted), report.finish())
}

fn algorithm(service: &v1::Service, report: &mut Report) -> Option<Algorithm> {
    match service.metadata.annotations.as_ref()?.get(ALGORITHM)?.as_str() {
        "random" => Some(Algorithm::Random),
        "maglev" => Some(Algorithm::Maglev),
        other => {
            let what = format!("\"{other}\" is not random or maglev; the default of the node holds");
            report.add(format!("metadata.annotations[{ALGORITHM}]"), what);
            None
        }
    }
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
        if numbers.contains(&(port.port, port.protocol)) {
            let what = format!("{}/{} is listed before; this port is skipped", port.port, port.protocol);
            report.add(format!("spec.ports[{i}].port"), what);
        } else if !names.insert((port.name.clone(), port.protocol)) {
            let what = format!("\"{}\" is the name of a port before; this port is skipped", port.name);
            report.add(format!("spec.ports[{i}].name"), what);
        } else {
            numbers.insert((port.port, port.protocol));
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
mod tests;
