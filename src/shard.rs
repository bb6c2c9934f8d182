//! The aggregate: series by identity, and what each holds in the open bucket.
//!
//! [`Shards`] is shared by all readers. A series belongs to one shard, chosen by its context's
//! hash, and a shard is behind one lock, so the values of a series are added in one order.
//!
//! ```text
//! Shard   index    hash -> row
//!         states   [row] context, when it was last seen       touched at a flush
//!         open     [row] cell of the open bucket              touched by samples
//!         closed   [row] cells of buckets being flushed
//! ```
//!
//! A sample of a known series touches one cell and nothing else of its row: cells lie densely, and
//! closing a bucket swaps the whole column for an empty one, so no reader waits for a flush.
//!
//! Rows are reused after a series has expired. A reader remembers a [`Handle`] and the epoch (the
//! number of flushes) in which it last used it. A row that was used in epoch `e` is not freed
//! before flush `e + 2`, so a handle younger than that needs no check, and an older one is checked
//! against the row's generation: see `Shard::holds`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use ahash::RandomState;
use hashbrown::{HashMap, HashTable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::{Event, Row, ServiceCheck, Value};
use crate::context::{Context, Source};
use crate::parse;
use crate::sample::{Kind, Sample, Values};
use crate::sys;
use crate::telemetry::Telemetry;
use crate::time::Time;
use crate::value::{Cell, Plan};

/// How series are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Series held at once; what exceeds it is counted and folded into one series per kind.
    pub contexts_max: usize,
    /// Seconds for which an idle counter goes on reporting zero.
    pub counter_expiry_seconds: u32,
    /// Seconds after which an idle series is forgotten; counters add counter_expiry_seconds.
    pub context_expiry_seconds: u32,
    /// Seconds for which the last value of a gauge is remembered for later deltas (dialect statsd).
    pub delta_expiry_seconds: u32,
    /// Timestamped points held for the next flush; one more is dropped and counted.
    pub timed_points_max: usize,
    /// Events and service checks held for the next flush; one more is dropped and counted.
    pub events_max: usize,
    /// Independent parts of the aggregate; 0 takes one per processor, at most 8.
    pub shards: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            contexts_max: 1_000_000,
            counter_expiry_seconds: 300,
            context_expiry_seconds: 20,
            delta_expiry_seconds: 86_400,
            timed_points_max: 1_000_000,
            events_max: 10_000,
            shards: 0,
        }
    }
}

/// Rows that a flush looks at before it lets a waiting reader in.
const ROWS_PER_LOCK: usize = 4096;

/// More shards than this bring nothing: readers are few.
pub const SHARDS_MAX: usize = 64;

/// Where a series is kept. Stays good for as long as the series lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    shard: u16,
    generation: u16,
    row: u32,
}

impl Handle {
    /// A handle of no series.
    pub const NONE: Self = Self { shard: u16::MAX, generation: 0, row: u32::MAX };

    /// The index of the shard to lock.
    pub const fn shard(self) -> usize {
        self.shard as usize
    }
}

/// The series behind a handle has expired: look it up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

/// What [`Shards::intern`] found.
#[derive(Clone, Copy, Debug)]
pub struct Interned {
    pub handle: Handle,
    /// There was no room: this is the overflow series of the kind.
    pub overflow: bool,
}

/// The whole aggregate.
pub struct Shards {
    shards: Box<[Mutex<Shard>]>,
    inbox: Mutex<Inbox>,
    epoch: AtomicU32,
    /// Timestamped points held in all shards.
    timed: AtomicUsize,
    hasher: RandomState,
    settings: Settings,
    telemetry: Arc<Telemetry>,
}

/// What every shard needs to know.
struct Settings {
    config: Config,
    plan: Plan,
    /// Seconds of a bucket.
    interval: u32,
    /// Host of the overflow series.
    hostname: String,
}

/// Events and service checks that wait for the flush.
#[derive(Default)]
struct Inbox {
    events: Vec<Event>,
    checks: Vec<ServiceCheck>,
}

