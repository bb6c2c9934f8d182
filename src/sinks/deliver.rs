//! The delivery loop that all sinks share: encode, spool, send, try again, drop, count.
//!
//! ```text
//! Batch --offer--> [encode task of the sink] --payloads--> [queue of an endpoint] --> [send task]
//!                                                  |             ^
//!                                                  +--> spool ---+
//! ```
//!
//! Each sink has a task of its own and each of its endpoints another, so a slow or dead one delays
//! nobody else.
//!
//! With a spool every payload goes to disk first, is read from there, sent, and then removed; what
//! waits costs no memory. While the disk fails, and for sinks without a spool, payloads wait in
//! memory, bounded in bytes per endpoint; beyond that the oldest is dropped.
//!
//! **Fresh first.** The payloads of the last flushes are sent oldest first, so the points of a
//! series keep their order. What an outage leaves behind becomes the backlog: it is sent only while
//! nothing fresh waits, at a bounded rate, newest first; one that fails comes last. So charts are
//! complete up to now at once and fill up backwards, and what is lost if the spool overflows
//! meanwhile is the oldest. Points carry their times, so the intake does not mind the order of the
//! backlog.
//!
//! An endpoint holds the points of a batch from the moment it is offered, and then those of its
//! payloads in memory; those on disk are spooled; until each is counted as delivered or as dropped
//! for a cause.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use super::queue::{Item, Queue};
use super::spool::{self, Spool};
use super::{Encoded, Payload, Sink, Verdict};
use crate::batch::Batch;
use crate::fail;
use crate::journal::Slip;
use crate::telemetry::Telemetry;
use crate::time::Time;

/// Batches that may wait to be encoded, of any size.
const BATCHES: usize = 4;

/// More may wait as long as they come to no more points than this, and are no more than that: small
/// ones outlast a disk or a machine that stands still for minutes.
const POINTS_MAX: u64 = 100_000;
const BATCHES_MAX: usize = 256;

/// Waits between two tries, in seconds: base and cap are those of the Agent's forwarder.
const BACKOFF_BASE: f64 = 2.0;
const BACKOFF_MAX: f64 = 64.0;

/// No wait is shorter, whatever chance or the destination says.
const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// Errors that count for the wait, and those that a success makes up for.
const ERRORS_MAX: u32 = 6;
const ERRORS_RECOVERED: u32 = 2;

/// Refusals of one kind that come closer together than this are one state, said once.
const REFUSALS_APART: Duration = Duration::from_secs(60);

/// Travels with a batch, and with those of its payloads that are in memory only. Once all clones
/// are dropped, each payload is in the spool of its endpoint, or was delivered, or was dropped and
/// counted: whoever could make the batch anew need not keep what it takes.
pub type Receipt = Arc<Slip>;

/// Gives a number in 0..1 at each call.
pub type Random = Arc<dyn Fn() -> f64 + std::marker::Send + Sync>;

/// The running delivery of one sink.
pub struct Delivery {
    name: &'static str,
    batches: mpsc::Sender<(Arc<Batch>, Receipt)>,
    queues: Vec<Arc<Queue>>,
    unencoded: Arc<Unencoded>,
    /// Points dropped since the sink became too slow.
    lost: AtomicU64,
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Batches that are not in the queues yet.
#[derive(Default)]
struct Unencoded {
    points: AtomicU64,
    /// Held while a batch goes into the queues, which goes on though its task is aborted. True once
    /// all is settled: no batch goes there any more.
    settled: Mutex<bool>,
}

/// Where spools lie, and how they work.
pub struct Spools<'a> {
    pub root: &'a Path,
    pub config: &'a spool::Config,
    pub gate: spool::Gate,
}

impl Delivery {
    /// Starts the tasks of a sink on the current runtime. `queue_bytes` bounds what waits in memory
    /// for each endpoint.
    pub fn start(
        sink: Arc<dyn Sink>,
        queue_bytes: usize,
        spools: Option<&Spools<'_>>,
        telemetry: &Telemetry,
    ) -> Self {
        Self::start_with(sink, queue_bytes, spools, telemetry, &(Arc::new(random) as Random))
    }

    /// The same with a source of chance of one's own, for the waits between tries.
    pub fn start_with(
        sink: Arc<dyn Sink>,
        queue_bytes: usize,
        spools: Option<&Spools<'_>>,
        telemetry: &Telemetry,
        random: &Random,
    ) -> Self {
        let (batches, received) = mpsc::channel(BATCHES_MAX);
        let (stopping, _) = watch::channel(false);
        let queues = queues(&*sink, queue_bytes, spools, telemetry);
        let mut tasks = Vec::new();
        for (number, queue) in queues.iter().enumerate() {
            let send = Send::new(Arc::clone(&sink), number, Arc::clone(queue), Arc::clone(random));
            tasks.push(tokio::spawn(send.run(stopping.subscribe())));
        }
        let (name, unencoded) = (sink.name(), Arc::default());
        tasks.push(tokio::spawn(encode(sink, received, queues.clone(), Arc::clone(&unencoded))));
        Self { name, batches, queues, unencoded, lost: AtomicU64::new(0), stopping, tasks }
    }

    /// Hands a batch over without waiting. A sink that is too slow to take it loses it, counted.
    pub fn offer(&self, batch: Arc<Batch>, receipt: Receipt) {
        let points = batch.points();
        let waiting = self.batches.max_capacity() - self.batches.capacity();
        let is_too_much = self.unencoded.points.load(Relaxed) + points > POINTS_MAX;
        if waiting >= BATCHES && is_too_much {
            return self.lose(points);
        }
        let Ok(room) = self.batches.try_reserve() else { return self.lose(points) };
        self.unencoded.points.fetch_add(points, Relaxed);
        for queue in &self.queues {
            queue.endpoint.held.fetch_add(points, Relaxed);
        }
        room.send((batch, receipt));
        let lost = self.lost.swap(0, Relaxed);
        if lost > 0 {
            tracing::info!("sink {}: keeps up again; {lost} points were dropped", self.name);
        }
    }

