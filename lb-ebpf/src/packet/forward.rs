//! Where a packet goes next: to this node's stack, or out through a device.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
        BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
    },
    helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use lb_common::{
    address::{Protocol, SocketAddress},
    outcome::{Outcome, Reason},
};

use super::{
    answer::Failure,
    parse::{self, Network},
};
use crate::tables;

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
    ctx: &TcContext,
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

/// The device that the packet leaves through, if it is not too long for the way.
#[inline(always)]
pub(super) fn route(
    ctx: &TcContext,
    network: &Network,
    source: &SocketAddress,
    destination: &SocketAddress,
) -> Result<u32, Failure> {
    let length = length_on_the_wire(ctx, network)?;
    let answer = fib(ctx, network, source, destination, length);
    match answer.code {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => Ok(answer.device),
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
/// Devices may hand over many segments as one packet; `gso_size` is what each of them carries.
#[inline(always)]
fn length_on_the_wire(ctx: &TcContext, network: &Network) -> Result<u16, Reason> {
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the kernel hands each program a valid context.
    let (length, segment) = unsafe { ((*skb).len, (*skb).gso_size) };
    let mut length = length as usize - network.offset;
    if segment != 0 {
        let header = if network.protocol == Protocol::Tcp as u8 {
            // Its upper half counts words (RFC 9293, section 3.1).
            usize::from(parse::load::<u8>(ctx, network.payload + 12)? >> 4) * 4
        } else {
            8
        };
        length = network.payload - network.offset + header + segment as usize;
    }
    Ok(if length > 0xffff { 0xffff } else { length as u16 })
}

/// Sends the packet out; the kernel finds the neighbour, and asks for it if it does not know it.
#[inline(always)]
pub(super) fn redirect(device: u32, outcome: Outcome) -> Step {
    // SAFETY: no parameters: the helper looks the next hop up by the packet's destination.
    Step::Redirect(outcome, unsafe { bpf_redirect_neigh(device, ptr::null_mut(), 0, 0) } as i32)
}

/// A look-up in the node's routes as for a packet to be forwarded: the kernel's answer, and the device.
///
/// The device is told with `NO_NEIGH` too since kernel 5.10 (commit d1c362e1dd68).
#[inline(always)]
fn fib(
    ctx: &TcContext,
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
        // SAFETY: the kernel hands each program a valid context.
        device: unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).ifindex },
        flow_info: 0,
        source: source_words,
        destination: destination_words,
        link: [0; 4],
    };
    // SAFETY: the context is valid; the parameters have the helper's layout and size.
    let answer = unsafe { fib_lookup(ctx.as_ptr(), (&raw mut params).cast(), FIB_PARAMS, 0) };
    // A negative answer is an error number: as an unsigned number it is none of the defined answers.
    FibAnswer { code: (answer as i32).cast_unsigned(), device: params.device, mtu: params.length }
}

/// What the kernel says of a route.
struct FibAnswer {
    /// One of `BPF_FIB_LKUP_RET_*`.
    code: u32,
    /// The device; told with most codes.
    device: u32,
    /// The size that fits, if the code says that the packet's does not.
    mtu: u16,
}

/// `struct bpf_fib_lookup` (`include/uapi/linux/bpf.h`), without the unions of fields that are not needed here.
#[repr(C)]
struct FibParams {
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
    /// Out: VLAN, source and destination MAC address.
    link: [u32; 4],
}

/// The helper's size of [`FibParams`].
const FIB_PARAMS: i32 = 64;
const _: () = assert!(size_of::<FibParams>() == 64 && size_of::<bpf_fib_lookup>() == 64);
