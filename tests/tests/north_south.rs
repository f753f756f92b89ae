//! Traffic from outside: a client on another machine, through the node's external device, to pods here and elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{address::Protocol, config::SNAT_PORT_FIRST};
use lb_tests::{
    cluster::{Cluster, target, tcp},
    dump::delta,
    manifests::{Manifests, endpoint_slice},
    probe::{Answer, Kind, Reply, Request, Target},
    require,
    server::Server,
    topology::NODE_DEVICE,
    wait,
};
use lb_userspace::kernel::{Attachment, Kernel, KernelConfig, Place as AttachedAt, open_pinned};
use socket2::{Domain, Socket, Type};

/// Where pod3 is, on node-b.
const POD3: &str = "10.244.2.13";

/// One Service for each place that a backend can be at, both families, both protocols.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: here, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: http, protocol: TCP, port: 80, nodePort: 31001}
    - {name: udp, protocol: UDP, port: 53, nodePort: 31001}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: http, protocol: TCP, port: 80, nodePort: 31002}
    - {name: udp, protocol: UDP, port: 53, nodePort: 31002}
---
apiVersion: v1
kind: Service
metadata: {name: nowhere, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: http, protocol: TCP, port: 80, nodePort: 31003}
    - {name: udp, protocol: UDP, port: 53, nodePort: 31003}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere-only, namespace: default}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  clusterIP: 10.96.0.81
  ports: [{name: http, protocol: TCP, port: 80, nodePort: 31004}]
---
apiVersion: v1
kind: Service
metadata: {name: kept-local, namespace: default}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  clusterIP: 10.96.0.82
  ports: [{name: http, protocol: TCP, port: 80, nodePort: 31005}]
";

/// They and their slices; `elsewhere` is the IPv4 address of the backend that is not on node-a.
fn services(elsewhere: &str) -> String {
    let http = "[{name: http, protocol: TCP, port: 8080}]";
    let both = "[{name: http, protocol: TCP, port: 8080}, {name: udp, protocol: UDP, port: 5353}]";
    let (near, far) = (("10.244.1.12", "node-a"), (elsewhere, "node-b"));
    [
        SERVICES,
        &endpoint_slice("here", both, &[("10.244.1.11", "node-a")]),
        &endpoint_slice("here", both, &[("fd00:244:1::11", "node-a")]),
        &endpoint_slice("elsewhere", both, &[far]),
        &endpoint_slice("elsewhere", both, &[("fd00:244:2::13", "node-b")]),
        &endpoint_slice("elsewhere-only", http, &[far]),
        &endpoint_slice("kept-local", http, &[near, far]),
    ]
    .concat()
}

fn manifests() -> Result<Manifests> {
    let manifests = Manifests::examples()?;
    manifests.write("north-south.yaml", &services(POD3))?;
    Ok(manifests)
}

/// A port of node-a, over each protocol and family.
fn ways(cluster: &Cluster<'_>, port: u16) -> Vec<Target> {
    let sockets = cluster.topology.node_a.sockets(port);
    let plain = sockets.into_iter().flat_map(|to| Kind::ALL.map(|kind| Target::new(kind, to)));
    let mapped = Kind::ALL.map(|kind| Target::new(kind, sockets[0]).mapped());
    plain.chain(mapped).collect()
}

fn check_unseen(answer: &Answer) -> Result<()> {
    ensure!(answer.peer.is_none_or(|peer| peer == answer.to), "getpeername: {answer:?}");
    ensure!(answer.source.is_none_or(|source| source == answer.to), "recvfrom: {answer:?}");
    Ok(())
}

