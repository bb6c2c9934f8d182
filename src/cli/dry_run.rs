//! `tallyd diff` and `tallyd cost`: which series traffic makes, without a server that makes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;
use serde_json::Value as Json;

use super::capture::read;
use super::client::{Asked, quoted};
use crate::capture::Record;
use crate::config::{self, Config, Sources};
use crate::context::Context;
use crate::cost::Cost;
use crate::parse;
use crate::rules::{Outcome, Rules};
use crate::sample::{Dialect, Message};

/// Show which series a change of configuration would add, drop or rename, before it is made.
#[derive(Debug, Args)]
pub struct Diff {
    /// The tallyd.yaml as it is.
    old: PathBuf,
    /// The tallyd.yaml as it would be.
    new: PathBuf,
    /// Traffic, as written by `tallyd capture`.
    capture: PathBuf,
    /// Read the traffic as this dialect.
    #[arg(long, default_value = "datadog", value_parser = dialect)]
    dialect: Dialect,
    /// Series listed of each sort.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Show series by name, by sender and by tag key, and how many fewer there would be without a key.
#[derive(Debug, Args)]
pub struct CostOf {
    /// Look at captured traffic instead of a running server's last flush.
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Only series of this name.
    #[arg(long)]
    name: Option<String>,
    /// Only series that this sender was the first to send, as the list of senders calls it.
    #[arg(long)]
    sender: Option<String>,
    /// Names, senders and keys listed.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    asked: Asked,
}

fn dialect(text: &str) -> Result<Dialect, String> {
    match text {
        "datadog" => Ok(Dialect::Datadog),
        "statsd" => Ok(Dialect::Statsd),
        _ => Err("expected datadog or statsd".to_owned()),
    }
}

/// What a configuration makes of a line.
struct Reading {
    rules: Rules,
    options: parse::Options,
}

impl Reading {
    fn new(config: &Config, dialect: Dialect) -> anyhow::Result<Self> {
        let host = config.origin.hostname.as_str();
        Ok(Self {
            rules: Rules::new(&config.rules, host)?,
            options: config.intake.options(dialect),
        })
    }

