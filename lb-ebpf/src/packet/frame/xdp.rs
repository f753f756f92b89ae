//! Packets at XDP: bytes in the driver's memory, checksums included.

use core::mem;

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_action::XDP_TX,
    helpers::generated::{bpf_fib_lookup, bpf_redirect},
    programs::XdpContext,
};
use lb_common::{checksum::Difference, outcome::Reason};

use super::{Frame, Zero};
use crate::packet::forward::{FibParams, Route};

/// Offset of the type in an Ethernet header.
const ETHERNET_TYPE: usize = 12;

impl Frame for XdpContext {
    #[inline(always)]
    fn read<T>(&self, offset: usize) -> Result<T, Reason> {
        let value = place::<T>(self, offset)?;
        // SAFETY: within the packet. The verifier checks alignment where the machine's loads need it, and refuses the
        // program if it cannot be shown.
        Ok(unsafe { value.read() })
    }

    #[inline(always)]
    fn write<T>(&self, offset: usize, value: &T) -> Result<(), Reason> {
        let place = place::<T>(self, offset)?;
        // SAFETY: as in `read`; the value is plain bytes, of which a copy does no harm.
        unsafe { place.write(mem::transmute_copy(value)) };
        Ok(())
    }

    #[inline(always)]
    fn network_protocol(&self) -> u32 {
        // No protocol has the number zero, which is what a frame without a whole header gets.
        u32::from(self.read::<u16>(ETHERNET_TYPE).unwrap_or_default())
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.data_end() - self.data()
    }

    #[inline(always)]
    fn segment(&self) -> usize {
        0
    }

    #[inline(always)]
    fn update_network_checksum(&self, offset: usize, difference: Difference) -> Result<(), Reason> {
        let checksum = self.read(offset)?;
        self.write(offset, &difference.apply(checksum))
    }

    #[inline(always)]
    fn update_transport_checksum(
        &self,
        offset: usize,
        pseudo_header: Difference,
        bytes: Difference,
        zero: Zero,
    ) -> Result<(), Reason> {
        let old = self.read(offset)?;
        if zero == Zero::None && old == 0 {
            return Ok(());
        }
        let new = pseudo_header.and(bytes).apply(old);
        self.write(offset, &if zero == Zero::None && new == 0 { u16::MAX } else { new })
    }

    #[inline(always)]
    fn fib_lookup(&self, params: &mut FibParams) -> u32 {
        // SAFETY: the context is valid; the parameters have the helper's layout and size.
        let answer = unsafe { bpf_fib_lookup(self.as_ptr(), (&raw mut *params).cast(), FibParams::SIZE, 0) };
        (answer as i32).cast_unsigned()
    }

    /// Nobody asks for an unknown neighbour here.
    #[inline(always)]
    fn send_out(&self, route: &Route) -> Result<i32, Reason> {
        let link = route.link.ok_or(Reason::NoRoute)?;
        self.write(0, &[link.destination, link.source])?;
        Ok(if route.device == self.device() {
            XDP_TX.cast_signed()
        } else {
            // SAFETY: numbers only.
            unsafe { bpf_redirect(route.device, 0) as i32 }
        })
    }
}

/// Where a value stands, if it is within the packet.
#[inline(always)]
fn place<T>(ctx: &XdpContext, offset: usize) -> Result<*mut T, Reason> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return Err(Reason::Malformed);
    }
    Ok(start as *mut T)
}
