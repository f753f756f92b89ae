//! Fragments of a datagram (`FRAGMENTS`): only the first has the ports, so the others look them up.

use bytemuck::{Pod, Zeroable};

use crate::address::{Address, Port};

/// Key of `FRAGMENTS`: what all fragments of a datagram have in common (RFC 791, section 3.2; RFC 8200, section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentKey {
    /// The source as it arrives.
    pub source: Address,
    /// The destination as it arrives.
    pub destination: Address,
    /// The datagram's identification: 16 bits in IPv4, 32 in IPv6.
    pub identification: u32,
    /// The transport protocol's number.
    pub protocol: u32,
}

/// Value of `FRAGMENTS`: the ports of the first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentPorts {
    /// The source's.
    pub source: Port,
    /// The destination's.
    pub destination: Port,
}
