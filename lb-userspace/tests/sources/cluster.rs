//! The cluster source against a small API server that misbehaves on request.

use std::{fs, time::Duration};

use lb_userspace::{
    model::{Change, Kind, Object},
    source::{
        channel,
        cluster::{Client, ClusterConfig, connect, run},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    api_server::{ApiServer, ENDPOINTS, NODES, SERVICE_CIDRS, SERVICES, SLICES, Streaming},
    kubeconfig::kubeconfig,
    mirror::Mirror,
};

struct Running {
    mirror: Mirror,
    source: JoinHandle<()>,
}

impl Running {
    async fn start(server: &ApiServer) -> Self {
        Self::start_with(server, false).await
    }

    async fn start_with(server: &ApiServer, legacy_endpoints: bool) -> Self {
        let (client, config) = client_of(server, legacy_endpoints).await;
        let (sender, receiver) = channel();
        Self { source: tokio::spawn(run(client, config, sender)), mirror: Mirror::new(receiver) }
    }
}

async fn client_of(server: &ApiServer, legacy_endpoints: bool) -> (Client, ClusterConfig) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("config");
    fs::write(&file, kubeconfig(&format!("{{server: 'http://{}'}}", server.address))).unwrap();
    let config =
        ClusterConfig { kubeconfig: Some(file), context: None, node_name: "node-a".into(), legacy_endpoints };
    (connect(&config).await.unwrap(), config)
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": name, "managedFields": [{"manager": "x", "time": "not a time"}]},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
    })
}

fn slice(name: &str, service: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["192.0.2.1"]}],
    })
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]}})
}

fn endpoints(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"namespace": "default", "name": name},
        "subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}],
    })
}

/// An object beyond repair.
fn unreadable(name: &str) -> Value {
    let ports: Vec<_> = (0..100).map(|_| json!({"port": "x"})).collect();
    json!({"metadata": {"namespace": "default", "name": name}, "spec": {"clusterIP": "10.96.0.66", "ports": ports}})
}

#[tokio::test]
async fn lists_with_kube_proxys_selectors_but_another_proxys_services_and_follows() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("web", "10.96.0.1"));
    server.put(SERVICES, service("headless", "None"));
    let mut other = service("other", "10.96.0.3");
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "x"});
    server.put(SERVICES, other);
    server.put(SLICES, slice("web-1", "web"));
    let mut headless = slice("headless-1", "headless");
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    server.put(SLICES, headless);
    server.put(NODES, node("node-a"));
    server.put(NODES, node("node-b"));
    server.put(ENDPOINTS, endpoints("web"));

    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    mirror.until("it answers", |mirror| mirror.connected == Some(true)).await;
    let names: Vec<_> = mirror.objects.keys().map(|(kind, name)| format!("{kind} {name}")).collect();
    assert_eq!(
        names,
        ["Service default/other", "Service default/web", "EndpointSlice default/web-1", "Node node-a"]
    );
    assert!(server.requests(ENDPOINTS).is_empty());

    server.put(SERVICES, service("api", "10.96.0.2"));
    server.put(SERVICES, service("web", "10.96.0.9"));
    mirror.until("added", |mirror| mirror.has(Kind::Service, "default/api")).await;
    mirror.until("modified", |mirror| mirror.ip("default/web").unwrap() == "10.96.0.9").await;
    server.delete(SERVICES, "default/web");
    mirror.until("deleted", |mirror| !mirror.has(Kind::Service, "default/web")).await;
    server.delete(NODES, "node-a");
    mirror.until("the node went", |mirror| !mirror.has(Kind::Node, "node-a")).await;

    let mut unlabelled = slice("web-1", "web");
    unlabelled["metadata"]["labels"] = json!({});
    server.put(SLICES, unlabelled);
    mirror.until("no slice of a service", |mirror| !mirror.has(Kind::EndpointSlice, "default/web-1")).await;
    assert_eq!(Kind::ALL.map(|kind| mirror.resets(kind)), [1; 5]);
    assert!(mirror.problems.is_empty());

    let selectors = |path| {
        let requests = server.requests(path);
        assert_eq!(requests.len(), 1, "a streaming list is a watch, and goes on as one");
        (requests[0].get("labelSelector").to_owned(), requests[0].get("fieldSelector").to_owned())
    };
    let text = |label: &str, field: &str| (label.to_owned(), field.to_owned());
    assert_eq!(selectors(SERVICES), text("", "spec.clusterIP!=None"));
    assert_eq!(selectors(SERVICE_CIDRS), text("", ""));
    assert_eq!(selectors(SLICES), text("!service.kubernetes.io/headless", ""));
    assert_eq!(selectors(NODES), text("", "metadata.name=node-a"));
}

