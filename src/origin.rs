//! Who sent a sample: the client's own words about its container and pod.

use std::fs::File;
use std::io::Read;

use anyhow::{Context as _, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names that this host and its senders go by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Host of every series that names none itself; empty takes the system's host name.
    pub hostname: String,
    /// File that holds this host name.
    pub hostname_file: String,
    /// Send series without a host unless the client names one.
    pub no_hostname: bool,
}

/// The longest name of a host.
const NAME_MAX: usize = 255;

impl Config {
    /// The name in the file, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no name.
    pub fn hostname_from_file(&self) -> anyhow::Result<Option<String>> {
        const SETTING: &str = "origin.hostname_file";
        if self.hostname_file.is_empty() {
            return Ok(None);
        }
        let file = File::open(&self.hostname_file);
        let mut text = String::new();
        // One byte more shows that it is too long.
        let bounded = file.map(|file| file.take(NAME_MAX as u64 + 2));
        bounded
            .and_then(|mut file| file.read_to_string(&mut text))
            .with_context(|| format!("{SETTING}: cannot read {}", self.hostname_file))?;
        let name = text.trim();
        let part = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let valid = !name.is_empty() && name.len() <= NAME_MAX && name.bytes().all(part);
        ensure!(valid, "{SETTING}: {} holds no host name", self.hostname_file);
        Ok(Some(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("name").display().to_string();
        let config = Config { hostname_file: path.clone(), ..Config::default() };
        let of_file = |text: &str| {
            std::fs::write(&path, text).unwrap();
            config.hostname_from_file().map_err(|error| error.to_string().replace(&path, "FILE"))
        };
        let none = Err("origin.hostname_file: FILE holds no host name".to_owned());
        for (text, expected) in [
            ("web-1.example\n", Ok(Some("web-1.example".to_owned()))),
            (" a ", Ok(Some("a".to_owned()))),
            (&"a".repeat(255), Ok(Some("a".repeat(255)))),
            ("", none.clone()),
            ("a b", none.clone()),
            (&"a".repeat(256), none.clone()),
            (&format!("{}\n{}", "a".repeat(200), "b".repeat(200)), none),
        ] {
            assert_eq!(of_file(text), expected, "{text}");
        }
        assert_eq!(Config::default().hostname_from_file().unwrap(), None);
        std::fs::remove_file(&path).unwrap();
        let error = config.hostname_from_file().unwrap_err().to_string();
        assert_eq!(error, format!("origin.hostname_file: cannot read {path}"));
    }
}
