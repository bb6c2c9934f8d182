//! `tallyd config`: every setting with its value, its source and its comment, as a file that can
//! be used.

use std::io::{self, Write};

use serde_json::{Value, json};

use crate::config::describe::{self, Described};
use crate::config::{self, Loaded, Setting, Source, Sources, agent};

/// Width of comment lines.
const WIDTH: usize = 100;
/// What a short list must fit in.
const SHORT: usize = 60;

/// Writes the configuration as YAML, or as JSON. Keys and passwords are stars. Returns the exit
/// code: 0, or 78 for a wrong configuration.
pub fn run(
    sources: &Sources,
    json: bool,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<u8> {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => {
            writeln!(err, "error: {error}")?;
            return Ok(config::EXIT_CODE);
        }
    };
    if json {
        let settings: Vec<Value> = loaded.settings.iter().map(as_json).collect();
        writeln!(out, "{:#}", Value::Array(settings))?;
    } else {
        out.write_all(as_yaml(&loaded).as_bytes())?;
    }
    Ok(0)
}

/// Writes the table of the Agent's settings as markdown.
pub fn agent_keys(out: &mut impl Write) -> io::Result<()> {
    out.write_all(agent::page().as_bytes())
}

fn as_json(setting: &Setting) -> Value {
    json!({
        "path": setting.path,
        "value": setting.value,
        "source": setting.source.to_string(),
        "comment": setting.comment,
    })
}

/// A `tallyd.yaml` that says every setting. Keys and passwords are stars.
pub fn as_yaml(loaded: &Loaded) -> String {
    let mut text = comment(
        "Every setting of tallyd with its value. Each can also be given as a variable, \
         TALLYD_SECTION__KEY, and as a flag, --set section.key=value; flags come before \
         variables, variables before this file. `tallyd check FILE` checks a file like this.",
        0,
    );
    for described in describe::all() {
        let depth = described.depth();
        if depth == 0 {
            text.push('\n');
        }
        text += &comment(&described.comment, depth);
        if described.section {
            text += &format!("{}{}:\n", indent(depth), described.key());
        } else if let Some(setting) = loaded.settings.iter().find(|s| s.path == described.path) {
            text += &line(described, setting);
        }
    }
    text
}

fn line(described: &Described, setting: &Setting) -> String {
    let source = match &setting.source {
        Source::Default => String::new(),
        source => format!(" # from {}", source.to_string().escape_debug()),
    };
    let (depth, key) = (described.depth(), described.key());
    match block(&setting.value, depth + 1) {
        Some(block) => format!("{}{key}:{source}\n{block}", indent(depth)),
        None => format!("{}{key}: {}{source}\n", indent(depth), flow(&setting.value)),
    }
}

/// A comment, wrapped.
fn comment(text: &str, depth: usize) -> String {
    let start = format!("{}#", indent(depth));
    let mut lines = String::new();
    for paragraph in text.lines() {
        let mut line = start.clone();
        for word in paragraph.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH && line != start {
                lines += &format!("{line}\n");
                line = start.clone();
            }
            line = format!("{line} {word}");
        }
        lines += &format!("{line}\n");
    }
    lines
}

fn indent(depth: usize) -> String {
    "  ".repeat(depth)
}

/// A list or map over several lines, if it is too long or too deep for one.
fn block(value: &Value, depth: usize) -> Option<String> {
    let items = match value {
        Value::Array(items) => items,
        Value::Object(map) if !map.is_empty() => {
            let lines = map.iter().map(|(key, value)| entry(key, value, depth));
            return Some(lines.collect());
        }
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            return None;
        }
    };
    let simple = !items.iter().any(|item| item.is_array() || item.is_object());
    if simple && flow(value).chars().count() <= SHORT {
        return None;
    }
    let item = |item: &Value| match block(item, depth + 1) {
        // The first line stands beside the dash.
        Some(lines) => format!("{}- {}", indent(depth), lines.trim_start_matches(' ')),
        None => format!("{}- {}\n", indent(depth), flow(item)),
    };
    Some(items.iter().map(item).collect())
}

fn entry(key: &str, value: &Value, depth: usize) -> String {
    let key = scalar(key);
    match block(value, depth + 1) {
        Some(lines) => format!("{}{key}:\n{lines}", indent(depth)),
        None => format!("{}{key}: {}\n", indent(depth), flow(value)),
    }
}

