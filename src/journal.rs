//! What was read outlives the process.
//!
//! A reader appends what it understood of each batch of datagrams to a file of its own, its
//! *segment*, in the same window in which it adds it to the aggregate: a number for the series,
//! which is described once, and the values. Until then the datagrams themselves lie in buffers that
//! outlive the process too (`journal/landing.rs`). Once every sink has the batch of a flush safe, the
//! segments that it came from are released, and used again. What a process leaves behind is taken
//! in again by the next one.
//!
//! ```text
//! socket   --recvmmsg-> landing       datagrams
//! reader   --append---> segment-3     samples, under the window: a segment is of one generation
//! flush    --batch----> sinks         with a receipt; when the last of it is gone:
//! journal  --release--> released      one write says which generations need no replay
//!          --sync-----> segment-*     each journal.sync_interval, off the readers' way
//! ```
//!
//! Samples instead of datagrams, since they are a tenth of the bytes, have the tags of their
//! senders already, and need not be parsed and mapped again.
//!
//! What waits for the tags of its sender is in no generation yet. It lies as it came in a segment
//! apart, until it is taken in: the record that holds its samples says so as well.
//!
//! Appending is one `pwrite` into the page cache: it survives the process at once, and a loss of
//! power once it is synced. Errors of the disk never stop a reader: what could not be appended is
//! counted, and appending is tried again in the next generation and each second.

pub mod checkpoint;
pub mod format;
mod landing;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ahash::{HashSet, HashSetExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::batch::{Event, ServiceCheck};
use crate::fail;
use crate::hash::Keys;
use crate::sample::Sample;
use crate::shard::{Generation, Handle, Locked, Shards};
use crate::sys::Receiver;
use crate::telemetry::Telemetry;
use crate::time::Time;
use checkpoint::{Checkpoint, Encoder, Entry};
use format::{Draft, END, Header, Record, Released, SLOT, Unreadable, Waiting};

pub use format::Source;
pub use landing::Landing;

/// What was read survives a crash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Keep what was read in the folder `journal` in `state.run_path` until every sink has it safe.
    pub enabled: bool,
    /// Bytes that the journal may take.
    pub max_bytes: u64,
    /// Seconds after which what was read survives a loss of power too, not only of the process.
    pub sync_interval: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, max_bytes: 64 * 1024 * 1024, sync_interval: 1.0 }
    }
}

/// Bytes of a segment: a part of the journal's, within bounds.
const SEGMENT_MIN: u64 = 16 * 1024;
const SEGMENT_MAX: u64 = 4 * 1024 * 1024;
const SEGMENTS: u64 = 16;

const SEGMENT: &str = "segment-";
const CHECKPOINT: &str = "checkpoint-";
const TEMPORARY: &str = ".tmp";
const RELEASED: &str = "released";
/// The folder for files that cannot be read.
const BAD: &str = "bad";

/// An operation on files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    MakeFolder,
    List,
    Create,
    Append,
    Sync,
    Read,
    Checkpoint,
    Rename,
    Release,
    Remove,
}

impl Op {
    /// The name of its fail point.
    const fn point(self) -> &'static str {
        match self {
            Self::MakeFolder => "journal.make_folder",
            Self::List => "journal.list",
            Self::Create => "journal.create",
            Self::Append => "journal.append",
            Self::Sync => "journal.sync",
            Self::Read => "journal.read",
            Self::Checkpoint => "journal.checkpoint",
            Self::Rename => "journal.rename",
            Self::Release => "journal.release",
            Self::Remove => "journal.remove",
        }
    }
}

/// Called before each operation; its error is the operation's. Tests inject faults by it.
pub type Gate = Arc<dyn Fn(Op) -> io::Result<()> + Send + Sync>;

/// The journal of a process.
pub struct Journal {
    folder: PathBuf,
    max_bytes: u64,
    segment_bytes: u64,
    gate: Gate,
    telemetry: Arc<Telemetry>,
    files: Mutex<Files>,
    /// Bytes in segments that are not released.
    used: AtomicU64,
    /// A checkpoint is wanted, or was just in vain.
    full: AtomicBool,
    failing: Mutex<Option<Failing>>,
    work: Mutex<Sender<Work>>,
    /// For the keeper.
    to_do: Mutex<Option<mpsc::Receiver<Work>>>,
}

#[derive(Default)]
struct Files {
    /// Not released, in the order of their sequence.
    segments: Vec<Arc<Segment>>,
    /// To be used again, the last one first: it is the likeliest to be in the cache.
    spares: Vec<Spare>,
    /// Number of the next file.
    next: u64,
    /// Sequence of the next segment.
    sequence: u64,
    /// The latest start of a bucket that has a segment.
    latest: i64,
    released: Released,
    /// With the generations that they stand for.
    checkpoints: Vec<(Range<u64>, PathBuf)>,
}

/// One reader's part of one generation, or what waits in it.
struct Segment {
    path: PathBuf,
    file: File,
    generation: Generation,
    /// It holds what waits, of whatever generation, and is released by its reader alone.
    waiting: bool,
    /// Bytes of the header.
    first: u64,
    /// Bytes of the file that are in use.
    written: AtomicU64,
    synced: AtomicU64,
    /// Nothing more is appended: it could not be synced, or it is gone from the folder.
    broken: AtomicBool,
}

/// A file without content of worth.
struct Spare {
    path: PathBuf,
    file: File,
    /// Bytes that it takes on the disk.
    bytes: u64,
}

/// What is not protected.
struct Failing {
    since: Time,
    last: Time,
    datagrams: u64,
}

enum Work {
    Release(Range<u64>),
    Full,
    Stop,
}

/// A promise of the journal: what it stands for is released when it is dropped. The default one
/// stands for nothing.
#[derive(Default)]
pub struct Slip(Option<(Sender<Work>, Range<u64>)>);

