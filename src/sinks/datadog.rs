//! The Datadog intake.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::http;

/// The Datadog intake. Off while there is no API key.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The API key; empty turns this sink off. Shown as stars.
    pub api_key: String,
    /// The Datadog site.
    pub site: String,
    /// Address of the intake; takes precedence over site.
    pub dd_url: String,
    /// Further intakes: address to list of keys. Every payload goes to each.
    pub additional_endpoints: BTreeMap<String, Vec<String>>,
    /// Send series as protobuf to /api/v2/series instead of as JSON to /api/v1/series.
    pub use_v2_series: bool,
    /// `zstd`, `zlib`, `gzip` or `none`.
    pub compressor_kind: String,
    /// Level of zstd.
    pub zstd_level: i32,
    /// Bytes of one compressed payload of v2 series.
    pub max_series_payload_size: usize,
    /// Bytes of one payload of v2 series before compression.
    pub max_series_uncompressed_payload_size: usize,
    /// Points of one payload of v2 series.
    pub max_series_points_per_payload: usize,
    /// Bytes of any other compressed payload.
    pub max_payload_size: usize,
    /// Bytes of any other payload before compression.
    pub max_uncompressed_payload_size: usize,
    /// Send series.
    pub enable_series: bool,
    /// Send sketches.
    pub enable_sketches: bool,
    /// Send events.
    pub enable_events: bool,
    /// Send service checks.
    pub enable_service_checks: bool,
    /// Bytes of payloads that wait in memory for each endpoint; the oldest are dropped and counted.
    pub retry_queue_bytes: usize,
    /// Check the key at the start and once an hour.
    pub validate_key: bool,
    /// How the intake is reached.
    pub http: http::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_key: String::new(),
            site: "datadoghq.com".to_owned(),
            dd_url: String::new(),
            additional_endpoints: BTreeMap::new(),
            use_v2_series: true,
            compressor_kind: "zstd".to_owned(),
            zstd_level: 1,
            max_series_payload_size: 512_000,
            max_series_uncompressed_payload_size: 5_242_880,
            max_series_points_per_payload: 10_000,
            max_payload_size: 2_621_440,
            max_uncompressed_payload_size: 4_194_304,
            enable_series: true,
            enable_sketches: true,
            enable_events: true,
            enable_service_checks: true,
            retry_queue_bytes: 15 * 1024 * 1024,
            validate_key: true,
            http: http::Config::default(),
        }
    }
}

/// Never shows a key.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("datadog::Config")
            .field("site", &self.site)
            .field("dd_url", &self.dd_url)
            .finish_non_exhaustive()
    }
}
