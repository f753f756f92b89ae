//! Orders of events: objects that come, change and go, writes that fail, agents that die.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use lb_userspace::{
    model::{Change, Kind, Object, ObjectName},
    source::convert,
    store::Capacity,
};

use super::agent::{Agent, NODE};

/// How many events a history has at most: what goes wrong, goes wrong in few.
const MOST_EVENTS: usize = 64;

#[derive(Debug, Arbitrary)]
struct History {
    backends: u8,
    failing_percent: u8,
    seed: u64,
    events: Vec<Event>,
}

#[derive(Debug, Arbitrary)]
enum Event {
    Service(u8, Service),
    Slice(u8, Slice),
    Endpoints(u8, Vec<Endpoint>),
    Node { zone: u8, addresses: u8 },
    DeleteService(u8),
    DeleteSlice(u8),
    DeleteNode,
    Relist(u8),
    Interfaces(u8),
    Sync,
    Reclaim,
    Die(u8),
}

#[derive(Debug, Arbitrary)]
struct Service {
    kind: u8,
    created: Option<bool>,
    /// Bits: which of a few addresses.
    cluster_ips: u8,
    external_ips: u8,
    ingress: u8,
    ports: Vec<Port>,
    affinity: Option<i32>,
    internal_local: bool,
    external_local: bool,
    other_proxy: bool,
}

#[derive(Debug, Arbitrary)]
struct Port {
    name: u8,
    protocol: u8,
    number: Number,
    node: Option<Number>,
}

/// Mostly one of a few, so that they collide.
#[derive(Debug, Arbitrary)]
enum Number {
    Few(bool),
    Low(u8),
    Any(i32),
}

#[derive(Debug, Arbitrary)]
struct Slice {
    service: u8,
    address_type: u8,
    headless: bool,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Arbitrary)]
struct Endpoint {
    host: u8,
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
    node: u8,
    zones: u8,
    nodes: u8,
}

/// Reads bytes as a history: nothing panics, no rule of writing is broken, and an agent that is told the end of it at
/// once comes to the same tables.
pub fn events(bytes: &[u8]) {
    let Ok(history) = History::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let capacity = Capacity {
        frontends: 1_024,
        services: 256,
        backends: 16 + 16 * u32::from(history.backends),
        source_ranges: 64,
        maglev: 1 << 17,
        node_addresses: 8,
    };
    let mut agent = Agent::new(capacity, history.failing_percent % 50, history.seed);
    let mut cluster = Cluster::default();
    agent.tell(cluster.lists());
    for event in history.events.iter().take(MOST_EVENTS) {
        cluster.take_in(event, &mut agent);
    }
    let mut fresh = Agent::new(capacity, 0, 0);
    fresh.tell(cluster.lists());
    let all_fit = [agent.converge(), fresh.converge()] == [true, true];
    if all_fit {
        assert_eq!(agent.dump(), fresh.dump());
    }
}

/// The objects that there are.
#[derive(Default)]
struct Cluster {
    objects: BTreeMap<(Kind, ObjectName), Object>,
    interfaces: u8,
}

impl Cluster {
    fn take_in(&mut self, event: &Event, agent: &mut Agent) {
        let change = match event {
            Event::Service(name, service) => {
                let (name, object) = (service_name(*name), service.object(*name));
                self.put(Kind::Service, name, convert::service(&object).0.map(Object::Service))
            }
            Event::Slice(name, slice) => {
                let (name, object) = (slice_name(*name), slice.object(*name));
                let converted = if slice.headless { None } else { convert::endpoint_slice(&object).0 };
                self.put(Kind::EndpointSlice, name, converted.map(Object::EndpointSlice))
            }
            Event::Endpoints(name, addresses) => {
                let converted = convert::endpoints(&endpoints_object(*name, addresses)).0;
                let object = converted.map(|(name, slices)| Object::Endpoints(name, slices));
                self.put(Kind::Endpoints, service_name(*name), object)
            }
            Event::Node { zone, addresses } => {
                let object = convert::node(&node_object(*zone, *addresses)).0.map(Object::Node);
                self.put(Kind::Node, ObjectName::new("", NODE), object)
            }
            Event::DeleteService(name) => self.put(Kind::Service, service_name(*name), None),
            Event::DeleteSlice(name) => self.put(Kind::EndpointSlice, slice_name(*name), None),
            Event::DeleteNode => self.put(Kind::Node, ObjectName::new("", NODE), None),
            Event::Relist(kind) => {
                let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
                // Every other object is gone.
                let mut keep = false;
                self.objects.retain(|(other, _), _| {
                    keep = !keep;
                    *other != kind || keep
                });
                self.list(kind)
            }
            Event::Interfaces(bits) => {
                self.interfaces = *bits;
                self.interfaces_change()
            }
            Event::Sync => {
                agent.pipeline.sync(&mut agent.store);
                return;
            }
            Event::Reclaim => {
                // One that fails is as good as none.
                drop(agent.pipeline.reclaim(&mut agent.store));
                return;
            }
            Event::Die(writes) => return agent.die(usize::from(*writes), self.lists()),
        };
        agent.tell([change]);
    }

