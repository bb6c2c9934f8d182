//! The ledger of a running process: every line and every point has an outcome.

use serde_json::Value as Json;

use super::process::{Launch, UDP};
use super::received::Received;
use super::test_intake::{Intake, Response};

const LINES: [&str; 7] = [
    "a:1|c\nb:2|g\nbad\n_e{1,1}:t|x\n_sc|up|0",
    "c:1:2:3|h|#x:y",
    "d:1|q\nd:2|q\nd:x|c",
    "datadog.dogstatsd.client.packets_dropped:4|c|#client:go",
    "datadog.dogstatsd.client.packets_dropped:3|c|#client:py",
    "e:nan|g",
    "_e{9,9}:t|x",
];

fn ledger(text: &str) -> Json {
    serde_json::from_str(text).expect("the ledger is JSON")
}

#[test]
fn every_line_and_point_has_an_outcome() {
    let intake = Intake::start();
    // What the intake refuses is dropped with its cause.
    intake.respond_with(|request| {
        Response::status(if request.path.contains("check_run") { 400 } else { 202 })
    });
    let tallyd = Launch::new()
        .to(&intake)
        .env("TALLYD_TELEMETRY__SERIES", "true")
        .set("telemetry.agent_series", "true")
        .set("telemetry.log_period", "1")
        .listen(&[UDP])
        .start();
    for datagram in LINES {
        tallyd.send([datagram]);
    }
    let refused = |t: &super::process::Tallyd| {
        let ledger = ledger(&t.page("/api/ledger"));
        ledger["sinks"][0]["dropped"]["refused"] == 1 && ledger["clients"] != serde_json::json!({})
    };
    tallyd.wait_until("the check to be refused", refused);
    let page = ledger(&tallyd.page("/api/ledger"));
    let listener = &page["listeners"][0];
    for (figure, expected) in [
        ("datagrams", 7),
        ("lines", 13),
        ("samples", 6),
        ("events", 1),
        ("checks", 1),
        ("kernel_drops", 0),
        ("difference", 0),
    ] {
        assert_eq!(listener[figure], expected, "{figure} of {listener:#}");
    }
    let rejects = listener["rejects"].as_object().unwrap();
    let lines: u64 = rejects.values().map(|reject| reject["lines"].as_u64().unwrap()).sum();
    assert_eq!(lines, 5, "{rejects:#?}");
    assert_eq!(rejects["type"]["excerpt"], "d:1|q");
    assert_eq!(page["aggregate"]["non_finite"], 1);
    assert_eq!(page["clients"]["datadog.dogstatsd.client.packets_dropped"], 7.0);
    let sink = &page["sinks"][0];
    assert_eq!(sink["difference"], 0, "{sink:#}");

    let finished = tallyd.stop();
    assert_eq!(finished.code(), 0, "{finished:#?}");
    // The log has told all of it, each line once, and no zeros.
    let told: Vec<_> =
        finished.stderr.lines().filter_map(|line| line.split_once("ledger: ")).collect();
    let figures = |word: &str| -> u64 {
        let parts = told.iter().flat_map(|(_, line)| line.split([',', ';', ':']));
        let figures = parts.filter_map(|part| part.trim().strip_suffix(word)?.parse::<u64>().ok());
        figures.sum()
    };
    for (word, expected) in [
        (" datagrams", 7),
        (" lines", 13),
        (" samples", 6),
        (" points dropped by datadog (refused)", 1),
        (" values not finite", 1),
    ] {
        assert_eq!(figures(word), expected, "{word} of {told:#?}");
    }
    assert!(told.iter().all(|(_, line)| !line.contains(" 0 ")), "{told:#?}");
    let received = Received::of(&intake.requests());
    assert_eq!(received.sum("tallyd.listener_lines"), 13.0);
    assert_eq!(received.sum("tallyd.listener_rejects"), 5.0);
    assert_eq!(received.sum("datadog.agent.dogstatsd.processed"), 6.0 + 1.0 + 1.0 + 5.0);
    assert_eq!(received.sum("datadog.agent.dogstatsd.udp_packets"), 7.0);
}
