//! Starts threads and tasks, and stops them in order.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cgroup::roots::Roots;
use crate::collectors::{self, Collectors};
use crate::config::Config;
use crate::flush::own::OwnSeries;
use crate::flush::{Flush, Ticker};
use crate::intake::{self, Intake, Opened, Passed, Untouched};
use crate::journal::{Found, Journal, Keeper};
use crate::ledger::Ledger;
use crate::origin::{self, Directory, Origins, resolver};
use crate::profile::{self, Profile};
use crate::reader::{Reader, Shared};
use crate::replay;
use crate::rules::Rules;
use crate::sample::Dialect;
use crate::service;
use crate::shard::Shards;
use crate::sinks::deliver::{Delivery, Receipt, Spools};
use crate::sinks::{self, Sink, Sinks};
use crate::state::Folder;
use crate::status::{self, Servers, Status};
use crate::sys;
use crate::telemetry::Telemetry;
use crate::time::Time;
use crate::value::Plan;

/// Threads of the control plane: sinks and pages need little.
const CONTROL_THREADS: usize = 2;

/// Signals closer together than this are one wish to stop.
const SAME_SIGNAL: Duration = Duration::from_millis(300);

/// What requests under way get at the stop.
const PAGES_GRACE: Duration = Duration::from_millis(500);

/// What the reads of collectors get at the stop.
const COLLECTORS_GRACE: Duration = Duration::from_millis(500);

/// A running tallyd.
pub struct Server {
    runtime: Runtime,
    profiler: Option<profile::Thread>,
    intake: Intake,
    resolver: resolver::Running,
    ticker: Ticker,
    flush: Arc<Flush>,
    outputs: Arc<Outputs>,
    collectors: Collectors,
    servers: Servers,
    telemetry: Arc<Telemetry>,
    minutes: Option<Arc<Minutes>>,
    signalled: watch::Receiver<Option<&'static str>>,
    stdin_ended: watch::Receiver<bool>,
    flush_open_bucket: bool,
    stop_timeout: Duration,
    keeper: Option<Keeper>,
    /// Held until the end.
    _folders: Vec<Folder>,
}

/// Where a batch goes.
struct Outputs {
    deliveries: Mutex<Vec<Delivery>>,
    journal: Option<Arc<Journal>>,
    status: Arc<Status>,
    own: Mutex<OwnSeries>,
}

impl Outputs {
    /// Flushes as [`Flush::batch`] does.
    fn flush(&self, flush: &Flush, now: Time, open: bool) {
        if flush.telemetry.flushes.get() == 1 {
            // What only the first flush and its delivery used.
            sys::release_code();
        }
        let next = self.status.next();
        let mut batch = flush.batch(now, open);
        next.show(&batch);
        // The time of the bucket that was flushed last, open or closed.
        let bucket = Time::from_seconds(batch.flushed_at - 1).bucket(batch.interval);
        batch.own = self.own.lock().expect("no panic under this lock").rows(bucket, &batch);
        let batch = Arc::new(batch);
        let slip = |journal: &Arc<Journal>| journal.slip(batch.generations.clone());
        let receipt = Receipt::new(self.journal.as_ref().map(slip).unwrap_or_default());
        for delivery in self.deliveries.lock().expect("no panic under this lock").iter() {
            delivery.offer(Arc::clone(&batch), Arc::clone(&receipt));
        }
    }
}

