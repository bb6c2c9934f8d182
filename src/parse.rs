//! The fast path: from the bytes of a datagram to messages that borrow them.
//!
//! Nothing is copied and, for the number forms that clients really write, nothing is allocated.
//! [`crate::grammar`] defines the same language readably and is the judge of this file.

mod number;
mod origin_fields;
mod statsd;

use std::borrow::Cow;

use memchr::memmem;

use crate::sample::{
    AlertType, CheckLine, Dialect, EventLine, Kind, Message, OriginFields, Priority, Reject,
    Sample, Status, Values,
};
use crate::sys;

pub(crate) use number::Binary;
pub use number::number;
pub use origin_fields::{Cardinality, ExternalData, LocalData, parse_external, parse_local};
pub use statsd::{sanitise_key, sanitise_tag, statsd_line};

/// How a listener reads its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub dialect: Dialect,
    /// Read `c:`, `e:` and `card:`; otherwise they are skipped like unknown fields.
    pub origin_fields: bool,
    /// Read `T`; otherwise every field that begins with it is skipped.
    pub timestamps: bool,
}

impl Default for Options {
    /// What the Agent does when it is not told otherwise.
    fn default() -> Self {
        Self { dialect: Dialect::Datadog, origin_fields: false, timestamps: true }
    }
}

/// A datagram cut behind its last newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Everything up to the last newline: input for [`lines`].
    pub complete: &'a [u8],
    /// The line that no newline ends, if there is one. It is to be counted as
    /// [`Reject::Unterminated`] where the listener requires newlines, and as
    /// [`Reject::Truncated`] where the kernel has cut the datagram.
    pub tail: Option<&'a [u8]>,
}

impl<'a> Datagram<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let end = memchr::memrchr(b'\n', bytes).map_or(0, |newline| newline + 1);
        let (complete, tail) = bytes.split_at(end);
        Self { complete, tail: Some(without_return(tail)).filter(|tail| !tail.is_empty()) }
    }
}

/// The lines of a datagram. One carriage return at the end of a line is removed, empty lines are
/// skipped, and the last line needs no newline.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    Parts { rest: Some(bytes), separator: b'\n' }
        .map(without_return)
        .filter(|line| !line.is_empty())
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Reads one line in the listener's dialect. Of the dialects only `statsd` gives several messages
/// for one line.
pub fn messages<'a>(
    line: &'a [u8],
    options: Options,
    mut sink: impl FnMut(Result<Message<'a>, Reject>),
) {
    match options.dialect {
        Dialect::Datadog => sink(self::line(line, options)),
        Dialect::Statsd => statsd_line(line, &mut |sample| sink(sample.map(Message::Metric))),
    }
}

/// Reads one non-empty line of the dialect `datadog`, as the Agent does.
pub fn line<'a>(line: &'a [u8], options: Options) -> Result<Message<'a>, Reject> {
    match line {
        _ if is_metric(line) => metric(line, options).map(Message::Metric),
        [_, b'e', ..] => event(line, options).map(Message::Event),
        _ => check(line, options).map(Message::Check),
    }
}

/// Whether a line is a metric, as nearly every one is: [`metric`] reads it sooner than [`line()`].
#[inline]
pub fn is_metric(line: &[u8]) -> bool {
    // The Agent does not ask for the `|`: `_scale:1|c` is a broken service check.
    !matches!(line, [b'_', b'e', b'{', ..] | [b'_', b's', b'c', ..])
}

