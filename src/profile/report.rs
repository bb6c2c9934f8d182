//! What a window says, in a line for people or for programs.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use super::stage::{self, STAGES};
use super::symbols::Symbols;
use super::window::Window;

/// Functions shown.
const TOP: usize = 15;

/// The figures of a window. Of each list the samples are those of the whole window, split up; a
/// share is in per cent of them.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Report {
    pub event: &'static str,
    /// Seconds of the window, and of CPU time used in it.
    pub window_s: f64,
    pub cpu_s: f64,
    /// Per cent of one core.
    pub cpu_pct: f64,
    pub hz: u32,
    pub samples: u64,
    /// Samples that there was no room for.
    pub lost: u64,
    pub stages: Vec<Share>,
    pub threads: Vec<Share>,
    pub top: Vec<Function>,
}

/// A part of the samples.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Share {
    pub name: String,
    pub samples: u64,
    pub pct: f64,
}

/// A function: what was sampled in itself, and what in it and all that it called.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Function {
    pub name: String,
    pub own: u64,
    pub own_pct: f64,
    pub total: u64,
    pub total_pct: f64,
}

impl Report {
    /// `symbols` have learnt the window.
    pub fn new(window: &Window, symbols: &Symbols) -> Self {
        let mut stages: Vec<(String, u64)> = STAGES.map(|name| (name.to_owned(), 0)).into();
        let mut threads: Vec<(String, u64)> = Vec::new();
        let mut functions = HashMap::<Arc<str>, (u64, u64)>::new();
        for node in window.nodes.iter().filter(|node| node.own > 0) {
            let (path, thread) = window.path(node);
            let (path, own) = (symbols.functions(&path), u64::from(node.own));
            add(&mut stages, stage::of(path.iter().map(|f| &**f), thread), own);
            add(&mut threads, thread, own);
            if let Some(innermost) = path.first() {
                functions.entry(Arc::clone(innermost)).or_default().0 += own;
            }
            // One that calls itself counts once.
            for function in path.into_iter().collect::<HashSet<_>>() {
                functions.entry(function).or_default().1 += own;
            }
        }
        threads.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));

        let samples = window.samples();
        let pct = |part: u64| percent(part as f64, samples as f64);
        let share = |(name, samples): (String, u64)| Share { name, samples, pct: pct(samples) };
        let (length, cpu) = (window.length.as_secs_f64(), window.cpu.as_secs_f64());
        Self {
            event: "cpu_profile",
            window_s: rounded(length, 3),
            cpu_s: rounded(cpu, 3),
            cpu_pct: percent(cpu, length),
            hz: window.hz,
            samples,
            lost: window.lost,
            stages: stages.into_iter().map(share).collect(),
            threads: threads.into_iter().map(share).collect(),
            top: functions
                .into_iter()
                .take(TOP)
                .map(|(name, (own, total))| Function {
                    name: name.to_string(),
                    own,
                    own_pct: pct(own),
                    total,
                    total_pct: pct(total),
                })
                .collect(),
        }
    }

    /// For people: stages and threads without samples are left out.
    pub fn text(&self) -> String {
        let mut text = format!(
            "CPU in {:.0} s: {} s, {} % of a core; {} samples at {} Hz",
            self.window_s, self.cpu_s, self.cpu_pct, self.samples, self.hz
        );
        if self.lost > 0 {
            let _ = write!(text, ", {} lost", self.lost);
        }
        for (title, shares) in [("stages", &self.stages), ("threads", &self.threads)] {
            let shares = shares.iter().filter(|share| share.samples > 0);
            list(&mut text, title, shares.map(|share| format!("{} {} %", share.name, share.pct)));
        }
        let function = |f: &Function| format!("{} {} %/{} %", f.name, f.own_pct, f.total_pct);
        list(&mut text, "functions (own/total)", self.top.iter().map(function));
        text
    }
}

fn list(text: &mut String, title: &str, items: impl Iterator<Item = String>) {
    for (i, item) in items.enumerate() {
        let _ = match i {
            0 => write!(text, "; {title}: {item}"),
            _ => write!(text, ", {item}"),
        };
    }
}

fn add(shares: &mut Vec<(String, u64)>, name: &str, samples: u64) {
    match shares.iter_mut().find(|(known, _)| known == name) {
        Some((_, sum)) => *sum += samples,
        None => shares.push((name.to_owned(), samples)),
    }
}

