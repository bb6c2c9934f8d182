//! The language of the dialect `datadog`, defined to be read. It is the judge of [`crate::parse`],
//! which reads the same language fast; a property test and a fuzz target hold the two together.
//!
//! ```text
//! message     = event / check / metric
//! metric      = name ":" values "|" type *( "|" field )
//! values      = member / [number] *( ":" [number] )          ; member for type "s"
//! type        = "c" / "g" / "h" / "ms" / "d" / "s"
//! field       = "@" number / "#" tags / "T" integer / origin / unknown
//! origin      = "c:" local / "e:" external / "card:" level
//! event       = "_e{" integer "," integer any ":" title any text [ any event-field *( "|" event-field ) ]
//! event-field = "d:" integer / "h:" host / "k:" key / "p:" priority / "s:" source / "t:" alert
//!             / "#" tags / origin / unknown
//! check       = "_sc" any name "|" status *( "|" check-field )
//! check-field = "d:" integer / "h:" host / "m:" message / "#" tags / origin / unknown
//! ```
//!
//! `any` is one byte, a `}` or `|` by the book, which the Agent does not look at. Fields come in
//! any order; of two of a kind the last one counts. A rule that does not match refuses the line
//! with the reason that `or` names, at the first such place from left to right.

use nom::branch::alt;
use nom::bytes::complete::{tag, tag_no_case, take, take_till};
use nom::character::complete::{digit1, hex_digit1, one_of};
use nom::combinator::{
    all_consuming, eof, map_opt, opt, peek, recognize, rest, success, value, verify,
};
use nom::error::{ErrorKind, ParseError};
use nom::multi::{many0, separated_list0, separated_list1};
use nom::sequence::{preceded, separated_pair, terminated};
use nom::{Err, IResult, Parser};

use crate::parse::{Binary, Options};
use crate::sample::{
    AlertType, CheckLine, EventLine, Kind, Message, OriginFields, Priority, Reject, Sample, Status,
    Values,
};

/// Reads one non-empty line.
pub fn message<'a>(line: &'a [u8], options: Options) -> Result<Message<'a>, Reject> {
    let event = preceded(peek(tag("_e{")), |line| event(line, options)).map(Message::Event);
    let check = preceded(peek(tag("_sc")), |line| check(line, options)).map(Message::Check);
    let metric = (|line| metric(line, options)).map(Message::Metric);
    match alt((event, check, metric)).parse(line) {
        Ok((_, message)) => Ok(message),
        Err(Err::Error(Refusal(reason)) | Err::Failure(Refusal(reason))) => Err(reason),
        // Only nom's streaming parsers ask for more.
        Err(Err::Incomplete(_)) => Err(Reject::Unterminated),
    }
}

type Parsed<'a, T> = IResult<&'a [u8], T, Refusal>;

/// Why a rule did not match.
#[derive(Debug)]
struct Refusal(Reject);

impl<I> ParseError<I> for Refusal {
    /// A mismatch that has no name yet: it makes `alt` and `opt` go on, or [`or`] name it.
    fn from_error_kind(_: I, _: ErrorKind) -> Self {
        Self(Reject::NoPipe)
    }

    fn append(_: I, _: ErrorKind, other: Self) -> Self {
        other
    }
}

/// A parser of bytes.
trait Rule<'a, T>: Parser<&'a [u8], Output = T, Error = Refusal> {}

impl<'a, T, P: Parser<&'a [u8], Output = T, Error = Refusal>> Rule<'a, T> for P {}

/// What the rule reads, or the line is refused.
fn or<'a, T>(reason: Reject, mut rule: impl Rule<'a, T>) -> impl Rule<'a, T> {
    move |input| rule.parse(input).map_err(|_| Err::Failure(Refusal(reason)))
}

/// The rule, if the listener's options have it.
fn when<'a, T>(on: bool, mut rule: impl Rule<'a, T>) -> impl Rule<'a, T> {
    move |input| match on {
        true => rule.parse(input),
        false => Err(Err::Error(Refusal::from_error_kind(input, ErrorKind::Verify))),
    }
}

