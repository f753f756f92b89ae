//! Where a Service is reachable: its ports, in each of its families, with their frontends.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use lb_common::{
    address::{Address, Port, Protocol},
    frontend::{FrontendKey, FrontendKind},
};

use super::Context;
use crate::model::{Family, Problem, Service, ServicePort, ServiceType};

/// The label that gives a Service to another proxy, whatever its value.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Why a Service is not translated at all. None of these is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Type ExternalName: an alias in DNS.
    ExternalName,
    /// `clusterIP: None`: DNS gives out the endpoints themselves.
    Headless,
    /// Labelled for another proxy ([`PROXY_NAME_LABEL`]).
    OtherProxy,
    /// No cluster address is allocated yet.
    NoClusterIp,
}

impl Skip {
    /// The reason for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ExternalName => "external name",
            Self::Headless => "headless",
            Self::OtherProxy => "other proxy",
            Self::NoClusterIp => "no cluster address",
        }
    }
}

/// A service port in one family: what has a record of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// The port's name; empty for an unnamed single port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The family of its frontends and of its backends.
    pub family: Family,
    /// Where it is reachable; the cluster address comes first. No key twice within a Service.
    pub frontends: Vec<(FrontendKey, FrontendKind)>,
}

impl PortSpec {
    /// Whether this is the same service port, wherever it is reachable.
    pub fn is_same_port(&self, other: &Self) -> bool {
        (self.protocol, self.family, &self.name) == (other.protocol, other.family, &other.name)
    }
}

/// The ports of a Service, or why it has none.
pub fn resolve(
    service: &Service,
    context: &Context,
    problems: &mut Vec<Problem>,
) -> Result<Vec<PortSpec>, Skip> {
    if let Some(skip) = skip(service) {
        return Err(skip);
    }
    let mut resolver = Resolver { service, named: BTreeSet::new(), taken: BTreeSet::new(), problems };
    let addresses = resolver.addresses(context);
    let mut specs = Vec::with_capacity(service.ports.len());
    for (index, port) in service.ports.iter().enumerate() {
        if resolver.is_servable(index, port) {
            for family in [Family::V4, Family::V6] {
                specs.extend(resolver.port(index, port, family, &addresses));
            }
        }
    }
    Ok(specs)
}

/// The cluster addresses of a Service that is left to another proxy; of all others: none.
pub fn foreign_addresses(service: &Service) -> BTreeSet<Address> {
    if skip(service) != Some(Skip::OtherProxy) {
        return BTreeSet::new();
    }
    service.cluster_ips.iter().map(|ip| ip.to_canonical().into()).collect()
}

/// Why a Service is not translated at all, if it is not.
pub(super) fn skip(service: &Service) -> Option<Skip> {
    if service.service_type == ServiceType::ExternalName {
        Some(Skip::ExternalName)
    } else if service.headless {
        Some(Skip::Headless)
    } else if service.labels.contains_key(PROXY_NAME_LABEL) {
        Some(Skip::OtherProxy)
    } else if service.cluster_ips.is_empty() {
        Some(Skip::NoClusterIp)
    } else {
        None
    }
}

/// An address that a Service stands at.
struct FrontendAddress {
    ip: IpAddr,
    kind: FrontendKind,
}

struct Resolver<'a> {
    service: &'a Service,
    /// The names of its ports so far, with their protocols.
    named: BTreeSet<(&'a str, Protocol)>,
    /// The keys of the Service so far.
    taken: BTreeSet<FrontendKey>,
    problems: &'a mut Vec<Problem>,
}

