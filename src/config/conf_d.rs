//! dd-agent's files of checks: `conf.d/docker.yaml` and `conf.d/docker.d/conf.yaml` as they are.
//!
//! An option of `init_config` or of the first instance is the setting of the same name in the
//! check's section, unless the table says otherwise. One that is unknown is named in a note, with
//! its place.

use std::path::{Path, PathBuf};

use super::convert::{Manner, quoted};
use super::describe::{self, nearest_of};
use super::load::{Assignment, ConfigError, Source};
use super::tree::{Entry, Node, Shape};

/// A check whose files are read.
struct Check {
    /// Names of its files, without their end.
    names: &'static [&'static str],
    /// Its section of settings.
    section: &'static str,
    /// Options that are not settings of the same name, besides those of [`COMMON`].
    options: &'static [(&'static str, Effect)],
}

/// What becomes of an option.
#[derive(Clone, Copy)]
enum Effect {
    /// The check's setting of another name.
    Sets(&'static str),
    /// The folder in which the machine's `/proc` and `/sys/fs/cgroup` are.
    Root,
    /// Accepted, and nothing changes; why.
    Nothing(&'static str),
}

/// Every check whose files are read.
static CHECKS: &[Check] = &[
    Check { names: &["cgroup"], section: "collectors.cgroup", options: &[] },
    Check {
        names: &["docker", "docker_daemon"],
        section: "collectors.docker",
        options: &[
            ("socket_timeout", Effect::Sets("timeout")),
            ("docker_query_timeout", Effect::Sets("timeout")),
            ("collect_disk_usage", Effect::Sets("collect_container_size")),
            ("docker_root", Effect::Root),
            ("custom_cgroups", Effect::Nothing("cgroups are found by themselves")),
            ("init_retries", Effect::Nothing("the engine is looked for as long as it takes")),
            ("init_retry_interval", Effect::Nothing("the engine is looked for at each run")),
            ("new_tag_names", Effect::Nothing("use legacy_names for the old ones")),
        ],
    },
];

/// Options of every check of the Agent's.
const COMMON: &[(&str, Effect)] = &[
    ("min_collection_interval", Effect::Sets("interval")),
    ("name", Effect::Nothing("there is one instance")),
    ("service", Effect::Nothing("use rules.tags")),
    ("empty_default_hostname", Effect::Nothing("use origin.no_hostname")),
    ("loader", Effect::Nothing("it tunes the Agent")),
];

/// Keys beside `init_config` and `instances`, all of other parts of the Agent.
const ELSEWHERE: &[&str] = &["ad_identifiers", "cluster_check", "logs", "jmx_metrics"];

/// Files of all checks in a folder, in the order in which they are read; of two that give one
/// setting, the later wins.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for name in CHECKS.iter().flat_map(|check| check.names) {
        files.push(folder.join(format!("{name}.yaml")));
        let mut inner: Vec<_> = folder
            .join(format!("{name}.d"))
            .read_dir()
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
            .collect();
        inner.sort();
        files.append(&mut inner);
    }
    files.retain(|path| path.is_file());
    files
}

/// The settings in one of these files.
///
/// # Errors
/// When it does not have the form of a check's file.
pub(super) fn translate(
    path: &Path,
    node: &Node,
    notes: &mut Vec<String>,
) -> Result<Vec<Assignment>, ConfigError> {
    let name = path.display().to_string();
    let Some(check) = CHECKS.iter().find(|check| check.is_in(path)) else { return Ok(Vec::new()) };
    let mut file = CheckFile { name: &name, check, notes, found: Vec::new() };
    for Entry { key, line, value } in file.map(node, "expected init_config and instances")? {
        match key.as_str() {
            "init_config" if value.is_null() => {}
            "init_config" => file.options(file.map(value, "expected options")?),
            "instances" => file.instances(value)?,
            key if ELSEWHERE.contains(&key) => {}
            key => file.note(*line, &format!("unknown key {}", quoted(key))),
        }
    }
    Ok(file.found)
}

impl Check {
    /// Whether a path is one of its files.
    fn is_in(&self, path: &Path) -> bool {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let folder = path.parent().and_then(|folder| folder.file_name()?.to_str());
        let folder = folder.and_then(|folder| folder.strip_suffix(".d"));
        self.names.iter().any(|name| stem == Some(name) || folder == Some(name))
    }

    fn effect(&self, option: &str) -> Option<Effect> {
        let known = self.options.iter().chain(COMMON);
        known.clone().find(|(name, _)| *name == option).map(|(_, effect)| *effect)
    }

    /// Settings that an option may be.
    fn settings(&self) -> impl Iterator<Item = &'static str> {
        let prefix = format!("{}.", self.section);
        let all = describe::settings().filter_map(move |d| d.path.strip_prefix(&prefix));
        all.filter(|key| !key.contains('.'))
    }
}

/// A file being translated.
struct CheckFile<'a> {
    name: &'a str,
    check: &'static Check,
    notes: &'a mut Vec<String>,
    found: Vec<Assignment>,
}