/// `metric = name ":" values "|" type *( "|" field )`
fn metric<'a>(line: &'a [u8], options: Options) -> Parsed<'a, Sample<'a>> {
    let (line, head) = or(Reject::NoPipe, terminated(field, tag("|"))).parse(line)?;
    let filled = |text: &&[u8]| !text.is_empty();
    let name = verify(take_till(|b| b == b':'), filled);
    let name_and_text = separated_pair(name, tag(":"), verify(rest, filled));
    let (_, (name, text)) = or(Reject::NameValue, name_and_text).parse(head)?;
    let (line, kind) = or(Reject::Type, terminated(kind, peek(end_of_field))).parse(line)?;
    let (_, values) = values(text, kind)?;
    let (line, fields) = many0(preceded(tag("|"), field)).parse(line)?;

    let origin = OriginFields::default();
    let mut sample = Sample { name, kind, values, rate: 1.0, tags: b"", timestamp: None, origin };
    for field in fields {
        match metric_field(field, options)?.1 {
            Field::Rate(rate) => sample.rate = rate,
            Field::Tags(tags) => sample.tags = tags,
            Field::Time(time) => sample.timestamp = Some(time),
            other => set_origin(&mut sample.origin, &other),
        }
    }
    Ok((line, sample))
}

/// `type = "c" / "g" / "h" / "ms" / "d" / "s"`
fn kind(input: &[u8]) -> Parsed<'_, Kind> {
    alt((
        value(Kind::Count, tag("c")),
        value(Kind::Gauge, tag("g")),
        value(Kind::Histogram, tag("h")),
        value(Kind::Timer, tag("ms")),
        value(Kind::Distribution, tag("d")),
        value(Kind::Set, tag("s")),
    ))
    .parse(input)
}

/// `values = member / [number] *( ":" [number] )`, with at least one number.
fn values(text: &[u8], kind: Kind) -> Parsed<'_, Values<'_>> {
    if kind == Kind::Set {
        return rest.map(Values::Member).parse(text);
    }
    let numbers = separated_list0(tag(":"), opt(number));
    let (end, numbers) = or(Reject::Value, all_consuming(numbers)).parse(text)?;
    let numbers: Vec<f64> = numbers.into_iter().flatten().collect();
    match numbers[..] {
        [] => Err(Err::Failure(Refusal(Reject::NoValue))),
        [one] => Ok((end, Values::One(one))),
        _ => Ok((end, Values::Packed(text))),
    }
}

