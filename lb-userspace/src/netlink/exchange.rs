//! One question to the kernel over netlink, and its answers; blocking, for a thread that stands in another network
//! namespace than the agent.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// More than the kernel puts into one packet of a dump (32 KiB, `netlink_dump` of `af_netlink.c`).
const BUFFER: usize = 64 << 10;

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One object, or that something be done.
    One,
    /// All that match.
    Dump,
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Exchange {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Exchange {
    /// Opens it; `protocol` is one of `netlink_sys::protocols`.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: vec![0; BUFFER] })
    }

    /// Asks, and hands over the answers one by one. What is asked and what is answered may be of different types.
    pub(crate) fn ask<Q, A>(&mut self, question: Q, scope: Scope, mut answer: impl FnMut(A)) -> io::Result<()>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        let mut header = NetlinkHeader::default();
        // An acknowledgement marks the end of what a dump ends with a message of its own.
        header.flags = NLM_F_REQUEST | if scope == Scope::Dump { NLM_F_DUMP } else { NLM_F_ACK };
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        message.finalize();
        let mut packet = vec![0; message.buffer_len()];
        message.serialize(&mut packet);
        self.socket.send(&packet, 0)?;
        loop {
            let length = self.socket.recv(&mut &mut self.buffer[..], 0)?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<A>::deserialize(rest).map_err(io::Error::other)?;
                // Messages begin at multiples of four bytes (`NLMSG_ALIGNTO`).
                let next = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => answer(inner),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        return error.code.map_or(Ok(()), |_| Err(error.to_io()));
                    }
                    NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
                    _ => {}
                }
            }
        }
    }
}
