//! `tallyd doctor`: what tallyd finds of what it needs, and the flag or mount that is missing.
//!
//! Nothing is changed, but for the folder of the state, which is made if it is missing, as a start
//! would make it.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::net::UdpSocket;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::cgroup::hierarchy::{Hierarchy, Version};
use crate::cgroup::proc::{Proc, mounts};
use crate::cgroup::roots::Roots;
use crate::collectors::Enabled;
use crate::collectors::docker::engine::{self, Address, Engine};
use crate::collectors::orchestrator::ecs::Ecs;
use crate::collectors::orchestrator::kubelet::Kubelet;
use crate::collectors::orchestrator::{Orchestrator, Wishes};
use crate::config::{self, Config, Sources};
use crate::intake::{self, Listens};
use crate::journal;
use crate::logging::one_line;
use crate::state::Folder;

/// The names by which the kernel knows the machine's own namespaces: what every process is in that
/// was not put elsewhere.
const MACHINES_PIDS: &str = "pid:[4026531836]";
const MACHINES_CGROUPS: &str = "cgroup:[4026531835]";

/// Unix datagrams that should fit into a socket's queue.
const QUEUE: u64 = 512;

/// What became of one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It works, and could work better.
    Advice,
    /// Something that was asked for does not work.
    Missing,
}

/// One line of the report.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    what: String,
    state: State,
    found: String,
    /// The one thing to do; empty where there is nothing to be done.
    remedy: String,
}

/// Writes the report. Returns the exit code: 1 when something is missing, 78 for a wrong
/// configuration.
pub fn run(sources: &Sources, json: bool, out: &mut impl Write) -> io::Result<u8> {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(error) => {
            writeln!(io::stderr(), "error: {error}")?;
            return Ok(config::EXIT_CODE);
        }
    };
    let variable = |name: &str| {
        let found = sources.environment.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
    };
    let roots = loaded.config.collectors.roots(variable);
    let machine =
        Machine { config: &loaded.config, base: PathBuf::from("/"), roots, variable: &variable };
    report(&machine.examine(), json, out)
}

fn report(findings: &[Finding], json: bool, out: &mut impl Write) -> io::Result<u8> {
    if json {
        serde_json::to_writer_pretty(&mut *out, findings)?;
        writeln!(out)?;
    } else {
        for Finding { what, state, found, remedy } in findings {
            let state = match state {
                State::Ok => "ok     ",
                State::Advice => "advice ",
                State::Missing => "MISSING",
            };
            let remedy = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
            writeln!(out, "{state} {what}: {found}{remedy}")?;
        }
    }
    Ok(findings.iter().any(|finding| finding.state == State::Missing).into())
}

