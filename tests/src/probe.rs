//! Clients: what an application asks a service, and what it sees.
//!
//! A [`Prober`] is a process in a namespace and a cgroup, since both decide what the socket programs do. It takes
//! [`Request`]s and reports [`Answer`]s, one line of JSON each; [`sockets`] is what it does inside.

use std::{
    collections::BTreeMap,
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{ChildStdout, Command, Stdio},
    str::FromStr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use self::calls::{Call, Seen};
use crate::{
    process::{Place, Process, program},
    wait,
};

pub mod calls;
pub mod sockets;

/// How an application talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An HTTP request over a new TCP connection.
    Tcp,
    /// A datagram over `connect` and `send`.
    Udp,
    /// A datagram over `sendto` and `recvfrom`, without `connect`.
    Datagram,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Datagram];
}

/// Whom to ask, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// How.
    pub kind: Kind,
    /// Where.
    pub to: SocketAddr,
    /// Whether to reach an IPv4 destination through an IPv6 socket, at its v4-mapped address.
    pub mapped: bool,
    /// How long a step may take.
    pub limit: Duration,
}

impl Target {
    /// A destination in its own family.
    pub fn new(kind: Kind, to: SocketAddr) -> Self {
        Self { kind, to, mapped: false, limit: Duration::from_secs(3) }
    }

    /// The same IPv4 destination through an IPv6 socket.
    pub fn mapped(self) -> Self {
        Self { mapped: true, ..self }
    }

    /// With another limit for each step.
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The destination as the application writes it.
    pub fn destination(&self) -> SocketAddr {
        match self.to {
            SocketAddr::V4(v4) if self.mapped => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
            to => to,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Tcp => "TCP",
            Kind::Udp => "connected UDP",
            Kind::Datagram => "unconnected UDP",
        };
        write!(f, "{kind} to {}", self.destination())
    }
}

/// What a prober does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Asks a number of times, each with a new socket. Gives as many answers.
    Ask(Target, u32),
    /// Asks with a socket that stays open under a number. Gives one answer.
    Open(u32, Target),
    /// Asks again through an open socket; an unconnected one may ask somebody else. Gives one answer.
    Again(u32, SocketAddr),
    /// Waits for a datagram on an open UDP socket, without asking. Gives one answer.
    Receive(u32),
    /// Closes an open socket. Gives no answer.
    Close(u32),
    /// Binds a socket of the target's protocol to its address, and closes it. Gives one answer, without a reply.
    Bind(Target),
    /// Sends one datagram to each destination from one unconnected socket, then collects the answers. Gives as many.
    Scatter(Vec<SocketAddr>, Target),
    /// Fetches and sends this many bytes over TCP and checks each of them. Gives two answers.
    Transfer(Target, usize),
    /// Asks these targets in turn, each time with a new socket, until told to stop. Gives no answer.
    StartLoop(Vec<Target>),
    /// Stops, and gives the report.
    StopLoop,
    /// Makes a system call on the socket of that number.
    Call(u32, Call),
    /// Closes the socket of that number. Gives no answer.
    Drop(u32),
}

/// What a prober replies.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The answers to a request.
    Answers(Vec<Answer>),
    /// The report of a loop.
    Report(Report),
    /// What a system call gave.
    Seen(Seen),
    /// A request that made no sense.
    Refused(String),
}

/// What the application saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Where it wanted to go, as it wrote it.
    pub to: SocketAddr,
    /// What the backend said.
    pub reply: Option<Reply>,
    /// What went wrong.
    pub failure: Option<Failure>,
    /// `getpeername`, of connected sockets.
    pub peer: Option<SocketAddr>,
    /// The sender as `recvfrom` tells it, of UDP.
    pub source: Option<SocketAddr>,
    /// `getsockname`.
    pub local: Option<SocketAddr>,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// The backend that answered; otherwise an error that tells what happened.
    pub fn backend(&self) -> Result<&str> {
        Ok(&self.reply()?.backend)
    }

    /// The backend's reply; otherwise an error that tells what happened.
    pub fn reply(&self) -> Result<&Reply> {
        match (&self.reply, &self.failure) {
            (Some(reply), None) => Ok(reply),
            (_, Some(failure)) => bail!("{}: {failure}", self.to),
            (None, None) => bail!("{}: neither a reply nor a failure", self.to),
        }
    }

    /// The name of the error number, such as `ECONNREFUSED`; otherwise an error that tells who answered.
    pub fn errno(&self) -> Result<&str> {
        match (&self.failure, &self.reply) {
            (Some(failure), _) => Ok(&failure.errno),
            (None, Some(reply)) => bail!("{}: answered by {reply}", self.to),
            (None, None) => bail!("{}: neither a reply nor a failure", self.to),
        }
    }
}

/// What a backend tells: `backend pod1 port 8080 client 10.244.1.12:40312`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Its name.
    pub backend: String,
    /// The port that it was reached at.
    pub port: u16,
    /// The client that it sees.
    pub client: SocketAddr,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend {} port {} client {}", self.backend, self.port, self.client)
    }
}

