//! Configuration files: ours, and the Agent's. No text may panic, hang or take much memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallyd::config;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let _ = config::from_text("tallyd.yaml", &text);
    let _ = config::agent_from_text("datadog.yaml", &text, &[]);
});
