//! What goes wrong at the start is said in one line that tells what to change.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;

use super::process::{Finished, KEY, Launch, UDP};

/// The one line that tells why it has not started.
#[track_caller]
fn failed(finished: &Finished, code: i32) -> &str {
    assert_eq!(finished.code(), code, "{finished:#?}");
    assert_eq!(finished.stdout, "");
    let problems: Vec<_> = finished.stderr.lines().filter(|l| !l.contains(" INFO ")).collect();
    let [problem] = problems[..] else { panic!("{finished:#?}") };
    problem
}

#[track_caller]
fn starts_not(launch: Launch, code: i32, expected: &str) {
    let expected =
        expected.replace("{folder}", launch.path("").to_str().unwrap().trim_end_matches('/'));
    let finished = launch.spawn().wait();
    assert_eq!(failed(&finished, code), expected);
}

#[test]
fn a_port_that_is_taken() {
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = udp.local_addr().unwrap().port();
    let cause = "Address already in use (os error 98)";
    starts_not(
        Launch::new().env("DD_DOGSTATSD_PORT", &port.to_string()),
        1,
        &format!(
            "error: cannot listen on udp://127.0.0.1:{port}: {cause}; stop the other program, or \
             set intake.port (DD_DOGSTATSD_PORT)"
        ),
    );
    let address = format!("udp://127.0.0.1:{port}");
    starts_not(
        Launch::new().listen(&[UDP, &address]),
        1,
        &format!("error: cannot listen on {address}: {cause}; intake.listeners[1]"),
    );
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    starts_not(
        Launch::new().set("intake.tcp_port", &address.port().to_string()),
        1,
        &format!("error: cannot listen on tcp://{address}: {cause}; set intake.tcp_port"),
    );
    starts_not(
        Launch::new().set("status.listen", &address.to_string()),
        1,
        &format!(
            "error: cannot listen on http://{address}: set status.listen to a free address, or to \
             \"\": {cause}"
        ),
    );
}

#[test]
fn default_ports_that_are_taken() {
    // By us, or by whoever made this fail.
    let _udp = UdpSocket::bind("127.0.0.1:8125");
    let _tcp = TcpListener::bind("127.0.0.1:8127");
    let launch = Launch::with_file("intake: {socket: \"\"}").listen(&["unixgram://{folder}/gram"]);
    let tallyd = launch.spawn();
    tallyd.wait_for_stderr("going on without pages");
    let log = tallyd.stderr();
    let warnings: Vec<_> = log.lines().filter_map(|line| line.split_once(" WARN ")).collect();
    let cause = "Address already in use (os error 98)";
    assert_eq!(
        warnings.iter().map(|(_, warning)| (*warning).to_owned()).collect::<Vec<_>>(),
        [
            format!(
                "cannot listen on udp://127.0.0.1:8125: {cause}; stop the other program, or set \
                 intake.port (DD_DOGSTATSD_PORT); going on without it"
            ),
            format!(
                "cannot listen on http://127.0.0.1:8127: set status.listen to a free address, or \
                 to \"\": {cause}; going on without pages"
            ),
        ]
    );
    UnixDatagram::unbound().unwrap().send_to(b"other:7|g", tallyd.path("gram")).unwrap();
    let finished = tallyd.stop();
    assert!(finished.stdout.contains("other"), "{finished:#?}");

    // Nothing is left to read.
    let launch = Launch::with_file("intake: {socket: \"\"}").set("status.listen", "");
    let finished = launch.spawn().wait();
    assert_eq!(finished.code(), 1);
    let last = finished.stderr.lines().last().unwrap();
    let expected = "error: no listener could be opened: cannot listen on udp://127.0.0.1:8125: ";
    assert!(last.starts_with(expected), "{finished:#?}");
}

