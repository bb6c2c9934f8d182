//! A readable table per flush, on standard output.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The table on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `on`, `off`, or `auto`: on unless the Datadog sink is.
    pub enabled: Switch,
    /// Lines of a table; the rest is counted.
    pub rows: usize,
}

/// On, off, or decided by the rest of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    On,
    Off,
    #[default]
    Auto,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: Switch::Auto, rows: 40 }
    }
}
