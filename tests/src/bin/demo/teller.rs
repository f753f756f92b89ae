//! What the audience sees: plain lines, with colours on a terminal.

use std::{
    cell::Cell,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Writes to the standard output.
#[derive(Debug)]
pub(crate) struct Teller {
    out: io::Stdout,
    colours: bool,
    acts: Cell<u32>,
}

impl Teller {
    pub(crate) fn new(colours: bool) -> Self {
        Self { out: io::stdout(), colours, acts: Cell::new(0) }
    }

    /// Begins an act: a number, a title, and the manifest that it is about.
    pub(crate) fn act(&self, title: &str, manifest: &str) -> Result<()> {
        self.acts.set(self.acts.get() + 1);
        let number = self.acts.get();
        let title = format!("{number:2}. {title}");
        let file =
            if manifest.is_empty() { String::new() } else { self.dim(&format!("examples/{manifest}")) };
        self.line("")?;
        self.line(format!("{}  {file}", self.bold(&format!("{title:<58}"))).trim_end())
    }

    /// A sentence or two below the title.
    pub(crate) fn note(&self, text: &str) -> Result<()> {
        for line in text.lines() {
            self.line(&format!("    {}", self.dim(line)))?;
        }
        Ok(())
    }

    /// A question and its answer, as expected.
    pub(crate) fn answer(
        &self,
        from: &str,
        question: &str,
        answer: &str,
        took: Option<Duration>,
    ) -> Result<()> {
        let took = took.map(|took| self.dim(&format!("{:.2} ms", took.as_secs_f64() * 1000.0)));
        let line = format!(
            "    {}  {question:<44} {} {answer:<38} {}",
            self.cyan(&format!("{from:<6}")),
            self.green("→"),
            took.unwrap_or_default()
        );
        self.line(line.trim_end())
    }

    /// A command that was run.
    pub(crate) fn command(&self, command: &str) -> Result<()> {
        self.line(&format!("    {}", self.yellow(&format!("$ {command}"))))
    }

    /// What a command printed.
    pub(crate) fn output(&self, text: &str) -> Result<()> {
        for line in text.trim_end().lines() {
            self.line(&format!("      {line}"))?;
        }
        Ok(())
    }

    pub(crate) fn line(&self, text: &str) -> Result<()> {
        writeln!(self.out.lock(), "{text}").context("writing to the standard output")
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn yellow(&self, text: &str) -> String {
        self.paint("33", text)
    }

    fn cyan(&self, text: &str) -> String {
        self.paint("36", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
