//! A look at the traffic: a few samples a second of each reader, enough to say which names are
//! busy, and to show lines to whoever asks.
//!
//! A reader picks at random, so that clients who send their lines in a fixed order do not mislead,
//! and never waits: a picked sample that finds the lock taken is left out.

use std::collections::HashMap;
use std::sync::Mutex;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::sample::{Kind, Sample, Values};
use crate::time::Time;

/// Samples that one reader picks in a second, about.
const PICKS: usize = 250;

/// Names of a window; the rest is added up.
const NAMES_MAX: usize = 4096;

/// Seconds over which rates are taken.
const WINDOW: i64 = 10;

/// Who may look at once, and lines that wait for one of them.
const WATCHERS_MAX: usize = 8;
const LINES_MAX: usize = 1024;

/// Longest member of a set, or list of values, that is shown.
const VALUES_MAX: usize = 256;

/// Where all readers put what they picked.
#[derive(Debug, Default)]
pub struct Tap(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Start of the window in Unix seconds.
    start: i64,
    window: Window,
    /// The last one that is complete.
    last: Window,
    watchers: Vec<Watcher>,
}

#[derive(Debug, Default)]
struct Window {
    names: HashMap<Box<[u8]>, Busy>,
    /// Samples of names for which there was no room.
    rest: f64,
}

impl Window {
    /// Names that came in it keep their places: it is used again in the window after the next.
    fn reset(&mut self) {
        self.rest = 0.0;
        self.names.retain(|_, busy| {
            let came = busy.samples > 0.0;
            (busy.samples, busy.bytes) = (0.0, 0.0);
            came
        });
    }
}

/// How often a name came.
#[derive(Clone, Copy, Debug)]
struct Busy {
    kind: Kind,
    samples: f64,
    bytes: f64,
}

#[derive(Debug)]
struct Watcher {
    filter: Box<[u8]>,
    lines: Sender<Picked>,
}

/// The rate of a name, as estimated from what was picked.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Rate {
    pub name: String,
    pub kind: &'static str,
    /// Lines a second.
    pub samples: f64,
    /// Bytes a second, about.
    pub bytes: f64,
}

/// A sample that was picked.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Picked {
    /// Milliseconds since the Unix epoch.
    pub time: i64,
    /// The line, without the fields that say who sent it.
    pub line: String,
    /// It stands for about so many.
    pub one_of: usize,
}

impl Tap {
    fn record(&self, sample: &Sample, one_of: usize, now: Time) {
        let Ok(mut state) = self.0.try_lock() else { return };
        state.turn(now.seconds());
        let window = &mut state.window;
        let bytes = (length(sample) * one_of) as f64;
        if let Some(busy) = window.names.get_mut(sample.name) {
            busy.samples += one_of as f64;
            busy.bytes += bytes;
        } else if window.names.len() < NAMES_MAX {
            let busy = Busy { kind: sample.kind, samples: one_of as f64, bytes };
            window.names.insert(sample.name.into(), busy);
        } else {
            window.rest += one_of as f64;
        }
        if !state.watchers.is_empty() {
            state.show(&text(sample), one_of, now);
        }
    }

    /// Rates by name, the highest first, and the rate of all names that are not among them.
    pub fn rates(&self, limit: usize, now: Time) -> (Vec<Rate>, f64) {
        let mut state = self.0.lock().expect("no panic under this lock");
        state.turn(now.seconds());
        let per_second = |samples: f64| samples / WINDOW as f64;
        let rate = |(name, busy): (&[u8], &Busy)| Rate {
            name: String::from_utf8_lossy(name).into_owned(),
            kind: busy.kind.word(),
            samples: per_second(busy.samples),
            bytes: per_second(busy.bytes),
        };
        let came = state.last.names.iter().filter(|(_, busy)| busy.samples > 0.0);
        let mut rates: Vec<_> = came.map(|(name, busy)| rate((name, busy))).collect();
        rates.sort_by(|a, b| b.samples.total_cmp(&a.samples).then_with(|| a.name.cmp(&b.name)));
        let cut = rates.split_off(limit.min(rates.len()));
        let rest = cut.iter().map(|rate| rate.samples).sum::<f64>() + per_second(state.last.rest);
        (rates, rest)
    }

