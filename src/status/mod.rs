//! HTTP: health, metrics, series as JSON, and the DogStatsD proxy endpoint.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of the HTTP server; empty closes it.
    pub listen: String,
    /// A second address for health checks alone, as the Agent's health_port; empty closes it.
    pub health_listen: String,
    /// Address that serves `POST /dogstatsd/v2/proxy` to tracers, usually 127.0.0.1:8126; empty
    /// closes it. The main address serves it too.
    pub trace_listen: String,
    /// Bytes of a body posted to the proxy endpoint; a longer one is refused.
    pub body_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8127".to_owned(),
            health_listen: String::new(),
            trace_listen: String::new(),
            body_max: 5 * 1024 * 1024,
        }
    }
}
