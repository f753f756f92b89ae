//! What can be typed: the flags with the help that operators read.

use std::{net::IpAddr, path::PathBuf};

use clap::{ArgAction, Args, ValueEnum};
use ipnet::IpNet;
use lb_common::config::{SNAT_PORT_FIRST, SNAT_PORT_LAST, capacity};

use super::values::{DeviceChoice, PortRange};
use crate::pipeline::{DefaultAlgorithm, NodePortAddresses};

/// The decision searches a set in at most 24 steps (`lb_common::decide`), and a flow table beyond this eats gigabytes.
const MAX_ELEMENTS: i64 = 1 << 24;

fn elements() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=MAX_ELEMENTS)
}

/// The flags of `sockeye run`.
#[derive(Clone, Debug, Args)]
pub struct RunFlags {
    #[command(flatten)]
    pub(super) source: SourceFlags,

    /// The node's name, as in `nodeName` of the endpoints [default: the host name, lower-cased]
    #[arg(long, value_name = "NAME", env = "NODE_NAME", help_heading = "Node")]
    pub(super) node_name: Option<String>,

    /// The address that translated sources get, one a family [default: the Node's, else an interface's]
    #[arg(
        long = "node-ip",
        value_name = "IP",
        env = "SOCKEYE_NODE_IP",
        value_delimiter = ',',
        help_heading = "Node"
    )]
    pub(super) node_ips: Vec<IpAddr>,

    /// Where node ports answer: primary (the Node's addresses), localhost, all, or networks
    #[arg(
        long,
        value_name = "WHERE,…",
        env = "SOCKEYE_NODEPORT_ADDRESSES",
        default_value_t,
        help_heading = "Node"
    )]
    pub(super) nodeport_addresses: NodePortAddresses,

    /// Whether `spec.externalIPs` of Services are served; anybody who may create a Service can claim any address with it
    #[arg(
        long,
        value_name = "BOOL",
        env = "SOCKEYE_EXTERNAL_IPS",
        action = ArgAction::Set,
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        help_heading = "Node"
    )]
    pub(super) external_ips: bool,

    /// How backends are chosen where a Service's annotation `sockeye.io/algorithm` (random or maglev) does not say it
    #[arg(
        long,
        value_name = "HOW",
        env = "SOCKEYE_ALGORITHM",
        value_enum,
        default_value_t,
        help_heading = "Node"
    )]
    pub(super) algorithm: DefaultAlgorithm,

    #[command(flatten)]
    pub(super) instance: InstanceFlags,
    #[command(flatten)]
    pub(super) datapath: DatapathFlags,
    #[command(flatten)]
    pub(super) log: LogFlags,
}

/// Where objects come from.
#[derive(Clone, Debug, Args)]
#[command(
    next_help_heading = "Source (a folder, else a cluster: --kubeconfig, the pod's account, $KUBECONFIG)"
)]
pub(super) struct SourceFlags {
    /// Read Services, EndpointSlices, Endpoints and Nodes from the YAML and JSON files of a folder, and follow its changes
    #[arg(long, value_name = "DIR", env = "SOCKEYE_MANIFESTS")]
    pub(super) manifests: Option<PathBuf>,

    /// With --manifests: allocate ClusterIPs from this network, one a family [default: `10.96.0.0/16,fd00:10:96::/112`]
    #[arg(long = "service-cidr", value_name = "CIDR,…", env = "SOCKEYE_SERVICE_CIDR", value_delimiter = ',')]
    pub(super) service_cidrs: Vec<IpNet>,

    /// Watch the cluster of this file
    #[arg(long, value_name = "FILE", env = "SOCKEYE_KUBECONFIG")]
    pub(super) kubeconfig: Option<PathBuf>,

    /// The context in the kubeconfig file [default: its current one]
    #[arg(long, value_name = "NAME", env = "SOCKEYE_CONTEXT")]
    pub(super) context: Option<String>,

    /// Watch Endpoints too, and use them for Services that no EndpointSlice belongs to (mirroring switched off)
    #[arg(long, env = "SOCKEYE_LEGACY_ENDPOINTS")]
    pub(super) legacy_endpoints: bool,
}

/// The flags of `sockeye load`.
#[derive(Clone, Debug, Args)]
pub struct LoadFlags {
    /// The address that translated sources get, one a family
    #[arg(long = "node-ip", value_name = "IP", value_delimiter = ',')]
    pub(super) node_ips: Vec<IpAddr>,

