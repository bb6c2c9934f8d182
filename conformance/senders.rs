//! Who sent what, and whose the losses are: every figure of a listener is that of some sender.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;

use serde_json::Value as Json;
use tallyd::context::{self, Context};
use tallyd::cost::Cost;
use tallyd::intake;
use tallyd::ledger::{self, Ledger};
use tallyd::origin::directory::{Source, Told};
use tallyd::origin::{Config, Directory, EntityTags, Origins};
use tallyd::reader::{Reader, Shared};
use tallyd::rules::{self, Rules};
use tallyd::sample::{Dialect, Kind};
use tallyd::shard::{self, Shards};
use tallyd::sys::{Datagram, Sender};
use tallyd::telemetry::Telemetry;
use tallyd::time::Time;
use tallyd::value::{self, Plan};

use super::process::{Launch, Tallyd, UDP};

const START: Time = Time(1_000_000_000);
const ID: &str = "00000000000000000000000000000000000000000000000000000000000000ab";

/// Two readers of one aggregate, and what they know of senders.
struct World {
    readers: [Reader; 2],
    shards: Arc<Shards>,
    directory: Arc<Directory>,
    telemetry: Arc<Telemetry>,
}

impl World {
    fn new(config: shard::Config) -> Self {
        let telemetry = Arc::new(Telemetry::default());
        let plan = Plan::from_config(&value::Config::default());
        let own = "own".to_owned();
        let shards = Arc::new(Shards::new(config, plan, 10, own, Arc::clone(&telemetry), START));
        let directory = Arc::new(Directory::new(Arc::clone(&telemetry)));
        let origins = Origins::new(Config::default(), directory.clone(), telemetry.clone());
        let shared = Shared {
            rules: Arc::new(Rules::new(&rules::Config::default(), "own").unwrap()),
            shards: Arc::clone(&shards),
            origins: Arc::new(origins),
            telemetry: Arc::clone(&telemetry),
            distribution_prefix: None,
            log_rejects: false,
            line_max: 8192,
            spellings_max: 1000,
            journal: None,
        };
        let options = intake::Config::default().options(Dialect::Datadog);
        let readers = ["udp://x", "udp://y"].map(|name| {
            let listener = telemetry.listener(name.to_owned());
            Reader::new(shared.clone(), listener, options, false)
        });
        Self { readers, shards, directory, telemetry }
    }

    fn send(&mut self, reader: usize, sender: Sender, text: &str) {
        self.send_at(START, reader, sender, text);
    }

    fn send_at(&mut self, now: Time, reader: usize, sender: Sender, text: &str) {
        let whole = Datagram { bytes: text.as_bytes(), truncated: false, sender };
        self.readers[reader].datagrams(&[whole], now);
    }

    fn ledger(&self) -> Ledger {
        let ledger = Ledger::of(&self.telemetry, START);
        let of_listeners =
            |figure: fn(&ledger::Listener) -> u64| ledger.listeners.iter().map(figure).sum::<u64>();
        let of_senders =
            |figure: fn(&ledger::Sender) -> u64| ledger.senders.iter().map(figure).sum::<u64>();
        assert_eq!(of_senders(|s| s.datagrams), of_listeners(|l| l.datagrams));
        assert_eq!(of_senders(|s| s.bytes), of_listeners(|l| l.bytes));
        assert_eq!(of_senders(|s| s.truncated), of_listeners(|l| l.truncated));
        assert_eq!(of_senders(|s| s.lines), of_listeners(|l| l.lines));
        let rejects = |l: &ledger::Listener| l.rejects.values().map(|r| r.lines).sum();
        assert_eq!(of_senders(|s| s.rejects.values().sum()), of_listeners(rejects));
        assert_eq!(of_senders(|s| s.series), ledger.aggregate.contexts);
        for (cause, expected) in [
            ("series_limit", ledger.aggregate.overflow),
            ("timed_points_limit", ledger.aggregate.timed_dropped),
            ("events_limit", ledger.aggregate.events_dropped),
            ("not_finite", ledger.aggregate.non_finite),
        ] {
            let dropped = ledger.senders.iter().filter_map(|sender| sender.dropped.get(cause));
            assert_eq!(dropped.sum::<u64>(), expected, "{cause}");
        }
        ledger
    }

