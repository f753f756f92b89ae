//! Manifests: text → objects and problems. Pure.
//!
//! A manifest holds documents of YAML or JSON, each an object or a list of objects. Sockeye reads Service, `EndpointSlice`,
//! Endpoints, `ServiceCIDR` and its own Node, applies the filters of the watch in a cluster, and does what an API server does on
//! admission: defaults, cluster addresses, node ports. Documents are read one by one, so that one which cannot be read
//! costs no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use k8s_openapi::api::{core::v1, discovery::v1 as discovery, networking::v1 as networking};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::{RenderOptions, SnippetMode, UserMessageFormatter};

use super::{
    allocate::{Pools, Wish, allocate},
    convert,
    decode::decode,
    origin,
};
use crate::model::{Family, Kind, Object, ObjectName, Problem, Service, ServiceType};

/// All objects of a text, with addresses allocated from the default pools, and what is wrong with them. `file` names the
/// text in problems, and says by its ending whether it is JSON (`.json`) or YAML; of Nodes, only `node_name` is kept.
pub fn objects_from_yaml(text: &str, file: &str, node_name: &str) -> (Vec<Object>, Vec<Problem>) {
    let manifest = parse(text, file, node_name);
    let mut assembly = Assembly::default();
    assembly.add(file, &manifest);
    let (objects, mut problems) = assembly.finish(&Pools::default());
    problems.extend(manifest.unreadable);
    (objects.into_values().collect(), problems)
}

/// What a text holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Its objects, in the order of the text.
    pub(super) entries: Vec<Entry>,
    /// What is wrong with its objects.
    pub(super) problems: Vec<Problem>,
    /// What could not be read as objects: each names the file, the document and the line.
    pub(super) unreadable: Vec<Problem>,
}

impl Manifest {
    /// Of a file that cannot be read at all.
    pub(super) fn unreadable(file: &str, what: &str) -> Self {
        let problem = Problem { object: file.to_owned(), field: String::new(), what: what.to_owned() };
        Self { unreadable: vec![problem], ..Self::default() }
    }

    /// If something of the text could not be read: what an earlier version of it held and this one does not name stays,
    /// because it may stand where nothing could be read.
    pub(super) fn or_else(mut self, before: Option<&Self>) -> Self {
        let Some(before) = before.filter(|_| !self.unreadable.is_empty()) else { return self };
        let named: BTreeSet<Key> = self.entries.iter().map(Entry::key).collect();
        let kept: Vec<Entry> =
            before.entries.iter().filter(|entry| !named.contains(&entry.key())).cloned().collect();
        if !kept.is_empty() {
            for problem in &mut self.unreadable {
                problem.what += "; what this file gave before and does not name now stays";
            }
        }
        let origins: BTreeSet<String> = kept.iter().map(Entry::origin).collect();
        self.problems
            .extend(before.problems.iter().filter(|problem| origins.contains(&problem.object)).cloned());
        self.entries.extend(kept);
        self
    }
}

/// An object of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The object.
    pub(super) object: Object,
    /// What it asks for beyond what it states.
    wish: Wish,
    /// The document that it stands in, from 1.
    document: usize,
}

impl Entry {
    fn key(&self) -> Key {
        (self.object.kind(), self.object.name())
    }

    fn origin(&self) -> String {
        let (kind, name) = self.key();
        origin(kind, &name)
    }
}

/// The kind and name of an object: what is unique in a cluster.
pub(super) type Key = (Kind, ObjectName);

/// The objects of several manifests, put together.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    objects: BTreeMap<Key, (Entry, String)>,
    problems: Vec<Problem>,
}

impl Assembly {
    /// Adds the objects of a file. What an earlier file or document has given already stays.
    pub(super) fn add(&mut self, file: &str, manifest: &Manifest) {
        self.problems.extend(manifest.problems.iter().cloned());
        for entry in &manifest.entries {
            self.add_entry(file, entry);
        }
    }

    fn add_entry(&mut self, file: &str, entry: &Entry) {
        let key = entry.key();
        if let Some((first, first_file)) = self.objects.get(&key) {
            self.problems.push(Problem {
                object: entry.origin(),
                field: String::new(),
                what: format!(
                    "given in {first_file} (document {}) and again in {file} (document {}); the first one counts",
                    first.document, entry.document
                ),
            });
        } else {
            self.objects.insert(key, (entry.clone(), file.to_owned()));
        }
    }

