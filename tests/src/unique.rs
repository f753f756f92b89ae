//! Names of what a test makes: unique while the process lives, and recognizable once it is dead.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

const PREFIX: &str = "sockeye-test";

/// A name that no other object of any living test has: `sockeye-test.<pid>.<counter>.<what>`.
pub fn name(what: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}.{}.{number}.{what}", process::id())
}

/// The entries of a directory that [`name`] named in a process that is dead now.
pub(crate) fn abandoned(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter(|entry| is_abandoned(entry.file_name())).map(|entry| entry.path()).collect()
}

fn is_abandoned(name: OsString) -> bool {
    name.into_string().ok().and_then(|name| owner(&name)).is_some_and(|pid| !is_alive(pid))
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.strip_prefix('.')?.split_once('.')?.0.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Fails with what to do, unless this is root.
pub fn ensure_root() -> Result<()> {
    ensure!(geteuid().is_root(), "the integration tests need root: run them with ./x test, or under sudo");
    Ok(())
}

/// Something was left behind: fails the test, unless that fails already.
pub(crate) fn report_leak(error: &anyhow::Error) {
    assert!(thread::panicking(), "left behind: {error:#}");
    // Straight to the descriptor: the print macros may panic, and we are panicking already.
    drop(writeln!(std::io::stderr(), "left behind: {error:#}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_tell_their_owner() {
        let (a, b) = (name("pod"), name("pod"));
        assert_ne!(a, b);
        assert_eq!(owner(&a), Some(process::id()));
        assert!(!is_abandoned(a.into()));
        assert!(is_abandoned(format!("{PREFIX}.4194305.0.pod").into()), "above the largest pid");
        assert_eq!(owner("sockeye-test"), None);
        assert_eq!(owner("node.1.2"), None);
    }
}
