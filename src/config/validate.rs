//! Ranges and words that the types do not hold.

use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::Config;
use super::convert::{one_of, quoted};
use crate::intake::address::{ListenAddress, host_port, is_host, socket_path};
use crate::rules::Rules;
use crate::value::{Aggregate, parse_percentile};
use crate::{collectors, intake, logging, rules, secrets, shard, sinks, status, value};

/// A setting with a value that it cannot have.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invalid {
    /// The setting, or a place within: `intake.listeners[0].address`.
    pub path: String,
    pub message: String,
}

type Outcome = Result<(), Invalid>;

/// Checks what the types cannot.
pub(super) fn validate(config: &Config) -> Outcome {
    intake(&config.intake)?;
    rules(&config.rules)?;
    let hostname = &config.origin.hostname;
    check(
        hostname.is_empty() || is_host(hostname),
        "origin.hostname",
        expected("a host name", hostname),
    )?;
    collectors(&config.collectors)?;
    within("origin.wait_bytes_max", config.origin.wait_bytes_max, 0..=1 << 30)?;
    shard(&config.shard)?;
    value(&config.value)?;
    within("journal.max_bytes", config.journal.max_bytes, 256 * 1024..=1 << 50)?;
    within("journal.sync_interval", config.journal.sync_interval, 0.01..=3600.0)?;
    within("flush.interval", config.flush.interval, 1..=3600)?;
    within("sinks.stop_timeout", config.sinks.stop_timeout, 0..=3600)?;
    spool(&config.sinks.spool)?;
    within("sinks.console.rows", config.sinks.console.rows, 1..=1_000_000)?;
    for (i, quantile) in config.sinks.prometheus.quantiles.iter().enumerate() {
        within(format!("sinks.prometheus.quantiles[{i}]"), *quantile, 0.0..=1.0)?;
    }
    datadog(&config.sinks.datadog)?;
    http(&config.sinks.datadog.http)?;
    secrets(config)?;
    status(&config.status)?;
    logging(&config.logging)?;
    within("telemetry.log_period", config.telemetry.log_period, 1..=3600)?;
    within("self_profile.hz", config.self_profile.hz, 1..=1000)?;
    within("self_profile.period", config.self_profile.period, 1..=3600)?;
    within("self_profile.keep", config.self_profile.keep, 0..=1440)
}

/// What is given and does nothing, or is dangerous; one line each.
pub(super) fn remarks(config: &Config) -> Vec<String> {
    let intake = &config.intake;
    [
        (
            intake.forward_host.is_empty() != (intake.forward_port == 0),
            "intake.forward_host and intake.forward_port have an effect only together",
        ),
        (
            config.origin.no_hostname && !config.origin.hostname.is_empty(),
            "origin.hostname has no effect with origin.no_hostname",
        ),
        (
            !config.origin.hostname_file.is_empty() && !config.origin.hostname.is_empty(),
            "origin.hostname_file has no effect with origin.hostname",
        ),
        (
            config.sinks.datadog.http.skip_ssl_validation,
            "sinks.datadog.http.skip_ssl_validation is on: any certificate is accepted",
        ),
    ]
    .into_iter()
    .filter(|(applies, _)| *applies)
    .map(|(_, line)| line.to_owned())
    .collect()
}

fn intake(config: &intake::Config) -> Outcome {
    host("intake.bind_host", &config.bind_host)?;
    within("intake.udp_sockets", config.udp_sockets, 1..=64)?;
    if !["", "auto"].contains(&config.socket.as_str()) {
        parsed("intake.socket", socket_path(&config.socket))?;
    }
    if !config.stream_socket.is_empty() {
        parsed("intake.stream_socket", socket_path(&config.stream_socket))?;
    }
    let mode = &config.socket_mode;
    check(
        mode.bytes().all(|digit| digit.is_ascii_digit())
            && u32::from_str_radix(mode, 8).is_ok_and(|mode| mode <= 0o777),
        "intake.socket_mode",
        expected("an octal mode such as 0722", mode),
    )?;
    for (i, listener) in config.listeners.iter().enumerate() {
        let address = listener.address.parse::<ListenAddress>();
        let address = address.map_err(|e| format!("{e}, found {}", quoted(&listener.address)));
        parsed(format!("intake.listeners[{i}].address"), address)?;
    }
    words("intake.eol_required", &config.eol_required, &["udp", "uds", "named_pipe"])?;
    within("intake.buffer_size", config.buffer_size, 256..=1024 * 1024)?;
    within("intake.receive_buffer", config.receive_buffer, 0..=1 << 30)?;
    within("intake.connections_max", config.connections_max, 1..=1_000_000)?;
    if config.forward_host.is_empty() {
        return Ok(());
    }
    host("intake.forward_host", &config.forward_host)
}

