//! Sockets and the threads that read them.
//!
//! A datagram socket has a thread of its own, so the samples of one client keep their order; all
//! stream listeners and their connections share one; standard input has one. Each owns its
//! [`Reader`], which takes what was received to the shards. There is no queue behind the
//! kernel's.

pub mod address;
mod datagrams;
mod listen;
mod stdin;
mod streams;

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context as _;
use mio::{Poll, Token, Waker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::parse;
use crate::reader::{Reader, Shared};
use crate::sample::Dialect;

pub use listen::{Opened, Socket, open};

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
    /// Transports whose last line is dropped unless a newline ends it: `udp`, `uds`.
    pub eol_required: Vec<String>,
    /// Bytes of a datagram or frame that are read; what is longer is cut and counted.
    pub buffer_size: usize,
    /// Size asked for the kernel's receive buffer of each socket, in bytes; 0 leaves the system's.
    pub receive_buffer: usize,
    /// Simultaneous stream connections per listener; one more is closed and counted.
    pub connections_max: usize,
    /// Read the client's origin fields `c:`, `e:` and `card:`. Nothing comes of them in this
    /// version: tags by origin are to come.
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
            origin_fields: false,
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
    /// Socket files to remove at the end.
    paths: Vec<PathBuf>,
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
            paths: Vec::new(),
        };
        let mut streams = Vec::new();
        for (number, one) in opened.into_iter().enumerate() {
            let options = config.options(one.dialect);
            let reader = Reader::new(shared.clone(), one.listener, options, one.eol_required);
            intake.paths.extend(one.path);
            match one.socket {
                Socket::Datagram(socket) => {
                    let forward = forward_socket(config)?;
                    let size = config.buffer_size;
                    let mut run = datagrams::Datagrams::new(socket, reader, forward, size);
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

    /// Takes what still waits in the sockets, then closes them and removes their files.
    pub fn stop(self) {
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
        for path in self.paths {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!("cannot remove the socket {}: {error}", path.display());
            }
        }
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
