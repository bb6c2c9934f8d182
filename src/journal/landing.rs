//! Where datagrams, and bytes of streams, land: receive buffers in memory that outlives the process.
//! They protect what was received and not yet appended to a segment.

use std::fs;
use std::path::{Path, PathBuf};

use super::Left;
use super::format::{Header, Source};
use super::memory::{Memory, Use};
use crate::shard::Generation;
use crate::stream::Framer;
use crate::sys::{self, Receiver};
use crate::time::Time;

/// What a process received and may not have appended.
#[derive(Debug)]
pub struct Landing {
    path: PathBuf,
    left: Left,
}

impl Landing {
    pub const fn batch(&self) -> u64 {
        self.left.batch
    }

    /// Hands over the batch. It is safe elsewhere when that is done.
    pub fn take(self, left: &mut impl FnMut(Left)) {
        left(self.left);
        // Until it is gone it is recognised by its batch, which is appended now.
        let _ = fs::remove_file(self.path);
    }

    /// The batch was appended.
    pub fn remove(self) {
        let _ = fs::remove_file(self.path);
    }
}

/// A receiver whose buffers outlive the process. `None`, said in the log, where there is no memory for
/// it.
pub(super) fn open(memory: &Memory, source: &Source, buffer_size: usize) -> Option<Receiver> {
    let opened = memory.create(Use::Landing).and_then(|(file, path)| {
        let label = memory.label(&label(source));
        let receiver = Receiver::landing(&file, &label, random(), buffer_size);
        receiver.map(|receiver| receiver.removing(path.clone())).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    });
    opened
        .inspect_err(|error| {
            tracing::info!(
                "no buffers in {} for {}: {error}; a crash may lose the batch of datagrams that was \
                 just received",
                memory.folder().display(),
                source.name
            );
        })
        .ok()
}

/// Where the datagrams come from.
fn label(source: &Source) -> Vec<u8> {
    let generation = Generation { number: 0, start: 0, end: 0 };
    Header {
        seed: 0,
        sequence: 0,
        generation,
        source: source.clone(),
        numbering: 0,
        described: None,
        waiting: false,
    }
    .encode()
}

/// Reads what receivers of earlier processes left for this journal. Removes the files of journals
/// that are gone.
pub(super) fn find(memory: &Memory) -> Vec<Landing> {
    let left = memory.left(Use::Landing);
    left.filter_map(|(path, bytes)| read(&path, &bytes, memory)).collect()
}

fn read(path: &Path, bytes: &[u8], memory: &Memory) -> Option<Landing> {
    let header = memory.read_label(sys::label(bytes)?, path)?;
    let (header, _) = Header::decode(header).ok()?;
    let landed = sys::landed(bytes);
    let mut datagrams = Vec::new();
    if let Some(landed) = &landed {
        datagrams.extend(landed.datagrams.iter().map(|d| (d.bytes.to_vec(), d.truncated)));
        if let Some((bytes, form)) = landed.stream {
            // What is not whole was never accepted: its connection has ended.
            let mut framer = Framer::resume(bytes, form);
            datagrams.extend(framer.payloads().flatten().map(|payload| (payload.to_vec(), false)));
        }
    }
    let Some(landed) = landed.filter(|_| !datagrams.is_empty()) else {
        let _ = fs::remove_file(path);
        return None;
    };
    let left = Left {
        source: header.source,
        arrival: Time(landed.arrival),
        batch: landed.batch,
        datagrams,
        ids: Vec::new(),
    };
    Some(Landing { path: path.to_owned(), left })
}

/// Not zero.
pub(super) fn random() -> u64 {
    ahash::RandomState::new().hash_one(0_u8) >> 1 | 1
}
