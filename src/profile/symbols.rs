//! Names of functions for addresses in this process.

use std::collections::HashMap;
use std::sync::Arc;

use super::maps::{self, Mapping};
use super::window::Window;

/// Addresses whose names are remembered. Beyond them all are forgotten and looked up anew.
const KNOWN_MAX: usize = 20_000;

/// A function at an address. Where the program has line tables, a function that was inlined has a
/// line of its own, before the one that it was inlined into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub function: Arc<str>,
    /// The source file, or nothing.
    pub file: Arc<str>,
    /// The line in it, or 0.
    pub line: u32,
}

/// What has been looked up so far.
#[derive(Debug, Default)]
pub struct Symbols {
    known: HashMap<usize, Arc<[Line]>>,
    texts: HashMap<String, Arc<str>>,
}

impl Symbols {
    /// Looks up every address of a window.
    pub fn learn(&mut self, window: &Window) {
        if self.known.len() > KNOWN_MAX {
            *self = Self::default();
        }
        let mut mappings = None;
        for address in window.nodes.iter().map(|node| node.address) {
            if self.known.contains_key(&address) {
                continue;
            }
            let mappings = mappings.get_or_insert_with(|| maps::code().unwrap_or_default());
            let lines = self.look_up(address, mappings);
            self.known.insert(address, lines);
        }
        if mappings.is_some() {
            // What was read of the program's file would take megabytes until the next look.
            backtrace::clear_symbol_cache();
        }
    }

    /// The functions at an address, the innermost first: at least one.
    pub fn at(&self, address: usize) -> Arc<[Line]> {
        self.known.get(&address).cloned().unwrap_or_else(|| {
            Arc::new([Line { function: "[unknown]".into(), file: "".into(), line: 0 }])
        })
    }

    /// The functions along a path from the inside out.
    pub fn functions(&self, path: &[usize]) -> Vec<Arc<str>> {
        let lines = path.iter().map(|address| self.at(*address));
        lines
            .flat_map(|at| at.iter().map(|l| Arc::clone(&l.function)).collect::<Vec<_>>())
            .collect()
    }

    fn look_up(&mut self, address: usize, mappings: &[Mapping]) -> Arc<[Line]> {
        let mut lines = Vec::new();
        // The address is taken for one that is returned to: the one before it is looked up.
        let behind = std::ptr::without_provenance_mut(address.wrapping_add(1));
        backtrace::resolve(behind, |symbol| {
            let Some(name) = symbol.name() else { return };
            lines.push(Line {
                // Without the hash that ends a mangled name.
                function: self.text(format!("{name:#}")),
                file: self
                    .text(symbol.filename().map_or_else(String::new, |f| f.display().to_string())),
                line: symbol.lineno().unwrap_or(0),
            });
        });
        if lines.is_empty() {
            let mapping = mappings.iter().find(|mapping| mapping.contains(address));
            let name = mapping.map_or("unknown", Mapping::name).trim_matches(['[', ']']);
            let function = self.text(format!("[{name}]"));
            lines.push(Line { function, file: self.text(String::new()), line: 0 });
        }
        lines.into()
    }

    /// One copy of each text.
    fn text(&mut self, text: String) -> Arc<str> {
        Arc::clone(self.texts.entry(text).or_insert_with_key(|text| text.as_str().into()))
    }
}
