//! What a cluster means on this node, straight from the specification: (where a client is, what it connects to) → a set
//! of backends, a refusal, or nothing of ours.
//!
//! Reads the objects of the API themselves. It shares no step with the agent: no conversion, no categories, no claims, no
//! numbers, slots or records; it is slow, and has no notion of a change. The rules' numbers are those of
//! docs/conformance.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;
use lb_common::decide::Source;
use lb_userspace::model::{ObjectName, Protocol};

use crate::world::{NODE, World};

/// An address, port and protocol; a node port stands at the unspecified address of its family.
pub(crate) type Place = (IpAddr, u16, Protocol);

/// What kind of place it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Not a service: left as it is.
    Pass,
    /// No endpoints anywhere.
    Refused,
    /// A Local policy, and endpoints only elsewhere: refused at the socket, dropped per packet.
    OnlyElsewhere,
    /// From outside the source ranges of a load balancer: refused at the socket, dropped per packet.
    NotAdmitted,
    /// One of these; with affinity, the same one for so many seconds.
    Backends { set: BTreeSet<SocketAddr>, affinity: u32 },
}

/// A service port in one family.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of the specification")]
pub(crate) struct ServicePort {
    /// `namespace/name:port`; of an unnamed port, the Service's name alone.
    pub(crate) name: String,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    pub(crate) affinity: u32,
    /// Asked for by the Service's annotation.
    pub(crate) maglev: bool,
    /// `loadBalancerSourceRanges` of the family; none: all are admitted.
    pub(crate) sources: BTreeSet<IpNet>,
    /// Usable from here or from elsewhere.
    pub(crate) any: bool,
    /// The set for policy Cluster, each with whether it is on this node.
    pub(crate) cluster: BTreeMap<SocketAddr, bool>,
    /// The set for policy Local.
    pub(crate) local: BTreeMap<SocketAddr, bool>,
}

/// All that the node serves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) places: BTreeMap<Place, (usize, Kind)>,
    /// Addresses that answer node ports, each with whether it does for the host alone.
    pub(crate) node_addresses: BTreeMap<IpAddr, bool>,
}

/// An endpoint of a service port.
#[derive(Clone, Debug)]
struct Endpoint {
    address: SocketAddr,
    ready: bool,
    serving_terminating: bool,
    local: bool,
    zones: Vec<String>,
    nodes: Vec<String>,
}

impl Model {
    pub(crate) fn of(world: &World) -> Self {
        let mut model = Self { node_addresses: node_addresses(world), ..Self::default() };
        // The oldest first, then by name: who comes first keeps a place that several claim.
        let mut services: Vec<_> = world.services().filter(|service| is_ours(service)).collect();
        services.sort_by_key(|service| {
            let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (created.is_none(), created, service.namespace(), service.name_any())
        });
        for service in services {
            model.add(service, world);
        }
        model
    }

    /// What a client with this address gets.
    pub(crate) fn answer(&self, source: Source, client: IpAddr, (ip, port, protocol): Place) -> Answer {
        let node_port = || {
            let host_only = self.node_addresses.get(&ip)?;
            let answers = !host_only || source == Source::Host;
            answers.then(|| self.places.get(&(unspecified(ip), port, protocol)))?
        };
        let Some((port, kind)) = self.places.get(&(ip, port, protocol)).or_else(node_port) else {
            return Answer::Pass;
        };
        let port = &self.ports[*port];
        let is_filtered = *kind == Kind::LoadBalancer && !port.sources.is_empty();
        if is_filtered && !port.sources.iter().any(|range| range.contains(&client)) {
            return Answer::NotAdmitted;
        }
        // Clients on the node are as if they had gone out and come back: the external policy does not touch them.
        let local = match kind {
            Kind::ClusterIp => port.internal_local,
            _ => port.external_local && source == Source::Outside,
        };
        let set = if local { &port.local } else { &port.cluster };
        if !set.is_empty() {
            Answer::Backends { set: set.keys().copied().collect(), affinity: port.affinity }
        } else if local && port.any {
            Answer::OnlyElsewhere
        } else {
            Answer::Refused
        }
    }