/// What the report is about.
struct Machine<'a> {
    config: &'a Config,
    /// `/`, or a folder that stands for it.
    base: PathBuf,
    roots: Roots,
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Machine<'_> {
    fn examine(&self) -> Vec<Finding> {
        let mut findings = self.listeners();
        findings.extend([self.pid_namespace(), self.proc_mount(), self.cgroup_mount()]);
        findings.extend(self.controllers());
        findings.extend([self.engine(), self.kubelet(), self.ecs()]);
        findings.extend([self.state(), self.memory(), self.receive_buffer()]);
        findings.extend(self.datagram_queue());
        findings
    }

    /// Docker and Podman leave a file, systemd-nspawn and LXC a variable, Kubernetes another.
    fn in_container(&self) -> bool {
        [".dockerenv", "run/.containerenv"].iter().any(|file| self.base.join(file).exists())
            || ["container", "KUBERNETES_SERVICE_HOST"]
                .iter()
                .any(|name| (self.variable)(name).is_some())
    }

    fn listeners(&self) -> Vec<Finding> {
        let listeners = intake::listeners(&self.config.intake);
        if listeners.is_empty() {
            let found = "none: nothing can be received by a socket".to_owned();
            return vec![finding("listeners", State::Advice, found, "set intake.port")];
        }
        listeners
            .into_iter()
            .map(|(name, listens)| match listens {
                Listens::Udp(address) => self.udp(name, &address),
                Listens::Tcp => finding(name, State::Ok, "is in the settings".to_owned(), ""),
                Listens::Unix(paths) => self.unix_socket(name, &paths),
            })
            .collect()
    }

    fn udp(&self, name: String, address: &str) -> Finding {
        let loopback = "only processes that share this network namespace reach it".to_owned();
        match UdpSocket::bind(address) {
            Err(error) if error.kind() != ErrorKind::AddrInUse => {
                let remedy = "set intake.port and intake.bind_host to an address of this machine";
                finding(name, State::Missing, format!("cannot be opened: {error}"), remedy)
            }
            Ok(socket)
                if self.in_container()
                    && socket.local_addr().is_ok_and(|bound| bound.ip().is_loopback()) =>
            {
                let remedy = "-e DD_DOGSTATSD_NON_LOCAL_TRAFFIC=true -p 8125:8125/udp";
                finding(name, State::Advice, loopback, remedy)
            }
            Ok(_) => finding(name, State::Ok, "can be opened".to_owned(), ""),
            Err(_) => finding(name, State::Ok, "is open in some process".to_owned(), ""),
        }
    }

    /// The first of these paths that is there already, or can be made.
    fn unix_socket(&self, name: String, paths: &[PathBuf]) -> Finding {
        let is_possible = |path: &&PathBuf| {
            let folder = path.parent().and_then(existing);
            path.exists() || folder.is_some_and(|folder| may_write(&folder))
        };
        let Some(path) = paths.iter().find(is_possible).or_else(|| paths.first()) else {
            return finding(name, State::Missing, "has no path".to_owned(), "set intake.socket");
        };
        let name = format!("{name}{}", path.display());
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        let missing =
            |found: String, remedy: String| finding(&*name, State::Missing, found, remedy);
        let found = match fs::symlink_metadata(path) {
            Ok(data) if data.file_type().is_socket() => {
                let mode = data.permissions().mode() & 0o777;
                if mode & 0o002 == 0 {
                    let found = format!("has permissions {mode:04o}: only some users can send");
                    return finding(name, State::Advice, found, "set intake.socket_mode to 0722");
                }
                format!("is there, with permissions {mode:04o}")
            }
            Ok(_) => {
                let remedy = "set intake.socket to another path".to_owned();
                return missing("is a file and no socket".to_owned(), remedy);
            }
            Err(_) => "is not there yet".to_owned(),
        };
        if self.in_container() && !self.is_mounted(folder) {
            let folder = folder.display();
            let remedy = format!("-v {folder}:{folder}, here and in the containers that send");
            return missing(format!("{folder} is seen in this container only"), remedy);
        }
        match existing(folder) {
            Some(existing) if may_write(&existing) => finding(name, State::Ok, found, ""),
            found => {
                let folder = found.unwrap_or_else(|| folder.to_owned());
                let found = format!("cannot be made: {} is not to be written", folder.display());
                missing(found, "start it as root, or set intake.socket".to_owned())
            }
        }
    }

    /// Whether a folder is on another mount than the root of the container.
    fn is_mounted(&self, folder: &Path) -> bool {
        let text = Proc::new(self.base.join("proc")).text("self/mountinfo").unwrap_or_default();
        mounts(&text).any(|mount| {
            let point = Path::new(&*mount.point);
            point != Path::new("/") && folder.starts_with(point)
        })
    }

    fn pid_namespace(&self) -> Finding {
        let what = "pid namespace";
        let link = fs::read_link(self.base.join("proc/self/ns/pid"));
        match link.as_deref().map(Path::to_string_lossy) {
            Ok(name) if name == MACHINES_PIDS => {
                finding(what, State::Ok, "that of the machine".to_owned(), "")
            }
            Ok(name) => {
                let found = format!(
                    "{name}, not that of the machine: who writes to a Unix socket from another \
                     container is matched to pid 0 and gets no tags"
                );
                let remedy = "--pid host (docker), hostPID: true (Kubernetes), \
                              \"pidMode\": \"host\" (ECS)";
                finding(what, State::Missing, found, remedy)
            }
            Err(error) => {
                let found = format!("cannot be told: /proc/self/ns/pid: {error}");
                finding(what, State::Missing, found, "mount proc on /proc")
            }
        }
    }

    /// Whether this process is in a namespace, by its name.
    fn is_in(&self, namespace: &str) -> bool {
        let kind = namespace.split(':').next().unwrap_or_default();
        let link = fs::read_link(self.base.join("proc/self/ns").join(kind));
        link.is_ok_and(|name| name == Path::new(namespace))
    }

    /// Whether cgroups are mounted here from their root on. Without a namespace of cgroups a
    /// container may have them so, or those below its own alone.
    fn has_whole_tree(&self) -> bool {
        let text = Proc::new(self.base.join("proc")).text("self/mountinfo").unwrap_or_default();
        let mut cgroups = mounts(&text).filter(|mount| mount.kind.starts_with("cgroup")).peekable();
        self.is_in(MACHINES_CGROUPS)
            && cgroups.peek().is_some()
            && cgroups.all(|mount| mount.root == "/")
    }

    fn proc_mount(&self) -> Finding {
        let root = self.roots.proc.display();
        let what = "processes of the machine";
        let remedy = "-v /proc:/host/proc:ro";
        // In the machine's pid namespace a container sees all processes.
        let sees_all = self.roots.named || !self.in_container() || self.is_in(MACHINES_PIDS);
        if self.roots.proc.join("1/stat").exists() && sees_all {
            return finding(what, State::Ok, format!("in {root}"), "");
        }
        if !self.roots.proc.join("self").exists() {
            return finding(what, State::Missing, format!("nothing is in {root}"), remedy);
        }
        let found = format!("{root} is this container's own");
        finding(what, State::Missing, found, remedy)
    }

    fn cgroup_mount(&self) -> Finding {
        let what = "cgroups";
        let remedy = "-v /sys/fs/cgroup:/host/sys/fs/cgroup:ro";
        let root = self.roots.sys_fs_cgroup.display();
        match Hierarchy::find(&self.roots) {
            Err(error) => finding(what, State::Missing, error.to_string(), remedy),
            Ok(_) if self.in_container() && !self.roots.named && !self.has_whole_tree() => {
                finding(what, State::Missing, format!("{root} is this container's own"), remedy)
            }
            Ok(hierarchy) => {
                let version = match hierarchy.version() {
                    Version::V1 => "version 1",
                    Version::V2 => "version 2",
                    Version::Hybrid => "version 1, with version 2 beside it",
                };
                finding(what, State::Ok, format!("{version}, in {root}"), "")
            }
        }
    }

    /// What the kernel does not account. Swap and pressure are niceties.
    fn controllers(&self) -> Vec<Finding> {
        let Ok(hierarchy) = Hierarchy::find(&self.roots) else { return Vec::new() };
        let missing = hierarchy.missing(&Proc::new(&self.roots.proc));
        if missing.is_empty() {
            let found = "cpu, memory, blkio, pids, swap and pressure".to_owned();
            return vec![finding("controllers", State::Ok, found, "")];
        }
        let lines = missing.into_iter().map(|missing| {
            let nicety = matches!(missing.what, "swap" | "psi");
            let state = if nicety { State::Advice } else { State::Missing };
            let found = "the kernel does not account it, so its metrics are absent".to_owned();
            let remedy = format!("argument of the kernel: {}", missing.kernel_argument);
            finding(format!("controller {}", missing.what), state, found, remedy)
        });
        lines.collect()
    }

    /// A machine need not have an engine; one that is there has to answer.
    fn engine(&self) -> Finding {
        let what = "container engine";
        let config = &self.config.collectors.docker;
        if config.enabled == Enabled::Off {
            let found = "not asked: collectors.docker.enabled is off".to_owned();
            return finding(what, State::Ok, found, "");
        }
        let within = |path: &Path| self.base.join(path.strip_prefix("/").unwrap_or(path));
        let address = match engine::address(config, self.variable, |path| within(path).exists()) {
            Ok(Some(Address::Unix(path))) if !path.exists() => Address::Unix(within(&path)),
            Ok(Some(address)) => address,
            Ok(None) => {
                let found =
                    "no socket of Docker or Podman at its usual places in /run, /var/run and \
                             below /host, and no DOCKER_HOST"
                        .to_owned();
                let remedy = if self.in_container() {
                    "-v /var/run/docker.sock:/var/run/docker.sock:ro, if there is an engine"
                } else {
                    ""
                };
                return finding(what, State::Advice, found, remedy);
            }
            Err(error) => {
                return finding(what, State::Missing, error, "set collectors.docker.url");
            }
        };
        let asked = Engine::new(config, &address, self.variable).and_then(|engine| {
            let answer = wait(async { engine.ping().await.map_err(|error| error.to_string()) });
            answer.and_then(|answer| answer)
        });
        match asked {
            Ok(version) => {
                let found = format!("answers at {address}, with version {version} of the API");
                finding(what, State::Ok, found, "")
            }
            Err(error) => {
                let remedy = if error.contains("ermission denied") {
                    "--user root, or --group-add its group"
                } else if matches!(address, Address::Tls(_)) {
                    "start the engine, or set DOCKER_HOST and DOCKER_CERT_PATH"
                } else {
                    "start the engine, or set DOCKER_HOST"
                };
                finding(what, State::Missing, format!("{address}: {error}"), remedy)
            }
        }
    }

    /// Where there is Kubernetes, pods can be told apart only with the kubelet's word.
    fn kubelet(&self) -> Finding {
        let what = "kubelet";
        let config = &self.config.collectors.kubelet;
        let is_there = (self.variable)("KUBERNETES_SERVICE_HOST").is_some();
        if config.enabled == Enabled::Off {
            let found = "not asked: collectors.kubelet.enabled is off".to_owned();
            return finding(what, State::Ok, found, "");
        }
        if config.host.is_empty() {
            if !is_there && config.enabled == Enabled::Auto {
                let found = "not asked: this is no pod, and no kubelet is named".to_owned();
                return finding(what, State::Ok, found, "");
            }
            let found = "the node's address is not set, so senders bring no tags of their pods";
            let remedy = "env DD_KUBERNETES_KUBELET_HOST by fieldRef status.hostIP";
            return finding(what, State::Missing, found.to_owned(), remedy);
        }
        let made = Wishes::new(&self.config.collectors.docker)
            .and_then(|wishes| Kubelet::new(config, wishes))
            .map(Orchestrator::Kubelet);
        match made.and_then(ask) {
            Ok(containers) => {
                let found = format!("{} tells of {containers} containers", config.host);
                finding(what, State::Ok, found, "")
            }
            Err(error) => {
                let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
                let remedy = if error.starts_with(&config.token_file) {
                    "serviceAccountName, with automountServiceAccountToken: true"
                } else if has(&["401", "403"]) {
                    "let the service account get nodes/proxy or nodes/pods (ClusterRole)"
                } else if has(&["certificate", "UnknownIssuer"]) {
                    "DD_KUBELET_CLIENT_CA, or DD_KUBELET_TLS_VERIFY=false"
                } else {
                    "DD_KUBERNETES_HTTPS_KUBELET_PORT, and let the pod reach the node"
                };
                finding(what, State::Missing, error, remedy)
            }
        }
    }

    /// A task of ECS has an endpoint that tells of it.
    fn ecs(&self) -> Finding {
        let what = "task metadata of ECS";
        let config = &self.config.collectors.ecs;
        let Some(url) = config.address(self.variable) else {
            let runs_there =
                (self.variable)("AWS_EXECUTION_ENV").is_some_and(|name| name.contains("ECS"));
            if config.enabled == Enabled::Off || !runs_there {
                let found = match config.enabled {
                    Enabled::Off => "not asked: collectors.ecs.enabled is off",
                    Enabled::Auto | Enabled::On => {
                        "not asked: there is no ECS_CONTAINER_METADATA_URI_V4, so this is no task"
                    }
                };
                return finding(what, State::Ok, found.to_owned(), "");
            }
            let found = "this is a task, and there is no ECS_CONTAINER_METADATA_URI_V4";
            let remedy = "ECS agent 1.39 or later, or Fargate's platform version 1.4.0";
            return finding(what, State::Missing, found.to_owned(), remedy);
        };
        let made = Wishes::new(&self.config.collectors.docker)
            .and_then(|wishes| Ecs::new(config, url.clone(), wishes))
            .map(Orchestrator::Ecs);
        match made.and_then(ask) {
            Ok(containers) => {
                let found = format!("{url} tells of {containers} containers");
                finding(what, State::Ok, found, "")
            }
            Err(error) => {
                let remedy =
                    "let the task reach 169.254.170.2, without a proxy or a rule before it";
                finding(what, State::Missing, error, remedy)
            }
        }
    }

    fn state(&self) -> Finding {
        let what = "state folder";
        match Folder::open(&self.config.state, self.variable) {
            Ok(Some(folder)) => {
                finding(what, State::Ok, format!("{} can be written", folder.path().display()), "")
            }
            Ok(None) => {
                let found = "none can be written, or another process has it".to_owned();
                finding(what, State::Advice, found, "-v tallyd-state:/var/lib/tallyd")
            }
            Err(error) => {
                let found = one_line(&error);
                let state =
                    if found.contains("another process uses") { State::Ok } else { State::Missing };
                finding(what, state, found, "")
            }
        }
    }

    /// Where the journal keeps what was just read.
    fn memory(&self) -> Finding {
        let what = "memory of the journal";
        let folder = &self.config.journal.memory_folder;
        let mounts = fs::read_to_string(self.base.join("proc/self/mountinfo")).unwrap_or_default();
        if !self.config.journal.enabled {
            finding(what, State::Ok, "the journal is off".to_owned(), "")
        } else if journal::outlives_container(&mounts, Path::new(folder)) {
            finding(what, State::Ok, format!("{folder} outlives the process"), "")
        } else {
            let found = format!(
                "{folder} ends with the container: a crash loses the batch that was just read, and \
                 the journal costs more"
            );
            finding(what, State::Advice, found, "-v /dev/shm:/dev/shm")
        }
    }

    fn number(&self, path: &str) -> Option<u64> {
        let text = fs::read_to_string(self.base.join("proc/sys").join(path)).ok()?;
        text.trim().parse().ok()
    }

    fn receive_buffer(&self) -> Finding {
        let what = "net.core.rmem_max";
        let wanted = intake::receive_buffer(&self.config.intake) as u64;
        match self.number("net/core/rmem_max") {
            Some(most) if most < wanted => {
                let found = format!("{most} bytes: a burst of UDP beyond them is lost");
                let remedy = format!("sysctl -w net.core.rmem_max={wanted}");
                finding(what, State::Advice, found, remedy)
            }
            Some(most) => finding(what, State::Ok, format!("{most} bytes"), ""),
            None => {
                let found = "cannot be seen from here".to_owned();
                let remedy = format!("on the machine: sysctl -w net.core.rmem_max={wanted}");
                finding(what, State::Advice, found, remedy)
            }
        }
    }

    fn datagram_queue(&self) -> Option<Finding> {
        let what = "net.unix.max_dgram_qlen";
        let most = self.number("net/unix/max_dgram_qlen")?;
        if most >= QUEUE {
            return Some(finding(what, State::Ok, format!("{most} datagrams"), ""));
        }
        let found = format!("{most} datagrams: senders to a Unix socket wait or drop beyond them");
        let remedy = format!("sysctl -w net.unix.max_dgram_qlen={QUEUE}");
        Some(finding(what, State::Advice, found, remedy))
    }
}

