//! Service checks as a JSON array: POST /api/v1/check_run.

use serde::Serialize;

use super::pack::Output;
use crate::batch::ServiceCheck;

/// Service checks of one payload, at most.
const CHECKS_MAX: usize = 1000;

/// Every field is sent, even when empty.
#[derive(Serialize)]
struct Json<'a> {
    check: &'a str,
    host_name: &'a str,
    timestamp: i64,
    status: u8,
    message: &'a str,
    tags: &'a [String],
}

pub fn encode(checks: &[ServiceCheck], mut output: Output<'_>) {
    for checks in checks.chunks(CHECKS_MAX) {
        output.pack(checks, |_| 1, &render);
    }
}

fn render(checks: &[ServiceCheck]) -> Vec<u8> {
    let checks: Vec<Json<'_>> = checks
        .iter()
        .map(|check| Json {
            check: &check.name,
            host_name: &check.host,
            timestamp: check.timestamp,
            status: check.status as u8,
            message: &check.message,
            tags: &check.tags,
        })
        .collect();
    serde_json::to_vec(&checks).expect("numbers and strings are JSON")
}
