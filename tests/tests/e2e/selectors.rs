//! Services with selectors: what the cluster's own controllers make of Pods is what connections reach.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    controlplane::{API_PORT, KUBERNETES_SERVICE, kubelet::LINGERS},
    probe::{Kind, Target},
    process::{self, Place},
    wait,
};
use serde_json::json;

use crate::{
    case::{Case, deployment, http_port, names, pod, pod_on, service},
    world::{Client, OTHER_NODE},
};

pub(crate) fn pods_become_backends(case: &mut Case<'_>) -> Result<()> {
    case.apply(&[
        deployment(
            "web",
            2,
            &json!([{ "containerPort": 8080 }, { "containerPort": 5353, "protocol": "UDP" }]),
        ),
        service(
            "web",
            json!({ "ports": [
                { "name": "http", "port": 80, "targetPort": 8080 },
                { "name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP" },
            ] }),
        ),
    ])?;
    let pods = case.ready_pods("web", 2)?;
    let web = case.service("web")?;
    case.world.both_reach(Kind::Tcp, web.at(80)?, &pods)?;
    case.world.both_reach(Kind::Udp, web.at(53)?, &pods)?;
    case.world.both_reach(Kind::Datagram, web.at(53)?, &pods)
}

pub(crate) fn scaling_is_followed(case: &mut Case<'_>) -> Result<()> {
    case.apply(&[
        deployment("web", 1, &http_port()),
        service("web", json!({ "ports": [{ "port": 80, "targetPort": "http" }] })),
    ])?;
    let web = case.service("web")?.at(80)?;
    for replicas in [1, 3, 0, 2] {
        case.kubectl.run(&["scale", "deployment", "web", &format!("--replicas={replicas}")])?;
        let pods = case.ready_pods("web", replicas)?;
        if pods.is_empty() {
            case.world.refused(Kind::Tcp, web)?;
        } else {
            case.world.both_reach(Kind::Tcp, web, &pods)?;
        }
    }
    Ok(())
}

pub(crate) fn readiness_is_followed(case: &mut Case<'_>) -> Result<()> {
    case.apply(&[
        pod("a", "web", &http_port()),
        pod("b", "web", &http_port()),
        service("web", json!({ "ports": [{ "port": 80, "targetPort": "http" }] })),
    ])?;
    case.ready_pods("web", 2)?;
    let web = case.service("web")?.at(80)?;
    case.world.both_reach(Kind::Tcp, web, &names(&["a", "b"]))?;
    case.set_ready("a", false)?;
    case.world.both_reach(Kind::Tcp, web, &names(&["b"]))?;
    case.set_ready("b", false)?;
    case.world.refused(Kind::Tcp, web)?;
    case.set_ready("a", true)?;
    case.world.both_reach(Kind::Tcp, web, &names(&["a"]))
}

pub(crate) fn terminating_pods_serve_when_no_other_does(case: &mut Case<'_>) -> Result<()> {
    let mut leaving = pod("leaving", "web", &http_port());
    leaving["metadata"]["annotations"] = json!({ LINGERS: "true" });
    case.apply(&[
        leaving,
        pod("staying", "web", &http_port()),
        service("web", json!({ "ports": [{ "port": 80, "targetPort": "http" }] })),
    ])?;
    case.ready_pods("web", 2)?;
    let web = case.service("web")?.at(80)?;
    case.world.both_reach(Kind::Tcp, web, &names(&["leaving", "staying"]))?;
    case.kubectl.delete(&["pod", "leaving"])?;
    case.world.both_reach(Kind::Tcp, web, &names(&["staying"]))?;
    case.kubectl.delete(&["pod", "staying"])?;
    case.world.both_reach(Kind::Tcp, web, &names(&["leaving"]))?;
    case.kubectl.delete(&["pod", "leaving", "--force", "--grace-period=0"])?;
    case.world.refused(Kind::Tcp, web)
}

