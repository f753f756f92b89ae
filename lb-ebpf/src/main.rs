//! Sockeye's programs in the kernel: what attaches where. Each entry point is one expression.
//!
//! `socket` decides at the socket: an application's `connect()` or `sendto()` to a service goes to a backend, and the
//! application sees the service. `packet` serves what enters the node from outside. All decisions are `lb_common::decide`'s.
#![no_std]
#![no_main]
// One instruction of assembly, see `verdict`. The pinned stable toolchain builds this crate with its gates open.
#![feature(asm_experimental_arch)]
#![expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "only the kernel calls what the attribute macros make public"
)]
#![expect(clippy::needless_pass_by_value, reason = "the attribute macros hand over the context")]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the attribute macros make a second, public function of each program"
)]

mod packet;
mod socket;
mod tables;
mod verdict;

use core::ffi::c_void;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, SockContext, TcContext, XdpContext},
};
use socket::{V4, V6};

/// The helpers in use are for GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// TCP and connected UDP over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    verdict::allow_or_refuse(&ctx, socket::connect::<V4>(&ctx), socket::connect_closed::<V4>)
}

/// TCP and connected UDP over IPv6, v4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    verdict::allow_or_refuse(&ctx, socket::connect::<V6>(&ctx), socket::connect_closed::<V6>)
}

/// Datagrams with a destination of their own, over IPv4; from IPv6 sockets too, if the destination is v4-mapped.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    verdict::allow_or_refuse(&ctx, socket::sendmsg::<V4>(&ctx), socket::send_closed::<V4>)
}

/// Datagrams with a destination of their own, over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    verdict::allow_or_refuse(&ctx, socket::sendmsg::<V6>(&ctx), socket::send_closed::<V6>)
}

/// The source that a reader of an IPv4 socket is told.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    verdict::allow(socket::recvmsg::<V4>(&ctx))
}

/// The source that a reader of an IPv6 socket is told.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    verdict::allow(socket::recvmsg::<V6>(&ctx))
}

/// The peer of a connected IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    verdict::allow(socket::getpeername::<V4>(&ctx))
}

/// The peer of a connected IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    verdict::allow(socket::getpeername::<V6>(&ctx))
}

/// Binding an IPv4 socket.
#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    verdict::allow_bind(socket::post_bind::<V4>(&ctx))
}

/// Binding an IPv6 socket.
#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    verdict::allow_bind(socket::post_bind::<V6>(&ctx))
}

/// The connected UDP sockets, for the agent to read. Its section names the kind of iterator.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn connected_udp(element: *const c_void) -> i32 {
    socket::tell_connected(element.cast());
    0
}

/// What arrives at an external device.
#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    verdict::pass_or_drop(&ctx, packet::ingress(&ctx))
}

/// What leaves through an external device.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    verdict::pass_or_drop(&ctx, packet::egress(&ctx))
}

/// What arrives at an external device, before the kernel makes a packet of it.
#[xdp]
pub fn xdp_ingress(ctx: XdpContext) -> u32 {
    verdict::send_or_pass(packet::early(&ctx))
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: the verifier refuses a program from which this could be reached.
    unsafe { core::hint::unreachable_unchecked() }
}
