//! Readers with the aggregate behind them, and time that moves bucket by bucket.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tallyd::batch::Batch;
use tallyd::flush::Flush;
use tallyd::parse::Options;
use tallyd::reader::{Reader, Shared};
use tallyd::rules::{self, Rules};
use tallyd::shard::{self, Shards};
use tallyd::status::{self, Status};
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
    datagrams: Vec<Datagram>,
    /// The datagram that comes next; a bucket ends behind the last.
    at: usize,
    now: Time,
}

/// The parts of a [`Rig`], for threads of their own.
pub struct Parts {
    pub readers: Vec<Reader>,
    pub flush: Flush,
    pub status: Status,
    /// A bucket's worth for each reader, or one for all. The series are known.
    pub datagrams: Vec<Vec<Datagram>>,
    pub now: Time,
}

impl Rig {
    /// A bucket's worth of datagrams of at most `size` bytes. The series are known.
    pub fn new(series: u64, size: usize) -> Self {
        let Parts { mut readers, flush, mut datagrams, now, status } =
            Parts::new(1, series, size, 1);
        let reader = readers.pop().expect("there is one");
        let datagrams = datagrams.pop().expect("there are some");
        Self { reader, flush, status, datagrams, at: 0, now }
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

    /// Closes the bucket.
    pub fn close(&mut self) -> Batch {
        self.at = 0;
        self.now.0 += i64::from(INTERVAL) * 1000;
        self.flush.batch(self.now, false)
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
            whole.time(|| {
                self.status.record(&batch);
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
        let telemetry = Arc::new(Telemetry::default());
        let plan = Plan::from_config(&value::Config::default());
        let aggregates = plan.aggregates.clone();
        let now = Time::from_seconds(1_800_000_000);
        // As on two processors, wherever this runs.
        let config = shard::Config { contexts_max: usize::MAX, shards: 2, ..Default::default() };
        let host = "bench-1".to_owned();
        let shards = Shards::new(config, plan, INTERVAL, host.clone(), telemetry.clone(), now);
        let shared = Shared {
            rules: Arc::new(Rules::new(&rules::Config::default(), &host).expect("good rules")),
            shards: Arc::new(shards),
            origins: Arc::default(),
            telemetry: telemetry.clone(),
            distribution_prefix: None,
            log_rejects: false,
            line_max: usize::MAX,
            spellings_max: usize::MAX,
            journal: None,
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
        let mut parts = Self { readers, flush, status, datagrams, now };
        for (reader, datagrams) in parts.readers.iter_mut().zip(parts.datagrams.iter().cycle()) {
            for datagram in datagrams {
                reader.datagram(&datagram.bytes, false, parts.now);
            }
        }
        assert_eq!(parts.close().rows.len() as u64, series * groups);
        parts
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
