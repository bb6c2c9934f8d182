//! The thread that works for the journal: it syncs, makes checkpoints, and releases.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::checkpoint::Encoder;
use super::format::{Released, SLOT};
use super::found::within;
use super::{
    CHECKPOINT, Config, Files, Journal, Load, Op, RELEASED, Segment, Spare, TEMPORARY, Work,
};
use crate::fail;
use crate::shard::Shards;
use crate::time::Time;

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
                // One that was wanted during a sync may have been made behind it.
                Ok(Work::Full) if self.full.load(Relaxed) => self.checkpoint(shards),
                Ok(Work::Full) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let all = self.sync();
                    if self.full.load(Relaxed) {
                        self.checkpoint(shards);
                    }
                    if !all && self.full.load(Relaxed) {
                        // In vain: nothing takes the place of what was left.
                        let _ = self.sync();
                    }
                    sync_at = Instant::now() + interval;
                }
                Ok(Work::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.sync();
                    return;
                }
            }
        }
    }

    /// Makes what was appended survive a loss of power. Returns whether it did so with all: where a
    /// checkpoint is wanted meanwhile, that comes first, as room is short, and takes the place of
    /// what is left.
    pub(super) fn sync(&self) -> bool {
        self.tails().iter().for_each(|tail| tail.write(self));
        let was_full = self.full.load(Relaxed);
        let segments = self.files().segments.clone();
        for segment in segments {
            if self.full.load(Relaxed) && !was_full {
                return false;
            }
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
                    let at = Time::from_seconds(segment.generation.start);
                    self.failed(&error, Load::default(), at);
                }
            }
        }
        true
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
                drop(files);
                self.free(|number| generations.contains(&number));
                // Where that was not enough, the next try has time until the next sync.
                let enough = self.used.load(Relaxed) <= self.checkpoint_bytes;
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
        self.free(|number| released.holds(number));
        for (_, path) in self
            .files()
            .checkpoints
            .extract_if(.., |(range, _)| released.holds(range.end.saturating_sub(1)))
        {
            let _ = self.step(Op::Remove).and_then(|()| fs::remove_file(&path));
        }
    }

    /// Takes segments out of use.
    fn free(&self, is_free: impl Fn(u64) -> bool) {
        let is_free = |s: &mut Arc<Segment>| !s.waiting && is_free(s.generation.number);
        let gone: Vec<_> = self.files().segments.extract_if(.., is_free).collect();
        // Before another reader may use the file.
        self.tails().iter().for_each(|tail| tail.forget(&gone));
        let mut files = self.files();
        for segment in gone {
            self.used.fetch_sub(segment.used.load(Relaxed), Relaxed);
            self.spare(&mut files, &segment);
        }
        drop(files);
        self.try_again();
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