    /// Hands out what the Services wish for.
    pub(super) fn finish(self, pools: &Pools) -> (BTreeMap<Key, Object>, Vec<Problem>) {
        let Self { objects, mut problems } = self;
        let (mut services, mut others) = (BTreeMap::new(), BTreeMap::new());
        for (key, (entry, _)) in objects {
            match entry.object {
                Object::Service(service) => {
                    services.insert(key.1, (service, entry.wish));
                }
                other => {
                    others.insert(key, other);
                }
            }
        }
        problems.extend(allocate(&mut services, pools));
        others.extend(
            services
                .into_iter()
                .map(|(name, (service, _))| ((Kind::Service, name), Object::Service(service))),
        );
        (others, problems)
    }
}

/// Reads a text.
pub(super) fn parse(text: &str, file: &str, node_name: &str) -> Manifest {
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = Reader { file, node_name, document: 0, manifest: Manifest::default() };
    if Path::new(file).extension().is_some_and(|extension| extension == "json") {
        reader.read_json(text);
    } else {
        reader.read_yaml(text);
    }
    reader.manifest
}

/// What became of an object.
enum Read {
    /// A watch in a cluster would not show it.
    Filtered,
    /// It is served, as far as it can be.
    Object(Box<(Object, Wish)>, Vec<Problem>),
    /// Nothing of it can be served.
    Nothing(Vec<Problem>),
}

impl Read {
    fn new((object, problems): (Option<Object>, Vec<Problem>)) -> Self {
        match object {
            Some(object) => Self::Object(Box::new((object, Wish::default())), problems),
            None => Self::Nothing(problems),
        }
    }
}

struct Reader<'a> {
    file: &'a str,
    node_name: &'a str,
    document: usize,
    manifest: Manifest,
}

impl Reader<'_> {
    fn read_json(&mut self, text: &str) {
        for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
            self.document += 1;
            match value {
                Ok(value) => self.read_value(value, None),
                Err(error) => self.unreadable(Some(error.line()), &error.to_string()),
            }
        }
    }

    fn read_yaml(&mut self, text: &str) {
        for (first_line, document) in documents(text) {
            self.document += 1;
            match serde_saphyr::from_str_with_options::<Value>(document, yaml_options(document)) {
                Ok(Value::Null) => {}
                Ok(value) => self.read_value(value, None),
                Err(error) => {
                    let lines_before = first_line - 1;
                    let line = error.location().and_then(|location| usize::try_from(location.line()).ok());
                    let mut rendering = RenderOptions::new(&UserMessageFormatter);
                    rendering.snippets = SnippetMode::Off;
                    rendering.line_offset = lines_before as u64;
                    let what = error.render_with_options(rendering);
                    self.unreadable(line.map(|line| lines_before + line), &what);
                }
            }
        }
    }

    fn unreadable(&mut self, line: Option<usize>, what: &str) {
        let document = format!("document {}", self.document);
        self.manifest.unreadable.push(Problem {
            object: self.file.to_owned(),
            field: line.map_or(document.clone(), |line| format!("{document}, line {line}")),
            what: what.lines().next().unwrap_or_default().to_owned(),
        });
    }

    /// Reads an object, or a list of objects; a list of one kind (`ServiceList`) says what its items are.
    fn read_value(&mut self, mut value: Value, item_type: Option<(&str, &str)>) {
        let stated = |key| text(&value, key).filter(|text| !text.is_empty());
        let stated = stated("apiVersion").zip(stated("kind"));
        let Some((api_version, kind)) =
            stated.or(item_type.map(|(version, kind)| (version.into(), kind.into())))
        else {
            return self.unreadable(None, "no apiVersion or no kind; it is ignored");
        };
        let items = kind.strip_suffix("List").zip(value.get_mut("items").map(Value::take));
        match items {
            Some((item_kind, Value::Array(items))) => {
                let item_type = (!item_kind.is_empty()).then_some((&*api_version, item_kind));
                for item in items {
                    self.read_value(item, item_type);
                }
            }
            _ => self.read_object(&api_version, &kind, value),
        }
    }

    fn read_object(&mut self, api_version: &str, kind: &str, value: Value) {
        let read = match (api_version, kind) {
            ("v1", "Service") => typed(Kind::Service, value, read_service),
            ("discovery.k8s.io/v1", "EndpointSlice") => typed(Kind::EndpointSlice, value, read_slice),
            ("v1", "Endpoints") => typed(Kind::Endpoints, value, |endpoints| {
                let (converted, problems) = convert::endpoints(endpoints);
                Read::new((converted.map(|(name, slices)| Object::Endpoints(name, slices)), problems))
            }),
            ("v1", "Node") => typed(Kind::Node, value, |node| read_node(node, self.node_name)),
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                typed(Kind::ServiceCidr, value, |object: &networking::ServiceCIDR| {
                    let (converted, problems) = convert::service_cidr(object);
                    Read::new((converted.map(Object::ServiceCidr), problems))
                })
            }
            _ => Read::Nothing(vec![unknown_kind(api_version, kind, &value)]),
        };
        match read {
            Read::Filtered => {}
            Read::Nothing(problems) => self.manifest.problems.extend(problems),
            Read::Object(entry, problems) => {
                let (object, wish) = *entry;
                self.manifest.problems.extend(problems);
                self.manifest.entries.push(Entry { object, wish, document: self.document });
            }
        }
    }
}

