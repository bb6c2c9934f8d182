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

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use prost::Message as _;

    use super::super::symbols::tests::symbols;
    use super::super::window::tests::window;
    use super::*;

    /// The messages of `profile.proto`, as prost reads them.
    mod judge {
        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Profile {
            #[prost(message, repeated, tag = "1")]
            pub(super) sample_type: Vec<ValueType>,
            #[prost(message, repeated, tag = "2")]
            pub(super) sample: Vec<Sample>,
            #[prost(message, repeated, tag = "3")]
            pub(super) mapping: Vec<Mapping>,
            #[prost(message, repeated, tag = "4")]
            pub(super) location: Vec<Location>,
            #[prost(message, repeated, tag = "5")]
            pub(super) function: Vec<Function>,
            #[prost(string, repeated, tag = "6")]
            pub(super) string_table: Vec<String>,
            #[prost(int64, tag = "9")]
            pub(super) time_nanos: i64,
            #[prost(int64, tag = "10")]
            pub(super) duration_nanos: i64,
            #[prost(message, optional, tag = "11")]
            pub(super) period_type: Option<ValueType>,
            #[prost(int64, tag = "12")]
            pub(super) period: i64,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct ValueType {
            #[prost(int64, tag = "1")]
            pub(super) r#type: i64,
            #[prost(int64, tag = "2")]
            pub(super) unit: i64,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Sample {
            #[prost(uint64, repeated, tag = "1")]
            pub(super) location_id: Vec<u64>,
            #[prost(int64, repeated, tag = "2")]
            pub(super) value: Vec<i64>,
            #[prost(message, repeated, tag = "3")]
            pub(super) label: Vec<Label>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Label {
            #[prost(int64, tag = "1")]
            pub(super) key: i64,
            #[prost(int64, tag = "2")]
            pub(super) str: i64,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Mapping {
            #[prost(uint64, tag = "1")]
            pub(super) id: u64,
            #[prost(uint64, tag = "2")]
            pub(super) memory_start: u64,
            #[prost(uint64, tag = "3")]
            pub(super) memory_limit: u64,
            #[prost(uint64, tag = "4")]
            pub(super) file_offset: u64,
            #[prost(int64, tag = "5")]
            pub(super) filename: i64,
            #[prost(int64, tag = "6")]
            pub(super) build_id: i64,
            #[prost(bool, tag = "7")]
            pub(super) has_functions: bool,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Location {
            #[prost(uint64, tag = "1")]
            pub(super) id: u64,
            #[prost(uint64, tag = "2")]
            pub(super) mapping_id: u64,
            #[prost(uint64, tag = "3")]
            pub(super) address: u64,
            #[prost(message, repeated, tag = "4")]
            pub(super) line: Vec<Line>,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Line {
            #[prost(uint64, tag = "1")]
            pub(super) function_id: u64,
            #[prost(int64, tag = "2")]
            pub(super) line: i64,
        }

        #[derive(Clone, PartialEq, prost::Message)]
        pub(super) struct Function {
            #[prost(uint64, tag = "1")]
            pub(super) id: u64,
            #[prost(int64, tag = "2")]
            pub(super) name: i64,
            #[prost(int64, tag = "4")]
            pub(super) filename: i64,
        }
    }

    /// A sample with the texts that its numbers stand for.
    fn in_words(profile: &judge::Profile, sample: &judge::Sample) -> (String, String, Vec<i64>) {
        let text = |number: i64| profile.string_table[number as usize].as_str();
        let functions = sample.location_id.iter().map(|id| {
            let location = profile.location.iter().find(|l| l.id == *id).expect("a location");
            let lines = location.line.iter().map(|line| {
                let function = profile.function.iter().find(|f| f.id == line.function_id);
                let function = function.expect("a function");
                assert_eq!((text(function.filename), line.line), ("src/x.rs", 7));
                text(function.name)
            });
            format!("{}@{:x}", lines.collect::<Vec<_>>().join("<"), location.address)
        });
        let [label] = &sample.label[..] else { panic!("{:?}", sample.label) };
        assert_eq!(text(label.key), "thread");
        (text(label.str).to_owned(), functions.collect::<Vec<_>>().join(" "), sample.value.clone())
    }

    #[test]
    fn prost_reads_the_samples() {
        let symbols =
            symbols(&[(0x10, &["main"]), (0x20, &["inner", "outer"]), (0x90, &["malloc"])]);
        let window = window(&[
            ("one", &[0x90, 0x20, 0x10]),
            ("one", &[0x90, 0x20, 0x10]),
            ("one", &[0x20, 0x10]),
            ("two", &[0x10]),
        ]);
        let mapping =
            |start, end, file: &str| Mapping { start, end, offset: 0x7, file: file.into() };
        let mappings = vec![mapping(0x8, 0x30, "/usr/bin/tallyd"), mapping(0x80, 0x99, "/lib/c")];
        let program = Program { mappings, build_id: "abcd".to_owned() };
        let gzip = encode(&window, &symbols, &program).expect("bytes");
        let mut raw = Vec::new();
        flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut raw).expect("gzip");
        let profile = judge::Profile::decode(&raw[..]).expect("protobuf");

        let text = |number: i64| profile.string_table[number as usize].as_str();
        assert_eq!(text(0), "");
        let types = profile.sample_type.iter().chain(&profile.period_type);
        assert_eq!(
            types.map(|t| (text(t.r#type), text(t.unit))).collect::<Vec<_>>(),
            [("samples", "count"), ("cpu", "nanoseconds"), ("cpu", "nanoseconds")]
        );
        let mut samples: Vec<_> = profile.sample.iter().map(|s| in_words(&profile, s)).collect();
        samples.sort();
        let expected = [
            ("one", "inner<outer@20 main@10", [1, 10_000_000]),
            ("one", "malloc@90 inner<outer@20 main@10", [2, 20_000_000]),
            ("two", "main@10", [1, 10_000_000]),
        ];
        let expected =
            expected.map(|(thread, path, value)| (thread.into(), path.into(), value.into()));
        assert_eq!(samples, expected);
        let mappings = profile.mapping.iter().map(|m| {
            assert!(m.has_functions);
            (
                m.id,
                m.memory_start,
                m.memory_limit,
                m.file_offset,
                text(m.filename),
                text(m.build_id),
            )
        });
        assert_eq!(
            mappings.collect::<Vec<_>>(),
            [(1, 0x8, 0x30, 7, "/usr/bin/tallyd", "abcd"), (2, 0x80, 0x99, 7, "/lib/c", "")]
        );
        let mut places: Vec<_> =
            profile.location.iter().map(|l| (l.address, l.mapping_id)).collect();
        places.sort_unstable();
        assert_eq!(places, [(0x10, 1), (0x20, 1), (0x90, 2)]);
        assert_eq!(
            (profile.time_nanos, profile.duration_nanos, profile.period),
            (1_000_000_000_000, 60_000_000_000, 10_000_000)
        );
    }
}
