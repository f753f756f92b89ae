//! Health check ports (`spec.healthCheckNodePort`): what a load balancer outside learns from the node under test.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::{
    cluster::Cluster,
    manifests::Manifests,
    topology::{NODE_DEVICE, Topology},
    wait,
};
use serde_json::{Value, json};

const FILE: &str = "probed.yaml";

/// A Service of IPv4 alone.
fn service(name: &str, policy: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  type: LoadBalancer\n  externalTrafficPolicy: {policy}\n  healthCheckNodePort: {port}\n  \
         ports: [{{name: http, port: 80}}, {{name: more, port: 81}}]\n"
    )
}

/// Its endpoints: `(address, node, conditions)`.
fn slice(service: &str, endpoints: &[(&str, &str, &str)]) -> String {
    let lines: Vec<_> = endpoints
        .iter()
        .map(|(address, node, conditions)| {
            format!("  - {{addresses: [{address}], nodeName: {node}, conditions: {{{conditions}}}}}\n")
        })
        .collect();
    let lines = lines.concat();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-1, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: IPv4\n\
         ports: [{{name: http, protocol: TCP, port: 8080}}, {{name: more, protocol: TCP, port: 9090}}]\n\
         endpoints:\n{lines}"
    )
}

const READY: &str = "ready: true";
const TERMINATING: &str = "ready: false, serving: true, terminating: true";
const POD1: &str = "10.244.1.11";
const POD2: &str = "10.244.1.12";
const POD3: &str = "10.244.2.13";

fn local(port: u16, endpoints: &[(&str, &str, &str)]) -> String {
    service("probed", "Local", port) + &slice("probed", endpoints)
}

/// What a balancer on the client's machine is answered.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: String,
    headers: Vec<String>,
    body: Value,
}

impl Answer {
    fn new(status: &str, service: &str, endpoints: u32) -> Self {
        Self {
            status: status.to_owned(),
            headers: [
                "content-type: application/json".to_owned(),
                "x-content-type-options: nosniff".to_owned(),
                format!("x-load-balancing-endpoint-weight: {endpoints}"),
            ]
            .into(),
            body: json!({
                "service": { "namespace": "default", "name": service },
                "localEndpoints": endpoints,
                "serviceProxyHealthy": true,
            }),
        }
    }
}

fn ask(topology: &Topology, to: SocketAddr) -> Result<Answer> {
    let text = topology.client.netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, wait::SOON).context("connecting")?;
        stream.set_read_timeout(Some(wait::SOON))?;
        stream.write_all(b"GET /any/path HTTP/1.1\r\nHost: node\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no head in {text:?}"))?;
    let mut lines = head.split("\r\n").map(str::to_lowercase);
    let status = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers: Vec<_> =
        lines.filter(|line| line.starts_with("content-type") || line.starts_with("x-")).collect();
    headers.sort();
    Ok(Answer {
        status,
        headers,
        body: serde_json::from_str(body).with_context(|| format!("the body {body:?}"))?,
    })
}

/// Waits until the node answers so at both its addresses.
fn answers(cluster: &Cluster<'_>, port: u16, expected: &Answer) -> Result<()> {
    for to in cluster.topology.node_a.sockets(port) {
        answers_at(cluster, to, expected)?;
    }
    Ok(())
}

fn answers_at(cluster: &Cluster<'_>, to: SocketAddr, expected: &Answer) -> Result<()> {
    wait::until(&format!("{to} to answer {expected:?}"), wait::SOON, || {
        let answer = ask(cluster.topology, to)?;
        ensure!(answer == *expected, "it answers {answer:?}");
        Ok(Some(()))
    })
}

/// Waits until nobody listens at both addresses of the node.
fn closed(cluster: &Cluster<'_>, port: u16) -> Result<()> {
    for to in cluster.topology.node_a.sockets(port) {
        closed_at(cluster, to)?;
    }
    Ok(())
}

fn closed_at(cluster: &Cluster<'_>, to: SocketAddr) -> Result<()> {
    wait::until(&format!("{to} to be closed"), wait::SOON, || {
        let connected =
            cluster.topology.client.netns.run(|| Ok(TcpStream::connect_timeout(&to, wait::SOON)))?;
        match connected {
            Ok(_) => bail!("somebody listens"),
            Err(error) => {
                ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "{error}");
                Ok(Some(()))
            }
        }
    })
}

