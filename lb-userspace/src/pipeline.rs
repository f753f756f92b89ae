//! From changes of objects to writes of tables: the pure middle, as one value.
//!
//! [`Pipeline::apply`] takes changes in, [`Pipeline::sync`] writes what they make necessary, [`Pipeline::reclaim`] frees
//! what they left behind. The only effect is on the [`Store`] that is passed in; what is in force is what its writes have
//! acknowledged. Cost follows the change: a slice touches its Service, and nothing looks at all of them.

mod cluster_addresses;
mod grace;
mod health_checks;
mod node_ports;
mod problems;
mod services;
mod serving;
mod view;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lb_common::{
    address::{Address, SocketAddress},
    config::{NodeAddress, maps},
    frontend::{FrontendKey, FrontendKind},
};

use self::{
    cluster_addresses::ClusterAddresses, health_checks::HealthCheckNews, problems::Problems, serving::Serving,
};
pub use self::{
    node_ports::{NodePort, NodePorts},
    view::{BackendView, FrontendView, PortView, Reclaimed, ServiceView, Summary, SyncReport, Usage},
};
pub use crate::resolve::DefaultAlgorithm;
pub use crate::resolve::node_addresses::{NodePortAddresses, NodePortAddressesError};
use crate::{
    desired::{Desired, Effects},
    model::{Change, Problem},
    plan::{NoRoom, actual::Actual},
    resolve::{self, Context},
    state::{ServiceIndex, State, Touch},
    store::{Capacity, Store, StoreError, Tables, Write},
};

/// What the operator decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineSettings {
    /// The own node: its endpoints are local.
    pub node_name: Arc<str>,
    /// Where node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// Whether `spec.externalIPs` are served (kube-proxy's default: yes).
    pub external_ips: bool,
    /// How backends are chosen where a Service does not say it.
    pub algorithm: DefaultAlgorithm,
}

/// From changes of objects to writes of tables.
#[derive(Debug)]
pub struct Pipeline {
    settings: PipelineSettings,
    context: Context,
    state: State,
    desired: Desired,
    actual: Actual,
    queue: Queue,
    /// Services that do not fit, with what they lack.
    blocked: BTreeMap<ServiceIndex, Vec<NoRoom>>,
    /// Frontends to delete, unless somebody claims them meanwhile.
    given_up: BTreeSet<FrontendKey>,
    node_addresses_touched: bool,
    cluster_addresses: ClusterAddresses,
    /// After a restart, until the first complete sync: records wait for their service ports.
    adopting: bool,
    serving: Serving,
    problems: Problems,
    health_checks: HealthCheckNews,
}

impl Pipeline {
    /// Nothing known, nothing written.
    pub fn new(settings: PipelineSettings, capacity: Capacity) -> Self {
        let node_name = settings.node_name.clone();
        Self {
            context: Context {
                node_name: node_name.clone(),
                zone: None,
                external_ips: settings.external_ips,
                algorithm: settings.algorithm,
            },
            settings,
            state: State::new(node_name),
            desired: Desired::default(),
            actual: Actual::new(capacity),
            queue: Queue::default(),
            blocked: BTreeMap::new(),
            given_up: BTreeSet::new(),
            node_addresses_touched: false,
            cluster_addresses: ClusterAddresses::default(),
            adopting: false,
            serving: Serving::default(),
            problems: Problems::default(),
            health_checks: HealthCheckNews::default(),
        }
    }

    /// After a restart: what the maps hold. Call it before the first [`Pipeline::sync`].
    ///
    /// A service port finds its record by its frontends, and its number, its backends' numbers and its sets stay. What no
    /// object asks for is removed by the first sync, which waits for the initial lists.
    pub fn adopt(&mut self, actual: Tables) {
        self.given_up = actual.frontends.keys().copied().collect();
        self.actual = Actual::adopt(self.actual.capacity(), actual);
        self.adopting = true;
    }

    /// Takes a change in and marks what it touches, nothing else.
    pub fn apply(&mut self, change: Change) {
        self.state.apply(change);
    }

    /// Whether the initial list of every kind has arrived. Before that, nothing is written.
    pub fn is_synced(&self) -> bool {
        self.state.is_synced()
    }

    /// Writes what the changes so far have made necessary. Before [`Pipeline::is_synced`] it writes nothing.
    ///
    /// A service whose write fails stays dirty for the next call; one that does not fit keeps its present state until there
    /// is room; the others go on.
    pub fn sync(&mut self, store: &mut dyn Store) -> SyncReport {
        let mut writer = Writer { store, report: SyncReport::default() };
        if self.is_synced() {
            self.decide();
            // What fails is told, and tried again, at the end.
            let _failed = self.put_foreign(&mut writer);
            self.delete_given_up(&mut writer);
            for service in self.queue.take() {
                self.write_service(service, &mut writer);
            }
            self.retry_blocked(&mut writer);
            self.write_node_addresses(&mut writer);
            self.finish_cluster_addresses(&mut writer);
            if self.adopting && self.dirty() == 0 {
                self.actual.end_adoption();
                self.adopting = false;
            }
        }
        SyncReport {
            dirty: self.dirty(),
            blocked: self.blocked.len(),
            retired: self.actual.has_retired(),
            left: self.serving.take_left(self.given_up.is_empty()),
            ..writer.report
        }
    }

