//! What the kernel programs and the agent agree on: the types of the maps, and the decision itself.
//!
//! Nothing here does I/O, allocates or depends on the other crates of the workspace. The same decision runs in the
//! kernel (`lb-ebpf`), in host tests and in `sockeye explain`.
//!
//! # Rules of the map types
//!
//! * Addresses and ports are bytes in network order: what stands in a key is what stands on the wire. Every other
//!   number is in the byte order of the machine.
//! * An address is 128 bits; IPv4 is v4-mapped (RFC 4291, section 2.5.5.2). There is one map a meaning, not one a family.
//! * No padding, no `bool`, no `enum` inside a map value: the derive of [`bytemuck::Pod`] refuses padding, and numbers
//!   become enums at the border (`TryFrom`), so that any bytes read from a map are a valid value.
//! * What a program must see in one piece is one aligned 64-bit word, loaded and stored once.
//!
//! # To add a map
//!
//! Define its key and value here, derive the traits as the others do, add the static to `lb-ebpf/src/tables.rs`, the
//! name to [`config::maps`], and describe it in `docs/maps.md`. A changed layout of a pinned map needs a new
//! [`config::LAYOUT_VERSION`].
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod address;
pub mod affinity;
pub mod backend;
pub mod checksum;
pub mod config;
pub mod decide;
pub mod flow;
pub mod fragment;
pub mod frontend;
pub mod maglev;
pub mod namespace;
pub mod network;
pub mod outcome;
pub mod prefix;
pub mod service;
pub mod service_cidr;
pub mod socket;
pub mod source;

/// Declares that user space may copy these types to and from kernel maps.
macro_rules! map_types {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: the type is bytemuck::Pod: no padding, and every bit pattern is valid.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $type {}
            const _: () = {
                const fn plain<T: bytemuck::Pod>() {}
                plain::<$type>();
            };
        )+
    };
}

map_types!(
    address::Address,
    address::SocketAddress,
    affinity::AffinityKey,
    affinity::AffinityValue,
    backend::Backend,
    config::Config,
    config::Device,
    config::NodeAddress,
    flow::Flow,
    flow::FlowKey,
    fragment::FragmentKey,
    fragment::FragmentPorts,
    frontend::FrontendEntry,
    frontend::FrontendKey,
    maglev::Position,
    namespace::NamespaceAddresses,
    network::Network,
    service::Range,
    service::ServiceRecord,
    service_cidr::ServiceCidrs,
    socket::ConnectedSocket,
    socket::DatagramKey,
    socket::DatagramValue,
    socket::SocketState,
    source::SourceKey,
    source::SourceRange,
);
