//! Stories: objects in, readable tables out. For tests, on any store.
//!
//! A story is a txtar archive: a comment that says what it shows, then steps in order. A step's name is a verb, and
//! perhaps, after a colon, what happens:
//!
//! | step | content | meaning |
//! |---|---|---|
//! | `settings` | `key: value` lines | first step only: `node-port-addresses`, `external-ips`, and the map sizes `frontends`, `services`, `backends`, `source-ranges`, `node-addresses` |
//! | `interfaces` | addresses | the addresses of the node's interfaces |
//! | `apply` | manifests | these objects appear or change |
//! | `delete` | manifests | these objects go |
//! | `stop` | nothing | the agent ends: it does not see what follows |
//! | `restart` | nothing | the agent starts again on the same tables, and is told of all objects at once |
//! | `dump` | text | what the tables mean now ([`crate::store::dump`]) |
//! | `problems` | text | what is wrong now |
//!
//! All of it happens on `node-1`. After each step the pipeline syncs until nothing is left to do, so a store may fail now
//! and then; retired slots and records are freed at once. Before each dump the agent restarts once more, and must find
//! nothing to write.

mod txtar;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use self::txtar::Archive;
use crate::{
    model::{Change, Kind, Object, ObjectName, Problem},
    pipeline::{DefaultAlgorithm, NodePortAddresses, Pipeline, PipelineSettings},
    source::manifest::objects_from_yaml,
    store::{Capacity, Store, StoreError, dump::dump},
};

/// The node on which stories happen.
const NODE: &str = "node-1";

/// Map sizes unless a story says otherwise.
const CAPACITY: Capacity = Capacity {
    frontends: 64,
    services: 64,
    backends: 256,
    source_ranges: 64,
    maglev: 1 << 17,
    node_addresses: 16,
};

/// Syncs after which a story gives up: a store that fails now and then must let it through.
const MAX_SYNCS: usize = 1_000;

/// A story.
#[derive(Clone, Debug)]
pub struct Story {
    /// The file's name.
    pub name: String,
    archive: Archive,
    settings: PipelineSettings,
    capacity: Capacity,
    steps: Vec<Step>,
}

/// What happens, or what must be.
#[derive(Clone, Debug)]
enum Step {
    Settings,
    Interfaces(Vec<IpAddr>),
    Apply(Vec<Object>, Vec<Problem>),
    Delete(Vec<Object>),
    Stop,
    Restart,
    Dump,
    Problems,
}

/// What went wrong with a story.
#[derive(Debug, thiserror::Error)]
pub enum StoryError {
    /// It cannot be read.
    #[error("story {path}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step is not one.
    #[error("story {story}: step \"{step}\": {what}")]
    Step {
        /// The story.
        story: String,
        /// The step.
        step: String,
        /// What is wrong.
        what: String,
    },
    /// The store cannot be read back.
    #[error("story {story}: reading the tables back")]
    Store {
        /// The story.
        story: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The pipeline does not come to rest, or writes without need.
    #[error("story {story}: before step {step}: {what}")]
    Unsettled {
        /// The story.
        story: String,
        /// The step, from 1.
        step: usize,
        /// What it does.
        what: String,
    },
    /// The tables or the problems are not what the story says.
    #[error("story {story}: not as told\n{difference}")]
    Different {
        /// The story.
        story: String,
        /// Lines that are missing (`-`) and lines that should not be there (`+`), by step.
        difference: String,
    },
}

impl Story {
    /// All stories (`*.txtar`) in a folder, by name.
    pub fn load_all(folder: &Path) -> Result<Vec<(PathBuf, Self)>, StoryError> {
        let read = |path: &Path, source| StoryError::Read { path: path.to_owned(), source };
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(|error| read(folder, error))? {
            paths.push(entry.map_err(|error| read(folder, error))?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "txtar"));
        paths.sort();
        let load = |path: PathBuf| {
            let text = fs::read_to_string(&path).map_err(|error| read(&path, error))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Self::parse(&name, &text).map(|story| (path, story))
        };
        paths.into_iter().map(load).collect()
    }

    /// Reads a story.
    pub fn parse(name: &str, text: &str) -> Result<Self, StoryError> {
        let archive = Archive::parse(text);
        let mut story = Self {
            name: name.to_owned(),
            settings: PipelineSettings {
                node_name: NODE.into(),
                node_port_addresses: NodePortAddresses::default(),
                external_ips: true,
                algorithm: DefaultAlgorithm::default(),
            },
            capacity: CAPACITY,
            steps: Vec::new(),
            archive: Archive::default(),
        };
        for (step, content) in &archive.files {
            let parsed = story.parse_step(step, content).map_err(|what| StoryError::Step {
                story: name.to_owned(),
                step: step.clone(),
                what,
            })?;
            story.steps.push(parsed);
        }
        story.archive = archive;
        Ok(story)
    }

