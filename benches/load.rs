//! The load program: sends prebuilt datagrams to the release binary and prints what a million
//! metrics cost it, beside what they cost a loop that only receives them. See RESULTS.md.
//!
//! The server has a processor of its own, and so has this program.

mod lines;
mod rig;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use tallyd::intake::{self, Passed, Untouched};
use tallyd::reader::Reader;
use tallyd::sys::{self, BATCH};
use tallyd::telemetry::Telemetry;
use tallyd::time::Time;
use tempfile::TempDir;

use lines::Datagram;
use rig::{Fed, Parts};

const LOAD_PROCESSOR: usize = 0;
const SERVER_PROCESSOR: usize = 1;

/// Until when whatever is waited for must have happened.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long a server that takes nothing holds up a sender.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Within this time every datagram must be counted somewhere: tallyd reads the socket's drops once
/// a second.
const ACCOUNT: Duration = Duration::from_secs(5);

/// Seconds of a bucket: tallyd's default.
const INTERVAL: u64 = 10;
/// The bare loop has no buckets, so it needs no more seconds than these.
const BARE_SECONDS: u64 = 3;
const IDLE_SECONDS: u64 = 10;
const STARTS: usize = 9;

/// Lines that are built for a case, so that a series is seldom sent the same value.
const LINES: u64 = 1_000_000;
const ROUNDS_MIN: u64 = 2;
/// Lines a second with which a server on UDP gets to know the series.
const WARM_UP_RATE: u64 = 50_000;
/// A paced sender that was held up for longer than this does not make up for it: a burst is not
/// the rate that was asked for.
const HELD_UP: Duration = Duration::from_millis(2);

#[derive(Parser)]
struct Arguments {
    /// Run this case alone; may be given several times.
    #[arg(long = "case", value_name = "NAME")]
    cases: Vec<String>,
    /// Seconds of each load. Twelve hold exactly one flush.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// Be the loop that only receives.
    #[arg(long, hide = true, value_name = "ADDRESS")]
    bare: Option<String>,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy)]
enum Via {
    Udp,
    Unix,
}

#[derive(Clone, Copy)]
enum Mix {
    /// Five tags, five kinds.
    Tagged,
    /// No tags; series are of these kinds in turn.
    Plain(&'static [&'static str]),
}

const NO_TIMERS: Mix = Mix::Plain(&["c", "c", "c", "g"]);
const TIMERS: Mix = Mix::Plain(&["c", "c", "c", "g", "ms"]);

struct Case {
    name: &'static str,
    via: Via,
    mix: Mix,
    series: u64,
    /// Bytes of a datagram at most; zero for a datagram a line.
    size: usize,
    /// Lines a second; `None` for as many as go.
    rate: Option<u64>,
}

#[rustfmt::skip]
const CASES: [Case; 16] = [
    Case { name: "uds-8192-1k", via: Via::Unix, mix: Mix::Tagged, series: 1_000, size: 8192, rate: None },
    Case { name: "uds-8192-10k", via: Via::Unix, mix: Mix::Tagged, series: 10_000, size: 8192, rate: None },
    Case { name: "uds-8192-100k", via: Via::Unix, mix: Mix::Tagged, series: 100_000, size: 8192, rate: None },
    Case { name: "uds-8192-1m", via: Via::Unix, mix: Mix::Tagged, series: 1_000_000, size: 8192, rate: None },
    Case { name: "uds-1432-10k", via: Via::Unix, mix: Mix::Tagged, series: 10_000, size: 1432, rate: None },
    Case { name: "uds-one-10k", via: Via::Unix, mix: Mix::Tagged, series: 10_000, size: 0, rate: None },
    Case { name: "udp-1432-10k-at-100k", via: Via::Udp, mix: Mix::Tagged, series: 10_000, size: 1432, rate: Some(100_000) },
    Case { name: "udp-1432-10k-at-500k", via: Via::Udp, mix: Mix::Tagged, series: 10_000, size: 1432, rate: Some(500_000) },
    Case { name: "udp-one-10k-at-50k", via: Via::Udp, mix: Mix::Tagged, series: 10_000, size: 0, rate: Some(50_000) },
    Case { name: "udp-one-10k-at-200k", via: Via::Udp, mix: Mix::Tagged, series: 10_000, size: 0, rate: Some(200_000) },
    Case { name: "plain", via: Via::Udp, mix: NO_TIMERS, series: 1_000, size: 1432, rate: None },
    Case { name: "plain-at-1m", via: Via::Udp, mix: NO_TIMERS, series: 1_000, size: 1432, rate: Some(1_000_000) },
    Case { name: "plain-at-5m", via: Via::Udp, mix: NO_TIMERS, series: 1_000, size: 1432, rate: Some(5_000_000) },
    Case { name: "timers", via: Via::Udp, mix: TIMERS, series: 1_000, size: 1432, rate: None },
    Case { name: "timers-at-1m", via: Via::Udp, mix: TIMERS, series: 1_000, size: 1432, rate: Some(1_000_000) },
    Case { name: "timers-at-5m", via: Via::Udp, mix: TIMERS, series: 1_000, size: 1432, rate: Some(5_000_000) },
];

