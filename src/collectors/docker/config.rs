//! Settings of the Docker check, named as the Agent names them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::collectors::Enabled;

/// What the Docker check asks, measures and sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `auto` collects when an engine's socket is there or DOCKER_HOST is set; `on` complains while
    /// there is none; `off` never looks.
    pub enabled: Enabled,
    /// Seconds from run to run; the nearest multiple of the flush interval is taken. 0 is about 15.
    pub interval: u32,
    /// Seconds that a run may take; 0 is four fifths of the flush interval.
    pub budget: u32,
    /// The engine: unix:///path or tcp://host:port. Empty takes DOCKER_HOST, then the sockets of
    /// Docker and Podman at their usual places, also below /host.
    pub url: String,
    /// Seconds that a call of the engine may take.
    pub timeout: u64,
    /// Seconds that counting sizes, images, volumes and disk usage may take; nothing else waits
    /// for it.
    pub slow_timeout: u64,
    /// Version of the API, such as 1.41; empty agrees on the newest that both sides know.
    pub api_version: String,
    /// Use TLS for tcp:// addresses; DOCKER_TLS_VERIFY does so too.
    pub tls: bool,
    /// Check the engine's certificate.
    pub tls_verify: bool,
    /// Certificate authorities, a PEM file; empty takes ca.pem below DOCKER_CERT_PATH, or else the
    /// system's authorities.
    pub tls_cacert: String,
    /// Our certificate, a PEM file; empty takes cert.pem below DOCKER_CERT_PATH.
    pub tls_client_cert: String,
    /// The key of our certificate, a PEM file; empty takes key.pem below DOCKER_CERT_PATH.
    pub tls_client_key: String,

    /// Tags for everything the check sends.
    pub tags: Vec<String>,
    /// Names of the tags that metrics of containers carry; empty sends all. container_command is
    /// there for the asking only.
    pub performance_tags: Vec<String>,
    /// Tag metrics of containers with container_command.
    pub tag_by_command: bool,
    /// Names of the tags by which running and stopped containers are counted.
    pub container_tags: Vec<String>,
    /// Names of the tags that metrics of images carry.
    pub image_tags: Vec<String>,
    /// Labels that become tags: name of the label, where * stands for anything, to name of the tag.
    /// A + before the tag's name keeps it out of low and orchestrator cardinality; in the tag's name
    /// %%label%% stands for the label's.
    pub labels_as_tags: BTreeMap<String, String>,
    /// Labels that become tags of the same name; a label without a value becomes a bare tag.
    pub collect_labels_as_tags: Vec<String>,
    /// Environment variables that become tags, as with labels_as_tags; %%env%% stands for the
    /// variable's name. Other variables are read only where they name an orchestrator's task or the
    /// unified service tags.
    pub env_as_tags: BTreeMap<String, String>,
    /// Tag containers of Amazon ECS with cluster, task and container.
    pub ecs_tags: bool,

    /// Containers that are not measured, those of the kubelet and of ECS included. A pattern after
    /// image:, name: or kube_namespace: is searched in that name; any other is matched from the
    /// start of each tag, name:value.
    pub exclude: Vec<String>,
    /// Containers that are measured although they are excluded.
    pub include: Vec<String>,
    /// Leave out the containers that only hold a pod's network.
    pub exclude_pause_container: bool,

    /// Send the engine's events.
    pub collect_events: bool,
    /// One event per occurrence instead of one per image and run.
    pub unbundle_events: bool,
    /// With unbundle_events: bundle the types that are not in collected_event_types, instead of
    /// leaving them out.
    pub bundle_unspecified_events: bool,
    /// The types that unbundle_events sends.
    pub collected_event_types: Vec<String>,
    /// The types that are never sent.
    pub filtered_event_types: Vec<String>,
    /// Attributes of events that become tags.
    pub event_attributes_as_tags: Vec<String>,
    /// Send the service check docker.exit when a container ends.
    pub collect_exit_codes: bool,
    /// The exit codes that are no failure.
    pub ok_exit_codes: Vec<i64>,
    /// Containers whose health is sent as docker.container_health: patterns matched from the start
    /// of each tag. Empty sends that of every container with a health check.
    pub health_service_check_whitelist: Vec<String>,

    /// Send docker.container.count by state.
    pub collect_container_count: bool,
    /// Count attached and dangling volumes.
    pub collect_volume_count: bool,
    /// Count images.
    pub collect_images_stats: bool,
    /// Count images that are but layers of others; costs the engine much.
    pub collect_intermediate_images: bool,
    /// Send the size of each image.
    pub collect_image_size: bool,
    /// Send the space that a devicemapper pool uses.
    pub collect_disk_stats: bool,
    /// Send the engine's disk usage; slow on large hosts.
    pub collect_system_df: bool,
    /// Send the size of each container's own files; the engine walks them.
    pub collect_container_size: bool,
    /// Runs from one count of sizes, images and disk usage to the next.
    pub collect_container_size_frequency: u32,
    /// Count open files; needs the rights of root.
    pub collect_open_fds: bool,
    /// Send every figure of memory that the kernel keeps.
    pub collect_all_metrics: bool,
    /// Send histograms per image instead of gauges and rates per container.
    pub use_histogram: bool,
    /// The highest believable rate by metric; a rate beyond it is left out.
    pub capped_metrics: BTreeMap<String, f64>,
    /// Names of dd-agent's first check: running and stopped containers as sets, docker.disk.size,
    /// and the tags image, name and command.
    pub legacy_names: bool,
    /// Containers that are known at a time.
    pub containers_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        Self {
            enabled: Enabled::Auto,
            interval: 0,
            budget: 0,
            url: String::new(),
            timeout: 5,
            slow_timeout: 60,
            api_version: String::new(),
            tls: false,
            tls_verify: true,
            tls_cacert: String::new(),
            tls_client_cert: String::new(),
            tls_client_key: String::new(),
            tags: Vec::new(),
            performance_tags: Vec::new(),
            tag_by_command: false,
            container_tags: words(&["docker_image", "image_name", "image_tag", "short_image"]),
            image_tags: words(&["image_name", "image_tag"]),
            labels_as_tags: BTreeMap::new(),
            collect_labels_as_tags: Vec::new(),
            env_as_tags: BTreeMap::new(),
            ecs_tags: true,
            exclude: Vec::new(),
            include: Vec::new(),
            exclude_pause_container: true,
            collect_events: true,
            unbundle_events: false,
            bundle_unspecified_events: false,
            collected_event_types: words(&["oom", "kill"]),
            filtered_event_types: words(&["top", "exec_start", "exec_create", "exec_die"]),
            event_attributes_as_tags: Vec::new(),
            collect_exit_codes: false,
            ok_exit_codes: vec![0, 143],
            health_service_check_whitelist: Vec::new(),
            collect_container_count: false,
            collect_volume_count: false,
            collect_images_stats: true,
            collect_intermediate_images: false,
            collect_image_size: false,
            collect_disk_stats: false,
            collect_system_df: false,
            collect_container_size: false,
            collect_container_size_frequency: 5,
            collect_open_fds: true,
            collect_all_metrics: false,
            use_histogram: false,
            capped_metrics: BTreeMap::new(),
            legacy_names: false,
            containers_max: 10_000,
        }
    }
}
