//! Collectors: what tallyd measures by itself, beside what it is sent.
//!
//! A [`Collector`] runs once per interval and puts what it finds into [`Samples`]; from there it
//! goes the way of samples from the network: same rules, same limits, same shards. A run has a
//! budget of time and fails alone.

pub mod cgroup;
pub mod docker;
pub mod image;
pub mod itself;
pub mod orchestrator;
pub mod samples;
mod schedule;
mod tagging;

use std::env;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Handle, RuntimeFlavor};

pub use samples::{Samples, Tags};
pub use schedule::{Collectors, Planned, Runner};

use self::cgroup::CgroupCheck;
use self::docker::Docker;
use self::itself::Itself;
use self::orchestrator::ecs::Ecs;
use self::orchestrator::kubelet::Kubelet;
use self::orchestrator::{Orchestrator, Wishes};
use crate::cgroup::proc::Proc;
use crate::cgroup::roots::Roots;
use crate::origin::Directory;
use crate::telemetry::Telemetry;
use crate::time::Time;

/// Measures something once per interval.
pub trait Collector: Send + 'static {
    /// The name of its section in the settings.
    fn name(&self) -> &'static str;

    /// One run. What it puts into `samples` counts even if it fails or runs out of time later.
    /// File reads go through [`blocking`]; long loops ask [`Samples::out_of_time`].
    fn run<'a>(
        &'a mut self,
        samples: &'a mut Samples,
        now: Time,
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>>;
}

/// What tallyd measures by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder of dd-agent's files of checks, such as docker.yaml. Empty takes the first that there is
    /// of conf.d beside tallyd.yaml, conf.d beside the Agent's file, /etc/tallyd/conf.d,
    /// /etc/datadog-agent/conf.d and /etc/dd-agent/conf.d.
    pub conf_d: String,
    /// The machine's /proc. Empty takes the first that there is of $DD_CONTAINER_PROC_ROOT,
    /// $HOST_PROC, /host/proc and /proc.
    pub proc_root: String,
    /// The machine's /sys/fs/cgroup. Empty takes the first that there is of
    /// $DD_CONTAINER_CGROUP_ROOT, $HOST_SYS/fs/cgroup, /host/sys/fs/cgroup, /host/cgroup and
    /// /sys/fs/cgroup.
    pub cgroup_root: String,
    pub cgroup: cgroup::Config,
    pub docker: docker::Config,
    pub kubelet: orchestrator::kubelet::Config,
    pub ecs: orchestrator::ecs::Config,
    #[serde(rename = "self")]
    pub itself: itself::Config,
}

impl Config {
    /// Where the machine's files are.
    pub fn roots(&self, variable: impl Fn(&str) -> Option<String>) -> Roots {
        Roots::find(&self.proc_root, &self.cgroup_root, variable)
    }
}

/// What collectors need of the process around them.
pub struct Surroundings<'a> {
    pub roots: &'a Roots,
    /// The flush interval in seconds.
    pub flush: u32,
    /// Name of this host.
    pub hostname: &'a str,
    /// Where containers are made known to those who look senders up.
    pub directory: &'a Arc<Directory>,
    pub telemetry: &'a Arc<Telemetry>,
}

/// Every collector that is to run.
///
/// # Errors
///
/// A setting that cannot be used, by its name.
pub fn all(config: &Config, around: &Surroundings) -> anyhow::Result<Vec<Planned>> {
    let (roots, flush) = (around.roots, around.flush);
    let mut all = Vec::new();
    let mut add = |collector: Box<dyn Collector>, every, seconds| {
        let (interval, budget) = (interval(every, flush), budget(seconds, flush));
        all.push(Planned { collector, interval, budget });
        true
    };
    let Config { cgroup, docker, itself, .. } = config;
    let mut any = false;
    if cgroup.enabled.or_if(|| roots.named) {
        let check = CgroupCheck::new(cgroup.clone(), roots.clone(), Arc::clone(around.directory));
        any = add(Box::new(check), cgroup.interval, cgroup.budget);
    }
    // It looks for an engine that comes later, too.
    if docker.enabled != Enabled::Off {
        let every = interval(docker.interval, flush);
        let check = Docker::new(docker, docker::Surroundings::new(around, every))?;
        any |= check.finds_engine();
        add(Box::new(check), docker.interval, docker.budget);
    }
    if itself.enabled.or_if(|| any) {
        add(Box::new(Itself::new(Proc::new("/proc"))), itself.interval, itself.budget);
    }
    Ok(all)
}

