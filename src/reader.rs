//! What a reader does with a datagram: lines, samples, series.
//!
//! For a known series nothing is copied or allocated here: the sample is a handful of slices of the
//! datagram, its bytes as sent (the *spelling*) are hashed, and the reader's own table of spellings
//! says where the series is kept. Only a new spelling is mapped, tagged and looked up by its
//! canonical [`Context`](crate::context::Context).
//!
//! A spelling is known by 128 keyed bits alone, with keys drawn at random at the start. Two
//! spellings out of `n` share them with a probability below `n^2 / 2^129`: for ten million
//! spellings that is 1.5e-25.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use ahash::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

use crate::parse;
use crate::rules::{Outcome, Rules};
use crate::sample::{Dialect, Kind, Message, Reject, Sample, Values};
use crate::shard::{Handle, Shards};
use crate::stream::{FrameError, Framer};
use crate::telemetry::{Listener, Telemetry};
use crate::time::Time;
use crate::value::WEIGHT_MAX;

/// Samples that are looked up before a shard is locked for them.
const RUN: usize = 64;

/// Longest part of a refused line that is shown in the log.
const EXCERPT: usize = 120;

/// What all readers share.
#[derive(Clone)]
pub struct Shared {
    pub rules: Arc<Rules>,
    pub shards: Arc<Shards>,
    pub telemetry: Arc<Telemetry>,
    /// Histograms and timers are added a second time as distributions, under this prefix.
    pub distribution_prefix: Option<String>,
    /// Refused lines are logged, once a minute per reason.
    pub log_rejects: bool,
    /// Bytes of a line; a longer one is refused.
    pub line_max: usize,
    /// Spellings that a reader remembers.
    pub spellings_max: usize,
}

/// Turns what one listener received into values of series. One thread uses it at a time.
pub struct Reader {
    shared: Shared,
    listener: Arc<Listener>,
    options: parse::Options,
    eol_required: bool,
    spellings: Spellings,
}

/// A sample whose series is known, waiting for its shard's lock.
struct Pending<'a> {
    sample: Sample<'a>,
    series: Series,
    /// Epoch in which the series was last used.
    used: u32,
}

impl Reader {
    pub fn new(
        shared: Shared,
        listener: Arc<Listener>,
        options: parse::Options,
        eol_required: bool,
    ) -> Self {
        let spellings = Spellings::new(shared.spellings_max);
        Self { shared, listener, options, eol_required, spellings }
    }

