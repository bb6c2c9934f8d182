//! The kubelet: the pods of the node that tallyd runs on.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Certificate, Client};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Containers, Wishes, get, list};
use crate::collectors::Enabled;
use crate::collectors::image::ImageName;
use crate::collectors::tagging::Level::{self, High, Low, Orchestrator};
use crate::collectors::tagging::{Builder, by_rules};
use crate::origin::directory::{Place, Told};

/// Tags of pods and their containers, from the kubelet of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `auto` asks where its host is set.
    pub enabled: Enabled,
    /// The node's address, which a pod gets by `fieldRef: status.hostIP`.
    pub host: String,
    /// Its port with TLS, where a service account must be allowed `get` on `nodes/proxy` or
    /// `nodes/pods`. 0 does not ask there.
    pub https_port: u16,
    /// Its port without TLS, which most have closed; asked when the other does not answer. 0 does
    /// not ask there.
    pub http_port: u16,
    /// Check its certificate, which many kubelets have signed themselves.
    pub tls_verify: bool,
    /// Certificate authorities, a PEM file.
    pub ca_file: String,
    /// The token that lets us in.
    pub token_file: String,
    /// Seconds between two questions; it is also asked a second after an unknown sender.
    pub interval: u32,
    /// Seconds that it has to answer.
    pub timeout: u32,
    /// Labels of pods that become tags, as `collectors.docker.labels_as_tags` has it.
    pub pod_labels_as_tags: BTreeMap<String, String>,
    /// Annotations of pods that become tags; `%%annotation%%` stands for the annotation's name.
    pub pod_annotations_as_tags: BTreeMap<String, String>,
}

/// Where Kubernetes puts what a service account needs.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: Enabled::Auto,
            host: String::new(),
            https_port: 10250,
            http_port: 10255,
            tls_verify: true,
            ca_file: format!("{ACCOUNT}/ca.crt"),
            token_file: format!("{ACCOUNT}/token"),
            interval: 15,
            timeout: 5,
            pod_labels_as_tags: BTreeMap::new(),
            pod_annotations_as_tags: BTreeMap::new(),
        }
    }
}

impl Config {
    pub fn is_wanted(&self) -> bool {
        self.enabled.or_if(|| !self.host.is_empty())
    }
}

/// The kubelet.
pub struct Kubelet {
    config: Config,
    wishes: Wishes,
    client: Client,
}

