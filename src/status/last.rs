//! The last flush, as the page shows it.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use crate::batch::{Batch, Event, Row, ServiceCheck, Value};
use crate::context::Context;
use crate::sample::Kind;

/// Of each distribution, in per cent.
const PERCENTILES: [u8; 5] = [50, 75, 90, 95, 99];
const QUANTILES: [f64; 5] = [0.5, 0.75, 0.9, 0.95, 0.99];

/// What the rows of a flush came to, without the bins of distributions: a batch goes when the sinks
/// have it, and this stays until the next flush, in a third of the bytes.
#[derive(Debug, Default)]
pub struct Last {
    /// In Unix seconds; 0 before the first.
    pub flushed_at: i64,
    /// Seconds of a bucket.
    pub interval: u32,
    pub events: Arc<[Event]>,
    pub checks: Arc<[ServiceCheck]>,
    /// Rows of one series stand together, in the order of their time.
    rows: Vec<Kept>,
    /// The time of each in Unix seconds, or one alone that is that of all.
    times: Vec<i64>,
    /// Of histograms: count, sum, minimum, maximum, median, and their percentiles. Of distributions
    /// the same, with the average for the median.
    figures: Vec<f64>,
    /// Of each histogram, in per cent.
    percentiles: Box<[u8]>,
}

#[derive(Debug)]
struct Kept {
    context: Context,
    /// The bits of a number; of a histogram or distribution, where its figures begin.
    value: u64,
}

const _: () = assert!(size_of::<Kept>() == 16);

impl Last {
    /// Room for what a batch holds: the walk over its rows brings them by [`Last::add`].
    pub fn of(batch: &Batch) -> Self {
        let mut rows = Vec::new();
        rows.reserve_exact(batch.rows.len());
        Self {
            flushed_at: batch.flushed_at,
            interval: batch.interval,
            events: Arc::clone(&batch.events),
            checks: Arc::clone(&batch.checks),
            rows,
            ..Self::default()
        }
    }

    /// Takes in a row; those of one series come one after another.
    pub fn add(&mut self, row: &Row) {
        let first = *self.times.first().unwrap_or(&row.time);
        if self.times.is_empty() {
            self.times.push(first);
        } else if self.times.len() > 1 || row.time != first {
            self.times.resize(self.rows.len(), first);
            self.times.push(row.time);
        }
        let value = match &row.value {
            Value::Count(value) | Value::Gauge(value) => value.to_bits(),
            Value::Set(members) => *members,
            Value::Histogram(summary) => {
                let begin = self.figures.len() as u64;
                let percentiles = summary.percentiles.iter();
                if self.percentiles.len() != percentiles.len() {
                    self.percentiles = percentiles.clone().map(|(p, _)| *p).collect();
                }
                let of = [summary.count, summary.sum, summary.min, summary.max, summary.median];
                self.figures.extend(of.into_iter().chain(percentiles.map(|(_, value)| *value)));
                begin
            }
            Value::Distribution(sketch) => {
                let begin = self.figures.len() as u64;
                let (count, avg) = (sketch.count() as f64, sketch.avg());
                self.figures.extend([count, sketch.sum(), sketch.min(), sketch.max(), avg]);
                self.figures.extend(sketch.quantiles(&QUANTILES));
                begin
            }
        };
        self.rows.push(Kept { context: row.context.clone(), value });
    }

    /// Number of points, tallyd's own series left out.
    pub fn points(&self) -> u64 {
        (self.rows.len() + self.events.len() + self.checks.len()) as u64
    }

    pub fn series(&self) -> impl Iterator<Item = Series<'_>> {
        let mut end = 0;
        self.rows.chunk_by(|a, b| a.context.is(&b.context)).map(move |rows| {
            let begin = end;
            end += rows.len();
            Series { last: self, rows: begin..end }
        })
    }

    fn time(&self, row: usize) -> i64 {
        self.times[if self.times.len() > 1 { row } else { 0 }]
    }

    fn value(&self, Kept { context, value }: &Kept) -> Json {
        let (middle, percentiles) = match context.kind() {
            Kind::Count | Kind::Gauge => return json!(f64::from_bits(*value)),
            Kind::Set => return json!(value),
            Kind::Timer | Kind::Histogram => ("median", &*self.percentiles),
            Kind::Distribution => ("avg", &PERCENTILES[..]),
        };
        let figures = &self.figures[*value as usize..];
        let &[count, sum, min, max, average, ..] = figures else { unreachable!("all were kept") };
        let percentiles = percentiles.iter().zip(&figures[5..]);
        let percentiles: Map<String, Json> =
            percentiles.map(|(p, value)| (p.to_string(), json!(value))).collect();
        let mut value = json!({
            "count": count,
            "sum": sum,
            "min": min,
            "avg": sum / count,
            "max": max,
            "percentiles": percentiles,
        });
        value[middle] = json!(average);
        value
    }
}

