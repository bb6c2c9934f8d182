//! What is known of the engine's containers. No I/O: answers and events go in, and what has to be
//! asked next comes out.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::api::{self, Inspected, Listed};
use super::config::Config;
use super::events::{Event, Subject};
use super::figures::parse_address;
use super::filter::Filter;
use super::tags::{Facts, entity_tags};
use crate::collectors::image::is_nameless;
use crate::origin::EntityTags;
use crate::time::Time;

/// Events that wait for the next run.
const EVENTS_MAX: usize = 5_000;

/// Names found for digests.
const IMAGE_NAMES_MAX: usize = 10_000;

/// What the health check of a container says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Healthy,
    Unhealthy,
    Starting,
}

impl Health {
    /// By the engine's word.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "healthy" => Some(Self::Healthy),
            "unhealthy" => Some(Self::Unhealthy),
            "starting" => Some(Self::Starting),
            _ => None,
        }
    }

    /// By the list's text for people: `Up 9 seconds (health: starting)`.
    fn of_status(status: &str) -> Option<Self> {
        let (_, inner) = status.strip_suffix(')')?.rsplit_once('(')?;
        Self::parse(inner.strip_prefix("health: ").unwrap_or(inner))
    }
}

/// One container.
#[derive(Clone, Debug, Default)]
pub struct Container {
    pub id: String,
    /// One lower-case word of the engine: `running`, `exited`.
    pub state: String,
    pub facts: Facts,
    pub tags: EntityTags,
    /// Not measured, and no word of its events.
    pub excluded: bool,
    pub health: Option<Health>,
    /// What only an inspection tells.
    pub inspected: Option<Inspection>,
}

/// What only an inspection tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    pub pid: Option<u32>,
    pub started: Option<Time>,
    pub restarts: u64,
    pub cpu_shares: u64,
    pub network_mode: String,
    /// Names of networks and the container's addresses in them.
    pub networks: Vec<(String, Vec<IpAddr>)>,
    pub failing_streak: u64,
}

impl Container {
    /// Whether it has processes that run: not when paused or between two lives.
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }

    /// Whether there is something to measure.
    pub fn is_alive(&self) -> bool {
        matches!(&*self.state, "running" | "paused")
    }

    pub fn pid(&self) -> Option<u32> {
        self.inspected.as_ref()?.pid
    }

    /// The addresses that it alone has.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let networks = self.inspected.iter().flat_map(|inspection| &inspection.networks);
        networks.flat_map(|(_, addresses)| addresses.iter().copied()).collect()
    }
}

/// One container and how far it is known.
#[derive(Debug)]
struct Entry {
    container: Arc<Container>,
    /// What the list said when it was last asked about.
    listed: Listing,
    wants: bool,
    /// An inspection failed: the list has to do.
    failed: bool,
    /// It was removed; kept for the next run, which may have its events.
    gone: bool,
    /// When it was last told of by an event, or asked for in an inspection.
    as_of: Asked,
}

/// When the engine was asked, among all questions and events. Answers may be late: one that was asked
/// for before an event came may say what was before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked(u64);

/// The part of a list's entry whose change calls for an inspection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listing {
    state: String,
    names: Vec<String>,
    image_id: String,
}

/// What a run takes with it.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// All that there are, and those that went since the run before.
    pub containers: Vec<Arc<Container>>,
    pub gone: Vec<Arc<Container>>,
    pub events: Vec<Event>,
    /// Events for which there was no room.
    pub events_dropped: u64,
    /// The engine as it answered last; `None` before it was asked.
    pub engine: Option<Result<(), String>>,
    /// Containers beyond the limit.
    pub left_out: usize,
}

/// All containers.
#[derive(Debug)]
pub struct Inventory {
    config: Config,
    filter: Filter,
    entries: HashMap<String, Entry>,
    last: Asked,
    events: VecDeque<Event>,
    events_dropped: u64,
    engine: Option<Result<(), String>>,
    image_names: HashMap<String, Option<String>>,
    /// Containers beyond the limit in the list of last.
    left_out: usize,
}

