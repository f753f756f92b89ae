//! Links: attached, pinned, and switched to another program without a gap.
//!
//! A pinned link that leads where it should is updated (`BPF_LINK_UPDATE`): each call that an application makes runs the
//! old program or the new one. A link that leads elsewhere is replaced by a new one, which is attached before the old
//! one goes.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use aya::programs::{
    CgroupAttachMode, LinkOrder, Program, ProgramError, ProgramFd, SchedClassifier, TcAttach, TcAttachType,
    links::FdLink,
};
use serde::Serialize;

use super::{
    bpf::{self, LinkInfo, LinkTarget},
    error::KernelError,
    pins::{self, Pins},
};

/// What became of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// There was none.
    Attached,
    /// It runs this process's program instead of another one.
    Switched,
    /// It led to another or a removed cgroup or device, and was replaced.
    Moved,
    /// It was as it should be.
    Kept,
}

/// A loaded program and the place where it belongs.
pub(crate) trait Linkable {
    /// The loaded program's id.
    fn program_id(&self) -> Result<u32, ProgramError>;
    /// The loaded program.
    fn program(&self) -> Result<&ProgramFd, ProgramError>;
    /// Whether a link leads to this place.
    fn leads_here(&self, target: LinkTarget) -> bool;
    /// Makes a new link.
    fn attach(&mut self) -> Result<FdLink, ProgramError>;
}

/// A program for a cgroup.
pub(crate) struct OnCgroup<'a> {
    pub(crate) program: &'a mut Program,
    pub(crate) cgroup: &'a File,
    /// The number of the cgroup's inode.
    pub(crate) cgroup_id: u64,
}

impl Linkable for OnCgroup<'_> {
    fn program_id(&self) -> Result<u32, ProgramError> {
        Ok(self.program.info()?.id())
    }

    fn program(&self) -> Result<&ProgramFd, ProgramError> {
        self.program.fd()
    }

    fn leads_here(&self, target: LinkTarget) -> bool {
        matches!(target, LinkTarget::Cgroup { id, .. } if id == self.cgroup_id)
    }

    fn attach(&mut self) -> Result<FdLink, ProgramError> {
        // A link always shares the cgroup with others: the mode is for attachments of the older kind.
        let mode = CgroupAttachMode::Single;
        match self.program {
            Program::CgroupSockAddr(program) => {
                let id = program.attach(self.cgroup, mode)?;
                Ok(program.take_link(id)?.try_into()?)
            }
            Program::CgroupSock(program) => {
                let id = program.attach(self.cgroup, mode)?;
                Ok(program.take_link(id)?.try_into()?)
            }
            _ => Err(ProgramError::UnexpectedProgramType),
        }
    }
}

/// A program for a device.
pub(crate) struct OnDevice<'a> {
    pub(crate) program: &'a mut SchedClassifier,
    pub(crate) ifindex: u32,
    pub(crate) direction: TcAttachType,
}

impl Linkable for OnDevice<'_> {
    fn program_id(&self) -> Result<u32, ProgramError> {
        Ok(self.program.info()?.id())
    }

    fn program(&self) -> Result<&ProgramFd, ProgramError> {
        self.program.fd()
    }

    fn leads_here(&self, target: LinkTarget) -> bool {
        matches!(target, LinkTarget::Tcx { ifindex, .. } if ifindex == self.ifindex)
    }

    fn attach(&mut self) -> Result<FdLink, ProgramError> {
        // First, because another program may end the chain with its verdict; ours lets the others run.
        let place = TcAttach::Tcx { attach_type: self.direction, order: LinkOrder::first() };
        let id = self.program.attach(self.ifindex, place)?;
        Ok(self.program.take_link(id)?.try_into()?)
    }
}

/// Makes the pinned link `name` run the program at its place.
pub(crate) fn ensure(pins: &Pins, name: &str, place: &mut impl Linkable) -> Result<Change, KernelError> {
    let error = |operation| KernelError::program(operation, name, String::new());
    let path = pins.links().join(name);
    let present = info(&path)?;
    if let Some(link) = present
        && place.leads_here(link.target)
    {
        if link.program_id == place.program_id().map_err(error("looking at"))? {
            return Ok(Change::Kept);
        }
        let program = place.program().map_err(error("looking at"))?;
        match bpf::object_get(&path).and_then(|link| bpf::link_update(link, program)) {
            Ok(()) => return Ok(Change::Switched),
            // For instance the cgroup is removed at this moment (ENOLINK).
            Err(cause) => tracing::warn!(name, %cause, "cannot switch the link, replacing it"),
        }
    }
    let link = place.attach().map_err(error("attaching"))?;
    pin(pins, name, link)?;
    Ok(if present.is_some() { Change::Moved } else { Change::Attached })
}

/// What a pinned link leads to; none if there is no such pin.
pub(crate) fn info(path: &Path) -> Result<Option<LinkInfo>, KernelError> {
    match bpf::object_get(path).and_then(bpf::link_info) {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KernelError::io("looking at the link", path)(error)),
    }
}

/// Detaches a pinned link, even if another process holds it, and removes the pin.
pub(crate) fn remove(path: &Path) -> Result<(), KernelError> {
    let detached = match bpf::object_get(path) {
        Ok(link) => bpf::link_detach(link),
        Err(error) => Err(error),
    };
    match detached {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A kernel before 5.9: removing the last reference detaches it as well.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => return Err(KernelError::io("detaching the link", path)(error)),
    }
    pins::remove_file(path)
}

/// Pins a new link in the place of the old one, whose program detaches with its last reference.
fn pin(pins: &Pins, name: &str, link: FdLink) -> Result<(), KernelError> {
    let (aside, place) = (pins.relinked().join(name), pins.links().join(name));
    pins::create_directory(&pins.relinked())?;
    pins::create_directory(&pins.links())?;
    link.pin(&aside)
        .map_err(|error| KernelError::io("pinning the link at", &aside)(io::Error::other(error)))?;
    fs::rename(&aside, &place).map_err(KernelError::io("renaming", &aside))?;
    pins::remove_directory(&pins.relinked())
}
