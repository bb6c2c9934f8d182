//! What the service manager is told (`sd_notify(3)`), if there is one: ready, alive, stopping.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The listeners are open.
pub fn ready() {
    tell("READY=1\nSTATUS=receiving and delivering");
}

/// The stop has begun.
pub fn stopping() {
    tell("STOPPING=1\nSTATUS=delivering what is left");
}

/// Feeds the manager's watchdog, if there is one, while `pulse` changes; that the runtime gets on,
/// this task itself tells. Ends never, or at once.
pub async fn feed_watchdog(pulse: Arc<AtomicU64>) {
    let Some(limit) = watchdog(|name| env::var(name).ok(), std::process::id()) else { return };
    let mut watch =
        Watch { limit, pulse: pulse.load(Relaxed), changed: Instant::now(), well: true };
    let mut period = tokio::time::interval(limit / 3);
    loop {
        period.tick().await;
        if watch.look(pulse.load(Relaxed), Instant::now()) {
            tell("WATCHDOG=1");
        }
    }
}

/// The manager ends the process when it hears nothing for so long.
fn watchdog(variable: impl Fn(&str) -> Option<String>, own: u32) -> Option<Duration> {
    let number = |name: &str| variable(name)?.parse::<u64>().ok();
    let ours = variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(own.into());
    let limit = number("WATCHDOG_USEC").filter(|limit| ours && *limit >= 3)?;
    Some(Duration::from_micros(limit))
}

/// Sees whether something gets on.
struct Watch {
    limit: Duration,
    pulse: u64,
    changed: Instant,
    well: bool,
}

impl Watch {
    /// Whether the pulse has changed within the limit. Says once when it has not.
    fn look(&mut self, pulse: u64, now: Instant) -> bool {
        if pulse != self.pulse {
            (self.pulse, self.changed) = (pulse, now);
        }
        let well = now.duration_since(self.changed) <= self.limit;
        if !well && self.well {
            let seconds = self.limit.as_secs_f64();
            tracing::error!(
                "the thread that flushes has not moved for {seconds} s: the service manager's \
                 watchdog is not fed"
            );
        }
        self.well = well;
        well
    }
}

/// Sends a message to the manager's socket.
fn tell(message: &str) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return };
    if let Err(error) = send(&socket, message) {
        tracing::warn!("cannot tell the service manager {:?}: {error}", message.lines().next());
    }
}

/// A name that begins with `@` is in the abstract namespace.
fn send(socket: &OsStr, message: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // Neither a thread nor the runtime is to wait for a manager that reads nothing.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(message.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_by_path_and_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("tallyd-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        for (judge, socket) in [
            (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}")),
        ] {
            send(OsStr::new(&socket), "READY=1").unwrap();
            let mut buffer = [0; 64];
            let length = judge.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
        send(OsStr::new(&folder.path().join("none")), "READY=1").unwrap_err();
    }

    #[test]
    fn the_watchdogs_variables() {
        for (limit, process, expected) in [
            ("", "", None),
            ("30000000", "", Some(30)),
            ("30000000", "7", Some(30)),
            ("30000000", "8", None),
            ("30000000", "x", None),
            ("x", "7", None),
            ("0", "7", None),
        ] {
            let variable = |name: &str| {
                let value = if name == "WATCHDOG_PID" { process } else { limit };
                Some(value.to_owned()).filter(|value| !value.is_empty())
            };
            assert_eq!(watchdog(variable, 7), expected.map(Duration::from_secs));
        }
    }

    #[test]
    fn a_pulse_that_stands_still_starves_the_watchdog_until_it_goes_on() {
        let start = Instant::now();
        let limit = Duration::from_secs(10);
        let mut watch = Watch { limit, pulse: 5, changed: start, well: true };
        let seen: Vec<_> = [(4, 5), (10, 5), (11, 5), (40, 5), (41, 6), (51, 6), (52, 6)]
            .map(|(second, pulse)| watch.look(pulse, start + Duration::from_secs(second)))
            .into();
        assert_eq!(seen, [true, true, false, false, true, true, false]);
    }
}
