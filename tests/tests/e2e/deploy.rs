//! What operators apply: valid, enough, and not more than needed. The world has applied it, and the agent has the
//! identity that it makes.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cgroup::Cgroup,
    probe::{Kind, Prober, Target},
    process::{self, Place, Process},
    wait,
};
use serde_json::json;

use crate::{
    case::{Case, http_port, names, pod, service},
    container::Container,
    world::deploy_folder,
};

/// Where the agent's objects are.
const NAMESPACE: &str = "sockeye-system";

pub(crate) fn manifests_are_valid(case: &mut Case<'_>) -> Result<()> {
    for (folder, object) in [("", "daemonset.apps/sockeye"), ("cleanup", "daemonset.apps/sockeye-cleanup")] {
        // Unknown, doubled and deprecated fields are errors.
        let strict = ["apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-k"];
        let path = deploy_folder().join(folder).display().to_string();
        let applied = case.world.plane.kubectl().run(&[&strict[..], &[&path]].concat())?;
        ensure!(applied.contains(object), "{applied}");
    }
    Ok(())
}

/// Tainted nodes and nodes that are not ready included: one without an agent has no Services.
pub(crate) fn every_node_gets_an_agent(case: &mut Case<'_>) -> Result<()> {
    let kubectl = case.kubectl.in_namespace(NAMESPACE);
    kubectl.run(&["taint", "node", "node-b", "--overwrite", "dedicated=gpu:NoExecute"])?;
    wait::until("a pod for every node", wait::SOON, || {
        let wanted = kubectl.get(&["daemonset", "sockeye"])?["status"]["desiredNumberScheduled"].take();
        ensure!(wanted == 2, "{wanted} of 2 nodes");
        Ok(Some(()))
    })?;
    kubectl.run(&["taint", "node", "node-b", "dedicated-"]).map(drop)
}

pub(crate) fn the_agent_can_only_read(case: &mut Case<'_>) -> Result<()> {
    let kubectl = case.world.plane.kubectl_as("agent");
    for resource in ["services", "endpoints", "nodes", "endpointslices.discovery.k8s.io"] {
        for (verb, wanted) in [
            ("get", true),
            ("list", true),
            ("watch", true),
            ("create", false),
            ("patch", false),
            ("update", false),
            ("delete", false),
        ] {
            // Exits with 1 for "no".
            let allowed = kubectl.run(&["auth", "can-i", "--all-namespaces", verb, resource]).is_ok();
            ensure!(allowed == wanted, "can {verb} {resource}: {allowed}");
        }
    }
    ensure!(kubectl.run(&["get", "secrets", "--all-namespaces"]).is_err(), "it can read secrets");
    Ok(())
}

/// What a kubelet would make of the DaemonSet, without an image: its mounts, its account, its environment, its command line
/// and its probe.
pub(crate) fn an_agent_runs_as_the_daemonset_says(case: &mut Case<'_>) -> Result<()> {
    case.apply(&[
        pod("a", "web", &http_port()),
        service("web", json!({ "ports": [{ "port": 80, "targetPort": "http" }] })),
    ])?;
    case.ready_pods("web", 1)?;
    let web = case.service("web")?.at(80)?;

    let cgroup = Cgroup::new("container")?;
    let netns = case.world.network.node();
    let container = Container::new(
        &case.world.plane,
        NAMESPACE,
        &case.world.dir.path().join("container"),
        cgroup.path(),
    )?;
    let agent =
        Process::spawn("the container", container.command()?, Place { netns: Some(netns), cgroup: None })?;
    wait::until("the readiness probe to succeed", wait::SOON, || {
        let probe = container.probe(agent.id())?;
        process::run("the readiness probe", probe, Place::default(), wait::SOON)?.success().map(Some)
    })
    .with_context(|| container.log())?;
    let client = Prober::start("the container's node", Place { netns: Some(netns), cgroup: Some(&cgroup) })?;
    wait::until("the container to translate", wait::SOON, || {
        let spread = client.spread(Target::new(Kind::Tcp, web), 4)?;
        ensure!(spread.into_keys().collect::<BTreeSet<_>>() == names(&["a"]), "somebody else answers");
        Ok(Some(()))
    })
    .with_context(|| container.log())
}
