//! A cluster of one real node: control plane, agent, pods, clients.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::address::Protocol;
use lb_tests::{
    cgroup::Cgroup,
    controlplane::{
        ControlPlane,
        kubectl::Kubectl,
        kubelet::Kubelet,
        pod_network::{NODE_ADDRESSES, PodNetwork, Sandbox},
    },
    netns::Netns,
    probe::{Answer, Kind, Prober, Target},
    process::Place,
    server::Server,
    wait,
};
use serde_json::json;
use tempfile::TempDir;

use crate::agent::Agent;

/// The node that the agent runs on.
pub(crate) const NODE: &str = "node-a";
/// A node that exists as an object only; its pods are on the same network.
pub(crate) const OTHER_NODE: &str = "node-b";
/// What the server outside the cluster calls itself, and where it listens (TCP and UDP).
pub(crate) const OUTSIDE: (&str, u16) = ("outside", 8080);

/// From a change of an object to the connections: controllers, API server, agent.
const APPLIED: Duration = Duration::from_secs(20);
/// Enough that each of four backends answers at least once, but for one run in ten thousand; such a run asks again.
const SAMPLE: u32 = 40;
/// A step of a client that finds nobody.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where a client runs; either is in the agent's cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// In the node's own network.
    Node,
    /// In a pod.
    Pod,
}

/// Fields are dropped from first to last: clients of a thing before it.
pub(crate) struct World {
    pub(crate) agent: Agent,
    node_client: Prober,
    pod_client: Prober,
    kubelet: Kubelet,
    pub(crate) plane: ControlPlane,
    _outside: (Server, Netns),
    pub(crate) client_pod: Sandbox,
    pub(crate) cgroup: Arc<Cgroup>,
    pub(crate) network: Arc<PodNetwork>,
    pub(crate) dir: TempDir,
}

impl World {
    /// Starts everything; the agent is ready.
    pub(crate) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sockeye-e2e-").tempdir().context("making a folder")?;
        let network = Arc::new(PodNetwork::new()?);
        let cgroup = Arc::new(Cgroup::new("e2e")?);
        let plane = ControlPlane::start(Arc::clone(network.node()), dir.path(), NODE_ADDRESSES[0])?;
        let kubectl = plane.kubectl();
        create_nodes(&kubectl)?;
        kubectl.run(&["apply", "-k", &deploy_folder().display().to_string()])?;
        let kubeconfig = plane.write_service_account_kubeconfig("agent", "sockeye-system", "sockeye")?;
        let kubelet = Kubelet::start(kubectl, Arc::clone(&network));

        let outside = network.attach_outside()?;
        let there = Place { netns: Some(&outside), cgroup: None };
        let ports = [(Protocol::Tcp, OUTSIDE.1), (Protocol::Udp, OUTSIDE.1)];
        let outside = (Server::start(OUTSIDE.0, there, &ports)?, outside);
        let client_pod = network.attach("client")?;
        let prober = |name, netns| Prober::start(name, Place { netns: Some(netns), cgroup: Some(&cgroup) });
        let node_client = prober("the node", network.node())?;
        let pod_client = prober("the pod", &client_pod.netns)?;

