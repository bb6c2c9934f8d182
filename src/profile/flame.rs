//! A window as a flame graph: an SVG drawing that needs nothing else.
//!
//! A bar is a function, as wide as the share of samples in it and in what it called; what it called
//! stands below it. Bars are coloured by stage, and tell their figures when pointed at.

use std::fmt::Write;
use std::sync::Arc;

use super::stage::{self, STAGES};
use super::symbols::Symbols;
use super::window::Window;

/// Measures of the drawing, in its own units.
const WIDTH: f64 = 1200.0;
const BAR: usize = 17;
const HEAD: usize = 24;
const LETTER: f64 = 6.7;
/// Bars narrower than this are left out.
const NARROWEST: f64 = 0.4;

const STYLE: &str = "\
svg{background:#fff;font:11px monospace}text{fill:#111;pointer-events:none}.head{fill:#111}\
rect{stroke:#fff;stroke-width:.5}\
@media(prefers-color-scheme:dark){svg{background:#16181c}.head{fill:#ddd}rect{stroke:#16181c}}";

/// A function reached by a certain path of functions.
struct Bar {
    name: Arc<str>,
    /// Its place in [`STAGES`], if it has one.
    stage: Option<usize>,
    samples: u64,
    callees: Vec<usize>,
}

/// The drawing. `symbols` have learnt the window.
pub fn draw(window: &Window, symbols: &Symbols) -> String {
    let bars = bars(window, symbols);
    let mut body = String::new();
    let depth = draw_bar(&mut body, &bars, 0, 0.0, 0);
    let height = HEAD + (depth + 1) * BAR;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"CPU flame graph\">\n<style>{STYLE}</style>\n\
         <text class=\"head\" x=\"4\" y=\"15\">{} samples in {:.0} s, {:.2} s of CPU time</text>\n",
        window.samples(),
        window.length.as_secs_f64(),
        window.cpu.as_secs_f64(),
    );
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

/// Paths of addresses put together by their functions. The first bar is the whole, those below it
/// are the threads.
fn bars(window: &Window, symbols: &Symbols) -> Vec<Bar> {
    let mut bars = vec![Bar { name: "all".into(), stage: None, samples: 0, callees: Vec::new() }];
    for node in window.nodes.iter().filter(|node| node.own > 0) {
        let (path, thread) = window.path(node);
        let mut path = symbols.functions(&path);
        path.push(thread.into());
        let mut at = 0;
        bars[at].samples += u64::from(node.own);
        for (i, name) in path.iter().enumerate().rev() {
            let known = bars[at].callees.iter().copied().find(|&callee| bars[callee].name == *name);
            at = known.unwrap_or_else(|| {
                let functions = path[i..path.len() - 1].iter().map(|name| &**name);
                let stage = stage::of(functions, thread);
                let stage = STAGES.iter().position(|known| *known == stage);
                bars.push(Bar { name: Arc::clone(name), stage, samples: 0, callees: Vec::new() });
                let new = bars.len() - 1;
                bars[at].callees.push(new);
                new
            });
            bars[at].samples += u64::from(node.own);
        }
    }
    bars
}

/// Draws a bar and what it called. Returns how deep that goes.
fn draw_bar(svg: &mut String, bars: &[Bar], at: usize, left: f64, depth: usize) -> usize {
    let bar = &bars[at];
    let share = bar.samples as f64 / bars[0].samples.max(1) as f64;
    let width = WIDTH * share;
    if width < NARROWEST {
        return depth;
    }
    let fill = bar.stage.map_or_else(
        || "#bbb".to_owned(),
        |stage| format!("hsl({} 70% {}%)", stage * 360 / STAGES.len(), 66 + depth % 2 * 4),
    );
    let (top, name) = (HEAD + depth * BAR, escaped(&bar.name));
    let _ = writeln!(
        svg,
        "<g><title>{name}: {} samples, {:.1} %</title>\
         <rect x=\"{left:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{fill}\"/>\
         {}</g>",
        bar.samples,
        100.0 * share,
        label(&bar.name, width).map_or_else(String::new, |label| format!(
            "<text x=\"{:.1}\" y=\"{}\">{}</text>",
            left + 3.0,
            top + 12,
            escaped(&label)
        )),
    );
    let mut callees = bar.callees.clone();
    callees.sort_by(|a, b| bars[*a].name.cmp(&bars[*b].name));
    let (mut left, mut deepest) = (left, depth);
    for callee in callees {
        deepest = deepest.max(draw_bar(svg, bars, callee, left, depth + 1));
        left += WIDTH * bars[callee].samples as f64 / bars[0].samples.max(1) as f64;
    }
    deepest
}

