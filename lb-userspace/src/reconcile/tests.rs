//! The loop on a store in memory, with scripted changes, failures and time.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex},
};

use lb_common::config::maps;
use tokio::{task::JoinHandle, time::sleep};

use super::*;
use crate::{
    model::{
        Conditions, Endpoint, EndpointPort, EndpointSlice, Family, ObjectName, Protocol, Service,
        ServicePort, ServiceType, TrafficPolicy,
    },
    pipeline::{DefaultAlgorithm, NodePortAddresses, PipelineSettings},
    store::{Capacity, StoreError, Tables, Write, fake::FakeStore},
};

/// A store in memory that notes when it is written, and fails as it is told.
struct Scripted {
    inner: FakeStore,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    /// Each successful write.
    written: Vec<(Instant, Write)>,
    /// Each write that was made to fail.
    failed: Vec<(Instant, Write)>,
    fails: Option<fn(&Write) -> bool>,
}

impl Store for Scripted {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        let mut script = self.script.lock().unwrap();
        let entry = (Instant::now(), write.clone());
        if script.fails.is_some_and(|fails| fails(write)) {
            script.failed.push(entry);
            let source = io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(StoreError::Kernel { map: maps::FRONTENDS, operation: "update", source });
        }
        self.inner.apply(write)?;
        script.written.push(entry);
        Ok(())
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }
}

/// A running reconciler and all its ends.
struct Running {
    changes: mpsc::Sender<Change>,
    questions: mpsc::Sender<Question>,
    progress: watch::Receiver<Progress>,
    health_checks: watch::Receiver<HealthChecks>,
    script: Arc<Mutex<Script>>,
    task: JoinHandle<()>,
}

impl Running {
    fn start() -> Self {
        let script = Arc::new(Mutex::new(Script::default()));
        let capacity = Capacity {
            frontends: 64,
            services: 64,
            backends: 64,
            source_ranges: 16,
            maglev: 1 << 17,
            node_addresses: 16,
        };
        let store = Scripted { inner: FakeStore::new(capacity), script: Arc::clone(&script) };
        let settings = PipelineSettings {
            node_name: "node".into(),
            node_port_addresses: NodePortAddresses::default(),
            external_ips: true,
            algorithm: DefaultAlgorithm::default(),
        };
        let (reconciler, progress) = Reconciler::new(Pipeline::new(settings, capacity), store);
        let health_checks = reconciler.health_checks();
        let (changes, arrived) = mpsc::channel(64);
        let (questions, asked) = mpsc::channel(1);
        let task = tokio::spawn(reconciler.run(arrived, asked));
        Self { changes, questions, progress, health_checks, script, task }
    }

    /// One with a service of one endpoint, all in force, and nothing retired.
    async fn with_web() -> Self {
        let mut running = Self::start();
        running.list_all(web(&[1])).await;
        running.progress.wait_for(|progress| progress.in_force).await.unwrap();
        sleep(Duration::from_secs(5)).await;
        running
    }

    async fn list_all(&self, (service, slice): (Service, EndpointSlice)) {
        for change in [
            Change::Reset(Kind::Node, Vec::new()),
            Change::Reset(Kind::ServiceCidr, Vec::new()),
            Change::Reset(Kind::Service, vec![Object::Service(service)]),
            Change::Reset(Kind::Endpoints, Vec::new()),
            Change::Reset(Kind::EndpointSlice, vec![Object::EndpointSlice(slice)]),
        ] {
            self.send(change).await;
        }
    }

    async fn send(&self, change: Change) {
        self.changes.send(change).await.unwrap();
    }

    async fn send_endpoints(&self, hosts: &[u8]) {
        self.send(Change::Apply(Object::EndpointSlice(web(hosts).1))).await;
    }

    async fn report(&self) -> Report {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Report(reply)).await.unwrap();
        answer.await.unwrap()
    }

    fn fail(&self, fails: Option<fn(&Write) -> bool>) {
        self.script.lock().unwrap().fails = fails;
    }

    /// When writes of a kind succeeded, since `start`.
    fn written(&self, start: Instant, which: fn(&Write) -> bool) -> Vec<Duration> {
        times(&self.script.lock().unwrap().written, start, which)
    }

    /// When writes of a kind failed, since `start`.
    fn failed(&self, start: Instant, which: fn(&Write) -> bool) -> Vec<Duration> {
        times(&self.script.lock().unwrap().failed, start, which)
    }
}

fn times(entries: &[(Instant, Write)], start: Instant, which: fn(&Write) -> bool) -> Vec<Duration> {
    let wanted = entries.iter().filter(|(time, write)| *time >= start && which(write));
    wanted.map(|(time, _)| *time - start).collect()
}

fn is_frontend(write: &Write) -> bool {
    matches!(write, Write::PutFrontend { .. })
}

fn is_range(write: &Write) -> bool {
    matches!(write, Write::Range { .. })
}

fn is_grace(write: &Write) -> bool {
    matches!(write, Write::Grace)
}

fn any(_: &Write) -> bool {
    true
}

