//! The aggregate: series by identity, and what each holds in the open bucket.
//!
//! [`Shards`] is shared by all readers. A series belongs to one shard, chosen by its context's
//! hash, and a shard is behind one lock, so the values of a series are added in one order.
//!
//! ```text
//! Shard   index    hash -> row
//!         states   [row] context, when it was last seen       touched at a flush
//!         open     [row] cell of the open generation          touched by samples
//!         closed   [row] cells of generations being flushed
//! ```
//!
//! A sample of a known series touches one cell and nothing else of its row: cells lie densely, and
//! closing a bucket swaps the whole column for an empty one, so no reader waits for a flush.
//!
//! A [`Generation`] is everything between two rotations, in all shards: columns, timestamped
//! points, events and checks, and the part of the journal that they came from. Readers share a gate
//! for each batch of datagrams (see [`Window`]); who rotates has it alone. So a generation closes at
//! once everywhere, and a flush takes exactly the closed ones. As a rule a bucket is one generation.
//!
//! Rows are reused after a series has expired. A reader remembers a [`Handle`] and the epoch (the
//! number of flushes) in which it last used it. A row that was used in epoch `e` is not freed
//! before flush `e + 2`, so a handle younger than that needs no check, and an older one is checked
//! against the row's generation: see `Shard::holds`.

use std::collections::VecDeque;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use ahash::RandomState;
use hashbrown::{HashMap, HashTable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::{Event, Row, ServiceCheck, Value};
use crate::context::{Context, Source};
use crate::hash::Keys;
use crate::parse;
use crate::sample::{Kind, Reading, Values};
use crate::sys;
use crate::telemetry::Telemetry;
use crate::telemetry::senders::OTHERS;
use crate::time::{Moment, Time};
use crate::value::{Cell, Plan, Room};

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
const ROWS_PER_LOCK: usize = 1024;

/// The same of a checkpoint, which takes longer for each.
const HELD_PER_LOCK: usize = 512;

/// More shards than this bring nothing: readers are few.
pub const SHARDS_MAX: usize = 64;

/// Where a series is kept. Stays good for as long as the series lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// One more than its index, so that no handle takes no more room than one.
    shard: NonZero<u16>,
    generation: u16,
    row: u32,
}

const _: () = assert!(size_of::<Option<Handle>>() == 8);

impl Handle {
    const fn new(shard: usize, generation: u16, row: u32) -> Self {
        // There are at most SHARDS_MAX of them.
        let shard = NonZero::<u16>::MIN.saturating_add(shard as u16);
        Self { shard, generation, row }
    }

    /// The index of the shard to lock.
    pub const fn shard(self) -> usize {
        self.shard.get() as usize - 1
    }

    /// The index of its row there.
    pub const fn row(self) -> usize {
        self.row as usize
    }
}

/// The series behind a handle has expired: look it up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

/// What [`Window::intern`] found.
#[derive(Clone, Copy, Debug)]
pub struct Interned {
    pub handle: Handle,
    /// There was no room: this is the overflow series of the kind.
    pub overflow: bool,
}

/// Everything between two rotations, and the bucket that it belongs to. Times are Unix seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Later ones have higher numbers.
    pub number: u64,
    /// The time of the bucket's points.
    pub start: i64,
    /// When the bucket closes: a multiple of the interval.
    pub end: i64,
}

/// The whole aggregate.
pub struct Shards {
    /// The open generation. Readers hold it shared, who rotates has it alone.
    gate: RwLock<Generation>,
    /// When the first of what is not flushed came, in milliseconds; [`NEVER`] while there is none.
    first: AtomicI64,
    shards: Box<[Mutex<Shard>]>,
    inbox: Mutex<Inbox>,
    /// The first generation that was not flushed. Held while closed columns are walked.
    unflushed: Mutex<u64>,
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
    open: Mail,
    /// With the generation of each, oldest first; only those that hold anything.
    closed: Vec<(u64, Mail)>,
}

/// Events and service checks of one generation.
#[derive(Default)]
struct Mail {
    events: Vec<Event>,
    checks: Vec<ServiceCheck>,
}

