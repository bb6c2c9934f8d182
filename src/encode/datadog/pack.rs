//! From items to payloads: framed, compressed, and within the intake's limits.

use std::io::Write;
use std::ops::Range;

use super::Route;
use crate::encode::{Body, Coding, Encoded, Payload};

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// With its level.
    Zstd(i32),
    Zlib,
    Gzip,
    None,
}

impl Compression {
    pub const fn coding(self) -> Coding {
        match self {
            Self::Zstd(_) => Coding::Zstd,
            Self::Zlib => Coding::Deflate,
            Self::Gzip => Coding::Gzip,
            Self::None => Coding::Identity,
        }
    }

    pub(super) fn compress(self, raw: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        match self {
            Self::Zstd(level) => zstd::bulk::compress(raw, level),
            Self::Zlib => written(flate2::write::ZlibEncoder::new(Vec::new(), level), raw)
                .and_then(flate2::write::ZlibEncoder::finish),
            Self::Gzip => written(flate2::write::GzEncoder::new(Vec::new(), level), raw)
                .and_then(flate2::write::GzEncoder::finish),
            Self::None => Ok(raw.to_vec()),
        }
        .expect("compression into memory cannot fail")
    }
}

fn written<W: Write>(mut writer: W, raw: &[u8]) -> std::io::Result<W> {
    writer.write_all(raw)?;
    Ok(writer)
}

/// Bounds of one body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes after compression.
    pub compressed: usize,
    /// Bytes before compression.
    pub raw: usize,
    /// Points.
    pub points: usize,
}

/// Where the finished bodies of one route go.
pub struct Output<'a> {
    route: Route,
    compression: Compression,
    limits: Limits,
    encoded: &'a mut Encoded,
}

impl<'a> Output<'a> {
    pub fn new(
        route: Route,
        compression: Compression,
        limits: Limits,
        encoded: &'a mut Encoded,
    ) -> Self {
        Self { route, compression, limits, encoded }
    }

    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts points that go nowhere.
    pub fn drop_points(&mut self, points: u64) {
        self.encoded.dropped += points;
    }

    /// Puts the items out in one body; where that is too large, in two of half the items each, and
    /// so on. An item that does not fit alone is dropped.
    pub fn pack<T>(
        &mut self,
        items: &[T],
        points: fn(&T) -> u64,
        render: &impl Fn(&[T]) -> Vec<u8>,
    ) {
        let sum = items.iter().map(points).sum();
        if items.is_empty() || self.put(&render(items), sum) {
            return;
        }
        if items.len() == 1 {
            return self.drop_points(sum);
        }
        let (first, second) = items.split_at(items.len() / 2);
        self.pack(first, points, render);
        self.pack(second, points, render);
    }

    /// False, with nothing put out, when the body is over a limit.
    fn put(&mut self, raw: &[u8], points: u64) -> bool {
        if raw.len() > self.limits.raw {
            return false;
        }
        let body = self.compression.compress(raw);
        if body.len() > self.limits.compressed {
            return false;
        }
        let kind = self.route.word();
        let (coding, body) = (self.compression.coding(), Body::Bytes(body));
        self.encoded.payloads.push(Payload { kind, points, coding, body });
        true
    }
}

/// What stands around and between the items of a body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    pub head: &'static [u8],
    pub between: &'static [u8],
    pub tail: &'static [u8],
}

/// Gathers encoded items until a body is full.
pub struct Gatherer<'a> {
    output: Output<'a>,
    frame: Frame,
    /// The items' bytes, one after the other, without the frame.
    bytes: Vec<u8>,
    items: Vec<Item>,
    points: usize,
}

struct Item {
    bytes: Range<usize>,
    points: u64,
}

impl<'a> Gatherer<'a> {
    pub const fn new(output: Output<'a>, frame: Frame) -> Self {
        Self { output, frame, bytes: Vec::new(), items: Vec::new(), points: 0 }
    }

    /// Adds one item: the bytes that `write` appends.
    pub fn item(&mut self, points: usize, write: impl FnOnce(&mut Vec<u8>)) {
        if self.points + points > self.output.limits.points {
            self.close();
        }
        let mut start = self.bytes.len();
        write(&mut self.bytes);
        let frame = self.frame;
        let framed = frame.head.len() + frame.between.len() * self.items.len() + frame.tail.len();
        if framed + self.bytes.len() > self.output.limits.raw {
            let item = self.bytes.split_off(start);
            self.close();
            (start, self.bytes) = (0, item);
        }
        self.items.push(Item { bytes: start..self.bytes.len(), points: points as u64 });
        self.points += points;
    }

