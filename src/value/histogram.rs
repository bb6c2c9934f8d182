//! The values of a histogram or timer within one bucket.

use std::iter;

use smallvec::SmallVec;

use super::Summary;
use crate::bins::Bins;
use crate::compact::{Input, Malformed, of_thousandths, put_float, put_integer, thousandths};
use crate::sys;

/// Values with their weights. Count, sum, minimum and maximum are always exact; percentiles are
/// exact up to a limit of samples, beyond it within 0.4 %.
#[derive(Clone, Debug)]
pub struct Histogram {
    count: f64,
    sum: Sum,
    min: f64,
    max: f64,
    samples: Samples,
}

/// As short as what came allows. All but the last are exact.
#[derive(Clone, Debug)]
enum Samples {
    /// As sent by clients that round, each of weight 1. A few need no place of their own.
    Thousandths(SmallVec<[i32; 4]>),
    /// The same, where there are [`FEW`] and more, and all of them are below 8388.608.
    Brief(Vec<Brief>),
    /// Each of weight 1.
    Plain(Vec<f64>),
    /// With their weights.
    Weighted(Vec<(f64, f64)>),
    Coarse(Box<Coarse>),
}

/// Values that are worth another form.
const FEW: usize = 32;

/// The lower bytes of a whole number that needs no more.
type Brief = [u8; 3];

fn brief(number: i32) -> Option<Brief> {
    let [low, middle, high, _] = number.to_le_bytes();
    Some([low, middle, high]).filter(|brief| of_brief(*brief) == number)
}

fn of_brief([low, middle, high]: Brief) -> i32 {
    i32::from_le_bytes([0, low, middle, high]) >> 8
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            count: 0.0,
            sum: Sum::default(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            samples: Samples::default(),
        }
    }
}

impl Histogram {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a finite value that stands for `weight` (finite, at least 1) values. Up to
    /// `samples_max` of them are kept as they are.
    pub fn insert(&mut self, value: f64, weight: f64, samples_max: usize) {
        debug_assert!(value.is_finite() && weight.is_finite() && weight >= 1.0);
        if !value.is_finite() {
            return;
        }
        self.count += weight;
        self.sum.add((value * weight).clamp(f64::MIN, f64::MAX));
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        match &mut self.samples {
            Samples::Coarse(coarse) => coarse.insert(value, weight),
            samples if samples.len() < samples_max => samples.push(value, weight),
            _ => self.coarse().insert(value, weight),
        }
    }

    /// Has the place of the next value fetched into the cache, or what leads there.
    pub fn prefetch(&self) {
        match &self.samples {
            Samples::Thousandths(values) => values.last().into_iter().for_each(sys::prefetch),
            Samples::Brief(values) => values.last().into_iter().for_each(sys::prefetch),
            Samples::Plain(values) => values.last().into_iter().for_each(sys::prefetch),
            Samples::Weighted(pairs) => pairs.last().into_iter().for_each(sys::prefetch),
            Samples::Coarse(coarse) => sys::prefetch(&**coarse),
        }
    }

    /// Adds what came later. As long as that is exact, the outcome is the same as if its values had
    /// been inserted one by one.
    pub fn merge(&mut self, later: &Self, samples_max: usize) {
        match &later.samples {
            Samples::Coarse(coarse) => {
                self.coarse().merge(coarse);
                self.count += later.count;
                self.sum.add(later.sum.total);
                self.sum.add(later.sum.lost);
                self.min = self.min.min(later.min);
                self.max = self.max.max(later.max);
            }
            exact => exact.each(|value, weight| self.insert(value, weight, samples_max)),
        }
    }

    /// The values in bins, from now on.
    fn coarse(&mut self) -> &mut Coarse {
        if !matches!(self.samples, Samples::Coarse(_)) {
            let mut coarse = Box::<Coarse>::default();
            self.samples.each(|value, weight| coarse.insert(value, weight));
            self.samples = Samples::Coarse(coarse);
        }
        match &mut self.samples {
            Samples::Coarse(coarse) => coarse,
            _ => unreachable!("made coarse just now"),
        }
    }

