//! `sendto()` and `recvfrom()`: UDP sockets that name a destination with each datagram, and the source that readers see.
//!
//! A socket keeps its backend of a service while that backend is in the service's set, so that a request of several
//! datagrams stays together. The first service stands in the socket's own storage, which never evicts; only a
//! socket that talks to several services at once spills the others into `DATAGRAMS`.

use aya_ebpf::{helpers::generated::bpf_get_socket_cookie, programs::SockAddrContext};
use lb_common::{
    address::{Protocol, SocketAddress},
    decide::{self, Found, Selection, Tables as _, same_peer},
    frontend::FrontendKey,
    outcome::{Outcome, Reason},
    socket::{DatagramKey, DatagramValue, SocketState, direction, flags, state},
};

use super::{Family, client, protocol, sender::sender, set_socket_address, socket_address, source};
use crate::tables::{self, Maps};

/// Sends a datagram for a service to the socket's backend of that service.
#[inline(always)]
pub(crate) fn sendmsg<F: Family>(ctx: &SockAddrContext) -> Result<Outcome, Reason> {
    if protocol(ctx) != Some(Protocol::Udp) {
        return Err(Reason::OtherProtocol);
    }
    let frontend = socket_address::<F>(ctx);
    let key = FrontendKey::new(frontend.address, frontend.port, Protocol::Udp);
    let found = match decide::find(&Maps, &key, || source(ctx)) {
        Ok(found) => found,
        Err(reason) => {
            forget_direct(ctx, &frontend);
            return Err(reason);
        }
    };
    decide::admit(&Maps, &found, || sender(ctx, &F::message_source(ctx), &frontend.address))?;
    if let Some(kept) = keep(ctx, &found, &frontend) {
        set_socket_address::<F>(ctx, &kept);
        return Ok(Outcome::DatagramKept);
    }
    let selection = select_apart(ctx, &found, &frontend)?;
    let stored = remember(ctx, &frontend, &selection);
    set_socket_address::<F>(ctx, &selection.backend.socket_address());
    if stored { Ok(Outcome::DatagramTranslated) } else { Err(Reason::NotStored) }
}

/// Tells the reader the service that a datagram of a backend answers for.
#[inline(always)]
pub(crate) fn recvmsg<F: Family>(ctx: &SockAddrContext) -> Result<Outcome, Reason> {
    let socket = tables::socket_state(ctx).ok_or(Reason::NothingToRestore)?;
    let backend = socket_address::<F>(ctx);
    let own = socket.state != state::NONE && same_peer(&socket.backend, &backend);
    let elsewhere = match own {
        // A connected socket hears its peer only, whomever else it has sent to.
        true if socket.state == state::CONNECTED => 0,
        true => socket.flags & flags::SHARED,
        false => socket.flags & flags::SPILLED,
    };
    if elsewhere != 0
        && let Some(spilled) = tables::datagram(&spill_key(ctx, &backend, direction::REVERSE))
    {
        set_socket_address::<F>(ctx, &spilled.peer);
        return Ok(Outcome::SourceRestored);
    }
    if !own {
        return Err(Reason::NothingToRestore);
    }
    let frontend = socket.frontend;
    set_socket_address::<F>(ctx, &frontend);
    Ok(Outcome::SourceRestored)
}

/// How often another backend is drawn where one serves another service of this socket already.
const DRAWS: u32 = 8;

/// A backend for a service that this socket has not sent to yet: if there is a choice, one that serves none of its other
/// services, so that answers can be told apart.
#[inline(always)]
fn select_apart<'a>(
    ctx: &SockAddrContext,
    found: &Found<'a>,
    frontend: &SocketAddress,
) -> Result<Selection<'a>, Reason> {
    let mut selection = decide::select(&Maps, found, || client(ctx))?;
    if tables::socket_state(ctx).is_none() || Maps.settings(found.record).affinity_seconds != 0 {
        return Ok(selection);
    }
    for _ in 0..DRAWS {
        if !serves_another(ctx, frontend, &selection.backend.socket_address()) {
            break;
        }
        selection = decide::select_another(&Maps, found)?;
    }
    Ok(selection)
}

