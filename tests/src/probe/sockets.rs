//! What a prober does with its sockets.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::{Answer, Failure, Kind, Reply, Report, Request, Response, Target, calls, pattern};

/// Between two attempts of a loop: many enough to meet a gap, few enough to leave the processor to others.
const PAUSE: Duration = Duration::from_millis(1);

/// Failures that a report keeps.
const KEPT_FAILURES: usize = 10;

/// The state of a prober: its open sockets and its loop.
#[derive(Debug, Default)]
pub struct Sockets {
    open: BTreeMap<u32, Conversation>,
    called: BTreeMap<u32, Option<UdpSocket>>,
    running: Option<Loop>,
}

impl Sockets {
    /// Does what is asked.
    pub fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Ask(target, count) => Response::Answers((0..count).map(|_| ask(target).1).collect()),
            Request::Open(id, target) => {
                let (conversation, answer) = ask(target);
                self.open.extend(conversation.map(|conversation| (id, conversation)));
                Response::Answers(vec![answer])
            }
            Request::Again(id, to) => match self.open.get_mut(&id) {
                Some(conversation) => Response::Answers(vec![conversation.ask_again(to)]),
                None => Response::Refused(format!("no open socket {id}")),
            },
            Request::Receive(id) => match self.open.get_mut(&id) {
                Some(conversation) => Response::Answers(vec![conversation.listen()]),
                None => Response::Refused(format!("no open socket {id}")),
            },
            Request::Close(id) => match self.open.remove(&id) {
                Some(_) => Response::Answers(Vec::new()),
                None => Response::Refused(format!("no open socket {id}")),
            },
            Request::Bind(target) => Response::Answers(vec![bind(target)]),
            Request::Scatter(destinations, target) => Response::Answers(scatter(&destinations, target)),
            Request::Transfer(target, bytes) => Response::Answers(vec![
                observe(target, |c, answer| c.download(answer, bytes)).1,
                observe(target, |c, answer| c.upload(answer, bytes)).1,
            ]),
            Request::StartLoop(targets) => {
                self.running = Some(Loop::start(targets));
                Response::Answers(Vec::new())
            }
            Request::StopLoop => match self.running.take().map(Loop::stop) {
                Some(Some(report)) => Response::Report(report),
                Some(None) => Response::Refused("the loop panicked".to_owned()),
                None => Response::Refused("no loop runs".to_owned()),
            },
            Request::Call(id, call) => {
                Response::Seen(calls::perform(self.called.entry(id).or_default(), &call))
            }
            Request::Drop(id) => {
                self.called.remove(&id);
                Response::Answers(Vec::new())
            }
        }
    }
}

/// A step that failed.
type Step<T> = Result<T, Failure>;

/// Names the step of an I/O error.
trait Named<T> {
    fn step(self, step: &str) -> Step<T>;
}

impl<T> Named<T> for io::Result<T> {
    fn step(self, step: &str) -> Step<T> {
        self.map_err(|error| Failure { step: step.to_owned(), errno: errno(&error) })
    }
}

pub(super) fn errno(error: &io::Error) -> String {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut, _) => "ETIMEDOUT".to_owned(),
        (_, Some(number)) => format!("{:?}", Errno::from_raw(number)),
        (kind, None) => kind.to_string(),
    }
}

/// Something other than an error number was wrong.
fn odd(step: &str, what: impl Into<String>) -> Failure {
    Failure { step: step.to_owned(), errno: what.into() }
}

/// A socket and what it is connected to.
#[derive(Debug)]
struct Conversation {
    socket: Wire,
    target: Target,
}

#[derive(Debug)]
enum Wire {
    Stream(BufReader<TcpStream>),
    Connected(UdpSocket),
    Unconnected(UdpSocket),
}

/// Opens a socket and asks once.
fn ask(target: Target) -> (Option<Conversation>, Answer) {
    observe(target, |conversation, answer| conversation.ask(answer, target.destination()))
}

/// Opens a socket, does something with it, and notes what the application sees, failed or not.
fn observe(
    target: Target,
    act: impl FnOnce(&mut Conversation, &mut Answer) -> Step<()>,
) -> (Option<Conversation>, Answer) {
    let start = Instant::now();
    let mut answer = blank(target.destination());
    let mut conversation = None;
    let result = Conversation::open(target).and_then(|opened| act(conversation.insert(opened), &mut answer));
    finish(&mut answer, conversation.as_ref(), result, start);
    (conversation, answer)
}

