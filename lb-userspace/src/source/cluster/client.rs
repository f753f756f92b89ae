//! The way to the API server: configuration, and a client that notes whether the server answers.

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use kube::{
    client::{Body, ClientBuilder},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tower::{BoxError, Layer, Service};

use super::ClusterConfig;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection may be silent: longer than a watch without events lasts.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(330);
/// The shortest time between two watches of one resource: a server that ends each watch at once is not asked in a loop.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Why a cluster cannot be a source. An API server that does not answer is none of these: it may yet.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The kubeconfig file cannot be used.
    #[error("kubeconfig {}: {field}: {what}", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// The field, as kubeconfig files write it; `-` for the whole file.
        field: String,
        /// What is wrong, and what to do.
        what: String,
        /// The cause.
        #[source]
        source: Option<BoxError>,
    },
    /// There is no kubeconfig and this is no pod with a service account.
    #[error("no service account found; pass --kubeconfig FILE, or --manifests DIR to run without a cluster")]
    InCluster(#[source] BoxError),
}

/// Whether the API server answers; nothing is known before the first answer. An error says why not.
pub(super) type Reachability = Option<Result<(), String>>;

/// A client of one API server.
#[derive(Clone)]
pub struct Client {
    api: kube::Client,
    server: Arc<str>,
    reachability: watch::Receiver<Reachability>,
}

impl Client {
    pub(super) fn api(&self) -> kube::Client {
        self.api.clone()
    }

    pub(super) fn reachability(&self) -> watch::Receiver<Reachability> {
        self.reachability.clone()
    }

    /// The server's URL.
    pub fn server(&self) -> &str {
        &self.server
    }
}

/// Prepares the way to a cluster. Connects only later: the API server need not be there yet.
pub async fn connect(config: &ClusterConfig) -> Result<Client, ClusterError> {
    let mut client = match &config.kubeconfig {
        Some(file) => from_kubeconfig(file, config.context.as_deref()).await?,
        None => kube::Config::incluster().map_err(|error| ClusterError::InCluster(error.into()))?,
    };
    client.connect_timeout = Some(CONNECT_TIMEOUT);
    client.read_timeout = Some(SILENCE_TIMEOUT);
    client.reset_reader_on_write = true;
    // Sockeye itself decides when to try again.
    client.default_retry = false;
    let server = client.cluster_url.to_string().into();
    let (sender, reachability) = watch::channel(None);
    let builder = ClientBuilder::try_from(client).map_err(|error| match &config.kubeconfig {
        Some(file) => problem(file, "-", "its credentials cannot be used", Some(error.into())),
        None => ClusterError::InCluster(error.into()),
    })?;
    let api = builder.with_layer(&Observe { reachability: sender }).build();
    Ok(Client { api, server, reachability })
}

fn problem(
    file: &Path,
    field: impl Into<String>,
    what: impl Into<String>,
    source: Option<BoxError>,
) -> ClusterError {
    ClusterError::Kubeconfig { file: file.to_owned(), field: field.into(), what: what.into(), source }
}

async fn from_kubeconfig(file: &Path, context: Option<&str>) -> Result<kube::Config, ClusterError> {
    let kubeconfig = Kubeconfig::read_from(file).map_err(|error| unreadable(file, error))?;
    let cluster = chosen_cluster(file, &kubeconfig, context)?;
    let named = kubeconfig.clusters.iter().find(|named| named.name == cluster);
    let has_proxy = named
        .and_then(|named| named.cluster.as_ref())
        .and_then(|cluster| cluster.proxy_url.as_ref())
        .is_some_and(|proxy| !proxy.is_empty());
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .map_err(|error| unusable(file, &cluster, error))?;
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        let field = cluster_field(&cluster, "certificate-authority");
        return Err(problem(file, field, "holds no certificate; it must be PEM", None));
    }
    if !has_proxy {
        // Of the environment: meant for the machine's way to the world, not to its own control plane.
        config.proxy_url = None;
    }
    Ok(config)
}

/// The name of the cluster that the context leads to. Says what there is to choose from.
fn chosen_cluster(file: &Path, config: &Kubeconfig, context: Option<&str>) -> Result<String, ClusterError> {
    let listed = |names: Vec<&str>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let contexts = listed(config.contexts.iter().map(|context| context.name.as_str()).collect());
    let Some(chosen) = context.or(config.current_context.as_deref()).filter(|name| !name.is_empty()) else {
        let what = format!("is not set; set it, or choose a context (there are: {contexts})");
        return Err(problem(file, "current-context", what, None));
    };
    let found = config.contexts.iter().find(|context| context.name == chosen);
    let Some(context) = found.and_then(|context| context.context.as_ref()) else {
        let what = format!("there is no context \"{chosen}\" (there are: {contexts})");
        return Err(problem(file, "contexts", what, None));
    };
    let clusters = listed(config.clusters.iter().map(|cluster| cluster.name.as_str()).collect());
    if config.clusters.iter().any(|named| named.name == context.cluster && named.cluster.is_some()) {
        Ok(context.cluster.clone())
    } else {
        let what = format!("there is no cluster \"{}\" (there are: {clusters})", context.cluster);
        Err(problem(file, format!("contexts[{chosen}].context.cluster"), what, None))
    }
}

fn cluster_field(cluster: &str, field: &str) -> String {
    format!("clusters[{cluster}].cluster.{field}")
}

fn unreadable(file: &Path, error: KubeconfigError) -> ClusterError {
    match error {
        KubeconfigError::ReadConfig(source, _) => {
            problem(file, "-", "cannot be read; check the path and its permissions", Some(source.into()))
        }
        KubeconfigError::Parse(source) => {
            let line =
                source.location().map_or_else(String::new, |location| format!(", line {}", location.line()));
            problem(
                file,
                "-",
                format!("is no kubeconfig{line}"),
                Some(source.without_snippet().to_string().into()),
            )
        }
        other => problem(file, "-", "is no kubeconfig", Some(other.into())),
    }
}

fn unusable(file: &Path, cluster: &str, error: KubeconfigError) -> ClusterError {
    let (field, what) = match &error {
        KubeconfigError::MissingClusterUrl => ("server", "is not set"),
        KubeconfigError::ParseClusterUrl(_) => ("server", "is no URL"),
        KubeconfigError::LoadCertificateAuthority(_) => ("certificate-authority", "cannot be loaded"),
        KubeconfigError::ParseCertificates(_) => ("certificate-authority", "is not PEM"),
        KubeconfigError::ParseProxyUrl(_) => ("proxy-url", "is no URL"),
        _ => return problem(file, "-", "cannot be used", Some(error.into())),
    };
    problem(file, cluster_field(cluster, field), what, Some(error.into()))
}

/// Notes whether the server answers, and keeps watches from following each other too closely.
struct Observe {
    reachability: watch::Sender<Reachability>,
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, reachability: self.reachability.clone(), next_watch: BTreeMap::new() }
    }
}

struct Observed<S> {
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
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let start = self.start(&request);
        let answer = self.inner.call(request);
        let reachability = self.reachability.clone();
        Box::pin(async move {
            sleep_until(start).await;
            let answer = match timeout(ANSWER_TIMEOUT, answer).await {
                Ok(answer) => answer,
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
