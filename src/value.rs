//! The accumulators: what one series holds within one bucket, one shape per kind.

mod histogram;
mod members;

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use histogram::Histogram;
pub use members::{Members, Room};

use crate::compact::{Input, Malformed, put_float};
use crate::hash::Keys;
use crate::sample::Kind;
use crate::sketch::Sketch;
use crate::sys;

/// How histograms and sets are summed up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Figures sent for each histogram and timer: max, median, avg, count, min, sum.
    pub histogram_aggregates: Vec<String>,
    /// Percentiles sent for each histogram and timer, as fractions between 0 and 1.
    pub histogram_percentiles: Vec<String>,
    /// Samples that one histogram keeps exactly within a bucket (3 or 4 bytes each where three
    /// decimals are enough, otherwise 8, with weights 16); beyond it percentiles are within 0.4 %,
    /// while count, sum, minimum and maximum stay exact.
    pub histogram_samples_max: usize,
    /// Members that one set counts exactly within a bucket (896 in a table of 8 KiB); beyond it the
    /// count is an estimate with a standard error of 0.8 %, in 8 KiB.
    pub set_members_max: usize,
    /// Bytes of all sets in a bucket; once they take more, further ones are counted exactly up to
    /// 224 members, and beyond it with a standard error of 1.6 %, in 2 KiB.
    pub set_bytes_max: usize,
    /// Also send each histogram and timer as a distribution.
    pub histogram_copy_to_distribution: bool,
    /// Put before the name of such a copy.
    pub histogram_copy_to_distribution_prefix: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            histogram_aggregates: ["max", "median", "avg", "count"].map(String::from).to_vec(),
            histogram_percentiles: vec!["0.95".to_owned()],
            histogram_samples_max: 256,
            set_members_max: 896,
            set_bytes_max: 16 << 20,
            histogram_copy_to_distribution: false,
            histogram_copy_to_distribution_prefix: String::new(),
        }
    }
}

/// One of the figures a histogram is sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    Max,
    Median,
    Avg,
    Count,
    Min,
    Sum,
}

impl Aggregate {
    /// Every figure, in the order of its discriminant.
    pub const ALL: [Self; 6] =
        [Self::Max, Self::Median, Self::Avg, Self::Count, Self::Min, Self::Sum];

    /// The word used in the configuration and behind the name of a series.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Max => "max",
            Self::Median => "median",
            Self::Avg => "avg",
            Self::Count => "count",
            Self::Min => "min",
            Self::Sum => "sum",
        }
    }

    /// The figure that a word of the configuration names.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|aggregate| aggregate.word() == word)
    }
}

/// The settings as the accumulators use them.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order of the configuration, without repetitions.
    pub aggregates: Arc<[Aggregate]>,
    /// Per cent, ascending, without repetitions.
    pub percentiles: Box<[u8]>,
    pub samples_max: usize,
    pub members_max: usize,
    pub set_bytes_max: usize,
    /// What members are hashed under. Hashes that are kept beyond the process need their keys.
    pub member_keys: Keys,
}

impl Plan {
    /// Words and percentiles that are not understood are left out; a configuration that was loaded
    /// has none.
    pub fn from_config(config: &Config) -> Self {
        let mut aggregates = Vec::new();
        for aggregate in config.histogram_aggregates.iter().filter_map(|w| Aggregate::of_word(w)) {
            if !aggregates.contains(&aggregate) {
                aggregates.push(aggregate);
            }
        }
        let percentiles = config.histogram_percentiles.iter();
        let mut percentiles: Vec<u8> = percentiles.filter_map(|p| parse_percentile(p)).collect();
        percentiles.sort_unstable();
        percentiles.dedup();
        Self {
            aggregates: aggregates.into(),
            percentiles: percentiles.into(),
            samples_max: config.histogram_samples_max,
            members_max: config.set_members_max,
            set_bytes_max: config.set_bytes_max,
            member_keys: Keys::random(),
        }
    }
}