/// What an optional field says.
#[derive(Clone, Copy)]
enum Field<'a> {
    Rate(f64),
    Tags(&'a [u8]),
    Time(i64),
    Host(&'a [u8]),
    Key(&'a [u8]),
    Source(&'a [u8]),
    Priority(Priority),
    AlertType(AlertType),
    Message(&'a [u8]),
    Local(&'a [u8]),
    External(&'a [u8]),
    Cardinality(&'a [u8]),
    /// Known, but not what it should be.
    Malformed,
    Unknown,
}

/// `field = "@" number / "#" tags / "T" integer / origin / unknown`
fn metric_field(input: &[u8], options: Options) -> Parsed<'_, Field<'_>> {
    let time = verify(all_consuming(integer), |&time| time >= 1);
    alt((
        preceded(tag("@"), or(Reject::SampleRate, all_consuming(number))).map(Field::Rate),
        preceded(tag("#"), rest).map(Field::Tags),
        preceded(when(options.timestamps, tag("T")), or(Reject::Timestamp, time)).map(Field::Time),
        origin_field(options),
        value(Field::Unknown, rest),
    ))
    .parse(input)
}

/// `event-field = "d:" integer / "h:" host / ... / "#" tags / origin / unknown`
fn event_field(input: &[u8], options: Options) -> Parsed<'_, Field<'_>> {
    alt((
        preceded(tag("d:"), well_formed(integer.map(Field::Time))),
        preceded(tag("h:"), rest).map(Field::Host),
        preceded(tag("k:"), rest).map(Field::Key),
        preceded(tag("p:"), well_formed(priority.map(Field::Priority))),
        preceded(tag("s:"), rest).map(Field::Source),
        preceded(tag("t:"), well_formed(alert_type.map(Field::AlertType))),
        preceded(tag("#"), rest).map(Field::Tags),
        origin_field(options),
        value(Field::Unknown, rest),
    ))
    .parse(input)
}

/// `check-field = "d:" integer / "h:" host / "m:" message / "#" tags / origin / unknown`
fn check_field(input: &[u8], options: Options) -> Parsed<'_, Field<'_>> {
    alt((
        preceded(tag("d:"), well_formed(integer.map(Field::Time))),
        preceded(tag("h:"), rest).map(Field::Host),
        preceded(tag("m:"), rest).map(Field::Message),
        preceded(tag("#"), rest).map(Field::Tags),
        origin_field(options),
        value(Field::Unknown, rest),
    ))
    .parse(input)
}

/// `origin = "c:" local / "e:" external / "card:" level`
fn origin_field<'a>(options: Options) -> impl Rule<'a, Field<'a>> {
    let field = alt((
        preceded(tag("c:"), rest).map(Field::Local),
        preceded(tag("e:"), rest).map(Field::External),
        preceded(tag("card:"), rest).map(Field::Cardinality),
    ));
    when(options.origin_fields, field)
}

fn set_origin<'a>(origin: &mut OriginFields<'a>, field: &Field<'a>) {
    match field {
        Field::Local(text) => origin.local = text,
        Field::External(text) => origin.external = text,
        Field::Cardinality(text) => origin.cardinality = text,
        _ => {}
    }
}

/// The whole field by the rule, or [`Field::Malformed`].
fn well_formed<'a>(rule: impl Rule<'a, Field<'a>>) -> impl Rule<'a, Field<'a>> {
    alt((all_consuming(rule), value(Field::Malformed, rest)))
}

fn priority(input: &[u8]) -> Parsed<'_, Priority> {
    let normal = value(Priority::Normal, tag("normal"));
    alt((normal, value(Priority::Low, tag("low")))).parse(input)
}

fn alert_type(input: &[u8]) -> Parsed<'_, AlertType> {
    alt((
        value(AlertType::Error, tag("error")),
        value(AlertType::Warning, tag("warning")),
        value(AlertType::Info, tag("info")),
        value(AlertType::Success, tag("success")),
    ))
    .parse(input)
}

/// `event = "_e{" integer "," integer any ":" title any text [ any event-field *( "|" event-field ) ]`
fn event<'a>(line: &'a [u8], options: Options) -> Parsed<'a, EventLine<'a>> {
    let header = terminated(take_till(|b| b == b':'), tag(":"));
    let (body, header) = or(Reject::EventHeader, header).parse(line)?;
    let inside = take(header.len().saturating_sub(1));
    let (_, inside) = or(Reject::EventHeader, inside).parse(header)?;
    let length = || map_opt(integer, |length| usize::try_from(length).ok());
    let lengths = preceded(tag("_e{"), separated_pair(length(), tag(","), length()));
    let (_, (title, text)) = or(Reject::EventHeader, all_consuming(lengths)).parse(inside)?;
    or(Reject::EventEmptyTitle, verify(success(title), |&title| title > 0)).parse(body)?;
    let (line, (title, text)) =
        or(Reject::EventBody, |body| title_and_text(body, title, text)).parse(body)?;
    let fields = preceded(take(1_usize), separated_list1(tag("|"), field));
    let (line, fields) = opt(fields).parse(line)?;

    let mut event = EventLine {
        title,
        text,
        timestamp: 0,
        host: b"",
        aggregation_key: b"",
        source_type: b"",
        priority: Priority::Normal,
        alert_type: AlertType::Info,
        tags: b"",
        origin: OriginFields::default(),
        ignored: 0,
    };
    for field in fields.unwrap_or_default() {
        match event_field(field, options)?.1 {
            Field::Time(time) => event.timestamp = time,
            Field::Host(host) => event.host = host,
            Field::Key(key) => event.aggregation_key = key,
            Field::Priority(priority) => event.priority = priority,
            Field::Source(source) => event.source_type = source,
            Field::AlertType(alert_type) => event.alert_type = alert_type,
            Field::Tags(tags) => event.tags = tags,
            Field::Malformed => event.ignored = event.ignored.saturating_add(1),
            other => set_origin(&mut event.origin, &other),
        }
    }
    Ok((line, event))
}

/// `title any text`, whose lengths count bytes if two `|` or the line's end then stand where they
/// should; else characters, if these do; else UTF-16 units, if these do; else bytes all the same.
fn title_and_text(body: &[u8], title: usize, text: usize) -> Parsed<'_, (&[u8], &[u8])> {
    let bar = || peek(end_of_field);
    let bytes = terminated(separated_pair(take(title), tag("|"), take(text)), bar());
    let characters =
        separated_pair(units(title, |_| 1), tag("|"), units(text, |_| 1)).and(bar()).map(first);
    let utf16 =
        separated_pair(units(title, char::len_utf16), tag("|"), units(text, char::len_utf16))
            .and(bar())
            .map(first);
    let unchecked = separated_pair(take(title), take(1_usize), take(text));
    alt((bytes, when(is_utf8(body), alt((characters, utf16))), unchecked)).parse(body)
}

