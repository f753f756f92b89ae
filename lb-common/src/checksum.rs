//! Incremental updates of the Internet checksum (RFC 1624).

use crate::address::{Address, SocketAddress};

/// A difference to be folded into a checksum: the sum, in one's complement, of what was added minus what was removed.
///
/// The words are summed as they stand in memory: one's complement addition does not depend on the byte order as long as
/// all words and the checksum are read alike (RFC 1071, section 2B).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// No difference.
    pub const NONE: Self = Self(0);

    /// Two differences as one.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// One 32-bit word that was not there before.
    #[inline(always)]
    pub const fn added(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// An address that was not there before. What is mapped about IPv4 adds nothing: its word of ones is a zero.
    #[inline(always)]
    pub const fn added_address(self, address: &Address) -> Self {
        let words = address.words();
        self.added(words[0]).added(words[1]).added(words[2]).added(words[3])
    }

    /// One 32-bit word replaced by another.
    #[inline(always)]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// One 16-bit word replaced by another.
    #[inline(always)]
    pub const fn half(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// An address replaced by another of the same family. Of IPv4 only the last word differs.
    #[inline(always)]
    pub const fn address(self, old: &SocketAddress, new: &SocketAddress) -> Self {
        let (a, b) = (old.address.words(), new.address.words());
        self.word(a[0], b[0]).word(a[1], b[1]).word(a[2], b[2]).word(a[3], b[3])
    }

    /// Address and port replaced.
    #[inline(always)]
    pub const fn socket_address(self, old: &SocketAddress, new: &SocketAddress) -> Self {
        self.address(old, new).half(old.port.wire(), new.port.wire())
    }

    /// The difference as the 32-bit sum that the kernel's `bpf_l4_csum_replace` takes.
    #[inline(always)]
    pub const fn fold32(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// Applies the difference to a checksum field: RFC 1624, equation 3.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        let mut sum = self.fold32() as u64 + (!checksum) as u64;
        sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::address::{Address, Port};

    /// The checksum computed from scratch, as RFC 1071 defines it.
    fn whole(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|w| u32::from(*w)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: checksum 0xDD2F, a field changes from 0x5555 to 0x3285, the new checksum is 0x0000.
        assert_eq!(Difference::NONE.half(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn a_checksum_from_scratch_is_the_difference_to_nothing() {
        let words = [0x4500_0054_u32, 0x1234_4000, 0x4001_0000, 0x0a00_0001, 0x0a00_0002];
        let halves: Vec<u16> = words.iter().flat_map(|w| [(w >> 16) as u16, *w as u16]).collect();
        let sum = words.iter().fold(Difference::NONE, |sum, word| sum.added(*word));
        assert_eq!(sum.apply(u16::MAX), whole(&halves));
    }

    proptest! {
        #[test]
        fn an_update_equals_a_new_checksum(
            before in prop::collection::vec(any::<u16>(), 20),
            index in 0_usize..20,
            new in any::<u16>(),
            payload in 1_u16..,
        ) {
            // A word that is never zero keeps the two representations of zero apart.
            let mut words: Vec<u16> = before;
            words.push(payload);
            let checksum = whole(&words);
            let updated = Difference::NONE.half(words[index], new).apply(checksum);
            words[index] = new;
            prop_assert_eq!(updated, whole(&words));
        }

        #[test]
        fn addresses_and_ports_count_once(old in any::<([u8; 16], u16)>(), new in any::<([u8; 16], u16)>()) {
            let a = SocketAddress::new(Address::from_bytes(old.0), Port::new(old.1));
            let b = SocketAddress::new(Address::from_bytes(new.0), Port::new(new.1));
            let words = |s: &SocketAddress| -> Vec<u16> {
                bytemuck::bytes_of(s).as_chunks::<2>().0.iter().take(9).map(|c| u16::from_ne_bytes([c[0], c[1]])).collect()
            };
            let (mut before, mut after) = (words(&a), words(&b));
            before.push(0x1234);
            after.push(0x1234);
            let updated = Difference::NONE.socket_address(&a, &b).apply(whole(&before));
            prop_assert_eq!(updated, whole(&after));
        }
    }
}
