//! What a cgroup uses and may use, read from its files of either version.
//!
//! A field is `None` where the kernel does not say: the controller is off, the kernel too old, or
//! there is no limit. Counters are totals since the cgroup was made.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::TEXT_MAX;
use super::hierarchy::Hierarchy;
use super::proc::{DeviceNumber, TICKS_PER_SECOND};
use crate::sys;

/// One reading of one cgroup.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu: Cpu,
    pub memory: Memory,
    /// By device. Empty where the kernel accounts none, which on version 1 may mean that it does
    /// not look.
    pub io: Option<Vec<DeviceIo>>,
    pub pids: Pids,
    pub pressure: Pressure,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    pub usage_ns: Option<u64>,
    pub user_ns: Option<u64>,
    pub system_ns: Option<u64>,
    /// Periods of the quota in which there was something to run, and those that ran out.
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    /// Summed over processors.
    pub throttled_ns: Option<u64>,
    /// Microseconds of processor time in each period.
    pub quota_us: Option<u64>,
    pub period_us: Option<u64>,
    /// Version 1, from 2 to 262144.
    pub shares: Option<u64>,
    /// Version 2, from 1 to 10000.
    pub weight: Option<u64>,
    /// Processors that it may run on.
    pub processors: Option<u32>,
}

impl Cpu {
    /// The smaller of quota and processors, in processors, where either limits: on a machine with
    /// as many processors as the cgroup may use, those are no limit.
    pub fn limit(&self, machine: Option<u32>) -> Option<f64> {
        let quota = self.quota_us.zip(self.period_us).filter(|(_, period)| *period > 0);
        let quota = quota.map(|(quota, period)| quota as f64 / period as f64);
        let fewer = self.processors.filter(|own| machine.is_some_and(|all| *own < all));
        let fewer = fewer.map(f64::from);
        match (quota, fewer) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// Bytes, unless it says otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    pub usage: Option<u64>,
    pub peak: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// The page cache, tmpfs and shared memory included.
    pub cache: Option<u64>,
    pub swap: Option<u64>,
    /// Of the kernel on behalf of the cgroup.
    pub kernel: Option<u64>,
    pub kernel_stack: Option<u64>,
    pub slab: Option<u64>,
    pub sock: Option<u64>,
    pub shmem: Option<u64>,
    pub mapped_file: Option<u64>,
    pub dirty: Option<u64>,
    pub writeback: Option<u64>,
    pub active_anon: Option<u64>,
    pub inactive_anon: Option<u64>,
    pub active_file: Option<u64>,
    pub inactive_file: Option<u64>,
    pub unevictable: Option<u64>,
    /// Counts of pages and faults.
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub pages_in: Option<u64>,
    pub pages_out: Option<u64>,
    pub refaults_anon: Option<u64>,
    pub refaults_file: Option<u64>,
    /// The lowest hard limit of the cgroup and those around it on version 1, its own on version 2.
    pub limit: Option<u64>,
    /// Of memory and swap together.
    pub limit_with_swap: Option<u64>,
    /// What it is pushed back to when memory gets short: `memory.soft_limit_in_bytes`, `memory.low`.
    pub soft_limit: Option<u64>,
    /// Version 2: what is never reclaimed, and where throttling begins.
    pub min: Option<u64>,
    pub high: Option<u64>,
    /// How often it ran into its limit: `memory.failcnt`, `max` of `memory.events`.
    pub limit_hits: Option<u64>,
    /// How often it was throttled above `high`; version 2.
    pub high_events: Option<u64>,
    /// How often reclaim did not help; version 2.
    pub oom_events: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
}

impl Memory {
    /// Usage without what could be dropped at once, as `kubectl top` and the OOM killer of
    /// Kubernetes see it.
    pub fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file?))
    }
}

/// What went to and from one device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    pub device: DeviceNumber,
    pub read_bytes: Option<u64>,
    pub write_bytes: Option<u64>,
    pub reads: Option<u64>,
    pub writes: Option<u64>,
}

impl DeviceIo {
    /// Stands for all devices where the kernel does not say which.
    pub const UNKNOWN: DeviceNumber = DeviceNumber { major: u32::MAX, minor: u32::MAX };
}

/// Tasks, which are threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    pub current: Option<u64>,
    pub limit: Option<u64>,
    /// Forks that the limit refused.
    pub limit_hits: Option<u64>,
}

