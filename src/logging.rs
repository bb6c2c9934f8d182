//! Logs to standard error, a file or syslog: state changes, not occurrences.

mod rolling;
mod syslog;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer, format};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::registry::LookupSpan;

use rolling::Rolling;
use syslog::Syslog;

pub use syslog::check_uri;

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// trace, debug, info, warn, error or off.
    pub level: String,
    /// `text` or `json`.
    pub format: Format,
    /// Also append to this file; empty means no file.
    pub file: String,
    /// Bytes of that file, beyond which it becomes FILE.1 and a new one is begun; 0 sets no bound.
    pub file_max_bytes: u64,
    /// Full files that are kept: FILE.1 is the newest.
    pub file_max_rolls: u32,
    /// Write to standard error.
    pub console: bool,
    /// Also send to syslog.
    pub syslog: bool,
    /// Where syslog is: unixgram:///PATH or udp://HOST:PORT.
    pub syslog_uri: String,
    /// Send the format of RFC 5424 instead of that of RFC 3164.
    pub syslog_rfc5424: bool,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: Format::Text,
            file: String::new(),
            file_max_bytes: 10 * 1024 * 1024,
            file_max_rolls: 1,
            console: true,
            syslog: false,
            syslog_uri: "unixgram:///dev/log".to_owned(),
            syslog_rfc5424: false,
        }
    }
}

/// Sends the process's log where the configuration says. Libraries are heard from `warn` on.
///
/// # Errors
/// When the file cannot be opened, or logs go somewhere already.
pub fn start(config: &Config) -> anyhow::Result<()> {
    let quiet = ["off", "error"].contains(&config.level.as_str());
    let libraries = if quiet { config.level.as_str() } else { "warn" };
    let filter = EnvFilter::try_new(format!("{libraries},tallyd={}", config.level))
        .with_context(|| format!("logging.level: {} is no level", config.level))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer(config)?)
        .with_target(false)
        .with_ansi(false);
    let result = match config.format {
        Format::Text => builder.try_init(),
        Format::Json => {
            let lines = format().json().flatten_event(true).with_target(false);
            builder.json().event_format(Lines(lines)).try_init()
        }
    };
    result.map_err(anyhow::Error::from_boxed).context("cannot start logging")
}

fn writer(config: &Config) -> anyhow::Result<BoxMakeWriter> {
    let mut writer =
        if config.console { BoxMakeWriter::new(io::stderr) } else { BoxMakeWriter::new(io::sink) };
    if !config.file.is_empty() {
        let path = Path::new(&config.file);
        let file = Rolling::open(path, config.file_max_bytes, config.file_max_rolls)
            .with_context(|| format!("logging.file: cannot open {}", config.file))?;
        writer = BoxMakeWriter::new(writer.and(Mutex::new(file)));
    }
    if config.syslog {
        let syslog = Syslog::open(&config.syslog_uri, config.syslog_rfc5424)
            .with_context(|| format!("logging.syslog_uri: cannot use {}", config.syslog_uri))?;
        writer = BoxMakeWriter::new(writer.and(syslog));
    }
    Ok(writer)
}

/// Events as lines of JSON. A field `document` is a JSON object already: its members become those of
/// the line.
struct Lines(format::Format<format::Json>);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let mut found = Document::default();
        event.record(&mut found);
        let Some(members) = found.document.strip_prefix('{') else {
            return self.0.format_event(context, writer, event);
        };
        writer.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut writer)?;
        let level = event.metadata().level();
        let message = serde_json::Value::from(found.message);
        writeln!(writer, "\",\"level\":\"{level}\",\"message\":{message},{members}")
    }
}

/// The fields of an event that has a document.
#[derive(Default)]
struct Document {
    message: String,
    document: String,
}

impl Visit for Document {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "document" {
            value.clone_into(&mut self.document);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

/// An error and its causes in one line.
pub fn one_line(error: &anyhow::Error) -> String {
    // The outermost context is the remedy: the cause goes first.
    let mut parts: Vec<String> = error.chain().map(ToString::to_string).collect();
    let remedy = (parts.len() > 2).then(|| parts.remove(0));
    let mut line = parts.join(": ");
    if let Some(remedy) = remedy {
        line = format!("{line}; {remedy}");
    }
    line
}
