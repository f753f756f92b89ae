//! Addresses as Kubernetes reads them: more leniently than the standard library.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Reads an address as Kubernetes' `ParseIPSloppy` does: leading zeros are decimal (`010.0.0.1` is 10.0.0.1), and the
/// v4-mapped form of an IPv4 address is that IPv4 address.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') { parse_v6(text).map(canonical) } else { parse_v4(text).map(IpAddr::V4) }
}

/// Reads a prefix in the same way; white space around it and bits after the prefix are dropped.
pub fn parse_net(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    if length.is_empty() || length.len() > 3 || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let length = length.parse::<u8>().ok()?;
    let net = if address.contains(':') {
        let v6 = parse_v6(address)?;
        match v6.to_ipv4_mapped() {
            Some(v4) => IpNet::V4(Ipv4Net::new(v4, length.checked_sub(96)?).ok()?),
            None => IpNet::V6(Ipv6Net::new(v6, length).ok()?),
        }
    } else {
        IpNet::V4(Ipv4Net::new(parse_v4(address)?, length).ok()?)
    };
    Some(net.trunc())
}

/// Whether an address can be that of one machine: not unspecified, multicast or broadcast.
///
/// The unspecified address is also the key under which node ports are stored.
pub fn is_unicast(ip: &IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || is_broadcast)
}

fn canonical(v6: Ipv6Addr) -> IpAddr {
    IpAddr::V6(v6).to_canonical()
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = parse_octet(parts.next()?)?;
    }
    parts.next().is_none().then(|| octets.into())
}

fn parse_octet(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    match text.trim_start_matches('0') {
        "" => Some(0),
        digits => digits.parse().ok(),
    }
}

fn parse_v6(text: &str) -> Option<Ipv6Addr> {
    if let Ok(strict) = text.parse() {
        return Some(strict);
    }
    let groups: Option<Vec<String>> = text.split(':').map(plain_group).collect();
    groups?.join(":").parse().ok()
}

/// A group without its surplus zeros; an IPv4 tail without leading zeros.
fn plain_group(group: &str) -> Option<String> {
    if group.contains('.') {
        return parse_v4(group).map(|v4| v4.to_string());
    }
    let surplus = group.len().saturating_sub(4);
    let (zeros, rest) = group.split_at_checked(surplus)?;
    zeros.bytes().all(|byte| byte == b'0').then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> Option<String> {
        parse_ip(text).map(|ip| ip.to_string())
    }

    fn net(text: &str) -> Option<String> {
        parse_net(text).map(|net| net.to_string())
    }

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        let table = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.000.001", Some("10.0.0.1")),
            ("0177.0.0.010", Some("177.0.0.10")),
            ("00000000255.0.0.0", Some("255.0.0.0")),
            ("0.0.0.0", Some("0.0.0.0")),
            ("256.0.0.1", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0..1", None),
            ("10.0.0.+1", None),
            ("10.0.0.0x1", None),
            (" 10.0.0.1", None),
            ("10.0.0.1 ", None),
            ("", None),
            ("web.example", None),
            ("fd00::1", Some("fd00::1")),
            ("FD00::A", Some("fd00::a")),
            ("fd00::00001", Some("fd00::1")),
            ("fd00::10001", None),
            ("::", Some("::")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.1", Some("10.0.0.1")),
            ("::ffff:a00:1", Some("10.0.0.1")),
            ("64:ff9b::010.0.0.1", Some("64:ff9b::a00:1")),
            ("fe80::1%eth0", None),
            ("1::2::3", None),
            (":", None),
            ("fd00::é0000", None),
        ];
        for (text, expected) in table {
            assert_eq!(ip(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn prefixes_are_read_as_kubernetes_reads_them() {
        let table = [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            (" 10.1.2.3/8\t", Some("10.0.0.0/8")),
            ("010.0.0.0/08", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0", None),
            ("fd00::1/64", Some("fd00::/64")),
            ("fd00::/129", None),
            ("fd00::/256", None),
            ("::/0", Some("::/0")),
            ("::ffff:10.1.2.3/104", Some("10.0.0.0/8")),
            ("::ffff:10.1.2.3/95", None),
        ];
        for (text, expected) in table {
            assert_eq!(net(text).as_deref(), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_standard_library_reads_is_read_alike(bytes: [u8; 16], v4: [u8; 4]) {
            for ip in [canonical(bytes.into()), IpAddr::from(v4)] {
                prop_assert_eq!(parse_ip(&ip.to_string()), Some(ip));
            }
        }

        #[test]
        fn any_text_is_survived(text in "[0-9a-fA-F:./x é%]{0,40}") {
            let _ = (parse_ip(&text), parse_net(&text));
        }
    }
}
