//! The task metadata endpoint of Amazon ECS: the task that tallyd itself runs in, which on Fargate
//! is the only one there is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{Containers, Wishes, get, list, read};
use crate::collectors::Enabled;
use crate::collectors::image::ImageName;
use crate::collectors::tagging::Level::{High, Low, Orchestrator};
use crate::collectors::tagging::{Builder, place_of_task};
use crate::origin::directory::{Place, Told};

/// Tags of the containers of a task of Amazon ECS, where no Docker engine tells them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `auto` asks where ECS says its address.
    pub enabled: Enabled,
    /// The endpoint, without `/task`. Empty takes $ECS_CONTAINER_METADATA_URI_V4, then
    /// $ECS_CONTAINER_METADATA_URI.
    pub url: String,
    /// Seconds between two questions; it is also asked a second after an unknown sender.
    pub interval: u32,
    /// Seconds that it has to answer.
    pub timeout: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: Enabled::Auto, url: String::new(), interval: 15, timeout: 2 }
    }
}

impl Config {
    /// The address of the task's document, if there is one to ask.
    pub fn address(&self, variable: impl Fn(&str) -> Option<String>) -> Option<String> {
        let variables = ["ECS_CONTAINER_METADATA_URI_V4", "ECS_CONTAINER_METADATA_URI"];
        let said = std::iter::once(Some(self.url.clone())).chain(variables.map(variable));
        let url = said.flatten().find(|url| !url.is_empty())?;
        (self.enabled != Enabled::Off).then(|| format!("{}/task", url.trim_end_matches('/')))
    }
}

/// The endpoint.
pub struct Ecs {
    client: Client,
    url: String,
    wishes: Wishes,
}

impl Ecs {
    /// # Errors
    ///
    /// No client can be made.
    pub fn new(config: &Config, url: String, wishes: Wishes) -> Result<Self, String> {
        let deadline = Duration::from_secs(config.timeout.max(1).into());
        let _ = rustls::crypto::ring::default_provider().install_default();
        // It is on the machine itself, without TLS.
        let builder = Client::builder().no_proxy().tls_certs_only([]).timeout(deadline);
        let client = builder.build().map_err(|error| super::cause(&error))?;
        Ok(Self { client, url, wishes })
    }

