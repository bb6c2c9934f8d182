//! The delivery loop that all sinks share: encode, queue, send, try again, drop, count.
//!
//! ```text
//! Batch --offer--> [encode task of the sink] --payloads--> [queue of an endpoint] --> [send task]
//! ```
//!
//! Each sink has a task of its own and each of its endpoints another, so a slow or dead one delays
//! nobody else. What waits is bounded in bytes per endpoint; beyond it the oldest is dropped.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Payload, Sink, Verdict};
use crate::batch::Batch;
use crate::telemetry::{Endpoint, Telemetry};

/// Batches that may wait to be encoded.
const BATCHES: usize = 4;

/// The longest wait between two tries, and the base of the shorter ones, in seconds
/// (the Agent's forwarder: base 2, at most 64, six steps).
const BACKOFF_BASE: f64 = 2.0;
const BACKOFF_STEPS: u32 = 6;

/// Refusals of one endpoint are logged no more often than this: each flush may meet one.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The running delivery of one sink.
pub struct Delivery {
    name: &'static str,
    batches: mpsc::Sender<Arc<Batch>>,
    endpoints: Vec<Arc<Endpoint>>,
    queues: Vec<Arc<Queue>>,
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Delivery {
    /// Starts the tasks of a sink on the current runtime. `queue_bytes` bounds what waits for each
    /// endpoint.
    pub fn start(sink: Arc<dyn Sink>, queue_bytes: usize, telemetry: &Telemetry) -> Self {
        let (batches, received) = mpsc::channel(BATCHES);
        let (stopping, _) = watch::channel(false);
        let names = sink.endpoints();
        let endpoints: Vec<_> =
            names.into_iter().map(|name| telemetry.endpoint(sink.name(), name)).collect();
        let queues: Vec<_> =
            endpoints.iter().map(|e| Arc::new(Queue::new(Arc::clone(e), queue_bytes))).collect();
        let mut tasks = Vec::new();
        for (number, queue) in queues.iter().enumerate() {
            let send = Send {
                sink: Arc::clone(&sink),
                number,
                queue: Arc::clone(queue),
                failing: None,
                refusal_logged: None,
            };
            tasks.push(tokio::spawn(send.run(stopping.subscribe())));
        }
        let name = sink.name();
        tasks.push(tokio::spawn(encode(sink, received, queues.clone())));
        Self { name, batches, endpoints, queues, stopping, tasks }
    }

    /// Hands a batch over without waiting. A sink that is too slow to take it loses it, counted.
    pub fn offer(&self, batch: Arc<Batch>) {
        let points = batch.points();
        if self.batches.try_send(batch).is_err() {
            for endpoint in &self.endpoints {
                endpoint.offered.add(points);
                endpoint.queue_full.add(points);
            }
            tracing::warn!("sink {}: too slow, {points} points dropped", self.name);
        }
    }

    /// Lets the sink send what waits until `deadline`, then drops the rest and counts it.
    pub async fn stop(self, deadline: Instant) {
        drop(self.batches);
        // Once the encode task has ended, the send tasks end as soon as their queues are empty.
        self.stopping.send_replace(true);
        for task in self.tasks {
            if tokio::time::timeout_at(deadline, task).await.is_err() {
                break;
            }
        }
        for queue in self.queues {
            let points = queue.clear();
            if points > 0 {
                let endpoint = &queue.endpoint;
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
) {
    while let Some(batch) = batches.recv().await {
        let encoder = Arc::clone(&sink);
        // A large batch takes long to encode and compress.
        let Ok(encoded) = tokio::task::spawn_blocking(move || encoder.encode(&batch)).await else {
            tracing::error!("sink {}: the encoder failed; its points are lost", sink.name());
            continue;
        };
        let payloads: Vec<_> = encoded.payloads.into_iter().map(Arc::new).collect();
        let points: u64 = payloads.iter().map(|payload| payload.points).sum();
        for queue in &queues {
            queue.endpoint.offered.add(points + encoded.dropped);
            queue.endpoint.too_large.add(encoded.dropped);
            for payload in &payloads {
                queue.push(Arc::clone(payload));
            }
        }
    }
    for queue in &queues {
        queue.close();
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
    /// When a refusal was last logged.
    refusal_logged: Option<Instant>,
}

impl Send {
    async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        while let Some(payload) = self.queue.next().await {
            let verdict = self.sink.send(self.number, &payload).await;
            let Some(wait) = self.take(verdict, payload) else { continue };
            // At the stop there is no time to wait: what is left is dropped and counted.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
        }
    }

    /// Counts what became of a payload. Returns how long to wait before the next try.
    fn take(&mut self, verdict: Verdict, payload: Arc<Payload>) -> Option<Duration> {
        let endpoint = &self.queue.endpoint;
        match verdict {
            Verdict::Delivered => {
                endpoint.delivered.add(payload.points);
                endpoint.held.fetch_sub(payload.points, Relaxed);
                self.recovered();
                None
            }
            Verdict::Refused { cause } => {
                endpoint.refused.add(payload.points);
                endpoint.held.fetch_sub(payload.points, Relaxed);
                if self.refusal_logged.is_none_or(|then| then.elapsed() >= REFUSAL_LOG_INTERVAL) {
                    self.refusal_logged = Some(Instant::now());
                    let (sink, name) = (endpoint.sink, &endpoint.name);
                    let (points, kind, so_far) =
                        (payload.points, payload.kind, endpoint.refused.get());
                    tracing::warn!(
                        "sink {sink}: {name} refused {points} points of {kind} ({so_far} points so \
                         far): {cause}"
                    );
                }
                self.recovered();
                None
            }
            Verdict::Retry { cause, after } => {
                endpoint.retries.add(1);
                let (since, tries) = self.failing.unwrap_or_else(|| (Instant::now(), 0));
                if tries == 0 {
                    let (sink, name) = (endpoint.sink, &endpoint.name);
                    tracing::warn!(
                        "sink {sink}: {name} fails: {cause}; points wait in memory (up to {} MiB) \
                         and are tried again",
                        self.queue.bytes_max >> 20
                    );
                }
                self.failing = Some((since, tries + 1));
                self.queue.put_back(payload);
                Some(after.unwrap_or_else(|| backoff(tries + 1, random())))
            }
        }
    }

    fn recovered(&mut self) {
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

/// The wait after the n-th failure in a row: evenly spread over the upper half of
/// `2 * 2^n` seconds, six steps at most. `spread` lies in 0..1.
fn backoff(failures: u32, spread: f64) -> Duration {
    let longest = BACKOFF_BASE.powi(failures.min(BACKOFF_STEPS - 1) as i32) * BACKOFF_BASE;
    Duration::from_secs_f64(longest.mul_add(spread, longest) / 2.0)
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

    #[test]
    fn backoff_grows_to_a_bound() {
        let range = |n| (backoff(n, 0.0).as_secs_f64(), backoff(n, 1.0).as_secs_f64());
        assert_eq!(range(1), (2.0, 4.0));
        assert_eq!(range(2), (4.0, 8.0));
        assert_eq!(range(5), (32.0, 64.0));
        assert_eq!(range(500), (32.0, 64.0));
    }
}
