//! `loadBalancerSourceRanges`: which clients reach a load balancer's addresses, at the socket and per packet.
//!
//! At the socket the programs run as the agent runs them, without the agent: the tests say themselves which pods are
//! known.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytemuck::Zeroable as _;
use lb_common::{config::Config, namespace::NamespaceAddresses};
use lb_tests::{
    agent::Installation,
    cluster::{Cluster, target},
    dump::delta,
    manifests::Manifests,
    probe::{
        Kind, Target,
        calls::{Call, Domains},
    },
    topology::{Machine, Topology},
    wait,
};
use lb_userspace::{
    kernel::{Kernel, KernelConfig, Namespaces, netns_cookie},
    model::{Change, Kind as ObjectKind},
    pipeline::{DefaultAlgorithm, NodePortAddresses, Pipeline, PipelineSettings},
    source::manifest::objects_from_yaml,
    store::{Store as _, kernel::KernelStore},
};

/// A Service for HTTP and datagrams, with an external address that is none of the load balancer's.
fn service(ranges: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: shop, namespace: default}}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.30, 'fd00:10:96::30']
  externalIPs: [198.51.100.30, 203.0.113.30]
  loadBalancerSourceRanges: [{ranges}]
  ports:
    - {{name: http, protocol: TCP, port: 80, nodePort: 30080}}
    - {{name: udp, protocol: UDP, port: 80, nodePort: 30080}}
status:
  loadBalancer:
    ingress: [{{ip: 203.0.113.30}}, {{ip: '2001:db8:113::30'}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: shop-4, namespace: default, labels: {{kubernetes.io/service-name: shop}}}}
addressType: IPv4
ports: [{{name: http, protocol: TCP, port: 8080}}, {{name: udp, protocol: UDP, port: 5353}}]
endpoints: [{{addresses: [10.244.1.11], nodeName: node-a}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: shop-6, namespace: default, labels: {{kubernetes.io/service-name: shop}}}}
addressType: IPv6
ports: [{{name: http, protocol: TCP, port: 8080}}, {{name: udp, protocol: UDP, port: 5353}}]
endpoints: [{{addresses: ['fd00:244:1::11'], nodeName: node-a}}]
---
apiVersion: v1
kind: Node
metadata: {{name: node-a}}
status: {{addresses: [{{type: InternalIP, address: 172.18.0.2}}, {{type: InternalIP, address: 'fd00:18::2'}}]}}
"
    )
}

/// The load balancer's addresses; the first one is an external address, too.
const FILTERED: [&str; 2] = ["203.0.113.30:80", "[2001:db8:113::30]:80"];
/// Where source ranges do not hold.
const OPEN: [&str; 4] = ["10.96.0.30:80", "[fd00:10:96::30]:80", "198.51.100.30:80", "172.18.0.2:30080"];

/// Programs and tables, without an agent.
struct Datapath {
    kernel: Kernel,
    store: KernelStore,
    pipeline: Pipeline,
}

impl Datapath {
    fn start(sockeye: &Installation<'_>, topology: &Topology, manifest: &str) -> Result<Self> {
        let mut kernel = Kernel::prepare(&KernelConfig {
            bpffs: sockeye.pin_path(),
            cgroup: sockeye.cgroup().to_owned(),
            ..KernelConfig::default()
        })?;
        let store = kernel.store()?;
        let settings = PipelineSettings {
            node_name: "node-a".into(),
            node_port_addresses: NodePortAddresses::default(),
            external_ips: true,
            algorithm: DefaultAlgorithm::default(),
        };
        kernel.configure(&Config {
            host_netns_cookie: cookie(&topology.node_a)?,
            node_v4: IpAddr::V4(topology.node_a.v4).into(),
            node_v6: IpAddr::V6(topology.node_a.v6).into(),
            ..Config::zeroed()
        })?;
        let pipeline = Pipeline::new(settings, store.capacity());
        let mut datapath = Self { kernel, store, pipeline };
        for kind in ObjectKind::ALL {
            datapath.pipeline.apply(Change::Reset(kind, Vec::new()));
        }
        datapath.serve(manifest)?;
        datapath.kernel.activate()?;
        Ok(datapath)
    }

    fn serve(&mut self, manifest: &str) -> Result<()> {
        let (objects, problems) = objects_from_yaml(manifest, "manifest", "node-a");
        ensure!(problems.is_empty(), "{problems:?}");
        objects.into_iter().map(Change::Apply).for_each(|change| self.pipeline.apply(change));
        let report = self.pipeline.sync(&mut self.store);
        ensure!(report.dirty == 0 && report.blocked == 0, "{report:?}");
        Ok(())
    }
}