/// What an event calls for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Consequence {
    /// Ask for this container.
    pub inspect: Option<String>,
    /// This container's processes have ended.
    pub ended: Option<String>,
}

impl Inventory {
    pub fn new(config: &Config, filter: Filter) -> Self {
        Self {
            config: config.clone(),
            filter,
            entries: HashMap::new(),
            last: Asked::default(),
            events: VecDeque::new(),
            events_dropped: 0,
            engine: None,
            image_names: HashMap::new(),
            left_out: 0,
        }
    }

    /// The engine answered, or did not. What is known stays.
    pub fn answered(&mut self, outcome: Result<(), String>) {
        self.engine = Some(outcome);
    }

    pub const fn engine(&self) -> Option<&Result<(), String>> {
        self.engine.as_ref()
    }

    /// To be called before the engine is asked for what is taken in later.
    pub const fn ask(&mut self) -> Asked {
        self.last.0 += 1;
        self.last
    }

    /// The list is the truth: who is not in it has gone. Of whom something newer is known it says
    /// nothing. Returns those whose processes have ended meanwhile.
    pub fn listed(&mut self, list: Vec<Listed>, asked: Asked) -> Vec<String> {
        let mut ended = Vec::new();
        let mut there = HashSet::new();
        self.left_out = list.len().saturating_sub(self.config.containers_max);
        for listed in list.into_iter().take(self.config.containers_max) {
            there.insert(listed.id.clone());
            self.list_one(listed, asked, &mut ended);
        }
        for (id, entry) in &mut self.entries {
            if !there.contains(id) && !entry.gone && entry.as_of < asked {
                entry.gone = true;
                ended.push(id.clone());
            }
        }
        ended
    }

    fn list_one(&mut self, listed: Listed, asked: Asked, ended: &mut Vec<String>) {
        let now = Listing {
            state: listed.state.to_lowercase(),
            names: listed.names.clone(),
            image_id: listed.image_id.clone(),
        };
        let health = Health::of_status(&listed.status);
        let Some(entry) = self.entries.get_mut(&listed.id) else {
            let container = self.by_list(&listed, &now.state, health);
            let wants = container.is_alive();
            let entry = Entry {
                container: Arc::new(container),
                listed: now,
                wants,
                failed: false,
                gone: false,
                as_of: asked,
            };
            self.entries.insert(listed.id, entry);
            return;
        };
        if entry.as_of > asked {
            return;
        }
        entry.gone = false;
        let changed = entry.listed != now;
        if !changed && entry.container.health == health && entry.container.state == now.state {
            entry.wants |= entry.failed && entry.container.is_alive();
            return;
        }
        let was_alive = entry.container.is_alive();
        let container = Arc::make_mut(&mut entry.container);
        container.state.clone_from(&now.state);
        container.health = health;
        if was_alive && !container.is_alive() {
            container.inspected = None;
            ended.push(listed.id);
        }
        entry.wants |= changed && container.is_alive();
        entry.listed = now;
    }

    fn by_list(&self, listed: &Listed, state: &str, health: Option<Health>) -> Container {
        let mut facts = Facts::of_listed(listed);
        self.name_image(&mut facts);
        self.made(facts, state, health, None)
    }

    fn made(
        &self,
        facts: Facts,
        state: &str,
        health: Option<Health>,
        inspected: Option<Inspection>,
    ) -> Container {
        let tags = entity_tags(&facts, &self.config);
        Container {
            id: facts.id.clone(),
            state: state.to_owned(),
            excluded: self.filter.excludes(&facts, &tags),
            facts,
            tags,
            health,
            inspected,
        }
    }

