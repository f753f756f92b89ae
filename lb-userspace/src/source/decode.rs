//! Typed objects out of JSON values, with one bad field costing that field only. Pure.
//!
//! A typed object does not deserialise at all if one field has the wrong type. Here the smallest part around such a field
//! (the list element that it is in, or the field itself) is emptied and named, and the rest is tried again.

use std::{collections::BTreeMap, fmt};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment};

use crate::model::Problem;

/// Bad fields after which an object is given up.
const MAX_REPAIRS: usize = 32;

/// What could be read of an object, and what could not.
#[derive(Clone, Debug)]
pub(super) struct Decoded<K> {
    /// The object, without the parts that are in `repaired`.
    pub(super) object: Option<K>,
    /// What is wrong.
    pub(super) problems: Vec<Problem>,
    /// The parts that were emptied; nothing that is said of them afterwards is news.
    repaired: Vec<String>,
}

impl<K> Decoded<K> {
    /// These problems and those of the conversion that follows.
    pub(super) fn problems_with(mut self, converted: Vec<Problem>) -> Vec<Problem> {
        let known = |problem: &Problem| self.repaired.iter().any(|part| is_within(&problem.field, part));
        self.problems.extend(converted.into_iter().filter(|problem| !known(problem)));
        self.problems
    }
}

/// Deserialises an object that problems call `name`.
pub(super) fn decode<K: DeserializeOwned>(mut value: Value, name: &str) -> Decoded<K> {
    let mut decoded = Decoded { object: None, problems: Vec::new(), repaired: Vec::new() };
    let mut attempts = BTreeMap::new();
    loop {
        let error = match serde_path_to_error::deserialize(&value) {
            Ok(object) => {
                decoded.object = Some(object);
                return decoded;
            }
            Err(error) => error,
        };
        let field = error.path().to_string();
        let part = if attempts.len() < MAX_REPAIRS { Part::around(error.path()) } else { None };
        let emptied = part.filter(|part| {
            let attempt = attempts.entry(part.to_string()).or_insert(0);
            *attempt += 1;
            part.empty(&mut value, *attempt)
        });
        let what = match &emptied {
            Some(part) => format!("{}; {part} is skipped", error.inner()),
            None => format!("{}; the object is skipped", error.inner()),
        };
        let Some(part) = emptied.map(|part| part.to_string()) else {
            let field = if field == "." { String::new() } else { field };
            decoded.problems.push(Problem { object: name.to_owned(), field, what });
            return decoded;
        };
        if !decoded.repaired.contains(&part) {
            decoded.problems.push(Problem { object: name.to_owned(), field, what });
            decoded.repaired.push(part);
        }
    }
}