impl Server {
    /// Opens everything and begins to take in samples.
    ///
    /// # Errors
    /// With the setting and the remedy, for whatever was asked for and cannot be had.
    pub fn start(config: &Config, untouched: Untouched, passed: Passed) -> anyhow::Result<Self> {
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
        telemetry.senders_shown.store(config.telemetry.senders, Ordering::Relaxed);
        let now = Time::now();
        let hostname = hostname(&config.origin)?;
        let rules = Arc::new(Rules::new(&config.rules, &hostname)?);
        let mut plan = Plan::from_config(&config.value);
        let (aggregates, blocklist) = (Arc::clone(&plan.aggregates), rules.blocklist());
        let interval = config.flush.interval;
        let sinks = Sinks::new(&config.sinks, &hostname, &telemetry)?;
        let folders = Folders::open(config, &sinks)?;
        let journal = folders.journal.as_ref().map(|folder| {
            Journal::open(
                folder,
                &config.journal,
                Arc::clone(&telemetry),
                Arc::new(|_| Ok(())),
                now,
            )
        });
        if let Some(keys) = journal.as_ref().and_then(|(_, found)| found.member_keys) {
            plan.member_keys = keys;
        }
        let shards = Shards::new(
            config.shard.clone(),
            plan,
            interval,
            hostname.clone(),
            Arc::clone(&telemetry),
            now,
        );
        let shards = Arc::new(shards);
        let directory = Arc::new(Directory::new(Arc::clone(&telemetry)));
        let mut origin = config.origin.clone();
        // Whoever sends by the loopback of a task belongs to it.
        origin.loopback |= config.collectors.ecs.address(|name| std::env::var(name).ok()).is_some();
        let origins =
            Arc::new(Origins::new(origin, Arc::clone(&directory), Arc::clone(&telemetry)));
        let own =
            OwnSeries::new(config.telemetry.clone(), Arc::clone(&rules), Arc::clone(&telemetry));
        let shared = Shared {
            rules,
            shards: Arc::clone(&shards),
            origins: Arc::clone(&origins),
            telemetry: Arc::clone(&telemetry),
            distribution_prefix: config
                .value
                .histogram_copy_to_distribution
                .then(|| config.value.histogram_copy_to_distribution_prefix.clone()),
            log_rejects: config.intake.log_rejects,
            line_max: config.intake.buffer_size,
            spellings_max: config.shard.contexts_max.saturating_mul(2),
            journal: journal.as_ref().map(|(journal, ..)| Arc::clone(journal)),
        };
        let mut replayed = false;
        let mut keeper = None;
        if let Some((journal, found)) = journal {
            replayed = !found.is_empty();
            let options = |dialect| config.intake.options(dialect);
            replay::replay(found, &journal, &shared, options, now);
            let started = Keeper::start(journal, Arc::clone(&shards), &config.journal);
            keeper = Some(started.context("cannot start the thread of the journal")?);
        } else {
            shards.begin(replay::first_generation(&Found::default(), interval, now));
        }
        let opened = intake::open(&config.intake, untouched, passed, &telemetry)?;
        let hint = hint(opened.iter().filter(|o| o.dialect == Dialect::Datadog));
        let proxy = telemetry.listener("http".to_owned());
        let options = config.intake.options(Dialect::Datadog);
        let proxy = Reader::new(shared.clone(), proxy, options, false);
        let profile = profile(config, &telemetry);
        let status = Status::new(
            &config.status,
            Arc::clone(&telemetry),
            sinks.prometheus.clone(),
            proxy,
            interval,
        );
        let status = Arc::new(status.with_profile(profile.clone()));
        let servers =
            runtime.block_on(status::start(&config.status, untouched, Arc::clone(&status)))?;
        announce(&sinks, servers.address, hint);
        let deliveries = {
            let _runtime = runtime.enter();
            let spools = folders.spool.as_ref().map(|root| Spools {
                root,
                config: &config.sinks.spool,
                gate: Arc::new(|_| Ok(())),
            });
            sinks.start(spools.as_ref(), &telemetry)
        };
        let outputs = Arc::new(Outputs {
            deliveries: Mutex::new(deliveries),
            journal: shared.journal.clone(),
            status,
            own: Mutex::new(own),
        });
        let minutes = config.telemetry.log.then(|| {
            let minutes = Arc::new(Minutes::begin(Arc::clone(&telemetry)));
            let period = Duration::from_secs(config.telemetry.log_period.into());
            runtime.spawn(Arc::clone(&minutes).run(period));
            minutes
        });

        let flush =
            Arc::new(Flush { shards, telemetry: Arc::clone(&telemetry), aggregates, blocklist });
        if replayed {
            outputs.flush(&flush, now, false);
        }
        let (tick, to) = (Arc::clone(&flush), Arc::clone(&outputs));
        let ticker = Ticker::start(interval, move |now| to.flush(&tick, now, false))
            .context("cannot start the thread that flushes")?;
        let (ended, stdin_ended) = watch::channel(false);
        let stdin_ends = move || {
            ended.send_replace(true);
        };
        let roots = config.collectors.roots(|name| std::env::var(name).ok());
        let resolver = resolver::start(origins, &roots, i64::from(interval) * 1000)
            .context("cannot start the thread that looks up senders")?;
        let intake = Intake::start(opened, &config.intake, &shared, stdin_ends)?;
        let collectors = {
            let _runtime = runtime.enter();
            start_collectors(config, shared, &roots, &hostname, &directory)?
        };
        let profiler = profile
            .map(|profile| profile::Thread::start(profile, config.logging.format))
            .transpose()
            .context("cannot start the thread of the profile")?;
        outputs.status.begin();
        Ok(Self {
            runtime,
            profiler,
            intake,
            resolver,
            ticker,
            flush,
            outputs,
            collectors,
            servers,
            telemetry,
            minutes,
            signalled,
            stdin_ended,
            flush_open_bucket: config.flush.incomplete_buckets,
            stop_timeout: Duration::from_secs(config.sinks.stop_timeout),
            keeper,
            _folders: folders.held,
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
        tracing::info!("ready");
        service::ready();
        self.runtime.spawn(service::feed_watchdog(self.ticker.pulse()));
        sys::release_code();
        let (mut signalled, mut stdin_ended) = (self.signalled.clone(), self.stdin_ended.clone());
        self.runtime.block_on(async move {
            tokio::select! {
                _ = signalled.wait_for(Option::is_some) => {}
                Ok(_) = stdin_ended.wait_for(|ended| *ended) => {}
            }
        });
        let cause = self.signalled.borrow().unwrap_or("end of standard input");
        tracing::info!("stopping: {cause}");
        service::stopping();
    }

    /// Takes what waits in the sockets, flushes, and lets the sinks deliver for a while.
    pub fn stop(self) {
        self.intake.stop();
        self.resolver.stop();
        self.runtime.block_on(self.servers.stop(Instant::now() + PAGES_GRACE));
        // A post that is still under way is refused rather than left out of the last flush.
        self.outputs.status.close();
        self.runtime.block_on(self.collectors.stop(COLLECTORS_GRACE));
        self.ticker.stop();
        self.outputs.flush(&self.flush, Time::now(), self.flush_open_bucket);
        let deliveries =
            std::mem::take(&mut *self.outputs.deliveries.lock().expect("no panic under this lock"));
        self.runtime.block_on(async {
            let deadline = Instant::now() + self.stop_timeout;
            let mut stops = tokio::task::JoinSet::new();
            deliveries.into_iter().for_each(|delivery| drop(stops.spawn(delivery.stop(deadline))));
            stops.join_all().await;
        });
        if let Some(profiler) = self.profiler {
            profiler.stop();
        }
        if let Some(keeper) = self.keeper {
            keeper.stop();
        }
        // What the stop itself has delivered or lost is told as well.
        if let Some(minutes) = self.minutes {
            minutes.say();
        }
        // Whatever still hangs in a blocking call is left behind.
        self.runtime.shutdown_background();
        tracing::info!("stopped");
    }
}

/// Receives signals from now on, so that one that comes during the start ends in a proper stop as
/// well. Tells the first SIGTERM or SIGINT; a second one ends the process at once. A SIGHUP, which
/// others take for a wish to read their settings again, is answered in the log.
fn signals() -> std::io::Result<watch::Receiver<Option<&'static str>>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP is ignored: settings are read at the start only");
        }
    });
    let (told, signalled) = watch::channel(None);
    tokio::spawn(async move {
        let first = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        told.send_replace(Some(first));
        // Whoever signals a process and its group means it once.
        let meant_once = tokio::time::sleep(SAME_SIGNAL);
        tokio::pin!(meant_once);
        loop {
            tokio::select! {
                _ = terminate.recv() => if meant_once.is_elapsed() { break },
                _ = interrupt.recv() => if meant_once.is_elapsed() { break },
                () = &mut meant_once, if !meant_once.is_elapsed() => {}
            }
        }
        tracing::warn!("a second signal: ended without a last flush");
        std::process::exit(1);
    });
    Ok(signalled)
}

