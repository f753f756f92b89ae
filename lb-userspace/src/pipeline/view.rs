//! What the pipeline knows, for people: the values behind `status`, `service list` and `backend list`.
//!
//! Plain strings and numbers in the order in which they are printed; computed on request, never kept.

use serde::Serialize;

/// What one call of [`Pipeline::sync`](super::Pipeline::sync) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SyncReport {
    /// Writes that succeeded.
    pub written: usize,
    /// Writes that failed; what depends on them waits.
    pub failed: usize,
    /// Services (and node addresses) whose writes failed: call again, after a pause.
    pub dirty: usize,
    /// Services that do not fit. They are tried again by themselves when room appears: no need to call again.
    pub blocked: usize,
    /// Slots or records wait for a grace period: call [`Pipeline::reclaim`](super::Pipeline::reclaim) when it suits.
    pub retired: bool,
    /// So many backends no longer serve a UDP service port that they served before: sockets may be connected to them.
    pub left: usize,
    /// Which node ports there are, or where they answer, has changed.
    pub node_ports: bool,
}

/// What one call of [`Pipeline::reclaim`](super::Pipeline::reclaim) freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reclaimed {
    /// Slots of `BACKENDS`.
    pub slots: u32,
    /// Records of `SERVICES`.
    pub records: u32,
    /// Services that did not fit and may fit now: call [`Pipeline::sync`](super::Pipeline::sync).
    pub unblocked: usize,
}

/// Counts, for `status` and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// The initial list of every kind has arrived.
    pub synced: bool,
    /// Services known, including those that are never translated.
    pub services: usize,
    /// Service ports in force, one for each port, protocol and family: records of `SERVICES`.
    pub records: Usage,
    /// Entries of `FRONTENDS`.
    pub frontends: Usage,
    /// Slots of `BACKENDS`.
    pub slots: Usage,
    /// Entries of `NODE_ADDRESSES`.
    pub node_addresses: Usage,
    /// Different backends (address, port, protocol) in force.
    pub backends: usize,
    /// Services whose tables are not yet as they should be, because a write failed or none was tried.
    pub dirty: usize,
    /// Services that do not fit into the maps.
    pub blocked: usize,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Elements in use.
    pub used: u32,
    /// Elements that can be taken at once.
    pub free: u32,
    /// Elements that are free after a grace period.
    pub retired: u32,
    /// All.
    pub capacity: u32,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.type`.
    pub service_type: &'static str,
    /// Why it is not translated at all (`headless`, `external name`, `other proxy`, `no cluster address`); absent: it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<&'static str>,
    /// Its ports, one for each port, protocol and family.
    pub ports: Vec<PortView>,
}

/// A service port in one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// The port's name; empty for an unnamed single port.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// `IPv4` or `IPv6`.
    pub family: &'static str,
    /// The service port's number in the maps; absent: not in force yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_id: Option<u32>,
    /// Index in `SERVICES`; absent: not in force yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<u32>,
    /// `internalTrafficPolicy`.
    pub internal_policy: &'static str,
    /// `externalTrafficPolicy`.
    pub external_policy: &'static str,
    /// Seconds until session affinity lapses; zero: none.
    pub affinity_seconds: u32,
    /// Where it is reachable.
    pub frontends: Vec<FrontendView>,
    /// Its endpoints, in use or not.
    pub backends: Vec<BackendView>,
}

/// A frontend of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendView {
    /// Address and port; a node port stands under the unspecified address of its family.
    pub address: String,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    pub kind: &'static str,
    /// In the map now, leading to this service port.
    pub in_force: bool,
    /// The Service that claims the same address, port and protocol, and comes first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_by: Option<String>,
}

/// An endpoint of a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    /// Address and port.
    pub address: String,
    /// The backend's number in the maps; absent: not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// `ready`, `terminating` (and serving) or `not ready`.
    pub state: &'static str,
    /// The node that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// It runs on this node.
    pub local: bool,
    /// The slice (or Endpoints object) that it comes from.
    pub source: String,
    /// It is in the set for policy `Cluster`.
    pub in_cluster_set: bool,
    /// It is in the set for policy `Local`.
    pub in_local_set: bool,
    /// Why it is in the set for policy `Cluster`, or why not.
    pub cluster: &'static str,
    /// Why it is in the set for policy `Local`, or why not.
    pub local_set: &'static str,
}
