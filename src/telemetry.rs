//! tallyd's own counters: what came in, what was refused, what was lost and why.
//!
//! There is one [`Telemetry`] per process, made at the start and handed to whoever counts. A
//! counter is a relaxed atomic; readers add to it once per batch of datagrams, not per line.

pub mod latency;
pub mod recorder;
pub mod senders;
pub mod tap;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sample::Reject;
use crate::time::Time;
use latency::Latency;
use senders::{Account, Senders};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        if n > 0 {
            self.0.fetch_add(n, Relaxed);
        }
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How tallyd shows its own counters besides `/metrics` and `/api/ledger`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Flush the counters as series `tallyd.*` beside the users' own; those at zero are left out.
    pub series: bool,
    /// Flush them under the Agent's names too, such as datadog.agent.dogstatsd.processed.
    pub agent_series: bool,
    /// Show what each sender sent and lost on `/metrics` and as such series too: up to 4096 senders
    /// with a figure for each cause. It always stands on `/api/ledger`, the page and `tallyd top`.
    pub senders: bool,
    /// Write what was read, delivered and lost as one line into the log each minute; one in which
    /// nothing happened gives none.
    pub log: bool,
    /// Seconds from one such line to the next.
    pub log_period: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { series: true, agent_series: false, senders: false, log: true, log_period: 60 }
    }
}

/// Everything tallyd counts of itself.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// What clients say of themselves: the sums of `datadog.dogstatsd.client.*`, by name.
    clients: Mutex<BTreeMap<String, f64>>,
    /// Whole datagrams, for whoever captures them.
    pub recorder: recorder::Recorder,
    /// A look at the traffic.
    pub tap: tap::Tap,
    /// What each sender sent and lost.
    pub senders: Senders,
    /// They are shown on `/metrics` and as series.
    pub senders_shown: AtomicBool,
    listeners: RwLock<Vec<Arc<Listener>>>,
    endpoints: RwLock<Vec<Arc<Endpoint>>>,
    collectors: RwLock<Vec<Arc<CollectorFigures>>>,
    /// Number of series held now.
    pub contexts: AtomicU64,
    /// Series that may be held.
    pub contexts_max: AtomicU64,
    /// Lines folded into the overflow series because `shard.contexts_max` was reached.
    pub overflow: Counter,
    /// Samples dropped by `rules.metric_blocklist`.
    pub blocked: Counter,
    /// Values that were NaN or infinite.
    pub non_finite: Counter,
    /// Samples whose rate was outside (0, 1] and counted as 1.
    pub rate_out_of_range: Counter,
    /// New spellings of series that were not UTF-8.
    pub invalid_utf8: Counter,
    /// Sets that became coarse because of `value.set_bytes_max`.
    pub coarse_sets: Counter,
    /// Optional fields of events and service checks that were malformed and left out.
    pub fields_ignored: Counter,
    /// Timestamped points beyond `shard.timed_points_max`.
    pub timed_dropped: Counter,
    /// Events and service checks beyond `shard.events_max`.
    pub events_dropped: Counter,
    /// Calls of a container engine that failed for the engine as a whole.
    pub docker_engine_errors: Counter,
    /// Questions to the kubelet or the metadata endpoint of ECS that failed.
    pub orchestrator_errors: Counter,
    /// Events of an engine that could not be read.
    pub docker_events_unread: Counter,
    /// Times that events of an engine were missed.
    pub docker_event_gaps: Counter,
    /// Events of an engine beyond those that wait for a run.
    pub docker_events_dropped: Counter,
    /// Containers beyond `collectors.docker.containers_max`, in the list of last.
    pub docker_containers_left_out: AtomicU64,
    /// Senders remembered now.
    pub origin_senders: AtomicU64,
    /// Datagrams and lines that waited until the tags of their sender were known.
    pub origin_waited: Counter,
    /// Datagrams and lines that went without the tags of a new sender.
    pub origin_untagged: Counter,
    /// Questions for senders beyond those remembered.
    pub origin_senders_refused: Counter,
    /// Datagrams of processes in another pid namespace.
    pub origin_foreign: Counter,
    /// Containers for which the directory of origins had no room.
    pub origin_containers_refused: Counter,
    /// Points of series for which the Prometheus page had no room.
    pub page_left_out: Counter,
    /// Points of counts below zero, which no counter of that page can take.
    pub page_negative_counts: Counter,
    /// Names that the system could not resolve.
    pub dns_failures: Counter,
    /// Of those, the ones that the fallback resolvers answered.
    pub dns_fallbacks: Counter,
    /// Flushes so far.
    pub flushes: Counter,
    /// Points that flushes handed to the sinks.
    pub points: Counter,
    /// Samples of the process's own CPU time, and those there was no room for.
    pub profile_samples: Counter,
    pub profile_lost: Counter,
    /// Microseconds that the last flush took.
    pub flush_micros: AtomicU64,
    /// How long flushes take, and the part of each shard in them.
    pub flush: Latency,
    pub flush_shard: Latency,
    pub journal: Journal,
    /// When a reject of each reason was last logged, in Unix seconds.
    logged: [AtomicI64; Reject::ALL.len()],
}

