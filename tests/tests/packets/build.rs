//! From layers to bytes, with every length and checksum computed anew: by etherparse, which shares no code with Sockeye.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, bail};
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options,
    Ipv6FlowLabel, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, TcpHeader, UdpHeader,
};

use crate::text::Layer;

/// The ports that names stand for.
pub(crate) type Ports = BTreeMap<String, u16>;

/// Addresses of the frame, which no program here changes.
const MAC_ADDRESSES: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

/// A frame.
pub(crate) fn frame(layers: &[Layer], ports: &Ports) -> Result<Vec<u8>> {
    let (ether_type, payload) = match layers.first().context("a packet without layers")? {
        layer if layer.kind == "ether" => {
            (layer.number("next", 0)?, encode(&layers[1..], None, ports)?.bytes)
        }
        layer => (if layer.kind == "ipv4" { 0x0800_u16 } else { 0x86dd }, encode(layers, None, ports)?.bytes),
    };
    Ok([&MAC_ADDRESSES[..], &ether_type.to_be_bytes(), &payload].concat())
}

/// The name of the first port that is not known yet, and whether it is the source's.
pub(crate) fn unknown_port(layers: &[Layer], ports: &Ports) -> Option<(String, bool)> {
    let transport = layers.iter().find(|layer| matches!(layer.kind.as_str(), "tcp" | "udp"))?;
    let unknown = |word: &&String| word.starts_with('$') && !ports.contains_key(*word);
    let index = transport.words.iter().position(|word| unknown(&word))?;
    Some((transport.words[index].clone(), index == 0))
}

/// A part of a packet: its bytes, and the protocol's number that announces it.
struct Part {
    protocol: u8,
    bytes: Vec<u8>,
}

type Addresses = Option<[IpAddr; 2]>;

fn encode(layers: &[Layer], addresses: Addresses, ports: &Ports) -> Result<Part> {
    // No next header (RFC 8200, section 4.7).
    let Some((layer, rest)) = layers.split_first() else {
        return Ok(Part { protocol: 59, bytes: Vec::new() });
    };
    let inner = match layer.kind.as_str() {
        "ipv4" | "ipv6" => encode(rest, Some(layer.addresses()?), ports)?,
        // What is quoted has its own addresses.
        _ => encode(rest, addresses, ports)?,
    };
    let mut part = match layer.kind.as_str() {
        "ipv4" => ipv4(layer, &inner)?,
        "ipv6" => ipv6(layer, &inner)?,
        "extension" => extension(layer, &inner)?,
        "fragment" => fragment(layer, &inner)?,
        "tcp" => tcp(layer, &inner, addresses, ports)?,
        "udp" => udp(layer, &inner, addresses, ports)?,
        "icmp" => icmp(layer, inner, addresses)?,
        "sctp" => sctp(layer, &inner, ports)?,
        "text" => data(layer.words.join(" ").as_bytes(), &inner),
        // A pattern without a period of a power of two, so that no shift goes unnoticed.
        "bytes" => data(&(0..layer.parsed(0)?).map(|i: u32| (i % 251) as u8).collect::<Vec<_>>(), &inner),
        other => bail!("no place for {other} here"),
    };
    let kept = part.bytes.len().saturating_sub(layer.number("cut", 0)?);
    part.bytes.truncate(kept);
    Ok(part)
}

fn data(bytes: &[u8], inner: &Part) -> Part {
    Part { protocol: inner.protocol, bytes: [bytes, &inner.bytes].concat() }
}

