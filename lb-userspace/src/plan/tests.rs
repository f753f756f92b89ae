use std::net::IpAddr;

use lb_common::{
    address::{Address, Port},
    service::flags::{ANY_ENDPOINTS, EXTERNAL_LOCAL, INTERNAL_LOCAL, SOURCE_RANGES},
};

use super::*;
use crate::{desired::ids::BackendKey, store::Capacity};

const CAPACITY: Capacity = Capacity {
    frontends: 4,
    services: 3,
    backends: 12,
    source_ranges: 8,
    maglev: 1 << 17,
    node_addresses: 4,
};

/// The actual tables with one service port, and a shorthand for what it should be.
struct Bench {
    actual: Actual,
    record: Option<u32>,
    service_id: u32,
    /// Where `10.N.0.0/16` is admitted, by `N`; empty: all clients.
    sources: Vec<u8>,
}

fn key(host: u8) -> FrontendKey {
    FrontendKey::new(Address::from_v4_bytes([10, 96, 0, host]), Port::new(80), Protocol::Tcp)
}

fn settings(flags: u32) -> Settings {
    Settings { flags, affinity_seconds: 0 }
}

impl Bench {
    fn new() -> Self {
        let mut actual = Actual::new(CAPACITY);
        let service_id = actual.next_service_id().unwrap();
        Self { actual, record: None, service_id, sources: Vec::new() }
    }

    fn set(&mut self, hosts: &[u8]) -> Vec<Backend> {
        let backend = |host: &u8| {
            let address = Address::from(IpAddr::from([10, 0, 0, *host]));
            let port = Port::new(8080);
            let key = BackendKey {
                address: lb_common::address::SocketAddress::new(address, port),
                protocol: Protocol::Tcp,
            };
            Backend { address, port, flags: 0, id: self.actual.intern(key).unwrap() }
        };
        let mut set: Vec<_> = hosts.iter().map(backend).collect();
        set.sort_by_key(|backend| backend.id);
        set
    }

    fn plan(&mut self, flags: u32, cluster: &[u8], local: &[u8], keys: &[u8]) -> Result<Plan, NoRoom> {
        let frontends: Vec<_> = keys.iter().map(|host| (key(*host), FrontendKind::ClusterIp)).collect();
        self.plan_at(flags, cluster, local, &frontends)
    }

    fn plan_at(
        &mut self,
        flags: u32,
        cluster: &[u8],
        local: &[u8],
        frontends: &[(FrontendKey, FrontendKind)],
    ) -> Result<Plan, NoRoom> {
        let (cluster, local) = (self.set(cluster), self.set(local));
        let source = |network: &u8| Prefix::of(IpAddr::from([10, *network, 0, 0]), 16);
        let source_ranges: Vec<_> = self.sources.iter().map(source).collect();
        let filter = if source_ranges.is_empty() { 0 } else { SOURCE_RANGES };
        let target = Target {
            service_id: self.service_id,
            protocol: Protocol::Tcp,
            settings: settings(flags | filter),
            source_ranges: &source_ranges,
            cluster: &cluster,
            local: &local,
            frontends,
        };
        plan(&target, self.record, &mut self.actual)
    }

    /// Plans, carries everything out, and says what was written.
    fn bring(&mut self, flags: u32, cluster: &[u8], local: &[u8], keys: &[u8]) -> Vec<String> {
        let plan = self.plan(flags, cluster, local, keys).unwrap();
        self.carry_out(&plan, usize::MAX);
        plan.writes.iter().map(text).collect()
    }

    /// Carries the first writes of a plan out; the next one fails.
    fn carry_out(&mut self, plan: &Plan, writes: usize) {
        for write in plan.writes.iter().take(writes) {
            self.actual.note(write);
        }
        self.actual.settle(plan.record, &plan.reserved, plan.reserved_table);
        if self.record != Some(plan.record)
            && self.actual.record(plan.record).is_some()
            && let Some(before) = self.record.replace(plan.record)
        {
            self.actual.abandon(before);
        }
    }

    /// Slots in use, free, retired.
    fn slots(&self) -> (u32, u32, u32) {
        (self.actual.slots().used(), self.actual.slots().free(), self.actual.slots().retired())
    }
}

fn range(range: Range) -> String {
    format!("{}+{}", range.first, range.count)
}

fn text(write: &Write) -> String {
    match write {
        Write::Slots { first, backends } => format!("slots {first}+{}", backends.len()),
        Write::Record { index, record } => format!(
            "record {index}: cluster {} local {} flags {}",
            range(record.cluster),
            range(record.local),
            record.settings.flags
        ),
        Write::Range { index, set, range: to } => format!("range {index}: {set:?} {}", range(*to)),
        Write::Settings { index, settings } => format!("settings {index}: {}", settings.flags),
        Write::PutSourceRange { record, prefix } => format!("admit {record}: {prefix}"),
        Write::DeleteSourceRange { record, prefix } => format!("no longer admit {record}: {prefix}"),
        Write::PutFrontend { key, entry } => format!("frontend {} → {}", key.address(), entry.record),
        other => panic!("{other:?} is not part of a plan"),
    }
}

