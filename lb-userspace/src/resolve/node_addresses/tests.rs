use super::*;

const INTERFACES: [&str; 8] = [
    "127.0.0.1",
    "::1",
    "127.0.0.53",
    "172.18.0.2",
    "fd00:18::2",
    "fe80::42:acff:fe12:2",
    "10.244.1.1",
    "169.254.20.10",
];

fn ips(list: &[&str]) -> Vec<IpAddr> {
    list.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn addresses(named: &str, node: Option<&[&str]>) -> Vec<String> {
    let node = node.map(|addresses| Node { name: "n".into(), zone: None, addresses: ips(addresses) });
    let resolved = resolve(&named.parse().unwrap(), node.as_ref(), &ips(&INTERFACES));
    let word = |(address, value): (&Address, &NodeAddress)| {
        assert_ne!(value.flags & node_address::NODE_PORTS, 0);
        let host_only = if value.flags & node_address::HOST_ONLY == 0 { "" } else { " host-only" };
        format!("{address}{host_only}")
    };
    resolved.iter().map(word).collect()
}

const NODE: Option<&[&str]> = Some(&["172.18.0.2", "10.244.1.1", "fd00:18::2"]);

#[test]
fn primary_is_the_nodes_first_address_of_each_family() {
    assert_eq!(addresses("primary", NODE), ["172.18.0.2", "fd00:18::2"]);
    assert_eq!(addresses("primary", Some(&["192.0.2.1"])), ["192.0.2.1"]);
}

#[test]
fn without_a_node_primary_is_what_other_machines_can_reach() {
    assert_eq!(addresses("primary", None), ["10.244.1.1", "172.18.0.2", "fd00:18::2"]);
}

#[test]
fn localhost_is_for_the_host_alone_and_needs_no_interface() {
    assert_eq!(
        addresses("localhost", NODE),
        ["::1 host-only", "127.0.0.1 host-only", "127.0.0.53 host-only"]
    );
    let named = "localhost".parse().unwrap();
    assert_eq!(resolve(&named, None, &[]).len(), 2);
}

#[test]
fn all_leaves_loopback_out() {
    assert_eq!(
        addresses("all", NODE),
        ["10.244.1.1", "169.254.20.10", "172.18.0.2", "fd00:18::2", "fe80::42:acff:fe12:2"]
    );
}

#[test]
fn networks_choose_among_the_interfaces_addresses() {
    assert_eq!(addresses("172.18.0.0/16", NODE), ["172.18.0.2"]);
    assert_eq!(
        addresses("172.18.0.9/16, fd00::/8,127.0.0.1", NODE),
        ["127.0.0.1 host-only", "172.18.0.2", "fd00:18::2"]
    );
}

#[test]
fn the_default_is_primary_and_localhost() {
    let default = NodePortAddresses::default();
    assert_eq!(default.to_string(), "primary,localhost");
    assert_eq!(default.to_string().parse(), Ok(default));
}

#[test]
fn an_unknown_item_is_named() {
    for (list, item) in [("primary,eth0", "eth0"), ("", ""), ("10.0.0.0/33", "10.0.0.0/33")] {
        let error = list.parse::<NodePortAddresses>().unwrap_err();
        assert_eq!(error.item, item);
        assert!(error.to_string().starts_with(&format!("{item:?} is neither")), "{error}");
    }
}
