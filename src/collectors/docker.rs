//! The Docker check: containers by the Agent's names, units and tags.
//!
//! ```text
//! engine --list, inspect, events-->  inventory  --snapshot-->  run  --> samples
//!          (tasks of `watch`)                                   |
//! cgroup files of each container -------------------------------'
//! ```
//!
//! A run reads files and memory only. What an engine says comes by tasks of their own, so one that
//! is slow, hangs or has gone delays nothing: containers that are known are measured on.

pub mod api;
pub mod config;
pub mod engine;
pub mod events;
pub mod figures;
pub mod filter;
pub mod inventory;
mod kills;
mod measure;
mod metrics;
mod report;
pub mod tags;
pub mod watch;

use std::collections::HashMap;
use std::env;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::anyhow;
use regex::Regex;

pub use config::Config;
pub use metrics::METRICS;

use self::engine::{Address, Engine};
use self::filter::Filter;
use self::inventory::{Health, Inventory};
use self::measure::Measure;
use self::watch::Watch;
use super::{Collector, Enabled, Samples, Tags, blocking};
use crate::cgroup::roots::Roots;
use crate::origin::Directory;
use crate::telemetry::Telemetry;
use crate::time::Time;

/// Checks what the types of the settings do not.
///
/// # Errors
///
/// The setting, below the check's section, and what is wrong with it.
pub fn verify(config: &Config) -> Result<(), (String, String)> {
    let named = |name: &str| {
        let name = name.to_owned();
        move |problem| (name, problem)
    };
    Filter::new(config).map_err(|error| match error.split_once(": ") {
        Some((name, problem)) => (name.to_owned(), problem.to_owned()),
        None => ("exclude".to_owned(), error),
    })?;
    for (i, pattern) in config.health_service_check_whitelist.iter().enumerate() {
        let name = format!("health_service_check_whitelist[{i}]");
        filter::from_start(pattern).map_err(named(&name))?;
    }
    engine::address(config, |_| None, |_| false).map_err(named("url"))?;
    engine::pinned_version(config).map_err(named("api_version")).map(|_| ())
}

/// What the check needs of its surroundings.
#[derive(Clone)]
pub struct Surroundings {
    pub roots: Roots,
    /// For the titles of events.
    pub hostname: String,
    /// Between two runs.
    pub interval: Duration,
    pub directory: Arc<Directory>,
    pub telemetry: Arc<Telemetry>,
    pub clock: fn() -> Time,
}

impl Surroundings {
    pub fn new(around: &super::Surroundings, interval: Duration) -> Self {
        Self {
            roots: around.roots.clone(),
            hostname: around.hostname.to_owned(),
            interval,
            directory: Arc::clone(around.directory),
            telemetry: Arc::clone(around.telemetry),
            clock: Time::now,
        }
    }
}

/// The check.
pub struct Docker {
    config: Config,
    around: Surroundings,
    /// For events of containers that are not known any more.
    filter: Filter,
    health_whitelist: Vec<Regex>,
    /// Tags of all that is sent.
    own_tags: Tags,
    measure: Measure,
    /// From the first run on that knows where the engine is.
    watch: Option<Watch>,
    /// The health that was told last, by container.
    told_health: HashMap<String, Health>,
}

impl Docker {
    /// # Errors
    ///
    /// A setting that cannot be used, by its name.
    pub fn new(config: &Config, around: Surroundings) -> anyhow::Result<Self> {
        let filter = Filter::new(config).map_err(|error| anyhow!("collectors.docker.{error}"))?;
        let health = config.health_service_check_whitelist.iter().map(|p| filter::from_start(p));
        Ok(Self {
            config: config.clone(),
            filter,
            health_whitelist: health.collect::<Result<_, _>>().map_err(|error| {
                anyhow!("collectors.docker.health_service_check_whitelist: {error}")
            })?,
            own_tags: Tags::new(&config.tags),
            measure: Measure::new(config, &around.roots),
            watch: None,
            told_health: HashMap::new(),
            around,
        })
    }

    /// Whether there is an engine to ask, as far as can be told without asking.
    pub fn finds_engine(&self) -> bool {
        self.config.enabled == Enabled::On || matches!(self.address(), Ok(Some(_)))
    }

    fn address(&self) -> anyhow::Result<Option<Address>> {
        let found = engine::address(&self.config, |name| env::var(name).ok(), Path::exists);
        found.map_err(|error| anyhow!("collectors.docker.url: {error}"))
    }

    /// Looks for the engine, until it is found.
    fn start(&mut self) -> anyhow::Result<Option<&mut Watch>> {
        if self.watch.is_none() {
            let address = match self.address()? {
                Some(address) => address,
                None if self.config.enabled == Enabled::On => {
                    Address::Unix("/var/run/docker.sock".into())
                }
                None => return Ok(None),
            };
            tracing::info!("docker: asking the engine at {address}");
            let engine = Engine::new(&self.config, &address, |name| env::var(name).ok())
                .map_err(|error| anyhow!("{address}: {error}"))?;
            let filter = Filter::new(&self.config).map_err(|error| anyhow!("{error}"))?;
            let inventory = Inventory::new(&self.config, filter);
            self.watch = Some(Watch::start(engine, &self.config, inventory, &self.around));
        }
        Ok(self.watch.as_mut())
    }

    async fn run_once(&mut self, samples: &mut Samples) -> anyhow::Result<()> {
        let Some(watch) = self.start()? else { return Ok(()) };
        let snapshot = watch.snapshot(samples.time_left()).await;
        let counted = watch.counted();
        let telemetry = &self.around.telemetry;
        telemetry.docker_events_dropped.add(snapshot.events_dropped);
        telemetry.docker_containers_left_out.store(snapshot.left_out as u64, Relaxed);
        self.report(samples, &snapshot);
        self.report_counted(samples, &snapshot, &counted);
        let Some(watch) = &self.watch else { return Ok(()) };
        blocking(|| self.measure.run(samples, &snapshot, watch, &self.around.directory))
    }
}

impl Collector for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn run<'a>(
        &'a mut self,
        samples: &'a mut Samples,
        _now: Time,
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>> {
        Box::pin(self.run_once(samples))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_setting_is_named() {
        let mut config = Config::default();
        assert_eq!(verify(&config), Ok(()));
        let name = |config: &Config| verify(config).expect_err("a wrong setting").0;
        config.api_version = "new".to_owned();
        assert_eq!(name(&config), "api_version");
        config.url = "ftp://x".to_owned();
        assert_eq!(name(&config), "url");
        config.health_service_check_whitelist = vec!["a".to_owned(), "(".to_owned()];
        assert_eq!(name(&config), "health_service_check_whitelist[1]");
        config.exclude = vec!["name:[".to_owned()];
        assert_eq!(name(&config), "exclude[0]");
    }
}
