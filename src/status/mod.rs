//! HTTP: health, metrics, series as JSON, and the endpoint that takes in lines.

mod api;
mod guard;
mod history;
mod last;
mod metrics;
mod pprof;
pub mod series;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use self::guard::Guard;
use self::history::History;
use self::last::Last;
use crate::batch::{Batch, Value};
use crate::encode::exposition::{self, Labels, Type};
use crate::intake::Untouched;
use crate::profile::Profile;
use crate::reader::Reader;
use crate::sinks::prometheus::Prometheus;
use crate::sys::{Datagram, Sender};
use crate::telemetry::latency::{QUANTILES, TIMED};
use crate::telemetry::{OWN, Telemetry};
use crate::time::Time;

/// The HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address of the HTTP server; empty closes it.
    pub listen: String,
    /// A second address for health checks alone, as the Agent's health_port; empty closes it.
    pub health_listen: String,
    /// Address that serves `POST /dogstatsd/v2/proxy` to tracers, usually 127.0.0.1:8126; empty
    /// closes it. The main address serves it too.
    pub trace_listen: String,
    /// Bytes of a body posted to the proxy endpoint; a longer one is refused.
    pub body_max: usize,
    /// What others than this machine's own users must send to see the page, `/api/` and `/debug/`,
    /// as `Authorization: Bearer` or `?token=`; while it is empty, nobody else sees them.
    pub token: String,
    /// Bytes for the last hour of each series, which the page plots: about 1700 for a series at 10 s.
    /// Series beyond have no plot.
    pub history_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8127".to_owned(),
            health_listen: String::new(),
            trace_listen: String::new(),
            body_max: 5 * 1024 * 1024,
            token: String::new(),
            history_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Posts under way at once, and as many pages: each holds a body, and its work waits for locks on
/// threads that the sinks need too. One more gets a 503.
const UNDER_WAY_MAX: usize = 16;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may read nothing of what is sent to it, before its connection is closed.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// What the names of the clients' own counters begin with.
const CLIENT_TELEMETRY: &str = "datadog.dogstatsd.client.";

/// Marks of a series: that its name was looked at, and that it is such a counter. The others are in
/// [`history`].
const KNOWN: u8 = 1;
const CLIENT: u8 = 1 << 1;

/// What the pages show, and where posts go.
pub struct Status {
    telemetry: Arc<Telemetry>,
    prometheus: Option<Arc<Prometheus>>,
    /// The profile of tallyd's own CPU time, unless it is off.
    profile: Option<Arc<Profile>>,
    /// The last flush. Held during a flush, which leaves nothing here if it panics.
    last: Mutex<Arc<Last>>,
    history: Mutex<History>,
    started: Time,
    /// The start is over: what is read goes where it should.
    ready: AtomicBool,
    /// Takes in what is posted; `None` once nothing more is taken.
    proxy: Mutex<Option<Reader>>,
    posts: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

/// A flush under way, to be shown.
pub struct Next<'a> {
    status: &'a Status,
    shown: MutexGuard<'a, Arc<Last>>,
}

impl Next<'_> {
    /// Shows this batch from now on, and takes from it what must not wait until somebody looks: what
    /// clients count of themselves, and the history.
    pub fn show(mut self, batch: &Batch) {
        let mut last = Last::of(batch);
        let mut history = self.status.history.lock().expect("no panic under this lock");
        history.begin(batch.flushed_at);
        for rows in batch.series() {
            let context = &rows[0].context;
            if context.marks() & KNOWN == 0 {
                let client = context.name().starts_with(CLIENT_TELEMETRY);
                context.mark(if client { KNOWN | CLIENT } else { KNOWN });
            }
            if context.marks() & CLIENT != 0 {
                for row in rows {
                    if let Value::Count(value) = row.value {
                        self.status.telemetry.client_reported(context.name(), value);
                    }
                }
            }
            history.record(rows);
            rows.iter().for_each(|row| last.add(row));
        }
        *self.shown = Arc::new(last);
    }
}

