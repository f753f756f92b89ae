//! The command line: one file for each verb.
//!
//! Exit codes: 0 fine, 1 a negative answer (no agent runs, or it is not ready), 2 an error, which is one line on
//! standard error. A reader that goes away (`sockeye service list | head -1`) is no error.

mod backend;
mod cleanup;
mod load;
mod run;
mod service;
mod status;
mod version;

use std::{io, process::ExitCode};

use anyhow::Context as _;
use clap::{Arg, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use crate::output::remark;

/// Load balancing of Kubernetes Services at the socket: a node agent that replaces kube-proxy.
#[derive(Debug, Parser)]
#[command(name = "sockeye", version = crate::version::VERSION, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the node agent
    Run(run::Flags),
    /// Load and attach the programs with empty tables
    Load(load::Flags),
    /// Tell how the agent is, and what is in the kernel
    Status(status::Flags),
    /// Look at Services
    Service(service::Flags),
    /// Look at backends
    Backend(backend::Flags),
    /// Remove everything that Sockeye left in the kernel
    Cleanup(cleanup::Flags),
    /// Tell what this binary is
    Version(version::Flags),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// A negative answer: exit code 1.
    No,
}

/// Parses the arguments, does what they say, and gives the exit code.
pub fn main() -> ExitCode {
    let matches = without_empty_variables(Cli::command()).get_matches();
    let Cli { verb } = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let done = match verb {
        Verb::Run(flags) => run::run(flags),
        Verb::Load(flags) => load::run(flags),
        Verb::Status(flags) => status::run(flags),
        Verb::Service(flags) => service::run(flags),
        Verb::Backend(flags) => backend::run(flags),
        Verb::Cleanup(flags) => cleanup::run(flags),
        Verb::Version(flags) => version::run(flags),
    };
    match done {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::No) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            remark(&format!("sockeye: {}", one_line(&error)));
            ExitCode::from(2)
        }
    }
}

/// An empty variable counts as absent, so that a template may set one to nothing.
fn without_empty_variables(command: Command) -> Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(None) } else { arg })
        .mut_subcommands(without_empty_variables)
}

/// The error and its causes.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// A runtime on this thread: one task writes, and the others wait most of the time.
fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("starting the async runtime")
}

#[cfg(test)]
mod tests;