/// Says in the log where points go, and what a newcomer may try. Endpoints never hold a key.
fn announce(sinks: &Sinks, pages: Option<SocketAddr>, hint: Option<String>) {
    let place = |sink: &dyn Sink| match (sink.name(), pages) {
        ("prometheus", Some(address)) => format!("prometheus page at http://{address}/metrics"),
        ("prometheus", None) => "prometheus page, which status.listen does not serve".to_owned(),
        ("console", _) => "console".to_owned(),
        (name, _) => format!("{name} {}", sink.endpoints().join(" and ")),
    };
    let places: Vec<String> = sinks.all.iter().map(|(sink, _)| place(&**sink)).collect();
    if places.is_empty() {
        tracing::warn!("no sink is on, nothing is delivered: see sinks");
    } else {
        tracing::info!("delivering to {}", places.join(", "));
    }
    if let Some(hint) = hint.filter(|_| sinks.all.iter().any(|(sink, _)| sink.name() == "console"))
    {
        tracing::info!("no samples yet? try: {hint}");
    }
}

/// A command that sends a sample to the first of these listeners that it can reach.
fn hint<'a>(listeners: impl Iterator<Item = &'a Opened>) -> Option<String> {
    let mut reachable = listeners.filter_map(|opened| destination(&opened.listener.name));
    let to = reachable.next()?;
    let usual = intake::Config::default();
    let to = if to == format!("udp://{}:{}", usual.bind_host, usual.port) {
        String::new()
    } else {
        format!(" --to {to}")
    };
    Some(format!("tallyd send gauge queue.depth 12 -t env:dev{to}"))
}

