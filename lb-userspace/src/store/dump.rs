//! The tables as sorted text: one line for each frontend and each address of the node.
//!
//! ```text
//! 10.96.0.1:80/TCP ClusterIP default/web:http → cluster [10.0.0.1:8080* 10.0.0.2:8080] local [10.0.0.1:8080*] any-endpoints
//! 192.0.2.1:80/TCP LoadBalancer default/web:http → cluster [10.0.0.1:8080*] local [] any-endpoints sources [203.0.113.0/24]
//! 10.96.0.9 OtherProxy
//! service network 10.96.0.0/16
//! node address 127.0.0.1 node-ports host-only
//! ```
//!
//! No record, slot or id shows: two states that mean the same look the same. A star marks a backend on this node. What
//! leads nowhere is said instead of left out.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

use lb_common::{
    address::Protocol,
    backend::{Backend, flags as backend_flags},
    config::node_address,
    frontend::{FrontendEntry, FrontendKey, FrontendKind},
    service::{Range, ServiceRecord, Settings, flags},
};

use super::Tables;

/// The tables as text. `names` gives the service port of a record; where it has none, the service id stands.
pub fn dump(tables: &Tables, names: &BTreeMap<u32, String>) -> String {
    let mut text = String::new();
    for (key, entry) in &tables.frontends {
        let line = FrontendLine { tables, names, key, entry };
        // Writing to a String does not fail.
        let _ok = writeln!(text, "{line}");
    }
    for address in &tables.foreign {
        let _ok = writeln!(text, "{address} {}", FrontendKind::OtherProxy.name());
    }
    for network in &tables.service_cidrs {
        let _ok = writeln!(text, "service network {network}");
    }
    for (address, value) in &tables.node_addresses {
        let names = [(node_address::NODE_PORTS, " node-ports"), (node_address::HOST_ONLY, " host-only")];
        let words: String = names.iter().filter(|(bit, _)| value.flags & bit != 0).map(|(_, n)| *n).collect();
        let _ok = writeln!(text, "node address {address}{words}");
    }
    text
}

/// A frontend's key as text: `10.96.0.1:80/TCP`.
pub fn frontend_name(key: &FrontendKey) -> String {
    let address = key.socket_address();
    match Protocol::try_from(key.protocol_number()) {
        Ok(protocol) => format!("{address}/{protocol}"),
        Err(number) => format!("{address}/{number}"),
    }
}

struct FrontendLine<'a> {
    tables: &'a Tables,
    names: &'a BTreeMap<u32, String>,
    key: &'a FrontendKey,
    entry: &'a FrontendEntry,
}

impl fmt::Display for FrontendLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = FrontendKind::try_from(self.entry.kind).map_or("UnknownKind", FrontendKind::name);
        write!(f, "{} {kind} ", frontend_name(self.key))?;
        if self.entry.tag != self.key.tag() {
            return f.write_str("with the tag of another key");
        }
        let Some(record) = self.tables.services.get(&self.entry.record) else {
            return f.write_str("leads to a free record");
        };
        match self.names.get(&self.entry.record) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "service {}", record.service_id)?,
        }
        self.sets_and_settings(f, record)
    }
}

impl FrontendLine<'_> {
    fn sets_and_settings(&self, f: &mut fmt::Formatter<'_>, record: &ServiceRecord) -> fmt::Result {
        write!(f, " → cluster [{}] local [{}]", self.set(record.cluster), self.set(record.local))?;
        write!(f, "{}", settings_words(record.settings))?;
        let is_filtered = record.settings.flags & flags::SOURCE_RANGES != 0;
        if is_filtered && self.entry.kind == FrontendKind::LoadBalancer as u8 {
            let prefixes = self.tables.source_ranges.get(&self.entry.record);
            let words: Vec<_> = prefixes.into_iter().flatten().map(ToString::to_string).collect();
            write!(f, " sources [{}]", words.join(" "))?;
        }
        Ok(())
    }

    /// The backends of a range, sorted by address.
    fn set(&self, range: Range) -> String {
        let mut backends = Vec::new();
        for slot in range.slots() {
            match self.tables.backends.get(&slot) {
                Some(backend) => backends.push(*backend),
                None => return format!("slot {slot} is missing"),
            }
        }
        backends.sort_by_key(Backend::socket_address);
        let words: Vec<_> = backends.iter().map(backend_word).collect();
        words.join(" ")
    }
}

fn backend_word(backend: &Backend) -> String {
    let star = if backend.flags & backend_flags::LOCAL == 0 { "" } else { "*" };
    format!("{}{star}", backend.socket_address())
}

