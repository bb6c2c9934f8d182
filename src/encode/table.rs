//! The table that a person reads: one line per point, then events and service checks. Nothing a
//! sender wrote reaches the terminal as a control character.

use std::cmp::Ordering;
use std::fmt::Write;

use crate::batch::{Batch, Event, Row, ServiceCheck, Value};
use crate::context::Context;
use crate::sample::{AlertType, Status};
use crate::sketch::Sketch;
use crate::value::Summary;

/// How a table is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Characters of a line; fewer than 40 count as 40.
    pub width: usize,
    /// Lines for series, and as many for events and for service checks; the rest is counted.
    pub rows: usize,
    /// The own host, which is not repeated with every series.
    pub hostname: String,
}

const WIDTH_MIN: usize = 40;
const TAGS: usize = 1;
const NAME: usize = 0;
const VALUE: usize = 3;
/// What gives way when a line is too long, and down to which width: tags first, values late. With
/// the longest kind the last widths fill the narrowest line.
const CUTS: [(usize, usize); 5] = [(TAGS, 10), (NAME, 14), (VALUE, 10), (TAGS, 4), (NAME, 8)];
const GAP: &str = "  ";

/// The line for a flush in which nothing came.
pub fn empty_line(batch: &Batch) -> String {
    format!("{} UTC  nothing received\n", clock(batch.flushed_at))
}

/// The table of one flush, sorted by name, then by tags.
pub fn table(batch: &Batch, layout: &Layout) -> String {
    let width = layout.width.max(WIDTH_MIN);
    let mut out = cut(&headline(batch), width);
    out.push('\n');
    if !batch.rows.is_empty() {
        write_rows(&mut out, batch, layout, width);
    }
    let events = batch.events.iter().map(|event| event_line(event, &layout.hostname));
    write_list(&mut out, events, layout.rows, width, "events");
    let checks = batch.checks.iter().map(|check| check_line(check, &layout.hostname));
    write_list(&mut out, checks, layout.rows, width, "checks");
    out
}

fn headline(batch: &Batch) -> String {
    let mut line = format!("{} UTC", clock(batch.flushed_at));
    let (series, points) = (batch.series().count(), batch.rows.len());
    for (number, one, many) in [
        (series, "series", "series"),
        (if points > series { points } else { 0 }, "point", "points"),
        (batch.events.len(), "event", "events"),
        (batch.checks.len(), "check", "checks"),
    ] {
        if number > 0 {
            let _ = write!(line, "{GAP}{number} {}", if number == 1 { one } else { many });
        }
    }
    line
}

