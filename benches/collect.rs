//! One run of the cgroup check, from the files to the samples; times include opening the files.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use tallyd::cgroup::roots::Roots;
use tallyd::collectors::cgroup::{CgroupCheck, Config};
use tallyd::collectors::{Collector, Samples};
use tallyd::origin::Directory;
use tallyd::time::Time;

/// Runs again and again over one machine, fifteen seconds apart.
struct Rig {
    check: CgroupCheck,
    samples: Samples,
    second: i64,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new(machine: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let directory = Arc::new(Directory::new(Arc::default()));
        let check = CgroupCheck::new(Config::default(), Roots::of_machine(machine), directory);
        Self { check, samples: Samples::default(), second: 0, runtime }
    }

    /// Returns the number of samples.
    fn run(&mut self) -> usize {
        self.second += 15;
        let now = Time::from_seconds(self.second);
        self.samples.begin(now, Duration::from_secs(60));
        self.runtime.block_on(self.check.run(&mut self.samples, now)).expect("a run");
        self.samples.end(true);
        self.samples.len()
    }
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/fixtures/cgroup").join(name)
}

/// A machine of version 2 with `count` copies of a real container.
fn crowd(count: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let folder = folder.expect("a folder");
    let root = folder.path().join("sys/fs/cgroup");
    fs::create_dir_all(&root).expect("a folder");
    fs::write(root.join("cgroup.controllers"), "cpu io memory pids\n").expect("a file");
    let docker = fixture("v2_docker/round1/sys/fs/cgroup/docker");
    let mut inner =
        docker.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path());
    let one = inner.find(|path| path.is_dir()).expect("a container");
    for i in 0..count {
        let container = root.join(format!("system.slice/docker-{i:064x}.scope"));
        fs::create_dir_all(&container).expect("a folder");
        for file in one.read_dir().expect("a folder").map(|file| file.expect("an entry")) {
            fs::copy(file.path(), container.join(file.file_name())).expect("a copy");
        }
    }
    folder
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("collect");
    for name in ["v1", "v2_docker/round1", "v2_layouts"] {
        let mut rig = Rig::new(&fixture(name));
        group.bench_function(name, |b| b.iter(|| rig.run()));
    }
    let folder = crowd(200);
    let mut rig = Rig::new(folder.path());
    group.bench_function("200 containers", |b| b.iter(|| rig.run()));
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    targets = bench
}
criterion_main!(benches);
