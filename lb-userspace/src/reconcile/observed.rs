//! What can be told of the source from the changes that it sends.

use tokio::time::Instant;

use crate::model::Change;

/// Whether the source can be read, and when it last said something.
#[derive(Clone, Debug)]
pub struct SourceState {
    /// Whether it can be read now; it counts as unreachable until it says so.
    pub reachable: bool,
    /// Since when that is so.
    pub since: Instant,
    /// When an object or a list last came from it.
    pub last_heard: Option<Instant>,
}

impl SourceState {
    pub(super) fn new(now: Instant) -> Self {
        Self { reachable: false, since: now, last_heard: None }
    }

    pub(super) fn note(&mut self, change: &Change, now: Instant) {
        match change {
            Change::Apply(_) | Change::Delete(..) | Change::Connected(true) => self.last_heard = Some(now),
            // A kind that is not watched is reset to nothing without asking anybody.
            Change::Reset(_, objects) if !objects.is_empty() => self.last_heard = Some(now),
            // Interfaces are the node's own, and problems may be what the agent itself finds wrong.
            Change::Reset(..)
            | Change::Connected(false)
            | Change::Interfaces(_)
            | Change::Problems { .. } => {}
        }
        if let Change::Connected(reachable) = change
            && *reachable != self.reachable
        {
            self.reachable = *reachable;
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Kind, ObjectName};

    #[test]
    fn the_source_is_heard_in_its_objects_and_says_itself_whether_it_is_there() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut source = SourceState::new(start);
        source.note(&Change::Interfaces(Vec::new()), later(1));
        source.note(&Change::Reset(Kind::Endpoints, Vec::new()), later(1));
        assert!(!source.reachable && source.last_heard.is_none());
        source.note(&Change::Connected(true), later(2));
        assert!(source.reachable && source.since == later(2) && source.last_heard == Some(later(2)));
        source.note(&Change::Connected(false), later(3));
        assert!(!source.reachable && source.since == later(3) && source.last_heard == Some(later(2)));
        source.note(&Change::Connected(false), later(4));
        assert!(source.since == later(3), "it has been away all the time");
        source.note(&Change::Connected(true), later(5));
        assert!(source.reachable && source.since == later(5) && source.last_heard == Some(later(5)));
        source.note(&Change::Delete(Kind::Service, ObjectName::new("default", "web")), later(6));
        assert!(source.since == later(5) && source.last_heard == Some(later(6)));
    }
}
