//! The engine's events: what a line says, which are heard, how a gap is noticed, and what is made of
//! them for people.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fmt::Write;

use serde_json::json;

use super::api::WireEvent;
use super::config::Config;
use crate::sample::AlertType;
use crate::time::Time;

/// Events remembered to know one that comes a second time after a reconnect: as many as an engine
/// keeps for those who come late, and some.
const REMEMBERED: usize = 512;

/// Containers named in the text of one event; the others are counted.
const LINES_MAX: usize = 100;

/// What the check has to hear for its own sake or sends; the exec of a health check, thrice a
/// second per container, is not among them.
const HEARD: [&str; 21] = [
    "create",
    "start",
    "restart",
    "stop",
    "die",
    "died",
    "kill",
    "oom",
    "pause",
    "unpause",
    "rename",
    "update",
    "destroy",
    "health_status",
    "connect",
    "disconnect",
    "pull",
    "push",
    "tag",
    "untag",
    "delete",
];

/// Noise that is asked for only by someone who unfilters it.
const NOISE: [&str; 6] = ["top", "exec_start", "exec_create", "exec_die", "attach", "copy"];

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Container,
    Image,
    Network,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub subject: Subject,
    /// One word: what stands behind a colon, as in `health_status: healthy`, is in `detail`.
    pub action: String,
    pub detail: String,
    /// Of the container, image or network.
    pub id: String,
    pub nanoseconds: i64,
    /// Name, image, exit code, signal, and all labels.
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// Reads one line. `None` for what is not understood or about something else.
    pub fn parse(line: &[u8]) -> Option<Self> {
        let wire: WireEvent = serde_json::from_slice(line).ok()?;
        let subject = match wire.kind.as_deref() {
            Some("container") | None => Subject::Container,
            Some("image") => Subject::Image,
            Some("network") => Subject::Network,
            Some(_) => return None,
        };
        let words = wire.action.or(wire.status)?;
        let (action, detail) = words.split_once(':').unwrap_or((&words, ""));
        let id = Some(wire.actor.id).filter(|id| !id.is_empty()).or(wire.id)?;
        let mut attributes = wire.actor.attributes;
        if let Some(from) = wire.from {
            attributes.entry("image".to_owned()).or_insert(from);
        }
        let nanoseconds =
            wire.time_nano.or_else(|| wire.time?.checked_mul(1_000_000_000)).unwrap_or(0);
        Some(Self {
            subject,
            // Podman's word.
            action: printable(if action.trim() == "died" { "die" } else { action.trim() }),
            detail: detail.trim().to_owned(),
            id,
            nanoseconds,
            attributes,
        })
    }

    pub const fn time(&self) -> Time {
        Time(self.nanoseconds.div_euclid(1_000_000))
    }

    fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// The container's name, or else the beginning of its id.
    pub fn container_name(&self) -> &str {
        match self.attribute("name") {
            "" => self.id.get(..12).unwrap_or(&self.id),
            name => name,
        }
    }

    /// The image that the event is about, by its name as the engine tells it.
    pub fn image(&self) -> &str {
        match self.subject {
            Subject::Image => match self.attribute("name") {
                "" => &self.id,
                name => name,
            },
            Subject::Container | Subject::Network => self.attribute("image"),
        }
    }

    /// What a container ended with. Podman has a word of its own for it.
    pub fn exit_code(&self) -> Option<i64> {
        let code =
            self.attributes.get("exitCode").or_else(|| self.attributes.get("containerExitCode"));
        code?.parse().ok()
    }
}

/// The query of the stream: which events the engine shall send, and from when on.
pub fn query(config: &Config, since_nanoseconds: Option<i64>) -> Vec<(&'static str, String)> {
    let filtered = |word: &&str| !config.filtered_event_types.iter().any(|f| f == word);
    // What the check needs for itself comes in any case.
    let words: Vec<&str> = HEARD.into_iter().chain(NOISE.into_iter().filter(filtered)).collect();
    let filters = json!({"type": ["container", "image", "network"], "event": words});
    let mut query = vec![("filters", filters.to_string())];
    if let Some(since) = since_nanoseconds {
        query.push((
            "since",
            format!("{}.{:09}", since.div_euclid(1_000_000_000), since.rem_euclid(1_000_000_000)),
        ));
    }
    query
}

