//! An engine for tests: it answers the API over a Unix socket from JSON that was recorded or made,
//! as fast, slow, wrong or not at all as it is told. It runs on a thread of its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

pub(crate) struct FakeEngine {
    pub(crate) socket: PathBuf,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How calls are answered whose path contains a word.
#[derive(Clone, Debug)]
pub(crate) enum Mood {
    Delay(Duration),
    Hang,
    Status(u16),
    /// Half of the answer, then the connection breaks.
    Cut,
    /// Not JSON.
    Garbage,
}

#[derive(Default)]
struct Shared {
    data: Mutex<Data>,
    calls: Mutex<Vec<String>>,
    moods: Mutex<Vec<(String, Mood)>>,
    events: Mutex<Events>,
}

#[derive(Default)]
struct Data {
    /// `(oldest, newest)` minor version of API 1.
    versions: (u16, u16),
    containers: Vec<Value>,
    inspections: HashMap<String, Value>,
    stats: HashMap<String, Value>,
    /// Other paths, with their query where they need one.
    objects: HashMap<String, Value>,
}

/// The last events, as an engine keeps them, and those who listen.
#[derive(Default)]
struct Events {
    ring: Vec<String>,
    listeners: Vec<mpsc::UnboundedSender<Result<Bytes, ()>>>,
}

/// Events an engine keeps.
const RING: usize = 256;

impl FakeEngine {
    pub(crate) fn start(folder: &Path) -> Self {
        let shared = Arc::new(Shared::default());
        shared.data().versions = (12, 41);
        let mut engine =
            Self { socket: folder.join("engine.sock"), shared, stop: None, thread: None };
        engine.up();
        engine
    }

    /// The containers and answers of a folder of fixtures.
    pub(crate) fn of_fixtures(folder: &Path, name: &str) -> Self {
        let engine = Self::start(folder);
        let fixtures = fixtures(name);
        let mut data = engine.shared.data();
        for entry in fixtures.read_dir().expect("fixtures") {
            let path = entry.expect("a file").path();
            let file = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let value = json_of(&path);
            if file == "containers" {
                data.containers = value.as_array().expect("a list").clone();
            } else if file.starts_with("inspect_") {
                let id = value["Id"].as_str().expect("an id").to_owned();
                data.inspections.insert(id, value);
            }
        }
        for (path, file) in [
            ("/images/json", "images"),
            ("/info", "info"),
            ("/system/df", "system_df"),
            ("/volumes?false", "volumes_attached"),
            ("/volumes?true", "volumes_dangling"),
        ] {
            let file = fixtures.join(format!("{file}.json"));
            if file.exists() {
                data.objects.insert(path.to_owned(), json_of(&file));
            }
        }
        let image = fixtures.join("image_inspect.json");
        if image.exists() {
            let value = json_of(&image);
            let id = value["Id"].as_str().expect("an id").to_owned();
            data.objects.insert(format!("/images/{id}/json"), value);
        }
        drop(data);
        engine
    }

    /// Begins to listen, again after [`FakeEngine::down`].
    pub(crate) fn up(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&self.shared));
        let socket = self.socket.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
                ready.send(()).expect("a test");
                tokio::select! {
                    _ = axum::serve(listener, app) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().expect("an engine");
        (self.stop, self.thread) = (Some(stop), Some(thread));
    }

    /// Ends as a process that is killed does: connections break, and the last events are forgotten.
    pub(crate) fn down(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
            self.thread.take().expect("a thread").join().expect("no panic");
            let _ = fs::remove_file(&self.socket);
            *self.shared.events() = Events::default();
        }
    }

    pub(crate) fn versions(&self, oldest: u16, newest: u16) {
        self.shared.data().versions = (oldest, newest);
    }

    /// Calls whose path contains the word are answered so; the first that fits counts.
    pub(crate) fn mood(&self, word: &str, mood: Mood) {
        self.shared.moods().push((word.to_owned(), mood));
    }

    pub(crate) fn calm(&self) {
        self.shared.moods().clear();
    }

    /// Adds a container that runs, and its inspection.
    pub(crate) fn add(&self, id: &str, name: &str, pid: u32) {
        let mut data = self.shared.data();
        data.containers.push(json!({
            "Id": id, "Names": [format!("/{name}")], "Image": "app:1", "State": "running",
            "ImageID": "sha256:00", "Status": "Up 1 second", "Labels": {"tier": "front"},
        }));
        data.inspections.insert(
            id.to_owned(),
            json!({
                "Id": id, "Name": format!("/{name}"), "Image": "sha256:00",
                "State": {"Status": "running", "Pid": pid, "StartedAt": "2026-11-21T21:46:23Z"},
                "Config": {"Image": "app:1", "Labels": {"tier": "front"}, "Env": ["DD_ENV=ci"]},
                "HostConfig": {"NetworkMode": "none"},
            }),
        );
    }

    /// Changes one container of the list and its inspection.
    pub(crate) fn change(&self, id: &str, change: impl Fn(&mut Value, &mut Value)) {
        let mut data = self.shared.data();
        let mut inspection = data.inspections[id].clone();
        let listed = data.containers.iter_mut().find(|c| c["Id"] == id).expect("a container");
        change(listed, &mut inspection);
        data.inspections.insert(id.to_owned(), inspection);
    }

    pub(crate) fn remove(&self, id: &str) {
        let mut data = self.shared.data();
        data.containers.retain(|container| container["Id"] != id);
        data.inspections.remove(id);
    }

    pub(crate) fn stats(&self, id: &str, stats: Value) {
        self.shared.data().stats.insert(id.to_owned(), stats);
    }

    /// Something happens: who listens hears the line.
    pub(crate) fn happens(&self, line: &str) {
        let mut events = self.shared.events();
        events.ring.push(line.to_owned());
        let surplus = events.ring.len().saturating_sub(RING);
        events.ring.drain(..surplus);
        let bytes = Bytes::from(format!("{line}\n"));
        events.listeners.retain(|listener| listener.send(Ok(bytes.clone())).is_ok());
    }

    /// Breaks the streams of events, in the middle of a line.
    pub(crate) fn cut_streams(&self) {
        for listener in self.shared.events().listeners.drain(..) {
            let _ = listener.send(Ok(Bytes::from_static(b"{\"Type\":\"contai")));
            let _ = listener.send(Err(()));
        }
    }

    /// Who hears events now.
    pub(crate) fn listeners(&self) -> usize {
        self.shared.events().listeners.len()
    }

    /// Paths that were asked for, with their queries.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().expect("no panic").clone()
    }

    pub(crate) fn calls_of(&self, word: &str) -> usize {
        self.calls().iter().filter(|call| call.contains(word)).count()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        self.down();
    }
}

