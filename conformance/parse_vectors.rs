//! The vectors about lines, datagrams, streams and the original statsd, each expectation compared
//! in full, for the fast path and for the grammar.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use tallyd::parse::{Datagram, Options};
use tallyd::sample::{
    AlertType, Dialect, Kind, Message, OriginFields, Priority, Reject, Sample, Values, split_tags,
};
use tallyd::stream::Framer;
use tallyd::{grammar, parse};

/// Vectors whose recorded expectation is not ours: id, reason, what we do instead.
fn differing() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (
            "f004",
            "the Agent closes the connection at an empty frame; nothing is wrong with one, so it is \
             ignored",
            json!({"payloads": ["a:1|c"], "connection": "open"}),
        ),
        (
            "y028",
            "the original divides by the rate 0; a rate outside (0, 1] counts as 1 here",
            json!({"counters": {"k": 1}}),
        ),
    ]
}

/// Vectors about things beyond a line: id and reason.
const NOT_APPLICABLE: [(&str, &str); 2] = [
    ("y034", "figures of a timer at a flush, under the original's names and percentile rule"),
    ("y036", "Graphite's text, which is no output of ours"),
];

/// Reads a file of vectors.
pub(crate) fn load(group: &str) -> Vec<Value> {
    let path = format!("{}/conformance/vectors/{group}.jsonl", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The bytes that a vector sends.
fn input(vector: &Value) -> Vec<u8> {
    let line = vector["line"].as_str();
    match (line, vector["line_hex"].as_str(), vector["encoding"].as_str()) {
        (Some(line), None, None) => line.as_bytes().to_vec(),
        (Some(hex), None, Some("hex")) | (None, Some(hex), None) => from_hex(hex),
        _ => panic!("unknown form: {vector}"),
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// The vectors have the client's origin fields and timestamps on unless they say otherwise.
fn options(vector: &Value) -> Options {
    let on = |key| vector["config"][key].as_bool().unwrap_or(true);
    Options {
        dialect: Dialect::Datadog,
        origin_fields: on("dogstatsd_origin_detection_client"),
        timestamps: on("dogstatsd_no_aggregation_pipeline"),
    }
}

#[test]
fn vectors() {
    let mut run = Run::default();
    for group in ["metric", "event", "service_check"] {
        for vector in load(group) {
            let (line, options) = (input(&vector), options(&vector));
            run.compare(&vector, described(parse::line(&line, options)));
            run.compare(&vector, described(grammar::message(&line, options)));
        }
    }
    for vector in load("packet") {
        run.compare(&vector, packet(&vector));
    }
    for vector in load("stream") {
        run.compare(&vector, stream(&input(&vector)));
    }
    for vector in load("etsy") {
        if !run.not_applicable(&vector) {
            let mut found = statsd(&input(&vector));
            // Not every vector says something of these.
            for key in ["timer_counters", "metrics_received"] {
                if vector["expect"].get(key).is_none() {
                    found.as_object_mut().expect("object").remove(key);
                }
            }
            run.compare(&vector, found);
        }
    }
    run.finish();
}

#[derive(Default)]
struct Run {
    run: BTreeSet<String>,
    differing: BTreeSet<String>,
    not_applicable: BTreeSet<String>,
    failures: Vec<String>,
}

impl Run {
    fn compare(&mut self, vector: &Value, found: Value) {
        let id = vector["id"].as_str().expect("id");
        self.run.insert(id.to_owned());
        let ours = differing().into_iter().find(|(differing, ..)| *differing == id);
        let expected = match ours {
            Some((_, _, ours)) => {
                self.differing.insert(id.to_owned());
                ours
            }
            None => vector["expect"].clone(),
        };
        let (expected, found) = (comparable(expected), comparable(found));
        if expected != found {
            self.failures.push(format!("{id}: expected {expected}\n      found    {found}"));
        }
    }

    fn not_applicable(&mut self, vector: &Value) -> bool {
        let id = vector["id"].as_str().expect("id");
        let listed = NOT_APPLICABLE.iter().any(|(listed, _)| *listed == id);
        if listed {
            self.not_applicable.insert(id.to_owned());
        }
        listed
    }

    fn finish(self) {
        println!("vectors: {} run, of these differing by decision:", self.run.len());
        for (id, why, _) in differing() {
            println!("  {id}: {why}");
            assert!(self.differing.contains(id), "{id} is listed, but there is no such vector");
        }
        println!("vectors: {} not applicable:", self.not_applicable.len());
        for (id, why) in NOT_APPLICABLE {
            println!("  {id}: {why}");
            assert!(
                self.not_applicable.contains(id),
                "{id} is listed, but there is no such vector"
            );
        }
        assert!(self.failures.is_empty(), "\n{}", self.failures.join("\n"));
        assert!(self.run.len() > 150, "vectors are missing");
    }
}

/// Numbers as floats, and without what only says that something is absent (an empty host, an inode
/// of 0, the flag of a warning) or is not ours to count (packets).
fn comparable(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64().map(|n| n + 0.0)),
        Value::Array(values) => values.into_iter().map(comparable).collect(),
        Value::Object(map) => {
            let mut map: Map<String, Value> =
                map.into_iter().map(|(key, value)| (key, comparable(value))).collect();
            map.retain(|key, value| match key.as_str() {
                "hostname" | "message" => value != "",
                "local_data" | "external_data" => value != &json!({}),
                "inode" => value != &json!(0.0),
                "init" => value != &json!(false),
                "inode_error" | "init_error" | "packets_received" => false,
                _ => true,
            });
            if let Some(Value::Array(fields)) = map.get("ignored_fields") {
                map.insert("ignored_fields".to_owned(), json!(fields.len()));
            }
            map.sort_keys();
            Value::Object(map)
        }
        other => other,
    }
}

/// A result of the parser in the words of the vectors.
fn described(result: Result<Message<'_>, Reject>) -> Value {
    let message = match result {
        Ok(message) => message,
        Err(reject) => return json!({"error": reject.word()}),
    };
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| drop(map.insert(key.to_owned(), value));
    match message {
        Message::Metric(sample) => {
            put("kind", json!("metric"));
            put("name", text(sample.name));
            put("type", json!(type_word(sample.kind)));
            put("rate", json!(sample.rate));
            if let Values::Member(member) = sample.values {
                put("set_value", text(member));
            } else {
                put("values", numbers(sample.values).map(number).collect());
            }
            if let Some(time) = sample.timestamp {
                put("timestamp", json!(time));
            }
            tags(sample.tags, &mut put);
            origin(sample.origin, &mut put);
        }
        Message::Event(event) => {
            put("kind", json!("event"));
            put("title", text(&parse::unescape(event.title)));
            put("text", text(&parse::unescape(event.text)));
            put("timestamp", json!(event.timestamp));
            put(
                "priority",
                json!(match event.priority {
                    Priority::Normal => "normal",
                    Priority::Low => "low",
                }),
            );
            put(
                "alert_type",
                json!(match event.alert_type {
                    AlertType::Error => "error",
                    AlertType::Warning => "warning",
                    AlertType::Info => "info",
                    AlertType::Success => "success",
                }),
            );
            put("hostname", text(event.host));
            for (key, value) in [
                ("aggregation_key", event.aggregation_key),
                ("source_type_name", event.source_type),
            ] {
                if !value.is_empty() {
                    put(key, text(value));
                }
            }
            if event.ignored > 0 {
                put("ignored_fields", vec![Value::Null; event.ignored.into()].into());
            }
            tags(event.tags, &mut put);
            origin(event.origin, &mut put);
        }
        Message::Check(check) => {
            put("kind", json!("service_check"));
            put("name", text(check.name));
            put("status", json!(check.status as u8));
            put("timestamp", json!(check.timestamp));
            put("hostname", text(check.host));
            put("message", text(check.message));
            if check.ignored > 0 {
                put("ignored_fields", vec![Value::Null; check.ignored.into()].into());
            }
            tags(check.tags, &mut put);
            origin(check.origin, &mut put);
        }
    }
    map.into()
}

fn text(bytes: &[u8]) -> Value {
    json!(std::str::from_utf8(bytes).expect("UTF-8"))
}

fn type_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Timer => "timing",
        Kind::Count | Kind::Gauge | Kind::Set | Kind::Histogram | Kind::Distribution => kind.word(),
    }
}

