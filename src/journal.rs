//! What was read outlives the process.
//!
//! A reader puts what it understood of each batch of datagrams behind what it has, its *segment*, in
//! the same window in which it adds it to the aggregate: a number for the series, which is described
//! once, and the values. Until then the datagrams themselves lie in buffers that outlive the process
//! too (`journal/landing.rs`). Once every sink has the batch of a flush safe, the segments that it
//! came from are released, and used again. What a process leaves behind is taken in again by the next
//! one.
//!
//! ```text
//! socket   --recvmmsg-> landing       datagrams, in memory
//! reader   --commit---> tail          samples, under the window: a segment is of one generation
//! tail     --append---> segment-3     by the reader when it is full, by the keeper before a sync
//! flush    --batch----> sinks         with a receipt; when the last of it is gone:
//! keeper   --release--> released      one write says which generations need no replay
//!          --sync-----> segment-*     each journal.sync_interval, off the readers' way
//! ```
//!
//! Samples instead of datagrams, since they are a twentieth of the bytes, have the tags of their
//! senders already, and need not be parsed and mapped again.
//!
//! What waits for the tags of its sender is in no generation yet. It lies as it came in a segment
//! apart, until it is taken in: the record that holds its samples says so as well.
//!
//! Memory here is of a kind that outlives the process (`journal/memory.rs`). What is in it, and what
//! was written to a file, survives a crash; what was synced survives a loss of power. Errors of the
//! disk never stop a reader: they are counted and tried again each second, and what could not be
//! kept is counted as unprotected.

pub mod checkpoint;
pub mod format;
mod found;
mod group;
mod keeper;
mod landing;
mod memory;
mod tail;
mod writer;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fail;
use crate::shard::Generation;
use crate::telemetry::Telemetry;
use crate::time::Time;
use format::{END, Header, Released};
use memory::Memory;
use tail::Tail;
use writer::Open;

pub use format::Source;
pub use found::{Found, Left};
pub use keeper::Keeper;
pub use landing::Landing;
pub use memory::outlives_container;
pub use writer::{Load, Writer};

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
    /// Folder in memory (tmpfs) for what is not yet in the journal's folder, and outlives the process by
    /// it. It has to outlive a container as well: its own `/dev/shm` does not, so there each batch is
    /// written to the journal's folder at once, which costs more processor time. Mount the host's, or
    /// a volume in memory.
    pub memory_folder: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            max_bytes: 64 * 1024 * 1024,
            sync_interval: 1.0,
            memory_folder: memory::FOLDER.to_owned(),
        }
    }
}

/// Bytes of a segment: a part of the journal's, within bounds.
const SEGMENT_MIN: u64 = 16 * 1024;
const SEGMENT_MAX: u64 = 4 * 1024 * 1024;
const SEGMENTS: u64 = 16;

