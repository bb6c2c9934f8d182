//! The aggregate: series by identity, and what each holds in the open bucket.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How series are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Series held at once; what exceeds it is counted and folded into one series per kind.
    pub contexts_max: usize,
    /// Seconds for which an idle counter goes on reporting zero.
    pub counter_expiry_seconds: u32,
    /// Seconds after which an idle series is forgotten; counters add counter_expiry_seconds.
    pub context_expiry_seconds: u32,
    /// Seconds for which the last value of a gauge is remembered for later deltas (dialect statsd).
    pub delta_expiry_seconds: u32,
    /// Timestamped points held for the next flush; one more is dropped and counted.
    pub timed_points_max: usize,
    /// Events and service checks held for the next flush; one more is dropped and counted.
    pub events_max: usize,
    /// Independent parts of the aggregate; 0 takes one per processor, at most 8.
    pub shards: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            contexts_max: 1_000_000,
            counter_expiry_seconds: 300,
            context_expiry_seconds: 20,
            delta_expiry_seconds: 86_400,
            timed_points_max: 1_000_000,
            events_max: 10_000,
            shards: 0,
        }
    }
}
