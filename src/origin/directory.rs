//! What is known of containers: which process, address or pod is which container, and the tags it
//! brings.
//!
//! Collectors publish here what an engine or an orchestrator tells them; [`super`] looks senders
//! up. Tags never change in place: a container whose tags change gets a new [`Origin`], so whoever
//! remembers something by its origin never has to ask whether it still holds.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::Thread;

use ahash::RandomState;
use hashbrown::HashMap;
use tokio::sync::broadcast;

use crate::parse::Cardinality;
use crate::telemetry::Telemetry;
use crate::time::Time;

/// Containers known at once; one more is not taken in, and counted.
const CONTAINERS_MAX: usize = 50_000;

/// Milliseconds for which a container that has ended keeps its tags, so that what it sent last, and
/// what is still in the open bucket or in a socket, leaves with them.
const KEPT: i64 = 5 * 60 * 1000;

/// Characters of a short container id.
const SHORT_ID: usize = 12;

/// Questions that wait for a collector; a slow one misses the oldest, and is asked again when the
/// container sends again.
const WANTED_MAX: usize = 1024;

/// A set of tags that a sender brings: 0 is none. A number is never used twice, and its tags never
/// change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin(pub u32);

impl Origin {
    /// Brings no tags.
    pub const NONE: Self = Self(0);

    /// Set where only the address of a datagram tells of its origin.
    const BY_ADDRESS: u32 = 1 << 31;

    /// The same tags, to be used as a last resort.
    pub const fn by_address(self) -> Self {
        Self(self.0 | Self::BY_ADDRESS)
    }

    pub const fn is_by_address(self) -> bool {
        self.0 & Self::BY_ADDRESS != 0
    }

    const fn plain(self) -> Self {
        Self(self.0 & !Self::BY_ADDRESS)
    }
}

/// The tags of a container or pod, by the least cardinality at which they are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityTags {
    /// The same for all copies of a service: image, service, version.
    pub low: Vec<String>,
    /// One for each pod or task.
    pub orchestrator: Vec<String>,
    /// One for each container.
    pub high: Vec<String>,
}

impl EntityTags {
    /// The tags that are sent at this cardinality.
    pub fn at(&self, cardinality: Cardinality) -> impl Iterator<Item = &String> {
        let parts = [
            (Cardinality::Low, &self.low),
            (Cardinality::Orchestrator, &self.orchestrator),
            (Cardinality::High, &self.high),
        ];
        parts.into_iter().filter(move |(least, _)| *least <= cardinality).flat_map(|(_, tags)| tags)
    }

    pub const fn is_empty(&self) -> bool {
        self.low.is_empty() && self.orchestrator.is_empty() && self.high.is_empty()
    }

    /// These, and from others the tags whose name is not among these.
    fn joined(&self, others: &Self) -> Self {
        let name = |tag: &String| tag.split(':').next().unwrap_or_default().to_owned();
        let mine: HashSet<_> = self.at(Cardinality::High).map(name).collect();
        let join = |a: &[String], b: &[String]| {
            let more = b.iter().filter(|tag| !mine.contains(&name(tag)));
            a.iter().chain(more).cloned().collect::<Vec<_>>()
        };
        Self {
            low: join(&self.low, &others.low),
            orchestrator: join(&self.orchestrator, &others.orchestrator),
            high: join(&self.high, &others.high),
        }
    }

    /// What both have, level by level.
    fn shared(&self, other: &Self) -> Self {
        let both = |a: &[String], b: &[String]| {
            a.iter().filter(|tag| b.contains(tag)).cloned().collect::<Vec<_>>()
        };
        Self {
            low: both(&self.low, &other.low),
            orchestrator: both(&self.orchestrator, &other.orchestrator),
            high: both(&self.high, &other.high),
        }
    }
}

/// Who tells of containers. Where two tell of one, both count, and the first wins where they give a
/// tag of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Docker, or what speaks as it does.
    Engine,
    /// The kubelet of Kubernetes.
    Kubelet,
    /// The task metadata endpoint of Amazon ECS.
    Ecs,
}

/// What a source tells of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Of its first process.
    pub pid: Option<u32>,
    /// Those that nobody but it and its pod has.
    pub addresses: Vec<IpAddr>,
    pub pod: Option<Place>,
    pub tags: Arc<EntityTags>,
    /// How often it was started anew.
    pub restarts: Option<u64>,
    /// The source also tells what the container uses, so that nobody else has to.
    pub is_measured: bool,
    /// Nobody is to tell what the container uses. Its senders have its tags nevertheless.
    pub is_excluded: bool,
}