#[test]
fn a_backend_on_this_node_sees_the_client() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        let before = cluster.outcomes()?;
        let ways = ways(cluster, 31001);
        for target in &ways {
            let answer = cluster.ask("client", *target)?;
            let reply = answer.reply()?;
            assert_eq!(reply.backend, "pod1", "{target}");
            check_unseen(&answer)?;
            let client = cluster.topology.client.addresses();
            assert!(client.contains(&reply.client.ip()), "{target}: pod1 sees {}", reply.client);
            let local = answer.local.context("no local address")?;
            assert_eq!(reply.client.port(), local.port(), "{target}: pod1 sees another port");
        }
        let counted = delta(&before, &cluster.outcomes()?);
        assert_eq!(counted.get("flow_opened"), Some(&(ways.len() as u64)), "{counted:?}");
        assert!(counted.get("flow_returned") >= Some(&(ways.len() as u64)), "{counted:?}");
        Ok(())
    })
}

#[test]
fn a_backend_on_another_node_sees_this_node_and_its_answer_comes_back() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        let before = cluster.outcomes()?;
        let ways = ways(cluster, 31002);
        for target in &ways {
            let answer = cluster.ask("client", *target)?;
            let reply = answer.reply()?;
            assert_eq!(reply.backend, "pod3", "{target}");
            check_unseen(&answer)?;
            let node = cluster.topology.node_a.addresses();
            assert!(node.contains(&reply.client.ip()), "{target}: pod3 sees {}", reply.client);
            assert!(reply.client.port() >= SNAT_PORT_FIRST, "{target}: pod3 sees {}", reply.client);
        }
        let counted = delta(&before, &cluster.outcomes()?);
        assert_eq!(counted.get("flow_opened"), Some(&(ways.len() as u64)), "{counted:?}");
        assert!(counted.get("flow_returned") >= Some(&(ways.len() as u64)), "{counted:?}");
        for never in ["ports_exhausted", "no_route", "rewrite_failed", "flow_table_full", "no_node_address"] {
            assert_eq!(counted.get(never), None, "{counted:?}");
        }
        Ok(())
    })
}

/// Kernels before 6.6 have no tcx. What an agent there does is done here by hand, under connections that go on.
#[test]
fn filters_of_clsact_do_what_links_do() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        require!(kernel >= (6, 6), "tcx, to switch from and back to");
        let asked: Vec<_> = [ways(cluster, 31001), ways(cluster, 31002)].concat();
        let opened = tcp("[fd00:18::2]:31002")?;
        cluster.open("client", 1, opened)?.backend()?;
        cluster.prober("client")?.answers(&Request::StartLoop(vec![tcp("172.18.0.2:31001")?]))?;
        let before = attached_links(cluster)?;
        assert_eq!(before, [true, true], "the agent attaches links");

        cluster.kill_agent()?;
        let config = KernelConfig {
            bpffs: cluster.sockeye.pin_path(),
            cgroup: cluster.sockeye.cgroup().to_owned(),
            devices: vec![NODE_DEVICE.to_owned()],
            clsact: true,
            ..KernelConfig::default()
        };
        cluster.topology.node_a.netns.run(|| {
            let mut kernel = Kernel::prepare(&config)?;
            ensure!(kernel.reused(), "the tables of the agent are not used");
            kernel.activate()?;
            Ok(())
        })?;
        assert_eq!(attached_links(cluster)?, [false, false], "filters have taken over");
        let report = cluster.prober("client")?.stop_loop()?;
        assert_eq!(report.failed, 0, "of {}: {:#?}", report.attempts, report.failures);
        cluster.again("client", 1, opened)?.backend()?;

        let counted = cluster.outcomes()?;
        for target in &asked {
            let answer = cluster.ask("client", *target)?;
            answer.reply()?;
            check_unseen(&answer)?;
        }
        let counted = delta(&counted, &cluster.outcomes()?);
        assert_eq!(counted.get("flow_opened"), Some(&(asked.len() as u64)), "{counted:?}");
        transfer(cluster, 1 << 20)?;

        cluster.start_agent(&[])?;
        assert_eq!(attached_links(cluster)?, [true, true], "the agent attaches links again");
        cluster.again("client", 1, opened)?.backend()?;
        Ok(())
    })
}

