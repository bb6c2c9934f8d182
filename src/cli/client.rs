//! Asks a running tallyd: the pages of `status.listen`.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use serde_json::Value as Json;

use crate::config::{self, Sources};

/// How long an answer may take to begin, or to go on.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Longest answer that is read whole.
const ANSWER_MAX: u64 = 256 << 20;

/// Which server is asked.
#[derive(Clone, Debug, Args)]
pub struct Asked {
    /// Address of the server's pages; the configured one when left out.
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
    /// Its status.token, when the server is another machine's; the configured one when left out.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
}

/// A server to ask.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    token: String,
}

impl Asked {
    /// # Errors
    /// When the configuration is needed and cannot be read, or has no server.
    pub fn client(&self, sources: &Sources) -> anyhow::Result<Client> {
        if let (Some(address), Some(token)) = (&self.address, &self.token) {
            return Ok(Client { address: address.clone(), token: token.clone() });
        }
        let loaded = match (config::load(sources), &self.address) {
            (Ok(loaded), _) => loaded.config.status,
            // An address alone is enough.
            (Err(_), Some(_)) => crate::status::Config::default(),
            (Err(error), None) => return Err(anyhow!(error.to_string())),
        };
        let address = self.address.clone().unwrap_or_else(|| on_loopback(&loaded.listen));
        if address.is_empty() {
            bail!("status.listen is empty: there is no server to ask");
        }
        Ok(Client { address, token: self.token.clone().unwrap_or(loaded.token) })
    }
}

impl Client {
    /// # Errors
    /// When there is no answer, or it is not JSON.
    pub fn json(&self, path: &str) -> anyhow::Result<Json> {
        let mut answer = String::new();
        self.body(path)?.take(ANSWER_MAX).read_to_string(&mut answer).map_err(said)?;
        serde_json::from_str(&answer).with_context(|| format!("{path}: not the JSON expected"))
    }

    /// The body of an answer, read as it comes.
    ///
    /// # Errors
    /// When there is no answer, or it is a refusal.
    pub fn body(&self, path: &str) -> anyhow::Result<impl BufRead + use<>> {
        let place = format!("http://{}{path}", self.address);
        let to = self.address.to_socket_addrs().with_context(|| place.clone())?.next();
        let to = to.with_context(|| format!("{place}: the name has no address"))?;
        let no_answer = || format!("no answer from {place}; is tallyd running there?");
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT).with_context(no_answer)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        // HTTP/1.0: the body ends with the connection.
        let Self { address, token } = self;
        let token = if token.is_empty() {
            String::new()
        } else {
            format!("Authorization: Bearer {token}\r\n")
        };
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n{token}\r\n")?;
        let mut answer = BufReader::new(stream);
        let mut line = String::new();
        answer.read_line(&mut line).map_err(said).with_context(no_answer)?;
        let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
        while line.trim_end() != "" {
            line.clear();
            if answer.read_line(&mut line).map_err(said)? == 0 {
                bail!("{place}: an answer without an end");
            }
        }
        if status != "200" {
            let mut problem = String::new();
            answer.take(4096).read_to_string(&mut problem).map_err(said)?;
            bail!("{place}: {status}: {}", problem.trim().escape_debug());
        }
        Ok(answer)
    }
}

/// What a read time-out is called by the system says nothing to people.
pub fn said(error: std::io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::WouldBlock => anyhow!("not within {} s", TIMEOUT.as_secs()),
        _ => error.into(),
    }
}

/// A server that listens everywhere is asked on the loopback.
pub fn on_loopback(address: &str) -> String {
    match address.rsplit_once(':') {
        Some(("0.0.0.0", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => address.to_owned(),
    }
}

/// A text as it stands in the query of an address.
pub fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let quote = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(quote).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_quoted() {
        assert_eq!(quoted("a.b_c~d-1"), "a.b_c~d-1");
        assert_eq!(quoted("a b&c=#é"), "a%20b%26c%3D%23%C3%A9");
    }

    #[test]
    fn a_server_that_listens_everywhere_is_asked_here() {
        for (address, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("h:1", "h:1"),
            ("127.0.0.1:8127", "127.0.0.1:8127"),
        ] {
            assert_eq!(on_loopback(address), expected);
        }
    }
}