    /// Shows picked samples whose line contains `filter` from now on, until the receiver is
    /// dropped. `None` when too many look already.
    pub fn watch(&self, filter: &str) -> Option<Receiver<Picked>> {
        let mut state = self.0.lock().expect("no panic under this lock");
        state.watchers.retain(|watcher| !watcher.lines.is_closed());
        if state.watchers.len() >= WATCHERS_MAX {
            return None;
        }
        let (lines, receiver) = channel(LINES_MAX);
        state.watchers.push(Watcher { filter: filter.as_bytes().into(), lines });
        Some(receiver)
    }
}

impl State {
    /// Begins a new window when the last one is over.
    fn turn(&mut self, now: i64) {
        let start = now - now.rem_euclid(WINDOW);
        if start != self.start {
            std::mem::swap(&mut self.window, &mut self.last);
            self.window.reset();
            if start != self.start + WINDOW {
                // After a pause the last window is one without traffic.
                self.last.reset();
            }
            self.start = start;
        }
    }

    fn show(&mut self, line: &[u8], one_of: usize, now: Time) {
        self.watchers.retain(|watcher| {
            if memchr::memmem::find(line, &watcher.filter).is_none() {
                return true;
            }
            let line = String::from_utf8_lossy(line).into_owned();
            // One that reads too slowly misses lines.
            let sent = watcher.lines.try_send(Picked { time: now.0, line, one_of });
            !matches!(sent, Err(tokio::sync::mpsc::error::TrySendError::Closed(_)))
        });
    }
}

/// Bytes of the sample's line, about: a number is taken to have five, its type and signs three.
fn length(sample: &Sample) -> usize {
    let values = match sample.values {
        Values::One(_) | Values::Delta(_) => 5,
        Values::Packed(text) | Values::Member(text) => text.len(),
    };
    sample.name.len() + values + sample.tags.len() + 3
}

/// The sample as a line of the protocol.
fn text(sample: &Sample) -> Vec<u8> {
    let mut line = sample.name.to_vec();
    line.push(b':');
    match sample.values {
        Values::One(value) => line.extend(value.to_string().bytes()),
        Values::Delta(value) => line.extend(format!("{value:+}").bytes()),
        Values::Packed(text) | Values::Member(text) => {
            line.extend(&text[..text.len().min(VALUES_MAX)]);
        }
    }
    line.extend(match sample.kind {
        Kind::Count => &b"|c"[..],
        Kind::Gauge => b"|g",
        Kind::Set => b"|s",
        Kind::Timer => b"|ms",
        Kind::Histogram => b"|h",
        Kind::Distribution => b"|d",
    });
    if sample.rate != 1.0 {
        line.extend(format!("|@{}", sample.rate).bytes());
    }
    if !sample.tags.is_empty() {
        line.extend(b"|#");
        line.extend(sample.tags);
    }
    if let Some(timestamp) = sample.timestamp {
        line.extend(format!("|T{timestamp}").bytes());
    }
    line
}

/// Says which samples a reader picks: about `PICKS` in a second, at random.
#[derive(Debug)]
pub struct Probe {
    second: i64,
    /// Samples that came in this second, and those picked.
    seen: usize,
    picked: usize,
    /// One of so many is picked.
    one_of: usize,
    /// Samples until the next pick.
    until: usize,
    random: u64,
}

