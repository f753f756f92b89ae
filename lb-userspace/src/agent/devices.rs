//! Which devices serve clients from outside, and why. Pure.
//!
//! By default those that carry an address of the node, and those that a default route leads out through: what other
//! machines send to the node arrives there. Devices of pods and bridges of network plug-ins have neither.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use crate::{
    config::{DeviceChoice, NodeIps},
    model::{Node, Problem},
    netlink::{Link, LinkKind, Links},
};

/// The devices that serve clients from outside, by index.
pub(crate) type Devices = BTreeMap<u32, Device>;

/// A device that serves clients from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its name.
    pub(crate) name: String,
    /// Its addresses, in the kernel's order.
    pub(crate) addresses: Vec<IpAddr>,
    /// Why it was chosen.
    pub(crate) why: Vec<Why>,
}

/// A reason to serve a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// It matches this pattern of `--devices`.
    Named(String),
    /// It carries this address of the node.
    Carries(IpAddr),
    /// A default route leads out through it.
    DefaultRoute,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(pattern) => write!(f, "matches --devices {pattern}"),
            Self::Carries(address) => write!(f, "carries {address}"),
            Self::DefaultRoute => f.write_str("has a default route"),
        }
    }
}

/// The addresses of the node: the operator's, else the Node's, in each family.
pub(crate) fn node_addresses(given: NodeIps, node: Option<&Node>) -> Vec<IpAddr> {
    let given: Vec<_> = given.v4.map(IpAddr::V4).into_iter().chain(given.v6.map(IpAddr::V6)).collect();
    let of_node = node.into_iter().flat_map(|node| node.addresses.iter().copied());
    let others = of_node.filter(|ip| !given.iter().any(|given| given.is_ipv4() == ip.is_ipv4()));
    given.iter().copied().chain(others).collect()
}

/// Chooses among the devices that there are. What cannot be served as wanted is a problem.
pub(crate) fn choose(
    choice: &DeviceChoice,
    node_addresses: &[IpAddr],
    links: &Links,
) -> (Devices, Vec<Problem>) {
    let (mut devices, mut problems) = (Devices::new(), Vec::new());
    for (index, link) in links {
        let why = reasons(choice, node_addresses, links, link);
        if why.is_empty() {
            continue;
        }
        if link.kind == LinkKind::Headerless {
            problems.push(headerless(link, &why));
            continue;
        }
        let Link { name, addresses, .. } = link.clone();
        devices.insert(*index, Device { name, addresses, why });
    }
    problems.extend(missing(choice, node_addresses, links, &devices));
    (devices, problems)
}

fn reasons(choice: &DeviceChoice, node_addresses: &[IpAddr], links: &Links, link: &Link) -> Vec<Why> {
    match choice {
        DeviceChoice::None => Vec::new(),
        DeviceChoice::Named(patterns) => {
            let matching = patterns.iter().filter(|pattern| pattern.matches(&link.name));
            matching.map(|pattern| Why::Named(pattern.to_string())).collect()
        }
        DeviceChoice::Auto if nothing_arrives(links, link) => Vec::new(),
        DeviceChoice::Auto => {
            let held = node_addresses.iter().filter(|address| link.addresses.contains(address));
            held.map(|address| Why::Carries(*address))
                .chain(link.default_route.then_some(Why::DefaultRoute))
                .collect()
        }
    }
}

/// Whether the stack takes no packets of other machines from a device: they go to its bridge or bond, or there are none.
fn nothing_arrives(links: &Links, link: &Link) -> bool {
    let is_vrf = |index| links.get(&index).is_some_and(|controller| controller.kind == LinkKind::Vrf);
    let is_port = link.controller.is_some_and(|index| !is_vrf(index));
    is_port || matches!(link.kind, LinkKind::Inward | LinkKind::Vrf)
}

fn headerless(link: &Link, why: &[Why]) -> Problem {
    let why: Vec<_> = why.iter().map(Why::to_string).collect();
    let what = format!(
        "it {}, but its packets have no Ethernet header: clients that come in by it are not served",
        why.join(" and ")
    );
    Problem { object: device_object(&link.name), field: String::new(), what }
}

