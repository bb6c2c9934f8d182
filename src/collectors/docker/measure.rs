//! One run over the containers: reads their files and sends the figures.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use anyhow::bail;

use super::api::Stats;
use super::config::Config;
use super::figures::{self, Around, Figure, Figures, Verb};
use super::inventory::{Container, Inspection, Snapshot};
use super::kills::Kills;
use super::tags::{keep, up_to_high};
use super::watch::Watch;
use crate::cgroup::hierarchy::{Bounds, Hierarchy, Version};
use crate::cgroup::identity::Identity;
use crate::cgroup::proc::{self, Proc, Traffic};
use crate::cgroup::roots::Roots;
use crate::cgroup::usage::{DeviceIo, Usage, UsageReader};
use crate::collectors::{Samples, Tags};
use crate::origin::Directory;
use crate::time::Time;

/// Processes of one container that are looked at one by one.
const PROCESSES_MAX: usize = 1000;

/// Runs until a container whose cgroup was not found is looked for again.
const PATIENCE: u32 = 20;

/// What is remembered from run to run.
pub(super) struct Measure {
    config: Config,
    roots: Roots,
    proc: Proc,
    hierarchy: Option<Hierarchy>,
    reader: UsageReader,
    /// Places of cgroups, by container and pid.
    places: HashMap<(String, Option<u32>), Place>,
    run: u32,
    pub kills: Kills,
}

#[derive(Clone, Debug)]
enum Place {
    At(String),
    /// Not found in this run.
    Nowhere(u32),
}

/// How the figures of one container are sent.
struct Sender<'a> {
    config: &'a Config,
    /// Whose totals these are: those of another life of the container are not.
    entity: String,
    tags: Vec<String>,
    /// The same without what tells containers of an image apart.
    group: Vec<String>,
}

impl Measure {
    pub(super) fn new(config: &Config, roots: &Roots) -> Self {
        Self {
            config: config.clone(),
            roots: roots.clone(),
            proc: Proc::new(&roots.proc),
            hierarchy: None,
            reader: UsageReader::default(),
            places: HashMap::new(),
            run: 0,
            kills: Kills::default(),
        }
    }

    /// # Errors
    ///
    /// Time ran out; containers that were not reached keep their totals.
    pub(super) fn run(
        &mut self,
        samples: &mut Samples,
        snapshot: &Snapshot,
        watch: &Watch,
        directory: &Directory,
    ) -> anyhow::Result<()> {
        self.run = self.run.wrapping_add(1);
        self.reader.begin();
        if self.hierarchy.is_none() {
            self.hierarchy = Hierarchy::find(&self.roots).ok();
        }
        // An orchestrator may have a word in it too.
        let excluded = |id: &str| directory.told(id).is_some_and(|(_, told)| told.is_excluded);
        let wanted = |c: &&Arc<Container>| c.is_alive() && !c.excluded && !excluded(&c.id);
        let containers: Vec<&Arc<Container>> = snapshot.containers.iter().filter(wanted).collect();
        self.locate(&containers);
        let processors = self.proc.processors();
        let devices = self.proc.text("diskstats").unwrap_or_default();
        let devices: HashMap<_, _> = proc::block_devices(&devices).collect();
        let name = |device: &DeviceIo| match devices.get(&device.device) {
            Some(name) => (*name).to_owned(),
            None => format!("{}:{}", device.device.major, device.device.minor),
        };
        let mut around = HashMap::new();
        let mut suspects = Vec::new();
        let mut elsewhere = Vec::new();
        let mut out_of_time = false;
        for container in &containers {
            if samples.out_of_time() {
                out_of_time = true;
                break;
            }
            let key = (container.id.clone(), container.pid());
            let Some(Place::At(path)) = self.places.get(&key).cloned() else {
                elsewhere.push(*container);
                continue;
            };
            let Some(usage) = self.usage(&path) else {
                self.places.remove(&key);
                suspects.push(container.id.clone());
                continue;
            };
            if let Some(kills) = usage.memory.oom_kills {
                self.kills.read(&container.id, kills);
            }
            let mut figures = Figures::default();
            let around = self.around(&path, &usage, container, processors, &mut around);
            figures.usage(&usage, around);
            let pids = self.pids(&path);
            // Its cgroup is there and its first process is not: it was started anew.
            let ended = |pid| !pids.contains(&pid) && self.proc.of(pid, "cgroup").is_err();
            if !pids.is_empty() && container.pid().is_some_and(ended) {
                suspects.push(container.id.clone());
            }
            self.storage(&pids, &usage, name, &mut figures);
            self.open_files(&pids, &mut figures);
            life(container, samples.now(), &mut figures);
            Sender::new(&self.config, container).send(samples, &figures.0);
        }
        self.networks(samples, snapshot);
        self.by_stats(samples, &elsewhere, watch);
        watch.suspect(suspects);
        if out_of_time {
            bail!("not all of {} containers were measured in time", containers.len());
        }
        Ok(())
    }