/// Every text of a folder counts, so limits follow its size; what expands beyond (aliases) is still refused.
fn yaml_options(document: &str) -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    if let Some(budget) = &mut options.budget {
        budget.max_nodes = budget.max_nodes.max(document.len());
        budget.max_events = budget.max_events.max(2 * document.len());
        budget.max_total_scalar_bytes = budget.max_total_scalar_bytes.max(2 * document.len());
    }
    options
}

/// The documents of a YAML text, each with the number of its first line. They are split where kubectl splits them: at
/// lines that begin with `---`. What holds nothing but comments is no document; directives belong to the next one.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut position) = (0, 1, 0);
    let (mut has_content, mut has_directives) = (false, false);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if line.starts_with("---") {
            if has_content {
                documents.push((start_line, &text[start..position]));
            }
            if has_content || !has_directives {
                (start, start_line) = (position, i + 1);
            }
            (has_content, has_directives) = (false, false);
        }
        let content = line.strip_prefix("---").unwrap_or(line).trim();
        has_directives |= line.starts_with('%');
        has_content |= !(content.is_empty() || content == "..." || content.starts_with(['#', '%']));
        position += line.len();
    }
    if has_content {
        documents.push((start_line, &text[start..]));
    }
    documents
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// How an object that may be anything is called: `Deployment shop/web`.
fn describe(kind: &str, value: &Value) -> String {
    let field =
        |key| value.get("metadata").and_then(|metadata| text(metadata, key)).filter(|text| !text.is_empty());
    let Some(name) = field("name") else { return kind.to_owned() };
    let of_cluster = [Kind::Node, Kind::ServiceCidr].map(Kind::name).contains(&kind);
    let namespace = if of_cluster { None } else { Some(field("namespace")) };
    match namespace {
        None => format!("{kind} {name}"),
        Some(namespace) => format!("{kind} {}/{name}", namespace.as_deref().unwrap_or("default")),
    }
}

fn unknown_kind(api_version: &str, kind: &str, value: &Value) -> Problem {
    Problem {
        object: describe(kind, value),
        field: "kind".to_owned(),
        what: format!(
            "{api_version} {kind} is ignored; Sockeye reads v1 Service, Endpoints and Node, discovery.k8s.io/v1 EndpointSlice and networking.k8s.io/v1 ServiceCIDR"
        ),
    }
}

fn typed<K: DeserializeOwned>(kind: Kind, value: Value, read: impl FnOnce(&K) -> Read) -> Read {
    let name = describe(kind.name(), &value);
    let mut decoded = decode(value, &name);
    let Some(object) = decoded.object.take() else { return Read::Nothing(decoded.problems) };
    match read(&object) {
        Read::Filtered => Read::Filtered,
        Read::Object(entry, problems) => Read::Object(entry, decoded.problems_with(problems)),
        Read::Nothing(problems) => Read::Nothing(decoded.problems_with(problems)),
    }
}

