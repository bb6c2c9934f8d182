//! Who sent a sample: the client's own words about its container and pod.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names that this host and its senders go by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Host of every series that names none itself; empty takes the system's host name.
    pub hostname: String,
    /// Send series without a host unless the client names one.
    pub no_hostname: bool,
}
