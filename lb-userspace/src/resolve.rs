//! Which endpoints a service port uses and where it is reachable: kube-proxy's rules.
//!
//! Pure and total: any Service with any slices resolves, and what cannot be served becomes a [`Problem`]. One Service at
//! a time; what several Services claim alike is settled in [`crate::desired::claims`].

pub mod algorithm;
pub mod categorize;
pub mod endpoints;
pub mod frontends;
pub mod health_check;
pub mod node_addresses;
pub mod service_cidrs;

use std::{collections::BTreeSet, sync::Arc};

use lb_common::{
    prefix::Prefix,
    service::{Settings, flags},
};

pub use self::{
    algorithm::DefaultAlgorithm,
    endpoints::{EndpointState, ResolvedEndpoint, Verdict},
    frontends::{PortSpec, Skip},
};
use crate::model::{EndpointSlice, Family, Problem, Service, TrafficPolicy};

/// What resolving depends on besides the objects of one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The own node: its endpoints are local.
    pub node_name: Arc<str>,
    /// The own node's zone; none: zone hints are ignored.
    pub zone: Option<Arc<str>>,
    /// Whether `spec.externalIPs` are served.
    pub external_ips: bool,
    /// How backends are chosen where a Service does not say it.
    pub algorithm: DefaultAlgorithm,
}

/// A Service, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved<'a> {
    /// Why it is not translated; then it has no ports.
    pub skipped: Option<Skip>,
    /// Its ports, one for each port, protocol and family.
    pub ports: Vec<ResolvedPort<'a>>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// A service port in one family, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPort<'a> {
    /// What it is and where it is reachable.
    pub spec: PortSpec,
    /// Its policies.
    pub settings: Settings,
    /// The clients that it admits at load balancers' addresses, sorted, each once; none: all.
    pub source_ranges: Vec<Prefix>,
    /// Its endpoints, used or not, sorted by address.
    pub endpoints: Vec<ResolvedEndpoint<'a>>,
}

/// Resolves a Service with the slices that belong to it.
pub fn resolve<'a>(service: &Service, slices: &'a [EndpointSlice], context: &Context) -> Resolved<'a> {
    let mut problems = Vec::new();
    let (skipped, specs) = match frontends::resolve(service, context, &mut problems) {
        Ok(specs) => (None, specs),
        Err(skip) => (Some(skip), Vec::new()),
    };
    let resolved = specs.into_iter().map(|spec| {
        let endpoints = endpoints::resolve(&spec, slices, context, &mut problems);
        let source_ranges = source_ranges(service, spec.family);
        let settings = settings(service, &spec, context, &source_ranges, &endpoints);
        ResolvedPort { spec, settings, source_ranges, endpoints }
    });
    let ports = resolved.collect();
    problems.sort();
    problems.dedup();
    Resolved { skipped, ports, problems }
}

/// The source ranges of one family. Where all are of the other one, clients of this one are not filtered, as in
/// kube-proxy.
pub fn source_ranges(service: &Service, family: Family) -> Vec<Prefix> {
    let of_family = service.source_ranges.iter().filter(|range| Family::of(&range.addr()) == family);
    let prefixes = of_family.map(|range| Prefix::of(range.addr(), range.prefix_len()));
    prefixes.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The policies of a service port with these source ranges and endpoints.
pub fn settings(
    service: &Service,
    spec: &PortSpec,
    context: &Context,
    source_ranges: &[Prefix],
    endpoints: &[ResolvedEndpoint<'_>],
) -> Settings {
    let policy = |policy, flag| if policy == TrafficPolicy::Local { flag } else { 0 };
    let any = if endpoints.iter().any(ResolvedEndpoint::is_usable) { flags::ANY_ENDPOINTS } else { 0 };
    Settings {
        flags: policy(service.internal_policy, flags::INTERNAL_LOCAL)
            | policy(service.external_policy, flags::EXTERNAL_LOCAL)
            | if source_ranges.is_empty() { 0 } else { flags::SOURCE_RANGES }
            | algorithm::settings_flags(service, spec, context.algorithm)
            | any,
        affinity_seconds: service.affinity_seconds.unwrap_or(0),
    }
}
