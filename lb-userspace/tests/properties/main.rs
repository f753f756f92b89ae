//! Properties of the whole pipeline on a store in memory: any order of events, failing writes, restarts, full maps.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod answers;
mod crash;
mod generate;
mod model;
mod oracle;
mod watch;
mod world;

use std::collections::BTreeMap;

use lb_userspace::{
    model::Change,
    pipeline::{Pipeline, SyncReport},
    store::{Capacity, Store, checked::CheckedStore, dump::dump, fake::FakeStore, faulty::FaultyStore},
};
use proptest::{collection::vec, prelude::*};

use crate::{
    crash::Mortal,
    generate::{action, change_of_two_services, operator},
    model::Model,
    watch::Watch,
    world::{Action, Operator, World},
};

const ROOMY: Capacity = Capacity {
    frontends: 256,
    services: 64,
    backends: 1024,
    source_ranges: 128,
    maglev: 1 << 17,
    node_addresses: 64,
};

type TestStore = Watch<Mortal<FaultyStore<CheckedStore<FakeStore>>>>;

/// A world, the pipeline that follows it, and the store that it writes.
struct Run {
    world: World,
    pipeline: Pipeline,
    store: TestStore,
}

impl Run {
    fn new(capacity: Capacity, failing_percent: u8, seed: u64) -> Self {
        Self::with(Operator::default(), capacity, failing_percent, seed)
    }

    fn with(operator: Operator, capacity: Capacity, failing_percent: u8, seed: u64) -> Self {
        let checked = CheckedStore::new(FakeStore::new(capacity)).unwrap();
        let store = Watch::new(Mortal::new(FaultyStore::new(checked, failing_percent, seed)));
        let pipeline = Pipeline::new(operator.settings(), capacity);
        let mut run = Self { world: World::new(operator), pipeline, store };
        run.tell_all();
        run
    }

    fn tell_all(&mut self) {
        for change in self.world.initial() {
            self.pipeline.apply(change);
        }
    }

    fn act(&mut self, action: &Action) {
        if let Some(change) = self.world.apply(action) {
            self.pipeline.apply(change);
        }
        match action {
            Action::Sync => {
                self.sync();
            }
            Action::Reclaim => {
                // A failing one is as good as none.
                let _outcome = self.pipeline.reclaim(&mut self.store);
            }
            Action::Restart => self.restart(),
            _ => {}
        }
        self.restart_if_dead();
    }

    /// The agent has died: the next one knows nothing but the tables and what the sources say.
    fn restart_if_dead(&mut self) {
        if self.store.inner.is_dead() {
            self.store.inner.revive();
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.pipeline = Pipeline::new(self.world.operator.settings(), self.store.capacity());
        self.pipeline.adopt(self.store.read().unwrap());
        self.tell_all();
    }

    fn sync(&mut self) -> SyncReport {
        self.store.intend(oracle::meanings(&self.world));
        let report = self.pipeline.sync(&mut self.store);
        if report.dirty == 0 && report.blocked == 0 {
            self.store.settle();
        }
        report
    }

    /// Syncs until nothing is left to do.
    fn converge(&mut self) -> SyncReport {
        for _ in 0..200 {
            let report = self.sync();
            if report.dirty == 0 {
                return report;
            }
            self.restart_if_dead();
        }
        panic!("does not converge: {:?}", self.pipeline.problems());
    }

    fn dump(&self) -> String {
        dump(&self.store.read().unwrap(), &self.pipeline.record_names())
    }
}

fn checked(run: &Run) -> Result<(), TestCaseError> {
    let store = run.store.inner_checked();
    prop_assert_eq!(store.violations(), &[] as &[String]);
    prop_assert_eq!(&run.store.violations, &[] as &[String]);
    Ok(())
}

proptest! {
    // PROPTEST_CASES sets how many.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events_ends_in_what_the_objects_mean(actions in vec(action(), 1..60)) {
        let mut run = Run::new(ROOMY, 0, 0);
        for action in actions.iter().chain([&Action::Sync]) {
            run.act(action);
            checked(&run)?;
            if matches!(action, Action::Sync) {
                prop_assert_eq!(run.dump(), oracle::dump(&run.world));
                prop_assert_eq!(run.sync().written, 0, "a second sync has nothing to write");
            }
        }
    }

