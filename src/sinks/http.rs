//! The HTTP client that sinks share.
//!
//! What ends a wait: a connection must stand in time, its name looked up and its TLS handshake
//! done; a peer that is gone is noticed by TCP, by keepalive while nothing is sent and by its user
//! timeout while something is; and a peer that is alive but neither takes nor gives a byte is given
//! up after a while of silence. A large payload on a slow line takes as long as it needs.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{anyhow, bail};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::tls::Version;
use reqwest::{
    Body, Certificate, Client, ClientBuilder, NoProxy, Proxy, RequestBuilder, Response, redirect,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::dns::{self, Names};
use crate::telemetry::Telemetry;

/// How sinks reach out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds until a connection must stand: name, TCP, proxy and TLS handshake.
    pub connect_timeout: u64,
    /// Seconds for a whole request; 0 sets no bound.
    pub timeout: u64,
    /// Seconds in which a peer takes nothing of a request and does not begin its answer, after
    /// which it is given up; 0 sets no bound.
    pub silence_timeout: u64,
    /// Seconds of silence after which TCP asks whether the peer is there; 0 never asks.
    pub keepalive_time: u64,
    /// Seconds between two such questions.
    pub keepalive_interval: u64,
    /// Such questions without an answer, after which the peer is gone.
    pub keepalive_probes: u32,
    /// Seconds that sent bytes may go unacknowledged, after which the peer is gone; 0 leaves it to
    /// the system.
    pub user_timeout: u64,
    /// Proxy for http:// destinations; empty takes HTTP_PROXY of the environment.
    pub proxy_http: String,
    /// Proxy for https:// destinations; empty takes HTTPS_PROXY of the environment.
    pub proxy_https: String,
    /// Hosts, with all their subdomains, and networks that are reached without a proxy; empty takes
    /// NO_PROXY of the environment.
    pub no_proxy: Vec<String>,
    /// Accept any certificate. Dangerous.
    pub skip_ssl_validation: bool,
    /// The oldest version of TLS that is used: tlsv1.2 or tlsv1.3.
    pub min_tls_version: String,
    pub dns: dns::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: 10,
            timeout: 0,
            silence_timeout: 60,
            keepalive_time: 1,
            keepalive_interval: 1,
            keepalive_probes: 3,
            user_timeout: 4,
            proxy_http: String::new(),
            proxy_https: String::new(),
            no_proxy: Vec::new(),
            skip_ssl_validation: false,
            min_tls_version: "tlsv1.2".to_owned(),
            dns: dns::Config::default(),
        }
    }
}

/// A client by these settings. Redirects are not followed: a payload goes where it was told to go.
///
/// The certificates trusted are the system's, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`; on a
/// machine that has none, Mozilla's as they were when this program was built.
///
/// # Errors
///
/// One line that begins with the name of the setting that cannot be used.
pub fn client(config: &Config, telemetry: &Arc<Telemetry>) -> anyhow::Result<Client> {
    // Whoever came first has installed a provider that serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let proxies = proxies(config, |name| std::env::var(name).ok())?;
    let tls = tls_version_min(&config.min_tls_version)?;
    // Two ways of looking up and the connection have a share each.
    let limit = Duration::from_secs(config.connect_timeout) / 3;
    let names = Names::new(&config.dns, limit, dns::system, telemetry)?;
    let builder = builder(config, &proxies, tls, Arc::new(names));
    build(builder).map_err(|error| anyhow!("client: {}", cause(error)))
}

/// The builder is a function since it is used twice: reading the system's certificates fails when
/// there are none, whether or not a certificate is going to be needed.
fn build(builder: impl Fn() -> ClientBuilder) -> reqwest::Result<Client> {
    builder().build().or_else(|_| {
        let bundled = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
        let bundled: Result<Vec<_>, _> = bundled.map(|der| Certificate::from_der(der)).collect();
        let client = builder().tls_certs_only(bundled?).build()?;
        warn!(
            "no certificate authorities on this machine: the bundled ones are used; install \
             ca-certificates or set SSL_CERT_FILE"
        );
        Ok(client)
    })
}

