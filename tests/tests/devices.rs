//! Which devices serve clients from outside when nobody names them.

use anyhow::{Result, ensure};
use lb_tests::{
    agent::{Agent, Installation},
    cluster::{Cluster, tcp},
    manifests::Manifests,
    topology::Topology,
    wait,
};

/// The example's node port, with a backend on this node and one on another.
const NODE_PORTS: [&str; 2] = ["172.18.0.2:30080", "[fd00:18::2]:30080"];

#[test]
fn the_devices_of_the_node_are_found_and_followed() -> Result<()> {
    let topology = Topology::new()?;
    let sockeye = Installation::on(&topology)?;
    let manifests = Manifests::examples()?;
    let cluster = Cluster::new(&topology, &sockeye, &manifests)?;
    let node = &topology.node_a.netns;
    let agent = start(&sockeye, &manifests, "auto")?;
    // The devices of pods carry addresses too, but none of the node's.
    wait_devices(&sockeye, &["eth0: carries 172.18.0.2, carries fd00:18::2"])?;
    reaches_all(&cluster)?;

    // A way out makes a device one that clients may come in by; it goes with its route, and with the device.
    node.ip("link add wan type veth peer name isp\nlink set wan up\nlink set isp up\n\
         addr add 203.0.113.77/24 dev wan\nroute add default via 203.0.113.1")?;
    wait_devices(&sockeye, &["eth0: carries 172.18.0.2, carries fd00:18::2", "wan: has a default route"])?;
    node.ip("route del default")?;
    wait_devices(&sockeye, &["eth0: carries 172.18.0.2, carries fd00:18::2"])?;
    node.ip("route add default nexthop via 203.0.113.1 dev wan nexthop via 172.18.0.10 dev eth0")?;
    wait_devices(
        &sockeye,
        &["eth0: carries 172.18.0.2, carries fd00:18::2, has a default route", "wan: has a default route"],
    )?;
    node.ip("link del wan")?;
    wait_devices(&sockeye, &["eth0: carries 172.18.0.2, carries fd00:18::2"])?;
    sockeye.wait_no_problem()?;

    // The addresses move to a bridge, and eth0 becomes a port of it.
    // New before old: routes that name an address as their source would go with its last device.
    node.ip(
        "link add uplink type bridge\nlink set uplink up\naddr add 172.18.0.2/24 dev uplink\n\
         addr add fd00:18::2/64 dev uplink nodad\naddr flush dev eth0 scope global\nlink set eth0 master uplink\n\
         route replace 10.244.2.0/24 via 172.18.0.3 dev uplink\nroute replace fd00:244:2::/64 via fd00:18::3 dev uplink",
    )?;
    wait_devices(&sockeye, &["uplink: carries 172.18.0.2, carries fd00:18::2"])?;
    reaches_all(&cluster)?;
    sockeye.wait_no_problem()?;

    node.ip("link del uplink")?;
    sockeye.wait_problem(&["--devices auto", "no device carries 172.18.0.2 or fd00:18::2"])?;
    sockeye.wait_problem(&["node", "no device carries 172.18.0.2, the address for translated sources"])?;
    wait_devices(&sockeye, &[])?;
    agent.kill()
}

#[test]
fn none_serves_no_device() -> Result<()> {
    let topology = Topology::new()?;
    let sockeye = Installation::on(&topology)?;
    let manifests = Manifests::examples()?;
    let agent = start(&sockeye, &manifests, "none")?;
    wait_devices(&sockeye, &[])?;
    let attached = sockeye.status()?.attachments;
    ensure!(!attached.iter().any(|attachment| attachment.program.starts_with("tc_")), "{attached:#?}");
    sockeye.wait_no_problem()?;
    agent.kill()
}

/// Starts an agent that is told which devices to serve, and waits until all is in force.
fn start(sockeye: &Installation<'_>, manifests: &Manifests, devices: &str) -> Result<Agent> {
    let mut command = sockeye.command(&["run", "--node-name", "node-a", "--devices", devices])?;
    command.arg("--manifests").arg(manifests.path()).arg("--cgroup").arg(sockeye.cgroup());
    let mut agent = sockeye.spawn(command)?;
    sockeye.wait_ready(&mut agent)?;
    Ok(agent)
}

/// Waits until exactly these devices are served, for these reasons.
fn wait_devices(sockeye: &Installation<'_>, expected: &[&str]) -> Result<()> {
    wait::until(&format!("the devices to be {expected:?}"), wait::SOON, || {
        let status = sockeye.status()?;
        let mut devices = status.devices.iter();
        let found: Vec<_> = status
            .devices
            .iter()
            .map(|device| format!("{}: {}", device.name, device.why.join(", ")))
            .collect();
        ensure!(found == expected && devices.all(|device| device.served), "{:#?}", status.devices);
        let attached: Vec<_> =
            status.attachments.iter().filter(|attachment| attachment.program.starts_with("tc_")).collect();
        ensure!(attached.len() == 2 * expected.len(), "{attached:#?}");
        Ok(Some(()))
    })
}

/// The client reaches both backends through each of the node's addresses.
fn reaches_all(cluster: &Cluster<'_>) -> Result<()> {
    for node_port in NODE_PORTS {
        for backend in ["pod1", "pod3"] {
            wait::until(&format!("{backend} to answer at {node_port}"), wait::SOON, || {
                let answer = cluster.ask("client", tcp(node_port)?)?;
                ensure!(answer.backend()? == backend, "{answer:?}");
                Ok(Some(()))
            })?;
        }
    }
    Ok(())
}
