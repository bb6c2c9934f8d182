//! The real binary from socket to intake: what is sent is what arrives, and what does not arrive is
//! counted.

use std::collections::HashSet;
use std::io::Write;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::process::{DEADLINE, KEY, Launch, Tallyd, UDP, http};
use super::received::{Received, assert_lines};
use super::test_intake::{Intake, Request, Response};

/// A few lines of everything, as payloads of one transport.
fn program(via: &str) -> Vec<String> {
    let mut payloads: Vec<_> = (0..200).map(|_| format!("e2e.jobs:1|c|#via:{via}")).collect();
    payloads.extend(
        [
            "e2e.jobs:1:2|c|@0.5|#via:{}\ne2e.depth:3|g|#via:{}\ne2e.depth:-4.5|g|#via:{}\n",
            "e2e.size:1:2:3:10|h|#via:{}",
            "e2e.took:320|ms|#via:{}\ne2e.took:80|ms|@0.5|#via:{}",
            "e2e.lag:1:2.5|d|#via:{}\ne2e.lag:4|d|#via:{}\n",
            "e2e.users:a|s|#via:{}\ne2e.users:b|s|#via:{}\ne2e.users:a|s|#via:{}",
            "_e{5,4}:Title|text|t:error|p:low|k:group|#via:{}\n_sc|e2e.ok|2|#via:{}|m:down",
        ]
        .map(|text| text.replace("{}", via)),
    );
    payloads
}

/// What the intake has to get of [`program`]: of the timer 320 once and 80 twice.
fn expected(via: &str) -> String {
    r#"
    e2e.jobs rate [via:{}] 206
    e2e.depth gauge [via:{}] -4.5
    e2e.size.max gauge [via:{}] 10
    e2e.size.median gauge [via:{}] 2
    e2e.size.avg gauge [via:{}] 4
    e2e.size.count rate [via:{}] 4
    e2e.size.95percentile gauge [via:{}] 10
    e2e.took.max gauge [via:{}] 320
    e2e.took.median gauge [via:{}] 80
    e2e.took.avg gauge [via:{}] 160
    e2e.took.count rate [via:{}] 3
    e2e.took.95percentile gauge [via:{}] 320
    e2e.lag sketch [via:{}] 3x 1..4 sum 7.5
    e2e.users gauge [via:{}] 2
    event "Title" "text" error low group [via:{}]
    check e2e.ok 2 "down" [via:{}]
    "#
    .replace("{}", via)
}

fn send_udp(to: &str, via: &str) {
    let any = if to.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
    let socket = UdpSocket::bind(any).unwrap();
    for payload in program(via) {
        socket.send_to(payload.as_bytes(), to).unwrap();
    }
}

fn send_unix_datagrams(to: &Path, via: &str) {
    let socket = UnixDatagram::unbound().unwrap();
    for payload in program(via) {
        socket.send_to(payload.as_bytes(), to).unwrap();
    }
}

fn send_frames(to: &Path, via: &str) {
    let mut stream = UnixStream::connect(to).unwrap();
    for payload in program(via) {
        stream.write_all(&(payload.len() as u32).to_le_bytes()).unwrap();
        stream.write_all(payload.as_bytes()).unwrap();
    }
}

/// One payload after another, with a newline between and none at the end.
fn text(via: &str) -> String {
    program(via).join("\n")
}

fn post(tallyd: &Tallyd, server: usize, via: &str) {
    let answer = http(tallyd.server(server), "POST", "/dogstatsd/v2/proxy", text(via).as_bytes());
    assert_eq!(answer.0, 200, "{}", answer.1);
}