fn builder(
    config: &Config,
    proxies: &[Proxy],
    tls: Version,
    names: Arc<impl Resolve + 'static>,
) -> impl Fn() -> ClientBuilder {
    let seconds = Duration::from_secs;
    let some = move |time: u64| (time > 0).then(|| seconds(time));
    move || {
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .tcp_keepalive(some(config.keepalive_time))
            .tcp_keepalive_interval(some(config.keepalive_interval))
            .tcp_keepalive_retries(config.keepalive_probes)
            .tcp_user_timeout(some(config.user_timeout))
            .connect_timeout(seconds(config.connect_timeout))
            .dns_resolver(Arc::clone(&names))
            .tls_version_min(tls)
            .tls_danger_accept_invalid_certs(config.skip_ssl_validation)
            .no_proxy();
        if config.timeout > 0 {
            builder = builder.timeout(seconds(config.timeout));
        }
        proxies.iter().cloned().fold(builder, ClientBuilder::proxy)
    }
}

fn tls_version_min(word: &str) -> anyhow::Result<Version> {
    match word {
        "tlsv1.2" => Ok(Version::TLS_1_2),
        "tlsv1.3" => Ok(Version::TLS_1_3),
        _ => bail!("min_tls_version: {word:?} is neither tlsv1.2 nor tlsv1.3"),
    }
}