#[test]
fn a_service_port_appears_slots_first_frontends_last() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1, 2, 3], &[2], &[1, 2]),
        [
            "slots 0+3",
            "slots 3+1",
            "record 0: cluster 0+3 local 3+1 flags 4",
            "frontend 10.96.0.1 → 0",
            "frontend 10.96.0.2 → 0",
        ]
    );
    assert_eq!(bench.bring(ANY_ENDPOINTS, &[1, 2, 3], &[2], &[1, 2]), [""; 0]);
}

#[test]
fn an_endpoint_change_is_one_store_of_a_range() {
    let mut bench = Bench::new();
    bench.bring(ANY_ENDPOINTS, &[1, 2], &[], &[1]);
    assert_eq!(bench.bring(ANY_ENDPOINTS, &[1, 2, 3], &[], &[1]), ["slots 2+3", "range 0: Cluster 2+3"]);
    assert_eq!(bench.slots(), (3, 7, 2));
}

#[test]
fn equal_sets_share_their_slots() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1, 2], &[1, 2], &[]),
        ["slots 0+2", "record 0: cluster 0+2 local 0+2 flags 4"]
    );
    // They part: the local set stays where both were.
    assert_eq!(bench.bring(ANY_ENDPOINTS, &[1, 2, 3], &[1, 2], &[]), ["slots 2+3", "range 0: Cluster 2+3"]);
    assert_eq!(bench.slots(), (5, 7, 0));
    // They meet again: no slot is written.
    assert_eq!(bench.bring(ANY_ENDPOINTS, &[1, 2], &[1, 2], &[]), ["range 0: Cluster 0+2"]);
    assert_eq!(bench.slots(), (2, 7, 3));
}

#[test]
fn sets_may_change_places() {
    let mut bench = Bench::new();
    bench.bring(ANY_ENDPOINTS, &[1, 2], &[3], &[]);
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[3], &[1, 2], &[]),
        ["range 0: Cluster 2+1", "range 0: Local 0+2"]
    );
    assert_eq!(bench.slots(), (3, 9, 0));
}

#[test]
fn a_set_that_empties_takes_no_slots() {
    let mut bench = Bench::new();
    bench.bring(ANY_ENDPOINTS, &[1], &[1], &[]);
    assert_eq!(
        bench.bring(0, &[], &[], &[]),
        ["settings 0: 0", "range 0: Cluster 0+0", "range 0: Local 0+0"]
    );
    assert_eq!(bench.slots(), (0, 11, 1));
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1], &[], &[]),
        ["slots 1+1", "range 0: Cluster 1+1", "settings 0: 4"]
    );
}

#[test]
fn policies_that_go_are_cleared_before_the_ranges_and_those_that_come_set_after() {
    const ANY: u32 = ANY_ENDPOINTS;
    const RANGES: [&str; 2] = ["range 0: Cluster 3+1", "range 0: Local 0+0"];
    for (before, after, cleared, set) in [
        // The empty local set must not be met on the way to the cluster set,
        (INTERNAL_LOCAL, 0, Some("settings 0: 4"), None),
        // nor the old local set on the way from it.
        (0, INTERNAL_LOCAL, None, Some("settings 0: 5")),
        (INTERNAL_LOCAL, EXTERNAL_LOCAL, Some("settings 0: 4"), Some("settings 0: 6")),
        (EXTERNAL_LOCAL, EXTERNAL_LOCAL, None, None),
    ] {
        let mut bench = Bench::new();
        bench.bring(before | ANY, &[1, 2], &[1], &[]);
        let expected: Vec<_> = ["slots 3+1"].into_iter().chain(cleared).chain(RANGES).chain(set).collect();
        assert_eq!(bench.bring(after | ANY, &[2], &[], &[]), expected, "{before} → {after}");
    }
}

#[test]
fn settings_alone_are_one_store() {
    let mut bench = Bench::new();
    bench.bring(ANY_ENDPOINTS | INTERNAL_LOCAL, &[1], &[1], &[]);
    assert_eq!(bench.bring(ANY_ENDPOINTS | EXTERNAL_LOCAL, &[1], &[1], &[]), ["settings 0: 6"]);
}