    /// Lines, series, and what was lost, in words.
    fn told(&self) -> Vec<String> {
        let tell = |sender: ledger::Sender| {
            let lost = sender.rejects.iter().chain(&sender.dropped);
            let lost: Vec<_> = lost.map(|(cause, count)| format!(" {cause}:{count}")).collect();
            let ledger::Sender { sender, lines, series, .. } = sender;
            format!("{sender}: {lines} lines, {series} series{}", lost.concat())
        };
        let mut told: Vec<_> = self.ledger().senders.into_iter().map(tell).collect();
        told.sort();
        told
    }
}

#[test]
fn a_series_that_a_crash_left_is_that_of_who_sends_it_again() {
    let mut world = World::new(shard::Config::default());
    for name in ["a", "b"] {
        let left = Context::new(name, Kind::Count, "own", Vec::new(), context::Source::default());
        world.shards.window(START).intern(left, false);
    }
    assert_eq!(world.told(), ["others: 0 lines, 2 series"]);
    world.send(0, APP, "a:1|c");
    world.send(1, address("10.0.0.1"), "a:1|c");
    let expected = [
        "10.0.0.1: 1 lines, 0 series",
        "others: 0 lines, 1 series",
        "pid 7 uid 5: 1 lines, 1 series",
    ];
    assert_eq!(world.told(), expected);
}

const APP: Sender = Sender::Process { pid: 7, uid: 5 };

fn address(text: &str) -> Sender {
    Sender::Address(text.parse().unwrap())
}

#[test]
fn every_loss_has_its_sender() {
    let mut world = World::new(shard::Config {
        contexts_max: 3,
        timed_points_max: 2,
        events_max: 1,
        ..shard::Config::default()
    });
    let high = vec!["container_name:web-1".to_owned()];
    let tags = Arc::new(EntityTags { high, ..EntityTags::default() });
    let addresses = vec!["10.0.0.1".parse().unwrap()];
    world.directory.publish(Source::Engine, ID, Told { addresses, tags, ..Told::default() });
    world.send(0, APP, "a:1|c\nbad\nb:nan|g\nc:nan:2|h");
    world.send(0, address("10.0.0.1"), "d:1|c\nd:1|q\n");
    world.send(1, address("10.0.0.1"), "d:1|c");
    world.send(0, address("10.0.0.2"), "e:1|c\n_e{1,1}:t|x\n_sc|up|0\na:1|c|T1000\na:1:2|c|T1000");
    world.send(1, Sender::Unknown, "a:1|c\na:1|c\n");
    world.send(1, Sender::Process { pid: 0, uid: 9 }, "bad");
    assert_eq!(
        world.told(),
        [
            "10.0.0.2: 5 lines, 0 series events_limit:1 series_limit:1 timed_points_limit:1",
            "container web-1: 3 lines, 1 series type:1",
            // The overflow series is tallyd's own.
            "others: 0 lines, 1 series",
            "pid 7 uid 5: 4 lines, 2 series no_pipe:1 not_finite:2",
            "uid 9 of another pid namespace: 1 lines, 0 series no_pipe:1",
            "via udp://y: 2 lines, 0 series",
        ]
    );
    let ledger = world.ledger();
    let rejects = &ledger.listeners[0].rejects;
    assert_eq!((&*rejects["no_pipe"].excerpt, &*rejects["no_pipe"].sender), ("bad", "pid 7 uid 5"));
    assert_eq!(rejects["type"].sender, "container web-1");
    let container = ledger.senders.iter().find(|sender| sender.kind == "container").unwrap();
    assert_eq!((container.container_id.as_deref(), container.datagrams), (Some(ID), 2));
}

#[test]
fn series_are_those_of_who_sent_them_first_until_they_expire() {
    let mut world = World::new(shard::Config::default());
    world.send(0, APP, "a:1|g\nb:1|g\nb:1|g|#x");
    world.send(0, address("10.0.0.2"), "b:1|g\nc:1|g");
    let expected = ["10.0.0.2: 2 lines, 1 series", "pid 7 uid 5: 3 lines, 3 series"];
    assert_eq!(world.told(), expected);
    let rows = world.shards.flush(Time(START.0 + 10_000), false).rows;
    let called = |number| {
        let accounts = world.telemetry.senders.all();
        accounts.iter().find(|account| account.number == number).unwrap().label()
    };
    let cost = Cost::of(rows.iter().map(|row| &row.context), 10, called);
    let senders: Vec<_> = cost.senders.iter().map(|s| (s.sender.as_str(), s.series)).collect();
    assert_eq!(senders, [("pid 7 uid 5", 3), ("10.0.0.2", 1)]);
    for seconds in [20, 30, 40, 50] {
        let now = Time(START.0 + seconds * 1000);
        world.send_at(now, 0, address("10.0.0.2"), "b:1|g");
        world.shards.flush(now, false);
    }
    let expected = ["10.0.0.2: 6 lines, 0 series", "pid 7 uid 5: 3 lines, 1 series"];
    assert_eq!(world.told(), expected);
}

