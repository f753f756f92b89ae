//! `ServiceCIDR`.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1;

use super::{Report, nameless, non_empty, parse_net};
use crate::model::{Kind, ObjectName, Problem, ServiceCidr};

/// The fewest bits that a network of cluster addresses has: what is wider would take in most of the world.
const FEWEST_BITS_V4: u8 = 8;
const FEWEST_BITS_V6: u8 = 16;

/// Converts a `ServiceCIDR`.
pub fn service_cidr(object: &v1::ServiceCIDR) -> (Option<ServiceCidr>, Vec<Problem>) {
    let Some(name) = non_empty(object.metadata.name.as_ref()) else {
        return (None, nameless(Kind::ServiceCidr));
    };
    let name = ObjectName::new("", name);
    let mut report = Report::new(Kind::ServiceCidr, &name);
    let listed = object.spec.as_ref().and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
    let mut networks = Vec::with_capacity(listed.len());
    for (i, text) in listed.iter().enumerate() {
        match parse_net(text) {
            Some(network) if is_credible(&network) => networks.push(network),
            Some(network) => {
                let what = format!("{network} is too wide for cluster addresses; it is skipped");
                report.add(format!("spec.cidrs[{i}]"), what);
            }
            None => {
                report.add(format!("spec.cidrs[{i}]"), format!("\"{text}\" is not a network; it is skipped"));
            }
        }
    }
    (Some(ServiceCidr { name, networks }), report.finish())
}

fn is_credible(network: &IpNet) -> bool {
    let fewest = match network {
        IpNet::V4(_) => FEWEST_BITS_V4,
        IpNet::V6(_) => FEWEST_BITS_V6,
    };
    network.prefix_len() >= fewest
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn convert(object: Value) -> (Vec<String>, Vec<String>) {
        let (converted, problems) = service_cidr(&serde_json::from_value(object).unwrap());
        let networks = converted.into_iter().flat_map(|object| object.networks);
        (
            networks.map(|network| network.to_string()).collect(),
            problems.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn what_is_no_credible_network_is_named_and_the_rest_counts() {
        let cidrs = ["10.96.0.0/16", "10.96.0.0", "0.0.0.0/0", "::/0", "fd00:10:96::1/112"];
        let (networks, problems) =
            convert(json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}}));
        assert_eq!(networks, ["10.96.0.0/16", "fd00:10:96::/112"]);
        assert_eq!(
            problems,
            [
                "ServiceCIDR kubernetes: spec.cidrs[1]: \"10.96.0.0\" is not a network; it is skipped",
                "ServiceCIDR kubernetes: spec.cidrs[2]: 0.0.0.0/0 is too wide for cluster addresses; it is skipped",
                "ServiceCIDR kubernetes: spec.cidrs[3]: ::/0 is too wide for cluster addresses; it is skipped",
            ]
        );
    }

    #[test]
    fn an_object_without_name_or_spec_holds_nothing() {
        assert_eq!(convert(json!({"metadata": {"name": "a"}})), (Vec::new(), Vec::new()));
        assert_eq!(convert(json!({"metadata": {}})).1.len(), 1);
    }
}