/// A part of an object: the smallest list element around a field, or the field where there is no list.
struct Part {
    steps: Vec<Step>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl Part {
    fn around(path: &Path) -> Option<Self> {
        let mut steps = Vec::new();
        for segment in path {
            steps.push(match segment {
                Segment::Map { key } => Step::Key(key.clone()),
                Segment::Seq { index } => Step::Index(*index),
                Segment::Enum { .. } | Segment::Unknown => break,
            });
        }
        if let Some(last) = steps.iter().rposition(|step| matches!(step, Step::Index(_))) {
            steps.truncate(last + 1);
        }
        (!steps.is_empty()).then_some(Self { steps })
    }

    /// Empties the part. A list element stays in its place, so that others keep their index; whether it is an object or
    /// a text is tried in turn, and then the list goes.
    fn empty(&self, root: &mut Value, attempt: u32) -> bool {
        let Some((last, parents)) = self.steps.split_last() else { return false };
        let parent = parents.iter().try_fold(root, |value, step| match step {
            Step::Key(key) => value.get_mut(key),
            Step::Index(index) => value.get_mut(index),
        });
        let Some(parent) = parent else { return false };
        match (last, parent) {
            (Step::Key(key), Value::Object(map)) => map.remove(key).is_some(),
            (Step::Index(_), elements @ Value::Array(_)) if attempt > 2 => {
                *elements = Value::Null;
                true
            }
            (Step::Index(index), Value::Array(elements)) => elements.get_mut(*index).is_some_and(|element| {
                *element =
                    if attempt == 1 { Value::Object(Map::new()) } else { Value::String(String::new()) };
                true
            }),
            _ => false,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.steps.iter().enumerate() {
            match step {
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

fn is_within(field: &str, part: &str) -> bool {
    field.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::source::convert;

    fn service(value: Value) -> (Option<Service>, Vec<String>) {
        let mut decoded = decode(value, "Service default/web");
        let object: Option<Service> = decoded.object.take();
        let converted = object.as_ref().map(|object| convert::service(object).1).unwrap_or_default();
        (object, decoded.problems_with(converted).iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_good_object_passes_untouched() {
        let value = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}});
        let (object, problems) = service(value.clone());
        assert_eq!(object, serde_json::from_value(value).ok());
        assert!(problems.is_empty());
    }

    #[test]
    fn a_bad_field_costs_its_list_element_and_is_named_once() {
        let (object, problems) = service(json!({"metadata": {"name": "web"}, "spec": {"ports": [
            {"port": "http"}, {"port": 80}, null, 7, {"port": 81, "nodePort": 99_999_999_999_i64},
        ]}}));
        let ports = object.unwrap().spec.unwrap().ports.unwrap();
        assert_eq!(ports.iter().map(|port| port.port).collect::<Vec<_>>(), [0, 80, 0, 0, 0]);
        assert_eq!(
            problems,
            [
                "Service default/web: spec.ports[0].port: invalid type: string \"http\", expected i32; spec.ports[0] is skipped",
                "Service default/web: spec.ports[2]: invalid type: null, expected ServicePort; spec.ports[2] is skipped",
                "Service default/web: spec.ports[3]: invalid type: integer `7`, expected ServicePort; spec.ports[3] is skipped",
                "Service default/web: spec.ports[4].nodePort: invalid value: integer `99999999999`, expected i32; spec.ports[4] is skipped",
            ]
        );
    }

    #[test]
    fn a_bad_field_outside_lists_costs_itself() {
        let (object, problems) = service(json!({
            "metadata": {"name": "web", "labels": {"a": 1, "b": "2"}, "creationTimestamp": "yesterday"},
            "spec": {"type": 5, "ports": [{"port": 80}], "clusterIPs": [7, "10.96.0.1"], "externalIPs": [{}]},
        }));
        let object = object.unwrap();
        assert_eq!(
            object.metadata.labels.unwrap().into_iter().collect::<Vec<_>>(),
            [("b".into(), "2".into())]
        );
        let spec = object.spec.unwrap();
        assert_eq!(spec.type_, None);
        assert_eq!(spec.cluster_ips.unwrap(), ["", "10.96.0.1"]);
        assert_eq!(problems.len(), 5, "{problems:#?}");
    }

    #[test]
    fn what_is_no_object_is_given_up() {
        for value in [json!(null), json!([]), json!("web"), json!(1)] {
            let (object, problems) = service(value);
            assert_eq!(object, None);
            assert_eq!(problems.len(), 1);
        }
    }

    #[test]
    fn an_object_full_of_bad_fields_is_given_up() {
        let ports: Vec<_> = (0..100).map(|_| json!({"port": "x"})).collect();
        let (object, problems) = service(json!({"metadata": {"name": "web"}, "spec": {"ports": ports}}));
        assert_eq!(object, None);
        assert_eq!(problems.len(), MAX_REPAIRS + 1);
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[0-9a-z.:/-]{0,12}".prop_map(Value::from),
            Just(Value::from("None")),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{0,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Puts `with` at the `target`-th value of a tree, counted depth first.
    fn mutate(value: &mut Value, target: &mut usize, with: &Value) {
        if *target == 0 {
            *value = with.clone();
            *target = usize::MAX;
            return;
        }
        *target = target.saturating_sub(1);
        match value {
            Value::Array(list) => list.iter_mut().for_each(|element| mutate(element, target, with)),
            Value::Object(map) => map.values_mut().for_each(|element| mutate(element, target, with)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn full_service() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "labels": {"a": "b"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                "externalIPs": ["198.51.100.1"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{"name": "a", "port": 80, "targetPort": "web", "nodePort": 30080, "protocol": "TCP"}, {"name": "b", "port": 53, "protocol": "UDP"}],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}},
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
                "loadBalancerSourceRanges": ["192.0.2.0/24"], "healthCheckNodePort": 32000, "selector": {"app": "web"},
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP"}]}},
        })
    }

    fn full_slice() -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "a", "port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "nodeName": "a", "hints": {"forZones": [{"name": "z"}]}}],
        })
    }

    proptest! {
        #[test]
        fn any_mutation_is_survived_and_what_cannot_be_served_is_named(
            mutations in prop::collection::vec((0_usize..60, any_json()), 1..4),
        ) {
            let (mut service, mut slice) = (full_service(), full_slice());
            for (target, with) in &mutations {
                mutate(&mut service, &mut target.clone(), with);
                mutate(&mut slice, &mut target.clone(), with);
            }
            let mut decoded = decode::<Service>(service, "Service shop/web");
            if let Some(object) = decoded.object.take() {
                let (converted, problems) = convert::service(&object);
                for port in converted.iter().flat_map(|service| &service.ports) {
                    prop_assert!(port.port != 0 && port.node_port != Some(0));
                }
                prop_assert!(converted.is_some() || !problems.is_empty());
            } else {
                prop_assert!(!decoded.problems.is_empty());
            }
            let decoded = decode::<EndpointSlice>(slice, "EndpointSlice shop/web-1");
            if let Some(slice) = decoded.object.and_then(|object| convert::endpoint_slice(&object).0) {
                for endpoint in slice.endpoints {
                    prop_assert_eq!(crate::model::Family::of(&endpoint.address), slice.family);
                }
            }
        }
    }
}
