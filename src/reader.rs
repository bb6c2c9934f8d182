//! What a reader does with a datagram: lines, samples, series.
//!
//! For a known series nothing is copied or allocated here: the sample is a handful of slices of the
//! datagram, and its bytes as sent (the *spelling*) say in the reader's own table where the series
//! is kept. Only a new spelling is mapped, tagged and looked up by its canonical
//! [`Context`](crate::context::Context).
//!
//! Samples go in runs, so that nothing waits for memory: all lines of a run are parsed while the
//! cache fetches their places in the table; all are looked up while it fetches their cells; then
//! they are added.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::parse;
use crate::rules::{Outcome, Rules};
use crate::sample::{Dialect, Kind, Message, Reject, Sample, Values};
use crate::shard::Shards;
use crate::spellings::{Print, Series, Spellings};
use crate::stream::{FrameError, Framer};
use crate::telemetry::{Listener, Telemetry};
use crate::time::Time;
use crate::value::WEIGHT_MAX;

/// Samples of a run: enough to hide the memory's latency, few enough to stay in the cache.
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

/// A sample on its way to its series.
struct Pending<'a> {
    sample: Sample<'a>,
    print: Print,
    /// Known after the look-up.
    series: Series,
    /// Epoch in which the series was last used.
    used: u32,
}

type Run<'a> = SmallVec<[Pending<'a>; RUN]>;

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
        let mut run = Run::new();
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
                    self.queue(sample, &mut run);
                    if run.len() == RUN {
                        self.take(&mut run, now);
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
        self.take(&mut run, now);
        self.listener.samples.add(samples);
        self.listener.events.add(events);
        self.listener.checks.add(checks);
        if let Some((reason, line)) = refused {
            self.reject(reason, line, now);
        }
    }

    /// Takes in what collectors made; nothing of it was ever a line.
    pub fn messages<'a>(&mut self, messages: impl Iterator<Item = Message<'a>>, now: Time) {
        let mut run = Run::new();
        for message in messages {
            match message {
                Message::Metric(sample) => {
                    self.listener.samples.add(1);
                    self.queue(sample, &mut run);
                    if run.len() == RUN {
                        self.take(&mut run, now);
                    }
                }
                Message::Event(event) => {
                    self.listener.events.add(1);
                    self.shared.shards.event(self.shared.rules.event(&event, now.seconds()));
                }
                Message::Check(check) => {
                    self.listener.checks.add(1);
                    self.shared.shards.check(self.shared.rules.check(&check, now.seconds()));
                }
            }
        }
        self.take(&mut run, now);
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

    /// Puts a sample into the run, unless it has no value.
    fn queue<'a>(&self, sample: Sample<'a>, run: &mut Run<'a>) {
        if let Values::One(value) | Values::Delta(value) = sample.values
            && !value.is_finite()
        {
            return self.shared.telemetry.non_finite.add(1);
        }
        let print = self.spellings.print(&sample, self.options.dialect);
        self.spellings.prefetch(print);
        run.push(Pending { sample, print, series: Series::default(), used: 0 });
    }

    /// Takes the samples of a run to their series.
    fn take(&mut self, run: &mut Run<'_>, now: Time) {
        self.look_up(run, now);
        self.apply(run, now);
        run.clear();
    }

    fn look_up(&mut self, run: &mut Run<'_>, now: Time) {
        let epoch = self.shared.shards.epoch();
        let (mut overflow, mut blocked, mut rate_out_of_range) = (0, 0, 0);
        for pending in run {
            let Pending { sample, print, .. } = pending;
            let known = self.spellings.find(*print, epoch, &self.shared.shards, now);
            let (series, used) = known.unwrap_or_else(|| {
                let series = self.resolve(sample, now);
                self.spellings.insert(*print, series, epoch);
                (series, epoch)
            });
            overflow += u64::from(series.overflow);
            blocked += u64::from(series.handle.is_none());
            rate_out_of_range += u64::from(sample.rate != 1.0 && out_of_range(sample));
            (pending.series, pending.used) = (series, used);
        }
        self.shared.telemetry.overflow.add(overflow);
        self.shared.telemetry.blocked.add(blocked);
        self.shared.telemetry.rate_out_of_range.add(rate_out_of_range);
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
    fn apply(&mut self, run: &Run<'_>, now: Time) {
        let shards = Arc::clone(&self.shared.shards);
        let mut again = SmallVec::<[(usize, Kind); 4]>::new();
        for number in 0..shards.len() {
            let here = || {
                run.iter().enumerate().flat_map(move |(i, pending)| {
                    let handles = pending.series.handles(pending.sample.kind);
                    let here = handles.filter(move |(handle, _)| handle.shard() == number);
                    here.map(move |(handle, kind)| (i, pending, handle, kind))
                })
            };
            if here().next().is_none() {
                continue;
            }
            let mut shard = shards.lock(number, now);
            here().for_each(|(.., handle, _)| shard.prefetch(handle));
            let mut stale = false;
            for (i, pending, handle, kind) in here() {
                // Behind a sample that has to wait the others wait too: they may be of its series.
                stale = stale || shard.add(handle, pending.used, kind, &pending.sample).is_err();
                if stale {
                    again.push((i, kind));
                }
            }
        }
        for (i, kind) in again {
            self.add_again(&run[i], kind, now);
        }
    }

    /// The series of this kind expired between its look-up and its shard's lock, while this thread
    /// was held up for two flushes: looks it up anew, as often as that happens.
    fn add_again(&mut self, pending: &Pending<'_>, kind: Kind, now: Time) {
        let sample = &pending.sample;
        loop {
            let epoch = self.shared.shards.epoch();
            let series = self.resolve(sample, now);
            self.spellings.insert(pending.print, series, epoch);
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

/// Whether the sample rate is not in (0, 1], or so small that weights are cut.
fn out_of_range(sample: &Sample<'_>) -> bool {
    let cut = matches!(sample.kind, Kind::Histogram | Kind::Timer | Kind::Distribution);
    sample.weight().is_none_or(|weight| cut && weight > WEIGHT_MAX)
}
