//! A small API server on loopback: lists in pages, streaming lists, watches, history, and the faults that a test asks for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

pub(crate) const SERVICES: &str = "/api/v1/services";
pub(crate) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub(crate) const SERVICE_CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
pub(crate) const NODES: &str = "/api/v1/nodes";
pub(crate) const ENDPOINTS: &str = "/api/v1/endpoints";

/// How the server takes a request for a streaming list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streaming {
    /// As it should: all objects, and a bookmark that ends them.
    Supported,
    /// With status 422, as a server without the feature does.
    Refused,
    /// With all objects and no bookmark, as a server that does not know the parameter does.
    Ignored,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) query: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains_key("watch")
    }

    pub(crate) fn get(&self, key: &str) -> &str {
        self.query.get(key).map_or("", String::as_str)
    }
}

/// What the server holds and how it behaves.
pub(crate) struct State {
    objects: BTreeMap<(String, String), Value>,
    history: Vec<Past>,
    version: u64,
    /// Versions up to this one are forgotten: watches from before are answered with 410.
    compacted: u64,
    requests: Vec<Request>,
    pub(crate) streaming: Streaming,
    /// Verbs and resources that are not allowed.
    pub(crate) forbidden: BTreeSet<(&'static str, &'static str)>,
    /// Resources that the server does not know.
    pub(crate) unknown: BTreeSet<&'static str>,
    /// A status that answers everything.
    pub(crate) failing: Option<u16>,
    /// Whether a watch from a forgotten version gets an HTTP status instead of an event.
    pub(crate) gone_as_status: bool,
    /// Whether watches end as soon as they have begun.
    pub(crate) ends_watches: bool,
    /// Items of a page.
    pub(crate) page: usize,
}

struct Past {
    version: u64,
    path: String,
    line: String,
    object: Value,
}

/// The server; it may be stopped and started again on its port.
pub(crate) struct ApiServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// Changes with each version.
    news: watch::Sender<u64>,
    connections: Mutex<Vec<JoinHandle<()>>>,
}

impl ApiServer {
    /// A server that has a port and does not listen yet.
    pub(crate) async fn absent() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = State {
            objects: BTreeMap::new(),
            history: Vec::new(),
            version: 100,
            compacted: 0,
            requests: Vec::new(),
            streaming: Streaming::Supported,
            forbidden: BTreeSet::new(),
            unknown: BTreeSet::new(),
            failing: None,
            gone_as_status: false,
            ends_watches: false,
            page: 500,
        };
        let shared =
            Shared { state: Mutex::new(state), news: watch::Sender::new(0), connections: Mutex::default() };
        Self { address: listener.local_addr().unwrap(), shared: Arc::new(shared), listening: None }
    }

    /// A server that listens.
    pub(crate) async fn start() -> Self {
        let mut server = Self::absent().await;
        server.listen().await;
        server
    }

    pub(crate) async fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let shared = self.shared.clone();
        self.listening = Some(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = tokio::spawn(serve(stream, shared.clone()));
                lock(&shared.connections).push(connection);
            }
        }));
    }

    /// Stops listening and cuts all connections.
    pub(crate) async fn stop(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            // Until it is gone, its port still answers.
            assert!(listening.await.is_err_and(|error| error.is_cancelled()));
        }
        self.cut();
    }

    /// Cuts all connections in the middle of whatever they carry.
    pub(crate) fn cut(&self) {
        for connection in lock(&self.shared.connections).drain(..) {
            connection.abort();
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, path: &str, object: Value) {
        let mut state = self.state();
        let key = (path.to_owned(), key_of(&object));
        let event = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        let object = state.stamped(object);
        state.objects.insert(key, object.clone());
        state.record(path, event, object);
        self.publish(&state);
    }

    pub(crate) fn delete(&self, path: &str, name: &str) {
        let mut state = self.state();
        let object = state.objects.remove(&(path.to_owned(), name.to_owned())).unwrap();
        let object = state.stamped(object);
        state.record(path, "DELETED", object);
        self.publish(&state);
    }

    /// Sends a bookmark to the watches of a resource: nothing up to a new version concerns them.
    pub(crate) fn bookmark(&self, path: &str) -> String {
        let mut state = self.state();
        let object = state.stamped(json!({"metadata": {}}));
        let version = state.version.to_string();
        state.record(path, "BOOKMARK", object);
        self.publish(&state);
        version
    }

    /// Forgets all history.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.compacted = state.version;
    }

    /// The requests so far of one resource.
    pub(crate) fn requests(&self, path: &str) -> Vec<Request> {
        self.state().requests.iter().filter(|request| request.path == path).cloned().collect()
    }

    fn publish(&self, state: &State) {
        self.shared.news.send_replace(state.version);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
        self.cut();
    }
}

impl State {
    fn stamped(&mut self, mut object: Value) -> Value {
        self.version += 1;
        if let Value::Object(metadata) = &mut object["metadata"] {
            metadata.insert("resourceVersion".into(), self.version.to_string().into());
        }
        object
    }

    fn record(&mut self, path: &str, event: &str, object: Value) {
        let line = json!({"type": event, "object": object.clone()});
        // The event's type comes first, as the real server has it.
        let line = format!("{{\"type\":\"{event}\",\"object\":{}}}\n", line["object"]);
        self.history.push(Past { version: self.version, path: path.to_owned(), line, object });
    }

