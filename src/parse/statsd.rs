//! The dialect `statsd`: lines as the original statsd server (Node.js) reads them.

use memchr::memmem;

use super::{Binary, Parts, split_once};
use crate::sample::{Kind, OriginFields, Reject, Sample, Values};

/// Reads one non-empty line, which may hold several samples of one name: `name:1|c:2|g|@0.5`.
/// Each bad one is reported on its own. Names and tags are as sent: see [`sanitise_key`] and
/// [`sanitise_tag`].
pub fn statsd_line<'a>(line: &'a [u8], sink: &mut impl FnMut(Result<Sample<'a>, Reject>)) {
    // name:1|c:2|c|#a:b,c
    //              ^^^^^^  Tags come last; a rate behind them is part of a tag.
    let (head, tags) = match memmem::find(line, b"|#") {
        Some(at) => {
            let behind = &line[at + 2..];
            (&line[..at], &behind[..memmem::find(behind, b"|#").unwrap_or(behind.len())])
        }
        None => (line, &b""[..]),
    };
    // name:1|c:2|c|#a:b,c
    // ^^^^             The original stores what has no name under an empty key; we refuse it.
    let Some((name @ [_, ..], groups)) = split_once(head, b':') else {
        sink(Err(Reject::NameValue));
        return;
    };
    // name:1|c:2|c|#a:b,c
    //      ^^^ ^^^
    for group in (Parts { rest: Some(groups), separator: b':' }) {
        sink(sample(name, group, tags));
    }
}

/// Reads `value|type|@rate`; what follows is not looked at.
fn sample<'a>(name: &'a [u8], group: &'a [u8], tags: &'a [u8]) -> Result<Sample<'a>, Reject> {
    let mut fields = Parts { rest: Some(group), separator: b'|' };
    let value = fields.next().unwrap_or_default();
    let kind_text = fields.next().ok_or(Reject::NoPipe)?;
    let rate = fields.next().map_or(Some(1.0), rate).ok_or(Reject::SampleRate)?;
    let number = || script_number(value).filter(|_| !value.is_empty()).ok_or(Reject::Value);
    let kind = kind(kind_text);
    let values = match kind {
        Kind::Set => {
            // The check is made before the type is trimmed: ` s` asks for a number.
            if kind_text != b"s" {
                number()?;
            }
            Values::Member(if value.is_empty() { b"0" } else { value })
        }
        Kind::Gauge if matches!(value, [b'+' | b'-', ..]) => Values::Delta(number()?),
        Kind::Timer => {
            let duration = number()?;
            if kind_text == b"ms" && duration < 0.0 {
                return Err(Reject::Value);
            }
            Values::One(duration)
        }
        Kind::Count | Kind::Gauge | Kind::Histogram | Kind::Distribution => Values::One(number()?),
    };
    let origin = OriginFields::default();
    Ok(Sample { name, kind, values, rate, tags, timestamp: None, origin })
}

/// Every type that the original does not know is a counter, `m`, `h` and `d` too.
fn kind(text: &[u8]) -> Kind {
    match std::str::from_utf8(text).unwrap_or_default().trim_matches(is_blank) {
        "ms" => Kind::Timer,
        "g" => Kind::Gauge,
        "s" => Kind::Set,
        _ => Kind::Count,
    }
}

/// Reads `@0.5`. The text behind `@` must be a number without a minus sign, of which the digits and
/// points at the beginning count: `@1e-1` is 1. Without any the original dies; here it is refused.
fn rate(field: &[u8]) -> Option<f64> {
    let [b'@', text @ ..] = field else { return None };
    script_number(text)?;
    let end = text.iter().position(|b| !matches!(b, b'0'..=b'9' | b'.')).unwrap_or(text.len());
    if end == 0 { None } else { script_number(&text[..end]) }
}

