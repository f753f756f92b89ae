//! `EndpointSlice`.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1;

use super::{HEADLESS, Report, has_label, nameless, namespaced, non_empty};
use crate::model::{Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Kind, Problem};

const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Whether a slice belongs to a headless Service: Sockeye, like kube-proxy, does not watch those.
pub fn is_headless(slice: &v1::EndpointSlice) -> bool {
    has_label(&slice.metadata, HEADLESS)
}

/// Converts a slice. One without the name of a Service, or of names instead of addresses, yields nothing.
pub fn endpoint_slice(slice: &v1::EndpointSlice) -> (Option<EndpointSlice>, Vec<Problem>) {
    let Some(name) = namespaced(&slice.metadata) else {
        return (None, nameless(Kind::EndpointSlice));
    };
    let mut report = Report::new(Kind::EndpointSlice, &name);
    let service = slice.metadata.labels.as_ref().and_then(|labels| non_empty(labels.get(SERVICE_NAME)));
    let (Some(service), Some(family)) = (service, family(&slice.address_type, &mut report)) else {
        return (None, report.finish());
    };
    let listed = slice.ports.as_deref().unwrap_or_default();
    let ports =
        listed.iter().enumerate().filter_map(|(i, port)| convert_port(i, port, &mut report)).collect();
    let listed = slice.endpoints.as_deref().unwrap_or_default();
    let endpoints = listed
        .iter()
        .enumerate()
        .filter_map(|(i, endpoint)| convert_endpoint(i, endpoint, family, &mut report))
        .collect();
    (Some(EndpointSlice { name, service, family, ports, endpoints }), report.finish())
}

fn family(address_type: &str, report: &mut Report) -> Option<Family> {
    match address_type {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            report.add("addressType", format!("\"{other}\" is not IPv4, IPv6 or FQDN; the slice is skipped"));
            None
        }
    }
}

/// A port without number stands for no port: kube-proxy does not take it for all ports either. An absent name is the
/// empty one, that of a Service's single port: the API server defaults it so.
fn convert_port(i: usize, port: &v1::EndpointPort, report: &mut Report) -> Option<EndpointPort> {
    let number = port.port.filter(|number| *number != 0)?;
    let number = report.port(format!("ports[{i}].port"), number, "this port is skipped")?;
    let protocol = report.protocol(format!("ports[{i}].protocol"), port.protocol.as_deref())?;
    Some(EndpointPort { name: port.name.as_deref().unwrap_or_default().into(), protocol, port: number })
}

fn convert_endpoint(
    i: usize,
    endpoint: &v1::Endpoint,
    family: Family,
    report: &mut Report,
) -> Option<Endpoint> {
    let field = || format!("endpoints[{i}].addresses[0]");
    let Some(first) = endpoint.addresses.first() else {
        report.add(format!("endpoints[{i}].addresses"), "no address; this endpoint is skipped");
        return None;
    };
    let address = report.address(field(), first)?;
    if Family::of(&address) != family {
        report.add(field(), format!("{address} is not of the slice's addressType; this endpoint is skipped"));
        return None;
    }
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
    Some(Endpoint {
        address,
        conditions: conditions(endpoint.conditions.as_ref()),
        node: non_empty(endpoint.node_name.as_ref()),
        zone_hints: names(zones.iter().map(|zone| &zone.name)),
        node_hints: names(nodes.iter().map(|node| &node.name)),
    })
}