/// What one listener took in. Aligned, so that the threads of two listeners share no cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Listener {
    /// Its address, such as `udp://127.0.0.1:8125`.
    pub name: String,
    pub datagrams: Counter,
    pub bytes: Counter,
    /// Datagrams longer than the buffer.
    pub truncated: Counter,
    /// Datagrams that the kernel dropped because the socket's buffer was full.
    pub kernel_drops: Counter,
    pub read_errors: Counter,
    pub connections: Counter,
    /// Of those, the ones that are over.
    pub connections_closed: Counter,
    /// Connections closed because there were too many, or because their framing broke.
    pub connections_refused: Counter,
    /// Lines read. What of dialect `statsd` has several values under one name counts as several.
    pub lines: Counter,
    /// Metric lines understood.
    pub samples: Counter,
    pub events: Counter,
    pub checks: Counter,
    /// Raw copies that could not be forwarded.
    pub forward_errors: Counter,
    pub rejects: Rejects,
    /// How long it takes to read datagrams and add their values.
    pub batch: Latency,
}

/// Longest part of a refused line that is shown.
const EXCERPT: usize = 120;
/// What the journal did.
#[derive(Debug, Default)]
pub struct Journal {
    /// Bytes appended.
    pub bytes: Counter,
    /// Datagrams that could not be appended, and their bytes.
    pub unprotected_datagrams: Counter,
    pub unprotected_bytes: Counter,
    /// File operations that failed.
    pub errors: Counter,
    /// What is read now cannot be appended.
    pub failing: AtomicBool,
    /// Samples, events and checks of an earlier process that were taken in again.
    pub replayed: Counter,
    /// Times that segments were replaced by what they came to.
    pub checkpoints: Counter,
    /// Segments of an earlier process that end in a record which is not whole.
    pub torn: Counter,
    /// Files that could not be read and were set aside.
    pub set_aside: Counter,
}

/// Refused lines by reason.
#[derive(Debug, Default)]
pub struct Rejects {
    counts: [Counter; Reject::ALL.len()],
    /// When the line of each reason was kept, in Unix seconds.
    kept: [AtomicI64; Reject::ALL.len()],
    last: Mutex<[Option<Refused>; Reject::ALL.len()]>,
}

/// A line that was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    pub at: Time,
    /// The beginning of the line, escaped.
    pub excerpt: String,
    pub sender: String,
}

impl Rejects {
    pub fn of(&self, reason: Reject) -> &Counter {
        &self.counts[reason as usize]
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().map(Counter::get).sum()
    }

    /// Counts a refused line and keeps its beginning, for each reason at most once a second.
    pub fn add(&self, reason: Reject, line: &[u8], now: Time, sender: impl FnOnce() -> String) {
        self.of(reason).add(1);
        // A sender of nothing else must not make its reader take a lock for each line.
        if self.kept[reason as usize].swap(now.seconds(), Relaxed) != now.seconds() {
            let refused = Refused { at: now, excerpt: excerpt(line), sender: sender() };
            self.last.lock().expect("no panic under this lock")[reason as usize] = Some(refused);
        }
    }

    /// The line that was last kept for a reason.
    pub fn last(&self, reason: Reject) -> Option<Refused> {
        self.last.lock().expect("no panic under this lock")[reason as usize].clone()
    }
}

/// The beginning of a line as it can be shown.
pub fn excerpt(line: &[u8]) -> String {
    line[..line.len().min(EXCERPT)].escape_ascii().to_string()
}

/// What one endpoint of one sink did with the points offered to it.
#[derive(Debug, Default)]
pub struct Endpoint {
    pub sink: &'static str,
    /// Never holds a key.
    pub name: String,
    /// How long encoding a batch takes, sending a payload, and how long ago its flush was, and the
    /// arrival of the oldest sample in that, when it is delivered.
    pub encode: Latency,
    pub send: Latency,
    pub age: Latency,
    pub ingest: Latency,
    pub offered: Counter,
    pub delivered: Counter,
    /// The same in payloads and bytes.
    pub delivered_payloads: Counter,
    pub delivered_bytes: Counter,
    /// Payloads whose send failed and was tried again, and their points, each time that it was.
    pub retries: Counter,
    pub retried: Counter,
    /// Points the destination refused for good.
    pub refused: Counter,
    /// Points dropped because the queue was full.
    pub queue_full: Counter,
    /// Points that no payload can hold.
    pub too_large: Counter,
    /// Points of batches at which the encoder failed.
    pub encoder_failed: Counter,
    /// Points left when tallyd stopped.
    pub stopped: Counter,
    /// Points dropped because the spool was full.
    pub spool_full: Counter,
    /// The same in payloads.
    pub spool_full_payloads: Counter,
    /// Points of files in the spool that could not be read, or were gone.
    pub unreadable: Counter,
    /// Points that were in the spool at the start.
    pub found: Counter,
    /// File operations of the spool that failed.
    pub spool_errors: Counter,
    /// The last one did.
    pub spool_failing: AtomicBool,
    /// Files of the spool that were set aside.
    pub set_aside: Counter,
    /// Those of them that made room for others.
    pub set_aside_removed: Counter,
    /// Points waiting in memory now.
    pub held: AtomicU64,
    /// What waits in the spool now: points, bytes and payloads.
    pub spooled: Spooled,
}