    pub fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Takes in one datagram, frame or run of text lines that arrived at `now`. `truncated` says
    /// that its end is missing.
    pub fn datagram(&mut self, bytes: &[u8], truncated: bool, now: Time) {
        self.listener.datagrams.add(1);
        self.listener.bytes.add(bytes.len() as u64);
        self.listener.truncated.add(truncated.into());
        // Only a datagram that may lack its end is searched from there: that touches cold memory.
        let reason = if truncated {
            Some(Reject::Truncated)
        } else {
            self.eol_required.then_some(Reject::Unterminated)
        };
        let (text, refused) = match reason {
            None => (bytes, None),
            Some(reason) => {
                let cut = parse::Datagram::new(bytes);
                (cut.complete, cut.tail.map(|tail| (reason, tail)))
            }
        };
        let mut run = SmallVec::<[Pending<'_>; RUN]>::new();
        let (mut samples, mut events, mut checks) = (0, 0, 0);
        for line in parse::lines(text) {
            // Only a body posted by HTTP can hold such a line.
            if line.len() > self.shared.line_max {
                self.reject(Reject::Truncated, line, now);
                continue;
            }
            let options = self.options;
            parse::messages(line, options, |message| match message {
                Ok(Message::Metric(sample)) => {
                    samples += 1;
                    self.look_up(sample, now, &mut run);
                    if run.len() == RUN {
                        self.apply(&mut run, now);
                    }
                }
                Ok(Message::Event(event)) => {
                    events += 1;
                    self.shared.telemetry.fields_ignored.add(event.ignored.into());
                    self.shared.shards.event(self.shared.rules.event(&event, now.seconds()));
                }
                Ok(Message::Check(check)) => {
                    checks += 1;
                    self.shared.telemetry.fields_ignored.add(check.ignored.into());
                    self.shared.shards.check(self.shared.rules.check(&check, now.seconds()));
                }
                Err(reason) => self.reject(reason, line, now),
            });
        }
        self.apply(&mut run, now);
        self.listener.samples.add(samples);
        self.listener.events.add(events);
        self.listener.checks.add(checks);
        if let Some((reason, line)) = refused {
            self.reject(reason, line, now);
        }
    }

    /// Takes in every payload that a stream has complete. Returns false when the stream cannot be
    /// read any further.
    pub fn payloads(&mut self, framer: &mut Framer, now: Time) -> bool {
        while let Some(payload) = framer.payload() {
            match payload {
                Ok(bytes) => self.datagram(bytes, false, now),
                Err(FrameError::LineTooLong) => {
                    self.listener.truncated.add(1);
                    self.reject(Reject::Truncated, b"(longer than intake.buffer_size)", now);
                }
                Err(error @ (FrameError::FrameTooLong(_) | FrameError::Unfinished(_))) => {
                    self.listener.connections_refused.add(1);
                    self.reject(Reject::Truncated, error.to_string().as_bytes(), now);
                    return false;
                }
            }
        }
        true
    }

    /// Finds the series of a sample and queues the sample for its shard.
    fn look_up<'a>(
        &mut self,
        sample: Sample<'a>,
        now: Time,
        run: &mut SmallVec<[Pending<'a>; RUN]>,
    ) {
        if let Values::One(value) | Values::Delta(value) = sample.values
            && !value.is_finite()
        {
            return self.shared.telemetry.non_finite.add(1);
        }
        let epoch = self.shared.shards.epoch();
        let print = self.spellings.print(&sample, self.options.dialect);
        let known = self.spellings.find(print, epoch, &self.shared.shards, now);
        let (series, used) = known.unwrap_or_else(|| {
            let series = self.resolve(&sample, now);
            self.spellings.insert(print, series, epoch);
            (series, epoch)
        });
        if series.handle.is_some() {
            self.shared.telemetry.overflow.add(series.overflow.into());
            run.push(Pending { sample, series, used });
        } else {
            self.shared.telemetry.blocked.add(1);
        }
    }

    /// The slow way from a spelling to its series, taken once per spelling while it is in use.
    fn resolve(&self, sample: &Sample<'_>, now: Time) -> Series {
        let Shared { rules, shards, telemetry, .. } = &self.shared;
        let dialect = self.options.dialect;
        let (context, invalid_utf8) = match rules.context(sample, dialect) {
            Outcome::Blocked => return Series::default(),
            Outcome::Keep { context, invalid_utf8, .. } => (context, invalid_utf8),
        };
        telemetry.invalid_utf8.add(invalid_utf8.into());
        let copied = matches!(context.kind(), Kind::Histogram | Kind::Timer);
        let prefix = self.shared.distribution_prefix.as_ref().filter(|_| copied);
        let copy = prefix.map(|prefix| context.renamed(prefix, Kind::Distribution));
        let deltas = dialect == Dialect::Statsd && context.kind() == Kind::Gauge;
        let series = shards.intern(context, deltas, now);
        let copy = copy.map(|context| shards.intern(context, false, now));
        Series {
            handle: Some(series.handle),
            copy: copy.map(|copy| copy.handle),
            overflow: series.overflow || copy.is_some_and(|copy| copy.overflow),
        }
    }

    /// Adds a run of samples, shard by shard and within each in the order of arrival.
    fn apply(&mut self, run: &mut SmallVec<[Pending<'_>; RUN]>, now: Time) {
        let shards = Arc::clone(&self.shared.shards);
        let mut again = SmallVec::<[(usize, Kind); 4]>::new();
        for number in 0..shards.len() {
            let mut locked = None;
            let mut stale = false;
            for (i, pending) in run.iter().enumerate() {
                for (handle, kind) in pending.series.handles(pending.sample.kind) {
                    if handle.shard() != number {
                        continue;
                    }
                    let shard = locked.get_or_insert_with(|| shards.lock(number, now));
                    // Behind a sample that has to wait the others wait too: they may be of its
                    // series.
                    stale =
                        stale || shard.add(handle, pending.used, kind, &pending.sample).is_err();
                    if stale {
                        again.push((i, kind));
                    }
                }
            }
        }
        let bounded = |kind| matches!(kind, Kind::Histogram | Kind::Timer | Kind::Distribution);
        for Pending { sample, .. } in run.iter() {
            let weight = sample.weight();
            if weight.is_none_or(|weight| weight > WEIGHT_MAX && bounded(sample.kind)) {
                self.shared.telemetry.rate_out_of_range.add(1);
            }
        }
        for (i, kind) in again {
            self.add_again(&run[i].sample, kind, now);
        }
        run.clear();
    }

    /// The series of this kind expired between its look-up and its shard's lock, while this thread
    /// was held up for two flushes: looks it up anew, as often as that happens.
    fn add_again(&mut self, sample: &Sample<'_>, kind: Kind, now: Time) {
        let print = self.spellings.print(sample, self.options.dialect);
        loop {
            let epoch = self.shared.shards.epoch();
            let series = self.resolve(sample, now);
            self.spellings.insert(print, series, epoch);
            let Some((handle, _)) = series.handles(sample.kind).find(|(_, k)| *k == kind) else {
                return;
            };
            let mut shard = self.shared.shards.lock(handle.shard(), now);
            if shard.add(handle, epoch, kind, sample).is_ok() {
                return;
            }
        }
    }

    fn reject(&self, reason: Reject, line: &[u8], now: Time) {
        let count = self.listener.rejects.of(reason);
        count.add(1);
        if self.shared.log_rejects && self.shared.telemetry.may_log(reason, now) {
            let excerpt = line[..line.len().min(EXCERPT)].escape_ascii();
            tracing::warn!(
                listener = self.listener.name,
                reason = reason.word(),
                so_far = count.get(),
                "refused the line \"{excerpt}\""
            );
        }
    }
}

/// Where the samples of one spelling go.
#[derive(Clone, Copy, Debug, Default)]
struct Series {
    /// `None` when the name is blocked.
    handle: Option<Handle>,
    /// The copy of a histogram as a distribution.
    copy: Option<Handle>,
    /// There was no room for one of them, so it is the overflow series: for this epoch only, since
    /// there may be room later.
    overflow: bool,
}

impl Series {
    /// The rows to add to, each with the kind of its series.
    fn handles(self, kind: Kind) -> impl Iterator<Item = (Handle, Kind)> {
        let handle = self.handle.map(|handle| (handle, kind));
        handle.into_iter().chain(self.copy.map(|handle| (handle, Kind::Distribution)))
    }
}

/// 128 keyed bits that stand for a spelling.
type Print = [u64; 2];

/// A reader's memory of spellings. It may forget at any time: a spelling is then resolved again.
struct Spellings {
    table: HashTable<Spelling>,
    keys: [RandomState; 2],
    max: usize,
    /// Number at which idle spellings are looked for next.
    sweep_at: usize,
}

struct Spelling {
    print: Print,
    series: Series,
    used: u32,
}

/// Epochs after which an idle spelling is forgotten when the table is swept.
const IDLE_EPOCHS: u32 = 32;
const SWEEP_MIN: usize = 4096;

impl Spellings {
    fn new(max: usize) -> Self {
        let keys = [RandomState::new(), RandomState::new()];
        Self { table: HashTable::new(), keys, max, sweep_at: SWEEP_MIN }
    }

    /// Hashes everything of a sample that decides which series it belongs to.
    fn print(&self, sample: &Sample<'_>, dialect: Dialect) -> Print {
        self.keys.each_ref().map(|key| {
            let mut hasher = key.build_hasher();
            hasher.write_u8(sample.kind as u8 | (dialect as u8) << 4);
            // The length keeps name and tags apart.
            hasher.write_usize(sample.name.len());
            hasher.write(sample.name);
            hasher.write(sample.tags);
            hasher.finish()
        })
    }

    /// Where the samples of a spelling go, and the epoch in which its series was last used. A
    /// series that was not used for longer than its handle can be trusted is asked for at its
    /// shard; `None` when it has expired.
    fn find(
        &mut self,
        print: Print,
        epoch: u32,
        shards: &Shards,
        now: Time,
    ) -> Option<(Series, u32)> {
        let spelling = self.table.find_mut(print[0], |s| s.print == print)?;
        let Series { handle, copy, overflow } = spelling.series;
        let used = std::mem::replace(&mut spelling.used, epoch);
        match epoch.wrapping_sub(used) {
            0 => Some((spelling.series, used)),
            _ if overflow => None,
            1 => Some((spelling.series, used)),
            _ => {
                let alive = handle.into_iter().chain(copy).all(|h| shards.revive(h, now));
                alive.then_some((spelling.series, epoch))
            }
        }
    }

    fn insert(&mut self, print: Print, series: Series, epoch: u32) {
        if let Some(known) = self.table.find_mut(print[0], |s| s.print == print) {
            (known.series, known.used) = (series, epoch);
            return;
        }
        if self.table.len() >= self.sweep_at {
            self.sweep(epoch);
        }
        self.table.insert_unique(print[0], Spelling { print, series, used: epoch }, |s| s.print[0]);
    }

    /// Forgets what is idle; if that is not enough, everything.
    fn sweep(&mut self, epoch: u32) {
        self.table.retain(|s| epoch.wrapping_sub(s.used) <= IDLE_EPOCHS);
        if self.table.len() >= self.max {
            self.table.retain(|s| s.used == epoch);
        }
        if self.table.len() >= self.max {
            self.table.clear();
        }
        self.sweep_at = (self.table.len() * 2).clamp(SWEEP_MIN.min(self.max), self.max);
    }
}
