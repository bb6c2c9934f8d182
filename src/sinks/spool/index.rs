//! Which payloads of a folder nobody has taken: in memory alone, so that any thread may ask.
//!
//! ```text
//!   0 ........................ floor ............................ next sequence
//!     doomed | hidden (counted)     | backlog
//! ```
//!
//! Every file is in one of the three, or `elsewhere`: with whoever took it, put last, or about to
//! be removed. What is hidden is found by listing the folder, and what is elsewhere is not found
//! by that: so nothing is given out twice, though its file may be there for a while yet.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use super::Entry;

/// The payloads that nobody has taken, oldest first.
pub struct Index {
    /// Payloads that each queue holds at most.
    max: usize,
    backlog: VecDeque<Entry>,
    /// The oldest, found for dropping.
    doomed: VecDeque<Entry>,
    floor: u64,
    /// Files below `floor` that are neither in `doomed` nor elsewhere.
    hidden: u64,
    /// Tried in vain: their turn comes when nothing else waits, so that one which the endpoint can
    /// never take does not hold up the others.
    deferred: VecDeque<Entry>,
    elsewhere: HashSet<u64>,
}

/// What may be taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Entry(Entry),
    /// The folder has to be listed first.
    List,
    Nothing,
}

/// A listing to be done: which sequences, and how many of their newest or oldest.
#[derive(Clone, Debug)]
pub struct Listing {
    pub range: Range<u64>,
    pub most: usize,
    pub newest: bool,
}

