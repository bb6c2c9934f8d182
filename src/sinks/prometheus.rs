//! The exposition page that Prometheus scrapes. Delivering a batch means to fold it into the page;
//! the HTTP server writes the page out when it is asked to.

mod snapshot;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::RandomState;
use hashbrown::HashTable;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::snapshot::Snapshot;

use self::snapshot::Line;
use super::{Body, Coding, Encoded, Payload, Sending, Sink, Verdict};
use crate::batch::{Batch, Row, Value};
use crate::blocklist::Blocklist;
use crate::context::Context;
use crate::encode::exposition::{Labels, Type, metric_name};
use crate::hash::{Hash, Keys};
use crate::sample::Kind;
use crate::telemetry::Telemetry;
use crate::time::Moment;
use crate::value::{Aggregate, Suffix, Summary};

/// The page at `/metrics`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Serve the page.
    pub enabled: bool,
    /// Seconds after which an idle series leaves the page.
    pub expiry_seconds: u32,
    /// Series on the page; one more is left out and counted.
    pub series_max: usize,
    /// Quantiles of distributions, between 0 and 1.
    pub quantiles: Vec<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            expiry_seconds: 300,
            series_max: 100_000,
            quantiles: vec![0.5, 0.75, 0.9, 0.95, 0.99],
        }
    }
}

/// A quantile that is none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("sinks.prometheus.quantiles[{index}]: {value} is not between 0 and 1")]
pub struct QuantileError {
    pub index: usize,
    pub value: f64,
}

/// The sink that keeps the page.
///
/// Counts are counters since the start, gauges and sets are gauges, the rest are summaries whose
/// quantiles are those of the newest bucket while `_sum` and `_count` run since the start.
/// Timestamps are not shown: of a gauge's points within one batch the newest is, and those of a
/// count add up. A batch always wins over the one before, whatever its points' times, so neither a
/// point of the far future nor a clock that was set back holds a gauge.
///
/// A bucket in which a count came to less than zero is left out of its counter, and counted:
/// Prometheus takes any decrease for a restart from zero.
#[derive(Debug)]
pub struct Prometheus {
    page: Arc<Mutex<Page>>,
}

impl Prometheus {
    /// `hostname` is the own host, which the page does not repeat with every series.
    pub fn new(
        config: &Config,
        hostname: &str,
        telemetry: Arc<Telemetry>,
    ) -> Result<Self, QuantileError> {
        let page = Page::new(config, hostname, telemetry)?;
        Ok(Self { page: Arc::new(Mutex::new(page)) })
    }

    /// The page as of the last flush, to be written in
    /// [format 0.0.4](crate::encode::exposition::CONTENT_TYPE). With many series this takes a while:
    /// not for a thread that others wait for.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = lock(&self.page).snapshot();
        snapshot.sort();
        snapshot
    }

    /// The page as a whole.
    pub fn page(&self) -> String {
        let mut out = String::new();
        self.snapshot().write(&mut out, usize::MAX);
        out
    }
}

impl Sink for Prometheus {
    fn name(&self) -> &'static str {
        "prometheus"
    }

    fn endpoints(&self) -> Vec<String> {
        vec!["page".to_owned()]
    }

    /// An empty batch is a payload too: it is how idle series get old.
    fn encode(&self, batch: &Arc<Batch>) -> Encoded {
        let points = batch.rows.len() as u64;
        let payload = Payload {
            kind: "series",
            points,
            coding: Coding::Identity,
            body: Body::Batch(batch.clone()),
        };
        Encoded { payloads: vec![payload], dropped: 0 }
    }

    fn send<'a>(&'a self, _endpoint: usize, payload: &'a Payload) -> Sending<'a> {
        Box::pin(async move {
            let Body::Batch(batch) = &payload.body else {
                return Verdict::Refused { cause: "not a batch".to_owned() };
            };
            let (page, batch) = (self.page.clone(), batch.clone());
            // Folding many series takes a while, and so does a scrape that holds the lock.
            match tokio::task::spawn_blocking(move || lock(&page).fold(&batch)).await {
                Ok(()) => Verdict::Delivered,
                Err(e) => Verdict::Refused { cause: e.to_string() },
            }
        })
    }
}

/// A panic while folding leaves at worst one series half updated.
fn lock(page: &Mutex<Page>) -> MutexGuard<'_, Page> {
    page.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the page shows.
