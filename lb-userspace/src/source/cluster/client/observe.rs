//! Between the client and the connection: notes whether the server answers, and slows watches down.

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use kube::client::Body;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tower::{BoxError, Layer, Service};

/// How long to wait for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The shortest time between two watches of one resource: a server that ends each watch at once is not asked in a loop.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Whether the API server answers; nothing is known before the first answer. An error says why not.
pub(in crate::source::cluster) type Reachability = Option<Result<(), String>>;

/// Notes whether the server answers, and keeps watches from following each other too closely.
pub(super) struct Observe {
    pub(super) reachability: watch::Sender<Reachability>,
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, reachability: self.reachability.clone(), next_watch: BTreeMap::new() }
    }
}

pub(super) struct Observed<S> {
    inner: S,
    reachability: watch::Sender<Reachability>,
    next_watch: BTreeMap<String, Instant>,
}

impl<S> Observed<S> {
    /// When a request may start.
    fn start(&mut self, request: &Request<Body>) -> Instant {
        let now = Instant::now();
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        if !is_watch {
            return now;
        }
        let next = self.next_watch.entry(request.uri().path().to_owned()).or_insert(now);
        let start = now.max(*next);
        *next = start + WATCH_INTERVAL;
        start
    }
}

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let start = self.start(&request);
        let answer = self.inner.call(request);
        let reachability = self.reachability.clone();
        Box::pin(async move {
            sleep_until(start).await;
            let answer = match timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer.map_err(Into::into),
                Err(_elapsed) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()).into()),
            };
            let news = match &answer {
                // A gateway in front of a server that is away speaks for itself.
                Ok(answer) if answer.status().is_server_error() => {
                    Err(format!("HTTP status {}", answer.status()))
                }
                Ok(_) => Ok(()),
                Err(error) => Err(chain(&**error)),
            };
            reachability.send_if_modified(|known| {
                let changed = known.as_ref().map(Result::is_ok) != Some(news.is_ok());
                *known = Some(news);
                changed
            });
            answer
        })
    }
}

/// An error with its causes.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
