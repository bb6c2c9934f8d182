//! From texts to typed values, by the schema of a setting.

use serde_json::{Map, Value};

use super::describe::nearest_of;
use super::tree::{Fault, Node, Shape, split};

/// How strictly values are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As YAML: a list is a list, true is `true`.
    Yaml,
    /// As the Agent, environment variables and flags write them: a list may be one text (words
    /// with blanks or commas between, or JSON), and true may be `1` or `yes`.
    Text,
}

/// Turns a node into the value that a schema asks for. The error says what was expected and what
/// was found, and begins with the path below the setting, if there is one. With `secret` it does
/// not repeat the value.
pub fn convert(node: &Node, schema: &Value, manner: Manner, secret: bool) -> Result<Value, Fault> {
    Converter { manner, secret }.value(node, schema, "")
}

struct Converter {
    manner: Manner,
    secret: bool,
}

impl Converter {
    fn value(&self, node: &Node, schema: &Value, path: &str) -> Result<Value, Fault> {
        if let Some(words) = words(schema) {
            return self.word(node, &words, path);
        }
        match schema["type"].as_str() {
            Some("boolean") => self.boolean(node, path),
            Some("integer") => self.integer(node, schema, path),
            Some("number") => self.number(node, path),
            Some("array") => self.list(node, schema, path),
            Some("object") if schema.get("properties").is_some() => self.record(node, schema, path),
            Some("object") => self.map(node, schema, path),
            _ => self.text(node, path),
        }
    }

    fn text(&self, node: &Node, path: &str) -> Result<Value, Fault> {
        match node.as_text() {
            Some(text) if !node.is_null() => Ok(text.into()),
            _ => Err(self.mismatch(node, path, "text")),
        }
    }

