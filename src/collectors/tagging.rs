//! How tags of containers are made of what engines and orchestrators tell.

use std::collections::{BTreeMap, BTreeSet};

use super::image::ImageName;
use crate::origin::directory::EntityTags;

use Level::{High, Low, Orchestrator};

/// How far a tag multiplies series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Low,
    Orchestrator,
    High,
}

/// Puts the tags of a container together; each is there once.
#[derive(Debug, Default)]
pub struct Builder {
    low: BTreeSet<String>,
    orchestrator: BTreeSet<String>,
    high: BTreeSet<String>,
    /// Names that have a value already.
    named: BTreeSet<String>,
}

impl Builder {
    pub fn add_image(&mut self, image: &ImageName) {
        self.add(Low, "image_name", &image.long);
        self.add(Low, "short_image", &image.short);
        self.add(Low, "image_tag", &image.tag);
    }

    pub fn add(&mut self, level: Level, name: &str, value: &str) {
        if !value.is_empty() && !name.is_empty() {
            self.named.insert(name.to_owned());
            self.push(level, format!("{name}:{value}"));
        }
    }

    /// Adds a tag unless another source has named it.
    pub fn add_first(&mut self, level: Level, name: &str, value: &str) {
        if !self.named.contains(name) {
            self.add(level, name, value);
        }
    }

    pub fn push(&mut self, level: Level, tag: String) {
        let tags = match level {
            Low => &mut self.low,
            Orchestrator => &mut self.orchestrator,
            High => &mut self.high,
        };
        tags.insert(tag);
    }

    pub fn finish(self) -> EntityTags {
        EntityTags {
            low: self.low.into_iter().collect(),
            orchestrator: self.orchestrator.into_iter().collect(),
            high: self.high.into_iter().collect(),
        }
    }
}

/// Adds the tag that rules name for a label or variable: by a pattern of its name. A `+` before the
/// tag's name stands for high cardinality; `placeholder` in it stands for the name of the label.
pub fn by_rules(
    rules: &BTreeMap<String, String>,
    placeholder: &str,
    name: &str,
    value: &str,
    tags: &mut Builder,
) {
    for (pattern, tag) in rules {
        if matches_pattern(pattern, name) {
            let (level, tag) = tag.strip_prefix('+').map_or((Low, &**tag), |tag| (High, tag));
            tags.add(level, &tag.replace(placeholder, name), value);
        }
    }
}

/// Whether a pattern, in which `*` stands for any characters, matches the whole of a name, whatever
/// the case.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_ascii_lowercase(), name.to_ascii_lowercase());
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    name.ends_with(last)
}

/// The region and the account in `arn:aws:ecs:us-west-2:123456789012:task/...`.
pub fn place_of_task(arn: &str, tags: &mut Builder) {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    if let ["arn", _, "ecs", region, account, _] = parts[..] {
        tags.add(Low, "region", region);
        tags.add(Low, "aws_account", account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, hit) in [
            ("a", "A", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*b", "ab", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*b*", "abc", true),
            ("a*b*c", "axbyc", true),
            ("ab*ba", "aba", false),
            ("*", "", true),
        ] {
            assert_eq!(matches_pattern(pattern, name), hit, "{pattern} {name}");
        }
    }
}