    fn add(&mut self, service: &v1::Service, world: &World) {
        let spec = service.spec.clone().unwrap_or_default();
        let is_local = |policy: &Option<String>| policy.as_deref() == Some("Local");
        let name = ObjectName::new(service.namespace().unwrap(), service.name_any());
        let zone = world.node().and_then(|node| label(&node.metadata, "topology.kubernetes.io/zone"));
        let addresses = addresses(service, world.operator.external_ips);
        let has_node_ports = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
        for (port, number, protocol) in served_ports(&spec) {
            for six in [false, true] {
                let of_family: Vec<_> = addresses.iter().filter(|(ip, _)| ip.is_ipv6() == six).collect();
                if !of_family.iter().any(|(_, kind)| *kind == Kind::ClusterIp) {
                    continue;
                }
                let port_name = port.name.clone().unwrap_or_default();
                let endpoints = endpoints(world, &name, &port_name, protocol, six);
                let local: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.local).cloned().collect();
                self.ports.push(ServicePort {
                    name: if port_name.is_empty() { name.to_string() } else { format!("{name}:{port_name}") },
                    internal_local: is_local(&spec.internal_traffic_policy),
                    external_local: is_local(&spec.external_traffic_policy),
                    affinity: affinity(&spec),
                    maglev: service
                        .annotations()
                        .get("sockeye.io/algorithm")
                        .is_some_and(|name| name == "maglev"),
                    sources: sources(&spec)
                        .into_iter()
                        .filter(|range| range.addr().is_ipv6() == six)
                        .collect(),
                    any: endpoints.iter().any(|endpoint| endpoint.ready || endpoint.serving_terminating),
                    cluster: chosen(&endpoints, |ready| nearest(ready, zone.as_deref())),
                    local: chosen(&local, |ready| ready),
                });
                let mut places: Vec<Place> =
                    of_family.iter().map(|(ip, _)| (*ip, number, protocol)).collect();
                let mut kinds: Vec<_> = of_family.iter().map(|(_, kind)| *kind).collect();
                let node_port =
                    port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
                if let Some(node_port) = node_port.filter(|_| has_node_ports) {
                    let any_ip = if six { ip("::").unwrap() } else { ip("0.0.0.0").unwrap() };
                    places.push((any_ip, node_port, protocol));
                    kinds.push(Kind::NodePort);
                }
                let index = self.ports.len() - 1;
                for (place, kind) in places.into_iter().zip(kinds) {
                    self.places.entry(place).or_insert((index, kind));
                }
            }
        }
    }
}

/// 1.13: the cluster addresses that another proxy serves.
pub(crate) fn foreign_addresses(world: &World) -> BTreeSet<IpAddr> {
    let is_theirs = |service: &&v1::Service| {
        let spec = service.spec.clone().unwrap_or_default();
        label(&service.metadata, "service.kubernetes.io/service-proxy-name").is_some()
            && spec.type_.as_deref() != Some("ExternalName")
            && spec.cluster_ip.as_deref() != Some("None")
    };
    let theirs = world.services().filter(is_theirs);
    theirs.flat_map(|service| cluster_ips(&service.spec.clone().unwrap_or_default())).collect()
}

/// I1, I5: not another proxy's, not headless, no alias, and with an address.
fn is_ours(service: &v1::Service) -> bool {
    let spec = service.spec.clone().unwrap_or_default();
    label(&service.metadata, "service.kubernetes.io/service-proxy-name").is_none()
        && spec.type_.as_deref() != Some("ExternalName")
        && spec.cluster_ip.as_deref() != Some("None")
        && !cluster_ips(&spec).is_empty()
}

/// I14: leading zeros are decimal, and a v4-mapped address is an IPv4 address.
fn ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok().map(|ip: IpAddr| ip.to_canonical());
    }
    let octets: Option<Vec<u8>> = text.split('.').map(|octet| octet.parse().ok()).collect();
    Some(IpAddr::from(<[u8; 4]>::try_from(octets?).ok()?))
}