fn ipv4(layer: &Layer, inner: &Part) -> Result<Part> {
    let [IpAddr::V4(source), IpAddr::V4(destination)] = layer.addresses()? else { bail!("IPv4 addresses") };
    // Internetwork control, as Linux sends ICMP errors in IPv4.
    let tos: u8 = layer.number("tos", if layer.has("control") { 0xc0 } else { 0 })?;
    let options = hex(layer.text("options").unwrap_or_default())?;
    let length = u16::try_from(20 + options.len() + inner.bytes.len())?;
    let mut header = Ipv4Header {
        dscp: (tos >> 2).try_into()?,
        ecn: (tos & 3).try_into()?,
        total_len: layer.number("length", length)?,
        identification: layer.number("id", 0)?,
        dont_fragment: layer.has("df") || layer.has("control"),
        more_fragments: layer.has("more"),
        fragment_offset: offset(layer)?,
        time_to_live: layer.number("ttl", 64)?,
        protocol: IpNumber(layer.number("protocol", inner.protocol)?),
        source: source.octets(),
        destination: destination.octets(),
        options: Ipv4Options::try_from(&options[..])?,
        ..Ipv4Header::default()
    };
    header.header_checksum = header.calc_header_checksum();
    if layer.has("badchecksum") {
        // Off by one in one's complement: an update by differences carries the error on (RFC 1624).
        let (sum, carry) = header.header_checksum.overflowing_add(1);
        header.header_checksum = sum + u16::from(carry);
    }
    let mut bytes = header.to_bytes().to_vec();
    let (version, ihl): (u8, u8) =
        (layer.number("version", bytes[0] >> 4)?, layer.number("ihl", bytes[0] & 15)?);
    bytes[0] = version << 4 | ihl;
    Ok(Part { protocol: 4, bytes: [&bytes[..], &inner.bytes].concat() })
}

fn ipv6(layer: &Layer, inner: &Part) -> Result<Part> {
    let [IpAddr::V6(source), IpAddr::V6(destination)] = layer.addresses()? else { bail!("IPv6 addresses") };
    let header = Ipv6Header {
        traffic_class: layer.number("tos", 0)?,
        flow_label: Ipv6FlowLabel::try_new(layer.number("flow", 0)?)?,
        payload_length: layer.number("length", u16::try_from(inner.bytes.len())?)?,
        next_header: IpNumber(layer.number("protocol", inner.protocol)?),
        hop_limit: layer.number("ttl", 64)?,
        source: source.octets(),
        destination: destination.octets(),
    };
    let mut bytes = header.to_bytes();
    bytes[0] = layer.number::<u8>("version", 6)? << 4 | bytes[0] & 15;
    Ok(Part { protocol: 41, bytes: [&bytes[..], &inner.bytes].concat() })
}

/// Hop-by-hop, routing or destination options, of eight bytes and more: padding (RFC 8200, section 4.2).
fn extension(layer: &Layer, inner: &Part) -> Result<Part> {
    let protocol = match layer.word(0)? {
        "hop-by-hop" => 0,
        "routing" => 43,
        "destination" => 60,
        other => bail!("no extension header is called {other}"),
    };
    let units: u8 = layer.number("length", 0)?;
    let padding = usize::from(units) * 8 + 4;
    let mut payload = vec![0; padding + 2];
    payload[..2].copy_from_slice(&[1, padding as u8]);
    let next = IpNumber(layer.number("next", inner.protocol)?);
    let header = Ipv6RawExtHeader::new_raw(next, &payload)?;
    Ok(Part { protocol, bytes: [&header.to_bytes()[..], &inner.bytes].concat() })
}

fn fragment(layer: &Layer, inner: &Part) -> Result<Part> {
    let next = IpNumber(layer.number("next", inner.protocol)?);
    let header = Ipv6FragmentHeader::new(next, offset(layer)?, layer.has("more"), layer.number("id", 0)?);
    Ok(Part { protocol: 44, bytes: [&header.to_bytes()[..], &inner.bytes].concat() })
}

fn offset(layer: &Layer) -> Result<IpFragOffset> {
    Ok((layer.number::<u16>("offset", 0)? / 8).try_into()?)
}

fn port(layer: &Layer, index: usize, ports: &Ports) -> Result<u16> {
    let word = layer.word(index)?;
    if word.starts_with('$') {
        return ports.get(word).copied().with_context(|| format!("{word} has no value yet"));
    }
    layer.parsed(index)
}

