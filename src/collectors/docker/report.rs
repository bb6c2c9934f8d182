//! What a run sends about the engine and about containers as a crowd: counts, sizes, service checks
//! and events.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::api::{DiskUsage, Image};
use super::events::{Event, Subject, Tagged, messages};
use super::figures;
use super::inventory::{Container, Health, Snapshot, event_tags};
use super::tags::{COMMAND, keep, up_to_high};
use super::watch::Counted;
use super::{Docker, filter};
use crate::batch;
use crate::collectors::image::{ImageName, name_of};
use crate::collectors::{Samples, Tags};
use crate::sample::{Priority, Status};
use crate::time::Time;

/// The tags of an image, for containers of which nothing else may be said.
const IMAGE_TAGS: [&str; 4] = ["docker_image", "image_name", "image_tag", "short_image"];

impl Docker {
    /// Containers, events and checks.
    pub(super) fn report(&mut self, samples: &mut Samples, snapshot: &Snapshot) {
        if let Some(engine) = &snapshot.engine {
            let (status, message) = match engine {
                Ok(()) => (Status::Ok, ""),
                Err(error) => (Status::Critical, error.as_str()),
            };
            self.check(samples, "docker.service_up", status, message, samples.now(), &[]);
        }
        // Before its first answer nothing is known, which is not none.
        if snapshot.engine == Some(Ok(())) || !snapshot.containers.is_empty() {
            self.count_containers(samples, &snapshot.containers);
        }
        let all = snapshot.containers.iter().chain(&snapshot.gone);
        let known: BTreeMap<&str, &Arc<Container>> = all.map(|c| (c.id.as_str(), c)).collect();
        self.tell_events(samples, snapshot, &known);
        self.tell_health(samples, snapshot);
    }

    fn count_containers(&self, samples: &mut Samples, containers: &[Arc<Container>]) {
        let mut crowds: BTreeMap<(bool, Vec<String>), Vec<&Container>> = BTreeMap::new();
        let mut states: BTreeMap<&str, usize> = BTreeMap::new();
        for container in containers {
            let mut tags = up_to_high(&container.tags);
            if self.config.container_tags.iter().any(|asked| asked == COMMAND) {
                tags.push(format!("{COMMAND}:{}", container.facts.command));
            }
            let tags = if container.excluded {
                keep(tags, &IMAGE_TAGS.map(str::to_owned))
            } else {
                *states.entry(&container.state).or_default() += 1;
                tags
            };
            let tags = keep(tags, &self.config.container_tags);
            crowds.entry((container.is_running(), tags)).or_default().push(container);
        }
        let mut totals = [0, 0];
        for ((running, tags), crowd) in &crowds {
            let name =
                if *running { "docker.containers.running" } else { "docker.containers.stopped" };
            let tags = Tags::new(self.config.tags.iter().chain(tags));
            totals[usize::from(*running)] += crowd.len();
            if self.config.legacy_names {
                crowd.iter().for_each(|container| samples.set(name, &*container.id, &tags));
            } else {
                samples.gauge(name, crowd.len() as f64, &tags);
            }
        }
        samples.gauge("docker.containers.stopped.total", totals[0] as f64, &self.own_tags);
        samples.gauge("docker.containers.running.total", totals[1] as f64, &self.own_tags);
        if self.config.collect_container_count {
            for (state, count) in states {
                let tags = self.own_tags.and("container_state", state);
                samples.gauge("docker.container.count", count as f64, &tags);
            }
        }
    }

    /// Events for people, and the checks and counts that follow from events.
    fn tell_events(
        &mut self,
        samples: &mut Samples,
        snapshot: &Snapshot,
        known: &BTreeMap<&str, &Arc<Container>>,
    ) {
        let mut tagged = Vec::new();
        for event in &snapshot.events {
            if event.subject != Subject::Container {
                tagged.push(Tagged { event: event.clone(), tags: Vec::new() });
                continue;
            }
            let Some(tags) = event_tags(event, known, &self.config, &self.filter) else { continue };
            let tags = up_to_high(&tags);
            match &*event.action {
                "die" => {
                    self.tell_kills(samples, event, &tags);
                    if self.config.collect_exit_codes {
                        self.tell_exit(samples, event, &tags);
                    }
                }
                "health_status" => {
                    let container = known.get(event.id.as_str()).copied();
                    if let (Some(container), Some(health)) =
                        (container, Health::parse(&event.detail))
                    {
                        self.tell_health_of(samples, container, health, event.time());
                    }
                }
                "oom" => self.measure.kills.event(&event.id),
                _ => {}
            }
            tagged.push(Tagged { event: event.clone(), tags });
        }
        if !self.config.collect_events {
            return;
        }
        for message in messages(&tagged, &self.config, &self.around.hostname) {
            samples.event(batch::Event {
                title: message.title,
                text: message.text,
                timestamp: message.time.seconds(),
                host: String::new(),
                aggregation_key: message.aggregation_key,
                source_type: "docker".to_owned(),
                priority: Priority::Normal,
                alert_type: message.alert,
                tags: self.with_own(&message.tags),
            });
        }
    }