// name:1:2|ms|@0.5|#a:b,c|T1700000000|c:ci-1|e:pu-2|card:low
/// Reads a metric of the dialect `datadog`.
// Always in line, so that a sample stays in registers on its way to whoever asked.
#[inline(always)]
pub fn metric<'a>(line: &'a [u8], options: Options) -> Result<Sample<'a>, Reject> {
    // name:1:2|ms|...
    // ^^^^
    let colon = match find(line, *b":|") {
        Some(at) if line[at] == b':' => at,
        Some(_) => return Err(Reject::NameValue),
        None => return Err(Reject::NoPipe),
    };
    // name:1:2|ms|...
    //      ^^^
    let pipe = find_from(line, colon + 1, [b'|']).ok_or(Reject::NoPipe)?;
    let plain = number::short(&line[..pipe], pipe - colon - 1);
    let (name, text, rest) = (&line[..colon], &line[colon + 1..pipe], &line[pipe + 1..]);
    if name.is_empty() || text.is_empty() {
        return Err(Reject::NameValue);
    }
    // name:1:2|ms|...
    //          ^^
    let (kind, rest) = kind(rest).ok_or(Reject::Type)?;
    let values = match plain {
        Some(value) if kind != Kind::Set => Values::One(value),
        _ => values(kind, text)?,
    };
    // name:1:2|ms|...
    //             ^^^
    // Each a variable: as a whole the sample would be put together in memory, and read from there
    // before it has arrived.
    let (mut rate, mut tags, mut timestamp) = (1.0, &b""[..], None);
    let mut origin = OriginFields::default();
    for field in (Parts { rest, separator: b'|' }) {
        match field {
            [b'@', text @ ..] => rate = number(text).ok_or(Reject::SampleRate)?,
            [b'#', text @ ..] => tags = text,
            [b'T', time @ ..] if options.timestamps => {
                let time = integer(time).filter(|&time| time >= 1).ok_or(Reject::Timestamp)?;
                timestamp = Some(time);
            }
            _ if options.origin_fields => origin_field(field, &mut origin),
            _ => {}
        }
    }
    Ok(Sample { name, kind, values, rate, tags, timestamp, origin })
}

/// The kind, and the fields behind it if a `|` follows. Read from a table, since which kind comes
/// next is chance, and a wrong guess costs more than all of this.
#[inline]
fn kind(text: &[u8]) -> Option<(Kind, Option<&[u8]>)> {
    const KINDS: [Option<Kind>; 256] = {
        let mut kinds = [None; 256];
        kinds[b'c' as usize] = Some(Kind::Count);
        kinds[b'g' as usize] = Some(Kind::Gauge);
        kinds[b'h' as usize] = Some(Kind::Histogram);
        kinds[b'm' as usize] = Some(Kind::Timer);
        kinds[b'd' as usize] = Some(Kind::Distribution);
        kinds[b's' as usize] = Some(Kind::Set);
        kinds
    };
    let kind = KINDS[usize::from(*text.first()?)]?;
    // `ms` is the only one of two letters.
    let timer = kind == Kind::Timer;
    if timer && text.get(1) != Some(&b's') {
        return None;
    }
    match &text[1 + usize::from(timer)..] {
        [] => Some((kind, None)),
        [b'|', fields @ ..] => Some((kind, Some(fields))),
        _ => None,
    }
}

fn values(kind: Kind, text: &[u8]) -> Result<Values<'_>, Reject> {
    match kind {
        Kind::Set => Ok(Values::Member(text)),
        Kind::Count | Kind::Gauge | Kind::Timer | Kind::Histogram | Kind::Distribution => {
            numbers(text)
        }
    }
}

fn numbers(text: &[u8]) -> Result<Values<'_>, Reject> {
    // Most values are one short number; a colon is in no number.
    if let Some(value) = number::plain(text) {
        return Ok(Values::One(value));
    }
    if find(text, [b':']).is_none() {
        return number(text).map(Values::One).ok_or(Reject::Value);
    }
    let mut found = Values::Packed(b"");
    let mut count = 0;
    for part in elements(text) {
        found = Values::One(number(part).ok_or(Reject::Value)?);
        count += 1;
    }
    match count {
        0 => Err(Reject::NoValue),
        1 => Ok(found),
        _ => Ok(Values::Packed(text)),
    }
}

/// The numbers of [`Values::Packed`]. The text has been checked; anything else in it is skipped.
pub fn packed(text: &[u8]) -> impl Iterator<Item = f64> {
    elements(text).filter_map(number)
}

fn elements(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    Parts { rest: Some(text), separator: b':' }.filter(|part| !part.is_empty())
}

