//! From flags and the machine's facts to a validated configuration.
//!
//! Two types: what was typed ([`RunFlags`], [`LoadFlags`]) and what holds ([`Config`], [`LoadConfig`]). Each flags type is
//! taken apart once, by name, so that a flag nobody uses does not compile. Resolving is pure: what it needs to know of
//! the machine comes as [`Machine`].

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use ipnet::IpNet;

pub use flags::{InstanceFlags, LoadFlags, LogFlags, LogFormat, RunFlags};
pub use machine::Machine;
pub use values::{DeviceChoice, DevicePattern, PortRange};

use crate::pipeline::{DefaultAlgorithm, NodePortAddresses};

mod flags;
mod machine;
mod values;

/// Where maps, links and programs are pinned, by default.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/sockeye";

/// What `sockeye run` works with.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which agent this is.
    pub instance: Instance,
    /// Where objects come from.
    pub source: SourceConfig,
    /// The node's name in the cluster.
    pub node_name: String,
    /// The node's addresses for translated sources, where they are given.
    pub node_ips: NodeIps,
    /// Which addresses answer node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Whether `spec.externalIPs` are served.
    pub external_ips: bool,
    /// How backends are chosen where a Service does not say it.
    pub algorithm: DefaultAlgorithm,
    /// What is loaded and where it is attached.
    pub datapath: Datapath,
    /// What is logged and how.
    pub log: LogConfig,
}

/// What `sockeye load` works with.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// Which agent this would be.
    pub instance: Instance,
    /// The node's addresses for translated sources.
    pub node_ips: NodeIps,
    /// What is loaded and where it is attached.
    pub datapath: Datapath,
    /// Leave programs and maps in the kernel on exit.
    pub pin: bool,
    /// What is logged and how.
    pub log: LogConfig,
}

/// One agent of possibly several on a machine: what tells them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Directory of the pinned maps, links and programs.
    pub bpffs: PathBuf,
    /// The status socket.
    pub socket: PathBuf,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A folder of manifests.
    Folder {
        /// The folder.
        directory: PathBuf,
        /// The networks that ClusterIPs are allocated from, at most one a family; empty: the default ones.
        service_cidrs: Vec<IpNet>,
    },
    /// A cluster's API server.
    Cluster {
        /// The kubeconfig file; none: the pod's service account.
        kubeconfig: Option<PathBuf>,
        /// The context in it; none: its current one.
        context: Option<String>,
        /// Whether Endpoints are watched, for Services that have no slice.
        legacy_endpoints: bool,
    },
}

/// At most one address a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeIps {
    /// IPv4.
    pub v4: Option<Ipv4Addr>,
    /// IPv6.
    pub v6: Option<Ipv6Addr>,
}

/// What is loaded and where it is attached.
#[derive(Clone, Debug)]
pub struct Datapath {
    /// The cgroup whose sockets are served, and those of all cgroups below it.
    pub cgroup: PathBuf,
    /// The devices that serve clients from outside.
    pub devices: DeviceChoice,
    /// The sizes of the maps.
    pub capacities: Capacities,
    /// The ports for translated sources.
    pub snat_ports: PortRange,
    /// The networks of the cluster's pods, at most one a family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Whether these are reserved: given to no socket of the node by the kernel itself.
    pub reserve_snat_ports: bool,
    /// Whether a process of the host that binds a node port in use is refused.
    pub protect_node_ports: bool,
}

/// The sizes of the maps, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// `FRONTENDS`.
    pub frontends: u32,
    /// `SERVICES`.
    pub services: u32,
    /// `BACKENDS`.
    pub backends: u32,
    /// `FLOWS`.
    pub flows: u32,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A filter in the syntax of `RUST_LOG`.
    pub filter: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// Why flags and machine do not make a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two flags contradict each other.
    #[error("{first} and {second} exclude each other: leave one of them out")]
    Contradiction {
        /// A flag.
        first: &'static str,
        /// Another flag.
        second: &'static str,
    },
    /// A flag means nothing without another one.
    #[error("{flag} needs {needed}")]
    Needs {
        /// The flag that was given.
        flag: &'static str,
        /// The flag that is missing.
        needed: &'static str,
    },
    /// A flag's value cannot be used.
    #[error("{flag} {value}: {what}")]
    Unusable {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Neither folder nor cluster.
    #[error(
        "no source: give --manifests DIR or --kubeconfig FILE, set KUBECONFIG, or run as a pod with a service account"
    )]
    NoSource,
    /// There is no cgroup v2.
    #[error(
        "no cgroup v2 is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup) or give --cgroup PATH"
    )]
    NoCgroup,
    /// There is no name to look for in `nodeName`.
    #[error("no node name: give --node-name NAME or set NODE_NAME, since the machine has no host name")]
    NoNodeName,
}

