//! Where batches go: one trait, one list, one delivery loop, one file per destination.

pub mod console;
pub mod datadog;
pub mod deliver;
pub mod dns;
pub mod http;
pub mod prometheus;
mod queue;
pub mod spool;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::telemetry::Telemetry;

pub use crate::encode::{Body, Coding, Encoded, Payload};
use console::Switch;

/// Where batches go. Several may be on at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds the sinks get to deliver what waits when tallyd stops.
    pub stop_timeout: u64,
    pub spool: spool::Config,
    pub console: console::Config,
    pub prometheus: prometheus::Config,
    pub datadog: datadog::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            stop_timeout: 2,
            spool: spool::Config::default(),
            console: console::Config::default(),
            prometheus: prometheus::Config::default(),
            datadog: datadog::Config::default(),
        }
    }
}

/// Bytes that may wait for a sink that only writes or keeps.
const LOCAL_QUEUE_BYTES: usize = 15 * 1024 * 1024;

/// The sinks that are on.
pub struct Sinks {
    /// Each with the bytes that may wait for one of its endpoints.
    pub all: Vec<(Arc<dyn Sink>, usize)>,
    /// The page, to be served.
    pub prometheus: Option<Arc<prometheus::Prometheus>>,
    /// The intake, whose keys are to be checked.
    pub datadog: Option<Arc<datadog::Datadog>>,
}

impl Sinks {
    /// # Errors
    /// One line that begins with the path of the setting that cannot be used.
    pub fn new(
        config: &Config,
        hostname: &str,
        telemetry: &Arc<Telemetry>,
    ) -> anyhow::Result<Self> {
        let mut sinks = Self { all: Vec::new(), prometheus: None, datadog: None };
        if config.datadog.enabled() {
            let datadog = Arc::new(datadog::Datadog::new(&config.datadog, hostname, telemetry)?);
            sinks.all.push((datadog.clone(), config.datadog.retry_queue_bytes));
            sinks.datadog = config.datadog.validate_key.then_some(datadog);
        }
        let console = match config.console.enabled {
            Switch::On => true,
            Switch::Off => false,
            Switch::Auto => sinks.all.is_empty(),
        };
        if console {
            let console =
                console::Console::new(&config.console, console::terminal_width(), hostname);
            sinks.all.push((Arc::new(console), LOCAL_QUEUE_BYTES));
        }
        if config.prometheus.enabled {
            let telemetry = Arc::clone(telemetry);
            let prometheus = prometheus::Prometheus::new(&config.prometheus, hostname, telemetry)?;
            let prometheus = Arc::new(prometheus);
            sinks.all.push((prometheus.clone(), LOCAL_QUEUE_BYTES));
            sinks.prometheus = Some(prometheus);
        }
        Ok(sinks)
    }
}

/// A destination. `encode` is pure; `send` is driven by [`deliver`], which queues, retries, drops
/// and counts for all sinks alike.
pub trait Sink: Send + Sync + 'static {
    /// The word in logs, metrics and configuration.
    fn name(&self) -> &'static str;

    /// The places each payload goes to, for logs and metrics: never with a key in it. Each has a
    /// queue of its own, so a dead one does not hold up the others.
    fn endpoints(&self) -> Vec<String>;

    /// Turns a batch into payloads: the same batch gives the same payloads.
    fn encode(&self, batch: &Arc<Batch>) -> Encoded;

    /// What its payloads need to wait on disk; none for a sink that only writes or keeps.
    fn durable(&self) -> Option<Durable> {
        None
    }

    /// Two payloads that hold what this one does, for a destination to which it is too large.
    fn split(&self, _: &Payload) -> Option<[Payload; 2]> {
        None
    }

    /// Sends one payload to one endpoint, by its index in [`Sink::endpoints`]. Must not block.
    fn send<'a>(&'a self, endpoint: usize, payload: &'a Payload) -> Sending<'a>;
}

/// How the payloads of a sink wait on disk.
pub struct Durable {
    /// All kinds of payload, those of other settings included.
    pub kinds: &'static [&'static str],
    /// The folder of each endpoint. It stays the same from version to version.
    pub folders: Vec<spool::Folder>,
}

/// A send under way.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>;

/// What a destination said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    /// Try again, not before the destination's own wish if it gave one.
    Retry {
        cause: String,
        after: Option<Duration>,
    },
    /// It will never be taken: drop and count.
    Refused {
        cause: String,
    },
    /// It will never be taken as a whole: split it, or drop and count.
    TooLarge {
        cause: String,
    },
}
