//! The bytes of the journal's files. Pure, and safe on any input.
//!
//! ```text
//! segment   header, records, 4 zero bytes; then whatever the file held before
//! header    magic 8 | version u16 | length u16 | CRC-32 of what follows u32
//!           | seed u32 | sequence u64 | generation u64 | start i64 | end i64
//!           | dialect u8 | eol required u8 | length of the name u16 | name of the listener
//!           | numbering u64 | of what waits u8
//! record    length of what follows the checksum u32 | CRC-32 of that, begun at the seed, u32
//!           | kind u8 = 2 | 0 u8 | 0 u16 | arrival i64 | batch of the receiver u64, or 0
//!           | entries, each with a tag u8:
//!   7 a series: its number in the numbering u32, identity
//!   2 an event                      3 a service check, each as a text of JSON
//!   4 what waits for its sender's tags: id u64, flags u8 (1 truncated, 2 a line), bytes
//!   5 what waited was taken in: id u64
//!   8 a sample of one member without more: number u32 | length u8 | as many bytes
//!   32 samples of one value without more (`group.rs`)
//!   128 and flags, any other sample: number u32 | rate f64 (flag 1) | time i64 (flag 2)
//!     | bytes of a member (flag 4), or packed values (flag 8), or else a value f64
//! bytes     length u32 | as many          text  UTF-8 as bytes
//! identity  kind u8 | source u16 | text: name, host and tags, with a newline between
//! released  two slots of 512 bytes, written in turn
//! slot      magic 8 | CRC-32 of what follows u32 | ranges u32 | sequence u64 | start i64
//!           | for each range of generations: first u64 | behind the last u64
//! ```
//!
//! Numbers are little-endian. Files are used again without being emptied, so each use of a segment
//! has a seed of its own, and no older record has a checksum that fits. Segments of one generation
//! and reader share a numbering, so a series is described once.
//!
//! Version 4 had entries of tag 6 for tag 7, with a context for the identity: kind u8 | source u16
//! | name | host | number of tags u16 | tags, all texts; and for tags 8 and 32 there were those from 64 to
//! 127, for a sample of one value without more: number u32, or u16 (flag 32) | the value, an f64 with its
//! highest byte first, but for as many zero bytes at its end as the lowest four bits of the tag say.
//! Version 3 had entries of tag 1 for tag 6: a series without a number, which had the next one; and at
//! the end of the header how many series earlier segments described, u32. Version 2 had no tags from
//! 64 to 127, nor that count.
//! Version 1 had no numbering, and records of kind 1, which hold datagrams as they came: number of
//! them in the second u16, for each its length u32, the top bit set if truncated, and 0 u32; then
//! their bytes. All are still read.

use std::ops::Range;

use super::group::{self, GROUP, Group};
use crate::batch::{Event, ServiceCheck};
use crate::context::{Context, Source as Product};
use crate::sample::{Dialect, Kind, Reading, Values};
use crate::shard::Generation;
use crate::time::Time;

const SEGMENT_MAGIC: &[u8; 8] = b"tallyd\0J";
const RELEASED_MAGIC: &[u8; 8] = b"tallyd\0R";
const VERSION: u16 = 5;

/// Bytes before those that a header's checksum covers.
const PREFIX: usize = 16;
/// Bytes before those that a record's checksum covers.
const RECORD_PREFIX: usize = 8;
/// Bytes of a record before its entries.
const RECORD_HEAD: usize = RECORD_PREFIX + 20;

/// What stands behind the last record.
pub const END: [u8; 4] = [0; 4];

const KIND_DATAGRAMS: u8 = 1;
const KIND_ENTRIES: u8 = 2;
/// Of version 1: see there.
const PER_DATAGRAM: usize = 8;
const TRUNCATED: u32 = 1 << 31;

const NEXT_SERIES: u8 = 1;
const EVENT: u8 = 2;
const CHECK: u8 = 3;
const WAITS: u8 = 4;
const TAKEN: u8 = 5;
const CONTEXT: u8 = 6;
const SERIES: u8 = 7;
const ONE_MEMBER: u8 = 8;
const BRIEF: u8 = 64;
const SHORT_NUMBER: u8 = 32;
const ZEROS: u8 = 15;
const SAMPLE: u8 = 128;

const WITH_RATE: u8 = 1;
const WITH_TIME: u8 = 2;
const MEMBER: u8 = 4;
const PACKED: u8 = 8;

/// Where a segment's datagrams came from, and how they are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The listener's name.
    pub name: String,
    pub dialect: Dialect,
    pub eol_required: bool,
}