        let mut agent = Agent::new(Arc::clone(network.node()), Arc::clone(&cgroup), dir.path(), &kubeconfig)?;
        agent.start()?;
        agent.wait_ready()?;
        Ok(Self {
            agent,
            node_client,
            pod_client,
            kubelet,
            plane,
            _outside: outside,
            client_pod,
            cgroup,
            network,
            dir,
        })
    }

    /// Waits until connections from `client` are answered by exactly these servers, and until sockets that say whom they
    /// talk to name the Service's address.
    pub(crate) fn reaches(
        &self,
        client: Client,
        kind: Kind,
        to: SocketAddr,
        servers: &BTreeSet<String>,
    ) -> Result<()> {
        let what = format!("{kind:?} from the {client:?} to {to} to be answered by {servers:?}");
        wait::until(&what, APPLIED, || {
            let answers = self.ask(client, Target::new(kind, to).within(PATIENCE), SAMPLE)?;
            let mut found = BTreeSet::new();
            for answer in &answers {
                found.insert(answer.backend()?.to_owned());
                ensure!(talks_to(answer, to), "it seems to talk to somebody else: {answer:?}");
            }
            ensure!(found == *servers, "answered by {found:?}");
            Ok(Some(()))
        })
    }

    /// [`Self::reaches`], from both clients.
    pub(crate) fn both_reach(&self, kind: Kind, to: SocketAddr, servers: &BTreeSet<String>) -> Result<()> {
        self.reaches(Client::Node, kind, to, servers)?;
        self.reaches(Client::Pod, kind, to, servers)
    }

    /// Waits until connections of both clients are refused at once: a Service without endpoints.
    pub(crate) fn refused(&self, kind: Kind, to: SocketAddr) -> Result<()> {
        self.fails(kind, to, "ECONNREFUSED")
    }

    /// Waits until connections of both clients are refused at once: a cluster address, or a port of one, that no Service
    /// has.
    pub(crate) fn no_such_service(&self, kind: Kind, to: SocketAddr) -> Result<()> {
        self.refused(kind, to)
    }

    /// Waits until connections of both clients find no way: the address is no Service's, nor in their networks.
    pub(crate) fn not_a_service(&self, kind: Kind, to: SocketAddr) -> Result<()> {
        self.fails(kind, to, "ENETUNREACH")
    }

    fn fails(&self, kind: Kind, to: SocketAddr, errno: &str) -> Result<()> {
        for client in [Client::Node, Client::Pod] {
            let what = format!("{kind:?} from the {client:?} to {to} to fail with {errno}");
            wait::until(&what, APPLIED, || {
                for answer in self.ask(client, Target::new(kind, to).within(PATIENCE), 3)? {
                    let found = answer.errno()?;
                    ensure!(found == errno, "{found}");
                }
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// What it looks like, to be read with a failure.
    pub(crate) fn describe(&self, namespace: &str) -> String {
        let kubectl = self.plane.kubectl().in_namespace(namespace);
        let objects = kubectl
            .run(&["get", "services,endpoints,endpointslices,pods", "-o", "wide"])
            .unwrap_or_else(|error| format!("{error:#}"));
        format!("{objects}\n{}\n{}", self.kubelet.complaints(), self.agent.describe())
    }

    /// Leaves the folder with the logs and says where.
    pub(crate) fn keep_logs(mut self) -> Result<()> {
        self.dir.disable_cleanup(true);
        let logs = self.dir.path().display();
        writeln!(std::io::stderr(), "the logs are in {logs}").context("telling where the logs are")
    }

    /// Asks from a client, each time with a new socket.
    pub(crate) fn ask(&self, client: Client, target: Target, count: u32) -> Result<Vec<Answer>> {
        self.prober(client).ask(target, count)
    }

    /// The client's process.
    pub(crate) const fn prober(&self, client: Client) -> &Prober {
        match client {
            Client::Node => &self.node_client,
            Client::Pod => &self.pod_client,
        }
    }
}

/// Whether the application sees the address that it asked for.
fn talks_to(answer: &Answer, to: SocketAddr) -> bool {
    [answer.peer, answer.source].into_iter().flatten().all(|seen| seen == to)
}

/// The manifests that operators apply.
pub(crate) fn deploy_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn create_nodes(kubectl: &Kubectl) -> Result<()> {
    for (name, addresses) in [(NODE, &NODE_ADDRESSES[..]), (OTHER_NODE, &[])] {
        kubectl.apply(
            &json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } }).to_string(),
        )?;
        let addresses: Vec<_> =
            addresses.iter().map(|address| json!({ "type": "InternalIP", "address": address })).collect();
        kubectl.patch_status(&["node", name], &json!({ "addresses": addresses }))?;
    }
    Ok(())
}