/// A case of another form, and what measures it.
type Quiet = (&'static str, fn() -> Result<()>);
const QUIET: [Quiet; 8] = [
    ("huge-pages", huge_pages),
    ("readers", readers),
    ("flush-wait", flush_wait),
    ("journal", || journal("uds-8192-10k", None)),
    ("journal-100k", || journal("uds-8192-100k", None)),
    ("journal-at-500k", || journal("uds-8192-10k", Some(500_000))),
    ("idle", idle),
    ("start", start),
];

fn main() -> Result<ExitCode> {
    if cfg!(debug_assertions) {
        println!("load measures the release binary: cargo bench --bench load");
        return Ok(ExitCode::SUCCESS);
    }
    let arguments = Arguments::parse();
    if let Some(address) = &arguments.bare {
        return receive_only(address);
    }
    let names = || CASES.iter().map(|case| case.name).chain(QUIET.map(|(name, _)| name));
    if let Some(unknown) = arguments.cases.iter().find(|case| names().all(|name| name != *case)) {
        bail!("no case {unknown}; there are {}", names().collect::<Vec<_>>().join(", "));
    }
    let wanted =
        |name: &str| arguments.cases.is_empty() || arguments.cases.iter().any(|c| c == name);
    sys::pin(LOAD_PROCESSOR).context("one processor for the load, one for the server")?;
    print_machine(arguments.seconds)?;
    println!(
        "\n| case | metrics/s | CPU s per million | loss % | RSS MB | highest | bare metrics/s \
         | bare CPU s per million | bare loss % | ratio |\n|{}",
        " --- |".repeat(10)
    );
    let mut failed = false;
    let mut report = |name, result: Result<()>| {
        if let Err(error) = result {
            println!("{name}: FAILED: {error:#}");
            failed = true;
        }
    };
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        report(case.name, case.run(arguments.seconds));
    }
    println!();
    for (name, measure) in QUIET.iter().filter(|(name, _)| wanted(name)) {
        report(name, measure());
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_machine(seconds: u64) -> Result<()> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!(
        "{}, {} processors ({}), Linux {}, load average {}, {seconds} s a case",
        httpdate::fmt_http_date(SystemTime::now()),
        processors.lines().filter(|line| line.starts_with("processor")).count(),
        model.unwrap_or("unknown").trim_start_matches(['\t', ' ', ':'].as_slice()),
        kernel.trim(),
        fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or_default(),
    );
    Ok(())
}

impl Case {
    /// Measures the server, then the bare loop, and prints the row.
    fn run(&self, seconds: u64) -> Result<()> {
        let datagrams = self.datagrams();
        let folder = TempDir::new()?;
        let address = match self.via {
            Via::Udp => "udp://127.0.0.1:0".to_owned(),
            Via::Unix => format!("unixgram://{}/dsd.socket", folder.path().display()),
        };
        let server = self.measure(server(&[&address])?, &datagrams, seconds)?;
        let bare = self.measure(bare(&address)?, &datagrams, seconds.min(BARE_SECONDS))?;
        let of = |m: &Measured| format!("{:.0} | {:.3} | {:.2}", m.rate, m.cpu, m.loss * 100.0);
        println!(
            "| {} | {} | {:.1} | {:.1} | {} | {:.1} |",
            self.name,
            of(&server),
            server.rss,
            server.rss_highest,
            of(&bare),
            server.cpu / bare.cpu
        );
        Ok(())
    }

    fn datagrams(&self) -> Vec<Datagram> {
        let rounds = (LINES / self.series).max(ROUNDS_MIN);
        match self.mix {
            Mix::Tagged => lines::datagrams(self.series, rounds, self.size),
            Mix::Plain(kinds) => {
                let line = |series, random: &mut _| lines::plain_line(kinds, series, random);
                lines::rounds_of(line, self.series, rounds, self.size)
            }
        }
    }

    /// Sends this case's load to a process that has just started.
    fn measure(
        &self,
        mut process: Process,
        datagrams: &[Datagram],
        seconds: u64,
    ) -> Result<Measured> {
        process.wait_until_ready()?;
        let mut load = Load::new(&process.address, datagrams)?;
        if seconds >= INTERVAL {
            sleep_until_early_in_a_bucket();
        }
        // A client's series are known but for its first seconds.
        let (series, warm_up_rate) = (self.series, self.warm_up_rate());
        load.run(warm_up_rate, |sent| sent.lines < series)?;
        process.settle()?;
        let (counted_before, sent_before) = (process.counts()?, load.sent);
        let before = process.usage()?;

        let begun = Instant::now();
        let time = Duration::from_secs(seconds);
        load.run(self.rate, |_| begun.elapsed() < time)?;
        let took = begun.elapsed().as_secs_f64();
        process.settle()?;
        let after = process.usage()?;

        let counted = process.account_for(load.sent)?;
        self.check(&counted)?;
        if let (Some(earlier), Some(later)) = (counted_before.flushes, counted.flushes) {
            ensure!(later > earlier || seconds < INTERVAL, "no flush in {seconds} s");
        }
        let received = (counted.lines - counted_before.lines) as f64;
        let sent = (load.sent.lines - sent_before.lines) as f64;
        Ok(Measured {
            rate: received / took,
            cpu: (after.cpu - before.cpu) / received * 1e6,
            loss: 1.0 - received / sent,
            rss: after.rss,
            rss_highest: after.rss_highest,
            unprotected: counted.unprotected as f64 / counted.datagrams as f64,
        })
    }

    /// On a Unix socket a sender waits for a server that is busy with new series.
    const fn warm_up_rate(&self) -> Option<u64> {
        match self.via {
            Via::Udp => Some(WARM_UP_RATE),
            Via::Unix => None,
        }
    }

    /// That what was measured is what the case says.
    fn check(&self, counted: &Counts) -> Result<()> {
        if matches!(self.via, Via::Unix) {
            ensure!(counted.drops == 0, "{} datagrams dropped", counted.drops);
        }
        if counted.flushes.is_some() {
            ensure!(counted.refused == 0, "{} lines or datagrams refused", counted.refused);
            ensure!(counted.series == self.series, "{} series", counted.series);
        }
        Ok(())
    }
}

/// Waits for a moment from which twelve seconds, and a warm-up before them, see exactly one flush.
fn sleep_until_early_in_a_bucket() {
    let interval = Duration::from_secs(INTERVAL);
    let (early, late) = (Duration::from_millis(500), Duration::from_secs(6));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let phase = Duration::from_millis((now.as_millis() % interval.as_millis()) as u64);
    if phase < early {
        thread::sleep(early - phase);
    } else if phase > late {
        thread::sleep(interval - phase + early);
    }
}

/// What a load cost a process.
struct Measured {
    /// Lines received a second.
    rate: f64,
    /// Seconds of user and system time for a million lines received.
    cpu: f64,
    /// Part of the lines sent that was not received.
    loss: f64,
    /// Megabytes at the end of the load.
    rss: f64,
    /// Megabytes at most, since the process began.
    rss_highest: f64,
    /// Part of the datagrams received that the journal could not keep.
    unprotected: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    datagrams: u64,
    lines: u64,
}

/// A connected socket and what goes through it, round and round.
struct Load<'a> {
    socket: OwnedFd,
    datagrams: &'a [Datagram],
    at: usize,
    sent: Sent,
}

