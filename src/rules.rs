//! What happens to a new series before it is stored: mapping, namespace, blocklist, magic tags.
//! Applied once per spelling, never per sample.

mod mapper;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::mapper::Mapper;
use crate::batch::{Event, ServiceCheck};
use crate::blocklist::Blocklist;
use crate::context::{Context, Source};
use crate::parse;
use crate::sample::{CheckLine, Dialect, EventLine, Kind, Sample, split_tags};

/// What is done to names and tags before a series is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Put before every metric name, with a dot between.
    pub namespace: String,
    /// Names that begin with one of these get no namespace.
    pub namespace_blocklist: Vec<String>,
    /// Metrics with one of these names (namespace included) are dropped and counted. A histogram's
    /// figure can be named too, as name.max or name.95percentile: it is not sent.
    pub metric_blocklist: Vec<String>,
    /// The blocklist holds beginnings of names instead of whole names.
    pub metric_blocklist_match_prefix: bool,
    /// Tags added to every metric, event and service check.
    pub tags: Vec<String>,
    /// Profiles that turn parts of a name into tags; see the Agent's dogstatsd_mapper_profiles.
    pub mapper_profiles: Vec<MapperProfile>,
}

/// A group of mappings for names with one beginning.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MapperProfile {
    /// A name for error messages.
    pub name: String,
    /// The beginning a name must have; `*` fits all. The first profile that fits is the only one
    /// tried.
    pub prefix: String,
    /// Tried in order; the first that matches wins.
    pub mappings: Vec<Mapping>,
}

/// One mapping of a profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Mapping {
    /// The pattern a whole name must match.
    #[serde(rename = "match")]
    pub pattern: String,
    /// `wildcard` (default) or `regex`.
    pub match_type: String,
    /// The new name; `$1` or `${1}` stand for the parts that matched.
    pub name: String,
    /// Tags added, with the same templates as values.
    pub tags: BTreeMap<String, String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: String::new(),
            namespace_blocklist: [
                "datadog.agent",
                "datadog.dogstatsd",
                "datadog.process",
                "datadog.trace_agent",
                "datadog.tracer",
                "activemq",
                "activemq_58",
                "airflow",
                "cassandra",
                "confluent",
                "hazelcast",
                "hive",
                "ignite",
                "jboss",
                "jvm",
                "kafka",
                "presto",
                "sidekiq",
                "solr",
                "tomcat",
                "runtime",
            ]
            .map(String::from)
            .to_vec(),
            metric_blocklist: Vec::new(),
            metric_blocklist_match_prefix: false,
            tags: Vec::new(),
            mapper_profiles: Vec::new(),
        }
    }
}

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct RuleError {
    /// The setting, such as `rules.mapper_profiles[1].mappings[0].match`.
    pub path: String,
    /// What is wrong and what to change.
    pub problem: String,
}

/// The rules, ready for use. Applying them is pure: the same line gives the same outcome.
#[derive(Debug)]
pub struct Rules {
    hostname: String,
    /// Empty, or ends with a dot.
    namespace: String,
    namespace_blocklist: Vec<String>,
    blocklist: Arc<Blocklist>,
    /// Sorted, without repetitions.
    tags: Vec<String>,
    mapper: Mapper,
}

/// What the rules make of a sample.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Keep {
        series: Draft,
        origin: OriginHints,
        /// Some of the name or tags was not UTF-8 and was replaced by U+FFFD.
        invalid_utf8: bool,
    },
    /// The name is on the blocklist.
    Blocked,
}

/// A series to be, which may still get the tags of its origin.
#[derive(Debug, PartialEq, Eq)]
pub struct Draft {
    name: String,
    kind: Kind,
    host: String,
    /// In any order.
    pub tags: Vec<String>,
    source: Source,
}

impl Draft {
    /// The series, once it has all its tags.
    pub fn context(self) -> Context {
        Context::new(&self.name, self.kind, &self.host, self.tags, self.source)
    }
}

