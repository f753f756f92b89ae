//! Which health check ports this node answers for load balancers, for whom, and with what.
//!
//! [`crate::resolve::health_check`] says what one Service asks for; here they come together, and what several ask for
//! alike is settled: the older Service has the port, then by name, as with frontends. Pure; [`server`] is the edge.

pub mod answer;
pub mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use crate::{
    model::{Family, ObjectName, Problem},
    resolve::health_check::{HealthCheck, LocalEndpoints},
};

/// The field that all problems of health checks name.
const FIELD: &str = "spec.healthCheckNodePort";

/// What has changed for one Service, or for the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthCheckChange {
    /// A Service has this health check now.
    Service {
        /// Its name.
        name: ObjectName,
        /// When it was created: [`crate::model::Service::created`].
        created: Option<i64>,
        /// Absent: it has none any more.
        check: Option<HealthCheck>,
    },
    /// Health checks answer at these addresses.
    Addresses(BTreeSet<IpAddr>),
}

/// All health checks of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// Who claims a port. The first in order has it.
    ports: BTreeMap<u16, BTreeMap<Claim, LocalEndpoints>>,
    claims: BTreeMap<ObjectName, (u16, Claim)>,
    addresses: BTreeSet<IpAddr>,
}

/// A claim on a port; the smallest comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    /// A Service without a time of creation is younger than all that have one.
    timeless: bool,
    created: Option<i64>,
    name: ObjectName,
}

impl Claim {
    fn new(name: &ObjectName, created: Option<i64>) -> Self {
        Self { timeless: created.is_none(), created, name: name.clone() }
    }
}

impl HealthChecks {
    /// Takes a change in. Says whether it concerns who listens where; otherwise only answers differ.
    pub fn apply(&mut self, change: HealthCheckChange) -> bool {
        match change {
            HealthCheckChange::Addresses(addresses) => {
                let differs = self.addresses != addresses;
                self.addresses = addresses;
                differs
            }
            HealthCheckChange::Service { name, created, check } => {
                let claim = check.map(|check| (check.port, Claim::new(&name, created)));
                let differs = self.claims.get(&name) != claim.as_ref();
                if differs && let Some((port, claim)) = self.claims.remove(&name) {
                    self.withdraw(port, &claim);
                }
                if let (Some((port, claim)), Some(check)) = (claim, check) {
                    self.ports.entry(port).or_default().insert(claim.clone(), check.local_endpoints);
                    self.claims.insert(name, (port, claim));
                }
                differs
            }
        }
    }

    fn withdraw(&mut self, port: u16, claim: &Claim) {
        if let Some(claims) = self.ports.get_mut(&port) {
            claims.remove(claim);
            if claims.is_empty() {
                self.ports.remove(&port);
            }
        }
    }

    /// Where to listen.
    pub fn sockets(&self) -> BTreeSet<SocketAddr> {
        let sockets = |port: &u16| {
            let port = *port;
            self.addresses.iter().map(move |ip| SocketAddr::new(*ip, port))
        };
        self.ports.keys().flat_map(sockets).collect()
    }

    /// The Service that has the port of a socket, and how many endpoints it has here, as clients of that address are told.
    pub fn at(&self, socket: &SocketAddr) -> Option<(&ObjectName, u32)> {
        let (claim, local_endpoints) = self.ports.get(&socket.port())?.first_key_value()?;
        Some((&claim.name, local_endpoints.seen_from(Family::of(&socket.ip()))))
    }

    /// What is wrong: ports that several Services claim, and these sockets that cannot be listened on.
    pub fn problems(&self, failures: &BTreeMap<SocketAddr, String>) -> Vec<Problem> {
        let problem = |name: &ObjectName, what| Problem {
            object: format!("Service {name}"),
            field: FIELD.to_owned(),
            what,
        };
        let mut problems = Vec::new();
        for (port, claims) in &self.ports {
            let mut names = claims.keys().map(|claim| &claim.name);
            let Some(winner) = names.next() else { continue };
            for loser in names {
                let what = format!(
                    "{port} belongs to Service {winner}, which comes first (the older, then by name); \
                     this Service's health is not told until that one goes"
                );
                problems.push(problem(loser, what));
            }
        }
        for (socket, error) in failures {
            if let Some((name, _)) = self.at(socket) {
                problems.push(problem(name, format!("cannot listen on {socket}: {error}; trying again")));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests;