/// Whether what this backend sends is taken for an answer of another service than the frontend's.
#[inline(always)]
fn serves_another(ctx: &SockAddrContext, frontend: &SocketAddress, backend: &SocketAddress) -> bool {
    let Some(socket) = tables::socket_state(ctx) else { return false };
    if socket.state != state::NONE && same_peer(&socket.backend, backend) {
        return !same_peer(&socket.frontend, frontend);
    }
    socket.flags & flags::SPILLED != 0
        && tables::datagram(&spill_key(ctx, backend, direction::REVERSE))
            .is_some_and(|spilled| !same_peer(&spilled.peer, frontend))
}

/// What the socket remembers, as `sendto()` finds it.
///
/// `connect()` to `AF_UNSPEC` runs no hook (`inet_dgram_connect()`): what it leaves is an unconnected socket's pair.
#[inline(always)]
fn socket_state(ctx: &SockAddrContext) -> Option<&mut SocketState> {
    let socket = tables::socket_state(ctx)?;
    if socket.state == state::CONNECTED && !is_connected(ctx) {
        socket.state = state::DATAGRAM;
        if socket.flags & flags::SPILLED != 0 {
            socket.flags |= flags::SHARED;
        }
    }
    Some(socket)
}

/// Whether a UDP socket has a peer.
#[inline(always)]
fn is_connected(ctx: &SockAddrContext) -> bool {
    /// The kernel uses TCP's name for it (`include/net/tcp_states.h`).
    const TCP_ESTABLISHED: u32 = 1;
    // SAFETY: the kernel hands each program a valid context with a valid socket (since 5.3).
    unsafe { (*super::raw(ctx).__bindgen_anon_1.sk).state == TCP_ESTABLISHED }
}

/// The backend that this socket has for the frontend, if it is still in the service's set.
#[inline(always)]
fn keep(ctx: &SockAddrContext, found: &Found<'_>, frontend: &SocketAddress) -> Option<SocketAddress> {
    let socket = socket_state(ctx)?;
    let service_id = found.record.service_id;
    if socket.state != state::NONE && same_peer(&socket.frontend, frontend) {
        if socket.state == state::CONNECTED {
            // Its peer, as for `send()`: the kernel would deliver no other backend's answer.
            return Some(socket.backend);
        }
        if socket.service_id != service_id {
            return None;
        }
        let selection = decide::reselect(&Maps, found, socket.backend_id, socket.slot)?;
        socket.slot = selection.slot;
        if socket.flags & flags::SHARED != 0 {
            point_back(ctx, frontend, &selection);
        }
        return Some(selection.backend.socket_address());
    }
    if socket.flags & flags::SPILLED == 0 {
        return None;
    }
    let spilled = tables::datagram(&spill_key(ctx, frontend, direction::FORWARD))?;
    if spilled.service_id != service_id {
        return None;
    }
    let selection = decide::reselect(&Maps, found, spilled.backend_id, spilled.slot)?;
    let backend = selection.backend.socket_address();
    if socket.state != state::NONE && same_peer(&socket.backend, &backend) {
        socket.flags |= flags::SHARED;
    }
    point_back(ctx, frontend, &selection);
    Some(backend)
}

/// Makes the socket remember which backend it has for the frontend.
#[inline(always)]
fn remember(ctx: &SockAddrContext, frontend: &SocketAddress, selection: &Selection<'_>) -> bool {
    let backend = selection.backend.socket_address();
    if let Some(socket) = tables::socket_state(ctx) {
        let free = socket.state == state::NONE;
        let same = socket.state == state::DATAGRAM && same_peer(&socket.frontend, frontend);
        if !free && !same {
            let shared = socket.state != state::NONE && same_peer(&socket.backend, &backend);
            socket.flags |= if shared { flags::SPILLED | flags::SHARED } else { flags::SPILLED };
            return spill(ctx, frontend, &backend, selection);
        }
        socket.frontend = *frontend;
        socket.backend = backend;
        socket.service_id = selection.service_id;
        socket.backend_id = selection.backend.id;
        socket.slot = selection.slot;
        socket.state = state::DATAGRAM;
        // A spilled service may have the same backend: from now on the last sender decides whom it answers for.
        if socket.flags & flags::SPILLED != 0 {
            socket.flags |= flags::SHARED;
            return point_back(ctx, frontend, selection);
        }
        return true;
    }
    tables::remember(
        ctx,
        &SocketState {
            namespace: 0,
            frontend: *frontend,
            backend,
            service_id: selection.service_id,
            backend_id: selection.backend.id,
            slot: selection.slot,
            state: state::DATAGRAM,
            flags: 0,
            protocol: Protocol::Udp as u32,
        },
    )
}

