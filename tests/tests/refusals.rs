//! Who is refused, how, and who is not: Local policies, and protocols that are not served.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{Cluster, tcp},
    dump::delta,
    manifests::{Manifests, endpoint_slice},
    probe::{Kind, Target},
    wait,
};

/// A dual-stack Service.
const FAR: &str = "
apiVersion: v1
kind: Service
metadata: {name: far, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIPs: [10.96.0.75, 'fd00:10:96::75']
  clusterIP: 10.96.0.75
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  ports:
    - {name: tcp, protocol: TCP, port: 80, nodePort: 30175}
    - {name: udp, protocol: UDP, port: 53, nodePort: 30175}
";

/// Its slices, with one endpoint each on one node.
fn far_slices(v4: &str, v6: &str, node: &str) -> String {
    let ports = "[{name: tcp, protocol: TCP, port: 8080}, {name: udp, protocol: UDP, port: 5353}]";
    endpoint_slice("far", ports, &[(v4, node)]) + &endpoint_slice("far", ports, &[(v6, node)])
}

/// TCP at one port, both kinds of UDP at another, at each address; v4-mapped too.
fn ways(addresses: &[&str], tcp: u16, udp: u16) -> Result<Vec<Target>> {
    let mut ways = Vec::new();
    for address in addresses {
        let ip = address.parse().with_context(|| format!("the address {address}"))?;
        for (kind, port) in [(Kind::Tcp, tcp), (Kind::Udp, udp), (Kind::Datagram, udp)] {
            let target = Target::new(kind, SocketAddr::new(ip, port));
            ways.push(target);
            ways.extend(ip.is_ipv4().then(|| target.mapped()));
        }
    }
    Ok(ways)
}

/// All are refused at once, for this reason.
fn check_refused(cluster: &Cluster<'_>, ways: &[Target], reason: &str) -> Result<()> {
    for from in ["pod1", "node-a"] {
        let before = cluster.outcomes()?;
        for target in ways {
            let answer = cluster.ask(from, *target)?;
            ensure!(answer.errno()? == "ECONNREFUSED", "{from}: {target}: {answer:?}");
            ensure!(answer.took < Duration::from_millis(500), "{from}: {target} took {:?}", answer.took);
        }
        let counted = delta(&before, &cluster.outcomes()?);
        ensure!(counted.get(reason) == Some(&(ways.len() as u64)), "{from}: {counted:?}");
    }
    Ok(())
}

#[test]
fn an_internal_local_policy_refuses_at_once_where_only_other_nodes_have_endpoints() -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests
        .write("far.yaml", &(FAR.to_owned() + &far_slices("10.244.2.13", "fd00:244:2::13", "node-b")))?;
    Cluster::with(&manifests, |cluster| {
        let cluster_ips = ways(&["10.96.0.75", "fd00:10:96::75"], 80, 53)?;
        check_refused(cluster, &cluster_ips, "no_local_backends")?;
        // The external policy is for clients outside: to those of the node it is as if they came from there and back.
        for target in ways(&["172.18.0.2", "fd00:18::2"], 30175, 30175)? {
            for from in ["pod1", "node-a"] {
                assert_eq!(cluster.ask(from, target)?.backend()?, "pod3", "{from}: {target}");
            }
        }
        // With the last endpoint gone it is another reason, and the node port refuses as well.
        let moved = far_slices("10.244.2.97", "fd00:244:2::13", "node-c");
        manifests.write("far.yaml", &(FAR.to_owned() + &moved))?;
        manifests.write("far.yaml", FAR)?;
        wait::until("the sets to be empty", wait::SOON, || {
            let left = cluster.ask("pod1", tcp("172.18.0.2:30175")?)?.reply.is_some();
            let left6 = cluster.ask("pod1", tcp("[fd00:18::2]:30175")?)?.reply.is_some();
            Ok((!left && !left6).then_some(()))
        })?;
        check_refused(cluster, &cluster_ips, "no_backends")?;
        check_refused(cluster, &ways(&["172.18.0.2", "fd00:18::2"], 30175, 30175)?, "no_backends")
    })
}

/// A dual-stack Service with all three protocols at one number, the unsupported one in the middle.
const SCTP: &str = "
apiVersion: v1
kind: Service
metadata: {name: signalling, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  clusterIPs: [10.96.0.76, 'fd00:10:96::76']
  clusterIP: 10.96.0.76
  externalIPs: [198.51.100.76]
  ports:
    - {name: tcp, protocol: TCP, port: 80, nodePort: 30176}
    - {name: sctp, protocol: SCTP, port: 80, nodePort: 30176}
    - {name: udp, protocol: UDP, port: 80, nodePort: 30176}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: signalling-4, namespace: default, labels: {kubernetes.io/service-name: signalling}}
addressType: IPv4
ports:
  - {name: sctp, protocol: SCTP, port: 8080}
  - {name: tcp, protocol: TCP, port: 8080}
  - {name: udp, protocol: UDP, port: 5353}
endpoints: [{addresses: [10.244.1.12], nodeName: node-a}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: signalling-6, namespace: default, labels: {kubernetes.io/service-name: signalling}}
addressType: IPv6
ports:
  - {name: sctp, protocol: SCTP, port: 8080}
  - {name: tcp, protocol: TCP, port: 8080}
  - {name: udp, protocol: UDP, port: 5353}
endpoints: [{addresses: ['fd00:244:1::12'], nodeName: node-a}]
";

#[test]
fn an_sctp_port_is_named_once_and_the_services_other_ports_work() -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write("sctp.yaml", SCTP)?;
    Cluster::with(&manifests, |cluster| {
        for _ in 0..2 {
            let problems = cluster.sockeye.status()?.problems;
            let named = problems.iter().map(|problem| (problem.object.as_str(), problem.field.as_str()));
            assert!(named.eq([("Service default/signalling", "spec.ports[1]")]), "{problems:#?}");
            assert!(problems[0].what.contains("SCTP"), "{problems:#?}");
            for (addresses, port) in [
                (&["10.96.0.76", "fd00:10:96::76", "198.51.100.76"][..], 80),
                (&["172.18.0.2", "fd00:18::2"], 30176),
            ] {
                for target in ways(addresses, port, port)? {
                    for from in ["pod1", "node-a"] {
                        assert_eq!(cluster.ask(from, target)?.backend()?, "pod2", "{from}: {target}");
                    }
                }
            }
            // A restart reads the same back.
            cluster.kill_agent()?;
            cluster.start_agent(&[])?;
        }
        // An object that becomes valid, and back: the problem goes and comes.
        manifests.write(
            "sctp.yaml",
            &SCTP.replace(
                "name: sctp, protocol: SCTP, port: 80, nodePort: 30176}",
                "name: sctp, protocol: TCP, port: 81}",
            ),
        )?;
        cluster.sockeye.wait_no_problem().context("without SCTP")?;
        manifests.write("sctp.yaml", SCTP)?;
        cluster.sockeye.wait_problem(&["default/signalling", "spec.ports[1]", "SCTP"])?;
        Ok(())
    })
}
