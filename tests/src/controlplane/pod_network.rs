//! A node's network with its pods: namespaces on a bridge.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::Result;

use crate::netns::Netns;

/// The node's own addresses, on its loopback device.
pub const NODE_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10))];
/// A machine outside the cluster that the node reaches.
pub const OUTSIDE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

/// Without one of its own, a bridge takes the lowest of its ports', and the pods' neighbour tables are wrong for half a
/// minute whenever that changes.
const BRIDGE_MAC: &str = "02:00:00:00:00:01";

/// The network of one node. There is no default route, neither on the node nor in its pods: a Service that is not
/// translated is unreachable at once. (An ICMP message of a router would not end a connect: it is no hard error to TCP.)
#[derive(Debug)]
pub struct PodNetwork {
    node: Arc<Netns>,
    last: AtomicU16,
}

/// A pod's place on the network.
#[derive(Debug)]
pub struct Sandbox {
    /// Its namespace.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl PodNetwork {
    /// A node without pods.
    pub fn new() -> Result<Self> {
        let node = Netns::new("node")?;
        node.set_sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let [v4, v6] = NODE_ADDRESSES;
        node.ip(&format!(
            "addr add {v4}/32 dev lo\n\
             addr add {v6}/128 dev lo nodad\n\
             link add pods address {BRIDGE_MAC} type bridge\n\
             link set pods up\n\
             addr add 10.244.0.1/16 dev pods\n\
             addr add fd00:10:244::1/64 dev pods nodad\n\
             addr add 203.0.113.1/24 dev pods"
        ))?;
        Ok(Self { node: Arc::new(node), last: AtomicU16::new(1) })
    }

    /// The node's own namespace.
    pub const fn node(&self) -> &Arc<Netns> {
        &self.node
    }

    /// A new pod.
    pub fn attach(&self, what: &str) -> Result<Sandbox> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let [high, low] = number.to_be_bytes();
        let v4 = Ipv4Addr::new(10, 244, high, low);
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, number);
        let [node_v4, node_v6] = NODE_ADDRESSES;
        let netns = self.machine(what, number)?;
        netns.ip(&format!(
            "addr add {v4}/16 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             route add {node_v4} via 10.244.0.1\n\
             route add {node_v6} via fd00:10:244::1\n\
             route add {OUTSIDE_ADDRESS} via 10.244.0.1"
        ))?;
        Ok(Sandbox { netns, v4, v6 })
    }

    /// A machine at [`OUTSIDE_ADDRESS`]: no part of the cluster. There can be one.
    pub fn attach_outside(&self) -> Result<Netns> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let netns = self.machine("outside", number)?;
        netns.ip(&format!("addr add {OUTSIDE_ADDRESS}/24 dev eth0\nroute add default via 203.0.113.1"))?;
        Ok(netns)
    }

    fn machine(&self, what: &str, number: u16) -> Result<Netns> {
        let netns = Netns::new(what)?;
        self.node.join(&format!("pod{number}"), &netns, "eth0")?;
        self.node.ip(&format!("link set pod{number} master pods"))?;
        Ok(netns)
    }
}