/// One independent part of the aggregate.
pub struct Shard {
    /// Number of flushes that have rotated this shard.
    epoch: u32,
    index: HashTable<(u64, u32)>,
    states: Vec<State>,
    generations: Vec<u16>,
    free: Vec<u32>,
    open: Bucket,
    /// Oldest first.
    closed: VecDeque<Bucket>,
    /// An emptied column for the next bucket.
    spare: Vec<Cell>,
    timed: Vec<Row>,
    /// Timestamped samples that add up within their second: sets, histograms, distributions.
    timed_cells: HashMap<(u32, i64), (Arc<Context>, Cell), RandomState>,
}

/// What is known of a row apart from its values. Times are Unix seconds.
struct State {
    /// `None` while the row is free.
    context: Option<Arc<Context>>,
    hash: u64,
    /// End of the last bucket that was flushed with a sample of it, for zeros; [`NEVER`] while it is
    /// known from timestamped points only.
    seen: i64,
    /// End of the last bucket in which it was used in any way, for expiry.
    used: i64,
    /// Epoch in which it was last used.
    epoch: u32,
    /// It is a gauge that may get deltas, so its value has to be remembered for long.
    delta: bool,
    /// Value of the last flushed bucket, for deltas.
    gauge: f64,
}

/// Before every bucket, and far enough from the end of the numbers.
const NEVER: i64 = i64::MIN / 2;

impl State {
    /// Whether an idle counter reports zero for the bucket that begins at `start`.
    fn wants_zero(&self, start: i64, config: &Config) -> bool {
        let counter = self.context.as_ref().is_some_and(|c| c.kind() == Kind::Count);
        counter && self.seen + i64::from(config.counter_expiry_seconds) > start
    }

    /// Whether it was idle for so long that it may be forgotten. A reader trusts its handle for one
    /// epoch after it was used.
    fn expired(&self, now: Time, epoch: u32, config: &Config) -> bool {
        let mut expiry = i64::from(config.context_expiry_seconds);
        if self.context.as_ref().is_some_and(|c| c.kind() == Kind::Count) {
            expiry += i64::from(config.counter_expiry_seconds);
        }
        if self.delta {
            expiry += i64::from(config.delta_expiry_seconds);
        }
        self.used + expiry <= now.seconds() && epoch.wrapping_sub(self.epoch) >= 2
    }
}

/// An interval and the values in it.
struct Bucket {
    /// Unix seconds.
    start: i64,
    /// By row; a row beyond the end is empty.
    cells: Vec<Cell>,
}

/// A closed cell on its way to become a row, its sorting still to be done.
struct Closing {
    context: Arc<Context>,
    time: i64,
    cell: Cell,
}

impl Shards {
    /// `interval` is the length of a bucket in seconds; `hostname` is the host of the overflow
    /// series; `now` opens the first bucket.
    pub fn new(
        config: Config,
        plan: Plan,
        interval: u32,
        hostname: String,
        telemetry: Arc<Telemetry>,
        now: Time,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let count = match config.shards {
            0 => processors.min(8),
            n => n.min(SHARDS_MAX),
        };
        let shards = (0..count).map(|_| Mutex::new(Shard::new(now.bucket(interval)))).collect();
        Self {
            shards,
            inbox: Mutex::default(),
            epoch: AtomicU32::new(0),
            hasher: RandomState::new(),
            timed: AtomicUsize::new(0),
            settings: Settings { config, plan, interval, hostname },
            telemetry,
        }
    }

    /// Number of flushes so far, as readers see it: never ahead of a shard's own count.
    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Seconds of a bucket.
    pub const fn interval(&self) -> u32 {
        self.settings.interval
    }

