//! The Docker check against an engine that is told what to say, over cgroups that were read from
//! real machines.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tallyd::cgroup::roots::Roots;
use tallyd::collectors::docker::{Config, Docker, METRICS, Surroundings};
use tallyd::collectors::{Collector, Samples};
use tallyd::origin::Directory;
use tallyd::sample::{AlertType, Kind, Status};
use tallyd::telemetry::Telemetry;
use tallyd::time::Time;
use tempfile::TempDir;

use super::fake_engine::{FakeEngine, Mood, fixtures};
use super::process::DEADLINE;

const WEB: &str = "ad711093891fc758eafed33d7e070c98e722d9c3fd18bee7edd7e21267fb8174";

/// The check and what is around it; runs are ten seconds apart by a clock of their own.
struct Check {
    docker: Docker,
    samples: Samples,
    directory: Arc<Directory>,
    telemetry: Arc<Telemetry>,
    now: Time,
    took: Duration,
}

impl Check {
    fn new(engine: &FakeEngine, machine: &Path, config: Config) -> Self {
        let url = format!("unix://{}", engine.socket.display());
        Self::at(machine, Config { url, ..config })
    }

    fn at(machine: &Path, config: Config) -> Self {
        let config = Config { timeout: 1, ..config };
        let telemetry = Arc::new(Telemetry::default());
        let directory = Arc::new(Directory::new(Arc::clone(&telemetry)));
        let around = Surroundings {
            roots: Roots::of_machine(machine),
            hostname: "box".to_owned(),
            interval: Duration::from_millis(200),
            directory: Arc::clone(&directory),
            telemetry: Arc::clone(&telemetry),
            clock: || Time::from_seconds(1_795_297_600),
        };
        Self {
            docker: Docker::new(&config, around).expect("settings"),
            samples: Samples::default(),
            directory,
            telemetry,
            now: Time::from_seconds(1_795_297_600),
            took: Duration::ZERO,
        }
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        self.now = Time(self.now.0 + 10_000);
        let begun = Instant::now();
        self.samples.begin(self.now, Duration::from_secs(60));
        let outcome = self.docker.run(&mut self.samples, self.now).await;
        self.took = begun.elapsed();
        self.samples.end(outcome.is_ok());
        // What is sent stands in the documents.
        for (name, kind, ..) in self.samples.numbers() {
            let row = METRICS.iter().find(|metric| metric.name == name);
            let row = row.unwrap_or_else(|| panic!("{name} is not documented"));
            assert_eq!(row.kind == "count", kind == Kind::Count, "{name}");
        }
        outcome
    }

