//! What tallyd itself uses, by the same readers as everything else.

use std::future::Future;
use std::pin::Pin;

use anyhow::{Context as _, anyhow};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Collector, Enabled, Metric, Samples, Tags, blocking, metric};
use crate::cgroup::proc::{self, Proc, TICKS_PER_SECOND};
use crate::time::Time;

/// What tallyd itself uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// on, off, or auto: on where another collector runs.
    pub enabled: Enabled,
    /// Seconds between runs, rounded to a multiple of flush.interval; 0 takes the one nearest 15.
    pub interval: u32,
    /// Seconds that a run may take; 0 takes four fifths of flush.interval.
    pub budget: u32,
}

/// Name, kind, unit and meaning of everything that is sent.
pub const METRICS: &[Metric] = &[
    metric("tallyd.process.cpu.usage", "rate", "percent", "processor time; 100 is one processor"),
    metric("tallyd.process.cpu.user", "rate", "percent", "of it in user mode"),
    metric("tallyd.process.cpu.system", "rate", "percent", "of it in the kernel"),
    metric("tallyd.process.memory.rss", "gauge", "byte", "resident memory"),
    metric("tallyd.process.threads", "gauge", "", "threads"),
    metric("tallyd.process.open_fds", "gauge", "", "open files and sockets"),
];

/// The process's own figures.
pub struct Itself {
    proc: Proc,
}

impl Itself {
    /// `proc` is the process's own `/proc`, whatever others are watched.
    pub const fn new(proc: Proc) -> Self {
        Self { proc }
    }

    fn collect(&self, samples: &mut Samples) -> anyhow::Result<()> {
        let stat = self.proc.text("self/stat").context("stat")?;
        let stat = proc::stat(&stat).ok_or_else(|| anyhow!("stat has an unknown form"))?;
        let status = proc::status(&self.proc.text("self/status").context("status")?);
        let none = Tags::default();
        // Percent of one processor.
        let percent = |ticks: u64| ticks as f64 * 100.0 / TICKS_PER_SECOND as f64;
        let total = stat.user_ticks.saturating_add(stat.system_ticks);
        for (name, ticks) in [
            ("tallyd.process.cpu.user", stat.user_ticks),
            ("tallyd.process.cpu.system", stat.system_ticks),
            ("tallyd.process.cpu.usage", total),
        ] {
            samples.rate("self", name, percent(ticks), &none);
        }
        for (name, value) in [
            ("tallyd.process.memory.rss", status.resident_bytes),
            ("tallyd.process.threads", status.threads),
            ("tallyd.process.open_fds", self.proc.open_files_of("self").ok()),
        ] {
            if let Some(value) = value {
                samples.gauge(name, value as f64, &none);
            }
        }
        Ok(())
    }
}

impl Collector for Itself {
    fn name(&self) -> &'static str {
        "self"
    }

    fn run<'a>(
        &'a mut self,
        samples: &'a mut Samples,
        _now: Time,
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>> {
        Box::pin(async move { blocking(|| self.collect(samples)) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_own_process_is_measured_by_the_listed_names() {
        let own = Itself::new(Proc::new("/proc"));
        let mut samples = Samples::default();
        for second in [0, 10] {
            samples.begin(Time::from_seconds(second), Duration::from_secs(1));
            own.collect(&mut samples).expect("a run");
            samples.end(true);
        }
        let found: Vec<_> = samples.numbers().map(|(name, _, value, _)| (name, value)).collect();
        assert_eq!(found.len(), METRICS.len());
        for metric in METRICS {
            let (_, value) =
                found.iter().find(|(name, _)| *name == metric.name).expect(metric.name);
            assert!(*value >= 0.0, "{}: {value}", metric.name);
        }
        let value = |wanted: &str| found.iter().find(|(name, _)| *name == wanted).expect(wanted).1;
        assert!(value("tallyd.process.memory.rss") > 1e6 && value("tallyd.process.threads") >= 1.0);
    }

    #[test]
    fn a_machine_without_this_process_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut samples = Samples::default();
        assert!(Itself::new(Proc::new(folder.path())).collect(&mut samples).is_err());
    }
}
