//! What `tallyd top` and `tallyd stats` show: names and senders with their traffic, their series and
//! their losses.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value as Json;

use super::client::Client;

/// Names that are asked for.
const NAMES: usize = 1000;

/// One name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Name {
    pub name: String,
    pub kind: String,
    /// Lines and bytes a second, estimated.
    pub lines: f64,
    pub bytes: f64,
    /// Series in the last flush.
    pub series: u64,
    /// Who sent most of these series first.
    pub sender: String,
    /// How many other senders it has.
    pub others: u64,
}

impl Name {
    /// Who sent most of its series first, and how many others it has.
    pub fn senders(&self) -> Option<String> {
        let sender = self.sender.escape_debug();
        match self.others {
            _ if self.sender.is_empty() => None,
            0 => Some(sender.to_string()),
            others => Some(format!("{sender} +{others}")),
        }
    }
}

/// One sender. Figures are totals, but for series.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sender {
    pub sender: String,
    pub lines: u64,
    pub bytes: u64,
    /// Series held now.
    pub series: u64,
    pub refused: u64,
    /// Lines and values dropped, or folded together for want of room.
    pub dropped: u64,
    /// Lines and bytes a second, once there are two looks.
    #[serde(skip)]
    pub rate: Option<[f64; 2]>,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    pub names: Vec<Name>,
    pub senders: Vec<Sender>,
    /// Lines a second over all names.
    pub lines: f64,
    pub series: u64,
    /// What was lost since the start, by cause.
    pub lost: BTreeMap<String, u64>,
    pub cpu_seconds: f64,
    pub rss_bytes: u64,
    /// Milliseconds since the Unix epoch.
    pub time: i64,
}

/// By what names are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Order {
    #[default]
    Lines,
    Bytes,
    Series,
    Name,
    /// Of names by who sends them; of senders by what was lost.
    Sender,
}

impl Snapshot {
    /// # Errors
    /// When the server does not answer.
    pub fn ask(client: &Client) -> anyhow::Result<Self> {
        let overview = client.json("/api/overview")?;
        let rates = client.json(&format!("/api/rates?limit={NAMES}"))?;
        let cost = client.json(&format!("/api/cost?limit={NAMES}"))?;
        let ledger = client.json("/api/ledger")?;
        Ok(Self::of(&overview, &rates, &cost, &ledger))
    }

    fn of(overview: &Json, rates: &Json, cost: &Json, ledger: &Json) -> Self {
        let list = |list: &Json| list.as_array().cloned().unwrap_or_default();
        let word = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let number = |value: &Json| value.as_u64().unwrap_or_default();
        let mut names = BTreeMap::<String, Name>::new();
        for rate in list(&rates["names"]) {
            let name = Name {
                name: word(&rate["name"]),
                kind: word(&rate["kind"]),
                lines: rate["samples"].as_f64().unwrap_or_default(),
                bytes: rate["bytes"].as_f64().unwrap_or_default(),
                ..Name::default()
            };
            names.insert(name.name.clone(), name);
        }
        let rest = rates["rest"].as_f64().unwrap_or_default();
        let lines = names.values().map(|name| name.lines).sum::<f64>() + rest;
        for one in list(&cost["names"]) {
            let name = names.entry(word(&one["name"])).or_default();
            name.name = word(&one["name"]);
            name.series = number(&one["series"]);
            name.sender = word(&one["sender"]);
            name.others = number(&one["senders"]).saturating_sub(1);
        }
        let sender = |one: Json| {
            let sum =
                |map: &Json| map.as_object().into_iter().flatten().map(|(_, n)| number(n)).sum();
            Sender {
                sender: word(&one["sender"]),
                lines: number(&one["lines"]),
                bytes: number(&one["bytes"]),
                series: number(&one["series"]),
                refused: sum(&one["rejects"]),
                dropped: sum(&one["dropped"]),
                rate: None,
            }
        };
        let lost = serde_json::from_value(overview["lost"].clone()).unwrap_or_default();
        Self {
            names: names.into_values().collect(),
            senders: list(&ledger["senders"]).into_iter().map(sender).collect(),
            lines,
            series: number(&cost["series"]),
            lost,
            cpu_seconds: overview["process"]["cpu_seconds"].as_f64().unwrap_or_default(),
            rss_bytes: number(&overview["process"]["rss_bytes"]),
            time: overview["time"].as_i64().unwrap_or_default(),
        }
    }

    /// The names that contain a text, in this order.
    pub fn sorted(&self, order: Order, filter: &str) -> Vec<&Name> {
        let mut names: Vec<_> = self.names.iter().filter(|n| n.name.contains(filter)).collect();
        names.sort_by(|a, b| {
            let by = match order {
                Order::Lines => b.lines.total_cmp(&a.lines),
                Order::Bytes => b.bytes.total_cmp(&a.bytes),
                Order::Series => b.series.cmp(&a.series),
                Order::Name => Ordering::Equal,
                Order::Sender => a.sender.cmp(&b.sender),
            };
            by.then_with(|| a.name.cmp(&b.name))
        });
        names
    }

