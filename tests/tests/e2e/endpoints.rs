//! Hand-made endpoints of Services without selector: an address outside the cluster, in an Endpoints object or in a slice.

use std::net::SocketAddr;

use anyhow::Result;
use lb_tests::{controlplane::pod_network::OUTSIDE_ADDRESS, probe::Kind, wait};
use serde_json::{Value, json};

use crate::{
    case::{Case, http_port, names, pod, service_without_selector},
    world::OUTSIDE,
};

const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";

pub(crate) fn mirrored_endpoints_are_followed(case: &mut Case<'_>) -> Result<()> {
    let database = begin(case, &json!({}))?;
    changes_are_followed(case, database)?;
    case.kubectl.delete(&["endpoints", "database"])?;
    case.world.refused(Kind::Tcp, database)?;
    case.kubectl.delete(&["service", "database"])?;
    case.world.no_such_service(Kind::Tcp, database)
}

/// Whoever labels them so wants no proxy to serve them.
pub(crate) fn endpoints_that_ask_not_to_be_mirrored_are_left_alone(case: &mut Case<'_>) -> Result<()> {
    let database = begin(case, &json!({ SKIP_MIRROR: "true" }))?;
    case.world.refused(Kind::Tcp, database)?;
    case.kubectl.run(&["label", "endpoints", "database", &format!("{SKIP_MIRROR}-")])?;
    case.world.both_reach(Kind::Tcp, database, &names(&[OUTSIDE.0]))
}

/// A cluster may run without the mirroring controller, and get it later: Endpoints and slice are one backend.
pub(crate) fn mirroring_may_start_later(case: &mut Case<'_>) -> Result<()> {
    case.world.plane.start_controllers(false)?;
    let database = begin(case, &json!({}))?;
    changes_are_followed(case, database)?;
    wait_slices(case, 0)?;

    case.world.plane.start_controllers(true)?;
    wait_slices(case, 1)?;
    case.world.both_reach(Kind::Tcp, database, &names(&["inside"]))?;
    case.kubectl.delete(&["endpoints", "database"])?;
    case.world.refused(Kind::Tcp, database)
}

/// A slice of nobody's, which then becomes another Service's.
pub(crate) fn a_slice_may_change_its_service(case: &mut Case<'_>) -> Result<()> {
    let ports = json!({ "ports": [{ "port": 5432 }] });
    case.apply(&[
        service_without_selector("first", &ports),
        service_without_selector("second", &ports),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": "database", "labels": { "kubernetes.io/service-name": "first" } },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": [OUTSIDE_ADDRESS.to_string()] }],
            "ports": [{ "name": "", "port": OUTSIDE.1 }],
        }),
    ])?;
    let (first, second) = (case.service("first")?.at(5432)?, case.service("second")?.at(5432)?);
    case.world.both_reach(Kind::Tcp, first, &names(&[OUTSIDE.0]))?;
    case.world.refused(Kind::Tcp, second)?;
    case.kubectl.run(&[
        "label",
        "--overwrite",
        "endpointslice",
        "database",
        "kubernetes.io/service-name=second",
    ])?;
    case.world.both_reach(Kind::Tcp, second, &names(&[OUTSIDE.0]))?;
    case.world.refused(Kind::Tcp, first)
}

/// Two ports in a slice each, and the endpoints of one of them in two; one endpoint stands in both.
pub(crate) fn ports_and_endpoints_may_stand_in_several_slices(case: &mut Case<'_>) -> Result<()> {
    case.apply(&[pod("one", "pods", &http_port()), pod("two", "pods", &http_port())])?;
    case.ready_pods("pods", 2)?;
    let address = |name: &str| case.kubectl.run(&["get", "pod", name, "-o", "jsonpath={.status.podIP}"]);
    let (one, two) = (address("one")?, address("two")?);
    let slice = |name: &str, port: &str, addresses: &[&String]| {
        let endpoints: Vec<_> = addresses.iter().map(|ip| json!({ "addresses": [ip] })).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": "several" } },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": port, "port": 8080 }],
        })
    };
    let ports = json!({ "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }] });
    case.apply(&[
        service_without_selector("several", &ports),
        slice("a-1", "a", &[&one]),
        slice("a-2", "a", &[&one, &two]),
        slice("b-1", "b", &[&two]),
    ])?;
    let several = case.service("several")?;
    let (a, b) = (several.at(80)?, several.at(81)?);
    case.world.both_reach(Kind::Tcp, a, &names(&["one", "two"]))?;
    case.world.both_reach(Kind::Tcp, b, &names(&["two"]))?;
    case.kubectl.delete(&["endpointslice", "a-2"])?;
    case.world.both_reach(Kind::Tcp, a, &names(&["one"]))?;
    case.world.both_reach(Kind::Tcp, b, &names(&["two"]))?;
    case.kubectl.delete(&["endpointslice", "b-1"])?;
    case.world.refused(Kind::Tcp, b)?;
    case.world.both_reach(Kind::Tcp, a, &names(&["one"]))
}

/// Makes the Service and its Endpoints, and returns the address.
fn begin(case: &Case<'_>, labels: &Value) -> Result<SocketAddr> {
    case.apply(&[
        service_without_selector("database", &json!({ "ports": [{ "port": 5432 }] })),
        endpoints(labels, &[&OUTSIDE_ADDRESS.to_string()]),
    ])?;
    case.service("database")?.at(5432)
}

/// Ends with the backend `inside`.
fn changes_are_followed(case: &Case<'_>, database: SocketAddr) -> Result<()> {
    case.world.both_reach(Kind::Tcp, database, &names(&[OUTSIDE.0]))?;
    case.apply(&[pod("inside", "inside", &http_port())])?;
    case.ready_pods("inside", 1)?;
    let inside = case.kubectl.run(&["get", "pod", "inside", "-o", "jsonpath={.status.podIP}"])?;
    case.apply(&[endpoints(&json!({}), &[&OUTSIDE_ADDRESS.to_string(), &inside])])?;
    case.world.both_reach(Kind::Tcp, database, &names(&[OUTSIDE.0, "inside"]))?;
    case.apply(&[endpoints(&json!({}), &[&inside])])?;
    case.world.both_reach(Kind::Tcp, database, &names(&["inside"]))
}

fn endpoints(labels: &Value, addresses: &[&str]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": { "name": "database", "labels": labels },
        "subsets": [{ "addresses": addresses, "ports": [{ "port": OUTSIDE.1 }] }],
    })
}

/// Waits until the API server has that many slices of the Service.
fn wait_slices(case: &Case<'_>, count: usize) -> Result<()> {
    wait::until(&format!("{count} slices"), wait::SOON, || {
        let list = case.kubectl.get(&["endpointslices", "--selector=kubernetes.io/service-name=database"])?;
        Ok((list["items"].as_array().map(Vec::len) == Some(count)).then_some(()))
    })
}
