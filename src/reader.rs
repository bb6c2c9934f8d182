//! What a reader does with a datagram: lines, samples, series.
//!
//! For a known series nothing is copied or allocated here: the sample is a handful of slices of the
//! datagram, and its bytes as sent (the *spelling*) say in the reader's own table where the series
//! is kept. Only a new spelling is mapped, tagged and looked up by its canonical
//! [`Context`](crate::context::Context).
//!
//! Samples go to their series in runs: see `run.rs`.

mod accounts;
mod held;
mod run;

use std::sync::Arc;

use smallvec::SmallVec;

use self::accounts::Accounts;
use self::held::{Held, Item, What};
use self::run::{Run, Share};
use crate::journal::{self, Journal, Load};
use crate::origin::{Claims, Found, Key, Origin, Origins};
use crate::parse;
use crate::rules::{OriginHints, Rules, sorted};
use crate::sample::{CheckLine, Dialect, EventLine, Message, OriginFields, Reject};
use crate::shard::{Shards, Window};
use crate::spellings::Spellings;
use crate::stream::{FrameError, Framer};
use crate::sys::{BATCH, Datagram, Receiver, Sender, Senders};
use crate::telemetry::senders::{Account, Drop};
use crate::telemetry::tap::Probe;
use crate::telemetry::{Listener, Telemetry, excerpt};
use crate::time::Time;

/// Datagrams that are taken in before a rotation may come between.
const WINDOW: usize = BATCH;

/// What all readers share.
#[derive(Clone)]
pub struct Shared {
    pub rules: Arc<Rules>,
    pub shards: Arc<Shards>,
    pub origins: Arc<Origins>,
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
    /// What waits for the tags of its sender.
    held: Held,
    accounts: Accounts,
    /// The time of what is being taken in is up: it waits for nothing more.
    late: bool,
    probe: Probe,
    /// For each shard.
    shares: Box<[Share]>,
    journal: Option<journal::Writer>,
    /// Number of the batch that is being taken in, by its receiver, or 0.
    batch: u64,
}

/// Of what is being taken in: what it goes into, who sent it and the tags that this brings, and when
/// it arrived.
#[derive(Clone, Copy)]
struct Arrival<'a> {
    window: &'a Window<'a>,
    sender: Sender,
    sent: Origin,
    now: Time,
}

/// What becomes of something whose sender is not known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Waits,
    /// Goes without tags; `asked` tells that there will soon be an answer.
    Goes {
        asked: bool,
    },
}

/// What stood in a datagram.
#[derive(Default)]
struct Counts {
    lines: u64,
    samples: u64,
    events: u64,
    checks: u64,
    fields_ignored: u64,
}

impl Reader {
    pub fn new(
        shared: Shared,
        listener: Arc<Listener>,
        options: parse::Options,
        eol_required: bool,
    ) -> Self {
        let spellings = Spellings::new(shared.spellings_max);
        let held = Held::new(0);
        let accounts = Accounts::new(&listener.name);
        let name = listener.name.clone();
        let source = journal::Source { name, dialect: options.dialect, eol_required };
        let shards = shared.shards.len();
        let journal = shared.journal.as_ref().map(|journal| journal.writer(source, shards));
        let (late, probe) = (false, Probe::default());
        let shares = vec![Share::default(); shared.shards.len()].into();
        Self {
            shared,
            listener,
            options,
            eol_required,
            spellings,
            held,
            accounts,
            late,
            probe,
            shares,
            journal,
            batch: 0,
        }
    }

    /// Lets samples of new senders wait for their tags, if the settings say so. Whoever wants that
    /// has to call [`Reader::release`] often.
    pub fn patient(mut self) -> Self {
        let config = self.shared.origins.config();
        self.held = Held::new(if config.wait { config.wait_bytes_max } else { 0 });
        self
    }

    pub fn listener(&self) -> &Arc<Listener> {
        &self.listener
    }

    /// Takes in one datagram, frame or run of text lines of an unknown sender that arrived at `now`.
    /// `truncated` says that its end is missing.
    pub fn datagram(&mut self, bytes: &[u8], truncated: bool, now: Time) {
        self.datagrams(&[Datagram { bytes, truncated, sender: Sender::Unknown }], now);
    }