    fn lose(&self, points: u64) {
        for queue in &self.queues {
            queue.endpoint.offered.add(points);
            queue.endpoint.queue_full.add(points);
        }
        if self.lost.fetch_add(points, Relaxed) == 0 && points > 0 {
            tracing::warn!("sink {}: too slow; batches are dropped until it keeps up", self.name);
        }
    }

    /// Lets the sink send what waits until `deadline`. The rest stays in the spool, or is put there
    /// now; what cannot be is dropped and counted.
    pub async fn stop(self, deadline: Instant) {
        drop(self.batches);
        // Once the encode task has ended, the send tasks end as soon as nothing fresh waits.
        self.stopping.send_replace(true);
        for mut task in self.tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                // It must not count what is counted as dropped below.
                task.abort();
                let _ = task.await;
            }
        }
        let (queues, unencoded) = (self.queues, self.unencoded);
        let settled = spawn_blocking(move || {
            *unencoded.settled.lock().expect("no panic under this lock") = true;
            let points = unencoded.points.load(Relaxed);
            queues.iter().for_each(|queue| queue.settle(points));
        });
        // A disk that hangs holds up no stop for long.
        let _ = tokio::time::timeout_at(deadline.max(Instant::now() + STOP_GRACE), settled).await;
    }
}

/// What writing to the spool at the stop gets, at least.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// A queue for each endpoint of a sink.
fn queues(
    sink: &dyn Sink,
    queue_bytes: usize,
    spools: Option<&Spools<'_>>,
    telemetry: &Telemetry,
) -> Vec<Arc<Queue>> {
    let names = sink.endpoints();
    let shares = names.len();
    let spools = spools.zip(sink.durable());
    let queue = |(number, name): (usize, String)| {
        let endpoint = telemetry.endpoint(sink.name(), name);
        let spool = spools.as_ref().map(|(spools, durable)| {
            let Spools { root, config, gate } = spools;
            let (folder, kinds) = (&durable.folders[number], durable.kinds);
            let endpoint = Arc::clone(&endpoint);
            Spool::open(root, config, shares, folder, kinds, endpoint, Arc::clone(gate))
        });
        let rate = spools.as_ref().map_or(f64::INFINITY, |(spools, _)| spools.config.backlog_rate);
        Arc::new(Queue::new(endpoint, queue_bytes, spool, rate))
    };
    let queues: Vec<_> = names.into_iter().enumerate().map(queue).collect();
    if let Some((spools, _)) = spools {
        let known = queues.iter().filter_map(|queue| queue.spool.as_ref());
        spool::warn_of_strangers(&spools.root.join(sink.name()), &known.collect::<Vec<_>>());
    }
    queues
}

async fn encode(
    sink: Arc<dyn Sink>,
    mut batches: mpsc::Receiver<(Arc<Batch>, Receipt)>,
    queues: Vec<Arc<Queue>>,
    unencoded: Arc<Unencoded>,
) {
    while let Some((batch, receipt)) = batches.recv().await {
        let (points, time) = (batch.points(), batch.flushed_at);
        let first = batch.first;
        let encoder = Arc::clone(&sink);
        let begun = Instant::now();
        // A large batch takes long to encode and compress.
        let encoded = spawn_blocking(move || encoder.encode(&batch)).await;
        let took = begun.elapsed();
        queues.iter().for_each(|queue| queue.endpoint.encode.record(took, Time::now()));
        if encoded.is_err() {
            tracing::error!("sink {}: the encoder failed; {points} points lost", sink.name());
        }
        let (queues, unencoded) = (queues.clone(), Arc::clone(&unencoded));
        let shared = spawn_blocking(move || {
            let settled = unencoded.settled.lock().expect("no panic under this lock");
            if *settled {
                return;
            }
            match encoded {
                Ok(encoded) => share(encoded, (time, first), &queues, &receipt),
                Err(_) => queues.iter().for_each(|queue| {
                    queue.endpoint.offered.add(points);
                    queue.endpoint.encoder_failed.add(points);
                }),
            }
            for queue in &queues {
                queue.endpoint.held.fetch_sub(points, Relaxed);
            }
            unencoded.points.fetch_sub(points, Relaxed);
        });
        shared.await.expect("no panic in here");
    }
    for queue in &queues {
        queue.close();
    }
}

/// Puts the payloads into every queue.
fn share(
    encoded: Encoded,
    (time, first): (i64, Option<Time>),
    queues: &[Arc<Queue>],
    receipt: &Receipt,
) {
    let payloads: Vec<_> = encoded.payloads.into_iter().map(Arc::new).collect();
    let points: u64 = payloads.iter().map(|payload| payload.points).sum();
    for queue in queues {
        queue.endpoint.offered.add(points + encoded.dropped);
        queue.endpoint.too_large.add(encoded.dropped);
        queue.retire(payloads.len());
        if let Some(first) = first {
            queue.note_arrival(time, first);
        }
        for payload in &payloads {
            queue.push(Arc::clone(payload), time, receipt);
        }
    }
}

/// Sends the payloads of one endpoint, one after another.
struct Send {
    sink: Arc<dyn Sink>,
    number: usize,
    queue: Arc<Queue>,
    /// Since when, and for how many tries, the endpoint has been failing.
    failing: Option<(Instant, u32)>,
    /// Recent errors: what the next wait depends on.
    errors: u32,
    /// The same of the backlog alone.
    backlog_errors: u32,
    refusals: Refusals,
    random: Random,
}