    fn put(&mut self, kind: Kind, name: ObjectName, object: Option<Object>) -> Change {
        if let Some(object) = object {
            self.objects.insert((kind, name), object.clone());
            Change::Apply(object)
        } else {
            self.objects.remove(&(kind, name.clone()));
            Change::Delete(kind, name)
        }
    }

    fn list(&self, kind: Kind) -> Change {
        let of_kind = self.objects.iter().filter(|((other, _), _)| *other == kind);
        Change::Reset(kind, of_kind.map(|(_, object)| object.clone()).collect())
    }

    fn lists(&self) -> Vec<Change> {
        Kind::ALL.map(|kind| self.list(kind)).into_iter().chain([self.interfaces_change()]).collect()
    }

    fn interfaces_change(&self) -> Change {
        let addresses = chosen(&["127.0.0.1", "172.18.0.2", "fd00:18::2", "::1"], self.interfaces);
        Change::Interfaces(addresses.iter().filter_map(|ip| ip.parse().ok()).collect())
    }
}

impl Service {
    fn object(&self, name: u8) -> v1::Service {
        let cluster_ips =
            chosen(&["10.96.0.1", "010.96.0.2", "fd00:96::1", "None", "10.96.0.3", "bad"], self.cluster_ips);
        let ingress =
            |ip: String| v1::LoadBalancerIngress { ip: Some(ip), ..v1::LoadBalancerIngress::default() };
        let ingress =
            chosen(&["198.51.100.1", "192.0.2.1", "fd00:51::1"], self.ingress).into_iter().map(ingress);
        let policy = |local: bool| local.then(|| "Local".to_owned());
        v1::Service {
            metadata: ObjectMeta {
                labels: self
                    .other_proxy
                    .then(|| [("service.kubernetes.io/service-proxy-name".to_owned(), String::new())].into()),
                creation_timestamp: self.created.map(|late| {
                    let second = i64::from(late);
                    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                        k8s_openapi::jiff::Timestamp::from_second(second).unwrap_or_default(),
                    )
                }),
                ..metadata(&service_name(name))
            },
            spec: Some(v1::ServiceSpec {
                type_: Some(word(&["LoadBalancer", "NodePort", "ClusterIP", "ExternalName", "?"], self.kind)),
                cluster_ip: cluster_ips.first().cloned(),
                cluster_ips: Some(cluster_ips),
                external_ips: Some(chosen(
                    &["192.0.2.1", "192.0.2.2", "10.96.0.1", "0.0.0.0"],
                    self.external_ips,
                )),
                ports: Some(self.ports.iter().map(Port::of_service).collect()),
                session_affinity: self.affinity.map(|_| "ClientIP".to_owned()),
                session_affinity_config: Some(v1::SessionAffinityConfig {
                    client_ip: Some(v1::ClientIPConfig { timeout_seconds: self.affinity }),
                }),
                internal_traffic_policy: policy(self.internal_local),
                external_traffic_policy: policy(self.external_local),
                ..v1::ServiceSpec::default()
            }),
            status: Some(v1::ServiceStatus {
                load_balancer: Some(v1::LoadBalancerStatus { ingress: Some(ingress.collect()) }),
                ..v1::ServiceStatus::default()
            }),
        }
    }
}

impl Port {
    fn name(&self) -> String {
        word(&["http", "dns", ""], self.name)
    }

    fn protocol(&self) -> String {
        word(&["TCP", "UDP", "TCP", "SCTP", "?"], self.protocol)
    }

    fn of_service(&self) -> v1::ServicePort {
        v1::ServicePort {
            name: Some(self.name()),
            protocol: Some(self.protocol()),
            port: self.number.value(),
            node_port: self.node.as_ref().map(Number::value),
            ..v1::ServicePort::default()
        }
    }

    fn of_slice(&self) -> discovery::EndpointPort {
        discovery::EndpointPort {
            name: Some(self.name()),
            protocol: Some(self.protocol()),
            port: Some(self.number.value()),
            ..discovery::EndpointPort::default()
        }
    }
}

