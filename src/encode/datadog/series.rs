//! A batch as series of the intake, whatever their encoding: names with suffixes, rates, figures.

use std::fmt::Write;

use crate::batch::{Batch, Row, Value};
use crate::context::Context;
use crate::sample::Kind;
use crate::value::Suffix;

/// One series: every point of one figure of one context.
pub struct Series<'a> {
    pub context: &'a Context,
    /// The context's name with the figure's suffix.
    pub name: &'a str,
    /// A rate per second, or else a gauge.
    pub rate: bool,
    /// Empty where none is known.
    pub unit: &'static str,
    /// Seconds of a bucket.
    pub interval: u32,
    /// Unix seconds and value, all finite. Never empty.
    pub points: &'a [(i64, f64)],
}

/// Gives every series to `each`, in order. One of more than `points_max` points comes in parts, so
/// that none is lost: the Agent drops it. Returns the number of points that were left out because
/// they are not finite, which the intake would refuse.
pub fn expand(batch: &Batch, points_max: usize, mut each: impl FnMut(&Series<'_>)) -> u64 {
    let mut dropped = 0;
    let mut name = String::new();
    let mut points = Vec::new();
    for rows in batch.series_and_own() {
        let context = &rows[0].context;
        for index in 0.. {
            let Some(Number { suffix, rate, .. }) = number(&rows[0], index, batch) else { break };
            name.clear();
            name.push_str(context.name());
            if let Some(suffix) = suffix {
                // Writing to a string does not fail.
                let _ = write!(name, "{suffix}");
            }
            // A name without a suffix was tested when it came in.
            if suffix.is_some() && batch.blocklist.blocks(&name) {
                continue;
            }
            points.clear();
            points.extend(
                rows.iter().filter_map(|row| Some((row.time, number(row, index, batch)?.value))),
            );
            let all = points.len();
            points.retain(|(_, value)| value.is_finite());
            dropped += (all - points.len()) as u64;
            for points in points.chunks(points_max.max(1)) {
                let unit = unit(context.kind(), rate);
                let interval = batch.interval;
                each(&Series { context, name: &name, rate, unit, interval, points });
            }
        }
    }
    dropped
}

/// Timers are in milliseconds; the rate at which they come is not.
const fn unit(kind: Kind, rate: bool) -> &'static str {
    match kind {
        Kind::Timer if !rate => "millisecond",
        Kind::Timer
        | Kind::Count
        | Kind::Gauge
        | Kind::Set
        | Kind::Histogram
        | Kind::Distribution => "",
    }
}

/// One of the numbers that a row comes to.
struct Number {
    /// Of a histogram's figures.
    suffix: Option<Suffix>,
    /// Per second where it is a rate.
    value: f64,
    rate: bool,
}

/// The number of that index, from 0 up; a distribution has none, as it is not a series.
fn number(row: &Row, index: usize, batch: &Batch) -> Option<Number> {
    let only = |value, rate| (index == 0).then_some((None, value, rate));
    let (suffix, value, rate) = match &row.value {
        Value::Count(sum) => only(*sum, true),
        Value::Gauge(value) => only(*value, false),
        Value::Set(members) => only(*members as f64, false),
        Value::Histogram(summary) => {
            let figure = summary.figures(&batch.aggregates).nth(index);
            figure.map(|figure| (Some(figure.suffix), figure.value, figure.rate))
        }
        Value::Distribution(_) => None,
    }?;
    let seconds = if rate { f64::from(batch.interval.max(1)) } else { 1.0 };
    Some(Number { suffix, value: value / seconds, rate })
}
