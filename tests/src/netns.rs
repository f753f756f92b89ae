//! Network namespaces: one is a machine or a pod.
//!
//! A namespace has a name under `/run/netns`, so that `ip -n` and `nsenter --net=` find it. A thread that enters one is
//! thrown away afterwards: no thread of the test ever comes back from somewhere else.

use std::{
    fs::{self, DirBuilder, File},
    io::Write as _,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    },
    panic::resume_unwind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Once,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

use crate::unique;

mod offload;

const DIRECTORY: &str = "/run/netns";

/// A network namespace, removed on drop.
#[derive(Debug)]
pub struct Netns {
    // Before the name: the namespace ends with its last reference.
    file: File,
    name: Name,
}

/// The bind mount that gives a namespace its name.
#[derive(Debug)]
struct Name {
    path: PathBuf,
}

impl Netns {
    /// A new namespace with its loopback device up.
    ///
    /// IPv6 addresses are usable at once (no duplicate address detection), whatever the machine's defaults are.
    pub fn new(what: &str) -> Result<Self> {
        static SWEEP: Once = Once::new();
        unique::ensure_root()?;
        SWEEP.call_once(remove_abandoned);
        let name = Name::create(&unique::name(what))?;
        let file = File::open(&name.path).with_context(|| format!("opening {}", name.path.display()))?;
        let netns = Self { file, name };
        netns.set_sysctls(&[
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            // Loopback addresses and unprivileged ports behave as everywhere, whatever the machine's own values are.
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name that `ip -n` knows.
    pub fn name(&self) -> &str {
        self.name.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The file that `nsenter --net=` takes.
    pub fn path(&self) -> &Path {
        &self.name.path
    }

    /// Runs a closure inside the namespace, on a thread of its own.
    ///
    /// A child process spawned there lives in the namespace too, but dies with nobody to reap it: use
    /// [`crate::process::Process`] for those.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("entering {}", self.name()))?;
                inside()
            });
            entered.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs `ip` commands (iproute2), one a line, inside the namespace.
    pub fn ip(&self, commands: &str) -> Result<()> {
        let fd = self.file.as_raw_fd();
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only setns, a plain system call on a descriptor that stays open.
        unsafe { command.pre_exec(move || enter(fd)) };
        let mut child = command.spawn().context("starting ip: is iproute2 installed?")?;
        let mut input = child.stdin.take().context("ip has no standard input")?;
        // A failed command ends ip early; what it said is more telling than the broken pipe.
        let written = input.write_all(commands.trim().as_bytes()).and_then(|()| input.write_all(b"\n"));
        drop(input);
        let output = child.wait_with_output().context("waiting for ip")?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("ip in {}: {}\ncommands:\n{commands}", self.name(), message.trim());
        }
        written.context("writing to ip")
    }

    /// Sets kernel parameters of the namespace; keys as paths below `/proc/sys`, with slashes.
    pub fn set_sysctls(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in values {
                // /proc/sys/net shows the namespace of the thread that opens it.
                let path = Path::new("/proc/sys").join(key);
                fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }

    /// Makes a device compute checksums and cut packets itself, as if it were wired to a network card.
    pub fn switch_off_offloads(&self, device: &str) -> Result<()> {
        self.run(|| offload::switch_off(device))
    }

    /// Joins this namespace's new device with one of another namespace; both come up.
    pub fn join(&self, device: &str, other: &Self, other_device: &str) -> Result<()> {
        self.ip(&format!(
            "link add {device} type veth peer name {other_device} netns {}\nlink set {device} up",
            other.name()
        ))?;
        other.ip(&format!("link set {other_device} up"))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Moves the calling process into the namespace of an open descriptor; for `pre_exec`.
pub(crate) fn enter(fd: i32) -> std::io::Result<()> {
    // SAFETY: setns takes any number as a descriptor and refuses what is none.
    match unsafe { libc::setns(fd, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

impl Name {
    fn create(name: &str) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(DIRECTORY)
            .with_context(|| format!("creating {DIRECTORY}"))?;
        let path = Path::new(DIRECTORY).join(name);
        File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        let name = Self { path };
        let target = &name.path;
        let made = thread::scope(|scope| {
            let maker = scope.spawn(|| -> Result<()> {
                unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
                mount(Some("/proc/thread-self/ns/net"), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .with_context(|| format!("naming a network namespace {}", target.display()))
            });
            maker.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        made.map(|()| name)
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            unique::report_leak(&error);
        }
    }
}

/// Takes a namespace's name away. The namespace itself ends with its last process and socket.
fn remove(path: &Path) -> Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: it was never mounted.
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(error) => return Err(anyhow!(error).context(format!("unmounting {}", path.display()))),
    }
    fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
}

fn remove_abandoned() {
    for path in unique::abandoned(Path::new(DIRECTORY)) {
        // Another test process may sweep at the same moment: what is gone already is fine.
        drop(remove(&path));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_namespace_is_separate_and_ends_with_its_guard() {
        let netns = Netns::new("alone").unwrap();
        let path = netns.path().to_owned();
        let devices = netns.run(|| Ok(fs::read_to_string("/proc/thread-self/net/dev")?)).unwrap();
        assert!(devices.contains("lo:") && !devices.contains("eth0:"), "{devices}");
        drop(netns);
        assert!(!path.exists());
    }

    #[test]
    fn a_panic_inside_comes_out_and_the_name_goes() {
        let netns = Netns::new("panic").unwrap();
        let path = netns.path().to_owned();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            netns.run(|| -> Result<()> { panic!("inside") })
        }));
        assert!(caught.is_err());
        assert!(!path.exists());
    }

    #[test]
    fn a_veth_joins_two_namespaces_in_both_families() {
        let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
        a.join("eth0", &b, "eth0").unwrap();
        a.ip("addr add 10.0.0.1/24 dev eth0\naddr add fd00::1/64 dev eth0 nodad").unwrap();
        b.ip("addr add 10.0.0.2/24 dev eth0\naddr add fd00::2/64 dev eth0 nodad").unwrap();
        a.switch_off_offloads("eth0").unwrap();
        for ip in ["10.0.0.2", "fd00::2"] {
            let listener = b.run(|| Ok(TcpListener::bind((ip, 80))?)).unwrap();
            let stream = a.run(|| Ok(TcpStream::connect((ip, 80))?)).unwrap();
            let (_, client) = listener.accept().unwrap();
            assert_eq!(stream.local_addr().unwrap(), client);
        }
    }

    #[test]
    fn a_refused_ip_command_says_which() {
        let netns = Netns::new("ip").unwrap();
        let error = netns.ip("link set lo up\nlink set nosuch up").unwrap_err();
        assert!(format!("{error:#}").contains("Cannot find device \"nosuch\""), "{error:#}");
    }
}
