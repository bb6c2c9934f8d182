//! Whose a sample is: real processes in cgroups that are named as an engine names those of its
//! containers, and a collector that tells of them in time, late or never.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tallyd::batch::Batch;
use tallyd::cgroup::roots::Roots;
use tallyd::flush::Flush;
use tallyd::intake;
use tallyd::journal::{self, Journal};
use tallyd::origin::directory::{Source, Told};
use tallyd::origin::{Config, Directory, EntityTags, Origins, resolver};
use tallyd::reader::{Reader, Shared};
use tallyd::replay::replay;
use tallyd::rules::{self, Rules};
use tallyd::sample::Dialect;
use tallyd::shard::{self, Shards};
use tallyd::telemetry::Telemetry;
use tallyd::time::Time;
use tallyd::value::{self, Plan};

use super::process::{DEADLINE, Launch, Tallyd, UDP};
use super::received::assert_lines;
use super::test_intake::Intake;

/// A cgroup that looks like a container's. Removed when dropped.
struct Container {
    id: String,
    folder: PathBuf,
    parent_is_ours: bool,
}

impl Container {
    /// Where clients look for the inode of their own: in the memory hierarchy of version 1, or in
    /// the only one of version 2.
    fn new() -> Result<Self, String> {
        let roots = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(Path::new);
        let root = roots.into_iter().find(|root| root.join("cgroup.procs").exists());
        let parent = root.ok_or("no cgroups are mounted")?.join("docker");
        let now = Time::now().0;
        let id = format!("{:032x}{:032x}", std::process::id(), now);
        let parent_is_ours = fs::create_dir(&parent).is_ok();
        let container = Self { folder: parent.join(&id), id, parent_is_ours };
        fs::create_dir(&container.folder).map_err(|error| format!("no cgroup: {error}"))?;
        Ok(container)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // A process that has just ended may still be in it.
        let started = Instant::now();
        while fs::remove_dir(&self.folder).is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound)
            && started.elapsed() < Duration::from_secs(5)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.parent_is_ours {
            // Another test may use it meanwhile.
            let _ = self.folder.parent().map(fs::remove_dir);
        }
    }
}

/// Goes into a cgroup and sends by every way there is; says so, and lives until it is told.
const SENDER: &str = r#"
import os, socket, struct, sys
folder, gram, stream, udp = sys.argv[1:]
if folder:
    open(os.path.join(folder, "cgroup.procs"), "w").write(str(os.getpid()))
    identity = os.path.basename(folder)
    inode = os.stat(folder).st_ino
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(gram)
s.send(b"gram:1|c")
s.send(b"gram:1|c\n_e{1,1}:t|x")
t = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
t.connect(stream)
for _ in range(2):
    t.sendall(struct.pack("<I", 10) + b"stream:1|c")
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
host, port = udp.rsplit(":", 1)
u.connect((host, int(port)))
u.send(b"nothing:1|c")
if folder:
    u.send(b"bare:1|c|c:%s" % identity.encode())
    u.send(b"id:1|c|c:ci-%s" % identity.encode())
    u.send(b"inode:1|c|c:in-%d\ninode.none:1|c|c:in-%d|card:none" % (inode, inode))
    u.send(b"_sc|inode.check|0|c:in-%d" % inode)
print("sent", flush=True)
sys.stdin.read()
"#;