/// What magic tags say about the sender.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginHints {
    /// `dd.internal.entity_id:`, a pod's uid, or `none`.
    pub entity_id: Option<String>,
    /// `dd.internal.card:`, as sent.
    pub cardinality: Option<String>,
}

impl Rules {
    /// `hostname` is the host of everything that names none itself; empty gives it no host.
    pub fn new(config: &Config, hostname: &str) -> Result<Self, RuleError> {
        let mut namespace = config.namespace.clone();
        if !namespace.is_empty() && !namespace.ends_with('.') {
            namespace.push('.');
        }
        Ok(Self {
            hostname: hostname.to_owned(),
            namespace,
            namespace_blocklist: config.namespace_blocklist.clone(),
            blocklist: Arc::new(Blocklist::new(
                config.metric_blocklist.iter().cloned(),
                config.metric_blocklist_match_prefix,
            )),
            tags: sorted(config.tags.clone()),
            mapper: Mapper::new(&config.mapper_profiles, "rules.mapper_profiles")?,
        })
    }

    /// For the figures of histograms, which have no names before they are sent.
    pub fn blocklist(&self) -> Arc<Blocklist> {
        Arc::clone(&self.blocklist)
    }

    /// The series of a sample but for the tags of its origin, by the Agent's rules in the Agent's order: mapper on the raw name,
    /// magic tags, namespace, blocklist, own tags. The name of a `statsd` sample is sanitised
    /// before all that, since the original does so while parsing.
    ///
    /// A name of which nothing is left becomes `_`.
    pub fn context(&self, sample: &Sample, dialect: Dialect) -> Outcome {
        let mut decoder = Decoder::default();
        let mut name = decoder.text(sample.name);
        let mut tags: Vec<_> = sample.tags().map(|tag| decoder.text(tag)).collect();
        if dialect == Dialect::Statsd {
            name = sanitised(&name, parse::sanitise_key);
            tags.iter_mut().for_each(|tag| *tag = sanitised(tag, parse::sanitise_tag));
        }
        if let Some(mapped) = self.mapper.map(&name) {
            name = mapped.name;
            tags.extend(mapped.tags);
        }
        if name.is_empty() {
            name.push('_');
        }
        let magic = Magic::take(&mut tags);
        let name = self.in_namespace(name);
        if self.blocklist.blocks(&name) {
            return Outcome::Blocked;
        }
        tags.extend_from_slice(&self.tags);
        let host = magic.host.unwrap_or_else(|| self.hostname.clone());
        Outcome::Keep {
            series: Draft { name, kind: sample.kind, host, tags, source: magic.source },
            origin: magic.origin,
            invalid_utf8: decoder.replaced,
        }
    }

    /// A series that tallyd itself reports: with the own host and tags, and no other rule.
    pub fn own_series(&self, name: &str, kind: Kind, mut tags: Vec<String>) -> Context {
        tags.extend_from_slice(&self.tags);
        Context::new(name, kind, &self.hostname, tags, Source::default())
    }

    /// An event with its title and text unescaped, and with host, tags and time filled in.
    pub fn event(&self, line: &EventLine, arrival_seconds: i64) -> (Event, OriginHints) {
        let (host, tags, origin) = self.host_and_tags(line.host, line.tags);
        let event = Event {
            title: text(&parse::unescape(line.title)).into_owned(),
            text: text(&parse::unescape(line.text)).into_owned(),
            timestamp: time_or(line.timestamp, arrival_seconds),
            host,
            aggregation_key: text(line.aggregation_key).into_owned(),
            source_type: text(line.source_type).into_owned(),
            priority: line.priority,
            alert_type: line.alert_type,
            tags,
        };
        (event, origin)
    }