    #[command(flatten)]
    pub(super) instance: InstanceFlags,
    #[command(flatten)]
    pub(super) datapath: DatapathFlags,

    /// Leave programs, links and maps in the kernel and exit; without it they go on Ctrl-C
    #[arg(long)]
    pub(super) pin: bool,

    #[command(flatten)]
    pub(super) log: LogFlags,
}

/// Which agent: several may live on one machine, each with its own pin path and cgroup.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Which agent")]
pub struct InstanceFlags {
    /// The directory where maps, links and programs are pinned
    #[arg(long, value_name = "PATH", env = "SOCKEYE_BPFFS", default_value = super::DEFAULT_BPFFS)]
    pub(super) bpffs: PathBuf,

    /// The status socket [default: /run/sockeye/agent.sock, for another --bpffs /run/sockeye/<path with ->.sock]
    #[arg(long, value_name = "PATH", env = "SOCKEYE_SOCKET")]
    pub(super) socket: Option<PathBuf>,
}

/// What is loaded and where it is attached.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Datapath")]
pub(super) struct DatapathFlags {
    /// The cgroup whose processes are served, with all below it [default: the root of cgroup v2]
    #[arg(long, value_name = "PATH", env = "SOCKEYE_CGROUP")]
    pub(super) cgroup: Option<PathBuf>,

    /// The devices that clients from outside come in by: auto (those that carry the node's addresses or have a default
    /// route), none, or names with the shell's * ? [a-z]
    #[arg(long, value_name = "auto|none|PATTERN,…", env = "SOCKEYE_DEVICES", default_value_t = DeviceChoice::Auto)]
    pub(super) devices: DeviceChoice,

    /// Room for frontends: one each for an address, port and protocol of a Service
    #[arg(long, value_name = "N", env = "SOCKEYE_MAX_FRONTENDS", default_value_t = capacity::FRONTENDS, value_parser = elements())]
    pub(super) max_frontends: u32,

    /// Room for ports of Services
    #[arg(long, value_name = "N", env = "SOCKEYE_MAX_SERVICES", default_value_t = capacity::SERVICES, value_parser = elements())]
    pub(super) max_services: u32,

    /// Room for backends; a change needs room for the old and the new set of a Service
    #[arg(long, value_name = "N", env = "SOCKEYE_MAX_BACKENDS", default_value_t = capacity::BACKENDS, value_parser = elements())]
    pub(super) max_backends: u32,

    /// Room for connections from outside: two each
    #[arg(long, value_name = "N", env = "SOCKEYE_MAX_FLOWS", default_value_t = capacity::FLOWS, value_parser = elements())]
    pub(super) max_flows: u32,

    /// The ports for translated sources; keep them out of `net.ipv4.ip_local_port_range`
    #[arg(
        long,
        value_name = "FIRST-LAST",
        env = "SOCKEYE_SNAT_PORTS",
        default_value_t = PortRange { first: SNAT_PORT_FIRST, last: SNAT_PORT_LAST }
    )]
    pub(super) snat_ports: PortRange,

    /// The networks of the cluster's pods, one a family: for clients from there, external addresses lead to all endpoints
    #[arg(long = "cluster-cidr", value_name = "CIDR,…", env = "SOCKEYE_CLUSTER_CIDR", value_delimiter = ',')]
    pub(super) cluster_cidrs: Vec<IpNet>,
    /// Whether these ports are added to `net.ipv4.ip_local_reserved_ports`, so that no socket of the node gets one by
    /// itself; `sockeye cleanup` gives them back
    #[arg(
        long,
        value_name = "BOOL",
        env = "SOCKEYE_RESERVE_SNAT_PORTS",
        action = ArgAction::Set,
        default_value_t = false,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true
    )]
    pub(super) reserve_snat_ports: bool,

    /// Whether a process of the host that binds a node port in use gets `EADDRINUSE`; it would never see a connection
    #[arg(
        long,
        value_name = "BOOL",
        env = "SOCKEYE_PROTECT_NODEPORTS",
        action = ArgAction::Set,
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true
    )]
    pub(super) protect_nodeports: bool,
}

/// What is logged and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogFlags {
    /// What is logged: error, warn, info, debug, trace, or a filter that names modules and libraries
    /// (`info,lb_userspace::reconcile=debug,kube_client=debug`)
    #[arg(long, value_name = "FILTER", env = "SOCKEYE_LOG", default_value = "info")]
    pub(super) log: String,

    /// The form of a line
    #[arg(long, value_name = "FORMAT", env = "SOCKEYE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
