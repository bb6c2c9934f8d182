//! The Agent's own settings: `datadog.yaml` and `DD_*` variables, translated to ours by one table.
//!
//! As in the Agent, a key `a.b` has the variable `DD_A_B`, a variable beats the file, letters'
//! case in keys means nothing, lists may be one text, and a key without a value is not set.
//! An empty variable is not set either, except for the two sockets, which it closes.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::Value;

use super::convert::{Manner, quoted, truth};
use super::load::{Assignment, ConfigError, Source};
use super::tree::{Entry, Node, Shape};
use crate::parse::Cardinality;
use crate::secrets;
use crate::value::{Aggregate, parse_percentile};

/// What the Agent's settings came to.
#[derive(Debug, Default)]
pub(super) struct Translation {
    pub assignments: Vec<Assignment>,
    pub notes: Vec<String>,
}

/// One key of the Agent; a name that ends in `*` stands for all that begin with it.
struct Key {
    name: &'static str,
    effect: Effect,
    /// What a reader of the table should know.
    remark: &'static str,
}

enum Effect {
    /// The same setting under our path.
    Sets(&'static str),
    /// The same, and what an earlier key has set there counts too.
    Adds(&'static str),
    /// Ours, by way of a function.
    Converts(&'static [&'static str], Convert),
    /// Accepted, and nothing changes: tallyd works another way.
    Nothing,
    /// Accepted; this version does not do what it asks for.
    NotYet,
}

/// Gives values for our paths, or says what it expected. May add notes.
type Convert = fn(&Node, &mut Vec<String>) -> Result<Vec<(&'static str, Node)>, String>;

const fn sets(name: &'static str, path: &'static str) -> Key {
    Key { name, effect: Effect::Sets(path), remark: "" }
}

const fn adds(name: &'static str, path: &'static str) -> Key {
    Key { name, effect: Effect::Adds(path), remark: "" }
}

const fn converts(
    name: &'static str,
    paths: &'static [&'static str],
    convert: Convert,
    remark: &'static str,
) -> Key {
    Key { name, effect: Effect::Converts(paths, convert), remark }
}

const fn nothing(name: &'static str, remark: &'static str) -> Key {
    Key { name, effect: Effect::Nothing, remark }
}

const fn not_yet(name: &'static str, remark: &'static str) -> Key {
    Key { name, effect: Effect::NotYet, remark }
}

const QUEUES: &str = "the kernel's socket buffer is the only queue";
const ORIGIN: &str = "tags of containers and pods";
const API_SERVER: &str = "only the API server knows, which tallyd does not ask; for labels of pods see \
                          kubernetes_pod_labels_as_tags";
const ONLY_PODS: &str = "of pods; other resources only the API server knows";
const GO: &str = "tuning of the Agent's own process";
const OTHER: &str = "another part of the Agent";

/// Every key that is known. A later one has precedence over an earlier one with the same target.
static KEYS: &[Key] = &[
    // Destination.
    converts(
        "api_key",
        &["sinks.datadog.api_key"],
        |node, _| Ok(vec![("sinks.datadog.api_key", Node::text(scalar(node)?.trim()))]),
        "",
    ),
    sets("site", "sinks.datadog.site"),
    sets("dd_url", "sinks.datadog.dd_url"),
    sets("additional_endpoints", "sinks.datadog.additional_endpoints"),
    sets("use_v2_api.series", "sinks.datadog.use_v2_series"),
    sets("serializer_compressor_kind", "sinks.datadog.compressor_kind"),
    sets("serializer_zstd_compressor_level", "sinks.datadog.zstd_level"),
    sets("serializer_max_payload_size", "sinks.datadog.max_payload_size"),
    sets("serializer_max_uncompressed_payload_size", "sinks.datadog.max_uncompressed_payload_size"),
    sets("serializer_max_series_payload_size", "sinks.datadog.max_series_payload_size"),
    sets(
        "serializer_max_series_uncompressed_payload_size",
        "sinks.datadog.max_series_uncompressed_payload_size",
    ),
    sets("serializer_max_series_points_per_payload", "sinks.datadog.max_series_points_per_payload"),
    sets("enable_payloads.series", "sinks.datadog.enable_series"),
    sets("enable_payloads.sketches", "sinks.datadog.enable_sketches"),
    sets("enable_payloads.events", "sinks.datadog.enable_events"),
    sets("enable_payloads.service_checks", "sinks.datadog.enable_service_checks"),
    sets("forwarder_timeout", "sinks.datadog.http.timeout"),
    sets("forwarder_retry_queue_payloads_max_size", "sinks.datadog.retry_queue_bytes"),
    sets("forwarder_stop_timeout", "sinks.stop_timeout"),
    Key {
        name: "forwarder_storage_path",
        effect: Effect::Sets("sinks.spool.path"),
        remark: "files of the Agent's own are left alone there",
    },
    converts(
        "forwarder_storage_max_size_in_bytes",
        &["sinks.spool.enabled", "sinks.spool.max_bytes"],
        |node, _| {
            Ok(if scalar(node)?.trim() == "0" {
                vec![("sinks.spool.enabled", Node::text("false"))]
            } else {
                vec![("sinks.spool.max_bytes", node.clone())]
            })
        },
        "0, the Agent's default, turns the spool off; here it is on by default",
    ),
    Key {
        name: "forwarder_storage_max_disk_ratio",
        effect: Effect::Sets("sinks.spool.max_disk_ratio"),
        remark: "0.8 in the Agent",
    },
    sets("run_path", "state.run_path"),
    converts(
        "proxy.http",
        &["sinks.datadog.http.proxy_http"],
        |node, _| Ok(vec![("sinks.datadog.http.proxy_http", proxy(node)?)]),
        "",
    ),
    converts(
        "proxy.https",
        &["sinks.datadog.http.proxy_https"],
        |node, _| Ok(vec![("sinks.datadog.http.proxy_https", proxy(node)?)]),
        "",
    ),
    sets("proxy.no_proxy", "sinks.datadog.http.no_proxy"),
    sets("secret_backend_command", "secrets.command"),
    sets("secret_backend_arguments", "secrets.arguments"),
    sets("secret_backend_timeout", "secrets.timeout"),
    sets("secret_backend_output_max_size", "secrets.output_max"),
    sets("skip_ssl_validation", "sinks.datadog.http.skip_ssl_validation"),
    converts(
        "min_tls_version",
        &["sinks.datadog.http.min_tls_version"],
        min_tls_version,
        "versions before tlsv1.2 are raised to it",
    ),
    // Host and tags.
    sets("hostname", "origin.hostname"),
    sets("hostname_file", "origin.hostname_file"),
    sets("dogstatsd_tags", "rules.tags"),
    converts("tags", &[], host_tags, "host tags: not on the points, in the Agent neither"),
    converts("env", &[], host_tags, "a host tag: not on the points, in the Agent neither"),
    // Listeners.
    converts(
        "dogstatsd_port",
        &["intake.port"],
        |node, _| match scalar(node)? {
            "__random__" => Err("a random port is not supported: give a number".to_owned()),
            _ => Ok(vec![("intake.port", node.clone())]),
        },
        "0 closes UDP",
    ),
    sets("dogstatsd_non_local_traffic", "intake.non_local_traffic"),
    sets("bind_host", "intake.bind_host"),
    sets("dogstatsd_socket", "intake.socket"),
    sets("dogstatsd_stream_socket", "intake.stream_socket"),
    sets("dogstatsd_tcp_port", "intake.tcp_port"),
    sets("dogstatsd_buffer_size", "intake.buffer_size"),
    sets("dogstatsd_so_rcvbuf", "intake.receive_buffer"),
    sets("dogstatsd_eol_required", "intake.eol_required"),
    sets("dogstatsd_no_aggregation_pipeline", "intake.timestamps"),
    sets("statsd_forward_host", "intake.forward_host"),
    sets("statsd_forward_port", "intake.forward_port"),
    converts(
        "dogstatsd_disable_verbose_logs",
        &["intake.log_rejects"],
        |node, _| Ok(vec![("intake.log_rejects", Node::text((!boolean(node)?).to_string()))]),
        "the opposite",
    ),
    converts(
        "use_dogstatsd",
        &["intake.port", "intake.tcp_port", "intake.socket", "intake.stream_socket"],
        |node, _| {
            if boolean(node)? {
                return Ok(Vec::new());
            }
            let closed = [
                ("intake.port", "0"),
                ("intake.tcp_port", "0"),
                ("intake.socket", ""),
                ("intake.stream_socket", ""),
            ];
            Ok(closed.map(|(path, value)| (path, Node::text(value))).to_vec())
        },
        "false closes these four",
    ),
    // Names and aggregation.
    sets("statsd_metric_namespace", "rules.namespace"),
    sets("statsd_metric_namespace_blacklist", "rules.namespace_blocklist"),
    sets("statsd_metric_namespace_blocklist", "rules.namespace_blocklist"),
    sets("statsd_metric_blocklist", "rules.metric_blocklist"),
    sets("statsd_metric_blocklist_match_prefix", "rules.metric_blocklist_match_prefix"),
    converts(
        "metric_filterlist",
        &["rules.metric_blocklist", "rules.metric_blocklist_match_prefix"],
        |node, _| {
            if node.words().is_some_and(|words| words.is_empty()) {
                return Ok(Vec::new());
            }
            let exact = Node::text("false");
            Ok(vec![
                ("rules.metric_blocklist", node.clone()),
                ("rules.metric_blocklist_match_prefix", exact),
            ])
        },
        "replaces statsd_metric_blocklist unless empty",
    ),
    sets("metric_filterlist_match_prefix", "rules.metric_blocklist_match_prefix"),
    Key {
        name: "dogstatsd_mapper_profiles",
        effect: Effect::Sets("rules.mapper_profiles"),
        remark: "a profile that is wrong stops the start; in the Agent it turns the mapper off",
    },
    converts(
        "histogram_aggregates",
        &["value.histogram_aggregates"],
        |node, notes| {
            let known = |word: &str| Aggregate::of_word(word).is_some();
            let kept = keep(node, "histogram_aggregates", notes, known)?;
            Ok(vec![("value.histogram_aggregates", kept)])
        },
        "unknown words are left out, with a note",
    ),
    converts(
        "histogram_percentiles",
        &["value.histogram_percentiles"],
        |node, notes| {
            let known = |text: &str| parse_percentile(text).is_some();
            let kept = keep(node, "histogram_percentiles", notes, known)?;
            Ok(vec![("value.histogram_percentiles", kept)])
        },
        "what is not a fraction from 0 to 1 is left out, with a note",
    ),
    sets("histogram_copy_to_distribution", "value.histogram_copy_to_distribution"),
    sets("histogram_copy_to_distribution_prefix", "value.histogram_copy_to_distribution_prefix"),
    converts(
        "dogstatsd_expiry_seconds",
        &["shard.counter_expiry_seconds"],
        |node, _| Ok(vec![("shard.counter_expiry_seconds", whole(node)?)]),
        "",
    ),
    converts(
        "dogstatsd_context_expiry_seconds",
        &["shard.context_expiry_seconds"],
        |node, _| Ok(vec![("shard.context_expiry_seconds", whole(node)?)]),
        "",
    ),
    sets("aggregate_context_limit", "shard.contexts_max"),
    sets("dogstatsd_flush_incomplete_buckets", "flush.incomplete_buckets"),
    // Logs and health.
    converts(
        "log_level",
        &["logging.level"],
        |node, _| {
            let level = scalar(node)?.to_ascii_lowercase();
            let level = match level.as_str() {
                "warning" => "warn",
                "critical" => "error",
                other => other,
            };
            Ok(vec![("logging.level", Node::text(level))])
        },
        "warning is warn, critical is error",
    ),
    converts(
        "log_format_json",
        &["logging.format"],
        |node, _| {
            let format = if boolean(node)? { "json" } else { "text" };
            Ok(vec![("logging.format", Node::text(format))])
        },
        "",
    ),
    sets("log_file", "logging.file"),
    converts(
        "log_file_max_size",
        &["logging.file_max_bytes"],
        |node, _| Ok(vec![("logging.file_max_bytes", bytes(node)?)]),
        "a number of bytes, or of kB, MB or GB",
    ),
    sets("log_file_max_rolls", "logging.file_max_rolls"),
    sets("log_to_console", "logging.console"),
    sets("log_to_syslog", "logging.syslog"),
    Key {
        name: "syslog_uri",
        effect: Effect::Sets("logging.syslog_uri"),
        remark: "unixgram or udp; not tcp",
    },
    sets("syslog_rfc", "logging.syslog_rfc5424"),
    converts(
        "health_port",
        &["status.health_listen"],
        |node, _| {
            let address = match scalar(node)?.trim().parse::<u16>() {
                Ok(0) => String::new(),
                Ok(port) => format!("0.0.0.0:{port}"),
                Err(_) => return Err(format!("expected a port, found {}", quoted(scalar(node)?))),
            };
            Ok(vec![("status.health_listen", Node::text(address))])
        },
        "on all addresses; 0 closes it",
    ),
    // Origins.
    Key {
        name: "dogstatsd_origin_detection",
        effect: Effect::Sets("origin.detection"),
        remark: "off in the Agent",
    },
    Key {
        name: "dogstatsd_origin_detection_client",
        effect: Effect::Sets("intake.origin_fields"),
        remark: "off in the Agent",
    },
    sets("origin_detection_unified", "origin.unified"),
    sets("dogstatsd_entity_id_precedence", "origin.entity_id_precedence"),
    converts(
        "dogstatsd_tag_cardinality",
        &["origin.cardinality"],
        |node, _| {
            let text = scalar(node)?;
            let expected = "expected none, low, orchestrator or high, found";
            let cardinality = Cardinality::parse(text.trim().as_bytes());
            let word = cardinality.map(Cardinality::word);
            let word = word.ok_or_else(|| format!("{expected} {}", quoted(text)))?;
            Ok(vec![("origin.cardinality", Node::text(word))])
        },
        "",
    ),
    nothing("dogstatsd_origin_optout_enabled", "the cardinality none never brings tags"),
    // Containers.
    sets("docker_labels_as_tags", "collectors.docker.labels_as_tags"),
    adds("container_labels_as_tags", "collectors.docker.labels_as_tags"),
    sets("docker_env_as_tags", "collectors.docker.env_as_tags"),
    adds("container_env_as_tags", "collectors.docker.env_as_tags"),
    sets("docker_query_timeout", "collectors.docker.timeout"),
    sets("ac_include", "collectors.docker.include"),
    sets("container_include", "collectors.docker.include"),
    adds("container_include_metrics", "collectors.docker.include"),
    sets("ac_exclude", "collectors.docker.exclude"),
    sets("container_exclude", "collectors.docker.exclude"),
    adds("container_exclude_metrics", "collectors.docker.exclude"),
    converts(
        "exclude_pause_container",
        &["collectors.docker.exclude_pause_container", "collectors.cgroup.exclude_pause_container"],
        |node, _| {
            let paths = [
                "collectors.docker.exclude_pause_container",
                "collectors.cgroup.exclude_pause_container",
            ];
            Ok(paths.map(|path| (path, node.clone())).to_vec())
        },
        "",
    ),
    sets("procfs_path", "collectors.proc_root"),
    sets("container_proc_root", "collectors.proc_root"),
    sets("container_cgroup_root", "collectors.cgroup_root"),
    sets("kubernetes_kubelet_host", "collectors.kubelet.host"),
    sets("kubernetes_https_kubelet_port", "collectors.kubelet.https_port"),
    sets("kubernetes_http_kubelet_port", "collectors.kubelet.http_port"),
    sets("kubelet_tls_verify", "collectors.kubelet.tls_verify"),
    sets("kubelet_client_ca", "collectors.kubelet.ca_file"),
    sets("kubelet_auth_token_path", "collectors.kubelet.token_file"),
    converts(
        "kubernetes_resources_labels_as_tags",
        &["collectors.kubelet.pod_labels_as_tags"],
        |node, notes| {
            let pods = of_pods(node, "kubernetes_resources_labels_as_tags", notes)?;
            let path = "collectors.kubelet.pod_labels_as_tags";
            Ok(pods.map(|pods| (path, pods)).into_iter().collect())
        },
        ONLY_PODS,
    ),
    converts(
        "kubernetes_resources_annotations_as_tags",
        &["collectors.kubelet.pod_annotations_as_tags"],
        |node, notes| {
            let pods = of_pods(node, "kubernetes_resources_annotations_as_tags", notes)?;
            let path = "collectors.kubelet.pod_annotations_as_tags";
            Ok(pods.map(|pods| (path, pods)).into_iter().collect())
        },
        ONLY_PODS,
    ),
    adds("kubernetes_pod_labels_as_tags", "collectors.kubelet.pod_labels_as_tags"),
    adds("kubernetes_pod_annotations_as_tags", "collectors.kubelet.pod_annotations_as_tags"),
    nothing("checks_tag_cardinality", "figures of a container carry all its tags, as the Agent's"),
    nothing("container_include_logs", OTHER),
    nothing("container_exclude_logs", OTHER),
    // What this version does not do.
    not_yet("kubernetes_namespace_*", API_SERVER),
    not_yet("kubernetes_node_*", API_SERVER),
    not_yet("kubernetes_*", ORIGIN),
    not_yet("ecs_*", ORIGIN),
    not_yet("secret_*", "other ways to secrets"),
    not_yet("dogstatsd_capture_*", "capture of traffic"),
    not_yet("dogstatsd_metrics_stats_enable", "statistics per metric name"),
    not_yet("dogstatsd_stats_*", "statistics per metric name"),
    not_yet("dogstatsd_log_file*", "statistics per metric name in a log"),
    not_yet("dogstatsd_logging_enabled", "statistics per metric name in a log"),
    not_yet("metric_tag_filterlist", "removal of tags"),
    not_yet("multi_region_failover.*", "a further region"),
    not_yet("syslog_*", "TLS to syslog"),
    not_yet("cmd_port", "commands over HTTP"),
    // What has no counterpart.
    nothing("dogstatsd_queue_size", QUEUES),
    nothing("dogstatsd_packet_buffer_size", QUEUES),
    nothing("dogstatsd_packet_buffer_flush_timeout", QUEUES),
    nothing("dogstatsd_buffer_count*", QUEUES),
    nothing("dogstatsd_autoscale_udp_listeners", "see intake.udp_sockets"),
    nothing("dogstatsd_mapper_cache_size", "a name is mapped once per series"),
    nothing("dogstatsd_minimum_sample_rate", "a rate outside (0, 1] counts as 1"),
    nothing("dogstatsd_no_aggregation_pipeline_batch_size", QUEUES),
    nothing("dogstatsd_workers_count", GO),
    nothing("dogstatsd_string_interner_size", GO),
    nothing("dogstatsd_mem_based_rate_limiter.*", GO),
    nothing("dogstatsd_pipeline_*", GO),
    nothing("dogstatsd_telemetry_*", GO),
    nothing("dogstatsd_stream_log_too_big", "counted, always"),
    nothing("dogstatsd_pipe_name", "Windows"),
    nothing("dogstatsd_windows_*", "Windows"),
    nothing("dogstatsd_host_socket_path", "read by the admission controller"),
    nothing("aggregator_*", GO),
    nothing("enable_payloads.json_to_v1_intake", "not sent"),
    nothing("enable_*_stream_payload_serialization", GO),
    nothing("secret_backend_command_allow_group_exec_perm", "its group may always execute it"),
    nothing("forwarder_retry_queue_max_size", "the older, by count"),
    nothing("forwarder_outdated_file_in_days", "files do not grow old: see sinks.spool.max_bytes"),
    nothing("forwarder_flush_to_disk_mem_ratio", "payloads go to disk before they are sent"),
    nothing("forwarder_*", "see sinks.datadog"),
    nothing("log_format_rfc3339", "always"),
    nothing("enable_metadata_collection", "no host metadata is sent"),
    nothing("send_host_metadata", "no host metadata is sent"),
    nothing("telemetry.*", "own counters are always on the HTTP server"),
    nothing("expvar_port", "see status.listen"),
    nothing("container_*", OTHER),
    nothing("proxy.*", "see sinks.datadog.http"),
    nothing("no_proxy_nonexact_match", "see sinks.datadog.http"),
    nothing("use_proxy_for_cloud_metadata", OTHER),
    nothing("use_v2_api.*", "service checks and events have one form each"),
    nothing("serializer_*", GO),
    nothing("remote_configuration.*", OTHER),
    nothing("remote_updates", OTHER),
    nothing("apm_config.*", OTHER),
    nothing("apm_*", OTHER),
    nothing("logs_*", OTHER),
    nothing("logs_config.*", OTHER),
    nothing("process_*", OTHER),
    nothing("process_config.*", OTHER),
    nothing("system_probe*", OTHER),
    nothing("network_*", OTHER),
    nothing("runtime_security_config.*", OTHER),
    nothing("compliance_config.*", OTHER),
    nothing("sbom.*", OTHER),
    nothing("otlp_config.*", OTHER),
    nothing("cluster_*", OTHER),
    nothing("admission_controller.*", OTHER),
    nothing("autodiscovery*", OTHER),
    nothing("listeners", OTHER),
    nothing("config_providers", OTHER),
    sets("confd_path", "collectors.conf_d"),
    nothing("confd_*", OTHER),
    nothing("checks_*", OTHER),
    nothing("additional_checksd", OTHER),
    nothing("jmx_*", OTHER),
    nothing("inventories_*", OTHER),
    nothing("gui_*", OTHER),
    nothing("agent_ipc*", OTHER),
    nothing("auth_token*", OTHER),
    nothing("collect_*", OTHER),
    nothing("cloud_provider_metadata", OTHER),
    nothing("ec2_*", OTHER),
    nothing("internal_profiling.*", OTHER),
    nothing("data_plane.*", OTHER),
];

/// Further variables for keys, after `DD_` + key: the general ones give way to the Agent's own.
const VARIABLES: [(&str, &str); 7] = [
    ("DD_URL", "dd_url"),
    ("HTTP_PROXY", "proxy.http"),
    ("http_proxy", "proxy.http"),
    ("HTTPS_PROXY", "proxy.https"),
    ("https_proxy", "proxy.https"),
    ("NO_PROXY", "proxy.no_proxy"),
    ("no_proxy", "proxy.no_proxy"),
];

/// `DD_*` variables that clients and tracers read; an application's container often has both.
const CLIENT_VARIABLES: [&str; 19] = [
    "DD_AGENT_HOST",
    "DD_APPSEC_",
    "DD_CARDINALITY",
    "DD_DOGSTATSD_HOST",
    "DD_DOGSTATSD_URL",
    "DD_DYNAMIC_INSTRUMENTATION_",
    "DD_ENTITY_ID",
    "DD_EXTERNAL_ENV",
    "DD_GIT_",
    "DD_IAST_",
    "DD_INSTRUMENTATION_",
    "DD_INTERNAL_",
    "DD_LOGS_INJECTION",
    "DD_ORIGIN_DETECTION_ENABLED",
    "DD_PROFILING_",
    "DD_RUNTIME_METRICS_",
    "DD_SERVICE",
    "DD_TRACE_",
    "DD_VERSION",
];

/// Keys that an empty variable sets to nothing.
const MAY_BE_EMPTY: [&str; 2] = ["dogstatsd_socket", "dogstatsd_stream_socket"];

/// The value of a key, and where it was given.
struct Given {
    node: Node,
    source: Source,
}

/// Translates the Agent's file (its name and content) and environment.
pub(super) fn translate(
    file: Option<(&str, &Node)>,
    environment: &[(String, String)],
) -> Result<Translation, ConfigError> {
    let mut reader = Reader::default();
    if let Some((name, node)) = file {
        match &node.shape {
            Shape::Map(entries) => reader.file(name, "", entries),
            Shape::Scalar { .. } | Shape::List(_) => {
                return Err(ConfigError::new(name, "expected the Agent's settings"));
            }
        }
    }
    reader.environment(environment);

    let mut translation = Translation::default();
    for key in KEYS {
        let Some(given) = reader.given.remove(key.name) else { continue };
        let values = match &key.effect {
            Effect::Sets(path) => vec![(*path, given.node)],
            Effect::Adds(path) => {
                let earlier = translation.assignments.iter().find(|earlier| earlier.path == *path);
                vec![(*path, joined(earlier.map(|earlier| &earlier.node), given.node))]
            }
            Effect::Converts(_, convert) => convert(&given.node, &mut translation.notes)
                .map_err(|e| ConfigError::new(&given.source, format!("{}: {e}", key.name)))?,
            Effect::Nothing | Effect::NotYet => Vec::new(),
        };
        for (path, node) in values {
            translation.assignments.retain(|earlier| earlier.path != path);
            let (path, source) = (path.to_owned(), given.source.clone());
            translation.assignments.push(Assignment { path, node, source, manner: Manner::Text });
        }
    }
    translation.notes.extend(reader.notes());
    translation.notes.dedup();
    Ok(translation)
}

/// Our setting that does what a key of the Agent does.
pub(super) fn path_of(name: &str) -> Option<&'static str> {
    match KEYS.iter().find(|key| key.name == name)?.effect {
        Effect::Sets(path) | Effect::Adds(path) => Some(path),
        Effect::Converts(paths, _) => paths.first().copied(),
        Effect::Nothing | Effect::NotYet => None,
    }
}

