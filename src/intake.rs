//! Sockets and the threads that read them.
//!
//! A datagram socket has a thread of its own, so the samples of one client keep their order; all
//! stream listeners and their connections share one; standard input has one. Each owns its
//! [`Reader`], which takes what was received to the shards. There is no queue behind the
//! kernel's.

mod activation;
pub mod address;
mod datagrams;
mod listen;
mod pace;
mod socket_file;
mod stdin;
mod streams;

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context as _;
use mio::{Poll, Token, Waker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::origin;
use crate::parse;
use crate::reader::{Reader, Shared};
use crate::sample::Dialect;
use crate::sys::Senders;

pub use activation::Passed;
pub use listen::{Listens, Opened, Socket, listeners, open, receive_buffer};
pub use socket_file::SocketFile;

/// Where samples come in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// UDP port; 0 closes UDP.
    pub port: u16,
    /// Address that UDP and TCP listen on while non_local_traffic is off: an IPv4 or IPv6 address
    /// or a host name.
    pub bind_host: String,
    /// Listen on all addresses, not only on bind_host.
    pub non_local_traffic: bool,
    /// UDP sockets that share the port, each with a reader thread of its own.
    pub udp_sockets: usize,
    /// Path of the Unix datagram socket. `auto` takes /var/run/datadog/dsd.socket where it can be
    /// created, else tallyd/dsd.socket under the runtime directory; empty closes it.
    pub socket: String,
    /// Path of the Unix stream socket (u32 little-endian frames, or newline text); empty closes it.
    pub stream_socket: String,
    /// Permissions of the Unix sockets, octal.
    pub socket_mode: String,
    /// TCP port for newline text; 0 closes it.
    pub tcp_port: u16,
    /// Read newline text from standard input, and stop when it ends.
    pub stdin: bool,
    /// How lines are read on the listeners above: `datadog` or `statsd`.
    pub dialect: Dialect,
    /// More listeners, each with its own dialect.
    pub listeners: Vec<Listener>,
    /// Transports whose last line is dropped unless a newline ends it: `udp`, `uds`. The listeners
    /// of `listeners` have a setting of their own.
    pub eol_required: Vec<String>,
    /// Bytes of a datagram or frame that are read; what is longer is cut and counted.
    pub buffer_size: usize,
    /// Size asked for the kernel's receive buffer of each socket, in bytes; 0 asks for 4 MiB. The
    /// kernel gives no more than net.core.rmem_max allows.
    pub receive_buffer: usize,
    /// Simultaneous stream connections per listener; one more is closed and counted.
    pub connections_max: usize,
    /// Read the client's origin fields `c:`, `e:` and `card:`, which choose the tags of `origin`.
    pub origin_fields: bool,
    /// Treat samples with a timestamp as finished points; otherwise the timestamp is ignored.
    pub timestamps: bool,
    /// Host that gets a raw copy of every UDP and Unix datagram; needs forward_port.
    pub forward_host: String,
    /// Port of that host.
    pub forward_port: u16,
    /// Log malformed lines, once a minute per reason.
    pub log_rejects: bool,
}

/// One further listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// `udp://HOST:PORT`, `tcp://HOST:PORT`, `unixgram:///PATH` or `unixstream:///PATH`.
    pub address: String,
    /// How its lines are read: `datadog` or `statsd`.
    #[serde(default)]
    pub dialect: Dialect,
    /// Drop a last line that no newline ends.
    #[serde(default)]
    pub eol_required: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 8125,
            bind_host: "127.0.0.1".to_owned(),
            non_local_traffic: false,
            udp_sockets: 1,
            socket: "auto".to_owned(),
            stream_socket: String::new(),
            socket_mode: "0722".to_owned(),
            tcp_port: 0,
            stdin: false,
            dialect: Dialect::Datadog,
            listeners: Vec::new(),
            eol_required: Vec::new(),
            buffer_size: 8192,
            receive_buffer: 0,
            connections_max: 1024,
            origin_fields: true,
            timestamps: true,
            forward_host: String::new(),
            forward_port: 0,
            log_rejects: true,
        }
    }
}

/// Which settings nobody has touched: a default listener that cannot open is a warning, one that
/// was asked for stops the start.
#[derive(Clone, Copy, Debug)]
pub struct Untouched {
    /// `intake.port` and its neighbours.
    pub udp: bool,
    /// `intake.socket`.
    pub socket: bool,
    /// `status.listen`.
    pub status: bool,
}

