//! What a container is called: the tags of its metrics, and of everything its processes send.

use std::collections::BTreeMap;

use super::api::{Inspected, Listed};
use super::config::Config;
use crate::collectors::image::ImageName;
use crate::collectors::tagging::Level::{self, High, Low, Orchestrator};
use crate::collectors::tagging::{Builder, by_rules, place_of_task};
use crate::origin::directory::EntityTags;

/// What the tags of a container are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub id: String,
    /// As the engine lists them, with a slash in front; links bring further names.
    pub names: Vec<String>,
    /// The image's name; where the engine knows only a digest, as far as it could be found.
    pub image: String,
    pub image_id: String,
    pub command: String,
    pub labels: BTreeMap<String, String>,
    /// `NAME=value`.
    pub env: Vec<String>,
}

impl Facts {
    pub fn of_inspected(inspected: &Inspected) -> Self {
        let config = &inspected.config;
        let words = std::iter::once(&inspected.path).chain(&inspected.args);
        Self {
            id: inspected.id.clone(),
            names: vec![inspected.name.clone()],
            image: config.image.clone(),
            image_id: inspected.image.clone(),
            command: words.map(String::as_str).collect::<Vec<_>>().join(" "),
            labels: config.labels.clone(),
            env: config.env.clone(),
        }
    }

    /// What an entry of the list tells: all but the environment.
    pub fn of_listed(listed: &Listed) -> Self {
        Self {
            id: listed.id.clone(),
            names: listed.names.clone(),
            image: listed.image.clone(),
            image_id: listed.image_id.clone(),
            command: listed.command.clone(),
            labels: listed.labels.clone(),
            ..Self::default()
        }
    }

    /// What an event tells: its attributes are the container's labels, its name and its image.
    pub fn of_attributes(id: &str, attributes: &BTreeMap<String, String>) -> Self {
        let word = |name: &str| attributes.get(name).cloned().unwrap_or_default();
        Self {
            id: id.to_owned(),
            names: vec![word("name")],
            image: word("image"),
            labels: attributes.clone(),
            ..Self::default()
        }
    }

    /// The container's own name: of those that are no other container's alias, the first; without
    /// any, the first 12 digits of the id.
    pub fn name(&self) -> &str {
        let own = |name: &&str| !name.is_empty() && !name.contains('/');
        let names = self.names.iter().map(|name| name.strip_prefix('/').unwrap_or(name));
        names.filter(own).min().unwrap_or_else(|| self.id.get(..12).unwrap_or(&self.id))
    }

    pub fn kube_namespace(&self) -> Option<&str> {
        self.labels.get("io.kubernetes.pod.namespace").map(String::as_str)
    }
}

/// Labels whose value is a tag, by the Agent's names.
const LABELS: [(&str, &str, Level); 13] = [
    ("com.datadoghq.tags.env", "env", Low),
    ("com.datadoghq.tags.service", "service", Low),
    ("com.datadoghq.tags.version", "version", Low),
    ("com.docker.swarm.service.name", "swarm_service", Low),
    ("com.docker.stack.namespace", "swarm_namespace", Low),
    ("io.rancher.container.name", "rancher_container", High),
    ("io.rancher.stack_service.name", "rancher_service", Low),
    ("io.rancher.stack.name", "rancher_stack", Low),
    ("io.kubernetes.pod.name", "pod_name", Orchestrator),
    ("io.kubernetes.pod.namespace", "kube_namespace", Low),
    ("io.kubernetes.container.name", "kube_container_name", Low),
    ("org.opencontainers.image.revision", "git.commit.sha", Low),
    ("org.opencontainers.image.source", "git.repository_url", Low),
];

const ECS_LABELS: [(&str, &str, Level); 5] = [
    ("com.amazonaws.ecs.cluster", "ecs_cluster_name", Low),
    ("com.amazonaws.ecs.task-definition-family", "task_family", Low),
    ("com.amazonaws.ecs.task-definition-version", "task_version", Low),
    ("com.amazonaws.ecs.container-name", "ecs_container_name", Low),
    ("com.amazonaws.ecs.task-arn", "task_arn", Orchestrator),
];

