//! Kernel parameters of this process's network namespace.

use std::{fs, io, path::PathBuf};

/// A parameter by its path below `/proc/sys`. The kernel shows the network namespace of the thread that opens the file.
pub(crate) fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(path(name))
}

/// Sets a parameter.
pub(crate) fn write(name: &str, value: &str) -> io::Result<()> {
    fs::write(path(name), value)
}

pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}
