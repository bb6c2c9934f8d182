//! Half a payload, for an intake to which the whole one is too large.
//!
//! Payloads may come from disk, so this works on bytes: protobuf bodies are cut between two of
//! their top-level messages, JSON bodies between two items of their list.

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::Value as Json;

use super::{Compression, Route};
use crate::encode::{Body, Coding, Payload};

/// Bytes of a body before compression, at most.
const RAW_MAX: u64 = 256 << 20;

/// Two payloads that hold what this one does, compressed anew; `None` for one that holds a single
/// item, or is not what its kind says.
pub fn split(payload: &Payload, compression: Compression) -> Option<[Payload; 2]> {
    let Body::Bytes(bytes) = &payload.body else { return None };
    let route = Route::of_word(payload.kind)?;
    let raw = decompress(payload.coding, bytes)?;
    let (first, points, second) = match route {
        Route::SeriesV2 => messages(&raw, 4),
        Route::Sketches => messages(&raw, 7),
        Route::SeriesV1 => series(&raw),
        Route::Events => events(&raw),
        Route::Checks => checks(&raw),
    }?;
    let half = |raw: &[u8], points| Payload {
        kind: payload.kind,
        points,
        coding: compression.coding(),
        body: Body::Bytes(compression.compress(raw)),
    };
    let rest = payload.points.checked_sub(points)?;
    Some([half(&first, points), half(&second, rest)])
}

fn decompress(coding: Coding, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut raw = Vec::new();
    let read = match coding {
        Coding::Identity => bytes.take(RAW_MAX).read_to_end(&mut raw),
        Coding::Deflate => {
            flate2::read::ZlibDecoder::new(bytes).take(RAW_MAX).read_to_end(&mut raw)
        }
        Coding::Gzip => flate2::read::GzDecoder::new(bytes).take(RAW_MAX).read_to_end(&mut raw),
        Coding::Zstd => {
            zstd::stream::read::Decoder::new(bytes).ok()?.take(RAW_MAX).read_to_end(&mut raw)
        }
    };
    read.ok().filter(|length| (*length as u64) < RAW_MAX).map(|_| raw)
}

/// The first half, its points, and the second half.
type Halves = Option<(Vec<u8>, u64, Vec<u8>)>;

/// Halves the repeated messages of field 1; any other field goes into both. `point` is the field of
/// a point within such a message.
fn messages(raw: &[u8], point: u64) -> Halves {
    let (mut items, mut others) = (Vec::new(), Vec::new());
    for field in fields(raw) {
        let field = field?;
        if field.number == 1 { items.push(field) } else { others.push(field) }
    }
    let (first, second) = items.split_at_checked(items.len() / 2).filter(|(f, _)| !f.is_empty())?;
    let mut points = 0;
    for item in first {
        for field in fields(item.content) {
            points += u64::from(field?.number == point);
        }
    }
    let joined = |items: &[Field<'_>]| {
        items.iter().chain(&others).flat_map(|field| field.whole).copied().collect()
    };
    Some((joined(first), points, joined(second)))
}

/// One field of a protobuf message.
struct Field<'a> {
    number: u64,
    /// Tag, length and content.
    whole: &'a [u8],
    /// Of a length-delimited field.
    content: &'a [u8],
}

/// The fields of a message; the last one is `None` where it is malformed.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Option<Field<'_>>> {
    let mut broken = false;
    std::iter::from_fn(move || {
        if bytes.is_empty() || broken {
            return None;
        }
        let field = field(bytes);
        match &field {
            Some(field) => bytes = &bytes[field.whole.len()..],
            None => broken = true,
        }
        Some(field)
    })
}

fn field(bytes: &[u8]) -> Option<Field<'_>> {
    let (tag, rest) = varint(bytes)?;
    let (content, rest) = match tag & 7 {
        0 => (&[][..], varint(rest)?.1),
        1 => (&[][..], rest.get(8..)?),
        2 => {
            let (length, rest) = varint(rest)?;
            rest.split_at_checked(usize::try_from(length).ok()?)?
        }
        5 => (&[][..], rest.get(4..)?),
        _ => return None,
    };
    Some(Field { number: tag >> 3, whole: &bytes[..bytes.len() - rest.len()], content })
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

