//! Mapper profiles: parts of a metric's name become tags. The rules are those of the Agent's
//! `dogstatsd_mapper_profiles`.

use regex::{Captures, Regex, RegexBuilder};

use super::{MapperProfile, Mapping, RuleError};

/// Bytes that one compiled pattern may take.
const PATTERN_SIZE_MAX: usize = 1 << 20;

/// The compiled profiles.
#[derive(Debug)]
pub struct Mapper {
    profiles: Vec<Profile>,
}

/// What a name was mapped to.
#[derive(Debug, PartialEq, Eq)]
pub struct Mapped {
    pub name: String,
    /// `key:value`, in the order of their keys.
    pub tags: Vec<String>,
}

#[derive(Debug)]
struct Profile {
    prefix: String,
    mappings: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    pattern: Regex,
    name: Template,
    tags: Vec<(String, Template)>,
}

impl Mapper {
    /// Compiles the profiles. `path` is where they stand in the configuration, for the errors.
    pub fn new(profiles: &[MapperProfile], path: &str) -> Result<Self, RuleError> {
        let profiles = profiles
            .iter()
            .enumerate()
            .map(|(i, profile)| Profile::new(profile, &format!("{path}[{i}]")))
            .collect::<Result<_, _>>()?;
        Ok(Self { profiles })
    }

    /// The first profile whose prefix fits is the only one tried, and in it the first mapping that
    /// matches wins, as in the Agent.
    pub fn map(&self, name: &str) -> Option<Mapped> {
        let profile = self.profiles.iter().find(|p| p.fits(name))?;
        profile.mappings.iter().find_map(|mapping| mapping.apply(name))
    }
}

impl Profile {
    fn new(profile: &MapperProfile, path: &str) -> Result<Self, RuleError> {
        required(&profile.name, path, "name", "give the profile a name")?;
        required(&profile.prefix, path, "prefix", "give a beginning of names, or * for all")?;
        let mappings = profile
            .mappings
            .iter()
            .enumerate()
            .map(|(i, mapping)| Compiled::new(mapping, &format!("{path}.mappings[{i}]")))
            .collect::<Result<_, _>>()?;
        Ok(Self { prefix: profile.prefix.clone(), mappings })
    }

    fn fits(&self, name: &str) -> bool {
        self.prefix == "*" || name.starts_with(&self.prefix)
    }
}

impl Compiled {
    fn new(mapping: &Mapping, path: &str) -> Result<Self, RuleError> {
        required(&mapping.pattern, path, "match", "give the pattern that names must match")?;
        required(&mapping.name, path, "name", "give the new name")?;
        let pattern = match mapping.match_type.as_str() {
            "" | "wildcard" => wildcard(&mapping.pattern).map_err(|p| error(path, "match", p))?,
            "regex" => ascii_classes(&mapping.pattern),
            other => {
                let problem = format!("{other:?} is unknown; use wildcard or regex");
                return Err(error(path, "match_type", problem));
            }
        };
        // Not grouped, as in the Agent: `a|b` means `^a` or `b$`.
        let pattern = RegexBuilder::new(&format!("^{pattern}$"))
            .size_limit(PATTERN_SIZE_MAX)
            .build()
            .map_err(|e| error(path, "match", format!("{}; correct the pattern", one_line(&e))))?;
        let name = Template::new(&mapping.name, &pattern);
        let tags = mapping.tags.iter();
        let tags = tags.map(|(k, v)| (k.clone(), Template::new(v, &pattern))).collect();
        Ok(Self { pattern, name, tags })
    }

    fn apply(&self, name: &str) -> Option<Mapped> {
        let captures = self.pattern.captures(name)?;
        let tags = self.tags.iter();
        Some(Mapped {
            name: self.name.expand(&captures),
            tags: tags.map(|(k, v)| format!("{k}:{}", v.expand(&captures))).collect(),
        })
    }
}

fn required(value: &str, path: &str, key: &str, remedy: &str) -> Result<(), RuleError> {
    if value.is_empty() { Err(error(path, key, format!("missing; {remedy}"))) } else { Ok(()) }
}

fn error(path: &str, key: &str, problem: String) -> RuleError {
    RuleError { path: format!("{path}.{key}"), problem }
}

