//! When to try again: a pause that doubles with each attempt that fails.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// A pause that doubles from a first to a longest one.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    pause: Duration,
    due: Option<Instant>,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, pause: first, due: None }
    }

    /// Waits until the next attempt is due; forever if there is nothing to try again.
    pub(crate) async fn wait(&self) {
        match self.due {
            Some(due) => sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    /// The due attempt is made now.
    pub(crate) fn fire(&mut self) {
        self.due = None;
        self.pause = (self.pause * 2).min(self.longest);
    }

    /// There is something to try again. An attempt that is already due stays so: attempts that changes cause in
    /// between neither hasten nor delay it. Says whether this is the first failure after all was well.
    pub(crate) fn schedule(&mut self, now: Instant) -> bool {
        let first = self.due.is_none() && self.pause == self.first;
        self.due.get_or_insert(now + self.pause);
        first
    }

    /// All is well. Says whether it was not before.
    pub(crate) fn reset(&mut self) -> bool {
        let failing = self.due.is_some() || self.pause != self.first;
        self.due = None;
        self.pause = self.first;
        failing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_the_longest_and_starts_anew_when_all_is_well() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let now = Instant::now();
        assert!(!backoff.reset(), "nothing had failed");
        for (attempt, millis) in [100, 200, 400, 800, 1_000, 1_000].into_iter().enumerate() {
            assert_eq!(backoff.schedule(now), attempt == 0);
            assert!(
                !backoff.schedule(now + Duration::from_millis(1)),
                "a failure in between is no first one"
            );
            assert_eq!(backoff.due, Some(now + Duration::from_millis(millis)));
            backoff.fire();
            assert_eq!(backoff.due, None);
        }
        assert!(backoff.reset());
        assert!(backoff.schedule(now));
        assert_eq!(backoff.due, Some(now + Duration::from_millis(100)));
    }
}