    /// The sizes of the maps that it happens in.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Lets it happen on an empty store of its capacity, and compares.
    pub fn verify(&self, store: &mut dyn Store) -> Result<(), StoryError> {
        let told = self.run(store)?;
        let mut difference = String::new();
        for ((step, before), (_, after)) in self.archive.files.iter().zip(&told.files) {
            if before != after {
                // Writing to a String does not fail.
                let _ok = writeln!(difference, "-- {step} --\n{}", diff(before, after));
            }
        }
        if difference.is_empty() {
            return Ok(());
        }
        Err(StoryError::Different { story: self.name.clone(), difference })
    }

    /// Lets it happen on an empty store of its capacity, and tells it anew with what was found.
    pub fn retell(&self, store: &mut dyn Store) -> Result<String, StoryError> {
        Ok(self.run(store)?.to_text())
    }

    fn parse_step(&mut self, step: &str, content: &str) -> Result<Step, String> {
        let verb = step.split(':').next().unwrap_or_default();
        match verb {
            "settings" if self.steps.is_empty() => {
                for line in content.lines() {
                    let (key, value) =
                        line.split_once(": ").ok_or(format!("\"{line}\" is not `key: value`"))?;
                    self.set(key, value)?;
                }
                Ok(Step::Settings)
            }
            "settings" => Err("comes first or not at all".to_owned()),
            "interfaces" => {
                let parse = |word: &str| word.parse().map_err(|error| format!("{word}: {error}"));
                content.split_whitespace().map(parse).collect::<Result<_, _>>().map(Step::Interfaces)
            }
            "apply" => {
                let (objects, problems) = objects_from_yaml(content, "manifest", NODE);
                Ok(Step::Apply(objects, problems))
            }
            "delete" => match objects_from_yaml(content, "manifest", NODE).0 {
                objects if objects.is_empty() => Err("names no object".to_owned()),
                objects => Ok(Step::Delete(objects)),
            },
            "stop" => Ok(Step::Stop),
            "restart" => Ok(Step::Restart),
            "dump" => Ok(Step::Dump),
            "problems" => Ok(Step::Problems),
            other => Err(format!("\"{other}\" is no step")),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u32>().map_err(|error| format!("{key}: {error}"));
        match key {
            "node-port-addresses" => {
                self.settings.node_port_addresses =
                    value.parse().map_err(|error| format!("{key}: {error}"))?;
            }
            "external-ips" => {
                self.settings.external_ips = value.parse().map_err(|error| format!("{key}: {error}"))?;
            }
            "frontends" => self.capacity.frontends = number()?,
            "services" => self.capacity.services = number()?,
            "backends" => self.capacity.backends = number()?,
            "maglev" => self.capacity.maglev = number()?,
            "source-ranges" => self.capacity.source_ranges = number()?,
            "node-addresses" => self.capacity.node_addresses = number()?,
            other => return Err(format!("\"{other}\" is no setting")),
        }
        Ok(())
    }

    /// The archive, with what was found in the place of what is told.
    fn run(&self, store: &mut dyn Store) -> Result<Archive, StoryError> {
        let mut told = self.archive.clone();
        let mut scene = Scene::new(self);
        for (number, step) in self.steps.iter().enumerate() {
            let unsettled = |what| StoryError::Unsettled { story: self.name.clone(), step: number + 1, what };
            let unreadable = |source| StoryError::Store { story: self.name.clone(), source };
            match step {
                Step::Settings => {}
                Step::Interfaces(addresses) => {
                    scene.interfaces.clone_from(addresses);
                    scene.tell(Change::Interfaces(addresses.clone()));
                }
                Step::Apply(objects, problems) => scene.apply(objects, problems),
                Step::Delete(objects) => scene.delete(objects),
                Step::Stop => scene.is_running = false,
                Step::Restart => scene.restart(store).map_err(unreadable)?,
                Step::Dump => {
                    let dumped = scene.dump(store).map_err(unreadable)?;
                    scene.restart(store).map_err(unreadable)?;
                    scene.settle(store, Expect::NoWrites).map_err(unsettled)?;
                    let again = scene.dump(store).map_err(unreadable)?;
                    if again != dumped {
                        return Err(unsettled(format!("a restart changes\n{}", diff(&dumped, &again))));
                    }
                    told.files[number].1 = dumped;
                }
                Step::Problems => {
                    let lines = scene.pipeline.problems().into_iter().map(|problem| format!("{problem}\n"));
                    told.files[number].1 = lines.collect();
                }
            }
            scene.settle(store, Expect::Anything).map_err(unsettled)?;
        }
        Ok(told)
    }
}

/// Whether a sync may write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Anything,
    NoWrites,
}

/// The cluster and the agent of a story.
struct Scene<'a> {
    story: &'a Story,
    pipeline: Pipeline,
    is_running: bool,
    objects: BTreeMap<(Kind, ObjectName), Object>,
    interfaces: Vec<IpAddr>,
    problems: Vec<Problem>,
}