    /// Two Services that compete for addresses, with everything of both changing at once.
    #[test]
    fn no_client_ever_meets_what_was_not_intended(
        steps in vec(change_of_two_services(), 2..12), percent in prop_oneof![Just(0u8), Just(20)], seed in any::<u64>()
    ) {
        let mut run = Run::new(ROOMY, percent, seed);
        for step in &steps {
            for action in step {
                run.act(action);
            }
            run.sync();
            checked(&run)?;
        }
        run.converge();
        checked(&run)?;
    }

    #[test]
    fn failing_writes_delay_but_change_nothing(
        actions in vec(action(), 1..60), percent in 1..50u8, seed in any::<u64>()
    ) {
        let mut run = Run::new(ROOMY, percent, seed);
        for action in &actions {
            run.act(action);
            checked(&run)?;
        }
        run.converge();
        checked(&run)?;
        prop_assert_eq!(run.dump(), oracle::dump(&run.world));
        prop_assert_eq!(run.pipeline.summary().dirty, 0);
    }

    #[test]
    fn a_restart_without_change_writes_nothing(actions in vec(action(), 1..40)) {
        let mut run = Run::new(ROOMY, 0, 0);
        for action in &actions {
            run.act(action);
        }
        run.converge();
        let before = run.store.read().unwrap();
        run.restart();
        let report = run.sync();
        prop_assert_eq!(report.written, 0, "{:?}", report);
        prop_assert_eq!(run.store.read().unwrap(), before);
        prop_assert_eq!(run.dump(), oracle::dump(&run.world));
        checked(&run)?;
    }

    #[test]
    fn a_relist_without_change_writes_nothing(actions in vec(action(), 1..40)) {
        let mut run = Run::new(ROOMY, 0, 0);
        for action in &actions {
            run.act(action);
        }
        run.converge();
        for change in run.world.initial() {
            run.pipeline.apply(change);
        }
        prop_assert_eq!(run.sync().written, 0);
    }

    /// Full maps: the rules hold, what fits is in force, and when all is gone everything is free again.
    #[test]
    fn full_maps_harm_nothing_that_fits(
        actions in vec(action(), 1..60), frontends in 1..20u32, services in 1..8u32, backends in 1..24u32,
        source_ranges in 1..24u32,
        percent in prop_oneof![Just(0u8), Just(20)], seed in any::<u64>()
    ) {
        let capacity = Capacity { frontends, services, backends, source_ranges, maglev: 2_500, node_addresses: 3 };
        let mut run = Run::new(capacity, percent, seed);
        for action in &actions {
            run.act(action);
            prop_assert_eq!(run.store.inner_checked().violations(), &[] as &[String]);
        }
        let report = run.converge();
        prop_assert_eq!(run.store.inner_checked().violations(), &[] as &[String]);
        let blocked = blocked_services(&run);
        prop_assert_eq!(blocked.is_empty(), report.blocked == 0);
        if blocked.is_empty() {
            prop_assert_eq!(frontend_lines(&run.dump()), frontend_lines(&oracle::dump(&run.world)));
        }
        // The services that fit are in force as they are without the others' lack.
        let dumped = run.dump();
        let wanted = oracle::dump(&run.world);
        for line in frontend_lines(&wanted).lines().filter(|line| !is_of(line, &blocked)) {
            prop_assert!(dumped.contains(line), "missing: {}\nin:\n{}", line, dumped);
        }
        run.world.objects.clear();
        run.tell_all();
        run.converge();
        // Whatever is retired still, a grace period frees it.
        while run.pipeline.reclaim(&mut run.store).is_err() {}
        let summary = run.pipeline.summary();
        prop_assert_eq!((summary.slots.used, summary.slots.retired), (0, 0));
        prop_assert_eq!((summary.frontends.used, summary.backends), (0, 0));
        prop_assert_eq!(summary.records.used, 0);
        // Deleting what is left over may fail, too, and is tried again.
        while run.pipeline.sync(&mut run.store).retired {
            let _outcome = run.pipeline.reclaim(&mut run.store);
        }
        prop_assert_eq!(run.store.read().unwrap().source_ranges, BTreeMap::new());
    }
}

