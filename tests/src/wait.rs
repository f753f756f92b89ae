//! Waiting for a condition, with a deadline; and giving up when the user interrupts.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// How long anything may take that should happen at once: long enough for a loaded machine.
pub const SOON: Duration = Duration::from_secs(10);

/// Between two looks. A condition that needs a message instead of a look has no place here.
const INTERVAL: Duration = Duration::from_millis(5);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Looks until `condition` gives a value; an error of the condition counts as "not yet" and becomes the cause if the
/// deadline passes.
pub fn until<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_uninterrupted(what, limit, || {
        if interrupted() {
            return Ok(Some(None));
        }
        condition().map(|value| value.map(Some))
    })?
    .context("interrupted")
}

/// The same, for cleaning up, which goes on after an interrupt.
pub(crate) fn until_uninterrupted<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match condition() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= limit {
            let message = format!("waited {} s in vain for {what}", limit.as_secs_f32());
            return Err(match last {
                Some(error) => error.context(message),
                None => anyhow!(message),
            });
        }
        thread::sleep(INTERVAL);
    }
}

/// Makes Ctrl-C, a hang-up and a polite kill end the next wait with an error, so that all guards clean up.
pub fn catch_interrupts() -> Result<()> {
    extern "C" fn note(_signal: i32) {
        INTERRUPTED.store(true, Ordering::SeqCst);
    }
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("catching {signal}"))?;
    }
    Ok(())
}

/// Whether the user has interrupted.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Waits for an interrupt; the next one counts anew.
pub fn for_interrupt() {
    // A signal that arrives between a look and a pause would be lost, so this looks often instead.
    while !INTERRUPTED.swap(false, Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(100));
    }
}

/// Fails once the user has interrupted.
pub fn check_interrupt() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_ends_the_wait() {
        let mut looks = 0;
        let value = until("three looks", SOON, || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn the_deadline_names_what_was_awaited_and_why_it_is_not_there() {
        let limit = Duration::from_millis(1);
        let error = until::<()>("the moon", limit, || bail!("it is day")).unwrap_err();
        assert_eq!(format!("{error:#}"), "waited 0.001 s in vain for the moon: it is day");
    }
}