fn read_node(node: &v1::Node, node_name: &str) -> Read {
    if node.metadata.name.as_deref() != Some(node_name) {
        return Read::Filtered;
    }
    let (node, problems) = convert::node(node);
    Read::new((node.map(Object::Node), problems))
}

fn read_slice(slice: &discovery::EndpointSlice) -> Read {
    if convert::is_headless(slice) || slice.address_type == "FQDN" {
        return Read::Filtered;
    }
    let (converted, mut problems) = convert::endpoint_slice(slice);
    if converted.is_none()
        && problems.is_empty()
        && let Some(name) = convert::namespaced(&slice.metadata)
    {
        problems.push(Problem {
            object: origin(Kind::EndpointSlice, &name),
            field: "metadata.labels".to_owned(),
            what: "no kubernetes.io/service-name; the slice belongs to no Service and is ignored".to_owned(),
        });
    }
    Read::new((converted.map(Object::EndpointSlice), problems))
}

fn read_service(service: &v1::Service) -> Read {
    let (converted, mut problems) = convert::service(service);
    match converted {
        Some(converted) if converted.headless => Read::Filtered,
        Some(mut converted) => {
            converted.ingress_ips.extend(requested_ingress(service, &converted, &mut problems));
            let wish = wish(service, &converted, &mut problems);
            Read::Object(Box::new((Object::Service(converted), wish)), problems)
        }
        None => Read::Nothing(problems),
    }
}

/// `spec.loadBalancerIP`: where nobody else answers the request, it is granted.
fn requested_ingress(
    service: &v1::Service,
    converted: &Service,
    problems: &mut Vec<Problem>,
) -> Option<IpAddr> {
    let requested = service.spec.as_ref()?.load_balancer_ip.as_ref().filter(|ip| !ip.is_empty())?;
    if converted.service_type != ServiceType::LoadBalancer {
        return None;
    }
    let ip = convert::parse_ip(requested).filter(convert::is_unicast);
    if ip.is_none() {
        problems.push(Problem {
            object: origin(Kind::Service, &converted.name),
            field: "spec.loadBalancerIP".to_owned(),
            what: format!("\"{requested}\" is not the IP address of one machine; it is skipped"),
        });
    }
    ip.filter(|ip| !converted.ingress_ips.contains(ip))
}

fn wish(service: &v1::Service, converted: &Service, problems: &mut Vec<Problem>) -> Wish {
    let absent = v1::ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&absent);
    Wish {
        families: families(spec, converted, problems),
        node_ports: match converted.service_type {
            ServiceType::NodePort => true,
            ServiceType::LoadBalancer => spec.allocate_load_balancer_node_ports != Some(false),
            ServiceType::ClusterIp | ServiceType::ExternalName => false,
        },
    }
}

/// The families in which a Service has a cluster address, in order. Who states an address that cannot be read gets no
/// other one.
fn families(spec: &v1::ServiceSpec, converted: &Service, problems: &mut Vec<Problem>) -> Vec<Family> {
    let stated = spec.cluster_ip.iter().chain(spec.cluster_ips.iter().flatten()).any(|ip| !ip.is_empty());
    if converted.service_type == ServiceType::ExternalName || (stated && converted.cluster_ips.is_empty()) {
        return Vec::new();
    }
    let mut families: Vec<Family> = converted.cluster_ips.iter().map(Family::of).collect();
    for (i, text) in spec.ip_families.iter().flatten().enumerate() {
        match text.as_str() {
            "IPv4" => families.push(Family::V4),
            "IPv6" => families.push(Family::V6),
            other => problems.push(Problem {
                object: origin(Kind::Service, &converted.name),
                field: format!("spec.ipFamilies[{i}]"),
                what: format!("\"{other}\" is not IPv4 or IPv6; it is skipped"),
            }),
        }
    }
    let dual = matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack"));
    if families.is_empty() {
        families.push(Family::V4);
    }
    if dual {
        families.extend([Family::V4, Family::V6]);
    }
    families
}

#[cfg(test)]
mod tests;
