//! The figures of a container by the Agent's names, from what its cgroup or the stats API tells.
//!
//! Processor time is a rate in percent of one processor: 100 is one that is busy all the time.
//! Where a figure is not known, it is absent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::api::{BlkioEntry, Stats};
use crate::cgroup::proc::{self, Interface, Traffic};
use crate::cgroup::usage::{DeviceIo, Memory, Stalls, Usage};

/// How a figure is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Gauge,
    /// The difference to the reading before, per second.
    Rate,
    /// The difference to the reading before.
    Count,
}

/// One figure of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub name: &'static str,
    pub verb: Verb,
    pub value: f64,
    /// Besides the container's own.
    pub tags: Vec<String>,
}

/// What stands in no file of the container's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around {
    /// Of the machine.
    pub processors: Option<u32>,
    /// Processors that the cgroup around may use, where the container itself has no limit.
    pub limit_around: Option<f64>,
    /// By the engine; 0 stands for its default.
    pub cpu_shares: Option<u64>,
    /// Send all figures of memory.
    pub all_memory: bool,
}

/// Nanoseconds per second in percent of a processor.
const PERCENT: f64 = 1e7;

/// The default of `cpu.shares`.
const SHARES: u64 = 1024;

/// Collects figures; absent values make none.
#[derive(Debug, Default)]
pub struct Figures(pub Vec<Figure>);

impl Figures {
    pub fn gauge(&mut self, name: &'static str, value: Option<f64>) {
        self.add(name, Verb::Gauge, value, &[]);
    }

    fn rate(&mut self, name: &'static str, value: Option<f64>) {
        self.add(name, Verb::Rate, value, &[]);
    }

    fn count(&mut self, name: &'static str, value: Option<f64>) {
        self.add(name, Verb::Count, value, &[]);
    }

    fn add(&mut self, name: &'static str, verb: Verb, value: Option<f64>, tags: &[String]) {
        if let Some(value) = value {
            self.0.push(Figure { name, verb, value, tags: tags.to_vec() });
        }
    }

    /// Everything but networks and block devices.
    pub fn usage(&mut self, usage: &Usage, around: Around) {
        self.memory(&usage.memory, around.all_memory);
        self.processor(usage, around);
        self.gauge("docker.thread.count", float(usage.pids.current));
        self.gauge("docker.thread.limit", float(usage.pids.limit));
        self.stalls("docker.cpu.partial_stall", "docker.cpu.full_stall", usage.pressure.cpu);
        self.stalls("docker.mem.partial_stall", "docker.mem.full_stall", usage.pressure.memory);
        self.stalls("docker.io.partial_stall", "docker.io.full_stall", usage.pressure.io);
    }

    fn memory(&mut self, memory: &Memory, all: bool) {
        let (rss, swap) = (memory.rss, memory.swap);
        let ratio = |part: Option<u64>, whole: Option<u64>| {
            Some(part? as f64 / whole.filter(|w| *w > 0)? as f64)
        };
        self.gauge("docker.mem.rss", float(rss));
        self.gauge("docker.mem.cache", float(memory.cache));
        self.gauge("docker.mem.swap", float(swap));
        self.gauge("docker.mem.working_set", float(memory.working_set()));
        self.gauge("docker.mem.limit", float(memory.limit));
        self.gauge("docker.mem.sw_limit", float(memory.limit_with_swap));
        self.gauge("docker.mem.soft_limit", float(memory.soft_limit));
        self.gauge("docker.mem.in_use", ratio(rss, memory.limit));
        let with_swap = rss.and_then(|rss| rss.checked_add(swap?));
        self.gauge("docker.mem.sw_in_use", ratio(with_swap, memory.limit_with_swap));
        self.gauge("docker.mem.failed_count", float(memory.limit_hits));
        self.gauge("docker.mem.usage_peak", float(memory.peak));
        self.gauge("docker.kmem.usage", float(memory.kernel));
        self.count("docker.mem.oom_events", float(memory.oom_events));
        self.count("docker.mem.oom_kills", float(memory.oom_kills));
        if all {
            self.gauge("docker.mem.active_anon", float(memory.active_anon));
            self.gauge("docker.mem.inactive_anon", float(memory.inactive_anon));
            self.gauge("docker.mem.active_file", float(memory.active_file));
            self.gauge("docker.mem.inactive_file", float(memory.inactive_file));
            self.gauge("docker.mem.mapped_file", float(memory.mapped_file));
            self.gauge("docker.mem.unevictable", float(memory.unevictable));
            self.rate("docker.mem.pgfault", float(memory.page_faults));
            self.rate("docker.mem.pgmajfault", float(memory.major_page_faults));
            self.rate("docker.mem.pgpgin", float(memory.pages_in));
            self.rate("docker.mem.pgpgout", float(memory.pages_out));
        }
    }

