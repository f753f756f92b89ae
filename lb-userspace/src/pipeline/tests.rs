use std::net::IpAddr;

use super::*;
use crate::{
    model::{
        Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Kind, Node, Object, ObjectName, Protocol,
        Service, ServicePort, ServiceType, TrafficPolicy,
    },
    store::{fake::FakeStore, faulty::FaultyStore},
};

const CAPACITY: Capacity = Capacity {
    frontends: 16,
    services: 8,
    backends: 32,
    source_ranges: 8,
    maglev: 1 << 17,
    node_addresses: 8,
};

fn service(name: &str, ip: &str) -> Service {
    Service {
        name: ObjectName::new("default", name),
        created: None,
        labels: BTreeMap::new(),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![ip.parse().unwrap()],
        headless: false,
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        algorithm: None,
    }
}

fn slice(service: &str, hosts: &[u8]) -> Object {
    let endpoint = |host: &u8| Endpoint {
        address: IpAddr::from([10, 0, 0, *host]),
        conditions: Conditions::default(),
        node: Some(if *host == 1 { "node-1".into() } else { "node-2".into() }),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    };
    Object::EndpointSlice(EndpointSlice {
        name: ObjectName::new("default", format!("{service}-1")),
        service: service.into(),
        family: Family::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: hosts.iter().map(endpoint).collect(),
    })
}

fn pipeline(capacity: Capacity) -> Pipeline {
    let settings = PipelineSettings {
        node_name: "node-1".into(),
        node_port_addresses: NodePortAddresses::default(),
        external_ips: true,
        algorithm: DefaultAlgorithm::default(),
    };
    let mut pipeline = Pipeline::new(settings, capacity);
    for kind in Kind::ALL {
        pipeline.apply(Change::Reset(kind, Vec::new()));
    }
    pipeline
}

fn apply(pipeline: &mut Pipeline, objects: impl IntoIterator<Item = Object>) {
    for object in objects {
        pipeline.apply(Change::Apply(object));
    }
}

fn problems(pipeline: &Pipeline) -> Vec<String> {
    pipeline.problems().iter().map(ToString::to_string).collect()
}

/// Keeps the writes.
struct Recording {
    inner: FakeStore,
    writes: Vec<Write>,
}

impl Recording {
    fn new(capacity: Capacity) -> Self {
        Self { inner: FakeStore::new(capacity), writes: Vec::new() }
    }
}

impl Store for Recording {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        self.writes.push(write.clone());
        self.inner.apply(write)
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }
}

#[test]
fn one_slice_writes_one_set_of_one_service() {
    let mut pipeline = pipeline(CAPACITY);
    let mut store = Recording::new(CAPACITY);
    for number in 1..=5 {
        let name = format!("s{number}");
        let service = service(&name, &format!("10.96.0.{number}"));
        apply(&mut pipeline, [Object::Service(service), slice(&name, &[2, 3])]);
    }
    pipeline.sync(&mut store);
    store.writes.clear();
    apply(&mut pipeline, [slice("s3", &[2, 3, 4])]);
    let report = pipeline.sync(&mut store);
    assert!(matches!(store.writes[..], [Write::Slots { .. }, Write::Range { .. }]), "{:?}", store.writes);
    assert_eq!(report, SyncReport { written: 2, retired: true, ..SyncReport::default() });
}

#[test]
fn frontends_that_go_are_deleted_before_the_sets_change() {
    let mut pipeline = pipeline(CAPACITY);
    let mut store = Recording::new(CAPACITY);
    let external_ips = vec!["198.51.100.1".parse().unwrap()];
    let before = Service { external_ips, ..service("a", "10.96.0.1") };
    apply(&mut pipeline, [Object::Service(before), slice("a", &[2])]);
    pipeline.sync(&mut store);
    store.writes.clear();
    apply(&mut pipeline, [Object::Service(service("a", "10.96.0.1")), slice("a", &[3])]);
    pipeline.sync(&mut store);
    assert!(
        matches!(store.writes[..], [Write::DeleteFrontend { .. }, Write::Slots { .. }, Write::Range { .. }]),
        "{:?}",
        store.writes
    );
}

#[test]
fn a_grace_period_in_the_middle_where_only_retired_slots_are_left() {
    let capacity = Capacity { backends: 7, ..CAPACITY };
    let mut pipeline = pipeline(capacity);
    let mut store = Recording::new(capacity);
    apply(&mut pipeline, [Object::Service(service("a", "10.96.0.1")), slice("a", &[2, 3, 4])]);
    pipeline.sync(&mut store);
    apply(&mut pipeline, [slice("a", &[2, 3, 5])]);
    pipeline.sync(&mut store);
    store.writes.clear();
    apply(&mut pipeline, [slice("a", &[2, 3, 6])]);
    let report = pipeline.sync(&mut store);
    assert!(
        matches!(store.writes[..], [Write::Grace, Write::Slots { .. }, Write::Range { .. }]),
        "{:?}",
        store.writes
    );
    assert_eq!((report.dirty, report.blocked, report.failed), (0, 0, 0));
}

