//! Who sent a sample: its process, its container, its pod; and the tags these bring.
//!
//! A sender is known by a [`Key`]: a pid that the kernel vouches for, or what a client says of
//! itself. Readers ask [`Origins`], which answers from memory or not yet. What it does not know is
//! found out by the [`resolver`], on a thread of its own: by the files of `/proc`, and by the
//! [`Directory`] that collectors fill.

pub mod directory;
pub mod resolver;

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::thread::Thread;

use ahash::RandomState;
use anyhow::{Context as _, ensure};
use hashbrown::HashMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::parse::{Cardinality, parse_external, parse_local};
use crate::rules::OriginHints;
use crate::sample::OriginFields;
use crate::sys::Sender;
use crate::telemetry::Telemetry;
use crate::telemetry::senders::Who;
use crate::time::Time;

pub use directory::{Directory, EntityTags, Origin};

/// Names that this host and its senders go by, and the tags that senders bring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Host of every series that names none itself; empty takes the system's host name.
    pub hostname: String,
    /// File that holds this host name.
    pub hostname_file: String,
    /// Send series without a host unless the client names one.
    pub no_hostname: bool,
    /// Add the tags of the container from which a process writes to a Unix socket. In a container,
    /// tallyd needs the machine's pid namespace for that (`docker run --pid host`).
    pub detection: bool,
    /// Over UDP and TCP, add the tags of the one container that has the sender's address, if the
    /// client says nothing of its own origin, and tell senders apart by address in the ledger. Off
    /// saves about 70 ns a UDP datagram; then all that a listener gets is one sender.
    pub addresses: bool,
    /// Take the loopback for such an address too: for pods and tasks in whose network tallyd is. In
    /// a task of Amazon ECS it is on by itself.
    pub loopback: bool,
    /// Add the tags of everything that is known of a sender, not only of its process and of one
    /// origin that it names itself.
    pub unified: bool,
    /// A pod that the client names wins over what the kernel says of the process.
    pub entity_id_precedence: bool,
    /// How many tags an origin brings unless the client says: `none`, `low`, `orchestrator`,
    /// `high`.
    pub cardinality: Cardinality,
    /// Let the first samples of a new sender wait in memory until its tags are known, but not
    /// beyond their interval. Otherwise they go without.
    pub wait: bool,
    /// Bytes that may wait for each socket; what exceeds them goes without tags and is counted.
    pub wait_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hostname: String::new(),
            hostname_file: String::new(),
            no_hostname: false,
            detection: true,
            addresses: true,
            loopback: false,
            unified: false,
            entity_id_precedence: false,
            cardinality: Cardinality::Low,
            wait: true,
            wait_bytes_max: 4 << 20,
        }
    }
}

/// The longest name of a host.
const NAME_MAX: usize = 255;

impl Config {
    /// The name in the file, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no name.
    pub fn hostname_from_file(&self) -> anyhow::Result<Option<String>> {
        const SETTING: &str = "origin.hostname_file";
        if self.hostname_file.is_empty() {
            return Ok(None);
        }
        let file = File::open(&self.hostname_file);
        let mut text = String::new();
        // One byte more shows that it is too long.
        let bounded = file.map(|file| file.take(NAME_MAX as u64 + 2));
        bounded
            .and_then(|mut file| file.read_to_string(&mut text))
            .with_context(|| format!("{SETTING}: cannot read {}", self.hostname_file))?;
        let name = text.trim();
        let part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let valid = !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(part);
        ensure!(valid, "{SETTING}: {} holds no host name", self.hostname_file);
        Ok(Some(name.to_owned()))
    }
}

/// Senders remembered; a new one beyond them brings no tags, and is counted.
const KEYS_MAX: usize = 65_536;

/// Milliseconds after which a sender that is silent is forgotten.
const IDLE: i64 = 60_000;

/// What a sender is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// As the kernel says.
    Process(u32),
    /// As the client says: `c:`.
    Container(Box<str>),
    /// The inode of the container's cgroup: `c:in-`.
    Inode(u64),
    /// `dd.internal.entity_id`, or `e:pu-`.
    Pod(Box<str>),
    /// A pod, and a container by its name in it: `e:`.
    ContainerInPod(Box<str>, Box<str>),
}

/// What was found out of a [`Key`].
#[derive(Debug)]
struct Answer {
    origin: Origin,
    /// Where the key led to; its tags may become known, or change.
    container: Option<Arc<str>>,
    /// When the process started, in ticks; what has another start is another process.
    started: Option<u64>,
    /// What its program is called.
    program: Option<Arc<str>>,
    /// When it was last asked for.
    used: AtomicI64,
}

