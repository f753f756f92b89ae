//! From bytes to addresses and ports. The only place that reads headers.

use lb_common::{
    address::{Address, Port, Protocol, SocketAddress},
    fragment::{FragmentKey, FragmentPorts},
    outcome::Reason,
};

use super::frame::Frame;
use crate::tables;

/// Length of an Ethernet header; a VLAN tag of the frame is held beside it by the kernel.
pub(super) const ETHERNET: usize = 14;
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

/// Which part of a datagram a packet holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Its begin, with the ports.
    First,
    /// Another part, without them.
    Later,
}

/// What is needed of a packet's network header.
pub(super) struct Network {
    /// Whether it is IPv4.
    pub(super) v4: bool,
    /// Where it begins.
    pub(super) offset: usize,
    /// Where what it carries begins, behind options and extension headers.
    pub(super) payload: usize,
    /// The number of the protocol that it carries.
    pub(super) protocol: u8,
    /// The source.
    pub(super) source: Address,
    /// The destination.
    pub(super) destination: Address,
    /// TTL or hop limit.
    pub(super) hops: u8,
    /// Which part of a datagram it holds.
    pub(super) part: Part,
    /// The datagram's identification; zero if it is whole.
    identification: u32,
}

/// What is needed of a packet's headers.
pub(super) struct Packet {
    /// The network header.
    pub(super) network: Network,
    /// The transport protocol.
    pub(super) protocol: Protocol,
    /// Source address and port.
    pub(super) source: SocketAddress,
    /// Destination address and port.
    pub(super) destination: SocketAddress,
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

impl Network {
    /// The key of the datagram that this is a fragment of.
    #[inline(always)]
    fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.source,
            destination: self.destination,
            identification: self.identification,
            protocol: u32::from(self.protocol),
        }
    }
}

/// The packet's network header.
#[inline(always)]
pub(super) fn network(ctx: &impl Frame) -> Result<Network, Reason> {
    match ctx.network_protocol() {
        IPV4 => network_v4(ctx, ETHERNET),
        IPV6 => network_v6(ctx, ETHERNET),
        _ => Err(Reason::NotIp),
    }
}

/// A network header that a packet quotes, of the family that carries it.
#[inline(always)]
pub(super) fn quoted_network(ctx: &impl Frame, v4: bool, offset: usize) -> Result<Network, Reason> {
    if v4 { network_v4(ctx, offset) } else { network_v6(ctx, offset) }
}

/// RFC 791, section 3.1.
#[inline(always)]
fn network_v4(ctx: &impl Frame, offset: usize) -> Result<Network, Reason> {
    let header: [u32; 5] = load(ctx, offset)?;
    let version = u32::from_be(header[0]) >> 24;
    let fragment = u32::from_be(header[1]);
    let hops_and_protocol = u32::from_be(header[2]) >> 16;
    if version >> 4 != 4 || version & 0xf < 5 {
        return Err(Reason::Malformed);
    }
    let part = part(fragment & 0x1fff != 0, fragment & 0x2000 != 0);
    Ok(Network {
        v4: true,
        offset,
        payload: offset + (version as usize & 0xf) * 4,
        protocol: hops_and_protocol as u8,
        source: Address::from_v4_word(header[3]),
        destination: Address::from_v4_word(header[4]),
        hops: (hops_and_protocol >> 8) as u8,
        part,
        identification: if part == Part::Whole { 0 } else { fragment >> 16 },
    })
}

/// RFC 8200, section 3.
#[inline(always)]
fn network_v6(ctx: &impl Frame, offset: usize) -> Result<Network, Reason> {
    let header: [u32; 10] = load(ctx, offset)?;
    if u32::from_be(header[0]) >> 28 != 6 {
        return Err(Reason::Malformed);
    }
    let next_and_hops = u32::from_be(header[1]);
    let network = Network {
        v4: false,
        offset,
        payload: offset + 40,
        protocol: (next_and_hops >> 8) as u8,
        source: Address::from_words([header[2], header[3], header[4], header[5]]),
        destination: Address::from_words([header[6], header[7], header[8], header[9]]),
        hops: next_and_hops as u8,
        part: Part::Whole,
        identification: 0,
    };
    let mut network = skip_extensions(ctx, network)?;
    network.payload = as_if_read(network.payload, header[2]);
    Ok(network)
}

/// More than the offset of any transport header: six extension headers have 12,288 bytes at most.
const PAYLOADS: u64 = 0x3fff;

