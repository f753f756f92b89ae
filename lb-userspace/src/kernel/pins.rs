//! The pin directory: where things are, and how a set of pins is replaced as one.
//!
//! ```text
//! PATH/NAME                      a map of the generation in force
//! PATH/links/PROGRAM             a link to the cgroup
//! PATH/links/DEVICE-PROGRAM      a link to a device (tcx)
//! PATH/filters/DEVICE            a directory: the device has filters of ours (clsact), which cannot be pinned
//! PATH/filters/DEVICE/qdisc      an empty directory: the device's clsact qdisc was made for them
//! PATH/reserved/FIRST-LAST       an empty directory: these ports of the node are reserved because of us
//! PATH/staged/NAME               maps of a generation that is not in force yet
//! PATH/committed/NAME            maps on their way to PATH/NAME: the generation is in force
//! PATH/relinked/…                links on their way to PATH/links
//! ```
//!
//! A process may die between any two steps. What lies in `committed` and `relinked` is moved on at the next start, what
//! lies in `staged` is dropped: so `PATH/NAME` never holds maps of two generations for good.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use super::{error::KernelError, requirements};

/// The pin directory.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

/// Held as long as an agent uses the directory; released by the kernel when the process ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _directory: File,
}

impl Pins {
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(crate) fn filters(&self) -> PathBuf {
        self.root.join("filters")
    }

    pub(crate) fn reserved(&self) -> PathBuf {
        self.root.join("reserved")
    }

    pub(crate) fn staged(&self) -> PathBuf {
        self.root.join("staged")
    }

    pub(crate) fn committed(&self) -> PathBuf {
        self.root.join("committed")
    }

    pub(crate) fn relinked(&self) -> PathBuf {
        self.root.join("relinked")
    }

    /// Creates the directory, on a BPF file system, and makes it this process's.
    pub(crate) fn prepare(&self) -> Result<Lock, KernelError> {
        requirements::prepare_bpffs(&self.root)?;
        self.lock()
    }

    /// Makes the directory this process's.
    pub(crate) fn lock(&self) -> Result<Lock, KernelError> {
        let directory = File::open(&self.root).map_err(KernelError::io("opening", &self.root))?;
        match directory.try_lock() {
            Ok(()) => Ok(Lock { _directory: directory }),
            Err(TryLockError::WouldBlock) => Err(KernelError::Busy { path: self.root.clone() }),
            Err(TryLockError::Error(source)) => Err(KernelError::io("locking", &self.root)(source)),
        }
    }

    /// Finishes or drops what a process left half-done.
    pub(crate) fn recover(&self) -> Result<(), KernelError> {
        if move_all(&self.committed(), &self.root)? > 0 {
            tracing::info!(path = %self.root.display(), "finished an interrupted change of generation");
        }
        move_all(&self.relinked(), &self.links())?;
        self.drop_staged()
    }

    /// Unpins the maps of a generation that did not come into force.
    pub(crate) fn drop_staged(&self) -> Result<(), KernelError> {
        for file in entries(&self.staged())? {
            remove_file(&file)?;
        }
        remove_directory(&self.staged())
    }

    /// Replaces maps by those that lie in `staged`, as one.
    pub(crate) fn commit(&self) -> Result<(), KernelError> {
        let (staged, committed) = (self.staged(), self.committed());
        fs::rename(&staged, &committed).map_err(KernelError::io("renaming", staged))?;
        move_all(&committed, &self.root).map(drop)
    }
}

/// The name of the pin of a program on a device.
pub(crate) fn device_pin(device: &str, program: &str) -> String {
    format!("{}-{program}", escape(device))
}

/// A device's name as that of a file: a BPF file system reserves the dot, which VLAN devices have in their names.
pub(crate) fn escape(device: &str) -> String {
    device.replace('%', "%25").replace('.', "%2E")
}

/// Undoes [`escape`].
pub(crate) fn unescape(file: &str) -> String {
    file.replace("%2E", ".").replace("%25", "%")
}

