//! Keys and passwords: where they come from, and that they turn up nowhere.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::process::{KEY, Launch, UDP, http};
use super::received::Received;
use super::test_intake::Intake;

/// A password of a proxy, and how it is sent: `user:PASSWORD` in base 64.
const PASSWORD: &str = "hunter2-s3cret";
const PASSWORD_SENT: &str = "dXNlcjpodW50ZXIyLXMzY3JldA==";

/// A program that answers for the handle `api` and notes the question beside it.
fn backend(launch: &Launch, answer: &str) -> String {
    let path = launch.path("backend");
    let script = format!("#!/bin/sh\n/bin/cat >\"$0.question\"\n{answer}\n");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    path.display().to_string()
}

fn good(value: &str) -> String {
    format!(r#"echo '{{"api":{{"value":"{value}","error":null}}}}'"#)
}

/// Serves as a proxy or an intake that refuses everything and repeats the request in its answer.
fn echo() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answered = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&answered);
    let serve = move |mut stream: TcpStream| {
        let mut head = String::new();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while let Some(Ok(line)) = lines.next().filter(|l| l.as_ref().is_ok_and(|l| !l.is_empty()))
        {
            head = head + &line + "\n";
        }
        let _ = write!(
            stream,
            "HTTP/1.1 403 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{head}",
            head.replace('\n', " ").len(),
            head = head.replace('\n', " "),
        );
        count.fetch_add(usize::from(head.contains(KEY) || head.contains(PASSWORD_SENT)), Relaxed);
    };
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    (address, answered)
}