pub(crate) fn target_ports_are_found_by_name(case: &mut Case<'_>) -> Result<()> {
    let ports = |http: u16, admin: u16| {
        json!([
            { "name": "http", "containerPort": http },
            { "name": "admin", "containerPort": admin },
        ])
    };
    // Two Pods call different numbers by one name: the controller makes a slice for each.
    case.apply(&[
        pod("old", "web", &ports(8080, 9000)),
        pod("new", "web", &ports(8081, 9001)),
        service(
            "web",
            json!({ "ports": [
                { "name": "web", "port": 80, "targetPort": "http" },
                { "name": "manage", "port": 81, "targetPort": "admin" },
            ] }),
        ),
    ])?;
    case.ready_pods("web", 2)?;
    let web = case.service("web")?;
    for (port, old, new) in [(80, 8080, 8081), (81, 9000, 9001)] {
        let to = web.at(port)?;
        case.world.both_reach(Kind::Tcp, to, &names(&["old", "new"]))?;
        for answer in case.world.ask(Client::Pod, Target::new(Kind::Tcp, to), 10)? {
            let reply = answer.reply()?;
            let expected = if reply.backend == "old" { old } else { new };
            ensure!(reply.port == expected, "port {port} led to {reply}");
        }
    }
    Ok(())
}

pub(crate) fn one_number_serves_two_protocols(case: &mut Case<'_>) -> Result<()> {
    let both = json!([{ "containerPort": 53 }, { "containerPort": 53, "protocol": "UDP" }]);
    let tcp = json!({ "name": "tcp", "port": 53, "protocol": "TCP" });
    let udp = json!({ "name": "udp", "port": 53, "protocol": "UDP" });
    case.apply(&[pod("resolver", "dns", &both), service("dns", json!({ "ports": [tcp, udp] }))])?;
    case.ready_pods("dns", 1)?;
    let dns = case.service("dns")?.at(53)?;
    let resolver = names(&["resolver"]);
    case.world.both_reach(Kind::Tcp, dns, &resolver)?;
    case.world.both_reach(Kind::Udp, dns, &resolver)?;
    case.kubectl.patch(&["service", "dns"], &json!({ "spec": { "ports": [udp] } }))?;
    case.world.no_such_service(Kind::Tcp, dns)?;
    case.world.both_reach(Kind::Udp, dns, &resolver)
}

pub(crate) fn both_families_are_served(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    let mut six =
        service("web", json!({ "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"], "ports": ports }));
    six["metadata"]["name"] = json!("six");
    case.apply(&[
        deployment("web", 2, &http_port()),
        service("web", json!({ "ipFamilyPolicy": "RequireDualStack", "ports": ports })),
        six,
    ])?;
    let pods = case.ready_pods("web", 2)?;
    let web = case.service("web")?;
    let (v4, v6) = (web.address(0, 80)?, web.address(1, 80)?);
    ensure!(v4.is_ipv4() && v6.is_ipv6(), "the primary family is IPv4: {v4}, {v6}");
    for to in [v4, v6, case.service("six")?.at(80)?] {
        case.world.both_reach(Kind::Tcp, to, &pods)?;
    }
    for answer in case.world.ask(Client::Pod, Target::new(Kind::Tcp, v4).mapped(), 4)? {
        ensure!(pods.contains(answer.backend()?), "{answer:?}");
    }
    Ok(())
}

pub(crate) fn a_local_policy_keeps_to_the_node(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    case.apply(&[
        pod("near", "web", &http_port()),
        pod_on(OTHER_NODE, "far", "web", &http_port()),
        service("web", json!({ "ports": ports })),
    ])?;
    case.ready_pods("web", 2)?;
    let web = case.service("web")?.at(80)?;
    let policy = |case: &Case<'_>, policy: &str| {
        case.kubectl.patch(&["service", "web"], &json!({ "spec": { "internalTrafficPolicy": policy } }))
    };
    case.world.both_reach(Kind::Tcp, web, &names(&["near", "far"]))?;
    policy(case, "Local")?;
    case.world.both_reach(Kind::Tcp, web, &names(&["near"]))?;
    case.kubectl.delete(&["pod", "near"])?;
    case.world.refused(Kind::Tcp, web)?;
    policy(case, "Cluster")?;
    case.world.both_reach(Kind::Tcp, web, &names(&["far"]))
}

/// The API server's own Service: an HTTPS client checks whom it reached.
pub(crate) fn the_api_server_is_reached_at_its_service(case: &mut Case<'_>) -> Result<()> {
    let server = format!("--server=https://{KUBERNETES_SERVICE}");
    let place = Place { netns: Some(case.world.network.node()), cgroup: Some(&case.world.cgroup) };
    let limit = Duration::from_secs(30);
    wait::until("the API server at its Service's address", limit, || {
        let command = case.kubectl.command(&[&server, "get", "--raw", "/version"]);
        let answer = process::run("kubectl get /version", command, place, limit)?.success()?;
        ensure!(answer.contains("gitVersion"), "{answer}");
        Ok(Some(()))
    })
    .with_context(|| format!("it listens at port {API_PORT}"))
}