    /// Finds the cgroups of containers: by their first process, else by walking the tree for their
    /// ids.
    fn locate(&mut self, containers: &[&Arc<Container>]) {
        let mut places = HashMap::with_capacity(containers.len());
        let mut lost = Vec::new();
        for container in containers {
            let key = (container.id.clone(), container.pid());
            match self.places.remove(&key) {
                Some(Place::Nowhere(run)) if self.run.wrapping_sub(run) < PATIENCE => {
                    places.insert(key, Place::Nowhere(run));
                }
                Some(Place::At(path)) => {
                    places.insert(key, Place::At(path));
                }
                Some(Place::Nowhere(_)) | None => match self.by_process(container) {
                    Some(path) => {
                        places.insert(key, Place::At(path));
                    }
                    None => lost.push(key),
                },
            }
        }
        if !lost.is_empty() {
            let index = self.hierarchy.as_ref().map(|h| h.index(Bounds::default()));
            for key in lost {
                let path = index.as_ref().and_then(|index| index.by_container(&key.0));
                let place = path.map_or(Place::Nowhere(self.run), |p| Place::At(p.to_owned()));
                places.insert(key, place);
            }
        }
        self.places = places;
    }

    /// A pid may be of another life of the container, or of another machine: the path has to be the
    /// container's.
    fn by_process(&self, container: &Container) -> Option<String> {
        let path = self.hierarchy.as_ref()?.path_of_pid(&self.proc, container.pid()?).ok()??;
        let identity = Identity::of_path(&path);
        (identity.container_id.as_deref() == Some(&container.id)).then_some(path)
    }

    fn pids(&self, path: &str) -> Vec<u32> {
        self.hierarchy.as_ref().map_or_else(Vec::new, |hierarchy| hierarchy.pids(path))
    }

    fn usage(&mut self, path: &str) -> Option<Usage> {
        self.reader.read(self.hierarchy.as_ref()?, path)
    }

    /// What limits a container that has no limit of its own; `known` spares reading the same cgroup
    /// for each of its containers.
    fn around(
        &mut self,
        path: &str,
        usage: &Usage,
        container: &Container,
        processors: Option<u32>,
        known: &mut HashMap<String, Option<f64>>,
    ) -> Around {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let mut limit_around = None;
        if usage.cpu.limit(processors).is_none() && !parent.is_empty() {
            limit_around = match known.get(parent) {
                Some(limit) => *limit,
                None => {
                    let limit = self.usage(parent).and_then(|usage| usage.cpu.limit(processors));
                    known.insert(parent.to_owned(), limit);
                    limit
                }
            };
        }
        Around {
            processors,
            limit_around,
            cpu_shares: container.inspected.as_ref().map(|inspection| inspection.cpu_shares),
            all_memory: self.config.collect_all_metrics,
        }
    }

    fn storage(
        &self,
        pids: &[u32],
        usage: &Usage,
        name: impl Fn(&DeviceIo) -> String,
        figures: &mut Figures,
    ) {
        let Some(hierarchy) = &self.hierarchy else { return };
        let devices = usage.io.as_deref().unwrap_or_default();
        if hierarchy.version() == Version::V2 || !figures::is_unaccounted(devices) {
            return figures.devices(devices, name);
        }
        // Kernels that have no throttling rule for a device count nothing there.
        let mut sum = DeviceIo::default();
        for pid in pids.iter().take(PROCESSES_MAX) {
            let io = self.proc.of(*pid, "io").ok().and_then(|text| proc::process_io(&text));
            if let Some(io) = io {
                let add = |sum: Option<u64>, n| Some(sum.unwrap_or(0).saturating_add(n));
                sum.read_bytes = add(sum.read_bytes, io.read_bytes);
                sum.write_bytes = add(sum.write_bytes, io.write_bytes);
            }
        }
        figures.device(&sum, &["source:procio".to_owned()]);
    }