/// What one collector did.
#[derive(Debug, Default)]
pub struct CollectorFigures {
    pub name: &'static str,
    pub runs: Counter,
    /// Runs that failed, panicked or ran out of time.
    pub errors: Counter,
    /// Runs that were not begun because the one before was not over.
    pub skipped: Counter,
    /// Samples, events and checks that were found.
    pub samples: Counter,
    /// What was beyond the limits of a run.
    pub left_out: Counter,
    /// Microseconds that the last run took.
    pub micros: AtomicU64,
    /// When it began, in Unix seconds; 0 when there was none.
    pub last: AtomicI64,
    /// Why it failed; empty when it did not.
    pub problem: Mutex<String>,
}

/// What is on disk.
#[derive(Debug, Default)]
pub struct Spooled {
    pub points: AtomicU64,
    pub bytes: AtomicU64,
    pub payloads: AtomicU64,
    /// Payloads by the minute of their flush: by the second, a long outage would take much memory.
    minutes: Mutex<BTreeMap<i64, u64>>,
}

impl Spooled {
    fn minutes(&self) -> MutexGuard<'_, BTreeMap<i64, u64>> {
        self.minutes.lock().expect("no panic under this lock")
    }

    /// What an earlier process left, by the minute of its flush.
    pub fn found(&self, minutes: BTreeMap<i64, u64>) {
        *self.minutes() = minutes;
    }

    /// One more payload that was flushed at this time, in Unix seconds.
    pub fn came(&self, flushed: i64) {
        *self.minutes().entry(flushed.div_euclid(60)).or_default() += 1;
    }

    /// Such a payload is gone.
    pub fn went(&self, flushed: i64) {
        let (minute, mut minutes) = (flushed.div_euclid(60), self.minutes());
        if let Some(payloads) = minutes.get_mut(&minute) {
            *payloads -= 1;
            if *payloads == 0 {
                minutes.remove(&minute);
            }
        }
    }

    /// How many seconds ago the oldest one was flushed, to the minute; 0 when there is none.
    pub fn age(&self, now: Time) -> u64 {
        let oldest = self.minutes().first_key_value().map(|(minute, _)| minute * 60);
        oldest.map_or(0, |oldest| (now.seconds() - oldest).max(0) as u64)
    }
}

/// Name, help and type of an own metric, as shown on `/metrics`.
pub struct Own {
    /// Without the prefix `tallyd_`.
    pub name: &'static str,
    pub help: &'static str,
    pub counter: bool,
    read: Read,
}

/// Where the figures of an own metric are found.
enum Read {
    /// One figure per listener.
    Listener(fn(&Listener) -> &Counter),
    /// The same of what rises and falls.
    ListenerNow(fn(&Listener) -> i64),
    /// One figure per listener and reason.
    Rejects,
    /// One figure per endpoint of a sink.
    Endpoint(fn(&Endpoint) -> u64),
    /// The same of what should be zero, and may be below.
    EndpointNow(fn(&Endpoint) -> i64),
    /// The same of things that grow old.
    Age(fn(&Endpoint, Time) -> u64),
    /// One figure per endpoint and cause.
    Drops,
    /// One figure per sender.
    Sender(fn(&Account, &Senders) -> u64),
    /// One figure per sender and reason, or cause, that is not zero.
    SenderRejects,
    SenderDrops,
    /// One figure per name that clients report.
    Clients,
    /// One figure per collector.
    Collector(fn(&CollectorFigures) -> f64),
    /// A single figure.
    Process(fn(&Telemetry) -> u64),
    /// A single figure, kept in microseconds.
    Seconds(fn(&Telemetry) -> &AtomicU64),
}

const fn counter(name: &'static str, help: &'static str, read: Read) -> Own {
    Own { name, help, counter: true, read }
}

const fn gauge(name: &'static str, help: &'static str, read: Read) -> Own {
    Own { name, help, counter: false, read }
}