/// The table of all keys as a page in markdown.
pub fn page() -> String {
    let mut page = "\
# Settings of the Datadog Agent

tallyd reads the Agent's `datadog.yaml` (`--datadog-config FILE`, else /etc/datadog-agent/datadog.yaml \
or /etc/datadog-agent/dogstatsd.yaml) and its environment variables. A `*` stands for any further \
letters. Keys that are not in this table are ignored and named once in the log.
"
    .to_owned();
    for (title, shown) in [
        ("Effective", (|e| !matches!(e, Effect::Nothing | Effect::NotYet)) as fn(&Effect) -> bool),
        ("Accepted, not effective in this version", |e| matches!(e, Effect::NotYet)),
        ("Accepted without effect", |e| matches!(e, Effect::Nothing)),
    ] {
        let _ = write!(
            page,
            "\n## {title}\n\n| Key | Variable | Setting | Remark |\n| --- | --- | --- | --- |\n"
        );
        for key in KEYS.iter().filter(|key| shown(&key.effect)) {
            let paths: Vec<String> = match &key.effect {
                Effect::Sets(path) | Effect::Adds(path) => vec![format!("`{path}`")],
                Effect::Converts(paths, _) => paths.iter().map(|p| format!("`{p}`")).collect(),
                Effect::Nothing | Effect::NotYet => Vec::new(),
            };
            let variables = VARIABLES.iter().filter(|(_, name)| *name == key.name);
            let variables = variables
                .fold(format!("`{}`", variable(key.name)), |all, (variable, _)| {
                    format!("{all}, `{variable}`")
                });
            let _ = writeln!(
                page,
                "| `{}` | {variables} | {} | {} |",
                key.name,
                paths.join(", "),
                key.remark
            );
        }
    }
    page
}