    fn processor(&mut self, usage: &Usage, around: Around) {
        let cpu = &usage.cpu;
        let percent = |ns: Option<u64>| ns.map(|ns| ns as f64 / PERCENT);
        self.rate("docker.cpu.usage", percent(cpu.usage_ns));
        self.rate("docker.cpu.user", percent(cpu.user_ns));
        self.rate("docker.cpu.system", percent(cpu.system_ns));
        self.rate("docker.cpu.periods", float(cpu.periods));
        self.rate("docker.cpu.throttled", float(cpu.throttled_periods));
        self.rate("docker.cpu.throttled.time", percent(cpu.throttled_ns));
        let own = cpu.limit(around.processors);
        let machine = around.processors.map(f64::from);
        let limit = own.or(around.limit_around).or(machine);
        self.gauge("docker.cpu.limit", limit.map(|processors| processors * 100.0));
        // The weight of version 2 cannot be turned back into shares: runtimes differ in the formula.
        let engine = around.cpu_shares.map(|shares| if shares == 0 { SHARES } else { shares });
        self.gauge("docker.cpu.shares", float(cpu.shares.or(engine)));
        self.gauge("docker.cpu.weight", float(cpu.weight));
    }

    fn stalls(&mut self, some: &'static str, full: &'static str, stalls: Option<Stalls>) {
        let stalls = stalls.unwrap_or_default();
        let ns = |us: u64| us as f64 * 1000.0;
        self.rate(some, stalls.some.map(|stall| ns(stall.total_us)));
        self.rate(full, stalls.full.map(|stall| ns(stall.total_us)));
    }

    /// What went to and from block devices, by device.
    pub fn devices(&mut self, devices: &[DeviceIo], name: impl Fn(&DeviceIo) -> String) {
        for device in devices {
            let name = name(device);
            self.device(device, &[format!("device:{name}"), format!("device_name:{name}")]);
        }
    }

    /// What went to and from block devices, under these tags.
    pub fn device(&mut self, device: &DeviceIo, tags: &[String]) {
        for (name, value) in [
            ("docker.io.read_bytes", device.read_bytes),
            ("docker.io.write_bytes", device.write_bytes),
            ("docker.io.read_operations", device.reads),
            ("docker.io.write_operations", device.writes),
        ] {
            self.add(name, Verb::Rate, float(value), tags);
        }
    }

    /// What a network has moved.
    pub fn network(&mut self, network: &str, received: Traffic, sent: Traffic) {
        let tags = [format!("docker_network:{network}")];
        for (name, value) in [
            ("docker.net.bytes_rcvd", received.bytes),
            ("docker.net.bytes_sent", sent.bytes),
            ("docker.net.packets_rcvd", received.packets),
            ("docker.net.packets_sent", sent.packets),
            ("docker.net.errors_rcvd", received.errors),
            ("docker.net.errors_sent", sent.errors),
            ("docker.net.dropped_rcvd", received.dropped),
            ("docker.net.dropped_sent", sent.dropped),
        ] {
            self.add(name, Verb::Rate, Some(value as f64), &tags);
        }
    }
}

fn float(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

/// Whether version 1 gave nothing but zeros, as it does on kernels that account only devices with a
/// throttling rule.
pub fn is_unaccounted(devices: &[DeviceIo]) -> bool {
    let zero = |value: Option<u64>| value.unwrap_or(0) == 0;
    devices.iter().all(|d| zero(d.read_bytes) && zero(d.write_bytes))
}

/// The interfaces in `/proc/PID/net/dev` by the engine's names of their networks: an interface
/// belongs to the network whose address is reached through it. One that belongs to none keeps its
/// own name.
pub fn networks<'a>(
    net_dev: &'a str,
    routes: &str,
    networks: &'a [(String, Vec<IpAddr>)],
) -> Vec<(String, Interface<'a>)> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for route in proc::routes(routes).filter(|route| !route.is_default()) {
        let covered = |address: &IpAddr| match address {
            IpAddr::V4(address) => route.covers(*address),
            IpAddr::V6(_) => false,
        };
        if let Some((name, _)) = networks.iter().find(|(_, all)| all.iter().any(covered)) {
            names.entry(route.interface).or_insert(name);
        }
    }
    proc::interfaces(net_dev)
        .filter(|interface| interface.name != "lo")
        .map(|interface| {
            let name = names.get(interface.name).copied().unwrap_or(interface.name);
            (name.to_owned(), interface)
        })
        .collect()
}

/// The address of a network, where it is one.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    (address != IpAddr::V4(Ipv4Addr::UNSPECIFIED)).then_some(address)
}

