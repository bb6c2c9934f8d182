//! The HTTP client that sinks share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How sinks reach out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Seconds until a connection must stand.
    pub connect_timeout: u64,
    /// Seconds for a whole request; 0 sets no bound.
    pub timeout: u64,
    /// Proxy for http:// destinations.
    pub proxy_http: String,
    /// Proxy for https:// destinations.
    pub proxy_https: String,
    /// Hosts that are reached without a proxy.
    pub no_proxy: Vec<String>,
    /// Accept any certificate. Dangerous.
    pub skip_ssl_validation: bool,
    /// tlsv1.2 or tlsv1.3.
    pub min_tls_version: String,
}

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