/// What stands at the beginning of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where the checksums of its records begin.
    pub seed: u32,
    /// Later segments have higher numbers.
    pub sequence: u64,
    pub generation: Generation,
    pub source: Source,
    /// Segments of the same one describe a series once for all.
    pub numbering: u64,
    /// Series that earlier segments of the numbering describe. Of version 3.
    pub described: Option<u32>,
    /// It holds what waits for the tags of its senders, of whatever generation.
    pub waiting: bool,
}

/// Why a file cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it holds nothing")]
    Empty,
    #[error("it is no file of the journal")]
    Foreign,
    #[error("its format has the version {0}, which this tallyd does not know")]
    Version(u16),
    #[error("its header is damaged")]
    Damaged,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let Generation { number, start, end } = self.generation;
        let mut covered = Vec::with_capacity(64);
        covered.extend(self.seed.to_le_bytes());
        covered.extend(self.sequence.to_le_bytes());
        covered.extend(number.to_le_bytes());
        covered.extend(start.to_le_bytes());
        covered.extend(end.to_le_bytes());
        covered.push(match self.source.dialect {
            Dialect::Datadog => 0,
            Dialect::Statsd => 1,
        });
        covered.push(self.source.eol_required.into());
        // Names are addresses; a longer one is only for people.
        let name = &self.source.name.as_bytes()[..self.source.name.len().min(1024)];
        covered.extend((name.len() as u16).to_le_bytes());
        covered.extend(name);
        covered.extend(self.numbering.to_le_bytes());
        covered.push(self.waiting.into());
        let mut bytes = SEGMENT_MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(((PREFIX + covered.len()) as u16).to_le_bytes());
        bytes.extend(crc32fast::hash(&covered).to_le_bytes());
        bytes.extend(covered);
        bytes
    }

    /// The header, and what follows it.
    ///
    /// # Errors
    /// When these are not the bytes of a segment that this version knows.
    pub fn decode(file: &[u8]) -> Result<(Self, &[u8]), Unreadable> {
        if file.iter().take(PREFIX).all(|&b| b == 0) {
            return Err(Unreadable::Empty);
        }
        let mut bytes = Bytes(file);
        if bytes.array() != Some(*SEGMENT_MAGIC) {
            return Err(Unreadable::Foreign);
        }
        let version = bytes.u16().ok_or(Unreadable::Damaged)?;
        if !(1..=VERSION).contains(&version) {
            return Err(Unreadable::Version(version));
        }
        Self::decode_covered(bytes, file, version).ok_or(Unreadable::Damaged)
    }

    fn decode_covered<'a>(
        mut bytes: Bytes<'a>,
        file: &'a [u8],
        version: u16,
    ) -> Option<(Self, &'a [u8])> {
        let (length, checksum) = (usize::from(bytes.u16()?), bytes.u32()?);
        let covered = file.get(PREFIX..length)?;
        if crc32fast::hash(covered) != checksum {
            return None;
        }
        let mut bytes = Bytes(covered);
        let (seed, sequence) = (bytes.u32()?, bytes.u64()?);
        let generation =
            Generation { number: bytes.u64()?, start: bytes.i64()?, end: bytes.i64()? };
        let dialect = match bytes.u8()? {
            0 => Dialect::Datadog,
            1 => Dialect::Statsd,
            _ => return None,
        };
        let eol_required = bytes.u8()? != 0;
        let length = usize::from(bytes.u16()?);
        let name = String::from_utf8_lossy(bytes.take(length)?).into_owned();
        let source = Source { name, dialect, eol_required };
        let (numbering, waiting) =
            if version == 1 { (sequence, false) } else { (bytes.u64()?, bytes.u8()? != 0) };
        let described = if version == 3 { Some(bytes.u32()?) } else { None };
        let header = Self { seed, sequence, generation, source, numbering, described, waiting };
        Some((header, &file[PREFIX + covered.len()..]))
    }
}

/// A record in the making.
#[derive(Debug, Default)]
pub struct Draft {
    bytes: Vec<u8>,
    /// What belongs behind them, by the kinds of the series: they are alike, and a series has one.
    groups: [Group; Kind::ALL.len()],
}

