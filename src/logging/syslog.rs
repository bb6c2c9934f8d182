//! Logs to syslog, a datagram a line (RFC 3164 and RFC 5424).

use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The facility of system daemons.
const DAEMON: u8 = 3;

/// Bytes of a line that are sent: every receiver takes as many.
const LINE_MAX: usize = 8192;

/// Where lines go.
#[derive(Debug)]
enum Socket {
    Unix(UnixDatagram, String),
    Udp(UdpSocket),
}

/// Sends each line with the severity of its level.
#[derive(Debug)]
pub(super) struct Syslog {
    socket: Socket,
    rfc5424: bool,
}

/// Checks an address: `unixgram:///PATH` or `udp://HOST:PORT`.
pub fn check_uri(uri: &str) -> Result<(), String> {
    let path = uri.strip_prefix("unixgram://").is_some_and(|path| path.starts_with('/'));
    let host = uri.strip_prefix("udp://").and_then(|rest| rest.rsplit_once(':'));
    let port = host.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if path || port {
        Ok(())
    } else {
        Err("expected unixgram:///PATH or udp://HOST:PORT".to_owned())
    }
}

impl Syslog {
    /// Lines may be lost while nobody receives, also at first: nothing waits for that.
    pub(super) fn open(uri: &str, rfc5424: bool) -> io::Result<Self> {
        check_uri(uri).map_err(io::Error::other)?;
        let socket = if let Some(path) = uri.strip_prefix("unixgram://") {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Socket::Unix(socket, path.to_owned())
        } else {
            let to = uri.trim_start_matches("udp://");
            // The family of the address decides which of the two can connect.
            let bound = ["0.0.0.0:0", "[::]:0"].map(|any| {
                let socket = UdpSocket::bind(any)?;
                socket.connect(to)?;
                socket.set_nonblocking(true)?;
                io::Result::Ok(socket)
            });
            let [v4, v6] = bound;
            Socket::Udp(v4.or(v6)?)
        };
        Ok(Self { socket, rfc5424 })
    }

    fn message(&self, severity: u8, line: &[u8]) -> Vec<u8> {
        let (priority, process) = (DAEMON * 8 + severity, std::process::id());
        let mut message = if self.rfc5424 {
            // The receiver knows time and host; the line has its own time.
            format!("<{priority}>1 - - tallyd {process} - - ")
        } else {
            format!("<{priority}>tallyd[{process}]: ")
        }
        .into_bytes();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        message.extend_from_slice(&line[..line.len().min(LINE_MAX)]);
        message
    }
}

/// One line on its way.
pub(super) struct Line<'a> {
    syslog: &'a Syslog,
    severity: u8,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let message = self.syslog.message(self.severity, line);
        // A line that nobody takes is lost: to say so would be another.
        let _ = match &self.syslog.socket {
            Socket::Unix(socket, path) => socket.send_to(&message, path),
            Socket::Udp(socket) => socket.send(&message),
        };
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The severities of RFC 5424.
const fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { syslog: self, severity: severity(Level::INFO) }
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Line<'a> {
        Line { syslog: self, severity: severity(*line.level()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn received(receive: impl Fn(&mut [u8]) -> io::Result<usize>) -> String {
        let mut buffer = [0; 256];
        let length = receive(&mut buffer).unwrap();
        let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
        text.replace(&std::process::id().to_string(), "PID")
    }

    #[test]
    fn a_line_is_a_datagram_of_its_severity() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let uri = format!("unixgram://{}", path.display());
        // Nobody is there yet: the line is lost, and that is all.
        let old = Syslog::open(&uri, false).unwrap();
        old.make_writer().write_all(b"lost\n").unwrap();
        let judge = UnixDatagram::bind(&path).unwrap();
        Line { syslog: &old, severity: severity(Level::ERROR) }.write_all(b"bad news\n").unwrap();
        assert_eq!(received(|buffer| judge.recv(buffer)), "<27>tallyd[PID]: bad news");
        let new = Syslog::open(&uri, true).unwrap();
        new.make_writer().write_all(b"news\n").unwrap();
        assert_eq!(received(|buffer| judge.recv(buffer)), "<30>1 - - tallyd PID - - news");

        let judge = UdpSocket::bind("127.0.0.1:0").unwrap();
        judge.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let uri = format!("udp://{}", judge.local_addr().unwrap());
        Syslog::open(&uri, false).unwrap().make_writer().write_all(b"news").unwrap();
        assert_eq!(received(|buffer| judge.recv(buffer)), "<30>tallyd[PID]: news");
        let long = old.message(6, &[b'x'; 2 * LINE_MAX]);
        assert!(long.len() < LINE_MAX + 50);
    }

    #[test]
    fn addresses() {
        for (uri, valid) in [
            ("unixgram:///dev/log", true),
            ("udp://localhost:514", true),
            ("udp://[::1]:514", true),
            ("unixgram://dev/log", false),
            ("udp://localhost", false),
            ("udp://:514", false),
            ("tcp://localhost:514", false),
            ("", false),
        ] {
            assert_eq!(check_uri(uri).is_ok(), valid, "{uri}");
        }
    }
}
