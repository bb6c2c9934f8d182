//! The few parts of the protobuf wire format that our payloads need, written straight into a buffer.
//!
//! Scalars and strings at their default, 0 or empty, are left out, as proto3 wants it; embedded
//! messages are written even when empty.

/// Wire types: the low three bits of a field's tag.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH_DELIMITED: u32 = 2;

/// A message under construction: everything is appended to the buffer it was made of.
pub struct Message<'a>(pub &'a mut Vec<u8>);

impl Message<'_> {
    pub fn string(&mut self, field: u32, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    pub fn bytes(&mut self, field: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.tag(field, LENGTH_DELIMITED);
            varint(self.0, bytes.len() as u64);
            self.0.extend_from_slice(bytes);
        }
    }

    /// Also for `int32` and enums. A negative number takes ten bytes.
    pub fn int64(&mut self, field: u32, value: i64) {
        self.uint64(field, value as u64);
    }

    /// Also for `uint32`.
    pub fn uint64(&mut self, field: u32, value: u64) {
        if value != 0 {
            self.tag(field, VARINT);
            varint(self.0, value);
        }
    }

    /// Minus zero is not the default: it is written.
    pub fn double(&mut self, field: u32, value: f64) {
        if value.to_bits() != 0 {
            self.tag(field, FIXED64);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// An embedded message, filled by `content`.
    pub fn message(&mut self, field: u32, content: impl FnOnce(&mut Message<'_>)) {
        self.delimited(field, |buffer| content(&mut Message(buffer)));
    }

    /// A packed list of `sint32`; an empty list is left out.
    pub fn packed_sint32(&mut self, field: u32, values: impl Iterator<Item = i32>) {
        self.packed(field, values.map(|value| u64::from(zigzag(value))));
    }

    /// A packed list of `uint32`; an empty list is left out.
    pub fn packed_uint32(&mut self, field: u32, values: impl Iterator<Item = u32>) {
        self.packed(field, values.map(u64::from));
    }

    /// A packed list of `uint64` or of `int64` that are not negative; an empty list is left out.
    pub fn packed_uint64(&mut self, field: u32, values: impl Iterator<Item = u64>) {
        self.packed(field, values);
    }

    fn packed(&mut self, field: u32, values: impl Iterator<Item = u64>) {
        let mut values = values.peekable();
        if values.peek().is_some() {
            self.delimited(field, |buffer| values.for_each(|value| varint(buffer, value)));
        }
    }

    /// Writes the content first and moves it to make room for its length: cheaper than a buffer
    /// for each embedded message, which are short.
    fn delimited(&mut self, field: u32, content: impl FnOnce(&mut Vec<u8>)) {
        self.tag(field, LENGTH_DELIMITED);
        let start = self.0.len();
        content(self.0);
        let end = self.0.len();
        varint(self.0, (end - start) as u64);
        let length_bytes = self.0.len() - end;
        self.0[start..].rotate_right(length_bytes);
    }

    fn tag(&mut self, field: u32, wire_type: u32) {
        varint(self.0, u64::from(field << 3 | wire_type));
    }
}

/// Seven bits a byte, the lowest first; the top bit says that more follow.
fn varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

/// Makes numbers near zero of either sign small.
const fn zigzag(value: i32) -> u32 {
    (value << 1 ^ value >> 31) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn written(content: impl FnOnce(&mut Message<'_>)) -> Vec<u8> {
        let mut buffer = Vec::new();
        content(&mut Message(&mut buffer));
        buffer
    }

    #[test]
    fn fields_have_the_bytes_of_the_wire_format() {
        for (bytes, literal) in [
            (written(|m| m.string(1, "testing")), &b"\x0a\x07testing"[..]),
            (written(|m| m.uint64(1, 150)), b"\x08\x96\x01"),
            (written(|m| m.int64(2, -1)), b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
            (written(|m| m.double(1, 1.0)), b"\x09\0\0\0\0\0\0\xf0\x3f"),
            (written(|m| m.double(1, -0.0)), b"\x09\0\0\0\0\0\0\0\x80"),
            (written(|m| m.uint64(16, 1)), b"\x80\x01\x01"),
            (written(|m| m.message(3, |m| m.uint64(1, 150))), b"\x1a\x03\x08\x96\x01"),
            (
                written(|m| m.packed_uint32(6, [3, 270, 86_942].into_iter())),
                b"2\x06\x03\x8e\x02\x9e\xa7\x05",
            ),
            (
                written(|m| m.packed_sint32(1, [0, -1, 1, -64, 64].into_iter())),
                b"\x0a\x06\0\x01\x02\x7f\x80\x01",
            ),
        ] {
            assert_eq!(bytes, literal);
        }
    }

    #[test]
    fn defaults_are_left_out_but_not_empty_messages() {
        let bytes = written(|m| {
            m.string(1, "");
            m.int64(2, 0);
            m.uint64(3, 0);
            m.double(4, 0.0);
            m.packed_sint32(5, [].into_iter());
            m.packed_uint32(6, [].into_iter());
            m.message(7, |_| {});
        });
        assert_eq!(bytes, [7 << 3 | 2, 0]);
    }

    #[test]
    fn a_long_embedded_message_keeps_its_content() {
        let long = "x".repeat(20_000);
        let bytes = written(|m| m.message(1, |m| m.message(2, |m| m.string(3, &long))));
        let head = [0x0a, 0xa8, 0x9c, 0x01, 0x12, 0xa4, 0x9c, 0x01, 0x1a, 0xa0, 0x9c, 0x01];
        assert_eq!(bytes[..12], head);
        assert_eq!(bytes[12..], *long.as_bytes());
    }

    /// Every shape that is written, as prost reads it.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Judge {
        #[prost(string, tag = "1")]
        text: String,
        #[prost(int64, tag = "2")]
        signed: i64,
        #[prost(uint64, tag = "300")]
        unsigned: u64,
        #[prost(double, tag = "4")]
        real: f64,
        #[prost(message, optional, boxed, tag = "5")]
        inner: Option<Box<Self>>,
        #[prost(sint32, repeated, tag = "6")]
        keys: Vec<i32>,
        #[prost(uint32, repeated, tag = "7")]
        counts: Vec<u32>,
        #[prost(uint64, repeated, tag = "8")]
        sums: Vec<u64>,
    }

    fn write(message: &mut Message<'_>, judge: &Judge) {
        message.string(1, &judge.text);
        message.int64(2, judge.signed);
        message.uint64(300, judge.unsigned);
        message.double(4, judge.real);
        if let Some(inner) = &judge.inner {
            message.message(5, |message| write(message, inner));
        }
        message.packed_sint32(6, judge.keys.iter().copied());
        message.packed_uint32(7, judge.counts.iter().copied());
        message.packed_uint64(8, judge.sums.iter().copied());
    }

    fn judges() -> impl Strategy<Value = Judge> {
        let flat = (
            ".{0,200}",
            any::<i64>(),
            any::<u64>(),
            -1e300..1e300,
            prop::collection::vec(any::<i32>(), 0..40),
            prop::collection::vec(any::<u32>(), 0..40),
            prop::collection::vec(any::<u64>(), 0..40),
        )
            .prop_map(|(text, signed, unsigned, real, keys, counts, sums)| Judge {
                text,
                signed,
                unsigned,
                real,
                inner: None,
                keys,
                counts,
                sums,
            });
        flat.prop_recursive(3, 4, 1, |inner| {
            (inner.clone(), inner)
                .prop_map(|(outer, inner)| Judge { inner: Some(Box::new(inner)), ..outer })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn prost_reads_what_was_written(judge in judges()) {
            let bytes = written(|message| write(message, &judge));
            prop_assert_eq!(Judge::decode(&bytes[..]).unwrap(), judge);
        }
    }
}
