//! Framing of stream connections: which bytes belong together. No I/O.
//!
//! DogStatsD clients send frames, a length of four bytes (little-endian) before each payload, which
//! may hold many lines. Clients of the original statsd send newline text, on Unix stream sockets
//! too: their first four bytes would be a length of half a gigabyte and more, and tell them apart.

use std::ops::Range;

use memchr::{memchr, memrchr};
use thiserror::Error;

/// Bytes of the length before a frame.
const HEADER: usize = 4;

/// The buffer of one connection, of a fixed size, and the way it is cut up.
///
/// Take what is there with [`Framer::payload`] until it gives `None`, read from the connection into
/// [`Framer::space`], tell how much with [`Framer::filled`], or with [`Framer::end`] that no more
/// will come; and so on.
#[derive(Debug)]
pub struct Framer {
    buffer: Box<[u8]>,
    cut: Cut,
}

/// How far a buffer has been cut up.
#[derive(Clone, Debug)]
struct Cut {
    /// What has been read and not yet given out.
    unread: Range<usize>,
    limit: usize,
    mode: Mode,
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Fewer than four bytes have come.
    Unknown,
    Frames,
    Lines,
    /// In a line that is too long.
    Skipping,
    Closed,
}

/// Bytes that cannot be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// What follows cannot be told apart any more: close the connection.
    #[error("a frame of {0} bytes is longer than the buffer")]
    FrameTooLong(u32),
    /// The line is dropped, reading goes on behind it.
    #[error("a line is longer than the buffer")]
    LineTooLong,
    /// The connection ended within a frame or its length, after so many bytes of these.
    #[error("the connection ended within a frame, after {0} bytes of it")]
    Unfinished(usize),
}

impl Framer {
    /// For Unix stream sockets: frames or newline text, as the first bytes tell. `limit` is the
    /// greatest length of a payload, and of a line without its newline.
    pub fn new(limit: usize) -> Self {
        let buffer = vec![0; limit.saturating_add(HEADER)].into_boxed_slice();
        Self { buffer, cut: Cut { unread: 0..0, limit, mode: Mode::Unknown, ended: false } }
    }

    /// For TCP and standard input: always newline text.
    pub fn lines(limit: usize) -> Self {
        let mut framer = Self::new(limit);
        framer.cut.mode = Mode::Lines;
        framer
    }

    /// Where to read the connection's next bytes to. Never empty after [`Framer::payload`] has
    /// given `None`.
    pub fn space(&mut self) -> &mut [u8] {
        let Self { buffer, cut: Cut { unread, .. } } = self;
        buffer.copy_within(unread.clone(), 0);
        *unread = 0..unread.len();
        &mut buffer[unread.end..]
    }

    /// As [`Framer::space`]; before it what has come and was not given out yet, and how it is cut
    /// up: what [`Framer::resume`] takes.
    pub fn kept_and_space(&mut self) -> (&[u8], u32, &mut [u8]) {
        self.space();
        let (kept, space) = self.buffer.split_at_mut(self.cut.unread.end);
        (kept, self.cut.mode as u32, space)
    }

    /// One that goes on where another was that had kept this, with the bytes that came later behind
    /// it. A form that no framer tells is taken for one that has not begun.
    pub fn resume(bytes: &[u8], form: u64) -> Self {
        let modes = [Mode::Unknown, Mode::Frames, Mode::Lines, Mode::Skipping, Mode::Closed];
        let mode = modes.into_iter().find(|mode| *mode as u64 == form).unwrap_or(Mode::Unknown);
        let unread = 0..bytes.len();
        let cut = Cut { unread, limit: bytes.len(), mode, ended: false };
        Self { buffer: bytes.into(), cut }
    }

    /// Tells how many bytes have been put at the beginning of [`Framer::space`].
    pub fn filled(&mut self, bytes: usize) {
        let end = &mut self.cut.unread.end;
        *end = end.saturating_add(bytes).min(self.buffer.len());
    }

