//! What is pinned, read without an agent: for `sockeye status` and the other commands that only look.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Map, MapData, PerCpuArray},
    programs::TcAttachType,
};
use lb_common::{
    config::{Config, LAYOUT_VERSION, maps, programs},
    outcome,
};
use serde::Serialize;

use super::{
    bpf::{LinkInfo, LinkTarget},
    device,
    error::KernelError,
    generation, link,
    pins::{self, Pins, device_of},
    requirements,
    xdp::{self, XdpMode},
};
use crate::store::{Capacity, Tables, kernel::TableMaps};

/// The maps of the generation in force.
#[derive(Debug)]
pub struct PinnedMaps {
    pins: Pins,
    tables: TableMaps,
}

/// A program that is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The program's name.
    pub program: String,
    /// The id of the loaded program.
    pub program_id: u32,
    /// The link's id; a clsact filter has none.
    pub link_id: Option<u32>,
    /// Where it is attached.
    pub place: Place,
}

/// Where a program is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Place {
    /// A link to a cgroup.
    Cgroup {
        /// The number of the cgroup's inode.
        id: u64,
        /// The cgroup's path; none: it has been removed, or is not visible from here.
        path: Option<PathBuf>,
    },
    /// A link to a device (kernel 6.6).
    Tcx {
        /// The device's name, as it was when the program was attached.
        device: String,
        /// The device's index; zero: it has been removed.
        ifindex: u32,
    },
    /// A link to a device's XDP hook.
    Xdp {
        /// The device's name, as it was when the program was attached.
        device: String,
        /// The device's index; zero: it has been removed.
        ifindex: u32,
        /// Where it runs.
        mode: XdpMode,
    },
    /// A filter of a device's clsact qdisc.
    Clsact {
        /// The device's name.
        device: String,
        /// The device's index.
        ifindex: u32,
    },
}

/// Opens what is pinned at `bpffs`.
pub fn open_pinned(bpffs: &Path) -> Result<PinnedMaps, KernelError> {
    let pins = Pins::new(bpffs);
    if !requirements::on_bpffs(bpffs)? || !pins.map(maps::CONFIG).exists() {
        return Err(KernelError::NotPinned { path: bpffs.to_owned() });
    }
    if generation::layout_version(&pins)? != Some(LAYOUT_VERSION) {
        return Err(KernelError::OtherLayout { path: bpffs.to_owned() });
    }
    Ok(PinnedMaps { tables: TableMaps::pinned(bpffs)?, pins })
}

impl PinnedMaps {
    /// What the tables hold. While the agent writes, a set may be read from slots that are used again already.
    pub fn tables(&self) -> Result<Tables, KernelError> {
        self.tables.read().map_err(KernelError::Copy)
    }

    /// How much fits into the tables.
    pub const fn capacity(&self) -> Capacity {
        self.tables.capacity()
    }

    /// How often each outcome and reason happened, by number, summed over the CPUs.
    pub fn outcomes(&self) -> Result<Vec<u64>, KernelError> {
        let data = MapData::from_pin(self.pins.map(maps::OUTCOMES));
        let map = data.and_then(Map::from_map_data).map_err(KernelError::map("opening", maps::OUTCOMES))?;
        outcomes(&map)
    }

    /// The run-time switches.
    pub fn config(&self) -> Result<Config, KernelError> {
        generation::pinned_config(&self.pins)?
            .ok_or_else(|| KernelError::OtherLayout { path: self.pins.root().to_owned() })
    }

    /// What is attached.
    pub fn attachments(&self) -> Result<Vec<Attachment>, KernelError> {
        attachments(&self.pins)
    }
}

/// Sums the counters over the CPUs.
pub(crate) fn outcomes(map: &Map) -> Result<Vec<u64>, KernelError> {
    let error = || KernelError::map("reading", maps::OUTCOMES);
    let counters: PerCpuArray<&MapData, u64> = map.try_into().map_err(error())?;
    let sum = |number| counters.get(&number, 0).map(|cpus| cpus.iter().sum());
    (0..outcome::COUNT).map(sum).collect::<Result<_, _>>().map_err(error())
}

/// What the pinned links lead to, and the filters on devices.
pub(crate) fn attachments(pins: &Pins) -> Result<Vec<Attachment>, KernelError> {
    let mut attachments = Vec::new();
    for path in pins::entries(&pins.links())? {
        if let Some(info) = link::info(&path)? {
            attachments.extend(of_link(&pins::file_name(&path), info));
        }
    }
    for (device, ifindex, direction, filter) in device::filters(pins)? {
        let program = match direction {
            TcAttachType::Ingress => programs::TC_INGRESS,
            TcAttachType::Egress => programs::TC_EGRESS,
        };
        attachments.push(Attachment {
            program: program.to_owned(),
            program_id: filter.program_id,
            link_id: None,
            place: Place::Clsact { device, ifindex },
        });
    }
    Ok(attachments)
}

fn of_link(pin: &str, info: LinkInfo) -> Option<Attachment> {
    let (program, place) = match info.target {
        LinkTarget::Cgroup { id, .. } => (pin, Place::Cgroup { id, path: cgroup_path(id) }),
        LinkTarget::Tcx { ifindex, .. } => {
            let programs = [programs::TC_INGRESS, programs::TC_EGRESS];
            let (program, device) =
                programs.into_iter().find_map(|program| Some((program, device_of(pin, program)?)))?;
            (program, Place::Tcx { device, ifindex })
        }
        LinkTarget::Xdp { ifindex } => {
            let (device, mode) = xdp::of_pin(pin)?;
            (programs::XDP_INGRESS, Place::Xdp { device, ifindex, mode })
        }
        LinkTarget::Other => return None,
    };
    Some(Attachment {
        program: program.to_owned(),
        program_id: info.program_id,
        link_id: Some(info.id),
        place,
    })
}

/// Finds a cgroup by the number of its inode: there is no call that does. The root comes first, and mostly is it.
fn cgroup_path(id: u64) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    let mut waiting = vec![requirements::cgroup2_root().ok()?];
    while let Some(path) = waiting.pop() {
        if fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == id) {
            return Some(path);
        }
        let Ok(children) = fs::read_dir(&path) else { continue };
        let directories =
            children.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(directories.map(|entry| entry.path()));
    }
    None
}