#[derive(Default)]
struct Reader {
    /// By name in the table.
    given: HashMap<&'static str, Given>,
    nothing: Vec<String>,
    not_yet: Vec<String>,
    unknown: Vec<String>,
}

impl Reader {
    fn file(&mut self, file: &str, section: &str, entries: &[Entry]) {
        for Entry { key, line, value } in entries {
            let key = key.to_lowercase();
            let name = if section.is_empty() { key } else { format!("{section}.{key}") };
            if value.is_null() {
                continue;
            }
            let within = format!("{name}.");
            match (find(&name), &value.shape) {
                (Some(key), _) => {
                    let source = Source::File { name: file.to_owned(), line: *line };
                    self.take(key, name, Given { node: value.clone(), source });
                }
                (None, Shape::Map(entries)) if KEYS.iter().any(|k| k.name.starts_with(&within)) => {
                    self.file(file, &name, entries);
                }
                (None, _) => self.unknown.push(name),
            }
        }
    }

    fn environment(&mut self, environment: &[(String, String)]) {
        // General variables first, so that the Agent's own replace them.
        for (variable, name) in VARIABLES.iter().rev() {
            let value = environment.iter().find(|(v, value)| v == variable && !value.is_empty());
            if let (Some((_, value)), Some(key)) = (value, find(name)) {
                self.take(key, (*variable).to_owned(), of_variable(variable, value));
            }
        }
        for (variable, value) in environment {
            if !variable.starts_with("DD_")
                || VARIABLES.iter().any(|(general, _)| general == variable)
                || CLIENT_VARIABLES.iter().any(|prefix| variable.starts_with(prefix))
            {
                continue;
            }
            match find_variable(variable) {
                Some(key) if !value.is_empty() || MAY_BE_EMPTY.contains(&key.name) => {
                    self.take(key, variable.clone(), of_variable(variable, value));
                }
                Some(_) => {}
                None => self.unknown.push(variable.clone()),
            }
        }
    }

