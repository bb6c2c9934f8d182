//! YAML text to a small tree in which every value knows its line.
//!
//! Scalars stay text: what a text means is decided by the setting it is for, so that `0722` can be
//! a file mode and `0.95` the name of a percentile.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput, Tag};
use serde_json::Value;

/// Bytes of a configuration file.
pub const TEXT_MAX: usize = 1024 * 1024;
/// Lists and maps within each other.
const DEPTH_MAX: usize = 32;
/// Values in one file, with every use of an anchor counted in full.
const NODES_MAX: usize = 100_000;

/// A value and the line it begins on (from 1; 0 where there are no lines).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub line: usize,
    pub shape: Shape,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `plain` is a scalar without quotation marks, which may stand for null.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Node,
}

/// What is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub message: String,
}

impl Fault {
    pub fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

impl From<ScanError> for Fault {
    fn from(error: ScanError) -> Self {
        Self::new(error.marker().line().max(1), format!("not valid YAML: {}", error.info()))
    }
}

impl Node {
    /// A text that can stand for any scalar.
    pub fn text(text: impl Into<String>) -> Self {
        Self { line: 0, shape: Shape::Scalar { text: text.into(), plain: false } }
    }

    pub fn list(items: Vec<Self>) -> Self {
        Self { line: 0, shape: Shape::List(items) }
    }

    /// No value at all: `key:` or `key: null`.
    pub fn is_null(&self) -> bool {
        match &self.shape {
            Shape::Scalar { text, plain } => {
                *plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            Shape::List(_) | Shape::Map(_) => false,
        }
    }

    /// The text of a scalar.
    pub fn as_text(&self) -> Option<&str> {
        match &self.shape {
            Shape::Scalar { text, .. } => Some(text),
            Shape::List(_) | Shape::Map(_) => None,
        }
    }

    /// The texts of a list; a single text is split at blanks and commas, as the Agent does with
    /// lists in environment variables.
    pub fn words(&self) -> Option<Vec<&str>> {
        match &self.shape {
            Shape::Scalar { text, .. } => Some(split(text).collect()),
            Shape::List(items) => items.iter().map(Self::as_text).collect(),
            Shape::Map(_) => None,
        }
    }
}

impl From<Value> for Node {
    fn from(value: Value) -> Self {
        let shape = match value {
            Value::Null => Shape::Scalar { text: String::new(), plain: true },
            Value::Bool(value) => Shape::Scalar { text: value.to_string(), plain: true },
            Value::Number(value) => Shape::Scalar { text: value.to_string(), plain: true },
            Value::String(text) => Shape::Scalar { text, plain: false },
            Value::Array(items) => Shape::List(items.into_iter().map(Self::from).collect()),
            Value::Object(map) => Shape::Map(
                map.into_iter()
                    .map(|(key, value)| Entry { key, line: 0, value: value.into() })
                    .collect(),
            ),
        };
        Self { line: 0, shape }
    }
}

/// Splits a list that is written as one text.
pub fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty())
}

/// Reads the one YAML document of a configuration file. An empty text gives an empty map.
pub fn parse(text: &str) -> Result<Node, Fault> {
    if text.len() > TEXT_MAX {
        return Err(Fault::new(0, format!("longer than {TEXT_MAX} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut loader =
        Loader { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    let mut document = None;
    loop {
        let (event, line) = loader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(_) if document.is_some() => {
                return Err(Fault::new(line, "a second document; one is allowed"));
            }
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
            event => document = Some(loader.node(event, line, 0)?),
        }
    }
    Ok(match document {
        Some(node) if !node.is_null() => node,
        _ => Node { line: 1, shape: Shape::Map(Vec::new()) },
    })
}

struct Loader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    /// Nodes by anchor, with their number of values.
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line().max(1))),
            Some(Err(error)) => Err(error.into()),
            None => Ok((Event::StreamEnd, 1)),
        }
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), Fault> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODES_MAX {
            return Err(Fault::new(line, format!("more than {NODES_MAX} values")));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Node, Fault> {
        if depth > DEPTH_MAX {
            return Err(Fault::new(line, format!("nested deeper than {DEPTH_MAX} levels")));
        }
        let before = self.nodes;
        let (anchor, shape) = match event {
            Event::Alias(anchor) => {
                let Some((node, nodes)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Fault::new(line, "an alias within its own anchor"));
                };
                self.count(nodes, line)?;
                return Ok(Node { line, ..node });
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !known_tag(tag.as_deref(), line)?;
                (anchor, Shape::Scalar { text: text.into_owned(), plain })
            }
            Event::SequenceStart(anchor, tag) => {
                known_tag(tag.as_deref(), line)?;
                (anchor, Shape::List(self.list(depth)?))
            }
            Event::MappingStart(anchor, tag) => {
                known_tag(tag.as_deref(), line)?;
                (anchor, Shape::Map(self.map(depth)?))
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => {
                return Err(Fault::new(line, "not valid YAML: a value is missing"));
            }
        };
        self.count(1, line)?;
        let node = Node { line, shape };
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before));
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Fault> {
        let mut items = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(items);
            }
            items.push(self.node(event, line, depth + 1)?);
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Fault> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(entries);
            }
            let key = self.node(event, line, depth + 1)?;
            let Some(key) = key.as_text().map(str::to_owned) else {
                return Err(Fault::new(line, "a key must be a single word or text"));
            };
            let (event, value_line) = self.next()?;
            let value = self.node(event, value_line, depth + 1)?;
            if let Some(first) = lines.insert(key.clone(), line) {
                return Err(Fault::new(
                    line,
                    format!("{key} is given twice, first in line {first}"),
                ));
            }
            entries.push(Entry { key, line, value });
        }
    }
}