    fn open_files(&self, pids: &[u32], figures: &mut Figures) {
        if !self.config.collect_open_fds {
            return;
        }
        let pids = pids.iter().take(PROCESSES_MAX);
        let files: Vec<u64> = pids.filter_map(|pid| self.proc.open_files(*pid).ok()).collect();
        if !files.is_empty() {
            figures.gauge("docker.container.open_fds", Some(files.iter().sum::<u64>() as f64));
        }
    }

    /// What networks have moved, once for each of them: containers may share one, and some have that
    /// of the machine.
    fn networks(&self, samples: &mut Samples, snapshot: &Snapshot) {
        let machine = self.proc.network(1).ok();
        let mut shared: BTreeMap<u64, Vec<&Arc<Container>>> = BTreeMap::new();
        for container in &snapshot.containers {
            let Some(inspection) = &container.inspected else { continue };
            let Some(pid) = inspection.pid.filter(|_| inspection.network_mode != "host") else {
                continue;
            };
            // A pid that is not seen here is one of another pid namespace.
            if let Ok(inode) = self.proc.network(pid)
                && Some(inode) != machine
            {
                shared.entry(inode).or_default().push(container);
            }
        }
        for mut containers in shared.into_values() {
            containers.sort_by(|a, b| a.id.cmp(&b.id));
            self.network(samples, &containers);
        }
    }

    fn network(&self, samples: &mut Samples, containers: &[&Arc<Container>]) {
        let borrows = |inspection: &Inspection| inspection.network_mode.starts_with("container:");
        let owns = |c: &&&Arc<Container>| c.inspected.as_ref().is_some_and(|i| !borrows(i));
        let owner = containers.iter().find(owns);
        let sender = match owner.filter(|owner| !owner.excluded) {
            Some(owner) => Some(Sender::new(&self.config, owner)),
            // The owner only holds the network of a pod or task: then it is theirs.
            None => containers.iter().find(|c| !c.excluded).and_then(|container| {
                let sender = Sender::new(&self.config, container);
                (!container.tags.orchestrator.is_empty()).then(|| sender.of_the_pod(container))
            }),
        };
        let Some((sender, container)) = sender.zip(owner.or_else(|| containers.first())) else {
            return;
        };
        let Some(inspection) = &container.inspected else { return };
        let Some(pid) = inspection.pid else { return };
        let Ok(text) = self.proc.of(pid, "net/dev") else { return };
        // Routes only tell what an interface is called, and the loopback is left out.
        if proc::interfaces(&text).all(|interface| interface.name == "lo") {
            return;
        }
        let routes = self.proc.of(pid, "net/route").unwrap_or_default();
        let mut figures = Figures::default();
        for (name, interface) in figures::networks(&text, &routes, &inspection.networks) {
            figures.network(&name, interface.received, interface.sent);
        }
        sender.send(samples, &figures.0);
    }

    /// Containers that have no cgroup here, as with an engine elsewhere: what the stats API told of
    /// them since the run before.
    fn by_stats(&self, samples: &mut Samples, containers: &[&Arc<Container>], watch: &Watch) {
        // A paused container answers no more than one that hangs.
        let wanted: HashSet<String> =
            containers.iter().filter(|c| c.is_running()).map(|c| c.id.clone()).collect();
        let (found, machine) = watch.stats(wanted);
        for container in containers {
            let Some((_, stats)) = found.get(&container.id) else { continue };
            let usage = figures::usage_of_stats(stats, machine.mem_total);
            let inspection = container.inspected.as_ref();
            let around = Around {
                processors: machine.processors,
                cpu_shares: inspection.map(|inspection| inspection.cpu_shares),
                all_memory: self.config.collect_all_metrics,
                ..Around::default()
            };
            let mut figures = Figures::default();
            figures.usage(&usage, around);
            for device in usage.io.iter().flatten() {
                figures.device(device, &["source:stats".to_owned()]);
            }
            networks_of_stats(stats, inspection, &mut figures);
            life(container, samples.now(), &mut figures);
            Sender::new(&self.config, container).send(samples, &figures.0);
        }
    }
}