/// As much of a name as has room.
fn label(name: &str, width: f64) -> Option<String> {
    let room = ((width - 6.0) / LETTER) as usize;
    if name.chars().count() <= room {
        return Some(name.to_owned());
    }
    (room >= 3).then(|| name.chars().take(room - 1).chain(['…']).collect())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::symbols::tests::symbols;
    use super::super::window::tests::window;
    use super::*;

    #[test]
    fn bars_are_as_wide_as_their_samples() {
        let symbols = symbols(&[
            (1, &["tallyd::intake::run"]),
            (2, &["<A as \"B\">::c", "tallyd::reader::datagram"]),
            (3, &["tallyd::encode::table::a_name_that_is_much_too_long_for_so_few_samples_of_it"]),
            (4, &["tallyd::intake::run"]),
        ]);
        let samples: [(&str, &[usize]); 4] =
            [("one", &[2, 1]), ("one", &[2, 4]), ("one", &[1]), ("two", &[3])];
        let svg = draw(&window(&samples), &symbols);
        let bar = |name: &str, samples: u32, pct: &str, left: u32, level: usize, width: u32| {
            let top = HEAD + level * BAR;
            let title = format!("<title>{name}: {samples} samples, {pct} %</title>");
            let line = svg.lines().find(|line| line.contains(&title));
            let line = line.unwrap_or_else(|| panic!("no {title} in\n{svg}"));
            let place = format!("x=\"{left}.0\" y=\"{top}\" width=\"{width}.0\" ");
            assert!(line.contains(&place), "{line}");
            line.to_owned()
        };
        bar("all", 4, "100.0", 0, 0, 1200);
        bar("one", 3, "75.0", 0, 1, 900);
        bar("two", 1, "25.0", 900, 1, 300);
        let receive = bar("tallyd::intake::run", 3, "75.0", 0, 2, 900);
        let aggregate = bar("tallyd::reader::datagram", 2, "50.0", 0, 3, 600);
        let inner = bar("&lt;A as &quot;B&quot;&gt;::c", 2, "50.0", 0, 4, 600);
        let long = "tallyd::encode::table::a_name_that_is_much_too_long_for_so_few_samples_of_it";
        let encode = bar(long, 1, "25.0", 900, 2, 300);
        assert!(
            encode.ends_with(">tallyd::encode::table::a_name_that_is_much…</text></g>"),
            "{encode}"
        );
        let hue = |line: &str| {
            let (_, fill) = line.split_once("hsl(").expect("a fill");
            fill.split(' ').next().expect("a hue").to_owned()
        };
        assert_eq!(hue(&aggregate), hue(&inner));
        assert!(hue(&receive) != hue(&aggregate) && hue(&encode) != hue(&aggregate));
        assert!(svg.contains(&format!("viewBox=\"0 0 1200 {}\"", HEAD + 5 * BAR)), "{svg}");
        assert_eq!(svg.lines().filter(|line| line.starts_with("<g>")).count(), 7, "{svg}");
    }

    #[test]
    fn an_idle_window_is_drawn_too() {
        let svg = draw(&Window::default(), &Symbols::default());
        assert!(svg.contains("0 samples in 0 s, 0.00 s of CPU time"), "{svg}");
        assert!(svg.ends_with("</svg>\n"), "{svg}");
    }
}
