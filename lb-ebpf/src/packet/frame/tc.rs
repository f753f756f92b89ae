//! Packets at TC: socket buffers, with the kernel's helpers.
//!
//! The helpers update checksums by differences (RFC 1624): they know whether the packet's checksum is complete, left to
//! the device, or already verified.

use core::{arch::asm, mem, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh},
    programs::TcContext,
};
use lb_common::{checksum::Difference, outcome::Reason};

use super::{Frame, Zero};
use crate::packet::forward::{FibParams, Route};

impl Frame for TcContext {
    #[inline(always)]
    fn read<T>(&self, offset: usize) -> Result<T, Reason> {
        match place::<T>(self, offset) {
            // SAFETY: within the packet. The verifier checks alignment where the machine's loads need it.
            Some(place) => Ok(unsafe { place.read() }),
            None => self.skb.load(offset).map_err(|_| Reason::Malformed),
        }
    }

    #[inline(always)]
    fn write<T>(&self, offset: usize, value: &T) -> Result<(), Reason> {
        let Some(place) = place::<T>(self, offset) else {
            return self.skb.store(offset, value, 0).map_err(failed);
        };
        // SAFETY: as in `read`; the value is plain bytes, of which a copy does no harm.
        unsafe { place.write(mem::transmute_copy(value)) };
        Ok(())
    }

    #[inline(always)]
    fn network_protocol(&self) -> u32 {
        self.skb.protocol()
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the kernel hands each program a valid context.
        unsafe { (*self.as_ptr().cast::<__sk_buff>()).ifindex }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.skb.len() as usize
    }

    #[inline(always)]
    fn segment(&self) -> usize {
        // SAFETY: the kernel hands each program a valid context.
        unsafe { (*self.as_ptr().cast::<__sk_buff>()).gso_size as usize }
    }

    #[inline(always)]
    fn update_network_checksum(&self, offset: usize, difference: Difference) -> Result<(), Reason> {
        self.skb.l3_csum_replace(offset, 0, u64::from(difference.fold32()), 0).map_err(failed)
    }

    #[inline(always)]
    fn update_transport_checksum(
        &self,
        offset: usize,
        pseudo_header: Difference,
        bytes: Difference,
        zero: Zero,
    ) -> Result<(), Reason> {
        let flags = match zero {
            Zero::Sum => 0,
            Zero::None => u64::from(BPF_F_MARK_MANGLED_0),
        };
        let pseudo = flags | u64::from(BPF_F_PSEUDO_HDR);
        self.skb.l4_csum_replace(offset, 0, u64::from(pseudo_header.fold32()), pseudo).map_err(failed)?;
        self.skb.l4_csum_replace(offset, 0, u64::from(bytes.fold32()), flags).map_err(failed)
    }

    #[inline(always)]
    fn fib_lookup(&self, params: &mut FibParams) -> u32 {
        // SAFETY: the context is valid; the parameters have the helper's layout and size.
        let answer = unsafe { bpf_fib_lookup(self.as_ptr(), (&raw mut *params).cast(), FibParams::SIZE, 0) };
        (answer as i32).cast_unsigned()
    }

    /// The kernel finds the neighbour, and asks for it if it does not know it.
    #[inline(always)]
    fn send_out(&self, route: &Route) -> Result<i32, Reason> {
        // SAFETY: no parameters: the helper looks the next hop up by the packet's destination.
        Ok(unsafe { bpf_redirect_neigh(route.device, ptr::null_mut(), 0, 0) } as i32)
    }
}

/// Where a value stands, if it is in the part of the packet that lies in one piece.
#[inline(always)]
fn place<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    let mut end = start + size_of::<T>();
    // The compiler would compare the begin instead, of which the verifier would not learn how much may be read.
    // SAFETY: no instruction.
    unsafe { asm!("/* {0} */", inout(reg) end, options(pure, nomem, nostack, preserves_flags)) };
    (end <= ctx.data_end()).then_some(start as *mut T)
}

/// What it means that a helper refuses to change the packet.
#[inline(always)]
pub(crate) fn failed(_errno: i64) -> Reason {
    Reason::RewriteFailed
}