/// How long tasks waited for want of something (PSI).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressure {
    pub cpu: Option<Stalls>,
    pub memory: Option<Stalls>,
    pub io: Option<Stalls>,
    pub irq: Option<Stalls>,
}

/// The lines of one pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stalls {
    /// At least one task waited.
    pub some: Option<Stall>,
    /// All tasks waited.
    pub full: Option<Stall>,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10, 60 and 300 seconds.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total_us: u64,
}

/// Folders of cgroups that a reader keeps open; on version 1 a cgroup has one in each hierarchy.
const FOLDERS_MAX: usize = 8192;

/// Of the files that the process may have open, one in so many is for the folders of a reader.
const SHARE_OF_OPEN_FILES: u64 = 4;

/// Reads cgroups one after another into the same buffer. The way to a file costs more than to read
/// it, so folders stay open from run to run.
#[derive(Debug)]
pub struct UsageReader {
    buffer: Vec<u8>,
    /// By path.
    folders: HashMap<PathBuf, Kept>,
    folders_max: usize,
    run: u64,
}

/// A folder between two runs.
#[derive(Debug)]
struct Kept {
    open: sys::Folder,
    /// The inode of the cgroup in the base hierarchy: one made anew under an old path has another.
    inode: Option<u64>,
    /// The run in which it was last read.
    run: u64,
}

impl Default for UsageReader {
    fn default() -> Self {
        let share = sys::open_files_max() / SHARE_OF_OPEN_FILES;
        Self {
            buffer: vec![0; 8192],
            folders: HashMap::new(),
            folders_max: usize::try_from(share).map_or(FOLDERS_MAX, |n| n.min(FOLDERS_MAX)),
            run: 0,
        }
    }
}

/// A folder of a cgroup while it is read.
struct Folder {
    path: PathBuf,
    /// `None` if there is none.
    open: Option<sys::Folder>,
    /// It was opened in another run, and nothing was found in it in this one: it may have been
    /// removed and made anew, as a service manager does in one hierarchy of version 1 alone.
    may_be_gone: bool,
}

impl Folder {
    fn file(&mut self, name: &str) -> io::Result<File> {
        let file = |open: &Option<sys::Folder>| match open {
            Some(open) => open.file(name),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let mut found = file(&self.open);
        if self.may_be_gone && found.is_err() {
            self.open = sys::Folder::open(&self.path).ok();
            found = file(&self.open);
        }
        self.may_be_gone = false;
        found
    }
}

impl UsageReader {
    /// Begins a run: closes the folders of cgroups that were not read in the one before.
    pub fn begin(&mut self) {
        let last = self.run;
        self.folders.retain(|_, kept| kept.run == last);
        self.folders.shrink_to(2 * self.folders.len());
        self.run += 1;
    }

    /// Reads the cgroup at a path of the hierarchy. `None` when it has gone, or none of its files
    /// can be read.
    pub fn read(&mut self, hierarchy: &Hierarchy, path: &str) -> Option<Usage> {
        let mut usage = Usage::default();
        let inode = hierarchy.inode(path);
        if let Some(folder) = hierarchy.unified_directory(path) {
            let read = |reader: &mut Self, folder: &mut Folder| {
                reader.unified(hierarchy, folder, &mut usage);
            };
            self.within(folder, inode, read);
        }
        self.separate(hierarchy, path, inode, &mut usage);
        (usage != Usage::default()).then_some(usage)
    }

    /// Reads files of one folder of a cgroup, which stays open if there is room.
    fn within(
        &mut self,
        path: PathBuf,
        inode: Option<u64>,
        read: impl FnOnce(&mut Self, &mut Folder),
    ) {
        let known = self.folders.remove(&path).filter(|kept| kept.inode == inode);
        let known = known.map(|kept| kept.open);
        let may_be_gone = known.is_some();
        let open = known.or_else(|| sys::Folder::open(&path).ok());
        let mut folder = Folder { path, open, may_be_gone };
        read(self, &mut folder);
        if let Some(open) = folder.open
            && self.folders.len() < self.folders_max
        {
            self.folders.insert(folder.path, Kept { open, inode, run: self.run });
        }
    }