/// Time of day of Unix seconds.
fn clock(seconds: i64) -> String {
    let of_day = seconds.rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

fn write_rows(out: &mut String, batch: &Batch, layout: &Layout, width: usize) {
    let shown = first_rows(&batch.rows, layout.rows);
    let mut lines = vec![["NAME", "TAGS", "KIND", "VALUE"].map(str::to_owned)];
    lines.extend(shown.iter().map(|row| {
        let name = printable(row.context.name());
        let tags = tags_cell(&row.context, &layout.hostname);
        [name, tags, row.context.kind().word().to_owned(), value_cell(&row.value, batch.interval)]
    }));
    let widths = widths(&lines, width);
    for cells in &lines {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(line, "{:width$}{GAP}", cut(cell, width));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    write_rest(out, batch.rows.len() - shown.len(), "series");
}

/// The first `limit` rows by name, tags and time, without sorting the others.
fn first_rows(rows: &[Row], limit: usize) -> Vec<&Row> {
    let mut rows: Vec<_> = rows.iter().collect();
    if limit < rows.len() {
        rows.select_nth_unstable_by(limit, |a, b| order(a, b));
        rows.truncate(limit);
    }
    rows.sort_by(|a, b| order(a, b));
    rows
}

fn order(a: &Row, b: &Row) -> Ordering {
    let (x, y) = (&a.context, &b.context);
    (x.name().cmp(y.name()))
        .then_with(|| x.tags().cmp(y.tags()))
        .then_with(|| (x.kind(), x.host(), a.time).cmp(&(y.kind(), y.host(), b.time)))
}

/// The widths of the columns: as wide as their content if that fits.
fn widths(lines: &[[String; 4]], width: usize) -> [usize; 4] {
    let mut widths = [0; 4];
    for cells in lines {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let total = widths.iter().sum::<usize>() + GAP.len() * (widths.len() - 1);
    let mut excess = total.saturating_sub(width);
    for (column, min) in CUTS {
        let taken = excess.min(widths[column].saturating_sub(min));
        widths[column] -= taken;
        excess -= taken;
    }
    widths
}

fn tags_cell(context: &Context, hostname: &str) -> String {
    let host = context.host();
    let host = (host != hostname && !host.is_empty()).then(|| format!("host:{host}"));
    let tags: Vec<_> = host.as_deref().into_iter().chain(context.tags()).collect();
    printable(&tags.join(","))
}

fn value_cell(value: &Value, interval: u32) -> String {
    match value {
        Value::Count(sum) if *sum == 0.0 || interval == 0 => number(*sum),
        Value::Count(sum) => {
            format!("{} ({}/s)", number(*sum), number(sum / f64::from(interval)))
        }
        Value::Gauge(value) => number(*value),
        Value::Set(members) => members.to_string(),
        Value::Histogram(summary) => histogram_cell(summary),
        Value::Distribution(sketch) => distribution_cell(sketch),
    }
}

/// Shows the highest of the percentiles.
fn histogram_cell(summary: &Summary) -> String {
    let [count, min, avg, max] =
        [summary.count, summary.min, summary.avg(), summary.max].map(number);
    let mut cell = format!("n={count} min={min} avg={avg} max={max}");
    if let Some((percent, value)) = summary.percentiles.last() {
        let _ = write!(cell, " p{percent}={}", number(*value));
    }
    cell
}

fn distribution_cell(sketch: &Sketch) -> String {
    let count = sketch.count();
    if count == 0 {
        return "n=0".to_owned();
    }
    let avg = number(sketch.sum() / count as f64);
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|q| number(sketch.quantile(q).unwrap_or_default()));
    format!("n={count} avg={avg} p50={p50} p95={p95} p99={p99}")
}

fn event_line(event: &Event, hostname: &str) -> String {
    let alert = match event.alert_type {
        AlertType::Error => "error",
        AlertType::Warning => "warning",
        AlertType::Info => "info",
        AlertType::Success => "success",
    };
    let title = [&event.title, ": ", &event.text].concat();
    let title = if event.text.is_empty() { &event.title } else { &title };
    list_line("event", alert, title, &event.host, hostname, &event.tags)
}

fn check_line(check: &ServiceCheck, hostname: &str) -> String {
    let status = match check.status {
        Status::Ok => "ok",
        Status::Warning => "warning",
        Status::Critical => "critical",
        Status::Unknown => "unknown",
    };
    let title = [&check.name, ": ", &check.message].concat();
    let title = if check.message.is_empty() { &check.name } else { &title };
    list_line("check", status, title, &check.host, hostname, &check.tags)
}

fn list_line(
    what: &str,
    state: &str,
    title: &str,
    host: &str,
    hostname: &str,
    tags: &[String],
) -> String {
    let mut line = format!("{what}{GAP}{state:8}{GAP}{}", printable(title));
    let host = (host != hostname && !host.is_empty()).then(|| format!("host:{host}"));
    let tags: Vec<_> = host.iter().chain(tags).map(String::as_str).collect();
    if !tags.is_empty() {
        let _ = write!(line, "{GAP}[{}]", printable(&tags.join(",")));
    }
    line
}

fn write_list(
    out: &mut String,
    lines: impl ExactSizeIterator<Item = String>,
    limit: usize,
    width: usize,
    word: &str,
) {
    let rest = lines.len().saturating_sub(limit);
    for line in lines.take(limit) {
        out.push_str(&cut(&line, width));
        out.push('\n');
    }
    write_rest(out, rest, word);
}

fn write_rest(out: &mut String, rest: usize, word: &str) {
    if rest > 0 {
        let _ = writeln!(out, "... and {rest} more {word}");
    }
}

/// Cuts to a number of characters; the last one then is `…`.
fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width.saturating_sub(1)).chain(['…']).take(width).collect(),
    }
}

/// Escapes whatever is not a visible character: control characters, which drive a terminal, and
/// marks that turn or hide text.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '\'' | '"' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}

