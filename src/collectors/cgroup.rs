//! The cgroup check: what containers, pods, units and slices use, without asking anyone but the
//! kernel. Names are the Agent's `container.*`. What the directory of origins knows of a container
//! becomes its tags; one that another collector measures is left to that.

pub mod cadvisor;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use regex::RegexSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Collector, Enabled, Metric, Samples, Tags, blocking, metric};
use crate::cgroup::hierarchy::{Bounds, Found, Hierarchy, Missing};
use crate::cgroup::identity::{Identity, Level, Runtime};
use crate::cgroup::proc::{self, DeviceNumber, Proc, TICKS_PER_SECOND};
use crate::cgroup::roots::Roots;
use crate::cgroup::usage::{Cpu, DeviceIo, Memory, Pids, Pressure, Stall, Usage, UsageReader};
use crate::origin::directory::{Directory, Origin, Told};
use crate::parse::Cardinality;
use crate::time::Time;

/// What containers, pods, units and slices use, by their cgroups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// on, off, or auto: on where the roots above are set or found under /host.
    pub enabled: Enabled,
    /// Seconds between runs, rounded to a multiple of flush.interval; 0 takes the one nearest 15.
    pub interval: u32,
    /// Seconds that a run may take; 0 takes four fifths of flush.interval.
    pub budget: u32,
    /// What is reported: container, pod, unit and slice. What is in a slice counts in the slice
    /// too: the tag cgroup_level tells them apart.
    pub levels: Vec<String>,
    /// Patterns of what is not reported. `*` stands for anything; matched against the path of the
    /// cgroup and against each of its tags, such as `runtime:docker`.
    pub exclude: Vec<String>,
    /// Patterns of what is reported even though it is excluded.
    pub include: Vec<String>,
    /// Report the containers of Docker and Podman too when the Docker check reports them.
    pub docker_too: bool,
    /// Leave out the containers that only hold a pod's network.
    pub exclude_pause_container: bool,
    /// Folders below the root that are looked into.
    pub max_depth: usize,
    /// Cgroups reported; what exceeds it is counted and left out.
    pub max_cgroups: usize,
    /// Report how long tasks waited for want of something (PSI).
    pub pressure: bool,
    /// Report the kernel's averages of it too, over 10, 60 and 300 seconds.
    pub pressure_averages: bool,
    /// Report the parts of memory: active, inactive, mapped, dirty and so on.
    pub memory_details: bool,
    /// Count open files; takes the rights of root, and a look at each process.
    pub open_files: bool,
    /// Report what each network of containers has moved, by interface; that of the machine is not
    /// theirs.
    pub network: bool,
    /// Report the same figures by cAdvisor's names, units and labels too, which makes twice as many
    /// series. On the page for Prometheus container_memory_rss, _cache and _swap are names of both:
    /// those with the label id are cAdvisor's.
    pub cadvisor_names: bool,
    /// physical or all: with all, what goes through a device mapper or a loop counts twice.
    pub io_devices: IoDevices,
}

/// Which block devices are reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IoDevices {
    #[default]
    Physical,
    All,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: Enabled::Auto,
            interval: 0,
            budget: 0,
            levels: LEVELS.map(|(word, _)| word.to_owned()).to_vec(),
            exclude: Vec::new(),
            include: Vec::new(),
            docker_too: false,
            exclude_pause_container: true,
            max_depth: 6,
            max_cgroups: 2000,
            pressure: true,
            pressure_averages: false,
            memory_details: false,
            open_files: false,
            network: true,
            cadvisor_names: false,
            io_devices: IoDevices::Physical,
        }
    }
}

