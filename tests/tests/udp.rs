//! UDP sockets through all that an application can do with them: what each call shows, and who answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    cluster::Cluster,
    dump::delta,
    manifests::Manifests,
    probe::calls::{Call, Domains, RemoteSocket},
    server::Server,
};

/// Services of the examples with three backends, of either family.
const CHAT: &str = "10.96.0.60:5004";
const CHAT6: &str = "[fd00:10:96::60]:5004";

/// A UDP Service `10.96.1.NUMBER:53` with backends at a port of their own.
fn service(number: u16, port: u16, backends: &[&str]) -> String {
    let endpoints: Vec<_> = backends.iter().map(|address| format!("{{addresses: [{address}]}}")).collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: u{number}, namespace: default}}\n\
         spec: {{clusterIP: 10.96.1.{number}, ports: [{{protocol: UDP, port: 53}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: u{number}, namespace: default, labels: {{kubernetes.io/service-name: u{number}}}}}\n\
         addressType: IPv4\nports: [{{name: '', protocol: UDP, port: {port}}}]\nendpoints: [{}]\n---\n",
        endpoints.join(", ")
    )
}

fn at(number: u16) -> Result<SocketAddr> {
    address(&format!("10.96.1.{number}:53"))
}

fn address(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("the address {text}"))
}

fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        v6 @ SocketAddr::V6(_) => v6,
    }
}

const POD1: &str = "10.244.1.11";
const POD2: &str = "10.244.1.12";

