//! The XDP program of a device: a link (kernel 5.9), in the driver or in the kernel's generic hook.
//!
//! A link does not tell its mode (`bpf_xdp_link_fill_link_info`), so the pin's name does. One mode at a time: the kernel
//! refuses a second (`dev_xdp_attach`). `DEVICES` tells the program which devices take frames: told after attaching, and
//! taken back before detaching.

use std::fmt;

use aya::{
    Ebpf,
    programs::{ProgramError, ProgramFd, Xdp, XdpMode as AyaMode, links::FdLink},
};
use lb_common::config::device;
use serde::Serialize;

use super::{
    bpf::LinkTarget,
    device::{index, mark_device},
    error::KernelError,
    link::{self, Change, Linkable},
    load,
    pins::{Pins, device_of, device_pin},
};

/// Where a device's XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, before the kernel makes a socket buffer.
    Native,
    /// In the kernel's hook for drivers without XDP.
    Generic,
}

impl XdpMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    const fn pin(self) -> &'static str {
        match self {
            Self::Native => "xdp_native",
            Self::Generic => "xdp_generic",
        }
    }

    const fn flag(self) -> u32 {
        match self {
            Self::Native => device::XDP_NATIVE,
            Self::Generic => device::XDP_GENERIC,
        }
    }

    const fn of_aya(self) -> AyaMode {
        match self {
            Self::Native => AyaMode::Driver,
            Self::Generic => AyaMode::Skb,
        }
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// The device and the mode in the name of a pin, if it is that of an XDP program.
pub(crate) fn of_pin(pin: &str) -> Option<(String, XdpMode)> {
    XdpMode::ALL.into_iter().find_map(|mode| Some((device_of(pin, mode.pin())?, mode)))
}

/// Attaches the program in one mode, or switches what is attached; what runs in the other mode goes first.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    device: &str,
    mode: XdpMode,
) -> Result<(String, Change), KernelError> {
    let ifindex = index(device)?;
    for other in XdpMode::ALL.into_iter().filter(|other| *other != mode) {
        remove(ebpf, pins, device, other)?;
    }
    let pin = device_pin(device, mode.pin());
    let program = load::xdp_program(ebpf)?;
    let change = link::ensure(pins, &pin, &mut OnDriver { program, ifindex, mode })?;
    mark_device(ebpf, ifindex, mode.flag())?;
    Ok((pin, change))
}

/// Removes the program from a device, in whatever mode it runs.
pub(crate) fn detach(ebpf: &mut Ebpf, pins: &Pins, device: &str) -> Result<(), KernelError> {
    XdpMode::ALL.into_iter().try_for_each(|mode| remove(ebpf, pins, device, mode))
}

fn remove(ebpf: &mut Ebpf, pins: &Pins, device: &str, mode: XdpMode) -> Result<(), KernelError> {
    let pin = pins.links().join(device_pin(device, mode.pin()));
    if !pin.exists() {
        return Ok(());
    }
    // A device that is gone took its element's meaning with it.
    if let Ok(ifindex) = index(device) {
        mark_device(ebpf, ifindex, 0)?;
    }
    link::remove(&pin)
}

struct OnDriver<'a> {
    program: &'a mut Xdp,
    ifindex: u32,
    mode: XdpMode,
}

impl Linkable for OnDriver<'_> {
    fn program_id(&self) -> Result<u32, ProgramError> {
        Ok(self.program.info()?.id())
    }

    fn program(&self) -> Result<&ProgramFd, ProgramError> {
        self.program.fd()
    }

    fn leads_here(&self, target: LinkTarget) -> bool {
        matches!(target, LinkTarget::Xdp { ifindex } if ifindex == self.ifindex)
    }

    fn attach(&mut self) -> Result<FdLink, ProgramError> {
        let id = self.program.attach(self.ifindex, self.mode.of_aya())?;
        // What aya attaches without a link if the kernel refuses one is detached again by this.
        Ok(self.program.take_link(id)?.try_into()?)
    }
}