/// Name, kind, unit and meaning of everything the check sends.
pub const METRICS: &[Metric] = &[
    metric("container.cpu.usage", "rate", "ns/s", "processor time; 1e9 is one processor"),
    metric("container.cpu.user", "rate", "ns/s", "of it in user mode"),
    metric("container.cpu.system", "rate", "ns/s", "of it in the kernel"),
    metric(
        "container.cpu.throttled",
        "rate",
        "ns/s",
        "time held back by the quota, over processors",
    ),
    metric("container.cpu.throttled.periods", "rate", "1/s", "periods in which the quota ran out"),
    metric("container.cpu.periods", "rate", "1/s", "periods in which there was something to run"),
    metric("container.cpu.limit", "gauge", "ns/s", "the smaller of quota and cpuset"),
    metric("container.cpu.shares", "gauge", "", "cpu.shares of version 1"),
    metric("container.cpu.weight", "gauge", "", "cpu.weight of version 2"),
    metric("container.memory.usage", "gauge", "byte", "everything that is charged"),
    metric("container.memory.usage.peak", "gauge", "byte", "the most there has been"),
    metric("container.memory.working_set", "gauge", "byte", "usage without inactive_file"),
    metric("container.memory.rss", "gauge", "byte", "anonymous memory"),
    metric(
        "container.memory.cache",
        "gauge",
        "byte",
        "page cache, tmpfs and shared memory included",
    ),
    metric("container.memory.swap", "gauge", "byte", "swapped out"),
    metric("container.memory.kernel", "gauge", "byte", "the kernel's on its behalf"),
    metric("container.memory.limit", "gauge", "byte", "the hard limit"),
    metric("container.memory.limit_with_swap", "gauge", "byte", "the limit of memory and swap"),
    metric("container.memory.soft_limit", "gauge", "byte", "soft limit; memory.low of version 2"),
    metric("container.memory.page_faults", "count", "", "page faults"),
    metric("container.memory.major_page_faults", "count", "", "page faults that had to read"),
    metric("container.memory.failed_count", "count", "", "times that the limit was hit"),
    metric(
        "container.memory.high_events",
        "count",
        "",
        "times that it was throttled above memory.high",
    ),
    metric(
        "container.memory.oom_events",
        "count",
        "",
        "times that reclaim did not help; version 2",
    ),
    metric("container.memory.oom_kills", "count", "", "processes killed for want of memory"),
    metric("container.memory.active_anon", "gauge", "byte", "memory_details"),
    metric("container.memory.inactive_anon", "gauge", "byte", "memory_details"),
    metric("container.memory.active_file", "gauge", "byte", "memory_details"),
    metric("container.memory.inactive_file", "gauge", "byte", "memory_details"),
    metric("container.memory.unevictable", "gauge", "byte", "memory_details"),
    metric("container.memory.mapped_file", "gauge", "byte", "memory_details"),
    metric("container.memory.shmem", "gauge", "byte", "memory_details"),
    metric("container.memory.sock", "gauge", "byte", "memory_details"),
    metric("container.memory.slab", "gauge", "byte", "memory_details"),
    metric("container.memory.kernel_stack", "gauge", "byte", "memory_details"),
    metric("container.memory.dirty", "gauge", "byte", "memory_details"),
    metric("container.memory.writeback", "gauge", "byte", "memory_details"),
    metric("container.memory.min", "gauge", "byte", "memory_details"),
    metric("container.memory.high", "gauge", "byte", "memory_details"),
    metric("container.memory.refaults_anon", "count", "", "memory_details"),
    metric("container.memory.refaults_file", "count", "", "memory_details"),
    metric("container.pid.thread_count", "gauge", "", "threads"),
    metric("container.pid.thread_limit", "gauge", "", "threads that it may have"),
    metric("container.pid.limit_hits", "count", "", "forks that the limit refused"),
    metric("container.pid.open_files", "gauge", "", "open files and sockets; open_files"),
    metric("container.io.read", "rate", "byte/s", "read, by device"),
    metric("container.io.write", "rate", "byte/s", "written, by device"),
    metric("container.io.read.operations", "rate", "1/s", "reads, by device"),
    metric("container.io.write.operations", "rate", "1/s", "writes, by device"),
    metric(
        "container.net.rcvd",
        "rate",
        "byte/s",
        "received, by interface; once for the containers of a pod",
    ),
    metric("container.net.sent", "rate", "byte/s", "sent, by interface"),
    metric("container.net.rcvd.packets", "rate", "1/s", "packets received, by interface"),
    metric("container.net.sent.packets", "rate", "1/s", "packets sent, by interface"),
    metric("container.cpu.partial_stall", "rate", "ns/s", "some task waited for a processor"),
    metric("container.cpu.full_stall", "rate", "ns/s", "all tasks did"),
    metric("container.memory.partial_stall", "rate", "ns/s", "some task waited for memory"),
    metric("container.memory.full_stall", "rate", "ns/s", "all tasks did"),
    metric("container.io.partial_stall", "rate", "ns/s", "some task waited for storage"),
    metric("container.io.full_stall", "rate", "ns/s", "all tasks did"),
    metric("container.irq.partial_stall", "rate", "ns/s", "some task waited for interrupts"),
    metric("container.irq.full_stall", "rate", "ns/s", "all tasks did"),
    metric(
        "container.cpu.partial_stall.avg10",
        "gauge",
        "percent",
        "of the last 10 s; so for each of the stalls above, and for avg60 and avg300; \
         pressure_averages",
    ),
    metric("container.uptime", "gauge", "s", "since the first of its processes was started"),
    metric("container.restarts", "gauge", "", "as the kubelet counts; absent while 0"),
];

