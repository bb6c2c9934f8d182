//! What a disk can do wrong: each operation of the spool with each error, and a disk that is full.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tallyd::batch::{Batch, ServiceCheck};
use tallyd::encode::{Body, Coding, Encoded, Payload};
use tallyd::sample::Status;
use tallyd::sinks::deliver::{Delivery, Receipt, Spools};
use tallyd::sinks::spool::{self, Folder, Op};
use tallyd::sinks::{Durable, Sending, Sink, Verdict};
use tallyd::telemetry::{Endpoint, Telemetry};
use tokio::time::Instant;

use super::books::{assert_conserved, balance, figure};
use super::process::{KEY, Launch, Tallyd, UDP};
use super::received::Received;
use super::test_intake::{Intake, Request, Response};

/// Takes everything, and remembers the points of each payload.
#[derive(Default)]
struct Taker(Mutex<Vec<u64>>);

impl Sink for Taker {
    fn name(&self) -> &'static str {
        "taker"
    }

    fn endpoints(&self) -> Vec<String> {
        vec!["endpoint".to_owned()]
    }

    fn durable(&self) -> Option<Durable> {
        Some(Durable { kinds: &["checks"], folders: vec![Folder::new("endpoint", b"key", "")] })
    }

    fn encode(&self, batch: &Arc<Batch>) -> Encoded {
        let (points, body) = (batch.points(), Body::Bytes(vec![0; 100]));
        let payload = Payload { kind: "checks", points, coding: Coding::Identity, body };
        Encoded { payloads: vec![payload], dropped: 0 }
    }

    fn send<'a>(&'a self, _: usize, payload: &'a Payload) -> Sending<'a> {
        self.0.lock().unwrap().push(payload.points);
        Box::pin(std::future::ready(Verdict::Delivered))
    }
}

fn batch(points: usize) -> Arc<Batch> {
    let check = ServiceCheck {
        name: "c".to_owned(),
        status: Status::Ok,
        timestamp: 1,
        host: String::new(),
        message: String::new(),
        tags: Vec::new(),
    };
    Arc::new(Batch { checks: vec![check; points].into(), ..Batch::default() })
}

/// An operation that fails so many times, and how often it did.
#[derive(Default)]
struct Fault {
    failing: Option<(Op, i32)>,
    times: usize,
    hits: usize,
}

