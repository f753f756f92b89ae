//! From what is in the kernel to the documents: beside the agent, and without one.

use std::{collections::BTreeMap, net::SocketAddr};

use lb_common::{
    address::Protocol,
    backend,
    config::maps,
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    outcome,
    service::{ServiceRecord, Set, flags},
};

use super::{
    Attachment, EndpointStatus, FeatureStatus, FrontendStatus, KernelStatus, Membership, OutcomeCount,
    PortStatus, ServiceList, ServiceStatus, TableStatus,
};
use crate::{
    kernel::{self, Feature, Place},
    store::{Capacity, Tables},
};

/// The kernel and its features.
pub fn kernel(features: Vec<Feature>) -> KernelStatus {
    // uname(2) fails only for a bad pointer.
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let features = features.into_iter().map(|feature| {
        let Feature { name, purpose, since, required, found } = feature;
        FeatureStatus {
            name: name.to_owned(),
            found,
            required,
            since: since.to_owned(),
            meaning: purpose.to_owned(),
        }
    });
    KernelStatus { release: release.unwrap_or_default(), features: features.collect() }
}

/// The programs that are attached.
pub fn attachments(attachments: Vec<kernel::Attachment>) -> Vec<Attachment> {
    let attachments = attachments.into_iter().map(|attachment| {
        let kernel::Attachment { program, program_id, link_id, place } = attachment;
        let target = match place {
            Place::Cgroup { path: Some(path), .. } => format!("cgroup {}", path.display()),
            Place::Cgroup { path: None, id } => format!("cgroup {id} (removed, or not visible from here)"),
            Place::Tcx { device, ifindex: 0 } | Place::Xdp { device, ifindex: 0, .. } => {
                format!("device {device} (removed)")
            }
            Place::Tcx { device, .. } => format!("device {device}"),
            Place::Xdp { device, mode, .. } => format!("device {device} (XDP, {mode})"),
            Place::Clsact { device, .. } => format!("device {device} (clsact)"),
        };
        Attachment { program, program_id, link_id, target }
    });
    let mut attachments: Vec<_> = attachments.collect();
    attachments.sort_by(|a, b| (&a.target, &a.program).cmp(&(&b.target, &b.program)));
    attachments
}

/// The outcomes that happened; `counts` are by number.
pub fn outcomes(counts: &[u64]) -> Vec<OutcomeCount> {
    let happened = (0_u32..).zip(counts).filter(|(_, count)| **count > 0).map(|(number, count)| {
        let unknown = ("unknown", "counted by another version of Sockeye");
        let (name, meaning) = outcome::describe(number).unwrap_or(unknown);
        OutcomeCount { name: name.to_owned(), meaning: meaning.to_owned(), count: *count }
    });
    happened.collect()
}

/// How full the tables are.
pub fn tables(tables: &Tables, capacity: Capacity) -> Vec<TableStatus> {
    let table = |map: &str, used: usize, capacity: u32| TableStatus {
        map: map.to_owned(),
        used: used as u64,
        capacity: u64::from(capacity),
    };
    vec![
        table(maps::FRONTENDS, tables.frontends.len(), capacity.frontends),
        table(maps::SERVICES, tables.services.len(), capacity.services),
        table(maps::BACKENDS, tables.backends.len(), capacity.backends),
        table(maps::NODE_ADDRESSES, tables.node_addresses.len(), capacity.node_addresses),
    ]
}

/// The service ports that the tables hold: numbers and addresses, without names.
pub fn services(tables: &Tables) -> ServiceList {
    let mut by_record: BTreeMap<u32, Frontends<'_>> = BTreeMap::new();
    for (key, entry) in &tables.frontends {
        by_record.entry(entry.record).or_default().push((key, entry));
    }
    let services = tables.services.iter().map(|(index, record)| ServiceStatus {
        namespace: None,
        name: None,
        service_type: None,
        skipped: None,
        ports: vec![port(tables, *index, record, by_record.remove(index).unwrap_or_default())],
    });
    ServiceList { services: services.collect() }
}

type Frontends<'a> = Vec<(&'a FrontendKey, &'a FrontendEntry)>;

fn port(tables: &Tables, index: u32, record: &ServiceRecord, keys: Frontends<'_>) -> PortStatus {
    let endpoints = endpoints(tables, record);
    let protocol = keys.first().and_then(|(key, _)| Protocol::try_from(key.protocol_number()).ok());
    let first = keys.first().map(|(key, _)| key.socket_address());
    let is_v4 = first.map_or_else(
        || {
            endpoints
                .first()
                .is_some_and(|endpoint| endpoint.address.parse().is_ok_and(|a: SocketAddr| a.is_ipv4()))
        },
        |socket| socket.address.is_v4(),
    );
    let policy = |flag| if record.settings.flags & flag == 0 { "Cluster" } else { "Local" };
    PortStatus {
        name: String::new(),
        protocol: protocol.map_or("?", Protocol::name).to_owned(),
        family: if is_v4 { "IPv4" } else { "IPv6" }.to_owned(),
        service_id: Some(record.service_id),
        record: Some(index),
        internal_policy: policy(flags::INTERNAL_LOCAL).to_owned(),
        external_policy: policy(flags::EXTERNAL_LOCAL).to_owned(),
        affinity_seconds: record.settings.affinity_seconds,
        frontends: keys.into_iter().map(|(key, entry)| frontend(key, *entry)).collect(),
        endpoints,
    }
}