impl Kubelet {
    /// # Errors
    ///
    /// What is wrong with the settings.
    pub fn new(config: &Config, wishes: Wishes) -> Result<Self, String> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let deadline = Duration::from_secs(config.timeout.max(1).into());
        let mut builder = Client::builder().no_proxy().timeout(deadline);
        let authorities = if Path::new(&config.ca_file).exists() {
            let at = |error: &dyn std::fmt::Display| format!("{}: {error}", config.ca_file);
            let pem = fs::read(&config.ca_file).map_err(|error| at(&error))?;
            Certificate::from_pem_bundle(&pem).map_err(|error| at(&super::cause(&error)))?
        } else {
            Vec::new()
        };
        builder = builder.tls_certs_only(authorities);
        builder = builder.tls_danger_accept_invalid_certs(!config.tls_verify);
        let client = builder.build().map_err(|error| super::cause(&error))?;
        Ok(Self { config: config.clone(), wishes, client })
    }

    pub(super) async fn containers(&mut self) -> Result<Containers, String> {
        let Config { host, https_port, http_port, token_file, .. } = &self.config;
        // An address of version 6 stands in brackets.
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => host.clone(),
        };
        let mut refused = "no port to ask at".to_owned();
        if *https_port != 0 {
            let url = format!("https://{host}:{https_port}/pods");
            match get(&self.client, &url, Some(token_file)).await {
                Ok(pods) => return Ok(containers(pods, &self.config, &self.wishes)),
                Err(error) => refused = error,
            }
        }
        if *http_port != 0 {
            let url = format!("http://{host}:{http_port}/pods");
            match get(&self.client, &url, None).await {
                Ok(pods) => return Ok(containers(pods, &self.config, &self.wishes)),
                Err(error) if *https_port == 0 => refused = error,
                // What the usual port said tells more.
                Err(_) => {}
            }
        }
        Err(refused)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    owner_references: Vec<Owner>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    host_network: bool,
    priority_class_name: String,
    runtime_class_name: String,
    containers: Vec<Template>,
    init_containers: Vec<Template>,
    ephemeral_containers: Vec<Template>,
    volumes: Vec<Volume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Volume {
    persistent_volume_claim: Claim,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Claim {
    claim_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Template {
    name: String,
    image: String,
    env: Vec<Variable>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    phase: String,
    qos_class: String,
    #[serde(rename = "podIP")]
    ip: String,
    #[serde(rename = "podIPs")]
    ips: Vec<Address>,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
    ephemeral_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    ip: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    image: String,
    #[serde(rename = "imageID")]
    image_id: String,
    #[serde(rename = "containerID")]
    id: String,
    restart_count: u64,
    state: State,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    terminated: Option<Json>,
}

/// The containers of all pods that have not ended.
pub fn containers(mut json: Json, config: &Config, wishes: &Wishes) -> Containers {
    let pods: Vec<Pod> = list(&mut json, "items");
    pods.iter().flat_map(|pod| of_pod(pod, config, wishes)).collect()
}

fn of_pod(pod: &Pod, config: &Config, wishes: &Wishes) -> Containers {
    let mut tags = Builder::default();
    add_pod(pod, config, &mut tags);
    let whole = Arc::new(tags.finish());
    let status = &pod.status;
    // The node's own address is not the pod's alone.
    let said = std::iter::once(&status.ip).chain(status.ips.iter().map(|address| &address.ip));
    let said = said.filter(|_| !pod.spec.host_network);
    let mut addresses: Vec<IpAddr> = said.filter_map(|address| address.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let statuses = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let containers = statuses.into_iter().flatten().filter_map(|container| {
        // `containerd://` and the like stand before it.
        let (_, id) = container.id.split_once("://")?;
        if id.is_empty() || container.state.terminated.is_some() {
            return None;
        }
        let mut tags = Builder::default();
        add_pod(pod, config, &mut tags);
        add_container(pod, container, id, wishes, &mut tags);
        let tags = tags.finish();
        let (name, namespace) = (&container.name, &pod.metadata.namespace);
        let is_excluded = is_excluded(&pod.metadata.annotations, name)
            || wishes.excludes(name, image(pod, container), namespace, &tags);
        let told = Told {
            addresses: addresses.clone(),
            pod: Some(Place {
                uid: (*pod.metadata.uid).into(),
                name: (*container.name).into(),
                tags: Some(Arc::clone(&whole)),
            }),
            tags: Arc::new(tags),
            restarts: Some(container.restart_count),
            is_excluded,
            ..Told::default()
        };
        Some((id.to_owned(), told))
    });
    containers.collect()
}

/// Whether a pod's annotations ask not to measure it, or this container of it.
fn is_excluded(annotations: &BTreeMap<String, String>, container: &str) -> bool {
    let yes = |value: &String| ["1", "t", "T", "true", "True", "TRUE"].contains(&&**value);
    let words = ["exclude", "metrics_exclude"].into_iter();
    let names = words.flat_map(|word| [word.to_owned(), format!("{container}.{word}")]);
    let mut names = names.map(|name| format!("ad.datadoghq.com/{name}"));
    names.any(|name| annotations.get(&name).is_some_and(yes))
}

/// Labels that are tags by convention.
const LABELS: [(&str, &str); 10] = [
    ("tags.datadoghq.com/env", "env"),
    ("tags.datadoghq.com/service", "service"),
    ("tags.datadoghq.com/version", "version"),
    ("app.kubernetes.io/name", "kube_app_name"),
    ("app.kubernetes.io/instance", "kube_app_instance"),
    ("app.kubernetes.io/version", "kube_app_version"),
    ("app.kubernetes.io/component", "kube_app_component"),
    ("app.kubernetes.io/part-of", "kube_app_part_of"),
    ("app.kubernetes.io/managed-by", "kube_app_managed_by"),
    ("helm.sh/chart", "helm_chart"),
];

/// Annotations of OpenShift that are tags.
const OPENSHIFT: [(&str, Level, &str); 2] = [
    ("openshift.io/deployment-config.name", Low, "oshift_deployment_config"),
    ("openshift.io/deployment.name", Orchestrator, "oshift_deployment"),
];

fn add_pod(pod: &Pod, config: &Config, tags: &mut Builder) {
    let Pod { metadata, spec, status } = pod;
    tags.add(Low, "kube_namespace", &metadata.namespace);
    tags.add(Orchestrator, "pod_name", &metadata.name);
    tags.add(Low, "pod_phase", &status.phase.to_lowercase());
    tags.add(Low, "kube_qos", &status.qos_class);
    tags.add(Low, "kube_priority_class", &spec.priority_class_name);
    tags.add(Low, "kube_runtime_class", &spec.runtime_class_name);
    for (label, name) in LABELS {
        if let Some(value) = metadata.labels.get(label) {
            tags.add(Low, name, value);
        }
    }
    for volume in &spec.volumes {
        tags.add(Low, "persistentvolumeclaim", &volume.persistent_volume_claim.claim_name);
    }
    for owner in &metadata.owner_references {
        tags.add(Low, "kube_ownerref_kind", &owner.kind.to_lowercase());
        tags.add(Orchestrator, "kube_ownerref_name", &owner.name);
        for (level, name, value) in owner_tags(&owner.kind, &owner.name) {
            tags.add(level, name, value);
        }
    }
    for (name, value) in &metadata.labels {
        by_rules(&config.pod_labels_as_tags, "%%label%%", name, value, tags);
    }
    for (name, value) in &metadata.annotations {
        by_rules(&config.pod_annotations_as_tags, "%%annotation%%", name, value, tags);
    }
    for (annotation, level, name) in OPENSHIFT {
        if let Some(value) = metadata.annotations.get(annotation) {
            tags.add(level, name, value);
        }
    }
    add_annotated(metadata.annotations.get("ad.datadoghq.com/tags"), tags);
}

fn template<'a>(pod: &'a Pod, container: &ContainerStatus) -> Option<&'a Template> {
    let Spec { containers, init_containers, ephemeral_containers, .. } = &pod.spec;
    let mut all = containers.iter().chain(init_containers).chain(ephemeral_containers);
    all.find(|template| template.name == container.name)
}

/// As the pod's maker wrote it: the status may name a digest only.
fn image<'a>(pod: &'a Pod, container: &'a ContainerStatus) -> &'a str {
    template(pod, container).map_or(&container.image, |template| &template.image)
}

fn add_container(
    pod: &Pod,
    container: &ContainerStatus,
    id: &str,
    wishes: &Wishes,
    tags: &mut Builder,
) {
    let name = &container.name;
    tags.add(Low, "kube_container_name", name);
    tags.add(High, "container_id", id);
    tags.add(High, "container_name", name);
    tags.add(High, "display_container_name", &format!("{name}_{}", pod.metadata.name));
    tags.add_image(&ImageName::new(image(pod, container)));
    let image_id = &container.image_id;
    tags.add(Low, "image_id", image_id.split_once("://").map_or(image_id, |(_, id)| id));
    let template = template(pod, container);
    for Variable { name, value } in template.into_iter().flat_map(|template| &template.env) {
        wishes.variable(name, value, tags);
    }
    let labels = &pod.metadata.labels;
    for (tag, variable) in [("env", "DD_ENV"), ("service", "DD_SERVICE"), ("version", "DD_VERSION")]
    {
        let own = labels.get(&format!("tags.datadoghq.com/{name}.{tag}"));
        let set = || {
            let mut variables = template.into_iter().flat_map(|template| &template.env);
            variables.find(|other| other.name == variable).map(|variable| &variable.value)
        };
        if let Some(value) = own {
            tags.add(Low, tag, value);
        } else if let Some(value) = set() {
            tags.add_first(Low, tag, value);
        }
    }
    let annotation = format!("ad.datadoghq.com/{name}.tags");
    add_annotated(pod.metadata.annotations.get(&annotation), tags);
}

/// An object of names with one value or several.
fn add_annotated(annotation: Option<&String>, tags: &mut Builder) {
    let Some(text) = annotation else { return };
    let named = serde_json::from_str::<BTreeMap<String, Json>>(text).unwrap_or_default();
    for (name, value) in named {
        let (level, name) = name.strip_prefix('+').map_or((Low, &*name), |name| (High, name));
        match value {
            Json::String(value) => tags.add(level, name, &value),
            Json::Array(values) => {
                values.iter().filter_map(Json::as_str).for_each(|v| tags.add(level, name, v));
            }
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::Object(_) => {}
        }
    }
}

/// The tags by the name of what made a pod, and of what made that in turn.
fn owner_tags<'a>(kind: &str, name: &'a str) -> Vec<(Level, &'static str, &'a str)> {
    match kind {
        "Deployment" => vec![(Low, "kube_deployment", name)],
        "DaemonSet" => vec![(Low, "kube_daemon_set", name)],
        "StatefulSet" => vec![(Low, "kube_stateful_set", name)],
        "ReplicationController" => vec![(Low, "kube_replication_controller", name)],
        "ReplicaSet" => {
            let deployment = without_suffix(name, is_hash).map(|of| (Low, "kube_deployment", of));
            deployment.into_iter().chain([(Low, "kube_replica_set", name)]).collect()
        }
        // Of a cron job there is a new one each time.
        "Job" => match without_suffix(name, is_number) {
            Some(of) => vec![(Low, "kube_cronjob", of), (Orchestrator, "kube_job", name)],
            None => vec![(Low, "kube_job", name)],
        },
        _ => Vec::new(),
    }
}