    /// The series of each sample of a line.
    fn series(&self, line: &[u8]) -> Vec<Context> {
        let mut found = Vec::new();
        parse::messages(line, self.options, |message| {
            if let Ok(Message::Metric(sample)) = message
                && let Outcome::Keep { series, .. } =
                    self.rules.context(&sample, self.options.dialect)
            {
                found.push(series.context());
            }
        });
        found
    }
}

/// What a change of configuration does to the series of some traffic.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
struct Difference {
    added: BTreeSet<String>,
    dropped: BTreeSet<String>,
    /// From a series that is no more to those that its lines go to instead.
    renamed: BTreeMap<String, BTreeSet<String>>,
    unchanged: usize,
}

impl Difference {
    fn of(old: &Reading, new: &Reading, records: &[Record]) -> Self {
        let mut before = BTreeMap::<String, BTreeSet<String>>::new();
        let mut after = BTreeSet::new();
        let mut lines = ahash::HashSet::default();
        for line in records.iter().flat_map(|record| parse::lines(&record.payload)) {
            if !lines.insert(spelling(line)) {
                continue;
            }
            let now: Vec<_> = new.series(line).iter().map(shown).collect();
            for was in old.series(line) {
                before.entry(shown(&was)).or_default().extend(now.iter().cloned());
            }
            after.extend(now);
        }
        let mut difference = Self::default();
        let mut explained = BTreeSet::new();
        for (was, now) in &before {
            if after.contains(was) {
                difference.unchanged += 1;
            } else if now.is_empty() {
                difference.dropped.insert(was.clone());
            } else {
                difference.renamed.insert(was.clone(), now.clone());
                explained.extend(now);
            }
        }
        let is_new =
            |series: &&String| !before.contains_key(*series) && !explained.contains(series);
        difference.added = after.iter().filter(is_new).cloned().collect();
        difference
    }
}

/// A line without its value, so that each series is looked at once.
fn spelling(line: &[u8]) -> Box<[u8]> {
    let colon = memchr::memchr(b':', line).unwrap_or(line.len());
    let pipe = memchr::memchr(b'|', line).unwrap_or(line.len()).max(colon);
    [&line[..colon], &line[pipe..]].concat().into()
}

fn shown(context: &Context) -> String {
    let tags: Vec<_> = context.tags().collect();
    let mut text = format!("{} {}", context.kind().word(), context.name());
    if !tags.is_empty() {
        text += &format!(" [{}]", tags.join(", "));
    }
    text
}

fn load(file: &Path) -> anyhow::Result<Config> {
    let sources = Sources { config_file: Some(file.to_owned()), ..Sources::default() };
    Ok(config::load(&sources).map_err(|error| anyhow!(error.to_string()))?.config)
}

impl Diff {
    pub fn run(&self) -> anyhow::Result<u8> {
        let old = Reading::new(&load(&self.old)?, self.dialect)?;
        let new = Reading::new(&load(&self.new)?, self.dialect)?;
        let difference = Difference::of(&old, &new, &read(&self.capture)?);
        if self.json {
            println!("{}", serde_json::to_string_pretty(&difference)?);
            return Ok(0);
        }
        let list =
            |sign: char, what: &str, series: &mut dyn Iterator<Item = String>, all: usize| {
                for one in series.take(self.limit) {
                    println!("{sign} {one}");
                }
                if all > self.limit {
                    println!("{sign} ... {} more {what}", all - self.limit);
                }
            };
        let Difference { added, dropped, renamed, unchanged } = &difference;
        list('-', "dropped", &mut dropped.iter().cloned(), dropped.len());
        list('+', "added", &mut added.iter().cloned(), added.len());
        let arrow = |(was, now): (&String, &BTreeSet<String>)| {
            format!("{was}  ->  {}", now.iter().cloned().collect::<Vec<_>>().join(" and "))
        };
        list('~', "renamed", &mut renamed.iter().map(arrow), renamed.len());
        println!(
            "{} dropped, {} added, {} renamed, {unchanged} unchanged",
            dropped.len(),
            added.len(),
            renamed.len()
        );
        Ok(0)
    }
}

impl CostOf {
    pub fn run(&self, sources: &Sources) -> anyhow::Result<u8> {
        let cost = match &self.capture {
            Some(file) => serde_json::to_value(self.of_capture(file, sources)?)?,
            None => {
                let mut path = format!("/api/cost?limit={}", self.limit);
                for (key, value) in [("name", &self.name), ("sender", &self.sender)] {
                    if let Some(value) = value {
                        path += &format!("&{key}={}", quoted(value));
                    }
                }
                self.asked.client(sources)?.json(&path)?
            }
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&cost)?);
        } else {
            print!("{}", table(&cost));
        }
        Ok(0)
    }

    fn of_capture(&self, file: &Path, sources: &Sources) -> anyhow::Result<Cost> {
        let loaded = config::load(sources).map_err(|error| anyhow!(error.to_string()))?;
        let reading = Reading::new(&loaded.config, Dialect::Datadog)?;
        let records = read(file).context("--capture")?;
        // Processes have numbers here as accounts have in a server; the last one is that of the rest.
        let (mut pids, mut numbers) = (Vec::new(), ahash::HashMap::<i32, u16>::default());
        let mut series = ahash::HashSet::<Context>::default();
        for record in &records {
            let maker = *numbers.entry(record.pid).or_insert_with(|| {
                pids.push(record.pid);
                u16::try_from(pids.len() - 1).unwrap_or(u16::MAX)
            });
            for line in parse::lines(&record.payload) {
                series.extend(reading.series(line).into_iter().map(|c| c.made_by(maker)));
            }
        }
        let called = |maker: u16| match pids[usize::from(maker)] {
            _ if maker == u16::MAX => "others".to_owned(),
            0 => "unknown".to_owned(),
            pid => format!("pid {pid}"),
        };
        let wanted = |c: &&Context| {
            self.name.as_ref().is_none_or(|name| c.name() == name)
                && self.sender.as_ref().is_none_or(|sender| *sender == called(c.maker()))
        };
        Ok(Cost::of(series.iter().filter(wanted), self.limit, called))
    }
}

