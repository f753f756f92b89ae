//! Sockeye's tasks: one module each, with its `Options` and its `run`.
//!
//! Calls cargo, the built binaries and the kernel's tools; knows none of the other crates, so that it builds in
//! seconds. `./x` installs what a task needs before it comes here.

use std::process::ExitCode;

use clap::Parser;

mod bench;
mod build;
mod command;
mod demo;
mod e2e;
mod fuzz;
mod image;
mod lint;
mod load;
mod root;
mod run;
mod setup;
mod test;
mod tidy;

/// Builds, runs, tests and measures Sockeye
#[derive(Parser)]
#[command(name = "x", bin_name = "./x", max_term_width = 100, disable_help_subcommand = true)]
enum Task {
    /// Install what all tasks need, and show what is there
    Setup(setup::Options),
    /// Build the agent with its eBPF programs
    Build(build::Options),
    /// Load the programs and attach them (`sockeye load`)
    Load(load::Options),
    /// Run the agent (`sockeye run`)
    Run(run::Options),
    /// See it work: two nodes, pods and a client on this machine, in less than a minute
    Demo(demo::Options),
    /// Run the unit tests, and as root the tests against this kernel
    Test(test::Options),
    /// Run the tests against a real API server
    E2e(e2e::Options),
    /// Let libFuzzer look for inputs that break the agent
    Fuzz(fuzz::Options),
    /// Measure, and write docs/benchmarks.md
    Bench(bench::Options),
    /// Check format, lints, house rules, licences and spelling
    Lint(lint::Options),
    /// Build the static binary and lay out the context of the container image
    Image(image::Options),
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::Setup(options) => setup::run(options),
        Task::Build(options) => build::run(options),
        Task::Load(options) => load::run(options),
        Task::Run(options) => run::run(options),
        Task::Demo(options) => demo::run(options),
        Task::Test(options) => test::run(options),
        Task::E2e(options) => e2e::run(options),
        Task::Fuzz(options) => fuzz::run(options),
        Task::Bench(options) => bench::run(options),
        Task::Lint(options) => lint::run(options),
        Task::Image(options) => image::run(options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            command::say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
