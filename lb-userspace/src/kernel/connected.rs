//! The connected UDP sockets that went through a service, of all network namespaces: read by an iterator over `SOCKETS`.
//!
//! The iterator visits the sockets that have an element in the map, and no others: those that talk to no service cost
//! nothing.

use std::{io::Read as _, os::fd::OwnedFd};

use aya::{
    Btf, Ebpf,
    maps::MapError,
    programs::{Iter, ProgramError, ProgramFd},
};
use lb_common::{
    config::{maps, programs},
    socket::ConnectedSocket,
};

use super::{bpf, error::KernelError, load};
use crate::store::kernel::{Grace, data};

/// What the iterator runs over, by the kernel's name.
const ITERATOR: &str = "bpf_sk_storage_map";

/// The connected UDP sockets, for reading.
#[derive(Debug)]
pub struct ConnectedSockets {
    link: OwnedFd,
    grace: Grace,
}

impl ConnectedSockets {
    /// On the map that a loaded object uses.
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let grace = Grace::new(ebpf)?;
        let program = load_iterator(ebpf)?;
        let sockets = ebpf.map(maps::SOCKETS).ok_or(MapError::ElementNotFound).and_then(data);
        let sockets = sockets.map_err(KernelError::map("opening", maps::SOCKETS))?;
        let link = bpf::link_iterator(&program, sockets.fd())
            .map_err(KernelError::io("linking an iterator to the map", maps::SOCKETS))?;
        Ok(Self { link, grace })
    }

    /// Waits until every program that runs now has ended: whoever was sent by tables as they were before this call is
    /// among those that are read afterwards. It takes 8 to 20 ms, and longer on a busy machine.
    pub fn settle(&mut self) -> Result<(), KernelError> {
        self.grace.wait().map_err(KernelError::Grace)
    }

    /// Reads them.
    pub fn read(&self) -> Result<Vec<ConnectedSocket>, KernelError> {
        let error = || KernelError::io("reading the map", maps::SOCKETS);
        let mut bytes = Vec::new();
        bpf::iterate(&self.link).and_then(|mut run| run.read_to_end(&mut bytes)).map_err(error())?;
        let (sockets, _) = bytes.as_chunks::<{ size_of::<ConnectedSocket>() }>();
        Ok(sockets.iter().map(|socket| bytemuck::pod_read_unaligned(socket)).collect())
    }
}

fn load_iterator(ebpf: &mut Ebpf) -> Result<ProgramFd, KernelError> {
    let name = programs::CONNECTED_UDP;
    let error = |operation| KernelError::program(operation, name, String::new());
    let btf = Btf::from_sys_fs().map_err(|cause| error("loading")(ProgramError::Btf(cause)))?;
    let program: &mut Iter = load::program(ebpf, name)?.try_into().map_err(error("loading"))?;
    match program.load(ITERATOR, &btf) {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => {}
        Err(cause) => return Err(load::refused(name, cause)),
    }
    let program = program.fd().map_err(error("using"))?;
    program.try_clone().map_err(KernelError::io("using the program", name))
}
