//! Payloads on disk, so that they outlive an outage and the process: one spool per endpoint.
//!
//! One file holds one payload. Its name tells all that the index needs (sequence, creation, points,
//! bytes, kind), so a start reads names alone; its content (`format`) begins with a header by
//! which it can be sent by a process with other settings. No file and no name holds a key.
//!
//! ```text
//! 00000000000004d2-1700000000-350-20411-series.payload
//! ```
//!
//! A file is written under a temporary name, synced and renamed, so a file with its own name is
//! whole. The index holds the newest payloads, up to `INDEX_MAX`; the folder is listed again
//! when it runs out of them.
//!
//! Two halves take the place of a payload in one step. They are written as `NAME.WHOLE.half`; that
//! the whole is renamed to `NAME.split` makes them count; then they get their own names, and what
//! is left of the whole goes. A start finishes what a crash cut short: halves whose whole is
//! `.split` are payloads, others are not.
//!
//! What is said to block works on files. It takes `files` where files are listed, moved or removed.
//! All else only takes `state`, which is never held over such work, so it may be called by threads
//! that must not wait for a disk.

mod format;
mod index;

use std::collections::{BTreeMap, BinaryHeap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, MutexGuard};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::format::{header, parse};
use self::index::{Index, Listing};
use super::{Body, Payload};
use crate::fail;
use crate::sys;
use crate::telemetry::Endpoint;

pub use self::index::Next;

/// Payloads on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Keep payloads on disk until they are delivered; else they wait in memory.
    pub enabled: bool,
    /// Folder of the spool; empty takes `spool` in `state.run_path`.
    pub path: String,
    /// Bytes on disk for a sink, shared evenly by its endpoints; the oldest payloads are dropped
    /// first.
    pub max_bytes: u64,
    /// How full the spool may make its disk, between 0 and 1; beyond it payloads wait in memory.
    pub max_disk_ratio: f64,
    /// Payloads of the backlog that are sent a second, beside fresh ones.
    pub backlog_rate: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            path: String::new(),
            max_bytes: 500_000_000,
            max_disk_ratio: 0.95,
            backlog_rate: 10.0,
        }
    }
}

/// Payloads that the index holds.
const INDEX_MAX: usize = 50_000;

/// Delivered or dropped payloads whose file cannot be removed; with that many the spool takes no
/// more.
const UNREMOVED_MAX: usize = 10_000;

/// Removals that may fail before the others are left for later.
const UNREMOVED_TRIES: usize = 8;

/// Reads that may fail before a file is set aside.
const TRIES: u8 = 3;

/// Files that are kept aside, and their part of all bytes on disk.
const ASIDE_MAX: usize = 1000;
const ASIDE_PART: u64 = 10;

/// Files set aside that the log names.
const ASIDE_SAID: u64 = 20;

/// Names of a folder that are none of ours and are set aside at a start.
const STRANGERS_MAX: usize = 10_000;

/// Bytes of a file; whatever claims to be longer is none of ours.
const FILE_MAX: u64 = 1 << 31;

const SUFFIX: &str = ".payload";
const TEMPORARY: &str = "tmp";
/// What halves have before they count, and a whole that counts no more.
const HALF: &str = ".half";
const SPLIT: &str = "split";
/// The folder for files that cannot be read.
const BAD: &str = "bad";

/// An operation on files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    MakeFolder,
    List,
    Create,
    Write,
    Sync,
    Rename,
    SyncFolder,
    Read,
    Remove,
}

impl Op {
    pub const ALL: [Self; 9] = [
        Self::MakeFolder,
        Self::List,
        Self::Create,
        Self::Write,
        Self::Sync,
        Self::Rename,
        Self::SyncFolder,
        Self::Read,
        Self::Remove,
    ];

    /// The name of its fail point.
    const fn point(self) -> &'static str {
        match self {
            Self::MakeFolder => "spool.make_folder",
            Self::List => "spool.list",
            Self::Create => "spool.create",
            Self::Write => "spool.write",
            Self::Sync => "spool.sync",
            Self::Rename => "spool.rename",
            Self::SyncFolder => "spool.sync_folder",
            Self::Read => "spool.read",
            Self::Remove => "spool.remove",
        }
    }
}

/// Called before each operation; its error is the operation's. Tests inject faults by it.
pub type Gate = Arc<dyn Fn(Op) -> io::Result<()> + Send + Sync>;

/// The folder of an endpoint.
#[derive(Clone, Debug)]
pub struct Folder {
    name: String,
    /// What earlier versions called it.
    former: String,
}

impl Folder {
    /// A folder belongs to an address and a key, wherever they stand in the settings: nothing is
    /// ever sent with another key than that it was meant for. Of the key the name holds a part of a
    /// hash, salted with the address.
    pub fn new(address: &str, key: &[u8], former: &str) -> Self {
        let crc = |text: &str| format!("{:08x}", crc32fast::hash(text.as_bytes()));
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(address.as_bytes());
        hash.update(&[0]);
        hash.update(key);
        let hash = hash.finish();
        let part: String = hash.as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self { name: format!("{}-{part}", crc(address)), former: crc(former) }
    }
}

/// A payload on disk, known by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub sequence: u64,
    /// Unix seconds of its creation.
    pub time: i64,
    pub points: u64,
    /// Of the whole file.
    pub bytes: u64,
    pub kind: &'static str,
    /// Reads that failed although others did not, and the good reads before the last of them.
    failures: (u8, u64),
}

impl Entry {
    fn file_name(&self) -> String {
        let Self { sequence, time, points, bytes, kind, .. } = self;
        let time = (*time).max(0);
        format!("{sequence:016x}-{time}-{points}-{bytes}-{kind}{SUFFIX}")
    }
}

/// What became of a read.
#[derive(Debug)]
pub enum Found {
    Payload(Payload),
    /// The disk failed; the payload stays for later.
    Later,
    /// It cannot be read ever; it has been counted and set aside.
    Gone,
}

/// What became of a split.
#[derive(Debug)]
pub enum Halved {
    Done([Entry; 2]),
    /// The disk failed; the whole is where it was.
    Later(Entry),
    /// The disk failed, and nothing is left of the whole on it.
    Gone,
}

/// The payloads of one endpoint that wait on disk. What is counted here is in its telemetry.
pub struct Spool {
    folder: PathBuf,
    former: PathBuf,
    /// The kinds of payload that the sink knows.
    kinds: &'static [&'static str],
    max_bytes: u64,
    max_disk_ratio: f64,
    endpoint: Arc<Endpoint>,
    gate: Gate,
    next: AtomicU64,
    reads: AtomicU64,
    loaded: AtomicBool,
    state: Mutex<State>,
    files: Mutex<Files>,
}

/// What is known without looking.
struct State {
    index: Index,
    /// Delivered or dropped, but still there.
    unremoved: VecDeque<Unremoved>,
    unremoved_bytes: u64,
}

