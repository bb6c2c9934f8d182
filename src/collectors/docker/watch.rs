//! The tasks that talk with the engine, so that no run has to wait for it.
//!
//! One lists and inspects when a run asks for it, one hears events, one looks for containers that
//! senders belong to, one counts what takes long, and one asks the stats API for containers without
//! cgroups here. All write into what the runs read.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::Surroundings;
use super::api::{DiskUsage, Image, Info, Inspected, Listed, Stats, Volumes};
use super::config::Config;
use super::engine::{Engine, EngineError, EventStream};
use super::events::{self, Event, Hearing, Memory};
use super::inventory::{Container, Inventory, Snapshot};
use crate::collectors::image::name_of;
use crate::origin::directory::{Directory, Place, Source, Told};
use crate::telemetry::Telemetry;
use crate::time::Time;

/// Calls for single containers that are under way at a time.
const AT_ONCE: usize = 16;

/// The same of the stats API, each of which takes the engine a second or two.
const STATS_AT_ONCE: usize = 64;

/// How long a run waits for a fresh list while the engine is well.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the tasks share with the runs.
pub struct Watch {
    shared: Arc<Shared>,
    /// They end with this.
    _tasks: JoinSet<()>,
    /// Lists that came, or failed.
    lists: watch::Receiver<u64>,
}

struct Shared {
    engine: Engine,
    config: Config,
    inventory: Mutex<Inventory>,
    counted: Mutex<Counted>,
    stats: Mutex<StatsBoard>,
    directory: Arc<Directory>,
    telemetry: Arc<Telemetry>,
    clock: fn() -> Time,
    /// A list is asked for.
    list_wanted: Notify,
    stats_wanted: Notify,
    inspections: Arc<Semaphore>,
}

/// What is counted apart from the runs, as it was found last.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    pub images: Option<Vec<Image>>,
    /// Their number with those that are but layers of others.
    pub all_images: Option<usize>,
    /// Attached and dangling.
    pub volumes: Option<(usize, usize)>,
    pub info: Option<Info>,
    pub disk_usage: Option<Arc<DiskUsage>>,
    /// Own files and root file system, by container.
    pub sizes: Option<HashMap<String, (u64, u64)>>,
}

/// Figures by container, with the time at which they came.
pub type StatsFound = HashMap<String, (Time, Stats)>;

#[derive(Default)]
struct StatsBoard {
    /// Of the engine, which may be elsewhere.
    machine: Option<Info>,
    wanted: HashSet<String>,
    found: StatsFound,
}

impl Watch {
    /// Starts the tasks on the current runtime; they end with what is returned.
    pub fn start(
        engine: Engine,
        config: &Config,
        inventory: Inventory,
        around: &Surroundings,
    ) -> Self {
        let interval = around.interval;
        let shared = Arc::new(Shared {
            engine,
            config: config.clone(),
            inventory: Mutex::new(inventory),
            counted: Mutex::default(),
            stats: Mutex::default(),
            directory: Arc::clone(&around.directory),
            telemetry: Arc::clone(&around.telemetry),
            clock: around.clock,
            list_wanted: Notify::new(),
            stats_wanted: Notify::new(),
            inspections: Arc::new(Semaphore::new(AT_ONCE)),
        });
        let (listed, lists) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(list_when_asked(Arc::clone(&shared), listed));
        tasks.spawn(hear(Arc::clone(&shared)));
        tasks.spawn(look_for_senders(Arc::clone(&shared)));
        tasks.spawn(count(Arc::clone(&shared), interval));
        tasks.spawn(ask_for_stats(Arc::clone(&shared)));
        Self { shared, _tasks: tasks, lists }
    }

    /// Asks for a fresh list and gives what is known: with that list if it comes at once, otherwise
    /// without.
    pub async fn snapshot(&mut self, time_left: Duration) -> Snapshot {
        let well = !matches!(self.shared.inventory().engine(), Some(Err(_)));
        self.lists.mark_unchanged();
        self.shared.list_wanted.notify_one();
        let listed = async {
            while self.lists.changed().await.is_ok() && self.shared.inventory().uninspected() > 0 {}
        };
        if well && timeout(PATIENCE.min(time_left / 2), listed).await.is_err() {
            debug!("docker: the engine is slow; this run goes by what is known");
        }
        self.shared.inventory().snapshot()
    }