/// Of nothing every part is 0 %.
fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { rounded(100.0 * part / whole, 1) } else { 0.0 }
}

fn rounded(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::symbols::tests::symbols;
    use super::super::window::tests::window;
    use super::*;

    fn example() -> Report {
        let symbols = symbols(&[
            (1, &["tallyd::intake::run"]),
            // Inlined into the function behind it.
            (2, &["tallyd::parse::line", "tallyd::reader::datagram"]),
            (3, &["memchr"]),
            (4, &["tallyd::encode::table"]),
        ]);
        let window = window(&[
            ("intake-0", &[3, 2, 1]),
            ("intake-0", &[2, 1]),
            ("intake-1", &[2, 1]),
            ("intake-0", &[1]),
            // Recursion.
            ("control", &[4, 4, 4]),
            ("control", &[99]),
            ("x", &[99]),
            ("x", &[99]),
        ]);
        Report::new(&window, &symbols)
    }

    #[test]
    fn shares_are_those_of_the_samples() {
        let report = serde_json::to_value(example()).expect("JSON");
        let share = |name, samples, pct| json!({"name": name, "samples": samples, "pct": pct});
        assert_eq!(
            report["stages"],
            json!([
                share("receive", 1, 12.5),
                share("parse", 3, 37.5),
                share("aggregate", 0, 0.0),
                share("flush", 0, 0.0),
                share("journal", 0, 0.0),
                share("encode", 1, 12.5),
                share("spool", 0, 0.0),
                share("send", 1, 12.5),
                share("pages", 0, 0.0),
                share("profiler", 0, 0.0),
                share("other", 2, 25.0),
            ])
        );
        assert_eq!(
            report["threads"],
            json!([
                share("intake-0", 3, 37.5),
                share("control", 2, 25.0),
                share("x", 2, 25.0),
                share("intake-1", 1, 12.5),
            ])
        );
        let top = report["top"].as_array().expect("a list").iter();
        let top: Vec<_> = top
            .map(|f| (f["name"].as_str().expect("text"), f["own"].clone(), f["total"].clone()))
            .collect();
        let function = |name, own: u64, total: u64| (name, Value::from(own), Value::from(total));
        assert_eq!(
            top,
            [
                function("[unknown]", 3, 3),
                function("tallyd::parse::line", 2, 3),
                function("tallyd::intake::run", 1, 4),
                function("memchr", 1, 1),
                function("tallyd::encode::table", 1, 1),
                function("tallyd::reader::datagram", 0, 3),
            ]
        );
        for (key, value) in [
            ("event", json!("cpu_profile")),
            ("window_s", json!(60.0)),
            ("cpu_s", json!(1.0)),
            ("cpu_pct", json!(1.7)),
            ("hz", json!(100)),
            ("samples", json!(8)),
            ("lost", json!(0)),
        ] {
            assert_eq!(report[key], value, "{key}");
        }
    }

    #[test]
    fn a_line_for_people_leaves_out_what_is_zero() {
        let mut report = example();
        report.lost = 3;
        report.top.truncate(2);
        assert_eq!(
            report.text(),
            "CPU in 60 s: 1 s, 1.7 % of a core; 8 samples at 100 Hz, 3 lost; \
             stages: receive 12.5 %, parse 37.5 %, encode 12.5 %, send 12.5 %, other 25 %; \
             threads: intake-0 37.5 %, control 25 %, x 25 %, intake-1 12.5 %; \
             functions (own/total): [unknown] 37.5 %/37.5 %, tallyd::parse::line 25 %/37.5 %"
        );
    }

    #[test]
    fn an_idle_window_has_zeros() {
        let window = Window { length: Duration::from_secs(60), hz: 99, ..Window::default() };
        let report = Report::new(&window, &Symbols::default());
        assert_eq!(report.text(), "CPU in 60 s: 0 s, 0 % of a core; 0 samples at 99 Hz");
        let document = serde_json::to_value(&report).expect("JSON");
        assert_eq!(document["stages"].as_array().map(Vec::len), Some(STAGES.len()));
        assert_eq!((&document["cpu_pct"], &document["samples"]), (&json!(0.0), &json!(0)));
        assert_eq!((&document["top"], &document["threads"]), (&json!([]), &json!([])));
    }
}
