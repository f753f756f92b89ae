//! `bind()`: a process of the host cannot take a node port, which the programs would keep from it anyway.

use aya_ebpf::{
    EbpfContext, bindings::bpf_sock, helpers::generated::bpf_get_netns_cookie, programs::SockContext,
};
use lb_common::{
    address::{Address, Port, SocketAddress},
    config::flags,
    decide,
    frontend::FrontendKey,
    outcome::Reason,
};

use crate::tables::{self, Maps};

/// How a bound socket holds its address.
pub(crate) trait Bound {
    /// Reads it.
    fn address(socket: &bpf_sock) -> Address;
    /// The addresses of the other family that a socket at the unspecified address serves too, unless it says otherwise
    /// (`IPV6_V6ONLY`, which is not visible here).
    const ALSO_V4: bool;
}

impl Bound for super::V4 {
    #[inline(always)]
    fn address(socket: &bpf_sock) -> Address {
        Address::from_v4_word(socket.src_ip4)
    }
    const ALSO_V4: bool = false;
}

impl Bound for super::V6 {
    #[inline(always)]
    fn address(socket: &bpf_sock) -> Address {
        let words = &socket.src_ip6;
        Address::from_words([words[0], words[1], words[2], words[3]])
    }
    const ALSO_V4: bool = true;
}

/// Refuses a node port that is in use; everything else is not ours.
#[inline(always)]
pub(crate) fn post_bind<B: Bound>(ctx: &SockContext) -> Reason {
    // SAFETY: the kernel hands each program a valid context.
    let socket = unsafe { &*ctx.sock };
    let Some(protocol) = super::translated(socket.protocol) else { return Reason::OtherProtocol };
    let Some(config) = tables::config() else { return Reason::NotAService };
    if config.flags & flags::PROTECT_NODE_PORTS == 0 {
        return Reason::NotAService;
    }
    // The port of a bound socket is in the byte order of the machine (include/uapi/linux/bpf.h).
    let port = Port::from_wire((socket.src_port as u16).to_be());
    let bound = SocketAddress::new(B::address(socket), port);
    let taken = decide::is_node_port(&Maps, &FrontendKey::new(bound.address, port, protocol))
        || (B::ALSO_V4
            && decide::same_peer(&bound, &SocketAddress::new(Address::UNSPECIFIED, port))
            && decide::is_node_port(&Maps, &FrontendKey::new(Address::from_v4_word(0), port, protocol)));
    // SAFETY: the context is valid; the helper only reads it.
    if taken && unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } == config.host_netns_cookie {
        Reason::NodePortTaken
    } else {
        Reason::NotAService
    }
}