/// Bytes that may come in while a checkpoint is made, if the journal is large enough.
const MEANWHILE: u64 = 16 * 1024 * 1024;

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
    memory: Memory,
    max_bytes: u64,
    /// Bytes from which on a checkpoint is to take the place of segments, while there is room for what
    /// comes in meanwhile.
    checkpoint_bytes: u64,
    segment_bytes: u64,
    gate: Gate,
    telemetry: Arc<Telemetry>,
    files: Mutex<Files>,
    /// The ends of segments that are being written.
    tails: Mutex<Vec<Weak<Tail>>>,
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
    /// Bytes that are in use, in the file or in its tail.
    used: AtomicU64,
    /// Bytes in the file.
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
    /// There is room again since it failed.
    again: bool,
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
            memory: Memory::new(Path::new(&config.memory_folder), folder),
            max_bytes: config.max_bytes,
            checkpoint_bytes: config.max_bytes - MEANWHILE.min(config.max_bytes / 2),
            segment_bytes: (config.max_bytes / SEGMENTS).clamp(SEGMENT_MIN, SEGMENT_MAX),
            gate,
            telemetry,
            files: Mutex::default(),
            tails: Mutex::default(),
            used: AtomicU64::new(0),
            full: AtomicBool::new(false),
            failing: Mutex::default(),
            work: Mutex::new(work),
            to_do: Mutex::new(Some(to_do)),
        };
        if !journal.memory.is_lasting() {
            tracing::info!(
                "{} ends with this container, so the journal is written to {} batch by batch, and a \
                 crash may lose the batch of datagrams that was just received: mount the host's \
                 /dev/shm, or name a volume in memory by journal.memory_folder",
                memory::FOLDER,
                folder.display()
            );
        }
        let found = journal.find().unwrap_or_else(|error| {
            journal.failed(&error, Load::default(), now);
            journal.unfound(now)
        });
        (Arc::new(journal), found)
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
        let numbering = numbering.unwrap_or(sequence);
        let header = Header {
            seed,
            sequence,
            generation,
            source: source.clone(),
            numbering,
            described: None,
            waiting,
        };
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

    /// A tail for a new reader.
    fn tail(&self) -> Arc<Tail> {
        let tail = Arc::new(Tail::new());
        let mut tails = self.tails.lock().expect("no panic under this lock");
        tails.retain(|tail| tail.strong_count() > 0);
        tails.push(Arc::downgrade(&tail));
        tail
    }

    fn tails(&self) -> Vec<Arc<Tail>> {
        let tails = self.tails.lock().expect("no panic under this lock");
        tails.iter().filter_map(Weak::upgrade).collect()
    }

    /// Counts what could not be appended. Says in the log when that begins.
    fn failed(&self, error: &io::Error, load: Load, now: Time) {
        let counters = &self.telemetry.journal;
        counters.errors.add(1);
        self.unprotected(load, now, || {
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
        if let Some(failing) = self.failing.lock().expect("no panic under this lock").as_mut() {
            failing.again = false;
        }
    }

    fn unprotected(&self, load: Load, now: Time, say: impl FnOnce()) {
        let counters = &self.telemetry.journal;
        counters.unprotected_datagrams.add(load.datagrams);
        counters.unprotected_bytes.add(load.bytes);
        counters.failing.store(true, Relaxed);
        let mut failing = self.failing.lock().expect("no panic under this lock");
        let failing = failing.get_or_insert_with(|| {
            say();
            Failing { since: now, last: now, datagrams: 0, again: true }
        });
        failing.last = now;
        failing.datagrams += load.datagrams;
    }

    /// Whether to try again: when there is room, in a new generation, and each second.
    fn worth_a_try(&self, generation: &Generation, now: Time) -> bool {
        let counters = &self.telemetry.journal;
        if !counters.failing.load(Relaxed) {
            return true;
        }
        let failing = self.failing.lock().expect("no panic under this lock");
        failing.as_ref().is_none_or(|failing| {
            failing.again
                || failing.last.seconds() != now.seconds()
                || failing.last < Time::from_seconds(generation.start)
        })
    }

    /// There is room that was not there before.
    fn try_again(&self) {
        let mut failing = self.failing.lock().expect("no panic under this lock");
        if let Some(failing) = failing.as_mut() {
            failing.again = true;
        }
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
            used: AtomicU64::new(written),
            written: AtomicU64::new(written),
            synced: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        }
    }

    fn is_empty(&self) -> bool {
        self.used.load(Relaxed) == self.first
    }
}