    /// Finds how fast senders have sent since an earlier look.
    pub fn since(&mut self, before: &Self) {
        let seconds = (self.time - before.time) as f64 / 1000.0;
        let then: BTreeMap<_, _> =
            before.senders.iter().map(|one| (&*one.sender, (one.lines, one.bytes))).collect();
        for sender in self.senders.iter_mut().filter(|_| seconds > 0.0) {
            let (lines, bytes) = then.get(&*sender.sender).copied().unwrap_or_default();
            let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
            sender.rate = Some([rate(sender.lines, lines), rate(sender.bytes, bytes)]);
        }
    }

    /// The senders whose word contains a text, in this order; by lines and bytes those come first
    /// that send fastest, or that have sent most.
    pub fn senders(&self, order: Order, filter: &str) -> Vec<&Sender> {
        let speed = |one: &Sender, at: usize| one.rate.map_or(0.0, |rate| rate[at]);
        let mut senders: Vec<_> =
            self.senders.iter().filter(|one| one.sender.contains(filter)).collect();
        senders.sort_by(|a, b| {
            let by = match order {
                Order::Lines => speed(b, 0).total_cmp(&speed(a, 0)).then(b.lines.cmp(&a.lines)),
                Order::Bytes => speed(b, 1).total_cmp(&speed(a, 1)).then(b.bytes.cmp(&a.bytes)),
                Order::Series => b.series.cmp(&a.series),
                Order::Name => Ordering::Equal,
                Order::Sender => (b.refused + b.dropped).cmp(&(a.refused + a.dropped)),
            };
            by.then_with(|| a.sender.cmp(&b.sender))
        });
        senders
    }
}

/// A number in at most five columns.
pub fn short(number: f64) -> String {
    match number {
        n if n >= 999_500_000.0 => format!("{:.1}G", n / 1e9),
        n if n >= 99_950_000.0 => format!("{:.0}M", n / 1e6),
        n if n >= 999_500.0 => format!("{:.1}M", n / 1e6),
        n if n >= 99_950.0 => format!("{:.0}k", n / 1e3),
        n if n >= 9_999.5 => format!("{:.1}k", n / 1e3),
        n if n >= 99.95 || n.fract() == 0.0 => format!("{n:.0}"),
        n => format!("{n:.1}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    pub(in crate::cli) fn snapshot() -> Snapshot {
        let overview = json!({
            "time": 5000, "lost": {"lines refused at udp://x (type)": 3},
            "process": {"cpu_seconds": 1.5, "rss_bytes": 9_000_000},
        });
        let rates = json!({"rest": 1.0, "names": [
            {"name": "a", "kind": "count", "samples": 10.0, "bytes": 100.0},
            {"name": "b", "kind": "timer", "samples": 30.0, "bytes": 90.0},
        ]});
        let cost = json!({"series": 8, "names": [
            {"name": "a", "series": 5, "sender": "app[7] uid 0", "senders": 3},
            {"name": "idle", "series": 3, "sender": "container web-1", "senders": 1},
        ]});
        let ledger = json!({"senders": [
            {"sender": "app[7] uid 0", "lines": 30, "bytes": 900, "series": 4,
             "rejects": {"type": 3, "no_pipe": 1}, "dropped": {}},
            {"sender": "container web-1", "lines": 90, "bytes": 800, "series": 3, "rejects": {},
             "dropped": {"series_limit": 2}},
        ]});
        Snapshot::of(&overview, &rates, &cost, &ledger)
    }

    #[test]
    fn names_come_in_the_order_asked_for() {
        let snapshot = snapshot();
        assert_eq!((snapshot.lines, snapshot.series), (41.0, 8));
        let order = |order, filter| {
            let names = snapshot.sorted(order, filter);
            names.iter().map(|name| name.name.as_str()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(Order::Lines, ""), "b a idle");
        assert_eq!(order(Order::Bytes, ""), "a b idle");
        assert_eq!(order(Order::Series, ""), "a idle b");
        assert_eq!(order(Order::Name, ""), "a b idle");
        assert_eq!(order(Order::Sender, ""), "b a idle");
        assert_eq!(order(Order::Name, "id"), "idle");
    }

    #[test]
    fn senders_come_in_the_order_asked_for() {
        let snapshot = snapshot();
        let first = |order, filter| snapshot.senders(order, filter)[0].clone();
        for (order, filter, sender) in [
            (Order::Lines, "", "container web-1"),
            (Order::Bytes, "", "app[7] uid 0"),
            (Order::Series, "", "app[7] uid 0"),
            (Order::Name, "", "app[7] uid 0"),
            (Order::Sender, "", "app[7] uid 0"),
            (Order::Sender, "web", "container web-1"),
        ] {
            assert_eq!(first(order, filter).sender, sender, "{order:?}");
        }
        let Sender { refused, dropped, .. } = first(Order::Sender, "");
        assert_eq!((refused, dropped), (4, 0));
    }

    #[test]
    fn numbers_fit_five_columns() {
        for (number, expected) in [
            (0.0, "0"),
            (0.25, "0.2"),
            (99.9, "99.9"),
            (123.4, "123"),
            (9_999.0, "9999"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (1_234_567.0, "1.2M"),
            (123_456_789.0, "123M"),
            (5e9, "5.0G"),
        ] {
            assert_eq!(short(number), expected);
        }
    }
}
