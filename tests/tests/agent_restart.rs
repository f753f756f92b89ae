//! The kernel's state outlives the agent: what clients notice while agents are killed, restarted and upgraded.

use anyhow::{Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    cluster::{Cluster, target, tcp},
    manifests::{Manifests, without_endpoint},
    probe::{Kind, Report, Request, Target},
    topology::Machine,
    wait,
};

const ADDED: &str = "
apiVersion: v1
kind: Service
metadata: {name: added, namespace: default}
spec:
  clusterIP: 10.96.0.90
  ports: [{name: http, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: added-1, namespace: default, labels: {kubernetes.io/service-name: added}}
addressType: IPv4
ports: [{name: http, protocol: TCP, port: 8080}]
endpoints: [{addresses: [10.244.1.12], nodeName: node-a}]
";

/// Machines that ask all the while, and what they ask.
fn loops() -> Result<Vec<(&'static str, Vec<Target>)>> {
    Ok(vec![
        ("pod2", vec![tcp("10.96.0.60:80")?, target(Kind::Udp, "[fd00:10:96::60]:5004")?]),
        ("node-a", vec![target(Kind::Datagram, "10.96.0.60:5004")?, tcp("[fd00:10:96::60]:80")?.mapped()]),
        ("client", vec![tcp("172.18.0.2:30080")?, target(Kind::Udp, "[fd00:18::2]:30053")?]),
    ])
}

fn start_loops(cluster: &Cluster<'_>) -> Result<()> {
    for (from, targets) in loops()? {
        cluster.prober(from)?.answers(&Request::StartLoop(targets))?;
    }
    Ok(())
}

/// Not one attempt may have failed.
fn stop_loops(cluster: &Cluster<'_>) -> Result<()> {
    for (from, _) in loops()? {
        let Report { attempts, failed, failures, .. } = cluster.prober(from)?.stop_loop()?;
        ensure!(failed == 0, "{from}: {failed} of {attempts} failed, first {failures:#?}");
        ensure!(attempts >= 20, "{from} asked only {attempts} times: nothing is proven");
    }
    Ok(())
}

/// Sockets that stay open across everything.
fn open_sockets() -> Result<[(u32, Target); 4]> {
    Ok([
        (1, tcp("10.96.0.60:80")?),
        (2, tcp("[fd00:10:96::60]:80")?),
        (3, target(Kind::Udp, "10.96.0.60:5004")?),
        (4, target(Kind::Datagram, "10.96.0.60:5004")?),
    ])
}

fn check_open_sockets(cluster: &Cluster<'_>, backends: &[String]) -> Result<()> {
    for ((id, target), backend) in open_sockets()?.into_iter().zip(backends) {
        let answer = cluster.again("pod1", id, target)?;
        ensure!(answer.backend()? == backend, "{target} moved from {backend}: {answer:?}");
        ensure!(answer.peer.is_none_or(|peer| peer == target.to), "{answer:?}");
        ensure!(answer.source.is_none_or(|source| source == target.to), "{answer:?}");
    }
    Ok(())
}

#[test]
fn nobody_notices_that_the_agent_is_killed_restarted_and_given_other_capacities() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let opened = open_sockets()?.map(|(id, target)| cluster.open("pod1", id, target));
        let backends = opened.into_iter().map(|answer| Ok(answer?.backend()?.to_owned()));
        let backends = backends.collect::<Result<Vec<_>>>()?;
        start_loops(cluster)?;
        for flags in [
            &[][..],
            &[],
            // Other sizes are another generation of maps beside the old one.
            &["--max-backends", "4096", "--max-services", "512", "--max-frontends", "1024"],
            &["--max-backends", "8192"],
        ] {
            cluster.kill_agent()?;
            check_open_sockets(cluster, &backends)?;
            cluster.start_agent(flags)?;
            check_open_sockets(cluster, &backends)?;
            cluster.sockeye.wait_no_problem()?;
        }
        stop_loops(cluster)
    })
}

#[test]
fn an_agent_that_ends_politely_leaves_everything_in_force() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        start_loops(cluster)?;
        let Some(mut agent) = cluster.agent.take() else { anyhow::bail!("no agent runs") };
        let status = agent.terminate()?;
        ensure!(status.success(), "{status}\n{}", agent.log()?);
        drop(agent);
        cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;
        cluster.start_agent(&[])?;
        stop_loops(cluster)
    })
}

#[test]
fn what_changed_while_no_agent_ran_is_in_force_once_one_is_ready() -> Result<()> {
    let manifests = Manifests::examples()?;
    Cluster::with(&manifests, |cluster| {
        start_loops(cluster)?;
        cluster.kill_agent()?;
        // Endpoints go, a Service goes, a Service comes.
        let web = manifests.read("cluster-ip.yaml")?;
        manifests.write("cluster-ip.yaml", &web.replace("10.244.1.11", "10.244.2.97"))?;
        manifests.remove("named-target-port.yaml")?;
        manifests.write("added.yaml", ADDED)?;
        // Until then, the last state holds.
        cluster.ask("pod1", tcp("10.96.0.20:80")?)?.backend()?;

        cluster.start_agent(&[])?;
        assert_eq!(cluster.ask("pod1", tcp("10.96.0.90:80")?)?.backend()?, "pod2");
        let gone = cluster.ask("pod1", tcp("10.96.0.20:80")?)?;
        assert!(gone.reply.is_none(), "{gone:?}");
        manifests.write("cluster-ip.yaml", &web)?;
        wait::until("pod1 to be back in web", wait::SOON, || {
            Ok((cluster.ask("pod2", tcp("10.96.0.10:80")?)?.backend()? == "pod1").then_some(()))
        })?;
        stop_loops(cluster)
    })
}

#[test]
fn connects_never_fail_while_endpoints_come_and_go() -> Result<()> {
    let manifests = Manifests::examples()?;
    Cluster::with(&manifests, |cluster| {
        start_loops(cluster)?;
        let chat = manifests.read("dual-stack.yaml")?;
        // pod1 and pod3 leave and return in turn; pod2 stays.
        let without = |pod: &Machine| without_endpoint(&chat, pod.v4.into());
        let (no_pod1, no_pod3) = (without(&cluster.topology.pod1)?, without(&cluster.topology.pod3)?);
        let (http, voice) = (tcp("10.96.0.60:80")?.to, target(Kind::Udp, "10.96.0.60:5004")?.to);
        for _ in 0..10 {
            for text in [&no_pod1, &chat, &no_pod3, &chat] {
                let backends = if text == &chat { 3 } else { 2 };
                manifests.write("dual-stack.yaml", text)?;
                wait::until("the new set", wait::SOON, || {
                    let size = |to, protocol| cluster.set_size(to, protocol);
                    let now = [size(http, Protocol::Tcp)?, size(voice, Protocol::Udp)?];
                    Ok((now == [backends; 2]).then_some(()))
                })?;
            }
        }
        stop_loops(cluster)
    })
}
