//! Switches, capacities and names that both sides use.

use bytemuck::{Pod, Zeroable};

use crate::{address::Address, flow::Lifetimes, network::Network};

/// Version of the layout of all pinned maps. Another version means another generation of maps.
pub const LAYOUT_VERSION: u32 = 3;

/// The maps' names: a public interface, at most 15 characters (the kernel cuts names there).
pub mod maps {
    /// Hash: [`FrontendKey`](crate::frontend::FrontendKey) → [`FrontendEntry`](crate::frontend::FrontendEntry).
    pub const FRONTENDS: &str = "FRONTENDS";
    /// Mapped array of [`ServiceRecord`](crate::service::ServiceRecord).
    pub const SERVICES: &str = "SERVICES";
    /// Mapped array of [`Backend`](crate::backend::Backend).
    pub const BACKENDS: &str = "BACKENDS";
    /// Mapped array of [`Position`](crate::maglev::Position).
    pub const MAGLEV: &str = "MAGLEV";
    /// Hash: [`Address`](crate::address::Address) → [`NodeAddress`](super::NodeAddress).
    pub const NODE_ADDRESSES: &str = "NODE_ADDRESSES";
    /// LRU hash: [`AffinityKey`](crate::affinity::AffinityKey) → [`AffinityValue`](crate::affinity::AffinityValue).
    pub const AFFINITY: &str = "AFFINITY";
    /// Socket storage: [`SocketState`](crate::socket::SocketState).
    pub const SOCKETS: &str = "SOCKETS";
    /// LRU hash: [`DatagramKey`](crate::socket::DatagramKey) → [`DatagramValue`](crate::socket::DatagramValue).
    pub const DATAGRAMS: &str = "DATAGRAMS";
    /// LRU hash: [`FlowKey`](crate::flow::FlowKey) → [`Flow`](crate::flow::Flow).
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash: [`FragmentKey`](crate::fragment::FragmentKey) → [`FragmentPorts`](crate::fragment::FragmentPorts).
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// Per-CPU array: number of an [`Outcome`](crate::outcome::Outcome) or [`Reason`](crate::outcome::Reason) → count.
    pub const OUTCOMES: &str = "OUTCOMES";
    /// Array of one [`Config`](super::Config).
    pub const CONFIG: &str = "CONFIG";
    /// Hash: interface index → [`Device`](super::Device).
    pub const DEVICES: &str = "DEVICES";
    /// Array of one [`ServiceCidrs`](crate::service_cidr::ServiceCidrs).
    pub const SERVICE_CIDRS: &str = "SERVICE_CIDRS";
    /// LPM trie: [`SourceKey`](crate::source::SourceKey) → [`SourceRange`](crate::source::SourceRange).
    pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
    /// Hash: cookie of a network namespace → [`NamespaceAddresses`](crate::namespace::NamespaceAddresses).
    pub const NAMESPACES: &str = "NAMESPACES";
    /// Array of maps of one element: updating it waits until all running programs have ended.
    pub const GRACE: &str = "GRACE";

    /// All that are pinned.
    pub const ALL: [&str; 17] = [
        FRONTENDS,
        SERVICES,
        BACKENDS,
        MAGLEV,
        NODE_ADDRESSES,
        AFFINITY,
        SOCKETS,
        DATAGRAMS,
        FLOWS,
        FRAGMENTS,
        OUTCOMES,
        CONFIG,
        DEVICES,
        SOURCE_RANGES,
        SERVICE_CIDRS,
        NAMESPACES,
        GRACE,
    ];
}

/// The programs' names.
pub mod programs {
    /// `cgroup/*` programs, in the order in which they are attached.
    ///
    /// What undoes a translation comes before what makes one, so that no application ever sees a backend's address.
    pub const CGROUP: [&str; 8] = [
        "getpeername4",
        "getpeername6",
        "recvmsg4",
        "recvmsg6",
        "sendmsg4",
        "sendmsg6",
        "connect4",
        "connect6",
    ];
    /// `cgroup/post_bind*` programs.
    pub const BIND: [&str; 2] = ["post_bind4", "post_bind6"];
    /// TC ingress on the external devices.
    pub const TC_INGRESS: &str = "tc_ingress";
    /// TC egress on the external devices.
    pub const TC_EGRESS: &str = "tc_egress";
    /// Iterator over `SOCKETS`: the connected UDP sockets.
    pub const CONNECTED_UDP: &str = "connected_udp";
}

