//! The exposition page that Prometheus scrapes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
