//! Gathers the layers, merges them by path, and names the place of what is wrong.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::convert::{Manner, convert, quoted, truth};
use super::describe::{self, Described};
use super::tree::{self, Entry, Fault, Node, Shape};
use super::{Config, agent, conf_d, validate};

/// Where `tallyd.yaml` is looked for when no flag or variable names it.
const CONFIG_PLACES: &[&str] = &["/etc/tallyd/tallyd.yaml"];
/// Where the Agent's files are looked for.
const AGENT_PLACES: &[&str] =
    &["/etc/datadog-agent/datadog.yaml", "/etc/datadog-agent/dogstatsd.yaml"];
/// Where the files of checks are looked for.
const CONF_D_PLACES: &[&str] =
    &["/etc/tallyd/conf.d", "/etc/datadog-agent/conf.d", "/etc/dd-agent/conf.d"];
/// The variable that names `tallyd.yaml`; the flag has precedence.
const CONFIG_VARIABLE: &str = "TALLYD_CONFIG";
const PREFIX: &str = "TALLYD_";
/// Variables that Kubernetes sets in every pod beside a service called tallyd.
const SERVICE_PREFIXES: [&str; 2] = ["TALLYD_PORT", "TALLYD_SERVICE_"];

/// What a configuration is made from. Nothing else is looked at.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `tallyd.yaml`, from `--config`.
    pub config_file: Option<PathBuf>,
    /// The Agent's file, from `--datadog-config`.
    pub datadog_file: Option<PathBuf>,
    /// The process environment.
    pub environment: Vec<(String, String)>,
    /// `section.key=value`, from `--set`.
    pub overrides: Vec<String>,
    /// Look for files that are not named in their usual places.
    pub search_default_places: bool,
}

/// A configuration and how it came about.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// Every setting in the order of the structs.
    pub settings: Vec<Setting>,
    /// Files that were read.
    pub files: Vec<PathBuf>,
    /// Lines to be logged once.
    pub notes: Vec<String>,
}

impl Loaded {
    /// How many settings differ from their default.
    pub fn changed(&self) -> usize {
        self.settings.iter().filter(|setting| setting.changed).count()
    }
}

/// One setting as it came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    pub path: &'static str,
    /// The value as it may be shown: keys and passwords are stars.
    pub value: Value,
    pub source: Source,
    pub comment: &'static str,
    /// Its value differs from the default.
    pub changed: bool,
}

/// Where a value comes from; written as it appears in messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    #[default]
    Default,
    File {
        name: String,
        line: usize,
    },
    Variable(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { name, line: 0 } => f.write_str(name),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(path) => write!(f, "--set {path}"),
        }
    }
}

impl Source {
    fn file(name: &str, line: usize) -> Self {
        Self::File { name: name.to_owned(), line }
    }

    /// The same source at the line of a fault within a value, if that is known.
    fn at(&self, line: usize) -> Self {
        match self {
            Self::File { name, .. } if line > 0 => Self::file(name, line),
            other => other.clone(),
        }
    }
}

/// What is wrong with the configuration, in one line that begins with the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// File and line, variable or flag.
    pub place: String,
    pub message: String,
}

impl ConfigError {
    pub(super) fn new(place: impl fmt::Display, message: impl Into<String>) -> Self {
        Self { place: place.to_string(), message: message.into() }
    }

    fn of_fault(file: &str, fault: Fault) -> Self {
        Self::new(Source::file(file, fault.line), fault.message)
    }
}

/// A value for one of our settings, not yet typed.
#[derive(Clone, Debug)]
pub(super) struct Assignment {
    pub path: String,
    pub node: Node,
    pub source: Source,
    pub manner: Manner,
}

