//! What can go wrong at the kernel, in terms that tell an operator what to do.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use crate::store::StoreError;

/// Why the kernel's side cannot be prepared, activated, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not do what is needed.
    #[error("missing {missing}: run as root, or in a privileged container")]
    Privileges {
        /// The capabilities that are not in the effective set.
        missing: String,
    },
    /// The kernel is too old, or built without something.
    #[error("this kernel ({running}) lacks what Sockeye needs: {missing}")]
    Unsupported {
        /// The running kernel's release.
        running: String,
        /// Each required feature that is missing, with the version that has it.
        missing: String,
    },
    /// Nothing can be pinned there.
    #[error("{} is on no BPF file system: mount one with `mount -t bpf bpf DIRECTORY` and give a path below it", .path.display())]
    NoBpffs {
        /// The path that was given.
        path: PathBuf,
    },
    /// There is no cgroup v2 hierarchy at all.
    #[error("no cgroup2 file system is mounted: mount one with `mount -t cgroup2 none DIRECTORY`")]
    NoCgroup2,
    /// The path is no cgroup of the v2 hierarchy.
    #[error("{} is no directory of a cgroup2 file system", .path.display())]
    NotCgroup2 {
        /// The path that was given.
        path: PathBuf,
    },
    /// Another process holds the directory's lock.
    #[error("another agent uses {}: stop it first, or give another `--bpffs` directory", .path.display())]
    Busy {
        /// The pin directory.
        path: PathBuf,
    },
    /// There are no pins to read.
    #[error("nothing is pinned at {}: no agent has been active there", .path.display())]
    NotPinned {
        /// The pin directory.
        path: PathBuf,
    },
    /// Pins of another version of Sockeye.
    #[error("the maps at {} have another layout: use the `sockeye` that made them", .path.display())]
    OtherLayout {
        /// The pin directory.
        path: PathBuf,
    },
    /// Something that is not ours lies in the pin directory.
    #[error("left {} in place: it holds something else ({names})", .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What lies in it.
        names: String,
    },
    /// A call to the operating system failed.
    #[error("{operation} {}", .path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Asking the kernel what it can do failed for another reason than that it cannot.
    #[error("probing the kernel for {feature}")]
    Probe {
        /// What was looked for.
        feature: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The embedded object cannot be used: a defect of the build.
    #[error("the embedded eBPF object: {what}")]
    Object {
        /// What is wrong with it.
        what: String,
    },
    /// The maps could not be created, or the object could not be relocated.
    #[error("creating the maps")]
    Create(#[source] Box<EbpfError>),
    /// The verifier refused a program.
    #[error("the verifier of kernel {running} refuses the program {program}: {excerpt}")]
    Refused {
        /// The program.
        program: String,
        /// The running kernel's release.
        running: String,
        /// The last lines of the verifier's log; all of it is logged at debug level.
        excerpt: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A program could not be loaded, attached or switched.
    #[error("{operation} the program {program}{at}")]
    Program {
        /// What was tried.
        operation: &'static str,
        /// The program.
        program: String,
        /// Where (` at eth0`); may be empty.
        at: String,
        /// The cause.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be opened, read or written.
    #[error("{operation} the map {map}")]
    Map {
        /// What was tried.
        operation: &'static str,
        /// The map.
        map: &'static str,
        /// The cause.
        #[source]
        source: Box<MapError>,
    },
    /// The tables of the generation in force could not be read or copied.
    #[error("copying the tables of the generation in force")]
    Copy(#[source] StoreError),
    /// The programs that run now could not be waited for.
    #[error("waiting for the running programs to end")]
    Grace(#[source] StoreError),
    /// There is no such device in the network namespace.
    #[error("no network device {name}")]
    NoDevice {
        /// The device's name.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl KernelError {
    /// For `map_err` on calls of the operating system.
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    /// For `map_err` on aya's map calls.
    pub(crate) fn map(operation: &'static str, map: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map { operation, map, source: Box::new(source) }
    }

    /// For `map_err` on aya's program calls.
    pub(crate) fn program(
        operation: &'static str,
        program: &str,
        at: String,
    ) -> impl FnOnce(ProgramError) -> Self {
        let program = program.to_owned();
        move |source| Self::Program { operation, program, at, source: Box::new(source) }
    }
}
