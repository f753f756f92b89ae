//! Which clients a Service admits at its load balancer's addresses (`SOURCE_RANGES`): `spec.loadBalancerSourceRanges`.

use core::{fmt, net::IpAddr};

use bytemuck::{Pod, Zeroable};

use crate::address::Address;

/// A range of clients: an address, of which the first `bits` count. An IPv4 prefix of `n` bits has `96 + n` here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourcePrefix {
    address: Address,
    bits: u32,
}

impl SourcePrefix {
    /// The addresses that begin with the first `bits` bits of this one; at most 128.
    pub const fn new(address: Address, bits: u32) -> Self {
        let bits = if bits > 128 { 128 } else { bits };
        let mut bytes = address.bytes();
        let mut i = 0;
        while i < 16 {
            let counting = bits.saturating_sub(i as u32 * 8);
            if counting < 8 {
                bytes[i] &= !(0xff_u8 >> counting);
            }
            i += 1;
        }
        Self { address: Address::from_bytes(bytes), bits }
    }

    /// The prefix of a network: its address and the number of bits that its family counts.
    pub const fn of(ip: IpAddr, bits: u8) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::new(Address::from_v4_bytes(v4.octets()), 96 + bits as u32),
            IpAddr::V6(v6) => Self::new(Address::from_bytes(v6.octets()), bits as u32),
        }
    }

    /// The first address.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// How many bits count.
    pub const fn bits(&self) -> u32 {
        self.bits
    }
}

impl fmt::Display for SourcePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.address.is_v4() && self.bits >= 96 { self.bits - 96 } else { self.bits };
        write!(f, "{}/{bits}", self.address)
    }
}

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

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_prefix_holds_nothing_beyond_its_bits() {
        for (ip, bits, expected) in [
            ("10.1.2.3", 8, "10.0.0.0/8"),
            ("10.1.2.3", 0, "0.0.0.0/0"),
            ("10.1.2.3", 13, "10.0.0.0/13"),
            ("10.9.2.3", 13, "10.8.0.0/13"),
            ("10.1.2.3", 32, "10.1.2.3/32"),
            ("2001:db8::ffff", 64, "2001:db8::/64"),
            ("2001:db8::ffff", 128, "2001:db8::ffff/128"),
            ("2001:db8::ffff", 0, "::/0"),
            ("2001:db8::ffff", 33, "2001:db8::/33"),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(SourcePrefix::of(ip, bits).to_string(), expected);
        }
        let everything = SourcePrefix::new(Address::from_v4_bytes([10, 0, 0, 1]), 96);
        assert_eq!((everything.to_string().as_str(), everything.bits()), ("0.0.0.0/0", 96));
        assert_eq!(SourcePrefix::new(Address::UNSPECIFIED, 500).bits(), 128);
    }
}