/// For each program on the device, whether it is attached as a link.
fn attached_links(cluster: &Cluster<'_>) -> Result<Vec<bool>> {
    let pins = cluster.sockeye.pin_path();
    let attachments = cluster.topology.node_a.netns.run(|| Ok(open_pinned(&pins)?.attachments()?))?;
    let link = |attachment: &Attachment| match attachment.place {
        AttachedAt::Tcx { .. } => Some(true),
        AttachedAt::Clsact { .. } => Some(false),
        AttachedAt::Cgroup { .. } => None,
    };
    Ok(attachments.iter().filter_map(link).collect())
}

#[test]
fn addresses_of_load_balancers_and_external_ips_answer_to_the_outside() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        for (target, backends) in [
            (tcp("203.0.113.10:80")?, ["pod2", "pod3"]),
            (tcp("172.18.0.2:30081")?, ["pod2", "pod3"]),
            (tcp("198.51.100.7:8080")?, ["pod1", "pod2"]),
            (target(Kind::Udp, "198.51.100.7:873")?, ["pod1", "pod2"]),
            (target(Kind::Datagram, "198.51.100.7:873")?, ["pod1", "pod2"]),
        ] {
            let spread = cluster.prober("client")?.spread(target, 60)?;
            let answered: BTreeSet<_> = spread.keys().map(String::as_str).collect();
            assert_eq!(answered, BTreeSet::from(backends), "{target}");
        }
        Ok(())
    })
}

#[test]
fn megabytes_pass_both_ways_unharmed() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| transfer(cluster, 8 << 20))
}

/// On a veth, checksums stay unfinished and packets uncut; here they are what a network card delivers.
#[test]
fn bytes_pass_unharmed_as_a_wire_would_carry_them() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        cluster.topology.switch_off_offloads()?;
        for target in [ways(cluster, 31001), ways(cluster, 31002)].concat() {
            cluster.ask("client", target)?.backend()?;
        }
        transfer(cluster, 1 << 20)
    })
}

fn transfer(cluster: &Cluster<'_>, bytes: usize) -> Result<()> {
    for (port, backend) in [(31001, "pod1"), (31002, "pod3")] {
        for to in cluster.topology.node_a.sockets(port) {
            let target = Target::new(Kind::Tcp, to).within(Duration::from_secs(20));
            let answers = cluster.prober("client")?.answers(&Request::Transfer(target, bytes))?;
            assert_eq!(answers.len(), 2);
            for (answer, way) in answers.iter().zip(["download", "upload"]) {
                let got = answer.backend().with_context(|| format!("{way} at {to}"))?;
                assert_eq!(got, backend, "{way} at {to}");
            }
        }
    }
    Ok(())
}

#[test]
fn many_connections_after_each_other_find_their_way() -> Result<()> {
    const CONNECTS: u32 = 300;
    Cluster::with(&manifests()?, |cluster| {
        for to in ["172.18.0.2:30080", "[fd00:18::2]:30080"] {
            let spread: BTreeMap<_, _> = cluster.prober("client")?.spread(tcp(to)?, CONNECTS)?;
            assert_eq!(spread.keys().collect::<Vec<_>>(), ["pod1", "pod3"], "{to}");
            // Binomial with p = 1/2: the standard deviation is 8.7. Six of them.
            assert!(spread.values().all(|count| (98..=202).contains(count)), "{to}: {spread:?}");
        }
        Ok(())
    })
}

#[test]
fn a_connection_keeps_its_backend() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        for (id, kind, port) in [(1, Kind::Tcp, 30080), (2, Kind::Udp, 30053), (3, Kind::Datagram, 30053)] {
            let to: SocketAddr = (cluster.topology.node_a.v4, port).into();
            let target = Target::new(kind, to);
            let first = cluster.open("client", id, target)?.backend()?.to_owned();
            for _ in 0..10 {
                assert_eq!(cluster.again("client", id, target)?.backend()?, first, "{target}");
            }
        }
        Ok(())
    })
}

/// Connects from a port of the client's and asks who answers.
fn ask_from(cluster: &Cluster<'_>, from: SocketAddr, to: SocketAddr, within: Duration) -> Result<Reply> {
    cluster.topology.client.netns.run(|| {
        let socket = Socket::new(Domain::for_address(from), Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), within)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(within))?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        answer.split("\r\n\r\n").nth(1).context("no body")?.parse()
    })
}

