//! The profile of tallyd's own CPU time, as its judges see it: `go tool pprof`, a JSON parser, and
//! traffic that goes on while signals storm.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use super::process::{DEADLINE, Launch, Tallyd, UDP, http};

/// A process whose periods last a second.
fn launch() -> Launch {
    Launch::new()
        .listen(&[UDP])
        .set("self_profile.period", "1")
        .set("sinks.console.enabled", "off")
        .set("flush.interval", "1")
}

/// Sends lines until this is dropped: enough to keep the server busy, and with pauses, since the
/// thread that names functions has a low priority and gets what the others leave.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Load {
    fn start(tallyd: &Tallyd) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(tallyd.listener("udp")).unwrap();
        let datagrams: Vec<String> = (0..200)
            .map(|i| {
                let line =
                    |j| format!("page.views.{j}:{i}|c|#env:prod,service:shop,part:p{}", i % 7);
                (0..20).map(line).collect::<Vec<_>>().join("\n")
            })
            .collect();
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            for datagram in datagrams.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                sent += u64::from(socket.send(datagram.as_bytes()).is_ok());
                if sent % 10 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            sent
        });
        Self { stop, thread: Some(thread) }
    }

    /// Datagrams sent.
    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The bytes behind a path.
fn bytes(server: SocketAddr, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    assert!(answer.starts_with(b"HTTP/1.0 200 "), "{path}: {}", answer.escape_ascii());
    answer.split_off(head + 4)
}

/// The report of `go tool pprof` on a file or an address, if it is there to ask. It has nothing to
/// complain of: what it says beside its report are the steps that it takes. (Functions may be named
/// after errors.)
fn pprof(what: &str, folder: &Path) -> Option<String> {
    let output = Command::new("go")
        .args(["tool", "pprof", "-top", "-cum", "-nodecount=1000", what])
        .env("PPROF_TMPDIR", folder)
        .env("HOME", folder)
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    for complaint in ["not available", "not found", "failed", "Warning", "error"] {
        assert!(!said.contains(complaint), "{complaint:?} in\n{said}");
    }
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains("Type: cpu"), "{report}");
    assert!(report.contains("Build ID: "), "{report}");
    Some(report)
}

/// Whether a report of `go tool pprof` tells what a loaded process does.
fn knows_the_load(report: &str) -> bool {
    ["tallyd::parse::metric", "tallyd::intake::datagrams::Datagrams::run"]
        .iter()
        .all(|function| report.contains(function))
}

/// The lines about profiles in a log of JSON.
fn profiles(tallyd: &Tallyd) -> Vec<Value> {
    let log = tallyd.stderr();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["event"] == "cpu_profile").collect()
}

/// The sum of the samples in one of a line's lists.
fn sum(line: &Value, list: &str) -> u64 {
    let shares = line[list].as_array().unwrap();
    shares.iter().map(|share| share["samples"].as_u64().unwrap()).sum()
}

