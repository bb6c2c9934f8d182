//! The folder for what must outlive the process.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Folder for what must outlive the process. Empty takes the first that can be written of
    /// $STATE_DIRECTORY, /var/lib/tallyd, $XDG_STATE_HOME/tallyd and ~/.local/state/tallyd.
    pub run_path: String,
}

/// The file that the process which uses a folder holds locked.
const LOCK: &str = "tallyd.lock";

/// Why a folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Unclaimed {
    #[error("another process uses {}", .0.display())]
    Taken(PathBuf),
    #[error("cannot write in {}: {}", .0.display(), .1)]
    Unwritable(PathBuf, #[source] io::Error),
}

/// A folder that no other process uses meanwhile.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Unlocked by the kernel when it is closed, however the process ends.
    _lock: File,
}

impl Folder {
    /// Makes the folder where it is missing, for its owner alone, and takes its lock.
    ///
    /// # Errors
    /// When it cannot be written, or another process has it.
    pub fn claim(path: &Path) -> Result<Self, Unclaimed> {
        let cannot = |error: io::Error| Unclaimed::Unwritable(path.to_owned(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(cannot)?;
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(0o600);
        let lock = lock.open(path.join(LOCK)).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Unclaimed::Taken(path.to_owned())),
            Err(TryLockError::Error(error)) => Err(cannot(error)),
        }
    }

    /// The folder of `run_path`, or the first default one that can be written. With none of them
    /// there is one warning, and none is given; so it is when another process has that one, since
    /// two that took turns with their folders would mix up what is in them.
    ///
    /// # Errors
    /// When the one that was asked for cannot be had.
    pub fn open(
        config: &Config,
        environment: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Option<Self>> {
        if !config.run_path.is_empty() {
            let claimed = Self::claim(Path::new(&config.run_path));
            return claimed.map(Some).map_err(|error| {
                anyhow!("{error}; set state.run_path (DD_RUN_PATH) to a folder of its own")
            });
        }
        let mut problems = Vec::new();
        for path in defaults(environment) {
            match Self::claim(&path) {
                Ok(folder) => return Ok(Some(folder)),
                Err(error) => {
                    problems.push(error.to_string());
                    if matches!(error, Unclaimed::Taken(_)) {
                        break;
                    }
                }
            }
        }
        tracing::warn!(
            "nothing will outlive this process: {}; set state.run_path (DD_RUN_PATH)",
            problems.join(", ")
        );
        Ok(None)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The folders that are tried while none is set.
fn defaults(environment: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let set = |name| environment(name).filter(|value| value.starts_with('/'));
    // systemd separates several by colons.
    let systemd = set("STATE_DIRECTORY");
    let systemd = systemd.as_deref().and_then(|all| all.split(':').next()).map(PathBuf::from);
    let user = set("XDG_STATE_HOME").map(|path| Path::new(&path).join("tallyd"));
    let home = set("HOME").map(|path| Path::new(&path).join(".local/state/tallyd"));
    [systemd, Some(PathBuf::from("/var/lib/tallyd")), user.or(home)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_defaults_in_their_order() {
        let all = |set: &[(&str, &str)]| {
            let value = |name: &str| set.iter().find(|(n, _)| *n == name);
            let paths = defaults(|name| value(name).map(|(_, value)| (*value).to_owned()));
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(all(&[]), ["/var/lib/tallyd"]);
        assert_eq!(all(&[("HOME", "/h")]), ["/var/lib/tallyd", "/h/.local/state/tallyd"]);
        assert_eq!(
            all(&[("HOME", "/h"), ("XDG_STATE_HOME", "/x"), ("STATE_DIRECTORY", "/s/a:/s/b")]),
            ["/s/a", "/var/lib/tallyd", "/x/tallyd"]
        );
        assert_eq!(all(&[("XDG_STATE_HOME", "not/absolute")]), ["/var/lib/tallyd"]);
    }

    #[test]
    fn one_process_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a/b");
        let config = Config { run_path: path.display().to_string() };
        let folder = Folder::open(&config, |_| None).unwrap().unwrap();
        assert_eq!(folder.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let refused = Folder::open(&config, |_| None).unwrap_err().to_string();
        let expected = format!(
            "another process uses {}; set state.run_path (DD_RUN_PATH) to a folder of its own",
            path.display()
        );
        assert_eq!(refused, expected);
        drop(folder);
        Folder::open(&config, |_| None).unwrap().unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error_only_when_it_was_asked_for() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "").unwrap();
        let inside = file.join("x").display().to_string();
        let refused = Folder::open(&Config { run_path: inside.clone() }, |_| None).unwrap_err();
        assert!(refused.to_string().starts_with(&format!("cannot write in {inside}: ")));
        assert!(Folder::claim(&file).is_err());
    }
}