/// The device in the name of a pin, if it is that of `program` on a device.
pub(crate) fn device_of(pin: &str, program: &str) -> Option<String> {
    let device = pin.strip_suffix(program)?.strip_suffix('-')?;
    Some(unescape(device))
}

/// Creates a directory, if there is none.
pub(crate) fn create_directory(path: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(path).map_err(KernelError::io("creating the directory", path))
}

/// Removes an empty directory, if there is one.
pub(crate) fn remove_directory(path: &Path) -> Result<(), KernelError> {
    absent_is_fine(fs::remove_dir(path)).map_err(KernelError::io("removing the directory", path))
}

/// Removes a pin, if there is one.
pub(crate) fn remove_file(path: &Path) -> Result<(), KernelError> {
    absent_is_fine(fs::remove_file(path)).map_err(KernelError::io("removing", path))
}

/// What lies in a directory, sorted; nothing if there is none.
pub(crate) fn entries(directory: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let error = || KernelError::io("reading the directory", directory);
    let reader = match fs::read_dir(directory) {
        Ok(reader) => reader,
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(other) => return Err(error()(other)),
    };
    let mut paths = Vec::new();
    for entry in reader {
        paths.push(entry.map_err(error())?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The last part of a path, as text.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Moves every pin of a directory, replacing those of the same name, and removes the directory; returns how many.
fn move_all(from: &Path, to: &Path) -> Result<usize, KernelError> {
    let files = entries(from)?;
    if !files.is_empty() {
        create_directory(to)?;
    }
    for file in &files {
        let target = to.join(file_name(file));
        fs::rename(file, &target).map_err(KernelError::io("renaming", file))?;
    }
    remove_directory(from)?;
    Ok(files.len())
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_names_its_device() {
        for device in ["eth0", "eth0.100", "wl-an", "50%.2E"] {
            let pin = device_pin(device, "tc_ingress");
            assert!(!pin.contains('.'), "{pin}");
            assert_eq!(device_of(&pin, "tc_ingress").as_deref(), Some(device));
            assert_eq!(device_of(&pin, "tc_egress"), None);
        }
        assert_eq!(device_of("connect4", "tc_ingress"), None);
    }

    fn pins_with(files: &[&str]) -> (tempfile::TempDir, Pins) {
        let directory = tempfile::tempdir().unwrap();
        for file in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        let pins = Pins::new(directory.path());
        (directory, pins)
    }

    #[test]
    fn a_commit_replaces_maps_as_one() {
        let (_guard, pins) = pins_with(&["FRONTENDS", "SOCKETS", "staged/FRONTENDS", "staged/SERVICES"]);
        pins.commit().unwrap();
        assert_eq!(fs::read_to_string(pins.map("FRONTENDS")).unwrap(), "staged/FRONTENDS");
        assert_eq!(fs::read_to_string(pins.map("SOCKETS")).unwrap(), "SOCKETS");
        assert!(pins.map("SERVICES").exists());
        assert!(!pins.staged().exists() && !pins.committed().exists());
    }

    #[test]
    fn recovery_finishes_what_was_committed_and_drops_what_was_not() {
        let (_guard, pins) = pins_with(&[
            "FRONTENDS",
            "committed/FRONTENDS",
            "staged/BACKENDS",
            "links/connect4",
            "relinked/connect4",
        ]);
        pins.recover().unwrap();
        assert_eq!(fs::read_to_string(pins.map("FRONTENDS")).unwrap(), "committed/FRONTENDS");
        assert_eq!(fs::read_to_string(pins.links().join("connect4")).unwrap(), "relinked/connect4");
        assert!(!pins.map("BACKENDS").exists());
        for directory in [pins.staged(), pins.committed(), pins.relinked()] {
            assert!(!directory.exists(), "{}", directory.display());
        }
        pins.recover().unwrap();
    }

    #[test]
    fn one_agent_at_a_time() {
        let (_guard, pins) = pins_with(&[]);
        let lock = pins.lock().unwrap();
        assert!(matches!(pins.lock(), Err(KernelError::Busy { .. })));
        drop(lock);
        pins.lock().unwrap();
    }
}
