//! `tallyd tap`: a sample of the lines that come in.

use std::io::{BufRead, Write};

use clap::Args;
use serde_json::Value as Json;

use super::client::{Asked, quoted, said};
use crate::config::Sources;

/// Print a sample of the lines that a running server receives. It never slows the server.
#[derive(Debug, Args)]
pub struct Tap {
    /// Only lines that contain this.
    #[arg(default_value = "")]
    filter: String,
    /// Stop after so many seconds.
    #[arg(short, long, value_name = "SECONDS")]
    duration: Option<u64>,
    /// Print JSON, with the time, and how many lines one stands for.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    asked: Asked,
}

impl Tap {
    pub fn run(&self, sources: &Sources) -> anyhow::Result<u8> {
        let seconds = self.duration.map(|seconds| format!("&seconds={seconds}"));
        let filter = quoted(&self.filter);
        let path = format!("/api/tap?filter={filter}{}", seconds.unwrap_or_default());
        let mut lines = self.asked.client(sources)?.body(&path)?;
        let mut out = std::io::stdout();
        let mut line = String::new();
        loop {
            line.clear();
            match lines.read_line(&mut line) {
                Ok(0) => return Ok(0),
                Ok(_) => {}
                // Nothing matched for a while; what was read of a line is kept by no one.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(said(error)),
            }
            let text = if self.json { line.clone() } else { plain(&line) };
            // Whoever reads has gone: as good an end as any.
            if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
                return Ok(0);
            }
        }
    }
}

fn plain(line: &str) -> String {
    let picked: Json = serde_json::from_str(line).unwrap_or_default();
    let text = picked["line"].as_str().unwrap_or_default().escape_debug().to_string();
    match picked["one_of"].as_u64() {
        None | Some(1) => format!("{text}\n"),
        Some(many) => format!("{text}   (one of {many})\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_with_what_it_stands_for() {
        assert_eq!(plain(r#"{"line":"a:1|c","one_of":1}"#), "a:1|c\n");
        assert_eq!(
            plain("{\"line\":\"a:1|c|#\\u001b\",\"one_of\":9}"),
            "a:1|c|#\\u{1b}   (one of 9)\n"
        );
    }
}
