//! Texts that many series have in common, each kept once: names, hosts, most tags.
//!
//! Which these are shows by itself. A text that comes again and again gets a number in the book that
//! is being written, and contexts made from then on refer to it in two bytes. What only one series
//! has, as a rule the tag that tells it from others, stays with the series.
//!
//! A book that is full is left to the contexts that refer to it, goes with the last of them, and
//! another is begun. So texts of series that are gone take no room, however long the process runs.

use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use ahash::RandomState;
use hashbrown::HashTable;
use smallvec::SmallVec;

/// Bytes that begin a reference; no UTF-8 text begins with one. Each has a page of the book.
const FIRST: u8 = 0xf5;
const PAGES: usize = 0x100 - FIRST as usize;
/// Texts of a page: the second byte of a reference.
const PAGE: usize = 0x100;

/// Bytes of a text that is worth a number.
const SHORTEST: usize = 4;
/// The same at most, so that a full book has a size: some 650 KiB.
const LONGEST: usize = 200;

/// How often a text must come to get a number, which takes the room of three or four repetitions.
const SIGHTINGS: u32 = 4;
/// Texts that are watched at a time.
const WATCHED: usize = 2048;

/// What ends a text that stands for itself; no text that was written has one.
const END: u8 = b'\n';

/// A few dozen bytes for each of the parts, and a place for a long one elsewhere.
pub(super) type Encoded = SmallVec<[u8; 256]>;

/// Texts by their numbers. Numbers are given once, so who has one can read without a lock.
#[derive(Default)]
pub(super) struct Book {
    pages: [OnceLock<Box<Page>>; PAGES],
}

type Page = [OnceLock<Box<str>>; PAGE];

impl Book {
    /// The text that two bytes refer to. Only a reference out of [`Scribe::write`] has one.
    fn text(&self, page: u8, line: u8) -> Option<&str> {
        let page = self.pages.get(usize::from(page.checked_sub(FIRST)?))?.get()?;
        page[usize::from(line)].get().map(|text| &**text)
    }

    fn numbered(&self, number: u16) -> Option<&str> {
        let [page, line] = number.to_be_bytes();
        self.text(FIRST + page, line)
    }

    fn set(&self, number: u16, text: &str) {
        let [page, line] = number.to_be_bytes();
        let page = self.pages[usize::from(page)]
            .get_or_init(|| Box::new([const { OnceLock::new() }; PAGE]));
        page[usize::from(line)].get_or_init(|| text.into());
    }
}

/// Writes texts down, and learns which of them come often.
#[derive(Default)]
pub(super) struct Scribe {
    book: Arc<Book>,
    /// Numbers of the book's texts, by their hash.
    numbers: HashTable<u16>,
    hasher: RandomState,
    /// Of texts that have no number: bits of the hash, and in the lowest two how often it came. By
    /// other bits of the hash; who comes to a place that is taken takes it over.
    watched: Vec<u32>,
}

impl Scribe {
    /// The one of all contexts.
    pub(super) fn write_for_all<'a>(
        parts: impl Iterator<Item = &'a str>,
    ) -> (Option<Arc<Book>>, Encoded) {
        static SCRIBE: LazyLock<Mutex<Scribe>> = LazyLock::new(Mutex::default);
        SCRIBE.lock().unwrap_or_else(PoisonError::into_inner).write(parts)
    }

    /// What [`Parts`] reads, and the book that it takes for it, if it does. Newlines become blanks.
    pub(super) fn write<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a str>,
    ) -> (Option<Arc<Book>>, Encoded) {
        if self.numbers.len() == PAGES * PAGE {
            (self.book, self.numbers) = Default::default();
        }
        let (mut encoded, mut refers) = (Encoded::new(), false);
        for part in parts {
            if let Some(number) = self.number(part) {
                let [page, line] = number.to_be_bytes();
                encoded.extend_from_slice(&[FIRST + page, line]);
                refers = true;
                continue;
            }
            let at = encoded.len();
            encoded.extend_from_slice(part.as_bytes());
            encoded[at..].iter_mut().filter(|byte| **byte == END).for_each(|byte| *byte = b' ');
            encoded.push(END);
        }
        (refers.then(|| self.book.clone()), encoded)
    }

    /// The number of a text, if it has come often enough to have one.
    fn number(&mut self, text: &str) -> Option<u16> {
        if !(SHORTEST..=LONGEST).contains(&text.len()) {
            return None;
        }
        let Self { book, numbers, hasher, watched } = self;
        let hash = hasher.hash_one(text);
        let is_it = |&number: &u16| book.numbered(number) == Some(text);
        if let Some(number) = numbers.find(hash, is_it) {
            return Some(*number);
        }
        watched.resize(WATCHED, 0);
        let place = &mut watched[hash as usize % WATCHED];
        let (known, bits) = (*place & !(SIGHTINGS - 1), (hash >> 32) as u32 & !(SIGHTINGS - 1));
        // Before it came now.
        let came = if known == bits { *place % SIGHTINGS } else { 0 };
        if came + 1 < SIGHTINGS {
            *place = bits | (came + 1);
            return None;
        }
        let is_full = numbers.len() == PAGES * PAGE;
        if is_full || text.contains(char::from(END)) {
            return None;
        }
        let number = numbers.len() as u16;
        book.set(number, text);
        let hash_of = |&number: &u16| book.numbered(number).map_or(0, |text| hasher.hash_one(text));
        numbers.insert_unique(hash, number, hash_of);
        Some(number)
    }
}

