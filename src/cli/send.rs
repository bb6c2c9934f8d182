//! `tallyd send`: one line to a server, for scripts and for trying it out.

use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::intake::address::ListenAddress;

#[derive(Debug, Args)]
pub struct Send {
    /// Where to: udp://HOST:PORT or unixgram:///PATH.
    #[arg(long, global = true, default_value = "udp://127.0.0.1:8125", value_name = "ADDRESS")]
    to: String,
    #[command(subcommand)]
    what: What,
}

/// Not an option of `send` itself: given before and after the subcommand, one of the two would be
/// lost.
#[derive(Debug, Args)]
struct Tags {
    /// A tag, such as env:dev; may be repeated.
    #[arg(short, long = "tag", value_name = "TAG")]
    tags: Vec<String>,
}

/// One number or more of one series.
#[derive(Debug, Args)]
struct Numbers {
    name: String,
    /// Several values go into one line.
    #[arg(required = true, allow_negative_numbers = true)]
    values: Vec<f64>,
    /// The sample rate: each value stands for 1/RATE of them.
    #[arg(long)]
    rate: Option<f64>,
    /// Unix seconds: the value is a finished point of that time.
    #[arg(long)]
    timestamp: Option<i64>,
    #[command(flatten)]
    tags: Tags,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Add to a counter.
    Count(Numbers),
    /// Set a gauge.
    Gauge(Numbers),
    /// Add to a histogram.
    Histogram(Numbers),
    /// Add to a distribution.
    Distribution(Numbers),
    /// Add to a timer, in milliseconds.
    Timing(Numbers),
    /// Add a member to a set.
    Set {
        name: String,
        member: String,
        #[command(flatten)]
        tags: Tags,
    },
    /// Send an event.
    Event {
        title: String,
        text: String,
        /// error, warning, info or success.
        #[arg(long)]
        alert_type: Option<String>,
        /// normal or low.
        #[arg(long)]
        priority: Option<String>,
        /// Events with one key are shown together.
        #[arg(long)]
        aggregation_key: Option<String>,
        #[arg(long)]
        source_type: Option<String>,
        #[arg(long)]
        host: Option<String>,
        #[command(flatten)]
        tags: Tags,
    },
    /// Send a service check.
    Check {
        name: String,
        /// 0 ok, 1 warning, 2 critical, 3 unknown.
        #[arg(value_parser = clap::value_parser!(u8).range(0..=3))]
        status: u8,
        #[arg(long)]
        message: Option<String>,
        #[arg(long)]
        host: Option<String>,
        #[command(flatten)]
        tags: Tags,
    },
    /// Send this text as it is.
    Raw { text: String },
}

impl Send {
    /// Sends it. Returns the exit code.
    pub fn run(&self) -> anyhow::Result<u8> {
        let line = self.what.line();
        transmit(&self.to, line.as_bytes())
            .with_context(|| format!("cannot send to {}", self.to))?;
        Ok(0)
    }
}

fn transmit(to: &str, line: &[u8]) -> anyhow::Result<()> {
    match to.parse().map_err(anyhow::Error::msg)? {
        ListenAddress::Udp(address) => {
            let to = address.to_socket_addrs()?.next().context("the name has no address")?;
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            // Connected, so that a second send would hear that nobody listens there.
            socket.connect(to)?;
            socket.send(line)?;
            match socket.send(b"") {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    bail!("nobody listens there")
                }
                _ => Ok(()),
            }
        }
        ListenAddress::UnixDatagram(path) => send_to_unix(&path, line),
        ListenAddress::Tcp(_) | ListenAddress::UnixStream(_) => {
            bail!("expected udp://HOST:PORT or unixgram:///PATH")
        }
    }
}

fn send_to_unix(path: &Path, line: &[u8]) -> anyhow::Result<()> {
    UnixDatagram::unbound()?.send_to(line, path)?;
    Ok(())
}