    /// What a container that has ended was killed for, if its counter was not read in time.
    fn tell_kills(&mut self, samples: &mut Samples, event: &Event, tags: &[String]) {
        let kills = self.measure.kills.ended(&event.id);
        if kills > 0 {
            let kept = keep(tags.to_vec(), &self.config.performance_tags);
            let kept = self.config.tags.iter().cloned().chain(kept);
            let kept = Tags::new(kept.chain(["runtime:docker".to_owned()]));
            samples.count("docker.mem.oom_kills", kills as f64, &kept);
        }
    }

    fn tell_exit(&self, samples: &mut Samples, event: &Event, tags: &[String]) {
        let Some(code) = event.exit_code() else { return };
        let ok = self.config.ok_exit_codes.contains(&code);
        let message = format!("Container {} exited with {code}", event.container_name());
        let mut tags = tags.to_vec();
        tags.push(format!("exit_code:{code}"));
        let status = if ok { Status::Ok } else { Status::Critical };
        self.check(samples, "docker.exit", status, &message, event.time(), &tags);
    }

    /// The health of every container whose last word was not told yet.
    fn tell_health(&mut self, samples: &mut Samples, snapshot: &Snapshot) {
        let there: HashSet<&str> = snapshot.containers.iter().map(|c| c.id.as_str()).collect();
        self.told_health.retain(|id, _| there.contains(id.as_str()));
        self.measure.kills.retain(|id| there.contains(id));
        for container in &snapshot.containers {
            if container.excluded {
                continue;
            }
            match container.health {
                Some(health) if self.told_health.get(&container.id) != Some(&health) => {
                    self.tell_health_of(samples, container, health, samples.now());
                }
                Some(_) | None => {}
            }
        }
    }

    fn tell_health_of(
        &mut self,
        samples: &mut Samples,
        container: &Container,
        health: Health,
        time: Time,
    ) {
        let chosen = self.health_whitelist.is_empty()
            || self.health_whitelist.iter().any(|regex| filter::any_tag(&container.tags, regex));
        let again = self.told_health.insert(container.id.clone(), health) == Some(health);
        if again || !chosen {
            return;
        }
        let (status, word) = match health {
            Health::Healthy => (Status::Ok, "healthy"),
            Health::Unhealthy => (Status::Critical, "unhealthy"),
            Health::Starting => (Status::Unknown, "starting"),
        };
        let message = format!("Container {} is {word}", container.facts.name());
        let tags = up_to_high(&container.tags);
        self.check(samples, "docker.container_health", status, &message, time, &tags);
        if let Some(inspection) = &container.inspected {
            let streak = inspection.failing_streak as f64;
            let tags = Tags::new(self.with_own(&tags));
            samples.gauge("docker.container.health.failing_streak", streak, &tags);
        }
    }

    fn check(
        &self,
        samples: &mut Samples,
        name: &str,
        status: Status,
        message: &str,
        time: Time,
        tags: &[String],
    ) {
        samples.service_check(batch::ServiceCheck {
            name: name.to_owned(),
            status,
            timestamp: time.seconds(),
            host: String::new(),
            message: message.to_owned(),
            tags: self.with_own(tags),
        });
    }

    fn with_own(&self, tags: &[String]) -> Vec<String> {
        let all: BTreeSet<&String> = self.config.tags.iter().chain(tags).collect();
        all.into_iter().cloned().collect()
    }

    /// What is counted apart from the runs, as it was found last.
    pub(super) fn report_counted(
        &self,
        samples: &mut Samples,
        snapshot: &Snapshot,
        counted: &Counted,
    ) {
        let own = &self.own_tags;
        if let Some(images) = &counted.images {
            self.images(samples, images, counted.all_images);
        }
        if let Some((attached, dangling)) = counted.volumes {
            for (state, count) in [("attached", attached), ("dangling", dangling)] {
                let tags = own.and("volume_state", state);
                samples.gauge("docker.volume.count", count as f64, &tags);
            }
        }
        if let Some(info) = &counted.info {
            for (name, value) in figures::pool(&info.driver_status) {
                samples.gauge(name, value, own);
            }
        }
        if let Some(usage) = &counted.disk_usage {
            for (name, size) in disk_usage(usage) {
                samples.gauge(name, size as f64, own);
            }
        }
        if let Some(sizes) = &counted.sizes {
            self.sizes(samples, snapshot, sizes);
        }
    }

