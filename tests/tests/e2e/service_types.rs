//! The types of Services, and changes from one to another.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};
use lb_tests::probe::Kind;
use serde_json::json;

use crate::{
    case::{Case, deployment, http_port, names, pod, service, service_without_selector},
    world::Client,
};

pub(crate) fn node_ports_answer_at_the_node(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([
        { "name": "http", "port": 80, "targetPort": 8080 },
        { "name": "echo", "port": 7, "targetPort": 7, "protocol": "UDP" },
    ]);
    let containers = json!([{ "containerPort": 8080 }, { "containerPort": 7, "protocol": "UDP" }]);
    case.apply(&[
        deployment("web", 2, &containers),
        service("web", json!({ "type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "ports": ports })),
    ])?;
    let pods = case.ready_pods("web", 2)?;
    let web = case.service("web")?;
    case.world.both_reach(Kind::Tcp, web.at(80)?, &pods)?;
    for to in web.node_ports(80)? {
        case.world.both_reach(Kind::Tcp, to, &pods)?;
        // Loopback is for processes of the node.
        let loopback = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        case.world.reaches(Client::Node, Kind::Tcp, SocketAddr::new(loopback, to.port()), &pods)?;
    }
    for to in web.node_ports(7)? {
        case.world.both_reach(Kind::Udp, to, &pods)?;
    }
    Ok(())
}

pub(crate) fn load_balancer_and_external_ips_come_and_go(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    case.apply(&[
        deployment("web", 2, &http_port()),
        service("web", json!({ "type": "LoadBalancer", "externalIPs": ["198.51.100.77"], "ports": ports })),
    ])?;
    let pods = case.ready_pods("web", 2)?;
    let web = case.service("web")?;
    let (balancer, external): (SocketAddr, SocketAddr) =
        ("198.51.100.20:80".parse()?, "198.51.100.77:80".parse()?);
    case.world.both_reach(Kind::Tcp, external, &pods)?;
    case.world.not_a_service(Kind::Tcp, balancer)?;

    // What a cloud's controller does once the address is there.
    case.kubectl.patch_status(
        &["service", "web"],
        &json!({ "loadBalancer": { "ingress": [{ "ip": "198.51.100.20" }] } }),
    )?;
    case.world.both_reach(Kind::Tcp, balancer, &pods)?;
    case.world.both_reach(Kind::Tcp, web.at(80)?, &pods)?;
    let [node_port, _] = web.node_ports(80)?;
    case.world.both_reach(Kind::Tcp, node_port, &pods)?;

    case.kubectl.patch_status(&["service", "web"], &json!({ "loadBalancer": { "ingress": null } }))?;
    case.world.not_a_service(Kind::Tcp, balancer)?;
    case.kubectl.patch(&["service", "web"], &json!({ "spec": { "externalIPs": null } }))?;
    case.world.not_a_service(Kind::Tcp, external)?;
    case.world.both_reach(Kind::Tcp, web.at(80)?, &pods)
}

pub(crate) fn types_change_and_change_back(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    case.apply(&[pod("a", "web", &http_port()), service("web", json!({ "ports": ports }))])?;
    case.ready_pods("web", 1)?;
    let (web, a) = (["service", "web"], names(&["a"]));
    let first = case.service("web")?.at(80)?;
    case.world.both_reach(Kind::Tcp, first, &a)?;

    case.kubectl.patch(&web, &json!({ "spec": { "type": "NodePort" } }))?;
    let [node_port, _] = case.service("web")?.node_ports(80)?;
    case.world.both_reach(Kind::Tcp, node_port, &a)?;
    case.world.both_reach(Kind::Tcp, first, &a)?;

    let alias = json!({ "type": "ExternalName", "externalName": "example.org", "clusterIP": null, "clusterIPs": null });
    case.kubectl.patch(&web, &json!({ "spec": alias }))?;
    case.world.no_such_service(Kind::Tcp, first)?;
    // Nothing listens at the node's own port.
    case.world.refused(Kind::Tcp, node_port)?;

    case.kubectl
        .patch(&web, &json!({ "spec": { "type": "ClusterIP", "externalName": null, "ports": ports } }))?;
    let second = case.service("web")?.at(80)?;
    case.world.both_reach(Kind::Tcp, second, &a)?;

    case.kubectl.patch(&web, &json!({ "spec": { "type": "NodePort" } }))?;
    let [node_port, _] = case.service("web")?.node_ports(80)?;
    case.world.both_reach(Kind::Tcp, node_port, &a)?;
    case.kubectl.patch(&web, &json!({ "spec": { "type": "ClusterIP" } }))?;
    case.world.refused(Kind::Tcp, node_port)?;
    case.world.both_reach(Kind::Tcp, second, &a)
}

pub(crate) fn a_deleted_service_is_gone_and_may_come_back(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    case.apply(&[
        pod("a", "web", &http_port()),
        pod("b", "other", &http_port()),
        service("web", json!({ "ports": ports })),
    ])?;
    case.ready_pods("web", 1)?;
    case.ready_pods("other", 1)?;
    let web = case.service("web")?.at(80)?;
    case.world.both_reach(Kind::Tcp, web, &names(&["a"]))?;
    case.kubectl.delete(&["service", "web"])?;
    case.world.no_such_service(Kind::Tcp, web)?;
    // The same name and address, other Pods.
    case.apply(&[service(
        "web",
        json!({ "clusterIP": web.ip(), "selector": { "app": "other" }, "ports": ports }),
    )])?;
    case.world.both_reach(Kind::Tcp, web, &names(&["b"]))
}

pub(crate) fn a_headless_service_is_left_alone(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    let mut plain = service("web", json!({ "ports": ports }));
    plain["metadata"]["name"] = json!("plain");
    case.apply(&[
        pod("a", "web", &http_port()),
        service("web", json!({ "clusterIP": "None", "ports": ports })),
        plain,
    ])?;
    case.ready_pods("web", 1)?;
    // The second Service tells when the agent has seen both.
    let plain = case.service("plain")?.at(80)?;
    case.world.both_reach(Kind::Tcp, plain, &names(&["a"]))?;
    let services = case.world.agent.json(&["service", "list"])?.to_string();
    let namespace = &case.namespace;
    ensure!(services.contains(namespace), "the Service with an address is listed: {services}");
    ensure!(!services.contains(&format!("{namespace}/web")), "the headless one has no frontend: {services}");
    let problems = case.world.agent.status()?["problems"].to_string();
    ensure!(!problems.contains(namespace), "neither is a problem: {problems}");
    Ok(())
}

/// Ports are added, share a number, also as node ports, and are removed; the others stay.
pub(crate) fn ports_come_and_go_and_share_a_number(case: &mut Case<'_>) -> Result<()> {
    let port = |name: &str, number: u16, protocol: &str| json!({ "name": name, "port": number, "targetPort": 8080, "protocol": protocol });
    let containers = json!([{ "containerPort": 8080 }, { "containerPort": 8080, "protocol": "UDP" }]);
    let (first, second) = (port("first", 80, "TCP"), port("second", 81, "TCP"));
    let datagrams = port("datagrams", 80, "UDP");
    case.apply(&[pod("a", "web", &containers), service("web", json!({ "ports": [first] }))])?;
    case.ready_pods("web", 1)?;
    let (web, a) = (["service", "web"], names(&["a"]));
    let at = case.service("web")?;
    let (at_first, at_second) = (at.at(80)?, at.at(81)?);
    case.world.both_reach(Kind::Tcp, at_first, &a)?;
    case.kubectl.patch(&web, &json!({ "spec": { "ports": [first, second, datagrams] } }))?;
    case.world.both_reach(Kind::Tcp, at_second, &a)?;
    case.world.both_reach(Kind::Udp, at_first, &a)?;
    case.world.both_reach(Kind::Tcp, at_first, &a)?;
    case.kubectl.patch(&web, &json!({ "spec": { "ports": [second] } }))?;
    case.world.both_reach(Kind::Tcp, at_second, &a)?;
    case.world.no_such_service(Kind::Tcp, at_first)?;
    case.world.no_such_service(Kind::Udp, at_first)?;

    let with_number = |mut port: serde_json::Value| {
        port["nodePort"] = json!(31234);
        port
    };
    let both = json!([with_number(first), with_number(datagrams)]);
    case.kubectl.patch(&web, &json!({ "spec": { "type": "NodePort", "ports": both } }))?;
    let [node_port, _] = case.service("web")?.node_ports(80)?;
    for kind in Kind::ALL {
        case.world.both_reach(kind, node_port, &a)?;
        case.world.both_reach(kind, at_first, &a)?;
    }
    Ok(())
}

/// A Service of another proxy is none of ours, a slice of a headless one neither; the label counts where it belongs.
pub(crate) fn labels_hide_what_they_are_for(case: &mut Case<'_>) -> Result<()> {
    case.apply(&[pod("a", "pods", &http_port())])?;
    case.ready_pods("pods", 1)?;
    let address = case.kubectl.run(&["get", "pod", "a", "-o", "jsonpath={.status.podIP}"])?;
    case.apply(&[
        service_without_selector("web", &json!({ "ports": [{ "port": 80 }] })),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "web", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [address] }],
            "ports": [{ "name": "", "port": 8080 }],
        }),
    ])?;
    let (web, a) = (case.service("web")?.at(80)?, names(&["a"]));
    case.world.both_reach(Kind::Tcp, web, &a)?;
    let label = |case: &Case<'_>, kind: &str, label: &str| case.kubectl.run(&["label", kind, "web", label]);
    label(case, "service", "service.kubernetes.io/service-proxy-name=foo")?;
    case.world.not_a_service(Kind::Tcp, web)?;
    label(case, "service", "service.kubernetes.io/service-proxy-name-")?;
    case.world.both_reach(Kind::Tcp, web, &a)?;
    // On the Service it says nothing.
    label(case, "service", "service.kubernetes.io/headless=")?;
    label(case, "endpointslice", "service.kubernetes.io/headless=")?;
    case.world.refused(Kind::Tcp, web)?;
    label(case, "endpointslice", "service.kubernetes.io/headless-")?;
    case.world.both_reach(Kind::Tcp, web, &a)
}

