//! What must hold for any input: the bodies of the fuzz targets, kept here so that the tests replay
//! their corpora without a fuzzer. Each function panics where its rule is broken.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cgroup::identity::{Identity, Level, is_container_id};
use crate::cgroup::{proc, usage};
use crate::cli;
use crate::collectors::docker::{self, api, events, figures, filter, inventory};
use crate::collectors::image;
use crate::collectors::orchestrator::{Containers, Wishes, ecs, kubelet};
use crate::config::{self, Loaded, describe, tree};
use crate::context::Context;
use crate::journal::checkpoint::{Checkpoint, Entry};
use crate::journal::format::{END, Header, Records, Released};
use crate::origin::directory::{Directory, Source};
use crate::parse::{self, Cardinality, Options};
use crate::rules::{self, MapperProfile, Mapping, Outcome, Rules};
use crate::sample::{Dialect, Kind, Message, OriginFields, Sample, Values, split_tags};
use crate::shard::Generation;
use crate::stream::{FrameError, Framer};
use crate::time::Time;
use crate::value::{self, Cell, Plan};
use crate::{grammar, parse::Datagram};
use crate::{journal, sys};

/// Greatest payload of the streams under test: small, so that limits are met often.
const LIMIT: usize = 32;

/// The first byte chooses the options, the rest is a datagram. The fast path agrees with the
/// grammar on each line, and the original's dialect reads it without a panic.
pub fn datagram(data: &[u8]) {
    let Some((&flags, data)) = data.split_first() else { return };
    let options = Options {
        dialect: Dialect::Datadog,
        origin_fields: flags & 1 == 0,
        timestamps: flags & 2 == 0,
    };
    for line in parse::lines(data) {
        agree(line, options);
        parse::statsd_line(line, &mut |sample| {
            if let Ok(sample) = sample {
                let mut clean = String::new();
                parse::sanitise_key(sample.name, &mut clean);
                sample.tags().for_each(|tag| parse::sanitise_tag(tag, &mut clean));
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.;=-:".contains(&b);
                assert!(clean.bytes().all(plain), "{clean}");
            }
        });
    }
    // The complete lines and the tail are all lines.
    let cut = Datagram::new(data);
    assert!(parse::lines(data).eq(parse::lines(cut.complete).chain(cut.tail)));
}

/// What follows `_e{`.
pub fn event(data: &[u8]) {
    agree(&[b"_e{", data].concat(), Options { origin_fields: true, ..Options::default() });
}

/// What follows `_sc`.
pub fn check(data: &[u8]) {
    agree(&[b"_sc", data].concat(), Options { origin_fields: true, ..Options::default() });
}

/// Lines of an engine's stream of events. Each is read or left out; what was heard is not new a
/// second time, and makes messages of one line as their title.
pub fn docker_events(data: &[u8]) {
    let config = docker::Config::default();
    let mut memory = events::Memory::default();
    let mut heard = Vec::new();
    for event in data.split(|b| *b == b'\n').filter_map(events::Event::parse) {
        assert!(!event.action.contains(':'), "{event:?}");
        memory.hear(&event);
        assert_eq!(memory.hear(&event), events::Hearing::Again, "{event:?}");
        heard.push(events::Tagged { event, tags: Vec::new() });
    }
    for message in events::messages(&heard, &config, "host") {
        assert!(!message.title.contains('\n'), "{message:?}");
    }
}

/// What an engine answers; the first byte chooses to which question. A container that was taken in
/// is there once.
pub fn docker_answers(data: &[u8]) {
    let Some((&question, data)) = data.split_first() else { return };
    let config = docker::Config::default();
    let filter = filter::Filter::new(&config).expect("no patterns");
    let mut known = inventory::Inventory::new(&config, filter);
    match question % 4 {
        0 => {
            let Ok((list, _)) = api::list::<api::Listed>(data) else { return };
            let ids: std::collections::HashSet<_> = list.iter().map(|c| c.id.clone()).collect();
            let asked = known.ask();
            known.listed(list.clone(), asked);
            known.listed(list, asked);
            assert_eq!(known.snapshot().containers.len(), ids.len());
        }
        1 => {
            let Ok(inspected) = serde_json::from_slice::<api::Inspected>(data) else { return };
            let asked = known.ask();
            let container = known.inspected(&inspected, asked);
            let snapshot = known.snapshot();
            assert_eq!(snapshot.containers[0].tags, container.tags);
            assert_eq!(snapshot.containers.len(), 1);
        }
        2 => {
            let Ok(stats) = serde_json::from_slice::<api::Stats>(data) else { return };
            let usage = figures::usage_of_stats(&stats, None);
            let mut found = figures::Figures::default();
            found.usage(&usage, figures::Around::default());
            assert!(found.0.iter().all(|figure| figure.value >= 0.0), "{found:?}");
        }
        _ => {
            let Ok(info) = serde_json::from_slice::<api::Info>(data) else { return };
            figures::pool(&info.driver_status);
        }
    }
}