impl Send {
    fn new(sink: Arc<dyn Sink>, number: usize, queue: Arc<Queue>, random: Random) -> Self {
        Self {
            sink,
            number,
            queue,
            failing: None,
            errors: 0,
            backlog_errors: 0,
            refusals: Refusals::default(),
            random,
        }
    }

    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        while let Some((item, fresh)) = self.queue.next().await {
            let Some(payload) = self.queue.load(&item).await else { continue };
            let begun = Instant::now();
            fail::point("spool.send");
            let verdict = self.sink.send(self.number, &payload).await;
            self.queue.endpoint.send.record(begun.elapsed(), Time::now());
            let Some(wait) = self.take(verdict, &payload, item, fresh).await else { continue };
            // The stop cuts a wait short for one more try. After that there is no time to wait:
            // what is left is settled.
            if *stopping.borrow() || stopping.has_changed().is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        }
    }

    /// Counts what became of a payload. Returns how long to wait before the next try.
    async fn take(
        &mut self,
        verdict: Verdict,
        payload: &Arc<Payload>,
        item: Item,
        fresh: bool,
    ) -> Option<Duration> {
        let queue = Arc::clone(&self.queue);
        match verdict {
            Verdict::Delivered => {
                if !fresh {
                    self.backlog_errors = self.backlog_errors.saturating_sub(ERRORS_RECOVERED);
                }
                self.delivered(payload);
                let now = Time::now();
                let age = now.seconds().saturating_sub(item.time()).max(0);
                queue.endpoint.age.record(Duration::from_secs(age as u64), now);
                if let Some(first) = queue.arrival(item.time()) {
                    let whole = now.0.saturating_sub(first.0).max(0) as u64;
                    queue.endpoint.ingest.record(Duration::from_millis(whole), now);
                }
                queue.done(item).await;
                None
            }
            Verdict::Refused { cause } => {
                self.refused(payload, &cause);
                queue.done(item).await;
                None
            }
            Verdict::TooLarge { cause } => {
                let (sink, whole) = (Arc::clone(&self.sink), Arc::clone(payload));
                let halves = spawn_blocking(move || sink.split(&whole)).await.ok().flatten();
                let Some(halves) = halves else {
                    self.refused(payload, &cause);
                    queue.done(item).await;
                    return None;
                };
                self.recovered();
                if !queue.replace(halves).await {
                    self.rest_backlog(None);
                }
                None
            }
            Verdict::Retry { after, .. } if !fresh => {
                // It may be only this payload: what is fresh does not wait for it.
                self.count_retry(payload);
                queue.put_back(item, fresh);
                self.rest_backlog(after);
                None
            }
            Verdict::Retry { cause, after } => {
                self.count_retry(payload);
                let wait = self.retry(&cause, after);
                queue.put_back(item, fresh);
                Some(wait)
            }
        }
    }

    /// What could not be done for a payload of the backlog is not tried again at once.
    fn rest_backlog(&mut self, after: Option<Duration>) {
        self.backlog_errors = ERRORS_MAX.min(self.backlog_errors + 1);
        self.queue.rest(wait(after, self.backlog_errors, (self.random)()));
    }

    fn delivered(&mut self, payload: &Payload) {
        let endpoint = &self.queue.endpoint;
        endpoint.delivered.add(payload.points);
        endpoint.delivered_payloads.add(1);
        endpoint.delivered_bytes.add(payload.bytes() as u64);
        let kind = payload.kind;
        if let Some(lost) = self.refusals.delivered(kind, Instant::now()) {
            tracing::info!(
                "sink {}: {} takes {kind} again; it refused {lost} points",
                endpoint.sink,
                endpoint.name
            );
        }
        self.recovered();
    }

    fn refused(&mut self, payload: &Payload, cause: &str) {
        let endpoint = &self.queue.endpoint;
        let Payload { kind, points, .. } = *payload;
        endpoint.refused.add(points);
        if self.refusals.refused(kind, points, Instant::now()) {
            tracing::warn!(
                "sink {}: {} refuses {kind}: {cause}; {points} points dropped, and all that it \
                 refuses from now on",
                endpoint.sink,
                endpoint.name
            );
        }
        self.recovered();
    }

    fn count_retry(&self, payload: &Payload) {
        self.queue.endpoint.retries.add(1);
        self.queue.endpoint.retried.add(payload.points);
    }

    /// How long to wait before the next try.
    fn retry(&mut self, cause: &str, after: Option<Duration>) -> Duration {
        let endpoint = &self.queue.endpoint;
        let (since, tries) = self.failing.unwrap_or_else(|| (Instant::now(), 0));
        if tries == 0 {
            let place = match &self.queue.spool {
                Some(_) => "on disk".to_owned(),
                None => format!("in memory (up to {} MiB)", self.queue.bytes_max >> 20),
            };
            tracing::warn!(
                "sink {}: {} fails: {cause}; points wait {place} and are tried again",
                endpoint.sink,
                endpoint.name
            );
        }
        self.failing = Some((since, tries + 1));
        self.errors = ERRORS_MAX.min(self.errors + 1);
        wait(after, self.errors, (self.random)())
    }

    /// The endpoint answered, if only with a refusal.
    fn recovered(&mut self) {
        self.errors = self.errors.saturating_sub(ERRORS_RECOVERED);
        if let Some((since, tries)) = self.failing.take() {
            let endpoint = &self.queue.endpoint;
            tracing::info!(
                "sink {}: {} answers again after {} s and {tries} failed tries; {} payloads wait",
                endpoint.sink,
                endpoint.name,
                since.elapsed().as_secs(),
                self.queue.len()
            );
        }
    }
}

