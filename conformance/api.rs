//! The JSON below `/api/` is what its index says, as a validator of JSON Schema judges it; and what
//! the health checks answer.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::process::{Launch, Tallyd, UDP, http};
use super::real_clients::{run, say};
use super::test_intake::{Intake, Response};

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
fn a_backend_that_does_not_answer_is_no_reason_not_to_be_ready() {
    let intake = Intake::start();
    intake.respond_with(|_| Response::status(503));
    let tallyd = Launch::new().to(&intake).set("status.token", "s3cret").listen(&[UDP]).start();
    let status = |tallyd: &Tallyd, path| http(tallyd.server(0), "GET", path, b"").0;
    // The pages come before the spool is open.
    tallyd.wait_until("it is ready", |tallyd| status(tallyd, "/ready") == 200);
    tallyd.send(["a:1|c"]);
    tallyd.wait_until("a payload waits", |tallyd| {
        tallyd.figure("tallyd_sink_spooled_payloads", "datadog") > 0.0
            && tallyd.figure("tallyd_sink_retried_points_total", "datadog") > 0.0
    });
    // What others send with their token is understood as it is without one.
    for path in ["/api/series?limit=1&token=s3cret", "/api/profile?token=s3cret&minute=9999"] {
        assert!([200, 404].contains(&status(&tallyd, path)), "{path}");
    }
    for path in ["/health", "/live", "/startup", "/ready", "/-/healthy", "/-/ready"] {
        assert_eq!(status(&tallyd, path), 200, "{path}");
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