/// Whether a tag says that the value is text. Tags that are not YAML's own are refused: they would
/// ask for something we do not do.
fn known_tag(tag: Option<&Tag>, line: usize) -> Result<bool, Fault> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.is_yaml_core_schema() => Ok(tag.suffix == "str"),
        Some(_) => Err(Fault::new(line, "tags such as !name are not supported")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Back to JSON, all scalars as text.
    fn plain(node: &Node) -> Value {
        match &node.shape {
            Shape::Scalar { text, .. } => json!(text),
            Shape::List(items) => items.iter().map(plain).collect(),
            Shape::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), plain(&entry.value))).collect()
            }
        }
    }

    #[test]
    fn texts_become_trees() {
        for (text, expected) in [
            ("", json!({})),
            ("# nothing\n", json!({})),
            ("---\n", json!({})),
            ("\u{feff}a: 1", json!({"a": "1"})),
            ("a: 0722\nb: [0.950, 'x y']\n", json!({"a": "0722", "b": ["0.950", "x y"]})),
            ("a: &x {k: v}\nb: *x\n", json!({"a": {"k": "v"}, "b": {"k": "v"}})),
            ("{\"a\": [1, {\"b\": true}]}", json!({"a": ["1", {"b": "true"}]})),
            ("a: !!str 5", json!({"a": "5"})),
        ] {
            assert_eq!(plain(&parse(text).unwrap()), expected, "{text:?}");
        }
    }

    #[test]
    fn lines_are_known() {
        let node = parse("a: 1\n\nb:\n  # c\n  c: [x,\n    y]\n").unwrap();
        let Shape::Map(top) = &node.shape else { panic!("{node:?}") };
        assert_eq!((top[0].line, top[1].line), (1, 3));
        let Shape::Map(inner) = &top[1].value.shape else { panic!("{node:?}") };
        assert_eq!(inner[0].line, 5);
        let Shape::List(items) = &inner[0].value.shape else { panic!("{node:?}") };
        assert_eq!((items[0].line, items[1].line), (5, 6));
    }

    #[test]
    fn faults_name_the_line() {
        let mut laughs = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for (last, name) in ('a'..'i').zip('b'..='i') {
            let uses = vec![format!("*{last}"); 10].join(", ");
            laughs += &format!("{name}: &{name} [{uses}]\n");
        }
        for (text, line, message) in [
            ("a: 1\na: 2\n", 2, "a is given twice, first in line 1"),
            ("a: 1\n---\nb: 2\n", 2, "a second document; one is allowed"),
            ("a: 1\n? [x]\n: y\n", 2, "a key must be a single word or text"),
            ("a: !secret x\n", 1, "tags such as !name are not supported"),
            (&format!("a: {}", "[".repeat(100)), 1, "nested deeper than 32 levels"),
            (&format!("a:\n  {}", "- ".repeat(5000)), 2, "nested deeper than 32 levels"),
            (&" ".repeat(TEXT_MAX + 1), 0, "longer than 1048576 bytes"),
            (&laughs, 5, "more than 100000 values"),
        ] {
            assert_eq!(parse(text), Err(Fault::new(line, message)), "{:.60}", text);
        }
        for (text, line) in [("a: [1, 2\n", 2), ("a: 1\nb: 'x\n", 2), ("a: 1\n b: 2\n", 2)] {
            let fault = parse(text).unwrap_err();
            assert!(fault.message.starts_with("not valid YAML: "), "{text:?}: {fault:?}");
            assert_eq!(fault.line, line, "{text:?}: {fault:?}");
        }
    }

    #[test]
    fn words_come_from_lists_and_texts() {
        assert_eq!(Node::text("a, b  c,,d").words().unwrap(), ["a", "b", "c", "d"]);
        assert_eq!(parse("[a b, c]").unwrap().words().unwrap(), ["a b", "c"]);
        assert_eq!(parse("{a: b}").unwrap().words(), None);
        assert_eq!(parse("[[a]]").unwrap().words(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_text_panics(text in r#"([a-c:\-?\[\]{},#&*!|>'"%@~ \n\t]|\PC){0,60}"#) {
            if let Err(fault) = parse(&text) {
                prop_assert!(fault.line >= 1 && fault.line <= text.lines().count() + 1);
            }
        }

        #[test]
        fn json_is_yaml(words in proptest::collection::vec("\\PC{0,12}", 0..6)) {
            let value = json!({"list": words, "map": {"key": words}});
            prop_assert_eq!(plain(&parse(&value.to_string()).unwrap()), value);
        }
    }
}