// _e{2,4}:ab|text|d:1700000000|h:web-1|k:key|p:low|s:type|t:error|#a:b
fn event<'a>(line: &'a [u8], options: Options) -> Result<EventLine<'a>, Reject> {
    // _e{2,4}:ab|text|...
    // ^^^^^^^
    let (header, body) = split_once(line, b':').ok_or(Reject::EventHeader)?;
    let (title, text) = event_lengths(header).ok_or(Reject::EventHeader)?;
    if title == 0 {
        return Err(Reject::EventEmptyTitle);
    }
    // _e{2,4}:ab|text|...
    //         ^^^^^^^
    let (title, text, rest) = event_body(body, title, text).ok_or(Reject::EventBody)?;
    let mut event = EventLine {
        title,
        text,
        timestamp: 0,
        host: b"",
        aggregation_key: b"",
        source_type: b"",
        priority: Priority::default(),
        alert_type: AlertType::default(),
        tags: b"",
        origin: OriginFields::default(),
        ignored: 0,
    };
    // _e{2,4}:ab|text|...
    //                 ^^^
    for field in (Parts { rest, separator: b'|' }) {
        let known = match field {
            [b'd', b':', time @ ..] => store(integer(time), &mut event.timestamp),
            [b'p', b':', word @ ..] => store(priority(word), &mut event.priority),
            [b't', b':', word @ ..] => store(alert_type(word), &mut event.alert_type),
            [b'h', b':', host @ ..] => store(Some(host), &mut event.host),
            [b'k', b':', key @ ..] => store(Some(key), &mut event.aggregation_key),
            [b's', b':', source @ ..] => store(Some(source), &mut event.source_type),
            [b'#', tags @ ..] => store(Some(tags), &mut event.tags),
            _ => {
                if options.origin_fields {
                    origin_field(field, &mut event.origin);
                }
                true
            }
        };
        event.ignored = event.ignored.saturating_add(u8::from(!known));
    }
    Ok(event)
}

/// `_e{2,4}`: the two lengths. The Agent leaves the last byte unchecked, and takes a sign.
fn event_lengths(header: &[u8]) -> Option<(usize, usize)> {
    let (_, inside) = header.split_last()?;
    let (title, text) = split_once(inside.get(3..)?, b',')?;
    Some((usize::try_from(integer(title)?).ok()?, usize::try_from(integer(text)?).ok()?))
}

/// The title, the text, and the fields behind them.
type EventBody<'a> = (&'a [u8], &'a [u8], Option<&'a [u8]>);

/// Cuts the body of an event by the lengths of its header.
///
/// They count bytes, and the Agent looks at neither separator. Clients exist that count characters
/// (shell scripts) or UTF-16 units (JavaScript): these are heard where the bytes do not fit.
fn event_body(body: &[u8], title: usize, text: usize) -> Option<EventBody<'_>> {
    let bytes = cut_event(body, title, |rest| (text <= rest.len()).then_some(text));
    if bytes.is_some_and(|cut| fits(body, cut)) {
        return bytes;
    }
    let counted = |units: fn(char) -> usize| {
        let end = str_prefix(body, title, units)?;
        cut_event(body, end, |rest| str_prefix(rest, text, units)).filter(|&cut| fits(body, cut))
    };
    counted(|_| 1).or_else(|| counted(char::len_utf16)).or(bytes)
}

fn cut_event(
    body: &[u8],
    title: usize,
    text_end: impl Fn(&[u8]) -> Option<usize>,
) -> Option<EventBody<'_>> {
    let (title, rest) = body.split_at_checked(title)?;
    let rest = rest.get(1..)?;
    let (text, rest) = rest.split_at_checked(text_end(rest)?)?;
    Some((title, text, rest.get(1..)))
}

/// Whether a `|` stands behind the title, and a `|` or nothing behind the text.
fn fits(body: &[u8], (title, text, _): EventBody<'_>) -> bool {
    let behind_text = body.get(title.len() + 1 + text.len());
    body.get(title.len()) == Some(&b'|') && behind_text.is_none_or(|&b| b == b'|')
}

/// The bytes that `count` units of UTF-8 text take, if they end with a character.
fn str_prefix(bytes: &[u8], count: usize, units: fn(char) -> usize) -> Option<usize> {
    let mut left = count;
    let mut end = 0;
    for c in std::str::from_utf8(bytes).ok()?.chars() {
        if left == 0 {
            break;
        }
        left = left.checked_sub(units(c))?;
        end += c.len_utf8();
    }
    (left == 0).then_some(end)
}

/// Text of an event with each `\n` of two characters as a newline; the Agent knows no other escape.
pub fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    let mut found = memmem::find_iter(text, b"\\n").peekable();
    if found.peek().is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut start = 0;
    for at in found {
        out.extend_from_slice(&text[start..at]);
        out.push(b'\n');
        start = at + 2;
    }
    out.extend_from_slice(&text[start..]);
    Cow::Owned(out)
}

fn priority(word: &[u8]) -> Option<Priority> {
    match word {
        b"normal" => Some(Priority::Normal),
        b"low" => Some(Priority::Low),
        _ => None,
    }
}

