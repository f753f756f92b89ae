//! `./x bench`: measures on this machine what Sockeye costs and how fast it is, and writes `docs/benchmarks.md`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::Parser;
use lb_common::outcome::{Outcome, Reason};

use crate::{
    changes::{Bulk, Single},
    connect::{Figures, Targets},
    datapath::Datapath,
    machine::Corner,
};

mod changes;
mod connect;
mod datapath;
mod machine;
mod objects;
mod report;
mod sockets;
mod statistics;

/// Measures what Sockeye costs on this machine
#[derive(Parser)]
struct Options {
    /// A tenth of the rounds
    #[arg(long)]
    quick: bool,
    /// Where the report goes, besides the terminal
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The sizes of clusters that are compared.
const SMALL: u32 = 10;
const LARGE: u32 = 50_000;

/// All that was measured.
struct Results {
    machine: String,
    /// Rounds of the measurements of `connect()`.
    rounds: usize,
    small: Figures,
    /// Connections to one service of the large cluster, again and again.
    large_hot: Figures,
    /// Connections to each service of the large cluster in turn: nothing is in the processor's caches.
    large_cold: Figures,
    bulk: Bulk,
    single: Single,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let share = if options.quick { 10 } else { 1 };
    let rounds = 2_000 / share;
    let corner = Corner::new()?;
    machine::claim_a_cpu()?;

    say("connect(), 10 services");
    let small = connect(&corner, SMALL, rounds, &[Targets::of(SMALL)])?;
    say("connect(), 50,000 services");
    let large = connect(&corner, LARGE, rounds, &[Targets::of(LARGE).first(SMALL), Targets::of(LARGE)])?;
    say("50,000 services from objects to maps");
    let bulk = changes::bulk(&corner, LARGE, if options.quick { 1 } else { 5 })?;
    say("one endpoint of 50,000 services");
    let single = changes::single(&corner, LARGE, 100_000 / share)?;

    let [small] = small.try_into().ok().context("one row of figures")?;
    let [large_hot, large_cold] = large.try_into().ok().context("two rows of figures")?;
    let machine = machine::describe();
    let results = Results { machine, rounds, small, large_hot, large_cold, bulk, single };
    say(&format!("\n{}", report::tables(&results)));
    if let Some(path) = &options.output {
        fs::write(path, report::document(&results)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Measures `connect()` while a cluster of so many services is in force; one row for each set of targets.
fn connect(
    corner: &Corner,
    services: u32,
    rounds: usize,
    targets: &[Targets],
) -> anyhow::Result<Vec<Figures>> {
    let mut datapath = Datapath::new(corner)?;
    datapath.serve(services)?;
    datapath.attach()?;
    let figures = targets
        .iter()
        .map(|targets| corner.netns.run(|| connect::measure(corner, targets, rounds)))
        .collect::<anyhow::Result<_>>()?;
    prove(&datapath)?;
    datapath.remove(corner)?;
    Ok(figures)
}

/// What was measured is what the table says: translated or passed on, and nothing else happened.
fn prove(datapath: &Datapath) -> anyhow::Result<()> {
    let counts = datapath.kernel.outcomes()?;
    let expected = [Outcome::ConnectTranslated.number(), Reason::NotAService.number()];
    for (number, count) in (0_u32..).zip(counts) {
        ensure!(expected.contains(&number) == (count > 0), "outcome {number} was counted {count} times");
    }
    Ok(())
}

/// Tells whoever waits.
#[expect(clippy::print_stderr, reason = "the one place where the benchmark speaks")]
fn say(text: &str) {
    eprintln!("bench: {text}");
}
