//! Objects from a folder of manifests, watched for changes.
//!
//! Read are the files `*.yaml`, `*.yml` and `*.json` of the folder itself, in the order of their names, symbolic links
//! included. Sub-folders and names that begin with a dot are left alone: they are an editor's or a mounted `ConfigMap`'s own
//! business. What a file gave before stays in force while the file cannot be read, in whole or in part, and everything
//! stays while the folder is gone.

mod watch;

use std::{
    collections::BTreeMap,
    fs, io, mem,
    os::unix::fs::MetadataExt,
    panic,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tokio::task;
use tracing::{info, warn};

use self::watch::Watch;
use crate::{
    model::{Change, Kind, Object, ObjectName, Problem},
    source::{
        Gone, Sender,
        allocate::Pools,
        manifest::{self, Assembly, Key, Manifest},
        send,
    },
};

/// A file that was changed this short before it was read is read again: a change within the grain of its time stamp
/// would go unnoticed otherwise.
const STAMP_GRAIN: Duration = Duration::from_secs(1);

/// Why a folder cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not there, is no folder, or is closed to this user.
    #[error("cannot read manifest folder {}", dir.display())]
    Unreadable {
        /// The folder.
        dir: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A folder of manifests.
#[derive(Debug)]
pub struct FolderSource {
    dir: PathBuf,
    node_name: String,
    pools: Pools,
    files: BTreeMap<String, File>,
    /// Whether the files may hold something else than what has been said.
    changed: bool,
    /// What has been said.
    objects: BTreeMap<Key, Object>,
    /// What has been said, by origin.
    problems: BTreeMap<String, Vec<Problem>>,
}

/// All objects of a folder as it is now, and what is wrong with them. Of Nodes, only `node_name` counts.
pub fn read_once(dir: &Path, node_name: &str) -> Result<(Vec<Object>, Vec<Problem>), FolderError> {
    let mut folder = FolderSource::new(dir.to_owned(), node_name)?;
    folder.read_files()?;
    let (objects, problems) = folder.assemble();
    Ok((objects.into_values().collect(), problems.into_values().flatten().collect()))
}

impl FolderSource {
    /// A source for a folder, which must be there and readable. Of Nodes, only `node_name` counts.
    pub fn new(dir: PathBuf, node_name: &str) -> Result<Self, FolderError> {
        let folder = Self {
            dir,
            node_name: node_name.to_owned(),
            pools: Pools::default(),
            files: BTreeMap::new(),
            changed: false,
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
        };
        folder.file_names()?;
        Ok(folder)
    }

    /// Hands out addresses and node ports from these pools instead of the default ones.
    #[must_use]
    pub fn with_pools(self, pools: Pools) -> Self {
        Self { pools, ..self }
    }

    /// Sends what the folder holds, and then each change, until the receiver is gone.
    ///
    /// Fails only if the folder cannot be read at the start; later that is a [`Problem`] and a
    /// [`Change::Connected`] (false), and the last state stays.
    pub async fn run(mut self, changes: Sender) -> Result<(), FolderError> {
        let mut watch = Watch::start(&self.dir);
        let (folder, read) = self.read_in_background(Self::initial_changes).await;
        self = folder;
        if send_all(&changes, read?).await.is_err() {
            return Ok(());
        }
        let mut readable = true;
        loop {
            tokio::select! {
                () = watch.changed() => {}
                () = changes.closed() => return Ok(()),
            }
            let (folder, read) = self.read_in_background(Self::changes).await;
            self = folder;
            let batch = match read {
                Ok(mut batch) => {
                    if !readable {
                        info!(dir = %self.dir.display(), "manifest folder is readable again");
                        batch.extend(self.reachability(None));
                    }
                    readable = true;
                    batch
                }
                Err(FolderError::Unreadable { source, .. }) => {
                    let report = readable.then(|| self.reachability(Some(&source)));
                    readable = false;
                    report.into_iter().flatten().collect()
                }
            };
            if send_all(&changes, batch).await.is_err() {
                return Ok(());
            }
            watch.follow(&self.dir);
        }
    }

    /// Reads and compares off the runtime's threads: a large folder takes a while.
    async fn read_in_background(
        mut self,
        changes: fn(&mut Self) -> Vec<Change>,
    ) -> (Self, Result<Vec<Change>, FolderError>) {
        let reading = task::spawn_blocking(move || {
            let batch = self.read_files().map(|()| changes(&mut self));
            (self, batch)
        });
        match reading.await {
            Ok(read) => read,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => panic::resume_unwind(panic),
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// The folder's reachability, as it is said when it changes.
    fn reachability(&self, cause: Option<&io::Error>) -> Vec<Change> {
        let origin = self.dir.display().to_string();
        let problem = cause.map(|cause| {
            warn!(dir = %origin, error = %cause, "manifest folder cannot be read; its last state stays in force");
            Problem {
                object: origin.clone(),
                field: String::new(),
                what: format!("the manifest folder cannot be read ({cause}); its last state stays in force"),
            }
        });
        let connected = Change::Connected(problem.is_none());
        vec![Change::Problems { origin, problems: problem.into_iter().collect() }, connected]
    }

    /// Everything: a reset for each kind, the problems, and that the folder is there.
    fn initial_changes(&mut self) -> Vec<Change> {
        self.changed = false;
        (self.objects, self.problems) = self.assemble();
        let reset = |kind| {
            let objects = self.objects.iter().filter(|((k, _), _)| *k == kind);
            Change::Reset(kind, objects.map(|(_, object)| object.clone()).collect())
        };
        let mut batch: Vec<_> = Kind::ALL.into_iter().map(reset).collect();
        batch.extend(self.problems.iter().map(|(origin, problems)| Change::Problems {
            origin: origin.clone(),
            problems: problems.clone(),
        }));
        batch.push(Change::Connected(true));
        batch
    }

    /// What differs from what has been said: objects that appeared or changed, then those that are gone, then problems.
    fn changes(&mut self) -> Vec<Change> {
        if !mem::take(&mut self.changed) {
            return Vec::new();
        }
        let (objects, problems) = self.assemble();
        let mut batch: Vec<_> = objects
            .iter()
            .filter(|(key, object)| self.objects.get(key) != Some(object))
            .map(|(_, object)| Change::Apply(object.clone()))
            .collect();
        let gone = self.objects.keys().filter(|key| !objects.contains_key(key));
        batch.extend(gone.map(|(kind, name): &(Kind, ObjectName)| Change::Delete(*kind, name.clone())));
        batch.extend(problem_changes(&self.problems, &problems));
        (self.objects, self.problems) = (objects, problems);
        batch
    }

    fn assemble(&self) -> (BTreeMap<Key, Object>, BTreeMap<String, Vec<Problem>>) {
        let mut assembly = Assembly::default();
        for (name, file) in &self.files {
            assembly.add(name, &file.manifest);
        }
        let (mut objects, found) = assembly.finish(&self.pools);
        let pools = Object::ServiceCidr(self.pools.service_cidr());
        objects.insert((pools.kind(), pools.name()), pools);
        let mut problems: BTreeMap<String, Vec<Problem>> = BTreeMap::new();
        let unreadable = self.files.values().flat_map(|file| &file.manifest.unreadable).cloned();
        for problem in found.into_iter().chain(unreadable) {
            problems.entry(problem.object.clone()).or_default().push(problem);
        }
        (objects, problems)
    }

    /// Reads the files that changed.
    fn read_files(&mut self) -> Result<(), FolderError> {
        let names = self.file_names()?;
        let count = self.files.len();
        self.files.retain(|name, _| names.contains(name));
        self.changed |= self.files.len() != count;
        for name in names {
            let path = self.dir.join(&name);
            let known = self.files.get(&name);
            match File::read(&path, &name, &self.node_name, known) {
                Reading::Same => {}
                Reading::Gone => self.changed |= self.files.remove(&name).is_some(),
                Reading::Changed(file) => {
                    self.changed = true;
                    self.files.insert(name, file);
                }
            }
        }
        Ok(())
    }

    /// The names of the manifests, in order.
    fn file_names(&self) -> Result<Vec<String>, FolderError> {
        let error = |source| FolderError::Unreadable { dir: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            names.extend(name.into_string().ok().filter(|name| is_manifest(name)));
        }
        names.sort();
        Ok(names)
    }
}

fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

async fn send_all(changes: &Sender, batch: Vec<Change>) -> Result<(), Gone> {
    for change in batch {
        send(changes, change).await?;
    }
    Ok(())
}

/// What to say of origins whose problems are not what they were.
fn problem_changes(
    before: &BTreeMap<String, Vec<Problem>>,
    now: &BTreeMap<String, Vec<Problem>>,
) -> Vec<Change> {
    let solved = before.keys().filter(|origin| !now.contains_key(*origin));
    let solved = solved.map(|origin| Change::Problems { origin: origin.clone(), problems: Vec::new() });
    let news = now.iter().filter(|(origin, problems)| before.get(*origin) != Some(problems));
    let news = news
        .map(|(origin, problems)| Change::Problems { origin: origin.clone(), problems: problems.clone() });
    solved.chain(news).collect()
}

/// What is known of a file.
#[derive(Debug)]
struct File {
    stamp: Stamp,
    read_at: SystemTime,
    manifest: Manifest,
}

enum Reading {
    Same,
    Gone,
    Changed(File),
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl File {
    fn read(path: &Path, name: &str, node_name: &str, known: Option<&Self>) -> Reading {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata,
            // A folder or a device by the name of a manifest is none.
            Ok(_) => return Reading::Gone,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Reading::Gone,
            Err(error) => return Self::unreadable(name, &error, known),
        };
        let (stamp, read_at) = (Stamp::of(&metadata), SystemTime::now());
        if known.is_some_and(|known| known.stamp == stamp && known.is_settled()) {
            return Reading::Same;
        }
        match fs::read_to_string(path) {
            Ok(text) => {
                let manifest =
                    manifest::parse(&text, name, node_name).or_else(known.map(|file| &file.manifest));
                Reading::Changed(Self { stamp, read_at, manifest })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::Gone,
            Err(error) => Self::unreadable(name, &error, known),
        }
    }

    /// Whether a change after the reading would have changed the stamp.
    fn is_settled(&self) -> bool {
        let (seconds, _) = self.stamp.changed;
        let changed =
            u64::try_from(seconds).map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let age = changed.ok().and_then(|changed| self.read_at.duration_since(changed).ok());
        // The stamp's seconds are rounded down.
        age.is_some_and(|age| age > STAMP_GRAIN + Duration::from_secs(1))
    }

    fn unreadable(name: &str, error: &io::Error, known: Option<&Self>) -> Reading {
        let manifest =
            Manifest::unreadable(name, &error.to_string()).or_else(known.map(|file| &file.manifest));
        let stamp = Stamp { file: (0, 0), size: 0, modified: (0, 0), changed: (0, 0) };
        Reading::Changed(Self { stamp, read_at: SystemTime::now(), manifest })
    }
}
