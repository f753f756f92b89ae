//! Objects from a cluster's API server.
//!
//! Watched are Services (but headless ones), `EndpointSlices` (but headless ones), the own Node, `ServiceCIDRs` where the API
//! server knows them and, on request, Endpoints: kube-proxy's selectors, but that Services of another proxy are watched,
//! too, so that their addresses are known. Whatever the API server does, the watch goes on: the last state
//! stays in force until a new list replaces it, so that removals during an outage are applied after it.

mod backoff;
mod client;
mod follow;
mod watched;

use std::{path::PathBuf, sync::Arc};

use k8s_openapi::api::{core::v1, discovery::v1 as discovery, networking::v1 as networking};
use kube::runtime::watcher;
use tracing::{info, warn};

pub use self::client::{Client, ClusterError, connect};
use self::follow::{Follower, follow};
use crate::{
    model::{Change, Kind, Object},
    source::{Gone, Sender, convert, send},
};

/// Log targets of the client library that speak on every retry. Sockeye itself logs each transition once: leave these out
/// below a debug level.
pub const NOISY_LOG_TARGETS: [&str; 2] = ["kube_client", "kube_runtime"];

/// How to reach a cluster and what to take from it.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// A kubeconfig file. Absent: the service account of the pod that the agent runs in.
    pub kubeconfig: Option<PathBuf>,
    /// A context of that file. Absent: its current one.
    pub context: Option<String>,
    /// The Node that the agent runs on.
    pub node_name: Arc<str>,
    /// Whether to watch Endpoints, for Services that have no slice.
    pub legacy_endpoints: bool,
}

/// Watches the cluster and sends what changes, until the receiver is gone. Never ends for trouble with the API server:
/// that becomes a [`Change::Connected`] or a [`Problem`](crate::model::Problem), and goes on being tried.
///
/// A kind that is not watched is reset to nothing at once, so that each kind in [`Kind::ALL`] has its list.
pub async fn run(client: Client, config: ClusterConfig, changes: Sender) {
    let watches = async {
        tokio::join!(
            services(&client, &changes),
            slices(&client, &changes),
            node(&client, &config, &changes),
            service_cidrs(&client, &changes),
            endpoints(&client, &config, &changes),
            report_reachability(&client, &changes),
        )
    };
    tokio::select! {
        _ = watches => {}
        () = changes.closed() => {}
    }
}

async fn services(client: &Client, changes: &Sender) {
    let selectors = watcher::Config::default().fields("spec.clusterIP!=None");
    let convert = |service: &v1::Service| {
        let (converted, problems) = convert::service(service);
        (converted.map(Object::Service), problems)
    };
    follow(client, Follower::new(Kind::Service, convert, changes), selectors).await;
}

async fn slices(client: &Client, changes: &Sender) {
    let selectors = watcher::Config::default().labels("!service.kubernetes.io/headless");
    let convert = |slice: &discovery::EndpointSlice| {
        let (converted, problems) = convert::endpoint_slice(slice);
        (converted.map(Object::EndpointSlice), problems)
    };
    follow(client, Follower::new(Kind::EndpointSlice, convert, changes), selectors).await;
}

async fn node(client: &Client, config: &ClusterConfig, changes: &Sender) {
    let selectors = watcher::Config::default().fields(&format!("metadata.name={}", config.node_name));
    let convert = |node: &v1::Node| {
        let (converted, problems) = convert::node(node);
        (converted.map(Object::Node), problems)
    };
    follow(client, Follower::new(Kind::Node, convert, changes), selectors).await;
}

async fn service_cidrs(client: &Client, changes: &Sender) {
    let convert = |object: &networking::ServiceCIDR| {
        let (converted, problems) = convert::service_cidr(object);
        (converted.map(Object::ServiceCidr), problems)
    };
    let follower = Follower::optional(Kind::ServiceCidr, convert, changes);
    follow(client, follower, watcher::Config::default()).await;
}

async fn endpoints(client: &Client, config: &ClusterConfig, changes: &Sender) {
    if !config.legacy_endpoints {
        // Without a receiver, `run` ends of itself.
        let (Ok(()) | Err(Gone)) = send(changes, Change::Reset(Kind::Endpoints, Vec::new())).await;
        return;
    }
    let convert = |endpoints: &v1::Endpoints| {
        let (converted, problems) = convert::endpoints(endpoints);
        (converted.map(|(name, slices)| Object::Endpoints(name, slices)), problems)
    };
    let selectors = watcher::Config::default().labels("!service.kubernetes.io/headless");
    follow(client, Follower::new(Kind::Endpoints, convert, changes), selectors).await;
}

/// Says whether the API server answers, whenever that changes.
async fn report_reachability(client: &Client, changes: &Sender) {
    let mut reachability = client.reachability();
    let mut said = None;
    loop {
        let now = reachability.borrow_and_update().clone();
        let answers = now.as_ref().map(Result::is_ok);
        if let Some(connected) = answers.filter(|_| answers != said) {
            match now.and_then(Result::err) {
                None => info!(server = client.server(), "the API server answers"),
                Some(error) => {
                    warn!(
                        server = client.server(),
                        error, "the API server does not answer; the last state stays in force"
                    );
                }
            }
            said = answers;
            if send(changes, Change::Connected(connected)).await.is_err() {
                return;
            }
        }
        if reachability.changed().await.is_err() {
            return;
        }
    }
}