/// What an endpoint refuses now, by kind of payload: the points so far and the time of the last.
#[derive(Default)]
struct Refusals(BTreeMap<&'static str, (u64, Instant)>);

impl Refusals {
    /// Whether this is the first one.
    fn refused(&mut self, kind: &'static str, points: u64, now: Instant) -> bool {
        let first = !self.0.contains_key(kind);
        let (sum, last) = self.0.entry(kind).or_insert((0, now));
        (*sum, *last) = (*sum + points, now);
        first
    }

    /// The points refused, when that is over: often only some payloads of a kind are refused.
    fn delivered(&mut self, kind: &str, now: Instant) -> Option<u64> {
        let (_, last) = self.0.get(kind)?;
        let over = now.duration_since(*last) >= REFUSALS_APART;
        over.then(|| self.0.remove(kind)).flatten().map(|(points, _)| points)
    }
}

/// The wait before the next try: the destination's wish, or by chance.
fn wait(after: Option<Duration>, errors: u32, chance: f64) -> Duration {
    after.unwrap_or_else(|| backoff(errors, chance)).max(BACKOFF_MIN)
}

/// The wait after so many errors: by chance, which lies in 0..1, anything up to `2 * 2^errors`
/// seconds. Those who failed together come back spread over all that time.
fn backoff(errors: u32, chance: f64) -> Duration {
    let longest = BACKOFF_BASE * BACKOFF_BASE.powi(errors as i32);
    Duration::from_secs_f64(longest.min(BACKOFF_MAX) * chance)
}

/// A number in 0..1 that differs from process to process and call to call.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::super::queue::FRESH_MAX;
    use super::super::spool::Folder;
    use super::super::{Body, Durable, Encoded, Sending};
    use super::*;
    use crate::batch::ServiceCheck;
    use crate::encode::Coding;
    use crate::sample::Status;
    use crate::telemetry::Endpoint;

    /// Answers by a script, one verdict a send; then delivers.
    struct Scripted {
        endpoints: usize,
        script: Vec<Verdict>,
        sent: AtomicUsize,
        size: usize,
    }

    impl Sink for Scripted {
        fn name(&self) -> &'static str {
            "scripted"
        }

        fn endpoints(&self) -> Vec<String> {
            (0..self.endpoints).map(|n| format!("endpoint {n}")).collect()
        }

        fn encode(&self, batch: &Arc<Batch>) -> Encoded {
            let (points, body) = (batch.points(), Body::Bytes(vec![0; self.size]));
            let payload = Payload { kind: "checks", points, coding: Coding::Identity, body };
            Encoded { payloads: vec![payload], dropped: 0 }
        }

        fn send<'a>(&'a self, endpoint: usize, _: &'a Payload) -> Sending<'a> {
            Box::pin(async move {
                if endpoint > 0 {
                    return std::future::pending().await;
                }
                let number = self.sent.fetch_add(1, Relaxed);
                self.script.get(number).cloned().unwrap_or(Verdict::Delivered)
            })
        }
    }

    fn batch(points: usize) -> Arc<Batch> {
        let check = ServiceCheck {
            name: "c".to_owned(),
            status: Status::Ok,
            timestamp: 1,
            host: String::new(),
            message: String::new(),
            tags: Vec::new(),
        };
        Arc::new(Batch { checks: vec![check; points].into(), ..Batch::default() })
    }

    fn retry() -> Verdict {
        Verdict::Retry { cause: "no".to_owned(), after: None }
    }

    async fn settle(endpoint: &Endpoint, done: impl Fn(&Endpoint) -> bool) {
        // Time is virtual: this waits for the tasks, not for the clock.
        for _ in 0..10_000 {
            if done(endpoint) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not settled: {endpoint:?}");
    }

    fn start(
        script: Vec<Verdict>,
        endpoints: usize,
        size: usize,
        queue: usize,
    ) -> (Delivery, Telemetry) {
        let telemetry = Telemetry::default();
        let sink = Scripted { endpoints, script, sent: AtomicUsize::new(0), size };
        (Delivery::start_with(Arc::new(sink), queue, None, &telemetry, &always(0.5)), telemetry)
    }

    /// Chance that is none.
    fn always(chance: f64) -> Random {
        Arc::new(move || chance)
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_tried_again_and_a_refusal_is_not() {
        let refused = Verdict::Refused { cause: "413".to_owned() };
        let (delivery, telemetry) =
            start(vec![retry(), retry(), Verdict::Delivered, refused], 1, 1, 1000);
        delivery.offer(batch(3), Receipt::default());
        delivery.offer(batch(5), Receipt::default());
        let endpoint = &telemetry.endpoints()[0];
        let begun = Instant::now();
        settle(endpoint, |e| e.held.load(Relaxed) == 0 && e.refused.get() > 0).await;
        let waited = begun.elapsed().as_secs_f64();
        assert!((6.0..6.5).contains(&waited), "half of 4 s and of 8 s, not {waited}");
        assert_eq!(endpoint.offered.get(), 8);
        assert_eq!(
            (endpoint.delivered.get(), endpoint.refused.get(), endpoint.retries.get()),
            (3, 5, 2)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_destinations_own_wish_is_heeded() {
        let wish =
            Verdict::Retry { cause: "429".to_owned(), after: Some(Duration::from_secs(100)) };
        let (delivery, telemetry) = start(vec![wish], 1, 1, 1000);
        let begun = Instant::now();
        delivery.offer(batch(1), Receipt::default());
        settle(&telemetry.endpoints()[0], |e| e.delivered.get() == 1).await;
        assert!((100.0..101.0).contains(&begun.elapsed().as_secs_f64()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_endpoint_does_not_hold_up_another_and_keeps_the_newest() {
        let (delivery, telemetry) = start(Vec::new(), 2, 10, 35);
        let endpoints = telemetry.endpoints();
        for points in 1..=8 {
            delivery.offer(batch(points), Receipt::default());
            settle(&endpoints[0], |e| e.delivered.get() == (1..=points as u64).sum::<u64>()).await;
        }
        // One is being sent for ever, three fit into the queue, four were dropped.
        settle(&endpoints[1], |e| e.queue_full.get() == 2 + 3 + 4 + 5).await;
        assert_eq!(endpoints[1].held.load(Relaxed), 1 + 6 + 7 + 8);

        delivery.stop(Instant::now() + Duration::from_secs(2)).await;
        assert_eq!(endpoints[1].stopped.get(), 1 + 6 + 7 + 8);
        assert_eq!(endpoints[1].held.load(Relaxed), 0);
        assert_eq!(endpoints[0].stopped.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_stop_delivers_what_waits() {
        let (delivery, telemetry) = start(Vec::new(), 1, 1, 1000);
        delivery.offer(batch(4), Receipt::default());
        delivery.stop(Instant::now() + Duration::from_secs(2)).await;
        assert_eq!(telemetry.endpoints()[0].delivered.get(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_stop_cuts_a_wait_short_for_one_more_try() {
        let (delivery, telemetry) = start(vec![retry()], 1, 1, 1000);
        let endpoint = &telemetry.endpoints()[0];
        delivery.offer(batch(3), Receipt::default());
        settle(endpoint, |e| e.retries.get() == 1).await;
        delivery.offer(batch(5), Receipt::default());
        delivery.stop(Instant::now() + Duration::from_secs(1)).await;
        assert_eq!((endpoint.delivered.get(), endpoint.stopped.get()), (8, 0));

        let (delivery, telemetry) = start(vec![retry(); 100], 1, 1, 1000);
        let endpoint = &telemetry.endpoints()[0];
        delivery.offer(batch(3), Receipt::default());
        settle(endpoint, |e| e.retries.get() == 1).await;
        let begun = Instant::now();
        delivery.stop(begun + Duration::from_secs(1)).await;
        assert_eq!((endpoint.retries.get(), endpoint.stopped.get()), (2, 3));
        assert_eq!(begun.elapsed(), Duration::ZERO, "it does not wait for the deadline");
    }

    /// Encodes nothing, in its own way.
    struct Encoder<F>(F);

    impl<F: Fn() + Sync + std::marker::Send + 'static> Sink for Encoder<F> {
        fn name(&self) -> &'static str {
            "encoder"
        }

        fn endpoints(&self) -> Vec<String> {
            vec!["endpoint".to_owned()]
        }

        fn encode(&self, _: &Arc<Batch>) -> Encoded {
            (self.0)();
            Encoded::default()
        }

        fn send<'a>(&'a self, _: usize, _: &'a Payload) -> Sending<'a> {
            Box::pin(std::future::pending())
        }
    }

    /// A sink whose encoder is held up until the sender is dropped.
    fn start_held_up() -> (Delivery, Telemetry, std::sync::mpsc::Sender<()>) {
        let (release, held_up) = std::sync::mpsc::channel();
        let held_up = Mutex::new(held_up);
        let encoder = Encoder(move || drop(held_up.lock().map(|held_up| held_up.recv())));
        let telemetry = Telemetry::default();
        let delivery = Delivery::start(Arc::new(encoder), 1000, None, &telemetry);
        (delivery, telemetry, release)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_encoded_at_the_deadline_is_counted() {
        let (delivery, telemetry, _release) = start_held_up();
        let endpoint = &telemetry.endpoints()[0];
        const LARGE: u64 = POINTS_MAX / 4;
        for _ in 0..8 {
            delivery.offer(batch(LARGE as usize), Receipt::default());
            tokio::task::yield_now().await;
        }
        // One is being encoded for ever, four wait, three were dropped.
        let figures = (endpoint.held.load(Relaxed), endpoint.queue_full.get());
        assert_eq!(figures, (5 * LARGE, 3 * LARGE));
        delivery.stop(Instant::now()).await;
        assert_eq!((endpoint.offered.get(), endpoint.stopped.get()), (8 * LARGE, 5 * LARGE));
        assert_eq!(endpoint.held.load(Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn small_batches_outlast_an_encoder_that_is_held_up() {
        let (delivery, telemetry, release) = start_held_up();
        let endpoint = &telemetry.endpoints()[0];
        for _ in 0..BATCHES_MAX + 3 {
            delivery.offer(batch(3), Receipt::default());
            tokio::task::yield_now().await;
        }
        // One is being encoded, so many wait.
        let all = 3 * (BATCHES_MAX as u64 + 1);
        assert_eq!((endpoint.held.load(Relaxed), endpoint.queue_full.get()), (all, 6));
        drop(release);
        settle(endpoint, |e| e.held.load(Relaxed) == 0).await;
        assert_eq!(endpoint.queue_full.get(), 6, "nothing else was dropped");
        delivery.stop(Instant::now()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_breaks_the_encoder_is_counted() {
        let telemetry = Telemetry::default();
        let encoder = Encoder(|| std::panic::resume_unwind(Box::new("broken")));
        let delivery = Delivery::start(Arc::new(encoder), 1000, None, &telemetry);
        let endpoint = &telemetry.endpoints()[0];
        delivery.offer(batch(4), Receipt::default());
        settle(endpoint, |e| e.held.load(Relaxed) == 0).await;
        assert_eq!((endpoint.offered.get(), endpoint.encoder_failed.get()), (4, 4));
        delivery.stop(Instant::now()).await;
        assert_eq!((endpoint.offered.get(), endpoint.stopped.get()), (4, 0));
    }

    #[test]
    fn refusals_are_said_once() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut refusals = Refusals::default();
        assert_eq!(refusals.delivered("series", at(0)), None);
        assert!(refusals.refused("series", 3, at(0)));
        assert!(refusals.refused("empty", 0, at(5)), "another kind has a cause of its own");
        assert!(!refusals.refused("empty", 0, at(6)));
        assert_eq!(refusals.delivered("series", at(10)), None, "only some of them are refused");
        assert!(!refusals.refused("series", 4, at(50)));
        assert_eq!(refusals.delivered("series", at(109)), None);
        assert_eq!(refusals.delivered("series", at(110)), Some(7));
        assert_eq!(refusals.delivered("series", at(200)), None);
        assert!(refusals.refused("series", 1, at(201)));
    }

    #[tokio::test(start_paused = true)]
    async fn errors_are_forgiven_two_at_a_time() {
        let mut script = vec![retry(); 4];
        script.extend([Verdict::Delivered, retry()]);
        let (delivery, telemetry) = start(script, 1, 1, 1000);
        delivery.offer(batch(1), Receipt::default());
        delivery.offer(batch(1), Receipt::default());
        let endpoint = &telemetry.endpoints()[0];
        settle(endpoint, |e| e.delivered.get() == 1).await;
        let begun = Instant::now();
        settle(endpoint, |e| e.delivered.get() == 2).await;
        let waited = begun.elapsed().as_secs_f64();
        assert!((7.8..8.3).contains(&waited), "half of 16 s after three errors, not {waited}");
    }

    #[test]
    fn backoff_grows_to_a_bound() {
        let longest = [1, 2, 3, 4, 5, ERRORS_MAX].map(|n| backoff(n, 1.0).as_secs_f64());
        assert_eq!(longest, [4.0, 8.0, 16.0, 32.0, 64.0, 64.0]);
        assert_eq!(backoff(5, 0.25), Duration::from_secs(16), "even");
        assert_eq!(backoff(5, 0.0), Duration::ZERO);
        let seconds = Duration::from_secs;
        for (after, chance, expected) in [
            (None, 0.5, seconds(32)),
            (None, 0.0, BACKOFF_MIN),
            (Some(0), 0.5, BACKOFF_MIN),
            (Some(7), 0.5, seconds(7)),
            (Some(3600), 0.0, seconds(3600)),
        ] {
            assert_eq!(wait(after.map(seconds), ERRORS_MAX, chance), expected);
        }
    }

    #[test]
    fn chance_is_spread_over_its_range() {
        let mut parts = [0; 10];
        (0..10_000).for_each(|_| parts[(random() * 10.0) as usize] += 1);
        // Each is 1000 with a deviation of 30.
        assert!(parts.iter().all(|part| (800..1200).contains(part)), "{parts:?}");
    }

    /// Tries in each of ten minutes of an outage, while a batch comes every 10 s.
    async fn tries_by_minute(verdict: Verdict, chance: f64, durable: bool) -> Vec<u64> {
        let (telemetry, root) = (Telemetry::default(), tempfile::tempdir().unwrap());
        let config = spool::Config { max_disk_ratio: 1.0, ..spool::Config::default() };
        let spools = Spools { root: root.path(), config: &config, gate: Arc::new(|_| Ok(())) };
        let spools = durable.then_some(&spools);
        let sink = Arc::new(Failing { verdict, tries: AtomicUsize::new(0) });
        let dyn_sink = Arc::clone(&sink) as Arc<dyn Sink>;
        let delivery = Delivery::start_with(dyn_sink, 100_000, spools, &telemetry, &always(chance));
        let mut minutes = Vec::new();
        for _ in 0..10 {
            let before = sink.tries.load(Relaxed);
            for _ in 0..6 {
                delivery.offer(batch(1), Receipt::default());
                tokio::time::sleep(Duration::from_secs(10)).await;
            }
            minutes.push((sink.tries.load(Relaxed) - before) as u64);
        }
        minutes
    }

    /// Always says the same.
    struct Failing {
        verdict: Verdict,
        tries: AtomicUsize,
    }

    impl Sink for Failing {
        fn name(&self) -> &'static str {
            "failing"
        }

        fn endpoints(&self) -> Vec<String> {
            vec!["endpoint".to_owned()]
        }

        fn durable(&self) -> Option<Durable> {
            Some(Durable { kinds: &["checks"], folders: vec![Folder::new("e", b"key", "")] })
        }

        fn encode(&self, batch: &Arc<Batch>) -> Encoded {
            Encoded { payloads: vec![payload(batch.points())], dropped: 0 }
        }

        fn send<'a>(&'a self, _: usize, _: &'a Payload) -> Sending<'a> {
            self.tries.fetch_add(1, Relaxed);
            Box::pin(std::future::ready(self.verdict.clone()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retries_come_less_than_once_a_second() {
        let wish = |seconds| Verdict::Retry {
            cause: "429".to_owned(),
            after: Some(Duration::from_secs(seconds)),
        };
        for durable in [false, true] {
            for (verdict, chance, most) in [
                // Chance at its worst.
                (retry(), 0.0, 60),
                (wish(0), 0.5, 60),
                (retry(), 0.5, 3),
                (wish(20), 0.5, 3),
            ] {
                let tries = tries_by_minute(verdict.clone(), chance, durable).await;
                assert!(
                    tries[1..].iter().all(|tries| (1..=most).contains(tries)),
                    "{verdict:?} {durable}: {tries:?}"
                );
            }
        }
    }

    /// Takes what comes and remembers it; durable.
    struct Keeper {
        fails: AtomicBool,
        too_large: u64,
        /// Payloads of so many points always fail.
        poison: u64,
        got: Mutex<Vec<u64>>,
    }

    impl Sink for Keeper {
        fn name(&self) -> &'static str {
            "keeper"
        }

        fn endpoints(&self) -> Vec<String> {
            vec!["endpoint".to_owned()]
        }

        fn durable(&self) -> Option<Durable> {
            Some(Durable { kinds: &["checks"], folders: vec![Folder::new("e", b"key", "")] })
        }

        fn encode(&self, batch: &Arc<Batch>) -> Encoded {
            Encoded { payloads: vec![payload(batch.points())], dropped: 0 }
        }

        fn split(&self, whole: &Payload) -> Option<[Payload; 2]> {
            let half = whole.points / 2;
            (half > 0).then(|| [payload(half), payload(whole.points - half)])
        }

        fn send<'a>(&'a self, _: usize, payload: &'a Payload) -> Sending<'a> {
            Box::pin(async move {
                if self.fails.load(Relaxed) || payload.points == self.poison {
                    return retry();
                }
                if payload.points > self.too_large {
                    return Verdict::TooLarge { cause: "413".to_owned() };
                }
                self.got.lock().unwrap().push(payload.points);
                Verdict::Delivered
            })
        }
    }

    fn payload(points: u64) -> Payload {
        let body = Body::Bytes(vec![0; 100]);
        Payload { kind: "checks", points, coding: Coding::Identity, body }
    }

    fn keeper(fails: bool, too_large: u64) -> Arc<Keeper> {
        let (fails, got) = (AtomicBool::new(fails), Mutex::default());
        Arc::new(Keeper { fails, too_large, poison: 7, got })
    }

    fn spooling(
        sink: &Arc<Keeper>,
        root: &Path,
        broken: &Arc<AtomicBool>,
        queue_bytes: usize,
    ) -> (Delivery, Arc<Endpoint>) {
        let broken = Arc::clone(broken);
        let gate: spool::Gate = Arc::new(move |_| match broken.load(Relaxed) {
            true => Err(std::io::Error::from_raw_os_error(libc::ENOSPC)),
            false => Ok(()),
        });
        spooling_by(sink, root, gate, queue_bytes)
    }

    fn spooling_by(
        sink: &Arc<Keeper>,
        root: &Path,
        gate: spool::Gate,
        queue_bytes: usize,
    ) -> (Delivery, Arc<Endpoint>) {
        let telemetry = Telemetry::default();
        let config = spool::Config { max_disk_ratio: 1.0, ..spool::Config::default() };
        let spools = Spools { root, config: &config, gate };
        let sink = Arc::clone(sink) as Arc<dyn Sink>;
        let spools = Some(&spools);
        let delivery = Delivery::start_with(sink, queue_bytes, spools, &telemetry, &always(0.5));
        (delivery, Arc::clone(&telemetry.endpoints()[0]))
    }

    fn spooled(endpoint: &Endpoint) -> u64 {
        endpoint.spooled.points.load(Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_goes_to_disk_and_comes_back_fresh_first() {
        let (root, broken) = (tempfile::tempdir().unwrap(), Arc::default());
        let sink = keeper(true, 1000);
        let (delivery, endpoint) = spooling(&sink, root.path(), &broken, 1);
        let payloads = FRESH_MAX as u64 + 20;
        for points in 101..=100 + payloads {
            let receipt = Receipt::default();
            let pending = Arc::downgrade(&receipt);
            delivery.offer(batch(points as usize), receipt);
            settle(&endpoint, |e| spooled(e) == (101..=points).sum::<u64>()).await;
            settle(&endpoint, |_| pending.strong_count() == 0).await;
        }
        assert_eq!(endpoint.held.load(Relaxed), 0);
        sink.fails.store(false, Relaxed);
        settle(&endpoint, |e| spooled(e) == 0).await;
        // In order what was fresh, then back in time.
        let got = sink.got.lock().unwrap().clone();
        assert_eq!(got[..FRESH_MAX], (121..=100 + payloads).collect::<Vec<_>>());
        assert_eq!(got[FRESH_MAX..], (101..=120).rev().collect::<Vec<_>>());
        assert_eq!(endpoint.delivered.get(), (101..=100 + payloads).sum::<u64>());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_always_fails_does_not_hold_up_the_backlog() {
        let (root, broken) = (tempfile::tempdir().unwrap(), Arc::default());
        let (delivery, endpoint) = spooling(&keeper(true, 1000), root.path(), &broken, 1);
        let points = [1, 2, 7, 3, 4];
        for (n, &points) in points.iter().enumerate() {
            delivery.offer(batch(points), Receipt::default());
            settle(&endpoint, |e| e.spooled.payloads.load(Relaxed) == n as u64 + 1).await;
        }
        delivery.stop(Instant::now()).await;

        let sink = keeper(false, 1000);
        let (delivery, endpoint) = spooling(&sink, root.path(), &broken, 1);
        settle(&endpoint, |e| e.retries.get() == 3).await;
        assert_eq!(*sink.got.lock().unwrap(), [4, 3, 2, 1]);
        delivery.stop(Instant::now()).await;
        assert_eq!(spooled(&endpoint), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn the_backlog_is_paced_and_fresh_data_does_not_wait_for_it() {
        let (root, broken) = (tempfile::tempdir().unwrap(), Arc::default());
        let (delivery, endpoint) = spooling(&keeper(true, 1000), root.path(), &broken, 1);
        for n in 1..=30 {
            delivery.offer(batch(1), Receipt::default());
            settle(&endpoint, |e| spooled(e) == n).await;
        }
        delivery.stop(Instant::now()).await;
        assert_eq!((endpoint.stopped.get(), spooled(&endpoint)), (0, 30));

        let sink = keeper(false, 1000);
        let begun = Instant::now();
        let (delivery, endpoint) = spooling(&sink, root.path(), &broken, 1);
        assert_eq!((endpoint.found.get(), spooled(&endpoint)), (30, 30));
        settle(&endpoint, |e| e.delivered.get() > 3).await;
        delivery.offer(batch(500), Receipt::default());
        settle(&endpoint, |e| e.delivered.get() >= 500).await;
        assert!(sink.got.lock().unwrap().len() < 15, "it overtakes the backlog");
        settle(&endpoint, |e| spooled(e) == 0).await;
        let took = begun.elapsed().as_secs_f64();
        assert!((2.8..4.0).contains(&took), "30 payloads at 10 a second, not in {took} s");
        assert_eq!(endpoint.delivered.get(), 530);
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_disk_fails_payloads_wait_in_memory_and_the_stop_tries_again() {
        let root = tempfile::tempdir().unwrap();
        let broken = Arc::new(AtomicBool::new(true));
        let sink = keeper(true, 1000);
        let (delivery, endpoint) = spooling(&sink, root.path(), &broken, 250);
        let receipts: Vec<Receipt> = (0..3).map(|_| Receipt::default()).collect();
        for (n, receipt) in receipts.iter().enumerate() {
            delivery.offer(batch(n + 1), Arc::clone(receipt));
            settle(&endpoint, |e| e.offered.get() == (1..=n as u64 + 1).sum::<u64>()).await;
        }
        settle(&endpoint, |e| e.queue_full.get() + e.held.load(Relaxed) == 6).await;
        let pending = receipts.iter().filter(|receipt| Arc::strong_count(receipt) > 1).count();
        assert_eq!((pending, spooled(&endpoint)), (2, 0), "two fit, the oldest does not");
        broken.store(false, Relaxed);
        delivery.offer(batch(10), Receipt::default());
        settle(&endpoint, |e| spooled(e) == 10).await;
        delivery.stop(Instant::now() + Duration::from_secs(1)).await;
        assert_eq!((spooled(&endpoint), endpoint.stopped.get()), (15, 0));
        assert!(receipts.iter().all(|receipt| Arc::strong_count(receipt) == 1));
    }

    /// Cannot take one kind.
    struct Picky;

    impl Sink for Picky {
        fn name(&self) -> &'static str {
            "picky"
        }

        fn endpoints(&self) -> Vec<String> {
            vec!["endpoint".to_owned()]
        }

        fn encode(&self, _: &Arc<Batch>) -> Encoded {
            let payloads = vec![Payload { kind: "bad", ..payload(1) }, payload(1)];
            Encoded { payloads, dropped: 0 }
        }

        fn send<'a>(&'a self, _: usize, payload: &'a Payload) -> Sending<'a> {
            let verdict = if payload.kind == "bad" { retry() } else { Verdict::Delivered };
            Box::pin(std::future::ready(verdict))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_fails_does_not_hold_up_another() {
        let telemetry = Telemetry::default();
        let delivery = Delivery::start(Arc::new(Picky), 10_000, None, &telemetry);
        let endpoint = &telemetry.endpoints()[0];
        let begun = Instant::now();
        for flush in 1..=20 {
            delivery.offer(batch(2), Receipt::default());
            settle(endpoint, |e| e.delivered.get() == flush).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(20 * 20), "{:?}", begun.elapsed());
        assert_eq!(endpoint.held.load(Relaxed), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_large_is_split_until_it_fits() {
        let (root, broken) = (tempfile::tempdir().unwrap(), Arc::default());
        let sink = keeper(false, 2);
        let (delivery, endpoint) = spooling(&sink, root.path(), &broken, 1);
        delivery.offer(batch(6), Receipt::default());
        settle(&endpoint, |e| e.delivered.get() == 6).await;
        assert_eq!(*sink.got.lock().unwrap(), [1, 2, 1, 2]);
        assert_eq!((spooled(&endpoint), endpoint.held.load(Relaxed)), (0, 0));

        let (delivery, endpoint) = spooling(&keeper(false, 0), root.path(), &broken, 1);
        delivery.offer(batch(3), Receipt::default());
        settle(&endpoint, |e| e.refused.get() == 3).await;
        assert_eq!((spooled(&endpoint), endpoint.held.load(Relaxed)), (0, 0));
    }

    /// Hangs once at this operation when told to, and says so, until the sender is dropped.
    struct Hanging {
        gate: spool::Gate,
        armed: Arc<AtomicBool>,
        hangs: Arc<tokio::sync::Notify>,
        release: std::sync::mpsc::Sender<()>,
    }

    fn hanging(at: spool::Op) -> Hanging {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let released = Mutex::new(released);
        let (armed, hangs) = (Arc::<AtomicBool>::default(), Arc::<tokio::sync::Notify>::default());
        let (arm, hang) = (Arc::clone(&armed), Arc::clone(&hangs));
        let gate: spool::Gate = Arc::new(move |op| {
            if op == at && arm.swap(false, Relaxed) {
                hang.notify_one();
                let _ = released.lock().unwrap().recv();
            }
            Ok(())
        });
        Hanging { gate, armed, hangs, release }
    }

    /// Stops while a file operation hangs, which goes on after that.
    async fn stop_while_hanging(sink: &Arc<Keeper>, root: &Path, at: spool::Op) -> Arc<Endpoint> {
        let Hanging { gate, armed, hangs, release } = hanging(at);
        sink.fails.store(true, Relaxed);
        let (delivery, endpoint) = spooling_by(sink, root, gate, 1);
        delivery.offer(batch(6), Receipt::default());
        settle(&endpoint, |e| e.retries.get() == 1).await;
        armed.store(true, Relaxed);
        sink.fails.store(false, Relaxed);
        // Virtual time stands still from then on.
        hangs.notified().await;
        let stop = tokio::spawn(delivery.stop(Instant::now()));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        drop(release);
        stop.await.unwrap();
        endpoint
    }

    #[tokio::test(start_paused = true)]
    async fn a_split_that_the_stop_cuts_short_is_sent_once() {
        let (root, broken) = (tempfile::tempdir().unwrap(), Arc::default());
        let sink = keeper(false, 3);
        for at in [spool::Op::Create, spool::Op::Rename, spool::Op::Remove] {
            let endpoint = stop_while_hanging(&sink, root.path(), at).await;
            assert_eq!((spooled(&endpoint), endpoint.held.load(Relaxed)), (6, 0), "{at:?}");
            let (delivery, endpoint) = spooling(&sink, root.path(), &broken, 1);
            settle(&endpoint, |e| e.delivered.get() == 6 && spooled(e) == 0).await;
            delivery.stop(Instant::now()).await;
            let got = std::mem::take(&mut *sink.got.lock().unwrap());
            assert_eq!(got, [3, 3], "{at:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_delivered_at_the_stop_does_not_stay_on_disk() {
        let (root, broken) = (tempfile::tempdir().unwrap(), Arc::default());
        let sink = keeper(false, 10);
        let endpoint = stop_while_hanging(&sink, root.path(), spool::Op::Remove).await;
        assert_eq!((endpoint.delivered.get(), spooled(&endpoint)), (6, 0));
        let (_, endpoint) = spooling(&sink, root.path(), &broken, 1);
        assert_eq!((endpoint.found.get(), spooled(&endpoint)), (0, 0));
        assert_eq!(*sink.got.lock().unwrap(), [6]);
    }
}