    /// Runs until something is there to be seen.
    async fn run_until(&mut self, what: &str, seen: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.run().await.expect("a run");
            if seen(self) {
                return;
            }
            assert!(Instant::now() < deadline, "{what} was not seen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Numbers by name, of those with this tag; of several of one name the sum.
    fn of(&self, tag: &str) -> BTreeMap<String, f64> {
        let mut found = BTreeMap::new();
        for (name, _, value, tags) in self.samples.numbers() {
            if tags.iter().any(|t| t == tag) {
                *found.entry(name.to_owned()).or_default() += value;
            }
        }
        found
    }

    /// The one number of this name without regard to tags.
    fn one(&self, name: &str) -> Option<f64> {
        let found: Vec<f64> = self
            .samples
            .numbers()
            .filter(|(n, ..)| *n == name)
            .map(|(_, _, value, _)| value)
            .collect();
        assert!(found.len() < 2, "{name}: {found:?}");
        found.first().copied()
    }

    fn checks(&self, name: &str) -> Vec<(Status, String, Vec<String>)> {
        let checks = self.samples.checks().filter(|check| check.name == name);
        checks.map(|c| (c.status, c.message.clone(), c.tags.clone())).collect()
    }

    fn is_served(&self) -> bool {
        self.checks("docker.service_up").iter().any(|(status, ..)| *status == Status::Ok)
    }
}

fn cgroups(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/fixtures/cgroup").join(name)
}

fn expected(name: &str) -> Value {
    let text = fs::read_to_string(cgroups(name)).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in from.read_dir().expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// A machine without containers.
fn empty_machine(folder: &Path) -> PathBuf {
    let machine = folder.join("empty");
    fs::create_dir_all(machine.join("proc")).expect("a folder");
    machine
}

/// A machine of version 2 with containers whose files are those of a real one.
fn machine_of(folder: &Path, ids: &[String]) -> PathBuf {
    let machine = folder.join("machine");
    let docker = machine.join("sys/fs/cgroup/docker");
    fs::create_dir_all(&docker).expect("a folder");
    let real = cgroups("v2_docker/round1/sys/fs/cgroup");
    fs::copy(real.join("cgroup.controllers"), machine.join("sys/fs/cgroup/cgroup.controllers"))
        .expect("a copy");
    let web = "af3683b71f32badc6fc47cd1162b8b71a8c1494240477fcf8d48cb24dc1caba4";
    for (i, id) in ids.iter().enumerate() {
        symlink(real.join("docker").join(web), docker.join(id)).expect("a link");
        let proc = machine.join("proc").join((1000 + i).to_string());
        fs::create_dir_all(proc.join("net")).expect("a folder");
        fs::write(proc.join("cgroup"), format!("0::/docker/{id}\n")).expect("a file");
    }
    machine
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{i:064x}")).collect()
}

fn event(id: &str, action: &str, second: i64, attributes: &[(&str, &str)]) -> String {
    let attributes: BTreeMap<_, _> =
        attributes.iter().copied().chain([("image", "app:1")]).collect();
    json!({
        "Type": "container", "Action": action, "Actor": {"ID": id, "Attributes": attributes},
        "time": second, "timeNano": second * 1_000_000_000,
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_a_machine_of_version_1_are_those_of_another_program() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::of_fixtures(folder.path(), "v1");
    let machine = folder.path().join("v1");
    copy(&cgroups("v1"), &machine);
    // The kernel shows the network of both as one file.
    let shared = machine.join("proc/23392/net/dev");
    fs::remove_file(&shared).expect("a file");
    fs::hard_link(machine.join("proc/22824/net/dev"), shared).expect("a link");
    let config = Config {
        collect_container_count: true,
        tags: vec!["site:a".to_owned()],
        ..Config::default()
    };
    let mut check = Check::new(&engine, &machine, config);
    check.run().await.expect("a run");
    for (who, container) in expected("expected_v1.json").as_object().expect("a map") {
        let found = check.of(&format!("container_name:{who}"));
        for (name, value) in container["gauges"].as_object().expect("a map") {
            let name = name.trim_end_matches("_pct");
            assert_eq!(found.get(name), value.as_f64().as_ref(), "{who}: {name}");
        }
        for absent in ["docker.mem.limit", "docker.mem.in_use", "docker.thread.limit"] {
            let wanted = container["gauges"].get(absent).is_some();
            assert_eq!(found.contains_key(absent), wanted, "{who}: {absent}");
        }
    }
    // Totals of the first run make no rates.
    assert!(!check.of("container_name:fx-web").contains_key("docker.cpu.usage"));
    check.run().await.expect("a run");
    let networks = |who: &str| -> BTreeSet<String> {
        let numbers = check.samples.numbers();
        let of_net = numbers.filter(|(name, _, _, tags)| {
            *name == "docker.net.bytes_rcvd"
                && tags.iter().any(|t| t == format!("container_name:{who}"))
        });
        let tags = of_net.flat_map(|(_, _, _, tags)| tags.iter().collect::<Vec<_>>());
        tags.filter_map(|tag| tag.strip_prefix("docker_network:").map(str::to_owned)).collect()
    };
    assert_eq!(networks("fx-web"), BTreeSet::from(["bridge".to_owned()]));
    assert_eq!(networks("fx-worker"), BTreeSet::from(["bridge".to_owned(), "fxnet".to_owned()]));
    assert!(networks("fx-sharednet").is_empty(), "it has that of fx-web");
    assert!(networks("fx-hostnet").is_empty(), "it has that of the machine");
    // By the engine's own count: GO's rule takes the paused one as stopped.
    let info: Value =
        serde_json::from_slice(&fs::read(fixtures("v1/info.json")).expect("a file")).expect("JSON");
    let number = |name: &str| info[name].as_f64().expect("a number");
    assert_eq!(check.one("docker.containers.running.total"), Some(number("ContainersRunning")));
    let stopped = number("ContainersStopped") + number("ContainersPaused");
    assert_eq!(check.one("docker.containers.stopped.total"), Some(stopped));
    assert_eq!(check.of("container_state:paused")["docker.container.count"], 1.0);
    assert_eq!(check.of("container_state:exited")["docker.container.count"], 6.0);
    assert_eq!(check.of("container_state:created")["docker.container.count"], 1.0);
    let image = "docker_image:registry.example.test:5000/team/bbfixture:1.35";
    assert_eq!(check.of(image)["docker.containers.running"], 8.0);
    // One was started by the image's digest; its first name is another.
    assert_eq!(check.of("docker_image:bbfixture:latest")["docker.containers.running"], 1.0);
    assert!(check.samples.numbers().all(|(_, _, _, tags)| tags.iter().any(|t| t == "site:a")));
    assert!(check.is_served());
    assert!(check.directory.container(WEB).is_some(), "senders find their container");
    assert_eq!(check.directory.process(22824).as_deref(), Some(WEB));
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_of_a_machine_of_version_2_are_those_of_another_program() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::of_fixtures(folder.path(), "v2");
    let machine = folder.path().join("machine");
    symlink(cgroups("v2_docker/round1"), &machine).expect("a link");
    let mut check = Check::new(&engine, &machine, Config::default());
    check.run().await.expect("a run");
    fs::remove_file(&machine).expect("a link");
    symlink(cgroups("v2_docker/round2"), &machine).expect("a link");
    check.run().await.expect("a run");
    let expected = expected("expected_v2_docker.json");
    let mut judged = 0;
    for (who, after) in expected["round2"].as_object().expect("a map") {
        let before = &expected["round1"][who];
        let found = check.of(&format!("container_name:{who}"));
        for (name, key, scale) in [
            ("docker.cpu.usage", "cpu.usage_ns", 1e7),
            ("docker.cpu.user", "cpu.user_ns", 1e7),
            ("docker.cpu.system", "cpu.system_ns", 1e7),
            ("docker.cpu.throttled", "docker.cpu.throttled_periods", 1.0),
            ("docker.cpu.throttled.time", "docker.cpu.throttled_ns", 1e7),
            ("docker.io.read_bytes", "io.rbytes", 1.0),
            ("docker.io.write_bytes", "io.wbytes", 1.0),
            ("docker.io.read_operations", "io.rios", 1.0),
            ("docker.io.write_operations", "io.wios", 1.0),
        ] {
            let total = |round: &Value| round["raw_cumulative"][key].as_f64();
            let Some((after, before)) = total(after).zip(total(before)) else { continue };
            let rate = (after - before) / 10.0 / scale;
            // A device that appears in the second round has no rate yet.
            let Some(found) = found.get(name) else {
                assert!(name.starts_with("docker.io") && before == 0.0, "{who}: no {name}");
                continue;
            };
            assert!((found - rate).abs() <= 1e-9 * rate.abs(), "{who}: {name} {found} {rate}");
            judged += 1;
        }
        let gauges = after["gauges"].as_object().expect("a map");
        for (name, value) in gauges {
            let name = match name.as_str() {
                "cpu.weight" => "docker.cpu.weight",
                "docker.cpu.limit_pct" => "docker.cpu.limit",
                "docker.mem.sw_limit(total=max+swap.max)" => "docker.mem.sw_limit",
                "docker.mem.failed_count(max)" => "docker.mem.failed_count",
                "mem.peak" => "docker.mem.usage_peak",
                // The judge sums two parts of the kernel's memory, this kernel tells it whole; and
                // shares cannot be had from the weight.
                "docker.kmem.usage" | "docker.cpu.shares(linear inverse)" => continue,
                "mem.usage" | "oom" | "oom_kill" => continue,
                name => name,
            };
            assert_eq!(found.get(name), value.as_f64().as_ref(), "{who}: {name}");
            judged += 1;
        }
        for (resource, name) in [("cpu", "cpu"), ("memory", "mem"), ("io", "io")] {
            for (line, word) in [("some", "partial"), ("full", "full")] {
                let total =
                    |round: &Value| round["psi_total_usec"][format!("{resource}.{line}")].as_f64();
                let rate =
                    (total(after).expect("pressure") - total(before).expect("pressure")) * 100.0;
                let name = format!("docker.{name}.{word}_stall");
                assert!((found[&name] - rate).abs() < 1e-6, "{who}: {name}");
                judged += 1;
            }
        }
    }
    assert!(judged > 70, "only {judged} figures were judged");
    let web = check.of("container_name:fx-web");
    assert_eq!(web["docker.cpu.shares"], 512.0, "as the engine was told, whatever the weight");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_inspected_on_change_only() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::start(folder.path());
    let ids = ids(5);
    for (i, id) in ids.iter().enumerate() {
        engine.add(id, &format!("c{i}"), 1000 + i as u32);
    }
    let machine = machine_of(folder.path(), &ids);
    let mut check = Check::new(&engine, &machine, Config::default());
    let inspected = |engine: &FakeEngine| engine.calls_of("/containers/0");
    for _ in 0..4 {
        check.run().await.expect("a run");
    }
    assert_eq!(inspected(&engine), 5, "{:?}", engine.calls());
    engine.change(&ids[0], |listed, inspection| {
        listed["State"] = "paused".into();
        inspection["State"]["Status"] = "paused".into();
    });
    check.run().await.expect("a run");
    check.run().await.expect("a run");
    assert_eq!(inspected(&engine), 6);
    engine.happens(&event(&ids[1], "update", 1, &[]));
    check.run_until("an inspection", |_| inspected(&engine) == 7).await;
    let lists = engine.calls_of("/containers/json");
    check.run().await.expect("a run");
    assert_eq!(engine.calls_of("/containers/json"), lists + 1, "one list per run");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_hangs_fails_or_has_gone_delays_nothing_and_its_return_is_noticed() {
    let folder = TempDir::new().expect("a folder");
    let mut engine = FakeEngine::start(folder.path());
    let ids = ids(3);
    for (i, id) in ids.iter().enumerate() {
        engine.add(id, &format!("c{i}"), 1000 + i as u32);
    }
    let machine = machine_of(folder.path(), &ids);
    let mut check = Check::new(&engine, &machine, Config::default());
    let measured = |check: &Check| check.of("container_name:c2").contains_key("docker.mem.rss");
    check.run_until("the engine", |check| check.is_served() && measured(check)).await;
    for mood in [
        Mood::Hang,
        Mood::Delay(Duration::from_secs(30)),
        Mood::Status(500),
        Mood::Cut,
        Mood::Status(503),
    ] {
        engine.mood("", mood.clone());
        check
            .run_until(&format!("{mood:?}"), |check| {
                assert!(measured(check), "{mood:?}");
                assert!(check.took < Duration::from_secs(3), "{mood:?}: {:?}", check.took);
                !check.is_served()
            })
            .await;
        let (status, message, _) = &check.checks("docker.service_up")[0];
        assert_eq!(*status, Status::Critical);
        assert!(!message.is_empty());
        // It is known to be ill: nobody waits for it any more.
        check.run().await.expect("a run");
        assert!(check.took < Duration::from_millis(900), "{mood:?}: {:?}", check.took);
        engine.calm();
        check.run_until("the recovery", Check::is_served).await;
    }
    engine.down();
    check.run_until("the end", |check| !check.is_served() && measured(check)).await;
    engine.add(&"f".repeat(64), "late", 0);
    engine.up();
    check
        .run_until("the return", |check| {
            check.is_served() && check.one("docker.containers.running.total") == Some(4.0)
        })
        .await;
    check.run_until("the stream", |_| engine.listeners() > 0).await;
    assert!(check.telemetry.docker_engine_errors.get() >= 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_inspected_costs_only_itself() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::start(folder.path());
    let ids = ids(3);
    for (i, id) in ids.iter().enumerate() {
        engine.add(id, &format!("c{i}"), 1000 + i as u32);
    }
    for (mood, id) in [(Mood::Garbage, &ids[0]), (Mood::Status(404), &ids[1])] {
        engine.mood(&format!("/containers/{id}"), mood);
    }
    let machine = machine_of(folder.path(), &ids);
    let mut check = Check::new(&engine, &machine, Config::default());
    check.run().await.expect("a run");
    check.run().await.expect("a run");
    assert!(check.is_served());
    assert!(check.of("container_name:c2").contains_key("docker.mem.rss"));
    let by_list = check.of("container_name:c0");
    assert!(by_list.is_empty() || by_list.contains_key("docker.mem.rss"), "{by_list:?}");
    assert!(check.of("container_name:c1").is_empty(), "it is not there");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorded_events_make_one_message_per_image() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::start(folder.path());
    let config = Config { collect_exit_codes: true, ..Config::default() };
    let mut check = Check::new(&engine, &empty_machine(folder.path()), config);
    check.run_until("the stream", |_| engine.listeners() == 1).await;
    let text = fs::read_to_string(fixtures("v1/events_stream.ndjson")).expect("a file");
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        let action = event["Action"].as_str().expect("a word").to_owned();
        let is_named = event["Actor"]["Attributes"]["image"]
            == "registry.example.test:5000/team/bbfixture:1.35";
        if event["Type"] == "container"
            && is_named
            && !action.starts_with("exec")
            && action != "top"
        {
            *counts.entry(action.split(':').next().expect("a word").to_owned()).or_default() += 1;
        }
        engine.happens(line);
        // A line that is none costs only itself.
        engine.happens("{\"Type\":\"container\",\"Action\":7}");
    }
    let deadline = Instant::now() + DEADLINE;
    while check.telemetry.docker_events_unread.get() < text.lines().count() as u64 {
        assert!(Instant::now() < deadline, "{}", check.telemetry.docker_events_unread.get());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    check.run().await.expect("a run");
    let title: Vec<String> = counts.iter().map(|(action, n)| format!("{n} {action}")).collect();
    let name = "registry.example.test:5000/team/bbfixture:1.35";
    let events: Vec<_> = check.samples.events().collect();
    let event = events
        .iter()
        .find(|event| event.aggregation_key == format!("docker:{name}"))
        .unwrap_or_else(|| panic!("{events:?}"));
    assert_eq!(event.title, format!("{name} {} on box", title.join(", ")));
    assert_eq!((event.alert_type, &*event.source_type), (AlertType::Error, "docker"));
    assert!(event.tags.contains(&"container_name:fx-web".to_owned()), "{:?}", event.tags);
    assert!(!event.text.to_lowercase().contains("exec"), "{}", event.text);
    let exits = check.checks("docker.exit");
    let died = text.lines().filter(|line| line.contains(r#""Action":"die""#)).count();
    assert_eq!(exits.len(), died);
    let critical: BTreeSet<_> =
        exits.iter().filter(|e| e.0 == Status::Critical).map(|e| &*e.1).collect();
    assert!(critical.contains("Container fx-exit3 exited with 3"), "{critical:?}");
    assert!(critical.contains("Container fx-oom exited with 137"), "{critical:?}");
    assert!(!critical.iter().any(|message| message.contains("fx-exit0")), "{critical:?}");
    // Both that ran out of memory have ended; their counters cannot be read any more.
    assert_eq!(check.of("container_name:fx-oom")["docker.mem.oom_kills"], 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_taken_up_and_a_gap_is_noticed() {
    let folder = TempDir::new().expect("a folder");
    let mut engine = FakeEngine::start(folder.path());
    let mut check = Check::new(&engine, &empty_machine(folder.path()), Config::default());
    check.run_until("the stream", |_| engine.listeners() == 1).await;
    let starts = |check: &Check| {
        let title = check.samples.events().next().map(|event| event.title.clone());
        title.unwrap_or_default()
    };
    let id = "e".repeat(64);
    engine.happens(&event(&id, "start", 100, &[]));
    check.run_until("the first", |check| starts(check) == "app:1 1 start on box").await;
    engine.cut_streams();
    // It happens while nobody listens, and is heard once.
    engine.happens(&event(&id, "kill", 101, &[]));
    check.run_until("the second", |check| starts(check) == "app:1 1 kill on box").await;
    assert_eq!(check.telemetry.docker_event_gaps.get(), 0);
    let lists = engine.calls_of("/containers/json");
    // Nobody listens for a while.
    engine.mood("/events", Mood::Status(404));
    engine.cut_streams();
    for second in 200..200 + 2 * 256 {
        engine.happens(&event(&id, "pause", second, &[]));
    }
    engine.calm();
    let heard = Cell::new(0);
    check
        .run_until("the rest", |check| {
            let title = starts(check);
            let count =
                title.strip_prefix("app:1 ").and_then(|rest| rest.strip_suffix(" pause on box"));
            heard.set(
                heard.get() + count.map_or(0, |count| count.parse::<usize>().expect("a number")),
            );
            heard.get() >= 256
        })
        .await;
    assert_eq!(heard.get(), 256, "as many as an engine keeps");
    assert_eq!(check.telemetry.docker_event_gaps.get(), 1);
    assert!(engine.calls_of("/containers/json") > lists, "the list was read anew");
    // An engine that starts anew has forgotten everything.
    engine.down();
    engine.up();
    check.run_until("the stream", |_| engine.listeners() == 1).await;
    engine.happens(&event(&id, "unpause", 900, &[]));
    check.run_until("the last", |check| starts(check) == "app:1 1 unpause on box").await;
    assert_eq!(check.telemetry.docker_event_gaps.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_agreed_on() {
    for (oldest, newest, asked) in [(12, 24, "/v1.24/"), (24, 41, "/v1.41/"), (44, 99, "/v1.53/")] {
        let folder = TempDir::new().expect("a folder");
        let mut engine = FakeEngine::start(folder.path());
        engine.versions(oldest, newest);
        engine.add(&"a".repeat(64), "c", 0);
        let mut check = Check::new(&engine, &empty_machine(folder.path()), Config::default());
        check.run().await.expect("a run");
        assert!(check.is_served(), "{oldest}..{newest}: {:?}", check.checks("docker.service_up"));
        assert!(engine.calls_of(asked) > 0, "{:?}", engine.calls());
        // Another engine takes its place, as is seen by the end of the stream.
        check.run_until("the stream", |_| engine.listeners() == 1).await;
        engine.down();
        engine.versions(24, 30);
        engine.up();
        check
            .run_until("the other one", |check| check.is_served() && engine.calls_of("/v1.30/") > 0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_at_its_changes() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::of_fixtures(folder.path(), "v1");
    let mut check = Check::new(&engine, &empty_machine(folder.path()), Config::default());
    check.run_until("the stream", |_| engine.listeners() == 1).await;
    let mut check = Check::new(&engine, &empty_machine(folder.path()), Config::default());
    check.run().await.expect("a run");
    let told = |check: &Check| -> Vec<(Status, String)> {
        let checks = check.checks("docker.container_health").into_iter();
        checks.map(|(status, message, _)| (status, message)).collect()
    };
    let mut first = told(&check);
    first.sort_by(|a, b| a.1.cmp(&b.1));
    assert_eq!(
        first,
        [
            (Status::Critical, "Container fx-unhealthy is unhealthy".to_owned()),
            (Status::Ok, "Container fx-web is healthy".to_owned()),
        ]
    );
    check.run().await.expect("a run");
    assert_eq!(told(&check), []);
    engine.change(WEB, |listed, inspection| {
        listed["Status"] = "Up 1 minute (unhealthy)".into();
        inspection["State"]["Health"] = json!({"Status": "unhealthy", "FailingStreak": 3});
    });
    check.run_until("the change", |check| !told(check).is_empty()).await;
    assert_eq!(told(&check), [(Status::Critical, "Container fx-web is unhealthy".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_long_is_counted_apart() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::of_fixtures(folder.path(), "v1");
    engine.mood("/system/df", Mood::Hang);
    engine.mood("/info", Mood::Status(404));
    let config = Config {
        collect_container_size: true,
        collect_container_size_frequency: 1,
        collect_disk_stats: true,
        collect_image_size: true,
        collect_system_df: true,
        collect_volume_count: true,
        slow_timeout: 2,
        legacy_names: true,
        ..Config::default()
    };
    let mut check = Check::new(&engine, &cgroups("v1"), config);
    check.run().await.expect("a run");
    assert!(check.took < Duration::from_millis(900), "{:?}", check.took);
    check
        .run_until("sizes", |check| {
            check.of("docker.disk.size").is_empty() && {
                check.of("container_name:fx-web").contains_key("docker.container.size_rootfs")
            }
        })
        .await;
    assert!(check.is_served(), "being slow at this says nothing about the rest");
    assert_eq!(check.one("docker.images.available"), Some(1.0));
    assert_eq!(check.of("image_tag:latest")["docker.image.size"], 1_982_414.0);
    assert_eq!(check.of("volume_state:attached")["docker.volume.count"], 1.0);
    assert_eq!(check.of("volume_state:dangling")["docker.volume.count"], 1.0);
    let list: Vec<Value> =
        serde_json::from_slice(&fs::read(fixtures("v1/containers.json")).expect("a file"))
            .expect("JSON");
    let web = list.iter().find(|c| c["Id"] == WEB).expect("fx-web");
    let found = check.of("container_name:fx-web");
    assert_eq!(found.get("docker.container.size_rootfs"), web["SizeRootFs"].as_f64().as_ref());
    assert_eq!(found["docker.disk.size"], web["SizeRw"].as_f64().unwrap_or(0.0));
    let running: Vec<_> =
        check.samples.members().filter(|(name, ..)| *name == "docker.containers.running").collect();
    assert_eq!(running.len(), 9, "as the first check did, by id");
    engine.calm();
    check
        .run_until("disk usage", |check| {
            check.one("docker.system.images.size") == Some(1_982_414.0)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_cgroups_the_stats_api_has_to_do() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::of_fixtures(folder.path(), "v1");
    let stats: Value =
        serde_json::from_slice(&fs::read(fixtures("v1/stats_fx-web.json")).expect("a file"))
            .expect("JSON");
    engine.stats(WEB, stats.clone());
    let mut check = Check::new(&engine, &empty_machine(folder.path()), Config::default());
    let web = "container_name:fx-web";
    check.run_until("figures", |check| check.of(web).contains_key("docker.mem.rss")).await;
    let memory = &stats["memory_stats"];
    let found = check.of(web);
    assert_eq!(found["docker.mem.rss"], memory["stats"]["total_rss"].as_f64().expect("a number"));
    assert_eq!(found["docker.mem.limit"], memory["limit"].as_f64().expect("a number"));
    assert_eq!(found["docker.thread.limit"], 50.0);
    assert_eq!(found["docker.cpu.shares"], 512.0);
    // A rate needs two runs in a row that have figures.
    let total = Cell::new(245_886_732_u64);
    check
        .run_until("a rate", |check| {
            total.set(total.get() + 500_000_000);
            let mut later = stats.clone();
            later["cpu_stats"]["cpu_usage"]["total_usage"] = json!(total.get());
            engine.stats(WEB, later);
            check.of(web).get("docker.cpu.usage").is_some_and(|rate| *rate > 0.0)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_leave_out_figures_and_events_but_not_counts() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::start(folder.path());
    let ids = ids(2);
    for (i, id) in ids.iter().enumerate() {
        engine.add(id, &format!("c{i}"), 1000 + i as u32);
    }
    let machine = machine_of(folder.path(), &ids);
    let config = Config {
        exclude: vec!["image:^app".to_owned()],
        include: vec!["container_name:c1".to_owned()],
        ..Config::default()
    };
    let mut check = Check::new(&engine, &machine, config);
    check.run_until("the stream", |_| engine.listeners() == 1).await;
    engine.happens(&event(&ids[0], "pause", 1, &[("name", "c0")]));
    engine.happens(&event(&ids[1], "pause", 2, &[("name", "c1")]));
    check.run_until("an event", |check| check.samples.events().next().is_some()).await;
    assert!(check.samples.events().next().expect("one").title.starts_with("app:1 1 pause"));
    assert!(check.of("container_name:c0").is_empty());
    assert!(check.of("container_name:c1").contains_key("docker.mem.rss"));
    assert_eq!(check.of("docker_image:app:1")["docker.containers.running"], 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn histograms_are_of_images() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::start(folder.path());
    let ids = ids(3);
    for (i, id) in ids.iter().enumerate() {
        engine.add(id, &format!("c{i}"), 1000 + i as u32);
    }
    let machine = machine_of(folder.path(), &ids);
    let config = Config {
        use_histogram: true,
        capped_metrics: BTreeMap::from([("docker.cpu.user".to_owned(), -1.0)]),
        ..Config::default()
    };
    let mut check = Check::new(&engine, &machine, config);
    check.run().await.expect("a run");
    check.run().await.expect("a run");
    let rss: Vec<_> =
        check.samples.numbers().filter(|(name, ..)| *name == "docker.mem.rss").collect();
    assert_eq!(rss.len(), 3);
    for (_, kind, value, tags) in rss {
        assert_eq!((kind, value), (Kind::Histogram, 49_152.0));
        assert!(!tags.iter().any(|tag| tag.starts_with("container_")), "{tags:?}");
        assert!(tags.iter().any(|tag| tag == "docker_image:app:1"), "{tags:?}");
    }
    let named = |name: &str| check.samples.numbers().filter(|(n, ..)| *n == name).count();
    assert_eq!((named("docker.cpu.usage"), named("docker.cpu.user")), (3, 0), "beyond its cap");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_leaves_nothing_behind() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::start(folder.path());
    let ids = ids(20);
    let machine = machine_of(folder.path(), &ids);
    let mut check = Check::new(&engine, &machine, Config::default());
    for (i, id) in ids.iter().enumerate() {
        engine.add(id, &format!("c{i}"), 1000 + i as u32);
        check.run().await.expect("a run");
        check.run().await.expect("a run");
        assert!(check.of(&format!("container_name:c{i}")).contains_key("docker.cpu.usage"));
        engine.remove(id);
    }
    check.run().await.expect("a run");
    check.run().await.expect("a run");
    assert_eq!(check.samples.totals(), 0);
    assert_eq!(check.one("docker.containers.running.total"), Some(0.0));
}

/// An engine behind TLS that asks for the client's certificate: HTTP by Python, certificates by
/// openssl.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_behind_tls() {
    let folder = TempDir::new().expect("a folder");
    let certificates = r#"
        set -e
        new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "$@"; }
        new -x509 -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        for name in server client; do
            new -subj /CN=$name -keyout $name.key -out $name.csr
            echo subjectAltName=IP:127.0.0.1 >extensions
            openssl x509 -req -days 2 -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                -extfile extensions -out $name.pem
        done"#;
    let made = std::process::Command::new("sh")
        .args(["-c", certificates])
        .current_dir(folder.path())
        .output();
    match made {
        Ok(output) if output.status.success() => {}
        other => {
            return println!("SKIP an_engine_behind_tls: no certificates by openssl: {other:?}");
        }
    }
    let server = r#"
import http.server, json, ssl
class Engine(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        here = "/containers/json" in self.path
        body = json.dumps([{"Id": "a" * 64, "State": "exited"}] if here else {}).encode()
        self.send_response(200 if here or "_ping" in self.path else 404)
        self.send_header("Api-Version", "1.41")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *ignored): pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
context.load_verify_locations("ca.pem")
context.verify_mode = ssl.CERT_REQUIRED
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *ignored): pass
server = Server(("127.0.0.1", 0), Engine)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print(server.server_port, flush=True)
server.serve_forever()
"#;
    let child = std::process::Command::new("python3")
        .args(["-c", server])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut child) = child else { return println!("SKIP an_engine_behind_tls: no python3") };
    let mut port = String::new();
    let output = child.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut port).expect("a port");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (ca, own, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let none = String::new();
    let mut outcomes = Vec::new();
    for (authority, certificate, key, verify) in [
        (&ca, &own, &key, true),
        (&ca, &none, &none, true),
        (&none, &own, &key, true),
        (&none, &own, &key, false),
    ] {
        let config = Config {
            url: format!("tcp://127.0.0.1:{}", port.trim()),
            tls: true,
            tls_cacert: authority.clone(),
            tls_client_cert: certificate.clone(),
            tls_client_key: key.clone(),
            tls_verify: verify,
            ..Config::default()
        };
        let mut check = Check::at(&empty_machine(folder.path()), config);
        check.run_until("an answer", |check| !check.checks("docker.service_up").is_empty()).await;
        outcomes.push(check.is_served());
        let counted = check.one("docker.containers.running.total").is_some();
        assert_eq!(counted, check.is_served(), "what is not known is not none");
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    assert_eq!(outcomes, [true, false, false, true]);
}

/// Prints what a run costs. A release is judged by what is promised, other builds by a bound far
/// above it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_over_a_thousand_containers() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::start(folder.path());
    let ids = ids(1000);
    for (i, id) in ids.iter().enumerate() {
        engine.add(id, &format!("c{i}"), 1000 + i as u32);
    }
    let machine = machine_of(folder.path(), &ids);
    let mut check = Check::new(&engine, &machine, Config::default());
    check
        .run_until("all", |check| {
            check.of("docker_image:app:1").get("docker.mem.rss") == Some(&49_152_000.0)
        })
        .await;
    check.run().await.expect("a run");
    println!(
        "docker: a run over 1000 containers took {:?} and made {} samples",
        check.took,
        check.samples.len()
    );
    assert_eq!(check.one("docker.containers.running.total"), Some(1000.0));
    let bound = Duration::from_secs(if cfg!(debug_assertions) { 10 } else { 1 });
    assert!(check.took < bound, "{:?}", check.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_containers_are_taken_in_piece_by_piece() {
    let folder = TempDir::new().expect("a folder");
    let engine = FakeEngine::start(folder.path());
    for (i, id) in ids(5000).iter().enumerate() {
        engine.add(id, &format!("c{i}"), 0);
    }
    let config = Config { containers_max: 4990, ..Config::default() };
    let mut check = Check::new(&engine, &empty_machine(folder.path()), config);
    check
        .run_until("all", |check| check.one("docker.containers.running.total") == Some(4990.0))
        .await;
    assert!(check.took < Duration::from_secs(10), "{:?}", check.took);
    assert_eq!(
        check.telemetry.docker_containers_left_out.load(std::sync::atomic::Ordering::Relaxed),
        10
    );
}
