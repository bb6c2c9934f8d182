//! What costs money: series by name and by sender, and what each tag key multiplies.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use ahash::RandomState;
use schemars::JsonSchema;
use serde::Serialize;
use smallvec::SmallVec;

use crate::context::Context;

/// Names and keys that are looked at; more are only added up.
const NAMES_MAX: usize = 100_000;
const KEYS_MAX: usize = 1000;

/// Series of one moment, by what they are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Cost {
    pub series: usize,
    /// Series by kind.
    pub kinds: BTreeMap<&'static str, usize>,
    /// The name with the most series first.
    pub names: Vec<Name>,
    /// Series of names that are not listed.
    pub unlisted: usize,
    /// Who was the first to send them, the one with the most series first. There are at most as many
    /// as have an account of their own.
    pub senders: Vec<Sender>,
    /// The key without which there would be the fewest series first.
    pub keys: Vec<Key>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Name {
    pub name: String,
    pub series: usize,
    /// Of its senders the one with the most series, and how many there are.
    pub sender: String,
    pub senders: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Sender {
    pub sender: String,
    pub series: usize,
}

/// A tag key. A tag without a colon is a key without values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Key {
    pub key: String,
    /// Distinct values.
    pub values: usize,
    /// Series that have it.
    pub series: usize,
    /// Series less if nobody sent it.
    pub saved: usize,
}

#[derive(Default)]
struct Found {
    values: HashSet<u64, RandomState>,
    /// What the series would be without the key.
    without: HashSet<u64, RandomState>,
    series: usize,
}

impl Cost {
    /// Looks at each series once. `limit` bounds the lists; `called` knows the senders by the numbers
    /// of their accounts.
    ///
    /// Sets are counted by hashes of 64 bits, so a count may be off by one among billions.
    pub fn of<'a>(
        series: impl Iterator<Item = &'a Context>,
        limit: usize,
        called: impl Fn(u16) -> String,
    ) -> Self {
        let hasher = RandomState::new();
        let mut cost = Self::default();
        let mut names = HashMap::<&str, Makers, RandomState>::default();
        let mut makers = Makers::default();
        let mut all = HashSet::<u64, RandomState>::default();
        let mut keys = HashMap::<&str, Found, RandomState>::default();
        for context in series {
            cost.series += 1;
            *cost.kinds.entry(context.kind().word()).or_default() += 1;
            if names.len() < NAMES_MAX || names.contains_key(context.name()) {
                names.entry(context.name()).or_default().add(context.maker(), 1);
            }
            makers.add(context.maker(), 1);
            // Tags are a set: their hashes add up in any order, and one can be taken out again.
            let base = hasher.hash_one((context.name(), context.kind(), context.host()));
            let whole =
                context.tags().fold(base, |sum, tag| sum.wrapping_add(hasher.hash_one(tag)));
            all.insert(whole);
            let mut tags = context.tags().peekable();
            // Tags are sorted, so those of one key stand together but for keys with odd characters.
            while let Some(tag) = tags.next() {
                let key = key_of(tag);
                let mut own = hasher.hash_one(tag);
                let full = keys.len() >= KEYS_MAX && !keys.contains_key(key);
                let mut found = if full { None } else { Some(keys.entry(key).or_default()) };
                if let Some(found) = &mut found {
                    found.values.insert(own);
                }
                while let Some(tag) = tags.next_if(|tag| key_of(tag) == key) {
                    let hash = hasher.hash_one(tag);
                    if let Some(found) = &mut found {
                        found.values.insert(hash);
                    }
                    own = own.wrapping_add(hash);
                }
                if let Some(found) = found {
                    found.series += 1;
                    found.without.insert(whole.wrapping_sub(own));
                }
            }
        }
        let mut names: Vec<_> =
            names.into_iter().map(|(name, makers)| (name, makers.series(), makers)).collect();
        names.sort_by_key(|(name, series, _)| (Reverse(*series), *name));
        names.truncate(limit);
        let name = |(name, series, makers): (&str, usize, Makers)| Name {
            name: name.to_owned(),
            series,
            sender: makers.most().map(&called).unwrap_or_default(),
            senders: makers.0.len(),
        };
        cost.names = names.into_iter().map(name).collect();
        cost.unlisted = cost.series - cost.names.iter().map(|name| name.series).sum::<usize>();
        let mut senders = BTreeMap::<String, usize>::new();
        for (maker, series) in makers.0 {
            *senders.entry(called(maker)).or_default() += series;
        }
        cost.senders =
            senders.into_iter().map(|(sender, series)| Sender { sender, series }).collect();
        cost.senders.sort_by_key(|sender| Reverse(sender.series));
        cost.senders.truncate(limit);
        let key = |(key, found): (&str, Found)| {
            // Some would become one with a series that never had the key.
            let there = found.without.iter().filter(|hash| all.contains(*hash)).count();
            Key {
                key: key.to_owned(),
                values: found.values.len(),
                series: found.series,
                saved: found.series - found.without.len() + there,
            }
        };
        cost.keys = keys.into_iter().map(key).collect();
        cost.keys.sort_by(|a, b| {
            let order = b.saved.cmp(&a.saved).then(b.values.cmp(&a.values));
            order.then_with(|| a.key.cmp(&b.key))
        });
        cost.keys.truncate(limit);
        cost
    }
}

