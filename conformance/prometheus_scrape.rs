//! A real Prometheus scrapes a page of series that try to break it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tallyd::batch::{Batch, Row, Value};
use tallyd::context::{Context, Source};
use tallyd::encode::exposition::{self, Labels, Type, write_own};
use tallyd::sample::Kind;
use tallyd::sinks::Sink;
use tallyd::sinks::prometheus::{Config, Prometheus};
use tallyd::sketch::Sketch;
use tallyd::value::Summary;

const DEADLINE: Duration = Duration::from_secs(20);

/// What Prometheus must answer: query and value.
const EXPECTED: &[(&str, f64)] = &[
    (r#"up{job="tallyd"}"#, 1.0),
    ("merged_total", 3.0),
    ("both", 1.0),
    ("both_gauge", 2.0),
    ("x_sum", 20.5),
    ("x_sum_gauge", 7.0),
    (r#"x{quantile="0.95"}"#, 9.0),
    (r#"labels{host="web-1",tag___name__="n",a_b="2,1",_9="true"}"#, 4.0),
    (r#"text{quote="a\"b\\c",wide="é😀",escape="\u001b[2J\r\t",nul="\u0000"}"#, 5.0),
    ("user_tallyd_reads", 6.0),
    (r#"d{quantile="0.99"}"#, 7.0),
    ("d_sum", 7.0),
    ("_", 8.0),
    ("absent(no_such_series)", 1.0),
    (r#"tallyd_rejects_total{reason="no\"pipe\n"}"#, 9.0),
    ("huge > bool 1e300", 1.0),
];

fn row(name: &str, kind: Kind, tags: &[&str], value: Value) -> Row {
    let tags = tags.iter().map(|t| (*t).to_owned()).collect();
    let context = Context::new(name, kind, "web-1", tags, Source::default());
    Row { context, time: 100, value }
}

fn sketch() -> Sketch {
    let mut sketch = Sketch::new();
    sketch.insert(7.0);
    sketch.finish();
    sketch
}

fn rows() -> Vec<Row> {
    let summary = || Summary {
        count: 4.0,
        sum: 20.5,
        min: 1.0,
        max: 10.0,
        median: 4.0,
        percentiles: vec![(95, 9.0)],
    };
    let gauge = |name, tags: &[&str], value| row(name, Kind::Gauge, tags, Value::Gauge(value));
    let count = |name, tags: &[&str], sum| row(name, Kind::Count, tags, Value::Count(sum));
    let timer =
        |name, tags: &[&str]| row(name, Kind::Timer, tags, Value::Histogram(Box::new(summary())));
    vec![
        count("merged.total", &[], 1.0),
        count("merged total", &["k:"], 2.0),
        count("both", &[], 1.0),
        gauge("both", &[], 2.0),
        timer("x", &["quantile:3"]),
        gauge("x.sum", &[], 7.0),
        gauge("labels", &["__name__:n", "a_b:1", "a.b:2", "9"], 4.0),
        gauge(
            "text",
            &["quote:a\"b\\c", "wide:é😀", "escape:\u{1b}[2J\r\t", "nul:\0", "", ":"],
            5.0,
        ),
        count("tallyd.reads", &[], 6.0),
        gauge("", &[], 8.0),
        gauge("huge", &[], f64::MAX),
        gauge("endless", &[], f64::INFINITY),
        row("d", Kind::Distribution, &[], Value::Distribution(Box::new(sketch()))),
        row("{}", Kind::Set, &["#:}"], Value::Set(u64::MAX)),
        timer("tallyd", &[]),
    ]
}

async fn nasty_page() -> String {
    let sink = Prometheus::new(&Config::default(), "own", Arc::default()).unwrap();
    let batch = Batch { flushed_at: 110, interval: 10, rows: rows(), ..Batch::default() };
    for payload in sink.encode(&Arc::new(batch)).payloads {
        sink.send(0, &payload).await;
    }
    let mut page = sink.page();
    let labels = Labels::new([("reason", "no\"pipe\n")]);
    let help = "Lines\nrefused \\ \"malformed\".";
    write_own(&mut page, "tallyd_rejects_total", help, Type::Counter, [(labels, 9.0)]);
    page
}

/// The process dies with the test.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With its data in this folder and these rules; `None` when it is not installed.
pub fn start_prometheus(
    target: SocketAddr,
    folder: &Path,
    rules: Option<&Path>,
) -> Option<(Running, SocketAddr)> {
    let config = folder.join("prometheus.yml");
    let rules = rules.map(|rules| format!("rule_files: ['{}']\n", rules.display()));
    let text = format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n{}\
         scrape_configs:\n- job_name: tallyd\n  static_configs: [{{targets: ['{target}']}}]\n",
        rules.unwrap_or_default()
    );
    std::fs::write(&config, text).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address={free}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.ok().map(|child| (Running(child), free))
}

/// The body of the answer; `None` while nobody answers.
pub fn http_get(server: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

fn query(server: SocketAddr, query: &str) -> Option<f64> {
    let encoded: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
    let body = http_get(server, &format!("/api/v1/query?query={encoded}"))?;
    let answer: serde_json::Value = serde_json::from_str(&body).ok()?;
    let result = answer["data"]["result"].as_array()?;
    let [only] = result.as_slice() else { return None };
    only["value"][1].as_str()?.parse().ok()
}

fn differences(server: SocketAddr, samples: usize) -> Vec<String> {
    let scraped = (r#"scrape_samples_scraped{job="tallyd"}"#, samples as f64);
    let expected = EXPECTED.iter().copied().chain([scraped]);
    expected
        .filter_map(|(q, want)| {
            let got = query(server, q);
            (got != Some(want)).then(|| format!("{q}: {got:?} instead of {want}"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_takes_a_nasty_page() {
    let page = nasty_page().await;
    let samples = page.lines().filter(|line| !line.starts_with('#')).count();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let served = page.clone();
    let answer =
        move || async move { ([(CONTENT_TYPE, exposition::CONTENT_TYPE)], served.clone()) };
    let server = axum::serve(listener, Router::new().route("/metrics", get(answer)));
    tokio::spawn(server.into_future());

    let folder = tempfile::tempdir().unwrap();
    let Some((_running, prometheus)) = start_prometheus(target, folder.path(), None) else {
        println!("SKIP prometheus: not installed");
        return;
    };
    let started = Instant::now();
    let mut wrong = vec!["nobody answered".to_owned()];
    while !wrong.is_empty() && started.elapsed() < DEADLINE {
        tokio::time::sleep(Duration::from_millis(100)).await;
        wrong =
            tokio::task::spawn_blocking(move || differences(prometheus, samples)).await.unwrap();
    }
    assert!(wrong.is_empty(), "{wrong:#?} with\n{page}");
    let own = http_get(prometheus, "/metrics").unwrap();
    for line in [
        "prometheus_target_scrapes_sample_duplicate_timestamp_total 0",
        "prometheus_target_scrapes_sample_out_of_order_total 0",
    ] {
        assert!(own.lines().any(|l| l == line), "{line} is missing");
    }
}
