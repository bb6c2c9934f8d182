//! The Datadog intake.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{anyhow, bail, ensure};
use regex::Regex;
use reqwest::header::{self, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::spool::Folder;
use super::{Body, Coding, Durable, Encoded, Payload, Sending, Sink, Verdict, http};
use crate::batch::Batch;
#[cfg(test)]
use crate::encode::datadog::datadog_payload;
use crate::encode::datadog::{Compression, Limits, Options, Route, encode, split};
use crate::telemetry::Telemetry;

#[cfg(test)]
#[path = "../../conformance/test_intake.rs"]
mod test_intake;

/// The Datadog intake. Off while there is no API key.
#[derive(Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The API key; empty turns this sink off. Shown as stars. `ENC[HANDLE]` stands for what
    /// secrets.command gives.
    pub api_key: String,
    /// File that holds the API key, instead of api_key. It is read again when an intake refuses the
    /// key.
    pub api_key_file: String,
    /// The Datadog site.
    pub site: String,
    /// Address of the intake; takes precedence over site.
    pub dd_url: String,
    /// Further intakes: address to list of keys. Every payload goes to each.
    pub additional_endpoints: BTreeMap<String, Vec<String>>,
    /// Send series as protobuf to /api/v2/series instead of as JSON to /api/v1/series.
    pub use_v2_series: bool,
    /// `zstd`, `zlib`, `gzip` or `none`.
    pub compressor_kind: String,
    /// Level of zstd.
    pub zstd_level: i32,
    /// Bytes of one compressed payload of v2 series.
    pub max_series_payload_size: usize,
    /// Bytes of one payload of v2 series before compression.
    pub max_series_uncompressed_payload_size: usize,
    /// Points of one payload of v2 series.
    pub max_series_points_per_payload: usize,
    /// Bytes of any other compressed payload.
    pub max_payload_size: usize,
    /// Bytes of any other payload before compression.
    pub max_uncompressed_payload_size: usize,
    /// Send series.
    pub enable_series: bool,
    /// Send sketches.
    pub enable_sketches: bool,
    /// Send events.
    pub enable_events: bool,
    /// Send service checks.
    pub enable_service_checks: bool,
    /// Bytes of payloads that wait in memory for each endpoint while they cannot be spooled; the
    /// oldest are dropped and counted.
    pub retry_queue_bytes: usize,
    /// Check the key at the start and once an hour.
    pub validate_key: bool,
    /// How the intake is reached.
    pub http: http::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            api_key: String::new(),
            api_key_file: String::new(),
            site: "datadoghq.com".to_owned(),
            dd_url: String::new(),
            additional_endpoints: BTreeMap::new(),
            use_v2_series: true,
            compressor_kind: "zstd".to_owned(),
            zstd_level: 1,
            max_series_payload_size: 512_000,
            max_series_uncompressed_payload_size: 5_242_880,
            max_series_points_per_payload: 10_000,
            max_payload_size: 2_621_440,
            max_uncompressed_payload_size: 4_194_304,
            enable_series: true,
            enable_sketches: true,
            enable_events: true,
            enable_service_checks: true,
            retry_queue_bytes: 15 * 1024 * 1024,
            validate_key: true,
            http: http::Config::default(),
        }
    }
}

impl Config {
    /// Whether there is a key, and so a destination.
    pub const fn enabled(&self) -> bool {
        !self.api_key.is_empty() || !self.api_key_file.is_empty()
    }
}

/// Never shows a key.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("datadog::Config")
            .field("site", &self.site)
            .field("dd_url", &self.dd_url)
            .finish_non_exhaustive()
    }
}

/// The setting that names the file of the key.
const KEY_FILE: &str = "sinks.datadog.api_key_file";

/// Bytes of that file that are read.
const KEY_MAX: u64 = 4096;

/// The version this program names itself with.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of the protobuf definitions that our payloads follow.
const PAYLOAD_VERSION: &str = "4.87.0";

/// The longest wait that an intake may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// How long the check of a key may take.
const VALIDATE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often keys are checked.
const VALIDATE_INTERVAL: Duration = Duration::from_secs(3600);

/// Bytes of an answer that are read, so that its connection can serve again.
const ANSWER_MAX: usize = 64 * 1024;

/// How long the body of an answer may take: its status has told what matters.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The Datadog intake, at one or more addresses.
///
/// Keys are only in the `DD-Api-Key` header, and there they are marked as sensitive.
pub struct Datadog {
    client: Client,
    options: Options,
    endpoints: Vec<Endpoint>,
    silence: Duration,
}

/// One address with one key.
struct Endpoint {
    /// For logs and metrics: without user, password or key.
    name: String,
    url: Url,
    key: Key,
    /// Where address and key were set.
    setting: &'static str,
}

/// A key, and the file that it may be read from again.
struct Key {
    value: Mutex<HeaderValue>,
    file: Option<PathBuf>,
}