impl<'a> Load<'a> {
    fn new(address: &str, datagrams: &'a [Datagram]) -> Result<Self> {
        let socket = if let Some(path) = address.strip_prefix("unixgram://") {
            let socket = UnixDatagram::unbound()?;
            socket.connect(path)?;
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
            OwnedFd::from(socket)
        } else {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(address.trim_start_matches("udp://"))?;
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
            OwnedFd::from(socket)
        };
        Ok(Self { socket, datagrams, at: 0, sent: Sent::default() })
    }

    /// Sends at so many lines a second, or as fast as it goes.
    fn run(&mut self, rate: Option<u64>, goes_on: impl Fn(Sent) -> bool) -> Result<()> {
        let Some(rate) = rate else {
            while goes_on(self.sent) {
                self.send(BATCH)?;
            }
            return Ok(());
        };
        let all: u64 = self.datagrams.iter().map(|datagram| datagram.lines).sum();
        // A millisecond's worth in a batch, if one can hold it.
        let batch = rate as f64 / 1000.0 / all as f64 * self.datagrams.len() as f64;
        let batch = (batch.round() as usize).clamp(1, BATCH);
        let mut due = Instant::now();
        while goes_on(self.sent) {
            let wait = due.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                thread::sleep(wait);
            }
            due = due.max(Instant::now() - HELD_UP);
            due += Duration::from_secs_f64(self.send(batch)? as f64 / rate as f64);
        }
        Ok(())
    }

    /// Sends a batch of datagrams and returns the number of their lines.
    fn send(&mut self, batch: usize) -> Result<u64> {
        let rest = &self.datagrams[self.at..];
        let count = sys::send(self.socket.as_fd(), &rest[..batch.min(rest.len())])
            .context("the server takes nothing")?;
        let lines = rest[..count].iter().map(|datagram| datagram.lines).sum();
        self.at = (self.at + count) % self.datagrams.len();
        self.sent.datagrams += count as u64;
        self.sent.lines += lines;
        Ok(lines)
    }
}

