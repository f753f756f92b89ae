//! From bytes to addresses and ports. The only place that reads headers.

use aya_ebpf::programs::TcContext;
use lb_common::{
    address::{Address, Port, Protocol, SocketAddress},
    outcome::Reason,
};

/// Length of an Ethernet header; a VLAN tag of the frame is held beside it by the kernel.
const ETHERNET: usize = 14;
/// `ETH_P_IP` and `ETH_P_IPV6` in network order.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Bits of the thirteenth byte of a TCP header (RFC 9293, section 3.1).
pub(super) mod tcp {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;
}

/// What is needed of a packet's headers.
pub(super) struct Packet {
    /// Whether it is IPv4.
    pub(super) v4: bool,
    /// Offset of the network header.
    pub(super) network: usize,
    /// Offset of the transport header.
    pub(super) transport: usize,
    /// The transport protocol.
    pub(super) protocol: Protocol,
    /// Source address and port.
    pub(super) source: SocketAddress,
    /// Destination address and port.
    pub(super) destination: SocketAddress,
    /// TTL or hop limit.
    pub(super) hops: u8,
    /// TCP's flags; zero for other protocols.
    pub(super) tcp_flags: u8,
}

impl Packet {
    /// Whether this opens a TCP connection.
    #[inline(always)]
    pub(super) fn is_syn(&self) -> bool {
        self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}

#[inline(always)]
pub(super) fn parse(ctx: &TcContext) -> Result<Packet, Reason> {
    match ctx.skb.protocol() {
        IPV4 => parse_v4(ctx),
        IPV6 => parse_v6(ctx),
        _ => Err(Reason::NotIp),
    }
}

/// RFC 791, section 3.1.
#[inline(always)]
fn parse_v4(ctx: &TcContext) -> Result<Packet, Reason> {
    let header: [u32; 5] = load(ctx, ETHERNET)?;
    let version = u32::from_be(header[0]) >> 24;
    let fragment = u32::from_be(header[1]) & 0x3fff;
    let hops_and_protocol = u32::from_be(header[2]) >> 16;
    if version >> 4 != 4 || version & 0xf < 5 {
        return Err(Reason::Malformed);
    }
    // More fragments, or an offset: the ports are not in every fragment.
    if fragment != 0 {
        return Err(Reason::Fragment);
    }
    let transport = ETHERNET + (version as usize & 0xf) * 4;
    let addresses = (Address::from_v4_word(header[3]), Address::from_v4_word(header[4]));
    transport_header(ctx, true, transport, hops_and_protocol as u8, (hops_and_protocol >> 8) as u8, addresses)
}

/// RFC 8200, section 3.
#[inline(always)]
fn parse_v6(ctx: &TcContext) -> Result<Packet, Reason> {
    let header: [u32; 10] = load(ctx, ETHERNET)?;
    if u32::from_be(header[0]) >> 28 != 6 {
        return Err(Reason::Malformed);
    }
    let next_and_hops = u32::from_be(header[1]);
    let (next, hops) = ((next_and_hops >> 8) as u8, next_and_hops as u8);
    if next == FRAGMENT_HEADER {
        return Err(Reason::Fragment);
    }
    let source = Address::from_words([header[2], header[3], header[4], header[5]]);
    let destination = Address::from_words([header[6], header[7], header[8], header[9]]);
    transport_header(ctx, false, ETHERNET + 40, next, hops, (source, destination))
}

/// The fragment header's number (RFC 8200, section 4.5).
const FRAGMENT_HEADER: u8 = 44;

#[inline(always)]
fn transport_header(
    ctx: &TcContext,
    v4: bool,
    transport: usize,
    protocol: u8,
    hops: u8,
    addresses: (Address, Address),
) -> Result<Packet, Reason> {
    let protocol = match protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return Err(Reason::OtherProtocol),
    };
    let ports: [u16; 2] = load(ctx, transport)?;
    let tcp_flags = match protocol {
        Protocol::Tcp => load(ctx, transport + 13)?,
        Protocol::Udp | Protocol::Sctp => 0,
    };
    Ok(Packet {
        v4,
        network: ETHERNET,
        transport,
        protocol,
        source: SocketAddress::new(addresses.0, Port::from_wire(ports[0])),
        destination: SocketAddress::new(addresses.1, Port::from_wire(ports[1])),
        hops,
        tcp_flags,
    })
}

#[inline(always)]
fn load<T>(ctx: &TcContext, offset: usize) -> Result<T, Reason> {
    ctx.load(offset).map_err(|_| Reason::Malformed)
}
