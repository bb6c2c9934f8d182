//! Opens the listeners that the configuration asks for.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use socket2::{Domain, Protocol, Type};

use super::activation::{Passed, Place};
use super::address::{ListenAddress, host_port};
use super::socket_file::{SocketFile, make_way};
use super::streams::Listening;
use super::{Config, Untouched};
use crate::logging::one_line;
use crate::sample::Dialect;
use crate::sys;
use crate::telemetry::{self, Telemetry};

/// Where the Agent's clients look for the socket.
const AGENT_SOCKET: &str = "/var/run/datadog/dsd.socket";

/// Bytes of receive buffer asked for when the configuration does not say: a longer queue lets the
/// reader wake up less often.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A listener that is open and not yet read.
pub struct Opened {
    pub listener: Arc<telemetry::Listener>,
    /// Stands before the socket: it is to be dropped first.
    pub file: Option<SocketFile>,
    pub socket: Socket,
    pub dialect: Dialect,
    pub eol_required: bool,
    /// Datagrams that the kernel had dropped here before we had the socket.
    pub former_drops: u32,
}

/// An open socket.
pub enum Socket {
    Udp(OwnedFd),
    UnixDatagram(OwnedFd),
    Stream(Listening),
}

/// What a listener listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listens {
    /// HOST:PORT.
    Udp(String),
    Tcp,
    /// The first of these paths where a socket can be made.
    Unix(Vec<PathBuf>),
}

/// The listeners that the configuration asks for, each with the beginning of its name: the whole,
/// but for the path of a Unix socket.
pub fn listeners(config: &Config) -> Vec<(String, Listens)> {
    let mut found = Vec::new();
    let udp = |address: String| (format!("udp://{address}"), Listens::Udp(address));
    let tcp = |address: String| (format!("tcp://{address}"), Listens::Tcp);
    let unix = |scheme: &str, paths| (format!("{scheme}://"), Listens::Unix(paths));
    if config.port != 0 {
        found.push(udp(format!("{}:{}", bind_host(config), config.port)));
    }
    match config.socket.as_str() {
        "" => {}
        "auto" => found.push(unix("unixgram", auto_paths())),
        path => found.push(unix("unixgram", vec![PathBuf::from(path)])),
    }
    if !config.stream_socket.is_empty() {
        found.push(unix("unixstream", vec![PathBuf::from(&config.stream_socket)]));
    }
    if config.tcp_port != 0 {
        found.push(tcp(format!("{}:{}", bind_host(config), config.tcp_port)));
    }
    // Wrong addresses were refused with the configuration.
    found.extend(config.listeners.iter().filter_map(|listener| {
        Some(match listener.address.parse().ok()? {
            ListenAddress::Udp(address) => udp(address),
            ListenAddress::Tcp(address) => tcp(address),
            ListenAddress::UnixDatagram(path) => unix("unixgram", vec![path]),
            ListenAddress::UnixStream(path) => unix("unixstream", vec![path]),
        })
    }));
    found
}

/// Bytes of receive buffer that are asked for.
pub const fn receive_buffer(config: &Config) -> usize {
    if config.receive_buffer == 0 { RECEIVE_BUFFER } else { config.receive_buffer }
}

/// The Agent's path, and those below runtime directories.
fn auto_paths() -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from(AGENT_SOCKET)];
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    paths.extend(runtime.map(|folder| folder.join("tallyd/dsd.socket")));
    paths.push(std::env::temp_dir().join("tallyd/dsd.socket"));
    paths
}