impl Draft {
    /// Drops what was put into it.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.groups.iter_mut().for_each(Group::clear);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.groups.iter().all(Group::is_empty)
    }

    /// Bytes of the record, to which nothing is added any more.
    pub fn close(&mut self) -> usize {
        let bytes = begun(&mut self.bytes);
        self.groups.iter_mut().filter(|group| !group.is_empty()).for_each(|group| group.put(bytes));
        bytes.len()
    }

    /// Where entries go.
    fn entries(&mut self) -> &mut Vec<u8> {
        begun(&mut self.bytes)
    }

    /// Describes the series of this number.
    pub fn series(&mut self, number: u32, context: &Context) {
        let out = self.entries();
        out.push(SERIES);
        out.extend(number.to_le_bytes());
        put_identity(out, context);
    }

    /// A sample of one value without more, as nearly every one is, of a series that was described.
    #[inline(always)]
    pub fn value(&mut self, number: u32, kind: Kind, value: f64) {
        let group = &mut self.groups[kind as usize];
        group.add(number, value);
        if group.is_full() {
            self.end_group(kind);
        }
    }

    #[inline(never)]
    fn end_group(&mut self, kind: Kind) {
        self.groups[kind as usize].put(begun(&mut self.bytes));
    }

    /// Any sample of a series that was described. A change of a gauge must have become its value.
    pub fn sample(&mut self, number: u32, kind: Kind, reading: &Reading<'_>) {
        match *reading {
            Reading { values: Values::One(value), rate: 1.0, timestamp: None } => {
                self.value(number, kind, value);
            }
            Reading { values: Values::Member(member), rate: 1.0, timestamp: None }
                if member.len() <= u8::MAX.into() =>
            {
                let out = self.entries();
                out.push(ONE_MEMBER);
                out.extend(number.to_le_bytes());
                out.push(member.len() as u8);
                out.extend(member);
            }
            _ => {
                if kind == Kind::Gauge && !self.groups[kind as usize].is_empty() {
                    // The last one counts. Of other kinds all count alike.
                    self.end_group(kind);
                }
                self.full_sample(number, reading);
            }
        }
    }

    fn full_sample(&mut self, number: u32, reading: &Reading<'_>) {
        let Reading { values, rate, timestamp } = *reading;
        let out = self.entries();
        let flags = match values {
            Values::One(_) | Values::Delta(_) => 0,
            Values::Member(_) => MEMBER,
            Values::Packed(_) => PACKED,
        };
        let rated = if rate == 1.0 { 0 } else { WITH_RATE };
        let timed = if timestamp.is_some() { WITH_TIME } else { 0 };
        out.push(SAMPLE | flags | rated | timed);
        out.extend(number.to_le_bytes());
        if rated > 0 {
            out.extend(rate.to_le_bytes());
        }
        if let Some(time) = timestamp {
            out.extend(time.to_le_bytes());
        }
        match values {
            Values::One(value) | Values::Delta(value) => out.extend(value.to_le_bytes()),
            Values::Member(bytes) | Values::Packed(bytes) => put_bytes(out, bytes),
        }
    }

    pub fn event(&mut self, event: &Event) {
        self.json(EVENT, serde_json::to_string(event));
    }

    pub fn check(&mut self, check: &ServiceCheck) {
        self.json(CHECK, serde_json::to_string(check));
    }

    fn json(&mut self, tag: u8, text: serde_json::Result<String>) {
        // Texts and numbers always have one.
        if let Ok(text) = text {
            let out = self.entries();
            out.push(tag);
            put_bytes(out, text.as_bytes());
        }
    }

    /// Something that waits for the tags of its sender.
    pub fn waits(&mut self, waiting: Waiting<'_>) {
        let Waiting { id, bytes, truncated, line } = waiting;
        let out = self.entries();
        out.push(WAITS);
        out.extend(id.to_le_bytes());
        out.push(u8::from(truncated) | u8::from(line) << 1);
        put_bytes(out, bytes);
    }

    /// What waited under this id is taken in by this record.
    pub fn taken(&mut self, id: u64) {
        let out = self.entries();
        out.push(TAKEN);
        out.extend(id.to_le_bytes());
    }

    /// The whole record, with an end behind it.
    pub fn finish(&mut self, seed: u32, arrival: Time, batch: u64) -> &[u8] {
        let length = self.close() - RECORD_PREFIX;
        let head = &mut self.bytes[..RECORD_HEAD];
        head[..4].copy_from_slice(&(length as u32).to_le_bytes());
        head[8] = KIND_ENTRIES;
        head[12..20].copy_from_slice(&arrival.0.to_le_bytes());
        head[20..].copy_from_slice(&batch.to_le_bytes());
        let checksum = checksum(seed, &self.bytes[RECORD_PREFIX..]);
        self.bytes[4..RECORD_PREFIX].copy_from_slice(&checksum.to_le_bytes());
        self.bytes.extend(END);
        &self.bytes
    }
}

/// With a head, which is filled in at last.
fn begun(bytes: &mut Vec<u8>) -> &mut Vec<u8> {
    if bytes.is_empty() {
        bytes.resize(RECORD_HEAD, 0);
    }
    bytes
}

