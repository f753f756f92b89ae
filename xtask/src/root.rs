//! How what needs root gets it: cargo builds as the user, and only the built binary runs as root.

use std::{
    io::{IsTerminal as _, stdin},
    process::{Command, Stdio},
};

use anyhow::bail;

/// Where root comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// This process is root.
    Already,
    /// Through sudo.
    Sudo,
}

impl Root {
    /// Finds a way, or says in one line that there is none.
    pub(crate) fn find(task: &str) -> anyhow::Result<Self> {
        if nix::unistd::geteuid().is_root() {
            return Ok(Self::Already);
        }
        let sudo = |arguments: &[&str]| {
            let quiet = Stdio::null;
            Command::new("sudo").args(arguments).stdin(quiet()).stdout(quiet()).stderr(quiet()).status()
        };
        match sudo(&["-n", "true"]) {
            Ok(status) if status.success() || stdin().is_terminal() => Ok(Self::Sudo),
            Ok(_) => bail!("{task} needs root: run it as root, or where sudo can ask for a password"),
            Err(_) => bail!("{task} needs root: run it as root or install sudo"),
        }
    }

    /// Makes cargo run what it built as root.
    pub(crate) fn runner(self, cargo: &mut Command) -> &mut Command {
        match self {
            Self::Already => cargo,
            Self::Sudo => {
                cargo.args(["--config", "target.'cfg(unix)'.runner = ['sudo', '--preserve-env', '--']"])
            }
        }
    }
}