    /// A service check with host, tags and time filled in. Its message is not unescaped, as in the
    /// Agent.
    pub fn check(&self, line: &CheckLine, arrival_seconds: i64) -> (ServiceCheck, OriginHints) {
        let (host, tags, origin) = self.host_and_tags(line.host, line.tags);
        let check = ServiceCheck {
            name: text(line.name).into_owned(),
            status: line.status,
            timestamp: time_or(line.timestamp, arrival_seconds),
            host,
            message: text(line.message).into_owned(),
            tags,
        };
        (check, origin)
    }

    /// An `h:` field wins over a `host:` tag, and that over the own host name.
    fn host_and_tags(&self, host: &[u8], tags: &[u8]) -> (String, Vec<String>, OriginHints) {
        let mut tags: Vec<_> = split_tags(tags).map(|tag| text(tag).into_owned()).collect();
        let magic = Magic::take(&mut tags);
        tags.extend_from_slice(&self.tags);
        let host = if host.is_empty() {
            magic.host.unwrap_or_else(|| self.hostname.clone())
        } else {
            text(host).into_owned()
        };
        (host, sorted(tags), magic.origin)
    }

    fn in_namespace(&self, name: String) -> String {
        let exempt = || self.namespace_blocklist.iter().any(|start| name.starts_with(start));
        if self.namespace.is_empty() || exempt() { name } else { self.namespace.clone() + &name }
    }
}

/// What the tags say that are no tags; of several with one meaning the last counts.
#[derive(Default)]
struct Magic {
    /// An empty one asks for no host at all.
    host: Option<String>,
    origin: OriginHints,
    source: Source,
}

impl Magic {
    /// Takes the magic tags out of `tags`. `device:` and `dd.internal.resource:` are left in: they
    /// belong to the series and are read by the encoder.
    fn take(tags: &mut Vec<String>) -> Self {
        let mut magic = Self::default();
        tags.retain(|tag| !magic.read(tag));
        magic
    }

    fn read(&mut self, tag: &str) -> bool {
        if let Some(host) = tag.strip_prefix("host:") {
            self.host = Some(host.to_owned());
        } else if let Some(entity) = tag.strip_prefix("dd.internal.entity_id:") {
            self.origin.entity_id = Some(entity.to_owned());
        } else if let Some(cardinality) = tag.strip_prefix("dd.internal.card:") {
            self.origin.cardinality = Some(cardinality.to_owned());
        } else if let Some(check) = tag.strip_prefix("dd.internal.jmx_check_name:") {
            self.source = jmx_source(check);
        } else {
            return false;
        }
        true
    }
}

/// The intake's number of a JMX check.
fn jmx_source(check: &str) -> Source {
    Source(match check {
        "activemq" => 12,
        "cassandra" => 28,
        "confluent_platform" => 40,
        "hazelcast" => 70,
        "hive" => 73,
        "hivemq" => 74,
        "hudi" => 76,
        "ignite" => 83,
        "jboss_wildfly" => 87,
        "kafka" => 90,
        "presto" => 130,
        "solr" => 147,
        "sonarqube" => 148,
        "tomcat" => 163,
        "weblogic" => 172,
        _ => 9,
    })
}

/// Makes text of bytes and remembers whether that took a replacement.
#[derive(Default)]
struct Decoder {
    replaced: bool,
}

impl Decoder {
    fn text(&mut self, bytes: &[u8]) -> String {
        let text = text(bytes);
        self.replaced |= matches!(text, Cow::Owned(_));
        text.into_owned()
    }
}

fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn time_or(timestamp: i64, arrival_seconds: i64) -> i64 {
    if timestamp == 0 { arrival_seconds } else { timestamp }
}

/// As the tags of events and service checks are kept.
pub fn sorted(mut tags: Vec<String>) -> Vec<String> {
    tags.sort_unstable();
    tags.dedup();
    tags
}