fn checksum(seed: u32, covered: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(covered);
    hasher.finalize()
}

/// Something that waits for the tags of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting<'a> {
    pub id: u64,
    pub bytes: &'a [u8],
    pub truncated: bool,
    /// It is a line without its end, not a datagram.
    pub line: bool,
}

/// What a record says.
#[derive(Debug, PartialEq)]
pub enum Entry<'a> {
    /// With its number. Before version 4 it had the next one.
    Series(Option<u32>, Context),
    /// Of the series of this number.
    Sample(u32, Reading<'a>),
    Event(Event),
    Check(ServiceCheck),
    Waits(Waiting<'a>),
    Taken(u64),
    /// As it came, and whether it was truncated. Of version 1.
    Datagram(&'a [u8], bool),
}

/// What was taken in together.
#[derive(Debug, PartialEq)]
pub struct Record<'a> {
    pub arrival: Time,
    /// The number that the receiver gave to the batch, or 0.
    pub batch: u64,
    pub entries: Vec<Entry<'a>>,
}

/// The records of a segment, one after another.
pub struct Records<'a> {
    seed: u32,
    rest: &'a [u8],
    torn: bool,
}

impl<'a> Records<'a> {
    /// `bytes` is what follows the header.
    pub fn new(header: &Header, bytes: &'a [u8]) -> Self {
        Self { seed: header.seed, rest: bytes, torn: false }
    }

    /// Whether the last record was not followed by an end: what came after it is lost.
    pub const fn is_torn(&self) -> bool {
        self.torn
    }

    fn record(&mut self) -> Option<Record<'a>> {
        let mut bytes = Bytes(self.rest);
        let (length, expected) = (bytes.u32()? as usize, bytes.u32()?);
        let covered = bytes.take(length)?;
        if checksum(self.seed, covered) != expected {
            return None;
        }
        let rest = bytes.0;
        let mut bytes = Bytes(covered);
        let (kind, _, count) = (bytes.u8()?, bytes.u8()?, usize::from(bytes.u16()?));
        let (arrival, batch) = (Time(bytes.i64()?), bytes.u64()?);
        let mut entries = Vec::new();
        match kind {
            KIND_DATAGRAMS => {
                let mut table = Bytes(bytes.take(count * PER_DATAGRAM)?);
                while let (Some(length), Some(_)) = (table.u32(), table.u32()) {
                    let text = bytes.take((length & !TRUNCATED) as usize)?;
                    entries.push(Entry::Datagram(text, length & TRUNCATED != 0));
                }
            }
            KIND_ENTRIES => {
                while !bytes.0.is_empty() {
                    take_entry(&mut bytes, &mut entries)?;
                }
            }
            _ => return None,
        }
        self.rest = rest;
        Some(Record { arrival, batch, entries })
    }
}

/// Takes the next entry, which may hold several samples.
fn take_entry<'a>(bytes: &mut Bytes<'a>, entries: &mut Vec<Entry<'a>>) -> Option<()> {
    let brief = |values| Reading { values, rate: 1.0, timestamp: None };
    entries.push(match bytes.u8()? {
        GROUP => {
            return group::take(bytes, |number, value| {
                entries.push(Entry::Sample(number, brief(Values::One(value))));
            });
        }
        NEXT_SERIES => Entry::Series(None, take_context(bytes)?),
        CONTEXT => Entry::Series(Some(bytes.u32()?), take_context(bytes)?),
        SERIES => Entry::Series(Some(bytes.u32()?), take_identity(bytes)?),
        EVENT => Entry::Event(serde_json::from_str(take_text(bytes)?).ok()?),
        CHECK => Entry::Check(serde_json::from_str(take_text(bytes)?).ok()?),
        WAITS => {
            let (id, flags) = (bytes.u64()?, bytes.u8()?);
            let (truncated, line) = (flags & 1 != 0, flags & 2 != 0);
            Entry::Waits(Waiting { id, bytes: take_bytes(bytes)?, truncated, line })
        }
        TAKEN => Entry::Taken(bytes.u64()?),
        tag if tag & SAMPLE != 0 => {
            let number = bytes.number(tag)?;
            let rate = if tag & WITH_RATE != 0 { bytes.f64()? } else { 1.0 };
            let timestamp = if tag & WITH_TIME != 0 { Some(bytes.i64()?) } else { None };
            let values = match tag & (MEMBER | PACKED) {
                0 => Values::One(bytes.f64()?),
                MEMBER => Values::Member(take_bytes(bytes)?),
                PACKED => Values::Packed(take_bytes(bytes)?),
                _ => return None,
            };
            Entry::Sample(number, Reading { values, rate, timestamp })
        }
        tag if tag & BRIEF != 0 => {
            let number = bytes.number(tag)?;
            let mut value = [0; 8];
            let length = value.len().checked_sub(usize::from(tag & ZEROS))?;
            value[..length].copy_from_slice(bytes.take(length)?);
            Entry::Sample(number, brief(Values::One(f64::from_be_bytes(value))))
        }
        ONE_MEMBER => {
            let (number, length) = (bytes.u32()?, bytes.u8()?);
            Entry::Sample(number, brief(Values::Member(bytes.take(length.into())?)))
        }
        _ => return None,
    });
    Some(())
}

