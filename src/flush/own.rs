//! tallyd's own counters as series beside the users' own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::batch::{Batch, Row, Value};
use crate::context::Context;
use crate::rules::Rules;
use crate::sample::Kind;
use crate::telemetry::{self, Figure, OWN, Telemetry};
use crate::time::Time;

/// Turns what the counters grew by since the last flush into rows.
pub struct OwnSeries {
    config: telemetry::Config,
    rules: Arc<Rules>,
    telemetry: Arc<Telemetry>,
    known: HashMap<Key, Series>,
}

/// Name and tags.
type Key = (String, Vec<String>);

struct Series {
    context: Context,
    /// Of a counter the total, of a gauge the value, at the last flush.
    last: f64,
}

/// A metric of the Agent that has the same meaning as one of ours, of some of its figures.
struct AgentName {
    own: &'static str,
    of: Of,
    name: &'static str,
    tags: &'static [&'static str],
}

/// Which figures of one of our metrics.
#[derive(Clone, Copy)]
enum Of {
    All,
    /// Of listeners whose address begins with this.
    Listeners(&'static str),
    /// Of reasons to refuse a line that begin with this.
    Reasons(&'static str),
    /// Of the reasons that are not of events and service checks.
    MetricReasons,
    /// Of the Datadog sink, one series for each endpoint.
    Datadog,
}

const fn agent(
    own: &'static str,
    of: Of,
    name: &'static str,
    tags: &'static [&'static str],
) -> AgentName {
    AgentName { own, of, name, tags }
}

const PROCESSED: &str = "datadog.agent.dogstatsd.processed";
const UDP_PACKETS: &str = "datadog.agent.dogstatsd.udp_packets";
const UDS_PACKETS: &str = "datadog.agent.dogstatsd.uds_packets";
const UDS_BYTES: &str = "datadog.agent.dogstatsd.uds_packets_bytes";
const AGGREGATED: &str = "datadog.agent.aggregator.processed";

/// The Agent's telemetry of its DogStatsD server, aggregator and forwarder, as far as tallyd has the
/// same parts: it has no channels, pools and interner between them. The Agent counts processed lines
/// over all listeners.
const AGENT_NAMES: &[AgentName] = &[
    agent("listener_samples_total", Of::All, PROCESSED, &["message_type:metrics", "state:ok"]),
    agent("listener_events_total", Of::All, PROCESSED, &["message_type:events", "state:ok"]),
    agent(
        "listener_checks_total",
        Of::All,
        PROCESSED,
        &["message_type:service_checks", "state:ok"],
    ),
    agent(
        "listener_rejects_total",
        Of::MetricReasons,
        PROCESSED,
        &["message_type:metrics", "state:error"],
    ),
    agent(
        "listener_rejects_total",
        Of::Reasons("event_"),
        PROCESSED,
        &["message_type:events", "state:error"],
    ),
    agent(
        "listener_rejects_total",
        Of::Reasons("sc_"),
        PROCESSED,
        &["message_type:service_checks", "state:error"],
    ),
    agent("listener_datagrams_total", Of::Listeners("udp:"), UDP_PACKETS, &["state:ok"]),
    agent("listener_read_errors_total", Of::Listeners("udp:"), UDP_PACKETS, &["state:error"]),
    agent(
        "listener_bytes_total",
        Of::Listeners("udp:"),
        "datadog.agent.dogstatsd.udp_packets_bytes",
        &[],
    ),
    agent(
        "listener_datagrams_total",
        Of::Listeners("unixgram:"),
        UDS_PACKETS,
        &["state:ok", "transport:unixgram"],
    ),
    agent(
        "listener_datagrams_total",
        Of::Listeners("unixstream:"),
        UDS_PACKETS,
        &["state:ok", "transport:unix"],
    ),
    agent(
        "listener_read_errors_total",
        Of::Listeners("unixgram:"),
        UDS_PACKETS,
        &["state:error", "transport:unixgram"],
    ),
    agent(
        "listener_read_errors_total",
        Of::Listeners("unixstream:"),
        UDS_PACKETS,
        &["state:error", "transport:unix"],
    ),
    agent("listener_bytes_total", Of::Listeners("unixgram:"), UDS_BYTES, &["transport:unixgram"]),
    agent("listener_bytes_total", Of::Listeners("unixstream:"), UDS_BYTES, &["transport:unix"]),
    agent(
        "listener_connections_open",
        Of::Listeners("unixstream:"),
        "datadog.agent.dogstatsd.uds_connections",
        &["transport:unix"],
    ),
    agent(
        "origin_foreign_total",
        Of::All,
        "datadog.agent.dogstatsd.uds_origin_detection_error",
        &[],
    ),
    agent("listener_samples_total", Of::All, AGGREGATED, &["data_type:dogstatsd_metrics"]),
    agent("listener_events_total", Of::All, AGGREGATED, &["data_type:events"]),
    agent("listener_checks_total", Of::All, AGGREGATED, &["data_type:service_checks"]),
    agent("contexts", Of::All, "datadog.agent.aggregator.dogstatsd_contexts", &[]),
    agent("sink_delivered_payloads_total", Of::Datadog, "datadog.agent.transactions.success", &[]),
    agent(
        "sink_delivered_bytes_total",
        Of::Datadog,
        "datadog.agent.transactions.success_bytes",
        &[],
    ),
    agent("sink_retries_total", Of::Datadog, "datadog.agent.transactions.retries", &[]),
    agent("sink_retries_total", Of::Datadog, "datadog.agent.transactions.requeued", &[]),
    agent("sink_retries_total", Of::Datadog, "datadog.agent.transactions.errors", &[]),
    agent(
        "sink_spool_dropped_payloads_total",
        Of::Datadog,
        "datadog.agent.transactions.dropped",
        &[],
    ),
    agent("sink_spooled_payloads", Of::Datadog, "datadog.agent.transactions.retry_queue_size", &[]),
];

/// How the Agent calls the kinds of its contexts.
const fn agent_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Count => "Counter",
        Kind::Gauge => "Gauge",
        Kind::Set => "Set",
        Kind::Timer | Kind::Histogram => "Histogram",
        Kind::Distribution => "Distribution",
    }
}

