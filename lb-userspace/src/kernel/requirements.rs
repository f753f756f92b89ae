//! What must be there before anything is loaded: privileges, a BPF file system, a cgroup2 hierarchy.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::util::KernelVersion;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        resource::{RLIM_INFINITY, Resource, setrlimit},
        statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs},
    },
};

use super::error::KernelError;

/// Where distributions mount the BPF file system. The agent mounts one there itself if nothing is.
const BPFFS: &str = "/sys/fs/bpf";

/// The capabilities that loading and attaching need, with their numbers (`include/uapi/linux/capability.h`).
/// `CAP_SYS_ADMIN` stands for the first one, too.
const CAP_BPF: u32 = 39;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_NET_ADMIN: u32 = 12;

/// Fails unless the process may load and attach programs.
pub(crate) fn check_privileges() -> Result<(), KernelError> {
    let path = "/proc/self/status";
    let status = fs::read_to_string(path).map_err(KernelError::io("reading", path))?;
    let missing = missing_capabilities(effective_capabilities(&status));
    if missing.is_empty() { Ok(()) } else { Err(KernelError::Privileges { missing: missing.join(", ") }) }
}

/// Lifts the limit of locked memory, to which kernels before 5.11 count maps (its default holds none of ours).
///
/// Newer kernels count maps to the memory cgroup: a container that may not lift the limit is fine there.
pub(crate) fn lift_memory_limit() -> Result<(), KernelError> {
    match setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        Err(Errno::EPERM) if counts_locked_memory() => {
            Err(KernelError::Privileges { missing: "CAP_SYS_RESOURCE".to_owned() })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn counts_locked_memory() -> bool {
    KernelVersion::current().is_ok_and(|running| running < KernelVersion::new(5, 11, 0))
}

fn effective_capabilities(status: &str) -> u64 {
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    field.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |number: u32| effective & (1 << number) != 0;
    let mut missing = Vec::new();
    if !has(CAP_BPF) && !has(CAP_SYS_ADMIN) {
        missing.push("CAP_BPF");
    }
    if !has(CAP_NET_ADMIN) {
        missing.push("CAP_NET_ADMIN");
    }
    missing
}

/// Makes sure that `directory` exists on a BPF file system.
///
/// Below `/sys/fs/bpf`, one is mounted if there is none. Elsewhere the operator has to: a mount at any other place would
/// surprise.
pub(crate) fn prepare_bpffs(directory: &Path) -> Result<(), KernelError> {
    if !on_bpffs(directory)? {
        if !directory.starts_with(BPFFS) {
            return Err(KernelError::NoBpffs { path: directory.to_owned() });
        }
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .map_err(|errno| KernelError::io("mounting a BPF file system at", BPFFS)(errno.into()))?;
        tracing::info!(path = BPFFS, "mounted a BPF file system");
    }
    fs::create_dir_all(directory).map_err(KernelError::io("creating the directory", directory))
}

/// Whether `directory`, or the nearest of its parents that exists, is on a BPF file system.
pub(crate) fn on_bpffs(directory: &Path) -> Result<bool, KernelError> {
    for ancestor in directory.ancestors() {
        match file_system(ancestor) {
            Err(Errno::ENOENT) => {}
            Ok(magic) => return Ok(magic == BPF_FS_MAGIC),
            Err(errno) => return Err(KernelError::io("looking at", ancestor)(errno.into())),
        }
    }
    Ok(false)
}

/// Fails unless `path` is a directory of a cgroup2 file system.
pub(crate) fn check_cgroup(path: &Path) -> Result<(), KernelError> {
    let magic =
        file_system(path).map_err(|errno| KernelError::io("looking at the cgroup", path)(errno.into()))?;
    if magic == CGROUP2_SUPER_MAGIC && path.is_dir() {
        Ok(())
    } else {
        Err(KernelError::NotCgroup2 { path: path.to_owned() })
    }
}

/// The root of the cgroup v2 hierarchy: `/sys/fs/cgroup` on unified systems, `/sys/fs/cgroup/unified` on hybrid ones.
pub fn cgroup2_root() -> Result<PathBuf, KernelError> {
    let path = "/proc/self/mounts";
    let mounts = fs::read_to_string(path).map_err(KernelError::io("reading", path))?;
    first_cgroup2(&mounts).ok_or(KernelError::NoCgroup2)
}

fn first_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_device, mount_point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(mount_point)))
    })
}

/// Undoes the octal escapes of `/proc/self/mounts` (space, tab, line feed and backslash; proc(5)).
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

fn file_system(path: &Path) -> Result<FsType, Errno> {
    statfs(path).map(|status| status.filesystem_type())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_capabilities_that_are_missing() {
        let all = effective_capabilities("Name:\tsockeye\nCapEff:\t000001ffffffffff\n");
        assert!(missing_capabilities(all).is_empty());
        assert_eq!(missing_capabilities(0), ["CAP_BPF", "CAP_NET_ADMIN"]);
        assert_eq!(missing_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        assert!(missing_capabilities(1 << CAP_BPF | 1 << CAP_NET_ADMIN).is_empty());
    }

    #[test]
    fn finds_the_hierarchy_of_unified_and_hybrid_systems() {
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(first_cgroup2(unified), Some("/sys/fs/cgroup".into()));
        let hybrid =
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(first_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(first_cgroup2("none /a\\040b cgroup2 rw 0 0"), Some("/a b".into()));
        assert_eq!(first_cgroup2("cgroup /sys/fs/cgroup cgroup rw 0 0\n"), None);
    }

    #[test]
    fn a_path_elsewhere_is_neither() {
        assert!(!on_bpffs(Path::new("/proc/nowhere/at/all")).unwrap());
        assert!(matches!(check_cgroup(Path::new("/proc")), Err(KernelError::NotCgroup2 { .. })));
        assert!(matches!(prepare_bpffs(Path::new("/proc/sockeye")), Err(KernelError::NoBpffs { .. })));
    }
}
