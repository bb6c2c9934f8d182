//! The client of the engine's API: over a Unix socket or TCP with TLS, each call with a deadline.
//!
//! HTTP and TLS are the sinks' own library. A ready-made client of the Docker API was read and left
//! out: its types refuse a whole list, and end a stream of events, for a single word that is not in
//! its tables, and Podman and newer engines send such words.
//!
//! After a failure calls are refused for a while without asking the engine, so that one that hangs
//! is not buried under more calls.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::{Certificate, Client, Identity, Response, Url, redirect};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::api::{self, Refusal};
use super::config::Config;

/// The newest version of the API that is known to be understood, and the oldest.
const NEWEST: Version = Version(1, 53);
const OLDEST: Version = Version(1, 24);

/// Bytes of an answer; a list of 10 000 containers stays below.
const ANSWER_MAX: usize = 64 << 20;

/// Bytes of one event; a longer one is left out.
const EVENT_MAX: usize = 1 << 20;

/// The longest rest after failures.
const REST_MAX: Duration = Duration::from_secs(15);

/// Where sockets of engines usually are; `/host` is where a container mounts its host.
const SOCKETS: [&str; 8] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/host/var/run/docker.sock",
    "/host/run/docker.sock",
    "/run/podman/podman.sock",
    "/var/run/podman/podman.sock",
    "/host/run/podman/podman.sock",
    "/host/var/run/podman/podman.sock",
];

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("{status}: {message}")]
    Refused { status: u16, message: String },
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// Not asked, because of this failure shortly before.
    #[error("{0}")]
    Resting(String),
}

impl EngineError {
    /// The container, or whatever was asked for, is not there.
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The engine as a whole is not well.
    const fn is_general(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Late(_) => true,
            Self::Refused { status, .. } => *status >= 500,
            Self::Unreadable(_) | Self::Resting(_) => false,
        }
    }
}

/// Where the engine listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
    /// The same with TLS.
    Tls(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
            Self::Tls(host) => write!(f, "https://{host}"),
        }
    }
}

/// Finds the engine: by the setting, by DOCKER_HOST, or at the usual places. `None` when nothing is
/// set and no socket is there.
///
/// # Errors
///
/// An address that is none.
pub fn address(
    config: &Config,
    variable: impl Fn(&str) -> Option<String>,
    exists: impl Fn(&Path) -> bool,
) -> Result<Option<Address>, String> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let url = Some(config.url.clone()).filter(|url| !url.is_empty()).or_else(|| set("DOCKER_HOST"));
    let Some(url) = url else {
        let runtime = set("XDG_RUNTIME_DIR").map(PathBuf::from);
        let own = ["docker.sock", "podman/podman.sock"];
        let own = runtime.into_iter().flat_map(|dir| own.map(|name| dir.join(name)));
        let mut sockets = SOCKETS.iter().map(PathBuf::from).chain(own);
        return Ok(sockets.find(|path| exists(path)).map(Address::Unix));
    };
    let tls = config.tls || set("DOCKER_TLS_VERIFY").is_some();
    let (scheme, rest) = url.split_once("://").unwrap_or(("unix", &url));
    let host = rest.trim_end_matches('/').to_owned();
    Ok(Some(match scheme {
        // dd-agent's own example has but two slashes.
        "unix" if !rest.is_empty() => Address::Unix(Path::new("/").join(rest)),
        "tcp" | "http" if !host.is_empty() && !tls => Address::Tcp(host),
        "tcp" | "https" if !host.is_empty() => Address::Tls(host),
        _ => return Err(format!("{url:?} is neither unix:///path nor tcp://host:port")),
    }))
}

/// A version of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u16, u16);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().trim_start_matches('v').split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// The client.
#[derive(Debug)]
pub struct Engine {
    client: Client,
    base: String,
    deadline: Duration,
    /// Set by the configuration.
    pinned: Option<Version>,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// Agreed on with the engine that answered last.
    version: Option<Version>,
    failures: u32,
    failure: String,
    rests_until: Option<Instant>,
}