fn cluster_ips(spec: &v1::ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    listed.filter_map(|text| ip(text)).collect()
}

/// 1.4: where a Service stands, the cluster addresses first; each address as the first kind that names it.
fn addresses(service: &v1::Service, with_external_ips: bool) -> Vec<(IpAddr, Kind)> {
    let spec = service.spec.clone().unwrap_or_default();
    let status = service.status.clone().and_then(|status| status.load_balancer).unwrap_or_default();
    let is_vip =
        |ingress: &&v1::LoadBalancerIngress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
    let ingress =
        status.ingress.iter().flatten().filter(is_vip).filter_map(|ingress| ip(ingress.ip.as_deref()?));
    let external =
        spec.external_ips.iter().flatten().filter(|_| with_external_ips).filter_map(|text| ip(text));
    let all = (cluster_ips(&spec).into_iter().map(|ip| (ip, Kind::ClusterIp)))
        .chain(ingress.map(|ip| (ip, Kind::LoadBalancer)))
        .chain(external.map(|ip| (ip, Kind::ExternalIp)));
    let mut addresses: Vec<(IpAddr, Kind)> = Vec::new();
    for (ip, kind) in all.filter(|(ip, _)| !ip.is_loopback() && !ip.is_unspecified()) {
        if !addresses.iter().any(|(known, _)| *known == ip) {
            addresses.push((ip, kind));
        }
    }
    addresses
}

/// The ports that are served; of two with one number or one name (in a protocol), the first.
fn served_ports(spec: &v1::ServiceSpec) -> Vec<(&v1::ServicePort, u16, Protocol)> {
    let mut served: Vec<(&v1::ServicePort, u16, Protocol)> = Vec::new();
    for port in spec.ports.iter().flatten() {
        let (Some(number), Some(protocol)) = (number(Some(port.port)), protocol(port.protocol.as_deref()))
        else {
            continue;
        };
        let name = |port: &v1::ServicePort| port.name.clone().unwrap_or_default();
        let clashes = |(other, other_number, other_protocol): &(&v1::ServicePort, u16, Protocol)| {
            *other_protocol == protocol && (*other_number == number || name(other) == name(port))
        };
        if !served.iter().any(clashes) {
            served.push((port, number, protocol));
        }
    }
    served.retain(|(_, _, protocol)| *protocol != Protocol::Sctp);
    served
}

fn number(number: Option<i32>) -> Option<u16> {
    u16::try_from(number?).ok().filter(|number| *number != 0)
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// 1.6: three hours where nothing (or nothing possible) is said.
fn affinity(spec: &v1::ServiceSpec) -> u32 {
    let client_ip = spec.session_affinity_config.clone().and_then(|config| config.client_ip);
    let seconds =
        client_ip.and_then(|client_ip| client_ip.timeout_seconds).and_then(|s| u32::try_from(s).ok());
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => seconds.filter(|seconds| (1..=86_400).contains(seconds)).unwrap_or(10_800),
        _ => 0,
    }
}

/// 1.4: white space around a range does not count; where none can be read, nobody is admitted.
fn sources(spec: &v1::ServiceSpec) -> Vec<IpNet> {
    let listed = spec.load_balancer_source_ranges.clone().unwrap_or_default();
    let ranges: Vec<IpNet> = listed
        .iter()
        .filter_map(|range| range.trim().parse::<IpNet>().ok())
        .map(|range| range.trunc())
        .collect();
    if ranges.is_empty() && !listed.is_empty() {
        return ["0.0.0.0/32", "::/128"].iter().map(|nobody| nobody.parse().unwrap()).collect();
    }
    ranges
}