/// Where to send what a listener of this name is to get, if `tallyd send` can.
fn destination(listener: &str) -> Option<String> {
    if let Some(address) = listener.strip_prefix("udp://") {
        let mut address: SocketAddr = address.parse().ok()?;
        if address.ip().is_unspecified() {
            // A socket for all addresses takes IPv4 as well.
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        return Some(format!("udp://{address}"));
    }
    listener.starts_with("unixgram://").then(|| listener.to_owned())
}

/// The folders that outlive this process.
#[derive(Default)]
struct Folders {
    held: Vec<Folder>,
    spool: Option<PathBuf>,
    journal: Option<PathBuf>,
}

impl Folders {
    /// Opens those that there is use for: without a sink that sends, only what was asked for.
    fn open(config: &Config, sinks: &Sinks) -> anyhow::Result<Self> {
        let mut folders = Self::default();
        let durable = sinks.all.iter().any(|(sink, _)| sink.durable().is_some());
        let spool = config.sinks.spool.enabled && durable;
        let journal = config.journal.enabled && (durable || !config.state.run_path.is_empty());
        if spool && !config.sinks.spool.path.is_empty() {
            let path = PathBuf::from(&config.sinks.spool.path);
            folders.held.push(Folder::claim(&path).context("sinks.spool.path")?);
            folders.spool = Some(path);
        }
        if (spool && folders.spool.is_none() || journal)
            && let Some(folder) = Folder::open(&config.state, |name| std::env::var(name).ok())?
        {
            if spool && folders.spool.is_none() {
                folders.spool = Some(folder.path().join("spool"));
            }
            folders.journal = journal.then(|| folder.path().join("journal"));
            folders.held.push(folder);
        }
        if let Some(spool) = &folders.spool {
            tracing::info!("payloads are kept in {} until they are delivered", spool.display());
        }
        match &folders.journal {
            Some(journal) => {
                tracing::info!(
                    "what is read is kept in {} until every sink has it safe",
                    journal.display()
                );
            }
            None => tracing::info!("no journal: a crash loses what was not flushed"),
        }
        Ok(folders)
    }
}

/// Says each minute in the log what was read, delivered and lost.
struct Minutes {
    telemetry: Arc<Telemetry>,
    /// What was said already.
    before: Mutex<Ledger>,
}

impl Minutes {
    fn begin(telemetry: Arc<Telemetry>) -> Self {
        Self { telemetry, before: Mutex::default() }
    }

    async fn run(self: Arc<Self>, period: Duration) {
        loop {
            tokio::time::sleep(period).await;
            self.say();
        }
    }

    /// Says what has happened since the last time.
    fn say(&self) {
        let ledger = Ledger::of(&self.telemetry, Time::now());
        let before = &mut *self.before.lock().expect("no panic under this lock");
        if let Some(line) = ledger.since(before) {
            tracing::info!("ledger: {line}");
        }
        *before = ledger;
    }
}

/// The profile of the process itself. What cannot be had is not worth a failed start.
fn profile(config: &Config, telemetry: &Arc<Telemetry>) -> Option<Arc<Profile>> {
    if !config.self_profile.enabled {
        return None;
    }
    Profile::start(&config.self_profile, Arc::clone(telemetry))
        .inspect_err(|error| tracing::info!("going on without self_profile: {error}"))
        .ok()
}

/// The host that series without one of their own get.
fn hostname(config: &origin::Config) -> anyhow::Result<String> {
    if config.no_hostname {
        return Ok(String::new());
    }
    if !config.hostname.is_empty() {
        return Ok(config.hostname.clone());
    }
    match config.hostname_from_file()? {
        Some(name) => Ok(name),
        None => Ok(sys::host_name().unwrap_or_default()),
    }
}

/// Starts the collectors on the current runtime.
fn start_collectors(
    config: &Config,
    shared: Shared,
    roots: &Roots,
    hostname: &str,
    directory: &Arc<Directory>,
) -> anyhow::Result<Collectors> {
    let telemetry = Arc::clone(&shared.telemetry);
    collectors::ask_orchestrators(&config.collectors, directory, &telemetry)?;
    let around = collectors::Surroundings {
        roots,
        flush: config.flush.interval,
        hostname,
        directory,
        telemetry: &telemetry,
    };
    let planned = collectors::all(&config.collectors, &around)?;
    if planned.is_empty() {
        return Ok(Collectors::default());
    }
    let listener = telemetry.listener("collectors".to_owned());
    let options = config.intake.options(Dialect::Datadog);
    Ok(Collectors::start(planned, Reader::new(shared, listener, options, false), &telemetry))
}

/// Starts, runs until told to stop, and stops.
///
/// # Errors
/// As [`Server::start`].
pub fn run(config: &Config, untouched: Untouched, passed: Passed) -> anyhow::Result<()> {
    let server = Server::start(config, untouched, passed)?;
    server.wait();
    server.stop();
    Ok(())
}

impl Sinks {
    /// Starts the delivery of every sink on the current runtime.
    fn start(self, spools: Option<&Spools<'_>>, telemetry: &Telemetry) -> Vec<Delivery> {
        if let Some(datadog) = self.datadog {
            tokio::spawn(sinks::datadog::watch_keys(datadog));
        }
        let start = |(sink, queue_bytes)| Delivery::start(sink, queue_bytes, spools, telemetry);
        self.all.into_iter().map(start).collect()
    }
}