impl Drop for Slip {
    fn drop(&mut self) {
        if let Some((work, generations)) = self.0.take() {
            // A journal that has stopped leaves them to the next process.
            let _ = work.send(Work::Release(generations));
        }
    }
}

/// What an earlier process left.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which they were written.
    segments: Vec<(Header, PathBuf)>,
    /// Segments of what waits.
    waiting: Vec<(Header, PathBuf)>,
    checkpoints: Vec<PathBuf>,
    landings: Vec<Landing>,
    /// What the members of sets in checkpoints are hashed under.
    pub member_keys: Option<Keys>,
    /// The lowest generation that this process answers for.
    pub first: u64,
    /// Behind the highest generation that was ever used.
    pub next: u64,
    /// The latest start of a bucket.
    pub start: Option<i64>,
}

impl Journal {
    /// Opens the journal in a folder, which nobody else uses. A disk that fails is no error: it is
    /// tried again.
    pub fn open(
        folder: &Path,
        config: &Config,
        telemetry: Arc<Telemetry>,
        gate: Gate,
        now: Time,
    ) -> (Arc<Self>, Found) {
        let (work, to_do) = channel();
        let journal = Self {
            folder: folder.to_owned(),
            max_bytes: config.max_bytes,
            segment_bytes: (config.max_bytes / SEGMENTS).clamp(SEGMENT_MIN, SEGMENT_MAX),
            gate,
            telemetry,
            files: Mutex::default(),
            used: AtomicU64::new(0),
            full: AtomicBool::new(false),
            failing: Mutex::default(),
            work: Mutex::new(work),
            to_do: Mutex::new(Some(to_do)),
        };
        let found = journal.find().unwrap_or_else(|error| {
            journal.failed(&error, 0, 0, now);
            journal.unfound(now)
        });
        (Arc::new(journal), found)
    }
}

impl Journal {
    /// What lies there cannot be read now. It stays for a later process, so nothing of this one may
    /// have a number in common with it.
    fn unfound(&self, now: Time) -> Found {
        let beyond = now.0.max(1).cast_unsigned() << 16;
        let mut files = self.files();
        (files.next, files.sequence, files.released.sequence) = (beyond, beyond, beyond);
        Found { first: beyond, next: beyond, ..Found::default() }
    }

