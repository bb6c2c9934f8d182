//! Events as JSON: POST /intake/.

use std::collections::BTreeMap;

use serde::Serialize;

use super::pack::Output;
use crate::batch::Event;
use crate::sample::{AlertType, Priority};

/// Events of one payload, at most.
const EVENTS_MAX: usize = 100;

/// The group of the events that name no source type.
const NO_SOURCE_TYPE: &str = "api";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Payload<'a> {
    /// The key goes in the header.
    api_key: &'static str,
    /// By source type.
    events: BTreeMap<&'a str, Vec<Json<'a>>>,
    internal_hostname: &'a str,
}

#[derive(Serialize)]
struct Json<'a> {
    msg_title: &'a str,
    msg_text: &'a str,
    timestamp: i64,
    priority: Priority,
    host: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    tags: &'a [String],
    alert_type: AlertType,
    #[serde(skip_serializing_if = "str::is_empty")]
    aggregation_key: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    source_type_name: &'a str,
}

pub fn encode(events: &[Event], hostname: &str, mut output: Output<'_>) {
    let render = |events: &[Event]| render(events, hostname);
    for events in events.chunks(EVENTS_MAX) {
        output.pack(events, |_| 1, &render);
    }
}

fn render(events: &[Event], hostname: &str) -> Vec<u8> {
    let mut groups = BTreeMap::<&str, Vec<Json<'_>>>::new();
    for event in events {
        let group = Some(&*event.source_type).filter(|s| !s.is_empty()).unwrap_or(NO_SOURCE_TYPE);
        groups.entry(group).or_default().push(Json {
            msg_title: &event.title,
            msg_text: &event.text,
            timestamp: event.timestamp,
            priority: event.priority,
            host: &event.host,
            tags: &event.tags,
            alert_type: event.alert_type,
            aggregation_key: &event.aggregation_key,
            source_type_name: &event.source_type,
        });
    }
    let payload = Payload { api_key: "", events: groups, internal_hostname: hostname };
    serde_json::to_vec(&payload).expect("numbers and strings are JSON")
}
