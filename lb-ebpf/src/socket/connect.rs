//! `connect()`: TCP, and UDP that keeps one peer.

use aya_ebpf::programs::SockAddrContext;
use lb_common::{
    address::{Protocol, SocketAddress},
    decide,
    frontend::FrontendKey,
    outcome::{Outcome, Reason},
    socket::{SocketState, state},
};

use super::{
    Family, client, datagram, namespace, protocol,
    sender::{bound_address, sender},
    set_socket_address, socket_address, source,
};
use crate::tables::{self, Maps};

/// Sends a connection to a service to one of its backends.
#[inline(always)]
pub(crate) fn connect<F: Family>(ctx: &SockAddrContext) -> Result<Outcome, Reason> {
    let protocol = protocol(ctx).ok_or(Reason::OtherProtocol)?;
    let frontend = socket_address::<F>(ctx);
    let key = FrontendKey::new(frontend.address, frontend.port, protocol);
    let found = match decide::find(&Maps, &key, || source(ctx)) {
        Ok(found) => found,
        Err(reason) => {
            forget(ctx, &frontend);
            return Err(reason);
        }
    };
    decide::admit(&Maps, &found, || sender(ctx, &bound_address(ctx, &frontend.address), &frontend.address))?;
    let selection = decide::select(&Maps, &found, || client(ctx))?;
    let backend = selection.backend.socket_address();
    let storage = tables::socket_storage(ctx);
    let stored = storage.is_some();
    if let Some(socket) = storage {
        let flags = datagram::set_aside(ctx, socket);
        if flags != 0 {
            datagram::point_back(ctx, &frontend, &selection);
        }
        *socket = SocketState {
            namespace: if protocol == Protocol::Udp { namespace(ctx) } else { 0 },
            frontend,
            backend,
            service_id: selection.service_id,
            backend_id: selection.backend.id,
            slot: selection.slot,
            state: state::CONNECTED,
            flags,
            protocol: protocol as u32,
        };
    }
    set_socket_address::<F>(ctx, &backend);
    if stored { Ok(Outcome::ConnectTranslated) } else { Err(Reason::NotStored) }
}

/// A socket that connects elsewhere now must not show a service that it talked to before.
#[inline(always)]
fn forget(ctx: &SockAddrContext, destination: &SocketAddress) {
    if let Some(socket) = tables::socket_state(ctx) {
        socket.flags = datagram::set_aside(ctx, socket);
        socket.state = state::NONE;
        datagram::forget_spilled(ctx, socket, destination);
    }
}
