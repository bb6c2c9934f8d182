//! The last flush as JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::last::{self, Last};
use crate::batch::{Event, ServiceCheck};

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

/// The series of the last flush, with its events and service checks.
pub fn document(last: &Last, query: &Query) -> Document {
    let wanted = |series: &last::Series<'_>| {
        let context = series.context();
        let contains = |text: &str| {
            context.name().contains(text) || context.tags().any(|tag| tag.contains(text))
        };
        context.name().contains(&query.name)
            && query.tag.as_ref().is_none_or(|tag| context.tags().any(|t| t == tag))
            && query.text.as_ref().is_none_or(|text| contains(text))
    };
    let limit = query.limit.unwrap_or(LIMIT);
    Document {
        flushed_at: last.flushed_at,
        interval: last.interval,
        found: last.series().filter(wanted).count(),
        series: last.series().filter(wanted).take(limit).map(|one| series(&one)).collect(),
        events: last.events.iter().take(limit).map(event).collect(),
        checks: last.checks.iter().take(limit).map(check).collect(),
    }
}

fn series(series: &last::Series<'_>) -> Series {
    let context = series.context();
    Series {
        name: context.name().to_owned(),
        kind: context.kind().word(),
        host: context.host().to_owned(),
        tags: context.tags().map(str::to_owned).collect(),
        points: series.points().collect(),
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
    use super::super::last::tests::{of, row};
    use super::*;
    use crate::batch::{Row, Value};
    use crate::sample::Kind;

    #[test]
    fn series_are_filtered_and_counted() {
        let gauge =
            |name: &str, tag: &str, value| row(name, Kind::Gauge, tag, 10, Value::Gauge(value));
        let first = gauge("queue.depth", "env:dev", 1.0);
        let again = Row { time: 20, value: Value::Gauge(2.0), ..first.clone() };
        let last =
            of(vec![first, again, gauge("queue.size", "env:prod", 3.0), gauge("x", "", 4.0)]);
        let ask = |name: &str, tag: Option<&str>, limit| {
            let (name, tag) = (name.to_owned(), tag.map(String::from));
            json!(document(&last, &Query { name, tag, limit, text: None }))
        };
        assert_eq!(ask("", None, None)["found"], 3);
        assert_eq!(ask("queue", None, Some(1))["series"].as_array().map(Vec::len), Some(1));
        assert_eq!(ask("queue", None, Some(1))["found"], 2);
        for (text, found) in [("queue", 2), ("env:d", 1), ("prod", 1), ("y", 0)] {
            let query = Query { text: Some(text.to_owned()), ..Query::default() };
            assert_eq!(document(&last, &query).found, found, "{text}");
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