fn serve(manifest: &str, test: impl FnOnce(&mut Cluster<'_>) -> Result<()>) -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write(FILE, manifest)?;
    Cluster::with(&manifests, test)
}

#[test]
fn ready_endpoints_of_the_node_count_and_nothing_else() -> Result<()> {
    serve(&local(31_900, &[(POD3, "node-b", READY)]), |cluster| {
        answers(cluster, 31_900, &Answer::new("503", "probed", 0))?;
        for (endpoints, status, count) in [
            (vec![(POD1, "node-a", READY), (POD3, "node-b", READY)], "200", 1),
            (vec![(POD1, "node-a", READY), (POD2, "node-a", READY)], "200", 2),
            (vec![(POD1, "node-a", READY), (POD2, "node-a", TERMINATING)], "200", 1),
            // The node serves on, but is given no new clients.
            (vec![(POD1, "node-a", TERMINATING), (POD3, "node-b", READY)], "503", 0),
        ] {
            cluster.manifests.write(FILE, &local(31_900, &endpoints))?;
            answers(cluster, 31_900, &Answer::new(status, "probed", count))
                .with_context(|| format!("with {endpoints:?}"))?;
        }
        let problems = cluster.sockeye.status()?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })
}

#[test]
fn policy_type_and_port_are_followed() -> Result<()> {
    let here = [(POD1, "node-a", READY)];
    let good = Answer::new("200", "probed", 1);
    serve(&local(31_900, &here), |cluster| {
        answers(cluster, 31_900, &good)?;
        cluster.manifests.write(FILE, &(service("probed", "Cluster", 31_900) + &slice("probed", &here)))?;
        closed(cluster, 31_900)?;
        cluster.manifests.write(FILE, &local(31_900, &here))?;
        answers(cluster, 31_900, &good)?;
        cluster.manifests.write(FILE, &local(31_901, &here))?;
        answers(cluster, 31_901, &good)?;
        closed(cluster, 31_900)?;
        let node_port = local(31_901, &here).replace("type: LoadBalancer", "type: NodePort");
        cluster.manifests.write(FILE, &node_port)?;
        closed(cluster, 31_901)?;
        cluster.manifests.write(FILE, &local(31_901, &here))?;
        answers(cluster, 31_901, &good)?;
        cluster.manifests.remove(FILE)?;
        closed(cluster, 31_901)
    })
}

#[test]
fn addresses_of_the_node_are_followed() -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write(FILE, &local(31_900, &[(POD1, "node-a", READY)]))?;
    Cluster::with_flags(&manifests, &["--nodeport-addresses", "all"], |cluster| {
        let good = Answer::new("200", "probed", 1);
        answers(cluster, 31_900, &good)?;
        let node = &cluster.topology.node_a.netns;
        for (prefix, to) in
            [("172.18.0.77/24", "172.18.0.77:31900"), ("fd00:18::77/64", "[fd00:18::77]:31900")]
        {
            let to = to.parse()?;
            let nodad = if prefix.contains(':') { "nodad" } else { "" };
            node.ip(&format!("addr add {prefix} dev {NODE_DEVICE} {nodad}"))?;
            answers_at(cluster, to, &good)?;
            node.ip(&format!("addr del {prefix} dev {NODE_DEVICE}"))?;
            // While it is away nobody can ask; once it is back, it is answered at again.
            node.ip(&format!("addr add {prefix} dev {NODE_DEVICE} {nodad}"))?;
            answers_at(cluster, to, &good)?;
        }
        answers(cluster, 31_900, &good)
    })
}

#[test]
fn an_agent_that_comes_again_answers_again() -> Result<()> {
    serve(&local(31_900, &[(POD1, "node-a", READY)]), |cluster| {
        let good = Answer::new("200", "probed", 1);
        for _ in 0..2 {
            answers(cluster, 31_900, &good)?;
            cluster.kill_agent()?;
            closed(cluster, 31_900)?;
            cluster.start_agent(&[])?;
        }
        answers(cluster, 31_900, &good)
    })
}

#[test]
fn a_taken_port_is_a_problem_of_the_service_until_it_is_free() -> Result<()> {
    serve(&local(31_900, &[(POD1, "node-a", READY)]), |cluster| {
        let good = Answer::new("200", "probed", 1);
        answers(cluster, 31_900, &good)?;
        let node = &cluster.topology.node_a;
        let taken = node.netns.run(|| Ok(TcpListener::bind((node.v4, 31_902))?))?;
        cluster.manifests.write(FILE, &local(31_902, &[(POD1, "node-a", READY)]))?;
        let words = ["Service default/probed", "spec.healthCheckNodePort", "172.18.0.2:31902"];
        cluster.sockeye.wait_problem(&words)?;
        let [_, v6] = node.sockets(31_902);
        answers_at(cluster, v6, &good).context("the other address is not held up")?;
        drop(taken);
        answers(cluster, 31_902, &good)?;
        cluster.sockeye.wait_no_problem()
    })
}

#[test]
fn of_two_services_with_one_port_the_first_answers_and_the_other_is_named() -> Result<()> {
    let here = [(POD1, "node-a", READY)];
    let second = service("second", "Local", 31_900);
    serve(&local(31_900, &here), |cluster| {
        cluster.manifests.write("second.yaml", &second)?;
        cluster.sockeye.wait_problem(&[
            "Service default/second: spec.healthCheckNodePort",
            "31900",
            "Service default/probed",
        ])?;
        answers(cluster, 31_900, &Answer::new("200", "probed", 1))?;
        cluster.manifests.remove(FILE)?;
        answers(cluster, 31_900, &Answer::new("503", "second", 0))?;
        cluster.sockeye.wait_no_problem()
    })
}
