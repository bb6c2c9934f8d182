//! The members of a set within one bucket.

mod hashes;

use self::hashes::Hashes;
use crate::compact::{Input, Malformed, put_integer};
use crate::sys;

/// Bits of a hash that choose a register: 8 KiB of registers with a standard error of 0.81 %, or
/// 2 KiB with one of 1.63 %.
const FINE: u32 = 14;
const COARSE: u32 = 12;

/// Members that are counted exactly however little room there is: their table is as large as coarse
/// registers.
const EXACT_MIN: usize = 224;

/// What the compact form begins with.
const EXACT: u8 = 0;
const ESTIMATE: u8 = 1;
const COARSE_ESTIMATE: u8 = 2;

/// Counts distinct members by their hashes: exactly up to a limit, beyond it by HyperLogLog in
/// 8 KiB with a standard error of 0.81 %. Where [`Room`] is short, exactly up to 224, and beyond it
/// in 2 KiB with a standard error of 1.63 %.
///
/// The hash is the member's identity here, so it must be keyed and of good quality in all its bits.
#[derive(Clone, Debug, Default)]
pub struct Members(Held);

#[derive(Clone, Debug)]
enum Held {
    Exact(Hashes),
    Estimate(Box<Registers>),
}

impl Default for Held {
    fn default() -> Self {
        Self::Exact(Hashes::new())
    }
}

/// What the sets of a bucket share.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes that they may still take before they become coarse; below zero by what they need even
    /// so.
    left: i64,
    /// How many became so for want of it.
    pub coarse: u64,
}

impl Room {
    pub const fn of(bytes: usize) -> Self {
        // Far more than anybody has, and far from the end of the range.
        let bytes = if bytes > usize::MAX / 4 { usize::MAX / 4 } else { bytes };
        Self { left: bytes as i64, coarse: 0 }
    }

    pub const fn unlimited() -> Self {
        Self::of(usize::MAX)
    }

    const fn has(&self, bytes: usize) -> bool {
        self.left >= bytes as i64
    }

    /// Notes that a set takes so much now instead of so much.
    const fn exchange(&mut self, before: usize, now: usize) {
        self.left += before as i64 - now as i64;
    }
}

impl Members {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a member. As far as there is room up to `exact_max` members are counted exactly.
    pub fn insert(&mut self, hash: u64, exact_max: usize, room: &mut Room) {
        match &mut self.0 {
            Held::Exact(hashes) => {
                if hashes.insert(hash, exact_max).is_err() {
                    self.grow(exact_max, room);
                    self.insert(hash, usize::MAX, room);
                }
            }
            Held::Estimate(registers) => registers.insert(hash),
        }
    }

    /// Has the place of a member fetched into the cache.
    pub fn prefetch(&self, hash: u64) {
        match &self.0 {
            Held::Exact(hashes) => hashes.prefetch(hash),
            Held::Estimate(registers) => registers.prefetch(hash),
        }
    }

    /// Makes place for one more: a larger table, or registers instead of it.
    #[cold]
    fn grow(&mut self, exact_max: usize, room: &mut Room) {
        let Held::Exact(hashes) = &mut self.0 else { return };
        let (count, before) = (hashes.len(), hashes.bytes());
        // The next table is twice as large.
        if count < exact_max && (count < EXACT_MIN || room.has(before)) {
            hashes.grow();
            room.exchange(before, hashes.bytes());
            return;
        }
        room.exchange(before, 0);
        let is_fine = room.has(Registers::bytes(FINE));
        let index_bits = if is_fine { FINE } else { COARSE };
        room.coarse += u64::from(!is_fine);
        room.exchange(0, Registers::bytes(index_bits));
        let registers = Registers::of(hashes, index_bits);
        self.0 = Held::Estimate(Box::new(registers));
    }

    /// Adds the members of another set. The outcome is coarse if one of them is.
    pub fn merge(&mut self, other: &Self, exact_max: usize) {
        match (&mut self.0, &other.0) {
            (_, Held::Exact(hashes)) => {
                let mut room = Room::unlimited();
                hashes.iter().for_each(|hash| self.insert(hash, exact_max, &mut room));
            }
            (Held::Estimate(mine), Held::Estimate(theirs)) => mine.merge(theirs),
            (Held::Exact(hashes), Held::Estimate(theirs)) => {
                let mut registers = Registers::of(hashes, theirs.index_bits);
                registers.merge(theirs);
                self.0 = Held::Estimate(Box::new(registers));
            }
        }
    }

