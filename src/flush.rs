//! The tick: closes buckets and hands the batch to the sinks.

pub mod own;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::blocklist::Blocklist;
use crate::fail;
use crate::shard::{Flushed, Shards};
use crate::telemetry::Telemetry;
use crate::time::Time;
use crate::value::Aggregate;

/// When buckets close.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Length of a bucket in seconds, aligned to the clock. A bucket is flushed when it closes.
    pub interval: u32,
    /// Flush the bucket that is still open when tallyd stops.
    pub incomplete_buckets: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { interval: 10, incomplete_buckets: true }
    }
}

/// The wall clock is looked at again at least this often, since it may be set.
const NAP: Duration = Duration::from_secs(1);

/// Makes batches of what the shards hold.
pub struct Flush {
    pub shards: Arc<Shards>,
    pub telemetry: Arc<Telemetry>,
    /// Which figures of a histogram are sent.
    pub aggregates: Arc<[Aggregate]>,
    /// Which figures are not sent for a name.
    pub blocklist: Arc<Blocklist>,
}

impl Flush {
    /// Takes what has closed by `now`; with `open`, the open bucket too.
    pub fn batch(&self, now: Time, open: bool) -> Batch {
        let begun = Instant::now();
        fail::point("flush.begin");
        let mut shard_begun = begun;
        let flushed = self.shards.flush_by(now, open, || {
            let done = Instant::now();
            self.telemetry.flush_shard.record(done - shard_begun, now);
            shard_begun = done;
        });
        let Flushed { generations, first, rows, events, checks } = flushed;
        let batch = Batch {
            flushed_at: now.seconds(),
            first,
            interval: self.shards.interval(),
            generations,
            rows,
            own: Vec::new(),
            events: events.into(),
            checks: checks.into(),
            aggregates: Arc::clone(&self.aggregates),
            blocklist: Arc::clone(&self.blocklist),
        };
        fail::point("flush.end");
        self.telemetry.flushes.add(1);
        self.telemetry.points.add(batch.points());
        let took = begun.elapsed();
        self.telemetry.flush_micros.store(took.as_micros() as u64, Ordering::Relaxed);
        self.telemetry.flush.record(took, now);
        batch
    }
}

/// The thread that flushes whenever a bucket closes.
pub struct Ticker {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    pulse: Arc<AtomicU64>,
}

impl Ticker {
    /// `interval` is the length of a bucket in seconds; `flush` is called when one has closed.
    ///
    /// # Errors
    /// When the system gives no further thread.
    pub fn start(interval: u32, flush: impl Fn(Time) + Send + 'static) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let pulse = Arc::<AtomicU64>::default();
        let beat = Arc::clone(&pulse);
        let run = move || run(interval, &flush, &stopped, &beat);
        let thread = std::thread::Builder::new().name("flush".to_owned()).spawn(run)?;
        Ok(Self { stop, thread, pulse })
    }

    /// A number that changes once a second or more often while the thread gets on.
    pub fn pulse(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.pulse)
    }

    /// Ends the thread. The last batch is the caller's to make, once nothing comes in any more.
    pub fn stop(self) {
        drop(self.stop);
        // A flush that panicked has said so already.
        let _ = self.thread.join();
    }
}

fn run(interval: u32, flush: &impl Fn(Time), stopped: &Receiver<()>, pulse: &AtomicU64) {
    let mut bucket = Time::now().bucket(interval);
    loop {
        pulse.fetch_add(1, Ordering::Relaxed);
        let now = Time::now();
        let current = now.bucket(interval);
        // A clock that was set back closes the bucket as well; one that merely wavers does not.
        if current > bucket || current < bucket - i64::from(interval) {
            bucket = current;
            flush(now);
            continue;
        }
        let end = Time::from_seconds(bucket + i64::from(interval));
        let left = Duration::from_millis((end.0 - now.0).max(1) as u64);
        match stopped.recv_timeout(left.min(NAP)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