impl OwnSeries {
    pub fn new(config: telemetry::Config, rules: Arc<Rules>, telemetry: Arc<Telemetry>) -> Self {
        Self { config, rules, telemetry, known: HashMap::new() }
    }

    /// The rows of one flush, at this time in Unix seconds, beside those of `batch`. What did not
    /// move is left out.
    pub fn rows(&mut self, time: i64, batch: &Batch) -> Vec<Row> {
        if !self.config.series && !self.config.agent_series {
            return Vec::new();
        }
        let figures = self.telemetry.figures(Time::from_seconds(time));
        let mut rows = Vec::new();
        if self.config.series {
            for (name, labels, value) in &figures {
                let tags = labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                let short = name.strip_suffix("_total").unwrap_or(name);
                let key = (format!("tallyd.{short}"), tags);
                rows.extend(self.row(key, is_counter(name), *value, time));
            }
        }
        if self.config.agent_series {
            for agent in AGENT_NAMES {
                for (tags, value) in agent.sums(&figures) {
                    let key = (agent.name.to_owned(), tags);
                    rows.extend(self.row(key, is_counter(agent.own), value, time));
                }
            }
            self.batch_rows(batch, time, &mut rows);
        }
        rows
    }

    /// What the Agent tells of a flush.
    fn batch_rows(&mut self, batch: &Batch, time: i64, rows: &mut Vec<Row>) {
        let mut contexts = BTreeMap::from(Kind::ALL.map(|kind| (agent_kind(kind), 0)));
        for series in batch.series() {
            *contexts.entry(agent_kind(series[0].context.kind())).or_default() += 1;
        }
        for (kind, contexts) in contexts {
            let name = "datadog.agent.aggregator.dogstatsd_contexts_by_mtype".to_owned();
            let key = (name, vec![format!("metric_type:{kind}")]);
            rows.extend(self.row(key, false, f64::from(contexts), time));
        }
        let is_sketch = |row: &&Row| matches!(row.value, Value::Distribution(_));
        let sketches = batch.rows.iter().filter(is_sketch).count();
        for (data, flushed) in [
            ("series", batch.rows.len() - sketches),
            ("sketches", sketches),
            ("events", batch.events.len()),
            ("service_checks", batch.checks.len()),
        ] {
            let name = "datadog.agent.aggregator.flush".to_owned();
            let key = (name, vec![format!("data_type:{data}"), "state:ok".to_owned()]);
            let total = self.known.get(&key).map_or(0.0, |series| series.last);
            rows.extend(self.row(key, true, total + flushed as f64, time));
        }
    }

