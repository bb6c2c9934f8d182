//! Counts by key: where sketches and large histograms keep their values.

use std::ops::Range;

use crate::compact::{Input, Malformed, put_integer};

/// Keys of a block. Counters of a block lie side by side.
const BLOCK: usize = 16;

/// The highest key; the lowest is its negative.
pub const KEY_MAX: i32 = i16::MAX as i32 * BLOCK as i32;

/// How often each key was counted.
///
/// Only blocks of 16 neighbouring keys that hold something exist, and counters are as wide as the
/// largest needs (from 4 bits to 64), so that nearby keys take little more than half a byte each and
/// keys far apart a block each.
#[derive(Clone, Debug, Default)]
pub struct Bins {
    /// The keys of each block divided by `BLOCK`, ascending.
    blocks: Vec<i16>,
    /// `BLOCK` little-endian counters of each block.
    counters: Vec<u8>,
    /// How often the 4 bits of a counter were doubled.
    width: u8,
    /// Keys with a count.
    len: u32,
}

impl Bins {
    /// Without any.
    pub const fn new() -> Self {
        Self { blocks: Vec::new(), counters: Vec::new(), width: 0, len: 0 }
    }

    /// Counts a key `n` times more; a count stays at the highest of 64 bits.
    pub fn add(&mut self, key: i32, n: u64) {
        debug_assert!(key.abs() <= KEY_MAX);
        if n == 0 {
            return;
        }
        let at = self.place(key);
        let held = self.counter(at);
        let count = held.saturating_add(n);
        while count > u64::MAX >> (64 - (4 << self.width)) {
            self.widen();
        }
        self.set(at, count);
        self.len += u32::from(held == 0);
    }

