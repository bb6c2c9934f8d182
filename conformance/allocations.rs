//! What the heap is asked for while datagrams of known series come in. A program of its own, since
//! an allocator belongs to a whole program.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use tallyd::parse::Options;
use tallyd::reader::{Reader, Shared};
use tallyd::rules::{self, Rules};
use tallyd::sample::Dialect;
use tallyd::shard::{self, Shards};
use tallyd::sys::{Datagram, Sender};
use tallyd::telemetry::Telemetry;
use tallyd::time::Time;
use tallyd::value::{self, Plan};

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

#[allow(unsafe_code, reason = "an allocator is unsafe; this one hands everything to the system's")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ASKED.set(ASKED.get() + 1);
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn asked(work: impl FnOnce()) -> u64 {
    let before = ASKED.get();
    work();
    ASKED.get() - before
}

const START: Time = Time::from_seconds(1_800_000_000);

fn reader(dialect: Dialect, contexts_max: usize) -> (Reader, Arc<Shards>) {
    let telemetry = Arc::new(Telemetry::default());
    let plan = Plan::from_config(&value::Config::default());
    let config = shard::Config { contexts_max, ..shard::Config::default() };
    let shards = Shards::new(config, plan, 10, "host".to_owned(), telemetry.clone(), START);
    let rules =
        rules::Config { metric_blocklist: vec!["blocked".to_owned()], ..rules::Config::default() };
    let shared = Shared {
        rules: Arc::new(Rules::new(&rules, "host").unwrap()),
        shards: Arc::new(shards),
        origins: Arc::default(),
        telemetry: telemetry.clone(),
        distribution_prefix: None,
        log_rejects: false,
        line_max: usize::MAX,
        spellings_max: 1000,
        journal: None,
    };
    let shards = shared.shards.clone();
    let options = Options { dialect, origin_fields: true, ..Options::default() };
    (Reader::new(shared, telemetry.listener("test".to_owned()), options, false), shards)
}

/// Lines as one datagram each, and all of them in one with more lines than a reader holds at once.
fn datagrams(lines: &[&str]) -> Vec<Vec<u8>> {
    let long = lines.join("\n") + "\n";
    let singles = lines.iter().map(|line| line.as_bytes().to_vec());
    singles.chain([long.repeat(70).into_bytes()]).collect()
}

const TAGS: &str = "env:prod,service:shop-frontend,region:eu-west-1,status:200,path:/v2/orders";

#[test]
fn known_counts_gauges_and_members_ask_for_nothing() {
    let tagged = [
        format!("a:1|c|#{TAGS}"),
        format!("a:2.5|c|@0.5|#{TAGS}|c:ci-1|e:pu-2|card:low|x:unknown"),
        format!("a:1:2:3|c|#{TAGS}"),
        format!("b:-7e2|g|#{TAGS}"),
        format!("c:user-1|s|#{TAGS}"),
        format!("c:user-2|s|#{TAGS}"),
        "blocked:1|c".to_owned(),
        "nan:nan|g".to_owned(),
        "refused".to_owned(),
    ];
    let tagged: Vec<_> = tagged.iter().map(String::as_str).collect();
    for (dialect, contexts_max, lines) in [
        (Dialect::Datadog, 1000, &tagged[..]),
        // No room for any series: all are folded into the overflow series.
        (Dialect::Datadog, 0, &tagged),
        (Dialect::Statsd, 1000, &["a:1|c|@0.5", "a:1|c:2|c", "b:5|g", "b:+1|g", "c:user-1|s"]),
    ] {
        let (mut reader, shards) = reader(dialect, contexts_max);
        let datagrams = datagrams(lines);
        let mut feed = |now| datagrams.iter().for_each(|d| reader.datagram(d, false, now));
        assert!(asked(|| feed(START)) > 0, "new series are allocated");
        for _ in 0..3 {
            assert_eq!(asked(|| feed(START)), 0, "{lines:?}");
        }
        assert!(shards.flush(START, true).rows.len() >= 3);
    }
}

#[test]
fn a_new_bucket_asks_for_nothing_once_two_are_in_turn() {
    let (mut reader, shards) = reader(Dialect::Datadog, 1000);
    let datagrams = datagrams(&["a:1|c", "b:5|g"]);
    for bucket in 0..5 {
        let now = Time(START.0 + bucket * 10_000);
        let used = asked(|| datagrams.iter().for_each(|d| reader.datagram(d, false, now)));
        // What was closed lies in a queue, which grows once.
        assert!(bucket < 2 || used == 0, "{used} in bucket {bucket}");
        shards.flush(Time(now.0 + 10_000), false);
    }
}

/// Senders in turn, each with lines that are refused and dropped.
#[test]
fn known_senders_ask_for_nothing() {
    let (mut reader, _) = reader(Dialect::Datadog, 0);
    let of = |i: u8, text| {
        let address = Sender::Address([10, 0, 0, i].into());
        let process = Sender::Process { pid: i.into(), uid: 5 };
        let datagram = |sender| Datagram { bytes: text, truncated: i.is_multiple_of(2), sender };
        [address, process, Sender::Unknown].map(datagram)
    };
    let text = b"a:1|c\nbad\na:nan|g\nb:1|q";
    let datagrams: Vec<_> = (0..100).flat_map(|i| of(i, text)).collect();
    let mut feed = || reader.datagrams(&datagrams, START);
    assert!(asked(&mut feed) > 0, "new senders are allocated");
    for _ in 0..3 {
        assert_eq!(asked(&mut feed), 0);
    }
}

/// What a series keeps of each sample doubles its room as it grows: from 4 to `n` places in
/// `log2(n) - 1` steps.
#[test]
fn samples_ask_for_room_in_doubling_steps() {
    for (line, samples, most) in [
        // Values alone, up to 256 exact ones.
        (format!("a:5.5|h|#{TAGS}"), 256, 6),
        (format!("a:5.5|ms|#{TAGS}"), 256, 6),
        // Values and their weights.
        (format!("a:5.5|h|@0.5|#{TAGS}"), 256, 12),
        // Then one bin, whose counter gets wider twice.
        (format!("a:5.5|h|#{TAGS}"), 100_000, 6 + 3 + 2),
        // Up to 32 keys wait; these fall into one bin.
        (format!("a:5.5|d|#{TAGS}"), 100_000, 4 + 2 + 2),
        // Weighted ones go to their bin at once.
        (format!("a:5.5|d|@0.5|#{TAGS}"), 100_000, 2),
    ] {
        let (mut reader, _) = reader(Dialect::Datadog, 1000);
        let mut feed = || reader.datagram(line.as_bytes(), false, START);
        feed();
        let used = asked(|| (1..samples).for_each(|_| feed()));
        assert!(used <= most, "{used} allocations for {samples} of {line}");
    }
    // Many bins: at most 4096 of them, whose blocks get a quarter more room at a time.
    let (mut reader, _) = reader(Dialect::Datadog, 1000);
    let lines: Vec<_> = (1..20_000).map(|i| format!("a:{}|d", f64::from(i).powi(7))).collect();
    reader.datagram(b"a:1|d", false, START);
    let used = asked(|| {
        lines.iter().for_each(|l| reader.datagram(l.as_bytes(), false, START));
    });
    assert!((10..60).contains(&used), "{used} allocations");
}
