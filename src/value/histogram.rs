//! The values of a histogram or timer within one bucket.

use std::iter;

use hdrhistogram::Histogram as Buckets;

use super::Summary;

/// Values with their weights. Count, sum, minimum and maximum are always exact; percentiles are
/// exact up to a limit of samples, beyond it within 0.1 %.
#[derive(Clone, Debug)]
pub struct Histogram {
    count: f64,
    sum: Sum,
    min: f64,
    max: f64,
    samples: Samples,
}

#[derive(Clone, Debug)]
enum Samples {
    /// `weights` may be shorter than `values`: the missing ones are 1.
    Exact {
        values: Vec<f64>,
        weights: Vec<f64>,
    },
    Coarse(Box<Coarse>),
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            count: 0.0,
            sum: Sum::default(),
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            samples: Samples::Exact { values: Vec::new(), weights: Vec::new() },
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
            Samples::Exact { values, weights } if values.len() < samples_max => {
                if weight != 1.0 || !weights.is_empty() {
                    weights.resize(values.len(), 1.0);
                    weights.push(weight);
                }
                values.push(value);
            }
            Samples::Exact { values, weights } => {
                let mut coarse = Coarse::new();
                weighted(values, weights).for_each(|(value, weight)| coarse.insert(value, weight));
                coarse.insert(value, weight);
                self.samples = Samples::Coarse(Box::new(coarse));
            }
            Samples::Coarse(coarse) => coarse.insert(value, weight),
        }
    }

    /// What the values come to, with the percentiles asked for (per cent, ascending). There must be
    /// at least one value.
    pub fn summary(&self, percentiles: &[u8]) -> Summary {
        debug_assert!(self.count > 0.0);
        let sorted = match &self.samples {
            Samples::Exact { values, weights } => {
                let mut sorted: Vec<_> = weighted(values, weights).collect();
                sorted.sort_unstable_by(|(a, _), (b, _)| a.total_cmp(b));
                sorted
            }
            Samples::Coarse(coarse) => coarse.sorted(),
        };
        let total: f64 = sorted.iter().map(|(_, weight)| weight).sum();
        // A bucket's bound may lie outside of what was seen.
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
}

