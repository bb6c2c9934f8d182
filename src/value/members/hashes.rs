//! A set of hashes of 64 bits.
//!
//! A table of our own, so that a place can be fetched into the cache ahead of its use, and since a
//! hash stands for itself and so needs nothing beside it: open addressing by the lowest bits, seven
//! eighths of the slots in use at most.

use crate::sys;

/// A slot without a hash. The hash of this number, one of 2^64, is taken for its neighbour.
const EMPTY: u64 = 0;

/// Slots of the smallest table.
const SLOTS_MIN: usize = 4;

#[derive(Clone, Debug, Default)]
pub struct Hashes {
    /// A power of two of them, or none.
    slots: Box<[u64]>,
    len: usize,
}

/// The hash is not there, and has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Hashes {
    pub fn new() -> Self {
        Self::default()
    }

    /// With places for so many.
    pub fn with_capacity(n: usize) -> Self {
        let mut hashes = Self::new();
        while hashes.capacity() < n {
            hashes.grow();
        }
        hashes
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// How many have a place.
    pub const fn capacity(&self) -> usize {
        self.slots.len() - self.slots.len().div_ceil(8)
    }

    /// What it takes in memory.
    pub const fn bytes(&self) -> usize {
        size_of_val(&*self.slots)
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().copied().filter(|&held| held != EMPTY)
    }

    /// Adds one, if it is not there.
    ///
    /// # Errors
    /// [`Full`] when there would be more than `max`, or than have a place: see [`Self::grow`].
    pub fn insert(&mut self, hash: u64, max: usize) -> Result<(), Full> {
        let hash = hash.max(EMPTY + 1);
        let mask = self.slots.len().checked_sub(1).ok_or(Full)?;
        let mut at = hash as usize & mask;
        // At least one of them is empty.
        while self.slots[at] != EMPTY {
            if self.slots[at] == hash {
                return Ok(());
            }
            at = (at + 1) & mask;
        }
        if self.len >= max.min(self.capacity()) {
            return Err(Full);
        }
        self.slots[at] = hash;
        self.len += 1;
        Ok(())
    }

    /// Takes twice as many slots.
    pub fn grow(&mut self) {
        let slots = (2 * self.slots.len()).max(SLOTS_MIN);
        let before = std::mem::replace(&mut self.slots, vec![EMPTY; slots].into());
        self.len = 0;
        for hash in before.into_iter().filter(|&held| held != EMPTY) {
            let placed = self.insert(hash, usize::MAX);
            debug_assert_eq!(placed, Ok(()), "twice the slots have a place for each");
        }
    }

    /// Has the place of a hash fetched into the cache.
    pub fn prefetch(&self, hash: u64) {
        let mask = self.slots.len().wrapping_sub(1);
        self.slots.get(hash as usize & mask).into_iter().for_each(sys::prefetch);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn seven_of_eight_slots_are_used() {
        let mut hashes = Hashes::new();
        assert_eq!(hashes.insert(7, 9), Err(Full));
        for (capacity, bytes) in [(3, 32), (7, 64), (14, 128), (28, 256)] {
            hashes.grow();
            assert_eq!((hashes.capacity(), hashes.bytes()), (capacity, bytes));
            (1..=capacity as u64).for_each(|n| assert_eq!(hashes.insert(n << 32, 99), Ok(())));
            assert_eq!(hashes.insert(99 << 32, 99), Err(Full), "all of them have one home");
            assert_eq!(hashes.insert(1 << 32, 0), Ok(()), "it is there");
            assert_eq!(hashes.len(), capacity);
        }
        assert_eq!(Hashes::with_capacity(896).bytes(), 8192);
        assert_eq!(Hashes::with_capacity(0).bytes(), 0);
    }

    #[test]
    fn a_limit_is_kept() {
        let mut hashes = Hashes::with_capacity(7);
        (1..=5).for_each(|n| assert_eq!(hashes.insert(n, 5), Ok(())));
        assert_eq!(hashes.insert(6, 5), Err(Full));
    }

    #[test]
    fn the_hash_that_is_no_hash_has_a_place() {
        let mut hashes = Hashes::with_capacity(3);
        assert_eq!(hashes.insert(0, 3), Ok(()));
        assert_eq!(hashes.iter().collect::<Vec<_>>(), [1]);
    }

    proptest! {
        /// Small numbers, so that homes are shared and taken by others.
        #[test]
        fn holds_what_was_added(added in prop::collection::vec(1..64u64, 0..100)) {
            let mut hashes = Hashes::new();
            for &hash in &added {
                if hashes.insert(hash, usize::MAX) == Err(Full) {
                    hashes.grow();
                    prop_assert_eq!(hashes.insert(hash, usize::MAX), Ok(()));
                }
            }
            prop_assert_eq!(hashes.iter().collect::<HashSet<_>>(), added.into_iter().collect());
            prop_assert_eq!(hashes.len(), hashes.iter().count());
        }
    }
}