    /// Takes in what arrived at `now`, or lets it wait until its sender is known.
    pub fn datagrams(&mut self, datagrams: &[Datagram<'_>], now: Time) {
        self.batch(datagrams, 0, now, || ());
    }

    /// What is to receive datagrams for this reader: they are the journal's, if there is one, from
    /// the moment that the kernel gives them away.
    pub fn receiver(&self, buffer_size: usize, senders: Senders) -> Receiver {
        let landing = self.journal.as_ref().and_then(|journal| journal.landing(buffer_size));
        landing.unwrap_or_else(|| Receiver::new(buffer_size)).asking(senders)
    }

    /// Takes in what a receiver got at `now`, as the batch of this number, and tells when it is in
    /// the journal. Until then nothing of it can be flushed.
    pub fn batch(
        &mut self,
        datagrams: &[Datagram<'_>],
        number: u64,
        now: Time,
        is_safe: impl FnOnce(),
    ) {
        let shards = Arc::clone(&self.shared.shards);
        let mut is_safe = Some(is_safe);
        // A batch of a receiver is one record, so that a replay finds all of it there or none.
        let most = if number == 0 { WINDOW } else { datagrams.len() };
        let mut rest = datagrams;
        loop {
            let (some, later) = rest.split_at(most.min(rest.len()));
            rest = later;
            let window = shards.window(now);
            self.batch = number;
            self.begin_record(&window, now);
            self.receive(some, &window, now);
            self.commit_record(some.iter().map(|datagram| datagram.bytes), now);
            if rest.is_empty() {
                if let Some(is_safe) = is_safe.take() {
                    is_safe();
                }
                break;
            }
        }
        self.accounts.settle(now);
    }

    /// Takes in what an earlier process had left, and notes in the journal that it waits no more.
    pub fn take_left(&mut self, datagrams: &[Datagram<'_>], batch: u64, ids: &[u64], now: Time) {
        let shards = Arc::clone(&self.shared.shards);
        let window = shards.window(now);
        self.batch = batch;
        self.begin_record(&window, now);
        self.receive(datagrams, &window, now);
        if let Some(journal) = &mut self.journal {
            ids.iter().for_each(|id| journal.taken(*id));
        }
        self.commit_record(datagrams.iter().map(|datagram| datagram.bytes), now);
        self.accounts.settle(now);
    }

    /// What is to read from streams for this reader, if there is a journal: see [`Self::receiver`].
    pub fn stream_receiver(&self, buffer_size: usize) -> Option<Receiver> {
        self.journal.as_ref().and_then(|journal| journal.landing(buffer_size))
    }

    fn begin_record(&mut self, window: &Window<'_>, now: Time) {
        if let Some(journal) = &mut self.journal {
            journal.begin(window.generation(), now);
        }
    }

    fn commit_record<'a>(&mut self, datagrams: impl Iterator<Item = &'a [u8]>, now: Time) {
        let batch = std::mem::take(&mut self.batch);
        let Some(journal) = &mut self.journal else { return };
        let mut load = Load::default();
        for datagram in datagrams {
            load.datagrams += 1;
            load.bytes += datagram.len() as u64;
        }
        journal.commit(batch, load, now);
    }

    fn receive(&mut self, datagrams: &[Datagram<'_>], window: &Window<'_>, now: Time) {
        let arrival = |sender, sent| Arrival { window, sender, sent, now };
        let mut run = Run::new(arrival(Sender::Unknown, Origin::NONE));
        for &Datagram { bytes, truncated, sender } in datagrams {
            if self.shared.telemetry.recorder.is_on() {
                self.shared.telemetry.recorder.record(bytes, sender.pid(), now);
            }
            let waits = |key: &Key| self.held.waits_for(key);
            let sent = match self.shared.origins.of(sender, now, waits) {
                Ok(origin) => origin,
                Err(key) => {
                    let (what, nobody) = (What::Datagram { truncated }, Origin::NONE);
                    if self.hold(&[key], bytes, what, arrival(sender, nobody)) == Hold::Waits {
                        continue;
                    }
                    nobody
                }
            };
            if (sender, sent) != (run.arrival.sender, run.arrival.sent) {
                // What the last one sent is for its account.
                self.take(&mut run);
                run.arrival = arrival(sender, sent);
            }
            self.take_in(bytes, truncated, &mut run);
        }
        self.take(&mut run);
    }

    /// What follows is of this sender, for its account.
    fn open_account(&mut self, arrival: Arrival<'_>) {
        let Arrival { sender, sent, now, .. } = arrival;
        let Shared { telemetry, origins, .. } = &self.shared;
        self.accounts.open((sender, sent), now, &telemetry.senders, origins);
    }

    fn take_in<'a>(&mut self, bytes: &'a [u8], truncated: bool, run: &mut Run<'a>) {
        self.open_account(run.arrival);
        let tally = &mut self.accounts.tally;
        tally.datagrams += 1;
        tally.bytes += bytes.len() as u64;
        tally.truncated += u64::from(truncated);
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
        let counts = self.lines(text, run);
        self.count(&counts);
        if let Some((reason, line)) = refused {
            self.refuse_line(reason, line, run.arrival.now);
        }
    }

    /// Takes in the lines of a text. The last samples are still in the run then.
    fn lines<'a>(&mut self, text: &'a [u8], run: &mut Run<'a>) -> Counts {
        let mut counts = Counts::default();
        let now = run.arrival.now;
        for line in parse::lines(text) {
            // Only a body posted by HTTP can hold such a line.
            if line.len() > self.shared.line_max {
                counts.lines += 1;
                self.reject(Reject::Truncated, line, now);
                continue;
            }
            if self.options.dialect != Dialect::Datadog || !parse::is_metric(line) {
                self.messages_of(line, run, &mut counts);
                continue;
            }
            // The usual way through `messages_of`, in line.
            counts.lines += 1;
            match &parse::metric(line, self.options) {
                Ok(sample) => self.sample(sample, line, 0, run, &mut counts),
                Err(reason) => self.reject(*reason, line, now),
            }
        }
        counts
    }

    /// Takes in whatever stands in a line.
    fn messages_of<'a>(&mut self, line: &'a [u8], run: &mut Run<'a>, counts: &mut Counts) {
        let (mut place, arrival) = (0, run.arrival);
        parse::messages(line, self.options, |message| {
            match message {
                Ok(Message::Metric(sample)) => {
                    self.sample(&sample, line, place, run, counts);
                }
                Ok(Message::Event(event)) => self.event(&event, line, arrival, counts),
                Ok(Message::Check(check)) => self.check(&check, line, arrival, counts),
                Err(reason) => self.reject(reason, line, arrival.now),
            }
            place += 1;
        });
        // A line without any outcome shows as a difference in the ledger.
        counts.lines += u64::from(place.max(1));
    }

