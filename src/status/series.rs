//! The last flush as JSON.

use serde::Deserialize;
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
    /// Series shown at most.
    pub limit: Option<usize>,
}

/// The series of a batch, with its events and service checks.
pub fn document(batch: &Batch, query: &Query) -> Json {
    let wanted = |rows: &&[Row]| {
        let context = &rows[0].context;
        context.name().contains(&query.name)
            && query.tag.as_ref().is_none_or(|tag| context.tags().any(|t| t == tag))
    };
    let limit = query.limit.unwrap_or(LIMIT);
    let found = batch.series().filter(wanted).count();
    json!({
        "flushed_at": batch.flushed_at,
        "interval": batch.interval,
        "found": found,
        "series": batch.series().filter(wanted).take(limit).map(series).collect::<Vec<_>>(),
        "events": batch.events.iter().take(limit).map(event).collect::<Vec<_>>(),
        "checks": batch.checks.iter().take(limit).map(check).collect::<Vec<_>>(),
    })
}

fn series(rows: &[Row]) -> Json {
    let context = &rows[0].context;
    json!({
        "name": context.name(),
        "kind": context.kind().word(),
        "host": context.host(),
        "tags": context.tags().collect::<Vec<_>>(),
        "points": rows.iter().map(|row| json!([row.time, value(&row.value)])).collect::<Vec<_>>(),
    })
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
            let query = Query { name: name.to_owned(), tag: tag.map(String::from), limit };
            document(&batch, &query)
        };
        assert_eq!(ask("", None, None)["found"], 3);
        assert_eq!(ask("queue", None, Some(1))["series"].as_array().map(Vec::len), Some(1));
        assert_eq!(ask("queue", None, Some(1))["found"], 2);
        assert_eq!(
            ask("", Some("env:dev"), None)["series"],
            json!([{
                "name": "queue.depth", "kind": "gauge", "host": "h", "tags": ["env:dev"],
                "points": [[10, 1.0], [20, 2.0]],
            }])
        );
    }
}
