//! The same figures once more by the names and units of cAdvisor, for queries of Prometheus that
//! are there already. Totals count from the start of tallyd, which `rate()` does not mind.

use crate::cgroup::proc::Interface;
use crate::cgroup::usage::{DeviceIo, Usage};
use crate::collectors::{Metric, Samples, Tags, metric};

/// Name, kind, unit and meaning of everything that is sent.
pub const METRICS: &[Metric] = &[
    metric("container_cpu_usage_seconds_total", "count", "s", "processor time"),
    metric("container_cpu_user_seconds_total", "count", "s", "of it in user mode"),
    metric("container_cpu_system_seconds_total", "count", "s", "of it in the kernel"),
    metric("container_cpu_cfs_periods_total", "count", "", "periods with something to run"),
    metric("container_cpu_cfs_throttled_periods_total", "count", "", "those that ran out"),
    metric("container_cpu_cfs_throttled_seconds_total", "count", "s", "time held back"),
    metric("container_spec_cpu_quota", "gauge", "us", "processor time in each period"),
    metric("container_spec_cpu_period", "gauge", "us", "the period"),
    metric("container_spec_cpu_shares", "gauge", "", "cpu.shares of version 1"),
    metric("container_spec_memory_limit_bytes", "gauge", "byte", "the hard limit"),
    metric("container_spec_memory_reservation_limit_bytes", "gauge", "byte", "the soft limit"),
    metric("container_memory_usage_bytes", "gauge", "byte", "everything that is charged"),
    metric("container_memory_max_usage_bytes", "gauge", "byte", "the most there has been"),
    metric("container_memory_working_set_bytes", "gauge", "byte", "usage without inactive_file"),
    metric("container_memory_rss", "gauge", "byte", "anonymous memory"),
    metric("container_memory_cache", "gauge", "byte", "page cache"),
    metric("container_memory_swap", "gauge", "byte", "swapped out"),
    metric("container_memory_mapped_file", "gauge", "byte", "mapped files"),
    metric("container_memory_failcnt", "count", "", "times that the limit was hit"),
    metric("container_memory_failures_total", "count", "", "page faults by failure_type"),
    metric("container_oom_events_total", "count", "", "processes killed for want of memory"),
    metric("container_threads", "gauge", "", "threads"),
    metric("container_threads_max", "gauge", "", "threads that it may have"),
    metric("container_fs_reads_bytes_total", "count", "byte", "read, by device"),
    metric("container_fs_writes_bytes_total", "count", "byte", "written, by device"),
    metric("container_fs_reads_total", "count", "", "reads, by device"),
    metric("container_fs_writes_total", "count", "", "writes, by device"),
    metric("container_pressure_cpu_waiting_seconds_total", "count", "s", "some task waited"),
    metric("container_pressure_cpu_stalled_seconds_total", "count", "s", "all tasks waited"),
    metric("container_pressure_memory_waiting_seconds_total", "count", "s", "some task waited"),
    metric("container_pressure_memory_stalled_seconds_total", "count", "s", "all tasks waited"),
    metric("container_pressure_io_waiting_seconds_total", "count", "s", "some task waited"),
    metric("container_pressure_io_stalled_seconds_total", "count", "s", "all tasks waited"),
    metric("container_network_receive_bytes_total", "count", "byte", "received, by interface"),
    metric("container_network_receive_packets_total", "count", "", "the same in packets"),
    metric("container_network_receive_errors_total", "count", "", "those with errors"),
    metric("container_network_receive_packets_dropped_total", "count", "", "those dropped"),
    metric("container_network_transmit_bytes_total", "count", "byte", "sent, by interface"),
    metric("container_network_transmit_packets_total", "count", "", "the same in packets"),
    metric("container_network_transmit_errors_total", "count", "", "those with errors"),
    metric("container_network_transmit_packets_dropped_total", "count", "", "those dropped"),
    metric("container_start_time_seconds", "gauge", "s", "when it was started, since 1970"),
    metric("container_last_seen", "gauge", "s", "when it was looked at, since 1970"),
];

/// cAdvisor's labels, and the tags that they are made of.
const LABELS: [(&str, &str); 4] = [
    ("container", "kube_container_name"),
    ("pod", "pod_name"),
    ("namespace", "kube_namespace"),
    ("name", "container_name"),
];

/// Sends the figures of one cgroup, or of one network.
pub(super) struct Sender<'a> {
    entity: &'a str,
    labels: Tags,
}

impl<'a> Sender<'a> {
    pub(super) fn new(entity: &'a str, path: &str, tags: &Tags) -> Self {
        let value = |name: &str| tags.iter().find_map(|t| t.strip_prefix(name)?.strip_prefix(':'));
        let mut labels = Tags::default().and("id", path);
        for (label, name) in LABELS {
            if let Some(value) = value(name) {
                labels = labels.and(label, value);
            }
        }
        let image = match (value("docker_image"), value("image_name"), value("image_tag")) {
            (None, Some(name), Some(tag)) => Some(format!("{name}:{tag}")),
            (image, name, _) => image.or(name).map(str::to_owned),
        };
        if let Some(image) = image {
            labels = labels.and("image", image);
        }
        Self { entity, labels }
    }