/// `ipMode`, and a load balancer that needs no node ports.
pub(crate) fn balancers_say_which_addresses_are_theirs(case: &mut Case<'_>) -> Result<()> {
    let ports = json!([{ "port": 80, "targetPort": "http" }]);
    let spec = json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports });
    case.apply(&[pod("a", "web", &http_port()), service("web", spec)])?;
    case.ready_pods("web", 1)?;
    let (vip, proxied): (SocketAddr, SocketAddr) = ("198.51.100.21:80".parse()?, "198.51.100.22:80".parse()?);
    let web = case.service("web")?;
    ensure!(web.node_ports(80).is_err(), "it has a node port: {}", web.0);
    for (mode, other) in [("VIP", "Proxy"), ("Proxy", "VIP")] {
        let ingress = json!([{ "ip": vip.ip(), "ipMode": mode }, { "ip": proxied.ip(), "ipMode": other }]);
        case.kubectl.patch_status(&["service", "web"], &json!({ "loadBalancer": { "ingress": ingress } }))?;
        let (served, left) = if mode == "VIP" { (vip, proxied) } else { (proxied, vip) };
        case.world.both_reach(Kind::Tcp, served, &names(&["a"]))?;
        case.world.not_a_service(Kind::Tcp, left)?;
    }
    Ok(())
}