    fn row(&mut self, key: Key, counter: bool, value: f64, time: i64) -> Option<Row> {
        let kind = if counter { Kind::Count } else { Kind::Gauge };
        let series = self.known.entry(key).or_insert_with_key(|(name, tags)| Series {
            context: self.rules.own_series(name, kind, tags.clone()),
            last: 0.0,
        });
        let last = std::mem::replace(&mut series.last, value);
        let value = if counter { value - last } else { value };
        // A gauge that falls to zero says so once.
        let moved = if counter { value != 0.0 } else { value != 0.0 || last != 0.0 };
        let value = if counter { Value::Count(value) } else { Value::Gauge(value) };
        moved.then(|| Row { context: series.context.clone(), time, value })
    }
}

impl AgentName {
    /// The figures that have this meaning, added up by their tags.
    fn sums(&self, figures: &[Figure]) -> BTreeMap<Vec<String>, f64> {
        let mut sums = BTreeMap::new();
        for (_, labels, value) in figures.iter().filter(|(name, ..)| *name == self.own) {
            let label =
                |key| labels.iter().find(|(k, _)| *k == key).map_or("", |(_, value)| &**value);
            let counts = match self.of {
                Of::All => true,
                Of::Listeners(scheme) => label("listener").starts_with(scheme),
                Of::Reasons(word) => label("reason").starts_with(word),
                Of::MetricReasons => {
                    !["event_", "sc_"].iter().any(|word| label("reason").starts_with(word))
                }
                Of::Datadog => label("sink") == "datadog",
            };
            if counts {
                let mut tags: Vec<_> = self.tags.iter().map(|&tag| tag.to_owned()).collect();
                if let Of::Datadog = self.of {
                    tags.push(format!("domain:{}", label("endpoint")));
                }
                *sums.entry(tags).or_default() += value;
            }
        }
        sums
    }
}