    /// The files of version 2, whichever controllers it has.
    fn unified(&mut self, hierarchy: &Hierarchy, folder: &mut Folder, usage: &mut Usage) {
        let is_here = |controller| !hierarchy.is_separate(controller);
        if is_here("cpu") || is_here("cpuacct") {
            self.cpu_2(folder, &mut usage.cpu);
        }
        if is_here("cpuset") {
            let list = self.text(folder, "cpuset.cpus.effective");
            usage.cpu.processors = list.and_then(processor_list);
        }
        if is_here("memory") {
            self.memory_2(folder, &mut usage.memory);
        }
        if is_here("blkio") {
            usage.io = self.text(folder, "io.stat").map(|text| io_stat(text).collect());
        }
        if is_here("pids") {
            self.pids(folder, &mut usage.pids);
        }
        let mut stalls =
            |file| self.text(folder, file).map(pressure).filter(|s| *s != Stalls::default());
        // The kernel has all of these files or none.
        let cpu = stalls("cpu.pressure");
        if cpu.is_none() {
            return;
        }
        usage.pressure = Pressure {
            cpu,
            memory: stalls("memory.pressure"),
            io: stalls("io.pressure"),
            irq: stalls("irq.pressure"),
        };
    }

    /// The hierarchies of version 1. What they tell has precedence over version 2 beside them: a
    /// controller is in one place only, and processor time is finer there.
    fn separate(
        &mut self,
        hierarchy: &Hierarchy,
        path: &str,
        inode: Option<u64>,
        usage: &mut Usage,
    ) {
        type Read = fn(&mut UsageReader, &mut Folder, &mut Usage);
        let controllers: [(&str, Read); 6] = [
            ("cpuacct", |reader, folder, usage| reader.cpuacct(folder, &mut usage.cpu)),
            ("cpu", |reader, folder, usage| reader.cpu_1(folder, &mut usage.cpu)),
            ("cpuset", |reader, folder, usage| {
                let cpus = &["cpuset.effective_cpus", "cpuset.cpus"];
                usage.cpu.processors = reader.first(folder, cpus, processor_list);
            }),
            ("memory", |reader, folder, usage| reader.memory_1(folder, &mut usage.memory)),
            ("blkio", |reader, folder, usage| usage.io = reader.blkio(folder)),
            ("pids", |reader, folder, usage| reader.pids(folder, &mut usage.pids)),
        ];
        for (controller, read) in controllers {
            if let Some(folder) = hierarchy.controller_directory(controller, path) {
                self.within(folder, inode, |reader, folder| read(reader, folder, usage));
            }
        }
    }

    fn cpu_2(&mut self, folder: &mut Folder, cpu: &mut Cpu) {
        for (key, value) in pairs(self.text(folder, "cpu.stat").unwrap_or_default()) {
            let ns = value.checked_mul(1000);
            match key {
                "usage_usec" => cpu.usage_ns = ns,
                "user_usec" => cpu.user_ns = ns,
                "system_usec" => cpu.system_ns = ns,
                "nr_periods" => cpu.periods = Some(value),
                "nr_throttled" => cpu.throttled_periods = Some(value),
                "throttled_usec" => cpu.throttled_ns = ns,
                _ => {}
            }
        }
        // Time is accounted without the controller, the rest is not.
        if let Some((quota, period)) = self.text(folder, "cpu.max").and_then(cpu_max) {
            (cpu.quota_us, cpu.period_us) = (quota, Some(period));
            cpu.weight = self.number(folder, "cpu.weight");
        }
    }

    fn memory_2(&mut self, folder: &mut Folder, memory: &mut Memory) {
        // Where the controller is off there is none of its files.
        let Some(stat) = self.text(folder, "memory.stat") else { return };
        for (key, value) in pairs(stat) {
            let field = match key {
                "anon" => &mut memory.rss,
                "file" => &mut memory.cache,
                "kernel" => &mut memory.kernel,
                "kernel_stack" => &mut memory.kernel_stack,
                "slab" => &mut memory.slab,
                "sock" => &mut memory.sock,
                "file_mapped" => &mut memory.mapped_file,
                "file_dirty" => &mut memory.dirty,
                "file_writeback" => &mut memory.writeback,
                _ => match common_stat(memory, key) {
                    Some(field) => field,
                    None => continue,
                },
            };
            *field = Some(value);
        }
        // Before Linux 5.18 the kernel gave no sum.
        let parts = memory.kernel_stack.zip(memory.slab);
        memory.kernel = memory.kernel.or_else(|| parts.and_then(|(a, b)| a.checked_add(b)));
        for (key, value) in pairs(self.text(folder, "memory.events").unwrap_or_default()) {
            match key {
                "high" => memory.high_events = Some(value),
                "max" => memory.limit_hits = Some(value),
                "oom" => memory.oom_events = Some(value),
                "oom_kill" => memory.oom_kills = Some(value),
                _ => {}
            }
        }
        memory.usage = self.number(folder, "memory.current");
        memory.peak = self.number(folder, "memory.peak");
        memory.swap = self.number(folder, "memory.swap.current");
        memory.limit = self.limit(folder, "memory.max");
        let swap = self.number(folder, "memory.swap.max");
        memory.limit_with_swap = memory.limit.zip(swap).and_then(|(a, b)| a.checked_add(b));
        memory.soft_limit = self.limit(folder, "memory.low");
        memory.min = self.limit(folder, "memory.min");
        memory.high = self.limit(folder, "memory.high");
    }