/// Loads the configuration from all its layers: defaults, the Agent's file, its files of checks,
/// `tallyd.yaml`, `DD_*`, `TALLYD_*`, flags; later ones have precedence. Reads files, and nothing else of the system.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let (mut files, mut notes) = (Vec::new(), Vec::new());

    let agent_file = read_agent_file(sources, &mut notes)?;
    let agent_node = match &agent_file {
        Some((path, text)) => Some((path.display().to_string(), parse(path, text)?)),
        None => None,
    };
    files.extend(agent_file.map(|(path, _)| path));
    let agent = agent::translate(
        agent_node.as_ref().map(|(name, node)| (name.as_str(), node)),
        &sources.environment,
    )?;
    notes.extend(agent.notes);
    let (agent_environment, mut assignments): (Vec<_>, Vec<_>) =
        agent.assignments.into_iter().partition(|a| matches!(a.source, Source::Variable(_)));

    let checks_come_here = assignments.len();
    if let Some(path) = config_file(sources) {
        let text = read(&path).map_err(|e| ConfigError::new(path.display(), reason(&e)))?;
        assignments.extend(of_file(&path.display().to_string(), &parse(&path, &text)?)?);
        files.push(path);
    }
    assignments.extend(agent_environment);
    assignments.extend(of_environment(&sources.environment, &mut notes)?);
    assignments.extend(of_overrides(&sources.overrides)?);
    let checks = of_checks(sources, &assignments, &mut files, &mut notes)?;
    assignments.splice(checks_come_here..checks_come_here, checks);

    let mut loaded = build(assignments)?;
    loaded.notes.splice(0..0, notes);
    loaded.files = files;
    Ok(loaded)
}

/// The configuration that the text of one `tallyd.yaml` gives over the defaults. Pure.
pub fn from_text(name: &str, text: &str) -> Result<Loaded, ConfigError> {
    let node = tree::parse(text).map_err(|fault| ConfigError::of_fault(name, fault))?;
    build(of_file(name, &node)?)
}

/// The configuration that the text of an Agent's `datadog.yaml` and an environment give. Pure.
pub fn agent_from_text(
    name: &str,
    text: &str,
    environment: &[(String, String)],
) -> Result<Loaded, ConfigError> {
    let node = tree::parse(text).map_err(|fault| ConfigError::of_fault(name, fault))?;
    let agent = agent::translate(Some((name, &node)), environment)?;
    let mut loaded = build(agent.assignments)?;
    loaded.notes.splice(0..0, agent.notes);
    Ok(loaded)
}

fn config_file(sources: &Sources) -> Option<PathBuf> {
    let variable = sources.environment.iter().find(|(name, _)| name == CONFIG_VARIABLE);
    sources
        .config_file
        .clone()
        .or_else(|| variable.map(|(_, path)| path.into()).filter(|p: &PathBuf| p != Path::new("")))
        .or_else(|| usual_place(sources, CONFIG_PLACES))
}

/// The first file that exists, if the usual places are to be searched.
fn usual_place(sources: &Sources, places: &[&str]) -> Option<PathBuf> {
    let mut places = places.iter().filter(|_| sources.search_default_places).map(PathBuf::from);
    places.find(|path| path.exists())
}

/// Reads the Agent's file. One that was merely found may be unreadable: an Agent beside us keeps
/// its file to itself.
fn read_agent_file(
    sources: &Sources,
    notes: &mut Vec<String>,
) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let found = usual_place(sources, AGENT_PLACES);
    let Some(path) = sources.datadog_file.as_ref().or(found.as_ref()) else { return Ok(None) };
    match read(path) {
        Ok(text) => Ok(Some((path.clone(), text))),
        Err(error) if sources.datadog_file.is_none() => {
            notes.push(format!("{} is not used: {}", path.display(), reason(&error)));
            Ok(None)
        }
        Err(error) => Err(ConfigError::new(path.display(), reason(&error))),
    }
}

