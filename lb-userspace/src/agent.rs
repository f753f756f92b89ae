//! The node agent: wires source, reconciler, kernel and status together, and decides the order of a start.
//!
//! ```text
//! source ──┐                                  ┌── status socket
//! netlink ─┼→ changes → reconciler → store    │      asks both
//!    │     │               │ progress         │
//!    │     │               ├──→ datapath (configure, activate, devices)
//!    │     │               │ notices
//!    │     │               └──→ sweeper (stale sockets), watch of node ports, host checks
//!    └ namespaces → NAMESPACES      │
//!          └────────────────────────┘ where sockets are
//! ```
//!
//! Nothing that is in force changes before all initial lists have arrived and are written. Once started, the agent ends
//! only on a signal or a defect of its own: trouble with the API server, a device or a write is told and tried again.

mod answers;
mod datapath;
pub(crate) mod devices;
mod host;
mod namespaces;
mod node_ports;
pub(crate) mod source_address;
mod stale;
pub(crate) mod switches;

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use futures_util::FutureExt as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{debug, info, warn};

use self::{
    answers::{Answers, Facts, Origin},
    datapath::Datapath,
    namespaces::Known,
    stale::Sweeper,
    switches::Host,
};
use crate::{
    config::{self, Config, Instance, NodeIps, SourceConfig},
    health_check::{self, server::HealthServer},
    kernel::{ConnectedSockets, Kernel, KernelConfig, KernelError, Namespaces, ProgramLog},
    model::Change,
    netlink::{self, Interfaces, NetlinkError},
    pipeline::{Pipeline, PipelineSettings},
    reconcile::Reconciler,
    source::{
        self,
        allocate::Pools,
        cluster::{self, Client, ClusterConfig, ClusterError},
        folder::{FolderError, FolderSource},
    },
    status::{
        SourceKind,
        server::{Server, ServerError, check_free},
    },
    store::{Capacity, Store as _, StoreError, kernel::KernelStore},
    telemetry::chain,
};

/// Questions that may wait; the status server has fewer clients at a time.
const QUESTIONS: usize = 16;

