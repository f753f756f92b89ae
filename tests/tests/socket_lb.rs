//! Load balancing at the socket: what applications on the node and in its pods see, on a real kernel.
//!
//! Each test counts what the programs counted, so that a lucky route of the kernel cannot pass for a translation.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    cluster::{Cluster, target, tcp},
    dump::delta,
    manifests::{Manifests, without_endpoint},
    probe::{Answer, Kind, Prober, Request, Target},
    process::Place,
    server::Server,
    wait,
};

const PODS: &[&str] = &["pod1", "pod2", "pod3"];

/// Every kind of Service in `examples/`: where it is reachable on the node, and who may answer.
const SERVICES: &[(Protocol, &str, &[&str])] = &[
    // ClusterIP
    (Protocol::Tcp, "10.96.0.10:80", PODS),
    // several ports; one number for two protocols
    (Protocol::Udp, "10.96.0.53:53", &["pod1", "pod3"]),
    (Protocol::Tcp, "10.96.0.53:53", &["pod1", "pod3"]),
    (Protocol::Tcp, "10.96.0.53:9153", &["pod1", "pod3"]),
    // named target port
    (Protocol::Tcp, "10.96.0.20:80", &["pod1", "pod3"]),
    // hand-made Endpoints outside the cluster
    (Protocol::Tcp, "10.96.0.40:5432", &["database"]),
    // dual stack
    (Protocol::Tcp, "10.96.0.60:80", PODS),
    (Protocol::Tcp, "[fd00:10:96::60]:80", PODS),
    (Protocol::Udp, "10.96.0.60:5004", PODS),
    (Protocol::Udp, "[fd00:10:96::60]:5004", PODS),
    // NodePort at the node's addresses
    (Protocol::Tcp, "172.18.0.2:30080", &["pod1", "pod3"]),
    (Protocol::Tcp, "[fd00:18::2]:30080", &["pod1", "pod3"]),
    (Protocol::Udp, "172.18.0.2:30053", &["pod1", "pod3"]),
    (Protocol::Udp, "[fd00:18::2]:30053", &["pod1", "pod3"]),
    // LoadBalancer: ClusterIP, ingress address, node port
    (Protocol::Tcp, "10.96.0.30:80", &["pod2", "pod3"]),
    (Protocol::Tcp, "203.0.113.10:80", &["pod2", "pod3"]),
    (Protocol::Tcp, "172.18.0.2:30081", &["pod2", "pod3"]),
    // externalIPs
    (Protocol::Tcp, "10.96.0.50:8080", &["pod1", "pod2"]),
    (Protocol::Tcp, "198.51.100.7:8080", &["pod1", "pod2"]),
    (Protocol::Udp, "198.51.100.7:873", &["pod1", "pod2"]),
];

/// The ways in which an application can reach a service: its protocol, over each kind of socket.
fn ways(protocol: Protocol, to: SocketAddr) -> Vec<Target> {
    let kinds: &[Kind] = match protocol {
        Protocol::Tcp => &[Kind::Tcp],
        Protocol::Udp | Protocol::Sctp => &[Kind::Udp, Kind::Datagram],
    };
    let plain = kinds.iter().map(|kind| Target::new(*kind, to));
    let mapped = plain.clone().filter(|target| target.to.is_ipv4()).map(Target::mapped);
    plain.chain(mapped).collect()
}

/// The application sees the service, and nothing but the service.
fn check_unseen(answer: &Answer) -> Result<()> {
    if let Some(peer) = answer.peer {
        ensure!(peer == answer.to, "getpeername shows {peer} instead of {}", answer.to);
    }
    if let Some(source) = answer.source {
        ensure!(source == answer.to, "recvfrom shows {source} instead of {}", answer.to);
    }
    Ok(())
}

