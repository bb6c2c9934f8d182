//! What a series is: name, kind, host and tag set.

mod texts;

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering::Relaxed};

use triomphe::ThinArc;

use self::texts::{Book, Parts, Scribe};
use crate::sample::Kind;

/// The canonical identity of a series, shared: a clone is the same one. Two samples belong to one
/// series exactly when their contexts are equal, whatever the order or repetition of their tags on the
/// wire.
///
/// One allocation holds name, host and tags one after the other, but for texts that many series have
/// in common: these stand in a book that they share. Where a part ends is looked for, as there are
/// many contexts and their parts are seldom asked for. A newline cannot come in by a line, and
/// [`Context::new`] replaces those that come in by other ways.
#[derive(Clone)]
pub struct Context(ThinArc<Head, u8>);

/// What stands before the parts.
struct Head {
    /// Where the parts that others have too are found. The same series may have been written down in
    /// several ways: a part may have become one of these in the meantime.
    book: Option<Arc<Book>>,
    source: Source,
    kind: Kind,
    /// These two are no part of the identity.
    marks: AtomicU8,
    maker: AtomicU16,
}

const _: () = assert!(size_of::<Option<Context>>() == 8 && size_of::<Head>() <= 16);

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self.parts().collect();
        f.debug_tuple("Context").field(&parts).field(&self.kind()).finish()
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        let same = || self.class() == other.class() && self.parts().eq(other.parts());
        self.is(other) || same()
    }
}

impl Eq for Context {}

impl PartialOrd for Context {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// By name, host and tags.
impl Ord for Context {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(other.parts()).then_with(|| self.class().cmp(&other.class()))
    }
}

impl Hash for Context {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.class().hash(state);
        self.parts().for_each(|part| part.hash(state));
    }
}

/// Which part of the Datadog product a series is accounted to: `origin_service` of the intake's
/// metadata; 0 is plain DogStatsD, anything else is a JMX check's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source(pub u16);

impl Context {
    /// `host` may be empty: the series then has no host at all. Tags are sorted and deduplicated
    /// here.
    pub fn new(name: &str, kind: Kind, host: &str, mut tags: Vec<String>, source: Source) -> Self {
        tags.sort_unstable();
        tags.dedup();
        let tags = tags.iter().map(String::as_str);
        let (book, parts) = Scribe::write_for_all([name, host].into_iter().chain(tags));
        let (marks, maker) = (AtomicU8::new(0), AtomicU16::new(0));
        let head = Head { book, source, kind, marks, maker };
        Self(ThinArc::from_header_and_slice(head, &parts))
    }

    /// Whether both are clones of one.
    pub fn is(&self, other: &Self) -> bool {
        self.address() == other.address()
    }

    /// Where it lies: an order for those that are in use.
    pub fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }

    /// The same series under a longer name and another kind.
    pub fn renamed(&self, prefix: &str, kind: Kind) -> Self {
        let name = format!("{prefix}{}", self.name());
        let tags = self.tags().map(String::from).collect();
        Self::new(&name, kind, self.host(), tags, self.source()).made_by(self.maker())
    }

    /// The same series, first sent by the sender whose account has this number.
    #[must_use]
    pub fn made_by(self, maker: u16) -> Self {
        self.adopt(maker);
        self
    }

    /// From now on it counts as first sent by that sender.
    pub fn adopt(&self, maker: u16) {
        self.head().maker.store(maker, Relaxed);
    }

    /// What was marked by [`Context::mark`].
    pub fn marks(&self) -> u8 {
        self.head().marks.load(Relaxed)
    }

    /// Sets bits that mean something to whoever walks over many series, so that it need not look at
    /// their names each time.
    pub fn mark(&self, bits: u8) {
        self.head().marks.fetch_or(bits, Relaxed);
    }

    /// The number of the account of who sent it first.
    pub fn maker(&self) -> u16 {
        self.head().maker.load(Relaxed)
    }

    pub fn name(&self) -> &str {
        self.parts().next().unwrap_or_default()
    }

    pub fn kind(&self) -> Kind {
        self.head().kind
    }

    /// Empty when the series has no host.
    pub fn host(&self) -> &str {
        self.parts().nth(1).unwrap_or_default()
    }

    /// Sorted, without repetitions.
    pub fn tags(&self) -> impl Iterator<Item = &str> + Clone {
        self.parts().skip(2)
    }

    pub fn source(&self) -> Source {
        self.head().source
    }

    /// What tells series apart whose parts are the same.
    fn class(&self) -> (u8, u16) {
        (self.kind() as u8, self.source().0)
    }

    /// Name, host and tags. With kind and source they are the identity.
    pub fn parts(&self) -> impl Iterator<Item = &str> + Clone {
        Parts::new(self.head().book.as_deref(), &self.0.slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[&str]) -> Vec<String> {
        tags.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn order_and_repetition_of_tags_do_not_matter() {
        let a = Context::new("a", Kind::Count, "h", tags(&["x", "y"]), Source::default());
        let b = Context::new("a", Kind::Count, "h", tags(&["y", "x", "x"]), Source::default());
        assert_eq!(a, b);
        assert_eq!(a.tags().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!((a.name(), a.host()), ("a", "h"));
    }

    #[test]
    fn kind_host_and_tags_are_the_identity() {
        let base = Context::new("a", Kind::Count, "h", tags(&["x"]), Source::default());
        for other in [
            Context::new("b", Kind::Count, "h", tags(&["x"]), Source::default()),
            Context::new("a", Kind::Gauge, "h", tags(&["x"]), Source::default()),
            Context::new("a", Kind::Count, "", tags(&["x"]), Source::default()),
            Context::new("a", Kind::Count, "h", tags(&[]), Source::default()),
            Context::new("a", Kind::Count, "h", tags(&["x", ""]), Source::default()),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn an_empty_tag_is_a_tag_and_no_tag_is_none() {
        let none = Context::new("a", Kind::Set, "", tags(&[]), Source::default());
        assert_eq!(none.tags().count(), 0);
        let empty = Context::new("a", Kind::Set, "", tags(&[""]), Source::default());
        assert_eq!(empty.tags().collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn a_part_that_has_become_known_makes_no_other_series() {
        let new = || {
            let tags = tags(&["known:soon", "other:tag"]);
            Context::new("becomes.known", Kind::Count, "host", tags, Source::default())
        };
        let made: Vec<_> = (0..20).map(|_| new()).collect();
        let hasher = ahash::RandomState::new();
        let (first, last) = (&made[0], &made[19]);
        assert!(last.0.slice.len() < first.0.slice.len());
        for context in &made {
            assert_eq!((context, context.cmp(first)), (first, Ordering::Equal));
            assert_eq!(hasher.hash_one(context), hasher.hash_one(first));
            assert_eq!(context.tags().collect::<Vec<_>>(), ["known:soon", "other:tag"]);
        }
        let other = Context::new("becomes.known", Kind::Count, "hosu", vec![], Source::default());
        assert!(*first < other && *last < other && *first != other);
    }

    #[test]
    fn a_newline_cannot_forge_a_tag() {
        let c = Context::new("a\nb", Kind::Count, "h\ni", tags(&["x\ny"]), Source::default());
        assert_eq!((c.name(), c.host()), ("a b", "h i"));
        assert_eq!(c.tags().collect::<Vec<_>>(), ["x y"]);
    }
}
