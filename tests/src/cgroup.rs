//! Child cgroups (v2): where a node's and a pod's processes live, and where the programs are attached.
//!
//! The machine's own cgroups are never touched. What still runs in a cgroup when its guard is dropped is killed, by
//! process id: only processes that the test put there, and their children, can be in it.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    sync::Once,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{unique, wait};

/// A cgroup, removed on drop together with those below it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new cgroup below the root of the machine's cgroup v2 mount.
    pub fn new(what: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        unique::ensure_root()?;
        let root = mount_point()?;
        SWEEP.call_once(|| remove_abandoned(&root));
        Self::create(root.join(unique::name(what)))
    }

    /// A cgroup below this one.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name))
    }

    fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("creating the cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that a process moves itself in by writing `0` to it.
    pub(crate) fn door(&self) -> Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).with_context(|| format!("opening {}", path.display()))
    }

    /// Moves a process in.
    pub fn add(&self, pid: u32) -> Result<()> {
        let path = self.path.join("cgroup.procs");
        fs::write(&path, pid.to_string()).with_context(|| format!("moving {pid} to {}", self.path.display()))
    }

    /// Moves this process in, until the guard is dropped: the sockets that it makes meanwhile belong to this cgroup.
    pub fn enter(&self) -> Result<Inside> {
        let home = own()?;
        enter(&self.path)?;
        Ok(Inside { home })
    }

    /// The processes in it, without those of the cgroups below.
    pub fn processes(&self) -> Result<Vec<u32>> {
        processes(&self.path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            unique::report_leak(&error);
        }
    }
}

/// A stay in another cgroup.
#[derive(Debug)]
pub struct Inside {
    home: PathBuf,
}

impl Drop for Inside {
    fn drop(&mut self) {
        // The guards of cgroups kill whatever is still inside.
        if let Err(error) = enter(&self.home) {
            unique::report_leak(&error);
        }
    }
}

/// Moves this process.
pub fn enter(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0").with_context(|| format!("entering {}", cgroup.display()))
}

/// Where this process lives.
pub fn own() -> Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let own =
        own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process has no cgroup v2")?;
    Ok(mount_point()?.join(own))
}

/// Where the machine's cgroup v2 is mounted: `/sys/fs/cgroup`, or beside the older hierarchy (hybrid).
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(root_mount);
    match points.min_by_key(|path| path.as_os_str().len()) {
        Some(path) => Ok(path),
        None => bail!("no cgroup v2 is mounted: mount one, for instance at /sys/fs/cgroup (type cgroup2)"),
    }
}

/// The mount point, if a line of mountinfo (`proc_pid_mountinfo(5)`) mounts the root of cgroup v2.
fn root_mount(line: &str) -> Option<PathBuf> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (filesystem.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
}

fn processes(path: &Path) -> Result<Vec<u32>> {
    let text = fs::read_to_string(path.join("cgroup.procs"))
        .with_context(|| format!("reading cgroup.procs of {}", path.display()))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Removes a cgroup and those below it; kills what runs there and waits until it is gone.
fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("reading {}", path.display()))? {
        let entry = entry.with_context(|| format!("reading {}", path.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    wait::until_uninterrupted(&format!("the cgroup {} to be empty", path.display()), wait::SOON, || {
        for pid in processes(path)? {
            // A process that ended in between is what we want.
            match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => bail!("killing process {pid}: {error}"),
            }
        }
        match fs::remove_dir(path) {
            Ok(()) => Ok(Some(())),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("removing the cgroup {}", path.display())),
        }
    })
}

fn remove_abandoned(root: &Path) {
    for path in unique::abandoned(root) {
        // Another test process may sweep at the same moment: what is gone already is fine.
        drop(remove(&path));
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn both_layouts_are_found() {
        let unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let part = "41 31 0:38 /kubepods /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(root_mount(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(root_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(root_mount(part), None);
        assert!(mount_point().is_ok());
    }

    #[test]
    fn what_runs_in_it_ends_with_its_guard() {
        let node = Cgroup::new("node").unwrap();
        let pod = node.child("pod").unwrap();
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        pod.add(sleeper.id()).unwrap();
        assert_eq!(pod.processes().unwrap(), [sleeper.id()]);
        let (node_path, pod_path) = (node.path().to_owned(), pod.path().to_owned());
        drop(node);
        assert!(!node_path.exists() && !pod_path.exists());
        assert!(!sleeper.wait().unwrap().success());
        drop(pod);
    }
}