fn first<A, B>((a, _): (A, B)) -> A {
    a
}

fn is_utf8(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok()
}

/// The characters that have so many units together.
fn units<'a>(count: usize, size: fn(char) -> usize) -> impl Rule<'a, &'a [u8]> {
    move |input: &'a [u8]| {
        let text = String::from_utf8_lossy(input);
        let sums = text.char_indices().scan(0, |sum, (at, c)| {
            let before = (*sum, at);
            *sum += size(c);
            Some(before)
        });
        let total: usize = text.chars().map(size).sum();
        let end = sums.chain([(total, text.len())]).find(|&(sum, _)| sum == count);
        take(end.map_or(usize::MAX, |(_, at)| at)).parse(input)
    }
}

/// `check = "_sc" any name "|" status *( "|" check-field )`, with at least two `|` anywhere.
fn check<'a>(line: &'a [u8], options: Options) -> Parsed<'a, CheckLine<'a>> {
    let two = (field, tag("|"), field, tag("|"));
    let (line, _) = or(Reject::CheckFormat, preceded(peek(two), take(4_usize))).parse(line)?;
    let name = terminated(verify(field, |name: &[u8]| !name.is_empty()), tag("|"));
    let (line, name) = or(Reject::CheckName, name).parse(line)?;
    let (line, status) =
        or(Reject::CheckStatus, terminated(status, peek(end_of_field))).parse(line)?;
    let (line, fields) = many0(preceded(tag("|"), field)).parse(line)?;

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
    for field in fields {
        match check_field(field, options)?.1 {
            Field::Time(time) => check.timestamp = time,
            Field::Host(host) => check.host = host,
            Field::Message(message) => check.message = message,
            Field::Tags(tags) => check.tags = tags,
            Field::Malformed => check.ignored = check.ignored.saturating_add(1),
            other => set_origin(&mut check.origin, &other),
        }
    }
    Ok((line, check))
}

fn status(input: &[u8]) -> Parsed<'_, Status> {
    alt((
        value(Status::Ok, tag("0")),
        value(Status::Warning, tag("1")),
        value(Status::Critical, tag("2")),
        value(Status::Unknown, tag("3")),
    ))
    .parse(input)
}

/// Everything up to a `|` or the end.
fn field(input: &[u8]) -> Parsed<'_, &[u8]> {
    take_till(|b| b == b'|').parse(input)
}

fn end_of_field(input: &[u8]) -> Parsed<'_, &[u8]> {
    alt((tag("|"), eof)).parse(input)
}

/// `integer = ["+" / "-"] 1*DIGIT`, of 64 bits.
fn integer(input: &[u8]) -> Parsed<'_, i64> {
    map_opt(recognize((sign, digit1)), |text| std::str::from_utf8(text).ok()?.parse().ok())
        .parse(input)
}