/// Environment variables whose value is a tag. Others may hold secrets and are not read.
const VARIABLES: [(&str, &str, Level); 15] = [
    ("DD_ENV", "env", Low),
    ("DD_SERVICE", "service", Low),
    ("DD_VERSION", "version", Low),
    ("OTEL_SERVICE_NAME", "service", Low),
    ("DD_GIT_COMMIT_SHA", "git.commit.sha", Low),
    ("DD_GIT_REPOSITORY_URL", "git.repository_url", Low),
    ("NOMAD_TASK_NAME", "nomad_task", Low),
    ("NOMAD_JOB_NAME", "nomad_job", Low),
    ("NOMAD_GROUP_NAME", "nomad_group", Low),
    ("NOMAD_NAMESPACE", "nomad_namespace", Low),
    ("NOMAD_DC", "nomad_dc", Low),
    ("MARATHON_APP_ID", "marathon_app", Low),
    ("CHRONOS_JOB_NAME", "chronos_job", Low),
    ("CHRONOS_JOB_OWNER", "chronos_job_owner", Low),
    ("MESOS_TASK_ID", "mesos_task", Orchestrator),
];

const OTEL_ATTRIBUTES: [(&str, &str); 3] = [
    ("service.name", "service"),
    ("service.version", "version"),
    ("deployment.environment", "env"),
];

/// A tag that is there to be asked for; nobody else gets it.
pub(super) const COMMAND: &str = "container_command";

/// The tags of a container, by cardinality; each sorted. The unified service tags (env, service,
/// version) come from the first source that has them: label, variable, OpenTelemetry's variables.
pub fn entity_tags(facts: &Facts, config: &Config) -> EntityTags {
    let mut tags = Builder::default();
    names(facts, config, &mut tags);
    let ecs = ECS_LABELS.iter().filter(|_| config.ecs_tags);
    for (label, name, level) in LABELS.iter().chain(ecs) {
        if let Some(value) = facts.labels.get(*label) {
            tags.add(*level, name, value);
        }
    }
    if let Some(arn) = facts.labels.get("com.amazonaws.ecs.task-arn").filter(|_| config.ecs_tags) {
        place_of_task(arn, &mut tags);
    }
    variables(facts, config, &mut tags);
    chosen_labels(facts, config, &mut tags);
    tags.finish()
}

fn names(facts: &Facts, config: &Config, tags: &mut Builder) {
    let image = ImageName::new(&facts.image);
    tags.add(Low, "docker_image", &image.full());
    tags.add_image(&image);
    tags.add(High, "container_name", facts.name());
    tags.add(High, "container_id", &facts.id);
    tags.add(Low, "image_id", &facts.image_id);
    if config.tag_by_command || config.performance_tags.iter().any(|asked| asked == COMMAND) {
        tags.add(High, COMMAND, &facts.command);
    }
    if config.legacy_names {
        tags.add(Low, "image", &image.full());
        for name in &facts.names {
            tags.add(High, "name", name.strip_prefix('/').unwrap_or(name));
        }
        tags.add(High, "command", &facts.command);
    }
}

fn variables(facts: &Facts, config: &Config, tags: &mut Builder) {
    let all: Vec<(&str, &str)> = facts.env.iter().filter_map(|line| line.split_once('=')).collect();
    let value = |name: &str| all.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
    for (variable, name, level) in VARIABLES {
        if let Some(value) = value(variable) {
            tags.add_first(level, name, value);
        }
    }
    if let Some(attributes) = value("OTEL_RESOURCE_ATTRIBUTES") {
        let attributes: Vec<_> = attributes.split(',').filter_map(|a| a.split_once('=')).collect();
        for (attribute, name) in OTEL_ATTRIBUTES {
            if let Some((_, value)) = attributes.iter().find(|(n, _)| n.trim() == attribute) {
                tags.add_first(Low, name, value.trim());
            }
        }
    }
    // Old Nomads name the group only within the allocation: `job.group[0]`.
    if let (None, Some(allocation)) = (value("NOMAD_GROUP_NAME"), value("NOMAD_ALLOC_NAME")) {
        let group = allocation.split_once('.').and_then(|(_, rest)| rest.split_once('['));
        if let Some((group, _)) = group {
            tags.add(Low, "nomad_group", group);
        }
    }
    for (name, value) in all {
        by_rules(&config.env_as_tags, "%%env%%", name, value, tags);
    }
}

