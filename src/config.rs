//! The whole configuration, composed of the modules' own, and how it comes about.
//!
//! Layers, each over the one before: defaults, the Agent's `datadog.yaml`, its files of checks
//! (`conf.d`), `tallyd.yaml`, the Agent's environment variables (`DD_*`), our own (`TALLYD_*`), flags. All meet as texts at the
//! paths of settings; types, ranges and comments come from the `Config` structs.

pub mod agent;
mod conf_d;
mod convert;
pub mod describe;
mod load;
pub mod tree;
mod validate;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Loaded, Setting, Source, Sources, agent_from_text, from_text, load};

use crate::{
    collectors, flush, intake, logging, origin, rules, shard, sinks, state, status, value,
};

/// Exit code of a wrong configuration, as in sysexits.h.
pub const EXIT_CODE: u8 = 78;

/// Every setting of tallyd. Sections are named as the modules that they configure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub intake: intake::Config,
    pub rules: rules::Config,
    pub origin: origin::Config,
    pub collectors: collectors::Config,
    pub shard: shard::Config,
    pub value: value::Config,
    pub flush: flush::Config,
    pub sinks: sinks::Config,
    pub state: state::Config,
    pub status: status::Config,
    pub logging: logging::Config,
}
