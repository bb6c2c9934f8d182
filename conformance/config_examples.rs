//! The examples in `config/`: each is read in its own format, and the tallyd settings in it are
//! given to the loader, which must accept all of them and have nothing to remark.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tallyd::config::tree::{self, Node, Shape};
use tallyd::config::{Sources, from_text, load};

/// What an example gives to tallyd.
#[derive(Debug, Default, PartialEq)]
struct Given {
    environment: Vec<(String, String)>,
    overrides: Vec<String>,
    /// Contents of a `tallyd.yaml`.
    texts: Vec<String>,
}

impl Given {
    /// Checks it, and says which settings differ from the default.
    fn check(&self, example: &str) -> BTreeSet<&'static str> {
        let sources = Sources {
            environment: self.environment.clone(),
            overrides: self.overrides.clone(),
            ..Sources::default()
        };
        let loaded = load(&sources).map_err(|error| format!("{error}"));
        let texts = self.texts.iter().map(|text| {
            from_text("tallyd.yaml", text).map_err(|error| format!("{error} in\n{text}"))
        });
        let mut changed = BTreeSet::new();
        for loaded in std::iter::once(loaded).chain(texts) {
            let loaded = loaded.unwrap_or_else(|error| panic!("{example}: {error}"));
            assert_eq!(loaded.notes, Vec::<String>::new(), "{example}");
            changed.extend(loaded.settings.iter().filter(|s| s.changed).map(|s| s.path));
        }
        changed
    }

    fn arguments<'a>(&mut self, arguments: impl IntoIterator<Item = &'a str>) {
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument {
                "--set" => self.overrides.push(arguments.next().unwrap().to_owned()),
                "--config" | "--datadog-config" => drop(arguments.next().unwrap()),
                other => panic!("an argument this test does not know: {other}"),
            }
        }
    }

    /// A container of a task, a pod or a composition.
    fn container(&mut self, container: &Value) {
        let environment =
            ["env", "environment", "secrets"].iter().filter_map(|key| container.get(key));
        for environment in environment {
            match environment {
                Value::Object(map) => {
                    let pairs = map.iter().map(|(name, value)| (name.clone(), literal(value)));
                    self.environment.extend(pairs);
                }
                other => {
                    for variable in other.as_array().unwrap() {
                        let name = variable["name"].as_str().unwrap().to_owned();
                        self.environment.push((name, literal(&variable["value"])));
                    }
                }
            }
        }
        for arguments in ["command", "args"].iter().filter_map(|key| container.get(key)) {
            self.arguments(arguments.as_array().unwrap().iter().map(|word| word.as_str().unwrap()));
        }
    }
}

/// The value of a variable; what comes from a secret or from outside is any word.
fn literal(value: &Value) -> String {
    match value.as_str() {
        Some(text) if !text.starts_with("${") => text.to_owned(),
        _ => "from-outside".to_owned(),
    }
}

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

fn json(name: &str) -> Value {
    serde_json::from_str(&text(name)).unwrap()
}

/// The documents of a YAML file, all scalars as text.
fn yaml(name: &str) -> Vec<Value> {
    fn plain(node: &Node) -> Value {
        match &node.shape {
            Shape::Scalar { text, .. } => json!(text),
            Shape::List(items) => items.iter().map(plain).collect(),
            Shape::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), plain(&entry.value))).collect()
            }
        }
    }
    let text = text(name);
    text.split("\n---\n").map(|document| plain(&tree::parse(document).unwrap())).collect()
}

/// The one container whose name is tallyd.
fn tallyd(containers: &Value) -> &Value {
    let mut found = containers.as_array().unwrap().iter().filter(|c| c["name"] == "tallyd");
    let container = found.next().unwrap();
    assert_eq!(found.next(), None);
    container
}

/// An example sets exactly what it is meant to set.
fn assert_changed(changed: &BTreeSet<&str>, expected: &[&str]) {
    assert_eq!(changed.iter().copied().collect::<Vec<_>>(), expected);
}

#[test]
fn sidecar_compose() {
    let document = yaml("sidecar/compose.yaml").remove(0);
    let mut given = Given::default();
    given.container(&document["services"]["tallyd"]);
    assert_changed(
        &given.check("compose.yaml"),
        &[
            "intake.socket",
            "rules.tags",
            "sinks.datadog.api_key",
            "sinks.datadog.site",
            "value.histogram_percentiles",
        ],
    );
}

#[test]
fn sidecar_ecs() {
    let task = json("sidecar/ecs-task.json");
    let mut given = Given::default();
    let container = tallyd(&task["containerDefinitions"]);
    given.container(container);
    assert_changed(
        &given.check("ecs-task.json"),
        &[
            "intake.socket",
            "logging.format",
            "rules.tags",
            "sinks.datadog.api_key",
            "sinks.datadog.site",
            "value.histogram_percentiles",
        ],
    );
    assert_eq!(container["portMappings"][0]["containerPort"], 8125);
    assert_eq!(container["essential"], false);
}

