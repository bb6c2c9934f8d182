//! A clock that is set, and a machine that sleeps: nothing is lost, doubled or dated before 1970.

use std::collections::HashSet;

use proptest::prelude::*;
use tallyd::batch::{Batch, Value};
use tallyd::config::Config;
use tallyd::ledger::Ledger;
use tallyd::sample::Dialect;
use tallyd::time::Time;

use crate::world::World;

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    /// Seconds pass, or the clock is set by them.
    Time(i64),
    Sample,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..15_i64).prop_map(Step::Time),
        1 => prop::sample::select(vec![-86_400, -3600, -25, 25, 3600, 86_400, 8 * 3600])
            .prop_map(Step::Time),
        3 => Just(Step::Sample),
        3 => Just(Step::Flush),
    ]
}

/// The sum of a counter, and of its rows that are zero, in a batch whose rows are checked.
fn sums(batch: &Batch, interval: i64) -> (f64, usize) {
    let mut seen = HashSet::new();
    let (mut sum, mut zeros) = (0.0, 0);
    for row in &batch.rows {
        assert!(row.time >= 0 && row.time % interval == 0, "a bucket at {}", row.time);
        assert!(seen.insert((row.context.name().to_owned(), row.time)), "twice: {row:?}");
        let Value::Count(count) = row.value else { panic!("{row:?}") };
        sum += count;
        zeros += usize::from(count == 0.0);
    }
    (sum, zeros)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(7),
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_sample_is_flushed_once(start in 0..200_000_i64, steps in prop::collection::vec(step(), 1..60)) {
        let config = Config::default();
        let interval = i64::from(config.flush.interval);
        let expiry = i64::from(config.shard.counter_expiry_seconds);
        let (mut now, mut latest) = (start, start);
        let mut world = World::new(&config, Time::from_seconds(now));
        let (mut sent, mut flushed) = (0.0, 0.0);
        // How often the clock went on since the last flush.
        let mut moves = 0;
        for step in steps.into_iter().chain([Step::Flush]) {
            match step {
                Step::Time(seconds) => {
                    // No clock goes back beyond 1970.
                    now = (now + seconds).max(0);
                    latest = latest.max(now);
                    moves += 1;
                }
                Step::Sample => {
                    world.send(Dialect::Datadog, b"a:1|c", Time::from_seconds(now));
                    sent += 1.0;
                }
                Step::Flush => {
                    let (sum, zeros) = sums(&world.flush(Time::from_seconds(now)), interval);
                    flushed += sum;
                    prop_assert!(flushed <= sent);
                    // However far the clock has jumped.
                    prop_assert!(zeros as i64 <= (expiry / interval + 1) * moves, "{zeros} zeros");
                    moves = 0;
                }
            }
        }
        // By then everything has closed.
        let end = Time::from_seconds(latest + 2 * interval);
        prop_assert_eq!(flushed + sums(&world.flush(end), interval).0, sent);
        let ledger = Ledger::of(&world.telemetry, end);
        prop_assert!(ledger.listeners.iter().all(|listener| listener.difference == 0));
        prop_assert_eq!(ledger.listeners.iter().map(|l| l.samples).sum::<u64>() as f64, sent);
    }
}