/// Compiles the rules, as the start does, and throws the result away.
fn rules(config: &rules::Config) -> Outcome {
    let compiled = Rules::new(config, "");
    compiled.map(drop).map_err(|error| Invalid { path: error.path, message: error.problem })
}

fn collectors(config: &collectors::Config) -> Outcome {
    for (path, root) in [
        ("collectors.proc_root", &config.proc_root),
        ("collectors.cgroup_root", &config.cgroup_root),
    ] {
        let absolute = root.is_empty() || root.starts_with('/');
        check(absolute, path, expected("an absolute path", root))?;
    }
    let collectors::Config { cgroup, docker, itself, .. } = config;
    for (name, interval, budget) in [
        ("cgroup", cgroup.interval, cgroup.budget),
        ("docker", docker.interval, docker.budget),
        ("self", itself.interval, itself.budget),
    ] {
        within(format!("collectors.{name}.interval"), interval, 0..=3600)?;
        within(format!("collectors.{name}.budget"), budget, 0..=3600)?;
    }
    let levels = collectors::cgroup::LEVELS.map(|(word, _)| word);
    words("collectors.cgroup.levels", &cgroup.levels, &levels)?;
    for (path, patterns) in [
        ("collectors.cgroup.exclude", &cgroup.exclude),
        ("collectors.cgroup.include", &cgroup.include),
    ] {
        parsed(path, collectors::cgroup::globs(patterns))?;
    }
    within("collectors.cgroup.max_depth", cgroup.max_depth, 1..=64)?;
    within("collectors.cgroup.max_cgroups", cgroup.max_cgroups, 1..=100_000)?;
    within("collectors.docker.timeout", docker.timeout, 1..=3600)?;
    within("collectors.docker.slow_timeout", docker.slow_timeout, 1..=3600)?;
    let frequency = docker.collect_container_size_frequency;
    within("collectors.docker.collect_container_size_frequency", frequency, 1..=10_000)?;
    within("collectors.docker.containers_max", docker.containers_max, 1..=100_000)?;
    let outcome = collectors::docker::verify(docker);
    outcome
        .map_err(|(name, message)| Invalid { path: format!("collectors.docker.{name}"), message })
}

fn shard(config: &shard::Config) -> Outcome {
    within("shard.contexts_max", config.contexts_max, 1..=1_000_000_000)?;
    within("shard.counter_expiry_seconds", config.counter_expiry_seconds, 0..=86_400)?;
    within("shard.context_expiry_seconds", config.context_expiry_seconds, 1..=86_400)?;
    within("shard.shards", config.shards, 0..=64)
}

fn value(config: &value::Config) -> Outcome {
    let known = Aggregate::ALL.map(Aggregate::word);
    words("value.histogram_aggregates", &config.histogram_aggregates, &known)?;
    for (i, text) in config.histogram_percentiles.iter().enumerate() {
        check(
            parse_percentile(text).is_some(),
            format!("value.histogram_percentiles[{i}]"),
            expected("a fraction from 0 to 1", text),
        )?;
    }
    within("value.histogram_samples_max", config.histogram_samples_max, 1..=1_000_000_000)?;
    within("value.set_members_max", config.set_members_max, 1..=1_000_000_000)?;
    within("value.set_bytes_max", config.set_bytes_max, 0..=1 << 40)
}

fn spool(config: &sinks::spool::Config) -> Outcome {
    within("sinks.spool.max_bytes", config.max_bytes, 0..=1 << 50)?;
    within("sinks.spool.max_disk_ratio", config.max_disk_ratio, 0.0..=1.0)?;
    within("sinks.spool.backlog_rate", config.backlog_rate, 0.01..=10_000.0)
}

