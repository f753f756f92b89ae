//! What changes for load balancers that ask for the health of Services on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::Pipeline;
use crate::{
    health_check::HealthCheckChange,
    resolve::{self, health_check::HealthCheck},
    state::ServiceIndex,
};

/// The health checks that have been told, and the changes that have not.
#[derive(Debug, Default)]
pub(super) struct HealthCheckNews {
    known: BTreeMap<ServiceIndex, (Option<i64>, HealthCheck)>,
    changes: Vec<HealthCheckChange>,
}

impl Pipeline {
    /// What has changed for health checks since the last call. The tables have been written as far as they could be.
    pub fn take_health_check_changes(&mut self) -> Vec<HealthCheckChange> {
        std::mem::take(&mut self.health_checks.changes)
    }

    /// Notes the health check of a touched Service, if it differs.
    pub(super) fn decide_health_check(&mut self, index: ServiceIndex) {
        let Some(entry) = self.state.entry(index) else { return };
        let check = entry.service.as_ref().and_then(|service| {
            let check = resolve::health_check::resolve(service, entry.endpoint_slices(), &self.context)?;
            Some((service.created, check))
        });
        let HealthCheckNews { known, changes } = &mut self.health_checks;
        if known.get(&index) == check.as_ref() {
            return;
        }
        let name = entry.name.clone();
        let created = check.and_then(|(created, _)| created);
        changes.push(HealthCheckChange::Service { name, created, check: check.map(|(_, check)| check) });
        match check {
            Some(check) => drop(known.insert(index, check)),
            None => drop(known.remove(&index)),
        }
    }

    /// Notes where health checks answer: at the addresses that answer node ports, as far as this machine has them.
    pub(super) fn decide_health_check_addresses(&mut self) {
        let (named, interfaces) = (&self.settings.node_port_addresses, self.state.interfaces());
        let answering = resolve::node_addresses::resolve(named, self.state.node(), interfaces);
        let held = interfaces.iter().map(IpAddr::to_canonical);
        let addresses: BTreeSet<_> =
            held.filter(|ip| !needs_a_device(ip) && answering.contains_key(&(*ip).into())).collect();
        self.health_checks.changes.push(HealthCheckChange::Addresses(addresses));
    }
}

/// Link-local IPv6 addresses mean something on one device only, which nothing here names (RFC 4007).
fn needs_a_device(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
