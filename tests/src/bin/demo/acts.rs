//! What is shown, in order.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{address::Protocol, config::maps::OUTCOMES};
use lb_tests::{
    cluster::{target, tcp},
    dump,
    probe::{Kind, Request, Target},
    wait,
};

use crate::{maps, stage::Stage};

/// All pods.
const PODS: [&str; 3] = ["pod1", "pod2", "pod3"];

pub(crate) fn all(stage: &mut Stage<'_>) -> Result<()> {
    network(stage)?;
    agent(stage)?;
    cluster_ip(stage)?;
    allocated(stage)?;
    multi_port(stage)?;
    named_port(stage)?;
    dual_stack(stage)?;
    outside_the_cluster(stage)?;
    node_port(stage)?;
    load_balancer(stage)?;
    external_ips(stage)?;
    left_alone(stage)?;
    change(stage)?;
    no_endpoints(stage)?;
    crash(stage)?;
    counters(stage)
}

fn network(stage: &Stage<'_>) -> Result<()> {
    let tell = stage.tell;
    let (major, minor) = lb_tests::require::kernel_version()?;
    tell.line(&tell.bold(&format!(
        "Sockeye on Linux {major}.{minor}: a cluster of network namespaces on this machine"
    )))?;
    tell.line(DRAWING)
}

const DRAWING: &str = "
      client          database           node-b ──── pod3
   172.18.0.10      172.18.0.20       172.18.0.3     10.244.2.13
        │                │                 │
        └────────────────┴────────┬────────┘
                               node-a                each has an IPv6 address too;
                             172.18.0.2              every pod runs a small HTTP and
                              ╱      ╲               UDP server
                          pod1        pod2
                   10.244.1.11        10.244.1.12";

fn agent(stage: &mut Stage<'_>) -> Result<()> {
    stage.tell.act("The agent starts on node-a", "")?;
    stage
        .tell
        .command("sockeye run --manifests examples --node-name node-a --devices eth0 --cgroup … --bpffs …")?;
    let start = Instant::now();
    stage.cluster.start_agent(&[])?;
    let status = stage.cluster.sockeye.status()?;
    ensure!(status.problems.is_empty(), "the examples have problems: {:#?}", status.problems);
    let used: Vec<_> = status.tables.iter().map(|table| format!("{} {}", table.used, table.map)).collect();
    stage.tell.output(&format!("ready after {} ms: {}", start.elapsed().as_millis(), used.join(", ")))
}

fn cluster_ip(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("A ClusterIP, translated in connect()", "cluster-ip.yaml")?;
    let web = tcp("10.96.0.10:80")?;
    let answer = stage.ask("pod1", web, &PODS)?;
    let client = answer.reply()?.client;
    ensure!(answer.local == Some(client), "the pod's address did not reach the backend: {client}");
    let peer = answer.peer.context("no peer")?;
    stage.tell.answer("pod1", "getpeername()", &format!("{peer}: the service"), None)?;
    stage.spread("pod1", web, &PODS)?;
    stage.ask("node-a", web, &PODS)?;
    stage.tell.note("From the frontend to its backends, in the kernel's maps:")?;
    maps::show(stage.tell, stage.cluster.sockeye, web.to, Protocol::Tcp)
}

fn allocated(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("A ClusterIP that was allocated", "cluster-ip-allocated.yaml")?;
    let api = stage.cluster_ip("api", 8000)?;
    stage.tell.note(&format!("Sockeye gave it {}.", api.ip()))?;
    stage.ask("pod1", Target::new(Kind::Tcp, api), &["pod2"])?;
    Ok(())
}

fn multi_port(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("Several ports; 53 for UDP and for TCP", "multi-port.yaml")?;
    let dns: SocketAddr = "10.96.0.53:53".parse().context("an address")?;
    for kind in Kind::ALL {
        stage.ask("pod2", Target::new(kind, dns), &["pod1", "pod3"])?;
    }
    stage.ask("pod2", tcp("10.96.0.53:9153")?, &["pod1", "pod3"])?;
    stage.tell.note("One UDP socket, without connect, asks two services in turn:")?;
    let (dns, chat) = (target(Kind::Datagram, "10.96.0.53:53")?, target(Kind::Datagram, "10.96.0.60:5004")?);
    stage.cluster.open("pod2", 1, dns)?.reply()?;
    for target in [chat, dns] {
        let answer = stage.cluster.again("pod2", 1, target)?;
        let source = answer.source.context("no sender")?;
        ensure!(source == answer.to, "recvfrom shows {source} instead of {}", answer.to);
        let heard = format!("{}, recvfrom shows {source}", answer.backend()?);
        stage.tell.answer("pod2", &format!("UDP sendto {}", answer.to), &heard, Some(answer.took))?;
    }
    stage.cluster.prober("pod2")?.answers(&Request::Close(1))?;
    Ok(())
}