fn datadog(config: &sinks::datadog::Config) -> Outcome {
    let path = |key| format!("sinks.datadog.{key}");
    if !config.api_key.is_empty() {
        api_key(path("api_key"), &config.api_key)?;
        let file = &config.api_key_file;
        check(file.is_empty(), path("api_key_file"), "the key is in api_key already: give one")?;
    }
    check(
        is_host(&config.site),
        path("site"),
        expected("a site such as datadoghq.com", &config.site),
    )?;
    if !config.dd_url.is_empty() {
        url(path("dd_url"), &config.dd_url)?;
    }
    for (address, keys) in &config.additional_endpoints {
        url(path("additional_endpoints"), address)?;
        for key in keys {
            api_key(path("additional_endpoints"), key)?;
        }
    }
    let kinds = ["zstd", "zlib", "gzip", "none"];
    word(path("compressor_kind"), &config.compressor_kind, &kinds)?;
    within(path("zstd_level"), config.zstd_level, 1..=22)?;
    for (key, bytes) in [
        ("max_series_payload_size", config.max_series_payload_size),
        ("max_series_uncompressed_payload_size", config.max_series_uncompressed_payload_size),
        ("max_payload_size", config.max_payload_size),
        ("max_uncompressed_payload_size", config.max_uncompressed_payload_size),
    ] {
        within(path(key), bytes, 1024..=1 << 30)?;
    }
    within(path("max_series_points_per_payload"), config.max_series_points_per_payload, 1..=1 << 30)
}

/// A key goes into a header, so it is one visible ASCII word.
fn api_key(path: String, key: &str) -> Outcome {
    if secrets::handle(key).is_some() {
        return Ok(());
    }
    check(
        key.is_empty() || key.bytes().any(|b| b != b'*'),
        path.clone(),
        "is only stars, as `tallyd config` shows keys: give the key itself",
    )?;
    check(
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic()),
        path,
        "expected a key of visible ASCII characters without blanks",
    )
}

fn http(config: &sinks::http::Config) -> Outcome {
    let path = |key: &str| format!("sinks.datadog.http.{key}");
    within(path("connect_timeout"), config.connect_timeout, 1..=3600)?;
    for (key, seconds) in [
        ("timeout", config.timeout),
        ("silence_timeout", config.silence_timeout),
        ("keepalive_time", config.keepalive_time),
        ("keepalive_interval", config.keepalive_interval),
        ("user_timeout", config.user_timeout),
    ] {
        within(path(key), seconds, 0..=3600)?;
    }
    within(path("keepalive_probes"), config.keepalive_probes, 1..=100)?;
    for (key, proxy) in [("proxy_http", &config.proxy_http), ("proxy_https", &config.proxy_https)] {
        if !proxy.is_empty() && secrets::handle(proxy).is_none() {
            url(path(key), proxy)?;
        }
    }
    within(path("dns.fallback"), config.dns.fallback.len(), 0..=8)?;
    for (i, server) in config.dns.fallback.iter().enumerate() {
        check(
            sinks::dns::resolver_address(server).is_some(),
            path(&format!("dns.fallback[{i}]")),
            expected("IP or IP:PORT", server),
        )?;
    }
    word(path("min_tls_version"), &config.min_tls_version, &["tlsv1.2", "tlsv1.3"])
}

/// What is written as `ENC[HANDLE]` needs the program that resolves it.
fn secrets(config: &Config) -> Outcome {
    let datadog = &config.sinks.datadog;
    let keys = datadog.additional_endpoints.values().flatten();
    let further = keys.map(|key| ("sinks.datadog.additional_endpoints", key));
    let single = [
        ("sinks.datadog.api_key", &datadog.api_key),
        ("sinks.datadog.http.proxy_http", &datadog.http.proxy_http),
        ("sinks.datadog.http.proxy_https", &datadog.http.proxy_https),
    ];
    for (path, text) in single.into_iter().chain(further) {
        check(
            secrets::handle(text).is_none() || !config.secrets.command.is_empty(),
            path,
            "is a reference to a secret (ENC[...]): set secrets.command \
             (DD_SECRET_BACKEND_COMMAND) to the program that gives it, or give the value itself",
        )?;
    }
    within("secrets.timeout", config.secrets.timeout, 1..=3600)?;
    within("secrets.output_max", config.secrets.output_max, 1..=1 << 26)?;
    let command = &config.secrets.command;
    check(
        command.is_empty() || command.starts_with('/'),
        "secrets.command",
        expected("an absolute path", command),
    )
}

fn status(config: &status::Config) -> Outcome {
    for (path, address) in [
        ("status.listen", &config.listen),
        ("status.health_listen", &config.health_listen),
        ("status.trace_listen", &config.trace_listen),
    ] {
        if !address.is_empty() {
            let address = host_port(address).map_err(|e| format!("{e}, found {}", quoted(address)));
            parsed(path, address)?;
        }
    }
    within("status.body_max", config.body_max, 1024..=1 << 30)
}

