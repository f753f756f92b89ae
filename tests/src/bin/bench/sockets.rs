//! The measured system calls: UDP sockets that connect.
//!
//! Raw system calls on prepared addresses, so that nothing but the kernel is inside the clock.

use std::{
    io,
    mem::size_of,
    net::SocketAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Instant,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrLike as _, SockaddrStorage, socket};

/// Sockets that are open at once in one batch: few enough to stay in the processor's caches.
pub(crate) const BATCH: usize = 64;

/// A destination as the kernel takes it.
#[derive(Clone)]
pub(crate) struct Destination(SockaddrStorage);

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self(SockaddrStorage::from(address))
    }
}

/// What a batch took, in nanoseconds for each socket.
#[derive(Clone, Copy)]
pub(crate) struct Timing {
    /// `connect()`.
    pub(crate) connect: f64,
    /// `close()`, which frees what `connect()` stored.
    pub(crate) close: f64,
}

/// A fresh socket for each destination: what a program sees that opens a connection.
pub(crate) fn connect_fresh(destinations: &[Destination]) -> io::Result<Timing> {
    let sockets: Vec<OwnedFd> = destinations.iter().map(open).collect::<io::Result<_>>()?;
    let start = Instant::now();
    for (socket, destination) in sockets.iter().zip(destinations) {
        connect(socket, destination)?;
    }
    let connected = Instant::now();
    drop(sockets);
    let closed = Instant::now();
    Ok(Timing {
        connect: each(start, connected, destinations.len()),
        close: each(connected, closed, destinations.len()),
    })
}

/// One socket that connects to one destination after the other: no port to bind, no storage to allocate.
pub(crate) fn reconnect(destinations: &[Destination]) -> io::Result<f64> {
    let Some(first) = destinations.first() else { return Ok(f64::NAN) };
    let socket = open(first)?;
    connect(&socket, first)?;
    let start = Instant::now();
    for destination in destinations {
        connect(&socket, destination)?;
    }
    Ok(each(start, Instant::now(), destinations.len()))
}

/// A socket of the destination's family.
pub(crate) fn open(destination: &Destination) -> io::Result<OwnedFd> {
    let family = destination.0.family().unwrap_or(AddressFamily::Inet);
    Ok(socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// `connect()`, and nothing else.
pub(crate) fn connect(socket: &OwnedFd, destination: &Destination) -> io::Result<()> {
    const { assert!(size_of::<SockaddrStorage>() >= size_of::<libc::sockaddr_in6>()) };
    // SAFETY: the pointer and the length are those of an address that lives through the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), destination.0.as_ptr(), destination.0.len()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn each(from: Instant, to: Instant, number: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a batch is small and short")]
    let nanoseconds = (to - from).as_nanos() as f64 / number as f64;
    nanoseconds
}