#[test]
fn sidecar_kubernetes() {
    let documents = yaml("sidecar/kubernetes-pod.yaml");
    let mut given = Given::default();
    given.container(tallyd(&documents[1]["spec"]["initContainers"]));
    given.texts.push(documents[0]["data"]["tallyd.yaml"].as_str().unwrap().to_owned());
    assert_changed(
        &given.check("kubernetes-pod.yaml"),
        &[
            "intake.socket",
            "journal.memory_folder",
            "logging.format",
            "origin.hostname",
            "rules.tags",
            "sinks.datadog.api_key",
            "sinks.datadog.site",
            "status.health_listen",
            "value.histogram_percentiles",
        ],
    );
}

#[test]
fn daemon_systemd() {
    let mut given = Given::default();
    let mut section = "";
    let text = text("systemd/tallyd.service");
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name;
            continue;
        }
        let (key, value) = line.split_once('=').unwrap();
        match (section, key) {
            ("Service", "Environment") => {
                let (name, value) = value.split_once('=').unwrap();
                given.environment.push((name.to_owned(), value.to_owned()));
            }
            ("Service", "ExecStart") => {
                let mut words = value.split_whitespace();
                assert_eq!(words.next(), Some("/usr/bin/tallyd"));
                given.arguments(words);
            }
            ("Unit" | "Service" | "Install", _) => {}
            other => panic!("{other:?} is in no section of a unit"),
        }
    }
    assert_changed(&given.check("tallyd.service"), &["intake.socket", "sinks.console.enabled"]);
    // A wrong configuration must not be tried again and again.
    let code = tallyd::config::EXIT_CODE;
    assert!(text.contains(&format!("RestartPreventExitStatus=2 {code}\n")));
    // It says when it is ready, and that it gets on.
    assert!(text.contains("\nType=notify\n") && text.contains("\nWatchdogSec=30\n"));
    // Its sockets are those of the service.
    let intake = tallyd::intake::Config::default();
    let sockets = self::text("systemd/tallyd.socket");
    let sockets: Vec<_> =
        sockets.lines().filter_map(|line| line.strip_prefix("ListenDatagram=")).collect();
    let udp = format!("{}:{}", intake.bind_host, intake.port);
    assert_eq!(sockets, [udp.as_str(), "/run/datadog/dsd.socket"]);
    assert!(text.contains("TALLYD_INTAKE__SOCKET=/var/run/datadog/dsd.socket\n"));
}

#[test]
fn daemon_ecs() {
    let task = json("daemon/ecs-daemon-task.json");
    let mut given = Given::default();
    given.container(tallyd(&task["containerDefinitions"]));
    assert_changed(
        &given.check("ecs-daemon-task.json"),
        &[
            "intake.non_local_traffic",
            "intake.receive_buffer",
            "intake.socket",
            "logging.format",
            "sinks.datadog.api_key",
            "sinks.datadog.site",
        ],
    );
}

#[test]
fn daemon_kubernetes() {
    let documents = yaml("daemon/kubernetes-daemonset.yaml");
    let mut given = Given::default();
    given.container(tallyd(&documents[4]["spec"]["template"]["spec"]["containers"]));
    given.texts.push(documents[0]["data"]["tallyd.yaml"].as_str().unwrap().to_owned());
    assert_changed(
        &given.check("kubernetes-daemonset.yaml"),
        &[
            "collectors.kubelet.host",
            "intake.non_local_traffic",
            "intake.receive_buffer",
            "intake.socket",
            "intake.udp_sockets",
            "journal.memory_folder",
            "logging.format",
            "origin.hostname",
            "sinks.datadog.api_key",
            "sinks.datadog.site",
            "status.health_listen",
        ],
    );
}

/// The image's own variables, which beat a file, must be right as well.
#[test]
fn image() {
    let text = std::fs::read_to_string(path("../Dockerfile")).unwrap().replace("\\\n", " ");
    let mut given = Given::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("ENV ")) {
        let pairs = line.split_whitespace().map(|pair| pair.split_once('=').unwrap());
        given.environment.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    assert_changed(
        &given.check("Dockerfile"),
        &["intake.non_local_traffic", "status.health_listen", "status.listen"],
    );
    let user = text.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert_ne!(user.split(':').next().unwrap().parse::<u32>().unwrap(), 0);
}

#[test]
fn no_example_is_forgotten() {
    let mut found: Vec<String> = ["sidecar", "daemon", "systemd"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(path(folder)).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "compose.yaml",
            "ecs-daemon-task.json",
            "ecs-task.json",
            "kubernetes-daemonset.yaml",
            "kubernetes-pod.yaml",
            "tallyd.service",
            "tallyd.socket",
        ]
    );
}

/// The judge itself: what is wrong in an example must not pass.
#[test]
fn wrong_settings_in_an_example_are_found() {
    let variables = |name: &str| Given {
        environment: vec![(name.to_owned(), "1".to_owned())],
        ..Given::default()
    };
    for given in [
        variables("DD_NO_SUCH_KEY"),
        variables("TALLYD_INTAKE__PROT"),
        variables("TALLYD_INTAKE_PORT"),
        Given { overrides: vec!["intake.prot=1".to_owned()], ..Given::default() },
        Given { texts: vec!["intake: {prot: 1}".to_owned()], ..Given::default() },
    ] {
        let outcome = std::panic::catch_unwind(|| given.check("a wrong one"));
        assert!(outcome.is_err(), "{given:?}");
    }
}