fn logging(config: &logging::Config) -> Outcome {
    parsed("logging.syslog_uri", logging::check_uri(&config.syslog_uri))?;
    within("logging.file_max_rolls", config.file_max_rolls, 0..=1000)?;
    word("logging.level", &config.level, &["trace", "debug", "info", "warn", "error", "off"])
}

fn check(holds: bool, path: impl Into<String>, message: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { Err(Invalid { path: path.into(), message: message.into() }) }
}

fn expected(what: &str, found: &str) -> String {
    format!("expected {what}, found {}", quoted(found))
}

fn parsed<T>(path: impl Into<String>, outcome: Result<T, String>) -> Outcome {
    outcome.map(drop).map_err(|message| Invalid { path: path.into(), message })
}

fn within<T: PartialOrd + Display>(
    path: impl Into<String>,
    value: T,
    range: RangeInclusive<T>,
) -> Outcome {
    let (min, max) = (range.start(), range.end());
    check(range.contains(&value), path, format!("expected {min} to {max}, found {value}"))
}

fn word(path: impl Into<String>, found: &str, known: &[&str]) -> Outcome {
    let shown: Vec<&str> = known.iter().copied().filter(|word| !word.is_empty()).collect();
    check(known.contains(&found), path, expected(&one_of(&shown), found))
}

fn words(path: &str, found: &[String], known: &[&str]) -> Outcome {
    found.iter().enumerate().try_for_each(|(i, text)| word(format!("{path}[{i}]"), text, known))
}

fn host(path: &str, text: &str) -> Outcome {
    let valid = is_host(text) || text.parse::<IpAddr>().is_ok();
    check(valid, path, expected("an address or a host name", text))
}

/// Never repeats the address: it may hold a password.
fn url(path: String, text: &str) -> Outcome {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    check(
        rest.is_some_and(|rest| {
            !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(|b| b.is_ascii_graphic())
        }),
        path,
        "expected an address that begins with http:// or https://",
    )
}

#[cfg(test)]
mod tests {
    use super::super::from_text;
    use super::*;

    /// The fault of a setting with a value, both as YAML writes them.
    fn fault(path: &str, value: &str) -> Option<String> {
        let text = path
            .split('.')
            .rev()
            .fold(value.to_owned(), |inner, key| format!("{{{key}: {inner}}}"));
        let error = from_text("t", &text).err()?.to_string();
        Some(error.strip_prefix(&format!("t:1: {path}")).unwrap_or(&error).to_owned())
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(validate(&Config::default()), Ok(()));
        assert_eq!(remarks(&Config::default()), Vec::<String>::new());
    }

    #[test]
    fn right_values_pass() {
        for (path, value) in [
            ("intake.bind_host", "'::1'"),
            ("intake.bind_host", "localhost"),
            ("intake.socket", "''"),
            ("intake.socket", "/run/x.sock"),
            ("intake.socket_mode", "777"),
            ("intake.eol_required", "[udp, uds, named_pipe]"),
            ("intake.buffer_size", "256"),
            ("intake.buffer_size", "1048576"),
            ("flush.interval", "3600"),
            ("value.histogram_percentiles", "[0, 0.5, 1.0]"),
            ("status.listen", "'[::]:8127'"),
            ("status.listen", "''"),
            ("sinks.datadog.dd_url", "'https://h:1/x'"),
            ("sinks.datadog.compressor_kind", "gzip"),
            ("sinks.datadog.http.min_tls_version", "tlsv1.3"),
            ("logging.level", "off"),
            ("self_profile.hz", "1000"),
            ("self_profile.keep", "0"),
        ] {
            assert_eq!(fault(path, value), None, "{path}: {value}");
        }
    }

