//! North-south programs on devices: as links (tcx, kernel 6.6), else as filters of a clsact qdisc.
//!
//! A filter stays without any process, and cannot be pinned: ours is known by name, priority and handle, so a device has
//! room for those of one agent. Which devices have filters, and whose qdisc was made for them, is remembered by
//! directories, the only thing besides pins that a BPF file system holds.

use std::{io, path::PathBuf};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
    programs::{
        Link as _, SchedClassifier, TcAttach, TcAttachType,
        tc::{NlOptions, SchedClassifierLink, TcError, TcHandle, qdisc_add_clsact},
    },
};
use lb_common::config::{Device, maps, programs};
use nix::net::if_::if_nametoindex;

use super::{
    error::KernelError,
    filter::{self, Filter},
    link::{self, Change, OnDevice},
    load,
    pins::{self, Pins, device_pin},
};

/// The programs of a device, in the order in which they are attached: what undoes a translation comes first.
pub(crate) const PROGRAMS: [(&str, TcAttachType); 2] =
    [(programs::TC_EGRESS, TcAttachType::Egress), (programs::TC_INGRESS, TcAttachType::Ingress)];

/// Where our filters stand: before others, which may end the chain with their verdict.
const PRIORITY: u16 = 1;
const HANDLE: u32 = 0x50c4_e7e0;

/// Name of the directory that says that a device's qdisc was made for our filters.
const QDISC: &str = "qdisc";

/// How programs are attached to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcx,
    Clsact,
}

/// The index of a device in the calling thread's network namespace.
pub(crate) fn index(device: &str) -> Result<u32, KernelError> {
    if_nametoindex(device)
        .map_err(|errno| KernelError::NoDevice { name: device.to_owned(), source: errno.into() })
}

/// Attaches both programs to a device, or switches what is attached to them.
pub(crate) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    device: &str,
    kind: Kind,
) -> Result<Vec<(String, Change)>, KernelError> {
    let ifindex = index(device)?;
    list_device(ebpf, ifindex)?;
    let mut changes = Vec::new();
    for (name, direction) in PROGRAMS {
        let program = load::device_program(ebpf, name)?;
        let pin = device_pin(device, name);
        let change = match kind {
            Kind::Tcx => link::ensure(pins, &pin, &mut OnDevice { program, ifindex, direction })?,
            Kind::Clsact => ensure_filter(pins, device, ifindex, program, name, direction)?,
        };
        changes.push((pin, change));
    }
    // What an agent on another kernel or with other settings has left, after its successor is in place.
    match kind {
        Kind::Tcx => remove_filters(pins, device)?,
        Kind::Clsact => remove_links(pins, device)?,
    }
    Ok(changes)
}

/// Removes both programs from a device.
pub(crate) fn detach(pins: &Pins, device: &str) -> Result<(), KernelError> {
    remove_links(pins, device)?;
    remove_filters(pins, device)
}

/// Ingress first, so that nothing new is translated while answers still are.
fn remove_links(pins: &Pins, device: &str) -> Result<(), KernelError> {
    PROGRAMS
        .into_iter()
        .rev()
        .try_for_each(|(name, _)| link::remove(&pins.links().join(device_pin(device, name))))
}

/// Our filters: device, index, direction and filter.
pub(crate) fn filters(pins: &Pins) -> Result<Vec<(String, u32, TcAttachType, Filter)>, KernelError> {
    let mut found = Vec::new();
    for marker in pins::entries(&pins.filters())? {
        let device = pins::unescape(&pins::file_name(&marker));
        let Ok(ifindex) = index(&device) else { continue };
        for (program, direction) in PROGRAMS {
            if let Some(filter) = find_filter(&device, ifindex, program, direction)? {
                found.push((device.clone(), ifindex, direction, filter));
            }
        }
    }
    Ok(found)
}

/// Removes our filters from a device, and the qdisc if it was made for them and nobody else uses it.
///
/// Ingress first, so that nothing new is translated while answers still are. A device that is gone took all with it.
pub(crate) fn remove_filters(pins: &Pins, device: &str) -> Result<(), KernelError> {
    let marker = marker(pins, device);
    if !marker.exists() {
        return Ok(());
    }
    if let Ok(ifindex) = index(device) {
        for (name, direction) in PROGRAMS.into_iter().rev() {
            remove_filter(device, ifindex, name, direction)?;
        }
        if marker.join(QDISC).exists() {
            remove_unused_clsact(device, ifindex)?;
        }
    }
    pins::remove_directory(&marker.join(QDISC))?;
    pins::remove_directory(&marker)
}

/// Keeps in `DEVICES` only the devices that programs are attached to.
pub(crate) fn retain_devices(ebpf: &mut Ebpf, attached: &[String]) -> Result<(), KernelError> {
    let present: Vec<u32> = attached.iter().filter_map(|device| index(device).ok()).collect();
    let error = || KernelError::map("reading", maps::DEVICES);
    let listed: Vec<u32> = devices(ebpf)?.keys().collect::<Result<_, _>>().map_err(error())?;
    listed
        .into_iter()
        .filter(|ifindex| !present.contains(ifindex))
        .try_for_each(|ifindex| unlist_device(ebpf, ifindex))
}

