//! Making the views of [`super::view`].

use std::collections::BTreeMap;

use lb_common::frontend::{FrontendKey, FrontendKind};

use super::{BackendView, FrontendView, Pipeline, PortView, ServiceView, Summary, Usage};
use crate::{
    desired::{Port, claims::PortIndex, ids::BackendKey},
    model::{Family, Service, ServiceType, TrafficPolicy},
    resolve::{self, ResolvedEndpoint, ResolvedPort},
    state::{Entry, ServiceIndex},
};

impl Pipeline {
    /// All Services, sorted by namespace and name.
    pub fn services(&self) -> Vec<ServiceView> {
        let entries = self.state.entries().filter_map(|(index, entry)| {
            Some((&entry.name, self.service_view(index, entry, entry.service.as_ref()?)))
        });
        entries.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// `namespace/name:port` of each record in force, for dumps of the tables.
    pub fn record_names(&self) -> BTreeMap<u32, String> {
        let named = self.desired.ports().filter_map(|(_, port)| {
            let service = &self.state.entry(port.service)?.name;
            let separator = if port.spec.name.is_empty() { "" } else { ":" };
            Some((port.record?, format!("{service}{separator}{}", port.spec.name)))
        });
        named.collect()
    }

    /// Counts.
    pub fn summary(&self) -> Summary {
        let (actual, capacity) = (&self.actual, self.actual.capacity());
        let hash = |used: u32, capacity: u32| Usage {
            used,
            free: capacity.saturating_sub(used),
            retired: 0,
            capacity,
        };
        Summary {
            synced: self.is_synced(),
            services: self.state.entries().filter(|(_, entry)| entry.service.is_some()).count(),
            records: Usage {
                used: actual.records().used(),
                free: actual.records().free(),
                retired: actual.records().retired().len() as u32,
                capacity: capacity.services,
            },
            frontends: hash(actual.frontends(), capacity.frontends),
            slots: Usage {
                used: actual.slots().used(),
                free: actual.slots().free(),
                retired: actual.slots().retired(),
                capacity: capacity.backends,
            },
            node_addresses: hash(actual.node_addresses().len() as u32, capacity.node_addresses),
            backends: actual.ids().len(),
            dirty: self.dirty() + self.state.touched(),
            blocked: self.blocked.len(),
        }
    }

    fn service_view(&self, index: ServiceIndex, entry: &Entry, service: &Service) -> ServiceView {
        let resolved = resolve::resolve(service, entry.endpoint_slices(), &self.context);
        let ports = resolved.ports.iter().map(|port| self.port_view(index, service, port)).collect();
        ServiceView {
            namespace: service.name.namespace.to_string(),
            name: service.name.name.to_string(),
            service_type: type_name(service.service_type),
            skipped: resolved.skipped.map(resolve::Skip::name),
            ports,
        }
    }

    fn port_view(&self, index: ServiceIndex, service: &Service, resolved: &ResolvedPort<'_>) -> PortView {
        let spec = &resolved.spec;
        let same = |port: &&PortIndex| self.desired.port(**port).spec.is_same_port(spec);
        let index = self.desired.ports_of(index).iter().find(same).copied();
        let port = index.map(|index| self.desired.port(index));
        let record = port.and_then(|port| port.record);
        let frontends = spec.frontends.iter().map(|(key, kind)| self.frontend_view(*key, *kind, index, port));
        let backends = resolved.endpoints.iter().map(|endpoint| self.backend_view(endpoint, spec));
        PortView {
            name: spec.name.to_string(),
            protocol: spec.protocol.name(),
            family: family_name(spec.family),
            service_id: record.and(port).map(|port| port.service_id),
            record,
            internal_policy: policy_name(service.internal_policy),
            external_policy: policy_name(service.external_policy),
            affinity_seconds: resolved.settings.affinity_seconds,
            frontends: frontends.collect(),
            backends: backends.collect(),
        }
    }

    fn frontend_view(
        &self,
        key: FrontendKey,
        kind: FrontendKind,
        index: Option<PortIndex>,
        port: Option<&Port>,
    ) -> FrontendView {
        let record = port.and_then(|port| port.record);
        let entry = self.actual.frontend(&key);
        let winner = self.desired.winner(&key).filter(|winner| index.is_some_and(|own| own != *winner));
        let taken_by = winner.and_then(|winner| self.state.entry(self.desired.port(winner).service));
        FrontendView {
            address: key.socket_address().to_string(),
            kind: kind.name(),
            in_force: entry.is_some_and(|entry| Some(entry.record) == record),
            taken_by: taken_by.map(|entry| entry.name.to_string()),
        }
    }

    fn backend_view(&self, endpoint: &ResolvedEndpoint<'_>, spec: &resolve::PortSpec) -> BackendView {
        let key = BackendKey { address: endpoint.address, protocol: spec.protocol };
        BackendView {
            address: endpoint.address.to_string(),
            id: self.actual.ids().get(&key),
            state: endpoint.state.name(),
            node: endpoint.endpoint.node.as_deref().map(str::to_owned),
            local: endpoint.local,
            source: endpoint.slice.name.to_string(),
            in_cluster_set: endpoint.cluster.is_used(),
            in_local_set: endpoint.local_set.is_used(),
            cluster: endpoint.cluster.name(),
            local_set: endpoint.local_set.name(),
        }
    }
}

const fn type_name(service_type: ServiceType) -> &'static str {
    match service_type {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    }
}

const fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}