    #[test]
    fn wrong_values_are_explained() {
        for (path, value, expected) in [
            ("intake.bind_host", "''", ": expected an address or a host name, found \"\""),
            ("intake.udp_sockets", "0", ": expected 1 to 64, found 0"),
            ("intake.socket", "x.sock", ": expected an absolute path"),
            ("intake.stream_socket", "x.sock", ": expected an absolute path"),
            ("intake.socket_mode", "0788", ": expected an octal mode such as 0722, found \"0788\""),
            ("intake.socket_mode", "1777", ": expected an octal mode such as 0722, found \"1777\""),
            ("intake.socket_mode", "+7", ": expected an octal mode such as 0722, found \"+7\""),
            (
                "intake.eol_required",
                "[udp, tcp]",
                "[1]: expected udp, uds or named_pipe, found \"tcp\"",
            ),
            ("intake.buffer_size", "255", ": expected 256 to 1048576, found 255"),
            (
                "intake.listeners",
                "[{address: 'http://h:1'}]",
                "[0].address: expected udp://HOST:PORT, tcp://HOST:PORT, unixgram:///PATH or \
                 unixstream:///PATH, found \"http://h:1\"",
            ),
            ("intake.forward_host", "a b", ": expected an address or a host name, found \"a b\""),
            (
                "rules.mapper_profiles",
                "[{prefix: a}]",
                "[0].name: missing; give the profile a name",
            ),
            (
                "rules.mapper_profiles",
                "[{name: a, prefix: a, mappings: [{match: a, name: b, match_type: glob}]}]",
                "[0].mappings[0].match_type: \"glob\" is unknown; use wildcard or regex",
            ),
            (
                "rules.mapper_profiles",
                "[{name: a, prefix: a, mappings: [{match: 'a(', name: b, match_type: regex}]}]",
                "[0].mappings[0].match: unclosed group; correct the pattern",
            ),
            (
                "rules.mapper_profiles",
                "[{name: a, prefix: a, mappings: [{match: 'a.**', name: b}]}]",
                "[0].mappings[0].match: consecutive stars; write one",
            ),
            ("origin.hostname", "a b", ": expected a host name, found \"a b\""),
            ("shard.contexts_max", "0", ": expected 1 to 1000000000, found 0"),
            ("shard.counter_expiry_seconds", "86401", ": expected 0 to 86400, found 86401"),
            ("shard.context_expiry_seconds", "0", ": expected 1 to 86400, found 0"),
            ("shard.context_expiry_seconds", "86401", ": expected 1 to 86400, found 86401"),
            (
                "value.histogram_aggregates",
                "[max, mode]",
                "[1]: expected max, median, avg, count, min or sum, found \"mode\"",
            ),
            (
                "value.histogram_percentiles",
                "[0.5, 95]",
                "[1]: expected a fraction from 0 to 1, found \"95\"",
            ),
            ("flush.interval", "3601", ": expected 1 to 3600, found 3601"),
            ("sinks.prometheus.quantiles", "[1.5]", "[0]: expected 0 to 1, found 1.5"),
            ("telemetry.log_period", "0", ": expected 1 to 3600, found 0"),
            ("self_profile.hz", "0", ": expected 1 to 1000, found 0"),
            ("self_profile.period", "3601", ": expected 1 to 3600, found 3601"),
            ("self_profile.keep", "1441", ": expected 0 to 1440, found 1441"),
            ("sinks.datadog.site", "''", ": expected a site such as datadoghq.com, found \"\""),
            (
                "sinks.datadog.api_key",
                "'***'",
                ": is only stars, as `tallyd config` shows keys: give the key itself",
            ),
            (
                "sinks.datadog.dd_url",
                "h:1",
                ": expected an address that begins with http:// or https://",
            ),
            (
                "sinks.datadog.compressor_kind",
                "lz4",
                ": expected zstd, zlib, gzip or none, found \"lz4\"",
            ),
            ("sinks.datadog.zstd_level", "0", ": expected 1 to 22, found 0"),
            ("sinks.datadog.max_payload_size", "1", ": expected 1024 to 1073741824, found 1"),
            (
                "sinks.datadog.http.min_tls_version",
                "tlsv1.1",
                ": expected tlsv1.2 or tlsv1.3, found \"tlsv1.1\"",
            ),
            (
                "status.listen",
                "'8127'",
                ": expected HOST:PORT, such as 127.0.0.1:8125 or [::1]:8125, found \"8127\"",
            ),
            (
                "logging.level",
                "warning",
                ": expected trace, debug, info, warn, error or off, found \"warning\"",
            ),
        ] {
            assert_eq!(fault(path, value).as_deref(), Some(expected), "{path}: {value}");
        }
    }

    #[test]
    fn remarks_tell_what_has_no_effect() {
        for text in [
            "intake: {forward_port: 1}",
            "origin: {hostname: a, no_hostname: true}",
            "sinks: {datadog: {http: {skip_ssl_validation: true}}}",
        ] {
            assert_eq!(from_text("t", text).unwrap().notes.len(), 1, "{text}");
        }
    }
}