    fn cpuacct(&mut self, folder: &mut Folder, cpu: &mut Cpu) {
        if let Some(usage) = self.number(folder, "cpuacct.usage") {
            cpu.usage_ns = Some(usage);
        }
        for (key, ticks) in pairs(self.text(folder, "cpuacct.stat").unwrap_or_default()) {
            let ns = ticks.checked_mul(1_000_000_000 / TICKS_PER_SECOND);
            match key {
                "user" => cpu.user_ns = ns,
                "system" => cpu.system_ns = ns,
                _ => {}
            }
        }
    }

    fn cpu_1(&mut self, folder: &mut Folder, cpu: &mut Cpu) {
        for (key, value) in pairs(self.text(folder, "cpu.stat").unwrap_or_default()) {
            match key {
                "nr_periods" => cpu.periods = Some(value),
                "nr_throttled" => cpu.throttled_periods = Some(value),
                "throttled_time" => cpu.throttled_ns = Some(value),
                _ => {}
            }
        }
        // -1 is no quota.
        cpu.quota_us = self.number(folder, "cpu.cfs_quota_us");
        cpu.period_us = self.number(folder, "cpu.cfs_period_us");
        cpu.shares = self.number(folder, "cpu.shares");
    }

    fn memory_1(&mut self, folder: &mut Folder, memory: &mut Memory) {
        let Some(stat) = self.text(folder, "memory.stat") else { return };
        for (key, value) in pairs(stat) {
            match key {
                "hierarchical_memory_limit" => memory.limit = limited(value),
                "hierarchical_memsw_limit" => memory.limit_with_swap = limited(value),
                _ => {}
            }
            // Without the prefix it is the cgroup's own, without those inside.
            let Some(key) = key.strip_prefix("total_") else { continue };
            let field = match key {
                "rss" => &mut memory.rss,
                "cache" => &mut memory.cache,
                "swap" => &mut memory.swap,
                "mapped_file" => &mut memory.mapped_file,
                "dirty" => &mut memory.dirty,
                "writeback" => &mut memory.writeback,
                "pgpgin" => &mut memory.pages_in,
                "pgpgout" => &mut memory.pages_out,
                _ => match common_stat(memory, key) {
                    Some(field) => field,
                    None => continue,
                },
            };
            *field = Some(value);
        }
        memory.usage = self.number(folder, "memory.usage_in_bytes");
        memory.peak = self.number(folder, "memory.max_usage_in_bytes");
        memory.kernel = self.number(folder, "memory.kmem.usage_in_bytes");
        memory.soft_limit = self.limit(folder, "memory.soft_limit_in_bytes");
        memory.limit_hits = self.number(folder, "memory.failcnt");
        let control = self.text(folder, "memory.oom_control").unwrap_or_default();
        memory.oom_kills = pairs(control).find(|(key, _)| *key == "oom_kill").map(|(_, n)| n);
    }

    /// The first of the files that knows a device: which of them counts depends on the scheduler,
    /// and a kernel may keep them all at nothing until a device has a throttling rule. A file that
    /// counts what is in cgroups within has the devices of the one that does not, and a file of
    /// operations those of the one of bytes.
    fn blkio(&mut self, folder: &mut Folder) -> Option<Vec<DeviceIo>> {
        const FAMILIES: [&str; 3] = ["throttle", "bfq", ""];
        const ENDINGS: [&str; 2] = ["_recursive", ""];
        let mut found = None;
        for family in FAMILIES {
            for ending in ENDINGS {
                let dot = if family.is_empty() { "" } else { "." };
                let file = |what| format!("blkio.{family}{dot}{what}{ending}");
                let Some(bytes) = self.text(folder, &file("io_service_bytes")) else { continue };
                let mut devices = Vec::new();
                blkio_lines(bytes, &mut devices, |io| (&mut io.read_bytes, &mut io.write_bytes));
                if devices.is_empty() {
                    found = Some(devices);
                    break;
                }
                if let Some(serviced) = self.text(folder, &file("io_serviced")) {
                    blkio_lines(serviced, &mut devices, |io| (&mut io.reads, &mut io.writes));
                }
                return Some(devices);
            }
        }
        found
    }

