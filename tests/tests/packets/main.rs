//! Packet by packet: what the programs do to each, on the maps that the agent filled. Needs root.
//!
//! The cases are data, in `tests/packets/`; `text` says how they are written.

mod build;
mod names;
mod node;
mod text;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::SlicedPacket;
use lb_tests::{manifests::Manifests, require};

use self::{
    build::{Ports, frame, unknown_port},
    node::{Node, Run},
    text::{Case, Step, Verdict},
};

/// A node with the Services that all cases are about.
fn with_node(test: impl FnOnce(&Node<'_>) -> Result<()>) -> Result<()> {
    let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("packets/services.yaml");
    let manifests = Manifests::new()?;
    manifests.write("services.yaml", &std::fs::read_to_string(services)?)?;
    Node::with(&manifests, test)
}

/// Runs the cases of one file.
fn run_file(name: &str) -> Result<()> {
    require!(kernel >= (6, 6), "tcx, whose links a test can remove");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packets");
    let cases = text::load(&folder.join(name))?;
    ensure!(!cases.is_empty(), "no cases in {name}");
    with_node(|node| {
        let failures: Vec<_> = cases
            .iter()
            .filter_map(|case| Some(format!("{}: {:#}", case.name, run_case(node, case).err()?)))
            .collect();
        ensure!(
            failures.is_empty(),
            "{name}: {} of {} cases fail:\n{}",
            failures.len(),
            cases.len(),
            failures.join("\n")
        );
        Ok(())
    })
}

fn run_case(node: &Node<'_>, case: &Case) -> Result<()> {
    ensure!(!case.steps.is_empty(), "no packets");
    node.forget()?;
    let mut ports = Ports::new();
    case.steps
        .iter()
        .try_for_each(|step| run_step(node, step, &mut ports).with_context(|| format!("line {}", step.line)))
}

fn run_step(node: &Node<'_>, step: &Step, ports: &mut Ports) -> Result<()> {
    let input = frame(&step.input, ports).context("the input")?;
    let run = node.run(step.direction, &input)?;
    let counted: Vec<_> = run.counted.iter().map(|(name, count)| (*name, *count)).collect();
    ensure!(
        run.verdict == step.verdict.in_the_kernel() && counted == [(step.outcome.as_str(), 1)],
        "expected {:?} {}, got {:?} {counted:?}",
        step.verdict,
        step.outcome,
        run.verdict
    );
    if run.verdict == Verdict::Drop {
        return Ok(());
    }
    let expected = if step.output.is_empty() { input } else { expected(step, &run, ports)? };
    if run.packet != expected {
        bail!("the packets differ:\nexpected {}\ngot      {}", show(&expected), show(&run.packet));
    }
    Ok(())
}

/// The expected frame; ports that are named for the first time are read from the packet.
fn expected(step: &Step, run: &Run, ports: &mut Ports) -> Result<Vec<u8>> {
    while let Some((name, is_source)) = unknown_port(&step.output, ports) {
        let (source, destination) = transport_ports(&run.packet)?;
        ports.insert(name, if is_source { source } else { destination });
    }
    let mut frame = frame(&step.output, ports).context("the expected output")?;
    if step.verdict == Verdict::Answer {
        frame[..12].rotate_left(6);
    }
    Ok(frame)
}

/// The ports stand first in what the network header carries; etherparse reads no transport header in a fragment.
fn transport_ports(packet: &[u8]) -> Result<(u16, u16)> {
    let sliced = SlicedPacket::from_ethernet(packet).context("what came out is no packet")?;
    let payload = sliced.ip_payload().context("what came out is no IP")?.payload;
    let port = |at: usize| payload.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    port(0).zip(port(2)).context("what came out is too short for ports")
}

/// Bytes in groups of four from the network header on.
fn show(packet: &[u8]) -> String {
    let (link, rest) = packet.split_at(packet.len().min(14));
    let group = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    let groups: Vec<_> = [link].into_iter().chain(rest.chunks(4).take(30)).map(group).collect();
    format!("{} bytes: {}", packet.len(), groups.join(" "))
}

#[test]
fn connections_are_translated_both_ways() -> Result<()> {
    run_file("flows.txt")
}

#[test]
fn later_fragments_follow_the_first() -> Result<()> {
    run_file("fragments.txt")
}

#[test]
fn who_cannot_be_served_is_told() -> Result<()> {
    run_file("answers.txt")
}

#[test]
fn icmp_errors_find_whom_they_concern() -> Result<()> {
    run_file("errors.txt")
}

#[test]
fn headers_of_every_shape_are_read() -> Result<()> {
    run_file("headers.txt")
}

#[test]
fn what_is_no_service_or_no_sound_packet_passes_untouched() -> Result<()> {
    run_file("untouched.txt")
}

/// The kernel gives up at a million (`BPF_COMPLEXITY_LIMIT_INSNS`), and each version counts a little differently.
#[test]
fn the_verifier_has_room_to_spare() -> Result<()> {
    require!(kernel >= (6, 6), "tcx, whose links a test can remove");
    with_node(|node| {
        for verified in node.verified()? {
            let verified = verified.context("the kernel tells no number")?;
            assert!((1..500_000).contains(&verified), "{verified} instructions");
        }
        Ok(())
    })
}

/// Numbers that look random and are the same in each run (xorshift, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[test]
fn random_connections_come_back_as_they_went() -> Result<()> {
    const CONNECTIONS: u64 = 1_000;
    require!(kernel >= (6, 6), "tcx, whose links a test can remove");
    with_node(|node| {
        let mut numbers = Numbers(0x50c4_e7e0_50c4_e7e0);
        for number in 0..CONNECTIONS {
            let text = random_connection(&mut numbers, number);
            let mut ports = Ports::new();
            for step in text::parse(&text)?.iter().flat_map(|case| &case.steps) {
                run_step(node, step, &mut ports).with_context(|| text.clone())?;
            }
        }
        Ok(())
    })
}

/// A packet of a new connection and its answer, through a node port to this node or another.
fn random_connection(numbers: &mut Numbers, number: u64) -> String {
    let (ip, client, node, pods) = if numbers.below(2) == 0 {
        let client = format!("172.18.0.{}", 10 + numbers.below(240));
        ("ipv4", client, "172.18.0.2", ["10.244.1.11", "10.244.2.13"])
    } else {
        let client = format!("fd00:18::{:x}:{:x}", numbers.below(0x1_0000), 0x100 + numbers.below(0xff00));
        ("ipv6", client, "fd00:18::2", ["fd00:244:1::11", "fd00:244:2::13"])
    };
    let (transport, port, flags) =
        if numbers.below(2) == 0 { ("tcp", 8080, ["flags=S", "flags=SA"]) } else { ("udp", 5353, ["", ""]) };
    // 7919 and 60,000 have no common divisor: no port comes twice.
    let client_port = 1024 + number * 7919 % 60_000;
    let there = numbers.below(2) == 1;
    let (node_port, pod) = if there { (31002, pods[1]) } else { (31001, pods[0]) };
    let (verdict, back, source, source_port, hops) = if there {
        ("redirect", "ingress", node, "$source".to_owned(), 63)
    } else {
        ("pass", "egress", client.as_str(), client_port.to_string(), 64)
    };
    let lengths = [numbers.below(1400), numbers.below(1400)];
    format!(
        "== connection {number}
ingress
  {ip} {client} > {node} ttl=64
  {transport} {client_port} > {node_port} {}
  bytes {}
{verdict} flow_opened
  {ip} {source} > {pod} ttl={hops}
  {transport} {source_port} > {port} {}
  bytes {}
{back}
  {ip} {pod} > {source} ttl=64
  {transport} {port} > {source_port} {}
  bytes {}
{verdict} flow_returned
  {ip} {node} > {client} ttl={hops}
  {transport} {node_port} > {client_port} {}
  bytes {}
",
        flags[0], lengths[0], flags[0], lengths[0], flags[1], lengths[1], flags[1], lengths[1],
    )
}
