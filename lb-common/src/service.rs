//! The record of a service port: what all its frontends share.

use bytemuck::{Pod, Zeroable};

/// One backend set: `count` slots from `first` in `BACKENDS` (or positions in `MAGLEV`).
///
/// A set is immutable. A change writes the new set into free slots and then stores the range, as one aligned
/// eight-byte word; a program loads it once, so it sees the old set or the new one, never a mix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Range {
    /// The first slot.
    pub first: u32,
    /// The number of slots; zero: an intended refusal.
    pub count: u32,
}

impl Range {
    /// The set without backends.
    pub const EMPTY: Self = Self { first: 0, count: 0 };

    /// From the one word that was loaded.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        let b = bits.to_ne_bytes();
        Self {
            first: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            count: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// The slots as an iterator's range.
    pub const fn slots(self) -> core::ops::Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }

    /// Whether a slot is in both sets.
    pub const fn overlaps(self, other: Self) -> bool {
        let (slots, others) = (self.slots(), other.slots());
        self.count != 0 && other.count != 0 && slots.start < others.end && others.start < slots.end
    }

    /// Whether `slot` is one of the set's.
    #[inline(always)]
    pub const fn contains(self, slot: u32) -> bool {
        slot.wrapping_sub(self.first) < self.count
    }
}

/// Which of a record's two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Set {
    /// The endpoints that traffic policy `Cluster` may use.
    Cluster,
    /// The endpoints that traffic policy `Local` may use.
    Local,
}

impl Set {
    /// The other one.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Cluster => Self::Local,
            Self::Local => Self::Cluster,
        }
    }
}

/// Bits of [`Settings::flags`].
pub mod flags {
    /// `internalTrafficPolicy: Local`.
    pub const INTERNAL_LOCAL: u32 = 1 << 0;
    /// `externalTrafficPolicy: Local`.
    pub const EXTERNAL_LOCAL: u32 = 1 << 1;
    /// A ready, or a serving and terminating, endpoint exists anywhere: with an empty set, drop instead of refuse.
    pub const ANY_ENDPOINTS: u32 = 1 << 2;
    /// At load balancers' addresses only clients of the record's ranges in `SOURCE_RANGES` are admitted.
    pub const SOURCE_RANGES: u32 = 1 << 3;
    /// Packets from outside choose by the Maglev table.
    pub const MAGLEV_OUTSIDE: u32 = 1 << 4;
    /// Sockets of this node choose by the Maglev table.
    pub const MAGLEV_SOCKETS: u32 = 1 << 5;
}

/// The policies of a service port; one aligned word, stored at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Settings {
    /// See [`flags`].
    pub flags: u32,
    /// Session affinity by client: seconds until it lapses, zero: none.
    pub affinity_seconds: u32,
}

impl Settings {
    /// From the one word that was loaded.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        let range = Range::from_bits(bits);
        Self { flags: range.first, affinity_seconds: range.count }
    }
}

/// An element of `SERVICES`: one cache line. Each field of eight bytes is stored alone while programs run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct ServiceRecord {
    /// The set for policy `Cluster`.
    pub cluster: Range,
    /// The set for policy `Local`.
    pub local: Range,
    /// The Maglev table of the set for policy `Cluster`: positions in `MAGLEV`. It is stored apart from the set, so a
    /// position counts only if it leads to a slot of the set that was loaded.
    pub maglev: Range,
    /// The policies.
    pub settings: Settings,
    /// The service port's number; never used again for another one while the maps live. Zero: the record is free.
    pub service_id: u32,
    reserved: [u32; 7],
}

impl ServiceRecord {
    /// A record with its sets and settings.
    pub const fn new(service_id: u32, settings: Settings, cluster: Range, local: Range) -> Self {
        Self { cluster, local, maglev: Range::EMPTY, settings, service_id, reserved: [0; 7] }
    }

    /// The same with a Maglev table.
    pub const fn with_maglev(self, maglev: Range) -> Self {
        Self { maglev, ..self }
    }

    /// The range of one set.
    pub const fn range(&self, set: Set) -> Range {
        match set {
            Set::Cluster => self.cluster,
            Set::Local => self.local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_what_the_single_stores_rely_on() {
        assert_eq!(size_of::<ServiceRecord>(), 64);
        assert_eq!(core::mem::offset_of!(ServiceRecord, cluster), 0);
        assert_eq!(core::mem::offset_of!(ServiceRecord, local), 8);
        assert_eq!(core::mem::offset_of!(ServiceRecord, maglev), 16);
        assert_eq!(core::mem::offset_of!(ServiceRecord, settings), 24);
        let range = Range { first: 7, count: 9 };
        assert_eq!(Range::from_bits(bytemuck::cast(range)), range);
        let settings = Settings { flags: flags::EXTERNAL_LOCAL, affinity_seconds: 10_800 };
        assert_eq!(Settings::from_bits(bytemuck::cast(settings)), settings);
    }

    #[test]
    fn a_range_knows_its_slots() {
        let range = Range { first: 10, count: 2 };
        assert!(range.contains(10) && range.contains(11));
        assert!(!range.contains(9) && !range.contains(12));
        assert!(!Range::EMPTY.contains(0));
        assert!(range.slots().eq([10, 11]));
        let others = [(9, 1, false), (9, 2, true), (11, 5, true), (12, 1, false), (11, 0, false)];
        for (first, count, expected) in others {
            assert_eq!(range.overlaps(Range { first, count }), expected, "{first} {count}");
        }
    }
}
