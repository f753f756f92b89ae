//! Maglev: agents that have the same backends give a client the same one, whatever else they have seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    cluster::{Cluster, tcp},
    manifests::Manifests,
    probe::Reply,
    wait,
};

/// A node port of each family for UDP, and one that asks for Maglev at the socket too.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: hashed, namespace: default}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  ipFamilies: [IPv4, IPv6]
  ports: [{name: udp, protocol: UDP, port: 53, nodePort: 31953}]
---
apiVersion: v1
kind: Service
metadata: {name: pinned, namespace: default, annotations: {sockeye.io/algorithm: maglev}}
spec:
  clusterIP: 10.96.0.95
  ports: [{name: http, port: 80}]
";

fn slices(v4: &[&str], v6: &[&str]) -> String {
    let list = |addresses: &[&str]| {
        let items = addresses.iter().map(|address| format!("{{addresses: ['{address}']}}"));
        items.collect::<Vec<_>>().join(", ")
    };
    let slice = |service: &str, family: &str, port: &str, addresses: &[&str]| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {service}-{family}, namespace: default, labels: {{kubernetes.io/service-name: {service}}}}}\n\
             addressType: {family}\nports: [{port}]\nendpoints: [{}]\n",
            list(addresses)
        )
    };
    let udp = "{name: udp, protocol: UDP, port: 5353}";
    slice("hashed", "IPv4", udp, v4)
        + &slice("hashed", "IPv6", udp, v6)
        + &slice("pinned", "IPv4", "{name: http, protocol: TCP, port: 8080}", v4)
}

const V4: [&str; 3] = ["10.244.1.11", "10.244.1.12", "10.244.2.13"];
const V6: [&str; 3] = ["fd00:244:1::11", "fd00:244:1::12", "fd00:244:2::13"];

/// Which backend answers a client at each of these ports.
fn chosen(cluster: &Cluster<'_>) -> Result<BTreeMap<SocketAddr, String>> {
    let client = &cluster.topology.client;
    let mut chosen = BTreeMap::new();
    for (from, to) in client.addresses().into_iter().zip(cluster.topology.node_a.sockets(31_953)) {
        for port in 40_000..40_040 {
            let from = SocketAddr::new(from, port);
            let reply = client.netns.run(|| {
                let socket = UdpSocket::bind(from)?;
                socket.set_read_timeout(Some(wait::SOON))?;
                socket.connect(to)?;
                socket.send(b"?")?;
                let mut buffer = [0; 256];
                let length = socket.recv(&mut buffer)?;
                Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
            });
            let reply: Reply = reply.with_context(|| format!("{from} asks {to}"))?.parse()?;
            chosen.insert(from, reply.backend);
        }
    }
    Ok(chosen)
}

fn distinct<'a>(backends: impl Iterator<Item = &'a String>) -> BTreeSet<&'a str> {
    backends.map(String::as_str).collect()
}

#[test]
fn agents_with_different_histories_choose_the_same_backend_for_a_flow() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.write("services.yaml", SERVICES)?;
    manifests.write("slices.yaml", &slices(&V4, &V6))?;
    let mut first = BTreeMap::new();
    Cluster::with(&manifests, |cluster| {
        first = chosen(cluster)?;
        Ok(())
    })?;
    ensure!(distinct(first.values()) == BTreeSet::from(["pod1", "pod2", "pod3"]), "{first:?}");

    // Another agent, on maps of its own, meets the backends one after the other and among other services.
    let manifests = Manifests::examples()?;
    manifests.write("services.yaml", SERVICES)?;
    manifests.write("slices.yaml", &slices(&V4[2..], &V6[1..2]))?;
    Cluster::with(&manifests, |cluster| {
        let size = |frontend: &str, count: usize| {
            wait::until(&format!("{count} backends at {frontend}"), wait::SOON, || {
                let found = cluster.set_size(frontend.parse()?, Protocol::Udp)?;
                ensure!(found == count as u32, "{found} backends");
                Ok(Some(()))
            })
        };
        for (v4, v6) in [(vec![V4[2], V4[1]], vec![V6[0], V6[1]]), (vec![V4[2], V4[0], V4[1]], V6.to_vec())] {
            cluster.manifests.write("slices.yaml", &slices(&v4, &v6))?;
            size("0.0.0.0:31953", v4.len())?;
            size("[::]:31953", v6.len())?;
        }
        let second = chosen(cluster)?;
        ensure!(
            second == first,
            "{:?}",
            second.iter().zip(&first).filter(|(a, b)| a != b).collect::<Vec<_>>()
        );
        // And so does one that comes again.
        cluster.kill_agent()?;
        cluster.start_agent(&[])?;
        let third = chosen(cluster)?;
        ensure!(third == first, "after a restart");
        Ok(())
    })
}

#[test]
fn a_pod_keeps_its_backend_where_the_annotation_asks_for_maglev() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.write("services.yaml", SERVICES)?;
    manifests.write("slices.yaml", &slices(&V4, &V6))?;
    Cluster::with(&manifests, |cluster| {
        for pod in ["pod1", "pod2"] {
            let spread = cluster.prober(pod)?.spread(tcp("10.96.0.95:80")?, 40)?;
            ensure!(spread.len() == 1, "{pod}: {spread:?}");
        }
        manifests.write("services.yaml", &SERVICES.replace("algorithm: maglev", "algorithm: random"))?;
        wait::until("the choice to be random", wait::SOON, || {
            let spread = cluster.prober("pod1")?.spread(tcp("10.96.0.95:80")?, 40)?;
            ensure!(spread.len() == 3, "{spread:?}");
            Ok(Some(()))
        })?;
        manifests.write("services.yaml", &SERVICES.replace("algorithm: maglev", "algorithm: best"))?;
        cluster.sockeye.wait_problem(&["Service default/pinned", "sockeye.io/algorithm", "best"]).map(drop)
    })
}