/// Why the agent cannot start, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The kernel's side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The pinned tables cannot be read.
    #[error("reading the tables pinned in {} (`sockeye cleanup` removes them)", bpffs.display())]
    Adopt {
        /// Where they are pinned.
        bpffs: PathBuf,
        /// The cause.
        #[source]
        source: StoreError,
    },
    /// The folder of manifests.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The way to the API server.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The status socket.
    #[error(transparent)]
    Status(#[from] ServerError),
    /// The node's interfaces.
    #[error("looking at the node's interfaces")]
    Interfaces(#[from] NetlinkError),
    /// Signals cannot be waited for.
    #[error("waiting for signals")]
    Signals(#[source] std::io::Error),
    /// A part of the agent ended by itself: a defect.
    #[error("the agent's {part} has ended; please report this")]
    Ended {
        /// Which part.
        part: &'static str,
    },
}

/// Where objects come from, ready to start.
enum Source {
    Folder(FolderSource),
    Cluster(Client, ClusterConfig),
}

/// Runs until SIGTERM or SIGINT. Translation goes on afterwards.
pub async fn run(config: Config) -> Result<(), AgentError> {
    let stop = stop_signal()?;
    allow_many_sockets();
    let (mut parts, datapath) = Prepared::new(config).await?.start();
    tokio::select! {
        name = stop => {
            info!(signal = name, "stopping; programs and maps stay in the kernel, and translation goes on");
            Ok(())
        }
        ended = datapath => ended,
        Some(ended) = parts.join_next() => Err(match ended {
            Ok(Ok(part)) => AgentError::Ended { part },
            Ok(Err(error)) => error,
            // A task that panicked; the panic itself has been printed.
            Err(_) => AgentError::Ended { part: "task" },
        }),
    }
}

/// The tasks of the agent. None ends while the agent runs, except to say why it cannot go on.
type Parts = JoinSet<Result<&'static str, AgentError>>;

/// Everything is there, and nothing in force has changed.
struct Prepared {
    facts: Facts,
    source: Source,
    origin: Origin,
    interfaces: Interfaces,
    kernel: Kernel,
    namespaces: Namespaces,
    connected: Result<Option<ConnectedSockets>, KernelError>,
    host: Host,
    node_ips: NodeIps,
    datapath: config::Datapath,
    store: KernelStore,
    pipeline: Pipeline,
    server: Server,
}

impl Prepared {
    async fn new(config: Config) -> Result<Self, AgentError> {
        let Config {
            instance,
            source,
            node_name,
            node_ips,
            node_port_addresses,
            external_ips,
            algorithm,
            datapath,
            log: _,
        } = config;
        let facts = Facts::new(&instance, &node_name);
        let node_name: Arc<str> = node_name.into();
        let (source, origin) = open_source(source, &node_name).await?;
        let interfaces = netlink::read().await?;
        // Before anything is made at the kernel; once more when the socket is bound.
        check_free(&instance.socket)?;
        let mut kernel = Kernel::prepare(&kernel_config(&instance, &datapath))?;
        let server = Server::bind(&instance.socket)?;
        report_features(&kernel);
        let (store, namespaces) = (kernel.store()?, kernel.namespaces()?);
        let connected = kernel.connected_sockets();
        let settings = PipelineSettings { node_name, node_port_addresses, external_ips, algorithm };
        let mut pipeline = Pipeline::new(settings, store.capacity());
        if kernel.reused() {
            adopt(&mut pipeline, &store, &instance)?;
        }
        let host = Host::look(&datapath);
        Ok(Self {
            facts,
            source,
            origin,
            interfaces,
            kernel,
            namespaces,
            connected,
            host,
            node_ips,
            datapath,
            store,
            pipeline,
            server,
        })
    }

    /// Starts all tasks but one: that of the datapath is returned, since its errors are the agent's.
    fn start(self) -> (Parts, impl Future<Output = Result<(), AgentError>>) {
        let Self {
            facts,
            source,
            origin,
            interfaces,
            mut kernel,
            namespaces,
            connected,
            host,
            node_ips,
            datapath,
            store,
            pipeline,
            server,
        } = self;
        let (changes, arrived) = source::channel();
        let (ask_reconciler, asked_reconciler) = mpsc::channel(QUESTIONS);
        let (ask_datapath, asked_datapath) = mpsc::channel(QUESTIONS);
        let (links, watched_links) = watch::channel(interfaces.links);
        let (ready, watched_ready) = watch::channel(false);
        let (reconciler, progress) = Reconciler::new(pipeline, store);
        let checks = reconciler.health_checks();
        // The first change of all: with the lists but without them, the addresses of an earlier agent would go for a
        // moment. The channel is new and has room.
        drop(changes.try_send(Change::Interfaces(interfaces.addresses)));

        let mut parts = Parts::new();
        spawn_source(&mut parts, source, changes.clone());
        let (device_events, watched_events) = watch::channel(0);
        let follow = netlink::follow(changes.clone(), links, device_events);
        parts.spawn(follow.map(|()| Ok("netlink")));
        let (known, watched_namespaces) = watch::channel(Known::default());
        let follow = namespaces::follow(namespaces, watched_events, changes.clone(), known);
        parts.spawn(follow.map(|()| Ok("namespaces")));
        let ended = Arc::new(AtomicU64::new(0));
        let connected = connected.unwrap_or_else(|error| {
            // The rest works without; the channel is new and has room.
            warn!(error = chain(&error), "connected UDP sockets will stay with backends that have left");
            drop(changes.try_send(stale::impossible(&error)));
            None
        });
        let sweeper = Sweeper::new(connected, watched_namespaces, ask_reconciler.clone(), Arc::clone(&ended));
        let notices = reconciler.notices();
        parts.spawn(sweeper.run(progress.clone(), notices.clone()).map(|()| Ok("sweeper")));
        let (facing, watched_facing) = watch::channel(None);
        let node_ports = || node_ports::InForce::new(notices.clone(), ask_reconciler.clone());
        let host_checks = host::follow(watched_facing, node_ports(), changes.clone());
        parts.spawn(host_checks.map(|()| Ok("host checks")));
        let binds = node_ports::watch_binds(node_ports(), changes.clone());
        parts.spawn(binds.map(|()| Ok("watch of node ports")));
        parts.spawn(reconciler.run(arrived, asked_reconciler).map(|()| Ok("reconciler")));
        if let Some(log) = kernel.logger() {
            parts.spawn(forward(log).map(|never| match never {}));
        }
        let health =
            health_check::server::Facts { checks, progress: progress.clone(), ready: watched_ready.clone() };
        let health = HealthServer::new(health, changes.clone());
        parts.spawn(health.run().map(|()| Ok("health check server")));
        let answers = Answers {
            facts,
            origin,
            progress: progress.clone(),
            ready: watched_ready,
            reconciler: ask_reconciler,
            ended,
            datapath: ask_datapath,
        };
        parts.spawn(server.serve(Arc::new(answers)).map(|()| Ok("status server")));
        let datapath =
            Datapath::new(kernel, host, node_ips, datapath.snat_ports, datapath.devices, facing, changes);
        (parts, datapath.run(progress, watched_links, asked_datapath, ready))
    }
}

/// Every health check's port takes a socket for each address, and the usual limit of 1,024 is soon reached.
///
/// A limit that stays as it is becomes a problem only when sockets lack, and those are named then.
fn allow_many_sockets() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most)
    {
        debug!(%error, "cannot raise the limit of open files");
    }
}

