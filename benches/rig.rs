//! Readers with the aggregate behind them, and time that moves bucket by bucket.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tallyd::batch::Batch;
use tallyd::flush::Flush;
use tallyd::journal::{self, Journal, Keeper};
use tallyd::parse::Options;
use tallyd::reader::{Reader, Shared};
use tallyd::rules::{self, Rules};
use tallyd::shard::{self, Shards};
use tallyd::status::{self, Status};
use tallyd::sys::{self, BATCH};
use tallyd::telemetry::Telemetry;
use tallyd::time::Time;
use tallyd::value::{self, Plan};

use crate::lines::{self, Datagram};

/// Seconds of a bucket.
const INTERVAL: u32 = 10;
/// Samples of each series within a bucket.
const ROUNDS: u64 = 10;
/// With more series than this a bucket has few samples of each, to bound the memory of the input.
const MANY: u64 = 100_000;
const ROUNDS_OF_MANY: u64 = 2;

pub struct Rig {
    reader: Reader,
    flush: Flush,
    status: Status,
    journal: Option<Arc<Journal>>,
    datagrams: Vec<Datagram>,
    /// The datagram that comes next; a bucket ends behind the last.
    at: usize,
    /// Of the batch that came last.
    number: u64,
    now: Time,
}

/// The parts of a [`Rig`], for threads of their own.
pub struct Parts {
    pub readers: Vec<Reader>,
    pub flush: Flush,
    pub status: Status,
    journal: Option<Arc<Journal>>,
    /// A bucket's worth for each reader, or one for all. The series are known.
    pub datagrams: Vec<Vec<Datagram>>,
    pub now: Time,
}

/// A reader, and what it is to take in at a time.
pub struct Fed<'a> {
    pub reader: &'a mut Reader,
    pub datagrams: &'a [Datagram],
    pub now: Time,
}

impl Rig {
    /// A bucket's worth of datagrams of at most `size` bytes. The series are known.
    pub fn new(series: u64, size: usize) -> Self {
        Self::with_journal(series, size, None)
    }

    /// The same with a journal in this folder.
    pub fn with_journal(series: u64, size: usize, folder: Option<&Path>) -> Self {
        let Parts { mut readers, flush, mut datagrams, now, status, journal } =
            Parts::with_journal(1, series, size, 1, folder);
        let reader = readers.pop().expect("there is one");
        let datagrams = datagrams.pop().expect("there are some");
        Self { reader, flush, status, journal, datagrams, at: 0, number: 0, now }
    }

    /// Takes in what is left of the bucket.
    pub fn fill(&mut self) {
        self.feed(u64::MAX);
    }

    /// Takes in datagrams with at least `lines` lines, or what is left of the bucket. Returns the
    /// number of lines.
    fn feed(&mut self, lines: u64) -> u64 {
        let mut fed = 0;
        while fed < lines
            && let Some(datagram) = self.datagrams.get(self.at)
        {
            self.reader.datagram(&datagram.bytes, false, self.now);
            fed += datagram.lines;
            self.at += 1;
        }
        fed
    }

    /// CPU time of the process while at least `lines` lines come in by batches of a socket, all into
    /// one bucket, which stays open.
    pub fn cpu_of(&mut self, lines: u64) -> Duration {
        let (before, begun, since) = (sys::cpu_time(), Instant::now(), self.now);
        let mut fed = 0;
        while fed < lines {
            let end = self.datagrams.len().min(self.at + BATCH);
            let batch = &self.datagrams[self.at..end];
            fed += batch.iter().map(|datagram| datagram.lines).sum::<u64>();
            let batch: Vec<_> = batch.iter().map(Datagram::received).collect();
            self.number += 1;
            // As it passes: whatever is done each second is done as often as in a server.
            self.now = Time(since.0 + begun.elapsed().as_millis() as i64);
            self.reader.batch(&batch, self.number, self.now, || ());
            self.at = if end == self.datagrams.len() { 0 } else { end };
        }
        sys::cpu_time().saturating_sub(before)
    }