fn named_port(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("A named port: another number in each pod", "named-target-port.yaml")?;
    let shop = tcp("10.96.0.20:80")?;
    let answers = stage.cluster.prober("pod2")?.ask(shop, 40)?;
    for (pod, port) in [("pod1", 8080), ("pod3", 9090)] {
        let found =
            answers.iter().filter_map(|answer| answer.reply.as_ref()).find(|reply| reply.backend == pod);
        let reply = found.with_context(|| format!("{pod} has not answered at {}", shop.to))?;
        ensure!(reply.port == port, "{pod} was reached at port {}, not {port}", reply.port);
        stage.tell.answer("pod2", "GET http://10.96.0.20:80/", &format!("{pod} at port {port}"), None)?;
    }
    Ok(())
}

fn dual_stack(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("IPv4, IPv6, and IPv4 through an IPv6 socket", "dual-stack.yaml")?;
    for (tcp_at, udp_at) in
        [("10.96.0.60:80", "10.96.0.60:5004"), ("[fd00:10:96::60]:80", "[fd00:10:96::60]:5004")]
    {
        stage.ask("pod1", tcp(tcp_at)?, &PODS)?;
        stage.ask("pod1", target(Kind::Datagram, udp_at)?, &PODS)?;
    }
    stage.ask("pod1", tcp("10.96.0.60:80")?.mapped(), &PODS)?;
    stage.spread("pod1", tcp("[fd00:10:96::60]:80")?, &PODS)
}

fn outside_the_cluster(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("A server outside the cluster, by hand-made Endpoints", "external-endpoints.yaml")?;
    stage.ask("pod1", tcp("10.96.0.40:5432")?, &["database"])?;
    Ok(())
}

fn node_port(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("A NodePort, from outside", "node-port.yaml")?;
    let backends = ["pod1", "pod3"];
    for (http, moves) in
        [("172.18.0.2:30080", "172.18.0.2:30053"), ("[fd00:18::2]:30080", "[fd00:18::2]:30053")]
    {
        stage.ask("client", tcp(http)?, &backends)?;
        stage.ask("client", target(Kind::Datagram, moves)?, &backends)?;
        stage.spread("client", tcp(http)?, &backends)?;
    }
    stage.tell.note("On the node, sockets need no packet to be translated:")?;
    stage.ask("node-a", tcp("127.0.0.1:30080")?, &backends)?;
    stage.ask("pod2", tcp("172.18.0.2:30080")?, &backends)?;
    Ok(())
}

fn load_balancer(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("The address of a load balancer, from both sides", "load-balancer.yaml")?;
    let backends = ["pod2", "pod3"];
    stage.ask("client", tcp("203.0.113.10:80")?, &backends)?;
    stage.ask("pod1", tcp("203.0.113.10:80")?, &backends)?;
    stage.ask("pod1", tcp("10.96.0.30:80")?, &backends)?;
    stage.ask("client", tcp("172.18.0.2:30081")?, &backends)?;
    Ok(())
}

fn external_ips(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("An external IP that is routed to the node", "external-ips.yaml")?;
    let backends = ["pod1", "pod2"];
    stage.ask("client", tcp("198.51.100.7:8080")?, &backends)?;
    stage.ask("client", target(Kind::Udp, "198.51.100.7:873")?, &backends)?;
    stage.ask("pod1", tcp("198.51.100.7:8080")?, &backends)?;
    Ok(())
}

fn left_alone(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("Headless and ExternalName: left to DNS", "headless.yaml, external-name.yaml")?;
    stage.show_sockeye(&["service", "list"], &["weather"])?;
    let services = stage.cluster.sockeye.services()?.services;
    let peers = services.iter().find(|service| service.name.as_deref() == Some("peers"));
    ensure!(peers.is_none_or(|peers| peers.skipped.is_some()), "the headless Service is served: {peers:?}");
    let problems = stage.cluster.sockeye.status()?.problems;
    ensure!(problems.is_empty(), "the status lists problems: {problems:?}");
    stage.tell.note("Neither is an error: `sockeye status` lists no problem.")
}

/// Takes pod3 out of the Service `web`.
fn change(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("An endpoint goes, and comes back", "cluster-ip.yaml")?;
    let web = tcp("10.96.0.10:80")?;
    let file = "cluster-ip.yaml";
    let before = stage.cluster.manifests.read(file)?;
    let held = stage.cluster.prober("pod1")?.answer(&Request::Open(1, web))?;
    let held_by = held.backend()?.to_owned();
    stage.tell.note("pod1 keeps one connection open. Then pod3 is no longer ready:")?;

    edit(stage, file, &before.replace(POD3_READY, POD3_NOT_READY), web, 2)?;
    stage.spread("pod1", web, &["pod1", "pod2"])?;
    let again = stage.cluster.prober("pod1")?.answer(&Request::Again(1, web.to))?;
    ensure!(again.backend()? == held_by, "an established connection moved to {}", again.backend()?);
    stage.tell.answer(
        "pod1",
        "the connection that was open",
        &format!("still {held_by}"),
        Some(again.took),
    )?;

    edit(stage, file, &before, web, 3)?;
    stage.spread("pod1", web, &PODS)
}