/// Where a container is among others that belong together: in a pod of Kubernetes, or in a task of
/// Amazon ECS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The pod's uid, or the task's ARN.
    pub uid: Box<str>,
    /// The container's name there.
    pub name: Box<str>,
    /// The tags of the whole; without them, what its containers have in common.
    pub tags: Option<Arc<EntityTags>>,
}

/// Shared by those who publish and those who look up. Every look-up is of memory alone.
pub struct Directory {
    known: RwLock<Known>,
    wanted: broadcast::Sender<Arc<str>>,
    /// How often something was published.
    changes: AtomicU64,
    /// Woken when something was published.
    watcher: OnceLock<Thread>,
    telemetry: Arc<Telemetry>,
}

type Map<K, V> = HashMap<K, V, RandomState>;

#[derive(Default)]
struct Known {
    containers: Map<Arc<str>, Container>,
    /// Ids by their first [`SHORT_ID`] characters.
    short: Map<Box<str>, Vec<Arc<str>>>,
    pids: Map<u32, Arc<str>>,
    addresses: Map<IpAddr, Vec<Arc<str>>>,
    pods: Map<Box<str>, Pod>,
    tags: Map<Origin, Arc<EntityTags>>,
    /// Whose tags they are, where they are those of one container.
    owners: Map<Origin, Arc<str>>,
    last: u32,
}

struct Container {
    origin: Origin,
    /// In the order of their sources.
    reports: Vec<Report>,
    /// All reports in one.
    told: Told,
    /// When the last source said that it has ended.
    ended: Option<Time>,
}

struct Report {
    source: Source,
    told: Told,
    is_running: bool,
}

struct Pod {
    containers: Vec<Arc<str>>,
    origin: Origin,
}

