//! A window in the format of `pprof`: a gzip-compressed protobuf, `perftools.profiles.Profile`.
//!
//! The numbers of fields are those of `profile.proto` of the pprof project.

use std::collections::HashMap;
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::maps::Mapping;
use super::symbols::{Line, Symbols};
use super::window::Window;
use crate::encode::protobuf::Message;

/// What is known of the program beside its samples.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The program's own mapping comes first.
    pub mappings: Vec<Mapping>,
    /// In hexadecimal digits, as linkers note it; empty where they did not.
    pub build_id: String,
}

/// The compressed profile. `symbols` have learnt the window.
///
/// # Errors
/// None that memory can give.
pub fn encode(window: &Window, symbols: &Symbols, program: &Program) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    Profile::default().write(&mut Message(&mut raw), window, symbols, program);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&raw)?;
    gzip.finish()
}

/// Numbers of what is referred to by number, while a profile is being written.
#[derive(Default)]
struct Profile {
    strings: HashMap<String, i64>,
    /// In the order of their numbers; the first is the empty one.
    table: Vec<String>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<usize, u64>,
}

impl Profile {
    fn write(
        &mut self,
        profile: &mut Message<'_>,
        window: &Window,
        symbols: &Symbols,
        program: &Program,
    ) {
        self.string("");
        let (count, cpu) = (self.string("samples"), self.string("cpu"));
        let (one, nanoseconds) = (self.string("count"), self.string("nanoseconds"));
        let thread_key = self.string("thread");
        value_type(profile, 1, count, one);
        value_type(profile, 1, cpu, nanoseconds);
        for node in window.nodes.iter().filter(|node| node.own > 0) {
            let (path, thread) = window.path(node);
            let locations: Vec<u64> = path
                .iter()
                .map(|address| self.location(profile, *address, symbols, program))
                .collect();
            let own = u64::from(node.own);
            let thread = self.string(thread);
            profile.message(2, |sample| {
                sample.packed_uint64(1, locations.into_iter());
                sample.packed_uint64(2, [own, own * window.period()].into_iter());
                sample.message(3, |label| {
                    label.int64(1, thread_key);
                    label.int64(2, thread);
                });
            });
        }
        for (number, mapping) in program.mappings.iter().enumerate() {
            let file = self.string(&mapping.file);
            let build_id = self.string(if number == 0 { &program.build_id } else { "" });
            profile.message(3, |message| {
                message.uint64(1, number as u64 + 1);
                message.uint64(2, mapping.start as u64);
                message.uint64(3, mapping.end as u64);
                message.uint64(4, mapping.offset as u64);
                message.int64(5, file);
                message.int64(6, build_id);
                // Names were looked up already: functions, files, lines, inlined ones.
                (7..=10).for_each(|field| message.uint64(field, 1));
            });
        }
        profile.int64(9, window.begun.0.saturating_mul(1_000_000));
        profile.int64(10, i64::try_from(window.length.as_nanos()).unwrap_or(i64::MAX));
        value_type(profile, 11, cpu, nanoseconds);
        profile.uint64(12, window.period());
        profile.int64(14, cpu);
        for text in &self.table {
            // As a message, an empty one is written too.
            profile.message(6, |message| message.0.extend_from_slice(text.as_bytes()));
        }
    }

    /// The number of a place, which is written when it comes for the first time.
    fn location(
        &mut self,
        profile: &mut Message<'_>,
        address: usize,
        symbols: &Symbols,
        program: &Program,
    ) -> u64 {
        if let Some(&number) = self.locations.get(&address) {
            return number;
        }
        let number = self.locations.len() as u64 + 1;
        self.locations.insert(address, number);
        let lines = symbols.at(address);
        let functions: Vec<_> =
            lines.iter().map(|line| (self.function(profile, line), line.line)).collect();
        let mapping = program.mappings.iter().position(|mapping| mapping.contains(address));
        profile.message(4, |location| {
            location.uint64(1, number);
            location.uint64(2, mapping.map_or(0, |mapping| mapping as u64 + 1));
            location.uint64(3, address as u64);
            for (function, line) in functions {
                location.message(4, |message| {
                    message.uint64(1, function);
                    message.uint64(2, line.into());
                });
            }
        });
        number
    }

    fn function(&mut self, profile: &mut Message<'_>, line: &Line) -> u64 {
        let (name, file) = (self.string(&line.function), self.string(&line.file));
        let next = self.functions.len() as u64 + 1;
        *self.functions.entry((name, file)).or_insert_with(|| {
            profile.message(5, |message| {
                message.uint64(1, next);
                message.int64(2, name);
                message.int64(3, name);
                message.int64(4, file);
            });
            next
        })
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(&number) = self.strings.get(text) {
            return number;
        }
        let number = self.table.len() as i64;
        self.strings.insert(text.to_owned(), number);
        self.table.push(text.to_owned());
        number
    }
}

/// What a value of the samples means, and its unit.
fn value_type(profile: &mut Message<'_>, field: u32, meaning: i64, unit: i64) {
    profile.message(field, |message| {
        message.int64(1, meaning);
        message.int64(2, unit);
    });
}
