//! The text that Prometheus scrapes: exposition format 0.0.4, without UTF-8 names. What series are
//! called in it, and how its lines are written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use crate::context::Context;
use crate::sample::Kind;

/// `Content-Type` of a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What Prometheus is told about a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Counter,
    Gauge,
    Summary,
}

impl Type {
    /// The type in which a kind is shown.
    pub const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Count => Self::Counter,
            Kind::Gauge | Kind::Set => Self::Gauge,
            Kind::Timer | Kind::Histogram | Kind::Distribution => Self::Summary,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Summary => "summary",
        }
    }

    /// What follows a family's name in the names of its samples.
    pub const fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Counter | Self::Gauge => &[""],
            Self::Summary => &["", "_sum", "_count"],
        }
    }
}

/// The name of a series on the page: each character that the format lacks becomes `_`, and so do
/// colons, which belong to recording rules. A leading digit gets `_` in front. Names in tallyd's
/// own space, `tallyd_`, get `user_` in front.
pub fn metric_name(name: &str) -> String {
    let name = identifier(name);
    // A summary `tallyd` would have a `tallyd_sum`.
    if name == "tallyd" || name.starts_with("tallyd_") { format!("user_{name}") } else { name }
}

fn identifier(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1);
    if text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit()) {
        out.push('_');
    }
    out.extend(text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
    out
}

/// A label set as it stands between the braces: sorted by name, each name once, values escaped.
/// Equal sets are equal text, which clones share.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(Arc<str>);

impl Labels {
    /// Names are made valid; values of one name are joined with commas in the order given. A label
    /// without a value is left out, since to Prometheus it does not exist.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let named = pairs.into_iter().map(|(name, value)| (identifier(name), value));
        Self::of_named(named)
    }

    /// The labels of a series: a tag `key:value` gives `key="value"`, a tag without a colon
    /// `tag="true"`. A host other than the own one becomes the label `host`. Names that Prometheus
    /// keeps for itself (`__` in front, and `quantile` on summaries) get `tag_` in front.
    pub fn of_series(context: &Context, own_hostname: &str) -> Self {
        let host = context.host();
        let host = (host != own_hostname).then_some(("host", host));
        let tags = context.tags().map(|tag| tag.split_once(':').unwrap_or((tag, "true")));
        let tags = tags.filter(|tag| *tag != ("", "true"));
        let in_summary = Type::of(context.kind()) == Type::Summary;
        let named = host.into_iter().chain(tags).map(|(name, value)| {
            let name = identifier(name);
            let reserved = name.starts_with("__") || (in_summary && name == "quantile");
            (if reserved { format!("tag_{name}") } else { name }, value)
        });
        Self::of_named(named)
    }

    /// As it stands between the braces.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn of_named<'a>(named: impl Iterator<Item = (String, &'a str)>) -> Self {
        let mut values: BTreeMap<String, Cow<str>> = BTreeMap::new();
        for (name, value) in named.filter(|(_, value)| !value.is_empty()) {
            values
                .entry(name)
                .and_modify(|joined| {
                    let joined = joined.to_mut();
                    joined.push(',');
                    joined.push_str(value);
                })
                .or_insert(Cow::Borrowed(value));
        }
        let mut text = String::new();
        for (name, value) in values {
            let comma = if text.is_empty() { "" } else { "," };
            text.extend([comma, &name, "=\""]);
            push_escaped(&mut text, &value, true);
            text.push('"');
        }
        Self(text.into())
    }
}

/// Escapes what the format escapes: any other character stands for itself.
fn push_escaped(out: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            other => out.push(other),
        }
    }
}

/// Begins a family. All its samples must follow before the next family begins.
pub fn write_type(out: &mut String, name: &str, kind: Type) {
    out.extend(["# TYPE ", name, " ", kind.word(), "\n"]);
}

/// Writes one sample of a counter or gauge, or the sum or count of a summary.
pub fn write_sample(out: &mut String, name: &str, suffix: &str, labels: &Labels, value: f64) {
    out.extend([name, suffix]);
    if !labels.0.is_empty() {
        out.extend(["{", &labels.0, "}"]);
    }
    write_value(out, value);
}

/// Writes one quantile, between 0 and 1, of a summary.
pub fn write_quantile(out: &mut String, name: &str, quantile: f64, labels: &Labels, value: f64) {
    let comma = if labels.0.is_empty() { "" } else { "," };
    // Writing to a string cannot fail.
    let _ = write!(out, "{name}{{quantile=\"{quantile}\"{comma}{}}}", labels.0);
    write_value(out, value);
}

fn write_value(out: &mut String, value: f64) {
    let _ = match value {
        f64::INFINITY => writeln!(out, " +Inf"),
        f64::NEG_INFINITY => writeln!(out, " -Inf"),
        // Up to here every integer is exact, and shorter without a fraction.
        _ if value.trunc() == value && value.abs() < 1e15 => writeln!(out, " {value}"),
        _ => writeln!(out, " {value:?}"),
    };
}

