//! ICMP errors about packets of connections: path MTU discovery and traceroute work through a service.
//!
//! An error quotes the packet that it is about, as that was after the translation. Turned round, the quoted addresses are
//! the key of the opposite direction, whose flow says what sender and receiver call each other. The error goes where the
//! quoted packet came from, with the quoted packet as it was sent.

use lb_common::{
    address::{Address, Port, Protocol, SocketAddress},
    checksum::Difference,
    flow::{Flow, FlowKey, flags},
    outcome::{Outcome, Reason},
};

use super::{
    forward::{self, Step},
    frame::{Frame, Zero},
    parse::{self, Network, Part},
    rewrite::{self, store},
};
use crate::tables;

/// Protocol numbers.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Length of the header before the quoted packet (RFC 792, RFC 4443 section 3).
const HEADER: usize = 8;
/// Offset of the checksum in that header.
const CHECKSUM: usize = 2;

/// A packet that an error quotes.
struct Quote {
    network: Network,
    protocol: Protocol,
    source: SocketAddress,
    destination: SocketAddress,
}

/// Whether the packet is an ICMP error: destination unreachable, packet too big, time exceeded, parameter problem.
///
/// What asks or answers (echo, neighbours) is for the stack.
#[inline(always)]
pub(super) fn is_error(ctx: &impl Frame, network: &Network) -> Result<bool, Reason> {
    if network.protocol != if network.v4 { ICMP } else { ICMPV6 } || network.part != Part::Whole {
        return Ok(false);
    }
    let kind: u8 = parse::load(ctx, network.payload)?;
    Ok(if network.v4 { matches!(kind, 3 | 11 | 12) } else { matches!(kind, 1..=4) })
}

/// An error that arrives at an external device, about what left the node translated.
#[inline(always)]
pub(super) fn ingress(ctx: &impl Frame, network: &Network) -> Result<Step, Reason> {
    let quote = quote(ctx, network)?;
    let flow = flow(&quote)?;
    match flow.flags & (flags::FORWARD | flags::REDIRECT) {
        // What a backend of this node sent leaves the node before it is translated back.
        0 => Err(Reason::NotAService),
        flags::FORWARD => {
            translate(ctx, network, &quote, &flow, false)?;
            Ok(Step::Stack(Outcome::ErrorTranslated))
        }
        _ => {
            let (source, destination) = ends(network, &flow);
            // An error is never answered by another (RFC 1122, section 3.2.2).
            if network.hops <= 1 {
                return Err(Reason::TtlExceeded);
            }
            let route = forward::route(ctx, network, &source, &destination);
            let route = route.map_err(|failure| failure.reason)?;
            translate(ctx, network, &quote, &flow, true)?;
            forward::send_out(ctx, &route, Outcome::ErrorTranslated)
        }
    }
}

/// An error that leaves through an external device: of this node or of a backend on it, about what a client sent.
#[inline(always)]
pub(super) fn egress(ctx: &impl Frame, network: &Network) -> Result<Step, Reason> {
    let quote = quote(ctx, network)?;
    let flow = flow(&quote)?;
    if flow.flags & (flags::FORWARD | flags::REDIRECT) != 0 {
        return Err(Reason::NotAService);
    }
    translate(ctx, network, &quote, &flow, false)?;
    Ok(Step::Stack(Outcome::ErrorTranslated))
}

#[inline(always)]
fn quote(ctx: &impl Frame, carrier: &Network) -> Result<Quote, Reason> {
    let network = parse::quoted_network(ctx, carrier.v4, carrier.payload + HEADER)?;
    let protocol = parse::protocol(&network)?;
    if network.part == Part::Later {
        return Err(Reason::Fragment);
    }
    let ports = parse::ports(ctx, &network)?;
    Ok(Quote {
        protocol,
        source: SocketAddress::new(network.source, ports.source),
        destination: SocketAddress::new(network.destination, ports.destination),
        network,
    })
}

/// The flow of the direction opposite to the quoted packet's. An error is no sign of life: it keeps nothing alive.
#[inline(always)]
fn flow(quote: &Quote) -> Result<Flow, Reason> {
    let key =
        FlowKey { source: quote.destination, destination: quote.source, protocol: quote.protocol as u32 };
    tables::flow(&key).copied().ok_or(Reason::NotAService)
}

/// Who the translated error comes from and goes to.
///
/// A client gets it from the service's address, as from netfilter: it may have no way to what stands behind, and
/// networks that check sources let this one pass. A backend that sees its client sees where the error comes from too.
#[inline(always)]
fn ends(network: &Network, flow: &Flow) -> (SocketAddress, SocketAddress) {
    let source = if flow.flags & (flags::FORWARD | flags::REDIRECT) == flags::FORWARD {
        network.source
    } else {
        flow.source.address
    };
    (without_port(source), without_port(flow.destination.address))
}

/// Rewrites the quoted packet, then the error around it.
#[inline(always)]
fn translate(
    ctx: &impl Frame,
    network: &Network,
    quote: &Quote,
    flow: &Flow,
    take_hop: bool,
) -> Result<(), Reason> {
    let changed = rewrite_quote(ctx, quote, &flow.destination, &flow.source)?;
    let (source, destination) = ends(network, flow);
    let addresses = Difference::NONE
        .address(&without_port(network.source), &source)
        .address(&without_port(network.destination), &destination);
    let checksum = network.payload + CHECKSUM;
    // ICMPv6 alone has the addresses in its checksum (RFC 4443, section 2.3).
    let pseudo = if network.v4 { Difference::NONE } else { addresses };
    ctx.update_transport_checksum(checksum, pseudo, changed, Zero::Sum)?;
    rewrite::rewrite_network(ctx, network, addresses, &source.address, &destination.address, take_hop)
}

#[inline(always)]
fn without_port(address: Address) -> SocketAddress {
    SocketAddress::new(address, Port::new(0))
}

/// Replaces addresses, ports and checksums of the quoted packet; the result is the difference of all its bytes.
#[inline(always)]
fn rewrite_quote(
    ctx: &impl Frame,
    quote: &Quote,
    source: &SocketAddress,
    destination: &SocketAddress,
) -> Result<Difference, Reason> {
    let addresses = Difference::NONE.address(&quote.source, source).address(&quote.destination, destination);
    let ports = Difference::NONE
        .half(quote.source.port.wire(), source.port.wire())
        .half(quote.destination.port.wire(), destination.port.wire());
    let network = &quote.network;
    let mut changed = addresses.and(ports);
    if network.v4 {
        let offset = network.offset + rewrite::IPV4_CHECKSUM;
        changed = changed.and(update_checksum(ctx, offset, addresses)?);
    }
    let offset = network.payload + rewrite::checksum_offset(quote.protocol);
    // Quotes may end after eight bytes (RFC 792), before the checksum of TCP; and UDP may have none.
    if parse::load::<u16>(ctx, offset).is_ok_and(|checksum| checksum != 0) {
        changed = changed.and(update_checksum(ctx, offset, addresses.and(ports))?);
    }
    rewrite::store_addresses(ctx, network, &source.address, &destination.address)?;
    store(ctx, network.payload, &[source.port.wire(), destination.port.wire()])?;
    Ok(changed)
}

/// Updates a checksum inside the quote, of which the kernel knows nothing.
#[inline(always)]
fn update_checksum(ctx: &impl Frame, offset: usize, difference: Difference) -> Result<Difference, Reason> {
    let old: u16 = parse::load(ctx, offset)?;
    let new = difference.apply(old);
    store(ctx, offset, &new)?;
    Ok(Difference::NONE.half(old, new))
}
