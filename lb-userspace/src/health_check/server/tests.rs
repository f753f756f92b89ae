use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    health_check::HealthCheckChange,
    model::ObjectName,
    resolve::health_check::{HealthCheck, LocalEndpoints},
};

/// A server at 127.0.0.1, and all that it depends on.
struct Running {
    checks: watch::Sender<HealthChecks>,
    progress: watch::Sender<Progress>,
    ready: watch::Sender<bool>,
    problems: mpsc::Receiver<Change>,
    _server: JoinSet<()>,
}

impl Running {
    fn start() -> Self {
        let (checks, watched_checks) = watch::channel(HealthChecks::default());
        let (progress, watched_progress) = watch::channel(Progress::default());
        let (ready, watched_ready) = watch::channel(true);
        let (changes, problems) = mpsc::channel(16);
        let facts = Facts { checks: watched_checks, progress: watched_progress, ready: watched_ready };
        let mut server = JoinSet::new();
        server.spawn(HealthServer::new(facts, changes).run());
        let running = Self { checks, progress, ready, problems, _server: server };
        running.apply(HealthCheckChange::Addresses(["127.0.0.1".parse().unwrap()].into()));
        running
    }

    fn apply(&self, change: HealthCheckChange) {
        self.checks.send_if_modified(|checks| checks.apply(change));
    }

    /// A Service with so many endpoints here; port 0: without a health check.
    fn set(&self, name: &str, port: u16, count: u32) {
        let check = HealthCheck { port, local_endpoints: LocalEndpoints { v4: Some(count), v6: None } };
        let name = ObjectName::new("default", name);
        self.apply(HealthCheckChange::Service { name, created: None, check: (port != 0).then_some(check) });
    }

    /// The next problems that are told.
    async fn problems(&mut self) -> Vec<String> {
        match self.problems.recv().await.unwrap() {
            Change::Problems { origin, problems } if origin == ORIGIN => {
                problems.iter().map(ToString::to_string).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A port that nobody has now.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// What is answered to a request, or nothing while nobody listens.
async fn ask(port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    Some(answer)
}

async fn get(port: u16) -> Option<String> {
    ask(port, "GET / HTTP/1.1\r\nHost: node\r\n\r\n").await
}

/// Asks until a server listens there.
async fn get_soon(port: u16) -> String {
    loop {
        if let Some(answer) = get(port).await {
            return answer;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn answers_on_any_path_to_any_method_and_closes() {
    let running = Running::start();
    let port = free_port().await;
    running.set("web", port, 2);
    let answer = get_soon(port).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 200 "), "{answer}");
    for line in ["content-type: application/json", "x-load-balancing-endpoint-weight: 2", "content-length: "]
    {
        assert!(answer.contains(&format!("\r\n{line}")), "{answer}");
    }
    assert!(answer.ends_with(r#""localendpoints":2,"serviceproxyhealthy":true}"#), "{answer}");
    for request in
        ["POST /any/path?x HTTP/1.1\r\nHost: n\r\nContent-Length: 2\r\n\r\n{}", "GET /x HTTP/1.0\r\n\r\n"]
    {
        let answer = ask(port, request).await.unwrap();
        assert!(answer.contains(" 200 ") && answer.contains("localEndpoints"), "{answer}");
    }
    let head = ask(port, "HEAD / HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
    assert!(head.contains(" 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    let broken = ask(port, "what?\r\n\r\n").await.unwrap();
    assert!(broken.starts_with("HTTP/1.1 400"), "{broken}");
}

#[tokio::test]
async fn answers_follow_the_counts_the_state_and_the_time_that_changes_wait() {
    let running = Running::start();
    let port = free_port().await;
    running.set("web", port, 0);
    assert!(get_soon(port).await.starts_with("HTTP/1.1 503 "));
    running.set("web", port, 1);
    assert!(get(port).await.unwrap().starts_with("HTTP/1.1 200 "));
    running.ready.send_replace(false);
    let answer = get(port).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(r#""serviceProxyHealthy":false"#));
    running.ready.send_replace(true);
    for (waits, expected) in [(None, "200"), (Some(59), "200"), (Some(61), "503"), (None, "200")] {
        let since = waits.map(|waits| Instant::now().checked_sub(Duration::from_secs(waits)).unwrap());
        running.progress.send_modify(|progress| progress.waiting_since = since);
        let answer = get(port).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{waits:?} {answer}");
    }
}

#[tokio::test]
async fn listens_where_it_should_and_nowhere_else() {
    let running = Running::start();
    let (first, second) = (free_port().await, free_port().await);
    running.set("web", first, 1);
    get_soon(first).await;
    running.set("web", second, 1);
    get_soon(second).await;
    assert_eq!(get(first).await, None, "closed before the other opened");
    running.set("web", 0, 0);
    while get(second).await.is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_tried_again() {
    let mut running = Running::start();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    running.set("web", port, 1);
    let problems = running.problems().await;
    let start = format!("Service default/web: spec.healthCheckNodePort: cannot listen on 127.0.0.1:{port}: ");
    assert!(problems.len() == 1 && problems[0].starts_with(&start), "{problems:?}");
    drop(taken);
    assert_eq!(running.problems().await, [""; 0]);
    assert!(get(port).await.unwrap().contains("default"));
}

#[tokio::test]
async fn a_silent_client_holds_nobody_up() {
    let running = Running::start();
    let port = free_port().await;
    running.set("web", port, 1);
    get_soon(port).await;
    let mut silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(get(port).await.unwrap().contains("HTTP/1.1 200"));
    tokio::time::pause();
    // With the time paused, waiting brings the next deadline at once.
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "sent away");
}
