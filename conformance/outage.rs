//! Outages of the intake, the process and the disk: what was flushed arrives, once.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::books;
use super::datadog_payload::Body;
use super::process::{DEADLINE, KEY, Launch, Tallyd, UDP};
use super::received::Received;
use super::test_intake::{Intake, Request, Response};

/// An intake that is down, and a folder that outlives processes.
struct World {
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { address: free.local_addr().unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    fn launch(&self) -> Launch {
        Launch::new()
            .env("DD_API_KEY", KEY)
            .env("DD_DD_URL", &format!("http://{}", self.address))
            .env("DD_HOSTNAME", "own")
            .env("DD_RUN_PATH", self.folder.path().to_str().unwrap())
            .set("sinks.spool.max_disk_ratio", "1")
            .listen(&[UDP])
    }

    /// The intake is up from now on.
    fn up(&self) -> Intake {
        // Meanwhile the port may have become that of some connection.
        let begun = Instant::now();
        loop {
            match TcpListener::bind(self.address) {
                Ok(listener) => return Intake::on(listener),
                Err(error) => assert!(begun.elapsed() < DEADLINE, "{}: {error}", self.address),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The folder of the only endpoint.
    fn spool(&self) -> PathBuf {
        let below = fs::read_dir(self.folder.path().join("spool/datadog")).unwrap();
        let mut folders: Vec<_> = below.map(|folder| folder.unwrap().path()).collect();
        assert_eq!(folders.len(), 1);
        folders.remove(0)
    }
}

fn figure(tallyd: &Tallyd, name: &str) -> f64 {
    books::figure(tallyd, "datadog", name)
}

/// Sends gauges `g0`, `g1` and so on, each in a flush of its own, and waits until they are spooled.
fn spool_gauges(tallyd: &Tallyd, count: u32) {
    for n in 0..count {
        tallyd.send([format!("g{n}:{n}|g").as_str()]);
        tallyd.wait_until("it is spooled", |tallyd| {
            figure(tallyd, "spooled_points") + figure(tallyd, "dropped_points_total")
                >= f64::from(n + 1)
        });
    }
}

/// Waits until such gauges have arrived, and that each came once.
fn assert_gauges(intake: &Intake, wanted: &[u32]) {
    let gauges = |requests: &[Request]| {
        let mut names: Vec<_> =
            Received::of(requests).points.into_iter().map(|point| point.name).collect();
        names.sort();
        names
    };
    let requests = intake.wait_for(DEADLINE, |requests| gauges(requests).len() >= wanted.len());
    let wanted: Vec<_> = wanted.iter().map(|n| format!("g{n}")).collect();
    assert_eq!(gauges(&requests), wanted);
}

fn assert_conserved(tallyd: &Tallyd) {
    books::assert_conserved(tallyd, "datadog");
}

fn kill(tallyd: Tallyd) {
    tallyd.signal("KILL");
    tallyd.wait();
}

#[test]
fn what_was_flushed_outlives_the_process() {
    let world = World::new();
    let tallyd = world.launch().start();
    spool_gauges(&tallyd, 3);
    assert_conserved(&tallyd);
    kill(tallyd);
    for file in fs::read_dir(world.spool()).unwrap() {
        let path = file.unwrap().path();
        assert!(!path.to_str().unwrap().contains(KEY));
        let content = fs::read(path).unwrap();
        assert!(!content.windows(KEY.len()).any(|part| part == KEY.as_bytes()));
    }

    let intake = world.up();
    // With other settings: what is on disk is sent as it is.
    let tallyd = world.launch().set("sinks.datadog.compressor_kind", "gzip").start();
    tallyd.wait_for_stderr("ready");
    assert_eq!(figure(&tallyd, "spool_found_points_total"), 3.0);
    tallyd.send(["g3:3|g"]);
    assert_gauges(&intake, &[0, 1, 2, 3]);
    tallyd.wait_until("nothing is left", |tallyd| figure(tallyd, "spooled_payloads") == 0.0);
    assert_conserved(&tallyd);
    tallyd.stop();
    assert_eq!(fs::read_dir(world.spool()).unwrap().count(), 0);
    assert_gauges(&intake, &[0, 1, 2, 3]);
}

/// Keys of one address that change their places.
#[test]
fn no_payload_is_sent_with_the_key_of_another() {
    let world = World::new();
    let [one, two] = ["1".repeat(32), "2".repeat(32)];
    let launch = |main: &str, further: &str| {
        let endpoints = serde_json::json!({format!("http://{}", world.address): [further]});
        world
            .launch()
            .env("DD_API_KEY", main)
            .env("DD_ADDITIONAL_ENDPOINTS", &endpoints.to_string())
            .set("sinks.datadog.validate_key", "false")
    };
    let tallyd = launch(&one, &two).start();
    tallyd.send(["g0:0|g"]);
    tallyd.wait_until("it is spooled", |tallyd| figure(tallyd, "spooled_points") == 2.0);
    assert_conserved(&tallyd);
    kill(tallyd);
    // What waits for the second key is made known.
    let folders = fs::read_dir(world.folder.path().join("spool/datadog")).unwrap();
    let folders: Vec<_> = folders.map(|folder| folder.unwrap().path()).collect();
    assert_eq!(folders.len(), 2);
    assert!(folders.iter().all(|path| !path.to_str().unwrap().contains(&one)));
    let tallyd = launch(&two, "3").start();
    tallyd.wait_for_stderr("belongs to no endpoint that is set now");
    kill(tallyd);

    let intake = world.up();
    let tallyd = launch(&two, &one).start();
    let requests = intake.wait_for(DEADLINE, |requests| requests.len() >= 2);
    let mut keys: Vec<_> = requests.iter().map(|r| r.header("dd-api-key").to_owned()).collect();
    keys.sort();
    assert_eq!(keys, [one, two]);
    tallyd.wait_until("all is sent", |tallyd| figure(tallyd, "spooled_points") == 0.0);
    assert_conserved(&tallyd);
    tallyd.stop();
}

#[test]
fn what_is_undelivered_at_the_stop_is_sent_by_the_next_process() {
    let world = World::new();
    let tallyd = world.launch().calm().start();
    tallyd.send(["g0:0|g\ng1:1|g"]);
    let finished = tallyd.stop();
    assert!(finished.stderr.contains("2 points for http://"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("undelivered"), "{}", finished.stderr);
    let intake = world.up();
    let tallyd = world.launch().calm().start();
    assert_gauges(&intake, &[0, 1]);
    tallyd.stop();
    assert_gauges(&intake, &[0, 1]);
}

#[test]
fn an_intake_that_fails_for_a_while_gets_everything_once() {
    let world = World::new();
    let intake = world.up();
    let mut failures = 3;
    intake.respond_with(move |request| {
        if request.method == "GET" || failures == 0 {
            return Response::status(202);
        }
        failures -= 1;
        let headers = vec![("retry-after", "1".to_owned())];
        Response { headers, ..Response::status([500, 503, 429][failures]) }
    });
    let tallyd = world.launch().start();
    tallyd.send(["g0:0|g"]);
    tallyd.wait_until("it is delivered", |tallyd| figure(tallyd, "delivered_points_total") == 1.0);
    assert_eq!(figure(&tallyd, "retries_total"), 3.0);
    assert_conserved(&tallyd);
    tallyd.stop();
    assert_gauges(&intake, &[0, 0, 0, 0]);
}

#[test]
fn a_payload_that_is_too_large_is_split() {
    let world = World::new();
    let intake = world.up();
    let series = |request: &Request| match &request.body {
        Ok(Body::Series(payload)) => payload.series.len(),
        other => panic!("{other:?}"),
    };
    intake.respond_with(move |request| {
        let fits = request.method == "GET" || series(request) <= 2;
        Response::status(if fits { 202 } else { 413 })
    });
    let tallyd = world.launch().calm().set("sinks.datadog.validate_key", "false").start();
    let lines: Vec<_> = (0..7).map(|n| format!("g{n}:{n}|g")).collect();
    tallyd.send([lines.join("\n").as_str()]);
    let finished = tallyd.stop();
    assert!(!finished.stderr.contains("WARN"), "{}", finished.stderr);
    let fitting: Vec<_> = intake.requests().into_iter().filter(|r| series(r) <= 2).collect();
    let mut names: Vec<_> =
        Received::of(&fitting).points.into_iter().map(|point| point.name).collect();
    names.sort();
    assert_eq!(names, ["g0", "g1", "g2", "g3", "g4", "g5", "g6"]);
}

#[test]
fn a_corrupt_file_is_set_aside() {
    let world = World::new();
    let tallyd = world.launch().start();
    spool_gauges(&tallyd, 2);
    kill(tallyd);
    let first = |folder: &Path| {
        let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
        files.min().unwrap()
    };
    let corrupt = first(&world.spool());
    let mut content = fs::read(&corrupt).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&corrupt, content).unwrap();

    let intake = world.up();
    let tallyd = world.launch().start();
    tallyd.wait_for_stderr("its checksum is wrong; it is set aside");
    assert_gauges(&intake, &[1]);
    tallyd.wait_until("nothing is left", |tallyd| figure(tallyd, "spooled_points") == 0.0);
    assert_eq!(tallyd.figure("tallyd_sink_dropped_points_total", "cause=\"unreadable\""), 1.0);
    assert_conserved(&tallyd);
    tallyd.stop();
    let aside = first(&world.spool().join("bad"));
    let name = corrupt.file_name().unwrap().to_str().unwrap();
    assert_eq!(aside.file_name().unwrap().to_str().unwrap(), format!("{name}.bad"));
}

#[test]
fn a_full_spool_drops_the_oldest_and_counts() {
    let world = World::new();
    let tallyd = world.launch().set("sinks.spool.max_bytes", "400").start();
    spool_gauges(&tallyd, 5);
    assert!(figure(&tallyd, "spooled_bytes") <= 400.0);
    let dropped = tallyd.figure("tallyd_sink_dropped_points_total", "cause=\"spool_full\"");
    assert!((1.0..5.0).contains(&dropped), "{dropped}");
    assert_eq!(figure(&tallyd, "spool_dropped_payloads_total"), dropped);
    assert_conserved(&tallyd);
    kill(tallyd);
    let intake = world.up();
    let tallyd = world.launch().start();
    assert_gauges(&intake, &(dropped as u32..5).collect::<Vec<_>>());
    tallyd.stop();
}

#[test]
fn a_spool_that_cannot_be_is_done_without_until_it_can() {
    let world = World::new();
    let intake = world.up();
    // Where not even root can write.
    let obstacle = world.folder.path().join("spool");
    fs::write(&obstacle, "").unwrap();
    let tallyd = world.launch().start();
    tallyd.wait_for_stderr("payloads wait in memory until it works again");
    tallyd.send(["g0:0|g"]);
    assert_gauges(&intake, &[0]);
    assert!(figure(&tallyd, "spool_errors_total") >= 1.0);
    assert_eq!(figure(&tallyd, "spool_failing"), 1.0);
    fs::remove_file(&obstacle).unwrap();
    tallyd.send(["g1:0|g"]);
    tallyd.wait_for_stderr("works again");
    assert_gauges(&intake, &[0, 1]);
    assert_eq!(figure(&tallyd, "spool_failing"), 0.0);
    tallyd.wait_until("it is counted", |tallyd| {
        figure(tallyd, "delivered_points_total") == 2.0 && figure(tallyd, "spooled_points") == 0.0
    });
    assert_conserved(&tallyd);
    let finished = tallyd.stop();
    assert_eq!(finished.stderr.matches("payloads wait in memory").count(), 1);
}

#[test]
fn an_intake_that_says_nothing_is_tried_again() {
    let world = World::new();
    let intake = world.up();
    let mut silent = true;
    intake.respond_with(move |request| {
        let silent = request.method != "GET" && std::mem::take(&mut silent);
        let delay = if silent { DEADLINE } else { Duration::ZERO };
        Response { delay, ..Response::status(202) }
    });
    let tallyd = world.launch().set("sinks.datadog.http.silence_timeout", "1").start();
    tallyd.send(["g0:0|g"]);
    tallyd.wait_for_stderr("fails: no answer within 1 s; points wait on disk");
    tallyd.wait_until("it is delivered", |tallyd| figure(tallyd, "delivered_points_total") == 1.0);
    assert_conserved(&tallyd);
    tallyd.stop();
}

/// Reads one request, and gives back the bytes of its body; none if the client gave up.
fn read_request(stream: &mut impl BufRead) -> Option<usize> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.is_empty() {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).ok()?;
            return Some(length);
        }
    }
}

#[test]
fn connections_that_break_cost_nothing() {
    let world = World::new();
    let listener = TcpListener::bind(world.address).unwrap();
    let answered = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answered);
    // The first connection is reset in the middle of a request, the others are closed after one
    // answer that promised to keep them.
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            if number == 0 {
                stream.read_exact(&mut [0; 40]).unwrap();
                continue;
            }
            if read_request(&mut BufReader::new(&stream)).is_some() {
                counter.fetch_add(1, Relaxed);
                stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
        }
    });
    let tallyd = world.launch().set("sinks.datadog.validate_key", "false").start();
    for n in 1..=3 {
        tallyd.send([format!("g{n}:{n}|g").as_str()]);
        tallyd.wait_until("it is delivered", |tallyd| {
            figure(tallyd, "delivered_points_total") == f64::from(n)
        });
    }
    assert_eq!((answered.load(Relaxed), figure(&tallyd, "retries_total")), (3, 1.0));
    assert_conserved(&tallyd);
    tallyd.stop();
}