#[test]
fn every_transport_brings_everything() {
    let intake = Intake::start();
    let mut listeners = vec![
        json!({"address": UDP}),
        json!({"address": "tcp://127.0.0.1:0"}),
        json!({"address": "unixgram://{folder}/gram"}),
        json!({"address": "unixstream://{folder}/stream"}),
    ];
    let ipv6 = UdpSocket::bind("[::1]:0").is_ok();
    if ipv6 {
        listeners.push(json!({"address": "udp://[::1]:0"}));
    } else {
        println!("SKIP udp6: this machine has no IPv6");
    }
    let tallyd = Launch::new()
        .to(&intake)
        .calm()
        .set("intake.listeners", &Json::from(listeners).to_string())
        .set("status.trace_listen", "127.0.0.1:0")
        .start();
    // The second server's address comes after the first's.
    tallyd.wait_until("the trace port", |t| t.stderr().matches("serving http://").count() == 2);

    let mut transports = vec!["udp4", "gram", "frames", "text", "tcp", "http", "trace"];
    send_udp(&tallyd.listener("udp"), "udp4");
    if ipv6 {
        send_udp(&tallyd.nth_listener("udp", 1), "udp6");
        transports.push("udp6");
    }
    send_unix_datagrams(&tallyd.path("gram"), "gram");
    send_frames(&tallyd.path("stream"), "frames");
    let mut stream = UnixStream::connect(tallyd.path("stream")).unwrap();
    stream.write_all(text("text").as_bytes()).unwrap();
    // The end of the connection ends the last line.
    drop(stream);
    let mut stream = TcpStream::connect(tallyd.listener("tcp")).unwrap();
    stream.write_all(text("tcp").as_bytes()).unwrap();
    drop(stream);
    post(&tallyd, 0, "http");
    post(&tallyd, 1, "trace");
    let finished = tallyd.stop();

    let expected: String = transports.iter().map(|via| expected(via)).collect();
    assert_lines(&intake.requests(), &expected);
    assert!(!finished.stderr.contains("WARN"), "{}", finished.stderr);
}

#[test]
fn several_sockets_share_a_port() {
    let intake = Intake::start();
    // Free a moment ago: several sockets cannot share a port that the system chooses.
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tallyd = Launch::new()
        .to(&intake)
        .calm()
        .env("DD_DOGSTATSD_PORT", &free.port().to_string())
        .set("intake.udp_sockets", "4")
        .start();
    for _ in 0..50 {
        // Each with a socket of its own, which decides who receives.
        tallyd.send(["a:1|c", "b:2|c|@0.5"]);
    }
    let name = format!("listener=\"udp://{free}\"");
    tallyd.wait_until("everything is read", |tallyd| {
        tallyd.figure("tallyd_listener_samples_total", &name) == 100.0
    });
    let page = tallyd.page("/metrics");
    let series =
        page.lines().filter(|l| !l.starts_with('#')).map(|l| l.rsplit_once(' ').unwrap().0);
    let mut seen = HashSet::new();
    series.for_each(|series| assert!(seen.insert(series), "{series} stands twice on\n{page}"));
    tallyd.stop();
    assert_lines(&intake.requests(), "a rate [] 50\n b rate [] 200");
}

#[test]
fn standard_input_is_read_to_its_end() {
    let intake = Intake::start();
    let mut tallyd =
        Launch::new().to(&intake).calm().set("intake.stdin", "true").piped_stdin().start();
    let mut stdin = tallyd.stdin();
    let many = "e2e.many:1|c\n".repeat(20_000);
    stdin.write_all(many.as_bytes()).unwrap();
    stdin.write_all(text("stdin").as_bytes()).unwrap();
    drop(stdin);
    let finished = tallyd.wait();
    assert_eq!(finished.code(), 0, "{finished:#?}");
    assert!(finished.stderr.contains("stopping: end of standard input"), "{finished:#?}");
    assert_lines(&intake.requests(), &(expected("stdin") + "e2e.many rate [] 20000"));
}

/// One process sends everything in its own form; gives back what arrived.
fn in_form(variables: &[(&str, &str)]) -> Vec<Request> {
    let intake = Intake::start();
    let launch = Launch::new().to(&intake).calm().listen(&[UDP]);
    let tallyd = variables.iter().fold(launch, |l, (name, value)| l.env(name, value)).start();
    send_udp(&tallyd.listener("udp"), "form");
    tallyd.stop();
    assert_lines(&intake.requests(), &expected("form"));
    intake.requests()
}

