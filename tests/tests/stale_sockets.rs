//! Connected UDP sockets end when their backend has left the service that they went through; nothing else ends.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    cluster::{Cluster, target, tcp},
    manifests::Manifests,
    probe::{Answer, Kind, Target},
    wait,
};

/// How soon a socket ends after its backend has left.
const LIMIT: Duration = Duration::from_secs(1);
/// Where clients are: in a pod, and on the node itself.
const CLIENTS: [&str; 2] = ["pod1", "node-a"];

const POD2: [&str; 2] = ["10.244.1.12", "fd00:244:1::12"];
const POD3: [&str; 2] = ["10.244.2.13", "fd00:244:2::13"];
const SERVING: &str = "{ready: true, serving: true, terminating: false}";

/// A dual-stack Service `10.96.0.NUMBER`, and its endpoints: each an address of both families and its conditions.
fn service(number: u8, spec: &str, endpoints: &[([&str; 2], &str)]) -> String {
    let service = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: default}}\n\
         spec:\n  ipFamilyPolicy: RequireDualStack\n  clusterIP: 10.96.0.{number}\n  \
         clusterIPs: [10.96.0.{number}, 'fd00:10:96::{number}']\n  {spec}\n  \
         ports: [{{name: voice, protocol: UDP, port: 5004}}, {{name: http, port: 80}}]\n"
    );
    let slices = ["IPv4", "IPv6"].into_iter().enumerate().map(|(family, name)| {
        let endpoint = |(addresses, conditions): &([&str; 2], &str)| {
            let node = if addresses == &POD3 { "node-b" } else { "node-a" };
            let address = addresses[family];
            format!("{{addresses: ['{address}'], nodeName: {node}, conditions: {conditions}}}")
        };
        let endpoints = endpoints.iter().map(endpoint).collect::<Vec<_>>().join(", ");
        let lower = name.to_lowercase();
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: s{number}-{lower}, namespace: default, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
             addressType: {name}\n\
             ports: [{{name: voice, protocol: UDP, port: 5353}}, {{name: http, protocol: TCP, port: 8080}}]\n\
             endpoints: [{endpoints}]\n"
        )
    });
    [service].into_iter().chain(slices).collect()
}

/// A Service with these endpoints, all serving.
fn serving(number: u8, endpoints: &[[&str; 2]]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(|addresses| (*addresses, SERVING)).collect();
    service(number, "", &endpoints)
}

/// Connected UDP to a Service, in every way: IPv4, IPv6, and IPv4 through an IPv6 socket.
fn connected(number: u8) -> Result<[Target; 3]> {
    let v4 = target(Kind::Udp, &format!("10.96.0.{number}:5004"))?;
    let v6 = target(Kind::Udp, &format!("[fd00:10:96::{number}]:5004"))?;
    Ok([v4, v6, v4.mapped()].map(|target| target.within(LIMIT)))
}

/// Sockets that stay open, each with its number.
struct Opened {
    sockets: Vec<(&'static str, u32, Target)>,
}

impl Opened {
    /// Opens these on every client; all must be answered by one backend.
    fn new(cluster: &Cluster<'_>, first: u32, targets: &[Target], backend: &str) -> Result<Self> {
        let mut sockets = Vec::new();
        for from in CLIENTS {
            for (id, target) in (first..).zip(targets) {
                let answer = cluster.open(from, id, *target)?;
                ensure!(answer.backend()? == backend, "{from}: {target}: {answer:?}");
                sockets.push((from, id, *target));
            }
        }
        Ok(Self { sockets })
    }

    fn ask(&self, cluster: &Cluster<'_>) -> Result<Vec<(String, Answer)>> {
        let ask = |(from, id, target): &(&str, u32, Target)| {
            Ok((format!("{from}: {target}"), cluster.again(from, *id, *target)?))
        };
        self.sockets.iter().map(ask).collect()
    }

    /// All are answered by this backend.
    fn check_backend(&self, cluster: &Cluster<'_>, backend: &str) -> Result<()> {
        for (context, answer) in self.ask(cluster)? {
            ensure!(answer.backend().with_context(|| context.clone())? == backend, "{context}: {answer:?}");
        }
        Ok(())
    }