/// The examples, two Services (1, 2) that pod2 serves at ports of their own, and two (3, 4) that it serves at one port.
fn cluster(test: impl FnOnce(&mut Cluster<'_>) -> Result<()>) -> Result<()> {
    let manifests = Manifests::examples()?;
    let services = [
        service(1, 6001, &[POD2]),
        service(2, 6002, &[POD2]),
        service(3, 5353, &[POD2]),
        service(4, 5353, &[POD2]),
    ];
    manifests.write("udp.yaml", &services.concat())?;
    Cluster::with(&manifests, |cluster| {
        let ports = [(Protocol::Udp, 6001), (Protocol::Udp, 6002)];
        let _backends = Server::start("pod2-too", cluster.topology.pod2.place(), &ports)?;
        test(cluster)
    })
}

/// Asks through a connected socket, which must show its peer in every call; gives the backend.
fn check_connected(socket: &RemoteSocket<'_>, peer: SocketAddr) -> Result<String> {
    ensure!(socket.peer()?.address()? == peer, "getpeername shows {:?} instead of {peer}", socket.peer()?);
    let (from, reply) = socket.ask().with_context(|| format!("connected to {peer}"))?;
    ensure!(from == peer, "recvfrom shows {from} instead of {peer}");
    Ok(format!("{} {}", reply.backend, reply.port))
}

/// Asks with `sendto()`; the answer must come from there. Gives the backend.
fn check_sent(socket: &RemoteSocket<'_>, to: SocketAddr) -> Result<String> {
    let (from, reply) = socket.ask_at(to).with_context(|| format!("sent to {to}"))?;
    ensure!(from == to, "recvfrom shows {from} instead of {to}");
    Ok(format!("{} {}", reply.backend, reply.port))
}

#[test]
fn a_connected_socket_shows_its_service_and_keeps_its_backend_whatever_it_calls() -> Result<()> {
    cluster(|cluster| {
        let chat = address(CHAT)?;
        for (domains, to) in
            [(Domains::V4, chat), (Domains::Both, mapped(chat)), (Domains::Both, address(CHAT6)?)]
        {
            let socket = cluster.prober("pod1")?.datagram_socket(domains)?;
            socket.connect(to)?.done()?;
            let first = check_connected(&socket, to)?;
            for _ in 0..12 {
                ensure!(check_connected(&socket, to)? == first, "send() changed the backend");
                // Another backend's answer would never arrive.
                ensure!(check_sent(&socket, to)? == first, "sendto() changed the backend");
            }
        }
        Ok(())
    })
}

#[test]
fn a_connected_socket_that_sends_elsewhere_hears_its_peer_only() -> Result<()> {
    cluster(|cluster| {
        let direct = cluster.topology.pod2.sockets(5353)[0];
        let socket = cluster.prober("pod1")?.datagram_socket(Domains::V4)?;
        socket.connect(at(1)?)?.done()?;
        for elsewhere in [at(2)?, direct, address(CHAT)?] {
            socket.call(Call::SendTo(elsewhere))?.done()?;
            ensure!(check_connected(&socket, at(1)?)? == "pod2-too 6001", "sent to {elsewhere}");
        }
        // What else the same backend serves comes from the peer, as far as this socket can tell.
        socket.connect(at(3)?)?.done()?;
        for elsewhere in [at(4)?, direct] {
            let (from, _) = socket.ask_at(elsewhere)?;
            ensure!(from == at(3)?, "sent to {elsewhere}, recvfrom shows {from}");
            check_connected(&socket, at(3)?)?;
        }
        Ok(())
    })
}

#[test]
fn connecting_again_shows_the_new_peer_be_it_a_service_or_not() -> Result<()> {
    cluster(|cluster| {
        let [direct, direct6] = cluster.topology.pod2.sockets(6001);
        let plain = [at(1)?, at(2)?, direct, at(1)?, address(CHAT)?, direct, at(3)?, at(4)?];
        // The kernel lets a socket that has an address of one family connect to that family only.
        for (domains, to) in [
            (Domains::V4, &plain[..]),
            (Domains::Both, &plain.map(mapped)),
            (Domains::Both, &[address(CHAT6)?, direct6, address(CHAT6)?]),
        ] {
            let socket = cluster.prober("pod1")?.datagram_socket(domains)?;
            for to in to {
                socket.connect(*to)?.done()?;
                check_connected(&socket, *to)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_refused_connect_leaves_the_socket_with_the_peer_it_had() -> Result<()> {
    let manifests = Manifests::examples()?;
    manifests.write("empty.yaml", &service(9, 53, &[]))?;
    Cluster::with(&manifests, |cluster| {
        let socket = cluster.prober("pod1")?.datagram_socket(Domains::V4)?;
        let chat = address(CHAT)?;
        socket.connect(chat)?.done()?;
        let first = check_connected(&socket, chat)?;
        assert_eq!(socket.connect(at(9)?)?.errno()?, "ECONNREFUSED");
        assert_eq!(check_connected(&socket, chat)?, first);
        assert_eq!(socket.call(Call::SendTo(at(9)?))?.errno()?, "ECONNREFUSED");
        assert_eq!(check_connected(&socket, chat)?, first);
        Ok(())
    })
}

#[test]
fn a_disconnected_socket_keeps_its_service_until_it_talks_to_the_backend_itself() -> Result<()> {
    cluster(|cluster| {
        let prober = cluster.prober("pod1")?;
        let chat = address(CHAT)?;
        let socket = prober.datagram_socket(Domains::V4)?;
        socket.connect(chat)?.done()?;
        let first = check_connected(&socket, chat)?;
        socket.disconnect()?.done()?;
        assert_eq!(socket.peer()?.errno()?, "ENOTCONN");
        let before = cluster.outcomes()?;
        for _ in 0..12 {
            assert_eq!(check_sent(&socket, chat)?, first);
        }
        assert_eq!(delta(&before, &cluster.outcomes()?).get("datagram_kept"), Some(&12));

        let direct = cluster.topology.pod2.sockets(6001)[0];
        let socket = prober.datagram_socket(Domains::V4)?;
        for _ in 0..3 {
            socket.connect(at(1)?)?.done()?;
            check_connected(&socket, at(1)?)?;
            socket.disconnect()?.done()?;
            // The first that it sends, and in turn.
            for to in [direct, at(1)?, direct, at(2)?, direct, at(1)?] {
                check_sent(&socket, to)?;
            }
        }
        Ok(())
    })
}

#[test]
fn no_service_that_a_socket_has_left_shows_at_a_peer_it_connects_to() -> Result<()> {
    cluster(|cluster| {
        let direct = cluster.topology.pod2.sockets(5353)[0];
        let socket = cluster.prober("pod1")?.datagram_socket(Domains::V4)?;
        // All of these have the one backend; the second stands in DATAGRAMS.
        for to in [at(1)?, at(3)?, at(4)?] {
            check_sent(&socket, to)?;
        }
        socket.connect(direct)?.done()?;
        check_connected(&socket, direct)?;
        socket.disconnect()?.done()?;
        check_sent(&socket, direct)?;
        for to in [at(4)?, at(3)?, direct, at(3)?] {
            check_sent(&socket, to)?;
        }
        Ok(())
    })
}

#[test]
fn answers_that_come_before_a_connect_still_name_their_services() -> Result<()> {
    cluster(|cluster| {
        let direct = cluster.topology.pod2.sockets(5353)[0];
        for to in [address(CHAT)?, at(1)?, direct] {
            // The only service of the socket, and one beyond the first.
            for first in [None, Some(at(1)?)] {
                let socket = cluster.prober("pod1")?.datagram_socket(Domains::V4)?;
                if let Some(first) = first {
                    check_sent(&socket, first)?;
                }
                socket.call(Call::SendTo(at(2)?))?.done()?;
                assert_eq!(socket.call(Call::Peek)?.address()?, at(2)?);
                socket.connect(to)?.done()?;
                assert_eq!(socket.call(Call::Receive)?.address()?, at(2)?, "then {to}, first {first:?}");
                check_connected(&socket, to)?;
            }
        }
        Ok(())
    })
}

#[test]
fn an_ipv6_only_socket_is_served_at_ipv6_and_nowhere_else() -> Result<()> {
    cluster(|cluster| {
        let socket = cluster.prober("pod1")?.datagram_socket(Domains::V6)?;
        let chat = mapped(address(CHAT)?);
        assert_eq!(socket.connect(chat)?.errno()?, "ENETUNREACH");
        assert_eq!(socket.peer()?.errno()?, "ENOTCONN");
        assert_eq!(socket.call(Call::SendTo(chat))?.errno()?, "ENETUNREACH");
        let chat6 = address(CHAT6)?;
        check_sent(&socket, chat6)?;
        socket.connect(chat6)?.done()?;
        check_connected(&socket, chat6)?;
        Ok(())
    })
}

#[test]
fn one_call_may_send_to_and_hear_from_many_services() -> Result<()> {
    cluster(|cluster| {
        let plain = vec![at(1)?, at(2)?, at(3)?, address(CHAT)?, cluster.topology.pod3.sockets(5353)[0]];
        let both: Vec<_> = plain.iter().copied().map(mapped).chain([address(CHAT6)?]).collect();
        for (domains, to) in [(Domains::V4, plain), (Domains::Both, both)] {
            let socket = cluster.prober("pod1")?.datagram_socket(domains)?;
            for _ in 0..8 {
                let before = cluster.outcomes()?;
                // chat's backend may be pod2 or pod3, which others here have too: a turn of its own.
                for to in [&to[..3], &to[3..4], &to[4..]] {
                    socket.call(Call::SendMany(to.to_vec()))?.done()?;
                    let seen = socket.call(Call::ReceiveMany(to.len()))?.done()?;
                    let from: BTreeSet<_> = seen.addresses.iter().collect();
                    assert_eq!(from, to.iter().collect::<BTreeSet<_>>());
                    for (from, reply) in seen.addresses.iter().zip(&seen.replies) {
                        let own = [(at(1)?, 6001), (at(2)?, 6002)];
                        let own = own.into_iter().find(|(to, _)| mapped(*to) == mapped(*from));
                        assert_eq!(reply.port, own.map_or(5353, |(_, port)| port), "{from}");
                    }
                }
                let counted = delta(&before, &cluster.outcomes()?);
                let sent =
                    ["datagram_translated", "datagram_kept"].map(|name| counted.get(name).unwrap_or(&0));
                assert_eq!(sent.into_iter().sum::<u64>(), to.len() as u64 - 1, "{counted:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn one_socket_keeps_a_backend_of_each_of_two_hundred_services() -> Result<()> {
    const SERVICES: u16 = 200;
    let manifests = Manifests::examples()?;
    let services = (1..=SERVICES).map(|number| service(number, 7000 + number, &[POD1, POD2]));
    manifests.write("many.yaml", &services.collect::<Vec<_>>().concat())?;
    Cluster::with(&manifests, |cluster| {
        let ports: Vec<_> = (1..=SERVICES).map(|number| (Protocol::Udp, 7000 + number)).collect();
        let _first = Server::start("first", cluster.topology.pod1.place(), &ports)?;
        let _second = Server::start("second", cluster.topology.pod2.place(), &ports)?;
        let all = (1..=SERVICES).map(at).collect::<Result<Vec<_>>>()?;
        let socket = cluster.prober("node-a")?.datagram_socket(Domains::V4)?;
        let mut first = BTreeMap::new();
        for round in 0..4 {
            for some in all.chunks(40) {
                socket.call(Call::SendMany(some.to_vec()))?.done()?;
                let seen = socket.call(Call::ReceiveMany(some.len()))?.done()?;
                for (from, reply) in seen.addresses.iter().zip(&seen.replies) {
                    let number = all.iter().position(|to| to == from).context("nobody asked it")?;
                    assert_eq!(usize::from(reply.port), 7001 + number, "{from}");
                    let backend = first.entry(*from).or_insert_with(|| reply.backend.clone());
                    assert_eq!(*backend, reply.backend, "{from} in round {round}");
                }
            }
            assert_eq!(first.len(), all.len());
        }
        let spread: BTreeSet<_> = first.into_values().collect();
        assert_eq!(spread.len(), 2, "all chose one backend: {spread:?}");
        Ok(())
    })
}

#[test]
fn services_that_share_their_backends_are_told_apart_on_one_socket() -> Result<()> {
    cluster(|cluster| {
        let (chat, dns) = (address(CHAT)?, address("10.96.0.53:53")?);
        for _ in 0..10 {
            // A new one each time: which backends it gets is chance.
            let socket = cluster.prober("pod1")?.datagram_socket(Domains::V4)?;
            for turn in [vec![chat, dns], vec![dns, chat]] {
                socket.call(Call::SendMany(turn.clone()))?.done()?;
                let seen = socket.call(Call::ReceiveMany(2))?.done()?;
                assert_eq!(
                    seen.addresses.iter().collect::<BTreeSet<_>>(),
                    turn.iter().collect::<BTreeSet<_>>(),
                    "{seen:?}"
                );
            }
        }
        Ok(())
    })
}