pub(super) fn put_identity(out: &mut Vec<u8>, context: &Context) {
    out.push(context.kind() as u8);
    out.extend(context.source().0.to_le_bytes());
    // Parts have no newlines.
    let length = context.parts().map(|part| part.len() + 1).sum::<usize>() - 1;
    out.extend((length as u32).to_le_bytes());
    for (number, part) in context.parts().enumerate() {
        out.extend((number > 0).then_some(b'\n'));
        out.extend(part.as_bytes());
    }
}

pub(super) fn take_identity(bytes: &mut Bytes<'_>) -> Option<Context> {
    let kind = *Kind::ALL.get(usize::from(bytes.u8()?))?;
    let product = Product(bytes.u16()?);
    let mut parts = take_text(bytes)?.split('\n');
    let (name, host) = (parts.next()?, parts.next()?);
    Some(Context::new(name, kind, host, parts.map(str::to_owned).collect(), product))
}

/// As versions before 5 wrote it.
#[cfg(test)]
pub(super) fn put_context(out: &mut Vec<u8>, context: &Context) {
    out.push(context.kind() as u8);
    out.extend(context.source().0.to_le_bytes());
    put_bytes(out, context.name().as_bytes());
    put_bytes(out, context.host().as_bytes());
    out.extend((context.tags().count() as u16).to_le_bytes());
    context.tags().for_each(|tag| put_bytes(out, tag.as_bytes()));
}

pub(super) fn take_context(bytes: &mut Bytes<'_>) -> Option<Context> {
    let kind = *Kind::ALL.get(usize::from(bytes.u8()?))?;
    let product = Product(bytes.u16()?);
    let (name, host) = (take_text(bytes)?, take_text(bytes)?);
    let count = bytes.u16()?;
    let mut tags = Vec::new();
    for _ in 0..count {
        tags.push(take_text(bytes)?.to_owned());
    }
    Some(Context::new(name, kind, host, tags, product))
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

fn take_bytes<'a>(bytes: &mut Bytes<'a>) -> Option<&'a [u8]> {
    let length = bytes.u32()? as usize;
    bytes.take(length)
}

pub(super) fn take_text<'a>(bytes: &mut Bytes<'a>) -> Option<&'a str> {
    std::str::from_utf8(take_bytes(bytes)?).ok()
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if self.torn || self.rest.first_chunk().is_none_or(|first| *first == END) {
            // A file that ends with a record was cut there.
            self.torn |= self.rest.len() < END.len();
            return None;
        }
        let record = self.record();
        self.torn = record.is_none();
        record
    }
}

/// The generations that need not be replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    pub sequence: u64,
    /// The latest start of a bucket among them.
    pub start: i64,
    /// Ascending, not touching each other.
    pub ranges: Vec<Range<u64>>,
}

/// Bytes of one of the two slots.
pub const SLOT: usize = 512;

/// Ranges that a slot has room for.
pub const RANGES_MAX: usize = (SLOT - 32) / 16;

