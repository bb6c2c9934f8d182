//! Memory that outlives the process: files on a file system without a disk, `/dev/shm` as a rule.
//!
//! They lie there rather than in the journal's folder: memory that a disk stands behind would end the
//! process where the disk fails. A loss of power takes them, as it takes what is not synced.
//!
//! A container's own `/dev/shm` outlives its processes but not the container, which ends with its
//! first process. So there nothing is entrusted to it that could go to the journal's folder instead.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::landing::random;
use crate::cgroup::proc::{Mount, mounts};

/// Where they lie unless the settings name another folder.
pub const FOLDER: &str = "/dev/shm";
/// File systems that no disk stands behind.
const KINDS: [&str; 2] = ["tmpfs", "ramfs"];
/// The source of the one that runtimes mount for a container.
const CONTAINERS_OWN: &str = "shm";

/// Longest file that is read: as many buffers of the greatest size that can be set.
const FILE_MAX: u64 = 80 << 20;

/// Where a journal has memory that outlives the process.
pub(super) struct Memory {
    folder: PathBuf,
    /// The folder of the journal, by which its files are known.
    journal: PathBuf,
    /// It outlives the container too, if there is one.
    lasting: bool,
}

/// What a file is for: its name begins with it.
#[derive(Clone, Copy)]
pub(super) enum Use {
    Landing,
    Tail,
}

impl Use {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Landing => "tallyd-landing-",
            Self::Tail => "tallyd-tail-",
        }
    }
}

impl Memory {
    pub(super) fn new(folder: &Path, journal: &Path) -> Self {
        let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let lasting = outlives_container(&mounted, folder);
        Self { folder: folder.to_owned(), journal: journal.to_owned(), lasting }
    }

    /// Whether it outlives the container.
    pub(super) const fn is_lasting(&self) -> bool {
        self.lasting
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A new file.
    ///
    /// # Errors
    /// Where the folder is not in memory, or no file can be made.
    pub(super) fn create(&self, what: Use) -> io::Result<(File, PathBuf)> {
        let mounted = fs::read_to_string("/proc/self/mountinfo")?;
        let folder = self.folder.canonicalize()?;
        if mount_of(&mounted, &folder).is_none_or(|mount| !KINDS.contains(&mount.kind)) {
            return Err(io::Error::other("it is no folder in memory (tmpfs)"));
        }
        let path = folder.join(format!("{}{:016x}", what.prefix(), random()));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok((file, path))
    }

    /// The folder of the journal, and what else there is to be said.
    pub(super) fn label(&self, more: &[u8]) -> Vec<u8> {
        let journal = self.journal.as_os_str().as_encoded_bytes();
        [&(journal.len() as u32).to_le_bytes(), journal, more].concat()
    }

    /// What else a label says, if it is of this journal. `path` is removed when its journal is gone.
    pub(super) fn read_label<'a>(&self, label: &'a [u8], path: &Path) -> Option<&'a [u8]> {
        let (length, rest) = label.split_first_chunk()?;
        let (of, more) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        if of == self.journal.as_os_str().as_encoded_bytes() {
            return Some(more);
        }
        let of = std::str::from_utf8(of).ok().map(Path::new)?;
        if fs::symlink_metadata(of).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
            let _ = fs::remove_file(path);
        }
        None
    }

    /// The files that processes of this user left.
    pub(super) fn left(&self, what: Use) -> impl Iterator<Item = (PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let named = entries.filter(move |entry| {
            entry.file_name().as_encoded_bytes().starts_with(what.prefix().as_bytes())
        });
        named.filter_map(|entry| Some((entry.path(), read(&entry.path())?)))
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let own = fs::metadata("/proc/self").ok()?.uid();
    let metadata = fs::symlink_metadata(path).ok()?;
    // Everybody may put files there.
    if metadata.uid() != own || !metadata.is_file() || metadata.mode() & 0o077 != 0 {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// The mount on which a folder lies.
fn mount_of<'a>(mounted: &'a str, folder: &Path) -> Option<Mount<'a>> {
    // Of those on one point the last one is seen.
    let under = mounts(mounted).filter(|mount| folder.starts_with(&*mount.point));
    under.max_by_key(|mount| mount.point.len())
}

/// Whether what lies in this folder outlives a container, by a table of mounts
/// (`/proc/self/mountinfo`). Whoever names another one than `/dev/shm` knows what it is.
pub fn outlives_container(mounted: &str, folder: &Path) -> bool {
    folder != Path::new(FOLDER)
        || mount_of(mounted, folder).is_some_and(|mount| mount.source != CONTAINERS_OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "\
        87 72 0:46 / / rw,relatime - overlay overlay rw\n\
        88 74 0:47 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k\n";
    const BOUND: &str = "\
        87 72 0:46 / / rw,relatime - overlay overlay rw\n\
        88 74 0:47 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k\n\
        99 74 0:23 / /dev/shm rw,relatime - tmpfs tmpfs rw\n\
        99 74 0:23 / /dev/shmem rw,relatime - ext4 /dev/sda rw\n";

    /// As Docker and Podman mount it, and as the host's own is seen when it is mounted over that.
    #[test]
    fn the_memory_of_a_container_ends_with_it() {
        let folder = Path::new(FOLDER);
        assert!(!outlives_container(CONTAINER, folder));
        assert!(outlives_container(BOUND, folder));
        assert!(!outlives_container("", folder));
        assert_eq!(mount_of(BOUND, Path::new("/var/lib")).unwrap().kind, "overlay");
    }

    #[test]
    fn a_folder_on_a_disk_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path(), folder.path());
        let kind = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let kind = mount_of(&kind, &folder.path().canonicalize().unwrap()).unwrap().kind.to_owned();
        assert_eq!(memory.create(Use::Tail).is_err(), !KINDS.contains(&&*kind));
    }
}