impl What {
    fn line(&self) -> String {
        match self {
            Self::Count(numbers) => numbers.line("c"),
            Self::Gauge(numbers) => numbers.line("g"),
            Self::Histogram(numbers) => numbers.line("h"),
            Self::Distribution(numbers) => numbers.line("d"),
            Self::Timing(numbers) => numbers.line("ms"),
            Self::Set { name, member, tags } => format!("{name}:{member}|s{}", tags.field()),
            Self::Event {
                title,
                text,
                alert_type,
                priority,
                aggregation_key,
                source_type,
                host,
                tags,
            } => {
                let (title, text) = (title.replace('\n', "\\n"), text.replace('\n', "\\n"));
                let fields = [
                    field("h:", host.as_ref()),
                    field("k:", aggregation_key.as_ref()),
                    field("p:", priority.as_ref()),
                    field("s:", source_type.as_ref()),
                    field("t:", alert_type.as_ref()),
                    tags.field(),
                ];
                format!("_e{{{},{}}}:{title}|{text}{}", title.len(), text.len(), fields.concat())
            }
            Self::Check { name, status, message, host, tags } => {
                let fields =
                    [field("h:", host.as_ref()), tags.field(), field("m:", message.as_ref())];
                format!("_sc|{name}|{status}{}", fields.concat())
            }
            Self::Raw { text } => text.clone(),
        }
    }
}

impl Tags {
    fn field(&self) -> String {
        if self.tags.is_empty() { String::new() } else { format!("|#{}", self.tags.join(",")) }
    }
}

impl Numbers {
    fn line(&self, kind: &str) -> String {
        let values: Vec<String> = self.values.iter().map(f64::to_string).collect();
        format!(
            "{}:{}|{kind}{}{}{}",
            self.name,
            values.join(":"),
            field("@", self.rate.as_ref()),
            self.tags.field(),
            field("T", self.timestamp.as_ref()),
        )
    }
}

fn field(prefix: &str, value: Option<&impl ToString>) -> String {
    value.map_or_else(String::new, |value| format!("|{prefix}{}", value.to_string()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::parse;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        send: Send,
    }

    fn line(arguments: &[&str]) -> String {
        let command = Command::try_parse_from([&["send"], arguments].concat()).expect("arguments");
        command.send.what.line()
    }

    #[test]
    fn every_kind_becomes_a_line_that_is_understood() {
        for (arguments, expected) in [
            (&["gauge", "queue.depth", "12", "-t", "env:dev"][..], "queue.depth:12|g|#env:dev"),
            (&["count", "a", "1", "--rate", "0.5", "-t", "x", "-t", "y"], "a:1|c|@0.5|#x,y"),
            (&["gauge", "a", "-3.25", "--timestamp", "1700000000"], "a:-3.25|g|T1700000000"),
            (&["distribution", "a", "1", "2.5"], "a:1:2.5|d"),
            (&["histogram", "a", "1"], "a:1|h"),
            (&["timing", "a", "320"], "a:320|ms"),
            (&["set", "a", "alice"], "a:alice|s"),
            (
                &["event", "é", "a\nb", "--alert-type", "error", "-t", "k:v"],
                "_e{2,4}:é|a\\nb|t:error|#k:v",
            ),
            (&["check", "db", "2", "--message", "down", "-t", "x"], "_sc|db|2|#x|m:down"),
            (&["raw", "a:1|c|#z"], "a:1|c|#z"),
        ] {
            let line = line(arguments);
            assert_eq!(line, expected);
            assert!(parse::line(line.as_bytes(), parse::Options::default()).is_ok(), "{line}");
        }
    }

    #[test]
    fn a_tag_that_would_be_lost_is_an_error() {
        for arguments in [
            &["send", "-t", "x", "gauge", "a", "1", "-t", "y"][..],
            &["send", "raw", "a:1|c", "-t", "x"],
        ] {
            assert!(Command::try_parse_from(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn nobody_there_is_an_error() {
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("address");
        let error = transmit(&format!("udp://{free}"), b"a:1|c").expect_err("nobody listens");
        assert_eq!(error.to_string(), "nobody listens there");
        assert!(transmit("unixgram:///no/such/socket", b"a:1|c").is_err());
        assert!(transmit("tcp://127.0.0.1:1", b"a:1|c").is_err());
    }
}