    fn name_image(&self, facts: &mut Facts) {
        if is_nameless(&facts.image)
            && let Some(Some(name)) = self.image_names.get(&facts.image_id)
        {
            facts.image.clone_from(name);
        }
    }

    /// Ids that have to be inspected; each is told once, until something changes.
    pub fn wanted(&mut self) -> Vec<String> {
        let mut wanted = Vec::new();
        for (id, entry) in &mut self.entries {
            if std::mem::take(&mut entry.wants) && !entry.gone {
                wanted.push(id.clone());
            }
        }
        wanted
    }

    /// An image's id that stands where a name should, and was not asked for yet.
    pub fn unnamed(&self, inspected: &Inspected) -> Option<String> {
        let unknown = is_nameless(&inspected.config.image)
            && !inspected.image.is_empty()
            && !self.image_names.contains_key(&inspected.image);
        unknown.then(|| inspected.image.clone())
    }

    /// What the engine calls an image, or that it has no name.
    pub fn image_named(&mut self, id: String, name: Option<String>) {
        if self.image_names.len() >= IMAGE_NAMES_MAX {
            self.image_names.clear();
        }
        self.image_names.insert(id, name);
    }

    /// Takes in an inspection, unless something newer is known. Returns what is known then.
    pub fn inspected(&mut self, inspected: &Inspected, asked: Asked) -> Arc<Container> {
        let known = self.entries.get(&inspected.id);
        if let Some(newer) = known.filter(|entry| entry.as_of > asked) {
            return Arc::clone(&newer.container);
        }
        let mut facts = Facts::of_inspected(inspected);
        self.name_image(&mut facts);
        let health = inspected.state.health.as_ref();
        let networks = inspected.network_settings.networks.iter().map(|(name, network)| {
            let addresses = [&network.address, &network.address6];
            (name.clone(), addresses.into_iter().filter_map(|a| parse_address(a)).collect())
        });
        let inspection = Inspection {
            pid: Some(inspected.state.pid).filter(|pid| *pid > 0),
            started: api::time(&inspected.state.started_at),
            restarts: inspected.restart_count,
            cpu_shares: inspected.host_config.cpu_shares,
            network_mode: inspected.host_config.network_mode.clone(),
            networks: networks.collect(),
            failing_streak: health.map_or(0, |health| health.failing_streak),
        };
        let state = inspected.state.status.to_lowercase();
        let health = health.and_then(|health| Health::parse(&health.status));
        let listing = Listing {
            state: state.clone(),
            names: facts.names.clone(),
            image_id: facts.image_id.clone(),
        };
        let known = self.entries.get(&inspected.id);
        if let Some(listed) = known.map(|entry| &entry.container.facts) {
            // The list knows further names, those of links.
            if listed.names.contains(&inspected.name) {
                facts.names.clone_from(&listed.names);
            }
            // It has the command in one piece, with quotation marks.
            if !listed.command.is_empty() {
                facts.command.clone_from(&listed.command);
            }
        }
        // An inspection and the list may spell an image's id in two ways.
        let listed = match known {
            Some(entry) => Listing { state: listing.state, ..entry.listed.clone() },
            None => listing,
        };
        let container = Arc::new(self.made(facts, &state, health, Some(inspection)));
        let has_room = self.entries.len() < self.config.containers_max;
        if has_room || self.entries.contains_key(&inspected.id) {
            let entry = Entry {
                container: Arc::clone(&container),
                listed,
                wants: false,
                failed: false,
                gone: false,
                as_of: asked,
            };
            self.entries.insert(inspected.id.clone(), entry);
        }
        container
    }

