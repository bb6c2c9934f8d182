//! How a reader appends to the journal.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::format::{Draft, END, Source, Waiting};
use super::tail::Tail;
use super::{Journal, Op, Segment, landing};
use crate::batch::{Event, ServiceCheck};
use crate::context::Context;
use crate::fail;
use crate::sample::{Kind, Reading, Values};
use crate::shard::{Generation, Handle, Locked};
use crate::sys::Receiver;
use crate::time::Time;

/// How a reader appends: one thread uses it at a time.
pub struct Writer {
    journal: Arc<Journal>,
    pub(super) source: Source,
    /// The record in the making.
    draft: Draft,
    open: Option<Open>,
    /// Nothing is put into the record, as the journal fails and need not be tried yet.
    idle: bool,
    /// Where the records of the open segment are gathered.
    tail: Arc<Tail>,
    /// What the record belongs to; in another one, series are not described yet.
    generation: Option<Generation>,
    described: Described,
    /// Holds what waits.
    waiting: Option<Open>,
    waiting_count: usize,
    /// What waited and is in the record.
    taken: Vec<u64>,
    /// Of the next one that waits. They begin by chance, so that no two processes have one alike.
    next_id: u64,
}

/// The segment that is being written.
pub(super) struct Open {
    pub(super) segment: Arc<Segment>,
    pub(super) seed: u32,
    pub(super) numbering: u64,
    pub(super) position: u64,
}

/// Which series were described in the numbering that is being written.
///
/// A series' number is that of its place in the aggregate, so that a sample asks for no more than a
/// bit, which for thousands of series lies in the nearest cache.
struct Described {
    shards: u32,
    bits: Vec<u64>,
}

impl Described {
    fn forget(&mut self) {
        self.bits.fill(0);
    }

    #[inline]
    const fn number(&self, handle: Handle) -> u32 {
        handle.row() as u32 * self.shards + handle.shard() as u32
    }

    #[inline]
    fn holds(&self, number: u32) -> bool {
        let word = self.bits.get(number as usize / 64);
        word.is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    fn add(&mut self, number: u32) {
        let at = number as usize / 64;
        if self.bits.len() <= at {
            self.bits.resize((at + 1).next_power_of_two(), 0);
        }
        self.bits[at] |= 1 << (number % 64);
    }
}

/// What a record stands for, should it not be appended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    pub datagrams: u64,
    pub bytes: u64,
}

impl Load {
    pub(super) const fn add(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
    }
}

impl Journal {
    /// What a reader appends by that adds to an aggregate of so many shards.
    pub fn writer(self: &Arc<Self>, source: Source, shards: usize) -> Writer {
        Writer {
            journal: Arc::clone(self),
            source,
            draft: Draft::default(),
            open: None,
            idle: false,
            tail: self.tail(),
            generation: None,
            described: Described { shards: shards as u32, bits: Vec::new() },
            waiting: None,
            waiting_count: 0,
            taken: Vec::new(),
            next_id: landing::random(),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // An error has been counted.
        let _ = self.tail.close(&self.journal);
    }
}

impl Writer {
    /// What receives for this reader, if there is memory for it that outlives the process.
    pub fn landing(&self, buffer_size: usize) -> Option<Receiver> {
        landing::open(&self.journal.memory, &self.source, buffer_size)
    }

    /// Begins a record of what arrived at `now` and is added to this generation.
    pub fn begin(&mut self, generation: &Generation, now: Time) {
        self.draft.clear();
        self.taken.clear();
        let is_broken = |open: &Open| open.segment.broken.load(Relaxed);
        if self.generation != Some(*generation) {
            self.begin_numbering();
            // An error has been counted.
            let _ = self.tail.close(&self.journal);
            self.generation = Some(*generation);
        } else if self.open.as_ref().is_some_and(is_broken) {
            // What it describes may be lost.
            self.begin_numbering();
        }
        self.idle = self.open.is_none() && !self.journal.worth_a_try(generation, now);
    }

    /// Series are described again.
    fn begin_numbering(&mut self) {
        self.open = None;
        self.described.forget();
    }

    /// Puts a sample into the record that was just added to a series of this shard and kind.
    #[inline(always)]
    pub fn sample(
        &mut self,
        handle: Handle,
        kind: Kind,
        shard: &Locked<'_>,
        reading: &Reading<'_>,
    ) {
        if self.idle {
            return;
        }
        let number = self.described.number(handle);
        if !self.described.holds(number) {
            self.describe(number, shard.context(handle));
        }
        match *reading {
            Reading { values: Values::One(value), rate: 1.0, timestamp: None } => {
                self.draft.value(number, kind, value);
            }
            Reading { values: Values::Delta(_), .. } => {
                let values = Values::One(shard.gauge(handle));
                self.draft.sample(number, kind, &Reading { values, ..*reading });
            }
            _ => self.draft.sample(number, kind, reading),
        }
    }

    #[cold]
    fn describe(&mut self, number: u32, context: &Context) {
        self.described.add(number);
        self.draft.series(number, context);
    }

    pub fn event(&mut self, event: &Event) {
        self.draft.event(event);
    }

    pub fn check(&mut self, check: &ServiceCheck) {
        self.draft.check(check);
    }