    /// What the values come to, with the percentiles asked for (per cent, ascending). There must be
    /// at least one value.
    pub fn summary(&self, percentiles: &[u8]) -> Summary {
        debug_assert!(self.count > 0.0);
        let mut sorted = Vec::with_capacity(self.samples.len());
        self.samples.each(|value, weight| sorted.push((value, weight)));
        let total = match &self.samples {
            Samples::Coarse(_) => self.count,
            _ => {
                sorted.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
                sorted.iter().map(|(_, weight)| weight).sum()
            }
        };
        // What a bin stands for may lie outside of what was seen.
        let within = |value: f64| value.max(self.min).min(self.max);
        let at = |p: u8| percentile(&sorted, total, p).map_or(self.max, within);
        Summary {
            count: self.count,
            sum: self.sum.value(),
            min: self.min,
            max: self.max,
            median: at(50),
            percentiles: percentiles.iter().map(|&p| (p, at(p))).collect(),
        }
    }

    /// Appends the compact form, which [`Histogram::decode`] reads.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Self { count, sum, min, max, .. } = *self;
        [count, sum.total, sum.lost, min, max].into_iter().for_each(|x| put_float(out, x));
        match &self.samples {
            Samples::Coarse(coarse) => {
                out.push(COARSE);
                put_float(out, coarse.carry);
                coarse.bins.encode(out);
            }
            exact => {
                out.push(EXACT);
                let count = exact.len() as u64;
                put_integer(out, count);
                exact.each(|value, _| put_float(out, value));
                if let Samples::Weighted(_) = exact {
                    put_integer(out, count);
                    exact.each(|_, weight| put_float(out, weight));
                } else {
                    put_integer(out, 0);
                }
            }
        }
    }

    /// # Errors
    /// When it is not what was written.
    pub fn decode(input: &mut Input<'_>) -> Result<Self, Malformed> {
        let count = input.float()?;
        let sum = Sum { total: input.float()?, lost: input.float()? };
        let (min, max) = (input.float()?, input.float()?);
        let (samples, filled) = match input.byte()? {
            EXACT => {
                let (values, weights) = (floats(input)?, floats(input)?);
                let good = weights.len() <= values.len() && weights.iter().all(|&w| w >= 1.0);
                let mut samples = Samples::default();
                // Weights that are missing are 1.
                let weights = weights.into_iter().chain(iter::repeat(1.0));
                values.iter().zip(weights).for_each(|(&value, weight)| samples.push(value, weight));
                (samples, good && !values.is_empty())
            }
            COARSE => {
                let carry = input.float()?;
                let bins = Bins::decode(input)?;
                let filled = carry >= 0.0 && !bins.is_empty() && bins.blocks() <= BLOCKS_MAX;
                (Samples::Coarse(Box::new(Coarse { bins, carry })), filled)
            }
            _ => return Err(Malformed),
        };
        let good = filled && count >= 1.0 && min <= max;
        if good { Ok(Self { count, sum, min, max, samples }) } else { Err(Malformed) }
    }
}

/// What stands before the samples in the compact form.
const EXACT: u8 = 0;
const COARSE: u8 = 1;

fn floats(input: &mut Input<'_>) -> Result<Vec<f64>, Malformed> {
    (0..input.length(size_of::<f64>())?).map(|_| input.float()).collect()
}

impl Default for Samples {
    fn default() -> Self {
        Self::Thousandths(SmallVec::new())
    }
}

impl Samples {
    /// Of bins, those with a count.
    fn len(&self) -> usize {
        match self {
            Self::Thousandths(values) => values.len(),
            Self::Brief(values) => values.len(),
            Self::Plain(values) => values.len(),
            Self::Weighted(pairs) => pairs.len(),
            Self::Coarse(coarse) => coarse.bins.len(),
        }
    }