#[tokio::test]
async fn endpoints_are_watched_on_request() {
    let server = ApiServer::start().await;
    server.put(ENDPOINTS, endpoints("db"));
    let mut headless = endpoints("headless");
    headless["metadata"]["labels"] = json!({"service.kubernetes.io/headless": ""});
    server.put(ENDPOINTS, headless);
    let Running { mut mirror, source: _source } = Running::start_with(&server, true).await;
    mirror.until_listed().await;
    assert_eq!(server.requests(ENDPOINTS)[0].get("labelSelector"), "!service.kubernetes.io/headless");
    assert!(!mirror.has(Kind::Endpoints, "default/headless"));
    let Some(Object::Endpoints(_, slices)) = mirror.objects.get(&(Kind::Endpoints, "default/db".to_owned()))
    else {
        panic!("{:?}", mirror.objects);
    };
    assert_eq!(slices[0].endpoints.len(), 1);
}

#[tokio::test]
async fn an_absent_node_is_an_empty_list() {
    let server = ApiServer::start().await;
    server.put(NODES, node("node-b"));
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    assert!(mirror.objects.is_empty());
    server.put(NODES, node("node-a"));
    mirror.until("the node came", |mirror| mirror.has(Kind::Node, "node-a")).await;
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_asked_in_pages() {
    let server = ApiServer::start().await;
    server.state().streaming = Streaming::Refused;
    server.state().page = 2;
    for i in 0..5 {
        server.put(SERVICES, service(&format!("s{i}"), &format!("10.96.0.{i}")));
    }
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    assert_eq!(mirror.objects.len(), 5);
    server.put(SERVICES, service("new", "10.96.0.9"));
    mirror.until("events follow", |mirror| mirror.has(Kind::Service, "default/new")).await;
    let lists = server.requests(SERVICES).iter().filter(|request| !request.is_watch()).count();
    assert_eq!(lists, 3);
    assert!(mirror.problems.is_empty());
}

#[tokio::test]
async fn a_server_that_never_ends_a_streaming_list_is_asked_in_pages() {
    let server = ApiServer::start().await;
    server.state().streaming = Streaming::Ignored;
    server.put(SERVICES, service("web", "10.96.0.1"));
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    assert!(mirror.has(Kind::Service, "default/web"));
}

#[tokio::test]
async fn a_server_that_comes_later_is_waited_for() {
    let mut server = ApiServer::absent().await;
    server.put(SERVICES, service("web", "10.96.0.1"));
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until("it does not answer", |mirror| mirror.connected == Some(false)).await;
    server.listen().await;
    mirror.until_listed().await;
    assert!(mirror.has(Kind::Service, "default/web"));
    mirror.until("it answers", |mirror| mirror.connected == Some(true)).await;
    let said = mirror.log.iter().filter(|change| matches!(change, Change::Connected(_))).count();
    assert_eq!(said, 2, "once for each transition");
}

#[tokio::test]
async fn what_happens_during_an_outage_is_applied_after_it() {
    let mut server = ApiServer::start().await;
    server.put(SERVICES, service("web", "10.96.0.1"));
    server.put(SERVICES, service("api", "10.96.0.2"));
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;

    server.stop().await;
    mirror.until("it does not answer", |mirror| mirror.connected == Some(false)).await;
    server.delete(SERVICES, "default/web");
    server.put(SERVICES, service("new", "10.96.0.3"));
    assert_eq!(mirror.objects.len(), 2, "the last state stays");
    server.listen().await;
    mirror
        .until("caught up", |mirror| {
            !mirror.has(Kind::Service, "default/web") && mirror.has(Kind::Service, "default/new")
        })
        .await;
    mirror.until("it answers", |mirror| mirror.connected == Some(true)).await;
    assert_eq!(mirror.resets(Kind::Service), 1, "it went on where it was");
}

#[tokio::test]
async fn a_forgotten_past_is_answered_with_a_new_list() {
    for gone_as_status in [false, true] {
        let mut server = ApiServer::start().await;
        server.state().gone_as_status = gone_as_status;
        server.put(SERVICES, service("web", "10.96.0.1"));
        server.put(SERVICES, service("api", "10.96.0.2"));
        let Running { mut mirror, source: _source } = Running::start(&server).await;
        mirror.until_listed().await;
        server.stop().await;
        server.delete(SERVICES, "default/web");
        server.put(SERVICES, service("new", "10.96.0.3"));
        server.compact();
        server.listen().await;
        mirror.until("listed again", |mirror| mirror.resets(Kind::Service) == 2).await;
        assert!(!mirror.has(Kind::Service, "default/web") && mirror.has(Kind::Service, "default/new"));
        assert_eq!(mirror.deletions(), 0);
        server.put(SERVICES, service("more", "10.96.0.4"));
        mirror.until("events follow", |mirror| mirror.has(Kind::Service, "default/more")).await;
    }
}

#[tokio::test]
async fn a_cut_connection_is_resumed_where_the_last_bookmark_was() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("web", "10.96.0.1"));
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    let version = server.bookmark(SERVICES);
    server.compact();
    // A later event on another watch says nothing of this one: wait until its bookmark is with the source.
    let deadline = Instant::now() + Duration::from_secs(20);
    let resumed = loop {
        server.cut();
        let requests = server.requests(SERVICES);
        if let Some(request) = requests.iter().find(|request| request.get("resourceVersion") == version) {
            break request.clone();
        }
        assert!(Instant::now() < deadline, "never resumed at {version}: {requests:#?}");
        sleep(Duration::from_millis(50)).await;
    };
    assert!(resumed.is_watch());
}

