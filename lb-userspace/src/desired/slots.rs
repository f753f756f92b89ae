//! Which slots of `BACKENDS` are free.
//!
//! A set takes consecutive slots. A replaced set is *retired*: a program that loaded its range may still read it, so its
//! slots are free only after a grace period. The smallest free run that is large enough is taken (best fit, then lowest),
//! and neighbouring free runs become one: large runs stay for large sets.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::service::Range;

/// The free and the retired slots; all others are in use.
#[derive(Debug)]
pub struct Slots {
    capacity: u32,
    /// First slot → count of each free run. No two touch.
    free: BTreeMap<u32, u32>,
    /// The same as (count, first slot).
    by_count: BTreeSet<(u32, u32)>,
    free_count: u32,
    retired: Vec<Range>,
    retired_count: u32,
}

impl Slots {
    /// All slots free.
    pub fn new(capacity: u32) -> Self {
        let mut slots = Self {
            capacity,
            free: BTreeMap::new(),
            by_count: BTreeSet::new(),
            free_count: 0,
            retired: Vec::new(),
            retired_count: 0,
        };
        slots.release(Range { first: 0, count: capacity });
        slots
    }

    /// Takes `count` consecutive free slots; the empty range for zero. None: there is no such run.
    pub fn allocate(&mut self, count: u32) -> Option<Range> {
        if count == 0 {
            return Some(Range::EMPTY);
        }
        let (run, first) = *self.by_count.range((count, 0)..).next()?;
        self.remove_run(first, run);
        if run > count {
            self.insert_run(first + count, run - count);
        }
        self.free_count -= count;
        Some(Range { first, count })
    }

    /// Frees slots that no program can have seen.
    pub fn release(&mut self, range: Range) {
        if range.count == 0 {
            return;
        }
        self.free_count += range.count;
        let (mut first, mut end) = (range.first, range.first + range.count);
        if let Some((&before, &count)) = self.free.range(..first).next_back()
            && before + count == first
        {
            self.remove_run(before, count);
            first = before;
        }
        if let Some(&count) = self.free.get(&end) {
            self.remove_run(end, count);
            end += count;
        }
        self.insert_run(first, end - first);
    }

    /// Sets slots aside that no range leads to any more, until a grace period has passed.
    pub fn retire(&mut self, range: Range) {
        if range.count != 0 {
            self.retired_count += range.count;
            self.retired.push(range);
        }
    }

    /// After a grace period: frees all that was retired, and says what.
    pub fn free_retired(&mut self) -> Vec<Range> {
        let retired = std::mem::take(&mut self.retired);
        self.retired_count = 0;
        for range in &retired {
            self.release(*range);
        }
        retired
    }

    /// The slots that are used, when all that are free or retired are known: after a restart.
    ///
    /// `used` must not overlap. Nothing is free: what ran before may still read what it left behind.
    pub fn adopt(capacity: u32, used: &BTreeSet<Range>) -> Self {
        let mut slots = Self { free_count: 0, ..Self::new(0) };
        slots.capacity = capacity;
        let mut next = 0;
        for range in used {
            slots.retire(Range { first: next, count: range.first - next });
            next = range.first + range.count;
        }
        slots.retire(Range { first: next, count: capacity - next });
        slots
    }

    /// Slots that can be taken at once, if their runs are long enough.
    pub fn free(&self) -> u32 {
        self.free_count
    }

    /// Slots that wait for a grace period.
    pub fn retired(&self) -> u32 {
        self.retired_count
    }

    /// Slots in use.
    pub fn used(&self) -> u32 {
        self.capacity - self.free_count - self.retired_count
    }

    fn insert_run(&mut self, first: u32, count: u32) {
        self.free.insert(first, count);
        self.by_count.insert((count, first));
    }

    fn remove_run(&mut self, first: u32, count: u32) {
        self.free.remove(&first);
        self.by_count.remove(&(count, first));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u32, count: u32) -> Range {
        Range { first, count }
    }

