//! A backend: an address and port that serves, in a slot of `BACKENDS`.

use bytemuck::{Pod, Zeroable};

use crate::address::{Address, Port, SocketAddress};

/// A backend's number: the same address, port and protocol keeps it while any service uses it.
pub type BackendId = u32;

/// Bits of [`Backend::flags`].
pub mod flags {
    /// The endpoint runs on this node (`nodeName`).
    pub const LOCAL: u16 = 1 << 0;
}

/// An element of `BACKENDS`. The slots of a range are sorted by `id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: Port,
    /// See [`flags`].
    pub flags: u16,
    /// The backend's number.
    pub id: BackendId,
}

impl Backend {
    /// Address and port.
    #[inline(always)]
    pub const fn socket_address(&self) -> SocketAddress {
        SocketAddress::new(self.address, self.port)
    }
}

const _: () = assert!(size_of::<Backend>() == 24);