    /// Each of them ends, within the limit of its steps: whoever reads is told so.
    fn check_ended(&self, cluster: &Cluster<'_>) -> Result<()> {
        let start = Instant::now();
        for (from, id, target) in &self.sockets {
            let answer = cluster.receive(from, *id)?;
            ensure!(answer.errno()? == "ECONNABORTED", "{from}: {target}: {answer:?}");
            ensure!(start.elapsed() < LIMIT, "{from}: {target}: only after {:?}", start.elapsed());
            ensure!(answer.peer.is_none(), "{answer:?}");
        }
        Ok(())
    }
}

/// Waits until a Service has so many backends in the kernel.
fn wait_size(cluster: &Cluster<'_>, number: u8, size: u32) -> Result<()> {
    let frontend = connected(number)?[0].to;
    wait::until("the other set", wait::SOON, || {
        Ok((cluster.set_size(frontend, Protocol::Udp)? == size).then_some(()))
    })
}

fn ended(cluster: &Cluster<'_>) -> Result<u64> {
    Ok(cluster.sockeye.status()?.agent.context("no agent answers")?.ended_sockets)
}

#[test]
fn only_sockets_that_went_through_the_service_end_when_its_backend_leaves() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.write("s70.yaml", &serving(70, &[POD3]))?;
    manifests.write("s71.yaml", &serving(71, &[POD3]))?;
    Cluster::with(&manifests, |cluster| {
        let stale = Opened::new(cluster, 1, &connected(70)?, "pod3")?;
        let direct = target(Kind::Udp, "10.244.2.13:5353")?;
        let direct = [direct, direct.mapped(), target(Kind::Udp, "[fd00:244:2::13]:5353")?];
        let direct = Opened::new(cluster, 10, &direct, "pod3")?;
        let other = Opened::new(cluster, 20, &connected(71)?, "pod3")?;
        let stream = Opened::new(cluster, 30, &[tcp("10.96.0.70:80")?, tcp("[fd00:10:96::70]:80")?], "pod3")?;
        let datagrams = target(Kind::Datagram, "10.96.0.70:5004")?;
        let datagrams = [datagrams, datagrams.mapped(), target(Kind::Datagram, "[fd00:10:96::70]:5004")?];
        let datagrams = Opened::new(cluster, 40, &datagrams, "pod3")?;

        // With one more backend nothing has left.
        manifests.write("s70.yaml", &serving(70, &[POD2, POD3]))?;
        wait_size(cluster, 70, 2)?;
        stale.check_backend(cluster, "pod3")?;

        manifests.write("s70.yaml", &serving(70, &[POD2]))?;
        wait_size(cluster, 70, 1)?;
        stale.check_ended(cluster)?;
        for kept in [&direct, &other, &stream] {
            kept.check_backend(cluster, "pod3")?;
        }
        datagrams.check_backend(cluster, "pod2")?;
        assert_eq!(ended(cluster)?, 6);

        // Whoever connects again, on the same socket or another, reaches a backend.
        Opened::new(cluster, 50, &connected(70)?, "pod2")?.check_backend(cluster, "pod2")?;
        assert_eq!(ended(cluster)?, 6);
        Ok(())
    })
}

#[test]
fn a_change_of_policy_topology_or_readiness_ends_none_while_the_backend_serves() -> Result<()> {
    const TERMINATING: &str = "{ready: false, serving: true, terminating: true}";
    const NOT_READY: &str = "{ready: false, serving: false, terminating: true}";
    let manifests = Manifests::new()?;
    manifests.write("s70.yaml", &serving(70, &[POD3]))?;
    Cluster::with(&manifests, |cluster| {
        let kept = Opened::new(cluster, 1, &connected(70)?, "pod3")?;
        let hinted = SERVING.to_owned() + ", hints: {forNodes: [{name: node-b}]}";
        let elsewhere = SERVING.to_owned() + ", hints: {forNodes: [{name: node-a}]}";
        for (number, (spec, conditions)) in [
            ("internalTrafficPolicy: Local", SERVING),
            ("internalTrafficPolicy: Cluster", TERMINATING),
            ("internalTrafficPolicy: Cluster", hinted.as_str()),
        ]
        .into_iter()
        .enumerate()
        {
            // A Service of the same change whose backend does leave shows when everybody has been looked at.
            let canary = 80 + number as u8;
            manifests.write("canary.yaml", &serving(canary, &[POD3]))?;
            wait_size(cluster, canary, 1)?;
            let first = u32::from(canary) * 10;
            let stale = Opened::new(cluster, first, &connected(canary)?, "pod3")?;
            let other = if number == 2 {
                [(POD3, conditions), (POD2, elsewhere.as_str())]
            } else {
                [(POD3, conditions), (POD2, NOT_READY)]
            };
            manifests.write("s70.yaml", &service(70, spec, &other))?;
            manifests.write("canary.yaml", &serving(canary, &[POD2]))?;
            stale.check_ended(cluster)?;
            kept.check_backend(cluster, "pod3")?;
        }
        manifests.write("s70.yaml", &service(70, "", &[(POD3, NOT_READY), (POD2, SERVING)]))?;
        kept.check_ended(cluster)
    })
}

#[test]
fn all_end_when_their_service_is_deleted_or_loses_all_its_backends() -> Result<()> {
    let manifests = Manifests::new()?;
    for number in [70, 71, 72] {
        manifests.write(&format!("s{number}.yaml"), &serving(number, &[POD3]))?;
    }
    Cluster::with(&manifests, |cluster| {
        let deleted = Opened::new(cluster, 1, &connected(70)?, "pod3")?;
        let emptied = Opened::new(cluster, 11, &connected(71)?, "pod3")?;
        let kept = Opened::new(cluster, 21, &connected(72)?, "pod3")?;
        manifests.remove("s70.yaml")?;
        deleted.check_ended(cluster)?;
        manifests.write("s71.yaml", &serving(71, &[]))?;
        emptied.check_ended(cluster)?;
        kept.check_backend(cluster, "pod3")?;
        assert_eq!(ended(cluster)?, 12);
        Ok(())
    })
}

#[test]
fn what_left_while_no_agent_ran_is_ended_after_the_start() -> Result<()> {
    let manifests = Manifests::new()?;
    for number in [70, 71, 72] {
        manifests.write(&format!("s{number}.yaml"), &serving(number, &[POD3]))?;
    }
    Cluster::with(&manifests, |cluster| {
        let [left, deleted, kept] = [70, 71, 72];
        let mut stale = vec![
            Opened::new(cluster, 1, &connected(left)?, "pod3")?,
            Opened::new(cluster, 11, &connected(deleted)?, "pod3")?,
        ];
        let kept = Opened::new(cluster, 21, &connected(kept)?, "pod3")?;
        cluster.kill_agent()?;
        manifests.write("s70.yaml", &serving(left, &[POD2]))?;
        manifests.remove("s71.yaml")?;
        // Connected to what the tables still say, while nobody changes them.
        stale.push(Opened::new(cluster, 31, &connected(left)?, "pod3")?);
        cluster.start_agent(&[])?;
        for stale in stale {
            stale.check_ended(cluster)?;
        }
        kept.check_backend(cluster, "pod3")?;
        assert_eq!(ended(cluster)?, 18);
        Ok(())
    })
}
