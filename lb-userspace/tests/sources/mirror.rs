//! What a source has said, put together; waits for it to say more, with a deadline.

use std::{collections::BTreeMap, time::Duration};

use lb_userspace::{
    model::{Change, Kind, Object, Problem},
    source::Receiver,
};
use tokio::time::{Instant, timeout_at};

/// Long enough for a busy machine, and for every interval and back-off of the sources.
const DEADLINE: Duration = Duration::from_secs(40);

/// The objects and problems that a source has told of.
pub(crate) struct Mirror {
    changes: Receiver,
    pub(crate) objects: BTreeMap<(Kind, String), Object>,
    pub(crate) problems: BTreeMap<String, Vec<Problem>>,
    pub(crate) connected: Option<bool>,
    /// Every change, in order.
    pub(crate) log: Vec<Change>,
}

impl Mirror {
    pub(crate) fn new(changes: Receiver) -> Self {
        Self {
            changes,
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
            connected: None,
            log: Vec::new(),
        }
    }

    /// Takes changes until the condition holds.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            let Ok(change) = timeout_at(deadline, self.changes.recv()).await else {
                panic!("never: {what}\n{}", self.dump());
            };
            let Some(change) = change else { panic!("the source ended before: {what}\n{}", self.dump()) };
            self.take(change);
        }
    }

    /// Takes changes until each kind has been listed.
    pub(crate) async fn until_listed(&mut self) {
        self.until("each kind is listed", |mirror| Kind::ALL.iter().all(|kind| mirror.resets(*kind) > 0))
            .await;
    }

    pub(crate) fn resets(&self, kind: Kind) -> usize {
        self.log.iter().filter(|change| matches!(change, Change::Reset(k, _) if *k == kind)).count()
    }

    pub(crate) fn has(&self, kind: Kind, name: &str) -> bool {
        self.objects.contains_key(&(kind, name.to_owned()))
    }

    /// The first cluster address of a Service.
    pub(crate) fn ip(&self, name: &str) -> Option<String> {
        match self.objects.get(&(Kind::Service, name.to_owned())) {
            Some(Object::Service(service)) => service.cluster_ips.first().map(ToString::to_string),
            _ => None,
        }
    }

    /// The problems of an origin, in one text.
    pub(crate) fn problem(&self, origin: &str) -> Option<String> {
        let problems = self.problems.get(origin)?;
        Some(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    pub(crate) fn deletions(&self) -> usize {
        self.log.iter().filter(|change| matches!(change, Change::Delete(..))).count()
    }

    fn take(&mut self, change: Change) {
        self.log.push(change.clone());
        match change {
            Change::Apply(object) => {
                self.objects.insert((object.kind(), object.name().to_string()), object);
            }
            Change::Delete(kind, name) => {
                self.objects.remove(&(kind, name.to_string()));
            }
            Change::Reset(kind, objects) => {
                self.objects.retain(|(k, _), _| *k != kind);
                self.objects
                    .extend(objects.into_iter().map(|object| ((kind, object.name().to_string()), object)));
            }
            Change::Problems { origin, problems } => {
                let known = self.problems.remove(&origin);
                assert!(known.is_some() || !problems.is_empty(), "solved what was no problem: {origin}");
                if !problems.is_empty() {
                    self.problems.insert(origin, problems);
                }
            }
            Change::Connected(connected) => {
                assert_ne!(self.connected, Some(connected), "said twice");
                self.connected = Some(connected);
            }
            Change::Interfaces(_) => panic!("not of a source"),
        }
    }

    fn dump(&self) -> String {
        let objects = self.objects.keys().map(|(kind, name)| format!("{kind} {name}"));
        let problems = self.problems.values().flatten().map(ToString::to_string);
        let lines: Vec<_> = objects.chain(problems).collect();
        format!("connected: {:?}\n{}", self.connected, lines.join("\n"))
    }
}