/// Every own metric: METRICS.md is written from this list.
pub const OWN: &[Own] = &[
    counter(
        "listener_datagrams_total",
        "Datagrams, frames or chunks of text read, by listener.",
        Read::Listener(|l| &l.datagrams),
    ),
    counter("listener_bytes_total", "Bytes read, by listener.", Read::Listener(|l| &l.bytes)),
    counter(
        "listener_truncated_total",
        "Datagrams longer than intake.buffer_size, by listener.",
        Read::Listener(|l| &l.truncated),
    ),
    counter(
        "listener_kernel_drops_total",
        "DATA LOSS. Datagrams the kernel dropped because the socket's buffer was full, by listener. A Unix socket drops none: its clients wait, or are refused and may tell so (tallyd_client_reported_total).",
        Read::Listener(|l| &l.kernel_drops),
    ),
    counter(
        "listener_read_errors_total",
        "Failed reads, by listener.",
        Read::Listener(|l| &l.read_errors),
    ),
    counter(
        "listener_connections_total",
        "Stream connections accepted, by listener.",
        Read::Listener(|l| &l.connections),
    ),
    gauge(
        "listener_connections_open",
        "Stream connections open now, by listener.",
        Read::ListenerNow(Listener::open_connections),
    ),
    counter(
        "listener_connections_refused_total",
        "Stream connections closed for their number or their framing, by listener.",
        Read::Listener(|l| &l.connections_refused),
    ),
    counter(
        "listener_forward_errors_total",
        "Raw copies that could not be forwarded, by listener.",
        Read::Listener(|l| &l.forward_errors),
    ),
    counter(
        "listener_lines_total",
        "Lines read, by listener: samples, events, checks and rejects add up to it.",
        Read::Listener(|l| &l.lines),
    ),
    counter(
        "listener_samples_total",
        "Metric lines understood, by listener.",
        Read::Listener(|l| &l.samples),
    ),
    counter(
        "listener_events_total",
        "Events understood, by listener.",
        Read::Listener(|l| &l.events),
    ),
    counter(
        "listener_checks_total",
        "Service checks understood, by listener.",
        Read::Listener(|l| &l.checks),
    ),
    counter(
        "listener_rejects_total",
        "DATA LOSS. Lines refused, by listener and reason.",
        Read::Rejects,
    ),
    gauge(
        "listener_unaccounted_lines",
        "Lines read less samples, events, checks and rejects, by listener: zero but for what is under way.",
        Read::ListenerNow(Listener::unaccounted),
    ),
    counter(
        "collector_runs_total",
        "Runs, by collector.",
        Read::Collector(|c| c.runs.get() as f64),
    ),
    counter(
        "collector_errors_total",
        "Runs that failed or ran out of time, by collector.",
        Read::Collector(|c| c.errors.get() as f64),
    ),
    counter(
        "collector_skipped_total",
        "Runs that were not begun because the one before was not over, by collector.",
        Read::Collector(|c| c.skipped.get() as f64),
    ),
    counter(
        "collector_samples_total",
        "Samples, events and service checks made, by collector.",
        Read::Collector(|c| c.samples.get() as f64),
    ),
    counter(
        "collector_left_out_total",
        "DATA LOSS. Samples, cgroups and the like beyond the limits of a run, by collector.",
        Read::Collector(|c| c.left_out.get() as f64),
    ),
    gauge(
        "collector_seconds",
        "Duration of the last run, by collector.",
        Read::Collector(|c| c.micros.load(Relaxed) as f64 / 1e6),
    ),
    gauge("contexts", "Series held now.", Read::Process(|t| t.contexts.load(Relaxed))),
    gauge(
        "contexts_max",
        "Series that may be held: shard.contexts_max.",
        Read::Process(|t| t.contexts_max.load(Relaxed)),
    ),
    counter(
        "overflow_total",
        "Lines folded into the overflow series because shard.contexts_max was reached.",
        Read::Process(|t| t.overflow.get()),
    ),
    counter(
        "blocked_total",
        "Samples dropped by rules.metric_blocklist.",
        Read::Process(|t| t.blocked.get()),
    ),
    counter(
        "non_finite_total",
        "DATA LOSS. Values that were NaN or infinite.",
        Read::Process(|t| t.non_finite.get()),
    ),
    counter(
        "rate_out_of_range_total",
        "Samples whose rate was outside (0, 1] and counted as 1.",
        Read::Process(|t| t.rate_out_of_range.get()),
    ),
    counter(
        "invalid_utf8_total",
        "New spellings of series that were not UTF-8.",
        Read::Process(|t| t.invalid_utf8.get()),
    ),
    counter(
        "fields_ignored_total",
        "Malformed optional fields of events and service checks.",
        Read::Process(|t| t.fields_ignored.get()),
    ),
    counter(
        "coarse_sets_total",
        "Sets counted with a standard error of 1.6 % because all together took value.set_bytes_max.",
        Read::Process(|t| t.coarse_sets.get()),
    ),
    counter(
        "timed_dropped_total",
        "DATA LOSS. Points beyond shard.timed_points_max.",
        Read::Process(|t| t.timed_dropped.get()),
    ),
    counter(
        "events_dropped_total",
        "DATA LOSS. Events and checks beyond shard.events_max.",
        Read::Process(|t| t.events_dropped.get()),
    ),
    gauge(
        "origin_senders",
        "Processes and inodes remembered now, with the containers they belong to.",
        Read::Process(|t| t.origin_senders.load(Relaxed)),
    ),
    counter(
        "origin_waited_total",
        "Datagrams and lines of new senders that waited until their tags were known (origin.wait).",
        Read::Process(|t| t.origin_waited.get()),
    ),
    counter(
        "origin_untagged_total",
        "Datagrams and lines of new senders that went without tags: not to wait, for want of room, or because the tags came too late.",
        Read::Process(|t| t.origin_untagged.get()),
    ),
    counter(
        "origin_senders_refused_total",
        "Times that a sender was not looked up because 65 536 of them are remembered.",
        Read::Process(|t| t.origin_senders_refused.get()),
    ),
    counter(
        "origin_foreign_total",
        "Datagrams of processes outside of our pid namespace, whose containers cannot be found.",
        Read::Process(|t| t.origin_foreign.get()),
    ),
    counter(
        "docker_engine_errors_total",
        "Calls of the container engine that failed.",
        Read::Process(|t| t.docker_engine_errors.get()),
    ),
    counter(
        "orchestrator_errors_total",
        "Questions to the kubelet, or to the task metadata endpoint of ECS, that failed.",
        Read::Process(|t| t.orchestrator_errors.get()),
    ),
    counter(
        "docker_events_unread_total",
        "Events of the container engine that could not be understood.",
        Read::Process(|t| t.docker_events_unread.get()),
    ),
    counter(
        "docker_event_gaps_total",
        "Times that events of the container engine were missed, so that its list was read anew.",
        Read::Process(|t| t.docker_event_gaps.get()),
    ),
    counter(
        "docker_events_dropped_total",
        "DATA LOSS. Events of the container engine beyond 5000 between two runs.",
        Read::Process(|t| t.docker_events_dropped.get()),
    ),
    gauge(
        "docker_containers_left_out",
        "Containers that are not measured because of collectors.docker.containers_max.",
        Read::Process(|t| t.docker_containers_left_out.load(Relaxed)),
    ),
    counter(
        "origin_containers_refused_total",
        "Containers beyond the 50 000 whose tags are remembered: their samples go without.",
        Read::Process(|t| t.origin_containers_refused.get()),
    ),
    counter(
        "sender_lines_total",
        "Lines read, by sender (telemetry.senders).",
        Read::Sender(|account, _| account.lines.get()),
    ),
    counter(
        "sender_bytes_total",
        "Bytes read, by sender (telemetry.senders).",
        Read::Sender(|account, _| account.bytes.get()),
    ),
    gauge(
        "sender_series",
        "Series held now that this sender was the first to send (telemetry.senders).",
        Read::Sender(|account, senders| senders.series_of(account.number)),
    ),
    counter(
        "sender_rejects_total",
        "DATA LOSS. Lines refused, by sender and reason (telemetry.senders).",
        Read::SenderRejects,
    ),
    counter(
        "sender_dropped_total",
        "DATA LOSS. Lines and values dropped or folded into tallyd.overflow, by sender and cause: series_limit, timed_points_limit, events_limit, not_finite (telemetry.senders).",
        Read::SenderDrops,
    ),
    gauge(
        "senders",
        "Senders with an account of their own in the ledger, at most 4095.",
        Read::Process(|t| t.senders.len() as u64),
    ),
    counter(
        "senders_forgotten_total",
        "Accounts of silent senders that were added to that of the others, to make room.",
        Read::Process(|t| t.senders.forgotten.get()),
    ),
    counter(
        "senders_refused_total",
        "Times that a reader met a sender for which there was no account: its figures are those of the others.",
        Read::Process(|t| t.senders.refused.get()),
    ),
    counter(
        "page_left_out_total",
        "Points of series that did not fit on the Prometheus page (sinks.prometheus.series_max).",
        Read::Process(|t| t.page_left_out.get()),
    ),
    counter(
        "page_negative_counts_total",
        "Points of counts below zero, which no counter of the Prometheus page can take.",
        Read::Process(|t| t.page_negative_counts.get()),
    ),
    counter(
        "client_reported_total",
        "What clients count of themselves (datadog.dogstatsd.client.*), by metric.",
        Read::Clients,
    ),
    counter(
        "dns_failures_total",
        "Lookups of names that the system could not do.",
        Read::Process(|t| t.dns_failures.get()),
    ),
    counter(
        "dns_fallbacks_total",
        "Of those, the ones that the fallback resolvers did.",
        Read::Process(|t| t.dns_fallbacks.get()),
    ),
    counter("flushes_total", "Flushes.", Read::Process(|t| t.flushes.get())),
    counter("points_total", "Points handed to the sinks.", Read::Process(|t| t.points.get())),
    counter(
        "journal_bytes_total",
        "Bytes appended to the journal.",
        Read::Process(|t| t.journal.bytes.get()),
    ),
    counter(
        "journal_unprotected_datagrams_total",
        "Datagrams that could not be appended to the journal: a crash before their flush would lose them.",
        Read::Process(|t| t.journal.unprotected_datagrams.get()),
    ),
    counter(
        "journal_unprotected_bytes_total",
        "Bytes of such datagrams.",
        Read::Process(|t| t.journal.unprotected_bytes.get()),
    ),
    counter(
        "journal_errors_total",
        "File operations of the journal that failed.",
        Read::Process(|t| t.journal.errors.get()),
    ),
    gauge(
        "journal_failing",
        "1 while what is read cannot be appended to the journal.",
        Read::Process(|t| u64::from(t.journal.failing.load(Relaxed))),
    ),
    counter(
        "journal_replayed_total",
        "Samples, events and service checks of an earlier process that were taken in again at the start, as lines of the listener `journal`.",
        Read::Process(|t| t.journal.replayed.get()),
    ),
    counter(
        "journal_checkpoints_total",
        "Times that the journal reached half of journal.max_bytes and was replaced by the aggregates.",
        Read::Process(|t| t.journal.checkpoints.get()),
    ),
    counter(
        "journal_torn_total",
        "DATA LOSS. Files of the journal that ended within a record, at the start.",
        Read::Process(|t| t.journal.torn.get()),
    ),
    counter(
        "journal_set_aside_total",
        "DATA LOSS. Files of the journal that could not be read and were set aside.",
        Read::Process(|t| t.journal.set_aside.get()),
    ),
    gauge("flush_seconds", "Duration of the last flush.", Read::Seconds(|t| &t.flush_micros)),
    counter(
        "profile_samples_total",
        "Samples of tallyd's own CPU time (self_profile).",
        Read::Process(|t| t.profile_samples.get()),
    ),
    counter(
        "profile_lost_total",
        "Samples of tallyd's own CPU time that there was no room for.",
        Read::Process(|t| t.profile_lost.get()),
    ),
    counter(
        "sink_offered_points_total",
        "Points offered, by sink and endpoint.",
        Read::Endpoint(|e| e.offered.get()),
    ),
    counter(
        "sink_delivered_points_total",
        "Points delivered, by sink and endpoint.",
        Read::Endpoint(|e| e.delivered.get()),
    ),
    counter(
        "sink_delivered_payloads_total",
        "Payloads delivered, by sink and endpoint.",
        Read::Endpoint(|e| e.delivered_payloads.get()),
    ),
    counter(
        "sink_delivered_bytes_total",
        "Bytes of delivered payloads, as compressed, by sink and endpoint.",
        Read::Endpoint(|e| e.delivered_bytes.get()),
    ),
    counter(
        "sink_retries_total",
        "Failed sends that were tried again, by sink and endpoint.",
        Read::Endpoint(|e| e.retries.get()),
    ),
    counter(
        "sink_retried_points_total",
        "Points of failed sends that were tried again, each time, by sink and endpoint.",
        Read::Endpoint(|e| e.retried.get()),
    ),
    counter(
        "sink_dropped_points_total",
        "DATA LOSS. Points dropped, by sink, endpoint and cause: refused, queue_full, too_large, encoder_failed, stopped, spool_full, unreadable.",
        Read::Drops,
    ),
    gauge(
        "sink_unaccounted_points",
        "Points offered and found less those delivered, held, spooled and dropped, by sink and endpoint: zero but for what is under way.",
        Read::EndpointNow(Endpoint::unaccounted),
    ),
    gauge(
        "sink_held_points",
        "Points waiting in memory to be encoded or delivered, by sink and endpoint.",
        Read::Endpoint(|e| e.held.load(Relaxed)),
    ),
    gauge(
        "sink_spooled_points",
        "Points waiting on disk, by sink and endpoint.",
        Read::Endpoint(|e| e.spooled.points.load(Relaxed)),
    ),
    gauge(
        "sink_spooled_bytes",
        "Bytes of payloads waiting on disk, by sink and endpoint.",
        Read::Endpoint(|e| e.spooled.bytes.load(Relaxed)),
    ),
    gauge(
        "sink_spooled_payloads",
        "Payloads waiting on disk, by sink and endpoint.",
        Read::Endpoint(|e| e.spooled.payloads.load(Relaxed)),
    ),
    gauge(
        "sink_spooled_age_seconds",
        "Seconds since the flush of the oldest payload that waits on disk, to the minute, by sink and endpoint; 0 when none waits.",
        Read::Age(|e, now| e.spooled.age(now)),
    ),
    counter(
        "sink_spool_found_points_total",
        "Points that an earlier process left on disk, by sink and endpoint.",
        Read::Endpoint(|e| e.found.get()),
    ),
    counter(
        "sink_spool_dropped_payloads_total",
        "DATA LOSS. Payloads dropped because the spool was full, by sink and endpoint.",
        Read::Endpoint(|e| e.spool_full_payloads.get()),
    ),
    counter(
        "sink_spool_errors_total",
        "File operations of the spool that failed, by sink and endpoint.",
        Read::Endpoint(|e| e.spool_errors.get()),
    ),
    gauge(
        "sink_spool_failing",
        "1 while payloads wait in memory because the disk fails, by sink and endpoint.",
        Read::Endpoint(|e| u64::from(e.spool_failing.load(Relaxed))),
    ),
    counter(
        "sink_spool_set_aside_total",
        "Files of the spool that could not be read and were set aside, by sink and endpoint.",
        Read::Endpoint(|e| e.set_aside.get()),
    ),
    counter(
        "sink_spool_set_aside_removed_total",
        "Files that had been set aside and were removed because there were too many, by sink and endpoint.",
        Read::Endpoint(|e| e.set_aside_removed.get()),
    ),
];

