//! Plays the scripts in `conformance/scenarios`: a clock that moves only when told, datagrams in,
//! rows out.
//!
//! ```text
//! # a comment
//! set shard.counter_expiry_seconds=30    a setting, before anything else
//! at 1003                                the time is now 1003 s
//! < a:1|c|#x                             a datagram; \n stands for a newline
//! statsd< g:+3|g                         a datagram on a listener of the dialect statsd
//! flush                                  what has closed leaves; exactly the rows that follow
//! stop                                   the same, with the open bucket
//! > a count 1000 1 #x @host              name, kind, time, value, tags, host if not the own
//! count overflow_total 3                 an own counter, as on /metrics
//! ```

use std::fs;

use tallyd::batch::{Batch, Row, Value};
use tallyd::config::{self, Sources};
use tallyd::sample::Dialect;
use tallyd::time::Time;

use crate::world::{HOST, World};

#[test]
fn scenarios() {
    let folder = format!("{}/conformance/scenarios", env!("CARGO_MANIFEST_DIR"));
    let mut names: Vec<_> =
        fs::read_dir(&folder).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    names.sort();
    for path in &names {
        let text = fs::read_to_string(path).expect("a script");
        Play::new(path.file_name().and_then(|n| n.to_str()).expect("a name")).run(&text);
    }
    println!("scenarios: {} played", names.len());
    assert!(!names.is_empty());
}

struct Play<'a> {
    name: &'a str,
    settings: Vec<String>,
    now: Time,
    world: Option<World>,
    /// Rows of the last flush that no line has named yet.
    rows: Vec<String>,
}

impl<'a> Play<'a> {
    const fn new(name: &'a str) -> Self {
        Self { name, settings: Vec::new(), now: Time(0), world: None, rows: Vec::new() }
    }

    fn run(mut self, text: &str) {
        for (number, line) in text.lines().enumerate() {
            let place = format!("{}:{}", self.name, number + 1);
            let line = line.trim_end();
            let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
            if command != ">" {
                assert!(self.rows.is_empty(), "{place}: left over: {:#?}", self.rows);
            }
            match command {
                "" | "#" => {}
                "set" => self.settings.push(rest.to_owned()),
                "at" => self.at(rest.parse().expect(&place)),
                "<" => self.send(Dialect::Datadog, rest),
                "statsd<" => self.send(Dialect::Statsd, rest),
                "flush" => self.flush(false),
                "stop" => self.flush(true),
                ">" => self.expect(rest, &place),
                "count" => self.count(rest, &place),
                other => panic!("{place}: unknown command {other}"),
            }
        }
        assert!(self.rows.is_empty(), "{}: left over: {:#?}", self.name, self.rows);
    }

    fn at(&mut self, seconds: i64) {
        self.now = Time::from_seconds(seconds);
        if self.world.is_none() {
            let sources = Sources { overrides: self.settings.clone(), ..Sources::default() };
            let loaded = config::load(&sources).expect("settings");
            self.world = Some(World::new(&loaded.config, self.now));
        }
    }

    fn send(&mut self, dialect: Dialect, text: &str) {
        let datagram = text.replace("\\n", "\n");
        self.world.as_mut().expect("a time").send(dialect, datagram.as_bytes(), self.now);
    }

    fn flush(&mut self, open: bool) {
        let batch: Batch = self.world.as_ref().expect("a time").flush.batch(self.now, open);
        self.rows = batch.rows.iter().map(described).collect();
    }

    fn expect(&mut self, row: &str, place: &str) {
        let found = self.rows.iter().position(|r| r == row);
        let found = found.unwrap_or_else(|| panic!("{place}: {row:?} is not in {:#?}", self.rows));
        self.rows.remove(found);
    }

    fn count(&self, rest: &str, place: &str) {
        let (name, value) = rest.split_once(' ').expect(place);
        let figures = self.world.as_ref().expect("a time").telemetry.figures(Time::default());
        let sum: f64 = figures.iter().filter(|(n, ..)| *n == name).map(|(.., value)| value).sum();
        assert_eq!(sum.to_string(), value, "{place}");
    }
}

fn described(row: &Row) -> String {
    let context = &row.context;
    let value = match &row.value {
        Value::Count(value) | Value::Gauge(value) => value.to_string(),
        Value::Set(members) => members.to_string(),
        Value::Histogram(s) => {
            format!("n={} min={} avg={} max={} sum={}", s.count, s.min, s.avg(), s.max, s.sum)
        }
        Value::Distribution(s) => {
            format!("n={} min={} max={} sum={}", s.count(), s.min(), s.max(), s.sum())
        }
    };
    let mut text = format!("{} {} {} {value}", context.name(), context.kind().word(), row.time);
    let tags: Vec<_> = context.tags().collect();
    if !tags.is_empty() {
        text += &format!(" #{}", tags.join(","));
    }
    if context.host() != HOST {
        text += &format!(" @{}", context.host());
    }
    text
}
