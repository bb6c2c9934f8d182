//! What happens to a new series before it is stored: mapping, namespace, blocklist, magic tags.
//! Applied once per spelling, never per sample.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is done to names and tags before a series is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Put before every metric name, with a dot between.
    pub namespace: String,
    /// Names that begin with one of these get no namespace.
    pub namespace_blocklist: Vec<String>,
    /// Metrics with one of these names (namespace included) are dropped and counted.
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