///
/// Labels are not kept: they would be the largest part of it. A series is known by the print of its
/// labels, and they are made anew for each scrape from the context of one of those that show as it.
///
/// Every series that may be shown has its numbers here all the time, so they are few: tables hold
/// places in lists.
#[derive(Debug)]
struct Page {
    hostname: String,
    expiry_seconds: u32,
    series_max: usize,
    /// Ascending, each once.
    quantiles: Vec<f64>,
    /// Where each series is shown, by its context. Several may come out as one, so this is what is
    /// limited.
    places: HashTable<Place>,
    hasher: RandomState,
    series: Vec<Shown>,
    /// Places in the list of series: of each by its print, and those that are free.
    prints: HashTable<u32>,
    free: Vec<u32>,
    families: BTreeMap<FamilyKey, Family>,
    /// Families so far.
    numbered: u32,
    /// Lists of quantiles that summaries have, each once: those of the settings, and as many as there
    /// are rules that leave some out.
    lists: Vec<Box<[f64]>>,
    /// Names of samples in use, those with a suffix included.
    names: HashSet<String, RandomState>,
    keys: Keys,
    /// Batches folded so far, modulo 2^32.
    batches: u32,
    telemetry: Arc<Telemetry>,
}

/// The valid form of a name, before a clash of kinds is resolved.
type FamilyKey = (String, Kind);

/// 128 keyed bits that stand for a family and a label set in it: see ARCHITECTURE.md for the chance
/// of a mistake.
type Print = [u64; 2];

#[derive(Debug)]
struct Place {
    context: Context,
    /// In the list of series.
    shown: u32,
    /// Time of the last flush that had a point.
    last_seen: Moment,
}

#[derive(Debug)]
struct Family {
    /// As shown.
    name: String,
    number: u32,
    /// How many series it has.
    series: usize,
}

/// One series as shown.
#[derive(Debug)]
struct Shown {
    print: Print,
    family: u32,
    /// How many show as it. They all have its labels.
    places: u32,
    /// The total of a counter, the value of a gauge, the sum of a summary.
    value: f64,
    summary: Option<Box<Observed>>,
    /// The batch of the newest point, by its number, and the point's time.
    newest: (u32, Moment),
}

const _: () = assert!(size_of::<Shown>() == 48);

/// What only a summary has.
#[derive(Clone, Debug)]
struct Observed {
    count: f64,
    /// Of each quantile.
    values: Box<[f64]>,
    /// Which they are, in the list of lists.
    quantiles: u32,
}

impl Page {
    fn new(
        config: &Config,
        hostname: &str,
        telemetry: Arc<Telemetry>,
    ) -> Result<Self, QuantileError> {
        let mut quantiles = config.quantiles.clone();
        if let Some(index) = quantiles.iter().position(|q| !(0.0..=1.0).contains(q)) {
            return Err(QuantileError { index, value: quantiles[index] });
        }
        quantiles.iter_mut().for_each(|q| *q = q.abs()); // -0 and 0 are one quantile.
        quantiles.sort_by(f64::total_cmp);
        quantiles.dedup();
        Ok(Self {
            hostname: hostname.to_owned(),
            expiry_seconds: config.expiry_seconds,
            series_max: config.series_max,
            quantiles,
            places: HashTable::new(),
            hasher: RandomState::new(),
            series: Vec::new(),
            prints: HashTable::new(),
            free: Vec::new(),
            families: BTreeMap::new(),
            numbered: 0,
            lists: Vec::new(),
            names: HashSet::default(),
            keys: Keys::random(),
            batches: 0,
            telemetry,
        })
    }

    fn fold(&mut self, batch: &Batch) {
        self.batches = self.batches.wrapping_add(1);
        for rows in batch.series() {
            self.fold_series(rows, batch);
        }
        self.expire(batch.flushed_at);
    }

    fn fold_series(&mut self, rows: &[Row], batch: &Batch) {
        let (context, now) = (&rows[0].context, batch.flushed_at);
        let hash = self.hasher.hash_one(context);
        let is_full = self.places.len() >= self.series_max;
        let shown = match self.places.find_mut(hash, |place| place.context == *context) {
            Some(place) => {
                place.last_seen = Moment::new(now);
                place.shown
            }
            None if is_full => {
                self.telemetry.page_left_out.add(rows.len() as u64);
                return;
            }
            None => self.add(context, hash, Moment::new(now)),
        };
        for row in rows {
            let at = (self.batches, Moment::new(row.time));
            let one = &mut self.series[shown as usize];
            match &row.value {
                Value::Count(sum) if *sum >= 0.0 => one.value += sum,
                Value::Count(_) => self.telemetry.page_negative_counts.add(1),
                Value::Gauge(value) => one.set(*value, at),
                Value::Set(members) => one.set(*members as f64, at),
                Value::Histogram(summary) => {
                    let (quantiles, values): (Vec<_>, Vec<_>) =
                        quantiles_of(summary, context.name(), &batch.blocklist).into_iter().unzip();
                    let list = list_of(&mut self.lists, &quantiles);
                    one.observe(summary.sum, summary.count, list, values.into_iter(), at);
                }
                Value::Distribution(sketch) => {
                    let list = list_of(&mut self.lists, &self.quantiles);
                    let values = sketch.quantiles(&self.quantiles);
                    one.observe(sketch.sum(), sketch.count() as f64, list, values, at);
                }
            }
        }
    }

