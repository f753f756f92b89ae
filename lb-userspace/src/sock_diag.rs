//! The sockets of a network namespace, listed and ended over `NETLINK_SOCK_DIAG` (`sock_diag(7)`).
//!
//! All of this happens in the network namespace of the calling thread.

mod listing;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
};

use lb_common::socket::{ConnectedSocket, SocketState};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage, TCP_CLOSE, TCP_LISTEN,
    inet::{ExtensionFlags, InetRequest, InetResponse, InetResponseHeader, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use self::listing::Listing;
use crate::netlink::exchange::{Exchange, Scope};

/// How often sockets are looked for that cannot be told apart from one that was ended just now.
const ROUNDS: usize = 8;

/// Addresses that sockets are connected to, and the port there; none and zero: any.
type Peers<'a> = (&'a BTreeSet<IpAddr>, u16);
const ANY: Peers<'_> = (&BTreeSet::new(), 0);

/// A socket that waits for others: a TCP listener, or a UDP socket that is bound and not connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BoundSocket {
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub(crate) protocol: u8,
    /// Where it is bound.
    pub(crate) local: SocketAddr,
    /// At `::`: it takes no IPv4 (`IPV6_V6ONLY`).
    pub(crate) v6_only: bool,
    /// The inode by which processes hold it.
    pub(crate) inode: u32,
}

/// The sockets of the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct SockDiag {
    exchange: Exchange,
}

