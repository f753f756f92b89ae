//! The cluster's objects as Sockeye understands them: no Kubernetes types, no kernel types.
//!
//! Parsed, not validated: what a type here can hold is what the pipeline can serve. What an object holds beyond that has
//! become a [`Problem`] at the source.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

pub use lb_common::address::Protocol;

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace; empty for objects of the cluster, such as nodes.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A name in a namespace.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` `EndpointSlice`.
    EndpointSlice,
    /// `v1` Endpoints: used for Services that no slice belongs to.
    Endpoints,
    /// `v1` Node: only the agent's own.
    Node,
    /// `networking.k8s.io/v1` `ServiceCIDR`.
    ServiceCidr,
}

impl Kind {
    /// All kinds, in the order in which a source lists them.
    pub const ALL: [Self; 5] =
        [Self::Node, Self::ServiceCidr, Self::Service, Self::EndpointSlice, Self::Endpoints];

    /// The name that Kubernetes uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A Service.
    Service(Service),
    /// An `EndpointSlice`.
    EndpointSlice(EndpointSlice),
    /// An Endpoints object, in the form of a slice (one for each subset and family).
    Endpoints(ObjectName, Vec<EndpointSlice>),
    /// The own Node.
    Node(Node),
    /// A `ServiceCIDR`.
    ServiceCidr(ServiceCidr),
}

impl Object {
    /// The object's kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Endpoints(..) => Kind::Endpoints,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }

    /// The object's name.
    pub fn name(&self) -> ObjectName {
        match self {
            Self::Service(service) => service.name.clone(),
            Self::EndpointSlice(slice) => slice.name.clone(),
            Self::Endpoints(name, _) => name.clone(),
            Self::Node(node) => ObjectName::new("", node.name.clone()),
            Self::ServiceCidr(object) => object.name.clone(),
        }
    }
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceType {
    /// Reachable at its cluster addresses.
    ClusterIp,
    /// And at a port of each node.
    NodePort,
    /// And at the addresses of a load balancer.
    LoadBalancer,
    /// An alias in DNS: never translated.
    ExternalName,
}

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// At random.
    Random,
    /// By consistent hashing of the client: every node that has the same backends chooses the same one.
    Maglev,
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TrafficPolicy {
    /// Endpoints of the whole cluster.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since 1970; of two Services that claim one address and port, the older
    /// wins. Absent (a manifest): younger than all that have one.
    pub created: Option<i64>,
    /// Labels that decide whether the Service is ours (`service.kubernetes.io/service-proxy-name`).
    pub labels: BTreeMap<String, String>,
    /// Its type.
    pub service_type: ServiceType,
    /// `spec.clusterIPs`, or `spec.clusterIP` alone; empty where there is none.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP: None`.
    pub headless: bool,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP (or unset).
    pub ingress_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`: the seconds until it lapses.
    pub affinity_seconds: Option<u32>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `spec.loadBalancerSourceRanges`; empty: no filter.
    pub source_ranges: Vec<ipnet::IpNet>,
    /// `spec.healthCheckNodePort`.
    pub health_check_node_port: Option<u16>,
    /// Annotation `sockeye.io/algorithm`.
    pub algorithm: Option<Algorithm>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// The name; empty for an unnamed single port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
    /// `nodePort`; absent where none is allocated.
    pub node_port: Option<u16>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(ip: &IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// An `EndpointSlice`, or a part of an Endpoints object in this form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The slice's own name.
    pub name: ObjectName,
    /// Name of the Service (label `kubernetes.io/service-name`) in the same namespace.
    pub service: Arc<str>,
    /// The family of all its addresses.
    pub family: Family,
    /// Its ports; those without name or number are left out.
    pub ports: Vec<EndpointPort>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndpointPort {
    /// The name of the Service's port that it belongs to.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The number; never zero.
    pub port: u16,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `conditions`, with Kubernetes' defaults for absent ones.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub zone_hints: Vec<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub node_hints: Vec<Arc<str>>,
}

/// `endpoints[].conditions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Conditions {
    /// Absent: true.
    pub ready: bool,
    /// Absent: true.
    pub serving: bool,
    /// Absent: false.
    pub terminating: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self { ready: true, serving: true, terminating: false }
    }
}

/// The node that the agent runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type `InternalIP`, then `ExternalIP`; the first of each family is the primary one.
    pub addresses: Vec<IpAddr>,
}

/// A `ServiceCIDR`: networks that cluster addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: ObjectName,
    /// `spec.cidrs`.
    pub networks: Vec<ipnet::IpNet>,
}

/// Something wrong with an input, for as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object (`Service default/web`) or the file (`web.yaml`).
    pub object: String,
    /// The field, as Kubernetes writes it (`spec.ports[1].port`); empty: the whole object.
    pub field: String,
    /// What is wrong and what Sockeye does about it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "{}: {}", self.object, self.what)
        } else {
            write!(f, "{}: {}: {}", self.object, self.field, self.what)
        }
    }
}

/// What a source says. Sent in order; a batch is whatever has arrived when the reconciler looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An object appeared or changed.
    Apply(Object),
    /// An object is gone.
    Delete(Kind, ObjectName),
    /// These are all the objects of a kind that exist: others are gone. Ends the initial list, and each later one.
    Reset(Kind, Vec<Object>),
    /// What is wrong with one origin (an object or a file) now; replaces what was said of it before.
    Problems {
        /// `Service default/web`, or a file's name.
        origin: String,
        /// Empty: all is well again.
        problems: Vec<Problem>,
    },
    /// The addresses of the node's interfaces, loopback included; all of them, each time one comes or goes.
    Interfaces(Vec<IpAddr>),
    /// Whether the source is reachable: the last state stays in force while it is not.
    Connected(bool),
}