/// The settings in the Agent's files of checks. `assignments` may name their folder, and `files` has
/// what was read so far, the nearest last. A file in a folder that was merely found may be
/// unreadable.
fn of_checks(
    sources: &Sources,
    assignments: &[Assignment],
    files: &mut Vec<PathBuf>,
    notes: &mut Vec<String>,
) -> Result<Vec<Assignment>, ConfigError> {
    let named = assignments.iter().rfind(|a| a.path == "collectors.conf_d");
    let named = named.and_then(|a| a.node.as_text()).filter(|folder| !folder.is_empty());
    let beside = files.iter().rev().map(|file| file.with_file_name("conf.d"));
    let folder = match named {
        Some(folder) => Some(PathBuf::from(folder)),
        None => beside
            .chain(
                CONF_D_PLACES.iter().filter(|_| sources.search_default_places).map(PathBuf::from),
            )
            .find(|folder| folder.is_dir()),
    };
    let mut found = Vec::new();
    for path in folder.iter().flat_map(|folder| conf_d::files(folder)) {
        match read(&path) {
            Ok(text) => found.extend(conf_d::translate(&path, &parse(&path, &text)?, notes)?),
            Err(error) if named.is_none() => {
                notes.push(format!("{} is not used: {}", path.display(), reason(&error)));
                continue;
            }
            Err(error) => return Err(ConfigError::new(path.display(), reason(&error))),
        }
        files.push(path);
    }
    Ok(found)
}

/// Reads a file up to one byte more than the parser takes.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(tree::TEXT_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn reason(error: &io::Error) -> String {
    format!("cannot be read: {error}")
}

fn parse(path: &Path, text: &str) -> Result<Node, ConfigError> {
    tree::parse(text).map_err(|fault| ConfigError::of_fault(&path.display().to_string(), fault))
}

/// The settings in a `tallyd.yaml`.
fn of_file(name: &str, node: &Node) -> Result<Vec<Assignment>, ConfigError> {
    let mut found = Vec::new();
    match &node.shape {
        Shape::Map(entries) => of_section(name, "", entries, &mut found)?,
        Shape::Scalar { .. } | Shape::List(_) => {
            return Err(ConfigError::new(Source::file(name, node.line), "expected sections"));
        }
    }
    Ok(found)
}

fn of_section(
    name: &str,
    section: &str,
    entries: &[Entry],
    found: &mut Vec<Assignment>,
) -> Result<(), ConfigError> {
    for Entry { key, line, value } in entries {
        let path = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        let source = Source::file(name, *line);
        match describe::find(&path) {
            None => return Err(unknown(&path, &source)),
            Some(described) if described.key() != key => {
                let message = format!("{path}: write {} within its section", described.key());
                return Err(ConfigError::new(&source, message));
            }
            Some(described) if !described.section => {
                let node = value.clone();
                found.push(Assignment { path, node, source, manner: Manner::Yaml });
            }
            // All settings of the section may be commented out.
            Some(_) if value.is_null() => {}
            Some(_) => match &value.shape {
                Shape::Map(entries) => of_section(name, &path, entries, found)?,
                Shape::Scalar { .. } | Shape::List(_) => {
                    let Some(path) = switch(&path, value) else {
                        return Err(not_a_setting(&path, &source));
                    };
                    let node = value.clone();
                    found.push(Assignment { path, node, source, manner: Manner::Text });
                }
            },
        }
    }
    Ok(())
}

/// The settings in variables: `TALLYD_INTAKE__PORT` is `intake.port`.
fn of_environment(
    environment: &[(String, String)],
    notes: &mut Vec<String>,
) -> Result<Vec<Assignment>, ConfigError> {
    let (mut found, mut other) = (Vec::new(), Vec::new());
    for (name, value) in environment {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        if path.contains("__") {
            let path = path.to_lowercase().replace("__", ".");
            found.push(text_assignment(path, value, Source::Variable(name.clone())));
        } else if name != CONFIG_VARIABLE && !SERVICE_PREFIXES.iter().any(|p| name.starts_with(p)) {
            other.push(name.as_str());
        }
    }
    if !other.is_empty() {
        other.sort_unstable();
        notes.push(format!(
            "environment variables without effect, for a setting is TALLYD_SECTION__KEY with two \
             underscores: {}",
            other.join(", ")
        ));
    }
    found.into_iter().collect()
}

