//! Many whole numbers in little memory.

use std::iter;

use smallvec::SmallVec;

use crate::compact::put_integer;
use crate::sys;

/// Numbers that wait at least, before they are put with the others.
pub(super) const WAITING: usize = 32;

/// Whole numbers in ascending order, each as its distance from the one before: one to five bytes,
/// for the values of a histogram about two. New ones wait, and are put with the others together.
#[derive(Clone, Debug, Default)]
pub(super) struct Sorted {
    /// As [`put_integer`] writes them.
    gaps: Vec<u8>,
    /// How many these are.
    settled: usize,
    waiting: Vec<i32>,
}

impl Sorted {
    pub(super) fn of(numbers: &[i32]) -> Self {
        let mut sorted = Self { waiting: numbers.to_vec(), ..Self::default() };
        sorted.settle();
        sorted
    }

    pub(super) fn push(&mut self, number: i32) {
        if self.waiting.len() == self.waiting.capacity() {
            self.settle();
        }
        self.waiting.push(number);
    }

    pub(super) const fn len(&self) -> usize {
        self.settled + self.waiting.len()
    }

    /// Gives each, ascending.
    pub(super) fn each(&self, give: impl FnMut(i32)) {
        let mut waiting = SmallVec::<[i32; 2 * WAITING]>::from_slice(&self.waiting);
        waiting.sort_unstable();
        merged(&self.gaps, &waiting).for_each(give);
    }

    /// Has the place of the next number fetched into the cache, or what leads there.
    pub(super) fn prefetch(&self) {
        sys::prefetch(self);
    }

    /// Puts those that wait with the others.
    #[cold]
    fn settle(&mut self) {
        self.waiting.sort_unstable();
        let mut gaps = Vec::with_capacity(self.gaps.len() + 5 * self.waiting.len());
        let mut last = i32::MIN;
        for number in merged(&self.gaps, &self.waiting) {
            put_integer(&mut gaps, number.wrapping_sub(last).cast_unsigned().into());
            last = number;
        }
        gaps.shrink_to_fit();
        self.gaps = gaps;
        self.settled += self.waiting.len();
        self.waiting.clear();
        // The more there are, the seldomer: so that each is written anew ten times or so.
        let room = WAITING.max(self.settled / 8);
        self.waiting.shrink_to(room);
        self.waiting.reserve_exact(room);
    }
}

/// Numbers by their gaps, and others, both ascending.
fn merged(gaps: &[u8], others: &[i32]) -> impl Iterator<Item = i32> {
    let mut bytes = gaps.iter();
    let mut last = i32::MIN;
    let mut settled = iter::from_fn(move || {
        let (mut gap, mut shift) = (0, 0);
        loop {
            let byte = *bytes.next()?;
            gap |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
            shift += 7;
        }
        last = last.wrapping_add(gap.cast_signed());
        Some(last)
    });
    let mut next = settled.next();
    let mut others = others.iter().copied().peekable();
    iter::from_fn(move || match next {
        Some(number) if others.peek().is_none_or(|&other| number <= other) => {
            next = settled.next();
            Some(number)
        }
        _ => others.next(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(sorted: &Sorted) -> Vec<i32> {
        let mut all = Vec::new();
        sorted.each(|number| all.push(number));
        assert_eq!(all.len(), sorted.len());
        all
    }

    #[test]
    fn latencies_take_about_two_bytes() {
        let mut sorted = Sorted::default();
        // Up to a second, in hundredths of a millisecond.
        (0..256).for_each(|n: i32| sorted.push(n * 7919 % 100_000 * 10));
        let bytes = sorted.gaps.capacity() + 4 * sorted.waiting.capacity();
        assert!(bytes <= 640, "{bytes} bytes");
    }

    proptest! {
        #[test]
        fn all_are_given_in_their_order(
            few in prop::collection::vec(any::<i32>(), 0..50),
            many in prop::collection::vec(prop_oneof![any::<i32>(), -9..9i32], 0..1500),
        ) {
            let mut sorted = Sorted::of(&few);
            many.iter().for_each(|&number| sorted.push(number));
            let mut twin = [few, many].concat();
            twin.sort_unstable();
            prop_assert_eq!(all(&sorted), twin);
        }
    }
}
