//! Consistent hashing: the look-up half. Every node that has the same backends gives a client the same one.
//!
//! User space fills a table whose positions lead to slots (Eisenbud et al., "Maglev", NSDI 2016); a program takes the
//! position that the client's address and port hash to. Nothing that differs between nodes goes into the hash: not the
//! address that the client reached, nor any number of the tables.

use bytemuck::{Pod, Zeroable};

use crate::{
    address::{Address, Port},
    affinity::Client,
};

/// An element of `MAGLEV`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Position {
    /// The slot of `BACKENDS`.
    pub slot: u32,
    reserved: u32,
}

impl Position {
    /// One that leads to a slot.
    pub const fn new(slot: u32) -> Self {
        Self { slot, reserved: 0 }
    }
}

/// The hash of a client: evenly spread over all 2³² values. Port zero: not known.
#[inline(always)]
pub const fn hash(client: Client, port: Port) -> u32 {
    let (words, kind) = match client {
        Client::Namespace(cookie) => ([cookie as u32, (cookie >> 32) as u32, 0, 0], 1),
        Client::Cgroup(id) => ([id as u32, (id >> 32) as u32, 0, 0], 2),
        Client::Address(address) => (wire_words(&address), 3),
    };
    // Products of 32-bit words and odd constants, summed: each word reaches the high half. The constants are unrelated.
    let sum = (words[0] as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add((words[1] as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9))
        .wrapping_add((words[2] as u64).wrapping_mul(0x94d0_49bb_1331_11eb))
        .wrapping_add((words[3] as u64).wrapping_mul(0xd6e8_feb8_6659_fd93))
        .wrapping_add((port.number() as u64 | kind << 16).wrapping_mul(0xa076_1d64_78bd_642f));
    ((sum ^ (sum >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

/// The same numbers on machines of either byte order.
#[inline(always)]
const fn wire_words(address: &Address) -> [u32; 4] {
    let [a, b, c, d] = address.words();
    [u32::from_be(a), u32::from_be(b), u32::from_be(c), u32::from_be(d)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_clients_are_spread_evenly() {
        let mut counts = [0_u32; 16];
        for host in 0..100_u8 {
            for port in 40_000..40_100 {
                let client = Client::Address(Address::from_v4_bytes([192, 0, 2, host]));
                counts[(hash(client, Port::new(port)) >> 28) as usize] += 1;
            }
        }
        assert!(counts.iter().all(|count| (525..725).contains(count)), "{counts:?}");
    }

    #[test]
    fn address_port_and_kind_of_client_all_count() {
        let address = Client::Address(Address::from_v4_bytes([192, 0, 2, 1]));
        let base = hash(address, Port::new(40_000));
        assert_eq!(base, hash(address, Port::new(40_000)));
        assert_ne!(base, hash(address, Port::new(40_001)));
        assert_ne!(base, hash(Client::Address(Address::from_v4_bytes([192, 0, 2, 2])), Port::new(40_000)));
        let none = Port::new(0);
        assert_ne!(hash(Client::Namespace(7), none), hash(Client::Cgroup(7), none));
        // The value itself is part of the agreement between nodes of different versions.
        assert_eq!(base, 2_992_743_213);
    }
}
