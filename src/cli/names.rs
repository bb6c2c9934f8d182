//! What `tallyd top` and `tallyd stats` show: names with their traffic and their series.

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
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    pub names: Vec<Name>,
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
}

impl Snapshot {
    /// # Errors
    /// When the server does not answer.
    pub fn ask(client: &Client) -> anyhow::Result<Self> {
        let overview = client.json("/api/overview")?;
        let rates = client.json(&format!("/api/rates?limit={NAMES}"))?;
        let cost = client.json(&format!("/api/cost?limit={NAMES}"))?;
        Ok(Self::of(&overview, &rates, &cost))
    }

    fn of(overview: &Json, rates: &Json, cost: &Json) -> Self {
        let list = |list: &Json| list.as_array().cloned().unwrap_or_default();
        let word = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let mut names = BTreeMap::<String, Name>::new();
        for rate in list(&rates["names"]) {
            let name = Name {
                name: word(&rate["name"]),
                kind: word(&rate["kind"]),
                lines: rate["samples"].as_f64().unwrap_or_default(),
                bytes: rate["bytes"].as_f64().unwrap_or_default(),
                series: 0,
            };
            names.insert(name.name.clone(), name);
        }
        let rest = rates["rest"].as_f64().unwrap_or_default();
        let lines = names.values().map(|name| name.lines).sum::<f64>() + rest;
        for one in list(&cost["names"]) {
            let name = names.entry(word(&one["name"])).or_default();
            name.name = word(&one["name"]);
            name.series = one["series"].as_u64().unwrap_or_default();
        }
        let lost = serde_json::from_value(overview["lost"].clone()).unwrap_or_default();
        Self {
            names: names.into_values().collect(),
            lines,
            series: cost["series"].as_u64().unwrap_or_default(),
            lost,
            cpu_seconds: overview["process"]["cpu_seconds"].as_f64().unwrap_or_default(),
            rss_bytes: overview["process"]["rss_bytes"].as_u64().unwrap_or_default(),
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
                Order::Name => std::cmp::Ordering::Equal,
            };
            by.then_with(|| a.name.cmp(&b.name))
        });
        names
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
            {"name": "a", "series": 5}, {"name": "idle", "series": 3},
        ]});
        Snapshot::of(&overview, &rates, &cost)
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
        assert_eq!(order(Order::Name, "id"), "idle");
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