fn series(raw: &[u8]) -> Halves {
    let mut body: BTreeMap<String, Vec<Json>> = serde_json::from_slice(raw).ok()?;
    let list = body.get_mut("series")?;
    let second = half(list)?;
    let points = list.iter().map(|s| s["points"].as_array().map_or(0, Vec::len) as u64).sum();
    let second = BTreeMap::from([("series", second)]);
    Some((serde_json::to_vec(&body).ok()?, points, serde_json::to_vec(&second).ok()?))
}

fn checks(raw: &[u8]) -> Halves {
    let mut first: Vec<Json> = serde_json::from_slice(raw).ok()?;
    let second = half(&mut first)?;
    let points = first.len() as u64;
    Some((serde_json::to_vec(&first).ok()?, points, serde_json::to_vec(&second).ok()?))
}

/// Events lie in groups, within a frame that both halves get.
fn events(raw: &[u8]) -> Halves {
    let mut first: Json = serde_json::from_slice(raw).ok()?;
    let mut second = first.clone();
    let groups = first.get("events")?.as_object()?.clone();
    let mut all: Vec<(String, Json)> = Vec::new();
    for (group, events) in groups {
        all.extend(events.as_array()?.iter().map(|event| (group.clone(), event.clone())));
    }
    let rest = half(&mut all)?;
    let points = all.len() as u64;
    for (body, events) in [(&mut first, all), (&mut second, rest)] {
        let mut groups: BTreeMap<String, Vec<Json>> = BTreeMap::new();
        for (group, event) in events {
            groups.entry(group).or_default().push(event);
        }
        body["events"] = serde_json::to_value(groups).ok()?;
    }
    Some((serde_json::to_vec(&first).ok()?, points, serde_json::to_vec(&second).ok()?))
}

