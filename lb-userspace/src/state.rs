//! The cluster as the sources have told it, by Service: each with the slices and the Endpoints object that belong to it.
//!
//! Takes changes in and remembers which Services they touch. Decides nothing: what the objects mean is for
//! [`crate::resolve`]. An object equal to the one before touches nothing, so a relist costs comparisons alone.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use slab::Slab;

use crate::{
    lookup::{LookupMap, LookupSet},
    model::{Change, EndpointSlice, Kind, Node, Object, ObjectName, Problem, Service, ServiceCidr},
};

/// The number of a Service in [`State`]; used again when nothing of its name is left.
pub type ServiceIndex = usize;

/// The cluster's objects.
#[derive(Debug)]
pub struct State {
    node_name: Arc<str>,
    entries: Slab<Entry>,
    names: LookupMap<ObjectName, ServiceIndex>,
    /// Slice → the Service that it belonged to when it was last seen: a slice may be moved.
    slices: LookupMap<ObjectName, ServiceIndex>,
    node: Option<Node>,
    service_cidrs: BTreeMap<ObjectName, ServiceCidr>,
    interfaces: Vec<IpAddr>,
    listed: [bool; Kind::ALL.len()],
    problems: BTreeMap<String, Vec<Problem>>,
    touched: Touched,
}

/// All that belongs to one Service name.
#[derive(Debug)]
pub struct Entry {
    /// The Service's name.
    pub name: ObjectName,
    /// The Service; absent while only endpoints are known.
    pub service: Option<Service>,
    /// Its slices, sorted by name.
    slices: Vec<EndpointSlice>,
    /// Its Endpoints object, in the form of slices.
    endpoints: Option<Vec<EndpointSlice>>,
    touched: Touch,
}

/// How much of a Service was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Touch {
    /// Nothing.
    None,
    /// Its endpoints.
    Endpoints,
    /// The Service itself.
    Service,
}

/// What was touched since it was last asked for.
#[derive(Debug, Default)]
pub struct Touched {
    /// Services, in the order in which they were touched; each once.
    pub services: Vec<(ServiceIndex, Touch)>,
    /// The node's zone: all endpoints have to be looked at again.
    pub zone: bool,
    /// The node's addresses.
    pub addresses: bool,
    /// The networks that cluster addresses come from.
    pub service_cidrs: bool,
}

impl Entry {
    /// What the Service's endpoints are: its slices or, only if there are none, its Endpoints object.
    ///
    /// A control plane mirrors Endpoints into slices: counting both would count twice.
    pub fn endpoint_slices(&self) -> &[EndpointSlice] {
        if self.slices.is_empty() { self.endpoints.as_deref().unwrap_or_default() } else { &self.slices }
    }

    /// The slices that stand here without a Service of their name.
    pub fn orphaned_slices(&self) -> &[EndpointSlice] {
        if self.service.is_none() { &self.slices } else { &[] }
    }

    fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty() && self.endpoints.is_none()
    }

    fn position(&self, slice: &ObjectName) -> Result<usize, usize> {
        self.slices.binary_search_by(|other| other.name.cmp(slice))
    }
}

impl State {
    /// Nothing known. Of Nodes, only the one of this name counts.
    pub fn new(node_name: Arc<str>) -> Self {
        Self {
            node_name,
            entries: Slab::new(),
            names: LookupMap::default(),
            slices: LookupMap::default(),
            node: None,
            service_cidrs: BTreeMap::new(),
            interfaces: Vec::new(),
            listed: [false; Kind::ALL.len()],
            problems: BTreeMap::new(),
            touched: Touched { addresses: true, service_cidrs: true, ..Touched::default() },
        }
    }