    /// Gives each value with its weight, those of bins ascending.
    fn each(&self, mut give: impl FnMut(f64, f64)) {
        match self {
            Self::Thousandths(values) => values.iter().for_each(|&v| give(of_thousandths(v), 1.0)),
            Self::Brief(values) => {
                values.iter().for_each(|&v| give(of_thousandths(of_brief(v)), 1.0));
            }
            Self::Plain(values) => values.iter().for_each(|&value| give(value, 1.0)),
            Self::Weighted(pairs) => pairs.iter().for_each(|&(value, weight)| give(value, weight)),
            Self::Coarse(coarse) => {
                coarse.bins.iter().for_each(|(key, n)| give(value(key), n as f64));
            }
        }
    }

    /// Adds a value as it is.
    fn push(&mut self, value: f64, weight: f64) {
        let short = || thousandths(value).filter(|_| weight == 1.0);
        match self {
            Self::Thousandths(values) => {
                if let Some(short) = short() {
                    values.push(short);
                    if values.len() == FEW {
                        self.shorten();
                    }
                    return;
                }
            }
            Self::Brief(values) => {
                if let Some(short) = short() {
                    if let Some(brief) = brief(short) {
                        return values.push(brief);
                    }
                    let before = values.iter().map(|&brief| of_brief(brief));
                    *self = Self::Thousandths(before.chain([short]).collect());
                    return;
                }
            }
            Self::Plain(values) if weight == 1.0 => return values.push(value),
            Self::Plain(_) => {}
            Self::Weighted(pairs) => return pairs.push((value, weight)),
            Self::Coarse(coarse) => return coarse.insert(value, weight),
        }
        self.widen(weight == 1.0);
        self.push(value, weight);
    }

    /// Values that all need no more in three bytes each.
    #[cold]
    fn shorten(&mut self) {
        let Self::Thousandths(values) = self else { return };
        if values.iter().all(|&number| brief(number).is_some()) {
            // Others are about to come.
            let mut short = Vec::with_capacity(2 * values.len());
            short.extend(values.iter().filter_map(|&number| brief(number)));
            *self = Self::Brief(short);
        }
    }

    /// What came so far in the form that what comes next needs.
    #[cold]
    fn widen(&mut self, plain: bool) {
        let (mut values, mut pairs) = (Vec::new(), Vec::new());
        // Another one is about to come.
        let room = self.len() + 1;
        if plain {
            values.reserve(room);
            self.each(|value, _| values.push(value));
            *self = Self::Plain(values);
        } else {
            pairs.reserve(room);
            self.each(|value, weight| pairs.push((value, weight)));
            *self = Self::Weighted(pairs);
        }
    }
}

/// The first value whose cumulative weight exceeds `total * p/100 - 0.01`: for weights of 1 this is
/// the Agent's rule in integers, and for p = 50 its lower median.
fn percentile(sorted: &[(f64, f64)], total: f64, p: u8) -> Option<f64> {
    let rank = (f64::from(p) * total - 1.0) / 100.0;
    let mut below = 0.0;
    let found = sorted.iter().find(|(_, weight)| {
        below += weight;
        below > rank
    });
    found.map(|&(value, _)| value)
}

/// A sum that loses nothing to rounding between large and small terms (Neumaier's compensation),
/// and stays at the end of the range of `f64` instead of leaving it.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    total: f64,
    lost: f64,
}

impl Sum {
    fn add(&mut self, x: f64) {
        let total = self.total + x;
        if !total.is_finite() {
            *self = Self { total: total.clamp(f64::MIN, f64::MAX), lost: 0.0 };
            return;
        }
        let (large, small) =
            if self.total.abs() >= x.abs() { (self.total, x) } else { (x, self.total) };
        self.lost += (large - total) + small;
        self.total = total;
    }

    fn value(self) -> f64 {
        (self.total + self.lost).clamp(f64::MIN, f64::MAX)
    }
}

/// Values rounded to eight significant bits and counted: within 1/256 (0.4 %), and exact where so
/// many bits are enough, as for integers up to 256.
///
/// Blocks of bins are made for what was seen, eight at most for an octave. Values spread so widely
/// that there are more than `BLOCKS_MAX` lose the ones nearest to zero: these count as zero.
#[derive(Clone, Debug, Default)]
struct Coarse {
    bins: Bins,
    /// What weights had beyond the whole numbers that were counted.
    carry: f64,
}