/// The settings in `--set section.key=value`.
fn of_overrides(overrides: &[String]) -> Result<Vec<Assignment>, ConfigError> {
    let assignment = |text: &String| match text.split_once('=') {
        Some((path, value)) => {
            text_assignment(path.trim().to_owned(), value, Source::Flag(path.trim().to_owned()))
        }
        None => Err(ConfigError::new(
            "--set",
            format!("expected SECTION.KEY=VALUE, found {}", quoted(text)),
        )),
    };
    overrides.iter().map(assignment).collect()
}

fn text_assignment(path: String, value: &str, source: Source) -> Result<Assignment, ConfigError> {
    let node = Node::text(value);
    let path = match describe::find(&path) {
        None => return Err(unknown(&path, &source)),
        Some(described) if described.section => {
            switch(&path, &node).ok_or_else(|| not_a_setting(&path, &source))?
        }
        Some(_) => path,
    };
    Ok(Assignment { path, node, source, manner: Manner::Text })
}

/// What `off` or `on` in the place of a whole section sets, if there is such a switch.
fn switch(section: &str, node: &Node) -> Option<String> {
    truth(node.as_text()?)?;
    describe::find(&format!("{section}.enabled")).map(|described| described.path.clone())
}

fn unknown(path: &str, source: &Source) -> ConfigError {
    let hint = agent::path_of(path).or_else(|| describe::nearest(path));
    let hint = hint.map_or_else(String::new, |path| format!("; did you mean {path}?"));
    let path: String = path.chars().take(100).collect();
    ConfigError::new(source, format!("unknown setting {}{hint}", path.escape_debug()))
}

fn not_a_setting(path: &str, source: &Source) -> ConfigError {
    let mut within = describe::settings().filter(|d| d.path.starts_with(&format!("{path}.")));
    let example = within.next().map_or(path, |described| described.path.as_str());
    ConfigError::new(source, format!("{path} is a section: set what is within, such as {example}"))
}

/// Types the assignments, lays them over the defaults in their order, and checks the outcome.
fn build(assignments: Vec<Assignment>) -> Result<Loaded, ConfigError> {
    let mut given: HashMap<&'static str, Source> = HashMap::new();
    let mut whole = serde_json::to_value(Config::default())
        .map_err(|error| ConfigError::new("defaults", error.to_string()))?;
    for Assignment { path, node, source, manner } in assignments {
        let Some(described) = describe::find(&path) else { return Err(unknown(&path, &source)) };
        let value =
            convert(&node, &described.schema, manner, described.is_secret()).map_err(|fault| {
                ConfigError::new(source.at(fault.line), format!("{path}{}", fault.message))
            })?;
        if let Some(place) = whole.pointer_mut(&pointer(described)) {
            *place = value;
            given.insert(&described.path, source);
        }
    }

    let config: Config = serde_path_to_error::deserialize(&whole)
        .map_err(|error| wrong(&error.path().to_string(), &error.inner().to_string(), &given))?;
    validate::validate(&config).map_err(|fault| wrong(&fault.path, &fault.message, &given))?;

    let settings = describe::settings()
        .map(|described| {
            let value = whole.pointer(&pointer(described)).unwrap_or(&described.default);
            Setting {
                path: &described.path,
                value: describe::masked(&described.path, value),
                source: given.get(described.path.as_str()).cloned().unwrap_or_default(),
                comment: &described.comment,
                changed: *value != described.default,
            }
        })
        .collect();
    let notes = validate::remarks(&config);
    Ok(Loaded { config, settings, files: Vec::new(), notes })
}

fn pointer(described: &Described) -> String {
    format!("/{}", described.path.replace('.', "/"))
}

