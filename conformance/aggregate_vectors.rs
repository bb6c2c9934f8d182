//! The vectors about whole samples: what the Agent was seen to send for some lines. They go in as
//! datagrams, under the Agent's own settings, and come out as the intake's payloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tallyd::batch::Batch;
use tallyd::config;
use tallyd::sample::Dialect;
use tallyd::sinks::datadog::Datadog;
use tallyd::sinks::{Body, Sink};
use tallyd::time::Time;

use crate::datadog_payload::{self, Body as Decoded};
use crate::parse_vectors::load;
use crate::world::{HOST, World};

/// Vectors whose recorded expectation is not ours: id, reason, the series we send instead.
fn differing(id: &str) -> Option<(&'static str, Value)> {
    let one = |metric, kind, time, value| json!({"metric": metric, "type": kind, "points": [[time, value]], "interval": 10});
    Some(match id {
        "g004" => ("a rate outside (0, 1] counts as 1", json!([one("a", "rate", 1000, 0.1)])),
        "g013" => (
            "a rate outside (0, 1] counts as 1",
            json!([
                one("h.max", "gauge", 1000, 9.0),
                one("h.median", "gauge", 1000, 9.0),
                one("h.avg", "gauge", 1000, 9.0),
                one("h.count", "rate", 1000, 0.1),
                one("h.95percentile", "gauge", 1000, 9.0),
            ]),
        ),
        "g017" => (
            "two kinds under one name never mix",
            json!([one("x", "gauge", 1000, 5.0), one("x", "rate", 1000, 0.1)]),
        ),
        "g028" => (
            "the sample rate of a timestamped count is applied",
            json!([one("c", "rate", 1_700_000_000, 1.4)]),
        ),
        "g029" => (
            "the points of one series come together",
            json!([{
                "metric": "c", "type": "rate", "interval": 10,
                "points": [[1_700_000_003, 0.1], [1_700_000_003, 0.2]],
            }]),
        ),
        _ => return None,
    })
}

#[test]
fn aggregates() {
    let (mut run, mut different) = (0, 0);
    for vector in load("aggregate") {
        let id = vector["id"].as_str().expect("id");
        let config = settings(&vector);
        if vector["expect"]["series"].is_null() {
            expiry(&vector, &config);
            run += 1;
            continue;
        }
        let mut world = World::new(&config, Time::from_seconds(1000));
        let line = vector["line"].as_str().expect("line");
        world.send(Dialect::Datadog, line.as_bytes(), Time::from_seconds(1003));
        let batch = Arc::new(world.flush(Time::from_seconds(1010)));
        let expected = match differing(id) {
            Some((_, ours)) => {
                different += 1;
                ours
            }
            None => vector["expect"]["series"].clone(),
        };
        assert_same(id, &series(&batch), expected.as_array().expect("series"));
        let sketches = vector["expect"]["sketches"].as_array().cloned().unwrap_or_default();
        assert_eq!(sketch_names(&batch), sketches, "{id}");
        run += 1;
    }
    println!("aggregate vectors: {run} run, {different} of them differ by decision");
}

/// The settings of a vector are the Agent's.
fn settings(vector: &Value) -> config::Config {
    let mut agent = vector["config"].as_object().cloned().unwrap_or_default();
    agent.remove("arrival");
    let text = Value::from(agent).to_string();
    config::agent_from_text("vector", &text, &[]).expect("the Agent's settings").config
}

/// The zeros of an idle counter end, and then the series is forgotten.
fn expiry(vector: &Value, config: &config::Config) {
    let expect = |key: &str| vector["expect"][key].as_i64().expect(key);
    let mut world = World::new(config, Time::from_seconds(1000));
    let arrival = vector["config"]["arrival"].as_i64().expect("arrival");
    let line = vector["line"].as_str().expect("line");
    world.send(Dialect::Datadog, line.as_bytes(), Time::from_seconds(arrival));
    let (mut last_zero, mut forgotten) = (0, None);
    for now in (1010..1500).step_by(10) {
        for row in world.flush(Time::from_seconds(now)).rows {
            last_zero = last_zero.max(row.time);
        }
        let held = world.telemetry.contexts.load(std::sync::atomic::Ordering::Relaxed);
        forgotten = forgotten.or_else(|| (held == 0).then_some(now));
    }
    let before = expect("last_zero_bucket_before");
    assert!(last_zero < before && last_zero + 10 >= before, "the last zero is of {last_zero}");
    let over = expect("context_dropped_when_flush_time_over");
    let forgotten = forgotten.expect("the series is forgotten");
    assert!(forgotten > over && forgotten <= over + 10, "it was forgotten at {forgotten}");
}

/// Series as the intake's JSON has them.
fn series(batch: &Arc<Batch>) -> Vec<Value> {
    let mut series = Vec::new();
    for bytes in payloads(batch, "series_v1") {
        let json: Value = serde_json::from_slice(&bytes).expect("JSON");
        series.extend(json["series"].as_array().expect("series").clone());
    }
    series
}

/// The uncompressed payloads of one kind.
fn payloads(batch: &Arc<Batch>, kind: &str) -> Vec<Vec<u8>> {
    let config = tallyd::sinks::datadog::Config {
        api_key: "0123456789abcdef".to_owned(),
        compressor_kind: "none".to_owned(),
        use_v2_series: false,
        ..Default::default()
    };
    let payloads =
        Datadog::new(&config, HOST, &Arc::default()).expect("sink").encode(batch).payloads;
    let bytes = |body| match body {
        Body::Bytes(bytes) => bytes,
        Body::Batch(_) => panic!("{kind} has bytes"),
    };
    payloads.into_iter().filter(|p| p.kind == kind).map(|p| bytes(p.body)).collect()
}

fn sketch_names(batch: &Arc<Batch>) -> Vec<Value> {
    let mut names = Vec::new();
    for bytes in payloads(batch, "sketches") {
        match datadog_payload::decode("/api/beta/sketches", "identity", &bytes) {
            Ok(Decoded::Sketches(sketches)) => {
                names.extend(sketches.sketches.into_iter().map(|s| Value::from(s.metric)));
            }
            other => panic!("{other:?}"),
        }
    }
    names
}

/// Compares metric, type, interval and points, whatever the order of the series.
fn assert_same(id: &str, ours: &[Value], expected: &[Value]) {
    let key = |series: &Value| {
        let word = |field: &str| series[field].as_str().unwrap_or_default().to_owned();
        (word("metric"), word("type"))
    };
    let group = |all: &[Value]| {
        let mut groups = BTreeMap::<_, Vec<(i64, f64)>>::new();
        for series in all {
            assert_eq!(series["interval"], 10, "{id}: {series}");
            for point in series["points"].as_array().expect("points") {
                let value = point[1].as_f64().expect("a finite value");
                groups
                    .entry(key(series))
                    .or_default()
                    .push((point[0].as_i64().expect("time"), value));
            }
        }
        groups
    };
    assert_eq!(ours.len(), expected.len(), "{id}: {ours:?}");
    let (ours, expected) = (group(ours), group(expected));
    assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{id}");
    for (key, points) in &expected {
        assert_eq!(ours[key].len(), points.len(), "{id}: {key:?}");
        for (ours, theirs) in ours[key].iter().zip(points) {
            assert_eq!(ours.0, theirs.0, "{id}: {key:?}");
            let tolerance = theirs.1.abs() * 1e-12;
            assert!((ours.1 - theirs.1).abs() <= tolerance, "{id}: {key:?}: {ours:?}, {theirs:?}");
        }
    }
}
