//! Every capture of a real client, replayed: nothing panics, every well-formed value is accepted,
//! and every refusal is one that `captures/expected.json` explains.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tallyd::parse::{self, Options};
use tallyd::sample::{Dialect, Message, Reject};
use tallyd::stream::{FrameError, Framer};

/// What one file gives in one dialect.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Outcome {
    metrics: usize,
    events: usize,
    checks: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    refused: Vec<Refused>,
}

/// Refused lines of one reason.
#[derive(Debug, Serialize, Deserialize)]
struct Refused {
    reason: String,
    count: usize,
    /// The first of these lines, escaped.
    first: String,
    /// Why it is right to refuse them.
    why: String,
}

impl PartialEq for Refused {
    fn eq(&self, other: &Self) -> bool {
        (&self.reason, self.count, &self.first) == (&other.reason, other.count, &other.first)
    }
}

/// `folder/file`, then the dialect's word.
type Table = BTreeMap<String, BTreeMap<String, Outcome>>;

#[test]
fn captures() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/captures");
    let text = std::fs::read_to_string(root.join("expected.json")).expect("expected.json");
    let mut expected: Table = serde_json::from_str(&text).expect("expected.json");
    let mut found = Table::new();
    for file in files(&root) {
        let bytes = std::fs::read(root.join(&file)).expect("a capture");
        let payloads = payloads(&file, &bytes);
        let mut dialects = vec![("datadog", Dialect::Datadog)];
        if PLAIN_STATSD.iter().any(|plain| file.starts_with(plain)) {
            dialects.push(("statsd", Dialect::Statsd));
        }
        let outcomes = dialects.into_iter().map(|(word, dialect)| {
            let options = Options { dialect, origin_fields: true, timestamps: true };
            (word.to_owned(), outcome(&payloads, options))
        });
        found.insert(file, outcomes.collect());
    }
    let outcomes = || found.values().flat_map(|dialects| dialects.values());
    let accepted: usize = outcomes().map(|o| o.metrics + o.events + o.checks).sum();
    let refused: usize = outcomes().flat_map(|o| &o.refused).map(|refused| refused.count).sum();
    println!("captures: {} files, {accepted} messages accepted, {refused} refused", found.len());
    for (file, outcomes) in &found {
        let listed = expected.remove(file);
        assert!(
            listed.as_ref() == Some(outcomes),
            "{file}\nlisted: {listed:#?}\nfound:  {}",
            serde_json::to_string_pretty(outcomes).expect("JSON")
        );
        for refused in listed.iter().flat_map(BTreeMap::values).flat_map(|o| &o.refused) {
            assert!(!refused.why.is_empty(), "{file}: a refusal without an explanation");
        }
    }
    assert!(expected.is_empty(), "listed, but there is no such file: {:?}", expected.keys());
}

/// Clients of the original statsd: read in its dialect as well.
const PLAIN_STATSD: [&str; 15] = [
    "deb-go-alexcesaro-statsd.v1/",
    "deb-libnet-statsd-perl-0.12/",
    "deb-ruby-statsd-1.4.0/",
    "npm-lynx-0.2.0/",
    "npm-node-statsd-0.1.1/",
    "npm-statsd-client-0.4.7/",
    "py-aio-statsd-0.2.9/statsd.",
    "py-markus-5.2.0/statsd",
    "py-python-statsd-3.0.0/",
    "py-statsd-4.0.1/",
    "py-statsd-tags-3.2.1/",
    "py-statsdmetrics-2.0.2/",
    "rs-cadence-1.8.0/",
    "rs-statsd-0.16.1/",
    "shell-one-liners/",
];

fn files(root: &Path) -> Vec<String> {
    let entries = |path: &Path| -> Vec<_> {
        std::fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry")).collect()
    };
    let mut found = Vec::new();
    for folder in entries(root).iter().filter(|entry| entry.path().is_dir()) {
        let name = folder.file_name();
        for file in entries(&folder.path()) {
            found.push(format!("{}/{}", name.display(), file.file_name().display()));
        }
    }
    found.sort();
    found
}

/// What the transport hands to the parser; its name stands before `.bin`.
fn payloads(file: &str, bytes: &[u8]) -> Vec<Vec<u8>> {
    if file.contains(".udsstream.") {
        return stream(Framer::new(8192), bytes);
    }
    if file.contains(".tcp.") {
        return stream(Framer::lines(8192), bytes);
    }
    if file.contains(".http.") {
        return http_bodies(bytes);
    }
    assert!(file.ends_with(".udp.bin") || file.ends_with(".uds.bin"), "{file}");
    let mut rest = bytes;
    let mut found = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk() {
        let (datagram, behind) = behind.split_at(u32::from_le_bytes(*length) as usize);
        found.push(datagram.to_vec());
        rest = behind;
    }
    found
}

/// In pieces of at most 100 bytes, as they might come.
fn stream(mut framer: Framer, bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut drain = |framer: &mut Framer| {
        while let Some(payload) = framer.payload() {
            let payload: Result<_, FrameError> = payload.map(<[u8]>::to_vec);
            found.push(payload.expect("a payload"));
        }
    };
    let mut rest = bytes;
    while !rest.is_empty() {
        let space = framer.space();
        let (piece, behind) = rest.split_at(rest.len().min(space.len()).min(100));
        space[..piece.len()].copy_from_slice(piece);
        framer.filled(piece.len());
        drain(&mut framer);
        rest = behind;
    }
    framer.end();
    drain(&mut framer);
    found
}

/// The bodies of the requests on one connection; all captured ones tell their length.
fn http_bodies(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let end = rest.windows(4).position(|w| w == b"\r\n\r\n").expect("a header") + 4;
        let header = std::str::from_utf8(&rest[..end]).expect("a header of text");
        let length = header.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let body_end = end + length.expect("a length").parse::<usize>().expect("a length");
        found.push(rest[end..body_end].to_vec());
        rest = &rest[body_end..];
    }
    found
}

fn outcome(payloads: &[Vec<u8>], options: Options) -> Outcome {
    let mut outcome = Outcome::default();
    for line in payloads.iter().flat_map(|payload| parse::lines(payload)) {
        parse::messages(line, options, |message| match message {
            Ok(Message::Metric(_)) => outcome.metrics += 1,
            Ok(Message::Event(event)) => {
                outcome.events += 1;
                // Cut at the right places, whatever the client has counted.
                let has_tags = line.windows(2).any(|pair| pair == b"|#");
                assert_eq!(!event.tags.is_empty(), has_tags, "{}", line.escape_ascii());
                // Old clients send Latin-1.
                let utf8 = |bytes| std::str::from_utf8(bytes).is_ok();
                assert!(utf8(event.title) || !utf8(line), "{}", line.escape_ascii());
            }
            Ok(Message::Check(_)) => outcome.checks += 1,
            Err(reject) => refuse(&mut outcome.refused, reject, line),
        });
    }
    outcome.refused.sort_by(|a, b| a.reason.cmp(&b.reason));
    outcome
}

fn refuse(refused: &mut Vec<Refused>, reject: Reject, line: &[u8]) {
    let reason = reject.word().to_owned();
    match refused.iter_mut().find(|refused| refused.reason == reason) {
        Some(refused) => refused.count += 1,
        None => {
            let first = line.escape_ascii().to_string();
            refused.push(Refused { reason, count: 1, first, why: String::new() });
        }
    }
}
