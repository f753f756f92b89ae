//! Packets as text: one layer a line, from the outside in, each with its fields.
//!
//! ```text
//! == a client reaches a backend on this node
//! ingress
//!   ip client > node ttl=64
//!   tcp 40000 > 31001 flags=S
//! pass flow_opened
//!   ip client > pod1 ttl=64
//!   tcp 40000 > 8080 flags=S
//! ```
//!
//! A case is a sequence of packets through one program each: what goes in, the verdict and the outcome that is counted,
//! and what comes out; no layers: what went in. A port `$name` is whatever the program chose where it is first seen, and
//! the same from then on. A case with the layer `ip` runs for both families (`names`); `ipv4` and `ipv6` take addresses.
//! Lengths and checksums are never written: `build` computes them.

use std::{collections::BTreeMap, fs, net::IpAddr, path::Path, str::FromStr};

use anyhow::{Context as _, Result, bail, ensure};

use crate::names::for_each_family;

/// A case: its name and its steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

/// One packet through one program.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The line of the file, for messages.
    pub(crate) line: usize,
    pub(crate) direction: Direction,
    pub(crate) input: Vec<Layer>,
    pub(crate) verdict: Verdict,
    /// The outcome or the reason, by name.
    pub(crate) outcome: String,
    /// Empty: the packet comes out as it went in.
    pub(crate) output: Vec<Layer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Drop,
    /// Out through a device.
    Redirect,
    /// Out to where it came from: the frame's addresses are swapped.
    Answer,
}

impl Verdict {
    /// What the kernel is told.
    pub(crate) fn in_the_kernel(self) -> Self {
        if self == Self::Answer { Self::Redirect } else { self }
    }
}

/// One line of a packet.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) kind: String,
    /// What stands before the fields, without the `>`.
    pub(crate) words: Vec<String>,
    fields: BTreeMap<String, String>,
}

impl Layer {
    /// A field's number; decimal, or hexadecimal with `0x`.
    pub(crate) fn number<T: TryFrom<u64>>(&self, name: &str, default: T) -> Result<T> {
        let Some(text) = self.fields.get(name) else { return Ok(default) };
        let number = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let number = number.with_context(|| format!("{}: {name}={text}", self.kind))?;
        T::try_from(number).ok().with_context(|| format!("{}: {name}={text} is too big", self.kind))
    }

    /// Whether a field without a value is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// Takes over another layer's fields; `next` is called `protocol` here.
    pub(crate) fn absorb(&mut self, other: Self) {
        let renamed = |name: String| if name == "next" { "protocol".to_owned() } else { name };
        self.fields.extend(other.fields.into_iter().map(|(name, value)| (renamed(name), value)));
    }

    /// A field's text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The nth word.
    pub(crate) fn word(&self, index: usize) -> Result<&str> {
        let word = self.words.get(index).map(String::as_str);
        word.with_context(|| format!("{}: {} words are too few", self.kind, self.words.len()))
    }

    /// The nth word, parsed.
    pub(crate) fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
        &self,
        index: usize,
    ) -> Result<T> {
        let word = self.word(index)?;
        word.parse().with_context(|| format!("{}: {word}", self.kind))
    }

    /// Source and destination addresses.
    pub(crate) fn addresses(&self) -> Result<[IpAddr; 2]> {
        Ok([self.parsed(0)?, self.parsed(1)?])
    }
}

impl FromStr for Layer {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        const KINDS: [&str; 12] = [
            "ether",
            "ip",
            "ipv4",
            "ipv6",
            "extension",
            "fragment",
            "tcp",
            "udp",
            "sctp",
            "icmp",
            "text",
            "bytes",
        ];
        const FIELDS: [&str; 23] = [
            "control",
            "ttl",
            "tos",
            "id",
            "df",
            "more",
            "offset",
            "options",
            "protocol",
            "flow",
            "flags",
            "seq",
            "ack",
            "window",
            "nochecksum",
            "badchecksum",
            "quote",
            "rest",
            "next",
            "length",
            "cut",
            "version",
            "ihl",
        ];
        let mut parts = line.split_whitespace();
        let kind = parts.next().unwrap_or_default().to_owned();
        ensure!(KINDS.contains(&kind.as_str()), "no layer is called {kind:?}");
        let (mut words, mut fields) = (Vec::new(), BTreeMap::new());
        for part in parts.filter(|part| *part != ">") {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if FIELDS.contains(&name) {
                fields.insert(name.to_owned(), value.to_owned());
            } else {
                words.push(part.to_owned());
            }
        }
        Ok(Self { kind, words, fields })
    }
}

/// Reads a file of cases.
pub(crate) fn load(path: &Path) -> Result<Vec<Case>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Reads cases from text.
pub(crate) fn parse(text: &str) -> Result<Vec<Case>> {
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if let Some(name) = content.strip_prefix("== ") {
            cases.push(Case { name: name.to_owned(), ..Case::default() });
            continue;
        }
        let case = cases.last_mut().with_context(|| format!("line {number}: before the first case"))?;
        let added =
            if line.starts_with(' ') { add_layer(case, content) } else { add_head(case, content, number) };
        added.with_context(|| format!("line {number}"))?;
    }
    for step in cases.iter().flat_map(|case| &case.steps) {
        ensure!(!step.outcome.is_empty(), "line {}: what should come out?", step.line);
    }
    Ok(cases.into_iter().map(for_each_family).collect::<Result<Vec<_>>>()?.concat())
}

fn add_layer(case: &mut Case, content: &str) -> Result<()> {
    let step = case.steps.last_mut().context("a layer before the first packet")?;
    let layers = if step.outcome.is_empty() { &mut step.input } else { &mut step.output };
    layers.push(content.parse()?);
    Ok(())
}

fn add_head(case: &mut Case, content: &str, line: usize) -> Result<()> {
    let direction = match content {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        _ => return add_end(case, content),
    };
    let (input, output) = (Vec::new(), Vec::new());
    case.steps.push(Step { line, direction, input, verdict: Verdict::Pass, outcome: String::new(), output });
    Ok(())
}

fn add_end(case: &mut Case, content: &str) -> Result<()> {
    let step = case.steps.last_mut().context("a verdict before the first packet")?;
    let (verdict, outcome) = content.split_once(' ').context("a verdict and an outcome")?;
    step.verdict = match verdict {
        "pass" => Verdict::Pass,
        "drop" => Verdict::Drop,
        "redirect" => Verdict::Redirect,
        "answer" => Verdict::Answer,
        other => bail!("no verdict is called {other:?}"),
    };
    outcome.clone_into(&mut step.outcome);
    Ok(())
}
