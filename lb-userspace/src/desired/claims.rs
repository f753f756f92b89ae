//! Who gets an address, port and protocol that several service ports claim.
//!
//! The API server keeps cluster addresses and node ports unique, but not external addresses nor those of load balancers;
//! manifests keep nothing unique. The senior claimant wins; the others wait and take over when it goes.

use std::collections::BTreeSet;

use lb_common::frontend::FrontendKey;

use crate::lookup::LookupMap;

/// The number of a service port, given by [`Desired`](super::Desired).
pub type PortIndex = u32;

/// What a claim led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// Nobody else claims it.
    Free,
    /// It was another's, who is junior.
    From(PortIndex),
    /// It stays another's, who is senior.
    Waiting,
}

/// What becomes of a frontend that a service port no longer claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// Nobody claims it any more.
    Free,
    /// It goes to another.
    To(PortIndex),
    /// It was another's anyway.
    WasWaiting,
}

/// The claims of all service ports.
#[derive(Debug, Default)]
pub struct Claims {
    claimants: LookupMap<FrontendKey, Claimants>,
    /// The keys that more than one claims.
    contested: BTreeSet<FrontendKey>,
}

#[derive(Debug)]
struct Claimants {
    winner: PortIndex,
    waiting: Vec<PortIndex>,
}

impl Claims {
    /// Who has the frontend.
    pub fn winner(&self, key: &FrontendKey) -> Option<PortIndex> {
        self.claimants.get(key).map(|claimants| claimants.winner)
    }

    /// Adds a claim. `is_senior(a, b)`: whether `a` comes before `b`; a strict order of all service ports.
    pub fn claim(
        &mut self,
        key: FrontendKey,
        port: PortIndex,
        is_senior: impl Fn(PortIndex, PortIndex) -> bool,
    ) -> Claimed {
        let Some(claimants) = self.claimants.get_mut(&key) else {
            self.claimants.insert(key, Claimants { winner: port, waiting: Vec::new() });
            return Claimed::Free;
        };
        self.contested.insert(key);
        if is_senior(port, claimants.winner) {
            let from = std::mem::replace(&mut claimants.winner, port);
            claimants.waiting.push(from);
            Claimed::From(from)
        } else {
            claimants.waiting.push(port);
            Claimed::Waiting
        }
    }

    /// Takes a claim back, which must have been made.
    pub fn withdraw(
        &mut self,
        key: &FrontendKey,
        port: PortIndex,
        is_senior: impl Fn(PortIndex, PortIndex) -> bool,
    ) -> Withdrawn {
        let Some(claimants) = self.claimants.get_mut(key) else { return Withdrawn::Free };
        let heir = claimants.waiting.iter().copied().reduce(|a, b| if is_senior(a, b) { a } else { b });
        let Some(heir) = heir else {
            self.claimants.remove(key);
            return Withdrawn::Free;
        };
        let was_winner = claimants.winner == port;
        let leaves = if was_winner { heir } else { port };
        claimants.waiting.retain(|waiting| *waiting != leaves);
        if claimants.waiting.is_empty() {
            self.contested.remove(key);
        }
        if was_winner {
            claimants.winner = heir;
            Withdrawn::To(heir)
        } else {
            Withdrawn::WasWaiting
        }
    }

    /// The frontends that more than one claims, with who has it and who waits.
    pub fn contested(&self) -> impl Iterator<Item = (&FrontendKey, PortIndex, &[PortIndex])> {
        self.contested.iter().filter_map(|key| {
            let claimants = self.claimants.get(key)?;
            Some((key, claimants.winner, claimants.waiting.as_slice()))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lb_common::address::{Address, Port, Protocol};
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> FrontendKey {
        FrontendKey::new(Address::from_v4_bytes([10, 96, 0, number]), Port::new(80), Protocol::Tcp)
    }

    /// The lower number is the senior.
    fn is_senior(a: PortIndex, b: PortIndex) -> bool {
        a < b
    }

    #[test]
    fn the_senior_wins_whoever_comes_first_and_the_next_inherits() {
        let mut claims = Claims::default();
        assert_eq!(claims.claim(key(1), 5, is_senior), Claimed::Free);
        assert_eq!(claims.claim(key(1), 9, is_senior), Claimed::Waiting);
        assert_eq!(claims.claim(key(1), 2, is_senior), Claimed::From(5));
        assert_eq!(claims.winner(&key(1)), Some(2));
        assert_eq!(claims.contested().count(), 1);

        assert_eq!(claims.withdraw(&key(1), 9, is_senior), Withdrawn::WasWaiting);
        assert_eq!(claims.withdraw(&key(1), 2, is_senior), Withdrawn::To(5));
        assert_eq!(claims.contested().count(), 0);
        assert_eq!(claims.withdraw(&key(1), 5, is_senior), Withdrawn::Free);
        assert_eq!(claims.winner(&key(1)), None);
    }

    proptest! {
        #[test]
        fn the_winner_is_the_senior_of_those_who_claim(
            steps in proptest::collection::vec((0..3u8, 0..6u32), 0..60)
        ) {
            let mut claims = Claims::default();
            let mut model: BTreeMap<u8, BTreeSet<PortIndex>> = BTreeMap::new();
            for (number, port) in steps {
                let claimants = model.entry(number).or_default();
                if claimants.remove(&port) {
                    claims.withdraw(&key(number), port, is_senior);
                } else {
                    claimants.insert(port);
                    claims.claim(key(number), port, is_senior);
                }
                for (number, claimants) in &model {
                    prop_assert_eq!(claims.winner(&key(*number)), claimants.first().copied());
                }
                let contested = model.values().filter(|claimants| claimants.len() > 1).count();
                prop_assert_eq!(claims.contested().count(), contested);
            }
        }
    }
}