fn numbers(values: Values<'_>) -> impl Iterator<Item = f64> {
    let (one, packed) = match values {
        Values::One(value) | Values::Delta(value) => (Some(value), &b""[..]),
        Values::Packed(text) => (None, text),
        Values::Member(_) => (None, &b""[..]),
    };
    one.into_iter().chain(parse::packed(packed))
}

fn number(value: f64) -> Value {
    if value.is_nan() {
        json!("NaN")
    } else if value.is_infinite() {
        json!(if value > 0.0 { "+Inf" } else { "-Inf" })
    } else {
        json!(value)
    }
}

fn tags(field: &[u8], put: &mut impl FnMut(&str, Value)) {
    if std::str::from_utf8(field).is_ok() {
        put("tags", split_tags(field).map(text).collect());
    } else {
        let hex = |tag: &[u8]| tag.iter().map(|b| format!("{b:02x}")).collect::<String>();
        put("tags_hex", split_tags(field).map(hex).collect());
    }
}

fn origin(fields: OriginFields<'_>, put: &mut impl FnMut(&str, Value)) {
    let filled = |map: Vec<(&str, Value)>| -> Value {
        map.into_iter().filter(|(_, value)| value != "" && !value.is_null()).collect()
    };
    let local = parse::parse_local(fields.local);
    put(
        "local_data",
        filled(vec![("container_id", text(local.container_id)), ("inode", json!(local.inode))]),
    );
    let external = parse::parse_external(fields.external);
    put(
        "external_data",
        filled(vec![
            ("init", json!(external.init)),
            ("container_name", text(external.container_name)),
            ("pod_uid", text(external.pod_uid)),
        ]),
    );
    if !fields.cardinality.is_empty() {
        put("cardinality", text(fields.cardinality));
    }
}

