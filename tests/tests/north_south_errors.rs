//! What the network says of connections from outside: packets too big, closed ports, datagrams in parts.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, Result};
use lb_tests::{
    cluster::Cluster,
    dump::delta,
    manifests::Manifests,
    probe::{Kind, Request, Target},
    wait,
};

/// A Service with a backend on this node, one with a backend on another, and the same with ports that are closed there.
fn manifests() -> Result<Manifests> {
    let manifests = Manifests::new()?;
    for (name, node_port, [v4, v6], node, ports) in [
        ("here", 31001, ["10.244.1.11", "fd00:244:1::11"], "node-a", [8080, 5353]),
        ("elsewhere", 31002, ["10.244.2.13", "fd00:244:2::13"], "node-b", [8080, 5353]),
        ("closed-here", 31003, ["10.244.1.11", "fd00:244:1::11"], "node-a", [9, 9]),
        ("closed-elsewhere", 31004, ["10.244.2.13", "fd00:244:2::13"], "node-b", [9, 9]),
    ] {
        let [tcp, udp] = ports;
        let slices: String = [("4", "IPv4", v4), ("6", "IPv6", v6)]
            .map(|(suffix, family, address)| {
                format!(
                    "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{suffix}, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {family}
ports: [{{name: http, protocol: TCP, port: {tcp}}}, {{name: udp, protocol: UDP, port: {udp}}}]
endpoints: [{{addresses: ['{address}'], nodeName: {node}}}]
"
                )
            })
            .concat();
        let service = format!(
            "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports:
    - {{name: http, protocol: TCP, port: 80, nodePort: {node_port}}}
    - {{name: udp, protocol: UDP, port: 53, nodePort: {node_port}}}
"
        );
        manifests.write(&format!("{name}.yaml"), &(service + &slices))?;
    }
    Ok(manifests)
}

#[test]
fn a_client_learns_what_size_fits_on_the_way_to_a_backend_on_this_node() -> Result<()> {
    learns_what_size_fits(31001, "pod1")
}

#[test]
fn a_client_learns_what_size_fits_on_the_way_to_a_backend_on_another_node() -> Result<()> {
    learns_what_size_fits(31002, "pod3")
}

/// The way to each pod is narrower than any machine's device says: only ICMP errors tell.
///
/// A cluster of its own for each port: the client remembers for the node's address what it learned.
fn learns_what_size_fits(port: u16, backend: &str) -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        let t = cluster.topology;
        t.node_a.netns.ip("link set pod1 mtu 1300")?;
        t.node_b.netns.ip("link set pod3 mtu 1300")?;
        for to in t.node_a.sockets(port) {
            let before = cluster.outcomes()?;
            let target = Target::new(Kind::Tcp, to).within(Duration::from_secs(10));
            let answers = cluster.prober("client")?.answers(&Request::Transfer(target, 1 << 20))?;
            assert_eq!(answers.len(), 2);
            for (answer, way) in answers.iter().zip(["download", "upload"]) {
                assert_eq!(answer.backend().with_context(|| format!("{way} at {to}"))?, backend);
            }
            let counted = delta(&before, &cluster.outcomes()?);
            assert!(counted.get("error_translated") >= Some(&1), "{to}: {counted:?}");
        }
        Ok(())
    })
}

/// The way narrows on this node, where no stack looks at what is redirected.
#[test]
fn a_client_learns_what_size_fits_from_this_node() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        let t = cluster.topology;
        t.node_a.netns.ip(&format!(
            "route change 10.244.2.0/24 via {} mtu lock 1300\nroute change fd00:244:2::/64 via {} mtu lock 1300",
            t.node_b.v4, t.node_b.v6
        ))?;
        for to in t.node_a.sockets(31002) {
            let before = cluster.outcomes()?;
            let target = Target::new(Kind::Tcp, to).within(Duration::from_secs(10));
            let answers = cluster.prober("client")?.answers(&Request::Transfer(target, 1 << 20))?;
            assert_eq!(answers.len(), 2);
            for (answer, way) in answers.iter().zip(["download", "upload"]) {
                assert_eq!(answer.backend().with_context(|| format!("{way} at {to}"))?, "pod3");
            }
            let counted = delta(&before, &cluster.outcomes()?);
            assert!(counted.get("too_big") >= Some(&1), "{to}: {counted:?}");
        }
        Ok(())
    })
}

#[test]
fn a_client_learns_that_its_backend_does_not_listen() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        for port in [31003, 31004] {
            for to in cluster.topology.node_a.sockets(port) {
                let before = cluster.outcomes()?;
                let target = Target::new(Kind::Udp, to).within(Duration::from_secs(2));
                assert_eq!(cluster.ask("client", target)?.errno()?, "ECONNREFUSED", "{to}");
                let counted = delta(&before, &cluster.outcomes()?);
                assert_eq!(counted.get("error_translated"), Some(&1), "{to}: {counted:?}");
            }
        }
        Ok(())
    })
}

/// At an address that is not the node's no stack would refuse. Offloads off, so that real checksums are compared.
#[test]
fn a_service_without_endpoints_refuses_at_every_address() -> Result<()> {
    let manifests = manifests()?;
    manifests.write(
        "abandoned.yaml",
        "apiVersion: v1
kind: Service
metadata: {name: abandoned, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  externalIPs: [198.51.100.8, '2001:db8:100::8']
  ports:
    - {name: http, protocol: TCP, port: 80, nodePort: 31005}
    - {name: udp, protocol: UDP, port: 80, nodePort: 31005}
",
    )?;
    Cluster::with(&manifests, |cluster| {
        let external =
            ["198.51.100.8:80", "[2001:db8:100::8]:80"].map(|to| to.parse().map_err(anyhow::Error::from));
        let external = external.into_iter().collect::<Result<Vec<_>>>()?;
        let all = [&external[..], &cluster.topology.node_a.sockets(31005)].concat();
        for offloads in [true, false] {
            if !offloads {
                cluster.topology.switch_off_offloads()?;
            }
            for (kind, to) in
                [Kind::Tcp, Kind::Udp].into_iter().flat_map(|kind| all.iter().map(move |to| (kind, *to)))
            {
                let before = cluster.outcomes()?;
                let target = Target::new(kind, to).within(Duration::from_secs(2));
                assert_eq!(cluster.ask("client", target)?.errno()?, "ECONNREFUSED", "{target}");
                let counted = delta(&before, &cluster.outcomes()?);
                assert_eq!(counted.get("no_backends"), Some(&1), "{target}: {counted:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_datagram_in_parts_arrives() -> Result<()> {
    Cluster::with(&manifests()?, |cluster| {
        for port in [31001, 31002] {
            for to in cluster.topology.node_a.sockets(port) {
                let before = cluster.outcomes()?;
                let source = cluster.topology.client.netns.run(|| {
                    let socket = UdpSocket::bind((if to.is_ipv6() { "::" } else { "0.0.0.0" }, 0))?;
                    socket.set_read_timeout(Some(wait::SOON))?;
                    // Three parts of a path of 1,500 bytes.
                    socket.send_to(&[b'x'; 4000], to)?;
                    Ok(socket.recv_from(&mut [0; 4000]).context("no answer")?.1)
                })?;
                assert_eq!(source, to);
                let counted = delta(&before, &cluster.outcomes()?);
                assert_eq!(counted.get("flow_opened"), Some(&1), "{to}: {counted:?}");
                assert_eq!(counted.get("flow_forwarded"), Some(&2), "{to}: {counted:?}");
            }
        }
        Ok(())
    })
}
