//! Answers that the programs give themselves, from the address that the packet was for: TCP resets and ICMP errors.
//!
//! The packet becomes its answer and goes back through the device and to the neighbour that it came from. Later fragments
//! and ICMP errors are never answered (RFC 1122, section 3.2.2; RFC 4443, section 2.4).

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, helpers::generated::bpf_redirect, programs::TcContext,
};
use lb_common::{address::Protocol, checksum::Difference, outcome::Reason};

use super::{
    forward::Step,
    frame::{Frame as _, Zero, tc::failed},
    parse::{self, ETHERNET, Network, Packet, Part},
    rewrite::{self, store},
};

/// What an ICMP error says: type and code in each family.
#[derive(Clone, Copy)]
pub(super) struct Message {
    v4: [u8; 2],
    v6: [u8; 2],
}

/// RFC 792, RFC 1191, RFC 4443 section 3.
const CLOSED_PORT: Message = Message { v4: [3, 3], v6: [1, 4] };
const TOO_BIG: Message = Message { v4: [3, 4], v6: [2, 0] };
const EXPIRED: Message = Message { v4: [11, 0], v6: [3, 0] };

/// Lengths of headers.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;

/// Hop limit of an answer (RFC 1700).
const HOPS: u8 = 64;

/// Extension headers that are quoted, in units of eight bytes: longer chains are not answered.
const EXTENSIONS: usize = 8;
/// Words of TCP options at most: the header has up to fifteen.
const OPTIONS: usize = 10;

/// Why a packet was not sent on.
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// The size that fits, in bytes, if the packet is too long; zero: not known.
    pub(super) mtu: u32,
}

impl From<Reason> for Failure {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, mtu: 0 }
    }
}

/// Tells the sender of a packet why it was not sent on, if that is something that the protocols can say.
///
/// One place for all answers: each copy of the code would be another path for the verifier.
#[inline(always)]
pub(super) fn answer(ctx: &TcContext, packet: &Packet, failure: &Failure) -> Result<Step, Reason> {
    let message = match failure.reason {
        Reason::NoBackends => CLOSED_PORT,
        // Resets are for those who want to connect: others may be resets themselves.
        Reason::NoSuchService if packet.protocol != Protocol::Tcp || packet.is_syn() => CLOSED_PORT,
        Reason::TtlExceeded => EXPIRED,
        Reason::TooBig if failure.mtu != 0 => TOO_BIG,
        reason => return Err(reason),
    };
    let is_closed = matches!(failure.reason, Reason::NoBackends | Reason::NoSuchService);
    let is_reset = is_closed && reset(ctx, packet).map_err(unanswered)?;
    if !is_reset {
        say(ctx, &packet.network, message, failure.mtu).map_err(unanswered)?;
    }
    send_back(ctx, failure.reason)
}

/// What could not become an answer is dropped.
#[inline(always)]
fn unanswered(_: Reason) -> Reason {
    Reason::Unanswered
}

#[inline(always)]
fn send_back(ctx: &TcContext, reason: Reason) -> Result<Step, Reason> {
    let neighbours: [[u8; 6]; 2] = parse::load(ctx, 0)?;
    store(ctx, 0, &[neighbours[1], neighbours[0]])?;
    // SAFETY: numbers only.
    Ok(Step::Answer(reason, unsafe { bpf_redirect(ctx.device(), 0) } as i32))
}

/// Makes the packet a reset of the connection that it opens (RFC 9293, section 3.5.2). False: it cannot be one.
///
/// By differences, as everywhere: where the device completes the checksum, it does so for the answer too.
#[inline(always)]
fn reset(ctx: &TcContext, packet: &Packet) -> Result<bool, Reason> {
    let network = &packet.network;
    if packet.protocol != Protocol::Tcp || network.part != Part::Whole {
        return Ok(false);
    }
    let header: [u32; 5] = parse::load(ctx, network.payload)?;
    let words_of_header = (u32::from_be(header[3]) >> 28) as usize;
    let length = words_of_header * 4;
    // Data with the SYN (RFC 7413) would have to be summed to be taken out.
    if length < TCP_HEADER || length != parse::transport_length(ctx, network)? {
        return Ok(false);
    }
    let acknowledged = u32::from_be(header[1]).wrapping_add(1).to_be();
    let flags = u32::from(parse::tcp::RST | parse::tcp::ACK) << 16;
    let words = [0, acknowledged, (((TCP_HEADER as u32) / 4) << 28 | flags).to_be()];
    let urgent: u16 = parse::load(ctx, network.payload + 18)?;
    let mut bytes = Difference::NONE
        .word(header[1], words[0])
        .word(header[2], words[1])
        .word(header[3], words[2])
        .half(urgent, 0);
    for index in 0..OPTIONS {
        if index + TCP_HEADER / 4 >= words_of_header {
            break;
        }
        bytes = bytes.word(parse::load(ctx, network.payload + TCP_HEADER + index * 4)?, 0);
    }
    let lengths = Difference::NONE.half((length as u16).to_be(), (TCP_HEADER as u16).to_be());
    ctx.update_transport_checksum(network.payload + 16, lengths, bytes, Zero::Sum)?;
    store(ctx, network.payload, &[packet.destination.port.wire(), packet.source.port.wire()])?;
    store(ctx, network.payload + 4, &words)?;
    store(ctx, network.payload + 18, &0_u16)?;
    ctx.change_tail((network.payload + TCP_HEADER) as u32, 0).map_err(failed)?;
    turn_round(ctx, network, network.payload - network.offset + TCP_HEADER)?;
    Ok(true)
}