impl Key {
    fn get(&self) -> HeaderValue {
        self.value.lock().expect("no panic under this lock").clone()
    }

    /// What the key goes by in the name of a folder. One from a file goes by the file: what waits
    /// there is sent with whatever key is in it by then.
    fn identity(&self) -> Vec<u8> {
        match &self.file {
            Some(file) => file.as_os_str().as_encoded_bytes().to_vec(),
            None => self.get().as_bytes().to_vec(),
        }
    }

    /// Reads the file, if there is one, after an intake has refused a key. Whether there is another
    /// key now.
    fn renew(&self, refused: &HeaderValue) -> bool {
        let Some(file) = &self.file else { return false };
        let read = read_key(file).and_then(|key| header_value(&key, KEY_FILE));
        match read {
            Ok(key) if key != refused => {
                let mut value = self.value.lock().expect("no panic under this lock");
                if *value != key {
                    tracing::info!("sink datadog: another API key was read from {KEY_FILE}");
                    *value = key;
                }
                true
            }
            Ok(_) => false,
            Err(error) => {
                warn!("sink datadog: {error:#}");
                false
            }
        }
    }
}

/// Checks every key now and once an hour, for as long as the runtime lives.
pub async fn watch_keys(datadog: Arc<Datadog>) {
    let mut hourly = tokio::time::interval(VALIDATE_INTERVAL);
    loop {
        hourly.tick().await;
        datadog.validate_all().await;
    }
}

/// What an intake says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    Valid,
    Invalid,
    /// It could not be asked, or did not answer the question. Sending goes on, as ever.
    Unknown(String),
}

impl Datadog {
    /// `hostname` is put into the frame of events.
    ///
    /// # Errors
    ///
    /// One line that begins with the path of the setting that cannot be used, and holds no key.
    pub fn new(
        config: &Config,
        hostname: &str,
        telemetry: &Arc<Telemetry>,
    ) -> anyhow::Result<Self> {
        let client = http::client(&config.http, telemetry)
            .map_err(|error| anyhow!("sinks.datadog.http.{error:#}"))?;
        Ok(Self {
            client,
            options: options(config, hostname)?,
            endpoints: endpoints(config)?,
            silence: Duration::from_secs(config.http.silence_timeout),
        })
    }

    /// Asks an intake, by its index in [`Sink::endpoints`], whether it knows the key.
    pub async fn validate_key(&self, endpoint: usize) -> KeyState {
        let endpoint = &self.endpoints[endpoint];
        let key = endpoint.key.get();
        match self.ask_for_key(endpoint, &key).await {
            KeyState::Invalid if endpoint.key.renew(&key) => {
                self.ask_for_key(endpoint, &endpoint.key.get()).await
            }
            state => state,
        }
    }

    async fn ask_for_key(&self, endpoint: &Endpoint, key: &HeaderValue) -> KeyState {
        let request = self
            .client
            .get(validate_url(&endpoint.url))
            .header("DD-Api-Key", key)
            .header(header::USER_AGENT, user_agent())
            .timeout(VALIDATE_TIMEOUT);
        match request.send().await.map(|response| response.status()) {
            Ok(StatusCode::OK) => KeyState::Valid,
            Ok(StatusCode::FORBIDDEN) => KeyState::Invalid,
            Ok(status) => KeyState::Unknown(format!("HTTP {status}")),
            Err(error) => KeyState::Unknown(http::cause(error)),
        }
    }