/// The words of `levels`; where there are too many cgroups, the first go before the others.
pub const LEVELS: [(&str, Level); 4] = [
    ("container", Level::Container),
    ("pod", Level::Pod),
    ("unit", Level::Unit),
    ("slice", Level::Slice),
];

/// Names of the total and of the averages over 10, 60 and 300 seconds.
macro_rules! stall {
    ($name:literal) => {
        [$name, concat!($name, ".avg10"), concat!($name, ".avg60"), concat!($name, ".avg300")]
    };
}

/// Where some tasks wait and where all do, by resource.
const STALLS: [[[&str; 4]; 2]; 4] = [
    [stall!("container.cpu.partial_stall"), stall!("container.cpu.full_stall")],
    [stall!("container.memory.partial_stall"), stall!("container.memory.full_stall")],
    [stall!("container.io.partial_stall"), stall!("container.io.full_stall")],
    [stall!("container.irq.partial_stall"), stall!("container.irq.full_stall")],
];

/// Runs in which the start of a container is looked for: it may have no process at first, and none
/// that can be seen.
const LOOKS: u8 = 3;

/// The program of the containers that only hold a pod's network, whatever runtime made them.
const PAUSE: &str = "pause";

/// Cgroups looked at for each one reported: others are left out by level or pattern.
const VISITS_PER_CGROUP: usize = 16;

/// The check.
pub struct CgroupCheck {
    config: Config,
    patterns: Patterns,
    roots: Roots,
    directory: Arc<Directory>,
    machine: Option<Machine>,
    reader: UsageReader,
    /// By path.
    known: HashMap<String, Known>,
    /// Number of runs.
    run: u64,
    /// More cgroups than `max_cgroups` have been complained about.
    full: bool,
}

/// What does not change while the machine runs.
struct Machine {
    hierarchy: Hierarchy,
    proc: Proc,
    processors: Option<u32>,
    devices: HashMap<DeviceNumber, String>,
    devices_run: u64,
}

/// A process in a network, and all containers in it with their paths.
type Network<'a> = (u32, Vec<(&'a str, &'a Known)>);

/// A cgroup seen before.
struct Known {
    inode: u64,
    /// The name of its totals: another cgroup under the same path has other ones.
    entity: String,
    identity: Identity,
    /// What was known of the container when its tags were put together.
    origin: Option<Origin>,
    restarts: Option<u64>,
    /// Another collector tells of it, or soon may.
    is_left: bool,
    /// Who tells of it wants it left out.
    is_excluded: bool,
    /// It only holds a pod's network.
    is_pause: bool,
    /// `None` if it is not reported.
    tags: Option<Tags>,
    /// Ticks from the start of the machine to that of the container.
    started: Option<u64>,
    /// Runs in which that was looked for in vain.
    looked: u8,
    /// Its processes, once this run has asked for them.
    pids: Option<Vec<u32>>,
    /// Place of its level in [`LEVELS`].
    rank: usize,
    /// The run in which it was last seen.
    run: u64,
}

impl CgroupCheck {
    pub fn new(config: Config, roots: Roots, directory: Arc<Directory>) -> Self {
        Self {
            patterns: Patterns::new(&config),
            config,
            roots,
            directory,
            machine: None,
            reader: UsageReader::default(),
            known: HashMap::new(),
            run: 0,
            full: false,
        }
    }

    /// Cgroups that are remembered.
    pub fn known(&self) -> usize {
        self.known.len()
    }

