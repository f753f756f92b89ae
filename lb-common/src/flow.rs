//! North-south connections (`FLOWS`): what is rewritten in the packets of one direction.

use bytemuck::{Pod, Zeroable};

use crate::address::SocketAddress;

/// Key of `FLOWS`: the packet's addresses and ports as they are before the rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// The packet's source.
    pub source: SocketAddress,
    /// The packet's destination.
    pub destination: SocketAddress,
    /// The protocol's number.
    pub protocol: u32,
}

/// Bits of [`Flow::flags`].
pub mod flags {
    /// From the client to the backend; without it: from the backend to the client.
    pub const FORWARD: u32 = 1 << 0;
    /// The source address is translated to the node's, and the packet leaves the node without passing its stack.
    pub const REDIRECT: u32 = 1 << 1;
    /// A FIN or a RST was seen in this direction.
    pub const CLOSING: u32 = 1 << 2;
}

/// Value of `FLOWS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// Time of the last packet: nanoseconds of the monotonic clock.
    pub last_seen: u64,
    /// The source after the rewrite.
    pub source: SocketAddress,
    /// The destination after the rewrite.
    pub destination: SocketAddress,
    /// See [`flags`].
    pub flags: u32,
    /// The service port's number.
    pub service_id: u32,
}
