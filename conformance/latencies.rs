//! How long things take, on the page of own metrics, whose judge is promtool.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::process::{Launch, UDP};
use super::test_intake::{Intake, Response};

#[test]
fn every_step_of_a_delivery_is_timed() {
    let intake = Intake::start();
    // Well above what anything else takes, but for a machine that is very busy.
    let slow = Duration::from_millis(150);
    intake.respond_with(move |_| {
        std::thread::sleep(slow);
        Response::status(202)
    });
    let tallyd = Launch::new().to(&intake).listen(&[UDP]).set("flush.interval", "1").start();
    tallyd.send(["a:1|c", "b:2|g"]);
    tallyd.wait_until("a payload is delivered and its page is whole", |tallyd| {
        tallyd.figure("tallyd_sink_delivered_seconds_count", "sink=\"datadog\"") >= 1.0
    });
    let name = format!("listener=\"udp://{}\"", tallyd.listener("udp"));
    let batches = tallyd.figure("tallyd_listener_batch_seconds_count", &name);
    assert!((1.0..=2.0).contains(&batches), "{batches} batches of two datagrams");
    assert!(tallyd.figure("tallyd_flush_duration_seconds_count", "") >= 1.0);
    let shards = tallyd.figure("tallyd_flush_shard_seconds_count", "");
    assert!(shards >= tallyd.figure("tallyd_flush_duration_seconds_count", "") - 1.0, "{shards}");
    // From the arrival: what was sent waited for its bucket's end, and for the slow answer.
    let delivered =
        tallyd.figure("tallyd_sink_ingest_to_delivered_seconds_count", "sink=\"datadog\"");
    let whole = tallyd.figure("tallyd_sink_ingest_to_delivered_seconds_sum", "sink=\"datadog\"");
    assert!(delivered >= 1.0 && whole >= 0.15 * delivered, "{whole} s for {delivered} payloads");
    assert!(tallyd.figure("tallyd_sink_encode_seconds_count", "sink=\"datadog\"") >= 1.0);
    let sends = tallyd.figure("tallyd_sink_send_seconds_count", "sink=\"datadog\"");
    let sum = tallyd.figure("tallyd_sink_send_seconds_sum", "sink=\"datadog\"");
    assert!(sends >= 1.0 && sum >= 0.15, "{sum} s for {sends} payloads");
    let page = tallyd.page("/metrics");
    let longest = page.lines().find(|line| {
        line.starts_with("tallyd_sink_send_seconds{quantile=\"1\",") && line.contains("datadog")
    });
    let longest = longest.expect("a quantile");
    let longest: f64 = longest.rsplit_once(' ').expect("a value").1.parse().expect("a number");
    assert!((0.15..20.0).contains(&longest), "{longest}");

    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        println!("SKIP promtool: not installed");
        return;
    };
    // Only tallyd's own families: users choose their names themselves.
    let own = page.lines().filter(|line| line.contains("tallyd_"));
    let own: String = own.map(|line| format!("{line}\n")).collect();
    promtool.stdin.take().expect("a pipe").write_all(own.as_bytes()).expect("it reads");
    let output = promtool.wait_with_output().expect("an end");
    let said = String::from_utf8_lossy(&output.stderr);
    // It has opinions on names too: what counts is whether it can read the page.
    assert_ne!(output.status.code(), Some(1), "{said}\n{own}");
    tallyd.stop();
}
