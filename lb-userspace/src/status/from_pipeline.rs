//! From the pipeline's views to the documents.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::config::maps;

use super::{
    BackendList, BackendStatus, EndpointStatus, FrontendStatus, Membership, PortStatus, ProblemStatus,
    ServiceList, ServiceStatus, TableStatus,
};
use crate::{
    model::Problem,
    pipeline::{BackendView, FrontendView, PortView, ServiceView, Summary, Usage},
};

impl From<Vec<ServiceView>> for ServiceList {
    fn from(views: Vec<ServiceView>) -> Self {
        Self { services: views.into_iter().map(ServiceStatus::from).collect() }
    }
}

impl From<ServiceView> for ServiceStatus {
    fn from(view: ServiceView) -> Self {
        let ServiceView { namespace, name, service_type, skipped, ports } = view;
        Self {
            namespace: Some(namespace),
            name: Some(name),
            service_type: Some(service_type.to_owned()),
            skipped: skipped.map(str::to_owned),
            ports: ports.into_iter().map(PortStatus::from).collect(),
        }
    }
}

impl From<PortView> for PortStatus {
    fn from(view: PortView) -> Self {
        let PortView {
            name,
            protocol,
            family,
            service_id,
            record,
            internal_policy,
            external_policy,
            affinity_seconds,
            frontends,
            backends,
        } = view;
        Self {
            name,
            protocol: protocol.to_owned(),
            family: family.to_owned(),
            service_id,
            record,
            internal_policy: internal_policy.to_owned(),
            external_policy: external_policy.to_owned(),
            affinity_seconds,
            frontends: frontends.into_iter().map(FrontendStatus::from).collect(),
            endpoints: backends.into_iter().map(EndpointStatus::from).collect(),
        }
    }
}

impl From<FrontendView> for FrontendStatus {
    fn from(view: FrontendView) -> Self {
        let FrontendView { address, kind, in_force, taken_by } = view;
        Self { address, kind: kind.to_owned(), in_force, taken_by }
    }
}

impl From<BackendView> for EndpointStatus {
    fn from(view: BackendView) -> Self {
        let BackendView {
            address,
            id,
            state,
            node,
            local,
            source,
            in_cluster_set,
            in_local_set,
            cluster,
            local_set,
        } = view;
        Self {
            address,
            backend_id: id,
            state: Some(state.to_owned()),
            node,
            local,
            source: Some(source),
            cluster_set: Membership { used: in_cluster_set, reason: Some(cluster.to_owned()) },
            local_set: Membership { used: in_local_set, reason: Some(local_set.to_owned()) },
        }
    }
}

impl From<&ServiceList> for BackendList {
    /// The backends in force, each once, with the service ports that send to it.
    fn from(list: &ServiceList) -> Self {
        let mut backends: BTreeMap<u32, BackendStatus> = BTreeMap::new();
        for (service, port) in list.services.iter().flat_map(|s| s.ports.iter().map(move |port| (s, port))) {
            let name = port_name(service, port);
            for endpoint in port.endpoints.iter().filter(|e| e.cluster_set.used || e.local_set.used) {
                let Some(id) = endpoint.backend_id else { continue };
                let backend = backends.entry(id).or_insert_with(|| BackendStatus {
                    address: endpoint.address.clone(),
                    protocol: port.protocol.clone(),
                    id,
                    local: endpoint.local,
                    node: endpoint.node.clone(),
                    services: Vec::new(),
                });
                if !backend.services.contains(&name) {
                    backend.services.push(name.clone());
                }
            }
        }
        let mut backends: Vec<_> = backends.into_values().collect();
        backends.sort_by_cached_key(|backend| {
            (backend.address.parse::<SocketAddr>().ok(), backend.protocol.clone(), backend.id)
        });
        Self { backends }
    }
}

fn port_name(service: &ServiceStatus, port: &PortStatus) -> String {
    match (&service.namespace, &service.name) {
        (Some(namespace), Some(name)) if port.name.is_empty() => format!("{namespace}/{name}"),
        (Some(namespace), Some(name)) => format!("{namespace}/{name}:{}", port.name),
        _ => port.service_id.map_or_else(|| "?".to_owned(), |id| format!("service {id}")),
    }
}

impl From<Problem> for ProblemStatus {
    fn from(problem: Problem) -> Self {
        let Problem { object, field, what } = problem;
        Self { object, field, what }
    }
}

/// How full each table is that the pipeline fills.
pub fn tables(summary: &Summary) -> Vec<TableStatus> {
    let table = |map: &str, usage: &Usage| TableStatus {
        map: map.to_owned(),
        used: u64::from(usage.used) + u64::from(usage.retired),
        capacity: u64::from(usage.capacity),
    };
    vec![
        table(maps::FRONTENDS, &summary.frontends),
        table(maps::SERVICES, &summary.records),
        table(maps::BACKENDS, &summary.slots),
        table(maps::NODE_ADDRESSES, &summary.node_addresses),
    ]
}
