//! `./x demo`: a node, its pods, a second node and a client outside, on one machine, served by Sockeye.
//!
//! It tells what was asked, who answered and what the kernel's maps hold, and fails if an answer is not the expected one:
//! the demo is a test too. What it made is gone when it ends, whatever ends it.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use lb_tests::{
    agent::Installation,
    cluster::Cluster,
    manifests::Manifests,
    topology::Topology,
    unique::ensure_root,
    wait::{catch_interrupts, for_interrupt, interrupted},
};

use crate::{stage::Stage, teller::Teller};

mod acts;
mod maps;
mod stage;
mod teller;

/// Shows what Sockeye does, on a cluster of network namespaces
#[derive(Parser)]
struct Options {
    /// At the end, leave everything running until Ctrl-C, and print how to enter it
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let Options { keep } = Options::parse();
    let teller = Teller::new(io::stdout().is_terminal());
    match run(keep, &teller) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupted() => {
            // Nothing is left to tell if the terminal is gone as well.
            drop(writeln!(io::stderr(), "\ninterrupted; everything is removed"));
            ExitCode::from(130)
        }
        Err(error) => {
            drop(writeln!(io::stderr(), "\ndemo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(keep: bool, teller: &Teller) -> Result<()> {
    ensure_root()?;
    catch_interrupts()?;
    let topology = Topology::new().context("building the network")?;
    let manifests = Manifests::examples()?;
    let sockeye = Installation::on(&topology)?;
    let mut stage = Stage { tell: teller, cluster: Cluster::new(&topology, &sockeye, &manifests)? };
    acts::all(&mut stage).map_err(|error| stage.cluster.with_log(error))?;
    if keep {
        stage.tell_how_to_enter()?;
        for_interrupt();
        teller.line("")?;
    }
    acts::remove(&mut stage)
}