#[test]
fn every_kind_of_service_answers_from_pod_and_host_over_every_kind_of_socket() -> Result<()> {
    const ROUNDS: u32 = 12;
    Cluster::with(&Manifests::examples()?, |cluster| {
        let before = cluster.outcomes()?;
        let mut asked: BTreeMap<Kind, u64> = BTreeMap::new();
        for from in ["pod1", "pod2", "node-a"] {
            for (protocol, to, backends) in SERVICES {
                let to = to.parse().with_context(|| format!("the address {to}"))?;
                for target in ways(*protocol, to) {
                    *asked.entry(target.kind).or_default() += u64::from(ROUNDS);
                    for answer in cluster.prober(from)?.ask(target, ROUNDS)? {
                        let context = || format!("{from}: {target}: {answer:?}");
                        let reply = answer.reply().with_context(context)?;
                        ensure!(backends.contains(&reply.backend.as_str()), "{}", context());
                        check_unseen(&answer).with_context(context)?;
                        // What a pod sends keeps its address all the way.
                        let sender =
                            answer.local.filter(|local| !local.ip().is_unspecified() && from != "node-a");
                        let sender = sender.map(|local| (local.ip().to_canonical(), local.port()));
                        let seen = (reply.client.ip(), reply.client.port());
                        ensure!(sender.is_none_or(|sender| sender == seen), "{}", context());
                    }
                }
            }
        }
        let counted = delta(&before, &cluster.outcomes()?);
        let count = |name| counted.get(name).copied().unwrap_or(0);
        let (tcp, udp, datagram) = (asked[&Kind::Tcp], asked[&Kind::Udp], asked[&Kind::Datagram]);
        assert_eq!(count("connect_translated"), tcp + udp, "{counted:?}");
        assert_eq!(count("datagram_translated"), datagram, "{counted:?}");
        assert_eq!(count("source_restored"), udp + datagram, "{counted:?}");
        assert_eq!(count("peer_restored"), tcp + udp, "{counted:?}");
        for never in ["broken_tables", "not_stored", "no_backends", "no_local_backends"] {
            assert_eq!(count(never), 0, "{counted:?}");
        }
        Ok(())
    })
}

#[test]
fn new_connections_spread_evenly_over_all_backends() -> Result<()> {
    const CONNECTS: u32 = 900;
    Cluster::with(&Manifests::examples()?, |cluster| {
        for target in [
            tcp("10.96.0.60:80")?,
            target(Kind::Udp, "[fd00:10:96::60]:5004")?,
            target(Kind::Datagram, "10.96.0.60:5004")?,
        ] {
            let spread = cluster.prober("pod1")?.spread(target, CONNECTS)?;
            assert_eq!(spread.keys().collect::<Vec<_>>(), PODS.iter().collect::<Vec<_>>());
            // Binomial with p = 1/3: the standard deviation is 14.1. Six of them: once in 500 million.
            for (backend, count) in &spread {
                assert!(
                    (215..=385).contains(count),
                    "{target}: {backend} got {count} of {CONNECTS}: {spread:?}"
                );
            }
        }
        Ok(())
    })
}

/// A UDP Service with one backend of its own.
fn udp_service(number: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: u{number}, namespace: default}}\n\
         spec: {{clusterIP: 10.96.1.{number}, ports: [{{protocol: UDP, port: 53}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: u{number}, namespace: default, labels: {{kubernetes.io/service-name: u{number}}}}}\n\
         addressType: IPv4\nports: [{{name: '', protocol: UDP, port: {}}}]\n\
         endpoints: [{{addresses: [10.244.1.12], nodeName: node-a}}]\n---\n",
        6000 + number
    )
}