/// ```text
/// number      = sign ( hexadecimal / decimal / "inf" / "infinity" ) / "nan"
/// decimal     = ( digits [ "." [digits] ] / "." digits ) [ ( "e" / "E" ) sign digits ]
/// hexadecimal = "0x" ( ["_"] hex [ "." [hex] ] / "." hex ) "p" sign digits
/// digits      = 1*DIGIT *( "_" 1*DIGIT )                     ; hex likewise
/// sign        = [ "+" / "-" ]
/// ```
///
/// As Go's `strconv.ParseFloat`: letters in any case, and too large is no number.
fn number(input: &[u8]) -> Parsed<'_, f64> {
    let infinity = value(f64::INFINITY, alt((tag_no_case("infinity"), tag_no_case("inf"))));
    let signed = (sign, alt((hexadecimal, decimal, infinity)))
        .map(|(sign, value)| if sign == Some('-') { -value } else { value });
    alt((signed, value(f64::NAN, tag_no_case("nan")))).parse(input)
}

fn sign(input: &[u8]) -> Parsed<'_, Option<char>> {
    opt(one_of("+-")).parse(input)
}

fn digits(input: &[u8]) -> Parsed<'_, &[u8]> {
    recognize(separated_list1(tag("_"), digit1)).parse(input)
}

fn hex(input: &[u8]) -> Parsed<'_, &[u8]> {
    recognize(separated_list1(tag("_"), hex_digit1)).parse(input)
}

fn decimal(input: &[u8]) -> Parsed<'_, f64> {
    let whole = (digits, opt((tag("."), opt(digits))));
    let mantissa = alt((recognize(whole), recognize((tag("."), digits))));
    let exponent = opt((one_of("eE"), sign, digits));
    map_opt(recognize((mantissa, exponent)), |text| {
        without_underscores(text).parse().ok().filter(|value: &f64| value.is_finite())
    })
    .parse(input)
}

fn hexadecimal(input: &[u8]) -> Parsed<'_, f64> {
    let fraction = opt(preceded(tag("."), opt(hex))).map(Option::flatten);
    let whole = (preceded(opt(tag("_")), hex), fraction.map(Option::unwrap_or_default));
    let mantissa = alt((whole, preceded(tag("."), hex).map(|fraction| (&b""[..], fraction))));
    let exponent = preceded(tag_no_case("p"), recognize((sign, digits)));
    map_opt(preceded(tag_no_case("0x"), (mantissa, exponent)), |((whole, fraction), exponent)| {
        let (whole, fraction) = (without_underscores(whole), without_underscores(fraction));
        let mut binary = Binary::default();
        for digit in whole.chars().chain(fraction.chars()) {
            binary.push(digit.to_digit(16)?, 4);
        }
        let exponent = without_underscores(exponent);
        let limit = if exponent.starts_with('-') { i64::MIN } else { i64::MAX };
        let exponent = exponent.parse().unwrap_or(limit);
        let value = binary.scale(i64::saturating_sub(exponent, 4 * fraction.len() as i64));
        value.is_finite().then_some(value)
    })
    .parse(input)
}

