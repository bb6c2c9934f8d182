//! What an intake can do wrong, and what becomes of the points meanwhile: one table.
//!
//! Each row runs the program against an intake that does one thing wrong, once or for ever, and is
//! well otherwise. Three gauges are sent in one datagram. How often tries come in a long outage is
//! judged in virtual time, at the delivery loop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::books::{assert_conserved, figure};
use super::namespace::Namespace;
use super::process::{KEY, Launch, Tallyd, UDP};

/// A good answer.
const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";

/// What an intake does with a request.
#[derive(Clone, Copy)]
enum Act {
    /// Answers with this status and these headers.
    Status(u16, &'static str),
    /// Says this.
    Say(&'static str),
    /// Says this and closes the connection.
    SayAndClose(&'static str),
    /// Gives a good answer with a body that comes byte by byte, for ever.
    Drip,
    /// Says nothing.
    Silence,
    /// Resets the connection before it has read the body.
    Reset,
}

/// What becomes of the points.
enum Then {
    Delivered,
    /// Delivered by another try, for which there was this reason, and not before so many seconds.
    Retried(&'static str, u64),
    /// Delivered in two halves, at once.
    Split,
    /// Dropped for this reason.
    Refused(&'static str),
}

use Act::{Drip, Reset, Say, SayAndClose, Silence, Status};
use Then::{Delivered, Refused, Retried, Split};

/// Name, what the intake does, how many times, what then.
const TABLE: &[(&str, Act, usize, Then)] = &[
    ("200", Status(200, ""), ALWAYS, Delivered),
    ("202", Status(202, ""), ALWAYS, Delivered),
    ("302", Status(302, "Location: http://127.0.0.1:9/\r\n"), 1, Retried("HTTP 302", 0)),
    ("400", Status(400, ""), ALWAYS, Refused("HTTP 400")),
    ("401", Status(401, ""), 1, Retried("HTTP 401", 0)),
    ("403", Status(403, ""), ALWAYS, Refused("HTTP 403 Forbidden: the API key is refused")),
    ("404", Status(404, ""), 1, Retried("HTTP 404", 0)),
    ("408", Status(408, ""), 1, Retried("HTTP 408", 0)),
    ("413 once", Status(413, ""), 1, Split),
    ("413 always", Status(413, ""), ALWAYS, Refused("HTTP 413")),
    ("429", Status(429, ""), 1, Retried("HTTP 429", 0)),
    ("429, Retry-After: 5", Status(429, "Retry-After: 5\r\n"), 1, Retried("HTTP 429", 5)),
    ("429, Retry-After: 0", Status(429, "Retry-After: 0\r\n"), 1, Retried("HTTP 429", 1)),
    ("500", Status(500, ""), 1, Retried("HTTP 500", 0)),
    ("503", Status(503, ""), 1, Retried("HTTP 503", 0)),
    ("503, Retry-After: 5", Status(503, "Retry-After: 5\r\n"), 1, Retried("HTTP 503", 5)),
    ("slow body", Drip, 1, Delivered),
    ("accepts and says nothing", Silence, 1, Retried("no answer within 2 s", 2)),
    ("resets in mid-body", Reset, 1, Retried("error sending request", 0)),
    ("closes kept-alive connections", SayAndClose(ACCEPTED), ALWAYS, Delivered),
    ("closes without an answer", SayAndClose(""), 1, Retried("error sending request", 0)),
    (
        "content length too long",
        SayAndClose("HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n{}"),
        ALWAYS,
        Delivered,
    ),
    (
        "content length too short",
        Say("HTTP/1.1 202 Accepted\r\nContent-Length: 1\r\n\r\n{\"status\":\"ok\"}"),
        ALWAYS,
        Delivered,
    ),
    (
        "content length is no number",
        SayAndClose("HTTP/1.1 202 Accepted\r\nContent-Length: x\r\n\r\n"),
        1,
        Retried("error sending request", 0),
    ),
    ("is no HTTP", SayAndClose("SSH-2.0-OpenSSH_9.6\r\n"), 1, Retried("error sending request", 0)),
];

const ALWAYS: usize = usize::MAX;

/// Points that are sent.
const POINTS: f64 = 3.0;

/// What an intake has seen.
#[derive(Default)]
struct Seen {
    requests: AtomicUsize,
    /// Connections that are open now, and the most that ever were.
    open: AtomicUsize,
    peak: AtomicUsize,
}

/// An intake that does this wrong with its first `times` requests.
fn intake(act: Act, times: usize) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::<Seen>::default();
    let shared = Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, seen) = (stream.unwrap(), Arc::clone(&shared));
            let open = seen.open.fetch_add(1, Relaxed) + 1;
            seen.peak.fetch_max(open, Relaxed);
            std::thread::spawn(move || {
                // Whatever breaks a connection ends it.
                let _ = converse(&stream, act, times, &seen);
                seen.open.fetch_sub(1, Relaxed);
            });
        }
    });
    (address, seen)
}