#[test]
fn a_connection_that_was_never_answered_follows_the_service_when_its_port_is_used_again() -> Result<()> {
    let manifests = manifests()?;
    // Nobody has this address: SYNs to it are lost.
    manifests.write("north-south.yaml", &services("10.244.2.99"))?;
    Cluster::with(&manifests, |cluster| {
        let (from, to) = ("172.18.0.10:45000".parse()?, "172.18.0.2:31002".parse()?);
        assert!(ask_from(cluster, from, to, Duration::from_millis(100)).is_err());
        manifests.write("north-south.yaml", &services(POD3))?;
        wait::until("the Service to have a backend that answers", wait::SOON, || {
            let answer =
                cluster.ask("client", tcp("172.18.0.2:31002")?.within(Duration::from_millis(200)))?;
            Ok(answer.reply().is_ok_and(|reply| reply.backend == "pod3").then_some(()))
        })?;
        let before = cluster.outcomes()?;
        assert_eq!(ask_from(cluster, from, to, wait::SOON)?.backend, "pod3");
        let counted = delta(&before, &cluster.outcomes()?);
        assert_eq!(counted.get("flow_opened"), Some(&1), "{counted:?}");
        Ok(())
    })
}

#[test]
fn without_endpoints_the_client_is_refused() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        let before = cluster.outcomes()?;
        for target in ways(cluster, 31003) {
            // Nobody tells an unconnected socket of an ICMP error (udp(7)).
            let expected = if target.kind == Kind::Datagram { "ETIMEDOUT" } else { "ECONNREFUSED" };
            let answer = cluster.ask("client", target.within(Duration::from_millis(500)))?;
            assert_eq!(answer.errno()?, expected, "{target}");
        }
        let counted = delta(&before, &cluster.outcomes()?);
        assert!(counted.get("no_backends") >= Some(&9), "{counted:?}");
        Ok(())
    })
}

#[test]
fn an_external_local_policy_keeps_to_this_node_or_drops() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        let spread = cluster.prober("client")?.spread(tcp("172.18.0.2:31005")?, 30)?;
        assert_eq!(spread.into_keys().collect::<Vec<_>>(), ["pod2"]);
        let before = cluster.outcomes()?;
        let dropped = tcp("172.18.0.2:31004")?.within(Duration::from_millis(500));
        assert_eq!(cluster.ask("client", dropped)?.errno()?, "ETIMEDOUT");
        let counted = delta(&before, &cluster.outcomes()?);
        assert!(counted.get("no_local_backends") >= Some(&1), "{counted:?}");
        // Clients on the node use all endpoints, as if they had gone out and come back.
        assert_eq!(cluster.ask("pod1", tcp("172.18.0.2:31004")?)?.backend()?, "pod3");
        Ok(())
    })
}

#[test]
fn a_client_in_the_clusters_network_is_none_from_outside() -> Result<()> {
    let flags = ["--cluster-cidr", "172.18.0.0/24"];
    Cluster::with_flags(&manifests()?, &flags, |cluster| {
        assert_eq!(cluster.ask("client", tcp("172.18.0.2:31004")?)?.backend()?, "pod3");
        Ok(())
    })
}

#[test]
fn servers_of_the_node_itself_are_reached_as_before() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        let t = cluster.topology;
        let own = Server::start("own", t.node_a.place(), &[(Protocol::Tcp, 9100), (Protocol::Udp, 9100)])?;
        for target in ways(cluster, 9100) {
            assert_eq!(cluster.ask("client", target)?.backend()?, own.name(), "{target}");
        }
        // And the node and its pods reach machines outside, through the same device.
        for to in t.database.sockets(5432) {
            for from in ["node-a", "pod1"] {
                assert_eq!(cluster.ask(from, Target::new(Kind::Tcp, to))?.backend()?, "database", "{from}");
            }
        }
        Ok(())
    })
}