impl Status {
    /// `prometheus` is `None` when that sink is off; `proxy` takes in what is posted; `interval` is
    /// the length of a bucket in seconds.
    pub fn new(
        config: &Config,
        telemetry: Arc<Telemetry>,
        prometheus: Option<Arc<Prometheus>>,
        proxy: Reader,
        interval: u32,
    ) -> Self {
        Self {
            telemetry,
            prometheus,
            profile: None,
            last: Mutex::default(),
            history: Mutex::new(History::new(interval, config.history_bytes)),
            started: Time::now(),
            ready: AtomicBool::new(false),
            proxy: Mutex::new(Some(proxy)),
            posts: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
            pages: Arc::new(Semaphore::new(UNDER_WAY_MAX)),
        }
    }

    /// With the pages of this profile.
    #[must_use]
    pub fn with_profile(self, profile: Option<Arc<Profile>>) -> Self {
        Self { profile, ..self }
    }

    /// The start is over, and the spool open.
    pub fn begin(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Takes in nothing more: a post that is not in yet gets a 503, so its client knows. Waits for
    /// the one that is being read.
    pub fn close(&self) {
        *self.proxy.lock().expect("no panic under this lock") = None;
    }

    /// Forgets the last flush, since the next one needs its memory. Who asks for it meanwhile waits
    /// until [`Next::show`].
    pub fn next(&self) -> Next<'_> {
        let mut shown = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = Arc::default();
        Next { status: self, shown }
    }

    /// Seconds of a bucket.
    fn interval(&self) -> i64 {
        self.history.lock().expect("no panic under this lock").interval()
    }

    fn last(&self) -> Arc<Last> {
        Arc::clone(&self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The end of the exposition page: tallyd's own series.
    fn own_metrics(&self) -> String {
        let (mut page, now) = (String::new(), Time::now());
        let figures = self.telemetry.figures(now);
        for own in OWN {
            let samples =
                figures.iter().filter(|(name, ..)| *name == own.name).map(|(_, labels, value)| {
                    let labels = labels.iter().map(|(key, value)| (*key, value.as_str()));
                    (Labels::new(labels), *value)
                });
            let kind = if own.counter { Type::Counter } else { Type::Gauge };
            exposition::write_own(
                &mut page,
                &format!("tallyd_{}", own.name),
                own.help,
                kind,
                samples,
            );
        }
        for timed in TIMED {
            let name = format!("tallyd_{}", timed.name);
            let figures = self.telemetry.timed(timed, now);
            let figures = figures.iter().map(|(labels, summary)| {
                let labels = labels.iter().map(|(key, value)| (*key, value.as_str()));
                let quantiles = QUANTILES.into_iter().zip(summary.quantiles);
                (Labels::new(labels), quantiles, summary.seconds, summary.count)
            });
            exposition::write_own_summary(&mut page, &name, timed.help, figures);
        }
        page
    }
}

/// The running servers.
pub struct Servers {
    stop: watch::Sender<()>,
    tasks: Vec<JoinHandle<()>>,
    /// Where the main server listens, if it does.
    pub address: Option<SocketAddr>,
}

/// Opens the configured addresses and serves them on the current runtime.
///
/// # Errors
/// With the setting and the remedy, when an address that was asked for cannot be opened.
pub async fn start(
    config: &Config,
    untouched: Untouched,
    status: Arc<Status>,
) -> anyhow::Result<Servers> {
    let (stop, _) = watch::channel(());
    let mut servers = Servers { stop, tasks: Vec::new(), address: None };
    match servers.open("status.listen", &config.listen, everything(config, &status)).await {
        Ok(address) => servers.address = address,
        Err(error) if untouched.status => {
            tracing::warn!("{error:#}; going on without pages");
        }
        Err(error) => return Err(error),
    }
    // The Agent's health port answers every path.
    let health_alone = health(&status).fallback(get(|| async { "ok\n" }));
    servers.open("status.health_listen", &config.health_listen, health_alone).await?;
    servers.open("status.trace_listen", &config.trace_listen, proxy(config, &status)).await?;
    Ok(servers)
}

impl Servers {
    async fn open(
        &mut self,
        setting: &str,
        listen: &str,
        router: Router,
    ) -> anyhow::Result<Option<SocketAddr>> {
        if listen.is_empty() {
            return Ok(None);
        }
        let listener = TcpListener::bind(listen).await.with_context(|| {
            format!("cannot listen on http://{listen}: set {setting} to a free address, or to \"\"")
        })?;
        let address = listener.local_addr()?;
        tracing::info!("serving http://{address}");
        let mut stopped = self.stop.subscribe();
        let stopped = async move {
            // Either way it is over.
            let _ = stopped.changed().await;
        };
        // A client that does not read must not hold what is being sent to it for long.
        let listener = listener.tap_io(|stream| {
            let _ = SockRef::from(&*stream).set_tcp_user_timeout(Some(STALLED_MAX));
        });
        self.tasks.push(tokio::spawn(async move {
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            let served = axum::serve(listener, service).with_graceful_shutdown(stopped).await;
            if let Err(error) = served {
                tracing::error!("the HTTP server on {address} ended: {error}");
            }
        }));
        Ok(Some(address))
    }

    /// Takes no more requests and finishes those under way until the deadline.
    pub async fn stop(self, deadline: tokio::time::Instant) {
        self.stop.send_replace(());
        for mut task in self.tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                // A client that keeps its connection open must not hold up the stop.
                task.abort();
            }
        }
    }
}

