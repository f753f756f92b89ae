//! From an outcome or a reason to what the hook returns. Each counts it, once.
//!
//! | reason | connect, sendmsg | recvmsg, getpeername | packets |
//! |---|---|---|---|
//! | the service has no backends | ECONNREFUSED | – | answered: a reset, or ICMP port unreachable |
//! | no local backends, broken tables | ECONNREFUSED | – | dropped |
//! | the client is not admitted, or not known | ECONNREFUSED | – | dropped |
//! | a cluster address without such a Service or port | ECONNREFUSED | – | dropped |
//! | no hops left, too big for the way | – | – | answered: ICMP time exceeded, packet too big |
//! | translated in part: no port, no route | – | – | dropped |
//! | all others | the call goes on, untranslated | the call goes on, unchanged | to the stack, unchanged |
//!
//! A kernel without `bpf_set_retval` (before 5.18) gives a refused call EPERM. There, ECONNREFUSED comes from a closed port
//! that the call is sent to (`socket::closed`); only `bind()` has no such way.
//!
//! Fail-open where the destination is not ours, fail-closed only where a service says so.

use aya_ebpf::{
    EbpfContext, Global,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action::XDP_PASS},
    helpers::bpf_set_retval,
    programs::{SockAddrContext, TcContext},
};
use aya_log_ebpf::error;
use lb_common::outcome::{Outcome, Reason};

use crate::{
    packet::{Sent, Step},
    tables::count,
};

/// Whether `bpf_set_retval` exists (kernel 5.18); set by the loader. Read-only, so that the verifier removes the call
/// where the helper is missing.
#[unsafe(no_mangle)]
static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// Errors, on every architecture that eBPF runs on but MIPS, PA-RISC and SPARC (`include/uapi/asm-generic/errno.h`).
const ECONNREFUSED: i32 = 111;
const EADDRINUSE: i32 = 98;

/// The hook's return values (`include/uapi/linux/bpf.h`).
const ALLOW: u32 = 1;
const REFUSE: u32 = 0;

/// For hooks that may refuse a call; `divert` sends it to a closed port instead, where the kernel cannot choose the error.
#[inline(always)]
pub(crate) fn allow_or_refuse(
    ctx: &SockAddrContext,
    end: Result<Outcome, Reason>,
    divert: impl Fn(&SockAddrContext),
) -> i32 {
    let verdict = match end {
        Ok(outcome) => {
            count(outcome.number());
            ALLOW
        }
        Err(reason) => {
            count(reason.number());
            report_defect(ctx, reason);
            match reason {
                Reason::NoBackends
                | Reason::NoLocalBackends
                | Reason::BrokenTables
                | Reason::SourceNotAllowed
                | Reason::SourceUnknown
                | Reason::NoSuchService => {
                    if HAS_SET_RETVAL.load() == 0 {
                        divert(ctx);
                        ALLOW
                    } else {
                        refuse(ECONNREFUSED)
                    }
                }
                Reason::NotAService
                | Reason::OtherProtocol
                | Reason::NothingToRestore
                | Reason::NotStored
                | Reason::Malformed
                | Reason::Fragment
                | Reason::NotIp
                | Reason::PortsExhausted
                | Reason::NoNodeAddress
                | Reason::FlowTableFull
                | Reason::NoRoute
                | Reason::TtlExceeded
                | Reason::RewriteFailed
                | Reason::NoFlow
                | Reason::Unanswered
                | Reason::TooBig
                | Reason::NodePortTaken => ALLOW,
            }
        }
    };
    bounded(verdict)
}

/// For hooks that must let every call pass (the verifier accepts no other return value).
#[inline(always)]
pub(crate) fn allow(end: Result<Outcome, Reason>) -> i32 {
    count(match end {
        Ok(outcome) => outcome.number(),
        Err(reason) => reason.number(),
    });
    ALLOW.cast_signed()
}

/// For packets. What is not translated goes on to the next program and then to the stack, unless a service says
/// that it must not arrive, or it can no longer arrive where it should.
#[inline(always)]
pub(crate) fn pass_or_drop(ctx: &TcContext, end: Result<Step, Reason>) -> i32 {
    let (number, verdict) = match end {
        Ok(Step::Stack(outcome)) => (outcome.number(), TC_ACT_UNSPEC),
        Ok(Step::Redirect(outcome, verdict)) => (outcome.number(), verdict),
        Ok(Step::Answer(reason, verdict)) => (reason.number(), verdict),
        Err(reason) => {
            report_defect(ctx, reason);
            let verdict = match reason {
                Reason::NotAService
                | Reason::OtherProtocol
                | Reason::NothingToRestore
                | Reason::NotStored
                | Reason::Malformed
                | Reason::Fragment
                | Reason::NotIp
                | Reason::NoFlow
                | Reason::NodePortTaken => TC_ACT_UNSPEC,
                Reason::NoLocalBackends
                | Reason::SourceNotAllowed
                | Reason::SourceUnknown
                | Reason::NoSuchService
                | Reason::Unanswered
                | Reason::NoBackends
                | Reason::TooBig
                | Reason::BrokenTables
                | Reason::PortsExhausted
                | Reason::NoNodeAddress
                | Reason::FlowTableFull
                | Reason::NoRoute
                | Reason::TtlExceeded
                | Reason::RewriteFailed => TC_ACT_SHOT,
            };
            (reason.number(), verdict)
        }
    };
    count(number);
    verdict
}

/// For frames before the stack: what is not sent on from here is TC's to decide and to count.
#[inline(always)]
pub(crate) fn send_or_pass(end: Option<Sent>) -> u32 {
    let Some(Sent(outcome, verdict)) = end else { return XDP_PASS };
    count(outcome.number());
    verdict.cast_unsigned()
}

/// Writes what only a defect can cause to the agent's log: the one end that is worth more than its count.
#[inline(always)]
fn report_defect<C: EbpfContext>(ctx: &C, reason: Reason) {
    if reason == Reason::BrokenTables {
        error!(ctx, "a frontend leads to no record or to no slot: refused");
    }
}

/// For `bind()`: only a node port in use is refused. Where nothing is, nothing is counted: a bind that has nothing to do
/// with a service is no decision of ours.
#[inline(always)]
pub(crate) fn allow_bind(end: Reason) -> i32 {
    if end != Reason::NodePortTaken {
        return ALLOW.cast_signed();
    }
    count(end.number());
    bounded(refuse(EADDRINUSE))
}

/// Makes the call fail with the error; with `EPERM` where the kernel cannot choose.
#[inline(always)]
fn refuse(errno: i32) -> u32 {
    if HAS_SET_RETVAL.load() != 0 {
        // SAFETY: a constant in the range that the helper accepts (-4095 to 0).
        unsafe { bpf_set_retval(-errno) };
    }
    REFUSE
}

/// Shows the verifier that the verdict is 0 or 1: LLVM merges the paths into one register that it spills, and the
/// verifier forgets the bounds of a spilled 32-bit value.
#[inline(always)]
fn bounded(verdict: u32) -> i32 {
    let mut bounded = u64::from(verdict);
    // SAFETY: one instruction, on a register that it owns.
    unsafe {
        core::arch::asm!("{0} &= 1", inout(reg) bounded, options(pure, nomem, nostack));
    }
    (bounded as u32).cast_signed()
}
