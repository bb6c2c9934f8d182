//! The end of a segment, in memory that outlives the process, until there is enough of it to be worth
//! a system call.
//!
//! A reader gathers its records here. They go to the segment when there is no more room, or before
//! the keeper syncs, so that at ordinary rates a reader calls no file at all. Where the process dies,
//! the next one puts into the segment what is still here.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::{Arc, Mutex, MutexGuard};

use super::format::END;
use super::memory::{Identity, Memory, Use};
use super::writer::Load;
use super::{Journal, Op, Segment};
use crate::fail;
use crate::sys::Shared;
use crate::time::Time;

/// Bytes that it has room for: some batches at the highest rates.
const ROOM: usize = 256 * 1024;

const MARK: u64 = u64::from_le_bytes(*b"tallyd\0T");
/// Where its numbers stand: where its first byte belongs in the segment and how many there are, in
/// one number so that both change at once; and the seed by which the segment is known.
const PLACE: usize = 1;
const SEED: usize = 2;
const LENGTH_BITS: u32 = 24;
const _: () = assert!(ROOM < 1 << LENGTH_BITS);

/// The end of one reader's segment.
pub(super) struct Tail {
    /// Held by whoever writes to the file, and taken before the state.
    writing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` where there is no such memory: then all is written at once.
    memory: Option<(Shared, PathBuf)>,
    /// The folder that the memory's label names; none before it was asked for.
    opened_for: Option<Identity>,
    segment: Option<Arc<Segment>>,
    /// Where its first byte belongs in the segment.
    start: u64,
    length: usize,
    /// Bytes of it that are in the file as well.
    written: usize,
    /// What they stand for.
    load: Load,
    last: Time,
}

/// What the keeper writes.
struct Piece {
    segment: Arc<Segment>,
    at: u64,
    bytes: Vec<u8>,
    last: Time,
}

impl Tail {
    pub(super) fn new() -> Self {
        Self { writing: Mutex::default(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().expect("no panic under this lock")
    }

    /// Writes what it has, and goes on as the end of this segment, which has so many bytes.
    ///
    /// # Errors
    /// When what it had could not be written, which has been counted.
    pub(super) fn begin(
        &self,
        journal: &Journal,
        segment: &Arc<Segment>,
        seed: u32,
        bytes: u64,
    ) -> io::Result<()> {
        self.close(journal)?;
        let mut state = self.state();
        let folder = journal.memory.identity();
        if state.opened_for.replace(folder) != Some(folder) {
            state.close_memory();
            state.memory = open(&journal.memory);
        }
        if let Some((memory, _)) = &state.memory {
            memory.numbers()[SEED].store(seed.into(), Release);
        }
        state.segment = Some(Arc::clone(segment));
        state.place(bytes, 0);
        Ok(())
    }

    /// Writes what it has, and is the end of nothing.
    ///
    /// # Errors
    /// When what it had could not be written, which has been counted.
    pub(super) fn close(&self, journal: &Journal) -> io::Result<()> {
        let _writing = self.writing();
        let mut state = self.state();
        let written = state.write_out(journal);
        state.discard();
        written
    }

    /// Adds a record with an end behind it. An error is of this record only; what else could not be
    /// written has been counted.
    ///
    /// # Errors
    /// When there was no room and the file could not be written.
    pub(super) fn push(
        &self,
        journal: &Journal,
        record: &[u8],
        load: Load,
        now: Time,
    ) -> io::Result<()> {
        let mut state = self.state();
        if !state.has_room(record) {
            drop(state);
            let _writing = self.writing();
            state = self.state();
            state.write_out(journal)?;
            if !state.has_room(record) {
                return state.write_through(journal, record);
            }
        }
        fail::point("journal.gather");
        let (start, length) = (state.start, state.length);
        let Some((memory, _)) = &mut state.memory else { return Ok(()) };
        memory.bytes()[length..][..record.len()].copy_from_slice(record);
        state.place(start, length + record.len() - END.len());
        state.load.add(load);
        state.last = now;
        Ok(())
    }

    /// Writes what is not in the file. Readers do not wait for it.
    pub(super) fn write(&self, journal: &Journal) {
        let _writing = self.writing();
        let Some(piece) = self.state().unwritten() else { return };
        let Piece { segment, at, bytes, last } = &piece;
        let step = journal.step(Op::Append);
        match step.and_then(|()| segment.file.write_all_at(bytes, *at)) {
            Ok(()) => {
                self.state().wrote(&piece);
                journal.works(*last);
            }
            // It is safe from a crash where it is, and tried again.
            Err(error) => journal.failed(&error, Load::default(), *last),
        }
    }

    /// Forgets what it has if it is the end of one of these, which are released.
    pub(super) fn forget(&self, gone: &[Arc<Segment>]) {
        let mut state = self.state();
        let is_gone = |of: &Arc<Segment>| gone.iter().any(|segment| Arc::ptr_eq(of, segment));
        if state.segment.as_ref().is_some_and(is_gone) {
            state.discard();
        }
    }
}

impl State {
    fn has_room(&self, record: &[u8]) -> bool {
        self.memory.is_some() && self.length + record.len() <= ROOM
    }

    /// What it holds, for this process and for the next one.
    fn place(&mut self, start: u64, length: usize) {
        (self.start, self.length) = (start, length);
        if let Some((memory, _)) = &self.memory {
            memory.numbers()[PLACE].store(start << LENGTH_BITS | length as u64, Release);
        }
    }

    fn close_memory(&mut self) {
        if let Some((_, path)) = self.memory.take() {
            let _ = fs::remove_file(path);
        }
    }

    fn discard(&mut self) {
        self.segment = None;
        self.emptied(0);
    }

    /// All that it has is in the file, or given up.
    fn emptied(&mut self, start: u64) {
        self.place(start, 0);
        self.written = 0;
        self.load = Load::default();
    }

    fn write_out(&mut self, journal: &Journal) -> io::Result<()> {
        let end = self.start + self.length as u64;
        let (Some(segment), Some((memory, _)), true) =
            (&self.segment, &mut self.memory, self.length > self.written)
        else {
            self.emptied(end);
            return Ok(());
        };
        // The end stands behind them there too.
        let bytes = &memory.bytes()[self.written..self.length + END.len()];
        let at = self.start + self.written as u64;
        let written = journal.step(Op::Append).and_then(|()| segment.file.write_all_at(bytes, at));
        fail::point("journal.written");
        match written {
            Ok(()) => {
                segment.written.store(end, Relaxed);
                self.emptied(end);
                journal.works(self.last);
                Ok(())
            }
            Err(error) => {
                journal.failed(&error, self.load, self.last);
                self.discard();
                Err(error)
            }
        }
    }

    /// Writes a record for which there is no room here.
    fn write_through(&mut self, journal: &Journal, record: &[u8]) -> io::Result<()> {
        let segment = self.segment.as_ref().ok_or(io::ErrorKind::NotFound)?;
        journal.step(Op::Append)?;
        segment.file.write_all_at(record, self.start)?;
        let end = self.start + (record.len() - END.len()) as u64;
        segment.written.store(end, Relaxed);
        self.place(end, 0);
        Ok(())
    }

    fn unwritten(&mut self) -> Option<Piece> {
        let segment = self.segment.as_ref()?;
        let (memory, _) = self.memory.as_mut()?;
        let bytes = &memory.bytes()[self.written..self.length];
        (!bytes.is_empty()).then(|| Piece {
            segment: Arc::clone(segment),
            at: self.start + self.written as u64,
            bytes: [bytes, &END].concat(),
            last: self.last,
        })
    }

    /// This is in the file now, unless it was released meanwhile.
    fn wrote(&mut self, piece: &Piece) {
        let same = self.segment.as_ref().is_some_and(|of| Arc::ptr_eq(of, &piece.segment));
        if !same || self.start + self.written as u64 != piece.at {
            return;
        }
        self.written += piece.bytes.len() - END.len();
        let end = self.start + self.written as u64;
        piece.segment.written.store(end, Relaxed);
        if self.written == self.length {
            self.emptied(end);
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.close_memory();
    }
}

/// Memory for a tail, or `None` where there is none that is worth it.
fn open(memory: &Memory) -> Option<(Shared, PathBuf)> {
    if !memory.is_lasting() {
        return None;
    }
    let (file, path) = memory.create(Use::Tail).ok()?;
    let shared = Shared::new(&file, &memory.label(b""), ROOM);
    if shared.is_err() {
        let _ = fs::remove_file(&path);
    }
    let shared = shared.ok()?;
    shared.numbers()[0].store(MARK, Release);
    Some((shared, path))
}

/// The end of a segment that an earlier process left.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) path: PathBuf,
    /// By this the segment is known.
    pub(super) seed: u32,
    /// Where its bytes belong, which have an end behind them.
    pub(super) start: u64,
    pub(super) bytes: Vec<u8>,
}

/// Reads what readers of earlier processes left for this journal. Removes what is empty.
pub(super) fn find(memory: &Memory) -> Vec<Rest> {
    let mut found = Vec::new();
    for (path, file) in memory.left(Use::Tail) {
        let Some((numbers, label, bytes)) = Shared::read(&file) else { continue };
        if numbers[0] != MARK || memory.read_label(label, &path).is_none() {
            continue;
        }
        let (start, length) =
            (numbers[PLACE] >> LENGTH_BITS, numbers[PLACE] & ((1 << LENGTH_BITS) - 1));
        let Some(bytes) = bytes.get(..length as usize).filter(|bytes| !bytes.is_empty()) else {
            let _ = fs::remove_file(&path);
            continue;
        };
        let bytes = [bytes, &END].concat();
        found.push(Rest { path, seed: numbers[SEED] as u32, start, bytes });
    }
    found
}
