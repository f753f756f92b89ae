//! The kernel: loading the programs, attaching them, and what is pinned.
//!
//! aya appears only here and in `store::kernel`. The state in the kernel outlives this process: maps and links are
//! pinned, and a later agent goes on with them. [`Kernel::prepare`] changes nothing that is in force;
//! [`Kernel::activate`] puts this process's programs, and new maps if there are any, into force without a gap.

mod bpf;
mod cleanup;
mod connected;
mod device;
pub(crate) mod error;
mod features;
mod filter;
mod generation;
mod link;
mod load;
mod log;
pub(crate) mod mapped;
mod namespaces;
mod netns;
mod pinned;
mod pins;
mod requirements;
mod reserved;

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use aya_log::EbpfLogger;
use lb_common::config::{Config, LAYOUT_VERSION, capacity, maps};

pub use self::{
    cleanup::cleanup,
    connected::ConnectedSockets,
    error::KernelError,
    features::{Feature, probe_features},
    link::Change,
    log::ProgramLog,
    namespaces::Namespaces,
    netns::netns_cookie,
    pinned::{Attachment, PinnedMaps, Place, open_pinned},
    requirements::cgroup2_root,
    reserved::Reservation,
};
use self::{
    device::Kind,
    features::{Features, NETNS_COOKIE, SOCK_DESTROY, SOCKET_ITERATOR, TCX},
    generation::TablesFrom,
    link::OnCgroup,
    pins::{Lock, Pins},
};
use crate::store::{Capacity, kernel::KernelStore};

/// Where the programs run, and how much their maps hold.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// The pin directory, on a BPF file system.
    pub bpffs: PathBuf,
    /// The cgroup whose sockets are served, with all below it.
    pub cgroup: PathBuf,
    /// The names of the external devices; none: no north-south traffic.
    pub devices: Vec<String>,
    /// Sizes of the maps of the tables.
    pub capacity: Capacity,
    /// Entries of `DATAGRAMS`.
    pub datagrams: u32,
    /// Entries of `FLOWS`.
    pub flows: u32,
    /// Filters of a clsact qdisc on devices, even where the kernel has tcx.
    pub clsact: bool,
    /// Refuse by way of closed ports, even where the kernel has `bpf_set_retval`.
    pub closed_ports: bool,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            bpffs: PathBuf::from("/sys/fs/bpf/sockeye"),
            cgroup: PathBuf::from("/sys/fs/cgroup"),
            devices: Vec::new(),
            capacity: Capacity {
                frontends: capacity::FRONTENDS,
                services: capacity::SERVICES,
                backends: capacity::BACKENDS,
                maglev: capacity::MAGLEV,
                source_ranges: capacity::SOURCE_RANGES,
                node_addresses: capacity::NODE_ADDRESSES,
            },
            datagrams: capacity::DATAGRAMS,
            flows: capacity::FLOWS,
            clsact: false,
            closed_ports: false,
        }
    }
}

/// The loaded programs and their maps. Dropping it detaches nothing.
#[derive(Debug)]
pub struct Kernel {
    ebpf: Ebpf,
    features: Features,
    pins: Pins,
    cgroup: File,
    devices: Vec<String>,
    device_kind: Kind,
    reused: bool,
    active: bool,
    _lock: Lock,
}

/// What [`Kernel::activate`] did, by the name of the pin.
pub type Activation = Vec<(String, Change)>;

impl Kernel {
    /// Checks what is required, loads the programs, and opens the pinned maps or makes new ones beside them.
    ///
    /// Nothing that is in force changes, except that an interrupted activation is finished. New maps hold a copy of the
    /// pinned tables if only sizes differ.
    pub fn prepare(config: &KernelConfig) -> Result<Self, KernelError> {
        requirements::check_privileges()?;
        requirements::check_cgroup(&config.cgroup)?;
        requirements::lift_memory_limit()?;
        let features = Features::probe()?;
        features.check()?;
        let pins = Pins::new(&config.bpffs);
        let lock = pins.prepare()?;
        pins.recover()?;
        let inheritance = generation::inspect(&pins, &load::definitions(config)?)?;
        let ebpf = load::load(config, &features, &pins, &inheritance.kept)?;
        let reused = match inheritance.tables {
            TablesFrom::SameMaps => true,
            TablesFrom::OtherSizes => generation::copy_tables(&pins, &mut KernelStore::new(&ebpf)?)?,
            TablesFrom::Nothing => false,
        };
        let cgroup =
            File::open(&config.cgroup).map_err(KernelError::io("opening the cgroup", &config.cgroup))?;
        let device_kind = if features.has(TCX) && !config.clsact { Kind::Tcx } else { Kind::Clsact };
        Ok(Self {
            ebpf,
            features,
            pins,
            cgroup,
            devices: config.devices.clone(),
            device_kind,
            reused,
            active: false,
            _lock: lock,
        })
    }

    /// Whether the tables hold what an earlier agent wrote: its numbers and slots must be kept.
    pub const fn reused(&self) -> bool {
        self.reused
    }

    /// What the running kernel has and lacks.
    pub fn features(&self) -> &[Feature] {
        &self.features.list
    }

    /// The tables, for the one task that writes them.
    pub fn store(&self) -> Result<KernelStore, KernelError> {
        KernelStore::new(&self.ebpf)
    }

    /// The addresses of the pods on this node, for the one task that writes them.
    pub fn namespaces(&self) -> Result<Namespaces, KernelError> {
        Namespaces::new(&self.ebpf)
    }