    fn collect(&mut self, samples: &mut Samples) -> anyhow::Result<()> {
        self.run += 1;
        self.reader.begin();
        if self.machine.is_none() {
            self.machine = Some(Machine::find(&self.roots).context("collectors.cgroup_root")?);
        }
        let mut paths = Vec::new();
        let left_out = self.walk(&mut paths);
        self.known.retain(|_, known| known.run == self.run);
        self.known.shrink_to(2 * self.known.len());
        if self.known.is_empty() {
            // The mounts may have come late, or moved.
            self.machine = None;
        }
        self.tell_of(left_out, samples);
        let Some(machine) = &mut self.machine else { return Ok(()) };
        let uptime = machine.proc.uptime();
        for (done, path) in paths.iter().enumerate() {
            if samples.out_of_time() {
                bail!("out of time after {done} of {} cgroups", paths.len());
            }
            let Some(known) = self.known.get_mut(path) else { continue };
            known.look_for_start(path, machine);
            if known.is_pause && self.config.exclude_pause_container {
                continue;
            }
            if known.tags.is_none() {
                continue;
            }
            // One that has gone meanwhile has nothing to tell.
            let Some(mut usage) = self.reader.read(&machine.hierarchy, path) else { continue };
            machine.complete(path, known, &mut usage, self.run);
            let open_files = if self.config.open_files {
                machine.open_files(known.pids(path, &machine.hierarchy))
            } else {
                None
            };
            let Some(tags) = &known.tags else { continue };
            let age = uptime
                .zip(known.started)
                .map(|(uptime, ticks)| (uptime - ticks as f64 / TICKS_PER_SECOND as f64).max(0.0));
            let twice = || cadvisor::Sender::new(&known.entity, path, tags);
            let cadvisor = self.config.cadvisor_names.then(twice);
            let started = age.map(|age| samples.now().0 as f64 / 1000.0 - age);
            if let Some(sender) = &cadvisor {
                sender.report(&usage, started, samples);
            }
            let entity = &known.entity;
            let cgroup = Cgroup { entity, tags, config: &self.config, machine, cadvisor };
            cgroup.report(&usage, samples);
            if let Some(age) = age {
                samples.gauge("container.uptime", age, tags);
            }
            if let Some(restarts) = known.restarts.filter(|restarts| *restarts > 0) {
                samples.gauge("container.restarts", restarts as f64, tags);
            }
            if let Some(files) = open_files {
                samples.gauge("container.pid.open_files", files as f64, tags);
            }
        }
        if self.config.network {
            self.networks(&paths, samples);
        }
        Ok(())
    }

    /// What networks have moved. One that several containers have is their pod's.
    fn networks(&mut self, paths: &[String], samples: &mut Samples) {
        let Some(machine) = &self.machine else { return };
        let proc = &machine.proc;
        let machines_own = proc.network(1).ok();
        let mut found = Vec::new();
        for path in paths {
            let reported = |known: &&mut Known| {
                known.is_container() && !(known.is_pause && self.config.exclude_pause_container)
            };
            let Some(known) = self.known.get_mut(path).filter(reported) else { continue };
            let mut pids = known.pids(path, &machine.hierarchy).iter();
            let first = pids.find_map(|pid| Some((*pid, proc.network(*pid).ok()?)));
            if let Some((pid, network)) = first.filter(|(_, own)| Some(*own) != machines_own) {
                found.push((path, pid, network));
            }
        }
        let mut networks: BTreeMap<u64, Network> = BTreeMap::new();
        for (path, pid, network) in found {
            if let Some(known) = self.known.get(path) {
                let network = networks.entry(network);
                network.or_insert((pid, Vec::new())).1.push((path, known));
            }
        }
        for (network, (pid, containers)) in networks {
            let Some(tags) = self.tags_of_network(&containers) else { continue };
            let Ok(text) = proc.of(pid, "net/dev") else { continue };
            let entity = format!("network {network}");
            let pod_or_own = |path: &str| match (path.rsplit_once('/'), containers.len()) {
                (Some((parent, _)), 2..) => parent.to_owned(),
                _ => path.to_owned(),
            };
            let twice = || cadvisor::Sender::new(&entity, &pod_or_own(containers[0].0), &tags);
            let cadvisor = self.config.cadvisor_names.then(twice);
            for interface in proc::interfaces(&text).filter(|interface| interface.name != "lo") {
                if let Some(sender) = &cadvisor {
                    sender.interface(&interface, samples);
                }
                let tags = tags.and("interface", interface.name);
                for (name, total) in [
                    ("container.net.rcvd", interface.received.bytes),
                    ("container.net.sent", interface.sent.bytes),
                    ("container.net.rcvd.packets", interface.received.packets),
                    ("container.net.sent.packets", interface.sent.packets),
                ] {
                    samples.rate_of(&entity, interface.name, name, total as f64, &tags);
                }
            }
        }
    }