#[test]
fn a_socket_that_cannot_be() {
    let remedy =
        "set intake.socket (DD_DOGSTATSD_SOCKET) to a path that can be written, or to \"\"";
    let launch = Launch::new().env("DD_DOGSTATSD_SOCKET", "{folder}/file");
    fs::write(launch.path("file"), "").unwrap();
    let problem = "something that is no socket is there";
    let expected = "error: cannot listen on unixgram://{folder}/file: ";
    starts_not(launch, 1, &format!("{expected}{problem}; {remedy}"));

    // Where not even root can write.
    let launch = Launch::new().env("DD_DOGSTATSD_SOCKET", "{folder}/file/dsd.socket");
    fs::write(launch.path("file"), "").unwrap();
    let problem = "cannot make the folder {folder}/file: File exists (os error 17)";
    let expected = "error: cannot listen on unixgram://{folder}/file/dsd.socket: ";
    starts_not(launch, 1, &format!("{expected}{problem}; {remedy}"));
    let problem = "cannot make the folder /proc/tallyd: No such file or directory (os error 2)";
    let expected = "error: cannot listen on unixgram:///proc/tallyd/dsd.socket: ";
    let launch = Launch::new().env("DD_DOGSTATSD_SOCKET", "/proc/tallyd/dsd.socket");
    starts_not(launch, 1, &format!("{expected}{problem}; {remedy}"));

    let launch = Launch::new().env("DD_DOGSTATSD_STREAM_SOCKET", "{folder}/file");
    fs::write(launch.path("file"), "").unwrap();
    starts_not(
        launch,
        1,
        "error: cannot listen on unixstream://{folder}/file: something that is no socket is there; \
         set intake.stream_socket (DD_DOGSTATSD_STREAM_SOCKET) to a path that can be written",
    );
}

#[test]
fn a_socket_in_use_and_a_stale_one() {
    let first = Launch::new().env("DD_DOGSTATSD_SOCKET", "{folder}/new/dsd.socket").start();
    let path = first.path("new/dsd.socket");
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o722);
    let address = path.to_str().unwrap();

    starts_not(
        Launch::new().env("DD_DOGSTATSD_SOCKET", address),
        1,
        &format!(
            "error: cannot listen on unixgram://{address}: another process listens there; set \
             intake.socket (DD_DOGSTATSD_SOCKET) to a path that can be written, or to \"\""
        ),
    );
    first.stop();
    assert!(!path.exists(), "the stop removes it");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stale");
    drop(UnixDatagram::bind(&path).unwrap());
    assert!(path.exists());
    let second = Launch::new().env("DD_DOGSTATSD_SOCKET", path.to_str().unwrap()).start();
    UnixDatagram::unbound().unwrap().send_to(b"a:1|c", &path).unwrap();
    second.wait_until("it is read", |tallyd| {
        tallyd.figure("tallyd_listener_samples_total", "unixgram://") == 1.0
    });
    second.stop();
    assert!(!path.exists());

    let killed = Launch::new().env("DD_DOGSTATSD_SOCKET", path.to_str().unwrap()).start();
    killed.signal("KILL");
    killed.wait();
    assert!(path.exists());
    let again = Launch::new().env("DD_DOGSTATSD_SOCKET", path.to_str().unwrap()).start();
    again.stop();
}

#[test]
fn a_wrong_configuration() {
    let file = |text: &str| Launch::with_file(text);
    for (launch, expected) in [
        (
            file("flush:\n  interval: 1\n\nintake:\n  prot: 8125\n"),
            "error: {folder}/tallyd.yaml:5: unknown setting intake.prot; did you mean intake.port?",
        ),
        (
            file("intake:\n  port: many\n"),
            "error: {folder}/tallyd.yaml:2: intake.port: expected a whole number from 0 to 65535, \
             found \"many\"",
        ),
        (
            file("flush: {interval: 0}"),
            "error: {folder}/tallyd.yaml:1: flush.interval: expected 1 to 3600, found 0",
        ),
        (
            Launch::new().env("DD_DOGSTATSD_PORT", "99999"),
            "error: DD_DOGSTATSD_PORT: intake.port: expected a whole number from 0 to 65535, found \
             \"99999\"",
        ),
        (
            Launch::new().env("TALLYD_INTAKE__PROT", "1"),
            "error: TALLYD_INTAKE__PROT: unknown setting intake.prot; did you mean intake.port?",
        ),
        (
            Launch::new().set("sinks.console.enabled", "maybe"),
            "error: --set sinks.console.enabled: sinks.console.enabled: expected on, off or auto, \
             found \"maybe\"",
        ),
    ] {
        starts_not(launch, 78, expected);
    }
}