/// Everything that one sample says or implies of its origin.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    /// Of the datagram: what its process, or its address, is.
    pub sent: Origin,
    /// The fields `c:`, `e:` and `card:`.
    pub fields: OriginFields<'a>,
    /// Magic tags.
    pub hints: &'a OriginHints,
}

/// What became of [`Claims`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Of all origins that count, at the cardinality that counts.
    pub tags: Vec<String>,
    /// The sample itself names an origin, whose tags may be others later.
    pub named: bool,
    /// Nothing is known of these yet.
    pub unknown: SmallVec<[Key; 4]>,
    /// It soon will be.
    pub asked: bool,
}

type Map<K, V> = HashMap<K, V, RandomState>;

/// The table of senders, shared by all readers.
pub struct Origins {
    config: Config,
    directory: Arc<Directory>,
    answers: RwLock<Map<Key, Answer>>,
    /// Counts what has become known, for those who wait.
    news: AtomicU64,
    questions: Mutex<Questions>,
    /// Woken by a question.
    resolver: OnceLock<Thread>,
    said_foreign: AtomicBool,
    telemetry: Arc<Telemetry>,
}

/// Keys on their way to the resolver.
#[derive(Default)]
struct Questions {
    /// Asked and not yet answered, with the time of the question.
    open: Map<Key, Time>,
    /// The resolver has not seen these.
    fresh: Vec<Key>,
    /// The resolver runs.
    heard: bool,
}

impl Default for Origins {
    fn default() -> Self {
        let telemetry = Arc::<Telemetry>::default();
        let directory = Arc::new(Directory::new(Arc::clone(&telemetry)));
        Self::new(Config::default(), directory, telemetry)
    }
}

impl Origins {
    pub fn new(config: Config, directory: Arc<Directory>, telemetry: Arc<Telemetry>) -> Self {
        Self {
            config,
            directory,
            answers: RwLock::default(),
            news: AtomicU64::new(0),
            questions: Mutex::default(),
            resolver: OnceLock::new(),
            said_foreign: AtomicBool::new(false),
            telemetry,
        }
    }

    pub const fn config(&self) -> &Config {
        &self.config
    }

    pub const fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// The origin of everything that this sender sends. `held` says of which keys earlier datagrams
    /// still wait: this one must not overtake them.
    ///
    /// # Errors
    /// The key that [`Origins::origin`] will know later, if [`Origins::ask`] is told to find out.
    pub fn of(
        &self,
        sender: Sender,
        now: Time,
        held: impl Fn(&Key) -> bool,
    ) -> Result<Origin, Key> {
        match sender {
            Sender::Process { pid: 0, .. } if self.config.detection => {
                self.say_foreign();
                Ok(Origin::NONE)
            }
            Sender::Process { pid, .. } if self.config.detection => {
                let key = Key::Process(pid);
                self.answer(&key, now).filter(|_| !held(&key)).ok_or(key)
            }
            Sender::Address(address) if self.config.addresses => {
                let found = self.directory.address(address);
                Ok(found.map_or(Origin::NONE, Origin::by_address))
            }
            Sender::Unknown | Sender::Process { .. } | Sender::Address(_) => Ok(Origin::NONE),
        }
    }

    /// What is known of a key by now: its origin, which may bring no tags.
    pub fn origin(&self, key: &Key, now: Time) -> Option<Origin> {
        let known = match key {
            Key::Container(id) => self.directory.container(id),
            Key::Pod(uid) => self.directory.pod(uid),
            Key::ContainerInPod(uid, name) => self.directory.container_in_pod(uid, name),
            Key::Process(_) | Key::Inode(_) => None,
        };
        known.or_else(|| self.answer(key, now))
    }

    fn answer(&self, key: &Key, now: Time) -> Option<Origin> {
        let answers = self.answers.read().expect("no panic under this lock");
        let answer = answers.get(key)?;
        // Written once a second, so that readers do not fight for the line.
        if now.0 - answer.used.load(Ordering::Relaxed) >= 1000 {
            answer.used.store(now.0, Ordering::Relaxed);
        }
        Some(answer.origin)
    }

    /// Has a key looked into. Returns whether an answer will come: [`Origins::news`] then grows.
    pub fn ask(&self, key: &Key, now: Time) -> bool {
        let mut questions = self.questions.lock().expect("no panic under this lock");
        if !questions.heard {
            return false;
        }
        if questions.open.contains_key(key) {
            return true;
        }
        let known = self.answers.read().expect("no panic under this lock").len();
        if known + questions.open.len() >= KEYS_MAX {
            self.telemetry.origin_senders_refused.add(1);
            return false;
        }
        questions.open.insert(key.clone(), now);
        questions.fresh.push(key.clone());
        drop(questions);
        self.wake();
        true
    }