fn sender(folder: &Path, tallyd: &Tallyd) -> Child {
    let mut child = Command::new("python3")
        .args(["-c", SENDER])
        .arg(folder)
        .args([&tallyd.listener("unixgram"), &tallyd.listener("unixstream")])
        .arg(tallyd.listener("udp"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let said = child.stdout.take().map(|pipe| BufReader::new(pipe).lines().next());
    assert!(matches!(said, Some(Some(Ok(word))) if word == "sent"), "it could not send");
    child
}

fn launch(intake: &Intake) -> Launch {
    let listeners = [UDP, "unixgram://{folder}/gram", "unixstream://{folder}/stream"];
    let launch = Launch::new().to(intake).calm();
    let list = listeners.map(|address| json!({"address": address}));
    launch.set("intake.listeners", &json!(list).to_string())
}

/// The first sender of this kind in the ledger.
fn account(tallyd: &Tallyd, kind: &str) -> serde_json::Value {
    let ledger: serde_json::Value =
        serde_json::from_str(&tallyd.page("/api/ledger")).expect("JSON");
    let senders = ledger["senders"].as_array().expect("a list");
    senders.iter().find(|sender| sender["kind"] == kind).cloned().expect("one of the kind")
}

#[test]
fn whatever_way_a_container_sends_its_tags_are_the_same() {
    let name = "whatever_way_a_container_sends_its_tags_are_the_same";
    if !Command::new("python3").arg("-V").output().is_ok_and(|o| o.status.success()) {
        return println!("SKIP {name}: no python3");
    }
    let container = match Container::new() {
        Ok(container) => container,
        Err(reason) => return println!("SKIP {name}: {reason}"),
    };
    let intake = Intake::start();
    let tallyd = launch(&intake).env("DD_DOGSTATSD_TAG_CARDINALITY", "high").start();
    let mut sender = sender(&container.folder, &tallyd);
    tallyd.wait_until("all is read", |t| t.figure("tallyd_listener_samples_total", "") == 9.0);
    // The first of each waited; nobody had to go without.
    tallyd.wait_until("the first are known", |t| t.figure("tallyd_origin_waited_total", "") >= 3.0);
    assert_eq!(tallyd.figure("tallyd_origin_untagged_total", ""), 0.0);
    drop(sender.stdin.take());
    sender.wait().expect("its end");
    // What both Unix sockets got goes to the account of the container, not to that of a process.
    let account = account(&tallyd, "container");
    assert_eq!(account["container_id"], container.id, "{account:#}");
    assert_eq!((&account["datagrams"], &account["lines"]), (&json!(4), &json!(5)), "{account:#}");
    assert_eq!(account["series"], 2, "{account:#}");
    tallyd.stop();
    let tag = format!("container_id:{}", container.id);
    let expected = r#"
        gram rate [{}] 2
        stream rate [{}] 2
        bare rate [{}] 1
        id rate [{}] 1
        inode rate [{}] 1
        inode.none rate [] 1
        nothing rate [] 1
        event "t" "x" info normal [{}]
        check inode.check 0 "" [{}]
        "#;
    assert_lines(&intake.requests(), &expected.replace("{}", &tag));
}

#[test]
fn a_process_of_another_pid_namespace_is_told_with_the_flag_that_is_missing() {
    let name = "a_process_of_another_pid_namespace_is_told_with_the_flag_that_is_missing";
    let unshare = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let possible = Command::new("unshare").args(unshare).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return println!("SKIP {name}: no pid namespace can be made");
    }
    let intake = Intake::start();
    let tallyd = launch(&intake).within("unshare", &unshare).start();
    let mut sender = sender(Path::new(""), &tallyd);
    tallyd.wait_until("all is read", |t| t.figure("tallyd_listener_samples_total", "") == 5.0);
    assert_eq!(tallyd.figure("tallyd_origin_foreign_total", ""), 4.0);
    let account = account(&tallyd, "process");
    assert_eq!((&account["pid"], &account["lines"]), (&json!(0), &json!(5)), "{account:#}");
    tallyd.wait_for_stderr("matched pid 0");
    drop(sender.stdin.take());
    sender.wait().expect("its end");
    assert_eq!(tallyd.stderr().matches("--pid host").count(), 1, "{}", tallyd.stderr());
}

/// A reader, and a resolver beside it, at a time of our own.
struct World {
    reader: Reader,
    flush: Flush,
    directory: Arc<Directory>,
    telemetry: Arc<Telemetry>,
    resolver: Option<resolver::Running>,
    journal: Option<Arc<Journal>>,
}

const START: Time = Time(1_000_001_000);

impl World {
    fn new(config: Config) -> Self {
        Self::with_journal(config, None)
    }

    /// With a journal in this folder, and with what an earlier one left there.
    fn with_journal(config: Config, folder: Option<&Path>) -> Self {
        let telemetry = Arc::new(Telemetry::default());
        let opened = folder.map(|folder| {
            let (config, telemetry) = (journal::Config::default(), Arc::clone(&telemetry));
            Journal::open(folder, &config, telemetry, Arc::new(|_| Ok(())), START)
        });
        let rules = Arc::new(Rules::new(&rules::Config::default(), "").expect("rules"));
        let plan = Plan::from_config(&value::Config::default());
        let aggregates = Arc::clone(&plan.aggregates);
        let shards = Arc::new(Shards::new(
            shard::Config::default(),
            plan,
            10,
            String::new(),
            Arc::clone(&telemetry),
            START,
        ));
        let directory = Arc::new(Directory::new(Arc::clone(&telemetry)));
        let origins =
            Arc::new(Origins::new(config, Arc::clone(&directory), Arc::clone(&telemetry)));
        let empty = Path::new("/nonexistent");
        let resolver = resolver::start(Arc::clone(&origins), &Roots::of_machine(empty), 600_000);
        let blocklist = rules.blocklist();
        let shared = Shared {
            rules,
            shards: Arc::clone(&shards),
            origins,
            telemetry: Arc::clone(&telemetry),
            distribution_prefix: None,
            log_rejects: false,
            line_max: 8192,
            spellings_max: 1000,
            journal: opened.as_ref().map(|(journal, _)| Arc::clone(journal)),
        };
        let options = intake::Config::default().options(Dialect::Datadog);
        let journal = opened.map(|(journal, found)| {
            let options = |dialect| intake::Config::default().options(dialect);
            replay(found, &journal, &shared, options, START);
            journal
        });
        let listener = telemetry.listener("test".to_owned());
        Self {
            reader: Reader::new(shared, listener, options, false).patient(),
            flush: Flush { shards, telemetry: Arc::clone(&telemetry), aggregates, blocklist },
            directory,
            telemetry,
            resolver: Some(resolver.expect("a thread")),
            journal,
        }
    }

    fn send(&mut self, text: &str, now: Time) {
        self.reader.datagram(text.as_bytes(), false, now);
    }

    fn publish(&self, id: &str, tag: &str) {
        let low = vec![tag.to_owned()];
        let tags = Arc::new(EntityTags { low, ..EntityTags::default() });
        self.directory.publish(Source::Engine, id, Told { tags, ..Told::default() });
    }

    /// Until the resolver has passed on what was published.
    fn release(&mut self, now: Time) {
        let started = Instant::now();
        while self.reader.holds() {
            assert!(started.elapsed() < DEADLINE, "it is not released");
            self.reader.release(now);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn flush(&self, now: Time) -> Vec<String> {
        let Batch { rows, events, .. } = self.flush.batch(now, false);
        let rows = rows.iter().map(|row| {
            let tags: Vec<_> = row.context.tags().collect();
            format!("{} {:?} {:?} @{}", row.context.name(), tags, row.value, row.time)
        });
        let events = events.iter().map(|event| format!("{} {:?}", event.title, event.tags));
        let mut lines: Vec<_> = rows.chain(events).collect();
        lines.sort();
        lines
    }

    fn counts(&self) -> (u64, u64) {
        (self.telemetry.origin_waited.get(), self.telemetry.origin_untagged.get())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.resolver.take().into_iter().for_each(resolver::Running::stop);
    }
}

const ID: &str = "00000000000000000000000000000000000000000000000000000000000000ab";

#[test]
fn first_samples_wait_for_their_tags_in_order() {
    let mut world = World::new(Config::default());
    let mut wanted = world.directory.wanted();
    world.send(&format!("g:1|g|c:{ID}\nother:1|c\n_e{{1,1}}:t|x|c:{ID}"), START);
    world.send(&format!("g:2|g|c:{ID}"), START);
    assert_eq!(wanted.blocking_recv().as_deref(), Ok(ID));
    world.publish(ID, "image_name:web");
    // It is known by now, and still must not overtake.
    world.send(&format!("g:3|g|c:{ID}"), START);
    world.release(START);
    world.send(&format!("g:4|g|c:{ID}\ng:5|g|c:{ID}|card:none"), START);
    assert_eq!(
        world.flush(Time(START.0 + 10_000)),
        [
            "g [\"image_name:web\"] Gauge(4.0) @1000000",
            "g [] Gauge(5.0) @1000000",
            "other [] Count(1.0) @1000000",
            "t [\"image_name:web\"]",
        ]
    );
    assert_eq!(world.counts(), (4, 0));
    let listener = &world.telemetry.listeners()[0];
    assert_eq!((listener.samples.get(), listener.datagrams.get()), (6, 4), "each counts once");
}

#[test]
fn nothing_waits_beyond_its_interval() {
    let mut world = World::new(Config::default());
    let _collector = world.directory.wanted();
    world.send(&format!("g:1|g|c:{ID}"), START);
    let end = Time(START.0 + 8_800);
    world.reader.release(Time(START.0 + 8_700));
    assert!(world.reader.holds(), "there is time left");
    world.reader.release(end);
    assert!(!world.reader.holds());
    assert_eq!(world.flush(Time(START.0 + 9_000)), ["g [] Gauge(1.0) @1000000"]);
    assert_eq!(world.counts(), (0, 1));
    // Tags that come late are those of the next samples, also where the series was known.
    world.publish(ID, "image_name:web");
    let next = Time(START.0 + 9_500);
    world.send(&format!("g:2|g|c:{ID}"), next);
    world.release(next);
    world.publish(ID, "image_name:new");
    assert_eq!(world.flush(Time(START.0 + 19_000)), ["g [\"image_name:web\"] Gauge(2.0) @1000010"]);
    world.send(&format!("g:3|g|c:{ID}"), Time(START.0 + 19_500));
    assert_eq!(world.flush(Time(START.0 + 29_000)), ["g [\"image_name:new\"] Gauge(3.0) @1000020"]);
}

#[test]
fn what_waits_outlives_a_crash() {
    let text = format!("c:1|c|c:{ID}\ng:1|g");
    // The generation may close meanwhile, and what it held by then may be safe.
    for (closes, released) in [(false, false), (false, true), (true, false), (true, true)] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut world = World::with_journal(Config::default(), Some(folder.path()));
        let _collector = world.directory.wanted();
        world.send(&text, START);
        assert!(world.reader.holds());
        if closes {
            let journal = world.journal.as_ref().expect("a journal");
            journal.checkpoint(&world.flush.shards);
        }
        if released {
            world.publish(ID, "image_name:web");
            world.release(START);
        }
        drop(world);
        let world = World::with_journal(Config::default(), Some(folder.path()));
        let lines = world.flush(Time(START.0 + 20_000));
        let found = lines.iter().map(|line| &line[..line.find('@').expect("a time")]);
        // Zeros of an idle counter follow.
        let found: Vec<_> = found.filter(|line| !line.contains("Count(0.0)")).collect();
        let expected = match released {
            false => ["c [] Count(1.0) ", "g [] Gauge(1.0) "],
            // What was known by then is in the journal.
            true => ["c [\"image_name:web\"] Count(1.0) ", "g [] Gauge(1.0) "],
        };
        assert_eq!(found, expected, "{closes} {released}");
    }
}

#[test]
fn who_may_not_wait_goes_without_and_is_counted() {
    for (config, fits) in [
        (Config { wait: false, ..Config::default() }, 0),
        (Config { wait_bytes_max: 500, ..Config::default() }, 2),
    ] {
        let mut world = World::new(config);
        let _collector = world.directory.wanted();
        for _ in 0..5 {
            world.send(&format!("c:1|c|c:{ID}"), START);
        }
        world.reader.release_all(START);
        assert_eq!(world.flush(Time(START.0 + 10_000)), ["c [] Count(5.0) @1000000"]);
        assert_eq!(world.counts(), (0, 5), "{fits} of them waited in vain");
    }
}

#[test]
fn the_doctor_names_the_flag_that_is_missing() {
    let name = "the_doctor_names_the_flag_that_is_missing";
    let launch = || {
        let launch = Launch::new().set("intake.socket", "{folder}/dsd.socket");
        launch.set("state.run_path", "{folder}/state")
    };
    let here = launch().run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&here.stdout).expect("JSON");
    let lines = report.as_array().expect("a list");
    let missing = lines.iter().filter(|line| line["state"] == "missing").count();
    assert_eq!(here.code(), i32::from(missing > 0), "{here:#?}");
    let unshare = ["--pid", "--net", "--fork", "--mount-proc"];
    let possible = Command::new("unshare").args(unshare).arg("true").output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return println!("SKIP {name}: no namespaces can be made");
    }
    let inside = launch().within("unshare", &unshare).run(&["doctor"]);
    assert_eq!(inside.code(), 1, "{inside:#?}");
    let line = |start: &str| inside.stdout.lines().find(|line| line.starts_with(start));
    let pids = line("MISSING pid namespace: ").expect("it is missing");
    assert!(pids.contains("; --pid host (docker)"), "{pids}");
}