impl Index {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            backlog: VecDeque::new(),
            doomed: VecDeque::new(),
            floor: 0,
            hidden: 0,
            deferred: VecDeque::new(),
            elsewhere: HashSet::new(),
        }
    }

    /// The first listing, of everything.
    pub fn first_listing(&self) -> Listing {
        Listing { range: 0..u64::MAX, most: self.max, newest: true }
    }

    /// What the first listing kept, of so many files.
    pub fn load(&mut self, kept: Vec<Entry>, files: u64) {
        self.floor = kept.first().map_or(0, |entry| entry.sequence);
        self.hidden = files.saturating_sub(kept.len() as u64);
        self.backlog = kept.into();
    }

    /// A file that comes to be, and is with whoever makes it.
    pub fn take(&mut self, sequence: u64) {
        self.elsewhere.insert(sequence);
    }

    /// A file that is gone. It must not be in a listing that is under way.
    pub fn forget(&mut self, sequence: u64) {
        self.elsewhere.remove(&sequence);
    }

    /// Puts a payload among those that nobody has taken.
    pub fn release(&mut self, entry: Entry) {
        self.elsewhere.remove(&entry.sequence);
        let queue = if entry.sequence >= self.floor {
            &mut self.backlog
        } else if self.doomed.back().is_some_and(|last| entry.sequence < last.sequence) {
            // No listing would find it in there.
            &mut self.doomed
        } else {
            self.hidden += 1;
            return;
        };
        let at = queue.partition_point(|other| other.sequence < entry.sequence);
        queue.insert(at, entry);
        self.shrink();
    }

    /// Hides the oldest of the backlog beyond the bound.
    fn shrink(&mut self) {
        while self.backlog.len() > self.max
            && let Some(oldest) = self.backlog.pop_front()
        {
            self.floor = oldest.sequence + 1;
            self.hidden += 1;
        }
    }

    /// Puts a payload behind all others.
    pub fn defer(&mut self, entry: Entry) {
        if self.deferred.len() < self.max {
            self.deferred.push_back(entry);
        } else {
            self.release(entry);
        }
    }

    /// Whether payloads wait that nobody has taken.
    pub fn waits(&self) -> bool {
        let known = [&self.backlog, &self.doomed, &self.deferred];
        self.hidden > 0 || known.iter().any(|entries| !entries.is_empty())
    }

    /// Takes the newest.
    pub fn newest(&mut self) -> Next {
        if self.backlog.is_empty() && self.hidden > 0 {
            return Next::List;
        }
        let waiting = self.backlog.pop_back().or_else(|| self.doomed.pop_back());
        self.hand_out(waiting)
    }

    /// Takes the oldest.
    pub fn oldest(&mut self) -> Next {
        if self.doomed.is_empty() && self.hidden > 0 {
            return Next::List;
        }
        let waiting = self.doomed.pop_front().or_else(|| self.backlog.pop_front());
        self.hand_out(waiting)
    }

    fn hand_out(&mut self, waiting: Option<Entry>) -> Next {
        let Some(entry) = waiting.or_else(|| self.deferred.pop_front()) else {
            return Next::Nothing;
        };
        self.elsewhere.insert(entry.sequence);
        Next::Entry(entry)
    }

    /// The listing that finds what is hidden. What is elsewhere is in it and is sorted out at its
    /// end: it may be given back meanwhile.
    pub fn listing(&self, newest: bool) -> Listing {
        let low = if newest { self.doomed.back().map_or(0, |entry| entry.sequence + 1) } else { 0 };
        let most = self.max.saturating_add(self.elsewhere.len());
        Listing { range: low..self.floor.max(low), most, newest }
    }

    /// What a listing found, oldest first.
    pub fn found(&mut self, listing: &Listing, mut found: Vec<Entry>) {
        if self.floor != listing.range.end {
            // So much was given back meanwhile that there is enough without it.
            return;
        }
        let doomed: HashSet<u64> = self.doomed.iter().map(|entry| entry.sequence).collect();
        found.retain(|entry| {
            !self.elsewhere.contains(&entry.sequence) && !doomed.contains(&entry.sequence)
        });
        let surplus = found.len().saturating_sub(self.max);
        if listing.newest {
            found.drain(..surplus);
            self.floor = found.first().map_or(listing.range.start, |entry| entry.sequence);
        } else {
            found.truncate(self.max);
        }
        // Nothing is hidden where nothing is found: somebody else has removed it.
        self.hidden = match found.len() as u64 {
            0 => 0,
            some => self.hidden.saturating_sub(some),
        };
        if listing.newest {
            found.extend(self.backlog.drain(..));
            self.backlog = found.into();
            self.shrink();
        } else {
            self.doomed.extend(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(sequence: u64) -> Entry {
        Entry { sequence, time: 0, points: 1, bytes: 1, kind: "series", failures: (0, 0) }
    }

    /// A folder, and who has which of its files.
    struct World {
        index: Index,
        /// By sequence whether somebody has it.
        files: BTreeMap<u64, bool>,
        next: u64,
        /// A listing under way, with what it saw.
        listing: Option<(Listing, Vec<Entry>)>,
    }

    impl World {
        /// As the folder would be listed.
        fn list(&self, listing: &Listing) -> Vec<Entry> {
            let files = self.files.range(listing.range.clone()).map(|(&sequence, _)| sequence);
            let mut found: Vec<_> = files.map(entry).collect();
            let surplus = found.len().saturating_sub(listing.most);
            if listing.newest {
                found.drain(..surplus);
            } else {
                found.truncate(listing.most);
            }
            found
        }

        fn finish_listing(&mut self) {
            if let Some((listing, found)) = self.listing.take() {
                self.index.found(&listing, found);
            }
        }

        fn given(&mut self, next: Next, newest: bool) -> Option<u64> {
            match next {
                Next::Entry(entry) => {
                    let taken = self.files.get_mut(&entry.sequence).expect("its file is there");
                    assert!(!std::mem::replace(taken, true), "{} twice", entry.sequence);
                    Some(entry.sequence)
                }
                Next::List => {
                    let listing = self.index.listing(newest);
                    let found = self.list(&listing);
                    self.listing = Some((listing, found));
                    None
                }
                Next::Nothing => {
                    assert!(self.files.values().all(|taken| *taken), "some wait");
                    None
                }
            }
        }

        fn step(&mut self, action: u8, which: prop::sample::Index) {
            let taken = self.files.iter().filter(|(_, taken)| **taken);
            let taken: Vec<_> = taken.map(|(&sequence, _)| sequence).collect();
            match action {
                0..4 => {
                    self.index.take(self.next);
                    self.files.insert(self.next, true);
                    self.next += 1;
                }
                4..7 if !taken.is_empty() => {
                    let sequence = *which.get(&taken);
                    self.files.insert(sequence, false);
                    if action == 6 {
                        self.index.defer(entry(sequence));
                    } else {
                        self.index.release(entry(sequence));
                    }
                }
                // Files are removed while no listing is under way.
                7..9 if !taken.is_empty() && self.listing.is_none() => {
                    let sequence = *which.get(&taken);
                    self.files.remove(&sequence);
                    self.index.forget(sequence);
                }
                9..11 if self.listing.is_none() => {
                    let next = self.index.newest();
                    self.given(next, true);
                }
                11 if self.listing.is_none() => {
                    let next = self.index.oldest();
                    self.given(next, false);
                }
                // While the folder is listed for the newest, the oldest may be dropped.
                12 => match self.index.oldest() {
                    Next::List => {}
                    next => drop(self.given(next, false)),
                },
                13 => self.finish_listing(),
                _ => {}
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn each_is_given_out_once_and_none_is_forgotten(
            steps in prop::collection::vec((0..14_u8, any::<prop::sample::Index>()), 0..120),
        ) {
            let index = Index::new(3);
            let mut world = World { index, files: BTreeMap::new(), next: 1, listing: None };
            for (action, which) in steps {
                world.step(action, which);
            }
            world.finish_listing();
            let waiting = world.files.values().filter(|taken| !**taken).count();
            let mut given = 0;
            for _ in 0..2 * waiting + 2 {
                let next = world.index.newest();
                given += usize::from(world.given(next, true).is_some());
                world.finish_listing();
            }
            prop_assert_eq!(given, waiting);
            prop_assert!(!world.index.waits());
        }
    }

    #[test]
    fn what_is_on_its_way_is_not_found_by_a_listing() {
        let mut index = Index::new(3);
        index.load(vec![entry(1)], 1);
        assert_eq!(index.newest(), Next::Entry(entry(1)));
        for sequence in 2..=6 {
            index.take(sequence);
            index.release(entry(sequence));
        }
        for sequence in [6, 5, 4] {
            assert_eq!(index.newest(), Next::Entry(entry(sequence)));
        }
        assert_eq!(index.newest(), Next::List);
        let listing = index.listing(true);
        index.found(&listing, (1..4).map(entry).collect());
        assert_eq!(index.newest(), Next::Entry(entry(3)));
        assert_eq!(index.newest(), Next::Entry(entry(2)));
        assert_eq!(index.newest(), Next::Nothing);
    }
}
