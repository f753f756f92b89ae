//! Where node ports answer, for sockets on the node.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    cluster::Cluster,
    dump::delta,
    manifests::Manifests,
    probe::{Answer, Kind, Target},
    server::Server,
    wait,
};

/// How long silence is listened to; the counters tell as well that nothing was translated.
const SILENCE: Duration = Duration::from_millis(100);

/// Both node ports of the Service `game` in the examples.
const PORTS: [(Protocol, u16); 2] = [(Protocol::Tcp, 30080), (Protocol::Udp, 30053)];
const BACKENDS: [&str; 2] = ["pod1", "pod3"];

/// The ways to each node port at an address: each protocol, each kind of socket, v4-mapped too.
fn ways(address: &str) -> Result<Vec<Target>> {
    let ip = address.parse().with_context(|| format!("the address {address}"))?;
    let plain = [(Kind::Tcp, PORTS[0].1), (Kind::Udp, PORTS[1].1), (Kind::Datagram, PORTS[1].1)]
        .map(|(kind, port)| Target::new(kind, SocketAddr::new(ip, port)));
    let mapped = plain.into_iter().filter(|target| target.to.is_ipv4()).map(Target::mapped);
    Ok(plain.into_iter().chain(mapped).collect())
}

/// Whether the node ports answer there, in all ways or in none.
fn answers(cluster: &Cluster<'_>, from: &str, address: &str, limit: Duration) -> Result<bool> {
    let ways: Vec<_> = ways(address)?.into_iter().map(|target| target.within(limit)).collect();
    let before = cluster.outcomes()?;
    let all = ways.iter().map(|target| cluster.ask(from, *target)).collect::<Result<Vec<_>>>()?;
    let counted = delta(&before, &cluster.outcomes()?);
    let translated = ["connect_translated", "datagram_translated"];
    let translated: u64 = translated.iter().filter_map(|name| counted.get(*name)).sum();
    let served = |answer: &&Answer| {
        let seen = answer.peer.or(answer.source);
        answer.backend().is_ok_and(|backend| BACKENDS.contains(&backend)) && seen == Some(answer.to)
    };
    match all.iter().filter(served).count() {
        0 if translated == 0 => Ok(false),
        count if count == ways.len() && translated == count as u64 => Ok(true),
        count => {
            Err(anyhow::anyhow!("{count} of {} answered, {translated} translated: {all:#?}", ways.len()))
        }
    }
}

/// Checks a table of addresses: whether they answer a process of the node, and whether a pod.
fn check(flags: &[&str], table: &[(&str, bool, bool)]) -> Result<()> {
    Cluster::with_flags(&Manifests::examples()?, flags, |cluster| {
        for (address, on_node, in_pod) in table {
            for (from, expected) in [("node-a", *on_node), ("pod2", *in_pod)] {
                let limit = if expected { wait::SOON } else { SILENCE };
                let found =
                    answers(cluster, from, address, limit).with_context(|| format!("{from} at {address}"))?;
                ensure!(found == expected, "with {flags:?}, {from} at {address}: answered: {found}");
            }
        }
        Ok(())
    })
}

/// The gateway of its pods is an address of the node, too, but not the Node's.
const GATEWAY: &str = "10.244.1.1";
const GATEWAY6: &str = "fd00:244:1::1";

#[test]
fn they_answer_at_the_nodes_primary_addresses_and_at_loopback_unless_told_otherwise() -> Result<()> {
    check(
        &[],
        &[
            ("172.18.0.2", true, true),
            ("fd00:18::2", true, true),
            ("127.0.0.1", true, false),
            ("::1", true, false),
            (GATEWAY, false, false),
            (GATEWAY6, false, false),
        ],
    )
}

#[test]
fn primary_is_without_loopback() -> Result<()> {
    check(
        &["--nodeport-addresses", "primary"],
        &[
            ("172.18.0.2", true, true),
            ("fd00:18::2", true, true),
            ("127.0.0.1", false, false),
            ("::1", false, false),
        ],
    )
}

#[test]
fn localhost_is_for_processes_of_the_node_only() -> Result<()> {
    check(
        &["--nodeport-addresses", "localhost"],
        &[
            ("127.0.0.1", true, false),
            ("::1", true, false),
            ("172.18.0.2", false, false),
            ("fd00:18::2", false, false),
        ],
    )
}

#[test]
fn all_is_every_address_but_loopback() -> Result<()> {
    check(
        &["--nodeport-addresses", "all"],
        &[
            ("172.18.0.2", true, true),
            ("fd00:18::2", true, true),
            (GATEWAY, true, true),
            (GATEWAY6, true, true),
            ("127.0.0.1", false, false),
        ],
    )
}

#[test]
fn networks_and_keywords_add_up() -> Result<()> {
    check(
        &["--nodeport-addresses", "localhost,10.244.0.0/16,fd00:18::/64"],
        &[
            (GATEWAY, true, true),
            ("fd00:18::2", true, true),
            ("127.0.0.1", true, false),
            ("172.18.0.2", false, false),
            (GATEWAY6, false, false),
        ],
    )
}

#[test]
fn a_pod_reaches_its_own_loopback_at_the_number_of_a_node_port() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let own = Server::start("own", cluster.topology.pod2.place(), &PORTS)?;
        for address in ["127.0.0.1", "::1"] {
            for target in ways(address)? {
                assert_eq!(cluster.ask("pod2", target)?.backend()?, own.name(), "{target}");
                assert!(BACKENDS.contains(&cluster.ask("node-a", target)?.backend()?), "{target}");
            }
        }
        Ok(())
    })
}

#[test]
fn another_nodes_node_port_is_left_to_that_node() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let other = Server::start("other", cluster.topology.node_b.place(), &PORTS)?;
        for from in ["node-a", "pod2"] {
            for address in ["172.18.0.3", "fd00:18::3"] {
                for target in ways(address)? {
                    assert_eq!(cluster.ask(from, target)?.backend()?, other.name(), "{from}: {target}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn addresses_of_the_node_are_followed_as_they_come_and_go() -> Result<()> {
    let flags = ["--nodeport-addresses", "all,localhost"];
    Cluster::with_flags(&Manifests::examples()?, &flags, |cluster| {
        let node = &cluster.topology.node_a.netns;
        let answer = |from: &str, address: &str| answers(cluster, from, address, SILENCE);
        for (address, addition) in [
            ("172.18.0.77", "172.18.0.77/24 dev eth0"),
            ("fd00:18::77", "fd00:18::77/64 dev eth0 nodad"),
            // A second address of loopback is the host's alone, like the first.
            ("127.0.0.77", "127.0.0.77/32 dev lo"),
        ] {
            let in_pods = !address.starts_with("127.");
            for _ in 0..2 {
                ensure!(!answer("node-a", address)?, "{address} answers before it is there");
                node.ip(&format!("addr add {addition}"))?;
                wait::until(&format!("{address} to answer"), wait::SOON, || {
                    Ok(answer("node-a", address)?.then_some(()))
                })?;
                ensure!(answers(cluster, "node-a", "172.18.0.2", wait::SOON)?, "the first address");
                if in_pods {
                    ensure!(answers(cluster, "pod2", address, wait::SOON)?, "{address} in a pod");
                } else {
                    ensure!(!answer("pod2", address)?, "{address} in a pod");
                }
                node.ip(&format!("addr del {}", addition.trim_end_matches(" nodad")))?;
                wait::until(&format!("{address} to be silent"), wait::SOON, || {
                    Ok((!answer("node-a", address)?).then_some(()))
                })?;
            }
        }
        Ok(())
    })
}
