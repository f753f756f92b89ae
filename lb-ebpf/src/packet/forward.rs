//! Where a packet goes next: to this node's stack, or out through a device.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
};
use lb_common::{
    address::{Protocol, SocketAddress},
    outcome::{Outcome, Reason},
};

use super::{
    answer::Failure,
    frame::Frame,
    parse::{self, Network},
};
use crate::tables;

/// The way that a packet leaves the node by.
pub(super) struct Route {
    /// The device.
    pub(super) device: u32,
    /// The addresses of the link; none: the neighbour is not known yet.
    pub(super) link: Option<Link>,
}

/// Ethernet addresses.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Link {
    /// The device's.
    pub(super) source: [u8; 6],
    /// The neighbour's.
    pub(super) destination: [u8; 6],
}

/// What happens to a translated packet.
#[must_use]
pub(crate) enum Step {
    /// The stack takes it on.
    Stack(Outcome),
    /// It leaves the node; the number is the kernel's verdict.
    Redirect(Outcome, i32),
    /// It has become an answer to its sender; the number is the kernel's verdict.
    Answer(Reason, i32),
}

/// `AF_INET` and `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Whether the backend is reached through an external device, which makes it one of another machine.
#[inline(always)]
pub(super) fn leaves_the_node(
    ctx: &impl Frame,
    network: &Network,
    client: &SocketAddress,
    backend: &SocketAddress,
) -> Result<bool, Reason> {
    let answer = fib(ctx, network, client, backend, 0);
    match answer.code {
        // Without a length, the last of these comes after all else was found.
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            Ok(tables::is_external(answer.device))
        }
        // An address of this node: the backend uses the host's network.
        BPF_FIB_LKUP_RET_NOT_FWDED => Ok(false),
        _ => Err(Reason::NoRoute),
    }
}

/// The way that the packet leaves by, if it is not too long for it.
#[inline(always)]
pub(super) fn route(
    ctx: &impl Frame,
    network: &Network,
    source: &SocketAddress,
    destination: &SocketAddress,
) -> Result<Route, Failure> {
    let length = length_on_the_wire(ctx, network)?;
    let answer = fib(ctx, network, source, destination, length);
    match answer.code {
        BPF_FIB_LKUP_RET_SUCCESS => Ok(Route { device: answer.device, link: Some(answer.link) }),
        BPF_FIB_LKUP_RET_NO_NEIGH => Ok(Route { device: answer.device, link: None }),
        // Kernels before 5.12 do not tell the size, and leave the packet's own (commit e1850ea9bd9e).
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            let mtu = if answer.mtu < length { u32::from(answer.mtu) } else { 0 };
            Err(Failure { reason: Reason::TooBig, mtu })
        }
        _ => Err(Reason::NoRoute.into()),
    }
}

/// The length of the longest packet that this one becomes on the wire, from the network header on.
///
/// Devices may hand over many segments as one packet.
#[inline(always)]
fn length_on_the_wire(ctx: &impl Frame, network: &Network) -> Result<u16, Reason> {
    let mut length = ctx.length() - network.offset;
    let segment = ctx.segment();
    if segment != 0 {
        let header = if network.protocol == Protocol::Tcp as u8 {
            // Its upper half counts words (RFC 9293, section 3.1).
            usize::from(parse::load::<u8>(ctx, network.payload + 12)? >> 4) * 4
        } else {
            8
        };
        length = network.payload - network.offset + header + segment;
    }
    Ok(if length > 0xffff { 0xffff } else { length as u16 })
}

/// Sends the packet out.
#[inline(always)]
pub(super) fn send_out(ctx: &impl Frame, route: &Route, outcome: Outcome) -> Result<Step, Reason> {
    Ok(Step::Redirect(outcome, ctx.send_out(route)?))
}

/// A look-up in the node's routes as for a packet to be forwarded: the kernel's answer, and the device.
///
/// The device is told with `NO_NEIGH` too since kernel 5.10 (commit d1c362e1dd68).
#[inline(always)]
fn fib(
    ctx: &impl Frame,
    network: &Network,
    source: &SocketAddress,
    destination: &SocketAddress,
    length: u16,
) -> FibAnswer {
    let (family, source_words, destination_words) = if network.v4 {
        (AF_INET, [source.address.v4_word(), 0, 0, 0], [destination.address.v4_word(), 0, 0, 0])
    } else {
        (AF_INET6, source.address.words(), destination.address.words())
    };
    let mut params = FibParams {
        family,
        protocol: network.protocol,
        source_port: source.port.wire(),
        destination_port: destination.port.wire(),
        length,
        device: ctx.device(),
        flow_info: 0,
        source: source_words,
        destination: destination_words,
        vlan: 0,
        link: Link { source: [0; 6], destination: [0; 6] },
    };
    let code = ctx.fib_lookup(&mut params);
    FibAnswer { code, device: params.device, mtu: params.length, link: params.link }
}

/// What the kernel says of a route.
struct FibAnswer {
    /// One of `BPF_FIB_LKUP_RET_*`.
    code: u32,
    /// The device; told with most codes.
    device: u32,
    /// The size that fits, if the code says that the packet's does not.
    mtu: u16,
    /// The addresses of the link; told with success.
    link: Link,
}

/// `struct bpf_fib_lookup` (`include/uapi/linux/bpf.h`), without the unions of fields that are not needed here.
#[repr(C)]
pub(super) struct FibParams {
    family: u8,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// In: of the packet; zero: the device's MTU is checked instead of the route's. Out: the MTU, if it is too long.
    length: u16,
    /// In: where the packet arrived. Out: where it leaves.
    device: u32,
    flow_info: u32,
    /// IPv4: the first word.
    source: [u32; 4],
    destination: [u32; 4],
    /// Out: zero (`bpf_fib_set_fwd_params`).
    vlan: u32,
    /// Out: the addresses of the link.
    link: Link,
}

impl FibParams {
    /// The helper's size of them.
    pub(super) const SIZE: i32 = 64;
}

const _: () = assert!(size_of::<FibParams>() == 64 && size_of::<bpf_fib_lookup>() == 64);
