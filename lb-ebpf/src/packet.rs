//! North-south: packets that enter the node from outside for a service, and what its backends answer.
//!
//! Named steps: parse → flow → frontend → select → rewrite → forward.
//!
//! A backend on this node gets the client's own address: the packet passes the stack, and the answer is turned back when
//! it leaves through an external device. A backend on another machine sees this node's address, so that its answer
//! comes back here; such packets are redirected to the device they leave through, because the stack drops packets
//! from outside that bear one of its own addresses as their source.
//!
//! ICMP errors about such packets are translated like them (`error`), and later fragments follow the first.

mod answer;
mod early;
mod error;
mod flow;
mod forward;
mod frame;
mod open;
mod parse;
mod rewrite;

use aya_ebpf::programs::TcContext;
use lb_common::{
    flow::{Flow, flags},
    outcome::{Outcome, Reason},
};

use self::{answer::Failure, frame::Frame, parse::Packet};
pub(crate) use self::{
    early::{Sent, early},
    forward::Step,
};

/// Packets that arrive at an external device: from clients, and from backends on other machines.
#[inline(always)]
pub(crate) fn ingress(ctx: &TcContext) -> Result<Step, Reason> {
    let network = parse::network(ctx)?;
    if error::is_error(ctx, &network)? {
        return error::ingress(ctx, &network);
    }
    let packet = parse::transport(ctx, network)?;
    match serve(ctx, &packet) {
        Ok(step) => Ok(step),
        Err(failure) => answer::answer(ctx, &packet, &failure),
    }
}

#[inline(always)]
fn serve(ctx: &impl Frame, packet: &Packet) -> Result<Step, Failure> {
    let (flow, outcome) = match flow::lookup(packet) {
        Some(flow) if flow.flags & flags::FORWARD != 0 => (flow, Outcome::FlowForwarded),
        // An answer for the node's own address and port: of a backend on another machine.
        Some(flow) if flow.flags & flags::REDIRECT != 0 => (flow, Outcome::FlowReturned),
        Some(_) => return Err(Reason::NotAService.into()),
        None => (open::open(ctx, packet)?, Outcome::FlowOpened),
    };
    if flow.flags & flags::REDIRECT == 0 {
        Ok(to_the_stack(ctx, packet, &flow, outcome)?)
    } else {
        out(ctx, packet, &flow, outcome)
    }
}

/// Packets that leave through an external device: the answers of backends on this node.
#[inline(always)]
pub(crate) fn egress(ctx: &TcContext) -> Result<Step, Reason> {
    let network = parse::network(ctx)?;
    if error::is_error(ctx, &network)? {
        return error::egress(ctx, &network);
    }
    let packet = parse::transport(ctx, network)?;
    let flow = flow::lookup(&packet).ok_or(Reason::NotAService)?;
    if flow.flags & (flags::FORWARD | flags::REDIRECT) != 0 {
        return Err(Reason::NotAService);
    }
    to_the_stack(ctx, &packet, &flow, Outcome::FlowReturned)
}

#[inline(always)]
fn to_the_stack(ctx: &impl Frame, packet: &Packet, flow: &Flow, outcome: Outcome) -> Result<Step, Reason> {
    parse::remember_fragment(packet);
    rewrite::rewrite(ctx, packet, &flow.source, &flow.destination, false)?;
    Ok(Step::Stack(outcome))
}

#[inline(always)]
fn out(ctx: &impl Frame, packet: &Packet, flow: &Flow, outcome: Outcome) -> Result<Step, Failure> {
    if packet.network.hops <= 1 {
        return Err(Reason::TtlExceeded.into());
    }
    parse::remember_fragment(packet);
    let route = forward::route(ctx, &packet.network, &flow.source, &flow.destination)?;
    rewrite::rewrite(ctx, packet, &flow.source, &flow.destination, true)?;
    Ok(forward::send_out(ctx, &route, outcome)?)
}