    /// Reads what an earlier process left: the headers of its segments. Removes what need not be
    /// replayed.
    fn find(&self) -> io::Result<Found> {
        self.make_folder()?;
        self.step(Op::List)?;
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            paths.push(entry?.path());
        }
        let mut files = self.files();
        files.released = fs::read(self.folder.join(RELEASED))
            .ok()
            .and_then(|bytes| Released::decode(&bytes))
            .unwrap_or_default();
        let Files { next, sequence, released, segments, checkpoints, .. } = &mut *files;
        let mut found = Found { next: released.end(), ..Found::default() };
        found.start = (released.sequence > 0).then_some(released.start);
        for path in paths.iter().filter(|path| named(path, CHECKPOINT)) {
            self.find_checkpoint(path, released, checkpoints, &mut found);
        }
        let covered = |number| checkpoints.iter().any(|(range, _)| range.contains(&number));
        for path in paths {
            let Some(number) = number_of(&path) else { continue };
            *next = (*next).max(number + 1);
            let header = self.header(&path);
            let Some((header, bytes)) = header.unwrap_or_else(|reason| {
                self.set_aside(&path, &reason);
                None
            }) else {
                continue;
            };
            *sequence = (*sequence).max(header.sequence + 1);
            if header.waiting {
                found.waiting.push((header, path));
                continue;
            }
            if released.holds(header.generation.number) || covered(header.generation.number) {
                let _ = self.step(Op::Remove).and_then(|()| fs::remove_file(&path));
                continue;
            }
            found.next = found.next.max(header.generation.number + 1);
            found.start = found.start.max(Some(header.generation.start));
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            self.used.fetch_add(bytes, Relaxed);
            segments.push(Arc::new(Segment::new(path.clone(), file, &header, bytes)));
            found.segments.push((header, path));
        }
        checkpoints.sort_by_key(|(range, _)| range.start);
        found.checkpoints = checkpoints.iter().map(|(_, path)| path.clone()).collect();
        found.landings = landing::find(&self.folder);
        found.segments.sort_by_key(|(header, _)| (header.generation.number, header.sequence));
        Ok(found)
    }

    /// Reads what a checkpoint stands for. A file that another one covers is removed.
    fn find_checkpoint(
        &self,
        path: &Path,
        released: &Released,
        checkpoints: &mut Vec<(Range<u64>, PathBuf)>,
        found: &mut Found,
    ) {
        if named(path, TEMPORARY) {
            let _ = fs::remove_file(path);
            return;
        }
        let read = self.step(Op::Read).and_then(|()| fs::read(path));
        let read = read.map_err(|error| error.to_string());
        let (range, keys) = match read.as_deref().map(Checkpoint::decode) {
            Ok(Ok(checkpoint)) => (checkpoint.generations, checkpoint.keys),
            Ok(Err(error)) => return self.set_aside(path, &error.to_string()),
            Err(error) => return self.set_aside(path, error),
        };
        found.next = found.next.max(range.end);
        if released.holds(range.end.saturating_sub(1))
            || checkpoints.iter().any(|(r, _)| within(&range, r))
        {
            let _ = fs::remove_file(path);
            return;
        }
        checkpoints.retain(|(other, path)| {
            let kept = !within(other, &range);
            if !kept {
                let _ = fs::remove_file(path);
            }
            kept
        });
        found.member_keys = Some(keys);
        checkpoints.push((range, path.to_owned()));
    }

    /// The header of a segment, and the bytes of its file. `None` when it was never used.
    fn header(&self, path: &Path) -> Result<Option<(Header, u64)>, String> {
        let read = self.step(Op::Read).and_then(|()| {
            let file = File::open(path)?;
            let mut start = vec![0; 4096];
            let length = file.read_at(&mut start, 0)?;
            start.truncate(length);
            Ok((start, file.metadata()?.len()))
        });
        let (start, bytes) = read.map_err(|error| error.to_string())?;
        match Header::decode(&start) {
            Ok((header, _)) => Ok(Some((header, bytes))),
            Err(Unreadable::Empty) => {
                // Made, and never begun.
                let _ = fs::remove_file(path);
                Ok(None)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Moves a file out of the way, where somebody may look at it.
    fn set_aside(&self, path: &Path, reason: &str) {
        self.telemetry.journal.set_aside.add(1);
        let bad = self.folder.join(BAD);
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".bad");
        let moved = DirBuilder::new().recursive(true).mode(0o700).create(&bad);
        let outcome = match moved.and_then(|()| fs::rename(path, bad.join(name))) {
            Ok(()) => "it is set aside in the folder `bad`".to_owned(),
            Err(error) => format!("it cannot be set aside: {error}"),
        };
        tracing::warn!("journal: {} cannot be read: {reason}; {outcome}", path.display());
    }

    /// What a reader appends by.
    pub fn writer(self: &Arc<Self>, source: Source) -> Writer {
        Writer {
            journal: Arc::clone(self),
            source,
            draft: Draft::default(),
            open: None,
            generation: None,
            numbers: Numbers::default(),
            waiting: None,
            waiting_count: 0,
            taken: Vec::new(),
            next_id: landing::random(),
        }
    }

    /// Stands for these generations, until the last clone is gone.
    pub fn slip(&self, generations: Range<u64>) -> Slip {
        let work = self.work.lock().expect("no panic under this lock").clone();
        Slip(Some((work, generations)))
    }

    /// Begins a segment that has room for a record of this length. Without a numbering it begins
    /// one.
    fn segment(
        &self,
        generation: Generation,
        source: &Source,
        numbering: Option<u64>,
        waiting: bool,
        length: u64,
    ) -> io::Result<Open> {
        if self.used.load(Relaxed) + length.max(self.segment_bytes) > self.max_bytes {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let (spare, number, sequence) = {
            let mut files = self.files();
            files.next += 1;
            files.sequence += 1;
            files.latest = files.latest.max(generation.start);
            (files.spares.pop(), files.next - 1, files.sequence - 1)
        };
        let (path, file) = match spare {
            Some(spare) => (spare.path, spare.file),
            None => self.create(number)?,
        };
        let seed = random();
        let (source, numbering) = (source.clone(), numbering.unwrap_or(sequence));
        let header = Header { seed, sequence, generation, source, numbering, waiting };
        let bytes = header.encode();
        self.step(Op::Append)?;
        file.write_all_at(&[&bytes[..], &END].concat(), 0)?;
        let first = bytes.len() as u64;
        self.used.fetch_add(first, Relaxed);
        let segment = Arc::new(Segment::new(path, file, &header, first));
        self.files().segments.push(Arc::clone(&segment));
        Ok(Open { segment, seed, numbering, position: first })
    }

    fn create(&self, number: u64) -> io::Result<(PathBuf, File)> {
        let path = self.folder.join(format!("{SEGMENT}{number}"));
        let create = || {
            self.step(Op::Create)?;
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600).open(&path)
        };
        let file = match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_folder()?;
                create()
            }
            other => other,
        }?;
        Ok((path, file))
    }

    fn make_folder(&self) -> io::Result<()> {
        self.step(Op::MakeFolder)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)
    }

    fn want_checkpoint(&self) {
        if !self.full.swap(true, Relaxed) {
            let work = self.work.lock().expect("no panic under this lock");
            // Without a keeper there is nobody to do it.
            let _ = work.send(Work::Full);
        }
    }

    fn step(&self, op: Op) -> io::Result<()> {
        fail::point(op.point());
        (self.gate)(op)
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("no panic under this lock")
    }

    /// Counts what could not be appended. Says in the log when that begins.
    fn failed(&self, error: &io::Error, datagrams: u64, bytes: u64, now: Time) {
        let counters = &self.telemetry.journal;
        counters.errors.add(1);
        self.unprotected(datagrams, bytes, now, || {
            let why = match error.kind() {
                io::ErrorKind::QuotaExceeded => "it is full: raise journal.max_bytes".to_owned(),
                _ => error.to_string(),
            };
            tracing::warn!(
                "the journal in {} fails: {why}; what is read from now on would not survive a crash \
                 before its flush",
                self.folder.display()
            );
        });
    }

    fn unprotected(&self, datagrams: u64, bytes: u64, now: Time, say: impl FnOnce()) {
        let counters = &self.telemetry.journal;
        counters.unprotected_datagrams.add(datagrams);
        counters.unprotected_bytes.add(bytes);
        counters.failing.store(true, Relaxed);
        let mut failing = self.failing.lock().expect("no panic under this lock");
        let failing = failing.get_or_insert_with(|| {
            say();
            Failing { since: now, last: now, datagrams: 0 }
        });
        failing.last = now;
        failing.datagrams += datagrams;
    }

    /// Whether to try again: in a new generation, and each second.
    fn worth_a_try(&self, generation: &Generation, now: Time) -> bool {
        let counters = &self.telemetry.journal;
        if !counters.failing.load(Relaxed) {
            return true;
        }
        let failing = self.failing.lock().expect("no panic under this lock");
        failing.as_ref().is_none_or(|failing| {
            failing.last.seconds() != now.seconds()
                || failing.last < Time::from_seconds(generation.start)
        })
    }

    /// A segment could be begun, so it works.
    fn works(&self, now: Time) {
        if !self.telemetry.journal.failing.swap(false, Relaxed) {
            return;
        }
        let failing = self.failing.lock().expect("no panic under this lock").take();
        if let Some(Failing { since, datagrams, .. }) = failing {
            tracing::info!(
                "the journal works again; {datagrams} datagrams read from {} to {} (Unix seconds) were \
                 not protected until their flush",
                since.seconds(),
                now.seconds()
            );
        }
    }
}