    /// The tags of the only container, or of the pod that all belong to.
    fn tags_of_network(&self, containers: &[(&str, &Known)]) -> Option<Tags> {
        let [(_, first), others @ ..] = containers else { return None };
        if others.is_empty() {
            return first.tags.clone();
        }
        let mut uids = containers.iter().map(|(_, known)| known.identity.pod_uid.as_deref());
        let uid = uids.next().flatten().filter(|uid| uids.all(|other| other == Some(*uid)))?;
        let told = self.directory.told_of_pod(uid).map(|(_, told)| told.tags);
        let told = told.iter().flat_map(|tags| tags.at(Cardinality::Orchestrator));
        let runtime = first.identity.runtime.map(|r| format!("runtime:{}", r.word()));
        let own = [format!("pod_uid:{uid}")].into_iter().chain(runtime);
        Some(Tags::new(own.chain(told.cloned())))
    }

    /// Finds the cgroups that are reported, at most as many as there is room for. Returns how many
    /// there was none for.
    fn walk(&mut self, paths: &mut Vec<String>) -> usize {
        let Some(machine) = &self.machine else { return 0 };
        let max = self.config.max_cgroups;
        let visits = max.saturating_mul(VISITS_PER_CGROUP);
        let bounds = Bounds { depth: self.config.max_depth, visits };
        let (known, patterns, run) = (&mut self.known, &self.patterns, self.run);
        // As long as nobody else is there to measure, nothing is left to them.
        let directory = &*self.directory;
        let (alone, docker_too) = (!directory.has_collectors(), self.config.docker_too);
        let unseen = machine.hierarchy.walk(bounds, |found| {
            let entry = match known.get_mut(&found.path) {
                Some(entry) => {
                    if entry.inode != found.inode {
                        *entry = Known::new(&found, patterns);
                    }
                    entry
                }
                None => {
                    known.entry(found.path.clone()).or_insert_with(|| Known::new(&found, patterns))
                }
            };
            entry.ask(directory, &found.path, patterns);
            // A new container may be known to an engine a moment later.
            let is_new = entry.run == 0 && entry.origin.is_none() && entry.may_have_engine();
            entry.run = run;
            entry.pids = None;
            let is_left = !docker_too && (entry.is_left || is_new && !alone);
            if entry.tags.is_some() && !is_left && !entry.is_excluded {
                paths.push(found.path);
            }
            true
        });
        let full = paths.len().saturating_sub(max);
        if full > 0 {
            let rank = |path: &String| known.get(path).map(|known| known.rank);
            paths.sort_by_key(rank);
            paths.truncate(max);
        }
        full + unseen
    }

    /// Counts what was left out, and says so when that begins and ends.
    fn tell_of(&mut self, left_out: usize, samples: &mut Samples) {
        samples.leave_out(left_out as u64);
        let full = left_out > 0;
        if full && !self.full {
            tracing::warn!(
                "collector cgroup: {left_out} cgroups or more are left out; see \
                 collectors.cgroup.max_cgroups and exclude"
            );
        } else if self.full && !full {
            tracing::info!("collector cgroup: no cgroups are left out any more");
        }
        self.full = full;
    }
}

impl Collector for CgroupCheck {
    fn name(&self) -> &'static str {
        "cgroup"
    }

    fn run<'a>(
        &'a mut self,
        samples: &'a mut Samples,
        _now: Time,
    ) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>> {
        Box::pin(async move { blocking(|| self.collect(samples)) })
    }
}

impl Machine {
    fn find(roots: &Roots) -> std::io::Result<Self> {
        let hierarchy = Hierarchy::find(roots)?;
        let proc = Proc::new(&roots.proc);
        for Missing { what, kernel_argument } in hierarchy.missing(&proc) {
            tracing::info!(
                "collector cgroup: this kernel does not account {what}, so its figures are \
                 absent; kernel argument: {kernel_argument}"
            );
        }
        tracing::debug!("collector cgroup: {hierarchy:?}");
        let processors = proc.processors();
        Ok(Self { hierarchy, proc, processors, devices: HashMap::new(), devices_run: 0 })
    }

    /// `None` where no process can be looked into.
    fn open_files(&self, pids: &[u32]) -> Option<u64> {
        let open = pids.iter().filter_map(|pid| self.proc.open_files(*pid).ok());
        open.reduce(u64::saturating_add)
    }

