//! What settings there are: path, comment, type and default of each, from the `Config` structs.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::Config;

/// A setting, or a section of settings.
#[derive(Clone, Debug)]
pub struct Described {
    /// Section and key, with dots: `intake.port`.
    pub path: String,
    /// The doc comment, one paragraph a line.
    pub comment: String,
    /// Its JSON schema, complete in itself.
    pub schema: Value,
    pub default: Value,
    /// It holds settings and is none itself.
    pub section: bool,
}

impl Described {
    /// The last word of the path.
    pub fn key(&self) -> &str {
        last(&self.path)
    }

    /// The number of sections around it.
    pub fn depth(&self) -> usize {
        self.path.matches('.').count()
    }

    /// Whether its value must not be shown.
    pub fn is_secret(&self) -> bool {
        is_secret(&self.path)
    }
}

/// Every setting and section in the order of the structs, a section before what it holds.
pub fn all() -> &'static [Described] {
    static ALL: LazyLock<Vec<Described>> = LazyLock::new(|| {
        let mut found = Vec::new();
        let schema = Value::from(schemars::schema_for!(Config));
        let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
        walk("", &resolve(&schema, &schema["$defs"]), &defaults, &mut found);
        found
    });
    &ALL
}

/// The settings alone.
pub fn settings() -> impl Iterator<Item = &'static Described> {
    all().iter().filter(|described| !described.section)
}

/// The setting or section at a path.
pub fn find(path: &str) -> Option<&'static Described> {
    all().iter().find(|described| described.path == path)
}

/// The setting that a path lies in: `intake.listeners` for `intake.listeners[0].address`.
pub fn owner(path: &str) -> Option<&'static Described> {
    settings().find(|described| {
        path.strip_prefix(described.path.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

/// Settings whose value never appears in an output or an error: they hold keys or passwords.
pub fn is_secret(path: &str) -> bool {
    [
        "sinks.datadog.api_key",
        "sinks.datadog.additional_endpoints",
        "sinks.datadog.dd_url",
        "sinks.datadog.http.proxy_http",
        "sinks.datadog.http.proxy_https",
        "secrets.arguments",
    ]
    .contains(&path)
}

/// A value as it may be shown: keys as stars, addresses without their password and query.
pub fn masked(path: &str, value: &Value) -> Value {
    if !is_secret(path) {
        return value.clone();
    }
    match value {
        Value::String(text) if text.contains("://") => Value::String(without_secrets(text)),
        Value::String(text) if !text.is_empty() => Value::String("***".to_owned()),
        Value::Object(map) => map
            .iter()
            .map(|(address, keys)| (without_secrets(address), masked(path, keys)))
            .collect(),
        Value::Array(items) => items.iter().map(|item| masked(path, item)).collect(),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// An address as it may be shown: a query or fragment may hold a key.
fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (rest, behind) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], &format!("{}***", &rest[at..=at])[..]),
        None => (rest, ""),
    };
    let authority = rest.find('/').unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://***{}{behind}", &rest[at..]),
        None => format!("{scheme}://{rest}{behind}"),
    }
}

/// The known path that someone most likely meant, if any is near.
pub fn nearest(path: &str) -> Option<&'static str> {
    let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
    let key_of = |described: &'static Described| (described.key(), described.path.as_str());
    let siblings = all().iter().filter(|described| parent(&described.path) == section);
    nearest_of(key, siblings.map(key_of))
        .or_else(|| nearest_of(path, all().iter().map(|d| (d.path.as_str(), d.path.as_str()))))
        .or_else(|| nearest_of(key, settings().map(key_of)))
}

/// The second of the pair whose first is nearest to a word, if it is near at all: a third of the
/// letters may differ.
pub fn nearest_of<'a>(
    word: &str,
    known: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<&'a str> {
    if word.len() > 200 {
        return None;
    }
    known
        .map(|(candidate, name)| (strsim::damerau_levenshtein(word, candidate), candidate, name))
        .filter(|(distance, candidate, _)| *distance <= candidate.len().max(3) / 3)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., name)| name)
}

pub(super) fn last(path: &str) -> &str {
    path.rsplit_once('.').map_or(path, |(_, key)| key)
}

fn parent(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(section, _)| section)
}

