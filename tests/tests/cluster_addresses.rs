//! Cluster addresses that are no frontend: refused, unless they are another proxy's.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    cluster::{Cluster, target, tcp},
    dump::delta,
    manifests::{Manifests, endpoint_slice},
    probe::{Kind, Request, Target},
    wait,
};

/// A Service at an address of its own in each family, for HTTP and datagrams at port 80.
fn live() -> String {
    let ports = "[{name: http, protocol: TCP, port: 8080}, {name: udp, protocol: UDP, port: 5353}]";
    "apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIPs: [10.96.0.60, 'fd00:10:96::60']
  ports:
    - {name: http, protocol: TCP, port: 80}
    - {name: udp, protocol: UDP, port: 80}
"
    .to_owned()
        + &endpoint_slice("web", ports, &[("10.244.1.11", "node-a")])
        + &endpoint_slice("web", ports, &[("fd00:244:1::11", "node-a")])
}

/// A Service at an address that the database answers at, too, as if another proxy led there; `labels` gives it to that.
fn moving(labels: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: moving, namespace: default, labels: {{{labels}}}}}
spec: {{clusterIP: 10.96.0.77, ports: [{{port: 5432}}]}}
"
    ) + &endpoint_slice("moving", "[{name: '', protocol: TCP, port: 8080}]", &[("10.244.1.12", "node-a")])
}

const THEIRS: &str = "service.kubernetes.io/service-proxy-name: other";

/// The address of the moving Service leads to the database, where no program translates it.
fn lead_to_the_database(cluster: &Cluster<'_>) -> Result<()> {
    let (node, database) = (cluster.machine("node-a")?, cluster.machine("database")?);
    database.netns.ip("addr add 10.96.0.77/32 dev eth0")?;
    node.netns.ip(&format!("route add 10.96.0.77/32 via {}", database.v4))
}

/// Every way to these addresses is refused, and counted as that.
fn check_refused(cluster: &Cluster<'_>, from: &str, addresses: &[&str]) -> Result<()> {
    check_refused_to(&Kind::ALL, cluster, from, addresses)
}

fn check_refused_to(kinds: &[Kind], cluster: &Cluster<'_>, from: &str, addresses: &[&str]) -> Result<()> {
    let before = cluster.outcomes()?;
    let mut asked = 0;
    for address in addresses {
        for kind in kinds.iter().copied() {
            let target = target(kind, address)?;
            for target in [Some(target), target.to.is_ipv4().then(|| target.mapped())].into_iter().flatten() {
                let answer = cluster.ask(from, target)?;
                let errno = answer.errno().with_context(|| format!("{from}: {target}"))?;
                ensure!(errno == "ECONNREFUSED", "{from}: {target}: {errno}");
                asked += 1;
            }
        }
    }
    let counted = delta(&before, &cluster.outcomes()?);
    ensure!(counted.get("no_such_service") == Some(&asked), "{asked} times: {counted:?}");
    Ok(())
}

#[test]
fn other_ports_of_a_service_and_addresses_of_none_are_refused_at_the_socket() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.write("web.yaml", &live())?;
    Cluster::with(&manifests, |cluster| {
        for from in ["pod1", "pod2", "node-a"] {
            check_refused(cluster, from, &["10.96.0.60:81", "[fd00:10:96::60]:81"])?;
            check_refused(cluster, from, &["10.96.99.99:80", "[fd00:10:96::9999]:80"])?;
            for address in ["10.96.0.60:80", "[fd00:10:96::60]:80"] {
                for kind in Kind::ALL {
                    assert_eq!(cluster.ask(from, target(kind, address)?)?.backend()?, "pod1");
                }
            }
            // What is no cluster address is nobody's business.
            assert_eq!(cluster.ask(from, tcp("172.18.0.20:5432")?)?.backend()?, "database");
        }
        // A Service that comes later takes its address over.
        manifests.write("late.yaml", &moving("a: b").replace("10.96.0.77", "10.96.99.99"))?;
        let late = tcp("10.96.99.99:5432")?;
        wait::until("the late Service", wait::SOON, || {
            Ok(Some(cluster.ask("pod1", late)?.reply()?.clone()))
        })?;
        check_refused(cluster, "pod1", &["10.96.99.99:80"])
    })
}

