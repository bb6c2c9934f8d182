//! A log file of bounded size.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file that becomes `FILE.1` when it is full, while `FILE.1` becomes `FILE.2` and so on.
pub(super) struct Rolling {
    path: PathBuf,
    file: File,
    /// Bytes in the file.
    size: u64,
    /// Bytes that it may have; 0 sets no bound.
    max: u64,
    /// Full files that are kept.
    rolls: u32,
}

impl Rolling {
    pub(super) fn open(path: &Path, max: u64, rolls: u32) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, max, rolls })
    }

    fn roll(&mut self) -> io::Result<()> {
        for number in (0..self.rolls).rev() {
            let (from, to) = (self.rolled(number), self.rolled(number + 1));
            match fs::rename(from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        if self.rolls == 0 {
            fs::remove_file(&self.path)?;
        }
        self.file = open(&self.path)?;
        Ok(())
    }

    /// The path of the full file of this number; 0 is the one that is written.
    fn rolled(&self, number: u32) -> PathBuf {
        if number == 0 {
            return self.path.clone();
        }
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{number}"));
        path.into()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for Rolling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let full = self.max > 0 && self.size > 0 && self.size + bytes.len() as u64 > self.max;
        if full {
            if let Err(error) = self.roll() {
                // The log cannot tell it.
                eprintln!("logging.file: cannot begin a new file, the old one grows: {error}");
            }
            // After a failure it is tried again when as much has been written once more.
            self.size = 0;
        }
        let written = self.file.write(bytes)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the files hold, the newest first.
    fn files(path: &Path) -> Vec<String> {
        let path = |number| match number {
            0 => path.display().to_string(),
            number => format!("{}.{number}", path.display()),
        };
        (0..9).map_while(|number| fs::read_to_string(path(number)).ok()).collect()
    }

    #[test]
    fn full_files_move_on_and_the_oldest_goes() {
        for (max, rolls, expected) in [
            (0, 1, &["1234\n123\n12\n1\n"] as &[&str]),
            (8, 0, &["1\n"]),
            (8, 1, &["1\n", "123\n12\n"]),
            (8, 5, &["1\n", "123\n12\n", "1234\n"]),
            // A line longer than a file is a file of its own.
            (2, 2, &["1\n", "12\n", "123\n"]),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            for line in ["1234\n", "123\n", "12\n", "1\n"] {
                // Another process goes on where this one ended.
                let mut log = Rolling::open(&path, max, rolls).unwrap();
                log.write_all(line.as_bytes()).unwrap();
            }
            assert_eq!(files(&path), expected, "{max} {rolls}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_moved_is_written_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::create_dir_all(folder.path().join("log.1/in the way")).unwrap();
        let mut log = Rolling::open(&path, 4, 1).unwrap();
        for line in ["123\n", "12\n", "1\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "123\n12\n1\n");
    }
}
