//! `tallyd check [FILE]`: says whether the configuration is right, and opens nothing.

use std::io::{self, Write};

use crate::config::{self, Sources};

/// Writes one `ok` line, or the error, and the notes that a start would log. Returns the exit
/// code: 0, or 78 for a wrong configuration.
pub fn run(sources: &Sources, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => {
            writeln!(err, "error: {error}")?;
            return Ok(config::EXIT_CODE);
        }
    };
    for note in &loaded.notes {
        writeln!(out, "note: {note}")?;
    }
    let files: Vec<String> = loaded.files.iter().map(|path| path.display().to_string()).collect();
    let files = if files.is_empty() { "no file".to_owned() } else { files.join(" and ") };
    let changed = loaded.changed();
    let settings = if changed == 1 { "setting" } else { "settings" };
    writeln!(out, "ok: {files}, {changed} {settings} changed from the default")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, text: &str) -> (u8, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let sources = Sources { config_file: Some(path.clone()), ..Sources::default() };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(&sources, &mut out, &mut err).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(path.to_str().unwrap(), name);
        (code, text(out), text(err))
    }

    #[test]
    fn a_right_file_is_ok() {
        let (code, out, err) = check("a.yaml", "intake: {port: 9, tcp_port: 0}\n");
        assert_eq!((code, err.as_str()), (0, ""));
        assert_eq!(out, "ok: a.yaml, 1 setting changed from the default\n");
        let (_, out, _) = check("a.yaml", "intake: {forward_port: 9}\n");
        assert_eq!(
            out,
            "note: intake.forward_host and intake.forward_port have an effect only together\n\
             ok: a.yaml, 1 setting changed from the default\n"
        );
    }

    #[test]
    fn a_wrong_file_is_an_error() {
        let (code, out, err) = check("a.yaml", "\nintake: {prot: 9}\n");
        assert_eq!((code, out.as_str()), (78, ""));
        assert_eq!(
            err,
            "error: a.yaml:2: unknown setting intake.prot; did you mean intake.port?\n"
        );
    }

    #[test]
    fn nothing_at_all_is_ok() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        assert_eq!(run(&Sources::default(), &mut out, &mut err).unwrap(), 0);
        assert_eq!(out, b"ok: no file, 0 settings changed from the default\n");
    }
}
