//! The loss ledger: what was read and what became of it, so that no point goes missing unseen.
//!
//! Two equations hold at any moment when nothing is under way, and to within what is under way
//! otherwise:
//!
//! - lines read = samples + events + checks + rejects, for each listener;
//! - the same lines, bytes and rejects by sender: their sums over all senders are those over all
//!   listeners;
//! - points offered and found = delivered + spooled + held + dropped, for each endpoint of a sink.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use schemars::JsonSchema;
use serde::Serialize;

use crate::sample::Reject;
use crate::telemetry::senders::{Account, Who};
use crate::telemetry::{self, Telemetry};
use crate::time::Time;

/// Senders of losses that a line of the log names.
const LOSERS: usize = 3;

/// Everything at one moment. Counts are totals since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Ledger {
    /// Milliseconds since the Unix epoch.
    pub time: i64,
    pub listeners: Vec<Listener>,
    /// Those with the most losses first, then those with the most lines.
    pub senders: Vec<Sender>,
    pub aggregate: Aggregate,
    /// What clients report of themselves, by metric: `datadog.dogstatsd.client.*`.
    pub clients: BTreeMap<String, f64>,
    pub sinks: Vec<Sink>,
    /// What was lost in other places, by cause; those at zero are left out.
    pub elsewhere: BTreeMap<String, u64>,
}

/// What one listener read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Listener {
    pub name: String,
    pub datagrams: u64,
    pub bytes: u64,
    /// Datagrams that the kernel dropped because the socket's buffer was full.
    pub kernel_drops: u64,
    /// Datagrams cut at `intake.buffer_size`.
    pub truncated: u64,
    pub read_errors: u64,
    pub lines: u64,
    pub samples: u64,
    pub events: u64,
    pub checks: u64,
    /// By reason; those at zero are left out.
    pub rejects: BTreeMap<&'static str, Rejected>,
    /// Lines without an outcome: zero, but for what is under way.
    pub difference: i64,
}

/// Lines refused for one reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Rejected {
    pub lines: u64,
    /// The beginning of a recent one, escaped.
    pub excerpt: String,
    /// Who sent this one.
    pub sender: String,
    /// When it came, in Unix seconds.
    pub at: i64,
}

/// What one sender sent and lost. What the kernel drops at a full socket has no sender.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Sender {
    /// For people: of two senders the same only if a container took the name of another.
    pub sender: String,
    /// `container`, `process`, `address`, `listener` (the kernel does not say more), `others`.
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Unix seconds at which something last came.
    pub last: i64,
    pub datagrams: u64,
    pub bytes: u64,
    pub lines: u64,
    /// Series held now that it was the first to send.
    pub series: u64,
    pub truncated: u64,
    /// Lines refused, by reason; those at zero are left out.
    pub rejects: BTreeMap<&'static str, u64>,
    /// Lines and values dropped or folded together, by cause; those at zero are left out.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// What became of samples, events and checks before they were points.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Aggregate {
    /// Series held now.
    pub contexts: u64,
    /// Lines folded into `tallyd.overflow`.
    pub overflow: u64,
    /// Samples dropped by `rules.metric_blocklist`.
    pub blocked: u64,
    /// Values that were NaN or infinite.
    pub non_finite: u64,
    pub timed_dropped: u64,
    pub events_dropped: u64,
    /// Points handed to the sinks.
    pub points: u64,
}

/// What one endpoint of a sink did with its points.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Sink {
    pub sink: &'static str,
    pub endpoint: String,
    pub offered: u64,
    /// Left on disk by an earlier process.
    pub found: u64,
    pub delivered: u64,
    /// In memory now.
    pub held: u64,
    /// On disk now.
    pub spooled: u64,
    pub spooled_bytes: u64,
    pub spooled_payloads: u64,
    /// Seconds since the flush of the oldest of them, to the minute.
    pub spooled_age: u64,
    /// Payloads sent again, and their points, each time that they were.
    pub retries: u64,
    pub retried: u64,
    /// By cause; those at zero are left out.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Points without an outcome: zero, but for what is under way.
    pub difference: i64,
}

