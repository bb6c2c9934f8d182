//! What waits until it is known who sent it.

use std::collections::VecDeque;

use ahash::RandomState;
use hashbrown::HashMap;

use crate::origin::{Key, Origin};
use crate::shard::Generation;
use crate::sys::Sender;
use crate::time::Time;

/// Bytes that each datagram or line takes besides its own.
const OVERHEAD: usize = 128;

/// Milliseconds before the end of its bucket at which nothing waits any longer, so that it is in
/// time for the flush.
const MARGIN: i64 = 250;

/// Datagrams and lines in the order of their arrival, up to a number of bytes.
pub(super) struct Held {
    items: VecDeque<Item>,
    /// How many items wait for a key.
    keys: HashMap<Key, usize, RandomState>,
    bytes: usize,
    bytes_max: usize,
    /// The news that the items have heard.
    news: u64,
}

/// Something that waits.
pub(super) struct Item {
    pub bytes: Box<[u8]>,
    pub what: What,
    /// Who sent it.
    pub sender: Sender,
    pub key: Key,
    pub arrived: Time,
    /// When the bucket in which it was read closes, in Unix seconds.
    pub end: i64,
    /// What the journal knows it by.
    pub id: Option<u64>,
}

/// What is to be done with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A datagram whose sender is not known.
    Datagram { truncated: bool },
    /// A line that names an origin which is not known, of a datagram of this origin.
    Line { sent: Origin },
}

impl Held {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { items: VecDeque::new(), keys: HashMap::default(), bytes: 0, bytes_max, news: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether anything waits for this key: what comes later must not overtake it.
    pub(super) fn waits_for(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether there is room for so many bytes, and time before the bucket closes.
    pub(super) fn may_wait(&self, bytes: usize, generation: &Generation, now: Time) -> bool {
        self.bytes + bytes + OVERHEAD <= self.bytes_max && now.0 < last_call(generation.end)
    }

    pub(super) fn push(&mut self, item: Item) {
        self.bytes += item.bytes.len() + OVERHEAD;
        *self.keys.entry(item.key.clone()).or_default() += 1;
        self.items.push_back(item);
    }

    /// Takes out what is `known` or has waited for long enough, in order, and whether its time was
    /// not up yet; `news` tells whether any may have become known since the last call.
    pub(super) fn take(
        &mut self,
        now: Time,
        news: u64,
        known: impl Fn(&Key) -> bool,
    ) -> Vec<(Item, bool)> {
        let heard = std::mem::replace(&mut self.news, news) == news;
        let is_over = |item: &Item| now.0 >= last_call(item.end) || now < item.arrived;
        if heard && !self.items.front().is_some_and(is_over) {
            return Vec::new();
        }
        // Asked once for each key, so that of its items none overtakes another.
        let known: HashMap<Key, bool, RandomState> =
            self.keys.keys().map(|key| (key.clone(), known(key))).collect();
        let mut taken = Vec::new();
        let mut left = VecDeque::new();
        for item in self.items.drain(..) {
            let known = known.get(&item.key) == Some(&true);
            if known || is_over(&item) {
                taken.push((item, known));
            } else {
                left.push_back(item);
            }
        }
        self.items = left;
        for (item, _) in &taken {
            self.bytes -= item.bytes.len() + OVERHEAD;
            if let Some(count) = self.keys.get_mut(&item.key) {
                *count -= 1;
                if *count == 0 {
                    self.keys.remove(&item.key);
                }
            }
        }
        taken
    }

    /// Takes out everything.
    pub(super) fn take_all(&mut self) -> VecDeque<Item> {
        self.keys.clear();
        self.bytes = 0;
        std::mem::take(&mut self.items)
    }
}

/// When nothing waits any longer that is to be in a bucket that closes at `end`.
const fn last_call(end: i64) -> i64 {
    end * 1000 - MARGIN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &str, pid: u32, arrived: i64) -> Item {
        Item {
            bytes: text.as_bytes().into(),
            what: What::Datagram { truncated: false },
            sender: Sender::Process { pid, uid: 0 },
            key: Key::Process(pid),
            arrived: Time(arrived),
            end: 20,
            id: None,
        }
    }

    fn texts(items: impl IntoIterator<Item = Item>) -> Vec<String> {
        items.into_iter().map(|i| String::from_utf8(i.bytes.into_vec()).expect("text")).collect()
    }

    fn take(held: &mut Held, now: i64, news: u64, pid: u32) -> Vec<(String, bool)> {
        let items = held.take(Time(now), news, |key| *key == Key::Process(pid));
        let (items, known): (Vec<_>, Vec<_>) = items.into_iter().unzip();
        texts(items).into_iter().zip(known).collect()
    }

    #[test]
    fn what_becomes_known_leaves_in_order_and_the_rest_when_its_time_is_up() {
        let mut held = Held::new(10_000);
        for (text, pid, arrived) in [("a", 1, 11_000), ("b", 2, 11_001), ("c", 1, 11_002)] {
            held.push(item(text, pid, arrived));
        }
        assert!(held.waits_for(&Key::Process(1)) && !held.waits_for(&Key::Process(3)));
        let known = |text: &str| (text.to_owned(), true);
        assert_eq!(take(&mut held, 12_000, 0, 1), [], "there is no news");
        assert_eq!(take(&mut held, 12_000, 1, 1), [known("a"), known("c")]);
        assert!(!held.waits_for(&Key::Process(1)));
        assert_eq!(take(&mut held, 19_749, 2, 9), []);
        // The bucket closes at 20 s.
        assert_eq!(take(&mut held, 19_750, 2, 9), [("b".to_owned(), false)]);
        assert!(held.is_empty() && held.bytes == 0 && held.keys.is_empty());
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nothing_up() {
        let mut held = Held::new(10_000);
        held.push(item("a", 1, 15_000));
        assert_eq!(take(&mut held, 14_999, 0, 9), [("a".to_owned(), false)]);
    }

    #[test]
    fn there_is_room_for_so_many_bytes() {
        let mut held = Held::new(2 * OVERHEAD + 10);
        let now = Time(11_000);
        let open = Generation { number: 1, start: 10, end: 20 };
        assert!(held.may_wait(10, &open, now));
        assert!(!held.may_wait(10, &open, Time(19_750)), "it closes soon");
        held.push(item("12345", 1, 0));
        assert!(held.may_wait(5, &open, now) && !held.may_wait(6, &open, now));
        held.push(item("12345", 1, 0));
        assert!(!held.may_wait(0, &open, now));
        assert_eq!(texts(held.take_all()), ["12345", "12345"]);
        assert!(held.may_wait(10, &open, now) && !held.waits_for(&Key::Process(1)));
    }
}