/// The document of `/api/cost` as text.
fn table(cost: &Json) -> String {
    let mut text = format!("{} series\n\n{:>9}  NAME\n", cost["series"], "SERIES");
    let list = |list: &Json| list.as_array().cloned().unwrap_or_default();
    let number = |value: &Json| value.as_u64().unwrap_or_default();
    let word = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    for name in list(&cost["names"]) {
        text += &format!("{:>9}  {}\n", number(&name["series"]), word(&name["name"]));
    }
    if cost["unlisted"] != 0 {
        text += &format!("{:>9}  (other names)\n", number(&cost["unlisted"]));
    }
    text += &format!("\n{:>9}  SENDER\n", "SERIES");
    for sender in list(&cost["senders"]) {
        text += &format!("{:>9}  {}\n", number(&sender["series"]), word(&sender["sender"]));
    }
    text += &format!("\n{:>9} {:>9} {:>14}  TAG KEY\n", "SERIES", "VALUES", "FEWER WITHOUT");
    for key in list(&cost["keys"]) {
        let [series, values, saved] =
            ["series", "values", "saved"].map(|field| number(&key[field]));
        text += &format!("{series:>9} {values:>9} {saved:>14}  {}\n", word(&key["key"]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::from_text;

    fn reading(text: &str) -> Reading {
        Reading::new(&from_text("test", text).unwrap().config, Dialect::Datadog).unwrap()
    }

    fn set(series: &[&str]) -> BTreeSet<String> {
        series.iter().map(|&one| one.to_owned()).collect()
    }

    #[test]
    fn a_change_of_rules_shows_as_what_it_does() {
        let lines = b"a.b.c:1|c|#x:1\na.b.d:2|c\nkeep:3|g|#z,y\nkeep:4|g|#z,y\nsecret:1|c\nbad";
        let records = [Record::new(0, lines, 0), Record::new(1, b"a.b.c:5|c|#x:2", 0)];
        let old = reading("{}");
        let new = reading(
            "rules:\n  metric_blocklist: [secret]\n  mapper_profiles:\n    - name: p\n      \
             prefix: 'a.'\n      mappings:\n        - {match: a.b.*, name: a.all, tags: {what: $1}}",
        );
        let renamed = [
            ("count a.b.c [x:1]", "count a.all [what:c, x:1]"),
            ("count a.b.c [x:2]", "count a.all [what:c, x:2]"),
            ("count a.b.d", "count a.all [what:d]"),
        ];
        let renamed = renamed.map(|(was, now)| (was.to_owned(), set(&[now])));
        let expected = Difference {
            added: BTreeSet::new(),
            dropped: set(&["count secret"]),
            renamed: BTreeMap::from(renamed),
            unchanged: 1,
        };
        assert_eq!(Difference::of(&old, &new, &records), expected);
        let back = Difference::of(&new, &old, &records);
        assert_eq!(back.added, set(&["count secret"]));
        assert_eq!((back.renamed.len(), back.unchanged), (3, 1));
    }

    #[test]
    fn the_table_has_names_senders_and_keys() {
        let series = ["requests:1|c|#user:1", "requests:1|c|#user:2", "idle:1|g"];
        let reading = reading("{}");
        let all: Vec<_> = series.iter().flat_map(|line| reading.series(line.as_bytes())).collect();
        let called = |_| "pid 7".to_owned();
        let cost = serde_json::to_value(Cost::of(all.iter(), 1, called)).unwrap();
        assert_eq!(
            table(&cost),
            "3 series\n\n   SERIES  NAME\n        2  requests\n        1  (other names)\n\n   \
             SERIES  SENDER\n        3  pid 7\n\n   \
             SERIES    VALUES  FEWER WITHOUT  TAG KEY\n        2         2              1  user\n"
        );
    }
}
