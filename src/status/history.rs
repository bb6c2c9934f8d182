//! The last hour of each series, in bounded memory, for plots.

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;

use crate::batch::{Row, Value};
use crate::context::Context;

/// Seconds that are remembered.
const SPAN: i64 = 3600;

/// Series whose ring takes this many bytes more than its figures: context, place in the table.
const OVERHEAD: usize = 300;

/// One figure per bucket and series: the value of a count or gauge, the number of members of a set,
/// the average of a histogram, timer or distribution.
#[derive(Debug)]
pub struct History {
    /// Seconds of a bucket.
    interval: i64,
    series_max: usize,
    series: HashMap<Context, Ring, RandomState>,
    /// Series of the last batch for which there was no room.
    left_out: usize,
    /// The time of this batch, in Unix seconds.
    flushed_at: i64,
    /// When room was last looked for, in Unix seconds.
    swept: i64,
}

/// Marks of a series: that its place was looked for, and that it has, or had, one.
const SOUGHT: u8 = 1 << 2;
const KEPT: u8 = 1 << 3;

/// Before every bucket, and far enough from the end of the numbers.
const NONE: i64 = i64::MIN / 2;

/// The figures of a series, with NaN for a bucket that has none: at most one per bucket of the span,
/// and as many as there were buckets since its first.
#[derive(Debug)]
struct Ring {
    /// Oldest first.
    figures: VecDeque<f32>,
    /// Bucket of the newest figure, as its time divided by the interval.
    newest: i64,
}

impl History {
    /// Holds at most about `bytes`.
    pub fn new(interval: u32, bytes: usize) -> Self {
        let interval = i64::from(interval.max(1));
        let slots = slots(interval);
        let series_max = bytes / (slots * size_of::<f32>() + OVERHEAD);
        let series = HashMap::default();
        Self { interval, series_max, series, left_out: 0, flushed_at: 0, swept: 0 }
    }

    /// Seconds of a bucket.
    pub const fn interval(&self) -> i64 {
        self.interval
    }

    /// Series that can be held, and those of the last batch that could not.
    pub const fn room(&self) -> (usize, usize) {
        (self.series_max, self.left_out)
    }

    /// Begins with the figures of a flush at this time, in Unix seconds.
    pub fn begin(&mut self, flushed_at: i64) {
        (self.left_out, self.flushed_at) = (0, flushed_at);
        if self.series.len() >= self.series_max && flushed_at >= self.swept + 60 {
            self.swept = flushed_at;
            let oldest = (flushed_at - SPAN).div_euclid(self.interval);
            self.series.retain(|_, ring| ring.newest > oldest);
        }
    }

    /// Adds the figures of one series in this flush. With more series than there is room for, most
    /// have no place here: their mark says so without a look at the table.
    pub fn record(&mut self, rows: &[Row]) {
        let context = &rows[0].context;
        let full = self.series.len() >= self.series_max;
        if full && context.marks() & (SOUGHT | KEPT) == SOUGHT {
            self.left_out += 1;
            return;
        }
        context.mark(SOUGHT);
        let ring = match self.series.get_mut(context) {
            Some(ring) => ring,
            None if full => {
                self.left_out += 1;
                return;
            }
            None => self.series.entry(context.clone()).or_insert_with(Ring::new),
        };
        // The series may have expired and come again since it got its place.
        context.mark(KEPT);
        for row in rows {
            // Points far from now have no place here.
            if (row.time - self.flushed_at).abs() < SPAN {
                let bucket = row.time.div_euclid(self.interval);
                ring.put(bucket, figure(&row.value), slots(self.interval));
            }
        }
    }

    /// Points of the series with this name and these tags, oldest first, as time in Unix seconds
    /// and figure; a series of another kind or host may share both.
    pub fn points<'a>(
        &'a self,
        name: &'a str,
        tags: &'a [&str],
    ) -> impl Iterator<Item = (&'a Context, Vec<(i64, f32)>)> {
        let wanted = move |context: &Context| {
            context.name() == name && context.tags().eq(tags.iter().copied())
        };
        let found = self.series.iter().filter(move |(context, _)| wanted(context));
        found.map(|(context, ring)| (context, ring.points(self.interval)))
    }
}

fn slots(interval: i64) -> usize {
    (SPAN / interval).max(1) as usize
}

fn figure(value: &Value) -> f32 {
    match value {
        Value::Count(value) | Value::Gauge(value) => *value as f32,
        Value::Set(members) => *members as f32,
        Value::Histogram(summary) => summary.avg() as f32,
        Value::Distribution(sketch) => sketch.avg() as f32,
    }
}