/// A part of what closed generations hold.
#[derive(Debug)]
pub enum Held<'a> {
    /// What follows, but for events and checks, belongs to this bucket.
    Bucket(Generation),
    Cell(&'a Context, &'a Cell),
    /// With a time of its own.
    Timed(&'a Context, i64, &'a Cell),
    Event(&'a Event),
    Check(&'a ServiceCheck),
}

/// What a flush took.
#[derive(Debug, Default)]
pub struct Flushed {
    /// The generations that it took.
    pub generations: Range<u64>,
    /// When the first of it arrived, if anything did.
    pub first: Option<Time>,
    /// Rows of one context stand together, in the order of their time.
    pub rows: Vec<Row>,
    pub events: Vec<Event>,
    pub checks: Vec<ServiceCheck>,
}

/// One independent part of the aggregate.
pub struct Shard {
    /// Number of flushes that have rotated this shard.
    epoch: u32,
    /// Rows, by the hash in their state.
    index: HashTable<u32>,
    states: Vec<State>,
    free: Vec<u32>,
    open: Bucket,
    /// Oldest first.
    closed: VecDeque<Bucket>,
    /// An emptied column for the next bucket.
    spare: Vec<Cell>,
    /// What the sets of a bucket may take.
    room: Room,
}

/// What is known of a row apart from its values.
struct State {
    /// `None` while the row is free.
    context: Option<Context>,
    /// Value of the last flushed bucket, for deltas.
    gauge: f64,
    hash: u32,
    /// End of the last bucket that was flushed with a sample of it, for zeros; [`Moment::NEVER`]
    /// while it is known from timestamped points only.
    seen: Moment,
    /// End of the last bucket in which it was used in any way, for expiry.
    used: Moment,
    /// The lowest bits of the epoch in which it was last used.
    epoch: u8,
    /// Which of the series that had this row in turn it is.
    generation: u16,
    /// It is a gauge that may get deltas, so its value has to be remembered for long.
    delta: bool,
}

const _: () = assert!(size_of::<State>() == 32);

/// Before every bucket, and far enough from the end of the numbers.
const NEVER: i64 = i64::MIN / 2;

impl State {
    /// Whether an idle counter reports zero for the bucket that begins at `start`.
    fn wants_zero(&self, start: i64, config: &Config) -> bool {
        let counter = self.context.as_ref().is_some_and(|c| c.kind() == Kind::Count);
        counter && self.seen.seconds() + i64::from(config.counter_expiry_seconds) > start
    }

    /// Whether it was idle for so long that it may be forgotten. A reader trusts its handle for one
    /// epoch after it was used; of an older one the lowest bits may say so too, and it stays for one or
    /// two flushes more.
    fn expired(&self, now: Time, epoch: u32, config: &Config) -> bool {
        let mut expiry = i64::from(config.context_expiry_seconds);
        if self.context.as_ref().is_some_and(|c| c.kind() == Kind::Count) {
            expiry += i64::from(config.counter_expiry_seconds);
        }
        if self.delta {
            expiry += i64::from(config.delta_expiry_seconds);
        }
        self.used.seconds() + expiry <= now.seconds() && (epoch as u8).wrapping_sub(self.epoch) >= 2
    }
}

/// A generation's part of one shard.
struct Bucket {
    generation: Generation,
    /// By row; a row beyond the end is empty.
    cells: Vec<Cell>,
    timed: Vec<Row>,
    /// Timestamped samples that add up within their second: sets, histograms, distributions.
    timed_cells: TimedCells,
    /// Places under the limit of timestamped points that these took.
    places: usize,
    /// What its sets have left.
    room: Room,
}

/// By row and second.
type TimedCells = HashMap<(u32, i64), (Context, Cell), RandomState>;

impl Bucket {
    fn new(generation: Generation, cells: Vec<Cell>, room: Room) -> Self {
        let (timed, timed_cells) = (Vec::new(), HashMap::default());
        Self { generation, cells, timed, timed_cells, places: 0, room }
    }
}

/// A closed bucket: the oldest generations of a shard that belong to it.
struct Part {
    start: i64,
    end: i64,
    /// How many generations.
    count: usize,
    /// No other closed bucket is to be flushed now.
    is_last: bool,
}

/// A closed cell on its way to become a row, its sorting still to be done.
struct Closing {
    context: Context,
    time: i64,
    cell: Cell,
}

impl Closing {
    fn close(self, plan: &Plan) -> Option<Row> {
        let value = self.cell.close(plan)?;
        Some(Row { context: self.context, time: self.time, value })
    }
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
        telemetry.contexts_max.store(config.contexts_max as u64, Ordering::Relaxed);
        let start = now.bucket(interval);
        let open = Generation { number: 0, start, end: start + i64::from(interval) };
        let room = Room::of(plan.set_bytes_max / count);
        Self {
            gate: RwLock::new(open),
            first: AtomicI64::new(NEVER),
            shards: (0..count).map(|_| Mutex::new(Shard::new(open, room))).collect(),
            inbox: Mutex::default(),
            unflushed: Mutex::new(0),
            epoch: AtomicU32::new(0),
            hasher: RandomState::new(),
            timed: AtomicUsize::new(0),
            settings: Settings { config, plan, interval, hostname },
            telemetry,
        }
    }

    /// Lets a reader in with what arrived at `now`. The bucket that is over by then is closed first.
    pub fn window(&self, now: Time) -> Window<'_> {
        let open = self.gate.read().expect("no panic under this lock");
        if now.seconds() < open.end {
            self.note_arrival(now);
            return Window { open, shards: self };
        }
        drop(open);
        let mut open = self.rotating();
        self.advance(&mut open, now);
        self.note_arrival(now);
        Window { open: RwLockWriteGuard::downgrade(open), shards: self }
    }

    /// Of readers that come first at once any may win.
    fn note_arrival(&self, now: Time) {
        if self.first.load(Ordering::Relaxed) == NEVER && now.0 > 0 {
            self.first.store(now.0, Ordering::Relaxed);
        }
    }

    /// What flushes take begins with this generation.
    pub fn flush_from(&self, first: u64) {
        *self.unflushed.lock().expect("no panic under this lock") = first;
    }

    /// Closes the open generation; this one is open from now on.
    pub fn begin(&self, generation: Generation) {
        self.rotate(&mut self.rotating(), generation);
    }

    /// Waits for the readers that are in.
    fn rotating(&self) -> RwLockWriteGuard<'_, Generation> {
        self.gate.write().expect("no panic under this lock")
    }

    /// Closes the open bucket when `now` lies beyond it, and every empty one up to `now` that
    /// could still get a zero. What is late goes into the open one.
    fn advance(&self, open: &mut Generation, now: Time) {
        let interval = i64::from(self.settings.interval);
        let target = now.bucket(self.settings.interval);
        let last_zero =
            open.start + i64::from(self.settings.config.counter_expiry_seconds) + interval;
        while open.end <= target.min(last_zero) {
            self.rotate(open, self.following(open, open.end));
        }
        if open.end <= target {
            self.rotate(open, self.following(open, target));
        }
    }

    /// The generation after this one, of the bucket that begins at `start`.
    fn following(&self, open: &Generation, start: i64) -> Generation {
        Generation {
            number: open.number + 1,
            start,
            end: start + i64::from(self.settings.interval),
        }
    }

    fn rotate(&self, open: &mut Generation, next: Generation) {
        let closed = std::mem::replace(open, next);
        for shard in &self.shards {
            shard.lock().expect("no panic under this lock").close(next);
        }
        self.inbox.lock().expect("no panic under this lock").close(closed.number);
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

    /// Takes every bucket that has closed by `now`; with `open`, the open bucket too.
    pub fn flush(&self, now: Time, open: bool) -> Flushed {
        self.flush_by(now, open, || ())
    }

    /// The same, and says when it is done with a shard.
    pub fn flush_by(&self, now: Time, open: bool, mut done: impl FnMut()) -> Flushed {
        let mut unflushed = self.unflushed.lock().expect("no panic under this lock");
        let (last, first) = self.close_for_flush(now, open);
        let generations = std::mem::replace(&mut *unflushed, last)..last;
        let mut flushed = Flushed { generations, first, ..Flushed::default() };
        for mail in self.inbox.lock().expect("no panic under this lock").take(last) {
            flushed.events.extend(mail.events);
            flushed.checks.extend(mail.checks);
        }
        let plan = &self.settings.plan;
        // Of its size at once: an allocation under a shard's lock may take the allocator long.
        let mut closing = Vec::with_capacity(ROWS_PER_LOCK);
        let rows = &mut flushed.rows;
        rows.reserve_exact(self.telemetry.contexts.load(Ordering::Relaxed) as usize);
        let mut timed_rows = false;
        for shard in &self.shards {
            let lock = || shard.lock().expect("no panic under this lock");
            let (timed, timed_cells, places) = lock().begin_flush(last, plan);
            timed_rows |= timed.len() + timed_cells.len() > 0;
            self.timed.fetch_sub(places, Ordering::Relaxed);
            rows.extend(timed);
            closing.extend(timed_cells);
            loop {
                let (mut from, part) = (Some(0), lock().oldest(last));
                let Some(part) = part else { break };
                while let Some(row) = from {
                    from = lock().collect(
                        row,
                        &part,
                        part.is_last.then_some(now),
                        &self.settings,
                        &self.telemetry,
                        &mut closing,
                    );
                    // Soon, so that what the cells held serves the next bucket.
                    rows.extend(closing.drain(..).filter_map(|c: Closing| c.close(plan)));
                }
            }
            done();
        }
        rows.extend(closing.into_iter().filter_map(|c| c.close(plan)));
        self.epoch.fetch_add(1, Ordering::Release);
        // Of one bucket alone no context has two.
        let unsorted = timed_rows || rows.iter().any(|row| row.time != rows[0].time);
        if unsorted {
            rows.sort_by_key(|row| (row.context.address(), row.time));
        }
        flushed
    }

    /// Closes the open generation, whose bucket goes on in the next one, and gives everything that
    /// closed and was not flushed. Returns these generations. They stay to be flushed, each bucket
    /// as one column.
    pub fn hold(&self, mut each: impl FnMut(&Held<'_>)) -> Range<u64> {
        let unflushed = self.unflushed.lock().expect("no panic under this lock");
        let last = {
            let mut open = self.rotating();
            let next = Generation { number: open.number + 1, ..*open };
            self.rotate(&mut open, next);
            next.number
        };
        // All shards have the same closed generations, but for cells and points.
        let first = || self.shards[0].lock().expect("no panic under this lock");
        let mut bucket = 0;
        while let Some(generation) = { first().closed_before(bucket, last) } {
            each(&Held::Bucket(generation));
            for shard in &self.shards {
                let lock = || shard.lock().expect("no panic under this lock");
                lock().hold_timed(bucket, last, &mut each);
                let mut from = 0;
                while let Some(next) =
                    lock().hold_cells(bucket, last, from, &self.settings.plan, &mut each)
                {
                    from = next;
                }
            }
            bucket += 1;
        }
        let inbox = self.inbox.lock().expect("no panic under this lock");
        for (_, mail) in inbox.closed.iter().take_while(|(number, _)| *number < last) {
            mail.events.iter().for_each(|event| each(&Held::Event(event)));
            mail.checks.iter().for_each(|check| each(&Held::Check(check)));
        }
        *unflushed..last
    }

    /// Keys under which members of sets are hashed.
    pub const fn member_keys(&self) -> Keys {
        self.settings.plan.member_keys
    }

    /// Rotates as the clock says. Returns the generation that is open then, and when the first of
    /// what closed arrived.
    fn close_for_flush(&self, now: Time, open: bool) -> (u64, Option<Time>) {
        let mut current = self.rotating();
        self.advance(&mut current, now);
        let target = now.bucket(self.settings.interval);
        if target < current.start - i64::from(self.settings.interval) {
            // The clock was set back. Readers that are merely late must not do this.
            let next = self.following(&current, target);
            self.rotate(&mut current, next);
        } else if open {
            let next = self.following(&current, current.end);
            self.rotate(&mut current, next);
        }
        // What came after the bucket closed, if the flush is late, counts for this one too.
        let first = self.first.swap(NEVER, Ordering::Relaxed);
        (current.number, (first != NEVER).then_some(Time(first)))
    }
}

impl Inbox {
    fn has_room(&self, max: usize) -> bool {
        let closed: usize = self.closed.iter().map(|(_, mail)| mail.len()).sum();
        self.open.len() + closed < max
    }

    fn close(&mut self, generation: u64) {
        if self.open.len() > 0 {
            self.closed.push((generation, std::mem::take(&mut self.open)));
        }
    }

    /// Takes what came before this generation.
    fn take(&mut self, generation: u64) -> impl Iterator<Item = Mail> {
        let older = self.closed.partition_point(|(number, _)| *number < generation);
        self.closed.drain(..older).map(|(_, mail)| mail)
    }
}

impl Mail {
    const fn len(&self) -> usize {
        self.events.len() + self.checks.len()
    }
}

/// A reader's way in, for one batch of datagrams: nothing rotates while it is held, so a thread has
/// at most one and does not wait under it.
pub struct Window<'a> {
    open: RwLockReadGuard<'a, Generation>,
    shards: &'a Shards,
}

