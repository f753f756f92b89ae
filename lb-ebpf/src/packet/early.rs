//! XDP: what can be sent on before the kernel makes a socket buffer of it.
//!
//! Only what is finished here: packets between clients and backends on other machines, where the way out is known to the
//! last address. All else goes on to TC untouched, and nothing is remembered or counted of it.
//!
//! Between the ends of a veth pair, and between virtual machines of one host, packets travel with unfinished
//! checksums. TC's helpers know; here only the checksum itself tells, and such packets go on to TC too.

use aya_ebpf::programs::XdpContext;
use lb_common::{
    address::{Protocol, SocketAddress},
    checksum::Difference,
    config::device,
    decide,
    flow::{Flow, flags},
    outcome::{Outcome, Reason},
};

use super::{
    flow,
    forward::{self, Route},
    frame::Frame,
    open,
    parse::{self, Packet, Part},
    rewrite,
};
use crate::tables::{self, Maps};

/// A packet that leaves the node: how, and the kernel's verdict.
pub(crate) struct Sent(pub(crate) Outcome, pub(crate) i32);

/// Sends the packet on, if nobody else is needed for that.
#[inline(always)]
pub(crate) fn early(ctx: &XdpContext) -> Option<Sent> {
    let packet = parse::network(ctx).and_then(|network| parse::transport(ctx, network)).ok()?;
    // Who sent a packet without hops left is told at TC.
    if packet.network.hops <= 1 || has_unfinished_checksum(ctx, &packet).ok()? {
        return None;
    }
    match flow::find(&packet) {
        Some(flow) => known(ctx, &packet, flow),
        None => opening(ctx, &packet),
    }
}

#[inline(always)]
fn known(ctx: &XdpContext, packet: &Packet, flow: &mut Flow) -> Option<Sent> {
    if flow.flags & flags::REDIRECT == 0 {
        return None;
    }
    let route = route(ctx, packet, &flow.source, &flow.destination)?;
    flow::note(packet, flow);
    let outcome =
        if flow.flags & flags::FORWARD != 0 { Outcome::FlowForwarded } else { Outcome::FlowReturned };
    send(ctx, packet, flow, &route, outcome).ok()
}

/// TC makes the same choice if it is left to it: by the client's address and port. A service with session affinity is
/// all TC's, since a choice there is remembered when it is made.
#[inline(always)]
fn opening(ctx: &XdpContext, packet: &Packet) -> Option<Sent> {
    let found = open::find(packet).ok()?;
    if decide::has_affinity(&Maps, &found) {
        return None;
    }
    let choice = open::choose(ctx, packet, &found).ok()?;
    if !choice.leaves_the_node() {
        return None;
    }
    // The port is chosen when it is claimed: before, nothing is remembered that TC would not remember alike.
    let source = SocketAddress::new(open::node_address(packet).ok()?, packet.source.port);
    let route = route(ctx, packet, &source, &choice.backend())?;
    let flow = open::remember(packet, &choice).ok()?;
    send(ctx, packet, &flow, &route, Outcome::FlowOpened).ok()
}

/// The way out, if a frame can go it as it is.
#[inline(always)]
fn route(
    ctx: &XdpContext,
    packet: &Packet,
    source: &SocketAddress,
    destination: &SocketAddress,
) -> Option<Route> {
    let route = forward::route(ctx, &packet.network, source, destination).ok()?;
    (route.link.is_some() && takes_frames(ctx, &route)).then_some(route)
}

/// Whether the device sends frames that it is handed by another one's driver.
///
/// Drivers do as long as a program of ours runs in them, and are handed no socket buffers, which are what the generic
/// hook sends.
#[inline(always)]
fn takes_frames(ctx: &XdpContext, route: &Route) -> bool {
    if route.device == ctx.device() {
        return true;
    }
    let modes = device::XDP_NATIVE | device::XDP_GENERIC;
    tables::device_flags(ctx.device()) & tables::device_flags(route.device) & modes != 0
}

#[inline(always)]
fn send(
    ctx: &XdpContext,
    packet: &Packet,
    flow: &Flow,
    route: &Route,
    outcome: Outcome,
) -> Result<Sent, Reason> {
    parse::remember_fragment(packet);
    rewrite::rewrite(ctx, packet, &flow.source, &flow.destination, true)?;
    Ok(Sent(outcome, ctx.send_out(route)?))
}

/// Whether the transport checksum covers the pseudo header only, and a device was to complete it (`CHECKSUM_PARTIAL`).
///
/// A complete one looks like this once in 65,536 packets, which TC then serves.
#[inline(always)]
fn has_unfinished_checksum(ctx: &XdpContext, packet: &Packet) -> Result<bool, Reason> {
    let network = &packet.network;
    if network.part == Part::Later {
        return Ok(false);
    }
    let checksum: u16 = ctx.read(network.payload + rewrite::checksum_offset(packet.protocol))?;
    if packet.protocol == Protocol::Udp && checksum == 0 {
        return Ok(false);
    }
    let length = parse::transport_length(ctx, network)? as u32;
    let pseudo_header = Difference::NONE
        .added_address(&network.source)
        .added_address(&network.destination)
        .added(length.to_be())
        .added(u32::from(packet.protocol as u8).to_be());
    Ok(checksum == !pseudo_header.apply(u16::MAX))
}