    fn images(&self, samples: &mut Samples, images: &[Image], all: Option<usize>) {
        if self.config.collect_images_stats {
            samples.gauge("docker.images.available", images.len() as f64, &self.own_tags);
        }
        if let Some(all) = all {
            let only_layers = all.saturating_sub(images.len());
            samples.gauge("docker.images.intermediate", only_layers as f64, &self.own_tags);
        }
        if !self.config.collect_image_size {
            return;
        }
        for image in images {
            let name = name_of(&image.repo_tags, &image.repo_digests).unwrap_or_default();
            let name = ImageName::new(&name);
            let tags = [
                ("docker_image", &name.full()),
                ("image_name", &name.long),
                ("image_tag", &name.tag),
                ("short_image", &name.short),
                ("image_id", &image.id),
            ];
            let tags = tags.iter().filter(|(_, value)| !value.is_empty());
            let tags = tags.map(|(name, value)| format!("{name}:{value}")).collect();
            let tags =
                Tags::new(self.config.tags.iter().chain(&keep(tags, &self.config.image_tags)));
            samples.gauge("docker.image.size", image.size as f64, &tags);
            if let Some(size) = image.virtual_size {
                samples.gauge("docker.image.virtual_size", size as f64, &tags);
            }
        }
    }

    fn sizes(
        &self,
        samples: &mut Samples,
        snapshot: &Snapshot,
        sizes: &HashMap<String, (u64, u64)>,
    ) {
        for container in snapshot.containers.iter().filter(|container| !container.excluded) {
            let Some((own, root)) = sizes.get(&container.id) else { continue };
            if *own == 0 && *root == 0 {
                continue;
            }
            let all = if self.config.use_histogram {
                container.tags.low.iter().chain(&container.tags.orchestrator).cloned().collect()
            } else {
                up_to_high(&container.tags)
            };
            let tags = keep(all, &self.config.performance_tags);
            let tags = self.config.tags.iter().cloned().chain(tags);
            let tags = Tags::new(tags.chain(["runtime:docker".to_owned()]));
            let mut send = |name, size: u64| {
                if self.config.use_histogram {
                    samples.histogram(name, size as f64, &tags);
                } else {
                    samples.gauge(name, size as f64, &tags);
                }
            };
            send("docker.container.size_rw", *own);
            send("docker.container.size_rootfs", *root);
            if self.config.legacy_names {
                send("docker.disk.size", *own);
            }
        }
    }
}

/// Bytes on the engine's disk, and those that nothing uses.
fn disk_usage(usage: &DiskUsage) -> [(&'static str, u64); 8] {
    let sum = |sizes: &mut dyn Iterator<Item = i64>| -> u64 {
        sizes.map(|size| u64::try_from(size).unwrap_or(0)).fold(0, u64::saturating_add)
    };
    let size_of = |size: Option<u64>| i64::try_from(size.unwrap_or(0)).unwrap_or(i64::MAX);
    let unused = usage.images.iter().filter(|image| image.containers == 0);
    let stopped = usage.containers.iter().filter(|container| container.state != "running");
    let volumes = || usage.volumes.iter().map(|volume| &volume.usage_data);
    let idle = usage.build_cache.iter().filter(|cache| !cache.in_use && !cache.shared);
    [
        ("docker.system.images.size", usage.layers_size),
        (
            "docker.system.images.reclaimable",
            sum(&mut unused.map(|image| image.size.saturating_sub(image.shared_size.max(0)))),
        ),
        (
            "docker.system.containers.size",
            sum(&mut usage.containers.iter().map(|container| size_of(container.size_rw))),
        ),
        (
            "docker.system.containers.reclaimable",
            sum(&mut stopped.map(|container| size_of(container.size_rw))),
        ),
        ("docker.system.volumes.size", sum(&mut volumes().map(|volume| volume.size))),
        (
            "docker.system.volumes.reclaimable",
            sum(&mut volumes().filter(|volume| volume.ref_count == 0).map(|volume| volume.size)),
        ),
        ("docker.system.build_cache.size", sum(&mut usage.build_cache.iter().map(|c| c.size))),
        ("docker.system.build_cache.reclaimable", sum(&mut idle.map(|cache| cache.size))),
    ]
}