    /// Adds what is not in the cgroup's own files: names of devices, and block I/O where the kernel
    /// counts it by process only.
    fn complete(&mut self, path: &str, known: &mut Known, usage: &mut Usage, run: u64) {
        if usage.io.as_ref().is_some_and(Vec::is_empty) && known.is_container() {
            let pids = known.pids(path, &self.hierarchy);
            usage.io = Hierarchy::process_io(&self.proc, pids).map(|io| vec![io]);
        }
        let devices = usage.io.iter().flatten().filter(|io| io.device != DeviceIo::UNKNOWN);
        let new = devices.filter(|io| !self.devices.contains_key(&io.device)).count() > 0;
        // A device that came later; one without a name is not looked for again in this run.
        if new && self.devices_run != run {
            let text = self.proc.text("diskstats").unwrap_or_default();
            let named = proc::block_devices(&text);
            self.devices = named.map(|(device, name)| (device, name.to_owned())).collect();
            self.devices_run = run;
        }
    }
}

impl Known {
    fn new(found: &Found, patterns: &Patterns) -> Self {
        let identity = Identity::of_path(&found.path);
        let mut known = Self {
            inode: found.inode,
            entity: format!("{}:{}", found.inode, found.path),
            rank: LEVELS.iter().take_while(|(_, level)| *level != identity.level).count(),
            identity,
            origin: None,
            restarts: None,
            is_left: false,
            is_excluded: false,
            is_pause: false,
            tags: None,
            started: None,
            looked: 0,
            pids: None,
            run: 0,
        };
        known.set_tags(&found.path, None, patterns);
        known
    }

    fn set_tags(&mut self, path: &str, told: Option<&Told>, patterns: &Patterns) {
        let tags = tags(&self.identity, path, told);
        self.tags = tags.filter(|tags| patterns.keep(self.identity.level, path, tags));
    }

    /// Takes over what is told of a container or pod by now.
    fn ask(&mut self, directory: &Directory, path: &str, patterns: &Patterns) {
        let Identity { level, container_id, pod_uid, .. } = &self.identity;
        let found = match level {
            Level::Container => container_id.as_deref().and_then(|id| directory.told(id)),
            Level::Pod => pod_uid.as_deref().and_then(|uid| directory.told_of_pod(uid)),
            _ => None,
        };
        let Some((origin, told)) = found else { return };
        self.is_left = told.is_measured;
        self.is_excluded = told.is_excluded;
        self.restarts = told.restarts;
        if self.origin != Some(origin) {
            self.origin = Some(origin);
            self.set_tags(path, Some(&told), patterns);
        }
    }

    fn may_have_engine(&self) -> bool {
        use Runtime::{Docker, Podman};
        self.is_container() && matches!(self.identity.runtime, None | Some(Docker | Podman))
    }

    /// A container is as old as the oldest of its processes was when it was first seen.
    fn look_for_start(&mut self, path: &str, machine: &Machine) {
        if self.started.is_some() || self.looked >= LOOKS || !self.is_container() {
            return;
        }
        self.looked += 1;
        let pids = self.pids(path, &machine.hierarchy).iter();
        let stats = pids.filter_map(|pid| proc::stat(&machine.proc.of(*pid, "stat").ok()?));
        let stats: Vec<_> = stats.collect();
        self.started = stats.iter().map(|stat| stat.started_ticks).min();
        let of_pod = self.identity.pod_uid.is_some() || self.identity.ecs_task.is_some();
        self.is_pause = of_pod && matches!(&*stats, [only] if only.name == PAUSE);
    }

    /// Its processes and those of the cgroups in it, looked for once in a run.
    fn pids(&mut self, path: &str, hierarchy: &Hierarchy) -> &[u32] {
        self.pids.get_or_insert_with(|| hierarchy.pids_within(path))
    }

    fn is_container(&self) -> bool {
        LEVELS.get(self.rank).is_some_and(|(_, level)| *level == Level::Container)
    }
}

/// The tags of a cgroup, with what is told of its container; `None` for one of no level.
fn tags(identity: &Identity, path: &str, told: Option<&Told>) -> Option<Tags> {
    let (level, _) = LEVELS.iter().find(|(_, level)| *level == identity.level)?;
    let mut tags = Tags::default().and("cgroup_level", level);
    let told: Vec<_> = told.into_iter().flat_map(|t| t.tags.at(Cardinality::High)).collect();
    let known: HashSet<_> = told.iter().filter_map(|tag| Some(tag.split_once(':')?.0)).collect();
    let mut add = |key: &str, value: Option<&str>| {
        if let Some(value) = value.filter(|_| !known.contains(key)) {
            tags = tags.and(key, value);
        }
    };
    let id = identity.container_id.as_deref();
    let name = identity.container_name.as_deref().or_else(|| id.map(|id| &id[..id.len().min(12)]));
    add("runtime", identity.runtime.map(|runtime| runtime.word()));
    add("container_id", id);
    add("container_name", name);
    add("pod_uid", identity.pod_uid.as_deref());
    add("ecs_task_id", identity.ecs_task.as_deref());
    add("systemd_unit", identity.unit.as_deref());
    add("systemd_unit_template", identity.unit_template().as_deref());
    // The slice of a pod is named by its uid.
    add("systemd_slice", identity.slice.as_deref().filter(|_| identity.pod_uid.is_none()));
    // Units and slices of users' own managers have the same names for every user.
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    let nested = id.is_none() && format!("{parent}/").contains(".service/");
    add("cgroup_path", nested.then_some(path));
    Some(Tags::new(tags.iter().chain(told.into_iter().map(String::as_str))))
}

