//! How long to wait after a failure. Pure: the clock and the random number are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// The first wait.
const FIRST: Duration = Duration::from_millis(250);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(10);
/// After this long without a failure, the next one is a first one.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Waits that double with each failure.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    last: Option<Instant>,
}

impl Backoff {
    /// All is well again.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait after a failure now: between half and all of the step, so that the nodes of a cluster do not come back
    /// all at once. `random` is any number.
    pub(super) fn after_failure(&mut self, now: Instant, random: u64) -> Duration {
        if self.last.is_some_and(|last| now.duration_since(last) > FORGOTTEN) {
            self.failures = 0;
        }
        self.last = Some(now);
        let step = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = step / 2;
        half + half * (random % 1024) as u32 / 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let waits: Vec<_> = (0..8).map(|_| backoff.after_failure(now, 0).as_millis()).collect();
        assert_eq!(waits, [125, 250, 500, 1000, 2000, 4000, 5000, 5000]);
        for random in [1, 512, 1023, u64::MAX] {
            let wait = backoff.after_failure(now, random);
            assert!(wait > LONGEST / 2 && wait < LONGEST, "{wait:?}");
        }
        assert!((0..100).all(|_| backoff.after_failure(now, 0) <= LONGEST));
    }

    #[test]
    fn success_and_a_long_peace_are_a_new_start() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        for _ in 0..8 {
            backoff.after_failure(now, 0);
        }
        let later = now + FORGOTTEN + Duration::from_secs(1);
        assert_eq!(backoff.after_failure(later, 0), FIRST / 2);
        assert_eq!(backoff.after_failure(later, 0), FIRST);
        backoff.reset();
        assert_eq!(backoff.after_failure(later, 0), FIRST / 2);
    }
}