/// What a process says it has received.
#[derive(Debug, Default)]
struct Counts {
    datagrams: u64,
    lines: u64,
    /// Datagrams that found the socket full.
    drops: u64,
    /// Lines and datagrams that were not understood, or folded into an overflow series.
    refused: u64,
    /// Datagrams that the journal could not keep.
    unprotected: u64,
    series: u64,
    /// Of a server.
    flushes: Option<u64>,
}

struct Usage {
    /// Seconds of user and system time.
    cpu: f64,
    rss: f64,
    rss_highest: f64,
}

/// A server or a bare loop, on the processor for servers. Killed when dropped.
struct Process {
    child: Child,
    /// Lines of its standard error.
    said: Receiver<String>,
    /// The first address it listens on.
    address: String,
    /// Where a server serves its pages, once it is ready. The bare loop has none.
    pages: Option<String>,
}

/// tallyd with its defaults, but for the addresses and the table on standard output.
fn server(addresses: &[&str]) -> Result<Process> {
    server_with(addresses, &[])
}

fn server_with(addresses: &[&str], settings: &[String]) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tallyd"));
    let listeners: Vec<_> =
        addresses.iter().map(|address| format!(r#"{{"address": "{address}"}}"#)).collect();
    for setting in [
        "intake.port=0",
        "intake.socket=",
        &format!("intake.listeners=[{}]", listeners.join(", ")),
        "status.listen=127.0.0.1:0",
        "sinks.console.enabled=off",
    ] {
        command.args(["--set", setting]);
    }
    for setting in settings {
        command.args(["--set", setting]);
    }
    // Nothing of the machine's own settings.
    command.args(["--config", "/dev/null", "--datadog-config", "/dev/null"]).env_clear();
    Process::start(command)
}

/// This program as the loop that only receives.
fn bare(address: &str) -> Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--bare", address]);
    Process::start(command)
}

impl Process {
    /// Starts it and waits until it listens.
    fn start(mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let spawn = move || {
            sys::pin(SERVER_PROCESSOR).context("a processor for the server")?;
            Ok::<_, anyhow::Error>(command.spawn()?)
        };
        let mut child = thread::spawn(spawn).join().expect("no panic")?;
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let (tell, said) = mpsc::channel();
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        let mut process = Self { child, said, address: String::new(), pages: None };
        process.address = process.wait_for("listening on ")?;
        Ok(process)
    }

    /// Waits until it takes what is sent.
    fn wait_until_ready(&mut self) -> Result<()> {
        loop {
            let line = self.said.recv_timeout(DEADLINE).context("it does not get ready")?;
            if let Some((_, pages)) = line.split_once("serving http://") {
                self.pages = Some(pages.to_owned());
            } else if line.ends_with("ready") {
                return Ok(());
            }
        }
    }

