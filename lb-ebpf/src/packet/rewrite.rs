//! New addresses and ports in a packet, with all checksums.
//!
//! The kernel's helpers update checksums by differences (RFC 1624): they know whether the packet's checksum is complete,
//! left to the device, or already verified.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    programs::TcContext,
};
use lb_common::{
    address::{Protocol, SocketAddress},
    checksum::Difference,
    outcome::Reason,
};

use super::parse::Packet;

/// Offsets of checksums in their headers: RFC 9293 section 3.1, RFC 768, RFC 791 section 3.1.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const IPV4_CHECKSUM: usize = 10;
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
    rewrite_transport(ctx, packet, addresses, source, destination)?;
    if packet.v4 {
        rewrite_v4(ctx, packet, addresses, source, destination, take_hop)
    } else {
        rewrite_v6(ctx, packet, source, destination, take_hop)
    }
}

#[inline(always)]
fn rewrite_transport(
    ctx: &TcContext,
    packet: &Packet,
    addresses: Difference,
    source: &SocketAddress,
    destination: &SocketAddress,
) -> Result<(), Reason> {
    let (offset, flags) = match packet.protocol {
        Protocol::Tcp => (TCP_CHECKSUM, 0),
        // A UDP checksum of zero means none: it stays none, and a computed zero is sent as 0xffff (RFC 768).
        Protocol::Udp | Protocol::Sctp => (UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0)),
    };
    let offset = packet.transport + offset;
    let ports = Difference::NONE
        .half(packet.source.port.wire(), source.port.wire())
        .half(packet.destination.port.wire(), destination.port.wire());
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    // Two calls: where the device completes the checksum, only the pseudo header's part is in the field.
    ctx.l4_csum_replace(offset, 0, u64::from(addresses.fold32()), flags | pseudo).map_err(failed)?;
    ctx.l4_csum_replace(offset, 0, u64::from(ports.fold32()), flags).map_err(failed)?;
    store(ctx, packet.transport, &[source.port.wire(), destination.port.wire()])
}

#[inline(always)]
fn rewrite_v4(
    ctx: &TcContext,
    packet: &Packet,
    addresses: Difference,
    source: &SocketAddress,
    destination: &SocketAddress,
    take_hop: bool,
) -> Result<(), Reason> {
    let mut difference = addresses;
    if take_hop {
        let (old, new) = ([packet.hops, packet.protocol as u8], [packet.hops - 1, packet.protocol as u8]);
        difference = difference.half(u16::from_ne_bytes(old), u16::from_ne_bytes(new));
        store(ctx, packet.network + IPV4_TTL, &new)?;
    }
    let checksum = packet.network + IPV4_CHECKSUM;
    ctx.l3_csum_replace(checksum, 0, u64::from(difference.fold32()), 0).map_err(failed)?;
    let words = [source.address.v4_word(), destination.address.v4_word()];
    store(ctx, packet.network + IPV4_ADDRESSES, &words)
}

#[inline(always)]
fn rewrite_v6(
    ctx: &TcContext,
    packet: &Packet,
    source: &SocketAddress,
    destination: &SocketAddress,
    take_hop: bool,
) -> Result<(), Reason> {
    if take_hop {
        store(ctx, packet.network + IPV6_HOP_LIMIT, &(packet.hops - 1))?;
    }
    store(ctx, packet.network + IPV6_ADDRESSES, &[source.address, destination.address])
}

#[inline(always)]
fn store<T>(ctx: &TcContext, offset: usize, value: &T) -> Result<(), Reason> {
    ctx.store(offset, value, 0).map_err(failed)
}

#[inline(always)]
fn failed(_errno: i64) -> Reason {
    Reason::RewriteFailed
}
