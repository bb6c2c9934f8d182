//! `tallyd health`: for health checks of containers, which have no other client at hand.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::{self, Sources};

const TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of the answer that are looked at.
const ANSWER_MAX: u64 = 4096;

/// Asks `GET /health`. Returns the exit code, or an error that says what went wrong.
pub fn run(sources: &Sources, address: Option<String>) -> anyhow::Result<u8> {
    let address = match address {
        Some(address) => address,
        None => match config::load(sources) {
            Ok(loaded) => loaded.config.status.listen,
            Err(error) => {
                eprintln!("error: {error}");
                return Ok(config::EXIT_CODE);
            }
        },
    };
    if address.is_empty() {
        bail!("status.listen is empty: there is no server to ask");
    }
    // A server that listens everywhere is asked on the loopback.
    let address = address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:");
    let answer =
        ask(&address).with_context(|| format!("no answer from http://{address}/health"))?;
    if !answer.starts_with("HTTP/1.1 200") && !answer.starts_with("HTTP/1.0 200") {
        bail!("unhealthy: {}", answer.lines().next().unwrap_or("an empty answer").escape_debug());
    }
    println!("ok");
    Ok(0)
}

fn ask(address: &str) -> anyhow::Result<String> {
    let to = address.to_socket_addrs()?.next().context("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
