//! Where datagrams, and bytes of streams, land: receive buffers in shared memory, which outlives the process. They protect
//! what was received and not yet appended to a segment.
//!
//! They lie on `/dev/shm` rather than in the journal's folder: memory that a disk stands behind would
//! end the process where the disk fails. A loss of power takes them, as it takes what is not synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Left;
use super::format::{Header, Source};
use crate::shard::Generation;
use crate::stream::Framer;
use crate::sys::{self, Receiver};
use crate::time::Time;

const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "tallyd-";

/// Longest file that is read: as many buffers of the greatest size that can be set.
const FILE_MAX: u64 = 80 << 20;

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

/// A receiver whose buffers outlive the process, for the journal in this folder. `None`, said in the
/// log, where there is no memory for it.
pub(super) fn open(folder: &Path, source: &Source, buffer_size: usize) -> Option<Receiver> {
    let opened = create().and_then(|(file, path)| {
        let receiver = Receiver::landing(&file, &label(folder, source), random(), buffer_size);
        receiver.map(|receiver| receiver.removing(path.clone())).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    });
    opened
        .inspect_err(|error| {
            tracing::info!(
                "no buffers in {FOLDER} for {}: {error}; a crash may lose the batch of datagrams \
                 that was just received",
                source.name
            );
        })
        .ok()
}

fn create() -> io::Result<(File, PathBuf)> {
    let path = Path::new(FOLDER).join(format!("{PREFIX}{:016x}", random()));
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    Ok((file, path))
}

/// The folder of the journal, and where the datagrams come from.
fn label(folder: &Path, source: &Source) -> Vec<u8> {
    let folder = folder.as_os_str().as_encoded_bytes();
    let generation = Generation { number: 0, start: 0, end: 0 };
    let source = source.clone();
    let header = Header { seed: 0, sequence: 0, generation, source, numbering: 0, waiting: false };
    [&(folder.len() as u32).to_le_bytes(), folder, &header.encode()].concat()
}

/// Reads what receivers of earlier processes left for the journal in this folder. Removes the files
/// of journals that are gone.
pub(super) fn find(folder: &Path) -> Vec<Landing> {
    let Ok(entries) = fs::read_dir(FOLDER) else { return Vec::new() };
    let names = entries
        .flatten()
        .filter(|e| e.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()));
    names.filter_map(|entry| read(&entry.path(), folder)).collect()
}

fn read(path: &Path, folder: &Path) -> Option<Landing> {
    let own = fs::metadata("/proc/self").ok()?.uid();
    let metadata = fs::symlink_metadata(path).ok()?;
    // Everybody may put files there.
    if metadata.uid() != own || !metadata.is_file() || metadata.mode() & 0o077 != 0 {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    let (length, rest) = sys::label(&bytes)?.split_first_chunk()?;
    let (of, header) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    if of != folder.as_os_str().as_encoded_bytes() {
        let of = std::str::from_utf8(of).ok().map(Path::new)?;
        if fs::symlink_metadata(of).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            let _ = fs::remove_file(path);
        }
        return None;
    }
    let (header, _) = Header::decode(header).ok()?;
    let landed = sys::landed(&bytes);
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