    /// Waits for a line with this in it, and returns what is behind it.
    fn wait_for(&self, part: &str) -> Result<String> {
        loop {
            let line = self.said.recv_timeout(DEADLINE).with_context(|| format!("no {part:?}"))?;
            if let Some((_, behind)) = line.split_once(part) {
                return Ok(behind.to_owned());
            }
        }
    }

    /// Waits until what was sent has been read and worked on.
    fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while self.waits()? {
            ensure!(Instant::now() < deadline, "the socket is not emptied");
            thread::sleep(Duration::from_millis(1));
        }
        // The last batch, and on a Unix socket the few datagrams that its queue holds.
        thread::sleep(Duration::from_millis(20));
        Ok(())
    }

    /// Whether datagrams wait in the UDP socket, by the kernel's own account.
    fn waits(&self) -> Result<bool> {
        let Some((_, port)) = self.address.strip_prefix("udp://").and_then(|a| a.rsplit_once(':'))
        else {
            return Ok(false);
        };
        let port = format!(":{:04X}", port.parse::<u16>()?);
        let table = fs::read_to_string("/proc/net/udp")?;
        // Number, local address, remote address, state, queues (out:in, hexadecimal).
        let mut rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let row = rows.find(|row| row.len() > 4 && row[1].ends_with(&port));
        let queues = row.context("the server has no socket")?[4].to_owned();
        Ok(!queues.ends_with(":00000000"))
    }

    fn usage(&self) -> Result<Usage> {
        /// Of a second: what Linux counts the times of a process in.
        const TICKS: f64 = 100.0;
        let of = |file| fs::read_to_string(format!("/proc/{}/{file}", self.child.id()));
        let (stat, status) = (of("stat")?, of("status")?);
        // The name, in parentheses, is the second field; the times are the 14th and the 15th.
        let (_, fields) = stat.rsplit_once(')').context("a name in stat")?;
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks = times.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        let memory = |key| -> Result<f64> {
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix(key)).context(key)?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0 / 1e6)
        };
        Ok(Usage {
            cpu: ticks as f64 / TICKS,
            rss: memory("VmRSS:")?,
            rss_highest: memory("VmHWM:")?,
        })
    }

    /// Waits until every datagram that was sent has been counted as received or as dropped, and
    /// every line if none was dropped.
    fn account_for(&mut self, sent: Sent) -> Result<Counts> {
        let deadline = Instant::now() + ACCOUNT;
        loop {
            let counts = self.counts()?;
            if counts.datagrams + counts.drops == sent.datagrams
                && (counts.drops > 0 || counts.lines == sent.lines)
            {
                return Ok(counts);
            }
            ensure!(Instant::now() < deadline, "{sent:?}, but {counts:?}");
            thread::sleep(Duration::from_millis(300));
        }
    }

    fn counts(&mut self) -> Result<Counts> {
        if let Some(pages) = &self.pages {
            return scrape(pages, &self.address);
        }
        writeln!(self.child.stdin.as_ref().expect("a pipe"), "count")?;
        let said = self.wait_for("counted ")?;
        let numbers: Vec<u64> = said.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let [datagrams, lines, drops] = numbers[..] else { bail!("counted {said}") };
        Ok(Counts { datagrams, lines, drops, ..Counts::default() })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server's own counters.
fn scrape(pages: &str, listener: &str) -> Result<Counts> {
    let mut stream = TcpStream::connect(pages)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let listener = format!("listener=\"{listener}\"");
    let mut counts = Counts::default();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        // The users' series come before, and may be many.
        let Some((name, value)) = line.strip_prefix("tallyd_").and_then(|l| l.rsplit_once(' '))
        else {
            continue;
        };
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let count = match name {
            "overflow_total" => &mut counts.refused,
            "contexts" => &mut counts.series,
            "journal_unprotected_datagrams_total" => &mut counts.unprotected,
            "flushes_total" => counts.flushes.insert(0),
            _ if !labels.contains(&listener) => continue,
            "listener_datagrams_total" => &mut counts.datagrams,
            "listener_samples_total" => &mut counts.lines,
            "listener_kernel_drops_total" => &mut counts.drops,
            "listener_rejects_total" | "listener_truncated_total" => &mut counts.refused,
            _ => continue,
        };
        *count += value.parse::<f64>()? as u64;
    }
    // It stands behind the others.
    ensure!(counts.flushes.is_some(), "the page is cut off");
    Ok(counts)
}