/// Opens every listener of the configuration, on a socket that was passed where one fits, and says
/// so in the log. What nobody asked for may fail with a warning, as long as something is left to
/// read.
///
/// # Errors
/// With the setting and the remedy, when a listener that was asked for cannot be opened, or none
/// could.
pub fn open(
    config: &Config,
    untouched: Untouched,
    passed: Passed,
    telemetry: &Telemetry,
) -> anyhow::Result<Vec<Opened>> {
    let mut opening = Opening { config, telemetry, passed, opened: Vec::new() };
    let mut failures = Vec::new();
    let eol = |transport| config.eol_required.iter().any(|t| t == transport);
    if config.port != 0 {
        let address = format!("{}:{}", bind_host(config), config.port);
        let hint = "stop the other program, or set intake.port (DD_DOGSTATSD_PORT)";
        for _ in 0..config.udp_sockets.max(1) {
            let result = opening.udp(&address, config.udp_sockets > 1, config.dialect, eol("udp"));
            opening.lenient(result.context(hint), untouched.udp, &mut failures)?;
        }
    }
    if config.socket == "auto" {
        let result = opening.auto_socket(eol("uds"));
        opening.lenient(result, untouched.socket, &mut failures)?;
    } else if !config.socket.is_empty() {
        let path = Path::new(&config.socket);
        let hint =
            "set intake.socket (DD_DOGSTATSD_SOCKET) to a path that can be written, or to \"\"";
        opening.unix_datagram(path, config.dialect, eol("uds")).context(hint)?;
    }
    if !config.stream_socket.is_empty() {
        let path = Path::new(&config.stream_socket);
        let hint =
            "set intake.stream_socket (DD_DOGSTATSD_STREAM_SOCKET) to a path that can be written";
        opening.unix_stream(path, config.dialect, eol("uds")).context(hint)?;
    }
    if config.tcp_port != 0 {
        let address = format!("{}:{}", bind_host(config), config.tcp_port);
        opening.tcp(&address, config.dialect, false).context("set intake.tcp_port")?;
    }
    for (number, listener) in config.listeners.iter().enumerate() {
        opening.further(listener).with_context(|| format!("intake.listeners[{number}]"))?;
    }
    if opening.opened.is_empty() && !config.stdin && !failures.is_empty() {
        bail!("no listener could be opened: {}", failures.join("; "));
    }
    opening.passed.close();
    Ok(opening.opened)
}

/// Looks a host name up.
pub(super) fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    preferred((host, port).to_socket_addrs()?)
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the name has no address"))
}

/// The first IPv4 address, as the Agent takes it, else the first of all. Most clients send to
/// 127.0.0.1 where `localhost` has both.
fn preferred(addresses: impl Iterator<Item = SocketAddr>) -> Option<SocketAddr> {
    addresses.min_by_key(SocketAddr::is_ipv6)
}

fn bind_host(config: &Config) -> String {
    // [::] takes IPv4 too, unless the system has no IPv6.
    match (config.non_local_traffic, config.bind_host.parse::<std::net::Ipv6Addr>()) {
        (true, _) if Path::new("/proc/net/if_inet6").exists() => "[::]".to_owned(),
        (true, _) => "0.0.0.0".to_owned(),
        (false, Ok(address)) => format!("[{address}]"),
        (false, Err(_)) => config.bind_host.clone(),
    }
}

struct Opening<'a> {
    config: &'a Config,
    telemetry: &'a Telemetry,
    passed: Passed,
    opened: Vec<Opened>,
}