    fn take(&mut self, key: &'static Key, name: String, given: Given) {
        match &key.effect {
            Effect::Sets(_) | Effect::Adds(_) | Effect::Converts(..) => {
                self.given.insert(key.name, given);
            }
            Effect::Nothing => self.nothing.push(name),
            // Switched off is what it is here.
            Effect::NotYet if is_off(&given.node) => {}
            Effect::NotYet => self.not_yet.push(name),
        }
    }

    fn notes(self) -> impl Iterator<Item = String> {
        [
            ("settings of the Agent that have no effect in tallyd", self.nothing),
            ("settings of the Agent that are not effective in this version", self.not_yet),
            ("settings that tallyd does not know and ignores", self.unknown),
        ]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(title, mut names)| {
            names.sort_unstable();
            names.dedup();
            let names: Vec<String> = names.iter().map(|n| n.escape_debug().to_string()).collect();
            format!("{title}: {}", names.join(", "))
        })
    }
}

/// A variable's value: JSON, or text. Broken JSON stays text and is refused with its setting.
fn of_variable(variable: &str, value: &str) -> Given {
    let json = Some(value).filter(|value| value.trim_start().starts_with(['[', '{']));
    let json = json.and_then(|value| serde_json::from_str::<Value>(value).ok());
    let node = json.map_or_else(|| Node::text(value), Node::from);
    Given { node, source: Source::Variable(variable.to_owned()) }
}

