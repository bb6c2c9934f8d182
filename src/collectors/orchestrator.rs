//! Orchestrators that tell of containers what no engine does: the kubelet of Kubernetes, and the
//! task metadata endpoint of Amazon ECS.
//!
//! Each is asked by a task of its own, once an interval, and soon after a sender of whom nothing is
//! known. What it answers goes into the directory of origins; nothing waits for it.

pub mod ecs;
pub mod kubelet;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until, timeout_at};

use self::ecs::Ecs;
use self::kubelet::Kubelet;
use super::blocking;
use super::docker::config::Config as Docker;
use super::docker::filter::Filter;
use super::docker::tags::Facts;
use super::tagging::{Builder, by_rules};
use crate::origin::directory::{Directory, EntityTags, Source, Told};
use crate::telemetry::Telemetry;
use crate::time::Time;

/// Bytes of an answer; that of a node with a thousand pods stays below.
const ANSWER_MAX: usize = 64 << 20;

/// At least so long between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is asked for a container of a sender: it may tell of it only a little later.
const LOOKS: u8 = 5;

/// Containers looked for at a time; who sends again is looked for again.
const ASKED_MAX: usize = 1024;

/// What can be asked.
pub enum Orchestrator {
    Kubelet(Kubelet),
    Ecs(Ecs),
}

/// Every container that an orchestrator knows of, by its id.
pub type Containers = Vec<(String, Told)>;

/// What the Docker check's settings say of any container: which are left out, and what becomes a
/// tag.
#[derive(Debug)]
pub struct Wishes {
    filter: Filter,
    labels_as_tags: BTreeMap<String, String>,
    env_as_tags: BTreeMap<String, String>,
}

impl Wishes {
    /// # Errors
    ///
    /// A pattern that is no regular expression, with the name of its setting.
    pub fn new(config: &Docker) -> Result<Self, String> {
        Ok(Self {
            filter: Filter::new(config)?,
            labels_as_tags: config.labels_as_tags.clone(),
            env_as_tags: config.env_as_tags.clone(),
        })
    }

    fn label(&self, name: &str, value: &str, tags: &mut Builder) {
        by_rules(&self.labels_as_tags, "%%label%%", name, value, tags);
    }

    fn variable(&self, name: &str, value: &str, tags: &mut Builder) {
        by_rules(&self.env_as_tags, "%%env%%", name, value, tags);
    }

    fn excludes(&self, name: &str, image: &str, namespace: &str, tags: &EntityTags) -> bool {
        let namespace = ("io.kubernetes.pod.namespace".to_owned(), namespace.to_owned());
        let facts = Facts {
            names: vec![name.to_owned()],
            image: image.to_owned(),
            labels: BTreeMap::from([namespace]),
            ..Facts::default()
        };
        self.filter.excludes(&facts, tags)
    }
}

impl Orchestrator {
    const fn source(&self) -> Source {
        match self {
            Self::Kubelet(_) => Source::Kubelet,
            Self::Ecs(_) => Source::Ecs,
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Kubelet(_) => "kubelet",
            Self::Ecs(_) => "ecs",
        }
    }

    /// Asks once.
    ///
    /// # Errors
    ///
    /// Who was asked in vain, and why.
    pub async fn containers(&mut self) -> Result<Containers, String> {
        match self {
            Self::Kubelet(kubelet) => kubelet.containers().await,
            Self::Ecs(ecs) => ecs.containers().await,
        }
    }
}

/// Asks again and again, for as long as the runtime lives.
pub async fn watch(
    mut orchestrator: Orchestrator,
    interval: Duration,
    directory: Arc<Directory>,
    telemetry: Arc<Telemetry>,
    clock: fn() -> Time,
) {
    let (name, source) = (orchestrator.name(), orchestrator.source());
    let mut wanted = directory.wanted();
    let mut asked = Vec::new();
    let mut known = HashSet::new();
    let mut fails = None;
    loop {
        let begun = Instant::now();
        let answer = orchestrator.containers().await;
        match (&answer, fails) {
            (Ok(containers), None | Some(true)) => {
                tracing::info!("{name}: tells of {} containers", containers.len());
            }
            (Err(error), None | Some(false)) => {
                tracing::warn!("{name}: {error}; what is known of its containers stays");
            }
            _ => {}
        }
        fails = Some(answer.is_err());
        match answer {
            Ok(containers) => {
                let ids: HashSet<_> = containers.iter().map(|(id, _)| id.clone()).collect();
                for (id, told) in containers {
                    directory.publish(source, &id, told);
                }
                for gone in known.difference(&ids) {
                    directory.ended(source, gone, clock());
                }
                known = ids;
            }
            Err(_) => telemetry.orchestrator_errors.add(1),
        }
        sleep_until(begun + PAUSE).await;
        let next = begun + interval.max(PAUSE);
        asked.retain_mut(|(id, looks): &mut (Arc<str>, u8)| {
            *looks -= 1;
            *looks > 0 && directory.container(id).is_none()
        });
        // One that fails is asked once an interval.
        if fails == Some(true) || asked.is_empty() {
            listen(&mut wanted, &mut asked, next, fails == Some(true)).await;
        }
    }
}

/// Waits until it is time, or until somebody asks.
async fn listen(
    wanted: &mut Receiver<Arc<str>>,
    asked: &mut Vec<(Arc<str>, u8)>,
    until: Instant,
    whole: bool,
) {
    loop {
        match timeout_at(until, wanted.recv()).await {
            Ok(Ok(id)) if asked.len() < ASKED_MAX => asked.push((id, LOOKS)),
            Ok(Ok(_) | Err(RecvError::Lagged(_))) => {}
            Ok(Err(RecvError::Closed)) => return sleep_until(until).await,
            Err(_) => return,
        }
        while let Ok(id) = wanted.try_recv() {
            if asked.len() < ASKED_MAX {
                asked.push((id, LOOKS));
            }
        }
        if !whole {
            return;
        }
    }
}

/// Asks for a document. `token_file` holds what lets us in; it is read anew each time, since it is
/// replaced.
async fn get(client: &Client, url: &str, token_file: Option<&str>) -> Result<Json, String> {
    let mut request = client.get(url);
    if let Some(file) = token_file.filter(|file| !file.is_empty()) {
        let token = blocking(|| fs::read_to_string(file));
        let token = token.map_err(|error| format!("{file}: {error}"))?;
        request = request.bearer_auth(token.trim());
    }
    let at = |error: reqwest::Error| format!("{url}: {}", cause(&error));
    let mut response = request.send().await.map_err(at)?;
    let status = response.status();
    if !status.is_success() {
        return Err(format!("{url}: {status}"));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(at)? {
        if body.len() + chunk.len() > ANSWER_MAX {
            return Err(format!("{url}: more than {ANSWER_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))
}

/// The innermost cause says most.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Reads an object in which `null` stands for what is not there.
fn read<T: DeserializeOwned>(mut json: Json) -> Option<T> {
    drop_nulls(&mut json);
    serde_json::from_value(json).ok()
}

fn drop_nulls(json: &mut Json) {
    match json {
        Json::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Json::Array(values) => values.iter_mut().for_each(drop_nulls),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// A list, without the entries that cannot be read.
fn list<T: DeserializeOwned>(json: &mut Json, field: &str) -> Vec<T> {
    let list = json.get_mut(field).map(Json::take);
    let Some(Json::Array(entries)) = list else { return Vec::new() };
    entries.into_iter().filter_map(read).collect()
}