/// Integers in full, as far as they are exact; anything else to six significant digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if value.trunc() == value && size < 1e15 {
        // Adding zero makes -0 a 0.
        return (value + 0.0).to_string();
    }
    if !(1e-5..1e15).contains(&size) {
        let text = format!("{value:.5e}");
        let Some((digits, exponent)) = text.split_once('e') else { return text };
        return format!("{}e{exponent}", trimmed(digits));
    }
    let before_point = size.log10().floor() as i32 + 1;
    trimmed(&format!("{value:.*}", (6 - before_point).max(0) as usize)).to_owned()
}

/// Without zeros at the end of a fraction.
fn trimmed(digits: &str) -> &str {
    if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::Source;
    use crate::sample::{Kind, Priority};

    fn layout(width: usize, rows: usize) -> Layout {
        Layout { width, rows, hostname: "own".to_owned() }
    }

    fn row(name: &str, host: &str, tags: &[&str], kind: Kind, value: Value) -> Row {
        let tags = tags.iter().map(|t| (*t).to_owned()).collect();
        let context = Context::new(name, kind, host, tags, Source::default());
        Row { context, time: 100, value }
    }

    fn gauge(name: &str, tags: &[&str], value: f64) -> Row {
        row(name, "own", tags, Kind::Gauge, Value::Gauge(value))
    }

    fn event(title: &str, text: &str, tags: &[&str]) -> Event {
        Event {
            title: title.to_owned(),
            text: text.to_owned(),
            timestamp: 100,
            host: "own".to_owned(),
            aggregation_key: String::new(),
            source_type: String::new(),
            priority: Priority::Normal,
            alert_type: AlertType::Warning,
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
        }
    }

    fn check(name: &str, message: &str) -> ServiceCheck {
        ServiceCheck {
            name: name.to_owned(),
            status: Status::Critical,
            timestamp: 100,
            host: "db-1".to_owned(),
            message: message.to_owned(),
            tags: vec![],
        }
    }

    fn batch(rows: Vec<Row>) -> Batch {
        Batch { flushed_at: 1_700_000_000, interval: 10, rows, ..Batch::default() }
    }

    fn everything() -> Batch {
        let summary = Summary {
            count: 3.0,
            sum: 37.0,
            min: 0.5,
            max: 30.25,
            median: 6.25,
            percentiles: vec![(50, 6.25), (95, 30.25)],
        };
        let mut sketch = Sketch::new();
        sketch.insert(4.0);
        sketch.finish();
        let count = |name, sum| row(name, "own", &["code:200"], Kind::Count, Value::Count(sum));
        let mut batch = batch(vec![
            gauge("queue.depth", &["env:prod"], 12.0),
            gauge("queue.depth", &["env:dev"], 0.25),
            count("http.hits", 42.0),
            count("http.idle", 0.0),
            row("users", "web-1", &["b", "a"], Kind::Set, Value::Set(7)),
            row("db.time", "own", &[], Kind::Timer, Value::Histogram(Box::new(summary))),
            row("d", "own", &[], Kind::Distribution, Value::Distribution(Box::new(sketch))),
        ]);
        batch.events =
            [event("Deploy", "v2\nis out", &["env:dev"]), event("Plain", "", &[])].into();
        batch.checks = [check("db.up", "no route"), check("quiet", "")].into();
        batch
    }

    #[test]
    fn a_table_of_everything() {
        assert_eq!(
            table(&everything(), &layout(100, 40)),
            "\
22:13:20 UTC  7 series  2 events  2 checks
NAME         TAGS            KIND          VALUE
d                            distribution  n=1 avg=4 p50=4 p95=4 p99=4
db.time                      timer         n=3 min=0.5 avg=12.3333 max=30.25 p95=30.25
http.hits    code:200        count         42 (4.2/s)
http.idle    code:200        count         0
queue.depth  env:dev         gauge         0.25
queue.depth  env:prod        gauge         12
users        host:web-1,a,b  set           7
event  warning   Deploy: v2\\nis out  [env:dev]
event  warning   Plain
check  critical  db.up: no route  [host:db-1]
check  critical  quiet  [host:db-1]
"
        );
    }

    #[test]
    fn what_is_too_long_is_cut_and_what_is_too_much_is_counted() {
        let mut batch = everything();
        batch.rows.push(gauge("a.rather.long.name", &["tag:with_a_very_long_value"], 1.5));
        batch.events = batch.events.iter().cloned().chain([event("third", "", &[])]).collect();
        assert_eq!(
            table(&batch, &layout(44, 2)),
            "\
22:13:20 UTC  8 series  3 events  2 checks
NAME          TAGS  KIND          VALUE
a.rather.lo…  tag…  gauge         1.5
d                   distribution  n=1 avg=4…
... and 6 more series
event  warning   Deploy: v2\\nis out  [env:d…
event  warning   Plain
... and 1 more events
check  critical  db.up: no route  [host:db-…
check  critical  quiet  [host:db-1]
"
        );
    }

    #[test]
    fn several_points_of_a_series_are_told() {
        let context = gauge("g", &[], 0.0).context;
        let point =
            |time, value| Row { context: context.clone(), time, value: Value::Gauge(value) };
        assert_eq!(
            table(&batch(vec![point(2, 5.0), point(1, 4.0)]), &layout(0, 9)),
            "22:13:20 UTC  1 series  2 points\nNAME  TAGS  KIND   VALUE\n\
             g           gauge  4\ng           gauge  5\n"
        );
    }

    #[test]
    fn an_empty_flush_is_one_line() {
        assert_eq!(empty_line(&batch(vec![])), "22:13:20 UTC  nothing received\n");
    }

    #[test]
    fn numbers() {
        for (value, want) in [
            (0.0, "0"),
            (-0.0, "0"),
            (12.0, "12"),
            (-1_234_567.0, "-1234567"),
            (0.1 + 0.2, "0.3"),
            (1.0 / 3.0, "0.333333"),
            (1234.5678, "1234.57"),
            (1_234_567.8, "1234568"),
            (99.99999, "100"),
            (0.000_123_456_7, "0.000123457"),
            (0.000_001_5, "1.5e-6"),
            (1e15, "1e15"),
            (1.234_567_89e300, "1.23457e300"),
            (f64::INFINITY, "inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(number(value), want);
        }
    }

    #[test]
    fn a_sender_cannot_drive_the_terminal() {
        for (sent, want) in [
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("\r\n\t\0\u{7f}\u{9b}", "\\r\\n\\t\\0\\u{7f}\\u{9b}"),
            ("\u{202e}\u{2066}\u{200b}\u{2028}", "\\u{202e}\\u{2066}\\u{200b}\\u{2028}"),
            ("é 漢 \"q\" 'x' \\n", "é 漢 \"q\" 'x' \\n"),
        ] {
            assert_eq!(printable(sent), want);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn lines_fit_and_hold_no_control_characters(
            texts in proptest::collection::vec(any::<String>(), 1..12),
            width in 0..140_usize,
            rows in 0..8_usize,
        ) {
            let mut batch = batch(texts.iter().map(|t| gauge(t, &[t, "k"], 1.5)).collect());
            batch.events = texts.iter().map(|t| event(t, t, &[t])).collect();
            batch.checks = texts.iter().map(|t| check(t, t)).collect();
            let text = table(&batch, &layout(width, rows));
            for line in text.lines() {
                prop_assert!(line.chars().count() <= width.max(WIDTH_MIN), "{line}");
            }
            prop_assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
            let shown = 3 * rows.min(texts.len());
            let rest = if rows < texts.len() { 3 } else { 0 };
            prop_assert_eq!(text.lines().count(), 2 + shown + rest);
        }

        #[test]
        fn the_first_rows_are_those_of_a_full_sort(
            names in proptest::collection::vec("[abc]{1,2}", 0..20),
            limit in 0..25_usize,
        ) {
            let rows: Vec<_> = names.iter().map(|name| gauge(name, &[], 1.0)).collect();
            let got: Vec<_> = first_rows(&rows, limit).iter().map(|r| r.context.name()).collect();
            let mut want: Vec<_> = names.iter().map(String::as_str).collect();
            want.sort_unstable();
            want.truncate(limit);
            prop_assert_eq!(got, want);
        }

        #[test]
        fn numbers_are_close(value in any::<f64>().prop_filter("finite", |v| v.is_finite())) {
            let back: f64 = number(value).parse().unwrap();
            prop_assert!((back - value).abs() <= 5.1e-6 * value.abs(), "{value} as {back}");
        }
    }
}