#[test]
fn payloads_come_in_every_form() {
    let kind = "DD_SERIALIZER_COMPRESSOR_KIND";
    let forms = [
        (&[][..], "zstd", "/api/v2/series"),
        (&[(kind, "zstd"), ("DD_SERIALIZER_ZSTD_COMPRESSOR_LEVEL", "9")], "zstd", "/api/v2/series"),
        (&[(kind, "zlib")], "deflate", "/api/v2/series"),
        (&[(kind, "gzip")], "gzip", "/api/v2/series"),
        (&[(kind, "none")], "identity", "/api/v2/series"),
        (&[("DD_USE_V2_API_SERIES", "false")], "zstd", "/api/v1/series"),
    ];
    std::thread::scope(|scope| {
        for (variables, encoding, series) in forms {
            scope.spawn(move || {
                let requests = in_form(variables);
                let posts: Vec<_> = requests.iter().filter(|r| r.method == "POST").collect();
                let mut paths: Vec<_> = posts.iter().map(|r| r.path.as_str()).collect();
                paths.sort_unstable();
                let others = ["/api/beta/sketches", "/api/v1/check_run", "/intake/"];
                let mut wanted = [&others[..], &[series]].concat();
                wanted.sort_unstable();
                assert_eq!(paths, wanted);
                for request in posts {
                    let protobuf = ["/api/v2/series", "/api/beta/sketches"];
                    let protobuf = protobuf.contains(&request.path.as_str());
                    let kind = if protobuf { "application/x-protobuf" } else { "application/json" };
                    assert_eq!(request.header("content-type"), kind);
                    assert_eq!(request.header("content-length"), request.size.to_string());
                    assert_eq!(request.header("content-encoding"), encoding);
                    assert_eq!(request.header("dd-api-key"), KEY);
                    assert_eq!(request.header("dd-agent-payload").is_empty(), !protobuf);
                    let version = env!("CARGO_PKG_VERSION");
                    assert_eq!(request.header("dd-agent-version"), version);
                    assert_eq!(request.header("user-agent"), format!("tallyd/{version}"));
                }
                let asked: Vec<_> = requests.iter().filter(|r| r.method == "GET").collect();
                assert_eq!(asked.len(), 1);
                assert_eq!(asked[0].path, "/api/v1/validate");
                assert_eq!(asked[0].header("dd-api-key"), KEY);
            });
        }
    });
}

/// Of another endpoint.
const OTHER_KEY: &str = "0ther5ec2e7000000000000000000beef";

fn further_endpoint(intake: &Intake) -> String {
    json!({&intake.url: [OTHER_KEY]}).to_string()
}

#[test]
fn keys_are_shown_nowhere() {
    let (refusing, failing) = (Intake::start(), Intake::start());
    refusing.respond_with(|_| Response::status(403));
    failing.respond_with(|_| Response::status(500));
    let launch = || {
        Launch::new()
            .to(&refusing)
            .env("DD_ADDITIONAL_ENDPOINTS", &further_endpoint(&failing))
            .listen(&[UDP])
            .set("logging.level", "trace")
            .set("sinks.console.enabled", "on")
    };
    let tallyd = launch().start();
    tallyd.send(["a:1|c", "b:1|d", "_e{1,1}:a|b", "_sc|a|0"]);
    tallyd.wait_for_stderr(&format!("{} refuses ", refusing.url));
    tallyd.wait_for_stderr("fails: HTTP 500");
    tallyd.wait_for_stderr("refuses the API key");
    let pages = ["/metrics", "/", "/api/series", "/health"].map(|path| tallyd.page(path));
    let finished = tallyd.stop();

    let mut texts = vec![finished.stdout, finished.stderr];
    texts.extend(pages);
    for arguments in [&["config"][..], &["config", "--json"], &["check"]] {
        let finished = launch().run(arguments);
        assert_eq!(finished.code(), 0, "{finished:#?}");
        texts.extend([finished.stdout, finished.stderr]);
    }
    for text in &texts {
        assert!(!text.contains(KEY) && !text.contains(OTHER_KEY), "{text}");
    }
    assert!(texts.iter().any(|text| text.contains("\"***\"")), "config shows stars");
    let sent = [(refusing, KEY), (failing, OTHER_KEY)];
    for (intake, key) in sent {
        assert!(intake.requests().iter().all(|request| request.header("dd-api-key") == key));
    }
}

#[test]
fn an_endpoint_that_fails_delays_no_other() {
    let (failing, well) = (Intake::start(), Intake::start());
    let mut failures = 1;
    failing.respond_with(move |request| match request.path.as_str() {
        "/api/v2/series" if failures > 0 => {
            failures -= 1;
            Response::status(500)
        }
        "/api/v1/validate" => Response::status(200),
        _ => Response::status(202),
    });
    let tallyd = Launch::new()
        .to(&failing)
        .env("DD_ADDITIONAL_ENDPOINTS", &further_endpoint(&well))
        .listen(&[UDP])
        .start();
    tallyd.send(["a:5|c"]);
    let arrived = |requests: &[Request]| Received::of(requests).sum("a") == 5.0;
    well.wait_for(DEADLINE, arrived);
    // A failed try is recorded too: the points of the second are the same.
    failing.wait_for(DEADLINE, |requests| Received::of(requests).sum("a") == 10.0);
    tallyd.wait_for_stderr("answers again after");
    let failing_label = format!("endpoint=\"{}\"", failing.url);
    assert_eq!(tallyd.figure("tallyd_sink_retries_total", &failing_label), 1.0);
    assert_eq!(tallyd.figure("tallyd_sink_retries_total", &well.url), 0.0);
    tallyd.wait_until("everything is delivered", |tallyd| {
        tallyd.figure("tallyd_sink_held_points", "sink=\"datadog\"") == 0.0
    });
    assert_eq!(tallyd.figure("tallyd_sink_dropped_points_total", ""), 0.0);
    tallyd.stop();
    assert_eq!(Received::of(&well.requests()).sum("a"), 5.0);
    assert_eq!(Received::of(&failing.requests()).sum("a"), 10.0);
}