/// Bits of a value below its leading one that are kept.
const BITS: u32 = 7;
const SHIFT: u32 = f64::MANTISSA_DIGITS - 1 - BITS;
/// Blocks of 16 bins that one histogram has at most: 64 octaves, 9 KiB as long as no bin counts
/// more than 255.
const BLOCKS_MAX: usize = 512;

impl Coarse {
    fn insert(&mut self, value: f64, weight: f64) {
        // Whole numbers, of which the sum differs from that of the weights by less than one.
        let whole = (weight + self.carry) as u64;
        self.carry = (weight + self.carry - whole as f64).max(0.0);
        self.bins.add(key(value), whole);
        self.bound();
    }

    fn merge(&mut self, later: &Self) {
        self.bins.merge(&later.bins);
        self.carry += later.carry;
        self.bound();
    }

    fn bound(&mut self) {
        while self.bins.blocks() > BLOCKS_MAX {
            self.bins.drop_nearest_to_zero();
        }
    }
}

/// The bin of a value: the upper bits of its magnitude, rounded, with its sign.
fn key(value: f64) -> i32 {
    let half = 1 << (SHIFT - 1);
    let magnitude = ((value.abs().to_bits() + half) >> SHIFT) as i32;
    if value < 0.0 { -magnitude } else { magnitude }
}