    fn selected(&self, request: &Request) -> Vec<Value> {
        let of_path = self.objects.iter().filter(|((path, _), _)| *path == request.path);
        of_path.map(|(_, object)| object.clone()).filter(|object| selects(request, object)).collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key_of(object: &Value) -> String {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    if namespace.is_empty() { name } else { format!("{namespace}/{name}") }
}

/// The selectors that the source uses: absence of a label, equality and inequality of a field.
fn selects(request: &Request, object: &Value) -> bool {
    let label = request.get("labelSelector");
    if let Some(key) = label.strip_prefix('!')
        && object["metadata"]["labels"].get(key).is_some()
    {
        return false;
    }
    let field =
        |path: &str| path.split('.').fold(object, |value, key| &value[key]).as_str().unwrap_or_default();
    match request.get("fieldSelector").split_once("!=") {
        Some((path, value)) => field(path) != value,
        None => request.get("fieldSelector").split_once('=').is_none_or(|(path, value)| field(path) == value),
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let answer = {
            let mut state = lock(&shared.state);
            state.requests.push(request.clone());
            refusal(&state, &request).or_else(|| (!request.is_watch()).then(|| (200, list(&state, &request))))
        };
        let Some((status, body)) = answer else {
            // A watch ends with its connection.
            drop(serve_watch(&mut stream, &request, &shared).await);
            return;
        };
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if stream.write_all((head + &body).as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).ok()?;
    let target = head.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    Some(Request {
        path: path.to_owned(),
        query: query.map(|(key, value)| (key.to_owned(), decoded(value))).collect(),
    })
}

/// Percent decoding.
fn decoded(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(|digit| char::from(digit.unwrap()));
                u8::from_str_radix(&String::from_iter(digits), 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).unwrap()
}

fn status(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (
        code,
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }),
    )
}

fn refusal(state: &State, request: &Request) -> Option<(u16, Value)> {
    let resource = request.path.rsplit('/').next().unwrap();
    let verb = if request.is_watch() { "watch" } else { "list" };
    if let Some(code) = state.failing {
        return Some(status(code, "ServiceUnavailable", "the server is starting"));
    }
    if state.unknown.contains(&*request.path) {
        return Some(status(404, "NotFound", "the server could not find the requested resource"));
    }
    if state.forbidden.contains(&(verb, &*request.path)) {
        let message =
            format!("{resource} is forbidden: User \"sockeye\" cannot {verb} resource \"{resource}\"");
        return Some(status(403, "Forbidden", &message));
    }
    if !request.get("sendInitialEvents").is_empty() && state.streaming == Streaming::Refused {
        let message = "ListOptions is invalid: sendInitialEvents: Forbidden: it is not enabled";
        return Some(status(422, "Invalid", message));
    }
    let forgotten = request.is_watch() && starts_at(request) < state.compacted && !is_initial(request);
    (forgotten && state.gone_as_status).then(|| status(410, "Expired", "too old resource version"))
}

fn is_initial(request: &Request) -> bool {
    !request.get("sendInitialEvents").is_empty()
}

fn starts_at(request: &Request) -> u64 {
    request.get("resourceVersion").parse().unwrap_or_default()
}

fn list(state: &State, request: &Request) -> Value {
    let start: usize = request.get("continue").parse().unwrap_or_default();
    let all = state.selected(request);
    let items: Vec<_> = all.iter().skip(start).take(state.page).collect();
    let next = start + items.len();
    let next = if next < all.len() { next.to_string() } else { String::new() };
    json!({
        "kind": "List", "apiVersion": "v1",
        "metadata": {"resourceVersion": state.version.to_string(), "continue": next},
        "items": items,
    })
}

async fn serve_watch(stream: &mut TcpStream, request: &Request, shared: &Shared) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut news = shared.news.subscribe();
    let (first, mut seen, ends) = {
        let state = lock(&shared.state);
        (first_lines(&state, request), begin(&state, request), state.ends_watches)
    };
    for line in first {
        write_chunk(stream, &line).await?;
    }
    if ends {
        return stream.write_all(b"0\r\n\r\n").await;
    }
    loop {
        let lines: Vec<_> = {
            let state = lock(&shared.state);
            let news = state.history.iter().filter(|past| past.version > seen && past.path == request.path);
            let lines = news.filter(|past| is_bookmark(past) || selects(request, &past.object));
            let lines = lines.map(|past| past.line.clone()).collect();
            seen = state.version;
            lines
        };
        for line in lines {
            write_chunk(stream, &line).await?;
        }
        if news.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn is_bookmark(past: &Past) -> bool {
    past.line.starts_with("{\"type\":\"BOOKMARK\"")
}

/// The version after which history follows.
fn begin(state: &State, request: &Request) -> u64 {
    if starts_at(request) < state.compacted || starts_at(request) == 0 {
        state.version
    } else {
        starts_at(request)
    }
}

/// What a watch begins with: the present objects, or that the past is forgotten.
fn first_lines(state: &State, request: &Request) -> Vec<String> {
    let event = |kind: &str, object: &Value| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
    if starts_at(request) != 0 {
        let gone = status(410, "Expired", "too old resource version").1;
        return if starts_at(request) < state.compacted { vec![event("ERROR", &gone)] } else { Vec::new() };
    }
    let mut lines: Vec<_> = state.selected(request).iter().map(|object| event("ADDED", object)).collect();
    if is_initial(request) && state.streaming == Streaming::Supported {
        let annotations = json!({"k8s.io/initial-events-end": "true"});
        let version = state.version.to_string();
        let end = json!({"kind": "X", "apiVersion": "v1", "metadata": {"resourceVersion": version, "annotations": annotations}});
        lines.push(event("BOOKMARK", &end));
    }
    lines
}

async fn write_chunk(stream: &mut TcpStream, line: &str) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await
}