    /// Gives a context its place. Returns the place in the list of series.
    fn add(&mut self, context: &Context, hash: u64, last_seen: Moment) -> u32 {
        let key: FamilyKey = (metric_name(context.name()), context.kind());
        let labels = Labels::of_series(context, &self.hostname);
        if !self.families.contains_key(&key) {
            let name = self.free_name(&key);
            self.names.extend(names_of(&name, key.1));
            self.numbered = self.numbered.wrapping_add(1);
            let family = Family { name, number: self.numbered, series: 0 };
            self.families.insert(key.clone(), family);
        }
        let family = self.families.get_mut(&key).expect("it was just found or added");
        let print = print(&self.keys, family.number, labels.as_str());
        let same = |&at: &u32| self.series[at as usize].print == print;
        let shown = match self.prints.find(print[0], same) {
            Some(&known) => known,
            None => {
                family.series += 1;
                let shown = Shown::new(print, context.kind(), family.number);
                let at = self.free.pop().unwrap_or(self.series.len() as u32);
                if at as usize == self.series.len() {
                    self.series.push(shown);
                } else {
                    self.series[at as usize] = shown;
                }
                let print_of = |&at: &u32| self.series[at as usize].print[0];
                self.prints.insert_unique(print[0], at, print_of);
                at
            }
        };
        self.series[shown as usize].places += 1;
        let place = Place { context: context.clone(), shown, last_seen };
        self.places.insert_unique(hash, place, |place| self.hasher.hash_one(&place.context));
        shown
    }

    /// The first free of `x`, `x_count`, `x_count_2`, `x_count_3`, ... (with the word of the kind):
    /// who comes first has the plain name.
    fn free_name(&self, (name, kind): &FamilyKey) -> String {
        let numbered = (2_u64..).map(|n| format!("{name}_{}_{n}", kind.word()));
        let mut names =
            [name.to_string(), format!("{name}_{}", kind.word())].into_iter().chain(numbered);
        let is_free = |name: &String| !names_of(name, *kind).any(|n| self.names.contains(&n));
        names.find(is_free).expect("there are more numbers than families")
    }

    /// Removes what has been idle for too long, and gives its names free. A series leaves with the
    /// last of the places that show as it.
    fn expire(&mut self, now: i64) {
        let horizon = Moment::new(now.saturating_sub(self.expiry_seconds.into()));
        let now = Moment::new(now);
        let mut left = HashMap::<u32, usize, RandomState>::default();
        let Self { places, series, prints, free, .. } = self;
        places.retain(|place| {
            // Seen in the future: the clock was set back, and the idle time counts from then on.
            place.last_seen = place.last_seen.min(now);
            if place.last_seen >= horizon {
                return true;
            }
            let shown = &mut series[place.shown as usize];
            shown.places -= 1;
            if shown.places == 0 {
                if let Ok(print) = prints.find_entry(shown.print[0], |&at| at == place.shown) {
                    print.remove();
                }
                shown.summary = None;
                free.push(place.shown);
                *left.entry(shown.family).or_default() += 1;
            }
            false
        });
        if left.is_empty() {
            return;
        }
        self.families.retain(|(_, kind), family| {
            family.series -= left.get(&family.number).copied().unwrap_or(0);
            if family.series == 0 {
                names_of(&family.name, *kind).for_each(|name| _ = self.names.remove(&name));
            }
            family.series > 0
        });
    }

    /// Not sorted yet.
    fn snapshot(&self) -> Snapshot {
        let mut families = Vec::with_capacity(self.families.len());
        let mut numbers = HashMap::<u32, u32, RandomState>::default();
        for ((_, kind), family) in &self.families {
            numbers.insert(family.number, families.len() as u32);
            families.push((family.name.clone(), Type::of(*kind)));
        }
        let mut written = vec![false; self.series.len()];
        let mut lines = Vec::with_capacity(self.series.len() - self.free.len());
        for place in &self.places {
            // Of those that show as one, any will do: all have its labels.
            if std::mem::replace(&mut written[place.shown as usize], true) {
                continue;
            }
            let shown = &self.series[place.shown as usize];
            lines.push(Line {
                family: numbers[&shown.family],
                context: place.context.clone(),
                value: shown.value,
                observed: shown.summary.clone(),
            });
        }
        let (hostname, quantiles) = (self.hostname.clone(), self.lists.clone());
        Snapshot { hostname, families, lines, quantiles, next: 0 }
    }
}