impl Segment {
    fn new(path: PathBuf, file: File, header: &Header, written: u64) -> Self {
        Self {
            path,
            file,
            generation: header.generation,
            waiting: header.waiting,
            first: written,
            written: AtomicU64::new(written),
            synced: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        }
    }

    fn is_empty(&self) -> bool {
        self.written.load(Relaxed) == self.first
    }
}

/// How a reader appends: one thread uses it at a time.
pub struct Writer {
    journal: Arc<Journal>,
    source: Source,
    /// The record in the making.
    draft: Draft,
    open: Option<Open>,
    /// What the record belongs to; of another one, series have no numbers yet.
    generation: Option<Generation>,
    numbers: Numbers,
    /// Holds what waits.
    waiting: Option<Open>,
    waiting_count: usize,
    /// What waited and is in the record.
    taken: Vec<u64>,
    /// Of the next one that waits. They begin by chance, so that no two processes have one alike.
    next_id: u64,
}

/// The segment that is being written.
struct Open {
    segment: Arc<Segment>,
    seed: u32,
    numbering: u64,
    position: u64,
}

/// The numbers of series, which begin anew in each generation.
#[derive(Default)]
struct Numbers {
    /// Which beginning this is.
    turn: u32,
    next: u32,
    /// By shard and row: the number, and the turn that gave it.
    rows: Vec<Vec<(u32, u32)>>,
}

impl Numbers {
    fn begin(&mut self) {
        self.next = 0;
        self.turn = self.turn.wrapping_add(1);
        if self.turn == 0 {
            // No row may seem to have a number of a turn so long ago.
            self.rows.clear();
            self.turn = 1;
        }
    }

    /// The number of a series, and whether it is new.
    #[inline]
    fn of(&mut self, handle: Handle) -> (u32, bool) {
        if let Some(&(number, turn)) =
            self.rows.get(handle.shard()).and_then(|rows| rows.get(handle.row()))
            && turn == self.turn
        {
            return (number, false);
        }
        (self.give(handle), true)
    }

    #[cold]
    fn give(&mut self, handle: Handle) -> u32 {
        let (shard, row) = (handle.shard(), handle.row());
        if self.rows.len() <= shard {
            self.rows.resize_with(shard + 1, Vec::new);
        }
        let rows = &mut self.rows[shard];
        if rows.len() <= row {
            rows.resize((row + 1).next_power_of_two(), (0, 0));
        }
        let number = self.next;
        self.next += 1;
        rows[row] = (number, self.turn);
        number
    }
}

/// What a record stands for, should it not be appended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    pub datagrams: u64,
    pub bytes: u64,
}

impl Writer {
    /// What receives for this reader, if there is memory for it that outlives the process.
    pub fn landing(&self, buffer_size: usize) -> Option<Receiver> {
        landing::open(&self.journal.folder, &self.source, buffer_size)
    }

    /// Begins a record of what is added to this generation.
    pub fn begin(&mut self, generation: &Generation) {
        self.draft.clear();
        self.taken.clear();
        if self.generation != Some(*generation) {
            self.begin_numbering();
            self.generation = Some(*generation);
        }
    }

    /// Series are described again.
    fn begin_numbering(&mut self) {
        self.open = None;
        self.numbers.begin();
    }

    /// Puts a sample into the record that was just added to a series of this shard.
    #[inline]
    pub fn sample(&mut self, handle: Handle, shard: &Locked<'_>, sample: &Sample<'_>) {
        let (number, new) = self.numbers.of(handle);
        if new {
            self.draft.series(shard.context(handle));
        }
        self.draft.sample(number, sample, shard.absolute(handle, sample.values));
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
        let generation = self.generation.as_ref();
        if !generation.is_some_and(|generation| self.journal.worth_a_try(generation, now)) {
            self.journal.unprotected(1, bytes.len() as u64, now, || {});
        } else if let Err(error) = self.try_wait(&mut draft, batch, now) {
            self.journal.failed(&error, 1, bytes.len() as u64, now);
        }
        id
    }