/// What the stats API tells, in the words of the cgroup's files. `memory_of_machine` is what it says
/// in place of a limit that is not set.
pub fn usage_of_stats(stats: &Stats, memory_of_machine: Option<u64>) -> Usage {
    let mut usage = Usage::default();
    let cpu = &stats.cpu_stats;
    usage.cpu.usage_ns = cpu.cpu_usage.total_usage;
    usage.cpu.user_ns = cpu.cpu_usage.usage_in_usermode;
    usage.cpu.system_ns = cpu.cpu_usage.usage_in_kernelmode;
    usage.cpu.periods = cpu.throttling_data.periods;
    usage.cpu.throttled_periods = cpu.throttling_data.throttled_periods;
    usage.cpu.throttled_ns = cpu.throttling_data.throttled_time;
    let memory = &stats.memory_stats;
    // Version 1 has totals over the cgroups inside; version 2 has other words.
    let value = |names: &[&str]| names.iter().find_map(|name| memory.stats.get(*name).copied());
    usage.memory = Memory {
        usage: memory.usage,
        peak: memory.max_usage,
        rss: value(&["total_rss", "anon"]),
        cache: value(&["total_cache", "file"]),
        swap: value(&["total_swap"]),
        inactive_file: value(&["total_inactive_file", "inactive_file"]),
        active_file: value(&["total_active_file", "active_file"]),
        inactive_anon: value(&["total_inactive_anon", "inactive_anon"]),
        active_anon: value(&["total_active_anon", "active_anon"]),
        mapped_file: value(&["total_mapped_file", "file_mapped"]),
        unevictable: value(&["total_unevictable", "unevictable"]),
        page_faults: value(&["total_pgfault", "pgfault"]),
        major_page_faults: value(&["total_pgmajfault", "pgmajfault"]),
        limit: memory.limit.filter(|limit| *limit > 0 && Some(*limit) != memory_of_machine),
        limit_hits: memory.failcnt,
        ..Memory::default()
    };
    usage.pids.current = stats.pids_stats.current;
    usage.pids.limit = stats.pids_stats.limit.filter(|limit| *limit > 0 && *limit != u64::MAX);
    let blkio = &stats.blkio_stats;
    let sum = |entries: &[BlkioEntry], op: &str| {
        // `Read` on version 1, `read` on version 2.
        let of = entries.iter().filter(|entry| entry.op.eq_ignore_ascii_case(op));
        let found: Vec<u64> = of.map(|entry| entry.value).collect();
        (!found.is_empty()).then(|| found.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)))
    };
    let device = DeviceIo {
        read_bytes: sum(&blkio.io_service_bytes_recursive, "read"),
        write_bytes: sum(&blkio.io_service_bytes_recursive, "write"),
        reads: sum(&blkio.io_serviced_recursive, "read"),
        writes: sum(&blkio.io_serviced_recursive, "write"),
        ..DeviceIo::default()
    };
    usage.io = Some(vec![device]);
    usage
}

/// Space in a devicemapper pool, from the rows of `/info`'s `DriverStatus`.
pub fn pool(rows: &[Vec<String>]) -> Vec<(&'static str, f64)> {
    const POOLS: [(&str, [&str; 4]); 2] = [
        (
            "Data Space",
            ["docker.data.used", "docker.data.free", "docker.data.total", "docker.data.percent"],
        ),
        (
            "Metadata Space",
            [
                "docker.metadata.used",
                "docker.metadata.free",
                "docker.metadata.total",
                "docker.metadata.percent",
            ],
        ),
    ];
    let mut figures = Vec::new();
    for (pool, names) in POOLS {
        let value = |word: &str| {
            let wanted = format!("{pool} {word}");
            let row = rows.iter().find(|row| row.first().is_some_and(|name| *name == wanted))?;
            size(row.get(1)?)
        };
        let (used, free, total) = (value("Used"), value("Available"), value("Total"));
        // The pool may promise more than the disk below it has.
        let total = match (used, free, total) {
            (Some(used), Some(free), Some(total)) => Some(total.max(used + free)),
            (_, _, total) => total,
        };
        let percent = match (used, free, total.filter(|total| *total > 0.0)) {
            (Some(used), _, Some(total)) => Some(100.0 * used / total),
            (None, Some(free), Some(total)) => Some(100.0 * (1.0 - free / total)),
            _ => None,
        };
        let values = names.into_iter().zip([used, free, total, percent]);
        figures.extend(values.filter_map(|(name, value)| Some((name, value?))));
    }
    figures
}