/// What was heard so far, to know after a reconnect what is new and whether something is missing.
///
/// The stream is asked to begin at the last event, which is heard again unless the engine has
/// forgotten it, be it restarted or past the few hundred events that it keeps.
#[derive(Debug, Default)]
pub struct Memory {
    order: VecDeque<(i64, String, String)>,
    seen: HashSet<(i64, String, String)>,
    last: Option<i64>,
    /// Whether the first event since the last reconnect is still to come.
    fresh: bool,
}

/// What an event is in the light of those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hearing {
    New,
    /// New, and others before it may be missing.
    BehindGap,
    Again,
}

impl Memory {
    /// Where to begin after a reconnect.
    pub const fn last(&self) -> Option<i64> {
        self.last
    }

    /// The stream begins anew.
    pub const fn reconnected(&mut self) {
        self.fresh = true;
    }

    pub fn hear(&mut self, event: &Event) -> Hearing {
        let first = std::mem::take(&mut self.fresh);
        let key =
            (event.nanoseconds, event.id.clone(), format!("{}:{}", event.action, event.detail));
        if self.seen.contains(&key) {
            return Hearing::Again;
        }
        let gap = first && self.last.is_some();
        self.last = self.last.max(Some(event.nanoseconds));
        self.seen.insert(key.clone());
        self.order.push_back(key);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        if gap { Hearing::BehindGap } else { Hearing::New }
    }
}

/// An event for people, as the Agent's check shapes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub title: String,
    pub text: String,
    pub time: Time,
    pub aggregation_key: String,
    pub alert: AlertType,
    pub tags: Vec<String>,
}

/// An event with the tags of its container.
#[derive(Clone, Debug)]
pub struct Tagged {
    pub event: Event,
    pub tags: Vec<String>,
}

/// Makes messages of one run's events: one per image, or one per event where that is asked for.
pub fn messages(events: &[Tagged], config: &Config, host: &str) -> Vec<Message> {
    let sent = |t: &&Tagged| {
        t.event.subject != Subject::Network
            && !config.filtered_event_types.contains(&t.event.action)
    };
    let single = |t: &&Tagged| config.collected_event_types.contains(&t.event.action);
    let (singles, bundled): (Vec<&Tagged>, Vec<&Tagged>) =
        events.iter().filter(sent).partition(|t| config.unbundle_events && single(t));
    let bundled = if config.unbundle_events && !config.bundle_unspecified_events {
        Vec::new()
    } else {
        bundled
    };
    let mut images: BTreeMap<&str, Vec<&Tagged>> = BTreeMap::new();
    for tagged in bundled {
        images.entry(tagged.event.image()).or_default().push(tagged);
    }
    let of_images = images.into_iter().map(|(image, events)| bundle(image, events, config, host));
    let of_ones = singles.into_iter().map(|tagged| one(tagged, events, config));
    of_images.chain(of_ones).collect()
}

fn bundle(image: &str, mut events: Vec<&Tagged>, config: &Config, host: &str) -> Message {
    events.sort_by_key(|tagged| std::cmp::Reverse(tagged.event.nanoseconds));
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut tags = BTreeSet::new();
    let mut lines = String::new();
    for (i, tagged) in events.iter().enumerate() {
        let event = &tagged.event;
        *counts.entry(&event.action).or_default() += 1;
        tags.extend(tagged.tags.iter().cloned());
        tags.extend(attribute_tags(event, config));
        if i < LINES_MAX {
            let action = event.action.to_uppercase();
            let _ = writeln!(lines, "{action}\t{}", printable(event.container_name()));
        }
    }
    if events.len() > LINES_MAX {
        let _ = writeln!(lines, "and {} more", events.len() - LINES_MAX);
    }
    let counts: Vec<String> = counts.iter().map(|(action, n)| format!("{n} {action}")).collect();
    let title = format!("{} {} on {host}", printable(image), counts.join(", "));
    let alerts = events.iter().map(|tagged| alert(&tagged.event, &events, config));
    Message {
        text: format!("%%%\n{title}\n```\n{lines}```\n%%%"),
        title,
        time: events.first().map(|newest| newest.event.time()).unwrap_or_default(),
        aggregation_key: format!("docker:{image}"),
        alert: alerts.max_by_key(|alert| severity(*alert)).unwrap_or_default(),
        tags: tags.into_iter().collect(),
    }
}

