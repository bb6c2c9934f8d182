//! HTTP: health, metrics, series as JSON, and the endpoint that takes in lines.

pub mod series;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::batch::Batch;
use crate::encode::exposition::{self, Labels, Type};
use crate::intake::Untouched;
use crate::reader::Reader;
use crate::sinks::prometheus::Prometheus;
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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8127".to_owned(),
            health_listen: String::new(),
            trace_listen: String::new(),
            body_max: 5 * 1024 * 1024,
        }
    }
}

/// What the pages show.
pub struct Status {
    pub telemetry: Arc<Telemetry>,
    /// `None` when that sink is off.
    pub prometheus: Option<Arc<Prometheus>>,
    /// The last flush.
    pub last: Mutex<Arc<Batch>>,
    /// Takes in what is posted.
    pub proxy: Mutex<Reader>,
}

impl Status {
    /// Shows this batch from now on.
    pub fn show(&self, batch: Arc<Batch>) {
        *self.last.lock().expect("no panic under this lock") = batch;
    }

    fn last(&self) -> Arc<Batch> {
        Arc::clone(&self.last.lock().expect("no panic under this lock"))
    }

    /// The exposition page: the users' series, then tallyd's own.
    fn metrics(&self) -> String {
        let mut page = String::new();
        if let Some(prometheus) = &self.prometheus {
            prometheus.render(&mut page);
            let gauge = |page: &mut String, name, help, value: u64| {
                let sample = (Labels::new([]), value as f64);
                exposition::write_own(page, name, help, Type::Gauge, [sample]);
            };
            let help = "Series that did not fit on this page (sinks.prometheus.series_max).";
            gauge(&mut page, "tallyd_page_left_out", help, prometheus.left_out());
            let help = "Negative sums that could not be added to a counter of this page.";
            gauge(&mut page, "tallyd_page_negative_counts", help, prometheus.negative_counts());
        }
        let figures = self.telemetry.figures();
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
    servers.open("status.health_listen", &config.health_listen, health()).await?;
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
        self.tasks.push(tokio::spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stopped).await;
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
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/api/series", get(api_series))
        .with_state(Arc::clone(status))
        .merge(proxy(config, status))
        .merge(health())
}

/// The Agent's and Prometheus' names for the same thing: it is up, and its listeners are open.
/// Whether a backend answers is none of it.
fn health() -> Router {
    let names = ["/health", "/live", "/ready", "/startup", "/-/healthy", "/-/ready"];
    names
        .into_iter()
        .fold(Router::new(), |router, name| router.route(name, get(|| async { "ok\n" })))
}

fn proxy(config: &Config, status: &Arc<Status>) -> Router {
    Router::new()
        .route("/dogstatsd/v2/proxy", post(take_in))
        .layer(DefaultBodyLimit::max(config.body_max))
        .with_state(Arc::clone(status))
}

/// What a tracer posts: lines of DogStatsD, as the Agent's trace port takes them.
async fn take_in(State(status): State<Arc<Status>>, body: Bytes) -> Response {
    let taken = tokio::task::spawn_blocking(move || {
        let mut reader = status.proxy.lock().expect("no panic under this lock");
        reader.datagram(&body, false, Time::now());
    });
    match taken.await {
        Ok(()) => StatusCode::OK.into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn metrics(State(status): State<Arc<Status>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], status.metrics())
}

async fn api_series(
    State(status): State<Arc<Status>>,
    query: Result<Query<series::Query>, axum::extract::rejection::QueryRejection>,
) -> Response {
    match query {
        Ok(Query(query)) => axum::Json(series::document(&status.last(), &query)).into_response(),
        Err(error) => {
            let problem = format!("{error}; known are name, tag, limit\n");
            (StatusCode::BAD_REQUEST, problem).into_response()
        }
    }
}

async fn index() -> Html<&'static str> {
    Html(include_str!("index.html"))
}
