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

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{
    model::{Family, Kind, ObjectName, Problem, Protocol, Service, ServiceCidr, ServiceType, TrafficPolicy},
    source::origin,
};

/// What may be handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Cluster addresses of IPv4; absent: none.
    pub v4: Option<Ipv4Net>,
    /// Cluster addresses of IPv6; absent: none.
    pub v6: Option<Ipv6Net>,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
}

impl Pools {
    /// Cluster addresses from these networks, of which the last of each family counts, and the usual node ports.
    pub fn of(networks: &[IpNet]) -> Self {
        let mut pools = Self { v4: None, v6: None, node_ports: 30_000..=32_767 };
        for network in networks {
            match network {
                IpNet::V4(v4) => pools.v4 = Some(*v4),
                IpNet::V6(v6) => pools.v6 = Some(*v6),
            }
        }
        pools
    }

    /// The networks of cluster addresses: what is not handed out there is no Service's.
    pub fn service_cidr(&self) -> ServiceCidr {
        let networks = self.v4.map(IpNet::V4).into_iter().chain(self.v6.map(IpNet::V6));
        ServiceCidr { name: ObjectName::new("", "--service-cidr"), networks: networks.collect() }
    }
}

impl Default for Pools {
    /// What kubeadm and the API server use: `10.96.0.0/16`, `fd00:10:96::/112` and 30000-32767.
    fn default() -> Self {
        Self::of(&[
            Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16).into(),
            Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0), 112).into(),
        ])
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
        let network: IpNet = match family {
            Family::V4 => pools.v4?.into(),
            Family::V6 => pools.v6?.into(),
        };
        let bits = network.max_prefix_len() - network.prefix_len();
        let ip = probe(host_numbers(bits), name, |host| {
            let ip = offset(network.network(), host);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::source::convert;

    type Services = BTreeMap<ObjectName, (Service, Wish)>;

    fn service(name: &str, spec: &serde_json::Value, wish: Wish) -> (ObjectName, (Service, Wish)) {
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        let service = convert::service(&serde_json::from_value(object).unwrap()).0.unwrap();
        (service.name.clone(), (service, wish))
    }

    fn v4() -> Wish {
        Wish { families: vec![Family::V4], node_ports: false }
    }

    fn plain(name: &str) -> (ObjectName, (Service, Wish)) {
        service(name, &json!({"ports": [{"port": 80}]}), v4())
    }

    fn ips(services: &Services) -> Vec<String> {
        services.values().flat_map(|(service, _)| &service.cluster_ips).map(ToString::to_string).collect()
    }

    fn pool(network: &str) -> Pools {
        Pools::of(&[network.parse().unwrap()])
    }

    #[test]
    fn the_same_services_get_the_same_values_in_every_build() {
        let wish = Wish { families: vec![Family::V4, Family::V6], node_ports: true };
        let mut services = Services::from([service("web", &json!({"ports": [{"port": 80}]}), wish)]);
        assert_eq!(allocate(&mut services, &Pools::default()), []);
        let (web, _) = services.values().next().unwrap();
        let values = (ips(&services), web.ports[0].node_port);
        assert_eq!(values, (vec!["10.96.179.92".to_owned(), "fd00:10:96::b35c".to_owned()], Some(31_186)));
    }

    #[test]
    fn stated_addresses_are_kept_and_handed_to_nobody_else() {
        let taken = ips(&{
            let mut alone = Services::from([plain("web")]);
            allocate(&mut alone, &Pools::default());
            alone
        });
        for field in ["clusterIP", "externalIPs"] {
            let value = if field == "clusterIP" { json!(taken[0]) } else { json!(taken) };
            let other = json!({field: value, "ports": [{"port": 80}]});
            let mut services = Services::from([service("zoo", &other, Wish::default()), plain("web")]);
            assert_eq!(allocate(&mut services, &Pools::default()), []);
            assert_ne!(ips(&services)[0], taken[0]);
        }
    }

    #[test]
    fn a_full_pool_is_a_problem_of_the_service_that_finds_it_full() {
        let mut services: Services = ["a", "b", "c", "d", "e", "f", "g"].map(plain).into();
        let problems = allocate(&mut services, &pool("10.0.0.0/29"));
        let mut given = ips(&services);
        given.sort();
        assert_eq!(given, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "Service shop/g: spec.clusterIP: no free cluster address is left; state one, or remove Services"
            ]
        );
        for none in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/112"] {
            assert_eq!(allocate(&mut Services::from([plain("a")]), &pool(none)).len(), 1, "{none}");
        }
    }

    #[test]
    fn the_first_addresses_are_left_until_the_others_are_gone() {
        let mut services: Services = (0..250).map(|i| plain(&format!("s{i}"))).collect();
        assert_eq!(allocate(&mut services, &pool("10.0.0.0/24")), []);
        let low = |ip: &IpAddr| matches!(ip, IpAddr::V4(v4) if v4.octets()[3] < 16);
        let count =
            services.values().flat_map(|(service, _)| &service.cluster_ips).filter(|ip| low(ip)).count();
        assert_eq!(count, 250 - (255 - 16));
    }

    #[test]
    fn protocols_of_one_port_share_a_node_port() {
        let spec = json!({"type": "NodePort", "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53},
            {"name": "a", "port": 80, "nodePort": 31_000}, {"name": "b", "port": 81},
        ]});
        let mut services =
            Services::from([service("dns", &spec, Wish { node_ports: true, ..Wish::default() })]);
        assert_eq!(allocate(&mut services, &Pools::default()), []);
        let ports: Vec<_> =
            services.values().next().unwrap().0.ports.iter().map(|port| port.node_port.unwrap()).collect();
        assert_eq!((ports[0], ports[2]), (ports[1], 31_000));
        assert!(ports[3] != ports[0] && ports[3] != 31_000);
    }

    #[test]
    fn a_full_range_of_node_ports_is_a_problem_of_the_port() {
        let spec = json!({"type": "NodePort", "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]});
        let mut services =
            Services::from([service("web", &spec, Wish { node_ports: true, ..Wish::default() })]);
        let pools = Pools { node_ports: 30_000..=30_000, ..Pools::default() };
        let problems = allocate(&mut services, &pools);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].field, "spec.ports[1].nodePort");
    }

    #[test]
    fn local_load_balancers_get_a_port_for_their_health() {
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
        let mut services =
            Services::from([service("web", &spec, Wish { node_ports: true, ..Wish::default() })]);
        allocate(&mut services, &Pools::default());
        let (web, _) = services.values().next().unwrap();
        assert!(web.health_check_node_port.is_some());
        assert_ne!(web.health_check_node_port, web.ports[0].node_port);
    }

    proptest! {
        #[test]
        fn no_value_is_given_twice(names in prop::collection::btree_set("[a-z]{1,3}", 0..60)) {
            let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
            let wish = Wish { node_ports: true, ..v4() };
            let mut services: Services = names.iter().map(|name| service(name, &spec, wish.clone())).collect();
            prop_assert_eq!(allocate(&mut services, &pool("10.0.0.0/26")), []);
            let all = ips(&services);
            prop_assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), names.len());
            let ports: BTreeSet<_> = services.values().map(|(service, _)| service.ports[0].node_port).collect();
            prop_assert_eq!(ports.len(), names.len());
        }
    }
}