    /// Whose account what this sender sends goes to, `None` where the kernel says nothing of it, and
    /// what this is called. `origin` is that of its datagrams.
    pub fn who(
        &self,
        sender: Sender,
        origin: Origin,
    ) -> (Option<Who>, impl FnOnce() -> Option<Arc<str>> + '_) {
        let who = match (self.directory.owner(origin), sender) {
            (Some(id), _) => Some(Who::Container(id)),
            (None, Sender::Process { pid, uid }) => Some(Who::Process { pid, uid }),
            (None, Sender::Address(address)) => Some(Who::Address(address)),
            (None, Sender::Unknown) => None,
        };
        let of_container = matches!(who, Some(Who::Container(_)));
        let name = move || {
            if of_container {
                let tags = self.directory.tags(origin)?;
                let name = tags.high.iter().find_map(|tag| tag.strip_prefix("container_name:"))?;
                return Some(name.into());
            }
            let answers = self.answers.read().expect("no panic under this lock");
            answers.get(&Key::Process(sender.pid()))?.program.clone()
        };
        (who, name)
    }

    /// Grows whenever something has become known of a key.
    pub fn news(&self) -> u64 {
        self.news.load(Ordering::Acquire)
    }

    /// The tags that a sample gets by its origins, as the Agent chooses them. `held` as above.
    pub fn tags(&self, claims: &Claims<'_>, now: Time, held: impl Fn(&Key) -> bool) -> Found {
        let Claims { sent, fields, hints } = *claims;
        let word = |text: &str| Cardinality::parse(text.as_bytes());
        let cardinality = Cardinality::parse(fields.cardinality)
            .or_else(|| hints.cardinality.as_deref().and_then(word))
            .unwrap_or(self.config.cardinality);
        if cardinality == Cardinality::None {
            return Found::default();
        }
        let keys = self.keys(claims);
        let mut found = Found { named: !keys.is_empty(), ..Found::default() };
        let mut origins = SmallVec::<[Origin; 5]>::new();
        if !sent.is_by_address() && self.process_counts(hints) {
            origins.push(sent);
        }
        for key in keys {
            match self.origin(&key, now).filter(|_| !held(&key)) {
                Some(origin) => origins.push(origin),
                None => found.unknown.push(key),
            }
        }
        if sent.is_by_address() && origins.iter().all(|origin| *origin == Origin::NONE) {
            origins.push(sent);
        }
        for origin in origins.into_iter().filter(|origin| *origin != Origin::NONE) {
            if let Some(tags) = self.directory.tags(origin) {
                found.tags.extend(tags.at(cardinality).cloned());
            }
        }
        found
    }

    /// Whether the process that sent a sample counts beside what the sample says.
    fn process_counts(&self, hints: &OriginHints) -> bool {
        self.config.unified || !self.config.entity_id_precedence || hints.entity_id.is_none()
    }

    /// The origins that a sample names and that count: one of them, as the Agent has always done
    /// it, or with `unified` all.
    fn keys(&self, claims: &Claims<'_>) -> SmallVec<[Key; 4]> {
        let mut keys = SmallVec::new();
        let Claims { fields, hints, .. } = claims;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned().into_boxed_str();
        let entity = hints.entity_id.as_deref();
        if self.config.unified || entity.is_none() {
            let local = parse_local(fields.local);
            match local.inode {
                _ if !local.container_id.is_empty() => {
                    keys.push(Key::Container(text(local.container_id)));
                }
                Some(inode) => keys.push(Key::Inode(inode)),
                None => {}
            }
        }
        keys.extend(entity.filter(|uid| *uid != "none").map(|uid| Key::Pod(uid.into())));
        if self.config.unified {
            let external = parse_external(fields.external);
            if !external.pod_uid.is_empty() {
                let uid = text(external.pod_uid);
                keys.push(Key::Pod(uid.clone()));
                if !external.container_name.is_empty() {
                    keys.push(Key::ContainerInPod(uid, text(external.container_name)));
                }
            }
        }
        keys
    }

    fn wake(&self) {
        if let Some(resolver) = self.resolver.get() {
            resolver.unpark();
        }
    }

