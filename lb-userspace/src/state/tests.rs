use super::*;
use crate::model::{Conditions, Endpoint, Family, ServiceType, TrafficPolicy};

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn service(of: &str) -> Object {
    Object::Service(Service {
        name: name(of),
        created: None,
        labels: BTreeMap::new(),
        service_type: ServiceType::ClusterIp,
        cluster_ips: Vec::new(),
        headless: false,
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        ports: Vec::new(),
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        algorithm: None,
    })
}

fn slice_of(service: &str, slice: &str, hosts: &[u8]) -> EndpointSlice {
    let endpoint = |host: &u8| Endpoint {
        address: IpAddr::from([10, 0, 0, *host]),
        conditions: Conditions::default(),
        node: None,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    };
    EndpointSlice {
        name: name(slice),
        service: service.into(),
        family: Family::V4,
        ports: Vec::new(),
        endpoints: hosts.iter().map(endpoint).collect(),
    }
}

fn slice(service: &str, slice: &str, hosts: &[u8]) -> Object {
    Object::EndpointSlice(slice_of(service, slice, hosts))
}

fn endpoints(service: &str, hosts: &[u8]) -> Object {
    Object::Endpoints(name(service), vec![slice_of(service, "", hosts)])
}

fn node(zone: Option<&str>, address: [u8; 4]) -> Object {
    let zone = zone.map(Into::into);
    Object::Node(Node { name: "node-1".into(), zone, addresses: vec![address.into()] })
}

fn state(objects: impl IntoIterator<Item = Object>) -> State {
    let mut state = State::new("node-1".into());
    for object in objects {
        state.apply(Change::Apply(object));
    }
    state.take_touched();
    state
}

/// What a change touches: `SERVICE` or `SERVICE/endpoints`, and `zone`, `addresses`.
fn touched(state: &mut State, change: Change) -> Vec<String> {
    state.apply(change);
    let touched = state.take_touched();
    let word = |(index, touch): &(ServiceIndex, Touch)| {
        let suffix = if *touch == Touch::Service { "" } else { "/endpoints" };
        format!("{}{suffix}", state.entry(*index).unwrap().name.name)
    };
    let mut words: Vec<_> = touched.services.iter().map(word).collect();
    words.extend(touched.zone.then(|| "zone".to_owned()));
    words.extend(touched.addresses.then(|| "addresses".to_owned()));
    words
}

#[test]
fn a_change_touches_its_service_alone_and_an_equal_object_touches_nothing() {
    let mut state = state([service("a"), service("b"), slice("a", "s", &[1])]);
    assert_eq!(touched(&mut state, Change::Apply(slice("a", "s", &[1, 2]))), ["a/endpoints"]);
    assert_eq!(touched(&mut state, Change::Apply(slice("a", "s", &[1, 2]))), [""; 0]);
    assert_eq!(touched(&mut state, Change::Apply(service("b"))), [""; 0]);
    assert_eq!(touched(&mut state, Change::Delete(Kind::Service, name("b"))), ["b"]);
    assert_eq!(touched(&mut state, Change::Delete(Kind::Service, name("b"))), [""; 0]);
    assert_eq!(touched(&mut state, Change::Delete(Kind::EndpointSlice, name("s"))), ["a/endpoints"]);
    assert_eq!(touched(&mut state, Change::Delete(Kind::EndpointSlice, name("s"))), [""; 0]);
}

#[test]
fn a_slice_that_moves_touches_both_services() {
    let mut state = state([service("a"), service("b"), slice("a", "s", &[1])]);
    assert_eq!(touched(&mut state, Change::Apply(slice("b", "s", &[1]))), ["a/endpoints", "b/endpoints"]);
    let slices: Vec<_> = state.entries().map(|(_, entry)| entry.endpoint_slices().len()).collect();
    assert_eq!(slices, [0, 1]);
}