/// Names under which clients may report of themselves; the known clients have about twenty.
const CLIENT_NAMES_MAX: usize = 64;

/// One figure of an own metric: name, labels, value.
pub type Figure = (&'static str, Vec<(&'static str, String)>, f64);

impl Telemetry {
    /// The counters of one more socket, which its thread shares with no other. Sockets of one
    /// address have one name.
    pub fn listener(&self, name: String) -> Arc<Listener> {
        let listener = Arc::new(Listener { name, ..Listener::default() });
        self.listeners.write().expect("no panic under this lock").push(Arc::clone(&listener));
        listener
    }

    pub fn endpoint(&self, sink: &'static str, name: String) -> Arc<Endpoint> {
        let endpoint = Arc::new(Endpoint { sink, name, ..Endpoint::default() });
        self.endpoints.write().expect("no panic under this lock").push(Arc::clone(&endpoint));
        endpoint
    }

    /// Adds to what clients report under a name. Names beyond `CLIENT_NAMES_MAX` are left out.
    pub fn client_reported(&self, name: &str, value: f64) {
        let mut clients = self.clients.lock().expect("no panic under this lock");
        if let Some(sum) = clients.get_mut(name) {
            *sum += value;
        } else if clients.len() < CLIENT_NAMES_MAX {
            clients.insert(name.to_owned(), value);
        }
    }