impl Opening<'_> {
    /// Turns the failure of a listener that nobody asked for into a warning.
    fn lenient(
        &self,
        result: anyhow::Result<()>,
        untouched: bool,
        failures: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        match result {
            Err(error) if untouched => {
                let line = one_line(&error);
                tracing::warn!("{line}; going on without it");
                failures.push(line);
                Ok(())
            }
            result => result,
        }
    }

    fn further(&mut self, listener: &super::Listener) -> anyhow::Result<()> {
        let (dialect, eol) = (listener.dialect, listener.eol_required);
        match listener.address.parse().map_err(anyhow::Error::msg)? {
            ListenAddress::Udp(address) => self.udp(&address, false, dialect, eol),
            ListenAddress::Tcp(address) => self.tcp(&address, dialect, eol),
            ListenAddress::UnixDatagram(path) => self.unix_datagram(&path, dialect, eol),
            ListenAddress::UnixStream(path) => self.unix_stream(&path, dialect, eol),
        }
    }

    fn udp(
        &mut self,
        address: &str,
        shared: bool,
        dialect: Dialect,
        eol: bool,
    ) -> anyhow::Result<()> {
        let mut open = || {
            let address = socket_address(address)?;
            if let Some(socket) = self.passed.take(&Place::Udp(address)) {
                let socket = self.take_over(socket)?;
                let bound = socket.local_addr()?.as_socket().unwrap_or(address);
                return Ok((socket, bound));
            }
            let domain = Domain::for_address(address);
            let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
            if address.is_ipv6() && address.ip().is_unspecified() {
                socket.set_only_v6(false)?;
            }
            socket.set_reuse_port(shared)?;
            socket.set_nonblocking(true)?;
            self.size_buffer(&socket)?;
            socket.bind(&address.into())?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(address);
            Ok::<_, io::Error>((socket, bound))
        };
        let (socket, bound) =
            open().with_context(|| format!("cannot listen on udp://{address}"))?;
        let socket = Socket::Udp(socket.into());
        self.add(format!("udp://{bound}"), socket, dialect, eol, None);
        Ok(())
    }

    fn tcp(&mut self, address: &str, dialect: Dialect, eol: bool) -> anyhow::Result<()> {
        let mut open = || {
            let address = socket_address(address)?;
            let socket = if let Some(socket) = self.passed.take(&Place::Tcp(address)) {
                socket2::Socket::from(socket)
            } else {
                let domain = Domain::for_address(address);
                let socket = socket2::Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
                socket.set_reuse_address(true)?;
                socket.bind(&address.into())?;
                socket.listen(BACKLOG)?;
                socket
            };
            socket.set_nonblocking(true)?;
            let bound = socket.local_addr()?.as_socket().unwrap_or(address);
            Ok::<_, io::Error>((std::net::TcpListener::from(socket), bound))
        };
        let (socket, bound) =
            open().with_context(|| format!("cannot listen on tcp://{address}"))?;
        let socket = Socket::Stream(Listening::Tcp(mio::net::TcpListener::from_std(socket)));
        self.add(format!("tcp://{bound}"), socket, dialect, eol, None);
        Ok(())
    }

    /// The Agent's path, or the first one below a runtime directory that works.
    fn auto_socket(&mut self, eol: bool) -> anyhow::Result<()> {
        let mut candidates = auto_paths();
        // One that was passed before one that could be made.
        candidates.sort_by_key(|path| !self.passed.has(&Place::UnixDatagram(path.clone())));
        let mut failures = Vec::new();
        for path in candidates {
            match self.unix_datagram(&path, self.config.dialect, eol) {
                Ok(()) => return Ok(()),
                Err(error) => failures.push(one_line(&error)),
            }
        }
        bail!(
            "{}; set intake.socket to a path that can be written, or to \"\"",
            failures.join("; ")
        )
    }

    fn unix_datagram(&mut self, path: &Path, dialect: Dialect, eol: bool) -> anyhow::Result<()> {
        let mut open = || {
            if let Some(socket) = self.passed.take(&Place::UnixDatagram(path.to_owned())) {
                let socket = self.take_over(socket)?;
                socket2::SockRef::from(&socket).set_passcred(true)?;
                return Ok((None, OwnedFd::from(socket)));
            }
            make_way(path, || UnixDatagram::unbound()?.connect(path))?;
            let socket = UnixDatagram::bind(path)?;
            let file = SocketFile::new(path)?;
            // Each datagram then comes with the process that sent it.
            socket2::SockRef::from(&socket).set_passcred(true)?;
            socket.set_nonblocking(true)?;
            self.size_buffer(&socket2::SockRef::from(&socket))?;
            self.set_mode(path)?;
            Ok::<_, io::Error>((Some(file), socket.into()))
        };
        let name = format!("unixgram://{}", path.display());
        let (file, socket) = open().with_context(|| format!("cannot listen on {name}"))?;
        self.add(name, Socket::UnixDatagram(socket), dialect, eol, file);
        Ok(())
    }

    fn unix_stream(&mut self, path: &Path, dialect: Dialect, eol: bool) -> anyhow::Result<()> {
        let mut open = || {
            if let Some(socket) = self.passed.take(&Place::UnixStream(path.to_owned())) {
                let socket = UnixListener::from(socket);
                socket.set_nonblocking(true)?;
                return Ok((None, socket));
            }
            make_way(path, || UnixStream::connect(path).map(drop))?;
            let socket = UnixListener::bind(path)?;
            let file = SocketFile::new(path)?;
            socket.set_nonblocking(true)?;
            self.set_mode(path)?;
            Ok::<_, io::Error>((Some(file), socket))
        };
        let name = format!("unixstream://{}", path.display());
        let (file, socket) = open().with_context(|| format!("cannot listen on {name}"))?;
        let socket = Socket::Stream(Listening::Unix(mio::net::UnixListener::from_std(socket)));
        self.add(name, socket, dialect, eol, file);
        Ok(())
    }

    /// Makes a datagram socket that was passed ready. The size of its buffer is the manager's to
    /// choose, who may exceed the system's bound, unless ours is set.
    fn take_over(&self, socket: OwnedFd) -> io::Result<socket2::Socket> {
        let socket = socket2::Socket::from(socket);
        socket.set_nonblocking(true)?;
        if self.config.receive_buffer != 0 {
            self.size_buffer(&socket)?;
        }
        Ok(socket)
    }

    fn add(
        &mut self,
        name: String,
        socket: Socket,
        dialect: Dialect,
        eol_required: bool,
        file: Option<SocketFile>,
    ) {
        tracing::info!("listening on {name}");
        let former_drops = match &socket {
            Socket::Udp(fd) | Socket::UnixDatagram(fd) => sys::buffer(fd.as_fd()),
            Socket::Stream(_) => Ok(sys::Buffer::default()),
        };
        // Where the kernel does not tell, it never will.
        let former_drops = former_drops.unwrap_or_default().drops;
        if former_drops > 0 {
            tracing::info!(
                "the kernel had dropped {former_drops} datagrams here before this start"
            );
        }
        let listener = self.telemetry.listener(name);
        self.opened.push(Opened { listener, file, socket, dialect, eol_required, former_drops });
    }

    fn size_buffer(&self, socket: &socket2::Socket) -> io::Result<()> {
        match self.config.receive_buffer {
            // The kernel gives what it allows, as a rule twice its default.
            0 => socket.set_recv_buffer_size(RECEIVE_BUFFER.max(socket.recv_buffer_size()? / 2)),
            size => socket.set_recv_buffer_size(size),
        }
    }

    fn set_mode(&self, path: &Path) -> io::Result<()> {
        let mode = u32::from_str_radix(&self.config.socket_mode, 8).map_err(|_| {
            io::Error::new(ErrorKind::InvalidInput, "intake.socket_mode is not octal")
        })?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
    }
}

