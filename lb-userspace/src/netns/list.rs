//! Where the network namespaces are: by the links of processes, and by the names of `ip netns` and of container runtimes.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::Path, path::PathBuf};

/// The names that the machine's first process sees; a container with the host's processes sees them too this way.
const NAMES: [&str; 2] = ["1/root/run/netns", "self/root/run/netns"];

/// The namespaces by the numbers of their inodes, each with a file that leads to it.
///
/// `proc` is where processes are listed, `device` the number of the file system that namespaces belong to. Reads one link
/// for each process. Threads that left the namespace of their process are found by a name only.
pub(super) fn list(proc: &Path, device: u64) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    // A name outlives the processes of a moment.
    for names in NAMES {
        for path in fs::read_dir(proc.join(names)).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if let Ok(file) = fs::metadata(&path)
                && file.dev() == device
            {
                found.entry(file.ino()).or_insert(path);
            }
        }
    }
    for entry in fs::read_dir(proc)? {
        let name = entry?.file_name();
        let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if !is_process {
            continue;
        }
        let path = proc.join(name).join("ns/net");
        // A process that has ended meanwhile has none.
        if let Some(inode) = fs::read_link(&path).ok().as_deref().and_then(inode) {
            found.entry(inode).or_insert(path);
        }
    }
    Ok(found)
}

/// The inode that a link names: `net:[4026531840]` (`namespaces(7)`).
fn inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_namespace_is_listed_once_however_many_processes_are_in_it() {
        let proc = tempfile::tempdir().unwrap();
        for (process, link) in [("1", "net:[7]"), ("20", "net:[7]"), ("300", "net:[8]"), ("self", "net:[9]")]
        {
            let directory = proc.path().join(process).join("ns");
            fs::create_dir_all(&directory).unwrap();
            symlink(link, directory.join("net")).unwrap();
        }
        // One that is ending, and one whose link says something else.
        fs::create_dir_all(proc.path().join("4000/ns")).unwrap();
        fs::create_dir_all(proc.path().join("5/ns")).unwrap();
        symlink("ipc:[7]", proc.path().join("5/ns/net")).unwrap();
        let found = list(proc.path(), 0).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [&7, &8]);
        assert_eq!(found[&8], proc.path().join("300/ns/net"));
    }

    #[test]
    fn a_name_goes_before_a_process_and_must_be_of_a_namespace() {
        let proc = tempfile::tempdir().unwrap();
        let names = proc.path().join("1/root/run/netns");
        fs::create_dir_all(&names).unwrap();
        fs::write(names.join("pod"), "").unwrap();
        let file = fs::metadata(names.join("pod")).unwrap();
        fs::create_dir_all(proc.path().join("1/ns")).unwrap();
        symlink(format!("net:[{}]", file.ino()), proc.path().join("1/ns/net")).unwrap();
        let expected = BTreeMap::from([(file.ino(), names.join("pod"))]);
        assert_eq!(list(proc.path(), file.dev()).unwrap(), expected);
        let expected = BTreeMap::from([(file.ino(), proc.path().join("1/ns/net"))]);
        assert_eq!(list(proc.path(), file.dev() + 1).unwrap(), expected);
    }
}