    /// Puts out what is left.
    pub fn finish(mut self) -> Output<'a> {
        self.close();
        self.output
    }

    fn close(&mut self) {
        let Self { output, frame, bytes, items, points } = self;
        let render = |items: &[Item]| {
            let mut body = Vec::with_capacity(bytes.len());
            body.extend_from_slice(frame.head);
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    body.extend_from_slice(frame.between);
                }
                body.extend_from_slice(&bytes[item.bytes.clone()]);
            }
            body.extend_from_slice(frame.tail);
            body
        };
        output.pack(items, |item| item.points, &render);
        bytes.clear();
        items.clear();
        *points = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::encode::datadog::datadog_payload::decompress;

    const NUMBERS: Frame = Frame { head: b"[", between: b",", tail: b"]" };

    /// Each number becomes an item of as many digits; the bodies come back as lists of numbers.
    fn packed(
        numbers: &[String],
        points: usize,
        limits: Limits,
        compression: Compression,
    ) -> (Vec<Vec<String>>, Vec<usize>, u64) {
        let mut encoded = Encoded::default();
        let output = Output::new(Route::Checks, compression, limits, &mut encoded);
        let mut gatherer = Gatherer::new(output, NUMBERS);
        for number in numbers {
            gatherer.item(points, |bytes| bytes.extend_from_slice(number.as_bytes()));
        }
        gatherer.finish();
        let mut sizes = Vec::new();
        let bodies = encoded.payloads.iter().map(|payload| {
            let Body::Bytes(bytes) = &payload.body else { panic!("no bytes") };
            sizes.push(bytes.len());
            let raw = decompress(compression.coding().word(), bytes).unwrap();
            assert!(raw.len() <= limits.raw);
            let text = String::from_utf8(raw).unwrap();
            let list = text.strip_prefix('[').unwrap().strip_suffix(']').unwrap();
            let items: Vec<String> = list.split(',').map(String::from).collect();
            assert_eq!(payload.points, (items.len() * points) as u64);
            items
        });
        (bodies.collect(), sizes, encoded.dropped)
    }

    fn numbers(numbers: &[&str]) -> Vec<String> {
        numbers.iter().map(|n| (*n).to_owned()).collect()
    }

    const WIDE: Limits = Limits { compressed: 1 << 20, raw: 1 << 20, points: 1000 };

    #[test]
    fn bodies_close_at_each_limit() {
        let five = numbers(&["11", "22", "33", "44", "55"]);
        let all: &[&[&str]] = &[&["11", "22", "33", "44", "55"]];
        let pairs: &[&[&str]] = &[&["11", "22"], &["33", "44"], &["55"]];
        for (limits, points, expected) in [
            (WIDE, 1, all),
            (Limits { points: 5, ..WIDE }, 1, all),
            (Limits { points: 5, ..WIDE }, 2, pairs),
            // `[11,22]` has 7 bytes.
            (Limits { raw: 9, ..WIDE }, 1, pairs),
            (Limits { raw: 7, ..WIDE }, 1, pairs),
            // Over the limit after compression: five items, halved to two and three, the three
            // halved again.
            (Limits { compressed: 9, ..WIDE }, 1, &[&["11", "22"], &["33"], &["44", "55"]]),
        ] {
            let (bodies, _, dropped) = packed(&five, points, limits, Compression::None);
            assert_eq!(bodies, expected, "{limits:?}");
            assert_eq!(dropped, 0);
        }
    }

    #[test]
    fn an_item_too_large_alone_is_dropped_and_counted_in_points() {
        let items = numbers(&["1", "999999999999", "2"]);
        for limits in [Limits { raw: 10, ..WIDE }, Limits { compressed: 10, ..WIDE }] {
            let (bodies, _, dropped) = packed(&items, 3, limits, Compression::None);
            assert_eq!(bodies.concat(), ["1", "2"]);
            assert_eq!(dropped, 3);
        }
    }

    #[test]
    fn nothing_makes_no_body() {
        assert_eq!(packed(&[], 1, WIDE, Compression::None), (vec![], vec![], 0));
    }

    #[test]
    fn every_compression_is_what_it_says() {
        let items = numbers(&["123456"; 100]);
        for (compression, magic) in [
            (Compression::Zstd(1), &[0x28, 0xb5, 0x2f, 0xfd][..]),
            (Compression::Zlib, &[0x78, 0x9c]),
            (Compression::Gzip, &[0x1f, 0x8b]),
            (Compression::None, b"[1"),
        ] {
            assert!(compression.compress(b"[123456,123456]").starts_with(magic));
            let (bodies, sizes, _) = packed(&items, 1, WIDE, compression);
            assert_eq!(bodies.concat(), items);
            assert_eq!(sizes[0] < 100, compression != Compression::None, "{compression:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(
            items in prop::collection::vec("[0-9]{1,30}", 0..60),
            points in 1..4_usize,
            raw in 3..200_usize,
            compressed in 3..200_usize,
            points_max in 1..40_usize,
            kind in 0..4_usize,
        ) {
            let compression = [Compression::Zstd(1), Compression::Zlib, Compression::Gzip, Compression::None][kind];
            let limits = Limits { compressed, raw, points: points_max };
            let (bodies, sizes, dropped) = packed(&items, points, limits, compression);
            prop_assert!(sizes.iter().all(|&size| size <= compressed));
            prop_assert!(bodies.iter().all(|b| b.len() == 1 || b.len() * points <= points_max));
            let fits = |item: &&String| {
                let body = format!("[{item}]");
                body.len() <= raw && compression.compress(body.as_bytes()).len() <= compressed
            };
            let expected: Vec<&String> = items.iter().filter(fits).collect();
            prop_assert_eq!(bodies.iter().flatten().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(dropped, ((items.len() - expected.len()) * points) as u64);
        }
    }
}
