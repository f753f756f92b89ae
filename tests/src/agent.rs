//! The agent under test: the program `sockeye`, as an operator runs it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_userspace::status::{ProblemStatus, Request, ServiceList, State, Status, client::ask};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    bpffs::Bpffs,
    process::{self, Finished, Place, Process, program},
    topology::{NODE_DEVICE, Topology},
    wait,
};

/// An installation of Sockeye on node-a: the pin path, the socket and the log that one agent after the other uses.
///
/// Dropped after its agents and before the topology: then nothing is attached any more.
#[derive(Debug)]
pub struct Installation<'a> {
    place: Place<'a>,
    cgroup: PathBuf,
    run: TempDir,
    bpffs: Bpffs,
}

/// A running agent; killed on drop, and its log printed if the test fails.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    log: PathBuf,
}

impl<'a> Installation<'a> {
    /// A fresh one on node-a: its host's network, and the cgroup that holds the node and its pods.
    pub fn on(topology: &'a Topology) -> Result<Self> {
        Self::new(topology.node_a.place(), topology.cgroup.path())
    }

    /// A fresh one elsewhere.
    pub fn new(place: Place<'a>, cgroup: &Path) -> Result<Self> {
        let run = tempfile::Builder::new().prefix("sockeye-run-").tempdir().context("making a folder")?;
        Ok(Self { place, cgroup: cgroup.to_owned(), run, bpffs: Bpffs::new()? })
    }

    /// Where it pins: `--bpffs`.
    pub fn pin_path(&self) -> PathBuf {
        self.bpffs.pin_path()
    }

    /// Where a map is pinned.
    pub fn map_path(&self, map: &str) -> PathBuf {
        self.pin_path().join(map)
    }

    /// The cgroup that it serves: `--cgroup`.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Where its agent answers: `--socket`.
    pub fn socket(&self) -> PathBuf {
        self.run.path().join("agent.sock")
    }

    /// `sockeye`, with a subcommand and the flags that name this installation.
    pub fn command(&self, subcommand: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("sockeye")?);
        command.args(subcommand).arg("--bpffs").arg(self.pin_path()).arg("--socket").arg(self.socket());
        Ok(command)
    }

    /// `sockeye run` on a folder of manifests.
    pub fn run_command(&self, manifests: &Path) -> Result<Command> {
        let mut command = self.command(&["run"])?;
        command.arg("--manifests").arg(manifests).arg("--cgroup").arg(&self.cgroup);
        command.args(["--node-name", "node-a", "--devices", NODE_DEVICE]);
        Ok(command)
    }

    /// Starts a command that runs an agent; does not wait for it.
    pub fn spawn(&self, mut command: Command) -> Result<Agent> {
        let (file, log) = tempfile::Builder::new()
            .prefix("agent-")
            .suffix(".log")
            .tempfile_in(self.run.path())
            .and_then(|file| file.keep().map_err(Into::into))
            .context("making a file for the agent's log")?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Ok(Agent { process: Process::spawn("sockeye run", command, self.place)?, log })
    }

    /// Starts an agent on a folder of manifests, and waits until all of it is in force.
    pub fn start(&self, manifests: &Path) -> Result<Agent> {
        self.start_with(manifests, &[])
    }

    /// The same, with further flags.
    pub fn start_with(&self, manifests: &Path, flags: &[&str]) -> Result<Agent> {
        let mut command = self.run_command(manifests)?;
        command.args(flags);
        let mut agent = self.spawn(command)?;
        self.wait_ready(&mut agent)?;
        Ok(agent)
    }

    /// Waits until an agent says that all initial state is in force.
    pub fn wait_ready(&self, agent: &mut Agent) -> Result<()> {
        let pid = agent.id();
        let ready = wait::until("the agent to be ready", wait::SOON, || {
            if let Some(status) = agent.process.try_wait()? {
                return Ok(Some(Err(status)));
            }
            let status = self.status()?;
            // While a predecessor ends, it may still be the one that answers.
            let ready = status.state == State::Ready && status.agent.is_some_and(|agent| agent.pid == pid);
            Ok(ready.then_some(Ok(())))
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("the agent ended: {status}\n{}", agent.log()?),
            Err(error) => Err(error.context(format!("the agent's log:\n{}", agent.log()?))),
        }
    }

    /// Runs `sockeye` with a subcommand and the flags that name this installation.
    pub fn sockeye(&self, subcommand: &[&str]) -> Result<Finished> {
        let what = format!("sockeye {}", subcommand.join(" "));
        process::run(&what, self.command(subcommand)?, self.place, wait::SOON)
    }

    /// The document that a subcommand prints with `-o json`. Its exit code is not looked at: `status` tells of trouble
    /// with it, and with the document.
    pub fn json(&self, subcommand: &[&str]) -> Result<Value> {
        let finished = self.sockeye(&[subcommand, &["-o", "json"]].concat())?;
        serde_json::from_str(&finished.stdout).with_context(|| {
            format!("sockeye {} said:\n{}{}", subcommand.join(" "), finished.stdout, finished.stderr)
        })
    }

    /// What the agent says of itself; asked on its socket.
    pub fn status(&self) -> Result<Status> {
        ask(&self.socket(), Request::Status).context("asking the agent for its status")
    }

    /// The Services as the agent sees them; asked on its socket.
    pub fn services(&self) -> Result<ServiceList> {
        ask(&self.socket(), Request::Services).context("asking the agent for its services")
    }

    /// Waits until the status lists a problem whose line contains all these words; gives the line.
    pub fn wait_problem(&self, words: &[&str]) -> Result<String> {
        wait::until(&format!("a problem with the words {words:?}"), wait::SOON, || {
            let lines: Vec<_> = self.status()?.problems.iter().map(problem_line).collect();
            let found = lines.iter().find(|line| words.iter().all(|word| line.contains(word)));
            Ok(Some(found.with_context(|| format!("the problems are {lines:#?}"))?.clone()))
        })
    }

    /// Waits until the status lists no problem whose line contains all these words.
    pub fn wait_no_problem_with(&self, words: &[&str]) -> Result<()> {
        wait::until(&format!("no problem with the words {words:?}"), wait::SOON, || {
            let lines: Vec<_> = self.status()?.problems.iter().map(problem_line).collect();
            ensure!(!lines.iter().any(|line| words.iter().all(|word| line.contains(word))), "{lines:#?}");
            Ok(Some(()))
        })
    }

    /// Waits until the status lists no problem.
    pub fn wait_no_problem(&self) -> Result<()> {
        wait::until("all problems to be gone", wait::SOON, || {
            let problems = self.status()?.problems;
            ensure!(problems.is_empty(), "the problems are {problems:#?}");
            Ok(Some(()))
        })
    }
}

/// `object: field: what`.
fn problem_line(problem: &ProblemStatus) -> String {
    let ProblemStatus { object, field, what } = problem;
    if field.is_empty() { format!("{object}: {what}") } else { format!("{object}: {field}: {what}") }
}

impl Agent {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("reading {}", self.log.display()))
    }

    /// The file that it logs to.
    pub fn log_file(&self) -> Result<File> {
        File::open(&self.log).with_context(|| format!("opening {}", self.log.display()))
    }

    /// Ends it as a crash would (SIGKILL).
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.process.terminate(wait::SOON)
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.process.wait(wait::SOON)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Ok(log) = self.log()
        {
            use std::io::Write as _;
            // Straight to the descriptor: the print macros may panic, and we are panicking already.
            drop(writeln!(std::io::stderr(), "log of agent {}:\n{log}", self.process.id()));
        }
    }
}