#[test]
fn an_endless_grace_period_leaves_everything_as_it_is() {
    let capacity = Capacity { backends: 3, ..CAPACITY };
    let mut pipeline = pipeline(capacity);
    let mut store = FaultyStore::new(FakeStore::new(capacity), 0, 0);
    apply(&mut pipeline, [Object::Service(service("a", "10.96.0.1")), slice("a", &[2, 3])]);
    pipeline.sync(&mut store);
    apply(&mut pipeline, [slice("a", &[2])]);
    pipeline.sync(&mut store);
    let before = store.read().unwrap();
    apply(&mut pipeline, [slice("a", &[2, 3])]);
    store.set_percent(100);
    let report = pipeline.sync(&mut store);
    assert_eq!((report.written, report.failed, report.dirty), (0, 1, 1));
    assert_eq!(store.read().unwrap(), before);
    assert_eq!(
        problems(&pipeline),
        ["Service default/a: spec.ports[http]: wait for running programs on map GRACE: injected fault; \
          what is in force stays, and it is tried again"]
    );
    store.set_percent(0);
    assert_eq!(pipeline.sync(&mut store).dirty, 0);
    assert_eq!(problems(&pipeline), [""; 0]);
}

#[test]
fn a_failing_delete_is_named_and_tried_again() {
    let mut pipeline = pipeline(CAPACITY);
    let mut store = FaultyStore::new(FakeStore::new(CAPACITY), 0, 0);
    apply(&mut pipeline, [Object::Service(service("a", "10.96.0.1")), slice("a", &[2])]);
    pipeline.sync(&mut store);
    pipeline.apply(Change::Delete(Kind::Service, ObjectName::new("default", "a")));
    pipeline.apply(Change::Delete(Kind::EndpointSlice, ObjectName::new("default", "a-1")));
    store.set_percent(100);
    assert_eq!(pipeline.sync(&mut store).dirty, 1);
    assert_eq!(
        problems(&pipeline),
        ["10.96.0.1:80/TCP: cannot be deleted, though no Service has it any more: \
          delete on map FRONTENDS: injected fault; it is tried again"]
    );
    assert_eq!(pipeline.summary().slots.used, 1, "its clients still reach its backend");
    store.set_percent(0);
    assert_eq!(pipeline.sync(&mut store).dirty, 0);
    assert_eq!(problems(&pipeline), [""; 0]);
    assert_eq!(pipeline.summary().slots.used, 0);
}

#[test]
fn reclaiming_frees_what_is_retired_and_empties_records() {
    let mut pipeline = pipeline(CAPACITY);
    let mut store = Recording::new(CAPACITY);
    let objects = |name: &str, ip: &str| [Object::Service(service(name, ip)), slice(name, &[1, 2])];
    apply(&mut pipeline, objects("a", "10.96.0.1"));
    apply(&mut pipeline, objects("b", "10.96.0.2"));
    pipeline.sync(&mut store);
    assert_eq!(pipeline.reclaim(&mut store).unwrap(), Reclaimed::default());
    assert!(!store.writes.contains(&Write::Grace), "nothing to wait for");
    pipeline.apply(Change::Delete(Kind::Service, ObjectName::new("default", "a")));
    assert!(pipeline.sync(&mut store).retired);
    let reclaimed = pipeline.reclaim(&mut store).unwrap();
    assert_eq!(reclaimed, Reclaimed { slots: 3, records: 1, unblocked: 0 });
    assert_eq!(store.read().unwrap().services.len(), 1);
    assert!(!pipeline.sync(&mut store).retired);
}

#[test]
fn a_number_of_a_service_port_is_not_given_again_after_a_restart() {
    let mut pipeline = pipeline(CAPACITY);
    let mut store = FakeStore::new(CAPACITY);
    let mut seen = BTreeSet::new();
    for round in 0..5 {
        apply(&mut pipeline, [Object::Service(service("a", "10.96.0.1"))]);
        pipeline.sync(&mut store);
        let id = store.read().unwrap().services.values().map(|record| record.service_id).max().unwrap();
        assert!(seen.insert(id), "round {round}: {id} again");
        pipeline.apply(Change::Delete(Kind::Service, ObjectName::new("default", "a")));
        pipeline.sync(&mut store);
        pipeline.reclaim(&mut store).unwrap();
        pipeline = self::pipeline(CAPACITY);
        pipeline.adopt(store.read().unwrap());
    }
}

