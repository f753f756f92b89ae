//! The endpoints of a service port, from all slices of the Service, and what becomes of each.

use std::net::IpAddr;

use lb_common::address::{Port, SocketAddress};

use super::{
    Context, PortSpec,
    categorize::{Candidate, Hint, Pool},
};
use crate::model::{Conditions, Endpoint, EndpointSlice, Family, Problem};

/// What an endpoint's conditions amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EndpointState {
    /// Takes new connections.
    Ready,
    /// Going, but still serving: takes new connections only where none is ready (KEP-1669).
    Terminating,
    /// Takes none.
    NotReady,
}

impl EndpointState {
    /// What these conditions amount to. `publishNotReadyAddresses` has already made its endpoints ready.
    pub const fn of(conditions: Conditions) -> Self {
        if conditions.ready {
            Self::Ready
        } else if conditions.serving && conditions.terminating {
            Self::Terminating
        } else {
            Self::NotReady
        }
    }

    /// The state for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Terminating => "terminating",
            Self::NotReady => "not ready",
        }
    }
}

/// Why an endpoint is, or is not, in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// In: it is ready.
    Ready,
    /// In: it is ready and hinted for this node.
    HintedForNode,
    /// In: it is ready and hinted for this node's zone.
    HintedForZone,
    /// In: it is terminating, and none is ready.
    LastServing,
    /// Out: it is neither ready nor serving.
    NotReady,
    /// Out: it is terminating, and others are ready.
    Terminating,
    /// Out: it is hinted for other nodes.
    HintedForOtherNodes,
    /// Out: it is hinted for other zones.
    HintedForOtherZones,
    /// Out of the local set: it runs on another node, or on none that is known.
    OtherNode,
    /// Out: the same address and port stands in another slice, in a state at least as good.
    Duplicate,
}

impl Verdict {
    /// Whether the endpoint is in the set.
    pub const fn is_used(self) -> bool {
        matches!(self, Self::Ready | Self::HintedForNode | Self::HintedForZone | Self::LastServing)
    }

    /// The reason for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "used: ready",
            Self::HintedForNode => "used: hinted for this node",
            Self::HintedForZone => "used: hinted for this zone",
            Self::LastServing => "used: terminating, and none is ready",
            Self::NotReady => "unused: not ready",
            Self::Terminating => "unused: terminating, and others are ready",
            Self::HintedForOtherNodes => "unused: hinted for other nodes",
            Self::HintedForOtherZones => "unused: hinted for other zones",
            Self::OtherNode => "unused: on another node",
            Self::Duplicate => "unused: a duplicate of one in another slice",
        }
    }
}

/// An endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedEndpoint<'a> {
    /// Where it serves.
    pub address: SocketAddress,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The slice that it stands in.
    pub slice: &'a EndpointSlice,
    /// What its conditions amount to.
    pub state: EndpointState,
    /// Whether it runs on this node.
    pub local: bool,
    /// In the set for policy `Cluster`, or not.
    pub cluster: Verdict,
    /// In the set for policy `Local`, or not.
    pub local_set: Verdict,
}

impl ResolvedEndpoint<'_> {
    /// Whether it serves at all, from here or from elsewhere.
    pub fn is_usable(&self) -> bool {
        self.state != EndpointState::NotReady
    }

    const fn is_duplicate(&self) -> bool {
        matches!(self.cluster, Verdict::Duplicate)
    }
}

/// The endpoints of a port, sorted by address.
///
/// A slice's port belongs to the service port of the same name and protocol. The same address and port in several slices
/// is one endpoint, in its best state (ready before terminating before not ready; then a local one).
pub fn resolve<'a>(
    port: &PortSpec,
    slices: &'a [EndpointSlice],
    context: &Context,
    problems: &mut Vec<Problem>,
) -> Vec<ResolvedEndpoint<'a>> {
    let mut endpoints = collect(port, slices, context, problems);
    endpoints.sort_by_key(|endpoint| (endpoint.address, endpoint.state, !endpoint.local));
    for next in 1..endpoints.len() {
        if endpoints[next].address == endpoints[next - 1].address {
            endpoints[next].cluster = Verdict::Duplicate;
            endpoints[next].local_set = Verdict::Duplicate;
        }
    }
    let distinct = endpoints.iter().filter(|endpoint| !endpoint.is_duplicate());
    let pool = Pool::of(distinct.map(|endpoint| candidate(endpoint, context)));
    for endpoint in endpoints.iter_mut().filter(|endpoint| !endpoint.is_duplicate()) {
        (endpoint.cluster, endpoint.local_set) = pool.verdicts(candidate(endpoint, context));
    }
    endpoints
}

/// All endpoints of the slices' ports that belong to the service port, in the order of the slices.
fn collect<'a>(
    port: &PortSpec,
    slices: &'a [EndpointSlice],
    context: &Context,
    problems: &mut Vec<Problem>,
) -> Vec<ResolvedEndpoint<'a>> {
    let of_family = || slices.iter().filter(|slice| slice.family == port.family);
    let mut endpoints = Vec::with_capacity(of_family().map(|slice| slice.endpoints.len()).sum());
    for slice in of_family() {
        let ports =
            slice.ports.iter().filter(|other| other.name == port.name && other.protocol == port.protocol);
        for number in ports.map(|port| port.port) {
            for (index, endpoint) in slice.endpoints.iter().enumerate() {
                match address(endpoint, port.family) {
                    Ok(ip) => endpoints.push(resolved(ip, number, endpoint, slice, context)),
                    Err(what) => problems.push(Problem {
                        object: format!("EndpointSlice {}", slice.name),
                        field: format!("endpoints[{index}].addresses[0]"),
                        what,
                    }),
                }
            }
        }
    }
    endpoints
}

/// An endpoint's address, if a backend of this family can have it.
fn address(endpoint: &Endpoint, family: Family) -> Result<IpAddr, String> {
    let ip = endpoint.address.to_canonical();
    if Family::of(&ip) != family {
        return Err(format!("{ip} is not of the slice's address type: the endpoint is ignored"));
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} is no address of an endpoint: it is ignored"));
    }
    Ok(ip)
}

fn candidate(endpoint: &ResolvedEndpoint<'_>, context: &Context) -> Candidate {
    Candidate {
        state: endpoint.state,
        local: endpoint.local,
        node_hint: Hint::of(&endpoint.endpoint.node_hints, Some(&context.node_name)),
        zone_hint: Hint::of(&endpoint.endpoint.zone_hints, context.zone.as_deref()),
    }
}

fn resolved<'a>(
    ip: IpAddr,
    port: u16,
    endpoint: &'a Endpoint,
    slice: &'a EndpointSlice,
    context: &Context,
) -> ResolvedEndpoint<'a> {
    let on = |name: &str| !name.is_empty() && *name == *context.node_name;
    ResolvedEndpoint {
        address: SocketAddress::new(ip.into(), Port::new(port)),
        endpoint,
        slice,
        state: EndpointState::of(endpoint.conditions),
        local: endpoint.node.as_deref().is_some_and(on),
        cluster: Verdict::NotReady,
        local_set: Verdict::NotReady,
    }
}

#[cfg(test)]
mod tests;
