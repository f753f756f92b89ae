//! Networks in the form that costs the programs least: an address and a mask, compared word by word.

use bytemuck::{Pod, Zeroable};

use crate::{address::Address, prefix::Prefix};

/// A network, as the programs compare with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Network {
    /// The first address.
    pub network: Address,
    /// The bits of an address that are compared.
    pub mask: Address,
}

impl Network {
    /// No address lies in it, not even if a program reads one half of it and one half of the network that comes here.
    pub const NONE: Self =
        Self { network: Address::from_words([u32::MAX; 4]), mask: Address::from_words([0; 4]) };

    /// The network of a prefix.
    pub const fn new(prefix: Prefix) -> Self {
        let ones = Address::from_words([u32::MAX; 4]);
        Self { network: prefix.address(), mask: Prefix::new(ones, prefix.bits()).address() }
    }

    /// Whether an address lies in it; in an element that was never written lies none.
    #[inline(always)]
    pub const fn contains(&self, address: &Address) -> bool {
        let (n, m, a) = (self.network.words(), self.mask.words(), address.words());
        m[0] != 0 && a[0] & m[0] == n[0] && a[1] & m[1] == n[1] && a[2] & m[2] == n[2] && a[3] & m[3] == n[3]
    }

    /// The prefix that it is.
    pub fn prefix(&self) -> Prefix {
        Prefix::new(self.network, self.mask.words().map(u32::count_ones).iter().sum())
    }
}
