//! Two nodes, three pods, a client outside and a database: the cluster of the tests and of the demo.
//!
//! ```text
//!   client            database           node-b ── pod3
//!  172.18.0.10       172.18.0.20       172.18.0.3   10.244.2.13
//!       │                 │                 │
//!  ─────┴─────────────────┴────────┬────────┴───  lan 172.18.0.0/24, fd00:18::/64
//!                                  │ eth0
//!                                node-a 172.18.0.2     the node under test
//!                               ╱      ╲
//!                            pod1      pod2
//!                      10.244.1.11    10.244.1.12
//! ```
//!
//! Each has an IPv6 address with the same last number: `fd00:18::2`, `fd00:244:1::11`. Nodes forward and reach each
//! other's pods through the nodes' addresses, as with a routing network plug-in. A pod is joined to its node by a veth
//! of its own with a host route, and what the node sends there bears the node's address. The database knows the way to
//! the pods, the client does not: what a pod sent to the client itself could never be the answer to anything. The client
//! sends the load balancer's and the external addresses (203.0.113.0/24, 198.51.100.0/24 and their IPv6 equals) to
//! node-a.
//!
//! The nodes check the source of packets strictly (`rp_filter` 1), since some distributions do. Sockets of node-a and
//! of its pods live in cgroups `host`, `pod1` and `pod2` below one that the agent gets; all other machines' outside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};

use crate::{cgroup::Cgroup, netns::Netns, process::Place};

/// A machine or a pod.
#[derive(Debug)]
pub struct Machine {
    /// Its name in the messages of tests.
    pub name: &'static str,
    /// Its network.
    pub netns: Netns,
    /// Where its processes live, if the agent serves them.
    pub cgroup: Option<Cgroup>,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl Machine {
    fn new(name: &'static str, cgroup: Option<Cgroup>, v4: &str, v6: &str) -> Result<Self> {
        Ok(Self {
            name,
            netns: Netns::new(name)?,
            cgroup,
            v4: v4.parse().with_context(|| format!("the address {v4}"))?,
            v6: v6.parse().with_context(|| format!("the address {v6}"))?,
        })
    }

    /// Where its processes live.
    pub fn place(&self) -> Place<'_> {
        Place { netns: Some(&self.netns), cgroup: self.cgroup.as_ref() }
    }

    /// Its addresses: IPv4, IPv6.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// A port at each of its addresses.
    pub fn sockets(&self, port: u16) -> [SocketAddr; 2] {
        self.addresses().map(|address| (address, port).into())
    }
}

/// All of them. Machines go before the cgroup that the agent has.
#[derive(Debug)]
pub struct Topology {
    /// A machine outside the cluster.
    pub client: Machine,
    /// A server outside the cluster that pods can reach.
    pub database: Machine,
    /// The node under test.
    pub node_a: Machine,
    /// A pod on node-a.
    pub pod1: Machine,
    /// Another pod on node-a.
    pub pod2: Machine,
    /// Another node.
    pub node_b: Machine,
    /// A pod on node-b.
    pub pod3: Machine,
    /// Holds the cgroups of node-a and of its pods; the programs are attached here.
    pub cgroup: Cgroup,
    /// The switch.
    lan: Netns,
}

/// The external device of node-a.
pub const NODE_DEVICE: &str = "eth0";

impl Topology {
    /// Builds it.
    pub fn new() -> Result<Self> {
        let cgroup = Cgroup::new("node-a")?;
        let inside = |name| cgroup.child(name).map(Some);
        let topology = Self {
            client: Machine::new("client", None, "172.18.0.10", "fd00:18::10")?,
            database: Machine::new("database", None, "172.18.0.20", "fd00:18::20")?,
            node_a: Machine::new("node-a", inside("host")?, "172.18.0.2", "fd00:18::2")?,
            pod1: Machine::new("pod1", inside("pod1")?, "10.244.1.11", "fd00:244:1::11")?,
            pod2: Machine::new("pod2", inside("pod2")?, "10.244.1.12", "fd00:244:1::12")?,
            node_b: Machine::new("node-b", None, "172.18.0.3", "fd00:18::3")?,
            pod3: Machine::new("pod3", None, "10.244.2.13", "fd00:244:2::13")?,
            lan: Netns::new("lan")?,
            cgroup,
        };
        topology.join_lan()?;
        join_pods(&topology.node_a, &[&topology.pod1, &topology.pod2], "10.244.1.1", "fd00:244:1::1")?;
        join_pods(&topology.node_b, &[&topology.pod3], "10.244.2.1", "fd00:244:2::1")?;
        topology.add_routes()?;
        Ok(topology)
    }

