//! Runs the real binary: with ports and paths of its own, with nothing of this process's
//! environment, and never for longer than the test that started it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::test_intake::Intake;

/// Until when whatever is waited for must have happened: long enough for a thread of low priority on
/// a machine that others keep busy.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The API key that tests use.
pub const KEY: &str = "5ec2e7a11d0123456789abcdef5ec2e7";

/// A free UDP port on the loopback.
pub const UDP: &str = "udp://127.0.0.1:0";

/// How a process is going to be started.
pub struct Launch {
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    stdin: Stdio,
    passed: Option<[OwnedFd; 2]>,
}

/// A started process. Killed when dropped.
pub struct Tallyd {
    child: Child,
    stdout: Captured,
    stderr: Captured,
    folder: tempfile::TempDir,
}

/// A process that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// What every process starts from. Variables and flags come before it.
const BASE: &str = r#"
intake: {port: 0, socket: ""}
status: {listen: "127.0.0.1:0"}
flush: {interval: 1}
collectors: {docker: {enabled: off}}
"#;

impl Launch {
    /// No listener, the pages on a free port, flushes every second.
    pub fn new() -> Self {
        Self::with_file(BASE)
    }

    /// With this text as its `tallyd.yaml`.
    pub fn with_file(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Most tests compare everything that is delivered.
        let environment = vec![("TALLYD_TELEMETRY__SERIES".to_owned(), "false".to_owned())];
        let launch = Self {
            folder,
            arguments: Vec::new(),
            environment,
            wrapper: Vec::new(),
            stdin: Stdio::null(),
            passed: None,
        };
        std::fs::write(launch.path("tallyd.yaml"), text).unwrap();
        std::fs::write(launch.path("datadog.yaml"), "").unwrap();
        launch
    }

    /// Sends what it gets to this intake, as an Agent's environment would say it.
    pub fn to(self, intake: &Intake) -> Self {
        self.env("DD_API_KEY", KEY).env("DD_DD_URL", &intake.url).env("DD_HOSTNAME", "own")
    }

    /// Opens these listeners.
    pub fn listen(self, addresses: &[&str]) -> Self {
        let list = addresses.iter().map(|address| serde_json::json!({"address": address}));
        self.set("intake.listeners", &serde_json::Value::from_iter(list).to_string())
    }

    /// Buckets so long that none closes while the test runs: what arrives is flushed at the stop,
    /// in one piece.
    pub fn calm(self) -> Self {
        self.set("flush.interval", &calm_interval().to_string())
    }

    /// A flag, in whose value `{folder}` is a folder that lives as long as the process.
    pub fn set(mut self, setting: &str, value: &str) -> Self {
        let value = self.in_folder(value);
        self.arguments.extend(["--set".to_owned(), format!("{setting}={value}")]);
        self
    }

    /// A variable, in whose value `{folder}` is that folder too.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let value = self.in_folder(value);
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.to_owned(), value));
        self
    }

    fn in_folder(&self, value: &str) -> String {
        value.replace("{folder}", self.folder.path().to_str().unwrap())
    }

    /// By way of a program that starts it, such as `unshare`.
    pub fn within(mut self, program: &str, arguments: &[&str]) -> Self {
        self.wrapper = [program].iter().chain(arguments).map(|s| (*s).to_owned()).collect();
        self
    }

    pub fn piped_stdin(mut self) -> Self {
        self.stdin = Stdio::piped();
        self
    }

    /// With these sockets, called `first` and `second`, as a service manager passes them. What it
    /// writes to standard output is lost.
    pub fn passing(mut self, sockets: [OwnedFd; 2]) -> Self {
        self.passed = Some(sockets);
        self.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "first:second")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts it and waits until its listeners and its pages are open.
    pub fn start(self) -> Tallyd {
        let tallyd = self.spawn();
        tallyd.wait_for_stderr("serving http://");
        tallyd
    }

    /// Starts it.
    pub fn spawn(mut self) -> Tallyd {
        let stdin = std::mem::replace(&mut self.stdin, Stdio::null());
        let mut command = self.command(&[]);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(sockets) = self.passed.take() {
            command = passing(&command, sockets);
        }
        let mut child = command.spawn().unwrap();
        let stdout = Captured::start(child.stdout.take());
        let stderr = Captured::start(child.stderr.take());
        Tallyd { child, stdout, stderr, folder: self.folder }
    }

    /// Runs a subcommand with the same settings to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        finished(self.command(arguments).stdin(Stdio::null()).output().unwrap())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut words = self.wrapper.iter().map(String::as_str);
        let program = env!("CARGO_BIN_EXE_tallyd");
        let mut command = Command::new(words.next().unwrap_or(program));
        command
            .args(words)
            .args((!self.wrapper.is_empty()).then_some(program))
            .args(arguments)
            .arg("--config")
            .arg(self.path("tallyd.yaml"))
            .arg("--datadog-config")
            .arg(self.path("datadog.yaml"))
            .args(&self.arguments)
            .env_clear()
            .env("DD_RUN_PATH", self.path("run"))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(self.folder.path());
        command
    }
}