fn one(tagged: &Tagged, all: &[Tagged], config: &Config) -> Message {
    let event = &tagged.event;
    let mut tags: BTreeSet<String> = tagged.tags.iter().cloned().collect();
    tags.extend(attribute_tags(event, config));
    tags.insert(format!("event_type:{}", event.action));
    let all: Vec<&Tagged> = all.iter().collect();
    Message {
        title: format!("Container {}: {}", printable(&event.id), event.action),
        text: format!("Container {} (running image {}): {}", event.id, event.image(), event.action),
        time: event.time(),
        aggregation_key: format!("docker:{}", event.id),
        alert: alert(event, &all, config),
        tags: tags.into_iter().collect(),
    }
}

fn attribute_tags(event: &Event, config: &Config) -> Vec<String> {
    let known = ["image", "name", "container"];
    let asked = config.event_attributes_as_tags.iter().filter(|name| !known.contains(&&***name));
    let tag = |name: &String| event.attributes.get(name).map(|value| format!("{name}:{value}"));
    asked.filter_map(tag).collect()
}

/// How bad one event is, by the whole word of its action and by what else happened to its container:
/// stopping one sends it a signal and lets it end with the signal's code, which is as wished.
fn alert(event: &Event, all: &[&Tagged], config: &Config) -> AlertType {
    let also = |actions: &[&str]| {
        let same = |other: &&Event| other.id == event.id && actions.contains(&&*other.action);
        all.iter().map(|tagged| &tagged.event).find(same).is_some()
    };
    let asked_first = || {
        let same = |other: &Event| other.id == event.id && other.action == "kill";
        all.iter().any(|t| same(&t.event) && t.event.attribute("signal") == "15")
    };
    let wished = || also(&["stop", "restart"]) || asked_first();
    match &*event.action {
        "oom" => AlertType::Error,
        "kill" if event.attribute("signal") == "9" && !wished() => AlertType::Error,
        "die" if event.exit_code().is_some_and(|code| !config.ok_exit_codes.contains(&code)) => {
            if wished() {
                AlertType::Info
            } else {
                AlertType::Warning
            }
        }
        _ => AlertType::Info,
    }
}

const fn severity(alert: AlertType) -> u8 {
    match alert {
        AlertType::Error => 3,
        AlertType::Warning => 2,
        AlertType::Info => 1,
        AlertType::Success => 0,
    }
}