/// I10: each address once, in its best state; of equal ones a local one.
fn endpoints(
    world: &World,
    service: &ObjectName,
    port: &str,
    protocol: Protocol,
    six: bool,
) -> Vec<Endpoint> {
    let state = |endpoint: &Endpoint| match (endpoint.ready, endpoint.serving_terminating) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => 2,
    };
    let rank = |endpoint: &Endpoint| (state(endpoint), !endpoint.local);
    let mut best: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for endpoint in listed_endpoints(world, service, port, protocol, six) {
        let known = best.entry(endpoint.address).or_insert_with(|| endpoint.clone());
        if rank(&endpoint) < rank(known) {
            *known = endpoint;
        }
    }
    best.into_values().collect()
}

/// I2, I8, I12: those of the slices, of any manager; without slices, those of the Endpoints object.
fn listed_endpoints(
    world: &World,
    service: &ObjectName,
    port: &str,
    protocol: Protocol,
    six: bool,
) -> Vec<Endpoint> {
    let belongs = |slice: &&discovery::EndpointSlice| {
        slice.namespace().as_deref() == Some(&*service.namespace)
            && label(&slice.metadata, "kubernetes.io/service-name").as_deref() == Some(&*service.name)
            && label(&slice.metadata, "service.kubernetes.io/headless").is_none()
            && matches!(&*slice.address_type, "IPv4" | "IPv6")
    };
    let slices: Vec<_> = world.slices().filter(belongs).collect();
    if slices.is_empty() {
        let legacy = world.endpoints(service).filter(|endpoints| is_mirrored(endpoints));
        return legacy.map(|endpoints| legacy_endpoints(endpoints, port, protocol, six)).unwrap_or_default();
    }
    let family = if six { "IPv6" } else { "IPv4" };
    let mut listed = Vec::new();
    for slice in slices.into_iter().filter(|slice| slice.address_type == family) {
        for number in slice.ports.iter().flatten().filter_map(|slice_port| {
            let is_port = slice_port.name.as_deref().unwrap_or_default() == port
                && self::protocol(slice_port.protocol.as_deref()) == Some(protocol);
            is_port.then(|| number(slice_port.port))?
        }) {
            listed.extend(slice.endpoints.iter().flatten().filter_map(|e| slice_endpoint(e, number, six)));
        }
    }
    listed
}

/// I8, I9, I11.
fn slice_endpoint(endpoint: &discovery::Endpoint, port: u16, six: bool) -> Option<Endpoint> {
    let ip = ip(endpoint.addresses.first()?)?;
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let hints = endpoint.hints.clone().unwrap_or_default();
    (ip.is_ipv6() == six && !ip.is_unspecified()).then(|| Endpoint {
        address: SocketAddr::new(ip, port),
        ready: conditions.ready != Some(false),
        serving_terminating: conditions.serving != Some(false) && conditions.terminating == Some(true),
        local: endpoint.node_name.as_deref() == Some(NODE),
        zones: hints.for_zones.into_iter().flatten().map(|zone| zone.name).collect(),
        nodes: hints.for_nodes.into_iter().flatten().map(|node| node.name).collect(),
    })
}

/// What the mirroring controller makes a slice of that a proxy watches.
fn is_mirrored(endpoints: &v1::Endpoints) -> bool {
    let metadata = &endpoints.metadata;
    label(metadata, "endpointslice.kubernetes.io/skip-mirror").as_deref() != Some("true")
        && label(metadata, "service.kubernetes.io/headless").is_none()
}

fn legacy_endpoints(endpoints: &v1::Endpoints, port: &str, protocol: Protocol, six: bool) -> Vec<Endpoint> {
    let mut listed = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for number in subset.ports.iter().flatten().filter_map(|subset_port| {
            let is_port = subset_port.name.as_deref().unwrap_or_default() == port
                && self::protocol(subset_port.protocol.as_deref()) == Some(protocol);
            is_port.then(|| number(Some(subset_port.port)))?
        }) {
            for (addresses, ready) in [(&subset.addresses, true), (&subset.not_ready_addresses, false)] {
                listed.extend(addresses.iter().flatten().filter_map(|address| {
                    let ip = ip(&address.ip).filter(|ip| ip.is_ipv6() == six)?;
                    Some(Endpoint {
                        address: SocketAddr::new(ip, number),
                        ready,
                        serving_terminating: false,
                        local: address.node_name.as_deref() == Some(NODE),
                        zones: Vec::new(),
                        nodes: Vec::new(),
                    })
                }));
            }
        }
    }
    listed
}

