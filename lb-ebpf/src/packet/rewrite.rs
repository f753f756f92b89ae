//! New addresses and ports in a packet, with all checksums.
//!
//! The kernel's helpers update checksums by differences (RFC 1624): they know whether the packet's checksum is complete,
//! left to the device, or already verified.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    programs::TcContext,
};
use lb_common::{
    address::{Address, Protocol, SocketAddress},
    checksum::Difference,
    outcome::Reason,
};

use super::parse::{Network, Packet, Part};

/// Offsets of checksums in their headers: RFC 9293 section 3.1, RFC 768, RFC 791 section 3.1.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
pub(super) const IPV4_CHECKSUM: usize = 10;
/// Offsets of the hop limit: RFC 791 section 3.1, RFC 8200 section 3.
const IPV4_TTL: usize = 8;
const IPV6_HOP_LIMIT: usize = 7;
/// Offsets of the source address; the destination follows it.
const IPV4_ADDRESSES: usize = 12;
const IPV6_ADDRESSES: usize = 8;

/// Replaces source and destination; takes one hop where the packet does not pass the stack, which would.
#[inline(always)]
pub(super) fn rewrite(
    ctx: &TcContext,
    packet: &Packet,
    source: &SocketAddress,
    destination: &SocketAddress,
    take_hop: bool,
) -> Result<(), Reason> {
    let addresses =
        Difference::NONE.address(&packet.source, source).address(&packet.destination, destination);
    // The checksum and the ports of a datagram are in its first fragment.
    if packet.network.part != Part::Later {
        rewrite_transport(ctx, packet, addresses, source, destination)?;
    }
    rewrite_network(ctx, &packet.network, addresses, &source.address, &destination.address, take_hop)
}

#[inline(always)]
fn rewrite_transport(
    ctx: &TcContext,
    packet: &Packet,
    addresses: Difference,
    source: &SocketAddress,
    destination: &SocketAddress,
) -> Result<(), Reason> {
    let ports = Difference::NONE
        .half(packet.source.port.wire(), source.port.wire())
        .half(packet.destination.port.wire(), destination.port.wire());
    let flags = match packet.protocol {
        Protocol::Tcp => 0,
        // A UDP checksum of zero means none: it stays none, and a computed zero is sent as 0xffff (RFC 768).
        Protocol::Udp | Protocol::Sctp => u64::from(BPF_F_MARK_MANGLED_0),
    };
    let offset = packet.network.payload + checksum_offset(packet.protocol);
    update_transport(ctx, offset, addresses, ports, flags)?;
    store(ctx, packet.network.payload, &[source.port.wire(), destination.port.wire()])
}

/// Offset of the checksum in a transport header.
#[inline(always)]
pub(super) const fn checksum_offset(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => TCP_CHECKSUM,
        Protocol::Udp | Protocol::Sctp => UDP_CHECKSUM,
    }
}

/// Updates the checksum of a transport header by what changed in the pseudo header and in the packet.
///
/// Two calls: where the device completes the checksum, only the pseudo header's part is in the field.
#[inline(always)]
pub(super) fn update_transport(
    ctx: &TcContext,
    offset: usize,
    pseudo_header: Difference,
    bytes: Difference,
    flags: u64,
) -> Result<(), Reason> {
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    ctx.l4_csum_replace(offset, 0, u64::from(pseudo_header.fold32()), flags | pseudo).map_err(failed)?;
    ctx.l4_csum_replace(offset, 0, u64::from(bytes.fold32()), flags).map_err(failed)
}

/// Replaces the addresses of the network header, and its checksum.
#[inline(always)]
pub(super) fn rewrite_network(
    ctx: &TcContext,
    network: &Network,
    addresses: Difference,
    source: &Address,
    destination: &Address,
    take_hop: bool,
) -> Result<(), Reason> {
    let mut difference = addresses;
    if take_hop && network.v4 {
        let (old, new) = ([network.hops, network.protocol], [network.hops - 1, network.protocol]);
        difference = difference.half(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
        store(ctx, network.offset + IPV4_TTL, &new)?;
    } else if take_hop {
        store(ctx, network.offset + IPV6_HOP_LIMIT, &(network.hops - 1))?;
    }
    if network.v4 {
        let checksum = network.offset + IPV4_CHECKSUM;
        ctx.l3_csum_replace(checksum, 0, u64::from(difference.fold32()), 0).map_err(failed)?;
    }
    store_addresses(ctx, network, source, destination)
}

/// Writes the addresses of a network header, and nothing else.
#[inline(always)]
pub(super) fn store_addresses(
    ctx: &TcContext,
    network: &Network,
    source: &Address,
    destination: &Address,
) -> Result<(), Reason> {
    if network.v4 {
        store(ctx, network.offset + IPV4_ADDRESSES, &[source.v4_word(), destination.v4_word()])
    } else {
        store(ctx, network.offset + IPV6_ADDRESSES, &[*source, *destination])
    }
}

#[inline(always)]
pub(super) fn store<T>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), Reason> {
    ctx.store(offset, value, 0).map_err(failed)
}

#[inline(always)]
pub(super) fn failed(_errno: i64) -> Reason {
    Reason::RewriteFailed
}