    pub const fn len(&self) -> usize {
        self.shards.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// Finds the series, or makes it. At `contexts_max` it is the overflow series of its kind.
    /// `deltas` tells that it is a gauge whose value later deltas will change.
    pub fn intern(&self, context: Context, deltas: bool, now: Time) -> Interned {
        let kind = context.kind();
        let limit = self.settings.config.contexts_max;
        if let Some(handle) = self.find_or_insert(context, deltas, now, limit) {
            return Interned { handle, overflow: false };
        }
        let tags = vec![format!("kind:{}", kind.word())];
        let host = &self.settings.hostname;
        let overflow = Context::new("tallyd.overflow", kind, host, tags, Source::default());
        let handle = self.find_or_insert(overflow, deltas, now, usize::MAX);
        Interned { handle: handle.expect("there is no limit"), overflow: true }
    }

    /// Whether the series behind a handle that was not used for long is still the same. It is kept
    /// for the epoch that begins now.
    pub fn revive(&self, handle: Handle, now: Time) -> bool {
        let mut shard = self.shards[handle.shard()].lock().expect("no panic under this lock");
        shard.rotate(now, &self.settings);
        let alive = shard.is_alive(handle);
        if alive {
            shard.touch(handle.row, &self.settings);
        }
        alive
    }

    fn find_or_insert(
        &self,
        context: Context,
        deltas: bool,
        now: Time,
        limit: usize,
    ) -> Option<Handle> {
        let hash = self.hasher.hash_one(&context);
        // The table inside the shard uses the hash's outer bits.
        let number = ((hash >> 24 & 0xffff_ffff) as usize * self.shards.len()) >> 32;
        let mut shard = self.shards[number].lock().expect("no panic under this lock");
        shard.rotate(now, &self.settings);
        let row = match shard.find(hash, &context) {
            Some(row) => row,
            None if self.reserve(limit) => shard.insert(hash, context),
            None => return None,
        };
        // The caller is about to use it: it must not expire between now and then.
        shard.touch(row, &self.settings);
        shard.states[row as usize].delta |= deltas;
        let generation = shard.generations[row as usize];
        Some(Handle { shard: number as u16, generation, row })
    }

    /// Takes a place under the limit.
    fn reserve(&self, limit: usize) -> bool {
        let count = &self.telemetry.contexts;
        let taken = |n| (n < limit as u64).then_some(n + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// Locks a shard for a run of samples that arrived at `now`.
    pub fn lock(&self, number: usize, now: Time) -> Locked<'_> {
        let mut shard = self.shards[number].lock().expect("no panic under this lock");
        shard.rotate(now, &self.settings);
        Locked { shard, shards: self }
    }

    /// Keeps an event for the next flush, or counts it as dropped.
    pub fn event(&self, event: Event) {
        let mut inbox = self.inbox.lock().expect("no panic under this lock");
        if inbox.has_room(self.settings.config.events_max) {
            inbox.events.push(event);
        } else {
            self.telemetry.events_dropped.add(1);
        }
    }

    /// Keeps a service check for the next flush, or counts it as dropped.
    pub fn check(&self, check: ServiceCheck) {
        let mut inbox = self.inbox.lock().expect("no panic under this lock");
        if inbox.has_room(self.settings.config.events_max) {
            inbox.checks.push(check);
        } else {
            self.telemetry.events_dropped.add(1);
        }
    }

    /// Takes the events and service checks that wait.
    pub fn take_inbox(&self) -> (Vec<Event>, Vec<ServiceCheck>) {
        let inbox = std::mem::take(&mut *self.inbox.lock().expect("no panic under this lock"));
        (inbox.events, inbox.checks)
    }

    /// Takes every bucket that has closed by `now`, and the timestamped points; with `open`, the
    /// open bucket too. Rows of one context stand together, in the order of their time.
    ///
    /// Only one thread flushes.
    pub fn flush(&self, now: Time, open: bool) -> Vec<Row> {
        let mut closing = Vec::new();
        let mut rows = Vec::new();
        let mut buckets = 0;
        for shard in &self.shards {
            let lock = || shard.lock().expect("no panic under this lock");
            let (closed, timed, timed_cells) = lock().begin_flush(now, open, &self.settings);
            self.timed.fetch_sub(timed.len() + timed_cells.len(), Ordering::Relaxed);
            buckets = buckets.max(closed);
            rows.extend(timed);
            closing.extend(timed_cells);
            for bucket in 0..closed {
                let expire = bucket + 1 == closed;
                let mut from = 0;
                while let Some(next) = lock().collect(
                    from,
                    expire.then_some(now),
                    &self.settings,
                    &self.telemetry,
                    &mut closing,
                ) {
                    from = next;
                }
            }
        }
        self.epoch.fetch_add(1, Ordering::Release);
        let plan = &self.settings.plan;
        let unsorted =
            buckets > 1 || !rows.is_empty() || closing.iter().any(|c| c.time != closing[0].time);
        rows.extend(closing.into_iter().filter_map(|c| {
            let value = c.cell.close(plan)?;
            Some(Row { context: c.context, time: c.time, value })
        }));
        if unsorted {
            rows.sort_by_key(|row| (Arc::as_ptr(&row.context) as usize, row.time));
        }
        rows
    }
}

impl Inbox {
    const fn has_room(&self, max: usize) -> bool {
        self.events.len() + self.checks.len() < max
    }
}

/// A shard that samples may be added to.
pub struct Locked<'a> {
    shard: MutexGuard<'a, Shard>,
    shards: &'a Shards,
}

impl Locked<'_> {
    /// Has the cell of a series fetched into the cache.
    pub fn prefetch(&self, handle: Handle) {
        if let Some(cell) = self.shard.open.cells.get(handle.row as usize) {
            sys::prefetch(cell);
        }
    }

