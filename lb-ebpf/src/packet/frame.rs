//! A packet as a hook sees it: what the steps need of TC and of XDP.

pub(super) mod tc;
mod xdp;

use lb_common::{checksum::Difference, outcome::Reason};

use super::forward::{FibParams, Route};

/// A packet from its Ethernet header on, and the device that it passes.
pub(super) trait Frame {
    /// Reads a value that stands at an offset.
    fn read<T>(&self, offset: usize) -> Result<T, Reason>;

    /// Writes a value to an offset, and no checksum.
    fn write<T>(&self, offset: usize, value: &T) -> Result<(), Reason>;

    /// The Ethernet type of the network header, in network order.
    fn network_protocol(&self) -> u32;

    /// The index of the device.
    fn device(&self) -> u32;

    /// The length in bytes.
    fn length(&self) -> usize;

    /// The bytes that each packet carries that this one is cut into on its way; zero: it stays whole.
    fn segment(&self) -> usize;

    /// Updates the checksum of an IPv4 header.
    fn update_network_checksum(&self, offset: usize, difference: Difference) -> Result<(), Reason>;

    /// Updates the checksum of a transport header by what changed in the pseudo header and in the packet.
    ///
    /// The two are apart because a checksum that a device is to complete covers the pseudo header only.
    fn update_transport_checksum(
        &self,
        offset: usize,
        pseudo_header: Difference,
        bytes: Difference,
        zero: Zero,
    ) -> Result<(), Reason>;

    /// Asks for the route of a packet to be forwarded: one of `BPF_FIB_LKUP_RET_*`, or an error number as an unsigned
    /// number, which is none of them.
    fn fib_lookup(&self, params: &mut FibParams) -> u32;

    /// Sends the packet out by a route; the result is the hook's verdict.
    fn send_out(&self, route: &Route) -> Result<i32, Reason>;
}

/// What a checksum of zero means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Zero {
    /// A sum like any other.
    Sum,
    /// No checksum: it stays none, and a computed zero is sent as 0xffff (UDP, RFC 768).
    None,
}