/// Writes a family of tallyd's own. `name` must be valid and begin with `tallyd_`, the space that
/// no series of a user can get into; each label set may come once. `help` is one sentence.
pub fn write_own(
    out: &mut String,
    name: &str,
    help: &str,
    kind: Type,
    samples: impl IntoIterator<Item = (Labels, f64)>,
) {
    debug_assert!(name.starts_with("tallyd_") && identifier(name) == name, "{name}");
    out.extend(["# HELP ", name, " "]);
    push_escaped(out, help, false);
    out.push('\n');
    write_type(out, name, kind);
    for (labels, value) in samples {
        write_sample(out, name, "", &labels, value);
    }
}

/// Writes a summary of tallyd's own: for each set of labels its quantiles, its sum and its count.
/// Otherwise as [`write_own`].
pub fn write_own_summary<Q: IntoIterator<Item = (f64, f64)>>(
    out: &mut String,
    name: &str,
    help: &str,
    figures: impl IntoIterator<Item = (Labels, Q, f64, u64)>,
) {
    write_own(out, name, help, Type::Summary, []);
    for (labels, quantiles, sum, count) in figures {
        for (quantile, value) in quantiles {
            write_quantile(out, name, quantile, &labels, value);
        }
        write_sample(out, name, "_sum", &labels, sum);
        write_sample(out, name, "_count", &labels, count as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Source;

    #[test]
    fn names_are_made_valid() {
        for (name, want) in [
            ("http.requests", "http_requests"),
            ("a:b-c d/é", "a_b_c_d__"),
            ("9lives", "_9lives"),
            ("", "_"),
            ("__x", "__x"),
            ("tallyd.up", "user_tallyd_up"),
            ("tallyd", "user_tallyd"),
            ("tallydx", "tallydx"),
        ] {
            assert_eq!(metric_name(name), want, "{name}");
        }
    }

    fn labels(kind: Kind, host: &str, tags: &[&str]) -> String {
        let tags = tags.iter().map(|t| (*t).to_owned()).collect();
        let context = Context::new("n", kind, host, tags, Source::default());
        Labels::of_series(&context, "own").0.to_string()
    }

    #[test]
    fn tags_become_labels() {
        for (host, tags, want) in [
            ("own", &[][..], ""),
            ("", &[], ""),
            ("web-1", &[], r#"host="web-1""#),
            ("web-1", &["host:x"], r#"host="web-1,x""#),
            ("own", &["b:2", "a:1:x"], r#"a="1:x",b="2""#),
            ("own", &["urgent", "9:z"], r#"_9="z",urgent="true""#),
            ("own", &["a.b:1", "a_b:2", "a-b:3"], r#"a_b="3,1,2""#),
            ("own", &["", ":", "k:", ":v"], r#"_="v""#),
            ("own", &["k:", "k:x"], r#"k="x""#),
            ("own", &["__name__:x", "quantile:1"], r#"quantile="1",tag___name__="x""#),
            ("own", &["k:a\"b\\c\0d\r"], "k=\"a\\\"b\\\\c\0d\r\""),
        ] {
            assert_eq!(labels(Kind::Gauge, host, tags), want, "{tags:?}");
        }
        let summary = labels(Kind::Timer, "own", &["quantile:1", "tag_quantile:2"]);
        assert_eq!(summary, r#"tag_quantile="1,2""#);
        assert_eq!(&*Labels::new([("a b", "x\ny"), ("n", "")]).0, r#"a_b="x\ny""#);
    }

    #[test]
    fn samples_are_written() {
        let none = Labels::default();
        let one = Labels::new([("k", "v")]);
        for (value, want) in [
            (0.0, "n 0\n"),
            (-3.0, "n -3\n"),
            (0.1, "n 0.1\n"),
            (1e15, "n 1000000000000000.0\n"),
            (1e300, "n 1e300\n"),
            (f64::INFINITY, "n +Inf\n"),
            (f64::NEG_INFINITY, "n -Inf\n"),
            (f64::NAN, "n NaN\n"),
        ] {
            let mut out = String::new();
            write_sample(&mut out, "n", "", &none, value);
            assert_eq!(out, want);
        }
        let mut out = String::new();
        write_sample(&mut out, "n", "_sum", &one, 2.5);
        write_quantile(&mut out, "n", 0.5, &none, 1.0);
        write_quantile(&mut out, "n", 0.99, &one, 1.0);
        write_quantile(&mut out, "n", 1.0, &one, 1.0);
        assert_eq!(
            out,
            "n_sum{k=\"v\"} 2.5\nn{quantile=\"0.5\"} 1\nn{quantile=\"0.99\",k=\"v\"} 1\n\
             n{quantile=\"1\",k=\"v\"} 1\n"
        );
    }

    #[test]
    fn own_families_have_help() {
        let mut out = String::new();
        let samples = [(Labels::default(), 1.0), (Labels::new([("reason", "no\"pipe")]), 2.0)];
        write_own(&mut out, "tallyd_x", "Back\\slash\nand \"line\".", Type::Counter, samples);
        assert_eq!(
            out,
            "# HELP tallyd_x Back\\\\slash\\nand \"line\".\n# TYPE tallyd_x counter\n\
             tallyd_x 1\ntallyd_x{reason=\"no\\\"pipe\"} 2\n"
        );
    }
}
