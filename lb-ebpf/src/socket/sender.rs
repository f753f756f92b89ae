//! The address that a client's packets will bear, for Services that admit some sources only.
//!
//! A socket that connects has none yet, unless it is bound. The host's will be the node's, and a pod's is known by its
//! network namespace.

use core::ptr;

use aya_ebpf::programs::SockAddrContext;
use lb_common::address::Address;

use super::{namespace, raw};
use crate::tables;

/// The sender of what goes to `destination`: `own`, if the socket or the datagram has chosen it; none: unknown.
#[inline(always)]
pub(super) fn sender(ctx: &SockAddrContext, own: &Address, destination: &Address) -> Option<Address> {
    if !own.is_unspecified() {
        return Some(*own);
    }
    let (namespace, v4) = (namespace(ctx), destination.is_v4());
    let config = tables::config()?;
    let address = if config.host_netns_cookie == namespace {
        if v4 { config.node_v4 } else { config.node_v6 }
    } else {
        let pod = tables::namespace_addresses(namespace)?;
        if v4 { pod.v4 } else { pod.v6 }
    };
    if address.is_unspecified() { None } else { Some(address) }
}

/// The address that the socket is bound to, in the family of `destination`; unspecified: none.
///
/// The kernel keeps both forms of a v4-mapped address on an IPv6 socket (`inet6_bind`), so that the family of the
/// destination is enough to know which one counts.
#[inline(always)]
pub(super) fn bound_address(ctx: &SockAddrContext, destination: &Address) -> Address {
    // SAFETY: the member of the union that holds the socket (kernel 5.3), which is never null.
    let socket = unsafe { &*raw(ctx).__bindgen_anon_1.sk };
    let words = &socket.src_ip6;
    // Both are loaded, each from an offset of its own: the compiler would add a chosen offset to the pointer, which the
    // verifier does not allow for sockets.
    let v4 = load(&socket.src_ip4);
    let v6 = [load(&words[0]), load(&words[1]), load(&words[2]), load(&words[3])];
    if destination.is_v4() { Address::from_v4_word(v4) } else { Address::from_words(v6) }
}

/// One load, as it stands.
#[inline(always)]
fn load(word: &u32) -> u32 {
    // SAFETY: from a reference.
    unsafe { ptr::from_ref(word).read_volatile() }
}
