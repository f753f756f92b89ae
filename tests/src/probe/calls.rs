//! Single system calls on one socket of a prober: for what depends on their order.

use std::{
    cell::Cell,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Result, bail};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::{Failure, Prober, Reply, Request, Response};

/// How long a call may wait.
const LIMIT: Duration = Duration::from_secs(2);

/// What kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Domains {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`, which takes v4-mapped addresses too.
    Both,
    /// `AF_INET6` with `IPV6_V6ONLY`.
    V6,
}

/// A system call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// `socket()`; whether of datagrams, or else a stream.
    Socket(Domains, bool),
    /// `bind()`.
    Bind(SocketAddr),
    /// `connect()`.
    Connect(SocketAddr),
    /// `connect()` to `AF_UNSPEC`.
    Disconnect,
    /// `send()`.
    Send,
    /// `sendto()`.
    SendTo(SocketAddr),
    /// `sendmmsg()`, one datagram to each.
    SendMany(Vec<SocketAddr>),
    /// `recvfrom()`.
    Receive,
    /// `recvfrom()` that leaves the datagram there.
    Peek,
    /// `recvmmsg()`, until so many have come.
    ReceiveMany(usize),
    /// `getpeername()`.
    Peer,
}

/// What a call gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The address of a peer or of each sender.
    pub addresses: Vec<SocketAddr>,
    /// What each sender said.
    pub replies: Vec<Reply>,
    /// What went wrong.
    pub failure: Option<Failure>,
}

impl Seen {
    /// Nothing went wrong; otherwise an error that tells what.
    pub fn done(self) -> Result<Self> {
        match self.failure {
            Some(failure) => bail!("{failure}"),
            None => Ok(self),
        }
    }

    /// The name of the error number; an error if nothing went wrong.
    pub fn errno(self) -> Result<String> {
        match self.failure {
            Some(failure) => Ok(failure.errno),
            None => bail!("it succeeded: {self:?}"),
        }
    }

    /// The one address.
    pub fn address(self) -> Result<SocketAddr> {
        match self.done()?.addresses[..] {
            [address] => Ok(address),
            ref other => bail!("{} addresses", other.len()),
        }
    }

    /// Who answered, and what the application takes it for.
    pub fn answer(self) -> Result<(SocketAddr, Reply)> {
        let seen = self.done()?;
        match (&seen.addresses[..], &seen.replies[..]) {
            ([address], [reply]) => Ok((*address, reply.clone())),
            _ => bail!("not one answer: {seen:?}"),
        }
    }
}

/// A socket of a prober; closed on drop.
#[derive(Debug)]
pub struct RemoteSocket<'a> {
    prober: &'a Prober,
    id: u32,
}

thread_local! {
    static NEXT: Cell<u32> = const { Cell::new(0) };
}

impl Prober {
    /// A new UDP socket.
    pub fn datagram_socket(&self, domains: Domains) -> Result<RemoteSocket<'_>> {
        self.socket(domains, true)
    }

    /// A new TCP socket.
    pub fn stream_socket(&self, domains: Domains) -> Result<RemoteSocket<'_>> {
        self.socket(domains, false)
    }

    fn socket(&self, domains: Domains, datagrams: bool) -> Result<RemoteSocket<'_>> {
        let id = NEXT.get();
        NEXT.set(id + 1);
        let socket = RemoteSocket { prober: self, id };
        socket.call(Call::Socket(domains, datagrams))?.done()?;
        Ok(socket)
    }
}

impl RemoteSocket<'_> {
    /// Makes a call.
    pub fn call(&self, call: Call) -> Result<Seen> {
        match self.prober.exchange(&Request::Call(self.id, call))? {
            Response::Seen(seen) => Ok(seen),
            other => bail!("{other:?} in answer to a call"),
        }
    }

    /// `connect()`.
    pub fn connect(&self, to: SocketAddr) -> Result<Seen> {
        self.call(Call::Connect(to))
    }

    /// `connect()` to `AF_UNSPEC`.
    pub fn disconnect(&self) -> Result<Seen> {
        self.call(Call::Disconnect)
    }

    /// `getpeername()`.
    pub fn peer(&self) -> Result<Seen> {
        self.call(Call::Peer)
    }

    /// `send()`, and the answer.
    pub fn ask(&self) -> Result<(SocketAddr, Reply)> {
        self.call(Call::Send)?.done()?;
        self.call(Call::Receive)?.answer()
    }

    /// `sendto()`, and the answer.
    pub fn ask_at(&self, to: SocketAddr) -> Result<(SocketAddr, Reply)> {
        self.call(Call::SendTo(to))?.done()?;
        self.call(Call::Receive)?.answer()
    }
}