    /// Makes all devices compute checksums and cut packets themselves: what passes is then what a wire would carry.
    pub fn switch_off_offloads(&self) -> Result<()> {
        let all =
            [&self.client, &self.database, &self.node_a, &self.pod1, &self.pod2, &self.node_b, &self.pod3];
        for machine in all {
            machine.netns.switch_off_offloads(NODE_DEVICE)?;
        }
        for (node, pod) in
            [(&self.node_a, &self.pod1), (&self.node_a, &self.pod2), (&self.node_b, &self.pod3)]
        {
            node.netns.switch_off_offloads(pod.name)?;
        }
        Ok(())
    }

    fn join_lan(&self) -> Result<()> {
        let lan = &self.lan;
        lan.ip("link add lan type bridge\nlink set lan up")?;
        for machine in [&self.client, &self.database, &self.node_a, &self.node_b] {
            let port = format!("to-{}", machine.name);
            lan.join(&port, &machine.netns, NODE_DEVICE)?;
            lan.ip(&format!("link set {port} master lan"))?;
            let Machine { v4, v6, .. } = machine;
            machine.netns.ip(&format!(
                "addr add {v4}/24 dev {NODE_DEVICE}\naddr add {v6}/64 dev {NODE_DEVICE} nodad"
            ))?;
        }
        Ok(())
    }

    fn add_routes(&self) -> Result<()> {
        let (a, b) = (&self.node_a, &self.node_b);
        let to_pods_of_a =
            format!("route add 10.244.1.0/24 via {}\nroute add fd00:244:1::/64 via {}", a.v4, a.v6);
        let to_pods_of_b =
            format!("route add 10.244.2.0/24 via {}\nroute add fd00:244:2::/64 via {}", b.v4, b.v6);
        a.netns.ip(&to_pods_of_b)?;
        b.netns.ip(&to_pods_of_a)?;
        self.database.netns.ip(&format!("{to_pods_of_a}\n{to_pods_of_b}"))?;
        self.client.netns.ip(&format!(
            "route add 203.0.113.0/24 via {v4}\nroute add 2001:db8:113::/64 via {v6}\n\
             route add 198.51.100.0/24 via {v4}\nroute add 2001:db8:100::/64 via {v6}",
            v4 = a.v4,
            v6 = a.v6
        ))
    }
}

/// Makes a machine a node: it forwards, and has a veth to each of its pods.
fn join_pods(node: &Machine, pods: &[&Machine], gateway_v4: &str, gateway_v6: &str) -> Result<()> {
    node.netns.set_sysctls(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "1"),
    ])?;
    for pod in pods {
        let Machine { name, v4, v6, .. } = pod;
        node.netns.join(name, &pod.netns, NODE_DEVICE)?;
        node.netns.ip(&format!(
            "addr add {gateway_v4}/32 dev {name}\naddr add {gateway_v6}/128 dev {name} nodad\n\
             route add {v4}/32 dev {name} src {node_v4}\nroute add {v6}/128 dev {name} src {node_v6}",
            node_v4 = node.v4,
            node_v6 = node.v6
        ))?;
        pod.netns.ip(&format!(
            "addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
             route add {gateway_v4}/32 dev eth0\nroute add default via {gateway_v4} dev eth0\n\
             route add {gateway_v6}/128 dev eth0\nroute add default via {gateway_v6} dev eth0"
        ))?;
    }
    Ok(())
}