impl Ring {
    const fn new() -> Self {
        Self { figures: VecDeque::new(), newest: NONE }
    }

    /// `bucket` is a time divided by the interval; `length` is that of the span.
    fn put(&mut self, bucket: i64, figure: f32, length: usize) {
        if self.newest == NONE {
            self.newest = bucket - 1;
        }
        // What lies between has no figure.
        let ahead = (bucket - self.newest).clamp(0, length as i64) as usize;
        self.figures.resize(self.figures.len() + ahead, f32::NAN);
        self.newest = self.newest.max(bucket);
        self.figures.drain(..self.figures.len().saturating_sub(length));
        let age = usize::try_from(self.newest - bucket).unwrap_or(usize::MAX);
        if age >= length {
            return;
        }
        while self.figures.len() <= age {
            self.figures.push_front(f32::NAN);
        }
        let at = self.figures.len() - 1 - age;
        self.figures[at] = figure;
    }

    fn points(&self, interval: i64) -> Vec<(i64, f32)> {
        let oldest = self.newest + 1 - self.figures.len() as i64;
        let points = (oldest..).zip(&self.figures).filter(|(_, figure)| !figure.is_nan());
        points.map(|(bucket, figure)| (bucket * interval, *figure)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::context::Source;
    use crate::sample::Kind;

    fn context(name: &str) -> Context {
        Context::new(name, Kind::Gauge, "h", vec!["a:b".to_owned()], Source::default())
    }

    fn batch(flushed_at: i64, points: &[(&Context, i64, f64)]) -> Batch {
        let row = |&(context, time, value): &(&Context, i64, f64)| Row {
            context: context.clone(),
            time,
            value: Value::Gauge(value),
        };
        Batch {
            flushed_at,
            interval: 10,
            rows: points.iter().map(row).collect(),
            ..Batch::default()
        }
    }

    fn record(history: &mut History, batch: &Batch) {
        history.begin(batch.flushed_at);
        batch.series().for_each(|rows| history.record(rows));
    }

    fn points(history: &History, name: &str) -> Vec<(i64, f32)> {
        history.points(name, &["a:b"]).flat_map(|(_, points)| points).collect()
    }

    #[test]
    fn an_hour_is_kept_with_its_gaps() {
        let (mut history, a) = (History::new(10, 1 << 20), context("a"));
        record(&mut history, &batch(100_010, &[(&a, 99_990, 1.0), (&a, 100_000, 2.0)]));
        record(
            &mut history,
            &batch(100_060, &[(&a, 100_050, 7.0), (&a, 99_970, 0.5), (&a, 9, 1.0)]),
        );
        let expected = [(99_970, 0.5), (99_990, 1.0), (100_000, 2.0), (100_050, 7.0)];
        assert_eq!(points(&history, "a"), expected);
        record(&mut history, &batch(103_600, &[(&a, 103_590, 3.0)]));
        assert_eq!(points(&history, "a"), [(100_000, 2.0), (100_050, 7.0), (103_590, 3.0)]);
        record(&mut history, &batch(999_990, &[(&a, 999_990, 4.0)]));
        assert_eq!(points(&history, "a"), [(999_990, 4.0)]);
        assert_eq!(points(&history, "b"), []);
    }

    #[test]
    fn room_is_bounded_and_made_of_series_that_have_ended() {
        let mut history = History::new(10, 2 * (360 * 4 + OVERHEAD));
        let all: Vec<_> = ["a", "b", "c"].map(context).into();
        let rows = |time| all.iter().map(move |context| (context, time, 1.0)).collect::<Vec<_>>();
        record(&mut history, &batch(100_010, &rows(100_000)));
        assert_eq!((history.room(), points(&history, "c").len()), ((2, 1), 0));
        // One that has expired and come again has its place still.
        let again = context("a");
        record(&mut history, &batch(100_020, &[(&again, 100_010, 2.0), (&all[2], 100_010, 2.0)]));
        record(&mut history, &batch(100_030, &[(&again, 100_020, 3.0), (&all[2], 100_020, 3.0)]));
        assert_eq!((history.room(), points(&history, "a").len()), ((2, 1), 3));
        record(&mut history, &batch(104_000, &[(&all[2], 104_000, 1.0)]));
        assert_eq!((history.room(), points(&history, "c")), ((2, 0), vec![(104_000, 1.0)]));
    }
}
