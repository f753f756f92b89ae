//! The first packet of a connection: find the service, choose a backend, remember both directions.

use lb_common::{
    address::{Address, Port, Protocol, SocketAddress},
    config::Config,
    decide::{self, Selection, Source, Tables as _},
    flow::{Flow, FlowKey, Lifetimes, Service, flags},
    frontend::FrontendKey,
    outcome::Reason,
};

use super::{
    flow, forward,
    frame::Frame,
    parse::{self, Packet, Part},
};
use crate::tables::{self, Maps};

/// Ports that are tried for a translated source before giving up. With half of all ports to one backend in use, the
/// chance to find none is 2⁻³².
const ATTEMPTS: u32 = 32;

/// Opens the connection; the result is the flow of this direction.
#[inline(always)]
pub(super) fn open(ctx: &impl Frame, packet: &Packet) -> Result<Flow, Reason> {
    // Without its first fragment nobody can tell what it is.
    if packet.network.part == Part::Later {
        return Err(Reason::Fragment);
    }
    let key = FrontendKey::new(packet.destination.address, packet.destination.port, packet.protocol);
    let found = decide::find(&Maps, &key, || Source::Outside)?;
    if packet.protocol == Protocol::Tcp && !packet.is_syn() {
        return Err(Reason::NoFlow);
    }
    decide::admit(&Maps, &found, || Some(packet.source.address))?;
    let selection = decide::select_for_packet(&Maps, &found, &packet.source, is_outside(packet))?;
    let redirect =
        forward::leaves_the_node(ctx, &packet.network, &packet.source, &selection.backend.socket_address())?;
    let service = Service {
        flags: if redirect { flags::REDIRECT } else { 0 }
            | if packet.is_syn() { flags::HALF_OPEN } else { 0 },
        record: found.entry.record,
        service_id: selection.service_id,
        backend_id: selection.backend.id,
        slot: selection.slot,
    };
    remember(packet, &selection, service)
}

/// Whether the client is none of the cluster's pods: for those, external addresses lead to all endpoints, whatever the
/// external policy (kube-proxy's short-circuit).
#[inline(always)]
fn is_outside(packet: &Packet) -> bool {
    let address = &packet.source.address;
    let is_outside = tables::config().is_none_or(|config| !config.is_in_cluster(address));
    // The verifier would follow all that comes once for each way to this answer.
    parse::forget(u64::from(is_outside), address.words()[3]) & 1 != 0
}

/// Remembers both directions: the answer's first, which also claims the translated source.
#[inline(always)]
fn remember(packet: &Packet, selection: &Selection<'_>, service: Service) -> Result<Flow, Reason> {
    let now = tables::now();
    let source = claim_source(packet, selection, service, now)?;
    let service = Service { flags: service.flags | flags::FORWARD, ..service };
    let forward = Flow::new(now, source, selection.backend.socket_address(), service);
    if !tables::put_flow(&flow::key(packet), &forward) {
        return Err(Reason::FlowTableFull);
    }
    Ok(forward)
}

/// Finds a source address and port that no other connection to this backend uses, and claims it.
///
/// A backend on this node sees the client's own address, and its port too, unless another connection of the client to
/// the same backend, through another frontend, has it. A backend elsewhere sees the node's address.
#[inline(always)]
fn claim_source(
    packet: &Packet,
    selection: &Selection<'_>,
    service: Service,
    now: u64,
) -> Result<SocketAddress, Reason> {
    let config = tables::config().ok_or(Reason::BrokenTables)?;
    let redirect = service.flags & flags::REDIRECT != 0;
    let address = if redirect { node_address(config, packet.network.v4)? } else { packet.source.address };
    let backend = selection.backend.socket_address();
    let reverse = Flow::new(now, packet.destination, packet.source, service);
    let mut port = if redirect { any_port(config) } else { packet.source.port };
    for _ in 0..ATTEMPTS {
        let source = SocketAddress::new(address, port);
        let key = FlowKey { source: backend, destination: source, protocol: packet.protocol as u32 };
        if claim(&key, &reverse, packet.protocol, &config.lifetimes, now) {
            return Ok(source);
        }
        port = any_port(config);
    }
    Err(Reason::PortsExhausted)
}

/// Claims one key, if it is free: not there, over, or this very connection's.
#[inline(always)]
fn claim(key: &FlowKey, reverse: &Flow, protocol: Protocol, lifetimes: &Lifetimes, now: u64) -> bool {
    if tables::add_flow(key, reverse) {
        return true;
    }
    let Some(present) = tables::flow(key) else { return false };
    let own = decide::same_peer(&present.source, &reverse.source)
        && decide::same_peer(&present.destination, &reverse.destination);
    (own || present.is_over(protocol, lifetimes, now)) && tables::put_flow(key, reverse)
}

#[inline(always)]
fn node_address(config: &Config, v4: bool) -> Result<Address, Reason> {
    let address = if v4 { config.node_v4 } else { config.node_v6 };
    if address.is_unspecified() { Err(Reason::NoNodeAddress) } else { Ok(address) }
}

/// A port of the configured range, evenly spread.
#[inline(always)]
fn any_port(config: &Config) -> Port {
    let (first, last) = (u64::from(config.snat_port_first), u64::from(config.snat_port_last));
    let count = last.wrapping_sub(first) + 1;
    let offset = (u64::from(Maps.random()) * count) >> 32;
    Port::from_wire(((first + offset) as u16).to_be())
}
