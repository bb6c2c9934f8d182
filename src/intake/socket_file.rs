//! The file of a Unix socket: a stale one is removed at the start, the own one at the end.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The file of a socket of ours, removed when this is dropped. That must happen while the socket is
/// still open: its inode cannot have been given to another's file until then, so a file that a
/// successor has put in its place is told apart and left alone.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// Takes charge of the file of a socket that was bound just now.
    ///
    /// # Errors
    /// When the file cannot be examined.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), inode: inode(&fs::symlink_metadata(path)?) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|m| inode(&m) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Makes the folder, and removes a socket that nobody listens on any more. `connect` tells whether
/// somebody does.
pub(super) fn make_way(path: &Path, connect: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| {
            let folder = folder.display();
            io::Error::new(error.kind(), format!("cannot make the folder {folder}: {error}"))
        })?;
    }
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) => metadata.file_type(),
    };
    if !kind.is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "something that is no socket is there",
        ));
    }
    match connect() {
        // The only error that tells that nobody listens.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        // A socket of the other type is in use as well.
        Err(error) if error.raw_os_error() != Some(libc::EPROTOTYPE) => Err(error),
        Ok(()) | Err(_) => {
            Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn the_file_is_removed_unless_it_is_anothers() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("dsd.socket");
        let bind = || {
            let socket = UnixDatagram::bind(&path).expect("bind");
            (SocketFile::new(&path).expect("file"), socket)
        };
        let (file, _socket) = bind();
        drop(file);
        assert!(!path.exists());

        let (file, _socket) = bind();
        fs::remove_file(&path).expect("the successor removes it");
        let (_successor, _its_socket) = bind();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn only_a_socket_that_nobody_listens_on_is_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("dsd.socket");
        let answer = |code| make_way(&path, || Err(io::Error::from_raw_os_error(code)));
        let _live = UnixDatagram::bind(&path).expect("bind");
        let denied = answer(libc::EACCES).expect_err("nobody knows who listens");
        assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
        let other = answer(libc::EPROTOTYPE).expect_err("somebody listens");
        assert_eq!(other.kind(), ErrorKind::AddrInUse);
        assert!(path.exists());
        answer(libc::ECONNREFUSED).expect("a stale one");
        assert!(!path.exists());
    }
}
