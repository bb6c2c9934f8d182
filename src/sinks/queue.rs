//! What waits for one endpoint: on disk, or in memory where that cannot be.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::Payload;
use super::deliver::Receipt;
use super::spool::{Entry, Found, Halved, Next, Spool};
use crate::telemetry::Endpoint;
use crate::time::Time;

/// Payloads in the spool that count as fresh, beside those of the last batch.
pub(super) const FRESH_MAX: usize = 32;

/// Flushes whose time is remembered for a latency.
const ARRIVALS_MAX: usize = 1024;

/// How long the backlog is left alone when the disk could not be read.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// What waits to be sent.
#[derive(Clone)]
pub(super) enum Item {
    /// In memory only, since so many Unix seconds.
    Held(Arc<Payload>, i64, Receipt),
    Spooled(Entry),
}

/// What is to be done next.
enum Ready {
    /// To be sent, and whether it is fresh.
    Item(Item, bool),
    /// The folder is to be listed.
    List,
    /// Until something comes, or until then.
    Wait(Option<Instant>),
    Closed,
}

/// Payloads that wait for one endpoint.
pub(super) struct Queue {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) bytes_max: usize,
    pub(super) spool: Option<Spool>,
    /// Between two payloads of the backlog.
    pace: Duration,
    /// Never held while files are worked on.
    waiting: Mutex<Waiting>,
    /// Held while halves take the place of a payload.
    replacing: Mutex<()>,
    changed: Notify,
}

#[derive(Default)]
struct Waiting {
    /// Oldest first.
    fresh: VecDeque<Item>,
    /// Of payloads in memory.
    bytes: usize,
    /// What is being sent.
    sending: Option<Item>,
    /// Of the last flushes the time, in Unix seconds, and when the first of their samples arrived.
    arrivals: VecDeque<(i64, Time)>,
    /// Before that time nothing of the backlog is sent.
    backlog_at: Option<Instant>,
    closed: bool,
}

