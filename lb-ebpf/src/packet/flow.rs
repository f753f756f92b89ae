//! The flow that a packet belongs to, and what the packet does to it.

use lb_common::{
    address::Protocol,
    decide::{self, Tables},
    flow::{Flow, FlowKey, SECOND, flags},
};

use super::parse::{Packet, tcp};
use crate::tables::{self, Maps};

/// The key of the packet's flow.
#[inline(always)]
pub(super) fn key(packet: &Packet) -> FlowKey {
    FlowKey { source: packet.source, destination: packet.destination, protocol: packet.protocol as u32 }
}

/// The packet's flow, if it goes on: kept alive, and told of the handshake's end, FIN and RST.
///
/// None also for what has ended: a new connection that reuses the client's port, and whatever begins anew, or has no
/// connection, where the backend is no longer one of the service's.
#[inline(always)]
pub(super) fn lookup(packet: &Packet) -> Option<Flow> {
    let key = key(packet);
    let flow = tables::flow(&key)?;
    let now = tables::now();
    let lifetimes = &tables::config()?.lifetimes;
    if flow.is_over(packet.protocol, lifetimes, now) || (packet.is_syn() && flow.is_closed()) {
        return None;
    }
    // A SYN on an open flow: a client that never closed uses its port again, or sends the SYN once more.
    let chooses_anew = packet.protocol == Protocol::Udp || packet.is_syn();
    if chooses_anew && flow.flags & flags::FORWARD != 0 && !is_usable(flow) {
        return None;
    }
    // Once a second is enough for lifetimes of two seconds and more, and spares the cache line.
    if now.wrapping_sub(flow.last_seen) > SECOND {
        flow.last_seen = now;
    }
    if flow.is_half_open() && flow.flags & flags::FORWARD != 0 && !packet.is_syn() {
        note_open(packet, flow);
    }
    if packet.tcp_flags & (tcp::FIN | tcp::RST) != 0 {
        note_end(packet, flow);
    }
    Some(*flow)
}

/// Whether the flow's backend is still in its service's set.
#[inline(always)]
fn is_usable(flow: &Flow) -> bool {
    let Some(record) = Maps.service(flow.record) else { return false };
    record.service_id == flow.service_id && decide::is_usable(&Maps, record, flow.backend_id, flow.slot)
}

/// The client goes on after its SYN: both directions are open.
///
/// The backend's answer alone is no proof: it comes for a forged source, too.
#[inline(always)]
fn note_open(packet: &Packet, flow: &mut Flow) {
    flow.flags &= !flags::HALF_OPEN;
    if let Some(opposite) = tables::flow(&flow.opposite(packet.protocol as u32)) {
        opposite.flags &= !flags::HALF_OPEN;
    }
}

/// Marks both directions: each entry knows whether the connection is over.
#[inline(always)]
fn note_end(packet: &Packet, flow: &mut Flow) {
    let (own, peer) = if packet.tcp_flags & tcp::RST != 0 {
        (flags::RESET, flags::RESET)
    } else {
        (flags::FIN, flags::PEER_FIN)
    };
    flow.flags |= own;
    if let Some(opposite) = tables::flow(&flow.opposite(packet.protocol as u32)) {
        opposite.flags |= peer;
    }
}