    /// The files of these containers were not where they should be.
    pub fn suspect(&self, ids: impl IntoIterator<Item = String>) {
        let mut inventory = self.shared.inventory();
        ids.into_iter().for_each(|id| inventory.suspect(&id));
    }

    pub fn counted(&self) -> Counted {
        lock(&self.shared.counted).clone()
    }

    /// Figures of containers that have no cgroup here, as asked for before; these are asked for
    /// next.
    /// With them comes what the engine says of its machine.
    pub fn stats(&self, wanted: HashSet<String>) -> (StatsFound, Info) {
        let mut board = lock(&self.shared.stats);
        if !wanted.is_empty() {
            self.shared.stats_wanted.notify_one();
        }
        board.wanted = wanted;
        (std::mem::take(&mut board.found), board.machine.clone().unwrap_or_default())
    }
}

impl Shared {
    fn inventory(&self) -> MutexGuard<'_, Inventory> {
        lock(&self.inventory)
    }

    /// Lets senders find their container.
    fn publish(&self, container: &Container) {
        if !container.is_alive() {
            return;
        }
        let label = |name: &str| container.facts.labels.get(name).map(|value| (**value).into());
        let pod = label("io.kubernetes.pod.uid").map(|uid| {
            let name = label("io.kubernetes.container.name").unwrap_or_default();
            Place { uid, name, tags: None }
        });
        let told = Told {
            pid: container.pid(),
            addresses: container.addresses(),
            pod,
            tags: Arc::new(container.tags.clone()),
            is_measured: true,
            ..Told::default()
        };
        self.directory.publish(Source::Engine, &container.id, told);
    }

    fn ended(&self, ids: impl IntoIterator<Item = String>) {
        for id in ids {
            self.directory.ended(Source::Engine, &id, (self.clock)());
        }
    }

    async fn refresh(self: &Arc<Self>) {
        let all = [("all", "1".to_owned())];
        let asked = self.inventory().ask();
        let list = self.engine.list::<Listed>("/containers/json", &all, None).await;
        match list {
            Ok(list) => {
                let ended = self.inventory().listed(list, asked);
                self.ended(ended);
                self.say(Ok(()));
            }
            Err(error) => self.say(Err(error)),
        }
    }

    /// Tells of the first failure and of the recovery.
    fn say(&self, outcome: Result<(), EngineError>) {
        let before = self.inventory().engine().cloned();
        match (&before, &outcome) {
            (Some(Ok(())) | None, Err(error)) => warn!(
                "docker: the engine does not answer: {error}; known containers are still measured"
            ),
            (Some(Err(_)), Ok(())) => info!("docker: the engine answers again"),
            _ => {}
        }
        if !matches!(outcome, Ok(()) | Err(EngineError::Resting(_))) {
            self.telemetry.docker_engine_errors.add(1);
        }
        self.inventory().answered(outcome.map_err(|error| error.to_string()));
    }

    /// Asks for one container and makes it known.
    async fn inspect(&self, id: &str) -> Option<()> {
        // Some ids come from senders, who may write anything.
        if !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return None;
        }
        let _permit = self.inspections.acquire().await.ok()?;
        let asked = self.inventory().ask();
        let answer = self.engine.object::<Inspected>(&format!("/containers/{id}/json"), &[]).await;
        let inspected = match answer {
            Ok(inspected) => inspected,
            Err(error) => {
                debug!("docker: container {id}: {error}");
                self.inventory().not_inspected(id, error.is_absent());
                return None;
            }
        };
        let unnamed = self.inventory().unnamed(&inspected);
        if let Some(image) = unnamed {
            self.name_image(image).await;
        }
        let container = self.inventory().inspected(&inspected, asked);
        self.publish(&container);
        Some(())
    }

    async fn name_image(&self, id: String) {
        match self.engine.object::<Image>(&format!("/images/{id}/json"), &[]).await {
            Ok(image) => {
                let name = name_of(&image.repo_tags, &image.repo_digests);
                self.inventory().image_named(id, name);
            }
            Err(error) if error.is_absent() => self.inventory().image_named(id, None),
            Err(error) => debug!("docker: image {id}: {error}"),
        }
    }

    async fn slow_object<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, EngineError> {
        let deadline = Duration::from_secs(self.config.slow_timeout);
        self.engine.slow_object(path, query, deadline).await
    }

    async fn slow_list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Vec<T>, EngineError> {
        let deadline = Duration::from_secs(self.config.slow_timeout);
        self.engine.list(path, query, Some(deadline)).await
    }

    /// Waits until the engine may be asked again.
    async fn rest(&self) {
        if let Some(rest) = self.engine.rest() {
            sleep(rest).await;
        }
    }
}