    /// Adds all that others hold.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(key, n)| self.add(key, n));
    }

    /// Keys with a count, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (i32, u64)> + Clone {
        let keys = self.blocks.iter().flat_map(|&block| {
            let first = i32::from(block) * BLOCK as i32;
            first..first + BLOCK as i32
        });
        keys.enumerate().map(|(at, key)| (key, self.counter(at))).filter(|&(_, n)| n > 0)
    }

    /// Number of keys with a count.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of blocks: what it takes in memory.
    pub const fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Counts every lower key as this one.
    pub fn raise_to(&mut self, key: i32) {
        let (block, offset) = split(key);
        let at = self.blocks.partition_point(|&b| b < block);
        let mut sum = self.remove(0..at);
        if self.blocks.first() == Some(&block) {
            sum = (0..offset).fold(sum, |sum, at| sum.saturating_add(self.take(at)));
        }
        self.add(key, sum);
    }

    /// Counts the keys of the block nearest to zero, the one with zero left out, as zero.
    pub fn drop_nearest_to_zero(&mut self) {
        let others = self.blocks.iter().enumerate().filter(|&(_, &block)| block != 0);
        let Some((at, _)) = others.min_by_key(|(_, block)| block.unsigned_abs()) else { return };
        let sum = self.remove(at..at + 1);
        self.add(0, sum);
    }

    /// Removes these blocks. Returns the sum of their counts.
    fn remove(&mut self, blocks: Range<usize>) -> u64 {
        let (start, end) = (blocks.start * BLOCK, blocks.end * BLOCK);
        let sum = (start..end).fold(0, |sum: u64, at| sum.saturating_add(self.take(at)));
        self.blocks.drain(blocks);
        self.counters.drain(self.bytes(start)..self.bytes(end));
        sum
    }

    fn take(&mut self, at: usize) -> u64 {
        let count = self.counter(at);
        self.set(at, 0);
        self.len -= u32::from(count > 0);
        count
    }

    /// The place of a key's counter.
    fn place(&mut self, key: i32) -> usize {
        let (block, offset) = split(key.clamp(-KEY_MAX, KEY_MAX));
        let at = self.guess(block).unwrap_or_else(|| {
            self.blocks.binary_search(&block).unwrap_or_else(|at| {
                self.insert(at, block);
                at
            })
        });
        at * BLOCK + offset
    }

    /// Where a block is if there is no gap behind it: with many values that is so at the upper end,
    /// where the blocks of most of them are, and saves a search whose steps are chance.
    fn guess(&self, block: i16) -> Option<usize> {
        let behind = usize::try_from(i32::from(*self.blocks.last()?) - i32::from(block)).ok()?;
        let at = self.blocks.len().checked_sub(behind + 1)?;
        (self.blocks[at] == block).then_some(at)
    }

    fn insert(&mut self, at: usize, block: i16) {
        let bytes = self.bytes(BLOCK);
        if self.blocks.len() == self.blocks.capacity() {
            // A quarter more: doubling would waste more than it saves.
            let more = (self.blocks.len() / 4).max(2);
            self.blocks.reserve_exact(more);
            self.counters.reserve_exact(more * bytes);
        }
        self.blocks.insert(at, block);
        self.counters.splice(at * bytes..at * bytes, [0; BLOCK << 3].into_iter().take(bytes));
    }

    /// Bytes of so many counters, of which there are whole blocks.
    const fn bytes(&self, counters: usize) -> usize {
        counters << self.width >> 1
    }

    #[inline(always)]
    fn counter(&self, at: usize) -> u64 {
        let counters = &self.counters;
        match self.width {
            0 => (counters[at / 2] >> (at % 2 * 4) & 0xf).into(),
            1 => counters[at].into(),
            2 => u16::from_le_bytes(counters.as_chunks().0[at]).into(),
            3 => u32::from_le_bytes(counters.as_chunks().0[at]).into(),
            _ => u64::from_le_bytes(counters.as_chunks().0[at]),
        }
    }

    /// The count must fit.
    fn set(&mut self, at: usize, count: u64) {
        let counters = &mut self.counters;
        match self.width {
            0 => {
                let (both, shift) = (&mut counters[at / 2], at % 2 * 4);
                *both = *both & !(0xf << shift) | (count as u8) << shift;
            }
            1 => counters[at] = count as u8,
            2 => counters.as_chunks_mut().0[at] = (count as u16).to_le_bytes(),
            3 => counters.as_chunks_mut().0[at] = (count as u32).to_le_bytes(),
            _ => counters.as_chunks_mut().0[at] = count.to_le_bytes(),
        }
    }

    fn widen(&mut self) {
        let places = self.blocks.len() * BLOCK;
        let (narrow, wide) = (self.width, self.width + 1);
        let more = self.bytes(places);
        self.counters.reserve_exact(more);
        self.counters.resize(2 * more, 0);
        // From the last on, so that each is read before its place is needed.
        for at in (0..places).rev() {
            self.width = narrow;
            let count = self.counter(at);
            self.width = wide;
            self.set(at, count);
        }
    }

    /// Appends the compact form, which [`Bins::decode`] reads.
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_integer(out, self.len() as u64);
        let mut before = -KEY_MAX;
        for (key, n) in self.iter() {
            put_integer(out, (key - before) as u64);
            put_integer(out, n);
            before = key;
        }
    }

    /// # Errors
    /// When it is not what was written.
    pub fn decode(input: &mut Input<'_>) -> Result<Self, Malformed> {
        let mut bins = Self::default();
        let mut key = -KEY_MAX;
        for first in (0..input.length(2)?).map(|at| at == 0) {
            let step = input.integer()?;
            let n = input.integer()?;
            let left = (KEY_MAX - key) as u64;
            if step > left || (step == 0 && !first) || n == 0 {
                return Err(Malformed);
            }
            key += step as i32;
            bins.add(key, n);
        }
        Ok(bins)
    }
}

