//! Where datagrams land: receive buffers in shared memory, which outlives the process. They protect
//! what was received and not yet appended to a segment.
//!
//! They lie on `/dev/shm` rather than in the journal's folder: memory that a disk stands behind would
//! end the process where the disk fails. A loss of power takes them, as it takes what is not synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::format::{Header, Source};
use crate::shard::Generation;
use crate::sys::{self, Datagram, Receiver, Sender};
use crate::time::Time;

const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "tallyd-";

/// Longest file that is read: as many buffers of the greatest size that can be set.
const FILE_MAX: u64 = 80 << 20;

/// What a process received and may not have appended.
#[derive(Debug)]
pub struct Landing {
    path: PathBuf,
    pub source: Source,
    pub arrival: Time,
    batch: u64,
    datagrams: Vec<(Vec<u8>, bool)>,
}

impl Landing {
    /// A batch was appended; it may be this one.
    pub(super) fn appended(&mut self, batch: u64) {
        if batch == self.batch {
            self.datagrams.clear();
        }
    }

    pub const fn batch(&self) -> u64 {
        self.batch
    }

    /// None, if the batch was appended.
    pub fn datagrams(&self) -> Vec<Datagram<'_>> {
        let datagrams = self.datagrams.iter();
        datagrams
            .map(|(bytes, truncated)| Datagram {
                bytes,
                truncated: *truncated,
                sender: Sender::Unknown,
            })
            .collect()
    }

    /// Once the batch is safe.
    pub fn remove(self) {
        // One that stays is recognised by its batch, which is appended now.
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
    let header = Header { seed: 0, sequence: 0, generation, source: source.clone() };
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
    let Some(landed) = landed.filter(|landed| !landed.datagrams.is_empty()) else {
        let _ = fs::remove_file(path);
        return None;
    };
    Some(Landing {
        path: path.to_owned(),
        source: header.source,
        arrival: Time(landed.arrival),
        batch: landed.batch,
        datagrams: landed.datagrams.iter().map(|d| (d.bytes.to_vec(), d.truncated)).collect(),
    })
}

fn random() -> u64 {
    ahash::RandomState::new().hash_one(0_u8) >> 1 | 1
}