fn finding(
    what: impl Into<String>,
    state: State,
    found: String,
    remedy: impl Into<String>,
) -> Finding {
    Finding { what: what.into(), state, found, remedy: remedy.into() }
}

/// The innermost folder of a path that is there.
fn existing(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

/// Whether a file can be made in a folder; it is gone again at once.
fn may_write(folder: &Path) -> bool {
    let probe = folder.join(format!(".tallyd-doctor-{}", std::process::id()));
    let made = fs::OpenOptions::new().write(true).create_new(true).open(&probe).is_ok();
    made && fs::remove_file(&probe).is_ok()
}

/// Containers that an orchestrator tells of.
fn ask(mut orchestrator: Orchestrator) -> Result<usize, String> {
    wait(async { orchestrator.containers().await.map(|containers| containers.len()) })?
}

/// Waits for an answer; what is asked has a deadline of its own.
fn wait<T>(answer: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|error| error.to_string())?.block_on(answer))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    const ALIVE: &str = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 2\r\n\r\nOK";

    /// Gives this answer to whatever is asked, and hangs up.
    fn answer(mut stream: impl Read + Write, answer: &str) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a request");
            request.extend(byte);
        }
        stream.write_all(answer.as_bytes()).expect("an answer");
    }

    /// A server of one answer; returns its port.
    fn served(text: String) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        std::thread::spawn(move || {
            listener.incoming().for_each(|stream| answer(stream.expect("a connection"), &text));
        });
        port
    }

    /// A machine on which all is well.
    struct Fixture {
        folder: tempfile::TempDir,
        config: Config,
        variables: Vec<(&'static str, &'static str)>,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let mut config = Config::default();
            config.intake.port = 0;
            config.intake.socket =
                folder.path().join("run/datadog/dsd.socket").display().to_string();
            config.state.run_path = folder.path().join("state").display().to_string();
            let fixture = Self { folder, config, variables: Vec::new() };
            for (path, text) in [
                ("proc/1/stat", "1 (init) S"),
                ("proc/sys/net/core/rmem_max", "4194304\n"),
                ("proc/sys/net/unix/max_dgram_qlen", "512\n"),
                ("proc/pressure/cpu", "some\n"),
                ("proc/self/mountinfo", "1 0 0:1 / / rw - ext4 /dev/vda rw\n"),
                ("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n"),
            ] {
                fixture.write(path, text);
            }
            fixture.pid_namespace(MACHINES_PIDS);
            fixture
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }

        fn pid_namespace(&self, name: &str) {
            let link = self.folder.path().join("proc/self/ns/pid");
            fs::create_dir_all(link.parent().expect("a folder")).expect("a folder");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(name, link).expect("a link");
        }

        /// An engine that gives this answer.
        fn engine(&self, text: &'static str) {
            let path = self.folder.path().join("run/docker.sock");
            fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            let listener = UnixListener::bind(path).expect("a socket");
            std::thread::spawn(move || {
                listener.incoming().for_each(|stream| answer(stream.expect("a connection"), text));
            });
        }

        /// The line about one thing.
        fn line(&self, what: &str) -> Finding {
            let mut all = self.examine().into_iter();
            all.find(|finding| finding.what == what).expect("a line")
        }

        fn examine(&self) -> Vec<Finding> {
            let base = self.folder.path().to_owned();
            let mut roots = Roots::of_machine(&base);
            roots.named = false;
            let variable = |name: &str| {
                let found = self.variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            Machine { config: &self.config, base, roots, variable: &variable }.examine()
        }

        /// What is not as it should be, and the remedy.
        fn complaints(&self) -> Vec<(State, String, String)> {
            let all = self.examine().into_iter().filter(|finding| finding.state != State::Ok);
            let folder = self.folder.path().display().to_string();
            let short = |text: String| text.replace(&folder, "");
            all.map(|finding| (finding.state, short(finding.what), short(finding.remedy))).collect()
        }
    }

    /// Makes one thing wrong.
    type Spoil = fn(&mut Fixture);

    fn complaint(state: State, what: &str, remedy: &str) -> (State, String, String) {
        (state, what.to_owned(), remedy.to_owned())
    }

    #[test]
    fn memory_that_ends_with_the_container_is_told() {
        let mut fixture = Fixture::new();
        assert_eq!(fixture.line("memory of the journal").state, State::Ok);
        fixture.write(
            "proc/self/mountinfo",
            "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / /dev/shm rw - tmpfs shm rw\n",
        );
        let told = fixture.line("memory of the journal");
        assert_eq!((told.state, &*told.remedy), (State::Advice, "-v /dev/shm:/dev/shm"));
        fixture.config.journal.memory_folder = "/memory".to_owned();
        assert_eq!(fixture.line("memory of the journal").state, State::Ok);
    }

    #[test]
    fn where_all_is_well_there_is_nothing_to_say() {
        let fixture = Fixture::new();
        fixture.engine(ALIVE);
        assert_eq!(fixture.complaints(), []);
        let mut out = Vec::new();
        assert_eq!(report(&fixture.examine()[1..2], false, &mut out).expect("a report"), 0);
        assert_eq!(String::from_utf8_lossy(&out), "ok      pid namespace: that of the machine\n");
    }

    #[test]
    fn each_thing_that_is_missing_has_its_flag() {
        use State::{Advice, Missing};
        let cases: [(&str, Spoil, State, &str, &str); 10] = [
            (
                "pids",
                |f| f.pid_namespace("pid:[4026532222]"),
                Missing,
                "pid namespace",
                "--pid host",
            ),
            (
                "no cgroups",
                |f| fs::remove_dir_all(f.folder.path().join("sys")).expect("it is there"),
                Missing,
                "cgroups",
                "-v /sys/fs/cgroup:/host/sys/fs/cgroup:ro",
            ),
            (
                "memory",
                |f| {
                    f.write("proc/cgroups", "memory\t0\t1\t0\n");
                    f.write("sys/fs/cgroup/cgroup.controllers", "cpu io pids\n");
                },
                Missing,
                "controller memory",
                "argument of the kernel: cgroup_enable=memory swapaccount=1",
            ),
            (
                "psi",
                |f| {
                    fs::remove_file(f.folder.path().join("proc/pressure/cpu")).expect("it is there")
                },
                Advice,
                "controller psi",
                "argument of the kernel: psi=1",
            ),
            (
                "rmem_max",
                |f| f.write("proc/sys/net/core/rmem_max", "212992\n"),
                Advice,
                "net.core.rmem_max",
                "sysctl -w net.core.rmem_max=4194304",
            ),
            (
                "queue",
                |f| f.write("proc/sys/net/unix/max_dgram_qlen", "10\n"),
                Advice,
                "net.unix.max_dgram_qlen",
                "sysctl -w net.unix.max_dgram_qlen=512",
            ),
            (
                "socket",
                |f| f.write("run/datadog/dsd.socket", "precious"),
                Missing,
                "unixgram:///run/datadog/dsd.socket",
                "set intake.socket to another path",
            ),
            (
                "state",
                |f| {
                    f.write("file", "");
                    f.config.state.run_path = f.folder.path().join("file/x").display().to_string();
                },
                Missing,
                "state folder",
                "",
            ),
            (
                "no listener",
                |f| f.config.intake.socket.clear(),
                Advice,
                "listeners",
                "set intake.port",
            ),
            (
                "no process",
                |f| fs::remove_file(f.folder.path().join("proc/1/stat")).expect("it is there"),
                Missing,
                "processes of the machine",
                "-v /proc:/host/proc:ro",
            ),
        ];
        for (name, spoil, state, what, remedy) in cases {
            let mut fixture = Fixture::new();
            fixture.engine(ALIVE);
            spoil(&mut fixture);
            let complaints = fixture.complaints();
            assert_eq!(complaints.len(), 1, "{name}: {complaints:?}");
            let found = &complaints[0];
            assert_eq!((found.0, found.1.as_str()), (state, what), "{name}");
            assert!(found.2.starts_with(remedy), "{name}: {}", found.2);
            let mut out = Vec::new();
            let code = report(&fixture.examine(), true, &mut out).expect("a report");
            let page: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
            let lines = page.as_array().expect("a list").iter();
            let missing = lines.filter(|line| line["state"] == "missing").count();
            assert_eq!((missing > 0, code == 1), (state == Missing, state == Missing), "{page}");
        }
    }

    #[test]
    fn in_a_container_what_is_mounted_counts() {
        let mut fixture = Fixture::new();
        fixture.variables.push(("container", "podman"));
        fixture.config.intake.port = 1;
        fixture.config.intake.bind_host = "127.0.0.1".to_owned();
        let folder = fixture.folder.path().join("run/datadog").display().to_string();
        fixture.pid_namespace("pid:[4026532222]");
        let mut all = fixture.complaints();
        all.retain(|(_, what, _)| what != "pid namespace");
        let expected = [
            complaint(
                State::Advice,
                "udp://127.0.0.1:1",
                "-e DD_DOGSTATSD_NON_LOCAL_TRAFFIC=true -p 8125:8125/udp",
            ),
            complaint(
                State::Missing,
                "unixgram:///run/datadog/dsd.socket",
                "-v /run/datadog:/run/datadog, here and in the containers that send",
            ),
            complaint(State::Missing, "processes of the machine", "-v /proc:/host/proc:ro"),
            complaint(State::Missing, "cgroups", "-v /sys/fs/cgroup:/host/sys/fs/cgroup:ro"),
            complaint(
                State::Advice,
                "container engine",
                "-v /var/run/docker.sock:/var/run/docker.sock:ro, if there is an engine",
            ),
        ];
        assert_eq!(all, expected);
        let mounted = format!(
            "1 0 0:1 / / rw - overlay overlay rw\n2 1 0:2 / {folder} rw - ext4 /dev/vdb rw\n"
        );
        fixture.write("proc/self/mountinfo", &mounted);
        fixture.pid_namespace(MACHINES_PIDS);
        assert_eq!(fixture.line("processes of the machine").state, State::Ok);
        assert_eq!(fixture.complaints().len(), 3);
        // The machine's cgroups, in two ways of mounting them.
        for (namespace, root, state) in [
            (MACHINES_CGROUPS, "/", State::Ok),
            (MACHINES_CGROUPS, "/docker/ab", State::Missing),
            ("cgroup:[4026532222]", "/", State::Missing),
        ] {
            let link = fixture.folder.path().join("proc/self/ns/cgroup");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(namespace, link).expect("a link");
            let mounts = format!("{mounted}3 1 0:3 {root} /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
            fixture.write("proc/self/mountinfo", &mounts);
            assert_eq!(fixture.line("cgroups").state, state, "{namespace} {root}");
        }
    }

    #[test]
    fn an_engine_has_to_answer() {
        for (answer, state, found) in [
            (ALIVE, State::Ok, ", with version 1.41 of the API"),
            ("HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n", State::Missing, ": 500: "),
            ("HTTP", State::Missing, ""),
        ] {
            let fixture = Fixture::new();
            fixture.engine(answer);
            let engine = fixture.line("container engine");
            assert_eq!(engine.state, state, "{}", engine.found);
            assert!(engine.found.ends_with(found), "{}", engine.found);
        }
        // By its setting, over TCP.
        let mut fixture = Fixture::new();
        let alive = format!("tcp://127.0.0.1:{}", served(ALIVE.to_owned()));
        for (url, enabled, state, found) in [
            (&*alive, Enabled::Auto, State::Ok, "answers at tcp://127.0.0.1:"),
            ("tcp://127.0.0.1:1", Enabled::Auto, State::Missing, "tcp://127.0.0.1:1: "),
            ("what://ever", Enabled::Auto, State::Missing, "\"what://ever\" is neither"),
            ("what://ever", Enabled::Off, State::Ok, "not asked: "),
        ] {
            fixture.config.collectors.docker.url = url.to_owned();
            fixture.config.collectors.docker.enabled = enabled;
            let engine = fixture.line("container engine");
            assert_eq!(engine.state, state, "{}", engine.found);
            assert!(engine.found.starts_with(found), "{}", engine.found);
        }
    }

    /// An answer with a body.
    fn page(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    #[test]
    fn a_kubelet_has_to_let_us_in() {
        const POD: &str = r#"{"items": [{"status": {"containerStatuses":
            [{"name": "a", "containerID": "containerd://ab"}]}}]}"#;
        let mut fixture = Fixture::new();
        let token = fixture.folder.path().join("token").display().to_string();
        let kubelet = &mut fixture.config.collectors.kubelet;
        (kubelet.token_file, kubelet.ca_file) = (token.clone(), String::new());
        let line = fixture.line("kubelet");
        assert_eq!(
            (line.state, &*line.found),
            (State::Ok, "not asked: this is no pod, and no kubelet is named")
        );
        fixture.variables.push(("KUBERNETES_SERVICE_HOST", "10.96.0.1"));
        let line = fixture.line("kubelet");
        assert_eq!(line.state, State::Missing);
        assert_eq!(line.remedy, "env DD_KUBERNETES_KUBELET_HOST by fieldRef status.hostIP");
        let kubelet = &mut fixture.config.collectors.kubelet;
        (kubelet.host, kubelet.http_port) = ("127.0.0.1".to_owned(), 0);
        let line = fixture.line("kubelet");
        assert!(line.found.starts_with(&token), "{}", line.found);
        assert!(line.remedy.starts_with("serviceAccountName"), "{}", line.remedy);
        fixture.config.collectors.kubelet.https_port = 0;
        for (answer, state, found, remedy) in [
            (page("200 OK", POD), State::Ok, "127.0.0.1 tells of 1 containers", ""),
            (page("403 Forbidden", ""), State::Missing, "http://", "let the service account get"),
            (page("200 OK", "no"), State::Missing, "http://", "DD_KUBERNETES_HTTPS_KUBELET_PORT"),
        ] {
            fixture.config.collectors.kubelet.http_port = served(answer);
            let line = fixture.line("kubelet");
            assert_eq!(line.state, state, "{line:?}");
            assert!(line.found.starts_with(found) && line.remedy.starts_with(remedy), "{line:?}");
        }
        fixture.config.collectors.kubelet.enabled = Enabled::Off;
        assert_eq!(fixture.line("kubelet").state, State::Ok);
    }

    #[test]
    fn a_task_has_to_be_told_of() {
        let what = "task metadata of ECS";
        let task = r#"{"Containers": [{"DockerId": "ab", "KnownStatus": "RUNNING"}]}"#;
        let mut fixture = Fixture::new();
        assert_eq!(fixture.line(what).state, State::Ok);
        fixture.variables.push(("AWS_EXECUTION_ENV", "AWS_ECS_FARGATE"));
        let line = fixture.line(what);
        assert!(line.remedy.starts_with("ECS agent 1.39"), "{line:?}");
        for (answer, state, found) in [
            (page("200 OK", task), State::Ok, "/task tells of 1 containers"),
            (page("404 Not Found", ""), State::Missing, "/task: 404 Not Found"),
        ] {
            fixture.config.collectors.ecs.url = format!("http://127.0.0.1:{}/v4", served(answer));
            let line = fixture.line(what);
            assert_eq!(line.state, state, "{line:?}");
            assert!(line.found.ends_with(found), "{line:?}");
        }
        fixture.config.collectors.ecs.enabled = Enabled::Off;
        assert!(fixture.line(what).found.ends_with("is off"));
    }
}