/// A service with endpoints at these hosts.
fn web(hosts: &[u8]) -> (Service, EndpointSlice) {
    let name = ObjectName::new("default", "web");
    let service = Service {
        name: name.clone(),
        created: None,
        labels: std::collections::BTreeMap::new(),
        service_type: ServiceType::ClusterIp,
        cluster_ips: vec![IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))],
        headless: false,
        external_ips: Vec::new(),
        ingress_ips: Vec::new(),
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        affinity_seconds: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        source_ranges: Vec::new(),
        health_check_node_port: None,
        algorithm: None,
    };
    let endpoint = |host: &u8| Endpoint {
        address: IpAddr::V4(Ipv4Addr::new(10, 1, 0, *host)),
        conditions: Conditions::default(),
        node: None,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    };
    let slice = EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: name.name,
        family: Family::V4,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: hosts.iter().map(endpoint).collect(),
    };
    (service, slice)
}

fn millis<const N: usize>(times: [u64; N]) -> Vec<Duration> {
    times.into_iter().map(Duration::from_millis).collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_written_before_every_list_has_arrived() {
    let mut running = Running::start();
    let start = Instant::now();
    let (service, slice) = web(&[1]);
    running.send(Change::Reset(Kind::Service, vec![Object::Service(service)])).await;
    running.send(Change::Reset(Kind::EndpointSlice, vec![Object::EndpointSlice(slice)])).await;
    running.send(Change::Reset(Kind::Endpoints, Vec::new())).await;
    running.send(Change::Reset(Kind::ServiceCidr, Vec::new())).await;
    sleep(Duration::from_secs(60)).await;
    let progress = running.progress.borrow_and_update().clone();
    assert_eq!(progress.unlisted, BTreeSet::from([Kind::Node]));
    assert!(!progress.in_force);
    assert!(running.written(start, any).is_empty());
    assert!(!running.report().await.summary.synced);

    running.send(Change::Reset(Kind::Node, Vec::new())).await;
    running.progress.wait_for(|progress| progress.in_force).await.unwrap();
    assert!(running.progress.borrow().unlisted.is_empty());
    assert_eq!(running.written(start, is_frontend), millis([60_000]));
    assert!(running.report().await.summary.synced);
}

#[tokio::test(start_paused = true)]
async fn a_change_after_a_quiet_time_is_written_at_once() {
    let running = Running::with_web().await;
    let start = Instant::now();
    running.send_endpoints(&[1, 2]).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(running.written(start, is_range), millis([0]));
}

#[tokio::test(start_paused = true)]
async fn failed_writes_are_tried_again_with_pauses_that_double_up_to_ten_seconds() {
    let running = Running::with_web().await;
    running.fail(Some(is_range));
    let start = Instant::now();
    running.send_endpoints(&[2]).await;
    sleep(Duration::from_secs(40)).await;
    let expected = millis([0, 100, 300, 700, 1_500, 3_100, 6_300, 12_700, 22_700, 32_700]);
    assert_eq!(running.failed(start, is_range), expected);
    assert!(running.report().await.summary.dirty > 0);

    running.fail(None);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(running.written(start, is_range), millis([42_700]));
    assert_eq!(running.report().await.summary.dirty, 0);

    running.fail(Some(is_range));
    let start = Instant::now();
    running.send_endpoints(&[3]).await;
    sleep(Duration::from_millis(250)).await;
    assert_eq!(running.failed(start, is_range), millis([0, 100]), "the pauses start anew");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_not_held_up_by_what_waits_for_a_retry() {
    let running = Running::with_web().await;
    running.fail(Some(is_range));
    running.send_endpoints(&[2]).await;
    sleep(Duration::from_secs(20)).await;
    running.fail(None);
    let start = Instant::now();
    running.send_endpoints(&[3]).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(running.written(start, is_range), millis([0]));
}

#[tokio::test(start_paused = true)]
async fn the_start_waits_for_writes_that_may_succeed_yet() {
    let mut running = Running::start();
    running.fail(Some(is_frontend));
    running.list_all(web(&[1])).await;
    sleep(Duration::from_millis(250)).await;
    assert!(!running.progress.borrow_and_update().in_force);
    running.fail(None);
    let start = Instant::now();
    running.progress.wait_for(|progress| progress.in_force).await.unwrap();
    // Tried at 0, 100 and 300 ms.
    assert_eq!(start.elapsed(), Duration::from_millis(50));
    assert_eq!(running.report().await.summary.frontends.used, 1);
}

#[tokio::test(start_paused = true)]
async fn the_start_does_not_wait_for_what_fails_for_good() {
    let mut running = Running::start();
    running.fail(Some(is_frontend));
    let start = Instant::now();
    running.list_all(web(&[1])).await;
    running.progress.wait_for(|progress| progress.in_force).await.unwrap();
    let waited = start.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&waited), "{waited:?}");
    assert!(!running.report().await.problems.is_empty(), "what fails stands in the problems");
}