/// Not zero, so that an empty record has no checksum that fits.
fn random() -> u32 {
    ahash::RandomState::new().hash_one(0_u8) as u32 | 1
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::format::Record;
    use super::*;
    use crate::batch::Event;
    use crate::sample::{AlertType, Dialect, Priority};
    use crate::shard::{self, Shards};
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
        writer.begin(generation, now);
        writer.event(&event);
        writer.commit(0, Load { datagrams: 1, bytes: title.len() as u64 }, now);
    }

    /// A journal whose disk fails at one operation while it is told to.
    struct Faulty {
        folder: tempfile::TempDir,
        config: Config,
        _memory: tempfile::TempDir,
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
            let memory = tempfile::tempdir_in(memory::FOLDER).unwrap();
            let memory_folder = memory.path().to_str().unwrap().to_owned();
            let config = Config { max_bytes, memory_folder, ..Config::default() };
            let place = folder.path().join("journal");
            let (journal, _) = Journal::open(&place, &config, Arc::clone(&telemetry), gate, NOW);
            let plan = Plan::from_config(&value::Config::default());
            let shards =
                Shards::new(shard::Config::default(), plan, 10, String::new(), telemetry, NOW);
            let source =
                Source { name: "x".to_owned(), dialect: Dialect::Datadog, eol_required: false };
            let writer = journal.writer(source, shards.len());
            Self { folder, config, _memory: memory, journal, writer, shards, fault }
        }

        fn append(&mut self, text: &str, now: Time) {
            let window = self.shards.window(now);
            append(&mut self.writer, text, window.generation(), now);
        }

        /// What the next process would read, in order. It leaves everything as it is.
        fn found(&self) -> Vec<String> {
            self.found_by(Arc::new(|op| match op {
                Op::Append => Err(io::Error::from_raw_os_error(libc::EROFS)),
                _ => Ok(()),
            }))
        }

        fn found_by(&self, gate: Gate) -> Vec<String> {
            let place = self.folder.path().join("journal");
            let (journal, found) = Journal::open(&place, &self.config, Arc::default(), gate, NOW);
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

    /// Bytes of records in files.
    fn in_files(world: &Faulty) -> u64 {
        let files = world.journal.files();
        files.segments.iter().map(|s| s.written.load(Relaxed) - s.first).sum()
    }

    #[test]
    fn records_are_gathered_in_memory_that_the_next_process_finds() {
        let mut world = Faulty::new(1 << 20);
        world.append("a", NOW);
        world.append("b", NOW);
        assert_eq!((in_files(&world), world.found()), (0, vec!["a".to_owned(), "b".to_owned()]));
        world.journal.sync();
        let synced = in_files(&world);
        assert!(synced > 0);
        world.append("c", NOW);
        assert_eq!((in_files(&world), world.found().concat()), (synced, "abc".to_owned()));
        // The next process puts it into the file, and needs it no more.
        assert_eq!(world.found_by(Arc::new(|_| Ok(()))).concat(), "abc");
        assert_eq!(tail::find(&world.journal.memory).len(), 0);
        assert_eq!(world.found().concat(), "abc");
    }

    #[test]
    fn a_full_tail_is_written_and_long_records_go_straight_to_the_file() {
        let mut world = Faulty::new(8 << 20);
        let (long, longer) = ("x".repeat(100_000), "y".repeat(300_000));
        let texts = ["a", &long, &long, "b", &long, &longer, "c"];
        for text in texts {
            world.append(text, NOW);
        }
        assert!(in_files(&world) > 600_000);
        assert_eq!(world.found(), texts);
    }

    /// While the disk fails what is gathered is safe from a crash; only what finds no room is not.
    #[test]
    fn a_disk_that_fails_for_less_than_a_tail_costs_nothing() {
        let mut world = Faulty::new(8 << 20);
        world.append("a", NOW);
        *world.fault.lock().unwrap() = Some((Op::Append, libc::ENOSPC));
        world.journal.sync();
        world.append("b", NOW);
        assert_eq!((world.unprotected(), world.fails()), (0, true));
        assert_eq!(world.found(), ["a", "b"]);
        *world.fault.lock().unwrap() = None;
        world.journal.sync();
        assert_eq!((world.unprotected(), world.fails()), (0, false));
        let long = "x".repeat(200_000);
        world.append(&long, NOW);
        *world.fault.lock().unwrap() = Some((Op::Append, libc::ENOSPC));
        world.append(&long, NOW);
        assert_eq!((world.unprotected(), world.fails()), (2, true), "what was there, and this");
        *world.fault.lock().unwrap() = None;
        world.append("c", Time::from_seconds(1010));
        assert_eq!(
            (world.found(), world.fails()),
            (["a", "b", "c"].map(str::to_owned).into(), false)
        );
    }

    #[test]
    fn the_end_of_a_released_segment_is_forgotten() {
        let mut world = Faulty::new(1 << 20);
        world.append("a", NOW);
        let first = world.shards.flush(Time::from_seconds(1010), false).generations;
        world.journal.release(first);
        // Its file may be another reader's by now.
        let mut other = world.journal.writer(world.writer.source.clone(), world.shards.len());
        let window = world.shards.window(Time::from_seconds(1011));
        append(&mut other, "b", window.generation(), NOW);
        world.journal.sync();
        drop(window);
        world.append("c", Time::from_seconds(1012));
        assert_eq!(world.found(), ["b", "c"]);
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
        world.append("without a try", NOW);
        assert!(world.fails());
        world.journal.checkpoint(&world.shards);
        world.append("a", NOW);
        assert!(!world.fails(), "tried as soon as there is room");
        assert_eq!(world.found(), ["a"], "the rest is in the checkpoint");
        assert_eq!(world.unprotected(), 2);
    }

    #[test]
    fn what_is_released_makes_room_at_once() {
        let mut world = Faulty::new(256 * 1024);
        let text = "x".repeat(1000);
        while world.unprotected() == 0 {
            world.append(&text, NOW);
        }
        let next = Time::from_seconds(1010);
        let flushed = world.shards.flush(next, false);
        world.append("before", next);
        assert_eq!(world.unprotected(), 2);
        world.journal.release(flushed.generations);
        world.append("a", next);
        assert_eq!((world.unprotected(), world.fails()), (2, false));
        assert_eq!(world.found(), ["a"]);
    }

    #[test]
    fn what_cannot_be_listed_stays_for_a_later_process() {
        let mut world = Faulty::new(1 << 20);
        world.append("a", NOW);
        let (config, place) = (world.config.clone(), world.folder.path().join("journal"));
        let fault = Arc::new(AtomicBool::new(true));
        let failing = Arc::clone(&fault);
        let gate: Gate = Arc::new(move |op| match op {
            Op::List if failing.load(Relaxed) => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            _ => Ok(()),
        });
        let (journal, found) = Journal::open(&place, &config, Arc::default(), gate, NOW);
        assert!(journal.telemetry.journal.failing.load(Relaxed) && found.is_empty());
        let generation = Generation { number: found.next, start: 1010, end: 1020 };
        world.writer = journal.writer(world.writer.source.clone(), world.shards.len());
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
