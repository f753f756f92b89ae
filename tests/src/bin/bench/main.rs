//! `./x bench`: measures on this machine what Sockeye costs and how fast it is, and writes `docs/benchmarks.md`.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::Parser;
use lb_common::outcome::{Outcome, Reason};
use lb_userspace::model::Change;

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
mod memory;
mod objects;
mod packets;
mod report;
mod sockets;
mod statistics;
mod yardstick;

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
/// The cluster that an agent's memory and its work with unchanged lists are stated for.
const MEDIUM: u32 = 10_000;

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
    /// What session affinity adds to a `connect()`, on a socket that has its storage; in nanoseconds.
    affinity: f64,
    bulk: Bulk,
    single: Single,
    wide: Single,
    /// Unchanged lists, in milliseconds.
    unchanged: f64,
    /// The agent's resident set, in megabytes.
    resident: f64,
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

    if std::env::var_os("ONLY").is_some() {
        for services in [SMALL, LARGE] {
            let costs = packets::measure(&corner, services, rounds / 10)?;
            say(&format!("{services}: {costs:#?}"));
        }
        return Ok(());
    }
    say("connect(), 10 services");
    let outside = [Outcome::ConnectTranslated.number(), Reason::NotAService.number()];
    let connect =
        |lists, targets: &[Targets], outcomes: &[u32]| connect(&corner, lists, rounds, targets, outcomes);
    let small = connect(objects::initial(SMALL), &[Targets::of(SMALL)], &outside)?;
    say("connect(), session affinity");
    let affine = objects::initial_affine(2 * SMALL, SMALL);
    let affine = connect(affine, &[Targets::of_two_kinds(SMALL)], &[Outcome::ConnectTranslated.number()])?;
    say("connect(), 50,000 services");
    let targets = [Targets::of(LARGE).first(SMALL), Targets::of(LARGE)];
    let large = connect(objects::initial(LARGE), &targets, &outside)?;
    say("50,000 services from objects to maps");
    let bulk = changes::bulk(&corner, LARGE, if options.quick { 1 } else { 5 })?;
    say("one endpoint of 50,000 services");
    let single = changes::single(&corner, LARGE, 100_000 / share)?;
    say("one endpoint of a service with 1,000");
    let wide = changes::wide(&corner, 10_000 / share)?;
    say("10,000 services: unchanged lists, and an agent's memory");
    let unchanged = changes::unchanged(&corner, MEDIUM, 20 / share.min(4))?;
    let resident = memory::resident(&corner, MEDIUM)?;

    let [small] = small.try_into().ok().context("one row of figures")?;
    let [affine] = affine.try_into().ok().context("one row of figures")?;
    let [large_hot, large_cold] = large.try_into().ok().context("two rows of figures")?;
    let machine = machine::describe();
    let results = Results {
        machine,
        rounds,
        small,
        large_hot,
        large_cold,
        affinity: affine.again.between,
        bulk,
        single,
        wide,
        unchanged,
        resident,
    };
    say(&format!("\n{}", report::tables(&results)));
    if let Some(path) = &options.output {
        fs::write(path, report::document(&results)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Measures `connect()` while a cluster is in force; one row for each set of targets. Nothing but these outcomes may be
/// counted.
fn connect(
    corner: &Corner,
    lists: Vec<Change>,
    rounds: usize,
    targets: &[Targets],
    outcomes: &[u32],
) -> anyhow::Result<Vec<Figures>> {
    let mut datapath = Datapath::new(corner)?;
    datapath.serve(lists)?;
    datapath.attach()?;
    let figures = targets
        .iter()
        .map(|targets| corner.netns.run(|| connect::measure(corner, targets, rounds)))
        .collect::<anyhow::Result<_>>()?;
    prove(&datapath, outcomes)?;
    datapath.remove(corner)?;
    Ok(figures)
}

/// What was measured is what the table says: translated or passed on, and nothing else happened.
fn prove(datapath: &Datapath, expected: &[u32]) -> anyhow::Result<()> {
    let counts = datapath.kernel.outcomes()?;
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