fn blank(to: SocketAddr) -> Answer {
    Answer { to, reply: None, failure: None, peer: None, source: None, local: None, took: Duration::ZERO }
}

fn finish(answer: &mut Answer, conversation: Option<&Conversation>, result: Step<()>, start: Instant) {
    answer.took = start.elapsed();
    answer.failure = result.err();
    let Some(conversation) = conversation else { return };
    (answer.local, answer.peer) = match &conversation.socket {
        Wire::Stream(stream) => (stream.get_ref().local_addr().ok(), stream.get_ref().peer_addr().ok()),
        Wire::Connected(socket) => (socket.local_addr().ok(), socket.peer_addr().ok()),
        Wire::Unconnected(socket) => (socket.local_addr().ok(), None),
    };
}

/// Binds a socket and closes it.
fn bind(target: Target) -> Answer {
    let address = target.destination();
    let mut answer = blank(address);
    let bound = socket(target).and_then(|socket| {
        socket.bind(&address.into()).step("bind")?;
        answer.local = socket.local_addr().step("getsockname")?.as_socket();
        Ok(())
    });
    answer.failure = bound.err();
    answer
}

/// A new socket of the target's protocol and family.
fn socket(target: Target) -> Step<Socket> {
    let kind = if target.kind == Kind::Tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(target.destination()), kind, None).step("socket")?;
    if target.mapped {
        socket.set_only_v6(false).step("setsockopt")?;
    }
    Ok(socket)
}

impl Conversation {
    fn open(target: Target) -> Step<Self> {
        let to = target.destination();
        let socket = socket(target)?;
        socket.set_read_timeout(Some(target.limit)).step("setsockopt")?;
        socket.set_write_timeout(Some(target.limit)).step("setsockopt")?;
        let socket = match target.kind {
            Kind::Tcp => {
                socket.connect_timeout(&to.into(), target.limit).step("connect")?;
                Wire::Stream(BufReader::new(socket.into()))
            }
            Kind::Udp => {
                socket.connect(&to.into()).step("connect")?;
                Wire::Connected(socket.into())
            }
            Kind::Datagram => Wire::Unconnected(socket.into()),
        };
        Ok(Self { socket, target })
    }

    /// Asks through a socket that is open already.
    fn ask_again(&mut self, to: SocketAddr) -> Answer {
        let start = Instant::now();
        let to = Target { to, ..self.target }.destination();
        let mut answer = blank(to);
        let result = self.ask(&mut answer, to);
        finish(&mut answer, Some(self), result, start);
        answer
    }

    /// Waits for a datagram.
    fn listen(&mut self) -> Answer {
        let start = Instant::now();
        let mut answer = blank(self.target.destination());
        let result = match &self.socket {
            Wire::Connected(socket) | Wire::Unconnected(socket) => receive(socket, &mut answer),
            Wire::Stream(_) => Err(odd("receive", "only over UDP")),
        };
        finish(&mut answer, Some(self), result, start);
        answer
    }

    fn ask(&mut self, answer: &mut Answer, to: SocketAddr) -> Step<()> {
        match &mut self.socket {
            Wire::Stream(stream) => {
                let body = fetch(stream, "GET / HTTP/1.1\r\n", &[])?;
                answer.reply = Some(parse(&body)?);
            }
            Wire::Connected(socket) => {
                socket.send(b"?").step("send")?;
                receive(socket, answer)?;
            }
            Wire::Unconnected(socket) => {
                socket.send_to(b"?", to).step("send")?;
                receive(socket, answer)?;
            }
        }
        Ok(())
    }

    fn download(&mut self, answer: &mut Answer, bytes: usize) -> Step<()> {
        let stream = self.stream()?;
        answer.reply = Some(parse(&fetch(stream, "GET / HTTP/1.1\r\n", &[])?)?);
        let body = fetch(stream, &format!("GET /bytes/{bytes} HTTP/1.1\r\n"), &[])?;
        if body == pattern(bytes) { Ok(()) } else { Err(odd("download", "the bytes differ")) }
    }