    /// Adds the values of a sample to the series behind `handle`, which was last used in epoch
    /// `used`. `kind` is the series' own: a copy of a histogram is a distribution.
    ///
    /// # Errors
    /// [`Stale`] when the series has expired meanwhile; nothing was added.
    pub fn add(
        &mut self,
        handle: Handle,
        used: u32,
        kind: Kind,
        sample: &Sample<'_>,
    ) -> Result<(), Stale> {
        if !self.shard.holds(handle, used) {
            return Err(Stale);
        }
        let row = handle.row;
        let weight = sample.weight().unwrap_or(1.0);
        if !matches!((sample.values, sample.timestamp), (Values::One(_) | Values::Member(_), None))
        {
            // Perhaps no cell will tell the flush that this series was used.
            self.shard.touch(row, &self.shards.settings);
        }
        match sample.values {
            Values::One(value) => self.add_value(row, kind, value, weight, sample.timestamp),
            Values::Packed(text) => {
                for value in parse::packed(text) {
                    self.add_value(row, kind, value, weight, sample.timestamp);
                }
            }
            Values::Member(member) => {
                let hash = self.shards.settings.plan.member_keys.hash(member);
                match sample.timestamp {
                    None => self.shard.cell(row).member(hash, &self.shards.settings.plan),
                    Some(time) => self.timed_cell(row, time, |cell, plan| cell.member(hash, plan)),
                }
            }
            Values::Delta(delta) => {
                let value = self.shard.gauge(row) + delta;
                self.add_value(row, kind, value, weight, sample.timestamp);
            }
        }
        Ok(())
    }

    fn add_value(&mut self, row: u32, kind: Kind, value: f64, weight: f64, timestamp: Option<i64>) {
        if !value.is_finite() {
            self.shards.telemetry.non_finite.add(1);
            return;
        }
        let Some(time) = timestamp else {
            self.shard.cell(row).add(kind, value, weight, &self.shards.settings.plan);
            return;
        };
        match kind {
            Kind::Count => {
                // As a bucket's sum, it stays at the end of the range of f64.
                let value = (value * weight).clamp(f64::MIN, f64::MAX);
                self.timed_point(row, time, Value::Count(value));
            }
            Kind::Gauge => self.timed_point(row, time, Value::Gauge(value)),
            Kind::Set | Kind::Timer | Kind::Histogram | Kind::Distribution => {
                self.timed_cell(row, time, |cell, plan| cell.add(kind, value, weight, plan));
            }
        }
    }

    /// A finished point of its own: it is not merged with others, as the Agent's no-aggregation
    /// pipeline does not.
    fn timed_point(&mut self, row: u32, time: i64, value: Value) {
        let Some(context) = self.timed_context(row) else { return };
        self.shard.timed.push(Row { context, time, value });
    }

