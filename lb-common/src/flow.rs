//! North-south connections (`FLOWS`): what is rewritten in the packets of one direction.
//!
//! A connection has two entries, one a direction, each under the addresses that its packets arrive with. Each leads to
//! the other: the key of the opposite direction is the rewritten packet turned round ([`Flow::opposite`]).

use bytemuck::{Pod, Zeroable};

use crate::{
    address::{Protocol, SocketAddress},
    backend::BackendId,
};

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
    /// The source address is translated to the node's: packets of both directions leave the node without passing its
    /// stack, which would take them for spoofed.
    pub const REDIRECT: u32 = 1 << 1;
    /// A FIN was seen in this direction.
    pub const FIN: u32 = 1 << 2;
    /// A FIN was seen in the opposite direction.
    pub const PEER_FIN: u32 = 1 << 3;
    /// A RST was seen in either direction.
    pub const RESET: u32 = 1 << 4;
}

/// Value of `FLOWS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// Time of the last packet, to the second or better: nanoseconds of the monotonic clock.
    pub last_seen: u64,
    /// The source after the rewrite.
    pub source: SocketAddress,
    /// The destination after the rewrite.
    pub destination: SocketAddress,
    /// See [`flags`].
    pub flags: u32,
    /// Index of the service's record in `SERVICES`.
    pub record: u32,
    /// The service port's number, to tell whether the record is still this service's.
    pub service_id: u32,
    /// The backend's number.
    pub backend_id: BackendId,
    /// The slot that the backend was found in.
    pub slot: u32,
    reserved: u32,
}

/// A second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

impl Flow {
    /// How long an idle flow keeps its place: until then its key is taken and its port is in use.
    ///
    /// Closed TCP flows leave after ten seconds, enough for the last retransmissions; open ones after eight hours, well
    /// above the two hours of Linux's keep-alive; UDP after two minutes, as Linux's conntrack keeps a stream (RFC 4787,
    /// requirement 5).
    #[inline(always)]
    pub const fn lifetime(&self, protocol: Protocol) -> u64 {
        match protocol {
            Protocol::Tcp if self.is_closed() => 10 * SECOND,
            Protocol::Tcp | Protocol::Sctp => 8 * 3600 * SECOND,
            Protocol::Udp => 120 * SECOND,
        }
    }

    /// Whether a TCP flow has been reset, or both sides have closed it.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        self.flags & flags::RESET != 0
            || self.flags & (flags::FIN | flags::PEER_FIN) == flags::FIN | flags::PEER_FIN
    }

    /// Whether the flow's key may be given to another connection.
    #[inline(always)]
    pub const fn is_over(&self, protocol: Protocol, now: u64) -> bool {
        now.wrapping_sub(self.last_seen) > self.lifetime(protocol)
    }

    /// The key of the opposite direction.
    #[inline(always)]
    pub const fn opposite(&self, protocol: u32) -> FlowKey {
        FlowKey { source: self.destination, destination: self.source, protocol }
    }

    /// A flow of the two that a connection has.
    #[inline(always)]
    pub const fn new(now: u64, source: SocketAddress, destination: SocketAddress, service: Service) -> Self {
        Self {
            last_seen: now,
            source,
            destination,
            flags: service.flags,
            record: service.record,
            service_id: service.service_id,
            backend_id: service.backend_id,
            slot: service.slot,
            reserved: 0,
        }
    }
}

/// What both flows of a connection know of its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// See [`flags`].
    pub flags: u32,
    /// Index of the service's record.
    pub record: u32,
    /// The service port's number.
    pub service_id: u32,
    /// The backend's number.
    pub backend_id: BackendId,
    /// The slot that the backend was found in.
    pub slot: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Address, Port};

    fn flow(flags: u32) -> Flow {
        let at = |last, port| SocketAddress::new(Address::from_v4_bytes([10, 0, 0, last]), Port::new(port));
        let service = Service { flags, record: 1, service_id: 2, backend_id: 3, slot: 4 };
        Flow::new(100 * SECOND, at(1, 61_000), at(2, 8080), service)
    }

    #[test]
    fn a_flow_is_closed_by_a_reset_or_by_both_sides() {
        assert!(!flow(flags::FORWARD).is_closed());
        assert!(!flow(flags::FIN).is_closed());
        assert!(!flow(flags::PEER_FIN).is_closed());
        assert!(flow(flags::FIN | flags::PEER_FIN).is_closed());
        assert!(flow(flags::RESET).is_closed());
    }

    #[test]
    fn closed_flows_leave_early() {
        let later = 111 * SECOND;
        assert!(flow(flags::RESET).is_over(Protocol::Tcp, later));
        assert!(!flow(flags::FIN).is_over(Protocol::Tcp, later));
        assert!(!flow(0).is_over(Protocol::Udp, later));
        assert!(flow(0).is_over(Protocol::Udp, 221 * SECOND));
    }

    #[test]
    fn the_opposite_key_is_the_rewritten_packet_turned_round() {
        let flow = flow(flags::FORWARD);
        let opposite = flow.opposite(6);
        assert_eq!(opposite.source, flow.destination);
        assert_eq!(opposite.destination, flow.source);
    }
}