/// The proxies of the settings, or of the environment for those that are empty.
fn proxies(
    config: &Config,
    environment: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<Vec<Proxy>> {
    let first = |setting: &str, names: &[&str]| {
        let set = names.iter().filter_map(|name| environment(name));
        let mut all = std::iter::once(setting.to_owned()).chain(set);
        all.find(|address| !address.is_empty())
    };
    let no_proxy = first(&config.no_proxy.join(","), &["NO_PROXY", "no_proxy"]);
    let no_proxy = no_proxy.and_then(|list| NoProxy::from_string(&list));
    let all = ["ALL_PROXY", "all_proxy"];
    let http = first(&config.proxy_http, &["HTTP_PROXY", "http_proxy", all[0], all[1]]);
    let https = first(&config.proxy_https, &["HTTPS_PROXY", "https_proxy", all[0], all[1]]);
    // The address may hold a password: no error repeats it.
    let http = http.map(|address| Proxy::http(address).map_err(|e| ("proxy_http", e)));
    let https = https.map(|address| Proxy::https(address).map_err(|e| ("proxy_https", e)));
    let proxies = http.into_iter().chain(https);
    proxies
        .map(|proxy| match proxy {
            Ok(proxy) => Ok(proxy.no_proxy(no_proxy.clone())),
            Err((setting, error)) => Err(anyhow!("{setting}: {}", cause(error))),
        })
        .collect()
}

/// Sends a request with this body.
///
/// # Errors
/// With the cause in one line; also when the peer takes nothing and says nothing for `silence`,
/// unless that is zero. Bytes count as taken once the kernel has them.
pub async fn send(
    request: RequestBuilder,
    body: Vec<u8>,
    silence: Duration,
) -> Result<Response, String> {
    let left = Arc::new(AtomicUsize::new(body.len()));
    let body = Pieces { rest: Bytes::from(body), left: Arc::clone(&left) };
    let sending = request.body(Body::wrap(body)).send();
    if silence.is_zero() {
        return sending.await.map_err(cause);
    }
    tokio::pin!(sending);
    loop {
        let before = left.load(Relaxed);
        match tokio::time::timeout(silence, &mut sending).await {
            Ok(sent) => return sent.map_err(cause),
            Err(_) if left.load(Relaxed) == before => {
                return Err(format!("no answer within {} s", silence.as_secs_f64()));
            }
            Err(_) => {}
        }
    }
}

/// Bytes that are handed to the kernel at a time.
const PIECE: usize = 16 * 1024;

/// A body that tells how much of it is left.
struct Pieces {
    rest: Bytes,
    left: Arc<AtomicUsize>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        self.left.store(self.rest.len(), Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

impl<L, F> Resolve for Names<L>
where
    L: Fn(String) -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
{
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.addresses(name.as_str());
        Box::pin(async move { Ok(Box::new(addresses.await?.into_iter()) as Addrs) })
    }
}

/// Bytes of a cause that are kept.
const CAUSE_MAX: usize = 300;

/// Why a request failed, as one short line: the chain of errors, without any URL of ours.
pub fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut parts = vec![error.to_string()];
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        let part = error.to_string();
        // Some errors repeat what they were caused by.
        if parts.iter().all(|known| !known.contains(&part)) {
            parts.push(part);
        }
        source = error.source();
    }
    let mut line = parts.join(": ").replace(['\n', '\r'], " ");
    line.truncate(line.floor_char_boundary(CAUSE_MAX));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_settings_make_a_client() {
        let telemetry = Arc::default();
        client(&Config::default(), &telemetry).unwrap();
        let dns = dns::Config { fallback: vec!["127.0.0.1".to_owned()] };
        client(&Config { skip_ssl_validation: true, dns, ..Config::default() }, &telemetry)
            .unwrap();
    }

    #[test]
    fn the_bundled_certificates_serve_where_the_system_has_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config::default();
        // Not a certificate: building fails, as it does without any.
        let limit = Duration::from_secs(1);
        let names = Names::new(&config.dns, limit, dns::system, &Arc::default()).unwrap();
        let builder = builder(&config, &[], Version::TLS_1_2, Arc::new(names));
        let builds = std::cell::Cell::new(0);
        let failing_first = || {
            builds.set(builds.get() + 1);
            let broken = Certificate::from_der(b"broken").unwrap();
            if builds.get() == 1 { builder().tls_certs_only([broken]) } else { builder() }
        };
        build(failing_first).unwrap();
        assert_eq!(builds.get(), 2);
        assert!(webpki_root_certs::TLS_SERVER_ROOT_CERTS.len() > 50);
    }

    #[test]
    fn unusable_settings_are_named_without_their_secrets() {
        for (config, expected) in [
            (
                Config { min_tls_version: "tls9".to_owned(), ..Config::default() },
                "min_tls_version: \"tls9\" is neither tlsv1.2 nor tlsv1.3",
            ),
            (
                Config { proxy_http: "http://u:secret@:x".to_owned(), ..Config::default() },
                "proxy_http: ",
            ),
            (
                Config { proxy_https: "http://u:secret@[".to_owned(), ..Config::default() },
                "proxy_https: ",
            ),
            (
                Config { dns: dns::Config { fallback: vec!["x".to_owned()] }, ..Config::default() },
                "dns.fallback: \"x\" is neither IP nor IP:PORT",
            ),
        ] {
            let error = format!("{:#}", client(&config, &Arc::default()).unwrap_err());
            assert!(error.starts_with(expected), "{error}");
            assert!(!error.contains("secret") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn versions_of_tls() {
        for (word, version) in [("tlsv1.2", Version::TLS_1_2), ("tlsv1.3", Version::TLS_1_3)] {
            assert_eq!(tls_version_min(word).unwrap(), version);
        }
    }

    #[test]
    fn settings_come_before_the_environment() {
        let environment = |name: &str| match name {
            "HTTP_PROXY" => Some(String::new()),
            "http_proxy" => Some("http://env-http:1".to_owned()),
            "ALL_PROXY" => Some("http://env-all:2".to_owned()),
            "NO_PROXY" => Some("env.none".to_owned()),
            _ => None,
        };
        let with = |http: &str, https: &str, none: &[&str]| Config {
            proxy_http: http.to_owned(),
            proxy_https: https.to_owned(),
            no_proxy: none.iter().map(|n| (*n).to_owned()).collect(),
            ..Config::default()
        };
        let table = |config: &Config, environment: &dyn Fn(&str) -> Option<String>| {
            let proxies = proxies(config, environment).unwrap();
            proxies.iter().map(|proxy| format!("{proxy:?}")).collect::<Vec<_>>()
        };
        let own = with("http://own-http:3", "http://own-https:4", &["own.none", "10.0.0.0/8"]);
        for (config, environment, expected) in [
            (&with("", "", &[]), &(|_: &str| None) as &dyn Fn(&str) -> _, [].as_slice()),
            (
                &with("", "", &["own.none"]),
                &environment,
                &[["env-http", "own.none"], ["env-all", "own.none"]],
            ),
            (
                &own,
                &environment,
                &[["own-http", "own.none,10.0.0.0/8"], ["own-https", "own.none,10.0.0.0/8"]],
            ),
            (
                &with("http://own-http:3", "", &[]),
                &environment,
                &[["own-http", "env.none"], ["env-all", "env.none"]],
            ),
        ] {
            let table = table(config, environment);
            assert_eq!(table.len(), expected.len());
            for (proxy, parts) in table.iter().zip(expected) {
                assert!(parts.iter().all(|part| proxy.contains(part)), "{proxy}: {parts:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_only_the_fallback_knows_is_reached() {
        use std::io::{Read, Write};
        let url = peer(|mut stream| {
            let _ = stream.read(&mut [0; 1000]);
            stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").unwrap();
        });
        let server = dns::tests::server(dns::tests::Answer::V4([127, 0, 0, 1]));
        let config = dns::Config { fallback: vec![server] };
        let lookup = dns::tests::failing;
        let names = Names::new(&config, Duration::from_secs(5), lookup, &Arc::default()).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().dns_resolver(Arc::new(names)).build().unwrap();
        let url = url.replace("127.0.0.1", "intake.example");
        let sent = send(client.post(url), Vec::new(), Duration::from_secs(9)).await;
        assert_eq!(sent.unwrap().status(), 202);
    }

    /// A peer that does with its one connection what it is told to.
    fn peer(act: impl FnOnce(std::net::TcpStream) + Send + 'static) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || act(listener.accept().unwrap().0));
        url
    }

    async fn post(url: &str, silence: Duration) -> Result<reqwest::StatusCode, String> {
        let config = Config { no_proxy: vec!["127.0.0.1".to_owned()], ..Config::default() };
        let client = client(&config, &Arc::default()).unwrap();
        // More than the kernel takes without a reader.
        let sent = send(client.post(url), vec![0; 16 << 20], silence).await;
        sent.map(|response| response.status())
    }

    #[tokio::test]
    async fn a_peer_that_says_nothing_is_given_up() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let url = peer(move |stream| {
            let _ = held.recv();
            drop(stream);
        });
        let given_up = post(&url, Duration::from_millis(50)).await;
        assert_eq!(given_up.unwrap_err(), "no answer within 0.05 s");
        drop(release);
    }

    #[tokio::test]
    async fn a_peer_that_takes_its_time_is_not() {
        use std::io::{Read, Write};
        let url = peer(|mut stream| {
            let mut left = 16 << 20;
            let mut piece = vec![0; 256 << 10];
            while left > 0 {
                let read = stream.read(&mut piece).unwrap();
                left -= read.min(left);
                // In all longer than the silence that is allowed.
                let pause = std::sync::mpsc::channel::<()>();
                let _ = pause.1.recv_timeout(Duration::from_millis(8));
            }
            stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").unwrap();
        });
        assert_eq!(post(&url, Duration::from_millis(400)).await.unwrap(), 202);
    }

    #[tokio::test]
    async fn a_reset_in_the_middle_is_an_error() {
        use std::io::Read;
        let url = peer(|mut stream| {
            let _ = stream.read(&mut [0; 1000]);
        });
        post(&url, Duration::from_secs(9)).await.unwrap_err();
    }
}
