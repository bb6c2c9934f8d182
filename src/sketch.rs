//! The Datadog Agent's distribution sketch: counts of values in bins of 1/128 relative error.
//!
//! Parameters, keys and the collapse rule are the Agent's, so that the intake can merge what comes
//! from here with what comes from Agents. Bin counts have 32 bits, as newer Agents have.

use std::iter;

use smallvec::SmallVec;

use crate::bins::Bins;
use crate::compact::{Input, Malformed, put_float, put_integer};
use crate::sys;

/// Ratio of the values of neighbouring bins: 1 + 2/128.
const GAMMA: f64 = 1.015625;
/// `ln_1p(1/64)`.
const GAMMA_LN: f64 = 0.015504186535965254;
/// The key of the value 1.
const BIAS: i32 = 1338;
/// The smallest value that has a key of its own, `GAMMA` to the power of `1 - BIAS`; what is nearer
/// to zero counts as zero.
const KEYED_MIN: f64 = 9.94185408912145e-10;
/// Keys that are held before they are sorted into the bins.
const BUFFER_MAX: usize = 32;
/// The same of earlier versions, whose sketches may be read.
const BUFFER_MAX_ONCE: usize = 64;
/// Bins of one sketch; beyond it the lowest are put together.
const BINS_MAX: usize = 4096;
/// Values that one sketch counts; more are left out. With it a sketch has at most `BINS_MAX` full
/// bins beside those that the collapse rule leaves, whatever weights a client sends.
const COUNT_MAX: u64 = BINS_MAX as u64 * u32::MAX as u64;

/// The bin of a value, by the Agent's mapping: `round(ln v / ln gamma) + 1338`, mirrored for
/// negative values, 0 for those near zero, ±32767 for those beyond about 4.17e211.
pub fn key(v: f64) -> i16 {
    if v < 0.0 {
        return -key(-v);
    }
    if v < KEYED_MIN {
        return 0;
    }
    let key = (v.ln() / GAMMA_LN).round_ties_even() as i32 + BIAS;
    key.clamp(1, i32::from(i16::MAX)) as i16
}

/// The value that a bin stands for; infinite for the two outermost keys.
pub fn bin_value(key: i16) -> f64 {
    match key {
        0 => 0.0,
        i16::MAX => f64::INFINITY,
        1.. => GAMMA.powf(f64::from(i32::from(key) - BIAS)),
        ..0 => -bin_value(key.saturating_neg()),
    }
}

/// A distribution of values: exact count, sum, average, minimum and maximum, and bins.
///
/// Keys of new values wait in a buffer: call [`Sketch::finish`] before reading the bins. As long as
/// all of them fit there, they need no bins, which would take several times as much.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    basic: Basic,
    /// Made when they are needed, which a sketch of few values never does.
    bins: Option<Box<Bins>>,
    /// Keys that wait, or once finished all of them, ascending. A few need no place of their own.
    buffer: SmallVec<[i16; 8]>,
}

/// What is kept exactly. All but `count` are 0 while it is 0.
#[derive(Clone, Copy, Debug, Default)]
struct Basic {
    count: u64,
    min: f64,
    max: f64,
    avg: f64,
    sum: f64,
}

impl Sketch {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one finite value.
    pub fn insert(&mut self, v: f64) {
        self.insert_weighted(v, 1.0);
    }

    /// Adds a finite value that stands for `weight` (at least 1) values. As in the Agent, count and
    /// bins get the truncated weight, the sum gets the weight as it is.
    pub fn insert_weighted(&mut self, v: f64, weight: f64) {
        debug_assert!(v.is_finite() && weight >= 1.0);
        let n = (weight as u64).clamp(1, COUNT_MAX).min(COUNT_MAX - self.basic.count);
        if !v.is_finite() || n == 0 {
            return;
        }
        let sum = v * weight.min(COUNT_MAX as f64);
        self.basic.merge(Basic { count: n, min: v, max: v, avg: v, sum });
        if n == 1 {
            self.buffer.push(key(v));
            if self.buffer.len() == BUFFER_MAX {
                self.flush();
            }
        } else {
            self.make_bins().add(key(v).into(), n);
            self.collapse();
        }
    }

    /// Has the place of the next value fetched into the cache.
    pub fn prefetch(&self) {
        if let Some(last) = self.buffer.last() {
            sys::prefetch(last);
        }
    }

    /// Adds all that another sketch holds.
    pub fn merge(&mut self, other: &Self) {
        self.basic.merge(other.basic);
        let bins = self.make_bins();
        bins.merge(other.made_bins());
        other.buffer.iter().for_each(|&key| bins.add(key.into(), 1));
        self.collapse();
    }

