//! Which node ports a socket of the host holds. Pure.
//!
//! While Sockeye runs, `bind()` of a node port in use is refused. A socket that was bound before stays, and hears nothing
//! of what is sent to the node port.

use std::net::{IpAddr, Ipv4Addr};

use lb_common::{
    address::{Port, Protocol},
    config::node_address,
    frontend::FrontendKey,
};

use crate::{
    pipeline::{NodePort, NodePorts},
    sock_diag::BoundSocket,
};

/// The node ports that a socket holds, of both families if it is at `::` and takes IPv4, too: the rule by which the
/// programs refuse a `bind()`.
pub(crate) fn held<'a>(
    socket: &BoundSocket,
    node_ports: &'a NodePorts,
) -> impl Iterator<Item = (&'a FrontendKey, &'a NodePort)> {
    let ip = socket.local.ip();
    let also_v4 = ip == IpAddr::V6([0; 8].into()) && !socket.v6_only;
    let v4 = also_v4.then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let socket = *socket;
    [ip].into_iter().chain(v4).filter_map(move |ip| at(ip, &socket, node_ports))
}

/// The node port that answers at an address; at the unspecified one: at any.
fn at<'a>(
    ip: IpAddr,
    socket: &BoundSocket,
    node_ports: &'a NodePorts,
) -> Option<(&'a FrontendKey, &'a NodePort)> {
    let protocol = Protocol::try_from(socket.protocol).ok()?;
    let address = ip.to_canonical().into();
    let key = FrontendKey::new(address, Port::new(socket.local.port()), protocol);
    let value = node_ports.addresses.get(&address);
    let answers = value.is_some_and(|value| value.flags & node_address::NODE_PORTS != 0);
    if key != key.node_port() && !answers {
        return None;
    }
    node_ports.ports.get_key_value(&key.node_port())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::{address::Address, config::NodeAddress};

    use super::*;

    fn socket(protocol: Protocol, local: &str, v6_only: bool) -> BoundSocket {
        BoundSocket { protocol: protocol as u8, local: local.parse().unwrap(), v6_only, inode: 1 }
    }

    fn node_ports(ports: &[(&str, Protocol)]) -> NodePorts {
        let key = |(unspecified, protocol): &(&str, Protocol)| {
            let address = unspecified.parse::<IpAddr>().unwrap().into();
            FrontendKey::new(address, Port::new(30080), *protocol)
        };
        let named = |port: &(&str, Protocol)| {
            let name = NodePort { service: "default/web".to_owned(), port: port.0.to_owned() };
            (key(port), name)
        };
        let address = |ip: &str, flags| (Address::from(ip.parse::<IpAddr>().unwrap()), NodeAddress { flags });
        NodePorts {
            ports: ports.iter().map(named).collect(),
            addresses: BTreeMap::from([
                address("192.0.2.1", node_address::NODE_PORTS),
                address("2001:db8::1", node_address::NODE_PORTS),
                address("10.0.0.1", 0),
            ]),
        }
    }

    #[test]
    fn a_socket_holds_the_node_ports_that_answer_where_it_is_bound() {
        const TCP: Protocol = Protocol::Tcp;
        let dual = node_ports(&[("0.0.0.0", TCP), ("::", TCP)]);
        let v4 = node_ports(&[("0.0.0.0", TCP)]);
        for (node_ports, protocol, local, v6_only, expected) in [
            (&dual, TCP, "0.0.0.0:30080", false, &["0.0.0.0"] as &[_]),
            (&dual, TCP, "[::]:30080", false, &["::", "0.0.0.0"]),
            (&dual, TCP, "[::]:30080", true, &["::"]),
            (&v4, TCP, "[::]:30080", false, &["0.0.0.0"]),
            (&v4, TCP, "[::]:30080", true, &[]),
            (&dual, TCP, "192.0.2.1:30080", false, &["0.0.0.0"]),
            (&dual, TCP, "[::ffff:192.0.2.1]:30080", false, &["0.0.0.0"]),
            (&dual, TCP, "[2001:db8::1]:30080", false, &["::"]),
            // Another protocol or port; an address that is not the node's, or serves no node ports.
            (&dual, Protocol::Udp, "0.0.0.0:30080", false, &[]),
            (&dual, TCP, "0.0.0.0:30081", false, &[]),
            (&dual, TCP, "192.0.2.2:30080", false, &[]),
            (&dual, TCP, "10.0.0.1:30080", false, &[]),
        ] {
            let socket = socket(protocol, local, v6_only);
            let found: Vec<_> = held(&socket, node_ports).map(|(_, port)| port.port.as_str()).collect();
            assert_eq!(found, expected, "{protocol} {local} {v6_only}");
        }
    }
}