fn stage(line: &Value, name: &str) -> u64 {
    let stages = line["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["name"] == name).unwrap()["samples"].as_u64().unwrap()
}

#[test]
fn go_tool_pprof_reads_profiles_of_a_loaded_process() {
    let tallyd = launch().start();
    let load = Load::start(&tallyd);
    tallyd.wait_until("a period under load", |tallyd| {
        tallyd.page("/debug/pprof/").contains("<a href=\"minute/1\">minute/1</a>")
    });
    let server = tallyd.server(0);
    let url = format!("http://{server}/debug/pprof/profile?seconds=2");
    let folder = tempfile::tempdir().unwrap();
    let file = |name, profile: Vec<u8>| {
        assert!(profile.starts_with(&[0x1f, 0x8b]), "{name} is not compressed");
        let path = folder.path().join(name);
        std::fs::write(&path, profile).unwrap();
        pprof(path.to_str().unwrap(), folder.path())
    };
    // Where processors are scarce a profile may be short of samples; a later one is not.
    tallyd.wait_until("two at once, which see the same samples", |_| {
        let first = std::thread::spawn(move || bytes(server, "/debug/pprof/profile?seconds=2"));
        let second = pprof(&url, folder.path());
        let first = file("first", first.join().unwrap());
        if second.is_none() {
            println!("SKIP go tool pprof: not installed");
        }
        first.iter().chain(&second).all(|report| knows_the_load(report))
    });
    tallyd.wait_until("a minute that is kept", |_| {
        file("minute", bytes(server, "/debug/pprof/minute/0"))
            .is_none_or(|report| knows_the_load(&report))
    });
    load.stop();
    tallyd.stop();
}

#[test]
fn the_line_adds_up_while_signals_storm() {
    let tallyd = launch().set("logging.format", "json").start();
    let load = Load::start(&tallyd);
    let storm = "i=0; while [ $i -lt 3000 ]; do kill -PROF $0 || exit 1; i=$((i + 1)); done";
    let storm = Command::new("sh").args(["-c", storm, &tallyd.id().to_string()]).status();
    assert!(storm.unwrap().success(), "it has ended");
    tallyd.wait_until("three periods", |tallyd| profiles(tallyd).len() >= 4);
    let sent = load.stop();
    tallyd.wait_until("all is read or dropped", |tallyd| {
        let read = tallyd.figure("tallyd_listener_datagrams_total", "udp");
        let dropped = tallyd.figure("tallyd_listener_kernel_drops_total", "udp");
        read + dropped == sent as f64
    });
    assert_eq!(tallyd.figure("tallyd_listener_read_errors_total", ""), 0.0);
    assert_eq!(tallyd.figure("tallyd_listener_rejects_total", ""), 0.0);
    let lines = profiles(&tallyd);
    for line in &lines {
        let samples = line["samples"].as_u64().unwrap();
        assert_eq!((sum(line, "stages"), sum(line, "threads")), (samples, samples), "{line}");
        // Each sample stands for 1/99 s of CPU time. One on the way belongs to the next line, and
        // a thread younger than a second may not have been sampled yet.
        let expected = line["cpu_s"].as_f64().unwrap() * 99.0;
        assert!((samples as f64) < expected * 1.3 + 20.0, "{line}");
        let top = line["top"].as_array().unwrap();
        assert!(top.len() <= 15, "{line}");
        for function in top {
            let figure = |key: &str| function[key].as_u64().unwrap();
            assert!(figure("own") <= figure("total") && figure("total") <= samples, "{line}");
        }
    }
    let cpu: f64 = lines.iter().map(|line| line["cpu_s"].as_f64().unwrap()).sum();
    let samples: u64 = lines.iter().map(|line| line["samples"].as_u64().unwrap()).sum();
    assert!(samples as f64 > cpu * 99.0 / 2.0 - 20.0, "{samples} samples in {cpu} s of CPU time");
    assert!(samples >= 20, "{lines:?}");
    for name in ["parse", "aggregate"] {
        assert!(lines.iter().any(|line| stage(line, name) > 0), "no {name} in {lines:?}");
    }
    tallyd.stop();
}

#[test]
fn idle_periods_have_lines_and_pages() {
    let tallyd = launch().start();
    tallyd.wait_for_stderr(" % of a core; ");
    tallyd.wait_until("a period is kept", |tallyd| {
        tallyd.page("/debug/pprof/").contains("<a href=\"minute/0\">minute/0</a>")
    });
    let flame = tallyd.page("/debug/pprof/flame/0");
    assert!(flame.starts_with("<svg ") && !flame.contains("href"), "{flame}");
    // Settings may hold keys.
    let arguments = tallyd.page("/debug/pprof/cmdline");
    let arguments: Vec<_> = arguments.split('\0').collect();
    assert!(arguments[0].ends_with("tallyd"), "{arguments:?}");
    assert!(arguments.contains(&"self_profile.period=***"), "{arguments:?}");
    assert_eq!(tallyd.page("/debug/pprof/symbol"), "num_symbols: 1\n");
    let server = tallyd.server(0);
    let (status, names) = http(server, "POST", "/debug/pprof/symbol", b"0x1+0x2");
    assert_eq!((status, names.as_str()), (200, "num_symbols: 1\n0x1 [unknown]\n0x2 [unknown]\n"));
    for (path, status) in [
        ("/debug/pprof/minute/99", 404),
        ("/debug/pprof/minute/x", 404),
        ("/debug/pprof/flame/-1", 404),
        ("/debug/pprof/heap", 404),
        ("/debug/pprof/profile?seconds=0", 400),
        ("/debug/pprof/profile?seconds=301", 400),
        ("/debug/pprof/profile?debug=1&seconds=x", 400),
    ] {
        assert_eq!(http(server, "GET", path, b"").0, status, "{path}");
    }
    tallyd.stop();
}

#[test]
fn one_switch_turns_it_off() {
    let tallyd = launch().set("self_profile.enabled", "false").start();
    let (status, body) = http(tallyd.server(0), "GET", "/debug/pprof/", b"");
    assert_eq!((status, body.as_str()), (404, "self_profile.enabled is off\n"));
    assert_eq!(http(tallyd.server(0), "GET", "/debug/pprof/minute/0", b"").0, 404);
    // Nothing handles the signal then, so it would end the process; and no thread waits.
    let threads = std::fs::read_dir(format!("/proc/{}/task", tallyd.id())).unwrap();
    let names = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")));
    assert!(names.map(Result::unwrap).all(|name| name != "profile\n"));
    std::thread::sleep(Duration::from_millis(1100));
    assert!(!tallyd.stop().stderr.contains(" % of a core; "));
}