impl<'a> Scene<'a> {
    /// Nothing there; the sources have said so.
    fn new(story: &'a Story) -> Self {
        let mut scene = Self {
            story,
            pipeline: Pipeline::new(story.settings.clone(), story.capacity),
            is_running: true,
            objects: BTreeMap::new(),
            interfaces: Vec::new(),
            problems: Vec::new(),
        };
        scene.tell_all();
        scene
    }

    fn apply(&mut self, objects: &[Object], problems: &[Problem]) {
        for object in objects {
            self.objects.insert((object.kind(), object.name()), object.clone());
            self.tell(Change::Apply(object.clone()));
        }
        self.problems = problems.to_vec();
        self.tell_problems();
    }

    fn delete(&mut self, objects: &[Object]) {
        for object in objects {
            self.objects.remove(&(object.kind(), object.name()));
            self.tell(Change::Delete(object.kind(), object.name()));
        }
    }

    /// An agent that starts on what the store holds.
    fn restart(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.pipeline = Pipeline::new(self.story.settings.clone(), self.story.capacity);
        self.pipeline.adopt(store.read()?);
        self.is_running = true;
        self.tell_all();
        Ok(())
    }

    /// What sources send at their start.
    fn tell_all(&mut self) {
        self.tell(Change::Interfaces(self.interfaces.clone()));
        for kind in Kind::ALL {
            let of_kind = self.objects.iter().filter(|((other, _), _)| *other == kind);
            let objects = of_kind.map(|(_, object)| object.clone()).collect();
            self.tell(Change::Reset(kind, objects));
        }
        self.tell_problems();
    }

    fn tell_problems(&mut self) {
        let (origin, problems) = ("manifest".to_owned(), self.problems.clone());
        self.tell(Change::Problems { origin, problems });
    }

    fn tell(&mut self, change: Change) {
        if self.is_running {
            self.pipeline.apply(change);
        }
    }

    /// Syncs until nothing is left to do, and frees what is retired.
    fn settle(&mut self, store: &mut dyn Store, expect: Expect) -> Result<(), String> {
        for _ in 0..MAX_SYNCS {
            if !self.is_running {
                return Ok(());
            }
            let report = self.pipeline.sync(store);
            if expect == Expect::NoWrites && report.written + report.failed != 0 {
                return Err(format!("a restart without change writes: {report:?}"));
            }
            let unblocked = if report.retired && expect == Expect::Anything {
                self.pipeline.reclaim(store).map_or(1, |reclaimed| reclaimed.unblocked)
            } else {
                0
            };
            if report.dirty + unblocked == 0 {
                return Ok(());
            }
        }
        let problems: Vec<_> = self.pipeline.problems().iter().map(Problem::to_string).collect();
        Err(format!("does not come to rest: {}", problems.join("; ")))
    }

    fn dump(&self, store: &mut dyn Store) -> Result<String, StoreError> {
        Ok(dump(&store.read()?, &self.pipeline.record_names()))
    }
}

/// The lines of `before` that are not in `after` with `-`, the others' with `+`.
fn diff(before: &str, after: &str) -> String {
    let only = |text: &str, other: &str, sign: char| {
        let lines = text.lines().filter(|line| !other.lines().any(|known| known == *line));
        lines.map(|line| format!("{sign} {line}\n")).collect::<Vec<_>>().concat()
    };
    let lines = only(before, after, '-') + &only(after, before, '+');
    if lines.is_empty() { "the lines are in another order\n".to_owned() } else { lines }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fake::FakeStore;

    const SERVICE: &str = "\
-- apply --
kind: Service
apiVersion: v1
metadata: { name: web }
spec:
  clusterIP: 10.96.0.10
  ports: [{ port: 80 }]
-- dump --
";

    fn verify(text: &str) -> Result<(), StoryError> {
        let story = Story::parse("a", text)?;
        story.verify(&mut FakeStore::new(story.capacity()))
    }

    #[test]
    fn a_story_that_is_told_right_passes_and_one_that_is_not_names_the_lines() {
        let right = "10.96.0.10:80/TCP ClusterIP default/web → cluster [] local []\n\
                     node address ::1 node-ports host-only\n\
                     node address 127.0.0.1 node-ports host-only\n";
        verify(&format!("{SERVICE}{right}")).unwrap();
        let error = verify(&format!("{SERVICE}{}", right.replace(":80", ":81"))).unwrap_err().to_string();
        assert!(
            error.contains("\n- 10.96.0.10:81/TCP") && error.contains("\n+ 10.96.0.10:80/TCP"),
            "{error}"
        );
        let story = Story::parse("a", SERVICE).unwrap();
        let retold = story.retell(&mut FakeStore::new(story.capacity())).unwrap();
        assert_eq!(retold, format!("{SERVICE}{right}"));
    }

    #[test]
    fn what_is_no_step_is_named() {
        for (text, what) in [
            ("-- take: it --\n", "\"take\" is no step"),
            ("-- dump --\n-- settings --\n", "comes first"),
            ("-- settings --\nx: 1\n", "\"x\" is no setting"),
            ("-- interfaces --\nlocalhost\n", "localhost: "),
            ("-- delete --\n", "names no object"),
        ] {
            let error = verify(text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
