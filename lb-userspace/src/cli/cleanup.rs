//! `sockeye cleanup`: removes what an agent leaves in the kernel when it ends.

use std::{fs, io, os::unix::fs::FileTypeExt as _, path::Path};

use anyhow::Context as _;
use clap::Args;

use super::Verdict;
use crate::{
    config::{Instance, InstanceFlags},
    kernel,
    output::{print_text, remark},
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    #[command(flatten)]
    instance: InstanceFlags,
}

pub(super) fn run(flags: Flags) -> anyhow::Result<Verdict> {
    let Instance { bpffs, socket } = flags.instance.resolve()?;
    // Fails while an agent runs, before anything is removed.
    let mut removed = kernel::cleanup(&bpffs)?;
    removed.extend(remove_socket(&socket)?);
    if removed.is_empty() {
        remark(&format!("sockeye: nothing to remove: nothing is pinned in {}", bpffs.display()));
    }
    let lines: Vec<_> = removed.iter().map(|what| ["removed ", what, "\n"].concat()).collect();
    print_text(&lines.concat())?;
    Ok(Verdict::Fine)
}

/// Removes the socket that an agent left when it was killed. A file that is no socket stays.
fn remove_socket(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
            Ok(Some(format!("socket {}", path.display())))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("looking at {}", path.display())),
    }
}