    /// Sums of what clients report, by name.
    pub fn clients(&self) -> BTreeMap<String, f64> {
        self.clients.lock().expect("no panic under this lock").clone()
    }

    pub fn collector(&self, name: &'static str) -> Arc<CollectorFigures> {
        let figures = Arc::new(CollectorFigures { name, ..CollectorFigures::default() });
        self.collectors.write().expect("no panic under this lock").push(Arc::clone(&figures));
        figures
    }

    pub fn listeners(&self) -> Vec<Arc<Listener>> {
        self.listeners.read().expect("no panic under this lock").clone()
    }

    pub fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.read().expect("no panic under this lock").clone()
    }

    pub fn collectors(&self) -> Vec<Arc<CollectorFigures>> {
        self.collectors.read().expect("no panic under this lock").clone()
    }

    /// Whether a reject of this reason may be logged now: once a minute for each reason.
    pub fn may_log(&self, reason: Reject, now: Time) -> bool {
        let last = &self.logged[reason as usize];
        let (then, now) = (last.load(Relaxed), now.seconds());
        // A clock that was set back must not silence the log for good.
        (then == 0 || now - then >= 60 || now < then)
            && last.compare_exchange(then, now, Relaxed, Relaxed).is_ok()
    }

    /// Every figure at this time, grouped by name in the order of [`OWN`]. Each set of labels comes once.
    pub fn figures(&self, now: Time) -> Vec<Figure> {
        let (listeners, endpoints) = (self.listeners(), self.endpoints());
        let collectors = self.collectors();
        let shown = self.senders_shown.load(Relaxed);
        let accounts = if shown { self.senders.all() } else { Vec::new() };
        let mut figures = Vec::new();
        for own in OWN {
            match own.read {
                Read::Listener(value) => figures.extend(listeners.iter().map(|l| {
                    (own.name, vec![("listener", l.name.clone())], value(l).get() as f64)
                })),
                Read::ListenerNow(value) => figures.extend(
                    listeners
                        .iter()
                        .map(|l| (own.name, vec![("listener", l.name.clone())], value(l) as f64)),
                ),
                Read::Rejects => figures.extend(listeners.iter().flat_map(reject_figures)),
                Read::Endpoint(value) => {
                    figures
                        .extend(endpoints.iter().map(|e| (own.name, e.labels(), value(e) as f64)));
                }
                Read::EndpointNow(value) => {
                    figures
                        .extend(endpoints.iter().map(|e| (own.name, e.labels(), value(e) as f64)));
                }
                Read::Age(value) => figures
                    .extend(endpoints.iter().map(|e| (own.name, e.labels(), value(e, now) as f64))),
                Read::Drops => figures.extend(endpoints.iter().flat_map(drop_figures)),
                Read::Sender(value) => figures.extend(accounts.iter().map(|account| {
                    let labels = vec![("sender", account.label())];
                    (own.name, labels, value(account, &self.senders) as f64)
                })),
                Read::SenderRejects => figures.extend(accounts.iter().flat_map(|account| {
                    let some = account.rejects().filter(|(_, lines)| *lines > 0);
                    some.map(|(reason, lines)| {
                        let labels =
                            [("sender", account.label()), ("reason", reason.word().into())];
                        (own.name, labels.to_vec(), lines as f64)
                    })
                })),
                Read::SenderDrops => figures.extend(accounts.iter().flat_map(|account| {
                    let some = account.dropped().filter(|(_, lines)| *lines > 0);
                    some.map(|(cause, lines)| {
                        let labels = [("sender", account.label()), ("cause", cause.word().into())];
                        (own.name, labels.to_vec(), lines as f64)
                    })
                })),
                Read::Clients => {
                    let label = |name| vec![("metric", name)];
                    let clients = self.clients().into_iter();
                    figures.extend(clients.map(|(name, sum)| (own.name, label(name), sum)));
                }
                Read::Collector(value) => figures.extend(
                    collectors
                        .iter()
                        .map(|c| (own.name, vec![("collector", c.name.to_owned())], value(c))),
                ),
                Read::Process(value) => {
                    figures.push((own.name, Vec::new(), value(self) as f64));
                }
                Read::Seconds(value) => {
                    let seconds = value(self).load(Relaxed) as f64 / 1e6;
                    figures.push((own.name, Vec::new(), seconds));
                }
            }
        }
        add_up(figures)
    }
}

