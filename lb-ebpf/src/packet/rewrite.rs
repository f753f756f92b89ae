//! New addresses and ports in a packet, with all checksums, which are updated by differences (RFC 1624).

use lb_common::{
    address::{Address, Protocol, SocketAddress},
    checksum::Difference,
    outcome::Reason,
};

use super::{
    frame::{Frame, Zero},
    parse::{Network, Packet, Part},
};

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
    ctx: &impl Frame,
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
    ctx: &impl Frame,
    packet: &Packet,
    addresses: Difference,
    source: &SocketAddress,
    destination: &SocketAddress,
) -> Result<(), Reason> {
    let ports = Difference::NONE
        .half(packet.source.port.wire(), source.port.wire())
        .half(packet.destination.port.wire(), destination.port.wire());
    let zero = match packet.protocol {
        Protocol::Tcp => Zero::Sum,
        Protocol::Udp | Protocol::Sctp => Zero::None,
    };
    let offset = packet.network.payload + checksum_offset(packet.protocol);
    ctx.update_transport_checksum(offset, addresses, ports, zero)?;
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

/// Replaces the addresses of the network header, and its checksum.
#[inline(always)]
pub(super) fn rewrite_network(
    ctx: &impl Frame,
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
        ctx.update_network_checksum(checksum, difference)?;
    }
    store_addresses(ctx, network, source, destination)
}

/// Writes the addresses of a network header, and nothing else.
#[inline(always)]
pub(super) fn store_addresses(
    ctx: &impl Frame,
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
pub(super) fn store<T>(ctx: &impl Frame, offset: usize, value: &T) -> Result<(), Reason> {
    ctx.write(offset, value)
}
