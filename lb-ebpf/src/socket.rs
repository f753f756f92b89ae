//! What an application sees: the address it asked for, and a backend that answers.
//!
//! The hooks' bodies are the same for both families; [`Family`] is all that differs: how the kernel's context holds
//! an address.

mod bind;
mod closed;
mod connect;
mod connected;
mod datagram;
mod peer;
mod sender;

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_netns_cookie,
    },
    programs::SockAddrContext,
};
use lb_common::{
    address::{Address, Port, Protocol, SocketAddress},
    affinity::Client,
    config::Config,
    decide::Source,
};

pub(crate) use self::{
    bind::post_bind,
    closed::{connect_closed, send_closed},
    connect::connect,
    connected::tell as tell_connected,
    datagram::{recvmsg, sendmsg},
    peer::getpeername,
};
use crate::tables;

/// How a context holds an address.
pub(crate) trait Family {
    /// Reads it.
    fn address(ctx: &SockAddrContext) -> Address;
    /// Replaces it.
    fn set_address(ctx: &SockAddrContext, address: &Address);
    /// The source that a datagram is to be sent from, in `sendmsg` alone; unspecified: the kernel will choose one.
    fn message_source(ctx: &SockAddrContext) -> Address;
}

/// `user_ip4`.
pub(crate) struct V4;

/// `user_ip6`.
pub(crate) struct V6;

impl Family for V4 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address {
        Address::from_v4_word(raw(ctx).user_ip4)
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address) {
        raw_mut(ctx).user_ip4 = address.v4_word();
    }

    #[inline(always)]
    fn message_source(ctx: &SockAddrContext) -> Address {
        Address::from_v4_word(raw(ctx).msg_src_ip4)
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(ctx: &SockAddrContext) -> Address {
        let words = &raw(ctx).user_ip6;
        Address::from_words([words[0], words[1], words[2], words[3]])
    }

    #[inline(always)]
    fn set_address(ctx: &SockAddrContext, address: &Address) {
        let words = address.words();
        let target = &mut raw_mut(ctx).user_ip6;
        target[0] = words[0];
        target[1] = words[1];
        target[2] = words[2];
        target[3] = words[3];
    }

    #[inline(always)]
    fn message_source(ctx: &SockAddrContext) -> Address {
        let words = &raw(ctx).msg_src_ip6;
        Address::from_words([words[0], words[1], words[2], words[3]])
    }
}

#[inline(always)]
fn raw(ctx: &SockAddrContext) -> &bpf_sock_addr {
    // SAFETY: the kernel hands each program a valid context.
    unsafe { &*ctx.sock_addr }
}

#[inline(always)]
#[expect(
    clippy::mut_from_ref,
    reason = "the context is the kernel's; a program is its only user while it runs"
)]
fn raw_mut(ctx: &SockAddrContext) -> &mut bpf_sock_addr {
    // SAFETY: as in `raw`.
    unsafe { &mut *ctx.sock_addr }
}

/// Address and port of the call.
#[inline(always)]
fn socket_address<F: Family>(ctx: &SockAddrContext) -> SocketAddress {
    // The field has 32 bits, of which the first 16 in memory are the port in network order.
    SocketAddress::new(F::address(ctx), Port::from_wire(raw(ctx).user_port as u16))
}

/// Replaces address and port of the call.
#[inline(always)]
fn set_socket_address<F: Family>(ctx: &SockAddrContext, to: &SocketAddress) {
    F::set_address(ctx, &to.address);
    raw_mut(ctx).user_port = u32::from(to.port.wire());
}

/// The socket's protocol, if it is one that is translated here.
#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Option<Protocol> {
    translated(raw(ctx).protocol)
}

/// The protocol of this number, if it is one that is translated at the socket.
#[inline(always)]
fn translated(number: u32) -> Option<Protocol> {
    const TCP: u32 = Protocol::Tcp as u32;
    const UDP: u32 = Protocol::Udp as u32;
    match number {
        TCP => Some(Protocol::Tcp),
        UDP => Some(Protocol::Udp),
        _ => None,
    }
}

/// Whether the socket is in the host's network namespace.
#[inline(always)]
fn source(ctx: &SockAddrContext) -> Source {
    match tables::config() {
        Some(config) if config.host_netns_cookie == namespace(ctx) => Source::Host,
        _ => Source::Pod,
    }
}

/// Who connects, for session affinity.
#[inline(always)]
fn client(ctx: &SockAddrContext) -> Client {
    let namespace = namespace(ctx);
    match tables::config() {
        Some(config) if config.host_netns_cookie == namespace => Client::Cgroup(pod_cgroup(config)),
        _ => Client::Namespace(namespace),
    }
}

#[inline(always)]
fn namespace(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid; the helper only reads it.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The cgroup of the pod or the system service that the process belongs to: two levels below the root, or three where
/// pods are grouped by quality of service.
#[inline(always)]
fn pod_cgroup(config: &Config) -> u64 {
    let level = config.cgroup_level.cast_signed();
    let second = ancestor(level + 2);
    let id = if second != 0 && config.qos_cgroups.contains(&second) { ancestor(level + 3) } else { second };
    if id != 0 {
        return id;
    }
    // SAFETY: no arguments, no memory.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Zero: the process is not that deep.
#[inline(always)]
fn ancestor(level: i32) -> u64 {
    // SAFETY: the helper only takes a number.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}