    /// An inspection brought nothing; `absent` tells that there is no such container.
    pub fn not_inspected(&mut self, id: &str, absent: bool) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.failed = true;
            entry.gone |= absent;
        }
    }

    /// Its files were not where they should be: it may have been started anew.
    pub fn suspect(&mut self, id: &str) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.wants = true;
        }
    }

    /// Takes in an event.
    pub fn event(&mut self, event: Event) -> Consequence {
        let mut consequence = Consequence::default();
        match event.subject {
            Subject::Image => {}
            Subject::Network => {
                consequence.inspect = event
                    .attributes
                    .get("container")
                    .filter(|id| self.entries.get(*id).is_some_and(|e| e.container.is_running()))
                    .cloned();
                return consequence;
            }
            Subject::Container => self.container_event(&event, &mut consequence),
        }
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        } else {
            self.events_dropped += 1;
        }
        consequence
    }

    fn container_event(&mut self, event: &Event, consequence: &mut Consequence) {
        let now = self.ask();
        let mut entry = self.entries.get_mut(&event.id);
        match &*event.action {
            "start" | "restart" | "pause" | "unpause" | "rename" | "update" => {
                consequence.inspect = Some(event.id.clone());
            }
            "health_status" => {
                if let Some(entry) = &mut entry {
                    Arc::make_mut(&mut entry.container).health = Health::parse(&event.detail);
                }
                consequence.inspect = Some(event.id.clone());
            }
            "die" => {
                if let Some(entry) = &mut entry {
                    let container = Arc::make_mut(&mut entry.container);
                    "exited".clone_into(&mut container.state);
                    container.inspected = None;
                }
                consequence.ended = Some(event.id.clone());
            }
            "destroy" => {
                if let Some(entry) = &mut entry {
                    entry.gone = true;
                }
            }
            // It has changed nothing.
            _ => return,
        }
        if let Some(entry) = entry {
            entry.as_of = now;
        }
    }

    /// Everything for one run; what has gone is forgotten with it.
    pub fn snapshot(&mut self) -> Snapshot {
        let mut snapshot = Snapshot {
            events: std::mem::take(&mut self.events).into(),
            events_dropped: std::mem::take(&mut self.events_dropped),
            engine: self.engine.clone(),
            left_out: self.left_out,
            ..Snapshot::default()
        };
        self.entries.retain(|_, entry| {
            let container = Arc::clone(&entry.container);
            if entry.gone {
                snapshot.gone.push(container);
            } else {
                snapshot.containers.push(container);
            }
            !entry.gone
        });
        snapshot
    }

    /// Running containers that wait for their first inspection.
    pub fn uninspected(&self) -> usize {
        let waits = |entry: &&Entry| {
            entry.container.is_alive() && entry.container.inspected.is_none() && !entry.failed
        };
        self.entries.values().filter(waits).count()
    }
}

