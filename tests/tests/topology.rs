//! The topology itself: who reaches whom without any load balancing. The floor that all other tests stand on.

use anyhow::{Context as _, Result};
use lb_common::address::Protocol;
use lb_tests::{
    probe::{Kind, Prober, Target},
    server::Server,
    topology::Topology,
};

#[test]
fn machines_reach_each_other_as_drawn() -> Result<()> {
    let t = Topology::new()?;
    let all = [&t.client, &t.database, &t.node_a, &t.pod1, &t.pod2, &t.node_b, &t.pod3];
    let ports = [(Protocol::Tcp, 8080), (Protocol::Udp, 8080)];
    let start = |machine: &&lb_tests::topology::Machine| Server::start(machine.name, machine.place(), &ports);
    let _servers = all.iter().map(start).collect::<Result<Vec<_>>>()?;
    for from in [&t.node_a, &t.pod1, &t.pod3, &t.database] {
        let prober = Prober::start(from.name, from.place())?;
        for to in all.iter().filter(|to| to.name != "client") {
            for socket in to.sockets(8080) {
                for kind in Kind::ALL {
                    let answer = prober.ask_once(Target::new(kind, socket))?;
                    let reply = answer.reply().with_context(|| format!("{} to {}", from.name, to.name))?;
                    assert_eq!((reply.backend.as_str(), reply.port), (to.name, 8080));
                    assert!(answer.peer.is_none_or(|peer| peer == socket), "{answer:?}");
                    assert!(answer.source.is_none_or(|source| source == socket), "{answer:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn the_client_outside_knows_no_pods() -> Result<()> {
    let t = Topology::new()?;
    let _server = Server::start("node-a", t.node_a.place(), &[(Protocol::Udp, 8080)])?;
    let prober = Prober::start("client", t.client.place())?;
    for pod in t.pod1.sockets(8080) {
        let answer = prober.ask_once(Target::new(Kind::Tcp, pod))?;
        assert_eq!(answer.errno()?, "ENETUNREACH");
    }
    let [node, _] = t.node_a.sockets(8080);
    let mapped = prober.ask_once(Target::new(Kind::Udp, node).mapped())?;
    assert_eq!(mapped.backend()?, "node-a");
    assert_eq!(mapped.peer.context("no peer")?.to_string(), "[::ffff:172.18.0.2]:8080");
    Ok(())
}