impl Number {
    fn value(&self) -> i32 {
        match self {
            Self::Few(first) => 80 + i32::from(*first),
            Self::Low(number) => i32::from(*number),
            Self::Any(number) => *number,
        }
    }
}

impl Slice {
    fn object(&self, name: u8) -> discovery::EndpointSlice {
        let service = word(&["a", "b", "c", "d"], self.service);
        let address_type = word(&["IPv4", "IPv4", "IPv6", "FQDN", "?"], self.address_type);
        discovery::EndpointSlice {
            metadata: ObjectMeta {
                labels: Some([("kubernetes.io/service-name".to_owned(), service)].into()),
                ..metadata(&slice_name(name))
            },
            endpoints: Some(
                self.endpoints.iter().map(|endpoint| endpoint.object(address_type == "IPv6")).collect(),
            ),
            address_type,
            ports: Some(self.ports.iter().map(Port::of_slice).collect()),
        }
    }
}

impl Endpoint {
    fn object(&self, six: bool) -> discovery::Endpoint {
        let zone = |name| discovery::ForZone { name };
        let node = |name| discovery::ForNode { name };
        discovery::Endpoint {
            addresses: vec![self.address(six)],
            conditions: Some(discovery::EndpointConditions {
                ready: self.ready,
                serving: self.serving,
                terminating: self.terminating,
            }),
            node_name: Some(self.node_name()),
            hints: Some(discovery::EndpointHints {
                for_zones: Some(chosen(&["zone-a", "zone-b"], self.zones).into_iter().map(zone).collect()),
                for_nodes: Some(chosen(&[NODE, "node-2"], self.nodes).into_iter().map(node).collect()),
            }),
            ..discovery::Endpoint::default()
        }
    }

    fn address(&self, six: bool) -> String {
        if six { format!("fd00::{:x}", self.host % 32) } else { format!("10.0.0.{}", self.host % 32) }
    }

    fn node_name(&self) -> String {
        word(&[NODE, "node-2", ""], self.node)
    }
}

fn endpoints_object(name: u8, endpoints: &[Endpoint]) -> v1::Endpoints {
    let address = |endpoint: &Endpoint| v1::EndpointAddress {
        ip: endpoint.address(endpoint.zones % 2 == 1),
        node_name: Some(endpoint.node_name()),
        ..v1::EndpointAddress::default()
    };
    let (ready, not_ready): (Vec<_>, Vec<_>) =
        endpoints.iter().partition(|endpoint| endpoint.ready.unwrap_or(true));
    let port = v1::EndpointPort { name: Some("http".to_owned()), port: 8080, ..v1::EndpointPort::default() };
    v1::Endpoints {
        metadata: metadata(&service_name(name)),
        subsets: Some(vec![v1::EndpointSubset {
            addresses: Some(ready.into_iter().map(address).collect()),
            not_ready_addresses: Some(not_ready.into_iter().map(address).collect()),
            ports: Some(vec![port]),
        }]),
    }
}

fn node_object(zone: u8, addresses: u8) -> v1::Node {
    let address = |address| v1::NodeAddress { type_: "InternalIP".to_owned(), address };
    let addresses = chosen(&["172.18.0.2", "172.18.0.3", "fd00:18::2", "bad"], addresses);
    v1::Node {
        metadata: ObjectMeta {
            name: Some(NODE.to_owned()),
            labels: Some(
                [("topology.kubernetes.io/zone".to_owned(), word(&["zone-a", "zone-b", ""], zone))].into(),
            ),
            ..ObjectMeta::default()
        },
        status: Some(v1::NodeStatus {
            addresses: Some(addresses.into_iter().map(address).collect()),
            ..v1::NodeStatus::default()
        }),
        ..v1::Node::default()
    }
}

fn metadata(name: &ObjectName) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        ..ObjectMeta::default()
    }
}

fn service_name(number: u8) -> ObjectName {
    ObjectName::new("default", word(&["a", "b", "c", "d"], number))
}

fn slice_name(number: u8) -> ObjectName {
    ObjectName::new("default", word(&["s1", "s2", "s3", "s4", "s5"], number))
}

fn word(words: &[&str], number: u8) -> String {
    words[usize::from(number) % words.len()].to_owned()
}

/// Those words whose bit is set.
fn chosen(words: &[&str], bits: u8) -> Vec<String> {
    let chosen = words.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
    chosen.map(|(_, word)| (*word).to_owned()).collect()
}