fn weighted(values: &[f64], weights: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    values.iter().copied().zip(weights.iter().copied().chain(iter::repeat(1.0)))
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

/// Two histograms of three significant digits, one per sign, of values scaled to integers.
///
/// The scale is a power of two that follows the values seen, so that moving it loses nothing. Every
/// magnitude down to 2^-28 of the largest one keeps its three digits; smaller ones lose digits and
/// at last count in the lowest bucket. Integers stay below 2^42, which bounds each of the two at
/// 33 792 counters of 8 bytes: 264 KiB, or twice that where the vector has grown by doubling.
#[derive(Clone, Debug)]
struct Coarse {
    /// Exponent of the magnitude that is scaled to `UNIT`.
    low: i32,
    /// Exponents of the smallest and the largest magnitude seen, zero left out.
    smallest: i32,
    largest: i32,
    negative: Buckets<u64>,
    /// With zero.
    positive: Buckets<u64>,
}

/// Significant digits of the buckets: their lower bounds differ by less than 0.1 %.
const DIGITS: u8 = 3;
/// Exponent of the smallest integer that has a three digit bucket of its own.
const UNIT: i32 = 10;
/// Octaves below the largest magnitude that keep three digits.
const OCTAVES: i32 = 28;
/// The scale moves by so many octaves at once, so that a slow drift of the values costs little.
const STEP: i32 = 4;
/// Fixed point of a weight in the buckets.
const WEIGHT_ONE: f64 = 65536.0;

impl Coarse {
    fn new() -> Self {
        Self {
            low: 0,
            smallest: i32::MAX,
            largest: i32::MIN,
            negative: empty_buckets(),
            positive: empty_buckets(),
        }
    }

    fn insert(&mut self, value: f64, weight: f64) {
        if value != 0.0 {
            self.smallest = self.smallest.min(exponent(value));
            self.largest = self.largest.max(exponent(value));
            let low = self.smallest.max(self.largest - OCTAVES).div_euclid(STEP) * STEP;
            if low != self.low {
                self.rescale(low);
            }
        }
        self.record(value, ((weight * WEIGHT_ONE).round() as u64).max(1));
    }

    fn rescale(&mut self, low: i32) {
        let held = self.buckets();
        self.low = low;
        self.negative = empty_buckets();
        self.positive = empty_buckets();
        held.into_iter().for_each(|(value, n)| self.record(value, n));
    }

    fn record(&mut self, value: f64, n: u64) {
        let magnitude = (value.abs() * self.scale()) as u64;
        let result = if value < 0.0 {
            self.negative.record_n(magnitude.max(1), n)
        } else {
            self.positive.record_n(magnitude.max(u64::from(value > 0.0)), n)
        };
        debug_assert!(result.is_ok(), "an integer below 2^42 fits");
    }

    fn scale(&self) -> f64 {
        2f64.powi(UNIT - self.low)
    }

    /// The bound towards zero of each bucket with its weight in fixed point, ascending.
    fn buckets(&self) -> Vec<(f64, u64)> {
        let scale = self.scale();
        let side = |buckets: &Buckets<u64>, sign: f64| -> Vec<_> {
            let recorded = buckets.iter_recorded().map(|bucket| {
                let bound = buckets.lowest_equivalent(bucket.value_iterated_to());
                (sign * bound as f64 / scale, bucket.count_at_value())
            });
            recorded.collect()
        };
        let mut ascending = side(&self.negative, -1.0);
        ascending.reverse();
        ascending.extend(side(&self.positive, 1.0));
        ascending
    }

    /// Values with their weights, ascending.
    fn sorted(&self) -> Vec<(f64, f64)> {
        self.buckets().into_iter().map(|(v, n)| (v, n as f64 / WEIGHT_ONE)).collect()
    }
}

fn empty_buckets() -> Buckets<u64> {
    Buckets::new(DIGITS).expect("three digits are supported")
}

/// The power of two of a value. Ends at -1000, which keeps the scale within the range of `f64`.
fn exponent(value: f64) -> i32 {
    let biased = (value.to_bits() >> 52) & 0x7ff;
    (biased as i32 - 1023).max(-1000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXACT: usize = usize::MAX;

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
        let twenty = filled(&plain((1..=20).map(f64::from)), EXACT).summary(&[95]);
        let expect = Summary {
            count: 20.0,
            sum: 210.0,
            min: 1.0,
            max: 20.0,
            median: 10.0,
            percentiles: vec![(95, 19.0)],
        };
        assert_eq!((&twenty, twenty.avg()), (&expect, 10.5));

        let two = filled(&plain([7.0, 5.0]), EXACT).summary(&[95]);
        assert_eq!((two.median, &*two.percentiles), (5.0, &[(95, 7.0)][..]));

        let four = filled(&plain([1.0, 2.0, 3.0, 4.0]), EXACT).summary(&[0, 50, 99, 100]);
        assert_eq!(four.percentiles, [(0, 1.0), (50, 2.0), (99, 4.0), (100, 4.0)]);
    }

    #[test]
    fn a_sampled_value_counts_with_its_whole_weight() {
        let samples = [(1.0, 1.0), (2.0, 1.0), (9.0, 10.0 / 3.0), (3.0, 1.0)];
        for samples_max in [EXACT, 2, 0] {
            let summary = filled(&samples, samples_max).summary(&[47, 48, 100]);
            assert_eq!(summary.count, 3.0 + 10.0 / 3.0);
            assert_eq!(summary.sum, 36.0);
            assert_eq!(summary.median, 9.0);
            assert_eq!(summary.percentiles, [(47, 3.0), (48, 9.0), (100, 9.0)], "{samples_max}");
        }
        let alone = filled(&[(5.0, 1.0 / 0.3)], EXACT).summary(&[]);
        assert_eq!(alone.avg(), 5.0);
    }

    #[test]
    fn a_sum_keeps_small_terms_and_stays_finite() {
        let samples = plain([1e100, 1.0, -1e100, 1.0]);
        assert_eq!(filled(&samples, EXACT).summary(&[]).sum, 2.0);
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
            let histogram = filled(&plain(both), 0);
            let summary = histogram.summary(&[0, 90, 100]);
            let expect = [f64::MIN, f64::MAX * 0.75, f64::MAX];
            for ((p, coarse), exact) in summary.percentiles.into_iter().zip(expect) {
                assert!((coarse / exact - 1.0).abs() < 1e-3, "{p}: {coarse}");
            }
            assert_eq!((summary.min, summary.max), (f64::MIN, f64::MAX));
            let Samples::Coarse(coarse) = &histogram.samples else { panic!("not coarse") };
            assert!(coarse.positive.distinct_values() <= 33_792);
            assert!(coarse.negative.distinct_values() <= 33_792);
        }
    }

    #[test]
    fn a_small_histogram_keeps_values_only() {
        assert!(size_of::<Histogram>() <= 96);
        let Samples::Exact { values, weights } = filled(&plain([1.0]), EXACT).samples else {
            panic!("not exact")
        };
        assert!(values.capacity() <= 4 && weights.capacity() == 0);
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
        let value = (-1.0..1.0f64, -3i32..4)
            .prop_map(|(v, e)| if v.abs() < 0.1 { 0.0 } else { v * 10f64.powi(e) });
        prop::collection::vec((value, (1u8..4).prop_map(f64::from)), 1..300)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn percentiles_are_those_of_the_agent(samples in samples(), p in 0u8..=100) {
            let summary = filled(&samples, EXACT).summary(&[p]);
            prop_assert_eq!(summary.percentiles[0].1, agent_percentile(&samples, p));
            prop_assert_eq!(summary.median, agent_percentile(&samples, 50));
        }

        #[test]
        fn beyond_the_limit_percentiles_are_within_a_thousandth(
            samples in samples(),
            samples_max in 0..100usize,
            shift in -900i32..900,
        ) {
            let samples: Vec<_> = samples.iter().map(|&(v, n)| (v * 2f64.powi(shift), n)).collect();
            let percentiles: Vec<u8> = (0..=100).step_by(5).collect();
            let exact = filled(&samples, EXACT).summary(&percentiles);
            let coarse = filled(&samples, samples_max).summary(&percentiles);
            prop_assert_eq!((coarse.count, coarse.sum), (exact.count, exact.sum));
            prop_assert_eq!((coarse.min, coarse.max), (exact.min, exact.max));
            let pairs = coarse.percentiles.iter().zip(&exact.percentiles);
            for (&(p, coarse), &(_, exact)) in pairs.chain([(&(50, coarse.median), &(50, exact.median))]) {
                prop_assert!((coarse - exact).abs() <= exact.abs() / 1000.0, "{}: {} for {}", p, coarse, exact);
            }
        }
    }
}