impl RunFlags {
    /// Resolves what was typed on a machine.
    pub fn resolve(self, machine: &Machine) -> Result<Config, ConfigError> {
        let Self {
            source,
            node_name,
            node_ips,
            nodeport_addresses,
            external_ips,
            algorithm,
            instance,
            datapath,
            log,
        } = self;
        Ok(Config {
            source: source.resolve(machine)?,
            node_name: resolve_node_name(node_name.as_deref(), machine)?,
            node_ips: resolve_node_ips(&node_ips)?,
            node_port_addresses: nodeport_addresses,
            external_ips,
            algorithm,
            instance: instance.resolve()?,
            datapath: datapath.resolve(machine)?,
            log: log.resolve()?,
        })
    }
}

impl flags::SourceFlags {
    fn resolve(self, machine: &Machine) -> Result<SourceConfig, ConfigError> {
        let Self { manifests, service_cidrs, kubeconfig, context, legacy_endpoints } = self;
        if let Some(directory) = manifests {
            if kubeconfig.is_some() {
                return Err(ConfigError::Contradiction { first: "--manifests", second: "--kubeconfig" });
            }
            if context.is_some() {
                return Err(ConfigError::Contradiction { first: "--manifests", second: "--context" });
            }
            check_one_per_family("--service-cidr", &service_cidrs)?;
            return Ok(SourceConfig::Folder { directory, service_cidrs });
        }
        if !service_cidrs.is_empty() {
            return Err(ConfigError::Needs { flag: "--service-cidr", needed: "--manifests" });
        }
        // A context can only come from a file, so it rules the pod's own account out.
        let kubeconfig = match (kubeconfig, &context) {
            (Some(file), _) => Some(file),
            (None, None) if machine.in_cluster => None,
            (None, _) => Some(machine.kubeconfig.clone().ok_or(match context {
                Some(_) => ConfigError::Needs { flag: "--context", needed: "--kubeconfig" },
                None => ConfigError::NoSource,
            })?),
        };
        Ok(SourceConfig::Cluster { kubeconfig, context, legacy_endpoints })
    }
}

impl LoadFlags {
    /// Resolves what was typed on a machine.
    pub fn resolve(self, machine: &Machine) -> Result<LoadConfig, ConfigError> {
        let Self { node_ips, instance, datapath, pin, log } = self;
        Ok(LoadConfig {
            node_ips: resolve_node_ips(&node_ips)?,
            instance: instance.resolve()?,
            datapath: datapath.resolve(machine)?,
            pin,
            log: log.resolve()?,
        })
    }
}

impl InstanceFlags {
    /// Derives the socket from the pin path unless it was given.
    pub fn resolve(self) -> Result<Instance, ConfigError> {
        let Self { bpffs, socket } = self;
        let normal = normal_path(&bpffs).ok_or_else(|| ConfigError::Unusable {
            flag: "--bpffs",
            value: bpffs.display().to_string(),
            what: "give an absolute path below a mounted bpffs, such as /sys/fs/bpf/sockeye".to_owned(),
        })?;
        let socket = socket.unwrap_or_else(|| socket_of(&normal));
        // sun_path holds 108 bytes with the closing zero (unix(7)).
        if socket.as_os_str().len() > 107 {
            return Err(ConfigError::Unusable {
                flag: "--socket",
                value: socket.display().to_string(),
                what: "a socket's path has at most 107 bytes; give a shorter one".to_owned(),
            });
        }
        Ok(Instance { bpffs: normal, socket })
    }
}