/// Bytes of each payload of a large spool.
const LARGE: u64 = 20_000;

/// What a start takes with such a backlog: until it is ready, and in memory at its peak.
fn start_with(bytes: u64) -> (Duration, u64) {
    let world = World::new();
    let launch = || world.launch().set("sinks.spool.max_bytes", "1000000000000");
    let ready = || {
        let tallyd = launch().start();
        tallyd.wait_for_stderr(" ready");
        tallyd
    };
    kill(ready());
    let folder = world.spool();
    for sequence in 1..=bytes / LARGE {
        let name = format!("{sequence:016x}-1700000000-350-{LARGE}-series.payload");
        fs::File::create(folder.join(name)).unwrap().set_len(LARGE).unwrap();
    }
    let begun = Instant::now();
    let tallyd = ready();
    let took = begun.elapsed();
    assert_eq!(figure(&tallyd, "spool_found_points_total"), (bytes / LARGE * 350) as f64);
    assert_conserved(&tallyd);
    let memory = tallyd.peak_memory();
    kill(tallyd);
    (took, memory)
}

/// In a small size; `TALLYD_SPOOL_BYTES=5000000000` makes it a large one.
#[test]
fn a_large_backlog_costs_neither_time_nor_memory_at_the_start() {
    let bytes = std::env::var("TALLYD_SPOOL_BYTES").map_or(40_000_000, |n| n.parse().unwrap());
    let (_, without) = start_with(0);
    let (took, with) = start_with(bytes);
    println!(
        "a spool of {bytes} bytes in {} payloads: ready in {:.2} s, {} KiB more memory",
        bytes / LARGE,
        took.as_secs_f64(),
        with.saturating_sub(without) / 1024
    );
    assert!(took < Duration::from_secs(2), "{took:?}");
    // The index holds 50,000 payloads, however many there are.
    assert!(with < without + (16 << 20), "{without} and {with} bytes");
}
