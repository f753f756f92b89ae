//! What load balancers outside are told of a Service on this node (`spec.healthCheckNodePort`).
//!
//! kube-proxy's rules: only type `LoadBalancer` with `externalTrafficPolicy: Local` has such a port, and only endpoints
//! that are ready and run here count, each address once however many ports it serves. A node whose endpoints are all
//! terminating counts none, so that balancers turn away from it while it still serves what comes.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Context, EndpointState, frontends};
use crate::model::{EndpointSlice, Family, Service, ServiceType, TrafficPolicy};

/// The health check of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port that answers, at the addresses that answer node ports.
    pub port: u16,
    /// What it answers.
    pub local_endpoints: LocalEndpoints,
}

/// How many endpoints of a Service are ready on this node, in each family that the Service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalEndpoints {
    /// IPv4; absent: the Service has no cluster address of that family.
    pub v4: Option<u32>,
    /// The same for IPv6.
    pub v6: Option<u32>,
}

impl LocalEndpoints {
    /// Those that a client of an address of this family is told of: of the Service's other family, if it lacks this one.
    ///
    /// A balancer may probe a node of both families at either address, whatever families the Service has.
    pub fn seen_from(self, family: Family) -> u32 {
        let (own, other) = match family {
            Family::V4 => (self.v4, self.v6),
            Family::V6 => (self.v6, self.v4),
        };
        own.or(other).unwrap_or(0)
    }
}

/// The health check of a Service with these slices, if it has one.
pub fn resolve(service: &Service, slices: &[EndpointSlice], context: &Context) -> Option<HealthCheck> {
    let asked = service.service_type == ServiceType::LoadBalancer
        && service.external_policy == TrafficPolicy::Local
        && frontends::skip(service).is_none();
    let port = service.health_check_node_port.filter(|_| asked)?;
    let of = |family| {
        let has_family = service.cluster_ips.iter().any(|ip| Family::of(&ip.to_canonical()) == family);
        has_family.then(|| count(slices, family, context))
    };
    Some(HealthCheck { port, local_endpoints: LocalEndpoints { v4: of(Family::V4), v6: of(Family::V6) } })
}

/// The different addresses that are ready here. A slice without ports serves nothing.
fn count(slices: &[EndpointSlice], family: Family, context: &Context) -> u32 {
    let serving = slices.iter().filter(|slice| slice.family == family && !slice.ports.is_empty());
    let ready = serving.flat_map(|slice| &slice.endpoints).filter(|endpoint| {
        endpoint.node.as_ref() == Some(&context.node_name)
            && EndpointState::of(endpoint.conditions) == EndpointState::Ready
    });
    ready.map(|endpoint| endpoint.address.to_canonical()).collect::<BTreeSet<IpAddr>>().len() as u32
}

#[cfg(test)]
mod tests;
