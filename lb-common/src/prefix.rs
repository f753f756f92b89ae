//! Networks: what addresses begin with.

use core::{fmt, net::IpAddr};

use crate::address::Address;

/// An address of which the first `bits` count. An IPv4 prefix of `n` bits has `96 + n` here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: Address,
    bits: u32,
}

impl Prefix {
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

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.address.is_v4() && self.bits >= 96 { self.bits - 96 } else { self.bits };
        write!(f, "{}/{bits}", self.address)
    }
}

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
            assert_eq!(Prefix::of(ip, bits).to_string(), expected);
        }
        let everything = Prefix::new(Address::from_v4_bytes([10, 0, 0, 1]), 96);
        assert_eq!((everything.to_string().as_str(), everything.bits()), ("0.0.0.0/0", 96));
        assert_eq!(Prefix::new(Address::UNSPECIFIED, 500).bits(), 128);
    }
}
