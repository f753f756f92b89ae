//! The command line, as an operator uses it: what it prints, its exit codes, and that it leaves nothing behind.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    agent::Installation,
    cluster::{Cluster, tcp},
    manifests::Manifests,
    process::{Place, run},
    topology::{NODE_DEVICE, Topology},
    wait,
};
use serde_json::Value;

/// Runs a tool of the system inside node-a.
fn tool(cluster: &Cluster<'_>, line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("an empty command")?);
    command.args(words);
    // Not in a cgroup of the node: it only looks.
    let place = Place { cgroup: None, ..cluster.topology.node_a.place() };
    run(line, command, place, wait::SOON)?.success()
}

#[test]
fn status_tells_what_runs_and_what_was_found() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;
        let finished = cluster.sockeye.sockeye(&["status"])?;
        assert_eq!(finished.status.code(), Some(0));
        for part in
            ["ready", "node-a", "172.18.0.2", "FRONTENDS", "connect_translated", "connect4", NODE_DEVICE]
        {
            assert!(finished.stdout.contains(part), "no {part} in\n{}", finished.stdout);
        }
        let status = cluster.sockeye.json(&["status"])?;
        assert_eq!(status["state"], "ready");
        assert_eq!(status["node"]["name"], "node-a");
        assert_eq!(status["problems"], Value::Array(Vec::new()));
        let features = status["kernel"]["features"].as_array().context("no features")?;
        assert!(!features.is_empty());
        for feature in features {
            assert!(feature["found"].is_boolean() && feature["name"].is_string(), "{feature}");
        }
        let attached: Vec<_> = status["attachments"].as_array().context("no attachments")?.iter().collect();
        for program in lb_common::config::programs::CGROUP {
            assert!(
                attached.iter().any(|a| a["program"] == program),
                "{program} is not attached: {attached:#?}"
            );
        }
        let yaml = cluster.sockeye.sockeye(&["status", "-o", "yaml"])?.success()?;
        assert!(yaml.contains("state: ready"), "{yaml}");
        Ok(())
    })
}

#[test]
fn lists_name_every_service_and_backend() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let table = cluster.sockeye.sockeye(&["service", "list"])?.success()?;
        for part in ["web", "10.96.0.10:80", "NodePort", "203.0.113.10:80", "3/2 of 5", "weather"] {
            assert!(table.contains(part), "no {part} in\n{table}");
        }
        let list = cluster.sockeye.json(&["service", "list"])?;
        let services = list["services"].as_array().context("no services")?;
        let names: Vec<_> = services.iter().filter_map(|service| service["name"].as_str()).collect();
        let expected =
            ["api", "chat", "database", "dns", "front", "game", "mirror", "shop", "weather", "web"];
        assert_eq!(names, expected);
        let find = |name: &str| services.iter().find(|service| service["name"] == name).context("not there");
        assert!(find("weather")?["skipped"].is_string());
        let endpoints = find("web")?["ports"][0]["endpoints"].as_array().context("no endpoints")?;
        let used = |endpoint: &&Value| endpoint["clusterSet"]["used"] == true;
        assert_eq!(endpoints.iter().filter(used).count(), 3, "{endpoints:#?}");
        for unused in endpoints.iter().filter(|endpoint| !used(endpoint)) {
            assert!(unused["clusterSet"]["reason"].is_string(), "why not is not told: {unused:#}");
        }
        let table = cluster.sockeye.sockeye(&["backend", "list"])?.success()?;
        for part in ["10.244.1.11:8080", "fd00:244:2::13", "172.18.0.20:5432", "default/web"] {
            assert!(table.contains(part), "no {part} in\n{table}");
        }
        // Not ready, or only there for the time when nobody else is.
        for part in ["10.244.2.99", "10.244.2.98"] {
            assert!(!table.contains(part), "{part} is in\n{table}");
        }
        Ok(())
    })
}