fn socket_address(address: &str) -> io::Result<SocketAddr> {
    let (host, port) = host_port(address).map_err(|problem| {
        io::Error::new(ErrorKind::InvalidInput, format!("{address}: {problem}"))
    })?;
    resolve(host, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { port: 0, socket: String::new(), ..Config::default() }
    }

    fn open_all(config: &Config) -> anyhow::Result<Vec<String>> {
        let untouched = Untouched { udp: false, socket: false, status: false };
        let opened = open(config, untouched, Passed::default(), &Telemetry::default())?;
        Ok(opened.iter().map(|o| o.listener.name.clone()).collect())
    }

    #[test]
    fn a_stale_socket_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("new/dsd.socket");
        let config = Config { socket: path.display().to_string(), ..config() };

        let live = open(
            &config,
            Untouched { udp: false, socket: false, status: false },
            Passed::default(),
            &Telemetry::default(),
        );
        let mode = fs::metadata(&path).expect("socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o722);
        let error = open_all(&config).expect_err("it is in use");
        assert!(one_line(&error).contains("another process listens there"), "{error:#}");

        drop(live);
        assert!(!path.exists(), "one that was closed in order leaves no file");
        drop(UnixDatagram::bind(&path).expect("bind"));
        assert!(path.exists(), "the file stays behind a process that was killed");
        open_all(&config).expect("a stale socket is no obstacle");
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("precious");
        fs::write(&path, "data").expect("file");
        let config = Config { stream_socket: path.display().to_string(), ..config() };
        let error = open_all(&config).expect_err("a file is there");
        assert!(one_line(&error).contains("no socket"), "{error:#}");
        assert_eq!(fs::read_to_string(&path).expect("file"), "data");
    }

    #[test]
    fn a_port_in_use_stops_the_start_unless_nobody_asked_for_it() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let port = taken.local_addr().expect("address").port();
        let tcp = "tcp://127.0.0.1:0".to_owned();
        let further =
            super::super::Listener { address: tcp, dialect: Dialect::Statsd, eol_required: false };
        let config = Config { port, listeners: vec![further], ..config() };
        let error = one_line(&open_all(&config).expect_err("the port is taken"));
        assert!(error.contains(&format!("udp://127.0.0.1:{port}")), "{error}");
        assert!(error.ends_with("set intake.port (DD_DOGSTATSD_PORT)"), "{error}");

        let untouched = Untouched { udp: true, socket: true, status: true };
        let opened = open(&config, untouched, Passed::default(), &Telemetry::default())
            .expect("the others go on");
        assert_eq!(opened.len(), 1);
        assert_eq!(opened[0].dialect, Dialect::Statsd);

        let alone = Config { listeners: Vec::new(), ..config };
        let error = open(&alone, untouched, Passed::default(), &Telemetry::default())
            .err()
            .expect("nothing is left");
        assert!(error.to_string().starts_with("no listener could be opened"), "{error}");
    }

    #[test]
    fn a_failed_start_leaves_no_file() {
        let folder = tempfile::tempdir().expect("folder");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let stream_socket = folder.path().join("stream").display().to_string();
        let config = Config {
            socket: folder.path().join("dsd.socket").display().to_string(),
            stream_socket,
            tcp_port: taken.local_addr().expect("address").port(),
            ..config()
        };
        open_all(&config).expect_err("the port is taken");
        let bad_mode = Config { socket_mode: "rwx".to_owned(), tcp_port: 0, ..config };
        open_all(&bad_mode).expect_err("the mode is no number");
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0);
    }

    #[test]
    fn newlines_are_required_by_transport_or_by_listener() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name| folder.path().join(name).display().to_string();
        let further = |address: String, eol_required| super::super::Listener {
            address,
            dialect: Dialect::Datadog,
            eol_required,
        };
        let udp = || "udp://127.0.0.1:0".to_owned();
        let unix = |name| format!("unixgram://{}", path(name));
        let config = Config {
            socket: path("own"),
            stream_socket: path("own_stream"),
            eol_required: vec!["udp".to_owned(), "uds".to_owned()],
            listeners: vec![
                further(udp(), false),
                further(udp(), true),
                further(unix("a"), false),
                further(unix("b"), true),
            ],
            ..config()
        };
        let untouched = Untouched { udp: false, socket: false, status: false };
        let opened =
            open(&config, untouched, Passed::default(), &Telemetry::default()).expect("open");
        let required: Vec<_> = opened.iter().map(|one| one.eol_required).collect();
        assert_eq!(required, [true, true, false, true, false, true]);
    }

    #[test]
    fn a_name_with_both_families_is_taken_as_ipv4() {
        let pick = |addresses: &[&str]| {
            preferred(addresses.iter().map(|a| a.parse().expect("an address")))
                .map(|address: SocketAddr| address.to_string())
        };
        assert_eq!(
            pick(&["[::1]:1", "127.0.0.1:1", "127.0.0.2:1"]).as_deref(),
            Some("127.0.0.1:1")
        );
        assert_eq!(pick(&["[::1]:1", "[::2]:1"]).as_deref(), Some("[::1]:1"));
        assert_eq!(pick(&[]), None);
    }

    #[test]
    fn several_sockets_share_a_port_on_both_families() {
        let any = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        let port = any.local_addr().expect("address").port();
        drop(any);
        let config = Config { port, udp_sockets: 2, ..config() };
        assert_eq!(open_all(&config).expect("open").len(), 2);
        let v6 = Config { bind_host: "::1".to_owned(), ..config };
        if Path::new("/proc/net/if_inet6").exists() {
            assert!(open_all(&v6).expect("open")[0].starts_with("udp://[::1]:"));
        }
    }
}