impl Fault {
    fn strike(&mut self, op: Op) -> io::Result<()> {
        match self.failing {
            Some((failing, errno)) if failing == op && self.times > 0 => {
                self.times -= 1;
                self.hits += 1;
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }
}

/// Starts the delivery to a sink that takes everything.
fn start(root: &Path, fault: &Arc<Mutex<Fault>>) -> (Delivery, Arc<Taker>, Arc<Endpoint>) {
    let (telemetry, sink) = (Telemetry::default(), Arc::<Taker>::default());
    let config = spool::Config { max_disk_ratio: 1.0, ..spool::Config::default() };
    let fault = Arc::clone(fault);
    let gate: spool::Gate = Arc::new(move |op| fault.lock().unwrap().strike(op));
    let spools = Spools { root, config: &config, gate };
    let taken = Arc::clone(&sink);
    let delivery = Delivery::start(taken, 1 << 20, Some(&spools), &telemetry);
    (delivery, sink, Arc::clone(&telemetry.endpoints()[0]))
}

async fn until(endpoint: &Endpoint, what: &str, done: impl Fn(&Endpoint) -> bool) {
    // Time is virtual.
    for _ in 0..1000 {
        if done(endpoint) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: {endpoint:?}");
}

fn payloads(root: &Path) -> usize {
    let folders = fs::read_dir(root.join("taker")).unwrap().map(|folder| folder.unwrap().path());
    folders.map(|folder| fs::read_dir(folder).unwrap().count()).sum()
}

/// One cell: the operation fails so many times, from the start or from the second flush on. Whether
/// it was tried at all.
async fn cell(op: Op, errno: i32, times: usize, from_start: bool) -> bool {
    let what = format!("{op:?} fails {times} times with {errno}, from the start: {from_start}");
    let root = tempfile::tempdir().unwrap();
    let fault = Arc::<Mutex<Fault>>::default();
    let fail = || *fault.lock().unwrap() = Fault { failing: Some((op, errno)), times, hits: 0 };
    if from_start {
        fail();
    }
    let (delivery, sink, endpoint) = start(root.path(), &fault);
    delivery.offer(batch(1), Receipt::default());
    if !from_start {
        until(&endpoint, &what, |e| e.delivered.get() == 1).await;
        fail();
    }
    // Two flushes while it fails.
    for points in [2, 4] {
        let receipt = Receipt::default();
        let pending = Arc::downgrade(&receipt);
        delivery.offer(batch(points), receipt);
        // It is on disk, or delivered from memory.
        until(&endpoint, &what, |e| pending.strong_count() == 0 && balance(e)).await;
    }
    let hits = {
        let mut fault = fault.lock().unwrap();
        fault.failing = None;
        fault.hits
    };
    // And one after that.
    delivery.offer(batch(8), Receipt::default());
    let all = |e: &Endpoint| e.delivered.get() == 1 + 2 + 4 + 8;
    until(&endpoint, &what, all).await;
    let rests = |e: &Endpoint| {
        e.held.load(Relaxed) == 0 && e.spooled.payloads.load(Relaxed) == 0 && balance(e)
    };
    until(&endpoint, &what, rests).await;
    assert!(!endpoint.spool_failing.load(Relaxed), "{what}");
    assert_eq!(endpoint.spool_errors.get() > 0, hits > 0, "{what}");
    assert_eq!(endpoint.drops().map(|(_, points)| points), [0; 7], "{what}");
    delivery.stop(Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(payloads(root.path()), 0, "{what}: nothing is left");
    let mut taken = sink.0.lock().unwrap().clone();
    taken.sort_unstable();
    assert_eq!(taken, [1, 2, 4, 8], "{what}: each once");
    hits > 0
}

#[tokio::test(start_paused = true)]
async fn every_operation_fails_with_every_error() {
    let errors = [
        ("ENOSPC", libc::ENOSPC),
        ("EIO", libc::EIO),
        ("EROFS", libc::EROFS),
        ("EMFILE", libc::EMFILE),
    ];
    let mut tried = BTreeMap::<String, usize>::new();
    for op in Op::ALL {
        for (_, errno) in errors {
            for (times, from_start) in
                [(1, true), (usize::MAX, true), (1, false), (usize::MAX, false)]
            {
                let hit = cell(op, errno, times, from_start).await;
                *tried.entry(format!("{op:?}")).or_default() += usize::from(hit);
            }
        }
    }
    println!("cells in which the operation failed: {tried:?}");
    assert_eq!(tried.len(), Op::ALL.len());
    assert!(tried.values().all(|cells| *cells >= errors.len()), "{tried:?}");
}

/// A small filesystem of its own.
struct Disk {
    kind: &'static str,
    place: tempfile::TempDir,
    _image: tempfile::TempDir,
}

impl Disk {
    fn new() -> Result<Self, String> {
        let (place, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = image.path().join("disk");
        fs::write(&file, vec![0; 4 << 20]).unwrap();
        let (file, to) = (file.display(), place.path().display());
        let ext4 = format!("mkfs.ext4 -q -b 1024 {file} && mount -o loop {file} {to}");
        let tmpfs = format!("mount -t tmpfs -o size=1m tmpfs {to}");
        let mut reasons = String::new();
        for (kind, command) in [("ext4", ext4), ("tmpfs", tmpfs)] {
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            if output.status.success() {
                return Ok(Self { kind, place, _image: image });
            }
            reasons += &String::from_utf8_lossy(&output.stderr);
        }
        Err(reasons.replace('\n', " "))
    }

    fn filler(&self) -> PathBuf {
        self.place.path().join("filler")
    }

    /// Leaves room for about so many bytes.
    fn fill(&self, left: u64) {
        use io::Write;
        let mut filler = fs::File::create(self.filler()).unwrap();
        while filler.write_all(&[1; 1024]).is_ok() {}
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.saturating_sub(left)).unwrap();
        filler.sync_all().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.place.path()).status();
    }
}

#[test]
fn a_disk_that_fills_up() {
    let disk = match Disk::new() {
        Ok(disk) => disk,
        Err(reason) => return println!("SKIP a_disk_that_fills_up: {reason}"),
    };
    let intake = Intake::start();
    let (up, taken) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Request>>>::default());
    let (is_up, takes) = (Arc::clone(&up), Arc::clone(&taken));
    intake.respond_with(move |request| {
        if is_up.load(Relaxed) {
            takes.lock().unwrap().push(request.clone());
            return Response::status(202);
        }
        let headers = vec![("retry-after", "1".to_owned())];
        Response { headers, ..Response::status(503) }
    });
    let tallyd = Launch::new()
        .env("DD_API_KEY", KEY)
        .env("DD_DD_URL", &intake.url)
        .set("sinks.datadog.validate_key", "false")
        .set("sinks.spool.path", disk.place.path().join("spool").to_str().unwrap())
        .set("sinks.spool.max_disk_ratio", "1")
        .listen(&[UDP])
        .start();
    let own = |tallyd: &Tallyd, name: &str| figure(tallyd, "datadog", name);
    let fails = |tallyd: &Tallyd| own(tallyd, "spool_failing") == 1.0;
    let mut count = 0;
    // Sends the next gauge and waits until so many are on disk, or it fails.
    let mut send = |spooled: f64, or_fails: bool| {
        tallyd.send([format!("g{count}:{count}|g").as_str()]);
        count += 1;
        tallyd.wait_until(&format!("{spooled} are spooled"), |tallyd| {
            let failing = fails(tallyd);
            own(tallyd, "offered_points_total") == f64::from(count)
                && (own(tallyd, "spooled_points") == spooled && !failing || or_fails && failing)
        });
        assert_conserved(&tallyd, "datadog");
        count
    };
    send(1.0, false);
    disk.fill(3 * 1024);
    let mut spooled = 1.0;
    while !fails(&tallyd) {
        assert!(spooled < 30.0, "it never fails");
        spooled = f64::from(send(spooled + 1.0, true));
    }
    // Those that failed are in memory.
    spooled = own(&tallyd, "spooled_points");
    send(spooled, true);
    tallyd.wait_until("two are held", |tallyd| own(tallyd, "held_points") == 2.0);
    assert_eq!(own(&tallyd, "spooled_points"), spooled);
    assert!(tallyd.stderr().contains("No space left on device"), "{}", tallyd.stderr());

    fs::remove_file(disk.filler()).unwrap();
    let count = send(spooled + 1.0, false);
    up.store(true, Relaxed);
    tallyd.wait_until("everything is delivered", |tallyd| {
        own(tallyd, "delivered_points_total") == f64::from(count)
    });
    let mut wanted: Vec<_> = (0..count).map(|n| format!("g{n}")).collect();
    wanted.sort();
    let points = Received::of(&taken.lock().unwrap()).points.into_iter();
    let mut names: Vec<_> = points.map(|point| point.name).collect();
    names.sort();
    assert_eq!(names, wanted, "each once");
    assert_conserved(&tallyd, "datadog");
    let finished = tallyd.stop();
    assert_eq!(finished.stderr.matches("payloads wait in memory").count(), 1);
    println!("a full {} held {spooled} of {count} payloads, memory the others", disk.kind);
}
