//! The alerts and the dashboard, in a real Prometheus that scrapes a running tallyd.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

use super::process::{Launch, Tallyd, UDP};
use super::prometheus_scrape::{http_get, start_prometheus};
use super::test_intake::Intake;

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