/// A name without what would end its line.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(second: i64, action: &str, name: &str, attributes: &[(&str, &str)]) -> Tagged {
        let mut all = BTreeMap::from([
            ("name".to_owned(), name.to_owned()),
            ("image".to_owned(), "app:1".to_owned()),
        ]);
        all.extend(attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        let event = Event {
            subject: Subject::Container,
            action: action.to_owned(),
            detail: String::new(),
            id: format!("id-{name}"),
            nanoseconds: second * 1_000_000_000,
            attributes: all,
        };
        Tagged { event, tags: vec![format!("container_name:{name}")] }
    }

    #[test]
    fn lines_of_several_engines() {
        for (line, action, detail, code) in [
            (
                r#"{"status":"die","id":"a","from":"app","Type":"container","Action":"die","Actor":{"ID":"a","Attributes":{"exitCode":"137"}},"timeNano":5}"#,
                "die",
                "",
                Some(137),
            ),
            (r#"{"status":"exec_create: true ","id":"a","time":1}"#, "exec_create", "true", None),
            (
                r#"{"Type":"container","Action":"health_status: healthy","Actor":{"ID":"a"}}"#,
                "health_status",
                "healthy",
                None,
            ),
            (
                r#"{"Type":"container","Action":"died","Actor":{"ID":"a","Attributes":{"containerExitCode":"1"}}}"#,
                "die",
                "",
                Some(1),
            ),
        ] {
            let event = Event::parse(line.as_bytes()).expect(line);
            assert_eq!((&*event.action, &*event.detail, event.exit_code()), (action, detail, code));
            assert_eq!(event.id, "a");
        }
        for line in [
            r#"{"Type":"pod","Action":"start","Actor":{"ID":"a"}}"#,
            "{",
            "",
            "[]",
            r#"{"Action":"x"}"#,
        ] {
            assert_eq!(Event::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn one_message_per_image() {
        let events =
            [event(1, "start", "a", &[]), event(3, "start", "b", &[]), event(2, "pause", "a", &[])];
        let messages = messages(&events, &Config::default(), "h");
        let [message] = &*messages else { panic!("{messages:?}") };
        assert_eq!(message.title, "app:1 1 pause, 2 start on h");
        let lines = "```\nSTART\tb\nPAUSE\ta\nSTART\ta\n```";
        assert_eq!(message.text, format!("%%%\n{}\n{lines}\n%%%", message.title));
        assert_eq!((message.time, &*message.aggregation_key), (Time(3000), "docker:app:1"));
        assert_eq!(message.tags, ["container_name:a", "container_name:b"]);
        assert_eq!(message.alert, AlertType::Info);
    }

    #[test]
    fn how_bad_it_is() {
        let kill = |signal| event(1, "kill", "a", &[("signal", signal)]);
        let die = |code| event(2, "die", "a", &[("exitCode", code)]);
        for (events, alert) in [
            (vec![event(1, "oom", "a", &[])], AlertType::Error),
            (vec![kill("9"), die("137")], AlertType::Error),
            (vec![kill("15"), die("143"), event(3, "stop", "a", &[])], AlertType::Info),
            (vec![kill("15"), kill("9"), die("137"), event(3, "stop", "a", &[])], AlertType::Info),
            (vec![kill("9"), event(3, "stop", "b", &[])], AlertType::Error),
            (vec![die("0")], AlertType::Info),
            (vec![die("1")], AlertType::Warning),
            (vec![event(1, "exec_start", "bloom", &[("execID", "pkill oom")])], AlertType::Info),
        ] {
            let config = Config { filtered_event_types: Vec::new(), ..Config::default() };
            let said = messages(&events, &config, "h");
            assert_eq!(said.iter().map(|m| m.alert).collect::<Vec<_>>(), [alert], "{events:?}");
        }
    }

    #[test]
    fn one_by_one() {
        let events = [event(1, "oom", "a", &[("execID", "7")]), event(2, "start", "a", &[])];
        let mut config = Config {
            unbundle_events: true,
            event_attributes_as_tags: vec!["execID".to_owned(), "name".to_owned()],
            ..Config::default()
        };
        let messages_ = messages(&events, &config, "h");
        let [message] = &*messages_ else { panic!("{messages_:?}") };
        assert_eq!(message.title, "Container id-a: oom");
        assert_eq!(message.tags, ["container_name:a", "event_type:oom", "execID:7"]);
        config.bundle_unspecified_events = true;
        assert_eq!(messages(&events, &config, "h").len(), 2);
    }

    #[test]
    fn filtered_types_make_no_message() {
        let noise = event(1, "top", "a", &[]);
        assert!(messages(std::slice::from_ref(&noise), &Config::default(), "h").is_empty());
        let config = Config { filtered_event_types: Vec::new(), ..Config::default() };
        assert_eq!(messages(&[noise], &config, "h").len(), 1);
    }

    #[test]
    fn a_gap_is_noticed_and_nothing_is_heard_twice() {
        let mut memory = Memory::default();
        let at = |second| event(second, "start", "a", &[]).event;
        memory.reconnected();
        assert_eq!(memory.hear(&at(1)), Hearing::New, "nothing was heard before");
        assert_eq!(memory.hear(&at(2)), Hearing::New);
        memory.reconnected();
        assert_eq!(memory.hear(&at(2)), Hearing::Again, "the engine remembers it");
        assert_eq!(memory.hear(&at(3)), Hearing::New);
        memory.reconnected();
        assert_eq!(memory.hear(&at(9)), Hearing::BehindGap, "the engine has forgotten it");
        assert_eq!(memory.last(), Some(9_000_000_000));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut memory = Memory::default();
        for second in 0..2000 {
            memory.hear(&event(second, "start", "a", &[]).event);
        }
        assert_eq!((memory.order.len(), memory.seen.len()), (REMEMBERED, REMEMBERED));
    }

    #[test]
    fn the_engine_is_asked_for_what_matters() {
        let text = |config: &Config| query(config, Some(1_500_000_000)).remove(0).1;
        let config = Config::default();
        assert!(!text(&config).contains("exec_"), "{}", text(&config));
        assert!(text(&config).contains(r#""oom""#));
        assert_eq!(query(&config, Some(1_500_000_000))[1], ("since", "1.500000000".to_owned()));
        let config = Config { filtered_event_types: Vec::new(), ..config };
        assert!(text(&config).contains(r#""exec_die""#));
    }
}