fn everything(config: &Config, status: &Arc<Status>) -> Router {
    let guard = Guard::new(&config.token);
    let guarded = Router::new()
        .route("/", get(index))
        .merge(api::routes())
        .merge(pprof::router(status.profile.clone()))
        .layer(axum::middleware::from_fn_with_state(guard, guard::check));
    Router::new()
        .route("/metrics", get(exposition_page))
        .merge(guarded)
        .with_state(Arc::clone(status))
        .merge(proxy(config, status))
        .merge(health(status))
}

/// The Agent's and Prometheus' names for the same things: that it is up with its listeners open, that
/// its start is over, and that it is ready as well. Whether a backend answers is none of it.
fn health(status: &Arc<Status>) -> Router {
    let up = ["/health", "/live", "/-/healthy"];
    let router = up
        .into_iter()
        .fold(Router::new(), |router, name| router.route(name, get(|| async { "ok\n" })));
    let router = router.route("/startup", get(has_started));
    let ready = ["/ready", "/-/ready"];
    let router = ready.into_iter().fold(router, |router, name| router.route(name, get(is_ready)));
    router.with_state(Arc::clone(status))
}

async fn has_started(State(status): State<Arc<Status>>) -> Response {
    if status.ready.load(Ordering::Acquire) {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "tallyd is starting\n").into_response()
}

/// Ready is who can keep what it takes in: while the disk fails, payloads wait in bounded memory.
async fn is_ready(State(status): State<Arc<Status>>) -> Response {
    if !status.ready.load(Ordering::Acquire) {
        return has_started(State(status)).await;
    }
    let endpoints = status.telemetry.endpoints();
    match endpoints.iter().find(|endpoint| endpoint.spool_failing.load(Ordering::Relaxed)) {
        None => "ok\n".into_response(),
        Some(endpoint) => {
            let problem = format!("the spool of {} fails; see the log\n", endpoint.name);
            (StatusCode::SERVICE_UNAVAILABLE, problem).into_response()
        }
    }
}

fn proxy(config: &Config, status: &Arc<Status>) -> Router {
    Router::new()
        .route("/dogstatsd/v2/proxy", post(take_in))
        .layer(DefaultBodyLimit::max(config.body_max))
        .with_state(Arc::clone(status))
}