#[tokio::test]
async fn what_is_forbidden_is_named_and_tried_again() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("web", "10.96.0.1"));
    for (verb, streaming) in [("watch", Streaming::Supported), ("list", Streaming::Refused)] {
        server.state().streaming = streaming;
        server.state().forbidden.insert((verb, SERVICES));
        let Running { mut mirror, source: _source } = Running::start(&server).await;
        mirror.until("it is said", |mirror| mirror.problem("API server, services").is_some()).await;
        assert_eq!(
            mirror.problem("API server, services").unwrap(),
            format!(
                "API server, services: cannot {verb} services: services is forbidden: User \"sockeye\" cannot {verb} resource \"services\" (403); \
                 bind Sockeye's account to a role that may list and watch them"
            )
        );
        mirror.until("the others are listed", |mirror| mirror.resets(Kind::EndpointSlice) == 1).await;
        mirror.until("it answers", |mirror| mirror.connected == Some(true)).await;
        assert_eq!(mirror.resets(Kind::Service), 0);
        server.state().forbidden.clear();
        mirror.until_listed().await;
        mirror.until("no problem", |mirror| mirror.problems.is_empty()).await;
        assert!(mirror.has(Kind::Service, "default/web"));
    }
}

fn service_cidr(name: &str, network: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name}, "spec": {"cidrs": [network]},
    })
}

#[tokio::test]
async fn the_networks_of_cluster_addresses_are_followed() {
    let server = ApiServer::start().await;
    server.put(SERVICE_CIDRS, service_cidr("kubernetes", "10.96.0.0/16"));
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    assert!(mirror.has(Kind::ServiceCidr, "kubernetes"));
    server.put(SERVICE_CIDRS, service_cidr("more", "10.97.0.0/16"));
    mirror.until("more", |mirror| mirror.has(Kind::ServiceCidr, "more")).await;
    server.delete(SERVICE_CIDRS, "kubernetes");
    mirror.until("fewer", |mirror| !mirror.has(Kind::ServiceCidr, "kubernetes")).await;
}

#[tokio::test]
async fn a_server_that_does_not_know_service_cidrs_keeps_nobody_waiting() {
    for streaming in [Streaming::Supported, Streaming::Refused] {
        let server = ApiServer::start().await;
        server.state().streaming = streaming;
        server.state().unknown.insert(SERVICE_CIDRS);
        server.put(SERVICES, service("web", "10.96.0.1"));
        let Running { mut mirror, source: _source } = Running::start(&server).await;
        mirror.until_listed().await;
        mirror.until("it answers", |mirror| mirror.connected == Some(true)).await;
        assert!(mirror.has(Kind::Service, "default/web"));
        assert!(mirror.problems.is_empty(), "{:?}", mirror.problems);
    }
}

#[tokio::test]
async fn service_cidrs_that_may_not_be_listed_are_named_and_keep_nobody_waiting() {
    let server = ApiServer::start().await;
    server.put(SERVICE_CIDRS, service_cidr("kubernetes", "10.96.0.0/16"));
    server.state().forbidden.extend([("watch", SERVICE_CIDRS), ("list", SERVICE_CIDRS)]);
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    mirror.until("it is said", |mirror| mirror.problem("API server, servicecidrs").is_some()).await;
    server.state().forbidden.clear();
    mirror.until("they are listed", |mirror| mirror.has(Kind::ServiceCidr, "kubernetes")).await;
    mirror.until("no problem", |mirror| mirror.problems.is_empty()).await;
}

#[tokio::test]
async fn a_server_that_fails_counts_as_away() {
    let server = ApiServer::start().await;
    server.state().failing = Some(503);
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until("it does not answer", |mirror| mirror.connected == Some(false)).await;
    assert_eq!(mirror.log.len(), 2, "{:?}", mirror.log);
    server.state().failing = None;
    mirror.until_listed().await;
    mirror.until("it answers", |mirror| mirror.connected == Some(true)).await;
    assert!(mirror.problems.is_empty());
}