/// The same offset, of which the verifier knows nothing but the bound.
///
/// It would follow the rest of the program once for each number of extension headers, and again for each of those that
/// an error quotes.
#[inline(always)]
fn as_if_read(offset: usize, unknown: u32) -> usize {
    (forget(offset as u64, unknown) & PAYLOADS) as usize
}

/// The same number, of which the verifier knows nothing: it forgets what something unknown is added to and taken away from.
#[inline(always)]
pub(super) fn forget(mut number: u64, unknown: u32) -> u64 {
    // SAFETY: two instructions, on registers that it owns.
    unsafe {
        core::arch::asm!(
            "{0} += {1}",
            "{0} -= {1}",
            inout(reg) number,
            in(reg) u64::from(unknown),
            options(pure, nomem, nostack)
        );
    }
    number
}

/// Numbers of extension headers (RFC 8200, section 4), and that of none at all.
mod extension {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const DESTINATION: u8 = 60;
}

/// Extension headers that are stepped over. RFC 8200 (section 4.1) knows five in one packet; more is none of ours.
const EXTENSIONS: usize = 6;

/// Steps over extension headers, to the transport header or to what is left of it in a later fragment.
#[inline(always)]
fn skip_extensions(ctx: &impl Frame, mut network: Network) -> Result<Network, Reason> {
    for _ in 0..EXTENSIONS {
        match network.protocol {
            extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION => {
                let [next, units]: [u8; 2] = load(ctx, network.payload)?;
                network.protocol = next;
                network.payload += (usize::from(units) + 1) * 8;
            }
            extension::FRAGMENT => {
                let header: [u32; 2] = load(ctx, network.payload)?;
                let fragment = u32::from_be(header[0]);
                network.protocol = (fragment >> 24) as u8;
                network.part = part(fragment & 0xfff8 != 0, fragment & 1 != 0);
                network.identification = u32::from_be(header[1]);
                network.payload += 8;
                if network.part == Part::Later {
                    return Ok(network);
                }
            }
            _ => return Ok(network),
        }
    }
    Err(Reason::OtherProtocol)
}

#[inline(always)]
const fn part(has_offset: bool, more: bool) -> Part {
    if has_offset {
        Part::Later
    } else if more {
        Part::First
    } else {
        Part::Whole
    }
}

/// The packet's transport header; a fragment without one has the ports of its datagram's first.
#[inline(always)]
pub(super) fn transport(ctx: &impl Frame, network: Network) -> Result<Packet, Reason> {
    let protocol = protocol(&network)?;
    let ports = match network.part {
        Part::Whole | Part::First => ports(ctx, &network)?,
        Part::Later => tables::fragment(&network.fragment_key()).ok_or(Reason::Fragment)?,
    };
    let tcp_flags = match protocol {
        Protocol::Tcp if network.part != Part::Later => load(ctx, network.payload + 13)?,
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => 0,
    };
    Ok(Packet {
        protocol,
        source: SocketAddress::new(network.source, ports.source),
        destination: SocketAddress::new(network.destination, ports.destination),
        tcp_flags,
        network,
    })
}

/// Remembers the ports of a datagram whose first fragment this is.
#[inline(always)]
pub(super) fn remember_fragment(packet: &Packet) {
    if packet.network.part == Part::First {
        let ports = FragmentPorts { source: packet.source.port, destination: packet.destination.port };
        tables::put_fragment(&packet.network.fragment_key(), &ports);
    }
}

/// The transport protocol, if it is one that services have here.
#[inline(always)]
pub(super) fn protocol(network: &Network) -> Result<Protocol, Reason> {
    match network.protocol {
        6 => Ok(Protocol::Tcp),
        17 => Ok(Protocol::Udp),
        _ => Err(Reason::OtherProtocol),
    }
}

/// The length of what the network header carries, as that says.
#[inline(always)]
pub(super) fn transport_length(ctx: &impl Frame, network: &Network) -> Result<usize, Reason> {
    let (field, header) = if network.v4 { (2, 0) } else { (4, 40) };
    let length: u16 = load(ctx, network.offset + field)?;
    Ok((usize::from(u16::from_be(length)) + header).wrapping_sub(network.payload - network.offset))
}

/// The ports, which are at the same place in every transport protocol.
#[inline(always)]
pub(super) fn ports(ctx: &impl Frame, network: &Network) -> Result<FragmentPorts, Reason> {
    let [source, destination]: [u16; 2] = load(ctx, network.payload)?;
    Ok(FragmentPorts { source: Port::from_wire(source), destination: Port::from_wire(destination) })
}

#[inline(always)]
pub(super) fn load<T>(ctx: &impl Frame, offset: usize) -> Result<T, Reason> {
    ctx.read(offset)
}
