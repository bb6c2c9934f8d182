//! Takes in again what an earlier process had read and not got to its sinks.

use std::collections::HashMap;
use std::sync::Arc;

use crate::journal::{Found, Journal};
use crate::parse::Options;
use crate::reader::{Reader, Shared};
use crate::sample::Dialect;
use crate::shard::Generation;
use crate::time::Time;

/// Adds what was found to the aggregate, in the buckets in which it arrived. They are closed then,
/// and wait for the first flush.
pub fn replay(
    found: Found,
    journal: &Journal,
    shared: &Shared,
    options: impl Fn(Dialect) -> Options,
    now: Time,
) {
    let first = first_generation(&found, shared.shards.interval(), now);
    if !found.is_empty() {
        let listener = shared.telemetry.listener("journal".to_owned());
        // What is in the journal already is not appended once more.
        let shared = Shared { journal: None, ..shared.clone() };
        let mut readers = HashMap::new();
        let mut open = None;
        found.replay(journal, |header, datagrams, arrival| {
            if open != Some(header.generation) {
                open = Some(header.generation);
                shared.shards.begin(header.generation);
            }
            let (dialect, eol_required) = (header.source.dialect, header.source.eol_required);
            let reader = readers.entry((dialect, eol_required)).or_insert_with(|| {
                Reader::new(shared.clone(), Arc::clone(&listener), options(dialect), eol_required)
            });
            reader.datagrams(datagrams, arrival);
        });
        tracing::info!(
            "journal: took in {} datagrams that an earlier process had read",
            shared.telemetry.journal.replayed_datagrams.get()
        );
    }
    shared.shards.begin(first);
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