    /// Datagrams that the journal could not keep.
    pub fn unprotected(&self) -> u64 {
        self.flush.telemetry.journal.unprotected_datagrams.get()
    }

    /// Closes the bucket.
    pub fn close(&mut self) -> Batch {
        self.at = 0;
        let interval = i64::from(INTERVAL) * 1000;
        self.now.0 = (self.now.0 / interval + 1) * interval;
        let batch = self.flush.batch(self.now, false);
        // As when every sink has it safe.
        drop(self.journal.as_ref().map(|journal| journal.slip(batch.generations.clone())));
        batch
    }

    /// Time that `lines` lines take. The flush of each bucket is not counted.
    pub fn time_lines(&mut self, lines: u64) -> Duration {
        let mut whole = Part::default();
        while whole.done < lines {
            let left = lines - whole.done;
            whole.time(|| self.feed(left));
            if self.at == self.datagrams.len() {
                self.close();
            }
        }
        whole.of(lines)
    }

    /// Time that the walk over the batch takes when nobody looks at the page, by `series` series.
    pub fn time_record(&mut self, series: u64) -> Duration {
        let mut whole = Part::default();
        while whole.done < series {
            self.fill();
            let batch = self.close();
            let next = self.status.next();
            whole.time(|| {
                next.show(&batch);
                batch.rows.len() as u64
            });
        }
        whole.of(series)
    }

    /// Time that the flush of `series` series takes. Filling the bucket is not counted.
    pub fn time_flush(&mut self, series: u64) -> Duration {
        let mut whole = Part::default();
        while whole.done < series {
            self.fill();
            let mut batch = Batch::default();
            whole.time(|| {
                batch = self.close();
                batch.rows.len() as u64
            });
        }
        whole.of(series)
    }
}

impl Parts {
    /// `groups` is the number of readers for series of their own, or 1 when all have the same.
    pub fn new(readers: usize, series: u64, size: usize, groups: u64) -> Self {
        Self::with_journal(readers, series, size, groups, None)
    }

    fn with_journal(
        readers: usize,
        series: u64,
        size: usize,
        groups: u64,
        folder: Option<&Path>,
    ) -> Self {
        // As the program does.
        sys::set_up_allocator();
        let telemetry = Arc::new(Telemetry::default());
        let plan = Plan::from_config(&value::Config::default());
        let aggregates = plan.aggregates.clone();
        let now = Time::from_seconds(1_800_000_000);
        // As on two processors, wherever this runs.
        let config = shard::Config { contexts_max: usize::MAX, shards: 2, ..Default::default() };
        let host = "bench-1".to_owned();
        let shards = Shards::new(config, plan, INTERVAL, host.clone(), telemetry.clone(), now);
        let shards = Arc::new(shards);
        let journal = folder.map(|folder| {
            let config = journal::Config::default();
            let none = Arc::new(|_| Ok(()));
            let (journal, _) = Journal::open(folder, &config, telemetry.clone(), none, now);
            // It ends with the process.
            Keeper::start(journal.clone(), shards.clone(), &config).expect("a thread");
            journal
        });
        let shared = Shared {
            rules: Arc::new(Rules::new(&rules::Config::default(), &host).expect("good rules")),
            shards,
            origins: Arc::default(),
            telemetry: telemetry.clone(),
            distribution_prefix: None,
            log_rejects: false,
            line_max: usize::MAX,
            spellings_max: usize::MAX,
            journal: journal.clone(),
        };
        let blocklist = shared.rules.blocklist();
        let flush = Flush { shards: shared.shards.clone(), telemetry, aggregates, blocklist };
        let rounds = if series > MANY { ROUNDS_OF_MANY } else { ROUNDS };
        let group = |n: u64| {
            let line = |series_of: u64, random: &mut _| lines::line(n * series + series_of, random);
            lines::rounds_of(line, series, rounds, size)
        };
        let datagrams = (0..groups).map(group).collect::<Vec<_>>();
        let reader = |name: String| {
            let listener = flush.telemetry.listener(name);
            Reader::new(shared.clone(), listener, Options::default(), false)
        };
        let (config, telemetry) = (status::Config::default(), flush.telemetry.clone());
        let http = reader("http".to_owned());
        let readers = (0..readers).map(|n| reader(format!("bench-{n}"))).collect();
        let status = Status::new(&config, telemetry, None, http, INTERVAL);
        let mut parts = Self { readers, flush, status, journal, datagrams, now };
        for (reader, datagrams) in parts.readers.iter_mut().zip(parts.datagrams.iter().cycle()) {
            for datagram in datagrams {
                reader.datagram(&datagram.bytes, false, parts.now);
            }
        }
        assert_eq!(parts.close().rows.len() as u64, series * groups);
        parts
    }