fn alert_type(word: &[u8]) -> Option<AlertType> {
    match word {
        b"error" => Some(AlertType::Error),
        b"warning" => Some(AlertType::Warning),
        b"info" => Some(AlertType::Info),
        b"success" => Some(AlertType::Success),
        _ => None,
    }
}

// _sc|name|0|d:1700000000|h:web-1|#a:b|m:text
fn check<'a>(line: &'a [u8], options: Options) -> Result<CheckLine<'a>, Reject> {
    if memchr::memchr_iter(b'|', line).nth(1).is_none() {
        return Err(Reject::CheckFormat);
    }
    // _sc|name|0|...
    //     ^^^^
    // The Agent drops the fourth byte whatever it is.
    let body = line.get(4..).ok_or(Reject::CheckFormat)?;
    let (name, rest) = split_once(body, b'|').ok_or(Reject::CheckFormat)?;
    if name.is_empty() {
        return Err(Reject::CheckName);
    }
    // _sc|name|0|...
    //          ^
    let mut fields = Parts { rest: Some(rest), separator: b'|' };
    let status = fields.next().and_then(status).ok_or(Reject::CheckStatus)?;
    let mut check = CheckLine {
        name,
        status,
        timestamp: 0,
        host: b"",
        message: b"",
        tags: b"",
        origin: OriginFields::default(),
        ignored: 0,
    };
    // _sc|name|0|...
    //            ^^^
    for field in fields {
        let known = match field {
            [b'd', b':', time @ ..] => store(integer(time), &mut check.timestamp),
            [b'h', b':', host @ ..] => store(Some(host), &mut check.host),
            [b'm', b':', message @ ..] => store(Some(message), &mut check.message),
            [b'#', tags @ ..] => store(Some(tags), &mut check.tags),
            _ => {
                if options.origin_fields {
                    origin_field(field, &mut check.origin);
                }
                true
            }
        };
        check.ignored = check.ignored.saturating_add(u8::from(!known));
    }
    Ok(check)
}

fn status(text: &[u8]) -> Option<Status> {
    match text {
        b"0" => Some(Status::Ok),
        b"1" => Some(Status::Warning),
        b"2" => Some(Status::Critical),
        b"3" => Some(Status::Unknown),
        _ => None,
    }
}

/// Reads `c:`, `e:` and `card:`; every other field is unknown and skipped.
// Apart from who calls it, whose variables so stay in registers.
#[inline(never)]
fn origin_field<'a>(field: &'a [u8], origin: &mut OriginFields<'a>) {
    match field {
        [b'c', b':', local @ ..] => origin.local = local,
        [b'e', b':', external @ ..] => origin.external = external,
        [b'c', b'a', b'r', b'd', b':', level @ ..] => origin.cardinality = level,
        _ => {}
    }
}

/// Keeps the earlier value where a field is malformed, and tells which it was.
fn store<T>(value: Option<T>, place: &mut T) -> bool {
    match value {
        Some(value) => {
            *place = value;
            true
        }
        None => false,
    }
}