    fn pids(&mut self, folder: &mut Folder, pids: &mut Pids) {
        if let Some(current) = self.number(folder, "pids.current") {
            pids.current = Some(current);
            pids.limit = self.number(folder, "pids.max");
            let events = self.text(folder, "pids.events").unwrap_or_default();
            pids.limit_hits = pairs(events).find(|(key, _)| *key == "max").map(|(_, n)| n);
        }
    }

    /// What a file holds; `None` when it cannot be read: a root cgroup has fewer files, pressure
    /// may be off.
    fn text(&mut self, folder: &mut Folder, file: &str) -> Option<&str> {
        let length = read_piece(&folder.file(file).ok()?, &mut self.buffer).ok()?;
        std::str::from_utf8(&self.buffer[..length]).ok()
    }

    /// A file with one number; words such as `max` are none.
    fn number(&mut self, folder: &mut Folder, file: &str) -> Option<u64> {
        self.text(folder, file)?.trim().parse().ok()
    }

    fn limit(&mut self, folder: &mut Folder, file: &str) -> Option<u64> {
        self.number(folder, file).and_then(limited)
    }

    fn first<T>(
        &mut self,
        folder: &mut Folder,
        files: &[&str],
        parse: fn(&str) -> Option<T>,
    ) -> Option<T> {
        files.iter().find_map(|file| parse(self.text(folder, file)?))
    }
}

/// Reads a file into the buffer, which grows if it has to; returns how much it was. The kernel gives
/// these files in one piece: what does not fill the buffer is all, without another call to see it.
fn read_piece(file: &File, buffer: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, 0) {
            Ok(length) if length < buffer.len() || length as u64 >= TEXT_MAX => return Ok(length),
            Ok(length) => buffer.resize(2 * length, 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The field of `memory.stat` that is named alike in both versions.
fn common_stat<'a>(memory: &'a mut Memory, key: &str) -> Option<&'a mut Option<u64>> {
    Some(match key {
        "shmem" => &mut memory.shmem,
        "active_anon" => &mut memory.active_anon,
        "inactive_anon" => &mut memory.inactive_anon,
        "active_file" => &mut memory.active_file,
        "inactive_file" => &mut memory.inactive_file,
        "unevictable" => &mut memory.unevictable,
        "pgfault" => &mut memory.page_faults,
        "pgmajfault" => &mut memory.major_page_faults,
        "workingset_refault_anon" => &mut memory.refaults_anon,
        "workingset_refault_file" => &mut memory.refaults_file,
        _ => return None,
    })
}

/// Lines of a key and a number. Others are left out.
pub fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// No limit is the greatest number of bytes in whole pages; pages have up to 64 KiB.
fn limited(bytes: u64) -> Option<u64> {
    const UNLIMITED: u64 = i64::MAX as u64 & !0xffff;
    (bytes > 0 && bytes < UNLIMITED).then_some(bytes)
}

/// `max 100000` or `50000 100000`: quota and period in microseconds.
pub fn cpu_max(text: &str) -> Option<(Option<u64>, u64)> {
    let mut words = text.split_ascii_whitespace();
    let quota = words.next()?;
    let period = words.next()?.parse().ok()?;
    if quota == "max" {
        return Some((None, period));
    }
    Some((Some(quota.parse().ok()?), period))
}

/// Counts the processors of `0-3,7`. `None` for an empty list, which leaves it to the parent.
pub fn processor_list(text: &str) -> Option<u32> {
    let mut count = 0_u32;
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// Lines of `io.stat`: `254:0 rbytes=1 wbytes=2 rios=3 wios=4`. A line may hold the device alone.
pub fn io_stat(text: &str) -> impl Iterator<Item = DeviceIo> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let mut io = DeviceIo { device: DeviceNumber::parse(words.next()?)?, ..Default::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let field = match key {
                "rbytes" => &mut io.read_bytes,
                "wbytes" => &mut io.write_bytes,
                "rios" => &mut io.reads,
                "wios" => &mut io.writes,
                _ => continue,
            };
            *field = value.parse().ok();
        }
        Some(io)
    })
}

