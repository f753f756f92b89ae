//! The way to the API server: configuration, connections, and whether the server answers.

mod kubeconfig;
mod observe;

use std::{path::PathBuf, sync::Arc, time::Duration};

use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::client::{Body, ClientBuilder, ConfigExt};
use tokio::sync::watch;
use tower::{BoxError, ServiceExt, util::option_layer};

use self::observe::{Observe, Reachability};
use super::ClusterConfig;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent before the other side is asked whether it is there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
/// How often it is asked.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How often it may leave the question open. The connection counts as lost within about a minute of its silent end.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long what was sent may remain unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

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
    let settings = match &config.kubeconfig {
        Some(file) => kubeconfig::read(file, config.context.as_deref()).await?,
        None => kube::Config::incluster().map_err(|error| ClusterError::InCluster(error.into()))?,
    };
    let (sender, reachability) = watch::channel(None);
    let api = client_of(&settings, &Observe { reachability: sender }).map_err(|error| {
        match &config.kubeconfig {
            Some(file) => kubeconfig::unusable_credentials(file, error),
            None => ClusterError::InCluster(error.into()),
        }
    })?;
    Ok(Client { api, server: settings.cluster_url.to_string().into(), reachability })
}

/// The client library's own stack, but: connections that notice a silent end, no proxy of the environment (it is meant
/// for the machine's way to the world), no retries below ours, and no log line for each of them.
fn client_of(config: &kube::Config, observe: &Observe) -> kube::Result<kube::Client> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(KEEPALIVE_AFTER));
    connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new()).build(connector);
    let client = ClientBuilder::new(http.map_err(BoxError::from), config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?)
        .with_layer(&option_layer(config.auth_layer()?))
        .with_layer(&config.base_uri_layer())
        .with_layer(observe);
    Ok(client.build())
}