impl Shared {
    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().expect("no panic")
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().expect("no panic")
    }

    fn moods(&self) -> MutexGuard<'_, Vec<(String, Mood)>> {
        self.moods.lock().expect("no panic")
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> Response {
    let full = request.uri().to_string();
    shared.calls.lock().expect("no panic").push(full);
    let path = request.uri().path();
    let mood = shared.moods().iter().find(|(word, _)| path.contains(word)).cloned();
    match mood {
        Some((_, Mood::Delay(time))) => tokio::time::sleep(time).await,
        Some((_, Mood::Hang)) => std::future::pending().await,
        Some((_, Mood::Status(status))) => return refusal(status, "told to"),
        Some((_, Mood::Garbage)) => return "{\"half".into_response(),
        Some((_, Mood::Cut)) => {
            let (body, stream) = mpsc::unbounded_channel();
            let _ = body.send(Ok(Bytes::from_static(b"[{\"Id\":\"a")));
            let _ = body.send(Err(()));
            return Body::new(Stream(stream)).into_response();
        }
        None => {}
    }
    let (oldest, newest) = shared.data().versions;
    if path == "/_ping" {
        return ([("Api-Version", format!("1.{newest}"))], "OK").into_response();
    }
    let Some((version, path)) = path.strip_prefix("/v1.").and_then(|p| p.split_once('/')) else {
        return refusal(404, "page not found");
    };
    let version: u16 = version.parse().expect("a version");
    if version > newest {
        let text = format!(
            "client version 1.{version} is too new. Maximum supported API version is 1.{newest}"
        );
        return refusal(400, &text);
    }
    if version < oldest {
        let text = format!(
            "client version 1.{version} is too old. Minimum supported API version is 1.{oldest}"
        );
        return refusal(400, &text);
    }
    if path == "events" {
        return events(&shared, &query);
    }
    object(&shared, path, &query)
}

fn object(shared: &Shared, path: &str, query: &HashMap<String, String>) -> Response {
    let data = shared.data();
    let parts: Vec<&str> = path.split('/').collect();
    let found = match parts[..] {
        ["containers", "json"] => {
            let all = query.contains_key("all");
            let shown = |c: &&Value| all || c["State"] == "running" || c["State"] == "paused";
            let mut list: Vec<Value> = data.containers.iter().filter(shown).cloned().collect();
            if !query.contains_key("size") {
                for container in &mut list {
                    let container = container.as_object_mut().expect("an object");
                    container.remove("SizeRw");
                    container.remove("SizeRootFs");
                }
            }
            Some(Value::from(list))
        }
        ["containers", id, "json"] => {
            let by_id = data.inspections.iter().find(|(full, _)| full.starts_with(id));
            by_id.map(|(_, inspection)| inspection.clone())
        }
        ["containers", id, "stats"] => data.stats.get(id).cloned(),
        ["volumes"] => {
            let filters = query.get("filters").map_or("", String::as_str);
            let key = if filters.contains("true") { "/volumes?true" } else { "/volumes?false" };
            data.objects.get(key).cloned()
        }
        _ => data.objects.get(&format!("/{path}")).cloned(),
    };
    match found {
        Some(value) => axum::Json(value).into_response(),
        None => refusal(404, "no such thing"),
    }
}

fn events(shared: &Shared, query: &HashMap<String, String>) -> Response {
    let (sender, stream) = mpsc::unbounded_channel();
    let mut events = shared.events();
    let since = query.get("since").map(|since| {
        let (seconds, nanos) = since.split_once('.').expect("seconds and a fraction");
        seconds.parse::<i64>().expect("a number") * 1_000_000_000
            + nanos.parse::<i64>().expect("a number")
    });
    if let Some(since) = since {
        for line in &events.ring {
            let event: Value = serde_json::from_str(line).unwrap_or_default();
            if event["timeNano"].as_i64().is_none_or(|time| time >= since) {
                let _ = sender.send(Ok(Bytes::from(format!("{line}\n"))));
            }
        }
    }
    events.listeners.push(sender);
    Body::new(Stream(stream)).into_response()
}

fn refusal(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, axum::Json(json!({"message": message}))).into_response()
}

/// A body that is sent piece by piece, until it breaks.
struct Stream(mpsc::UnboundedReceiver<Result<Bytes, ()>>);

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| {
            Some(match piece? {
                Ok(bytes) => Ok(Frame::data(bytes)),
                Err(()) => Err(std::io::Error::other("broken on purpose")),
            })
        })
    }
}

pub(crate) fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/fixtures/docker").join(name)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a fixture")).expect("JSON")
}