    /// Asks every intake for its key, and warns of each that refuses it or cannot be asked.
    pub async fn validate_all(&self) {
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            match self.complaint(endpoint, &self.validate_key(index).await) {
                Some(complaint) => warn!("{complaint}"),
                None => debug!("sink datadog: {} knows the API key", endpoint.name),
            }
        }
    }

    /// What is wrong, what to check, and what happens to the points meanwhile.
    fn complaint(&self, endpoint: &Endpoint, state: &KeyState) -> Option<String> {
        let Endpoint { name, setting, .. } = endpoint;
        match state {
            KeyState::Valid => None,
            KeyState::Invalid => Some(format!(
                "sink datadog: {name} refuses the API key: check {setting}, and that the key \
                 belongs to this site; payloads are sent all the same, and those refused are \
                 dropped and counted"
            )),
            KeyState::Unknown(cause) => Some(format!(
                "sink datadog: {name} could not check the API key ({cause}): check \
                 sinks.datadog.site, sinks.datadog.dd_url or additional_endpoints, and the proxy \
                 in sinks.datadog.http; payloads that cannot be sent wait, and the oldest are \
                 dropped and counted once they are too many"
            )),
        }
    }

    async fn post(
        &self,
        endpoint: &Endpoint,
        route: Route,
        coding: Coding,
        bytes: Vec<u8>,
    ) -> Verdict {
        let content_type =
            if route.is_protobuf() { "application/x-protobuf" } else { "application/json" };
        let key = endpoint.key.get();
        let mut request = self
            .client
            .post(at(&endpoint.url, route.path()))
            .header("DD-Api-Key", &key)
            .header("DD-Agent-Version", VERSION)
            .header(header::USER_AGENT, user_agent())
            .header(header::CONTENT_TYPE, content_type)
            .header(header::CONTENT_ENCODING, coding.word());
        if route.is_protobuf() {
            request = request.header("DD-Agent-Payload", PAYLOAD_VERSION);
        }
        let mut response = match http::send(request, bytes, self.silence).await {
            Ok(response) => response,
            Err(cause) => return Verdict::Retry { cause, after: None },
        };
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok());
        let mut verdict = verdict(response.status(), retry_after, SystemTime::now());
        if response.status() == StatusCode::FORBIDDEN && endpoint.key.renew(&key) {
            verdict = Verdict::Retry { cause: "the API key was replaced".to_owned(), after: None };
        }
        let rest = async {
            let mut read = 0;
            while read <= ANSWER_MAX
                && let Ok(Some(chunk)) = response.chunk().await
            {
                read += chunk.len();
            }
        };
        // Late or not: it has nothing to say that its status did not.
        let _ = timeout(ANSWER_TIMEOUT, rest).await;
        verdict
    }
}

impl Sink for Datadog {
    fn name(&self) -> &'static str {
        "datadog"
    }

    fn endpoints(&self) -> Vec<String> {
        self.endpoints.iter().map(|endpoint| endpoint.name.clone()).collect()
    }

    fn encode(&self, batch: &Arc<Batch>) -> Encoded {
        encode(batch, &self.options)
    }

    fn durable(&self) -> Option<Durable> {
        // An address of Datadog's own names the version.
        let named = format!("{}-app.agent", VERSION.replace('.', "-"));
        let folder = |endpoint: &Endpoint| {
            let [address, former] = [&shown(&endpoint.url), &endpoint.name]
                .map(|text| text.replace(&named, "app.agent"));
            Folder::new(&address, &endpoint.key.identity(), &former)
        };
        let folders = self.endpoints.iter().map(folder).collect();
        Some(Durable { kinds: &Route::WORDS, folders })
    }

    fn split(&self, payload: &Payload) -> Option<[Payload; 2]> {
        split(payload, self.options.compression)
    }

    fn send<'a>(&'a self, endpoint: usize, payload: &'a Payload) -> Sending<'a> {
        let (route, coding) = (Route::of_word(payload.kind), payload.coding);
        Box::pin(async move {
            match (route, &payload.body) {
                (Some(route), Body::Bytes(bytes)) => {
                    self.post(&self.endpoints[endpoint], route, coding, bytes.clone()).await
                }
                (None, _) | (_, Body::Batch(_)) => {
                    Verdict::Refused { cause: format!("no route for {}", payload.kind) }
                }
            }
        })
    }
}

fn user_agent() -> String {
    format!("tallyd/{VERSION}")
}

/// The Agent's rule: 400, 403 and 413 say that this payload will never be taken, which after 413 may
/// not be true of its halves; every other error may pass. A redirect is not followed, and to count it as a success, as the Agent would, loses
/// what a proxy's login page swallowed.
fn verdict(status: StatusCode, retry_after: Option<&str>, now: SystemTime) -> Verdict {
    let retry = |cause: String| {
        let after = retry_after.and_then(|text| self::retry_after(text, now));
        Verdict::Retry { cause, after }
    };
    match status.as_u16() {
        ..300 => Verdict::Delivered,
        300..400 => retry(format!("HTTP {status}: redirects are not followed, check the address")),
        403 => Verdict::Refused { cause: format!("HTTP {status}: the API key is refused") },
        400 => Verdict::Refused { cause: format!("HTTP {status}") },
        413 => Verdict::TooLarge { cause: format!("HTTP {status}") },
        _ => retry(format!("HTTP {status}")),
    }
}

/// Reads a `Retry-After`: seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let seconds = text.parse().map(Duration::from_secs).ok();
    let date = || httpdate::parse_http_date(text).ok();
    let wait = seconds.or_else(|| Some(date()?.duration_since(now).unwrap_or_default()))?;
    Some(wait.min(RETRY_AFTER_MAX))
}

