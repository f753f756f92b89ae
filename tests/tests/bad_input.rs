//! Bad input harms itself only: a message that names the object and the field, or says what to do; everything else goes
//! on; `sockeye status` lists the problem as long as it lasts.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Installation,
    cluster::{Cluster, tcp},
    manifests::Manifests,
    process::{Finished, program, run},
    topology::Topology,
    wait,
};

/// Serves the examples, adds a bad file, and expects a problem with these words while everything else goes on; takes the
/// file away, and expects that the problem is gone.
fn check_bad_file(cluster: &Cluster<'_>, name: &str, text: &str, words: &[&str]) -> Result<()> {
    cluster.manifests.write(name, text)?;
    let line = cluster.sockeye.wait_problem(words).with_context(|| format!("after writing {name}"))?;
    let table = cluster.sockeye.sockeye(&["status"])?.success()?;
    for word in words {
        ensure!(table.contains(word), "no {word} of the problem {line:?} in\n{table}");
    }
    cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;
    cluster.ask("client", tcp("172.18.0.2:30080")?)?.backend()?;
    cluster.manifests.remove(name)?;
    cluster.sockeye.wait_no_problem().with_context(|| format!("after removing {name}"))
}

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n")
}

#[test]
fn bad_objects_are_named_and_harm_nobody_else() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let check = |name: &str, text: &str, words: &[&str]| check_bad_file(cluster, name, text, words);
        check("broken.yaml", "kind: Service\n  metadata: {name: [\n", &["broken.yaml"])?;
        check(
            "unknown.yaml",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
            &["Deployment default/web", "kind", "apps/v1"],
        )?;
        check(
            "ip.yaml",
            &service("bad-ip", "{clusterIP: 10.96.0.300, ports: [{port: 80}]}"),
            &["Service default/bad-ip", "spec.clusterIP", "10.96.0.300"],
        )?;
        check(
            "port.yaml",
            &service("bad-port", "{clusterIP: 10.96.0.80, ports: [{name: a, port: 80}, {name: b, port: 0}]}"),
            &["Service default/bad-port", "spec.ports[1].port"],
        )?;
        check(
            "protocol.yaml",
            &service("bad-protocol", "{clusterIP: 10.96.0.80, ports: [{port: 80, protocol: ICMP}]}"),
            &["Service default/bad-protocol", "spec.ports[0].protocol", "ICMP"],
        )?;
        check(
            "type.yaml",
            &service("bad-type", "{clusterIP: 10.96.0.80, ports: [{port: many}]}"),
            &["Service default/bad-type", "spec.ports[0].port"],
        )?;
        check(
            "endpoint.yaml",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {name: web-bad, namespace: default, labels: {kubernetes.io/service-name: web}}\n\
             addressType: IPv4\nports: [{name: http, port: 8080}]\n\
             endpoints: [{addresses: [10.244.1.1111]}, {addresses: [10.244.1.12]}]\n",
            &["EndpointSlice default/web-bad", "endpoints[0].addresses[0]", "10.244.1.1111"],
        )?;
        check(
            "orphan.yaml",
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {name: orphan-1, namespace: default, labels: {kubernetes.io/service-name: orphan}}\n\
             addressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints: [{addresses: [10.244.1.11]}]\n",
            &["EndpointSlice default/orphan-1", "orphan"],
        )
    })
}

#[test]
fn of_two_services_with_one_address_the_first_keeps_it() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let web = tcp("10.96.0.10:80")?;
        let second = service("zweite", "{clusterIP: 10.96.0.10, ports: [{port: 80}]}");
        check_bad_file(
            cluster,
            "second.yaml",
            &second,
            &["Service default/zweite", "10.96.0.10", "default/web"],
        )?;
        // The second one has no endpoints: had it taken over, this would be refused.
        cluster.ask("pod1", web)?.backend()?;
        // When the first one goes, the second one's turn has come.
        cluster.manifests.write("second.yaml", &second)?;
        cluster.sockeye.wait_problem(&["default/zweite"])?;
        cluster.manifests.remove("cluster-ip.yaml")?;
        cluster.sockeye.wait_no_problem()?;
        wait::until("the second Service to have the address", wait::SOON, || {
            Ok((cluster.ask("pod1", web)?.errno()? == "ECONNREFUSED").then_some(()))
        })
    })
}

#[test]
fn a_bad_edit_keeps_what_the_file_gave_before() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let good = cluster.manifests.read("cluster-ip.yaml")?;
        cluster.manifests.write("cluster-ip.yaml", "kind: [")?;
        cluster.sockeye.wait_problem(&["cluster-ip.yaml"])?;
        cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;
        cluster.manifests.write("cluster-ip.yaml", &good)?;
        cluster.sockeye.wait_no_problem()
    })
}