impl FromStr for Reply {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let ["backend", backend, "port", port, "client", client, ..] = words[..] else {
            bail!("not a backend's reply: {text:?}")
        };
        let client = client.parse().with_context(|| format!("the client in {text:?}"))?;
        let port = port.parse().with_context(|| format!("the port in {text:?}"))?;
        Ok(Self { backend: backend.to_owned(), port, client })
    }
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step: `connect`, `send`, `receive` …
    pub step: String,
    /// The name of the error number; `ETIMEDOUT` also for an answer that did not come in time.
    pub errno: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.errno)
    }
}

/// What a loop saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// How often it asked.
    pub attempts: u64,
    /// How often each backend answered.
    pub backends: BTreeMap<String, u64>,
    /// How often it failed.
    pub failed: u64,
    /// The first failures.
    pub failures: Vec<Answer>,
    /// The longest that a successful attempt took.
    pub slowest: Duration,
}

/// The bytes of a transfer: each place in the first gigabytes looks different from its neighbours.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length.next_multiple_of(8)];
    for (number, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    }
    bytes.truncate(length);
    bytes
}

/// A client process.
#[derive(Debug)]
pub struct Prober {
    pipe: Mutex<Pipe>,
}

#[derive(Debug)]
struct Pipe {
    process: Process,
    output: BufReader<ChildStdout>,
}

impl Prober {
    /// Starts one in a place.
    pub fn start(name: &str, place: Place<'_>) -> Result<Self> {
        let mut command = Command::new(program("prober")?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&format!("the prober of {name}"), command, place)?;
        let output = process.child().stdout.take().context("a prober has no standard output")?;
        Ok(Self { pipe: Mutex::new(Pipe { process, output: BufReader::new(output) }) })
    }

    /// Asks a number of times, each with a new socket.
    pub fn ask(&self, target: Target, count: u32) -> Result<Vec<Answer>> {
        self.answers(&Request::Ask(target, count))
    }

    /// Asks once.
    pub fn ask_once(&self, target: Target) -> Result<Answer> {
        self.answer(&Request::Ask(target, 1))
    }

    /// How often each backend answers; any failure is an error.
    pub fn spread(&self, target: Target, count: u32) -> Result<BTreeMap<String, u32>> {
        let mut spread = BTreeMap::new();
        for answer in self.ask(target, count)? {
            *spread.entry(answer.backend()?.to_owned()).or_default() += 1;
        }
        Ok(spread)
    }

    /// Sends a request that gives answers.
    pub fn answers(&self, request: &Request) -> Result<Vec<Answer>> {
        match self.exchange(request)? {
            Response::Answers(answers) => Ok(answers),
            Response::Refused(why) => Err(anyhow!(why)),
            other => bail!("{other:?} in answer to {request:?}"),
        }
    }

    /// Sends a request that gives one answer.
    pub fn answer(&self, request: &Request) -> Result<Answer> {
        let answers = self.answers(request)?;
        answers.into_iter().next().with_context(|| format!("no answer to {request:?}"))
    }

    /// Stops the loop and gives its report.
    pub fn stop_loop(&self) -> Result<Report> {
        match self.exchange(&Request::StopLoop)? {
            Response::Report(report) => Ok(report),
            Response::Refused(why) => Err(anyhow!(why)),
            other => bail!("{other:?} instead of a report"),
        }
    }

    fn exchange(&self, request: &Request) -> Result<Response> {
        wait::check_interrupt()?;
        let line = serde_json::to_string(request).context("writing a request")?;
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        let input = pipe.process.child().stdin.as_mut().context("a prober has no standard input")?;
        writeln!(input, "{line}").context("sending a request to a prober")?;
        let mut line = String::new();
        // Each of its steps has a limit, so it answers.
        pipe.output.read_line(&mut line).context("reading a prober's answer")?;
        serde_json::from_str(&line).with_context(|| format!("a prober's answer {line:?} to {request:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_survives_its_text() {
        for client in ["10.244.1.12:40312", "[fd00::1]:1"] {
            let reply = Reply { backend: "pod1".to_owned(), port: 8080, client: client.parse().unwrap() };
            assert_eq!(reply.to_string().parse::<Reply>().unwrap(), reply);
        }
        assert!("hello".parse::<Reply>().is_err());
    }

    #[test]
    fn a_mapped_target_goes_to_the_mapped_address() {
        let target = Target::new(Kind::Udp, "10.96.0.10:53".parse().unwrap());
        assert_eq!(target.destination().to_string(), "10.96.0.10:53");
        assert_eq!(target.mapped().destination().to_string(), "[::ffff:10.96.0.10]:53");
    }

    #[test]
    fn the_pattern_has_the_length_that_was_asked_for() {
        assert_eq!(pattern(0).len(), 0);
        assert_eq!(pattern(13).len(), 13);
        assert_eq!(pattern(16)[..13], pattern(13)[..]);
        assert_ne!(pattern(24)[8..16], pattern(24)[16..]);
    }
}
