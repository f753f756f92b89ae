//! Which endpoints of a service port are in the cluster set, and which in the local set.
//!
//! kube-proxy's `CategorizeEndpoints` (pkg/proxy/topology.go, v1.37; KEP-1669, KEP-2433, KEP-4444). Two differences, both
//! without effect on traffic: both sets are always decided, whichever policies the Service has, and each endpoint gets
//! its reason.
//!
//! Where the local set has an endpoint, the cluster set has one too: a change of policy relies on it.

use super::endpoints::{EndpointState, Verdict};

/// What deciding needs to know of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What its conditions amount to.
    pub state: EndpointState,
    /// Whether it runs on this node.
    pub local: bool,
    /// Its hints for nodes.
    pub node_hint: Hint,
    /// Its hints for zones.
    pub zone_hint: Hint,
}

/// For whom an endpoint is hinted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// No hint.
    Absent,
    /// For this node, or this node's zone, perhaps among others.
    Here,
    /// Only for others.
    Elsewhere,
}

impl Hint {
    /// The hint that a list of names is for `own`; a node without a zone is in none of them.
    pub fn of<N: AsRef<str>>(names: &[N], own: Option<&str>) -> Self {
        if names.is_empty() {
            Self::Absent
        } else if own.is_some_and(|own| names.iter().any(|name| name.as_ref() == own)) {
            Self::Here
        } else {
            Self::Elsewhere
        }
    }
}

/// Which hints apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Node,
    Zone,
    All,
}

/// What the endpoints of a service port have in common: what the decision on each of them depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    any_ready: bool,
    any_local_ready: bool,
    topology: Topology,
}

impl Pool {
    /// Looks at all endpoints of a service port, each address and port once.
    pub fn of(candidates: impl Iterator<Item = Candidate>) -> Self {
        let (mut any_ready, mut any_local_ready) = (false, false);
        // Only the hints of ready endpoints count. One without a hint disables that kind of hint.
        let (mut node, mut zone) = (HintCount::default(), HintCount::default());
        for candidate in candidates.filter(|candidate| candidate.state == EndpointState::Ready) {
            any_ready = true;
            any_local_ready |= candidate.local;
            node.add(candidate.node_hint);
            zone.add(candidate.zone_hint);
        }
        let topology = if node.applies() {
            Topology::Node
        } else if zone.applies() {
            Topology::Zone
        } else {
            Topology::All
        };
        Self { any_ready, any_local_ready, topology }
    }

    /// Why an endpoint of the pool is in the cluster set and in the local set, or not.
    pub fn verdicts(self, candidate: Candidate) -> (Verdict, Verdict) {
        (self.cluster(candidate), self.local(candidate))
    }

    /// The ready endpoints that are hinted for here, else all that are terminating and still serving, whatever their
    /// hints.
    fn cluster(self, candidate: Candidate) -> Verdict {
        match candidate.state {
            EndpointState::NotReady => Verdict::NotReady,
            EndpointState::Terminating if self.any_ready => Verdict::Terminating,
            EndpointState::Terminating => Verdict::LastServing,
            EndpointState::Ready => match (self.topology, candidate.node_hint, candidate.zone_hint) {
                (Topology::Node, Hint::Here, _) => Verdict::HintedForNode,
                (Topology::Node, _, _) => Verdict::HintedForOtherNodes,
                (Topology::Zone, _, Hint::Here) => Verdict::HintedForZone,
                (Topology::Zone, _, _) => Verdict::HintedForOtherZones,
                (Topology::All, _, _) => Verdict::Ready,
            },
        }
    }

    /// The local ready endpoints, else the local ones that are terminating and still serving. Hints do not count.
    fn local(self, candidate: Candidate) -> Verdict {
        match candidate.state {
            EndpointState::NotReady => Verdict::NotReady,
            _ if !candidate.local => Verdict::OtherNode,
            EndpointState::Ready => Verdict::Ready,
            EndpointState::Terminating if self.any_local_ready => Verdict::Terminating,
            EndpointState::Terminating => Verdict::LastServing,
        }
    }
}

#[derive(Default)]
struct HintCount {
    absent: bool,
    here: bool,
}

impl HintCount {
    fn add(&mut self, hint: Hint) {
        self.absent |= hint == Hint::Absent;
        self.here |= hint == Hint::Here;
    }

    fn applies(&self) -> bool {
        self.here && !self.absent
    }
}

#[cfg(test)]
mod tests;
