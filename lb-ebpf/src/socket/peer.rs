//! `getpeername()`: the application sees the service that it connected to.

use aya_ebpf::programs::SockAddrContext;
use lb_common::{
    decide::same_peer,
    outcome::{Outcome, Reason},
    socket::state,
};

use super::{Family, set_socket_address, socket_address};
use crate::tables;

/// Shows the frontend in place of the backend.
#[inline(always)]
pub(crate) fn getpeername<F: Family>(ctx: &SockAddrContext) -> Result<Outcome, Reason> {
    let socket = tables::socket_state(ctx).ok_or(Reason::NothingToRestore)?;
    if socket.state != state::CONNECTED || !same_peer(&socket.backend, &socket_address::<F>(ctx)) {
        return Err(Reason::NothingToRestore);
    }
    let frontend = socket.frontend;
    set_socket_address::<F>(ctx, &frontend);
    Ok(Outcome::PeerRestored)
}
