//! Takes in again what an earlier process had read and not got to its sinks.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::journal::checkpoint::Entry;
use crate::journal::{Found, Journal, Source};
use crate::parse::Options;
use crate::reader::{Reader, Shared};
use crate::sample::Dialect;
use crate::shard::Generation;
use crate::time::Time;

/// Before every bucket: rotates none.
const START: Time = Time(i64::MIN);

/// Adds what was found to the aggregate, in the buckets in which it arrived. They are closed then,
/// and wait for the first flush.
pub fn replay(
    found: Found,
    journal: &Journal,
    shared: &Shared,
    options: impl Fn(Dialect) -> Options,
    now: Time,
) {
    let (shards, interval) = (&shared.shards, shared.shards.interval());
    let mut first = first_generation(&found, interval, now);
    if found.is_empty() {
        return shards.begin(first);
    }
    let latest = found.start;
    let listener = shared.telemetry.listener("journal".to_owned());
    let reader = |shared: &Shared, source: &Source| {
        let options = options(source.dialect);
        Reader::new(shared.clone(), Arc::clone(&listener), options, source.eol_required)
    };
    // What is in the journal already is not appended once more.
    let unjournaled = Shared { journal: None, ..shared.clone() };
    let mut readers = HashMap::new();
    let open = Cell::new(None);
    let restore = |entry| match entry {
        Entry::Bucket(bucket) => {
            if open.replace(Some(bucket)) != Some(bucket) {
                shards.begin(bucket);
            }
        }
        Entry::Cell(context, cell) => shards.window(START).restore(context, None, cell),
        Entry::Timed(context, time, cell) => {
            shards.window(START).restore(context, Some(time), cell);
        }
        Entry::Event(event) => shards.window(START).event(event),
        Entry::Check(check) => shards.window(START).check(check),
    };
    let landings = found.replay(journal, restore, |header, datagrams, arrival| {
        if open.replace(Some(header.generation)) != Some(header.generation) {
            shards.begin(header.generation);
        }
        let key = (header.source.dialect, header.source.eol_required);
        let reader = readers.entry(key).or_insert_with(|| reader(&unjournaled, &header.source));
        reader.datagrams(datagrams, arrival);
    });
    for landing in landings {
        let datagrams = landing.datagrams();
        if !datagrams.is_empty() {
            let bucket = landed_in(open.get(), latest, landing.arrival, interval);
            let generation = Generation { number: first.number, ..bucket };
            open.set(Some(generation));
            shards.begin(generation);
            first = following(&first, generation.start, interval);
            shared.telemetry.journal.replayed_datagrams.add(datagrams.len() as u64);
            reader(shared, &landing.source).batch(&datagrams, landing.batch(), landing.arrival);
        }
        landing.remove();
    }
    tracing::info!(
        "journal: took in {} datagrams that an earlier process had read",
        shared.telemetry.journal.replayed_datagrams.get()
    );
    shards.begin(first);
}

/// The first generation of this process, after one more with points of this time.
fn following(first: &Generation, time: i64, interval: u32) -> Generation {
    let start = first.start.max(time + 1);
    let end = Time::from_seconds(start).bucket(interval) + i64::from(interval);
    Generation { number: first.number + 1, start, end }
}

/// The bucket of a batch that was received and not yet added: the last one, unless it had closed.
fn landed_in(
    last: Option<Generation>,
    latest: Option<i64>,
    arrival: Time,
    interval: u32,
) -> Generation {
    match last {
        Some(last) if arrival.seconds() < last.end => last,
        _ => {
            let start = arrival.bucket(interval);
            let end = start + i64::from(interval);
            // Points of a time that was in use would replace others.
            Generation {
                number: 0,
                start: start.max(latest.map_or(start, |latest| latest + 1)),
                end,
            }
        }
    }
}

/// The first generation of this process. Its points get a time of their own: an earlier process may
/// have sent, or may yet send, points of the same bucket's beginning, and a backend keeps only one.
pub fn first_generation(found: &Found, interval: u32, now: Time) -> Generation {
    let second = now.seconds();
    let start = match found.start {
        // Unless the clock was set back meanwhile.
        Some(last) if last >= second && last - second < i64::from(interval) => last + 1,
        _ => second,
    };
    let end = Time::from_seconds(start).bucket(interval) + i64::from(interval);
    Generation { number: found.next.max(1), start, end }
}
