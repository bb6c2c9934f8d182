//! An intake behind TLS and a proxy: which versions are spoken, whose certificate is taken, and how
//! a proxy is asked.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion};

use super::process::{KEY, Launch, Tallyd, UDP};
use super::test_intake::Intake;

/// A key made for this test and nothing else, and its own certificate for `intake.example`:
/// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500
/// -subj /CN=intake.example -addext subjectAltName=DNS:intake.example
/// -addext basicConstraints=critical,CA:FALSE`.
const CERTIFICATE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/conformance/tls/intake.example.cert.pem");
const PRIVATE_KEY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/conformance/tls/intake.example.key.pem");

/// Serves each connection in a thread of its own, until the test process ends.
pub fn serve(act: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let act = Arc::new(act);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let act = Arc::clone(&act);
            // What a client breaks off is its own affair.
            std::thread::spawn(move || drop(act(stream.unwrap())));
        }
    });
    address
}

/// An intake that speaks one version of TLS, and takes whatever it is sent.
fn intake(version: &'static SupportedProtocolVersion) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(CERTIFICATE).unwrap()],
            PrivateKeyDer::from_pem_file(PRIVATE_KEY).unwrap(),
        );
    let config = Arc::new(config.unwrap());
    serve(move |stream| {
        let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut stream = BufReader::new(StreamOwned::new(tls, stream));
        while let Some(head) = head(&mut stream)? {
            let length = head.iter().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
            });
            io::copy(&mut stream.by_ref().take(length.unwrap_or(0)), &mut io::sink())?;
            let status = if head[0].starts_with("GET ") { 200 } else { 202 };
            let answer = format!("HTTP/1.1 {status} Fine\r\nContent-Length: 0\r\n\r\n");
            stream.get_mut().write_all(answer.as_bytes())?;
        }
        Ok(())
    })
}

/// The lines before the empty one; none at the end of the stream.
pub fn head(stream: &mut impl BufRead) -> io::Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => return Ok(Some(lines)),
            line => lines.push(line.to_owned()),
        }
    }
}

/// A proxy by which every host is at this address, and what it is asked.
fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let log = Arc::clone(&asked);
    let address = serve(move |mut client| {
        let mut from_client = BufReader::new(client.try_clone()?);
        let Some(head) = head(&mut from_client)? else { return Ok(()) };
        log.lock().unwrap().push(head.join("\n"));
        let mut server = TcpStream::connect(to)?;
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        let (mut to_client, mut from_server) = (client, server.try_clone()?);
        std::thread::spawn(move || io::copy(&mut from_server, &mut to_client));
        io::copy(&mut from_client, &mut server).map(drop)
    });
    (address, asked)
}

fn launch(proxy: SocketAddr) -> Launch {
    Launch::new()
        .listen(&[UDP])
        .env("DD_API_KEY", KEY)
        .env("DD_DD_URL", "https://intake.example")
        .env("DD_PROXY_HTTPS", &format!("http://user:password@{proxy}"))
        .env("SSL_CERT_FILE", CERTIFICATE)
}

fn delivered(tallyd: &Tallyd) -> f64 {
    tallyd.figure("tallyd_sink_delivered_points_total", "datadog")
}

#[test]
fn the_oldest_version_of_tls_is_a_setting() {
    for (version, oldest, spoken) in [
        (&TLS12, "tlsv1.2", true),
        (&TLS13, "tlsv1.2", true),
        (&TLS13, "tlsv1.3", true),
        (&TLS12, "tlsv1.3", false),
    ] {
        let (proxy, asked) = proxy(intake(version));
        let tallyd = launch(proxy).env("DD_MIN_TLS_VERSION", oldest).start();
        tallyd.send(["g:1|g"]);
        if spoken {
            tallyd.wait_until("it is delivered", |tallyd| delivered(tallyd) == 1.0);
        } else {
            tallyd.wait_until("it fails", |tallyd| {
                tallyd.figure("tallyd_sink_retries_total", "datadog") >= 1.0
            });
            tallyd.wait_for_stderr("received fatal alert: ProtocolVersion");
            assert_eq!(delivered(&tallyd), 0.0);
        }
        // What the proxy is told besides where to: who asks.
        let asked = asked.lock().unwrap().join("\n");
        assert!(asked.starts_with("CONNECT intake.example:443 HTTP/1.1\n"), "{asked}");
        assert!(asked.to_lowercase().contains("proxy-authorization: basic "), "{asked}");
        assert!(!asked.contains(KEY), "{asked}");
    }
}

#[test]
fn a_certificate_that_nobody_vouches_for_is_refused() {
    let (proxy, _) = proxy(intake(&TLS13));
    let tallyd = launch(proxy).env("SSL_CERT_FILE", "/nonexistent").start();
    tallyd.send(["g:1|g"]);
    tallyd.wait_for_stderr("invalid peer certificate: UnknownIssuer");
    assert_eq!(delivered(&tallyd), 0.0);
    tallyd.stop();

    let launch = launch(proxy).env("SSL_CERT_FILE", "/nonexistent");
    let tallyd = launch.env("DD_SKIP_SSL_VALIDATION", "true").start();
    tallyd.send(["g:1|g"]);
    tallyd.wait_until("it is delivered", |tallyd| delivered(tallyd) == 1.0);
}

#[test]
fn proxies_of_the_environment() {
    let intake = Intake::start();
    let arrives = |launch: Launch, path: &str| {
        let before = intake.requests().len();
        let tallyd = launch.listen(&[UDP]).env("DD_API_KEY", KEY).start();
        tallyd.send(["g:1|g"]);
        tallyd.wait_until("it is delivered", |tallyd| delivered(tallyd) == 1.0);
        let requests = intake.requests();
        assert!(requests[before..].iter().any(|r| r.path == path), "{requests:#?}");
    };
    // A proxy for HTTP is given the whole address.
    let whole = "http://intake.example/api/v2/series";
    for name in ["HTTP_PROXY", "http_proxy", "DD_PROXY_HTTP", "ALL_PROXY"] {
        let launch = Launch::new().env("DD_DD_URL", "http://intake.example");
        arrives(launch.env(name, &intake.url), whole);
    }
    // The Agent's own comes first, and some hosts need none.
    let launch = Launch::new().env("DD_DD_URL", "http://intake.example");
    arrives(
        launch.env("DD_PROXY_HTTP", &intake.url).env("HTTP_PROXY", "http://127.0.0.1:1"),
        whole,
    );
    let launch = Launch::new().env("DD_DD_URL", &intake.url);
    arrives(
        launch.env("HTTP_PROXY", "http://127.0.0.1:1").env("NO_PROXY", "127.0.0.1"),
        "/api/v2/series",
    );
}