/// The place of a list of quantiles.
fn list_of(lists: &mut Vec<Box<[f64]>>, quantiles: &[f64]) -> u32 {
    let known = lists.iter().position(|list| **list == *quantiles);
    let at = known.unwrap_or_else(|| {
        lists.push(quantiles.into());
        lists.len() - 1
    });
    at as u32
}

fn print(keys: &Keys, family: u32, labels: &str) -> Print {
    let mut hash = Hash::new(keys);
    hash.block(family.into(), labels.len() as u64);
    hash.bytes(labels.as_bytes());
    hash.finish()
}

impl Shown {
    fn new(print: Print, kind: Kind, family: u32) -> Self {
        let summary = Type::of(kind) == Type::Summary;
        let nothing = || Box::new(Observed { count: 0.0, values: Box::default(), quantiles: 0 });
        let (summary, newest) = (summary.then(nothing), (0, Moment::NEVER));
        Self { print, family, places: 0, value: 0.0, summary, newest }
    }

    /// Of two points of one time the one that arrived last is shown.
    fn set(&mut self, value: f64, at: (u32, Moment)) {
        if self.is_newest(at) {
            (self.value, self.newest) = (value, at);
        }
    }

    /// The values are those of a list of quantiles.
    fn observe(
        &mut self,
        sum: f64,
        count: f64,
        list: u32,
        values: impl Iterator<Item = f64>,
        at: (u32, Moment),
    ) {
        self.value += sum;
        let is_newest = self.is_newest(at);
        let Some(observed) = &mut self.summary else { return };
        observed.count += count;
        if is_newest {
            (observed.values, observed.quantiles, self.newest) = (values.collect(), list, at);
        }
    }

    /// Any batch is newer than the one before.
    fn is_newest(&self, at: (u32, Moment)) -> bool {
        at.0 != self.newest.0 || at.1 >= self.newest.1
    }
}

fn names_of(family: &str, kind: Kind) -> impl Iterator<Item = String> {
    Type::of(kind).suffixes().iter().map(move |suffix| format!("{family}{suffix}"))
}