#[test]
fn a_record_that_others_wait_at_is_left_to_them_unchanged() {
    let mut bench = Bench::new();
    bench.bring(ANY_ENDPOINTS, &[1, 2], &[], &[1, 2]);
    // Frontend 2 is another's now. Nothing else changes: nothing is written.
    assert_eq!(bench.bring(ANY_ENDPOINTS, &[1, 2], &[], &[1]), [""; 0]);
    // The set changes: the port moves, and frontend 2 keeps the old set.
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1], &[], &[1]),
        ["slots 2+1", "record 1: cluster 2+1 local 0+0 flags 4", "frontend 10.96.0.1 → 1"]
    );
    assert_eq!(bench.slots(), (3, 9, 0));
    let old = bench.actual.record(0).unwrap();
    assert_eq!((old.cluster, old.frontends.as_slice()), (Range { first: 0, count: 2 }, &[key(2)][..]));
    // When its new owner has written it, the old record and its slots are retired.
    let entry = FrontendEntry::new(&key(2), FrontendKind::ClusterIp, 2);
    bench.actual.note(&Write::PutFrontend { key: key(2), entry });
    assert_eq!(bench.slots(), (1, 9, 2));
    assert_eq!(bench.actual.records().retired().collect::<Vec<_>>(), [0]);
}

#[test]
fn a_frontend_of_another_kind_never_meets_the_policies_of_both() {
    let mut bench = Bench::new();
    bench.bring(ANY_ENDPOINTS, &[1], &[], &[1]);
    let frontends = [(key(2), FrontendKind::ClusterIp), (key(1), FrontendKind::ExternalIp)];
    let plan = bench.plan_at(ANY_ENDPOINTS | INTERNAL_LOCAL, &[1], &[], &frontends).unwrap();
    let writes: Vec<_> = plan.writes.iter().map(text).collect();
    assert_eq!(
        writes,
        [
            "slots 1+1",
            "record 1: cluster 1+1 local 0+0 flags 5",
            "frontend 10.96.0.2 → 1",
            "frontend 10.96.0.1 → 1",
        ]
    );
}

#[test]
fn what_a_failing_write_leaves_unused_is_free_at_once_and_the_next_plan_goes_on() {
    let mut bench = Bench::new();
    let plan = bench.plan(ANY_ENDPOINTS, &[1, 2], &[1], &[1]).unwrap();
    bench.carry_out(&plan, 2);
    assert_eq!((bench.slots(), bench.record), ((0, 12, 0), None), "the record was not written");

    let plan = bench.plan(ANY_ENDPOINTS, &[1, 2], &[1], &[1]).unwrap();
    bench.carry_out(&plan, 3);
    assert_eq!((bench.slots(), bench.record), ((3, 9, 0), Some(0)), "no frontend leads there");
    assert_eq!(bench.bring(ANY_ENDPOINTS, &[1, 2], &[1], &[1]), ["frontend 10.96.0.1 → 0"]);

    let plan = bench.plan(ANY_ENDPOINTS, &[2], &[2], &[1]).unwrap();
    assert_eq!(
        plan.writes.iter().map(text).collect::<Vec<_>>(),
        ["slots 3+1", "range 0: Cluster 3+1", "range 0: Local 3+1"]
    );
    bench.carry_out(&plan, 2);
    assert_eq!(bench.slots(), (2, 8, 2), "the new set is in use, the old one retired");
    assert_eq!(bench.bring(ANY_ENDPOINTS, &[2], &[2], &[1]), ["range 0: Local 3+1"]);
    assert_eq!(bench.slots(), (1, 8, 3));
}

#[test]
fn what_does_not_fit_is_said_and_nothing_stays_reserved() {
    let mut bench = Bench::new();
    let hosts: Vec<u8> = (1..=8).collect();
    bench.bring(ANY_ENDPOINTS, &hosts, &[], &[1]);
    let before = bench.slots();
    assert_eq!(bench.plan(ANY_ENDPOINTS, &[1, 2, 3], &[1, 2], &[1]), Err(NoRoom::Slots(5)));
    assert_eq!(bench.plan(ANY_ENDPOINTS, &hosts, &[], &[1, 2, 3, 4, 5]), Err(NoRoom::Frontends(4)));
    assert_eq!(bench.slots(), before);

    for _ in 0..2 {
        bench.actual.reserve_record().unwrap();
    }
    bench.record = None;
    assert_eq!(bench.plan(ANY_ENDPOINTS, &[9], &[9], &[1]), Err(NoRoom::Record));
    assert_eq!(bench.slots(), before);
}

