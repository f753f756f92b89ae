//! Which endpoints count: terminating and unready ones, hints, and a client's own.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lb_tests::{
    controlplane::kubelet::LINGERS,
    probe::{Kind, Target},
    wait,
};
use serde_json::{Value, json};

use crate::{
    case::{Case, http_port, names, pod, pod_on, service, service_without_selector},
    world::{Client, NODE, OTHER_NODE},
};

/// Both internal and both external policies, in turn: with a ready endpoint elsewhere, with terminating ones only, with
/// one of them only.
pub(crate) fn terminating_pods_are_the_last_resort(case: &mut Case<'_>) -> Result<()> {
    let lingering = |mut pod: Value| {
        pod["metadata"]["annotations"] = json!({ LINGERS: "true" });
        pod
    };
    let of_policies = |name: &str, internal: &str, external: &str| {
        let mut service = service(
            "web",
            json!({
                "type": "NodePort", "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
                "ports": [{ "port": 80, "targetPort": "http" }],
            }),
        );
        service["metadata"]["name"] = json!(name);
        service
    };
    case.apply(&[
        lingering(pod("near", "web", &http_port())),
        lingering(pod_on(OTHER_NODE, "far", "web", &http_port())),
        of_policies("cluster", "Cluster", "Cluster"),
        of_policies("local", "Local", "Local"),
    ])?;
    case.ready_pods("web", 2)?;
    let (cluster, local) = (case.service("cluster")?, case.service("local")?);
    let (internal, internal_local) = (cluster.at(80)?, local.at(80)?);
    // To clients on the node, the external policy is as if they came from outside to any node.
    let everywhere = [internal, cluster.node_ports(80)?[0], local.node_ports(80)?[0]];
    let check = |case: &Case<'_>, pods: &[&str], local: Option<&str>| -> Result<()> {
        for to in everywhere {
            case.world.both_reach(Kind::Tcp, to, &names(pods))?;
        }
        match local {
            Some(pod) => case.world.both_reach(Kind::Tcp, internal_local, &names(&[pod])),
            None => case.world.refused(Kind::Tcp, internal_local),
        }
    };
    check(case, &["near", "far"], Some("near"))?;
    case.kubectl.delete(&["pod", "near"])?;
    check(case, &["far"], Some("near"))?;
    case.kubectl.delete(&["pod", "far"])?;
    check(case, &["near", "far"], Some("near"))?;
    case.kubectl.delete(&["pod", "near", "--force", "--grace-period=0"])?;
    check(case, &["far"], None)
}

/// `publishNotReadyAddresses`, set and taken back; of terminating pods, too.
pub(crate) fn unready_pods_are_published_on_request(case: &mut Case<'_>) -> Result<()> {
    let mut leaving = pod("leaving", "web", &http_port());
    leaving["metadata"]["annotations"] = json!({ LINGERS: "true" });
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    case.apply(&[
        pod("unready", "web", &http_port()),
        leaving,
        service("web", json!({ "type": "NodePort", "ports": ports })),
    ])?;
    case.ready_pods("web", 2)?;
    for pod in ["unready", "leaving"] {
        case.set_ready(pod, false)?;
    }
    case.kubectl.delete(&["pod", "leaving"])?;
    let web = case.service("web")?;
    let [node_port, _] = web.node_ports(80)?;
    for publish in [false, true, false] {
        case.kubectl
            .patch(&["service", "web"], &json!({ "spec": { "publishNotReadyAddresses": publish } }))?;
        for to in [web.at(80)?, node_port] {
            if publish {
                case.world.both_reach(Kind::Tcp, to, &names(&["unready", "leaving"]))?;
            } else {
                case.world.refused(Kind::Tcp, to)?;
            }
        }
    }
    case.kubectl.delete(&["pod", "leaving", "--force", "--grace-period=0"])
}

/// Hints of zones and nodes, as the slices and the label of the node change.
pub(crate) fn hints_are_followed_as_nodes_and_slices_change(case: &mut Case<'_>) -> Result<()> {
    const ZONE: &str = "topology.kubernetes.io/zone";
    case.apply(&[pod("one", "pods", &http_port()), pod("two", "pods", &http_port())])?;
    case.ready_pods("pods", 2)?;
    let address = |name: &str| case.kubectl.run(&["get", "pod", name, "-o", "jsonpath={.status.podIP}"]);
    let (one, two) = (address("one")?, address("two")?);
    let slice = |first: Value, second: Value| {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "near", "labels": { "kubernetes.io/service-name": "near" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [one], "hints": first }, { "addresses": [two], "hints": second }],
            "ports": [{ "name": "", "port": 8080 }],
        })
    };
    let zone = |name: &str| json!({ "forZones": [{ "name": name }] });
    let node = |name: &str| json!({ "forNodes": [{ "name": name }] });
    let ports = json!({ "ports": [{ "port": 80 }] });
    case.apply(&[service_without_selector("near", &ports), slice(zone("east"), zone("west"))])?;
    let near = case.service("near")?.at(80)?;
    let label =
        |case: &Case<'_>, label: &str| case.kubectl.run(&["label", "--overwrite", "node", NODE, label]);
    let check = |case: &Case<'_>, pods: &[&str]| case.world.both_reach(Kind::Tcp, near, &names(pods));

    check(case, &["one", "two"])?;
    label(case, &format!("{ZONE}=east"))?;
    check(case, &["one"])?;
    label(case, &format!("{ZONE}=west"))?;
    check(case, &["two"])?;
    // One without a hint, and hints count for nothing.
    case.apply(&[slice(zone("west"), json!({}))])?;
    check(case, &["one", "two"])?;
    case.apply(&[slice(node(NODE), node(OTHER_NODE))])?;
    check(case, &["one"])?;
    case.apply(&[slice(zone("east"), zone("west"))])?;
    check(case, &["two"])?;
    label(case, &format!("{ZONE}-"))?;
    check(case, &["one", "two"])
}

/// At the cluster address and at the node port, from the node and from a pod.
pub(crate) fn session_affinity_is_switched_at_run_time(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    let pods = ["a", "b", "c"];
    case.apply(&pods.map(|name| pod(name, "web", &http_port())))?;
    case.apply(&[service(
        "web",
        json!({ "type": "NodePort", "sessionAffinity": "ClientIP", "ports": ports }),
    )])?;
    case.ready_pods("web", 3)?;
    let web = case.service("web")?;
    let places = [web.at(80)?, web.node_ports(80)?[0]];
    for affinity in ["ClientIP", "None", "ClientIP"] {
        case.kubectl.patch(&["service", "web"], &json!({ "spec": { "sessionAffinity": affinity } }))?;
        for client in [Client::Node, Client::Pod] {
            let mut chosen = BTreeSet::new();
            for to in places {
                if affinity == "None" {
                    case.world.reaches(client, Kind::Tcp, to, &names(&pods))?;
                    continue;
                }
                wait::until("one backend for the client", wait::SOON, || {
                    let spread = case.world.prober(client).spread(Target::new(Kind::Tcp, to), 30)?;
                    ensure!(spread.len() == 1, "{client:?} at {to}: {spread:?}");
                    chosen.extend(spread.into_keys());
                    Ok(Some(()))
                })?;
            }
            ensure!(chosen.len() <= 1, "{client:?} has another at the node port: {chosen:?}");
        }
    }
    Ok(())
}
