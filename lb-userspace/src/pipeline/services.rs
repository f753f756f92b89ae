//! Writing one Service: its ports one after the other, each by its own plan.

use lb_common::{
    address::Protocol,
    backend::{Backend, flags},
    frontend::{FrontendKey, FrontendKind},
    prefix::Prefix,
    service::{Settings, flags as settings},
};

use super::{Pipeline, Writer, grace, no_room_text, serving::Serving};
use crate::{
    desired::{Desired, Port, claims::PortIndex, ids::BackendKey},
    model::{Problem, Service},
    plan::{NoRoom, Plan, Target, actual::Actual, plan},
    resolve::{self, ResolvedEndpoint, Verdict},
    state::{Entry, ServiceIndex},
    store::{StoreError, Write},
};

/// Why a service port is not as it should be.
enum Stop {
    /// It is as it was.
    NoRoom(NoRoom),
    /// It is in force, but for its Maglev table.
    NoTable(NoRoom),
    Failed(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// What a service port should be, as far as its own objects say.
#[derive(Clone)]
struct Wanted<'a> {
    settings: Settings,
    source_ranges: Vec<Prefix>,
    endpoints: Vec<ResolvedEndpoint<'a>>,
    frontends: Vec<(FrontendKey, FrontendKind)>,
}

impl Pipeline {
    /// Writes one Service as far as it goes, and notes what stopped it.
    pub(super) fn write_service(&mut self, index: ServiceIndex, writer: &mut Writer<'_>) {
        self.blocked.remove(&index);
        let Some(entry) = self.state.entry(index) else { return };
        self.problems.set_orphans(index, entry.orphaned_slices(), &entry.name);
        let (mut endpoint_problems, mut store_problems) = (Vec::new(), Vec::new());
        for position in 0..self.desired.ports_of(index).len() {
            let port = self.desired.ports_of(index)[position];
            let stopped = PortWriter {
                entry,
                port,
                context: &self.context,
                desired: &mut self.desired,
                actual: &mut self.actual,
                adopting: self.adopting,
                serving: &mut self.serving,
                problems: &mut endpoint_problems,
            }
            .write(writer);
            let what = match stopped {
                Ok(()) => continue,
                Err(Stop::NoRoom(no_room)) => {
                    self.blocked.entry(index).or_default().push(no_room);
                    format!("does not fit: {}; what is in force stays", no_room_text(no_room, &self.actual))
                }
                Err(Stop::NoTable(no_room)) => {
                    self.blocked.entry(index).or_default().push(no_room);
                    let why = no_room_text(no_room, &self.actual);
                    format!("its backends are chosen at random, without a Maglev table: {why}")
                }
                Err(Stop::Failed(error)) => {
                    self.queue.push(index);
                    format!(
                        "{}; what is in force stays, and it is tried again",
                        super::problems::text(&error)
                    )
                }
            };
            let field = format!("spec.ports[{}]", self.desired.port(port).spec.name);
            store_problems.push(Problem { object: format!("Service {}", entry.name), field, what });
        }
        self.problems.set_endpoints(index, endpoint_problems);
        self.problems.set_store(index, store_problems);
        if self.desired.ports_of(index).is_empty() {
            self.state.forget_if_empty(index);
        }
    }
}

/// Writes one service port.
struct PortWriter<'a> {
    entry: &'a Entry,
    port: PortIndex,
    context: &'a resolve::Context,
    desired: &'a mut Desired,
    actual: &'a mut Actual,
    adopting: bool,
    serving: &'a mut Serving,
    problems: &'a mut Vec<Problem>,
}

impl<'a> PortWriter<'a> {
    fn write(mut self, writer: &mut Writer<'_>) -> Result<(), Stop> {
        let Some(service) = &self.entry.service else { return Ok(()) };
        let frontends = self.desired.frontends_of(self.port);
        if frontends.is_empty() {
            let port = self.desired.port_mut(self.port);
            if let Some(record) = port.record.take() {
                self.actual.abandon(record);
            }
            self.serving.remove(port.service_id);
            return Ok(());
        }
        if self.adopting {
            self.find_record(&frontends);
        }
        let wanted = self.wanted(service, frontends);
        let written = self.write_wanted(&wanted, writer);
        let Port { service_id, spec, .. } = self.desired.port(self.port);
        // Without a number nothing of the port can be in force.
        if spec.protocol == Protocol::Udp && *service_id != 0 {
            match written {
                Ok(()) | Err(Stop::NoTable(_)) => self.serving.set(*service_id, &wanted.endpoints),
                Err(_) => self.serving.set_if_unknown(*service_id, &wanted.endpoints),
            }
        }
        written
    }

    fn write_wanted(&mut self, wanted: &Wanted<'_>, writer: &mut Writer<'_>) -> Result<(), Stop> {
        match self.plan(wanted, writer) {
            Ok(plan) => self.carry_out(&plan, writer).map_err(Stop::from),
            Err(Stop::NoRoom(no_room @ NoRoom::Positions(_))) => {
                let mut by_chance = wanted.clone();
                by_chance.settings.flags &= !(settings::MAGLEV_OUTSIDE | settings::MAGLEV_SOCKETS);
                self.write_wanted(&by_chance, writer).and(Err(Stop::NoTable(no_room)))
            }
            Err(stop) => {
                self.forget_numbers(wanted);
                if matches!(stop, Stop::NoRoom(_)) {
                    self.withdraw_from_others(&wanted.frontends, writer)?;
                }
                Err(stop)
            }
        }
    }