    fn try_wait(&mut self, draft: &mut Draft, batch: u64, now: Time) -> io::Result<()> {
        let generation = self.generation.ok_or(io::ErrorKind::NotFound)?;
        let length = draft.len() as u64;
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
        if self.draft.is_empty() && batch == 0 {
            return;
        }
        let Some(generation) = self.generation else { return };
        let journal = Arc::clone(&self.journal);
        if self.open.is_none() && !journal.worth_a_try(&generation, now) {
            self.begin_numbering();
            journal.unprotected(load.datagrams, load.bytes, now, || {});
        } else {
            let mut draft = std::mem::take(&mut self.draft);
            if let Err(error) = self.try_commit(&mut draft, &generation, batch, now) {
                // Whatever was written in part is behind the last end, and cut off when it is read.
                self.begin_numbering();
                journal.failed(&error, load.datagrams, load.bytes, now);
            }
            self.draft = draft;
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
        draft: &mut Draft,
        generation: &Generation,
        batch: u64,
        now: Time,
    ) -> io::Result<()> {
        let length = draft.len() as u64;
        let numbering = self.open.as_ref().map(|open| open.numbering);
        let has_room = |open: &Open| {
            open.position + length <= self.journal.segment_bytes
                && !open.segment.broken.load(Relaxed)
        };
        let mut open = match self.open.take().filter(has_room) {
            Some(open) => open,
            None => self.journal.segment(*generation, &self.source, numbering, false, length)?,
        };
        self.journal.works(now);
        self.append(&mut open, draft, batch, now)?;
        self.open = Some(open);
        Ok(())
    }

    fn append(&self, open: &mut Open, draft: &mut Draft, batch: u64, now: Time) -> io::Result<()> {
        let length = draft.len() as u64;
        self.journal.step(Op::Append)?;
        open.segment.file.write_all_at(draft.finish(open.seed, now, batch), open.position)?;
        fail::point("journal.appended");
        open.position += length;
        open.segment.written.store(open.position, Relaxed);
        let used = self.journal.used.fetch_add(length, Relaxed) + length;
        if used > self.journal.max_bytes / 2 {
            self.journal.want_checkpoint();
        }
        self.journal.telemetry.journal.bytes.add(length);
        Ok(())
    }

    /// Some of what waited was taken in. Its record may be released before the rest is.
    fn some_wait(&mut self, now: Time) {
        let Some(mut open) = self.waiting.take() else { return };
        let mut draft = Draft::default();
        self.taken.iter().for_each(|id| draft.taken(*id));
        if let Err(error) = self.append(&mut open, &mut draft, 0, now) {
            self.journal.failed(&error, 0, 0, now);
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

/// The thread that syncs and releases.
pub struct Keeper {
    journal: Arc<Journal>,
    thread: JoinHandle<()>,
}

impl Keeper {
    /// # Errors
    /// When the system gives no further thread.
    pub fn start(journal: Arc<Journal>, shards: Arc<Shards>, config: &Config) -> io::Result<Self> {
        let interval = Duration::from_secs_f64(config.sync_interval);
        let keeper = Arc::clone(&journal);
        let to_do = journal.to_do.lock().expect("no panic under this lock").take();
        let to_do = to_do.ok_or(io::ErrorKind::AlreadyExists)?;
        let run = move || keeper.keep(&shards, &to_do, interval);
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(run)?;
        Ok(Self { journal, thread })
    }

    /// Releases what is safe by now, and syncs what is not.
    pub fn stop(self) {
        let work = self.journal.work.lock().expect("no panic under this lock").clone();
        // A thread that panicked has said so already.
        let _ = work.send(Work::Stop);
        let _ = self.thread.join();
        let mut files = self.journal.files();
        // They are of no use to anybody; the next start would remove them as well.
        for spare in files.spares.drain(..) {
            let _ = fs::remove_file(spare.path);
        }
        for segment in files.segments.extract_if(.., |s| s.waiting && s.is_empty()) {
            let _ = fs::remove_file(&segment.path);
        }
    }
}

impl Journal {
    fn keep(&self, shards: &Shards, to_do: &mpsc::Receiver<Work>, interval: Duration) {
        let mut sync_at = Instant::now() + interval;
        loop {
            match to_do.recv_timeout(sync_at.saturating_duration_since(Instant::now())) {
                Ok(Work::Release(generations)) => self.release(generations),
                Ok(Work::Full) => self.checkpoint(shards),
                Err(RecvTimeoutError::Timeout) => {
                    self.sync();
                    if self.full.load(Relaxed) {
                        self.checkpoint(shards);
                    }
                    sync_at = Instant::now() + interval;
                }
                Ok(Work::Stop) | Err(RecvTimeoutError::Disconnected) => return self.sync(),
            }
        }
    }

    /// Makes what was appended survive a loss of power.
    fn sync(&self) {
        let segments = self.files().segments.clone();
        for segment in segments {
            let written = segment.written.load(Relaxed);
            if segment.synced.load(Relaxed) == written || segment.broken.load(Relaxed) {
                continue;
            }
            let synced = self.step(Op::Sync).and_then(|()| {
                if segment.file.metadata()?.nlink() == 0 {
                    // Somebody has removed it: a crash would lose what is in it.
                    return Err(io::ErrorKind::NotFound.into());
                }
                segment.file.sync_data()
            });
            match synced {
                Ok(()) => segment.synced.store(written, Relaxed),
                Err(error) => {
                    segment.broken.store(true, Relaxed);
                    self.files().spares.clear();
                    self.failed(&error, 0, 0, Time::from_seconds(segment.generation.start));
                }
            }
        }
    }

    /// Puts what the segments came to in their place.
    pub fn checkpoint(&self, shards: &Shards) {
        let mut encoder = Encoder::new(shards.member_keys());
        let generations = shards.hold(|held| encoder.add(held));
        let written = if encoder.len() as u64 > self.max_bytes {
            Err(io::ErrorKind::QuotaExceeded.into())
        } else {
            self.write_checkpoint(&generations, encoder.finish(&generations))
        };
        match written {
            Ok(path) => {
                fail::point("journal.checkpointed");
                self.telemetry.journal.checkpoints.add(1);
                let mut files = self.files();
                for (_, older) in files.checkpoints.extract_if(.., |(r, _)| within(r, &generations))
                {
                    let _ = self.step(Op::Remove).and_then(|()| fs::remove_file(&older));
                }
                files.checkpoints.push((generations.clone(), path));
                self.free(&mut files, |number| generations.contains(&number));
                // Where that was not enough, the next try has time until the next sync.
                let enough = self.used.load(Relaxed) <= self.max_bytes / 2;
                self.full.store(!enough, Relaxed);
            }
            Err(error) => {
                self.telemetry.journal.errors.add(1);
                tracing::debug!("journal: no checkpoint: {error}");
            }
        }
    }

    fn write_checkpoint(&self, generations: &Range<u64>, bytes: Vec<u8>) -> io::Result<PathBuf> {
        let name = format!("{CHECKPOINT}{:016x}-{:016x}", generations.start, generations.end);
        let path = self.folder.join(&name);
        let temporary = self.folder.join(name + TEMPORARY);
        let written = self.step(Op::Checkpoint).and_then(|()| {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let file = options.open(&temporary)?;
            file.write_all_at(&bytes, 0)?;
            self.step(Op::Sync)?;
            file.sync_data()?;
            self.step(Op::Rename)?;
            fs::rename(&temporary, &path)?;
            self.step(Op::Sync)?;
            File::open(&self.folder)?.sync_all()
        });
        if written.is_err() {
            // The segments stay: what is left of it must not be read beside them.
            let _ = fs::remove_file(&temporary);
            let _ = fs::remove_file(&path);
        }
        written.map(|()| path)
    }

    /// These generations need not be replayed any more. Their files are used again.
    pub fn release(&self, generations: Range<u64>) {
        if generations.is_empty() {
            return;
        }
        let released = {
            let mut files = self.files();
            files.released.add(generations.clone());
            files.released.start = files.released.start.max(files.latest);
            files.released.sequence += 1;
            files.released.clone()
        };
        if let Err(error) = self.write_released(&released) {
            // Tried again with the next flush. Until then they would be replayed, with the same
            // timestamps and values.
            self.telemetry.journal.errors.add(1);
            tracing::debug!("journal: cannot release: {error}");
            return;
        }
        fail::point("journal.released");
        let mut files = self.files();
        self.free(&mut files, |number| released.holds(number));
        for (_, path) in files
            .checkpoints
            .extract_if(.., |(range, _)| released.holds(range.end.saturating_sub(1)))
        {
            let _ = self.step(Op::Remove).and_then(|()| fs::remove_file(&path));
        }
    }

    /// Takes segments out of use.
    fn free(&self, files: &mut Files, is_free: impl Fn(u64) -> bool) {
        let segments = std::mem::take(&mut files.segments);
        let (gone, kept) = segments
            .into_iter()
            .partition::<Vec<_>, _>(|s| !s.waiting && is_free(s.generation.number));
        files.segments = kept;
        for segment in gone {
            self.used.fetch_sub(segment.written.load(Relaxed), Relaxed);
            self.spare(files, &segment);
        }
    }

    /// Keeps a file to be used again, or removes it.
    fn spare(&self, files: &mut Files, segment: &Segment) {
        let bytes = segment.file.metadata().map_or(0, |metadata| metadata.len());
        let spare: u64 = files.spares.iter().map(|spare| spare.bytes).sum();
        let file = segment.file.try_clone();
        match file {
            Ok(file)
                if self.used.load(Relaxed) + spare + bytes <= self.max_bytes
                    && !segment.broken.load(Relaxed) =>
            {
                files.spares.push(Spare { path: segment.path.clone(), file, bytes });
            }
            _ => {
                let removed = self.step(Op::Remove).and_then(|()| fs::remove_file(&segment.path));
                if let Err(error) = removed {
                    tracing::debug!("journal: cannot remove {}: {error}", segment.path.display());
                }
            }
        }
    }

    fn write_released(&self, released: &Released) -> io::Result<()> {
        let slot = released.encode().ok_or(io::ErrorKind::QuotaExceeded)?;
        self.step(Op::Release)?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(self.folder.join(RELEASED))?;
        file.write_all_at(&slot, (released.sequence % 2) * SLOT as u64)?;
        // Before the files are used again: a part of them on the disk must not be taken for a whole.
        self.step(Op::Sync)?;
        file.sync_data()
    }
}

/// What was received or waited, and never came into a record of samples.
#[derive(Debug)]
pub struct Left {
    pub source: Source,
    /// When the last of it arrived.
    pub arrival: Time,
    /// The number of the batch in which they were received, or 0.
    pub batch: u64,
    pub datagrams: Vec<(Vec<u8>, bool)>,
    /// What they are known by, if they waited.
    pub ids: Vec<u64>,
}

impl Found {
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
            && self.waiting.is_empty()
            && self.checkpoints.is_empty()
            && self.landings.is_empty()
    }

    /// Gives every record that was found, generation by generation, with where it came from; then
    /// what is left, which is to be appended by the time that `left` is over.
    pub fn replay(
        self,
        journal: &Journal,
        mut restore: impl FnMut(Entry),
        mut each: impl FnMut(&Header, Record<'_>),
        mut left: impl FnMut(Left),
    ) {
        for path in self.checkpoints {
            // It was whole a moment ago.
            let Ok(bytes) = fs::read(&path) else { continue };
            let Ok(mut checkpoint) = Checkpoint::decode(&bytes) else { continue };
            while let Some(entry) = checkpoint.entry() {
                restore(entry);
            }
        }
        let (mut torn, mut taken, mut batches) = (0, HashSet::new(), HashSet::new());
        let mut take = |record: &Record<'_>| {
            let ids = record.entries.iter().filter_map(|entry| match entry {
                format::Entry::Taken(id) => Some(*id),
                _ => None,
            });
            taken.extend(ids);
        };
        for (header, path) in &self.segments {
            torn += journal.records(header, path, |record| {
                batches.insert(record.batch);
                take(&record);
                each(header, record);
            });
        }
        for (header, path) in &self.waiting {
            torn += journal.records(header, path, |record| take(&record));
        }
        let (appended, landings): (Vec<_>, Vec<_>) =
            self.landings.into_iter().partition(|landing| batches.contains(&landing.batch()));
        appended.into_iter().for_each(Landing::remove);
        for (header, path) in &self.waiting {
            let (mut datagrams, mut ids, mut arrival) = (Vec::new(), Vec::new(), None);
            journal.records(header, path, |record| {
                // Of a batch that has to be taken in as a whole nothing is taken in by itself.
                if record.batch != 0 && landings.iter().any(|l| l.batch() == record.batch) {
                    return;
                }
                for entry in record.entries {
                    let format::Entry::Waits(waiting) = entry else { continue };
                    let Waiting { id, bytes, truncated, line } = waiting;
                    if taken.contains(&id) {
                        continue;
                    }
                    // With its end, which the listener may require.
                    let end: &[u8] = if line { b"\n" } else { b"" };
                    datagrams.push(([bytes, end].concat(), truncated));
                    ids.push(id);
                    arrival = Some(record.arrival);
                }
            });
            if let Some(arrival) = arrival {
                left(Left { source: header.source.clone(), arrival, batch: 0, datagrams, ids });
            }
            let _ = fs::remove_file(path);
        }
        for landing in landings {
            landing.take(&mut left);
        }
        journal.telemetry.journal.torn.add(torn);
        if torn > 0 {
            tracing::warn!(
                "journal: {torn} segments end in a record that is not whole: what it held is lost"
            );
        }
    }
}

impl Journal {
    /// Gives the records of a segment. Returns how many were not whole, which is at most one.
    fn records(&self, header: &Header, path: &Path, mut each: impl FnMut(Record<'_>)) -> u64 {
        let read = self.step(Op::Read).and_then(|()| fs::read(path));
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.set_aside(path, &error.to_string());
                return 0;
            }
        };
        let Ok((_, records)) = Header::decode(&bytes) else { return 0 };
        let mut records = format::Records::new(header, records);
        records.by_ref().for_each(&mut each);
        records.is_torn().into()
    }
}

/// Whether the name begins or ends with this.
fn named(path: &Path, part: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(part) || name.ends_with(part))
}

const fn within(inner: &Range<u64>, outer: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(SEGMENT)?.parse().ok()
}

/// Not zero, so that an empty record has no checksum that fits.
fn random() -> u32 {
    ahash::RandomState::new().hash_one(0_u8) as u32 | 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{AlertType, Dialect, Priority};
    use crate::shard;
    use crate::value::{self, Plan};

    const NOW: Time = Time::from_seconds(1003);

    /// Appends a record of one event.
    fn append(writer: &mut Writer, title: &str, generation: &Generation, now: Time) {
        let event = Event {
            title: title.to_owned(),
            text: String::new(),
            timestamp: 0,
            host: String::new(),
            aggregation_key: String::new(),
            source_type: String::new(),
            priority: Priority::Normal,
            alert_type: AlertType::Info,
            tags: Vec::new(),
        };
        writer.begin(generation);
        writer.event(&event);
        writer.commit(0, Load { datagrams: 1, bytes: title.len() as u64 }, now);
    }

    /// A journal whose disk fails at one operation while it is told to.
    struct Faulty {
        folder: tempfile::TempDir,
        journal: Arc<Journal>,
        writer: Writer,
        shards: Shards,
        fault: Arc<Mutex<Option<(Op, i32)>>>,
    }

    impl Faulty {
        fn new(max_bytes: u64) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let fault = Arc::<Mutex<Option<(Op, i32)>>>::default();
            let asked = Arc::clone(&fault);
            let gate: Gate = Arc::new(move |op| match *asked.lock().unwrap() {
                Some((at, error)) if at == op => Err(io::Error::from_raw_os_error(error)),
                _ => Ok(()),
            });
            let telemetry = Arc::new(Telemetry::default());
            let config = Config { max_bytes, ..Config::default() };
            let place = folder.path().join("journal");
            let (journal, _) = Journal::open(&place, &config, Arc::clone(&telemetry), gate, NOW);
            let plan = Plan::from_config(&value::Config::default());
            let shards =
                Shards::new(shard::Config::default(), plan, 10, String::new(), telemetry, NOW);
            let source =
                Source { name: "x".to_owned(), dialect: Dialect::Datadog, eol_required: false };
            let writer = journal.writer(source);
            Self { folder, journal, writer, shards, fault }
        }

        fn append(&mut self, text: &str, now: Time) {
            let window = self.shards.window(now);
            append(&mut self.writer, text, window.generation(), now);
        }

        /// What the next process would read, in order.
        fn found(&self) -> Vec<String> {
            let config = Config::default();
            let place = self.folder.path().join("journal");
            let gate: Gate = Arc::new(|_| Ok(()));
            let (journal, found) = Journal::open(&place, &config, Arc::default(), gate, NOW);
            let mut all = Vec::new();
            let each = |_: &Header, record: Record<'_>| {
                all.extend(record.entries.into_iter().map(|entry| match entry {
                    format::Entry::Event(event) => event.title,
                    other => panic!("{other:?}"),
                }));
            };
            found.replay(&journal, |_| {}, each, |left| panic!("{left:?}"));
            all
        }

