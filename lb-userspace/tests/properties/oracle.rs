//! The model in the form of tables: what each frontend must lead to, and the dump of tables that mean this.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    address::{Address, Port, SocketAddress},
    frontend::{FrontendKey, FrontendKind},
    prefix::Prefix,
    service::{Set, Settings, flags},
};
use lb_userspace::store::{Tables, dump::frontend_name};

use crate::{
    model::{self, Kind, Model, ServicePort},
    world::World,
};

/// What one frontend must lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) port: String,
    pub(crate) kind: FrontendKind,
    pub(crate) settings: Settings,
    pub(crate) sources: BTreeSet<Prefix>,
    pub(crate) cluster: BTreeSet<(SocketAddress, bool)>,
    pub(crate) local: BTreeSet<(SocketAddress, bool)>,
}

pub(crate) type Meanings = BTreeMap<FrontendKey, Meaning>;

impl Meaning {
    pub(crate) fn set(&self, set: Set) -> &BTreeSet<(SocketAddress, bool)> {
        match set {
            Set::Cluster => &self.cluster,
            Set::Local => &self.local,
        }
    }

    /// Whether the frontend admits a client.
    pub(crate) fn admits(&self, client: IpAddr) -> bool {
        let address = Address::from(client);
        let is_in = |range: &Prefix| Prefix::new(address, range.bits()) == *range;
        self.kind != FrontendKind::LoadBalancer
            || self.settings.flags & flags::SOURCE_RANGES == 0
            || self.sources.iter().any(is_in)
    }

    /// Whether clients are refused; `outside`: clients of other machines.
    pub(crate) fn refuses(&self, outside: bool) -> bool {
        self.set(applicable_set(self.kind, self.settings, outside)).is_empty()
    }
}

/// Which set a client gets.
pub(crate) fn applicable_set(kind: FrontendKind, settings: Settings, outside: bool) -> Set {
    let local = match kind {
        FrontendKind::ClusterIp => settings.flags & flags::INTERNAL_LOCAL != 0,
        _ => outside && settings.flags & flags::EXTERNAL_LOCAL != 0,
    };
    if local { Set::Local } else { Set::Cluster }
}

pub(crate) fn meanings(world: &World) -> Meanings {
    let model = Model::of(world);
    let meaning = |((ip, port, protocol), (service_port, kind)): (&_, &(usize, Kind))| {
        let key = FrontendKey::new(Address::from(*ip), Port::new(*port), *protocol);
        (key, meaning(&model.ports[*service_port], *kind))
    };
    model.places.iter().map(meaning).collect()
}

fn meaning(port: &ServicePort, kind: Kind) -> Meaning {
    let set = |set: &BTreeMap<SocketAddr, bool>| {
        let pair = |(address, local): (&SocketAddr, &bool)| {
            (SocketAddress::new(address.ip().into(), Port::new(address.port())), *local)
        };
        set.iter().map(pair).collect()
    };
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    Meaning {
        port: port.name.clone(),
        kind: match kind {
            Kind::ClusterIp => FrontendKind::ClusterIp,
            Kind::NodePort => FrontendKind::NodePort,
            Kind::LoadBalancer => FrontendKind::LoadBalancer,
            Kind::ExternalIp => FrontendKind::ExternalIp,
        },
        settings: Settings {
            flags: flag(port.internal_local, flags::INTERNAL_LOCAL)
                | flag(port.external_local, flags::EXTERNAL_LOCAL)
                | flag(!port.sources.is_empty(), flags::SOURCE_RANGES)
                | flag(port.any, flags::ANY_ENDPOINTS)
                | flag(port.maglev && !port.external_local, flags::MAGLEV_OUTSIDE)
                | flag(port.maglev, flags::MAGLEV_SOCKETS),
            affinity_seconds: port.affinity,
        },
        sources: port.sources.iter().map(|range| Prefix::of(range.addr(), range.prefix_len())).collect(),
        cluster: set(&port.cluster),
        local: set(&port.local),
    }
}

/// The dump of tables that mean this.
pub(crate) fn dump(world: &World) -> String {
    let mut text = frontends_dump(&meanings(world));
    let foreign: BTreeSet<_> = model::foreign_addresses(world).into_iter().map(Address::from).collect();
    for address in foreign {
        writeln!(text, "{address} OtherProxy").unwrap();
    }
    let mut addresses: Vec<_> = Model::of(world)
        .node_addresses
        .into_iter()
        .map(|(ip, host_only)| (Address::from(ip), host_only))
        .collect();
    addresses.sort_unstable();
    for (address, host_only) in addresses {
        let host_only = if host_only { " host-only" } else { "" };
        writeln!(text, "node address {address} node-ports{host_only}").unwrap();
    }
    text
}

/// The lines of these frontends.
pub(crate) fn frontends_dump(meanings: &Meanings) -> String {
    let mut text = String::new();
    for (key, meaning) in meanings {
        let word =
            |(address, local): &(SocketAddress, bool)| format!("{address}{}", if *local { "*" } else { "" });
        let set = |set: &BTreeSet<_>| set.iter().map(word).collect::<Vec<_>>().join(" ");
        let Meaning { port, kind, settings, sources, cluster, local } = meaning;
        let name = frontend_name(key);
        write!(text, "{name} {} {port} → cluster [{}] local [{}]", kind.name(), set(cluster), set(local))
            .unwrap();
        for (flag, word) in [
            (flags::INTERNAL_LOCAL, " internal-local"),
            (flags::EXTERNAL_LOCAL, " external-local"),
            (flags::ANY_ENDPOINTS, " any-endpoints"),
            (flags::MAGLEV_OUTSIDE, " maglev-outside"),
            (flags::MAGLEV_SOCKETS, " maglev-sockets"),
        ] {
            if settings.flags & flag != 0 {
                text += word;
            }
        }
        if settings.affinity_seconds != 0 {
            write!(text, " affinity {} s", settings.affinity_seconds).unwrap();
        }
        if *kind == FrontendKind::LoadBalancer && !sources.is_empty() {
            let words: Vec<_> = sources.iter().map(ToString::to_string).collect();
            write!(text, " sources [{}]", words.join(" ")).unwrap();
        }
        text += "\n";
    }
    text
}

/// What each frontend of these tables leads to; the port's name is unknown.
pub(crate) fn read(tables: &Tables) -> Result<Meanings, String> {
    let mut meanings = Meanings::new();
    for (key, entry) in &tables.frontends {
        let record = tables.services.get(&entry.record).ok_or(format!("{key:?} leads to a free record"))?;
        let set = |set: Set| {
            let backends = record.range(set).slots().map(|slot| tables.backends.get(&slot));
            let pairs = backends.map(|b| b.map(|b| (b.socket_address(), b.flags != 0)));
            pairs.collect::<Option<BTreeSet<_>>>().ok_or(format!("{key:?} leads to a free slot"))
        };
        let meaning = Meaning {
            port: String::new(),
            kind: FrontendKind::try_from(entry.kind).map_err(|kind| format!("{key:?} has kind {kind}"))?,
            settings: record.settings,
            sources: tables.source_ranges.get(&entry.record).cloned().unwrap_or_default(),
            cluster: set(Set::Cluster)?,
            local: set(Set::Local)?,
        };
        meanings.insert(*key, meaning);
    }
    Ok(meanings)
}
