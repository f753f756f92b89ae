//! Session affinity, as clients see it.
//!
//! The Service has many ports, each with a choice of its own among three backends: a client's choices are a pattern that
//! comes by chance once in half a million. So a pattern that stays was kept, and one that differs was drawn anew.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    agent::Installation,
    cluster::{Cluster, target, tcp},
    manifests::Manifests,
    probe::{Kind, Prober},
    process::Place,
    topology::Topology,
    wait,
};

/// 3^-12 is once in 531,441.
const PORTS: u16 = 12;

/// What may differ between the Services of these tests.
#[derive(Clone, Copy)]
struct Affine {
    seconds: u32,
    /// Another Service than with affinity `ClientIP`.
    none: bool,
    local: bool,
    backends: &'static [&'static str],
}

const ALL: &[&str] = &["10.244.1.11", "10.244.1.12", "10.244.2.13"];
const ON_NODE_A: &[&str] = &["10.244.1.11", "10.244.1.12"];
const AFFINE: Affine = Affine { seconds: 600, none: false, local: false, backends: ALL };

impl Affine {
    fn text(self) -> String {
        let Self { seconds, none, local, backends } = self;
        let affinity = if none {
            "sessionAffinity: None".to_owned()
        } else {
            format!(
                "sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}"
            )
        };
        let policy = if local { "Local" } else { "Cluster" };
        let ports: Vec<_> = (0..PORTS)
            .map(|number| format!("{{name: p{number}, port: {}, nodePort: {}}}", 80 + number, 30700 + number))
            .collect();
        let targets: Vec<_> = (0..PORTS).map(|number| format!("{{name: p{number}, port: 8080}}")).collect();
        let endpoints: Vec<_> = backends
            .iter()
            .map(|address| {
                let node = if ON_NODE_A.contains(address) { "node-a" } else { "node-b" };
                format!("{{addresses: [{address}], nodeName: {node}}}")
            })
            .collect();
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: affine, namespace: default}}\n\
             spec: {{type: NodePort, clusterIP: 10.96.0.70, {affinity}, internalTrafficPolicy: {policy},\n\
             ports: [{}, {{name: dns, port: 53, protocol: UDP}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: affine-1, namespace: default, labels: {{kubernetes.io/service-name: affine}}}}\n\
             addressType: IPv4\nports: [{}, {{name: dns, port: 5353, protocol: UDP}}]\nendpoints: [{}]\n",
            ports.join(", "),
            targets.join(", "),
            endpoints.join(", ")
        )
    }
}

