//! `tallyd capture` and `tallyd replay`: traffic in the Agent's capture file.

use std::fs::File;
use std::io::{BufRead, BufWriter, Write};
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;

use super::client::{Asked, said};
use crate::capture::{self, Record};
use crate::config::Sources;
use crate::intake::address::ListenAddress;

/// Record what a running server receives, in the Agent's capture format.
#[derive(Debug, Args)]
pub struct Capture {
    /// Where to; it must not be there yet.
    file: PathBuf,
    /// How long, in seconds.
    #[arg(short, long, default_value_t = 60, value_name = "SECONDS")]
    duration: u64,
    /// Compress the file with zstd.
    #[arg(short = 'z', long)]
    compress: bool,
    #[command(flatten)]
    asked: Asked,
}

/// Send what was captured to a server, in its original time or faster.
#[derive(Debug, Args)]
pub struct Replay {
    /// A capture by tallyd or the Agent.
    file: PathBuf,
    /// Where to: udp://HOST:PORT or unixgram:///PATH.
    #[arg(long, default_value = "udp://127.0.0.1:8125", value_name = "ADDRESS")]
    to: String,
    /// So many times the original speed; 0 waits for nothing.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// How many times; 0 goes on until it is ended.
    #[arg(short, long, default_value_t = 1)]
    loops: u64,
}

impl Capture {
    pub fn run(&self, sources: &Sources) -> anyhow::Result<u8> {
        let client = self.asked.client(sources)?;
        let mut body = client.body(&format!("/api/capture?seconds={}", self.duration))?;
        let place = || self.file.display().to_string();
        let file = File::create_new(&self.file).with_context(place)?;
        let written = if self.compress {
            let mut file = zstd::Encoder::new(BufWriter::new(file), 3)?;
            let written = copy(&mut body, &mut file).with_context(place)?;
            file.finish()?.flush().with_context(place)?;
            written
        } else {
            let mut file = BufWriter::new(file);
            let written = copy(&mut body, &mut file).with_context(place)?;
            file.flush().with_context(place)?;
            written
        };
        let records = read(&self.file)?.len();
        println!("{records} datagrams, {written} bytes in {}", self.file.display());
        Ok(0)
    }
}

fn copy(from: &mut impl BufRead, to: &mut impl Write) -> anyhow::Result<u64> {
    let mut written = 0;
    loop {
        let bytes = from.fill_buf().map_err(said)?;
        if bytes.is_empty() {
            return Ok(written);
        }
        to.write_all(bytes)?;
        let count = bytes.len();
        from.consume(count);
        written += count as u64;
    }
}

/// The records of a file.
///
/// # Errors
/// With the file's name.
pub fn read(path: &Path) -> anyhow::Result<Vec<Record>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    capture::read(file).with_context(|| path.display().to_string())
}

impl Replay {
    pub fn run(&self) -> anyhow::Result<u8> {
        if !(self.speed >= 0.0 && self.speed.is_finite()) {
            bail!("--speed {}: expected 0 or more", self.speed);
        }
        let records = read(&self.file)?;
        let Some(first) = records.first() else {
            bail!("{}: there is nothing in it", self.file.display())
        };
        let to = Target::open(&self.to).with_context(|| format!("cannot send to {}", self.to))?;
        let mut sent = 0u64;
        for _ in 0..if self.loops == 0 { u64::MAX } else { self.loops } {
            let begun = Instant::now();
            for record in &records {
                if self.speed > 0.0 {
                    let after = record.time.saturating_sub(first.time).max(0) as f64 / 1e9;
                    let due = begun + Duration::try_from_secs_f64(after / self.speed)?;
                    // Nobody unparks this thread but by chance; then it looks again.
                    while let Some(left) = due.checked_duration_since(Instant::now()) {
                        std::thread::park_timeout(left);
                    }
                }
                to.send(&record.payload).with_context(|| format!("after {sent} datagrams"))?;
                sent += 1;
            }
        }
        println!("{sent} datagrams sent");
        Ok(0)
    }
}

enum Target {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Target {
    fn open(to: &str) -> anyhow::Result<Self> {
        match to.parse().map_err(anyhow::Error::msg)? {
            ListenAddress::Udp(address) => {
                let to = address.to_socket_addrs()?.next().context("the name has no address")?;
                let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                socket.connect(to)?;
                Ok(Self::Udp(socket))
            }
            ListenAddress::UnixDatagram(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Ok(Self::Unix(socket))
            }
            ListenAddress::Tcp(_) | ListenAddress::UnixStream(_) => {
                bail!("expected udp://HOST:PORT or unixgram:///PATH")
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Udp(socket) => socket.send(bytes),
            Self::Unix(socket) => socket.send(bytes),
        }
    }
}