    /// Waits for one grace period and frees all that is retired. For quiet moments: it takes milliseconds.
    ///
    /// [`Pipeline::sync`] does the same by itself when it cannot go on otherwise.
    pub fn reclaim(&mut self, store: &mut dyn Store) -> Result<Reclaimed, StoreError> {
        let mut writer = Writer { store, report: SyncReport::default() };
        let freed = grace::reclaim(&mut self.actual, &mut writer)?;
        Ok(Reclaimed { unblocked: self.unblock(), ..freed })
    }

    /// What is wrong now: from the sources, from the objects and their conflicts, from the store. Sorted.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.all(&self.state, &self.desired)
    }

    /// Whether a backend serves the UDP service port of this number: it is ready, or terminating and still serving.
    ///
    /// After a restart the answer holds once the first complete [`Pipeline::sync`] is done.
    pub fn is_serving(&self, service_id: u32, backend: &SocketAddress) -> bool {
        self.serving.contains(service_id, backend)
    }

    /// What the operator decided.
    pub fn settings(&self) -> &PipelineSettings {
        &self.settings
    }

    /// Settles what the changes mean for the frontends of all Services, before anything is written.
    fn decide(&mut self) {
        let touched = self.state.take_touched();
        self.node_addresses_touched |= touched.addresses;
        self.cluster_addresses.touch_networks(touched.service_cidrs);
        if touched.addresses {
            self.decide_health_check_addresses();
        }
        if touched.zone {
            self.context.zone = self.state.zone().cloned();
            self.state.entries().for_each(|(service, _)| self.queue.push(service));
        }
        let mut effects = Effects::default();
        for (service, touch) in touched.services {
            if touch == Touch::Service {
                self.decide_frontends(service, &mut effects);
            }
            self.decide_health_check(service);
            self.queue.push(service);
        }
        effects.services.into_iter().for_each(|service| self.queue.push(service));
        effects.records.into_iter().for_each(|record| self.actual.abandon(record));
        effects.service_ids.into_iter().for_each(|service_id| self.serving.remove(service_id));
        self.given_up.extend(effects.given_up);
    }

    fn decide_frontends(&mut self, index: ServiceIndex, effects: &mut Effects) {
        let Some(entry) = self.state.entry(index) else { return };
        let mut problems = Vec::new();
        let service = entry.service.as_ref();
        let specs = service
            .and_then(|service| resolve::frontends::resolve(service, &self.context, &mut problems).ok())
            .unwrap_or_default();
        let created = service.and_then(|service| service.created);
        self.desired.set_service(index, &entry.name, created, specs, effects);
        let foreign = service.map(resolve::frontends::foreign_addresses).unwrap_or_default();
        self.cluster_addresses.set_service(index, &foreign);
        self.problems.set_frontends(index, problems);
    }

    /// Deletes the frontends that nobody claims any more, before anything else changes.
    fn delete_given_up(&mut self, writer: &mut Writer<'_>) {
        for key in std::mem::take(&mut self.given_up) {
            if self.desired.winner(&key).is_some() || self.actual.frontend(&key).is_none() {
                self.problems.clear_delete(&key);
            } else if self.awaits_foreign(&key) {
                self.given_up.insert(key);
            } else if let Err(error) = writer.write(&Write::DeleteFrontend { key }, &mut self.actual) {
                self.problems.set_delete(key, &error);
                self.given_up.insert(key);
            } else {
                self.problems.clear_delete(&key);
            }
        }
    }

    /// Tries those Services again that may fit by now.
    fn retry_blocked(&mut self, writer: &mut Writer<'_>) {
        for service in self.may_fit().collect::<Vec<_>>() {
            self.write_service(service, writer);
        }
    }

    /// Queues those blocked Services that may fit by now.
    fn unblock(&mut self) -> usize {
        let before = self.queue.len();
        for service in self.may_fit().collect::<Vec<_>>() {
            self.queue.push(service);
        }
        self.queue.len() - before
    }

    /// The blocked Services one of whose ports may fit by now.
    fn may_fit(&self) -> impl Iterator<Item = ServiceIndex> {
        let may_fit = |lacks: &[NoRoom]| lacks.iter().any(|no_room| no_room.may_fit(&self.actual));
        self.blocked.iter().filter(move |(_, lacks)| may_fit(lacks)).map(|(service, _)| *service)
    }

    fn write_node_addresses(&mut self, writer: &mut Writer<'_>) {
        if !self.node_addresses_touched {
            return;
        }
        let named = &self.settings.node_port_addresses;
        let mut desired = resolve::node_addresses::resolve(named, self.state.node(), self.state.interfaces());
        let capacity = self.actual.capacity().node_addresses as usize;
        let excess = desired.len().saturating_sub(capacity);
        if excess != 0 {
            desired = desired.into_iter().take(capacity).collect();
        }
        let mut failed = None;
        for write in node_address_writes(&desired, self.actual.node_addresses(), capacity) {
            if let Err(error) = writer.write(&write, &mut self.actual) {
                failed = Some(error);
            }
        }
        self.node_addresses_touched = failed.is_some();
        self.problems.set_node_addresses(excess, failed.as_ref());
    }

    /// How much waits for another try.
    fn dirty(&self) -> usize {
        let others = usize::from(self.node_addresses_touched) + self.cluster_addresses.dirty();
        self.queue.len() + self.given_up.len() + others
    }
}

