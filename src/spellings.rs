//! A reader's memory of spellings: where the samples go whose bytes were seen before.
//!
//! A spelling is everything of a sample that decides which series it belongs to, as it was sent:
//! kind, name, tags in their order, and where it came from. It is known by 128 bits alone, made by
//! two hashes of 64 bits under keys drawn at random at the start, so that a client can neither guess
//! nor choose them. ARCHITECTURE.md says what the chance of a mistake is.
//!
//! The table is its own so that its slots can be fetched into the cache ahead of their use: a
//! reader asks for the slots of a whole run of lines before it looks at the first. They stand in
//! pairs, each a cache line of which both are looked at at once.

use ahash::RandomState;
use hashbrown::HashMap;

use crate::hash::{Hash, Keys};
use crate::origin::Origin;
use crate::sample::{Dialect, Kind, OriginFields, Sample};
use crate::shard::{Handle, Window};
use crate::sys;

/// 128 keyed bits that stand for a spelling.
pub type Print = [u64; 2];

/// Where the samples of one spelling go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// `None` when the name is blocked.
    pub handle: Option<Handle>,
    /// The copy of a histogram as a distribution.
    pub copy: Option<Handle>,
    /// There was no room for one of them, so it is the overflow series: for this epoch only, since
    /// there may be room later.
    pub overflow: bool,
    /// The sample names its own origin, whose tags may be others later: for this epoch only.
    pub named: bool,
}

impl Series {
    /// The row of this kind, for samples of kind `sent`.
    pub fn handle_of(&self, sent: Kind, kind: Kind) -> Option<Handle> {
        if kind == sent { self.handle } else { self.copy }
    }

    /// The rows to add to, each with the kind of its series.
    pub fn handles(self, kind: Kind) -> impl Iterator<Item = (Handle, Kind)> {
        let handle = self.handle.map(|handle| (handle, kind));
        handle.into_iter().chain(self.copy.map(|handle| (handle, Kind::Distribution)))
    }
}

/// Epochs after which an idle spelling is forgotten.
const IDLE_EPOCHS: u32 = 32;

/// Pairs of the smallest table.
const PAIRS_MIN: usize = 512;

/// It may forget at any time: a spelling is then resolved again.
pub struct Spellings {
    /// Open addressing by the print's first half, at most two thirds of the slots in use.
    pairs: Box<[Pair]>,
    len: usize,
    max: usize,
    keys: Keys,
    /// Copies are rare, and would make every slot larger.
    copies: HashMap<Print, Handle, RandomState>,
}

/// Half a cache line.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Slot {
    print: Print,
    handle: Option<Handle>,
    used: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Blocked,
    Overflow,
    /// Kept for this epoch, with or without a copy.
    Named,
    Kept,
    /// Kept, with a copy.
    Copied,
}

const _: () = assert!(size_of::<Slot>() == 32);

impl Slot {
    /// 0 if it is that of this print.
    const fn differs(&self, print: Print) -> u64 {
        (self.print[0] ^ print[0]) | (self.print[1] ^ print[1])
    }

