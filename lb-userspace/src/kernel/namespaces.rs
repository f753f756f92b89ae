//! The pods' addresses by network namespace: the map `NAMESPACES`.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError},
    sys::SyscallError,
};
use lb_common::{config::maps, namespace::NamespaceAddresses};

use super::error::KernelError;
use crate::store::kernel::{absent_is_fine, duplicate};

/// The map, for writing. There is one writer at a time: the agent holds the pin directory's lock.
#[derive(Debug)]
pub struct Namespaces {
    map: HashMap<MapData, u64, NamespaceAddresses>,
}

impl Namespaces {
    /// On the map that a loaded object uses.
    pub(crate) fn new(ebpf: &Ebpf) -> Result<Self, KernelError> {
        let data = ebpf.map(maps::NAMESPACES).ok_or(MapError::ElementNotFound).and_then(duplicate);
        let map = data.and_then(Map::from_map_data).and_then(HashMap::try_from);
        Ok(Self { map: map.map_err(KernelError::map("opening", maps::NAMESPACES))? })
    }

    /// What the map holds, by the namespace's cookie.
    pub fn read(&self) -> Result<BTreeMap<u64, NamespaceAddresses>, KernelError> {
        self.map.iter().collect::<Result<_, _>>().map_err(KernelError::map("reading", maps::NAMESPACES))
    }

    /// Makes the map hold these and nothing else, and writes no more than differs.
    ///
    /// Returns the cookies of those that do not fit: a full map keeps what is in it.
    pub fn set(&mut self, wanted: &BTreeMap<u64, NamespaceAddresses>) -> Result<Vec<u64>, KernelError> {
        let present = self.read()?;
        for cookie in present.keys().filter(|cookie| !wanted.contains_key(cookie)) {
            let done = absent_is_fine(self.map.remove(cookie));
            done.map_err(KernelError::map("deleting from", maps::NAMESPACES))?;
        }
        let mut unfit = Vec::new();
        for (cookie, addresses) in wanted {
            if present.get(cookie) == Some(addresses) {
                continue;
            }
            match self.map.insert(cookie, addresses, 0) {
                Err(error) if is_full(&error) => unfit.push(*cookie),
                done => done.map_err(KernelError::map("inserting into", maps::NAMESPACES))?,
            }
        }
        Ok(unfit)
    }
}

/// `htab_map_update_elem`: a preallocated hash without a free element.
fn is_full(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(SyscallError { io_error, .. }) if io_error.raw_os_error() == Some(libc::E2BIG))
}