#[test]
fn retired_slots_help_after_a_grace_period() {
    let mut bench = Bench::new();
    bench.bring(ANY_ENDPOINTS, &[1, 2, 3, 4, 5], &[], &[1]);
    bench.bring(ANY_ENDPOINTS, &[1, 2, 3, 4], &[], &[1]);
    let no_room = bench.plan(ANY_ENDPOINTS, &[1, 2, 3, 4, 6], &[], &[1]).unwrap_err();
    assert_eq!(no_room, NoRoom::Slots(5));
    assert!(no_room.is_helped_by_grace(&bench.actual) && no_room.may_fit(&bench.actual));
    assert_eq!(bench.actual.free_retired().slots, 5);
    assert!(!no_room.is_helped_by_grace(&bench.actual) && no_room.may_fit(&bench.actual));
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1, 2, 3, 4, 6], &[], &[1]),
        ["slots 0+5", "range 0: Cluster 0+5"]
    );
}

#[test]
fn source_ranges_stand_before_the_settings_name_them_and_go_after_these_have_changed() {
    let mut bench = Bench::new();
    bench.bring(ANY_ENDPOINTS, &[1], &[], &[1]);
    bench.sources = vec![1, 2];
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1], &[], &[1]),
        ["admit 0: 10.1.0.0/16", "admit 0: 10.2.0.0/16", "settings 0: 12"]
    );
    assert_eq!(bench.bring(ANY_ENDPOINTS, &[1], &[], &[1]), [""; 0]);
    // From one list to another: who is in both is admitted all the time. The endpoints change meanwhile.
    bench.sources = vec![2, 3];
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1, 2], &[], &[1]),
        ["slots 1+2", "admit 0: 10.3.0.0/16", "range 0: Cluster 1+2", "no longer admit 0: 10.1.0.0/16"]
    );
    bench.sources.clear();
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1], &[], &[1]),
        [
            "slots 3+1",
            "settings 0: 4",
            "range 0: Cluster 3+1",
            "no longer admit 0: 10.2.0.0/16",
            "no longer admit 0: 10.3.0.0/16",
        ]
    );
    assert_eq!(bench.actual.source_range_count(), 0);
}

#[test]
fn a_new_record_has_its_source_ranges_before_anything_leads_there_and_the_old_one_keeps_its_own() {
    let mut bench = Bench::new();
    bench.sources = vec![1];
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1], &[], &[1, 2]),
        [
            "slots 0+1",
            "admit 0: 10.1.0.0/16",
            "record 0: cluster 0+1 local 0+0 flags 12",
            "frontend 10.96.0.1 → 0",
            "frontend 10.96.0.2 → 0",
        ]
    );
    // Frontend 2 is another's now, and its clients are judged as before until that one has written it.
    bench.sources = vec![2];
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[1], &[], &[1]),
        [
            "slots 1+1",
            "admit 1: 10.2.0.0/16",
            "record 1: cluster 1+1 local 0+0 flags 12",
            "frontend 10.96.0.1 → 1",
        ]
    );
    assert_eq!(bench.actual.unused_source_ranges().count(), 0);
    bench.actual.note(&Write::DeleteFrontend { key: key(2) });
    let unused: Vec<_> = bench.actual.unused_source_ranges().map(|(record, _)| record).collect();
    assert_eq!(unused, [0]);
    assert!(bench.actual.has_retired());
}

#[test]
fn source_ranges_that_do_not_fit_leave_everything_as_it_is() {
    let mut bench = Bench::new();
    bench.sources = (1..=6).collect();
    bench.bring(ANY_ENDPOINTS, &[1], &[], &[1]);
    let before = bench.slots();
    bench.sources = (1..=9).collect();
    let no_room = bench.plan(ANY_ENDPOINTS, &[1, 2], &[], &[1]).unwrap_err();
    assert_eq!(no_room, NoRoom::SourceRanges(3));
    assert!(!no_room.may_fit(&bench.actual));
    bench.record = None;
    bench.sources = (7..=9).collect();
    assert_eq!(bench.plan(ANY_ENDPOINTS, &[2], &[], &[9]), Err(NoRoom::SourceRanges(3)));
    assert_eq!((bench.slots(), bench.actual.records().free()), (before, 2));

    // A plan that fails half-way leaves ranges at a free record: a grace period is worth its while.
    bench.sources = vec![7, 8];
    let plan = bench.plan(ANY_ENDPOINTS, &[2], &[], &[9]).unwrap();
    bench.carry_out(&plan, 3);
    assert!(bench.actual.record(plan.record).is_none());
    let helped = [2, 3].map(|count| NoRoom::SourceRanges(count).is_helped_by_grace(&bench.actual));
    assert_eq!(helped, [true, false]);
    // Or the next plan for that record makes do with them.
    bench.sources = vec![8];
    assert_eq!(
        bench.bring(ANY_ENDPOINTS, &[2], &[], &[9]),
        [
            "slots 1+1",
            "no longer admit 1: 10.7.0.0/16",
            "record 1: cluster 1+1 local 0+0 flags 12",
            "frontend 10.96.0.9 → 1",
        ]
    );
}