impl Directory {
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        let (wanted, _) = broadcast::channel(WANTED_MAX);
        Self {
            known: RwLock::default(),
            wanted,
            changes: AtomicU64::new(0),
            watcher: OnceLock::new(),
            telemetry,
        }
    }

    /// Makes a container known, or replaces what this source has told of it.
    pub fn publish(&self, source: Source, container_id: &str, told: Told) {
        let mut known = self.write();
        if known.says(source, container_id, &told) {
            return;
        }
        let old = known.remove(container_id);
        if old.is_none() && known.containers.len() >= CONTAINERS_MAX && !known.forget_an_ended_one()
        {
            drop(known);
            return self.telemetry.origin_containers_refused.add(1);
        }
        let (number, old_tags, mut reports) = match old {
            Some(old) => (Some(old.origin), Some(old.told.tags), old.reports),
            None => (None, None, Vec::new()),
        };
        reports.retain(|report| report.source != source);
        reports.push(Report { source, told, is_running: true });
        reports.sort_by_key(|report| report.source);
        let told = join(&reports);
        // The number stays if the tags do.
        let same = number.filter(|_| old_tags.is_some_and(|old| old == told.tags));
        let origin = same.unwrap_or_else(|| known.number());
        known.insert(container_id.into(), Container { origin, reports, told, ended: None });
        drop(known);
        self.wake();
    }

    /// A source says that a container has ended: its tags are kept for what it sent last.
    pub fn ended(&self, source: Source, container_id: &str, now: Time) {
        let mut known = self.write();
        if let Some(container) = known.containers.get_mut(container_id) {
            let theirs = container.reports.iter_mut().find(|report| report.source == source);
            if let Some(report) = theirs {
                report.is_running = false;
            }
            if container.reports.iter().all(|report| !report.is_running) {
                container.ended.get_or_insert(now);
            }
        }
        known.forget_ended(now);
    }

    /// Gives a container that nobody has published the tags that its cgroup tells, which is little.
    /// It is kept for as long as it is asked for, and what is published takes its place.
    pub(super) fn suppose(&self, container_id: &str, pod_uid: Option<&str>, now: Time) -> Origin {
        let mut known = self.write();
        if let Some(container) = known.containers.get_mut(container_id) {
            if container.ended.is_some() {
                container.ended = Some(now);
            }
            return container.origin;
        }
        if known.containers.len() >= CONTAINERS_MAX && !known.forget_an_ended_one() {
            drop(known);
            self.telemetry.origin_containers_refused.add(1);
            return Origin::NONE;
        }
        let tags = EntityTags {
            low: Vec::new(),
            orchestrator: pod_uid.map(|uid| format!("pod_uid:{uid}")).into_iter().collect(),
            high: vec![format!("container_id:{container_id}")],
        };
        let origin = known.number();
        let told = Told { tags: Arc::new(tags), ..Told::default() };
        let container = Container { origin, reports: Vec::new(), told, ended: Some(now) };
        known.insert(container_id.into(), container);
        origin
    }

    /// By the whole id; it is in use, so it is kept even if it has ended.
    pub(super) fn keep(&self, container_id: &str, now: Time) -> Option<Origin> {
        let (origin, ended) = {
            let known = self.read();
            let container = known.containers.get(container_id)?;
            (container.origin, container.ended)
        };
        if ended.is_some_and(|at| now.0 - at.0 >= KEPT / 2)
            && let Some(container) = self.write().containers.get_mut(container_id)
        {
            container.ended = container.ended.map(|_| now);
        }
        Some(origin)
    }

    /// Forgets who ended long ago.
    pub(super) fn tick(&self, now: Time) {
        let old = self.read().containers.values().any(|container| container.is_old(now));
        if old {
            self.write().forget_ended(now);
        }
    }

    /// Whether anybody is there to publish.
    pub fn has_collectors(&self) -> bool {
        self.wanted.receiver_count() > 0
    }

    /// Ids of containers that senders belong to and nobody has published, sometimes cut to their
    /// first 12 characters. Each receiver gets them
    /// all; as long as there is none, nobody waits for tags.
    pub fn wanted(&self) -> broadcast::Receiver<Arc<str>> {
        self.wanted.subscribe()
    }

    /// Asks the collectors for a container. False when there is nobody to ask.
    pub(super) fn want(&self, container_id: &str) -> bool {
        self.wanted.send(container_id.into()).is_ok()
    }

    /// Has this thread unparked whenever something was published. Only the first one counts.
    pub(super) fn watch(&self, watcher: Thread) {
        let _ = self.watcher.set(watcher);
    }

    /// By the whole id, or by its beginning of at least 12 characters if only one container has it.
    pub fn container(&self, id: &str) -> Option<Origin> {
        let known = self.read();
        known.container(id).map(|(_, container)| container.origin)
    }

    /// What is known of a container, by the whole id, if a source has told of it.
    pub fn told(&self, id: &str) -> Option<(Origin, Told)> {
        let known = self.read();
        let container = known.containers.get(id).filter(|known| !known.reports.is_empty())?;
        Some((container.origin, container.told.clone()))
    }

    /// What is known of a pod, if a source has told of it. It is excluded if all its containers are.
    pub fn told_of_pod(&self, uid: &str) -> Option<(Origin, Told)> {
        let known = self.read();
        let pod = known.pods.get(uid)?;
        let all = || pod.containers.iter().filter_map(|id| known.containers.get(id));
        let tags = all().find_map(|container| container.told.pod.as_ref()?.tags.clone())?;
        let is_excluded = all().all(|container| container.told.is_excluded);
        Some((pod.origin, Told { tags, is_excluded, ..Told::default() }))
    }

    /// The whole id of a container that is known by a part of it.
    pub fn full_id(&self, id: &str) -> Option<Arc<str>> {
        self.read().container(id).map(|(id, _)| Arc::clone(id))
    }

    /// The id of the container whose first process has this pid.
    pub fn process(&self, pid: u32) -> Option<Arc<str>> {
        self.read().pids.get(&pid).cloned()
    }

    /// By an address: that of one container, or of the containers of one pod, which then stands for
    /// them. Those that have ended count while no running one has the address.
    pub fn address(&self, address: IpAddr) -> Option<Origin> {
        let known = self.read();
        let ids = known.addresses.get(&address)?;
        let all = || ids.iter().filter_map(|id| known.containers.get(id));
        let any_runs = all().any(|container| container.ended.is_none());
        let mut these = all().filter(|container| container.ended.is_none() == any_runs);
        let first = these.next()?;
        let mut others = these.peekable();
        if others.peek().is_none() {
            return Some(first.origin);
        }
        let uid = first.uid()?;
        let one_pod = others.all(|container| container.uid() == Some(uid));
        one_pod.then(|| known.pods.get(uid).map(|pod| pod.origin))?
    }

    /// A pod by its uid.
    pub fn pod(&self, uid: &str) -> Option<Origin> {
        self.read().pods.get(uid).map(|pod| pod.origin)
    }

    /// A container by its name within its pod.
    pub fn container_in_pod(&self, uid: &str, name: &str) -> Option<Origin> {
        let known = self.read();
        let mut here =
            known.pods.get(uid)?.containers.iter().filter_map(|id| known.containers.get(id));
        let named = |c: &Container| c.told.pod.as_ref().is_some_and(|pod| *pod.name == *name);
        here.rfind(|container| named(container)).map(|container| container.origin)
    }

    /// The tags behind an origin, unless its container is forgotten.
    pub fn tags(&self, origin: Origin) -> Option<Arc<EntityTags>> {
        self.read().tags.get(&origin.plain()).cloned()
    }

    /// The id of the container whose tags these are.
    pub fn owner(&self, origin: Origin) -> Option<Arc<str>> {
        self.read().owners.get(&origin.plain()).cloned()
    }

    /// Number of containers known.
    pub fn len(&self) -> usize {
        self.read().containers.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Grows whenever something was published.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn wake(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        if let Some(watcher) = self.watcher.get() {
            watcher.unpark();
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().expect("no panic under this lock")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().expect("no panic under this lock")
    }
}

/// All reports in one; the first that tells something counts.
fn join(reports: &[Report]) -> Told {
    let mut all = Told::default();
    for Report { told, .. } in reports {
        all.pid = all.pid.or(told.pid);
        all.restarts = all.restarts.or(told.restarts);
        all.is_measured |= told.is_measured;
        all.is_excluded |= told.is_excluded;
        let new = told.addresses.iter().filter(|address| !all.addresses.contains(address));
        let new: Vec<_> = new.copied().collect();
        all.addresses.extend(new);
        all.pod = match (all.pod, &told.pod) {
            (Some(pod), Some(other)) if pod.uid == other.uid => {
                Some(Place { tags: pod.tags.or_else(|| other.tags.clone()), ..pod })
            }
            (pod, other) => pod.or_else(|| other.clone()),
        };
        all.tags = if all.tags.is_empty() {
            Arc::clone(&told.tags)
        } else {
            Arc::new(all.tags.joined(&told.tags))
        };
    }
    all
}

impl Container {
    fn uid(&self) -> Option<&str> {
        self.told.pod.as_ref().map(|pod| &*pod.uid)
    }

    fn is_old(&self, now: Time) -> bool {
        self.ended.is_some_and(|at| now.0 - at.0 >= KEPT)
    }
}

impl Known {
    fn container(&self, id: &str) -> Option<(&Arc<str>, &Container)> {
        if let Some(found) = self.containers.get_key_value(id) {
            return Some(found);
        }
        let mut alike = self.short.get(short(id)?)?.iter().filter(|full| full.starts_with(id));
        match (alike.next(), alike.next()) {
            (Some(one), None) => self.containers.get_key_value(one),
            _ => None,
        }
    }

    /// Whether this is known already, and the container runs.
    fn says(&self, source: Source, id: &str, told: &Told) -> bool {
        self.containers.get(id).is_some_and(|container| {
            let mut reports = container.reports.iter();
            container.ended.is_none()
                && reports.any(|r| r.source == source && r.is_running && r.told == *told)
        })
    }

    fn number(&mut self) -> Origin {
        // After two thousand million of them the oldest are long gone.
        self.last = (self.last + 1) % Origin::BY_ADDRESS;
        self.last = self.last.max(1);
        Origin(self.last)
    }

    fn insert(&mut self, id: Arc<str>, container: Container) {
        let Told { pid, addresses, tags, .. } = &container.told;
        if let Some(short) = short(&id) {
            self.short.entry(short.into()).or_default().push(Arc::clone(&id));
        }
        if let Some(pid) = pid {
            self.pids.insert(*pid, Arc::clone(&id));
        }
        for address in addresses {
            self.addresses.entry(*address).or_default().push(Arc::clone(&id));
        }
        self.tags.insert(container.origin, Arc::clone(tags));
        self.owners.insert(container.origin, Arc::clone(&id));
        let uid = container.uid().map(Box::<str>::from);
        self.containers.insert(Arc::clone(&id), container);
        if let Some(uid) = uid {
            let empty = || Pod { containers: Vec::new(), origin: Origin::NONE };
            self.pods.entry(uid.clone()).or_insert_with(empty).containers.push(id);
            self.sum_up(&uid);
        }
    }

    fn remove(&mut self, id: &str) -> Option<Container> {
        let container = self.containers.remove(id)?;
        if let Some(short) = short(id) {
            remove_from(&mut self.short, short, id);
        }
        if let Some(pid) = container.told.pid
            && self.pids.get(&pid).is_some_and(|other| **other == *id)
        {
            self.pids.remove(&pid);
        }
        for address in &container.told.addresses {
            remove_from(&mut self.addresses, address, id);
        }
        if let Some(uid) = container.uid()
            && let Some(pod) = self.pods.get_mut(uid)
        {
            pod.containers.retain(|other| **other != *id);
            if pod.containers.is_empty() {
                let origin = pod.origin;
                self.pods.remove(uid);
                self.tags.remove(&origin);
            } else {
                self.sum_up(uid);
            }
        }
        self.tags.remove(&container.origin);
        self.owners.remove(&container.origin);
        Some(container)
    }

    /// Works out the tags of a pod: those that were told, or what its containers have in common.
    fn sum_up(&mut self, uid: &str) {
        let Some(pod) = self.pods.get(uid) else { return };
        let containers = || pod.containers.iter().filter_map(|id| self.containers.get(id));
        let places = containers().filter_map(|container| container.told.pod.as_ref());
        let told = places.filter_map(|place| place.tags.clone()).next();
        let tags = told.unwrap_or_else(|| {
            let mut all = containers().map(|container| &container.told.tags);
            let first = all.next().map(|tags| EntityTags::clone(tags)).unwrap_or_default();
            Arc::new(all.fold(first, |common, next| common.shared(next)))
        });
        let old = pod.origin;
        if self.tags.get(&old).is_some_and(|old| *old == tags) {
            return;
        }
        self.tags.remove(&old);
        let origin = self.number();
        self.tags.insert(origin, tags);
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.origin = origin;
        }
    }

    fn forget_ended(&mut self, now: Time) {
        let old = self.containers.iter().filter(|(_, container)| container.is_old(now));
        for id in old.map(|(id, _)| Arc::clone(id)).collect::<Vec<_>>() {
            self.remove(&id);
        }
    }

    /// Makes room by the one that ended first.
    fn forget_an_ended_one(&mut self) -> bool {
        let ended = self.containers.iter().filter_map(|(id, c)| Some((c.ended?, id)));
        let first = ended.min().map(|(_, id)| Arc::clone(id));
        first.and_then(|id| self.remove(&id)).is_some()
    }
}

