use std::{fs, path::Path, sync::Arc};

use expect_test::expect;

use super::{
    client::{ClientError, ask},
    server::{Answer, Server, ServerError, document, refusal},
    *,
};
use crate::{
    output::{Format, Table as _, render},
    pipeline::{BackendView, FrontendView, PortView, ServiceView},
};

struct Fixed;

impl Answer for Fixed {
    fn answer(&self, request: Request) -> impl Future<Output = Vec<u8>> + Send {
        std::future::ready(match request {
            Request::Status => document(&status()),
            Request::Services => document(&ServiceList::from(vec![web(), skipped()])),
            Request::Backends => refusal("not today"),
        })
    }
}

fn status() -> Status {
    Status {
        state: State::Waiting,
        waiting_for: vec!["the list of Service".to_owned(), "the list of EndpointSlice".to_owned()],
        agent: Some(AgentStatus {
            version: "0.1.0".to_owned(),
            commit: Some("0a80f9d".to_owned()),
            pid: 4711,
            uptime_seconds: 61,
            bpffs: "/sys/fs/bpf/sockeye".to_owned(),
            ended_sockets: 3,
        }),
        source: Some(SourceStatus {
            kind: SourceKind::Cluster,
            location: "/etc/kubernetes/kubelet.conf".to_owned(),
            reachable: false,
            since_seconds: 60,
            last_heard_seconds: None,
        }),
        node: Some(NodeStatus {
            name: "worker-7".to_owned(),
            zone: Some("a".to_owned()),
            source_addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
        }),
        tables: vec![TableStatus { map: "FRONTENDS".to_owned(), used: 1, capacity: 131_072 }],
        kernel: KernelStatus {
            release: "6.18.0".to_owned(),
            features: vec![
                feature("links", "5.7", true, "programs stay attached without the agent"),
                feature("tcx", "6.6", false, "north-south programs as links; without it as clsact filters"),
            ],
        },
        devices: vec![
            DeviceStatus {
                name: "eth0".to_owned(),
                served: true,
                why: vec!["carries 192.0.2.7".to_owned(), "has a default route".to_owned()],
            },
            DeviceStatus {
                name: "eth1".to_owned(),
                served: false,
                why: vec!["has a default route".to_owned()],
            },
        ],
        attachments: vec![Attachment {
            program: "connect4".to_owned(),
            program_id: 12,
            link_id: Some(3),
            target: "/sys/fs/cgroup".to_owned(),
        }],
        outcomes: vec![OutcomeCount {
            name: "connect_translated".to_owned(),
            meaning: "connect() to a service, sent to a backend".to_owned(),
            count: 9,
        }],
        problems: vec![ProblemStatus {
            object: "Service default/web".to_owned(),
            field: "spec.clusterIP".to_owned(),
            what: "10.96.0.300 is no IP address; the service is left out".to_owned(),
        }],
    }
}

fn feature(name: &str, since: &str, found: bool, meaning: &str) -> FeatureStatus {
    FeatureStatus {
        name: name.to_owned(),
        found,
        required: false,
        since: since.to_owned(),
        meaning: meaning.to_owned(),
    }
}

fn web() -> ServiceView {
    let endpoint = |address: &str, id, state, used, why| BackendView {
        address: address.to_owned(),
        id,
        state,
        node: Some("worker-7".to_owned()),
        local: true,
        source: "web-abc".to_owned(),
        in_cluster_set: used,
        in_local_set: false,
        cluster: why,
        local_set: "no Local policy",
    };
    ServiceView {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        service_type: "NodePort",
        skipped: None,
        ports: vec![PortView {
            name: "http".to_owned(),
            protocol: "TCP",
            family: "IPv4",
            service_id: Some(7),
            record: Some(3),
            internal_policy: "Cluster",
            external_policy: "Cluster",
            affinity_seconds: 0,
            frontends: vec![
                FrontendView {
                    address: "10.96.0.10:80".to_owned(),
                    kind: "ClusterIP",
                    in_force: true,
                    taken_by: None,
                },
                FrontendView {
                    address: "0.0.0.0:30080".to_owned(),
                    kind: "NodePort",
                    in_force: false,
                    taken_by: Some("default/old".to_owned()),
                },
            ],
            backends: vec![
                endpoint("10.1.0.10:8080", Some(2), "ready", true, "ready"),
                endpoint("10.1.0.9:8080", Some(1), "ready", true, "ready"),
                endpoint("10.1.0.8:8080", None, "not ready", false, "not ready"),
            ],
        }],
    }
}

