//! The subcommands that look at a running process, and those that work on captured traffic.

use std::process::{Command, Output, Stdio};

use serde_json::Value as Json;

use super::process::{Launch, Tallyd, UDP};
use super::received::Received;
use super::test_intake::Intake;

const LINES: [&str; 3] = [
    "shop.requests:1|c|#code:200,user:1\nshop.requests:1|c|#code:500,user:2",
    "shop.load:0.5|g",
    "bad line",
];

fn command(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallyd"));
    command.args(arguments).env_clear().stdin(Stdio::null()).output().unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = command(arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A server that has flushed the lines once.
fn server() -> Tallyd {
    let tallyd = Launch::new().listen(&[UDP]).start();
    tallyd.send(LINES);
    let flushed = |t: &Tallyd| t.page("/api/series").contains("shop.load");
    tallyd.wait_until("a flush", flushed);
    tallyd
}

#[test]
fn a_running_server_tells_its_names_their_series_and_what_they_cost() {
    let tallyd = server();
    let address = tallyd.server(0).to_string();
    let stats = succeed(&["stats", "--address", &address, "--sort", "series"]);
    assert!(stats.contains("  shop.requests (via udp://"), "{stats}");
    assert!(stats.contains("lost: 1 lines refused at udp://"), "{stats}");
    let json: Json =
        serde_json::from_str(&succeed(&["stats", "shop.req", "--address", &address, "--json"]))
            .unwrap();
    assert_eq!(json["names"][0]["series"], 2, "{json:#}");
    let cost = succeed(&["cost", "--address", &address, "--name", "shop.requests"]);
    let user = cost.lines().find(|line| line.ends_with("  user")).unwrap();
    assert_eq!(user.split_whitespace().collect::<Vec<_>>(), ["2", "2", "0", "user"], "{cost}");
    let refused = command(&["stats", "--address", "127.0.0.1:9"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.starts_with("error: no answer from http://127.0.0.1:9/api/overview"), "{said}");
}

#[test]
fn a_tap_shows_lines_that_match() {
    let tallyd = server();
    let address = tallyd.server(0).to_string();
    let tap = Command::new(env!("CARGO_BIN_EXE_tallyd"))
        .args(["tap", "user:7", "--duration", "2", "--address", &address])
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It looks from when its request has come: until then nobody knows.
    let sender = std::thread::spawn({
        let udp = tallyd.listener("udp");
        move || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..300 {
                let _ = socket.send_to(b"seen:1|c|#user:7\nunseen:1|c|#user:8", &udp);
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
        }
    });
    let output = tap.wait_with_output().unwrap();
    sender.join().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.lines().count() > 3, "{text}");
    assert!(text.lines().all(|line| line.starts_with("seen:1|c|#user:7")), "{text}");
}

#[test]
fn what_is_captured_can_be_replayed_costed_and_compared() {
    let tallyd = server();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let file = path("traffic.zst");
    let capture = Command::new(env!("CARGO_BIN_EXE_tallyd"))
        .args(["capture", &file, "-z", "--duration", "2"])
        .args(["--address", &tallyd.server(0).to_string()])
        .env_clear()
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sent = std::thread::spawn({
        let udp = tallyd.listener("udp");
        move || {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            for _ in 0..200 {
                let _ = socket.send_to(b"shop.requests:1|c|#code:200,user:1", &udp);
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
        }
    });
    let output = capture.wait_with_output().unwrap();
    sent.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let captured: u64 = said.split(' ').next().unwrap().parse().unwrap();
    assert!(captured > 3, "{said}");

    // Replayed twice into another process: each line counts again.
    let intake = Intake::start();
    let other = Launch::new().to(&intake).calm().listen(&[UDP]).start();
    let to = format!("udp://{}", other.listener("udp"));
    let said = succeed(&["replay", &file, "--to", &to, "--speed", "0", "--loops", "2"]);
    assert_eq!(said, format!("{} datagrams sent\n", 2 * captured));
    let all = |t: &Tallyd| t.figure("tallyd_listener_samples_total", "udp") as u64 == 2 * captured;
    other.wait_until("all of it", all);
    assert_eq!(other.stop().code(), 0);
    let received = Received::of(&intake.requests());
    assert_eq!(received.sum("shop.requests"), 2.0 * captured as f64);

    let empty = path("empty.yaml");
    std::fs::write(&empty, "").unwrap();
    let cost = succeed(&["cost", "--capture", &file, "--config", &empty]);
    assert!(cost.starts_with("1 series\n"), "{cost}");
    std::fs::write(folder.path().join("new.yaml"), "rules: {namespace: web}\n").unwrap();
    assert_eq!(
        succeed(&["diff", &empty, &path("new.yaml"), &file]),
        "~ count shop.requests [code:200, user:1]  ->  count web.shop.requests [code:200, user:1]\n\
         0 dropped, 0 added, 1 renamed, 0 unchanged\n"
    );
}