    /// Appends the compact form, which [`Members::decode`] reads.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.0 {
            Held::Exact(hashes) => {
                out.push(EXACT);
                put_integer(out, hashes.len() as u64);
                hashes.iter().for_each(|hash| out.extend_from_slice(&hash.to_le_bytes()));
            }
            Held::Estimate(registers) => {
                let fine = registers.index_bits == FINE;
                let tag = if fine { ESTIMATE } else { COARSE_ESTIMATE };
                out.extend_from_slice(&[tag, registers.base]);
                out.extend_from_slice(&registers.pairs);
            }
        }
    }

    /// # Errors
    /// When it is not what was written.
    pub fn decode(input: &mut Input<'_>) -> Result<Self, Malformed> {
        match input.byte()? {
            EXACT => {
                let n = input.length(size_of::<u64>())?;
                let (hashes, _) = input.bytes(n * size_of::<u64>())?.as_chunks();
                let mut members = Self(Held::Exact(Hashes::with_capacity(n)));
                let mut room = Room::unlimited();
                hashes.iter().for_each(|&h| members.insert(u64::from_le_bytes(h), n, &mut room));
                Ok(members)
            }
            tag @ (ESTIMATE | COARSE_ESTIMATE) => {
                let index_bits = if tag == ESTIMATE { FINE } else { COARSE };
                let base = input.byte()?;
                let pairs = input.bytes(Registers::bytes(index_bits))?.into();
                if u32::from(base) > u64::BITS - index_bits {
                    return Err(Malformed);
                }
                let mut registers = Registers { index_bits, base, at_base: 0, pairs };
                registers.settle();
                Ok(Self(Held::Estimate(Box::new(registers))))
            }
            _ => Err(Malformed),
        }
    }

    /// Number of distinct members.
    pub fn len(&self) -> u64 {
        match &self.0 {
            Held::Exact(hashes) => hashes.len() as u64,
            Held::Estimate(registers) => registers.estimate().round() as u64,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Per register, the highest rank seen: 1 + the number of zeros that a hash begins with behind the
/// index; 0 where no hash came.
///
/// Ranks lie close together, so each is kept in four bits as its distance from the lowest. The few
/// that are 15 or more above it count as 15 above, which changes the estimate by less than a
/// millionth: it depends on the low ranks.
#[derive(Clone, Debug)]
struct Registers {
    /// Bits of a hash that choose one of them.
    index_bits: u32,
    /// The lowest rank.
    base: u8,
    /// Number of registers that have it.
    at_base: usize,
    /// Two registers in each byte, the lower half first.
    pairs: Box<[u8]>,
}

/// Highest distance of a rank from the lowest.
const DISTANCE_MAX: u8 = 15;

impl Registers {
    const fn bytes(index_bits: u32) -> usize {
        1 << (index_bits - 1)
    }

    fn empty(index_bits: u32) -> Self {
        let pairs = vec![0; Self::bytes(index_bits)].into();
        Self { index_bits, base: 0, at_base: 1 << index_bits, pairs }
    }

    fn of(hashes: &Hashes, index_bits: u32) -> Self {
        let mut registers = Self::empty(index_bits);
        hashes.iter().for_each(|hash| registers.insert(hash));
        registers
    }

    const fn count(&self) -> usize {
        1 << self.index_bits
    }

    /// The register of a hash.
    const fn register(&self, hash: u64) -> usize {
        (hash >> (u64::BITS - self.index_bits)) as usize
    }

    fn prefetch(&self, hash: u64) {
        sys::prefetch(&self.pairs[self.register(hash) / 2]);
    }

    fn insert(&mut self, hash: u64) {
        let index_bits = self.index_bits;
        // The bit set behind the last one ends the run of zeros.
        let rank = ((hash << index_bits) | (1 << (index_bits - 1))).leading_zeros() + 1;
        self.raise(self.register(hash), rank as u8);
    }

    fn merge(&mut self, other: &Self) {
        if self.index_bits > other.index_bits {
            *self = self.folded(other.index_bits);
        }
        if other.index_bits > self.index_bits {
            return self.merge(&other.folded(self.index_bits));
        }
        for register in 0..self.count() {
            self.raise(register, other.base + other.distance(register));
        }
    }

    /// The same hashes in fewer registers: the last bits of a register's number are the first that
    /// its rank looks at.
    fn folded(&self, index_bits: u32) -> Self {
        let mut folded = Self::empty(index_bits);
        let bits = self.index_bits - index_bits;
        for register in 0..self.count() {
            let rank = self.base + self.distance(register);
            if rank == 0 {
                continue;
            }
            let last = register & ((1 << bits) - 1);
            let length = usize::BITS - last.leading_zeros();
            let rank = if last == 0 { rank + bits as u8 } else { (bits - length + 1) as u8 };
            folded.raise(register >> bits, rank);
        }
        folded
    }

    fn distance(&self, register: usize) -> u8 {
        self.pairs[register / 2] >> (register % 2 * 4) & 0xf
    }

    /// Lifts a register to a rank, unless it has a higher one.
    fn raise(&mut self, register: usize, rank: u8) {
        let before = self.distance(register);
        let distance = rank.saturating_sub(self.base).min(DISTANCE_MAX);
        if distance <= before {
            return;
        }
        self.pairs[register / 2] += (distance - before) << (register % 2 * 4);
        if before == 0 {
            self.at_base -= 1;
            if self.at_base == 0 {
                self.settle();
            }
        }
    }

    /// Makes the lowest rank the base again.
    fn settle(&mut self) {
        let distances = || (0..self.count()).map(|register| self.distance(register));
        let lowest = distances().min().unwrap_or(0);
        self.at_base = distances().filter(|&distance| distance == lowest).count();
        self.base += lowest;
        self.pairs.iter_mut().for_each(|pair| *pair -= lowest << 4 | lowest);
    }

    /// The improved estimator of O. Ertl, "New cardinality estimation algorithms for HyperLogLog
    /// sketches" (2017): free of bias over the whole range, where the original has to switch
    /// between two formulas.
    fn estimate(&self) -> f64 {
        // The bits that are left for a rank, of which the highest is one more.
        let bits = (u64::BITS - self.index_bits) as usize;
        let mut with_rank = [0u32; u64::BITS as usize];
        for register in 0..self.count() {
            let rank = usize::from(self.base + self.distance(register));
            with_rank[rank.min(bits + 1)] += 1;
        }
        let m = self.count() as f64;
        let mut z = m * tau(1.0 - f64::from(with_rank[bits + 1]) / m);
        for &n in with_rank[1..=bits].iter().rev() {
            z = 0.5 * (z + f64::from(n));
        }
        z += m * sigma(f64::from(with_rank[0]) / m);
        m * m / (2.0 * std::f64::consts::LN_2 * z)
    }
}

/// x + the sum over k >= 1 of x^(2^k) * 2^(k-1); infinite for 1.
fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut factor, mut sum) = (1.0, x);
    loop {
        x *= x;
        let before = sum;
        sum += x * factor;
        factor *= 2.0;
        if sum == before {
            return sum;
        }
    }
}