impl<'a> Window<'a> {
    /// What everything goes into while this is held.
    pub fn generation(&self) -> &Generation {
        &self.open
    }

    /// As [`Shards::epoch`].
    pub fn epoch(&self) -> u32 {
        self.shards.epoch()
    }

    /// Finds the series, or makes it. At `contexts_max` it is the overflow series of its kind.
    /// `deltas` tells that it is a gauge whose value later deltas will change.
    pub fn intern(&self, context: Context, deltas: bool) -> Interned {
        let kind = context.kind();
        let Settings { config, hostname, .. } = &self.shards.settings;
        if let Some(handle) = self.find_or_insert(context, deltas, config.contexts_max) {
            return Interned { handle, overflow: false };
        }
        let tags = vec![format!("kind:{}", kind.word())];
        let overflow = Context::new("tallyd.overflow", kind, hostname, tags, Source::default());
        let handle = self.find_or_insert(overflow, deltas, usize::MAX);
        Interned { handle: handle.expect("there is no limit"), overflow: true }
    }

    /// Whether the series behind a handle that was not used for long is still the same. It is kept
    /// for the epoch that begins now.
    pub fn revive(&self, handle: Handle) -> bool {
        let mut shard = self.shard(handle.shard());
        let alive = shard.is_alive(handle);
        if alive {
            shard.touch(handle.row);
        }
        alive
    }