    /// Takes a change in.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Apply(object) => self.put(object),
            Change::Delete(kind, name) => self.delete(kind, &name),
            Change::Reset(kind, objects) => self.reset(kind, objects),
            Change::Problems { origin, problems } if problems.is_empty() => {
                self.problems.remove(&origin);
            }
            Change::Problems { origin, problems } => {
                self.problems.insert(origin, problems);
            }
            Change::Interfaces(addresses) => {
                self.touched.addresses |= self.interfaces != addresses;
                self.interfaces = addresses;
            }
            // The last state stays in force while the source is away.
            Change::Connected(_) => {}
        }
    }

    /// Whether the initial list of every kind has arrived.
    pub fn is_synced(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }

    /// What has been touched since the last call.
    pub fn take_touched(&mut self) -> Touched {
        let mut touched = std::mem::take(&mut self.touched);
        for (index, touch) in &mut touched.services {
            *touch = std::mem::replace(&mut self.entries[*index].touched, Touch::None);
        }
        touched
    }

    /// How many Services have been touched.
    pub fn touched(&self) -> usize {
        self.touched.services.len()
    }

    /// What belongs to a Service.
    pub fn entry(&self, index: ServiceIndex) -> Option<&Entry> {
        self.entries.get(index)
    }

    /// All Services and what belongs to them, in no order that means anything.
    pub fn entries(&self) -> impl Iterator<Item = (ServiceIndex, &Entry)> {
        self.entries.iter()
    }

    /// Forgets a Service's number if nothing of its name is left. Returns whether it did.
    pub fn forget_if_empty(&mut self, index: ServiceIndex) -> bool {
        let unused = |entry: &Entry| entry.is_empty() && entry.touched == Touch::None;
        if !self.entries.get(index).is_some_and(unused) {
            return false;
        }
        let entry = self.entries.remove(index);
        self.names.remove(&entry.name);
        true
    }

    /// The own Node.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The own Node's zone.
    pub fn zone(&self) -> Option<&Arc<str>> {
        self.node.as_ref()?.zone.as_ref().filter(|zone| !zone.is_empty())
    }

    /// The addresses of the node's interfaces.
    pub fn interfaces(&self) -> &[IpAddr] {
        &self.interfaces
    }

    /// The networks that cluster addresses come from, by the object's name.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &ServiceCidr> + Clone {
        self.service_cidrs.values()
    }

    /// What the sources say is wrong.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    fn put(&mut self, object: Object) {
        match object {
            Object::Service(service) => self.put_service(service),
            Object::EndpointSlice(slice) => self.put_slice(slice),
            Object::Endpoints(name, slices) => self.put_endpoints(&name, slices),
            Object::Node(node) => {
                if node.name == self.node_name {
                    self.set_node(Some(node));
                }
            }
            Object::ServiceCidr(object) => {
                let before = self.service_cidrs.insert(object.name.clone(), object.clone());
                self.touched.service_cidrs |= before.as_ref() != Some(&object);
            }
        }
    }

    fn put_service(&mut self, service: Service) {
        let index = self.index(&service.name);
        let entry = &mut self.entries[index];
        if entry.service.as_ref() != Some(&service) {
            entry.service = Some(service);
            self.touch(index, Touch::Service);
        }
    }

    fn put_slice(&mut self, slice: EndpointSlice) {
        let home = ObjectName { namespace: slice.name.namespace.clone(), name: slice.service.clone() };
        let index = self.index(&home);
        let before = self.slices.insert(slice.name.clone(), index);
        if let Some(before) = before.filter(|before| *before != index) {
            self.take_slice(before, &slice.name);
        }
        let entry = &mut self.entries[index];
        match entry.position(&slice.name) {
            Ok(position) if entry.slices[position] == slice => return,
            Ok(position) => entry.slices[position] = slice,
            Err(position) => entry.slices.insert(position, slice),
        }
        self.touch(index, Touch::Endpoints);
    }

    fn put_endpoints(&mut self, name: &ObjectName, slices: Vec<EndpointSlice>) {
        let index = self.index(name);
        let entry = &mut self.entries[index];
        if entry.endpoints.as_ref() != Some(&slices) {
            entry.endpoints = Some(slices);
            self.touch_endpoints(index);
        }
    }

    fn delete(&mut self, kind: Kind, name: &ObjectName) {
        match kind {
            Kind::Service => {
                let Some(&index) = self.names.get(name) else { return };
                if self.entries[index].service.take().is_some() {
                    self.touch(index, Touch::Service);
                }
            }
            Kind::EndpointSlice => {
                if let Some(index) = self.slices.remove(name) {
                    self.take_slice(index, name);
                }
            }
            Kind::Endpoints => {
                let Some(&index) = self.names.get(name) else { return };
                if self.entries[index].endpoints.take().is_some() {
                    self.touch_endpoints(index);
                }
            }
            Kind::Node => {
                if name.name == self.node_name {
                    self.set_node(None);
                }
            }
            Kind::ServiceCidr => {
                self.touched.service_cidrs |= self.service_cidrs.remove(name).is_some();
            }
        }
    }

    fn reset(&mut self, kind: Kind, objects: Vec<Object>) {
        let listed: LookupSet<ObjectName> = objects.iter().map(Object::name).collect();
        for object in objects {
            self.put(object);
        }
        for name in self.known(kind) {
            if !listed.contains(&name) {
                self.delete(kind, &name);
            }
        }
        self.listed[kind as usize] = true;
    }

    /// The names of all objects of a kind, in an order that depends on nothing but the changes so far.
    fn known(&self, kind: Kind) -> Vec<ObjectName> {
        let entries = self.entries.iter().map(|(_, entry)| entry);
        match kind {
            Kind::Service => entries.filter(|e| e.service.is_some()).map(|e| e.name.clone()).collect(),
            Kind::Endpoints => entries.filter(|e| e.endpoints.is_some()).map(|e| e.name.clone()).collect(),
            Kind::EndpointSlice => {
                entries.flat_map(|entry| &entry.slices).map(|slice| slice.name.clone()).collect()
            }
            Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
            Kind::Node => self.node.iter().map(|node| ObjectName::new("", node.name.clone())).collect(),
        }
    }

    fn set_node(&mut self, node: Option<Node>) {
        let before = (self.zone().cloned(), self.node.as_ref().map(|node| node.addresses.clone()));
        self.node = node;
        self.touched.zone |= before.0.as_ref() != self.zone();
        self.touched.addresses |= before.1.as_ref() != self.node.as_ref().map(|node| &node.addresses);
    }

    /// The number of a Service, known or not.
    fn index(&mut self, name: &ObjectName) -> ServiceIndex {
        if let Some(&index) = self.names.get(name) {
            return index;
        }
        let index = self.entries.insert(Entry {
            name: name.clone(),
            service: None,
            slices: Vec::new(),
            endpoints: None,
            touched: Touch::None,
        });
        self.names.insert(name.clone(), index);
        index
    }

    fn take_slice(&mut self, index: ServiceIndex, name: &ObjectName) {
        let Some(entry) = self.entries.get_mut(index) else { return };
        if let Ok(position) = entry.position(name) {
            entry.slices.remove(position);
            self.touch(index, Touch::Endpoints);
        }
    }

    /// An Endpoints object matters only where there is no slice.
    fn touch_endpoints(&mut self, index: ServiceIndex) {
        if self.entries[index].slices.is_empty() {
            self.touch(index, Touch::Endpoints);
        }
    }

    fn touch(&mut self, index: ServiceIndex, touch: Touch) {
        let entry = &mut self.entries[index];
        if entry.touched == Touch::None {
            self.touched.services.push((index, Touch::None));
        }
        entry.touched = entry.touched.max(touch);
    }
}

#[cfg(test)]
mod tests;