    fn timed_cell(&mut self, row: u32, time: i64, add: impl FnOnce(&mut Cell, &Plan)) {
        let plan = &self.shards.settings.plan;
        if let Some((_, cell)) = self.shard.timed_cells.get_mut(&(row, time)) {
            return add(cell, plan);
        }
        let Some(context) = self.timed_context(row) else { return };
        let mut cell = Cell::Empty;
        add(&mut cell, plan);
        self.shard.timed_cells.insert((row, time), (context, cell));
    }

    /// The context of a row that gets one more timestamped point, if there is room for it.
    fn timed_context(&mut self, row: u32) -> Option<Arc<Context>> {
        let max = self.shards.settings.config.timed_points_max;
        if self.shards.timed.fetch_add(1, Ordering::Relaxed) >= max {
            self.shards.timed.fetch_sub(1, Ordering::Relaxed);
            self.shards.telemetry.timed_dropped.add(1);
            return None;
        }
        self.shard.states[row as usize].context.clone()
    }
}

impl Shard {
    fn new(start: i64) -> Self {
        Self {
            epoch: 0,
            index: HashTable::new(),
            states: Vec::new(),
            generations: Vec::new(),
            free: Vec::new(),
            open: Bucket { start, cells: Vec::new() },
            closed: VecDeque::new(),
            spare: Vec::new(),
            timed: Vec::new(),
            timed_cells: HashMap::default(),
        }
    }

    fn find(&self, hash: u64, context: &Context) -> Option<u32> {
        let same = |&(h, row): &(u64, u32)| {
            h == hash && self.states[row as usize].context.as_deref() == Some(context)
        };
        self.index.find(hash, same).map(|&(_, row)| row)
    }

    fn insert(&mut self, hash: u64, context: Context) -> u32 {
        let state = State {
            context: Some(Arc::new(context)),
            hash,
            seen: NEVER,
            used: NEVER,
            epoch: self.epoch,
            delta: false,
            gauge: 0.0,
        };
        let row = self.free.pop().unwrap_or(self.states.len() as u32);
        if row as usize == self.states.len() {
            self.states.push(state);
            self.generations.push(0);
        } else {
            self.states[row as usize] = state;
        }
        self.index.insert_unique(hash, (hash, row), |&(h, _)| h);
        row
    }

    /// Whether the handle still means the same series. See the module's head for why a young one
    /// needs no look at the generation.
    fn holds(&self, handle: Handle, used: u32) -> bool {
        self.epoch.wrapping_sub(used) <= 1 || self.is_alive(handle)
    }

    /// Whether the row still belongs to the series that the handle was made for.
    fn is_alive(&self, handle: Handle) -> bool {
        let row = handle.row as usize;
        self.generations[row] == handle.generation && self.states[row].context.is_some()
    }

    /// Marks the series as used in the open bucket.
    fn touch(&mut self, row: u32, settings: &Settings) {
        let state = &mut self.states[row as usize];
        state.used = self.open.start + i64::from(settings.interval);
        state.epoch = self.epoch;
    }

    fn cell(&mut self, row: u32) -> &mut Cell {
        let row = row as usize;
        if row >= self.open.cells.len() {
            // Room for every row at once, so that this happens once per bucket.
            self.open.cells.resize_with(self.states.len(), || Cell::Empty);
        }
        &mut self.open.cells[row]
    }

    /// The last value of a gauge: of the open bucket, of one being flushed, or of the past.
    fn gauge(&self, row: u32) -> f64 {
        let of = |bucket: &Bucket| match bucket.cells.get(row as usize) {
            Some(Cell::Gauge(value)) => Some(*value),
            _ => None,
        };
        of(&self.open)
            .or_else(|| self.closed.iter().rev().find_map(of))
            .unwrap_or(self.states[row as usize].gauge)
    }

    /// Closes the open bucket when `now` lies beyond it, and every empty one up to `now` that
    /// could still get a zero. What is late goes into the open one.
    fn rotate(&mut self, now: Time, settings: &Settings) {
        let interval = i64::from(settings.interval);
        let target = now.bucket(settings.interval);
        if target <= self.open.start {
            return;
        }
        let last_zero =
            self.open.start + i64::from(settings.config.counter_expiry_seconds) + interval;
        while self.open.start < target.min(last_zero) {
            self.close(self.open.start + interval);
        }
        if self.open.start < target {
            self.close(target);
        }
    }

