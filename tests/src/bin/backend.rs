//! A backend that tells its name, its port and the client that it sees.
//!
//! ```text
//! backend --name pod1 tcp/8080 udp/5353
//! ```
//!
//! TCP speaks HTTP: `GET /` tells, `GET /bytes/N` sends N bytes of a pattern, `POST` counts and checks the bytes of the
//! same pattern. `Connection: keep-alive` keeps the connection. UDP tells, once for each datagram.

use std::{
    io::{self, BufRead, BufReader, Read as _, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use lb_common::address::Protocol;
use lb_tests::{
    probe::{Reply, pattern},
    server::LISTENING,
};
use socket2::{Domain, Socket, Type};

#[derive(Parser)]
struct Options {
    /// What it calls itself
    #[arg(long)]
    name: String,
    /// Where to listen: tcp/PORT or udp/PORT, on every address of both families
    #[arg(required = true, value_parser = parse_port)]
    ports: Vec<(Protocol, u16)>,
}

fn parse_port(text: &str) -> Result<(Protocol, u16)> {
    let (protocol, port) = text.split_once('/').context("write tcp/PORT or udp/PORT")?;
    let port = port.parse().with_context(|| format!("{port:?} is no port"))?;
    match protocol {
        "tcp" => Ok((Protocol::Tcp, port)),
        "udp" => Ok((Protocol::Udp, port)),
        other => bail!("{other:?} is neither tcp nor udp"),
    }
}

fn main() -> Result<()> {
    let Options { name, ports } = Options::parse();
    let name: Arc<str> = name.into();
    let mut listeners = Vec::new();
    for (protocol, port) in ports {
        for address in [SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)), (Ipv6Addr::UNSPECIFIED, port).into()]
        {
            let socket = bind(protocol, address)
                .with_context(|| format!("listening on {protocol} {address} as {name}"))?;
            listeners.push((protocol, port, socket));
        }
    }
    let threads: Vec<_> = listeners
        .into_iter()
        .map(|(protocol, port, socket)| {
            let name = Arc::clone(&name);
            thread::spawn(move || match protocol {
                Protocol::Tcp => accept(&name, port, &socket.into()),
                Protocol::Udp | Protocol::Sctp => echo(&name, port, &socket.into()),
            })
        })
        .collect();
    writeln!(io::stdout(), "{LISTENING}").context("telling that we listen")?;
    for thread in threads {
        // A listener only ends with an error.
        match thread.join() {
            Ok(result) => result?,
            Err(_) => bail!("a listener panicked"),
        }
    }
    Ok(())
}

fn bind(protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let kind = if protocol == Protocol::Tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if protocol == Protocol::Tcp {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if protocol == Protocol::Tcp {
        socket.listen(1024)?;
    }
    Ok(socket)
}

fn accept(name: &Arc<str>, port: u16, listener: &TcpListener) -> Result<()> {
    loop {
        // A client that is gone before it is accepted is the client's affair.
        let Ok((stream, client)) = listener.accept() else { continue };
        let name = Arc::clone(name);
        thread::spawn(move || {
            // So is one that hangs up in the middle.
            drop(converse(&name, port, stream, client));
        });
    }
}

fn echo(name: &str, port: u16, socket: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let (_, client) = socket.recv_from(&mut buffer).context("receiving a datagram")?;
        let reply = Reply { backend: name.to_owned(), port, client };
        // An answer that cannot be sent is lost, like any datagram.
        drop(socket.send_to(reply.to_string().as_bytes(), client));
    }
}

fn converse(name: &str, port: u16, mut stream: TcpStream, client: SocketAddr) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone().context("sharing a connection")?);
    while let Some(request) = Request::read(&mut reader)? {
        let told = Reply { backend: name.to_owned(), port, client };
        let body = match request.path.strip_prefix("/bytes/") {
            Some(count) => pattern(count.parse().context("a count of bytes")?),
            None if request.body > 0 => {
                let mut body = vec![0; request.body];
                reader.read_exact(&mut body).context("reading a body")?;
                ensure!(body == pattern(request.body), "the body is not the pattern");
                format!("{told} received {}\n", request.body).into_bytes()
            }
            None => format!("{told}\n").into_bytes(),
        };
        let connection = if request.keep { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat()).context("answering")?;
        if !request.keep {
            break;
        }
    }
    Ok(())
}

struct Request {
    path: String,
    /// Length of the body.
    body: usize,
    /// Whether the client wants to go on.
    keep: bool,
}

impl Request {
    /// The next request; none: the client is done.
    fn read(reader: &mut impl BufRead) -> Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line).context("reading a request")? == 0 {
            return Ok(None);
        }
        let path = line.split(' ').nth(1).context("a request without a path")?.to_owned();
        let mut request = Self { path, body: 0, keep: false };
        loop {
            line.clear();
            reader.read_line(&mut line).context("reading a header")?;
            let Some((key, value)) = line.trim().split_once(':') else { break };
            match key.to_ascii_lowercase().as_str() {
                "content-length" => request.body = value.trim().parse().context("Content-Length")?,
                "connection" => request.keep = value.trim().eq_ignore_ascii_case("keep-alive"),
                _ => {}
            }
        }
        Ok(Some(request))
    }
}