/// 1.2: the ready ones, as far as the topology lets them; if none is ready, those that are terminating and still serve.
fn chosen(
    endpoints: &[Endpoint],
    topology: impl Fn(Vec<&Endpoint>) -> Vec<&Endpoint>,
) -> BTreeMap<SocketAddr, bool> {
    let ready: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
    let chosen = if ready.is_empty() {
        endpoints.iter().filter(|endpoint| endpoint.serving_terminating).collect()
    } else {
        topology(ready)
    };
    chosen.into_iter().map(|endpoint| (endpoint.address, endpoint.local)).collect()
}

/// 1.3: those hinted for this node, else those hinted for this zone, else all; a kind of hint counts only if every ready
/// endpoint has it and one of them is meant for here.
fn nearest<'a>(ready: Vec<&'a Endpoint>, zone: Option<&str>) -> Vec<&'a Endpoint> {
    let pick = |hints: fn(&Endpoint) -> &Vec<String>, own: &str| -> Option<Vec<&'a Endpoint>> {
        if ready.iter().any(|endpoint| hints(endpoint).is_empty()) {
            return None;
        }
        let here: Vec<_> =
            ready.iter().copied().filter(|e| hints(e).iter().any(|hint| hint == own)).collect();
        (!here.is_empty()).then_some(here)
    };
    pick(|endpoint| &endpoint.nodes, NODE)
        .or_else(|| pick(|endpoint| &endpoint.zones, zone?))
        .unwrap_or(ready)
}

/// 1.4, `--nodeport-addresses`: each address with whether it serves the host alone.
fn node_addresses(world: &World) -> BTreeMap<IpAddr, bool> {
    let interfaces: Vec<IpAddr> = world.interfaces.iter().filter_map(|text| ip(text)).collect();
    let mut addresses = BTreeSet::new();
    for item in world.operator.node_port_addresses.split(',') {
        match item {
            "primary" => addresses.extend(primary_addresses(world, &interfaces)),
            "localhost" => {
                addresses.extend(["127.0.0.1", "::1"].iter().filter_map(|text| ip(text)));
                addresses.extend(interfaces.iter().filter(|ip| ip.is_loopback()));
            }
            "all" => addresses.extend(interfaces.iter().filter(|ip| !ip.is_loopback())),
            range => {
                let range: IpNet = range.parse().unwrap();
                addresses.extend(interfaces.iter().filter(|ip| range.contains(*ip)));
            }
        }
    }
    addresses.into_iter().map(|ip| (ip, ip.is_loopback())).collect()
}

/// The Node's first address of each family, internal ones first; without a Node, what other machines can reach.
fn primary_addresses(world: &World, interfaces: &[IpAddr]) -> Vec<IpAddr> {
    let Some(node) = world.node() else {
        let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        return interfaces.iter().copied().filter(|ip| !ip.is_loopback() && !is_link_local(ip)).collect();
    };
    let listed = node.status.clone().and_then(|status| status.addresses).unwrap_or_default();
    let of_type = |wanted: &str| -> Vec<IpAddr> {
        listed
            .iter()
            .filter(|address| address.type_ == wanted)
            .filter_map(|address| ip(&address.address))
            .collect()
    };
    let all = [of_type("InternalIP"), of_type("ExternalIP")].concat();
    [false, true].iter().filter_map(|six| all.iter().copied().find(|ip| ip.is_ipv6() == *six)).collect()
}

fn unspecified(ip: IpAddr) -> IpAddr {
    if ip.is_ipv6() { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) }
}

fn label(metadata: &ObjectMeta, key: &str) -> Option<String> {
    metadata.labels.as_ref()?.get(key).cloned()
}
