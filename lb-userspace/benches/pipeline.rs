//! The pure middle against the clock: from objects in memory to a store, without the kernel.
//!
//! `cargo bench -p lb-userspace --bench pipeline [-- SERVICES [ENDPOINTS]]`: 50,000 Services of 10 endpoints by default.
//! Prints one line for each measurement: name, value, unit.
#![expect(clippy::print_stdout, reason = "a benchmark's result")]
#![expect(clippy::unwrap_used, reason = "a benchmark ends at the first surprise")]

use std::{
    collections::BTreeMap,
    env, fs,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use lb_userspace::{
    model::{
        Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Family, Kind, Object, ObjectName,
        Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
    },
    pipeline::{DefaultAlgorithm, NodePortAddresses, Pipeline, PipelineSettings},
    store::{Capacity, Store, StoreError, Tables, Write, fake::FakeStore},
};

const CAPACITY: Capacity = Capacity {
    frontends: 131_072,
    services: 65_536,
    backends: 1_048_576,
    source_ranges: 65_536,
    maglev: 1 << 17,
    node_addresses: 1_024,
};

/// Changes of one service each.
const CHANGES: u32 = 10_000;

fn main() {
    let numbers: Vec<u32> = env::args().filter_map(|argument| argument.parse().ok()).collect();
    let services = numbers.first().copied().unwrap_or(50_000);
    let endpoints = numbers.get(1).copied().unwrap_or(10);
    println!("services {services} each with {endpoints} endpoints");
    let before = resident_bytes();

    let mut store = Timed::new(FakeStore::new(CAPACITY));
    let mut pipeline = pipeline();
    let changes = initial(services, endpoints);
    report("objects_memory", (resident_bytes() - before) / 1_000_000, "MB");
    let clock = Clock::start();
    tell(&mut pipeline, changes);
    clock.report("initial_apply");
    let synced = pipeline.sync(&mut store);
    clock.report("initial_total");
    report("initial_store", store.spent.as_millis(), "ms");
    report("initial_writes", synced.written, "writes");
    report("pipeline_memory", (resident_bytes() - before) / 1_000_000, "MB");

    let (median, p99) = one_change(&mut pipeline, &mut store, services, endpoints);
    report("change_to_range_p50", median.as_nanos(), "ns");
    report("change_to_range_p99", p99.as_nanos(), "ns");

    let relist = initial(services, endpoints);
    let clock = Clock::start();
    tell(&mut pipeline, relist);
    pipeline.sync(&mut store);
    clock.report("relist");

    let tables = store.read().unwrap();
    let mut restarted = self::pipeline();
    let changes = initial(services, endpoints);
    let clock = Clock::start();
    restarted.adopt(tables);
    clock.report("restart_adopt");
    tell(&mut restarted, changes);
    let synced = restarted.sync(&mut store);
    clock.report("restart_total");
    report("restart_writes", synced.written, "writes");
}

fn tell(pipeline: &mut Pipeline, changes: Vec<Change>) {
    for change in changes {
        pipeline.apply(change);
    }
}

/// The time from a slice that arrives to the store of the range, of one service among all: median and 99th percentile.
fn one_change(
    pipeline: &mut Pipeline,
    store: &mut Timed,
    services: u32,
    endpoints: u32,
) -> (Duration, Duration) {
    let mut times = Vec::new();
    for number in 0..CHANGES {
        // A prime step: neighbours in time are not neighbours in memory.
        let service = (number * 7_919) % services;
        let left = endpoints - number / services % endpoints.max(2) % 2 - 1;
        let change = Change::Apply(slice(service, left.max(1)));
        let started = Instant::now();
        pipeline.apply(change);
        let synced = pipeline.sync(store);
        times.push(store.last_range.unwrap().duration_since(started));
        if synced.retired && number % 256 == 0 {
            pipeline.reclaim(store).unwrap();
        }
    }
    times.sort();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Time since a start: on the wall, and on the processor, which other processes do not lengthen.
struct Clock {
    wall: Instant,
    processor: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { wall: Instant::now(), processor: processor_time() }
    }

    fn report(&self, name: &str) {
        report(name, self.wall.elapsed().as_millis(), "ms");
        report(
            &format!("{name}_processor"),
            processor_time().saturating_sub(self.processor).as_millis(),
            "ms",
        );
    }
}

/// Time that this thread has run (proc(5), schedstat: in nanoseconds).
fn processor_time() -> Duration {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

fn report(name: &str, value: impl std::fmt::Display, unit: &str) {
    println!("{name} {value} {unit}");
}

fn pipeline() -> Pipeline {
    let settings = PipelineSettings {
        node_name: "node-1".into(),
        node_port_addresses: NodePortAddresses::default(),
        external_ips: true,
        algorithm: DefaultAlgorithm::default(),
    };
    Pipeline::new(settings, CAPACITY)
}

/// What sources send at their start.
fn initial(services: u32, endpoints: u32) -> Vec<Change> {
    let all = |object: &dyn Fn(u32) -> Object| (0..services).map(object).collect();
    vec![
        Change::Reset(Kind::Node, Vec::new()),
        Change::Reset(Kind::Service, all(&service)),
        Change::Reset(Kind::EndpointSlice, all(&|number| slice(number, endpoints))),
        Change::Reset(Kind::Endpoints, Vec::new()),
    ]
}

fn name(number: u32) -> Arc<str> {
    format!("service-{number}").into()
}

fn address(network: u8, number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from_be_bytes([network, 0, 0, 0]) + number).into()
}

fn service(number: u32) -> Object {
    Object::Service(Service {
        name: ObjectName::new("default", name(number)),
        created: Some(i64::from(number)),
        labels: BTreeMap::new(),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![address(172, number)],
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
    })
}

fn slice(number: u32, endpoints: u32) -> Object {
    let endpoint = |endpoint: u32| Endpoint {
        address: address(10, number * 16 + endpoint),
        conditions: Conditions::default(),
        node: Some(if endpoint == 0 { "node-1".into() } else { "node-2".into() }),
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    };
    Object::EndpointSlice(EndpointSlice {
        name: ObjectName::new("default", format!("slice-{number}")),
        service: name(number),
        family: Family::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..endpoints).map(endpoint).collect(),
    })
}

/// A store that notes how long its writes take, and when the last range was stored.
struct Timed {
    inner: FakeStore,
    spent: Duration,
    last_range: Option<Instant>,
}

impl Timed {
    fn new(inner: FakeStore) -> Self {
        Self { inner, spent: Duration::ZERO, last_range: None }
    }
}

impl Store for Timed {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        let started = Instant::now();
        let result = self.inner.apply(write);
        let ended = Instant::now();
        self.spent += ended - started;
        if matches!(write, Write::Range { .. }) {
            self.last_range = Some(ended);
        }
        result
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }
}

/// Resident memory of this process (proc(5), statm: in pages).
fn resident_bytes() -> u64 {
    const PAGE: u64 = 4096;
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * PAGE
}
