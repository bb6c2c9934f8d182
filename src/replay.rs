//! Takes in again what an earlier process had read and not got to its sinks.

use std::cell::Cell;
use std::sync::Arc;

use ahash::{HashMap, HashMapExt};

use crate::journal::checkpoint;
use crate::journal::format::{Entry, Header, Record};
use crate::journal::{Found, Journal, Left, Source};
use crate::parse::Options;
use crate::reader::{Reader, Shared};
use crate::sample::{Dialect, Kind};
use crate::shard::{Generation, Handle};
use crate::sys::{Datagram, Sender};
use crate::telemetry::senders::{Drop, Tally, Who};
use crate::time::Time;

/// Before every bucket: rotates none.
const START: Time = Time(i64::MIN);

/// The series of one numbering.
#[derive(Default)]
struct Numbered {
    /// The number of the next one that is described without a number.
    next: u32,
    series: HashMap<u32, (Handle, Kind)>,
}

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
    shards.flush_from(found.first);
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
    let mut numberings = HashMap::<u64, Numbered>::new();
    let counters = &shared.telemetry.journal;
    // Who sent it is not known any more.
    let account = shared.telemetry.senders.account(Who::Listener("journal".into()), now, || None);
    let mut tally = Tally::default();
    let (open, mut sequence) = (Cell::new(None), None);
    let begin = |generation| {
        let new = open.replace(Some(generation)) != Some(generation);
        if new {
            shards.begin(generation);
        }
        new
    };
    let restore = |entry| match entry {
        checkpoint::Entry::Bucket(bucket) => drop(begin(bucket)),
        checkpoint::Entry::Cell(context, cell) => shards.window(START).restore(context, None, cell),
        checkpoint::Entry::Timed(context, time, cell) => {
            shards.window(START).restore(context, Some(time), cell);
        }
        // One that there is no room for has been counted.
        checkpoint::Entry::Event(event) => drop(shards.window(START).event(event)),
        checkpoint::Entry::Check(check) => drop(shards.window(START).check(check)),
    };
    let each = |header: &Header, record: Record<'_>| {
        if begin(header.generation) {
            numberings.clear();
        }
        let numbered = numberings.entry(header.numbering).or_default();
        let is_new = sequence.replace(header.sequence) != Some(header.sequence);
        if let Some(described) = header.described.filter(|_| is_new) {
            // An earlier segment that is lost, or its end, may have described more than is known.
            numbered.next = described;
        }
        let window = shards.window(START);
        let mut whole = Vec::new();
        for entry in record.entries {
            match entry {
                Entry::Series(number, context) => {
                    let kind = context.kind();
                    // It is nobody's until somebody sends it again.
                    let handle = window.intern(context, false).handle;
                    let number = number.unwrap_or(numbered.next);
                    numbered.series.insert(number, (handle, kind));
                    numbered.next = number.wrapping_add(1);
                    continue;
                }
                Entry::Taken(_) | Entry::Waits(_) => continue,
                Entry::Datagram(bytes, truncated) => {
                    whole.push(Datagram { bytes, truncated, sender: Sender::Unknown });
                    continue;
                }
                Entry::Sample(number, reading) => {
                    let Some((handle, kind)) = numbered.series.get(&number) else {
                        // Its description was in a part that is lost.
                        counters.torn.add(1);
                        continue;
                    };
                    let mut shard = window.lock(handle.shard());
                    let added = shard.add(*handle, window.epoch(), *kind, &reading);
                    tally.drop(Drop::Timed, shard.timed_dropped);
                    tally.drop(Drop::NonFinite, shard.non_finite);
                    debug_assert!(added.is_ok(), "nothing is flushed meanwhile");
                    listener.samples.add(1);
                }
                Entry::Event(event) => {
                    tally.drop(Drop::Event, (!window.event(event)).into());
                    listener.events.add(1);
                }
                Entry::Check(check) => {
                    tally.drop(Drop::Event, (!window.check(check)).into());
                    listener.checks.add(1);
                }
            }
            listener.lines.add(1);
            tally.lines += 1;
            counters.replayed.add(1);
        }
        account.settle(&mut tally, now);
        drop(window);
        if !whole.is_empty() {
            let key = (header.source.dialect, header.source.eol_required);
            let reader = readers.entry(key).or_insert_with(|| reader(&unjournaled, &header.source));
            reader.datagrams(&whole, record.arrival);
        }
    };
    let left = |left: Left| {
        let bucket = landed_in(open.get(), latest, left.arrival, interval);
        let generation = Generation { number: first.number, ..bucket };
        begin(generation);
        first = following(&first, generation.start, interval);
        let datagrams: Vec<_> = left
            .datagrams
            .iter()
            .map(|(bytes, truncated)| Datagram {
                bytes,
                truncated: *truncated,
                sender: Sender::Unknown,
            })
            .collect();
        let before = listener.lines.get();
        let mut reader = reader(shared, &left.source);
        reader.take_left(&datagrams, left.batch, &left.ids, left.arrival);
        counters.replayed.add(listener.lines.get() - before);
    };
    found.replay(journal, restore, each, left);
    if counters.replayed.get() > 0 {
        tracing::info!(
            "journal: took in {} samples, events and checks that an earlier process had read",
            counters.replayed.get()
        );
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::batch::{Row, Value};
    use crate::journal;
    use crate::rules::{self, Rules};
    use crate::shard::{self, Flushed, Shards};
    use crate::telemetry::Telemetry;
    use crate::value::{self, Plan};

    const NOW: Time = Time::from_seconds(1003);

    /// A process: what it has, and what it found.
    struct Process {
        shared: Shared,
        journal: Arc<Journal>,
    }

    impl Process {
        fn start(folder: &Path, now: Time) -> Self {
            Self::start_with(folder, journal::Config::default(), now)
        }

        fn start_with(folder: &Path, config: journal::Config, now: Time) -> Self {
            let telemetry = Arc::new(Telemetry::default());
            let gate: journal::Gate = Arc::new(|_| Ok(()));
            let (journal, found) =
                Journal::open(folder, &config, Arc::clone(&telemetry), gate, now);
            let mut plan = Plan::from_config(&value::Config::default());
            plan.member_keys = found.member_keys.unwrap_or(plan.member_keys);
            let host = "own".to_owned();
            // No zeros of idle counters: what is compared is what was read.
            let config = shard::Config { counter_expiry_seconds: 0, ..shard::Config::default() };
            let shards = Shards::new(config, plan, 10, host, Arc::clone(&telemetry), now);
            let shared = Shared {
                rules: Arc::new(Rules::new(&rules::Config::default(), "own").unwrap()),
                shards: Arc::new(shards),
                origins: Arc::default(),
                telemetry,
                distribution_prefix: None,
                log_rejects: false,
                line_max: 8192,
                spellings_max: 1000,
                journal: Some(Arc::clone(&journal)),
            };
            replay(found, &journal, &shared, options, now);
            Self { shared, journal }
        }

        fn reader(&self, dialect: Dialect) -> Reader {
            let listener = self.shared.telemetry.listener(format!("{dialect:?}"));
            Reader::new(self.shared.clone(), listener, options(dialect), false)
        }

        fn flush(&self, now: Time) -> Vec<String> {
            let Flushed { rows, events, checks, .. } = self.shared.shards.flush(now, true);
            let mut lines: Vec<String> = rows.iter().map(described).collect();
            lines.extend(events.iter().map(|event| format!("{event:?}")));
            lines.extend(checks.iter().map(|check| format!("{check:?}")));
            lines.sort();
            lines
        }
    }

    fn options(dialect: Dialect) -> Options {
        Options { dialect, timestamps: true, origin_fields: false }
    }

    fn described(row: &Row) -> String {
        let tags: Vec<_> = row.context.tags().collect();
        let value = match &row.value {
            Value::Count(value) | Value::Gauge(value) => value.to_string(),
            Value::Set(members) => members.to_string(),
            Value::Histogram(summary) => format!("{summary:?}"),
            Value::Distribution(sketch) => format!(
                "{} {} {} {} {:?}",
                sketch.count(),
                sketch.sum(),
                sketch.min(),
                sketch.max(),
                sketch.bins().collect::<Vec<_>>()
            ),
        };
        format!("{} {:?} {} {tags:?} {value}", row.context.name(), row.context.kind(), row.time)
    }

    const LINES: [&str; 8] = [
        "c:1|c|#a\nc:2|c|@0.5|#a\ng:5|g\nh:1:2:7|h|#a,b\nd:3:4|d\ns:x|s\ns:y|s",
        "c:3|c|T900\nc:3|c|T900\ng:1|g|T901\nh:1:2|h|T900\ns:x|s|T900",
        "_e{5,4}:title|text|#a,b\n_sc|name|1|m:message",
        "c:4|c|#b\ng:6|g\nh:9|h|#a,b\nd:5|d\ns:x|s\ns:z|s|@0.5",
        "refused\nc:1|c|#a",
        "h:3|h|T900\ns:x|s|T900\ns:z|s|T900\nd:1|d|T902",
        "g:7|g\nc:1|c|@0.1|#a",
        "t:1|ms\nt:5|ms|@0.5\n_e{1,1}:a|b",
    ];

    /// What a process makes of all lines if nothing happens to it.
    fn expected() -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let process = Process::start(folder.path(), NOW);
        let mut reader = process.reader(Dialect::Datadog);
        LINES.iter().for_each(|line| reader.datagram(line.as_bytes(), false, NOW));
        process.flush(NOW)
    }

    #[test]
    fn what_was_read_before_a_crash_comes_to_the_same() {
        for crash in 0..=LINES.len() {
            let folder = tempfile::tempdir().unwrap();
            let first = Process::start(folder.path(), NOW);
            let mut reader = first.reader(Dialect::Datadog);
            LINES[..crash].iter().for_each(|line| reader.datagram(line.as_bytes(), false, NOW));
            let lost = first.flush(NOW);
            // Nothing was released: so it is all there again, at the same times.
            let second = Process::start(folder.path(), Time(NOW.0 + 60_000));
            assert_eq!(second.flush(Time(NOW.0 + 60_000)), lost, "after {crash} datagrams");
            // Every line that was read again is a sample, an event, a check, or refused.
            let telemetry = &second.shared.telemetry;
            let lines = LINES[..crash].iter().flat_map(|text| text.lines());
            // What was refused is not there to be refused again.
            let lines = lines.filter(|line| *line != "refused").count();
            assert_eq!(telemetry.journal.replayed.get(), lines as u64);
            let listeners = telemetry.listeners();
            let came = listeners
                .iter()
                .map(|l| l.samples.get() + l.events.get() + l.checks.get() + l.rejects.total());
            assert_eq!(came.sum::<u64>(), lines as u64);
            assert!(crash < LINES.len() || lost == expected());
        }
    }

    /// A loss of power may take the middle of what a reader wrote.
    #[test]
    fn a_segment_that_is_lost_makes_no_other_series_of_those_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = journal::Config { max_bytes: 512 * 1024, ..journal::Config::default() };
        let first = Process::start_with(folder.path(), config, NOW);
        let mut reader = first.reader(Dialect::Datadog);
        for number in 0..3000 {
            let again = number / 2;
            let lines = format!("s{number}:{number}|g\ns{again}:{again}|g");
            reader.datagram(lines.as_bytes(), false, NOW);
        }
        drop(reader);
        std::fs::remove_file(folder.path().join("segment-1")).unwrap();
        let second = Process::start(folder.path(), NOW);
        assert!(second.shared.telemetry.journal.torn.get() > 0, "some have lost their description");
        let Flushed { rows, .. } = second.shared.shards.flush(Time(NOW.0 + 60_000), true);
        assert!((1000..3000).contains(&rows.len()), "{}", rows.len());
        for row in &rows {
            let Value::Gauge(value) = row.value else { panic!("{row:?}") };
            assert_eq!(row.context.name(), format!("s{value}"));
        }
    }

    #[test]
    fn a_checkpoint_comes_to_the_same_as_what_it_stands_for() {
        let expected = expected();
        for held in 0..=LINES.len() {
            let folder = tempfile::tempdir().unwrap();
            let first = Process::start(folder.path(), NOW);
            let mut reader = first.reader(Dialect::Datadog);
            for (number, line) in LINES.iter().enumerate() {
                if number == held || number == held + 2 {
                    first.journal.checkpoint(&first.shared.shards);
                }
                reader.datagram(line.as_bytes(), false, NOW);
            }
            assert_eq!(first.flush(NOW), expected, "one row per series, whatever was held");
            let second = Process::start(folder.path(), Time(NOW.0 + 60_000));
            assert_eq!(second.flush(Time(NOW.0 + 60_000)), expected, "held before {held}");
        }
    }

    #[test]
    fn what_was_released_does_not_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let first = Process::start(folder.path(), NOW);
        let mut reader = first.reader(Dialect::Datadog);
        reader.datagram(b"a:1|c", false, NOW);
        first.journal.checkpoint(&first.shared.shards);
        reader.datagram(b"b:1|c", false, NOW);
        let flushed = first.shared.shards.flush(NOW, true);
        assert_eq!(flushed.rows.len(), 2);
        reader.datagram(b"c:1|c", false, NOW);
        first.journal.release(flushed.generations);
        let second = Process::start(folder.path(), NOW);
        let rows = second.flush(NOW);
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert!(rows[0].starts_with("c Count"), "{rows:?}");
    }

    #[test]
    fn a_process_has_times_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut starts = Vec::new();
        for _ in 0..8 {
            let process = Process::start(folder.path(), NOW);
            process.reader(Dialect::Datadog).datagram(b"a:1|c", false, NOW);
            starts.push(process.shared.shards.window(NOW).generation().start);
        }
        let all: std::collections::BTreeSet<_> = starts.iter().collect();
        assert_eq!(all.len(), starts.len(), "{starts:?}");
        let later = Process::start(folder.path(), Time(NOW.0 + 60_000));
        let window = later.shared.shards.window(Time(NOW.0 + 60_000));
        let Generation { start, end, .. } = *window.generation();
        assert_eq!((start, end), (1063, 1070));
    }

    #[test]
    fn the_other_dialect_is_read_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let first = Process::start(folder.path(), NOW);
        let mut reader = first.reader(Dialect::Statsd);
        reader.datagram(b"g:5|g\ng:+3|g\nc c:1|c", false, NOW);
        let lost = first.flush(NOW);
        assert_eq!(Process::start(folder.path(), NOW).flush(NOW), lost);
    }
}
