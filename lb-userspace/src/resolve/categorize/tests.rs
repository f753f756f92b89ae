//! The table of upstream's `TestCategorizeEndpoints`, by its case names, and properties.
//!
//! An endpoint is written as `NUMBER STATE [local] [ZONE…] [@NODE…]`. This node is `node-1`.

use proptest::prelude::*;

use super::*;

struct Case {
    name: &'static str,
    zone: &'static str,
    endpoints: &'static [&'static str],
    cluster: &'static [u32],
    local: &'static [u32],
}

const CASES: &[Case] = &[
    Case {
        name: "hints for zones: those for this node's zone",
        zone: "zone-a",
        endpoints: &["3 ready zone-a", "4 ready zone-b", "5 ready zone-c", "6 ready zone-a"],
        cluster: &[3, 6],
        local: &[],
    },
    Case {
        name: "Local policies: topology ignored for Local endpoints",
        zone: "zone-a",
        endpoints: &["3 ready local zone-a", "4 ready local zone-b", "5 ready zone-c", "6 ready zone-a"],
        cluster: &[3, 6],
        local: &[3, 4],
    },
    Case { name: "empty zone label", zone: "", endpoints: &["3 ready zone-a"], cluster: &[3], local: &[] },
    Case {
        name: "node in different zone, no endpoint filtering",
        zone: "zone-b",
        endpoints: &["3 ready zone-a"],
        cluster: &[3],
        local: &[],
    },
    Case {
        name: "unready endpoint",
        zone: "zone-a",
        endpoints: &["3 ready zone-a", "4 ready zone-b", "5 ready zone-c", "6 unready zone-a"],
        cluster: &[3],
        local: &[],
    },
    Case {
        name: "only unready endpoints in same zone (should not filter)",
        zone: "zone-a",
        endpoints: &["3 unready zone-a", "4 ready zone-b", "5 ready zone-c", "6 unready zone-a"],
        cluster: &[4, 5],
        local: &[],
    },
    Case {
        name: "missing hints, no filtering applied",
        zone: "zone-a",
        endpoints: &["3 ready zone-a", "4 ready zone-b", "5 ready", "6 ready zone-a"],
        cluster: &[3, 4, 5, 6],
        local: &[],
    },
    Case {
        name: "an unready endpoint without hints does not disable them",
        zone: "zone-a",
        endpoints: &["3 ready zone-a", "4 ready zone-b", "5 unready", "6 terminating"],
        cluster: &[3],
        local: &[],
    },
    Case {
        name: "multiple hints per endpoint, filtering includes any endpoint with zone included",
        zone: "zone-c",
        endpoints: &[
            "3 ready zone-a zone-b zone-c",
            "4 ready zone-b zone-c",
            "5 ready zone-b zone-d",
            "6 ready zone-c",
        ],
        cluster: &[3, 4, 6],
        local: &[],
    },
    Case {
        name: "conflicting topology and localness require merging allEndpoints",
        zone: "zone-a",
        endpoints: &["0 ready local zone-a", "1 ready local zone-b", "2 ready zone-a", "3 ready zone-b"],
        cluster: &[0, 2],
        local: &[0, 1],
    },
    Case {
        name: "internalTrafficPolicy: Local, with empty endpoints",
        zone: "",
        endpoints: &[],
        cluster: &[],
        local: &[],
    },
    Case {
        name: "internalTrafficPolicy: Local, but all endpoints are remote",
        zone: "",
        endpoints: &["0 ready", "1 ready"],
        cluster: &[0, 1],
        local: &[],
    },
    Case {
        name: "internalTrafficPolicy: Local, all endpoints are local",
        zone: "",
        endpoints: &["0 ready local", "1 ready local"],
        cluster: &[0, 1],
        local: &[0, 1],
    },
    Case {
        name: "internalTrafficPolicy: Local, some endpoints are local",
        zone: "",
        endpoints: &["0 ready local", "1 ready"],
        cluster: &[0, 1],
        local: &[0],
    },
    Case {
        name: "Cluster traffic policy, endpoints not Ready",
        zone: "",
        endpoints: &["0 unready", "1 unready"],
        cluster: &[],
        local: &[],
    },
    Case {
        name: "Cluster traffic policy, some endpoints are Ready",
        zone: "",
        endpoints: &["0 unready", "1 ready"],
        cluster: &[1],
        local: &[],
    },
    Case {
        name: "Cluster traffic policy, all endpoints are terminating",
        zone: "",
        endpoints: &["0 terminating local", "1 terminating"],
        cluster: &[0, 1],
        local: &[0],
    },
    Case {
        name: "terminating endpoints disregard topology",
        zone: "zone-a",
        endpoints: &["0 terminating zone-a", "1 terminating zone-b"],
        cluster: &[0, 1],
        local: &[],
    },
    Case {
        name: "iTP: Local, eTP: Local, all endpoints remote and terminating",
        zone: "",
        endpoints: &["0 terminating", "1 terminating"],
        cluster: &[0, 1],
        local: &[],
    },
    Case {
        name: "iTP: Cluster, eTP: Local, with terminating endpoints",
        zone: "",
        endpoints: &["0 ready", "1 unready", "2 terminating local", "3 terminating"],
        cluster: &[0],
        local: &[2],
    },
    Case {
        name: "PreferSameNode: node hints for this node",
        zone: "zone-a",
        endpoints: &[
            "3 ready local zone-a @node-1",
            "4 ready zone-a @node-2",
            "5 ready zone-b @node-3 @node-1",
            "6 unready zone-b",
        ],
        cluster: &[3, 5],
        local: &[3],
    },
    Case {
        name: "PreferSameNode falls back to same zone when no endpoint is hinted for this node",
        zone: "zone-a",
        endpoints: &["3 ready zone-a @node-2", "4 ready zone-b @node-3", "5 ready zone-a @node-4"],
        cluster: &[3, 5],
        local: &[],
    },
    Case {
        name: "PreferSameNode falls back to same zone when one endpoint has no node hint",
        zone: "zone-a",
        endpoints: &["3 ready local zone-a @node-1", "4 ready zone-b @node-3", "5 ready zone-a"],
        cluster: &[3, 5],
        local: &[3],
    },
    Case {
        name: "PreferSameNode falls back to all without hints for this node or zone",
        zone: "zone-c",
        endpoints: &["3 ready zone-a @node-2", "4 ready zone-b @node-3"],
        cluster: &[3, 4],
        local: &[],
    },
];

