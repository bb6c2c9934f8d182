//! tallyd's own counters as series beside the users' own.

use std::collections::HashMap;
use std::sync::Arc;

use crate::batch::{Row, Value};
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
    context: Arc<Context>,
    /// Of a counter the total, of a gauge the value, at the last flush.
    last: f64,
}

/// A counter of the Agent that has the same meaning as one of ours.
struct AgentName {
    own: &'static str,
    name: &'static str,
    tags: &'static [&'static str],
    /// Only of listeners whose address begins with this.
    listener: &'static str,
}

const fn agent(
    own: &'static str,
    listener: &'static str,
    name: &'static str,
    tags: &'static [&'static str],
) -> AgentName {
    AgentName { own, name, tags, listener }
}

/// The Agent's telemetry of its DogStatsD server, aggregator and forwarder. It counts processed
/// lines over all listeners.
const AGENT_NAMES: &[AgentName] = &[
    agent(
        "listener_samples_total",
        "",
        "datadog.agent.dogstatsd.processed",
        &["message_type:metrics", "state:ok"],
    ),
    agent(
        "listener_events_total",
        "",
        "datadog.agent.dogstatsd.processed",
        &["message_type:events", "state:ok"],
    ),
    agent(
        "listener_checks_total",
        "",
        "datadog.agent.dogstatsd.processed",
        &["message_type:service_checks", "state:ok"],
    ),
    agent(
        "listener_rejects_total",
        "",
        "datadog.agent.dogstatsd.processed",
        &["message_type:metrics", "state:error"],
    ),
    agent("listener_datagrams_total", "udp:", "datadog.agent.dogstatsd.udp_packets", &["state:ok"]),
    agent("listener_bytes_total", "udp:", "datadog.agent.dogstatsd.udp_packets_bytes", &[]),
    agent("listener_datagrams_total", "unix", "datadog.agent.dogstatsd.uds_packets", &["state:ok"]),
    agent("listener_bytes_total", "unix", "datadog.agent.dogstatsd.uds_packets_bytes", &[]),
    agent("contexts", "", "datadog.agent.aggregator.dogstatsd_contexts", &[]),
    agent("points_total", "", "datadog.agent.aggregator.flush", &["data_type:series", "state:ok"]),
    agent("sink_retries_total", "", "datadog.agent.transactions.retries", &[]),
];

impl OwnSeries {
    pub fn new(config: telemetry::Config, rules: Arc<Rules>, telemetry: Arc<Telemetry>) -> Self {
        Self { config, rules, telemetry, known: HashMap::new() }
    }

    /// The rows of one flush, at this time in Unix seconds. What did not move is left out.
    pub fn rows(&mut self, time: i64) -> Vec<Row> {
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
                let tags = agent.tags.iter().map(|&tag| tag.to_owned()).collect();
                let value = figures.iter().filter(|figure| agent.means(figure)).map(|f| f.2).sum();
                rows.extend(self.row(
                    (agent.name.to_owned(), tags),
                    is_counter(agent.own),
                    value,
                    time,
                ));
            }
        }
        rows
    }

    fn row(&mut self, key: Key, counter: bool, value: f64, time: i64) -> Option<Row> {
        let kind = if counter { Kind::Count } else { Kind::Gauge };
        let series = self.known.entry(key).or_insert_with_key(|(name, tags)| Series {
            context: Arc::new(self.rules.own_series(name, kind, tags.clone())),
            last: 0.0,
        });
        let last = std::mem::replace(&mut series.last, value);
        let value = if counter { value - last } else { value };
        // A gauge that falls to zero says so once.
        let moved = if counter { value != 0.0 } else { value != 0.0 || last != 0.0 };
        let value = if counter { Value::Count(value) } else { Value::Gauge(value) };
        moved.then(|| Row { context: Arc::clone(&series.context), time, value })
    }
}

impl AgentName {
    fn means(&self, (name, labels, _): &Figure) -> bool {
        let of_listener =
            |(key, value): &(&str, String)| *key == "listener" && value.starts_with(self.listener);
        *name == self.own && (self.listener.is_empty() || labels.iter().any(of_listener))
    }
}

fn is_counter(name: &str) -> bool {
    OWN.iter().any(|own| own.name == name && own.counter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules;

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
        assert_eq!(shown(&own.rows(10)), [""; 0]);
        listener.lines.add(3);
        telemetry.contexts.store(2, std::sync::atomic::Ordering::Relaxed);
        let lines = "tallyd.listener_lines env:test,listener:udp://x Count(3.0) @20";
        assert_eq!(shown(&own.rows(20)), [lines, "tallyd.contexts env:test Gauge(2.0) @20"]);
        listener.lines.add(4);
        telemetry.contexts.store(0, std::sync::atomic::Ordering::Relaxed);
        let lines = "tallyd.listener_lines env:test,listener:udp://x Count(4.0) @30";
        assert_eq!(shown(&own.rows(30)), [lines, "tallyd.contexts env:test Gauge(0.0) @30"]);
        assert_eq!(shown(&own.rows(40)), [""; 0]);
    }

    #[test]
    fn the_agents_names_count_the_same() {
        let config =
            telemetry::Config { series: false, agent_series: true, ..telemetry::Config::default() };
        let (mut own, telemetry) = own(config);
        for (name, lines) in [("udp://x", 3), ("unixgram:///s", 5)] {
            let listener = telemetry.listener(name.to_owned());
            listener.samples.add(lines);
            listener.datagrams.add(lines - 2);
        }
        assert_eq!(
            shown(&own.rows(10)),
            [
                "datadog.agent.dogstatsd.processed env:test,message_type:metrics,state:ok Count(8.0) @10",
                "datadog.agent.dogstatsd.udp_packets env:test,state:ok Count(1.0) @10",
                "datadog.agent.dogstatsd.uds_packets env:test,state:ok Count(3.0) @10",
            ]
        );
    }

    #[test]
    fn every_agent_name_stands_for_an_own_metric() {
        for agent in AGENT_NAMES {
            assert!(OWN.iter().any(|own| own.name == agent.own), "{}", agent.own);
        }
    }
}