impl Config {
    /// How the lines of a listener of this dialect are read.
    pub const fn options(&self, dialect: Dialect) -> parse::Options {
        parse::Options { dialect, origin_fields: self.origin_fields, timestamps: self.timestamps }
    }
}

/// The token of the waker in every thread's poll.
const WAKE: Token = Token(usize::MAX);

/// The running threads.
pub struct Intake {
    stopping: Arc<AtomicBool>,
    wakers: Vec<Waker>,
    threads: Vec<JoinHandle<()>>,
    files: Vec<SocketFile>,
}

impl Intake {
    /// Starts reading what was opened. `stdin_ended` is called when standard input, if it is read,
    /// has come to its end.
    ///
    /// # Errors
    /// When the system gives no further thread or poll.
    pub fn start(
        opened: Vec<Opened>,
        config: &Config,
        shared: &Shared,
        stdin_ended: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<Self> {
        let mut intake = Self {
            stopping: Arc::default(),
            wakers: Vec::new(),
            threads: Vec::new(),
            files: Vec::new(),
        };
        let mut streams = Vec::new();
        for (number, one) in opened.into_iter().enumerate() {
            let options = config.options(one.dialect);
            let reader = Reader::new(shared.clone(), one.listener, options, one.eol_required);
            let reader = reader.patient();
            intake.files.extend(one.file);
            // The queue of a Unix socket is short, and its senders drop when it is full.
            let pace = matches!(one.socket, Socket::Udp(_)).then(pace::Pace::default);
            match one.socket {
                Socket::Udp(socket) | Socket::UnixDatagram(socket) => {
                    let forward = forward_socket(config)?;
                    let origins = shared.origins.config();
                    let senders = senders(&socket, origins);
                    let receiver = reader.receiver(config.buffer_size, senders);
                    let mut run = datagrams::Datagrams::new(
                        socket,
                        reader,
                        forward,
                        pace,
                        receiver,
                        one.former_drops,
                    );
                    intake.spawn(&format!("intake-{number}"), move |poll, stopping| {
                        run.run(poll, stopping)
                    })?;
                }
                Socket::Stream(listener) => streams.push((listener, reader)),
            }
        }
        if !streams.is_empty() {
            let mut run =
                streams::Streams::new(streams, config.buffer_size, config.connections_max);
            intake.spawn("intake-streams", move |poll, stopping| run.run(poll, stopping))?;
        }
        if config.stdin {
            let listener = shared.telemetry.listener("stdin".to_owned());
            let options = config.options(config.dialect);
            let reader = Reader::new(shared.clone(), listener, options, false);
            stdin::start(reader, config.buffer_size, stdin_ended)
                .context("cannot start the thread that reads standard input")?;
        }
        Ok(intake)
    }

    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce(Poll, &AtomicBool) -> std::io::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let poll = Poll::new().context("cannot make an epoll instance")?;
        self.wakers.push(Waker::new(poll.registry(), WAKE).context("cannot make an eventfd")?);
        let (stopping, label) = (Arc::clone(&self.stopping), name.to_owned());
        let body = move || {
            if let Err(error) = run(poll, &stopping) {
                tracing::error!("thread {label} stopped reading: {error}");
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(body);
        self.threads.push(thread.with_context(|| format!("cannot start the thread {name}"))?);
        Ok(())
    }

    /// Removes the sockets' files, takes what still waits in the sockets, and closes them.
    pub fn stop(self) {
        // The threads still hold the sockets; a successor may have the paths from here on.
        drop(self.files);
        self.stopping.store(true, Ordering::Release);
        for waker in &self.wakers {
            if let Err(error) = waker.wake() {
                tracing::error!("cannot wake a reader: {error}");
            }
        }
        for thread in self.threads {
            // A reader that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// What is to be asked of the kernel: on a Unix socket always for the process, on a UDP socket for
/// the address if it may be that of a container. On the loopback all have one address, which is not
/// worth the 70 ns a datagram (an eighth of what receiving it costs).
fn senders(socket: &OwnedFd, origins: &origin::Config) -> Senders {
    match socket2::SockRef::from(socket).local_addr().map(|bound| bound.as_socket()) {
        Ok(Some(bound)) if origins.addresses && (origins.loopback || !bound.ip().is_loopback()) => {
            Senders::addresses()
        }
        Ok(Some(_)) | Err(_) => Senders::Unasked,
        Ok(None) => Senders::processes(),
    }
}

/// The socket for raw copies, if they are asked for.
fn forward_socket(config: &Config) -> anyhow::Result<Option<UdpSocket>> {
    if config.forward_host.is_empty() || config.forward_port == 0 {
        return Ok(None);
    }
    let to = (config.forward_host.as_str(), config.forward_port);
    let connect = || {
        let address = listen::resolve(to.0, to.1)?;
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_nonblocking(true)?;
        Ok::<_, std::io::Error>(socket)
    };
    let place = || format!("intake.forward_host: cannot send to {}:{}", to.0, to.1);
    connect().with_context(place).map(Some)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::rules::{self, Rules};
    use crate::sample::Reject;
    use crate::shard::{self, Shards};
    use crate::telemetry::Telemetry;
    use crate::time::Time;
    use crate::value::{self, Plan};

    /// An intake of Unix stream sockets in a folder of its own. Connections and what is written to
    /// them are there at once, so what was done before the stop is taken in by it.
    struct Streams {
        folder: TempDir,
        telemetry: Arc<Telemetry>,
        intake: Intake,
    }

    impl Streams {
        fn start(sockets: &[&str], connections_max: usize) -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let listener = |name: &&str| Listener {
                address: format!("unixstream://{}", folder.path().join(name).display()),
                dialect: Dialect::Datadog,
                eol_required: false,
            };
            let config = Config {
                port: 0,
                socket: String::new(),
                connections_max,
                listeners: sockets.iter().map(listener).collect(),
                ..Config::default()
            };
            let telemetry = Arc::new(Telemetry::default());
            let shards = Shards::new(
                shard::Config::default(),
                Plan::from_config(&value::Config::default()),
                10,
                String::new(),
                Arc::clone(&telemetry),
                Time::from_seconds(0),
            );
            let shared = Shared {
                rules: Arc::new(Rules::new(&rules::Config::default(), "").expect("rules")),
                shards: Arc::new(shards),
                origins: Arc::default(),
                telemetry: Arc::clone(&telemetry),
                distribution_prefix: None,
                log_rejects: false,
                line_max: 8192,
                spellings_max: 1000,
                journal: None,
            };
            let untouched = Untouched { udp: false, socket: false, status: false };
            let opened = open(&config, untouched, Passed::default(), &telemetry).expect("open");
            let intake = Intake::start(opened, &config, &shared, || {}).expect("start");
            Self { folder, telemetry, intake }
        }

        fn path(&self, socket: &str) -> PathBuf {
            self.folder.path().join(socket)
        }

        fn connect(&self, socket: &str, bytes: &[u8]) -> UnixStream {
            let mut stream = UnixStream::connect(self.path(socket)).expect("connect");
            // One that is refused may be closed already.
            let _ = stream.write_all(bytes);
            stream
        }

        /// Stops, and returns a figure of every listener.
        fn stop(self, figure: impl Fn(&crate::telemetry::Listener) -> u64) -> Vec<u64> {
            self.intake.stop();
            self.telemetry.listeners().iter().map(|listener| figure(listener)).collect()
        }
    }

    #[test]
    fn connections_are_bounded_per_listener() {
        let streams = Streams::start(&["a", "b"], 2);
        let _open = ["a", "a", "a", "b"].map(|socket| streams.connect(socket, b"m:1|c\n"));
        assert_eq!(
            streams.stop(|l| l.connections.get() * 10 + l.connections_refused.get()),
            [21, 10]
        );
    }

    #[test]
    fn what_is_unfinished_at_the_stop_is_counted() {
        let streams = Streams::start(&["text", "half a frame", "frames"], 10);
        let _open = [
            streams.connect("text", b"m:1|c\nm:2|c\nm:3|c"),
            streams.connect("half a frame", b"\x0a\0\0\0m:1|c"),
            streams.connect("frames", b"\x05\0\0\0m:1|c"),
        ];
        let unterminated =
            |l: &crate::telemetry::Listener| l.rejects.of(Reject::Unterminated).get();
        assert_eq!(streams.stop(|l| l.samples.get() * 10 + unterminated(l)), [21, 1, 10]);
    }

    #[test]
    fn the_stop_leaves_a_successors_socket_alone() {
        let streams = Streams::start(&["a", "b"], 10);
        let (own, successors) = (streams.path("a"), streams.path("b"));
        std::fs::remove_file(&successors).expect("the successor removes it");
        let _socket = std::os::unix::net::UnixListener::bind(&successors).expect("bind");
        let Streams { folder: _folder, intake, .. } = streams;
        intake.stop();
        assert!(successors.exists() && !own.exists());
    }
}