/// The part before the last hyphen, if what follows is as wished.
fn without_suffix(name: &str, wished: fn(&str) -> bool) -> Option<&str> {
    let (name, suffix) = name.rsplit_once('-')?;
    (!name.is_empty() && wished(suffix)).then_some(name)
}

/// The letters of which Kubernetes makes suffixes: no vowels, so no words.
fn is_hash(suffix: &str) -> bool {
    let letter = |b: u8| b"bcdfghjklmnpqrstvwxz2456789".contains(&b);
    let number = suffix.len() >= 3 && is_number(suffix);
    number || (suffix.len() >= 3 && suffix.bytes().all(letter))
}

fn is_number(suffix: &str) -> bool {
    suffix.len() >= 3 && suffix.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "9b1c2d3eaaaa0000000000000000000000000000000000000000000000000001";

    fn pods() -> Json {
        json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [
            {
                "metadata": {
                    "name": "web-5d4f8c7b9-x2x4v", "namespace": "shop",
                    "uid": "0b1c2d3e-1111-2222-3333-444455556666",
                    "labels": {"app.kubernetes.io/name": "web", "tags.datadoghq.com/env": "prod",
                        "tags.datadoghq.com/app.version": "1.3", "team": "front"},
                    "annotations": {"note": "x", "openshift.io/deployment.name": "web-3", "ad.datadoghq.com/tags": r#"{"a":"b","+c":["d","e"]}"#},
                    "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4f8c7b9", "uid": "u"}]
                },
                "spec": {
                    "containers": [
                        {"name": "app", "image": "reg.example:5000/team/web:1.3", "env": [
                            {"name": "DD_SERVICE", "value": "web"},
                            {"name": "DD_ENV", "value": "other"},
                            {"name": "STAGE", "value": "blue"},
                            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {}}}]},
                        {"name": "side", "image": "side"}
                    ],
                    "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "disk"}},
                        {"name": "e", "emptyDir": {}}],
                    "priorityClassName": "high"
                },
                "status": {
                    "phase": "Running", "qosClass": "Burstable", "podIP": "10.1.2.3",
                    "podIPs": [{"ip": "10.1.2.3"}, {"ip": "fd00::3"}],
                    "containerStatuses": [
                        {"name": "app", "image": "sha256:1f2e",
                            "imageID": "docker-pullable://reg.example:5000/team/web@sha256:0a", "containerID": format!("containerd://{ID}"),
                            "restartCount": 2, "state": {"running": {"startedAt": "2026-11-27T01:02:03Z"}}},
                        {"name": "side", "image": "side", "containerID": "", "state": {"waiting": {}}}
                    ],
                    "initContainerStatuses": [
                        {"name": "init", "containerID": "containerd://ff", "state": {"terminated": {"exitCode": 0}}}
                    ]
                }
            },
            {"metadata": {"name": 7}},
            {"metadata": {"name": "own", "namespace": "kube-system", "uid": "u2", "labels": null},
                "spec": {"hostNetwork": true, "containers": null},
                "status": {"podIP": "192.0.2.1", "containerStatuses": [
                    {"name": "proxy", "image": "proxy:1", "containerID": "docker://aa", "restartCount": 0}]}}
        ]})
    }

    #[test]
    fn pods_of_a_node() {
        let config = Config {
            pod_labels_as_tags: BTreeMap::from([("team".to_owned(), "owner".to_owned())]),
            pod_annotations_as_tags: BTreeMap::from([(
                "*".to_owned(),
                "+%%annotation%%".to_owned(),
            )]),
            ..Config::default()
        };
        let docker = crate::collectors::docker::Config {
            env_as_tags: BTreeMap::from([("STAGE".to_owned(), "stage".to_owned())]),
            ..Default::default()
        };
        let wishes = Wishes::new(&docker).expect("no patterns");
        let found = containers(pods(), &config, &wishes);
        let [(id, app), (own_id, own)] = &found[..] else { panic!("{found:#?}") };
        assert_eq!((&**id, &**own_id), (ID, "aa"));
        assert_eq!(
            app.tags.low,
            [
                "a:b",
                "env:prod",
                "image_id:reg.example:5000/team/web@sha256:0a",
                "image_name:reg.example:5000/team/web",
                "image_tag:1.3",
                "kube_app_name:web",
                "kube_container_name:app",
                "kube_deployment:web",
                "kube_namespace:shop",
                "kube_ownerref_kind:replicaset",
                "kube_priority_class:high",
                "kube_qos:Burstable",
                "kube_replica_set:web-5d4f8c7b9",
                "owner:front",
                "persistentvolumeclaim:disk",
                "pod_phase:running",
                "service:web",
                "short_image:web",
                "stage:blue",
                "version:1.3",
            ]
        );
        assert_eq!(
            app.tags.orchestrator,
            [
                "kube_ownerref_name:web-5d4f8c7b9",
                "oshift_deployment:web-3",
                "pod_name:web-5d4f8c7b9-x2x4v"
            ]
        );
        for tag in ["c:d", "c:e", "note:x", "container_name:app"] {
            assert!(app.tags.high.iter().any(|own| own == tag), "{tag} in {:?}", app.tags.high);
        }
        let addresses = ["10.1.2.3", "fd00::3"].map(|a| a.parse::<IpAddr>().expect("an address"));
        assert_eq!((&*app.addresses, app.restarts), (&addresses[..], Some(2)));
        let place = app.pod.as_ref().expect("a pod");
        assert_eq!(&*place.uid, "0b1c2d3e-1111-2222-3333-444455556666");
        let whole = place.tags.as_ref().expect("its tags");
        assert!(whole.low.iter().all(|tag| app.tags.low.contains(tag)));
        assert!(!whole.low.iter().any(|tag| tag.starts_with("kube_container_name")));
        assert!(own.addresses.is_empty(), "the node's address is not its own");
        assert!(own.tags.low.contains(&"kube_container_name:proxy".to_owned()));
    }

    #[test]
    fn nothing_where_there_is_nothing() {
        for json in
            [json!({"items": null}), json!({}), json!([]), json!(null), json!({"items": [null]})]
        {
            let wishes = Wishes::new(&Default::default()).expect("no patterns");
            assert!(containers(json, &Config::default(), &wishes).is_empty());
        }
    }

    #[test]
    fn what_is_left_out() {
        let excluded = |annotations: Json, exclude: &[&str], include: &[&str]| {
            let mut pods = pods();
            pods["items"][0]["metadata"]["annotations"] = annotations;
            let list = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect();
            let docker = crate::collectors::docker::Config {
                exclude: list(exclude),
                include: list(include),
                ..Default::default()
            };
            let wishes = Wishes::new(&docker).expect("patterns");
            let found = containers(pods, &Config::default(), &wishes);
            [found[0].1.is_excluded, found[1].1.is_excluded]
        };
        let name = |name: &str, value: &str| json!({format!("ad.datadoghq.com/{name}"): value});
        for (annotation, expected) in [
            (name("exclude", "true"), true),
            (name("metrics_exclude", "1"), true),
            (name("app.exclude", "T"), true),
            (name("app.metrics_exclude", "true"), true),
            (name("side.exclude", "true"), false),
            (name("logs_exclude", "true"), false),
            (name("exclude", "yes"), false),
            (json!({}), false),
        ] {
            assert_eq!(excluded(annotation.clone(), &[], &[]), [expected, false], "{annotation}");
            // An annotation has the last word.
            assert_eq!(excluded(annotation, &[], &[".*"]), [expected, false]);
        }
        for (exclude, include, expected) in [
            (&["image:team/web"][..], &[][..], [true, false]),
            (&["name:^proxy$"], &[], [false, true]),
            (&["kube_namespace:^kube-system$"], &[], [false, true]),
            (&["kube_namespace:.*"], &["name:app"], [false, true]),
            (&["kube_deployment:web"], &[], [true, false]),
        ] {
            assert_eq!(excluded(json!({}), exclude, include), expected, "{exclude:?} {include:?}");
        }
    }

    #[test]
    fn owners_name_their_owners() {
        for (kind, name, expected) in [
            (
                "ReplicaSet",
                "web-5d4f8c7b9",
                &["kube_deployment:web", "kube_replica_set:web-5d4f8c7b9"][..],
            ),
            (
                "ReplicaSet",
                "web-1234567890",
                &["kube_deployment:web", "kube_replica_set:web-1234567890"],
            ),
            ("ReplicaSet", "web-front", &["kube_replica_set:web-front"]),
            ("ReplicaSet", "web", &["kube_replica_set:web"]),
            ("Job", "tidy-28400120", &["kube_cronjob:tidy", "kube_job:tidy-28400120"]),
            ("Job", "tidy", &["kube_job:tidy"]),
            ("DaemonSet", "logs", &["kube_daemon_set:logs"]),
            ("StatefulSet", "db", &["kube_stateful_set:db"]),
            ("Node", "n", &[]),
        ] {
            let tags = owner_tags(kind, name).into_iter();
            let tags: Vec<_> = tags.map(|(_, name, value)| format!("{name}:{value}")).collect();
            assert_eq!(tags, expected, "{kind} {name}");
        }
    }
}
