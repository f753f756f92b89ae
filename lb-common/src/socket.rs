//! What a socket remembers (`SOCKETS`), and the spill of sockets that talk to several services (`DATAGRAMS`).

use bytemuck::{Pod, Zeroable};

use crate::{address::SocketAddress, backend::BackendId};

/// Values of [`SocketState::state`].
pub mod state {
    /// Nothing is translated on this socket now.
    pub const NONE: u32 = 0;
    /// Connected through a service (TCP or connected UDP). Unconnected UDP too, after `connect()` to `AF_UNSPEC` and until the
    /// next `sendto()`.
    pub const CONNECTED: u32 = 1;
    /// Unconnected UDP: the last service that the socket sent to.
    pub const DATAGRAM: u32 = 2;
}

/// Value of `SOCKETS`, the storage on the socket itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketState {
    /// Cookie of the socket's network namespace, of connected UDP: where the agent ends it when its backend has left.
    /// Zero for all others.
    pub namespace: u64,
    /// Where the application wanted to go: what `getpeername` and `recvmsg` show.
    pub frontend: SocketAddress,
    /// Where its traffic goes.
    pub backend: SocketAddress,
    /// The service port's number.
    pub service_id: u32,
    /// The backend's number.
    pub backend_id: BackendId,
    /// The slot that the backend was found in, tried first when the choice is checked again.
    pub slot: u32,
    /// See [`state`].
    pub state: u32,
    /// See [`flags`].
    pub flags: u32,
    /// The socket's protocol, by its IANA number.
    pub protocol: u32,
}

const _: () = assert!(size_of::<SocketState>() == 72);

/// What the iterator over `SOCKETS` tells of a connected UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ConnectedSocket {
    /// The socket's cookie.
    pub cookie: u64,
    /// What it remembers.
    pub state: SocketState,
}

/// Bits of [`SocketState::flags`].
pub mod flags {
    /// Further pairs of this socket stand in `DATAGRAMS`.
    pub const SPILLED: u32 = 1 << 0;
    /// The backend serves several of the socket's services: `DATAGRAMS` holds which one was used last, and that is the
    /// one that the next answer is taken for.
    pub const SHARED: u32 = 1 << 1;
}

/// Values of [`DatagramKey::direction`].
pub mod direction {
    /// The peer is a frontend; the value holds the backend chosen for it.
    pub const FORWARD: u32 = 0;
    /// The peer is a backend; the value holds the frontend that it answers for.
    pub const REVERSE: u32 = 1;
}

/// Key of `DATAGRAMS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DatagramKey {
    /// The socket's cookie.
    pub cookie: u64,
    /// The frontend or the backend.
    pub peer: SocketAddress,
    /// See [`direction`].
    pub direction: u32,
}

/// Value of `DATAGRAMS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct DatagramValue {
    /// The backend of a frontend, or the frontend of a backend.
    pub peer: SocketAddress,
    /// The service port's number.
    pub service_id: u32,
    /// The backend's number.
    pub backend_id: BackendId,
    /// The slot that the backend was found in.
    pub slot: u32,
}
