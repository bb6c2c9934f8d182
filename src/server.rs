//! Starts threads and tasks, and stops them in order.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::batch::Batch;
use crate::config::Config;
use crate::flush::{Flush, Ticker};
use crate::intake::{self, Intake, Untouched};
use crate::reader::{Reader, Shared};
use crate::rules::Rules;
use crate::sample::Dialect;
use crate::shard::Shards;
use crate::sinks::deliver::Delivery;
use crate::sinks::{self, Sinks};
use crate::status::{self, Servers, Status};
use crate::sys;
use crate::telemetry::Telemetry;
use crate::time::Time;
use crate::value::Plan;

/// Threads of the control plane: sinks and pages need little.
const CONTROL_THREADS: usize = 2;

/// What requests under way get at the stop.
const PAGES_GRACE: Duration = Duration::from_millis(500);

/// A running tallyd.
pub struct Server {
    runtime: Runtime,
    intake: Intake,
    ticker: Ticker,
    flush: Arc<Flush>,
    outputs: Arc<Outputs>,
    servers: Servers,
    telemetry: Arc<Telemetry>,
    signalled: watch::Receiver<Option<&'static str>>,
    stdin_ended: watch::Receiver<bool>,
    flush_open_bucket: bool,
    stop_timeout: Duration,
}

/// Where a batch goes.
struct Outputs {
    deliveries: Mutex<Vec<Delivery>>,
    status: Arc<Status>,
}

impl Outputs {
    fn offer(&self, batch: Batch) {
        let batch = Arc::new(batch);
        for delivery in self.deliveries.lock().expect("no panic under this lock").iter() {
            delivery.offer(Arc::clone(&batch));
        }
        self.status.show(batch);
    }
}

impl Server {
    /// Opens everything and begins to take in samples.
    ///
    /// # Errors
    /// With the setting and the remedy, for whatever was asked for and cannot be had.
    pub fn start(config: &Config, untouched: Untouched) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(CONTROL_THREADS)
            .thread_name("control")
            .enable_all()
            .build()
            .context("cannot start the control plane's threads")?;
        let signalled = {
            let _runtime = runtime.enter();
            signals().context("cannot receive signals")?
        };
        let telemetry = Arc::new(Telemetry::default());
        let hostname = hostname(config);
        let rules = Arc::new(Rules::new(&config.rules, &hostname)?);
        let (plan, warnings) = Plan::from_config(&config.value);
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let aggregates = Arc::clone(&plan.aggregates);
        let now = Time::now();
        let interval = config.flush.interval;
        let shards = Shards::new(
            config.shard.clone(),
            plan,
            interval,
            hostname.clone(),
            Arc::clone(&telemetry),
            now,
        );
        let shards = Arc::new(shards);
        let shared = Shared {
            rules,
            shards: Arc::clone(&shards),
            telemetry: Arc::clone(&telemetry),
            distribution_prefix: config
                .value
                .histogram_copy_to_distribution
                .then(|| config.value.histogram_copy_to_distribution_prefix.clone()),
            log_rejects: config.intake.log_rejects,
            line_max: config.intake.buffer_size,
            spellings_max: config.shard.contexts_max.saturating_mul(2),
        };
        let sinks = Sinks::new(&config.sinks, &hostname)?;
        let opened = intake::open(&config.intake, untouched, &telemetry)?;
        let proxy = telemetry.listener("http".to_owned());
        let status = Arc::new(Status {
            telemetry: Arc::clone(&telemetry),
            prometheus: sinks.prometheus.clone(),
            last: Mutex::default(),
            proxy: Mutex::new(Reader::new(
                shared.clone(),
                proxy,
                config.intake.options(Dialect::Datadog),
                false,
            )),
        });
        let servers =
            runtime.block_on(status::start(&config.status, untouched, Arc::clone(&status)))?;
        let deliveries = {
            let _runtime = runtime.enter();
            sinks.start(&telemetry)
        };
        let outputs = Arc::new(Outputs { deliveries: Mutex::new(deliveries), status });