    fn find_or_insert(&self, context: Context, deltas: bool, limit: usize) -> Option<Handle> {
        let hash = self.shards.hasher.hash_one(&context);
        // The table inside the shard uses the other half.
        let number = ((hash >> 32) as usize * self.shards.len()) >> 32;
        let hash = hash as u32;
        let mut shard = self.shard(number);
        let row = match shard.find(hash, &context) {
            Some(row) => {
                shard.adopt(row, context.maker(), &self.shards.telemetry);
                row
            }
            None if self.reserve(limit) => {
                self.shards.telemetry.senders.begin_series(context.maker());
                shard.insert(hash, context)
            }
            None => return None,
        };
        // The caller is about to use it: it must not expire between now and then.
        shard.touch(row);
        shard.states[row as usize].delta |= deltas;
        let generation = shard.states[row as usize].generation;
        Some(Handle::new(number, generation, row))
    }

    /// Takes a place under the limit.
    fn reserve(&self, limit: usize) -> bool {
        let count = &self.shards.telemetry.contexts;
        let taken = |n| (n < limit as u64).then_some(n + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }

    /// Locks a shard for a run of samples.
    pub fn lock(&self, number: usize) -> Locked<'a> {
        Locked::new(self.shard(number), self.shards)
    }

    /// The same, unless somebody else has it.
    pub fn try_lock(&self, number: usize) -> Option<Locked<'a>> {
        match self.shards.shards[number].try_lock() {
            Ok(shard) => Some(Locked::new(shard, self.shards)),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(_)) => panic!("no panic under this lock"),
        }
    }

    fn shard(&self, number: usize) -> MutexGuard<'a, Shard> {
        self.shards.shards[number].lock().expect("no panic under this lock")
    }

    /// Adds what a series held in another process, with a time of its own or in the open bucket.
    pub fn restore(&self, context: Context, time: Option<i64>, cell: Cell) {
        if !cell.is_of(context.kind()) {
            return;
        }
        let kind = context.kind();
        let handle = self.intern(context, false).handle;
        let (row, mut locked) = (handle.row, self.lock(handle.shard()));
        locked.shard.touch(row);
        let plan = &self.shards.settings.plan;
        match (time, kind) {
            (None, _) => locked.shard.cell(row).merge(cell, plan),
            (Some(time), Kind::Count | Kind::Gauge) => {
                if let Some(value) = cell.close(plan) {
                    locked.timed_point(row, time, value);
                }
            }
            (Some(time), Kind::Set | Kind::Timer | Kind::Histogram | Kind::Distribution) => {
                locked.timed_cell(row, time, |earlier, plan| earlier.merge(cell, plan));
            }
        }
    }

    /// Keeps an event for the next flush, or counts it as dropped and returns false.
    pub fn event(&self, event: Event) -> bool {
        self.mail(|mail| mail.events.push(event))
    }

    /// Keeps a service check for the next flush, or counts it as dropped and returns false.
    pub fn check(&self, check: ServiceCheck) -> bool {
        self.mail(|mail| mail.checks.push(check))
    }

    fn mail(&self, put: impl FnOnce(&mut Mail)) -> bool {
        let mut inbox = self.shards.inbox.lock().expect("no panic under this lock");
        if inbox.has_room(self.shards.settings.config.events_max) {
            put(&mut inbox.open);
            return true;
        }
        self.shards.telemetry.events_dropped.add(1);
        false
    }
}

