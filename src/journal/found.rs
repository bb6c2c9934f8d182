//! What an earlier process left, and how it is read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use ahash::{HashSet, HashSetExt};

use super::checkpoint::{Checkpoint, Entry};
use super::format::{self, Header, Record, Released, Source, Unreadable, Waiting};
use super::landing::{self, Landing};
use super::tail::{self, Rest};
use super::{BAD, CHECKPOINT, Files, Journal, Op, RELEASED, SEGMENT, Segment, TEMPORARY};
use crate::hash::Keys;
use crate::time::Time;

/// What an earlier process left.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which they were written.
    segments: Vec<(Header, PathBuf)>,
    /// Segments of what waits.
    waiting: Vec<(Header, PathBuf)>,
    checkpoints: Vec<PathBuf>,
    landings: Vec<Landing>,
    /// Ends of segments that could not be put into their files.
    rests: Vec<Rest>,
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
    /// What lies there cannot be read now. It stays for a later process, so nothing of this one may
    /// have a number in common with it.
    pub(super) fn unfound(&self, now: Time) -> Found {
        let beyond = now.0.max(1).cast_unsigned() << 16;
        let mut files = self.files();
        (files.next, files.sequence, files.released.sequence) = (beyond, beyond, beyond);
        Found { first: beyond, next: beyond, ..Found::default() }
    }

    /// Reads what an earlier process left: the headers of its segments. Removes what need not be
    /// replayed.
    pub(super) fn find(&self) -> io::Result<Found> {
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
        let mut rests = tail::find(&self.memory);
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
            // It begins within the file, or it is none.
            let is_rest = |rest: &Rest| rest.seed == header.seed && rest.start <= bytes;
            if let Some(at) = rests.iter().position(is_rest) {
                let rest = rests.swap_remove(at);
                found.rests.extend(self.put_back(&file, rest));
            }
            self.used.fetch_add(bytes, Relaxed);
            segments.push(Arc::new(Segment::new(path.clone(), file, &header, bytes)));
            found.segments.push((header, path));
        }
        checkpoints.sort_by_key(|(range, _)| range.start);
        found.checkpoints = checkpoints.iter().map(|(_, path)| path.clone()).collect();
        // The others are of segments that are released.
        rests.iter().for_each(|rest| drop(fs::remove_file(&rest.path)));
        found.landings = landing::find(&self.memory);
        found.segments.sort_by_key(|(header, _)| (header.generation.number, header.sequence));
        Ok(found)
    }

    /// Puts the end of a segment into its file. Returns it if that cannot be done now: then it stays,
    /// for a later process too.
    fn put_back(&self, file: &File, rest: Rest) -> Option<Rest> {
        let written =
            self.step(Op::Append).and_then(|()| file.write_all_at(&rest.bytes, rest.start));
        match written {
            Ok(()) => {
                let _ = fs::remove_file(&rest.path);
                None
            }
            Err(error) => {
                tracing::debug!("journal: cannot write what was in memory: {error}");
                Some(rest)
            }
        }
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
            torn += journal.records(header, path, &self.rests, |record| {
                batches.insert(record.batch);
                take(&record);
                each(header, record);
            });
        }
        for (header, path) in &self.waiting {
            torn += journal.records(header, path, &[], |record| take(&record));
        }
        let (appended, landings): (Vec<_>, Vec<_>) =
            self.landings.into_iter().partition(|landing| batches.contains(&landing.batch()));
        appended.into_iter().for_each(Landing::remove);
        for (header, path) in &self.waiting {
            let (mut datagrams, mut ids, mut arrival) = (Vec::new(), Vec::new(), None);
            journal.records(header, path, &[], |record| {
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
    /// Gives the records of a segment, of which one of these may be the end. Returns how many were not
    /// whole, which is at most one.
    fn records(
        &self,
        header: &Header,
        path: &Path,
        rests: &[Rest],
        mut each: impl FnMut(Record<'_>),
    ) -> u64 {
        let read = self.step(Op::Read).and_then(|()| fs::read(path));
        let mut bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.set_aside(path, &error.to_string());
                return 0;
            }
        };
        if let Some(rest) = rests.iter().find(|rest| rest.seed == header.seed) {
            bytes.resize(rest.start as usize, 0);
            bytes.extend(&rest.bytes);
        }
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

pub(super) const fn within(inner: &Range<u64>, outer: &Range<u64>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(SEGMENT)?.parse().ok()
}
