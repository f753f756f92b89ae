//! The facts of the machine that defaults come from.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// What defaults are derived from. Gathered once, so that resolving flags is pure.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The host name.
    pub hostname: Option<String>,
    /// `/proc/self/mountinfo`.
    pub mounts: String,
    /// Whether this is a pod with a service account.
    pub in_cluster: bool,
    /// `$KUBECONFIG`.
    pub kubeconfig: Option<PathBuf>,
}

impl Machine {
    /// Looks at the machine; what cannot be read is absent.
    pub fn look() -> Self {
        Self {
            hostname: nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()),
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
            in_cluster: env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            kubeconfig: env::var_os("KUBECONFIG").filter(|path| !path.is_empty()).map(PathBuf::from),
        }
    }

    /// Where the root of cgroup v2 is mounted: at `/sys/fs/cgroup` if it is there, else at its first mount point.
    ///
    /// In a cgroup namespace of its own, a pod's `/` is only the pod's cgroup. A mount of the host's root, brought in
    /// from outside, then shows as `/../..` (see `cgroup_namespaces(7)`): that one goes first.
    pub fn cgroup_root(&self) -> Option<PathBuf> {
        let mounts: Vec<_> = self.mounts.lines().filter_map(cgroup2_mount).collect();
        let highest = mounts.iter().map(|mount| mount.levels_up).max()?;
        let mut points: Vec<_> =
            mounts.into_iter().filter(|mount| mount.levels_up == highest).map(|mount| mount.point).collect();
        let usual = points.iter().position(|point| point.as_os_str() == "/sys/fs/cgroup");
        Some(points.swap_remove(usual.unwrap_or(0)))
    }

    /// The depth of a cgroup below the root of the hierarchy; its path must be free of symbolic links.
    ///
    /// What lies above the root of a cgroup namespace that nothing shows cannot be counted: zero there, too.
    pub fn cgroup_level(&self, cgroup: &Path) -> u32 {
        let mounts = self.mounts.lines().filter_map(cgroup2_mount);
        let depths =
            mounts.filter_map(|mount| Some(cgroup.strip_prefix(mount.point).ok()?.components().count()));
        // Of mounts inside each other, the innermost shows the cgroup.
        depths.min().unwrap_or(0) as u32
    }
}

struct Cgroup2Mount {
    /// How far above the root of our cgroup namespace the mounted cgroup lies.
    levels_up: usize,
    point: PathBuf,
}

/// Reads a line of mountinfo (`proc_pid_mountinfo(5)`) that mounts the root of cgroup v2, ours or one above it.
fn cgroup2_mount(line: &str) -> Option<Cgroup2Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let steps = root.split('/').filter(|step| !step.is_empty());
    let is_root = filesystem.split(' ').next()? == "cgroup2" && steps.clone().all(|step| step == "..");
    is_root.then(|| Cgroup2Mount { levels_up: steps.count(), point: PathBuf::from(unescape(point)) })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}
