//! Where a refused call goes on kernels that cannot choose its error: to a closed port of the namespace's own loopback.
//!
//! | call | port | what the application sees |
//! |---|---|---|
//! | TCP `connect()` | 0, which nobody can listen at | the RST: ECONNREFUSED |
//! | UDP `connect()` | 1 | it succeeds, and the next call fails with ECONNREFUSED |
//! | UDP `sendto()` | 1 | nothing, or ECONNREFUSED with `IP_RECVERR` |
//!
//! UDP is as kube-proxy's clients know it. Port 0 is not for UDP: `sendto()` rejects it after the hook (EINVAL), and a socket
//! connected to it seems unconnected (`inet_getname()`).

use aya_ebpf::programs::SockAddrContext;
use lb_common::{
    address::{Address, Port, Protocol, SocketAddress},
    socket::{SocketState, state},
};

use super::{Family, protocol, set_socket_address, socket_address};
use crate::tables;

const V4_LOOPBACK: Address = Address::from_v4_bytes([127, 0, 0, 1]);
const V6_LOOPBACK: Address = Address::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// The kernel gives it to no socket.
const TCP_PORT: u16 = 0;
/// That of `tcpmux`, which UDP never had.
const UDP_PORT: u16 = 1;

/// Lets the socket connect there; it shows the service all the same.
#[inline(always)]
pub(crate) fn connect_closed<F: Family>(ctx: &SockAddrContext) {
    let frontend = socket_address::<F>(ctx);
    let port = if protocol(ctx) == Some(Protocol::Tcp) { TCP_PORT } else { UDP_PORT };
    let backend = closed(&frontend, port);
    // Where it cannot be remembered, the closed port shows: no harm.
    tables::remember(
        ctx,
        &SocketState {
            // No backend that could leave.
            namespace: 0,
            frontend,
            backend,
            service_id: 0,
            backend_id: 0,
            slot: 0,
            state: state::CONNECTED,
            flags: 0,
            protocol: protocol(ctx).map_or(0, |protocol| protocol as u32),
        },
    );
    set_socket_address::<F>(ctx, &backend);
}

/// Sends the datagram there.
#[inline(always)]
pub(crate) fn send_closed<F: Family>(ctx: &SockAddrContext) {
    let frontend = socket_address::<F>(ctx);
    set_socket_address::<F>(ctx, &closed(&frontend, UDP_PORT));
}

/// The closed port in the family of the destination: a v4-mapped one stays so.
#[inline(always)]
fn closed(destination: &SocketAddress, port: u16) -> SocketAddress {
    let loopback = if destination.address.is_v4() { V4_LOOPBACK } else { V6_LOOPBACK };
    SocketAddress::new(loopback, Port::new(port))
}
