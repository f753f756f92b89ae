//! What the tables should hold: which service ports there are, who has which frontend, and the numbers and places of
//! what is in force.

pub mod claims;
pub mod foreign;
pub mod ids;
pub mod maglev;
pub mod records;
pub mod slots;

use std::{collections::BTreeMap, sync::Arc};

use lb_common::{
    address::Protocol,
    frontend::{FrontendKey, FrontendKind},
};
use slab::Slab;

use self::claims::{Claimed, Claims, PortIndex, Withdrawn};
use crate::{
    model::{Family, ObjectName},
    resolve::PortSpec,
    state::ServiceIndex,
};

/// The service ports of all Services.
#[derive(Debug, Default)]
pub struct Desired {
    ports: Slab<Port>,
    services: Vec<ServicePorts>,
    claims: Claims,
}

/// A service port in one family.
#[derive(Debug)]
pub struct Port {
    /// Its Service.
    pub service: ServiceIndex,
    /// What it is and what it claims.
    pub spec: PortSpec,
    /// Its number in the maps; zero: none given yet.
    pub service_id: u32,
    /// Its record, once that is written.
    pub record: Option<u32>,
    /// Its place among the Service's ports.
    position: usize,
}

#[derive(Debug)]
struct ServicePorts {
    name: ObjectName,
    created: Option<i64>,
    ports: Vec<PortIndex>,
}

/// What a change of one Service's ports means for the rest.
#[derive(Debug, Default)]
pub struct Effects {
    /// Services that have won or lost a frontend; perhaps more than once.
    pub services: Vec<ServiceIndex>,
    /// Frontends that were given up; somebody may have claimed them since.
    pub given_up: Vec<FrontendKey>,
    /// Records of ports that are gone.
    pub records: Vec<u32>,
    /// Numbers of ports that are gone.
    pub service_ids: Vec<u32>,
}

impl Desired {
    /// Sets the ports of a Service; none: it is gone, or not translated. A port that was there before keeps its number
    /// and its record.
    ///
    /// `created` decides, before the name, who is senior: the older Service; one without comes last.
    pub fn set_service(
        &mut self,
        service: ServiceIndex,
        name: &ObjectName,
        created: Option<i64>,
        specs: Vec<PortSpec>,
        effects: &mut Effects,
    ) {
        if self.is_unchanged(service, created, &specs) {
            return;
        }
        let mut before: BTreeMap<_, _> = self
            .withdraw_all(service, effects)
            .into_iter()
            .map(|port| (identity(&self.port(port).spec), port))
            .collect();
        let mut ports = Vec::with_capacity(specs.len());
        for (position, spec) in specs.into_iter().enumerate() {
            ports.push(match before.remove(&identity(&spec)) {
                Some(port) => {
                    let known = &mut self.ports[port as usize];
                    (known.spec, known.position) = (spec, position);
                    port
                }
                None => self.ports.insert(Port { service, spec, service_id: 0, record: None, position })
                    as PortIndex,
            });
        }
        for gone in before.into_values() {
            let Port { record, service_id, .. } = self.ports.remove(gone as usize);
            effects.records.extend(record);
            effects.service_ids.push(service_id);
        }
        while self.services.len() <= service {
            let name = ObjectName::new("", "");
            self.services.push(ServicePorts { name, created: None, ports: Vec::new() });
        }
        self.services[service] = ServicePorts { name: name.clone(), created, ports };
        self.claim_all(service, effects);
    }

    /// A Service's ports, in the order of the Service.
    pub fn ports_of(&self, service: ServiceIndex) -> &[PortIndex] {
        self.services.get(service).map_or(&[], |service| &service.ports)
    }

    /// A port.
    pub fn port(&self, port: PortIndex) -> &Port {
        &self.ports[port as usize]
    }

    /// A port, to note what is in force.
    pub fn port_mut(&mut self, port: PortIndex) -> &mut Port {
        &mut self.ports[port as usize]
    }

    /// All ports, in no order that means anything.
    pub fn ports(&self) -> impl Iterator<Item = (PortIndex, &Port)> {
        self.ports.iter().map(|(index, port)| (index as PortIndex, port))
    }

    /// Who has a frontend.
    pub fn winner(&self, key: &FrontendKey) -> Option<PortIndex> {
        self.claims.winner(key)
    }

    /// The frontends that a port claims and has.
    pub fn frontends_of(&self, port: PortIndex) -> Vec<(FrontendKey, FrontendKind)> {
        let claimed = self.port(port).spec.frontends.iter();
        claimed.filter(|(key, _)| self.claims.winner(key) == Some(port)).copied().collect()
    }

    /// The frontends that several claim, with who has it and who waits.
    pub fn contested(&self) -> impl Iterator<Item = (&FrontendKey, PortIndex, &[PortIndex])> {
        self.claims.contested()
    }

    fn is_unchanged(&self, service: ServiceIndex, created: Option<i64>, specs: &[PortSpec]) -> bool {
        let Some(known) = self.services.get(service) else { return specs.is_empty() };
        known.ports.len() == specs.len()
            && (specs.is_empty() || known.created == created)
            && known.ports.iter().zip(specs).all(|(port, spec)| self.port(*port).spec == *spec)
    }

    /// Withdraws all claims of a Service, because its rank may change. Returns its ports.
    fn withdraw_all(&mut self, service: ServiceIndex, effects: &mut Effects) -> Vec<PortIndex> {
        let Some(known) = self.services.get_mut(service) else { return Vec::new() };
        let withdrawing = std::mem::take(&mut known.ports);
        let Self { ports, services, claims } = self;
        let is_senior = |a, b| is_senior(ports, services, a, b);
        for port in &withdrawing {
            for (key, _) in &ports[*port as usize].spec.frontends {
                match claims.withdraw(key, *port, is_senior) {
                    Withdrawn::Free => effects.given_up.push(*key),
                    Withdrawn::To(heir) => effects.services.push(ports[heir as usize].service),
                    Withdrawn::WasWaiting => {}
                }
            }
        }
        withdrawing
    }

    fn claim_all(&mut self, service: ServiceIndex, effects: &mut Effects) {
        let Self { ports, services, claims } = self;
        let is_senior = |a, b| is_senior(ports, services, a, b);
        for port in &services[service].ports {
            for (key, _) in &ports[*port as usize].spec.frontends {
                match claims.claim(*key, *port, is_senior) {
                    Claimed::From(loser) => effects.services.push(ports[loser as usize].service),
                    Claimed::Free | Claimed::Waiting => {}
                }
            }
        }
    }
}

/// What makes it the same service port after a change of its Service.
fn identity(spec: &PortSpec) -> (Arc<str>, Protocol, Family) {
    (spec.name.clone(), spec.protocol, spec.family)
}

/// Older before younger, then by namespace and name, then by the order in the Service.
fn is_senior(ports: &Slab<Port>, services: &[ServicePorts], a: PortIndex, b: PortIndex) -> bool {
    let rank = |port: PortIndex| {
        let port = &ports[port as usize];
        let service = &services[port.service];
        (service.created.is_none(), service.created, &service.name, port.position)
    };
    rank(a) < rank(b)
}

#[cfg(test)]
mod tests;