impl Queue {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        bytes_max: usize,
        spool: Option<Spool>,
        rate: f64,
    ) -> Self {
        let pace = Duration::from_secs_f64(1.0 / rate);
        let (waiting, replacing) = (Mutex::default(), Mutex::default());
        Self { endpoint, bytes_max, spool, pace, waiting, replacing, changed: Notify::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic under this lock")
    }

    /// The first sample of the flush at `time` arrived then.
    pub(super) fn note_arrival(&self, time: i64, first: Time) {
        let mut waiting = self.waiting();
        if waiting.arrivals.len() == ARRIVALS_MAX {
            waiting.arrivals.pop_front();
        }
        waiting.arrivals.push_back((time, first));
    }

    /// When the first sample of the flush at `time` arrived, unless that is long ago.
    pub(super) fn arrival(&self, time: i64) -> Option<Time> {
        let waiting = self.waiting();
        waiting.arrivals.iter().rev().find(|(other, _)| *other == time).map(|(_, first)| *first)
    }

    /// Leaves what is no longer fresh to the backlog, before so many payloads come.
    pub(super) fn retire(&self, coming: usize) {
        let Some(spool) = &self.spool else { return };
        let mut waiting = self.waiting();
        let stay = FRESH_MAX.saturating_sub(coming);
        while waiting.fresh.len() > stay {
            let spooled = waiting.fresh.iter().position(|item| matches!(item, Item::Spooled(_)));
            let Some(Item::Spooled(entry)) = spooled.and_then(|at| waiting.fresh.remove(at)) else {
                return;
            };
            spool.release(entry);
        }
    }

    /// Stores a payload and lets it wait; blocks.
    pub(super) fn push(&self, payload: Arc<Payload>, time: i64, receipt: &Receipt) {
        let item = self.stored(payload, time, receipt);
        let mut waiting = self.waiting();
        waiting.bytes += item.memory();
        waiting.fresh.push_back(item);
        self.bound_memory(&mut waiting);
        while let Some(spool) = self.spool.as_ref().filter(|spool| spool.is_over(0)) {
            // Everything on disk is fresh.
            let oldest = waiting.fresh.iter().position(|item| matches!(item, Item::Spooled(_)));
            match oldest.and_then(|at| waiting.fresh.remove(at)) {
                Some(Item::Spooled(entry)) => spool.drop_payload(&entry),
                Some(Item::Held(..)) | None => break,
            }
        }
        drop(waiting);
        self.changed.notify_one();
        self.sweep();
    }

    /// Removes the files of what was delivered or dropped; blocks.
    fn sweep(&self) {
        if let Some(spool) = &self.spool {
            spool.sweep();
        }
    }

    /// The payload on disk, or in memory where that cannot be.
    fn stored(&self, payload: Arc<Payload>, time: i64, receipt: &Receipt) -> Item {
        match self.spool.as_ref().and_then(|spool| spool.put(&payload, time)) {
            Some(entry) => Item::Spooled(entry),
            None => self.hold(payload, time, receipt),
        }
    }

    fn hold(&self, payload: Arc<Payload>, time: i64, receipt: &Receipt) -> Item {
        self.endpoint.held.fetch_add(payload.points, Relaxed);
        Item::Held(payload, time, Arc::clone(receipt))
    }

    fn bound_memory(&self, waiting: &mut Waiting) {
        while waiting.bytes > self.bytes_max && self.drop_oldest_held(waiting) {}
    }

    /// False when there is only one.
    fn drop_oldest_held(&self, waiting: &mut Waiting) -> bool {
        let mut held = (0..waiting.fresh.len()).filter(|&at| waiting.fresh[at].memory() > 0);
        let (Some(oldest), Some(_)) = (held.next(), held.next()) else { return false };
        waiting.bytes -= waiting.fresh[oldest].memory();
        let Some(Item::Held(payload, ..)) = waiting.fresh.remove(oldest) else { return false };
        self.endpoint.held.fetch_sub(payload.points, Relaxed);
        self.endpoint.queue_full.add(payload.points);
        true
    }

    /// Waits for what is to be sent next, and whether that is fresh; `None` when there will be
    /// nothing fresh any more.
    pub(super) async fn next(self: &Arc<Self>) -> Option<(Item, bool)> {
        loop {
            match self.ready() {
                Ready::Item(item, fresh) => return Some((item, fresh)),
                Ready::Closed => return None,
                Ready::List => self.list().await,
                Ready::Wait(None) => self.changed.notified().await,
                Ready::Wait(Some(at)) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
            }
        }
    }

    /// What is to be done now.
    fn ready(&self) -> Ready {
        let mut waiting = self.waiting();
        let item = if let Some(item) = waiting.fresh.pop_front() {
            waiting.bytes -= item.memory();
            Ready::Item(item, true)
        } else if waiting.closed {
            Ready::Closed
        } else {
            self.backlog(&mut waiting)
        };
        if let Ready::Item(item, _) = &item {
            waiting.sending = Some(item.clone());
        }
        item
    }

    fn backlog(&self, waiting: &mut Waiting) -> Ready {
        let Some(spool) = self.spool.as_ref().filter(|spool| spool.has_backlog()) else {
            return Ready::Wait(None);
        };
        let now = Instant::now();
        if let Some(at) = waiting.backlog_at.filter(|at| *at > now) {
            return Ready::Wait(Some(at));
        }
        match spool.newest() {
            Next::Entry(entry) => {
                waiting.backlog_at = Some(now + self.pace);
                Ready::Item(Item::Spooled(entry), false)
            }
            Next::List => Ready::List,
            Next::Nothing => Ready::Wait(None),
        }
    }

    /// Finds the rest of the backlog.
    async fn list(self: &Arc<Self>) {
        let queue = Arc::clone(self);
        let list = move || queue.spool.as_ref().is_some_and(Spool::find_newest);
        if !spawn_blocking(list).await.unwrap_or_default() {
            self.rest(READ_AGAIN);
        }
    }

    /// The payload itself, in memory; `None` when it cannot be had now, or never.
    pub(super) async fn load(self: &Arc<Self>, item: &Item) -> Option<Arc<Payload>> {
        let mut entry = match item {
            Item::Held(payload, ..) => return Some(Arc::clone(payload)),
            Item::Spooled(entry) => entry.clone(),
        };
        let queue = Arc::clone(self);
        let read = spawn_blocking(move || {
            let found = queue.spool.as_ref().map(|spool| spool.read(&mut entry));
            (found, entry)
        });
        let (found, entry) = read.await.ok()?;
        match found {
            Some(Found::Payload(payload)) => Some(Arc::new(payload)),
            Some(Found::Later) => {
                self.rest(READ_AGAIN);
                self.spool.as_ref()?.defer(entry);
                None
            }
            Some(Found::Gone) | None => None,
        }
    }

    /// What was sent needs no place any more. That its file goes is left to the stop when this is
    /// cut short.
    pub(super) async fn done(self: &Arc<Self>, item: Item) {
        self.waiting().sending = None;
        match (item, &self.spool) {
            (Item::Held(payload, ..), _) => {
                self.endpoint.held.fetch_sub(payload.points, Relaxed);
            }
            (Item::Spooled(entry), Some(spool)) => {
                spool.discard(&entry);
                let queue = Arc::clone(self);
                let _ = spawn_blocking(move || queue.sweep()).await;
            }
            (Item::Spooled(_), None) => {}
        }
    }

    /// Puts what could not be sent back to where it was. Other kinds have their turn first: it may
    /// be only this one that the endpoint cannot take. Within a kind the order stays.
    pub(super) fn put_back(&self, item: Item, fresh: bool) {
        let mut waiting = self.waiting();
        waiting.sending = None;
        match (item, &self.spool) {
            (Item::Spooled(entry), Some(spool)) if !fresh => spool.defer(entry),
            (Item::Held(payload, ..), _)
                if waiting.bytes > 0 && waiting.bytes + payload.bytes() > self.bytes_max =>
            {
                self.endpoint.held.fetch_sub(payload.points, Relaxed);
                self.endpoint.queue_full.add(payload.points);
            }
            (item, _) => {
                waiting.bytes += item.memory();
                let kind = item.kind();
                let fresh = waiting.fresh.drain(..);
                let (same, mut others): (VecDeque<_>, VecDeque<_>) =
                    fresh.partition(|other| other.kind() == kind);
                others.push_back(item);
                others.extend(same);
                waiting.fresh = others;
            }
        }
    }

    /// Lets the backlog rest for that long.
    pub(super) fn rest(&self, wait: Duration) {
        self.waiting().backlog_at = Some(Instant::now() + wait);
    }

    /// Puts the halves of what is being sent in its place; false when the disk fails, and the whole
    /// waits behind all others. Once begun it is done, though the task is aborted meanwhile.
    pub(super) async fn replace(self: &Arc<Self>, halves: [Payload; 2]) -> bool {
        let queue = Arc::clone(self);
        spawn_blocking(move || queue.replace_now(halves)).await.unwrap_or_default()
    }

    fn replace_now(&self, halves: [Payload; 2]) -> bool {
        let _replacing = self.replacing.lock().expect("no panic under this lock");
        // Unless the stop came first.
        let Some(whole) = self.waiting().sending.take() else { return false };
        let stored = match (whole, &self.spool) {
            (Item::Spooled(entry), Some(spool)) => {
                let time = entry.time;
                match spool.split(entry, &halves) {
                    Halved::Done(entries) => entries.map(Item::Spooled),
                    Halved::Later(whole) => {
                        spool.defer(whole);
                        return false;
                    }
                    Halved::Gone => {
                        halves.map(|half| self.hold(Arc::new(half), time, &Receipt::default()))
                    }
                }
            }
            (Item::Held(payload, time, receipt), _) => {
                let stored = halves.map(|half| self.stored(Arc::new(half), time, &receipt));
                self.endpoint.held.fetch_sub(payload.points, Relaxed);
                stored
            }
            (Item::Spooled(_), None) => return false,
        };
        let mut waiting = self.waiting();
        for item in stored.into_iter().rev() {
            waiting.bytes += item.memory();
            waiting.fresh.push_front(item);
        }
        self.bound_memory(&mut waiting);
        drop(waiting);
        self.changed.notify_one();
        true
    }

    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.changed.notify_one();
    }

    /// The end: what is in memory only goes to the spool, or is counted as dropped; blocks.
    pub(super) fn settle(&self, unencoded: u64) {
        let _replacing = self.replacing.lock().expect("no panic under this lock");
        self.sweep();
        let mut waiting = self.waiting();
        waiting.bytes = 0;
        let sending = waiting.sending.take();
        let items: Vec<_> = sending.into_iter().chain(waiting.fresh.drain(..)).collect();
        drop(waiting);
        for item in items {
            if let (Item::Held(payload, time, _), Some(spool)) = (item, &self.spool)
                && spool.put(&payload, time).is_some()
            {
                self.endpoint.held.fetch_sub(payload.points, Relaxed);
            }
        }
        let endpoint = &self.endpoint;
        endpoint.offered.add(unencoded);
        let (sink, name) = (endpoint.sink, &endpoint.name);
        let points = endpoint.held.swap(0, Relaxed);
        if points > 0 {
            endpoint.stopped.add(points);
            tracing::warn!("sink {sink}: stopped with {points} points undelivered to {name}");
        }
        let spooled = endpoint.spooled.points.load(Relaxed);
        if spooled > 0 {
            tracing::info!("sink {sink}: {spooled} points for {name} stay in the spool");
        }
    }

    /// Payloads that wait.
    pub(super) fn len(&self) -> u64 {
        let held = self.waiting().fresh.iter().filter(|item| item.memory() > 0).count() as u64;
        held + self.endpoint.spooled.payloads.load(Relaxed)
    }
}