impl Released {
    pub fn holds(&self, generation: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(&generation))
    }

    /// Adds a range. What lies before the first one was released by an earlier process, or never
    /// used.
    pub fn add(&mut self, range: Range<u64>) {
        self.ranges.push(range);
        self.ranges.sort_by_key(|range| range.start);
        let ranges = std::mem::take(&mut self.ranges);
        for range in ranges.into_iter().filter(|range| !range.is_empty()) {
            match self.ranges.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => self.ranges.push(range),
            }
        }
    }

    /// Behind the highest generation.
    pub fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.end)
    }

    /// `None` when there are too many ranges.
    pub fn encode(&self) -> Option<[u8; SLOT]> {
        if self.ranges.len() > RANGES_MAX {
            return None;
        }
        let mut covered = Vec::with_capacity(SLOT);
        covered.extend((self.ranges.len() as u32).to_le_bytes());
        covered.extend(self.sequence.to_le_bytes());
        covered.extend(self.start.to_le_bytes());
        for range in &self.ranges {
            covered.extend(range.start.to_le_bytes());
            covered.extend(range.end.to_le_bytes());
        }
        covered.resize(SLOT - 12, 0);
        let mut slot = [0; SLOT];
        slot[..8].copy_from_slice(RELEASED_MAGIC);
        slot[8..12].copy_from_slice(&crc32fast::hash(&covered).to_le_bytes());
        slot[12..].copy_from_slice(&covered);
        Some(slot)
    }

    /// The newer of two slots.
    pub fn decode(file: &[u8]) -> Option<Self> {
        let slots = file.chunks_exact(SLOT).take(2);
        slots.filter_map(Self::decode_slot).max_by_key(|released| released.sequence)
    }

    fn decode_slot(slot: &[u8]) -> Option<Self> {
        let mut bytes = Bytes(slot);
        if bytes.array() != Some(*RELEASED_MAGIC) || bytes.u32()? != crc32fast::hash(bytes.0) {
            return None;
        }
        let (count, sequence, start) = (bytes.u32()?, bytes.u64()?, bytes.i64()?);
        let mut ranges = Vec::new();
        for _ in 0..count.min(RANGES_MAX as u32) {
            ranges.push(bytes.u64()?..bytes.u64()?);
        }
        Some(Self { sequence, start, ranges })
    }
}