/// A shard that samples may be added to.
pub struct Locked<'a> {
    shard: MutexGuard<'a, Shard>,
    shards: &'a Shards,
    /// What was dropped since it was locked: timestamped points, and values that are not finite.
    pub timed_dropped: u64,
    pub non_finite: u64,
}

impl<'a> Locked<'a> {
    const fn new(shard: MutexGuard<'a, Shard>, shards: &'a Shards) -> Self {
        Self { shard, shards, timed_dropped: 0, non_finite: 0 }
    }

    /// The cells of the open bucket, by row. A series that is beyond the end has none yet.
    pub fn cells(&self) -> &[Cell] {
        &self.shard.open.cells
    }

    /// Has what lies behind a cell of the open bucket fetched into the cache.
    #[inline]
    pub fn prefetch(&self, handle: Handle) {
        self.cells().get(handle.row()).inspect(|cell| cell.prefetch());
    }

    /// The same of the place behind it where this will go; what lies behind the cell is looked at.
    #[inline]
    pub fn prefetch_place(&self, handle: Handle, reading: &Reading<'_>) {
        // It is hashed again when it is added: that costs less than to wait for its place.
        let member = || match reading.values {
            Values::Member(member) => Some(self.member_hash(member)),
            _ => None,
        };
        self.cells().get(handle.row()).inspect(|cell| cell.prefetch_place(member));
    }

    fn member_hash(&self, member: &[u8]) -> u64 {
        self.shards.settings.plan.member_keys.hash(member)
    }

    /// What the series is that a sample was just added to.
    pub fn context(&self, handle: Handle) -> &Context {
        let context = &self.shard.states[handle.row()].context;
        context.as_ref().expect("a series in use is not freed")
    }

    /// What a gauge has come to by now. Of several changes in a run each may so be the last value in a
    /// journal, which comes to the same.
    pub fn gauge(&self, handle: Handle) -> f64 {
        self.shard.gauge(handle.row)
    }

    /// Adds what a sample brings to the series behind `handle`, which was last used in epoch
    /// `used`. `kind` is the series' own: a copy of a histogram is a distribution.
    ///
    /// # Errors
    /// [`Stale`] when the series has expired meanwhile; nothing was added.
    #[inline]
    pub fn add(
        &mut self,
        handle: Handle,
        used: u32,
        kind: Kind,
        reading: &Reading<'_>,
    ) -> Result<(), Stale> {
        if !self.shard.holds(handle, used) {
            return Err(Stale);
        }
        if let (Values::One(value), None) = (reading.values, reading.timestamp) {
            // Nearly every one.
            self.add_value(handle.row, kind, value, reading.weight().unwrap_or(1.0), None);
        } else {
            self.add_other(handle.row, kind, reading);
        }
        Ok(())
    }

