//! The HTTP client that sinks share.

use std::time::Duration;

use anyhow::{anyhow, bail};
use reqwest::tls::Version;
use reqwest::{Certificate, Client, ClientBuilder, NoProxy, Proxy, redirect};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::warn;

/// How sinks reach out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds until a connection must stand.
    pub connect_timeout: u64,
    /// Seconds for a whole request; 0 sets no bound.
    pub timeout: u64,
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
}

/// Idle seconds after which a connection is probed, so that one which a firewall forgot is noticed
/// before it is needed.
const KEEPALIVE: Duration = Duration::from_secs(30);

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: 10,
            timeout: 20,
            proxy_http: String::new(),
            proxy_https: String::new(),
            no_proxy: Vec::new(),
            skip_ssl_validation: false,
            min_tls_version: "tlsv1.2".to_owned(),
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
pub fn client(config: &Config) -> anyhow::Result<Client> {
    // Whoever came first has installed a provider that serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let proxies = proxies(config, |name| std::env::var(name).ok())?;
    let builder = builder(config, &proxies, tls_version_min(&config.min_tls_version)?);
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

fn builder(config: &Config, proxies: &[Proxy], tls: Version) -> impl Fn() -> ClientBuilder {
    move || {
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .tcp_keepalive(KEEPALIVE)
            .connect_timeout(Duration::from_secs(config.connect_timeout))
            .tls_version_min(tls)
            .tls_danger_accept_invalid_certs(config.skip_ssl_validation)
            .no_proxy();
        if config.timeout > 0 {
            builder = builder.timeout(Duration::from_secs(config.timeout));
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
        client(&Config::default()).unwrap();
        client(&Config { skip_ssl_validation: true, ..Config::default() }).unwrap();
    }

    #[test]
    fn the_bundled_certificates_serve_where_the_system_has_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config::default();
        // Not a certificate: building fails, as it does without any.
        let builder = builder(&config, &[], Version::TLS_1_2);
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
        ] {
            let error = format!("{:#}", client(&config).unwrap_err());
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
}
