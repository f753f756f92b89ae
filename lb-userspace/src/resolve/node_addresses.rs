//! Which addresses of the node answer node ports (`--nodeport-addresses`).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use lb_common::{
    address::Address,
    config::{NodeAddress, node_address},
};

use crate::model::{Family, Node};

/// The addresses at which node ports answer: the union of what is named.
///
/// Written as a list, separated by commas, of CIDRs and the keywords `primary` (the Node's first address of each
/// family), `localhost` (loopback, for processes of the node only) and `all` (every address of the node's interfaces
/// except loopback). A family that nothing names gets none (kube-proxy gives it all).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// The Node's first address of each family. Without a Node: all interface addresses except loopback and link-local.
    pub primary: bool,
    /// `127.0.0.1`, `::1` and what else stands on loopback interfaces.
    pub localhost: bool,
    /// All interface addresses except loopback.
    pub all: bool,
    /// Interface addresses within these.
    pub networks: Vec<IpNet>,
}

impl Default for NodePortAddresses {
    fn default() -> Self {
        Self { primary: true, localhost: true, all: false, networks: Vec::new() }
    }
}

/// An item of the list is neither a keyword nor a CIDR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{item:?} is neither primary, localhost, all nor a CIDR such as 192.0.2.0/24 or 2001:db8::/64")]
pub struct NodePortAddressesError {
    /// The item.
    pub item: String,
}

impl FromStr for NodePortAddresses {
    type Err = NodePortAddressesError;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let mut addresses = Self { primary: false, localhost: false, all: false, networks: Vec::new() };
        for item in list.split(',').map(str::trim) {
            match item {
                "primary" => addresses.primary = true,
                "localhost" => addresses.localhost = true,
                "all" => addresses.all = true,
                cidr => addresses.networks.push(parse_network(cidr)?),
            }
        }
        Ok(addresses)
    }
}

/// A CIDR; a single address stands for itself.
fn parse_network(item: &str) -> Result<IpNet, NodePortAddressesError> {
    item.parse::<IpNet>()
        .or_else(|_| item.parse::<IpAddr>().map(IpNet::from))
        .map(|network| network.trunc())
        .map_err(|_| NodePortAddressesError { item: item.to_owned() })
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keywords = [(self.primary, "primary"), (self.localhost, "localhost"), (self.all, "all")];
        let named = keywords.into_iter().filter(|(on, _)| *on).map(|(_, name)| name.to_owned());
        let items: Vec<_> = named.chain(self.networks.iter().map(IpNet::to_string)).collect();
        f.write_str(&items.join(","))
    }
}

/// The addresses that answer node ports, as `NODE_ADDRESSES` holds them. `interfaces` are those of the node, loopback
/// included.
///
/// A loopback address serves sockets of the host's network namespace alone: inside a pod it means the pod.
pub fn resolve(
    named: &NodePortAddresses,
    node: Option<&Node>,
    interfaces: &[IpAddr],
) -> BTreeMap<Address, NodeAddress> {
    let localhost = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let on_interfaces = interfaces.iter().map(IpAddr::to_canonical);
    let chosen = on_interfaces.filter(|ip| {
        (named.localhost && ip.is_loopback())
            || (named.all && !ip.is_loopback())
            || (named.primary && node.is_none() && !ip.is_loopback() && !is_link_local(ip))
            || named.networks.iter().any(|network| network.contains(ip))
    });
    let primary = node.filter(|_| named.primary).into_iter().flat_map(primary_addresses);
    let always = localhost.into_iter().filter(|_| named.localhost);
    chosen.chain(primary).chain(always).filter(|ip| !ip.is_unspecified()).map(node_port_address).collect()
}

/// The first address of each family.
fn primary_addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let canonical = || node.addresses.iter().map(IpAddr::to_canonical);
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(move |family| canonical().find(|ip| Family::of(ip) == family))
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn node_port_address(ip: IpAddr) -> (Address, NodeAddress) {
    let host_only = if ip.is_loopback() { node_address::HOST_ONLY } else { 0 };
    (ip.into(), NodeAddress { flags: node_address::NODE_PORTS | host_only })
}

#[cfg(test)]
mod tests;
