//! Samples on their way to their series.
//!
//! They go in runs, so that nothing waits for memory: all lines of a run are parsed while the cache
//! fetches their places in the table; all are looked up while it fetches their cells; then they are
//! added. A run goes on from one datagram to the next of the same sender, and keeps of each sample
//! what its cell needs; where the series is not known, the line is read again.

use smallvec::SmallVec;

use super::{Arrival, Counts, Reader};
use crate::parse;
use crate::rules::Outcome;
use crate::sample::{Dialect, Kind, Message, Reading, Sample, Values};
use crate::shard::{Handle, Locked, Stale};
use crate::spellings::{Print, Series};
use crate::sys;
use crate::telemetry::senders::Drop;
use crate::value::{Cell, WEIGHT_MAX};

/// Samples of a run: enough to hide the memory's latency, few enough to stay in the cache.
const RUN: usize = 64;

/// A sample on its way to its series: what is needed if that is known, as it nearly always is. For
/// the rest its line is read again.
struct Pending<'a> {
    reading: Reading<'a>,
    kind: Kind,
    /// Which message of its line it is, counted from 0.
    place: u32,
    /// Empty once it waits for the tags of its sender.
    line: &'a [u8],
    print: Print,
    /// Known after the look-up.
    series: Series,
    /// Epoch in which the series was last used.
    used: u32,
}

impl<'a> Pending<'a> {
    /// Reads its line again. A line that is empty has none.
    #[cold]
    fn sample(&self, options: parse::Options) -> Option<Sample<'a>> {
        let (mut place, mut found) = (0, None);
        parse::messages(self.line, options, |message| {
            if let (Ok(Message::Metric(sample)), true) = (message, place == self.place) {
                found = Some(sample);
            }
            place += 1;
        });
        found
    }
}

/// Samples of one sender that go to their series together, whatever datagrams they came in.
pub(super) struct Run<'a> {
    pub(super) arrival: Arrival<'a>,
    samples: SmallVec<[Pending<'a>; RUN]>,
}

impl<'a> Run<'a> {
    pub(super) fn new(arrival: Arrival<'a>) -> Self {
        Self { arrival, samples: SmallVec::new() }
    }
}

/// Samples that did not simply go to a series of their own.
#[derive(Default)]
struct Odd {
    overflow: u64,
    blocked: u64,
    rate_out_of_range: u64,
}

impl Odd {
    fn note(&mut self, series: &Series, kind: Kind, reading: &Reading<'_>) {
        self.overflow += u64::from(series.overflow);
        self.blocked += u64::from(series.handle.is_none());
        self.rate_out_of_range += u64::from(reading.rate != 1.0 && out_of_range(kind, reading));
    }
}

/// Which samples of a run go to one shard, by the kind of their series: a bit for each place.
type Marks = [u64; Kind::ALL.len()];

/// What a reader notes for each shard.
#[derive(Clone, Default)]
pub(super) struct Share {
    /// All clear between two runs.
    marks: Marks,
    /// The address of the cells when the reader last had the shard, for fetching ahead alone.
    cells: usize,
}

const _: () = assert!(RUN <= u64::BITS as usize);

