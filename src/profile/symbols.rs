//! Names of functions for addresses in this process.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::maps::{self, Mapping};
use super::window::Window;
use crate::sys;

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
            // What was read of line tables, and the code that read it, would take many megabytes
            // until the next look.
            backtrace::clear_symbol_cache();
            sys::trim_memory();
            sys::release_code();
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
            // Without the hash that ends a mangled name.
            let name = format!("{name:#}");
            let file = symbol.filename().and_then(Path::to_str).unwrap_or_default();
            lines.push(Line {
                function: self.text(qualified(&name, file).unwrap_or(name)),
                file: self.text(file.to_owned()),
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

/// Line tables name an inlined function without its module: `fold<u8, u64>`. Its file tells that:
/// `.../hashbrown-0.17.1/src/raw.rs` gives `hashbrown::raw::fold`. Nothing for a name that has its
/// module, and for a file that is not in a crate's `src`.
fn qualified(name: &str, file: &str) -> Option<String> {
    let bare = name.split('<').next().filter(|bare| !bare.is_empty())?;
    if bare.contains("::") {
        return None;
    }
    let (folder, path) = file.strip_suffix(".rs")?.rsplit_once("/src/")?;
    let crate_name = if folder == env!("CARGO_MANIFEST_DIR") {
        env!("CARGO_PKG_NAME")
    } else {
        let name = folder.rsplit('/').next()?;
        // A version begins with a digit.
        let version = name.match_indices('-').map(|(at, _)| at);
        let mut version =
            version.filter(|at| name[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
        version.next().map_or(name, |at| &name[..at])
    };
    let modules = path.split('/').filter(|module| !["lib", "main", "mod"].contains(module));
    let parts = std::iter::once(crate_name).chain(modules).chain([bare]);
    Some(parts.collect::<Vec<_>>().join("::").replace('-', "_"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Addresses and the names that are known of them, the innermost first.
    pub(in crate::profile) fn symbols(known: &[(usize, &[&str])]) -> Symbols {
        let line =
            |name: &&str| Line { function: (*name).into(), file: "src/x.rs".into(), line: 7 };
        let known = known.iter().map(|(at, names)| (*at, names.iter().map(line).collect()));
        Symbols { known: known.collect(), ..Symbols::default() }
    }

    #[test]
    fn a_file_gives_the_module_of_an_inlined_function() {
        let own = |path: &str| format!("{}/src/{path}", env!("CARGO_MANIFEST_DIR"));
        let cargo = "/home/x/.cargo/registry/src/index.crates.io-1949cf8c6b5b557f";
        for (name, file, function) in [
            ("metric", own("parse.rs"), Some("tallyd::parse::metric")),
            ("put<u8>", own("sinks/spool.rs"), Some("tallyd::sinks::spool::put")),
            ("all", own("sinks/mod.rs"), Some("tallyd::sinks::all")),
            (
                "find<A<b::C>>",
                format!("{cargo}/hashbrown-0.17.1/src/raw.rs"),
                Some("hashbrown::raw::find"),
            ),
            ("x", format!("{cargo}/zstd-sys-2.0.16+zstd.1.5.7/src/lib.rs"), Some("zstd_sys::x")),
            (
                "{closure#0}<u8>",
                "/rustc/a1b2/library/core/src/slice/mod.rs".to_owned(),
                Some("core::slice::{closure#0}"),
            ),
            ("tallyd::parse::line", own("parse.rs"), None),
            ("<tallyd::parse::Parts as core::Iterator>::next", own("parse.rs"), None),
            ("ZSTD_compress", "zstd/lib/compress/zstd_compress.c".to_owned(), None),
            ("malloc", String::new(), None),
        ] {
            assert_eq!(qualified(name, &file).as_deref(), function, "{name} in {file}");
        }
    }

    #[test]
    fn functions_of_this_program_and_of_others_have_names() {
        let here = functions_of_this_program_and_of_others_have_names as fn() as usize;
        let libc = libc::malloc as *const () as usize;
        let nodes = [here + 1, libc + 1, 1].map(|address| crate::profile::window::Node {
            caller: crate::profile::window::Caller::Thread(0),
            address,
            own: 1,
        });
        let window = Window { nodes: nodes.to_vec(), ..Window::default() };
        let mut symbols = Symbols::default();
        assert_eq!(&*symbols.at(here + 1)[0].function, "[unknown]");
        symbols.learn(&window);
        let name = |address| symbols.at(address).last().expect("one").function.to_string();
        let own =
            "tallyd::profile::symbols::tests::functions_of_this_program_and_of_others_have_names";
        assert_eq!(name(here + 1), own);
        assert!(name(libc + 1).ends_with("malloc"), "{}", name(libc + 1));
        assert_eq!(name(1), "[unknown]");
    }
}