/// Answers the requests of a connection; none if it is to be closed.
fn converse(stream: &TcpStream, act: Act, times: usize, seen: &Seen) -> Option<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let length = read_head(&mut reader)?;
        let act = match seen.requests.fetch_add(1, Relaxed) {
            before if before < times => act,
            _ => Say(ACCEPTED),
        };
        if matches!(act, Reset) {
            let socket = socket2::SockRef::from(stream);
            return socket.set_linger(Some(Duration::ZERO)).ok();
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
        match act {
            Status(status, headers) => {
                write!(writer, "HTTP/1.1 {status} X\r\n{headers}Content-Length: 0\r\n\r\n").ok()?;
            }
            Say(answer) => writer.write_all(answer.as_bytes()).ok()?,
            SayAndClose(answer) => return writer.write_all(answer.as_bytes()).ok(),
            Silence => return reader.read(&mut [0]).ok().map(drop),
            Drip => {
                let head = "HTTP/1.1 202 Accepted\r\nContent-Length: 100000\r\n\r\n";
                writer.write_all(head.as_bytes()).ok()?;
                loop {
                    writer.write_all(b" ").ok()?;
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
            Reset => {}
        }
    }
}

/// Reads the head of a request and gives back the length of its body.
fn read_head(reader: &mut impl BufRead) -> Option<usize> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.is_empty() {
            return Some(length);
        }
    }
}

fn launch(url: &str) -> Launch {
    Launch::new()
        .env("DD_API_KEY", KEY)
        .env("DD_DD_URL", url)
        .env("DD_HOSTNAME", "own")
        .set("sinks.datadog.validate_key", "false")
        .set("sinks.datadog.http.silence_timeout", "2")
        .set("sinks.spool.max_disk_ratio", "1")
        .listen(&[UDP])
}

fn own(tallyd: &Tallyd, name: &str) -> f64 {
    figure(tallyd, "datadog", name)
}

/// Runs one row, and returns what is to be told of it.
fn run(name: &str, act: Act, times: usize, then: &Then) -> String {
    let (address, seen) = intake(act, times);
    let tallyd = launch(&format!("http://{address}")).start();
    let begun = Instant::now();
    tallyd.send(["g0:0|g\ng1:1|g\ng2:2|g"]);
    tallyd.wait_until(&format!("{name}: it is decided"), |tallyd| {
        own(tallyd, "delivered_points_total") + own(tallyd, "dropped_points_total") == POINTS
    });
    let took = begun.elapsed();
    assert_conserved(&tallyd, "datadog");
    let [offered, delivered, retries, spooled, held] = [
        "offered_points_total",
        "delivered_points_total",
        "retries_total",
        "spooled_points",
        "held_points",
    ]
    .map(|name| own(&tallyd, name));
    let refused = tallyd.figure("tallyd_sink_dropped_points_total", "cause=\"refused\"");
    let dropped = own(&tallyd, "dropped_points_total");
    let requests = seen.requests.load(Relaxed);
    let log = tallyd.stderr();
    let (expected, said) = match *then {
        Delivered => ((POINTS, 0.0, 0.0, 1), ""),
        Retried(cause, _) => ((POINTS, 0.0, 1.0, 2), cause),
        Split => ((POINTS, 0.0, 0.0, 3), ""),
        // Each 413 is answered by two halves, down to single series.
        Refused(cause) if cause.contains("413") => ((0.0, POINTS, 0.0, 5), cause),
        Refused(cause) => ((0.0, POINTS, 0.0, 1), cause),
    };
    assert_eq!((offered, spooled, held), (POINTS, 0.0, 0.0), "{name}\n{log}");
    assert_eq!((delivered, refused, retries, requests), expected, "{name}\n{log}");
    assert_eq!(dropped, refused, "{name}: no other cause");
    assert!(log.contains(said), "{name}: {said:?} is not in\n{log}");
    assert_eq!(log.contains("WARN"), !said.is_empty(), "{name}\n{log}");
    if let Retried(_, after) = *then {
        assert!(took >= Duration::from_secs(after), "{name}: after {took:?}");
    }

    // Whatever it was, it is over, or concerns that payload alone.
    if !matches!(then, Refused(_)) {
        tallyd.send(["g3:3|g"]);
        tallyd.wait_until(&format!("{name}: the next is delivered"), |tallyd| {
            own(tallyd, "delivered_points_total") == POINTS + 1.0
        });
        assert_conserved(&tallyd, "datadog");
    }
    let peak = seen.peak.load(Relaxed);
    assert!(peak <= 2, "{name}: {peak} sockets");
    tallyd.stop();
    format!(
        "{delivered} delivered, {refused} refused, {retries} retries, {requests} requests, \
         {peak} sockets, {:.1} s",
        took.as_secs_f64()
    )
}

