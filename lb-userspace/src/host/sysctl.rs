//! Kernel parameters of this process's network namespace.

use std::{fs, io, path::Path};

/// A parameter by its path below `/proc/sys`. The kernel shows the network namespace of the thread that opens the file.
pub(crate) fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(Path::new("/proc/sys").join(name))
}