/// The files of a payload that are to be removed.
struct Unremoved {
    sequence: u64,
    bytes: u64,
    paths: Vec<PathBuf>,
}

/// A half of a payload that is being split.
struct Half<'a> {
    entry: Entry,
    /// Its file before the whole is gone.
    early: PathBuf,
    path: PathBuf,
    parts: [&'a [u8]; 2],
}

/// Held while files are listed, moved or removed.
#[derive(Default)]
struct Files {
    /// Set aside, oldest first, with their bytes.
    aside: VecDeque<(PathBuf, u64)>,
    aside_bytes: u64,
    /// The last removal failed.
    stuck: bool,
}

impl Spool {
    /// Opens the spool of an endpoint below `root`; blocks. A disk that fails is no error: it is
    /// tried again with every payload. `shares` is the number of endpoints that share the bytes.
    pub fn open(
        root: &Path,
        config: &Config,
        shares: usize,
        folder: &Folder,
        kinds: &'static [&'static str],
        endpoint: Arc<Endpoint>,
        gate: Gate,
    ) -> Self {
        let sink = root.join(endpoint.sink);
        let index = Index::new(INDEX_MAX);
        let spool = Self {
            folder: sink.join(&folder.name),
            former: sink.join(&folder.former),
            kinds,
            max_bytes: config.max_bytes / shares.max(1) as u64,
            max_disk_ratio: config.max_disk_ratio,
            endpoint,
            gate,
            next: AtomicU64::new(1),
            reads: AtomicU64::new(0),
            loaded: AtomicBool::new(false),
            state: Mutex::new(State { index, unremoved: VecDeque::new(), unremoved_bytes: 0 }),
            files: Mutex::default(),
        };
        spool.note(spool.load().err());
        spool
    }

    /// Reads the names that an earlier process left, once: nothing is written before that.
    fn load(&self) -> io::Result<()> {
        if self.loaded.load(Acquire) {
            return Ok(());
        }
        let mut files = self.files();
        // Somebody else may have done it while this waited.
        if self.loaded.load(Acquire) {
            return Ok(());
        }
        self.adopt()?;
        self.make_folder(&self.folder)?;
        let mut survey = self.survey()?;
        if self.finish_splits(&survey.splits)? {
            survey = self.survey()?;
        }
        files.read_aside(&self.folder.join(BAD));
        for name in survey.strangers {
            let path = self.folder.join(&name);
            if path.extension() == Some(OsStr::new(TEMPORARY)) {
                // Never finished, so never counted on.
                let _ = self.remove_file(&path);
            } else {
                self.set_aside(&mut files, &path, "its name is not that of a payload");
            }
        }
        let Survey { kept, last, points, bytes, payloads, minutes, .. } = survey;
        self.next.store(last.saturating_add(1), Relaxed);
        let spooled = &self.endpoint.spooled;
        spooled.points.store(points, Relaxed);
        spooled.bytes.store(bytes, Relaxed);
        spooled.payloads.store(payloads, Relaxed);
        spooled.found(minutes);
        self.endpoint.found.add(points);
        self.state().index.load(kept, payloads);
        self.loaded.store(true, Release);
        if payloads > 0 {
            let Endpoint { sink, name, .. } = &*self.endpoint;
            tracing::info!(
                "sink {sink}: {payloads} payloads with {points} points for {name} are in {}",
                self.folder.display()
            );
        }
        Ok(())
    }

    /// Gives the folder that an earlier version made its name of today.
    fn adopt(&self) -> io::Result<()> {
        self.step(Op::Rename)?;
        match fs::rename(&self.former, &self.folder) {
            Err(error) => match error.kind() {
                // Where both are, nobody knows whose the older one is.
                io::ErrorKind::NotFound
                | io::ErrorKind::DirectoryNotEmpty
                | io::ErrorKind::AlreadyExists => Ok(()),
                _ => Err(error),
            },
            Ok(()) => Ok(()),
        }
    }

    fn survey(&self) -> io::Result<Survey> {
        let mut survey = Survey::default();
        let listing = self.state().index.first_listing();
        survey.kept = self.scan(&listing, |name, entry| match entry {
            Some(entry) => {
                survey.last = survey.last.max(entry.sequence);
                survey.points = survey.points.saturating_add(entry.points);
                survey.bytes = survey.bytes.saturating_add(entry.bytes);
                survey.payloads += 1;
                *survey.minutes.entry(entry.time.div_euclid(60)).or_default() += 1;
            }
            None if let Some(Split::Whole(of) | Split::Half { of, .. }) = split_of(name) => {
                // Its number must not come again while any of it is left.
                survey.last = survey.last.max(of);
                survey.splits.push(name.to_owned());
            }
            None if survey.strangers.len() < STRANGERS_MAX => {
                survey.strangers.push(name.to_owned());
            }
            None => {}
        })?;
        Ok(survey)
    }

    /// Ends splits that a crash cut short. Whether there were any.
    fn finish_splits(&self, names: &[OsString]) -> io::Result<bool> {
        let mut wholes = HashSet::new();
        let mut halves = Vec::new();
        for name in names {
            match split_of(name) {
                Some(Split::Whole(sequence)) => drop(wholes.insert(sequence)),
                Some(Split::Half { of, payload }) => halves.push((name, of, payload)),
                None => {}
            }
        }
        for (name, of, payload) in halves {
            let path = self.folder.join(name);
            if wholes.contains(&of) {
                self.rename(&path, &self.folder.join(payload))?;
            } else {
                // It does not count, and what is left of it will not either.
                let _ = self.remove_file(&path);
            }
        }
        if !wholes.is_empty() {
            self.sync_folder()?;
        }
        let whole = |name: &&OsString| matches!(split_of(name), Some(Split::Whole(_)));
        for name in names.iter().filter(whole) {
            let _ = self.remove_file(&self.folder.join(name));
        }
        Ok(!names.is_empty())
    }

    /// Writes a payload, and drops the oldest that nobody has taken where it needs their room;
    /// blocks. `None` when it is not safely on disk; then nothing of it remains there.
    pub fn put(&self, payload: &Payload, time: i64) -> Option<Entry> {
        self.noted(self.try_put(payload, time)).inspect(|entry| self.count(entry))
    }

    fn try_put(&self, payload: &Payload, time: i64) -> io::Result<Entry> {
        let (header, body) = content(payload)?;
        let bytes = (header.len() + body.len()) as u64;
        self.load()?;
        self.room(bytes)?;
        let entry = self.entry(payload, time, bytes);
        let path = self.path(&entry);
        let temporary = path.with_extension(TEMPORARY);
        let written = self
            .write(&temporary, &[&header, body])
            .and_then(|()| self.rename(&temporary, &path))
            .and_then(|()| self.sync_folder());
        if written.is_err() {
            // It is going to be sent from memory: what is left of it must not be sent as well.
            self.discard_files(&entry, vec![temporary, path]);
            self.sweep();
        }
        written.map(|()| entry)
    }

    /// A new entry, which no listing gives out.
    fn entry(&self, payload: &Payload, time: i64, bytes: u64) -> Entry {
        let sequence = self.next.fetch_add(1, Relaxed);
        self.state().index.take(sequence);
        let Payload { points, kind, .. } = *payload;
        Entry { sequence, time, points, bytes, kind, failures: (0, 0) }
    }

    /// Puts two halves in the place of a payload; blocks. A crash at any moment leaves either it or
    /// them.
    pub fn split(&self, whole: Entry, halves: &[Payload; 2]) -> Halved {
        let Ok(contents) = both(halves.each_ref().map(content)) else {
            return Halved::Later(whole);
        };
        let halves: [Half<'_>; 2] = std::array::from_fn(|n| {
            let (header, body) = &contents[n];
            let entry = self.entry(&halves[n], whole.time, (header.len() + body.len()) as u64);
            let path = self.path(&entry);
            let mut name = path.file_stem().unwrap_or_default().to_owned();
            name.push(format!(".{:016x}{HALF}", whole.sequence));
            Half { entry, early: path.with_file_name(name), path, parts: [header, body] }
        });
        let path = self.path(&whole);
        let marker = path.with_extension(SPLIT);
        let outcome = match self.noted(self.try_split(&path, &marker, &halves)) {
            Some(()) => {
                halves.iter().for_each(|half| self.count(&half.entry));
                self.uncount(&whole);
                self.discard_files(&whole, vec![marker]);
                Halved::Done(halves.map(|half| half.entry))
            }
            None => {
                let back = match self.rename(&marker, &path) {
                    Ok(()) => self.sync_folder().is_ok(),
                    Err(error) => error.kind() == io::ErrorKind::NotFound,
                };
                for half in halves {
                    self.discard_files(&half.entry, vec![half.early, half.path]);
                }
                if back {
                    Halved::Later(whole)
                } else {
                    self.uncount(&whole);
                    self.discard_files(&whole, vec![marker, path]);
                    Halved::Gone
                }
            }
        };
        self.sweep();
        outcome
    }

    fn try_split(&self, whole: &Path, marker: &Path, halves: &[Half<'_>; 2]) -> io::Result<()> {
        for half in halves {
            self.write(&half.early, &half.parts)?;
        }
        self.sync_folder()?;
        self.rename(whole, marker)?;
        self.sync_folder()?;
        for half in halves {
            self.rename(&half.early, &half.path)?;
        }
        self.sync_folder()
    }

    /// Makes room for so many bytes more.
    fn room(&self, bytes: u64) -> io::Result<()> {
        if bytes > self.max_bytes {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        while self.is_over(bytes) {
            let oldest = self.state().index.oldest();
            match oldest {
                Next::Entry(oldest) => self.drop_payload(&oldest),
                Next::List => self.list(false)?,
                Next::Nothing => break,
            }
        }
        self.sweep();
        let state = self.state();
        if state.unremoved.len() >= UNREMOVED_MAX
            || state.unremoved_bytes.saturating_add(bytes) > self.max_bytes
        {
            return Err(io::Error::other("what was delivered cannot be removed"));
        }
        drop(state);
        // A disk that does not tell is found out by the write.
        if let Ok((free, total)) = sys::disk_space(&self.folder)
            && (free.saturating_sub(bytes) as f64) < total as f64 * (1.0 - self.max_disk_ratio)
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Whether so many bytes more are over the bound.
    pub fn is_over(&self, bytes: u64) -> bool {
        self.endpoint.spooled.bytes.load(Relaxed).saturating_add(bytes) > self.max_bytes
    }

    /// Drops a payload for want of room, counted. Its file goes with the next [`Spool::sweep`].
    pub fn drop_payload(&self, entry: &Entry) {
        self.endpoint.spool_full.add(entry.points);
        self.endpoint.spool_full_payloads.add(1);
        self.discard(entry);
    }

    /// Creates a file with this content, safely.
    fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let mut file = match self.create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_folder(&self.folder)?;
                self.create(path)
            }
            other => other,
        }?;
        for part in parts {
            self.step(Op::Write)?;
            file.write_all(part)?;
        }
        self.step(Op::Sync)?;
        file.sync_data()
    }

    fn step(&self, op: Op) -> io::Result<()> {
        fail::point(op.point());
        (self.gate)(op)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.step(Op::Create)?;
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(Op::Rename)?;
        fs::rename(from, to)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.step(Op::SyncFolder)?;
        File::open(&self.folder)?.sync_all()
    }

    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        self.step(Op::MakeFolder)?;
        DirBuilder::new().recursive(true).mode(0o700).create(folder)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(Op::Remove)?;
        fs::remove_file(path)
    }

    /// Reads a payload; blocks. One that fails for the disk's sake comes back through
    /// [`Spool::defer`].
    pub fn read(&self, entry: &mut Entry) -> Found {
        let path = self.path(entry);
        let reason = match self.content(&path) {
            Ok(content) => match parse(&content, self.kinds) {
                Ok(payload) if payload.points == entry.points => {
                    self.reads.fetch_add(1, Relaxed);
                    return Found::Payload(payload);
                }
                Ok(_) => "it is another than its name says".to_owned(),
                Err(reason) => reason,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.lose(entry);
                self.state().index.forget(entry.sequence);
                tracing::warn!("sink {}: {} is gone", self.endpoint.sink, path.display());
                return Found::Gone;
            }
            Err(error) => {
                let reason = error.to_string();
                self.note(Some(error));
                // It is the file's fault only if others can be read.
                let (failures, before) = &mut entry.failures;
                let reads = self.reads.load(Relaxed);
                if reads > *before {
                    (*failures, *before) = (*failures + 1, reads);
                }
                if *failures < TRIES {
                    return Found::Later;
                }
                reason
            }
        };
        self.lose(entry);
        if self.set_aside(&mut self.files(), &path, &reason) {
            self.state().index.forget(entry.sequence);
        }
        Found::Gone
    }

    fn lose(&self, entry: &Entry) {
        self.endpoint.unreadable.add(entry.points);
        self.uncount(entry);
    }

    fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.step(Op::Read)?;
        // Whatever has taken the place of the file: a pipe is not waited for.
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let about = file.metadata()?;
        if !about.is_file() || about.len() > FILE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut content = Vec::with_capacity(about.len() as usize);
        file.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Ends a payload that was delivered, refused or dropped. Its file goes with the next
    /// [`Spool::sweep`].
    pub fn discard(&self, entry: &Entry) {
        self.uncount(entry);
        self.discard_files(entry, vec![self.path(entry)]);
    }

    fn discard_files(&self, entry: &Entry, paths: Vec<PathBuf>) {
        let Entry { sequence, bytes, .. } = *entry;
        let mut state = self.state();
        state.unremoved_bytes = state.unremoved_bytes.saturating_add(bytes);
        state.unremoved.push_back(Unremoved { sequence, bytes, paths });
    }

    /// Removes the files of what was discarded; blocks. What cannot be removed is tried again by the
    /// next.
    pub fn sweep(&self) {
        let mut files = self.files();
        let (rounds, mut failed) = (self.state().unremoved.len(), Vec::new());
        for _ in 0..rounds {
            let Some(mut unremoved) = self.state().unremoved.pop_front() else { break };
            let before = failed.len();
            unremoved.paths.retain(|path| match self.remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    failed.push(format!("{}: {error}", path.display()));
                    true
                }
                Ok(()) | Err(_) => false,
            });
            let mut state = self.state();
            if failed.len() > before {
                state.unremoved.push_back(unremoved);
            } else {
                state.unremoved_bytes = state.unremoved_bytes.saturating_sub(unremoved.bytes);
                state.index.forget(unremoved.sequence);
            }
            if failed.len() >= UNREMOVED_TRIES {
                break;
            }
        }
        self.endpoint.spool_errors.add(failed.len() as u64);
        let stuck = std::mem::replace(&mut files.stuck, !failed.is_empty());
        let sink = self.endpoint.sink;
        match failed.first() {
            Some(failed) if !stuck => tracing::warn!(
                "sink {sink}: cannot remove {failed}; what is delivered and stays there would be \
                 sent again after a restart"
            ),
            None if stuck => tracing::info!("sink {sink}: what is delivered is removed again"),
            Some(_) | None => {}
        }
    }

    /// Adds a payload to the gauges.
    fn count(&self, entry: &Entry) {
        let spooled = &self.endpoint.spooled;
        spooled.points.fetch_add(entry.points, Relaxed);
        spooled.bytes.fetch_add(entry.bytes, Relaxed);
        spooled.payloads.fetch_add(1, Relaxed);
        spooled.came(entry.time);
    }

    /// Takes a payload off the gauges.
    fn uncount(&self, entry: &Entry) {
        let spooled = &self.endpoint.spooled;
        // A payload that was somehow counted off twice must not make the spool look full for ever.
        let take = |gauge: &AtomicU64, n: u64| {
            let less = |held: u64| Some(held.saturating_sub(n));
            let _ = gauge.fetch_update(Relaxed, Relaxed, less);
        };
        take(&spooled.points, entry.points);
        take(&spooled.bytes, entry.bytes);
        take(&spooled.payloads, 1);
        spooled.went(entry.time);
    }

    /// Puts a payload among those that nobody has taken.
    pub fn release(&self, entry: Entry) {
        self.state().index.release(entry);
    }

    /// Puts a payload that could not be read or sent behind all others.
    pub fn defer(&self, entry: Entry) {
        self.state().index.defer(entry);
    }

    /// Whether payloads wait that nobody has taken.
    pub fn has_backlog(&self) -> bool {
        self.state().index.waits()
    }

    /// Takes the newest.
    pub fn newest(&self) -> Next {
        self.state().index.newest()
    }

    /// Lists the folder for the newest, after [`Next::List`]; blocks. False when that failed.
    pub fn find_newest(&self) -> bool {
        self.noted(self.list(true)).is_some()
    }

    fn list(&self, newest: bool) -> io::Result<()> {
        let _files = self.files();
        let listing = self.state().index.listing(newest);
        let found = self.scan(&listing, |_, _| {})?;
        self.state().index.found(&listing, found);
        Ok(())
    }

    /// Lists the folder: gives every name to `each`, and returns the newest or oldest payloads
    /// within a range of sequences, oldest first, in memory that depends on their number alone.
    fn scan(
        &self,
        listing: &Listing,
        mut each: impl FnMut(&OsStr, Option<&Entry>),
    ) -> io::Result<Vec<Entry>> {
        self.step(Op::List)?;
        // The greatest is the first to go.
        let mut kept = BinaryHeap::new();
        let rank = |sequence: u64| if listing.newest { !sequence } else { sequence };
        for file in fs::read_dir(&self.folder)? {
            let file = file?;
            // Folders, such as that for what is set aside, and all else that is no file: skipped.
            if !file.file_type()?.is_file() {
                continue;
            }
            let name = file.file_name();
            let entry = self.parse_name(&name);
            each(&name, entry.as_ref());
            let Some(entry) = entry.filter(|entry| listing.range.contains(&entry.sequence)) else {
                continue;
            };
            kept.push(Ranked(rank(entry.sequence), entry));
            if kept.len() > listing.most {
                kept.pop();
            }
        }
        let mut kept: Vec<Entry> = kept.into_iter().map(|ranked| ranked.1).collect();
        kept.sort_unstable_by_key(|entry| entry.sequence);
        Ok(kept)
    }

    fn parse_name(&self, name: &OsStr) -> Option<Entry> {
        let mut words = name.to_str()?.strip_suffix(SUFFIX)?.split('-');
        let mut word = || words.next();
        let sequence = u64::from_str_radix(word()?, 16).ok()?;
        let (time, points) = (word()?.parse().ok()?, word()?.parse().ok()?);
        let (bytes, kind) = (word()?.parse().ok()?, word()?);
        let kind = self.kinds.iter().find(|known| **known == kind)?;
        let sane = words.next().is_none()
            && bytes <= FILE_MAX
            && points <= FILE_MAX
            && sequence < u64::MAX / 2;
        let entry = Entry { sequence, time, points, bytes, kind, failures: (0, 0) };
        // A name that was not written here would not be found again.
        (sane && entry.file_name().as_str() == name).then_some(entry)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        self.folder.join(entry.file_name())
    }

    /// Moves a file out of the way, where somebody may look at it. Whether that was done.
    fn set_aside(&self, files: &mut Files, path: &Path, reason: &str) -> bool {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".bad");
        let bad = self.folder.join(BAD);
        let place = bad.join(name);
        let moved = self.make_folder(&bad).and_then(|()| self.rename(path, &place));
        let outcome = match &moved {
            Ok(()) => format!("it is set aside in the folder `{BAD}`"),
            Err(error) => format!("it cannot be set aside: {error}"),
        };
        self.endpoint.set_aside.add(1);
        let (sink, file) = (self.endpoint.sink, path.display());
        match self.endpoint.set_aside.get() {
            ..ASIDE_SAID => {
                tracing::warn!("sink {sink}: {file} cannot be read: {reason}; {outcome}");
            }
            ASIDE_SAID => tracing::warn!(
                "sink {sink}: {file} cannot be read: {reason}; {outcome}; further ones are counted \
                 only"
            ),
            _ => {}
        }
        if moved.is_ok() {
            files.add_aside(place);
            let removed = files.shrink_aside(self.max_bytes / ASIDE_PART);
            self.endpoint.set_aside_removed.add(removed);
        }
        moved.is_ok()
    }

    /// What was done, unless the disk failed.
    fn noted<T>(&self, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(done) => {
                self.note(None);
                Some(done)
            }
            Err(error) => {
                self.note(Some(error));
                None
            }
        }
    }

    /// Counts an error; says in the log when the disk begins to fail, and when it works again.
    fn note(&self, error: Option<io::Error>) {
        let failed = error.is_some();
        self.endpoint.spool_errors.add(u64::from(failed));
        if self.endpoint.spool_failing.swap(failed, Relaxed) == failed {
            return;
        }
        let (sink, folder) = (self.endpoint.sink, self.folder.display());
        match error {
            Some(error) => tracing::warn!(
                "sink {sink}: the spool in {folder} fails: {error}; payloads wait in memory until it \
                 works again"
            ),
            None => tracing::info!("sink {sink}: the spool in {folder} works again"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().expect("no panic under this lock")
    }
}

/// What a folder holds.
#[derive(Default)]
struct Survey {
    /// The newest.
    kept: Vec<Entry>,
    last: u64,
    points: u64,
    bytes: u64,
    payloads: u64,
    /// Payloads by the minute of their flush.
    minutes: BTreeMap<i64, u64>,
    /// Parts of splits that a crash cut short.
    splits: Vec<OsString>,
    strangers: Vec<OsString>,
}

/// A file of a split that is not done.
enum Split {
    /// A payload whose halves count.
    Whole(u64),
    /// A half of the payload with this sequence, and the name it is going to have.
    Half { of: u64, payload: String },
}

fn split_of(name: &OsStr) -> Option<Split> {
    let number = |text: &str| {
        let number = || u64::from_str_radix(text, 16).ok();
        (text.len() == 16).then(number).flatten()
    };
    let name = name.to_str()?;
    if let Some(name) = name.strip_suffix(HALF) {
        let (payload, of) = name.rsplit_once('.')?;
        return Some(Split::Half { of: number(of)?, payload: format!("{payload}{SUFFIX}") });
    }
    let name = name.strip_suffix(SPLIT)?.strip_suffix('.')?;
    number(name.split('-').next()?).map(Split::Whole)
}

impl Files {
    /// Finds what was set aside before.
    fn read_aside(&mut self, bad: &Path) {
        let files = fs::read_dir(bad).into_iter().flatten().flatten();
        let mut found: Vec<_> = files
            .filter_map(|file| {
                let about = file.metadata().ok().filter(fs::Metadata::is_file)?;
                Some((about.modified().ok()?, file.path(), about.len()))
            })
            .collect();
        found.sort_unstable();
        self.aside = found.into_iter().map(|(_, path, bytes)| (path, bytes)).collect();
        self.aside_bytes = self.aside.iter().map(|(_, bytes)| bytes).sum();
    }

    fn add_aside(&mut self, path: PathBuf) {
        let bytes = fs::symlink_metadata(&path).map_or(0, |about| about.len());
        self.aside_bytes += bytes;
        self.aside.push_back((path, bytes));
    }

    /// Removes the oldest of what was set aside beyond the bounds. How many.
    fn shrink_aside(&mut self, bytes_max: u64) -> u64 {
        let mut removed = 0;
        while (self.aside.len() > ASIDE_MAX || self.aside_bytes > bytes_max)
            && let Some((path, bytes)) = self.aside.pop_front()
        {
            self.aside_bytes -= bytes;
            removed += u64::from(fs::remove_file(path).is_ok());
        }
        removed
    }
}

/// Says which folders of a sink belong to none of these spools: their endpoints are no longer set.
pub fn warn_of_strangers(folder: &Path, known: &[&Spool]) {
    let folders = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in folders.map(|folder| folder.path()) {
        if known.iter().all(|spool| spool.folder != path) {
            tracing::warn!(
                "the spool in {} belongs to no endpoint that is set now: it stays as it is",
                path.display()
            );
        }
    }
}

/// An entry by its rank.
struct Ranked(u64, Entry);

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

fn both<T>([first, second]: [io::Result<T>; 2]) -> io::Result<[T; 2]> {
    Ok([first?, second?])
}

/// Header and body of a file.
fn content(payload: &Payload) -> io::Result<(Vec<u8>, &[u8])> {
    match &payload.body {
        Body::Bytes(body) => Ok((header(payload, body), body)),
        Body::Batch(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::encode::Coding;

    const KINDS: &[&str] = &["series", "events"];

    /// The operation that fails next, and its errno.
    type Fault = Arc<Mutex<Option<(Op, i32)>>>;

    /// Fails the operation that is set, as often as it comes.
    fn gate(fault: &Fault) -> Gate {
        let fault = Arc::clone(fault);
        Arc::new(move |op| match *fault.lock().unwrap() {
            Some((failing, errno)) if failing == op => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        })
    }

    struct World {
        root: tempfile::TempDir,
        config: Config,
        fault: Fault,
    }

    impl World {
        fn new() -> Self {
            let config = Config { max_disk_ratio: 1.0, ..Config::default() };
            Self { root: tempfile::tempdir().unwrap(), config, fault: Fault::default() }
        }

        fn open(&self) -> Spool {
            let endpoint = Endpoint { sink: "sink", ..Endpoint::default() };
            let gate = gate(&self.fault);
            self.open_with(endpoint, gate)
        }

        fn open_with(&self, endpoint: Endpoint, gate: Gate) -> Spool {
            let folder = Folder::new("https://a", b"key", "https://a");
            Spool::open(self.root.path(), &self.config, 1, &folder, KINDS, Arc::new(endpoint), gate)
        }

        fn fail(&self, fault: Option<(Op, i32)>) {
            *self.fault.lock().unwrap() = fault;
        }
    }

    fn payload(points: u64) -> Payload {
        let body = Body::Bytes(points.to_string().into_bytes());
        Payload { kind: "series", points, coding: Coding::Zstd, body }
    }

    /// Bytes of the file of such a payload of one digit.
    const SIZE: u64 = 16 + 16 + 7 + 5 + 1;

    fn put(spool: &Spool, points: u64) {
        spool.release(spool.put(&payload(points), 1_700_000_000).unwrap());
    }

    fn newest(spool: &Spool) -> Option<Entry> {
        loop {
            match spool.newest() {
                Next::Entry(entry) => return Some(entry),
                Next::List => assert!(spool.find_newest()),
                Next::Nothing => return None,
            }
        }
    }

    /// The points of what is read, taken newest first.
    fn drain(spool: &Spool) -> Vec<u64> {
        let mut found = Vec::new();
        while let Some(mut entry) = newest(spool) {
            if let Found::Payload(read) = spool.read(&mut entry) {
                let points = read.points;
                let Body::Bytes(body) = read.body else { panic!("no bytes") };
                assert_eq!((read.kind, read.coding), ("series", Coding::Zstd));
                assert_eq!(body, points.to_string().as_bytes());
                found.push(points);
                spool.discard(&entry);
                spool.sweep();
            }
        }
        found
    }

    fn waiting(spool: &Spool) -> [u64; 3] {
        let spooled = &spool.endpoint.spooled;
        [&spooled.payloads, &spooled.points, &spooled.bytes].map(|n| n.load(Relaxed))
    }

    fn files(spool: &Spool) -> Vec<String> {
        let names = fs::read_dir(&spool.folder).unwrap();
        let mut names: Vec<_> =
            names.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_put_is_there_after_a_restart_and_comes_newest_first() {
        let world = World::new();
        let spool = world.open();
        (1..=3).for_each(|points| put(&spool, points));
        assert_eq!(waiting(&spool), [3, 6, 3 * SIZE]);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&spool.folder), 0o700);
        let first = &files(&spool)[0];
        assert_eq!(first, "0000000000000001-1700000000-1-45-series.payload");
        assert_eq!(mode(&spool.folder.join(first)), 0o600);
        drop(spool);

        let spool = world.open();
        assert_eq!(waiting(&spool), [3, 6, 3 * SIZE]);
        assert_eq!(spool.endpoint.found.get(), 6);
        put(&spool, 4);
        assert_eq!(drain(&spool), [4, 3, 2, 1]);
        assert_eq!(waiting(&spool), [0, 0, 0]);
        assert!(files(&spool).is_empty() && !spool.has_backlog());
    }

    #[test]
    fn the_oldest_makes_room_and_is_counted() {
        let mut world = World::new();
        world.config.max_bytes = 3 * SIZE;
        let spool = world.open();
        (1..=5).for_each(|points| put(&spool, points));
        assert_eq!(spool.endpoint.spool_full.get(), 1 + 2);
        assert_eq!(spool.endpoint.spool_full_payloads.get(), 2);
        assert_eq!(waiting(&spool), [3, 12, 3 * SIZE]);
        assert_eq!(drain(&spool), [5, 4, 3]);
        put(&spool, 6);
        let large = Payload { body: Body::Bytes(vec![0; 4 * SIZE as usize]), ..payload(1) };
        assert!(spool.put(&large, 0).is_none());
        assert_eq!(drain(&spool), [6], "nothing is dropped for what never fits");

        world.config.max_disk_ratio = 0.0;
        let spool = world.open();
        assert!(spool.put(&payload(1), 0).is_none(), "the disk is fuller than that");
        assert!(files(&spool).is_empty());
    }

    #[test]
    fn every_operation_may_fail_with_every_error() {
        let errors = [libc::ENOSPC, libc::EIO, libc::EROFS, libc::EMFILE];
        let ops = [Op::Create, Op::Write, Op::Sync, Op::Rename, Op::SyncFolder];
        for (op, errno) in ops.into_iter().flat_map(|op| errors.map(|errno| (op, errno))) {
            let world = World::new();
            let spool = world.open();
            put(&spool, 1);
            world.fail(Some((op, errno)));
            assert!(spool.put(&payload(2), 0).is_none(), "{op:?}");
            assert_eq!(spool.endpoint.spool_errors.get(), 1);
            world.fail(None);
            put(&spool, 3);
            assert_eq!(waiting(&spool), [2, 4, 2 * SIZE]);
            assert_eq!(files(&spool).len(), 2, "nothing is left of the failed one");
            drop(spool);
            assert_eq!(drain(&world.open()), [3, 1]);
        }
        for errno in errors {
            let world = World::new();
            let spool = world.open();
            put(&spool, 1);
            put(&spool, 2);
            world.fail(Some((Op::Read, errno)));
            let mut entry = newest(&spool).unwrap();
            assert!(matches!(spool.read(&mut entry), Found::Later));
            spool.release(entry);
            world.fail(Some((Op::Remove, errno)));
            let mut entry = newest(&spool).unwrap();
            assert!(matches!(spool.read(&mut entry), Found::Payload(_)));
            spool.discard(&entry);
            spool.sweep();
            assert_eq!(waiting(&spool), [1, 1, SIZE], "what was delivered does not wait");
            assert_eq!(files(&spool).len(), 2);
            world.fail(None);
            assert_eq!(drain(&spool), [1], "and does not come again");
            assert!(files(&spool).is_empty(), "its file goes with the next one");
        }
    }

    #[test]
    fn a_disk_that_fails_at_the_start_is_read_later() {
        for op in [Op::MakeFolder, Op::List] {
            let world = World::new();
            put(&world.open(), 1);
            world.fail(Some((op, libc::EMFILE)));
            let spool = world.open();
            assert!(spool.put(&payload(2), 0).is_none());
            assert!(!spool.has_backlog());
            world.fail(None);
            put(&spool, 3);
            assert_eq!(drain(&spool), [3, 1]);
        }
    }

    #[test]
    fn a_folder_that_vanishes_is_made_anew() {
        let world = World::new();
        let spool = world.open();
        put(&spool, 1);
        fs::remove_dir_all(&spool.folder).unwrap();
        put(&spool, 2);
        assert_eq!(drain(&spool), [2]);
        assert_eq!((spool.endpoint.unreadable.get(), waiting(&spool)), (1, [0, 0, 0]));
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let world = World::new();
        let spool = world.open();
        let whole = {
            put(&spool, 5);
            fs::read(spool.folder.join(&files(&spool)[0])).unwrap()
        };
        let with = |at: usize, bytes: &[u8]| {
            let mut content = whole.clone();
            content[at..at + bytes.len()].copy_from_slice(bytes);
            content
        };
        let contents = [
            Vec::new(),
            b"tallyd\0P".to_vec(),
            whole[..whole.len() - 1].to_vec(),
            with(0, b"T"),
            with(8, &[2, 0]),
            with(44, b"x"),
            with(16, &[9]),
        ];
        for (n, content) in contents.iter().enumerate() {
            let name = format!("{:016x}-0-10-45-series.payload", n + 100);
            fs::write(spool.folder.join(name), content).unwrap();
        }
        for foreign in ["readme", "1-2-3-4-other.payload", "zz-0-1-1-series.payload"] {
            fs::write(spool.folder.join(foreign), "").unwrap();
        }
        fs::write(spool.folder.join("0000000000000009-0-1-45-series.tmp"), "half").unwrap();
        let spool = world.open();
        assert_eq!(spool.endpoint.set_aside.get(), 3);
        assert_eq!(drain(&spool), [5]);
        assert_eq!(spool.endpoint.set_aside.get(), 3 + contents.len() as u64);
        assert_eq!(spool.endpoint.unreadable.get(), 10 * contents.len() as u64);
        assert_eq!(files(&spool), [BAD]);
        let aside = fs::read_dir(spool.folder.join(BAD)).unwrap().count();
        assert_eq!(aside, 3 + contents.len());
        assert_eq!(waiting(&spool), [0, 0, 0]);
    }

    #[test]
    fn a_file_that_fails_again_and_again_is_set_aside_and_a_whole_disk_is_not() {
        let world = World::new();
        let spool = world.open();
        put(&spool, 7);
        let mut entry = newest(&spool).unwrap();
        let mut fail = || {
            world.fail(Some((Op::Read, libc::EIO)));
            let found = spool.read(&mut entry);
            world.fail(None);
            found
        };
        for _ in 0..20 {
            assert!(matches!(fail(), Found::Later));
        }
        for _ in 1..TRIES {
            put(&spool, 1);
            assert_eq!(drain(&spool), [1]);
            assert!(matches!(fail(), Found::Later));
        }
        put(&spool, 1);
        assert_eq!(drain(&spool), [1]);
        assert!(matches!(fail(), Found::Gone));
        assert_eq!((spool.endpoint.unreadable.get(), spool.endpoint.set_aside.get()), (7, 1));
    }

    #[test]
    fn what_is_set_aside_has_a_bound() {
        let mut world = World::new();
        world.config.max_bytes = 10 * ASIDE_PART;
        let folder = world.open().folder;
        let strangers = |from: usize, to: usize| {
            (from..to).for_each(|n| fs::write(folder.join(format!("x{n:04}")), "12").unwrap());
        };
        strangers(0, 3);
        let aside = || fs::read_dir(folder.join(BAD)).unwrap().count();
        assert_eq!((world.open().endpoint.set_aside_removed.get(), aside()), (0, 3));
        strangers(3, 9);
        let spool = world.open();
        assert_eq!((spool.endpoint.set_aside.get(), aside()), (6, 5), "5 of 2 bytes fit");
        assert_eq!(spool.endpoint.set_aside_removed.get(), 4);

        world.config.max_bytes = u64::MAX;
        strangers(10, 10 + ASIDE_MAX);
        assert_eq!(world.open().endpoint.set_aside_removed.get(), 5);
        assert_eq!(aside(), ASIDE_MAX);
    }

    #[test]
    fn one_that_cannot_be_removed_holds_up_no_other() {
        let world = World::new();
        let spool = world.open();
        (1..=3).for_each(|points| put(&spool, points));
        let mut taken: Vec<_> = (0..3).map(|_| newest(&spool).unwrap()).collect();
        // Not even root can unlink a folder.
        let stuck = spool.path(&taken[2]);
        fs::remove_file(&stuck).unwrap();
        fs::create_dir(&stuck).unwrap();
        let last = taken.remove(0);
        taken.iter().rev().for_each(|entry| spool.discard(entry));
        spool.sweep();
        spool.discard(&last);
        spool.sweep();
        assert_eq!(files(&spool), [stuck.file_name().unwrap().to_str().unwrap()]);
        assert_eq!(spool.endpoint.spool_errors.get(), 2);
        fs::remove_dir(&stuck).unwrap();
        fs::write(&stuck, "").unwrap();
        spool.sweep();
        assert!(files(&spool).is_empty(), "it goes once it can");
    }

    #[test]
    fn a_disk_from_which_nothing_can_be_removed_is_not_filled() {
        let mut world = World::new();
        world.config.max_bytes = 3 * SIZE;
        let spool = world.open();
        world.fail(Some((Op::Remove, libc::EIO)));
        for points in 1..=3 {
            let entry = spool.put(&payload(points), 0).unwrap();
            spool.discard(&entry);
            spool.sweep();
        }
        assert!(spool.put(&payload(4), 0).is_none());
        assert_eq!(files(&spool).len(), 3);
        world.fail(None);
        put(&spool, 5);
        assert_eq!(files(&spool).len(), 1);
        assert_eq!(drain(&spool), [5]);
    }

    #[test]
    fn what_is_no_file_is_skipped() {
        let world = World::new();
        let spool = world.open();
        put(&spool, 1);
        let name = |n: u64| spool.folder.join(format!("{n:016x}-0-1-45-series.payload"));
        fs::create_dir(name(7)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", name(8)).unwrap();
        let mkfifo = std::process::Command::new("mkfifo").arg(name(9)).status();
        assert!(mkfifo.unwrap().success());
        let spool = world.open();
        assert_eq!(waiting(&spool), [1, 1, SIZE]);
        // It takes the place of a file that was known.
        let entry = newest(&spool).unwrap();
        fs::remove_file(spool.path(&entry)).unwrap();
        fs::rename(name(9), spool.path(&entry)).unwrap();
        assert!(matches!(spool.read(&mut entry.clone()), Found::Later));
    }

    #[test]
    fn the_folder_of_an_earlier_version_is_adopted_and_goes_by_its_key() {
        let folder = |address: &str, key: &str| Folder::new(address, key.as_bytes(), address);
        let name = folder("https://a", "key").name;
        assert_ne!(name, folder("https://b", "key").name);
        assert_ne!(name, folder("https://a", "other key").name);
        // By `printf 'https://a\0key' | sha256sum`.
        assert!(name.ends_with("-c3dc825c8926"), "{name}");

        let world = World::new();
        let (folder, former) = {
            let spool = world.open();
            put(&spool, 3);
            (spool.folder, spool.former)
        };
        fs::rename(&folder, &former).unwrap();
        assert_eq!(drain(&world.open()), [3]);
        assert!(!former.exists());
        // Whoever was downgraded in between has both: nobody knows whose the older one is.
        put(&world.open(), 4);
        fs::create_dir(&former).unwrap();
        assert_eq!(drain(&world.open()), [4]);
        assert!(former.exists());
    }

    #[test]
    fn two_that_come_at_once_load_it_once() {
        let world = World::new();
        (1..=3).for_each(|points| put(&world.open(), points));
        let (begun, begins) = std::sync::mpsc::channel();
        let (end, ends) = std::sync::mpsc::channel::<()>();
        let (begun, ends) = (Mutex::new(begun), Mutex::new(ends));
        let listings = AtomicU64::new(0);
        let gate: Gate = Arc::new(move |op| match (op, listings.load(Relaxed)) {
            (Op::List, 0) => {
                listings.store(1, Relaxed);
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            (Op::List, 1) => {
                listings.store(2, Relaxed);
                begun.lock().unwrap().send(()).unwrap();
                let _ = ends.lock().unwrap().recv();
                Ok(())
            }
            _ => Ok(()),
        });
        // The first listing fails, so this is left to the first payload.
        let spool = world.open_with(Endpoint { sink: "sink", ..Endpoint::default() }, gate);
        let (started, starts) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| put(&spool, 4));
            begins.recv().unwrap();
            scope.spawn(|| {
                started.send(()).unwrap();
                put(&spool, 5);
            });
            starts.recv().unwrap();
            // Time to get to where it waits; if that is too short, this only proves less.
            std::thread::sleep(std::time::Duration::from_millis(20));
            drop(end);
        });
        assert_eq!(waiting(&spool), [5, 15, 5 * SIZE]);
        assert_eq!(spool.endpoint.found.get(), 6);
        let mut all = drain(&spool);
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn who_must_not_wait_for_a_disk_does_not() {
        for hanging in [Op::Remove, Op::List] {
            let world = World::new();
            let (begun, begins) = std::sync::mpsc::channel();
            let (end, ends) = std::sync::mpsc::channel::<()>();
            let (begun, ends) = (Mutex::new(begun), Mutex::new(ends));
            let hangs = Arc::new(AtomicBool::new(false));
            let on = Arc::clone(&hangs);
            let gate: Gate = Arc::new(move |op| {
                if on.load(Relaxed) && op == hanging {
                    begun.lock().unwrap().send(()).unwrap();
                    let _ = ends.lock().unwrap().recv();
                }
                Ok(())
            });
            let spool = world.open_with(Endpoint { sink: "sink", ..Endpoint::default() }, gate);
            (1..=3).for_each(|points| put(&spool, points));
            let first = newest(&spool).unwrap();
            spool.discard(&first);
            hangs.store(true, Relaxed);
            std::thread::scope(|scope| {
                scope.spawn(|| match hanging {
                    Op::Remove => spool.sweep(),
                    _ => assert!(spool.find_newest()),
                });
                begins.recv().unwrap();
                // If one of these waited, this test would never end.
                let second = newest(&spool).unwrap();
                spool.release(second);
                let second = newest(&spool).unwrap();
                spool.defer(second);
                let third = newest(&spool).unwrap();
                spool.discard(&third);
                assert!(spool.has_backlog() && !spool.is_over(0));
                hangs.store(false, Relaxed);
                drop(end);
            });
        }
    }

    /// From the operation with this number on all fail, as if the process were no more.
    fn dying(number: usize) -> (Gate, Arc<AtomicU64>) {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        let gate: Gate = Arc::new(move |_| match counted.fetch_add(1, Relaxed) {
            before if before < number as u64 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        });
        (gate, count)
    }

    #[test]
    fn a_split_cut_short_leaves_the_whole_or_its_halves() {
        let endpoint = || Endpoint { sink: "sink", ..Endpoint::default() };
        let mut seen = HashSet::new();
        for number in 0.. {
            let world = World::new();
            put(&world.open(), 9);
            let (gate, count) = dying(usize::MAX);
            let opened = world.open_with(endpoint(), gate);
            let before = count.load(Relaxed) as usize;
            drop(opened);

            let (gate, count) = dying(before + number);
            let spool = world.open_with(endpoint(), gate);
            let whole = newest(&spool).unwrap();
            let split = spool.split(whole, &[payload(4), payload(5)]);
            let done = count.load(Relaxed) as usize <= before + number;
            let failed = !matches!(split, Halved::Done(_));
            assert_eq!(failed, spool.endpoint.spool_failing.load(Relaxed));
            drop(spool);
            let mut left = drain(&world.open());
            left.sort_unstable();
            assert!(left == [9] || left == [4, 5], "cut at {number}: {left:?}");
            seen.insert(left);
            let files = files(&world.open());
            assert!(files.is_empty(), "{files:?}");
            if done {
                break;
            }
        }
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn a_split_that_fails_leaves_the_whole_where_it_was() {
        let mut outcomes = [0; 2];
        for number in 0.. {
            let world = World::new();
            let (count, fails_at) =
                (Arc::<AtomicU64>::default(), Arc::new(AtomicU64::new(u64::MAX)));
            let (counted, failing) = (Arc::clone(&count), Arc::clone(&fails_at));
            let gate: Gate =
                Arc::new(move |_| match counted.fetch_add(1, Relaxed) == failing.load(Relaxed) {
                    true => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
                    false => Ok(()),
                });
            let spool = world.open_with(Endpoint { sink: "sink", ..Endpoint::default() }, gate);
            put(&spool, 9);
            let whole = newest(&spool).unwrap();
            fails_at.store(count.load(Relaxed) + number, Relaxed);
            let split = spool.split(whole, &[payload(4), payload(5)]);
            let spared = count.load(Relaxed) <= fails_at.swap(u64::MAX, Relaxed);
            match split {
                Halved::Done(halves) => {
                    outcomes[0] += 1;
                    assert_eq!(waiting(&spool), [2, 9, 2 * SIZE]);
                    halves.into_iter().for_each(|half| spool.release(half));
                    assert_eq!(drain(&spool), [5, 4]);
                }
                Halved::Later(whole) => {
                    outcomes[1] += 1;
                    assert_eq!(waiting(&spool), [1, 9, SIZE]);
                    spool.release(whole);
                    assert_eq!(drain(&spool), [9]);
                }
                Halved::Gone => panic!("it fails once only"),
            }
            assert!(files(&spool).is_empty(), "{number}");
            if spared {
                break;
            }
        }
        // Creating, writing twice and syncing a file, for each half; then syncing the folder thrice
        // and renaming the whole and the halves.
        assert_eq!(outcomes[1], 2 * 4 + 3 + 3);
    }

    #[test]
    fn a_backlog_beyond_the_index_is_found_by_listing() {
        let mut world = World::new();
        world.config.max_bytes = 9 * SIZE;
        let spool = world.open();
        let small = || spool.state().index = Index::new(3);
        small();
        (1..=9).for_each(|points| put(&spool, points));
        assert_eq!(drain(&spool), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert!(!spool.has_backlog());

        small();
        (1..=9).for_each(|points| put(&spool, points));
        put(&spool, 1);
        put(&spool, 2);
        assert_eq!(drain(&spool), [2, 1, 9, 8, 7, 6, 5, 4, 3], "the oldest made room");

        // One is on its way and another delivered, while the folder is listed.
        small();
        (1..=5).for_each(|points| put(&spool, points));
        let delivered = newest(&spool).unwrap();
        let under_way = newest(&spool).unwrap();
        (6..=9).for_each(|points| put(&spool, points));
        world.fail(Some((Op::Remove, libc::EIO)));
        spool.discard(&delivered);
        spool.sweep();
        world.fail(None);
        let mut found: Vec<u64> = Vec::new();
        while let Some(entry) = newest(&spool) {
            found.push(entry.points);
        }
        assert_eq!(found, [9, 8, 7, 6, 3, 2, 1]);
        spool.release(under_way);
        assert_eq!(drain(&spool), [4]);
    }

    #[test]
    fn listing_keeps_the_newest_or_the_oldest() {
        let world = World::new();
        let spool = world.open();
        (1..=9).for_each(|points| put(&spool, points));
        for (range, most, newest, expected) in [
            (0..u64::MAX, 3, true, &[7, 8, 9][..]),
            (0..u64::MAX, 3, false, &[1, 2, 3]),
            (4..7, 9, true, &[4, 5, 6]),
            (4..7, 1, false, &[4]),
            (20..30, 1, true, &[]),
        ] {
            let found = spool.scan(&Listing { range, most, newest }, |_, _| {}).unwrap();
            assert_eq!(found.iter().map(|entry| entry.points).collect::<Vec<_>>(), expected);
        }
    }
}