/// The stats API knows interfaces only; where there is but one network, it is that.
fn networks_of_stats(stats: &Stats, inspection: Option<&Inspection>, figures: &mut Figures) {
    let networks = inspection.map_or(&[][..], |inspection| &inspection.networks);
    for (interface, moved) in &stats.networks {
        let name = match networks {
            [(only, _)] if stats.networks.len() == 1 => only,
            _ => interface,
        };
        let received = Traffic {
            bytes: moved.rx_bytes,
            packets: moved.rx_packets,
            errors: moved.rx_errors,
            dropped: moved.rx_dropped,
        };
        let sent = Traffic {
            bytes: moved.tx_bytes,
            packets: moved.tx_packets,
            errors: moved.tx_errors,
            dropped: moved.tx_dropped,
        };
        figures.network(name, received, sent);
    }
}

/// How long it has lived, and how often it had to be started anew.
fn life(container: &Container, now: Time, figures: &mut Figures) {
    let Some(inspection) = &container.inspected else { return };
    let uptime = inspection.started.map(|started| (now.0 - started.0).max(0) as f64 / 1000.0);
    figures.gauge("docker.uptime", uptime.filter(|_| container.is_alive()));
    let restarts = Some(inspection.restarts).filter(|restarts| *restarts > 0);
    figures.gauge("docker.container.restarts", restarts.map(|restarts| restarts as f64));
}

impl<'a> Sender<'a> {
    fn new(config: &'a Config, container: &Container) -> Self {
        let common = || config.tags.iter().cloned().chain(["runtime:docker".to_owned()]);
        let named = keep(up_to_high(&container.tags), &config.performance_tags);
        let group = container.tags.low.iter().chain(&container.tags.orchestrator).cloned();
        let group = keep(group.collect(), &config.performance_tags);
        Self {
            config,
            entity: format!("{}/{}", container.id, container.pid().unwrap_or(0)),
            tags: common().chain(named).collect(),
            group: common().chain(group).collect(),
        }
    }

    /// Without what names one container of the pod.
    fn of_the_pod(mut self, container: &Container) -> Self {
        let own = [
            "kube_container_name:",
            "ecs_container_name:",
            "docker_image:",
            "image_",
            "short_image:",
        ];
        self.group.retain(|tag| !own.iter().any(|prefix| tag.starts_with(prefix)));
        self.tags.clone_from(&self.group);
        debug_assert!(!container.tags.orchestrator.is_empty());
        self
    }

    fn send(&self, samples: &mut Samples, figures: &[Figure]) {
        let chosen = if self.config.use_histogram { &self.group } else { &self.tags };
        let plain = Tags::new(chosen);
        for figure in figures {
            let tags = match &*figure.tags {
                [] => plain.clone(),
                more => Tags::new(chosen.iter().chain(more)),
            };
            self.send_one(samples, figure, &tags);
        }
    }

    fn send_one(&self, samples: &mut Samples, figure: &Figure, tags: &Tags) {
        let part = figure.tags.join(",");
        let value = match figure.verb {
            Verb::Gauge => figure.value,
            Verb::Count => {
                let (entity, name) = (&self.entity, figure.name);
                return samples.monotonic_count_of(entity, &part, name, figure.value, tags);
            }
            Verb::Rate => {
                let rate = samples.rate_value(&self.entity, &part, figure.name, figure.value);
                let cap = self.config.capped_metrics.get(figure.name);
                match rate {
                    Some(rate) if cap.is_none_or(|cap| rate <= *cap) => rate,
                    _ => return,
                }
            }
        };
        if self.config.use_histogram {
            samples.histogram(figure.name, value, tags);
        } else {
            samples.gauge(figure.name, value, tags);
        }
    }
}