/// What a map of resources has for pods, if anything. Other resources are named.
fn of_pods(node: &Node, name: &str, notes: &mut Vec<String>) -> Result<Option<Node>, String> {
    let parsed = node.as_text().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let parsed = parsed.map(Node::from);
    let Shape::Map(entries) = &parsed.as_ref().unwrap_or(node).shape else {
        return Err("expected a map".to_owned());
    };
    let (pods, others): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.key == "pods");
    if !others.is_empty() {
        let names: Vec<&str> = others.iter().map(|entry| &*entry.key).collect();
        let names = quoted(&names.join(", "));
        notes.push(format!("{name}: left out {names}, which only the API server knows"));
    }
    Ok(pods.first().map(|entry| entry.value.clone()))
}

/// Two lists, or two maps, as one. What is neither is left to be complained about.
fn joined(earlier: Option<&Node>, later: Node) -> Node {
    let Some(earlier) = earlier else { return later };
    match (&earlier.shape, &later.shape) {
        (Shape::Map(a), Shape::Map(b)) => {
            let later_has = |entry: &&Entry| !b.iter().any(|other| other.key == entry.key);
            let kept: Vec<Entry> = a.iter().filter(later_has).chain(b).cloned().collect();
            Node { shape: Shape::Map(kept), ..later }
        }
        (Shape::Scalar { .. } | Shape::List(_), Shape::Scalar { .. } | Shape::List(_)) => {
            match (earlier.words(), later.words()) {
                (Some(a), Some(b)) => Node {
                    line: later.line,
                    ..Node::list(a.into_iter().chain(b).map(Node::text).collect())
                },
                _ => later,
            }
        }
        _ => later,
    }
}

fn is_off(node: &Node) -> bool {
    match &node.shape {
        Shape::Scalar { text, .. } => ["", "0", "false", "no"].contains(&text.as_str()),
        Shape::List(items) => items.is_empty(),
        Shape::Map(entries) => entries.is_empty(),
    }
}

/// The key of a name: itself, or the first pattern that fits.
fn find(name: &str) -> Option<&'static Key> {
    let exact = KEYS.iter().find(|key| key.name == name);
    exact.or_else(|| KEYS.iter().find(|key| fits(key.name, name)))
}

fn find_variable(name: &str) -> Option<&'static Key> {
    let exact = KEYS.iter().find(|key| variable(key.name) == name);
    exact.or_else(|| KEYS.iter().find(|key| fits(&variable(key.name), name)))
}

/// Whether a pattern with at most one `*` fits a name.
fn fits(pattern: &str, name: &str) -> bool {
    pattern.split_once('*').is_some_and(|(start, end)| {
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    })
}

fn variable(name: &str) -> String {
    format!("DD_{}", name.to_uppercase().replace('.', "_"))
}

fn scalar(node: &Node) -> Result<&str, String> {
    node.as_text().ok_or_else(|| "expected a single value".to_owned())
}

fn boolean(node: &Node) -> Result<bool, String> {
    let text = scalar(node)?;
    truth(text).ok_or_else(|| format!("expected true or false, found {}", quoted(text)))
}

/// Seconds, which the Agent reads as a fraction in places: the whole ones.
fn whole(node: &Node) -> Result<Node, String> {
    match scalar(node)?.trim().parse::<f64>() {
        Ok(seconds) if (0.0..=1e9).contains(&seconds) => {
            Ok(Node::text(seconds.trunc().to_string()))
        }
        _ => Err(format!("expected seconds, found {}", quoted(scalar(node)?))),
    }
}