/// The writes between the present addresses of the node and the desired ones. New ones come before old ones go, as long
/// as there is room for both.
fn node_address_writes(
    desired: &BTreeMap<Address, NodeAddress>,
    present: &BTreeMap<Address, NodeAddress>,
    capacity: usize,
) -> Vec<Write> {
    let changed = desired.iter().filter(|(address, value)| present.get(*address) != Some(*value));
    let puts = changed.map(|(address, value)| Write::PutNodeAddress { address: *address, value: *value });
    let gone = present.keys().filter(|address| !desired.contains_key(*address));
    let deletes = gone.map(|address| Write::DeleteNodeAddress { address: *address });
    let both = desired.len() + present.keys().filter(|address| !desired.contains_key(*address)).count();
    if both <= capacity { puts.chain(deletes).collect() } else { deletes.chain(puts).collect() }
}

/// The Services that wait to be written, each once, in the order in which they came.
#[derive(Debug, Default)]
struct Queue {
    services: Vec<ServiceIndex>,
    waits: Vec<bool>,
}

impl Queue {
    fn push(&mut self, service: ServiceIndex) {
        if self.waits.len() <= service {
            self.waits.resize(service + 1, false);
        }
        if !std::mem::replace(&mut self.waits[service], true) {
            self.services.push(service);
        }
    }

    fn take(&mut self) -> Vec<ServiceIndex> {
        for service in &self.services {
            self.waits[*service] = false;
        }
        std::mem::take(&mut self.services)
    }

    fn len(&self) -> usize {
        self.services.len()
    }
}

/// Writes, notes what succeeded, and counts.
struct Writer<'a> {
    store: &'a mut dyn Store,
    report: SyncReport,
}

impl Writer<'_> {
    fn write(&mut self, write: &Write, actual: &mut Actual) -> Result<(), StoreError> {
        match self.store.apply(write) {
            Ok(()) => {
                actual.note(write);
                self.report.written += 1;
                self.report.node_ports |= concerns_node_ports(write);
                Ok(())
            }
            Err(error) => {
                self.report.failed += 1;
                Err(error)
            }
        }
    }
}

/// Whether a write changes which node ports there are, or where they answer.
fn concerns_node_ports(write: &Write) -> bool {
    match write {
        Write::PutFrontend { entry, .. } => entry.kind == FrontendKind::NodePort as u8,
        Write::DeleteFrontend { key } => *key == key.node_port(),
        Write::PutNodeAddress { .. } | Write::DeleteNodeAddress { .. } => true,
        Write::Slots { .. }
        | Write::MaglevTable { .. }
        | Write::MaglevRange { .. }
        | Write::Record { .. }
        | Write::Range { .. }
        | Write::Settings { .. }
        | Write::PutSourceRange { .. }
        | Write::DeleteSourceRange { .. }
        | Write::PutForeign { .. }
        | Write::DeleteForeign { .. }
        | Write::ServiceCidrs { .. }
        | Write::Grace => false,
    }
}

/// What operators call the map that is full, and how full it is.
fn no_room_text(no_room: NoRoom, actual: &Actual) -> String {
    let capacity = actual.capacity();
    match no_room {
        NoRoom::Slots(count) => format!(
            "map {} has no {count} free slots in a row ({} of {} are free)",
            maps::BACKENDS,
            actual.slots().free() + actual.slots().retired(),
            capacity.backends
        ),
        NoRoom::Positions(count) => format!(
            "map {} has no {count} free positions in a row ({} of {} are free)",
            maps::MAGLEV,
            actual.positions().free() + actual.positions().retired(),
            capacity.maglev
        ),
        NoRoom::Record => format!("map {} is full (capacity {})", maps::SERVICES, capacity.services),
        NoRoom::Frontends(count) => format!(
            "map {} has no room for {count} more ({} of {} entries are used)",
            maps::FRONTENDS,
            actual.frontends(),
            capacity.frontends
        ),
        NoRoom::SourceRanges(count) => format!(
            "map {} has no room for {count} more ({} of {} entries are used)",
            maps::SOURCE_RANGES,
            actual.source_range_count(),
            capacity.source_ranges
        ),
        NoRoom::Numbers => "all numbers of service ports or backends have been given".to_owned(),
    }
}

#[cfg(test)]
mod tests;