fn is_counter(name: &str) -> bool {
    OWN.iter().any(|own| own.name == name && own.counter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Source;
    use crate::rules;
    use crate::sample::Reject;

    fn own(config: telemetry::Config) -> (OwnSeries, Arc<Telemetry>) {
        let rules = rules::Config { tags: vec!["env:test".to_owned()], ..rules::Config::default() };
        let rules = Arc::new(Rules::new(&rules, "here").unwrap());
        let telemetry = Arc::new(Telemetry::default());
        (OwnSeries::new(config, rules, Arc::clone(&telemetry)), telemetry)
    }

    fn shown(rows: &[Row]) -> Vec<String> {
        let shown = |row: &Row| {
            let tags: Vec<_> = row.context.tags().collect();
            format!("{} {} {:?} @{}", row.context.name(), tags.join(","), row.value, row.time)
        };
        rows.iter().map(shown).collect()
    }

    #[test]
    fn only_what_moved_is_reported() {
        let (mut own, telemetry) = own(telemetry::Config::default());
        let listener = telemetry.listener("udp://x".to_owned());
        assert_eq!(shown(&own.rows(10, &Batch::default())), [""; 0]);
        listener.lines.add(3);
        listener.samples.add(3);
        telemetry.contexts.store(2, std::sync::atomic::Ordering::Relaxed);
        let lines = "tallyd.listener_lines env:test,listener:udp://x Count(3.0) @20";
        let samples = "tallyd.listener_samples env:test,listener:udp://x Count(3.0) @20";
        assert_eq!(
            shown(&own.rows(20, &Batch::default())),
            [lines, samples, "tallyd.contexts env:test Gauge(2.0) @20"]
        );
        listener.lines.add(4);
        listener.samples.add(4);
        telemetry.contexts.store(0, std::sync::atomic::Ordering::Relaxed);
        let lines = "tallyd.listener_lines env:test,listener:udp://x Count(4.0) @30";
        let samples = "tallyd.listener_samples env:test,listener:udp://x Count(4.0) @30";
        assert_eq!(
            shown(&own.rows(30, &Batch::default())),
            [lines, samples, "tallyd.contexts env:test Gauge(0.0) @30"]
        );
        assert_eq!(shown(&own.rows(40, &Batch::default())), [""; 0]);
    }

    #[test]
    fn the_agents_names_count_the_same() {
        let config =
            telemetry::Config { series: false, agent_series: true, ..telemetry::Config::default() };
        let (mut own, telemetry) = own(config);
        for (name, lines) in [("udp://x", 3), ("unixgram:///s", 5), ("unixstream:///s", 4)] {
            let listener = telemetry.listener(name.to_owned());
            listener.samples.add(lines);
            listener.datagrams.add(lines - 2);
            listener.connections.add(2);
            listener.connections_closed.add(1);
        }
        let rejects = &telemetry.listeners()[0].rejects;
        for reason in [Reject::Type, Reject::NoPipe, Reject::EventBody, Reject::CheckName] {
            rejects.of(reason).add(1);
        }
        for (sink, endpoint) in [("console", "stdout"), ("datadog", "https://x")] {
            telemetry.endpoint(sink, endpoint.to_owned()).delivered_payloads.add(6);
        }
        let row = |name: &str, kind, value| Row {
            context: Context::new(name, kind, "", Vec::new(), Source::default()),
            time: 0,
            value,
        };
        let batch = Batch {
            rows: vec![
                row("a", Kind::Count, Value::Count(1.0)),
                row("b", Kind::Gauge, Value::Gauge(1.0)),
                row("c", Kind::Count, Value::Count(1.0)),
            ],
            ..Batch::default()
        };
        let shown = |rows: &[Row]| {
            let lines = shown(rows);
            let short = |line: &String| line.replace("datadog.agent.", "").replace("env:test", "");
            lines.iter().map(short).collect::<Vec<_>>()
        };
        assert_eq!(
            shown(&own.rows(10, &batch)),
            [
                "dogstatsd.processed ,message_type:metrics,state:ok Count(12.0) @10",
                "dogstatsd.processed ,message_type:metrics,state:error Count(2.0) @10",
                "dogstatsd.processed ,message_type:events,state:error Count(1.0) @10",
                "dogstatsd.processed ,message_type:service_checks,state:error Count(1.0) @10",
                "dogstatsd.udp_packets ,state:ok Count(1.0) @10",
                "dogstatsd.uds_packets ,state:ok,transport:unixgram Count(3.0) @10",
                "dogstatsd.uds_packets ,state:ok,transport:unix Count(2.0) @10",
                "dogstatsd.uds_connections ,transport:unix Gauge(1.0) @10",
                "aggregator.processed data_type:dogstatsd_metrics, Count(12.0) @10",
                "transactions.success domain:https://x, Count(6.0) @10",
                "aggregator.dogstatsd_contexts_by_mtype ,metric_type:Counter Gauge(2.0) @10",
                "aggregator.dogstatsd_contexts_by_mtype ,metric_type:Gauge Gauge(1.0) @10",
                "aggregator.flush data_type:series,,state:ok Count(3.0) @10",
            ]
        );
        let again = shown(&own.rows(20, &batch));
        assert_eq!(again[3], "aggregator.flush data_type:series,,state:ok Count(3.0) @20");
    }

    #[test]
    fn every_agent_name_stands_for_an_own_metric() {
        for agent in AGENT_NAMES {
            assert!(OWN.iter().any(|own| own.name == agent.own), "{}", agent.own);
        }
    }
}
