//! When to look at a folder again: shortly after something happened in it, and from time to time in any case.
//!
//! Says nothing of what happened: the folder itself tells. A file that is being written is given time to be finished.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tracing::warn;

/// How often to look where the kernel reports changes: file systems of other machines report only their own.
const WATCHED_INTERVAL: Duration = Duration::from_secs(10);
/// How often to look where it does not.
const POLLED_INTERVAL: Duration = Duration::from_secs(2);
/// Silence after which a change counts as complete.
const QUIET: Duration = Duration::from_millis(100);
/// How long to wait for that silence, and for a file that is open for writing.
const PATIENCE: Duration = Duration::from_secs(2);

/// A watched folder.
pub(super) struct Watch {
    /// Absent where the kernel cannot report changes, or while the folder is gone.
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the folder that is watched.
    watched: Option<(u64, u64)>,
    sender: mpsc::UnboundedSender<notify::Result<notify::Event>>,
    events: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
}

impl Watch {
    /// Starts to watch.
    pub(super) fn start(dir: &Path) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let mut watch = Self { watcher: None, watched: None, sender, events };
        watch.follow(dir);
        watch
    }

    /// Watches what the path leads to now, if that is another folder than before.
    pub(super) fn follow(&mut self, dir: &Path) {
        let folder = fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if folder == self.watched {
            return;
        }
        self.watched = folder;
        self.watcher = folder.and_then(|_| match watch(dir, self.sender.clone()) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                warn!(dir = %dir.display(), %error, "changes of the manifest folder are polled for");
                None
            }
        });
        // What happened between the last look and now was reported by nobody.
        if self.watched.is_some() {
            let unseen = notify::Event::new(EventKind::Any);
            // The receiver lives as long as self.
            drop(self.sender.send(Ok(unseen)));
        }
    }

    /// Waits for something to happen, or for as long as one should at most.
    pub(super) async fn changed(&mut self) {
        let interval = if self.watcher.is_some() { WATCHED_INTERVAL } else { POLLED_INTERVAL };
        let mut written = BTreeSet::new();
        let look = Instant::now() + interval;
        loop {
            match timeout_at(look, self.events.recv()).await {
                Ok(Some(event)) => {
                    if note(event, &mut written) {
                        break;
                    }
                }
                Ok(None) | Err(_) => return,
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            match timeout(QUIET, self.events.recv()).await {
                Ok(Some(event)) => {
                    note(event, &mut written);
                }
                Ok(None) => return,
                Err(_) if written.is_empty() => return,
                Err(_) => {}
            }
        }
    }
}

fn watch(
    dir: &Path,
    sender: mpsc::UnboundedSender<notify::Result<notify::Event>>,
) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event| {
        // Nobody listens any more only while the watcher itself is being dropped.
        drop(sender.send(event));
    })?;
    watcher.watch(dir, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Whether an event means a change. Keeps the files that are being written: after a write, until they are closed.
fn note(event: notify::Result<notify::Event>, written: &mut BTreeSet<PathBuf>) -> bool {
    // An error means lost events.
    let Ok(event) = event else { return true };
    match event.kind {
        EventKind::Modify(ModifyKind::Data(_)) => written.extend(event.paths),
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Remove(_)
        | EventKind::Modify(ModifyKind::Name(_)) => {
            for path in &event.paths {
                written.remove(path);
            }
        }
        // Reading the files causes these.
        EventKind::Access(_) => return false,
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use notify::{
        Event,
        event::{CreateKind, DataChange, MetadataKind, RemoveKind, RenameMode},
    };

    use super::*;

    #[test]
    fn what_reading_causes_is_no_change() {
        let mut written = BTreeSet::new();
        let closed_after_reading = AccessKind::Close(AccessMode::Read);
        for kind in [AccessKind::Open(AccessMode::Any), AccessKind::Read, closed_after_reading] {
            assert!(!note(Ok(Event::new(EventKind::Access(kind))), &mut written), "{kind:?}");
        }
        for kind in [
            EventKind::Create(CreateKind::File),
            EventKind::Modify(ModifyKind::Data(DataChange::Any)),
            EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any)),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)),
            EventKind::Remove(RemoveKind::File),
            EventKind::Access(AccessKind::Close(AccessMode::Write)),
        ] {
            assert!(note(Ok(Event::new(kind)), &mut written), "{kind:?}");
        }
        assert!(note(Err(notify::Error::generic("events were lost")), &mut written));
    }

    #[test]
    fn a_file_is_being_written_until_it_is_closed_or_gone() {
        let write =
            || Ok(Event::new(EventKind::Modify(ModifyKind::Data(DataChange::Any))).add_path("a".into()));
        for end in [
            EventKind::Access(AccessKind::Close(AccessMode::Write)),
            EventKind::Remove(RemoveKind::File),
            EventKind::Modify(ModifyKind::Name(RenameMode::From)),
        ] {
            let mut written = BTreeSet::new();
            note(write(), &mut written);
            assert_eq!(written.len(), 1);
            note(Ok(Event::new(end).add_path("a".into())), &mut written);
            assert!(written.is_empty(), "{end:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_events_one_looks_from_time_to_time() {
        let mut watch = Watch::start(Path::new("/nonexistent/manifests"));
        assert!(watch.watcher.is_none());
        let start = Instant::now();
        watch.changed().await;
        assert_eq!(start.elapsed(), POLLED_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_never_closed_is_not_waited_for_forever() {
        let mut watch = Watch::start(Path::new("/nonexistent/manifests"));
        let write = Event::new(EventKind::Modify(ModifyKind::Data(DataChange::Any))).add_path("a".into());
        watch.sender.send(Ok(write)).unwrap();
        let start = Instant::now();
        watch.changed().await;
        assert!(start.elapsed() >= PATIENCE && start.elapsed() <= PATIENCE + QUIET);
    }
}
