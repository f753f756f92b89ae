//! The node ports in force, for whoever looks for sockets that hold one.

use std::collections::BTreeMap;

use lb_common::{
    address::Address,
    config::NodeAddress,
    frontend::{FrontendKey, FrontendKind},
};

use super::Pipeline;

/// The node ports in force, and where they answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePorts {
    /// By frontend, which stands under the unspecified address of its family.
    pub ports: BTreeMap<FrontendKey, NodePort>,
    /// The node's addresses.
    pub addresses: BTreeMap<Address, NodeAddress>,
}

/// Whose node port it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePort {
    /// `namespace/name`.
    pub service: String,
    /// The port's name.
    pub port: String,
}

impl Pipeline {
    /// The node ports in force, and where they answer.
    pub fn node_ports(&self) -> NodePorts {
        let mut ports = BTreeMap::new();
        for (_, port) in self.desired.ports() {
            let in_force = |key: &FrontendKey| {
                self.actual.frontend(key).is_some_and(|entry| Some(entry.record) == port.record)
            };
            let keys = port.spec.frontends.iter().filter(|(_, kind)| *kind == FrontendKind::NodePort);
            for (key, _) in keys.filter(|(key, _)| in_force(key)) {
                let service = self.state.entry(port.service).map(|entry| entry.name.to_string());
                let (service, port) = (service.unwrap_or_default(), port.spec.name.to_string());
                ports.insert(*key, NodePort { service, port });
            }
        }
        NodePorts { ports, addresses: self.actual.node_addresses().clone() }
    }
}