#[track_caller]
fn assert_clean(what: &str, text: &str) {
    for secret in [KEY, PASSWORD, PASSWORD_SENT] {
        assert!(!text.contains(secret), "{what} holds {secret}:\n{text}");
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn secrets_turn_up_nowhere() {
    let (address, answered) = echo();
    let launch = Launch::new()
        .listen(&[UDP])
        .env("DD_API_KEY", "ENC[api]")
        // By way of a proxy for HTTP, which gets the key; one for HTTPS, which gets a CONNECT; and
        // to an address with a password of its own.
        .env("DD_DD_URL", "http://intake.example")
        .env("DD_PROXY_HTTP", &format!("http://user:{PASSWORD}@{address}"))
        .env("DD_PROXY_HTTPS", &format!("http://user:{PASSWORD}@{address}"))
        .env("DD_PROXY_NO_PROXY", "127.0.0.1")
        .env(
            "DD_ADDITIONAL_ENDPOINTS",
            &format!(
                r#"{{"https://other.example": ["{KEY}"],
                    "http://user:{PASSWORD}@{address}/?api_key={KEY}": ["{KEY}"]}}"#
            ),
        )
        .set("logging.level", "trace");
    let command = backend(&launch, &good(KEY));
    let launch = launch.env("DD_SECRET_BACKEND_COMMAND", &command);
    for arguments in [&["config"][..], &["config", "--json"], &["check"]] {
        let finished = launch.run(arguments);
        assert_eq!(finished.code(), 0, "{finished:?}");
        assert_clean(arguments[0], &finished.stdout);
        assert_clean(arguments[0], &finished.stderr);
        assert!(!launch.path("backend.question").exists(), "it is run at the start only");
    }
    let tallyd = launch.start();
    let question = fs::read_to_string(tallyd.path("backend.question")).unwrap();
    assert_eq!(question, r#"{"version":"1.0","secrets":["api"]}"#);
    tallyd.send(["m:1|c", "d:1|d", "_e{1,1}:t|t"]);
    tallyd.wait_until("two endpoints refuse, one cannot be reached", |tallyd| {
        let sink = |name: &str| tallyd.figure(&format!("tallyd_sink_{name}"), "datadog");
        sink("dropped_points_total") >= 2.0 && sink("retries_total") >= 1.0
    });
    assert!(answered.load(Relaxed) > 3, "the secrets were sent and came back");
    for page in ["/", "/metrics", "/api/series", "/health", "/no/such/page"] {
        assert_clean(page, &http(tallyd.server(0), "GET", page, b"").1);
    }
    let run = tallyd.path("run");
    let spooled = files(&run);
    assert!(spooled.len() > 1, "{spooled:?}");
    for file in spooled {
        assert_clean("a path", file.to_str().unwrap());
        let content = fs::read(&file).unwrap_or_default();
        assert_clean("a file", &String::from_utf8_lossy(&content));
    }
    let finished = tallyd.stop();
    assert!(finished.stderr.contains("403"), "{}", finished.stderr);
    assert_clean("the log", &finished.stderr);
    assert_clean("standard output", &finished.stdout);
}

#[test]
fn a_secret_that_cannot_be_had_stops_the_start_and_is_named() {
    let table = [
        (good("s3 cret"), "secrets.command: sinks.datadog.api_key: expected a key of visible"),
        (
            r#"echo '{"api":{"value":"s3cret","error":"no such secret"}}'"#.to_owned(),
            "has no api: no such secret",
        ),
        (r#"echo '{"other":{"value":"s3cret"}}'"#.to_owned(), "gives nothing for api"),
        (r#"echo '{"api":"s3cret"}'"#.to_owned(), "found something else at line 1 column"),
        ("echo s3cret >&2; echo s3cret; exit 1".to_owned(), "fails (exit status: 1)"),
    ];
    for (answer, expected) in table {
        let launch = Launch::new().listen(&[UDP]).env("DD_API_KEY", "ENC[api]");
        let command = backend(&launch, &answer);
        let finished = launch.env("DD_SECRET_BACKEND_COMMAND", &command).spawn().wait();
        assert_eq!(finished.code(), 78, "{finished:?}");
        assert!(finished.stderr.starts_with("error: secrets.command: "), "{finished:?}");
        assert!(finished.stderr.contains(expected), "{expected}: {finished:?}");
        // The name of a scratch folder is by chance.
        let said = finished.stderr.replace(&command, "");
        assert!(!said.contains("s3"), "{finished:?}");
    }
}

#[test]
fn a_key_of_a_file_and_its_successor_are_used() {
    let intake = Intake::start();
    intake.respond_with(|request| {
        let known = request.header("dd-api-key") == KEY;
        super::test_intake::Response::status(match (known, request.method.as_str()) {
            (false, _) => 403,
            (true, "GET") => 200,
            (true, _) => 202,
        })
    });
    let launch = Launch::new().listen(&[UDP]).set("sinks.datadog.dd_url", &intake.url);
    fs::write(launch.path("key"), "an-old-key\n").unwrap();
    let launch = launch.set("sinks.datadog.api_key_file", "{folder}/key");
    let launch = launch.env("DD_HOSTNAME_FILE", "{folder}/name");
    fs::write(launch.path("name"), "host-of-a-file\n").unwrap();
    let tallyd = launch.start();
    tallyd.wait_for_stderr("refuses the API key: check sinks.datadog.api_key_file");
    fs::write(tallyd.path("key"), KEY).unwrap();
    tallyd.send(["m:3|g"]);
    tallyd.wait_until("it is delivered", |tallyd| {
        tallyd.figure("tallyd_sink_delivered_points_total", "datadog") == 1.0
    });
    let finished = tallyd.stop();
    assert!(finished.stderr.contains("another API key was read"), "{}", finished.stderr);
    assert_clean("the log", &finished.stderr);
    let taken: Vec<_> =
        intake.requests().into_iter().filter(|r| r.header("dd-api-key") == KEY).collect();
    let points = Received::of(&taken).points;
    assert_eq!(points.len(), 1);
    assert_eq!((points[0].value, points[0].host.as_str()), (3.0, "host-of-a-file"));
}

#[test]
fn a_start_without_the_file_names_it() {
    let launch = Launch::new().listen(&[UDP]).set("sinks.datadog.api_key_file", "/no/such/key");
    let finished = launch.spawn().wait();
    assert_eq!(finished.code(), 1);
    let expected = "error: sinks.datadog.api_key_file: cannot read /no/such/key: No such file";
    assert!(finished.stderr.contains(expected), "{finished:?}");
}
