//! What a kubelet gives to the Pod objects of its node, without containers: a network, servers on the declared ports, and
//! status.
//!
//! It watches all Pods that name a node, whatever node. A new one gets a namespace on the [`PodNetwork`], a server that
//! answers with the Pod's name on each declared port, and a status with its addresses and the condition Ready. A deleted
//! one ends at once, unless the annotation [`LINGERS`] keeps it terminating. Nothing else changes a Pod's status: a test
//! that does so has the last word.

use std::{
    collections::BTreeMap,
    io::BufReader,
    process::{ChildStdout, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_common::address::Protocol;
use serde::Deserialize;
use serde_json::json;

use super::{
    kubectl::Kubectl,
    pod_network::{PodNetwork, Sandbox},
};
use crate::{
    process::{Place, Process},
    server::Server,
};

/// Annotation of a Pod that goes on serving after it was deleted, until it is deleted with `--force`.
pub const LINGERS: &str = "sockeye.test/lingers";

/// Between two tries to reach the API server.
const RETRY: Duration = Duration::from_millis(200);

/// A running kubelet; its Pods' servers end when it is dropped.
pub struct Kubelet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    kubectl: Kubectl,
    network: Arc<PodNetwork>,
    stopped: AtomicBool,
    /// `kubectl get --watch`, while it runs.
    watch: Mutex<Option<Process>>,
    /// What went wrong.
    complaints: Mutex<Vec<String>>,
}

impl Kubelet {
    /// Starts to watch.
    pub fn start(kubectl: Kubectl, network: Arc<PodNetwork>) -> Self {
        let shared = Arc::new(Shared {
            kubectl,
            network,
            stopped: AtomicBool::new(false),
            watch: Mutex::new(None),
            complaints: Mutex::new(Vec::new()),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            // The servers are started here and end with this thread.
            thread::spawn(move || shared.run())
        };
        Self { shared, thread: Some(thread) }
    }

    /// What went wrong, to be read when a test waits for a Pod in vain. While the API server is away, much does.
    pub fn complaints(&self) -> String {
        self.shared.complaints.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Ends the thread's read.
        *self.shared.watch() = None;
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut pods = BTreeMap::new();
        while !self.stopped() {
            // The API server is away, or ended the watch: everything is told again in the next one.
            let followed = self.start_watch().map(|events| self.follow(events, &mut pods));
            if let Err(error) = followed {
                self.complain(&error);
            }
            *self.watch() = None;
            thread::sleep(RETRY);
        }
    }

    fn start_watch(&self) -> Result<ChildStdout> {
        let args = ["get", "pods", "--all-namespaces", "--watch", "--output-watch-events", "-o", "json"];
        let mut command = self.kubectl.command(&args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = Process::spawn("kubectl get --watch", command, self.kubectl.place())?;
        let events = process.child().stdout.take().context("kubectl has no standard output")?;
        let mut watch = self.watch();
        if !self.stopped() {
            *watch = Some(process);
        }
        Ok(events)
    }

    fn follow(&self, events: ChildStdout, pods: &mut BTreeMap<String, RunningPod>) {
        let events = serde_json::Deserializer::from_reader(BufReader::new(events));
        for event in events.into_iter::<Event>() {
            // The stream ends in the middle of an event when the watch is killed.
            let Ok(event) = event else { return };
            if let Err(error) = self.observe(&event, pods) {
                self.complain(&error.context(format!("pod {}", event.object.metadata.name)));
            }
        }
    }

    fn observe(&self, event: &Event, pods: &mut BTreeMap<String, RunningPod>) -> Result<()> {
        let Pod { metadata, spec } = &event.object;
        if event.kind == "DELETED" {
            pods.remove(&metadata.uid);
            return Ok(());
        }
        if spec.node_name.is_none() {
            return Ok(());
        }
        if metadata.deletion_timestamp.is_some() {
            if !metadata.annotations.contains_key(LINGERS) {
                self.end(metadata, pods)?;
            }
        } else if !pods.contains_key(&metadata.uid) {
            let pod = RunningPod::start(&self.network, &event.object)?;
            self.report(metadata, &pod)?;
            pods.insert(metadata.uid.clone(), pod);
        }
        Ok(())
    }

    /// The object goes first, then the server: clients have a moment to learn of it.
    fn end(&self, metadata: &Metadata, pods: &mut BTreeMap<String, RunningPod>) -> Result<()> {
        if pods.contains_key(&metadata.uid) {
            let kubectl = self.kubectl.in_namespace(&metadata.namespace);
            kubectl.delete(&["pod", &metadata.name, "--force", "--grace-period=0", "--ignore-not-found"])?;
        }
        Ok(())
    }

    fn report(&self, metadata: &Metadata, pod: &RunningPod) -> Result<()> {
        let Sandbox { v4, v6, .. } = &pod.sandbox;
        let condition = |kind| json!({ "type": kind, "status": "True" });
        self.kubectl.in_namespace(&metadata.namespace).patch_status(
            &["pod", &metadata.name],
            &json!({
                "phase": "Running",
                "podIP": v4,
                "podIPs": [{ "ip": v4 }, { "ip": v6 }],
                "conditions": [condition("PodScheduled"), condition("ContainersReady"), condition("Ready")],
            }),
        )
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn watch(&self) -> MutexGuard<'_, Option<Process>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, error: &anyhow::Error) {
        self.complaints.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
    }
}

/// A Pod's server in its namespace.
struct RunningPod {
    // Dropped before the namespace that it is in.
    _server: Server,
    sandbox: Sandbox,
}

impl RunningPod {
    fn start(network: &PodNetwork, pod: &Pod) -> Result<Self> {
        let sandbox = network.attach("pod")?;
        let ports: Vec<_> = pod
            .spec
            .containers
            .iter()
            .flat_map(|container| &container.ports)
            .map(|port| {
                (if port.protocol == "UDP" { Protocol::Udp } else { Protocol::Tcp }, port.container_port)
            })
            .collect();
        let place = Place { netns: Some(&sandbox.netns), cgroup: None };
        let server = Server::start(&pod.metadata.name, place, &ports)?;
        Ok(Self { _server: server, sandbox })
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Pod,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    deletion_timestamp: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    #[serde(default)]
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    container_port: u16,
    #[serde(default)]
    protocol: String,
}