#[test]
fn what_an_intake_refuses_is_dropped_and_counted() {
    let intake = Intake::start();
    intake.respond_with(|_| Response::status(403));
    let tallyd = Launch::new().to(&intake).listen(&[UDP]).start();
    let refused =
        |tallyd: &Tallyd| tallyd.figure("tallyd_sink_dropped_points_total", "cause=\"refused\"");
    // In two flushes. Gauges are not filled up while idle.
    for (lines, so_far) in [("a:1|g\nb:1|g", 2.0), ("c:1|g", 3.0)] {
        tallyd.send([lines]);
        tallyd.wait_until("the points are refused", |tallyd| refused(tallyd) == so_far);
    }
    assert_eq!(tallyd.figure("tallyd_sink_retries_total", ""), 0.0);
    let finished = tallyd.stop();
    let warning = "refuses series: HTTP 403 Forbidden: the API key is refused; 2 points dropped";
    assert!(finished.stderr.contains(warning), "{}", finished.stderr);
    assert_eq!(finished.stderr.matches(" refuses series").count(), 1, "the state is said once");
    let books = "lost: 3 points dropped by datadog (refused)";
    assert!(finished.stderr.contains(books), "{}", finished.stderr);
    assert_eq!(Received::of(&intake.requests()).points.len(), 3, "each is sent once");
}

