//! The networks that cluster addresses come from (`SERVICE_CIDRS`): an address there that no Service has is refused.

use bytemuck::{Pod, Zeroable};

use crate::{address::Address, network::Network, prefix::Prefix};

/// How many networks the programs compare with.
pub const MAX: usize = 8;

/// The element of `SERVICE_CIDRS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ServiceCidrs {
    /// How many of them count.
    pub count: u32,
    /// The networks.
    pub networks: [Network; MAX],
}

impl ServiceCidrs {
    /// The first [`MAX`] of these.
    pub fn new(prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        let mut cidrs = Self { count: 0, networks: [Network::NONE; MAX] };
        for (network, prefix) in cidrs.networks.iter_mut().zip(prefixes) {
            *network = Network::new(prefix);
            cidrs.count += 1;
        }
        cidrs
    }

    /// The networks.
    pub fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.networks.iter().take(self.count as usize).map(Network::prefix)
    }

    /// Whether an address lies in one of the networks.
    #[inline(always)]
    pub fn contains(&self, address: &Address) -> bool {
        let count = self.count as usize;
        for (i, network) in self.networks.iter().enumerate() {
            if i >= count {
                return false;
            }
            if network.contains(address) {
                return true;
            }
        }
        false
    }
}

const _: () = assert!(size_of::<ServiceCidrs>() == 4 + MAX * 32);

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::IpAddr;
    use std::vec::Vec;

    use super::*;

    fn prefix(ip: &str, bits: u8) -> Prefix {
        Prefix::of(ip.parse().unwrap(), bits)
    }

    #[test]
    fn an_address_lies_in_one_of_the_networks_or_in_none() {
        let networks = [prefix("10.96.0.0", 12), prefix("fd00:10:96::", 112), prefix("192.0.2.8", 30)];
        let cidrs = ServiceCidrs::new(networks);
        assert_eq!(cidrs.prefixes().collect::<Vec<_>>(), networks);
        for (ip, expected) in [
            ("10.96.0.0", true),
            ("10.111.255.255", true),
            ("10.112.0.0", false),
            ("10.95.255.255", false),
            ("192.0.2.11", true),
            ("192.0.2.12", false),
            ("fd00:10:96::ffff", true),
            ("fd00:10:96::1:0", false),
            ("0.0.0.0", false),
            ("::", false),
            ("255.255.255.255", false),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(cidrs.contains(&ip.into()), expected, "{ip}");
        }
    }

    #[test]
    fn what_is_beyond_the_last_one_matches_nothing() {
        let many = (0..20).map(|i| Prefix::of(IpAddr::from([10, i, 0, 0]), 16));
        let cidrs = ServiceCidrs::new(many);
        assert_eq!(cidrs.count as usize, MAX);
        assert!(cidrs.contains(&IpAddr::from([10, 7, 0, 1]).into()));
        assert!(!cidrs.contains(&IpAddr::from([10, 8, 0, 1]).into()));
        for cidrs in [ServiceCidrs::new([]), ServiceCidrs::zeroed()] {
            assert!(!cidrs.contains(&IpAddr::from([0, 0, 0, 0]).into()));
            assert!(!cidrs.contains(&Address::UNSPECIFIED));
        }
        // Counted, but not written yet.
        for torn in [ServiceCidrs::new([]), ServiceCidrs::zeroed()] {
            let torn = ServiceCidrs { count: MAX as u32, ..torn };
            for address in [Address::UNSPECIFIED, Address::from_words([u32::MAX; 4])] {
                assert!(!torn.contains(&address));
            }
        }
    }
}
