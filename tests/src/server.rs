//! Small backends: each tells its name and which client it sees, over HTTP (TCP) and UDP, in both families.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::Protocol;

use crate::process::{Place, Process, program};

/// What the program `backend` prints once it listens everywhere.
pub const LISTENING: &str = "listening";

/// A backend process.
#[derive(Debug)]
pub struct Server {
    process: Process,
    name: String,
}

impl Server {
    /// Starts one and waits until it listens on all ports, on every address of both families.
    pub fn start(name: &str, place: Place<'_>, ports: &[(Protocol, u16)]) -> Result<Self> {
        let mut command = Command::new(program("backend")?);
        command.args(["--name", name]).stdin(Stdio::null()).stdout(Stdio::piped());
        for (protocol, port) in ports {
            command.arg(format!("{}/{port}", protocol.name().to_lowercase()));
        }
        let mut process = Process::spawn(name, command, place)?;
        let output = process.child().stdout.take().context("a server has no standard output")?;
        let mut line = String::new();
        // It says one line or ends: no deadline is needed.
        BufReader::new(output).read_line(&mut line).context("reading what a server says")?;
        ensure!(line.trim() == LISTENING, "server {name} did not start; see its message above");
        Ok(Self { process, name: name.to_owned() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends it, as a crashing pod would: its sockets are gone when this returns.
    pub fn stop(mut self) -> Result<()> {
        self.process.kill()
    }
}
