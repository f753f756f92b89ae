//! `./x setup`: `./x` has installed everything by the time this runs; shows what is there.

use crate::command::{output, program, say};

#[derive(clap::Args)]
pub(crate) struct Options {}

/// Each tool, how it tells its version, and what it is for.
const TOOLS: [(&str, &[&str], &str); 11] = [
    ("rustc", &["--version"], "builds everything, the eBPF programs too"),
    ("cargo-clippy", &["--version"], "lint"),
    ("rustfmt", &["--version"], "lint"),
    ("bpf-linker", &["--version"], "links the eBPF programs"),
    ("cc", &["--version"], "links the agent"),
    ("ip", &["-Version"], "tests and demo: namespaces"),
    ("bpftool", &["version"], "tests and demo: reads the pinned maps"),
    ("nft", &["--version"], "tests: what else a node has"),
    ("go", &["version"], "e2e: builds the control plane"),
    ("cargo-deny", &["--version"], "lint: licences, sources, duplicates"),
    ("typos", &["--version"], "lint: spelling"),
];

pub(crate) fn run(Options {}: Options) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for (tool, arguments, purpose) in TOOLS {
        match output(program(tool).args(arguments)) {
            Ok(text) => say(&format!("{tool:<13}{:<50} {purpose}", text.lines().next().unwrap_or_default())),
            Err(error) => {
                say(&format!("{tool:<13}{error:#}"));
                missing.push(tool);
            }
        }
    }
    anyhow::ensure!(missing.is_empty(), "not usable: {}", missing.join(", "));
    Ok(())
}
