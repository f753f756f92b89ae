//! Which address translated sources get, in each family. Pure.

use std::net::IpAddr;

use super::devices::Devices;
use crate::{config::NodeIps, model::Node};

/// The operator's choice, else the Node's first address, else the first that fits of a device that clients come in by.
pub(crate) fn choose(given: NodeIps, node: Option<&Node>, devices: &Devices) -> NodeIps {
    let of_node = || node.into_iter().flat_map(|node| node.addresses.iter().copied());
    let of_devices =
        || devices.values().flat_map(|device| device.addresses.iter().copied()).filter(reaches_others);
    let candidates = || of_node().chain(of_devices());
    let v4 = |ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None };
    let v6 = |ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None };
    NodeIps {
        v4: given.v4.or_else(|| candidates().find_map(v4)),
        v6: given.v6.or_else(|| candidates().find_map(v6)),
    }
}

/// Whether other machines can answer to an address.
fn reaches_others(ip: &IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !link_local && !ip.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::devices::Device;

    fn ips(v4: &str, v6: &str) -> NodeIps {
        NodeIps { v4: v4.parse().ok(), v6: v6.parse().ok() }
    }

    fn addresses(list: &str) -> Vec<IpAddr> {
        list.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn the_operator_wins_over_the_node_and_the_node_over_its_devices() {
        for (given, node, device, expected) in [
            (ips("", ""), "", "", ips("", "")),
            (ips("", ""), "", "169.254.1.1 fe80::1 127.0.0.1 ::1", ips("", "")),
            (ips("", ""), "", "fe80::1 192.0.2.9 2001:db8::9", ips("192.0.2.9", "2001:db8::9")),
            (ips("", ""), "192.0.2.1", "192.0.2.9 2001:db8::9", ips("192.0.2.1", "2001:db8::9")),
            (ips("", ""), "2001:db8::1 192.0.2.1 192.0.2.2", "", ips("192.0.2.1", "2001:db8::1")),
            (ips("192.0.2.7", ""), "192.0.2.1 2001:db8::1", "", ips("192.0.2.7", "2001:db8::1")),
        ] {
            let node = Node { addresses: addresses(node), ..Node::default() };
            let devices = Devices::from([(
                2,
                Device { name: "eth0".to_owned(), addresses: addresses(device), why: Vec::new() },
            )]);
            assert_eq!(choose(given, Some(&node), &devices), expected, "{given:?} {node:?} {devices:?}");
        }
        assert_eq!(choose(ips("192.0.2.7", ""), None, &Devices::new()), ips("192.0.2.7", ""));
    }
}