/// A fraction from 0 to 1 as whole per cent, rounded as the Agent does.
pub fn parse_percentile(text: &str) -> Option<u8> {
    let fraction: f64 = text.parse().ok()?;
    (0.0..=1.0).contains(&fraction).then_some((fraction * 100.0 + 0.5) as u8)
}

/// What a bucket came to.
#[derive(Clone, Debug)]
pub enum Value {
    /// The sum within the bucket, not divided by its length.
    Count(f64),
    Gauge(f64),
    /// The number of distinct members.
    Set(u64),
    /// Of a histogram or timer.
    Histogram(Box<Summary>),
    Distribution(Box<Sketch>),
}

/// What a histogram came to. Weighted by the sample rate throughout.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    pub count: f64,
    pub sum: f64,
    pub min: f64,
    pub max: f64,
    pub median: f64,
    /// Per cent and value, ascending.
    pub percentiles: Vec<(u8, f64)>,
}

impl Summary {
    pub fn avg(&self) -> f64 {
        self.sum / self.count
    }

    /// The figures that are sent: the aggregates in their order, then the percentiles ascending.
    pub fn figures(&self, aggregates: &[Aggregate]) -> impl Iterator<Item = Figure> {
        let aggregates = aggregates.iter().map(|&aggregate| Figure {
            suffix: Suffix::Aggregate(aggregate),
            value: self.aggregate(aggregate),
            rate: aggregate == Aggregate::Count,
        });
        let percentiles = self.percentiles.iter().map(|&(percent, value)| Figure {
            suffix: Suffix::Percentile(percent),
            value,
            rate: false,
        });
        aggregates.chain(percentiles)
    }

    fn aggregate(&self, aggregate: Aggregate) -> f64 {
        match aggregate {
            Aggregate::Max => self.max,
            Aggregate::Median => self.median,
            Aggregate::Avg => self.avg(),
            Aggregate::Count => self.count,
            Aggregate::Min => self.min,
            Aggregate::Sum => self.sum,
        }
    }
}

/// One figure of a histogram: a series of its own for the Datadog intake.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    pub suffix: Suffix,
    pub value: f64,
    /// To be divided by the bucket's length and sent as a rate, instead of as a gauge.
    pub rate: bool,
}

/// What stands behind the name of a histogram, with its dot: `.max`, `.95percentile`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suffix {
    Aggregate(Aggregate),
    /// Per cent.
    Percentile(u8),
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aggregate(aggregate) => write!(f, ".{}", aggregate.word()),
            Self::Percentile(percent) => write!(f, ".{percent}percentile"),
        }
    }
}

/// The highest weight of a sample: of a rate of 2.3e-10. It keeps the sums of weights meaningful
/// whatever a client sends.
pub const WEIGHT_MAX: f64 = (1u64 << 32) as f64;

/// What a series holds within one bucket. Its first sample decides what it is.
#[derive(Clone, Debug, Default)]
pub enum Cell {
    #[default]
    Empty,
    Count(f64),
    Gauge(f64),
    Set(Box<Members>),
    /// Of a histogram or timer.
    Histogram(Box<Histogram>),
    Sketch(Box<Sketch>),
}

const _: () = assert!(size_of::<Cell>() == 16);

/// Version of the compact form.
const FORMAT: u8 = 1;
/// What stands behind it: which variant follows.
const EMPTY: u8 = 0;
const COUNT: u8 = 1;
const GAUGE: u8 = 2;
const SET: u8 = 3;
const HISTOGRAM: u8 = 4;
const SKETCH: u8 = 5;

