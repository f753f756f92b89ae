//! Settings of the node's network that decide whether translated packets get where they should: what they are, and what
//! is wrong with them. The evaluation is pure; [`sysctl`] reads and writes.

pub(crate) mod ports;
pub(crate) mod sysctl;

use std::collections::BTreeMap;

use self::ports::Ports;
use crate::{
    config::{NodeIps, PortRange},
    model::Problem,
};

/// Ports that the kernel gives to sockets by itself: two numbers.
pub(crate) const EPHEMERAL: &str = "net/ipv4/ip_local_port_range";
/// Ports that it does not give, although they are among those.
pub(crate) const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
const FORWARD_V4: &str = "net/ipv4/ip_forward";
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";
const SOURCE_CHECK: &str = "net/ipv4/conf/all/rp_filter";

/// `rp_filter` 1: a packet must come from the device that its answer would leave by (RFC 3704, strict).
const STRICT: u8 = 1;

/// What of the node faces clients outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facing {
    /// The names of the devices that are served.
    pub(crate) devices: Vec<String>,
    /// The addresses for translated sources: which families are served.
    pub(crate) sources: NodeIps,
    /// The ports for translated sources.
    pub(crate) ports: PortRange,
}

/// Values by name; what is not there cannot be checked.
pub(crate) type Values = BTreeMap<String, String>;

/// What must be read to judge.
pub(crate) fn names(facing: &Facing) -> Vec<String> {
    let all = [EPHEMERAL, RESERVED, FORWARD_V4, FORWARD_V6, SOURCE_CHECK].map(str::to_owned);
    let of_devices = facing.devices.iter().flat_map(|device| {
        [source_check_of(device), forwarding_of("ipv4", device), forwarding_of("ipv6", device)]
    });
    all.into_iter().chain(of_devices).collect()
}

fn source_check_of(device: &str) -> String {
    format!("net/ipv4/conf/{device}/rp_filter")
}

fn forwarding_of(family: &str, device: &str) -> String {
    format!("net/{family}/conf/{device}/forwarding")
}

/// What is wrong now. A node that serves nobody outside needs nothing.
pub(crate) fn problems(facing: &Facing, values: &Values) -> Vec<Problem> {
    if facing.devices.is_empty() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    if facing.sources.v4.is_some() {
        problems.extend(not_forwarding(facing, values, FORWARD_V4, "ipv4"));
        problems.extend(strict_source_checks(facing, values));
    }
    if facing.sources.v6.is_some() {
        problems.extend(not_forwarding(facing, values, FORWARD_V6, "ipv6"));
    }
    problems.extend(ephemeral_ports(facing, values));
    problems
}

fn number(values: &Values, name: &str) -> Option<u8> {
    values.get(name)?.trim().parse().ok()
}

fn problem(name: &str, what: String) -> Problem {
    Problem { object: format!("sysctl {name}"), field: String::new(), what }
}

/// The switch of all devices first: as long as it is off, those of the devices say nothing new.
fn not_forwarding(facing: &Facing, values: &Values, all: &str, family: &str) -> Vec<Problem> {
    let off = |name: &str| number(values, name) == Some(0);
    let problem = |name: &str| {
        let what = "it is 0, so the kernel forwards no packets of clients outside to pods; set it to 1";
        problem(name, what.to_owned())
    };
    if off(all) {
        return vec![problem(all)];
    }
    let of_devices = facing.devices.iter().map(|device| forwarding_of(family, device));
    of_devices.filter(|name| off(name)).map(|name| problem(&name)).collect()
}

/// A strict check harms only where a client's packets may come in by one device and the way back leads through another.
/// The higher value of the device's and of `all` holds (`ip-sysctl.rst`).
fn strict_source_checks(facing: &Facing, values: &Values) -> Vec<Problem> {
    if facing.devices.len() < 2 {
        return Vec::new();
    }
    let of_all = number(values, SOURCE_CHECK).unwrap_or(0);
    let strict = facing.devices.iter().filter_map(|device| {
        let name = source_check_of(device);
        let own = number(values, &name)?;
        (own.max(of_all) == STRICT).then_some(name)
    });
    let what = "the check of sources is strict here (1, here or for all): packets of clients whose way back leads through \
                another device are dropped; set it to 2 (loose)";
    strict.map(|name| problem(&name, what.to_owned())).collect()
}