/// Sockets that share an address share their labels, as containers of one name do.
fn add_up(figures: Vec<Figure>) -> Vec<Figure> {
    let mut sums = Vec::<Figure>::with_capacity(figures.len());
    let mut places = HashMap::<_, usize>::with_capacity(figures.len());
    for (name, labels, value) in figures {
        match places.entry((name, labels.clone())) {
            Entry::Occupied(place) => sums[*place.get()].2 += value,
            Entry::Vacant(place) => {
                place.insert(sums.len());
                sums.push((name, labels, value));
            }
        }
    }
    sums
}

impl Listener {
    fn open_connections(&self) -> i64 {
        let closed = self.connections_closed.get();
        self.connections.get() as i64 - closed as i64
    }

    /// Lines without an outcome: zero, but for what is under way.
    fn unaccounted(&self) -> i64 {
        // Outcomes are read before lines: what comes in meanwhile shows as not done yet.
        let (samples, events, checks) = (self.samples.get(), self.events.get(), self.checks.get());
        let outcomes = samples + events + checks + self.rejects.total();
        self.lines.get() as i64 - outcomes as i64
    }
}

impl Endpoint {
    /// Points without an outcome: zero, but for what is under way.
    fn unaccounted(&self) -> i64 {
        let dropped: u64 = self.drops().iter().map(|(_, points)| points).sum();
        let waiting = self.held.load(Relaxed) + self.spooled.points.load(Relaxed);
        let outcomes = self.delivered.get() + waiting + dropped;
        (self.offered.get() + self.found.get()) as i64 - outcomes as i64
    }