/// Bytes that are taken from the front.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    pub(super) fn f64(&mut self) -> Option<f64> {
        self.array().map(f64::from_le_bytes)
    }

    /// The number of a series, in the form that an entry's tag says.
    fn number(&mut self, tag: u8) -> Option<u32> {
        if tag & SHORT_NUMBER != 0 { self.u16().map(u32::from) } else { self.u32() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(seed: u32) -> Header {
        let generation = Generation { number: 7, start: 1000, end: 1010 };
        let name = "udp://127.0.0.1:8125".to_owned();
        let source = Source { name, dialect: Dialect::Statsd, eol_required: true };
        let described = None;
        Header { seed, sequence: 3, generation, source, numbering: 2, described, waiting: true }
    }

    type Batch<'a> = (i64, Vec<Entry<'a>>);

    fn file(seed: u32, batches: &[Batch<'_>]) -> Vec<u8> {
        let mut bytes = header(seed).encode();
        let mut draft = Draft::default();
        for (arrival, entries) in batches {
            draft.clear();
            for entry in entries {
                match entry {
                    Entry::Series(number, context) => {
                        draft.series(number.expect("of this version"), context);
                    }
                    Entry::Sample(number, reading) => draft.sample(*number, kind(reading), reading),
                    Entry::Event(event) => draft.event(event),
                    Entry::Check(check) => draft.check(check),
                    Entry::Waits(waiting) => draft.waits(*waiting),
                    Entry::Taken(id) => draft.taken(*id),
                    Entry::Datagram(..) => unreachable!("of version 1"),
                }
            }
            let length = draft.close();
            bytes.extend(&draft.finish(seed, Time(*arrival), 9)[..length]);
        }
        bytes.extend(END);
        bytes
    }

    const fn kind(reading: &Reading<'_>) -> Kind {
        if let Values::Member(_) = reading.values { Kind::Set } else { Kind::Gauge }
    }

    /// What can be read of a file, and whether it is torn.
    fn read(file: &[u8]) -> Option<(Vec<Batch<'_>>, bool)> {
        let (header, rest) = Header::decode(file).ok()?;
        let mut records = Records::new(&header, rest);
        let batches = records.by_ref().map(|record| {
            assert_eq!(record.batch, 9);
            (record.arrival.0, record.entries)
        });
        let batches = batches.collect();
        Some((batches, records.is_torn()))
    }

    fn sample(values: Values<'_>, rate: f64, timestamp: Option<i64>) -> Entry<'_> {
        Entry::Sample(8, Reading { values, rate, timestamp })
    }

    fn some() -> Vec<Batch<'static>> {
        let tags = vec!["a:b".to_owned(), "c".to_owned()];
        let series = Context::new("name", Kind::Timer, "host", tags, Product(3));
        vec![
            (
                1_000_500,
                vec![
                    Entry::Series(Some(8), series),
                    sample(Values::One(-2.5), 1.0, None),
                    sample(Values::One(4.0), 0.1, Some(900)),
                ],
            ),
            (1_000_501, vec![]),
            (
                1_000_502,
                vec![
                    sample(Values::Member(b"me|mber"), 0.5, None),
                    sample(Values::Packed(b"1:2::3"), 1.0, Some(-1)),
                    Entry::Waits(Waiting { id: 7, bytes: b"x:1|c", truncated: true, line: false }),
                    Entry::Waits(Waiting { id: 8, bytes: b"", truncated: false, line: true }),
                    Entry::Taken(7),
                ],
            ),
        ]
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let file = file(5, &[]);
        assert_eq!(Header::decode(&file).unwrap(), (header(5), &END[..]));
        assert_eq!(Header::decode(&[0; 100]).unwrap_err(), Unreadable::Empty);
        assert_eq!(Header::decode(b"something else of a length").unwrap_err(), Unreadable::Foreign);
        let mut later = file.clone();
        later[8] = VERSION as u8 + 1;
        assert_eq!(Header::decode(&later).unwrap_err(), Unreadable::Version(VERSION + 1));
        for at in 10..file.len() - END.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 4;
            assert_eq!(Header::decode(&damaged).unwrap_err(), Unreadable::Damaged, "byte {at}");
        }
    }

    #[test]
    fn a_file_torn_at_any_byte_gives_what_is_whole() {
        let (whole, all) = (file(5, &some()), some());
        assert_eq!(read(&whole), Some((some(), false)));
        let begin = header(5).encode().len();
        for length in begin..whole.len() {
            let (batches, torn) = read(&whole[..length]).expect("a header");
            assert!(torn, "{length} bytes");
            assert_eq!(batches, all[..batches.len()], "{length} bytes");
        }
    }

    #[test]
    fn a_flipped_bit_gives_nothing_that_was_not_written() {
        let (whole, all) = (file(5, &some()), some());
        for bit in header(5).encode().len() * 8..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (batches, torn) = read(&damaged).expect("a header");
            assert_eq!(batches, all[..batches.len()], "bit {bit}");
            assert!(torn, "bit {bit}");
        }
    }

    #[test]
    fn what_an_earlier_use_left_is_not_read() {
        let earlier = file(5, &some().into_iter().chain(some()).chain(some()).collect::<Vec<_>>());
        for kept in 0..some().len() {
            let mut again = file(6, &some()[..kept]);
            again.extend(&earlier[again.len()..]);
            let (batches, torn) = read(&again).expect("a header");
            assert_eq!((&batches[..], torn), (&some()[..kept], false));
        }
    }

    proptest! {
        #[test]
        fn samples_are_read_as_they_were_written(
            seed: u32,
            samples in prop::collection::vec(
                (any::<u32>(), any::<f64>(), prop::option::of(any::<f64>()), prop::option::of(any::<i64>()), prop::option::of((any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)))),
                0..20,
            ),
        ) {
            let drafted = samples.iter().map(entry).collect();
            let file = file(seed, &[(5, drafted)]);
            let (batches, torn) = read(&file).expect("a header");
            prop_assert!(!torn && batches[0].1.len() == samples.len());
            let written: Vec<_> = samples.iter().map(entry).collect();
            for of in [Kind::Set, Kind::Gauge] {
                let found = batches[0].1.iter().filter_map(|entry| bits(entry, of));
                prop_assert!(found.eq(written.iter().filter_map(|entry| bits(entry, of))));
            }
        }
    }

    type Written = (u32, f64, Option<f64>, Option<i64>, Option<(bool, Vec<u8>)>);

    fn entry((number, value, rate, time, text): &Written) -> Entry<'_> {
        let values = match text {
            None => Values::One(*value),
            Some((true, text)) => Values::Member(text),
            Some((false, text)) => Values::Packed(text),
        };
        match sample(values, rate.unwrap_or(1.0), *time) {
            Entry::Sample(_, reading) => Entry::Sample(*number, reading),
            other => other,
        }
    }

    /// What a sample of this kind says. As bits: a NaN equals nothing.
    fn bits(entry: &Entry<'_>, of: Kind) -> Option<String> {
        let Entry::Sample(number, reading) = entry else { panic!("{entry:?}") };
        let values = match reading.values {
            Values::One(value) => value.to_bits().to_string(),
            other => format!("{other:?}"),
        };
        (kind(reading) == of).then(|| {
            format!("{number} {} {:?} {values}", reading.rate.to_bits(), reading.timestamp)
        })
    }

    /// A file of an earlier version with one record.
    fn earlier(version: u8, change: impl Fn(&mut Vec<u8>), covered: &[u8], seed: u32) -> Vec<u8> {
        let mut file = header(seed).encode();
        change(&mut file);
        file[8] = version;
        let length = file.len() as u16;
        file[10..12].copy_from_slice(&length.to_le_bytes());
        let checked = crc32fast::hash(&file[PREFIX..]);
        file[12..16].copy_from_slice(&checked.to_le_bytes());
        file.extend((covered.len() as u32).to_le_bytes());
        file.extend(checksum(seed, covered).to_le_bytes());
        file.extend(covered);
        file.extend(END);
        file
    }

    #[test]
    fn series_and_values_of_the_fourth_version_are_read() {
        let tags = vec!["a:b".to_owned(), "c".to_owned()];
        let series = Context::new("name", Kind::Timer, "host", tags, Product(3));
        let mut covered = vec![KIND_ENTRIES, 0, 0, 0];
        covered.extend(77_i64.to_le_bytes());
        covered.extend(9_u64.to_le_bytes());
        covered.push(CONTEXT);
        covered.extend(8_u32.to_le_bytes());
        put_context(&mut covered, &series);
        covered.extend([BRIEF | SHORT_NUMBER | 6, 8, 0]);
        covered.extend(&0.5_f64.to_be_bytes()[..2]);
        let file = earlier(4, |_| (), &covered, 5);
        let entries = vec![Entry::Series(Some(8), series), sample(Values::One(0.5), 1.0, None)];
        assert_eq!(read(&file), Some((vec![(77, entries)], false)));
    }

    #[test]
    fn series_without_numbers_of_the_third_version_are_read() {
        let series = Context::new("name", Kind::Timer, "host", Vec::new(), Product(3));
        let mut covered = vec![KIND_ENTRIES, 0, 0, 0];
        covered.extend(77_i64.to_le_bytes());
        covered.extend(9_u64.to_le_bytes());
        covered.push(NEXT_SERIES);
        put_context(&mut covered, &series);
        let file = earlier(3, |header| header.extend(4_u32.to_le_bytes()), &covered, 5);
        assert_eq!(Header::decode(&file).expect("a header").0.described, Some(4));
        assert_eq!(read(&file), Some((vec![(77, vec![Entry::Series(None, series)])], false)));
    }

    /// As version 1 wrote it.
    #[test]
    fn datagrams_of_the_first_version_are_read() {
        let (datagram, seed) = (b"a:1|c", 5_u32);
        let mut covered = vec![KIND_DATAGRAMS, 0, 1, 0];
        covered.extend(77_i64.to_le_bytes());
        covered.extend(9_u64.to_le_bytes());
        covered.extend((datagram.len() as u32 | TRUNCATED).to_le_bytes());
        covered.extend(0_u32.to_le_bytes());
        covered.extend(datagram);
        let file = earlier(1, |header| header.truncate(header.len() - 9), &covered, seed);
        let (found, _) = Header::decode(&file).expect("a header");
        assert_eq!((found.numbering, found.waiting), (3, false));
        let expected = vec![(77, vec![Entry::Datagram(datagram, true)])];
        assert_eq!(read(&file), Some((expected, false)));
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "it is a list of ranges")]
    fn released_ranges_grow_together() {
        let mut released = Released::default();
        for (range, expected) in [
            (5..7, vec![5..7]),
            (0..3, vec![0..3, 5..7]),
            (9..9, vec![0..3, 5..7]),
            (3..4, vec![0..4, 5..7]),
            (2..6, vec![0..7]),
        ] {
            released.add(range.clone());
            assert_eq!(released.ranges, expected, "{range:?}");
        }
        assert!(released.holds(6) && !released.holds(7));
        assert_eq!(released.end(), 7);
    }

    #[test]
    #[allow(clippy::single_range_in_vec_init, reason = "it is a list of ranges")]
    fn the_newer_slot_counts_and_a_torn_one_does_not() {
        let one = Released { sequence: 1, start: 1000, ranges: vec![0..5] };
        let two = Released { sequence: 2, start: 1010, ranges: vec![0..5, 7..9] };
        let mut file = [two.encode().unwrap(), one.encode().unwrap()].concat();
        assert_eq!(Released::decode(&file), Some(two));
        for at in 0..SLOT {
            file[at] ^= 1;
            assert_eq!(Released::decode(&file), Some(one.clone()), "byte {at}");
            file[at] ^= 1;
        }
        assert_eq!(Released::decode(&[0; 2 * SLOT]), None);
        let ranges: Vec<_> = (0..=RANGES_MAX as u64).map(|n| 2 * n..2 * n + 1).collect();
        let full = Released { ranges: ranges[1..].to_vec(), ..one.clone() };
        assert_eq!(Released::decode(&full.encode().unwrap()), Some(full));
        assert_eq!(Released { ranges, ..one }.encode(), None, "no room");
    }
}
