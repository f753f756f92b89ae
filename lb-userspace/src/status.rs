//! What an agent says about itself, and the protocol in which it does.
//!
//! A client connects to the agent's Unix socket, writes one line with a [`Request`] (`{"get":"status"}`), and reads
//! one JSON document up to the end: a [`Status`], a [`ServiceList`], a [`BackendList`], or a [`Refusal`]. The names of
//! the fields are a public interface, described in `docs/cli.md`; `sockeye -o json` prints the same documents.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub mod client;
pub mod from_kernel;
pub mod from_pipeline;
pub mod server;
mod table;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "get", rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// A [`Status`].
    Status,
    /// A [`ServiceList`].
    Services,
    /// A [`BackendList`].
    Backends,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// One line.
    pub error: String,
}

/// `sockeye status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether all that was known at the start is in force.
    pub state: State,
    /// What a waiting agent waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting_for: Vec<String>,
    /// The process; absent where none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
    /// Where objects come from; absent where no agent runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The node; absent where no agent runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeStatus>,
    /// What is in the maps.
    pub tables: Vec<TableStatus>,
    /// The kernel.
    pub kernel: KernelStatus,
    /// The devices that clients from outside come in by; empty where no agent runs.
    #[serde(default)]
    pub devices: Vec<DeviceStatus>,
    /// Programs that are attached.
    pub attachments: Vec<Attachment>,
    /// How decisions ended since the maps were made; those that never happened are left out.
    pub outcomes: Vec<OutcomeCount>,
    /// What is wrong now.
    pub problems: Vec<ProblemStatus>,
}

/// Whether all that was known at the start is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// The agent has started, and waits for its input or writes it.
    Waiting,
    /// All that was known at the start is in force, and changes are followed.
    Ready,
    /// No agent runs. What is pinned in the kernel goes on.
    NotRunning,
}

/// The process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Sockeye's version.
    pub version: String,
    /// The commit it was built from, if it was built from a repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The process's number.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Where its maps and links are pinned.
    pub bpffs: String,
    /// Connected UDP sockets that it has ended since it started, because their backend had left.
    #[serde(default)]
    pub ended_sockets: u64,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// What it is.
    pub kind: SourceKind,
    /// The folder, or the kubeconfig file; `in-cluster` for a pod's service account.
    pub location: String,
    /// Whether it can be read now. The last state stays in force while it cannot.
    pub reachable: bool,
    /// Seconds for which that has been so.
    pub since_seconds: u64,
    /// Seconds since it last said anything; absent if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heard_seconds: Option<u64>,
}

/// What a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceKind {
    /// A folder of manifests.
    Folder,
    /// An API server.
    Cluster,
}

/// The node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its zone, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The addresses that translated sources get, at most one a family.
    pub source_addresses: Vec<IpAddr>,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableStatus {
    /// The map.
    pub map: String,
    /// Entries in use.
    pub used: u64,
    /// Entries that fit.
    pub capacity: u64,
}

/// The kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelStatus {
    /// `uname -r`.
    pub release: String,
    /// What was looked for.
    pub features: Vec<FeatureStatus>,
}

/// Something that kernels may have or lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeatureStatus {
    /// Its name.
    pub name: String,
    /// Whether it is there.
    pub found: bool,
    /// Whether Sockeye refuses to start without it.
    pub required: bool,
    /// The first kernel that has it; distributions may have it earlier.
    pub since: String,
    /// What it is for; if it is not required, what happens without it.
    pub meaning: String,
}

/// A device that clients from outside come in by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Whether the programs are attached to it.
    pub served: bool,
    /// Why it was chosen.
    pub why: Vec<String>,
}

/// A program that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The program's name.
    pub program: String,
    /// The kernel's number of the program.
    pub program_id: u32,
    /// The kernel's number of the link; absent for a filter of clsact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_id: Option<u32>,
    /// The cgroup or the device.
    pub target: String,
}

/// How often decisions ended in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeCount {
    /// Its name.
    pub name: String,
    /// One line of meaning.
    pub meaning: String,
    /// How often, over all processors.
    pub count: u64,
}

/// Something wrong with an input or with the kernel, as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemStatus {
    /// The object or the file.
    pub object: String,
    /// The field; empty: the whole object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong, and what was done about it.
    pub what: String,
}

/// `sockeye service list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceList {
    /// The Services, by namespace and name.
    pub services: Vec<ServiceStatus>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its namespace; this, the name and the type are absent where no agent knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `spec.type`.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub service_type: Option<String>,
    /// Why it is not translated at all; absent: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Its ports, one for each port, protocol and family.
    pub ports: Vec<PortStatus>,
}

/// A service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// The port's name; empty for an unnamed single port, or where no agent knows it.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The service port's number in the maps; absent: not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_id: Option<u32>,
    /// Index in `SERVICES`; absent: not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<u32>,
    /// `internalTrafficPolicy`.
    pub internal_policy: String,
    /// `externalTrafficPolicy`.
    pub external_policy: String,
    /// Seconds until session affinity lapses; zero: none.
    pub affinity_seconds: u32,
    /// Where it is reachable.
    pub frontends: Vec<FrontendStatus>,
    /// Its endpoints, in use or not; where no agent runs, those in use.
    pub endpoints: Vec<EndpointStatus>,
}

/// A frontend of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendStatus {
    /// Address and port; a node port stands under the unspecified address of its family.
    pub address: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    pub kind: String,
    /// In the map now, leading to this service port.
    pub in_force: bool,
    /// The Service that claims the same address, port and protocol, and comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<String>,
}

/// An endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Address and port.
    pub address: String,
    /// The backend's number in the maps; absent: not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_id: Option<u32>,
    /// `ready`, `terminating` (and serving) or `not ready`; absent where no agent knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// It runs on this node.
    pub local: bool,
    /// The slice (or Endpoints object) that it comes from; absent where no agent knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The set for policy `Cluster`.
    pub cluster_set: Membership,
    /// The set for policy `Local`.
    pub local_set: Membership,
}

/// Whether an endpoint is in a set, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// Whether it is in the set.
    pub used: bool,
    /// Why, or why not; absent where no agent knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// `sockeye backend list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendList {
    /// The backends, by address.
    pub backends: Vec<BackendStatus>,
}

/// A backend in force: an address and port that at least one service port sends to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    /// Address and port.
    pub address: String,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// Its number in the maps.
    pub id: u32,
    /// It runs on this node.
    pub local: bool,
    /// The node that it runs on; absent where no agent knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The service ports that send to it: `namespace/name:port`, or `service 7` where no agent knows the name.
    pub services: Vec<String>,
}

#[cfg(test)]
mod tests;