/// A number as JavaScript's `Number()` reads it: blanks around it, `0x`, `0o`, `0b`, `Infinity`,
/// and 0 for nothing at all.
fn script_number(text: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(text).ok()?.trim_matches(is_blank);
    if text.is_empty() {
        return Some(0.0);
    }
    if let Some((bits, digits)) = radix(text) {
        return binary(digits, bits);
    }
    // The standard library knows more words than JavaScript, and `infinity` in any case.
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits =
        unsigned.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if digits || unsigned == "Infinity" { text.parse().ok() } else { None }
}

/// The bits of a digit, and the digits behind the prefix.
fn radix(text: &str) -> Option<(u32, &str)> {
    let digits = text.get(2..)?;
    match &text.as_bytes()[..2] {
        b"0x" | b"0X" => Some((4, digits)),
        b"0o" | b"0O" => Some((3, digits)),
        b"0b" | b"0B" => Some((1, digits)),
        _ => None,
    }
}

fn binary(digits: &str, bits: u32) -> Option<f64> {
    if digits.is_empty() {
        return None;
    }
    let mut number = Binary::default();
    for c in digits.chars() {
        number.push(c.to_digit(1 << bits)?, bits);
    }
    Some(number.scale(0))
}

/// White space in JavaScript: Unicode's, with the byte order mark and without the next line sign.
fn is_blank(c: char) -> bool {
    c == '\u{feff}' || (c.is_whitespace() && c != '\u{85}')
}

/// Appends a name as the original stores it: a run of white space becomes `_`, `/` becomes `-`, and
/// what is none of letters, digits and `_.;=-` is deleted.
pub fn sanitise_key(name: &[u8], out: &mut String) {
    let mut blank = false;
    for c in String::from_utf8_lossy(name).chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '.' | ';' | '=' | '-' => out.push(c),
            '/' => out.push('-'),
            _ if is_blank(c) && !blank => out.push('_'),
            _ => {}
        }
        blank = is_blank(c);
    }
}