/// Receives on a socket that is opened as tallyd opens it, wakes whenever something arrives, and
/// looks for newlines. Says what it has counted whenever it gets a line, and ends when nobody can
/// send one any more.
fn receive_only(address: &str) -> Result<ExitCode> {
    let listener = intake::Listener {
        address: address.to_owned(),
        dialect: Default::default(),
        eol_required: false,
    };
    let config = intake::Config {
        port: 0,
        socket: String::new(),
        listeners: vec![listener],
        ..intake::Config::default()
    };
    let asked_for = Untouched { udp: false, socket: false, status: false };
    let opened =
        intake::open(&config, asked_for, Passed::default(), &Telemetry::default())?.remove(0);
    let (intake::Socket::Udp(socket) | intake::Socket::UnixDatagram(socket)) = opened.socket else {
        bail!("not for datagrams")
    };
    eprintln!("listening on {}", opened.listener.name);

    let counts = Arc::new([const { AtomicU64::new(0) }; 2]);
    let (counted, counted_at) = (Arc::clone(&counts), socket.try_clone()?);
    thread::spawn(move || {
        let [datagrams, newlines] = &*counted;
        for _ in std::io::stdin().lines().map_while(Result::ok) {
            let (datagrams, newlines) = (datagrams.load(Relaxed), newlines.load(Relaxed));
            let drops = sys::buffer(counted_at.as_fd()).unwrap_or_default().drops;
            eprintln!("counted {datagrams} {} {drops}", datagrams + newlines);
        }
        std::process::exit(0);
    });

    let mut poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), Token(0), Interest::READABLE)?;
    let mut events = Events::with_capacity(8);
    let mut receiver = sys::Receiver::new(config.buffer_size);
    eprintln!("ready");
    loop {
        poll.poll(&mut events, None)?;
        let mut taken = BATCH;
        while taken == BATCH {
            // Readiness may turn out to be nothing.
            let Ok(datagrams) = receiver.receive(socket.as_fd()) else { break };
            let mut newlines = 0;
            taken = 0;
            for datagram in datagrams {
                taken += 1;
                newlines += memchr::memchr_iter(b'\n', datagram.bytes).count() as u64;
            }
            counts[0].fetch_add(taken as u64, Relaxed);
            counts[1].fetch_add(newlines, Relaxed);
        }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Prints what the journal costs: the same load with and without it, in turn. At a set rate it need
/// not be replaced by checkpoints all the time.
fn journal(name: &str, rate: Option<u64>) -> Result<()> {
    const ROUNDS: usize = 9;
    let case = CASES.iter().find(|case| case.name == name).context("the case")?;
    let case = Case { rate, ..*case };
    let datagrams = case.datagrams();
    let mut cpu = [Vec::new(), Vec::new()];
    let mut unprotected = 0.0;
    for round in 0..ROUNDS {
        // Neither is always the first.
        for on in [round % 2, 1 - round % 2] {
            let folder = TempDir::new()?;
            let address = format!("unixgram://{}/dsd.socket", folder.path().display());
            let settings = [
                format!("state.run_path={}", folder.path().display()),
                format!("journal.enabled={}", on == 1),
            ];
            let process = server_with(&[&address], &settings)?;
            let measured = case.measure(process, &datagrams, INTERVAL + 2)?;
            cpu[on].push(measured.cpu);
            unprotected = f64::max(unprotected, measured.unprotected);
        }
    }
    let mut ratios: Vec<_> = std::iter::zip(&cpu[1], &cpu[0]).map(|(on, off)| on / off).collect();
    let [off, on] = cpu.map(median);
    println!(
        "journal, {name}, {} metrics/s: CPU s per million {off:.4} without, {on:.4} with: {:+.1} % \
         (medians of {ROUNDS}); at most {:.2} % of a round not protected",
        rate.map_or_else(|| "all".to_owned(), |rate| rate.to_string()),
        (on / off - 1.0) * 100.0,
        unprotected * 100.0
    );
    println!("by pairs: {}", rig::spread(&mut ratios));
    Ok(())
}

/// Prints what the same load costs with huge pages and without any, in turn.
fn huge_pages() -> Result<()> {
    const ROUNDS: usize = 2;
    let case = CASES.iter().find(|case| case.name == "uds-8192-1m").context("the case")?;
    let datagrams = case.datagrams();
    let mut cpu = [0.0; 2];
    for _ in 0..ROUNDS {
        for (without, sum) in cpu.iter_mut().enumerate() {
            let folder = TempDir::new()?;
            let address = format!("unixgram://{}/dsd.socket", folder.path().display());
            // What a process starts has it as well.
            rustix::thread::disable_transparent_huge_pages(without == 1)?;
            let process = server(&[&address]);
            rustix::thread::disable_transparent_huge_pages(false)?;
            *sum += case.measure(process?, &datagrams, INTERVAL + 2)?.cpu;
        }
    }
    let [with, without] = cpu.map(|sum| sum / ROUNDS as f64);
    println!(
        "huge pages, {} series: CPU s per million {without:.4} without, {with:.4} with: {:+.1} %",
        case.series,
        (with / without - 1.0) * 100.0
    );
    Ok(())
}

/// Prints how much more two readers take in than one, each on a processor of its own, in process.
/// Two sets of clients have series of their own; two sockets of the same clients have not.
fn readers() -> Result<()> {
    const ROUNDS: usize = 5;
    const TIME: Duration = Duration::from_millis(500);
    let cases = [(10_000, 1432, 2), (10_000, 8192, 2), (50_000, 8192, 2), (10_000, 8192, 1)];
    for (series, size, groups) in cases {
        let mut shared = Parts::new(2, series, size, groups);
        let mut apart = [(); 2].map(|()| Parts::new(1, series, size, 1));
        let (mut together, mut best, mut rate_of_one) = (Vec::new(), Vec::new(), 0.0);
        for _ in 0..ROUNDS {
            let alone = lines_in(TIME, shared.fed().take(1))?;
            together.push(lines_in(TIME, shared.fed())? as f64 / alone as f64);
            let fed = apart.iter_mut().flat_map(Parts::fed);
            best.push(lines_in(TIME, fed)? as f64 / alone as f64);
            rate_of_one = f64::max(rate_of_one, alone as f64 / TIME.as_secs_f64());
            shared.close();
            apart.iter_mut().for_each(|parts| drop(parts.close()));
        }
        together.sort_by(f64::total_cmp);
        best.sort_by(f64::total_cmp);
        println!(
            "two readers, {series} series {}, {size} bytes: {:.2} times one of {rate_of_one:.0} \
             metrics/s (median of {ROUNDS}; {:.2} to {:.2}); two that share nothing: {:.2} ({:.2} to \
             {:.2})",
            if groups == 1 { "of both" } else { "each" },
            together[ROUNDS / 2],
            together[0],
            together[ROUNDS - 1],
            best[ROUNDS / 2],
            best[0],
            best[ROUNDS - 1],
        );
    }
    Ok(())
}

/// How many lines readers take in, each on a processor of its own.
fn lines_in<'a>(time: Duration, readers: impl Iterator<Item = Fed<'a>>) -> Result<u64> {
    thread::scope(|scope| {
        let read = |(number, Fed { reader, datagrams, now })| {
            scope.spawn(move || read_for(time, number, reader, datagrams, now))
        };
        let threads: Vec<_> = readers.enumerate().map(read).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    })
}

