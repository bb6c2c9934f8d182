//! What a run of a collector finds, and the totals it remembers to make rates of.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::{Event, ServiceCheck};
use crate::reader::Reader;
use crate::sample::{CheckLine, EventLine, Kind, Message, OriginFields, Sample, Values};
use crate::time::Time;

/// Samples of one run; what exceeds it is left out and counted.
pub const SAMPLES_MAX: usize = 500_000;

/// Tags of a sample, ready to be sent. Cheap to clone.
///
/// Tags are separated by commas on their way, as on the wire: a comma within one becomes an
/// underscore, as the backend shows it anyhow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags(Arc<str>);

impl Tags {
    /// Empty ones are left out.
    pub fn new<T: AsRef<str>>(tags: impl IntoIterator<Item = T>) -> Self {
        let mut text = String::new();
        tags.into_iter().for_each(|tag| push_tag(&mut text, tag.as_ref()));
        Self(text.into())
    }

    /// These and `key:value`.
    #[must_use]
    pub fn and(&self, key: &str, value: impl Display) -> Self {
        let mut text = String::from(&*self.0);
        push_tag(&mut text, &format!("{key}:{value}"));
        Self(text.into())
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').filter(|tag| !tag.is_empty())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn push_tag(text: &mut String, tag: &str) {
    if tag.is_empty() {
        return;
    }
    if !text.is_empty() {
        text.push(',');
    }
    text.extend(tag.chars().map(|c| if c == ',' { '_' } else { c }));
}

/// What one run found.
#[derive(Debug)]
pub struct Samples {
    now: Time,
    deadline: Instant,
    found: Vec<Found>,
    /// What was beyond [`SAMPLES_MAX`] or a limit of the collector's own.
    left_out: u64,
    totals: Totals,
    /// Keys of totals are put together here.
    key: String,
}

#[derive(Debug)]
enum Found {
    Number { name: Cow<'static, str>, kind: Kind, value: f64, tags: Tags },
    Member { name: Cow<'static, str>, member: String, tags: Tags },
    Event(Event),
    Check(ServiceCheck),
}

/// Totals of the run before, by entity, name and part.
#[derive(Debug, Default)]
struct Totals {
    by_key: HashMap<String, Total>,
    /// Number of runs.
    run: u64,
}

#[derive(Clone, Copy, Debug)]
struct Total {
    value: f64,
    at: Time,
    /// The run in which it was last seen.
    run: u64,
}

/// Stands between the parts of a key, none of which holds it.
const SEPARATOR: char = '\0';

impl Default for Samples {
    fn default() -> Self {
        Self {
            now: Time::default(),
            deadline: Instant::now(),
            found: Vec::new(),
            left_out: 0,
            totals: Totals::default(),
            key: String::new(),
        }
    }
}

impl Samples {
    /// Begins a run.
    pub fn begin(&mut self, now: Time, budget: Duration) {
        self.now = now;
        self.deadline = Instant::now() + budget;
        self.found.clear();
        self.left_out = 0;
        self.totals.run += 1;
    }

    /// Ends a run. Totals that a `complete` one did not see belong to what has gone.
    pub fn end(&mut self, complete: bool) {
        if complete {
            let run = self.totals.run;
            self.totals.by_key.retain(|_, total| total.run == run);
            self.totals.by_key.shrink_to(2 * self.totals.by_key.len());
        }
    }

    /// When the run began.
    pub const fn now(&self) -> Time {
        self.now
    }

    /// The budget is used up: what is left to do is left out.
    pub fn out_of_time(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// What is left of the budget, for calls that take a timeout.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    pub fn gauge(&mut self, name: impl Into<Cow<'static, str>>, value: f64, tags: &Tags) {
        self.number(name.into(), Kind::Gauge, value, tags);
    }

    pub fn count(&mut self, name: impl Into<Cow<'static, str>>, value: f64, tags: &Tags) {
        self.number(name.into(), Kind::Count, value, tags);
    }

    pub fn histogram(&mut self, name: impl Into<Cow<'static, str>>, value: f64, tags: &Tags) {
        self.number(name.into(), Kind::Histogram, value, tags);
    }

    pub fn set(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        member: impl Into<String>,
        tags: &Tags,
    ) {
        let (name, member) = (name.into(), member.into());
        self.push(Found::Member { name, member, tags: tags.clone() });
    }

    /// A count of what was added to a total since the run before. The first sight of a total yields
    /// nothing, nor does one that has become smaller: it was begun anew.
    pub fn monotonic_count(
        &mut self,
        entity: &str,
        name: impl Into<Cow<'static, str>>,
        total: f64,
        tags: &Tags,
    ) {
        self.monotonic_count_of(entity, "", name, total, tags);
    }

    /// The same where an entity has several totals of one name: `part` is the device, interface or
    /// whatever tells them apart.
    pub fn monotonic_count_of(
        &mut self,
        entity: &str,
        part: &str,
        name: impl Into<Cow<'static, str>>,
        total: f64,
        tags: &Tags,
    ) {
        let name = name.into();
        if let Some((delta, _)) = self.progress(entity, part, &name, total) {
            self.number(name, Kind::Count, delta, tags);
        }
    }

    /// A gauge of what a total has grown by per second since the run before; otherwise as
    /// [`Samples::monotonic_count`].
    pub fn rate(
        &mut self,
        entity: &str,
        name: impl Into<Cow<'static, str>>,
        total: f64,
        tags: &Tags,
    ) {
        self.rate_of(entity, "", name, total, tags);
    }

    /// The same for one part of an entity.
    pub fn rate_of(
        &mut self,
        entity: &str,
        part: &str,
        name: impl Into<Cow<'static, str>>,
        total: f64,
        tags: &Tags,
    ) {
        let name = name.into();
        if let Some(rate) = self.rate_value(entity, part, &name, total) {
            self.number(name, Kind::Gauge, rate, tags);
        }
    }

    /// The rate that [`Samples::rate_of`] would send, for whoever sends it in another way.
    pub fn rate_value(&mut self, entity: &str, part: &str, name: &str, total: f64) -> Option<f64> {
        let (delta, milliseconds) = self.progress(entity, part, name, total)?;
        (milliseconds > 0).then(|| delta * 1000.0 / milliseconds as f64)
    }

    /// Forgets the totals of an entity: another one has begun under its name.
    pub fn forget(&mut self, entity: &str) {
        self.totals.by_key.retain(|key, _| {
            !key.strip_prefix(entity).is_some_and(|rest| rest.starts_with(SEPARATOR))
        });
    }

    pub fn event(&mut self, event: Event) {
        self.push(Found::Event(event));
    }

    pub fn service_check(&mut self, check: ServiceCheck) {
        self.push(Found::Check(check));
    }

    /// What was added since the last sight of a total, and the milliseconds between.
    fn progress(&mut self, entity: &str, part: &str, name: &str, total: f64) -> Option<(f64, i64)> {
        self.key.clear();
        for text in [entity, name, part] {
            self.key.push_str(text);
            self.key.push(SEPARATOR);
        }
        let seen = Total { value: total, at: self.now, run: self.totals.run };
        let full = self.totals.by_key.len() >= SAMPLES_MAX;
        let before = match self.totals.by_key.get_mut(self.key.as_str()) {
            Some(known) => std::mem::replace(known, seen),
            None if full => {
                self.left_out += 1;
                return None;
            }
            None => {
                self.totals.by_key.insert(self.key.clone(), seen);
                return None;
            }
        };
        let delta = total - before.value;
        (delta >= 0.0).then_some((delta, self.now.0 - before.at.0))
    }

    fn number(&mut self, name: Cow<'static, str>, kind: Kind, value: f64, tags: &Tags) {
        self.push(Found::Number { name, kind, value, tags: tags.clone() });
    }

    fn push(&mut self, found: Found) {
        if self.found.len() < SAMPLES_MAX {
            self.found.push(found);
        } else {
            self.left_out += 1;
        }
    }

    /// Counts what a limit of the collector's own left out.
    pub const fn leave_out(&mut self, count: u64) {
        self.left_out += count;
    }

    /// Samples, events and checks that wait to be sent.
    pub const fn len(&self) -> usize {
        self.found.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Totals that are remembered.
    pub fn totals(&self) -> usize {
        self.totals.by_key.len()
    }

    /// What this run left out because there was too much.
    pub const fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Every number found, for whoever looks at a run without shards.
    pub fn numbers(&self) -> impl Iterator<Item = (&str, Kind, f64, &Tags)> {
        self.found.iter().filter_map(|found| match found {
            Found::Number { name, kind, value, tags } => Some((&**name, *kind, *value, tags)),
            Found::Member { .. } | Found::Event(_) | Found::Check(_) => None,
        })
    }

    /// Every member of a set found.
    pub fn members(&self) -> impl Iterator<Item = (&str, &str, &Tags)> {
        self.found.iter().filter_map(|found| match found {
            Found::Member { name, member, tags } => Some((&**name, member.as_str(), tags)),
            Found::Number { .. } | Found::Event(_) | Found::Check(_) => None,
        })
    }

    /// Every event found.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.found.iter().filter_map(|found| match found {
            Found::Event(event) => Some(event),
            Found::Number { .. } | Found::Member { .. } | Found::Check(_) => None,
        })
    }