    /// Appends something that waits for the tags of its sender, as it came at `now` in this batch.
    /// Returns the number by which it is told later that it was taken in.
    pub fn wait(
        &mut self,
        bytes: &[u8],
        (truncated, line): (bool, bool),
        batch: u64,
        now: Time,
    ) -> u64 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let mut draft = Draft::default();
        draft.waits(Waiting { id, bytes, truncated, line });
        self.waiting_count += 1;
        let load = Load { datagrams: 1, bytes: bytes.len() as u64 };
        let generation = self.generation.as_ref();
        if !generation.is_some_and(|generation| self.journal.worth_a_try(generation, now)) {
            self.journal.unprotected(load, now, || {});
        } else if let Err(error) = self.try_wait(&mut draft, batch, now) {
            self.journal.failed(&error, load, now);
        }
        id
    }

    fn try_wait(&mut self, draft: &mut Draft, batch: u64, now: Time) -> io::Result<()> {
        let generation = self.generation.ok_or(io::ErrorKind::NotFound)?;
        let length = draft.close() as u64;
        if self.journal.used.load(Relaxed) + length > self.journal.max_bytes {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut open = match self.waiting.take() {
            // One that could not be synced goes on as it is: the process may die all the same.
            Some(open) => open,
            None => self.journal.segment(generation, &self.source, None, true, length)?,
        };
        let appended = self.append(&mut open, draft, batch, now);
        self.waiting = Some(open);
        appended
    }

    /// What waited under this number is in the record.
    pub fn taken(&mut self, id: u64) {
        self.draft.taken(id);
        self.taken.push(id);
        self.waiting_count = self.waiting_count.saturating_sub(1);
    }

    /// Appends the record of what arrived at `now`, while nothing rotates since it was begun.
    /// `batch` is the number that its receiver gave it, or 0. What cannot be appended is counted.
    pub fn commit(&mut self, batch: u64, load: Load, now: Time) {
        if self.draft.is_empty() && batch == 0 && !self.idle {
            return;
        }
        let Some(generation) = self.generation else { return };
        let journal = Arc::clone(&self.journal);
        if self.idle {
            journal.unprotected(load, now, || {});
        } else {
            if let Err(error) = self.try_commit(&generation, batch, load, now) {
                // Whatever was written in part is behind the last end, and cut off when it is read.
                self.begin_numbering();
                journal.failed(&error, load, now);
            }
        }
        // It is in the aggregate now: in the journal or not, it must not be taken in once more.
        if self.waiting_count == 0 {
            self.nothing_waits();
        } else if !self.taken.is_empty() {
            self.some_wait(now);
        }
    }

    fn try_commit(
        &mut self,
        generation: &Generation,
        batch: u64,
        load: Load,
        now: Time,
    ) -> io::Result<()> {
        let length = self.draft.close() as u64;
        let numbering = self.open.as_ref().map(|open| open.numbering);
        let has_room = |open: &Open| {
            open.position + length <= self.journal.segment_bytes
                && !open.segment.broken.load(Relaxed)
        };
        let mut open = match self.open.take().filter(has_room) {
            Some(open) => open,
            None => {
                let journal = &self.journal;
                let open = journal.segment(*generation, &self.source, numbering, false, length)?;
                journal.works(now);
                self.tail.begin(journal, &open.segment, open.seed, open.position)?;
                open
            }
        };
        let record = self.draft.finish(open.seed, now, batch);
        self.tail.push(&self.journal, record, load, now)?;
        self.appended(&mut open, length);
        self.open = Some(open);
        Ok(())
    }

    /// Appends to the file at once.
    fn append(&self, open: &mut Open, draft: &mut Draft, batch: u64, now: Time) -> io::Result<()> {
        let length = draft.close() as u64;
        self.journal.step(Op::Append)?;
        open.segment.file.write_all_at(draft.finish(open.seed, now, batch), open.position)?;
        self.appended(open, length);
        open.segment.written.store(open.position, Relaxed);
        Ok(())
    }

    fn appended(&self, open: &mut Open, length: u64) {
        fail::point("journal.appended");
        open.position += length;
        open.segment.used.store(open.position, Relaxed);
        let used = self.journal.used.fetch_add(length, Relaxed) + length;
        if used > self.journal.checkpoint_bytes {
            self.journal.want_checkpoint();
        }
        self.journal.telemetry.journal.bytes.add(length);
    }

    /// Some of what waited was taken in. Its record may be released before the rest is.
    fn some_wait(&mut self, now: Time) {
        let Some(mut open) = self.waiting.take() else { return };
        let mut draft = Draft::default();
        self.taken.iter().for_each(|id| draft.taken(*id));
        if let Err(error) = self.append(&mut open, &mut draft, 0, now) {
            self.journal.failed(&error, Load::default(), now);
        }
        self.waiting = Some(open);
    }

    /// All that waited was taken in, so none of it is to be taken in again.
    fn nothing_waits(&mut self) {
        let Some(open) = &mut self.waiting else { return };
        if open.segment.is_empty() {
            return;
        }
        let first = open.segment.first;
        let emptied = self.journal.step(Op::Append);
        match emptied.and_then(|()| open.segment.file.write_all_at(&END, first)) {
            Ok(()) => {
                self.journal.used.fetch_sub(open.position - first, Relaxed);
                open.position = first;
                open.segment.used.store(first, Relaxed);
                open.segment.written.store(first, Relaxed);
            }
            Err(error) => {
                let _ = fs::remove_file(&open.segment.path);
                self.waiting = None;
                tracing::debug!("journal: cannot empty what waited: {error}");
            }
        }
    }
}