impl Reader {
    /// Puts a sample into the run, which is taken to the series when it is full.
    #[inline(always)]
    pub(super) fn sample<'a>(
        &mut self,
        sample: &Sample<'a>,
        line: &'a [u8],
        place: u32,
        run: &mut Run<'a>,
        counts: &mut Counts,
    ) {
        counts.samples += 1;
        // What has no value is no more.
        if !self.is_finite(sample) {
            return;
        }
        let print = self.spellings.print(sample, self.options.dialect, run.arrival.sent);
        self.spellings.prefetch(print);
        let (reading, kind, series) = (sample.reading(), sample.kind, Series::default());
        run.samples.push(Pending { reading, kind, place, line, print, series, used: 0 });
        if run.samples.len() == RUN {
            self.take(run);
        }
    }

    fn is_finite(&mut self, sample: &Sample<'_>) -> bool {
        let finite = match sample.values {
            Values::One(value) | Values::Delta(value) => value.is_finite(),
            // Each on its own, later.
            Values::Packed(_) | Values::Member(_) => true,
        };
        if !finite {
            self.accounts.tally.drop(Drop::NonFinite, 1);
            self.shared.telemetry.non_finite.add(1);
        }
        finite
    }

    /// Takes the samples of a run to their series.
    pub(super) fn take(&mut self, run: &mut Run<'_>) {
        let Run { arrival, samples } = run;
        if samples.is_empty() {
            return;
        }
        self.look_up(samples, *arrival);
        self.apply(samples, *arrival);
        let sample = |place: usize| samples[place].sample(self.options);
        self.probe.pick(samples.len(), sample, &self.shared.telemetry.tap, arrival.now);
        samples.clear();
    }

    /// Takes a sample that no line says to its series.
    pub(super) fn take_one(&mut self, sample: &Sample<'_>, arrival: Arrival<'_>) {
        if !self.is_finite(sample) {
            return;
        }
        let epoch = arrival.window.epoch();
        let print = self.spellings.print(sample, self.options.dialect, arrival.sent);
        let known = self.spellings.find(print, epoch, arrival.window);
        let learn = || self.learn(print, sample, b"", arrival).map(|series| (series, epoch));
        let Some((series, used)) = known.or_else(learn) else { return };
        let mut odd = Odd::default();
        odd.note(&series, sample.kind, &sample.reading());
        self.tell(&odd);
        for (handle, kind) in series.handles(sample.kind) {
            if self.add(handle, used, kind, &sample.reading(), arrival).is_err() {
                self.add_again(print, sample, b"", kind, arrival);
            }
        }
        self.probe.pick(1, |_| Some(*sample), &self.shared.telemetry.tap, arrival.now);
    }

    /// Finds the series of each sample, and marks it for them; those that have to wait get none.
    fn look_up(&mut self, run: &mut [Pending<'_>], arrival: Arrival<'_>) {
        let epoch = arrival.window.epoch();
        let mut odd = Odd::default();
        let mut others = 0;
        for (i, pending) in run.iter_mut().enumerate() {
            let Some((handle, used)) = self.spellings.at_home(pending.print, epoch) else {
                others |= 1 << i;
                continue;
            };
            (pending.series.handle, pending.used) = (Some(handle), used);
            self.mark(i, handle, pending.kind);
            odd.note(&pending.series, pending.kind, &pending.reading);
        }
        // What has to be looked for has been fetched by now.
        for i in places(others) {
            let pending = &mut run[i];
            let known = self.spellings.find(pending.print, epoch, arrival.window);
            let learn = || Some((self.learn_pending(pending, arrival)?, epoch));
            let Some((series, used)) = known.or_else(learn) else {
                pending.line = b"";
                continue;
            };
            (pending.series, pending.used) = (series, used);
            for (handle, kind) in series.handles(pending.kind) {
                self.mark(i, handle, kind);
            }
            odd.note(&pending.series, pending.kind, &pending.reading);
        }
        self.tell(&odd);
    }

    /// Marks a sample for its series, whose cell is fetched into the cache meanwhile.
    #[inline(always)]
    fn mark(&mut self, i: usize, handle: Handle, kind: Kind) {
        let share = &mut self.shares[handle.shard()];
        share.marks[kind as usize] |= 1 << i;
        sys::prefetch_at(share.cells.wrapping_add(handle.row() * size_of::<Cell>()));
    }

    fn tell(&mut self, odd: &Odd) {
        self.accounts.tally.drop(Drop::Series, odd.overflow);
        self.shared.telemetry.overflow.add(odd.overflow);
        self.shared.telemetry.blocked.add(odd.blocked);
        self.shared.telemetry.rate_out_of_range.add(odd.rate_out_of_range);
    }

    #[cold]
    fn learn_pending(&mut self, pending: &Pending<'_>, arrival: Arrival<'_>) -> Option<Series> {
        let sample = pending.sample(self.options)?;
        self.learn(pending.print, &sample, pending.line, arrival)
    }

    /// Resolves a spelling, and remembers it if that lasts. `None` when the line waits.
    fn learn(
        &mut self,
        print: Print,
        sample: &Sample<'_>,
        line: &[u8],
        arrival: Arrival<'_>,
    ) -> Option<Series> {
        let epoch = arrival.window.epoch();
        let (series, lasts) = self.resolve(sample, line, arrival)?;
        if lasts {
            self.spellings.insert(print, series, epoch);
        }
        Some(series)
    }

    /// The slow way from a spelling to its series, taken once per spelling while it is in use, or
    /// once per epoch if the sample names its own origin; and whether to remember it, for it may
    /// soon be another. `None` when the line waits.
    fn resolve(
        &mut self,
        sample: &Sample<'_>,
        line: &[u8],
        arrival: Arrival<'_>,
    ) -> Option<(Series, bool)> {
        let dialect = self.options.dialect;
        let (mut draft, hints, invalid_utf8) = match self.shared.rules.context(sample, dialect) {
            Outcome::Blocked => return Some((Series::default(), true)),
            Outcome::Keep { series, origin, invalid_utf8 } => (series, origin, invalid_utf8),
        };
        let found = self.origin_tags(sample.origin, &hints, line, arrival)?;
        draft.tags.extend(found.tags);
        let context = draft.context().made_by(self.accounts.number());
        self.shared.telemetry.invalid_utf8.add(invalid_utf8.into());
        let copied = matches!(context.kind(), Kind::Histogram | Kind::Timer);
        let prefix = self.shared.distribution_prefix.as_ref().filter(|_| copied);
        let copy = prefix.map(|prefix| context.renamed(prefix, Kind::Distribution));
        let deltas = dialect == Dialect::Statsd && context.kind() == Kind::Gauge;
        let series = arrival.window.intern(context, deltas);
        let copy = copy.map(|context| arrival.window.intern(context, false));
        let series = Series {
            handle: Some(series.handle),
            copy: copy.map(|copy| copy.handle),
            overflow: series.overflow || copy.is_some_and(|copy| copy.overflow),
            named: found.named,
        };
        Some((series, !found.asked))
    }

    /// Adds a run of samples, shard by shard and, but for timestamped ones, kind by kind. The samples
    /// of a series stay in the order of their arrival, since a series has one shard and one kind.
    ///
    /// Which shard and which kind come next is chance, and a processor that guesses wrongly loses
    /// the time of some fifty instructions: hence marks, which are made and followed without a
    /// question, and the kinds one after the other.
    fn apply(&mut self, run: &[Pending<'_>], arrival: Arrival<'_>) {
        let timed = run.iter().any(|pending| pending.reading.timestamp.is_some());
        let mut again = SmallVec::<[(usize, Kind); 4]>::new();
        // A shard that another reader holds comes last: by then it may be free.
        for patient in [false, true] {
            for (number, share) in self.shares.iter_mut().enumerate() {
                if share.marks == Marks::default() {
                    continue;
                }
                let window = arrival.window;
                let locked =
                    if patient { Some(window.lock(number)) } else { window.try_lock(number) };
                let Some(mut shard) = locked else { continue };
                let marks = std::mem::take(&mut share.marks);
                share.cells = shard.cells().as_ptr().addr();
                let mut stale = false;
                let mut add = |shard: &mut Locked<'_>, i: usize, handle, kind| {
                    let pending = &run[i];
                    // Behind a sample that has to wait the others wait too: they may be of its
                    // series.
                    stale =
                        stale || shard.add(handle, pending.used, kind, &pending.reading).is_err();
                    if stale {
                        again.push((i, kind));
                    }
                };
                // What lies behind a cell, and then what lies behind that, is fetched while other
                // samples are added.
                let (flat, boxed) = (&Kind::FLAT, &Kind::BOXED);
                each(boxed, &marks, run, |_, handle, _| shard.prefetch(handle));
                if timed {
                    // Their limit is one for all kinds: who comes first finds room.
                    in_order(&marks, run, |i, handle, kind| add(&mut shard, i, handle, kind));
                } else {
                    each(flat, &marks, run, |i, handle, kind| add(&mut shard, i, handle, kind));
                    each(boxed, &marks, run, |i, handle, _| {
                        shard.prefetch_place(handle, &run[i].reading);
                    });
                    each(boxed, &marks, run, |i, handle, kind| add(&mut shard, i, handle, kind));
                }
                if let Some(journal) = &mut self.journal {
                    // In a loop of its own: that of the additions is short, so that the processor
                    // is ahead with the next ones while one waits for memory.
                    each(&Kind::ALL, &marks, run, |i, handle, kind| {
                        if again.is_empty() || !again.contains(&(i, kind)) {
                            journal.sample(handle, kind, &shard, &run[i].reading);
                        }
                    });
                }
                self.accounts.tally.drop(Drop::Timed, shard.timed_dropped);
                self.accounts.tally.drop(Drop::NonFinite, shard.non_finite);
            }
        }
        for (i, kind) in again {
            if let Some(sample) = run[i].sample(self.options) {
                self.add_again(run[i].print, &sample, run[i].line, kind, arrival);
            }
        }
    }

    /// Adds to one series what one sample brings.
    fn add(
        &mut self,
        handle: Handle,
        used: u32,
        kind: Kind,
        reading: &Reading<'_>,
        arrival: Arrival<'_>,
    ) -> Result<(), Stale> {
        let mut shard = arrival.window.lock(handle.shard());
        shard.add(handle, used, kind, reading)?;
        if let Some(journal) = &mut self.journal {
            journal.sample(handle, kind, &shard, reading);
        }
        self.accounts.tally.drop(Drop::Timed, shard.timed_dropped);
        self.accounts.tally.drop(Drop::NonFinite, shard.non_finite);
        Ok(())
    }

    /// The series of this kind expired between its look-up and its shard's lock, while this thread
    /// was held up for two flushes: looks it up anew, as often as that happens.
    fn add_again(
        &mut self,
        print: Print,
        sample: &Sample<'_>,
        line: &[u8],
        kind: Kind,
        arrival: Arrival<'_>,
    ) {
        loop {
            let epoch = arrival.window.epoch();
            let Some(series) = self.learn(print, sample, line, arrival) else { return };
            let Some(handle) = series.handle_of(sample.kind, kind) else { return };
            if self.add(handle, epoch, kind, &sample.reading(), arrival).is_ok() {
                return;
            }
        }
    }
}