/// A signed 64-bit decimal, as Go's `Atoi` reads it.
fn integer(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[inline(always)]
fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = find(bytes, [separator])?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// The first place of one of these bytes at `from` or behind it. What stands before may be looked at
/// too: so what is left of a line, short as it is, takes one look.
#[inline(always)]
fn find_from<const N: usize>(line: &[u8], from: usize, wanted: [u8; N]) -> Option<usize> {
    let (blocks, tail) = line[from..].as_chunks();
    let mut start = from;
    for block in blocks {
        let marks = sys::marks(block, wanted);
        if marks != 0 {
            return Some(start + marks.trailing_zeros() as usize);
        }
        start += block.len();
    }
    match line.last_chunk() {
        Some(last) => {
            let marks = u64::from(sys::marks(last, wanted)) >> (last.len() - tail.len());
            (marks != 0).then(|| start + marks.trailing_zeros() as usize)
        }
        None => tail.iter().position(|byte| wanted.contains(byte)).map(|at| start + at),
    }
}

/// The first place of one of these bytes. What is looked for here is near: a search that has to get
/// ready, or to be called, costs more than it gains.
#[inline(always)]
fn find<const N: usize>(text: &[u8], wanted: [u8; N]) -> Option<usize> {
    let (blocks, tail) = text.as_chunks();
    let mut start = 0;
    for block in blocks {
        let marks = sys::marks(block, wanted);
        if marks != 0 {
            return Some(start + marks.trailing_zeros() as usize);
        }
        start += block.len();
    }
    match text.last_chunk().filter(|_| tail.len() > SHORT) {
        // There are no marks before the tail.
        Some(last) => {
            let marks = sys::marks(last, wanted);
            (marks != 0).then(|| text.len() - last.len() + marks.trailing_zeros() as usize)
        }
        None => tail.iter().position(|byte| wanted.contains(byte)).map(|at| start + at),
    }
}

/// Bytes that are looked at one by one sooner than as a block.
const SHORT: usize = 4;

/// What stands between separators; `None` is the end, an empty rest one more empty part.
struct Parts<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a [u8];

    #[inline(always)]
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let (part, rest) = match split_once(rest, self.separator) {
            Some((part, rest)) => (part, Some(rest)),
            None => (rest, None),
        };
        self.rest = rest;
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Options =
        Options { dialect: Dialect::Datadog, origin_fields: true, timestamps: true };

    fn metric_of(text: &str) -> Sample<'_> {
        match line(text.as_bytes(), ALL) {
            Ok(Message::Metric(sample)) => sample,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn event_of(bytes: &[u8]) -> EventLine<'_> {
        match line(bytes, ALL) {
            Ok(Message::Event(event)) => event,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_end_at_newlines() {
        for (datagram, expected) in [
            ("", vec![]),
            ("a", vec!["a"]),
            ("a\n", vec!["a"]),
            ("\n\na\r\n\r\nb\r", vec!["a", "b"]),
            ("a\r\r\n\r\r\n", vec!["a\r", "\r"]),
            ("a\rb", vec!["a\rb"]),
        ] {
            let found: Vec<_> = lines(datagram.as_bytes()).collect();
            let expected: Vec<_> = expected.iter().map(|line| line.as_bytes()).collect();
            assert_eq!(found, expected, "{datagram:?}");
        }
    }

    #[test]
    fn an_unfinished_line_stands_apart() {
        for (datagram, complete, tail) in [
            ("", "", None),
            ("a", "", Some("a")),
            ("a\nb", "a\n", Some("b")),
            ("a\nb\r", "a\n", Some("b")),
            ("a\n", "a\n", None),
            ("a\n\r", "a\n", None),
        ] {
            let found = Datagram::new(datagram.as_bytes());
            let expected =
                Datagram { complete: complete.as_bytes(), tail: tail.map(str::as_bytes) };
            assert_eq!(found, expected, "{datagram:?}");
        }
    }

    #[test]
    fn a_metric_with_every_field() {
        let sample = metric_of("n:1:2|ms|e:pu-2|@0.5|#a:b,c|zz||T1700000000|card:low|c:ci-1");
        let expected = Sample {
            name: b"n",
            kind: Kind::Timer,
            values: Values::Packed(b"1:2"),
            rate: 0.5,
            tags: b"a:b,c",
            timestamp: Some(1_700_000_000),
            origin: OriginFields { local: b"ci-1", external: b"pu-2", cardinality: b"low" },
        };
        assert_eq!(sample, expected);
    }

    #[test]
    fn switched_off_fields_are_unknown_fields() {
        let options = Options { origin_fields: false, timestamps: false, ..ALL };
        let Ok(Message::Metric(sample)) = line(b"n:1|c|Tx|c:ci-1|e:|card:low", options) else {
            panic!("refused");
        };
        assert_eq!((sample.timestamp, sample.origin), (None, OriginFields::default()));
    }

    #[test]
    fn values_of_a_line() {
        assert_eq!(metric_of("n:1::2:|d").values, Values::Packed(b"1::2:"));
        assert_eq!(packed(b"1::2:").collect::<Vec<_>>(), [1.0, 2.0]);
        assert_eq!(metric_of("n::1:|d").values, Values::One(1.0));
        assert_eq!(metric_of("n:a:b|s").values, Values::Member(b"a:b"));
    }

    #[test]
    fn metrics_are_refused_with_the_first_reason() {
        for (text, reason) in [
            ("n:1", Reject::NoPipe),
            ("n|c", Reject::NameValue),
            (":1|c", Reject::NameValue),
            ("n:|c", Reject::NameValue),
            ("n:x|q", Reject::Type),
            ("n:x|m|@y", Reject::Type),
            ("n:x|c|@y", Reject::Value),
            ("n:1:x|c", Reject::Value),
            ("n:::|c", Reject::NoValue),
            ("n:1|c|@|T", Reject::SampleRate),
            ("n:1|c|T|@", Reject::Timestamp),
            ("n:1|c|T0", Reject::Timestamp),
        ] {
            assert_eq!(line(text.as_bytes(), ALL), Err(reason), "{text}");
        }
    }

    #[test]
    fn event_lengths_count_bytes_then_characters_then_utf16_units() {
        for (text, title, body) in [
            ("_e{5,1}:Hi é|t|#a", "Hi é", "t"),
            ("_e{4,1}:Hi é|t|#a", "Hi é", "t"),
            ("_e{4,2}:Hi é|té|#a", "Hi é", "té"),
            ("_e{3,2}:H 😀|t😀|#a", "H 😀", "t😀"),
            ("_e{4,3}:H 😀|t😀|#a", "H 😀", "t😀"),
            ("_e{2,2}:ab cd|#a", "ab", "cd"),
        ] {
            let event = event_of(text.as_bytes());
            assert_eq!((event.title, event.text), (title.as_bytes(), body.as_bytes()), "{text}");
            assert_eq!(event.tags, b"a", "{text}");
        }
    }

    #[test]
    fn lengths_that_fit_nothing_cut_where_the_agent_does() {
        let event = event_of("_e{4,2}:H 😀|t😀|#a".as_bytes());
        assert_eq!((event.title, event.text), (&b"H \xf0\x9f"[..], &b"\x80|"[..]));
    }

    #[test]
    fn a_text_of_bytes_is_never_read_by_characters() {
        let event = event_of(b"_e{4,1}:Hi \xff|t|#a");
        assert_eq!((event.title, event.text, event.tags), (&b"Hi \xff"[..], &b"t"[..], &b"a"[..]));
        assert_eq!(line(b"_e{4,1}:H\xff|t", ALL), Err(Reject::EventBody));
    }

    #[test]
    fn huge_event_lengths_are_an_error() {
        for text in [
            "_e{9223372036854775807,9223372036854775807}:a|b",
            "_e{1,9223372036854775807}:a|b",
            "_e{9223372036854775807,1}:a|b",
        ] {
            assert_eq!(line(text.as_bytes(), ALL), Err(Reject::EventBody), "{text}");
        }
        let header = line(b"_e{18446744073709551616,1}:a|b", ALL);
        assert_eq!(header, Err(Reject::EventHeader));
    }

    #[test]
    fn malformed_optional_fields_are_counted_and_left_out() {
        let event = event_of(b"_e{1,1}:a|b|d:5|d:x|p:low|p:LOW|t:error|t:fatal|q:1");
        assert_eq!(event.ignored, 3);
        let kept = (event.timestamp, event.priority, event.alert_type);
        assert_eq!(kept, (5, Priority::Low, AlertType::Error));
        let many = format!("_e{{1,1}}:a|b{}", "|d:x".repeat(300));
        assert_eq!(event_of(many.as_bytes()).ignored, 255);
    }

    #[test]
    fn checks_are_refused_with_the_first_reason() {
        for (text, reason) in [
            ("_sc", Reject::CheckFormat),
            ("_sc|a", Reject::CheckFormat),
            ("_scale:1|c", Reject::CheckFormat),
            ("_sc||", Reject::CheckName),
            ("_sc||9", Reject::CheckName),
            ("_sc|a|9", Reject::CheckStatus),
        ] {
            assert_eq!(line(text.as_bytes(), ALL), Err(reason), "{text}");
        }
    }

    #[test]
    fn escapes_become_newlines() {
        for (text, expected) in
            [("a", "a"), (r"\n", "\n"), (r"a\nb\\nc\n", "a\nb\\\nc\n"), (r"\t\", r"\t\")]
        {
            assert_eq!(&*unescape(text.as_bytes()), expected.as_bytes());
        }
    }

    #[test]
    fn each_dialect_has_its_reading() {
        let count = |dialect| {
            let mut results = Vec::new();
            messages(b"n:1|c:2|c", Options { dialect, ..ALL }, |message| {
                results.push(message.is_ok());
            });
            results
        };
        assert_eq!(count(Dialect::Datadog), [false]);
        assert_eq!(count(Dialect::Statsd), [true, true]);
    }
}