/// `listed` is told of each list, and again when all that it called for is inspected.
async fn list_when_asked(shared: Arc<Shared>, listed: watch::Sender<u64>) {
    let mut inspections = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.list_wanted.notified() => {
                shared.refresh().await;
                for id in shared.inventory().wanted() {
                    let shared = Arc::clone(&shared);
                    inspections.spawn(async move { shared.inspect(&id).await });
                }
            }
            Some(_) = inspections.join_next() => {
                if !inspections.is_empty() {
                    continue;
                }
            }
        }
        listed.send_modify(|lists| *lists += 1);
        // Its recovery shall be noticed soon.
        if let Some(rest) = shared.engine.rest() {
            sleep(rest).await;
            shared.list_wanted.notify_one();
        }
    }
}

async fn hear(shared: Arc<Shared>) {
    let mut memory = Memory::default();
    loop {
        let query = events::query(&shared.config, memory.last());
        match shared.engine.events(&query).await {
            Ok(stream) => {
                memory.reconnected();
                // What happened while nobody listened.
                shared.list_wanted.notify_one();
                listen(&shared, stream, &mut memory).await;
                // The next engine may be another one.
                shared.engine.forget_version();
            }
            Err(error) => debug!("docker: events: {error}"),
        }
        shared.rest().await;
        // An engine may end a stream at once, again and again.
        sleep(Duration::from_secs(1)).await;
    }
}

/// Hears events until the stream ends. One that cannot be read costs only itself.
async fn listen(shared: &Arc<Shared>, mut stream: EventStream, memory: &mut Memory) {
    let mut inspections = JoinSet::new();
    loop {
        let line = match stream.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => return debug!("docker: events: {error}"),
        };
        while inspections.try_join_next().is_some() {}
        let Some(event) = Event::parse(&line) else {
            shared.telemetry.docker_events_unread.add(1);
            continue;
        };
        match memory.hear(&event) {
            Hearing::New => {}
            Hearing::Again => continue,
            Hearing::BehindGap => {
                shared.telemetry.docker_event_gaps.add(1);
                debug!("docker: events were missed; the list of containers is read anew");
            }
        }
        let consequence = shared.inventory().event(event);
        shared.ended(consequence.ended);
        if let Some(id) = consequence.inspect {
            let shared = Arc::clone(shared);
            inspections.spawn(async move { shared.inspect(&id).await });
        }
    }
}

