//! Removes everything that an agent leaves in the kernel.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lb_common::config::maps;

use super::{
    device,
    error::KernelError,
    link,
    pins::{self, Pins},
    requirements,
    reserved::Reservation,
};

/// Detaches all programs, removes all pins and the directory; says what it removed. Nothing there: nothing removed.
///
/// What is not ours stays, and is an error once everything else is gone. Fails if an agent uses the directory.
pub fn cleanup(bpffs: &Path) -> Result<Vec<String>, KernelError> {
    let pins = Pins::new(bpffs);
    let mut removed = Vec::new();
    if !fs::exists(bpffs).map_err(KernelError::io("looking at", bpffs))? {
        return Ok(removed);
    }
    if !requirements::on_bpffs(bpffs)? {
        return Err(KernelError::NoBpffs { path: bpffs.to_owned() });
    }
    let _lock = pins.lock()?;
    // Links first: a connection that is translated still needs nothing but what its socket remembers.
    remove_links(&pins, &mut removed)?;
    remove_filters(&pins, &mut removed)?;
    give_ports_back(&pins, &mut removed)?;
    remove_pins(&pins, &mut removed)?;
    Ok(removed)
}

/// In the opposite order of attaching: what makes a translation goes before what undoes one.
fn remove_links(pins: &Pins, removed: &mut Vec<String>) -> Result<(), KernelError> {
    for directory in [pins.relinked(), pins.links()] {
        let mut links = pins::entries(&directory)?;
        links.sort_by_key(|path| undoes_translations(&pins::file_name(path)));
        for path in links {
            link::remove(&path)?;
            removed.push(format!("link {}", path.display()));
        }
        remove_if_there(&directory, removed)?;
    }
    Ok(())
}

fn undoes_translations(pin: &str) -> bool {
    pin.starts_with("getpeername") || pin.starts_with("recvmsg") || pin.ends_with("egress")
}

fn remove_filters(pins: &Pins, removed: &mut Vec<String>) -> Result<(), KernelError> {
    for (name, _, _, filter) in device::filters(pins)? {
        removed.push(format!("filter {} of {name}", filter.name));
    }
    for marker in pins::entries(&pins.filters())? {
        device::remove_filters(pins, &pins::unescape(&pins::file_name(&marker)))?;
    }
    remove_if_there(&pins.filters(), removed)
}

fn give_ports_back(pins: &Pins, removed: &mut Vec<String>) -> Result<(), KernelError> {
    if !pins.reserved().exists() {
        return Ok(());
    }
    let reservation = Reservation::new(pins.clone());
    let ours = reservation.ours()?;
    reservation.set(None)?;
    removed.push(format!("reserved ports {ours}"));
    remove_if_there(&pins.reserved(), removed)
}

fn remove_pins(pins: &Pins, removed: &mut Vec<String>) -> Result<(), KernelError> {
    for directory in [pins.staged(), pins.committed(), pins.root().to_owned()] {
        for name in maps::ALL {
            let path = directory.join(name);
            if path.exists() {
                pins::remove_file(&path)?;
                removed.push(format!("map {}", path.display()));
            }
        }
        remove_if_there(&directory, removed)?;
    }
    Ok(())
}

fn remove_if_there(directory: &Path, removed: &mut Vec<String>) -> Result<(), KernelError> {
    match fs::remove_dir(directory) {
        Ok(()) => removed.push(format!("directory {}", directory.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            let names: Vec<String> =
                pins::entries(directory)?.iter().map(PathBuf::as_path).map(pins::file_name).collect();
            return Err(KernelError::Foreign { path: directory.to_owned(), names: names.join(", ") });
        }
        Err(error) => return Err(KernelError::io("removing the directory", directory)(error)),
    }
    Ok(())
}
