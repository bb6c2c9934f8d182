//! Who sent a sample: its process, its container, its pod; and the tags these bring.

pub mod directory;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use directory::{Directory, EntityTags, Origin};

/// Names that this host and its senders go by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Host of every series that names none itself; empty takes the system's host name.
    pub hostname: String,
    /// Send series without a host unless the client names one.
    pub no_hostname: bool,
}