/// Names of the read-only globals: facts of the kernel, so that the verifier removes what cannot work there.
pub mod globals {
    /// Not zero: `bpf_set_retval` exists (kernel 5.18).
    pub const HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
}

/// Value of `CONFIG`: what may change while programs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Config {
    /// Cookie of the network namespace that counts as the host's (`SO_NETNS_COOKIE`).
    pub host_netns_cookie: u64,
    /// Ids of the cgroups that hold pods of one quality of service (`kubepods/burstable`, `kubepods/besteffort`); zero:
    /// none. A pod's cgroup is one level below them, all other pods' and services' are at their level.
    pub qos_cgroups: [u64; 2],
    /// The node's IPv4 address for translated sources, v4-mapped; unspecified: none.
    pub node_v4: Address,
    /// The node's IPv6 address for translated sources; unspecified: none.
    pub node_v6: Address,
    /// The networks of the cluster's pods, one a family: who comes from there is no client from outside.
    pub cluster_networks: [Network; 2],
    /// How long idle flows keep their place.
    pub lifetimes: Lifetimes,
    /// Depth of the cgroup that the programs are attached to: 0 is the hierarchy's root.
    pub cgroup_level: u32,
    /// First port for translated sources.
    pub snat_port_first: u16,
    /// Last port for translated sources.
    pub snat_port_last: u16,
    /// The [`LAYOUT_VERSION`] of these maps.
    pub layout_version: u32,
    /// See [`flags`].
    pub flags: u32,
}

impl Config {
    /// Whether an address is a pod's, here or on another node.
    #[inline(always)]
    pub const fn is_in_cluster(&self, address: &Address) -> bool {
        self.cluster_networks[0].contains(address) || self.cluster_networks[1].contains(address)
    }
}

/// Bits of [`Config::flags`].
pub mod flags {
    /// A process of the host that binds a node port in use gets `EADDRINUSE`.
    pub const PROTECT_NODE_PORTS: u32 = 1 << 0;
}

/// Bits of [`NodeAddress::flags`].
pub mod node_address {
    /// Node ports answer here.
    pub const NODE_PORTS: u32 = 1 << 0;
    /// Only to sockets of the host's network namespace: loopback addresses mean another machine inside a pod.
    pub const HOST_ONLY: u32 = 1 << 1;
}

/// Value of `NODE_ADDRESSES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct NodeAddress {
    /// See [`node_address`].
    pub flags: u32,
}

/// Value of `DEVICES`: an external device that the programs are attached to.
///
/// A backend that is reached through one of them is on another machine: its answers come back through a program only if
/// the source is translated. Every other backend's answers leave through one of them anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub struct Device {
    /// No meaning yet: being in the map is what counts.
    pub flags: u32,
}

/// Default capacities; each can be set with a flag of `sockeye run`.
pub mod capacity {
    /// Entries of `FRONTENDS`: 80 bytes each.
    pub const FRONTENDS: u32 = 131_072;
    /// Elements of `SERVICES`: 64 bytes each.
    pub const SERVICES: u32 = 65_536;
    /// Elements of `BACKENDS`: 24 bytes each. A change needs room for the old and the new set.
    pub const BACKENDS: u32 = 524_288;
    /// Elements of `MAGLEV`: 8 bytes each, 100 and more for each backend of a service port that uses it.
    pub const MAGLEV: u32 = 1_048_576;
    /// Entries of `NODE_ADDRESSES`.
    pub const NODE_ADDRESSES: u32 = 1_024;
    /// Entries of `AFFINITY`: one for each client of each service port with session affinity.
    pub const AFFINITY: u32 = 65_536;
    /// Entries of `DATAGRAMS`.
    pub const DATAGRAMS: u32 = 65_536;
    /// Entries of `DEVICES`.
    pub const DEVICES: u32 = 1_024;
    /// Entries of `SOURCE_RANGES`: one for each source range of each service port. Memory is taken as they are used.
    pub const SOURCE_RANGES: u32 = 65_536;
    /// Entries of `NAMESPACES`: one for each pod on the node.
    pub const NAMESPACES: u32 = 4_096;
    /// Entries of `FLOWS`: two for each connection.
    pub const FLOWS: u32 = 262_144;
    /// Entries of `FRAGMENTS`: one for each fragmented datagram on its way.
    pub const FRAGMENTS: u32 = 8_192;
}

/// First port for translated sources, by default: above Linux's default range of ephemeral ports (32768–60999).
pub const SNAT_PORT_FIRST: u16 = 61_000;
/// Last port for translated sources, by default.
pub const SNAT_PORT_LAST: u16 = 65_535;