#[test]
fn blocked_services_are_queued_when_reclaiming_makes_room() {
    let capacity = Capacity { frontends: 2, services: 2, ..CAPACITY };
    let mut pipeline = pipeline(capacity);
    let mut store = FakeStore::new(capacity);
    for (name, ip) in [("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")] {
        apply(&mut pipeline, [Object::Service(service(name, ip))]);
    }
    let report = pipeline.sync(&mut store);
    assert_eq!((report.dirty, report.blocked), (0, 1));
    assert_eq!(
        problems(&pipeline),
        ["Service default/c: spec.ports[http]: does not fit: map FRONTENDS has no room for 1 more \
          (2 of 2 entries are used); what is in force stays"]
    );
    pipeline.apply(Change::Delete(Kind::Service, ObjectName::new("default", "a")));
    let report = pipeline.sync(&mut store);
    assert_eq!((report.dirty, report.blocked), (0, 0));
    assert_eq!(problems(&pipeline), [""; 0]);
}

#[test]
fn node_addresses_that_do_not_fit_are_counted_and_the_others_answer() {
    let capacity = Capacity { node_addresses: 3, ..CAPACITY };
    let mut pipeline = pipeline(capacity);
    let mut store = FakeStore::new(capacity);
    let addresses = |hosts: &[u8]| {
        let ip = |host: &u8| IpAddr::from([172, 18, 0, *host]);
        Change::Interfaces(hosts.iter().map(ip).collect())
    };
    pipeline.apply(addresses(&[1, 2, 3]));
    assert_eq!(pipeline.sync(&mut store).dirty, 0);
    assert_eq!(store.read().unwrap().node_addresses.len(), 3);
    assert_eq!(
        problems(&pipeline),
        [
            "Node: status.addresses: map NODE_ADDRESSES is full: node ports do not answer at 2 of its addresses"
        ]
    );
    // A full map is emptied before it is filled.
    pipeline.apply(addresses(&[9]));
    assert_eq!(pipeline.sync(&mut store).dirty, 0);
    assert_eq!(problems(&pipeline), [""; 0]);
    assert!(store.read().unwrap().node_addresses.contains_key(&IpAddr::from([172, 18, 0, 9]).into()));
}

#[test]
fn the_views_say_what_is_in_force_and_why() {
    let mut pipeline = pipeline(CAPACITY);
    let mut store = FakeStore::new(CAPACITY);
    let old = Service {
        created: Some(1),
        external_ips: vec!["198.51.100.1".parse().unwrap()],
        ..service("old", "10.96.0.1")
    };
    let new = Service {
        created: Some(2),
        name: ObjectName::new("default", "new"),
        cluster_ips: vec!["10.96.0.2".parse().unwrap()],
        ..old.clone()
    };
    let headless = Service { headless: true, cluster_ips: Vec::new(), ..service("headless", "10.96.0.3") };
    let node = Node { name: "node-1".into(), zone: None, addresses: vec!["172.18.0.2".parse().unwrap()] };
    apply(&mut pipeline, [old, new, headless].map(Object::Service));
    apply(&mut pipeline, [slice("new", &[1, 2]), Object::Node(node)]);
    assert!(!pipeline.services()[1].ports[0].frontends[0].in_force);
    pipeline.sync(&mut store);

    let views = pipeline.services();
    assert_eq!(views.iter().map(|view| view.name.as_str()).collect::<Vec<_>>(), ["headless", "new", "old"]);
    assert_eq!((views[0].skipped, views[0].ports.len()), (Some("headless"), 0));
    let port = &views[1].ports[0];
    assert_eq!((port.name.as_str(), port.protocol, port.family), ("http", "TCP", "IPv4"));
    assert!(port.record.is_some() && port.service_id.is_some());
    let frontend = |position: usize| &port.frontends[position];
    assert_eq!((frontend(0).address.as_str(), frontend(0).in_force), ("10.96.0.2:80", true));
    assert_eq!((frontend(1).kind, frontend(1).in_force), ("ExternalIP", false));
    assert_eq!(frontend(1).taken_by.as_deref(), Some("default/old"));
    let backend = &port.backends[1];
    assert_eq!((backend.address.as_str(), backend.state, backend.local), ("10.0.0.2:8080", "ready", false));
    assert_eq!((backend.cluster, backend.local_set), ("used: ready", "unused: on another node"));
    assert_eq!((backend.in_cluster_set, backend.in_local_set), (true, false));
    assert_eq!((backend.id.is_some(), backend.source.as_str()), (true, "default/new-1"));

    let summary = pipeline.summary();
    assert_eq!((summary.services, summary.records.used, summary.frontends.used), (3, 2, 3));
    assert_eq!((summary.slots.used, summary.backends, summary.node_addresses.used), (3, 2, 3));
    assert_eq!((summary.dirty, summary.blocked, summary.synced), (0, 0, true));
    assert_eq!(
        pipeline.record_names().into_values().collect::<Vec<_>>(),
        ["default/old:http", "default/new:http"]
    );
}

mod left;
mod maglev;
