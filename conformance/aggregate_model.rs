//! The aggregate against a naive twin: a map from series and bucket to a value. And against itself
//! under several threads: what goes in comes out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use proptest::prelude::*;
use tallyd::batch::{Row, Value};
use tallyd::config::{self, Config, Sources};
use tallyd::sample::Dialect;
use tallyd::time::Time;

use crate::world::World;

#[derive(Clone, Debug)]
enum Step {
    /// Series, order of its tags, value.
    Count(u8, bool, u8),
    Gauge(u8, bool, u8),
    Set(u8, bool, u8),
    /// Milliseconds that pass.
    Wait(u16),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..6_u8, any::<bool>(), 1..100_u8).prop_map(|(s, o, v)| Step::Count(s, o, v)),
        3 => (0..6_u8, any::<bool>(), 1..100_u8).prop_map(|(s, o, v)| Step::Gauge(s, o, v)),
        1 => (0..6_u8, any::<bool>(), 1..9_u8).prop_map(|(s, o, v)| Step::Set(s, o, v)),
        2 => (1..12_000_u16).prop_map(Step::Wait),
        2 => Just(Step::Flush),
    ]
}

fn settings(overrides: &[&str]) -> Config {
    let overrides = overrides.iter().map(|o| (*o).to_owned()).collect();
    let sources = Sources { overrides, ..Sources::default() };
    config::load(&sources).expect("settings").config
}

/// Name and kind of the series, start of the bucket.
type Key = (String, &'static str, i64);

fn take(rows: Vec<Row>, found: &mut BTreeMap<Key, f64>) {
    for row in rows {
        let value = match row.value {
            Value::Count(0.0) => continue,
            Value::Count(value) | Value::Gauge(value) => value,
            Value::Set(members) => members as f64,
            other => panic!("{other:?}"),
        };
        let key = (row.context.name().to_owned(), row.context.kind().word(), row.time);
        assert_eq!(found.insert(key.clone(), value), None, "{key:?} came twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn naive_twin(steps in proptest::collection::vec(step(), 1..120), shards in 1..4_usize) {
        let config = settings(&[
            "shard.context_expiry_seconds=10",
            "shard.counter_expiry_seconds=20",
            &format!("shard.shards={shards}"),
        ]);
        let mut now = Time::from_seconds(1000);
        let mut world = World::new(&config, now);
        let (mut found, mut expected) = (BTreeMap::new(), BTreeMap::<Key, f64>::new());
        let mut members = BTreeMap::<Key, std::collections::BTreeSet<u8>>::new();
        for step in steps {
            let key = |series, kind| (format!("s{series}"), kind, now.bucket(10));
            let tags = |turned| if turned { "b,a,a" } else { "a,b" };
            match step {
                Step::Count(series, turned, value) => {
                    let line = format!("s{series}:{value}|c|#{}", tags(turned));
                    world.send(Dialect::Datadog, line.as_bytes(), now);
                    *expected.entry(key(series, "count")).or_default() += f64::from(value);
                }
                Step::Gauge(series, turned, value) => {
                    let line = format!("s{series}:{value}|g|#{}", tags(turned));
                    world.send(Dialect::Datadog, line.as_bytes(), now);
                    expected.insert(key(series, "gauge"), f64::from(value));
                }
                Step::Set(series, turned, value) => {
                    let line = format!("s{series}:{value}|s|#{}", tags(turned));
                    world.send(Dialect::Datadog, line.as_bytes(), now);
                    let members = members.entry(key(series, "set")).or_default();
                    members.insert(value);
                    expected.insert(key(series, "set"), members.len() as f64);
                }
                Step::Wait(milliseconds) => now.0 += i64::from(milliseconds),
                Step::Flush => take(world.flush(now).rows, &mut found),
            }
        }
        take(world.flush.batch(now, true).rows, &mut found);
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn nothing_is_lost_between_readers_and_the_flush() {
    const READERS: usize = 3;
    const DATAGRAMS: usize = 3000;
    // Every bucket of a second may expire series, so rows are freed and reused all the time.
    let config = settings(&[
        "flush.interval=1",
        "shard.context_expiry_seconds=1",
        "shard.counter_expiry_seconds=1",
        "shard.contexts_max=6",
        "shard.shards=2",
    ]);
    let clock = AtomicI64::new(1_000_000);
    let done = AtomicBool::new(false);
    let mut worlds = World::several(&config, Time(clock.load(Ordering::Relaxed)), READERS);
    let flush = worlds[0].flush.clone();
    let telemetry = worlds[0].telemetry.clone();
    let sum = |rows: Vec<Row>| -> f64 {
        let value = |row: Row| match row.value {
            Value::Count(value) => value,
            other => panic!("{other:?}"),
        };
        rows.into_iter().map(value).sum()
    };
    let total = thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            let mut total = 0.0;
            while !done.load(Ordering::Acquire) {
                let now = Time(clock.fetch_add(700, Ordering::AcqRel) + 700);
                total += sum(flush.batch(now, false).rows);
                thread::yield_now();
            }
            total
        });
        let readers: Vec<_> = worlds
            .iter_mut()
            .enumerate()
            .map(|(reader, world)| {
                let clock = &clock;
                scope.spawn(move || {
                    for i in 0..DATAGRAMS {
                        // Some series are always there, others come and go.
                        let lines = format!("a:1|c\nb{}:1|c\nc{reader}.{}:1|c", i % 7, i / 40);
                        let now = Time(clock.load(Ordering::Acquire));
                        world.send(Dialect::Datadog, lines.as_bytes(), now);
                    }
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
        done.store(true, Ordering::Release);
        flusher.join().expect("the flusher")
    });
    let rest = sum(flush.batch(Time(clock.load(Ordering::Relaxed)), true).rows);
    assert_eq!(total + rest, (READERS * DATAGRAMS * 3) as f64);
    assert!(telemetry.overflow.get() > 0, "the limit was reached");
}