/// The block of a key, and its place there.
const fn split(key: i32) -> (i16, usize) {
    (key.div_euclid(BLOCK as i32) as i16, key.rem_euclid(BLOCK as i32) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn of(counts: &[(i32, u64)]) -> Bins {
        let mut bins = Bins::default();
        counts.iter().for_each(|&(key, n)| bins.add(key, n));
        bins
    }

    fn held(bins: &Bins) -> Vec<(i32, u64)> {
        bins.iter().collect()
    }

    #[test]
    fn counters_are_as_wide_as_the_largest_needs() {
        let widths =
            [(15, 4), (16, 8), (255, 8), (256, 16), (65_535, 16), (65_536, 32), (1 << 32, 64)];
        for (n, bits) in widths {
            let bins = of(&[(40, 1), (3, n)]);
            assert_eq!(bins.counters.len(), 2 * BLOCK * bits / 8, "{n}");
            assert_eq!(held(&bins), [(3, n), (40, 1)]);
        }
        assert_eq!(held(&of(&[(3, u64::MAX), (3, 1)])), [(3, u64::MAX)]);
    }

    #[test]
    fn few_keys_take_little_memory() {
        assert_eq!(size_of::<Bins>(), 56);
        let far = of(&[(-KEY_MAX, 1), (0, 1), (KEY_MAX, 1)]);
        assert_eq!(held(&far), [(-KEY_MAX, 1), (0, 1), (KEY_MAX, 1)]);
        assert!(far.counters.capacity() <= 4 * BLOCK / 2);
        // Eight octaves of 128 keys.
        let near = of(&(0..1024).map(|key| (key, 1)).collect::<Vec<_>>());
        let bytes = near.counters.capacity() + 2 * near.blocks.capacity();
        assert!(bytes <= 1024 * 4 / 5, "{bytes}");
    }

    #[test]
    fn keys_are_put_together() {
        let mut bins = of(&[(-40, 1), (-3, 2), (20, 4), (500, 8)]);
        bins.drop_nearest_to_zero();
        assert_eq!(held(&bins), [(-40, 1), (0, 2), (20, 4), (500, 8)]);
        bins.raise_to(21);
        assert_eq!((held(&bins), bins.len(), bins.blocks()), (vec![(21, 7), (500, 8)], 2, 2));
        let mut zero = of(&[(0, 3), (1, 1)]);
        zero.drop_nearest_to_zero();
        assert_eq!(held(&zero), [(0, 3), (1, 1)]);
    }

    #[test]
    fn what_was_not_written_is_refused() {
        let mut good = Vec::new();
        of(&[(-40, 1), (7, 300)]).encode(&mut good);
        for end in 0..good.len() {
            assert!(Bins::decode(&mut Input(&good[..end])).is_err(), "{end}");
        }
        // Twice the same key, no count, a key beyond the last.
        let beyond = [1, 0xff, 0xff, 0xff, 0xff, 7, 1];
        for bad in [&[2, 5, 1, 0, 1][..], &[1, 5, 0], &beyond] {
            assert!(Bins::decode(&mut Input(bad)).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn counts_as_a_map_does(
            adds in prop::collection::vec((-300..300i32, prop_oneof![1..4u64, any::<u32>().prop_map(u64::from)]), 0..300),
            cut in 0..300usize,
        ) {
            let mut twin = BTreeMap::<i32, u64>::new();
            adds.iter().for_each(|&(key, n)| *twin.entry(key).or_default() += n);
            twin.retain(|_, n| *n > 0);
            let whole = of(&adds);
            prop_assert!(whole.iter().eq(twin.clone()));
            prop_assert_eq!(whole.len(), twin.len());

            let (front, back) = adds.split_at(cut.min(adds.len()));
            let mut merged = of(front);
            merged.merge(&of(back));
            prop_assert!(merged.iter().eq(twin.clone()));

            let mut out = Vec::new();
            merged.encode(&mut out);
            out.push(9);
            let mut input = Input(&out);
            let read = Bins::decode(&mut input).unwrap();
            prop_assert!(read.iter().eq(twin) && read.len() == whole.len());
            prop_assert_eq!(input.0, &[9][..]);
        }
    }
}