#[test]
fn endpoints_count_only_without_slices() {
    let mut state = state([service("a"), slice("a", "s", &[1])]);
    assert_eq!(touched(&mut state, Change::Apply(endpoints("a", &[2]))), [""; 0]);
    let hosts = |state: &State| {
        let (_, entry) = state.entries().next().unwrap();
        entry.endpoint_slices().iter().map(|slice| slice.endpoints[0].address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(hosts(&state), ["10.0.0.1"]);
    assert_eq!(touched(&mut state, Change::Delete(Kind::EndpointSlice, name("s"))), ["a/endpoints"]);
    assert_eq!(hosts(&state), ["10.0.0.2"]);
    assert_eq!(touched(&mut state, Change::Delete(Kind::Endpoints, name("a"))), ["a/endpoints"]);
    assert_eq!(hosts(&state), [""; 0]);
}

#[test]
fn a_list_removes_what_it_does_not_name() {
    let mut state = state([service("a"), service("b"), slice("a", "s1", &[1]), slice("b", "s2", &[2])]);
    assert_eq!(touched(&mut state, Change::Reset(Kind::Service, vec![service("a")])), ["b"]);
    let list = vec![slice("a", "s1", &[1]), slice("a", "s3", &[3])];
    assert_eq!(touched(&mut state, Change::Reset(Kind::EndpointSlice, list)), ["a/endpoints", "b/endpoints"]);
    assert_eq!(touched(&mut state, Change::Reset(Kind::Endpoints, Vec::new())), [""; 0]);
    assert!(!state.is_synced());
    state.apply(Change::Reset(Kind::Node, Vec::new()));
    state.apply(Change::Reset(Kind::ServiceCidr, Vec::new()));
    assert!(state.is_synced());
}

#[test]
fn only_the_own_node_counts_and_only_for_what_changes() {
    let mut state = state([]);
    let other = Object::Node(Node { name: "node-2".into(), zone: Some("z".into()), addresses: Vec::new() });
    assert_eq!(touched(&mut state, Change::Apply(other)), [""; 0]);
    assert_eq!(touched(&mut state, Change::Apply(node(Some("z"), [172, 18, 0, 2]))), ["zone", "addresses"]);
    assert_eq!(touched(&mut state, Change::Apply(node(Some("z"), [172, 18, 0, 3]))), ["addresses"]);
    assert_eq!(touched(&mut state, Change::Delete(Kind::Node, ObjectName::new("", "node-2"))), [""; 0]);
    assert_eq!(
        touched(&mut state, Change::Delete(Kind::Node, ObjectName::new("", "node-1"))),
        ["zone", "addresses"]
    );
    let address = vec![IpAddr::from([127, 0, 0, 1])];
    assert_eq!(touched(&mut state, Change::Interfaces(address.clone())), ["addresses"]);
    assert_eq!(touched(&mut state, Change::Interfaces(address)), [""; 0]);
}

#[test]
fn nothing_of_a_service_is_kept_when_nothing_is_left_of_it() {
    let mut state = state([service("a"), slice("a", "s", &[1])]);
    let index = state.entries().next().unwrap().0;
    state.apply(Change::Delete(Kind::Service, name("a")));
    assert!(!state.forget_if_empty(index), "its slice is there");
    state.apply(Change::Delete(Kind::EndpointSlice, name("s")));
    assert!(!state.forget_if_empty(index), "nobody has looked at the change");
    state.take_touched();
    assert!(state.forget_if_empty(index));
    assert_eq!(state.entries().count(), 0);
    assert!(!state.forget_if_empty(index));
}

#[test]
fn a_sources_problems_last_until_it_takes_them_back() {
    let mut state = state([]);
    let problem = Problem { object: "web.yaml".into(), field: String::new(), what: "not YAML".into() };
    let problems = |problems: Vec<Problem>| Change::Problems { origin: "web.yaml".into(), problems };
    state.apply(problems(vec![problem.clone()]));
    assert_eq!(state.problems().collect::<Vec<_>>(), [&problem]);
    state.apply(problems(Vec::new()));
    assert_eq!(state.problems().count(), 0);
}