    /// Sorts what waits in the buffer, into the bins if there are any. More may be inserted
    /// afterwards.
    pub fn finish(&mut self) {
        if self.made_bins().is_empty() {
            self.buffer.sort_unstable();
        } else {
            self.flush();
            self.buffer = SmallVec::new();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.basic.count == 0
    }

    /// Number of values, weighted; below 2^44.
    pub fn count(&self) -> u64 {
        self.basic.count
    }

    /// 0 when empty, like [`Sketch::max`] and [`Sketch::avg`].
    pub fn min(&self) -> f64 {
        self.basic.min
    }

    pub fn max(&self) -> f64 {
        self.basic.max
    }

    pub fn avg(&self) -> f64 {
        self.basic.avg
    }

    /// Always finite: a sum beyond the range of `f64` stays at its end.
    pub fn sum(&self) -> f64 {
        self.basic.sum
    }

    /// Keys and counts, ascending by key. A key repeats when its count exceeds 32 bits: the
    /// remainder comes first, full bins follow. The sketch must be finished.
    pub fn bins(&self) -> impl Iterator<Item = (i16, u32)> + Clone {
        let bins = self.made_bins();
        let finished = self.buffer.is_empty() || (bins.is_empty() && self.buffer.is_sorted());
        debug_assert!(finished, "a sketch is finished before its bins are read");
        let few = self.buffer.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32));
        let many = bins.iter().flat_map(|(key, n)| split(n).map(move |n| (key as i16, n)));
        few.chain(many)
    }

    /// An estimate of the value below which the fraction `q` of the values lies, by the Agent's
    /// rule: interpolated within the bin that holds the rank `round(q * (count - 1))`. `None` when
    /// empty. The sketch must be finished.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let one = self.quantiles(&[q]).next();
        one.filter(|_| !self.is_empty())
    }

    /// The same of several, ascending, in one walk over the bins. The sketch must not be empty.
    pub fn quantiles(&self, ascending: &[f64]) -> impl Iterator<Item = f64> {
        debug_assert!(ascending.is_sorted());
        let Basic { count, min, max, .. } = self.basic;
        let mut bins = self.bins();
        // The bin that was reached, and the values up to its end.
        let (mut key, mut n, mut below) = (0, 0.0, 0.0);
        ascending.iter().map(move |&q| {
            let rank = (q.clamp(0.0, 1.0) * count.saturating_sub(1) as f64).round_ties_even();
            while below <= rank {
                let Some(next) = bins.next() else { return max };
                (key, n) = (next.0, f64::from(next.1));
                below += n;
            }
            if q <= 0.0 {
                return min;
            }
            if q >= 1.0 {
                return max;
            }
            let near = bin_value(key).clamp(min, max);
            let far = (bin_value(key) * GAMMA).clamp(min, max);
            let (low, high) = (near.min(far), near.max(far));
            // In this form rounding cannot make a higher rank's estimate the lower one.
            (high - low).mul_add(1.0 - (below - rank) / n, low)
        })
    }

    /// What was made of the bins.
    fn made_bins(&self) -> &Bins {
        static NONE: Bins = Bins::new();
        self.bins.as_deref().unwrap_or(&NONE)
    }

    fn make_bins(&mut self) -> &mut Bins {
        self.bins.get_or_insert_default()
    }

    fn flush(&mut self) {
        let mut keys = std::mem::take(&mut self.buffer);
        keys.sort_unstable();
        let bins = self.make_bins();
        for run in keys.chunk_by(|a, b| a == b) {
            bins.add(run[0].into(), run.len() as u64);
        }
        keys.clear();
        self.buffer = keys;
        self.collapse();
    }

    /// The Agent's rule: beyond `BINS_MAX` bins, the lowest are added to the lowest that stays.
    fn collapse(&mut self) {
        // Keys whose count exceeds 32 bits take further bins.
        let bins = self.made_bins();
        let most = bins.len() as u64 + self.basic.count / u64::from(u32::MAX);
        if most <= BINS_MAX as u64 {
            return;
        }
        let keys = || bins.iter().flat_map(|(key, n)| split(n).map(move |_| key));
        let excess = keys().count().saturating_sub(BINS_MAX);
        let lowest = keys().nth(excess).filter(|_| excess > 0);
        if let Some(lowest) = lowest {
            self.make_bins().raise_to(lowest);
        }
    }

    /// Appends the compact form, which [`Sketch::decode`] reads.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let Basic { count, min, max, avg, sum } = self.basic;
        put_integer(out, count);
        [min, max, avg, sum].into_iter().for_each(|x| put_float(out, x));
        self.made_bins().encode(out);
        put_integer(out, self.buffer.len() as u64);
        self.buffer.iter().for_each(|key| out.extend_from_slice(&key.to_le_bytes()));
    }

    /// # Errors
    /// When it is not what was written.
    pub fn decode(input: &mut Input<'_>) -> Result<Self, Malformed> {
        let count = input.integer()?;
        let [min, max, avg, sum] = [input.float()?, input.float()?, input.float()?, input.float()?];
        let basic = Basic { count, min, max, avg, sum };
        let bins = Bins::decode(input)?;
        let waiting = input.length(size_of::<i16>())?;
        let (keys, _) = input.bytes(waiting * size_of::<i16>())?.as_chunks();
        let buffer: SmallVec<_> = keys.iter().map(|&key| i16::from_le_bytes(key)).collect();

        let total = bins.iter().fold(waiting as u64, |total, (_, n)| total.saturating_add(n));
        let in_range = |(key, _): (i32, u64)| i16::try_from(key).is_ok();
        let good = total == count
            && count <= COUNT_MAX
            && min <= max
            && waiting < BUFFER_MAX_ONCE
            && bins.iter().all(in_range)
            && (count > 0 || [min, max, avg, sum] == [0.0; 4]);
        if !good {
            return Err(Malformed);
        }
        let bins = (!bins.is_empty()).then(|| Box::new(bins));
        let mut sketch = Self { basic, bins, buffer };
        if waiting >= BUFFER_MAX {
            sketch.flush();
        }
        sketch.collapse();
        Ok(sketch)
    }
}