#[test]
fn more_senders_than_accounts_lose_no_figure() {
    let mut world = World::new(shard::Config { contexts_max: 1, ..shard::Config::default() });
    // Two in three get no account while all are known to a reader, and none when they are forgotten.
    for (round, minute) in [(0, 0), (1, 2), (2, 4)] {
        let now = Time(START.0 + minute * 60_000);
        world.readers.iter_mut().for_each(|reader| reader.release(now));
        for pid in 1..=6000 {
            let sender = Sender::Process { pid: pid + round * 100_000, uid: 0 };
            world.send_at(now, pid as usize % 2, sender, "a:1|c\nbad");
        }
        world.shards.flush(now, false);
    }
    let ledger = world.ledger();
    assert_eq!(ledger.senders.iter().map(|sender| sender.lines).sum::<u64>(), 36_000);
    assert!(ledger.senders.len() <= 4096, "{}", ledger.senders.len());
    let others = ledger.senders.iter().find(|sender| sender.kind == "others").unwrap();
    assert!(others.lines >= 2 * 3 * (6000 - 4095), "{others:?}");
    let senders = &world.telemetry.senders;
    assert!(senders.forgotten.get() > 0 && senders.refused.get() > 0);
}

fn ledger(tallyd: &Tallyd) -> Json {
    serde_json::from_str(&tallyd.page("/api/ledger")).unwrap()
}

#[test]
fn a_running_server_knows_processes_by_their_sockets() {
    let tallyd = Launch::new().listen(&[UDP, "unixgram://{folder}/s"]).start();
    let path = tallyd.listener("unixgram");
    let socket = UnixDatagram::unbound().unwrap();
    socket.connect(&path).unwrap();
    // Counts, which an idle flush still has: what it costs is asked later.
    socket.send(b"mine:1|c\nmine.too:1|c\nbad line").unwrap();
    tallyd.send(["unknown:1|c"]);
    let to = format!("unixgram://{path}");
    let program = env!("CARGO_BIN_EXE_tallyd");
    let sent = Command::new(program).args(["send", "count", "theirs", "1", "--to", &to]).status();
    assert!(sent.unwrap().success());
    tallyd.wait_until("all lines, and a flush", |tallyd| {
        let ledger = ledger(tallyd);
        let senders = ledger["senders"].as_array().unwrap().iter();
        let lines: u64 = senders.map(|sender| sender["lines"].as_u64().unwrap()).sum();
        lines == 5 && tallyd.page("/api/cost").contains("theirs")
    });
    let ledger = ledger(&tallyd);
    let senders = ledger["senders"].as_array().unwrap();
    assert_eq!(senders.len(), 3, "{senders:#?}");
    // The one with the most losses comes first.
    let me = &senders[0];
    assert_eq!(me["pid"], std::process::id());
    assert_eq!(
        (&me["kind"], &me["lines"], &me["series"]),
        (&"process".into(), &3.into(), &2.into())
    );
    let word = me["sender"].as_str().unwrap();
    assert_eq!(ledger["listeners"][1]["rejects"]["no_pipe"]["sender"], word);
    assert!(senders.iter().any(|one| one["kind"] == "listener" && one["lines"] == 1));

    let asked = |arguments: &[&str]| {
        let address = tallyd.server(0).to_string();
        let mut command = Command::new(program);
        let output = command.args(arguments).args(["--address", &address]).env_clear().output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let stats = asked(&["stats", "--sort", "sender"]);
    assert!(stats.contains(&format!("  mine ({word})\n")), "{stats}");
    let row = stats.lines().find(|line| line.ends_with(&format!("  {word}"))).unwrap();
    let row: Vec<_> = row.split_whitespace().take(5).collect();
    assert_eq!(row, ["3", "30", "2", "1", "0"], "{stats}");
    let cost = asked(&["cost", "--sender", word]);
    assert!(cost.starts_with("2 series\n") && !cost.contains("theirs"), "{cost}");
    assert!(cost.contains(&format!("\n        2  {word}\n")), "{cost}");
}