/// Appends a tag as the original stores it, except that `:` stands between key and value where the
/// original writes Graphite's `=`. Only the first `:` of a tag separates, the others are deleted;
/// its first `;` becomes `_`.
pub fn sanitise_tag(tag: &[u8], out: &mut String) {
    let tag = String::from_utf8_lossy(tag).replacen(';', "_", 1);
    match tag.split_once(':') {
        Some((key, value)) => {
            sanitise_key(key.as_bytes(), out);
            out.push(':');
            sanitise_key(value.as_bytes(), out);
        }
        None => sanitise_key(tag.as_bytes(), out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Vec<Result<Sample<'_>, Reject>> {
        let mut found = Vec::new();
        statsd_line(line.as_bytes(), &mut |sample| found.push(sample));
        found
    }

    #[test]
    fn one_sample() {
        let base = Sample {
            name: b"k",
            kind: Kind::Count,
            values: Values::One(1.0),
            rate: 1.0,
            tags: b"",
            timestamp: None,
            origin: OriginFields::default(),
        };
        for (line, expected) in [
            ("k:1|c", base),
            ("k:1|c|@0.1", Sample { rate: 0.1, ..base }),
            ("k:1|c|@1e-1", base),
            ("k:1|c|@0x10", Sample { rate: 0.0, ..base }),
            ("k:1|c|@0", Sample { rate: 0.0, ..base }),
            ("k:1|c|@0.5 |junk", Sample { rate: 0.5, ..base }),
            ("k:1|c|#a:b,c|#d", Sample { tags: b"a:b,c", ..base }),
            ("k:1|c|#a|@0.5", Sample { tags: b"a|@0.5", ..base }),
            ("k:1|", base),
            ("k:1|h", base),
            ("k: |c", Sample { values: Values::One(0.0), ..base }),
            ("k:0x10|c", Sample { values: Values::One(16.0), ..base }),
            ("k:3|g", Sample { kind: Kind::Gauge, values: Values::One(3.0), ..base }),
            ("k:+3|g", Sample { kind: Kind::Gauge, values: Values::Delta(3.0), ..base }),
            ("k:-3| g", Sample { kind: Kind::Gauge, values: Values::Delta(-3.0), ..base }),
            ("k: -3|g", Sample { kind: Kind::Gauge, values: Values::One(-3.0), ..base }),
            ("k:-5| ms", Sample { kind: Kind::Timer, values: Values::One(-5.0), ..base }),
            ("k:|s", Sample { kind: Kind::Set, values: Values::Member(b"0"), ..base }),
            ("k:u 1|s", Sample { kind: Kind::Set, values: Values::Member(b"u 1"), ..base }),
            ("k:7| s", Sample { kind: Kind::Set, values: Values::Member(b"7"), ..base }),
        ] {
            assert_eq!(read(line), [Ok(expected)], "{line}");
        }
    }

    #[test]
    fn a_bad_sample_has_a_reason() {
        for (line, reason) in [
            ("k", Reject::NameValue),
            ("k|c", Reject::NameValue),
            (":1|c", Reject::NameValue),
            ("k:1", Reject::NoPipe),
            ("k:|c", Reject::Value),
            ("k:x|c", Reject::Value),
            ("k:-5|ms", Reject::Value),
            ("k:x| s", Reject::Value),
            ("k:nan|g", Reject::Value),
            ("k:1|c|", Reject::SampleRate),
            ("k:1|c|0.1", Reject::SampleRate),
            ("k:1|c|@", Reject::SampleRate),
            ("k:1|c|@-1", Reject::SampleRate),
            ("k:1|c|@+0.5", Reject::SampleRate),
            ("k:1|c|@ 0.5", Reject::SampleRate),
            ("k:1|c|@Infinity", Reject::SampleRate),
            ("k:1|c|@0.5x", Reject::SampleRate),
        ] {
            assert_eq!(read(line), [Err(reason)], "{line}");
        }
    }

    #[test]
    fn several_samples_in_a_line() {
        let found = read("k:1|c:x|c:2|ms|@0.5|#a:b");
        assert_eq!(found.len(), 3);
        assert!(found[0].is_ok_and(|s| s.kind == Kind::Count && s.tags == b"a:b"));
        assert_eq!(found[1], Err(Reject::Value));
        assert!(found[2].is_ok_and(|s| s.kind == Kind::Timer && s.rate == 0.5));
    }

    #[test]
    fn numbers_of_javascript() {
        for (text, expected) in [
            ("", Some(0.0)),
            (" \t\u{a0}\u{feff}", Some(0.0)),
            (" 1.5 ", Some(1.5)),
            ("5.", Some(5.0)),
            (".5", Some(0.5)),
            ("1e3", Some(1000.0)),
            ("1e400", Some(f64::INFINITY)),
            ("Infinity", Some(f64::INFINITY)),
            ("-Infinity", Some(f64::NEG_INFINITY)),
            ("0xfF", Some(255.0)),
            ("0b101", Some(5.0)),
            ("0O17", Some(15.0)),
            ("0x20000000000001", Some(9007199254740992.0)),
            ("0x20000000000003", Some(9007199254740996.0)),
            ("infinity", None),
            ("inf", None),
            ("nan", None),
            ("-0x1", None),
            ("0x", None),
            ("0b2", None),
            ("1_0", None),
            (".", None),
            ("1 2", None),
            ("\u{85}1", None),
        ] {
            assert_eq!(script_number(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn names_and_tags_become_clean() {
        for (name, expected) in [
            ("a.b", "a.b"),
            ("a b/c!", "a_b-c"),
            (" \t a  b", "_a_b"),
            ("a ! b", "a__b"),
            ("é;x=1", ";x=1"),
            ("!", ""),
        ] {
            let mut out = String::new();
            sanitise_key(name.as_bytes(), &mut out);
            assert_eq!(out, expected, "{name}");
        }
        for (tag, expected) in [
            ("env:prod", "env:prod"),
            ("a:b:c", "a:bc"),
            ("a;b:c;d:e", "a_b:c;de"),
            ("a:b;c", "a:b_c"),
            ("x y", "x_y"),
            ("", ""),
        ] {
            let mut out = String::new();
            sanitise_tag(tag.as_bytes(), &mut out);
            assert_eq!(out, expected, "{tag}");
        }
    }
}