/// Series by the number of the account of who made them, in the order of the numbers: of most names
/// there is one.
#[derive(Default)]
struct Makers(SmallVec<[(u16, usize); 1]>);

impl Makers {
    fn add(&mut self, maker: u16, series: usize) {
        match self.0.binary_search_by_key(&maker, |(maker, _)| *maker) {
            Ok(at) => self.0[at].1 += series,
            Err(at) => self.0.insert(at, (maker, series)),
        }
    }

    fn series(&self) -> usize {
        self.0.iter().map(|(_, series)| series).sum()
    }

    fn most(&self) -> Option<u16> {
        self.0
            .iter()
            .max_by_key(|(maker, series)| (*series, Reverse(*maker)))
            .map(|(maker, _)| *maker)
    }
}

fn key_of(tag: &str) -> &str {
    tag.split_once(':').map_or(tag, |(key, _)| key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Source;
    use crate::sample::Kind;

    fn context(text: &str) -> Context {
        let (name, tags) = text.split_once(' ').unwrap_or((text, ""));
        let tags = tags.split(',').filter(|tag| !tag.is_empty()).map(str::to_owned).collect();
        Context::new(name, Kind::Count, "h", tags, Source::default())
    }

    fn called(number: u16) -> String {
        format!("sender {number}")
    }

    #[test]
    fn series_are_those_of_who_sent_them_first() {
        let all = [("a x:1", 1), ("a x:2", 2), ("a x:3", 2), ("b", 1), ("b y:1", 3), ("c", 2)];
        let all = all.map(|(text, maker)| context(text).made_by(maker));
        let cost = Cost::of(all.iter(), 2, called);
        let names = cost.names.iter().map(|n| (n.name.as_str(), n.sender.as_str(), n.senders));
        assert_eq!(names.collect::<Vec<_>>(), [("a", "sender 2", 2), ("b", "sender 1", 2)]);
        let senders = cost.senders.iter().map(|s| (s.sender.as_str(), s.series));
        assert_eq!(senders.collect::<Vec<_>>(), [("sender 2", 3), ("sender 1", 2)]);
    }

    #[test]
    fn names_and_keys_are_counted_and_savings_are_what_would_merge() {
        let mut all = Vec::new();
        for user in 0..10 {
            for code in ["200", "500"] {
                all.push(context(&format!("requests user:{user},code:{code},env:x")));
            }
        }
        all.push(context("jobs env:x,user:1,user:2"));
        all.push(context("idle"));
        let cost = Cost::of(all.iter(), 10, called);
        let names: Vec<_> = cost.names.iter().map(|n| (n.name.as_str(), n.series)).collect();
        assert_eq!((cost.series, &*names), (22, &[("requests", 20), ("idle", 1), ("jobs", 1)][..]));
        let keys = cost.keys.iter().map(|k| (k.key.as_str(), k.values, k.series, k.saved));
        assert_eq!(
            keys.collect::<Vec<_>>(),
            // Without user there would be two series of requests; without env as many as now.
            [("user", 10, 21, 18), ("code", 2, 20, 10), ("env", 1, 21, 0)]
        );
        assert_eq!(cost.kinds, BTreeMap::from([("count", 22)]));
    }

    #[test]
    fn what_loses_a_key_may_be_one_with_a_series_that_never_had_it() {
        let all = ["a x:1", "a x:2", "a", "b x:1"].map(context);
        assert_eq!(Cost::of(all.iter(), 10, called).keys[0].saved, 2);
    }

    #[test]
    fn lists_are_bounded_and_the_rest_is_added_up() {
        let all: Vec<_> = (0..50).map(|i| context(&format!("n{i} k{i}:v"))).collect();
        let cost = Cost::of(all.iter(), 5, called);
        assert_eq!((cost.names.len(), cost.keys.len(), cost.unlisted), (5, 5, 45));
    }
}
