//! A frontend: an address, port and protocol at which a service port is reachable.

use bytemuck::{Pod, Zeroable};

use crate::address::{Address, Port, Protocol, SocketAddress};

/// Key of `FRONTENDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FrontendKey {
    address: Address,
    port: Port,
    protocol: u8,
    reserved: u8,
}

impl FrontendKey {
    /// The key of a frontend. A node port stands under the unspecified address of its family.
    #[inline(always)]
    pub const fn new(address: Address, port: Port, protocol: Protocol) -> Self {
        Self { address, port, protocol: protocol as u8, reserved: 0 }
    }

    /// The key under which the node port of the same port, protocol and family stands.
    #[inline(always)]
    pub const fn node_port(&self) -> Self {
        Self { address: self.address.unspecified_of(), ..*self }
    }

    /// The key under which an address of a Service that is left to another proxy stands, with all its ports.
    #[inline(always)]
    pub const fn other_proxy(address: Address) -> Self {
        Self { address, port: Port::from_wire(0), protocol: 0, reserved: 0 }
    }

    /// The address.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// The port.
    pub const fn port(&self) -> Port {
        self.port
    }

    /// The protocol's number.
    pub const fn protocol_number(&self) -> u8 {
        self.protocol
    }

    /// Address and port.
    pub const fn socket_address(&self) -> SocketAddress {
        SocketAddress::new(self.address, self.port)
    }

    /// A few bits mixed from the whole key: equal keys have equal tags, and two different keys share one
    /// with a chance of 2⁻¹⁶.
    ///
    /// The kernel may reuse a hash element for another key between the look-up and the load of its value. The tag
    /// in the value tells: it is that of another key then.
    #[inline(always)]
    pub const fn tag(&self) -> u16 {
        let words = self.address.words();
        let last = (self.port.wire() as u32) << 16 | self.protocol as u32;
        // Fibonacci hashing: each 32-bit word spreads over the upper half of a 64-bit product. The factors are odd and
        // unrelated, so that equal words do not cancel out.
        let mixed = (words[0] as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add((words[1] as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9))
            .wrapping_add((words[2] as u64).wrapping_mul(0x94d0_49bb_1331_11eb))
            .wrapping_add((words[3] as u64).wrapping_mul(0xd6e8_feb8_6659_fd93))
            .wrapping_add((last as u64).wrapping_mul(0xa076_1d64_78bd_642f));
        (mixed >> 48) as u16
    }
}

/// What kind of address a frontend stands at. It decides which traffic policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrontendKind {
    /// `spec.clusterIPs`: the internal traffic policy applies.
    ClusterIp = 1,
    /// `spec.ports[].nodePort` at the node's addresses: the external traffic policy applies.
    NodePort = 2,
    /// `status.loadBalancer.ingress[].ip` with mode VIP: the external traffic policy applies.
    LoadBalancer = 3,
    /// `spec.externalIPs`: the external traffic policy applies.
    ExternalIp = 4,
    /// A cluster address of a Service that is left to another proxy: it leads to no record, and passes untouched.
    OtherProxy = 5,
}

impl FrontendKind {
    /// The name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
            Self::OtherProxy => "OtherProxy",
        }
    }
}

impl TryFrom<u8> for FrontendKind {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        match number {
            1 => Ok(Self::ClusterIp),
            2 => Ok(Self::NodePort),
            3 => Ok(Self::LoadBalancer),
            4 => Ok(Self::ExternalIp),
            5 => Ok(Self::OtherProxy),
            other => Err(other),
        }
    }
}

/// Value of `FRONTENDS`: eight bytes, loaded once (see [`FrontendEntry::from_bits`]), written only when the frontend
/// appears, goes, or changes hands; never for an endpoint change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct FrontendEntry {
    /// Index of the service's record in `SERVICES`.
    pub record: u32,
    /// A [`FrontendKind`].
    pub kind: u8,
    reserved: u8,
    /// [`FrontendKey::tag`] of the entry's key.
    pub tag: u16,
}

impl FrontendEntry {
    /// The entry for `key`.
    pub const fn new(key: &FrontendKey, kind: FrontendKind, record: u32) -> Self {
        Self { record, kind: kind as u8, reserved: 0, tag: key.tag() }
    }

    /// From the one word that was loaded.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        let b = bits.to_ne_bytes();
        Self {
            record: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            kind: b[4],
            reserved: b[5],
            tag: u16::from_ne_bytes([b[6], b[7]]),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::net::IpAddr;
    use std::vec;

    use super::*;

    fn key(ip: &str, port: u16, protocol: Protocol) -> FrontendKey {
        let ip: IpAddr = ip.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]));
        FrontendKey::new(ip.into(), Port::new(port), protocol)
    }

    #[test]
    fn an_entry_survives_its_bits() {
        let key = key("10.96.0.1", 443, Protocol::Tcp);
        let entry = FrontendEntry::new(&key, FrontendKind::LoadBalancer, 77);
        assert_eq!(FrontendEntry::from_bits(bytemuck::cast(entry)), entry);
        assert_eq!(size_of::<FrontendEntry>(), 8);
        assert_eq!(size_of::<FrontendKey>(), 20);
    }

    #[test]
    fn neighbouring_keys_have_different_tags() {
        // Consecutive ClusterIPs and ports are what a cluster really holds: the tag must tell them apart well.
        let mut seen = vec![false; 65536];
        let mut collisions = 0;
        for host in 0..=255_u8 {
            for port in 0..64_u16 {
                let address = Address::from_v4_bytes([10, 96, 0, host]);
                let tag = FrontendKey::new(address, Port::new(8000 + port), Protocol::Tcp).tag();
                collisions += u32::from(std::mem::replace(&mut seen[usize::from(tag)], true));
            }
        }
        // 16,384 keys thrown at random into 65,536 tags collide about 1,890 times.
        assert!(collisions < 2_600, "{collisions} collisions");
    }

    #[test]
    fn protocol_port_and_family_are_part_of_the_tag() {
        let base = key("10.96.0.1", 80, Protocol::Tcp).tag();
        assert_ne!(base, key("10.96.0.1", 80, Protocol::Udp).tag());
        assert_ne!(base, key("10.96.0.1", 81, Protocol::Tcp).tag());
        assert_ne!(base, key("fd00::a60:1", 80, Protocol::Tcp).tag());
    }

    #[test]
    fn a_node_port_stands_under_the_unspecified_address_of_its_family() {
        assert_eq!(key("172.18.0.2", 30080, Protocol::Udp).node_port(), key("0.0.0.0", 30080, Protocol::Udp));
        assert_eq!(key("fd00::2", 30080, Protocol::Tcp).node_port(), key("::", 30080, Protocol::Tcp));
    }
}