    /// Its series, if it is in use and the only one, and the epoch in which that was last used.
    #[inline(always)]
    fn kept(&mut self, epoch: u32) -> Option<(Handle, u32)> {
        let is_young = epoch.wrapping_sub(self.used) <= 1;
        let handle = self.handle.filter(|_| self.state == State::Kept && is_young)?;
        Some((handle, std::mem::replace(&mut self.used, epoch)))
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Pair([Slot; 2]);

impl Pair {
    /// Which of its slots is that of this print.
    #[inline(always)]
    fn place(&self, print: Print) -> Option<usize> {
        // Which of them it is is chance, so it is not asked.
        let (first, second) = (self.0[0].differs(print), self.0[1].differs(print));
        (first.min(second) == 0).then_some(usize::from(first != 0))
    }
}

/// A print of zeros, one of 2^128, would be taken for it, and so be forgotten.
const EMPTY: Slot = Slot { print: [0; 2], handle: None, used: 0, state: State::Empty };

impl Spellings {
    /// Remembers at most `max` spellings.
    pub fn new(max: usize) -> Self {
        Self {
            pairs: empty_pairs(PAIRS_MIN),
            len: 0,
            max,
            keys: Keys::random(),
            copies: HashMap::default(),
        }
    }

    /// Hashes everything of a sample that decides which series it belongs to: `sent` is the origin
    /// of its datagram.
    // In line, so that the sample stays in registers.
    #[inline(always)]
    pub fn print(&self, sample: &Sample<'_>, dialect: Dialect, sent: Origin) -> Print {
        let OriginFields { local, external, cardinality } = sample.origin;
        let named = !(local.is_empty() && external.is_empty() && cardinality.is_empty());
        let kind = (sample.kind as u64) << 8 | u64::from(named) << 1 | dialect as u64;
        // The lengths keep name and tags apart, and the tails of both from their padding.
        let lengths = (sample.name.len() as u64) << 32 ^ sample.tags.len() as u64;
        let mut hash = Hash::new(&self.keys);
        hash.block(u64::from(sent.0) << 32 | kind, lengths);
        hash.bytes(sample.name);
        hash.bytes(sample.tags);
        if named {
            hash_origin(&mut hash, &sample.origin);
        }
        hash.finish()
    }

    /// Has the place of a spelling fetched into the cache.
    pub fn prefetch(&self, print: Print) {
        sys::prefetch(&self.pairs[self.home(print)]);
    }

    /// The series of a spelling, and the epoch in which it was last used: of one that stands in its
    /// own pair, is in use and goes to one series alone, as nearly every one does. Of any other
    /// [`Self::find`] tells, later: the pair where it may be is fetched into the cache meanwhile.
    // In line and in two numbers, so that they stay in registers.
    #[inline(always)]
    pub fn at_home(&mut self, print: Print, epoch: u32) -> Option<(Handle, u32)> {
        let home = self.home(print);
        let place = self.pairs[home].place(print);
        if place.is_none() {
            sys::prefetch(&self.pairs[self.after(home)]);
        }
        self.pairs[home].0[place?].kept(epoch)
    }

    /// Where the samples of a spelling go, and the epoch in which its series was last used. A
    /// series that was not used for longer than its handle can be trusted is asked for at its
    /// shard; `None` when it has expired.
    pub fn find(&mut self, print: Print, epoch: u32, window: &Window<'_>) -> Option<(Series, u32)> {
        let at = self.position(print).ok();
        if let Some((handle, used)) = at.and_then(|at| self.slot(at).kept(epoch)) {
            return Some((Series { handle: Some(handle), ..Series::default() }, used));
        }
        self.find_other(print, epoch, window)
    }

    /// The same of what is rare: what is not used all the time, and what is more than one series.
    #[cold]
    fn find_other(
        &mut self,
        print: Print,
        epoch: u32,
        window: &Window<'_>,
    ) -> Option<(Series, u32)> {
        let at = self.position(print).ok()?;
        let slot = self.slot(at);
        let age = epoch.wrapping_sub(slot.used);
        if slot.state == State::Named && age > 0 {
            return None;
        }
        let used = std::mem::replace(&mut slot.used, epoch);
        let (handle, state) = (slot.handle, slot.state);
        if age > IDLE_EPOCHS {
            // Generations are few: one that old may have come round.
            return None;
        }
        let copied = matches!(state, State::Copied | State::Named);
        let copy = copied.then(|| self.copies.get(&print).copied()).flatten();
        let series = Series { handle, copy, ..Series::default() };
        let series = match state {
            State::Empty => return None,
            State::Blocked => return Some((Series::default(), epoch)),
            State::Overflow if age > 0 => return None,
            State::Overflow => Series { overflow: true, ..series },
            State::Named => Series { named: true, ..series },
            State::Kept | State::Copied => series,
        };
        if age <= 1 {
            return Some((series, used));
        }
        let alive = [handle, copy].into_iter().flatten().all(|h| window.revive(h));
        alive.then_some((series, epoch))
    }

    /// Remembers, or corrects, where the samples of a spelling go.
    pub fn insert(&mut self, print: Print, series: Series, epoch: u32) {
        let state = match series {
            Series { handle: None, .. } => State::Blocked,
            // The copy of an overflow series is looked up anew in any case.
            Series { overflow: true, copy: None, .. } => State::Overflow,
            Series { overflow: true, copy: Some(_), .. } => return self.forget(print),
            Series { copy: Some(copy), named, .. } => {
                self.copies.insert(print, copy);
                if named { State::Named } else { State::Copied }
            }
            Series { named: true, .. } => State::Named,
            Series { .. } => State::Kept,
        };
        let slot = Slot { print, handle: series.handle, used: epoch, state };
        match self.position(print) {
            Ok(at) => *self.slot(at) = slot,
            Err(at) if self.len < self.room() => {
                *self.slot(at) = slot;
                self.len += 1;
            }
            Err(_) => {
                self.make_room(epoch);
                if let Err(at) = self.position(print) {
                    *self.slot(at) = slot;
                    self.len += 1;
                }
            }
        }
    }

    /// Makes the next look-up of a spelling fail.
    fn forget(&mut self, print: Print) {
        if let Ok(at) = self.position(print) {
            // Not emptied: others may lie behind it. An old overflow is never found.
            let slot = self.slot(at);
            slot.state = State::Overflow;
            slot.used = slot.used.wrapping_sub(1);
        }
    }

    /// The slot of a spelling, or the empty one it would get.
    #[inline]
    fn position(&self, print: Print) -> Result<usize, usize> {
        let mut at = self.home(print);
        loop {
            let pair = &self.pairs[at];
            if let Some(place) = pair.place(print) {
                return Ok(2 * at + place);
            }
            let Pair([first, second]) = pair;
            if second.state == State::Empty {
                return Err(2 * at + usize::from(first.state != State::Empty));
            }
            at = self.after(at);
        }
    }

    fn slot(&mut self, at: usize) -> &mut Slot {
        &mut self.pairs[at / 2].0[at % 2]
    }

    /// The pair where a spelling belongs. Any number of pairs will do, so that a table need not be
    /// twice as large as the last.
    fn home(&self, print: Print) -> usize {
        ((u128::from(print[0]) * self.pairs.len() as u128) >> 64) as usize
    }

    /// The pair that comes behind one that is full.
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.pairs.len() { 0 } else { at + 1 }
    }

    fn room(&self) -> usize {
        (self.pairs.len() / 3 * 4).min(self.max)
    }

    /// Forgets what is idle; if much is left, takes half as many pairs again, or at the limit forgets
    /// what was not used in this epoch, and if need be everything.
    fn make_room(&mut self, epoch: u32) {
        let age = |slot: &Slot| epoch.wrapping_sub(slot.used);
        self.retain(|slot| age(slot) <= IDLE_EPOCHS, self.pairs.len());
        if self.len * 2 < self.room() {
            return;
        }
        if self.room() < self.max {
            return self.retain(|_| true, self.pairs.len() / 2 * 3);
        }
        self.retain(|slot| age(slot) == 0, self.pairs.len());
        if self.len * 2 >= self.room() {
            self.retain(|_| false, self.pairs.len());
        }
    }

    fn retain(&mut self, keep: impl Fn(&Slot) -> bool, pairs: usize) {
        let old = std::mem::replace(&mut self.pairs, empty_pairs(pairs));
        self.len = 0;
        for slot in old.iter().flat_map(|pair| pair.0).filter(|slot| slot.state != State::Empty) {
            if keep(&slot) {
                if let Err(at) = self.position(slot.print) {
                    *self.slot(at) = slot;
                    self.len += 1;
                }
            } else if !self.copies.is_empty() {
                self.copies.remove(&slot.print);
            }
        }
    }
}

fn hash_origin(hash: &mut Hash<'_>, origin: &OriginFields<'_>) {
    let OriginFields { local, external, cardinality } = *origin;
    let lengths = (local.len() as u64) << 32 ^ external.len() as u64;
    hash.block(cardinality.len() as u64, lengths);
    [local, external, cardinality].into_iter().for_each(|field| hash.bytes(field));
}

fn empty_pairs(n: usize) -> Box<[Pair]> {
    let mut pairs = Vec::with_capacity(n);
    sys::prefer_huge_pages(&pairs);
    pairs.resize(n, Pair([EMPTY; 2]));
    pairs.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use super::*;
    use crate::context::{Context, Source};
    use crate::parse;
    use crate::sample::Message;
    use crate::shard::{self, Shards};
    use crate::telemetry::Telemetry;
    use crate::time::Time;
    use crate::value::{self, Plan};

    fn print(spellings: &Spellings, line: &str, dialect: Dialect) -> Print {
        let options = parse::Options { origin_fields: true, ..parse::Options::default() };
        match parse::line(line.as_bytes(), options) {
            Ok(Message::Metric(sample)) => spellings.print(&sample, dialect, Origin::NONE),
            other => panic!("{line}: {other:?}"),
        }
    }

    const START: Time = Time::from_seconds(1000);

    fn shards() -> Shards {
        let plan = Plan::from_config(&value::Config::default());
        let telemetry = Arc::new(Telemetry::default());
        Shards::new(shard::Config::default(), plan, 10, "h".to_owned(), telemetry, START)
    }

    #[test]
    fn what_makes_a_series_makes_a_print() {
        let spellings = Spellings::new(1000);
        let mut seen = HashSet::new();
        let tags: String = (0..40).map(|n| format!("tag{n}:value,")).collect();
        for name in 1..80 {
            for tags in 0..tags.len().min(100) {
                let line = format!("{}:1|c|#{}", "n".repeat(name), &"t".repeat(tags));
                assert!(seen.insert(print(&spellings, &line, Dialect::Datadog)), "{line}");
            }
        }
        for (line, dialect) in [
            ("a:1|c|#bc", Dialect::Datadog),
            ("a:1|g|#bc", Dialect::Datadog),
            ("ab:1|c|#c", Dialect::Datadog),
            ("a:1|c|#bc", Dialect::Statsd),
            ("a:1|c|#bc\0", Dialect::Datadog),
            ("a\0:1|c|#bc", Dialect::Datadog),
            ("a:1|c|#bc|c:d", Dialect::Datadog),
            ("a:1|c|#bc|e:d", Dialect::Datadog),
            ("a:1|c|#bc|card:d", Dialect::Datadog),
            ("a:1|c|#bc|c:d|e:d", Dialect::Datadog),
            ("a:1|c|#bc|c:dd", Dialect::Datadog),
            ("a:1|c|#bc|c:in-1", Dialect::Datadog),
            ("a:1|c|#bcin-1", Dialect::Datadog),
        ] {
            assert!(seen.insert(print(&spellings, line, dialect)), "{line:?}");
        }
        assert_eq!(
            print(&spellings, "a:1|c|#b|@0.5", Dialect::Datadog),
            print(&spellings, "a:2:3|c|#b|T17", Dialect::Datadog),
            "values, rate and time make no series"
        );
        let options = parse::Options::default();
        let Ok(Message::Metric(sample)) = parse::line(b"a:1|c|#bc", options) else { panic!() };
        for sent in [Origin(1), Origin(2), Origin(1).by_address()] {
            assert!(seen.insert(spellings.print(&sample, Dialect::Datadog, sent)), "{sent:?}");
        }
        let other = Spellings::new(1000);
        assert!(seen.insert(print(&other, "a:1|c|#bc", Dialect::Datadog)), "keys are random");
    }

    #[test]
    fn what_is_remembered_is_found_until_it_is_idle_or_there_is_no_room() {
        let shards = shards();
        let window = shards.window(START);
        let context =
            |n: u64| Context::new(&format!("n{n}"), Kind::Count, "", Vec::new(), Source::default());
        let mut spellings = Spellings::new(5000);
        let print = |n: u64| [n.wrapping_mul(0x9e37_79b9_7f4a_7c15), n];
        let kept = |n| Series {
            handle: Some(window.intern(context(n), false).handle),
            ..Series::default()
        };
        for n in 1..3000 {
            spellings.insert(print(n), kept(n), 0);
        }
        for n in 1..3000 {
            assert_eq!(spellings.find(print(n), 1, &window), Some((kept(n), 0)));
            assert_eq!(spellings.find(print(n), 1, &window), Some((kept(n), 1)));
        }
        assert_eq!(spellings.find([1, 1], 1, &window), None);
        // Beyond the limit the oldest go, and the new ones are there.
        for n in 3000..9000 {
            spellings.insert(print(n), kept(n), 50);
            assert!(spellings.len <= 5000);
        }
        assert_eq!(spellings.find(print(8999), 50, &window), Some((kept(8999), 50)));
        assert_eq!(spellings.find(print(1), 50, &window), None);
    }

    #[test]
    fn most_spellings_stand_in_their_own_pair_and_the_rest_is_found_later() {
        let shards = shards();
        let window = shards.window(START);
        let context = Context::new("n", Kind::Count, "", Vec::new(), Source::default());
        let handle = window.intern(context, false).handle;
        let kept = Series { handle: Some(handle), ..Series::default() };
        let mut spellings = Spellings::new(5000);
        // Scattered as hashes are: not so evenly that each pair gets its share.
        let prints: Vec<Print> = (1..=spellings.room() as u64)
            .map(|n| [n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(n | 1), n])
            .collect();
        prints.iter().for_each(|&print| spellings.insert(print, kept, 7));
        let mut at_home = 0;
        for &print in &prints {
            if let Some(found) = spellings.at_home(print, 7) {
                assert_eq!(found, (handle, 7));
                at_home += 1;
            }
            assert_eq!(spellings.find(print, 7, &window), Some((kept, 7)));
        }
        assert!((prints.len() / 2..prints.len()).contains(&at_home), "{at_home}");
        assert_eq!(spellings.at_home([1, 0], 7), None, "never seen");
        let old = prints.iter().find(|print| spellings.at_home(**print, 7).is_some());
        assert_eq!(spellings.at_home(*old.expect("one of many"), 9), None, "its shard is asked");
        spellings.insert(prints[0], Series { copy: Some(handle), ..kept }, 7);
        assert_eq!(spellings.at_home(prints[0], 7), None, "it goes to two");
    }

    #[test]
    fn blocked_copied_and_overflowing_series_are_told_apart() {
        let shards = shards();
        let window = shards.window(START);
        let handle = |name: &str| {
            let context = Context::new(name, Kind::Histogram, "", Vec::new(), Source::default());
            Some(window.intern(context, false).handle)
        };
        let mut spellings = Spellings::new(1000);
        let none = Series::default();
        let copied = Series { handle: handle("a"), copy: handle("b"), ..none };
        let overflow = Series { handle: handle("c"), overflow: true, ..none };
        let named =
            [Series { named: true, ..copied }, Series { named: true, copy: None, ..copied }];
        spellings.insert([5, 5], named[0], 5);
        spellings.insert([6, 6], named[1], 5);
        spellings.insert([1, 1], Series::default(), 5);
        spellings.insert([2, 2], copied, 5);
        spellings.insert([3, 3], overflow, 5);
        spellings.insert([4, 4], copied, 5);
        spellings.insert([4, 4], Series { overflow: true, ..copied }, 5);
        assert_eq!(spellings.find([1, 1], 9, &window), Some((Series::default(), 9)));
        assert_eq!(spellings.find([2, 2], 6, &window), Some((copied, 5)));
        assert_eq!(spellings.find([3, 3], 5, &window), Some((overflow, 5)));
        assert_eq!(spellings.find([3, 3], 6, &window), None, "there may be room again");
        assert_eq!(spellings.find([4, 4], 5, &window), None);
        assert_eq!(spellings.find([5, 5], 5, &window), Some((named[0], 5)));
        assert_eq!(spellings.find([6, 6], 5, &window), Some((named[1], 5)));
        for _ in 0..2 {
            assert_eq!(spellings.find([5, 5], 6, &window), None, "its tags may be others");
        }
    }
}