#[test]
fn more_networks_come_as_objects() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.write("web.yaml", &live())?;
    Cluster::with(&manifests, |cluster| {
        let elsewhere = target(Kind::Datagram, "10.97.0.1:80")?.within(Duration::from_millis(200));
        let before = cluster.ask("pod1", elsewhere)?;
        assert_ne!(before.errno()?, "ECONNREFUSED", "{before:?}");
        let object = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\n";
        manifests.write("more.yaml", &format!("{object}spec: {{cidrs: [10.97.0.0/16]}}\n"))?;
        wait::until("the network to count", wait::SOON, || {
            Ok((cluster.ask("pod1", elsewhere)?.errno()? == "ECONNREFUSED").then_some(()))
        })?;
        check_refused(cluster, "pod1", &["10.97.0.1:80"])
    })
}

#[test]
fn a_service_moves_to_another_proxy_and_back_without_a_refused_connect() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.write("moving.yaml", &moving(THEIRS))?;
    Cluster::with(&manifests, |cluster| {
        lead_to_the_database(cluster)?;
        let moving_at: SocketAddr = "10.96.0.77:5432".parse()?;
        let to = Target::new(Kind::Tcp, moving_at);
        for from in ["pod1", "node-a"] {
            let before = cluster.outcomes()?;
            let answer = cluster.ask(from, to)?;
            assert_eq!((answer.backend()?, answer.peer), ("database", Some(moving_at)));
            let counted = delta(&before, &cluster.outcomes()?);
            assert_eq!(counted.get("connect_translated"), None, "{counted:?}");
        }
        for from in ["pod1", "node-a"] {
            cluster.prober(from)?.answers(&Request::StartLoop(vec![to]))?;
        }
        for _ in 0..5 {
            for (labels, backend) in [("a: b", "pod2"), (THEIRS, "database")] {
                manifests.write("moving.yaml", &moving(labels))?;
                wait::until("the Service to move", wait::SOON, || {
                    Ok((cluster.ask("pod2", to)?.backend()? == backend).then_some(()))
                })?;
            }
        }
        for from in ["pod1", "node-a"] {
            let report = cluster.prober(from)?.stop_loop()?;
            assert_eq!(report.failed, 0, "{from}: {report:?}");
            assert_eq!(report.backends.keys().collect::<Vec<_>>(), ["database", "pod2"], "{report:?}");
        }
        let outcomes = cluster.outcomes()?;
        assert_eq!(outcomes.get("no_such_service").copied().unwrap_or(0), 0, "{outcomes:?}");
        // Another port of another proxy's address is that one's business, too.
        let other_port = target(Kind::Tcp, "10.96.0.77:5433")?;
        assert_eq!(cluster.ask("pod1", other_port)?.errno()?, "ECONNREFUSED");
        let counted = delta(&outcomes, &cluster.outcomes()?);
        assert_eq!(counted.get("no_such_service"), None, "refused by the database itself: {counted:?}");
        Ok(())
    })
}

#[test]
fn packets_from_outside_to_no_service_are_answered() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.write("web.yaml", &live())?;
    Cluster::with(&manifests, |cluster| {
        let (client, node) = (cluster.machine("client")?, cluster.machine("node-a")?);
        client.netns.ip(&format!(
            "route add 10.96.0.0/16 via {}\nroute add fd00:10:96::/112 via {}",
            node.v4, node.v6
        ))?;
        assert_eq!(cluster.ask("client", tcp("10.96.0.60:80")?)?.backend()?, "pod1");
        let addresses = ["10.96.0.60:81", "10.96.99.99:80", "[fd00:10:96::60]:81", "[fd00:10:96::9999]:80"];
        // An unconnected socket is not told of the error that comes back.
        check_refused_to(&[Kind::Tcp, Kind::Udp], cluster, "client", &addresses)
    })
}