fn packet(vector: &Value) -> Value {
    let bytes = input(vector);
    let datagram = Datagram::new(&bytes);
    let whole = vector["eol_required"] != true;
    let read = if whole { &bytes[..] } else { datagram.complete };
    let mut messages: Vec<Value> = Vec::new();
    for line in parse::lines(read) {
        parse::messages(line, options(vector), |message| messages.push(described(message)));
    }
    if !whole && datagram.tail.is_some() {
        messages.push(described(Err(Reject::Unterminated)));
    }
    json!({ "messages": messages })
}

fn stream(bytes: &[u8]) -> Value {
    let mut framer = Framer::new(8192);
    framer.space()[..bytes.len()].copy_from_slice(bytes);
    framer.filled(bytes.len());
    let mut payloads = Vec::new();
    while let Some(payload) = framer.payload() {
        match payload {
            Ok(payload) => payloads.push(text(payload)),
            Err(_) => return json!({"payloads": payloads, "connection": "closed"}),
        }
    }
    json!({"payloads": payloads, "connection": "open"})
}

/// What the original statsd would hold after these lines, by the samples that we read.
fn statsd(bytes: &[u8]) -> Value {
    let mut bad = 0;
    let mut counters: BTreeMap<String, f64> = BTreeMap::new();
    let mut gauges: BTreeMap<String, f64> = BTreeMap::new();
    let mut sets: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
    let mut timers: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut timer_counters: BTreeMap<String, f64> = BTreeMap::new();
    let mut apply = |sample: Result<Sample<'_>, Reject>| {
        let Ok(sample) = sample else {
            bad += 1;
            return;
        };
        let key = graphite_key(&sample);
        let weight = sample.reading().weight().unwrap_or(1.0);
        match (sample.kind, sample.values) {
            (Kind::Count, Values::One(value)) => {
                *counters.entry(key).or_default() += value * weight;
            }
            (Kind::Gauge, Values::One(value)) => drop(gauges.insert(key, value)),
            (Kind::Gauge, Values::Delta(change)) => *gauges.entry(key).or_default() += change,
            (Kind::Set, Values::Member(member)) => {
                sets.entry(key).or_default().insert(member.to_vec());
            }
            (Kind::Timer, Values::One(value)) => {
                timers.entry(key.clone()).or_default().push(value);
                *timer_counters.entry(key).or_default() += weight;
            }
            other => panic!("not of this dialect: {other:?}"),
        }
    };
    for line in parse::lines(bytes) {
        parse::statsd_line(line, &mut apply);
    }
    let sets: BTreeMap<_, _> = sets.into_iter().map(|(key, set)| (key, set.len())).collect();
    let mut map = Map::new();
    for (key, value) in [
        ("counters", json!(counters)),
        ("gauges", json!(gauges)),
        ("sets", json!(sets)),
        ("timers", json!(timers)),
        ("timer_counters", json!(timer_counters)),
        ("metrics_received", json!(parse::lines(bytes).count())),
    ] {
        if value != json!({}) {
            map.insert(key.to_owned(), value);
        }
    }
    if bad > 0 {
        map.insert("bad_lines".to_owned(), json!(bad));
    }
    map.into()
}

/// The original writes tags behind the name, in Graphite's form.
fn graphite_key(sample: &Sample<'_>) -> String {
    let mut key = String::new();
    parse::sanitise_key(sample.name, &mut key);
    for tag in sample.tags() {
        let mut clean = String::new();
        parse::sanitise_tag(tag, &mut clean);
        key.push(';');
        key.push_str(&clean.replacen(':', "=", 1));
    }
    key
}