/// Lets one reader take in what it gets, in batches as from a socket, round and round.
fn read_for(
    time: Duration,
    number: usize,
    reader: &mut Reader,
    datagrams: &[Datagram],
    now: Time,
) -> Result<u64> {
    sys::pin(number)?;
    let all: Vec<_> = datagrams.iter().map(received).collect();
    // Each begins elsewhere: clients do not send the same at the same time.
    let begin = datagrams.len() / BATCH / 2 * number;
    let batches = all.chunks(BATCH).zip(datagrams.chunks(BATCH)).cycle().skip(begin);
    let (begun, mut lines) = (Instant::now(), 0);
    for (batch, datagrams) in batches {
        if begun.elapsed() >= time {
            break;
        }
        reader.datagrams(batch, now);
        lines += datagrams.iter().map(|datagram| datagram.lines).sum::<u64>();
    }
    Ok(lines)
}

/// As if it had come out of a socket.
fn received(datagram: &Datagram) -> sys::Datagram<'_> {
    sys::Datagram { bytes: &datagram.bytes, truncated: false, sender: sys::Sender::Unknown }
}

/// Prints how long a reader was held up at most by a flush of a million series, in process, with
/// the reader on one processor and the flush on the other.
fn flush_wait() -> Result<()> {
    const ROUNDS: usize = 5;
    const SERIES: u64 = 1_000_000;
    let mut parts = Parts::new(1, SERIES, 8192, 1);
    let (mut waits, mut flushes, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let Parts { readers, flush, datagrams, now, .. } = &mut parts;
        let (clock, stopping) = (AtomicI64::new(now.0), AtomicBool::new(false));
        let (read, all) = (AtomicU64::new(0), datagrams[0].len() as u64);
        // What takes long without a flush, such as a thread that has to make room for another.
        let quiet = Duration::from_millis(300);
        now.0 += INTERVAL as i64 * 1000;
        let (took, calls) = thread::scope(|scope| {
            let reading = scope.spawn(|| {
                sys::pin(SERVER_PROCESSOR)?;
                let mut calls = Vec::new();
                for datagram in datagrams[0].iter().cycle() {
                    let begun = Instant::now();
                    readers[0].datagram(&datagram.bytes, false, Time(clock.load(Relaxed)));
                    calls.push((begun, begun.elapsed()));
                    read.fetch_add(1, Relaxed);
                    if stopping.load(Relaxed) {
                        return Ok::<_, anyhow::Error>(calls);
                    }
                }
                Ok(calls)
            });
            // Each series has to be in the bucket.
            while read.load(Relaxed) < all && !reading.is_finished() {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(quiet);
            let begun = Instant::now();
            clock.store(now.0, Relaxed);
            let batch = flush.batch(*now, false);
            let ended = Instant::now();
            stopping.store(true, Relaxed);
            assert_eq!(batch.rows.len() as u64, SERIES, "every series has a value");
            let calls = reading.join().expect("no panic")?;
            Ok::<_, anyhow::Error>(((begun, ended), calls))
        })?;
        let longest = |within: &dyn Fn(Instant, Instant) -> bool| {
            let calls = calls.iter().filter(|(begun, took)| within(*begun, *begun + *took));
            calls.map(|(_, took)| took.as_secs_f64() * 1000.0).fold(0.0, f64::max)
        };
        let (begun, ended) = took;
        waits.push(longest(&|from, to| to >= begun && from <= ended));
        others.push(longest(&|from, to| to < begun && from >= begun - quiet));
        flushes.push((ended - begun).as_secs_f64() * 1000.0);
    }
    for list in [&mut waits, &mut others, &mut flushes] {
        list.sort_by(f64::total_cmp);
    }
    println!(
        "flush of {SERIES} series: {:.0} ms; the longest that a datagram of 8192 bytes took \
         meanwhile {:.2} ms ({:.2} to {:.2}; before it {:.2}; medians of {ROUNDS})",
        flushes[ROUNDS / 2],
        waits[ROUNDS / 2],
        waits[0],
        waits[ROUNDS - 1],
        others[ROUNDS / 2]
    );
    Ok(())
}

/// Prints what a server costs to which nobody sends.
fn idle() -> Result<()> {
    let folder = TempDir::new()?;
    let unix = format!("unixgram://{}/dsd.socket", folder.path().display());
    let mut process = server(&["udp://127.0.0.1:0", &unix])?;
    process.wait_until_ready()?;
    let before = process.usage()?;
    thread::sleep(Duration::from_secs(IDLE_SECONDS));
    let after = process.usage()?;
    println!(
        "idle for {IDLE_SECONDS} s: RSS {:.1} MB, highest {:.1} MB, CPU {:.0} ms",
        after.rss,
        after.rss_highest,
        (after.cpu - before.cpu) * 1000.0
    );
    Ok(())
}

/// Prints the time from the start of the process to the moment when it has taken a datagram out of
/// its socket.
fn start() -> Result<()> {
    let datagram = lines::packed([&"up:1|c".to_owned()].into_iter(), 0);
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let mut process = server(&["udp://127.0.0.1:0"])?;
        let mut load = Load::new(&process.address, &datagram)?;
        load.send(1)?;
        while process.waits()? {
            ensure!(begun.elapsed() < DEADLINE, "the datagram is not taken");
        }
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        process.wait_until_ready()?;
        process.account_for(load.sent)?;
    }
    times.sort_by(f64::total_cmp);
    println!(
        "start to first datagram taken: {:.1} ms (median of {STARTS}; {:.1} to {:.1})",
        times[STARTS / 2],
        times[0],
        times[STARTS - 1]
    );
    Ok(())
}
