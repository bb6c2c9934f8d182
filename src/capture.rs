//! Captured traffic: the Agent's capture file, read and written.
//!
//! A file is a header of eight bytes, records, and the state of the tagger; it may be compressed
//! with zstd as a whole. A record is its length as 32 bits, little endian, and a protobuf message.
//! A length of zero ends the records. Source: the Agent's `comp/dogstatsd/replay` and its
//! `UnixDogstatsdMsg`.

use std::io::{self, Read, Write};

use prost::Message as _;

use crate::encode::protobuf::Message;

/// `F0` and the version, 3: times are in nanoseconds, and a state follows the records.
const HEADER: [u8; 8] = [0xd4, 0x74, 0xd0, 0x60, 0xf3, 0xff, 0x00, 0x00];

/// Versions that can be read; below 3 times are in seconds.
const VERSIONS: std::ops::RangeInclusive<u8> = 1..=3;

const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Longest record: a datagram has at most 64 KiB.
const RECORD_MAX: usize = 1 << 20;

/// One datagram or frame, as it arrived.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Record {
    /// Nanoseconds since the Unix epoch.
    #[prost(int64, tag = "1")]
    pub time: i64,
    #[prost(int32, tag = "2")]
    pub size: i32,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// Of the sender; 0 when it is not known.
    #[prost(int32, tag = "4")]
    pub pid: i32,
    #[prost(int32, tag = "5")]
    pub ancillary_size: i32,
    /// Control messages of the socket.
    #[prost(bytes = "vec", tag = "6")]
    pub ancillary: Vec<u8>,
}

impl Record {
    pub fn new(time_ns: i64, payload: &[u8], pid: i32) -> Self {
        Self {
            time: time_ns,
            size: payload.len() as i32,
            payload: payload.to_vec(),
            pid,
            ..Self::default()
        }
    }

    /// With its length, as it stands in a file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut record = vec![0; 4];
        let mut message = Message(&mut record);
        message.int64(1, self.time);
        message.int64(2, i64::from(self.size));
        message.bytes(3, &self.payload);
        message.int64(4, i64::from(self.pid));
        message.int64(5, i64::from(self.ancillary_size));
        message.bytes(6, &self.ancillary);
        let length = (record.len() - 4) as u32;
        record[..4].copy_from_slice(&length.to_le_bytes());
        record
    }
}

/// What stands before the records.
pub const fn header() -> &'static [u8] {
    &HEADER
}

/// What stands behind them: no more records, and a state without entities.
pub const fn trailer() -> &'static [u8] {
    &[0; 8]
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("not a capture: it does not begin with D4 74 D0 60")]
    NoCapture,
    #[error("a capture of version {0}, of which only 1 to 3 are known")]
    Version(u8),
    #[error("the record at byte {at} cannot be read: {problem}")]
    Record { at: usize, problem: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the records of a file. One that ends within a record, as when its writer was killed, has
/// those before it.
///
/// # Errors
/// When it is no capture of a known version, or a record is broken.
pub fn read(mut file: impl Read) -> Result<Vec<Record>, CaptureError> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if bytes.starts_with(&ZSTD) {
        bytes = zstd::decode_all(bytes.as_slice())?;
    }
    let Some(header) = bytes.first_chunk::<8>() else { return Err(CaptureError::NoCapture) };
    if header[..4] != HEADER[..4] || header[4] & 0xf0 != 0xf0 {
        return Err(CaptureError::NoCapture);
    }
    let version = header[4] & 0x0f;
    if !VERSIONS.contains(&version) {
        return Err(CaptureError::Version(version));
    }
    let unit = if version < 3 { 1_000_000_000 } else { 1 };
    let mut records = Vec::new();
    let mut at = header.len();
    while let Some(length) = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()) {
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > RECORD_MAX {
            break;
        }
        let Some(record) = bytes.get(at + 4..at + 4 + length) else { break };
        let problem =
            |error: prost::DecodeError| CaptureError::Record { at, problem: error.to_string() };
        let mut record = Record::decode(record).map_err(problem)?;
        record.time = record.time.saturating_mul(unit);
        // The Agent's buffers are longer than what is in them.
        record.payload.truncate(usize::try_from(record.size).unwrap_or(0));
        records.push(record);
        at += 4 + length;
    }
    Ok(records)
}

/// Writes a whole capture.
///
/// # Errors
/// Those of the writer.
pub fn write(mut to: impl Write, records: impl Iterator<Item = Record>) -> io::Result<()> {
    to.write_all(header())?;
    for record in records {
        to.write_all(&record.bytes())?;
    }
    to.write_all(trailer())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        vec![
            Record::new(1_700_000_000_000_000_001, b"a:1|c\nb:2|g", 42),
            Record::new(1_700_000_000_500_000_000, b"", 0),
            Record {
                ancillary: vec![1, 2, 3],
                ancillary_size: 3,
                ..Record::new(7, b"\xff\x00", -1)
            },
        ]
    }

    #[test]
    fn what_is_written_is_read_compressed_or_not() {
        let mut file = Vec::new();
        write(&mut file, records().into_iter()).unwrap();
        assert_eq!(read(file.as_slice()).unwrap(), records());
        let compressed = zstd::encode_all(file.as_slice(), 3).unwrap();
        assert_eq!(read(compressed.as_slice()).unwrap(), records());
        // Judged by a library's encoder.
        for record in records() {
            assert_eq!(record.bytes()[4..], record.encode_to_vec());
        }
    }

    #[test]
    fn a_file_by_the_letter() {
        let mut file = vec![0xd4, 0x74, 0xd0, 0x60, 0xf2, 0xff, 0, 0];
        // Time 5 s, size 1, payload "ab" of which one byte counts, pid 300.
        let record = [8, 5, 16, 1, 26, 2, b'a', b'b', 32, 0xac, 2];
        file.extend((record.len() as u32).to_le_bytes());
        file.extend(record);
        file.extend([0; 4]);
        file.extend(b"state");
        file.extend(5u32.to_le_bytes());
        assert_eq!(read(file.as_slice()).unwrap(), [Record::new(5_000_000_000, b"a", 300)]);
        let whole = file.len();
        for cut in 8..whole {
            assert!(read(&file[..cut]).is_ok(), "a file that ends at {cut}");
        }
    }

    #[test]
    fn what_is_no_capture_says_so() {
        for (bytes, expected) in [
            (&b""[..], "not a capture"),
            (b"a:1|c\nb:2|c", "not a capture"),
            (&[0xd4, 0x74, 0xd0, 0x60, 0xf9, 0xff, 0, 0], "a capture of version 9"),
            (
                &[0xd4, 0x74, 0xd0, 0x60, 0xf3, 0xff, 0, 0, 2, 0, 0, 0, 0xff, 0xff],
                "the record at byte 8 cannot be read",
            ),
        ] {
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