        let flush = Arc::new(Flush { shards, telemetry: Arc::clone(&telemetry), aggregates });
        let deliver = Arc::clone(&outputs);
        let ticker = Ticker::start(Arc::clone(&flush), move |batch| deliver.offer(batch))
            .context("cannot start the thread that flushes")?;
        let (ended, stdin_ended) = watch::channel(false);
        let stdin_ends = move || {
            ended.send_replace(true);
        };
        let intake = Intake::start(opened, &config.intake, &shared, stdin_ends)?;
        Ok(Self {
            runtime,
            intake,
            ticker,
            flush,
            outputs,
            servers,
            telemetry,
            signalled,
            stdin_ended,
            flush_open_bucket: config.flush.incomplete_buckets,
            stop_timeout: Duration::from_secs(config.sinks.stop_timeout),
        })
    }

    /// Where the pages are served, if they are.
    pub const fn address(&self) -> Option<SocketAddr> {
        self.servers.address
    }

    pub const fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// Waits until the process is told to stop by SIGTERM or SIGINT, or standard input ends.
    pub fn wait(&self) {
        let (mut signalled, mut stdin_ended) = (self.signalled.clone(), self.stdin_ended.clone());
        self.runtime.block_on(async move {
            tokio::select! {
                _ = signalled.wait_for(Option::is_some) => {}
                Ok(_) = stdin_ended.wait_for(|ended| *ended) => {}
            }
        });
        let cause = self.signalled.borrow().unwrap_or("end of standard input");
        tracing::info!("stopping: {cause}");
    }

    /// Takes what waits in the sockets, flushes, and lets the sinks deliver for a while.
    pub fn stop(self) {
        self.intake.stop();
        self.runtime.block_on(self.servers.stop(Instant::now() + PAGES_GRACE));
        self.ticker.stop();
        self.outputs.offer(self.flush.batch(Time::now(), self.flush_open_bucket));
        let deliveries =
            std::mem::take(&mut *self.outputs.deliveries.lock().expect("no panic under this lock"));
        self.runtime.block_on(async {
            let deadline = Instant::now() + self.stop_timeout;
            let mut stops = tokio::task::JoinSet::new();
            deliveries.into_iter().for_each(|delivery| drop(stops.spawn(delivery.stop(deadline))));
            stops.join_all().await;
        });
        // Whatever still hangs in a blocking call is left behind.
        self.runtime.shutdown_background();
        tracing::info!("stopped");
    }
}

/// Receives signals from now on, so that one that comes during the start ends in a proper stop as
/// well. Tells the first SIGTERM or SIGINT; a second one ends the process at once.
fn signals() -> std::io::Result<watch::Receiver<Option<&'static str>>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (told, signalled) = watch::channel(None);
    tokio::spawn(async move {
        let first = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        told.send_replace(Some(first));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::warn!("a second signal: ended without a last flush");
        std::process::exit(1);
    });
    Ok(signalled)
}

/// The host that series without one of their own get.
fn hostname(config: &Config) -> String {
    match config.origin.hostname.as_str() {
        _ if config.origin.no_hostname => String::new(),
        "" => sys::host_name().unwrap_or_default(),
        name => name.to_owned(),
    }
}

/// Starts, runs until told to stop, and stops.
///
/// # Errors
/// As [`Server::start`].
pub fn run(config: &Config, untouched: Untouched) -> anyhow::Result<()> {
    let server = Server::start(config, untouched)?;
    server.wait();
    server.stop();
    Ok(())
}

impl Sinks {
    /// Starts the delivery of every sink on the current runtime.
    fn start(self, telemetry: &Telemetry) -> Vec<Delivery> {
        if let Some(datadog) = self.datadog {
            tokio::spawn(sinks::datadog::watch_keys(datadog));
        }
        let start = |(sink, queue_bytes)| Delivery::start(sink, queue_bytes, telemetry);
        self.all.into_iter().map(start).collect()
    }
}