    fn word(&self, node: &Node, words: &[&str], path: &str) -> Result<Value, Fault> {
        let text = node.as_text().unwrap_or_default();
        match words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
            Some(word) => Ok((*word).into()),
            None => Err(self.mismatch(node, path, &one_of(words))),
        }
    }

    fn boolean(&self, node: &Node, path: &str) -> Result<Value, Fault> {
        let text = node.as_text().unwrap_or_default();
        let value = match self.manner {
            Manner::Yaml => text.to_ascii_lowercase().parse().ok(),
            Manner::Text => truth(text),
        };
        value.map(Value::Bool).ok_or_else(|| self.mismatch(node, path, "true or false"))
    }

    fn integer(&self, node: &Node, schema: &Value, path: &str) -> Result<Value, Fault> {
        let (min, max) = match schema["format"].as_str() {
            Some("uint8") => (0, i128::from(u8::MAX)),
            Some("uint16") => (0, i128::from(u16::MAX)),
            Some("uint32") => (0, i128::from(u32::MAX)),
            Some("int32") => (i128::from(i32::MIN), i128::from(i32::MAX)),
            // JSON and YAML readers elsewhere stop at the signed range; no setting needs more.
            Some("uint64" | "uint") => (0, i128::from(i64::MAX)),
            _ => (i128::from(i64::MIN), i128::from(i64::MAX)),
        };
        let parsed = node.as_text().and_then(|text| text.trim().parse::<i64>().ok());
        match parsed {
            Some(value) if (min..=max).contains(&i128::from(value)) => Ok(value.into()),
            _ if max < i128::from(i64::MAX) => {
                Err(self.mismatch(node, path, &format!("a whole number from {min} to {max}")))
            }
            _ => Err(self.mismatch(node, path, "a whole number, not negative")),
        }
    }

    fn number(&self, node: &Node, path: &str) -> Result<Value, Fault> {
        let parsed = node.as_text().and_then(|text| text.trim().parse::<f64>().ok());
        match parsed.and_then(serde_json::Number::from_f64) {
            Some(value) => Ok(value.into()),
            None => Err(self.mismatch(node, path, "a number")),
        }
    }

    fn list(&self, node: &Node, schema: &Value, path: &str) -> Result<Value, Fault> {
        let parsed = self.structured(node, path)?;
        let node = parsed.as_ref().unwrap_or(node);
        let split_up: Vec<Node>;
        let items = match &node.shape {
            Shape::List(items) => items,
            Shape::Scalar { text, .. } if self.manner == Manner::Text => {
                split_up = split(text).map(Node::text).collect();
                &split_up
            }
            Shape::Scalar { .. } | Shape::Map(_) => return Err(self.mismatch(node, path, "a list")),
        };
        let values = items.iter().enumerate();
        values
            .map(|(i, item)| self.value(item, &schema["items"], &format!("{path}[{i}]")))
            .collect()
    }

    fn map(&self, node: &Node, schema: &Value, path: &str) -> Result<Value, Fault> {
        let parsed = self.structured(node, path)?;
        let node = parsed.as_ref().unwrap_or(node);
        let Shape::Map(entries) = &node.shape else {
            return Err(self.mismatch(node, path, "a map"));
        };
        let mut map = Map::new();
        for entry in entries {
            let path = if self.secret { path.to_owned() } else { join(path, &entry.key) };
            let value = self.value(&entry.value, &schema["additionalProperties"], &path)?;
            map.insert(entry.key.clone(), value);
        }
        Ok(map.into())
    }

    fn record(&self, node: &Node, schema: &Value, path: &str) -> Result<Value, Fault> {
        let properties = schema["properties"].as_object();
        let Shape::Map(entries) = &node.shape else {
            return Err(self.mismatch(node, path, "a map"));
        };
        let mut map = Map::new();
        for entry in entries {
            let path = join(path, &entry.key);
            let Some(schema) = properties.and_then(|known| known.get(&entry.key)) else {
                let known = properties.into_iter().flatten().map(|(key, _)| (&**key, &**key));
                let hint = nearest_of(&entry.key, known)
                    .map_or_else(String::new, |key| format!("; did you mean {key}?"));
                return Err(Fault::new(entry.line, format!("{path}: unknown setting{hint}")));
            };
            map.insert(entry.key.clone(), self.value(&entry.value, schema, &path)?);
        }
        let required = schema["required"].as_array().into_iter().flatten();
        for key in required.filter_map(Value::as_str) {
            if !map.contains_key(key) {
                let path = join(path, key);
                return Err(Fault::new(node.line, format!("{path}: is missing")));
            }
        }
        Ok(map.into())
    }

    /// What a text with JSON in it holds, where one text may stand for a list or a map.
    fn structured(&self, node: &Node, path: &str) -> Result<Option<Node>, Fault> {
        match node.as_text() {
            Some(text)
                if self.manner == Manner::Text && text.trim_start().starts_with(['[', '{']) =>
            {
                let value: Value = serde_json::from_str(text).map_err(|error| {
                    // The error's own text may repeat the value.
                    let place = format!("line {} column {}", error.line(), error.column());
                    Fault::new(node.line, format!("{path}: not valid JSON at {place}"))
                })?;
                Ok(Some(Node { line: node.line, ..value.into() }))
            }
            _ => Ok(None),
        }
    }

    fn mismatch(&self, node: &Node, path: &str, expected: &str) -> Fault {
        let found = match &node.shape {
            Shape::List(_) => "a list".to_owned(),
            Shape::Map(_) => "a map".to_owned(),
            Shape::Scalar { .. } if node.is_null() => "no value".to_owned(),
            Shape::Scalar { .. } if self.secret => "a value that is not shown".to_owned(),
            Shape::Scalar { text, .. } => quoted(text),
        };
        Fault::new(node.line, format!("{path}: expected {expected}, found {found}"))
    }
}

/// The values of an enumeration, if the schema is one.
fn words(schema: &Value) -> Option<Vec<&str>> {
    let list = schema.get("enum").or_else(|| schema.get("oneOf"))?.as_array()?;
    Some(list.iter().filter_map(|word| word.as_str().or_else(|| word["const"].as_str())).collect())
}

/// What the Agent and variables write for true and false.
pub fn truth(text: &str) -> Option<bool> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "t" | "yes" | "y" | "on" => Some(true),
        "false" | "0" | "f" | "no" | "n" | "off" => Some(false),
        _ => None,
    }
}