    fn labels(&self) -> Vec<(&'static str, String)> {
        vec![("sink", self.sink.to_owned()), ("endpoint", self.name.clone())]
    }

    /// Points dropped, by cause.
    pub fn drops(&self) -> [(&'static str, u64); 7] {
        [
            ("refused", self.refused.get()),
            ("queue_full", self.queue_full.get()),
            ("too_large", self.too_large.get()),
            ("encoder_failed", self.encoder_failed.get()),
            ("stopped", self.stopped.get()),
            ("spool_full", self.spool_full.get()),
            ("unreadable", self.unreadable.get()),
        ]
    }
}

fn reject_figures(listener: &Arc<Listener>) -> impl Iterator<Item = Figure> {
    Reject::ALL.into_iter().map(|reason| {
        let labels =
            vec![("listener", listener.name.clone()), ("reason", reason.word().to_owned())];
        ("listener_rejects_total", labels, listener.rejects.of(reason).get() as f64)
    })
}

fn drop_figures(endpoint: &Arc<Endpoint>) -> impl Iterator<Item = Figure> {
    endpoint.drops().into_iter().map(|(cause, points)| {
        let mut labels = endpoint.labels();
        labels.push(("cause", cause.to_owned()));
        ("sink_dropped_points_total", labels, points as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_own_metric_has_a_figure_and_stands_in_the_document() {
        let telemetry = Telemetry::default();
        telemetry.listener("udp://x".to_owned());
        telemetry.endpoint("datadog", "https://y".to_owned());
        telemetry.client_reported("datadog.dogstatsd.client.packets_dropped", 2.0);
        telemetry.collector("z");
        telemetry.senders_shown.store(true, Relaxed);
        let mut tally = senders::Tally::default();
        tally.reject(Reject::Type);
        tally.drop(senders::Drop::Series, 1);
        let account = telemetry.senders.account(senders::Who::Others, Time::default(), || None);
        account.settle(&mut tally, Time::default());
        let figures = telemetry.figures(Time::default());
        for own in OWN {
            assert!(
                figures.iter().any(|(name, ..)| *name == own.name),
                "{} has a figure",
                own.name
            );
        }
        let mut document = String::from(
            "# What tallyd counts of itself\n\n\
             Shown on `/metrics`. A metric marked DATA LOSS should stay at zero.\n\n\
             | name | type | meaning |\n| --- | --- | --- |\n",
        );
        for own in OWN {
            let kind = if own.counter { "counter" } else { "gauge" };
            document += &format!("| `tallyd_{}` | {kind} | {} |\n", own.name, own.help);
        }
        for timed in latency::TIMED {
            document += &format!("| `tallyd_{}` | summary | {} |\n", timed.name, timed.help);
        }
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write("METRICS.md", &document).expect("METRICS.md can be written");
        }
        assert_eq!(include_str!("../METRICS.md"), document, "UPDATE=1 cargo test writes it anew");
    }

    #[test]
    fn sockets_of_one_address_are_added_up() {
        let telemetry = Telemetry::default();
        for (name, bytes) in [("udp://x", 3), ("udp://y", 10), ("udp://x", 4)] {
            let listener = telemetry.listener(name.to_owned());
            listener.bytes.add(bytes);
            listener.rejects.of(Reject::Type).add(bytes);
        }
        let figures = telemetry.figures(Time::default());
        let bytes = figures.iter().filter(|(name, ..)| *name == "listener_bytes_total");
        let label = |name: &str| vec![("listener", name.to_owned())];
        assert_eq!(
            bytes.map(|(_, labels, value)| (labels.clone(), *value)).collect::<Vec<_>>(),
            [(label("udp://x"), 7.0), (label("udp://y"), 10.0)]
        );
        let mut seen = std::collections::HashSet::new();
        for (name, labels, _) in figures {
            assert!(seen.insert((name, labels.clone())), "{name} {labels:?} comes twice");
        }
    }

    #[test]
    fn a_reason_is_logged_once_a_minute() {
        let telemetry = Telemetry::default();
        let at = |seconds| telemetry.may_log(Reject::Type, Time::from_seconds(seconds));
        assert_eq!([at(1000), at(1059), at(1060), at(500)], [true, false, true, true]);
        assert!(telemetry.may_log(Reject::Value, Time::from_seconds(1000)));
    }
}
