//! The bytes of the journal's files. Pure, and safe on any input.
//!
//! ```text
//! segment   header, records, 4 zero bytes; then whatever the file held before
//! header    magic 8 | version u16 | length u16 | CRC-32 of what follows u32
//!           | seed u32 | sequence u64 | generation u64 | start i64 | end i64
//!           | dialect u8 | eol required u8 | length of the name u16 | name of the listener
//! record    length of what follows the checksum u32 | CRC-32 of that, begun at the seed, u32
//!           | kind u8 | 0 u8 | datagrams u16 | arrival i64 | batch of the receiver u64, or 0
//!           | for each datagram: length u32, its top bit set if truncated | origin u32
//!           | the bytes of the datagrams
//! released  two slots of 512 bytes, written in turn
//! slot      magic 8 | CRC-32 of what follows u32 | ranges u32 | sequence u64 | start i64
//!           | for each range of generations: first u64 | behind the last u64
//! ```
//!
//! Numbers are little-endian. Files are used again without being emptied, so each use of a segment
//! has a seed of its own, and no older record has a checksum that fits. A record of kind 2 says what
//! an origin's number means; its bytes are for those who know origins.

use std::ops::Range;

use crate::sample::Dialect;
use crate::shard::Generation;
use crate::sys::{Datagram, Sender};
use crate::time::Time;

const SEGMENT_MAGIC: &[u8; 8] = b"tallyd\0J";
const RELEASED_MAGIC: &[u8; 8] = b"tallyd\0R";
const VERSION: u16 = 1;

/// Bytes before those that a header's checksum covers.
const PREFIX: usize = 16;
/// Bytes before those that a record's checksum covers.
const RECORD_PREFIX: usize = 8;
/// Bytes of a record before those of its datagrams.
const RECORD_FIXED: usize = 20;
const PER_DATAGRAM: usize = 8;
const TRUNCATED: u32 = 1 << 31;

/// What stands behind the last record.
pub const END: [u8; 4] = [0; 4];

/// Datagrams of a record.
pub const DATAGRAMS_MAX: usize = u16::MAX as usize;

const KIND_DATAGRAMS: u8 = 1;
const KIND_ORIGIN: u8 = 2;

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
        if version != VERSION {
            return Err(Unreadable::Version(version));
        }
        Self::decode_covered(bytes, file).ok_or(Unreadable::Damaged)
    }

    fn decode_covered<'a>(mut bytes: Bytes<'a>, file: &'a [u8]) -> Option<(Self, &'a [u8])> {
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
        Some((Self { seed, sequence, generation, source }, &file[PREFIX + covered.len()..]))
    }
}