    /// Closes the open bucket; the next one begins at `start`.
    fn close(&mut self, start: i64) {
        let next = Bucket { start, cells: std::mem::take(&mut self.spare) };
        self.closed.push_back(std::mem::replace(&mut self.open, next));
    }

    /// Returns the number of closed buckets, and the timestamped points. Begins the next epoch.
    fn begin_flush(
        &mut self,
        now: Time,
        open: bool,
        settings: &Settings,
    ) -> (usize, Vec<Row>, Vec<Closing>) {
        self.rotate(now, settings);
        let interval = i64::from(settings.interval);
        let target = now.bucket(settings.interval);
        if target < self.open.start - interval {
            // The clock was set back. Readers that are merely late must not do this.
            self.close(target);
        } else if open {
            self.close(self.open.start + interval);
        }
        self.epoch = self.epoch.wrapping_add(1);
        let timed_cells = self.timed_cells.drain();
        let timed_cells = timed_cells
            .map(|((_, time), (context, cell))| Closing { context, time, cell })
            .collect();
        (self.closed.len(), std::mem::take(&mut self.timed), timed_cells)
    }

    /// Moves some rows of the oldest closed bucket, from row `from` on, to `out`. Returns the row
    /// to go on with, or `None` when the bucket is done and gone. With `expire`, rows that were
    /// idle for too long at that time are freed.
    fn collect(
        &mut self,
        from: usize,
        expire: Option<Time>,
        settings: &Settings,
        telemetry: &Telemetry,
        out: &mut Vec<Closing>,
    ) -> Option<usize> {
        let bucket = self.closed.front_mut()?;
        let start = bucket.start;
        let end = start + i64::from(settings.interval);
        let open_end = self.open.start + i64::from(settings.interval);
        let to = self.states.len().min(from + ROWS_PER_LOCK);
        let mut idle = Vec::new();
        for row in from..to {
            let state = &mut self.states[row];
            let cell = bucket.cells.get_mut(row).map_or(Cell::Empty, std::mem::take);
            let Some(context) = state.context.clone() else {
                debug_assert!(matches!(cell, Cell::Empty), "a free row has no value");
                continue;
            };
            // Times of a clock that was ahead would keep it alive for too long.
            state.seen = state.seen.min(start);
            state.used = state.used.min(open_end);
            if !matches!(cell, Cell::Empty) {
                if let Cell::Gauge(value) = cell {
                    state.gauge = value;
                }
                state.seen = end;
                state.used = state.used.max(end).min(open_end);
                state.epoch = self.epoch;
                out.push(Closing { context, time: start, cell });
                continue;
            }
            if expire.is_some_and(|now| state.expired(now, self.epoch, &settings.config)) {
                idle.push(row);
            }
            if state.wants_zero(start, &settings.config) {
                out.push(Closing { context, time: start, cell: Cell::Count(0.0) });
            }
        }
        // A sample may have come since, in the open bucket or in one that waits to be flushed.
        let waits = |row: &usize| {
            let later = self.closed.iter().skip(1).chain([&self.open]);
            later.map(|b| b.cells.get(*row)).any(|cell| !matches!(cell, None | Some(Cell::Empty)))
        };
        let freed: Vec<usize> = idle.into_iter().filter(|row| !waits(row)).collect();
        for row in freed {
            self.remove(row as u32, telemetry);
        }
        if to < self.states.len() {
            return Some(to);
        }
        if let Some(bucket) = self.closed.pop_front()
            && bucket.cells.len() > self.spare.len()
        {
            // Every cell was taken: free rows have none.
            self.spare = bucket.cells;
        }
        None
    }

    /// Frees a row; the next series in it has another generation.
    fn remove(&mut self, row: u32, telemetry: &Telemetry) {
        let state = &mut self.states[row as usize];
        match self.index.find_entry(state.hash, |&(_, r)| r == row) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => unreachable!("a live row is in the index"),
        }
        state.context = None;
        let generation = &mut self.generations[row as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(row);
        telemetry.contexts.fetch_sub(1, Ordering::Relaxed);
    }
}
