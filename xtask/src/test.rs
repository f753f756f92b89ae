//! `./x test`: everything that needs no cluster, first without root, then against this kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _, stdout},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{
    command::{cargo, check, line, root_dir, say},
    root::Root,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the tests that need no root
    #[arg(long)]
    unit: bool,
    /// Arguments of the test binaries, such as a part of a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Where the tests record what they skip, and why (`lb_tests::require`).
const SKIPS: &str = "target/skipped-tests";
/// The variable that tells them.
const SKIPS_VARIABLE: &str = "SOCKEYE_TEST_SKIPS";

/// What the closing lines of the test binaries add up to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: usize,
}

pub(crate) fn run(Options { unit, arguments }: Options) -> anyhow::Result<()> {
    // Found out first, so that nobody waits for the build to hear of it.
    let root = if unit { None } else { Some(Root::find("test")?) };
    let skips = root_dir().join(SKIPS);
    fs::create_dir_all(root_dir().join("target")).context("cannot create target")?;
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;

    let mut tally = Tally::default();
    let mut failed = Vec::new();
    let mut commands = vec![cargo_test(None)];
    if let Some(root) = root {
        check(cargo().args(["build", "--package", "lb-userspace", "--bin", "sockeye"]))?;
        commands.push(cargo_test(Some(root)));
    }
    for mut command in commands {
        command.env(SKIPS_VARIABLE, &skips).arg("--").args(&arguments);
        if !tally.count(&mut command)? {
            failed.push(line(&command));
        }
    }

    let skipped = fs::read_to_string(&skips).with_context(|| format!("cannot read {}", skips.display()))?;
    say(&tally.summary(&skipped));
    if !failed.is_empty() {
        bail!("failed: {}", failed.join("; "));
    }
    Ok(())
}

/// All test binaries run, whatever fails on the way.
fn cargo_test(root: Option<Root>) -> Command {
    let mut command = cargo();
    if let Some(root) = root {
        root.runner(&mut command);
    }
    command.args(["test", "--no-fail-fast"]);
    if root.is_some() {
        command.args(["--package", "lb-tests"]);
    }
    command
}

impl Tally {
    /// Runs a test command, passes on what it prints, and adds up the results. False: it failed.
    fn count(&mut self, command: &mut Command) -> anyhow::Result<bool> {
        let context = |command: &Command| format!("cannot run: {}", line(command));
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| context(command))?;
        let output = child.stdout.take().context("no output of the child")?;
        for text in BufReader::new(output).split(b'\n') {
            let text = text.with_context(|| context(command))?;
            self.add(&String::from_utf8_lossy(&text));
            let mut stdout = stdout().lock();
            stdout.write_all(&text).and_then(|()| stdout.write_all(b"\n")).context("cannot print")?;
        }
        Ok(child.wait().with_context(|| context(command))?.success())
    }

    /// Adds the closing line of a test binary: `test result: ok. 3 passed; 0 failed; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let number = |word: &str| {
            let before = result.split(word).next().unwrap_or_default().trim_end();
            before.rsplit(' ').next().and_then(|number| number.parse::<usize>().ok()).unwrap_or(0)
        };
        self.passed += number("passed");
        self.failed += number("failed");
    }

    /// What a person wants to know at the end; a skipped test passes without having run.
    fn summary(&self, skips: &str) -> String {
        let skipped = skips.lines().count();
        let run = (self.passed + self.failed).saturating_sub(skipped);
        let mut summary = format!("test: {run} run, {} failed, {skipped} skipped", self.failed);
        for skip in skips.lines() {
            summary.push_str("\n  ");
            summary.push_str(skip.trim_start_matches("SKIPPED "));
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_add_up() {
        let mut tally = Tally::default();
        tally.add(
            "test result: ok. 20 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.3s",
        );
        tally.add("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured");
        tally.add("test tests::result ... ok");
        assert_eq!(tally, Tally { passed: 23, failed: 2 });
    }

    #[test]
    fn a_skip_is_not_a_run_and_says_why() {
        let tally = Tally { passed: 5, failed: 0 };
        assert_eq!(tally.summary(""), "test: 5 run, 0 failed, 0 skipped");
        assert_eq!(
            tally.summary("SKIPPED tcx: tcx needs kernel 6.6, this is 6.1\n"),
            "test: 4 run, 0 failed, 1 skipped\n  tcx: tcx needs kernel 6.6, this is 6.1"
        );
    }
}
