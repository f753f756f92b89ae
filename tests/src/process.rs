//! Child processes in a namespace and a cgroup: killed and reaped when their guard is dropped.

use std::{
    env,
    io::{Read as _, Seek as _},
    os::{
        fd::{AsFd as _, AsRawFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{self, Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    cgroup::Cgroup,
    netns::{self, Netns},
    unique, wait,
};

/// Where a process lives; nothing given: where the test lives.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// The network namespace.
    pub netns: Option<&'a Netns>,
    /// The cgroup.
    pub cgroup: Option<&'a Cgroup>,
}

/// A running process.
///
/// The kernel kills it too when the thread that started it ends, so that a killed test leaves nothing running: start
/// processes on the thread that keeps the guard.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a command in a place; `what` names it in messages.
    ///
    /// It gets a process group of its own: Ctrl-C at the terminal reaches the test, which then ends its children in order.
    pub fn spawn(what: &str, mut command: Command, place: Place<'_>) -> Result<Self> {
        unique::ensure_root()?;
        let door = place.cgroup.map(Cgroup::door).transpose()?;
        let (door_fd, netns_fd) =
            (door.as_ref().map(AsRawFd::as_raw_fd), place.netns.map(|netns| netns.as_fd().as_raw_fd()));
        let parent = process::id();
        command.process_group(0);
        // SAFETY: between fork and exec only plain system calls on descriptors that stay open; no allocation, no lock.
        unsafe { command.pre_exec(move || settle(door_fd, netns_fd, parent)) };
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("starting {what} ({})", program.display()))?;
        Ok(Self { what: what.to_owned(), child, ended: None })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The pipes that the command was given.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("waiting for {}", self.what))?;
        }
        Ok(self.ended)
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.what);
        wait::until(&what, limit, || self.try_wait())
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        // Not reaped yet, so the number is still this process's.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("sending {signal} to {}", self.what))
    }

    /// Ends it at once, as a crash would (SIGKILL).
    pub fn kill(&mut self) -> Result<()> {
        if self.try_wait()?.is_none() {
            self.child.kill().with_context(|| format!("killing {}", self.what))?;
            self.ended = Some(self.child.wait().with_context(|| format!("reaping {}", self.what))?);
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            unique::report_leak(&error);
        }
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// The standard output of a command that succeeded.
    pub fn success(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        bail!("{}; it said:\n{}{}", self.status, self.stdout, self.stderr)
    }
}

/// Runs a command to its end.
pub fn run(what: &str, mut command: Command, place: Place<'_>, limit: Duration) -> Result<Finished> {
    // Files, not pipes: nobody needs to read while it runs, and a child that outlives it cannot block us.
    let mut stdout = tempfile::tempfile().context("making a file for the standard output")?;
    let mut stderr = tempfile::tempfile().context("making a file for the standard error")?;
    command.stdin(Stdio::null());
    command.stdout(stdout.try_clone().context("sharing a file")?);
    command.stderr(stderr.try_clone().context("sharing a file")?);
    let mut process = Process::spawn(what, command, place)?;
    let ended = process.wait(limit);
    let mut texts = [String::new(), String::new()];
    for (file, text) in [&mut stdout, &mut stderr].into_iter().zip(&mut texts) {
        file.rewind().context("rewinding a file")?;
        file.read_to_string(text).with_context(|| format!("reading what {what} said"))?;
    }
    let [stdout, stderr] = texts;
    match ended {
        Ok(status) => Ok(Finished { status, stdout, stderr }),
        Err(error) => Err(error.context(format!("{what} said:\n{stdout}{stderr}"))),
    }
}

/// The path of a program that cargo built beside this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("finding the running program")?;
    // A test is in target/<profile>/deps, other programs are in target/<profile>.
    let found =
        own.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("no program {name} beside {}: build it first (./x build)", own.display()))
}

/// The resident set of a process, in megabytes (`VmRSS` of `proc_pid_status(5)`).
pub fn memory(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB"));
    let kilobytes: f64 = kilobytes.with_context(|| format!("no VmRSS in {path}"))?.trim().parse()?;
    Ok(kilobytes / 1024.0)
}

/// Moves the process that is about to become the command to its place.
///
/// The cgroup first: it is a path in the file system that the namespace does not change, but a socket belongs to the
/// cgroup that its process was in when it was made.
fn settle(door: Option<i32>, netns: Option<i32>, parent: u32) -> std::io::Result<()> {
    if let Some(door) = door {
        // SAFETY: one byte of a static string.
        if unsafe { libc::write(door, c"0".as_ptr().cast(), 1) } != 1 {
            return Err(std::io::Error::last_os_error());
        }
    }
    if let Some(netns) = netns {
        netns::enter(netns)?;
    }
    // SAFETY: no memory involved.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // The parent may have died before the line above; its death would go unnoticed then.
    // SAFETY: no memory involved, cannot fail.
    if unsafe { libc::getppid() }.cast_unsigned() != parent {
        return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_process_lives_in_its_namespace_and_cgroup() {
        let (netns, cgroup) = (Netns::new("process").unwrap(), Cgroup::new("process").unwrap());
        let place = Place { netns: Some(&netns), cgroup: Some(&cgroup) };
        let script = "readlink /proc/self/ns/net; grep ^0:: /proc/self/cgroup";
        let said = run("a look", shell(script), place, wait::SOON).unwrap().success().unwrap();
        let inside = netns.run(|| Ok(std::fs::read_link("/proc/thread-self/ns/net")?)).unwrap();
        let (namespace, group) = said.trim().split_once('\n').unwrap();
        assert_eq!(namespace, inside.to_str().unwrap());
        assert_eq!(group.rsplit('/').next(), cgroup.path().file_name().unwrap().to_str());
    }

    #[test]
    fn the_guard_ends_it() {
        let process = Process::spawn("sleep", shell("exec sleep 1000"), Place::default()).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", process.id()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }

    #[test]
    fn a_command_that_takes_too_long_says_what_it_said() {
        let limit = Duration::from_millis(300);
        let error = run("sleeper", shell("echo yawn; exec sleep 1000"), Place::default(), limit).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("yawn") && text.contains("sleeper to end"), "{text}");
    }

    #[test]
    fn a_failure_carries_the_output() {
        let finished = run("sh", shell("echo no >&2; exit 3"), Place::default(), wait::SOON).unwrap();
        assert!(finished.success().unwrap_err().to_string().contains("no"));
    }
}