fn cookie(machine: &Machine) -> Result<u64> {
    machine.netns.run(|| netns_cookie().context("the cookie of a network namespace"))
}

fn know(namespaces: &mut Namespaces, pods: &[&Machine]) -> Result<()> {
    let addresses = |pod: &&Machine| {
        let [v4, v6] = pod.addresses().map(Into::into);
        Ok((cookie(pod)?, NamespaceAddresses { v4, v6 }))
    };
    let known: BTreeMap<_, _> = pods.iter().map(addresses).collect::<Result<_>>()?;
    let unfit = namespaces.set(&known)?;
    ensure!(unfit.is_empty(), "{unfit:?}");
    Ok(())
}

fn with(
    ranges: &str,
    test: impl FnOnce(&Cluster<'_>, &mut Datapath, &mut Namespaces) -> Result<()>,
) -> Result<()> {
    let topology = Topology::new()?;
    let sockeye = Installation::on(&topology)?;
    let manifests = Manifests::new()?;
    let cluster = Cluster::new(&topology, &sockeye, &manifests)?;
    let mut datapath = Datapath::start(&sockeye, &topology, &service(ranges))?;
    let mut namespaces = datapath.kernel.namespaces()?;
    // The programs go with the file system that they are pinned to.
    test(&cluster, &mut datapath, &mut namespaces)
}

/// Every way in which an application reaches these addresses.
fn ways(addresses: &[&str]) -> Result<Vec<Target>> {
    let mut ways = Vec::new();
    for address in addresses {
        for kind in Kind::ALL {
            let target = target(kind, address)?;
            ways.push(target);
            ways.extend(target.to.is_ipv4().then(|| target.mapped()));
        }
    }
    Ok(ways)
}

/// All of the load balancer's addresses answer a client, or all refuse it for that reason.
fn check(cluster: &Cluster<'_>, from: &str, refused: Option<&str>) -> Result<()> {
    let before = cluster.outcomes()?;
    let ways = ways(&FILTERED)?;
    for target in &ways {
        let answer = cluster.ask(from, *target)?;
        if refused.is_none() {
            answer.reply().with_context(|| format!("{from}: {target}"))?;
            continue;
        }
        let errno = answer.errno().with_context(|| format!("{from}: {target}"))?;
        ensure!(errno == "ECONNREFUSED", "{from}: {target}: {errno}");
    }
    for target in self::ways(&OPEN)? {
        cluster.ask(from, target)?.reply().with_context(|| format!("{from}: {target}"))?;
    }
    let counted = delta(&before, &cluster.outcomes()?);
    for reason in ["source_not_allowed", "source_unknown"] {
        let expected = if refused == Some(reason) { ways.len() as u64 } else { 0 };
        let count = counted.get(reason).copied().unwrap_or(0);
        ensure!(count == expected, "{from}: {reason} {count} times instead of {expected}: {counted:?}");
    }
    Ok(())
}

const NOT_ALLOWED: Option<&str> = Some("source_not_allowed");

#[test]
fn pods_and_the_host_are_judged_by_their_own_addresses() -> Result<()> {
    with("10.244.1.11/32, 'fd00:244:1::11/128'", |cluster, datapath, namespaces| {
        let Topology { pod1, pod2, .. } = cluster.topology;
        know(namespaces, &[pod1, pod2])?;
        check(cluster, "pod1", None)?;
        check(cluster, "pod2", NOT_ALLOWED)?;
        check(cluster, "node-a", NOT_ALLOWED)?;
        // The node's own address is listed: processes of the host are admitted.
        datapath.serve(&service("172.18.0.0/24, 'fd00:18::/64', 192.0.2.0/24"))?;
        check(cluster, "pod1", NOT_ALLOWED)?;
        check(cluster, "node-a", None)?;
        datapath.serve(&service("0.0.0.0/0, '::/0'"))?;
        check(cluster, "pod2", None)?;
        check(cluster, "node-a", None)?;
        datapath.serve(&service("192.0.2.1/32, '2001:db8::1/128'"))?;
        check(cluster, "node-a", NOT_ALLOWED)?;
        datapath.serve(&service(""))?;
        check(cluster, "pod1", None)
    })
}

#[test]
fn ranges_of_one_family_filter_that_family_alone() -> Result<()> {
    with("10.244.1.11/32", |cluster, _, namespaces| {
        know(namespaces, &[&cluster.topology.pod1, &cluster.topology.pod2])?;
        for kind in Kind::ALL {
            let [v4, v6] = [target(kind, FILTERED[0])?, target(kind, FILTERED[1])?];
            assert_eq!(cluster.ask("pod2", v4)?.errno()?, "ECONNREFUSED");
            assert_eq!(cluster.ask("pod2", v6)?.backend()?, "pod1");
            assert_eq!(cluster.ask("pod1", v4)?.backend()?, "pod1");
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_is_not_known_is_refused_until_it_is() -> Result<()> {
    with("10.244.1.0/24, 'fd00:244:1::/64'", |cluster, _, namespaces| {
        let Topology { pod1, pod2, .. } = cluster.topology;
        know(namespaces, &[pod1])?;
        check(cluster, "pod1", None)?;
        check(cluster, "pod2", Some("source_unknown"))?;
        know(namespaces, &[pod2])?;
        check(cluster, "pod1", Some("source_unknown"))?;
        check(cluster, "pod2", None)
    })
}

#[test]
fn a_socket_that_is_bound_is_judged_by_that_address() -> Result<()> {
    // The addresses that the node has at its pods' devices, and the pod's own; no pod is known.
    let ranges = "10.244.1.1/32, 'fd00:244:1::1/128', 10.244.1.12/32, 'fd00:244:1::12/128'";
    with(ranges, |cluster, _, namespaces| {
        know(namespaces, &[])?;
        for (from, v4, v6) in
            [("node-a", "10.244.1.1", "fd00:244:1::1"), ("pod2", "10.244.1.12", "fd00:244:1::12")]
        {
            let filtered: [SocketAddr; 2] = [FILTERED[0].parse()?, FILTERED[1].parse()?];
            let mapped = Target::new(Kind::Udp, filtered[0]).mapped().destination();
            for (domains, own, to) in [
                (Domains::V4, v4.to_owned(), filtered[0]),
                (Domains::V6, v6.to_owned(), filtered[1]),
                (Domains::Both, format!("::ffff:{v4}"), mapped),
            ] {
                let own = SocketAddr::new(own.parse()?, 0);
                let prober = cluster.prober(from)?;
                let context = || format!("{from}, {domains:?}");
                let stream = || prober.stream_socket(domains);
                assert_eq!(stream()?.connect(to)?.errno()?, "ECONNREFUSED", "{}", context());
                let bound = stream()?;
                bound.call(Call::Bind(own))?.done()?;
                bound.connect(to)?.done().with_context(context)?;

                let datagrams = || prober.datagram_socket(domains);
                assert_eq!(datagrams()?.connect(to)?.errno()?, "ECONNREFUSED", "{}", context());
                assert_eq!(datagrams()?.call(Call::SendTo(to))?.errno()?, "ECONNREFUSED", "{}", context());
                let bound = datagrams()?;
                bound.call(Call::Bind(own))?.done()?;
                assert_eq!(bound.ask_at(to).with_context(context)?.0, to);
                bound.connect(to)?.done().with_context(context)?;
                assert_eq!(bound.ask().with_context(context)?.1.backend, "pod1");
            }
        }
        Ok(())
    })
}

#[test]
fn packets_from_outside_are_dropped_unless_their_source_is_listed() -> Result<()> {
    let manifests = Manifests::new()?;
    manifests.write("shop.yaml", &service("172.18.0.10/32, 'fd00:18::10/128'"))?;
    Cluster::with(&manifests, |cluster| {
        for address in FILTERED.iter().chain(&["198.51.100.30:80", "172.18.0.2:30080"]) {
            for kind in Kind::ALL {
                assert_eq!(cluster.ask("client", target(kind, address)?)?.backend()?, "pod1");
            }
        }
        manifests.write("shop.yaml", &service("172.18.0.11/32, 'fd00:18::11/128'"))?;
        let closed = |address: &str| -> Result<bool> {
            let target = target(Kind::Datagram, address)?.within(Duration::from_millis(200));
            Ok(cluster.ask("client", target)?.errno().is_ok_and(|errno| errno == "ETIMEDOUT"))
        };
        wait::until("the client to be shut out", wait::SOON, || {
            let [v4, v6] = FILTERED.map(closed);
            Ok((v4? && v6?).then_some(()))
        })?;
        let before = cluster.outcomes()?;
        for address in FILTERED {
            for kind in Kind::ALL {
                let target = target(kind, address)?.within(Duration::from_millis(500));
                assert_eq!(cluster.ask("client", target)?.errno()?, "ETIMEDOUT", "{target}");
            }
        }
        let dropped = delta(&before, &cluster.outcomes()?);
        assert!(dropped.get("source_not_allowed").is_some_and(|count| *count >= 6), "{dropped:?}");
        for address in ["198.51.100.30:80", "172.18.0.2:30080"] {
            assert_eq!(cluster.ask("client", target(Kind::Tcp, address)?)?.backend()?, "pod1");
        }
        Ok(())
    })
}