#[tokio::test(start_paused = true)]
async fn what_is_retired_is_freed_when_things_are_quiet() {
    let running = Running::with_web().await;
    let start = Instant::now();
    running.send_endpoints(&[2]).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(running.written(start, is_grace), millis([100]));
    assert_eq!(running.report().await.summary.slots.retired, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_retired_waits_a_second_at_most() {
    let running = Running::with_web().await;
    let start = Instant::now();
    for host in 2..=100 {
        running.send_endpoints(&[host]).await;
        sleep(Duration::from_millis(30)).await;
    }
    let graces = running.written(start, is_grace);
    // Each change retires a slot, so the clock starts anew with the first change after a grace period.
    assert_eq!(graces, millis([1_000, 2_020]));
}

#[tokio::test(start_paused = true)]
async fn a_failed_grace_period_is_tried_again_after_a_second() {
    let running = Running::with_web().await;
    running.fail(Some(is_grace));
    let start = Instant::now();
    running.send_endpoints(&[2]).await;
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(running.failed(start, is_grace), millis([100, 1_100, 2_100]));
    running.fail(None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(running.written(start, is_grace), millis([3_100]));
}

#[tokio::test(start_paused = true)]
async fn the_own_node_is_passed_on() {
    let mut running = Running::with_web().await;
    let node = |zone: &str| Node { zone: Some(zone.into()), ..Node::default() };
    assert_eq!(running.progress.borrow_and_update().node, None);
    running.send(Change::Apply(Object::Node(node("a")))).await;
    running.progress.wait_for(|progress| progress.node == Some(node("a"))).await.unwrap();
    running.send(Change::Reset(Kind::Node, vec![Object::Node(node("b"))])).await;
    running.progress.wait_for(|progress| progress.node == Some(node("b"))).await.unwrap();
    running.send(Change::Delete(Kind::Node, ObjectName::new("", "node"))).await;
    running.progress.wait_for(|progress| progress.node.is_none()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn services_and_problems_are_told_on_request() {
    let running = Running::with_web().await;
    let problem = Problem { object: "web.yaml".to_owned(), field: String::new(), what: "no YAML".to_owned() };
    let problems = |problems| Change::Problems { origin: "web.yaml".to_owned(), problems };
    running.send(problems(vec![problem.clone()])).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(running.report().await.problems, [problem]);
    running.send(problems(Vec::new())).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(running.report().await.problems, []);

    let (reply, answer) = oneshot::channel();
    running.questions.send(Question::Services(reply)).await.unwrap();
    let names: Vec<_> = answer.await.unwrap().into_iter().map(|service| service.name).collect();
    assert_eq!(names, ["web"]);
}

#[tokio::test(start_paused = true)]
async fn ends_when_nobody_is_left_who_could_send() {
    let Running { changes, questions, task, .. } = Running::start();
    drop(changes);
    task.await.unwrap();
    drop(questions);
}

#[tokio::test(start_paused = true)]
async fn says_since_when_changes_wait_for_writes_that_fail() {
    let running = Running::with_web().await;
    let waiting_since = || running.progress.borrow().waiting_since;
    assert_eq!(waiting_since(), None);
    running.fail(Some(is_range));
    let start = Instant::now();
    running.send_endpoints(&[2]).await;
    sleep(Duration::from_secs(90)).await;
    assert_eq!(waiting_since(), Some(start), "however often it is tried");
    running.send_endpoints(&[3]).await;
    running.fail(None);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(waiting_since(), None);
}

#[tokio::test(start_paused = true)]
async fn tells_health_checks_once_all_lists_have_arrived_and_wakes_nobody_for_a_count() {
    let mut running = Running::start();
    let (service, slice) = web(&[1, 2]);
    let service = Service {
        service_type: ServiceType::LoadBalancer,
        external_policy: TrafficPolicy::Local,
        health_check_node_port: Some(32_000),
        algorithm: None,
        ..service
    };
    let here = |slice: EndpointSlice| {
        let endpoints = slice.endpoints.into_iter().map(|e| Endpoint { node: Some("node".into()), ..e });
        EndpointSlice { endpoints: endpoints.collect(), ..slice }
    };
    running.send(Change::Interfaces(vec!["192.0.2.1".parse().unwrap(), "fe80::1".parse().unwrap()])).await;
    running.send(Change::Reset(Kind::Service, vec![Object::Service(service.clone())])).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!running.health_checks.has_changed().unwrap(), "the endpoints are not known yet");
    running.list_all((service.clone(), here(slice))).await;
    running.health_checks.changed().await.unwrap();
    let socket = "192.0.2.1:32000".parse().unwrap();
    let told = |checks: &HealthChecks| checks.at(&socket).map(|(_, count)| count);
    {
        let checks = running.health_checks.borrow_and_update();
        assert_eq!(checks.sockets().into_iter().collect::<Vec<_>>(), [socket]);
        assert_eq!(told(&checks), Some(2));
    }
    running.send(Change::Apply(Object::EndpointSlice(here(web(&[1]).1)))).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!running.health_checks.has_changed().unwrap());
    assert_eq!(told(&running.health_checks.borrow()), Some(1));

    running.send(Change::Delete(Kind::Service, service.name)).await;
    running.health_checks.changed().await.unwrap();
    assert!(running.health_checks.borrow().sockets().is_empty());
}