    /// The readers, each with its datagrams.
    pub fn fed(&mut self) -> impl Iterator<Item = Fed<'_>> {
        let datagrams = self.datagrams.iter().map(Vec::as_slice).cycle();
        let now = self.now;
        let fed = move |(reader, datagrams)| Fed { reader, datagrams, now };
        self.readers.iter_mut().zip(datagrams).map(fed)
    }

    /// Closes the bucket.
    pub fn close(&mut self) -> Batch {
        self.now.0 += i64::from(INTERVAL) * 1000;
        self.flush.batch(self.now, false)
    }
}

/// Work in pieces that are larger than one: what was done, and what it took.
#[derive(Default)]
pub struct Part {
    pub done: u64,
    took: Duration,
}

impl Part {
    /// Does a piece. `work` returns how much it did.
    pub fn time(&mut self, work: impl FnOnce() -> u64) {
        let begun = Instant::now();
        let done = work();
        self.took += begun.elapsed();
        self.done += done;
    }

    /// What `n` would have taken.
    pub fn of(&self, n: u64) -> Duration {
        self.took.mul_f64(n as f64 / self.done as f64)
    }
}

/// What the same work takes with something and without it.
#[derive(Default)]
pub struct Pairs {
    ratios: Vec<f64>,
    pub with: Duration,
    pub without: Duration,
}

impl Pairs {
    /// Times the work so many times each way, in turn. `work` is told whether it is with or without.
    pub fn time(pairs: usize, mut work: impl FnMut(bool) -> Duration) -> Self {
        let mut all = Self::default();
        for pair in 0..pairs {
            // Neither is always the first.
            let first = pair % 2 == 0;
            let (one, other) = (work(first), work(!first));
            let (with, without) = if first { (one, other) } else { (other, one) };
            all.ratios.push(with.as_secs_f64() / without.as_secs_f64());
            all.with += with;
            all.without += without;
        }
        all
    }

    /// How much more it is with it.
    pub fn spread(&mut self) -> String {
        let sums = self.with.as_secs_f64() / self.without.as_secs_f64();
        format!("{}, sums {:+.2} %", spread(&mut self.ratios), 100.0 * (sums - 1.0))
    }
}

/// How many pairs were asked for. A plain `cargo bench` passes its own flags.
pub fn pairs(unless_told: usize) -> usize {
    std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(unless_told)
}

/// How much more it is by these ratios.
pub fn spread(ratios: &mut [f64]) -> String {
    ratios.sort_by(f64::total_cmp);
    let pairs = ratios.len();
    let at = |part: f64| 100.0 * (ratios[((pairs - 1) as f64 * part) as usize] - 1.0);
    let mean = ratios.iter().sum::<f64>() / pairs as f64;
    let variance = ratios.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / pairs as f64;
    format!(
        "median {:+.2} %, quartiles {:+.2} % and {:+.2} %, mean {:+.2} % (standard error {:.2} %)",
        at(0.5),
        at(0.25),
        at(0.75),
        100.0 * (mean - 1.0),
        100.0 * (variance / pairs as f64).sqrt(),
    )
}