#[tokio::test]
async fn a_bad_object_costs_nothing_but_itself() {
    for streaming in [Streaming::Supported, Streaming::Refused] {
        let server = ApiServer::start().await;
        server.state().streaming = streaming;
        let mut half = service("half", "10.96.0.5");
        half["spec"]["ports"] = json!([{"name": "a", "port": "http"}, {"name": "b", "port": 81}]);
        server.put(SERVICES, half);
        server.put(SERVICES, unreadable("bad"));
        server.put(
            SERVICES,
            json!({"metadata": {"namespace": "default", "name": "odd", "labels": 7}, "spec": []}),
        );
        server.put(SERVICES, service("web", "10.96.0.1"));
        let Running { mut mirror, source: _source } = Running::start(&server).await;
        mirror.until_listed().await;
        mirror.until("problems are said", |mirror| mirror.problems.len() == 3).await;
        let Some(Object::Service(half)) = mirror.objects.get(&(Kind::Service, "default/half".to_owned()))
        else {
            panic!("the good parts are served");
        };
        assert_eq!(half.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [81]);
        assert!(mirror.has(Kind::Service, "default/web"));
        assert!(!mirror.has(Kind::Service, "default/bad"));
        assert_eq!(
            mirror.problem("Service default/half").unwrap(),
            "Service default/half: spec.ports[0].port: invalid type: string \"http\", expected i32; spec.ports[0] is skipped"
        );

        // What was good stays when it becomes unreadable, until it is gone.
        server.put(SERVICES, unreadable("web"));
        mirror.until("it is said", |mirror| mirror.problem("Service default/web").is_some()).await;
        assert_eq!(mirror.ip("default/web").unwrap(), "10.96.0.1");
        server.delete(SERVICES, "default/web");
        mirror.until("it went", |mirror| !mirror.has(Kind::Service, "default/web")).await;
        // What becomes good or goes is no problem any more.
        server.put(SERVICES, service("bad", "10.96.0.6"));
        server.delete(SERVICES, "default/half");
        server.delete(SERVICES, "default/odd");
        mirror.until("all is well", |mirror| mirror.problems.is_empty()).await;
        assert!(mirror.has(Kind::Service, "default/bad"));
    }
}

#[tokio::test]
async fn problems_go_with_objects_that_a_new_list_lacks() {
    let mut server = ApiServer::start().await;
    server.put(SERVICES, unreadable("bad"));
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until("a problem", |mirror| mirror.problem("Service default/bad").is_some()).await;
    server.stop().await;
    server.delete(SERVICES, "default/bad");
    server.compact();
    server.listen().await;
    mirror.until("no problem", |mirror| mirror.problems.is_empty()).await;
}

#[tokio::test]
async fn a_server_that_ends_each_watch_is_not_asked_in_a_loop() {
    let server = ApiServer::start().await;
    server.put(SERVICES, service("web", "10.96.0.1"));
    server.state().ends_watches = true;
    let start = Instant::now();
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    let enough = |requests: usize| requests >= 4;
    while !enough(server.requests(SERVICES).len()) && start.elapsed() < Duration::from_secs(20) {
        sleep(Duration::from_millis(20)).await;
    }
    assert!(enough(server.requests(SERVICES).len()), "it is asked again");
    assert!(start.elapsed() >= Duration::from_secs(3), "four watches within {:?}", start.elapsed());
}

/// Linux tells of each connection whether its keepalive timer runs (02 in the column `tr`, proc(5)).
#[tokio::test]
async fn a_silent_end_of_a_connection_is_noticed() {
    let server = ApiServer::start().await;
    let Running { mut mirror, source: _source } = Running::start(&server).await;
    mirror.until_listed().await;
    let to_server = format!(" 0100007F:{:04X} 01 ", server.address.port());
    let connections = || {
        let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
        table.lines().filter(|line| line.contains(&to_server)).map(str::to_owned).collect::<Vec<_>>()
    };
    let timer_of = |line: &String| line.split_whitespace().nth(5).unwrap().to_owned();
    let deadline = Instant::now() + Duration::from_secs(20);
    while connections().iter().any(|line| !timer_of(line).starts_with("02:")) {
        assert!(Instant::now() < deadline, "{:#?}", connections());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(!connections().is_empty());
}

#[tokio::test]
async fn the_source_ends_with_its_receiver() {
    let server = ApiServer::start().await;
    let Running { mut mirror, source } = Running::start(&server).await;
    mirror.until_listed().await;
    drop(mirror);
    tokio::time::timeout(Duration::from_secs(20), source).await.expect("it goes on").unwrap();
}
