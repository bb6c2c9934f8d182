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

use crate::journal::{self, Journal};
use crate::parse;
use crate::rules::{Outcome, Rules};
use crate::sample::{Dialect, Kind, Message, Reject, Sample, Values};
use crate::shard::{Handle, Shards, Window};
use crate::spellings::{Print, Series, Spellings};
use crate::stream::{FrameError, Framer};
use crate::sys::{BATCH, Datagram, Receiver};
use crate::telemetry::tap::Probe;
use crate::telemetry::{Listener, Telemetry, excerpt};
use crate::time::Time;
use crate::value::WEIGHT_MAX;

/// Samples of a run: enough to hide the memory's latency, few enough to stay in the cache.
const RUN: usize = 64;

/// Datagrams that are taken in before a rotation may come between.
const WINDOW: usize = BATCH;

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
    /// What is read outlives the process by it.
    pub journal: Option<Arc<Journal>>,
}

/// Turns what one listener received into values of series. One thread uses it at a time.
pub struct Reader {
    shared: Shared,
    listener: Arc<Listener>,
    options: parse::Options,
    eol_required: bool,
    spellings: Spellings,
    probe: Probe,
    journal: Option<journal::Writer>,
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
        let name = listener.name.clone();
        let source = journal::Source { name, dialect: options.dialect, eol_required };
        let journal = shared.journal.as_ref().map(|journal| journal.writer(source));
        let probe = Probe::default();
        Self { shared, listener, options, eol_required, spellings, probe, journal }
    }

    pub fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Takes in one datagram, frame or run of text lines that arrived at `now`. `truncated` says
    /// that its end is missing.
    pub fn datagram(&mut self, bytes: &[u8], truncated: bool, now: Time) {
        self.datagrams(&[Datagram { bytes, truncated }], now);
    }

    /// Takes in what arrived at `now`.
    pub fn datagrams(&mut self, datagrams: &[Datagram<'_>], now: Time) {
        self.batch(datagrams, 0, now);
    }

    /// What is to receive datagrams for this reader: they are the journal's, if there is one, from
    /// the moment that the kernel gives them away.
    pub fn receiver(&self, buffer_size: usize) -> Receiver {
        let landing = self.journal.as_ref().and_then(|journal| journal.landing(buffer_size));
        landing.unwrap_or_else(|| Receiver::new(buffer_size))
    }

    /// Takes in what a receiver got at `now`, as the batch of this number.
    pub fn batch(&mut self, datagrams: &[Datagram<'_>], number: u64, now: Time) {
        let shards = Arc::clone(&self.shared.shards);
        for some in datagrams.chunks(WINDOW) {
            let window = shards.window(now);
            if let Some(journal) = &mut self.journal {
                journal.append(some, number, window.generation(), now);
            }
            for datagram in some {
                self.take_in(datagram, &window, now);
            }
        }
    }

    fn take_in(&mut self, datagram: &Datagram<'_>, window: &Window<'_>, now: Time) {
        let Datagram { bytes, truncated } = *datagram;
        self.listener.datagrams.add(1);
        self.listener.bytes.add(bytes.len() as u64);
        self.listener.truncated.add(truncated.into());
        if self.shared.telemetry.recorder.is_on() {
            self.shared.telemetry.recorder.record(bytes, 0, now);
        }
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
        let (mut lines, mut samples, mut events, mut checks) = (0, 0, 0, 0);
        for line in parse::lines(text) {
            // Only a body posted by HTTP can hold such a line.
            if line.len() > self.shared.line_max {
                lines += 1;
                self.reject(Reject::Truncated, line, now);
                continue;
            }
            let (options, mut messages) = (self.options, 0);
            parse::messages(line, options, |message| {
                messages += 1;
                match message {
                    Ok(Message::Metric(sample)) => {
                        samples += 1;
                        self.queue(sample, &mut run);
                        if run.len() == RUN {
                            self.take(&mut run, window, now);
                        }
                    }
                    Ok(Message::Event(event)) => {
                        events += 1;
                        self.shared.telemetry.fields_ignored.add(event.ignored.into());
                        window.event(self.shared.rules.event(&event, now.seconds()));
                    }
                    Ok(Message::Check(check)) => {
                        checks += 1;
                        self.shared.telemetry.fields_ignored.add(check.ignored.into());
                        window.check(self.shared.rules.check(&check, now.seconds()));
                    }
                    Err(reason) => self.reject(reason, line, now),
                }
            });
            // A line without any outcome shows as a difference in the ledger.
            lines += u64::max(messages, 1);
        }
        self.take(&mut run, window, now);
        self.listener.lines.add(lines);
        self.listener.samples.add(samples);
        self.listener.events.add(events);
        self.listener.checks.add(checks);
        if let Some((reason, line)) = refused {
            self.refuse(reason, line, now);
        }
    }

    /// Takes in what collectors made, each message as a line. It is not in the journal: what was not
    /// sent is measured anew.
    pub fn messages<'a>(&mut self, messages: impl Iterator<Item = Message<'a>>, now: Time) {
        let shards = Arc::clone(&self.shared.shards);
        let window = shards.window(now);
        let mut run = Run::new();
        for message in messages {
            self.listener.lines.add(1);
            match message {
                Message::Metric(sample) => {
                    self.listener.samples.add(1);
                    self.queue(sample, &mut run);
                    if run.len() == RUN {
                        self.take(&mut run, &window, now);
                    }
                }
                Message::Event(event) => {
                    self.listener.events.add(1);
                    window.event(self.shared.rules.event(&event, now.seconds()));
                }
                Message::Check(check) => {
                    self.listener.checks.add(1);
                    window.check(self.shared.rules.check(&check, now.seconds()));
                }
            }
        }
        self.take(&mut run, &window, now);
    }

    /// Takes in every payload that a stream has complete. Returns false when the stream cannot be
    /// read any further.
    pub fn payloads(&mut self, framer: &mut Framer, now: Time) -> bool {
        let mut complete = SmallVec::<[Datagram<'_>; WINDOW]>::new();
        let mut readable = true;
        for payload in framer.payloads() {
            match payload {
                Ok(bytes) => complete.push(Datagram { bytes, truncated: false }),
                Err(FrameError::LineTooLong) => {
                    self.listener.truncated.add(1);
                    self.refuse(Reject::Truncated, b"(longer than intake.buffer_size)", now);
                }
                Err(error @ (FrameError::FrameTooLong(_) | FrameError::Unfinished(_))) => {
                    self.listener.connections_refused.add(1);
                    self.refuse(Reject::Truncated, error.to_string().as_bytes(), now);
                    readable = false;
                }
            }
        }
        self.datagrams(&complete, now);
        readable
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
    fn take(&mut self, run: &mut Run<'_>, window: &Window<'_>, now: Time) {
        self.look_up(run, window);
        self.apply(run, window);
        self.probe.pick(run.iter().map(|one| &one.sample), &self.shared.telemetry.tap, now);
        run.clear();
    }

    fn look_up(&mut self, run: &mut Run<'_>, window: &Window<'_>) {
        let epoch = window.epoch();
        let (mut overflow, mut blocked, mut rate_out_of_range) = (0, 0, 0);
        for pending in run {
            let Pending { sample, print, .. } = pending;
            let known = self.spellings.find(*print, epoch, window);
            let (series, used) = known.unwrap_or_else(|| {
                let series = self.resolve(sample, window);
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
    fn resolve(&self, sample: &Sample<'_>, window: &Window<'_>) -> Series {
        let Shared { rules, telemetry, .. } = &self.shared;
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
        let series = window.intern(context, deltas);
        let copy = copy.map(|context| window.intern(context, false));
        Series {
            handle: Some(series.handle),
            copy: copy.map(|copy| copy.handle),
            overflow: series.overflow || copy.is_some_and(|copy| copy.overflow),
        }
    }

    /// Adds a run of samples, shard by shard and within each in the order of arrival.
    fn apply(&mut self, run: &Run<'_>, window: &Window<'_>) {
        let mut again = SmallVec::<[(usize, Kind); 4]>::new();
        for number in 0..self.shared.shards.len() {
            let mut none = true;
            each_in(number, run, |_, _, _| none = false);
            if none {
                continue;
            }
            let mut shard = window.lock(number);
            each_in(number, run, |_, handle, _| shard.prefetch(handle));
            let mut stale = false;
            each_in(number, run, |i, handle, kind| {
                let pending = &run[i];
                // Behind a sample that has to wait the others wait too: they may be of its series.
                stale = stale || shard.add(handle, pending.used, kind, &pending.sample).is_err();
                if stale {
                    again.push((i, kind));
                }
            });
        }
        for (i, kind) in again {
            self.add_again(&run[i], kind, window);
        }
    }

    /// The series of this kind expired between its look-up and its shard's lock, while this thread
    /// was held up for two flushes: looks it up anew, as often as that happens.
    fn add_again(&mut self, pending: &Pending<'_>, kind: Kind, window: &Window<'_>) {
        let sample = &pending.sample;
        loop {
            let epoch = window.epoch();
            let series = self.resolve(sample, window);
            self.spellings.insert(pending.print, series, epoch);
            let Some((handle, _)) = series.handles(sample.kind).find(|(_, k)| *k == kind) else {
                return;
            };
            let mut shard = window.lock(handle.shard());
            if shard.add(handle, epoch, kind, sample).is_ok() {
                return;
            }
        }
    }

    /// Counts a line that never came to be parsed.
    pub fn refuse(&self, reason: Reject, line: &[u8], now: Time) {
        self.listener.lines.add(1);
        self.reject(reason, line, now);
    }

    fn reject(&self, reason: Reject, line: &[u8], now: Time) {
        self.listener.rejects.add(reason, line, now);
        if self.shared.log_rejects && self.shared.telemetry.may_log(reason, now) {
            tracing::warn!(
                listener = self.listener.name,
                reason = reason.word(),
                so_far = self.listener.rejects.of(reason).get(),
                "refused the line \"{}\"",
                excerpt(line)
            );
        }
    }
}

/// Names the samples of a run that go to one shard, each with its place there and the kind of its
/// series.
fn each_in(number: usize, run: &Run<'_>, mut each: impl FnMut(usize, Handle, Kind)) {
    for (i, Pending { series, sample, .. }) in run.iter().enumerate() {
        if let Some(handle) = series.handle.filter(|handle| handle.shard() == number) {
            each(i, handle, sample.kind);
        }
        if let Some(copy) = series.copy.filter(|copy| copy.shard() == number) {
            each(i, copy, Kind::Distribution);
        }
    }
}

/// Whether the sample rate is not in (0, 1], or so small that weights are cut.
fn out_of_range(sample: &Sample<'_>) -> bool {
    let cut = matches!(sample.kind, Kind::Histogram | Kind::Timer | Kind::Distribution);
    sample.weight().is_none_or(|weight| cut && weight > WEIGHT_MAX)
}