fn chosen_labels(facts: &Facts, config: &Config, tags: &mut Builder) {
    for (name, value) in &facts.labels {
        by_rules(&config.labels_as_tags, "%%label%%", name, value, tags);
        if config.collect_labels_as_tags.contains(name) {
            if value.is_empty() {
                tags.push(Low, name.clone());
            } else {
                tags.add(Low, name, value);
            }
        }
    }
    if let Some(list) = facts.labels.get("com.datadoghq.ad.tags") {
        for tag in serde_json::from_str::<Vec<String>>(list).unwrap_or_default() {
            tags.push(High, tag);
        }
    }
}

/// The tags of one cardinality, and those below it.
pub fn up_to_high(tags: &EntityTags) -> Vec<String> {
    [&tags.low, &tags.orchestrator, &tags.high].into_iter().flatten().cloned().collect()
}

/// Keeps the tags with one of these names; an empty list keeps all.
pub fn keep(tags: Vec<String>, names: &[String]) -> Vec<String> {
    if names.is_empty() {
        return tags;
    }
    let name = |tag: &str| tag.split(':').next().unwrap_or_default().to_owned();
    tags.into_iter().filter(|tag| names.contains(&name(tag))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|e| (*e).to_owned()).collect()
    }

    #[test]
    fn a_task_of_ecs() {
        let facts = Facts {
            id: "ad711093891fc758eafed33d7e070c98e722d9c3fd18bee7edd7e21267fb8174".to_owned(),
            names: list(&["/fx-web"]),
            image: "registry.example.test:5000/team/bbfixture:1.35".to_owned(),
            image_id: "sha256:05c2".to_owned(),
            command: "httpd -f".to_owned(),
            labels: map(&[
                ("com.amazonaws.ecs.cluster", "fx-cluster"),
                ("com.amazonaws.ecs.container-name", "web"),
                ("com.amazonaws.ecs.task-arn", "arn:aws:ecs:us-west-2:123456789012:task/fx/01"),
                ("com.amazonaws.ecs.task-definition-family", "fx-task"),
                ("com.amazonaws.ecs.task-definition-version", "7"),
                ("com.datadoghq.tags.env", "ci"),
                ("com.docker.compose.service", "web"),
            ]),
            env: list(&["DD_ENV=other", "DD_SERVICE=web", "SECRET_TOKEN=x", "broken"]),
        };
        let mut config = Config::default();
        let tags = entity_tags(&facts, &config);
        assert_eq!(
            tags.low,
            [
                "aws_account:123456789012",
                "docker_image:registry.example.test:5000/team/bbfixture:1.35",
                "ecs_cluster_name:fx-cluster",
                "ecs_container_name:web",
                "env:ci",
                "image_id:sha256:05c2",
                "image_name:registry.example.test:5000/team/bbfixture",
                "image_tag:1.35",
                "region:us-west-2",
                "service:web",
                "short_image:bbfixture",
                "task_family:fx-task",
                "task_version:7",
            ]
        );
        assert_eq!(tags.orchestrator, ["task_arn:arn:aws:ecs:us-west-2:123456789012:task/fx/01"]);
        let id = format!("container_id:{}", facts.id);
        assert_eq!(tags.high, [&*id, "container_name:fx-web"]);
        config.tag_by_command = true;
        let command = "container_command:httpd -f".to_owned();
        assert!(entity_tags(&facts, &config).high.contains(&command));
        config.ecs_tags = false;
        assert!(entity_tags(&facts, &config).orchestrator.is_empty());
        config.performance_tags = list(&["container_command", "image_id", "container_name"]);
        assert_eq!(
            keep(up_to_high(&entity_tags(&facts, &config)), &config.performance_tags),
            ["image_id:sha256:05c2", "container_command:httpd -f", "container_name:fx-web"]
        );
    }

    #[test]
    fn labels_and_variables_by_list_and_pattern() {
        let facts = Facts {
            labels: map(&[("team", "data"), ("app.tier", "front"), ("bare", ""), ("other", "x")]),
            env: list(&["STAGE=blue", "APP_ZONE=a", "TOKEN=secret"]),
            ..Facts::default()
        };
        let config = Config {
            labels_as_tags: map(&[("TEAM", "owner"), ("app.*", "+label_%%label%%")]),
            collect_labels_as_tags: list(&["bare", "team"]),
            env_as_tags: map(&[("stage", "stage"), ("app_*", "%%env%%")]),
            ..Config::default()
        };
        let tags = entity_tags(&facts, &config);
        assert_eq!(tags.low, ["APP_ZONE:a", "bare", "owner:data", "stage:blue", "team:data"]);
        assert_eq!(tags.high, ["label_app.tier:front"]);
    }

    #[test]
    fn orchestrators_and_unified_tags() {
        for (labels, env, low, orchestrator, high) in [
            (
                &[
                    ("io.kubernetes.pod.name", "p-1"),
                    ("io.kubernetes.pod.namespace", "jobs"),
                    ("io.kubernetes.container.name", "app"),
                ][..],
                &[][..],
                &["kube_container_name:app", "kube_namespace:jobs"][..],
                &["pod_name:p-1"][..],
                &[][..],
            ),
            (
                &[],
                &[
                    "OTEL_SERVICE_NAME=a",
                    "OTEL_RESOURCE_ATTRIBUTES=service.name=b, service.version=2,x",
                ],
                &["service:a", "version:2"],
                &[],
                &[],
            ),
            (&[], &["NOMAD_ALLOC_NAME=job.cache[0]"], &["nomad_group:cache"], &[], &[]),
            (&[], &["MESOS_TASK_ID=t"], &[], &["mesos_task:t"], &[]),
            (&[("com.datadoghq.ad.tags", r#"["a:b","c"]"#)], &[], &[], &[], &["a:b", "c"]),
            (&[("com.datadoghq.ad.tags", "{")], &[], &[], &[], &[]),
        ] {
            let facts = Facts { labels: map(labels), env: list(env), ..Facts::default() };
            let tags = entity_tags(&facts, &Config::default());
            assert_eq!(
                (&*tags.low, &*tags.orchestrator, &*tags.high),
                (&*list(low), &*list(orchestrator), &*list(high))
            );
        }
    }

    #[test]
    fn a_name_is_the_containers_own() {
        for (names, name) in [
            (&["/web"][..], "web"),
            (&["/db/link", "/web"], "web"),
            (&["/db/link"], "0123456789ab"),
            (&[], "0123456789ab"),
            (&["/"], "0123456789ab"),
        ] {
            let id = "0123456789abcdef".to_owned();
            assert_eq!(Facts { id, names: list(names), ..Facts::default() }.name(), name);
        }
    }

    #[test]
    fn the_first_check_had_other_names() {
        let facts = Facts {
            names: list(&["/a", "/b/c"]),
            image: "app:1".to_owned(),
            command: "sleep".to_owned(),
            ..Facts::default()
        };
        let config = Config { legacy_names: true, ..Config::default() };
        let tags = up_to_high(&entity_tags(&facts, &config));
        for tag in ["image:app:1", "name:a", "name:b/c", "command:sleep", "container_name:a"] {
            assert!(tags.iter().any(|t| t == tag), "{tag} in {tags:?}");
        }
    }
}