/// The tags of a container that may not be known any more: by its id, or by what its event tells.
pub fn event_tags(
    event: &Event,
    known: &BTreeMap<&str, &Arc<Container>>,
    config: &Config,
    filter: &Filter,
) -> Option<EntityTags> {
    if let Some(container) = known.get(event.id.as_str()) {
        return (!container.excluded).then(|| container.tags.clone());
    }
    let facts = Facts::of_attributes(&event.id, &event.attributes);
    let tags = entity_tags(&facts, config);
    (!filter.excludes(&facts, &tags)).then_some(tags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory() -> Inventory {
        let config = Config { exclude: vec!["name:^hidden$".to_owned()], ..Config::default() };
        let filter = Filter::new(&config).expect("patterns");
        Inventory::new(&config, filter)
    }

    fn listed(id: &str, state: &str, status: &str) -> Listed {
        Listed {
            id: id.to_owned(),
            names: vec![format!("/{id}")],
            image: "app:1".to_owned(),
            state: state.to_owned(),
            status: status.to_owned(),
            ..Listed::default()
        }
    }

    fn inspected(id: &str, pid: u32) -> Inspected {
        let text = format!(
            r#"{{"Id":"{id}","Name":"/{id}","State":{{"Status":"running","Pid":{pid},
               "StartedAt":"2026-11-21T21:46:23Z"}},"Config":{{"Image":"app:1","Env":["DD_ENV=x"]}},
               "NetworkSettings":{{"Networks":{{"n":{{"IPAddress":"10.0.0.2"}}}}}}}}"#
        );
        serde_json::from_str(&text).expect("an inspection")
    }

    fn list(inventory: &mut Inventory, list: Vec<Listed>) -> Vec<String> {
        let asked = inventory.ask();
        inventory.listed(list, asked)
    }

    fn inspect(inventory: &mut Inventory, inspected: &Inspected) -> Arc<Container> {
        let asked = inventory.ask();
        inventory.inspected(inspected, asked)
    }

    fn event(id: &str, action: &str) -> Event {
        let line = format!(r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"{id}"}}}}"#);
        Event::parse(line.as_bytes()).expect("an event")
    }

    #[test]
    fn a_container_is_inspected_when_it_is_new_and_when_it_changes() {
        let mut inventory = inventory();
        assert!(
            list(&mut inventory, vec![listed("a", "running", "Up"), listed("b", "exited", "")])
                .is_empty()
        );
        assert_eq!(inventory.wanted(), ["a"], "what does not run is not asked about");
        assert_eq!(inventory.uninspected(), 1);
        inspect(&mut inventory, &inspected("a", 7));
        list(
            &mut inventory,
            vec![listed("a", "running", "Up 1 second"), listed("b", "exited", "")],
        );
        assert!(inventory.wanted().is_empty(), "nothing has changed");
        list(
            &mut inventory,
            vec![listed("a", "paused", "Up (Paused)"), listed("b", "running", "Up")],
        );
        let mut wanted = inventory.wanted();
        wanted.sort();
        assert_eq!(wanted, ["a", "b"]);
        let container = inspect(&mut inventory, &inspected("a", 7));
        assert_eq!(
            (container.pid(), container.addresses()),
            (Some(7), vec![IpAddr::from([10, 0, 0, 2])])
        );
        assert!(container.tags.low.contains(&"env:x".to_owned()), "{:?}", container.tags);
    }

    #[test]
    fn a_failed_inspection_is_tried_again_and_the_list_has_to_do() {
        let mut inventory = inventory();
        list(&mut inventory, vec![listed("a", "running", "Up")]);
        assert_eq!(inventory.wanted(), ["a"]);
        inventory.not_inspected("a", false);
        assert_eq!(inventory.uninspected(), 0);
        list(&mut inventory, vec![listed("a", "running", "Up")]);
        assert_eq!(inventory.wanted(), ["a"]);
        inventory.not_inspected("a", true);
        let snapshot = inventory.snapshot();
        assert_eq!((snapshot.containers.len(), snapshot.gone.len()), (0, 1));
    }

    #[test]
    fn an_end_is_told_once_by_whoever_knows_first() {
        let mut inventory = inventory();
        list(&mut inventory, vec![listed("a", "running", "Up"), listed("b", "running", "Up")]);
        inspect(&mut inventory, &inspected("a", 7));
        assert_eq!(inventory.event(event("a", "die")).ended.as_deref(), Some("a"));
        assert_eq!(list(&mut inventory, vec![listed("a", "exited", "")]), ["b"]);
        let snapshot = inventory.snapshot();
        let ids = |all: &[Arc<Container>]| all.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&snapshot.containers), ["a"]);
        assert_eq!(ids(&snapshot.gone), ["b"]);
        assert_eq!(snapshot.containers[0].pid(), None);
        assert!(inventory.snapshot().gone.is_empty(), "it is forgotten");
    }

    #[test]
    fn an_answer_that_comes_late_undoes_nothing() {
        let mut inventory = inventory();
        let starting = || vec![listed("a", "running", "Up 1 second (health: starting)")];
        list(&mut inventory, starting());
        let asked = inventory.ask();
        inventory.event(event("a", "health_status: healthy"));
        inventory.listed(starting(), asked);
        inventory.inspected(&inspected("a", 7), asked);
        assert_eq!(inventory.snapshot().containers[0].health, Some(Health::Healthy));
        list(&mut inventory, starting());
        assert_eq!(
            inventory.snapshot().containers[0].health,
            Some(Health::Starting),
            "asked later"
        );
        // One that was started after the list was asked for.
        let asked = inventory.ask();
        inspect(&mut inventory, &inspected("b", 8));
        assert!(inventory.listed(starting(), asked).is_empty());
        // One that was removed.
        let asked = inventory.ask();
        inventory.event(event("a", "die"));
        inventory.event(event("a", "destroy"));
        let both = [starting(), vec![listed("b", "running", "Up")]].concat();
        inventory.listed(both, asked);
        let snapshot = inventory.snapshot();
        let ids = |all: &[Arc<Container>]| all.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
        assert_eq!(
            (ids(&snapshot.containers), ids(&snapshot.gone)),
            (vec!["b".into()], vec!["a".into()])
        );
    }

    #[test]
    fn events_call_for_inspections() {
        let mut inventory = inventory();
        list(&mut inventory, vec![listed("a", "running", "Up")]);
        for (action, inspect) in [
            ("start", Some("a")),
            ("rename", Some("a")),
            ("health_status: unhealthy", Some("a")),
            ("kill", None),
            ("oom", None),
        ] {
            assert_eq!(inventory.event(event("a", action)).inspect.as_deref(), inspect, "{action}");
        }
        let snapshot = inventory.snapshot();
        assert_eq!(snapshot.events.len(), 5);
        assert_eq!(snapshot.containers[0].health, Some(Health::Unhealthy));
        let connect = r#"{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"a"}}}"#;
        let connect = Event::parse(connect.as_bytes()).expect("an event");
        assert_eq!(inventory.event(connect).inspect.as_deref(), Some("a"));
        assert!(inventory.snapshot().events.is_empty(), "networks are nobody's news");
    }

    #[test]
    fn health_is_read_from_the_text() {
        for (status, health) in [
            ("Up 9 seconds (unhealthy)", Some(Health::Unhealthy)),
            ("Up 9 seconds (healthy)", Some(Health::Healthy)),
            ("Up 1 second (health: starting)", Some(Health::Starting)),
            ("Up 9 seconds (Paused)", None),
            ("Exited (0) 3 seconds ago", None),
            ("Up", None),
        ] {
            assert_eq!(Health::of_status(status), health, "{status}");
        }
    }

    #[test]
    fn there_are_limits() {
        let config = Config { containers_max: 2, ..Config::default() };
        let mut inventory = Inventory::new(&config, Filter::new(&config).expect("patterns"));
        list(&mut inventory, ["a", "b", "c"].map(|id| listed(id, "running", "Up")).to_vec());
        assert_eq!((inventory.entries.len(), inventory.left_out), (2, 1));
        inspect(&mut inventory, &inspected("d", 1));
        assert_eq!(inventory.entries.len(), 2);
        for _ in 0..EVENTS_MAX + 3 {
            inventory.event(event("a", "kill"));
        }
        let snapshot = inventory.snapshot();
        assert_eq!((snapshot.events.len(), snapshot.events_dropped), (EVENTS_MAX, 3));
    }

    #[test]
    fn who_is_excluded_sends_no_events() {
        let inventory = inventory();
        let named = |name: &str| {
            let line = format!(
                r#"{{"Type":"container","Action":"die","Actor":{{"ID":"x","Attributes":{{"name":"{name}","image":"app:1"}}}}}}"#
            );
            let event = Event::parse(line.as_bytes()).expect("an event");
            event_tags(&event, &BTreeMap::new(), &inventory.config, &inventory.filter)
        };
        assert_eq!(named("hidden"), None);
        assert!(named("seen").expect("tags").low.contains(&"docker_image:app:1".to_owned()));
    }
}
