//! What happens while the API server or the agent is away: connections go on, and what was missed is made up for,
//! removals included.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{cgroup::Cgroup, probe::Kind, wait};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    agent::Agent,
    case::{Case, deployment, http_port, service},
};

/// The Services that a test begins with, each with Pods of its own.
struct Before {
    /// It gets more Pods.
    changing: (SocketAddr, BTreeSet<String>),
    /// It is deleted.
    leaving: (SocketAddr, BTreeSet<String>),
}

pub(crate) fn a_killed_agent_makes_up_for_what_it_missed(case: &mut Case<'_>) -> Result<()> {
    let before = begin(case)?;
    case.world.agent.kill();
    unchanged(case, &before)?;
    change(case)?;
    case.world.agent.start()?;
    case.world.agent.wait_ready()?;
    changed(case, &before)
}

pub(crate) fn changes_apply_after_an_outage_of_the_api_server(case: &mut Case<'_>) -> Result<()> {
    let before = begin(case)?;
    case.world.plane.stop_api_server();
    case.world
        .agent
        .wait_status("the API server is away", |status| status["source"]["reachable"] == false)?;
    unchanged(case, &before)?;
    case.world.plane.start_api_server()?;
    case.world
        .agent
        .wait_status("the API server is there", |status| status["source"]["reachable"] == true)?;
    unchanged(case, &before)?;
    change(case)?;
    changed(case, &before)
}

/// The agent sleeps while the API server restarts, Services change, and etcd drops the revision that the agent knows: its
/// watches get 410 Gone.
pub(crate) fn a_watch_that_is_too_old_starts_anew(case: &mut Case<'_>) -> Result<()> {
    let before = begin(case)?;
    let seen = case.service("leaving")?.0["metadata"]["resourceVersion"].take();
    case.world.agent.signal(Signal::SIGSTOP)?;
    case.world.plane.stop_api_server();
    case.world.plane.start_api_server()?;
    change(case)?;
    let old = format!(
        "/api/v1/services?limit=1&resourceVersionMatch=Exact&resourceVersion={}",
        seen.as_str().context("no resourceVersion")?
    );
    wait::until("revision to be compacted", Duration::from_secs(30), || {
        let error = case.kubectl.run(&["get", "--raw", &old]).err().context("it is still there")?;
        ensure!(format!("{error:#}").contains("too old"), "{error:#}");
        Ok(Some(()))
    })?;
    case.world.agent.signal(Signal::SIGCONT)?;
    changed(case, &before)?;
    case.world.agent.wait_status("ready", |status| status["state"] == "ready")
}

/// A second agent, with nothing pinned, on a cgroup of its own.
pub(crate) fn an_agent_may_start_before_the_api_server(case: &mut Case<'_>) -> Result<()> {
    let before = begin(case)?;
    case.world.plane.stop_api_server();
    let cgroup = Arc::new(Cgroup::new("second")?);
    let world = &mut *case.world;
    let mut second = Agent::new(
        Arc::clone(world.network.node()),
        cgroup,
        world.dir.path(),
        &world.plane.kubeconfig("agent"),
    )?;
    second.start()?;
    second.wait_status("waiting", |status| {
        status["state"] == "waiting" && status["source"]["reachable"] == false
    })?;
    world.plane.start_api_server()?;
    second.wait_ready()?;
    let services = second.json(&["service", "list"])?.to_string();
    ensure!(services.contains(&before.changing.0.ip().to_string()), "{services}");
    Ok(())
}

pub(crate) fn a_wrong_kubeconfig_is_named(case: &mut Case<'_>) -> Result<()> {
    let dir = case.world.dir.path().to_owned();
    let missing = dir.join("missing.kubeconfig");
    let garbage = dir.join("garbage.kubeconfig");
    fs::write(&garbage, "clusters: {").context("a file")?;
    let empty = dir.join("empty.kubeconfig");
    fs::write(&empty, "apiVersion: v1\nkind: Config\n").context("a file")?;
    for path in [&missing, &garbage, &empty] {
        let mut agent = stranger(case, path)?;
        agent.start()?;
        let status = wait::until("the agent to end", wait::SOON, || agent.ended())?;
        ensure!(!status.success(), "it ended well: {}", agent.describe());
        let name = path.display().to_string();
        ensure!(agent.log().contains(&name), "its log does not name {name}: {}", agent.describe());
    }

    // A right file with a wrong key: the API server says no. It may say yes later.
    let path = case.world.plane.write_kubeconfig("stranger", &json!({ "token": "no such token" }))?;
    let mut agent = stranger(case, &path)?;
    agent.start()?;
    agent.wait_status("a problem that tells what the API server says", |status| {
        status["state"] == "waiting" && status["problems"].to_string().contains("Unauthorized")
    })?;
    ensure!(agent.ended()?.is_none(), "it ended: {}", agent.describe());
    Ok(())
}

fn stranger(case: &Case<'_>, kubeconfig: &Path) -> Result<Agent> {
    let cgroup = Arc::new(Cgroup::new("stranger")?);
    Agent::new(Arc::clone(case.world.network.node()), cgroup, case.world.dir.path(), kubeconfig)
}

/// Two Services that reach their Pods.
fn begin(case: &mut Case<'_>) -> Result<Before> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    let reach = |app: &str| {
        case.apply(&[deployment(app, 1, &http_port()), service(app, json!({ "ports": ports }))])?;
        anyhow::Ok((case.service(app)?.at(80)?, case.ready_pods(app, 1)?))
    };
    let before = Before { changing: reach("changing")?, leaving: reach("leaving")? };
    unchanged(case, &before)?;
    Ok(before)
}

fn unchanged(case: &Case<'_>, before: &Before) -> Result<()> {
    for (to, pods) in [&before.changing, &before.leaving] {
        case.world.both_reach(Kind::Tcp, *to, pods)?;
    }
    Ok(())
}

/// Changes one Service's Pods, deletes the other one, makes a third.
fn change(case: &Case<'_>) -> Result<()> {
    case.kubectl.run(&["scale", "deployment", "changing", "--replicas=3"])?;
    case.kubectl.delete(&["service", "leaving"])?;
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    case.apply(&[deployment("coming", 1, &http_port()), service("coming", json!({ "ports": ports }))])
}

fn changed(case: &Case<'_>, before: &Before) -> Result<()> {
    case.world.both_reach(Kind::Tcp, before.changing.0, &case.ready_pods("changing", 3)?)?;
    case.world.no_such_service(Kind::Tcp, before.leaving.0)?;
    case.world.both_reach(Kind::Tcp, case.service("coming")?.at(80)?, &case.ready_pods("coming", 1)?)
}
