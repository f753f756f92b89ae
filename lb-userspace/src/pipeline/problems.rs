//! What is wrong, for as long as it lasts, from everywhere.

use std::{collections::BTreeMap, error::Error};

use lb_common::{
    config::maps,
    frontend::{FrontendKey, FrontendKind},
};

use crate::{
    desired::{Desired, Port},
    model::{EndpointSlice, Kind, ObjectName, Problem},
    state::{ServiceIndex, State},
    store::{StoreError, dump::frontend_name},
};

/// What is wrong besides what the sources say.
#[derive(Debug, Default)]
pub(super) struct Problems {
    frontends: BTreeMap<ServiceIndex, Vec<Problem>>,
    endpoints: BTreeMap<ServiceIndex, Vec<Problem>>,
    orphans: BTreeMap<ServiceIndex, Vec<Problem>>,
    store: BTreeMap<ServiceIndex, Vec<Problem>>,
    deletes: BTreeMap<FrontendKey, Problem>,
    node_addresses: Vec<Problem>,
    foreign: Vec<Problem>,
    service_cidrs: Vec<Problem>,
}

impl Problems {
    /// With a Service itself.
    pub(super) fn set_frontends(&mut self, service: ServiceIndex, problems: Vec<Problem>) {
        set(&mut self.frontends, service, problems);
    }

    /// With its endpoints.
    pub(super) fn set_endpoints(&mut self, service: ServiceIndex, problems: Vec<Problem>) {
        set(&mut self.endpoints, service, problems);
    }

    /// With writing it.
    pub(super) fn set_store(&mut self, service: ServiceIndex, problems: Vec<Problem>) {
        set(&mut self.store, service, problems);
    }

    /// With slices of a Service that is not there.
    pub(super) fn set_orphans(&mut self, service: ServiceIndex, slices: &[EndpointSlice], name: &ObjectName) {
        let problem = |slice: &EndpointSlice| Problem {
            object: format!("EndpointSlice {}", slice.name),
            field: "metadata.labels[kubernetes.io/service-name]".to_owned(),
            what: format!("there is no Service {name}: the slice is not used"),
        };
        set(&mut self.orphans, service, slices.iter().map(problem).collect());
    }

    /// With deleting a frontend.
    pub(super) fn set_delete(&mut self, key: FrontendKey, error: &StoreError) {
        let what = format!(
            "cannot be deleted, though no Service has it any more: {}; it is tried again",
            text(error)
        );
        let problem = Problem { object: frontend_name(&key), field: String::new(), what };
        self.deletes.insert(key, problem);
    }

    /// A frontend is deleted, or claimed again.
    pub(super) fn clear_delete(&mut self, key: &FrontendKey) {
        self.deletes.remove(key);
    }

    /// With the node's addresses: so many do not fit, and this failed.
    pub(super) fn set_node_addresses(&mut self, excess: usize, failed: Option<&StoreError>) {
        self.node_addresses.clear();
        if excess != 0 {
            let map = maps::NODE_ADDRESSES;
            self.add_node(format!(
                "map {map} is full: node ports do not answer at {excess} of its addresses"
            ));
        }
        if let Some(error) = failed {
            self.add_node(format!("its addresses are not all in force: {}; it is tried again", text(error)));
        }
    }

    /// With the addresses that another proxy serves: so many do not fit, and this failed.
    pub(super) fn set_foreign(&mut self, excess: usize, failed: Option<&StoreError>) {
        let map = maps::FRONTENDS;
        let full = (excess != 0).then(|| {
            format!(
                "map {map} has no room for {excess} of their addresses: until there is, no cluster address is refused"
            )
        });
        let failed = failed.map(|error| format!("not all are in force: {}; it is tried again", text(error)));
        let object = "Services of another proxy";
        let problem = |what| Problem { object: object.to_owned(), field: "spec.clusterIPs".to_owned(), what };
        self.foreign = full.into_iter().chain(failed).map(problem).collect();
    }

    /// With the networks that cluster addresses come from, besides what `found` says of the objects: this failed.
    pub(super) fn set_service_cidrs(&mut self, found: Vec<Problem>, failed: Option<&StoreError>) {
        self.service_cidrs = found;
        self.service_cidrs.extend(failed.map(|error| Problem {
            object: Kind::ServiceCidr.to_string(),
            field: String::new(),
            what: format!("not all networks are in force: {}; it is tried again", text(error)),
        }));
    }

    fn add_node(&mut self, what: String) {
        let field = "status.addresses".to_owned();
        self.node_addresses.push(Problem { object: "Node".to_owned(), field, what });
    }

    /// All, sorted, each once.
    pub(super) fn all(&self, state: &State, desired: &Desired) -> Vec<Problem> {
        let by_service = [&self.frontends, &self.endpoints, &self.orphans, &self.store];
        let mut all: Vec<_> = by_service.into_iter().flat_map(BTreeMap::values).flatten().cloned().collect();
        all.extend(self.deletes.values().chain(&self.node_addresses).chain(state.problems()).cloned());
        all.extend(self.foreign.iter().chain(&self.service_cidrs).cloned());
        all.extend(conflicts(state, desired));
        all.sort();
        all.dedup();
        all
    }
}

/// An error with all its causes.
pub(super) fn text(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn set(problems: &mut BTreeMap<ServiceIndex, Vec<Problem>>, service: ServiceIndex, new: Vec<Problem>) {
    if new.is_empty() {
        problems.remove(&service);
    } else {
        problems.insert(service, new);
    }
}

/// The frontends that several Services claim: a problem of each that does not have it.
fn conflicts(state: &State, desired: &Desired) -> Vec<Problem> {
    let name =
        |port: &Port| state.entry(port.service).map(|entry| entry.name.to_string()).unwrap_or_default();
    let mut problems = Vec::new();
    for (key, winner, waiting) in desired.contested() {
        let winner = name(desired.port(winner));
        for loser in waiting.iter().map(|port| desired.port(*port)) {
            let what = format!(
                "{} belongs to Service {winner}, which comes first (the older, then by name); \
                 this Service takes over when that one goes",
                frontend_name(key)
            );
            let object = format!("Service {}", name(loser));
            problems.push(Problem { object, field: field(loser, key), what });
        }
    }
    problems
}

/// The field from which a port has a frontend.
fn field(port: &Port, key: &FrontendKey) -> String {
    let kind = port.spec.frontends.iter().find(|(other, _)| other == key).map(|(_, kind)| *kind);
    match kind {
        Some(FrontendKind::ClusterIp) => "spec.clusterIPs".to_owned(),
        Some(FrontendKind::LoadBalancer) => "status.loadBalancer.ingress".to_owned(),
        Some(FrontendKind::ExternalIp) => "spec.externalIPs".to_owned(),
        Some(FrontendKind::OtherProxy) | None => String::new(),
        Some(FrontendKind::NodePort) => format!("spec.ports[{}].nodePort", port.spec.name),
    }
}
