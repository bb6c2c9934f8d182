//! What must hold for any input: the bodies of the fuzz targets, kept here so that the tests replay
//! their corpora without a fuzzer. Each function panics where its rule is broken.

use crate::parse::{self, Options};
use crate::sample::{Dialect, Message, split_tags};
use crate::stream::{FrameError, Framer};
use crate::{grammar, parse::Datagram};

/// Greatest payload of the streams under test: small, so that limits are met often.
const LIMIT: usize = 32;

/// The first byte chooses the options, the rest is a datagram. The fast path agrees with the
/// grammar on each line, and the original's dialect reads it without a panic.
pub fn datagram(data: &[u8]) {
    let Some((&flags, data)) = data.split_first() else { return };
    let options = Options {
        dialect: Dialect::Datadog,
        origin_fields: flags & 1 == 0,
        timestamps: flags & 2 == 0,
    };
    for line in parse::lines(data) {
        agree(line, options);
        parse::statsd_line(line, &mut |sample| {
            if let Ok(sample) = sample {
                let mut clean = String::new();
                parse::sanitise_key(sample.name, &mut clean);
                sample.tags().for_each(|tag| parse::sanitise_tag(tag, &mut clean));
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.;=-:".contains(&b);
                assert!(clean.bytes().all(plain), "{clean}");
            }
        });
    }
    // The complete lines and the tail are all lines.
    let cut = Datagram::new(data);
    assert!(parse::lines(data).eq(parse::lines(cut.complete).chain(cut.tail)));
}

/// What follows `_e{`.
pub fn event(data: &[u8]) {
    agree(&[b"_e{", data].concat(), Options { origin_fields: true, ..Options::default() });
}

/// What follows `_sc`.
pub fn check(data: &[u8]) {
    agree(&[b"_sc", data].concat(), Options { origin_fields: true, ..Options::default() });
}

/// The first byte chooses the sizes of the pieces that the rest comes in. They change nothing.
pub fn stream(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else { return };
    let size = usize::from(first / 2) + 1;
    let framer = || if first % 2 == 0 { Framer::new(LIMIT) } else { Framer::lines(LIMIT) };
    assert_eq!(read(framer(), data, size), read(framer(), data, usize::MAX));
}

/// Debug output tells NaN from other numbers, where `==` does not.
fn agree(line: &[u8], options: Options) {
    let fast = parse::line(line, options);
    let defined = grammar::message(line, options);
    assert_eq!(format!("{fast:?}"), format!("{defined:?}"), "{}", line.escape_ascii());
    if let Ok(message) = fast {
        read_on(message);
    }
}

/// What is done later with the parts of a message.
fn read_on(message: Message<'_>) {
    let (tags, origin) = match message {
        Message::Metric(sample) => (sample.tags, sample.origin),
        Message::Check(check) => (check.tags, check.origin),
        Message::Event(event) => {
            assert!(parse::unescape(event.text).len() <= event.text.len());
            (event.tags, event.origin)
        }
    };
    assert!(split_tags(tags).all(|tag| !tag.contains(&b'|')));
    assert!(parse::parse_local(origin.local).container_id.len() <= origin.local.len());
    assert!(parse::parse_external(origin.external).pod_uid.len() <= origin.external.len());
}

/// Text is cut into its lines: how many come together depends on the pieces.
fn read(mut framer: Framer, mut data: &[u8], size: usize) -> Vec<Result<Vec<u8>, FrameError>> {
    let mut found = Vec::new();
    let mut closed = false;
    while !closed {
        let space = framer.space();
        let (piece, rest) = data.split_at(data.len().min(size).min(space.len()));
        space[..piece.len()].copy_from_slice(piece);
        framer.filled(piece.len());
        if data.is_empty() {
            framer.end();
            closed = true;
        }
        data = rest;
        while let Some(payload) = framer.payload() {
            assert!(payload.is_ok_and(|payload| payload.len() <= LIMIT + 1) || payload.is_err());
            closed |= matches!(payload, Err(FrameError::FrameTooLong(_)));
            match payload {
                Ok(payload) => found
                    .extend(payload.split_inclusive(|b| *b == b'\n').map(|line| Ok(line.to_vec()))),
                Err(error) => found.push(Err(error)),
            }
        }
    }
    found
}
