//! The addresses that connections out of a network namespace get, asked inside it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_common::{address::Address, namespace::NamespaceAddresses};
use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressMessage, AddressScope},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};

use crate::netlink::{
    exchange::{Exchange, Scope},
    usable_address,
};

/// Far away on every machine: addresses for documentation (RFC 5737, RFC 3849). Nothing is sent to them.
const FAR_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Of the calling thread's namespace: the source that a route to far away has; without such a route the first address of
/// global scope. None where the namespace has no address yet, or no IPv6.
pub(super) fn addresses() -> NamespaceAddresses {
    let Ok(mut exchange) = Exchange::open(NETLINK_ROUTE) else { return NamespaceAddresses::NONE };
    let mut of = |far: IpAddr| {
        let source = routed(&mut exchange, far).ok().flatten();
        let source = source.or_else(|| first_global(&mut exchange, &far).ok().flatten());
        source.map_or(Address::UNSPECIFIED, Address::from)
    };
    NamespaceAddresses { v4: of(FAR_V4.into()), v6: of(FAR_V6.into()) }
}

/// The source of the route to an address, as the kernel would choose it.
fn routed(exchange: &mut Exchange, far: IpAddr) -> io::Result<Option<IpAddr>> {
    let mut question = RouteMessage::default();
    let (family, length, destination) = match far {
        IpAddr::V4(v4) => (AddressFamily::Inet, 32, RouteAddress::Inet(v4)),
        IpAddr::V6(v6) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(v6)),
    };
    question.header.address_family = family;
    question.header.destination_prefix_length = length;
    question.attributes.push(RouteAttribute::Destination(destination));
    let mut source = None;
    exchange.ask(RouteNetlinkMessage::GetRoute(question), Scope::One, |answer| {
        if let RouteNetlinkMessage::NewRoute(route) = answer {
            source = route.attributes.iter().find_map(preferred_source);
        }
    })?;
    // An unreachable route of IPv6 answers with a source, too: that of the loopback device, or none.
    Ok(source.filter(|ip| !ip.is_loopback() && !ip.is_unspecified()))
}

fn preferred_source(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// The first address of global scope and of the same family.
fn first_global(exchange: &mut Exchange, like: &IpAddr) -> io::Result<Option<IpAddr>> {
    let mut question = AddressMessage::default();
    question.header.family = if like.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let mut first = None;
    exchange.ask(RouteNetlinkMessage::GetAddress(question), Scope::Dump, |answer| {
        if let RouteNetlinkMessage::NewAddress(address) = answer
            && address.header.scope == AddressScope::Universe
        {
            first = first.or_else(|| usable_address(&address));
        }
    })?;
    Ok(first)
}
