//! Processes of the host that hold a node port since before it came into use.

use anyhow::{Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{cluster::Cluster, manifests::Manifests, server::Server};

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: late, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.95
  ports:
    - {name: web, protocol: TCP, port: 80, nodePort: 30070}
    - {name: dns, protocol: UDP, port: 53, nodePort: 30071}
    - {name: free, protocol: TCP, port: 81, nodePort: 30072}
";

#[test]
fn a_socket_that_was_bound_before_is_named_until_it_or_the_node_port_goes() -> Result<()> {
    let manifests = Manifests::new()?;
    Cluster::with(&manifests, |cluster| {
        let node = cluster.topology.node_a.place();
        let web = Server::start("squatter-web", node, &[(Protocol::Tcp, 30070)])?;
        let _dns = Server::start("squatter-dns", node, &[(Protocol::Udp, 30071)])?;
        // Of no protocol of this port, and in a pod.
        let _other = Server::start("other", node, &[(Protocol::Udp, 30072)])?;
        let _pod = Server::start("pod", cluster.topology.pod1.place(), &[(Protocol::Tcp, 30072)])?;
        cluster.sockeye.wait_no_problem()?;

        manifests.write("late.yaml", SERVICE)?;
        let line = cluster.sockeye.wait_problem(&[
            "Service default/late",
            "spec.ports[web].nodePort",
            "(backend)",
            "30070",
        ])?;
        cluster.sockeye.wait_problem(&["Service default/late", "spec.ports[dns].nodePort", "30071"])?;
        ensure!(line.contains("0.0.0.0:30070"), "{line}");
        let problems = cluster.sockeye.status()?.problems;
        ensure!(problems.iter().all(|problem| !problem.field.contains("free")), "{problems:#?}");

        web.stop()?;
        cluster.sockeye.wait_no_problem_with(&["spec.ports[web].nodePort"])?;
        cluster.sockeye.wait_problem(&["spec.ports[dns].nodePort"])?;
        manifests.remove("late.yaml")?;
        cluster.sockeye.wait_no_problem()
    })
}
