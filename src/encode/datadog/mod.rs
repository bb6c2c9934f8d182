//! Bodies for the Datadog intake: series, sketches, events and service checks.
//!
//! Points are counted as the intake sees them: a histogram's bucket is one point for each of its
//! figures. What is encoded plus what is dropped is all there was, save the routes that are off and
//! the figures that are blocked.

mod checks;
mod events;
mod pack;
mod series;
mod series_v1;
mod series_v2;
mod sketches;
mod split;

#[cfg(test)]
#[path = "../../../conformance/datadog_payload.rs"]
pub(crate) mod datadog_payload;

use crate::batch::Batch;
use crate::context::{Context, Source};
use crate::encode::Encoded;
use crate::encode::protobuf::Message;
use pack::Output;

pub use pack::{Compression, Limits};
pub use split::split;

/// What is encoded, and how large a body may become.
#[derive(Clone, Debug)]
pub struct Options {
    /// The routes that are on; series are offered on one of their two.
    pub routes: Vec<Route>,
    /// Name of this host, for the frame around events.
    pub hostname: String,
    pub compression: Compression,
    /// Bounds of v2 series. Their points bound all series.
    pub series: Limits,
    /// Bounds of everything else.
    pub other: Limits,
}

/// One path of the intake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    SeriesV2,
    SeriesV1,
    Sketches,
    Events,
    Checks,
}

impl Route {
    pub const ALL: [Self; 5] =
        [Self::SeriesV2, Self::SeriesV1, Self::Sketches, Self::Events, Self::Checks];

    /// The kinds of payload of all routes.
    pub const WORDS: [&'static str; 5] = [
        Self::SeriesV2.word(),
        Self::SeriesV1.word(),
        Self::Sketches.word(),
        Self::Events.word(),
        Self::Checks.word(),
    ];

    /// The kind of its payloads.
    pub const fn word(self) -> &'static str {
        match self {
            Self::SeriesV2 => "series",
            Self::SeriesV1 => "series_v1",
            Self::Sketches => "sketches",
            Self::Events => "events",
            Self::Checks => "service_checks",
        }
    }

    /// The route of a kind.
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|route| route.word() == word)
    }

    pub const fn path(self) -> &'static str {
        match self {
            Self::SeriesV2 => "/api/v2/series",
            Self::SeriesV1 => "/api/v1/series",
            Self::Sketches => "/api/beta/sketches",
            Self::Events => "/intake/",
            Self::Checks => "/api/v1/check_run",
        }
    }

    /// Protobuf, or else JSON.
    pub const fn is_protobuf(self) -> bool {
        match self {
            Self::SeriesV2 | Self::Sketches => true,
            Self::SeriesV1 | Self::Events | Self::Checks => false,
        }
    }
}

/// Turns a batch into the bodies of every route that is on.
pub fn encode(batch: &Batch, options: &Options) -> Encoded {
    let mut encoded = Encoded::default();
    for &route in &options.routes {
        let limits = if route == Route::SeriesV2 { options.series } else { options.other };
        let output = Output::new(route, options.compression, limits, &mut encoded);
        match route {
            Route::SeriesV2 => series_v2::encode(batch, output),
            Route::SeriesV1 => series_v1::encode(batch, options.series.points, output),
            Route::Sketches => sketches::encode(batch, output),
            Route::Events => events::encode(&batch.events, &options.hostname, output),
            Route::Checks => checks::encode(&batch.checks, output),
        }
    }
    encoded
}

/// Tags that begin so name the device of a series.
const DEVICE: &str = "device:";
/// Tags that begin so name further resources of a series, as `type:name`.
const RESOURCE: &str = "dd.internal.resource:";

/// The device that the tags name; the last one wins.
fn device(context: &Context) -> Option<&str> {
    context.tags().filter_map(|tag| tag.strip_prefix(DEVICE)).last().filter(|d| !d.is_empty())
}

/// Type and name of each resource that the tags name; the malformed are left out.
fn resources(context: &Context) -> impl Iterator<Item = (&str, &str)> {
    let named = context.tags().filter_map(|tag| tag.strip_prefix(RESOURCE)?.split_once(':'));
    named.filter(|(kind, name)| !kind.is_empty() && !name.is_empty())
}

