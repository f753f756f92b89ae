//! The agent dies between any two writes, and another one takes over what the tables hold.

use std::{collections::VecDeque, io};

use lb_userspace::store::{Capacity, Store, StoreError, Tables, Write};
use proptest::{collection::vec, prelude::*};

use crate::{
    Run, answers, checked,
    generate::{action, change_of_two_services},
    model::Model,
    oracle,
    world::Action,
};

/// A store whose writer dies: after so many writes that succeed nothing reaches it any more, until another one begins.
pub(crate) struct Mortal<S> {
    pub(crate) inner: S,
    /// The writes that each writer lives to see; the last one lives on.
    lives: VecDeque<usize>,
    pub(crate) written: usize,
}

impl<S> Mortal<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, lives: VecDeque::new(), written: 0 }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.lives.front() == Some(&0)
    }

    /// Another writer begins.
    pub(crate) fn revive(&mut self) {
        if self.is_dead() {
            self.lives.pop_front();
        }
    }
}

impl<S: Store> Store for Mortal<S> {
    fn capacity(&self) -> Capacity {
        self.inner.capacity()
    }

    fn apply(&mut self, write: &Write) -> Result<(), StoreError> {
        if self.is_dead() {
            let source = io::Error::other("the writer is dead");
            return Err(StoreError::Kernel { map: "any", operation: "write", source });
        }
        self.inner.apply(write)?;
        self.written += 1;
        if let Some(life) = self.lives.front_mut() {
            *life -= 1;
        }
        Ok(())
    }

    fn read(&self) -> Result<Tables, StoreError> {
        self.inner.read()
    }
}

/// Lives through all of it with these deaths on the way. The number of writes.
fn live_through(
    actions: &[Action],
    failing_percent: u8,
    seed: u64,
    lives: &[usize],
) -> Result<usize, TestCaseError> {
    let mut run = Run::new(crate::ROOMY, failing_percent, seed);
    run.store.inner.lives = lives.iter().copied().collect();
    for action in actions {
        run.act(action);
        // Each write was looked at: no client was refused or led elsewhere in between.
        checked(&run)?;
    }
    run.converge();
    checked(&run)?;
    prop_assert_eq!(run.dump(), oracle::dump(&run.world));
    answers::agree(&Model::of(&run.world), &run.store.read().unwrap())?;
    Ok(run.store.inner.written)
}

/// Dies after every single write in turn, and a second time soon after.
fn die_everywhere(actions: &[Action], failing_percent: u8, seed: u64) -> Result<(), TestCaseError> {
    let writes = live_through(actions, failing_percent, seed, &[])?;
    for life in 1..writes {
        live_through(actions, failing_percent, seed, &[life, 1 + life % 5])?;
    }
    Ok(())
}

fn synced(steps: Vec<Vec<Action>>) -> Vec<Action> {
    steps.into_iter().flat_map(|step| step.into_iter().chain([Action::Sync])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_death_after_any_write_harms_no_client_of_two_services_that_compete(
        steps in vec(change_of_two_services(), 2..6), percent in prop_oneof![Just(0u8), Just(10)], seed in any::<u64>()
    ) {
        die_everywhere(&synced(steps), percent, seed)?;
    }

    #[test]
    fn a_death_after_any_write_harms_no_client_whatever_happens(
        actions in vec(action(), 1..24), percent in prop_oneof![Just(0u8), Just(10)], seed in any::<u64>()
    ) {
        die_everywhere(&actions, percent, seed)?;
    }
}
