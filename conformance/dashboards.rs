//! The alerts and the dashboard, in a real Prometheus that scrapes a running tallyd.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

use super::process::{Launch, Tallyd, UDP};
use super::prometheus_scrape::{http_get, start_prometheus};
use super::test_intake::{Intake, Response};

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

/// Every query of the dashboard, as Grafana would send it.
fn queries() -> Vec<String> {
    let text = std::fs::read_to_string(config("grafana-dashboard.json")).unwrap();
    let board: Json = serde_json::from_str(&text).unwrap();
    let targets = |panel: &Json| panel["targets"].as_array().unwrap().clone();
    let query = |target: Json| {
        let query = target["expr"].as_str().unwrap();
        query.replace("$__rate_interval", "30s").replace("$instance", ".*")
    };
    board["panels"].as_array().unwrap().iter().flat_map(targets).map(query).collect()
}

/// The series that a query gives; none while there are none.
fn found(prometheus: std::net::SocketAddr, query: &str) -> Result<usize, String> {
    let encoded: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
    let body = http_get(prometheus, &format!("/api/v1/query?query={encoded}"));
    let Some(answer) = body.and_then(|body| serde_json::from_str::<Json>(&body).ok()) else {
        return Ok(0);
    };
    match answer["data"]["result"].as_array() {
        Some(result) => Ok(result.len()),
        None => Err(format!("{query}: {answer}")),
    }
}

#[test]
fn prometheus_understands_the_alerts_and_every_panel_has_data() {
    let intake = Intake::start();
    let tallyd = Launch::new().to(&intake).listen(&[UDP]).start();
    let folder = tempfile::tempdir().unwrap();
    let rules = config("alerts.yaml");
    match Command::new("promtool").args(["check", "rules"]).arg(&rules).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        }
        Err(error) => println!("SKIP promtool: {error}"),
    }
    let target = tallyd.server(0);
    let Some((_running, prometheus)) = start_prometheus(target, folder.path(), Some(&rules)) else {
        return println!("SKIP dashboards: prometheus is not installed");
    };
    let client = "datadog.dogstatsd.client.packets_dropped:1|c";
    let queries = queries();
    let missing = |tallyd: &Tallyd| -> Vec<String> {
        tallyd.send(["a:1|c\nbad line", client]);
        let empty = |query: &&String| found(prometheus, query).unwrap() == 0;
        queries.iter().filter(empty).cloned().collect()
    };
    tallyd.wait_until("data in every panel", |tallyd| missing(tallyd).is_empty());
    tallyd.wait_until("an alert about the refused lines", |tallyd| {
        tallyd.send(["bad line"]);
        let firing = r#"ALERTS{alertname="TallydRefusesLines",alertstate="firing"}"#;
        found(prometheus, firing).unwrap() > 0
    });
    let quiet = r#"ALERTS{alertname=~"TallydDown|TallydDropsPoints|TallydKernelDrops"}"#;
    assert_eq!(found(prometheus, quiet), Ok(0));
}

#[test]
fn every_loss_raises_an_alert() {
    let alerts = std::fs::read_to_string(config("alerts.yaml")).unwrap();
    let metrics = include_str!("../METRICS.md").lines().filter(|line| line.contains("DATA LOSS. "));
    let names = metrics.filter_map(|line| line.split('`').nth(1));
    // The same losses by sender, and of points in payloads.
    let again = |name: &&str| {
        name.starts_with("tallyd_sender_") || *name == "tallyd_sink_spool_dropped_payloads_total"
    };
    let silent: Vec<_> =
        names.filter(|name| !again(name)).filter(|name| !alerts.contains(name)).collect();
    assert_eq!(silent, [""; 0]);
}

/// Makes every payload below a folder an hour older, by the time in its name.
fn make_older(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            make_older(&path);
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let parts: Vec<_> = name.splitn(3, '-').collect();
        if let [sequence, time, rest] = parts[..] {
            let time = time.parse::<i64>().unwrap() - 3600;
            std::fs::rename(&path, path.with_file_name(format!("{sequence}-{time}-{rest}")))
                .unwrap();
        }
    }
}

#[test]
fn points_that_have_waited_on_disk_for_long_raise_an_alert() {
    let intake = Intake::start();
    intake.respond_with(|_| Response::status(503));
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run").display().to_string();
    let launch = || {
        let launch = Launch::new().to(&intake).env("DD_RUN_PATH", &run).listen(&[UDP]);
        launch.set("sinks.stop_timeout", "0")
    };
    let tallyd = launch().start();
    tallyd.send(["a:1|c"]);
    let age = |tallyd: &Tallyd| tallyd.figure("tallyd_sink_spooled_age_seconds", "datadog");
    tallyd.wait_until("a payload on disk", |tallyd| {
        tallyd.figure("tallyd_sink_spooled_payloads", "datadog") > 0.0
    });
    assert!(age(&tallyd) <= 80.0, "{}", age(&tallyd));
    tallyd.stop();
    make_older(&folder.path().join("run/spool"));
    let tallyd = launch().start();
    // The pages come before the spool is open.
    tallyd.wait_until("the payload that was left", |tallyd| age(tallyd) > 0.0);
    assert!((3600.0..3700.0).contains(&age(&tallyd)), "{}", age(&tallyd));
    let rules = config("alerts.yaml");
    let place = folder.path().join("prometheus");
    std::fs::create_dir(&place).unwrap();
    if let Some((_running, prometheus)) = start_prometheus(tallyd.server(0), &place, Some(&rules)) {
        tallyd.wait_until("an alert about the spool", |_| {
            let firing = r#"ALERTS{alertname="TallydBacklog",alertstate="firing"}"#;
            found(prometheus, firing).unwrap() > 0
        });
    } else {
        println!("SKIP alerts: prometheus is not installed");
    }
    intake.respond_with(|_| Response::status(202));
    // After so many errors the next try may be a minute away: another process begins with none.
    tallyd.stop();
    let tallyd = launch().start();
    tallyd.wait_for_stderr("ready");
    tallyd.wait_until("all is delivered", |tallyd| age(tallyd) == 0.0);
}
