//! How a service port's backends are chosen: at random, or by a Maglev table.

use lb_common::{address::Protocol, frontend::FrontendKind, service::flags};

use super::PortSpec;
use crate::model::{Algorithm, Service, TrafficPolicy};

/// How backends are chosen where a Service does not say it (`--algorithm`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DefaultAlgorithm {
    /// maglev for UDP from outside, else random
    #[default]
    Auto,
    /// at random
    Random,
    /// clients outside by their address and port, the same on every node; sockets of the node at random
    Maglev,
}

/// The bits of [`flags`] for a service port.
///
/// From outside, a table makes a flow that arrives at another node reach the same backend. UDP needs it most: no reset tells
/// a client to start anew. With the external policy Local each node has backends of its own, and there is nothing to agree on.
pub fn settings_flags(service: &Service, spec: &PortSpec, default: DefaultAlgorithm) -> u32 {
    let is_external = spec.frontends.iter().any(|(_, kind)| *kind != FrontendKind::ClusterIp);
    let (outside, sockets) = match (service.algorithm, default) {
        (Some(Algorithm::Maglev), _) => (true, true),
        (Some(Algorithm::Random), _) | (None, DefaultAlgorithm::Random) => (false, false),
        (None, DefaultAlgorithm::Maglev) => (is_external, false),
        (None, DefaultAlgorithm::Auto) => (is_external && spec.protocol == Protocol::Udp, false),
    };
    let is_shared = service.external_policy == TrafficPolicy::Cluster;
    let bit = |on, flag| if on { flag } else { 0 };
    bit(outside && is_shared, flags::MAGLEV_OUTSIDE) | bit(sockets, flags::MAGLEV_SOCKETS)
}
