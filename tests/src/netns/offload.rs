//! What a device leaves to its hardware. A veth passes packets on with checksums that nobody has computed and in sizes
//! that no wire carries; without offloads, they are what a network card would see.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

/// Commands of `SIOCETHTOOL` that switch an offload (`include/uapi/linux/ethtool.h`), in an order in which none depends
/// on one that is off already.
const SWITCHES: [(&str, u32); 5] = [
    ("generic-receive-offload", 0x2c),
    ("tcp-segmentation-offload", 0x1f),
    ("generic-segmentation-offload", 0x24),
    ("tx-checksumming", 0x17),
    ("rx-checksumming", 0x15),
];

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches a device's offloads off, in the calling thread's namespace.
pub(super) fn switch_off(device: &str) -> Result<()> {
    let socket = control_socket().context("opening a socket to configure devices")?;
    for (name, command) in SWITCHES {
        let mut value = Value { command, data: 0 };
        ethtool(&socket, device, &mut value).with_context(|| format!("switching {name} of {device} off"))?;
    }
    Ok(())
}

fn control_socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory involved.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn ethtool(socket: &OwnedFd, device: &str, value: &mut Value) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    if device.len() >= name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in name.iter_mut().zip(device.bytes()) {
        *to = from.cast_signed();
    }
    let data = libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut *value).cast() };
    let mut request = libc::ifreq { ifr_name: name, ifr_ifru: data };
    // SAFETY: the request and the value that it points to live longer than the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
