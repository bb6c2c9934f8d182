//! The whole configuration, composed of the modules' own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{flush, intake, logging, origin, rules, shard, sinks, status, value};

/// Every setting of tallyd. Sections are named as the modules that they configure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub intake: intake::Config,
    pub rules: rules::Config,
    pub origin: origin::Config,
    pub shard: shard::Config,
    pub value: value::Config,
    pub flush: flush::Config,
    pub sinks: sinks::Config,
    pub status: status::Config,
    pub logging: logging::Config,
}