/// `1.5 GB` in bytes; units are powers of 1000.
fn size(text: &str) -> Option<f64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
    let number: f64 = text[..split].parse().ok()?;
    let power = match text[split..].trim() {
        "B" => 0,
        "kB" | "KB" => 1,
        "MB" => 2,
        "GB" => 3,
        "TB" => 4,
        "PB" => 5,
        _ => return None,
    };
    Some(number * 1000f64.powi(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(figures: &Figures) -> BTreeMap<&'static str, f64> {
        figures.0.iter().map(|figure| (figure.name, figure.value)).collect()
    }

    #[test]
    fn nothing_known_makes_no_figure() {
        let mut figures = Figures::default();
        figures.usage(&Usage::default(), Around::default());
        assert_eq!(figures.0, []);
    }

    #[test]
    fn limits_come_from_the_nearest() {
        let mut usage = Usage::default();
        let limit = |usage: &Usage, around: Option<f64>| {
            let mut figures = Figures::default();
            let around = Around { processors: Some(4), limit_around: around, ..Around::default() };
            figures.usage(usage, around);
            values(&figures)["docker.cpu.limit"]
        };
        assert_eq!(limit(&usage, None), 400.0, "the machine is the limit");
        assert_eq!(limit(&usage, Some(1.5)), 150.0, "that of the task around");
        (usage.cpu.quota_us, usage.cpu.period_us) = (Some(50_000), Some(100_000));
        assert_eq!(limit(&usage, Some(1.5)), 50.0);
        usage.cpu.quota_us = Some(300_000);
        usage.cpu.processors = Some(2);
        assert_eq!(limit(&usage, None), 200.0, "fewer processors than the quota needs");
    }

    #[test]
    fn shares_are_the_files_or_the_engines() {
        for (file, weight, engine, shares) in [
            (Some(512), None, Some(0), Some(512.0)),
            (None, Some(20), Some(512), Some(512.0)),
            (None, Some(100), Some(0), Some(1024.0)),
            (None, Some(100), None, None),
        ] {
            let mut usage = Usage::default();
            (usage.cpu.shares, usage.cpu.weight) = (file, weight);
            let mut figures = Figures::default();
            figures.usage(&usage, Around { cpu_shares: engine, ..Around::default() });
            assert_eq!(values(&figures).get("docker.cpu.shares").copied(), shares);
        }
    }

    #[test]
    fn interfaces_are_named_by_their_networks() {
        // Two networks, the second behind eth1, and an interface that belongs to none.
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n\
                   eth0:10 2 0 0 0 0 0 0 20 3 0 0 0 0 0 0\n  eth1: 30 4 1 2 0 0 0 0 40 5 3 4 0 0 0 0\n\
                   tun0: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n";
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                      eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\n\
                      eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\n\
                      eth1\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\n";
        let known = [
            ("bridge".to_owned(), vec![IpAddr::from([172, 17, 0, 8])]),
            ("fxnet".to_owned(), vec![IpAddr::from([172, 18, 0, 2])]),
        ];
        let found = networks(dev, routes, &known);
        let names: Vec<_> = found
            .iter()
            .map(|(network, i)| (network.as_str(), i.name, i.received.bytes, i.sent.errors))
            .collect();
        assert_eq!(
            names,
            [("bridge", "eth0", 10, 0), ("fxnet", "eth1", 30, 3), ("tun0", "tun0", 0, 0)]
        );
    }

    #[test]
    fn pools_of_devicemapper() {
        let rows = |rows: &[(&str, &str)]| -> Vec<Vec<String>> {
            rows.iter().map(|(a, b)| vec![(*a).to_owned(), (*b).to_owned()]).collect()
        };
        for (status, figures) in [
            (
                &[
                    ("Data Space Used", "1 GB"),
                    ("Data Space Total", "4 GB"),
                    ("Data Space Available", "3 GB"),
                ][..],
                &[
                    ("docker.data.used", 1e9),
                    ("docker.data.free", 3e9),
                    ("docker.data.total", 4e9),
                    ("docker.data.percent", 25.0),
                ][..],
            ),
            (
                &[("Metadata Space Total", "10 MB"), ("Metadata Space Available", "2.5 MB")],
                &[
                    ("docker.metadata.free", 2.5e6),
                    ("docker.metadata.total", 1e7),
                    ("docker.metadata.percent", 75.0),
                ],
            ),
            (
                &[
                    ("Data Space Used", "3 kB"),
                    ("Data Space Total", "4 kB"),
                    ("Data Space Available", "3 kB"),
                ],
                &[
                    ("docker.data.used", 3e3),
                    ("docker.data.free", 3e3),
                    ("docker.data.total", 6e3),
                    ("docker.data.percent", 50.0),
                ],
            ),
            (&[("Data Space Used", "many"), ("Backing Filesystem", "extfs")], &[]),
        ] {
            assert_eq!(pool(&rows(status)), figures);
        }
        assert!(pool(&[vec![], vec!["Data Space Used".to_owned()]]).is_empty());
    }
}
