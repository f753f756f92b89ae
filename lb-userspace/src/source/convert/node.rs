//! Node.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{Report, nameless, non_empty};
use crate::model::{Kind, Node, ObjectName, Problem};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Address types that belong to the node's own interfaces, the preferred one first.
const ADDRESS_TYPES: [&str; 2] = ["InternalIP", "ExternalIP"];

/// Converts a Node.
pub fn node(node: &v1::Node) -> (Option<Node>, Vec<Problem>) {
    let Some(name) = non_empty(node.metadata.name.as_ref()) else {
        return (None, nameless(Kind::Node));
    };
    let mut report = Report::new(Kind::Node, &ObjectName::new("", name.clone()));
    let zone = node.metadata.labels.as_ref().and_then(|labels| non_empty(labels.get(ZONE)));
    let addresses = addresses(node, &mut report);
    (Some(Node { name, zone, addresses }), report.finish())
}

fn addresses(node: &v1::Node, report: &mut Report) -> Vec<IpAddr> {
    let listed = node.status.as_ref().and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for address_type in ADDRESS_TYPES {
        for (i, address) in listed.iter().enumerate().filter(|(_, address)| address.type_ == address_type) {
            let ip = report.address(format!("status.addresses[{i}].address"), &address.address);
            found.extend(ip.filter(|ip| !found.contains(ip)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn convert(object: Value) -> (Option<Node>, Vec<String>) {
        let (converted, problems) = node(&serde_json::from_value(object).unwrap());
        (converted, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn internal_addresses_come_before_external_ones_and_names_are_no_addresses() {
        let (node, problems) = convert(json!({
            "metadata": {"name": "a", "labels": {ZONE: "west"}},
            "status": {"addresses": [
                {"type": "Hostname", "address": "a"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "InternalIP", "address": "010.0.0.1"},
            ]},
        }));
        let node = node.unwrap();
        assert_eq!((&*node.name, node.zone.as_deref()), ("a", Some("west")));
        let expected: Vec<IpAddr> =
            ["10.0.0.1", "fd00::1", "192.0.2.1"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(node.addresses, expected);
        assert!(problems.is_empty());
    }

    #[test]
    fn a_bad_address_is_named_and_skipped() {
        let (node, problems) = convert(json!({
            "metadata": {"name": "a", "labels": {ZONE: ""}},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "10.0.0.256"},
                {"type": "InternalIP", "address": "0.0.0.0"},
                {"type": "InternalIP", "address": "10.0.0.1"},
            ]},
        }));
        let node = node.unwrap();
        assert_eq!(node.zone, None);
        assert_eq!(node.addresses.len(), 1);
        assert_eq!(
            problems,
            [
                "Node a: status.addresses[0].address: \"10.0.0.256\" is not an IP address; it is skipped",
                "Node a: status.addresses[1].address: 0.0.0.0 is not the address of one machine; it is skipped",
            ]
        );
    }

    #[test]
    fn a_node_without_status_or_name() {
        assert_eq!(convert(json!({"metadata": {"name": "a"}})).0.unwrap().addresses, Vec::<IpAddr>::new());
        let (none, problems) = convert(json!({"metadata": {"name": ""}}));
        assert_eq!(
            (none, &*problems),
            (None, &["Node: metadata.name: no name; the object is skipped".to_owned()][..])
        );
    }
}
