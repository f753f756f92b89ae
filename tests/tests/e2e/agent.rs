//! The agent under test: `sockeye run` in the node's network, attached to the tests' cgroup only.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    bpffs::Bpffs,
    cgroup::Cgroup,
    netns::Netns,
    process::{self, Place, Process},
    unique, wait,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::world::NODE;

/// From the start of the process to all that is known being in force.
const READY: Duration = Duration::from_secs(30);

/// An agent that can be stopped and started again; its maps and links stay pinned meanwhile.
pub(crate) struct Agent {
    process: Option<Process>,
    kubeconfig: PathBuf,
    log: PathBuf,
    socket: PathBuf,
    bpffs: Bpffs,
    cgroup: Arc<Cgroup>,
    netns: Arc<Netns>,
}

impl Agent {
    /// One that does not run yet.
    pub(crate) fn new(netns: Arc<Netns>, cgroup: Arc<Cgroup>, dir: &Path, kubeconfig: &Path) -> Result<Self> {
        let name = unique::name("agent");
        Ok(Self {
            process: None,
            kubeconfig: kubeconfig.to_owned(),
            log: dir.join(format!("{name}.log")),
            socket: dir.join(format!("{name}.sock")),
            bpffs: Bpffs::new()?,
            cgroup,
            netns,
        })
    }

    /// Starts it.
    pub(crate) fn start(&mut self) -> Result<()> {
        let mut command = self.command(&["run"])?;
        let log = File::options().create(true).append(true).open(&self.log).context("the agent's log")?;
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg("--legacy-endpoints")
            .arg(format!("--node-name={NODE}"))
            .arg(format!("--cgroup={}", self.cgroup.path().display()))
            .arg("--devices=none")
            .arg("--log=info,lb_userspace=debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("the agent's log")?)
            .stderr(log);
        let place = Place { netns: Some(&self.netns), cgroup: None };
        self.process = Some(Process::spawn("the agent", command, place)?);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub(crate) fn wait_ready(&mut self) -> Result<()> {
        wait::until("the agent to be ready", READY, || {
            let process = self.process.as_mut().context("it was not started")?;
            ensure!(process.try_wait()?.is_none(), "it ended");
            Ok((self.status()?["state"] == "ready").then_some(()))
        })
        .with_context(|| self.describe())
    }

    /// Waits until its status holds something.
    pub(crate) fn wait_status(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Result<()> {
        wait::until(&format!("the agent's status: {what}"), READY, || {
            Ok(condition(&self.status()?).then_some(()))
        })
        .with_context(|| self.describe())
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Sends it a signal.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.as_mut().context("the agent does not run")?.signal(signal)
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.process.as_mut().context("the agent was not started")?.try_wait()
    }

    /// `sockeye status -o json`.
    pub(crate) fn status(&self) -> Result<Value> {
        self.json(&["status"])
    }

    /// The document that a command of `sockeye` prints.
    pub(crate) fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.command(args)?;
        command.args(["-o", "json"]);
        let place = Place { netns: Some(&self.netns), cgroup: None };
        let finished = process::run(&format!("sockeye {}", args.join(" ")), command, place, wait::SOON)?;
        serde_json::from_str(&finished.stdout)
            .with_context(|| format!("{}{}", finished.stdout, finished.stderr))
    }

    /// What it logged.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of its log, to be read with a failure.
    pub(crate) fn describe(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        format!("{} ends in:\n{}", self.log.display(), lines[lines.len().saturating_sub(40)..].join("\n"))
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(process::program("sockeye")?);
        command
            .args(args)
            .arg(format!("--bpffs={}", self.bpffs.pin_path().display()))
            .arg(format!("--socket={}", self.socket.display()));
        Ok(command)
    }
}
