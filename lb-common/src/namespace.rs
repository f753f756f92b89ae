//! The addresses of the pods on this node, by network namespace (`NAMESPACES`).
//!
//! A socket that connects has no address of its own yet, mostly; where a Service admits some sources only, the pod's
//! address is looked up by what the socket has: its network namespace.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;

/// Value of `NAMESPACES`: the addresses that the sockets of a network namespace connect from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct NamespaceAddresses {
    /// The IPv4 address, v4-mapped; [`Address::UNSPECIFIED`]: none.
    pub v4: Address,
    /// The IPv6 address; [`Address::UNSPECIFIED`]: none.
    pub v6: Address,
}

impl NamespaceAddresses {
    /// No address of either family.
    pub const NONE: Self = Self { v4: Address::UNSPECIFIED, v6: Address::UNSPECIFIED };
}

const _: () = assert!(size_of::<NamespaceAddresses>() == 32);
