//! What a running agent occupies: the program itself, as an operator starts it, on a folder with a whole cluster.

use std::fmt::Write as _;

use anyhow::Context as _;
use lb_tests::{
    agent::Installation,
    manifests::Manifests,
    process::{Place, memory},
};

use crate::{machine::Corner, objects::ENDPOINTS};

/// The resident set of an agent that serves so many Services, in megabytes.
pub(crate) fn resident(corner: &Corner, services: u32) -> anyhow::Result<f64> {
    let manifests = Manifests::new()?;
    manifests.write("cluster.yaml", &cluster(services)?)?;
    let place = Place { netns: Some(&corner.netns), cgroup: Some(&corner.without_programs) };
    let installation = Installation::new(place, corner.with_programs.path())?;
    let agent = installation.start(&manifests.path())?;
    let resident = memory(agent.id())?;
    drop(agent);
    installation.sockeye(&["cleanup"])?;
    Ok(resident)
}

/// One document for each object, in the short form of YAML.
fn cluster(services: u32) -> anyhow::Result<String> {
    let mut text = String::new();
    for number in 0..services {
        let (high, low) = (number / 250, number % 250 + 1);
        let name = format!("service-{number}");
        let endpoints: Vec<_> = (0..ENDPOINTS)
            .map(|endpoint| {
                let pod = number * ENDPOINTS + endpoint;
                let (a, b, c) = (128 + (pod >> 16), (pod >> 8) & 0xff, pod & 0xff);
                format!("{{addresses: [10.{a}.{b}.{c}], nodeName: node-{}}}", pod % 500)
            })
            .collect();
        writeln!(
            text,
            "---\n\
             {{kind: Service, apiVersion: v1, metadata: {{name: {name}}}, \
             spec: {{clusterIP: 10.96.{high}.{low}, ports: [{{name: dns, protocol: UDP, port: 80}}]}}}}\n\
             ---\n\
             {{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, \
             metadata: {{name: {name}-x2k9q, labels: {{kubernetes.io/service-name: {name}}}}}, addressType: IPv4, \
             ports: [{{name: dns, protocol: UDP, port: 8080}}], endpoints: [{}]}}",
            endpoints.join(", "),
        )
        .context("writing a manifest")?;
    }
    Ok(text)
}
