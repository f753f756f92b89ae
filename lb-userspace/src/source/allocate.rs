//! Cluster addresses and node ports for Services that state none, where there is no API server to hand them out. Pure.
//!
//! Deterministic: the same Services get the same values, whatever the order in which files are read. A value starts at a
//! hash of the Service's name and moves on to the next free one; Services take their turn in the order of their names.
//! What any Service states itself is never handed out to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    model::{Family, Kind, ObjectName, Problem, Protocol, Service, ServiceType, TrafficPolicy},
    source::origin,
};

/// What may be handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Cluster addresses of IPv4.
    pub v4: Ipv4Net,
    /// Cluster addresses of IPv6.
    pub v6: Ipv6Net,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for Pools {
    /// What kubeadm and the API server use: `10.96.0.0/16`, `fd00:10:96::/112` and 30000-32767.
    fn default() -> Self {
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
            v6: Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112),
            node_ports: 30_000..=32_767,
        }
    }
}

/// What a Service asks for beyond what it states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The families in which it has a cluster address; empty for one that has none (headless, `ExternalName`).
    pub families: Vec<Family>,
    /// Whether each of its ports has a node port.
    pub node_ports: bool,
}

/// Fills in what Services wish for and do not state; what does not fit any more is a problem.
pub fn allocate(services: &mut BTreeMap<ObjectName, (Service, Wish)>, pools: &Pools) -> Vec<Problem> {
    let mut taken = Taken::stated(services);
    let mut problems = Vec::new();
    for (name, (service, wish)) in services {
        for family in &wish.families {
            if service.cluster_ips.iter().any(|ip| Family::of(ip) == *family) {
                continue;
            }
            match taken.cluster_ip(*family, pools, &name.to_string()) {
                Some(ip) => service.cluster_ips.push(ip),
                None => problems.push(exhausted(name, "spec.clusterIP", "cluster address")),
            }
        }
        if wish.node_ports {
            problems.extend(allocate_node_ports(name, service, &mut taken, pools));
        }
    }
    problems
}

/// Ports of one number and different protocols share a node port, as in the API server.
fn allocate_node_ports(
    name: &ObjectName,
    service: &mut Service,
    taken: &mut Taken,
    pools: &Pools,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut shared: BTreeMap<u16, (u16, BTreeSet<Protocol>)> = BTreeMap::new();
    for (i, port) in service.ports.iter_mut().enumerate() {
        if port.node_port.is_none() {
            let twin = shared.get(&port.port).filter(|(_, protocols)| !protocols.contains(&port.protocol));
            let found = twin.map(|(number, _)| *number);
            port.node_port = found.or_else(|| taken.node_port(pools, &format!("{name}:{}", port.port)));
        }
        match port.node_port {
            Some(number) => {
                let (_, protocols) = shared.entry(port.port).or_insert((number, BTreeSet::new()));
                protocols.insert(port.protocol);
            }
            None => problems.push(exhausted(name, &format!("spec.ports[{i}].nodePort"), "node port")),
        }
    }
    let probed =
        service.service_type == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local;
    if probed && service.health_check_node_port.is_none() {
        service.health_check_node_port = taken.node_port(pools, &format!("{name}:health"));
    }
    problems
}

fn exhausted(name: &ObjectName, field: &str, what: &str) -> Problem {
    Problem {
        object: origin(Kind::Service, name),
        field: field.to_owned(),
        what: format!("no free {what} is left; state one, or remove Services"),
    }
}

/// What is handed out or stated already.
struct Taken {
    ips: BTreeSet<IpAddr>,
    node_ports: BTreeSet<u16>,
}

impl Taken {
    fn stated(services: &BTreeMap<ObjectName, (Service, Wish)>) -> Self {
        let services = || services.values().map(|(service, _)| service);
        let addresses = |service: &Service| -> Vec<IpAddr> {
            [&service.cluster_ips, &service.external_ips, &service.ingress_ips]
                .into_iter()
                .flatten()
                .copied()
                .collect()
        };
        let node_ports = |service: &Service| -> Vec<u16> {
            let ports = service.ports.iter().filter_map(|port| port.node_port);
            ports.chain(service.health_check_node_port).collect()
        };
        Self {
            ips: services().flat_map(addresses).collect(),
            node_ports: services().flat_map(node_ports).collect(),
        }
    }

    fn cluster_ip(&mut self, family: Family, pools: &Pools, name: &str) -> Option<IpAddr> {
        let (base, bits): (IpAddr, u8) = match family {
            Family::V4 => (pools.v4.network().into(), 32 - pools.v4.prefix_len()),
            Family::V6 => (pools.v6.network().into(), 128 - pools.v6.prefix_len()),
        };
        let ip = probe(host_numbers(bits), name, |host| {
            let ip = offset(base, host);
            (!self.ips.contains(&ip)).then_some(ip)
        })?;
        self.ips.insert(ip);
        Some(ip)
    }

    fn node_port(&mut self, pools: &Pools, name: &str) -> Option<u16> {
        let (first, last) = (u32::from(*pools.node_ports.start()), u32::from(*pools.node_ports.end()));
        let port = probe(std::iter::once(first..=last), name, |number| {
            u16::try_from(number).ok().filter(|port| !self.node_ports.contains(port))
        })?;
        self.node_ports.insert(port);
        Some(port)
    }
}

/// The numbers of the addresses that may be handed out, by preference.
///
/// The first ones are left to addresses that people choose (a cluster's DNS tends to be the tenth): a sixteenth of the
/// range, at least 16, at most 256, as KEP-3070 has it. The very first and last are not handed out.
fn host_numbers(bits: u8) -> [RangeInclusive<u32>; 2] {
    let size = 1_u32 << bits.min(20);
    let last = size.saturating_sub(2);
    let chosen = (size / 16).clamp(16, 256);
    [chosen..=last, 1..=last.min(chosen - 1)]
}

/// The first free value from the name's place on, in each range in turn.
fn probe<T>(
    ranges: impl IntoIterator<Item = RangeInclusive<u32>>,
    name: &str,
    free: impl Fn(u32) -> Option<T>,
) -> Option<T> {
    ranges.into_iter().filter(|range| !range.is_empty()).find_map(|range| {
        let (first, size) = (*range.start(), range.end() - range.start() + 1);
        let start = (hash(name) % u64::from(size)) as u32;
        (0..size).find_map(|step| free(first + (start + step) % size))
    })
}

fn offset(base: IpAddr, host: u32) -> IpAddr {
    match base {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() | host).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() | u128::from(host)).into(),
    }
}

/// FNV-1a: the same in every build, unlike the standard library's hash.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