/// A value on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", "))
        }
        Value::Object(_) | Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// A text, in quotation marks unless it is a plain word in every version of YAML.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    let keyword = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if plain && !keyword.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_owned();
    }
    // JSON's escapes are YAML's. JSON lets some characters stand that YAML does not print.
    Value::from(text)
        .to_string()
        .chars()
        .map(|c| match c {
            '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                format!("\\u{:04x}", u32::from(c))
            }
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::from_text;

    fn shown(sources: &Sources) -> String {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(sources, false, &mut out, &mut err).unwrap();
        assert_eq!((code, String::from_utf8(err).unwrap().as_str()), (0, ""));
        String::from_utf8(out).unwrap()
    }

    /// The file equals what the code says; `UPDATE=1 cargo test` writes it.
    fn kept_equal(path: &str, text: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == text, "{} is outdated: run `UPDATE=1 cargo test`", path.display());
    }

    #[test]
    fn the_documented_configuration_is_the_default_one() {
        let text = shown(&Sources::default());
        let loaded = from_text("tallyd.yaml", &text).unwrap();
        assert_eq!((loaded.config, loaded.notes), (config::Config::default(), Vec::new()));
        assert_eq!(loaded.settings.iter().filter(|s| s.changed).count(), 0);
        assert!(loaded.settings.iter().all(|s| s.source != Source::Default));
        kept_equal("config/tallyd.yaml", &text);
    }

    #[test]
    fn the_table_of_agent_keys_is_current() {
        let mut out = Vec::new();
        agent_keys(&mut out).unwrap();
        kept_equal("config/agent-keys.md", &String::from_utf8(out).unwrap());
    }

    #[test]
    fn sources_are_shown_and_secrets_are_not() {
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let text = shown(&Sources {
            environment: vec![
                variable("DD_API_KEY", "0123456789abcdef"),
                variable("DD_DOGSTATSD_PORT", "9125"),
                variable("DD_ADDITIONAL_ENDPOINTS", r#"{"https://b.example": ["fedcba"]}"#),
                variable("DD_PROXY_HTTPS", "http://user:hunter2@proxy:3128"),
            ],
            overrides: vec![r#"intake.listeners=[{"address":"udp://127.0.0.1:1"}]"#.to_owned()],
            ..Sources::default()
        });
        for line in [
            "    api_key: \"***\" # from DD_API_KEY\n",
            "  port: 9125 # from DD_DOGSTATSD_PORT\n",
            "    additional_endpoints: # from DD_ADDITIONAL_ENDPOINTS\n      \"https://b.example\": [\"***\"]\n",
            "      proxy_https: \"http://***@proxy:3128\" # from DD_PROXY_HTTPS\n",
            "  listeners: # from --set intake.listeners\n    - address: \"udp://127.0.0.1:1\"\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        for secret in ["0123456789abcdef", "fedcba", "hunter2"] {
            assert!(!text.contains(secret), "{secret} is shown");
        }
    }

    #[test]
    fn json_has_every_setting() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        run(&Sources::default(), true, &mut out, &mut err).unwrap();
        let all: Vec<Value> = serde_json::from_slice(&out).unwrap();
        assert_eq!(all.len(), describe::settings().count());
        assert_eq!(
            all[0],
            json!({"path": "intake.port", "value": 8125, "source": "default",
                "comment": "UDP port; 0 closes UDP."})
        );
    }

    #[test]
    fn comments_are_wrapped() {
        let text = comment(&"word ".repeat(60), 1);
        assert!(text.lines().all(|line| line.starts_with("  # word") && line.len() <= WIDTH));
        assert_eq!(text.matches("word").count(), 60);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever texts a setting holds, what is shown gives them again.
        #[test]
        fn shown_values_load_again(
            tags in proptest::collection::vec("\\PC{0,30}|[\\x00-\\xff]{0,5}|yes|0722|~|- a", 0..5),
            template in "\\PC{0,10}",
        ) {
            let value = json!({
                "tags": tags,
                "mapper_profiles": [{
                    "name": "p", "prefix": "*",
                    "mappings": [{"match": "a", "match_type": "", "name": "b", "tags": {"t": template}}],
                }],
            });
            let text = format!("rules:\n{}", block(&value, 1).unwrap());
            let loaded = from_text("x", &text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            let rules = serde_json::to_value(&loaded.config.rules).unwrap();
            prop_assert_eq!(&rules["tags"], &value["tags"]);
            prop_assert_eq!(&rules["mapper_profiles"], &value["mapper_profiles"]);
        }
    }
}