impl Item {
    /// When its batch was flushed, in Unix seconds.
    pub(super) const fn time(&self) -> i64 {
        match self {
            Self::Held(_, time, _) => *time,
            Self::Spooled(entry) => entry.time,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Held(payload, ..) => payload.kind,
            Self::Spooled(entry) => entry.kind,
        }
    }

    /// What it weighs against the bound of the memory; more than nothing for those in it.
    fn memory(&self) -> usize {
        match self {
            Self::Held(payload, ..) => payload.bytes().max(1),
            Self::Spooled(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spool::{Config, Folder};
    use super::super::{Body, Coding};
    use super::*;

    #[test]
    fn what_is_delivered_is_removed_at_the_end_though_nothing_else_did_it() {
        let root = tempfile::tempdir().unwrap();
        let config = Config { max_disk_ratio: 1.0, ..Config::default() };
        let endpoint = Arc::new(Endpoint { sink: "sink", ..Endpoint::default() });
        let folder = Folder::new("address", b"key", "");
        let spool = Spool::open(
            root.path(),
            &config,
            1,
            &folder,
            &["series"],
            Arc::clone(&endpoint),
            Arc::new(|_| Ok(())),
        );
        let queue = Queue::new(endpoint, 1, Some(spool), 10.0);
        let body = Body::Bytes(vec![0; 100]);
        let payload = Payload { kind: "series", points: 3, coding: Coding::Identity, body };
        queue.push(Arc::new(payload), 0, &Receipt::default());
        let Ready::Item(Item::Spooled(entry), true) = queue.ready() else { panic!("no payload") };
        // As far as an aborted task comes.
        queue.spool.as_ref().unwrap().discard(&entry);
        let files = || {
            let folders = std::fs::read_dir(root.path().join("sink")).unwrap();
            folders.map(|f| std::fs::read_dir(f.unwrap().path()).unwrap().count()).sum::<usize>()
        };
        assert_eq!(files(), 1);
        queue.settle(0);
        assert_eq!(files(), 0);
    }
}
