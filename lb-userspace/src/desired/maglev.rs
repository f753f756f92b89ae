//! Maglev tables: which backend each position leads to (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Each backend prefers the positions in an order of its own, which follows from its address and port alone; the backends
//! take turns until all positions are taken. So nodes with the same backends make the same table, whatever numbers, slots
//! and history they have, and a backend that goes or comes changes few positions besides its own.

use lb_common::{address::SocketAddress, backend::Backend};

/// Sizes of tables, all prime, with the most backends that each is for: at least 100 positions for each, so that the load
/// differs by a percent at most and few of the others' clients move when a backend goes. Beyond 1,310 backends the table does
/// not grow further: to make one takes milliseconds. Another size is another table, and most clients move: so there are few.
/// What a table was before cannot count, since nodes would disagree that have seen different things.
const SIZES: [(usize, u32); 4] = [(10, 1_021), (163, 16_381), (655, 65_537), (MAX_BACKENDS, 131_071)];
/// With more backends, many would have no position at all.
const MAX_BACKENDS: usize = 65_535;

/// A backend that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What its order of positions follows from.
    pub address: SocketAddress,
    /// Its share of the positions, relative to the others; zero: none.
    pub weight: u32,
}

impl From<&Backend> for Candidate {
    fn from(backend: &Backend) -> Self {
        Self { address: backend.socket_address(), weight: 1 }
    }
}

/// The size of the table for so many backends. Zero: there is none, since there is nothing to choose, or too much.
pub fn size(backends: usize) -> u32 {
    if backends < 2 {
        return 0;
    }
    SIZES.iter().find(|(most, _)| backends <= *most).map_or(0, |(_, size)| *size)
}

/// For each position, the index of the candidate that it leads to. Empty where [`size`] is zero or no weight is given.
pub fn table(candidates: &[Candidate]) -> Vec<u32> {
    let size = size(candidates.len());
    let heaviest = candidates.iter().map(|candidate| candidate.weight).max().unwrap_or(0);
    if size == 0 || heaviest == 0 {
        return Vec::new();
    }
    let mut takers: Vec<Taker> =
        (0..).zip(candidates).map(|(index, candidate)| Taker::new(index, candidate, size)).collect();
    takers.sort_by_key(|taker| candidates[taker.index as usize].address);
    let mut positions = vec![FREE; size as usize];
    let mut left = size;
    while left > 0 {
        for taker in &mut takers {
            if !taker.has_turn(heaviest) {
                continue;
            }
            let position = taker.next_free(&positions, size);
            positions[position as usize] = taker.index;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    positions
}

const FREE: u32 = u32::MAX;

/// A candidate on its way through the positions.
struct Taker {
    index: u32,
    weight: u32,
    /// Grows by the weight each round; a turn costs the heaviest weight.
    credit: u64,
    next: u32,
    skip: u32,
}

impl Taker {
    fn new(index: u32, candidate: &Candidate, size: u32) -> Self {
        let hash = |seed| hash(&candidate.address, seed);
        // Any step below a prime leads through all positions.
        let skip = (hash(SKIP_SEED) % u64::from(size - 1)) as u32 + 1;
        let next = (hash(OFFSET_SEED) % u64::from(size)) as u32;
        Self { index, weight: candidate.weight, credit: 0, next, skip }
    }

    fn has_turn(&mut self, heaviest: u32) -> bool {
        self.credit += u64::from(self.weight);
        let has_turn = self.credit >= u64::from(heaviest);
        if has_turn {
            self.credit -= u64::from(heaviest);
        }
        has_turn
    }

    /// The first position in its order that nobody has. There is one: the caller counts.
    fn next_free(&mut self, positions: &[u32], size: u32) -> u32 {
        loop {
            let position = self.next;
            self.next = (self.next + self.skip) % size;
            if positions[position as usize] == FREE {
                return position;
            }
        }
    }
}

const OFFSET_SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const SKIP_SEED: u64 = 0xd6e8_feb8_6659_fd93;

/// The same number on every machine: part of the agreement between nodes, so it never changes.
fn hash(address: &SocketAddress, seed: u64) -> u64 {
    let socket = std::net::SocketAddr::from(*address);
    let ip = match socket.ip() {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        std::net::IpAddr::V6(v6) => v6.to_bits(),
    };
    let words = [(ip >> 64) as u64, ip as u64, u64::from(socket.port())];
    words.into_iter().fold(seed, |hash, word| mix(hash ^ word))
}

/// The finalizer of `SplitMix64` (Steele et al., 2014): every bit of the input reaches every bit of the output.
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests;
