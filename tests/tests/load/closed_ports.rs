//! Refusing where the kernel cannot choose the error of a call (before 5.18), as it can be had on this one.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use lb_common::{
    address::{Address, Port, Protocol},
    config::{Config, flags},
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    outcome::Reason,
    service::{Range, ServiceRecord, Settings},
};
use lb_tests::{
    probe::{
        Prober,
        calls::{Call, Domains, Seen},
    },
    server::Server,
};
use lb_userspace::{
    kernel::{Kernel, KernelConfig, netns_cookie},
    store::{Store as _, Write},
};

use crate::machine::{Machine, VIP, fill, no_addresses};

/// A Service without endpoints, reached at its own address, at its v4-mapped one, and at the other family's.
const EMPTY: [(Domains, &str, &str); 4] = [
    (Domains::V4, "10.96.0.99:80", "192.0.2.1:0"),
    (Domains::Both, "[::ffff:10.96.0.99]:80", "[::ffff:192.0.2.1]:0"),
    (Domains::Both, "[fd00:10:96::99]:80", "[2001:db8::1]:0"),
    (Domains::V6, "[fd00:10:96::99]:80", "[2001:db8::1]:0"),
];
const NODE_PORT: u16 = 30099;

/// Writes that Service.
fn add_empty(kernel: &Kernel) -> Result<()> {
    let mut store = kernel.store()?;
    let record = ServiceRecord::new(2, Settings::default(), Range::EMPTY, Range::EMPTY);
    store.apply(&Write::Record { index: 5, record })?;
    for (_, to, _) in EMPTY {
        let to: SocketAddr = to.parse()?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let key = FrontendKey::new(to.ip().into(), Port::new(to.port()), protocol);
            store.apply(&Write::PutFrontend {
                key,
                entry: FrontendEntry::new(&key, FrontendKind::ClusterIp, 5),
            })?;
        }
    }
    let key = FrontendKey::new(Address::from_v4_bytes([0; 4]), Port::new(NODE_PORT), Protocol::Tcp);
    store.apply(&Write::PutFrontend { key, entry: FrontendEntry::new(&key, FrontendKind::NodePort, 5) })?;
    Ok(())
}

fn start() -> Result<(Machine, Kernel)> {
    let machine = Machine::new()?;
    machine.netns.ip("addr add 192.0.2.1/32 dev lo\naddr add 2001:db8::1/128 dev lo nodad")?;
    let config = KernelConfig { closed_ports: true, ..machine.config.clone() };
    let mut kernel = Kernel::prepare(&config)?;
    fill(&kernel)?;
    add_empty(&kernel)?;
    let cookie = machine.netns.run(|| Ok(netns_cookie()?))?;
    kernel.configure(&Config {
        host_netns_cookie: cookie,
        flags: flags::PROTECT_NODE_PORTS,
        ..no_addresses()
    })?;
    kernel.activate()?;
    Ok((machine, kernel))
}

#[test]
fn connections_are_refused_by_a_closed_port() -> Result<()> {
    let (machine, kernel) = start()?;
    let prober = Prober::start("client", machine.place())?;
    for (domains, to, local) in EMPTY {
        let (to, local): (SocketAddr, SocketAddr) = (to.parse()?, local.parse()?);
        for bound in [false, true] {
            let context = || format!("{to}, bound: {bound}");
            let stream = prober.stream_socket(domains)?;
            let datagrams = prober.datagram_socket(domains)?;
            if bound {
                stream.call(Call::Bind(local))?.done()?;
                datagrams.call(Call::Bind(local))?.done()?;
            }
            assert_eq!(stream.connect(to)?.errno()?, "ECONNREFUSED", "{}", context());

            datagrams.connect(to)?.done().with_context(context)?;
            assert_eq!(datagrams.peer()?.address()?, to, "{}", context());
            datagrams.call(Call::Send)?.done().with_context(context)?;
            assert_eq!(datagrams.call(Call::Receive)?.errno()?, "ECONNREFUSED", "{}", context());

            datagrams.disconnect()?.done()?;
            if bound {
                // What the kernel bound for connect() is gone, what the application bound stays.
                datagrams.call(Call::SendTo(to))?.done().with_context(context)?;
            } else {
                let unconnected = prober.datagram_socket(domains)?;
                assert_eq!(unconnected.call(Call::SendTo(to))?, Seen::default(), "{}", context());
            }
        }
    }
    let counted = kernel.outcomes()?[Reason::NoBackends.number() as usize];
    assert_eq!(counted, 3 * 2 * EMPTY.len() as u64);
    Ok(())
}

#[test]
fn a_socket_that_was_refused_by_a_closed_port_may_connect_to_a_service_with_endpoints() -> Result<()> {
    let (machine, kernel) = start()?;
    let _server = Server::start("backend", machine.place(), &[(Protocol::Tcp, 8080)])?;
    let prober = Prober::start("client", machine.place())?;
    let stream = prober.stream_socket(Domains::V4)?;
    assert_eq!(stream.connect(EMPTY[0].1.parse()?)?.errno()?, "ECONNREFUSED");
    let vip = VIP.parse()?;
    stream.connect(vip)?.done()?;
    assert_eq!(stream.peer()?.address()?, vip);
    drop(kernel);
    Ok(())
}

#[test]
fn binding_a_node_port_has_no_closed_port_to_go_to() -> Result<()> {
    let (machine, kernel) = start()?;
    let prober = Prober::start("client", machine.place())?;
    let stream = prober.stream_socket(Domains::V4)?;
    assert_eq!(stream.call(Call::Bind(([0, 0, 0, 0], NODE_PORT).into()))?.errno()?, "EPERM");
    assert_eq!(kernel.outcomes()?[Reason::NodePortTaken.number() as usize], 1);
    Ok(())
}
