//! The network namespaces that the agent knows: the pods' addresses follow the pods.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use lb_common::{config::maps::NAMESPACES, namespace::NamespaceAddresses};
use lb_tests::{cluster::Cluster, manifests::Manifests, netns::Netns, wait};
use lb_userspace::kernel::netns_cookie;

/// Less than the pause between two looks without an event.
const PROMPTLY: Duration = Duration::from_secs(4);

fn cookie(netns: &Netns) -> Result<u64> {
    netns.run(|| netns_cookie().context("the cookie of a network namespace"))
}

/// What the map holds of a namespace; none: nothing.
fn known(cluster: &Cluster<'_>, cookie: u64) -> Result<Option<[IpAddr; 2]>> {
    let data = MapData::from_pin(cluster.sockeye.map_path(NAMESPACES)).context("opening the map")?;
    let map: HashMap<_, u64, NamespaceAddresses> = Map::HashMap(data).try_into().context("the map's type")?;
    Ok(map.get(&cookie, 0).ok().map(|NamespaceAddresses { v4, v6 }| [v4.into(), v6.into()]))
}

fn wait_known(
    cluster: &Cluster<'_>,
    cookie: u64,
    limit: Duration,
    expected: Option<[IpAddr; 2]>,
) -> Result<()> {
    wait::until(&format!("{expected:?} in the map"), limit, || {
        let found = known(cluster, cookie)?;
        ensure!(found == expected, "it holds {found:?}");
        Ok(Some(()))
    })
}

#[test]
fn the_addresses_of_pods_are_known_and_the_hosts_are_not_among_them() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let topology = cluster.topology;
        // The last one has no route to far away: its first address stands for it.
        for pod in [&topology.pod1, &topology.pod2, &topology.pod3, &topology.database] {
            wait_known(cluster, cookie(&pod.netns)?, wait::SOON, Some(pod.addresses()))?;
        }
        assert_eq!(known(cluster, cookie(&topology.node_a.netns)?)?, None);
        Ok(())
    })
}

#[test]
fn a_pod_is_known_soon_after_it_comes_and_forgotten_when_it_goes() -> Result<()> {
    Cluster::with(&Manifests::examples()?, |cluster| {
        let node = &cluster.topology.node_a.netns;
        let pod = Netns::new("late")?;
        let cookie = cookie(&pod)?;
        node.join("late", &pod, "eth0")?;
        pod.ip("addr add 10.244.1.99/32 dev eth0")?;
        let no_v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        wait_known(cluster, cookie, PROMPTLY, Some(["10.244.1.99".parse()?, no_v6]))?;
        // A second address, and a route that prefers it.
        pod.ip("addr add 10.244.1.98/32 dev eth0\nroute add default dev eth0 src 10.244.1.98")?;
        wait_known(cluster, cookie, wait::SOON, Some(["10.244.1.98".parse()?, no_v6]))?;
        drop(pod);
        wait_known(cluster, cookie, PROMPTLY, None)
    })
}