/// Swaps the addresses of a network header that stays, and gives it a new length and all its hops.
#[inline(always)]
fn turn_round(ctx: &TcContext, network: &Network, length: usize) -> Result<(), Reason> {
    if network.v4 {
        let old: u16 = parse::load(ctx, network.offset + 2)?;
        let new = (length as u16).to_be();
        let hops = [[network.hops, network.protocol], [HOPS, network.protocol]].map(u16::from_ne_bytes);
        let difference = Difference::NONE.half(old, new).half(hops[0], hops[1]);
        store(ctx, network.offset + 2, &new)?;
        store(ctx, network.offset + 8, &HOPS)?;
        let checksum = network.offset + rewrite::IPV4_CHECKSUM;
        ctx.update_network_checksum(checksum, difference)?;
    } else {
        store(ctx, network.offset + 4, &((length - IPV6_HEADER) as u16).to_be())?;
        store(ctx, network.offset + 7, &HOPS)?;
    }
    rewrite::store_addresses(ctx, network, &network.destination, &network.source)
}

/// Makes the packet an ICMP error that quotes it: its network header, and of the next what tells whose it was.
#[inline(always)]
fn say(ctx: &TcContext, network: &Network, message: Message, rest: u32) -> Result<(), Reason> {
    if network.part == Part::Later {
        return Err(Reason::Unanswered);
    }
    // The kernel cuts nothing off before the end of an unfinished checksum (`__bpf_skb_min_len`).
    let transport = if network.protocol == Protocol::Tcp as u8 { TCP_HEADER } else { UDP_HEADER };
    let quoted = network.payload - network.offset + transport;
    if !network.v4 && quoted > IPV6_HEADER + EXTENSIONS * 8 + transport {
        return Err(Reason::Unanswered);
    }
    let header = if network.v4 { IPV4_HEADER } else { IPV6_HEADER };
    let room = ((header + ICMP_HEADER) as u32).cast_signed();
    ctx.change_tail((ETHERNET + quoted) as u32, 0).map_err(failed)?;
    ctx.adjust_room(room, BPF_ADJ_ROOM_MAC, 0).map_err(failed)?;
    let [kind, code] = if network.v4 { message.v4 } else { message.v6 };
    let words = [u32::from_be_bytes([kind, code, 0, 0]).to_be(), rest.to_be()];
    let length = ICMP_HEADER + quoted;
    let quote = quote_sum(ctx, network, ETHERNET + header + ICMP_HEADER)?;
    let mut sum = quote.added(words[0]).added(words[1]);
    if !network.v4 {
        // The pseudo header (RFC 8200, section 8.1).
        sum = sum.added_address(&network.source).added_address(&network.destination);
        sum = sum.added((length as u32).to_be()).added(58_u32.to_be());
    }
    store(ctx, ETHERNET + header, &words)?;
    store(ctx, ETHERNET + header + 2, &sum.apply(u16::MAX))?;
    if network.v4 { store_v4(ctx, network, length) } else { store_v6(ctx, network, length) }
}

/// The sum of the quoted packet's bytes. A sound header of IPv4 adds nothing: its checksum sees to that.
#[inline(always)]
fn quote_sum(ctx: &TcContext, network: &Network, start: usize) -> Result<Difference, Reason> {
    let length = network.payload - network.offset;
    let mut sum = Difference::NONE;
    if !network.v4 {
        let header: [u32; 10] = parse::load(ctx, start)?;
        for word in header {
            sum = sum.added(word);
        }
        // A number of its own, so that the verifier learns nothing about the length from each way out of the loop.
        let extensions = (length - IPV6_HEADER) >> 3;
        for index in 0..EXTENSIONS {
            if index >= extensions {
                break;
            }
            let words: [u32; 2] = parse::load(ctx, start + IPV6_HEADER + index * 8)?;
            sum = sum.added(words[0]).added(words[1]);
        }
    }
    let transport: [u32; UDP_HEADER / 4] = parse::load(ctx, start + length)?;
    sum = sum.added(transport[0]).added(transport[1]);
    if network.protocol == Protocol::Tcp as u8 {
        let rest: [u32; (TCP_HEADER - UDP_HEADER) / 4] = parse::load(ctx, start + length + UDP_HEADER)?;
        sum = sum.added(rest[0]).added(rest[1]).added(rest[2]);
    }
    Ok(sum)
}

/// Writes the network header of an ICMP error: as the kernel's own, with the traffic class of internetwork control.
#[inline(always)]
fn store_v4(ctx: &TcContext, network: &Network, length: usize) -> Result<(), Reason> {
    let mut words = [
        (0x45c0_0000 | (IPV4_HEADER + length) as u32).to_be(),
        // Not to be fragmented: then it needs no identification (RFC 6864).
        0x4000_u32.to_be(),
        u32::from_be_bytes([HOPS, 1, 0, 0]).to_be(),
        network.destination.v4_word(),
        network.source.v4_word(),
    ];
    let sum =
        Difference::NONE.added(words[0]).added(words[1]).added(words[2]).added(words[3]).added(words[4]);
    words[2] |= u32::from(u16::from_be(sum.apply(u16::MAX))).to_be();
    store(ctx, ETHERNET, &words)
}

#[inline(always)]
fn store_v6(ctx: &TcContext, network: &Network, length: usize) -> Result<(), Reason> {
    let second = u32::from_be_bytes([0, 0, 58, HOPS]) | (length as u32) << 16;
    store(ctx, ETHERNET, &[0x6000_0000_u32.to_be(), second.to_be()])?;
    store(ctx, ETHERNET + 8, &[network.destination, network.source])
}
