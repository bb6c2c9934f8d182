//! A readable table per flush, on standard output.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Body, Coding, Encoded, Payload, Sending, Sink, Verdict};
use crate::batch::Batch;
use crate::encode::table::{Layout, empty_line, table};

/// The table on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `on`, `off`, or `auto`: on unless the Datadog sink is.
    pub enabled: Switch,
    /// Lines of a table; the rest is counted.
    pub rows: usize,
}

/// On, off, or decided by the rest of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    On,
    Off,
    #[default]
    Auto,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: Switch::Auto, rows: 40 }
    }
}

/// The word of a payload that says no more than that nothing came.
const EMPTY: &str = "empty";

/// The sink that prints. Of several empty flushes on end it prints the first.
pub struct Console {
    layout: Layout,
    output: Arc<Mutex<dyn Write + Send>>,
    was_empty: AtomicBool,
}

impl Console {
    /// Prints to standard output. `width` is that of the terminal, in characters; `hostname` the
    /// own host, which the table does not repeat with every series.
    pub fn new(config: &Config, width: usize, hostname: &str) -> Self {
        Self::with_output(config, width, hostname, Arc::new(Mutex::new(io::stdout())))
    }

    fn with_output(
        config: &Config,
        width: usize,
        hostname: &str,
        output: Arc<Mutex<dyn Write + Send>>,
    ) -> Self {
        let layout = Layout { width, rows: config.rows, hostname: hostname.to_owned() };
        Self { layout, output, was_empty: AtomicBool::new(true) }
    }
}

/// The width of the terminal as the shell tells it in `COLUMNS`, else 100.
pub fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.filter(|columns| *columns > 0).unwrap_or(100)
}

impl Sink for Console {
    fn name(&self) -> &'static str {
        "console"
    }

    fn endpoints(&self) -> Vec<String> {
        vec!["stdout".to_owned()]
    }

    fn encode(&self, batch: &Arc<Batch>) -> Encoded {
        let points = batch.users_points();
        let (kind, text) = if points == 0 {
            (EMPTY, empty_line(batch))
        } else {
            ("table", table(batch, &self.layout))
        };
        let payload =
            Payload { kind, points, coding: Coding::Identity, body: Body::Bytes(text.into()) };
        Encoded { payloads: vec![payload], dropped: 0 }
    }

    /// A reader that went away is a refusal: the table would be stale by the time of a retry.
    fn send<'a>(&'a self, _endpoint: usize, payload: &'a Payload) -> Sending<'a> {
        Box::pin(async move {
            let Body::Bytes(text) = &payload.body else {
                return Verdict::Refused { cause: "not a table".to_owned() };
            };
            let is_empty = payload.kind == EMPTY;
            if self.was_empty.swap(is_empty, Ordering::Relaxed) && is_empty {
                return Verdict::Delivered;
            }
            let (output, text) = (self.output.clone(), text.clone());
            // A terminal that is held up blocks whoever writes to it.
            let written = tokio::task::spawn_blocking(move || {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                output.write_all(&text)?;
                output.flush()
            });
            match written.await.map_err(io::Error::other).flatten() {
                Ok(()) => Verdict::Delivered,
                Err(e) => Verdict::Refused { cause: format!("standard output: {e}") },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{Row, Value};
    use crate::context::{Context, Source};
    use crate::sample::Kind;

    fn batch(values: &[f64]) -> Arc<Batch> {
        let rows = values.iter().map(|value| {
            let context = Context::new("g", Kind::Gauge, "own", vec![], Source::default());
            Row { context, time: 0, value: Value::Gauge(*value) }
        });
        Arc::new(Batch { rows: rows.collect(), ..Batch::default() })
    }

    async fn print(console: &Console, values: &[f64]) -> Verdict {
        let encoded = console.encode(&batch(values));
        assert_eq!((encoded.payloads.len(), encoded.dropped), (1, 0));
        assert_eq!(encoded.payloads[0].points, values.len() as u64);
        console.send(0, &encoded.payloads[0]).await
    }

    #[test]
    fn own_series_are_not_shown_and_not_counted() {
        let output = Arc::new(Mutex::new(Vec::new()));
        let console = Console::with_output(&Config::default(), 100, "own", output);
        let encoded = |users: usize| {
            let rows = batch(&[1.0, 2.0]).rows.clone();
            let batch = Batch { rows: rows[..users].to_vec(), own: rows, ..Batch::default() };
            console.encode(&Arc::new(batch)).payloads.remove(0)
        };
        assert_eq!((encoded(2).kind, encoded(2).points), ("table", 2));
        assert_eq!((encoded(0).kind, encoded(0).points), (EMPTY, 0));
    }

    #[tokio::test]
    async fn only_the_first_empty_flush_is_printed() {
        let output = Arc::new(Mutex::new(Vec::new()));
        let console = Console::with_output(&Config::default(), 100, "own", output.clone());
        for values in [&[][..], &[1.0], &[], &[], &[2.0], &[]] {
            assert_eq!(print(&console, values).await, Verdict::Delivered);
        }
        let table = |value| {
            format!(
                "00:00:00 UTC  1 series\nNAME  TAGS  KIND   VALUE\ng           gauge  {value}\n"
            )
        };
        let nothing = "00:00:00 UTC  nothing received\n";
        let want = [&table(1), nothing, &table(2), nothing].concat();
        assert_eq!(String::from_utf8(output.lock().unwrap().clone()).unwrap(), want);
    }

    #[tokio::test]
    async fn a_reader_that_went_away_is_a_refusal() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output = Arc::new(Mutex::new(writer));
        let console = Console::with_output(&Config::default(), 100, "own", output);
        let Verdict::Refused { cause } = print(&console, &[1.0]).await else {
            panic!("a closed pipe took a table")
        };
        assert!(cause.starts_with("standard output: Broken pipe"), "{cause}");
    }
}