fn without_underscores(text: &[u8]) -> String {
    text.iter().filter(|&&b| b != b'_').map(|&b| b as char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;
    use crate::sample::Dialect;
    use proptest::prelude::*;

    /// Debug output tells NaN from other numbers and -0 from 0, where `==` does not.
    fn agree(line: &[u8], options: Options) {
        let fast = format!("{:?}", parse::line(line, options));
        let defined = format!("{:?}", message(line, options));
        assert_eq!(fast, defined, "{}", line.escape_ascii());
    }

    fn options() -> impl Strategy<Value = Options> {
        (any::<bool>(), any::<bool>()).prop_map(|(origin_fields, timestamps)| Options {
            dialect: Dialect::Datadog,
            origin_fields,
            timestamps,
        })
    }

    fn number_text() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<f64>().prop_map(|f| f.to_string()),
            "[+-]?[0-9]{1,4}(\\.[0-9]{0,4})?([eE][+-]?[0-9]{1,3})?",
            "[+-]?0[xX]_?[0-9a-f]{0,9}(_[0-9a-f])?(\\.[0-9a-fA-F]{0,20})?([pP][+-]?[0-9_]{1,4})?",
            "[+-]?([iI][nN][fF]|infinity|NaN|[0-9_.e]{0,6})",
        ]
    }

    fn metric_line() -> impl Strategy<Value = String> {
        let field = prop_oneof![
            number_text().prop_map(|n| format!("@{n}")),
            "T[+-]?([0-9]{1,2}|[0-9]{0,20})",
            "#[a-c:,#é]{0,6}",
            "(c|e|card|d|m|zz|)(:(ci-|in-|it-|pu-|low)?[a-z0-9,]{0,5})?",
        ];
        let element = prop_oneof![4 => number_text(), 1 => Just(String::new())];
        let values = prop::collection::vec(element, 0..4);
        let fields = prop::collection::vec(field, 0..4);
        ("[a-z._é ]{0,4}", values, "(c|g|h|ms|d|s|m|)", fields).prop_map(
            |(name, values, kind, fields)| {
                let values = values.join(":");
                let fields: String = fields.iter().map(|field| format!("|{field}")).collect();
                format!("{name}:{values}|{kind}{fields}")
            },
        )
    }

    fn rest_of_line() -> impl Strategy<Value = String> {
        let field = "(d:[+-]?[0-9]{0,3}|d:x|h:[a-z]?|k:|p:(low|normal|x)|s:q|t:(error|warning|info|success)\
                     |#[ab,:]{0,4}|m:x?|c:1|e:2|card:low|z)";
        prop::collection::vec(field, 0..5)
            .prop_map(|fields| fields.iter().map(|field| format!("|{field}")).collect())
    }

    fn event_line() -> impl Strategy<Value = String> {
        let text = || "[ab|é😀\\\\n]{0,5}";
        let length = |count: u8, text: &str| match count {
            0 => text.chars().count().to_string(),
            1 => text.encode_utf16().count().to_string(),
            2 => "9223372036854775807".to_owned(),
            3 => "+3".to_owned(),
            _ => text.len().to_string(),
        };
        (0..9_u8, text(), text(), "[}\\]1]", "[|x]", rest_of_line()).prop_map(
            move |(count, title, text, brace, bar, fields)| {
                let (a, b) = (length(count, &title), length(count, &text));
                format!("_e{{{a},{b}{brace}:{title}{bar}{text}{fields}")
            },
        )
    }

    fn check_line() -> impl Strategy<Value = String> {
        ("[|x]", "[a-z é]{0,3}", "[0-4]{0,2}", rest_of_line())
            .prop_map(|(bar, name, status, fields)| format!("_sc{bar}{name}|{status}{fields}"))
    }

    fn any_line() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![metric_line(), event_line(), check_line()].prop_map(String::into_bytes)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_fast_path_reads_this_language(line in any_line(), options in options()) {
            agree(&line, options);
        }

        #[test]
        fn also_with_a_byte_changed(
            mut line in any_line(),
            at: prop::sample::Index,
            byte in prop_oneof![any::<u8>(), prop::sample::select(&b"|:,#@T_{}-+.0x"[..])],
            options in options(),
        ) {
            let at = at.index(line.len());
            line[at] = byte;
            agree(&line, options);
        }

        #[test]
        fn also_in_a_soup_of_special_characters(
            line in "(_e\\{|_sc|)[|:,#@Tcgmshd_e{}0-9+.xpinfa\\-é]{0,24}",
            options in options(),
        ) {
            agree(line.as_bytes(), options);
        }

        #[test]
        fn numbers_are_those_of_the_fast_path(text in number_text()) {
            let defined = all_consuming(number).parse(text.as_bytes()).ok().map(|(_, n)| n.to_bits());
            prop_assert_eq!(parse::number(text.as_bytes()).map(f64::to_bits), defined);
        }
    }
}
