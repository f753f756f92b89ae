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
    /// TCP: of the client nothing but SYNs was seen.
    pub const HALF_OPEN: u32 = 1 << 5;
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

/// How long idle flows keep their place, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Lifetimes {
    /// An open TCP flow.
    pub tcp_idle: u32,
    /// A TCP flow of whose client nothing but SYNs was seen.
    pub tcp_half_open: u32,
    /// A TCP flow that was reset, or that both sides have closed.
    pub tcp_closed: u32,
    /// A UDP flow.
    pub udp_idle: u32,
}

impl Lifetimes {
    /// Closed TCP flows leave after ten seconds, enough for the last retransmissions; half-open ones after a minute, as
    /// Linux's conntrack keeps an answered SYN; open ones after eight hours, well above the two hours of Linux's
    /// keep-alive; UDP after two minutes, as Linux's conntrack keeps a stream (RFC 4787, requirement 5).
    pub const DEFAULT: Self =
        Self { tcp_idle: 8 * 3600, tcp_half_open: 60, tcp_closed: 10, udp_idle: 2 * 60 };
}

impl Flow {
    /// How long the flow keeps its place when it is idle, in nanoseconds: until then its key is taken and its port is in
    /// use.
    #[inline(always)]
    pub const fn lifetime(&self, protocol: Protocol, lifetimes: &Lifetimes) -> u64 {
        let seconds = match protocol {
            Protocol::Tcp if self.is_closed() => lifetimes.tcp_closed,
            Protocol::Tcp if self.is_half_open() => lifetimes.tcp_half_open,
            Protocol::Tcp | Protocol::Sctp => lifetimes.tcp_idle,
            Protocol::Udp => lifetimes.udp_idle,
        };
        seconds as u64 * SECOND
    }

    /// Whether nothing but SYNs was seen of a TCP client.
    #[inline(always)]
    pub const fn is_half_open(&self) -> bool {
        self.flags & flags::HALF_OPEN != 0
    }

    /// Whether a TCP flow has been reset, or both sides have closed it.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        self.flags & flags::RESET != 0
            || self.flags & (flags::FIN | flags::PEER_FIN) == flags::FIN | flags::PEER_FIN
    }

    /// Whether the flow's key may be given to another connection.
    #[inline(always)]
    pub const fn is_over(&self, protocol: Protocol, lifetimes: &Lifetimes, now: u64) -> bool {
        now.wrapping_sub(self.last_seen) > self.lifetime(protocol, lifetimes)
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
    fn each_state_has_a_lifetime_of_its_own() {
        let lifetimes = Lifetimes { tcp_idle: 1000, tcp_half_open: 100, tcp_closed: 10, udp_idle: 50 };
        for (flags, protocol, seconds) in [
            (0, Protocol::Tcp, 1000),
            (flags::FIN, Protocol::Tcp, 1000),
            (flags::HALF_OPEN, Protocol::Tcp, 100),
            (flags::HALF_OPEN | flags::RESET, Protocol::Tcp, 10),
            (flags::FIN | flags::PEER_FIN, Protocol::Tcp, 10),
            (0, Protocol::Udp, 50),
            (0, Protocol::Sctp, 1000),
        ] {
            let flow = flow(flags);
            let end = flow.last_seen + seconds * SECOND;
            assert!(!flow.is_over(protocol, &lifetimes, end), "{flags:#b} {protocol:?}");
            assert!(flow.is_over(protocol, &lifetimes, end + 1), "{flags:#b} {protocol:?}");
        }
    }

    #[test]
    fn the_opposite_key_is_the_rewritten_packet_turned_round() {
        let flow = flow(flags::FORWARD);
        let opposite = flow.opposite(6);
        assert_eq!(opposite.source, flow.destination);
        assert_eq!(opposite.destination, flow.source);
    }
}
