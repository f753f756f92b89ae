//! Endpoints, the legacy form: one slice for each subset and family, as the control plane's mirroring makes them.

use std::net::IpAddr;

use k8s_openapi::api::core::v1;

use super::{HEADLESS, Report, has_label, nameless, namespaced, non_empty};
use crate::model::{Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Kind, ObjectName, Problem};

const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// Converts an Endpoints object. What the mirroring controller leaves alone (locks of leader elections and objects
/// labelled `skip-mirror`) yields nothing: no proxy serves them in a cluster. Nor does one labelled `headless`: its
/// mirror would carry the label, and proxies do not watch such slices.
pub fn endpoints(endpoints: &v1::Endpoints) -> (Option<(ObjectName, Vec<EndpointSlice>)>, Vec<Problem>) {
    let Some(name) = namespaced(&endpoints.metadata) else {
        return (None, nameless(Kind::Endpoints));
    };
    if is_unmirrored(endpoints) || has_label(&endpoints.metadata, HEADLESS) {
        return (None, Vec::new());
    }
    let mut report = Report::new(Kind::Endpoints, &name);
    let mut slices = Vec::new();
    for (i, subset) in endpoints.subsets.iter().flatten().enumerate() {
        let ports = ports(i, subset, &mut report);
        let addresses = addresses(i, subset, &mut report);
        slices.extend([Family::V4, Family::V6].into_iter().filter_map(|family| {
            let endpoints: Vec<_> = addresses
                .iter()
                .filter(|endpoint| Family::of(&endpoint.address) == family)
                .cloned()
                .collect();
            (!endpoints.is_empty()).then(|| EndpointSlice {
                name: slice_name(&name, i, family),
                service: name.name.clone(),
                family,
                ports: ports.clone(),
                endpoints,
            })
        }));
    }
    (Some((name, slices)), report.finish())
}

fn is_unmirrored(endpoints: &v1::Endpoints) -> bool {
    let metadata = &endpoints.metadata;
    let skipped = metadata.labels.as_ref().and_then(|labels| labels.get(SKIP_MIRROR));
    skipped.is_some_and(|value| value == "true")
        || metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER))
}

/// A name that no slice of the API can have, and that stays while the object stays as it is.
fn slice_name(name: &ObjectName, subset: usize, family: Family) -> ObjectName {
    let family = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    ObjectName::new(name.namespace.clone(), format!("{}/subsets[{subset}]/{family}", name.name))
}

fn ports(i: usize, subset: &v1::EndpointSubset, report: &mut Report) -> Vec<EndpointPort> {
    let listed = subset.ports.iter().flatten().enumerate();
    listed
        .filter_map(|(j, port)| {
            let field = |field| format!("subsets[{i}].ports[{j}].{field}");
            let number = report.port(field("port"), port.port, "this port is skipped")?;
            let protocol = report.protocol(field("protocol"), port.protocol.as_deref())?;
            Some(EndpointPort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol,
                port: number,
            })
        })
        .collect()
}

fn addresses(i: usize, subset: &v1::EndpointSubset, report: &mut Report) -> Vec<Endpoint> {
    let lists = [
        ("addresses", subset.addresses.as_deref(), true),
        ("notReadyAddresses", subset.not_ready_addresses.as_deref(), false),
    ];
    let mut endpoints = Vec::new();
    for (list, addresses, ready) in lists {
        for (j, address) in addresses.unwrap_or_default().iter().enumerate() {
            let ip = report.address(format!("subsets[{i}].{list}[{j}].ip"), &address.ip);
            endpoints.extend(ip.map(|ip| endpoint(ip, address, ready)));
        }
    }
    endpoints
}

fn endpoint(ip: IpAddr, address: &v1::EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        address: ip,
        conditions: Conditions { ready, ..Conditions::default() },
        node: non_empty(address.node_name.as_ref()),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn convert(object: Value) -> (Option<Vec<EndpointSlice>>, Vec<String>) {
        let (converted, problems) = endpoints(&serde_json::from_value(object).unwrap());
        (converted.map(|(_, slices)| slices), problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_subset_of_both_families_becomes_two_slices() {
        let (slices, problems) = convert(json!({
            "metadata": {"namespace": "shop", "name": "db"},
            "subsets": [
                {
                    "addresses": [{"ip": "192.0.2.7", "nodeName": "a"}, {"ip": "fd00::7"}],
                    "notReadyAddresses": [{"ip": "192.0.2.8"}],
                    "ports": [{"port": 5432}, {"name": "metrics", "port": 0}, {"name": "x", "port": 1, "protocol": "UDP"}],
                },
                {"addresses": [{"ip": "db.example"}], "ports": [{"port": 1}]},
            ],
        }));
        let slices = slices.unwrap();
        let summary: Vec<_> = slices
            .iter()
            .map(|slice| {
                let endpoints: Vec<_> = slice
                    .endpoints
                    .iter()
                    .map(|e| (e.address.to_string(), e.conditions.ready, e.node.as_deref()))
                    .collect();
                (slice.name.to_string(), slice.family, endpoints)
            })
            .collect();
        assert_eq!(
            summary,
            [
                (
                    "shop/db/subsets[0]/ipv4".to_owned(),
                    Family::V4,
                    vec![("192.0.2.7".to_owned(), true, Some("a")), ("192.0.2.8".to_owned(), false, None)],
                ),
                ("shop/db/subsets[0]/ipv6".to_owned(), Family::V6, vec![("fd00::7".to_owned(), true, None)]),
            ]
        );
        assert!(slices.iter().all(|slice| &*slice.service == "db" && slice.ports.len() == 2));
        assert_eq!(
            problems,
            [
                "Endpoints shop/db: subsets[0].ports[1].port: 0 is not a port (1-65535); this port is skipped",
                "Endpoints shop/db: subsets[1].addresses[0].ip: \"db.example\" is not an IP address; it is skipped",
            ]
        );
    }

    #[test]
    fn what_is_not_mirrored_is_not_served() {
        let table = [
            (json!({"name": "a"}), true),
            (json!({"name": "a", "labels": {SKIP_MIRROR: "true"}}), false),
            (json!({"name": "a", "labels": {SKIP_MIRROR: "false"}}), true),
            (json!({"name": "a", "annotations": {LEADER: ""}}), false),
            (json!({"name": "a", "labels": {HEADLESS: ""}}), false),
        ];
        for (metadata, served) in table {
            let object = json!({"metadata": metadata, "subsets": []});
            assert_eq!(convert(object).0.is_some(), served, "{metadata}");
        }
    }
}