    #[test]
    fn takes_the_smallest_run_that_fits() {
        let mut slots = Slots::new(20);
        let taken: Vec<_> = [4, 1, 2, 1].into_iter().map(|count| slots.allocate(count).unwrap()).collect();
        assert_eq!(taken, [range(0, 4), range(4, 1), range(5, 2), range(7, 1)]);
        slots.release(range(0, 4));
        slots.release(range(5, 2));
        assert_eq!(slots.allocate(2), Some(range(5, 2)));
        assert_eq!(slots.allocate(3), Some(range(0, 3)));
        assert_eq!(slots.allocate(13), None);
        assert_eq!(slots.allocate(12), Some(range(8, 12)));
    }

    #[test]
    fn neighbours_become_one_run() {
        let mut slots = Slots::new(9);
        for _ in 0..3 {
            slots.allocate(3).unwrap();
        }
        slots.release(range(0, 3));
        slots.release(range(6, 3));
        assert_eq!(slots.allocate(4), None);
        slots.release(range(3, 3));
        assert_eq!(slots.allocate(9), Some(range(0, 9)));
    }

    #[test]
    fn retired_slots_are_free_only_after_a_grace_period() {
        let mut slots = Slots::new(4);
        let set = slots.allocate(4).unwrap();
        slots.retire(set);
        assert_eq!((slots.free(), slots.retired(), slots.used()), (0, 4, 0));
        assert_eq!(slots.allocate(1), None);
        assert_eq!(slots.free_retired(), [set]);
        assert_eq!(slots.allocate(4), Some(set));
    }

    #[test]
    fn an_empty_set_takes_no_slot() {
        let mut slots = Slots::new(0);
        assert_eq!(slots.allocate(0), Some(Range::EMPTY));
        slots.retire(Range::EMPTY);
        assert_eq!(slots.free_retired(), []);
    }

    #[test]
    fn after_a_restart_all_that_is_not_used_waits_for_a_grace_period() {
        let mut slots = Slots::adopt(10, &BTreeSet::from([range(2, 3), range(5, 1), range(8, 2)]));
        assert_eq!((slots.free(), slots.retired(), slots.used()), (0, 4, 6));
        assert_eq!(slots.free_retired(), [range(0, 2), range(6, 2)]);
        assert_eq!(slots.allocate(2), Some(range(0, 2)));
    }

    proptest! {
        /// Against a plain list of slots: nothing is given twice, nothing is lost, and what fits is found.
        #[test]
        fn never_gives_a_slot_twice_and_finds_what_fits(
            steps in proptest::collection::vec((0..4u8, 1..12u32), 1..120)
        ) {
            const CAPACITY: u32 = 64;
            #[derive(Clone, Copy, PartialEq)]
            enum State { Free, Used, Retired }
            let mut model = [State::Free; CAPACITY as usize];
            let mut slots = Slots::new(CAPACITY);
            let mut sets = Vec::new();
            for (step, number) in steps {
                match step {
                    0 | 1 => {
                        let fits = model.windows(number as usize).any(|w| w.iter().all(|s| *s == State::Free));
                        let set = slots.allocate(number);
                        prop_assert_eq!(set.is_some(), fits);
                        if let Some(set) = set {
                            prop_assert_eq!(set.count, number);
                            for slot in set.slots() {
                                prop_assert!(model[slot as usize] == State::Free);
                                model[slot as usize] = State::Used;
                            }
                            sets.push(set);
                        }
                    }
                    2 if !sets.is_empty() => {
                        let set = sets.swap_remove(number as usize % sets.len());
                        let to = if number % 2 == 0 { State::Free } else { State::Retired };
                        if to == State::Free { slots.release(set) } else { slots.retire(set) }
                        set.slots().for_each(|slot| model[slot as usize] = to);
                    }
                    _ => {
                        slots.free_retired();
                        for slot in model.iter_mut().filter(|slot| **slot == State::Retired) {
                            *slot = State::Free;
                        }
                    }
                }
                let count = |state| model.iter().filter(|slot| **slot == state).count() as u32;
                prop_assert_eq!(slots.free(), count(State::Free));
                prop_assert_eq!(slots.retired(), count(State::Retired));
                prop_assert_eq!(slots.used(), count(State::Used));
            }
        }
    }
}