/// What a kubelet answers: the pods of its node.
pub fn kubelet(data: &[u8]) {
    let Ok(json) = serde_json::from_slice(data) else { return };
    let config = kubelet::Config {
        pod_labels_as_tags: BTreeMap::from([("*".to_owned(), "%%label%%".to_owned())]),
        pod_annotations_as_tags: BTreeMap::from([("*".to_owned(), "+%%annotation%%".to_owned())]),
        ..kubelet::Config::default()
    };
    published(Source::Kubelet, kubelet::containers(json, &config, &wishes()));
}

/// What the metadata endpoint of ECS answers: a task.
pub fn ecs(data: &[u8]) {
    let Ok(json) = serde_json::from_slice(data) else { return };
    published(Source::Ecs, ecs::containers(json, &wishes()).unwrap_or_default());
}

/// Every label and variable is a tag.
fn wishes() -> Wishes {
    let config = docker::Config {
        labels_as_tags: BTreeMap::from([("*".to_owned(), "%%label%%".to_owned())]),
        env_as_tags: BTreeMap::from([("*".to_owned(), "+%%env%%".to_owned())]),
        ..docker::Config::default()
    };
    Wishes::new(&config).expect("no patterns")
}

/// What an orchestrator tells of is found again, by its id and by its pod; its tags are of names
/// and values, and each is there once. What has ended is forgotten.
fn published(source: Source, containers: Containers) {
    let directory = Directory::new(Arc::default());
    for (id, told) in &containers {
        assert!(!id.is_empty());
        let tags: Vec<_> = told.tags.at(Cardinality::High).collect();
        assert!(tags.iter().all(|tag| tag.contains(':')), "{tags:?}");
        for part in [&told.tags.low, &told.tags.orchestrator, &told.tags.high] {
            assert!(part.is_sorted_by(|a, b| a < b), "{part:?}");
        }
        assert!(told.addresses.is_sorted_by(|a, b| a < b), "{told:?}");
        directory.publish(source, id, told.clone());
        let (origin, known) = directory.told(id).expect("it is published");
        assert_eq!((&known, directory.tags(origin)), (told, Some(Arc::clone(&told.tags))));
        let pod = told.pod.as_ref().expect("all belong to one");
        assert!(directory.told_of_pod(&pod.uid).is_some() && directory.pod(&pod.uid).is_some());
    }
    let mut end = Time(0);
    for (id, _) in &containers {
        directory.ended(source, id, end);
        end = Time(end.0 + 3_600_000);
    }
    assert!(directory.len() <= 1, "the last keeps its tags for a while");
}

/// The name of an image. Its parts are all there is of it, but for the digest.
pub fn docker_image(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    let parts = image::ImageName::new(name);
    let bare = name.split('@').next().unwrap_or_default();
    assert!(bare == parts.full() || bare == format!("{}:", parts.full()), "{name:?}: {parts:?}");
    assert!(!parts.tag.contains('/') && !parts.short.contains('/'), "{name:?}: {parts:?}");
    assert!(parts.long.ends_with(&parts.short) && parts.long.starts_with(&parts.registry));
    assert!(image::is_nameless(name) || !bare.is_empty(), "{name:?}");
    let _ = api::time(name);
}

