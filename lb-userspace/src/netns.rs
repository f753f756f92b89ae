//! The network namespaces of this machine: which there are, what each is known by, and work inside them.
//!
//! A namespace is found through the processes in it and through its names below `/run/netns`. Nothing of it is kept open
//! in between: an open descriptor would keep a pod's network alive after the pod. A thread that entered one ends there.
//!
//! The number of a namespace's inode is used again once the namespace is gone, so it says which is which only within one
//! listing. What identifies it is its cookie (`SO_NETNS_COOKIE`, kernel 5.14).

mod list;
mod source;

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use lb_common::namespace::NamespaceAddresses;
use nix::sched::{CloneFlags, setns};
use tracing::debug;

use crate::kernel::netns_cookie;

/// The file by which this process knows its own.
const OWN: &str = "/proc/self/ns/net";

/// A network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Namespace {
    /// The number that programs know it by.
    pub(crate) cookie: u64,
    /// Where its connections come from.
    pub(crate) addresses: NamespaceAddresses,
    /// Whether it is the agent's own: the host's.
    pub(crate) own: bool,
    /// A file that leads to it, as long as the process or the mount is there.
    path: PathBuf,
}

/// All network namespaces, the agent's own among them. One that vanishes meanwhile is left out.
pub(crate) fn look() -> io::Result<Vec<Namespace>> {
    let own = fs::metadata(OWN)?;
    let found = list::list(Path::new("/proc"), own.dev())?;
    on_a_thread(move || {
        let mut namespaces = Vec::with_capacity(found.len());
        for (inode, path) in found {
            match enter(&path, inode).and_then(|()| netns_cookie()) {
                Ok(cookie) => namespaces.push(Namespace {
                    cookie,
                    addresses: source::addresses(),
                    own: inode == own.ino(),
                    path,
                }),
                Err(error) => debug!(path = %path.display(), %error, "cannot enter a network namespace"),
            }
        }
        namespaces
    })
}

impl Namespace {
    /// Works inside it, on a thread of its own. Fails if it is not there any more.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_a_thread(|| {
            enter_any(&self.path)?;
            if netns_cookie()? != self.cookie {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            work()
        })?
    }
}

/// Enters the namespace that a file leads to, if it still is the one of this inode.
fn enter(path: &Path, inode: u64) -> io::Result<()> {
    let file = File::open(path)?;
    if file.metadata()?.ino() != inode {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    Ok(setns(file, CloneFlags::CLONE_NEWNET)?)
}

fn enter_any(path: &Path) -> io::Result<()> {
    Ok(setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?)
}

/// Runs on a thread that is thrown away afterwards.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other("a thread in another network namespace panicked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_among_them() {
        let Ok(cookie) = netns_cookie() else { panic!("this kernel has no cookies of network namespaces") };
        // Entering needs CAP_SYS_ADMIN even for the own one; without it none is listed.
        let own: Vec<_> = look().unwrap().into_iter().filter(|namespace| namespace.own).collect();
        assert!(own.iter().all(|namespace| namespace.cookie == cookie), "{own:?}");
        assert!(own.len() == 1 || !nix::unistd::geteuid().is_root(), "{own:?}");
        for namespace in own {
            assert_eq!(namespace.inside(netns_cookie).unwrap(), cookie);
            let other = Namespace { cookie: cookie + 1, ..namespace };
            assert_eq!(other.inside(netns_cookie).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
    }
}
