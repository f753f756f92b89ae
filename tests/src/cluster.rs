//! A cluster ready for questions: the topology with backends in its pods, a prober on each machine, and the agent.

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Context as _, Result, anyhow};
use lb_common::{
    address::{Port, Protocol},
    config::maps::OUTCOMES,
    frontend::FrontendKey,
};

use crate::{
    agent::{Agent, Installation},
    dump::{self, Outcomes},
    manifests::Manifests,
    probe::{Answer, Kind, Prober, Request, Target},
    server::Server,
    topology::{Machine, Topology},
};

/// What listens in each pod, for the examples and the manifests of the tests.
pub const POD_PORTS: [(Protocol, u16); 5] = [
    (Protocol::Tcp, 8080),
    (Protocol::Tcp, 9090),
    (Protocol::Tcp, 8000),
    (Protocol::Tcp, 5353),
    (Protocol::Udp, 5353),
];

/// What listens on the database.
pub const DATABASE_PORT: u16 = 5432;

/// The cluster. Its parts are dropped in this order.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// The agent, if one runs.
    pub agent: Option<Agent>,
    /// What the agent is given.
    pub manifests: &'a Manifests,
    /// Where the agent lives.
    pub sockeye: &'a Installation<'a>,
    /// The machines.
    pub topology: &'a Topology,
    probers: BTreeMap<&'static str, Prober>,
    _servers: Vec<Server>,
}

impl<'a> Cluster<'a> {
    /// Starts the backends and the probers, not the agent.
    pub fn new(
        topology: &'a Topology,
        sockeye: &'a Installation<'a>,
        manifests: &'a Manifests,
    ) -> Result<Self> {
        let mut servers = Vec::new();
        for machine in [&topology.pod1, &topology.pod2, &topology.pod3] {
            servers.push(Server::start(machine.name, machine.place(), &POD_PORTS)?);
        }
        let database = &topology.database;
        servers.push(Server::start(database.name, database.place(), &[(Protocol::Tcp, DATABASE_PORT)])?);
        let mut probers = BTreeMap::new();
        for machine in [&topology.pod1, &topology.pod2, &topology.node_a, &topology.client] {
            probers.insert(machine.name, Prober::start(machine.name, machine.place())?);
        }
        Ok(Self { agent: None, manifests, sockeye, topology, probers, _servers: servers })
    }

    /// Runs a test on a cluster that serves some manifests; a failure carries the agent's log.
    pub fn with(manifests: &Manifests, test: impl FnOnce(&mut Cluster<'_>) -> Result<()>) -> Result<()> {
        Cluster::with_flags(manifests, &[], test)
    }

    /// The same, with further flags of the agent.
    pub fn with_flags(
        manifests: &Manifests,
        flags: &[&str],
        test: impl FnOnce(&mut Cluster<'_>) -> Result<()>,
    ) -> Result<()> {
        let topology = Topology::new()?;
        let sockeye = Installation::on(&topology)?;
        let mut cluster = Cluster::new(&topology, &sockeye, manifests)?;
        cluster.start_agent(flags)?;
        test(&mut cluster).map_err(|error| cluster.with_log(error))
    }

    /// An error with the log of the running agent.
    pub fn with_log(&self, error: anyhow::Error) -> anyhow::Error {
        match self.agent.as_ref().map(|agent| agent.log().unwrap_or_default()) {
            Some(log) => anyhow!("{error:#}\nthe agent's log:\n{log}"),
            None => error,
        }
    }

    /// Starts an agent on the manifests and waits until all of them are in force.
    pub fn start_agent(&mut self, flags: &[&str]) -> Result<()> {
        self.agent = Some(self.sockeye.start_with(&self.manifests.path(), flags)?);
        Ok(())
    }

    /// Ends the agent as a crash would.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.kill()
    }

    /// The client process on a machine: `pod1`, `pod2`, `node-a` or `client`.
    pub fn prober(&self, machine: &str) -> Result<&Prober> {
        self.probers.get(machine).with_context(|| format!("no prober on {machine}"))
    }

    /// Asks once from a machine.
    pub fn ask(&self, from: &str, target: Target) -> Result<Answer> {
        self.prober(from)?.ask_once(target).with_context(|| format!("{from}: {target}"))
    }

    /// A machine of the topology that asks or serves.
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        let t = self.topology;
        let all = [&t.client, &t.database, &t.node_a, &t.pod1, &t.pod2, &t.node_b, &t.pod3];
        all.into_iter().find(|machine| machine.name == name).with_context(|| format!("no machine {name}"))
    }

    /// The counters of outcomes.
    pub fn outcomes(&self) -> Result<Outcomes> {
        dump::outcomes(&self.sockeye.map_path(OUTCOMES))
    }

    /// How many backends the cluster set of a frontend has, in the kernel.
    pub fn set_size(&self, frontend: SocketAddr, protocol: Protocol) -> Result<u32> {
        let key = FrontendKey::new(frontend.ip().into(), Port::new(frontend.port()), protocol);
        Ok(dump::record(&self.sockeye.pin_path(), &key)?.cluster.count)
    }

    /// Opens a socket that stays open under a number, and asks once.
    pub fn open(&self, from: &str, id: u32, target: Target) -> Result<Answer> {
        self.prober(from)?.answer(&Request::Open(id, target)).with_context(|| format!("{from}: {target}"))
    }

    /// Asks again through an open socket.
    pub fn again(&self, from: &str, id: u32, target: Target) -> Result<Answer> {
        self.prober(from)?.answer(&Request::Again(id, target.to)).with_context(|| format!("{from}: {target}"))
    }

    /// Waits for a datagram on an open UDP socket, as long as its limit allows.
    pub fn receive(&self, from: &str, id: u32) -> Result<Answer> {
        self.prober(from)?.answer(&Request::Receive(id)).with_context(|| format!("{from}: socket {id}"))
    }
}

/// A TCP target at an address in text.
pub fn tcp(to: &str) -> Result<Target> {
    target(Kind::Tcp, to)
}

/// A target at an address in text.
pub fn target(kind: Kind, to: &str) -> Result<Target> {
    Ok(Target::new(kind, to.parse().with_context(|| format!("the address {to}"))?))
}