impl Ledger {
    pub fn of(telemetry: &Telemetry, now: Time) -> Self {
        Self {
            time: now.0,
            listeners: telemetry.listeners().iter().map(|l| Listener::of(l)).collect(),
            senders: Sender::all(telemetry),
            aggregate: Aggregate {
                contexts: telemetry.contexts.load(Relaxed),
                overflow: telemetry.overflow.get(),
                blocked: telemetry.blocked.get(),
                non_finite: telemetry.non_finite.get(),
                timed_dropped: telemetry.timed_dropped.get(),
                events_dropped: telemetry.events_dropped.get(),
                points: telemetry.points.get(),
            },
            clients: telemetry.clients(),
            sinks: telemetry.endpoints().iter().map(|e| Sink::of(e, now)).collect(),
            elsewhere: elsewhere(telemetry),
        }
    }

    /// What happened since an earlier ledger, in one line. Figures at zero are left out; `None`
    /// when all are.
    pub fn since(&self, before: &Self) -> Option<String> {
        let mut figures = Vec::new();
        let mut lost = Vec::new();
        let total = |ledger: &Self, f: fn(&Listener) -> u64| ledger.listeners.iter().map(f).sum();
        let grown = |f: fn(&Listener) -> u64| -> u64 {
            u64::saturating_sub(total(self, f), total(before, f))
        };
        let mut tell = |figure: u64, word: &str| {
            if figure > 0 {
                figures.push(format!("{figure} {word}"));
            }
        };
        tell(grown(|l| l.datagrams), "datagrams");
        tell(grown(|l| l.lines), "lines");
        tell(grown(|l| l.samples), "samples");
        tell(grown(|l| l.events), "events");
        tell(grown(|l| l.checks), "checks");
        tell(self.aggregate.points.saturating_sub(before.aggregate.points), "points");
        let mut parts = Vec::new();
        if !figures.is_empty() {
            parts.push(figures.join(", "));
        }
        for sink in &self.sinks {
            parts.extend(self.told(sink, before));
        }
        let then = before.losses();
        for (cause, count) in self.losses() {
            let count = count.saturating_sub(then.get(&cause).copied().unwrap_or(0));
            if count > 0 {
                lost.push(format!("{count} {cause}"));
            }
        }
        if !lost.is_empty() {
            parts.push(format!("lost: {}{}", lost.join(", "), self.losers_since(before)));
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// What a sink did since then, and what waits for it now; `None` when that is nothing.
    fn told(&self, sink: &Sink, before: &Self) -> Option<String> {
        let same = |other: &&Sink| (other.sink, &other.endpoint) == (sink.sink, &sink.endpoint);
        let then = before.sinks.iter().find(same);
        let grown = |f: fn(&Sink) -> u64| f(sink).saturating_sub(then.map_or(0, f));
        let figures = [
            (grown(|s| s.found), "found"),
            (grown(|s| s.delivered), "delivered"),
            (grown(|s| s.retried), "retried"),
            (sink.held, "held"),
            (sink.spooled, "spooled"),
        ];
        let figures: Vec<_> = figures
            .into_iter()
            .filter(|(points, _)| *points > 0)
            .map(|(points, word)| format!("{points} {word}"))
            .collect();
        let alone = self.sinks.iter().filter(|other| other.sink == sink.sink).count() == 1;
        let place = if alone { String::new() } else { format!(" {}", sink.endpoint) };
        (!figures.is_empty()).then(|| format!("{}{place}: {}", sink.sink, figures.join(", ")))
    }

    /// Whose most of the new losses are, as far as they have a sender.
    fn losers_since(&self, before: &Self) -> String {
        let mut then = BTreeMap::<_, u64>::new();
        for sender in &before.senders {
            *then.entry(&*sender.sender).or_default() += sender.lost();
        }
        let mut losers = BTreeMap::<_, u64>::new();
        for sender in self.senders.iter().filter(|sender| sender.lost() > 0) {
            *losers.entry(&*sender.sender).or_default() += sender.lost();
        }
        let grown = |(who, lost): (_, u64)| {
            (lost.saturating_sub(then.get(who).copied().unwrap_or_default()), who)
        };
        let mut losers: Vec<_> =
            losers.into_iter().map(grown).filter(|(new, _)| *new > 0).collect();
        losers.sort_unstable_by_key(|(new, who)| (std::cmp::Reverse(*new), *who));
        let named: Vec<_> =
            losers.iter().take(LOSERS).map(|(new, who)| format!("{new} of {who}")).collect();
        if named.is_empty() { String::new() } else { format!("; most: {}", named.join(", ")) }
    }

    /// Everything that was lost so far, by cause and place.
    pub fn losses(&self) -> BTreeMap<String, u64> {
        let mut losses = BTreeMap::new();
        let mut lose = |cause: String, count: u64| {
            if count > 0 {
                *losses.entry(cause).or_default() += count;
            }
        };
        for listener in &self.listeners {
            let name = &listener.name;
            lose(format!("datagrams dropped by the kernel at {name}"), listener.kernel_drops);
            for (reason, rejected) in &listener.rejects {
                lose(format!("lines refused at {name} ({reason})"), rejected.lines);
            }
        }
        lose("values not finite".to_owned(), self.aggregate.non_finite);
        lose("lines folded into tallyd.overflow".to_owned(), self.aggregate.overflow);
        lose("timestamped points over the limit".to_owned(), self.aggregate.timed_dropped);
        lose("events and checks over the limit".to_owned(), self.aggregate.events_dropped);
        for sink in &self.sinks {
            for (cause, points) in &sink.dropped {
                lose(format!("points dropped by {} ({cause})", sink.sink), *points);
            }
        }
        for (cause, count) in &self.elsewhere {
            lose(cause.clone(), *count);
        }
        losses
    }
}

/// What is lost neither at a listener, nor in the aggregate, nor by a sink.
fn elsewhere(telemetry: &Telemetry) -> BTreeMap<String, u64> {
    let journal = &telemetry.journal;
    let mut lost = BTreeMap::from([
        ("journal files that end within a record".to_owned(), journal.torn.get()),
        ("journal files set aside".to_owned(), journal.set_aside.get()),
        ("engine events over the limit".to_owned(), telemetry.docker_events_dropped.get()),
    ]);
    for collector in telemetry.collectors() {
        let cause = format!("samples or entities over the limits of collector {}", collector.name);
        lost.insert(cause, collector.left_out.get());
    }
    lost.retain(|_, count| *count > 0);
    lost
}

impl Listener {
    fn of(listener: &telemetry::Listener) -> Self {
        // Outcomes are read before lines: what comes in meanwhile shows as not done yet.
        let (samples, events, checks) =
            (listener.samples.get(), listener.events.get(), listener.checks.get());
        let rejects = Reject::ALL.into_iter().filter_map(|reason| {
            let lines = listener.rejects.of(reason).get();
            let last = listener.rejects.last(reason);
            let (at, excerpt, sender) =
                last.map_or_else(Default::default, |l| (l.at.seconds(), l.excerpt, l.sender));
            (lines > 0).then(|| (reason.word(), Rejected { lines, excerpt, sender, at }))
        });
        let rejects: BTreeMap<_, _> = rejects.collect();
        let outcomes = samples + events + checks + rejects.values().map(|r| r.lines).sum::<u64>();
        let lines = listener.lines.get();
        Self {
            name: listener.name.clone(),
            datagrams: listener.datagrams.get(),
            bytes: listener.bytes.get(),
            kernel_drops: listener.kernel_drops.get(),
            truncated: listener.truncated.get(),
            read_errors: listener.read_errors.get(),
            lines,
            samples,
            events,
            checks,
            rejects,
            difference: lines as i64 - outcomes as i64,
        }
    }
}

impl Sender {
    fn all(telemetry: &Telemetry) -> Vec<Self> {
        let accounts = telemetry.senders.all();
        let mut all: Vec<_> = accounts.iter().map(|account| Self::of(account, telemetry)).collect();
        // There are no others as a rule, and collectors may be off.
        all.retain(|one| one.lines + one.series + one.datagrams > 0);
        all.sort_by_cached_key(|one| {
            let most = |figure: u64| std::cmp::Reverse(figure);
            (most(one.lost()), most(one.lines), most(one.series), one.sender.clone())
        });
        all
    }

    fn of(account: &Account, telemetry: &Telemetry) -> Self {
        let rejects = account.rejects().filter(|(_, lines)| *lines > 0);
        let dropped = account.dropped().filter(|(_, lines)| *lines > 0);
        let mut sender = Self {
            sender: account.label(),
            last: account.used(),
            rejects: rejects.map(|(reason, lines)| (reason.word(), lines)).collect(),
            dropped: dropped.map(|(cause, lines)| (cause.word(), lines)).collect(),
            truncated: account.truncated.get(),
            datagrams: account.datagrams.get(),
            bytes: account.bytes.get(),
            lines: account.lines.get(),
            series: telemetry.senders.series_of(account.number),
            ..Self::default()
        };
        match &account.who {
            Who::Others => sender.kind = "others",
            Who::Container(id) => {
                sender.kind = "container";
                sender.container_id = Some(id.to_string());
            }
            Who::Process { pid, uid } => {
                sender.kind = "process";
                (sender.pid, sender.uid) = (Some(*pid), Some(*uid));
            }
            Who::Address(_) => sender.kind = "address",
            Who::Listener(_) => sender.kind = "listener",
        }
        sender
    }

    /// Lines and values that were refused, dropped or folded together.
    pub fn lost(&self) -> u64 {
        self.rejects.values().chain(self.dropped.values()).sum()
    }
}

impl Sink {
    fn of(endpoint: &telemetry::Endpoint, now: Time) -> Self {
        let dropped: BTreeMap<_, _> =
            endpoint.drops().into_iter().filter(|(_, points)| *points > 0).collect();
        let (delivered, held) = (endpoint.delivered.get(), endpoint.held.load(Relaxed));
        let spooled = endpoint.spooled.points.load(Relaxed);
        let (offered, found) = (endpoint.offered.get(), endpoint.found.get());
        let outcomes = delivered + held + spooled + dropped.values().sum::<u64>();
        Self {
            sink: endpoint.sink,
            endpoint: endpoint.name.clone(),
            offered,
            found,
            delivered,
            held,
            spooled,
            spooled_bytes: endpoint.spooled.bytes.load(Relaxed),
            spooled_payloads: endpoint.spooled.payloads.load(Relaxed),
            spooled_age: endpoint.spooled.age(now),
            retries: endpoint.retries.get(),
            retried: endpoint.retried.get(),
            dropped,
            difference: (offered + found) as i64 - outcomes as i64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::senders::{Drop, Tally};

    fn telemetry() -> Telemetry {
        let telemetry = Telemetry::default();
        let listener = telemetry.listener("udp://x".to_owned());
        listener.datagrams.add(2);
        listener.lines.add(7);
        listener.samples.add(4);
        listener.events.add(1);
        for line in [&b"a:1|q\x01"[..], b"a:2|q"] {
            let sender = || "pid 7".to_owned();
            listener.rejects.add(Reject::Type, line, Time::from_seconds(5), sender);
        }
        let endpoint = telemetry.endpoint("datadog", "https://y".to_owned());
        endpoint.offered.add(10);
        endpoint.found.add(3);
        endpoint.delivered.add(6);
        endpoint.held.store(2, Relaxed);
        endpoint.retried.add(5);
        endpoint.spooled.points.store(1, Relaxed);
        endpoint.queue_full.add(4);
        telemetry
    }

    #[test]
    fn both_equations_hold_and_a_difference_shows() {
        let telemetry = telemetry();
        let ledger = Ledger::of(&telemetry, Time(0));
        assert_eq!((ledger.listeners[0].difference, ledger.sinks[0].difference), (0, 0));
        let rejected = &ledger.listeners[0].rejects["type"];
        assert_eq!((rejected.lines, rejected.at), (2, 5));
        assert_eq!(rejected.excerpt, "a:1|q\\x01", "the first of a second is kept");
        assert_eq!(rejected.sender, "pid 7");
        telemetry.listeners()[0].lines.add(2);
        telemetry.endpoints()[0].delivered.add(5);
        let ledger = Ledger::of(&telemetry, Time(0));
        assert_eq!((ledger.listeners[0].difference, ledger.sinks[0].difference), (2, -5));
    }

    #[test]
    fn a_minute_is_one_line_without_zeros() {
        let telemetry = telemetry();
        let before = Ledger::of(&telemetry, Time(0));
        assert_eq!(
            before.since(&Ledger::default()).unwrap(),
            "2 datagrams, 7 lines, 4 samples, 1 events; datadog: 3 found, 6 delivered, 5 retried, \
             2 held, 1 spooled; lost: 2 lines refused at udp://x (type), 4 points dropped by datadog (queue_full)"
        );
        telemetry.endpoints()[0].held.store(0, Relaxed);
        telemetry.endpoints()[0].spooled.points.store(0, Relaxed);
        let ledger = Ledger::of(&telemetry, Time(60_000));
        assert_eq!(ledger.since(&before), None);
        telemetry.listeners()[0].kernel_drops.add(9);
        let line = Ledger::of(&telemetry, Time(60_000)).since(&before).unwrap();
        assert_eq!(line, "lost: 9 datagrams dropped by the kernel at udp://x");
        // Endpoints of one sink are told apart.
        telemetry.endpoint("datadog", "https://z".to_owned()).delivered.add(8);
        telemetry.collector("docker").left_out.add(3);
        let before = Ledger { listeners: ledger.listeners, ..before };
        telemetry.listeners()[0].lines.add(1);
        let line = Ledger::of(&telemetry, Time(60_000)).since(&before).unwrap();
        assert_eq!(
            line,
            "1 lines; datadog https://z: 8 delivered; lost: 9 datagrams dropped by the kernel at \
             udp://x, 3 samples or entities over the limits of collector docker"
        );
    }

    #[test]
    fn senders_come_with_the_most_losses_first_and_a_line_names_whose_they_are() {
        let telemetry = Telemetry::default();
        let account =
            |pid| telemetry.senders.account(Who::Process { pid, uid: 0 }, Time(0), || None);
        let send = |pid, lines, bad, folded| {
            let mut tally = Tally::default();
            tally.lines = lines;
            (0..bad).for_each(|_| tally.reject(Reject::Type));
            tally.drop(Drop::Series, folded);
            account(pid).settle(&mut tally, Time::from_seconds(9));
        };
        for (pid, lines, bad, folded) in [(1, 10, 0, 0), (2, 5, 1, 0), (3, 7, 0, 3), (4, 20, 0, 0)]
        {
            send(pid, lines, bad, folded);
        }
        telemetry.senders.begin_series(account(4).number);
        telemetry.overflow.add(3);
        let before = Ledger::of(&telemetry, Time(0));
        let order: Vec<_> = before.senders.iter().filter_map(|sender| sender.pid).collect();
        assert_eq!(order, [3, 2, 4, 1]);
        let Sender { series, lines, last, .. } = before.senders[2];
        assert_eq!((series, lines, last), (1, 20, 9));
        assert_eq!(before.senders[0].dropped, BTreeMap::from([("series_limit", 3)]));
        assert_eq!(before.senders[1].rejects, BTreeMap::from([("type", 1)]));
        send(1, 4, 4, 0);
        telemetry.overflow.add(4);
        assert_eq!(
            Ledger::of(&telemetry, Time(0)).since(&before).unwrap(),
            "lost: 4 lines folded into tallyd.overflow; most: 4 of pid 1 uid 0"
        );
    }
}
