//! The JSON behind the page and the terminal: `/api/` says what there is.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http_body::Frame;
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc::Receiver;
use tokio::time::Sleep;

use super::history::History;
use super::{Status, busy, elsewhere, series};
use crate::capture::{self, Record};
use crate::cgroup::proc::{self, Proc, TICKS_PER_SECOND};
use crate::cost::Cost;
use crate::ledger::Ledger;
use crate::profile::Profile;
use crate::profile::report::Report;
use crate::telemetry::CollectorFigures;
use crate::telemetry::recorder::Datagram;
use crate::telemetry::senders::OTHERS;
use crate::telemetry::tap::{Picked, Rate};
use crate::time::Time;

/// A path, its parameters, what it gives, and the schema of that where it is one JSON document.
type PathOf = (&'static str, &'static str, &'static str, Option<fn() -> Schema>);

/// Every path below `/api/`.
const PATHS: &[PathOf] = &[
    (
        "/api/overview",
        "",
        "everything the page shows at a glance: process, ledger with the 50 senders that lost or sent \
         the most, collectors, and the busiest names with their lines a second",
        Some(|| schema_for!(Overview)),
    ),
    (
        "/api/ledger",
        "",
        "every line and point with what became of it, and what each sender lost",
        Some(|| schema_for!(Ledger)),
    ),
    (
        "/api/series",
        "name, tag, text, limit",
        "the last flush: series whose name contains `name`, that have this tag, and whose name or one \
         of whose tags contains `text`",
        Some(|| schema_for!(series::Document)),
    ),
    (
        "/api/cost",
        "name, sender, limit",
        "series of the last flush, or of this name or sender, by name and by who sent them first, and \
         tag keys by the series they multiply",
        Some(|| schema_for!(Cost)),
    ),
    (
        "/api/rates",
        "limit",
        "names by lines a second, estimated from a sample of the traffic",
        Some(|| schema_for!(Rates)),
    ),
    (
        "/api/history",
        "name, tags",
        "the last hour of one series: tags are separated by commas, in order",
        Some(|| schema_for!(Past)),
    ),
    (
        "/api/profile",
        "minute",
        "where tallyd's own processor time went: stages, threads and the top functions of a minute, of \
         which 0 is the last full one; /debug/pprof/ has the same for pprof",
        Some(|| schema_for!(Report)),
    ),
    (
        "/api/tap",
        "filter, seconds",
        "a sample of the lines that come in and contain the filter, one JSON object a line",
        Some(|| schema_for!(Picked)),
    ),
    (
        "/api/capture",
        "seconds",
        "what is received from now on, in the Agent's capture format",
        None,
    ),
];

/// Everything the page shows at a glance.
#[derive(Debug, Serialize, JsonSchema)]
struct Overview {
    version: &'static str,
    /// Milliseconds since the Unix epoch.
    time: i64,
    /// When tallyd started, in the same unit.
    started: i64,
    /// Seconds of a bucket.
    interval: i64,
    process: Process,
    flush: LastFlush,
    /// What was lost since the start, by cause and place.
    lost: BTreeMap<String, u64>,
    ledger: Ledger,
    /// Senders in `/api/ledger`, which has all of them.
    senders: usize,
    collectors: Vec<Collected>,
    rates: Rates,
    /// Minutes of the profile that are kept, the newest first; null when it is off.
    profile: Option<Vec<Minute>>,
    history: Room,
}

/// What tallyd itself takes from the machine; null where `/proc` does not say.
#[derive(Debug, Serialize, JsonSchema)]
struct Process {
    cpu_seconds: Option<f64>,
    rss_bytes: Option<u64>,
    threads: Option<u64>,
    open_files: Option<u64>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct LastFlush {
    /// In Unix seconds; 0 before the first.
    at: i64,
    series: usize,
    /// With events and service checks; tallyd's own series are left out.
    points: u64,
    /// How long it took.
    seconds: f64,
}

/// What a collector did since the start.
#[derive(Debug, Serialize, JsonSchema)]
struct Collected {
    name: &'static str,
    runs: u64,
    errors: u64,
    /// Runs that were not begun because the one before was not over.
    skipped: u64,
    samples: u64,
    /// What was beyond its limits.
    left_out: u64,
    /// Of the last run: how long it took, when it began in Unix seconds (0 before the first), and why
    /// it failed, which is empty when it did not.
    seconds: f64,
    last: i64,
    problem: String,
}

/// Names by traffic, of the last full 10 seconds.
#[derive(Debug, Serialize, JsonSchema)]
struct Rates {
    names: Vec<Rate>,
    /// Lines a second of all other names.
    rest: f64,
}

/// A minute of the profile.
#[derive(Debug, Serialize, JsonSchema)]
struct Minute {
    /// Its number in `/api/profile`, `/debug/pprof/minute/` and `/debug/pprof/flame/`.
    minute: usize,
    /// When it began, in Unix seconds.
    at: i64,
    samples: u64,
}

/// How many series have a history.
#[derive(Debug, Serialize, JsonSchema)]
struct Room {
    /// Series whose last hour fits into `status.history_bytes`.
    series_max: usize,
    /// Series of the last flush for which there was no room.
    left_out: usize,
}

/// The last hour of the series that have a name and tags.
#[derive(Debug, Serialize, JsonSchema)]
struct Past {
    /// Seconds of a bucket.
    interval: i64,
    series: Vec<PastOfOne>,
    #[serde(flatten)]
    room: Room,
}

#[derive(Debug, Serialize, JsonSchema)]
struct PastOfOne {
    kind: &'static str,
    host: String,
    /// Start of the bucket in Unix seconds, and the value of a count or gauge, the members of a set,
    /// or the average of the others; oldest first.
    points: Vec<(i64, f32)>,
}

/// Names and keys shown when the request does not say how many.
const LIMIT: usize = 50;

/// How long a tap or a capture stays open at most, and a capture when not told.
const TAP_SECONDS: u64 = 3600;
const CAPTURE_SECONDS: u64 = 60;

pub fn routes() -> Router<Arc<Status>> {
    Router::new()
        .route("/api", get(paths))
        .route("/api/", get(paths))
        .route("/api/overview", get(overview))
        .route("/api/ledger", get(ledger))
        .route("/api/series", get(series))
        .route("/api/cost", get(cost))
        .route("/api/rates", get(rates))
        .route("/api/history", get(history))
        .route("/api/profile", get(profile))
        .route("/api/tap", get(tap))
        .route("/api/capture", get(capture))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    limit: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CostOf {
    name: Option<String>,
    sender: Option<String>,
    limit: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seconds {
    seconds: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OneSeries {
    name: String,
    #[serde(default)]
    tags: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OfMinute {
    #[serde(default)]
    minute: usize,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lines {
    #[serde(default)]
    filter: String,
    seconds: Option<u64>,
}

type Query<T> = Result<axum::extract::Query<T>, QueryRejection>;
type Shared = State<Arc<Status>>;

async fn paths() -> axum::Json<Json> {
    let path = |(path, parameters, gives, schema): &PathOf| {
        let schema = schema.map(|schema| schema());
        json!({"path": path, "parameters": parameters, "gives": gives, "schema": schema})
    };
    axum::Json(PATHS.iter().map(path).collect())
}

async fn ledger(State(status): Shared) -> axum::Json<Ledger> {
    axum::Json(Ledger::of(&status.telemetry, Time::now()))
}

async fn overview(State(status): Shared) -> Response {
    read(status, |status| json(&status.overview(Time::now()))).await
}

pub(super) async fn series(State(status): Shared, query: Query<series::Query>) -> Response {
    let query = match checked(query) {
        Ok(query) => query,
        Err(problem) => return problem.into_response(),
    };
    read(status, move |status| json(&series::document(&status.last(), &query))).await
}

async fn cost(State(status): Shared, query: Query<CostOf>) -> Response {
    let CostOf { name, sender, limit } = match checked(query) {
        Ok(query) => query,
        Err(problem) => return problem.into_response(),
    };
    read(status, move |status| {
        let last = status.last();
        let series = last.series().map(|series| series.context());
        let senders = status.telemetry.senders.all().into_iter();
        let senders: HashMap<u16, String> =
            senders.map(|account| (account.number, account.label())).collect();
        // One whose account was closed just now is one of the others.
        let called = |number: u16| {
            senders.get(&number).or_else(|| senders.get(&OTHERS)).map_or("", String::as_str)
        };
        let wanted = series.filter(|c| {
            name.as_ref().is_none_or(|name| c.name() == name)
                && sender.as_ref().is_none_or(|sender| sender == called(c.maker()))
        });
        json(&Cost::of(wanted, limit.unwrap_or(LIMIT), |number| called(number).to_owned()))
    })
    .await
}

async fn rates(State(status): Shared, query: Query<Limit>) -> Response {
    match checked(query) {
        Ok(query) => json(&status.rates(query.limit.unwrap_or(LIMIT), Time::now())),
        Err(problem) => problem.into_response(),
    }
}

async fn history(State(status): Shared, query: Query<OneSeries>) -> Response {
    let query = match checked(query) {
        Ok(query) => query,
        Err(problem) => return problem.into_response(),
    };
    read(status, move |status| {
        let tags: Vec<_> = query.tags.split(',').filter(|tag| !tag.is_empty()).collect();
        let history = status.history.lock().expect("no panic under this lock");
        let series = history.points(&query.name, &tags).map(|(context, points)| PastOfOne {
            kind: context.kind().word(),
            host: context.host().to_owned(),
            points,
        });
        let (interval, series) = (history.interval(), series.collect());
        json(&Past { interval, series, room: Room::of(&history) })
    })
    .await
}

async fn profile(State(status): Shared, query: Query<OfMinute>) -> Response {
    let minute = match checked(query) {
        Ok(query) => query.minute,
        Err(problem) => return problem.into_response(),
    };
    read(status, move |status| {
        let Some(profile) = &status.profile else {
            return (StatusCode::NOT_FOUND, "self_profile.enabled is off\n").into_response();
        };
        match profile.kept(minute) {
            Some(window) => json(&profile.report(&window)),
            None => (StatusCode::NOT_FOUND, "no such minute\n").into_response(),
        }
    })
    .await
}

async fn tap(State(status): Shared, query: Query<Lines>) -> Response {
    let query = match checked(query) {
        Ok(query) => query,
        Err(problem) => return problem.into_response(),
    };
    let Some(lines) = status.telemetry.tap.watch(&query.filter) else { return busy() };
    let seconds = query.seconds.unwrap_or(TAP_SECONDS).min(TAP_SECONDS);
    let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let body = Body::new(TapBody { lines, until: Box::pin(tokio::time::sleep_until(until)) });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

async fn capture(State(status): Shared, query: Query<Seconds>) -> Response {
    let seconds = match checked(query) {
        Ok(query) => query.seconds.unwrap_or(CAPTURE_SECONDS).min(TAP_SECONDS),
        Err(problem) => return problem.into_response(),
    };
    let Some(datagrams) = status.telemetry.recorder.start() else {
        return (StatusCode::CONFLICT, "a capture is under way already\n").into_response();
    };
    let until = Box::pin(tokio::time::sleep(Duration::from_secs(seconds)));
    let body = CaptureBody { status, datagrams, until, stage: Stage::Header };
    ([(header::CONTENT_TYPE, "application/octet-stream")], Body::new(body)).into_response()
}

/// A capture file, as it comes about.
struct CaptureBody {
    status: Arc<Status>,
    datagrams: Receiver<Datagram>,
    until: Pin<Box<Sleep>>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Header,
    Records,
    Over,
}

impl http_body::Body for CaptureBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let some = |bytes: Bytes| Poll::Ready(Some(Ok(Frame::data(bytes))));
        match self.stage {
            Stage::Header => {
                self.stage = Stage::Records;
                return some(Bytes::from_static(capture::header()));
            }
            Stage::Records => {}
            Stage::Over => return Poll::Ready(None),
        }
        if let Poll::Ready(Some(datagram)) = self.datagrams.poll_recv(context) {
            let Datagram { time, bytes, pid } = datagram;
            return some(Record::new(time.0 * 1_000_000, &bytes, pid as i32).bytes().into());
        }
        std::task::ready!(self.until.as_mut().poll(context));
        self.stage = Stage::Over;
        let missed = self.status.telemetry.recorder.missed();
        if missed > 0 {
            tracing::warn!("a capture misses {missed} datagrams: whoever takes it is too slow");
        }
        some(Bytes::from_static(capture::trailer()))
    }
}

/// Each picked sample as a line of JSON, until it is time.
struct TapBody {
    lines: Receiver<Picked>,
    until: Pin<Box<Sleep>>,
}

impl http_body::Body for TapBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        self.lines.poll_recv(context).map(|picked| {
            let line = serde_json::to_string(&picked?).expect("strings and numbers") + "\n";
            Some(Ok(Frame::data(line.into())))
        })
    }
}

/// The parameters, or what is wrong with them.
fn checked<T>(query: Query<T>) -> Result<T, (StatusCode, String)> {
    let problem =
        |error: QueryRejection| (StatusCode::BAD_REQUEST, format!("{}\n", error.body_text()));
    query.map(|axum::extract::Query(query)| query).map_err(problem)
}

fn json(document: &impl Serialize) -> Response {
    axum::Json(document).into_response()
}

/// Answers away from the control threads, unless too many ask at once.
async fn read(
    status: Arc<Status>,
    page: impl FnOnce(&Status) -> Response + Send + 'static,
) -> Response {
    let Ok(permit) = Arc::clone(&status.pages).try_acquire_owned() else { return busy() };
    elsewhere(permit, move || page(&status)).await
}

impl Status {
    fn rates(&self, limit: usize, now: Time) -> Rates {
        let (names, rest) = self.telemetry.tap.rates(limit, now);
        Rates { names, rest }
    }

    fn overview(&self, now: Time) -> Overview {
        let last = self.last();
        let mut ledger = Ledger::of(&self.telemetry, now);
        let (lost, senders) = (ledger.losses(), ledger.senders.len());
        ledger.senders.truncate(LIMIT);
        let minutes = |profile: &Arc<Profile>| {
            let list = profile.list().into_iter().enumerate();
            list.map(|(minute, (at, samples))| Minute { minute, at: at.seconds(), samples })
                .collect()
        };
        Overview {
            version: env!("CARGO_PKG_VERSION"),
            time: now.0,
            started: self.started.0,
            interval: self.interval(),
            process: Process::now(),
            flush: LastFlush {
                at: last.flushed_at,
                series: last.series().count(),
                points: last.points(),
                seconds: self.telemetry.flush_micros.load(Relaxed) as f64 / 1e6,
            },
            lost,
            ledger,
            senders,
            collectors: self.telemetry.collectors().iter().map(|c| Collected::of(c)).collect(),
            rates: self.rates(LIMIT, now),
            profile: self.profile.as_ref().map(minutes),
            history: Room::of(&self.history.lock().expect("no panic under this lock")),
        }
    }
}

impl Process {
    fn now() -> Self {
        let (proc, id) = (Proc::new("/proc"), std::process::id());
        let stat = proc.of(id, "stat").ok().and_then(|text| proc::stat(&text));
        let status = proc.of(id, "status").ok().map(|text| proc::status(&text));
        Self {
            cpu_seconds: stat
                .map(|s| (s.user_ticks + s.system_ticks) as f64 / TICKS_PER_SECOND as f64),
            rss_bytes: status.as_ref().and_then(|status| status.resident_bytes),
            threads: status.as_ref().and_then(|status| status.threads),
            open_files: proc.open_files(id).ok(),
        }
    }
}

impl Collected {
    fn of(figures: &CollectorFigures) -> Self {
        Self {
            name: figures.name,
            runs: figures.runs.get(),
            errors: figures.errors.get(),
            skipped: figures.skipped.get(),
            samples: figures.samples.get(),
            left_out: figures.left_out.get(),
            seconds: figures.micros.load(Relaxed) as f64 / 1e6,
            last: figures.last.load(Relaxed),
            problem: figures.problem.lock().expect("no panic under this lock").clone(),
        }
    }
}

impl Room {
    fn of(history: &History) -> Self {
        let (series_max, left_out) = history.room();
        Self { series_max, left_out }
    }
}
