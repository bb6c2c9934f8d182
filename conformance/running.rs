//! The program as a process: what it says, and how it takes signals.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

#[test]
fn it_says_where_points_go_and_outlives_a_hangup() {
    let mut tallyd = Command::new(env!("CARGO_BIN_EXE_tallyd"));
    for setting in [
        "intake.socket=",
        "status.listen=127.0.0.1:0",
        "intake.port=0",
        r#"intake.listeners=[{"address":"udp://127.0.0.1:0"}]"#,
        "sinks.console.enabled=on",
        "sinks.stop_timeout=0",
        "sinks.spool.enabled=false",
        "journal.enabled=false",
        "sinks.datadog.api_key=0123456789abcdef",
        "sinks.datadog.dd_url=http://127.0.0.1:9",
        "sinks.datadog.validate_key=false",
    ] {
        tallyd.args(["--set", setting]);
    }
    // Nothing of the machine's own settings.
    tallyd.args(["--config", "/dev/null", "--datadog-config", "/dev/null"]).env_clear();
    let mut tallyd = tallyd.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tallyd");
    let mut said = BufReader::new(tallyd.stderr.take().expect("a pipe")).lines();
    let mut wait_for = |part: &str| loop {
        let line = said.next().unwrap_or_else(|| panic!("{part:?} was not said")).expect("text");
        assert!(!line.contains("0123456789abcdef"), "{line}");
        if let Some((_, behind)) = line.split_once(part) {
            return behind.to_owned();
        }
    };
    let udp = wait_for("listening on udp://");
    let pages = wait_for("serving http://");
    assert_eq!(
        wait_for("delivering to "),
        format!("datadog http://127.0.0.1:9, console, prometheus page at http://{pages}/metrics")
    );
    assert_eq!(
        wait_for("no samples yet? try: "),
        format!("tallyd send gauge queue.depth 12 -t env:dev --to udp://{udp}")
    );
    let id = tallyd.id().to_string();
    let kill = |signal: &str| {
        let status = Command::new("kill").args([signal, &id]).status();
        assert!(status.expect("kill").success());
    };
    wait_for("ready");
    kill("-HUP");
    wait_for("SIGHUP is ignored: settings are read at the start only");
    kill("-TERM");
    wait_for("stopped");
    assert_eq!(tallyd.wait().expect("an end").code(), Some(0));
}
