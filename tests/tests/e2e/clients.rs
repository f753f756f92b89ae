//! What clients notice: their own address, themselves behind a Service, and datagrams across a change of pods.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    probe::{Kind, Request, Target},
    process::Place,
    server::Server,
    wait,
};
use serde_json::json;

use crate::{
    case::{Case, pod, service, service_without_selector},
    world::Client,
};

/// A pod that is a backend of the Service that it asks; and what other pods see of it.
pub(crate) fn a_pod_reaches_itself_and_keeps_its_address(case: &mut Case<'_>) -> Result<()> {
    const PORT: u16 = 8088;
    let client = &case.world.client_pod;
    let place = Place { netns: Some(&client.netns), cgroup: Some(&case.world.cgroup) };
    let ports = [(Protocol::Tcp, PORT), (Protocol::Udp, PORT)];
    let _server = Server::start("itself", place, &ports)?;
    let containers = json!([{ "containerPort": PORT }, { "containerPort": PORT, "protocol": "UDP" }]);
    let protocols = json!([
        { "name": "tcp", "port": 80, "targetPort": PORT },
        { "name": "udp", "port": 80, "targetPort": PORT, "protocol": "UDP" },
    ]);
    case.apply(&[
        pod("other", "other", &containers),
        service("other", json!({ "ports": protocols })),
        service_without_selector("itself", &json!({ "ports": protocols })),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "itself", "labels": { "kubernetes.io/service-name": "itself" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [client.v4.to_string()] }],
            "ports": [
                { "name": "tcp", "port": PORT, "protocol": "TCP" },
                { "name": "udp", "port": PORT, "protocol": "UDP" },
            ],
        }),
    ])?;
    case.ready_pods("other", 1)?;
    for name in ["itself", "other"] {
        let to = case.service(name)?.at(80)?;
        for kind in Kind::ALL {
            case.world.reaches(Client::Pod, kind, to, &[name.to_owned()].into())?;
            for answer in case.world.ask(Client::Pod, Target::new(kind, to), 3)? {
                let seen = answer.reply()?.client.ip();
                ensure!(seen == client.v4, "{name} saw {seen} instead of {}", client.v4);
            }
        }
    }
    Ok(())
}

/// Upstream's `Conntrack` tests: a client that goes on with one socket, at the cluster address and at the node port, from
/// a pod and from the node, while the pod behind is replaced; and one that was there before the first pod.
pub(crate) fn datagrams_go_on_when_the_pod_behind_them_is_replaced(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "containerPort": 8080, "protocol": "UDP" }]);
    let spec = json!({
        "type": "NodePort", "internalTrafficPolicy": "Local",
        "ports": [{ "port": 80, "targetPort": 8080, "protocol": "UDP" }],
    });
    case.apply(&[service("echo", spec)])?;
    let echo = case.service("echo")?;
    let places = [echo.at(80)?, echo.node_ports(80)?[0]];
    for to in places {
        case.world.refused(Kind::Datagram, to)?;
    }
    let talks = |number: usize| [(Client::Node, number as u32), (Client::Pod, 10 + number as u32)];
    // Each socket has sent once, in vain.
    for (number, to) in places.into_iter().enumerate() {
        for (client, id) in talks(number) {
            let answer =
                case.world.prober(client).answer(&Request::Open(id, Target::new(Kind::Datagram, to)))?;
            ensure!(answer.errno()? == "ECONNREFUSED", "{answer:?}");
        }
    }
    for name in ["first", "second", "third"] {
        case.apply(&[pod(name, "echo", &ports)])?;
        case.ready_pods("echo", 1)?;
        for (number, to) in places.into_iter().enumerate() {
            for (client, id) in talks(number) {
                wait_answered_by(case, client, id, to, name)?;
            }
        }
        case.kubectl.delete(&["pod", name])?;
    }
    Ok(())
}

/// Waits until the open socket is answered by that pod.
fn wait_answered_by(case: &Case<'_>, client: Client, id: u32, to: SocketAddr, pod: &str) -> Result<()> {
    wait::until(&format!("{client:?} at {to} to be answered by {pod}"), wait::SOON, || {
        let answer = case.world.prober(client).answer(&Request::Again(id, to))?;
        ensure!(answer.backend()? == pod && answer.source == Some(to), "{answer:?}");
        Ok(Some(()))
    })
}