fn ephemeral_ports(facing: &Facing, values: &Values) -> Option<Problem> {
    let ephemeral = values.get(EPHEMERAL)?;
    let (first, last) = ephemeral.trim().split_once(char::is_whitespace)?;
    let ephemeral = PortRange { first: first.parse().ok()?, last: last.trim().parse().ok()? };
    let reserved: Ports = values.get(RESERVED).and_then(|text| text.parse().ok()).unwrap_or_default();
    let shared = Ports::of(facing.ports).and(&Ports::of(ephemeral)).without(&reserved);
    (!shared.is_empty()).then(|| {
        let what = format!(
            "ports for translated sources ({}) are among those that the kernel gives to the node's own sockets \
             ({ephemeral}), which then miss answers: {shared}; give other --snat-ports, or --reserve-snat-ports",
            facing.ports
        );
        problem(EPHEMERAL, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facing(devices: &[&str]) -> Facing {
        Facing {
            devices: devices.iter().map(|&name| name.to_owned()).collect(),
            sources: NodeIps { v4: "192.0.2.1".parse().ok(), v6: "2001:db8::1".parse().ok() },
            ports: PortRange { first: 61_000, last: 65_535 },
        }
    }

    /// What a usual node has, with some other values.
    fn values(others: &[(&str, &str)]) -> Values {
        let usual = [
            (EPHEMERAL, "32768\t60999\n"),
            (RESERVED, "\n"),
            (FORWARD_V4, "1\n"),
            (FORWARD_V6, "1\n"),
            (SOURCE_CHECK, "0\n"),
        ];
        usual.iter().chain(others).map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn told(facing: &Facing, others: &[(&str, &str)]) -> Vec<String> {
        problems(facing, &values(others)).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn a_usual_node_has_no_problem() {
        assert_eq!(told(&facing(&["eth0"]), &[]), [""; 0]);
        assert_eq!(problems(&facing(&["eth0", "eth1"]), &Values::new()), []);
    }

    #[test]
    fn forwarding_is_needed_in_the_families_that_are_served() {
        let one = facing(&["eth0", "eth0.7"]);
        let off = [
            (FORWARD_V4, "0"),
            (FORWARD_V6, "0"),
            ("net/ipv4/conf/eth0/forwarding", "0"),
            ("net/ipv6/conf/eth0/forwarding", "0"),
        ];
        let both = told(&one, &off);
        assert_eq!(both.len(), 2, "{both:?}");
        assert!(both[0].starts_with("sysctl net/ipv4/ip_forward: it is 0") && both[0].ends_with("set it to 1"));
        assert!(both[1].starts_with("sysctl net/ipv6/conf/all/forwarding: it is 0"));
        let single = Facing { sources: NodeIps { v6: None, ..one.sources }, ..one.clone() };
        assert_eq!(told(&single, &off).len(), 1);
        let of_device = told(&one, &off[2..]);
        assert_eq!(of_device.len(), 2, "{of_device:?}");
        assert!(of_device[0].starts_with("sysctl net/ipv4/conf/eth0/forwarding:"));
        assert!(of_device[1].starts_with("sysctl net/ipv6/conf/eth0/forwarding:"));
        assert_eq!(told(&facing(&[]), &off), [""; 0]);
    }

    #[test]
    fn a_strict_check_of_sources_is_named_where_there_are_two_ways() {
        let two = facing(&["eth0", "eth1"]);
        for (all, first, second, strict) in [
            ("0", "0", "0", vec![]),
            ("1", "0", "0", vec!["eth0", "eth1"]),
            ("0", "1", "0", vec!["eth0"]),
            ("1", "2", "0", vec!["eth1"]),
            ("2", "1", "1", vec![]),
        ] {
            let values = [
                (SOURCE_CHECK, all),
                ("net/ipv4/conf/eth0/rp_filter", first),
                ("net/ipv4/conf/eth1/rp_filter", second),
            ];
            let found = told(&two, &values);
            let expected: Vec<_> =
                strict.iter().map(|device| format!("sysctl net/ipv4/conf/{device}/rp_filter: ")).collect();
            assert_eq!(found.len(), expected.len(), "{values:?}: {found:?}");
            assert!(found.iter().zip(&expected).all(|(found, start)| found.starts_with(start)), "{found:?}");
            assert_eq!(told(&facing(&["eth0"]), &values), [""; 0]);
        }
    }

    #[test]
    fn ports_that_the_kernel_gives_away_are_named_unless_they_are_reserved() {
        for (ephemeral, reserved, shared) in [
            ("1024 60999", "", None),
            ("1024 65535", "", Some("61000-65535")),
            ("32768 61001", "8080", Some("61000-61001")),
            ("32768 65535", "61000-61999,65000-65535", Some("62000-64999")),
            ("32768 65535", "8080,60000-65535", None),
        ] {
            let found = told(&facing(&["eth0"]), &[(EPHEMERAL, ephemeral), (RESERVED, reserved)]);
            match shared {
                None => assert_eq!(found, [""; 0]),
                Some(shared) => {
                    assert!(found[0].starts_with("sysctl net/ipv4/ip_local_port_range: "), "{found:?}");
                    assert!(found[0].contains(&format!("miss answers: {shared};")), "{found:?}");
                }
            }
        }
    }

    #[test]
    fn all_that_is_judged_is_read() {
        let names = names(&facing(&["eth0.7"]));
        for needed in [EPHEMERAL, RESERVED, FORWARD_V4, FORWARD_V6, SOURCE_CHECK] {
            assert!(names.iter().any(|name| name == needed), "{needed}");
        }
        for needed in ["rp_filter", "forwarding"] {
            let name = format!("net/ipv4/conf/eth0.7/{needed}");
            assert!(names.contains(&name), "{name}");
        }
    }
}