    /// Tells that the connection has ended: what is left is a last line, or an unfinished frame.
    pub fn end(&mut self) {
        self.cut.ended = true;
    }

    /// The next payload: the content of a frame, or as many lines as have come, each with its
    /// newline. Only the last line before the end may lack it, and is then given out alone. `None`
    /// asks for more bytes, or tells that nothing is left.
    pub fn payload(&mut self) -> Option<Result<&[u8], FrameError>> {
        self.payloads().next()
    }

    /// Every payload that is there, as [`Framer::payload`] gives them.
    pub fn payloads(&mut self) -> impl Iterator<Item = Result<&[u8], FrameError>> {
        let Self { buffer, cut } = self;
        let buffer = &**buffer;
        std::iter::from_fn(move || Some(cut.next(buffer)?.map(|range| &buffer[range])))
    }
}

impl Cut {
    fn next(&mut self, buffer: &[u8]) -> Option<Result<Range<usize>, FrameError>> {
        if self.mode == Mode::Unknown {
            self.mode = self.recognise(buffer)?;
        }
        match self.mode {
            Mode::Frames => self.frame(buffer),
            Mode::Lines | Mode::Skipping => self.text(buffer),
            Mode::Unknown | Mode::Closed => None,
        }
    }

    /// Text is what could not be a length anyway.
    fn recognise(&self, buffer: &[u8]) -> Option<Mode> {
        let bytes = &buffer[self.unread.clone()];
        let text = match bytes.first_chunk::<HEADER>() {
            Some(first) => length(*first) > self.limit && is_text(first),
            None if self.ended => is_text(bytes),
            None => return None,
        };
        Some(if text { Mode::Lines } else { Mode::Frames })
    }

    fn frame(&mut self, buffer: &[u8]) -> Option<Result<Range<usize>, FrameError>> {
        loop {
            let unread = &buffer[self.unread.clone()];
            let Some(header) = unread.first_chunk::<HEADER>() else { return self.unfinished() };
            let length = length(*header);
            if length > self.limit {
                self.close();
                return Some(Err(FrameError::FrameTooLong(length as u32)));
            }
            let end = HEADER + length;
            if end > unread.len() {
                return self.unfinished();
            }
            let found = self.take(end);
            // The Agent closes the connection at an empty frame; there is no reason to.
            if length > 0 {
                return Some(Ok(found.start + HEADER..found.end));
            }
        }
    }

    fn unfinished(&mut self) -> Option<Result<Range<usize>, FrameError>> {
        let left = self.unread.len();
        if !self.ended || left == 0 {
            return None;
        }
        self.close();
        Some(Err(FrameError::Unfinished(left)))
    }

    fn text(&mut self, buffer: &[u8]) -> Option<Result<Range<usize>, FrameError>> {
        if self.mode == Mode::Skipping {
            let Some(newline) = memchr(b'\n', &buffer[self.unread.clone()]) else {
                self.unread = 0..0;
                return None;
            };
            self.take(newline + 1);
            self.mode = Mode::Lines;
        }
        let unread = &buffer[self.unread.clone()];
        // No line that ends within so many bytes is too long.
        let within = unread.len().min(self.limit.saturating_add(1));
        match memrchr(b'\n', &unread[..within]) {
            Some(newline) => Some(Ok(self.take(newline + 1))),
            None if unread.len() > self.limit => {
                self.mode = Mode::Skipping;
                Some(Err(FrameError::LineTooLong))
            }
            None if self.ended && !unread.is_empty() => Some(Ok(self.take(unread.len()))),
            None => None,
        }
    }

    fn take(&mut self, bytes: usize) -> Range<usize> {
        let start = self.unread.start;
        self.unread.start += bytes;
        start..self.unread.start
    }

    fn close(&mut self) {
        self.unread = 0..0;
        self.mode = Mode::Closed;
    }
}

fn length(header: [u8; HEADER]) -> usize {
    u32::from_le_bytes(header) as usize
}