    /// After a restart: the record that was this port's before.
    fn find_record(&mut self, frontends: &[(FrontendKey, FrontendKind)]) {
        let port = self.desired.port_mut(self.port);
        if port.record.is_none()
            && let Some(index) = self.actual.awaited_record(frontends)
        {
            self.actual.take_over(index);
            port.record = Some(index);
            port.service_id = self.actual.record(index).map_or(0, |record| record.service_id);
        }
    }

    fn wanted(&mut self, service: &Service, frontends: Vec<(FrontendKey, FrontendKind)>) -> Wanted<'a> {
        let spec = &self.desired.port(self.port).spec;
        let slices = self.entry.endpoint_slices();
        let endpoints = resolve::endpoints::resolve(spec, slices, self.context, self.problems);
        let source_ranges = resolve::source_ranges(service, spec.family);
        let settings = resolve::settings(service, spec, self.context, &source_ranges, &endpoints);
        Wanted { settings, source_ranges, endpoints, frontends }
    }

    /// A plan; where room lacks that a grace period gives, after one.
    fn plan(&mut self, wanted: &Wanted<'_>, writer: &mut Writer<'_>) -> Result<Plan, Stop> {
        let planned = match self.try_plan(wanted) {
            Err(no_room) if no_room.is_helped_by_grace(self.actual) => {
                grace::reclaim(self.actual, writer)?;
                // Planned anew from the start: with the slots, numbers of backends may have gone.
                self.try_plan(wanted)
            }
            planned => planned,
        };
        planned.map_err(Stop::NoRoom)
    }

    fn try_plan(&mut self, wanted: &Wanted<'_>) -> Result<Plan, NoRoom> {
        let cluster = self.set(&wanted.endpoints, |endpoint| endpoint.cluster)?;
        let local = self.set(&wanted.endpoints, |endpoint| endpoint.local_set)?;
        let port = self.desired.port_mut(self.port);
        if port.service_id == 0 {
            port.service_id = self.actual.next_service_id().ok_or(NoRoom::Numbers)?;
        }
        let target = Target {
            service_id: port.service_id,
            protocol: port.spec.protocol,
            settings: wanted.settings,
            cluster: &cluster,
            local: &local,
            source_ranges: &wanted.source_ranges,
            frontends: &wanted.frontends,
        };
        plan(&target, port.record, self.actual)
    }

    /// The backends of a set, sorted by number.
    fn set(
        &mut self,
        endpoints: &[ResolvedEndpoint<'_>],
        verdict: fn(&ResolvedEndpoint<'_>) -> Verdict,
    ) -> Result<Vec<Backend>, NoRoom> {
        let used = || endpoints.iter().filter(|endpoint| verdict(endpoint).is_used());
        let mut set = Vec::with_capacity(used().count());
        for endpoint in used() {
            let id = self.actual.intern(self.backend_key(endpoint)).ok_or(NoRoom::Numbers)?;
            let (address, port) = (endpoint.address.address, endpoint.address.port);
            set.push(Backend { address, port, flags: if endpoint.local { flags::LOCAL } else { 0 }, id });
        }
        set.sort_unstable_by_key(|backend| backend.id);
        Ok(set)
    }

    fn backend_key(&self, endpoint: &ResolvedEndpoint<'_>) -> BackendKey {
        BackendKey { address: endpoint.address, protocol: self.desired.port(self.port).spec.protocol }
    }

    /// Writes as far as it goes; what has been written is in force, what has not is given back.
    fn carry_out(&mut self, plan: &Plan, writer: &mut Writer<'_>) -> Result<(), StoreError> {
        let result = plan.writes.iter().try_for_each(|write| writer.write(write, self.actual));
        self.actual.settle(plan.record, &plan.reserved, plan.reserved_table);
        let port = self.desired.port_mut(self.port);
        if port.record != Some(plan.record)
            && self.actual.record(plan.record).is_some()
            && let Some(before) = port.record.replace(plan.record)
        {
            self.actual.abandon(before);
        }
        result
    }

    /// Drops the numbers of backends that came into no slot.
    fn forget_numbers(&mut self, wanted: &Wanted<'_>) {
        for endpoint in &wanted.endpoints {
            let key = self.backend_key(endpoint);
            self.actual.forget_unused(&key);
        }
    }

    /// The port has won frontends that it cannot serve: they must not go on leading to the service port that had them.
    fn withdraw_from_others(
        &mut self,
        frontends: &[(FrontendKey, FrontendKind)],
        writer: &mut Writer<'_>,
    ) -> Result<(), StoreError> {
        let record = self.desired.port(self.port).record;
        for (key, _) in frontends {
            if self.actual.frontend(key).is_some_and(|entry| Some(entry.record) != record) {
                writer.write(&Write::DeleteFrontend { key: *key }, self.actual)?;
            }
        }
        Ok(())
    }
}
