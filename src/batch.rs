//! What leaves at a flush: owned, immutable, shared by every sink.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::blocklist::Blocklist;
use crate::context::Context;
use crate::sample::{AlertType, Priority, Status};
use crate::time::Time;
use crate::value::Aggregate;

pub use crate::value::Value;

/// Everything that one flush hands to the sinks.
#[derive(Debug, Default)]
pub struct Batch {
    /// Unix seconds at which the flush happened.
    pub flushed_at: i64,
    /// When the first of what it was made of arrived, if anything did.
    pub first: Option<Time>,
    /// Length of a bucket in seconds: what a count is divided by to become a rate.
    pub interval: u32,
    /// What it was made of: see [`Generation`](crate::shard::Generation).
    pub generations: Range<u64>,
    /// Rows of one context stand together, in the order of their time.
    pub rows: Vec<Row>,
    /// tallyd's own counters as series, for sinks that have no other way to them.
    pub own: Vec<Row>,
    pub events: Arc<[Event]>,
    pub checks: Arc<[ServiceCheck]>,
    /// Which figures of a histogram are sent, in order. The same for every sink.
    pub aggregates: Arc<[Aggregate]>,
    /// Which of them, and which percentiles, are not sent for a name after all.
    pub blocklist: Arc<Blocklist>,
}

/// One point of one series: the value of a bucket, or of a timestamped sample.
#[derive(Clone, Debug)]
pub struct Row {
    pub context: Context,
    /// Unix seconds: the bucket's start, or the sample's own time.
    pub time: i64,
    pub value: Value,
}

/// An event, unescaped and enriched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub title: String,
    pub text: String,
    /// Unix seconds.
    pub timestamp: i64,
    /// Empty when it has none.
    pub host: String,
    pub aggregation_key: String,
    pub source_type: String,
    pub priority: Priority,
    pub alert_type: AlertType,
    /// Sorted, without repetitions.
    pub tags: Vec<String>,
}

/// A service check, enriched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCheck {
    pub name: String,
    pub status: Status,
    /// Unix seconds.
    pub timestamp: i64,
    /// Empty when it has none.
    pub host: String,
    pub message: String,
    /// Sorted, without repetitions.
    pub tags: Vec<String>,
}

impl Batch {
    /// Number of points: what is counted as offered, delivered or dropped.
    pub fn points(&self) -> u64 {
        self.users_points() + self.own.len() as u64
    }

    /// The same without tallyd's own series, for sinks that do not show them.
    pub fn users_points(&self) -> u64 {
        (self.rows.len() + self.events.len() + self.checks.len()) as u64
    }

    pub fn is_empty(&self) -> bool {
        self.points() == 0
    }

    /// The users' rows, one context after another.
    pub fn series(&self) -> impl Iterator<Item = &[Row]> {
        series(&self.rows)
    }

    /// The same, and then tallyd's own.
    pub fn series_and_own(&self) -> impl Iterator<Item = &[Row]> {
        series(&self.rows).chain(series(&self.own))
    }
}

fn series(rows: &[Row]) -> impl Iterator<Item = &[Row]> {
    rows.chunk_by(|a, b| a.context.is(&b.context))
}