/// What a tracer posts: lines of DogStatsD, as the Agent's trace port takes them.
async fn take_in(
    State(status): State<Arc<Status>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    // Before the body is read: it is what takes memory.
    let Ok(permit) = Arc::clone(&status.posts).try_acquire_owned() else { return busy() };
    let body = match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) => return rejection.into_response(),
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
    };
    elsewhere(permit, move || {
        match status.proxy.lock().expect("no panic under this lock").as_mut() {
            Some(reader) => {
                let sender = Sender::Address(from.ip().to_canonical());
                let post = Datagram { bytes: &body, truncated: false, sender };
                reader.datagrams(&[post], Time::now());
                StatusCode::OK.into_response()
            }
            None => (StatusCode::SERVICE_UNAVAILABLE, "tallyd is stopping\n").into_response(),
        }
    })
    .await
}

async fn exposition_page(State(status): State<Arc<Status>>) -> Response {
    let Ok(permit) = Arc::clone(&status.pages).try_acquire_owned() else { return busy() };
    away(move || metrics::page(&status, permit)).await
}

/// Does what takes a while, or waits for a lock, away from the control plane's own threads. The
/// permit is held until it is done, even if the client has gone.
async fn elsewhere(
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> Response + Send + 'static,
) -> Response {
    away(move || {
        let _permit = permit;
        work()
    })
    .await
}

async fn away(work: impl FnOnce() -> Response + Send + 'static) -> Response {
    let done = tokio::task::spawn_blocking(work);
    done.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

fn busy() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "too many requests under way\n").into_response()
}

/// The page asks this server alone, and shows up in no other page. Its address may hold the token.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; \
    style-src 'unsafe-inline'; connect-src 'self'; object-src 'self'; frame-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