#[test]
fn a_full_map_names_what_does_not_fit_and_recovers() -> Result<()> {
    // Room for the examples' frontends, and for one more.
    Cluster::with_flags(&Manifests::examples()?, &["--max-frontends", "32"], |cluster| {
        cluster.sockeye.wait_no_problem()?;
        let one =
            |i| service(&format!("more-{i}"), &format!("{{clusterIP: 10.97.0.{i}, ports: [{{port: 80}}]}}"));
        let many = (1..=40).map(one).collect::<Vec<_>>().join("---\n");
        cluster.manifests.write("more.yaml", &many)?;
        let line = cluster.sockeye.wait_problem(&["Service default/more-"])?;
        ensure!(
            line.contains("FRONTENDS") || line.contains("--max-frontends"),
            "what to do is not in {line:?}"
        );
        for (from, to) in
            [("pod1", "10.96.0.10:80"), ("pod2", "[fd00:10:96::60]:80"), ("client", "172.18.0.2:30080")]
        {
            cluster.ask(from, tcp(to)?)?.backend()?;
        }
        // An endpoint change needs no room in that map.
        let web = cluster.manifests.read("cluster-ip.yaml")?;
        cluster.manifests.write("cluster-ip.yaml", &web.replace("10.244.1.11", "10.244.2.97"))?;
        wait::until("the change to be in force", wait::SOON, || {
            let backends = cluster.sockeye.sockeye(&["backend", "list"])?.success()?;
            Ok(backends.contains("10.244.2.97:8080").then_some(()))
        })?;
        cluster.manifests.write("cluster-ip.yaml", &web)?;
        cluster.manifests.remove("more.yaml")?;
        cluster.sockeye.wait_no_problem()
    })
}

/// The agent must end by itself with exit code 2 and one line that contains these words.
fn check_refuses(finished: &Finished, words: &[&str]) -> Result<()> {
    let Finished { status, stdout, stderr } = finished;
    ensure!(status.code() == Some(2), "{status}\n{stdout}{stderr}");
    let line = stderr.lines().last().context("it said nothing")?;
    for word in words {
        ensure!(line.contains(word), "no {word:?} in the last line of\n{stderr}");
    }
    Ok(())
}

#[test]
fn a_machine_that_lacks_something_is_told_what_to_do() -> Result<()> {
    let topology = Topology::new()?;
    let sockeye = Installation::on(&topology)?;
    let manifests = Manifests::examples()?;
    let place = topology.node_a.place();
    let plain = tempfile::tempdir().context("making a folder")?;
    let plain = plain.path().to_str().context("a path that is no text")?;
    let sockeye_run = |flags: &[&str]| -> Result<Finished> {
        let mut command = Command::new(program("sockeye")?);
        command.arg("run").args(flags).arg("--socket").arg(sockeye.socket());
        run("sockeye run", command, place, wait::SOON)
    };
    let manifests = manifests.path();
    let manifests = manifests.to_str().context("a path that is no text")?;
    let (pins, cgroup) = (sockeye.pin_path(), sockeye.cgroup().to_path_buf());
    let (pins, cgroup) = (pins.to_str().context("a path")?, cgroup.to_str().context("a path")?);

    let no_bpffs = sockeye_run(&["--manifests", manifests, "--cgroup", cgroup, "--bpffs", plain])?;
    check_refuses(&no_bpffs, &[plain, "BPF file system", "mount"])?;
    let no_cgroup = sockeye_run(&["--manifests", manifests, "--cgroup", plain, "--bpffs", pins])?;
    check_refuses(&no_cgroup, &[plain, "cgroup2"])?;
    let nowhere = format!("{plain}/nowhere");
    let no_folder = sockeye_run(&["--manifests", &nowhere, "--cgroup", cgroup, "--bpffs", pins])?;
    check_refuses(&no_folder, &[&nowhere, "manifest"])?;
    let no_kubeconfig = sockeye_run(&["--kubeconfig", &nowhere, "--cgroup", cgroup, "--bpffs", pins])?;
    check_refuses(&no_kubeconfig, &[&nowhere, "kubeconfig"])?;
    let garbage = format!("{plain}/kubeconfig");
    fs::write(&garbage, "clusters: nonsense\n").context("writing a kubeconfig")?;
    let bad_kubeconfig = sockeye_run(&["--kubeconfig", &garbage, "--cgroup", cgroup, "--bpffs", pins])?;
    check_refuses(&bad_kubeconfig, &[&garbage])?;
    ensure!(!Path::new(pins).exists(), "a failed start has left {pins} behind");
    Ok(())
}

#[test]
fn without_privileges_it_says_which() -> Result<()> {
    let topology = Topology::new()?;
    let sockeye = Installation::on(&topology)?;
    let manifests = Manifests::examples()?;
    // setpriv drops the capabilities and stays root: files are readable, but the kernel refuses programs.
    let run_as_root = sockeye.run_command(&manifests.path())?;
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all", "--"]);
    command.arg(run_as_root.get_program()).args(run_as_root.get_args()).stdin(Stdio::null());
    let finished = run("sockeye run", command, topology.node_a.place(), wait::SOON)?;
    check_refuses(&finished, &["CAP_BPF", "CAP_NET_ADMIN", "root"])
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let command = cluster.sockeye.run_command(&cluster.manifests.path())?;
        let second = run("a second sockeye run", command, cluster.topology.node_a.place(), wait::SOON)?;
        check_refuses(&second, &["another agent"])?;
        cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;
        assert_eq!(cluster.sockeye.json(&["status"])?["state"], "ready");
        Ok(())
    })
}

#[test]
fn a_folder_that_goes_away_takes_nothing_with_it() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let folder = cluster.manifests.path();
        let away = folder.with_file_name("away");
        fs::rename(&folder, &away).context("moving the folder away")?;
        wait::until("the source to be unreachable", wait::SOON, || {
            let source = cluster.sockeye.status()?.source.context("no source in the status")?;
            Ok((!source.reachable).then_some(()))
        })?;
        cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;
        fs::rename(&away, &folder).context("moving the folder back")?;
        wait::until("the source to be reachable", wait::SOON, || {
            let source = cluster.sockeye.status()?.source.context("no source in the status")?;
            Ok(source.reachable.then_some(()))
        })?;
        cluster.sockeye.wait_no_problem()?;
        cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;
        Ok(())
    })
}