fn options(config: &Config, hostname: &str) -> anyhow::Result<Options> {
    let compression = match config.compressor_kind.as_str() {
        "zstd" => Compression::Zstd(config.zstd_level),
        "zlib" => Compression::Zlib,
        "gzip" => Compression::Gzip,
        "none" => Compression::None,
        other => bail!("sinks.datadog.compressor_kind: {other:?} is unknown"),
    };
    let series = if config.use_v2_series { Route::SeriesV2 } else { Route::SeriesV1 };
    let routes = [
        (config.enable_series, series),
        (config.enable_sketches, Route::Sketches),
        (config.enable_events, Route::Events),
        (config.enable_service_checks, Route::Checks),
    ];
    Ok(Options {
        routes: routes.into_iter().filter_map(|(on, route)| on.then_some(route)).collect(),
        hostname: hostname.to_owned(),
        compression,
        series: Limits {
            compressed: config.max_series_payload_size,
            raw: config.max_series_uncompressed_payload_size,
            points: config.max_series_points_per_payload,
        },
        other: Limits {
            compressed: config.max_payload_size,
            raw: config.max_uncompressed_payload_size,
            points: usize::MAX,
        },
    })
}

/// Every pair of an address and a key, once; the main one is first.
fn endpoints(config: &Config) -> anyhow::Result<Vec<Endpoint>> {
    const KEY: &str = "sinks.datadog.api_key";
    const FURTHER: &str = "sinks.datadog.additional_endpoints";
    let mut endpoints = Vec::new();
    if config.api_key_file.is_empty() {
        ensure!(!config.api_key.trim().is_empty(), "{KEY}: is empty");
        add(&mut endpoints, main_address(config)?, &config.api_key, KEY, None)?;
    } else {
        let file = PathBuf::from(&config.api_key_file);
        let key = read_key(&file)?;
        add(&mut endpoints, main_address(config)?, &key, KEY_FILE, Some(file))?;
    }
    for (address, keys) in &config.additional_endpoints {
        // The address is not repeated: who mixes up addresses and keys has put a key there.
        let url = address_of(address, FURTHER)?;
        for key in keys.iter().filter(|key| !key.trim().is_empty()) {
            add(&mut endpoints, url.clone(), key, FURTHER, None)?;
        }
    }
    Ok(endpoints)
}

fn add(
    endpoints: &mut Vec<Endpoint>,
    url: Url,
    key: &str,
    setting: &'static str,
    file: Option<PathBuf>,
) -> anyhow::Result<()> {
    let key = header_value(key, setting)?;
    let at_address = endpoints.iter().filter(|endpoint| endpoint.url == url);
    if at_address.clone().any(|endpoint| endpoint.key.get() == key) {
        return Ok(());
    }
    let name = match at_address.count() {
        0 => shown(&url),
        others => format!("{} (key {})", shown(&url), others + 1),
    };
    let key = Key { value: Mutex::new(key), file };
    endpoints.push(Endpoint { name, url, key, setting });
    Ok(())
}

/// A key as it is sent.
fn header_value(key: &str, setting: &str) -> anyhow::Result<HeaderValue> {
    let key = key.trim();
    let valid =
        HeaderValue::from_str(key).ok().filter(|_| key.bytes().all(|b| b.is_ascii_graphic()));
    let mut key = valid.ok_or_else(|| anyhow!("{setting}: a key has characters none can have"))?;
    key.set_sensitive(true);
    Ok(key)
}

/// The key in a file.
fn read_key(file: &Path) -> anyhow::Result<String> {
    let mut key = String::new();
    let bounded = File::open(file).map(|file| file.take(KEY_MAX));
    bounded
        .and_then(|mut file| file.read_to_string(&mut key))
        .map_err(|error| anyhow!("{KEY_FILE}: cannot read {}: {error}", file.display()))?;
    ensure!(!key.trim().is_empty(), "{KEY_FILE}: {} is empty", file.display());
    Ok(key)
}

fn main_address(config: &Config) -> anyhow::Result<Url> {
    let dd_url = config.dd_url.trim();
    if !dd_url.is_empty() {
        return address_of(dd_url, "sinks.datadog.dd_url");
    }
    let site = config.site.trim();
    let is_host = |site: &str| {
        !site.is_empty() && site.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
    };
    ensure!(
        is_host(site),
        "sinks.datadog.site: is not a domain such as datadoghq.eu; a whole address goes into dd_url"
    );
    address_of(&format!("https://app.{site}"), "sinks.datadog.site")
}

/// Reads the address of an intake; one of Datadog's own becomes that of this version, as the Agent
/// does it.
fn address_of(text: &str, setting: &str) -> anyhow::Result<Url> {
    /// Hosts of Datadog's web application, behind their first label.
    static APP: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^app((\.mrf)?(\.[a-z]{2}\d)?\.(datad(oghq|0g)\.(com|eu)|ddog-gov\.com))$")
            .expect("a valid pattern")
    });
    let url = Url::parse(text.trim());
    let mut url = url
        .map_err(|error| anyhow!("{setting}: is not an address such as https://host ({error})"))?;
    let usable = matches!(url.scheme(), "http" | "https") && url.has_host();
    ensure!(usable, "{setting}: is not an address such as https://host");
    url.set_query(None);
    url.set_fragment(None);
    if let Some(found) = url.host_str().and_then(|host| APP.captures(host)) {
        let host = format!("{}-app.agent{}", VERSION.replace('.', "-"), &found[1]);
        url.set_host(Some(&host))?;
    }
    Ok(url)
}