/// A text as the original statsd stores it.
fn sanitised(text: &str, sanitise: fn(&[u8], &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    sanitise(text.as_bytes(), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use std::collections::BTreeSet;

    use super::*;
    use crate::sample::{AlertType, Kind, OriginFields, Priority, Status, Values};

    /// Just enough of a parser for vectors: name and the last `#` field.
    fn sample(line: &[u8]) -> Sample<'_> {
        let colon = line.iter().position(|b| *b == b':').unwrap();
        let mut fields = line.split(|b| *b == b'|');
        let tags = fields.rfind(|field| field.starts_with(b"#")).map_or(&b""[..], |f| &f[1..]);
        Sample {
            name: &line[..colon],
            kind: Kind::Count,
            values: Values::One(1.0),
            rate: 1.0,
            tags,
            timestamp: None,
            origin: OriginFields::default(),
        }
    }

    fn rules(config: Config) -> Rules {
        Rules::new(&config, "agent-host").unwrap()
    }

    fn keep(rules: &Rules, line: &str) -> (Context, OriginHints) {
        match rules.context(&sample(line.as_bytes()), Dialect::Datadog) {
            Outcome::Keep { series, origin, .. } => (series.context(), origin),
            Outcome::Blocked => panic!("{line} was blocked"),
        }
    }

    fn tags_of(context: &Context) -> Vec<&str> {
        context.tags().collect()
    }

    fn strings(value: &Value) -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        sorted(list.map(|tag| tag.as_str().unwrap().to_owned()).collect())
    }

    /// The settings of a vector, by the Agent's names.
    fn vector_config(config: &Value) -> Config {
        let mut out = Config::default();
        for (key, value) in config.as_object().into_iter().flatten() {
            match key.as_str() {
                "hostname" => assert_eq!(value, "agent-host"),
                "dogstatsd_tags" => out.tags = strings(value),
                "statsd_metric_namespace" => out.namespace = value.as_str().unwrap().to_owned(),
                "statsd_metric_blocklist" => out.metric_blocklist = strings(value),
                "statsd_metric_blocklist_match_prefix" => {
                    out.metric_blocklist_match_prefix = value.as_bool().unwrap();
                }
                "dogstatsd_mapper_profiles" => {
                    out.mapper_profiles = serde_json::from_value(value.clone()).unwrap();
                }
                other => panic!("unknown setting {other}"),
            }
        }
        out
    }

    fn vectors(text: &str) -> impl Iterator<Item = Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap())
    }

    #[test]
    fn vectors_of_enrichment_and_mapper() {
        let files = [
            include_str!("../conformance/vectors/enrich.jsonl"),
            include_str!("../conformance/vectors/mapper.jsonl"),
        ];
        for vector in files.into_iter().flat_map(vectors) {
            let line = vector["line"].as_str().unwrap();
            if line.starts_with('_') {
                continue; // Events and checks stand below, as lines that are already parsed.
            }
            let rules = rules(vector_config(&vector["config"]));
            let expect = &vector["expect"];
            if expect.get("dropped").is_some() {
                let outcome = rules.context(&sample(line.as_bytes()), Dialect::Datadog);
                assert_eq!(outcome, Outcome::Blocked, "{vector}");
                continue;
            }
            let (context, origin) = keep(&rules, line);
            for (key, value) in expect.as_object().unwrap() {
                match key.as_str() {
                    "name" => assert_eq!(context.name(), value, "{vector}"),
                    "host" => assert_eq!(context.host(), value, "{vector}"),
                    "tags" | "extra_tags" => {
                        assert_eq!(tags_of(&context), strings(value), "{vector}");
                    }
                    "pod_uid" => assert_eq!(origin.entity_id.as_deref(), value.as_str()),
                    "cardinality" => assert_eq!(origin.cardinality.as_deref(), value.as_str()),
                    "origin" => assert_eq!(context.source().0, value["service"]),
                    // Resources are the encoder's: their tags must still be there.
                    "series" => assert_eq!(tags_of(&context).len(), 2, "{vector}"),
                    other => panic!("unknown expectation {other}"),
                }
            }
        }
    }

    #[test]
    fn vectors_of_mapper_errors() {
        for vector in vectors(include_str!("../conformance/vectors/mapper_config.jsonl")) {
            let mapping = Mapping {
                pattern: vector["line"].as_str().unwrap().to_owned(),
                name: "n".to_owned(),
                ..Mapping::default()
            };
            let profile = MapperProfile {
                name: "p".to_owned(),
                prefix: "*".to_owned(),
                mappings: vec![mapping],
            };
            let config = Config { mapper_profiles: vec![profile], ..Config::default() };
            let error = Rules::new(&config, "").unwrap_err();
            assert_eq!(error.path, "rules.mapper_profiles[0].mappings[0].match", "{vector}");
        }
    }

    #[test]
    fn magic_tags_leave_and_others_stay() {
        let rules = rules(Config::default());
        for (tags, host, left, source) in [
            ("host:", "", &[][..], 0),
            ("host:a,host:", "", &[], 0),
            ("Host:a,hosts:b", "agent-host", &["Host:a", "hosts:b"], 0),
            (
                "device:sda,dd.internal.resource:a:b",
                "agent-host",
                &["dd.internal.resource:a:b", "device:sda"],
                0,
            ),
            ("dd.internal.jmx_check_name:kafka", "agent-host", &[], 90),
            ("dd.internal.jmx_check_name:x", "agent-host", &[], 9),
            ("b,a,b,", "agent-host", &["", "a", "b"], 0),
        ] {
            let (context, _) = keep(&rules, &format!("a:1|c|#{tags}"));
            assert_eq!((context.host(), tags_of(&context)), (host, left.to_vec()), "{tags}");
            assert_eq!(context.source(), Source(source), "{tags}");
        }
    }

    #[test]
    fn a_mapped_tag_may_be_magic_and_an_own_tag_is_not() {
        let mapping = Mapping {
            pattern: "on.*.cpu".to_owned(),
            name: "cpu".to_owned(),
            tags: BTreeMap::from([("host".to_owned(), "$1".to_owned())]),
            ..Mapping::default()
        };
        let profile =
            MapperProfile { name: "p".into(), prefix: "on.".into(), mappings: vec![mapping] };
        let rules = rules(Config {
            namespace: "shop".to_owned(),
            tags: ["z", "host:x", "z"].map(String::from).to_vec(),
            mapper_profiles: vec![profile],
            ..Config::default()
        });
        let (context, _) = keep(&rules, "on.web-1.cpu:1|g|#k:v");
        assert_eq!((context.name(), context.host()), ("shop.cpu", "web-1"));
        assert_eq!(tags_of(&context), ["host:x", "k:v", "z"]);
    }

    #[test]
    fn bytes_become_text_and_that_is_told() {
        let rules = rules(Config::default());
        for (line, name, tag, invalid) in [
            (&b"a:1|c|#t"[..], "a", "t", false),
            (b"a\xff:1|c|#t", "a\u{fffd}", "t", true),
            (b"a:1|c|#t\xc3", "a", "t\u{fffd}", true),
            ("é:1|c|#\u{fffd}".as_bytes(), "é", "\u{fffd}", false),
        ] {
            let Outcome::Keep { series, invalid_utf8, .. } =
                rules.context(&sample(line), Dialect::Datadog)
            else {
                panic!("blocked")
            };
            let context = series.context();
            assert_eq!((context.name(), tags_of(&context)), (name, vec![tag]));
            assert_eq!(invalid_utf8, invalid, "{name}");
        }
    }

    #[test]
    fn statsd_keys_are_sanitised_and_datadog_names_are_not() {
        let rules = rules(Config::default());
        for (sent, statsd) in [
            ("a b/c", "a_b-c"),
            ("a \t\u{a0} b", "a_b"),
            ("a(é)$b;k=v.-_", "ab;k=v.-_"),
            ("é", "_"),
            ("a\u{85}b\u{feff}c", "ab_c"),
        ] {
            let line = format!("{sent}:1|c|#k:v w");
            for (dialect, want, tag) in
                [(Dialect::Statsd, statsd, "k:v_w"), (Dialect::Datadog, sent, "k:v w")]
            {
                let Outcome::Keep { series, .. } = rules.context(&sample(line.as_bytes()), dialect)
                else {
                    panic!("blocked")
                };
                let context = series.context();
                assert_eq!(context.name(), want);
                assert_eq!(tags_of(&context), [tag]);
            }
        }
    }

    fn event_line<'a>(host: &'a str, tags: &'a str, timestamp: i64) -> EventLine<'a> {
        EventLine {
            title: br"one\ntwo\t",
            text: br"\\n",
            timestamp,
            host: host.as_bytes(),
            aggregation_key: b"key",
            source_type: b"src",
            priority: Priority::Low,
            alert_type: AlertType::Error,
            tags: tags.as_bytes(),
            origin: OriginFields::default(),
            ignored: 0,
        }
    }

    #[test]
    fn events_and_checks_are_enriched() {
        let config = Config {
            namespace: "shop".to_owned(),
            tags: vec!["env:dev".to_owned()],
            ..Config::default()
        };
        let rules = rules(config);
        for (host, tags, want_host, want_tags) in [
            ("", "", "agent-host", &["env:dev"][..]),
            ("", "host:tag", "tag", &["env:dev"]),
            ("h", "host:tag", "h", &["env:dev"]),
            ("", "host:", "", &["env:dev"]),
            ("h", "x,a,x,env:dev,dd.internal.card:low", "h", &["a", "env:dev", "x"]),
        ] {
            let (event, _) = rules.event(&event_line(host, tags, 0), 77);
            assert_eq!((event.host.as_str(), &event.tags[..]), (want_host, &strs(want_tags)[..]));
            assert_eq!(event.timestamp, 77);
            let check = CheckLine {
                name: b"up",
                status: Status::Critical,
                timestamp: 5,
                host: host.as_bytes(),
                message: br"a\nb",
                tags: tags.as_bytes(),
                origin: OriginFields::default(),
                ignored: 0,
            };
            let (check, origin) = rules.check(&check, 77);
            assert_eq!(origin.cardinality.is_some(), tags.ends_with(":low"));
            assert_eq!((check.host.as_str(), &check.tags[..]), (want_host, &strs(want_tags)[..]));
            assert_eq!((check.name.as_str(), check.timestamp), ("up", 5));
            assert_eq!((check.message.as_str(), check.status), (r"a\nb", Status::Critical));
        }
        let (event, _) = rules.event(&event_line("", "", -1), 77);
        assert_eq!((event.title.as_str(), event.text.as_str()), ("one\ntwo\\t", "\\\n"));
        assert_eq!((event.aggregation_key.as_str(), event.source_type.as_str()), ("key", "src"));
        assert_eq!((event.priority, event.alert_type), (Priority::Low, AlertType::Error));
        assert_eq!(event.timestamp, -1);
    }

    fn strs(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    proptest! {
        #[test]
        fn order_and_repetition_of_tags_give_one_context(
            mut tags in proptest::collection::vec("(host|dd\\.internal\\.card|k|m):[ab]", 0..6),
        ) {
            // Of repeated magic tags the last counts, so only one of each may be shuffled.
            let mut seen = BTreeSet::new();
            tags.retain(|t| !t.starts_with(['h', 'd']) || seen.insert(t.as_bytes()[0]));
            let rules = rules(Config::default());
            let (forward, _) = keep(&rules, &format!("a:1|c|#{}", tags.join(",")));
            tags.reverse();
            tags.extend(tags.clone());
            let (backward, _) = keep(&rules, &format!("a:1|c|#{}", tags.join(",")));
            prop_assert_eq!(forward, backward);
        }
    }
}
