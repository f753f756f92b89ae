//! One test's view: the world, a namespace of the cluster, and short forms of the objects that tests make.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    controlplane::{kubectl::Kubectl, pod_network::NODE_ADDRESSES},
    wait,
};
use serde_json::{Value, json};

use crate::world::{NODE, World};

/// From a change to what the controllers and the kubelet make of it.
const SETTLED: Duration = Duration::from_secs(30);

pub(crate) struct Case<'a> {
    pub(crate) world: &'a mut World,
    /// Works in the case's namespace.
    pub(crate) kubectl: Kubectl,
    pub(crate) namespace: String,
}

impl<'a> Case<'a> {
    /// A case in a new namespace of the cluster.
    pub(crate) fn enter(world: &'a mut World, namespace: &str) -> Result<Self> {
        let kubectl = world.plane.kubectl().in_namespace(namespace);
        kubectl.run(&["create", "namespace", namespace])?;
        Ok(Self { world, kubectl, namespace: namespace.to_owned() })
    }

    /// Lets the cluster remove what the case made.
    pub(crate) fn leave(self) -> Result<()> {
        self.kubectl.delete(&["namespace", &self.namespace])
    }

    /// Makes objects what they say; the API version is `v1` unless they say so.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        self.kubectl.apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string())
    }

    /// A Service as the API server has it now.
    pub(crate) fn service(&self, name: &str) -> Result<Service> {
        Ok(Service(self.kubectl.get(&["service", name])?))
    }

    /// Waits until `count` Pods with the label `app` are ready and no other one is left, and names them.
    pub(crate) fn ready_pods(&self, app: &str, count: usize) -> Result<BTreeSet<String>> {
        let selector = format!("--selector=app={app}");
        wait::until(&format!("{count} ready pods of {app}"), SETTLED, || {
            let list = self.kubectl.get(&["pods", &selector])?;
            let pods = list["items"].as_array().context("no list of pods")?;
            let ready: BTreeSet<_> = pods
                .iter()
                .filter(|pod| is_ready(pod))
                .filter_map(|pod| Some(pod["metadata"]["name"].as_str()?.to_owned()))
                .collect();
            ensure!(
                ready.len() == count && pods.len() == count,
                "{} of {} are ready",
                ready.len(),
                pods.len()
            );
            Ok(Some(ready))
        })
    }

    /// Sets a Pod's condition Ready, as its kubelet would after a probe.
    pub(crate) fn set_ready(&self, pod: &str, ready: bool) -> Result<()> {
        let status = if ready { "True" } else { "False" };
        self.kubectl
            .patch_status(&["pod", pod], &json!({ "conditions": [{ "type": "Ready", "status": status }] }))
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A Service as the API server has it.
pub(crate) struct Service(pub(crate) Value);

impl Service {
    /// Its first cluster address, at one of its ports.
    pub(crate) fn at(&self, port: u16) -> Result<SocketAddr> {
        self.address(0, port)
    }

    /// Its cluster address of that rank, at one of its ports.
    pub(crate) fn address(&self, rank: usize, port: u16) -> Result<SocketAddr> {
        let address = self.0["spec"]["clusterIPs"][rank].as_str().context("it has too few clusterIPs")?;
        Ok(SocketAddr::new(address.parse().context("its clusterIP")?, port))
    }

    /// The node port of one of its ports, at the node's addresses (IPv4, IPv6).
    pub(crate) fn node_ports(&self, port: u16) -> Result<[SocketAddr; 2]> {
        let ports = self.0["spec"]["ports"].as_array().context("it has no ports")?;
        let number =
            ports.iter().find(|entry| entry["port"] == port).and_then(|entry| entry["nodePort"].as_u64());
        let number = u16::try_from(number.with_context(|| format!("no node port in {ports:?}"))?)?;
        Ok(NODE_ADDRESSES.map(|address| SocketAddr::new(address, number)))
    }
}

/// A Deployment of Pods with the label `app`, on the node; `ports` are those of the container.
pub(crate) fn deployment(app: &str, replicas: u32, ports: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": app },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": app } },
            "template": { "metadata": { "labels": { "app": app } }, "spec": pod_spec(NODE, ports) },
        },
    })
}

/// A Pod with the label `app`, on the agent's node.
pub(crate) fn pod(name: &str, app: &str, ports: &Value) -> Value {
    pod_on(NODE, name, app, ports)
}

/// A Pod with the label `app`, on that node.
pub(crate) fn pod_on(node: &str, name: &str, app: &str, ports: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": app } },
        "spec": pod_spec(node, ports),
    })
}

fn pod_spec(node: &str, ports: &Value) -> Value {
    json!({
        "nodeName": node,
        "terminationGracePeriodSeconds": 300,
        "containers": [{ "name": "server", "image": "sockeye.test/none", "ports": ports }],
    })
}

/// A Service for the Pods with the label `app`, with the same name; `spec` is added to that.
pub(crate) fn service(app: &str, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": app },
        "spec": { "selector": { "app": app } },
    });
    if let (Value::Object(to), Value::Object(from)) = (&mut object["spec"], spec) {
        to.extend(from);
    }
    object
}

/// A Service without selector.
pub(crate) fn service_without_selector(name: &str, spec: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": spec })
}

/// The container port that most tests use.
pub(crate) fn http_port() -> Value {
    json!([{ "name": "http", "containerPort": 8080 }])
}

/// A set of names.
pub(crate) fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