    /// Every service check found.
    pub fn checks(&self) -> impl Iterator<Item = &ServiceCheck> {
        self.found.iter().filter_map(|found| match found {
            Found::Check(check) => Some(check),
            Found::Number { .. } | Found::Member { .. } | Found::Event(_) => None,
        })
    }

    /// Hands everything to the shards at once, so that a run is never split between two batches.
    pub fn send(&mut self, reader: &mut Reader) {
        // Tags of events come in pieces, and the lines borrow them.
        let joined: Vec<Tags> = self.found.iter().map(Found::joined_tags).collect();
        let messages = self.found.iter().zip(&joined).map(|(found, tags)| found.message(tags));
        reader.messages(messages, self.now);
        self.found.clear();
    }
}

impl Found {
    fn joined_tags(&self) -> Tags {
        match self {
            Self::Number { tags, .. } | Self::Member { tags, .. } => tags.clone(),
            Self::Event(event) => Tags::new(&event.tags),
            Self::Check(check) => Tags::new(&check.tags),
        }
    }

    fn message<'a>(&'a self, tags: &'a Tags) -> Message<'a> {
        let tags = tags.0.as_bytes();
        let origin = OriginFields::default();
        let sample = |name: &'a str, kind, values| {
            let name = name.as_bytes();
            Message::Metric(Sample { name, kind, values, rate: 1.0, tags, timestamp: None, origin })
        };
        match self {
            Self::Number { name, kind, value, .. } => sample(name, *kind, Values::One(*value)),
            Self::Member { name, member, .. } => {
                sample(name, Kind::Set, Values::Member(member.as_bytes()))
            }
            Self::Event(event) => Message::Event(EventLine {
                title: event.title.as_bytes(),
                text: event.text.as_bytes(),
                timestamp: event.timestamp,
                host: event.host.as_bytes(),
                aggregation_key: event.aggregation_key.as_bytes(),
                source_type: event.source_type.as_bytes(),
                priority: event.priority,
                alert_type: event.alert_type,
                tags,
                origin,
                ignored: 0,
            }),
            Self::Check(check) => Message::Check(CheckLine {
                name: check.name.as_bytes(),
                status: check.status,
                timestamp: check.timestamp,
                host: check.host.as_bytes(),
                message: check.message.as_bytes(),
                tags,
                origin,
                ignored: 0,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(samples: &mut Samples, second: i64, totals: &[(&str, f64)]) -> Vec<(String, f64)> {
        samples.begin(Time::from_seconds(second), Duration::from_secs(1));
        for (entity, total) in totals {
            samples.rate(entity, "r", *total, &Tags::new([entity]));
        }
        samples.end(true);
        samples.numbers().map(|(_, _, value, tags)| (tags.as_str().to_owned(), value)).collect()
    }

    #[test]
    fn a_rate_is_growth_by_time_and_needs_two_sights() {
        let mut samples = Samples::default();
        let found = |entity: &str, rate| (entity.to_owned(), rate);
        assert_eq!(run(&mut samples, 100, &[("a", 50.0)]), []);
        assert_eq!(run(&mut samples, 110, &[("a", 80.0), ("b", 7.0)]), [found("a", 3.0)]);
        // Begun anew: the smaller total is the next base.
        assert_eq!(run(&mut samples, 120, &[("a", 5.0), ("b", 7.0)]), [found("b", 0.0)]);
        assert_eq!(run(&mut samples, 140, &[("a", 45.0)]), [found("a", 2.0)]);
        // A clock that stands still or goes back gives no rate.
        assert_eq!(run(&mut samples, 140, &[("a", 46.0)]), []);
        assert_eq!(run(&mut samples, 130, &[("a", 47.0)]), []);
        assert_eq!(run(&mut samples, 131, &[("a", 48.0)]), [found("a", 1.0)]);
    }

    #[test]
    fn totals_end_with_their_entity() {
        let mut samples = Samples::default();
        run(&mut samples, 0, &[("a", 1.0), ("b", 1.0)]);
        assert_eq!(samples.totals(), 2);
        run(&mut samples, 10, &[("a", 2.0)]);
        assert_eq!(samples.totals(), 1, "b was not seen");
        assert_eq!(run(&mut samples, 20, &[("b", 9.0)]), [], "its base has gone with it");
        // A run that failed proves nothing about what it did not see.
        samples.begin(Time::from_seconds(30), Duration::ZERO);
        samples.end(false);
        assert_eq!(samples.totals(), 1);
        samples.begin(Time::from_seconds(40), Duration::ZERO);
        for part in ["x", "y"] {
            samples.rate_of("bb", part, "r", 1.0, &Tags::default());
        }
        samples.forget("b");
        samples.end(false);
        assert_eq!(samples.totals(), 2, "bb is not b");
        samples.forget("bb");
        assert_eq!(samples.totals(), 0);
    }

    #[test]
    fn parts_and_names_are_totals_of_their_own() {
        let mut samples = Samples::default();
        for (second, total) in [(0, 10.0), (10, 20.0)] {
            samples.begin(Time::from_seconds(second), Duration::from_secs(1));
            for (part, factor) in [("sda", 1.0), ("sdb", 2.0)] {
                samples.monotonic_count_of("a", part, "n", total * factor, &Tags::new([part]));
            }
            samples.rate("a", "r", total, &Tags::default());
            samples.end(true);
        }
        let found: Vec<_> =
            samples.numbers().map(|(n, kind, v, t)| (n, kind, v, t.as_str())).collect();
        let count = |value, tag| ("n", Kind::Count, value, tag);
        assert_eq!(found, [count(10.0, "sda"), count(20.0, "sdb"), ("r", Kind::Gauge, 1.0, "")]);
    }

    #[test]
    fn a_hundred_thousand_short_lives_leave_nothing_behind() {
        let mut samples = Samples::default();
        for run in 0..1000 {
            samples.begin(Time::from_seconds(run), Duration::from_secs(1));
            for i in 0..100 {
                samples.rate(&format!("{run}-{i}"), "r", 1.0, &Tags::default());
            }
            samples.end(true);
            samples.found.clear();
        }
        assert_eq!(samples.totals(), 100);
        assert!(samples.totals.by_key.capacity() < 1000, "{}", samples.totals.by_key.capacity());
    }

    #[test]
    fn a_run_has_a_limit() {
        let mut samples = Samples::default();
        samples.begin(Time::default(), Duration::ZERO);
        for _ in 0..SAMPLES_MAX + 3 {
            samples.gauge("g", 1.0, &Tags::default());
        }
        assert_eq!((samples.len(), samples.left_out()), (SAMPLES_MAX, 3));
        samples.begin(Time::default(), Duration::ZERO);
        assert_eq!((samples.len(), samples.left_out()), (0, 0));
    }

    #[test]
    fn tags_hold_no_commas_of_their_own() {
        let tags = Tags::new(["a:b,c", "", "d"]).and("e", "f,g").and("h", 3);
        assert_eq!(tags.iter().collect::<Vec<_>>(), ["a:b_c", "d", "e:f_g", "h:3"]);
        assert_eq!(Tags::default().and("a", 1).as_str(), "a:1");
        assert_eq!(Tags::default().iter().count(), 0);
    }
}