/// Tells it to stop while much waits in its sockets; gives back what arrived.
fn stopped_in_full_swing(incomplete_buckets: &str) -> Vec<Request> {
    let intake = Intake::start();
    let tallyd = Launch::new()
        .to(&intake)
        .calm()
        .env("DD_DOGSTATSD_FLUSH_INCOMPLETE_BUCKETS", incomplete_buckets)
        .env("DD_DOGSTATSD_SOCKET", "{folder}/gram")
        .listen(&[UDP, "tcp://127.0.0.1:0", "unixstream://{folder}/stream"])
        .start();
    tallyd.signal("STOP");
    // More than one batch of datagrams, and more than one turn of each connection, so that the stop
    // comes while they are read.
    tallyd.send(std::iter::repeat_n(&*"udp:1|c\n".repeat(100), 80));
    // The queue of a Unix datagram socket is short: the sender waits.
    let socket = UnixDatagram::unbound().unwrap();
    for _ in 0..5 {
        socket.send_to(b"gram:1|c", tallyd.path("gram")).unwrap();
    }
    let (mut tcp, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let mut connection = TcpStream::connect(tallyd.listener("tcp")).unwrap();
        connection.write_all("tcp:1|c\n".repeat(25_000).as_bytes()).unwrap();
        tcp.push(connection);
        let mut connection = UnixStream::connect(tallyd.path("stream")).unwrap();
        connection.write_all("stream:1|c\n".repeat(5000).as_bytes()).unwrap();
        streams.push(connection);
    }
    tallyd.signal("TERM");
    let begun = Instant::now();
    tallyd.signal("CONT");
    let finished = tallyd.wait();
    assert_eq!(finished.code(), 0, "{finished:#?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    intake.requests()
}

#[test]
fn the_stop_delivers_what_was_just_sent() {
    let expected = "udp rate [] 8000\n gram rate [] 5\n tcp rate [] 100000\n stream rate [] 20000";
    assert_lines(&stopped_in_full_swing("true"), expected);
    assert_lines(&stopped_in_full_swing("false"), "");
}

#[test]
fn an_intake_that_does_not_answer_holds_up_no_stop() {
    let intake = Intake::start();
    intake.respond_with(|_| Response { delay: DEADLINE, ..Response::status(202) });
    let tallyd = Launch::new()
        .to(&intake)
        .calm()
        .env("DD_FORWARDER_STOP_TIMEOUT", "1")
        .set("sinks.spool.enabled", "false")
        .listen(&[UDP])
        .start();
    tallyd.send(["a:1|g", "b:1|g"]);
    let begun = Instant::now();
    let finished = tallyd.stop();
    let took = begun.elapsed();
    assert!(Duration::from_secs(1) < took && took < Duration::from_secs(3), "{took:?}");
    let said = format!("stopped with 2 points undelivered to {}", intake.url);
    assert!(finished.stderr.contains(&said), "{}", finished.stderr);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let intake = Intake::start();
    intake.respond_with(|_| Response { delay: DEADLINE, ..Response::status(202) });
    let tallyd =
        Launch::new().to(&intake).calm().set("sinks.stop_timeout", "60").listen(&[UDP]).start();
    tallyd.send(["a:1|g"]);
    tallyd.signal("TERM");
    // The last flush is on its way.
    intake.wait_for(DEADLINE, |requests| requests.iter().any(|r| r.path == "/api/v2/series"));
    // One that follows closely is taken for the same.
    tallyd.wait_until("a second signal is heeded", |tallyd| {
        tallyd.signal("INT");
        tallyd.stderr().contains("a second signal")
    });
    assert_eq!(tallyd.wait().code(), 1);
}

#[test]
fn settings_of_the_agent_work_together() {
    let intake = Intake::start();
    let profiles = json!([{
        "name": "batch",
        "prefix": "batch.",
        "mappings": [{"match": "batch.*.duration", "name": "batch.duration", "tags": {"job": "$1"}}],
    }]);
    let tallyd = Launch::new()
        .to(&intake)
        .calm()
        .listen(&[UDP])
        .env("DD_HOSTNAME", "web-7")
        .env("DD_TAGS", "rack:12")
        .env("DD_DOGSTATSD_TAGS", "team:core env:test")
        .env("DD_STATSD_METRIC_NAMESPACE", "acme")
        .env("DD_STATSD_METRIC_BLOCKLIST", "acme.noise")
        .env("DD_HISTOGRAM_AGGREGATES", "max sum")
        .env("DD_HISTOGRAM_PERCENTILES", "0.5 0.99")
        .env("DD_DOGSTATSD_MAPPER_PROFILES", &profiles.to_string())
        .start();
    tallyd.send([
        "batch.nightly.duration:5|ms|#env:mine",
        "size:1:2:3:4|h|#host:db-1",
        "noise:1|c",
        "jvm.heap:9|g",
        "jobs:3|c|T1700000000\njobs:4|c|T1700000000\njobs:5|c|T1700000100",
        "temp:1.5|g|T1700000050",
        "_e{1,1}:a|b|h:db-2",
        "_sc|ok|0",
    ]);
    tallyd.stop();
    let requests = intake.requests();
    assert_lines(
        &requests,
        r#"
        acme.batch.duration.max gauge [env:mine,env:test,job:nightly,team:core]@web-7 5
        acme.batch.duration.sum gauge [env:mine,env:test,job:nightly,team:core]@web-7 5
        acme.batch.duration.50percentile gauge [env:mine,env:test,job:nightly,team:core]@web-7 5
        acme.batch.duration.99percentile gauge [env:mine,env:test,job:nightly,team:core]@web-7 5
        acme.size.max gauge [env:test,team:core]@db-1 4
        acme.size.sum gauge [env:test,team:core]@db-1 10
        acme.size.50percentile gauge [env:test,team:core]@db-1 2
        acme.size.99percentile gauge [env:test,team:core]@db-1 4
        jvm.heap gauge [env:test,team:core]@web-7 9
        acme.jobs rate [env:test,team:core]@web-7 12
        acme.temp gauge [env:test,team:core]@web-7 1.5
        event "a" "b" info normal [env:test,team:core]@db-2
        check ok 0 "" [env:test,team:core]@web-7
        "#,
    );
    let received = Received::of(&requests);
    let times = |name| received.named(name).iter().map(|point| point.time).collect::<Vec<_>>();
    assert_eq!(times("acme.jobs"), [1_700_000_000, 1_700_000_000, 1_700_000_100]);
    assert_eq!(times("acme.temp"), [1_700_000_050]);
    assert_eq!(received.named("acme.batch.duration.max")[0].unit, "millisecond");
}

/// The value of the newest point of a gauge.
fn newest(requests: &[Request], name: &str) -> Option<f64> {
    Received::of(requests).named(name).last().map(|point| point.value)
}

#[test]
fn each_listener_has_its_dialect() {
    let intake = Intake::start();
    let listeners = json!([{"address": UDP}, {"address": UDP, "dialect": "statsd"}]);
    let tallyd = Launch::new().to(&intake).set("intake.listeners", &listeners.to_string()).start();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(tallyd.nth_listener("udp", 1)).unwrap();
    let statsd = |line: &str| assert_eq!(socket.send(line.as_bytes()).unwrap(), line.len());
    let gauge_becomes = |value| {
        intake.wait_for(DEADLINE, |requests| newest(requests, "temp") == Some(value));
    };
    statsd("temp:10|g");
    gauge_becomes(10.0);
    statsd("temp:+5|g");
    gauge_becomes(15.0);
    statsd("temp:-3|g\nmeter:4|m\npair:1|c:2|c\na b/c$d:1|c\nslow:7|ms|@0.5");
    gauge_becomes(12.0);
    tallyd.send(["plain:10|g", "meter:4|m", "plain:+5|g"]);
    intake.wait_for(DEADLINE, |requests| newest(requests, "plain") == Some(5.0));
    let rejects = |port: &str| tallyd.figure("tallyd_listener_rejects_total", port);
    assert_eq!(rejects(&tallyd.nth_listener("udp", 0)), 1.0);
    assert_eq!(rejects(&tallyd.nth_listener("udp", 1)), 0.0);
    tallyd.stop();
    assert_lines(
        &intake.requests(),
        "temp gauge [] 12
        meter rate [] 4
        pair rate [] 3
        a_b-cd rate [] 1
        slow.max gauge [] 7
        slow.median gauge [] 7
        slow.avg gauge [] 7
        slow.count rate [] 2
        slow.95percentile gauge [] 7
        plain gauge [] 5",
    );
}

#[test]
fn a_datagram_that_is_too_long_loses_its_last_line_only() {
    let intake = Intake::start();
    let tallyd = Launch::new()
        .to(&intake)
        .calm()
        .env("DD_DOGSTATSD_BUFFER_SIZE", "256")
        .listen(&[UDP])
        .start();
    let long = format!("a:1|c\nb:2|c\nc:3|c|#tag:{}", "x".repeat(300));
    tallyd.send([&long[..], "d:4|c"]);
    tallyd.wait_until("two datagrams", |tallyd| {
        tallyd.figure("tallyd_listener_datagrams_total", "udp://") == 2.0
    });
    assert_eq!(tallyd.figure("tallyd_listener_truncated_total", "udp://"), 1.0);
    assert_eq!(tallyd.figure("tallyd_listener_rejects_total", "reason=\"truncated\""), 1.0);
    assert_eq!(tallyd.figure("tallyd_listener_rejects_total", ""), 1.0);
    tallyd.stop();
    assert_lines(&intake.requests(), "a rate [] 1\n b rate [] 2\n d rate [] 4");
}

#[test]
fn what_the_kernel_drops_is_counted() {
    const SENT: f64 = 3000.0;
    let tallyd = Launch::new().env("DD_DOGSTATSD_SO_RCVBUF", "4096").listen(&[UDP]).start();
    tallyd.signal("STOP");
    tallyd.send(std::iter::repeat_n("a:1|c", SENT as usize));
    tallyd.signal("CONT");
    let dropped = || tallyd.figure("tallyd_listener_kernel_drops_total", "udp://");
    let received = || tallyd.figure("tallyd_listener_datagrams_total", "udp://");
    tallyd.wait_until("all are accounted for", |_| received() + dropped() >= SENT);
    assert_eq!(received() + dropped(), SENT);
    assert_eq!(received(), tallyd.figure("tallyd_listener_samples_total", "udp://"));
    assert!(received() > 0.0 && dropped() > 0.0);
    let finished = tallyd.stop();
    assert!(finished.stderr.contains("raise intake.receive_buffer"), "{}", finished.stderr);
}

#[test]
fn raw_copies_are_forwarded() {
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
    upstream.set_read_timeout(Some(DEADLINE)).unwrap();
    let tallyd = Launch::new()
        .env("DD_STATSD_FORWARD_HOST", "127.0.0.1")
        .env("DD_STATSD_FORWARD_PORT", &upstream.local_addr().unwrap().port().to_string())
        .listen(&[UDP, "unixgram://{folder}/gram"])
        .start();
    let mut buffer = [0; 100];
    let mut arrived = || {
        let length = upstream.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    for payload in ["a:1|c|@0.1|#x\n\nnonsense\r\n", "_e{1,1}:a|b"] {
        tallyd.send([payload]);
        assert_eq!(arrived(), payload);
    }
    let socket = UnixDatagram::unbound().unwrap();
    socket.send_to(b"b:1|c", tallyd.path("gram")).unwrap();
    assert_eq!(arrived(), "b:1|c");
    tallyd.stop();
}

#[test]
fn an_idle_counter_reports_zero_until_it_expires() {
    let intake = Intake::start();
    let tallyd =
        Launch::new().to(&intake).env("DD_DOGSTATSD_EXPIRY_SECONDS", "2").listen(&[UDP]).start();
    tallyd.send(["idle:7|c"]);
    let points = |requests: &[Request]| {
        let received = Received::of(requests);
        received.named("idle").iter().map(|point| (point.time, point.value)).collect::<Vec<_>>()
    };
    let begin = points(&intake.wait_for(DEADLINE, |requests| points(requests).len() == 3))[0].0;
    let expected = [(begin, 7.0), (begin + 1, 0.0), (begin + 2, 0.0)];
    assert_eq!(points(&intake.requests()), expected);
    tallyd.send(["tick:1|g"]);
    intake.wait_for(DEADLINE, |requests| newest(requests, "tick").is_some());
    tallyd.stop();
    assert_eq!(points(&intake.requests()), expected);
}

#[test]
fn too_many_series_overflow_into_one() {
    let intake = Intake::start();
    let tallyd =
        Launch::new().to(&intake).calm().set("shard.contexts_max", "10").listen(&[UDP]).start();
    let old: Vec<_> = (0..5).map(|i| format!("old.{i}:2|c")).collect();
    let new: Vec<_> = (0..100).map(|i| format!("new.{i}:1|c")).collect();
    for lines in [&old, &new, &old] {
        tallyd.send(lines.iter().map(String::as_str));
    }
    tallyd.wait_until("everything is read", |tallyd| {
        tallyd.figure("tallyd_listener_samples_total", "udp://") == 110.0
    });
    assert_eq!(tallyd.figure("tallyd_overflow_total", ""), 95.0);
    // The overflow series comes on top.
    assert_eq!(tallyd.figure("tallyd_contexts", ""), 11.0);
    tallyd.stop();
    let mut expected = "tallyd.overflow rate [kind:count] 95".to_owned();
    for i in 0..5 {
        expected += &format!("\n old.{i} rate [] 4\n new.{i} rate [] 1");
    }
    assert_lines(&intake.requests(), &expected);
}

#[test]
fn tables_and_pages_show_what_was_sent() {
    let tallyd = Launch::new().env("DD_HOSTNAME", "own").listen(&[UDP]).start();
    // In one datagram, so that one flush has all of it.
    tallyd.send(["queue.depth:12|g|#env:dev\njobs:3|c\nlag:2:4|d\ntook:7|ms\nusers:a|s\n\
                  _e{5,4}:Title|text\n_sc|db|1|m:slow\nbad"]);
    let series = |query: &str| -> Json {
        serde_json::from_str(&tallyd.page(&format!("/api/series{query}"))).unwrap()
    };
    let last = std::cell::RefCell::new(Json::Null);
    tallyd.wait_until("the flush with five series", |_| {
        *last.borrow_mut() = series("?limit=10");
        last.borrow()["found"] == 5
    });
    let document = last.into_inner();
    let names = document["series"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    assert_eq!(names, ["jobs", "lag", "queue.depth", "took", "users"]);
    let find = |name: &str| {
        let all = document["series"].as_array().unwrap();
        all.iter().find(|series| series["name"] == name).unwrap()
    };
    assert_eq!(find("queue.depth")["points"][0][1], 12.0);
    assert_eq!(find("queue.depth")["tags"], json!(["env:dev"]));
    assert_eq!(find("took")["points"][0][1]["median"], 7.0);
    assert_eq!(find("lag")["points"][0][1]["sum"], 6.0);
    assert_eq!(find("users")["points"][0][1], 1);
    assert_eq!(document["events"][0]["title"], "Title");
    assert_eq!(document["checks"][0]["message"], "slow");

    let page = tallyd.page("/metrics");
    for line in ["queue_depth{env=\"dev\"} 12", "jobs 3", "users 1", "tallyd_contexts 5"] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
    check_with_promtool(&page);
    assert_eq!(tallyd.figure("tallyd_listener_rejects_total", "udp://"), 1.0);

    tallyd.wait_for_stdout("check");
    let finished = tallyd.stop();
    let table: Vec<_> = finished.stdout.lines().map(words).collect();
    let wanted = [
        "NAME TAGS KIND VALUE",
        "jobs count 3 (3/s)",
        "lag distribution n=2 avg=3 p50=2.0091 p95=3.9744 p99=3.9744",
        "queue.depth env:dev gauge 12",
        "took timer n=1 min=7 avg=7 max=7 p95=7",
        "users set 1",
        "event info Title: text",
        "check warning db: slow",
    ];
    assert!(table.windows(wanted.len()).any(|lines| lines == wanted), "{table:#?}");
    assert!(finished.stderr.contains("refused the line \"bad\""), "{}", finished.stderr);
}

/// A line with one blank between its words.
fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn check_with_promtool(page: &str) {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else { return println!("SKIP promtool: not installed") };
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    // 3: it can be read, but there are remarks on style, such as a counter's name: the users' own.
    assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}\n{page}");
    let remarks = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    let own = remarks.iter().flat_map(|text| text.lines()).find(|l| l.starts_with("tallyd_"));
    assert_eq!(own, None);
}

#[test]
fn every_send_subcommand_arrives() {
    let intake = Intake::start();
    let tallyd =
        Launch::new().to(&intake).calm().listen(&[UDP, "unixgram://{folder}/gram"]).start();
    let udp = format!("udp://{}", tallyd.listener("udp"));
    let gram = format!("unixgram://{}", tallyd.listener("unixgram"));
    let mut expected = String::new();
    for (by, to) in [("udp", &udp), ("gram", &gram)] {
        let tag = format!("by:{by}");
        for arguments in [
            &["gauge", "queue.depth", "12", "-t", "env:dev"][..],
            &["count", "jobs", "1", "2", "3", "--rate", "0.5"],
            &["histogram", "size", "1", "2", "3"],
            &["distribution", "lag", "1", "-2.5"],
            &["timing", "took", "320", "--timestamp", "1700000000"],
            &["set", "users", "alice"],
            &[
                "event",
                "Déployé",
                "one\ntwo",
                "--alert-type=error",
                "--priority=low",
                "--aggregation-key=k",
                "--source-type=s",
                "--host=web-9",
            ],
            &["check", "db", "2", "--message=down", "--host=web-9"],
            &["raw", &format!("raw:1|c|#{tag}")],
        ] {
            let further = if arguments[0] == "raw" { &[][..] } else { &["-t", &tag] };
            let finished = Launch::new().run(&[&["send", "--to", to], arguments, further].concat());
            assert_eq!(finished.code(), 0, "{arguments:?}: {finished:#?}");
            assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("", ""));
        }
        expected += &r#"
            queue.depth gauge [by:{},env:dev] 12
            jobs rate [by:{}] 12
            size.max gauge [by:{}] 3
            size.median gauge [by:{}] 2
            size.avg gauge [by:{}] 2
            size.count rate [by:{}] 3
            size.95percentile gauge [by:{}] 3
            lag sketch [by:{}] 2x -2.5..1 sum -1.5
            took.max gauge [by:{}] 320
            took.median gauge [by:{}] 320
            took.avg gauge [by:{}] 320
            took.count rate [by:{}] 1
            took.95percentile gauge [by:{}] 320
            users gauge [by:{}] 1
            event "Déployé" "one\ntwo" error low k s [by:{}]@web-9
            check db 2 "down" [by:{}]@web-9
            raw rate [by:{}] 1
            "#
        .replace("{}", by);
    }
    tallyd.stop();
    assert_lines(&intake.requests(), &expected);
    let took = Received::of(&intake.requests()).named("took.max")[0].time;
    assert_eq!(took, 1_700_000_000);

    let finished = Launch::new().run(&["send", "--to", &udp, "count", "late", "1"]);
    assert_eq!(finished.code(), 1);
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:#?}");
    assert!(finished.stderr.contains("nobody listens there"), "{finished:#?}");
}

#[test]
fn health_tells_whether_it_is_up() {
    let tallyd = Launch::new().listen(&[UDP]).set("status.health_listen", "127.0.0.1:0").start();
    tallyd.wait_until("both", |t| t.stderr().matches("serving http://").count() == 2);
    let addresses = [tallyd.server(0), tallyd.server(1)].map(|address| address.to_string());
    let ask = |address: &str| {
        let given = Launch::new().run(&["health", "--address", address]);
        let configured = Launch::new().set("status.listen", address).run(&["health"]);
        assert_eq!(given.status, configured.status);
        given
    };
    for address in &addresses {
        let finished = ask(address);
        assert_eq!((finished.code(), finished.stdout.as_str()), (0, "ok\n"), "{finished:#?}");
    }
    tallyd.stop();
    for address in &addresses {
        let finished = ask(address);
        assert_eq!((finished.code(), finished.stdout.as_str()), (1, ""), "{finished:#?}");
        let said = format!("error: no answer from http://{address}/health: ");
        assert!(finished.stderr.starts_with(&said), "{finished:#?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:#?}");
    }
}
