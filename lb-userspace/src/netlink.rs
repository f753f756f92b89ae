//! The node's interfaces: devices, their addresses, and which of them have a default route, followed as they come and go.
//!
//! An event says only that something changed; the whole is read again then. So a lost event costs nothing as long as
//! the loss itself is noticed, which the kernel reports (netlink(7), `ENOBUFS`). This module watches its own network
//! namespace only.

pub(crate) mod exchange;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    MulticastGroup, new_connection, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
        route::{RouteAttribute, RouteMessage, RouteType},
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::{debug, warn};

use crate::{model::Change, telemetry::chain};

/// A burst of events, such as a device that comes up with its addresses, is read once.
const SETTLE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);

/// All devices, by index. The name alone does not identify one: it may be renamed, or made anew.
pub type Links = BTreeMap<u32, Link>;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// The device that takes what arrives here: a bridge or a bond; or the VRF that it belongs to.
    pub controller: Option<u32>,
    /// Its addresses, in the order in which the kernel lists them: its choice of a source follows it.
    pub addresses: Vec<IpAddr>,
    /// Whether a default route of either family leads out through it.
    pub default_route: bool,
}

/// What a device is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Packets have Ethernet headers, and come from other machines or namespaces.
    Ethernet,
    /// What is sent there comes back, or goes nowhere: loopback and dummy devices.
    Inward,
    /// A VRF: its ports keep their addresses and take what arrives.
    Vrf,
    /// Packets have no Ethernet header: many tunnels, PPP.
    Headerless,
}

/// Why the interfaces cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("opening a netlink socket")]
    Open(#[source] std::io::Error),
    /// A listing failed.
    #[error("listing {what}")]
    List {
        /// What was listed.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: Box<rtnetlink::Error>,
    },
    /// The socket ended.
    #[error("the netlink socket has ended")]
    Ended,
}

/// What the interfaces are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// All addresses, loopback included, in order.
    pub addresses: Vec<IpAddr>,
    /// All devices.
    pub links: Links,
}

/// Reads the interfaces once. Needs a tokio runtime.
pub async fn read() -> Result<Interfaces, NetlinkError> {
    let (connection, handle, _) = new_connection().map_err(NetlinkError::Open)?;
    let connection = tokio::spawn(connection);
    let listed = list(&handle).await;
    connection.abort();
    listed
}

/// Follows the interfaces until `changes` is closed: sends the addresses and the devices, first as they are, then
/// whenever they differ; `events` counts what the kernel tells of any device. Trouble is logged and tried again; what was
/// said last stays.
pub async fn follow(changes: mpsc::Sender<Change>, links: watch::Sender<Links>, events: watch::Sender<u64>) {
    let mut said: Option<Vec<IpAddr>> = None;
    while !changes.is_closed() {
        if let Err(error) = follow_once(&changes, &links, &events, &mut said).await {
            let error = chain(&error);
            warn!(error, "cannot follow the node's interfaces; trying again");
            sleep(RETRY).await;
        }
    }
}

/// Follows the interfaces over one socket. `said` are the addresses that were sent last.
async fn follow_once(
    changes: &mpsc::Sender<Change>,
    links: &watch::Sender<Links>,
    events: &watch::Sender<u64>,
    said: &mut Option<Vec<IpAddr>>,
) -> Result<(), NetlinkError> {
    // Listen before the first listing, so that nothing happens unseen in between.
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (listener, _, mut heard) = new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
    let listener = AbortOnDrop(tokio::spawn(listener));
    loop {
        let Interfaces { addresses, links: present } = read().await?;
        links.send_if_modified(|known| {
            let differs = *known != present;
            if differs {
                *known = present;
            }
            differs
        });
        if said.as_ref() != Some(&addresses) {
            debug!(count = addresses.len(), "addresses of the node's interfaces");
            if changes.send(Change::Interfaces(addresses.clone())).await.is_err() {
                return Ok(());
            }
            *said = Some(addresses);
        }
        // A routing daemon changes routes all the time: only the default ones are worth a listing.
        loop {
            let (event, _) = tokio::select! {
                event = heard.next() => event.ok_or(NetlinkError::Ended)?,
                () = changes.closed() => return Ok(()),
            };
            if concerns_us(&event) {
                break;
            }
        }
        events.send_modify(|count| *count += 1);
        sleep(SETTLE).await;
        while let Ok(event) = heard.try_recv() {
            drop(event);
        }
        if listener.0.is_finished() {
            return Err(NetlinkError::Ended);
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn concerns_us(event: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelRoute, NewRoute};
    match &event.payload {
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => is_default(route),
        _ => true,
    }
}

async fn list(handle: &rtnetlink::Handle) -> Result<Interfaces, NetlinkError> {
    let failed = |what| move |source| NetlinkError::List { what, source: Box::new(source) };
    let messages: Vec<_> =
        handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
    let held: Vec<(u32, IpAddr)> = messages
        .iter()
        .filter_map(|message| Some((message.header.index, usable_address(message)?)))
        .collect();
    let found: Vec<_> = handle.link().get().execute().try_collect().await.map_err(failed("devices"))?;
    let mut links: Links = found.iter().filter_map(link).collect();
    for (index, address) in &held {
        if let Some(link) = links.get_mut(index) {
            link.addresses.push(*address);
        }
    }
    for index in default_routes(handle).await.map_err(failed("routes"))? {
        if let Some(link) = links.get_mut(&index) {
            link.default_route = true;
        }
    }
    let mut addresses: Vec<_> = held.into_iter().map(|(_, ip)| ip).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(Interfaces { addresses, links })
}

/// The devices that default routes lead out through, of whatever routing table.
async fn default_routes(handle: &rtnetlink::Handle) -> Result<Vec<u32>, rtnetlink::Error> {
    let mut devices = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let mut routes = std::pin::pin!(handle.route().get(question).execute());
        while let Some(route) = routes.try_next().await? {
            if is_default(&route) {
                devices.extend(route.attributes.iter().flat_map(ways_out));
            }
        }
    }
    Ok(devices)
}

/// Whether a route leads anywhere: one that forbids (`unreachable default`) does not.
fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

fn ways_out(attribute: &RouteAttribute) -> Vec<u32> {
    match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    }
}