async fn index() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(include_str!("page.html")))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::body::{Body, to_bytes};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::reader::Shared;
    use crate::rules::Rules;
    use crate::sample::Dialect;
    use crate::shard::Shards;
    use crate::value::Plan;
    use crate::{intake, rules, shard, value};

    fn status() -> Arc<Status> {
        status_with(None)
    }

    pub(super) fn status_with(prometheus: Option<Arc<Prometheus>>) -> Arc<Status> {
        let telemetry = Arc::new(Telemetry::default());
        let (plan, now) = (Plan::from_config(&value::Config::default()), Time::from_seconds(1000));
        let host = "own".to_owned();
        let config = shard::Config::default();
        let shards = Shards::new(config, plan, 10, host, Arc::clone(&telemetry), now);
        let shared = Shared {
            rules: Arc::new(Rules::new(&rules::Config::default(), "own").unwrap()),
            shards: Arc::new(shards),
            origins: Arc::default(),
            telemetry: Arc::clone(&telemetry),
            distribution_prefix: None,
            log_rejects: false,
            line_max: 8192,
            spellings_max: 10,
            journal: None,
        };
        let options = intake::Config::default().options(Dialect::Datadog);
        let reader = Reader::new(shared, telemetry.listener("http".to_owned()), options, false);
        Arc::new(Status::new(&Config::default(), telemetry, prometheus, reader, 10))
    }

    fn samples(status: &Status) -> u64 {
        status.telemetry.listeners()[0].samples.get()
    }

    #[tokio::test]
    async fn what_comes_after_the_close_is_refused() {
        let status = status();
        let post = || {
            let from = ConnectInfo("[::ffff:10.0.0.7]:50".parse().unwrap());
            take_in(State(Arc::clone(&status)), from, Request::new(Body::from("a:1|c")))
        };
        assert_eq!(post().await.status(), StatusCode::OK);
        assert_eq!(samples(&status), 1);
        let senders = status.telemetry.senders.all();
        assert!(senders.iter().any(|one| one.label() == "10.0.0.7" && one.lines.get() == 1));
        status.close();
        assert_eq!(post().await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(samples(&status), 1);
    }

    #[test]
    fn who_asks_during_a_flush_gets_what_it_makes() {
        let status = status();
        status.next().show(&Batch { flushed_at: 10, ..Batch::default() });
        assert_eq!(status.last().flushed_at, 10);
        let next = status.next();
        assert!(status.last.try_lock().is_err());
        let asking = std::thread::spawn({
            let status = Arc::clone(&status);
            move || status.last().flushed_at
        });
        next.show(&Batch { flushed_at: 20, ..Batch::default() });
        assert_eq!(asking.join().unwrap(), 20);
        // A flush that panics leaves nothing behind, and holds nobody up.
        let panics = std::thread::spawn({
            let status = Arc::clone(&status);
            move || {
                let _next = status.next();
                panic!("a flush");
            }
        });
        assert!(panics.join().is_err());
        assert_eq!(status.last().flushed_at, 0);
    }

    #[tokio::test]
    async fn pages_are_written_away_from_the_control_threads() {
        let status = status();
        let (locked, is_locked) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let holder = std::thread::spawn({
            let status = Arc::clone(&status);
            move || {
                let _held = status.last.lock();
                locked.send(()).unwrap();
                released.recv_timeout(Duration::from_secs(5)).is_ok()
            }
        });
        is_locked.recv().unwrap();
        let query = Ok(axum::extract::Query(series::Query::default()));
        let page = tokio::spawn(api::series(State(Arc::clone(&status)), query));
        // This thread is the only one: were it to wait for the lock, nobody would release it.
        tokio::task::yield_now().await;
        let _ = release.send(());
        assert!(holder.join().unwrap(), "the request waited on the control thread");
        assert_eq!(page.await.unwrap().status(), StatusCode::OK);
        let page = exposition_page(State(Arc::clone(&status))).await;
        assert_eq!(page.headers()[header::CONTENT_TYPE], exposition::CONTENT_TYPE);
        let page = to_bytes(page.into_body(), 1 << 20).await.unwrap();
        assert!(page.starts_with(b"# HELP tallyd_listener_datagrams_total "));
        assert_eq!(status.pages.available_permits(), UNDER_WAY_MAX);
    }

    #[tokio::test]
    async fn who_cannot_spool_is_not_ready() {
        let status = status();
        let ready = || is_ready(State(Arc::clone(&status)));
        for expected in [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK] {
            assert_eq!(ready().await.status(), expected);
            assert_eq!(has_started(State(Arc::clone(&status))).await.status(), expected);
            status.begin();
        }
        let endpoint = status.telemetry.endpoint("datadog", "https://x".to_owned());
        assert_eq!(ready().await.status(), StatusCode::OK);
        endpoint.spool_failing.store(true, Ordering::Relaxed);
        assert_eq!(ready().await.status(), StatusCode::SERVICE_UNAVAILABLE);
        endpoint.spool_failing.store(false, Ordering::Relaxed);
        assert_eq!(ready().await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn one_request_too_many_is_refused() {
        let status = status();
        let router = everything(&Config::default(), &status);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        let begin = async || {
            let mut client = TcpStream::connect(address).await.unwrap();
            let head = "POST /dogstatsd/v2/proxy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                        Content-Length: 5\r\n\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            client
        };
        let end = async |mut client: TcpStream| {
            // The server may have closed the connection already.
            let _ = client.write_all(b"a:1|c").await;
            let mut answer = String::new();
            let _ = client.read_to_string(&mut answer).await;
            answer.lines().next().unwrap_or_default().to_owned()
        };
        let mut clients = Vec::new();
        for _ in 0..UNDER_WAY_MAX {
            clients.push(begin().await);
        }
        let all_are_under_way = async {
            while status.posts.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), all_are_under_way).await.unwrap();
        let mut answer = [0; 12];
        begin().await.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 503");
        for client in clients {
            assert_eq!(end(client).await, "HTTP/1.1 200 OK");
        }
        assert_eq!((samples(&status), status.posts.available_permits()), (16, UNDER_WAY_MAX));
    }
}