fn tcp(layer: &Layer, inner: &Part, addresses: Addresses, ports: &Ports) -> Result<Part> {
    let flags = layer.text("flags").unwrap_or("A");
    let mut header = TcpHeader {
        source_port: port(layer, 0, ports)?,
        destination_port: port(layer, 1, ports)?,
        sequence_number: layer.number("seq", 1000)?,
        acknowledgment_number: layer.number("ack", 0)?,
        window_size: layer.number("window", 65_000)?,
        fin: flags.contains('F'),
        syn: flags.contains('S'),
        rst: flags.contains('R'),
        psh: flags.contains('P'),
        ack: flags.contains('A'),
        ..TcpHeader::default()
    };
    if let Some(options) = layer.text("options") {
        header.set_options_raw(&hex(options)?)?;
    }
    header.checksum = match addresses.context("TCP without addresses")? {
        [IpAddr::V4(s), IpAddr::V4(d)] => {
            header.calc_checksum_ipv4_raw(s.octets(), d.octets(), &inner.bytes)?
        }
        [IpAddr::V6(s), IpAddr::V6(d)] => {
            header.calc_checksum_ipv6_raw(s.octets(), d.octets(), &inner.bytes)?
        }
        mixed => bail!("mixed addresses: {mixed:?}"),
    };
    Ok(Part { protocol: 6, bytes: [&header.to_bytes()[..], &inner.bytes].concat() })
}

fn udp(layer: &Layer, inner: &Part, addresses: Addresses, ports: &Ports) -> Result<Part> {
    let length = u16::try_from(8 + inner.bytes.len())?;
    let mut header = UdpHeader {
        source_port: port(layer, 0, ports)?,
        destination_port: port(layer, 1, ports)?,
        length: layer.number("length", length)?,
        checksum: 0,
    };
    if !layer.has("nochecksum") {
        header.checksum = match addresses.context("UDP without addresses")? {
            [IpAddr::V4(s), IpAddr::V4(d)] => {
                header.calc_checksum_ipv4_raw(s.octets(), d.octets(), &inner.bytes)?
            }
            [IpAddr::V6(s), IpAddr::V6(d)] => {
                header.calc_checksum_ipv6_raw(s.octets(), d.octets(), &inner.bytes)?
            }
            mixed => bail!("mixed addresses: {mixed:?}"),
        };
    }
    Ok(Part { protocol: 17, bytes: [&header.to_bytes()[..], &inner.bytes].concat() })
}

/// Ports, verification tag, and a checksum that nobody reads here (RFC 9260, section 3.1).
fn sctp(layer: &Layer, inner: &Part, ports: &Ports) -> Result<Part> {
    let ports = [port(layer, 0, ports)?, port(layer, 1, ports)?].map(u16::to_be_bytes).concat();
    Ok(Part { protocol: 132, bytes: [&ports[..], &[0; 8], &inner.bytes].concat() })
}

/// `icmp TYPE CODE`, of the family that carries it. What follows is quoted: `quote` says how many bytes of it.
fn icmp(layer: &Layer, inner: Part, addresses: Addresses) -> Result<Part> {
    let (type_u8, code_u8) = (layer.parsed(0)?, layer.parsed(1)?);
    let bytes5to8 = layer.number::<u32>("rest", 0)?.to_be_bytes();
    let mut quoted = inner.bytes;
    quoted.truncate(layer.number("quote", usize::MAX)?);
    let (protocol, header) =
        if let [IpAddr::V6(s), IpAddr::V6(d)] = addresses.context("ICMP without addresses")? {
            let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
            (58, Icmpv6Header::with_checksum(kind, s.octets(), d.octets(), &quoted)?.to_bytes().to_vec())
        } else {
            let kind = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
            (1, Icmpv4Header::with_checksum(kind, &quoted).to_bytes().to_vec())
        };
    Ok(Part { protocol, bytes: [header, quoted].concat() })
}

fn hex(text: &str) -> Result<Vec<u8>> {
    let byte =
        |i| u8::from_str_radix(text.get(i..i + 2).context("half a byte")?, 16).context("hexadecimal digits");
    (0..text.len()).step_by(2).map(byte).collect()
}
