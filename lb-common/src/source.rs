//! Which clients a Service admits at its load balancer's addresses (`SOURCE_RANGES`): `spec.loadBalancerSourceRanges`.

use bytemuck::{Pod, Zeroable};

use crate::address::Address;

/// Key of `SOURCE_RANGES`, behind the number of bits that count: those of the record always do.
///
/// The ranges are the record's and not the service port's: while a port moves to another record, both stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SourceKey {
    /// Index in `SERVICES`, in the byte order of the machine.
    pub record: u32,
    /// A client, or the first address of a range.
    pub address: Address,
}

impl SourceKey {
    /// The bits of the record.
    pub const RECORD_BITS: u32 = 32;
    /// The bits of a whole key: those with which a client is looked up.
    pub const BITS: u32 = Self::RECORD_BITS + 128;
}

/// Value of `SOURCE_RANGES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SourceRange {
    /// No meaning yet: being in the map is what admits.
    pub flags: u32,
}

// The kernel aligns a value of this map to what precedes it.
const _: () = assert!(size_of::<SourceKey>() == 20 && size_of::<SourceRange>() == 4);
