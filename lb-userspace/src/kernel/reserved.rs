//! Ports for translated sources, reserved: the kernel gives them to no socket of the node by itself.
//!
//! The list belongs to the network namespace, and others write it too. Which ports are in it because of us is remembered
//! by directories named like `61000-65535`, beside the pins: the rest stays, and ours go with `sockeye cleanup`.

use super::{
    error::KernelError,
    pins::{self, Pins},
};
use crate::{
    config::PortRange,
    host::{RESERVED, ports::Ports, sysctl},
};

/// Reserves ports in the network namespace of this process.
#[derive(Clone, Debug)]
pub struct Reservation {
    pins: Pins,
}

impl Reservation {
    pub(crate) const fn new(pins: Pins) -> Self {
        Self { pins }
    }

    /// Makes these ports, and no others of ours, reserved ones; says whether anything had to change.
    pub(crate) fn set(&self, wanted: Option<PortRange>) -> Result<bool, KernelError> {
        let present = read()?;
        let ours = self.ours()?;
        let others = present.without(&ours);
        let wanted = wanted.map(Ports::of).unwrap_or_default();
        let next = others.or(&wanted);
        // Noted before, so that a crash in between leaves no port of ours that nobody knows of.
        let own = wanted.without(&others);
        for range in own.ranges() {
            pins::create_directory(&self.pins.reserved().join(range.to_string()))?;
        }
        if next != present {
            let path = sysctl::path(RESERVED);
            sysctl::write(RESERVED, &next.to_string()).map_err(KernelError::io("writing", path))?;
        }
        let kept: Vec<_> = own.ranges().iter().map(PortRange::to_string).collect();
        for note in pins::entries(&self.pins.reserved())? {
            if !kept.contains(&pins::file_name(&note)) {
                pins::remove_directory(&note)?;
            }
        }
        if kept.is_empty() {
            pins::remove_directory(&self.pins.reserved())?;
        }
        Ok(next != present)
    }

    /// The ports that are reserved because of us.
    pub(crate) fn ours(&self) -> Result<Ports, KernelError> {
        let notes = pins::entries(&self.pins.reserved())?;
        let names: Vec<_> = notes.iter().map(|path| pins::file_name(path)).collect();
        // What is not ours has another name; removing the directory then says so.
        Ok(names.iter().filter_map(|name| name.parse::<Ports>().ok()).fold(Ports::default(), |all, next| all.or(&next)))
    }
}

fn read() -> Result<Ports, KernelError> {
    let path = || sysctl::path(RESERVED);
    let text = sysctl::read(RESERVED).map_err(KernelError::io("reading", path()))?;
    text.parse().map_err(std::io::Error::other).map_err(KernelError::io("reading", path()))
}