#[test]
fn one_udp_socket_hears_each_of_many_services_at_once() -> Result<()> {
    const SERVICES: u16 = 40;
    let manifests = Manifests::examples()?;
    manifests.write("many.yaml", &(1..=SERVICES).map(udp_service).collect::<Vec<_>>().concat())?;
    Cluster::with(&manifests, |cluster| {
        let ports: Vec<_> = (1..=SERVICES).map(|number| (Protocol::Udp, 6000 + number)).collect();
        let _backends = Server::start("many", cluster.topology.pod2.place(), &ports)?;
        let mut all = (1..=SERVICES)
            .map(|number| format!("10.96.1.{number}:53").parse())
            .collect::<Result<Vec<SocketAddr>, _>>()
            .context("addresses")?;
        // And one that is no service.
        all.push((cluster.topology.pod3.v4, 5353).into());
        for mapped in [false, true] {
            for round in 0..5 {
                all.rotate_left(7);
                let target = Target { mapped, ..Target::new(Kind::Datagram, all[0]) };
                let answers = cluster.prober("pod1")?.answers(&Request::Scatter(all.clone(), target))?;
                for (to, answer) in all.iter().zip(answers) {
                    let reply = answer.reply().with_context(|| format!("round {round}, mapped {mapped}"))?;
                    check_unseen(&answer)?;
                    let [.., number] = match to {
                        SocketAddr::V4(v4) => v4.ip().octets(),
                        SocketAddr::V6(_) => [0; 4],
                    };
                    let expected = if to.port() == 53 { 6000 + u16::from(number) } else { 5353 };
                    assert_eq!(reply.port, expected, "{to} was answered by {reply}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn one_udp_socket_may_change_between_services_and_their_backends() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let pods = [&cluster.topology.pod1, &cluster.topology.pod3].map(|pod| pod.sockets(5353)[0]);
        // These share backends, which are talked to directly as well: who was asked last must be who answers.
        let services = ["10.96.0.53:53", "10.96.0.60:5004", "198.51.100.7:873", "172.18.0.2:30053"];
        let services = services.iter().map(|to| to.parse()).collect::<Result<Vec<SocketAddr>, _>>();
        let all = [services.context("addresses")?, pods.to_vec()].concat();
        for (id, mapped) in [(1, false), (2, true)] {
            let target = |to| Target { mapped, ..Target::new(Kind::Datagram, to) };
            cluster.open("pod2", id, target(all[0]))?.reply()?;
            // Steps that share no divisor with the number of destinations visit each after each other one.
            for step in [1, 5] {
                for turn in 0..60 {
                    let answer = cluster.again("pod2", id, target(all[turn * step % all.len()]))?;
                    answer
                        .reply()
                        .with_context(|| format!("turn {turn} in steps of {step}, mapped {mapped}"))?;
                    check_unseen(&answer)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn one_udp_socket_keeps_its_backend_while_that_serves() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let (chat, dns) =
            (target(Kind::Datagram, "10.96.0.60:5004")?, target(Kind::Datagram, "10.96.0.53:53")?);
        let first = cluster.open("pod1", 1, chat)?.backend()?.to_owned();
        let other = cluster.again("pod1", 1, dns)?.backend()?.to_owned();
        let before = cluster.outcomes()?;
        for _ in 0..20 {
            assert_eq!(cluster.again("pod1", 1, chat)?.backend()?, first);
            assert_eq!(cluster.again("pod1", 1, dns)?.backend()?, other);
        }
        let counted = delta(&before, &cluster.outcomes()?);
        assert_eq!(counted.get("datagram_kept"), Some(&40), "{counted:?}");
        assert_eq!(counted.get("datagram_translated"), None, "{counted:?}");
        Ok(())
    })
}

#[test]
fn an_unconnected_socket_moves_on_when_its_backend_goes() -> Result<()> {
    let manifests = Manifests::examples()?;
    Cluster::with(&manifests, |cluster| {
        let chat = target(Kind::Datagram, "10.96.0.60:5004")?;
        let first = cluster.open("pod1", 1, chat)?;
        let gone = cluster.machine(first.backend()?)?;
        let text = without_endpoint(&manifests.read("dual-stack.yaml")?, gone.v4.into())?;
        manifests.write("dual-stack.yaml", &text)?;
        wait::until("the smaller set", wait::SOON, || {
            Ok((cluster.set_size(chat.to, Protocol::Udp)? == 2).then_some(()))
        })?;
        let second = cluster.again("pod1", 1, chat)?;
        assert_ne!(second.backend()?, gone.name);
        check_unseen(&second)?;
        let port = |answer: &Answer| answer.local.map(|local| local.port());
        assert_eq!(port(&second), port(&first), "the socket keeps its port");
        assert_eq!(cluster.again("pod1", 1, chat)?.backend()?, second.backend()?, "and its new backend");
        Ok(())
    })
}

#[test]
fn the_host_cannot_take_a_node_port_but_a_pod_may() -> Result<()> {
    let bind = |cluster: &Cluster<'_>, from: &str, kind, to: &str| -> Result<Answer> {
        cluster.prober(from)?.answer(&Request::Bind(target(kind, to)?))
    };
    let taken = [
        (Kind::Tcp, "0.0.0.0:30080"),
        (Kind::Tcp, "172.18.0.2:30080"),
        (Kind::Tcp, "[::]:30080"),
        (Kind::Udp, "[fd00:18::2]:30053"),
        (Kind::Udp, "127.0.0.1:30053"),
    ];
    Cluster::with(&Manifests::examples()?, |cluster| {
        for (kind, to) in taken {
            let answer = bind(cluster, "node-a", kind, to)?;
            assert_eq!(answer.errno()?, "EADDRINUSE", "{kind:?} {to}");
        }
        // Another protocol, another port, an address that serves no node ports; and a pod's own port.
        for (from, kind, to) in [
            ("node-a", Kind::Udp, "0.0.0.0:30080"),
            ("node-a", Kind::Tcp, "0.0.0.0:30079"),
            ("node-a", Kind::Tcp, "10.244.1.1:30080"),
            ("pod1", Kind::Tcp, "0.0.0.0:30080"),
            ("pod1", Kind::Udp, "[::]:30053"),
        ] {
            let answer = bind(cluster, from, kind, to)?;
            assert_eq!(answer.failure, None, "{from}: {kind:?} {to}");
        }
        Ok(())
    })?;
    Cluster::with_flags(&Manifests::examples()?, &["--protect-nodeports=false"], |cluster| {
        for (kind, to) in taken {
            assert_eq!(bind(cluster, "node-a", kind, to)?.failure, None, "{kind:?} {to}");
        }
        Ok(())
    })
}

const NO_ENDPOINTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIPs: [10.96.0.99, 'fd00:10:96::99']
  clusterIP: 10.96.0.99
  ports:
    - {name: tcp, protocol: TCP, port: 80, nodePort: 30099}
    - {name: udp, protocol: UDP, port: 53, nodePort: 30099}
";

#[test]
fn a_service_without_endpoints_refuses_at_once() -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write("empty.yaml", NO_ENDPOINTS)?;
    Cluster::with(&manifests, |cluster| {
        let frontends = [
            (Protocol::Tcp, "10.96.0.99:80"),
            (Protocol::Tcp, "[fd00:10:96::99]:80"),
            (Protocol::Udp, "10.96.0.99:53"),
            (Protocol::Udp, "[fd00:10:96::99]:53"),
            (Protocol::Tcp, "172.18.0.2:30099"),
            (Protocol::Udp, "[fd00:18::2]:30099"),
        ];
        let before = cluster.outcomes()?;
        let mut asked = 0;
        for from in ["pod1", "node-a"] {
            for (protocol, to) in frontends {
                for target in ways(protocol, to.parse().with_context(|| format!("the address {to}"))?) {
                    let answer = cluster.ask(from, target)?;
                    assert_eq!(answer.errno()?, "ECONNREFUSED", "{from}: {target}");
                    let step = answer.failure.context("no failure")?.step;
                    let expected = if target.kind == Kind::Datagram { "send" } else { "connect" };
                    assert_eq!(step, expected, "{from}: {target}");
                    assert!(
                        answer.took < Duration::from_millis(500),
                        "{from}: {target} took {:?}",
                        answer.took
                    );
                    asked += 1;
                }
            }
        }
        let counted = delta(&before, &cluster.outcomes()?);
        assert_eq!(counted.get("no_backends"), Some(&asked), "{counted:?}");
        Ok(())
    })
}

#[test]
fn what_is_no_service_passes_untouched() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let t = cluster.topology;
        let plain = Server::start("plain", t.client.place(), &[(Protocol::Tcp, 30080), (Protocol::Udp, 53)])?;
        let before = cluster.outcomes()?;
        let mut asked = 0;
        for from in ["pod1", "node-a"] {
            // A pod's own address and the port of a service's backends; a machine outside with the number of a node port.
            for (to, backend) in [(t.pod3.sockets(8080), "pod3"), (t.database.sockets(5432), "database")] {
                for to in to {
                    for target in ways(Protocol::Tcp, to) {
                        assert_eq!(cluster.ask(from, target)?.backend()?, backend, "{from}: {target}");
                        asked += 1;
                    }
                }
            }
        }
        for (protocol, port) in [(Protocol::Tcp, 30080), (Protocol::Udp, 53)] {
            for to in t.client.sockets(port) {
                for target in ways(protocol, to) {
                    let answer = cluster.ask("node-a", target)?;
                    assert_eq!(answer.backend()?, plain.name(), "{target}");
                    check_unseen(&answer)?;
                    asked += 1;
                }
            }
        }
        let counted = delta(&before, &cluster.outcomes()?);
        for never in ["connect_translated", "datagram_translated", "source_restored", "peer_restored"] {
            assert_eq!(counted.get(never), None, "{counted:?}");
        }
        assert!(counted.get("not_a_service") >= Some(&asked), "{counted:?} after {asked} calls");
        Ok(())
    })
}

#[test]
fn sockets_outside_the_cgroup_are_left_alone() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let before = cluster.outcomes()?;
        // The same network, but a process that the agent was not given.
        let outside = Place { cgroup: None, ..cluster.topology.node_a.place() };
        let prober = Prober::start("a stranger on node-a", outside)?;
        let answer = prober.ask_once(tcp("10.96.0.10:80")?.within(Duration::from_millis(500)))?;
        assert_eq!(answer.errno()?, "ENETUNREACH");
        assert_eq!(delta(&before, &cluster.outcomes()?).get("connect_translated"), None);
        Ok(())
    })
}

