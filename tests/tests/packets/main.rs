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

/// Runs the cases of one file.
fn run_file(name: &str) -> Result<()> {
    require!(kernel >= (6, 6), "tcx, whose links a test can remove");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packets");
    let cases = text::load(&folder.join(name))?;
    ensure!(!cases.is_empty(), "no cases in {name}");
    let manifests = Manifests::new()?;
    manifests.write("services.yaml", &std::fs::read_to_string(folder.join("services.yaml"))?)?;
    Node::with(&manifests, |node| {
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
