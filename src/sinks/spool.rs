//! Payloads on disk, so that they outlive an outage and the process: one spool per endpoint.
//!
//! One file holds one payload. Its name tells all that the index needs (sequence, creation, points,
//! bytes, kind), so a start reads names alone; its content begins with a header by which it can be
//! sent by a process with other settings. No file and no name holds a key.
//!
//! ```text
//! 00000000000004d2-1700000000-350-20411-series.payload
//!
//! magic 8 | version u16 | header length u16 | CRC-32 of what follows u32
//! | points u64 | body length u64 | kind length u8, kind | coding length u8, coding | body
//! ```
//!
//! Numbers are little-endian. A file is written under a temporary name, synced and renamed, so a
//! file with its own name is whole; the checksum is for disks that forget. The index holds the
//! newest payloads, up to `INDEX_MAX`; the folder is listed again when it runs out of them.

use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Body, Payload};
use crate::encode::Coding;
use crate::fail;
use crate::sys;
use crate::telemetry::Endpoint;

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

/// The oldest payloads that one listing finds for dropping.
const DOOMED_MAX: usize = 20_000;

/// Delivered payloads whose file could not be removed yet.
const UNREMOVED_MAX: usize = 10_000;

/// Reads that may fail before a file is set aside.
const TRIES: u8 = 3;

const MAGIC: &[u8; 8] = b"tallyd\0P";
const VERSION: u16 = 1;

/// Bytes before those that the checksum covers.
const PREFIX: usize = 16;

/// Bytes of a file; whatever claims to be longer is none of ours.
const FILE_MAX: u64 = 1 << 31;

const SUFFIX: &str = ".payload";
const TEMPORARY: &str = ".tmp";
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
    /// Reads that failed.
    failures: u8,
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

/// The payloads of one endpoint that wait on disk. What is counted here is in its telemetry.
pub struct Spool {
    folder: PathBuf,
    /// The kinds of payload that the sink knows.
    kinds: &'static [&'static str],
    max_bytes: u64,
    max_disk_ratio: f64,
    endpoint: Arc<Endpoint>,
    gate: Gate,
    next: AtomicU64,
    index: Mutex<Index>,
    loaded: AtomicBool,
}

/// The payloads that nobody has taken, oldest first. All files are in here or with whoever took
/// them, save those below `floor`: these are only counted, and found by listing the folder.
#[derive(Default)]
struct Index {
    backlog: VecDeque<Entry>,
    /// The oldest, found for dropping; all are below `floor`.
    doomed: VecDeque<Entry>,
    floor: u64,
    /// Files below `floor` that are not in `doomed`.
    hidden: u64,
    /// Tried in vain: their turn comes when nothing else waits, so that one which the endpoint can
    /// never take does not hold up the others.
    deferred: VecDeque<Entry>,
    /// Delivered or dropped, but still there.
    unremoved: Vec<Entry>,
}

