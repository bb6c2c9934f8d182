//! The members of a set within one bucket.

use hashbrown::HashTable;

use crate::compact::{Input, Malformed, put_integer};

/// Bits of a hash that choose a register.
const INDEX_BITS: u32 = 14;
const REGISTERS: usize = 1 << INDEX_BITS;
/// The highest rank that the other bits of a hash can have is one more.
const RANK_BITS: usize = 64 - INDEX_BITS as usize;

/// What the compact form begins with.
const EXACT: u8 = 0;
const ESTIMATE: u8 = 1;

/// Counts distinct members by their hashes: exactly up to a limit, beyond it by HyperLogLog in
/// 8 KiB with a standard error of 0.81 %.
///
/// The hash is the member's identity here, so it must be keyed and of good quality in all its bits.
#[derive(Clone, Debug, Default)]
pub struct Members(Held);

#[derive(Clone, Debug)]
enum Held {
    Exact(HashTable<u64>),
    Estimate(Box<Registers>),
}

impl Default for Held {
    fn default() -> Self {
        Self::Exact(HashTable::new())
    }
}

impl Members {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a member. Up to `exact_max` members are counted exactly.
    pub fn insert(&mut self, hash: u64, exact_max: usize) {
        match &mut self.0 {
            Held::Exact(hashes) => {
                if hashes.find(hash, |&held| held == hash).is_some() {
                    return;
                }
                if hashes.len() < exact_max {
                    hashes.insert_unique(hash, hash, |&held| held);
                    return;
                }
                let mut registers = Registers::of(hashes);
                registers.insert(hash);
                self.0 = Held::Estimate(Box::new(registers));
            }
            Held::Estimate(registers) => registers.insert(hash),
        }
    }

    /// Adds the members of another set.
    pub fn merge(&mut self, other: &Self, exact_max: usize) {
        match (&mut self.0, &other.0) {
            (_, Held::Exact(hashes)) => hashes.iter().for_each(|&h| self.insert(h, exact_max)),
            (Held::Estimate(mine), Held::Estimate(theirs)) => mine.merge(theirs),
            (Held::Exact(hashes), Held::Estimate(theirs)) => {
                let mut registers = Registers::of(hashes);
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
                out.extend_from_slice(&[ESTIMATE, registers.base]);
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
                let mut members = Self(Held::Exact(HashTable::with_capacity(n)));
                hashes.iter().for_each(|&h| members.insert(u64::from_le_bytes(h), n));
                Ok(members)
            }
            ESTIMATE => {
                let base = input.byte()?;
                let pairs = input.bytes(REGISTERS / 2)?;
                if usize::from(base) > RANK_BITS {
                    return Err(Malformed);
                }
                let mut registers = Registers { base, at_base: 0, pairs: pairs.into() };
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
    fn of(hashes: &HashTable<u64>) -> Self {
        let pairs = vec![0; REGISTERS / 2].into();
        let mut registers = Self { base: 0, at_base: REGISTERS, pairs };
        hashes.iter().for_each(|&hash| registers.insert(hash));
        registers
    }

    fn insert(&mut self, hash: u64) {
        // The bit set behind the last one ends the run of zeros.
        let rank = ((hash << INDEX_BITS) | (1 << (INDEX_BITS - 1))).leading_zeros() + 1;
        self.raise((hash >> RANK_BITS) as usize, rank as u8);
    }

    fn merge(&mut self, other: &Self) {
        for register in 0..REGISTERS {
            self.raise(register, other.base + other.distance(register));
        }
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
        let distances = || (0..REGISTERS).map(|register| self.distance(register));
        let lowest = distances().min().unwrap_or(0);
        self.at_base = distances().filter(|&distance| distance == lowest).count();
        self.base += lowest;
        self.pairs.iter_mut().for_each(|pair| *pair -= lowest << 4 | lowest);
    }

    /// The improved estimator of O. Ertl, "New cardinality estimation algorithms for HyperLogLog
    /// sketches" (2017): free of bias over the whole range, where the original has to switch
    /// between two formulas.
    fn estimate(&self) -> f64 {
        let mut with_rank = [0u32; RANK_BITS + 2];
        for register in 0..REGISTERS {
            let rank = usize::from(self.base + self.distance(register));
            with_rank[rank.min(RANK_BITS + 1)] += 1;
        }
        let m = REGISTERS as f64;
        let mut z = m * tau(1.0 - f64::from(with_rank[RANK_BITS + 1]) / m);
        for &n in with_rank[1..=RANK_BITS].iter().rev() {
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
            members.insert(hash(i), 0);
            if [10, 1_000, 20_000, 40_000, 60_000, 100_000, 1_000_000].contains(&(i + 1)) {
                assert!(error(&members, i + 1) < 0.02, "{} for {}", members.len(), i + 1);
            }
        }
    }

    #[test]
    fn the_count_is_exact_up_to_the_limit_and_does_not_jump_there() {
        let mut members = Members::new();
        for i in 0..16_384 {
            members.insert(hash(i), 16_384);
            members.insert(hash(i / 2), 16_384);
            assert_eq!(members.len(), i + 1);
        }
        members.insert(hash(16_384), 16_384);
        assert!(matches!(members.0, Held::Estimate(_)));
        assert!(error(&members, 16_385) < 0.01, "{}", members.len());
        let before = members.len();
        (0..16_385).for_each(|i| members.insert(hash(i), 16_384));
        assert_eq!(members.len(), before);
    }

    #[test]
    fn extreme_hashes_are_harmless() {
        let mut members = Members::new();
        for h in [0, u64::MAX, 1, 1 << RANK_BITS, (1 << RANK_BITS) - 1] {
            members.insert(h, 0);
        }
        assert_eq!(members.len(), 3, "registers in use: 0, 1, 16383");
        // Every register at its highest rank, by steps of 15.
        for _ in 0..4 {
            (0..REGISTERS as u64).for_each(|i| members.insert(i << RANK_BITS, 0));
        }
        assert!(members.len() > 1 << 60);
        assert!(Members::new().is_empty());
    }

    /// With a byte for each register, which keeps every rank.
    #[test]
    fn four_bits_are_enough() {
        let (mut members, mut ranks) = (Members::new(), vec![0; REGISTERS]);
        for i in 0..2_000_000 {
            let hash = hash(i);
            members.insert(hash, 0);
            let rank = &mut ranks[(hash >> RANK_BITS) as usize];
            *rank = (hash << INDEX_BITS).leading_zeros().max(*rank);
        }
        let Held::Estimate(registers) = &members.0 else { panic!("exact") };
        assert!(registers.base > 1);
        let distances = (0..REGISTERS).map(|register| registers.distance(register));
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
            range.for_each(|i| members.insert(hash(i), exact_max));
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn counts_as_a_hash_set_does(hashes in prop::collection::vec(0..200u64, 0..400)) {
            let mut members = Members::new();
            hashes.iter().for_each(|&h| members.insert(hash(h), 200));
            let twin: HashSet<_> = hashes.iter().collect();
            prop_assert_eq!(members.len(), twin.len() as u64);
        }
    }
}