/// An error at a path, placed where the setting was given. Secrets keep their reason to themselves.
fn wrong(path: &str, message: &str, given: &HashMap<&'static str, Source>) -> ConfigError {
    let owner = describe::owner(path).map_or(path, |described| described.path.as_str());
    ConfigError::new(given.get(owner).unwrap_or(&Source::Default), format!("{path}: {message}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn of_variables(pairs: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        load(&Sources { environment: variables(pairs), ..Sources::default() })
    }

    fn setting<'a>(loaded: &'a Loaded, path: &str) -> &'a Setting {
        loaded.settings.iter().find(|setting| setting.path == path).unwrap()
    }

    #[test]
    fn files_of_checks_stand_between_the_agents_file_and_ours() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let ours = file("tallyd.yaml", "collectors: {cgroup: {max_depth: 9}}");
        let check = "instances:\n  - {max_depth: 8, max_cgroups: 8, typo: 1}\n";
        let check = file("conf.d/cgroup.yaml", check);
        let sources = Sources { config_file: Some(ours.clone()), ..Sources::default() };
        let loaded = load(&sources).unwrap();
        let cgroup = &loaded.config.collectors.cgroup;
        assert_eq!((cgroup.max_depth, cgroup.max_cgroups), (9, 8));
        assert_eq!(cgroup.enabled, crate::collectors::Enabled::On);
        assert_eq!(loaded.files, [ours, check.clone()]);
        let typo = format!("{}:2: unknown option \"typo\"", check.display());
        assert_eq!(loaded.notes, [typo]);

        // Beside the Agent's file, and where the Agent's setting says.
        let agents = |text: &str| {
            let agents = file("agent/datadog.yaml", text);
            load(&Sources { datadog_file: Some(agents), ..Sources::default() })
        };
        let depth = |text: &str| agents(text).unwrap().config.collectors.cgroup.max_depth;
        file("agent/conf.d/cgroup.d/conf.yaml", "instances: [{max_depth: 7}]");
        assert_eq!(depth(""), 7);
        let path = folder.path().join("conf.d").display().to_string();
        assert_eq!(depth(&format!("confd_path: {path}")), 8);
        let wrong = file("agent/conf.d/cgroup.yaml", "instances:\n  - max_depth: deep\n");
        let error = agents("").unwrap_err().to_string();
        let place = format!("{}:2: collectors.cgroup.max_depth", wrong.display());
        assert!(error.starts_with(&place), "{error}");
    }

    #[test]
    fn later_layers_win() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut sources = Sources::default();
        let expect = |sources: &Sources, port: u16, source: &str| {
            let loaded = load(sources).unwrap();
            assert_eq!(loaded.config.intake.port, port);
            let shown = setting(&loaded, "intake.port").source.to_string();
            assert_eq!(shown.replace(&format!("{}/", folder.path().display()), ""), source);
        };
        expect(&sources, 8125, "default");
        sources.datadog_file = Some(file("datadog.yaml", "dogstatsd_port: 1\n"));
        expect(&sources, 1, "datadog.yaml:1");
        sources.config_file = Some(file("tallyd.yaml", "intake:\n  port: 2\n"));
        expect(&sources, 2, "tallyd.yaml:2");
        sources.environment = variables(&[("DD_DOGSTATSD_PORT", "3")]);
        expect(&sources, 3, "DD_DOGSTATSD_PORT");
        sources.environment.insert(0, ("TALLYD_INTAKE__PORT".to_owned(), "4".to_owned()));
        expect(&sources, 4, "TALLYD_INTAKE__PORT");
        sources.overrides = vec!["intake.port=5".to_owned()];
        expect(&sources, 5, "--set intake.port");
        sources.overrides.push("intake.port=6".to_owned());
        expect(&sources, 6, "--set intake.port");
        assert_eq!(load(&sources).unwrap().files.len(), 2);
    }

    #[test]
    fn a_section_with_a_switch_can_be_off_as_a_whole() {
        let loaded = from_text("t.yaml", "journal: off\nself_profile: false\n").unwrap();
        assert!(!loaded.config.journal.enabled && !loaded.config.self_profile.enabled);
        let on = from_text("t.yaml", "sinks:\n  prometheus: off\n  spool: on\n").unwrap();
        assert!(!on.config.sinks.prometheus.enabled && on.config.sinks.spool.enabled);
        for (text, place) in [("journal: 64\n", "t.yaml:1"), ("intake: off\n", "t.yaml:1")] {
            let error = from_text("t.yaml", text).unwrap_err().to_string();
            assert!(error.starts_with(place) && error.contains("is a section"), "{error}");
        }
    }

    #[test]
    fn layers_keep_what_others_do_not_name() {
        let loaded = of_variables(&[
            ("TALLYD_SINKS__DATADOG__HTTP__TIMEOUT", "7"),
            ("TALLYD_RULES__TAGS", "a:b c:d"),
            ("TALLYD_INTAKE__SOCKET", ""),
            ("DD_SITE", "datadoghq.eu"),
            ("PATH", "/bin"),
        ])
        .unwrap();
        let mut expected = Config::default();
        expected.sinks.datadog.http.timeout = 7;
        expected.sinks.datadog.site = "datadoghq.eu".to_owned();
        expected.rules.tags = vec!["a:b".to_owned(), "c:d".to_owned()];
        expected.intake.socket = String::new();
        assert_eq!(loaded.config, expected);
        assert_eq!((loaded.changed(), loaded.notes.len()), (4, 0));
    }

    #[test]
    fn the_file_is_named_by_flag_or_variable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.yaml");
        std::fs::write(&path, "flush: {interval: 3}").unwrap();
        let name = path.display().to_string();
        assert_eq!(of_variables(&[("TALLYD_CONFIG", &name)]).unwrap().config.flush.interval, 3);
        assert_eq!(of_variables(&[("TALLYD_CONFIG", "")]).unwrap().config.flush.interval, 10);

        let missing = folder.path().join("y.yaml");
        for sources in [
            Sources { config_file: Some(missing.clone()), ..Sources::default() },
            Sources { datadog_file: Some(missing.clone()), ..Sources::default() },
            Sources {
                environment: variables(&[("TALLYD_CONFIG", &missing.display().to_string())]),
                ..Sources::default()
            },
        ] {
            assert_eq!(
                load(&sources).unwrap_err().to_string(),
                format!(
                    "{}: cannot be read: No such file or directory (os error 2)",
                    missing.display()
                )
            );
        }
    }

    #[test]
    fn errors_of_files_name_line_path_and_reason() {
        for (text, expected) in [
            (
                "\nintake:\n  prot: 1\n",
                "t.yaml:3: unknown setting intake.prot; did you mean intake.port?",
            ),
            ("prot: 1\n", "t.yaml:1: unknown setting prot; did you mean intake.port?"),
            (
                "dogstatsd_port: 1\n",
                "t.yaml:1: unknown setting dogstatsd_port; did you mean intake.port?",
            ),
            ("xyzzy: 1\n", "t.yaml:1: unknown setting xyzzy"),
            ("intake.port: 1\n", "t.yaml:1: intake.port: write port within its section"),
            (
                "intake: 8125\n",
                "t.yaml:1: intake is a section: set what is within, such as intake.port",
            ),
            ("- intake\n", "t.yaml:1: expected sections"),
            (
                "intake:\n  port:\n    - 1\n",
                "t.yaml:3: intake.port: expected a whole number from 0 to 65535, found a list",
            ),
            (
                "intake: {port: 70000}",
                "t.yaml:1: intake.port: expected a whole number from 0 to 65535, found \"70000\"",
            ),
            (
                "intake:\n  port:\n",
                "t.yaml:2: intake.port: expected a whole number from 0 to 65535, found no value",
            ),
            ("intake:\n port: 1\n port: 2\n", "t.yaml:3: port is given twice, first in line 2"),
            (
                "intake:\n  port: 1\n stdin: x\n",
                "t.yaml:3: not valid YAML: while parsing a block mapping, did not find expected key",
            ),
            (
                "intake:\n  listeners:\n    - address: udp://h:1\n    - {address: udp://h:1, dialekt: x}\n",
                "t.yaml:4: intake.listeners[1].dialekt: unknown setting; did you mean dialect?",
            ),
            ("flush: {interval: 0}", "t.yaml:1: flush.interval: expected 1 to 3600, found 0"),
            (
                "sinks:\n  datadog:\n    api_key: a b-s3cret\n",
                "t.yaml:3: sinks.datadog.api_key: expected a key of visible ASCII characters without blanks",
            ),
        ] {
            let error = from_text("t.yaml", text).map(|_| ()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{text}");
        }
    }

    #[test]
    fn errors_of_variables_and_flags_name_them() {
        for (name, value, expected) in [
            (
                "TALLYD_INTAKE__PROT",
                "1",
                "TALLYD_INTAKE__PROT: unknown setting intake.prot; did you mean intake.port?",
            ),
            (
                "TALLYD_INTAKE__PORT",
                "x",
                "TALLYD_INTAKE__PORT: intake.port: expected a whole number from 0 to 65535, found \"x\"",
            ),
            (
                "TALLYD_SINKS__DATADOG",
                "x",
                "TALLYD_SINKS__DATADOG: sinks.datadog is a section: set what is within, such as sinks.datadog.api_key",
            ),
            (
                "DD_DOGSTATSD_PORT",
                "x",
                "DD_DOGSTATSD_PORT: intake.port: expected a whole number from 0 to 65535, found \"x\"",
            ),
            (
                "DD_DOGSTATSD_MAPPER_PROFILES",
                "[{",
                "DD_DOGSTATSD_MAPPER_PROFILES: rules.mapper_profiles: not valid JSON at line 1 column 2",
            ),
            (
                "DD_LOG_LEVEL",
                "loud",
                "DD_LOG_LEVEL: logging.level: expected trace, debug, info, warn, error or off, found \"loud\"",
            ),
            (
                "DD_API_KEY",
                "ENC[s3cret]",
                "DD_API_KEY: sinks.datadog.api_key: is a reference to a secret (ENC[...]): set secrets.command (DD_SECRET_BACKEND_COMMAND) to the program that gives it, or give the value itself",
            ),
            (
                "DD_ADDITIONAL_ENDPOINTS",
                "{\"https://h\": [\"s3 cret\"]}",
                "DD_ADDITIONAL_ENDPOINTS: sinks.datadog.additional_endpoints: expected a key of visible ASCII characters without blanks",
            ),
            (
                "DD_PROXY_HTTP",
                "ftp://u:s3cret@h",
                "DD_PROXY_HTTP: sinks.datadog.http.proxy_http: expected an address that begins with http:// or https://",
            ),
        ] {
            assert_eq!(of_variables(&[(name, value)]).unwrap_err().to_string(), expected);
        }
        for (text, expected) in [
            ("intake.port", "--set: expected SECTION.KEY=VALUE, found \"intake.port\""),
            (
                "intake.prot=1",
                "--set intake.prot: unknown setting intake.prot; did you mean intake.port?",
            ),
            (
                "intake.stdin=maybe",
                "--set intake.stdin: intake.stdin: expected true or false, found \"maybe\"",
            ),
            (
                "intake=1",
                "--set intake: intake is a section: set what is within, such as intake.port",
            ),
        ] {
            let sources = Sources { overrides: vec![text.to_owned()], ..Sources::default() };
            assert_eq!(load(&sources).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn variables_that_are_no_settings_are_named_unless_kubernetes_set_them() {
        let loaded = of_variables(&[
            ("TALLYD_PORT", "tcp://10.0.0.1:8127"),
            ("TALLYD_PORT_8127_TCP_ADDR", "10.0.0.1"),
            ("TALLYD_SERVICE_HOST", "10.0.0.1"),
            ("TALLYD_INTAKE_PORT", "1"),
        ])
        .unwrap();
        assert_eq!(loaded.config, Config::default());
        assert_eq!(
            loaded.notes,
            [
                "environment variables without effect, for a setting is TALLYD_SECTION__KEY with two \
              underscores: TALLYD_INTAKE_PORT"
            ]
        );
    }

    #[test]
    fn places_inside_a_setting_lead_to_its_source() {
        let given = HashMap::from([("intake.listeners", Source::file("t.yaml", 7))]);
        let error = wrong("intake.listeners[0].address", "is odd", &given);
        assert_eq!(error.to_string(), "t.yaml:7: intake.listeners[0].address: is odd");
        assert_eq!(wrong("x", "is odd", &given).to_string(), "default: x: is odd");
    }

    #[test]
    fn shown_values_are_those_of_the_configuration() {
        let loaded = from_text("t.yaml", "intake:\n  port: 1\n  bind_host: '127.0.0.1'\n").unwrap();
        let port = setting(&loaded, "intake.port");
        assert_eq!((&port.value, port.changed), (&json!(1), true));
        let host = setting(&loaded, "intake.bind_host");
        assert_eq!((host.changed, host.source.to_string().as_str()), (false, "t.yaml:3"));
    }

    #[test]
    fn found_files_may_be_missing() {
        let sources = Sources { search_default_places: true, ..Sources::default() };
        assert_eq!(
            usual_place(&sources, &["/nonexistent/a", "/proc/self/status"]).unwrap(),
            Path::new("/proc/self/status")
        );
        assert_eq!(usual_place(&sources, &["/nonexistent/a"]), None);
        assert_eq!(usual_place(&Sources::default(), &["/proc/self/status"]), None);
    }

    /// Words that lead deep into the configuration, so that soup of them gets past the parser.
    fn soup() -> impl Strategy<Value = String> {
        let words = [
            "intake:",
            "sinks:",
            "datadog:",
            "http:",
            "rules:",
            "value:",
            "port:",
            "listeners:",
            "address:",
            "mapper_profiles:",
            "mappings:",
            "tags:",
            "api_key:",
            "dogstatsd_port:",
            "additional_endpoints:",
            "proxy:",
            "tags",
            "- ",
            "[",
            "]",
            "{",
            "}",
            ",",
            "\n",
            "\n  ",
            "\n    ",
            " ",
            "1",
            "-1",
            "0.5",
            "true",
            "udp://h:1",
            "'x'",
            "\"",
            "&a",
            "*a",
            "~",
            "ENC[x]",
            "1e999",
            "__random__",
            "use_dogstatsd:",
            "histogram_percentiles:",
        ];
        proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..40)
            .prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_text_panics(text in soup(), value in soup()) {
            let _ = from_text("t.yaml", &text);
            let environment = variables(&[("DD_TAGS", &value), ("DD_DOGSTATSD_MAPPER_PROFILES", &value)]);
            let _ = agent_from_text("d.yaml", &text, &environment);
        }

        /// No value given at a secret setting turns up in an error.
        #[test]
        fn errors_keep_secrets(value in "[\\[\\]{}\": ,&*!|>-]{0,4}s3cret[\\[\\]{}\": ,]{0,4}") {
            for text in [
                format!("sinks:\n  datadog:\n    api_key: {value}\n"),
                format!("sinks:\n  datadog:\n    additional_endpoints: {value}\n"),
                format!("sinks:\n  datadog:\n    dd_url: {value}\n"),
            ] {
                if let Err(error) = from_text("t.yaml", &text) {
                    prop_assert!(!error.to_string().contains("s3cret"), "{text:?}: {error}");
                }
            }
        }
    }
}