const AFFINE: &str = "
apiVersion: v1
kind: Service
metadata: {name: affine, namespace: default}
spec:
  clusterIP: 10.96.0.70
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  ports:
    - {name: http, port: 80}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: affine-1, namespace: default, labels: {kubernetes.io/service-name: affine}}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints:
  - {addresses: [10.244.1.11], nodeName: node-a}
  - {addresses: [10.244.1.12], nodeName: node-a}
  - {addresses: [10.244.2.13], nodeName: node-b}
";

#[test]
fn an_affine_client_keeps_its_backend_until_that_goes() -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write("affine.yaml", AFFINE)?;
    Cluster::with(&manifests, |cluster| {
        let affine = tcp("10.96.0.70:80")?;
        let mut chosen = BTreeMap::new();
        for from in ["pod1", "pod2", "node-a"] {
            let spread = cluster.prober(from)?.spread(affine, 40)?;
            assert_eq!(spread.len(), 1, "{from} went to {spread:?}");
            chosen.extend(spread.into_keys().map(|backend| (from, backend)));
        }
        // Take away the backend that pod1 has: only its clients move.
        let address = cluster.machine(&chosen["pod1"])?.v4.to_string();
        let without: String = AFFINE.split_inclusive('\n').filter(|line| !line.contains(&address)).collect();
        cluster.manifests.write("affine.yaml", &without)?;
        wait::until("pod1 to move", wait::SOON, || {
            Ok((cluster.ask("pod1", affine)?.backend()? != chosen["pod1"]).then_some(()))
        })?;
        for (from, before) in &chosen {
            let spread = cluster.prober(from)?.spread(affine, 40)?;
            assert_eq!(spread.len(), 1, "{from} went to {spread:?}");
            assert!(
                *before == chosen["pod1"] || spread.contains_key(before),
                "{from}: {before} to {spread:?}"
            );
        }
        Ok(())
    })
}