/// The same command with sockets as its descriptors 3 and 4, and its own number in `LISTEN_PID`. A
/// shell puts them there, since a command of this library passes on the first three only.
fn passing(command: &Command, [first, second]: [OwnedFd; 2]) -> Command {
    let script = "exec 3<&0 4>&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$@\"";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    shell.env_clear();
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap());
    }
    shell.current_dir(command.get_current_dir().unwrap());
    shell.stdin(first).stdout(second).stderr(Stdio::piped());
    shell
}

/// Seconds of a bucket that does not end within the next minute.
fn calm_interval() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let lengths = [2048, 3600, 3000];
    lengths.into_iter().find(|length| length - now % length > 60).unwrap()
}

impl Tallyd {
    /// The address behind the `number`-th `listening on SCHEME://` in its log.
    pub fn nth_listener(&self, scheme: &str, number: usize) -> String {
        let text = format!("listening on {scheme}://");
        let log = self.stderr.text();
        let mut found = log.lines().filter_map(|line| line.split_once(&text));
        let (_, address) = found.nth(number).unwrap_or_else(|| panic!("no {scheme} in\n{log}"));
        // A log of JSON goes on behind it.
        address.trim_end_matches(['"', '}']).to_owned()
    }

    /// The address of its only listener of this scheme.
    pub fn listener(&self, scheme: &str) -> String {
        self.nth_listener(scheme, 0)
    }

