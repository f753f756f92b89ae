//! Settings of the node that are in the way of clients outside.

use anyhow::Result;
use lb_tests::{cluster::Cluster, manifests::Manifests};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: high, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.96
  ports: [{name: web, protocol: TCP, port: 80, nodePort: 61070}]
";

#[test]
fn a_setting_in_the_way_is_named_until_it_is_mended() -> Result<()> {
    let manifests = Manifests::new()?;
    Cluster::with(&manifests, |cluster| {
        let (sockeye, node) = (&cluster.sockeye, &cluster.topology.node_a.netns);
        sockeye.wait_no_problem()?;
        for (name, bad, good) in [
            ("net/ipv4/ip_forward", "0", "1"),
            ("net/ipv6/conf/all/forwarding", "0", "1"),
            ("net/ipv4/conf/eth0/forwarding", "0", "1"),
            ("net/ipv4/ip_local_port_range", "32768 65535", "32768 60999"),
        ] {
            node.set_sysctls(&[(name, bad)])?;
            sockeye.wait_problem(&[&format!("sysctl {name}")])?;
            node.set_sysctls(&[(name, good)])?;
            sockeye.wait_no_problem()?;
        }
        manifests.write("high.yaml", SERVICE)?;
        sockeye.wait_problem(&[
            "Service default/high",
            "spec.ports[web].nodePort",
            "61070",
            "61000-65535",
        ])?;
        manifests.remove("high.yaml")?;
        sockeye.wait_no_problem()
    })
}