/// Names the samples of a run that are marked, each with its place there and with handle and kind of
/// its series.
fn each(
    kinds: &[Kind],
    marks: &Marks,
    run: &[Pending<'_>],
    mut each: impl FnMut(usize, Handle, Kind),
) {
    for &kind in kinds {
        for i in places(marks[kind as usize]) {
            if let Some(handle) = run[i].series.handle_of(run[i].kind, kind) {
                each(i, handle, kind);
            }
        }
    }
}

/// The same in the order of arrival.
fn in_order(marks: &Marks, run: &[Pending<'_>], mut each: impl FnMut(usize, Handle, Kind)) {
    for i in places(marks.iter().fold(0, |all, marked| all | marked)) {
        for (handle, kind) in run[i].series.handles(run[i].kind) {
            if marks[kind as usize] & 1 << i != 0 {
                each(i, handle, kind);
            }
        }
    }
}

/// The places that are marked.
fn places(mut left: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (left != 0).then(|| left.trailing_zeros() as usize);
        left &= left.wrapping_sub(1);
        place
    })
}

/// Whether the sample rate is not in (0, 1], or so small that weights are cut.
fn out_of_range(kind: Kind, reading: &Reading<'_>) -> bool {
    let cut = matches!(kind, Kind::Histogram | Kind::Timer | Kind::Distribution);
    reading.weight().is_none_or(|weight| cut && weight > WEIGHT_MAX)
}