/// What was wanted and is not there.
fn missing(
    choice: &DeviceChoice,
    node_addresses: &[IpAddr],
    links: &Links,
    devices: &Devices,
) -> Vec<Problem> {
    let problem = |object: String, what: String| Problem { object, field: String::new(), what };
    match choice {
        DeviceChoice::Named(patterns) => patterns
            .iter()
            .filter(|pattern| !links.values().any(|link| pattern.matches(&link.name)))
            .map(|pattern| {
                let what = "no device has such a name; waiting for one".to_owned();
                problem(format!("--devices {pattern}"), what)
            })
            .collect(),
        DeviceChoice::Auto if devices.is_empty() => {
            let addresses: Vec<_> = node_addresses.iter().map(IpAddr::to_string).collect();
            let carrier = if addresses.is_empty() {
                String::new()
            } else {
                format!("carries {} or ", addresses.join(" or "))
            };
            let what = format!(
                "no device {carrier}has a default route, so clients from outside are not served; name the devices that \
                 they come in by, or none"
            );
            vec![problem("--devices auto".to_owned(), what)]
        }
        DeviceChoice::None | DeviceChoice::Auto => Vec::new(),
    }
}

/// The addresses for translated sources that this machine does not have.
pub(crate) fn foreign_sources(sources: NodeIps, links: &Links) -> Vec<Problem> {
    let sources = sources.v4.map(IpAddr::V4).into_iter().chain(sources.v6.map(IpAddr::V6));
    let foreign = sources.filter(|ip| !links.values().any(|link| link.addresses.contains(ip)));
    let problem = |ip: IpAddr| Problem {
        object: "node".to_owned(),
        field: String::new(),
        what: format!(
            "no device carries {ip}, the address for translated sources: what backends on other nodes answer does not \
             come back; give --node-ip"
        ),
    };
    foreign.map(problem).collect()
}