/// (1 - x - the sum over k >= 1 of (1 - x^(2^-k))^2 * 2^-k) / 3.
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut factor, mut sum) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = sum;
        factor *= 0.5;
        sum -= (1.0 - x).powi(2) * factor;
        if sum == before {
            return sum / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Good hashes of 0, 1, 2, ... (the finaliser of splitmix64).
    fn hash(i: u64) -> u64 {
        let mut z = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn error(members: &Members, exact: u64) -> f64 {
        (members.len() as f64 / exact as f64 - 1.0).abs()
    }

    #[test]
    fn the_estimate_is_near_over_the_whole_range() {
        let mut members = Members::new();
        for i in 0..1_000_000 {
            members.insert(hash(i), 0, &mut Room::unlimited());
            if [10, 1_000, 20_000, 40_000, 60_000, 100_000, 1_000_000].contains(&(i + 1)) {
                assert!(error(&members, i + 1) < 0.02, "{} for {}", members.len(), i + 1);
            }
        }
    }

    #[test]
    fn the_count_is_exact_up_to_the_limit_and_does_not_jump_there() {
        let mut members = Members::new();
        for i in 0..16_384 {
            members.insert(hash(i), 16_384, &mut Room::unlimited());
            members.insert(hash(i / 2), 16_384, &mut Room::unlimited());
            assert_eq!(members.len(), i + 1);
        }
        members.insert(hash(16_384), 16_384, &mut Room::unlimited());
        assert!(matches!(members.0, Held::Estimate(_)));
        assert!(error(&members, 16_385) < 0.01, "{}", members.len());
        let before = members.len();
        (0..16_385).for_each(|i| members.insert(hash(i), 16_384, &mut Room::unlimited()));
        assert_eq!(members.len(), before);
    }

    #[test]
    fn extreme_hashes_are_harmless() {
        let mut members = Members::new();
        for h in [0, u64::MAX, 1, 1 << 50, (1 << 50) - 1] {
            members.insert(h, 0, &mut Room::unlimited());
        }
        assert_eq!(members.len(), 3, "registers in use: 0, 1, 16383");
        // Every register at its highest rank, by steps of 15.
        for _ in 0..4 {
            (0..1 << FINE).for_each(|i| members.insert(i << 50, 0, &mut Room::unlimited()));
        }
        assert!(members.len() > 1 << 60);
        assert!(Members::new().is_empty());
    }

    /// With a byte for each register, which keeps every rank.
    #[test]
    fn four_bits_are_enough() {
        let (mut members, mut ranks) = (Members::new(), vec![0; 1 << FINE]);
        for i in 0..2_000_000 {
            let hash = hash(i);
            members.insert(hash, 0, &mut Room::unlimited());
            let rank = &mut ranks[(hash >> 50) as usize];
            *rank = (hash << FINE).leading_zeros().max(*rank);
        }
        let Held::Estimate(registers) = &members.0 else { panic!("exact") };
        assert!(registers.base > 1);
        let distances = (0..1 << FINE).map(|register| registers.distance(register));
        let pairs = ranks.iter().zip(distances);
        let lower =
            pairs.filter(|&(&rank, distance)| rank + 1 != u32::from(registers.base + distance));
        let lower = lower.count();
        assert!(lower < 20, "{lower}");
    }

    #[test]
    fn a_merge_estimates_the_union() {
        let of = |range: std::ops::Range<u64>, exact_max| {
            let mut members = Members::new();
            range.for_each(|i| members.insert(hash(i), exact_max, &mut Room::unlimited()));
            members
        };
        for (first, second, exact_max) in
            [(900, 900, 500), (900, 60_000, 1000), (60_000, 900, 1000)]
        {
            let mut merged = of(0..first, exact_max);
            merged.merge(&of(100..100 + second, exact_max), exact_max);
            let whole = of(0..first.max(100 + second), exact_max);
            assert_eq!(merged.len(), whole.len(), "{first} and {second}");
        }
    }

    #[test]
    fn without_room_sets_are_small_and_coarse() {
        let table = |members: &Members| match &members.0 {
            Held::Exact(hashes) => hashes.bytes(),
            Held::Estimate(registers) => registers.pairs.len(),
        };
        // Their registers fill it, coarse as they are.
        let mut room = Room::of(20_000);
        let mut sets = vec![Members::new(); 50];
        for i in 0..5000 {
            sets.iter_mut().for_each(|members| members.insert(hash(i), 896, &mut room));
            let exact = sets.iter().filter(|members| matches!(members.0, Held::Exact(_))).count();
            assert!(i >= 224 || exact == sets.len(), "{i}");
            let bytes = sets.iter().map(table).sum::<usize>();
            assert!(bytes <= 50 * 2400 + 8192, "{bytes}");
        }
        let coarse = sets.iter().filter(|members| table(members) == 2048).count();
        assert_eq!(coarse as u64, room.coarse);
        assert_eq!(coarse, 50);
        for members in &sets {
            assert!(error(members, 5000) < 0.05, "{}", members.len());
        }
        // One after another, the first two are fine.
        let mut room = Room::of(20_000);
        for bytes in [8192, 8192, 2048] {
            let mut members = Members::new();
            (0..5000).for_each(|i| members.insert(hash(i), 896, &mut room));
            assert_eq!(table(&members), bytes);
        }
    }

    #[test]
    fn fine_and_coarse_sets_merge_into_a_coarse_one() {
        let of = |range: std::ops::Range<u64>, bytes| {
            let (mut members, mut room) = (Members::new(), Room::of(bytes));
            range.for_each(|i| members.insert(hash(i), 0, &mut room));
            members
        };
        for count in [100, 3_000, 500_000] {
            let coarse = of(0..count, 0);
            assert!(error(&coarse, count) < 0.05, "{}", coarse.len());
            let whole = of(0..count * 2, 0).len();
            let fine = of(count..count * 2, usize::MAX);
            for (mut one, other) in [(coarse.clone(), &fine), (fine.clone(), &coarse)] {
                one.merge(other, 0);
                // Ranks that are cut at a distance of 15 are cut in another place.
                assert!(one.len().abs_diff(whole) * 10_000 <= whole, "{} {whole}", one.len());
                let mut bytes = Vec::new();
                one.encode(&mut bytes);
                assert_eq!(bytes.len(), 2 + 2048);
                let read = Members::decode(&mut Input(&bytes)).expect("it was written so");
                assert_eq!(read.len(), one.len());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn counts_as_a_hash_set_does(hashes in prop::collection::vec(0..200u64, 0..400)) {
            let mut members = Members::new();
            hashes.iter().for_each(|&h| members.insert(hash(h), 200, &mut Room::unlimited()));
            let twin: HashSet<_> = hashes.iter().collect();
            prop_assert_eq!(members.len(), twin.len() as u64);
        }
    }
}