/// The value that a bin stands for. Infinite for the bins of the largest values.
fn value(key: i32) -> f64 {
    let magnitude = f64::from_bits(u64::from(key.unsigned_abs()) << SHIFT);
    if key < 0 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXACT_MAX: usize = usize::MAX;

    fn filled(samples: &[(f64, f64)], samples_max: usize) -> Histogram {
        let mut histogram = Histogram::new();
        samples.iter().for_each(|&(value, weight)| histogram.insert(value, weight, samples_max));
        histogram
    }

    fn plain(values: impl IntoIterator<Item = f64>) -> Vec<(f64, f64)> {
        values.into_iter().map(|v| (v, 1.0)).collect()
    }

    #[test]
    fn figures_of_the_agent() {
        let twenty = filled(&plain((1..=20).map(f64::from)), EXACT_MAX).summary(&[95]);
        let expect = Summary {
            count: 20.0,
            sum: 210.0,
            min: 1.0,
            max: 20.0,
            median: 10.0,
            percentiles: vec![(95, 19.0)],
        };
        assert_eq!((&twenty, twenty.avg()), (&expect, 10.5));

        let two = filled(&plain([7.0, 5.0]), EXACT_MAX).summary(&[95]);
        assert_eq!((two.median, &*two.percentiles), (5.0, &[(95, 7.0)][..]));

        let four = filled(&plain([1.0, 2.0, 3.0, 4.0]), EXACT_MAX).summary(&[0, 50, 99, 100]);
        assert_eq!(four.percentiles, [(0, 1.0), (50, 2.0), (99, 4.0), (100, 4.0)]);
    }

    #[test]
    fn a_sampled_value_counts_with_its_whole_weight() {
        let samples = [(1.0, 1.0), (2.0, 1.0), (9.0, 10.0 / 3.0), (3.0, 1.0)];
        for samples_max in [EXACT_MAX, 2, 0] {
            let summary = filled(&samples, samples_max).summary(&[47, 48, 100]);
            assert_eq!(summary.count, 3.0 + 10.0 / 3.0);
            assert_eq!(summary.sum, 36.0);
            assert_eq!(summary.median, 9.0);
            assert_eq!(summary.percentiles, [(47, 3.0), (48, 9.0), (100, 9.0)], "{samples_max}");
        }
        let alone = filled(&[(5.0, 1.0 / 0.3)], EXACT_MAX).summary(&[]);
        assert_eq!(alone.avg(), 5.0);
    }

    #[test]
    fn a_sum_keeps_small_terms_and_stays_finite() {
        let samples = plain([1e100, 1.0, -1e100, 1.0]);
        assert_eq!(filled(&samples, EXACT_MAX).summary(&[]).sum, 2.0);
        let samples = [(f64::MAX, 1e9), (f64::MAX, 1.0), (1.0, 1.0)];
        let summary = filled(&samples, 1).summary(&[50]);
        assert_eq!((summary.sum, summary.max, summary.min), (f64::MAX, f64::MAX, 1.0));
        assert_eq!(filled(&plain([f64::MIN, f64::MIN]), 0).summary(&[]).sum, f64::MIN);
    }

    #[test]
    fn zeros_first_and_integers_later_stay_exact() {
        let mut samples = plain([0.0; 100]);
        samples.extend(plain((1..=100).map(|v| -f64::from(v))));
        samples.extend(plain((1..=200).map(f64::from)));
        let summary = filled(&samples, 10).summary(&[5, 25, 30, 75]);
        assert_eq!(summary.percentiles, [(5, -81.0), (25, -1.0), (30, 0.0), (75, 100.0)]);
        assert_eq!((summary.min, summary.max, summary.median), (-100.0, 200.0, 0.0));
    }

    #[test]
    fn magnitudes_far_apart_keep_the_large_ones_and_the_memory_bounded() {
        let tiny = f64::from_bits(1);
        for values in [[tiny, 1.0, f64::MAX], [f64::MAX, 1.0, tiny], [1.0, tiny, f64::MAX]] {
            let both = values.iter().flat_map(|&v| [v, -v, v * 0.75]).chain([0.0]);
            let summary = filled(&plain(both), 0).summary(&[0, 90, 100]);
            let expect = [f64::MIN, f64::MAX * 0.75, f64::MAX];
            for ((p, coarse), exact) in summary.percentiles.into_iter().zip(expect) {
                assert!((coarse / exact - 1.0).abs() < 1.0 / 256.0, "{p}: {coarse}");
            }
            assert_eq!((summary.min, summary.max), (f64::MIN, f64::MAX));
        }
        // Every block there could be, smallest values first and last.
        let values = (0..32_000).map(|block| value(block * 8));
        for values in [values.clone().collect::<Vec<_>>(), values.rev().collect()] {
            let histogram = filled(&plain(values.iter().flat_map(|&v| [v, -v])), 0);
            let Samples::Coarse(coarse) = &histogram.samples else { panic!("not coarse") };
            assert_eq!(coarse.bins.blocks(), BLOCKS_MAX);
            let percentiles = histogram.summary(&[0, 50, 100]).percentiles;
            let last = value(31_999 * 8);
            assert_eq!(percentiles, [(0, -last), (50, 0.0), (100, last)]);
        }
    }

    #[test]
    fn the_memory_of_many_values() {
        // Three decades, as latencies have, 6500 times.
        let mut histogram = Histogram::new();
        for i in 0..6500u32 {
            let share = f64::from(i * 7919 % 6500) / 6500.0;
            histogram.insert(1000f64.powf(share), 1.0, 256);
        }
        let Samples::Coarse(coarse) = &histogram.samples else { panic!("not coarse") };
        assert!(coarse.bins.blocks() <= 81, "{} blocks", coarse.bins.blocks());
    }

    #[test]
    fn samples_are_kept_as_short_as_they_come() {
        assert!(size_of::<Histogram>() <= 72);
        let Samples::Thousandths(few) = filled(&plain([1.0; 4]), EXACT_MAX).samples else {
            panic!("not short")
        };
        assert!(!few.spilled());
        let bytes = |samples: &[(f64, f64)]| match filled(samples, EXACT_MAX).samples {
            Samples::Thousandths(values) => 4 * values.len(),
            Samples::Brief(values) => 3 * values.len(),
            Samples::Plain(values) => 8 * values.len(),
            Samples::Weighted(pairs) => 16 * pairs.len(),
            Samples::Coarse(_) => panic!("not exact"),
        };
        assert_eq!(bytes(&plain([1.0, -0.001, 999.99, 2_147_483.647])), 4 * 4);
        for long in [1e-4, -0.0, 2_147_483.648, 0.1 + 0.2, 1e300] {
            assert_eq!(bytes(&plain([1.0, long, 3.0])), 3 * 8, "{long}");
        }
        assert_eq!(bytes(&[(1.0, 1.0), (2.0, 1.5), (1e-4, 1.0)]), 3 * 16);
        assert_eq!(bytes(&[(1e-4, 1.0), (2.0, 1.5)]), 2 * 16);
        // What does not fit three bytes comes late, in between, or early.
        let many = plain((0..256).map(|n| f64::from((n - 128) * 65_536) / 1000.0));
        assert_eq!(bytes(&many), 256 * 3);
        for (at, length) in [(255, 4), (40, 4), (3, 4)] {
            let mut many = many.clone();
            many[at] = (8388.608, 1.0);
            assert_eq!(bytes(&many), 256 * length);
            let summary = filled(&many, EXACT_MAX).summary(&[0, 1, 100]);
            assert_eq!(summary.percentiles, [(0, -8388.608), (1, -8257.536), (100, 8388.608)]);
            many[at] = (1e-4, 1.0);
            assert_eq!(bytes(&many), 256 * 8);
        }
    }

    /// Independent of `percentile`: every value repeated by its weight, the Agent's rule in
    /// integers.
    fn agent_percentile(samples: &[(f64, f64)], p: u8) -> f64 {
        let mut values: Vec<f64> = Vec::new();
        samples.iter().for_each(|&(v, weight)| values.extend(vec![v; weight as usize]));
        values.sort_by(f64::total_cmp);
        let rank = (i64::from(p) * values.len() as i64 - 1) / 100;
        values[rank as usize]
    }

    /// Values of both signs over six decades, with zeros.
    fn samples() -> impl Strategy<Value = Vec<(f64, f64)>> {
        let long = (-1.0..1.0f64, -3i32..4)
            .prop_map(|(v, e)| if v.abs() < 0.1 { 0.0 } else { v * 10f64.powi(e) });
        let short = (-1_000_000..1_000_000i32).prop_map(|v| f64::from(v) / 1000.0);
        // Long ones and weights come early, late or not at all.
        (0..3u8, 1u8..4).prop_flat_map(move |(longs, most)| {
            let value = match longs {
                0 => short.clone().boxed(),
                1 => prop_oneof![99 => short.clone(), 1 => long.clone()].boxed(),
                _ => long.clone().boxed(),
            };
            let weight = prop_oneof![50 => Just(1), 1 => 1..=most];
            prop::collection::vec((value, weight.prop_map(f64::from)), 1..300)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn percentiles_are_those_of_the_agent(samples in samples(), p in 0u8..=100) {
            let summary = filled(&samples, EXACT_MAX).summary(&[p]);
            prop_assert_eq!(summary.percentiles[0].1, agent_percentile(&samples, p));
            prop_assert_eq!(summary.median, agent_percentile(&samples, 50));
        }

        #[test]
        fn beyond_the_limit_percentiles_are_within_a_256th(
            samples in samples(),
            samples_max in 0..100usize,
            shift in -900i32..900,
        ) {
            let samples: Vec<_> = samples.iter().map(|&(v, n)| (v * 2f64.powi(shift), n)).collect();
            let percentiles: Vec<u8> = (0..=100).step_by(5).collect();
            let exact = filled(&samples, EXACT_MAX).summary(&percentiles);
            let coarse = filled(&samples, samples_max).summary(&percentiles);
            prop_assert_eq!((coarse.count, coarse.sum), (exact.count, exact.sum));
            prop_assert_eq!((coarse.min, coarse.max), (exact.min, exact.max));
            let pairs = coarse.percentiles.iter().zip(&exact.percentiles);
            for (&(p, coarse), &(_, exact)) in pairs.chain([(&(50, coarse.median), &(50, exact.median))]) {
                prop_assert!((coarse - exact).abs() <= exact.abs() / 256.0, "{}: {} for {}", p, coarse, exact);
            }
        }
    }
}
