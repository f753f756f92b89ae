//! A manifest, from its bytes to the tables.

use lb_userspace::{
    model::{Change, Kind, Object},
    source::manifest::objects_from_yaml,
    store::Capacity,
};

use super::agent::{Agent, NODE};

const CAPACITY: Capacity = Capacity {
    frontends: 4_096,
    services: 1_024,
    backends: 16_384,
    source_ranges: 1_024,
    maglev: 1 << 17,
    node_addresses: 64,
};

/// Reads bytes as YAML and as JSON: nothing panics, each problem names what it is about, and what is read ends in tables
/// that an agent which begins anew finds complete.
pub fn manifests(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    for file in ["fuzz.yaml", "fuzz.json"] {
        let (objects, problems) = objects_from_yaml(&text, file, NODE);
        assert!(problems.iter().all(|problem| !problem.object.is_empty() && !problem.what.is_empty()));
        serve(&objects);
    }
}

fn serve(objects: &[Object]) {
    let lists = || {
        Kind::ALL.map(|kind| {
            Change::Reset(kind, objects.iter().filter(|object| object.kind() == kind).cloned().collect())
        })
    };
    let mut agent = Agent::new(CAPACITY, 0, 0);
    agent.tell(lists());
    let all_fit = agent.converge();
    let before = agent.dump();
    agent.die(0, lists());
    agent.converge();
    if all_fit {
        assert_eq!(agent.dump(), before, "a restart changes nothing");
    }
    agent.pipeline.services();
    agent.pipeline.problems();
}