/// Goes on with the records, numbers and slots of an earlier agent.
fn adopt(pipeline: &mut Pipeline, store: &KernelStore, instance: &Instance) -> Result<(), AgentError> {
    let bpffs = || instance.bpffs.clone();
    let tables = store.read().map_err(|source| AgentError::Adopt { bpffs: bpffs(), source })?;
    info!(frontends = tables.frontends.len(), "going on with the tables of an earlier agent");
    pipeline.adopt(tables);
    Ok(())
}

/// Forwards what the programs log; never ends.
pub(crate) async fn forward(log: ProgramLog) -> Infallible {
    if let Err(error) = log.forward().await {
        warn!(error = chain(&error), "the programs' log is lost");
    }
    std::future::pending().await
}

/// How long tasks that cannot be cancelled may still take when the agent ends.
pub const SHUTDOWN: Duration = Duration::from_secs(1);

/// Ends with the name of the signal that asks the agent to stop.
pub(crate) fn stop_signal() -> Result<impl Future<Output = &'static str>, AgentError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

async fn open_source(config: SourceConfig, node_name: &Arc<str>) -> Result<(Source, Origin), AgentError> {
    Ok(match config {
        SourceConfig::Folder { directory, service_cidrs } => {
            let location = directory.display().to_string();
            let pools = if service_cidrs.is_empty() { Pools::default() } else { Pools::of(&service_cidrs) };
            let folder = FolderSource::new(directory, node_name)?.with_pools(pools);
            (Source::Folder(folder), Origin { kind: SourceKind::Folder, location })
        }
        SourceConfig::Cluster { kubeconfig, context, legacy_endpoints } => {
            let config =
                ClusterConfig { kubeconfig, context, node_name: Arc::clone(node_name), legacy_endpoints };
            let client = cluster::connect(&config).await?;
            let location = client.server().to_owned();
            (Source::Cluster(client, config), Origin { kind: SourceKind::Cluster, location })
        }
    })
}

fn spawn_source(parts: &mut Parts, source: Source, changes: mpsc::Sender<Change>) {
    match source {
        Source::Folder(folder) => parts.spawn(async move {
            folder.run(changes).await?;
            Ok("source")
        }),
        Source::Cluster(client, config) => parts.spawn(async move {
            Box::pin(cluster::run(client, config, changes)).await;
            Ok("source")
        }),
    };
}

/// The kernel's part of the configuration. Devices are added as they are found.
pub(crate) fn kernel_config(instance: &Instance, datapath: &config::Datapath) -> KernelConfig {
    let capacities = datapath.capacities;
    let defaults = KernelConfig::default();
    KernelConfig {
        bpffs: instance.bpffs.clone(),
        cgroup: datapath.cgroup.clone(),
        capacity: Capacity {
            frontends: capacities.frontends,
            services: capacities.services,
            backends: capacities.backends,
            maglev: defaults.capacity.maglev,
            source_ranges: defaults.capacity.source_ranges,
            node_addresses: defaults.capacity.node_addresses,
        },
        flows: capacities.flows,
        ..defaults
    }
}

fn report_features(kernel: &Kernel) {
    for feature in kernel.features().iter().filter(|feature| !feature.found) {
        warn!(
            feature = feature.name,
            since = feature.since,
            "this kernel lacks a feature: {}",
            feature.purpose
        );
    }
}