fn settings_words(settings: Settings) -> String {
    let names = [
        (flags::INTERNAL_LOCAL, " internal-local"),
        (flags::EXTERNAL_LOCAL, " external-local"),
        (flags::ANY_ENDPOINTS, " any-endpoints"),
        (flags::MAGLEV_OUTSIDE, " maglev-outside"),
        (flags::MAGLEV_SOCKETS, " maglev-sockets"),
    ];
    let mut words: String =
        names.iter().filter(|(bit, _)| settings.flags & bit != 0).map(|(_, n)| *n).collect();
    if settings.affinity_seconds != 0 {
        let _ok = write!(words, " affinity {} s", settings.affinity_seconds);
    }
    words
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{IpAddr, SocketAddr},
    };

    use expect_test::expect;
    use lb_common::{
        address::{Address, Port},
        config::NodeAddress,
        prefix::Prefix,
    };

    use super::*;

    fn key(ip: &str, port: u16, protocol: Protocol) -> FrontendKey {
        FrontendKey::new(Address::from(ip.parse::<IpAddr>().unwrap()), Port::new(port), protocol)
    }

    fn backend(address: &str, id: u32, flags: u16) -> Backend {
        let address: SocketAddr = address.parse().unwrap();
        Backend { address: address.ip().into(), port: Port::new(address.port()), flags, id }
    }

    #[test]
    fn shows_meaning_and_not_numbers() {
        let web = key("10.96.0.1", 80, Protocol::Tcp);
        let load_balancer = key("192.0.2.1", 80, Protocol::Tcp);
        let node_port = key("::", 30080, Protocol::Udp);
        let settings = Settings {
            flags: flags::INTERNAL_LOCAL
                | flags::EXTERNAL_LOCAL
                | flags::ANY_ENDPOINTS
                | flags::SOURCE_RANGES,
            affinity_seconds: 60,
        };
        let record =
            ServiceRecord::new(4, settings, Range { first: 8, count: 2 }, Range { first: 2, count: 1 });
        let tables = Tables {
            frontends: BTreeMap::from([
                (web, FrontendEntry::new(&web, FrontendKind::ClusterIp, 3)),
                (load_balancer, FrontendEntry::new(&load_balancer, FrontendKind::LoadBalancer, 3)),
                (node_port, FrontendEntry::new(&node_port, FrontendKind::NodePort, 5)),
            ]),
            services: BTreeMap::from([
                (3, record),
                (5, ServiceRecord::new(9, Settings::default(), Range::EMPTY, Range::EMPTY)),
            ]),
            backends: BTreeMap::from([
                (2, backend("10.0.0.1:8080", 2, backend_flags::LOCAL)),
                (8, backend("10.0.0.2:8080", 1, 0)),
                (9, backend("10.0.0.1:8080", 2, backend_flags::LOCAL)),
            ]),
            foreign: BTreeSet::from([Address::from_v4_bytes([10, 96, 0, 9])]),
            service_cidrs: vec![Prefix::of(IpAddr::from([10, 96, 0, 0]), 16)],
            maglev: BTreeMap::new(),
            source_ranges: BTreeMap::from([(
                3,
                BTreeSet::from([
                    Prefix::of(IpAddr::from([203, 0, 113, 0]), 24),
                    Prefix::of(IpAddr::from([10, 0, 0, 0]), 8),
                ]),
            )]),
            node_addresses: BTreeMap::from([(
                Address::from_v4_bytes([127, 0, 0, 1]),
                NodeAddress { flags: node_address::NODE_PORTS | node_address::HOST_ONLY },
            )]),
        };
        let names = BTreeMap::from([(3, "default/web:http".to_owned())]);
        expect![[r"
            [::]:30080/UDP NodePort service 9 → cluster [] local []
            10.96.0.1:80/TCP ClusterIP default/web:http → cluster [10.0.0.1:8080* 10.0.0.2:8080] local [10.0.0.1:8080*] internal-local external-local any-endpoints affinity 60 s
            192.0.2.1:80/TCP LoadBalancer default/web:http → cluster [10.0.0.1:8080* 10.0.0.2:8080] local [10.0.0.1:8080*] internal-local external-local any-endpoints affinity 60 s sources [10.0.0.0/8 203.0.113.0/24]
            10.96.0.9 OtherProxy
            service network 10.96.0.0/16
            node address 127.0.0.1 node-ports host-only
        "]]
        .assert_eq(&dump(&tables, &names));
    }

    #[test]
    fn says_what_leads_nowhere() {
        let frontend = key("10.96.0.1", 80, Protocol::Tcp);
        let other = key("10.96.0.2", 80, Protocol::Tcp);
        let dangling = key("10.96.0.3", 80, Protocol::Tcp);
        let record = ServiceRecord::new(4, Settings::default(), Range { first: 8, count: 2 }, Range::EMPTY);
        let tables = Tables {
            frontends: BTreeMap::from([
                (frontend, FrontendEntry::new(&frontend, FrontendKind::ClusterIp, 3)),
                (other, FrontendEntry::new(&frontend, FrontendKind::ClusterIp, 3)),
                (dangling, FrontendEntry::new(&dangling, FrontendKind::ClusterIp, 7)),
            ]),
            services: BTreeMap::from([(3, record)]),
            ..Tables::default()
        };
        expect![[r"
            10.96.0.1:80/TCP ClusterIP service 4 → cluster [slot 8 is missing] local []
            10.96.0.2:80/TCP ClusterIP with the tag of another key
            10.96.0.3:80/TCP ClusterIP leads to a free record
        "]]
        .assert_eq(&dump(&tables, &BTreeMap::new()));
    }
}
