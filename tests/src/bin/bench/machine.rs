//! The quiet corner of the machine that the measurement gets, and what the machine is.

use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, ensure};
use lb_tests::{
    bpffs::Bpffs,
    cgroup::{self, Cgroup},
    netns::Netns,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// A network namespace, a BPF file system, and two sibling cgroups: one to attach programs to, one without.
pub(crate) struct Corner {
    pub(crate) netns: Netns,
    pub(crate) bpffs: Bpffs,
    pub(crate) with_programs: Cgroup,
    pub(crate) without_programs: Cgroup,
    home: PathBuf,
    _parent: Cgroup,
}

impl Corner {
    /// In its namespace all addresses of `10.0.0.0/8` and `fd00::/8` are local: any `connect()` to them has a route, of
    /// the same kind for services and backends.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let home = cgroup::own()?;
        let netns = Netns::new("bench")?;
        netns.ip("route add local 10.0.0.0/8 dev lo\nroute add local fd00::/8 dev lo")?;
        let parent = Cgroup::new("bench")?;
        Ok(Self {
            netns,
            bpffs: Bpffs::new()?,
            with_programs: parent.child("with")?,
            without_programs: parent.child("without")?,
            home,
            _parent: parent,
        })
    }
}

impl Drop for Corner {
    fn drop(&mut self) {
        // The cgroups' guards kill whatever is still inside.
        if let Err(error) = cgroup::enter(&self.home) {
            crate::say(&format!("{error:#}"));
        }
    }
}

/// Keeps this thread on the last CPU (interrupts tend to the first), and everybody else off it as far as can be.
pub(crate) fn claim_a_cpu() -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(std::thread::available_parallelism()?.get() - 1)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("staying on one CPU")?;
    // SAFETY: no pointers.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    ensure!(result == 0, "raising the priority: {}", io::Error::last_os_error());
    Ok(())
}

/// Processor and kernel, for the record.
pub(crate) fn describe() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processors = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, name)| name);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let machine = if cpuinfo.contains(" hypervisor") { "virtual machine" } else { "machine" };
    format!("{machine}, {processors} × {model}, {}, Linux {}", std::env::consts::ARCH, release.trim())
}