/// Takes the second half off a list of at least two.
fn half<T>(list: &mut Vec<T>) -> Option<Vec<T>> {
    let middle = list.len() / 2;
    (middle > 0).then(|| list.split_off(middle))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::encode::datadog::datadog_payload::{
        Body as Decoded, Dogsketch, MetricPayload, MetricPoint, MetricSeries, Sketch,
        SketchPayload, decode,
    };

    fn payload(route: Route, points: u64, compression: Compression, raw: &[u8]) -> Payload {
        let body = Body::Bytes(compression.compress(raw));
        Payload { kind: route.word(), points, coding: compression.coding(), body }
    }

    fn decoded(route: Route, payload: &Payload) -> Decoded {
        let Body::Bytes(bytes) = &payload.body else { panic!("no bytes") };
        decode(route.path(), payload.coding.word(), bytes).unwrap()
    }

    /// Splits to the end; gives back each part as decoded, with its points.
    fn parts(route: Route, payload: Payload) -> Vec<(u64, Decoded)> {
        match split(&payload, Compression::Zstd(1)) {
            None => vec![(payload.points, decoded(route, &payload))],
            Some(halves) => halves.into_iter().flat_map(|half| parts(route, half)).collect(),
        }
    }

    #[test]
    fn protobuf_is_cut_between_messages() {
        let series: Vec<_> = (1..=5)
            .map(|n| MetricSeries {
                metric: format!("m{n}"),
                points: (0..n).map(|t| MetricPoint { value: 1.5, timestamp: t }).collect(),
                ..MetricSeries::default()
            })
            .collect();
        let raw = MetricPayload { series: series.clone() }.encode_to_vec();
        for compression in
            [Compression::Zstd(3), Compression::Zlib, Compression::Gzip, Compression::None]
        {
            let parts = parts(Route::SeriesV2, payload(Route::SeriesV2, 15, compression, &raw));
            let found: Vec<_> = parts
                .into_iter()
                .map(|(points, body)| match body {
                    Decoded::Series(payload) => (points, payload.series),
                    other => panic!("{other:?}"),
                })
                .collect();
            let expected: Vec<_> =
                series.iter().map(|s| (s.points.len() as u64, vec![s.clone()])).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn sketches_keep_their_frame() {
        let sketch = |name: &str, n| Sketch {
            metric: name.to_owned(),
            dogsketches: vec![Dogsketch::default(); n],
            ..Sketch::default()
        };
        let sketches = vec![sketch("a", 2), sketch("b", 1)];
        let mut raw = SketchPayload { sketches, ..SketchPayload::default() }.encode_to_vec();
        raw.extend_from_slice(&[2 << 3 | 2, 0]);
        let parts = parts(Route::Sketches, payload(Route::Sketches, 3, Compression::Zlib, &raw));
        let found: Vec<_> = parts
            .into_iter()
            .map(|(points, body)| match body {
                Decoded::Sketches(payload) => {
                    assert!(payload.metadata.is_some());
                    (points, payload.sketches)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, [(2, vec![sketch("a", 2)]), (1, vec![sketch("b", 1)])]);
    }

    #[test]
    fn json_is_cut_between_items() {
        for (route, points, raw, expected) in [
            (
                Route::Checks,
                3,
                r#"[{"check":"a"},{"check":"b"},{"check":"c"}]"#,
                &[(1, r#"[{"check":"a"}]"#), (1, r#"[{"check":"b"}]"#), (1, r#"[{"check":"c"}]"#)]
                    [..],
            ),
            (
                Route::SeriesV1,
                3,
                r#"{"series":[{"metric":"a","points":[[1,2.0],[2,3.0]]},{"points":[[1,2.0]]}]}"#,
                &[
                    (2, r#"{"series":[{"metric":"a","points":[[1,2.0],[2,3.0]]}]}"#),
                    (1, r#"{"series":[{"points":[[1,2.0]]}]}"#),
                ],
            ),
            (
                Route::Events,
                2,
                r#"{"api_key":"","events":{"api":[{"t":1}],"x":[{"t":2}]},"internal_hostname":"h"}"#,
                &[
                    (1, r#"{"api_key":"","events":{"api":[{"t":1}]},"internal_hostname":"h"}"#),
                    (1, r#"{"api_key":"","events":{"x":[{"t":2}]},"internal_hostname":"h"}"#),
                ],
            ),
        ] {
            let parts = parts(route, payload(route, points, Compression::Gzip, raw.as_bytes()));
            let found = parts.into_iter().map(|(points, body)| match body {
                Decoded::Json(json) => (points, json),
                other => panic!("{other:?}"),
            });
            let expected: Vec<(u64, Json)> = expected
                .iter()
                .map(|(n, text)| (*n, serde_json::from_str(text).unwrap()))
                .collect();
            assert_eq!(found.collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn what_is_broken_is_not_split() {
        for (route, raw) in [
            (Route::SeriesV2, &b"\x0a\x7f"[..]),
            (Route::SeriesV2, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            (Route::SeriesV2, b"\x0f\x0f"),
            (Route::Sketches, b""),
            (Route::SeriesV1, b"{}"),
            (Route::Events, br#"{"events":{"a":1}}"#),
            (Route::Checks, b"[1]"),
        ] {
            assert!(split(&payload(route, 9, Compression::None, raw), Compression::Zlib).is_none());
        }
        let torn = Payload {
            coding: Coding::Zstd,
            ..payload(Route::Checks, 2, Compression::None, b"[1,2]")
        };
        assert!(split(&torn, Compression::Zlib).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn nothing_is_too_odd(raw in prop::collection::vec(any::<u8>(), 0..40), points: u64) {
            for route in Route::ALL {
                let whole = payload(route, points, Compression::None, &raw);
                let sum = split(&whole, Compression::None)
                    .map(|halves| halves.iter().map(|half| half.points).sum::<u64>());
                prop_assert!(sum.is_none_or(|sum| sum == points));
            }
        }
    }
}