/// Keys of Datadog's own sites are checked by the site's API; anybody else's intake is asked
/// itself.
fn validate_url(url: &Url) -> String {
    static SITE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\.(([a-z]{2}\d\.)?(datad(oghq|0g)\.(com|eu)|ddog-gov\.com))$")
            .expect("a valid pattern")
    });
    match url.host_str().and_then(|host| SITE.captures(host)) {
        Some(found) => format!("https://api.{}/api/v1/validate", &found[1]),
        None => at(url, "/api/v1/validate"),
    }
}

/// The address of a path below an intake's.
fn at(url: &Url, path: &str) -> String {
    format!("{}{path}", url.as_str().trim_end_matches('/'))
}

/// An address without the user and password that it may hold.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Only fails for addresses without a host, which cannot hold them either.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.as_str().trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::test_intake::{Intake, Response};
    use super::*;
    use crate::batch::{Event, Row, ServiceCheck, Value};
    use crate::context::{Context, Source};
    use crate::sample::{AlertType, Kind, Priority, Status};

    const KEY: &str = "0123456789abcdef";

    fn config(dd_url: &str) -> Config {
        let mut config =
            Config { api_key: KEY.to_owned(), dd_url: dd_url.to_owned(), ..Config::default() };
        // Whatever proxy this test runs behind.
        config.http.no_proxy = vec!["127.0.0.1".to_owned()];
        config
    }

    fn sink(config: &Config) -> Datadog {
        Datadog::new(config, "agent-host", &Arc::default()).unwrap()
    }

    fn batch() -> Arc<Batch> {
        let context = |kind| Context::new("a", kind, "h", Vec::new(), Source::default());
        let row = |kind, value| Row { context: context(kind), time: 10, value };
        let mut sketch = crate::sketch::Sketch::default();
        sketch.insert(1.0);
        sketch.finish();
        Arc::new(Batch {
            interval: 10,
            rows: vec![
                row(Kind::Gauge, Value::Gauge(1.0)),
                row(Kind::Distribution, Value::Distribution(Box::new(sketch))),
            ],
            events: [Event {
                title: "t".to_owned(),
                text: String::new(),
                timestamp: 10,
                host: String::new(),
                aggregation_key: String::new(),
                source_type: String::new(),
                priority: Priority::Normal,
                alert_type: AlertType::Info,
                tags: Vec::new(),
            }]
            .into(),
            checks: [ServiceCheck {
                name: "c".to_owned(),
                status: Status::Ok,
                timestamp: 10,
                host: String::new(),
                message: String::new(),
                tags: Vec::new(),
            }]
            .into(),
            ..Batch::default()
        })
    }

    #[tokio::test]
    async fn every_payload_goes_to_its_path_with_its_headers() {
        let protobuf = ["application/x-protobuf", PAYLOAD_VERSION];
        let json = ["application/json", ""];
        for (kind, encoding, v2) in [
            ("zstd", "zstd", true),
            ("zlib", "deflate", true),
            ("gzip", "gzip", true),
            ("none", "identity", false),
        ] {
            let intake = Intake::start();
            let settings = Config {
                compressor_kind: kind.to_owned(),
                use_v2_series: v2,
                // A slash at the end makes no difference.
                ..config(&format!("{}/", intake.url))
            };
            let sink = sink(&settings);
            let encoded = sink.encode(&batch());
            assert_eq!(encoded.dropped, 0);
            for payload in &encoded.payloads {
                assert_eq!(sink.send(0, payload).await, Verdict::Delivered);
            }
            let series = if v2 { ("/api/v2/series", protobuf) } else { ("/api/v1/series", json) };
            let expected = [
                series,
                ("/api/beta/sketches", protobuf),
                ("/intake/", json),
                ("/api/v1/check_run", json),
            ];
            let requests = intake.requests();
            assert_eq!(requests.len(), expected.len());
            for ((request, payload), (path, [content_type, payload_version])) in
                requests.iter().zip(&encoded.payloads).zip(expected)
            {
                assert_eq!((&*request.method, &*request.path), ("POST", path));
                assert_eq!(request.size, payload.bytes());
                for (name, value) in [
                    ("dd-api-key", KEY),
                    ("dd-agent-version", VERSION),
                    ("user-agent", &*format!("tallyd/{VERSION}")),
                    ("content-type", content_type),
                    ("content-encoding", encoding),
                    ("dd-agent-payload", payload_version),
                ] {
                    assert_eq!(request.header(name), value, "{name} of {path}");
                }
                let body = request.body.as_ref().unwrap();
                match body {
                    datadog_payload::Body::Series(payload) => assert_eq!(payload.series.len(), 1),
                    datadog_payload::Body::Sketches(p) => assert_eq!(p.sketches.len(), 1),
                    datadog_payload::Body::Json(json) => assert!(!json.is_null()),
                    datadog_payload::Body::Empty => panic!("no body at {path}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn answers_become_verdicts() {
        let intake = Intake::start();
        let sink = sink(&config(&intake.url));
        let payload = &sink.encode(&batch()).payloads[0];
        let answer = |status, retry_after: Option<&str>| {
            let retry_after = retry_after.map(|text| ("retry-after", text.to_owned()));
            let headers = retry_after.into_iter().collect();
            intake.respond_with(move |_| Response {
                headers: Vec::clone(&headers),
                ..Response::status(status)
            });
            sink.send(0, payload)
        };
        for status in [200, 202, 204] {
            assert_eq!(answer(status, None).await, Verdict::Delivered);
        }
        for (status, cause) in
            [(400, "HTTP 400 Bad Request"), (403, "HTTP 403 Forbidden: the API key is refused")]
        {
            let cause = cause.to_owned();
            assert_eq!(answer(status, None).await, Verdict::Refused { cause });
        }
        let cause = "HTTP 413 Payload Too Large".to_owned();
        assert_eq!(answer(413, None).await, Verdict::TooLarge { cause });
        for (status, retry_after, cause, after) in [
            (401, None, "HTTP 401 Unauthorized", None),
            (404, None, "HTTP 404 Not Found", None),
            (408, None, "HTTP 408 Request Timeout", None),
            (429, Some("7"), "HTTP 429 Too Many Requests", Some(7)),
            (500, None, "HTTP 500 Internal Server Error", None),
            (503, Some("soon"), "HTTP 503 Service Unavailable", None),
            (503, Some("Wed, 21 Oct 2015 07:28:00 GMT"), "HTTP 503 Service Unavailable", Some(0)),
            (302, None, "HTTP 302 Found: redirects are not followed, check the address", None),
        ] {
            let after = after.map(Duration::from_secs);
            let cause = cause.to_owned();
            assert_eq!(answer(status, retry_after).await, Verdict::Retry { cause, after });
        }
        intake.wait_for(Duration::from_secs(5), |requests| requests.len() == 14);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("86400", Some(3600)),
            ("99999999999999999999999", None),
            ("-1", None),
            ("1.5", None),
            ("", None),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Sat, 06 Nov 2094 08:49:00 GMT", Some(3600)),
        ] {
            assert_eq!(retry_after(text, now), seconds.map(Duration::from_secs), "{text:?}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_intake_is_retried_and_the_cause_is_short() {
        // The port was free a moment ago, and is again once the intake is gone.
        let url = Intake::start().url.clone();
        let sink = sink(&config(&url));
        let payload = &sink.encode(&batch()).payloads[0];
        let Verdict::Retry { cause, after: None } = sink.send(0, payload).await else {
            panic!("delivered to nowhere")
        };
        assert!(cause.contains("Connection refused"), "{cause}");
        assert!(!cause.contains('\n') && !cause.contains(KEY) && cause.len() < 150, "{cause}");
    }

    #[tokio::test]
    async fn a_payload_of_no_route_is_refused() {
        let sink = sink(&config("http://127.0.0.1:9"));
        let unknown = Payload {
            kind: "other",
            points: 1,
            coding: Coding::Identity,
            body: Body::Bytes(Vec::new()),
        };
        let whole = Payload {
            kind: "series",
            points: 1,
            coding: Coding::Identity,
            body: Body::Batch(batch()),
        };
        for payload in [unknown, whole] {
            assert!(matches!(sink.send(0, &payload).await, Verdict::Refused { .. }));
        }
    }

    #[tokio::test]
    async fn keys_are_checked_with_the_header() {
        let intake = Intake::start();
        let sink = sink(&config(&intake.url));
        assert_eq!(sink.validate_key(0).await, KeyState::Valid);
        for (status, state) in [
            (403, KeyState::Invalid),
            (503, KeyState::Unknown("HTTP 503 Service Unavailable".to_owned())),
        ] {
            intake.respond_with(move |_| Response::status(status));
            assert_eq!(sink.validate_key(0).await, state);
        }
        for request in intake.requests() {
            assert_eq!((&*request.method, &*request.path), ("GET", "/api/v1/validate"));
            assert_eq!(request.header("dd-api-key"), KEY);
            assert_eq!(request.body, Ok(datadog_payload::Body::Empty));
        }
        let url = intake.url.clone();
        drop(intake);
        let KeyState::Unknown(cause) = sink.validate_key(0).await else { panic!("an answer") };
        assert!(!cause.contains(&url) && !cause.contains(KEY), "{cause}");
    }

    #[tokio::test]
    async fn a_refused_key_is_read_again_from_its_file() {
        let intake = Intake::start();
        intake.respond_with(|request| {
            let known = request.header("dd-api-key") == "new";
            Response::status(match (known, request.method.as_str()) {
                (false, _) => 403,
                (true, "GET") => 200,
                (true, _) => 202,
            })
        });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let write = |key: &str| std::fs::write(&file, key).unwrap();
        let config = Config {
            api_key: String::new(),
            api_key_file: file.display().to_string(),
            ..config(&intake.url)
        };
        assert!(Datadog::new(&config, "", &Arc::default()).is_err(), "there is no file");
        write("old\n");
        let sink = sink(&config);
        let payload = &sink.encode(&batch()).payloads[0];
        let refused =
            Verdict::Refused { cause: "HTTP 403 Forbidden: the API key is refused".to_owned() };
        assert_eq!(sink.send(0, payload).await, refused);
        // What cannot be a key changes nothing.
        write("\n");
        assert_eq!(sink.send(0, payload).await, refused);
        assert_eq!(sink.validate_key(0).await, KeyState::Invalid);

        write(" new\n");
        let again = Verdict::Retry { cause: "the API key was replaced".to_owned(), after: None };
        assert_eq!(sink.send(0, payload).await, again);
        assert_eq!(sink.send(0, payload).await, Verdict::Delivered);
        write("old");
        assert_eq!(sink.validate_key(0).await, KeyState::Valid, "it is read when refused only");
    }

    #[tokio::test]
    async fn complaints_say_what_to_check() {
        let sink = sink(&config("http://user:secret@127.0.0.1:9"));
        sink.validate_all().await;
        let endpoint = &sink.endpoints[0];
        assert_eq!(sink.complaint(endpoint, &KeyState::Valid), None);
        let refused = sink.complaint(endpoint, &KeyState::Invalid).unwrap();
        let expected =
            "sink datadog: http://127.0.0.1:9 refuses the API key: check sinks.datadog.api_key, ";
        assert!(refused.starts_with(expected), "{refused}");
        let unknown = sink.complaint(endpoint, &KeyState::Unknown("down".to_owned())).unwrap();
        let expected = "sink datadog: http://127.0.0.1:9 could not check the API key (down): ";
        assert!(unknown.starts_with(expected), "{unknown}");
        for part in ["sinks.datadog.dd_url", "proxy", "wait"] {
            assert!(unknown.contains(part), "{unknown}");
        }
        assert!(!format!("{refused}{unknown}").contains("secret"));
    }

    #[test]
    fn addresses_of_datadog_name_the_version() {
        for (address, expected) in [
            ("https://app.datadoghq.com", "https://V-app.agent.datadoghq.com/"),
            ("https://app.datadoghq.eu/", "https://V-app.agent.datadoghq.eu/"),
            ("https://app.us3.datadoghq.com", "https://V-app.agent.us3.datadoghq.com/"),
            ("https://app.ap1.datadoghq.com", "https://V-app.agent.ap1.datadoghq.com/"),
            ("https://app.mrf.datadoghq.com", "https://V-app.agent.mrf.datadoghq.com/"),
            ("https://app.mrf.us5.datad0g.com", "https://V-app.agent.mrf.us5.datad0g.com/"),
            ("https://APP.ddog-gov.com", "https://V-app.agent.ddog-gov.com/"),
            ("http://app.datadoghq.com:8080", "http://V-app.agent.datadoghq.com:8080/"),
            ("https://app.datadoghq.org", "https://app.datadoghq.org/"),
            ("https://app.datadoghq.com.evil.example", "https://app.datadoghq.com.evil.example/"),
            ("https://xapp.datadoghq.com", "https://xapp.datadoghq.com/"),
            ("https://api.datadoghq.com", "https://api.datadoghq.com/"),
            ("https://app.usx.datadoghq.com", "https://app.usx.datadoghq.com/"),
            ("http://localhost:3834/path?x=y#z", "http://localhost:3834/path"),
        ] {
            let expected = expected.replace('V', &VERSION.replace('.', "-"));
            assert_eq!(address_of(address, "").unwrap().as_str(), expected);
        }
    }

    #[test]
    fn keys_are_checked_at_the_api_of_the_site() {
        for (address, expected) in [
            ("https://app.datadoghq.com", "https://api.datadoghq.com/api/v1/validate"),
            ("https://app.us5.datadoghq.com", "https://api.us5.datadoghq.com/api/v1/validate"),
            ("https://app.ddog-gov.com", "https://api.ddog-gov.com/api/v1/validate"),
            ("https://x.agent.datadoghq.eu", "https://api.datadoghq.eu/api/v1/validate"),
            ("https://notdatadoghq.com", "https://notdatadoghq.com/api/v1/validate"),
            ("http://127.0.0.1:9/dd/", "http://127.0.0.1:9/dd/api/v1/validate"),
        ] {
            assert_eq!(validate_url(&address_of(address, "").unwrap()), expected);
        }
    }

    #[test]
    fn endpoints_are_pairs_of_address_and_key() {
        let further = json!({
            "https://app.datadoghq.eu": [" eu-1 ", "eu-2", "eu-1", ""],
            "https://app.datadoghq.com": ["second", "first"],
            "https://nokey.example": ["", "  "],
            "http://user:secret@proxy.example:3128/dd": ["p"],
        });
        let config = Config {
            api_key: "first\n".to_owned(),
            additional_endpoints: serde_json::from_value(further).unwrap(),
            ..Config::default()
        };
        let sink = sink(&config);
        let version = VERSION.replace('.', "-");
        let expected = [
            ("https://V-app.agent.datadoghq.com", "first"),
            ("http://proxy.example:3128/dd", "p"),
            ("https://V-app.agent.datadoghq.com (key 2)", "second"),
            ("https://V-app.agent.datadoghq.eu", "eu-1"),
            ("https://V-app.agent.datadoghq.eu (key 2)", "eu-2"),
        ];
        let expected = expected.map(|(name, key)| (name.replace('V', &version), key));
        let endpoints = sink
            .endpoints
            .iter()
            .map(|e| (e.name.clone(), e.key.get().to_str().unwrap().to_owned()));
        let wanted = expected.clone().map(|(name, key)| (name, key.to_owned()));
        assert_eq!(endpoints.collect::<Vec<_>>(), wanted);
        assert_eq!(Sink::endpoints(&sink), expected.map(|(name, _)| name));
        assert!(sink.endpoints.iter().all(|endpoint| endpoint.key.get().is_sensitive()));
    }

    #[test]
    fn the_site_gives_way_to_the_address() {
        for (site, dd_url, expected) in [
            ("datadoghq.com", "", "datadoghq.com"),
            (" us3.datadoghq.com ", "", "us3.datadoghq.com"),
            ("datadoghq.com", "https://app.datadoghq.eu", "datadoghq.eu"),
        ] {
            let config = Config { site: site.to_owned(), ..config(dd_url) };
            let name = format!("https://{}-app.agent.{expected}", VERSION.replace('.', "-"));
            assert_eq!(Sink::endpoints(&sink(&config)), [name]);
        }
    }

    #[test]
    fn unusable_settings_are_named_in_one_line_without_a_key() {
        let further = |address: &str, key: &str| Config {
            additional_endpoints: [(address.to_owned(), vec![key.to_owned()])].into(),
            ..config("")
        };
        let mut tls = config("");
        tls.http.min_tls_version = "ssl".to_owned();
        for (config, setting) in [
            (Config::default(), "api_key: is empty"),
            (Config { api_key: format!("{KEY}\u{e9}"), ..config("") }, "api_key: "),
            (Config { site: format!("https://{KEY}"), ..config("") }, "site: is not a domain"),
            (Config { site: String::new(), ..config("") }, "site: is not a domain"),
            (config(KEY), "dd_url: is not an address"),
            (config("ftp://host"), "dd_url: is not an address"),
            (config("https://"), "dd_url: is not an address"),
            (further(KEY, "https://app.datadoghq.eu"), "additional_endpoints: is not an address"),
            (further("https://x", "\u{1}key"), "additional_endpoints: a key has"),
            (Config { compressor_kind: "br".to_owned(), ..config("") }, "compressor_kind: \"br\""),
            (tls, "http.min_tls_version: "),
        ] {
            let error = Datadog::new(&config, "", &Arc::default())
                .err()
                .map_or(String::new(), |e| e.to_string());
            assert!(error.starts_with(&format!("sinks.datadog.{setting}")), "{setting} {error}");
            assert!(!error.contains(KEY) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn switches_turn_routes_off() {
        let kinds = |config: &Config| -> Vec<&str> {
            sink(config).encode(&batch()).payloads.iter().map(|payload| payload.kind).collect()
        };
        let on = config("");
        assert_eq!(kinds(&on), ["series", "sketches", "events", "service_checks"]);
        for (config, expected) in [
            (
                Config { use_v2_series: false, ..on.clone() },
                &["series_v1", "sketches", "events", "service_checks"][..],
            ),
            (
                Config { enable_series: false, ..on.clone() },
                &["sketches", "events", "service_checks"],
            ),
            (
                Config { enable_sketches: false, ..on.clone() },
                &["series", "events", "service_checks"],
            ),
            (
                Config { enable_events: false, ..on.clone() },
                &["series", "sketches", "service_checks"],
            ),
            (Config { enable_service_checks: false, ..on }, &["series", "sketches", "events"]),
        ] {
            assert_eq!(kinds(&config), expected);
        }
    }
}