const LOCAL: &str = "
apiVersion: v1
kind: Service
metadata: {name: near, namespace: default}
spec:
  clusterIP: 10.96.0.71
  internalTrafficPolicy: Local
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: near-1, namespace: default, labels: {kubernetes.io/service-name: near}}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints:
  - {addresses: [10.244.1.12], nodeName: node-a}
  - {addresses: [10.244.2.13], nodeName: node-b}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: default}
spec:
  clusterIP: 10.96.0.72
  internalTrafficPolicy: Local
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: far-1, namespace: default, labels: {kubernetes.io/service-name: far}}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints:
  - {addresses: [10.244.2.13], nodeName: node-b}
";

#[test]
fn an_internal_local_policy_stays_on_the_node_or_refuses() -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write("local.yaml", LOCAL)?;
    Cluster::with(&manifests, |cluster| {
        for from in ["pod1", "node-a"] {
            let spread = cluster.prober(from)?.spread(tcp("10.96.0.71:80")?, 30)?;
            assert_eq!(spread.into_keys().collect::<BTreeSet<_>>(), BTreeSet::from(["pod2".to_owned()]));
        }
        let before = cluster.outcomes()?;
        assert_eq!(cluster.ask("pod1", tcp("10.96.0.72:80")?)?.errno()?, "ECONNREFUSED");
        let counted = delta(&before, &cluster.outcomes()?);
        assert_eq!(counted.get("no_local_backends"), Some(&1), "{counted:?}");
        Ok(())
    })
}
