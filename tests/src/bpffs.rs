//! A private BPF file system, so that several agents pin their maps side by side.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Once,
};

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::unique;

/// A BPF file system at a directory of its own; unmounted on drop, which frees all that is pinned in it.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// A new, empty one.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        unique::ensure_root()?;
        SWEEP.call_once(remove_abandoned);
        let path = env::temp_dir().join(unique::name("bpffs"));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        let bpffs = Self { path };
        mount(Some("bpf"), &bpffs.path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("mounting a bpffs at {}", bpffs.path.display()))?;
        Ok(bpffs)
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where an agent may pin: a directory in it, which the agent makes and removes.
    pub fn pin_path(&self) -> PathBuf {
        self.path.join("sockeye")
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            unique::report_leak(&error);
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: it was never mounted.
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(error) => return Err(anyhow!(error).context(format!("unmounting {}", path.display()))),
    }
    fs::remove_dir(path).with_context(|| format!("removing {}", path.display()))
}

fn remove_abandoned() {
    for path in unique::abandoned(&env::temp_dir()) {
        // Another test process may sweep at the same moment, and a manifests folder has other contents.
        drop(remove(&path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_bpffs_and_goes_with_its_guard() {
        let bpffs = Bpffs::new().unwrap();
        let path = bpffs.path().to_owned();
        let kind = nix::sys::statfs::statfs(&path).unwrap().filesystem_type();
        assert_eq!(kind, nix::sys::statfs::BPF_FS_MAGIC);
        // Directories are allowed in a bpffs, files are not: only the kernel pins.
        fs::create_dir(bpffs.pin_path()).unwrap();
        assert!(fs::write(bpffs.path().join("file"), "x").is_err());
        drop(bpffs);
        assert!(!path.exists());
    }
}