/// Whether the bytes could begin a line; a character may be cut at their end.
fn is_text(bytes: &[u8]) -> bool {
    let control = |b: &u8| b.is_ascii_control() && !matches!(b, b'\t' | b'\r' | b'\n');
    let utf8 = std::str::from_utf8(bytes).map_or_else(|e| e.error_len().is_none(), |_| true);
    utf8 && !bytes.iter().any(control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything a framer gives for the bytes in pieces, the error that closes it at the end.
    /// Text is cut into its lines: how many come together depends on the pieces.
    fn read<'a>(
        mut framer: Framer,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Vec<Result<Vec<u8>, FrameError>> {
        let mut found = Vec::new();
        for mut piece in pieces {
            while !piece.is_empty() {
                let n = piece.len().min(framer.space().len());
                framer.space()[..n].copy_from_slice(&piece[..n]);
                framer.filled(n);
                piece = &piece[n..];
                drain(&mut framer, &mut found);
                if framer.cut.mode == Mode::Closed {
                    return found;
                }
            }
        }
        framer.end();
        drain(&mut framer, &mut found);
        found
    }

    fn drain(framer: &mut Framer, found: &mut Vec<Result<Vec<u8>, FrameError>>) {
        while let Some(payload) = framer.payload() {
            let payload = payload.map(<[u8]>::to_vec);
            match payload {
                Ok(text) if framer.cut.mode == Mode::Lines => {
                    found.extend(
                        text.split_inclusive(|b| *b == b'\n').map(|line| Ok(line.to_vec())),
                    );
                }
                payload => found.push(payload),
            }
        }
        assert!(framer.cut.mode == Mode::Closed || !framer.space().is_empty());
    }

    fn ok(texts: &[&str]) -> Vec<Result<Vec<u8>, FrameError>> {
        texts.iter().map(|text| Ok(text.as_bytes().to_vec())).collect()
    }

    fn whole(bytes: &[u8]) -> Vec<Result<Vec<u8>, FrameError>> {
        read(Framer::new(8), [bytes])
    }

    #[test]
    fn a_framer_goes_on_where_another_was() {
        let text = b"a:1|c\nb:2|c\nc:3";
        for framer in [Framer::new(100), Framer::lines(100)] {
            for cut in 0..text.len() {
                let mut framer = Framer { buffer: framer.buffer.clone(), cut: framer.cut.clone() };
                framer.space()[..cut].copy_from_slice(&text[..cut]);
                framer.filled(cut);
                let mut lines = Vec::<u8>::new();
                framer.payloads().for_each(|payload| lines.extend(payload.expect("text")));
                let (kept, form, _) = framer.kept_and_space();
                let bytes = [kept, &text[cut..]].concat();
                let mut later = Framer::resume(&bytes, form.into());
                later.payloads().for_each(|payload| lines.extend(payload.expect("text")));
                assert_eq!(lines, b"a:1|c\nb:2|c\n", "cut at {cut}");
            }
        }
        let frames = [&3_u32.to_le_bytes()[..], b"one", &3_u32.to_le_bytes(), b"two"].concat();
        let mut framer = Framer::new(100);
        framer.space()[..9].copy_from_slice(&frames[..9]);
        framer.filled(9);
        assert_eq!(framer.payload(), Some(Ok(&b"one"[..])));
        assert_eq!(framer.payload(), None);
        let (kept, form, _) = framer.kept_and_space();
        let bytes = [kept, &frames[9..]].concat();
        assert_eq!(Framer::resume(&bytes, form.into()).payload(), Some(Ok(&b"two"[..])));
    }

    #[test]
    fn frames() {
        assert_eq!(whole(b""), ok(&[]));
        assert_eq!(whole(b"\x05\0\0\0a:1|c\x03\0\0\0\n\n\n"), ok(&["a:1|c", "\n\n\n"]));
        assert_eq!(whole(b"\0\0\0\0\x05\0\0\0a:1|c\0\0\0\0"), ok(&["a:1|c"]));
        assert_eq!(whole(b"\x08\0\0\x0012345678"), ok(&["12345678"]));
    }

    #[test]
    fn a_long_frame_closes_the_connection() {
        let mut expected = ok(&["a"]);
        expected.push(Err(FrameError::FrameTooLong(9)));
        assert_eq!(whole(b"\x01\0\0\0a\x09\0\0\x00123456789\x01\0\0\0a"), expected);
        assert_eq!(whole(b"\xff\xff\xff\xff"), [Err(FrameError::FrameTooLong(u32::MAX))]);
    }

    #[test]
    fn an_unfinished_frame_is_reported() {
        assert_eq!(whole(b"\x05\0\0\0a:1"), [Err(FrameError::Unfinished(7))]);
        assert_eq!(whole(b"\x05\0"), [Err(FrameError::Unfinished(2))]);
    }

    #[test]
    fn newline_text_is_recognised() {
        assert_eq!(whole(b"a:1|c\nb:2|c\n"), ok(&["a:1|c\n", "b:2|c\n"]));
        assert_eq!(whole(b"a:1|c\r\n\nb:2"), ok(&["a:1|c\r\n", "\n", "b:2"]));
        assert_eq!(whole("aé\u{20ac}\n".as_bytes()), ok(&["aé\u{20ac}\n"]));
        assert_eq!(whole(b"a\n"), ok(&["a\n"]));
    }

    #[test]
    fn frames_are_no_text_on_a_line_connection() {
        let found = read(Framer::lines(8), [&b"\x05\0\0\0a:1\n"[..]]);
        assert_eq!(found, ok(&["\x05\0\0\0a:1\n"]));
    }

    #[test]
    fn a_long_line_is_dropped_alone() {
        let mut expected = ok(&["12345678\n"]);
        expected.push(Err(FrameError::LineTooLong));
        expected.extend(ok(&["a\n"]));
        assert_eq!(whole(b"12345678\n123456789\na\n"), expected);
        let long = [&b"12345678\n"[..], &b"x".repeat(100), b"\na\n"].concat();
        assert_eq!(whole(&long), expected);
        expected.truncate(2);
        assert_eq!(whole(&long[..50]), expected);
    }

    #[test]
    fn lines_that_came_together_are_given_out_together() {
        let mut framer = Framer::lines(8);
        let put = |framer: &mut Framer, bytes: &[u8]| {
            framer.space()[..bytes.len()].copy_from_slice(bytes);
            framer.filled(bytes.len());
        };
        put(&mut framer, b"a\nb\n\nc");
        assert_eq!(framer.payload(), Some(Ok(&b"a\nb\n\n"[..])));
        assert_eq!(framer.payload(), None);
        put(&mut framer, b"d\n1234567\n");
        assert_eq!(framer.payload(), Some(Ok(&b"cd\n"[..])), "no payload is longer than a line");
        assert_eq!(framer.payload(), Some(Ok(&b"1234567\n"[..])));
        put(&mut framer, b"e\nf");
        framer.end();
        assert_eq!(framer.payload(), Some(Ok(&b"e\n"[..])));
        assert_eq!(framer.payload(), Some(Ok(&b"f"[..])), "whether it may lack a newline is asked");
        assert_eq!(framer.payload(), None);
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..60),
                "[a-c\n]{0,60}".prop_map(String::into_bytes),
                prop::collection::vec("[a\n]{0,9}", 0..9).prop_map(|frames| {
                    let frame = |f: &String| [&[f.len() as u8, 0, 0, 0], f.as_bytes()].concat();
                    frames.iter().flat_map(frame).collect()
                }),
            ],
            size in 1_usize..9,
            forced: bool,
        ) {
            let framer = || if forced { Framer::lines(8) } else { Framer::new(8) };
            prop_assert_eq!(
                read(framer(), bytes.chunks(size)),
                read(framer(), [&bytes[..]])
            );
        }
    }
}
