//! `kill -9` at random moments and at every step of journal, flush and spool, under load. What was
//! read must arrive exactly once; only what was on its way may come again, the same to the bit.
//!
//! A sender numbers its points and learns from the socket's queue which of them were read. Each
//! process is killed, and the next one on the same folder goes on; the last one stops in order. Then
//! the intake's record is compared. Without arguments 200 kills; as many as wanted by
//!
//! ```text
//! KILLS=10000 cargo test --test conformance journal_kills -- --nocapture
//! ```

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tallyd::sys;

use super::process::{KEY, Launch, Tallyd};
use super::received::Received;
use super::test_intake::{Intake, Response};

/// Kills of one folder: what is compared must fit into memory.
const KILLS_PER_WORLD: usize = 25;
/// Worlds at a time.
const THREADS: usize = 4;
/// Longest life, and a life that waits for a fail point.
const LIFE: Duration = Duration::from_millis(1300);
/// Lives that are given to what is in the spool at the end.
const LAST_LIVES: usize = 10;
const POINTS_PER_DATAGRAM: u64 = 5;
const PAUSE: Duration = Duration::from_millis(2);

/// Where processes die, and at which passes at most.
const FAIL_POINTS: [(&str, u64); 23] = [
    ("intake.received", 200),
    ("journal.make_folder", 1),
    ("journal.list", 1),
    ("journal.create", 3),
    ("journal.append", 4),
    ("journal.gather", 200),
    ("journal.appended", 200),
    ("journal.written", 3),
    ("journal.sync", 3),
    ("journal.checkpoint", 3),
    ("journal.rename", 3),
    ("journal.checkpointed", 3),
    ("journal.read", 5),
    ("journal.release", 2),
    ("journal.released", 2),
    ("journal.remove", 3),
    ("flush.begin", 2),
    ("flush.end", 2),
    ("spool.write", 3),
    ("spool.sync", 3),
    ("spool.rename", 3),
    ("spool.send", 3),
    ("spool.remove", 3),
];

/// A generator that needs no crate: the same seed gives the same kills.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Debug, Default)]
struct Figures {
    kills: usize,
    at_fail_points: usize,
    read: usize,
    arrived: usize,
    doubles: usize,
    unprotected: usize,
}

/// One folder, its intake, and what was sent to it.
struct World {
    folder: tempfile::TempDir,
    intake: Intake,
    /// The journal is so small that checkpoints take its place all the time.
    small: bool,
    /// Lives in which the journal was full.
    unprotected: usize,
    /// The next number.
    next: u64,
    /// By number, whether it is known to have been read.
    sent: Vec<bool>,
}

