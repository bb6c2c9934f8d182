//! Names that are not sent.

use std::collections::BTreeSet;

use crate::value::Suffix;

/// Names that are not sent. Tested when a series is new, and again, as newer Agents do, for each
/// figure of a histogram, whose name has a suffix.
#[derive(Debug, Default)]
pub struct Blocklist {
    names: BTreeSet<String>,
    are_prefixes: bool,
}

impl Blocklist {
    /// Whole names, or their beginnings.
    pub fn new(names: impl IntoIterator<Item = String>, are_prefixes: bool) -> Self {
        Self { names: names.into_iter().collect(), are_prefixes }
    }

    /// `name` is a whole one, namespace and suffix included.
    pub fn blocks(&self, name: &str) -> bool {
        if self.are_prefixes {
            self.names.iter().any(|start| name.starts_with(start))
        } else {
            self.names.contains(name)
        }
    }

    /// Whether the figure with this suffix, of a histogram with this name, is not sent.
    pub fn blocks_figure(&self, name: &str, suffix: Suffix) -> bool {
        !self.names.is_empty() && self.blocks(&format!("{name}{suffix}"))
    }
}