    /// `started` is in seconds since 1970.
    pub(super) fn report(&self, usage: &Usage, started: Option<f64>, samples: &mut Samples) {
        let Usage { cpu, memory, pids, pressure, .. } = usage;
        let seconds = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e9);
        for (name, total) in [
            ("container_cpu_usage_seconds_total", seconds(cpu.usage_ns)),
            ("container_cpu_user_seconds_total", seconds(cpu.user_ns)),
            ("container_cpu_system_seconds_total", seconds(cpu.system_ns)),
            ("container_cpu_cfs_periods_total", float(cpu.periods)),
            ("container_cpu_cfs_throttled_periods_total", float(cpu.throttled_periods)),
            ("container_cpu_cfs_throttled_seconds_total", seconds(cpu.throttled_ns)),
            ("container_memory_failcnt", float(memory.limit_hits)),
            ("container_oom_events_total", float(memory.oom_kills)),
        ] {
            self.count("", name, total, &self.labels, samples);
        }
        for (kind, total) in
            [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)]
        {
            let labels = self.labels.and("failure_type", kind).and("scope", "hierarchy");
            self.count(kind, "container_memory_failures_total", float(total), &labels, samples);
        }
        for (names, stalls) in [
            (
                [
                    "container_pressure_cpu_waiting_seconds_total",
                    "container_pressure_cpu_stalled_seconds_total",
                ],
                pressure.cpu,
            ),
            (
                [
                    "container_pressure_memory_waiting_seconds_total",
                    "container_pressure_memory_stalled_seconds_total",
                ],
                pressure.memory,
            ),
            (
                [
                    "container_pressure_io_waiting_seconds_total",
                    "container_pressure_io_stalled_seconds_total",
                ],
                pressure.io,
            ),
        ] {
            let stalls = stalls.unwrap_or_default();
            for (name, stall) in names.into_iter().zip([stalls.some, stalls.full]) {
                let seconds = stall.map(|stall| stall.total_us as f64 / 1e6);
                self.count("", name, seconds, &self.labels, samples);
            }
        }
        for (name, value) in [
            ("container_spec_cpu_quota", float(cpu.quota_us)),
            ("container_spec_cpu_period", float(cpu.period_us)),
            ("container_spec_cpu_shares", float(cpu.shares)),
            ("container_spec_memory_limit_bytes", float(memory.limit)),
            ("container_spec_memory_reservation_limit_bytes", float(memory.soft_limit)),
            ("container_memory_usage_bytes", float(memory.usage)),
            ("container_memory_max_usage_bytes", float(memory.peak)),
            ("container_memory_working_set_bytes", float(memory.working_set())),
            ("container_memory_rss", float(memory.rss)),
            ("container_memory_cache", float(memory.cache)),
            ("container_memory_swap", float(memory.swap)),
            ("container_memory_mapped_file", float(memory.mapped_file)),
            ("container_threads", float(pids.current)),
            ("container_threads_max", float(pids.limit)),
            ("container_start_time_seconds", started),
            ("container_last_seen", Some(samples.now().0 as f64 / 1000.0)),
        ] {
            if let Some(value) = value {
                samples.gauge(name, value, &self.labels);
            }
        }
    }

    /// `device` is a name; `None` where the kernel counts over all devices.
    pub(super) fn device(&self, device: Option<&str>, io: &DeviceIo, samples: &mut Samples) {
        let labels = device.map_or_else(|| self.labels.clone(), |d| self.labels.and("device", d));
        for (name, total) in [
            ("container_fs_reads_bytes_total", io.read_bytes),
            ("container_fs_writes_bytes_total", io.write_bytes),
            ("container_fs_reads_total", io.reads),
            ("container_fs_writes_total", io.writes),
        ] {
            self.count(device.unwrap_or_default(), name, float(total), &labels, samples);
        }
    }

    pub(super) fn interface(&self, interface: &Interface<'_>, samples: &mut Samples) {
        let Interface { name: own, received, sent } = interface;
        let labels = self.labels.and("interface", own);
        for (name, total) in [
            ("container_network_receive_bytes_total", received.bytes),
            ("container_network_receive_packets_total", received.packets),
            ("container_network_receive_errors_total", received.errors),
            ("container_network_receive_packets_dropped_total", received.dropped),
            ("container_network_transmit_bytes_total", sent.bytes),
            ("container_network_transmit_packets_total", sent.packets),
            ("container_network_transmit_errors_total", sent.errors),
            ("container_network_transmit_packets_dropped_total", sent.dropped),
        ] {
            self.count(own, name, Some(total as f64), &labels, samples);
        }
    }

    fn count(
        &self,
        part: &str,
        name: &'static str,
        total: Option<f64>,
        labels: &Tags,
        samples: &mut Samples,
    ) {
        if let Some(total) = total {
            samples.monotonic_count_of(self.entity, part, name, total, labels);
        }
    }
}

fn float(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}
