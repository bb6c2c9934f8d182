//! What a service manager hears: ready once the listeners are open, alive, stopping.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use super::process::{DEADLINE, Launch, UDP};

/// The manager's end.
struct Manager(UnixDatagram);

impl Manager {
    fn new(address: &SocketAddr) -> Self {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self(socket)
    }

    fn hear(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.0.recv(&mut buffer).expect("it is told something");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }
}

#[test]
fn it_is_told_by_path_and_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let name = format!("tallyd-conformance-{}", std::process::id());
    for (address, variable) in [
        (SocketAddr::from_pathname(&path).unwrap(), path.display().to_string()),
        (SocketAddr::from_abstract_name(name.as_bytes()).unwrap(), format!("@{name}")),
    ] {
        let manager = Manager::new(&address);
        let tallyd = Launch::new().listen(&[UDP]).env("NOTIFY_SOCKET", &variable).spawn();
        assert_eq!(manager.hear(), "READY=1\nSTATUS=receiving and delivering");
        // It is open already; what it said of that is on its way here.
        tallyd.wait_for_stderr("listening on udp://");
        tallyd.send(["m:1|c"]);
        tallyd.signal("TERM");
        assert_eq!(manager.hear(), "STOPPING=1\nSTATUS=delivering what is left");
        let finished = tallyd.wait();
        assert!(finished.status.success(), "{finished:?}");
    }
}

#[test]
fn the_watchdog_is_fed_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager::new(&SocketAddr::from_pathname(&path).unwrap());
    let limit = Duration::from_millis(1500);
    let tallyd = Launch::new()
        .listen(&[UDP])
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", &limit.as_micros().to_string())
        .spawn();
    assert!(manager.hear().starts_with("READY=1"));
    let begun = Instant::now();
    for _ in 0..4 {
        assert_eq!(manager.hear(), "WATCHDOG=1");
    }
    // The first comes at once, three more at a third of the limit each.
    assert!(begun.elapsed() >= limit / 3 * 2, "{:?}", begun.elapsed());
    tallyd.stop();
}

#[test]
fn without_a_manager_nothing_is_said() {
    let finished = Launch::new().listen(&[UDP]).env("NOTIFY_SOCKET", "").start().stop();
    assert!(!finished.stderr.contains("service manager"), "{finished:?}");
    let nobody = Launch::new().listen(&[UDP]).env("NOTIFY_SOCKET", "/nonexistent/notify");
    let finished = nobody.start().stop();
    let expected = "cannot tell the service manager Some(\"READY=1\")";
    assert!(finished.stderr.contains(expected), "{finished:?}");
}

#[test]
fn logs_go_to_a_bounded_file_and_to_syslog() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name| folder.path().join(name);
    let launch = Launch::new().listen(&[UDP]);
    let syslog = UnixDatagram::bind(launch.path("syslog")).unwrap();
    syslog.set_read_timeout(Some(DEADLINE)).unwrap();
    let launch = launch
        .env("DD_LOG_FILE", file("log").to_str().unwrap())
        .env("DD_LOG_FILE_MAX_SIZE", "200")
        .env("DD_LOG_FILE_MAX_ROLLS", "2")
        .env("DD_LOG_TO_SYSLOG", "true")
        .env("DD_SYSLOG_URI", "unixgram://{folder}/syslog");
    let tallyd = launch.start();
    let mut buffer = [0; 1024];
    let length = syslog.recv(&mut buffer).unwrap();
    let line = String::from_utf8(buffer[..length].to_vec()).unwrap();
    assert!(line.starts_with("<30>tallyd[") && line.ends_with("starts"), "{line}");
    tallyd.wait_until("there are three files", |_| file("log.2").exists());
    // Files move on as long as it writes: they are read once it has ended.
    tallyd.stop();
    for name in ["log", "log.1", "log.2"] {
        let text = fs::read_to_string(file(name)).unwrap();
        // A line longer than a file is a file of its own.
        assert!(text.len() <= 200 || text.lines().count() == 1, "{name}: {text}");
    }
    assert!(!file("log.3").exists());
}