fn parse(text: &str, zone: &str) -> (u32, Candidate) {
    let mut words = text.split(' ');
    let number = words.next().unwrap().parse().unwrap();
    let state = match words.next() {
        Some("ready") => EndpointState::Ready,
        Some("terminating") => EndpointState::Terminating,
        Some("unready") => EndpointState::NotReady,
        other => panic!("{other:?}"),
    };
    let hints = |prefix| words.clone().filter_map(move |word| word.strip_prefix(prefix)).collect::<Vec<_>>();
    let zone = zone.strip_prefix("zone-");
    let candidate = Candidate {
        state,
        local: words.clone().any(|word| word == "local"),
        node_hint: Hint::of(&hints("@"), Some("node-1")),
        zone_hint: Hint::of(&hints("zone-"), zone),
    };
    (number, candidate)
}

#[test]
fn matches_upstreams_table() {
    for case in CASES {
        let candidates: Vec<_> = case.endpoints.iter().map(|text| parse(text, case.zone)).collect();
        let pool = Pool::of(candidates.iter().map(|(_, candidate)| *candidate));
        let set = |verdict: fn(Pool, Candidate) -> Verdict| {
            let used = candidates.iter().filter(|(_, candidate)| verdict(pool, *candidate).is_used());
            used.map(|(number, _)| *number).collect::<Vec<_>>()
        };
        assert_eq!(set(Pool::cluster), case.cluster, "cluster set: {}", case.name);
        assert_eq!(set(Pool::local), case.local, "local set: {}", case.name);
    }
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let state = prop_oneof![
        Just(EndpointState::Ready),
        Just(EndpointState::Terminating),
        Just(EndpointState::NotReady)
    ];
    let hint = || prop_oneof![Just(Hint::Absent), Just(Hint::Here), Just(Hint::Elsewhere)];
    (state, any::<bool>(), hint(), hint()).prop_map(|(state, local, node_hint, zone_hint)| Candidate {
        state,
        local,
        node_hint,
        zone_hint,
    })
}

proptest! {
    #[test]
    fn the_cluster_set_is_empty_only_if_nothing_serves(
        candidates in proptest::collection::vec(candidate(), 0..6)
    ) {
        let pool = Pool::of(candidates.iter().copied());
        let cluster = candidates.iter().any(|c| pool.cluster(*c).is_used());
        prop_assert_eq!(cluster, candidates.iter().any(|c| c.state != EndpointState::NotReady));
        // Which is what a change of policy relies on:
        let local = candidates.iter().any(|c| pool.local(*c).is_used());
        prop_assert!(cluster || !local);
    }

    #[test]
    fn no_set_mixes_ready_and_terminating_endpoints_nor_uses_unready_ones(
        candidates in proptest::collection::vec(candidate(), 0..6)
    ) {
        let pool = Pool::of(candidates.iter().copied());
        for verdict in [Pool::cluster, Pool::local] {
            let used: Vec<_> = candidates.iter().filter(|c| verdict(pool, **c).is_used()).collect();
            prop_assert!(used.iter().all(|c| c.state == used[0].state));
            prop_assert!(used.iter().all(|c| c.state != EndpointState::NotReady));
        }
    }
}