/// The texts that were written, in their order.
#[derive(Clone)]
pub(super) struct Parts<'a> {
    book: Option<&'a Book>,
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    pub(super) const fn new(book: Option<&'a Book>, encoded: &'a [u8]) -> Self {
        Self { book, rest: encoded }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if let [page @ FIRST..=u8::MAX, line, rest @ ..] = self.rest {
            self.rest = rest;
            let text = self.book.and_then(|book| book.text(*page, *line));
            return Some(text.expect("who refers to a book keeps it"));
        }
        let end = memchr::memchr(END, self.rest)?;
        let (own, rest) = (&self.rest[..end], &self.rest[end + 1..]);
        self.rest = rest;
        Some(str::from_utf8(own).expect("it was made from text"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(written: &(Option<Arc<Book>>, Encoded)) -> Vec<&str> {
        Parts::new(written.0.as_deref(), &written.1).collect()
    }

    #[test]
    fn what_comes_often_is_referred_to() {
        let mut scribe = Scribe::default();
        for n in 1..3 * SIGHTINGS {
            let own = format!("instance:{n}");
            let parts = ["page.views", "", "env:prod", &own, "a:b"];
            let written = scribe.write(parts.into_iter());
            assert_eq!(read(&written), parts);
            let length = if n < SIGHTINGS {
                assert!(written.0.is_none());
                parts.iter().map(|part| part.len() + 1).sum::<usize>()
            } else {
                // Two references, the text of its own, and what is too short.
                2 + 1 + 2 + (own.len() + 1) + 4
            };
            assert_eq!(written.1.len(), length, "{n}");
        }
    }

    #[test]
    fn texts_that_differ_too_much_in_length_stand_for_themselves() {
        let mut scribe = Scribe::default();
        let (short, long) = ("a:b", "x".repeat(LONGEST + 1));
        for _ in 0..2 * SIGHTINGS {
            let written = scribe.write([short, &long].into_iter());
            assert!(written.0.is_none());
            assert_eq!(read(&written), [short, &long]);
        }
    }

    #[test]
    fn a_newline_becomes_a_blank_however_often_it_comes() {
        let mut scribe = Scribe::default();
        for _ in 0..2 * SIGHTINGS {
            let written = scribe.write(["env:\nprod", "\n"].into_iter());
            assert_eq!(read(&written), ["env: prod", " "]);
        }
    }

    #[test]
    fn a_full_book_goes_with_the_last_that_refers_to_it() {
        let mut scribe = Scribe::default();
        let mut text = |n: usize| {
            let text = format!("text {n}");
            let texts = || std::iter::once(&*text);
            (0..SIGHTINGS).map(|_| scribe.write(texts())).last().unwrap()
        };
        let mut first: Vec<_> = (0..PAGES * PAGE).map(&mut text).collect();
        for (n, written) in first.iter().enumerate() {
            assert_eq!((read(written), written.1.len()), (vec![&*format!("text {n}")], 2));
        }
        let book = Arc::downgrade(first[0].0.as_ref().unwrap());
        let of = |written: &(Option<Arc<Book>>, Encoded)| Arc::as_ptr(written.0.as_ref().unwrap());
        assert!(first.iter().all(|written| of(written) == of(&first[0])));
        let again = text(7);
        assert_eq!((read(&again), again.1.len()), (vec!["text 7"], 2));
        assert_ne!(of(&again), of(&first[0]));
        first.truncate(1);
        assert!(book.upgrade().is_some());
        drop(first);
        assert!(book.upgrade().is_none());
    }

    proptest! {
        #[test]
        fn parts_come_back(
            series in prop::collection::vec(
                prop::collection::vec(prop_oneof!["[a-c]{0,5}", "\\PC{0,9}", "x{199,201}"], 0..6), 1..60),
        ) {
            let mut scribe = Scribe::default();
            let written: Vec<_> =
                series.iter().map(|parts| scribe.write(parts.iter().map(String::as_str))).collect();
            for (parts, written) in series.iter().zip(&written) {
                prop_assert_eq!(&read(written), parts);
            }
        }
    }
}