/// The percentiles and, unless it is among them, the median; without those that are blocked.
fn quantiles_of(summary: &Summary, name: &str, blocklist: &Blocklist) -> Vec<(f64, f64)> {
    let sent = |suffix| !blocklist.blocks_figure(name, suffix);
    let percentiles = summary.percentiles.iter().filter(|(p, _)| sent(Suffix::Percentile(*p)));
    let mut out: Vec<_> = percentiles.map(|(p, value)| (f64::from(*p) / 100.0, *value)).collect();
    let median = Suffix::Aggregate(Aggregate::Median);
    if !out.iter().any(|(quantile, _)| *quantile == 0.5) && sent(median) {
        out.push((0.5, summary.median));
    }
    out.sort_by(|a, b| a.0.total_cmp(&b.0));
    out.dedup_by(|a, b| a.0 == b.0);
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;
    use regex::Regex;

    use super::*;
    use crate::context::Source;
    use crate::rules;
    use crate::sketch::Sketch;

    fn page_with(change: impl FnOnce(&mut Config)) -> Page {
        let mut config = Config::default();
        change(&mut config);
        Page::new(&config, "own", Arc::default()).unwrap()
    }

    fn context(name: &str, kind: Kind, tags: &[&str]) -> Context {
        let tags = tags.iter().map(|t| (*t).to_owned()).collect();
        Context::new(name, kind, "own", tags, Source::default())
    }

    fn row(name: &str, kind: Kind, tags: &[&str], value: Value) -> Row {
        Row { context: context(name, kind, tags), time: 100, value }
    }

    fn count(name: &str, tags: &[&str], sum: f64) -> Row {
        row(name, Kind::Count, tags, Value::Count(sum))
    }

    fn gauge(name: &str, tags: &[&str], value: f64) -> Row {
        row(name, Kind::Gauge, tags, Value::Gauge(value))
    }

    fn summary() -> Summary {
        let percentiles = vec![(95, 9.0), (99, 10.0)];
        Summary { count: 4.0, sum: 20.5, min: 1.0, max: 10.0, median: 4.0, percentiles }
    }

    fn histogram(name: &str, kind: Kind, tags: &[&str]) -> Row {
        row(name, kind, tags, Value::Histogram(Box::new(summary())))
    }

    fn distribution(name: &str, tags: &[&str]) -> Row {
        let mut sketch = Sketch::new();
        [1.0, 2.0, 3.0].into_iter().for_each(|value| sketch.insert(value));
        sketch.finish();
        row(name, Kind::Distribution, tags, Value::Distribution(Box::new(sketch)))
    }

    fn batch(flushed_at: i64, rows: Vec<Row>) -> Batch {
        Batch { flushed_at, interval: 10, rows, ..Batch::default() }
    }

    fn rendered(page: &Page) -> String {
        let mut snapshot = page.snapshot();
        snapshot.sort();
        let (mut out, mut more) = (String::new(), true);
        // In pieces, as it is served.
        while more {
            let bytes = out.len() + 100;
            more = snapshot.write(&mut out, bytes);
        }
        out
    }

    fn page_of(rows: Vec<Row>) -> String {
        let mut page = page_with(|_| ());
        page.fold(&batch(110, rows));
        rendered(&page)
    }

    #[test]
    fn each_kind_has_its_type() {
        let page = page_of(vec![
            count("http.hits", &["code:200"], 3.0),
            gauge("depth", &[], -1.5),
            row("users", Kind::Set, &[], Value::Set(7)),
            histogram("size", Kind::Histogram, &["k:v"]),
            histogram("time", Kind::Timer, &[]),
        ]);
        assert_eq!(
            page,
            "\
# TYPE depth gauge
depth -1.5
# TYPE http_hits counter
http_hits{code=\"200\"} 3
# TYPE size summary
size{quantile=\"0.5\",k=\"v\"} 4
size{quantile=\"0.95\",k=\"v\"} 9
size{quantile=\"0.99\",k=\"v\"} 10
size_sum{k=\"v\"} 20.5
size_count{k=\"v\"} 4
# TYPE time summary
time{quantile=\"0.5\"} 4
time{quantile=\"0.95\"} 9
time{quantile=\"0.99\"} 10
time_sum 20.5
time_count 4
# TYPE users gauge
users 7
"
        );
    }

    #[test]
    fn a_distribution_has_the_configured_quantiles() {
        let mut page = page_with(|c| c.quantiles = vec![1.0, 0.5, 0.5, -0.0, 0.0]);
        page.fold(&batch(110, vec![distribution("d", &[])]));
        let text = rendered(&page);
        let lines: Vec<_> = text.lines().collect();
        let (name, median) = lines[2].split_once(' ').unwrap();
        assert_eq!(name, "d{quantile=\"0.5\"}");
        let median: f64 = median.parse().unwrap();
        assert!((median - 2.0).abs() < 2.0 / 64.0, "{median} is within the sketch's precision");
        let others = [&lines[..2], &lines[3..]].concat();
        let expected = [
            "# TYPE d summary",
            "d{quantile=\"0\"} 1",
            "d{quantile=\"1\"} 3",
            "d_sum 6",
            "d_count 3",
        ];
        assert_eq!(others, expected);
        for bad in [-0.1, 1.5, f64::NAN] {
            let config = Config { quantiles: vec![0.5, bad], ..Config::default() };
            assert_eq!(Page::new(&config, "", Arc::default()).unwrap_err().index, 1);
        }
    }

    #[test]
    fn counters_run_on_and_gauges_are_the_newest() {
        let mut page = page_with(|_| ());
        let at = |time, row| Row { time, ..row };
        page.fold(&batch(110, vec![count("c", &[], 2.0), gauge("g", &[], 1.0)]));
        page.fold(&batch(
            120,
            vec![
                at(50, count("c", &[], 3.0)),
                count("c", &[], -4.0),
                at(105, gauge("g", &[], 5.0)),
                at(104, gauge("g", &[], 4.0)),
                histogram("h", Kind::Histogram, &[]),
            ],
        ));
        let mut late = summary();
        late.median = 0.0;
        let late = row("h", Kind::Histogram, &[], Value::Histogram(Box::new(late)));
        page.fold(&batch(130, vec![at(99, late), histogram("h", Kind::Histogram, &[])]));
        let text = rendered(&page);
        for line in ["c 5\n", "g 5\n", "h{quantile=\"0.5\"} 4\n", "h_sum 61.5\n", "h_count 12\n"] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        assert_eq!(page.telemetry.page_negative_counts.get(), 1);
    }

    #[test]
    fn blocked_quantiles_are_not_shown() {
        let blocked = ["h.median", "h.95percentile"].map(String::from).to_vec();
        let config = rules::Config { metric_blocklist: blocked, ..rules::Config::default() };
        let blocklist = rules::Rules::new(&config, "").unwrap().blocklist();
        let mut page = page_with(|_| ());
        page.fold(&Batch { blocklist, ..batch(110, vec![histogram("h", Kind::Timer, &[])]) });
        let text = "# TYPE h summary\nh{quantile=\"0.99\"} 10\nh_sum 20.5\nh_count 4\n";
        assert_eq!(rendered(&page), text);
    }

    #[test]
    fn neither_the_future_nor_the_past_holds_a_series() {
        let mut page = page_with(|_| ());
        let at = |time, row| Row { time, ..row };
        // Milliseconds in place of seconds.
        let future = 1_700_000_000_000;
        let rows = vec![
            at(future, gauge("g", &[], 5.0)),
            at(future, histogram("h", Kind::Timer, &[])),
            at(100, gauge("g", &[], 4.0)),
        ];
        page.fold(&batch(110, rows));
        assert!(rendered(&page).contains("g 5\n"));
        let mut next = summary();
        next.median = 0.0;
        let next = row("h", Kind::Timer, &[], Value::Histogram(Box::new(next)));
        page.fold(&batch(120, vec![at(110, gauge("g", &[], 6.0)), at(110, next)]));
        let text = rendered(&page);
        assert!(text.contains("g 6\n") && text.contains("h{quantile=\"0.5\"} 0\n"), "{text}");
        // The clock is set back.
        page.fold(&batch(20, vec![at(10, gauge("g", &[], 7.0))]));
        assert!(rendered(&page).contains("g 7\n"));
    }

    #[test]
    fn a_clock_set_back_leaves_no_place_without_its_series() {
        let mut page = page_with(|_| ());
        page.fold(&batch(10_000, vec![gauge("a.b", &[], 1.0)]));
        page.fold(&batch(1000, vec![gauge("a_b", &[], 2.0)]));
        page.fold(&batch(1400, vec![]));
        assert_eq!((rendered(&page).as_str(), page.places.len()), ("", 0));
        page.fold(&batch(1410, vec![gauge("a.b", &[], 3.0)]));
        assert_eq!(rendered(&page), "# TYPE a_b gauge\na_b 3\n");
    }

    #[test]
    fn clashes_are_resolved() {
        for (rows, want) in [
            (vec![count("a.b", &[], 1.0), count("a_b", &["k:"], 2.0)], &["a_b 3"][..]),
            (
                vec![gauge("a.b", &["x.y:1"], 1.0), gauge("a b", &["x y:1"], 2.0)],
                &["a_b{x_y=\"1\"} 2"],
            ),
            (
                vec![gauge("x", &[], 1.0), count("x", &[], 2.0), gauge("x_count", &[], 3.0)],
                &["x 1", "x_count 2", "x_count_gauge 3"],
            ),
            (
                vec![gauge("x_sum", &[], 1.0), histogram("x", Kind::Timer, &[])],
                &["x_sum 1", "x_timer_sum 20.5"],
            ),
            (
                vec![histogram("x", Kind::Timer, &[]), gauge("x_sum", &[], 1.0)],
                &["x_sum 20.5", "x_sum_gauge 1"],
            ),
            (
                vec![
                    gauge("x", &[], 1.0),
                    gauge("x_count", &[], 2.0),
                    gauge("x_count_2", &[], 3.0),
                    count("x", &[], 4.0),
                ],
                &["x_count 2", "x_count_2 3", "x_count_3 4"],
            ),
            (
                vec![histogram("x", Kind::Histogram, &[]), distribution("x", &[])],
                &["x_sum 20.5", "x_distribution_count 3"],
            ),
            (vec![count("tallyd.reads", &[], 1.0)], &["user_tallyd_reads 1"]),
            (vec![histogram("tallyd", Kind::Timer, &[])], &["user_tallyd_sum 20.5"]),
        ] {
            let page = page_of(rows);
            check(&page).unwrap();
            for line in want {
                assert!(page.lines().any(|l| l == *line), "{line} is missing in {page}");
            }
        }
    }

    #[test]
    fn idle_series_leave_and_free_their_names() {
        let mut page = page_with(|c| c.expiry_seconds = 20);
        let y = || gauge("y", &[], 1.0);
        page.fold(&batch(110, vec![gauge("x", &[], 1.0), y()]));
        page.fold(&batch(130, vec![y()]));
        assert_eq!(rendered(&page), "# TYPE x gauge\nx 1\n# TYPE y gauge\ny 1\n");
        page.fold(&batch(131, vec![]));
        assert_eq!(rendered(&page), "# TYPE y gauge\ny 1\n");
        page.fold(&batch(140, vec![count("x", &[], 2.0), y()]));
        assert_eq!(rendered(&page), "# TYPE x counter\nx 2\n# TYPE y gauge\ny 1\n");
        page.fold(&batch(1000, vec![]));
        assert_eq!(rendered(&page), "");
        assert!(page.places.is_empty() && page.prints.is_empty() && page.names.is_empty());
        page.fold(&batch(1010, vec![y(), gauge("z", &[], 1.0)]));
        assert_eq!(rendered(&page), "# TYPE y gauge\ny 1\n# TYPE z gauge\nz 1\n");
        assert_eq!(page.series.len(), 2, "places are used again");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut page = page_with(|c| c.series_max = 2);
        let rows = || vec![gauge("a", &[], 1.0), gauge("a", &["k:"], 2.0), gauge("b", &[], 3.0)];
        page.fold(&batch(110, rows()));
        page.fold(&batch(120, rows()));
        assert_eq!(rendered(&page), "# TYPE a gauge\na 2\n");
        assert_eq!(page.telemetry.page_left_out.get(), 2);
    }

    #[tokio::test]
    async fn the_sink_folds_what_it_encodes() {
        let telemetry = Arc::new(Telemetry::default());
        let sink = Prometheus::new(&Config::default(), "own", Arc::clone(&telemetry)).unwrap();
        let batch = Arc::new(batch(110, vec![count("c", &[], 2.0), count("n", &[], -1.0)]));
        for _ in 0..2 {
            let encoded = sink.encode(&batch);
            assert_eq!((encoded.payloads.len(), encoded.payloads[0].points), (1, 2));
            assert_eq!(sink.send(0, &encoded.payloads[0]).await, Verdict::Delivered);
        }
        assert_eq!(sink.page(), "# TYPE c counter\nc 4\n# TYPE n counter\nn 0\n");
        assert_eq!((telemetry.page_left_out.get(), telemetry.page_negative_counts.get()), (0, 2));
    }

    fn nasty_rows() -> Vec<Row> {
        let tags = [
            "host:x",
            "quantile:0.5",
            "__name__:y",
            "__x__",
            "le:1",
            "9",
            "é:ü",
            "k:a\"b\\c",
            "k:\u{1b}[2J",
            "k:\0\r\t",
            "k:😀",
            "empty:",
            ":v",
            "",
            "a.b:1",
            "a_b:2",
            "n:\\n",
            "#:#",
            "{}:{}",
            "k=\"v\"",
            "job:j",
            "instance:i",
        ];
        let names = [
            "x",
            "x_sum",
            "x.count",
            "x_count_2",
            "",
            "9é",
            "tallyd",
            "tallyd.x",
            "__x",
            "a:b",
            "{",
            "#",
        ];
        let mut rows = Vec::new();
        for name in names {
            for value in [0.5, f64::MAX, f64::MIN_POSITIVE, -0.0, f64::INFINITY] {
                rows.push(gauge(name, &tags, value));
                rows.push(count(name, &[], value));
            }
            rows.push(histogram(name, Kind::Timer, &tags));
            rows.push(histogram(name, Kind::Histogram, &[]));
            rows.push(distribution(name, &tags));
            rows.push(row(name, Kind::Set, &["quantile:1"], Value::Set(u64::MAX)));
        }
        rows
    }

    /// Exit code 3 is advice on names, which are the user's.
    #[test]
    fn promtool_reads_a_nasty_page() {
        let page = page_of(nasty_rows());
        check(&page).unwrap();
        let promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut promtool) = promtool else {
            println!("SKIP promtool: not installed");
            return;
        };
        promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{said}{page}");
        assert!(!said.contains("error while linting"), "{said}{page}");
    }

    fn any_row() -> impl Strategy<Value = Row> {
        let name = prop_oneof![
            "[ab._:9é]{0,3}",
            "(x|tallyd)(_sum|_count|.count_2|_gauge|_timer|_distribution)?",
        ];
        let tag = r#"(quantile|__name__|host|a[._]b|9|)(:([xy"\\ ,=}é]{0,3})?)?"#;
        let tags = proptest::collection::vec(tag, 0..4);
        let host = prop_oneof![Just("own"), Just(""), Just("other")];
        let kind = proptest::sample::select(Kind::ALL.to_vec());
        (name, tags, host, kind, 0..9_u8, 90..110_i64).prop_map(
            |(name, tags, host, kind, number, time)| {
                let value = match kind {
                    Kind::Count => Value::Count(number.into()),
                    Kind::Gauge => Value::Gauge(number.into()),
                    Kind::Set => Value::Set(number.into()),
                    Kind::Timer | Kind::Histogram => Value::Histogram(Box::new(summary())),
                    Kind::Distribution => Value::Distribution(Box::<Sketch>::default()),
                };
                let context = Context::new(&name, kind, host, tags, Source::default());
                Row { context, time, value }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn no_series_breaks_the_page(
            rows in proptest::collection::vec(any_row(), 0..40),
            flushes in 1..4_usize,
        ) {
            let mut page = page_with(|c| c.expiry_seconds = 10);
            let size = rows.len() / flushes + 1;
            for (i, rows) in rows.chunks(size).enumerate() {
                page.fold(&batch(110 + 5 * i as i64, rows.to_vec()));
                let text = rendered(&page);
                if let Err(e) = check(&text) {
                    prop_assert!(false, "{e} in\n{text}");
                }
            }
            if flushes == 1 {
                let counted = |kind: fn(&Value) -> f64| rows.iter().map(|r| kind(&r.value)).sum::<f64>();
                let counts = counted(|v| if let Value::Count(n) = v { *n } else { 0.0 });
                let observed = counted(|v| if let Value::Histogram(s) = v { s.count } else { 0.0 });
                let totals = check(&rendered(&page)).unwrap();
                prop_assert_eq!(totals, Totals { counters: counts, summaries: observed });
            }
        }
    }

    #[test]
    fn the_check_finds_what_is_wrong() {
        let page = "# TYPE a summary\na{quantile=\"0.5\"} 1\na_sum 2\na_count 3\n";
        assert_eq!(check(page), Ok(Totals { counters: 0.0, summaries: 3.0 }));
        for bad in [
            "a 1\n",
            "# TYPE a gauge\na 1",
            "# TYPE a gauge\na 1\na 2\n",
            "# TYPE a gauge\na 1\n# TYPE a gauge\n",
            "# TYPE a gauge\n# TYPE b gauge\na 1\n",
            "# TYPE a summary\na 1\n",
            "# TYPE a summary\na_count 1\n# TYPE a_count gauge\na_count{b=\"c\"} 1\n",
            "# TYPE a gauge\na{b=\"c} 1\n",
            "# TYPE a gauge\na{b=\"c\",b=\"d\"} 1\n",
            "# TYPE a gauge\na{b=\"\\t\"} 1\n",
            "# TYPE a gauge\n9a 1\n",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[derive(Debug, Default, PartialEq)]
    struct Totals {
        counters: f64,
        summaries: f64,
    }

    /// Reads a page by the letter of the format, and adds up what it says.
    fn check(page: &str) -> Result<Totals, String> {
        let sample = Regex::new(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$").unwrap();
        let label =
            Regex::new(r#"^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\"n])*)"(,|$)"#).unwrap();
        let (mut families, mut owners, mut seen) = (HashSet::new(), HashMap::new(), HashSet::new());
        let mut family = None;
        let mut totals = Totals::default();
        if !page.is_empty() && !page.ends_with('\n') {
            return Err("the last line is not ended".to_owned());
        }
        for line in page.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, word) = declared.split_once(' ').ok_or("no type")?;
                if !["counter", "gauge", "summary"].contains(&word) || !families.insert(name) {
                    return Err(format!("bad or repeated family: {line}"));
                }
                family = Some((name, word));
                continue;
            }
            let parts = sample.captures(line).ok_or_else(|| format!("not a sample: {line}"))?;
            let (owner, word) = family.ok_or("a sample before any TYPE")?;
            let suffix =
                parts[1].strip_prefix(owner).ok_or_else(|| format!("not of {owner}: {line}"))?;
            if !matches!((word, suffix), (_, "") | ("summary", "_sum" | "_count")) {
                return Err(format!("not of {owner}: {line}"));
            }
            if *owners.entry(parts[1].to_owned()).or_insert(owner) != owner {
                return Err(format!("a name of two families: {line}"));
            }
            let mut labels = BTreeMap::new();
            let mut rest = parts.get(2).map_or("", |l| l.as_str());
            while !rest.is_empty() {
                let pair = label.captures(rest).ok_or_else(|| format!("bad labels: {line}"))?;
                let is_new = labels.insert(pair[1].to_owned(), pair[2].to_owned()).is_none();
                if !is_new || pair[1].starts_with("__") || pair[2].is_empty() {
                    return Err(format!("repeated, reserved or empty label: {line}"));
                }
                rest = &rest[pair[0].len()..];
            }
            if word == "summary" && (suffix.is_empty() != labels.contains_key("quantile")) {
                return Err(format!("quantile missing or out of place: {line}"));
            }
            if !seen.insert((parts[1].to_owned(), labels)) {
                return Err(format!("twice: {line}"));
            }
            let value: f64 = parts[3].parse().map_err(|_| format!("no number: {line}"))?;
            match (word, suffix) {
                ("counter", _) => totals.counters += value,
                (_, "_count") => totals.summaries += value,
                _ => {}
            }
        }
        Ok(totals)
    }
}