impl Default for Probe {
    fn default() -> Self {
        Self { second: 0, seen: 0, picked: 0, one_of: 1, until: 0, random: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Probe {
    /// Puts what it picks of a run of so many samples into the tap. `at` gives the sample at a
    /// place, if it is still there.
    pub fn pick<'a>(
        &mut self,
        count: usize,
        at: impl Fn(usize) -> Option<Sample<'a>>,
        tap: &Tap,
        now: Time,
    ) {
        if now.seconds() != self.second {
            self.begin(now.seconds());
        }
        self.seen += count;
        while self.until < count && self.picked < 4 * PICKS {
            if let Some(sample) = at(self.until) {
                tap.record(&sample, self.one_of, now);
            }
            self.picked += 1;
            self.until += self.gap();
        }
        self.until = self.until.saturating_sub(count);
    }

    fn begin(&mut self, second: i64) {
        // After a pause nothing is known.
        let seen = if second == self.second + 1 { self.seen } else { 0 };
        self.one_of = (seen / PICKS).max(1);
        (self.second, self.seen, self.picked) = (second, 0, 0);
        self.until = self.until.min(self.one_of);
    }

    /// Between 1 and twice the mean less 1, each as likely.
    fn gap(&mut self) -> usize {
        // xorshift64: good enough to pick by.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        1 + (self.random % (2 * self.one_of as u64 - 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::OriginFields;

    fn sample(name: &str) -> Sample<'_> {
        Sample {
            name: name.as_bytes(),
            kind: Kind::Count,
            values: Values::One(1.5),
            rate: 0.5,
            tags: b"x:y",
            timestamp: None,
            origin: OriginFields::default(),
        }
    }

    #[test]
    fn rates_are_near_the_truth_at_any_traffic() {
        // Lines come in a fixed order, one name in three of them twice as often.
        let names = ["a", "b", "a", "c"];
        for per_second in [4, 400, 40_000, 1_000_000] {
            let (tap, mut probe) = (Tap::default(), Probe::default());
            let samples: Vec<_> = names.iter().cycle().take(40).map(|name| sample(name)).collect();
            for second in 1000..1020 {
                let now = Time::from_seconds(second);
                for _ in 0..per_second / 40 {
                    probe.pick(samples.len(), |at| Some(samples[at]), &tap, now);
                }
                probe.pick(per_second % 40, |at| Some(samples[at]), &tap, now);
            }
            let (rates, rest) = tap.rates(2, Time::from_seconds(1020));
            let near = |rate: f64, share: f64| {
                let truth = per_second as f64 * share;
                (rate - truth).abs() < 0.15 * truth
            };
            assert_eq!(rates[0].name, "a", "{rates:?}");
            assert!(near(rates[0].samples, 0.5), "{per_second}: {rates:?}");
            assert!(near(rest + rates[1].samples, 0.5), "{per_second}: {rates:?} and {rest}");
            assert_eq!(tap.rates(9, Time::from_seconds(1045)), (vec![], 0.0), "long over");
        }
    }

    #[test]
    fn names_and_watchers_are_bounded() {
        let tap = Tap::default();
        for i in 0..NAMES_MAX + 5 {
            tap.record(&sample(&format!("n{i}")), 2, Time::from_seconds(1000));
        }
        let (rates, rest) = tap.rates(NAMES_MAX * 2, Time::from_seconds(1010));
        assert_eq!((rates.len(), rest), (NAMES_MAX, 1.0));
        let watchers: Vec<_> = (0..WATCHERS_MAX).map(|_| tap.watch("").unwrap()).collect();
        assert!(tap.watch("").is_none());
        drop(watchers);
        assert!(tap.watch("").is_some(), "one that has gone makes room");
    }

    #[test]
    fn a_watcher_gets_lines_that_match_and_never_holds_up() {
        let tap = Tap::default();
        let mut lines = tap.watch("b:1.5").unwrap();
        let now = Time(5);
        tap.record(&sample("a"), 1, now);
        tap.record(&sample("b"), 7, now);
        let picked = lines.try_recv().unwrap();
        let line = "b:1.5|c|@0.5|#x:y".to_owned();
        assert_eq!(picked, Picked { time: 5, line, one_of: 7 });
        for _ in 0..2 * LINES_MAX {
            tap.record(&sample("b"), 1, now);
        }
        assert_eq!(std::iter::from_fn(|| lines.try_recv().ok()).count(), LINES_MAX);
    }
}