fn cluster(affine: Affine, test: impl FnOnce(&mut Cluster<'_>) -> Result<()>) -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write("affine.yaml", &affine.text())?;
    Cluster::with(&manifests, test)
}

/// Makes the Service another one, and waits until it is in force.
fn switch(cluster: &Cluster<'_>, affine: Affine, in_force: impl Fn() -> Result<bool>) -> Result<()> {
    cluster.manifests.write("affine.yaml", &affine.text())?;
    wait::until("the change to be in force", wait::SOON, || Ok(in_force()?.then_some(())))
}

/// The backends that the ports give this client, in order.
fn choices(client: &Prober) -> Result<Vec<String>> {
    choices_at(client, "10.96.0.70", 80)
}

fn choices_at(client: &Prober, address: &str, first: u16) -> Result<Vec<String>> {
    let ask = |number| -> Result<String> {
        let target = tcp(&format!("{address}:{}", first + number))?;
        Ok(client.ask_once(target)?.backend()?.to_owned())
    };
    (0..PORTS).map(ask).collect()
}

/// The size of the set behind the first port.
fn backends(cluster: &Cluster<'_>) -> Result<u32> {
    let target = tcp("10.96.0.70:80")?;
    cluster.set_size(target.to, Protocol::Tcp)
}

/// Lets time pass: what is waited for here is the clock itself.
fn let_pass(time: Duration) -> Result<()> {
    let start = Instant::now();
    wait::until("time to pass", time + wait::SOON, || Ok((start.elapsed() > time).then_some(())))
}

#[test]
fn a_client_has_one_backend_for_each_service_port_at_whichever_address_it_asks() -> Result<()> {
    cluster(AFFINE, |cluster| {
        for from in ["pod1", "node-a"] {
            let client = cluster.prober(from)?;
            let first = choices(client)?;
            ensure!(first.iter().any(|backend| *backend != first[0]), "all ports have one: {first:?}");
            for _ in 0..5 {
                ensure!(choices(client)? == first, "{from} changed from {first:?}");
                ensure!(choices_at(client, "172.18.0.2", 30700)? == first, "{from}, at the node port");
            }
        }
        Ok(())
    })
}

#[test]
fn connected_and_unconnected_datagrams_are_one_client() -> Result<()> {
    cluster(AFFINE, |cluster| {
        for from in ["pod1", "pod2", "node-a"] {
            let first = cluster.ask(from, target(Kind::Udp, "10.96.0.70:53")?)?.backend()?.to_owned();
            for kind in [Kind::Udp, Kind::Datagram] {
                let spread = cluster.prober(from)?.spread(target(kind, "10.96.0.70:53")?, 20)?;
                ensure!(spread.keys().eq([&first]), "{from} with {kind:?}: {first}, then {spread:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_pod_is_one_client_whatever_its_processes_cgroups_and_no_other() -> Result<()> {
    cluster(AFFINE, |cluster| {
        let t = cluster.topology;
        let first = choices(cluster.prober("pod1")?)?;
        // As a container of its own has.
        let cgroup = t.cgroup.child("sidecar")?;
        let place = Place { netns: Some(&t.pod1.netns), cgroup: Some(&cgroup) };
        ensure!(
            choices(&Prober::start("a sidecar of pod1", place)?)? == first,
            "a sidecar is another client"
        );
        ensure!(choices(cluster.prober("pod2")?)? != first, "pod2 is the same client");
        ensure!(choices(cluster.prober("node-a")?)? != first, "the node is the same client");
        ensure!(choices(cluster.prober("pod1")?)? == first, "pod1 changed");
        Ok(())
    })
}

#[test]
fn processes_of_the_hosts_network_are_told_apart_by_their_pod_or_their_service() -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write("affine.yaml", &AFFINE.text())?;
    let topology = Topology::new()?;
    let sockeye = Installation::on(&topology)?;
    // What a kubelet and systemd make: pods of three qualities of service, and daemons.
    let kubepods = topology.cgroup.child("kubepods")?;
    let (burstable, besteffort) = (kubepods.child("burstable")?, kubepods.child("besteffort")?);
    let system = topology.cgroup.child("system.slice")?;
    let mut clients = Vec::new();
    for (parent, name) in [
        (&burstable, "pod-a"),
        (&burstable, "pod-b"),
        (&besteffort, "pod-c"),
        (&besteffort, "pod-d"),
        (&kubepods, "pod-e"),
        (&kubepods, "pod-f"),
        (&system, "one.service"),
        (&system, "two.service"),
    ] {
        let client = parent.child(name)?;
        let inside = [client.child("one")?, client.child("two")?];
        clients.push((name, client, inside));
    }
    let mut cluster = Cluster::new(&topology, &sockeye, &manifests)?;
    cluster.start_agent(&[])?;
    let mut seen: Vec<Vec<String>> = Vec::new();
    for (name, client, [one, two]) in &clients {
        let places = [one, two, client]
            .map(|cgroup| Place { netns: Some(&topology.node_a.netns), cgroup: Some(cgroup) });
        let found = places.map(|place| choices(&Prober::start("a process of the host", place)?));
        let [first, second, third] = found;
        let first = first?;
        ensure!(first == second? && first == third?, "{name} is several clients");
        ensure!(!seen.contains(&first), "{name} is the same client as another");
        seen.push(first);
    }
    Ok(())
}

#[test]
fn new_connections_refresh_the_timeout_and_traffic_does_not() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(3);
    cluster(Affine { seconds: 3, ..AFFINE }, |cluster| {
        let (busy, talker) = (cluster.prober("pod1")?, "pod2");
        let first = choices(busy)?;
        let mut open = Vec::new();
        for number in 0..PORTS {
            let target = tcp(&format!("10.96.0.70:{}", 80 + number))?;
            let backend = cluster.open(talker, u32::from(number), target)?.backend()?.to_owned();
            open.push((target, backend));
        }
        let start = Instant::now();
        // Longer than the timeout, and a second for the clock's coarse steps.
        while start.elapsed() < TIMEOUT + Duration::from_secs(2) {
            ensure!(choices(busy)? == first, "after {:?} and connections all the while", start.elapsed());
            for (number, (target, backend)) in (0..).zip(&open) {
                ensure!(cluster.again(talker, number, *target)?.backend()? == backend, "{target} moved");
            }
            let_pass(Duration::from_millis(200))?;
        }
        let before: Vec<_> = open.into_iter().map(|(_, backend)| backend).collect();
        ensure!(choices(cluster.prober(talker)?)? != before, "traffic on open connections has refreshed it");
        let_pass(TIMEOUT + Duration::from_secs(1))?;
        ensure!(choices(busy)? != first, "it never ends");
        Ok(())
    })
}

#[test]
fn only_backends_of_the_set_that_applies_are_kept() -> Result<()> {
    cluster(AFFINE, |cluster| {
        let client = cluster.prober("pod1")?;
        let first = choices(client)?;
        let to_pod3 = |choices: &[String]| choices.iter().filter(|backend| *backend == "pod3").count();
        let local = Affine { local: true, ..AFFINE };
        switch(cluster, local, || Ok(to_pod3(&choices(client)?) == 0))?;
        let now = choices(client)?;
        for (before, now) in first.iter().zip(&now) {
            ensure!(before == "pod3" || before == now, "a local backend was left: {first:?}, {now:?}");
        }
        // The policy does not apply there: of the wider set, the client keeps what it had.
        ensure!(choices_at(client, "172.18.0.2", 30700)? == first, "the node port shares the first choice");
        ensure!(choices(client)? == now, "and the cluster address keeps the other");
        // Without the policy the wider set counts again.
        switch(cluster, AFFINE, || Ok(choices(client)? == first))?;
        Ok(())
    })
}

#[test]
fn affinity_is_switched_on_and_off_at_run_time() -> Result<()> {
    const ASKS: u32 = 30;
    let none = Affine { none: true, ..AFFINE };
    cluster(none, |cluster| {
        // Of thirty asks each backend gets one, but for once in 60,000 times.
        let spread =
            || -> Result<usize> { Ok(cluster.prober("pod1")?.spread(tcp("10.96.0.70:80")?, ASKS)?.len()) };
        for _ in 0..2 {
            assert_eq!(spread()?, 3);
            switch(cluster, AFFINE, || Ok(spread()? == 1))?;
            let first = choices(cluster.prober("pod1")?)?;
            assert_eq!(choices(cluster.prober("pod1")?)?, first);
            switch(cluster, none, || Ok(spread()? == 3))?;
        }
        Ok(())
    })
}

#[test]
fn a_choice_survives_changes_of_other_endpoints_and_a_restart_of_the_agent() -> Result<()> {
    cluster(AFFINE, |cluster| {
        let first = choices(cluster.prober("pod1")?)?;
        for flags in [&[][..], &["--max-backends", "4096"]] {
            let fewer = Affine { backends: ON_NODE_A, ..AFFINE };
            switch(cluster, fewer, || Ok(backends(cluster)? == 2))?;
            // The ports whose backend is gone are drawn anew only if they are asked.
            let kept: Vec<_> = (0..PORTS).filter(|number| first[usize::from(*number)] != "pod3").collect();
            for number in &kept {
                let target = tcp(&format!("10.96.0.70:{}", 80 + number))?;
                let answer = cluster.ask("pod1", target)?;
                ensure!(answer.backend()? == first[usize::from(*number)], "{target} left its backend");
            }
            switch(cluster, AFFINE, || Ok(backends(cluster)? == 3))?;
            ensure!(choices(cluster.prober("pod1")?)? == first, "pod3 is back");
            cluster.kill_agent()?;
            ensure!(choices(cluster.prober("pod1")?)? == first, "while no agent runs");
            cluster.start_agent(flags)?;
            ensure!(choices(cluster.prober("pod1")?)? == first, "after a restart with {flags:?}");
        }
        Ok(())
    })
}
