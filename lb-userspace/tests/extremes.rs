//! Objects of extreme size or content: served as far as they can be, each rejected part named, and in good time.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::time::{Duration, Instant};

use expect_test::expect;
use lb_userspace::{
    model::{Change, Kind, Object, Problem},
    pipeline::{DefaultAlgorithm, NodePortAddresses, Pipeline, PipelineSettings},
    source::manifest::objects_from_yaml,
    store::{Capacity, Store, fake::FakeStore},
};
use serde_json::{Value, json};

const CAPACITY: Capacity = Capacity {
    frontends: 1 << 16,
    services: 1 << 15,
    backends: 1 << 17,
    source_ranges: 1 << 10,
    maglev: 1 << 17,
    node_addresses: 16,
};

/// What each test may take, in a build without optimisation on a busy machine.
const BOUND: Duration = Duration::from_secs(20);

/// A pipeline on a store in memory, fed with manifests.
struct Cluster {
    pipeline: Pipeline,
    store: FakeStore,
    started: Instant,
}

impl Cluster {
    fn new() -> Self {
        let settings = PipelineSettings {
            node_name: "node-1".into(),
            node_port_addresses: NodePortAddresses::default(),
            external_ips: true,
            algorithm: DefaultAlgorithm::default(),
        };
        let mut pipeline = Pipeline::new(settings, CAPACITY);
        for kind in Kind::ALL {
            pipeline.apply(Change::Reset(kind, Vec::new()));
        }
        Self { pipeline, store: FakeStore::new(CAPACITY), started: Instant::now() }
    }

    /// Applies a list of objects; what the conversion has against them.
    fn apply(&mut self, objects: &[Value]) -> Vec<Problem> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let (objects, problems) = objects_from_yaml(&list.to_string(), "extreme.json", "node-1");
        for object in objects {
            self.pipeline.apply(Change::Apply(object));
        }
        assert_eq!(self.pipeline.sync(&mut self.store).failed, 0);
        problems
    }

    fn delete(&mut self, objects: impl IntoIterator<Item = Object>) {
        for object in objects {
            self.pipeline.apply(Change::Delete(object.kind(), object.name()));
        }
        assert_eq!(self.pipeline.sync(&mut self.store).failed, 0);
    }

    fn frontends(&self) -> usize {
        self.store.read().unwrap().frontends.len()
    }

    #[track_caller]
    fn in_time(&self) {
        let taken = self.started.elapsed();
        assert!(taken < BOUND, "took {taken:?}");
    }
}

fn service(name: &str, spec: Value) -> Value {
    let mut object =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name}});
    object["spec"] = spec;
    object
}

fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> Value {
    let mut object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
    });
    object["ports"] = ports;
    object["endpoints"] = endpoints;
    object
}

fn text(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

#[test]
fn a_service_with_ten_thousand_ports_is_served_changed_and_removed_in_time() {
    let mut cluster = Cluster::new();
    let ports = |first: u16| -> Value {
        (0..10_000).map(|i| json!({"name": format!("p{i}"), "port": first + i})).collect()
    };
    let of = |first| service("wide", json!({"clusterIP": "10.96.0.10", "ports": ports(first)}));
    let slice_ports = (0..10_000).map(|i| json!({"name": format!("p{i}"), "port": 20_000 + i})).collect();
    let slice = slice("wide-1", "wide", slice_ports, json!([{"addresses": ["10.0.0.1"]}]));
    assert_eq!(text(&cluster.apply(&[of(1), slice])), [] as [&str; 0]);
    assert_eq!(cluster.frontends(), 10_000);
    cluster.apply(&[of(2)]);
    assert_eq!(cluster.frontends(), 10_000);
    let (objects, _) = objects_from_yaml(&of(2).to_string(), "a.json", "node-1");
    cluster.delete(objects);
    assert_eq!(cluster.frontends(), 0);
    cluster.in_time();
}

#[test]
fn fifty_thousand_endpoints_of_one_service_follow_a_change_in_time() {
    let mut cluster = Cluster::new();
    let ports = json!([{"name": "", "port": 8080}]);
    let part = |i: usize, ready: bool| {
        let endpoint = |j: usize| json!({"addresses": [format!("10.{}.{}.{}", i / 250, i % 250, j + 1)], "conditions": {"ready": ready}});
        slice(&format!("deep-{i}"), "deep", ports.clone(), (0..200).map(endpoint).collect())
    };
    let mut objects = vec![service("deep", json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}))];
    objects.extend((0..250).map(|i| part(i, true)));
    assert_eq!(text(&cluster.apply(&objects)), [] as [&str; 0]);
    assert_eq!(cluster.store.read().unwrap().backends.len(), 50_000);
    cluster.apply(&[part(7, false)]);
    assert_eq!(cluster.store.read().unwrap().backends.len(), 49_800);
    cluster.in_time();
}