/// Why a cell could not be read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CellError {
    #[error("format {0} is unknown")]
    Format(u8),
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl Cell {
    /// What a series of this kind holds before its first sample.
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Count => Self::Count(0.0),
            Kind::Gauge => Self::Gauge(0.0),
            Kind::Set => Self::Set(Box::default()),
            Kind::Timer | Kind::Histogram => Self::Histogram(Box::default()),
            Kind::Distribution => Self::Sketch(Box::default()),
        }
    }

    /// Whether it holds what a series of this kind does.
    pub const fn is_of(&self, kind: Kind) -> bool {
        match kind {
            Kind::Count => matches!(self, Self::Count(_)),
            Kind::Gauge => matches!(self, Self::Gauge(_)),
            Kind::Set => matches!(self, Self::Set(_)),
            Kind::Timer | Kind::Histogram => matches!(self, Self::Histogram(_)),
            Kind::Distribution => matches!(self, Self::Sketch(_)),
        }
    }

    /// Has what lies behind the cell fetched into the cache.
    pub fn prefetch(&self) {
        match self {
            Self::Empty | Self::Count(_) | Self::Gauge(_) => {}
            Self::Set(members) => sys::prefetch(&**members),
            Self::Histogram(histogram) => sys::prefetch(&**histogram),
            Self::Sketch(sketch) => sys::prefetch(&**sketch),
        }
    }

    /// The same of the place where the next value goes; what lies behind the cell is looked at.
    /// `member` gives the hash of the next member of a set.
    pub fn prefetch_place(&self, member: impl FnOnce() -> Option<u64>) {
        match self {
            Self::Empty | Self::Count(_) | Self::Gauge(_) => {}
            Self::Set(members) => member().into_iter().for_each(|hash| members.prefetch(hash)),
            Self::Histogram(histogram) => histogram.prefetch(),
            Self::Sketch(sketch) => sketch.prefetch(),
        }
    }

    /// Adds a finite number that stands for `weight` events (at least 1, taken as [`WEIGHT_MAX`] at
    /// most) to a series of any kind but a set.
    pub fn add(&mut self, kind: Kind, value: f64, weight: f64, plan: &Plan) {
        if matches!(self, Self::Empty) {
            *self = Self::of(kind);
        }
        debug_assert!(self.is_of(kind), "a series has one kind");
        debug_assert!(value.is_finite() && weight >= 1.0);
        let bounded = weight.min(WEIGHT_MAX);
        match self {
            // A sum beyond the range of f64 stays at its end.
            Self::Count(sum) => *sum = (*sum + value * weight).clamp(f64::MIN, f64::MAX),
            Self::Gauge(last) => *last = value,
            Self::Histogram(histogram) => histogram.insert(value, bounded, plan.samples_max),
            Self::Sketch(sketch) => sketch.insert_weighted(value, bounded),
            Self::Empty | Self::Set(_) => debug_assert!(false, "a set has members, not numbers"),
        }
    }

    /// Adds a member, by its keyed hash, to a set that shares this room.
    pub fn member(&mut self, hash: u64, plan: &Plan, room: &mut Room) {
        if matches!(self, Self::Empty) {
            *self = Self::of(Kind::Set);
        }
        debug_assert!(self.is_of(Kind::Set), "only a set has members");
        if let Self::Set(members) = self {
            members.insert(hash, plan.members_max, room);
        }
    }

    /// Adds what a later part of the same bucket holds, as if its samples had come after these: a
    /// later gauge replaces the earlier, everything else adds up. Deltas of a gauge are no matter
    /// here: what a cell holds is always the value they led to. A cell of another kind is left out.
    pub fn merge(&mut self, later: Self, plan: &Plan) {
        if matches!(self, Self::Empty) {
            *self = later;
            return;
        }
        match (self, later) {
            (_, Self::Empty) => {}
            (Self::Count(sum), Self::Count(more)) => {
                *sum = (*sum + more).clamp(f64::MIN, f64::MAX);
            }
            (Self::Gauge(last), Self::Gauge(later)) => *last = later,
            (Self::Set(members), Self::Set(more)) => members.merge(&more, plan.members_max),
            (Self::Histogram(histogram), Self::Histogram(more)) => {
                histogram.merge(&more, plan.samples_max);
            }
            (Self::Sketch(sketch), Self::Sketch(more)) => sketch.merge(&more),
            (
                _,
                Self::Count(_)
                | Self::Gauge(_)
                | Self::Set(_)
                | Self::Histogram(_)
                | Self::Sketch(_),
            ) => {}
        }
    }

    /// Appends the compact form, which [`Cell::decode`] reads. It tells its own end.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        match self {
            Self::Empty => out.push(EMPTY),
            Self::Count(sum) => {
                out.push(COUNT);
                put_float(out, *sum);
            }
            Self::Gauge(last) => {
                out.push(GAUGE);
                put_float(out, *last);
            }
            Self::Set(members) => {
                out.push(SET);
                members.encode(out);
            }
            Self::Histogram(histogram) => {
                out.push(HISTOGRAM);
                histogram.encode(out);
            }
            Self::Sketch(sketch) => {
                out.push(SKETCH);
                sketch.encode(out);
            }
        }
    }

    /// Reads a cell from the beginning of `bytes`, and returns what follows it.
    ///
    /// # Errors
    /// When it is of another format, or not what was written.
    pub fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), CellError> {
        let mut input = Input(bytes);
        let format = input.byte()?;
        if format != FORMAT {
            return Err(CellError::Format(format));
        }
        let cell = match input.byte()? {
            EMPTY => Self::Empty,
            COUNT => Self::Count(input.float()?),
            GAUGE => Self::Gauge(input.float()?),
            SET => Self::Set(Box::new(Members::decode(&mut input)?)),
            HISTOGRAM => Self::Histogram(Box::new(Histogram::decode(&mut input)?)),
            SKETCH => Self::Sketch(Box::new(Sketch::decode(&mut input)?)),
            _ => return Err(CellError::Malformed(Malformed)),
        };
        Ok((cell, input.0))
    }

    /// What the bucket came to; `None` when nothing came.
    pub fn close(self, plan: &Plan) -> Option<Value> {
        match self {
            Self::Empty => None,
            Self::Count(sum) => Some(Value::Count(sum)),
            Self::Gauge(last) => Some(Value::Gauge(last)),
            Self::Set(members) => Some(Value::Set(members.len())),
            Self::Histogram(histogram) => {
                Some(Value::Histogram(Box::new(histogram.summary(&plan.percentiles))))
            }
            Self::Sketch(mut sketch) => {
                sketch.finish();
                Some(Value::Distribution(sketch))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plan() -> Plan {
        Plan::from_config(&Config::default())
    }

    fn closed(kind: Kind, samples: &[(f64, f64)]) -> Value {
        let mut cell = Cell::default();
        samples.iter().for_each(|&(value, weight)| cell.add(kind, value, weight, &plan()));
        cell.close(&plan()).unwrap()
    }

    fn names_and_values(value: &Value, aggregates: &[Aggregate]) -> Vec<(String, f64)> {
        let Value::Histogram(summary) = value else { panic!("not a histogram: {value:?}") };
        summary.figures(aggregates).map(|f| (f.suffix.to_string(), f.value)).collect()
    }

    #[test]
    fn a_count_is_the_weighted_sum() {
        let samples = [(1.0, 1.0 / 0.3), (-4.0, 1.0)];
        let Value::Count(sum) = closed(Kind::Count, &samples) else { panic!("not a count") };
        assert_eq!(sum, 1.0 / 0.3 - 4.0);
        for (value, expect) in [(f64::MAX, f64::MAX), (f64::MIN, f64::MIN), (0.0, 0.0)] {
            let samples = [(value, f64::MAX), (value, 2.0)];
            let Value::Count(sum) = closed(Kind::Count, &samples) else { panic!("not a count") };
            assert_eq!(sum, expect);
        }
    }

    #[test]
    fn a_gauge_is_its_last_value_whatever_the_rate() {
        let samples = [(5.0, 1.0), (10.0, 10.0)];
        assert!(matches!(closed(Kind::Gauge, &samples), Value::Gauge(10.0)));
    }

    #[test]
    fn a_set_counts_distinct_members() {
        let mut cell = Cell::default();
        [7, 8, 7].into_iter().for_each(|hash| cell.member(hash, &plan(), &mut Room::unlimited()));
        assert!(matches!(cell.close(&plan()), Some(Value::Set(2))));
    }

    #[test]
    fn a_timer_is_a_histogram() {
        let closed = closed(Kind::Timer, &[(5.0, 1.0), (7.0, 1.0)]);
        let expect = [
            (".max", 7.0),
            (".median", 5.0),
            (".avg", 6.0),
            (".count", 2.0),
            (".95percentile", 7.0),
        ];
        let figures = names_and_values(&closed, &plan().aggregates);
        assert_eq!(figures, expect.map(|(name, value)| (name.to_owned(), value)));
    }

    #[test]
    fn a_distribution_is_closed_finished() {
        let closed = closed(Kind::Distribution, &[(5.0, 1.0), (5.0, 3.5)]);
        let Value::Distribution(sketch) = closed else { panic!("not a distribution") };
        assert_eq!(sketch.bins().collect::<Vec<_>>(), [(1442, 4)]);
        assert_eq!(sketch.sum(), 22.5);
    }

    /// Few exact samples and members, so that both forms occur.
    fn small_plan() -> Plan {
        let config = Config { histogram_samples_max: 8, set_members_max: 8, ..Config::default() };
        Plan::from_config(&config)
    }

    /// What can be added to a cell: a number with its weight, which is also a set's member.
    fn samples() -> impl Strategy<Value = Vec<(f64, f64)>> {
        let value = prop_oneof![(-50..50i32).prop_map(f64::from), -1e9..1e9f64];
        prop::collection::vec((value, prop_oneof![3 => Just(1.0), 1 => 1.0..1e3f64]), 0..30)
    }

    fn add(cell: &mut Cell, kind: Kind, samples: &[(f64, f64)], plan: &Plan) {
        for &(value, weight) in samples {
            if kind == Kind::Set {
                let hash = plan.member_keys.hash(&value.to_le_bytes());
                cell.member(hash, plan, &mut Room::unlimited());
            } else {
                cell.add(kind, value, weight, plan);
            }
        }
    }

    fn held(kind: Kind, samples: &[(f64, f64)], plan: &Plan) -> Cell {
        let mut cell = Cell::default();
        add(&mut cell, kind, samples, plan);
        cell
    }

    fn encoded(cell: &Cell) -> Vec<u8> {
        let mut out = Vec::new();
        cell.encode(&mut out);
        out
    }

    /// The outcome as text, with sums in as many digits as do not depend on their order.
    fn outcome(cell: Cell, plan: &Plan) -> String {
        match cell.close(plan) {
            Some(Value::Count(sum)) => format!("{sum:.4e}"),
            Some(Value::Distribution(sketch)) => {
                let bins: Vec<_> = sketch.bins().collect();
                let exact = (sketch.count(), sketch.min(), sketch.max());
                format!("{exact:?} {:.4e} {:.4e} {bins:?}", sketch.sum(), sketch.avg())
            }
            closed @ (None | Some(Value::Gauge(_) | Value::Set(_) | Value::Histogram(_))) => {
                format!("{closed:?}")
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_read_back_goes_on_as_what_was_written(
            kind in prop::sample::select(&Kind::ALL[..]),
            (earlier, later) in (samples(), samples()),
        ) {
            let plan = small_plan();
            let mut cell = held(kind, &earlier, &plan);
            let mut bytes = encoded(&cell);
            bytes.extend_from_slice(b"rest");
            let (mut read, rest) = Cell::decode(&bytes).unwrap();
            prop_assert_eq!(rest, b"rest");
            for cell in [&mut cell, &mut read] {
                add(cell, kind, &later, &plan);
            }
            prop_assert_eq!(format!("{:?}", cell.close(&plan)), format!("{:?}", read.close(&plan)));
        }

        #[test]
        fn a_merge_is_as_if_all_had_come_to_one(
            kind in prop::sample::select(&Kind::ALL[..]),
            (earlier, later) in (samples(), samples()),
            exact in any::<bool>(),
        ) {
            let plan = if exact { plan() } else { small_plan() };
            let mut merged = held(kind, &earlier, &plan);
            merged.merge(held(kind, &later, &plan), &plan);
            let whole = held(kind, &[&*earlier, &*later].concat(), &plan);
            match (merged, whole) {
                (Cell::Histogram(merged), Cell::Histogram(whole)) if !exact => {
                    let [merged, whole] = [merged, whole].map(|h| h.summary(&plan.percentiles));
                    let near = |a: f64, b: f64| (a - b).abs() <= b.abs() * 1e-9 + 1e-3;
                    prop_assert!(near(merged.count, whole.count));
                    prop_assert!(near(merged.sum, whole.sum), "{:?} {:?}", merged, whole);
                    prop_assert_eq!((merged.min, merged.max), (whole.min, whole.max));
                }
                (merged, whole) => {
                    prop_assert_eq!(outcome(merged, &plan), outcome(whole, &plan));
                }
            }
        }

        #[test]
        fn cut_or_changed_bytes_do_not_panic(
            kind in prop::sample::select(&Kind::ALL[..]),
            samples in samples(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = encoded(&held(kind, &samples, &small_plan()));
            let at = at.index(bytes.len());
            prop_assert!(Cell::decode(&bytes[..at]).is_err());
            bytes[at] = byte;
            crate::fuzzing::cell(&bytes);
        }
    }

    #[test]
    fn another_format_is_told_from_garbage() {
        let gauge = encoded(&held(Kind::Gauge, &[(5.0, 1.0)], &plan()));
        assert_eq!(gauge.len(), 10);
        assert!(matches!(Cell::decode(&gauge), Ok((Cell::Gauge(5.0), []))));
        assert_eq!(Cell::decode(&[9]).unwrap_err(), CellError::Format(9));
        assert_eq!(Cell::decode(&[FORMAT, 77]).unwrap_err(), CellError::Malformed(Malformed));
    }

    #[test]
    fn cells_of_two_kinds_do_not_mix() {
        let mut cell = held(Kind::Gauge, &[(5.0, 1.0)], &plan());
        cell.merge(held(Kind::Count, &[(7.0, 1.0)], &plan()), &plan());
        cell.merge(Cell::Empty, &plan());
        assert!(matches!(cell, Cell::Gauge(5.0)));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        assert!(Cell::default().close(&plan()).is_none());
    }

    #[test]
    fn the_rate_is_the_count_alone() {
        let summary = Summary {
            count: 1.0,
            sum: 1.0,
            min: 1.0,
            max: 1.0,
            median: 1.0,
            percentiles: vec![(50, 1.0)],
        };
        let rates = summary.figures(&Aggregate::ALL).filter(|f| f.rate).map(|f| f.suffix);
        assert_eq!(rates.collect::<Vec<_>>(), [Suffix::Aggregate(Aggregate::Count)]);
    }

    #[test]
    fn the_plan_skips_what_it_does_not_know() {
        let words = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let config = Config {
            histogram_aggregates: words(&["min", "sum", "bogus", "min", "Max"]),
            histogram_percentiles: words(&[
                "1", "0.5", "0", "0.99", "1.5", "abc", "-0.1", "NaN", "", "0.501", "0.995", "0.994",
            ]),
            ..Config::default()
        };
        let plan = Plan::from_config(&config);
        assert_eq!(*plan.aggregates, [Aggregate::Min, Aggregate::Sum]);
        assert_eq!(*plan.percentiles, [0, 50, 99, 100]);

        let mut cell = Cell::default();
        [3.0, 1.0, 4.0, 2.0].into_iter().for_each(|v| cell.add(Kind::Histogram, v, 1.0, &plan));
        let expect = [
            (".min", 1.0),
            (".sum", 10.0),
            (".0percentile", 1.0),
            (".50percentile", 2.0),
            (".99percentile", 4.0),
            (".100percentile", 4.0),
        ];
        let figures = names_and_values(&cell.close(&plan).unwrap(), &plan.aggregates);
        assert_eq!(figures, expect.map(|(name, value)| (name.to_owned(), value)));
    }
}