impl TestStore {
    fn inner_checked(&self) -> &CheckedStore<FakeStore> {
        self.inner.inner.inner()
    }
}

/// The Services that problems say do not fit, wholly or but for a table.
fn blocked_services(run: &Run) -> Vec<String> {
    let lacks = |what: &str| {
        what.starts_with("does not fit") || what.starts_with("its backends are chosen at random")
    };
    let problems = run.pipeline.problems().into_iter().filter(|problem| lacks(&problem.what));
    problems.filter_map(|problem| problem.object.strip_prefix("Service ").map(str::to_owned)).collect()
}

fn frontend_lines(dump: &str) -> String {
    let is_frontend = |line: &&str| !line.starts_with("node address") && !line.ends_with(" OtherProxy\n");
    dump.split_inclusive('\n').filter(is_frontend).collect()
}

fn is_of(line: &str, services: &[String]) -> bool {
    services.iter().any(|service| [":", " "].iter().any(|end| line.contains(&format!(" {service}{end}"))))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn model_and_tables_agree_whatever_happens_in_whatever_order_1(history in history()) {
        agree_throughout(&history)?;
    }

    #[test]
    fn model_and_tables_agree_whatever_happens_in_whatever_order_2(history in history()) {
        agree_throughout(&history)?;
    }

    #[test]
    fn model_and_tables_agree_whatever_happens_in_whatever_order_3(history in history()) {
        agree_throughout(&history)?;
    }

    #[test]
    fn model_and_tables_agree_whatever_happens_in_whatever_order_4(history in history()) {
        agree_throughout(&history)?;
    }
}

/// A random configuration, and what happens to it.
#[derive(Clone, Debug)]
struct History {
    operator: Operator,
    actions: Vec<Action>,
    order: u64,
}

fn history() -> impl Strategy<Value = History> {
    (operator(), vec(action(), 1..40), any::<u64>()).prop_map(|(operator, actions, order)| History {
        operator,
        actions,
        order,
    })
}

/// The model, the pipeline and the tables read back say the same at the end of a history, whatever of it was written
/// together; and so they do if everything is told one by one in another order.
fn agree_throughout(history: &History) -> Result<(), TestCaseError> {
    let mut run = Run::with(history.operator.clone(), ROOMY, 0, 0);
    for action in &history.actions {
        run.act(action);
    }
    run.converge();
    checked(&run)?;
    let model = Model::of(&run.world);
    answers::agree(&model, &run.store.read().unwrap())?;
    prop_assert_eq!(run.dump(), oracle::dump(&run.world));
    let mut pipeline = Pipeline::new(history.operator.settings(), ROOMY);
    let mut store = FakeStore::new(ROOMY);
    for change in run.world.one_by_one(history.order) {
        pipeline.apply(change);
        pipeline.sync(&mut store);
    }
    prop_assert_eq!(dump(&store.read().unwrap(), &pipeline.record_names()), run.dump());
    Ok(())
}

#[test]
fn nothing_is_written_before_every_kind_has_been_listed() {
    let world = World::new(Operator::default());
    let mut pipeline = Pipeline::new(world.operator.settings(), ROOMY);
    let mut store = FakeStore::new(ROOMY);
    for change in world.initial() {
        assert!(!pipeline.is_synced());
        assert_eq!(pipeline.sync(&mut store).written, 0);
        pipeline.apply(change);
    }
    assert!(pipeline.is_synced());
    pipeline.apply(Change::Connected(false));
    assert!(pipeline.is_synced());
}