    /// Takes in what collectors made, each message as a line.
    pub fn messages<'a>(&mut self, messages: impl Iterator<Item = Message<'a>>, now: Time) {
        let shards = Arc::clone(&self.shared.shards);
        let window = &shards.window(now);
        let arrival = Arrival { window, sender: Sender::Unknown, sent: Origin::NONE, now };
        self.open_account(arrival);
        let mut counts = Counts::default();
        self.begin_record(arrival.window, now);
        for message in messages {
            counts.lines += 1;
            match message {
                Message::Metric(sample) => {
                    counts.samples += 1;
                    self.take_one(&sample, arrival);
                }
                Message::Event(event) => self.event(&event, b"", arrival, &mut counts),
                Message::Check(check) => self.check(&check, b"", arrival, &mut counts),
            }
        }
        self.count(&counts);
        self.commit_record(std::iter::empty(), now);
        self.accounts.settle(now);
    }

    fn count(&mut self, counts: &Counts) {
        self.accounts.tally.lines += counts.lines;
        self.listener.lines.add(counts.lines);
        self.listener.samples.add(counts.samples);
        self.listener.events.add(counts.events);
        self.listener.checks.add(counts.checks);
        self.shared.telemetry.fields_ignored.add(counts.fields_ignored);
    }

    fn event(
        &mut self,
        line: &EventLine<'_>,
        text: &[u8],
        arrival: Arrival<'_>,
        counts: &mut Counts,
    ) {
        counts.events += 1;
        counts.fields_ignored += u64::from(line.ignored);
        let (mut event, hints) = self.shared.rules.event(line, arrival.now.seconds());
        let Some(found) = self.origin_tags(line.origin, &hints, text, arrival) else { return };
        event.tags.extend(found.tags);
        event.tags = sorted(event.tags);
        if let Some(journal) = &mut self.journal {
            journal.event(&event);
        }
        let dropped = !arrival.window.event(event);
        self.accounts.tally.drop(Drop::Event, dropped.into());
    }

    fn check(
        &mut self,
        line: &CheckLine<'_>,
        text: &[u8],
        arrival: Arrival<'_>,
        counts: &mut Counts,
    ) {
        counts.checks += 1;
        counts.fields_ignored += u64::from(line.ignored);
        let (mut check, hints) = self.shared.rules.check(line, arrival.now.seconds());
        let Some(found) = self.origin_tags(line.origin, &hints, text, arrival) else { return };
        check.tags.extend(found.tags);
        check.tags = sorted(check.tags);
        if let Some(journal) = &mut self.journal {
            journal.check(&check);
        }
        let dropped = !arrival.window.check(check);
        self.accounts.tally.drop(Drop::Event, dropped.into());
    }

    /// The tags that a line gets by its origin, or `None` when it waits for them.
    fn origin_tags(
        &mut self,
        fields: OriginFields<'_>,
        hints: &OriginHints,
        line: &[u8],
        arrival: Arrival<'_>,
    ) -> Option<Found> {
        let Arrival { sent, now, .. } = arrival;
        let claims = Claims { sent, fields, hints };
        let mut found = self.shared.origins.tags(&claims, now, |key| self.held.waits_for(key));
        if !found.unknown.is_empty() {
            match self.hold(&found.unknown, line, What::Line { sent }, arrival) {
                Hold::Waits => return None,
                Hold::Goes { asked } => found.asked = asked,
            }
        }
        Some(found)
    }

    /// Has the senders behind keys found out, and lets something wait for it, if it may.
    fn hold(&mut self, keys: &[Key], bytes: &[u8], what: What, arrival: Arrival<'_>) -> Hold {
        let (now, open) = (arrival.now, arrival.window.generation());
        let mut asked = None;
        for key in keys {
            // It is answered in the order of the questions, as a rule.
            asked = self.shared.origins.ask(key, now).then_some(key).or(asked);
        }
        // A line of the original statsd may be several messages, of which some have gone ahead.
        let parts = self.options.dialect == Dialect::Statsd && matches!(what, What::Line { .. });
        match asked {
            Some(key) if !self.late && !parts && self.held.may_wait(bytes.len(), open, now) => {
                let key = key.clone();
                let (truncated, line) = match what {
                    What::Datagram { truncated } => (truncated, false),
                    What::Line { .. } => (false, true),
                };
                let journal = self.journal.as_mut();
                let id = journal.map(|j| j.wait(bytes, (truncated, line), self.batch, now));
                let (bytes, end, sender) = (bytes.into(), open.end, arrival.sender);
                self.held.push(Item { bytes, what, sender, key, arrived: now, end, id });
                Hold::Waits
            }
            _ => {
                self.shared.telemetry.origin_untagged.add(1);
                Hold::Goes { asked: asked.is_some() }
            }
        }
    }

    /// Whether anything waits to be released.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes in what has waited and is known by now, or whose time is up.
    pub fn release(&mut self, now: Time) {
        self.accounts.tick(now);
        if self.held.is_empty() {
            return;
        }
        let origins = Arc::clone(&self.shared.origins);
        let known = |key: &Key| origins.origin(key, now).is_some();
        for (item, in_time) in self.held.take(now, origins.news(), known) {
            self.take_held(&item, !in_time, now);
        }
        self.accounts.settle(now);
    }

    /// Takes in all that waits, with what is known by now.
    pub fn release_all(&mut self, now: Time) {
        for item in self.held.take_all() {
            self.take_held(&item, true, now);
        }
        self.accounts.settle(now);
    }

    fn take_held(&mut self, item: &Item, late: bool, now: Time) {
        let shards = Arc::clone(&self.shared.shards);
        let window = shards.window(item.arrived);
        self.begin_record(&window, now);
        self.late = late;
        let known = self.shared.origins.origin(&item.key, now);
        let sent = match item.what {
            What::Datagram { .. } => known.unwrap_or(Origin::NONE),
            What::Line { sent } => sent,
        };
        let (sender, arrived) = (item.sender, item.arrived);
        let mut run = Run::new(Arrival { window: &window, sender, sent, now: arrived });
        match (item.what, known.is_some()) {
            (What::Datagram { truncated }, known) => {
                self.shared.telemetry.origin_waited.add(known.into());
                self.shared.telemetry.origin_untagged.add((!known).into());
                self.take_in(&item.bytes, truncated, &mut run);
            }
            (What::Line { .. }, known) => {
                // One that goes without counts itself.
                self.shared.telemetry.origin_waited.add(known.into());
                self.open_account(run.arrival);
                self.lines(&item.bytes, &mut run);
            }
        }
        self.take(&mut run);
        self.late = false;
        if let (Some(journal), Some(id)) = (&mut self.journal, item.id) {
            journal.taken(id);
        }
        self.commit_record([&*item.bytes].into_iter(), item.arrived);
    }

    /// Takes in every payload that a stream has complete, as the batch of this number, and tells when
    /// they are in the journal. Returns false when the stream cannot be read any further.
    pub fn payloads(
        &mut self,
        framer: &mut Framer,
        sender: Sender,
        number: u64,
        now: Time,
        is_safe: impl FnOnce(),
    ) -> bool {
        let mut complete = SmallVec::<[Datagram<'_>; WINDOW]>::new();
        let mut readable = true;
        for payload in framer.payloads() {
            match payload {
                Ok(bytes) => complete.push(Datagram { bytes, truncated: false, sender }),
                Err(FrameError::LineTooLong) => {
                    self.listener.truncated.add(1);
                    let said = b"(longer than intake.buffer_size)";
                    self.refuse(Reject::Truncated, said, sender, now);
                    self.accounts.tally.truncated += 1;
                }
                Err(error @ (FrameError::FrameTooLong(_) | FrameError::Unfinished(_))) => {
                    self.listener.connections_refused.add(1);
                    let said = error.to_string();
                    self.refuse(Reject::Truncated, said.as_bytes(), sender, now);
                    readable = false;
                }
            }
        }
        self.batch(&complete, number, now, is_safe);
        readable
    }

    /// Counts a line of this sender that never came to be parsed.
    pub fn refuse(&mut self, reason: Reject, line: &[u8], sender: Sender, now: Time) {
        let sent = self.shared.origins.of(sender, now, |_| false).unwrap_or(Origin::NONE);
        let Shared { telemetry, origins, .. } = &self.shared;
        self.accounts.open((sender, sent), now, &telemetry.senders, origins);
        self.refuse_line(reason, line, now);
        self.accounts.settle(now);
    }

    fn refuse_line(&mut self, reason: Reject, line: &[u8], now: Time) {
        self.accounts.tally.lines += 1;
        self.listener.lines.add(1);
        self.reject(reason, line, now);
    }

    fn reject(&mut self, reason: Reject, line: &[u8], now: Time) {
        self.accounts.tally.reject(reason);
        let sender = || self.accounts.account().map_or_else(String::new, Account::label);
        self.listener.rejects.add(reason, line, now, sender);
        if self.shared.log_rejects && self.shared.telemetry.may_log(reason, now) {
            tracing::warn!(
                listener = self.listener.name,
                reason = reason.word(),
                sender = sender(),
                so_far = self.listener.rejects.of(reason).get(),
                "refused the line \"{}\"",
                excerpt(line)
            );
        }
    }
}