/// One series of the last flush.
#[derive(Clone)]
pub struct Series<'a> {
    last: &'a Last,
    rows: Range<usize>,
}

impl<'a> Series<'a> {
    pub fn context(&self) -> &'a Context {
        &self.last.rows[self.rows.start].context
    }

    /// The time of each point in Unix seconds, and the value: a number, or of timers, histograms and
    /// distributions an object.
    pub fn points(&self) -> impl Iterator<Item = (i64, Json)> {
        let last = self.last;
        self.rows.clone().map(move |row| (last.time(row), last.value(&last.rows[row])))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::context::Source;
    use crate::sketch::Sketch;
    use crate::value::{Cell, Config, Plan, Room};

    pub fn of(rows: Vec<Row>) -> Last {
        let batch = Batch { flushed_at: 30, interval: 10, rows, ..Batch::default() };
        let mut last = Last::of(&batch);
        batch.rows.iter().for_each(|row| last.add(row));
        last
    }

    pub fn row(name: &str, kind: Kind, tag: &str, time: i64, value: Value) -> Row {
        let tags = vec![tag.to_owned()];
        let context = Context::new(name, kind, "h", tags, Source::default());
        Row { context, time, value }
    }

    fn closed(kind: Kind, values: &[f64]) -> Value {
        let config = Config {
            histogram_percentiles: vec!["0.9".to_owned(), "0.5".to_owned()],
            ..Config::default()
        };
        let plan = Plan::from_config(&config);
        let mut cell = Cell::default();
        for &value in values {
            match kind {
                Kind::Set => cell.member(value.to_bits(), &plan, &mut Room::unlimited()),
                _ => cell.add(kind, value, 1.0, &plan),
            }
        }
        cell.close(&plan).unwrap()
    }

    fn points(last: &Last) -> Vec<Vec<(i64, Json)>> {
        last.series().map(|series| series.points().collect()).collect()
    }

    #[test]
    fn every_kind_is_shown_with_its_figures() {
        let values = [4.0, 1.0, 7.0, 1.0];
        let of_kind = |kind| row("a", kind, "", 20, closed(kind, &values));
        let kinds = [Kind::Count, Kind::Gauge, Kind::Set, Kind::Timer, Kind::Distribution];
        // Figures of one must not be taken for those of another.
        let mut rows: Vec<_> = kinds.into_iter().chain(kinds).map(of_kind).collect();
        rows.push(of_kind(Kind::Histogram));
        let shown = points(&of(rows));
        let histogram = json!({
            "count": 4.0, "sum": 13.0, "min": 1.0, "avg": 3.25, "median": 1.0, "max": 7.0,
            "percentiles": {"50": 1.0, "90": 7.0},
        });
        assert_eq!(
            shown[..4],
            [json!(13.0), json!(1.0), json!(3), histogram].map(|v| vec![(20, v)])
        );
        assert_eq!(shown[..5], shown[5..10]);
        assert_eq!(shown[10], shown[3]);

        let mut sketch = Sketch::new();
        values.iter().for_each(|&value| sketch.insert(value));
        sketch.finish();
        let quantile = |q: f64| sketch.quantile(q).unwrap();
        let distribution = json!({
            "count": 4.0, "sum": 13.0, "min": 1.0, "avg": 3.25, "max": 7.0,
            "percentiles": {
                "50": quantile(0.5), "75": quantile(0.75), "90": quantile(0.9),
                "95": quantile(0.95), "99": quantile(0.99),
            },
        });
        assert_eq!(shown[4], [(20, distribution)]);
    }

    #[test]
    fn points_with_times_of_their_own_keep_them() {
        let first = row("a", Kind::Gauge, "", 10, Value::Gauge(1.0));
        let at = |time| Row { time, ..first.clone() };
        let other = || row("b", Kind::Count, "", 10, Value::Count(2.0));
        for times in [vec![10], vec![10, 10], vec![10, 20], vec![10, 10, 30], vec![5, 7, 9]] {
            let shown = points(&of(times.iter().map(|&time| at(time)).chain([other()]).collect()));
            let expect = times.iter().map(|&time| (time, json!(1.0))).collect();
            assert_eq!(shown, [expect, vec![(10, json!(2.0))]]);
        }
        assert_eq!(points(&Last::default()), Vec::<Vec<_>>::new());
    }
}