/// Lines of a `blkio` file: `254:0 Read 4096`, after all devices a total.
pub fn blkio_lines(
    text: &str,
    devices: &mut Vec<DeviceIo>,
    fields: impl Fn(&mut DeviceIo) -> (&mut Option<u64>, &mut Option<u64>),
) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(DeviceNumber::parse);
        let (Some(device), Some(direction), Some(value)) = (device, words.next(), words.next())
        else {
            continue;
        };
        let Ok(value) = value.parse() else { continue };
        let known = devices.iter().position(|io| io.device == device);
        let i = known.unwrap_or_else(|| {
            devices.push(DeviceIo { device, ..Default::default() });
            devices.len() - 1
        });
        let (read, write) = fields(&mut devices[i]);
        match direction {
            "Read" => *read = Some(value),
            "Write" => *write = Some(value),
            _ => {}
        }
    }
}

/// Reads a pressure file.
pub fn pressure(text: &str) -> Stalls {
    let mut stalls = Stalls::default();
    for line in text.lines() {
        let (word, figures) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "some" => stalls.some = stall(figures),
            "full" => stalls.full = stall(figures),
            _ => {}
        }
    }
    stalls
}

fn stall(figures: &str) -> Option<Stall> {
    let mut stall = Stall::default();
    let mut total = None;
    for (key, value) in figures.split_ascii_whitespace().filter_map(|word| word.split_once('=')) {
        let percent = || value.parse::<f64>().ok().filter(|percent| percent.is_finite());
        match key {
            "avg10" => stall.avg10 = percent()?,
            "avg60" => stall.avg60 = percent()?,
            "avg300" => stall.avg300 = percent()?,
            "total" => total = value.parse().ok(),
            _ => {}
        }
    }
    Some(Stall { total_us: total?, ..stall })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::roots::Roots;
    use proptest::prelude::*;

    const VDA: DeviceNumber = DeviceNumber { major: 254, minor: 0 };

    #[test]
    fn lines_of_io_stat_may_lack_anything() {
        let text = "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n\
                    254:0\n254:0 rbytes=x wbytes\nnone rbytes=1\n\n";
        let found: Vec<_> = io_stat(text).collect();
        let bare = DeviceIo { device: VDA, ..DeviceIo::default() };
        let full = DeviceIo {
            read_bytes: Some(1),
            write_bytes: Some(2),
            reads: Some(3),
            writes: Some(4),
            ..bare
        };
        assert_eq!(found, [full, bare, bare]);
    }

    #[test]
    fn lines_of_blkio_add_to_their_device() {
        let mut devices = Vec::new();
        let bytes = "254:0 Read 1\n8:16 Write 18446744073709551615\n254:0 Write 2\nTotal 3\n";
        blkio_lines(bytes, &mut devices, |io| (&mut io.read_bytes, &mut io.write_bytes));
        blkio_lines("254:0 Read 9\n", &mut devices, |io| (&mut io.reads, &mut io.writes));
        let vda = DeviceIo {
            device: VDA,
            read_bytes: Some(1),
            write_bytes: Some(2),
            reads: Some(9),
            writes: None,
        };
        let sdb = DeviceIo {
            device: DeviceNumber { major: 8, minor: 16 },
            write_bytes: Some(u64::MAX),
            ..DeviceIo::default()
        };
        assert_eq!(devices, [vda, sdb]);
    }

    #[test]
    fn pressure_with_and_without_its_lines() {
        let some = "some avg10=1.50 avg60=0.70 avg300=1.07 total=2952704746\n";
        let stall = Stall { avg10: 1.5, avg60: 0.7, avg300: 1.07, total_us: 2_952_704_746 };
        let none = Stalls::default();
        assert_eq!(pressure(some), Stalls { some: Some(stall), ..none });
        assert_eq!(
            pressure(&format!("{some}full avg10=0.00 total=7\n")).full,
            Some(Stall { total_us: 7, ..Stall::default() })
        );
        for text in ["", "some", "some total=x", "some avg10=nan total=1", "more total=1"] {
            assert_eq!(pressure(text), none, "{text}");
        }
    }

    #[test]
    fn limits_of_processors() {
        for (text, expected) in [
            ("max 100000\n", Some((None, 100_000))),
            ("50000 100000", Some((Some(50_000), 100_000))),
            ("50000", None),
            ("x 1", None),
            ("", None),
        ] {
            assert_eq!(cpu_max(text), expected, "{text}");
        }
        for (text, expected) in [
            ("0-3,7\n", Some(5)),
            ("0", Some(1)),
            ("\n", None),
            ("3-0", None),
            ("0-4294967295", None),
            ("a", None),
        ] {
            assert_eq!(processor_list(text), expected, "{text}");
        }
        let limit = |quota_us, processors, machine| {
            let period_us = Some(100_000);
            Cpu { quota_us, period_us, processors, ..Cpu::default() }.limit(machine)
        };
        for (quota, processors, machine, expected) in [
            (Some(50_000), Some(2), Some(2), Some(0.5)),
            (Some(300_000), Some(2), Some(4), Some(2.0)),
            (Some(300_000), Some(4), Some(4), Some(3.0)),
            (None, Some(1), Some(2), Some(1.0)),
            (None, Some(2), Some(2), None),
            (None, Some(2), None, None),
            (None, None, Some(2), None),
        ] {
            assert_eq!(limit(quota, processors, machine), expected, "{quota:?} {processors:?}");
        }
        let no_period = Cpu { quota_us: Some(1), period_us: Some(0), ..Cpu::default() };
        assert_eq!(no_period.limit(None), None);
    }

    #[test]
    fn no_limit_is_none() {
        for (bytes, expected) in [
            (9_223_372_036_854_771_712, None),
            (9_223_372_036_854_710_272, None),
            (u64::MAX, None),
            (0, None),
            (1, Some(1)),
            (1 << 50, Some(1 << 50)),
        ] {
            assert_eq!(limited(bytes), expected, "{bytes}");
        }
    }

    #[test]
    fn a_working_set_is_never_below_zero() {
        let memory = |usage, inactive_file| Memory { usage, inactive_file, ..Memory::default() };
        assert_eq!(memory(Some(5), Some(3)).working_set(), Some(2));
        assert_eq!(memory(Some(3), Some(5)).working_set(), Some(0));
        assert_eq!(memory(Some(3), None).working_set(), None);
    }

    #[test]
    fn block_io_comes_from_the_family_that_has_any() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("a file");
        };
        let read = || {
            let (mut reader, mut found) = (UsageReader::default(), None);
            let path = folder.path().to_owned();
            reader.within(path, None, |reader, folder| found = reader.blkio(folder));
            found
        };
        assert_eq!(read(), None);
        file("blkio.throttle.io_service_bytes", "Total 0\n");
        assert_eq!(read(), Some(Vec::new()));
        file("blkio.bfq.io_service_bytes_recursive", "254:0 Read 5\nTotal 5\n");
        let five = DeviceIo { device: VDA, read_bytes: Some(5), ..DeviceIo::default() };
        assert_eq!(read(), Some(vec![five]));
        file("blkio.throttle.io_service_bytes_recursive", "254:0 Read 6\n");
        file("blkio.throttle.io_serviced_recursive", "254:0 Read 1\n254:0 Write 2\n");
        let six = DeviceIo { read_bytes: Some(6), reads: Some(1), writes: Some(2), ..five };
        assert_eq!(read(), Some(vec![six]));
    }

    /// A machine with cgroups that have a file or two.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().expect("a folder"));
            machine.write("", "cgroup.controllers", "");
            machine
        }

        fn folder(&self, group: &str) -> PathBuf {
            self.0.path().join("sys/fs/cgroup").join(group)
        }

        fn write(&self, group: &str, file: &str, text: &str) {
            std::fs::create_dir_all(self.folder(group)).expect("a folder");
            std::fs::write(self.folder(group).join(file), text).expect("a file");
        }

        fn has(&self, group: &str, tasks: u64) {
            self.write(group, "pids.current", &format!("{tasks}\n"));
        }

        fn remove(&self, group: &str) {
            std::fs::remove_dir_all(self.folder(group)).expect("it is there");
        }

        /// What another run reads.
        fn run<const N: usize>(
            &self,
            reader: &mut UsageReader,
            groups: [&str; N],
        ) -> [Option<u64>; N] {
            let hierarchy = Hierarchy::find(&Roots::of_machine(self.0.path())).expect("cgroups");
            reader.begin();
            groups.map(|group| reader.read(&hierarchy, group)?.pids.current)
        }
    }

    #[test]
    fn a_cgroup_made_anew_is_not_taken_for_the_one_before() {
        let machine = Machine::new();
        let reader = &mut UsageReader::default();
        machine.has("a", 1);
        assert_eq!(machine.run(reader, ["a"]), [Some(1)]);
        machine.has("a", 2);
        assert_eq!(machine.run(reader, ["a"]), [Some(2)], "the same, changed");
        // Gone, and at once there again.
        machine.remove("a");
        machine.has("a", 3);
        assert_eq!(machine.run(reader, ["a"]), [Some(3)]);
        machine.remove("a");
        assert_eq!(machine.run(reader, ["a"]), [None]);
        machine.has("a", 4);
        assert_eq!(machine.run(reader, ["a"]), [Some(4)]);
        // The one before lives on elsewhere.
        std::fs::rename(machine.folder("a"), machine.folder("b")).expect("it is there");
        machine.has("a", 6);
        assert_eq!(machine.run(reader, ["a", "b"]), [Some(6), Some(4)]);
        // Another in its place, empty at first.
        machine.remove("a");
        std::fs::create_dir(machine.folder("a")).expect("a folder");
        assert_eq!(machine.run(reader, ["a"]), [None], "it has no files");
        machine.has("a", 5);
        assert_eq!(machine.run(reader, ["a"]), [Some(5)], "they came later");
    }

    #[test]
    fn a_cgroup_made_anew_in_one_hierarchy_alone_is_read() {
        let machine = Machine(tempfile::tempdir().expect("a folder"));
        let reader = &mut UsageReader::default();
        machine.write("memory/a", "memory.stat", "total_rss 1\n");
        machine.has("pids/a", 1);
        assert_eq!(machine.run(reader, ["a"]), [Some(1)]);
        machine.remove("pids/a");
        assert_eq!(machine.run(reader, ["a"]), [None]);
        machine.has("pids/a", 2);
        assert_eq!(machine.run(reader, ["a"]), [Some(2)]);
        machine.remove("pids/a");
        machine.has("pids/a", 3);
        assert_eq!(machine.run(reader, ["a"]), [Some(3)]);
        assert_eq!(reader.folders.len(), 2);
    }

    #[test]
    fn folders_are_closed_with_their_cgroups() {
        let machine = Machine::new();
        let reader = &mut UsageReader::default();
        machine.has("a", 1);
        machine.has("b", 2);
        assert_eq!(machine.run(reader, ["a", "b"]), [Some(1), Some(2)]);
        assert_eq!(reader.folders.len(), 2);
        machine.remove("b");
        assert_eq!(machine.run(reader, ["a"]), [Some(1)]);
        assert_eq!(machine.run(reader, ["a"]), [Some(1)]);
        assert_eq!(reader.folders.keys().collect::<Vec<_>>(), [&machine.folder("a")]);
        machine.remove("a");
        assert_eq!(machine.run(reader, ["a"]), [None]);
        assert_eq!(reader.folders.len(), 0, "nothing is there to be kept");
    }

    #[test]
    fn what_exceeds_the_bound_is_read_without_being_kept() {
        let machine = Machine::new();
        let reader = &mut UsageReader { folders_max: 2, ..UsageReader::default() };
        let groups = ["a", "b", "c", "d"];
        for round in 0..3 {
            for (n, group) in (0..).zip(groups) {
                machine.has(group, 10 * round + n);
            }
            let tasks = [0, 1, 2, 3].map(|n| Some(10 * round + n));
            assert_eq!(machine.run(reader, groups), tasks);
            assert_eq!(reader.folders.len(), 2);
        }
        let all = UsageReader::default().folders_max;
        assert!(all <= FOLDERS_MAX, "{all} is more than there may be");
        assert!(all as u64 <= sys::open_files_max() / 4, "others need files too");
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_read_whole() {
        let machine = Machine::new();
        let reader = &mut UsageReader { buffer: vec![0; 4], ..UsageReader::default() };
        for tasks in [1, 123, 1234, 12_345_678_901_234] {
            machine.has("a", tasks);
            assert_eq!(machine.run(reader, ["a"]), [Some(tasks)]);
        }
        assert_eq!(reader.buffer.len(), 16);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ :=.,0-9a-z\\n-]{0,200}") {
            pairs(&text).for_each(drop);
            io_stat(&text).for_each(drop);
            blkio_lines(&text, &mut Vec::new(), |io| (&mut io.reads, &mut io.writes));
            let _ = (pressure(&text), cpu_max(&text), processor_list(&text));
        }
    }
}