/// The tags that stay tags: those that name no device and no resource.
fn plain_tags(context: &Context) -> impl Iterator<Item = &str> {
    context.tags().filter(|tag| !tag.starts_with(DEVICE) && !tag.starts_with(RESOURCE))
}

/// `origin_product` of everything that came in by DogStatsD.
const PRODUCT: u64 = 10;
/// `origin_category` of plain DogStatsD.
const CATEGORY_DOGSTATSD: u64 = 10;
/// `origin_category` of a JMX check's metrics, which say so by a tag.
const CATEGORY_JMX: u64 = 11;

/// Writes what the intake calls the metadata of a series: which product it is accounted to.
fn metadata(message: &mut Message<'_>, field: u32, source: Source) {
    let category = if source == Source::default() { CATEGORY_DOGSTATSD } else { CATEGORY_JMX };
    message.message(field, |metadata| {
        metadata.message(1, |origin| {
            origin.uint64(4, PRODUCT);
            origin.uint64(5, category);
            origin.uint64(6, u64::from(source.0));
        });
    });
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use serde_json::{Value as Json, json};

    use super::datadog_payload::*;
    use super::*;
    use crate::batch::{Event, Row, ServiceCheck, Value};
    use crate::rules;
    use crate::sample::{AlertType, Kind, Priority, Status};
    use crate::value::{Aggregate, Summary};

    fn options(route: Route) -> Options {
        let wide = Limits { compressed: 1 << 20, raw: 1 << 20, points: 10_000 };
        Options {
            routes: vec![route],
            hostname: "agent-host".to_owned(),
            compression: Compression::Zstd(1),
            series: wide,
            other: wide,
        }
    }

    fn context(name: &str, kind: Kind, host: &str, tags: &[&str]) -> Context {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        Context::new(name, kind, host, tags, Source::default())
    }

    fn row(context: &Context, time: i64, value: Value) -> Row {
        Row { context: context.clone(), time, value }
    }

    fn batch(rows: Vec<Row>) -> Batch {
        use Aggregate::{Avg, Count, Max, Median};
        Batch {
            flushed_at: 1_000_010,
            interval: 10,
            rows,
            aggregates: Arc::new([Max, Median, Avg, Count]),
            ..Batch::default()
        }
    }

    fn summary() -> Value {
        Value::Histogram(Box::new(Summary {
            count: 4.0,
            sum: 100.0,
            min: 10.0,
            max: 40.0,
            median: 20.0,
            percentiles: vec![(95, 39.0)],
        }))
    }

    /// What the intake reads, with the number of points each payload claims, and those dropped.
    fn decoded(batch: &Batch, options: &Options) -> (Vec<Body>, Vec<u64>, u64) {
        let encoded = encode(batch, options);
        let path_of: HashMap<_, _> = Route::ALL.iter().map(|r| (r.word(), r.path())).collect();
        let bodies = encoded.payloads.iter().map(|payload| {
            let crate::encode::Body::Bytes(bytes) = &payload.body else { panic!("no bytes") };
            decode(path_of[payload.kind], options.compression.coding().word(), bytes).unwrap()
        });
        let points = encoded.payloads.iter().map(|payload| payload.points).collect();
        (bodies.collect(), points, encoded.dropped)
    }

    fn series(batch: &Batch) -> Vec<MetricSeries> {
        let (bodies, _, dropped) = decoded(batch, &options(Route::SeriesV2));
        assert_eq!(dropped, 0);
        let all = bodies.into_iter().flat_map(|body| match body {
            Body::Series(payload) => payload.series,
            other => panic!("{other:?}"),
        });
        all.collect()
    }

    fn json_of(batch: &Batch, route: Route) -> Vec<Json> {
        let (bodies, _, dropped) = decoded(batch, &options(route));
        assert_eq!(dropped, 0);
        let all = bodies.into_iter().map(|body| match body {
            Body::Json(json) => json,
            other => panic!("{other:?}"),
        });
        all.collect()
    }

    fn resource(kind: &str, name: &str) -> Resource {
        Resource { r#type: kind.to_owned(), name: name.to_owned() }
    }

    fn origin(category: u32, service: u32) -> Option<Metadata> {
        Some(Metadata { origin: Some(Origin { product: 10, category, service }) })
    }

    /// Name, type, unit and points of every series.
    type Figures<'a> = Vec<(&'a str, MetricType, &'a str, Vec<(i64, f64)>)>;

    fn figures(series: &[MetricSeries]) -> Figures<'_> {
        let figures = series.iter().map(|s| {
            let points = s.points.iter().map(|p| (p.timestamp, p.value)).collect();
            (&*s.metric, s.r#type(), &*s.unit, points)
        });
        figures.collect()
    }

    #[test]
    fn every_kind_has_its_type_suffixes_and_unit() {
        use MetricType::{Gauge, Rate};
        let c = context("c", Kind::Count, "h", &[]);
        let g = context("g", Kind::Gauge, "h", &[]);
        let s = context("s", Kind::Set, "h", &[]);
        let h = context("h", Kind::Histogram, "h", &[]);
        let t = context("t", Kind::Timer, "h", &[]);
        let d = context("d", Kind::Distribution, "h", &[]);
        let batch = batch(vec![
            row(&c, 1_000_000, Value::Count(25.0)),
            row(&g, 1_000_000, Value::Gauge(-1.5)),
            row(&s, 1_000_000, Value::Set(3)),
            row(&h, 1_000_000, summary()),
            row(&t, 1_000_000, summary()),
            row(&d, 1_000_000, Value::Distribution(Box::default())),
        ]);
        let at = |value| vec![(1_000_000, value)];
        let expected: Figures<'_> = vec![
            ("c", Rate, "", at(2.5)),
            ("g", Gauge, "", at(-1.5)),
            ("s", Gauge, "", at(3.0)),
            ("h.max", Gauge, "", at(40.0)),
            ("h.median", Gauge, "", at(20.0)),
            ("h.avg", Gauge, "", at(25.0)),
            ("h.count", Rate, "", at(0.4)),
            ("h.95percentile", Gauge, "", at(39.0)),
            ("t.max", Gauge, "millisecond", at(40.0)),
            ("t.median", Gauge, "millisecond", at(20.0)),
            ("t.avg", Gauge, "millisecond", at(25.0)),
            ("t.count", Rate, "", at(0.4)),
            ("t.95percentile", Gauge, "millisecond", at(39.0)),
        ];
        assert_eq!(figures(&series(&batch)), expected);
        let (_, points, _) = decoded(&batch, &options(Route::SeriesV2));
        assert_eq!(points, [13]);
    }

    #[test]
    fn the_other_aggregates_and_percentiles_are_named_as_the_agent_does() {
        let h = context("h", Kind::Histogram, "", &[]);
        let Value::Histogram(mut summary) = summary() else { unreachable!() };
        summary.percentiles = vec![(5, 11.0), (99, 40.0)];
        let mut batch = batch(vec![row(&h, 10, Value::Histogram(summary))]);
        batch.aggregates = Arc::new([Aggregate::Sum, Aggregate::Min]);
        let series = series(&batch);
        let names: Vec<_> = figures(&series).iter().map(|f| (f.0, f.3[0].1)).collect();
        let expected =
            [("h.sum", 100.0), ("h.min", 10.0), ("h.5percentile", 11.0), ("h.99percentile", 40.0)];
        assert_eq!(names, expected);
    }

    #[test]
    fn blocked_figures_are_not_sent() {
        let h = context("h", Kind::Histogram, "", &[]);
        for (blocked, prefix, expected) in [
            (&["h.max", "h.95percentile"][..], false, &["h.median", "h.avg", "h.count"][..]),
            (&["h.m"], false, &["h.max", "h.median", "h.avg", "h.count", "h.95percentile"]),
            (&["h.m"], true, &["h.avg", "h.count", "h.95percentile"]),
        ] {
            let config = rules::Config {
                metric_blocklist: blocked.iter().map(|name| (*name).to_owned()).collect(),
                metric_blocklist_match_prefix: prefix,
                ..rules::Config::default()
            };
            let mut batch = batch(vec![row(&h, 10, summary())]);
            batch.blocklist = rules::Rules::new(&config, "").unwrap().blocklist();
            let series = series(&batch);
            let names: Vec<_> = figures(&series).iter().map(|f| f.0).collect();
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn a_series_has_every_field_of_the_definition() {
        let a = context("a", Kind::Count, "agent-host", &["k:v", "env:dev"]);
        let batch = batch(vec![row(&a, 1_000_000, Value::Count(1.0))]);
        let expected = MetricSeries {
            resources: vec![resource("host", "agent-host")],
            metric: "a".to_owned(),
            tags: vec!["env:dev".to_owned(), "k:v".to_owned()],
            points: vec![MetricPoint { value: 0.1, timestamp: 1_000_000 }],
            r#type: 2,
            unit: String::new(),
            source_type_name: String::new(),
            interval: 10,
            metadata: origin(10, 0),
        };
        assert_eq!(series(&batch), [expected]);
    }

    #[test]
    fn a_zero_is_a_point_with_its_time_only() {
        let a = context("a", Kind::Gauge, "", &[]);
        let mut options = options(Route::SeriesV2);
        options.compression = Compression::None;
        let encoded = encode(&batch(vec![row(&a, 5, Value::Gauge(0.0))]), &options);
        let crate::encode::Body::Bytes(bytes) = &encoded.payloads[0].body else { unreachable!() };
        let literal = [
            &b"\x0a\x1b"[..],                    // series, 27 bytes
            b"\x0a\x06\x0a\x04host",             // resource without a name
            b"\x12\x01a",                        // metric
            b"\x22\x02\x10\x05",                 // point: no value, time 5
            b"\x28\x03",                         // type gauge
            b"\x40\x0a",                         // interval 10
            b"\x4a\x06\x0a\x04\x20\x0a\x28\x0a", // origin 10 / 10, no service
        ];
        assert_eq!(*bytes, literal.concat());
    }

    #[test]
    fn tags_name_device_and_resources() {
        let host = || resource("host", "h");
        let db = || resource("db", "main");
        for (tags, resources, left) in [
            (&["k"][..], vec![host()], &["k"][..]),
            (&["device:sda", "k"], vec![host(), resource("device", "sda")], &["k"]),
            (&["device:sda", "device:sdb"], vec![host(), resource("device", "sdb")], &[]),
            (&["device:"], vec![host()], &[]),
            (&["devices:x", "device"], vec![host()], &["device", "devices:x"]),
            (&["dd.internal.resource:db:main", "k"], vec![host(), db()], &["k"]),
            (&["dd.internal.resource:db:a:b"], vec![host(), resource("db", "a:b")], &[]),
            (&["dd.internal.resource:bad", "k"], vec![host()], &["k"]),
            (&["dd.internal.resource::x", "dd.internal.resource:x:"], vec![host()], &[]),
            (
                &["dd.internal.resource:db:main", "device:sda"],
                vec![host(), resource("device", "sda"), db()],
                &[],
            ),
        ] {
            let a = context("a", Kind::Gauge, "h", tags);
            let series = series(&batch(vec![row(&a, 10, Value::Gauge(1.0))]));
            assert_eq!(series[0].resources, resources, "{tags:?}");
            assert_eq!(series[0].tags, left, "{tags:?}");
        }
    }

    #[test]
    fn a_jmx_source_is_accounted_to_its_service() {
        let jmx = Context::new("a", Kind::Gauge, "", Vec::new(), Source(90));
        let sketch = Value::Distribution(Box::new(sketch(&[1.0])));
        let batch = batch(vec![row(&jmx, 10, Value::Gauge(1.0)), row(&jmx, 10, sketch)]);
        assert_eq!(series(&batch)[0].metadata, origin(11, 90));
        assert_eq!(sketches(&batch)[0].metadata, origin(11, 90));
    }

    #[test]
    fn rows_of_one_context_are_points_of_one_series_per_figure() {
        let h = context("h", Kind::Histogram, "", &[]);
        let mut batch = batch(vec![row(&h, 10, summary()), row(&h, 20, summary())]);
        batch.aggregates = Arc::new([Aggregate::Max, Aggregate::Count]);
        let series = series(&batch);
        let expected: Figures<'_> = vec![
            ("h.max", MetricType::Gauge, "", vec![(10, 40.0), (20, 40.0)]),
            ("h.count", MetricType::Rate, "", vec![(10, 0.4), (20, 0.4)]),
            ("h.95percentile", MetricType::Gauge, "", vec![(10, 39.0), (20, 39.0)]),
        ];
        assert_eq!(figures(&series), expected);
    }

    #[test]
    fn points_that_are_not_finite_are_dropped_and_counted() {
        let a = context("a", Kind::Gauge, "", &[]);
        let b = context("b", Kind::Gauge, "", &[]);
        let batch = batch(vec![
            row(&a, 10, Value::Gauge(f64::NAN)),
            row(&a, 20, Value::Gauge(1.0)),
            row(&a, 30, Value::Gauge(f64::INFINITY)),
            row(&b, 10, Value::Gauge(f64::NEG_INFINITY)),
        ]);
        for route in [Route::SeriesV2, Route::SeriesV1] {
            let (bodies, points, dropped) = decoded(&batch, &options(route));
            assert_eq!((bodies.len(), points, dropped), (1, vec![1], 3));
        }
        let (bodies, ..) = decoded(&batch, &options(Route::SeriesV2));
        let Body::Series(payload) = &bodies[0] else { unreachable!() };
        let expected: Figures<'_> = vec![("a", MetricType::Gauge, "", vec![(20, 1.0)])];
        assert_eq!(figures(&payload.series), expected);
    }

    #[test]
    fn payloads_end_at_the_points_and_a_long_series_is_parted() {
        let long = context("long", Kind::Gauge, "", &[]);
        let short = context("short", Kind::Gauge, "", &[]);
        let rows = (0..25).map(|i| row(&long, i, Value::Gauge(i as f64)));
        let rows = rows.chain([row(&short, 99, Value::Gauge(99.0))]).collect();
        let mut options = options(Route::SeriesV2);
        options.series.points = 10;
        let (bodies, points, dropped) = decoded(&batch(rows), &options);
        assert_eq!((points, dropped), (vec![10, 10, 6], 0));
        let mut times = Vec::new();
        for body in &bodies {
            let Body::Series(payload) = body else { unreachable!() };
            times.extend(payload.series.iter().flat_map(|s| &s.points).map(|p| p.timestamp));
        }
        assert_eq!(times, (0..25).chain([99]).collect::<Vec<_>>());
    }

    #[test]
    fn every_route_splits_at_both_sizes_without_loss() {
        let mut batch = batch(Vec::new());
        for i in 0..120 {
            let name = format!("metric.{i}");
            let gauge = context(&name, Kind::Gauge, "h", &[]);
            batch.rows.push(row(&gauge, 10, Value::Gauge(i as f64)));
            let distribution = context(&name, Kind::Distribution, "h", &[]);
            let value = Value::Distribution(Box::new(sketch(&[1.0])));
            batch.rows.push(row(&distribution, 10, value));
        }
        let every = || (0..120).map(|i| format!("metric.{i}"));
        batch.events = every().map(|name| event(&name, "")).collect();
        batch.checks = every().map(|name| check(&name)).collect();
        let wide = Limits { compressed: 1 << 20, raw: 1 << 20, points: 10_000 };
        for limits in [Limits { raw: 2000, ..wide }, Limits { compressed: 250, ..wide }] {
            for route in Route::ALL {
                let options = Options { series: limits, other: limits, ..options(route) };
                let (bodies, points, dropped) = decoded(&batch, &options);
                assert!(bodies.len() > 1, "{route:?} at {limits:?}: {} bodies", bodies.len());
                assert_eq!((points.iter().sum::<u64>(), dropped), (120, 0), "{route:?}");
                let mut names: Vec<String> = bodies.iter().flat_map(names).collect();
                names.sort_by_key(|name| name["metric.".len()..].parse::<u32>().unwrap());
                let expected: Vec<String> = (0..120).map(|i| format!("metric.{i}")).collect();
                assert_eq!(names, expected, "{route:?} at {limits:?}");
            }
        }
    }

    /// The names in a body of any route.
    fn names(body: &Body) -> Vec<String> {
        let strings = |list: &Json, key: &str| -> Vec<String> {
            let names = list.as_array().unwrap().iter().map(|item| &item[key]);
            names.map(|name| name.as_str().unwrap().to_owned()).collect()
        };
        match body {
            Body::Series(payload) => payload.series.iter().map(|s| s.metric.clone()).collect(),
            Body::Sketches(payload) => payload.sketches.iter().map(|s| s.metric.clone()).collect(),
            Body::Json(json) if json.is_array() => strings(json, "check"),
            Body::Json(json) if json["series"].is_array() => strings(&json["series"], "metric"),
            Body::Json(json) => strings(&json["events"]["api"], "msg_title"),
            Body::Empty => panic!("an empty body"),
        }
    }

    fn sketch(values: &[f64]) -> crate::sketch::Sketch {
        let mut sketch = crate::sketch::Sketch::default();
        values.iter().for_each(|&value| sketch.insert(value));
        sketch.finish();
        sketch
    }

    fn sketches(batch: &Batch) -> Vec<Sketch> {
        let (bodies, _, dropped) = decoded(batch, &options(Route::Sketches));
        assert_eq!(dropped, 0);
        let all = bodies.into_iter().flat_map(|body| match body {
            Body::Sketches(payload) => {
                assert_eq!(payload.metadata, Some(CommonMetadata::default()));
                payload.sketches
            }
            other => panic!("{other:?}"),
        });
        all.collect()
    }

    #[test]
    fn a_distribution_has_every_field_of_the_definition() {
        let tags = ["device:sda", "env:dev"];
        let d = context("d", Kind::Distribution, "h", &tags);
        let g = context("g", Kind::Gauge, "h", &tags);
        let (one, two) = (sketch(&[-3.0, 0.0, 4.0, 5.0]), sketch(&[0.0]));
        let batch = batch(vec![
            row(&d, 10, Value::Distribution(Box::new(one.clone()))),
            row(&d, 20, Value::Distribution(Box::new(two.clone()))),
            row(&g, 10, Value::Gauge(1.0)),
        ]);
        let keys = |sketch: &crate::sketch::Sketch| sketch.bins().map(|b| b.0.into()).collect();
        let counts = |sketch: &crate::sketch::Sketch| sketch.bins().map(|b| b.1).collect();
        let expected = Sketch {
            metric: "d".to_owned(),
            host: "h".to_owned(),
            tags: tags.map(String::from).to_vec(),
            dogsketches: vec![
                Dogsketch {
                    ts: 10,
                    cnt: 4,
                    min: -3.0,
                    max: 5.0,
                    avg: 1.5,
                    sum: 6.0,
                    k: keys(&one),
                    n: counts(&one),
                },
                Dogsketch { ts: 20, cnt: 1, k: vec![0], n: vec![1], ..Dogsketch::default() },
            ],
            metadata: origin(10, 0),
        };
        assert_eq!(expected.dogsketches[0].k.len(), 4);
        assert_eq!(sketches(&batch), [expected]);
    }

    #[test]
    fn v1_series_are_json() {
        let c = context("c", Kind::Count, "h", &["device:sda", "dd.internal.resource:db:x", "k"]);
        let g = context("g", Kind::Gauge, "", &[]);
        let batch = batch(vec![
            row(&c, 10, Value::Count(25.0)),
            row(&c, 20, Value::Count(0.0)),
            row(&g, 10, Value::Gauge(1e300)),
        ]);
        let expected = json!({"series": [
            {"metric": "c", "points": [[10, 2.5], [20, 0.0]], "tags": ["k"], "host": "h",
             "device": "sda", "type": "rate", "interval": 10},
            {"metric": "g", "points": [[10, 1e300]], "tags": [], "host": "", "type": "gauge",
             "interval": 10},
        ]});
        assert_eq!(json_of(&batch, Route::SeriesV1), [expected]);
    }

    fn event(title: &str, source_type: &str) -> Event {
        Event {
            title: title.to_owned(),
            text: String::new(),
            timestamp: 10,
            host: String::new(),
            aggregation_key: String::new(),
            source_type: source_type.to_owned(),
            priority: Priority::Normal,
            alert_type: AlertType::Info,
            tags: Vec::new(),
        }
    }

    #[test]
    fn events_are_grouped_by_source_type() {
        let mut batch = batch(Vec::new());
        let full = Event {
            text: "line\nline \"two\"".to_owned(),
            host: "h".to_owned(),
            aggregation_key: "key".to_owned(),
            priority: Priority::Low,
            alert_type: AlertType::Error,
            tags: vec!["a".to_owned(), "b:c".to_owned()],
            ..event("full", "nagios")
        };
        batch.events = [event("one", ""), full, event("two", "")].into();
        let plain = |title: &str| {
            json!({"msg_title": title, "msg_text": "", "timestamp": 10, "priority": "normal",
                   "host": "", "alert_type": "info"})
        };
        let expected = json!({
            "apiKey": "",
            "events": {
                "api": [plain("one"), plain("two")],
                "nagios": [
                    {"msg_title": "full", "msg_text": "line\nline \"two\"", "timestamp": 10,
                     "priority": "low", "host": "h", "tags": ["a", "b:c"], "alert_type": "error",
                     "aggregation_key": "key", "source_type_name": "nagios"},
                ],
            },
            "internalHostname": "agent-host",
        });
        assert_eq!(json_of(&batch, Route::Events), [expected]);
    }

    #[test]
    fn events_go_by_the_hundred_and_only_the_oversized_are_dropped() {
        let mut batch = batch(Vec::new());
        batch.events = (0..250).map(|i| event(&i.to_string(), "")).collect();
        Arc::make_mut(&mut batch.events)[120].text = "x".repeat(100_000);
        let mut options = options(Route::Events);
        options.other.raw = 50_000;
        let (bodies, points, dropped) = decoded(&batch, &options);
        assert_eq!(dropped, 1);
        assert_eq!(points.iter().sum::<u64>(), 249);
        assert!(points.iter().all(|&points| points <= 100));
        let names: Vec<String> = bodies.iter().flat_map(names).collect();
        let expected: Vec<String> = (0..250).filter(|&i| i != 120).map(|i| i.to_string()).collect();
        assert_eq!(names, expected);
    }

    fn check(name: &str) -> ServiceCheck {
        ServiceCheck {
            name: name.to_owned(),
            status: Status::Ok,
            timestamp: 10,
            host: String::new(),
            message: String::new(),
            tags: Vec::new(),
        }
    }

    #[test]
    fn service_checks_are_an_array_with_every_field() {
        let mut batch = batch(Vec::new());
        let full = ServiceCheck {
            status: Status::Unknown,
            host: "h".to_owned(),
            message: "m".to_owned(),
            tags: vec!["a".to_owned()],
            ..check("b")
        };
        batch.checks = [check("a"), full].into();
        let expected = json!([
            {"check": "a", "host_name": "", "timestamp": 10, "status": 0, "message": "",
             "tags": []},
            {"check": "b", "host_name": "h", "timestamp": 10, "status": 3, "message": "m",
             "tags": ["a"]},
        ]);
        assert_eq!(json_of(&batch, Route::Checks), [expected]);
    }

    #[test]
    fn a_route_that_is_off_or_has_nothing_to_send_makes_no_payload() {
        let full = Batch { checks: [check("a")].into(), ..batch(Vec::new()) };
        let all = Options { routes: Route::ALL.to_vec(), ..options(Route::Checks) };
        let kinds = |batch: &Batch, options: &Options| -> Vec<&'static str> {
            encode(batch, options).payloads.iter().map(|payload| payload.kind).collect()
        };
        assert_eq!(kinds(&full, &all), ["service_checks"]);
        assert_eq!(kinds(&full, &Options { routes: Vec::new(), ..all.clone() }), [""; 0]);
        assert_eq!(kinds(&Batch::default(), &all), [""; 0]);
    }
}
