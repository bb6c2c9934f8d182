//! What a file of the spool holds.
//!
//! ```text
//! magic 8 | version u16 | header length u16 | CRC-32 of what follows u32
//! | points u64 | body length u64 | kind length u8, kind | coding length u8, coding | body
//! ```
//!
//! Numbers are little-endian. The checksum is for disks that forget.

use crate::encode::{Body, Coding, Payload};

const MAGIC: &[u8; 8] = b"tallyd\0P";
const VERSION: u16 = 1;

/// Bytes before those that the checksum covers.
const PREFIX: usize = 16;

/// What stands before the body in a file.
pub fn header(payload: &Payload, body: &[u8]) -> Vec<u8> {
    let mut covered = Vec::with_capacity(64);
    covered.extend_from_slice(&payload.points.to_le_bytes());
    covered.extend_from_slice(&(body.len() as u64).to_le_bytes());
    for word in [payload.kind, payload.coding.word()] {
        covered.push(word.len() as u8);
        covered.extend_from_slice(word.as_bytes());
    }
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&covered);
    checksum.update(body);
    let mut header = Vec::with_capacity(PREFIX + covered.len());
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&((PREFIX + covered.len()) as u16).to_le_bytes());
    header.extend_from_slice(&checksum.finalize().to_le_bytes());
    header.extend_from_slice(&covered);
    header
}

/// Reads the content of a file, or says why it cannot be.
pub fn parse(content: &[u8], kinds: &[&'static str]) -> Result<Payload, String> {
    let short = || "it is cut short".to_owned();
    let rest = content.strip_prefix(MAGIC).ok_or("it is no payload of tallyd's")?;
    let (version, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let version = u16::from_le_bytes(*version);
    if version != VERSION {
        return Err(format!(
            "it has version {version}, which this version of tallyd does not know"
        ));
    }
    let (_, rest) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    let (checksum, rest) = rest.split_first_chunk().ok_or_else(short)?;
    if crc32fast::hash(rest) != u32::from_le_bytes(*checksum) {
        return Err("its checksum is wrong".to_owned());
    }
    let (points, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk().ok_or_else(short)?;
    let (kind, rest) = word(rest).ok_or_else(short)?;
    let (coding, body) = word(rest).ok_or_else(short)?;
    if u64::from_le_bytes(*length) != body.len() as u64 {
        return Err(short());
    }
    let kind = kinds.iter().find(|known| known.as_bytes() == kind);
    let coding = Coding::ALL.into_iter().find(|known| known.word().as_bytes() == coding);
    Ok(Payload {
        kind: kind.ok_or("its kind is unknown")?,
        points: u64::from_le_bytes(*points),
        coding: coding.ok_or("its coding is unknown")?,
        body: Body::Bytes(body.to_vec()),
    })
}

/// A word behind its length.
fn word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: &[&str] = &["series", "events"];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn only_what_was_written_is_read(
            body in prop::collection::vec(any::<u8>(), 0..100),
            points: u64,
            at: prop::sample::Index,
            flip in 1..=255_u8,
            noise in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let payload =
                Payload { kind: "events", points, coding: Coding::Gzip, body: Body::Bytes(body.clone()) };
            let mut file = header(&payload, &body);
            file.extend_from_slice(&body);
            let read = parse(&file, KINDS).unwrap();
            prop_assert_eq!((read.kind, read.points, read.coding), ("events", points, Coding::Gzip));
            prop_assert!(matches!(read.body, Body::Bytes(read) if read == body));
            for end in 0..file.len() {
                prop_assert!(parse(&file[..end], KINDS).is_err());
            }
            let at = at.index(file.len());
            file[at] ^= flip;
            // The header's own length is for later versions.
            prop_assert!((10..12).contains(&at) || parse(&file, KINDS).is_err());
            // Even a right checksum vouches for nothing.
            let mut forged = MAGIC.to_vec();
            forged.extend_from_slice(&[1, 0, 0, 0]);
            forged.extend_from_slice(&crc32fast::hash(&noise).to_le_bytes());
            forged.extend_from_slice(&noise);
            prop_assert!(parse(&forged, KINDS).is_err());
        }
    }
}
