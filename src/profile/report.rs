//! What a window says, in a line for people or for programs.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::sync::Arc;

use serde::Serialize;

use super::stage::{self, STAGES};
use super::symbols::Symbols;
use super::window::Window;

/// Functions shown.
const TOP: usize = 15;

/// The figures of a window. Of each list the samples are those of the whole window, split up; a
/// share is in per cent of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    pub name: String,
    pub samples: u64,
    pub pct: f64,
}

/// A function: what was sampled in itself, and what in it and all that it called.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
            "CPU in {:.0} s: {:.2} s, {} % of a core; {} samples at {} Hz",
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