impl Engine {
    /// # Errors
    ///
    /// A certificate or a version that cannot be used.
    pub fn new(
        config: &Config,
        address: &Address,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        // Whoever came first has installed a provider that serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .connect_timeout(Duration::from_secs(config.timeout));
        let (builder, base) = match address {
            // TLS is not used then; with no authorities none have to be found.
            Address::Unix(path) => {
                (builder.unix_socket(path.as_path()).tls_certs_only([]), "http://engine".to_owned())
            }
            Address::Tcp(host) => (builder.tls_certs_only([]), format!("http://{host}")),
            Address::Tls(host) => (with_tls(builder, config, variable)?, format!("https://{host}")),
        };
        let pinned = pinned_version(config)?;
        Ok(Self {
            client: builder.build().map_err(|error| cause(&error))?,
            base,
            deadline: Duration::from_secs(config.timeout),
            pinned,
            health: Mutex::default(),
        })
    }

    /// One object.
    pub async fn object<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<T, EngineError> {
        let bytes = self.get(path, query, self.deadline).await?;
        serde_json::from_slice(&bytes).map_err(|error| EngineError::Unreadable(error.to_string()))
    }

    /// One object that takes the engine long to make; being late says nothing about its health.
    pub async fn slow_object<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        deadline: Duration,
    ) -> Result<T, EngineError> {
        let bytes = self.get(path, query, deadline).await?;
        serde_json::from_slice(&bytes).map_err(|error| EngineError::Unreadable(error.to_string()))
    }

    /// A list, without the entries that cannot be read.
    pub async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, String)],
        deadline: Option<Duration>,
    ) -> Result<Vec<T>, EngineError> {
        let bytes = self.get(path, query, deadline.unwrap_or(self.deadline)).await?;
        let list = api::list(&bytes).map_err(|error| EngineError::Unreadable(error.to_string()));
        list.map(|(entries, _)| entries)
    }

    /// The stream of events.
    pub async fn events(&self, query: &[(&str, String)]) -> Result<EventStream, EngineError> {
        self.check_rest()?;
        let opened = timeout(self.deadline, async {
            let url = self.url(self.version().await?, "/events", query)?;
            let response = self.client.get(url).send().await.map_err(unreachable)?;
            self.accepted(response).await
        });
        let result = opened.await.unwrap_or(Err(EngineError::Late(self.deadline)));
        self.remember(result.as_ref().err());
        Ok(EventStream { response: result?, buffer: Vec::new(), read: 0, skips: false })
    }

    async fn get(
        &self,
        path: &str,
        query: &[(&str, String)],
        deadline: Duration,
    ) -> Result<Vec<u8>, EngineError> {
        self.check_rest()?;
        let asked = timeout(deadline, async {
            let url = self.url(self.version().await?, path, query)?;
            let response = self.client.get(url).send().await.map_err(unreachable)?;
            body(self.accepted(response).await?).await
        });
        let result = asked.await.unwrap_or(Err(EngineError::Late(deadline)));
        let is_slow = deadline > self.deadline;
        let excused = is_slow && matches!(result, Err(EngineError::Late(_)));
        if !excused {
            self.remember(result.as_ref().err());
        }
        result
    }

    async fn accepted(&self, response: Response) -> Result<Response, EngineError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = body(response).await.unwrap_or_default();
        let refusal: Refusal = serde_json::from_slice(&text).unwrap_or_default();
        if status.as_u16() == 400 && refusal.message.contains("version") {
            // Another engine answers than the one that was asked for its version.
            self.health().version = None;
        }
        Err(EngineError::Refused { status: status.as_u16(), message: refusal.message })
    }

    /// The version to speak: the engine's or ours, whichever is older.
    async fn version(&self) -> Result<Version, EngineError> {
        let known = self.pinned.or(self.health().version);
        match known {
            Some(version) => Ok(version),
            None => self.agree().await,
        }
    }

    /// Has the version agreed on anew with whoever answers next.
    pub fn forget_version(&self) {
        self.health().version = None;
    }

    /// Asks the engine whether it is there, and which version of the API to speak with it.
    ///
    /// # Errors
    ///
    /// It does not answer, or not within the time that a call may take.
    pub async fn ping(&self) -> Result<Version, EngineError> {
        timeout(self.deadline, self.agree()).await.unwrap_or(Err(EngineError::Late(self.deadline)))
    }

    async fn agree(&self) -> Result<Version, EngineError> {
        let url = Url::parse(&format!("{}/_ping", self.base)).map_err(unreadable)?;
        let response = self.client.get(url).send().await.map_err(unreachable)?;
        let header = response.headers().get("Api-Version").and_then(|value| value.to_str().ok());
        let engine = header.and_then(Version::parse);
        if let Err(error) = self.accepted(response).await {
            // Some proxies in front of an engine do not let it pass.
            if error.is_general() {
                return Err(error);
            }
        }
        let version = engine.map_or(OLDEST, |engine| engine.min(NEWEST));
        self.health().version = Some(version);
        Ok(version)
    }

    fn url(
        &self,
        version: Version,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Url, EngineError> {
        let url = format!("{}/v{version}{path}", self.base);
        let mut url = Url::parse(&url).map_err(unreadable)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn check_rest(&self) -> Result<(), EngineError> {
        let health = self.health();
        match health.rests_until {
            Some(until) if Instant::now() < until => {
                Err(EngineError::Resting(health.failure.clone()))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn remember(&self, error: Option<&EngineError>) {
        let mut health = self.health();
        match error {
            Some(error) if error.is_general() => {
                let now = Instant::now();
                // Calls that were under way at the same time are one failure.
                if health.rests_until.is_none_or(|until| until <= now) {
                    health.failures = health.failures.saturating_add(1);
                    let doublings = health.failures.min(8) - 1;
                    let rest = Duration::from_secs(1 << doublings).min(REST_MAX);
                    health.rests_until = Some(now + rest);
                }
                health.failure = error.to_string();
                // Another engine may come up.
                health.version = None;
            }
            Some(EngineError::Resting(_)) => {}
            _ => (health.failures, health.rests_until) = (0, None),
        }
    }

    /// How long calls will be refused from now on.
    pub fn rest(&self) -> Option<Duration> {
        let until = self.health().rests_until?;
        Some(until.saturating_duration_since(Instant::now())).filter(|rest| !rest.is_zero())
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The version that the settings ask for, if any.
pub(super) fn pinned_version(config: &Config) -> Result<Option<Version>, String> {
    match config.api_version.as_str() {
        "" | "auto" => Ok(None),
        text => match Version::parse(text) {
            Some(version) => Ok(Some(version)),
            None => Err(format!("expected a version such as 1.41, found {text:?}")),
        },
    }
}

fn with_tls(
    mut builder: reqwest::ClientBuilder,
    config: &Config,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<reqwest::ClientBuilder, String> {
    let folder = variable("DOCKER_CERT_PATH").filter(|path| !path.is_empty()).map(PathBuf::from);
    let file = |setting: &str, name: &str| match setting {
        "" => folder.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists()),
        path => Some(PathBuf::from(path)),
    };
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    if let Some(path) = file(&config.tls_cacert, "ca.pem") {
        let authorities = Certificate::from_pem_bundle(&read(&path)?)
            .map_err(|error| format!("{}: {}", path.display(), cause(&error)))?;
        builder = builder.tls_certs_only(authorities);
    }
    let own =
        file(&config.tls_client_cert, "cert.pem").zip(file(&config.tls_client_key, "key.pem"));
    if let Some((certificate, key)) = own {
        let mut pem = read(&certificate)?;
        pem.push(b'\n');
        pem.extend(read(&key)?);
        let identity = Identity::from_pem(&pem)
            .map_err(|error| format!("{}: {}", certificate.display(), cause(&error)))?;
        builder = builder.identity(identity);
    }
    Ok(builder.tls_danger_accept_invalid_certs(!config.tls_verify))
}

async fn body(mut response: Response) -> Result<Vec<u8>, EngineError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > ANSWER_MAX {
            return Err(EngineError::Unreadable(format!("more than {ANSWER_MAX} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The engine's events, line by line.
#[derive(Debug)]
pub struct EventStream {
    response: Response,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were given out.
    read: usize,
    /// Within a line that is too long.
    skips: bool,
}

impl EventStream {
    /// The next line; `None` when the engine ended the stream. Waits as long as it takes.
    ///
    /// # Errors
    ///
    /// The connection broke.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, EngineError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer[self.read..]) {
                let line = self.buffer[self.read..self.read + end].to_vec();
                self.read += end + 1;
                if !std::mem::take(&mut self.skips) && !line.trim_ascii().is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            self.buffer.drain(..std::mem::take(&mut self.read));
            if self.buffer.len() > EVENT_MAX {
                self.buffer.clear();
                self.skips = true;
            }
            match self.response.chunk().await.map_err(unreachable)? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

fn unreachable(error: reqwest::Error) -> EngineError {
    EngineError::Unreachable(cause(&error))
}

fn unreadable(error: impl std::fmt::Display) -> EngineError {
    EngineError::Unreadable(error.to_string())
}

/// The innermost reason, which is the one that says something.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        Config { url: url.to_owned(), timeout: 1, ..Config::default() }
    }

    fn no_variable(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn where_the_engine_is() {
        let unix = |path: &str| Some(Address::Unix(PathBuf::from(path)));
        for (url, host, tls, there, found) in [
            ("", "", "", "/var/run/docker.sock", unix("/var/run/docker.sock")),
            ("", "", "", "/host/run/podman/podman.sock", unix("/host/run/podman/podman.sock")),
            ("", "", "", "/run/user/7/docker.sock", unix("/run/user/7/docker.sock")),
            ("", "", "", "", None),
            ("", "unix:///a.sock", "", "/var/run/docker.sock", unix("/a.sock")),
            ("unix:///b.sock", "unix:///a.sock", "", "", unix("/b.sock")),
            ("/b.sock", "", "", "", unix("/b.sock")),
            ("unix://var/run/docker.sock", "", "", "", unix("/var/run/docker.sock")),
            ("", "tcp://h:2375", "", "", Some(Address::Tcp("h:2375".to_owned()))),
            ("", "tcp://h:2376/", "1", "", Some(Address::Tls("h:2376".to_owned()))),
            ("https://h:2376", "", "", "", Some(Address::Tls("h:2376".to_owned()))),
        ] {
            let variable = |name: &str| match name {
                "DOCKER_HOST" => Some(host.to_owned()),
                "DOCKER_TLS_VERIFY" => Some(tls.to_owned()),
                "XDG_RUNTIME_DIR" => Some("/run/user/7".to_owned()),
                _ => None,
            };
            let exists = |path: &Path| path == Path::new(there);
            assert_eq!(address(&config(url), variable, exists), Ok(found), "{url} {host}");
        }
        for url in ["ftp://h", "tcp://", "unix://"] {
            assert!(address(&config(url), no_variable, |_| false).is_err(), "{url}");
        }
    }

    #[test]
    fn versions_are_numbers() {
        assert!(Version::parse("1.9") < Version::parse("1.41"));
        assert_eq!(Version::parse("v1.44"), Some(Version(1, 44)));
        assert_eq!(Version::parse("1"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_followed_by_rests() {
        let address = Address::Unix(PathBuf::from("/nonexistent/engine.sock"));
        let engine = Engine::new(&config(""), &address, no_variable).expect("a client");
        let mut rests = Vec::new();
        for _ in 0..7 {
            let error = engine.object::<api::Info>("/info", &[]).await.expect_err("no engine");
            assert!(matches!(error, EngineError::Unreachable(_)), "{error}");
            let again = engine.object::<api::Info>("/info", &[]).await.expect_err("it rests");
            assert_eq!(again, EngineError::Resting(error.to_string()));
            let rest = engine.rest().expect("a rest");
            rests.push(rest.as_millis().div_ceil(1000));
            tokio::time::advance(rest).await;
        }
        assert_eq!(rests, [1, 2, 4, 8, 15, 15, 15]);
        engine.remember(None);
        assert_eq!(engine.rest(), None);
    }
}
