//! Replays the corpora of the fuzz targets, without a fuzzer.

use std::path::Path;

use tallyd::fuzzing;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 16] = [
    ("cell", fuzzing::cell),
    ("cgroup", fuzzing::cgroup),
    ("check", fuzzing::check),
    ("config", fuzzing::config),
    ("datagram", fuzzing::datagram),
    ("docker_answers", fuzzing::docker_answers),
    ("docker_events", fuzzing::docker_events),
    ("docker_image", fuzzing::docker_image),
    ("ecs", fuzzing::ecs),
    ("event", fuzzing::event),
    ("journal", fuzzing::journal),
    ("kubelet", fuzzing::kubelet),
    ("mapper", fuzzing::mapper),
    ("mountinfo", fuzzing::mountinfo),
    ("pressure", fuzzing::pressure),
    ("stream", fuzzing::stream),
];

#[test]
fn corpora() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut folders: Vec<_> = names(&root.join("corpus")).collect();
    folders.sort();
    assert_eq!(folders, TARGETS.map(|(name, _)| name), "a corpus without a target, or the reverse");
    for (name, run) in TARGETS {
        assert!(root.join("fuzz_targets").join(name).with_extension("rs").exists(), "{name}");
        let folder = root.join("corpus").join(name);
        let mut inputs = 0;
        for input in names(&folder) {
            run(&std::fs::read(folder.join(input)).expect("an input"));
            inputs += 1;
        }
        println!("corpora: {name}: {inputs} inputs");
        assert!(inputs > 0, "{name} has no corpus");
    }
}

fn names(folder: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
}
