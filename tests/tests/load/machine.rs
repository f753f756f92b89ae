//! The fixture: a machine with one service, and what an agent does.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Result;
use aya::{
    maps::{MapInfo, loaded_maps},
    programs::{loaded_links, loaded_programs},
};
use lb_common::{
    address::{Port, Protocol},
    backend::Backend,
    config::{Config, maps, programs},
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    service::{Range, ServiceRecord, Settings},
};
use lb_tests::{
    bpffs::Bpffs,
    cgroup::Cgroup,
    netns::Netns,
    probe::{Kind, Target},
    process::Place,
    wait,
};
use lb_userspace::{
    kernel::{Activation, Attachment, Change, Kernel, KernelConfig},
    store::{Store as _, Write},
};

/// A machine of its own, with a service at `VIP` that its loopback address serves.
pub(crate) struct Machine {
    pub(crate) config: KernelConfig,
    pub(crate) cgroup: Cgroup,
    pub(crate) bpffs: Bpffs,
    pub(crate) netns: Netns,
}

/// How many programs attach to a cgroup.
pub(crate) const ON_CGROUP: usize = programs::CGROUP.len() + programs::BIND.len();

pub(crate) const VIP: &str = "10.96.0.10:80";
const BACKEND: &str = "127.0.0.1:8080";

impl Machine {
    pub(crate) fn new() -> Result<Self> {
        let (bpffs, cgroup) = (Bpffs::new()?, Cgroup::new("load")?);
        let config = KernelConfig {
            bpffs: bpffs.pin_path(),
            cgroup: cgroup.path().to_owned(),
            flows: 1_024,
            datagrams: 1_024,
            ..KernelConfig::default()
        };
        Ok(Self { config, cgroup, bpffs, netns: Netns::new("load")? })
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place { netns: Some(&self.netns), cgroup: Some(&self.cgroup) }
    }
}

/// What an agent does from its start until it is ready.
pub(crate) fn start(config: &KernelConfig) -> Result<(Kernel, Activation)> {
    let mut kernel = Kernel::prepare(config)?;
    fill(&kernel)?;
    kernel.configure(&no_addresses())?;
    let changes = kernel.activate()?;
    Ok((kernel, changes))
}

/// A connection to the service.
pub(crate) fn target() -> Result<Target> {
    Ok(Target::new(Kind::Tcp, VIP.parse()?).within(Duration::from_secs(1)))
}

/// Writes the service.
pub(crate) fn fill(kernel: &Kernel) -> Result<()> {
    let (vip, backend): (SocketAddr, SocketAddr) = (VIP.parse()?, BACKEND.parse()?);
    let key = FrontendKey::new(vip.ip().into(), Port::new(vip.port()), Protocol::Tcp);
    let backend = Backend { address: backend.ip().into(), port: Port::new(backend.port()), flags: 0, id: 1 };
    let range = Range { first: 3, count: 1 };
    let mut store = kernel.store()?;
    for write in [
        Write::Slots { first: 3, backends: vec![backend] },
        Write::Record { index: 2, record: ServiceRecord::new(1, Settings::default(), range, Range::EMPTY) },
        Write::PutFrontend { key, entry: FrontendEntry::new(&key, FrontendKind::ClusterIp, 2) },
    ] {
        store.apply(&write)?;
    }
    Ok(())
}

pub(crate) fn no_addresses() -> Config {
    bytemuck::Zeroable::zeroed()
}

pub(crate) fn changes_of(changes: &Activation, change: Change) -> usize {
    changes.iter().filter(|(_, found)| *found == change).count()
}

/// The ids of what is in the kernel because of a pin directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) maps: Vec<u32>,
    pub(crate) programs: Vec<u32>,
    pub(crate) links: Vec<u32>,
}

impl Ids {
    pub(crate) fn of(pins: &Path, attachments: &[Attachment]) -> Result<Self> {
        let pinned = |name: &&str| pins.join(name).exists();
        let maps = maps::ALL
            .iter()
            .filter(|name| pinned(name))
            .map(|name| Ok(MapInfo::from_pin(pins.join(name))?.id()));
        Ok(Self {
            maps: maps.collect::<Result<_>>()?,
            programs: attachments.iter().map(|attachment| attachment.program_id).collect(),
            links: attachments.iter().filter_map(|attachment| attachment.link_id).collect(),
        })
    }

    /// Those that are still in the kernel.
    pub(crate) fn alive(&self) -> Self {
        let maps: Vec<u32> = loaded_maps().flatten().map(|map| map.id()).collect();
        let programs: Vec<u32> = loaded_programs().flatten().map(|program| program.id()).collect();
        let links: Vec<u32> = loaded_links().flatten().map(|link| link.id()).collect();
        let of = |ids: &[u32], all: &[u32]| ids.iter().copied().filter(|id| all.contains(id)).collect();
        Self {
            maps: of(&self.maps, &maps),
            programs: of(&self.programs, &programs),
            links: of(&self.links, &links),
        }
    }

    fn is_empty(&self) -> bool {
        self.maps.is_empty() && self.programs.is_empty() && self.links.is_empty()
    }

    /// The kernel frees maps and programs a little after their last reference.
    pub(crate) fn wait_until_gone(&self) -> Result<()> {
        let what = format!("{:?} to be gone", self.alive());
        wait::until(&what, wait::SOON, || Ok(self.alive().is_empty().then_some(())))
    }
}
