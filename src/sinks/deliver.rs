//! The delivery loop that all sinks share: encode, queue, send, try again, drop, count.
//!
//! ```text
//! Batch --offer--> [encode task of the sink] --payloads--> [queue of an endpoint] --> [send task]
//! ```
//!
//! Each sink has a task of its own and each of its endpoints another, so a slow or dead one delays
//! nobody else. What waits is bounded in bytes per endpoint; beyond it the oldest is dropped.
//!
//! An endpoint holds the points of a batch from the moment it is offered, and then those of its
//! payloads, until each is counted as delivered or as dropped for a cause.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Encoded, Payload, Sink, Verdict};
use crate::batch::Batch;
use crate::telemetry::{Endpoint, Telemetry};

/// Batches that may wait to be encoded.
const BATCHES: usize = 4;

/// Waits between two tries, in seconds: those of the Agent's forwarder.
const BACKOFF_BASE: f64 = 2.0;
const BACKOFF_MAX: f64 = 64.0;

/// Errors that count for the wait, and those that a success makes up for.
const ERRORS_MAX: u32 = 6;
const ERRORS_RECOVERED: u32 = 2;

/// Refusals of one kind that come closer together than this are one state, said once.
const REFUSALS_APART: Duration = Duration::from_secs(60);

/// The running delivery of one sink.
pub struct Delivery {
    name: &'static str,
    batches: mpsc::Sender<Arc<Batch>>,
    queues: Vec<Arc<Queue>>,
    /// Points of batches that are not encoded yet.
    unencoded: Arc<AtomicU64>,
    /// Points dropped since the sink became too slow.
    lost: AtomicU64,
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Delivery {
    /// Starts the tasks of a sink on the current runtime. `queue_bytes` bounds what waits for each
    /// endpoint.
    pub fn start(sink: Arc<dyn Sink>, queue_bytes: usize, telemetry: &Telemetry) -> Self {
        let (batches, received) = mpsc::channel(BATCHES);
        let (stopping, _) = watch::channel(false);
        let queue = |name| Arc::new(Queue::new(telemetry.endpoint(sink.name(), name), queue_bytes));
        let queues: Vec<_> = sink.endpoints().into_iter().map(queue).collect();
        let mut tasks = Vec::new();
        for (number, queue) in queues.iter().enumerate() {
            let send = Send::new(Arc::clone(&sink), number, Arc::clone(queue));
            tasks.push(tokio::spawn(send.run(stopping.subscribe())));
        }
        let (name, unencoded) = (sink.name(), Arc::default());
        tasks.push(tokio::spawn(encode(sink, received, queues.clone(), Arc::clone(&unencoded))));
        Self { name, batches, queues, unencoded, lost: AtomicU64::new(0), stopping, tasks }
    }

    /// Hands a batch over without waiting. A sink that is too slow to take it loses it, counted.
    pub fn offer(&self, batch: Arc<Batch>) {
        let points = batch.points();
        let Ok(room) = self.batches.try_reserve() else { return self.lose(points) };
        self.unencoded.fetch_add(points, Relaxed);
        for queue in &self.queues {
            queue.endpoint.held.fetch_add(points, Relaxed);
        }
        room.send(batch);
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

    /// Lets the sink send what waits until `deadline`, then drops the rest and counts it.
    pub async fn stop(self, deadline: Instant) {
        drop(self.batches);
        // Once the encode task has ended, the send tasks end as soon as their queues are empty.
        self.stopping.send_replace(true);
        for mut task in self.tasks {
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                // It must not count what is counted as dropped below.
                task.abort();
                let _ = task.await;
            }
        }
        let unencoded = self.unencoded.load(Relaxed);
        for queue in self.queues {
            let endpoint = &queue.endpoint;
            endpoint.offered.add(unencoded);
            let points = queue.clear();
            if points > 0 {
                endpoint.stopped.add(points);
                tracing::warn!(
                    "sink {}: stopped with {points} points undelivered to {}",
                    self.name,
                    endpoint.name
                );
            }
        }
    }
}

async fn encode(
    sink: Arc<dyn Sink>,
    mut batches: mpsc::Receiver<Arc<Batch>>,
    queues: Vec<Arc<Queue>>,
    unencoded: Arc<AtomicU64>,
) {
    while let Some(batch) = batches.recv().await {
        let points = batch.points();
        let encoder = Arc::clone(&sink);
        // A large batch takes long to encode and compress.
        let encoded = tokio::task::spawn_blocking(move || encoder.encode(&batch)).await;
        match encoded {
            Ok(encoded) => share(encoded, &queues),
            Err(_) => {
                tracing::error!("sink {}: the encoder failed; {points} points lost", sink.name());
                for queue in &queues {
                    queue.endpoint.offered.add(points);
                    queue.endpoint.encoder_failed.add(points);
                }
            }
        }
        for queue in &queues {
            queue.endpoint.held.fetch_sub(points, Relaxed);
        }
        unencoded.fetch_sub(points, Relaxed);
    }
    for queue in &queues {
        queue.close();
    }
}

/// Puts the payloads into every queue.
fn share(encoded: Encoded, queues: &[Arc<Queue>]) {
    let payloads: Vec<_> = encoded.payloads.into_iter().map(Arc::new).collect();
    let points: u64 = payloads.iter().map(|payload| payload.points).sum();
    for queue in queues {
        queue.endpoint.offered.add(points + encoded.dropped);
        queue.endpoint.too_large.add(encoded.dropped);
        for payload in &payloads {
            queue.push(Arc::clone(payload));
        }
    }
}

/// Payloads that wait for one endpoint, oldest first.
struct Queue {
    endpoint: Arc<Endpoint>,
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    payloads: VecDeque<Arc<Payload>>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    fn new(endpoint: Arc<Endpoint>, bytes_max: usize) -> Self {
        Self { endpoint, bytes_max, waiting: Mutex::default(), changed: Notify::new() }
    }