impl flags::DatapathFlags {
    fn resolve(self, machine: &Machine) -> Result<Datapath, ConfigError> {
        let Self {
            cgroup,
            devices,
            max_frontends,
            max_services,
            max_backends,
            max_flows,
            snat_ports,
            cluster_cidrs,
            reserve_snat_ports,
            protect_nodeports,
        } = self;
        check_one_per_family("--cluster-cidr", &cluster_cidrs)?;
        Ok(Datapath {
            cgroup: cgroup.or_else(|| machine.cgroup_root()).ok_or(ConfigError::NoCgroup)?,
            devices,
            capacities: Capacities {
                frontends: max_frontends,
                services: max_services,
                backends: max_backends,
                flows: max_flows,
            },
            snat_ports,
            cluster_cidrs,
            reserve_snat_ports,
            protect_node_ports: protect_nodeports,
        })
    }
}

impl LogFlags {
    /// Checks the filter.
    pub fn resolve(self) -> Result<LogConfig, ConfigError> {
        let Self { log: filter, log_format: format } = self;
        match tracing_subscriber::EnvFilter::builder().parse(&filter) {
            Ok(_) => Ok(LogConfig { filter, format }),
            Err(error) => Err(ConfigError::Unusable {
                flag: "--log",
                value: filter,
                what: format!(
                    "{error}; give a level such as debug, or a filter such as info,lb_userspace=debug"
                ),
            }),
        }
    }
}

fn check_one_per_family(flag: &'static str, networks: &[IpNet]) -> Result<(), ConfigError> {
    let unusable = |what: &str| {
        let value = networks.iter().map(IpNet::to_string).collect::<Vec<_>>().join(",");
        Err(ConfigError::Unusable { flag, value, what: what.to_owned() })
    };
    for family in [true, false] {
        if networks.iter().filter(|network| network.addr().is_ipv4() == family).count() > 1 {
            return unusable("give at most one network a family");
        }
    }
    if networks.iter().any(|network| network.prefix_len() == 0) {
        return unusable("a network of all addresses leaves none to anybody else");
    }
    Ok(())
}

/// The kubelet registers lower-cased names; a name from a file often ends in a newline.
fn resolve_node_name(given: Option<&str>, machine: &Machine) -> Result<String, ConfigError> {
    let normal = |name: &str| Some(name.trim().to_lowercase()).filter(|name| !name.is_empty());
    given
        .and_then(normal)
        .or_else(|| machine.hostname.as_deref().and_then(normal))
        .ok_or(ConfigError::NoNodeName)
}

fn resolve_node_ips(given: &[IpAddr]) -> Result<NodeIps, ConfigError> {
    let unusable = |ip: &IpAddr, what: &str| ConfigError::Unusable {
        flag: "--node-ip",
        value: ip.to_string(),
        what: what.to_owned(),
    };
    let mut ips = NodeIps::default();
    for ip in given {
        if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
            return Err(unusable(ip, "give an address that other machines reach this node at"));
        }
        let twice = match ip {
            IpAddr::V4(v4) => ips.v4.replace(*v4).is_some(),
            IpAddr::V6(v6) => ips.v6.replace(*v6).is_some(),
        };
        if twice {
            return Err(unusable(ip, "give at most one address a family"));
        }
    }
    Ok(ips)
}

/// An absolute path without `.`, `..` or doubled separators; none if the path is not like that or is the root.
fn normal_path(path: &Path) -> Option<PathBuf> {
    use std::path::Component;
    let normal: PathBuf = path.components().collect();
    let plain = normal.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    (path.is_absolute() && plain && normal.parent().is_some()).then_some(normal)
}

fn socket_of(bpffs: &Path) -> PathBuf {
    if bpffs == Path::new(DEFAULT_BPFFS) {
        return PathBuf::from("/run/sockeye/agent.sock");
    }
    let name = bpffs.to_string_lossy().trim_matches('/').replace('/', "-");
    PathBuf::from(format!("/run/sockeye/{name}.sock"))
}

#[cfg(test)]
mod tests;