    pub(super) async fn containers(&mut self) -> Result<Containers, String> {
        let task = get(&self.client, &self.url, None).await?;
        containers(task, &self.wishes).ok_or_else(|| format!("{}: no task", self.url))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Task {
    cluster: String,
    #[serde(rename = "TaskARN")]
    arn: String,
    family: String,
    revision: String,
    availability_zone: String,
    service_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Container {
    docker_id: String,
    name: String,
    docker_name: String,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    labels: BTreeMap<String, String>,
    known_status: String,
    #[serde(rename = "Type")]
    kind: String,
    networks: Vec<Network>,
    restart_count: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Network {
    network_mode: String,
    #[serde(rename = "IPv4Addresses")]
    v4: Vec<String>,
    #[serde(rename = "IPv6Addresses")]
    v6: Vec<String>,
}

/// The containers of a task that run.
pub fn containers(mut json: Json, wishes: &Wishes) -> Option<Containers> {
    let all: Vec<Container> = list(&mut json, "Containers");
    let task: Task = read(json)?;
    let mut tags = Builder::default();
    add_task(&task, &mut tags);
    let of_task = Arc::new(tags.finish());
    let runs = |c: &Container| {
        !c.docker_id.is_empty() && c.known_status != "STOPPED" && c.kind != "CNI_PAUSE"
    };
    let containers = all.into_iter().filter(runs).map(|container| {
        let mut tags = Builder::default();
        add_task(&task, &mut tags);
        add_container(&container, wishes, &mut tags);
        let tags = tags.finish();
        let Container { docker_name, image, .. } = &container;
        let is_excluded = wishes.excludes(docker_name, image, "", &tags);
        let told = Told {
            addresses: addresses(&container),
            pod: Some(Place {
                uid: (*task.arn).into(),
                name: (*container.name).into(),
                tags: Some(Arc::clone(&of_task)),
            }),
            tags: Arc::new(tags),
            restarts: container.restart_count,
            is_excluded,
            ..Told::default()
        };
        (container.docker_id, told)
    });
    Some(containers.collect())
}

fn add_task(task: &Task, tags: &mut Builder) {
    // A name, or its ARN.
    let cluster = task.cluster.rsplit('/').next().unwrap_or_default();
    tags.add(Low, "ecs_cluster_name", cluster);
    tags.add(Low, "cluster_name", cluster);
    tags.add(Low, "task_family", &task.family);
    tags.add(Low, "task_name", &task.family);
    tags.add(Low, "task_version", &task.revision);
    tags.add(Low, "ecs_service", &task.service_name);
    tags.add(Low, "availability-zone", &task.availability_zone);
    tags.add(Low, "availability_zone", &task.availability_zone);
    place_of_task(&task.arn, tags);
    tags.add(Orchestrator, "task_arn", &task.arn);
}

fn add_container(container: &Container, wishes: &Wishes, tags: &mut Builder) {
    tags.add(Low, "ecs_container_name", &container.name);
    tags.add(High, "container_name", &container.docker_name);
    tags.add(High, "container_id", &container.docker_id);
    let image = ImageName::new(&container.image);
    tags.add(Low, "docker_image", &image.full());
    tags.add_image(&image);
    tags.add(Low, "image_id", &container.image_id);
    for name in ["env", "service", "version"] {
        if let Some(value) = container.labels.get(&format!("com.datadoghq.tags.{name}")) {
            tags.add(Low, name, value);
        }
    }
    for (name, value) in &container.labels {
        wishes.label(name, value, tags);
    }
}

/// The addresses from which a container sends. In a network that the task has for itself, which is
/// tallyd's too, it is also the loopback.
fn addresses(container: &Container) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for network in container.networks.iter().filter(|n| n.network_mode != "host") {
        let said = network.v4.iter().chain(&network.v6);
        addresses.extend(said.filter_map(|address| address.parse::<IpAddr>().ok()));
        if network.network_mode == "awsvpc" {
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            addresses.extend::<[IpAddr; 2]>(loopback);
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wishes(rules: &[(&str, &str)]) -> Wishes {
        let rules = rules.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let docker = crate::collectors::docker::Config {
            labels_as_tags: rules.collect(),
            ..Default::default()
        };
        Wishes::new(&docker).expect("no patterns")
    }

    const ARN: &str = "arn:aws:ecs:us-west-2:111122223333:task/default/158d1c8083dd49d6b527399fd64";

    fn task() -> Json {
        json!({
            "Cluster": "arn:aws:ecs:us-west-2:111122223333:cluster/shop",
            "TaskARN": ARN,
            "Family": "front",
            "Revision": "26",
            "ServiceName": null,
            "DesiredStatus": "RUNNING",
            "AvailabilityZone": "us-west-2d",
            "LaunchType": "FARGATE",
            "Containers": [
                {
                    "DockerId": "cd189a933e5849daa93386466019ab50-2495160603",
                    "Name": "web",
                    "DockerName": "ecs-front-26-web",
                    "ImageID": "sha256:0a",
                    "Image": "111122223333.dkr.ecr.us-west-2.amazonaws.com/web:1.2",
                    "Labels": {"com.datadoghq.tags.env": "prod", "team": "shop"},
                    "KnownStatus": "RUNNING",
                    "Type": "NORMAL",
                    "RestartCount": 3,
                    "Networks": [{"NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.0.108"],
                        "IPv6Addresses": null}],
                    "Snapshotter": "overlayfs"
                },
                {"DockerId": "cd189a933e5849daa93386466019ab50-1", "Name": "done",
                    "KnownStatus": "STOPPED", "Networks": null},
                {"DockerId": 7},
                {"Name": "pause", "DockerId": "cd189a933e5849daa93386466019ab50-2",
                    "KnownStatus": "RESOURCES_PROVISIONED", "Type": "CNI_PAUSE"}
            ]
        })
    }

    #[test]
    fn a_task_of_fargate() {
        let rules = wishes(&[("team", "+owner")]);
        let found = containers(task(), &rules).expect("a task");
        let [(id, told)] = &found[..] else { panic!("{found:#?}") };
        assert_eq!(id, "cd189a933e5849daa93386466019ab50-2495160603");
        let own = [
            "availability-zone:us-west-2d",
            "availability_zone:us-west-2d",
            "aws_account:111122223333",
            "cluster_name:shop",
            "docker_image:111122223333.dkr.ecr.us-west-2.amazonaws.com/web:1.2",
            "ecs_cluster_name:shop",
            "ecs_container_name:web",
            "env:prod",
            "image_id:sha256:0a",
            "image_name:111122223333.dkr.ecr.us-west-2.amazonaws.com/web",
            "image_tag:1.2",
            "region:us-west-2",
            "short_image:web",
            "task_family:front",
            "task_name:front",
            "task_version:26",
        ];
        assert_eq!(told.tags.low, own);
        assert_eq!(told.tags.orchestrator, [format!("task_arn:{ARN}")]);
        let id = format!("container_id:{id}");
        assert_eq!(told.tags.high, [&*id, "container_name:ecs-front-26-web", "owner:shop"]);
        let addresses = ["10.0.0.108", "127.0.0.1", "::1"].map(|a| a.parse().expect("an address"));
        assert_eq!((&*told.addresses, told.restarts), (&addresses[..], Some(3)));
        let pod = told.pod.as_ref().expect("a task");
        assert_eq!((&*pod.uid, &*pod.name), (ARN, "web"));
        let of_task = pod.tags.as_ref().expect("its tags");
        assert!(of_task.low.iter().all(|tag| told.tags.low.contains(tag)));
        assert!(of_task.high.is_empty() && of_task.low.len() == 9, "{of_task:?}");
    }

    #[test]
    fn what_is_no_task_is_refused() {
        let wishes = wishes(&[]);
        assert!(containers(json!(7), &wishes).is_none());
        assert!(containers(json!({"Containers": 3}), &wishes).is_some_and(|c| c.is_empty()));
    }

    #[test]
    fn its_address_is_said_by_ecs() {
        let variable = |name: &str| {
            let v4 = name == "ECS_CONTAINER_METADATA_URI_V4";
            Some(
                if v4 { "http://169.254.170.2/v4/ab" } else { "http://169.254.170.2/v3/ab" }
                    .to_owned(),
            )
        };
        let config = Config::default();
        assert_eq!(config.address(variable).as_deref(), Some("http://169.254.170.2/v4/ab/task"));
        let v3 = |name: &str| variable(name).filter(|url| !url.contains("v4"));
        assert_eq!(config.address(v3).as_deref(), Some("http://169.254.170.2/v3/ab/task"));
        assert_eq!(config.address(|_| None), None);
        let config = Config { url: "http://x/".to_owned(), ..config };
        assert_eq!(config.address(variable).as_deref(), Some("http://x/task"));
        assert_eq!(Config { enabled: Enabled::Off, ..config }.address(variable), None);
    }
}
