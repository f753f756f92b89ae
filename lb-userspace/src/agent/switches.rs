//! The run-time switches of the programs (`CONFIG`): what they cannot find out themselves.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use lb_common::{
    config::{Config, LAYOUT_VERSION, flags},
    flow::Lifetimes,
    network::Network,
    prefix::Prefix,
};

use ipnet::IpNet;

use crate::{
    config::{Datapath, Machine, NodeIps, PortRange},
    kernel,
};

/// Where the kubelet puts the pods of a quality of service, below the cgroup of all: with its cgroup driver `systemd`,
/// and with `cgroupfs`. Pods of the third quality, `Guaranteed`, lie beside them.
const QOS_CGROUPS: [[&str; 2]; 2] = [
    ["kubepods.slice/kubepods-burstable.slice", "kubepods.slice/kubepods-besteffort.slice"],
    ["kubepods/burstable", "kubepods/besteffort"],
];

/// The host that the programs run on.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    netns_cookie: u64,
    cgroup: PathBuf,
    cgroup_level: u32,
    protect_node_ports: bool,
    cluster_networks: [Network; 2],
    lifetimes: Lifetimes,
}

impl Host {
    /// Looks at the host of this process.
    pub(crate) fn look(datapath: &Datapath) -> Self {
        let Datapath { cgroup, protect_node_ports, cluster_cidrs, lifetimes, .. } = datapath;
        let cgroup = fs::canonicalize(cgroup).unwrap_or_else(|_| cgroup.clone());
        Self {
            // Without the option (before 5.14) no node port answers at loopback addresses; the features tell so.
            netns_cookie: kernel::netns_cookie().unwrap_or(0),
            cgroup_level: Machine::look().cgroup_level(&cgroup),
            cgroup,
            protect_node_ports: *protect_node_ports,
            cluster_networks: networks(cluster_cidrs),
            lifetimes: *lifetimes,
        }
    }

    /// The value of `CONFIG`. Looks for the kubelet's cgroups anew, since they may come later.
    pub(crate) fn switches(&self, ips: NodeIps, ports: PortRange) -> Config {
        Config {
            host_netns_cookie: self.netns_cookie,
            qos_cgroups: qos_cgroups(&self.cgroup),
            node_v4: IpAddr::V4(ips.v4.unwrap_or(Ipv4Addr::UNSPECIFIED)).into(),
            node_v6: IpAddr::V6(ips.v6.unwrap_or(Ipv6Addr::UNSPECIFIED)).into(),
            cluster_networks: self.cluster_networks,
            lifetimes: self.lifetimes,
            cgroup_level: self.cgroup_level,
            snat_port_first: ports.first,
            snat_port_last: ports.last,
            layout_version: LAYOUT_VERSION,
            flags: if self.protect_node_ports { flags::PROTECT_NODE_PORTS } else { 0 },
        }
    }
}

/// The networks, at most one a family, as the programs compare with them.
fn networks(cidrs: &[IpNet]) -> [Network; 2] {
    let mut networks = [Network::NONE; 2];
    for (network, cidr) in networks.iter_mut().zip(cidrs) {
        *network = Network::new(Prefix::of(cidr.addr(), cidr.prefix_len()));
    }
    networks
}

/// The ids of the kubelet's cgroups for qualities of service: the numbers of their inodes. Zero: not there.
fn qos_cgroups(root: &Path) -> [u64; 2] {
    let ids =
        QOS_CGROUPS.map(|paths| paths.map(|path| fs::metadata(root.join(path)).map_or(0, |file| file.ino())));
    ids.into_iter().find(|ids| *ids != [0, 0]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use lb_common::address::Address;

    use super::*;

    fn host(cgroup: &Path) -> Host {
        Host {
            netns_cookie: 7,
            cgroup: cgroup.to_owned(),
            cgroup_level: 1,
            protect_node_ports: true,
            cluster_networks: networks(&["10.244.0.0/16".parse().unwrap()]),
            lifetimes: Lifetimes { tcp_half_open: 7, ..Lifetimes::DEFAULT },
        }
    }

    #[test]
    fn a_missing_address_is_the_unspecified_one_of_its_family() {
        let ports = PortRange { first: 61_000, last: 61_999 };
        let switches = host(Path::new("/nowhere")).switches(NodeIps::default(), ports);
        assert!(switches.node_v4.is_v4() && switches.node_v4 == switches.node_v4.unspecified_of());
        assert_eq!(switches.node_v6, Address::UNSPECIFIED);
        assert_eq!((switches.snat_port_first, switches.snat_port_last), (61_000, 61_999));
        assert_eq!((switches.host_netns_cookie, switches.cgroup_level), (7, 1));
        assert_eq!(switches.qos_cgroups, [0, 0]);
        assert_eq!(switches.flags, flags::PROTECT_NODE_PORTS);
        assert_eq!(switches.lifetimes, Lifetimes { tcp_half_open: 7, ..Lifetimes::DEFAULT });
        for (address, expected) in [("10.244.9.1", true), ("10.245.0.1", false), ("fd00::1", false)] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(switches.is_in_cluster(&address.into()), expected, "{address}");
        }
    }

    #[test]
    fn finds_the_cgroups_of_both_drivers_of_the_kubelet() {
        for [burstable, besteffort] in QOS_CGROUPS {
            let root = tempfile::tempdir().unwrap();
            assert_eq!(qos_cgroups(root.path()), [0, 0]);
            let make = |path: &str| {
                fs::create_dir_all(root.path().join(path)).unwrap();
                fs::metadata(root.path().join(path)).unwrap().ino()
            };
            let first = make(burstable);
            assert_eq!(qos_cgroups(root.path()), [first, 0]);
            assert_eq!(qos_cgroups(root.path()), [first, 0]);
            let second = make(besteffort);
            assert_eq!(qos_cgroups(root.path()), [first, second]);
        }
    }
}
