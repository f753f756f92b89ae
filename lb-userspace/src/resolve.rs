//! Which endpoints a service port uses and where it is reachable: kube-proxy's rules.

pub mod node_addresses;
