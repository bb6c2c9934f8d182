//! Which part of tallyd's work a sample belongs to.

/// Every stage that is always shown, in the order of a datagram's way. Collectors have stages of
/// their own, named as they are.
pub const STAGES: [&str; 11] = [
    "receive",
    "parse",
    "aggregate",
    "flush",
    "journal",
    "encode",
    "spool",
    "send",
    "pages",
    "profiler",
    "other",
];

/// The stage of a sample, by its functions from the inside out and the name of its thread.
pub fn of<'a>(functions: impl Iterator<Item = &'a str>, thread: &str) -> &'a str {
    let mut stages = functions.filter_map(of_function);
    match stages.next() {
        // A flush works on the same series as the samples do.
        Some("aggregate") if stages.any(|stage| stage == "flush") => "flush",
        Some(stage) => stage,
        None => of_thread(thread),
    }
}

/// By the module of a function of tallyd's own, if it belongs to a stage.
fn of_function(function: &str) -> Option<&str> {
    // `tallyd::a::b`, `<tallyd::a::B>::c`, `<tallyd::a::B as other::C>::d`.
    let path = function.trim_start_matches(['<', '&']).strip_prefix("tallyd::")?;
    let mut modules = path.split("::").map(|part| {
        let end = part.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(part.len());
        &part[..end]
    });
    Some(match (modules.next()?, modules.next()) {
        ("collectors", Some(collector)) => collector,
        ("sinks", Some("spool")) => "spool",
        ("intake" | "origin", _) => "receive",
        ("parse" | "stream", _) => "parse",
        ("reader" | "spellings" | "shard", _) => "aggregate",
        ("flush", _) => "flush",
        ("journal" | "replay", _) => "journal",
        ("encode", _) => "encode",
        ("sinks", _) => "send",
        ("status", _) => "pages",
        ("profile", _) => "profiler",
        // What several stages use belongs to the one that calls it.
        _ => return None,
    })
}

/// By the thread: most of the rest of its time is spent in the libraries that it calls.
fn of_thread(thread: &str) -> &'static str {
    let threads =
        [("intake", "receive"), ("flush", "flush"), ("control", "send"), ("profile", "profiler")];
    threads.iter().find(|(name, _)| thread.starts_with(name)).map_or("other", |(_, stage)| stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_function_that_belongs_to_a_stage_decides() {
        for (path, thread, stage) in [
            ("tallyd::parse::line < tallyd::reader::Reader::datagram < main", "intake-0", "parse"),
            ("<tallyd::parse::Fields as core::iter::Iterator>::next", "x", "parse"),
            ("memchr::memchr < <tallyd::reader::Reader>::datagram", "intake-0", "aggregate"),
            ("tallyd::value::Cell::add < tallyd::shard::Shard::add", "intake-0", "aggregate"),
            ("malloc < tallyd::shard::Shards::flush < tallyd::flush::Flush::batch", "x", "flush"),
            ("tallyd::flush::run < start_thread", "x", "flush"),
            ("tallyd::context::Context::tags < tallyd::encode::table::rows", "x", "encode"),
            ("tallyd::encode::table::rows < tallyd::flush::Flush::batch", "x", "encode"),
            ("tallyd::sinks::spool::Spool::put < tallyd::sinks::deliver::run", "x", "spool"),
            ("tallyd::sinks::http::{{closure}}", "x", "send"),
            ("&tallyd::sinks::Sinks", "x", "send"),
            ("tallyd::sys::buffer < tallyd::intake::datagrams::run", "x", "receive"),
            ("tallyd::status::series::document", "x", "pages"),
            ("tallyd::profile::window::Window::path", "x", "profiler"),
            ("tallyd::collectors::docker::run", "x", "docker"),
            ("tallyd::collectors::cgroup::<impl core::fmt::Debug for X>::fmt", "x", "cgroup"),
            ("tallyd_other::parse::line", "x", "other"),
            ("tallyd::main", "tallyd", "other"),
            ("rustls::write", "control", "send"),
            ("recvmmsg", "intake-3", "receive"),
            ("", "intake-streams", "receive"),
            ("__libc_free", "flush", "flush"),
            ("madvise", "profile", "profiler"),
        ] {
            let functions = path.split(" < ");
            assert_eq!(of(functions, thread), stage, "{path} on {thread}");
            assert!(STAGES.contains(&stage) || ["docker", "cgroup"].contains(&stage));
        }
    }
}