/// Runs rows at the same time, and prints what became of each.
fn run_all<'a>(rows: impl Iterator<Item = (&'a str, Box<dyn FnOnce() -> String + Send + 'a>)>) {
    std::thread::scope(|scope| {
        let running: Vec<_> = rows.map(|(name, row)| (name, scope.spawn(row))).collect();
        for (name, row) in running {
            match row.join() {
                Ok(outcome) => println!("{name:<32} {outcome}"),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
}

#[test]
fn the_table_of_faults() {
    run_all(TABLE.iter().map(|(name, act, times, then)| {
        let row = move || run(name, *act, *times, then);
        (*name, Box::new(row) as Box<dyn FnOnce() -> String + Send>)
    }));
}

/// Runs against an address to which nothing gets through, and returns how soon that was said.
fn unreachable(name: &str, launch: Launch, cause: &str) -> String {
    let tallyd = launch.start();
    let begun = Instant::now();
    tallyd.send(["g0:0|g\ng1:1|g\ng2:2|g"]);
    tallyd.wait_for_stderr("fails: ");
    let took = begun.elapsed();
    tallyd.wait_until(&format!("{name}: it is tried again"), |tallyd| {
        own(tallyd, "retries_total") >= 2.0
    });
    let log = tallyd.stderr();
    assert!(log.contains(cause), "{name}: {cause:?} is not in\n{log}");
    assert_eq!(log.matches("fails: ").count(), 1, "{name}: said once\n{log}");
    assert_eq!(own(&tallyd, "spooled_points"), POINTS, "{name}\n{log}");
    assert_eq!(own(&tallyd, "dropped_points_total"), 0.0, "{name}\n{log}");
    assert_conserved(&tallyd, "datadog");
    let (retries, passed) = (own(&tallyd, "retries_total"), begun.elapsed().as_secs_f64());
    assert!(retries <= passed + 1.0, "{name}: {retries} tries in {passed} s");
    let finished = tallyd.stop();
    assert!(finished.stderr.contains("3 points for http"), "{}", finished.stderr);
    format!("{POINTS} spooled, {retries} retries, said after {:.1} s", took.as_secs_f64())
}

#[test]
fn no_name_and_no_route() {
    const NAME: &str = "no_name_and_no_route";
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(reason) => return println!("SKIP {NAME}: {reason}"),
    };
    let rows = [
        ("no DNS", "http://intake.invalid", "failed to lookup address information"),
        ("no route", "http://192.0.2.1", "Network is unreachable"),
        ("no listener", "http://127.0.0.1:9", "Connection refused"),
    ];
    run_all(rows.into_iter().map(|(name, url, cause)| {
        let namespace = &namespace;
        let row = move || namespace.enter(|| unreachable(name, launch(url), cause)).unwrap();
        (name, Box::new(row) as Box<dyn FnOnce() -> String + Send>)
    }));
}

/// An authority, and a server's certificate of its making.
struct Certificates {
    authority: String,
    server: rustls::ServerConfig,
}

fn certificates(expired: bool) -> Certificates {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = authority.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(authority, key);
    let mut server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    if expired {
        server.not_after = date_time_ymd(2024, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = server.signed_by(&key, &issuer).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    Certificates { authority: pem, server }
}

/// An intake behind TLS. Its port.
fn secure_intake(server: rustls::ServerConfig) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Arc::new(server);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream.unwrap());
            let mut answer = || {
                let mut reader = BufReader::new(&mut stream);
                let length = read_head(&mut reader)?;
                reader.read_exact(&mut vec![0; length]).ok()?;
                stream
                    .write_all(b"HTTP/1.1 202 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                    .ok()
            };
            answer();
        }
    });
    port
}

fn trusting(authority: &str, port: u16, folder: &Path) -> Launch {
    let file = folder.join("authority.pem");
    std::fs::write(&file, authority).unwrap();
    launch(&format!("https://localhost:{port}")).env("SSL_CERT_FILE", file.to_str().unwrap())
}

#[test]
fn a_certificate_that_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let Certificates { authority, server } = certificates(true);
    let launch = trusting(&authority, secure_intake(server), folder.path());
    println!("{:<32} {}", "expired", unreachable("expired", launch, "certificate expired"));

    let Certificates { authority, server } = certificates(false);
    let tallyd = trusting(&authority, secure_intake(server), folder.path()).start();
    tallyd.send(["g0:0|g\ng1:1|g\ng2:2|g"]);
    tallyd.wait_until("another is taken", |tallyd| own(tallyd, "delivered_points_total") == POINTS);
    assert_conserved(&tallyd, "datadog");
    tallyd.stop();
}
