//! A small cluster as an API server holds it, in which names, addresses and ports collide often.

use std::collections::BTreeMap;

use k8s_openapi::api::{core::v1, discovery::v1 as discovery};
use kube::ResourceExt as _;
use lb_userspace::{
    model::{Change, Kind, Object, ObjectName},
    pipeline::{DefaultAlgorithm, PipelineSettings},
    source::convert,
};

pub(crate) const NODE: &str = "node-1";

/// An object of the API.
#[derive(Clone, Debug)]
pub(crate) enum ApiObject {
    Service(Box<v1::Service>),
    Slice(Box<discovery::EndpointSlice>),
    Endpoints(Box<v1::Endpoints>),
    Node(Box<v1::Node>),
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Apply(ApiObject),
    Delete(Kind, ObjectName),
    /// A relist: of the objects of a kind, those whose bit is set are left.
    Relist(Kind, u8),
    /// The addresses of the node's interfaces.
    Interfaces(Vec<&'static str>),
    Sync,
    Reclaim,
    Restart,
}

/// What exists, and what the operator decided.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) objects: BTreeMap<(Kind, ObjectName), ApiObject>,
    pub(crate) interfaces: Vec<&'static str>,
    pub(crate) operator: Operator,
}

/// What the operator decided.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    /// `--nodeport-addresses`.
    pub(crate) node_port_addresses: &'static str,
    /// `--external-ips`.
    pub(crate) external_ips: bool,
}

impl Default for Operator {
    fn default() -> Self {
        Self { node_port_addresses: "primary,localhost", external_ips: true }
    }
}

impl Operator {
    pub(crate) fn settings(&self) -> PipelineSettings {
        PipelineSettings {
            node_name: NODE.into(),
            node_port_addresses: self.node_port_addresses.parse().unwrap(),
            external_ips: self.external_ips,
            algorithm: DefaultAlgorithm::Random,
        }
    }
}

impl ApiObject {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Slice(_) => Kind::EndpointSlice,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Node(_) => Kind::Node,
        }
    }

    pub(crate) fn name(&self) -> ObjectName {
        match self {
            Self::Service(service) => ObjectName::new(service.namespace().unwrap(), service.name_any()),
            Self::Slice(slice) => ObjectName::new(slice.namespace().unwrap(), slice.name_any()),
            Self::Endpoints(endpoints) => {
                ObjectName::new(endpoints.namespace().unwrap(), endpoints.name_any())
            }
            Self::Node(node) => ObjectName::new("", node.name_any()),
        }
    }

    /// What a source makes of it; nothing: its selectors or the conversion leave it out.
    pub(crate) fn convert(&self) -> Option<Object> {
        match self {
            Self::Service(service) => convert::service(service).0.map(Object::Service),
            Self::Slice(slice) if convert::is_headless(slice) => None,
            Self::Slice(slice) => convert::endpoint_slice(slice).0.map(Object::EndpointSlice),
            Self::Endpoints(endpoints) => {
                convert::endpoints(endpoints).0.map(|(name, slices)| Object::Endpoints(name, slices))
            }
            Self::Node(node) => convert::node(node).0.map(Object::Node),
        }
    }

    fn change(&self) -> Change {
        match self.convert() {
            Some(object) => Change::Apply(object),
            None => Change::Delete(self.kind(), self.name()),
        }
    }
}

impl World {
    pub(crate) fn new(operator: Operator) -> Self {
        Self { objects: BTreeMap::new(), interfaces: Vec::new(), operator }
    }

    /// Takes an action in; the change that a source would send.
    pub(crate) fn apply(&mut self, action: &Action) -> Option<Change> {
        match action {
            Action::Apply(object) => {
                self.objects.insert((object.kind(), object.name()), object.clone());
                Some(object.change())
            }
            Action::Delete(kind, name) => {
                self.objects.remove(&(*kind, name.clone()));
                Some(Change::Delete(*kind, name.clone()))
            }
            Action::Relist(kind, mask) => {
                let mut position = 0;
                self.objects.retain(|(other, _), _| {
                    if other != kind {
                        return true;
                    }
                    position += 1;
                    mask & (1 << (position % 8)) != 0
                });
                Some(self.reset(*kind))
            }
            Action::Interfaces(addresses) => {
                self.interfaces.clone_from(addresses);
                Some(self.interfaces_change())
            }
            Action::Sync | Action::Reclaim | Action::Restart => None,
        }
    }

    /// What a source sends at its start.
    pub(crate) fn initial(&self) -> Vec<Change> {
        let resets = Kind::ALL.map(|kind| self.reset(kind));
        [self.interfaces_change()].into_iter().chain(resets).collect()
    }

    /// The same in another order: first empty lists, then one thing after the other. `seed` decides on the order.
    pub(crate) fn one_by_one(&self, seed: u64) -> Vec<Change> {
        let empty = Kind::ALL.map(|kind| Change::Reset(kind, Vec::new()));
        let mut changes: Vec<_> = self.objects.values().map(ApiObject::change).collect();
        changes.push(self.interfaces_change());
        let mut state = seed | 1;
        for last in (1..changes.len()).rev() {
            // Any generator will do (Knuth's MMIX); the upper bits are the good ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            changes.swap(last, (state >> 33) as usize % (last + 1));
        }
        empty.into_iter().chain(changes).collect()
    }

    fn interfaces_change(&self) -> Change {
        Change::Interfaces(self.interfaces.iter().map(|ip| ip.parse().unwrap()).collect())
    }

    fn reset(&self, kind: Kind) -> Change {
        let of_kind = self.objects.iter().filter(|((other, _), _)| *other == kind);
        Change::Reset(kind, of_kind.filter_map(|(_, object)| object.convert()).collect())
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &v1::Service> {
        self.objects.values().filter_map(|object| match object {
            ApiObject::Service(service) => Some(&**service),
            _ => None,
        })
    }

    pub(crate) fn slices(&self) -> impl Iterator<Item = &discovery::EndpointSlice> {
        self.objects.values().filter_map(|object| match object {
            ApiObject::Slice(slice) => Some(&**slice),
            _ => None,
        })
    }

    pub(crate) fn endpoints(&self, name: &ObjectName) -> Option<&v1::Endpoints> {
        match self.objects.get(&(Kind::Endpoints, name.clone())) {
            Some(ApiObject::Endpoints(endpoints)) => Some(endpoints),
            _ => None,
        }
    }

    pub(crate) fn node(&self) -> Option<&v1::Node> {
        match self.objects.get(&(Kind::Node, ObjectName::new("", NODE))) {
            Some(ApiObject::Node(node)) => Some(node),
            _ => None,
        }
    }
}
