//! The last flush as JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use crate::batch::{Batch, Event, Row, ServiceCheck, Value};

/// Series shown when the request does not say how many.
const LIMIT: usize = 1000;

/// What `/api/series` may be asked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Only series whose name contains this.
    #[serde(default)]
    pub name: String,
    /// Only series with this tag.
    pub tag: Option<String>,
    /// Only series whose name, or one of whose tags, contains this.
    pub text: Option<String>,
    /// Series shown at most.
    pub limit: Option<usize>,
}

/// The last flush.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Document {
    /// In Unix seconds.
    flushed_at: i64,
    /// Seconds of a bucket.
    interval: u32,
    /// Series that were asked for; `limit` may have cut the list.
    found: usize,
    series: Vec<Series>,
    /// Title, text, timestamp, host, priority, alert_type, aggregation_key, source_type, tags.
    events: Vec<Json>,
    /// Name, status, timestamp, host, message, tags.
    checks: Vec<Json>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Series {
    name: String,
    /// `count`, `gauge`, `set`, `timer`, `histogram` or `distribution`.
    kind: &'static str,
    host: String,
    tags: Vec<String>,
    /// Start of the bucket in Unix seconds, and the value: a number, or of timers, histograms and
    /// distributions an object with count, sum, min, avg, max and percentiles.
    points: Vec<(i64, Json)>,
}

/// The series of a batch, with its events and service checks.
pub fn document(batch: &Batch, query: &Query) -> Document {
    let wanted = |rows: &&[Row]| {
        let context = &rows[0].context;
        let contains = |text: &str| {
            context.name().contains(text) || context.tags().any(|tag| tag.contains(text))
        };
        context.name().contains(&query.name)
            && query.tag.as_ref().is_none_or(|tag| context.tags().any(|t| t == tag))
            && query.text.as_ref().is_none_or(|text| contains(text))
    };
    let limit = query.limit.unwrap_or(LIMIT);
    Document {
        flushed_at: batch.flushed_at,
        interval: batch.interval,
        found: batch.series().filter(wanted).count(),
        series: batch.series().filter(wanted).take(limit).map(series).collect(),
        events: batch.events.iter().take(limit).map(event).collect(),
        checks: batch.checks.iter().take(limit).map(check).collect(),
    }
}

fn series(rows: &[Row]) -> Series {
    let context = &rows[0].context;
    Series {
        name: context.name().to_owned(),
        kind: context.kind().word(),
        host: context.host().to_owned(),
        tags: context.tags().map(str::to_owned).collect(),
        points: rows.iter().map(|row| (row.time, value(&row.value))).collect(),
    }
}

fn value(value: &Value) -> Json {
    match value {
        Value::Count(value) | Value::Gauge(value) => json!(value),
        Value::Set(members) => json!(members),
        Value::Histogram(summary) => {
            let percentiles: Map<String, Json> =
                summary.percentiles.iter().map(|(p, v)| (p.to_string(), json!(v))).collect();
            json!({
                "count": summary.count,
                "sum": summary.sum,
                "min": summary.min,
                "avg": summary.avg(),
                "median": summary.median,
                "max": summary.max,
                "percentiles": percentiles,
            })
        }
        Value::Distribution(sketch) => {
            let percentiles: Map<String, Json> = [50, 75, 90, 95, 99]
                .into_iter()
                .map(|p: u8| (p.to_string(), json!(sketch.quantile(f64::from(p) / 100.0))))
                .collect();
            json!({
                "count": sketch.count(),
                "sum": sketch.sum(),
                "min": sketch.min(),
                "avg": sketch.avg(),
                "max": sketch.max(),
                "percentiles": percentiles,
            })
        }
    }
}

fn event(event: &Event) -> Json {
    json!({
        "title": event.title,
        "text": event.text,
        "timestamp": event.timestamp,
        "host": event.host,
        "priority": event.priority,
        "alert_type": event.alert_type,
        "aggregation_key": event.aggregation_key,
        "source_type": event.source_type,
        "tags": event.tags,
    })
}

fn check(check: &ServiceCheck) -> Json {
    json!({
        "name": check.name,
        "status": check.status as u8,
        "timestamp": check.timestamp,
        "host": check.host,
        "message": check.message,
        "tags": check.tags,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::context::{Context, Source};
    use crate::sample::Kind;

    #[test]
    fn series_are_filtered_and_counted() {
        let row = |name: &str, tag: &str, time, value| Row {
            context: Arc::new(Context::new(
                name,
                Kind::Gauge,
                "h",
                vec![tag.to_owned()],
                Source::default(),
            )),
            time,
            value: Value::Gauge(value),
        };
        let first = row("queue.depth", "env:dev", 10, 1.0);
        let again = Row { time: 20, value: Value::Gauge(2.0), ..first.clone() };
        let batch = Batch {
            flushed_at: 30,
            interval: 10,
            rows: vec![first, again, row("queue.size", "env:prod", 10, 3.0), row("x", "", 10, 4.0)],
            ..Batch::default()
        };
        let ask = |name: &str, tag: Option<&str>, limit| {
            let (name, tag) = (name.to_owned(), tag.map(String::from));
            json!(document(&batch, &Query { name, tag, limit, text: None }))
        };
        assert_eq!(ask("", None, None)["found"], 3);
        assert_eq!(ask("queue", None, Some(1))["series"].as_array().map(Vec::len), Some(1));
        assert_eq!(ask("queue", None, Some(1))["found"], 2);
        for (text, found) in [("queue", 2), ("env:d", 1), ("prod", 1), ("y", 0)] {
            let query = Query { text: Some(text.to_owned()), ..Query::default() };
            assert_eq!(document(&batch, &query).found, found, "{text}");
        }
        assert_eq!(
            ask("", Some("env:dev"), None)["series"],
            json!([{
                "name": "queue.depth", "kind": "gauge", "host": "h", "tags": ["env:dev"],
                "points": [[10, 1.0], [20, 2.0]],
            }])
        );
    }
}
