//! What cluster addresses without a frontend mean: another proxy's pass, all others in the Services' networks are refused.
//!
//! The order of writing keeps a promise: what is live before and after is never refused in between. A Service that is
//! left to another proxy has its addresses in force before its frontends go; one that comes back has its frontends before
//! the addresses go; and the networks are compared with only while all of these addresses stand.

use std::collections::BTreeSet;

use lb_common::{address::Address, frontend::FrontendKey};

use super::{Pipeline, Writer};
use crate::{
    desired::foreign::Foreign,
    resolve,
    state::ServiceIndex,
    store::{StoreError, Write},
};

/// What is to be in force of them.
#[derive(Debug)]
pub(super) struct ClusterAddresses {
    /// Those that another proxy serves.
    foreign: Foreign,
    /// These may differ from what is in force.
    touched: bool,
    /// Writing them failed.
    failed: bool,
    /// The networks may differ from what is in force.
    networks_touched: bool,
}

impl Default for ClusterAddresses {
    /// None, and it is not known what is in force.
    fn default() -> Self {
        Self { foreign: Foreign::default(), touched: true, failed: false, networks_touched: false }
    }
}

impl ClusterAddresses {
    /// Sets the addresses of a Service that is left to another proxy; none: it is not.
    pub(super) fn set_service(&mut self, service: ServiceIndex, addresses: &BTreeSet<Address>) {
        self.touched |= self.foreign.set_service(service, addresses);
    }

    /// Notes that the networks may have changed.
    pub(super) fn touch_networks(&mut self, touched: bool) {
        self.networks_touched |= touched;
    }

    /// How much waits for another try.
    pub(super) fn dirty(&self) -> usize {
        usize::from(self.failed) + usize::from(self.networks_touched)
    }
}

impl Pipeline {
    /// Lets the addresses pass that another proxy serves now, as many as there is room for. Returns what failed.
    pub(super) fn put_foreign(&mut self, writer: &mut Writer<'_>) -> Option<StoreError> {
        if !self.cluster_addresses.touched {
            return None;
        }
        let present = self.actual.foreign();
        let coming: Vec<_> =
            self.cluster_addresses.foreign.addresses().filter(|address| !present.contains(address)).collect();
        for address in coming {
            if !self.has_room_for_foreign() {
                break;
            }
            // The next ones wait too: which of them fit must not depend on what failed.
            if let Err(error) = writer.write(&Write::PutForeign { address }, &mut self.actual) {
                return Some(error);
            }
        }
        None
    }

    /// Whether a frontend must stay until another proxy's address is in force in its place.
    ///
    /// A full map is the exception: the frontend makes room for the address.
    pub(super) fn awaits_foreign(&self, key: &FrontendKey) -> bool {
        let address = key.address();
        self.cluster_addresses.foreign.contains(&address)
            && !self.actual.foreign().contains(&address)
            && self.has_room_for_foreign()
    }

    /// After the Services: forgets the addresses that are no longer another proxy's, and compares with the networks.
    pub(super) fn finish_cluster_addresses(&mut self, writer: &mut Writer<'_>) {
        if !self.cluster_addresses.touched && !self.cluster_addresses.networks_touched {
            return;
        }
        // Deleted frontends may have made room.
        let mut failed = self.put_foreign(writer);
        if self.queue.len() == 0 {
            failed = self.delete_foreign(writer).or(failed);
            // So may deleted addresses.
            failed = self.put_foreign(writer).or(failed);
            self.write_service_cidrs(self.lacking_foreign(), writer);
        }
        let lacking = self.lacking_foreign();
        self.cluster_addresses.failed = failed.is_some();
        self.cluster_addresses.touched = failed.is_some() || lacking != 0 || self.queue.len() != 0;
        self.problems.set_foreign(if failed.is_some() { 0 } else { lacking }, failed.as_ref());
        // A Service may have waited for the room that an address left.
        self.unblock();
    }

    fn delete_foreign(&mut self, writer: &mut Writer<'_>) -> Option<StoreError> {
        let present = self.actual.foreign().iter();
        let going: Vec<_> =
            present.filter(|address| !self.cluster_addresses.foreign.contains(address)).copied().collect();
        let mut failed = None;
        for address in going {
            if let Err(error) = writer.write(&Write::DeleteForeign { address }, &mut self.actual) {
                failed = Some(error);
            }
        }
        failed
    }

    /// While an address of another proxy lacks, nothing is refused: it may be the one that is asked for.
    fn write_service_cidrs(&mut self, lacking: usize, writer: &mut Writer<'_>) {
        let (mut networks, problems) = resolve::service_cidrs::resolve(self.state.service_cidrs());
        if lacking != 0 {
            networks.clear();
        }
        let mut failed = None;
        if networks != self.actual.service_cidrs() {
            failed = writer.write(&Write::ServiceCidrs { networks }, &mut self.actual).err();
        }
        self.cluster_addresses.networks_touched = failed.is_some();
        self.problems.set_service_cidrs(problems, failed.as_ref());
    }

    /// How many addresses of another proxy are not in force.
    fn lacking_foreign(&self) -> usize {
        let present = self.actual.foreign();
        self.cluster_addresses.foreign.addresses().filter(|address| !present.contains(address)).count()
    }

    fn has_room_for_foreign(&self) -> bool {
        self.actual.frontends() < self.actual.capacity().frontends
    }
}