fn skipped() -> ServiceView {
    ServiceView {
        namespace: "default".to_owned(),
        name: "db".to_owned(),
        service_type: "ClusterIP",
        skipped: Some("headless"),
        ports: Vec::new(),
    }
}

async fn ask_on<T: serde::de::DeserializeOwned + Send + 'static>(
    path: &Path,
    request: Request,
) -> Result<T, ClientError> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || ask(&path, request)).await.unwrap()
}

#[tokio::test]
async fn an_answer_is_what_the_agent_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/agent.sock");
    let server = tokio::spawn(Server::bind(&path).unwrap().serve(Arc::new(Fixed)));
    assert_eq!(ask_on::<Status>(&path, Request::Status).await.unwrap(), status());
    let services: ServiceList = ask_on(&path, Request::Services).await.unwrap();
    assert_eq!(services, ServiceList::from(vec![web(), skipped()]));
    match ask_on::<BackendList>(&path, Request::Backends).await {
        Err(ClientError::Refused(why)) => assert_eq!(why, "not today"),
        other => panic!("{other:?}"),
    }
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert!(!path.exists(), "the socket's file stays behind");
    match ask_on::<Status>(&path, Request::Status).await {
        Err(ClientError::NotRunning { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_bad_request_is_told_what_may_be_asked() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let server = tokio::spawn(Server::bind(&path).unwrap().serve(Arc::new(Fixed)));
    for line in ["\n", "status\n", "{\"get\":\"secrets\"}\n", &"x".repeat(5_000)] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        // The server stops reading a line that is too long.
        drop(stream.write_all(line.as_bytes()).await);
        let mut answer = Vec::new();
        // It may have closed with our bytes unread, which the kernel reports after the answer.
        drop(stream.read_to_end(&mut answer).await);
        let refused: Refusal = serde_json::from_slice(&answer).unwrap();
        assert!(refused.error.contains(r#"{"get":"status"}"#), "{}", refused.error);
    }
    server.abort();
}

#[tokio::test]
async fn a_socket_has_one_agent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let first = Server::bind(&path).unwrap();
    match Server::bind(&path) {
        Err(ServerError::Taken { .. }) => {}
        other => panic!("{other:?}"),
    }
    // As if the first had been killed: its file stays, nobody listens.
    std::mem::forget(first);
    let stale = directory.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let second = Server::bind(&stale).unwrap();
    fs::remove_file(&stale).unwrap();
    let third = Server::bind(&stale).unwrap();
    drop(second);
    assert!(stale.exists(), "an agent removed the socket of its successor");
    drop(third);
    assert!(!stale.exists());
}

#[test]
fn a_file_that_is_no_socket_stays() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let _entered = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    fs::write(&path, "precious").unwrap();
    let error = Server::bind(&path).unwrap_err();
    assert!(crate::telemetry::chain(&error).contains("a file that is no socket is there"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn status_for_people() {
    expect![[r#"
        waiting for the list of Service, the list of EndpointSlice
        Agent               0.1.0 (0a80f9d), process 4711, up 1m01s, pinned in /sys/fs/bpf/sockeye
        Ended UDP sockets   3: their backends had left (ECONNABORTED)
        Source              cluster /etc/kubernetes/kubelet.conf, not reachable for 1m00s, never heard of
        Node                worker-7, zone a
        Translated sources  192.0.2.7, 2001:db8::7
        Kernel              6.18.0 with links

        Missing in this kernel
          FEATURE  SINCE  MEANING
          tcx      6.6    north-south programs as links; without it as clsact filters

        Tables
          MAP        USED  CAPACITY  FULL
          FRONTENDS  1     131072    1%

        Devices
          DEVICE  SERVED  WHY
          eth0    yes     carries 192.0.2.7, has a default route
          eth1    no      has a default route

        Attached programs
          PROGRAM   ID  LINK  WHERE
          connect4  12  3     /sys/fs/cgroup

        Outcomes
          OUTCOME             COUNT  MEANING
          connect_translated  9      connect() to a service, sent to a backend

        Problems
          Service default/web: spec.clusterIP: 10.96.0.300 is no IP address; the service is left out
    "#]]
    .assert_eq(&status().table());
}

#[test]
fn status_without_an_agent_says_so_first() {
    let status = Status {
        state: State::NotRunning,
        waiting_for: Vec::new(),
        agent: None,
        source: None,
        node: None,
        problems: Vec::new(),
        ..status()
    };
    expect![[r#"
        the agent is not running; this is what is pinned in the kernel
        Kernel  6.18.0 with links

        Missing in this kernel
          FEATURE  SINCE  MEANING
          tcx      6.6    north-south programs as links; without it as clsact filters

        Tables
          MAP        USED  CAPACITY  FULL
          FRONTENDS  1     131072    1%

        Devices
          DEVICE  SERVED  WHY
          eth0    yes     carries 192.0.2.7, has a default route
          eth1    no      has a default route

        Attached programs
          PROGRAM   ID  LINK  WHERE
          connect4  12  3     /sys/fs/cgroup

        Outcomes
          OUTCOME             COUNT  MEANING
          connect_translated  9      connect() to a service, sent to a backend

        Problems
          none
    "#]]
    .assert_eq(&status.table());
}

#[test]
fn status_for_programs() {
    expect![[r#"
        {
          "state": "waiting",
          "waitingFor": [
            "the list of Service",
            "the list of EndpointSlice"
          ],
          "agent": {
            "version": "0.1.0",
            "commit": "0a80f9d",
            "pid": 4711,
            "uptimeSeconds": 61,
            "bpffs": "/sys/fs/bpf/sockeye",
            "endedSockets": 3
          },
          "source": {
            "kind": "cluster",
            "location": "/etc/kubernetes/kubelet.conf",
            "reachable": false,
            "sinceSeconds": 60
          },
          "node": {
            "name": "worker-7",
            "zone": "a",
            "sourceAddresses": [
              "192.0.2.7",
              "2001:db8::7"
            ]
          },
          "tables": [
            {
              "map": "FRONTENDS",
              "used": 1,
              "capacity": 131072
            }
          ],
          "kernel": {
            "release": "6.18.0",
            "features": [
              {
                "name": "links",
                "found": true,
                "required": false,
                "since": "5.7",
                "meaning": "programs stay attached without the agent"
              },
              {
                "name": "tcx",
                "found": false,
                "required": false,
                "since": "6.6",
                "meaning": "north-south programs as links; without it as clsact filters"
              }
            ]
          },
          "devices": [
            {
              "name": "eth0",
              "served": true,
              "why": [
                "carries 192.0.2.7",
                "has a default route"
              ]
            },
            {
              "name": "eth1",
              "served": false,
              "why": [
                "has a default route"
              ]
            }
          ],
          "attachments": [
            {
              "program": "connect4",
              "programId": 12,
              "linkId": 3,
              "target": "/sys/fs/cgroup"
            }
          ],
          "outcomes": [
            {
              "name": "connect_translated",
              "meaning": "connect() to a service, sent to a backend",
              "count": 9
            }
          ],
          "problems": [
            {
              "object": "Service default/web",
              "field": "spec.clusterIP",
              "what": "10.96.0.300 is no IP address; the service is left out"
            }
          ]
        }
    "#]]
    .assert_eq(&render(&status(), Format::Json).unwrap());
}

#[test]
fn services_for_people_and_programs() {
    let list = ServiceList::from(vec![web(), skipped()]);
    expect![[r#"
        SERVICE      PORT  KIND       PROTOCOL  FRONTEND       CLUSTER/LOCAL  ID  NOTE
        default/web  http  ClusterIP  TCP       10.96.0.10:80  2/0 of 3       7
        default/web  http  NodePort   TCP       0.0.0.0:30080  2/0 of 3       7   taken by default/old
        default/db   -     ClusterIP  -         -              -              -   headless
    "#]]
    .assert_eq(&list.table());
    expect![[r#"
        services:
        - namespace: default
          name: web
          type: NodePort
          ports:
          - name: http
            protocol: TCP
            family: IPv4
            serviceId: 7
            record: 3
            internalPolicy: Cluster
            externalPolicy: Cluster
            affinitySeconds: 0
            frontends:
            - address: 10.96.0.10:80
              kind: ClusterIP
              inForce: true
            - address: 0.0.0.0:30080
              kind: NodePort
              inForce: false
              takenBy: default/old
            endpoints:
            - address: 10.1.0.10:8080
              backendId: 2
              state: ready
              node: worker-7
              local: true
              source: web-abc
              clusterSet:
                used: true
                reason: ready
              localSet:
                used: false
                reason: no Local policy
            - address: 10.1.0.9:8080
              backendId: 1
              state: ready
              node: worker-7
              local: true
              source: web-abc
              clusterSet:
                used: true
                reason: ready
              localSet:
                used: false
                reason: no Local policy
            - address: 10.1.0.8:8080
              state: not ready
              node: worker-7
              local: true
              source: web-abc
              clusterSet:
                used: false
                reason: not ready
              localSet:
                used: false
                reason: no Local policy
        - namespace: default
          name: db
          type: ClusterIP
          skipped: headless
          ports: []
    "#]]
    .assert_eq(&render(&list, Format::Yaml).unwrap());
}

#[test]
fn backends_are_those_in_use_in_the_order_of_their_addresses() {
    let list = BackendList::from(&ServiceList::from(vec![web(), skipped()]));
    expect![[r#"
        BACKEND         PROTOCOL  ID  NODE             SERVICES
        10.1.0.9:8080   TCP       1   worker-7 (this)  default/web:http
        10.1.0.10:8080  TCP       2   worker-7 (this)  default/web:http
    "#]]
    .assert_eq(&list.table());
    expect![[r#"
        {
          "backends": [
            {
              "address": "10.1.0.9:8080",
              "protocol": "TCP",
              "id": 1,
              "local": true,
              "node": "worker-7",
              "services": [
                "default/web:http"
              ]
            },
            {
              "address": "10.1.0.10:8080",
              "protocol": "TCP",
              "id": 2,
              "local": true,
              "node": "worker-7",
              "services": [
                "default/web:http"
              ]
            }
          ]
        }
    "#]]
    .assert_eq(&render(&list, Format::Json).unwrap());
}

#[test]
fn the_reference_names_every_field() {
    fn collect(value: &serde_json::Value, names: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    names.push(name.clone());
                    collect(value, names);
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
            _ => {}
        }
    }
    let reference = include_str!("../../../docs/cli.md");
    let services = ServiceList::from(vec![web(), skipped()]);
    let mut names = Vec::new();
    collect(&serde_json::to_value(status()).unwrap(), &mut names);
    collect(&serde_json::to_value(&services).unwrap(), &mut names);
    collect(&serde_json::to_value(BackendList::from(&services)).unwrap(), &mut names);
    for name in names {
        let forms = [format!("`{name}"), format!(".{name}`"), format!(".{name}["), format!("`{name}[]")];
        assert!(forms.iter().any(|form| reference.contains(form)), "docs/cli.md does not tell of {name}");
    }
}