/// The address, unless duplicate address detection is still at it or has found it taken (RFC 4862).
pub(crate) fn usable_address(message: &AddressMessage) -> Option<IpAddr> {
    let pending = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
    let optimistic = message.attributes.iter().any(
        |attribute| matches!(attribute, AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Optimistic)),
    );
    if message.header.flags.intersects(pending) && !optimistic {
        return None;
    }
    let find = |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    // On a point-to-point device `Address` is the peer's and `Local` is ours (rtnetlink(7)); IPv6 often has no `Local`.
    find(|attribute| if let AddressAttribute::Local(ip) = attribute { Some(*ip) } else { None }).or_else(
        || find(|attribute| if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None }),
    )
}

/// A device as the kernel tells it, without addresses and routes.
fn link(message: &LinkMessage) -> Option<(u32, Link)> {
    let (mut name, mut controller, mut info) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::LinkInfo(parts) => {
                info = parts.iter().find_map(
                    |part| {
                        if let LinkInfo::Kind(kind) = part { Some(kind) } else { None }
                    },
                );
            }
            _ => {}
        }
    }
    let kind = match (message.header.link_layer_type, info) {
        (_, Some(InfoKind::Vrf)) => LinkKind::Vrf,
        (LinkLayerType::Loopback, _) | (_, Some(InfoKind::Dummy)) => LinkKind::Inward,
        (LinkLayerType::Ether, _) => LinkKind::Ethernet,
        _ => LinkKind::Headerless,
    };
    let link = Link { name: name?, kind, controller, addresses: Vec::new(), default_route: false };
    Some((message.header.index, link))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::AddressFamily;

    use super::*;

    fn message(flags: AddressHeaderFlags, attributes: Vec<AddressAttribute>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.flags = flags;
        message.attributes = attributes;
        message
    }

    #[test]
    fn the_local_end_of_a_point_to_point_device_is_ours() {
        let (ours, theirs): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let attributes = vec![AddressAttribute::Address(theirs), AddressAttribute::Local(ours)];
        assert_eq!(usable_address(&message(AddressHeaderFlags::empty(), attributes)), Some(ours));
    }

    #[test]
    fn an_address_under_duplicate_detection_is_not_ours_yet() {
        let ip: IpAddr = "2001:db8::1".parse().unwrap();
        let address = || AddressAttribute::Address(ip);
        let optimistic = || AddressAttribute::Flags(AddressFlags::Tentative | AddressFlags::Optimistic);
        for (flags, attributes, expected) in [
            (AddressHeaderFlags::Permanent, vec![address()], Some(ip)),
            (AddressHeaderFlags::Tentative, vec![address()], None),
            (AddressHeaderFlags::Tentative, vec![address(), optimistic()], Some(ip)),
            (AddressHeaderFlags::Dadfailed, vec![address()], None),
            (AddressHeaderFlags::Permanent, vec![], None),
        ] {
            assert_eq!(
                usable_address(&message(flags, attributes.clone())),
                expected,
                "{flags:?} {attributes:?}"
            );
        }
    }

    #[tokio::test]
    async fn follows_the_interfaces_of_its_namespace() {
        let (sender, mut changes) = mpsc::channel(4);
        let (links, mut present) = watch::channel(Links::new());
        let task = tokio::spawn(follow(sender, links, watch::Sender::new(0)));
        present.changed().await.unwrap();
        // The loopback device has index 1 in every network namespace.
        let found = present.borrow()[&1].clone();
        assert_eq!((found.name.as_str(), found.kind, found.default_route), ("lo", LinkKind::Inward, false));
        let Some(Change::Interfaces(addresses)) = changes.recv().await else { panic!("no addresses") };
        assert_eq!(addresses, read().await.unwrap().addresses);
        drop(changes);
        task.await.unwrap();
    }
}
