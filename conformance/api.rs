//! The JSON below `/api/` is what its index says, as a validator of JSON Schema judges it.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::process::{Launch, Tallyd, UDP};
use super::real_clients::{run, say};

const LINES: &str = "a:1|c|#x:1\nb:2|g\nc:3|ms\nd:4|d\ne:5|s\nbad\n_e{1,1}:t|x\n_sc|up|0\n\
                     datadog.dogstatsd.client.packets_dropped:4|c";

/// Reads pairs of schema and document from the file that it is given.
const VALIDATE: &str = "
import json, sys, jsonschema
for path, schema, document in json.load(open(sys.argv[1])):
    jsonschema.Draft202012Validator.check_schema(schema)
    try:
        jsonschema.Draft202012Validator(schema).validate(document)
    except jsonschema.ValidationError as error:
        sys.exit(f'{path}: {error.message} at {error.json_path}')
";

fn json_of(tallyd: &Tallyd, path: &str) -> Json {
    let page = tallyd.page(path);
    serde_json::from_str(&page).unwrap_or_else(|error| panic!("{path}: {error}: {page}"))
}

/// Nothing may be in a document that its schema does not name, so objects are closed.
fn close(schema: &mut Json) {
    match schema {
        Json::Object(members) => {
            if members.contains_key("properties") {
                members.insert("additionalProperties".to_owned(), false.into());
            }
            members.values_mut().for_each(close);
        }
        Json::Array(list) => list.iter_mut().for_each(close),
        _ => {}
    }
}

#[test]
fn every_answer_is_as_the_index_says() {
    let tallyd = Launch::new().listen(&[UDP]).set("self_profile.period", "1").start();
    let filled = |tallyd: &Tallyd| {
        tallyd.send([LINES]);
        let overview = json_of(tallyd, "/api/overview");
        overview["profile"].as_array().is_some_and(|minutes| !minutes.is_empty())
            && json_of(tallyd, "/api/series?text=x:1")["found"] == 1
            && json_of(tallyd, "/api/history?name=a&tags=x:1")["series"][0] != Json::Null
    };
    tallyd.wait_until("something in every answer", filled);
    let mut pairs = Vec::new();
    for path in json_of(&tallyd, "/api/").as_array().unwrap() {
        let mut schema = path["schema"].clone();
        let path = path["path"].as_str().unwrap();
        // Those that go on for as long as somebody listens.
        if ["/api/tap", "/api/capture"].contains(&path) {
            continue;
        }
        close(&mut schema);
        let query = if path == "/api/history" { "?name=a&tags=x:1" } else { "" };
        pairs.push(json!([path, schema, json_of(&tallyd, &format!("{path}{query}"))]));
    }
    assert_eq!(pairs.len(), 7);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pairs.json");
    std::fs::write(&file, Json::from(pairs).to_string()).unwrap();
    let mut has = Command::new("python3");
    if !has.args(["-c", "import jsonschema"]).output().is_ok_and(|o| o.status.success()) {
        return say("SKIP api: there is no jsonschema for python3");
    }
    let mut python = Command::new("python3");
    python.args(["-c", VALIDATE]).arg(&file);
    run(&mut python, Duration::from_secs(30)).unwrap();
}