/// Bytes that a record of such datagrams takes.
pub fn record_length(datagrams: &[Datagram<'_>]) -> usize {
    let bytes: usize = datagrams.iter().map(|datagram| datagram.bytes.len()).sum();
    RECORD_PREFIX + RECORD_FIXED + datagrams.len() * PER_DATAGRAM + bytes
}

/// Writes all of a record but the datagrams' own bytes, which follow it in the file.
pub fn write_record_head(
    seed: u32,
    arrival: Time,
    batch: u64,
    datagrams: &[Datagram<'_>],
    out: &mut Vec<u8>,
) {
    debug_assert!(datagrams.len() <= DATAGRAMS_MAX);
    out.clear();
    out.extend(((record_length(datagrams) - RECORD_PREFIX) as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend([KIND_DATAGRAMS, 0]);
    out.extend((datagrams.len() as u16).to_le_bytes());
    out.extend(arrival.0.to_le_bytes());
    out.extend(batch.to_le_bytes());
    for datagram in datagrams {
        let truncated = if datagram.truncated { TRUNCATED } else { 0 };
        out.extend((datagram.bytes.len() as u32 | truncated).to_le_bytes());
        out.extend(0_u32.to_le_bytes());
    }
    let mut checksum = crc32fast::Hasher::new_with_initial(seed);
    checksum.update(&out[RECORD_PREFIX..]);
    datagrams.iter().for_each(|datagram| checksum.update(datagram.bytes));
    out[4..RECORD_PREFIX].copy_from_slice(&checksum.finalize().to_le_bytes());
}

/// One batch of datagrams that arrived together.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    pub arrival: Time,
    /// The number that the receiver gave to the batch, or 0.
    pub batch: u64,
    pub datagrams: Vec<Datagram<'a>>,
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
        let (length, checksum) = (bytes.u32()? as usize, bytes.u32()?);
        let covered = bytes.take(length)?;
        let mut hasher = crc32fast::Hasher::new_with_initial(self.seed);
        hasher.update(covered);
        if hasher.finalize() != checksum {
            return None;
        }
        let rest = bytes.0;
        let mut bytes = Bytes(covered);
        let (kind, _, count) = (bytes.u8()?, bytes.u8()?, usize::from(bytes.u16()?));
        let (arrival, batch) = (Time(bytes.i64()?), bytes.u64()?);
        let mut record = Record { arrival, batch, datagrams: Vec::new() };
        match kind {
            KIND_DATAGRAMS => {
                let mut table = Bytes(bytes.take(count * PER_DATAGRAM)?);
                while let (Some(length), Some(_origin)) = (table.u32(), table.u32()) {
                    let truncated = length & TRUNCATED != 0;
                    let bytes = bytes.take((length & !TRUNCATED) as usize)?;
                    record.datagrams.push(Datagram { bytes, truncated, sender: Sender::Unknown });
                }
            }
            KIND_ORIGIN => {}
            _ => return None,
        }
        self.rest = rest;
        Some(record)
    }
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(seed: u32) -> Header {
        let generation = Generation { number: 7, start: 1000, end: 1010 };
        let name = "udp://127.0.0.1:8125".to_owned();
        let source = Source { name, dialect: Dialect::Statsd, eol_required: true };
        Header { seed, sequence: 3, generation, source }
    }

    type Batch = (i64, Vec<(Vec<u8>, bool)>);

    fn file(seed: u32, batches: &[Batch]) -> Vec<u8> {
        let mut bytes = header(seed).encode();
        let mut head = Vec::new();
        for (arrival, batch) in batches {
            let datagrams: Vec<_> = batch
                .iter()
                .map(|(bytes, truncated)| Datagram {
                    bytes,
                    truncated: *truncated,
                    sender: Sender::Unknown,
                })
                .collect();
            let before = bytes.len();
            write_record_head(seed, Time(*arrival), 9, &datagrams, &mut head);
            bytes.extend(&head);
            batch.iter().for_each(|(datagram, _)| bytes.extend(datagram));
            assert_eq!(bytes.len() - before, record_length(&datagrams));
        }
        bytes.extend(END);
        bytes
    }

    /// What can be read of a file, and whether it is torn.
    fn read(file: &[u8]) -> Option<(Vec<Batch>, bool)> {
        let (header, rest) = Header::decode(file).ok()?;
        let mut records = Records::new(&header, rest);
        let batches = records
            .by_ref()
            .map(|record| {
                assert_eq!(record.batch, 9);
                let datagrams = record.datagrams.iter();
                (record.arrival.0, datagrams.map(|d| (d.bytes.to_vec(), d.truncated)).collect())
            })
            .collect();
        Some((batches, records.is_torn()))
    }

    fn some() -> Vec<Batch> {
        vec![
            (1_000_500, vec![(b"a:1|c".to_vec(), false), (b"b:2|g".to_vec(), true)]),
            (1_000_501, vec![]),
            (1_000_502, vec![(vec![], false), (b"c:3|s\n".to_vec(), false)]),
        ]
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let file = file(5, &[]);
        assert_eq!(Header::decode(&file).unwrap(), (header(5), &END[..]));
        assert_eq!(Header::decode(&[0; 100]).unwrap_err(), Unreadable::Empty);
        assert_eq!(Header::decode(b"something else of a length").unwrap_err(), Unreadable::Foreign);
        let mut later = file.clone();
        later[8] = 2;
        assert_eq!(Header::decode(&later).unwrap_err(), Unreadable::Version(2));
        for at in 10..file.len() - END.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 4;
            assert_eq!(Header::decode(&damaged).unwrap_err(), Unreadable::Damaged, "byte {at}");
        }
    }

    #[test]
    fn a_file_torn_at_any_byte_gives_what_is_whole() {
        let (whole, all) = (file(5, &some()), some());
        assert_eq!(read(&whole), Some((all.clone(), false)));
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
        let earlier = file(5, &[some(), some(), some()].concat());
        for kept in 0..some().len() {
            let mut again = file(6, &some()[..kept]);
            again.extend(&earlier[again.len()..]);
            assert_eq!(read(&again), Some((some()[..kept].to_vec(), false)));
        }
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(
            seed: u32,
            batches in prop::collection::vec(
                (any::<i64>(), prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 0..5)),
                0..5,
            ),
        ) {
            prop_assert_eq!(read(&file(seed, &batches)), Some((batches, false)));
        }
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