fn list_device(ebpf: &mut Ebpf, ifindex: u32) -> Result<(), KernelError> {
    let devices = devices(ebpf)?;
    match devices.get(&ifindex, 0) {
        // What is said of its XDP program stays true.
        Ok(_) => Ok(()),
        Err(MapError::KeyNotFound) => mark_device(ebpf, ifindex, 0),
        Err(error) => Err(KernelError::map("reading", maps::DEVICES)(error)),
    }
}

/// Lists a device with flags (`lb_common::config::device`).
pub(crate) fn mark_device(ebpf: &mut Ebpf, ifindex: u32, flags: u32) -> Result<(), KernelError> {
    let done = devices(ebpf)?.insert(&ifindex, &Device { flags }, 0);
    done.map_err(KernelError::map("inserting into", maps::DEVICES))
}

fn unlist_device(ebpf: &mut Ebpf, ifindex: u32) -> Result<(), KernelError> {
    let done = devices(ebpf)?.remove(&ifindex);
    crate::store::kernel::absent_is_fine(done).map_err(KernelError::map("deleting from", maps::DEVICES))
}

fn devices(ebpf: &mut Ebpf) -> Result<HashMap<&mut MapData, u32, Device>, KernelError> {
    let what = || KernelError::Object { what: format!("it lacks the map {}", maps::DEVICES) };
    let map = ebpf.map_mut(maps::DEVICES).ok_or_else(what)?;
    map.try_into().map_err(KernelError::map("opening", maps::DEVICES))
}

/// Puts the program into our filter, or makes one.
fn ensure_filter(
    pins: &Pins,
    device: &str,
    ifindex: u32,
    program: &mut SchedClassifier,
    name: &'static str,
    direction: TcAttachType,
) -> Result<Change, KernelError> {
    let error = |operation| KernelError::program(operation, name, format!(" at {device}"));
    let id = program.info().map_err(error("looking at"))?.id();
    let handle = TcHandle::from(HANDLE);
    let (link, change) = match find_filter(device, ifindex, name, direction)? {
        Some(filter) if filter.program_id == id => return Ok(Change::Kept),
        Some(filter) => {
            // The kernel replaces the program of a filter in one step (cls_bpf_change).
            let parent = direction.into();
            let handle = filter.handle.into();
            let old = SchedClassifierLink::attached(ifindex, parent, filter.priority, handle, None);
            let old = old.map_err(|source| error("switching")(source.into()))?;
            (program.attach_to_link(old).map_err(error("switching"))?, Change::Switched)
        }
        None => {
            add_clsact(pins, device, ifindex)?;
            let options = NlOptions { priority: PRIORITY, handle, classid: None };
            let place = TcAttach::Netlink { parent: direction.into(), options };
            (program.attach(ifindex, place).map_err(error("attaching"))?, Change::Attached)
        }
    };
    // Dropping it would detach the filter, which is to stay without this process.
    std::mem::forget(program.take_link(link).map_err(error("attaching"))?);
    Ok(change)
}

fn remove_filter(
    device: &str,
    ifindex: u32,
    name: &'static str,
    direction: TcAttachType,
) -> Result<(), KernelError> {
    let Some(filter) = find_filter(device, ifindex, name, direction)? else { return Ok(()) };
    let error = || KernelError::program("detaching", name, format!(" at {device}"));
    let parent = direction.into();
    let link = SchedClassifierLink::attached(ifindex, parent, filter.priority, filter.handle.into(), None);
    link.map_err(|source| error()(source.into()))?.detach().map_err(error())
}

fn find_filter(
    device: &str,
    ifindex: u32,
    name: &str,
    direction: TcAttachType,
) -> Result<Option<Filter>, KernelError> {
    let filters =
        filter::list(ifindex, direction).map_err(KernelError::io("listing the filters of", device))?;
    let ours =
        |filter: &Filter| filter.name == name && filter.priority == PRIORITY && filter.handle == HANDLE;
    Ok(filters.into_iter().find(ours))
}

/// Adds the qdisc that filters hang on, if there is none, and remembers who made it.
fn add_clsact(pins: &Pins, device: &str, ifindex: u32) -> Result<(), KernelError> {
    let marker = marker(pins, device);
    pins::create_directory(&marker)?;
    match qdisc_add_clsact(ifindex) {
        Ok(()) => pins::create_directory(&marker.join(QDISC)),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(KernelError::io("adding a clsact qdisc to", device)(io::Error::other(error))),
    }
}

fn remove_unused_clsact(device: &str, ifindex: u32) -> Result<(), KernelError> {
    let error = || KernelError::io("removing the clsact qdisc of", device);
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        if filter::has_any(ifindex, direction).map_err(error())? {
            return Ok(());
        }
    }
    filter::remove_clsact(ifindex).map_err(error())
}

fn marker(pins: &Pins, device: &str) -> PathBuf {
    pins.filters().join(pins::escape(device))
}
