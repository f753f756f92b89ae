//! Addresses and ports as they stand on the wire, and the transport protocols.

use core::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use bytemuck::{Pod, Zeroable};

/// The first twelve bytes of a v4-mapped address (RFC 4291, section 2.5.5.2).
const V4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// An IP address: 128 bits in network order, IPv4 as v4-mapped.
///
/// Aligned to four bytes, because the kernel hands out addresses in 32-bit words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct Address {
    bytes: [u8; 16],
}

impl Address {
    /// `::`. Together with a port it keys the `NodePort` entry of IPv6 (see [`Address::unspecified_of`]).
    pub const UNSPECIFIED: Self = Self { bytes: [0; 16] };

    /// From bytes in network order; IPv4 must already be v4-mapped.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }

    /// From an IPv4 address in network order.
    #[inline(always)]
    pub const fn from_v4_bytes(v4: [u8; 4]) -> Self {
        let mut bytes = [0; 16];
        bytes[10] = 0xff;
        bytes[11] = 0xff;
        bytes[12] = v4[0];
        bytes[13] = v4[1];
        bytes[14] = v4[2];
        bytes[15] = v4[3];
        Self { bytes }
    }

    /// From four words as the kernel holds them: each in network order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        bytemuck::must_cast(words)
    }

    /// From an IPv4 address in one word as the kernel holds it: in network order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, u32::from_be(0x0000_ffff), word])
    }

    /// Four words as the kernel holds them: each in network order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        bytemuck::must_cast(*self)
    }

    /// The last word: of a v4-mapped address the IPv4 address, in network order.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words()[3]
    }

    /// The bytes in network order.
    pub const fn bytes(&self) -> [u8; 16] {
        self.bytes
    }

    /// Whether this is an IPv4 address in its v4-mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let words = self.words();
        words[0] == 0 && words[1] == 0 && words[2] == u32::from_be(0x0000_ffff)
    }

    /// The unspecified address of the same family: `0.0.0.0` (v4-mapped) or `::`.
    ///
    /// A node port is stored once under it, however many addresses the node has.
    #[inline(always)]
    pub const fn unspecified_of(&self) -> Self {
        Self::from_words([0, 0, if self.is_v4() { u32::from_be(0x0000_ffff) } else { 0 }, 0])
    }

    /// Whether this is the unspecified address of either family.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let words = self.words();
        let rest = words[0] | words[1] | words[3];
        rest == 0 && (words[2] == 0 || words[2] == u32::from_be(0x0000_ffff))
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4_bytes(v4.octets()),
            IpAddr::V6(v6) => Self::from_bytes(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let b = address.bytes;
        if b[..12] == V4_MAPPED {
            Self::from([b[12], b[13], b[14], b[15]])
        } else {
            Self::V6(Ipv6Addr::from(b))
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&IpAddr::from(*self), f)
    }
}

/// A port in network order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Port {
    bytes: [u8; 2],
}

impl Port {
    /// From a number.
    pub const fn new(port: u16) -> Self {
        Self { bytes: port.to_be_bytes() }
    }

    /// From the kernel's form: the 16 bits in network order.
    #[inline(always)]
    pub const fn from_wire(port: u16) -> Self {
        Self { bytes: port.to_ne_bytes() }
    }

    /// The kernel's form: the 16 bits in network order.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        u16::from_ne_bytes(self.bytes)
    }

    /// The number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.bytes)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.number(), f)
    }
}

/// An address with a port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct SocketAddress {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: Port,
    reserved: u16,
}

impl SocketAddress {
    /// An address with a port.
    #[inline(always)]
    pub const fn new(address: Address, port: Port) -> Self {
        Self { address, port, reserved: 0 }
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(socket: SocketAddr) -> Self {
        Self::new(socket.ip().into(), Port::new(socket.port()))
    }
}

impl From<SocketAddress> for SocketAddr {
    fn from(socket: SocketAddress) -> Self {
        Self::new(socket.address.into(), socket.port.number())
    }
}

impl fmt::Debug for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SocketAddr::from(*self), f)
    }
}

/// A transport protocol, by its IANA number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
    /// RFC 9260.
    Sctp = 132,
}

impl Protocol {
    /// The name that Kubernetes uses: `TCP`, `UDP`, `SCTP`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl TryFrom<u8> for Protocol {
    type Error = u8;

    fn try_from(number: u8) -> Result<Self, u8> {
        match number {
            6 => Ok(Self::Tcp),
            17 => Ok(Self::Udp),
            132 => Ok(Self::Sctp),
            other => Err(other),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn v4_is_mapped_and_comes_back_as_v4() {
        let address = Address::from(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)));
        assert!(address.is_v4());
        assert_eq!(address.bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1]);
        assert_eq!(IpAddr::from(address), IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)));
        assert_eq!(Address::from_v4_word(u32::from_ne_bytes([10, 96, 0, 1])), address);
        assert_eq!(Address::from_words(address.words()), address);
        assert_eq!(address.v4_word().to_ne_bytes(), [10, 96, 0, 1]);
    }

    #[test]
    fn v6_keeps_its_bytes() {
        let ip: Ipv6Addr = "fd00:10:96::1".parse().unwrap_or(Ipv6Addr::UNSPECIFIED);
        let address = Address::from(IpAddr::V6(ip));
        assert!(!address.is_v4());
        assert_eq!(address.bytes(), ip.octets());
        assert_eq!(Address::from_words(address.words()), address);
        assert_eq!(IpAddr::from(address), IpAddr::V6(ip));
    }

    #[test]
    fn each_family_has_its_unspecified_address() {
        assert_eq!(
            Address::from_v4_bytes([1, 2, 3, 4]).unspecified_of(),
            Address::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        );
        assert_eq!(Address::from_bytes([1; 16]).unspecified_of(), Address::UNSPECIFIED);
        assert_ne!(Address::from_v4_bytes([0; 4]), Address::UNSPECIFIED);
    }

    #[test]
    fn a_port_is_big_endian_in_memory() {
        assert_eq!(bytemuck::bytes_of(&Port::new(0x1f90)), [0x1f, 0x90]);
        assert_eq!(Port::from_wire(Port::new(8080).wire()).number(), 8080);
    }
}