fn conditions(given: Option<&v1::EndpointConditions>) -> Conditions {
    let default = Conditions::default();
    given.map_or(default, |given| Conditions {
        ready: given.ready.unwrap_or(default.ready),
        serving: given.serving.unwrap_or(default.serving),
        terminating: given.terminating.unwrap_or(default.terminating),
    })
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> Vec<Arc<str>> {
    names.filter_map(|name| non_empty(Some(name))).collect()
}

#[cfg(test)]
mod tests {
    use lb_common::address::Protocol;
    use serde_json::{Value, json};

    use super::*;

    fn convert(object: Value) -> (Option<EndpointSlice>, Vec<String>) {
        let (converted, problems) = endpoint_slice(&serde_json::from_value(object).unwrap());
        (converted, problems.iter().map(ToString::to_string).collect())
    }

    fn slice(address_type: &str, ports: &Value, endpoints: &Value) -> Value {
        json!({
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {SERVICE_NAME: "web"}},
            "addressType": address_type, "ports": ports, "endpoints": endpoints,
        })
    }

    #[test]
    fn conditions_have_the_defaults_of_kubernetes() {
        let table = [
            (json!(null), (true, true, false)),
            (json!({}), (true, true, false)),
            (json!({"ready": false}), (false, true, false)),
            (json!({"serving": false}), (true, false, false)),
            (json!({"ready": false, "serving": true, "terminating": true}), (false, true, true)),
        ];
        for (given, (ready, serving, terminating)) in table {
            let object =
                slice("IPv4", &json!([]), &json!([{"addresses": ["10.0.0.1"], "conditions": given}]));
            let converted = convert(object).0.unwrap();
            assert_eq!(
                converted.endpoints[0].conditions,
                Conditions { ready, serving, terminating },
                "{given}"
            );
        }
    }

    #[test]
    fn ports_at_their_limits() {
        let tcp = |name: &str, port| EndpointPort { name: name.into(), protocol: Protocol::Tcp, port };
        let table = [
            (json!({"port": 80}), Some(tcp("", 80)), None),
            (json!({"name": "", "port": 1}), Some(tcp("", 1)), None),
            (json!({"name": "a", "port": 65535, "protocol": "TCP"}), Some(tcp("a", 65535)), None),
            (
                json!({"name": "a", "port": 1, "protocol": "UDP"}),
                Some(EndpointPort { protocol: Protocol::Udp, ..tcp("a", 1) }),
                None,
            ),
            (
                json!({"name": "a", "port": 1, "protocol": "SCTP"}),
                Some(EndpointPort { protocol: Protocol::Sctp, ..tcp("a", 1) }),
                None,
            ),
            (json!({"name": "a"}), None, None),
            (json!({"name": "a", "port": 0}), None, None),
            (
                json!({"name": "a", "port": -1}),
                None,
                Some("ports[0].port: -1 is not a port (1-65535); this port is skipped"),
            ),
            (
                json!({"name": "a", "port": 65536}),
                None,
                Some("ports[0].port: 65536 is not a port (1-65535); this port is skipped"),
            ),
            (
                json!({"name": "a", "port": 1, "protocol": "tcp"}),
                None,
                Some("ports[0].protocol: \"tcp\" is not TCP, UDP or SCTP; this port is skipped"),
            ),
        ];
        for (given, expected, problem) in table {
            let (converted, problems) = convert(slice("IPv4", &json!([given]), &json!([])));
            assert_eq!(converted.unwrap().ports, Vec::from_iter(expected), "{given}");
            let expected = problem.map(|problem| format!("EndpointSlice shop/web-1: {problem}"));
            assert_eq!(problems, Vec::from_iter(expected), "{given}");
        }
    }

    #[test]
    fn only_the_first_address_counts_and_it_must_be_of_the_family() {
        let endpoints = json!([
            {"addresses": ["10.0.0.1", "nonsense"], "nodeName": "a", "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "a"}]}},
            {"addresses": ["fd00::1"]},
            {"addresses": []},
            {"addresses": ["::ffff:10.0.0.2"], "nodeName": ""},
            {"addresses": ["224.0.0.1"]},
        ]);
        let (converted, problems) = convert(slice("IPv4", &json!([]), &endpoints));
        let endpoints = converted.unwrap().endpoints;
        assert_eq!(
            endpoints.iter().map(|e| e.address.to_string()).collect::<Vec<_>>(),
            ["10.0.0.1", "10.0.0.2"]
        );
        assert_eq!(endpoints[0].node.as_deref(), Some("a"));
        assert_eq!(endpoints[1].node, None);
        assert_eq!((&*endpoints[0].zone_hints[0], &*endpoints[0].node_hints[0]), ("z", "a"));
        assert_eq!(
            problems,
            [
                "EndpointSlice shop/web-1: endpoints[1].addresses[0]: fd00::1 is not of the slice's addressType; this endpoint is skipped",
                "EndpointSlice shop/web-1: endpoints[2].addresses: no address; this endpoint is skipped",
                "EndpointSlice shop/web-1: endpoints[4].addresses[0]: 224.0.0.1 is not the address of one machine; it is skipped",
            ]
        );
    }

    #[test]
    fn slices_of_other_kinds_yield_nothing() {
        assert_eq!(convert(slice("FQDN", &json!([]), &json!([]))), (None, vec![]));
        let (none, problems) = convert(slice("IPv5", &json!([]), &json!([])));
        assert_eq!(none, None);
        assert_eq!(
            problems,
            [
                "EndpointSlice shop/web-1: addressType: \"IPv5\" is not IPv4, IPv6 or FQDN; the slice is skipped"
            ]
        );
        let unlabelled = json!({"metadata": {"name": "a"}, "addressType": "IPv4"});
        assert_eq!(convert(unlabelled), (None, vec![]));
    }

    #[test]
    fn a_thousand_problems_are_summed_up() {
        let endpoints: Vec<_> = (0..1000).map(|_| json!({"addresses": ["fd00::1"]})).collect();
        let (converted, problems) = convert(slice("IPv4", &json!([]), &endpoints.into()));
        assert_eq!(converted.unwrap().endpoints, []);
        assert_eq!(problems.len(), 21);
        assert_eq!(problems[20], "EndpointSlice shop/web-1: and 980 more problems");
    }
}