    fn add_other(&mut self, row: u32, kind: Kind, reading: &Reading<'_>) {
        let (weight, timestamp) = (reading.weight().unwrap_or(1.0), reading.timestamp);
        if !matches!((reading.values, timestamp), (Values::Member(_), None)) {
            // Perhaps no cell will tell the flush that this series was used.
            self.shard.touch(row);
        }
        match reading.values {
            Values::One(value) => self.add_value(row, kind, value, weight, timestamp),
            Values::Packed(text) => {
                for value in parse::packed(text) {
                    self.add_value(row, kind, value, weight, timestamp);
                }
            }
            Values::Member(member) => {
                self.add_member(row, self.member_hash(member), timestamp);
            }
            Values::Delta(delta) => {
                let value = self.shard.gauge(row) + delta;
                self.add_value(row, kind, value, weight, timestamp);
            }
        }
    }

    fn add_member(&mut self, row: u32, hash: u64, timestamp: Option<i64>) {
        let mut room = self.shard.open.room;
        match timestamp {
            None => {
                self.shard.cell(row).member(hash, &self.shards.settings.plan, &mut room);
            }
            Some(time) => {
                self.timed_cell(row, time, |cell, plan| cell.member(hash, plan, &mut room));
            }
        }
        self.shards.telemetry.coarse_sets.add(std::mem::take(&mut room.coarse));
        self.shard.open.room = room;
    }

    #[inline]
    fn add_value(&mut self, row: u32, kind: Kind, value: f64, weight: f64, timestamp: Option<i64>) {
        if !value.is_finite() {
            self.shards.telemetry.non_finite.add(1);
            self.non_finite += 1;
            return;
        }
        match timestamp {
            None => self.shard.cell(row).add(kind, value, weight, &self.shards.settings.plan),
            Some(time) => self.add_timed(row, kind, value, weight, time),
        }
    }

    fn add_timed(&mut self, row: u32, kind: Kind, value: f64, weight: f64, time: i64) {
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
        self.shard.open.timed.push(Row { context, time, value });
    }

    fn timed_cell(&mut self, row: u32, time: i64, add: impl FnOnce(&mut Cell, &Plan)) {
        let plan = &self.shards.settings.plan;
        if let Some((_, cell)) = self.shard.open.timed_cells.get_mut(&(row, time)) {
            return add(cell, plan);
        }
        let Some(context) = self.timed_context(row) else { return };
        let mut cell = Cell::Empty;
        add(&mut cell, plan);
        self.shard.open.timed_cells.insert((row, time), (context, cell));
    }

    /// The context of a row that gets one more timestamped point, if there is room for it.
    fn timed_context(&mut self, row: u32) -> Option<Context> {
        let max = self.shards.settings.config.timed_points_max;
        if self.shards.timed.fetch_add(1, Ordering::Relaxed) >= max {
            self.shards.timed.fetch_sub(1, Ordering::Relaxed);
            self.shards.telemetry.timed_dropped.add(1);
            self.timed_dropped += 1;
            return None;
        }
        self.shard.open.places += 1;
        self.shard.states[row as usize].context.clone()
    }
}

impl Shard {
    fn new(open: Generation, room: Room) -> Self {
        Self {
            epoch: 0,
            index: HashTable::new(),
            states: Vec::new(),
            free: Vec::new(),
            open: Bucket::new(open, Vec::new(), room),
            closed: VecDeque::new(),
            spare: Vec::new(),
            room,
        }
    }

    fn find(&self, hash: u32, context: &Context) -> Option<u32> {
        let same = |&row: &u32| {
            let state = &self.states[row as usize];
            state.hash == hash && state.context.as_ref() == Some(context)
        };
        self.index.find(spread(hash), same).copied()
    }

    fn insert(&mut self, hash: u32, context: Context) -> u32 {
        let mut state = State {
            context: Some(context),
            gauge: 0.0,
            hash,
            seen: Moment::NEVER,
            used: Moment::NEVER,
            epoch: self.epoch as u8,
            generation: 0,
            delta: false,
        };
        let row = self.free.pop().unwrap_or(self.states.len() as u32);
        if row as usize == self.states.len() {
            self.states.push(state);
        } else {
            state.generation = self.states[row as usize].generation;
            self.states[row as usize] = state;
        }
        let hash_of = |&row: &u32| spread(self.states[row as usize].hash);
        self.index.insert_unique(spread(hash), row, hash_of);
        row
    }

    /// Whether the handle still means the same series. See the module's head for why a young one
    /// needs no look at the generation.
    fn holds(&self, handle: Handle, used: u32) -> bool {
        self.epoch.wrapping_sub(used) <= 1 || self.is_alive(handle)
    }

    /// Whether the row still belongs to the series that the handle was made for.
    fn is_alive(&self, handle: Handle) -> bool {
        let state = &self.states[handle.row()];
        state.generation == handle.generation && state.context.is_some()
    }

