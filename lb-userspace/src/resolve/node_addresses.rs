//! Which addresses of the node answer node ports (`--nodeport-addresses`).

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// The addresses at which node ports answer: the union of what is named.
///
/// Written as a list, separated by commas, of CIDRs and the keywords `primary` (the Node's first address of each
/// family), `localhost` (loopback, for processes of the node only) and `all` (every address of the node's interfaces
/// except loopback). A family that nothing names gets none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortAddresses {
    /// The Node's first address of each family.
    pub primary: bool,
    /// Loopback addresses.
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
