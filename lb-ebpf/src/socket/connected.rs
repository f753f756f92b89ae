//! The connected UDP sockets, told to the agent: it ends those whose backend has left.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::seq_file,
    helpers::generated::{bpf_get_socket_cookie, bpf_seq_write},
};
use lb_common::socket::{ConnectedSocket, SocketState, state};

/// `struct bpf_iter__bpf_sk_storage_map` (`net/core/bpf_sk_storage.c`): one socket's element of the map.
#[repr(C)]
pub(crate) struct Element {
    meta: *const Meta,
    map: *const c_void,
    /// Null after the last element.
    socket: *mut c_void,
    /// Null after the last element.
    value: *const SocketState,
}

/// `struct bpf_iter_meta` (include/linux/bpf.h).
#[repr(C)]
struct Meta {
    file: *mut seq_file,
}

/// Tells of the element's socket if it is UDP and connected through a service.
#[inline(always)]
pub(crate) fn tell(element: *const Element) {
    // SAFETY: the kernel hands each iterator a valid context.
    let Element { meta, socket, value, .. } = unsafe { &*element };
    // SAFETY: a value of this map is of this type; programs may write it meanwhile, and the agent looks at the socket
    // itself before it does anything.
    let (false, Some(value)) = (socket.is_null(), unsafe { value.as_ref() }) else { return };
    if value.state != state::CONNECTED || value.namespace == 0 {
        return;
    }
    // SAFETY: the kernel takes a socket here since 5.12 and only reads it.
    let cookie = unsafe { bpf_get_socket_cookie(*socket) };
    let told = ConnectedSocket { cookie, state: *value };
    let length = size_of::<ConnectedSocket>() as u32;
    // SAFETY: the context's metadata are valid for the whole run.
    let file = unsafe { (**meta).file };
    // SAFETY: reads this many bytes of `told`. A full buffer makes the kernel run the program once more for this element.
    let _retried = unsafe { bpf_seq_write(file, (&raw const told).cast(), length) };
}