impl World {
    fn new(small: bool) -> Self {
        let intake = Intake::start();
        // Some payloads are on their way when the process dies.
        let mut requests = 0;
        intake.respond_with(move |request| {
            requests += 1;
            let delay = Duration::from_millis(requests % 4 * 20);
            Response { delay, ..Response::status(if request.method == "GET" { 200 } else { 202 }) }
        });
        Self {
            folder: tempfile::tempdir().unwrap(),
            intake,
            small,
            unprotected: 0,
            next: 0,
            sent: Vec::new(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("dsd.socket")
    }

    fn launch(&self) -> Launch {
        Launch::new()
            .env("DD_API_KEY", KEY)
            .env("DD_DD_URL", &self.intake.url)
            .env("DD_HOSTNAME", "own")
            .env("DD_RUN_PATH", self.folder.path().join("run").to_str().unwrap())
            .set("sinks.spool.max_disk_ratio", "1")
            .set("journal.max_bytes", if self.small { "2097152" } else { "67108864" })
            .set("shard.counter_expiry_seconds", "0")
            .set("sinks.datadog.validate_key", "false")
            .listen(&[&format!("unixgram://{}", self.socket().display())])
    }

    /// A life that ends by a kill. Returns whether it was at the fail point.
    fn live(&mut self, random: &mut Random, fail_point: Option<(&str, u64)>) -> bool {
        let launch = self.launch();
        let mut tallyd = match fail_point {
            Some((name, pass)) => launch.env("TALLYD_FAIL_POINT", &format!("{name}:{pass}")),
            None => launch,
        }
        .spawn();
        let life = match fail_point {
            Some(_) => LIFE * 2,
            None => Duration::from_millis(random.below(LIFE.as_millis() as u64)),
        };
        let checks_books = fail_point.is_none() && random.below(4) == 0;
        let born = Instant::now();
        let over = AtomicBool::new(false);
        let (socket, first) = (self.socket(), self.next);
        let filler = if self.small { 4000 } else { 0 };
        let (finished, died, next, read) = thread::scope(|scope| {
            let sender = scope.spawn(|| send(&socket, first, filler, &over));
            while born.elapsed() < life && tallyd.lives() {
                thread::sleep(Duration::from_millis(3));
            }
            let died = !tallyd.lives();
            if !died {
                if checks_books {
                    // Under load they may be seen while something is under way.
                    tallyd.wait_until("the books balance", |t| t.balances() != Some(false));
                }
                tallyd.signal("KILL");
            }
            let finished = tallyd.wait();
            over.store(true, Ordering::Release);
            let (next, read) = sender.join().unwrap();
            (finished, died, next, read)
        });
        let said = |text: &str| finished.stderr.contains(text);
        assert!(!said("panicked") && (!died || fail_point.is_some()), "{}", finished.stderr);
        // A disk that is busy elsewhere may be too slow for the small journal, which says so then.
        let unprotected = said("would not survive a crash");
        assert!(!unprotected || self.small, "{}", finished.stderr);
        self.unprotected += usize::from(unprotected);
        self.sent.extend((first..next).map(|number| number < read && !unprotected));
        self.next = next;
        died
    }

    /// The last life, and what all came to.
    fn end(self) -> Figures {
        let open = |t: &Tallyd| {
            t.figure("tallyd_sink_spooled_points", "") + t.figure("tallyd_sink_held_points", "")
        };
        // On a busy machine the time to stop is too short for all that the lives have left.
        for _ in 0..LAST_LIVES {
            let tallyd = self.launch().start();
            tallyd.wait_until("the spool is empty", |tallyd| open(tallyd) == 0.0);
            tallyd.stop();
            if files_below(&self.folder.path().join("run/spool")) == 0 {
                break;
            }
        }
        let received = Received::of(&self.intake.requests());
        let mut points = HashMap::<u64, Vec<(i64, f64)>>::new();
        let mut figures = Figures { unprotected: self.unprotected, ..Figures::default() };
        let mut torn = Vec::new();
        for point in received.points.iter().filter(|p| p.name.starts_with("kill.")) {
            let number = point.tags.strip_prefix("n:").unwrap().parse().unwrap();
            let at: &mut Vec<_> = points.entry(number).or_default();
            if at.contains(&(point.time, point.value)) {
                figures.doubles += 1;
            } else {
                at.push((point.time, point.value));
            }
        }
        for (number, read) in self.sent.iter().enumerate() {
            figures.read += usize::from(*read);
            let at = points.remove(&(number as u64)).unwrap_or_default();
            figures.arrived += usize::from(!at.is_empty());
            match at[..] {
                [] if !read => {}
                [(_, 1.0)] => {}
                _ => torn.push((number, *read, at)),
            }
        }
        assert!(points.is_empty(), "never sent: {points:?}");
        let shown = &torn[..torn.len().min(20)];
        assert!(torn.is_empty(), "{} of {} points: {shown:?}", torn.len(), self.sent.len());
        figures
    }
}

fn files_below(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| if e.path().is_dir() { files_below(&e.path()) } else { 1 }).sum()
}

/// Sends numbered points until it is over. Returns the next number, and below which all were read.
fn send(socket: &Path, first: u64, filler: usize, over: &AtomicBool) -> (u64, u64) {
    let (mut next, mut read, mut empty_at) = (first, first, first);
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    while !over.load(Ordering::Acquire) && sender.connect(socket).is_err() {
        thread::sleep(Duration::from_millis(1));
    }
    let mut datagram = String::new();
    while !over.load(Ordering::Acquire) {
        datagram.clear();
        for number in next..next + POINTS_PER_DATAGRAM {
            // Every fifth brings its own time: such points are not merged, so each copy shows.
            match number % 5 {
                0 => writeln!(datagram, "kill.t:1|g|#n:{number}|T{}", 1_700_000_000 + number),
                1 => writeln!(datagram, "kill.g:1|g|#n:{number}"),
                _ => writeln!(datagram, "kill.c:1|c|#n:{number}"),
            }
            .unwrap();
        }
        if filler > 0 {
            writeln!(datagram, "filler:1|g|#x:{}", "x".repeat(filler)).unwrap();
        }
        if sender.send(datagram.as_bytes()).is_ok() {
            // The socket was still open after its queue was found empty, so that had been read.
            read = empty_at;
            next += POINTS_PER_DATAGRAM;
        }
        thread::sleep(PAUSE);
        if sys::unread(sender.as_fd()).unwrap() == 0 {
            empty_at = next;
        }
    }
    (next, read)
}

#[test]
fn what_was_read_arrives_once_whatever_is_killed() {
    let kills: usize = std::env::var("KILLS").map_or(200, |n| n.parse().unwrap());
    let worlds = kills.div_ceil(KILLS_PER_WORLD);
    let begun = Instant::now();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let all = thread::scope(|scope| {
        let run = || {
            let mut all = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= worlds {
                    return all;
                }
                all.push(one_world(
                    number as u64,
                    KILLS_PER_WORLD.min(kills - number * KILLS_PER_WORLD),
                ));
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let sum = |figure: fn(&Figures) -> usize| all.iter().map(figure).sum::<usize>();
    println!(
        "{} kills ({} at fail points), {} points read and {} arrived, {} doubles, {} lives with a full journal, in {} s",
        sum(|f| f.kills),
        sum(|f| f.at_fail_points),
        sum(|f| f.read),
        sum(|f| f.arrived),
        sum(|f| f.doubles),
        sum(|f| f.unprotected),
        begun.elapsed().as_secs()
    );
    assert_eq!(sum(|f| f.kills), kills);
    assert!(sum(|f| f.unprotected) <= kills / 10, "checkpoints do not keep up");
    assert!(sum(|f| f.read) > kills * 10, "too little was read to tell anything");
    assert!(kills < 100 || sum(|f| f.at_fail_points) > kills / 10, "fail points were not reached");
}

fn one_world(seed: u64, kills: usize) -> Figures {
    let mut world = World::new(seed % 2 == 1);
    let mut random = Random(seed);
    let mut at_fail_points = 0;
    for kill in 0..kills {
        let fail_point = (kill % 2 == 0).then(|| {
            let (name, most) = FAIL_POINTS[(seed as usize * kills + kill) / 2 % FAIL_POINTS.len()];
            (name, 1 + random.below(most))
        });
        at_fail_points += usize::from(world.live(&mut random, fail_point));
    }
    Figures { kills, at_fail_points, ..world.end() }
}

/// The connection dies with the process, but not what had been read from it. The first read brings
/// half a line at its end, the second the rest of it.
#[test]
fn what_was_read_of_a_stream_survives_too() {
    let all = [("n:0", 1.0), ("n:1", 1.0)];
    for (fail_point, expected) in
        [("intake.read:1", &all[..1]), ("journal.appended:1", &all[..1]), ("intake.read:2", &all)]
    {
        let world = World::new(false);
        let socket = world.folder.path().join("stream.socket");
        let launch = || world.launch().listen(&[&format!("unixstream://{}", socket.display())]);
        let mut tallyd = launch().env("TALLYD_FAIL_POINT", fail_point).start();
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"kill.c:1|c|#n:0\nkill.c:1|").unwrap();
        while tallyd.lives() && sys::unread(stream.as_fd()).unwrap() > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        // Where the first read was the end, nobody is there any more.
        let _ = stream.write_all(b"c|#n:1\nkill.c:1|c|#n:");
        tallyd.wait();
        launch().start().stop();
        let received = Received::of(&world.intake.requests());
        let points = received.points.iter().filter(|point| point.name == "kill.c");
        let mut found: Vec<_> = points.map(|p| (p.tags.as_str(), p.value)).collect();
        found.sort_by_key(|(tags, _)| *tags);
        assert_eq!(found, expected, "{fail_point}");
    }
}