/// The last line of a pattern's error says what is wrong; those before draw the place.
fn one_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// Turns a wildcard pattern into a regular expression: a dot is a dot, a star is a group of
/// characters other than dots, possibly none.
fn wildcard(pattern: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_*.".contains(c);
    if let Some(c) = pattern.chars().find(|c| !allowed(*c)) {
        return Err(format!(
            "{c:?} is not allowed in a wildcard; use letters, digits, - _ * . or match_type: regex"
        ));
    }
    if pattern.contains("**") {
        return Err("consecutive stars; write one".to_owned());
    }
    Ok(pattern.replace('.', r"\.").replace('*', r"([^.]*)"))
}

/// Writes out the classes that are ASCII in the Agent's regular expressions and Unicode in ours.
fn ascii_classes(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('d') => out.push_str("[0-9]"),
            Some('D') => out.push_str("[^0-9]"),
            Some('w') => out.push_str("[0-9A-Za-z_]"),
            Some('W') => out.push_str("[^0-9A-Za-z_]"),
            Some('s') => out.push_str(r"[\t\n\f\r ]"),
            Some('S') => out.push_str(r"[^\t\n\f\r ]"),
            escaped => {
                out.push('\\');
                out.extend(escaped);
            }
        }
    }
    out
}

/// A text with places for the groups of a pattern: `$1`, `${1}`, `$name`, `${name}`; `$$` is a
/// dollar. A group that the pattern lacks is empty; a dollar before anything else is itself.
#[derive(Debug)]
struct Template {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Group(usize),
}

impl Template {
    fn new(text: &str, pattern: &Regex) -> Self {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            parts.push(Part::Text(rest[..at].to_owned()));
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix('$') {
                parts.push(Part::Text("$".to_owned()));
                rest = behind;
            } else if let Some((group, behind)) = group_name(rest) {
                parts.extend(group_index(group, pattern).map(Part::Group));
                rest = behind;
            } else {
                parts.push(Part::Text("$".to_owned()));
            }
        }
        parts.push(Part::Text(rest.to_owned()));
        Self { parts }
    }

    fn expand(&self, captures: &Captures) -> String {
        let parts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Group(index) => captures.get(*index).map_or("", |group| group.as_str()),
        });
        parts.collect()
    }
}

/// The longest run of letters, digits and underscores behind a dollar, and what follows it.
fn group_name(text: &str) -> Option<(&str, &str)> {
    let (text, braced) = text.strip_prefix('{').map_or((text, false), |inner| (inner, true));
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, behind) = text.split_at(end);
    let behind = if braced { behind.strip_prefix('}')? } else { behind };
    (!name.is_empty()).then_some((name, behind))
}

