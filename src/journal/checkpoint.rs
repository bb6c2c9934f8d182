//! What the closed generations hold, in one file: it stands for the segments that they came from.
//!
//! ```text
//! magic 8 | version u16 | 0 u16 | CRC-32 of what follows u32
//! | first generation u64 | behind the last u64 | keys of the members of sets 48
//! | entries, each with a tag u8:
//!   1 a bucket, to which the cells and points behind it belong: number u64, start i64, end i64
//!   6 a cell: identity, cell        7 what has a time of its own: identity, time i64, cell
//!   4 an event                      5 a service check, each as a text of JSON
//! ```
//!
//! Identities and texts are as in segments (`format.rs`). Version 1 had entries of tags 2 and 3 for 6 and
//! 7, with contexts for identities. They are still read.

use std::ops::Range;

use super::format::{
    Bytes, Unreadable, put_bytes, put_identity, take_context, take_identity, take_text,
};
use crate::batch::{Event, ServiceCheck};
use crate::context::Context;
use crate::hash::Keys;
use crate::shard::{Generation, Held};
use crate::value::Cell;

const MAGIC: &[u8; 8] = b"tallyd\0C";
const VERSION: u16 = 2;
const PREFIX: usize = 16;

const BUCKET: u8 = 1;
const EARLIER_CELL: u8 = 2;
const EARLIER_TIMED: u8 = 3;
const EVENT: u8 = 4;
const CHECK: u8 = 5;
const CELL: u8 = 6;
const TIMED: u8 = 7;

/// Writes a checkpoint, entry by entry.
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    pub(super) fn new(keys: Keys) -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; PREFIX - 10 + 16]);
        bytes.extend(keys.to_bytes());
        Self(bytes)
    }

    pub(super) fn add(&mut self, held: &Held<'_>) {
        match held {
            Held::Bucket(Generation { number, start, end }) => {
                self.0.push(BUCKET);
                self.0.extend(number.to_le_bytes());
                self.0.extend(start.to_le_bytes());
                self.0.extend(end.to_le_bytes());
            }
            Held::Cell(context, cell) => {
                self.0.push(CELL);
                put_identity(&mut self.0, context);
                cell.encode(&mut self.0);
            }
            Held::Timed(context, time, cell) => {
                self.0.push(TIMED);
                put_identity(&mut self.0, context);
                self.0.extend(time.to_le_bytes());
                cell.encode(&mut self.0);
            }
            Held::Event(event) => self.json(EVENT, serde_json::to_string(event)),
            Held::Check(check) => self.json(CHECK, serde_json::to_string(check)),
        }
    }

    fn json(&mut self, tag: u8, text: serde_json::Result<String>) {
        // Texts and numbers always have one.
        if let Ok(text) = text {
            self.0.push(tag);
            put_bytes(&mut self.0, text.as_bytes());
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn finish(mut self, generations: &Range<u64>) -> Vec<u8> {
        self.0[PREFIX..PREFIX + 8].copy_from_slice(&generations.start.to_le_bytes());
        self.0[PREFIX + 8..PREFIX + 16].copy_from_slice(&generations.end.to_le_bytes());
        let checksum = crc32fast::hash(&self.0[PREFIX..]);
        self.0[12..PREFIX].copy_from_slice(&checksum.to_le_bytes());
        self.0
    }
}

/// What a checkpoint was made of.
#[derive(Debug)]
pub enum Entry {
    Bucket(Generation),
    Cell(Context, Cell),
    Timed(Context, i64, Cell),
    Event(Event),
    Check(ServiceCheck),
}

/// A checkpoint that is whole.
pub struct Checkpoint<'a> {
    pub generations: Range<u64>,
    pub keys: Keys,
    entries: Bytes<'a>,
}

impl<'a> Checkpoint<'a> {
    /// # Errors
    /// When these are not the bytes of a checkpoint that this version knows.
    pub fn decode(file: &'a [u8]) -> Result<Self, Unreadable> {
        let mut bytes = Bytes(file);
        if bytes.take(MAGIC.len()) != Some(MAGIC) {
            return Err(Unreadable::Foreign);
        }
        let version = bytes.u16().ok_or(Unreadable::Damaged)?;
        if !(1..=VERSION).contains(&version) {
            return Err(Unreadable::Version(version));
        }
        Self::decode_covered(bytes).ok_or(Unreadable::Damaged)
    }

    fn decode_covered(mut bytes: Bytes<'a>) -> Option<Self> {
        let (_, checksum) = (bytes.u16()?, bytes.u32()?);
        if crc32fast::hash(bytes.0) != checksum {
            return None;
        }
        let generations = bytes.u64()?..bytes.u64()?;
        let keys = Keys::from_bytes(bytes.take(48)?.try_into().ok()?);
        Some(Self { generations, keys, entries: bytes })
    }

    /// The next entry; `None` at the end, and at one that this version does not know.
    pub fn entry(&mut self) -> Option<Entry> {
        let bytes = &mut self.entries;
        Some(match bytes.u8()? {
            BUCKET => Entry::Bucket(Generation {
                number: bytes.u64()?,
                start: bytes.i64()?,
                end: bytes.i64()?,
            }),
            CELL => Entry::Cell(take_identity(bytes)?, cell(bytes)?),
            TIMED => Entry::Timed(take_identity(bytes)?, bytes.i64()?, cell(bytes)?),
            EARLIER_CELL => Entry::Cell(take_context(bytes)?, cell(bytes)?),
            EARLIER_TIMED => Entry::Timed(take_context(bytes)?, bytes.i64()?, cell(bytes)?),
            EVENT => Entry::Event(serde_json::from_str(take_text(bytes)?).ok()?),
            CHECK => Entry::Check(serde_json::from_str(take_text(bytes)?).ok()?),
            _ => return None,
        })
    }
}

fn cell(bytes: &mut Bytes<'_>) -> Option<Cell> {
    let (cell, rest) = Cell::decode(bytes.0).ok()?;
    bytes.0 = rest;
    Some(cell)
}

#[cfg(test)]
mod tests {
    use super::super::format::put_context;
    use super::*;
    use crate::context::Source;
    use crate::sample::Kind;

    #[test]
    fn entries_of_the_first_version_are_read() {
        let tags = vec!["a:b".to_owned(), "c".to_owned()];
        let context = Context::new("name", Kind::Count, "host", tags, Source(3));
        let mut encoder = Encoder::new(Keys::random());
        encoder.0.push(EARLIER_CELL);
        put_context(&mut encoder.0, &context);
        Cell::Count(2.5).encode(&mut encoder.0);
        encoder.0.push(EARLIER_TIMED);
        put_context(&mut encoder.0, &context);
        encoder.0.extend(77_i64.to_le_bytes());
        Cell::Count(4.0).encode(&mut encoder.0);
        encoder.0[8] = 1;
        let bytes = encoder.finish(&(1..3));
        let mut checkpoint = Checkpoint::decode(&bytes).unwrap();
        let cell = checkpoint.entry();
        assert!(
            matches!(&cell, Some(Entry::Cell(c, Cell::Count(2.5))) if *c == context),
            "{cell:?}"
        );
        let timed = checkpoint.entry();
        assert!(
            matches!(&timed, Some(Entry::Timed(c, 77, Cell::Count(4.0))) if *c == context),
            "{timed:?}"
        );
        assert!(checkpoint.entry().is_none());
    }
}