/// Lines of `examples/cluster-ip.yaml`.
const POD3_READY: &str = "name: pod3}\n    conditions: {ready: true, serving: true, terminating: false}";
const POD3_NOT_READY: &str =
    "name: pod3}\n    conditions: {ready: false, serving: false, terminating: false}";

/// Edits a manifest and waits until the frontend has that many backends.
fn edit(stage: &Stage<'_>, file: &str, text: &str, frontend: Target, backends: u32) -> Result<()> {
    ensure!(stage.cluster.manifests.read(file)? != text, "{file} does not look as the demo expects it");
    let saved = Instant::now();
    stage.cluster.manifests.write(file, text)?;
    let took = wait::until(&format!("{} to have {backends} backends", frontend.to), wait::SOON, || {
        let size = stage.cluster.set_size(frontend.to, Protocol::Tcp)?;
        Ok((size == backends).then(|| saved.elapsed()))
    })?;
    stage.tell.answer(
        "node-a",
        &format!("{file} saved"),
        &format!("{backends} backends in force"),
        Some(took),
    )
}

/// Takes all endpoints away.
fn no_endpoints(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("No endpoints: refused at once, as with kube-proxy", "cluster-ip.yaml")?;
    let web = tcp("10.96.0.10:80")?;
    let file = "cluster-ip.yaml";
    let before = stage.cluster.manifests.read(file)?;
    let (service, _slice) = before.split_once("\n---\n").context("one document in cluster-ip.yaml")?;
    edit(stage, file, service, web, 0)?;
    let counted = dump::outcomes(&stage.cluster.sockeye.map_path(OUTCOMES))?;
    stage.refused("pod1", web)?;
    stage.refused("node-a", web)?;
    let counted = dump::delta(&counted, &dump::outcomes(&stage.cluster.sockeye.map_path(OUTCOMES))?);
    ensure!(counted.get("no_backends") == Some(&2), "counted {counted:?}");
    stage.tell.answer("node-a", "counter no_backends", "+2", None)?;
    edit(stage, file, &before, web, 3)?;
    stage.ask("pod1", web, &PODS)?;
    Ok(())
}

/// Kills the agent while clients go on, and starts another one.
fn crash(stage: &mut Stage<'_>) -> Result<()> {
    stage.tell.act("The agent is killed, and comes back", "")?;
    let web = tcp("10.96.0.10:80")?;
    stage.cluster.prober("pod2")?.answers(&Request::StartLoop(vec![web]))?;
    stage.tell.command("kill -9 $(pidof sockeye)")?;
    stage.cluster.kill_agent()?;
    stage.ask("pod1", web, &PODS)?;
    stage.ask("client", tcp("172.18.0.2:30080")?, &["pod1", "pod3"])?;
    stage.tell.command("sockeye run …")?;
    stage.cluster.start_agent(&[])?;
    let report = stage.cluster.prober("pod2")?.stop_loop()?;
    ensure!(
        report.failed == 0,
        "{} of {} connects failed: {:?}",
        report.failed,
        report.attempts,
        report.failures
    );
    ensure!(report.attempts > 0, "pod2 did not connect at all");
    stage.tell.answer("pod2", "connects all the while", &format!("{}, none failed", report.attempts), None)
}

fn counters(stage: &Stage<'_>) -> Result<()> {
    stage.tell.act("What the programs counted", "")?;
    stage.tell.command(&format!(
        "bpftool map dump pinned {}",
        stage.cluster.sockeye.map_path(OUTCOMES).display()
    ))?;
    let outcomes = dump::outcomes(&stage.cluster.sockeye.map_path(OUTCOMES))?;
    let lines: Vec<_> = outcomes.iter().map(|(name, count)| format!("{name:<20} {count:>7}")).collect();
    for name in
        ["connect_translated", "datagram_translated", "peer_restored", "source_restored", "flow_opened"]
    {
        ensure!(outcomes.contains_key(name), "{name} was never counted: {outcomes:?}");
    }
    stage.tell.output(&lines.join("\n"))
}

/// Uninstalls, and shows that nothing is left.
pub(crate) fn remove(stage: &mut Stage<'_>) -> Result<()> {
    stage.tell.act("Uninstall", "")?;
    stage.cluster.agent.take().context("no agent runs")?.terminate()?;
    stage.tell.command("sockeye cleanup")?;
    let removed = stage.cluster.sockeye.sockeye(&["cleanup"])?.success()?;
    let (first, more) = (removed.lines().take(3), removed.lines().skip(3).count());
    stage.tell.output(&format!("{}\n… and {more} more", first.collect::<Vec<_>>().join("\n")))?;
    ensure!(
        !stage.cluster.sockeye.pin_path().exists(),
        "{} is still there",
        stage.cluster.sockeye.pin_path().display()
    );
    let answer =
        stage.cluster.prober("pod1")?.ask_once(tcp("10.96.0.10:80")?.within(Duration::from_millis(300)))?;
    ensure!(answer.reply.is_none(), "10.96.0.10 still answers");
    stage.tell.line("")?;
    stage.tell.line(
        &stage.tell.bold("All answers were as expected. Namespaces, cgroups and processes are removed."),
    )
}