    /// The connected UDP sockets, for reading; none where the kernel cannot tell them or end them.
    pub fn connected_sockets(&mut self) -> Result<Option<ConnectedSockets>, KernelError> {
        let possible = self.features.has(SOCKET_ITERATOR)
            && self.features.has(SOCK_DESTROY)
            && self.features.has(NETNS_COOKIE);
        possible.then(|| ConnectedSockets::new(&mut self.ebpf)).transpose()
    }

    /// Sets the run-time switches. They must be set once before [`Kernel::activate`]; the layout's version is set here.
    pub fn configure(&mut self, config: &Config) -> Result<(), KernelError> {
        let config = Config { layout_version: LAYOUT_VERSION, ..*config };
        let missing = || KernelError::Object { what: format!("it lacks the map {}", maps::CONFIG) };
        let map = self.ebpf.map_mut(maps::CONFIG).ok_or_else(missing)?;
        let error = || KernelError::map("writing", maps::CONFIG);
        let mut map: Array<&mut MapData, Config> = map.try_into().map_err(error())?;
        map.set(0, &config, 0).map_err(error())
    }

    /// Puts the programs and maps into force: attaches what is not attached, switches links of earlier programs, pins.
    ///
    /// The caller has filled the tables before. Called again it repairs what was detached or unpinned meanwhile.
    pub fn activate(&mut self) -> Result<Activation, KernelError> {
        let staged = generation::stage(&self.pins, &self.ebpf)?;
        let mut changes = self.attach_to_cgroup()?;
        for device in &self.devices {
            changes.extend(device::attach(&mut self.ebpf, &self.pins, device, self.device_kind)?);
        }
        if staged {
            self.pins.commit()?;
        }
        self.active = true;
        self.remove_stale()?;
        Ok(changes)
    }

    /// Serves north-south traffic of a device; idempotent. Before [`Kernel::activate`] it is only noted.
    pub fn attach_device(&mut self, name: &str) -> Result<Activation, KernelError> {
        let changes = if self.active {
            device::attach(&mut self.ebpf, &self.pins, name, self.device_kind)?
        } else {
            Vec::new()
        };
        if !self.devices.iter().any(|device| device == name) {
            self.devices.push(name.to_owned());
        }
        Ok(changes)
    }

    /// Serves a device no longer; one that is not served or not there is fine.
    pub fn detach_device(&mut self, name: &str) -> Result<(), KernelError> {
        self.devices.retain(|device| device != name);
        if self.active {
            device::detach(&self.pins, name)?;
            device::retain_devices(&mut self.ebpf, &self.devices)?;
        }
        Ok(())
    }

    /// The reserved ports of the node.
    pub fn reservation(&self) -> Reservation {
        Reservation::new(self.pins.clone())
    }

    /// What is attached now, by any agent that used this pin directory.
    pub fn attachments(&self) -> Result<Vec<Attachment>, KernelError> {
        pinned::attachments(&self.pins)
    }

    /// How often each outcome and reason happened, by number, summed over the CPUs.
    pub fn outcomes(&self) -> Result<Vec<u64>, KernelError> {
        let missing = || KernelError::Object { what: format!("it lacks the map {}", maps::OUTCOMES) };
        pinned::outcomes(self.ebpf.map(maps::OUTCOMES).ok_or_else(missing)?)
    }

    /// What the programs log; none if they log nothing. Can be taken once.
    pub fn logger(&mut self) -> Option<ProgramLog> {
        EbpfLogger::init(&mut self.ebpf).ok().map(ProgramLog::new)
    }

    /// The kernel's numbers of the maps, by name.
    pub fn map_ids(&self) -> Result<Vec<(&'static str, u32)>, KernelError> {
        let id = |name| {
            let map = self.ebpf.map(name)?;
            let info = crate::store::kernel::data(map).and_then(MapData::info);
            Some(info.map(|info| (name, info.id())).map_err(KernelError::map("looking at", name)))
        };
        maps::ALL.into_iter().filter_map(id).collect()
    }

    /// The pin directory.
    pub fn bpffs(&self) -> &Path {
        self.pins.root()
    }

    fn attach_to_cgroup(&mut self) -> Result<Activation, KernelError> {
        let metadata = self.cgroup.metadata().map_err(KernelError::io("looking at", "the cgroup"))?;
        let mut changes = Vec::new();
        for name in load::cgroup_programs() {
            let program = load::program(&mut self.ebpf, name)?;
            let mut place = OnCgroup { program, cgroup: &self.cgroup, cgroup_id: metadata.ino() };
            changes.push((name.to_owned(), link::ensure(&self.pins, name, &mut place)?));
        }
        Ok(changes)
    }

    /// Detaches what an earlier agent attached and this one does not: other devices, programs of another version.
    fn remove_stale(&mut self) -> Result<(), KernelError> {
        for path in pins::entries(&self.pins.links())? {
            let pin = pins::file_name(&path);
            let of_device =
                device::PROGRAMS.into_iter().find_map(|(program, _)| pins::device_of(&pin, program));
            let wanted = match of_device {
                Some(device) => self.device_kind == Kind::Tcx && self.devices.contains(&device),
                None => load::cgroup_programs().any(|program| program == pin),
            };
            if !wanted {
                link::remove(&path)?;
                tracing::info!(link = pin, "detached what is no longer configured");
            }
        }
        for marker in pins::entries(&self.pins.filters())? {
            let device = pins::unescape(&pins::file_name(&marker));
            if !self.devices.contains(&device) {
                device::remove_filters(&self.pins, &device)?;
            }
        }
        device::retain_devices(&mut self.ebpf, &self.devices)
    }
}