    /// A process of another pid namespace has no number in ours.
    fn say_foreign(&self) {
        self.telemetry.origin_foreign.add(1);
        if !self.said_foreign.swap(true, Ordering::Relaxed) {
            tracing::info!(
                "a process outside of tallyd's pid namespace sends to a Unix socket (matched pid \
                 0): it gets no tags of its container; start tallyd with --pid host (docker), \
                 hostPID: true (Kubernetes) or \"pidMode\": \"host\" (ECS)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::directory::{Place, Source, Told};
    use super::*;

    const NOW: Time = Time(1_000_000);

    /// Five entities, each with one tag of its name at each cardinality.
    fn origins(config: Config) -> Origins {
        let telemetry = Arc::<Telemetry>::default();
        let directory = Arc::new(Directory::new(Arc::clone(&telemetry)));
        for (id, pod, name) in
            [("process", "", ""), ("local", "", ""), ("entity", "u1", "x"), ("ext", "u2", "cn")]
        {
            let tag = |level: &str| vec![format!("{id}:{level}")];
            let tags = EntityTags { low: tag("l"), orchestrator: tag("o"), high: tag("h") };
            let place = Place { uid: pod.into(), name: name.into(), tags: None };
            let pod = Some(place).filter(|_| !pod.is_empty());
            let told = Told { pod, tags: Arc::new(tags), ..Told::default() };
            directory.publish(Source::Engine, id, told);
        }
        Origins::new(config, directory, telemetry)
    }

    fn claims<'a>(fields: [&'a str; 3], hints: &'a OriginHints, sent: Origin) -> Claims<'a> {
        let [local, external, cardinality] = fields.map(str::as_bytes);
        Claims { sent, fields: OriginFields { local, external, cardinality }, hints }
    }

    /// The tags that a sample gets by these fields and magic tags, without their level.
    fn who(config: &Config, entity: Option<&str>, local: &str, external: &str) -> Vec<String> {
        let origins = origins(config.clone());
        let sent = origins.directory.container("process").expect("it is published");
        let hints = OriginHints { entity_id: entity.map(String::from), cardinality: None };
        let found = origins.tags(&claims([local, external, ""], &hints, sent), NOW, |_| false);
        assert!(found.unknown.is_empty(), "{found:?}");
        found.tags.iter().map(|tag| tag.trim_end_matches(":l").to_owned()).collect()
    }

    /// The table is that of the Agent's rules: what a process is, and one thing that the client
    /// says; or everything.
    #[test]
    fn who_counts() {
        let legacy = Config::default();
        let precedence = Config { entity_id_precedence: true, ..Config::default() };
        let unified = Config { unified: true, ..Config::default() };
        let external = "it-false,cn-cn,pu-u2";
        for (config, entity, local, external, expected) in [
            (&legacy, None, "", "", &["process"][..]),
            (&legacy, None, "ci-local", "", &["process", "local"]),
            (&legacy, None, "local", "", &["process", "local"]),
            (&legacy, Some("u1"), "", "", &["process", "entity"]),
            (&legacy, Some("u1"), "ci-local", "", &["process", "entity"]),
            // This word stands in the way of the container's id as well.
            (&legacy, Some("none"), "ci-local", "", &["process"]),
            (&legacy, None, "", external, &["process"]),
            (&precedence, None, "ci-local", "", &["process", "local"]),
            (&precedence, Some("u1"), "ci-local", "", &["entity"]),
            (&precedence, Some("none"), "ci-local", "", &[]),
            (&unified, None, "", "", &["process"]),
            (
                &unified,
                Some("u1"),
                "ci-local",
                external,
                &["process", "local", "entity", "ext", "ext"],
            ),
            (&unified, Some("none"), "ci-local", "", &["process", "local"]),
            (&unified, None, "", "pu-u2", &["process", "ext"]),
        ] {
            let found = who(config, entity, local, external);
            assert_eq!(found, expected, "{entity:?} {local} {external} {config:?}");
        }
    }

    #[test]
    fn how_many_tags() {
        let none = OriginHints::default();
        let tagged = OriginHints { cardinality: Some("HIGH".to_owned()), ..none.clone() };
        let all = &["process:l", "process:o", "process:h"];
        for (default, field, hints, expected) in [
            (Cardinality::Low, "", &none, &all[..1]),
            (Cardinality::Orchestrator, "", &none, &all[..2]),
            (Cardinality::High, "", &none, &all[..]),
            (Cardinality::None, "", &none, &[]),
            (Cardinality::Low, "high", &none, &all[..]),
            (Cardinality::Low, "", &tagged, &all[..]),
            (Cardinality::Low, "orch", &tagged, &all[..2]),
            (Cardinality::High, "none", &tagged, &[]),
            (Cardinality::High, "what", &none, &all[..]),
        ] {
            let origins = origins(Config { cardinality: default, ..Config::default() });
            let sent = origins.directory.container("process").expect("it is published");
            let found = origins.tags(&claims(["", "", field], hints, sent), NOW, |_| false);
            assert_eq!(found.tags, expected, "{default:?} {field} {hints:?}");
            assert!(!found.named);
        }
    }

    #[test]
    fn an_address_counts_when_nothing_else_does() {
        let origins = origins(Config::default());
        let here = "10.0.0.1".parse().expect("an address");
        let low = vec!["address:l".to_owned()];
        let tags = Arc::new(EntityTags { low, ..EntityTags::default() });
        let told = Told { addresses: vec![here], tags, ..Told::default() };
        origins.directory.publish(Source::Engine, "a", told);
        let sent = origins.of(Sender::Address(here), NOW, |_| false).expect("no key");
        let there = "10.0.0.2".parse().expect("an address");
        assert_eq!(origins.of(Sender::Address(there), NOW, |_| false), Ok(Origin::NONE));
        let none = OriginHints::default();
        let pod = OriginHints { entity_id: Some("u1".to_owned()), cardinality: None };
        for (local, hints, expected) in [
            ("", &none, "address:l"),
            ("ci-local", &none, "local:l"),
            ("ci-nobody", &none, "address:l"),
            ("", &pod, "entity:l"),
        ] {
            let found = origins.tags(&claims([local, "", ""], hints, sent), NOW, |_| false);
            assert_eq!(found.tags, [expected], "{local} {hints:?}");
        }
    }

    #[test]
    fn what_is_unknown_is_named_and_asked_for_by_those_who_may() {
        let origins = origins(Config::default());
        let sender = Sender::Process { pid: 7, uid: 0 };
        assert_eq!(origins.of(sender, NOW, |_| false), Err(Key::Process(7)));
        assert!(!origins.ask(&Key::Process(7), NOW), "no resolver runs");
        let none = OriginHints::default();
        for (local, key) in [
            ("ci-new", Key::Container("new".into())),
            ("in-5", Key::Inode(5)),
            ("in-5,ci-new", Key::Container("new".into())),
        ] {
            let found = origins.tags(&claims([local, "", ""], &none, Origin::NONE), NOW, |_| false);
            assert_eq!((found.unknown.as_slice(), found.named), (&[key][..], true));
        }
        // One that is known waits behind what came earlier.
        let found = origins.tags(&claims(["local", "", ""], &none, Origin::NONE), NOW, |_| true);
        assert_eq!(found.unknown.as_slice(), [Key::Container("local".into())]);

        let off = Origins::new(
            Config { detection: false, addresses: false, ..Config::default() },
            Arc::clone(origins.directory()),
            Arc::default(),
        );
        assert_eq!(off.of(sender, NOW, |_| false), Ok(Origin::NONE));
    }

    #[test]
    fn a_process_of_another_namespace_is_counted() {
        let origins = origins(Config::default());
        for _ in 0..3 {
            let sender = Sender::Process { pid: 0, uid: 5 };
            assert_eq!(origins.of(sender, NOW, |_| false), Ok(Origin::NONE));
        }
        assert_eq!(origins.telemetry.origin_foreign.get(), 3);
    }

    #[test]
    fn the_name_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("name").display().to_string();
        let config = Config { hostname_file: path.clone(), ..Config::default() };
        let of_file = |text: &str| {
            std::fs::write(&path, text).unwrap();
            config.hostname_from_file().map_err(|error| error.to_string().replace(&path, "FILE"))
        };
        let none = Err("origin.hostname_file: FILE holds no host name".to_owned());
        for (text, expected) in [
            ("web-1.example\n", Ok(Some("web-1.example".to_owned()))),
            (" a ", Ok(Some("a".to_owned()))),
            (&"a".repeat(255), Ok(Some("a".repeat(255)))),
            ("", none.clone()),
            ("a b", none.clone()),
            (&"a".repeat(256), none.clone()),
            (&format!("{}\n{}", "a".repeat(200), "b".repeat(200)), none),
        ] {
            assert_eq!(of_file(text), expected, "{text}");
        }
        assert_eq!(Config::default().hostname_from_file().unwrap(), None);
        std::fs::remove_file(&path).unwrap();
        let error = config.hostname_from_file().unwrap_err().to_string();
        assert_eq!(error, format!("origin.hostname_file: cannot read {path}"));
    }
}
