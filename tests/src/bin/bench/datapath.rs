//! The agent's parts, wired as `sockeye run` wires them: pipeline, store, programs. Only the sources are missing.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytemuck::Zeroable as _;
use lb_common::config::{Config, SNAT_PORT_FIRST, SNAT_PORT_LAST};
use lb_userspace::{
    kernel::{Kernel, KernelConfig, cleanup},
    model::Change,
    pipeline::{DefaultAlgorithm, NodePortAddresses, Pipeline, PipelineSettings, SyncReport},
    store::{Capacity, Store, StoreError, Tables, Write, kernel::KernelStore},
};

use crate::{machine::Corner, objects};

/// Programs and maps, and a pipeline that knows nothing yet.
pub(crate) struct Datapath {
    pub(crate) kernel: Kernel,
    pub(crate) pipeline: Pipeline,
    pub(crate) store: Stopwatch<KernelStore>,
}

impl Datapath {
    /// New maps, and programs that are loaded but not attached.
    pub(crate) fn new(corner: &Corner) -> anyhow::Result<Self> {
        Self::with(corner, KernelConfig::default())
    }

    /// The same, with an external device to attach to.
    pub(crate) fn on_device(corner: &Corner, device: &str) -> anyhow::Result<Self> {
        Self::with(corner, KernelConfig { devices: vec![device.to_owned()], ..KernelConfig::default() })
    }

    fn with(corner: &Corner, config: KernelConfig) -> anyhow::Result<Self> {
        let config = KernelConfig {
            bpffs: corner.bpffs.pin_path(),
            cgroup: corner.with_programs.path().to_owned(),
            ..config
        };
        let kernel = Kernel::prepare(&config).context("loading the programs")?;
        let store = Stopwatch::new(kernel.store()?);
        let settings = PipelineSettings {
            node_name: objects::NODE.into(),
            node_port_addresses: NodePortAddresses::default(),
            external_ips: true,
            algorithm: DefaultAlgorithm::default(),
        };
        Ok(Self { pipeline: Pipeline::new(settings, store.capacity()), kernel, store })
    }

    /// Serves what the initial lists hold.
    pub(crate) fn serve(&mut self, lists: Vec<Change>) -> anyhow::Result<()> {
        for change in lists {
            self.pipeline.apply(change);
        }
        self.sync()?;
        let summary = self.pipeline.summary();
        let (frontends, services) = (summary.frontends.used, summary.services);
        ensure!(frontends as usize >= services, "{frontends} frontends of {services} Services are in force");
        Ok(())
    }

    /// Writes what is to be written, all of it.
    pub(crate) fn sync(&mut self) -> anyhow::Result<SyncReport> {
        let report = self.pipeline.sync(&mut self.store);
        ensure!(report.dirty == 0 && report.blocked == 0, "not everything was written: {report:?}");
        Ok(report)
    }

    /// Attaches the programs.
    pub(crate) fn attach(&mut self) -> anyhow::Result<()> {
        // Of the run-time switches, connect() to a cluster address uses none.
        self.kernel.configure(&Config::zeroed())?;
        self.kernel.activate().context("attaching the programs")?;
        Ok(())
    }

    /// Attaches the programs in the namespace of the external device; the source of what leaves for other nodes is this.
    pub(crate) fn attach_for_packets(&mut self, node: Ipv4Addr) -> anyhow::Result<()> {
        self.kernel.configure(&Config {
            node_v4: IpAddr::V4(node).into(),
            snat_port_first: SNAT_PORT_FIRST,
            snat_port_last: SNAT_PORT_LAST,
            ..Config::zeroed()
        })?;
        self.kernel.activate().context("attaching the programs")?;
        Ok(())
    }

    /// Detaches and removes everything.
    pub(crate) fn remove(self, corner: &Corner) -> anyhow::Result<()> {
        drop(self);
        cleanup(&corner.bpffs.pin_path()).context("removing the programs")?;
        Ok(())
    }
}

/// A store that adds up the time that writing takes.
pub(crate) struct Stopwatch<S> {
    store: S,
    spent: Cell<Duration>,
}

impl<S> Stopwatch<S> {
    fn new(store: S) -> Self {
        Self { store, spent: Cell::new(Duration::ZERO) }
    }

    /// The time spent since the last call of this.
    pub(crate) fn take(&self) -> Duration {
        self.spent.take()
    }
}

impl<S: Store> Store for Stopwatch<S> {
    fn capacity(&self) -> Capacity {
        self.store.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        let start = Instant::now();
        let result = self.store.apply(write);
        self.spent.set(self.spent.get() + start.elapsed());
        result
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.store.read()
    }
}