/// A file of a cgroup or of `/proc`, whichever it is. Numbers may be anything; ids are ids.
pub fn cgroup(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in proc::memberships(&text) {
        let identity = Identity::of_path(line.path);
        let Identity { level, container_id, container_name, pod_uid, .. } = &identity;
        assert!(container_id.as_ref().is_none_or(|id| is_container_id(id)), "{identity:?}");
        let named = container_id.is_some() || container_name.is_some();
        assert!(*level != Level::Container || named, "{identity:?}");
        assert!(pod_uid.as_ref().is_none_or(|uid| !uid.contains('_')), "{identity:?}");
        // A path from anywhere within says the same, and so does one that ends in a slash.
        assert_eq!(Identity::of_path(&format!("/..{}/", line.path)), identity);
    }
    let mut devices = Vec::new();
    usage::blkio_lines(&text, &mut devices, |io| (&mut io.reads, &mut io.writes));
    devices.sort_by_key(|io| io.device);
    assert!(devices.windows(2).all(|pair| pair[0].device != pair[1].device));
    assert!(usage::io_stat(&text).count() <= text.lines().count());
    assert!(usage::processor_list(&text).is_none_or(|count| count > 0));
    proc::interfaces(&text).for_each(drop);
    proc::routes(&text).for_each(drop);
    proc::block_devices(&text).for_each(drop);
    let _ = (usage::pairs(&text).count(), usage::cpu_max(&text));
    let _ = (proc::stat(&text), proc::status(&text), proc::process_io(&text));
}

/// A table of mounts. What was read and is written again is read as the same.
pub fn mountinfo(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for mount in proc::mounts(&text).chain(proc::simple_mounts(&text)) {
        let escaped =
            |path: &str| -> String { path.bytes().map(|byte| format!("\\{byte:03o}")).collect() };
        let (root, point) = (escaped(&mount.root), escaped(&mount.point));
        let (kind, source, options) = (mount.kind, mount.source, mount.options);
        let line = format!("1 2 0:3 {root} {point} rw shared:1 - {kind} {source} {options}");
        assert_eq!(proc::mounts(&line).next().as_ref(), Some(&mount), "{line}");
    }
}

/// A pressure file. What was read and is written again is read as the same.
pub fn pressure(data: &[u8]) {
    let stalls = usage::pressure(&String::from_utf8_lossy(data));
    let mut text = String::new();
    for (word, stall) in [("some", stalls.some), ("full", stalls.full)] {
        let Some(usage::Stall { avg10, avg60, avg300, total_us }) = stall else { continue };
        text += &format!("{word} avg10={avg10} avg60={avg60} avg300={avg300} total={total_us}\n");
    }
    assert_eq!(usage::pressure(&text), stalls, "{text}");
}

/// The first byte chooses the sizes of the pieces that the rest comes in. They change nothing.
pub fn stream(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else { return };
    let size = usize::from(first / 2) + 1;
    let framer = || if first % 2 == 0 { Framer::new(LIMIT) } else { Framer::lines(LIMIT) };
    assert_eq!(read(framer(), data, size), read(framer(), data, usize::MAX));
}

/// A configuration file, ours or the Agent's. What is accepted is printed so that it loads again
/// with the same outcome.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let ours = config::from_text("tallyd.yaml", &text);
    let agents = config::agent_from_text("datadog.yaml", &text, &[]);
    for loaded in [ours, agents].into_iter().flatten() {
        loads_again(&loaded);
    }
}

fn loads_again(loaded: &Loaded) {
    let printed = cli::config::as_yaml(loaded);
    let masked = loaded.settings.iter().any(|s| s.changed && describe::is_secret(s.path));
    if masked || printed.len() > tree::TEXT_MAX {
        return;
    }
    let again = config::from_text("printed", &printed);
    let again = again.unwrap_or_else(|error| panic!("{error} in\n{printed}"));
    assert_eq!(again.config, loaded.config, "{printed}");
}

/// The first line is the name of a metric. Of the others, `=prefix` begins a mapper profile,
/// `pattern TAB name` is a mapping by wildcards, `~pattern TAB name` one by a regular expression.
pub fn mapper(data: &[u8]) {
    let mut lines = data.split(|&b| b == b'\n');
    let Some(name) = lines.next().filter(|name| !name.is_empty()) else { return };
    let lines: Vec<_> = lines.map(String::from_utf8_lossy).collect();
    let mapper_profiles = profiles(lines.iter().map(|line| &**line));
    let config = rules::Config { mapper_profiles, ..rules::Config::default() };
    match Rules::new(&config, "") {
        Err(error) => assert!(error.path.starts_with("rules.mapper_profiles["), "{error}"),
        Ok(rules) => {
            let Outcome::Keep { series, .. } = rules.context(&count(name), Dialect::Datadog) else {
                panic!("nothing is blocked");
            };
            mapped_as_defined(
                &series.context(),
                &String::from_utf8_lossy(name),
                &config.mapper_profiles,
            );
        }
    }
}

