//! What the tables must mean for a world: resolved anew, without ids, slots or records.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::IpAddr,
};

use lb_common::{
    address::{Address, SocketAddress},
    config::node_address,
    frontend::{FrontendKey, FrontendKind},
    service::{Set, Settings, flags},
    source::SourcePrefix,
};
use lb_userspace::{
    resolve::{self, Context, node_addresses::NodePortAddresses},
    store::{Tables, dump::frontend_name},
};

use crate::world::{NODE, World};

/// What one frontend must lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) port: String,
    pub(crate) kind: FrontendKind,
    pub(crate) settings: Settings,
    pub(crate) sources: BTreeSet<SourcePrefix>,
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
        let is_in = |range: &SourcePrefix| SourcePrefix::new(address, range.bits()) == *range;
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
    let zone = world.node().and_then(|node| node.zone.clone());
    let context = Context { node_name: NODE.into(), zone, external_ips: true };
    // The senior first: whoever comes later gets what is left.
    let mut services: Vec<_> = world.services().collect();
    services.sort_by_key(|service| (service.created.is_none(), service.created, service.name.clone()));
    let mut meanings = Meanings::new();
    for service in services {
        let slices = world.endpoint_slices(&service.name);
        for port in resolve::resolve(service, &slices, &context).ports {
            let set = |verdict: fn(&resolve::ResolvedEndpoint<'_>) -> resolve::Verdict| {
                let used = port.endpoints.iter().filter(|endpoint| verdict(endpoint).is_used());
                used.map(|endpoint| (endpoint.address, endpoint.local)).collect::<BTreeSet<_>>()
            };
            let (cluster, local) = (set(|e| e.cluster), set(|e| e.local_set));
            for (key, kind) in &port.spec.frontends {
                meanings.entry(*key).or_insert_with(|| Meaning {
                    port: format!("{}:{}", service.name, port.spec.name),
                    kind: *kind,
                    settings: port.settings,
                    sources: port.source_ranges.iter().copied().collect(),
                    cluster: cluster.clone(),
                    local: local.clone(),
                });
            }
        }
    }
    meanings
}

/// The dump of tables that mean this.
pub(crate) fn dump(world: &World) -> String {
    let mut text = frontends_dump(&meanings(world));
    let addresses =
        resolve::node_addresses::resolve(&NodePortAddresses::default(), world.node(), &world.interfaces);
    for (address, value) in addresses {
        let host_only = if value.flags & node_address::HOST_ONLY == 0 { "" } else { " host-only" };
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