/// Which cgroups are reported.
struct Patterns {
    levels: Vec<Level>,
    include: RegexSet,
    exclude: RegexSet,
}

impl Patterns {
    fn new(config: &Config) -> Self {
        let wanted = |(word, _): &&(&str, Level)| config.levels.iter().any(|own| own == word);
        Self {
            levels: LEVELS.iter().filter(wanted).map(|(_, level)| *level).collect(),
            // What does not compile was refused with the settings.
            include: globs(&config.include).unwrap_or_default(),
            exclude: globs(&config.exclude).unwrap_or_default(),
        }
    }

    fn keep(&self, level: Level, path: &str, tags: &Tags) -> bool {
        let fits = |set: &RegexSet| set.is_match(path) || tags.iter().any(|tag| set.is_match(tag));
        self.levels.contains(&level) && (!fits(&self.exclude) || fits(&self.include))
    }
}

/// Patterns in which a star stands for anything.
///
/// # Errors
/// When there are too many.
pub fn globs(patterns: &[String]) -> Result<RegexSet, String> {
    let regex = |pattern: &String| {
        let parts: Vec<_> = pattern.split('*').map(regex::escape).collect();
        format!("^(?s:{})$", parts.join(".*"))
    };
    let all = RegexSet::new(patterns.iter().map(regex));
    all.map_err(|_| format!("{} patterns are more than can be had", patterns.len()))
}

/// A cgroup that is reported.
struct Cgroup<'a> {
    entity: &'a str,
    tags: &'a Tags,
    config: &'a Config,
    machine: &'a Machine,
    cadvisor: Option<cadvisor::Sender<'a>>,
}