        fn unprotected(&self) -> u64 {
            self.journal.telemetry.journal.unprotected_datagrams.get()
        }

        fn fails(&self) -> bool {
            self.journal.telemetry.journal.failing.load(Relaxed)
        }
    }

    /// Every operation on the readers' way fails with every error: nothing is stopped, what could
    /// not be appended is counted, and within one flush after the fault all is well.
    #[test]
    fn a_disk_that_fails_for_a_while() {
        for error in [libc::ENOSPC, libc::EIO, libc::EROFS, libc::EMFILE] {
            for op in [Op::Create, Op::Append] {
                let mut world = Faulty::new(1 << 20);
                *world.fault.lock().unwrap() = Some((op, error));
                world.append("a", NOW);
                world.append("b", NOW);
                assert_eq!((world.unprotected(), world.fails()), (2, true), "{op:?} {error}");
                *world.fault.lock().unwrap() = None;
                // Tried again in the next generation at the latest.
                world.append("c", Time::from_seconds(1010));
                world.append("d", Time::from_seconds(1010));
                assert_eq!((world.unprotected(), world.fails()), (2, false), "{op:?} {error}");
                assert_eq!(world.found(), ["c", "d"], "{op:?} {error}");
            }
        }
    }

    #[test]
    fn a_segment_that_cannot_be_synced_is_left() {
        for error in [libc::ENOSPC, libc::EIO, libc::EROFS, libc::EMFILE] {
            let mut world = Faulty::new(1 << 20);
            world.append("a", NOW);
            *world.fault.lock().unwrap() = Some((Op::Sync, error));
            world.journal.sync();
            assert!(world.fails());
            *world.fault.lock().unwrap() = None;
            world.append("b", NOW);
            assert!(!world.fails(), "a new segment works");
            world.journal.sync();
            assert_eq!((world.unprotected(), world.journal.files().segments.len()), (0, 2));
            assert_eq!(world.found(), ["a", "b"]);
        }
    }

    #[test]
    fn a_folder_that_is_removed_is_made_anew() {
        let mut world = Faulty::new(1 << 20);
        world.append("a", NOW);
        fs::remove_dir_all(world.folder.path().join("journal")).unwrap();
        world.journal.sync();
        assert!(world.fails(), "what is in it would be lost");
        world.append("b", NOW);
        assert!(!world.fails());
        assert_eq!(world.found(), ["b"]);
    }

    #[test]
    fn what_cannot_be_released_is_released_with_the_next() {
        for op in [Op::Release, Op::Sync] {
            let mut world = Faulty::new(1 << 20);
            world.append("a", NOW);
            let first = world.shards.flush(Time::from_seconds(1010), false).generations;
            world.append("b", Time::from_seconds(1011));
            *world.fault.lock().unwrap() = Some((op, libc::ENOSPC));
            world.journal.release(first);
            assert_eq!(world.journal.files().segments.len(), 2, "{op:?}");
            *world.fault.lock().unwrap() = None;
            let second = world.shards.flush(Time::from_seconds(1020), false).generations;
            world.journal.release(second);
            assert_eq!(world.journal.files().segments.len(), 0, "{op:?}");
            assert_eq!(world.journal.used.load(Relaxed), 0);
            assert_eq!(world.found(), [""; 0], "{op:?}");
        }
    }

    #[test]
    fn files_are_used_again() {
        let mut world = Faulty::new(1 << 20);
        for bucket in 0..20 {
            let now = Time::from_seconds(1000 + bucket * 10);
            world.append("a", now);
            let flushed = world.shards.flush(Time::from_seconds(now.seconds() + 10), false);
            world.journal.release(flushed.generations);
        }
        let files = fs::read_dir(world.folder.path().join("journal")).unwrap();
        let names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "one segment and what is released: {names:?}");
    }

    #[test]
    fn the_journal_is_bounded_and_checkpoints_make_room() {
        let mut world = Faulty::new(256 * 1024);
        let text = "x".repeat(1000);
        let mut appended = 0;
        while world.unprotected() == 0 {
            world.append(&text, NOW);
            appended += 1;
        }
        assert!((200..=260).contains(&appended), "{appended}");
        assert!(world.journal.full.load(Relaxed), "a checkpoint is wanted");
        // A disk that is full for the checkpoint leaves all as it is.
        for op in [Op::Checkpoint, Op::Rename] {
            *world.fault.lock().unwrap() = Some((op, libc::ENOSPC));
            world.journal.checkpoint(&world.shards);
            assert_eq!(world.found().len(), appended - 1, "{op:?}");
        }
        *world.fault.lock().unwrap() = None;
        world.journal.checkpoint(&world.shards);
        world.append("a", Time(NOW.0 + 1000));
        assert!(!world.fails());
        assert_eq!(world.found(), ["a"], "the rest is in the checkpoint");
    }

    #[test]
    fn what_cannot_be_listed_stays_for_a_later_process() {
        let mut world = Faulty::new(1 << 20);
        world.append("a", NOW);
        let (config, place) = (Config::default(), world.folder.path().join("journal"));
        let fault = Arc::new(AtomicBool::new(true));
        let failing = Arc::clone(&fault);
        let gate: Gate = Arc::new(move |op| match op {
            Op::List if failing.load(Relaxed) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            _ => Ok(()),
        });
        let (journal, found) = Journal::open(&place, &config, Arc::default(), gate, NOW);
        assert!(journal.telemetry.journal.failing.load(Relaxed) && found.is_empty());
        let generation = Generation { number: found.next, start: 1010, end: 1020 };
        world.writer = journal.writer(world.writer.source.clone());
        append(&mut world.writer, "b", &generation, NOW);
        journal.release(found.first..found.next + 1);
        let next = Generation { number: found.next + 1, ..generation };
        append(&mut world.writer, "c", &next, NOW);
        assert_eq!(world.found(), ["a", "c"]);
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let mut world = Faulty::new(1 << 20);
        world.append("a", NOW);
        let place = world.folder.path().join("journal");
        let mut later = fs::read(place.join("segment-0")).unwrap();
        later[8] = 9;
        fs::write(place.join("segment-7"), later).unwrap();
        fs::write(place.join("segment-8"), "nonsense of some length").unwrap();
        fs::write(place.join("segment-9"), "").unwrap();
        fs::write(place.join("checkpoint-1-2"), "nonsense").unwrap();
        fs::write(place.join("checkpoint-1-3.tmp"), "half").unwrap();
        fs::write(place.join("released"), "nonsense").unwrap();
        assert_eq!(world.found(), ["a"]);
        let mut names: Vec<_> = fs::read_dir(place.join("bad"))
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["checkpoint-1-2.bad", "segment-7.bad", "segment-8.bad"]);
        assert!(!place.join("segment-9").exists() && !place.join("checkpoint-1-3.tmp").exists());
    }
}
