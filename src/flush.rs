//! The tick: closes buckets and hands the batch to the sinks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When buckets close.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Length of a bucket in seconds, aligned to the clock. A bucket is flushed when it closes.
    pub interval: u32,
    /// Flush the bucket that is still open when tallyd stops.
    pub incomplete_buckets: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { interval: 10, incomplete_buckets: true }
    }
}