    /// Sends lines to its first UDP listener, each as a datagram.
    pub fn send<'a>(&self, lines: impl IntoIterator<Item = &'a str>) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.listener("udp")).unwrap();
        for line in lines {
            socket.send(line.as_bytes()).unwrap();
        }
    }

    /// Where it serves pages: the main server, then the others in the order of their settings.
    pub fn server(&self, number: usize) -> SocketAddr {
        let log = self.stderr.text();
        let mut found = log.lines().filter_map(|line| line.split_once("serving http://"));
        found.nth(number).unwrap().1.trim_end_matches(['"', '}']).parse().unwrap()
    }

    /// The body of a page.
    pub fn page(&self, path: &str) -> String {
        let (status, body) = http(self.server(0), "GET", path, b"");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The sum of an own metric's figures whose labels contain this text.
    pub fn figure(&self, name: &str, label: &str) -> f64 {
        let page = self.page("/metrics");
        let figures = page.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let labels = series.strip_prefix(name)?;
            let exact = labels.is_empty() || labels.starts_with('{');
            (exact && labels.contains(label)).then(|| value.parse::<f64>().unwrap())
        });
        figures.sum()
    }

    /// Waits until a condition holds.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !condition(self) {
            let log = || self.stderr.text();
            assert!(started.elapsed() < DEADLINE, "not in time: {what}\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn wait_for_stderr(&self, text: &str) {
        self.stderr.wait_for(text);
    }

    pub fn wait_for_stdout(&self, text: &str) {
        self.stdout.wait_for(text);
    }

    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// The most bytes of memory that it has had so far.
    pub fn peak_memory(&self) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Sends it a signal, by name.
    pub fn signal(&self, name: &str) {
        let command = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    /// Whether the equations of the ledger hold: every line that was read has an outcome, and so has
    /// every point of every endpoint. `None` where there is no ledger to be seen.
    pub fn balances(&self) -> Option<bool> {
        if !self.stderr.text().contains("serving http://") {
            return None;
        }
        let (status, body) = http(self.server(0), "GET", "/api/ledger", b"");
        let ledger: serde_json::Value =
            (status == 200).then(|| serde_json::from_str(&body).ok())??;
        let settled = |of: &str| {
            ledger[of].as_array().unwrap().iter().all(|one| one["difference"].as_i64() == Some(0))
        };
        Some(settled("listeners") && settled("sinks"))
    }

    /// Waits until its books balance, which they must once nothing is under way. Then tells it to stop,
    /// and waits until it has ended well.
    pub fn stop(self) -> Finished {
        self.wait_until("its books balance", |tallyd| tallyd.balances() != Some(false));
        self.signal("TERM");
        let finished = self.wait();
        assert!(finished.status.success(), "{finished:#?}");
        finished
    }

    pub fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until it ends.
    pub fn wait(mut self) -> Finished {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let (stdout, stderr) = (self.stdout.rest(), self.stderr.rest());
                return Finished { status, stdout, stderr };
            }
            assert!(started.elapsed() < DEADLINE, "it goes on:\n{}", self.stderr.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Tallyd {
    fn drop(&mut self) {
        // It has ended already, as a rule.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    pub fn code(&self) -> i32 {
        self.status.code().unwrap()
    }
}

fn finished(output: Output) -> Finished {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// What a process has written so far.
struct Captured(Arc<(Mutex<Written>, Condvar)>);

#[derive(Default)]
struct Written {
    bytes: Vec<u8>,
    ended: bool,
}

impl Captured {
    /// Without a pipe nothing is ever written.
    fn start(pipe: Option<impl Read + Send + 'static>) -> Self {
        let shared = Arc::<(Mutex<Written>, Condvar)>::default();
        let Some(mut pipe) = pipe else {
            shared.0.lock().unwrap().ended = true;
            return Self(shared);
        };
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let read = pipe.read(&mut chunk).unwrap_or(0);
                let mut written = writer.0.lock().unwrap();
                written.bytes.extend_from_slice(&chunk[..read]);
                written.ended = read == 0;
                writer.1.notify_all();
                if written.ended {
                    return;
                }
            }
        });
        Self(shared)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }

    /// Everything, once nothing more can come.
    fn rest(&self) -> String {
        self.wait(|written| written.ended);
        self.text()
    }

    /// Waits for this text, which must be followed by the end of its line.
    fn wait_for(&self, text: &str) {
        self.wait(|written| {
            let all = String::from_utf8_lossy(&written.bytes);
            let whole = all.rfind('\n').map_or("", |end| &all[..end]);
            whole.contains(text) || written.ended
        });
        let all = self.text();
        assert!(all.contains(text), "ended without {text:?}:\n{all}");
    }

    fn wait(&self, done: impl Fn(&Written) -> bool) {
        let (written, changed) = &*self.0;
        let (written, timeout) = changed
            .wait_timeout_while(written.lock().unwrap(), DEADLINE, |written| !done(written))
            .unwrap();
        let text = String::from_utf8_lossy(&written.bytes);
        assert!(!timeout.timed_out(), "not within {DEADLINE:?}; written:\n{text}");
    }
}

/// One request and its answer: status and body.
pub fn http(server: SocketAddr, method: &str, path: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    // HTTP/1.0: the answer ends with the connection.
    let head =
        format!("{method} {path} HTTP/1.0\r\nHost: {server}\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