#[test]
fn of_thousands_that_claim_one_address_each_but_the_first_is_named_and_each_takes_over_in_turn() {
    let mut cluster = Cluster::new();
    let count = 4_000;
    let objects: Vec<_> = (0..count)
        .map(|i| {
            let ip = format!("10.97.{}.{}", i / 250, i % 250 + 1);
            let spec = json!({"clusterIP": ip, "externalIPs": ["198.51.100.1"], "ports": [{"port": 80}]});
            service(&format!("s{i:04}"), spec)
        })
        .collect();
    assert_eq!(text(&cluster.apply(&objects)), [] as [&str; 0]);
    assert_eq!(cluster.frontends(), count + 1);
    let losers = cluster.pipeline.problems();
    assert_eq!(losers.len(), count - 1);
    for (i, problem) in losers.iter().enumerate() {
        assert_eq!(
            (&*problem.object, &*problem.field),
            (&*format!("Service shop/s{:04}", i + 1), "spec.externalIPs")
        );
        assert!(problem.what.contains("belongs to Service shop/s0000"), "{problem}");
    }
    for (i, first) in objects.iter().take(count / 2).enumerate() {
        let (objects, _) = objects_from_yaml(&first.to_string(), "a.json", "node-1");
        cluster.delete(objects);
        let expected = count - i;
        assert_eq!(cluster.pipeline.summary().frontends.used as usize, expected);
    }
    assert!(cluster.pipeline.problems()[0].what.contains("belongs to Service shop/s2000"));
    cluster.in_time();
}

#[test]
fn a_name_used_again_by_thousands_of_ports_serves_the_first_and_names_the_others() {
    let mut cluster = Cluster::new();
    let ports: Value = (0..5_000).map(|i| json!({"name": "same", "port": i + 1})).collect();
    let problems = cluster.apply(&[service("web", json!({"clusterIP": "10.96.0.10", "ports": ports}))]);
    assert_eq!(cluster.frontends(), 1);
    assert_eq!(problems[0].field, "spec.ports[1].name");
    assert_eq!(problems.last().unwrap().what, "and 4979 more problems");
    cluster.in_time();
}

#[test]
fn unknown_words_and_numbers_beyond_their_limits_cost_themselves_and_are_named() {
    let mut cluster = Cluster::new();
    let mut web = service(
        "web",
        json!({
            "type": "Anycast", "clusterIP": "10.96.0.10", "sessionAffinity": "Cookie", "ipFamilies": ["IPv5"],
            "internalTrafficPolicy": "Zone", "externalTrafficPolicy": "", "healthCheckNodePort": 70_000,
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -1}}, "externalIPs": ["255.255.255.255", "127.0.0.1"],
            "ports": [
                {"name": "a", "port": 65_535}, {"name": "b", "port": 65_536}, {"name": "c", "port": i32::MIN},
                {"name": "d", "port": 80, "protocol": "QUIC"}, {"name": "e", "port": 1_u64 << 40}, {"name": "f", "port": 1},
            ],
        }),
    );
    web["status"] =
        json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.7", "ipMode": "Tunnel"}, {}, {"ip": ""}]}});
    let endpoints = json!([
        {"addresses": ["10.0.0.1"], "conditions": {"ready": null}, "hints": {}, "nodeName": ""},
        {"addresses": ["10.0.0.0x1"]}, {"addresses": [""]}, {"addresses": null}, {}, null,
    ]);
    let ports =
        json!([{"name": "a", "port": 65_535}, {"name": "f", "port": 0}, {"name": "f", "port": null}, {}]);
    let mut problems = cluster.apply(&[web, slice("web-1", "web", ports, endpoints)]);
    problems.sort();
    let named: Vec<_> =
        problems.iter().map(|problem| format!("{}: {}", problem.object, problem.field)).collect();
    expect![[r#"
        EndpointSlice shop/web-1: endpoints[1].addresses[0]
        EndpointSlice shop/web-1: endpoints[2].addresses[0]
        EndpointSlice shop/web-1: endpoints[3].addresses
        EndpointSlice shop/web-1: endpoints[4].addresses
        EndpointSlice shop/web-1: endpoints[5]
        Service shop/web: spec.externalIPs
        Service shop/web: spec.externalIPs[0]
        Service shop/web: spec.healthCheckNodePort
        Service shop/web: spec.internalTrafficPolicy
        Service shop/web: spec.ipFamilies[0]
        Service shop/web: spec.ports[1].port
        Service shop/web: spec.ports[2].port
        Service shop/web: spec.ports[3].protocol
        Service shop/web: spec.ports[4].port
        Service shop/web: spec.sessionAffinity
        Service shop/web: spec.type
        Service shop/web: status.loadBalancer.ingress[0].ipMode"#]]
    .assert_eq(&named.join("\n"));
    let tables = cluster.store.read().unwrap();
    let frontends: Vec<_> = tables.frontends.keys().map(|key| key.socket_address().to_string()).collect();
    assert_eq!(frontends, ["10.96.0.10:1", "10.96.0.10:65535"]);
    assert_eq!(tables.backends.len(), 1);
}