/// A cell in its compact form. What is accepted can be used, and written and read again.
pub fn cell(data: &[u8]) {
    let plan = Plan::from_config(&value::Config::default());
    let Ok((mut cell, rest)) = Cell::decode(data) else { return };
    let mut out = Vec::new();
    cell.encode(&mut out);
    let (again, end) = Cell::decode(&out).expect("what was written is read");
    assert!(end.is_empty() && rest.len() < data.len());
    let kind = Kind::ALL.into_iter().find(|&kind| cell.is_of(kind));
    if let Some(kind) = kind.filter(|&kind| kind != Kind::Set) {
        cell.add(kind, 1.5, 2.5, &plan);
    }
    cell.merge(again, &plan);
    assert_eq!(cell.close(&plan).is_some(), kind.is_some());
}

/// The first byte chooses one of the journal's files. The rest is that file, or what its checksum
/// covers: a fuzzer does not find checksums.
pub fn journal(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    match choice % 5 {
        0 => drop(segment(data)),
        1 => {
            let generation = Generation { number: 1, start: 10, end: 20 };
            let (dialect, eol_required) = (Dialect::Statsd, false);
            let source = journal::Source { name: "x".to_owned(), dialect, eol_required };
            let (numbering, described, waiting) = (0, Some(0), false);
            let header =
                Header { seed: 7, sequence: 0, generation, source, numbering, described, waiting };
            let mut file = header.encode();
            file.extend((data.len() as u32).to_le_bytes());
            let mut checksum = crc32fast::Hasher::new_with_initial(7);
            checksum.update(data);
            file.extend(checksum.finalize().to_le_bytes());
            file.extend(data);
            file.extend(END);
            let entries = segment(&file).expect("its header is good");
            assert!(entries <= data.len());
        }
        2 => checkpoint(data),
        3 => {
            let mut file = b"tallyd\0C\x02\0\0\0".to_vec();
            file.extend(crc32fast::hash(data).to_le_bytes());
            file.extend(data);
            checkpoint(&file);
        }
        _ => {
            if let Some(released) = Released::decode(data) {
                assert!(released.encode().is_some());
            }
            if let Some(landed) = sys::landed(data) {
                assert!(landed.datagrams.iter().all(|d| d.bytes.len() <= data.len()));
            }
        }
    }
}

/// Entries in a segment.
fn segment(file: &[u8]) -> Option<usize> {
    let (header, rest) = Header::decode(file).ok()?;
    Some(Records::new(&header, rest).map(|record| record.entries.len()).sum())
}

fn checkpoint(file: &[u8]) {
    let Ok(mut checkpoint) = Checkpoint::decode(file) else { return };
    let plan = Plan::from_config(&value::Config::default());
    while let Some(entry) = checkpoint.entry() {
        match entry {
            Entry::Cell(_, cell) | Entry::Timed(_, _, cell) => drop(cell.close(&plan)),
            Entry::Bucket(_) | Entry::Event(_) | Entry::Check(_) => {}
        }
    }
}

/// Stars of a pattern that are looked at, and characters of a name that the naive matcher takes.
const STARS: usize = 9;
const NAIVE_MAX: usize = 24;

/// Each mapping leaves its number and the parts that matched as tags.
fn profiles<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<MapperProfile> {
    let new = |prefix: &str| MapperProfile {
        name: "fuzz".to_owned(),
        prefix: prefix.to_owned(),
        mappings: Vec::new(),
    };
    let mut profiles = vec![new("*")];
    for (number, line) in lines.enumerate() {
        if let Some(prefix) = line.strip_prefix('=') {
            profiles.push(new(prefix));
        } else if let Some((pattern, name)) = line.split_once('\t') {
            let regex = pattern.strip_prefix('~');
            let stars = (1..=STARS).map(|star| (format!("star{star}"), format!("${star}")));
            let mapping = Mapping {
                pattern: regex.unwrap_or(pattern).to_owned(),
                match_type: if regex.is_some() { "regex" } else { "wildcard" }.to_owned(),
                name: name.to_owned(),
                tags: stars.chain([("by".to_owned(), number.to_string())]).collect(),
            };
            profiles.last_mut().expect("there is one").mappings.push(mapping);
        }
    }
    // A profile that takes every name must not keep the others from their turn.
    profiles.rotate_left(1);
    profiles
}

