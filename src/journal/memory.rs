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
use std::time::{Duration, UNIX_EPOCH};

use super::format::Bytes;
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

/// Bytes at the beginning of a file that say what it is, and more time than it takes to make one.
const MARK: usize = size_of::<u64>();
const MAKING: Duration = Duration::from_secs(60);

/// Where a journal has memory that outlives the process.
pub(super) struct Memory {
    folder: PathBuf,
    /// The folder of the journal, by which its files are known.
    journal: PathBuf,
    /// It outlives the container too, if there is one.
    lasting: bool,
}

/// The inode of a folder, and the nanoseconds at which it was made, where that is known.
pub(super) type Identity = [u64; 2];

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

    /// What tells the journal's folder from others of the same path: containers that share the memory
    /// have folders alike.
    pub(super) fn identity(&self) -> Identity {
        let Ok(metadata) = fs::metadata(&self.journal) else { return Identity::default() };
        let made = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        [metadata.ino(), made.map_or(0, |since| since.as_nanos() as u64)]
    }

    /// Which journal this is, and what else there is to be said.
    pub(super) fn label(&self, more: &[u8]) -> Vec<u8> {
        let journal = self.journal.as_os_str().as_encoded_bytes();
        let [inode, made] = self.identity().map(u64::to_le_bytes);
        let view = view().to_le_bytes();
        let length = (journal.len() as u32).to_le_bytes();
        [&inode[..], &made, &view, &length, journal, more].concat()
    }

    /// What else a label says, if it is of this journal. `path` is removed when its journal is gone.
    pub(super) fn read_label<'a>(&self, label: &'a [u8], path: &Path) -> Option<&'a [u8]> {
        let mut bytes = Bytes(label);
        let of = [bytes.u64()?, bytes.u64()?];
        let seen_from = bytes.u64()?;
        let length = bytes.u32()? as usize;
        let (folder, more) = (bytes.take(length)?, bytes.0);
        if folder == self.journal.as_os_str().as_encoded_bytes() && self.identity() == of {
            return Some(more);
        }
        // Another container's folders cannot be seen from here.
        let folder = std::str::from_utf8(folder).ok().map(Path::new)?;
        let gone = fs::symlink_metadata(folder).is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        if gone && seen_from == view() {
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

/// Which folders this process sees: its mount namespace.
fn view() -> u64 {
    fs::metadata("/proc/self/ns/mnt").map_or(0, |metadata| metadata.ino())
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
    if bytes.iter().take(MARK).any(|&byte| byte != 0) {
        return Some(bytes);
    }
    // Its mark is written at last: whoever made it is about to do that, or died before.
    if metadata.modified().ok()?.elapsed().is_ok_and(|age| age > MAKING) {
        let _ = fs::remove_file(path);
    }
    None
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
    use std::os::unix::fs::PermissionsExt;

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

    /// Two containers with the machine's memory, each with a volume of its own at the same place.
    #[test]
    fn a_journal_is_known_by_its_folder_and_not_by_the_path_alone() {
        let root = tempfile::tempdir().unwrap();
        let (journal, other) = (root.path().join("journal"), root.path().join("other"));
        let path = root.path().join("file");
        let there = || path.exists();
        fs::write(&path, "").unwrap();
        fs::create_dir(&journal).unwrap();
        fs::create_dir(&other).unwrap();
        let memory = Memory::new(Path::new(FOLDER), &journal);
        let label = memory.label(b"more");
        assert_eq!(memory.read_label(&label, &path), Some(&b"more"[..]));
        fs::rename(&journal, root.path().join("first")).unwrap();
        fs::rename(&other, &journal).unwrap();
        assert_eq!((memory.read_label(&label, &path), there()), (None, true));
        // Where it would be seen and is not there it is gone; from elsewhere it is not told.
        fs::remove_dir(&journal).unwrap();
        let mut elsewhere = label.clone();
        elsewhere[16] ^= 1;
        assert_eq!((memory.read_label(&elsewhere, &path), there()), (None, true));
        assert_eq!((memory.read_label(&label, &path), there()), (None, false));
    }

    #[test]
    fn a_file_that_was_never_finished_is_removed_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(folder.path(), folder.path());
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for bytes in [&[][..], &[0; 100], b"marked, with more"] {
            for (files, age) in [(&mut old, MAKING * 2), (&mut new, MAKING / 2)] {
                let path = folder.path().join(format!("tallyd-tail-{age:?}-{}", bytes.len()));
                fs::write(&path, bytes).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                let written = file.metadata().unwrap().modified().unwrap();
                file.set_modified(written - age).unwrap();
                files.push(path);
            }
        }
        assert_eq!(memory.left(Use::Tail).count(), 2);
        let there = |files: &[PathBuf]| files.iter().filter(|path| path.exists()).count();
        assert_eq!((there(&old), there(&new)), (1, 3));
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