fn short(id: &str) -> Option<&str> {
    id.get(..SHORT_ID)
}

/// Takes an id out of the list behind a key, and the list when it is empty.
fn remove_from<K, Q>(lists: &mut Map<K, Vec<Arc<str>>>, key: &Q, id: &str)
where
    K: std::hash::Hash + Eq,
    Q: std::hash::Hash + hashbrown::Equivalent<K> + ?Sized,
{
    if let Some(list) = lists.get_mut(key) {
        list.retain(|other| **other != *id);
        if list.is_empty() {
            lists.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Source::{Engine, Kubelet};
    use super::*;

    fn directory() -> Directory {
        Directory::new(Arc::default())
    }

    /// As an engine tells it.
    fn told(pid: Option<u32>, addresses: &[IpAddr], tags: EntityTags) -> Told {
        let (addresses, tags) = (addresses.to_vec(), Arc::new(tags));
        Told { pid, addresses, tags, ..Told::default() }
    }

    fn within(uid: &str, name: &str, tags: EntityTags) -> Told {
        let pod = Some(Place { uid: uid.into(), name: name.into(), tags: None });
        Told { pod, ..told(None, &[], tags) }
    }

    fn tags(low: &[&str], orchestrator: &[&str], high: &[&str]) -> EntityTags {
        let strings = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect();
        EntityTags { low: strings(low), orchestrator: strings(orchestrator), high: strings(high) }
    }

    fn at(directory: &Directory, origin: Option<Origin>, cardinality: Cardinality) -> Vec<String> {
        let tags = origin.and_then(|origin| directory.tags(origin)).expect("tags");
        tags.at(cardinality).cloned().collect()
    }

    const A: &str = "aaaaaaaaaaaa0000000000000000000000000000000000000000000000000001";
    const B: &str = "aaaaaaaaaaaa0000000000000000000000000000000000000000000000000002";
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 17, 0, 2));

    #[test]
    fn each_cardinality_adds_to_the_one_below() {
        let tags = tags(&["l"], &["o"], &["h"]);
        let at = |c| tags.at(c).map(String::as_str).collect::<Vec<_>>();
        assert_eq!(at(Cardinality::None), [""; 0]);
        assert_eq!(at(Cardinality::Low), ["l"]);
        assert_eq!(at(Cardinality::Orchestrator), ["l", "o"]);
        assert_eq!(at(Cardinality::High), ["l", "o", "h"]);
    }

    #[test]
    fn a_container_is_found_by_all_its_names() {
        let directory = directory();
        directory.publish(
            Engine,
            A,
            told(Some(7), &[HERE], tags(&["image_name:web"], &[], &["name:a"])),
        );
        let origin = directory.container(A);
        assert!(origin.is_some_and(|origin| origin != Origin::NONE));
        for found in
            [directory.container(&A[..12]), directory.container(&A[..20]), directory.address(HERE)]
        {
            assert_eq!(found, origin);
        }
        assert_eq!(directory.process(7).as_deref(), Some(A));
        assert_eq!(at(&directory, origin, Cardinality::High), ["image_name:web", "name:a"]);
        assert_eq!(directory.full_id(&A[..12]).as_deref(), Some(A));
        assert_eq!(directory.process(8), None);
        for none in [directory.container(&A[..11]), directory.container(B)] {
            assert_eq!(none, None);
        }
    }

    #[test]
    fn what_two_containers_share_names_neither() {
        let directory = directory();
        directory.publish(Engine, A, told(Some(7), &[HERE], tags(&["a"], &[], &[])));
        directory.publish(Engine, B, told(Some(8), &[HERE], tags(&["b"], &[], &[])));
        assert_eq!(directory.address(HERE), None);
        assert_eq!(directory.container(&A[..12]), None, "both begin so");
        assert_ne!(directory.container(A), directory.container(B));
        // An address goes to the next one when its container has ended.
        directory.ended(Engine, A, Time(0));
        assert_eq!(directory.address(HERE), directory.container(B));
    }

    #[test]
    fn new_tags_are_a_new_origin_and_the_same_tags_the_same() {
        let directory = directory();
        directory.publish(Engine, A, told(Some(7), &[HERE], tags(&["a"], &[], &[])));
        let first = directory.container(A);
        directory.publish(Engine, A, told(Some(9), &[], tags(&["a"], &[], &[])));
        assert_eq!(directory.container(A), first);
        assert_eq!((directory.process(9).as_deref(), directory.process(7)), (Some(A), None));
        assert_eq!(directory.address(HERE), None);
        directory.publish(Engine, A, told(Some(9), &[], tags(&["b"], &[], &[])));
        assert_ne!(directory.container(A), first);
        assert_eq!(at(&directory, directory.container(A), Cardinality::Low), ["b"]);
    }

    #[test]
    fn a_pod_is_what_its_containers_have_in_common() {
        let directory = directory();
        let publish = |id, name, tags| directory.publish(Engine, id, within("uid", name, tags));
        publish(A, "app", tags(&["ns:x", "name:a"], &["pod:p"], &["id:a"]));
        assert_eq!(at(&directory, directory.pod("uid"), Cardinality::Low), ["ns:x", "name:a"]);
        publish(B, "side", tags(&["ns:x", "name:b"], &["pod:p"], &["id:b"]));
        assert_eq!(at(&directory, directory.pod("uid"), Cardinality::High), ["ns:x", "pod:p"]);
        assert_eq!(directory.container_in_pod("uid", "side"), directory.container(B));
        assert_eq!(directory.container_in_pod("uid", "other"), None);
        publish(B, "side", tags(&["ns:x", "name:a"], &[], &[]));
        assert_eq!(at(&directory, directory.pod("uid"), Cardinality::High), ["ns:x", "name:a"]);
        assert_eq!(directory.pod("other"), None);
    }

    #[test]
    fn what_two_sources_tell_is_joined() {
        let directory = directory();
        let kubelet = |low: &[&str]| Told {
            pod: Some(Place {
                uid: "uid".into(),
                name: "app".into(),
                tags: Some(Arc::new(tags(&["kube:y"], &[], &[]))),
            }),
            restarts: Some(2),
            ..told(None, &[HERE], tags(low, &["pod:p"], &["name:app"]))
        };
        directory.publish(Kubelet, A, kubelet(&["kube:y", "image:k"]));
        let engine = told(Some(7), &[], tags(&["image:e"], &[], &["name:k8s_app"]));
        directory.publish(Engine, A, Told { is_measured: true, ..engine.clone() });
        let (origin, both) = directory.told(A).expect("it is known");
        assert_eq!(*both.tags, tags(&["image:e", "kube:y"], &["pod:p"], &["name:k8s_app"]));
        assert_eq!((both.pid, both.restarts, both.is_measured), (Some(7), Some(2), true));
        assert_eq!(directory.address(HERE), Some(origin));
        assert_eq!(at(&directory, directory.pod("uid"), Cardinality::High), ["kube:y"]);
        // What was told before changes nothing; what is new does.
        directory.publish(Kubelet, A, kubelet(&["kube:y", "image:k"]));
        assert_eq!(directory.container(A), Some(origin));
        directory.publish(Kubelet, A, kubelet(&["kube:z"]));
        assert_ne!(directory.container(A), Some(origin));
        // It runs for as long as one of them says so.
        directory.ended(Kubelet, A, Time(1));
        directory.ended(Kubelet, B, Time(1 + KEPT));
        assert!(directory.container(A).is_some());
        directory.ended(Engine, A, Time(2));
        directory.ended(Engine, A, Time(2 + KEPT));
        assert!(directory.is_empty());
    }

    #[test]
    fn an_address_of_a_pod_is_that_of_its_containers() {
        let directory = directory();
        let here = |told: Told| Told { addresses: vec![HERE], ..told };
        directory.publish(Kubelet, A, here(within("uid", "app", tags(&["ns:x", "a"], &[], &[]))));
        assert_eq!(directory.address(HERE), directory.container(A));
        directory.publish(Kubelet, B, here(within("uid", "side", tags(&["ns:x"], &[], &[]))));
        assert_eq!(directory.address(HERE), directory.pod("uid"));
        let c = A.replace('a', "c");
        directory.publish(Kubelet, &c, here(within("other", "app", tags(&["ns:y"], &[], &[]))));
        assert_eq!(directory.address(HERE), None);
    }

    #[test]
    fn what_has_ended_is_kept_for_a_while_and_leaves_nothing() {
        let directory = directory();
        let place = within("uid", "app", tags(&["a"], &[], &[]));
        directory.publish(Engine, A, Told { pid: Some(7), addresses: vec![HERE], ..place });
        directory.ended(Engine, A, Time(1000));
        directory.ended(Engine, B, Time(KEPT));
        assert!(directory.container(A).is_some() && directory.address(HERE).is_some());
        directory.ended(Engine, B, Time(1000 + KEPT));
        let known = directory.read();
        let left = [
            known.containers.len(),
            known.short.len(),
            known.pids.len(),
            known.addresses.len(),
            known.pods.len(),
            known.tags.len(),
        ];
        assert_eq!(left, [0; 6]);
    }

    #[test]
    fn a_full_directory_forgets_who_ended_first_and_nobody_who_runs() {
        let directory = directory();
        let id = |i: usize| format!("{i:064x}");
        for i in 0..CONTAINERS_MAX {
            directory.publish(Engine, &id(i), told(None, &[], EntityTags::default()));
        }
        directory.publish(Engine, A, told(None, &[], EntityTags::default()));
        assert_eq!((directory.container(A), directory.len()), (None, CONTAINERS_MAX));
        assert_eq!(directory.telemetry.origin_containers_refused.get(), 1);
        directory.ended(Engine, &id(5), Time(1));
        directory.ended(Engine, &id(3), Time(2));
        directory.publish(Engine, A, told(None, &[], EntityTags::default()));
        assert!(directory.container(A).is_some());
        assert_eq!(directory.container(&id(5)), None);
        assert!(directory.container(&id(3)).is_some());
    }

    #[test]
    fn collectors_are_asked_for_what_is_wanted() {
        let directory = directory();
        assert!(!directory.want(A), "there is nobody to ask");
        let mut wanted = directory.wanted();
        assert!(directory.want(A));
        assert_eq!(wanted.try_recv().as_deref(), Ok(A));
    }
}
