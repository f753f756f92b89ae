//! Kubernetes objects → model objects, with what is wrong with them. Pure.
//!
//! Not a validator: what the API server refuses and Sockeye can serve regardless is served. Every part that cannot be
//! served is left out and named; the rest of the object goes on. Defaults are those of the API server, so that a file and
//! an object that went through the server mean the same.

mod address;
mod endpoints;
mod node;
mod service;
mod service_cidr;
mod slice;

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::address::Protocol;

pub use self::{
    address::{is_unicast, parse_ip, parse_net},
    endpoints::endpoints,
    node::node,
    service::service,
    service_cidr::service_cidr,
    slice::{endpoint_slice, is_headless},
};
use crate::{
    model::{Kind, ObjectName, Problem},
    source::origin,
};

/// The label of what belongs to a headless Service, whatever its value.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Problems listed for one object; an object with more says how many more.
const MAX_PROBLEMS: usize = 20;

/// The problems of one object, as they are found.
#[derive(Debug)]
struct Report {
    object: String,
    problems: Vec<Problem>,
    left_out: usize,
}

impl Report {
    fn new(kind: Kind, name: &ObjectName) -> Self {
        Self { object: origin(kind, name), problems: Vec::new(), left_out: 0 }
    }

    fn add(&mut self, field: impl Into<String>, what: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem {
                object: self.object.clone(),
                field: field.into(),
                what: what.into(),
            });
        } else {
            self.left_out += 1;
        }
    }

    /// An address, if it can be one of a service or an endpoint.
    fn address(&mut self, field: impl Into<String>, text: &str) -> Option<IpAddr> {
        match parse_ip(text) {
            None => self.add(field, format!("\"{text}\" is not an IP address; it is skipped")),
            Some(ip) if !is_unicast(&ip) => {
                self.add(field, format!("{ip} is not the address of one machine; it is skipped"));
            }
            Some(ip) => return Some(ip),
        }
        None
    }

    /// A port number in 1..=65535.
    fn port(&mut self, field: impl Into<String>, number: i32, what_follows: &str) -> Option<u16> {
        let port = u16::try_from(number).ok().filter(|port| *port != 0);
        if port.is_none() {
            self.add(field, format!("{number} is not a port (1-65535); {what_follows}"));
        }
        port
    }

    /// A protocol; absent means TCP.
    fn protocol(&mut self, field: impl Into<String>, text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(other) => {
                self.add(field, format!("\"{other}\" is not TCP, UDP or SCTP; this port is skipped"));
                None
            }
        }
    }

    fn finish(mut self) -> Vec<Problem> {
        if self.left_out > 0 {
            let what = format!("and {} more problems", self.left_out);
            self.problems.push(Problem { object: self.object, field: String::new(), what });
        }
        self.problems
    }
}

/// The name of a namespaced object; without a namespace it lives in `default`.
pub(super) fn namespaced(metadata: &ObjectMeta) -> Option<ObjectName> {
    let name = metadata.name.as_deref().filter(|name| !name.is_empty())?;
    let namespace = metadata.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    Some(ObjectName::new(namespace, name))
}

/// The only thing to say of an object without a name.
fn nameless(kind: Kind) -> Vec<Problem> {
    vec![Problem {
        object: kind.to_string(),
        field: "metadata.name".to_owned(),
        what: "no name; the object is skipped".to_owned(),
    }]
}

fn has_label(metadata: &ObjectMeta, key: &str) -> bool {
    metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(key))
}

fn non_empty(text: Option<&String>) -> Option<Arc<str>> {
    text.filter(|text| !text.is_empty()).map(|text| text.as_str().into())
}