/// Remembers a further service of the socket, in both directions.
#[inline(always)]
fn spill(
    ctx: &SockAddrContext,
    frontend: &SocketAddress,
    backend: &SocketAddress,
    selection: &Selection<'_>,
) -> bool {
    // The answer's direction first: a backend kept without it would show its own address.
    point_back(ctx, frontend, selection)
        && tables::remember_datagram(
            &spill_key(ctx, frontend, direction::FORWARD),
            &DatagramValue {
                peer: *backend,
                service_id: selection.service_id,
                backend_id: selection.backend.id,
                slot: selection.slot,
            },
        )
}

/// What this backend sends next is taken for an answer of the frontend.
#[inline(always)]
pub(super) fn point_back(ctx: &SockAddrContext, frontend: &SocketAddress, selection: &Selection<'_>) -> bool {
    point_back_to(
        ctx,
        &selection.backend.socket_address(),
        &DatagramValue {
            peer: *frontend,
            service_id: selection.service_id,
            backend_id: selection.backend.id,
            slot: selection.slot,
        },
    )
}

/// The same, of the pair in the socket's own storage.
#[inline(always)]
fn point_back_own(ctx: &SockAddrContext, socket: &SocketState) {
    let SocketState { frontend, backend, service_id, backend_id, slot, .. } = *socket;
    point_back_to(ctx, &backend, &DatagramValue { peer: frontend, service_id, backend_id, slot });
}

#[inline(always)]
fn point_back_to(ctx: &SockAddrContext, backend: &SocketAddress, frontend: &DatagramValue) -> bool {
    let key = spill_key(ctx, backend, direction::REVERSE);
    if tables::datagram(&key).is_some_and(|present| same_peer(&present.peer, &frontend.peer)) {
        return true;
    }
    tables::remember_datagram(&key, frontend)
}

/// Before the socket connects: answers that have come already still name their services. Gives the flags that stay.
#[inline(always)]
pub(super) fn set_aside(ctx: &SockAddrContext, socket: &SocketState) -> u32 {
    if socket.state == state::DATAGRAM {
        point_back_own(ctx, socket);
        return flags::SPILLED;
    }
    socket.flags & flags::SPILLED
}

/// The application talks to a backend directly now: its answers must not show a service. Of a connected socket, the
/// backend it has stays the service that it is connected to.
#[inline(always)]
fn forget_direct(ctx: &SockAddrContext, destination: &SocketAddress) {
    let Some(socket) = tables::socket_state(ctx) else { return };
    let unconnected = socket.state != state::CONNECTED || !is_connected(ctx);
    if unconnected && same_peer(&socket.backend, destination) {
        socket.state = state::NONE;
    }
    forget_spilled(ctx, socket, destination);
}

/// Forgets the service that this peer was a backend of, beyond the first.
#[inline(always)]
pub(super) fn forget_spilled(ctx: &SockAddrContext, socket: &SocketState, destination: &SocketAddress) {
    if socket.flags & flags::SPILLED != 0 {
        tables::forget_datagram(&spill_key(ctx, destination, direction::REVERSE));
    }
}

#[inline(always)]
fn spill_key(ctx: &SockAddrContext, peer: &SocketAddress, direction: u32) -> DatagramKey {
    // SAFETY: the context is valid; the helper only reads it.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
    DatagramKey { cookie, peer: *peer, direction }
}
