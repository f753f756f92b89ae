//! TC filters over rtnetlink, as far as aya does not offer it: which BPF filters a device has, and removing a qdisc.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use aya::programs::TcAttachType;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};

/// A BPF filter on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Lower runs first.
    pub(crate) priority: u16,
    /// Its number within the priority.
    pub(crate) handle: u32,
    /// The name that its maker gave it.
    pub(crate) name: String,
    /// The program that it runs.
    pub(crate) program_id: u32,
}

/// `TC_H_CLSACT` and the two hooks below it (`include/uapi/linux/pkt_sched.h`).
const CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Attributes of a filter (`include/uapi/linux/rtnetlink.h`, `pkt_cls.h`).
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// Bytes of `struct nlmsghdr` and of `struct tcmsg`.
const HEADER: usize = 16;
const TCMSG: usize = 20;

/// The BPF filters at a hook; none where the device has no clsact qdisc.
pub(crate) fn list(ifindex: u32, direction: TcAttachType) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    dump(ifindex, direction, |payload| filters.extend(parse(payload)))?;
    Ok(filters)
}

/// Whether there is any filter at a hook, of whatever kind.
pub(crate) fn has_any(ifindex: u32, direction: TcAttachType) -> io::Result<bool> {
    let mut any = false;
    dump(ifindex, direction, |_| any = true)?;
    Ok(any)
}

/// Removes a device's clsact qdisc, with whatever filters it has.
pub(crate) fn remove_clsact(ifindex: u32) -> io::Result<()> {
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let socket = open()?;
    request(&socket, libc::RTM_DELQDISC, flags, &tcmsg(ifindex, CLSACT_HANDLE, CLSACT))?;
    each_message(&socket, |_, _| {})
}

fn dump(ifindex: u32, direction: TcAttachType, mut found: impl FnMut(&[u8])) -> io::Result<()> {
    let parent = match direction {
        TcAttachType::Ingress => INGRESS,
        TcAttachType::Egress => EGRESS,
    };
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let socket = open()?;
    request(&socket, libc::RTM_GETTFILTER, flags, &tcmsg(ifindex, 0, parent))?;
    each_message(&socket, |kind, payload| {
        if kind == libc::RTM_NEWTFILTER {
            found(payload);
        }
    })
}

fn open() -> io::Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

fn request(socket: &OwnedFd, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(HEADER + payload.len());
    message.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(payload);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    Ok(())
}

/// `struct tcmsg`: family, padding, device, handle, parent, info.
fn tcmsg(ifindex: u32, handle: u32, parent: u32) -> [u8; TCMSG] {
    let mut message = [0; TCMSG];
    let (words, _) = message[4..].as_chunks_mut();
    for (word, value) in words.iter_mut().zip([ifindex, handle, parent]) {
        *word = value.to_ne_bytes();
    }
    message
}

/// Reads the answer: parts of a dump until its end, or one acknowledgement.
fn each_message(socket: &OwnedFd, mut found: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, payload, next)) = split_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => return acknowledged(payload),
                _ => found(kind, payload),
            }
            rest = next;
        }
    }
}

/// Kind and payload of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = word(bytes, 0)? as usize;
    let kind = half(bytes, 4)?;
    let payload = bytes.get(HEADER..length)?;
    Some((kind, payload, bytes.get(aligned(length)..).unwrap_or_default()))
}

/// An error message holds a negative errno; zero is success.
fn acknowledged(payload: &[u8]) -> io::Result<()> {
    match word(payload, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn parse(payload: &[u8]) -> Option<Filter> {
    let (handle, info) = (word(payload, 8)?, word(payload, 16)?);
    let attributes = payload.get(TCMSG..)?;
    if text(attribute(attributes, TCA_KIND)?) != "bpf" {
        return None;
    }
    let options = attribute(attributes, TCA_OPTIONS)?;
    let program_id = word(attribute(options, TCA_BPF_ID)?, 0)?;
    let name = attribute(options, TCA_BPF_NAME).map(text).unwrap_or_default();
    Some(Filter { priority: (info >> 16) as u16, handle, name, program_id })
}

/// The value of the first attribute of a kind (`struct rtattr`: length, kind, value).
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (length, kind) = (half(bytes, 0)? as usize, half(bytes, 2)?);
        let value = bytes.get(4..length)?;
        // The upper bits say how the value is encoded.
        if kind & 0x3fff == wanted {
            return Some(value);
        }
        bytes = bytes.get(aligned(length)..)?;
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(aligned(bytes.len()), 0);
        bytes
    }

    fn filter(kind: &[u8]) -> Vec<u8> {
        let mut payload = tcmsg(3, 0x77, INGRESS).to_vec();
        payload[16..20].copy_from_slice(&(9_u32 << 16 | 3).to_ne_bytes());
        payload.extend(attr(TCA_KIND, kind));
        let options = [attr(TCA_BPF_NAME, b"tc_ingress\0"), attr(TCA_BPF_ID, &42_u32.to_ne_bytes())].concat();
        payload.extend(attr(TCA_OPTIONS | 0x8000, &options));
        payload
    }

    #[test]
    fn reads_a_bpf_filter_and_no_other() {
        let expected = Filter { priority: 9, handle: 0x77, name: "tc_ingress".to_owned(), program_id: 42 };
        assert_eq!(parse(&filter(b"bpf\0")), Some(expected));
        assert_eq!(parse(&filter(b"u32\0")), None);
    }

    #[test]
    fn a_truncated_message_is_no_filter() {
        let whole = filter(b"bpf\0");
        for length in 0..whole.len() - 1 {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn messages_are_split_at_their_aligned_lengths() {
        let mut bytes = 18_u32.to_ne_bytes().to_vec();
        bytes.extend(7_u16.to_ne_bytes());
        bytes.resize(18, 0);
        bytes.resize(20, 0);
        bytes.extend(16_u32.to_ne_bytes());
        bytes.extend(3_u16.to_ne_bytes());
        bytes.resize(36, 0);
        let (kind, payload, rest) = split_message(&bytes).unwrap();
        assert_eq!((kind, payload.len()), (7, 2));
        let (kind, payload, rest) = split_message(rest).unwrap();
        assert_eq!((kind, payload.len(), rest.len()), (3, 0, 0));
        assert!(split_message(rest).is_none());
    }

    #[test]
    fn an_acknowledgement_is_an_errno() {
        acknowledged(&0_i32.to_ne_bytes()).unwrap();
        let error = acknowledged(&(-libc::ENOENT).to_ne_bytes()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
