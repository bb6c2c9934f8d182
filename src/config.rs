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

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Loaded, Setting, Source, Sources, agent_from_text, from_text, load};

use crate::{
    collectors, flush, intake, journal, logging, origin, profile, rules, secrets, shard, sinks,
    state, status, telemetry, value,
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
    pub journal: journal::Config,
    pub sinks: sinks::Config,
    pub state: state::Config,
    pub secrets: secrets::Config,
    pub status: status::Config,
    pub telemetry: telemetry::Config,
    pub logging: logging::Config,
    pub self_profile: profile::Config,
}

impl Config {
    /// Puts secrets where `ENC[HANDLE]` stands for them, by running `secrets.command` if there are
    /// any. Until then such values are as they were written.
    ///
    /// # Errors
    /// In one line that names the handle, never a value.
    pub fn resolve_secrets(&mut self) -> Result<(), ConfigError> {
        let handles = self.references().filter_map(|text| secrets::handle(text).map(str::to_owned));
        let handles: BTreeSet<_> = handles.collect();
        if handles.is_empty() {
            return Ok(());
        }
        let values = secrets::fetch(&self.secrets, &handles);
        let values = values.map_err(|e| ConfigError::new("secrets.command", format!("{e:#}")))?;
        for text in self.references() {
            if let Some(value) = secrets::handle(text).and_then(|handle| values.get(handle)) {
                text.clone_from(value);
            }
        }
        validate::validate(self).map_err(|fault| {
            ConfigError::new("secrets.command", format!("{}: {}", fault.path, fault.message))
        })
    }

    /// The values that may be written as `ENC[HANDLE]`.
    fn references(&mut self) -> impl Iterator<Item = &mut String> {
        let datadog = &mut self.sinks.datadog;
        let keys = datadog.additional_endpoints.values_mut().flatten();
        let http = &mut datadog.http;
        [&mut datadog.api_key, &mut http.proxy_http, &mut http.proxy_https].into_iter().chain(keys)
    }
}
