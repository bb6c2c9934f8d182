//! `tallyd stats`: names and senders with their traffic and their series, once.

use clap::Args;

use super::client::Asked;
use super::names::{Order, Snapshot, short};
use crate::config::Sources;

/// Print the names that a running server gets, with lines and bytes a second and series, and the
/// senders with all they have sent and lost.
#[derive(Debug, Args)]
pub struct Stats {
    /// Only names and senders that contain this.
    #[arg(default_value = "")]
    filter: String,
    #[arg(long, value_enum, default_value_t)]
    sort: Order,
    /// Names and senders listed.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    asked: Asked,
}

impl Stats {
    pub fn run(&self, sources: &Sources) -> anyhow::Result<u8> {
        let mut snapshot = Snapshot::ask(&self.asked.client(sources)?)?;
        if self.json {
            let names = snapshot.sorted(self.sort, &self.filter);
            let names = names.into_iter().take(self.limit).cloned().collect();
            let senders = snapshot.senders(self.sort, &self.filter);
            snapshot.senders = senders.into_iter().take(self.limit).cloned().collect();
            snapshot.names = names;
            println!("{}", serde_json::to_string_pretty(&snapshot)?);
        } else {
            print!("{}", self.table(&snapshot));
        }
        Ok(0)
    }

    fn table(&self, snapshot: &Snapshot) -> String {
        let names = snapshot.sorted(self.sort, &self.filter);
        let mut text = format!(
            "{:>7} {:>7} {:>7}  {:<12}  NAME (SENDER)\n",
            "LINES/S", "BYTES/S", "SERIES", "KIND"
        );
        for name in names.iter().take(self.limit) {
            text += &format!(
                "{:>7} {:>7} {:>7}  {:<12}  {}{}\n",
                short(name.lines),
                short(name.bytes),
                name.series,
                name.kind,
                name.name.escape_debug(),
                name.senders().map_or_else(String::new, |senders| format!(" ({senders})")),
            );
        }
        if names.len() > self.limit {
            text += &format!("... {} more names\n", names.len() - self.limit);
        }
        let senders = snapshot.senders(self.sort, &self.filter);
        text += &format!(
            "\n{:>7} {:>7} {:>7} {:>7} {:>7}  SENDER\n",
            "LINES", "BYTES", "SERIES", "REFUSED", "DROPPED"
        );
        for sender in senders.iter().take(self.limit) {
            text += &format!(
                "{:>7} {:>7} {:>7} {:>7} {:>7}  {}\n",
                short(sender.lines as f64),
                short(sender.bytes as f64),
                sender.series,
                short(sender.refused as f64),
                short(sender.dropped as f64),
                sender.sender.escape_debug()
            );
        }
        if senders.len() > self.limit {
            text += &format!("... {} more senders\n", senders.len() - self.limit);
        }
        text += &format!("\n{} lines/s, {} series\n", short(snapshot.lines), snapshot.series);
        for (cause, count) in &snapshot.lost {
            text += &format!("lost: {count} {cause}\n");
        }
        text
    }
}