impl<'a> Resolver<'a> {
    /// All addresses of the Service but those of the node; cluster addresses first.
    fn addresses(&mut self, context: &Context) -> Vec<FrontendAddress> {
        let service = self.service;
        let mut addresses = Vec::with_capacity(service.cluster_ips.len());
        self.add(&mut addresses, &service.cluster_ips, FrontendKind::ClusterIp, "spec.clusterIPs");
        // Before external addresses: what is both admits the load balancer's sources only.
        let field = "status.loadBalancer.ingress";
        self.add(&mut addresses, &service.ingress_ips, FrontendKind::LoadBalancer, field);
        if context.external_ips {
            self.add(&mut addresses, &service.external_ips, FrontendKind::ExternalIp, "spec.externalIPs");
        }
        addresses
    }

    /// Adds those addresses that a service can stand at. Families without a cluster address are not served at all
    /// (as in kube-proxy, where each family is a proxy of its own).
    fn add(&mut self, addresses: &mut Vec<FrontendAddress>, ips: &[IpAddr], kind: FrontendKind, field: &str) {
        for ip in ips.iter().map(IpAddr::to_canonical) {
            let family = Family::of(&ip);
            if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
                let what = format!("{ip} cannot be a service's address: it is ignored");
                self.problem(field.to_owned(), what);
            } else if kind != FrontendKind::ClusterIp && !has_cluster_ip(addresses, family) {
                let what = format!("{ip} is ignored: the Service has no cluster address of that family");
                self.problem(field.to_owned(), what);
            } else if !addresses.iter().any(|known| known.ip == ip) {
                addresses.push(FrontendAddress { ip, kind });
            }
        }
    }

    /// Whether a port can be served; a second port of the same name and protocol cannot.
    fn is_servable(&mut self, index: usize, port: &'a ServicePort) -> bool {
        let what = if port.protocol == Protocol::Sctp {
            "SCTP is not supported at the socket: the port is left untouched"
        } else if !self.named.insert((&port.name, port.protocol)) {
            "another port of the Service has the same name and protocol: this one is ignored"
        } else {
            return true;
        };
        self.problem(format!("spec.ports[{index}]"), what.to_owned());
        false
    }

    /// One port in one family, if the Service has a cluster address of that family.
    fn port(
        &mut self,
        index: usize,
        port: &ServicePort,
        family: Family,
        addresses: &[FrontendAddress],
    ) -> Option<PortSpec> {
        if !has_cluster_ip(addresses, family) {
            return None;
        }
        let of_family = addresses.iter().filter(|address| Family::of(&address.ip) == family);
        let mut frontends = Vec::with_capacity(addresses.len() + 1);
        for FrontendAddress { ip, kind } in of_family {
            let key = FrontendKey::new(Address::from(*ip), Port::new(port.port), port.protocol);
            if self.taken.insert(key) {
                frontends.push((key, *kind));
            } else {
                self.taken_twice(format!("spec.ports[{index}].port"), port.port);
            }
        }
        if let Some(number) = port.node_port {
            let key = FrontendKey::new(unspecified(family), Port::new(number), port.protocol);
            if self.taken.insert(key) {
                frontends.push((key, FrontendKind::NodePort));
            } else {
                self.taken_twice(format!("spec.ports[{index}].nodePort"), number);
            }
        }
        Some(PortSpec { name: port.name.clone(), protocol: port.protocol, family, frontends })
    }

    fn taken_twice(&mut self, field: String, number: u16) {
        let what = format!(
            "another port of the Service stands at {number} already: this one is not reachable there"
        );
        self.problem(field, what);
    }

    fn problem(&mut self, field: String, what: String) {
        self.problems.push(Problem { object: format!("Service {}", self.service.name), field, what });
    }
}

fn has_cluster_ip(addresses: &[FrontendAddress], family: Family) -> bool {
    addresses
        .iter()
        .any(|address| address.kind == FrontendKind::ClusterIp && Family::of(&address.ip) == family)
}

/// The address under which node ports of a family stand.
const fn unspecified(family: Family) -> Address {
    match family {
        Family::V4 => Address::from_v4_bytes([0; 4]),
        Family::V6 => Address::UNSPECIFIED,
    }
}

#[cfg(test)]
mod tests;