    /// Marks the series as used in the open bucket.
    fn touch(&mut self, row: u32) {
        let state = &mut self.states[row as usize];
        state.used = Moment::new(self.open.generation.end);
        state.epoch = self.epoch as u8;
    }

    fn cell(&mut self, row: u32) -> &mut Cell {
        let row = row as usize;
        if row >= self.open.cells.len() {
            self.make_cells();
        }
        &mut self.open.cells[row]
    }

    /// Makes room for every row at once, so that this happens once per bucket.
    #[cold]
    fn make_cells(&mut self) {
        let cells = &mut self.open.cells;
        cells.reserve(self.states.len() - cells.len());
        if cells.is_empty() {
            sys::prefer_huge_pages(cells);
        }
        cells.resize_with(self.states.len(), || Cell::Empty);
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

    /// Closes the open generation.
    fn close(&mut self, next: Generation) {
        // A bucket that goes on has what it had left.
        let goes_on = next.start == self.open.generation.start;
        let room = if goes_on { self.open.room } else { self.room };
        let next = Bucket::new(next, std::mem::take(&mut self.spare), room);
        self.closed.push_back(std::mem::replace(&mut self.open, next));
    }

    /// Takes the timestamped points of what closed before generation `last`, with the places under
    /// their limit. Begins the next epoch.
    fn begin_flush(&mut self, last: u64, plan: &Plan) -> (Vec<Row>, Vec<Closing>, usize) {
        self.epoch = self.epoch.wrapping_add(1);
        let (mut timed, mut cells, mut places) = (Vec::new(), TimedCells::default(), 0);
        for bucket in self.closed.iter_mut().filter(|b| b.generation.number < last) {
            places += std::mem::take(&mut bucket.places);
            timed.append(&mut bucket.timed);
            merge_timed(&mut cells, &mut bucket.timed_cells, plan);
        }
        let cells = cells.into_iter();
        let timed_cells =
            cells.map(|((_, time), (context, cell))| Closing { context, time, cell }).collect();
        (timed, timed_cells, places)
    }

    /// The oldest closed bucket, if it closed before generation `last`.
    fn oldest(&self, last: u64) -> Option<Part> {
        let closed = self.closed.iter().take_while(|b| b.generation.number < last);
        let Generation { start, end, .. } = self.closed.front()?.generation;
        let count = closed.clone().take_while(|b| b.generation.start == start).count();
        (count > 0).then(|| Part { start, end, count, is_last: closed.count() == count })
    }

    /// A closed generation, by its place among those that closed before generation `last`.
    fn closed_before(&self, place: usize, last: u64) -> Option<Generation> {
        let generation = self.closed.get(place)?.generation;
        (generation.number < last).then_some(generation)
    }

    /// Gives the timestamped points of a closed bucket.
    fn hold_timed(&self, bucket: usize, last: u64, each: &mut impl FnMut(&Held<'_>)) {
        let same = self.same_bucket(bucket, last);
        let parts = self.closed.range(bucket..bucket + same);
        for part in parts {
            for row in &part.timed {
                let cell = match row.value {
                    Value::Count(sum) => Cell::Count(sum),
                    Value::Gauge(value) => Cell::Gauge(value),
                    // These add up within their second, and stand in the other list.
                    Value::Set(_) | Value::Histogram(_) | Value::Distribution(_) => continue,
                };
                each(&Held::Timed(&row.context, row.time, &cell));
            }
            for ((_, time), (context, cell)) in &part.timed_cells {
                each(&Held::Timed(context, *time, cell));
            }
        }
    }

    /// How many closed generations before `last`, from this one on, belong to one bucket.
    fn same_bucket(&self, first: usize, last: u64) -> usize {
        let start = self.closed[first].generation.start;
        let closed = self.closed.range(first..);
        closed.take_while(|b| b.generation.number < last && b.generation.start == start).count()
    }

    /// Gives some cells of a closed bucket, from row `from` on, and gathers them in its first column.
    /// Returns the row to go on with, or `None` when its other columns are gone.
    fn hold_cells(
        &mut self,
        bucket: usize,
        last: u64,
        from: usize,
        plan: &Plan,
        each: &mut impl FnMut(&Held<'_>),
    ) -> Option<usize> {
        let count = self.same_bucket(bucket, last);
        let rows = self.closed.range(bucket..bucket + count).map(|b| b.cells.len()).max()?;
        let to = rows.min(from + HELD_PER_LOCK);
        if self.closed[bucket].cells.len() < to {
            self.closed[bucket].cells.resize_with(rows, || Cell::Empty);
        }
        for row in from..to {
            let cell = taken(self.closed.range_mut(bucket..bucket + count), row, plan);
            if let (Some(context), false) = (&self.states[row].context, matches!(cell, Cell::Empty))
            {
                each(&Held::Cell(context, &cell));
            }
            self.closed[bucket].cells[row] = cell;
        }
        if to < rows {
            return Some(to);
        }
        for mut part in self.closed.drain(bucket + 1..bucket + count).collect::<Vec<_>>() {
            let whole = &mut self.closed[bucket];
            whole.places += part.places;
            whole.timed.extend(part.timed);
            merge_timed(&mut whole.timed_cells, &mut part.timed_cells, plan);
            if part.cells.len() > self.spare.len() {
                self.spare = part.cells;
            }
        }
        None
    }

    /// Moves some rows of the oldest closed bucket, from row `from` on, to `out`. Returns the row
    /// to go on with, or `None` when the bucket is done and gone. With `expire`, rows that were
    /// idle for too long at that time are freed.
    fn collect(
        &mut self,
        from: usize,
        part: &Part,
        expire: Option<Time>,
        settings: &Settings,
        telemetry: &Telemetry,
        out: &mut Vec<Closing>,
    ) -> Option<usize> {
        let Part { start, end, count, .. } = *part;
        let (end, open_end) = (Moment::new(end), Moment::new(self.open.generation.end));
        let to = self.states.len().min(from + ROWS_PER_LOCK);
        let mut idle = Vec::new();
        for row in from..to {
            let state = &mut self.states[row];
            let cell = taken(self.closed.iter_mut().take(count), row, &settings.plan);
            let Some(context) = state.context.clone() else {
                debug_assert!(matches!(cell, Cell::Empty), "a free row has no value");
                continue;
            };
            // Times of a clock that was ahead would keep it alive for too long.
            state.seen = state.seen.min(Moment::new(start));
            state.used = state.used.min(open_end);
            if !matches!(cell, Cell::Empty) {
                if let Cell::Gauge(value) = cell {
                    state.gauge = value;
                }
                state.seen = end;
                state.used = state.used.max(end).min(open_end);
                state.epoch = self.epoch as u8;
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
            let later = self.closed.iter().skip(count).chain([&self.open]);
            later.map(|b| b.cells.get(*row)).any(|cell| !matches!(cell, None | Some(Cell::Empty)))
        };
        let freed: Vec<usize> = idle.into_iter().filter(|row| !waits(row)).collect();
        for row in freed {
            self.remove(row as u32, telemetry);
        }
        if to < self.states.len() {
            return Some(to);
        }
        for bucket in self.closed.drain(..count) {
            if bucket.cells.len() > self.spare.len() {
                // Every cell was taken: free rows have none.
                self.spare = bucket.cells;
            }
        }
        None
    }

    /// A series that nobody in particular made, such as one from a checkpoint, is that of whoever
    /// sends it first after that.
    fn adopt(&self, row: u32, maker: u16, telemetry: &Telemetry) {
        let Some(context) = &self.states[row as usize].context else { return };
        if context.maker() == OTHERS && maker != OTHERS {
            telemetry.senders.end_series(OTHERS);
            telemetry.senders.begin_series(maker);
            context.adopt(maker);
        }
    }

    /// Frees a row; the next series in it has another generation.
    fn remove(&mut self, row: u32, telemetry: &Telemetry) {
        let state = &mut self.states[row as usize];
        match self.index.find_entry(spread(state.hash), |&r| r == row) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => unreachable!("a live row is in the index"),
        }
        if let Some(context) = state.context.take() {
            telemetry.senders.end_series(context.maker());
        }
        state.generation = state.generation.wrapping_add(1);
        self.free.push(row);
        telemetry.contexts.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the index takes of a hash: its lowest bits and its highest.
const fn spread(hash: u32) -> u64 {
    (hash as u64) << 32 | hash as u64
}

/// Adds what came later to what came earlier.
fn merge_timed(whole: &mut TimedCells, later: &mut TimedCells, plan: &Plan) {
    if whole.is_empty() {
        return std::mem::swap(whole, later);
    }
    for (key, (context, cell)) in later.drain() {
        whole.entry(key).or_insert((context, Cell::Empty)).1.merge(cell, plan);
    }
}

/// Takes what a row holds in the generations of a bucket.
fn taken<'a>(generations: impl Iterator<Item = &'a mut Bucket>, row: usize, plan: &Plan) -> Cell {
    let mut whole = Cell::Empty;
    for cell in generations.filter_map(|bucket| bucket.cells.get_mut(row)) {
        whole.merge(std::mem::take(cell), plan);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_kept_for_an_epoch_and_not_for_long_whatever_its_bits_say() {
        let config = Config { context_expiry_seconds: 0, ..Config::default() };
        let state = State {
            context: None,
            gauge: 0.0,
            hash: 0,
            seen: Moment::NEVER,
            used: Moment::NEVER,
            epoch: (u32::MAX - 300) as u8,
            generation: 0,
            delta: false,
        };
        let expired = |epochs: u32| {
            let epoch = (u32::MAX - 300).wrapping_add(epochs);
            state.expired(Time::from_seconds(1_800_000_000), epoch, &config)
        };
        assert!(!expired(0) && !expired(1));
        for epochs in 2..1000 {
            assert!((epochs..epochs + 3).any(expired), "{epochs}");
        }
    }
}