fn count(name: &[u8]) -> Sample<'_> {
    Sample {
        name,
        kind: Kind::Count,
        values: Values::One(1.0),
        rate: 1.0,
        tags: b"",
        timestamp: None,
        origin: OriginFields::default(),
    }
}

/// Whether the series is what the naive matcher makes of the name, where it can tell.
fn mapped_as_defined(context: &Context, name: &str, profiles: &[MapperProfile]) {
    let fits = |p: &&MapperProfile| p.prefix == "*" || name.starts_with(&p.prefix);
    let mappings = profiles.iter().find(fits).map_or(&[][..], |p| &p.mappings);
    let naive = |m: &Mapping| m.match_type == "wildcard" && m.pattern.len() <= NAIVE_MAX;
    if name.len() > NAIVE_MAX || !mappings.iter().all(naive) {
        return;
    }
    let hit = mappings.iter().find_map(|m| Some((m, wildcard(&m.pattern, name)?)));
    let Some((mapping, parts)) = hit else {
        assert_eq!((context.name(), context.tags().next()), (name, None));
        return;
    };
    if !mapping.name.contains('$') {
        assert_eq!(context.name(), mapping.name);
    }
    let mut tags: BTreeMap<_, _> = context.tags().filter_map(|tag| tag.split_once(':')).collect();
    assert_eq!(tags.remove("by"), Some(&*mapping.tags["by"]));
    for star in 1..=STARS {
        let part = parts.get(star - 1).copied().unwrap_or_default();
        assert_eq!(tags.remove(&*format!("star{star}")), Some(part), "{mapping:?} on {name}");
    }
}

/// What the stars of a pattern stand for in a name: as much as they can, the first before the
/// others, but no dot.
fn wildcard<'a>(pattern: &str, name: &'a str) -> Option<Vec<&'a str>> {
    let Some(star) = pattern.find('*') else { return (pattern == name).then(Vec::new) };
    let rest = name.strip_prefix(&pattern[..star])?;
    let longest = rest.find('.').unwrap_or(rest.len());
    let ends = (0..=longest).rev().filter(|&end| rest.is_char_boundary(end));
    ends.into_iter().find_map(|end| {
        let mut parts = wildcard(&pattern[star + 1..], &rest[end..])?;
        parts.insert(0, &rest[..end]);
        Some(parts)
    })
}

/// Debug output tells NaN from other numbers, where `==` does not.
fn agree(line: &[u8], options: Options) {
    let fast = parse::line(line, options);
    let defined = grammar::message(line, options);
    assert_eq!(format!("{fast:?}"), format!("{defined:?}"), "{}", line.escape_ascii());
    if let Ok(message) = fast {
        read_on(message);
    }
}

/// What is done later with the parts of a message.
fn read_on(message: Message<'_>) {
    let (tags, origin) = match message {
        Message::Metric(sample) => (sample.tags, sample.origin),
        Message::Check(check) => (check.tags, check.origin),
        Message::Event(event) => {
            assert!(parse::unescape(event.text).len() <= event.text.len());
            (event.tags, event.origin)
        }
    };
    assert!(split_tags(tags).all(|tag| !tag.contains(&b'|')));
    assert!(parse::parse_local(origin.local).container_id.len() <= origin.local.len());
    assert!(parse::parse_external(origin.external).pod_uid.len() <= origin.external.len());
}

/// Text is cut into its lines: how many come together depends on the pieces.
fn read(mut framer: Framer, mut data: &[u8], size: usize) -> Vec<Result<Vec<u8>, FrameError>> {
    let mut found = Vec::new();
    let mut closed = false;
    while !closed {
        let space = framer.space();
        let (piece, rest) = data.split_at(data.len().min(size).min(space.len()));
        space[..piece.len()].copy_from_slice(piece);
        framer.filled(piece.len());
        if data.is_empty() {
            framer.end();
            closed = true;
        }
        data = rest;
        while let Some(payload) = framer.payload() {
            assert!(payload.is_ok_and(|payload| payload.len() <= LIMIT + 1) || payload.is_err());
            closed |= matches!(payload, Err(FrameError::FrameTooLong(_)));
            match payload {
                Ok(payload) => found
                    .extend(payload.split_inclusive(|b| *b == b'\n').map(|line| Ok(line.to_vec()))),
                Err(error) => found.push(Err(error)),
            }
        }
    }
    found
}