/// A size: the Agent's units are powers of 1024, whatever the case of their letters.
fn bytes(node: &Node) -> Result<Node, String> {
    let text = scalar(node)?.trim().to_ascii_lowercase();
    let units = [("kb", 10), ("mb", 20), ("gb", 30)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or_else(|| (text.strip_suffix('b').unwrap_or(&text), 0));
    let size = number.trim().parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    let size =
        size.ok_or_else(|| format!("expected a size such as 10MB, found {}", quoted(&text)))?;
    Ok(Node::text(size.to_string()))
}

/// A proxy; without a scheme it is one for HTTP, as everywhere with these variables.
fn proxy(node: &Node) -> Result<Node, String> {
    match scalar(node)?.trim() {
        text if text.is_empty() || text.contains("://") || secrets::handle(text).is_some() => {
            Ok(Node::text(text))
        }
        text => Ok(Node::text(format!("http://{text}"))),
    }
}

fn min_tls_version(
    node: &Node,
    notes: &mut Vec<String>,
) -> Result<Vec<(&'static str, Node)>, String> {
    let mut version = scalar(node)?.to_ascii_lowercase();
    if ["tlsv1.0", "tlsv1.1"].contains(&version.as_str()) {
        notes.push(format!("min_tls_version {version} is raised to tlsv1.2"));
        version = "tlsv1.2".to_owned();
    }
    Ok(vec![("sinks.datadog.http.min_tls_version", Node::text(version))])
}

fn host_tags(_: &Node, notes: &mut Vec<String>) -> Result<Vec<(&'static str, Node)>, String> {
    notes.push(
        "tags and env (DD_TAGS, DD_ENV) are tags of the host in the Datadog app, not of points, \
         and tallyd sends none; for tags on every point use dogstatsd_tags or rules.tags"
            .to_owned(),
    );
    Ok(Vec::new())
}

/// The words of a list that the Agent would keep.
fn keep(
    node: &Node,
    name: &str,
    notes: &mut Vec<String>,
    good: impl Fn(&str) -> bool,
) -> Result<Node, String> {
    let words = node.words().ok_or_else(|| "expected a list".to_owned())?;
    let (kept, other): (Vec<&str>, Vec<&str>) = words.iter().partition(|word| good(word));
    if !other.is_empty() {
        notes.push(format!("{name}: left out {}", quoted(&other.join(", "))));
    }
    Ok(Node::list(kept.into_iter().map(Node::text).collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::super::{Config, Loaded, agent_from_text, describe};
    use super::*;

    fn of_file(text: &str) -> Loaded {
        agent_from_text("datadog.yaml", text, &[]).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn of_variables(pairs: &[(&str, &str)]) -> Loaded {
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        agent_from_text("datadog.yaml", "", &pairs).unwrap_or_else(|e| panic!("{pairs:?}: {e}"))
    }

    fn at(loaded: &Loaded, path: &str) -> Value {
        let whole = serde_json::to_value(&loaded.config).unwrap();
        whole.pointer(&format!("/{}", path.replace('.', "/"))).unwrap().clone()
    }

    #[test]
    fn the_table_is_sound() {
        let mut names = HashSet::new();
        for key in KEYS {
            assert!(names.insert(key.name), "{} is there twice", key.name);
            let paths = match &key.effect {
                Effect::Sets(path) | Effect::Adds(path) => std::slice::from_ref(path),
                Effect::Converts(paths, _) => paths,
                Effect::Nothing | Effect::NotYet => {
                    assert!(!key.remark.is_empty(), "{} has no reason", key.name);
                    &[]
                }
            };
            for path in paths {
                assert!(describe::find(path).is_some_and(|d| !d.section), "{path}");
            }
        }
    }

    /// Every key that has an effect: YAML, our path, our value.
    const EFFECTIVE: &[(&str, &str, &str, &str)] = &[
        ("api_key", "' 0123 '", "sinks.datadog.api_key", "\"0123\""),
        ("site", "us3.datadoghq.com", "sinks.datadog.site", "\"us3.datadoghq.com\""),
        ("dd_url", "https://a.b", "sinks.datadog.dd_url", "\"https://a.b\""),
        (
            "additional_endpoints",
            "{\"https://a.b\": [\"k\"]}",
            "sinks.datadog.additional_endpoints",
            "{\"https://a.b\": [\"k\"]}",
        ),
        ("use_v2_api.series", "false", "sinks.datadog.use_v2_series", "false"),
        ("serializer_compressor_kind", "zlib", "sinks.datadog.compressor_kind", "\"zlib\""),
        ("serializer_zstd_compressor_level", "3", "sinks.datadog.zstd_level", "3"),
        ("serializer_max_payload_size", "2000", "sinks.datadog.max_payload_size", "2000"),
        (
            "serializer_max_uncompressed_payload_size",
            "2000",
            "sinks.datadog.max_uncompressed_payload_size",
            "2000",
        ),
        (
            "serializer_max_series_payload_size",
            "2000",
            "sinks.datadog.max_series_payload_size",
            "2000",
        ),
        (
            "serializer_max_series_uncompressed_payload_size",
            "2000",
            "sinks.datadog.max_series_uncompressed_payload_size",
            "2000",
        ),
        (
            "serializer_max_series_points_per_payload",
            "20",
            "sinks.datadog.max_series_points_per_payload",
            "20",
        ),
        ("enable_payloads.series", "false", "sinks.datadog.enable_series", "false"),
        ("enable_payloads.sketches", "false", "sinks.datadog.enable_sketches", "false"),
        ("enable_payloads.events", "false", "sinks.datadog.enable_events", "false"),
        ("enable_payloads.service_checks", "false", "sinks.datadog.enable_service_checks", "false"),
        ("forwarder_timeout", "5", "sinks.datadog.http.timeout", "5"),
        (
            "forwarder_retry_queue_payloads_max_size",
            "1000",
            "sinks.datadog.retry_queue_bytes",
            "1000",
        ),
        ("forwarder_stop_timeout", "9", "sinks.stop_timeout", "9"),
        ("forwarder_storage_path", "/a/b", "sinks.spool.path", "\"/a/b\""),
        ("forwarder_storage_max_size_in_bytes", "1000", "sinks.spool.max_bytes", "1000"),
        ("forwarder_storage_max_size_in_bytes", "1000", "sinks.spool.enabled", "true"),
        ("forwarder_storage_max_size_in_bytes", "0", "sinks.spool.enabled", "false"),
        ("forwarder_storage_max_disk_ratio", "0.5", "sinks.spool.max_disk_ratio", "0.5"),
        ("run_path", "/a/b", "state.run_path", "\"/a/b\""),
        ("confd_path", "/a/b", "collectors.conf_d", "\"/a/b\""),
        ("proxy.http", "http://p:1", "sinks.datadog.http.proxy_http", "\"http://p:1\""),
        ("proxy.https", "p:1", "sinks.datadog.http.proxy_https", "\"http://p:1\""),
        ("proxy.no_proxy", "[\"a\", \"b\"]", "sinks.datadog.http.no_proxy", "[\"a\", \"b\"]"),
        ("skip_ssl_validation", "true", "sinks.datadog.http.skip_ssl_validation", "true"),
        ("min_tls_version", "TLSv1.3", "sinks.datadog.http.min_tls_version", "\"tlsv1.3\""),
        ("min_tls_version", "tlsv1.0", "sinks.datadog.http.min_tls_version", "\"tlsv1.2\""),
        ("hostname", "web-1", "origin.hostname", "\"web-1\""),
        ("dogstatsd_origin_detection", "false", "origin.detection", "false"),
        ("dogstatsd_origin_detection_client", "false", "intake.origin_fields", "false"),
        ("origin_detection_unified", "true", "origin.unified", "true"),
        ("dogstatsd_entity_id_precedence", "true", "origin.entity_id_precedence", "true"),
        ("dogstatsd_tag_cardinality", "Orch", "origin.cardinality", "\"orchestrator\""),
        ("hostname_file", "/a/b", "origin.hostname_file", "\"/a/b\""),
        ("secret_backend_command", "/a/b", "secrets.command", "\"/a/b\""),
        ("secret_backend_arguments", "[\"a\", \"b\"]", "secrets.arguments", "[\"a\", \"b\"]"),
        ("secret_backend_timeout", "5", "secrets.timeout", "5"),
        ("secret_backend_output_max_size", "1000", "secrets.output_max", "1000"),
        ("dogstatsd_tags", "[\"a:b\", \"c\"]", "rules.tags", "[\"a:b\", \"c\"]"),
        ("dogstatsd_port", "9125", "intake.port", "9125"),
        ("dogstatsd_port", "0", "intake.port", "0"),
        ("dogstatsd_non_local_traffic", "yes", "intake.non_local_traffic", "true"),
        ("bind_host", "localhost", "intake.bind_host", "\"localhost\""),
        ("dogstatsd_socket", "/a/b", "intake.socket", "\"/a/b\""),
        ("dogstatsd_stream_socket", "/a/b", "intake.stream_socket", "\"/a/b\""),
        ("dogstatsd_tcp_port", "1", "intake.tcp_port", "1"),
        ("dogstatsd_buffer_size", "65536", "intake.buffer_size", "65536"),
        ("dogstatsd_so_rcvbuf", "1000", "intake.receive_buffer", "1000"),
        ("dogstatsd_eol_required", "[\"udp\"]", "intake.eol_required", "[\"udp\"]"),
        ("dogstatsd_no_aggregation_pipeline", "false", "intake.timestamps", "false"),
        ("statsd_forward_host", "h", "intake.forward_host", "\"h\""),
        ("statsd_forward_port", "1", "intake.forward_port", "1"),
        ("dogstatsd_disable_verbose_logs", "true", "intake.log_rejects", "false"),
        ("use_dogstatsd", "false", "intake.port", "0"),
        ("use_dogstatsd", "false", "intake.socket", "\"\""),
        ("use_dogstatsd", "true", "intake.port", "8125"),
        ("statsd_metric_namespace", "a.", "rules.namespace", "\"a.\""),
        ("statsd_metric_namespace_blacklist", "[\"a\"]", "rules.namespace_blocklist", "[\"a\"]"),
        ("statsd_metric_namespace_blocklist", "[\"a\"]", "rules.namespace_blocklist", "[\"a\"]"),
        ("statsd_metric_blocklist", "[\"a\"]", "rules.metric_blocklist", "[\"a\"]"),
        (
            "statsd_metric_blocklist_match_prefix",
            "true",
            "rules.metric_blocklist_match_prefix",
            "true",
        ),
        ("metric_filterlist", "[\"a\"]", "rules.metric_blocklist", "[\"a\"]"),
        ("metric_filterlist_match_prefix", "true", "rules.metric_blocklist_match_prefix", "true"),
        (
            "dogstatsd_mapper_profiles",
            r#"[{"name":"n","prefix":"p.","mappings":[{"match":"p.*","match_type":"wildcard","name":"p","tags":{"t":"$1"}}]}]"#,
            "rules.mapper_profiles",
            r#"[{"name":"n","prefix":"p.","mappings":[{"match":"p.*","match_type":"wildcard","name":"p","tags":{"t":"$1"}}]}]"#,
        ),
        ("histogram_aggregates", "[\"max\", \"mode\"]", "value.histogram_aggregates", "[\"max\"]"),
        (
            "histogram_percentiles",
            "[0.5, \"0.99\", 95]",
            "value.histogram_percentiles",
            "[\"0.5\", \"0.99\"]",
        ),
        ("histogram_copy_to_distribution", "true", "value.histogram_copy_to_distribution", "true"),
        (
            "histogram_copy_to_distribution_prefix",
            "d.",
            "value.histogram_copy_to_distribution_prefix",
            "\"d.\"",
        ),
        ("dogstatsd_expiry_seconds", "60.0", "shard.counter_expiry_seconds", "60"),
        ("dogstatsd_context_expiry_seconds", "30", "shard.context_expiry_seconds", "30"),
        ("aggregate_context_limit", "10", "shard.contexts_max", "10"),
        ("dogstatsd_flush_incomplete_buckets", "false", "flush.incomplete_buckets", "false"),
        ("log_level", "WARNING", "logging.level", "\"warn\""),
        ("log_level", "critical", "logging.level", "\"error\""),
        ("log_level", "off", "logging.level", "\"off\""),
        ("log_format_json", "true", "logging.format", "\"json\""),
        ("log_file", "/var/log/x", "logging.file", "\"/var/log/x\""),
        ("log_to_console", "false", "logging.console", "false"),
        ("log_file_max_size", "10Mb", "logging.file_max_bytes", "10485760"),
        ("log_file_max_size", "1 GB", "logging.file_max_bytes", "1073741824"),
        ("log_file_max_size", "5kb", "logging.file_max_bytes", "5120"),
        ("log_file_max_size", "7", "logging.file_max_bytes", "7"),
        ("log_file_max_rolls", "3", "logging.file_max_rolls", "3"),
        ("log_to_syslog", "true", "logging.syslog", "true"),
        ("syslog_uri", "udp://h:514", "logging.syslog_uri", "\"udp://h:514\""),
        ("syslog_rfc", "true", "logging.syslog_rfc5424", "true"),
        ("health_port", "5555", "status.health_listen", "\"0.0.0.0:5555\""),
        ("health_port", "0", "status.health_listen", "\"\""),
        (
            "docker_labels_as_tags",
            r#"{"app.team": "team"}"#,
            "collectors.docker.labels_as_tags",
            r#"{"app.team": "team"}"#,
        ),
        (
            "container_labels_as_tags",
            r#"{"a": "+b"}"#,
            "collectors.docker.labels_as_tags",
            r#"{"a": "+b"}"#,
        ),
        (
            "docker_env_as_tags",
            r#"{"STAGE": "stage"}"#,
            "collectors.docker.env_as_tags",
            r#"{"STAGE": "stage"}"#,
        ),
        (
            "container_env_as_tags",
            r#"{"A": "b"}"#,
            "collectors.docker.env_as_tags",
            r#"{"A": "b"}"#,
        ),
        ("docker_query_timeout", "7", "collectors.docker.timeout", "7"),
        ("ac_include", "[\"name:a\"]", "collectors.docker.include", "[\"name:a\"]"),
        ("container_include", "[\"name:a\"]", "collectors.docker.include", "[\"name:a\"]"),
        ("container_include_metrics", "[\"name:a\"]", "collectors.docker.include", "[\"name:a\"]"),
        ("ac_exclude", "[\"image:a\"]", "collectors.docker.exclude", "[\"image:a\"]"),
        ("container_exclude", "[\"image:a\"]", "collectors.docker.exclude", "[\"image:a\"]"),
        (
            "container_exclude_metrics",
            "[\"image:a\"]",
            "collectors.docker.exclude",
            "[\"image:a\"]",
        ),
        ("exclude_pause_container", "false", "collectors.docker.exclude_pause_container", "false"),
        ("exclude_pause_container", "false", "collectors.cgroup.exclude_pause_container", "false"),
        ("procfs_path", "/a", "collectors.proc_root", "\"/a\""),
        ("container_proc_root", "/a", "collectors.proc_root", "\"/a\""),
        ("container_cgroup_root", "/a", "collectors.cgroup_root", "\"/a\""),
        ("kubernetes_kubelet_host", "10.0.0.1", "collectors.kubelet.host", "\"10.0.0.1\""),
        ("kubernetes_https_kubelet_port", "1", "collectors.kubelet.https_port", "1"),
        ("kubernetes_http_kubelet_port", "0", "collectors.kubelet.http_port", "0"),
        ("kubelet_tls_verify", "false", "collectors.kubelet.tls_verify", "false"),
        ("kubelet_client_ca", "/a", "collectors.kubelet.ca_file", "\"/a\""),
        ("kubelet_auth_token_path", "/a", "collectors.kubelet.token_file", "\"/a\""),
        (
            "kubernetes_resources_labels_as_tags",
            r#"{"pods": {"A": "b"}}"#,
            "collectors.kubelet.pod_labels_as_tags",
            r#"{"A": "b"}"#,
        ),
        (
            "kubernetes_resources_annotations_as_tags",
            r#"{"pods": {"A": "b"}}"#,
            "collectors.kubelet.pod_annotations_as_tags",
            r#"{"A": "b"}"#,
        ),
        (
            "kubernetes_pod_labels_as_tags",
            r#"{"A": "b"}"#,
            "collectors.kubelet.pod_labels_as_tags",
            r#"{"A": "b"}"#,
        ),
        (
            "kubernetes_pod_annotations_as_tags",
            r#"{"A": "b"}"#,
            "collectors.kubelet.pod_annotations_as_tags",
            r#"{"A": "b"}"#,
        ),
    ];

    #[test]
    fn every_effective_key_works_in_file_and_environment() {
        for (key, value, path, expected) in EFFECTIVE {
            let expected: Value = serde_json::from_str(expected).unwrap();
            let nested = key
                .split('.')
                .rev()
                .fold((*value).to_owned(), |inner, key| format!("{{{key}: {inner}}}"));
            assert_eq!(at(&of_file(&nested), path), expected, "{nested}");
            let value = value.trim_matches('\'');
            assert_eq!(at(&of_variables(&[(&variable(key), value)]), path), expected, "{key}");
        }
        let tested: HashSet<&str> = EFFECTIVE.iter().map(|(key, ..)| *key).collect();
        for key in KEYS {
            let effective = matches!(&key.effect, Effect::Sets(_) | Effect::Adds(_))
                || matches!(&key.effect, Effect::Converts(paths, _) if !paths.is_empty());
            assert_eq!(tested.contains(key.name), effective, "{}", key.name);
        }
    }

    #[test]
    fn variables_have_the_agents_forms() {
        for (pairs, path, expected) in [
            (
                &[("DD_DOGSTATSD_TAGS", "a:b c:d,e")] as &[_],
                "rules.tags",
                json!(["a:b", "c:d", "e"]),
            ),
            (
                &[("DD_HISTOGRAM_PERCENTILES", "0.95 0.99")],
                "value.histogram_percentiles",
                json!(["0.95", "0.99"]),
            ),
            (
                &[("DD_HISTOGRAM_PERCENTILES", "[\"0.95\", 0.99]")],
                "value.histogram_percentiles",
                json!(["0.95", "0.99"]),
            ),
            (
                &[("DD_HISTOGRAM_AGGREGATES", "max count")],
                "value.histogram_aggregates",
                json!(["max", "count"]),
            ),
            (&[("DD_URL", "https://a")], "sinks.datadog.dd_url", json!("https://a")),
            (
                &[("DD_DD_URL", "https://b"), ("DD_URL", "https://a")],
                "sinks.datadog.dd_url",
                json!("https://b"),
            ),
            (&[("DD_DOGSTATSD_SOCKET", "")], "intake.socket", json!("")),
            (&[("DD_DOGSTATSD_PORT", "")], "intake.port", json!(8125)),
            (&[("DD_SITE", "")], "sinks.datadog.site", json!("datadoghq.com")),
            (
                &[("HTTPS_PROXY", "http://p:1")],
                "sinks.datadog.http.proxy_https",
                json!("http://p:1"),
            ),
            (
                &[("DD_PROXY_HTTPS", "http://q:1"), ("https_proxy", "http://p:1")],
                "sinks.datadog.http.proxy_https",
                json!("http://q:1"),
            ),
            (&[("DD_PROXY_NO_PROXY", "a b")], "sinks.datadog.http.no_proxy", json!(["a", "b"])),
            (&[("NO_PROXY", "a,b")], "sinks.datadog.http.no_proxy", json!(["a", "b"])),
            (&[("DD_API_KEY", "abc\n")], "sinks.datadog.api_key", json!("abc")),
        ] {
            let loaded = of_variables(pairs);
            assert_eq!(at(&loaded, path), expected, "{pairs:?}");
            assert_eq!(loaded.notes, Vec::<String>::new());
        }
    }

    #[test]
    fn precedence_is_the_agents() {
        // A variable beats the file, the newer name the older one, off beats all.
        let variables = [("DD_DOGSTATSD_PORT".to_owned(), "2".to_owned())];
        let loaded = agent_from_text("d", "dogstatsd_port: 1", &variables).unwrap();
        assert_eq!(loaded.config.intake.port, 2);
        let loaded = agent_from_text("d", "use_dogstatsd: false", &variables).unwrap();
        assert_eq!(loaded.config.intake.port, 0);
        let rules = of_file(
            "metric_filterlist: [a]\nstatsd_metric_blocklist: [b]\nstatsd_metric_blocklist_match_prefix: true\n",
        )
        .config
        .rules;
        assert_eq!(rules.metric_blocklist, ["a"]);
        assert!(!rules.metric_blocklist_match_prefix);
        let rules = of_file("metric_filterlist: []\nstatsd_metric_blocklist: [b]\n").config.rules;
        assert_eq!(rules.metric_blocklist, ["b"]);
        // Lists and maps of which the Agent takes all together.
        let docker = of_file(
            "container_exclude: image:a name:b\ncontainer_exclude_metrics: [image:c]\nac_exclude: x\n\
             docker_labels_as_tags: {a: b, c: d}\ncontainer_labels_as_tags: {c: e}\n\
             container_env_as_tags: {E: e}\n",
        )
        .config
        .collectors
        .docker;
        assert_eq!(docker.exclude, ["image:a", "name:b", "image:c"]);
        let map = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(docker.labels_as_tags, map(&[("a", "b"), ("c", "e")]));
        assert_eq!(docker.env_as_tags, map(&[("E", "e")]));
        let loaded = of_file(
            "kubernetes_resources_labels_as_tags: '{\"pods\": {\"a\": \"b\"}, \"namespaces\": {\"c\": \"d\"}}'\n\
             kubernetes_pod_labels_as_tags: {e: f}\n",
        );
        let labels = &loaded.config.collectors.kubelet.pod_labels_as_tags;
        assert_eq!(*labels, map(&[("a", "b"), ("e", "f")]));
        let note = "kubernetes_resources_labels_as_tags: left out \"namespaces\", which only the API \
                    server knows";
        assert_eq!(loaded.notes, [note]);
        let names =
            "statsd_metric_namespace_blocklist: [a]\nstatsd_metric_namespace_blacklist: [b]\n";
        assert_eq!(of_file(names).config.rules.namespace_blocklist, ["a"]);
    }

    #[test]
    fn files_are_read_as_the_agent_reads_them() {
        // Letters' case, keys without a value, lists as one text.
        let config =
            of_file("Dogstatsd_Port: 1\nsite:\ndogstatsd_tags: a b\nproxy:\n  http:\n").config;
        assert_eq!(
            (config.intake.port, config.rules.tags),
            (1, vec!["a".to_owned(), "b".to_owned()])
        );
        assert_eq!(config.sinks, Config::default().sinks);
    }

    #[test]
    fn what_has_no_effect_is_named_once_each() {
        let loaded = agent_from_text(
            "datadog.yaml",
            "dogstatsd_queue_size: 5\nlogs_config: {a: 1, b: {c: 2}}\nsyslog_pem: /x\n\
             kubernetes_pod: false\nmy_own: 1\nproxy: {ftp: x}\ntags: [a]\nenv: b\n\
             min_tls_version: tlsv1.1\nhistogram_percentiles: [95]\ntelemetry: {enabled: true}\n",
            &[
                ("DD_QUUX".to_owned(), "1".to_owned()),
                ("DD_ECS_METADATA_TIMEOUT".to_owned(), "100".to_owned()),
                ("DD_AGENT_HOST".to_owned(), "x".to_owned()),
                ("DD_TRACE_DEBUG".to_owned(), "x".to_owned()),
                ("DD_QUEUE".to_owned(), String::new()),
            ],
        )
        .unwrap();
        assert_eq!(
            loaded.notes,
            [
                "min_tls_version tlsv1.1 is raised to tlsv1.2",
                "tags and env (DD_TAGS, DD_ENV) are tags of the host in the Datadog app, not of \
                 points, and tallyd sends none; for tags on every point use dogstatsd_tags or \
                 rules.tags",
                "histogram_percentiles: left out \"95\"",
                "settings of the Agent that have no effect in tallyd: dogstatsd_queue_size, \
                 logs_config, proxy.ftp, telemetry.enabled",
                "settings of the Agent that are not effective in this version: \
                 DD_ECS_METADATA_TIMEOUT, syslog_pem",
                "settings that tallyd does not know and ignores: DD_QUEUE, DD_QUUX, my_own",
            ]
        );
    }

    #[test]
    fn wrong_values_name_file_line_and_key() {
        for (text, expected) in [
            (
                "\ndogstatsd_port: __random__",
                "d:2: dogstatsd_port: a random port is not supported: give a number",
            ),
            (
                "dogstatsd_tag_cardinality: all",
                "d:1: dogstatsd_tag_cardinality: expected none, low, orchestrator or high, found \
                 \"all\"",
            ),
            ("health_port: x", "d:1: health_port: expected a port, found \"x\""),
            ("log_format_json: x", "d:1: log_format_json: expected true or false, found \"x\""),
            (
                "dogstatsd_expiry_seconds: -1",
                "d:1: dogstatsd_expiry_seconds: expected seconds, found \"-1\"",
            ),
            (
                "log_file_max_size: 10Tb",
                "d:1: log_file_max_size: expected a size such as 10MB, found \"10tb\"",
            ),
            ("histogram_percentiles: {a: b}", "d:1: histogram_percentiles: expected a list"),
            ("api_key: [s3cret]", "d:1: api_key: expected a single value"),
            (
                "api_key: ENC[s3cret]",
                "d:1: sinks.datadog.api_key: is a reference to a secret (ENC[...]): set secrets.command (DD_SECRET_BACKEND_COMMAND) to the program that gives it, or give the value itself",
            ),
            (
                "dogstatsd_mapper_profiles:\n  - {name: a, prefix: a, mappings: [{match: 'a(', name: b, match_type: regex}]}",
                "d:1: rules.mapper_profiles[0].mappings[0].match: unclosed group; correct the pattern",
            ),
            (
                "dogstatsd_port: x",
                "d:1: intake.port: expected a whole number from 0 to 65535, found \"x\"",
            ),
            ("- a", "d: expected the Agent's settings"),
            (
                "a: [",
                "d:2: not valid YAML: while parsing a node, did not find expected node content",
            ),
        ] {
            let error = agent_from_text("d", text, &[]).map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }
}
