//! Who may import whom: ARCHITECTURE.md says it in prose, this test holds the code to it.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the ground up; a module imports from its own group and from those before it.
const LAYERS: [&[&str]; 10] = [
    &[
        "bins", "cgroup", "compact", "fail", "hash", "logging", "sample", "secrets", "service",
        "state", "sys", "time",
    ],
    &["context", "sketch", "telemetry"],
    &[
        "batch",
        "blocklist",
        "cost",
        "grammar",
        "ledger",
        "origin",
        "parse",
        "rules",
        "stream",
        "value",
    ],
    &["capture", "encode", "journal", "shard"],
    &["flush", "profile", "reader", "replay", "sinks", "spellings"],
    &["collectors", "intake", "status"],
    &["config"],
    &["server"],
    &["cli"],
    &["fuzzing"],
];

/// What only some may touch: the text looked for, and the files it may stand in.
const RESERVED: [(&str, &[&str]); 7] = [
    ("unsafe ", &["sys.rs", "sys/memory.rs", "sys/receiver.rs", "profile/sampler.rs"]),
    ("nom::", &["grammar.rs"]),
    ("thread::sleep", &[]),
    (
        "reqwest::",
        &[
            "collectors/docker/engine.rs",
            "collectors/orchestrator.rs",
            "collectors/orchestrator/ecs.rs",
            "collectors/orchestrator/kubelet.rs",
            "sinks/http.rs",
            "sinks/datadog.rs",
        ],
    ),
    ("hdrhistogram::", &["telemetry/latency.rs"]),
    // Retry-After may be a date.
    ("SystemTime::now()", &["time.rs", "sinks/datadog.rs"]),
    (
        " Time::now()",
        &[
            "collectors/schedule.rs",
            "flush.rs",
            "server.rs",
            "intake/datagrams.rs",
            "intake/stdin.rs",
            "intake/streams.rs",
            "origin/resolver.rs",
            "status/api.rs",
            "profile.rs",
            "sinks/deliver.rs",
            "status/mod.rs",
            "time.rs",
        ],
    ),
];

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|layer| layer.contains(&module));
    found.unwrap_or_else(|| panic!("{module} is in no layer: add it here and to ARCHITECTURE.md"))
}

/// Every source file, by its path below `src`.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).expect("below src").display().to_string();
                files.push((name, fs::read_to_string(&path).expect("a text")));
            }
        }
    }
    files
}

/// The part of a file that is no test and no comment.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn imports_point_downwards() {
    let mut seen = 0;
    for (name, text) in sources() {
        let module = name.split(['/', '.']).next().expect("a name");
        if ["main", "lib"].contains(&module) {
            continue;
        }
        for line in code(&text) {
            for part in line.split("crate::").skip(1) {
                let imported: Vec<&str> = match part.strip_prefix('{') {
                    Some(list) => list.split([',', '}']).map(str::trim).collect(),
                    None => vec![part],
                };
                for imported in imported {
                    let word = |c: char| !(c.is_alphanumeric() || c == '_');
                    let imported = imported.split(word).next().expect("a word");
                    if imported.is_empty() {
                        continue;
                    }
                    seen += 1;
                    assert!(layer(imported) <= layer(module), "{name} imports {imported}: {line}");
                }
            }
        }
    }
    assert!(seen > 100, "only {seen} imports were found");
}

#[test]
fn what_is_reserved_stays_where_it_belongs() {
    for (name, text) in sources() {
        for (word, files) in RESERVED {
            let found = code(&text).find(|line| line.contains(word));
            assert!(found.is_none() || files.contains(&name.as_str()), "{name}: {found:?}");
        }
    }
}
