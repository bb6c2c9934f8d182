//! Full load and a storm of signals, and then the books: every datagram, line and point has an
//! outcome and a sender. It takes `SOAK` seconds, by default four; `SOAK_PROGRAM` is a binary to use
//! instead, such as a released one:
//!
//! ```sh
//! SOAK=3600 SOAK_PROGRAM=$PWD/target/release/tallyd cargo test --test conformance soak -- --nocapture
//! ```

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::process::{Launch, Tallyd, UDP};
use super::received::Received;
use super::test_intake::Intake;

/// Lines of a datagram: 18 counts of one, a gauge, and one that is refused.
const COUNTS: u64 = 18;

fn datagrams(prefix: &str) -> Vec<Vec<u8>> {
    let datagram = |i: usize| {
        let line = |j: u64| format!("{prefix}.{j}:1|c|#env:prod,part:p{}\n", i % 7);
        let mut text: String = (0..COUNTS).map(line).collect();
        text += &format!("{prefix}.gauge:{i}|g\nbad line");
        text.into_bytes()
    };
    (0..50).map(datagram).collect()
}

/// Sends in turn until told to stop. Returns how many were sent.
fn send(datagrams: &[Vec<u8>], stop: &AtomicBool, one: impl Fn(&[u8]) -> bool) -> u64 {
    let running = |_: &&Vec<u8>| !stop.load(Ordering::Acquire);
    let sent = datagrams.iter().cycle().take_while(running).filter(|datagram| one(datagram));
    sent.count() as u64
}

/// Signals that a process has to bear, until this is dropped.
struct Storm(Child);

impl Storm {
    fn on(tallyd: &Tallyd) -> Self {
        let script =
            "while kill -PROF $0 && kill -WINCH $0 && kill -CONT $0 && kill -URG $0; do :; done";
        let mut command = Command::new("sh");
        Self(command.args(["-c", script, &tallyd.id().to_string()]).spawn().unwrap())
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ledger(tallyd: &Tallyd) -> Json {
    serde_json::from_str(&tallyd.page("/api/ledger")).unwrap()
}

/// The sum of a figure over a list.
fn sum(list: &Json, figure: impl Fn(&Json) -> u64) -> u64 {
    list.as_array().unwrap().iter().map(figure).sum()
}

fn number(of: &'static str) -> impl Fn(&Json) -> u64 {
    move |one| one[of].as_u64().unwrap()
}

#[test]
fn the_books_balance_after_a_soak() {
    let seconds = std::env::var("SOAK").map_or(4, |seconds| seconds.parse().unwrap());
    let intake = Intake::start();
    let mut launch = Launch::new().to(&intake).listen(&[UDP, "unixgram://{folder}/s"]);
    if let Ok(program) = std::env::var("SOAK_PROGRAM") {
        launch = launch.within("sh", &["-c", "shift; exec \"$0\" \"$@\"", &program]);
    }
    let tallyd = launch.start();
    let stop = AtomicBool::new(false);
    let (udp, path) = (tallyd.listener("udp"), tallyd.listener("unixgram"));
    let begun = Instant::now();
    let (by_udp, by_unix) = std::thread::scope(|scope| {
        let by_udp = scope.spawn(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(udp).unwrap();
            send(&datagrams("udp"), &stop, |datagram| socket.send(datagram).is_ok())
        });
        let by_unix = scope.spawn(|| {
            let socket = UnixDatagram::unbound().unwrap();
            socket.connect(path).unwrap();
            send(&datagrams("unix"), &stop, |datagram| socket.send(datagram).is_ok())
        });
        let storm = Storm::on(&tallyd);
        while begun.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(Duration::from_millis(500));
            // Those who look must not disturb it.
            tallyd.page("/api/overview");
        }
        stop.store(true, Ordering::Release);
        let sent = (by_udp.join().unwrap(), by_unix.join().unwrap());
        drop(storm);
        sent
    });
    let read_or_dropped =
        |one: &Json| one["datagrams"].as_u64().unwrap() + one["kernel_drops"].as_u64().unwrap();
    tallyd.wait_until("all is read or dropped", |tallyd| {
        sum(&ledger(tallyd)["listeners"], read_or_dropped) == by_udp + by_unix
    });
    let now = ledger(&tallyd);
    let unix = &now["listeners"][1];
    assert_eq!((&unix["datagrams"], &unix["kernel_drops"]), (&by_unix.into(), &0.into()));
    for listener in now["listeners"].as_array().unwrap() {
        assert_eq!(listener["difference"], 0, "{listener:#}");
        assert_eq!(listener["read_errors"], 0, "{listener:#}");
    }
    for figure in ["datagrams", "bytes", "lines"] {
        let of = |list| sum(&now[list], number(figure));
        assert_eq!(of("senders"), of("listeners"), "{figure}");
    }
    let read = sum(&now["listeners"], number("datagrams"));
    let refused = |one: &Json| one["rejects"]["no_pipe"].as_u64().unwrap_or_default();
    assert_eq!(sum(&now["senders"], refused), read);
    // Who sent to the Unix socket is this process.
    let me = now["senders"].as_array().unwrap().iter().find(|s| s["kind"] == "process").unwrap();
    assert_eq!((&me["pid"], &me["datagrams"]), (&std::process::id().into(), &by_unix.into()));
    // What a slow intake has left to the spool takes its time.
    let waits = |one: &Json| one["held"].as_u64().unwrap() + one["spooled"].as_u64().unwrap();
    tallyd.wait_until("all is delivered", |tallyd| sum(&ledger(tallyd)["sinks"], waits) == 0);
    for sink in ledger(&tallyd)["sinks"].as_array().unwrap() {
        assert_eq!(sink["dropped"], serde_json::json!({}), "{sink:#}");
        assert_eq!(sink["difference"], 0, "{sink:#}");
    }
    for (metric, place) in [
        ("tallyd_listener_unaccounted_lines", "udp"),
        ("tallyd_listener_unaccounted_lines", "unixgram"),
        ("tallyd_sink_unaccounted_points", "datadog"),
    ] {
        assert_eq!(tallyd.figure(metric, place), 0.0, "{metric} of {place}");
    }
    let line = tallyd.stderr().lines().rfind(|line| line.contains("CPU in ")).map(str::to_owned);
    let finished = tallyd.stop();
    assert_eq!(finished.code(), 0);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);

    let books: Vec<_> =
        finished.stderr.lines().filter_map(|line| line.split_once("ledger: ")).collect();

    let received = Received::of(&intake.requests());
    let counts = received.points.iter().filter(|point| point.kind == "rate");
    let counted: f64 = counts.map(|point| point.value).sum();
    assert_eq!(counted.round() as u64, COUNTS * read, "every count of every datagram is delivered");
    println!(
        "soak: {seconds} s, {read} datagrams, {} lines, {} dropped by the kernel\n{}\n{books:#?}",
        read * (COUNTS + 2),
        by_udp + by_unix - read,
        line.unwrap_or_default()
    );
}
