//! The node's interfaces: their addresses, and the devices that match `--devices`, followed as they come and go.
//!
//! An event says only that something changed; the whole is read again then. So a lost event costs nothing as long as
//! the loss itself is noticed, which the kernel reports (netlink(7), `ENOBUFS`). This module watches its own network
//! namespace only.

pub(crate) mod exchange;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    MulticastGroup, new_connection, new_multicast_connection,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
        link::{LinkAttribute, LinkMessage},
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::{debug, warn};

use crate::{config::DevicePattern, model::Change, telemetry::chain};

/// A burst of events, such as a device that comes up with its addresses, is read once.
const SETTLE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_secs(1);

/// The devices that match, by index. The name alone does not identify one: it may be renamed, or made anew.
pub type Devices = BTreeMap<u32, Device>;

/// A device that matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its addresses, in the order in which the kernel lists them: its choice of a source follows it.
    pub addresses: Vec<IpAddr>,
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
    /// The devices that match.
    pub devices: Devices,
}

/// Reads the interfaces once. Needs a tokio runtime.
pub async fn read(patterns: &[DevicePattern]) -> Result<Interfaces, NetlinkError> {
    let (connection, handle, _) = new_connection().map_err(NetlinkError::Open)?;
    let connection = tokio::spawn(connection);
    let listed = list(&handle, patterns).await;
    connection.abort();
    listed
}

/// Follows the interfaces until `changes` is closed: sends the addresses and the devices, first as they are, then
/// whenever they differ; `events` counts what the kernel tells of any device. Trouble is logged and tried again; what was
/// said last stays.
pub async fn follow(
    patterns: Vec<DevicePattern>,
    changes: mpsc::Sender<Change>,
    devices: watch::Sender<Devices>,
    events: watch::Sender<u64>,
) {
    let mut said: Option<Vec<IpAddr>> = None;
    while !changes.is_closed() {
        if let Err(error) = follow_once(&patterns, &changes, &devices, &events, &mut said).await {
            let error = chain(&error);
            warn!(error, "cannot follow the node's interfaces; trying again");
            sleep(RETRY).await;
        }
    }
}

/// Follows the interfaces over one socket. `said` are the addresses that were sent last.
async fn follow_once(
    patterns: &[DevicePattern],
    changes: &mpsc::Sender<Change>,
    devices: &watch::Sender<Devices>,
    events: &watch::Sender<u64>,
    said: &mut Option<Vec<IpAddr>>,
) -> Result<(), NetlinkError> {
    // Listen before the first listing, so that nothing happens unseen in between.
    let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (listener, _, mut heard) = new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
    let listener = AbortOnDrop(tokio::spawn(listener));
    loop {
        let Interfaces { addresses, devices: matching } = read(patterns).await?;
        devices.send_if_modified(|known| {
            let differs = *known != matching;
            if differs {
                *known = matching;
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
        tokio::select! {
            event = heard.next() => event.ok_or(NetlinkError::Ended)?,
            () = changes.closed() => return Ok(()),
        };
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

async fn list(handle: &rtnetlink::Handle, patterns: &[DevicePattern]) -> Result<Interfaces, NetlinkError> {
    let failed = |what| move |source| NetlinkError::List { what, source: Box::new(source) };
    let messages: Vec<_> =
        handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
    let held: Vec<(u32, IpAddr)> = messages
        .iter()
        .filter_map(|message| Some((message.header.index, usable_address(message)?)))
        .collect();
    let mut devices = Devices::new();
    if !patterns.is_empty() {
        let links: Vec<_> = handle.link().get().execute().try_collect().await.map_err(failed("devices"))?;
        let matching = links
            .iter()
            .filter_map(name_of)
            .filter(|(_, name)| patterns.iter().any(|pattern| pattern.matches(name)));
        for (index, name) in matching {
            let addresses = held.iter().filter(|(holder, _)| *holder == index).map(|(_, ip)| *ip).collect();
            devices.insert(index, Device { name, addresses });
        }
    }
    let mut addresses: Vec<_> = held.into_iter().map(|(_, ip)| ip).collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(Interfaces { addresses, devices })
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

fn name_of(link: &LinkMessage) -> Option<(u32, String)> {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some((link.header.index, name))
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
        let (devices, mut matching) = watch::channel(Devices::new());
        let pattern = "l[o-p]".parse().unwrap();
        let task = tokio::spawn(follow(vec![pattern], sender, devices, watch::Sender::new(0)));
        matching.changed().await.unwrap();
        // The loopback device has index 1 in every network namespace.
        let found = matching.borrow().clone();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&1]);
        assert_eq!(found[&1].name, "lo");
        let Some(Change::Interfaces(addresses)) = changes.recv().await else { panic!("no addresses") };
        assert_eq!(addresses, read(&[]).await.unwrap().addresses);
        drop(changes);
        task.await.unwrap();
    }
}