impl Cgroup<'_> {
    fn report(&self, usage: &Usage, samples: &mut Samples) {
        self.cpu(&usage.cpu, samples);
        self.memory(&usage.memory, samples);
        self.pids(&usage.pids, samples);
        usage.io.iter().flatten().for_each(|io| self.io(io, samples));
        if self.config.pressure {
            self.pressure(&usage.pressure, samples);
        }
    }

    fn gauges(&self, samples: &mut Samples, gauges: &[(&'static str, Option<u64>)]) {
        for (name, value) in gauges {
            if let Some(value) = value {
                samples.gauge(*name, *value as f64, self.tags);
            }
        }
    }

    fn rates(&self, samples: &mut Samples, totals: &[(&'static str, Option<u64>)]) {
        for (name, total) in totals {
            if let Some(total) = total {
                samples.rate(self.entity, *name, *total as f64, self.tags);
            }
        }
    }

    fn counts(&self, samples: &mut Samples, totals: &[(&'static str, Option<u64>)]) {
        for (name, total) in totals {
            if let Some(total) = total {
                samples.monotonic_count(self.entity, *name, *total as f64, self.tags);
            }
        }
    }

    /// Nanoseconds per second: 1e9 is one processor.
    fn cpu(&self, cpu: &Cpu, samples: &mut Samples) {
        self.rates(
            samples,
            &[
                ("container.cpu.usage", cpu.usage_ns),
                ("container.cpu.user", cpu.user_ns),
                ("container.cpu.system", cpu.system_ns),
                ("container.cpu.throttled", cpu.throttled_ns),
                ("container.cpu.throttled.periods", cpu.throttled_periods),
                ("container.cpu.periods", cpu.periods),
            ],
        );
        if let Some(limit) = cpu.limit(self.machine.processors) {
            samples.gauge("container.cpu.limit", limit * 1e9, self.tags);
        }
        self.gauges(
            samples,
            &[("container.cpu.shares", cpu.shares), ("container.cpu.weight", cpu.weight)],
        );
    }

    fn memory(&self, memory: &Memory, samples: &mut Samples) {
        self.gauges(
            samples,
            &[
                ("container.memory.usage", memory.usage),
                ("container.memory.usage.peak", memory.peak),
                ("container.memory.working_set", memory.working_set()),
                ("container.memory.rss", memory.rss),
                ("container.memory.cache", memory.cache),
                ("container.memory.swap", memory.swap),
                ("container.memory.kernel", memory.kernel),
                ("container.memory.limit", memory.limit),
                ("container.memory.limit_with_swap", memory.limit_with_swap),
                ("container.memory.soft_limit", memory.soft_limit),
            ],
        );
        self.counts(
            samples,
            &[
                ("container.memory.page_faults", memory.page_faults),
                ("container.memory.major_page_faults", memory.major_page_faults),
                ("container.memory.failed_count", memory.limit_hits),
                ("container.memory.high_events", memory.high_events),
                ("container.memory.oom_events", memory.oom_events),
                ("container.memory.oom_kills", memory.oom_kills),
            ],
        );
        if self.config.memory_details {
            self.gauges(
                samples,
                &[
                    ("container.memory.active_anon", memory.active_anon),
                    ("container.memory.inactive_anon", memory.inactive_anon),
                    ("container.memory.active_file", memory.active_file),
                    ("container.memory.inactive_file", memory.inactive_file),
                    ("container.memory.unevictable", memory.unevictable),
                    ("container.memory.mapped_file", memory.mapped_file),
                    ("container.memory.shmem", memory.shmem),
                    ("container.memory.sock", memory.sock),
                    ("container.memory.slab", memory.slab),
                    ("container.memory.kernel_stack", memory.kernel_stack),
                    ("container.memory.dirty", memory.dirty),
                    ("container.memory.writeback", memory.writeback),
                    ("container.memory.min", memory.min),
                    ("container.memory.high", memory.high),
                ],
            );
            self.counts(
                samples,
                &[
                    ("container.memory.refaults_anon", memory.refaults_anon),
                    ("container.memory.refaults_file", memory.refaults_file),
                ],
            );
        }
    }

    fn pids(&self, pids: &Pids, samples: &mut Samples) {
        self.gauges(
            samples,
            &[
                ("container.pid.thread_count", pids.current),
                ("container.pid.thread_limit", pids.limit),
            ],
        );
        self.counts(samples, &[("container.pid.limit_hits", pids.limit_hits)]);
    }

    fn io(&self, io: &DeviceIo, samples: &mut Samples) {
        let number = format!("{}:{}", io.device.major, io.device.minor);
        let name = self.machine.devices.get(&io.device).unwrap_or(&number);
        let name = Some(&**name).filter(|_| io.device != DeviceIo::UNKNOWN);
        if self.config.io_devices == IoDevices::Physical && name.is_some_and(is_virtual) {
            return;
        }
        if let Some(sender) = &self.cadvisor {
            sender.device(name, io, samples);
        }
        let tags = match name {
            None => self.tags.and("source", "procio"),
            Some(name) => self.tags.and("device", name).and("device_name", name),
        };
        for (name, total) in [
            ("container.io.read", io.read_bytes),
            ("container.io.write", io.write_bytes),
            ("container.io.read.operations", io.reads),
            ("container.io.write.operations", io.writes),
        ] {
            if let Some(total) = total {
                samples.rate_of(self.entity, &number, name, total as f64, &tags);
            }
        }
    }

    /// Nanoseconds per second in which some, or all, tasks waited.
    fn pressure(&self, pressure: &Pressure, samples: &mut Samples) {
        let all = [pressure.cpu, pressure.memory, pressure.io, pressure.irq];
        for (names, stalls) in STALLS.iter().zip(all) {
            let Some(stalls) = stalls else { continue };
            for (names, stall) in names.iter().zip([stalls.some, stalls.full]) {
                let Some(stall) = stall else { continue };
                self.stall(names, &stall, samples);
            }
        }
    }

    fn stall(&self, names: &[&'static str; 4], stall: &Stall, samples: &mut Samples) {
        let [total, averages @ ..] = names;
        self.rates(samples, &[(total, stall.total_us.checked_mul(1000))]);
        if self.config.pressure_averages {
            for (name, average) in averages.iter().zip([stall.avg10, stall.avg60, stall.avg300]) {
                samples.gauge(*name, average, self.tags);
            }
        }
    }
}

/// Devices whose traffic is that of others below them, or goes nowhere.
fn is_virtual(name: &str) -> bool {
    ["loop", "ram", "dm-", "md", "zram", "nbd"].iter().any(|start| {
        name.strip_prefix(start).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}
