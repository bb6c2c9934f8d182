//! Which containers are measured: the include and exclude lists of the Agent 5 and of its
//! successors.

use regex::{Regex, RegexBuilder};

use super::config::Config;
use super::tags::{COMMAND, Facts};
use crate::origin::directory::EntityTags;

/// Images that do nothing but hold a pod's network, as searched in the image's name.
const PAUSE_IMAGES: [&str; 10] = [
    r"(^|/)pause(-amd64|-arm|-arm64|-ppc64le|-s390x|-windows)?([:@]|$)",
    r"amazon-ecs-pause",
    r"eks/pause",
    r"(^|/)pause-(amd64|win)",
    r"openshift/origin-pod",
    r"openshift3/ose-pod",
    r"rancher/(mirrored-)?pause",
    r"kubernetes/pause",
    r"cdk/pause",
    r"giantswarm/pause",
];

/// The rules of one configuration.
#[derive(Debug)]
pub struct Filter {
    exclude: Vec<Rule>,
    include: Vec<Rule>,
}

#[derive(Debug)]
enum Rule {
    /// Searched in the image's name.
    Image(Regex),
    /// Searched in the container's name.
    Name(Regex),
    /// Searched in the pod's namespace.
    Namespace(Regex),
    /// Matched from the start of each tag, `key:value`.
    Tag(Regex),
}

impl Filter {
    /// # Errors
    ///
    /// A pattern that is no regular expression, with the name of its setting.
    pub fn new(config: &Config) -> Result<Self, String> {
        let rules = |name: &str, patterns: &[String]| {
            let rule = |(i, pattern): (usize, &String)| {
                Rule::new(pattern).map_err(|error| format!("{name}[{i}]: {error}"))
            };
            patterns.iter().enumerate().map(rule).collect::<Result<Vec<_>, _>>()
        };
        let mut exclude = rules("exclude", &config.exclude)?;
        if config.exclude_pause_container {
            for pattern in PAUSE_IMAGES {
                exclude.push(Rule::Image(regex(pattern)?));
            }
        }
        Ok(Self { exclude, include: rules("include", &config.include)? })
    }

    /// Whether a container is left out: it is excluded, and not included again.
    pub fn excludes(&self, facts: &Facts, tags: &EntityTags) -> bool {
        let hit = |rule: &Rule| rule.matches(facts, tags);
        self.exclude.iter().any(hit) && !self.include.iter().any(hit)
    }
}

impl Rule {
    fn new(pattern: &str) -> Result<Self, String> {
        Ok(if let Some(image) = pattern.strip_prefix("image:") {
            Self::Image(regex(&open_end(image))?)
        } else if let Some(name) = pattern.strip_prefix("name:") {
            Self::Name(regex(name)?)
        } else if let Some(namespace) = pattern.strip_prefix("kube_namespace:") {
            Self::Namespace(regex(namespace)?)
        } else {
            Self::Tag(from_start(pattern)?)
        })
    }

    fn matches(&self, facts: &Facts, tags: &EntityTags) -> bool {
        match self {
            Self::Image(regex) => regex.is_match(&facts.image),
            Self::Name(regex) => regex.is_match(facts.name()),
            Self::Namespace(regex) => facts.kube_namespace().is_some_and(|n| regex.is_match(n)),
            // The command is matched even where nobody has asked for its tag.
            Self::Tag(regex) => {
                any_tag(tags, regex) || regex.is_match(&format!("{COMMAND}:{}", facts.command))
            }
        }
    }
}

/// Whether a pattern of [`from_start`] matches one of the tags.
pub fn any_tag(tags: &EntityTags, regex: &Regex) -> bool {
    [&tags.low, &tags.orchestrator, &tags.high]
        .into_iter()
        .any(|tags| tags.iter().any(|tag| regex.is_match(tag)))
}

/// A pattern that has to match at the start, as the Agent 5 matches its own.
pub fn from_start(pattern: &str) -> Result<Regex, String> {
    regex(&format!("^(?:{pattern})"))
}

/// `image:^redis$` is meant to match `redis:7` as well, and `redis@sha256:...`.
fn open_end(pattern: &str) -> String {
    match pattern.strip_suffix('$') {
        Some(open) if !open.contains(':') => format!("{open}(@sha256)?:.*|{open}$"),
        _ => pattern.to_owned(),
    }
}

fn regex(pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(1 << 20).build();
    built.map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(exclude: &[&str], include: &[&str], image: &str, name: &str) -> bool {
        let list = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect();
        let config = Config { exclude: list(exclude), include: list(include), ..Config::default() };
        let facts = Facts {
            image: image.to_owned(),
            names: vec![format!("/{name}")],
            command: "sleep 9".to_owned(),
            labels: [("io.kubernetes.pod.namespace".to_owned(), "jobs".to_owned())].into(),
            ..Facts::default()
        };
        let tags = EntityTags {
            low: vec![format!("docker_image:{image}")],
            orchestrator: Vec::new(),
            high: vec![format!("container_name:{name}")],
        };
        Filter::new(&config).expect("patterns").excludes(&facts, &tags)
    }

    #[test]
    fn both_ways_of_writing_a_rule() {
        for (exclude, include, out) in [
            (&[][..], &[][..], false),
            (&["docker_image:redis"], &[], true),
            (&["redis"], &[], false),
            (&[".*redis"], &[], true),
            (&["container_name:cache"], &[], true),
            (&["container_command:sleep"], &[], true),
            (&["docker_image:redis"], &["container_name:cache"], false),
            (&[], &["container_name:cache"], false),
            (&["image:edis"], &[], true),
            (&["image:^redis$"], &[], true),
            (&["image:^redis:8$"], &[], false),
            (&["image:^red$"], &[], false),
            (&["image:^a$|^redis$"], &[], true),
            (&["name:^cache-1$"], &[], true),
            (&["name:^ache"], &[], false),
            (&["kube_namespace:^jobs$"], &[], true),
            (&["kube_namespace:^web$"], &[], false),
            (&[".*"], &["image:redis"], false),
        ] {
            assert_eq!(
                excluded(exclude, include, "redis:7", "cache-1"),
                out,
                "{exclude:?} {include:?}"
            );
        }
    }

    #[test]
    fn pause_containers_are_left_out() {
        for (image, out) in [
            ("registry.k8s.io/pause:3.9", true),
            ("gcr.io/google_containers/pause-amd64:3.1", true),
            ("k8s.gcr.io/pause@sha256:00", true),
            ("amazon/amazon-ecs-pause:0.1.0", true),
            ("rancher/mirrored-pause:3.6", true),
            ("openshift/origin-pod:v3.11", true),
            ("example/pauser:1", false),
            ("example/pause-button:1", false),
        ] {
            assert_eq!(excluded(&[], &[], image, "x"), out, "{image}");
        }
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let config = Config { include: vec!["a".to_owned(), "(".to_owned()], ..Config::default() };
        let error = Filter::new(&config).expect_err("no regular expression");
        assert!(error.starts_with("include[1]: "), "{error}");
    }
}