fn frontend(key: &FrontendKey, entry: FrontendEntry) -> FrontendStatus {
    FrontendStatus {
        address: key.socket_address().to_string(),
        kind: FrontendKind::try_from(entry.kind).map_or("?", FrontendKind::name).to_owned(),
        in_force: true,
        taken_by: None,
    }
}

/// The backends of both sets, by slot; one that is in both is listed once.
fn endpoints(tables: &Tables, record: &ServiceRecord) -> Vec<EndpointStatus> {
    let ids = |set| {
        let slots = record.range(set).slots();
        slots.filter_map(|slot| tables.backends.get(&slot)).collect::<Vec<_>>()
    };
    let (cluster, local) = (ids(Set::Cluster), ids(Set::Local));
    let member =
        |set: &[&backend::Backend], id| Membership { used: set.iter().any(|b| b.id == id), reason: None };
    let only_local = local.iter().filter(|backend| !cluster.iter().any(|other| other.id == backend.id));
    let endpoints = cluster.iter().chain(only_local).map(|backend| EndpointStatus {
        address: backend.socket_address().to_string(),
        backend_id: Some(backend.id),
        state: None,
        node: None,
        local: backend.flags & backend::flags::LOCAL != 0,
        source: None,
        cluster_set: member(&cluster, backend.id),
        local_set: member(&local, backend.id),
    });
    endpoints.collect()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use expect_test::expect;
    use lb_common::{
        address::{Port, Protocol},
        backend::Backend,
        frontend::FrontendKind,
        service::{Range, Settings},
    };

    use super::*;
    use crate::{output::Table as _, status::BackendList};

    fn sample() -> Tables {
        let key = |address: &str, protocol| {
            let address: SocketAddr = address.parse().unwrap();
            FrontendKey::new(address.ip().into(), Port::new(address.port()), protocol)
        };
        let backend = |address: &str, id, flags| {
            let ip: IpAddr = address.parse().unwrap();
            Backend { address: ip.into(), port: Port::new(8080), flags, id }
        };
        let settings = Settings { flags: flags::EXTERNAL_LOCAL, affinity_seconds: 60 };
        let range = |first, count| Range { first, count };
        let mut tables = Tables::default();
        for (address, protocol, kind, record) in [
            ("10.96.0.10:80", Protocol::Tcp, FrontendKind::ClusterIp, 3),
            ("0.0.0.0:30080", Protocol::Tcp, FrontendKind::NodePort, 3),
            ("[fd00::10]:53", Protocol::Udp, FrontendKind::ClusterIp, 4),
        ] {
            let key = key(address, protocol);
            tables.frontends.insert(key, FrontendEntry::new(&key, kind, record));
        }
        tables.services.insert(3, ServiceRecord::new(7, settings, range(0, 2), range(2, 1)));
        tables.services.insert(4, ServiceRecord::new(8, Settings::default(), Range::EMPTY, Range::EMPTY));
        tables.backends = [
            backend("10.1.0.1", 1, backend::flags::LOCAL),
            backend("10.1.0.2", 2, 0),
            backend("10.1.0.1", 1, backend::flags::LOCAL),
        ]
        .into_iter()
        .zip(0..)
        .map(|(backend, slot)| (slot, backend))
        .collect();
        tables
    }

    #[test]
    fn tables_tell_addresses_and_numbers_without_names() {
        let list = services(&sample());
        expect![[r#"
            SERVICE  PORT  KIND       PROTOCOL  FRONTEND       CLUSTER/LOCAL  ID  NOTE
            ?        -     NodePort   TCP       0.0.0.0:30080  2/1 of 2       7
            ?        -     ClusterIP  TCP       10.96.0.10:80  2/1 of 2       7
            ?        -     ClusterIP  UDP       [fd00::10]:53  0/0 of 0       8
        "#]]
        .assert_eq(&list.table());
        expect![[r#"
            BACKEND        PROTOCOL  ID  NODE  SERVICES
            10.1.0.1:8080  TCP       1   this  service 7
            10.1.0.2:8080  TCP       2   -     service 7
        "#]]
        .assert_eq(&BackendList::from(&list).table());
        let port = &list.services[0].ports[0];
        assert_eq!((port.internal_policy.as_str(), port.external_policy.as_str()), ("Cluster", "Local"));
        assert_eq!(port.affinity_seconds, 60);
    }

    #[test]
    fn only_outcomes_that_happened_are_told() {
        let mut counts = vec![0; 64];
        counts[19] = 3;
        counts[60] = 1;
        let told: Vec<_> =
            outcomes(&counts).into_iter().map(|outcome| (outcome.name, outcome.count)).collect();
        assert_eq!(told, [("no_backends".to_owned(), 3), ("unknown".to_owned(), 1)]);
    }
}