#[test]
fn a_key_that_cannot_be_one_is_not_repeated() {
    for key in ["5ec2e7 a11d", "5ec2e7\u{e9}a11d"] {
        let finished = Launch::new().env("DD_API_KEY", key).spawn().wait();
        assert_ne!(finished.code(), 0);
        assert_eq!(finished.stderr.lines().filter(|l| !l.contains(" INFO ")).count(), 1);
        assert!(finished.stderr.contains("sinks.datadog.api_key"), "{finished:#?}");
        assert!(!finished.stderr.contains("5ec2e7"), "{finished:#?}");
    }
}

#[test]
fn wrong_arguments() {
    for arguments in
        [&["--no-such-flag"][..], &["send", "gauge", "a"], &["send", "gauge", "a", "x"]]
    {
        let finished = Launch::new().run(arguments);
        assert_eq!(finished.code(), 2, "{finished:#?}");
        assert!(finished.stderr.starts_with("error: "), "{finished:#?}");
    }
}

#[test]
fn an_intake_that_cannot_be_reached_is_one_warning() {
    // Nobody listens on a port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tallyd = Launch::new()
        .env("DD_API_KEY", KEY)
        .env("DD_DD_URL", &format!("http://{free}"))
        .listen(&[UDP])
        .set("sinks.console.enabled", "on")
        .start();
    tallyd.wait_for_stderr("WARN");
    let log = tallyd.stderr();
    let warnings: Vec<_> = log.lines().filter(|line| line.contains(" WARN ")).collect();
    let [warning] = warnings[..] else { panic!("{log}") };
    for part in [&format!("http://{free}"), "Connection refused", "sinks.datadog.dd_url"] {
        assert!(warning.contains(part), "{warning}");
    }
    // It goes on, and the other sinks with it.
    tallyd.send(["a:1|c"]);
    tallyd.wait_for_stdout("count");
    tallyd.wait_until("its points wait", |tallyd| {
        tallyd.figure("tallyd_sink_retries_total", "sink=\"datadog\"") >= 1.0
    });
    let finished = tallyd.stop();
    let said = format!("2 points for http://{free} stay in the spool");
    assert!(finished.stderr.contains(&said), "{}", finished.stderr);
}

#[test]
fn a_run_path_of_another_process() {
    let first = Launch::new().env("DD_API_KEY", KEY).start();
    let path = first.path("run");
    let path = path.to_str().unwrap();
    starts_not(
        Launch::new().env("DD_API_KEY", KEY).env("DD_RUN_PATH", path),
        1,
        &format!(
            "error: another process uses {path}; set state.run_path (DD_RUN_PATH) to a folder of \
             its own"
        ),
    );
    // Nobody asked for a default one.
    let by_default = Launch::new()
        .env("DD_API_KEY", KEY)
        .env("DD_RUN_PATH", "")
        .env("STATE_DIRECTORY", path)
        .start();
    by_default.wait_for_stderr("nothing will outlive this process: another process uses ");
    by_default.stop();
    first.stop();
}

#[test]
fn a_signal_during_the_start_ends_in_a_proper_stop() {
    let tallyd = Launch::new().listen(&["unixgram://{folder}/gram"]).spawn();
    tallyd.wait_for_stderr("listening on");
    let path = tallyd.path("gram");
    let finished = tallyd.stop();
    assert!(finished.stderr.contains("stopping: SIGTERM"), "{}", finished.stderr);
    assert!(!path.exists());
}