    fn upload(&mut self, answer: &mut Answer, bytes: usize) -> Step<()> {
        let head = format!("POST / HTTP/1.1\r\nContent-Length: {bytes}\r\n");
        let body = fetch(self.stream()?, &head, &pattern(bytes))?;
        answer.reply = Some(parse(&body)?);
        let counted = format!(" received {bytes}");
        let right = String::from_utf8_lossy(&body).trim_end().ends_with(&counted);
        if right { Ok(()) } else { Err(odd("upload", "the bytes differ")) }
    }

    fn stream(&mut self) -> Step<&mut BufReader<TcpStream>> {
        match &mut self.socket {
            Wire::Stream(stream) => Ok(stream),
            Wire::Connected(_) | Wire::Unconnected(_) => Err(odd("transfer", "only over TCP")),
        }
    }
}

/// One HTTP exchange that keeps the connection; gives the body.
fn fetch(stream: &mut BufReader<TcpStream>, head: &str, body: &[u8]) -> Step<Vec<u8>> {
    let head = format!("{head}Connection: keep-alive\r\n\r\n");
    stream.get_mut().write_all(&[head.as_bytes(), body].concat()).step("send")?;
    let mut length = None;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).step("receive")? == 0 {
            return Err(odd("receive", "the connection was closed"));
        }
        if line.trim_end().is_empty() {
            break;
        }
        if let Some((key, value)) = line.split_once(':')
            && key.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<usize>().ok();
        }
    }
    let mut body = vec![0; length.ok_or_else(|| odd("receive", "no Content-Length"))?];
    stream.read_exact(&mut body).step("receive")?;
    Ok(body)
}

fn parse(text: &[u8]) -> Step<Reply> {
    String::from_utf8_lossy(text).parse().map_err(|error| odd("receive", format!("{error:#}")))
}

fn receive(socket: &UdpSocket, answer: &mut Answer) -> Step<()> {
    let mut buffer = [0; 2048];
    let (length, source) = socket.recv_from(&mut buffer).step("receive")?;
    answer.source = Some(source);
    answer.reply = Some(parse(&buffer[..length])?);
    Ok(())
}

/// Sends to all first, then reads; an answer belongs to the destination that it says it comes from.
fn scatter(destinations: &[SocketAddr], target: Target) -> Vec<Answer> {
    let start = Instant::now();
    let destinations = destinations.iter().map(|&to| Target { to, ..target }.destination());
    let mut answers: Vec<_> = destinations.map(blank).collect();
    let result = Conversation::open(Target { kind: Kind::Datagram, ..target }).and_then(|conversation| {
        let Wire::Unconnected(socket) = &conversation.socket else {
            return Err(odd("socket", "not an unconnected one"));
        };
        for answer in &mut answers {
            answer.failure = socket.send_to(b"?", answer.to).step("send").err();
            answer.local = socket.local_addr().ok();
        }
        let expected = answers.iter().filter(|answer| answer.failure.is_none()).count();
        for _ in 0..expected {
            let mut got = blank(target.destination());
            receive(socket, &mut got)?;
            let owner = answers.iter_mut().find(|a| Some(a.to) == got.source && a.reply.is_none());
            let Some(owner) = owner else {
                return Err(odd("receive", format!("an answer from {:?}, whom nobody asked", got.source)));
            };
            (owner.reply, owner.source, owner.took) = (got.reply, got.source, start.elapsed());
        }
        Ok(())
    });
    if let Err(failure) = result {
        let open = answers.iter_mut().filter(|answer| answer.reply.is_none() && answer.failure.is_none());
        open.for_each(|answer| answer.failure = Some(failure.clone()));
    }
    answers
}

/// A thread that asks until it is told to stop.
#[derive(Debug)]
struct Loop {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Report>,
}

impl Loop {
    fn start(targets: Vec<Target>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut report = Report::default();
            for target in targets.iter().cycle() {
                if told.load(Ordering::Relaxed) {
                    break;
                }
                report.note(ask(*target).1);
                thread::sleep(PAUSE);
            }
            report
        });
        Self { stop, thread }
    }

    fn stop(self) -> Option<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok()
    }
}

impl Report {
    fn note(&mut self, answer: Answer) {
        self.attempts += 1;
        if let (Some(reply), None) = (&answer.reply, &answer.failure) {
            *self.backends.entry(reply.backend.clone()).or_default() += 1;
            self.slowest = self.slowest.max(answer.took);
            return;
        }
        self.failed += 1;
        if self.failures.len() < KEPT_FAILURES {
            self.failures.push(answer);
        }
    }
}