#[test]
fn without_an_agent_the_pinned_maps_are_shown() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        cluster.kill_agent()?;
        let finished = cluster.sockeye.sockeye(&["status"])?;
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        assert!(finished.stderr.contains("no agent answers on"), "{}", finished.stderr);
        let status = cluster.sockeye.json(&["status"])?;
        assert_eq!(status["state"], "notRunning");
        let table = cluster.sockeye.sockeye(&["service", "list"])?.success()?;
        assert!(table.contains("10.96.0.10:80") && table.contains("3/2 of 3"), "{table}");
        let table = cluster.sockeye.sockeye(&["backend", "list"])?.success()?;
        assert!(table.contains("10.244.2.13:8080"), "{table}");
        Ok(())
    })
}

#[test]
fn cleanup_waits_for_the_agent_and_then_leaves_nothing() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        cluster.ask("client", tcp("172.18.0.2:30080")?)?.backend()?;
        let refused = cluster.sockeye.sockeye(&["cleanup"])?;
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert_eq!(refused.stderr.trim().lines().count(), 1, "{}", refused.stderr);
        cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;

        cluster.kill_agent()?;
        let show = format!("bpftool --json cgroup show {}", cluster.sockeye.cgroup().display());
        assert!(tool(cluster, &show)?.contains("connect4"), "bpftool does not see what is attached");
        let removed = cluster.sockeye.sockeye(&["cleanup"])?.success()?;
        assert!(removed.contains("removed"), "{removed}");

        assert!(!cluster.sockeye.pin_path().exists());
        assert!(!cluster.sockeye.socket().exists());
        // Links end a moment after their last reference.
        wait::until("the cgroup's programs to be gone", wait::SOON, || {
            let left = tool(cluster, &show)?;
            ensure!(!left.contains("connect4"), "{left}");
            Ok(Some(()))
        })?;
        let left = tool(cluster, "bpftool --json net show")?;
        assert!(!left.contains("tc_ingress") && !left.contains("tc_egress"), "{left}");
        let left = tool(cluster, &format!("tc qdisc show dev {NODE_DEVICE}"))?;
        assert!(!left.contains("clsact"), "{left}");

        let again = cluster.sockeye.sockeye(&["cleanup"])?;
        assert_eq!(again.status.code(), Some(0));
        assert!(again.stderr.contains("nothing to remove"), "{}", again.stderr);
        // And it can begin again.
        cluster.start_agent(&[])?;
        cluster.ask("pod1", tcp("10.96.0.10:80")?)?.backend()?;
        Ok(())
    })
}

#[test]
fn load_attaches_and_prints_the_kernels_numbers() -> Result<()> {
    let topology = Topology::new()?;
    let sockeye = Installation::on(&topology)?;
    let mut command = sockeye.command(&["load"])?;
    command.arg("--cgroup").arg(sockeye.cgroup()).args(["--devices", NODE_DEVICE, "--pin"]);
    let said = run("sockeye load", command, topology.node_a.place(), wait::SOON)?.success()?;
    for part in ["connect4", "connect6", "FRONTENDS", "OUTCOMES", NODE_DEVICE] {
        assert!(said.contains(part), "no {part} in\n{said}");
    }
    assert!(sockeye.map_path("FRONTENDS").exists());
    sockeye.sockeye(&["cleanup"])?.success()?;
    assert!(!sockeye.pin_path().exists());
    Ok(())
}

#[test]
fn version_and_a_wrong_flag() -> Result<()> {
    let sockeye = lb_tests::process::program("sockeye")?;
    let sockeye = |arguments: &[&str]| {
        let mut command = Command::new(&sockeye);
        command.args(arguments);
        run("sockeye", command, Place::default(), wait::SOON)
    };
    let version = sockeye(&["version", "-o", "json"])?.success()?;
    let version: Value = serde_json::from_str(&version)?;
    assert!(version["version"].is_string() && version["layoutVersion"].is_number(), "{version}");
    let wrong = sockeye(&["run", "--manifest", "x"])?;
    assert_eq!(wrong.status.code(), Some(2));
    assert!(wrong.stderr.contains("--manifests"), "{}", wrong.stderr);
    Ok(())
}
