//! What arrived at a test intake, as text that can be compared with literals.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::datadog_payload::{Body, MetricType, Sketch};
use super::test_intake::Request;

/// Everything in the payloads of some requests.
#[derive(Debug, Default)]
pub struct Received {
    pub points: Vec<Point>,
    pub sketches: Vec<Sketch>,
    pub events: Vec<Json>,
    pub checks: Vec<Json>,
}

/// One point of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub name: String,
    /// Separated by commas.
    pub tags: String,
    pub host: String,
    /// `rate` or `gauge`.
    pub kind: &'static str,
    pub unit: String,
    /// Unix seconds.
    pub time: i64,
    /// Of a rate: times the seconds of its interval.
    pub value: f64,
}

/// Puts back what the division by the interval took.
fn sum_of_rate(rate: f64, interval: i64) -> f64 {
    (rate * interval as f64 * 1e9).round() / 1e9
}

impl Received {
    pub fn of(requests: &[Request]) -> Self {
        let mut received = Self::default();
        for request in requests {
            match request.body.as_ref().unwrap() {
                Body::Series(payload) => payload.series.iter().for_each(|s| received.series(s)),
                Body::Sketches(payload) => received.sketches.extend(payload.sketches.clone()),
                Body::Json(json) => received.json(&request.path, json),
                Body::Empty => {}
            }
        }
        received
    }

    fn series(&mut self, series: &super::datadog_payload::MetricSeries) {
        let host = series.resources.iter().find(|resource| resource.r#type == "host").unwrap();
        for point in &series.points {
            let (kind, value) = match series.r#type() {
                MetricType::Rate => ("rate", sum_of_rate(point.value, series.interval)),
                MetricType::Gauge => ("gauge", point.value),
                MetricType::Unspecified | MetricType::Count => panic!("{series:?}"),
            };
            self.points.push(Point {
                name: series.metric.clone(),
                tags: series.tags.join(","),
                host: host.name.clone(),
                kind,
                unit: series.unit.clone(),
                time: point.timestamp,
                value,
            });
        }
    }

    fn json(&mut self, path: &str, json: &Json) {
        match path {
            "/api/v1/series" => {
                json["series"].as_array().unwrap().iter().for_each(|s| self.series_v1(s));
            }
            "/intake/" => {
                let groups = json["events"].as_object().unwrap().values();
                self.events.extend(groups.flat_map(|group| group.as_array().unwrap().clone()));
            }
            "/api/v1/check_run" => self.checks.extend(json.as_array().unwrap().clone()),
            other => panic!("{other}: {json}"),
        }
    }

    fn series_v1(&mut self, series: &Json) {
        for point in series["points"].as_array().unwrap() {
            let value = point[1].as_f64().unwrap();
            let (kind, value) = match series["type"].as_str().unwrap() {
                "rate" => ("rate", sum_of_rate(value, series["interval"].as_i64().unwrap())),
                "gauge" => ("gauge", value),
                other => panic!("{other}"),
            };
            self.points.push(Point {
                name: text(&series["metric"]),
                tags: words(&series["tags"]),
                host: text(&series["host"]),
                kind,
                unit: String::new(),
                time: point[0].as_i64().unwrap(),
                value,
            });
        }
    }

    /// The points of one name, in the order of their time.
    pub fn named(&self, name: &str) -> Vec<&Point> {
        let mut points: Vec<_> = self.points.iter().filter(|point| point.name == name).collect();
        points.sort_by_key(|point| point.time);
        points
    }

    /// What all points of one name come to.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).iter().map(|point| point.value).sum()
    }

    /// One line for each series, sketch, event and service check, in alphabetical order. Rates are
    /// added up over time; of gauges the last value counts. A host other than `own` is shown.
    pub fn lines(&self) -> Vec<String> {
        let mut points = self.points.clone();
        points.sort_by_key(|point| point.time);
        let mut series = BTreeMap::new();
        for Point { name, tags, host, kind, value, .. } in points {
            let host = shown(&host);
            let figure = series.entry(format!("{name} {kind} [{tags}]{host}")).or_insert(0.0);
            *figure = if kind == "rate" { *figure + value } else { value };
        }
        let series = series.into_iter().map(|(series, value)| format!("{series} {value}"));
        let sketches = self.sketches.iter().flat_map(|sketch| {
            let Sketch { metric, tags, host, dogsketches, .. } = sketch;
            let (tags, host) = (tags.join(","), shown(host));
            dogsketches.iter().map(move |d| {
                let (count, sum, min, max) = (d.cnt, d.sum, d.min, d.max);
                format!("{metric} sketch [{tags}]{host} {count}x {min}..{max} sum {sum}")
            })
        });
        let events = self.events.iter().map(|event| {
            let field = |name: &str| match event[name].as_str() {
                Some("") | None => String::new(),
                Some(value) => format!(" {value}"),
            };
            let (title, body) = (&event["msg_title"], &event["msg_text"]);
            let fields = ["alert_type", "priority", "aggregation_key", "source_type_name"];
            let fields = fields.map(field).concat();
            let (tags, host) = (words(&event["tags"]), shown(&text(&event["host"])));
            format!("event {title} {body}{fields} [{tags}]{host}")
        });
        let checks = self.checks.iter().map(|check| {
            let (name, status, message) =
                (text(&check["check"]), &check["status"], &check["message"]);
            let (tags, host) = (words(&check["tags"]), shown(&text(&check["host_name"])));
            format!("check {name} {status} {message} [{tags}]{host}")
        });
        let mut lines: Vec<_> = series.chain(sketches).chain(events).chain(checks).collect();
        lines.sort();
        lines
    }
}

/// Compares lines with a literal text, whose lines may stand in any order.
#[track_caller]
pub fn assert_lines(requests: &[Request], expected: &str) {
    let found = Received::of(requests).lines();
    let mut wanted: Vec<_> =
        expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    wanted.sort_unstable();
    let missing: Vec<_> = wanted.iter().filter(|line| !found.iter().any(|f| f == *line)).collect();
    let further: Vec<_> = found.iter().filter(|line| !wanted.contains(&line.as_str())).collect();
    assert!(found == wanted, "missing: {missing:#?}\ntoo many: {further:#?}");
}

fn text(json: &Json) -> String {
    json.as_str().unwrap().to_owned()
}

fn words(json: &Json) -> String {
    let words = json.as_array().into_iter().flatten();
    words.map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(",")
}

fn shown(host: &str) -> String {
    if host == "own" { String::new() } else { format!("@{host}") }
}