impl CheckFile<'_> {
    fn map<'a>(&self, node: &'a Node, otherwise: &str) -> Result<&'a [Entry], ConfigError> {
        match &node.shape {
            Shape::Map(entries) => Ok(entries),
            Shape::Scalar { .. } | Shape::List(_) => {
                Err(ConfigError::new(self.source(node.line), otherwise))
            }
        }
    }

    /// A file with an instance is a wish for the check. A second instance has no place here.
    fn instances(&mut self, node: &Node) -> Result<(), ConfigError> {
        let items = match &node.shape {
            Shape::List(items) => items.as_slice(),
            Shape::Scalar { .. } if node.is_null() => &[],
            Shape::Scalar { .. } | Shape::Map(_) => {
                return Err(ConfigError::new(
                    self.source(node.line),
                    "expected a list of instances",
                ));
            }
        };
        if let Some(first) = items.first() {
            self.assign("enabled", &Node { line: first.line, ..Node::text("on") }, first.line);
            if !first.is_null() {
                self.options(self.map(first, "expected options")?);
            }
        }
        if let Some(second) = items.get(1) {
            self.note(second.line, "only the first instance is used");
        }
        Ok(())
    }

    fn options(&mut self, entries: &[Entry]) {
        for Entry { key, line, value } in entries {
            let effect = self.check.effect(key);
            match effect {
                // As in the Agent, a key without a value is not set.
                _ if value.is_null() => {}
                Some(Effect::Sets(setting)) => self.assign(setting, value, *line),
                Some(Effect::Root) => self.root(value, *line),
                Some(Effect::Nothing(why)) => {
                    self.note(*line, &format!("{key} has no effect: {why}"));
                }
                None if self.check.settings().any(|setting| setting == key) => {
                    self.assign(key, value, *line);
                }
                None => {
                    let options = self.check.options.iter().map(|(option, _)| *option);
                    let known = self.check.settings().chain(options);
                    let hint = nearest_of(key, known.map(|known| (known, known)));
                    let hint =
                        hint.map_or_else(String::new, |near| format!("; did you mean {near}?"));
                    self.note(*line, &format!("unknown option {}{hint}", quoted(key)));
                }
            }
        }
    }

    /// `/` is where they are looked for anyway.
    fn root(&mut self, node: &Node, line: usize) {
        let root = node.as_text().unwrap_or_default().trim_end_matches('/');
        if root.is_empty() {
            return;
        }
        for (setting, folder) in [("proc_root", "proc"), ("cgroup_root", "sys/fs/cgroup")] {
            let node = Node { line, ..Node::text(format!("{root}/{folder}")) };
            self.set(format!("collectors.{setting}"), &node, line);
        }
    }

    fn assign(&mut self, setting: &str, node: &Node, line: usize) {
        self.set(format!("{}.{setting}", self.check.section), node, line);
    }

    fn set(&mut self, path: String, node: &Node, line: usize) {
        let (node, source) = (node.clone(), self.source(line));
        self.found.push(Assignment { path, node, source, manner: Manner::Text });
    }

    fn source(&self, line: usize) -> Source {
        Source::File { name: self.name.to_owned(), line }
    }

    fn note(&mut self, line: usize, what: &str) {
        self.notes.push(format!("{}: {what}", self.source(line)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    /// Assignments as `path=value@line`, then notes.
    fn translated(path: &str, text: &str) -> Result<(Vec<String>, Vec<String>), String> {
        let node = tree::parse(text).map_err(|fault| fault.message)?;
        let mut notes = Vec::new();
        let found = translate(Path::new(path), &node, &mut notes).map_err(|e| e.to_string())?;
        let show = |Assignment { path, node, source, .. }: Assignment| {
            let value = node.words().unwrap_or_default().join("+");
            format!("{path}={value} {source}")
        };
        Ok((found.into_iter().map(show).collect(), notes))
    }

    #[test]
    fn options_are_settings_of_the_same_name_with_their_line() {
        let text = "init_config:\n  max_cgroups: 5\ninstances:\n  - exclude: [a, b]\n    \
                    min_collection_interval: 30\n    include:\n    interval: 20\n";
        assert_eq!(
            translated("/x/conf.d/cgroup.yaml", text),
            Ok((
                vec![
                    "collectors.cgroup.max_cgroups=5 /x/conf.d/cgroup.yaml:2".to_owned(),
                    "collectors.cgroup.enabled=on /x/conf.d/cgroup.yaml:4".to_owned(),
                    "collectors.cgroup.exclude=a+b /x/conf.d/cgroup.yaml:4".to_owned(),
                    "collectors.cgroup.interval=30 /x/conf.d/cgroup.yaml:5".to_owned(),
                    "collectors.cgroup.interval=20 /x/conf.d/cgroup.yaml:7".to_owned(),
                ],
                Vec::new()
            ))
        );
    }

    #[test]
    fn files_of_the_docker_check_of_three_generations() {
        let daemon = "init_config:\n  docker_root: /host\n  timeout: 10\n  tls: true\n\
                      instances:\n  - url: 'unix://var/run/docker.sock'\n    use_histogram: false\n    \
                      exclude: ['docker_image:.*pause.*']\n    collect_container_size: true\n    \
                      ok_exit_codes: [0, 143]\n    capped_metrics:\n      docker.cpu.user: 1000\n    \
                      colect_events: false\n";
        let (found, notes) = translated("conf.d/docker_daemon.yaml", daemon).expect("a file");
        let settings: Vec<&str> = found.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(
            settings,
            [
                "collectors.proc_root=/host/proc",
                "collectors.cgroup_root=/host/sys/fs/cgroup",
                "collectors.docker.timeout=10",
                "collectors.docker.tls=true",
                "collectors.docker.enabled=on",
                "collectors.docker.url=unix://var/run/docker.sock",
                "collectors.docker.use_histogram=false",
                "collectors.docker.exclude=docker_image:.*pause.*",
                "collectors.docker.collect_container_size=true",
                "collectors.docker.ok_exit_codes=0+143",
                "collectors.docker.capped_metrics=",
            ]
        );
        assert_eq!(
            notes,
            ["conf.d/docker_daemon.yaml:13: unknown option \"colect_events\"; did you mean \
                 collect_events?",]
        );
        let first = "init_config:\n  docker_root: /\ninstances:\n  - socket_timeout: 3\n    \
                     tag_by_command: true\n    new_tag_names: true\n";
        let (found, notes) = translated("conf.d/docker.yaml", first).expect("a file");
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[1], "collectors.docker.timeout=3 conf.d/docker.yaml:4");
        assert_eq!(found[2], "collectors.docker.tag_by_command=true conf.d/docker.yaml:5");
        assert_eq!(notes.len(), 1);
        let newest = "instances:\n  - collect_events: true\n    unbundle_events: true\n";
        let (found, notes) = translated("conf.d/docker.d/conf.yaml", newest).expect("a file");
        assert_eq!((found.len(), notes.len()), (3, 0));
    }

    #[test]
    fn what_is_not_understood_is_named_with_its_place() {
        let text =
            "logs: []\nlog: 1\ninstances:\n  - exclud: x\n    colour: y\n    service: z\n  - {}\n";
        let (found, notes) = translated("cgroup.d/conf.yaml", text).expect("a file");
        assert_eq!(found, ["collectors.cgroup.enabled=on cgroup.d/conf.yaml:4"]);
        assert_eq!(
            notes,
            [
                "cgroup.d/conf.yaml:2: unknown key \"log\"",
                "cgroup.d/conf.yaml:4: unknown option \"exclud\"; did you mean exclude?",
                "cgroup.d/conf.yaml:5: unknown option \"colour\"",
                "cgroup.d/conf.yaml:6: service has no effect: use rules.tags",
                "cgroup.d/conf.yaml:7: only the first instance is used",
            ]
        );
    }

    #[test]
    fn a_file_without_an_instance_asks_for_nothing() {
        for text in ["", "init_config:", "init_config:\ninstances:\n", "instances: []"] {
            assert_eq!(translated("cgroup.yaml", text), Ok((Vec::new(), Vec::new())), "{text:?}");
        }
        let (found, _) = translated("cgroup.yaml", "instances: [{}]").expect("a file");
        assert_eq!(found.len(), 1);
        let (found, _) = translated("cgroup.yaml", "instances:\n  -\n").expect("a file");
        assert_eq!(found.len(), 1);
        assert_eq!(translated("other.yaml", "instances: [{}]"), Ok((Vec::new(), Vec::new())));
    }

    #[test]
    fn another_form_is_an_error_with_its_line() {
        for (text, expected) in [
            ("[]", "cgroup.yaml:1: expected init_config and instances"),
            ("init_config: 1", "cgroup.yaml:1: expected options"),
            ("\ninstances: {}", "cgroup.yaml:2: expected a list of instances"),
            ("instances:\n  - 1", "cgroup.yaml:2: expected options"),
        ] {
            assert_eq!(translated("cgroup.yaml", text), Err(expected.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn files_are_found_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("cgroup.d");
        std::fs::create_dir(&inner).expect("a folder");
        std::fs::create_dir(folder.path().join("directory.yaml")).expect("a folder");
        for file in ["cgroup.d/b.yaml", "cgroup.d/a.yaml", "cgroup.d/a.yaml.default", "x.yaml"] {
            std::fs::write(folder.path().join(file), "").expect("a file");
        }
        assert_eq!(files(folder.path()), [inner.join("a.yaml"), inner.join("b.yaml")]);
        std::fs::write(folder.path().join("cgroup.yaml"), "").expect("a file");
        assert_eq!(files(folder.path()).len(), 3);
        assert_eq!(files(Path::new("/nowhere")), Vec::<PathBuf>::new());
    }
}