/// `a`, `a or b`, `a, b or c`.
pub fn one_of(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [word] => (*word).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// A found value for an error message: escaped, and cut where it is long.
pub fn quoted(text: &str) -> String {
    let mut start: String = text.chars().take(60).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    format!("{start:?}")
}

fn join(path: &str, key: &str) -> String {
    format!("{path}.{key}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{describe, tree};
    use super::*;

    fn yaml(path: &str, text: &str) -> Result<Value, String> {
        let node = tree::parse(&format!("x: {text}")).unwrap();
        let Shape::Map(entries) = &node.shape else { panic!("{node:?}") };
        let described = describe::find(path).unwrap();
        convert(&entries[0].value, &described.schema, Manner::Yaml, described.is_secret())
            .map_err(|fault| fault.message)
    }

    fn text(path: &str, text: &str) -> Result<Value, String> {
        let described = describe::find(path).unwrap();
        convert(&Node::text(text), &described.schema, Manner::Text, described.is_secret())
            .map_err(|fault| fault.message)
    }

    #[test]
    fn yaml_values_are_read() {
        for (path, value, expected) in [
            ("intake.port", "9125", json!(9125)),
            ("intake.port", "'9125'", json!(9125)),
            ("intake.socket_mode", "0722", json!("0722")),
            ("origin.hostname", "0123", json!("0123")),
            ("origin.hostname", "''", json!("")),
            ("origin.hostname", "true", json!("true")),
            ("intake.stdin", "true", json!(true)),
            ("intake.dialect", "statsd", json!("statsd")),
            ("sinks.console.enabled", "on", json!("on")),
            ("sinks.datadog.zstd_level", "-5", json!(-5)),
            ("value.histogram_percentiles", "[0.950, '0.99']", json!(["0.950", "0.99"])),
            ("sinks.prometheus.quantiles", "[0.5, 1]", json!([0.5, 1.0])),
            ("intake.eol_required", "[]", json!([])),
            (
                "intake.listeners",
                "[{address: 'udp://h:1', eol_required: true}]",
                json!([{"address": "udp://h:1", "eol_required": true}]),
            ),
            ("sinks.datadog.additional_endpoints", "{u: [k, l]}", json!({"u": ["k", "l"]})),
        ] {
            assert_eq!(yaml(path, value), Ok(expected), "{path} {value}");
        }
    }

    #[test]
    fn text_values_are_read() {
        for (path, value, expected) in [
            ("intake.port", " 9125 ", json!(9125)),
            ("intake.stdin", "1", json!(true)),
            ("intake.stdin", "No", json!(false)),
            ("rules.tags", "a:b,c d", json!(["a:b", "c", "d"])),
            ("rules.tags", "[\"a b\", \"c\"]", json!(["a b", "c"])),
            ("rules.tags", "", json!([])),
            ("value.histogram_percentiles", "0.95 0.99", json!(["0.95", "0.99"])),
            ("sinks.datadog.additional_endpoints", "{\"u\": [\"k\"]}", json!({"u": ["k"]})),
            ("intake.dialect", "StatsD", json!("statsd")),
            (
                "rules.mapper_profiles",
                r#"[{"name":"a","prefix":"b.","mappings":[{"match":"b.*","name":"c","tags":{"t":"$1"}}]}]"#,
                json!([{"name": "a", "prefix": "b.",
                    "mappings": [{"match": "b.*", "name": "c", "tags": {"t": "$1"}}]}]),
            ),
        ] {
            assert_eq!(text(path, value), Ok(expected), "{path} {value}");
        }
    }

    #[test]
    fn wrong_values_are_explained() {
        for (path, value, expected) in [
            ("intake.port", "abc", ": expected a whole number from 0 to 65535, found \"abc\""),
            ("intake.port", "65536", ": expected a whole number from 0 to 65535, found \"65536\""),
            ("intake.port", "[1]", ": expected a whole number from 0 to 65535, found a list"),
            ("intake.port", "", ": expected a whole number from 0 to 65535, found no value"),
            ("shard.events_max", "-1", ": expected a whole number, not negative, found \"-1\""),
            ("intake.stdin", "yes", ": expected true or false, found \"yes\""),
            ("intake.bind_host", "{}", ": expected text, found a map"),
            ("intake.bind_host", "~", ": expected text, found no value"),
            ("intake.dialect", "graphite", ": expected datadog or statsd, found \"graphite\""),
            ("sinks.console.enabled", "yes", ": expected on, off or auto, found \"yes\""),
            ("rules.tags", "a b", ": expected a list, found \"a b\""),
            ("rules.tags", "[a, [b]]", "[1]: expected text, found a list"),
            ("sinks.prometheus.quantiles", "[.nan]", "[0]: expected a number, found \".nan\""),
            ("intake.listeners", "[{dialect: statsd}]", "[0].address: is missing"),
            (
                "intake.listeners",
                "[{adress: x}]",
                "[0].adress: unknown setting; did you mean address?",
            ),
            ("sinks.datadog.api_key", "[s3cret]", ": expected text, found a list"),
            (
                "sinks.datadog.additional_endpoints",
                "{s3cret: s3cret}",
                ": expected a list, found a value that is not shown",
            ),
        ] {
            assert_eq!(yaml(path, value), Err(expected.to_owned()), "{path} {value}");
        }
        assert_eq!(
            text("sinks.datadog.additional_endpoints", "{\"s3cret\""),
            Err(": not valid JSON at line 1 column 9".to_owned())
        );
    }

    #[test]
    fn long_values_are_cut_and_escaped() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert_eq!(quoted(&"é".repeat(61)), format!("\"{}…\"", "é".repeat(60)));
    }
}