fn group_index(name: &str, pattern: &Regex) -> Option<usize> {
    let is_number = name.bytes().all(|b| b.is_ascii_digit());
    if is_number && (name == "0" || !name.starts_with('0')) {
        return name.parse().ok().filter(|index| *index < pattern.captures_len());
    }
    pattern.capture_names().position(|group| group == Some(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn mapping(pattern: &str, match_type: &str, name: &str, tags: &[(&str, &str)]) -> Mapping {
        Mapping {
            pattern: pattern.to_owned(),
            match_type: match_type.to_owned(),
            name: name.to_owned(),
            tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn profile(prefix: &str, mappings: Vec<Mapping>) -> MapperProfile {
        MapperProfile { name: "p".to_owned(), prefix: prefix.to_owned(), mappings }
    }

    fn map_one(mapping: Mapping, name: &str) -> Option<(String, Vec<String>)> {
        let mapper = Mapper::new(&[profile("*", vec![mapping])], "m").unwrap();
        mapper.map(name).map(|mapped| (mapped.name, mapped.tags))
    }

    #[test]
    fn patterns_and_templates() {
        for (pattern, match_type, template, name, want) in [
            ("a.*", "", "x.$1", "a.b", Some("x.b")),
            ("a.*", "wildcard", "x.$1", "a.b.c", None),
            ("a.*", "", "x.$1", "za.b", None),
            ("a.*", "", "x.$1", "aXb", None),
            ("*.*", "", "$2.$1", "a.b", Some("b.a")),
            ("a.*", "", "$1_x", "a.b", Some("")),
            ("a.*", "", "${1}_x", "a.b", Some("b_x")),
            ("a.*", "", "$0", "a.b", Some("a.b")),
            ("a.*", "", "$01|$2|${9}", "a.b", Some("||")),
            ("a.*", "", "$$1 $", "a.b", Some("$1 $")),
            ("a.*", "", "${1 $-", "a.b", Some("${1 $-")),
            ("a.*", "", "$1é", "a.b", Some("")),
            (r"(?P<x>\w+)\.b", "regex", "$x.${x}", "a.b", Some("a.a")),
            (r"(\w+)\.b", "regex", "$1", "é.b", None),
            (r"([\w-]+)\.b", "regex", "$1", "c-d.b", Some("c-d")),
            (r"(\D)\\d", "regex", "$1", r"x\d", Some("x")),
            ("a|b", "regex", "hit", "azz", Some("hit")),
            ("a|b", "regex", "hit", "zzb", Some("hit")),
            ("a|b", "regex", "hit", "zaz", None),
            ("(a)|(b)", "regex", "<$1$2>", "b", Some("<b>")),
        ] {
            let got = map_one(mapping(pattern, match_type, template, &[]), name);
            assert_eq!(got.map(|(n, _)| n).as_deref(), want, "{pattern} {template} {name}");
        }
    }

    #[test]
    fn tags_come_in_the_order_of_their_keys() {
        let mapping = mapping("a.*.*", "", "a", &[("z", "$1"), ("k", "$2-$9")]);
        let want = vec!["k:y-".to_owned(), "z:x".to_owned()];
        assert_eq!(map_one(mapping, "a.x.y"), Some(("a".to_owned(), want)));
    }

    #[test]
    fn errors_name_the_place_and_the_remedy() {
        let good = || mapping("a", "", "b", &[]);
        let nameless = MapperProfile { name: String::new(), ..profile("*", vec![]) };
        for (broken, want) in [
            (nameless, "m[1].name: missing; give the profile a name"),
            (profile("", vec![]), "m[1].prefix: missing; give a beginning of names, or * for all"),
            (
                profile("*", vec![good(), mapping("", "", "b", &[])]),
                "m[1].mappings[1].match: missing; give the pattern that names must match",
            ),
            (
                profile("*", vec![mapping("a", "", "", &[])]),
                "m[1].mappings[0].name: missing; give the new name",
            ),
            (
                profile("*", vec![mapping("a", "glob", "b", &[])]),
                "m[1].mappings[0].match_type: \"glob\" is unknown; use wildcard or regex",
            ),
            (
                profile("*", vec![mapping("a.**", "", "b", &[])]),
                "m[1].mappings[0].match: consecutive stars; write one",
            ),
            (
                profile("*", vec![mapping("a(", "", "b", &[])]),
                "m[1].mappings[0].match: '(' is not allowed in a wildcard; use letters, digits, \
                 - _ * . or match_type: regex",
            ),
            (
                profile("*", vec![mapping("a(", "regex", "b", &[])]),
                "m[1].mappings[0].match: unclosed group; correct the pattern",
            ),
        ] {
            let error = Mapper::new(&[profile("*", vec![good()]), broken], "m").unwrap_err();
            assert_eq!(error.to_string(), want);
        }
        let huge = profile("*", vec![mapping("((a{500}){500}){500}", "regex", "b", &[])]);
        let error = Mapper::new(&[huge], "m").unwrap_err().to_string();
        assert!(error.contains("size limit") && !error.contains('\n'), "{error}");
    }

    proptest! {
        /// A second opinion on wildcards: stars and parts compared one by one.
        #[test]
        fn wildcards_match_part_by_part(pattern in "[ab.*]{1,8}", name in "[ab.]{0,10}") {
            let mapping = mapping(&pattern, "", "hit", &[]);
            let mapper = Mapper::new(&[profile("*", vec![mapping])], "m");
            if pattern.contains("**") {
                prop_assert!(mapper.is_err());
            } else {
                prop_assert_eq!(mapper.unwrap().map(&name).is_some(), naive(&pattern, &name));
            }
        }

        #[test]
        fn no_configuration_panics(pattern in ".{0,12}", template in ".{0,12}", name in ".{0,12}") {
            for kind in ["", "regex"] {
                let tags = BTreeMap::from([("k".to_owned(), template.clone())]);
                let mapping = Mapping { tags, ..mapping(&pattern, kind, &template, &[]) };
                if let Ok(mapper) = Mapper::new(&[profile("*", vec![mapping])], "m") {
                    mapper.map(&name);
                }
            }
        }
    }

    fn naive(pattern: &str, name: &str) -> bool {
        match (pattern.chars().next(), name.chars().next()) {
            (None, None) => true,
            (Some('*'), next) => {
                naive(&pattern[1..], name)
                    || next.is_some_and(|c| c != '.' && naive(pattern, &name[1..]))
            }
            (Some(p), Some(c)) => p == c && naive(&pattern[1..], &name[1..]),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }
}