fn walk(section: &str, schema: &Value, defaults: &Value, found: &mut Vec<Described>) {
    let Some(properties) = schema["properties"].as_object() else { return };
    for (key, schema) in properties {
        let path = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        let is_section = schema.get("properties").is_some();
        found.push(Described {
            path: path.clone(),
            comment: paragraphs(schema["description"].as_str().unwrap_or_default()),
            schema: schema.clone(),
            default: defaults[key].clone(),
            section: is_section,
        });
        if is_section {
            walk(&path, schema, &defaults[key], found);
        }
    }
}

/// Joins the lines of each paragraph; the source's line breaks mean nothing.
fn paragraphs(comment: &str) -> String {
    let paragraphs = comment.split("\n\n").map(|text| text.replace('\n', " "));
    paragraphs.collect::<Vec<_>>().join("\n")
}

/// Puts what references name in their place; what stands beside a reference has precedence.
fn resolve(schema: &Value, definitions: &Value) -> Value {
    match schema {
        Value::Object(map) => {
            let mut whole = Map::new();
            if let Some(Value::String(reference)) = map.get("$ref") {
                let name = reference.trim_start_matches("#/$defs/");
                if let Value::Object(target) = resolve(&definitions[name], definitions) {
                    whole = target;
                }
            }
            for (key, value) in
                map.iter().filter(|(key, _)| !["$ref", "$defs"].contains(&key.as_str()))
            {
                whole.insert(key.clone(), resolve(value, definitions));
            }
            Value::Object(whole)
        }
        Value::Array(items) => items.iter().map(|item| resolve(item, definitions)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => schema.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_have_a_path_a_comment_and_a_default() {
        let port = find("intake.port").unwrap();
        assert_eq!(port.comment, "UDP port; 0 closes UDP.");
        assert_eq!((port.default.clone(), port.section, port.depth()), (json!(8125), false, 1));
        let timeout = find("sinks.datadog.http.timeout").unwrap();
        assert_eq!((timeout.key(), timeout.depth()), ("timeout", 3));
        assert_eq!(find("sinks.datadog.http").unwrap().comment, "How the intake is reached.");
        for described in all() {
            assert!(!described.comment.is_empty(), "{} has no comment", described.path);
            assert_ne!(described.default, Value::Null, "{}", described.path);
        }
    }

    #[test]
    fn lists_of_structs_are_one_setting() {
        assert!(!find("intake.listeners").unwrap().section);
        assert!(find("intake.listeners.address").is_none());
        for path in ["intake.listeners", "intake.listeners[0].address", "intake.listeners.x"] {
            assert_eq!(owner(path).unwrap().path, "intake.listeners");
        }
        assert!(owner("intake").is_none());
        assert!(owner("intake.portable").is_none());
    }

    #[test]
    fn the_nearest_path_is_found() {
        for (path, expected) in [
            ("intake.prot", Some("intake.port")),
            ("intakes", Some("intake")),
            ("intkae.port", Some("intake.port")),
            ("port", Some("intake.port")),
            ("datadog.api_key", Some("sinks.datadog.api_key")),
            ("flush.intervall", Some("flush.interval")),
            ("logging.levle", Some("logging.level")),
            ("xyzzy.plugh", None),
        ] {
            assert_eq!(nearest(path), expected, "{path}");
        }
    }

    #[test]
    fn secrets_are_masked() {
        for (path, value, expected) in [
            ("sinks.datadog.api_key", json!("abc"), json!("***")),
            ("sinks.datadog.api_key", json!(""), json!("")),
            ("sinks.datadog.site", json!("abc"), json!("abc")),
            (
                "sinks.datadog.additional_endpoints",
                json!({"https://u:p@h/x": ["k1", "k2"]}),
                json!({"https://***@h/x": ["***", "***"]}),
            ),
            (
                "sinks.datadog.http.proxy_http",
                json!("http://u:p@q@h:1/@"),
                json!("http://***@h:1/@"),
            ),
            ("sinks.datadog.http.proxy_http", json!("http://h:1"), json!("http://h:1")),
            ("sinks.datadog.http.proxy_https", json!("u:p@h:1"), json!("***")),
            (
                "sinks.datadog.dd_url",
                json!("https://u:p@h/x?api_key=k#f"),
                json!("https://***@h/x?***"),
            ),
            ("sinks.datadog.dd_url", json!("https://h#k@x"), json!("https://h#***")),
            (
                "sinks.datadog.additional_endpoints",
                json!({"https://h?k": ["k1"]}),
                json!({"https://h?***": ["***"]}),
            ),
        ] {
            assert_eq!(masked(path, &value), expected);
        }
    }
}
