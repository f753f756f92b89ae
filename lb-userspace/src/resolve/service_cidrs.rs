//! The networks that cluster addresses come from, as the programs compare with them.

use std::collections::BTreeSet;

use lb_common::{prefix::Prefix, service_cidr};

use crate::{
    model::{Kind, Problem, ServiceCidr},
    source::origin,
};

/// The networks of all objects, each once, without those that lie in another: the widest first. The programs compare with
/// a few only; what is beyond them is named.
pub fn resolve<'a>(objects: impl Iterator<Item = &'a ServiceCidr> + Clone) -> (Vec<Prefix>, Vec<Problem>) {
    let prefixes = |object: &ServiceCidr| -> Vec<Prefix> {
        object.networks.iter().map(|network| Prefix::of(network.addr(), network.prefix_len())).collect()
    };
    let sorted: BTreeSet<(u32, Prefix)> =
        objects.clone().flat_map(prefixes).map(|prefix| (prefix.bits(), prefix)).collect();
    let mut covering: Vec<Prefix> = Vec::new();
    for (_, prefix) in sorted {
        if !covering.iter().any(|wider| Prefix::new(prefix.address(), wider.bits()) == *wider) {
            covering.push(prefix);
        }
    }
    let beyond = covering.split_off(covering.len().min(service_cidr::MAX));
    let mut problems = Vec::new();
    for object in objects {
        for prefix in prefixes(object).iter().filter(|prefix| beyond.contains(prefix)) {
            problems.push(Problem {
                object: origin(Kind::ServiceCidr, &object.name),
                field: "spec.cidrs".to_owned(),
                what: format!(
                    "{prefix} is one network more than the {} that are compared with: what goes there to no Service is not \
                     refused",
                    service_cidr::MAX
                ),
            });
        }
    }
    (covering, problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn object(name: &str, networks: &[&str]) -> ServiceCidr {
        ServiceCidr {
            name: ObjectName::new("", name),
            networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
        }
    }

    fn resolved(objects: &[ServiceCidr]) -> (Vec<String>, Vec<String>) {
        let (prefixes, problems) = resolve(objects.iter());
        (
            prefixes.iter().map(ToString::to_string).collect(),
            problems.iter().map(ToString::to_string).collect(),
        )
    }

    #[test]
    fn networks_count_once_and_not_within_another() {
        let objects = [
            object("kubernetes", &["10.96.0.0/16", "fd00:10:96::/112"]),
            object("more", &["10.96.4.0/24", "10.97.0.0/16", "fd00:10:96::/112"]),
        ];
        let (prefixes, problems) = resolved(&objects);
        assert_eq!(prefixes, ["10.96.0.0/16", "10.97.0.0/16", "fd00:10:96::/112"]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(resolved(&[]).0, [""; 0]);
    }

    #[test]
    fn what_is_beyond_the_programs_comparison_is_named() {
        let networks: Vec<_> = (0..10).map(|i| format!("10.{i}.0.0/16")).collect();
        let networks: Vec<_> = networks.iter().map(String::as_str).collect();
        let (prefixes, problems) = resolved(&[object("a", &networks[..5]), object("b", &networks[5..])]);
        assert_eq!(prefixes, networks[..8]);
        assert_eq!(
            problems,
            ["10.8.0.0/16", "10.9.0.0/16"].map(|network| format!(
                "ServiceCIDR b: spec.cidrs: {network} is one network more than the 8 that are compared with: what goes there \
                 to no Service is not refused"
            ))
        );
    }
}
