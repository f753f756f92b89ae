//! Which records of `SERVICES` are free.
//!
//! Like slots, a record that no frontend leads to any more is retired until a grace period has passed.

use std::collections::BTreeSet;

/// The free and the retired records; all others are in use.
#[derive(Debug)]
pub struct RecordIndices {
    capacity: u32,
    /// From here on, no record was ever used.
    untouched: u32,
    /// Free ones below `untouched`.
    free: BTreeSet<u32>,
    retired: BTreeSet<u32>,
}

impl RecordIndices {
    /// All records free.
    pub fn new(capacity: u32) -> Self {
        Self { capacity, untouched: 0, free: BTreeSet::new(), retired: BTreeSet::new() }
    }

    /// The records that are in use after a restart; all others are free.
    pub fn adopt(capacity: u32, used: impl Iterator<Item = u32>) -> Self {
        let mut indices = Self::new(capacity);
        for index in used {
            while indices.untouched < index {
                indices.free.insert(indices.untouched);
                indices.untouched += 1;
            }
            indices.free.remove(&index);
            indices.untouched = indices.untouched.max(index + 1);
        }
        indices
    }

    /// Takes the lowest free record.
    pub fn allocate(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop_first() {
            return Some(index);
        }
        if self.untouched == self.capacity {
            return None;
        }
        self.untouched += 1;
        Some(self.untouched - 1)
    }

    /// Frees a record that no program can have seen, or a retired one after a grace period.
    pub fn release(&mut self, index: u32) {
        self.retired.remove(&index);
        self.free.insert(index);
    }

    /// Sets a record aside until a grace period has passed.
    pub fn retire(&mut self, index: u32) {
        self.retired.insert(index);
    }

    /// The records that wait for a grace period.
    pub fn retired(&self) -> impl ExactSizeIterator<Item = u32> {
        self.retired.iter().copied()
    }

    /// How many can be taken at once.
    pub fn free(&self) -> u32 {
        self.capacity - self.untouched + self.free.len() as u32
    }

    /// How many are in use.
    pub fn used(&self) -> u32 {
        self.untouched - self.free.len() as u32 - self.retired.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(indices: &RecordIndices) -> (u32, u32, usize) {
        (indices.used(), indices.free(), indices.retired().len())
    }

    #[test]
    fn gives_the_lowest_free_record_until_none_is_left() {
        let mut indices = RecordIndices::new(3);
        assert_eq!([(); 4].map(|()| indices.allocate()), [Some(0), Some(1), Some(2), None]);
        indices.release(2);
        indices.release(1);
        assert_eq!(counts(&indices), (1, 2, 0));
        assert_eq!(indices.allocate(), Some(1));
    }

    #[test]
    fn a_retired_record_is_not_given_until_it_is_released() {
        let mut indices = RecordIndices::new(1);
        indices.allocate();
        indices.retire(0);
        assert_eq!(counts(&indices), (0, 0, 1));
        assert_eq!(indices.allocate(), None);
        indices.release(0);
        assert_eq!(counts(&indices), (0, 1, 0));
        assert_eq!(indices.allocate(), Some(0));
    }

    #[test]
    fn keeps_what_is_in_use_after_a_restart() {
        let mut indices = RecordIndices::adopt(6, [1, 4].into_iter());
        assert_eq!(counts(&indices), (2, 4, 0));
        assert_eq!([(); 5].map(|()| indices.allocate()), [Some(0), Some(2), Some(3), Some(5), None]);
    }
}
