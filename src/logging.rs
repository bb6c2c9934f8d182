//! Logs to standard error or a file: state changes, not occurrences.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// trace, debug, info, warn, error or off.
    pub level: String,
    /// `text` or `json`.
    pub format: Format,
    /// Also append to this file; empty means no file.
    pub file: String,
    /// Write to standard error.
    pub console: bool,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: Format::Text, file: String::new(), console: true }
    }
}