/// Starts to ask the orchestrators there are for the tags of their containers, on the current
/// runtime.
///
/// # Errors
///
/// A setting that cannot be used, by its name.
pub fn ask_orchestrators(
    config: &Config,
    directory: &Arc<Directory>,
    telemetry: &Arc<Telemetry>,
) -> anyhow::Result<()> {
    let ask = |orchestrator, seconds: u32| {
        let (directory, telemetry) = (Arc::clone(directory), Arc::clone(telemetry));
        let interval = Duration::from_secs(seconds.into());
        let watch = orchestrator::watch(orchestrator, interval, directory, telemetry, Time::now);
        tokio::spawn(watch);
    };
    let Config { docker, kubelet, ecs, .. } = config;
    let wishes = || Wishes::new(docker).map_err(|error| anyhow!("collectors.docker.{error}"));
    if kubelet.is_wanted() {
        let made = Kubelet::new(kubelet, wishes()?);
        let made = made.map_err(|error| anyhow!("collectors.kubelet: {error}"))?;
        ask(Orchestrator::Kubelet(made), kubelet.interval);
    }
    if let Some(url) = ecs.address(|name| env::var(name).ok()) {
        let made = Ecs::new(ecs, url, wishes()?);
        let made = made.map_err(|error| anyhow!("collectors.ecs: {error}"))?;
        ask(Orchestrator::Ecs(made), ecs.interval);
    }
    Ok(())
}

/// One row of a collector's table in COLLECTORS.md.
pub struct Metric {
    pub name: &'static str,
    /// gauge, rate (a gauge of growth per second) or count.
    pub kind: &'static str,
    /// Empty for plain numbers.
    pub unit: &'static str,
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: &'static str,
    unit: &'static str,
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, help }
}

/// Whether a collector runs; `auto` where it finds what it is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enabled {
    #[default]
    Auto,
    On,
    Off,
}

impl Enabled {
    /// `found` tells whether there is something to collect from.
    pub fn or_if(self, found: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Auto => found(),
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// Runs file reads without holding up the tasks that share this thread.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    let several = Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    if several { tokio::task::block_in_place(work) } else { work() }
}

/// Seconds between runs that are wanted where no setting says otherwise.
const USUAL_INTERVAL: u32 = 15;

/// The multiple of the flush interval that is nearest to what is wanted, of two the larger; so that
/// each run has one batch that it leaves in. 0 stands for the usual.
pub fn interval(wanted: u32, flush: u32) -> Duration {
    let wanted = u64::from(if wanted == 0 { USUAL_INTERVAL } else { wanted });
    let flush = u64::from(flush.max(1));
    let times = ((2 * wanted + flush) / (2 * flush)).max(1);
    Duration::from_secs(times * flush)
}

/// What a run may take: as asked for in seconds, or four fifths of the flush interval, so that it
/// leaves in the batch of the interval in which it began.
pub fn budget(seconds: u32, flush: u32) -> Duration {
    match seconds {
        0 => Duration::from_secs(flush.max(1).into()).mul_f64(0.8),
        seconds => Duration::from_secs(seconds.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_metrics_are_current() {
        let mut document = String::from(
            "# What collectors measure\n\n\
             A rate is a gauge of what a total has grown by per second since the run before. What the \
             kernel does not say is absent, not zero.\n",
        );
        for (name, metrics) in [
            ("cgroup", cgroup::METRICS),
            ("cgroup, with cadvisor_names", cgroup::cadvisor::METRICS),
            ("docker", docker::METRICS),
            ("self", itself::METRICS),
        ] {
            document += &format!(
                "\n## {name}\n\n| name | kind | unit | meaning |\n| --- | --- | --- | --- |\n"
            );
            for Metric { name, kind, unit, help } in metrics {
                document += &format!("| `{name}` | {kind} | {unit} | {help} |\n");
            }
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/COLLECTORS.md");
        if env::var_os("UPDATE").is_some() {
            std::fs::write(path, &document).expect("COLLECTORS.md can be written");
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(kept, document, "UPDATE=1 cargo test writes it anew");
    }

    #[test]
    fn the_interval_is_the_nearest_multiple_and_of_two_the_larger() {
        for (wanted, flush, seconds) in [
            (0, 10, 20),
            (0, 1, 15),
            (0, 5, 15),
            (0, 6, 18),
            (0, 7, 14),
            (0, 15, 15),
            (0, 60, 60),
            (0, 3600, 3600),
            (10, 10, 10),
            (1, 10, 10),
            (14, 10, 10),
            (60, 10, 60),
            (0, 0, 15),
        ] {
            let expected = Duration::from_secs(seconds);
            assert_eq!(interval(wanted, flush), expected, "{wanted} s at flushes of {flush} s");
        }
    }

    #[test]
    fn the_budget_leaves_time_before_the_flush() {
        assert_eq!(budget(0, 10), Duration::from_secs(8));
        assert_eq!(budget(0, 1), Duration::from_millis(800));
        assert_eq!(budget(30, 10), Duration::from_secs(30));
    }
}