/// Inspects containers whose processes send something before the engine has told of them.
async fn look_for_senders(shared: Arc<Shared>) {
    let mut wanted = shared.directory.wanted();
    loop {
        match wanted.recv().await {
            Ok(id) => {
                // Inspecting is bounded: one at a time here.
                shared.inspect(&id).await;
            }
            Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// Counts what takes the engine long, in its own time.
async fn count(shared: Arc<Shared>, interval: Duration) {
    let config = &shared.config;
    let wanted = config.collect_images_stats
        || config.collect_image_size
        || config.collect_intermediate_images
        || config.collect_volume_count
        || config.collect_disk_stats
        || config.collect_system_df
        || config.collect_container_size;
    if !wanted {
        return std::future::pending().await;
    }
    let period = interval * config.collect_container_size_frequency.max(1);
    loop {
        let begun = Instant::now();
        match count_once(&shared).await {
            Ok(()) => {}
            Err(EngineError::Resting(_)) => {
                shared.rest().await;
                continue;
            }
            Err(error) => {
                debug!("docker: counting: {error}");
                shared.telemetry.docker_engine_errors.add(1);
            }
        }
        // What was counted before an outage is old; it is counted again as soon as it can be.
        if shared.engine.rest().is_some() {
            *lock(&shared.counted) = Counted::default();
            shared.rest().await;
            continue;
        }
        sleep(period.saturating_sub(begun.elapsed())).await;
    }
}

/// A call that fails costs its own figures only.
async fn count_once(shared: &Shared) -> Result<(), EngineError> {
    let config = &shared.config;
    let mut outcomes = Vec::new();
    if config.collect_images_stats || config.collect_image_size {
        let images = shared.slow_list::<Image>("/images/json", &[]).await;
        outcomes.push(keep(&mut lock(&shared.counted).images, images));
    }
    if config.collect_intermediate_images {
        let all = [("all", "1".to_owned())];
        let images = shared.slow_list::<Image>("/images/json", &all).await;
        outcomes.push(keep(&mut lock(&shared.counted).all_images, images.map(|all| all.len())));
    }
    if config.collect_volume_count {
        let volumes = count_volumes(shared).await;
        outcomes.push(keep(&mut lock(&shared.counted).volumes, volumes));
    }
    if config.collect_disk_stats {
        let info = shared.slow_object::<Info>("/info", &[]).await;
        outcomes.push(keep(&mut lock(&shared.counted).info, info));
    }
    if config.collect_container_size {
        let query = [("all", "1".to_owned()), ("size", "1".to_owned())];
        let list = shared.slow_list::<Listed>("/containers/json", &query).await;
        let sizes = list.map(|list| sizes(list, config.containers_max));
        outcomes.push(keep(&mut lock(&shared.counted).sizes, sizes));
    }
    if config.collect_system_df {
        let usage = shared.slow_object::<DiskUsage>("/system/df", &[]).await;
        outcomes.push(keep(&mut lock(&shared.counted).disk_usage, usage.map(Arc::new)));
    }
    outcomes.into_iter().collect()
}

/// Attached and dangling ones.
async fn count_volumes(shared: &Shared) -> Result<(usize, usize), EngineError> {
    let filter = |dangling: bool| [("filters", format!(r#"{{"dangling":["{dangling}"]}}"#))];
    let attached: Volumes = shared.slow_object("/volumes", &filter(false)).await?;
    let dangling: Volumes = shared.slow_object("/volumes", &filter(true)).await?;
    Ok((attached.volumes.len(), dangling.volumes.len()))
}

/// Own files and root file system, by container.
fn sizes(list: Vec<Listed>, containers_max: usize) -> HashMap<String, (u64, u64)> {
    let sizes = |listed: Listed| {
        (listed.id, (listed.size_rw.unwrap_or(0), listed.size_root_fs.unwrap_or(0)))
    };
    list.into_iter().take(containers_max).map(sizes).collect()
}

/// What could not be counted anew is not known any more.
fn keep<T>(place: &mut Option<T>, found: Result<T, EngineError>) -> Result<(), EngineError> {
    let (value, outcome) = match found {
        Ok(value) => (Some(value), Ok(())),
        Err(error) => (None, Err(error)),
    };
    *place = value;
    outcome
}

/// Asks the stats API, for each container at the same time up to a limit.
async fn ask_for_stats(shared: Arc<Shared>) {
    loop {
        shared.stats_wanted.notified().await;
        if lock(&shared.stats).machine.is_none() {
            let info = shared.engine.object::<Info>("/info", &[]).await;
            lock(&shared.stats).machine = info.ok();
        }
        let wanted = lock(&shared.stats).wanted.clone();
        let permits = Arc::new(Semaphore::new(STATS_AT_ONCE));
        let mut calls = JoinSet::new();
        for id in wanted {
            let (shared, permits) = (Arc::clone(&shared), Arc::clone(&permits));
            calls.spawn(async move {
                let _permit = permits.acquire().await;
                let path = format!("/containers/{id}/stats");
                // Without a first sample to compare with: the engine answers a second sooner.
                let query = [("stream", "false".to_owned()), ("one-shot", "true".to_owned())];
                match shared.engine.object::<Stats>(&path, &query).await {
                    Ok(stats) => {
                        let now = (shared.clock)();
                        lock(&shared.stats).found.insert(id, (now, stats));
                    }
                    Err(error) => debug!("docker: stats of {id}: {error}"),
                }
            });
        }
        calls.join_all().await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
