//! `tallyd health`: for health checks of containers, which have no other client at hand.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use super::client::on_loopback;
use crate::config::{self, Sources};
use crate::status::Config;

const TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of the answer that are looked at.
const ANSWER_MAX: u64 = 4096;

/// Asks `GET /health`. Returns the exit code, or an error that says what went wrong.
pub fn run(sources: &Sources, address: Option<String>) -> anyhow::Result<u8> {
    let address = match address {
        Some(address) => address,
        None => match config::load(sources) {
            Ok(loaded) => configured(&loaded.config.status),
            Err(error) => {
                eprintln!("error: {error}");
                return Ok(config::EXIT_CODE);
            }
        },
    };
    if address.is_empty() {
        bail!("status.listen and status.health_listen are empty: there is no server to ask");
    }
    let address = on_loopback(&address);
    let answer =
        ask(&address).with_context(|| format!("no answer from http://{address}/health"))?;
    if !answer.starts_with("HTTP/1.1 200") && !answer.starts_with("HTTP/1.0 200") {
        bail!("unhealthy: {}", answer.lines().next().unwrap_or("an empty answer").escape_debug());
    }
    println!("ok");
    Ok(0)
}

/// The server that answers for the process, if there is any.
fn configured(status: &Config) -> String {
    let Config { listen, health_listen, .. } = status;
    if listen.is_empty() { health_listen.clone() } else { listen.clone() }
}

fn ask(address: &str) -> anyhow::Result<String> {
    let to = address.to_socket_addrs()?.next().context("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(|error| match error.kind() {
        // What a read time-out is called by the system says nothing to people.
        ErrorKind::WouldBlock => anyhow!("not within {} s", TIMEOUT.as_secs()),
        _ => error.into(),
    })?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_server_is_asked() {
        for (listen, health_listen, expected) in [
            ("127.0.0.1:8127", "", "127.0.0.1:8127"),
            ("0.0.0.0:8127", "0.0.0.0:5555", "127.0.0.1:8127"),
            ("", "0.0.0.0:5555", "127.0.0.1:5555"),
            ("", "[::]:5555", "[::1]:5555"),
            ("10.0.0.0:8127", "", "10.0.0.0:8127"),
            ("", "", ""),
        ] {
            let config = Config {
                listen: listen.to_owned(),
                health_listen: health_listen.to_owned(),
                ..Config::default()
            };
            assert_eq!(on_loopback(&configured(&config)), expected);
        }
    }
}
