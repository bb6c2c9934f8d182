//! Sockets and the threads that read them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sample::Dialect;

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
    /// Heed the client's origin fields `c:`, `e:` and `card:`.
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