impl Basic {
    /// In the Agent's order of operations, so that the last bit agrees.
    fn merge(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = other;
        } else {
            let share = other.count as f64;
            self.count += other.count;
            self.min = self.min.min(other.min);
            self.max = self.max.max(other.max);
            self.sum += other.sum;
            self.avg += (other.avg - self.avg) * share / self.count as f64;
        }
        self.sum = self.sum.clamp(f64::MIN, f64::MAX);
        self.avg = self.avg.clamp(f64::MIN, f64::MAX);
    }
}

/// The counts of the bins of one key: the remainder, unless it is 0, then the full ones.
fn split(n: u64) -> impl Iterator<Item = u32> + Clone {
    let full = u64::from(u32::MAX);
    let rest = Some((n % full) as u32).filter(|&rest| rest > 0);
    rest.into_iter().chain(iter::repeat_n(u32::MAX, (n / full) as usize))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn vectors(text: &str) -> impl Iterator<Item = Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap())
    }

    fn finished(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::new();
        values.iter().for_each(|&v| sketch.insert(v));
        sketch.finish();
        sketch
    }

    fn bins(sketch: &Sketch) -> Vec<(i16, u32)> {
        sketch.bins().collect()
    }

    #[test]
    fn the_agents_keys() {
        let mut count = 0;
        for vector in vectors(include_str!("../conformance/vectors/sketch_key.jsonl")) {
            let value: f64 = vector["line"].as_str().unwrap().parse().unwrap();
            assert_eq!(i64::from(key(value)), vector["expect"]["key"], "{}", vector["id"]);
            count += 1;
        }
        assert_eq!(count, 16);
    }

    #[test]
    fn the_agents_sketches() {
        let mut count = 0;
        for vector in vectors(include_str!("../conformance/vectors/sketch.jsonl")) {
            let mut fields = vector["line"].as_str().unwrap().split('|');
            let values = fields.next().unwrap().split(':').skip(1);
            let rate = fields.nth(1).map_or(1.0, |rate| rate[1..].parse::<f64>().unwrap());
            let weight = if rate > 0.0 && rate <= 1.0 { 1.0 / rate } else { 1.0 };
            let mut sketch = Sketch::new();
            values.for_each(|v| sketch.insert_weighted(v.parse().unwrap(), weight));
            sketch.finish();

            let expect = &vector["expect"];
            let number = |name: &str| expect[name].as_f64().unwrap();
            let list = |name: &str| -> Vec<i64> {
                expect[name].as_array().unwrap().iter().map(|n| n.as_i64().unwrap()).collect()
            };
            assert_eq!(sketch.count() as f64, number("cnt"), "{}", vector["id"]);
            assert_eq!(sketch.min(), number("min"));
            assert_eq!(sketch.max(), number("max"));
            assert_eq!(sketch.avg(), number("avg"));
            assert_eq!(sketch.sum(), number("sum"));
            assert_eq!(sketch.bins().map(|(k, _)| i64::from(k)).collect::<Vec<_>>(), list("k"));
            assert_eq!(sketch.bins().map(|(_, n)| i64::from(n)).collect::<Vec<_>>(), list("n"));
            count += 1;
        }
        assert_eq!(count, 5);
    }

    #[test]
    fn keys_at_the_ends() {
        for (value, expect) in [
            (0.0, 0),
            (-0.0, 0),
            (f64::MIN_POSITIVE, 0),
            (9.9e-10, 0),
            (KEYED_MIN, 1),
            (4.16e211, 32766),
            (4.18e211, 32767),
            (f64::MAX, 32767),
            (f64::MIN, -32767),
        ] {
            assert_eq!(key(value), expect, "{value}");
        }
        assert_eq!(bin_value(i16::MAX), f64::INFINITY);
        assert_eq!(bin_value(i16::MIN), f64::NEG_INFINITY);
    }

    #[test]
    fn the_value_of_a_key_has_that_key() {
        for k in -32766..=32766 {
            assert_eq!(key(bin_value(k)), k);
        }
    }

    #[test]
    fn counts_beyond_32_bits_fill_further_bins() {
        let full = f64::from(u32::MAX);
        let mut sketch = Sketch::new();
        sketch.insert(2.0);
        sketch.insert_weighted(1.0, full);
        sketch.insert_weighted(1.0, full);
        sketch.finish();
        assert_eq!(bins(&sketch), [(1338, u32::MAX), (1338, u32::MAX), (1383, 1)]);
        sketch.insert_weighted(1.0, 7.5);
        assert_eq!(bins(&sketch), [(1338, 7), (1338, u32::MAX), (1338, u32::MAX), (1383, 1)]);
        assert_eq!(sketch.count(), 2 * u64::from(u32::MAX) + 8);
    }

    #[test]
    fn absurd_weights_and_values_stay_bounded_and_finite() {
        let mut sketch = Sketch::new();
        for v in [0.0, 1.0, f64::MAX, f64::MAX, f64::MIN] {
            sketch.insert_weighted(v, f64::INFINITY);
            sketch.insert(v);
        }
        sketch.finish();
        assert_eq!((sketch.count(), sketch.sum(), sketch.avg()), (COUNT_MAX, 0.0, 0.0));
        assert_eq!(sketch.bins().count(), BINS_MAX);

        let sketch = finished(&[f64::MAX, f64::MAX, f64::MIN]);
        assert!(sketch.sum().is_finite() && sketch.avg().is_finite());
        assert!(sketch.quantile(0.5).unwrap().is_finite());
    }

    #[test]
    fn few_values_take_little_memory() {
        assert_eq!(size_of::<Sketch>(), 72);
        let mut sketch = Sketch::new();
        sketch.insert(1.0);
        assert!(!sketch.buffer.spilled() && sketch.bins.is_none());
        sketch.finish();
        assert!(!sketch.buffer.spilled() && sketch.bins.is_none());
        // Once there are bins, all is in them.
        (0..BUFFER_MAX).for_each(|_| sketch.insert(2.0));
        assert!(sketch.buffer.capacity() <= BUFFER_MAX && sketch.made_bins().blocks() > 0);
        sketch.insert(3.0);
        sketch.finish();
        assert!(!sketch.buffer.spilled());
        assert_eq!(bins(&sketch), [(key(1.0), 1), (key(2.0), BUFFER_MAX as u32), (key(3.0), 1)]);
    }

    #[test]
    fn sketches_of_versions_that_held_more_keys_are_read() {
        for held in [BUFFER_MAX - 1, BUFFER_MAX, BUFFER_MAX_ONCE - 1, BUFFER_MAX_ONCE] {
            let values: Vec<_> = (1..=held as u32).rev().map(f64::from).collect();
            let whole = finished(&values);
            // As they wrote it: all keys wait.
            let mut written = whole.clone();
            written.bins = None;
            written.buffer = values.iter().map(|&value| key(value)).collect();
            let mut bytes = Vec::new();
            written.encode(&mut bytes);
            let read = Sketch::decode(&mut Input(&bytes));
            if held == BUFFER_MAX_ONCE {
                assert_eq!(read.err(), Some(Malformed), "they sorted them then");
                continue;
            }
            let mut read = read.unwrap();
            assert!(read.buffer.len() < BUFFER_MAX, "{held}");
            read.insert(1.0);
            read.finish();
            assert_eq!(bins(&read), bins(&finished(&[&values[..], &[1.0]].concat())), "{held}");
            assert_eq!((read.count(), read.max()), (held as u64 + 1, whole.max()));
        }
    }

    #[test]
    fn an_empty_sketch() {
        let mut sketch = Sketch::new();
        sketch.finish();
        sketch.merge(&Sketch::new());
        assert!(sketch.is_empty());
        assert_eq!((sketch.quantile(0.5), sketch.bins().count()), (None, 0));
    }

    #[test]
    fn quantiles_of_one_to_a_thousand() {
        let sketch = finished(&(1..=1000).map(f64::from).collect::<Vec<_>>());
        for (q, exact) in [(0.01, 11.0), (0.25, 250.0), (0.5, 500.0), (0.95, 950.0), (0.99, 990.0)]
        {
            let estimate = sketch.quantile(q).unwrap();
            assert!((estimate - exact).abs() <= 0.02 * exact, "{q}: {estimate}");
        }
        assert_eq!((sketch.quantile(0.0), sketch.quantile(1.0)), (Some(1.0), Some(1000.0)));
    }

    /// The naive twin: all counts by key, put together from the lowest.
    fn naive(values: impl IntoIterator<Item = (f64, u64)>) -> Vec<(i16, u32)> {
        let mut counts = BTreeMap::<i16, u64>::new();
        for (v, n) in values {
            *counts.entry(key(v)).or_default() += n;
        }
        while counts.len() > BINS_MAX {
            let (_, n) = counts.pop_first().unwrap();
            *counts.first_entry().unwrap().get_mut() += n;
        }
        counts.into_iter().map(|(k, n)| (k, n as u32)).collect()
    }

    /// Values over the whole range of keys, so that thousands of them overflow the bins.
    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![9 => (-32766i16..=32766).prop_map(bin_value), 1 => -10.0..10.0f64]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn bins_are_those_of_the_naive_twin(
            many in any::<bool>(),
            values in prop::collection::vec((value(), 1u32..4), 6000),
        ) {
            let values = &values[..if many { 6000 } else { 700 }];
            let mut sketch = Sketch::new();
            for &(v, n) in values {
                sketch.insert_weighted(v, f64::from(n) + 0.5);
            }
            sketch.finish();
            let twin = naive(values.iter().map(|&(v, n)| (v, u64::from(n))));
            prop_assert_eq!(bins(&sketch), twin);
            let total: u64 = sketch.bins().map(|(_, n)| u64::from(n)).sum();
            prop_assert_eq!(total, sketch.count());
        }

        #[test]
        fn order_does_not_matter_and_a_merge_inserts_both(
            (values, shuffled) in prop::collection::vec(value(), 5500)
                .prop_flat_map(|v| (Just(v.clone()), Just(v).prop_shuffle())),
            cut in 0..5500usize,
        ) {
            let whole = finished(&values);
            prop_assert_eq!(bins(&whole), bins(&finished(&shuffled)));

            let (front, back) = values.split_at(cut);
            let mut merged = finished(front);
            let mut unfinished = Sketch::new();
            back.iter().for_each(|&v| unfinished.insert(v));
            merged.merge(&unfinished);
            merged.finish();
            prop_assert_eq!(bins(&whole), bins(&merged));
            prop_assert_eq!(whole.count(), merged.count());
            prop_assert_eq!((whole.min(), whole.max()), (merged.min(), merged.max()));
        }
    }

    proptest! {
        #[test]
        fn a_bin_is_near_its_values(v in 1e-8..1e200f64, exponent in -16i32..200) {
            let v = v.min(10f64.powi(exponent)).max(KEYED_MIN);
            let near = bin_value(key(v));
            prop_assert!((near - v).abs() <= v / 127.0, "{} is in the bin of {}", v, near);
            prop_assert_eq!(key(-v), -key(v));
        }

        #[test]
        fn quantiles_ascend_and_are_near(
            mut values in prop::collection::vec(-1e6..1e6f64, 1..200),
            q in 0.0..1.0f64,
        ) {
            let sketch = finished(&values);
            values.sort_by(f64::total_cmp);
            let exact = values[(q * (values.len() - 1) as f64).round_ties_even() as usize];
            let estimate = sketch.quantile(q).unwrap();
            prop_assert!((estimate - exact).abs() <= exact.abs() * 0.025 + 1e-9);
            prop_assert!(sketch.quantile(q / 2.0).unwrap() <= estimate);
        }
    }
}