/// How a device is named in problems.
pub(crate) fn device_object(name: &str) -> String {
    format!("device {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, addresses: &str) -> Link {
        Link {
            name: name.to_owned(),
            kind: LinkKind::Ethernet,
            controller: None,
            addresses: addresses.split_whitespace().map(|ip| ip.parse().unwrap()).collect(),
            default_route: false,
        }
    }

    fn with_default_route(name: &str, addresses: &str) -> Link {
        Link { default_route: true, ..link(name, addresses) }
    }

    fn of_kind(kind: LinkKind, name: &str, addresses: &str) -> Link {
        Link { kind, ..with_default_route(name, addresses) }
    }

    fn port_of(controller: u32, link: Link) -> Link {
        Link { controller: Some(controller), ..link }
    }

    /// The devices that are chosen and the problems, one a line.
    fn chosen(choice: &str, node: &str, links: Vec<Link>) -> Vec<String> {
        let choice = choice.parse().unwrap();
        let node: Vec<IpAddr> = node.split_whitespace().map(|ip| ip.parse().unwrap()).collect();
        let links: Links = (1..).zip(links).collect();
        let (devices, problems) = choose(&choice, &node, &links);
        let devices = devices.values().map(|device| {
            let why: Vec<_> = device.why.iter().map(Why::to_string).collect();
            format!("{}: {}", device.name, why.join(", "))
        });
        devices.chain(problems.iter().map(Problem::to_string)).collect()
    }

    fn loopback() -> Link {
        of_kind(LinkKind::Inward, "lo", "127.0.0.1 ::1 192.0.2.1")
    }

    #[test]
    fn the_devices_with_the_nodes_addresses_or_a_default_route_are_taken() {
        let links = vec![
            loopback(),
            link("eth0", "192.0.2.1 fe80::1"),
            with_default_route("eth1", "198.51.100.1"),
            with_default_route("eth2", "2001:db8::1"),
            link("eth3", "203.0.113.1"),
            link("veth1", "10.244.1.1"),
            link("cni0", "10.244.1.1 fd00:244::1"),
        ];
        assert_eq!(
            chosen("auto", "192.0.2.1 2001:db8::1", links),
            [
                "eth0: carries 192.0.2.1",
                "eth1: has a default route",
                "eth2: carries 2001:db8::1, has a default route",
            ]
        );
    }

    #[test]
    fn bridges_bonds_and_vlans_are_taken_and_not_their_ports() {
        let links = vec![
            link("br0", "192.0.2.1"),
            port_of(1, with_default_route("eth0", "192.0.2.1")),
            with_default_route("bond0.7", "192.0.2.1"),
            link("bond0", ""),
            port_of(4, link("eth1", "")),
            of_kind(LinkKind::Vrf, "blue", "192.0.2.1"),
            port_of(6, link("eth2", "192.0.2.1")),
            // A controller that is gone again when the listing comes to it.
            port_of(99, link("eth3", "192.0.2.1")),
        ];
        assert_eq!(
            chosen("auto", "192.0.2.1", links),
            [
                "br0: carries 192.0.2.1",
                "bond0.7: carries 192.0.2.1, has a default route",
                "eth2: carries 192.0.2.1",
            ]
        );
    }

    #[test]
    fn patterns_decide_alone() {
        let links = || {
            vec![
                with_default_route("eth0", "192.0.2.1"),
                link("ens1", ""),
                port_of(1, link("ens2", "")),
                link("en", ""),
            ]
        };
        assert_eq!(
            chosen("ens?,ens2,wlan*", "192.0.2.1", links()),
            [
                "ens1: matches --devices ens?",
                "ens2: matches --devices ens?, matches --devices ens2",
                "--devices wlan*: no device has such a name; waiting for one",
            ]
        );
        assert_eq!(chosen("none", "192.0.2.1", links()), [""; 0]);
    }

    #[test]
    fn devices_without_ethernet_headers_are_named_and_left_alone() {
        let wireguard = || vec![of_kind(LinkKind::Headerless, "wg0", "192.0.2.1")];
        let refused = "clients that come in by it are not served";
        for (choice, why) in [
            ("auto", "device wg0: it carries 192.0.2.1 and has a default route, but"),
            ("wg*", "device wg0: it matches --devices wg*, but"),
        ] {
            let found = chosen(choice, "192.0.2.1", wireguard());
            assert!(found[0].starts_with(why) && found[0].ends_with(refused), "{found:?}");
        }
    }

    #[test]
    fn no_device_at_all_is_a_problem_that_names_what_was_looked_for() {
        for (node, expected) in [
            ("", "--devices auto: no device has a default route, so"),
            (
                "192.0.2.1 2001:db8::1",
                "no device carries 192.0.2.1 or 2001:db8::1 or has a default route, so",
            ),
        ] {
            let found = chosen("auto", node, vec![loopback(), link("eth0", "198.51.100.1")]);
            assert!(found.len() == 1 && found[0].contains(expected), "{found:?}");
        }
    }

    #[test]
    fn an_address_for_sources_that_nobody_carries_is_named() {
        let links: Links = (1..).zip([loopback(), link("eth0", "192.0.2.9")]).collect();
        let named = |v4: &str, v6: &str| {
            let found = foreign_sources(NodeIps { v4: v4.parse().ok(), v6: v6.parse().ok() }, &links);
            found.iter().map(Problem::to_string).collect::<Vec<_>>()
        };
        assert_eq!(named("192.0.2.9", ""), [""; 0]);
        assert_eq!(named("192.0.2.1", ""), [""; 0]);
        let both = named("192.0.2.8", "2001:db8::8");
        assert_eq!(both.len(), 2);
        assert!(
            both[0].starts_with("node: no device carries 192.0.2.8,") && both[1].contains(" 2001:db8::8,")
        );
    }

    #[test]
    fn the_operators_address_stands_for_the_nodes_in_its_family() {
        let node = Node {
            addresses: ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|ip| ip.parse().unwrap()).to_vec(),
            ..Node::default()
        };
        let given = NodeIps { v4: Some([192, 0, 2, 9].into()), v6: None };
        let told = |given, node| {
            node_addresses(given, node).iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told(given, Some(&node)), "192.0.2.9 2001:db8::1");
        assert_eq!(told(NodeIps::default(), Some(&node)), "192.0.2.1 192.0.2.2 2001:db8::1");
        assert_eq!(told(given, None), "192.0.2.9");
    }
}