impl Spool {
    /// Opens the spool of an endpoint below `root`. A disk that fails is no error: it is tried again
    /// with every payload. `shares` is the number of endpoints that share the bytes.
    pub fn open(
        root: &Path,
        config: &Config,
        shares: usize,
        folder: &str,
        kinds: &'static [&'static str],
        endpoint: Arc<Endpoint>,
        gate: Gate,
    ) -> Self {
        let spool = Self {
            folder: root
                .join(endpoint.sink)
                .join(format!("{:08x}", crc32fast::hash(folder.as_bytes()))),
            kinds,
            max_bytes: config.max_bytes / shares.max(1) as u64,
            max_disk_ratio: config.max_disk_ratio,
            endpoint,
            gate,
            next: AtomicU64::new(1),
            index: Mutex::default(),
            loaded: AtomicBool::new(false),
        };
        spool.note(spool.load().err());
        spool
    }

    /// Reads the names that an earlier process left, once: nothing is written before that.
    fn load(&self) -> io::Result<()> {
        if self.loaded.load(Relaxed) {
            return Ok(());
        }
        self.make_folder()?;
        let (mut points, mut bytes, mut payloads, mut last) = (0, 0, 0, 0);
        let mut foreign = Vec::new();
        let kept = self.scan(0..u64::MAX, INDEX_MAX, true, |name, entry| match entry {
            Some(entry) => {
                last = last.max(entry.sequence);
                points += entry.points;
                bytes += entry.bytes;
                payloads += 1;
            }
            None => foreign.push(name.to_owned()),
        })?;
        for name in foreign {
            let path = self.folder.join(&name);
            if name.as_encoded_bytes().ends_with(TEMPORARY.as_bytes()) {
                // Never finished, so never counted on.
                let _ = self.remove_file(&path);
            } else {
                self.set_aside(&path, "its name is not that of a payload");
            }
        }
        self.loaded.store(true, Relaxed);
        self.next.store(last.saturating_add(1), Relaxed);
        let spooled = &self.endpoint.spooled;
        spooled.points.store(points, Relaxed);
        spooled.bytes.store(bytes, Relaxed);
        spooled.payloads.store(payloads, Relaxed);
        self.endpoint.found.add(points);
        let mut index = self.index();
        index.floor = kept.first().map_or(0, |entry| entry.sequence);
        index.hidden = payloads - kept.len() as u64;
        index.backlog = kept.into();
        if payloads > 0 {
            let Endpoint { sink, name, .. } = &*self.endpoint;
            tracing::info!(
                "sink {sink}: {payloads} payloads with {points} points for {name} are in {}",
                self.folder.display()
            );
        }
        Ok(())
    }

    /// Writes a payload, and drops the oldest that nobody has taken where it needs their room.
    /// `None` when it is not safely on disk; then nothing of it remains there.
    pub fn put(&self, payload: &Payload, time: i64) -> Option<Entry> {
        match self.try_put(payload, time) {
            Ok(entry) => {
                self.note(None);
                let spooled = &self.endpoint.spooled;
                spooled.points.fetch_add(entry.points, Relaxed);
                spooled.bytes.fetch_add(entry.bytes, Relaxed);
                spooled.payloads.fetch_add(1, Relaxed);
                Some(entry)
            }
            Err(error) => {
                self.note(Some(error));
                None
            }
        }
    }

    fn try_put(&self, payload: &Payload, time: i64) -> io::Result<Entry> {
        let Body::Bytes(body) = &payload.body else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let header = header(payload, body);
        let bytes = (header.len() + body.len()) as u64;
        self.load()?;
        self.room(bytes)?;
        let (points, kind) = (payload.points, payload.kind);
        let sequence = self.next.fetch_add(1, Relaxed);
        let entry = Entry { sequence, time, points, bytes, kind, failures: 0 };
        self.write(&entry, &[&header, body])?;
        Ok(entry)
    }

    /// Makes room for so many bytes more.
    fn room(&self, bytes: u64) -> io::Result<()> {
        if bytes > self.max_bytes {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        while self.is_over(bytes) {
            let Some(oldest) = self.oldest() else { break };
            self.drop_payload(oldest);
        }
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

    /// Drops a payload for want of room, counted.
    pub fn drop_payload(&self, entry: Entry) {
        self.endpoint.spool_full.add(entry.points);
        self.endpoint.spool_full_payloads.add(1);
        self.remove(entry);
    }

    fn write(&self, entry: &Entry, parts: &[&[u8]]) -> io::Result<()> {
        let path = self.path(entry);
        let temporary = path.with_extension(&TEMPORARY[1..]);
        let mut file = match self.create(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_folder()?;
                self.create(&temporary)
            }
            other => other,
        }?;
        let written = self.fill(&mut file, parts).and_then(|()| {
            self.step(Op::Rename)?;
            fs::rename(&temporary, &path)
        });
        let synced = written.and_then(|()| {
            self.step(Op::SyncFolder)?;
            File::open(&self.folder)?.sync_all()
        });
        if synced.is_err() {
            // It is going to be sent from memory: what is left of it must not be sent as well.
            for path in [&temporary, &path] {
                let removed = self.remove_file(path);
                if removed.is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                    let unremoved = &mut self.index().unremoved;
                    if unremoved.len() < UNREMOVED_MAX {
                        unremoved.push(entry.clone());
                    }
                }
            }
        }
        synced
    }

    fn step(&self, op: Op) -> io::Result<()> {
        fail::point(op.point());
        (self.gate)(op)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.step(Op::Create)?;
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    fn fill(&self, file: &mut File, parts: &[&[u8]]) -> io::Result<()> {
        for part in parts {
            self.step(Op::Write)?;
            file.write_all(part)?;
        }
        self.step(Op::Sync)?;
        file.sync_data()
    }

    fn make_folder(&self) -> io::Result<()> {
        self.step(Op::MakeFolder)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)
    }

    /// Reads a payload. One that fails for the disk's sake comes back through [`Spool::release`].
    pub fn read(&self, entry: &mut Entry) -> Found {
        let path = self.path(entry);
        let content = self.step(Op::Read).and_then(|()| {
            let length = fs::metadata(&path)?.len();
            if length > FILE_MAX {
                Err(io::ErrorKind::FileTooLarge.into())
            } else {
                fs::read(&path)
            }
        });
        let reason = match content {
            Ok(content) => match parse(&content, self.kinds) {
                Ok(payload) => return Found::Payload(payload),
                Err(reason) => reason,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => "it is gone".to_owned(),
            Err(error) => {
                let reason = error.to_string();
                self.note(Some(error));
                entry.failures += 1;
                if entry.failures < TRIES {
                    return Found::Later;
                }
                reason
            }
        };
        self.endpoint.unreadable.add(entry.points);
        self.forget(entry);
        self.set_aside(&path, &reason);
        Found::Gone
    }

    /// Removes a payload that was delivered or refused.
    pub fn remove(&self, entry: Entry) {
        self.forget(&entry);
        let mut unremoved = std::mem::take(&mut self.index().unremoved);
        unremoved.push(entry);
        let mut failed = None;
        unremoved.retain(|entry| {
            // What fails for one fails for the others.
            if failed.is_some() {
                return true;
            }
            let removed = self.remove_file(&self.path(entry));
            failed = removed.err().filter(|error| error.kind() != io::ErrorKind::NotFound);
            failed.is_some()
        });
        if failed.is_some() {
            self.note(failed);
        }
        unremoved.truncate(UNREMOVED_MAX);
        self.index().unremoved.append(&mut unremoved);
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(Op::Remove)?;
        fs::remove_file(path)
    }

    /// Takes a payload off the gauges.
    fn forget(&self, entry: &Entry) {
        let spooled = &self.endpoint.spooled;
        // A payload that was somehow counted off twice must not make the spool look full for ever.
        let take = |gauge: &AtomicU64, n: u64| {
            let less = |held: u64| Some(held.saturating_sub(n));
            let _ = gauge.fetch_update(Relaxed, Relaxed, less);
        };
        take(&spooled.points, entry.points);
        take(&spooled.bytes, entry.bytes);
        take(&spooled.payloads, 1);
    }

    /// Puts a payload among those that nobody has taken.
    pub fn release(&self, entry: Entry) {
        let mut index = self.index();
        if entry.sequence < index.floor {
            index.hidden += 1;
            return;
        }
        let at = index.backlog.partition_point(|other| other.sequence < entry.sequence);
        index.backlog.insert(at, entry);
        if index.backlog.len() > INDEX_MAX
            && let Some(oldest) = index.backlog.pop_front()
        {
            index.floor = oldest.sequence + 1;
            index.hidden += 1;
        }
    }

    /// Puts a payload of the backlog that could not be sent behind all others.
    pub fn defer(&self, entry: Entry) {
        let mut index = self.index();
        if index.deferred.len() < INDEX_MAX {
            index.deferred.push_back(entry);
        } else {
            drop(index);
            self.release(entry);
        }
    }

    /// Whether payloads wait that nobody has taken.
    pub fn has_backlog(&self) -> bool {
        let index = self.index();
        let known = [&index.backlog, &index.doomed, &index.deferred];
        index.hidden > 0 || known.iter().any(|entries| !entries.is_empty())
    }

    /// Takes the newest.
    pub fn newest(&self) -> Option<Entry> {
        let mut index = self.index();
        if index.backlog.is_empty() && index.hidden > 0 {
            let low = index.doomed.back().map_or(0, |entry| entry.sequence + 1);
            let found = self.found(&index, low, INDEX_MAX, true)?;
            index.floor = found.first().map_or(low, |entry| entry.sequence);
            index.hidden = index.hidden.saturating_sub(found.len() as u64);
            if found.is_empty() {
                index.hidden = 0;
            }
            index.backlog = found.into();
        }
        let waiting = index.backlog.pop_back().or_else(|| index.doomed.pop_back());
        waiting.or_else(|| index.deferred.pop_front())
    }

    /// Takes the oldest.
    fn oldest(&self) -> Option<Entry> {
        let mut index = self.index();
        if index.doomed.is_empty() && index.hidden > 0 {
            let found = self.found(&index, 0, DOOMED_MAX, false)?;
            index.hidden = index.hidden.saturating_sub(found.len() as u64);
            if found.is_empty() {
                index.hidden = 0;
            }
            index.doomed = found.into();
        }
        let waiting = index.doomed.pop_front().or_else(|| index.backlog.pop_front());
        waiting.or_else(|| index.deferred.pop_front())
    }

    /// Lists the folder for payloads below the floor, oldest first.
    fn found(&self, index: &Index, low: u64, most: usize, newest: bool) -> Option<Vec<Entry>> {
        let listed = self.scan(low..index.floor, most, newest, |_, _| {});
        let mut found = listed.map_err(|error| self.note(Some(error))).ok()?;
        // What failed and was put last, and what is gone but for its file, has its turn elsewhere.
        let elsewhere: HashSet<u64> =
            index.deferred.iter().chain(&index.unremoved).map(|entry| entry.sequence).collect();
        found.retain(|entry| !elsewhere.contains(&entry.sequence));
        Some(found)
    }

    /// Lists the folder: gives every name to `each`, and returns the newest or oldest payloads
    /// within a range of sequences, oldest first, in memory that depends on their number alone.
    fn scan(
        &self,
        range: Range<u64>,
        most: usize,
        newest: bool,
        mut each: impl FnMut(&OsStr, Option<&Entry>),
    ) -> io::Result<Vec<Entry>> {
        self.step(Op::List)?;
        // The greatest is the first to go.
        let mut kept = BinaryHeap::new();
        let rank = |sequence: u64| if newest { !sequence } else { sequence };
        for file in fs::read_dir(&self.folder)? {
            let name = file?.file_name();
            if name == BAD {
                continue;
            }
            let entry = self.parse_name(&name);
            each(&name, entry.as_ref());
            let Some(entry) = entry.filter(|entry| range.contains(&entry.sequence)) else {
                continue;
            };
            kept.push(Ranked(rank(entry.sequence), entry));
            if kept.len() > most {
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
        let entry = Entry { sequence, time, points, bytes, kind, failures: 0 };
        // A name that was not written here would not be found again.
        (sane && self.path(&entry).file_name() == Some(name)).then_some(entry)
    }

    fn path(&self, entry: &Entry) -> PathBuf {
        let Entry { sequence, time, points, bytes, kind, .. } = entry;
        let time = (*time).max(0);
        self.folder.join(format!("{sequence:016x}-{time}-{points}-{bytes}-{kind}{SUFFIX}"))
    }

    /// Moves a file out of the way, where somebody may look at it.
    fn set_aside(&self, path: &Path, reason: &str) {
        self.endpoint.set_aside.add(1);
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".bad");
        let bad = self.folder.join(BAD);
        let moved = DirBuilder::new().recursive(true).mode(0o700).create(&bad);
        let moved = moved.and_then(|()| fs::rename(path, bad.join(name)));
        let outcome = match moved {
            Ok(()) => "it is set aside in the folder `bad`".to_owned(),
            Err(error) => format!("it cannot be set aside: {error}"),
        };
        let (sink, file) = (self.endpoint.sink, path.display());
        tracing::warn!("sink {sink}: {file} cannot be read: {reason}; {outcome}");
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

    fn index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().expect("no panic under this lock")
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

/// What stands before the body in a file.
fn header(payload: &Payload, body: &[u8]) -> Vec<u8> {
    let mut covered = Vec::with_capacity(64);
    covered.extend_from_slice(&payload.points.to_le_bytes());
    covered.extend_from_slice(&(body.len() as u64).to_le_bytes());
    for word in [payload.kind, payload.coding.word()] {
        covered.push(word.len() as u8);
        covered.extend_from_slice(word.as_bytes());
    }
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&covered);
    checksum.update(body);
    let mut header = Vec::with_capacity(PREFIX + covered.len());
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&((PREFIX + covered.len()) as u16).to_le_bytes());
    header.extend_from_slice(&checksum.finalize().to_le_bytes());
    header.extend_from_slice(&covered);
    header
}

/// Reads the content of a file, or says why it cannot be.
fn parse(content: &[u8], kinds: &[&'static str]) -> Result<Payload, String> {
    let short = || "it is cut short".to_owned();
    let rest = content.strip_prefix(MAGIC).ok_or("it is no payload of tallyd's")?;
    let (version, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(format!(
            "it has version {version}, which this version of tallyd does not know"
        ));
    }
    let (_, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (checksum, rest) = rest.split_first_chunk().ok_or_else(short)?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*checksum) {
        return Err("its checksum is wrong".to_owned());
    }
    let (points, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (kind, rest) = word(rest).ok_or_else(short)?;
    let (coding, body) = word(rest).ok_or_else(short)?;
    if u64::from_le_bytes(*length) != body.len() as u64 {
        return Err(short());
    }
    let kind = kinds.iter().find(|known| known.as_bytes() == kind);
    let coding = Coding::ALL.into_iter().find(|known| known.word().as_bytes() == coding);
    Ok(Payload {
        kind: kind.ok_or("its kind is unknown")?,
        points: u64::from_le_bytes(*points),
        coding: coding.ok_or("its coding is unknown")?,
        body: Body::Bytes(body.to_vec()),
    })
}

/// A word behind its length.
fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

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
            Spool::open(self.root.path(), &self.config, 1, "e", KINDS, Arc::new(endpoint), gate)
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

    /// The points of what is read, taken newest first.
    fn drain(spool: &Spool) -> Vec<u64> {
        let mut found = Vec::new();
        while let Some(mut entry) = spool.newest() {
            if let Found::Payload(read) = spool.read(&mut entry) {
                let points = read.points;
                let Body::Bytes(body) = read.body else { panic!("no bytes") };
                assert_eq!((read.kind, read.coding), ("series", Coding::Zstd));
                assert_eq!(body, points.to_string().as_bytes());
                found.push(points);
                spool.remove(entry);
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
            let mut entry = spool.newest().unwrap();
            assert!(matches!(spool.read(&mut entry), Found::Later));
            spool.release(entry);
            world.fail(Some((Op::Remove, errno)));
            let mut entry = spool.newest().unwrap();
            assert!(matches!(spool.read(&mut entry), Found::Payload(_)));
            spool.remove(entry);
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn only_what_was_written_is_read(
            body in prop::collection::vec(any::<u8>(), 0..100),
            points: u64,
            at: prop::sample::Index,
            flip in 1..=255_u8,
            noise in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let payload =
                Payload { kind: "events", points, coding: Coding::Gzip, body: Body::Bytes(body.clone()) };
            let mut file = header(&payload, &body);
            file.extend_from_slice(&body);
            let read = parse(&file, KINDS).unwrap();
            prop_assert_eq!((read.kind, read.points, read.coding), ("events", points, Coding::Gzip));
            prop_assert!(matches!(read.body, Body::Bytes(read) if read == body));
            for end in 0..file.len() {
                prop_assert!(parse(&file[..end], KINDS).is_err());
            }
            let at = at.index(file.len());
            file[at] ^= flip;
            // The header's own length is for later versions.
            prop_assert!((10..12).contains(&at) || parse(&file, KINDS).is_err());
            // Even a right checksum vouches for nothing.
            let mut forged = MAGIC.to_vec();
            forged.extend_from_slice(&[1, 0, 0, 0]);
            forged.extend_from_slice(&crc32fast::hash(&noise).to_le_bytes());
            forged.extend_from_slice(&noise);
            prop_assert!(parse(&forged, KINDS).is_err());
        }
    }

    #[test]
    fn a_file_that_fails_again_and_again_is_set_aside() {
        let world = World::new();
        let spool = world.open();
        put(&spool, 7);
        world.fail(Some((Op::Read, libc::EIO)));
        let mut entry = spool.newest().unwrap();
        for _ in 1..TRIES {
            assert!(matches!(spool.read(&mut entry), Found::Later));
        }
        assert!(matches!(spool.read(&mut entry), Found::Gone));
        assert_eq!((spool.endpoint.unreadable.get(), spool.endpoint.set_aside.get()), (7, 1));
    }

    #[test]
    fn a_backlog_beyond_the_index_is_found_by_listing() {
        let world = World::new();
        let spool = world.open();
        (1..=9).for_each(|points| put(&spool, points));
        // As if the index held only the newest three.
        let mut index = spool.index();
        index.hidden = index.backlog.drain(..6).count() as u64;
        index.floor = 7;
        drop(index);
        assert_eq!(spool.oldest().map(|entry| entry.points), Some(1));
        let late =
            Entry { sequence: 1, time: 0, points: 1, bytes: SIZE, kind: "series", failures: 0 };
        let doomed: Vec<_> = spool.index().doomed.drain(..).collect();
        assert_eq!(doomed.iter().map(|entry| entry.points).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        // Given back, each is only counted.
        doomed.into_iter().chain([late]).for_each(|entry| spool.release(entry.clone()));
        // The names that a restart would build are the same.
        assert_eq!(spool.index().hidden, 6);
        assert_eq!(drain(&spool), [9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert!(!spool.has_backlog());
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
            let found = spool.scan(range, most, newest, |_, _| {}).unwrap();
            assert_eq!(found.iter().map(|entry| entry.points).collect::<Vec<_>>(), expected);
        }
    }
}