    fn push(&self, payload: Arc<Payload>) {
        let mut waiting = self.waiting.lock().expect("no panic under this lock");
        waiting.bytes += payload.bytes();
        self.endpoint.held.fetch_add(payload.points, Relaxed);
        waiting.payloads.push_back(payload);
        while waiting.bytes > self.bytes_max && waiting.payloads.len() > 1 {
            if let Some(oldest) = waiting.pop() {
                self.endpoint.held.fetch_sub(oldest.points, Relaxed);
                self.endpoint.queue_full.add(oldest.points);
            }
        }
        drop(waiting);
        self.changed.notify_one();
    }

    /// Waits for a payload, or `None` when there will be no more.
    async fn next(&self) -> Option<Arc<Payload>> {
        loop {
            {
                let mut waiting = self.waiting.lock().expect("no panic under this lock");
                if let Some(payload) = waiting.pop() {
                    return Some(payload);
                }
                if waiting.closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Puts a payload that could not be sent back to where it was.
    fn put_back(&self, payload: Arc<Payload>) {
        let mut waiting = self.waiting.lock().expect("no panic under this lock");
        if waiting.bytes + payload.bytes() > self.bytes_max && !waiting.payloads.is_empty() {
            self.endpoint.held.fetch_sub(payload.points, Relaxed);
            self.endpoint.queue_full.add(payload.points);
            return;
        }
        waiting.bytes += payload.bytes();
        waiting.payloads.push_front(payload);
    }

    fn close(&self) {
        self.waiting.lock().expect("no panic under this lock").closed = true;
        self.changed.notify_one();
    }

    /// Drops everything and returns the number of points held, the one being sent included.
    fn clear(&self) -> u64 {
        let mut waiting = self.waiting.lock().expect("no panic under this lock");
        waiting.payloads.clear();
        waiting.bytes = 0;
        self.endpoint.held.swap(0, Relaxed)
    }

    fn len(&self) -> usize {
        self.waiting.lock().expect("no panic under this lock").payloads.len()
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Arc<Payload>> {
        let payload = self.payloads.pop_front()?;
        self.bytes -= payload.bytes();
        Some(payload)
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
    refusals: Refusals,
}

impl Send {
    fn new(sink: Arc<dyn Sink>, number: usize, queue: Arc<Queue>) -> Self {
        Self { sink, number, queue, failing: None, errors: 0, refusals: Refusals::default() }
    }

    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        while let Some(payload) = self.queue.next().await {
            let verdict = self.sink.send(self.number, &payload).await;
            let Some(wait) = self.take(verdict, payload) else { continue };
            // The stop cuts a wait short for one more try. After that there is no time to wait:
            // what is left is dropped and counted.
            if *stopping.borrow() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        }
    }

    /// Counts what became of a payload. Returns how long to wait before the next try.
    fn take(&mut self, verdict: Verdict, payload: Arc<Payload>) -> Option<Duration> {
        let endpoint = &self.queue.endpoint;
        let (sink, name) = (endpoint.sink, &endpoint.name);
        let Payload { kind, points, .. } = *payload;
        match verdict {
            Verdict::Delivered => {
                endpoint.delivered.add(points);
                endpoint.held.fetch_sub(points, Relaxed);
                if let Some(lost) = self.refusals.delivered(kind, Instant::now()) {
                    tracing::info!(
                        "sink {sink}: {name} takes {kind} again; it refused {lost} points"
                    );
                }
                self.recovered();
                None
            }
            Verdict::Refused { cause } => {
                endpoint.refused.add(points);
                endpoint.held.fetch_sub(points, Relaxed);
                if self.refusals.refused(kind, points, Instant::now()) {
                    tracing::warn!(
                        "sink {sink}: {name} refuses {kind}: {cause}; {points} points dropped, and \
                         all that it refuses from now on"
                    );
                }
                self.recovered();
                None
            }
            Verdict::Retry { cause, after } => {
                endpoint.retries.add(1);
                let (since, tries) = self.failing.unwrap_or_else(|| (Instant::now(), 0));
                if tries == 0 {
                    tracing::warn!(
                        "sink {sink}: {name} fails: {cause}; points wait in memory (up to {} MiB) \
                         and are tried again",
                        self.queue.bytes_max >> 20
                    );
                }
                self.failing = Some((since, tries + 1));
                self.errors = ERRORS_MAX.min(self.errors + 1);
                self.queue.put_back(payload);
                Some(after.unwrap_or_else(|| backoff(self.errors, random())))
            }
        }
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

/// The wait after so many errors: evenly spread over the upper half of `2 * 2^errors` seconds, or
/// the longest one exactly. `spread` lies in 0..1.
fn backoff(errors: u32, spread: f64) -> Duration {
    let longest = BACKOFF_BASE * BACKOFF_BASE.powi(errors as i32);
    Duration::from_secs_f64(if longest > BACKOFF_MAX {
        BACKOFF_MAX
    } else {
        longest.mul_add(spread, longest) / 2.0
    })
}

/// A number in 0..1 that differs from process to process and call to call.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::super::{Body, Encoded, Sending};
    use super::*;
    use crate::batch::ServiceCheck;
    use crate::sample::Status;

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
            let body = Body::Bytes(vec![0; self.size]);
            Encoded {
                payloads: vec![Payload { kind: "checks", points: batch.points(), body }],
                dropped: 0,
            }
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
        Arc::new(Batch { checks: vec![check; points], ..Batch::default() })
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
        (Delivery::start(Arc::new(sink), queue, &telemetry), telemetry)
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_tried_again_and_a_refusal_is_not() {
        let refused = Verdict::Refused { cause: "413".to_owned() };
        let (delivery, telemetry) =
            start(vec![retry(), retry(), Verdict::Delivered, refused], 1, 1, 1000);
        delivery.offer(batch(3));
        delivery.offer(batch(5));
        let endpoint = &telemetry.endpoints()[0];
        let begun = Instant::now();
        settle(endpoint, |e| e.held.load(Relaxed) == 0 && e.refused.get() > 0).await;
        let waited = begun.elapsed().as_secs_f64();
        assert!((6.0..12.5).contains(&waited), "2 to 4 s and 4 to 8 s, not {waited}");
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
        delivery.offer(batch(1));
        settle(&telemetry.endpoints()[0], |e| e.delivered.get() == 1).await;
        assert!((100.0..101.0).contains(&begun.elapsed().as_secs_f64()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_endpoint_does_not_hold_up_another_and_keeps_the_newest() {
        let (delivery, telemetry) = start(Vec::new(), 2, 10, 35);
        let endpoints = telemetry.endpoints();
        for points in 1..=8 {
            delivery.offer(batch(points));
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
        delivery.offer(batch(4));
        delivery.stop(Instant::now() + Duration::from_secs(2)).await;
        assert_eq!(telemetry.endpoints()[0].delivered.get(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_stop_cuts_a_wait_short_for_one_more_try() {
        let (delivery, telemetry) = start(vec![retry()], 1, 1, 1000);
        let endpoint = &telemetry.endpoints()[0];
        delivery.offer(batch(3));
        settle(endpoint, |e| e.retries.get() == 1).await;
        delivery.offer(batch(5));
        delivery.stop(Instant::now() + Duration::from_secs(1)).await;
        assert_eq!((endpoint.delivered.get(), endpoint.stopped.get()), (8, 0));

        let (delivery, telemetry) = start(vec![retry(); 100], 1, 1, 1000);
        let endpoint = &telemetry.endpoints()[0];
        delivery.offer(batch(3));
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

    #[tokio::test(start_paused = true)]
    async fn what_is_not_encoded_at_the_deadline_is_counted() {
        let (_release, held_up) = std::sync::mpsc::channel::<()>();
        let held_up = Mutex::new(held_up);
        let encoder = Encoder(move || drop(held_up.lock().map(|held_up| held_up.recv())));
        let telemetry = Telemetry::default();
        let delivery = Delivery::start(Arc::new(encoder), 1000, &telemetry);
        let endpoint = &telemetry.endpoints()[0];
        for _ in 0..8 {
            delivery.offer(batch(3));
            tokio::task::yield_now().await;
        }
        // One is being encoded for ever, four wait, three were dropped.
        assert_eq!((endpoint.held.load(Relaxed), endpoint.queue_full.get()), (15, 9));
        delivery.stop(Instant::now()).await;
        assert_eq!((endpoint.offered.get(), endpoint.stopped.get()), (24, 15));
        assert_eq!(endpoint.held.load(Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_breaks_the_encoder_is_counted() {
        let telemetry = Telemetry::default();
        let encoder = Encoder(|| std::panic::resume_unwind(Box::new("broken")));
        let delivery = Delivery::start(Arc::new(encoder), 1000, &telemetry);
        let endpoint = &telemetry.endpoints()[0];
        delivery.offer(batch(4));
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
        delivery.offer(batch(1));
        delivery.offer(batch(1));
        let endpoint = &telemetry.endpoints()[0];
        settle(endpoint, |e| e.delivered.get() == 1).await;
        let begun = Instant::now();
        settle(endpoint, |e| e.delivered.get() == 2).await;
        let waited = begun.elapsed().as_secs_f64();
        assert!((7.8..16.3).contains(&waited), "8 to 16 s after three errors, not {waited}");
    }

    #[test]
    fn backoff_grows_to_a_bound() {
        let range = |n| (backoff(n, 0.0).as_secs_f64(), backoff(n, 1.0).as_secs_f64());
        assert_eq!(range(1), (2.0, 4.0));
        assert_eq!(range(2), (4.0, 8.0));
        assert_eq!(range(5), (32.0, 64.0));
        assert_eq!(range(ERRORS_MAX), (64.0, 64.0));
    }
}