impl SockDiag {
    /// Opens it.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { exchange: Exchange::open(NETLINK_SOCK_DIAG)? })
    }

    /// Ends those of these connected UDP sockets that are still connected to their backend, with `ECONNABORTED` for their
    /// owners. Returns their cookies.
    pub(crate) fn end(&mut self, sockets: &[ConnectedSocket]) -> io::Result<BTreeSet<u64>> {
        let wanted: BTreeMap<u64, SocketState> =
            sockets.iter().map(|socket| (socket.cookie, socket.state)).collect();
        let mut backends: BTreeMap<u16, BTreeSet<IpAddr>> = BTreeMap::new();
        for backend in wanted.values().map(|state| SocketAddr::from(state.backend)) {
            backends.entry(backend.port()).or_default().insert(backend.ip());
        }
        let mut ended = BTreeSet::new();
        // The kernel finds a socket by its addresses and ports and compares the cookie then: of several with the same
        // ones (SO_REUSEPORT), one is found once the other is gone.
        for _ in 0..ROUNDS {
            let found = self.connected(&backends, &wanted)?;
            let mut again = false;
            for header in found {
                if self.destroy(&header)? {
                    ended.insert(u64::from_ne_bytes(header.socket_id.cookie));
                } else {
                    again = true;
                }
            }
            if !again {
                break;
            }
        }
        Ok(ended)
    }

    /// The TCP listeners and the UDP sockets that are bound and not connected.
    pub(crate) fn bound(&mut self) -> io::Result<Vec<BoundSocket>> {
        let mut bound = Vec::new();
        for (protocol, states) in [(IPPROTO_TCP, StateFlags::LISTEN), (IPPROTO_UDP, StateFlags::CLOSE)] {
            for family in [AF_INET, AF_INET6] {
                self.dump(protocol, family, &states, ANY, |response| {
                    bound.extend(BoundSocket::of(protocol, &response));
                })?;
            }
        }
        Ok(bound)
    }

    /// The sockets of those wanted that are connected to their backend.
    fn connected(
        &mut self,
        backends: &BTreeMap<u16, BTreeSet<IpAddr>>,
        wanted: &BTreeMap<u64, SocketState>,
    ) -> io::Result<Vec<InetResponseHeader>> {
        let mut found = Vec::new();
        for (port, ips) in backends {
            // One listing for each port, however many backends have it: each looks at all UDP sockets of the machine.
            for family in [AF_INET, AF_INET6] {
                self.dump(IPPROTO_UDP, family, &StateFlags::ESTABLISHED, (ips, *port), |response| {
                    let id = &response.header.socket_id;
                    let peer = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
                    let cookie = u64::from_ne_bytes(id.cookie);
                    if wanted.get(&cookie).is_some_and(|state| SocketAddr::from(state.backend) == peer) {
                        found.push(response.header);
                    }
                })?;
            }
        }
        Ok(found)
    }

    /// Hands over the sockets of a protocol and family in these states, of those connected to one of the peers; perhaps
    /// others, too.
    fn dump(
        &mut self,
        protocol: u8,
        family: u8,
        states: &StateFlags,
        (ips, port): Peers<'_>,
        mut each: impl FnMut(InetResponse),
    ) -> io::Result<()> {
        let mut socket_id = SocketId::new_v6();
        socket_id.destination_port = port;
        let request = request(protocol, family, states.clone(), socket_id);
        let done = self.exchange.ask(Listing::new(request, ips), Scope::Dump, |answer| {
            if let SockDiagMessage::InetResponse(response) = answer {
                each(*response);
            }
        });
        match done {
            // A kernel without IPv6 knows no such family.
            Err(error) if family == AF_INET6 && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done,
        }
    }

    /// Ends one socket. False: it is gone, or the kernel found another one by these addresses and ports.
    fn destroy(&mut self, header: &InetResponseHeader) -> io::Result<bool> {
        self.destroy_by(request(IPPROTO_UDP, header.family, StateFlags::all(), header.socket_id.clone()))
    }

    fn destroy_by(&mut self, request: SockDiagMessage) -> io::Result<bool> {
        let done = self.exchange.ask(SockDiagDestroy::new(request), Scope::One, |_: SockDiagMessage| {});
        match done {
            Ok(()) => Ok(true),
            // ESTALE: the cookie is another one's (`sock_diag_check_cookie`).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl BoundSocket {
    /// None: of no kind that is asked for.
    fn of(protocol: u8, response: &InetResponse) -> Option<Self> {
        let InetResponse { header, nlas } = response;
        if ![TCP_LISTEN, TCP_CLOSE].contains(&header.state) || header.socket_id.source_port == 0 {
            return None;
        }
        Some(Self {
            protocol,
            local: SocketAddr::new(header.socket_id.source_address, header.socket_id.source_port),
            v6_only: nlas.iter().any(|nla| matches!(nla, Nla::SkV6Only(true))),
            inode: header.inode,
        })
    }
}

/// Whether the kernel lists UDP sockets, and ends one when asked to: asked for a socket that does not exist.
pub(crate) fn can_destroy_udp() -> io::Result<bool> {
    /// What kernels say that were built without a part of it.
    const LACKS: [i32; 4] = [libc::EPROTONOSUPPORT, libc::ENOENT, libc::EOPNOTSUPP, libc::EINVAL];
    let lacks = |error: &io::Error| error.raw_os_error().is_some_and(|number| LACKS.contains(&number));
    let listed = SockDiag::open().and_then(|mut diag| {
        // No UDP socket is ever in this state.
        diag.dump(IPPROTO_UDP, AF_INET, &StateFlags::SYN_SENT, ANY, drop)?;
        Ok(diag)
    });
    let mut diag = match listed {
        Err(error) if lacks(&error) => return Ok(false),
        listed => listed?,
    };
    let request = request(IPPROTO_UDP, AF_INET, StateFlags::all(), SocketId::new_v4());
    match diag.destroy_by(request) {
        Ok(_) => Ok(true),
        Err(error) if lacks(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn request(protocol: u8, family: u8, states: StateFlags, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        net::{TcpListener, UdpSocket},
        os::{
            fd::{AsFd as _, AsRawFd as _},
            unix::fs::MetadataExt as _,
        },
    };

    use lb_common::socket::state;
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };

    use super::*;

    /// The kernel's number of a socket, which it tells with the socket's inode.
    fn cookie(socket: &UdpSocket) -> u64 {
        let inode = File::from(socket.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino();
        let (mut diag, mut cookie) = (SockDiag::open().unwrap(), None);
        for family in [AF_INET, AF_INET6] {
            diag.dump(IPPROTO_UDP, family, &StateFlags::all(), ANY, |response| {
                if u64::from(response.header.inode) == inode {
                    cookie = Some(u64::from_ne_bytes(response.header.socket_id.cookie));
                }
            })
            .unwrap();
        }
        cookie.unwrap()
    }

    /// A UDP socket from one address to another, which others may have in common with it.
    fn connected(from: SocketAddr, to: SocketAddr) -> UdpSocket {
        let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
        let raw = socket.as_raw_fd();
        bind(raw, &SockaddrStorage::from(from)).unwrap();
        connect(raw, &SockaddrStorage::from(to)).unwrap();
        socket.into()
    }

    fn remembered(socket: &UdpSocket, backend: SocketAddr) -> ConnectedSocket {
        let state = SocketState {
            backend: backend.into(),
            state: state::CONNECTED,
            protocol: u32::from(IPPROTO_UDP),
            ..bytemuck::Zeroable::zeroed()
        };
        ConnectedSocket { cookie: cookie(socket), state }
    }

    #[test]
    fn ends_those_that_are_connected_to_their_backend_and_no_others() {
        for ip in ["127.0.0.1", "::1"] {
            let server = UdpSocket::bind((ip, 0)).unwrap();
            let backend = server.local_addr().unwrap();
            let own = UdpSocket::bind((ip, 0)).unwrap().local_addr().unwrap();
            // The kernel cannot tell these apart by their addresses.
            let same = [(); 2].map(|()| connected(own, backend));
            let elsewhere = UdpSocket::bind((ip, 0)).unwrap();
            elsewhere.connect(own).unwrap();
            let cookies = [&same[0], &same[1], &elsewhere].map(cookie);
            let wanted = [&same[0], &same[1], &elsewhere].map(|socket| remembered(socket, backend));
            let ended = SockDiag::open().unwrap().end(&wanted);
            if !nix::unistd::geteuid().is_root() {
                // The kernel does so only for those who may administer the network.
                assert_eq!(ended.unwrap_err().raw_os_error(), Some(libc::EPERM));
                continue;
            }
            let ended = ended.unwrap();
            assert_eq!(ended, BTreeSet::from([cookies[0], cookies[1]]), "{ip}");
            for (socket, is_ended) in same.iter().zip([true, true]).chain([(&elsewhere, false)]) {
                assert_eq!(socket.peer_addr().is_err(), is_ended, "{ip}: {socket:?}");
                let error = socket.take_error().unwrap().and_then(|error| error.raw_os_error());
                assert_eq!(error, is_ended.then_some(libc::ECONNABORTED), "{ip}: {socket:?}");
            }
        }
    }

    #[test]
    fn this_kernel_says_whether_it_can_end_sockets() {
        let can = can_destroy_udp();
        if nix::unistd::geteuid().is_root() {
            assert!(can.unwrap(), "CONFIG_INET_DIAG_DESTROY");
        }
    }

    #[test]
    fn a_v6_socket_says_whether_it_takes_v4() {
        let listeners = ["0.0.0.0:0", "[::]:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap());
        let bound = SockDiag::open().unwrap().bound().unwrap();
        // A socket at an address of IPv6 takes nothing else anyway, and the kernel says so (`inet6_bind`).
        for (listener, v6_only) in listeners.iter().zip([false, false, true]) {
            let local = listener.local_addr().unwrap();
            let found = bound.iter().find(|socket| socket.local == local && socket.protocol == IPPROTO_TCP);
            assert_eq!(found.unwrap().v6_only, v6_only, "{local}");
        }
    }
}