impl Drop for RemoteSocket<'_> {
    fn drop(&mut self) {
        // A prober that is gone has closed it.
        drop(self.prober.exchange(&Request::Drop(self.id)));
    }
}

/// Makes a call on the prober's side; `socket` is `None` before the first.
pub(super) fn perform(socket: &mut Option<UdpSocket>, call: &Call) -> Seen {
    let mut seen = Seen::default();
    if let Err(error) = attempt(socket, call, &mut seen) {
        let name = format!("{call:?}");
        let step = name.split('(').next().unwrap_or_default().to_lowercase();
        seen.failure = Some(Failure { step, errno: super::sockets::errno(&error) });
    }
    seen
}

fn attempt(place: &mut Option<UdpSocket>, call: &Call, seen: &mut Seen) -> io::Result<()> {
    if let Call::Socket(domains, datagrams) = call {
        *place = Some(new_socket(*domains, *datagrams)?);
        return Ok(());
    }
    let socket = place.as_ref().ok_or_else(|| io::Error::other("no socket"))?;
    match call {
        Call::Socket(..) => {}
        Call::Bind(to) => Socket::from(socket.try_clone()?).bind(&(*to).into())?,
        Call::Connect(to) => socket.connect(to)?,
        Call::Disconnect => disconnect(socket)?,
        Call::Send => drop(socket.send(b"?")?),
        Call::SendTo(to) => drop(socket.send_to(b"?", to)?),
        Call::SendMany(to) => send_many(socket, to)?,
        Call::Receive => {
            let mut buffer = [0; 2048];
            let (length, from) = socket.recv_from(&mut buffer)?;
            seen.note(from, &buffer[..length])?;
        }
        Call::Peek => {
            let mut buffer = [0; 2048];
            let (length, from) = socket.peek_from(&mut buffer)?;
            seen.note(from, &buffer[..length])?;
        }
        Call::ReceiveMany(count) => receive_many(socket, *count, seen)?,
        Call::Peer => seen.addresses.push(socket.peer_addr()?),
    }
    Ok(())
}

/// The standard library's UDP socket is a descriptor with these calls, whatever its type.
fn new_socket(domains: Domains, datagrams: bool) -> io::Result<UdpSocket> {
    let domain = if domains == Domains::V4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, if datagrams { Type::DGRAM } else { Type::STREAM }, None)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(domains == Domains::V6)?;
    }
    socket.set_read_timeout(Some(LIMIT))?;
    socket.set_write_timeout(Some(LIMIT))?;
    Ok(socket.into())
}

fn disconnect(socket: &UdpSocket) -> io::Result<()> {
    let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    let length = size_of_val(&unspecified) as libc::socklen_t;
    // SAFETY: the pointer and the length are those of an address that lives through the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const unspecified, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn send_many(socket: &UdpSocket, to: &[SocketAddr]) -> io::Result<()> {
    let text = [[IoSlice::new(b"?")]];
    let texts = text.iter().cycle().take(to.len());
    let addresses: Vec<_> = to.iter().map(|to| Some(SockaddrStorage::from(*to))).collect();
    let mut headers = MultiHeaders::preallocate(to.len(), None);
    let sent = sendmmsg(socket.as_raw_fd(), &mut headers, texts, &addresses, [], MsgFlags::empty())?.count();
    if sent == to.len() { Ok(()) } else { Err(io::Error::other(format!("{sent} of {} sent", to.len()))) }
}

fn receive_many(socket: &UdpSocket, count: usize, seen: &mut Seen) -> io::Result<()> {
    while seen.replies.len() < count {
        let mut buffers = vec![[0; 2048]; count - seen.replies.len()];
        let got = receive_batch(socket, &mut buffers)?;
        for ((from, length), buffer) in got.into_iter().zip(&buffers) {
            let from = from.ok_or_else(|| io::Error::other("a datagram without a sender"))?;
            seen.note(from, &buffer[..length])?;
        }
    }
    Ok(())
}

/// Sender and length of the datagrams that one call finds.
fn receive_batch(
    socket: &UdpSocket,
    buffers: &mut [[u8; 2048]],
) -> io::Result<Vec<(Option<SocketAddr>, usize)>> {
    let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(slices.len(), None);
    let messages = recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_WAITFORONE, None)?;
    Ok(messages.map(|message| (message.address.as_ref().and_then(to_std), message.bytes)).collect())
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
}

impl Seen {
    fn note(&mut self, from: SocketAddr, text: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(text);
        self.addresses.push(from);
        self.replies.push(text.parse().map_err(|error| io::Error::other(format!("{error:#}")))?);
        Ok(())
    }
}
