//! A real engine: started here, in a folder and a network namespace of its own, with an image that
//! holds busybox alone. Only what was made here is removed.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value as Json;
use tempfile::TempDir;

use super::namespace::Namespace;
use super::process::{Launch, Tallyd, http};
use super::received::{Point, Received};
use super::test_intake::Intake;

/// Until when whatever is waited for must have happened.
const DEADLINE: Duration = Duration::from_secs(40);

/// Seconds, of runs of one second each, within which a change is seen.
const LATE: i64 = 3;

const IMAGE: &str = "registry.example.test:5000/team/bbfixture:1.35";

/// A `dockerd` of the test's own.
struct Engine {
    folder: TempDir,
    namespace: Namespace,
    daemon: Option<Child>,
}

impl Engine {
    /// `Err` tells why there cannot be one.
    fn start() -> Result<Self, String> {
        let out = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output();
            let output = output.map_err(|error| format!("{program}: {error}"))?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            if output.status.success() { Ok(text) } else { Err(format!("{program}: {error}")) }
        };
        if out("id", &["-u"])? != "0" {
            return Err("needs root".to_owned());
        }
        for program in ["dockerd", "docker", "nsenter", "busybox", "tar"] {
            out("which", &[program]).map_err(|_| format!("{program} is not installed"))?;
        }
        let folder = TempDir::new().map_err(|error| error.to_string())?;
        let mut engine = Self { folder, namespace: Namespace::new()?, daemon: None };
        engine.up()?;
        engine.make_image()?;
        Ok(engine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    fn up(&mut self) -> Result<(), String> {
        let log = fs::File::create(self.path("dockerd.log")).map_err(|error| error.to_string())?;
        let path = |name: &str| self.path(name).display().to_string();
        // Another daemon's pid file stays when it is killed.
        let _ = fs::remove_file(self.path("pid"));
        let daemon = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespace.name))
            .args(["dockerd", "--live-restore", "--data-root", &path("data")])
            .args(["--exec-root", &path("exec"), "--pidfile", &path("pid"), "-H", &self.host()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn();
        self.daemon = Some(daemon.map_err(|error| format!("dockerd: {error}"))?);
        let started = Instant::now();
        while self.try_docker(&["version"]).is_err() {
            let ended = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok()?);
            if ended.is_some() || started.elapsed() > DEADLINE {
                let log = fs::read_to_string(self.path("dockerd.log")).unwrap_or_default();
                return Err(format!("dockerd: {}", log.lines().last().unwrap_or("no answer")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// As a crash does: containers live on.
    fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        daemon.kill().expect("it runs");
        daemon.wait().expect("it ends");
    }

    fn make_image(&self) -> Result<(), String> {
        let root = self.path("root");
        for folder in ["bin", "tmp", "etc", "www"] {
            fs::create_dir_all(root.join(folder)).map_err(|error| error.to_string())?;
        }
        let script = format!(
            "set -e; cp $(which busybox) {root}/bin/busybox; \
             for a in sh sleep httpd dd cat true wget test touch rm; do ln -sf busybox {root}/bin/$a; done; \
             echo root:x:0:0::/:/bin/sh >{root}/etc/passwd; echo ok >{root}/www/index.html; \
             tar -C {root} -c . | docker -H {host} import -c 'ENV PATH=/bin' - {IMAGE}; \
             docker -H {host} tag {IMAGE} hidden:1",
            root = root.display(),
            host = self.host(),
        );
        let output = Command::new("sh").args(["-c", &script]).output();
        let output = output.map_err(|error| error.to_string())?;
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(format!("no image: {error}")) }
    }

    fn try_docker(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("docker").args(["-H", &self.host()]).args(arguments).output();
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    #[track_caller]
    fn docker(&self, arguments: &[&str]) -> String {
        self.try_docker(arguments).unwrap_or_else(|error| panic!("docker {arguments:?}: {error}"))
    }

    /// Starts a container; returns its id.
    #[track_caller]
    fn run(&self, name: &str, options: &[&str], command: &[&str]) -> String {
        let all = [&["run", "-d", "--name", name], options, &[IMAGE], command].concat();
        self.docker(&all)
    }

    fn pid(&self, name: &str) -> String {
        self.docker(&["inspect", "-f", "{{.State.Pid}}", name])
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let ids = self.try_docker(&["ps", "-aq"]).unwrap_or_default();
            let ids: Vec<&str> = ids.lines().collect();
            for some in ids.chunks(50) {
                let arguments: Vec<&str> = ["rm", "-f"].iter().chain(some).copied().collect();
                let _ = self.try_docker(&arguments);
            }
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = Command::new("kill").arg(daemon.id().to_string()).status();
            let _ = daemon.wait();
        }
        // A daemon that was killed has left its containerd.
        let containerd = self.path("exec/containerd/containerd.pid");
        if let Ok(pid) = fs::read_to_string(containerd) {
            let _ = Command::new("kill").arg(pid.trim()).stderr(Stdio::null()).status();
        }
    }
}

/// What tallyd sent.
pub struct Watcher {
    intake: Intake,
    tallyd: Tallyd,
}

impl Watcher {
    /// `more` is what is set besides the engine's address.
    pub fn start(engine: &str, more: impl FnOnce(Launch) -> Launch) -> Self {
        let intake = Intake::start();
        let launch = Launch::new()
            .to(&intake)
            .set("sinks.spool.enabled", "false")
            .set("collectors.docker.enabled", "on")
            .set("collectors.docker.url", engine);
        Self { tallyd: more(launch).start(), intake }
    }

    /// A place in what is received, for [`Watcher::since`].
    pub fn mark(&self) -> usize {
        self.intake.requests().len()
    }

    /// Ends well.
    pub fn stop(self) {
        let finished = self.tallyd.stop();
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    }

    fn since(&self, mark: usize) -> Received {
        Received::of(&self.intake.requests()[mark..])
    }

    /// Waits until what came after a mark is as wished.
    #[track_caller]
    pub fn wait(
        &self,
        mark: usize,
        what: &str,
        mut wished: impl FnMut(&Received) -> bool,
    ) -> Received {
        let started = Instant::now();
        loop {
            let received = self.since(mark);
            if wished(&received) {
                return received;
            }
            if started.elapsed() > DEADLINE {
                let docker: Vec<_> = received
                    .points
                    .iter()
                    .filter(|point| point.name.starts_with("docker.containers"))
                    .collect();
                let (events, checks) = (&received.events, &received.checks);
                panic!(
                    "not seen: {what}\n{docker:#?}\n{events:#?}\n{checks:#?}\n{}",
                    self.tallyd.stderr()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The points of a container's metric, in the order of their time.
pub fn of<'a>(received: &'a Received, name: &str, container: &str) -> Vec<&'a Point> {
    let tag = format!("container_name:{container}");
    let points = received.named(name).into_iter();
    points.filter(|point| point.tags.split(',').any(|own| own == tag)).collect()
}

pub fn last(received: &Received, name: &str, container: &str) -> Option<f64> {
    of(received, name, container).last().map(|point| point.value)
}

/// Statuses of a service check by container, in the order of arrival.
pub fn statuses(received: &Received, check: &str, container: &str) -> Vec<i64> {
    let tag = format!("container_name:{container}");
    let of = received.checks.iter().filter(|c| c["check"] == check);
    of.filter(|c| tags(c).any(|own| own == tag)).map(|c| c["status"].as_i64().unwrap()).collect()
}

fn tags(json: &Json) -> impl Iterator<Item = &str> {
    json["tags"].as_array().into_iter().flatten().filter_map(Json::as_str)
}

/// Events whose text names what a container did.
pub fn told(received: &Received, action: &str, container: &str) -> Vec<Json> {
    let line = format!("{action}\t{container}\n");
    let named = |event: &&Json| event["msg_text"].as_str().unwrap_or_default().contains(&line);
    received.events.iter().filter(named).cloned().collect()
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Processor time of a process; the kernel counts it in hundredths of a second.
fn processor_seconds(pid: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Periods in which a container's quota ran out, as the kernel counts them.
fn periods_held_back(id: &str) -> impl Fn() -> u64 + use<> {
    let paths = [
        format!("/sys/fs/cgroup/cpu/docker/{id}/cpu.stat"),
        format!("/sys/fs/cgroup/docker/{id}/cpu.stat"),
        format!("/sys/fs/cgroup/system.slice/docker-{id}.scope/cpu.stat"),
    ];
    let path = paths.into_iter().find(|path| Path::new(path).exists()).expect("its cgroup");
    move || {
        let text = fs::read_to_string(&path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
        line.expect("a count").parse().unwrap()
    }
}

/// Received bytes of all interfaces but the loopback.
fn received_bytes(pid: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let lines = text.lines().skip(2).filter_map(|line| line.split_once(':'));
    let others = lines.filter(|(name, _)| name.trim() != "lo");
    others.map(|(_, n)| n.split_whitespace().next().unwrap().parse::<f64>().unwrap()).sum()
}

#[test]
fn a_real_engine_is_seen_as_it_is() {
    let mut engine = match Engine::start() {
        Ok(engine) => engine,
        Err(reason) => {
            println!("SKIP a_real_engine_is_seen_as_it_is: {reason}");
            return;
        }
    };
    let sockets = Sockets::new(&engine);
    let watcher = Watcher::start(&engine.host(), |launch| {
        launch
            .set("collectors.docker.interval", "1")
            .set("collectors.docker.budget", "1")
            .set("collectors.docker.collect_exit_codes", "true")
            .set("collectors.docker.collect_container_count", "true")
            .set("collectors.docker.exclude", r#"["docker_image:hidden"]"#)
            .set("origin.cardinality", "high")
            .set("origin.unified", "true")
            .listen(&[&sockets.udp(), &sockets.gram(), &sockets.stream()])
            .passing(sockets.pass())
    });
    let sends = sockets.start_sender(&engine);
    let limited = limits(&engine);
    start_everything(&engine);
    match &sends {
        Ok(()) => see_senders(&engine, &watcher),
        Err(reason) => println!("SKIP the senders of a_real_engine_is_seen_as_it_is: {reason}"),
    }
    see_limits(&engine, &watcher, limited);
    see_processor(&engine, &watcher);
    see_networks(&engine, &watcher);
    see_health(&engine, &watcher);
    see_states_and_filters(&engine, &watcher);
    see_ends(&watcher);
    see_a_crash(&mut engine, &watcher);
    watcher.stop();
}

/// Where containers send to: a UDP socket in the engine's namespace, and Unix sockets in a folder
/// that containers mount.
struct Sockets {
    udp: UdpSocket,
    gram: UnixDatagram,
    folder: PathBuf,
}

/// Where the folder is for a container.
const MOUNTED: &str = "/var/run/datadog";

/// Sends by every way there is, as client libraries do it in a container, until it is killed.
const SENDER: &str = r#"
import os, re, socket, struct, sys, time
port, pod = sys.argv[1:]
identity = re.search("[0-9a-f]{64}", open("/proc/self/cgroup").read() + open("/proc/self/mountinfo").read())[0]
inode = next(os.stat(p).st_ino for p in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup") if os.path.exists(p))
gram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
gram.connect("/var/run/datadog/gram")
stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
stream.connect("/var/run/datadog/stream")
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect(("tallyd", int(port)))
lines = [
    "way.container:1|c|c:" + identity,
    "way.ci:1|c|c:ci-" + identity,
    "way.in:1|c|c:in-%d" % inode,
    "way.both:1|c|c:ci-%s,in-%d" % (identity, inode),
    "way.external:1|c|e:it-false,cn-app,pu-" + pod,
    "way.entity:1|c|#dd.internal.entity_id:" + pod,
    "way.address:1|c",
    "way.none:1|c|c:in-%d|card:none" % inode,
    "way.low:1|c|c:in-%d|card:low" % inode,
]
while True:
    gram.send(b"way.gram:1|c")
    stream.sendall(struct.pack("<I", 14) + b"way.stream:1|c")
    for line in lines:
        udp.send(line.encode())
    time.sleep(0.2)
"#;

const POD: &str = "0b1c2d3e-1111-2222-3333-444455556666";

impl Sockets {
    fn new(engine: &Engine) -> Self {
        let folder = engine.path("sockets");
        fs::create_dir(&folder).unwrap();
        let udp = engine.namespace.enter(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
        Self { udp, gram: UnixDatagram::bind(folder.join("gram")).unwrap(), folder }
    }

    fn pass(&self) -> [OwnedFd; 2] {
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().unwrap();
        [copy(self.udp.as_fd()), copy(self.gram.as_fd())]
    }

    fn udp(&self) -> String {
        format!("udp://{}", self.udp.local_addr().unwrap())
    }

    fn gram(&self) -> String {
        format!("unixgram://{}/gram", self.folder.display())
    }

    fn stream(&self) -> String {
        format!("unixstream://{}/stream", self.folder.display())
    }

    /// A container with the machine's Python, which sends. `Err` tells why there is none.
    fn start_sender(&self, engine: &Engine) -> Result<(), String> {
        let script = "import sys; print(sys.executable); print(sys.base_prefix)";
        let python = Command::new("python3").args(["-c", script]).output();
        let python = python.map_err(|error| format!("python3: {error}"))?.stdout;
        let python = String::from_utf8_lossy(&python).into_owned();
        let (program, prefix) = python.trim().split_once('\n').ok_or("no python3")?;
        let folders = ["/usr", "/lib", "/lib64", prefix];
        let there = folders.into_iter().filter(|folder| Path::new(folder).exists());
        let mounts: BTreeSet<_> = there.map(|folder| format!("-v{folder}:{folder}:ro")).collect();
        let sockets = format!("-v{}:{MOUNTED}", self.folder.display());
        let port = self.udp.local_addr().unwrap().port().to_string();
        let labels = [
            &*format!("-lio.kubernetes.pod.uid={POD}"),
            "-lio.kubernetes.pod.name=shop-1",
            "-lio.kubernetes.pod.namespace=front",
            "-lio.kubernetes.container.name=app",
            "-eDD_ENV=test",
            "--add-host=tallyd:host-gateway",
            &sockets,
        ];
        let options: Vec<_> = labels.into_iter().chain(mounts.iter().map(String::as_str)).collect();
        engine.run("sender", &options, &[program, "-c", SENDER, &port, POD]);
        Ok(())
    }
}

/// Whatever way a container sends, its tags are the same.
fn see_senders(engine: &Engine, watcher: &Watcher) {
    let ways = ["gram", "stream", "container", "ci", "in", "both", "external", "entity", "address"];
    // The first may go without, where the engine tells of a container after the end of its second.
    let tags = |received: &Received, way: &str| {
        let points = received.named(&format!("way.{way}"));
        points.last().map(|point| point.tags.clone()).unwrap_or_default()
    };
    let seen = watcher.wait(0, "senders", |received| {
        ways.iter().all(|way| tags(received, way).contains("container_name:sender"))
            && tags(received, "low").contains("image_name:")
            && !received.named("way.none").is_empty()
    });
    let id = seen.points.iter().find_map(|point| {
        let id = point.tags.split(',').find_map(|tag| tag.strip_prefix("container_id:"))?;
        point.tags.contains("container_name:sender").then_some(id)
    });
    let image = format!("image_id:{}", engine.docker(&["inspect", "-f", "{{.Id}}", IMAGE]));
    let low = [
        "docker_image:registry.example.test:5000/team/bbfixture:1.35",
        "env:test",
        &*image,
        "image_name:registry.example.test:5000/team/bbfixture",
        "image_tag:1.35",
        "kube_container_name:app",
        "kube_namespace:front",
        "short_image:bbfixture",
    ];
    let id = format!("container_id:{}", id.expect("a container's id"));
    let mut all = low.to_vec();
    all.extend([&*id, "container_name:sender", "pod_name:shop-1"]);
    all.sort_unstable();
    for way in ways {
        assert_eq!(tags(&seen, way), all.join(","), "{way}");
    }
    assert_eq!(tags(&seen, "low"), low.join(","));
    assert_eq!(tags(&seen, "none"), "");
    println!("docker: {} ways to send bring the {} tags of the container", ways.len(), all.len());
}

/// One container with every limit; whether the kernel accounts for swap.
fn limits(engine: &Engine) -> bool {
    let options = [
        "-m",
        "64m",
        "--memory-reservation",
        "32m",
        "--memory-swap",
        "96m",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "512",
        "--pids-limit",
        "50",
        "-e",
        "DD_SERVICE=shop",
        "--health-cmd",
        "test -f /tmp/ok",
        "--health-interval",
        "1s",
        "--health-retries",
        "1",
        "--publish",
        "127.0.0.1::8080",
    ];
    let command = ["sh", "-c", "touch /tmp/ok; exec httpd -f -p 8080 -h /www"];
    let id = engine.run("web", &options, &command);
    let place = format!("/sys/fs/cgroup/memory/docker/{id}/memory.memsw.limit_in_bytes");
    Path::new(&place).exists() || Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn start_everything(engine: &Engine) {
    engine.docker(&["network", "create", "fxnet"]);
    engine.run(
        "burner",
        &["--cpus", "0.5", "--network", "none"],
        &["sh", "-c", "while :; do :; done"],
    );
    engine.run("client", &["--network", "fxnet"], &["sleep", "600"]);
    engine.docker(&["network", "connect", "bridge", "client"]);
    engine.run("hostnet", &["--network", "host"], &["sleep", "600"]);
    engine.run("sharednet", &["--network", "container:web"], &["sleep", "600"]);
    engine.docker(&[
        "run",
        "-d",
        "--name",
        "hidden",
        "--network",
        "none",
        "hidden:1",
        "sleep",
        "600",
    ]);
    let oom = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    let child = format!("sleep 4; {oom}; sleep 4");
    let small = ["-m", "16m", "--memory-swap", "16m", "--network", "none"];
    engine.run("oomchild", &small, &["sh", "-c", &child]);
    engine.run("oom", &small, &["sh", "-c", &format!("sleep 1; exec {oom}")]);
    let flap = ["--restart", "on-failure:3", "--network", "none"];
    engine.run("flap", &flap, &["sh", "-c", "sleep 3; exit 1"]);
}

/// Limits are seen, and a change within an interval.
fn see_limits(engine: &Engine, watcher: &Watcher, swap: bool) {
    let mut limits = vec![
        ("docker.mem.limit", 67_108_864.0),
        ("docker.mem.soft_limit", 33_554_432.0),
        ("docker.cpu.limit", 50.0),
        ("docker.cpu.shares", 512.0),
        ("docker.thread.limit", 50.0),
    ];
    if swap {
        limits.push(("docker.mem.sw_limit", 100_663_296.0));
    }
    let seen = watcher.wait(0, "limits", |received| {
        limits.iter().all(|(name, _)| last(received, name, "web").is_some())
    });
    for (name, value) in limits {
        assert_eq!(last(&seen, name, "web"), Some(value), "{name}");
    }
    let point = of(&seen, "docker.mem.limit", "web")[0];
    for tag in [
        "docker_image:registry.example.test:5000/team/bbfixture:1.35",
        "service:shop",
        "runtime:docker",
    ] {
        assert!(point.tags.split(',').any(|own| own == tag), "{tag} in {}", point.tags);
    }
    engine.docker(&["update", "-m", "48m", "--memory-swap", "80m", "web"]);
    let changed = now();
    let seen = watcher.wait(0, "the new limit", |received| {
        last(received, "docker.mem.limit", "web") == Some(50_331_648.0)
            && (!swap || last(received, "docker.mem.sw_limit", "web") == Some(83_886_080.0))
    });
    let old = of(&seen, "docker.mem.limit", "web")
        .into_iter()
        .filter(|point| point.time > changed && point.value != 50_331_648.0);
    // One run may have been under way. It is not for want of runs.
    let points = of(&seen, "docker.mem.limit", "web");
    assert!(old.count() <= 1, "{points:?}");
    let first = points.iter().find(|point| point.value == 50_331_648.0).unwrap();
    assert!(first.time <= changed + LATE, "{} s late", first.time - changed);
}

/// What a quota of half a processor lets through; on a machine that is busy it is less, by the
/// kernel's own count of the only process.
fn see_processor(engine: &Engine, watcher: &Watcher) {
    let pid = engine.pid("burner");
    let held_back = periods_held_back(&engine.docker(&["inspect", "-f", "{{.Id}}", "burner"]));
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let (mark, held_before) = (watcher.mark(), held_back());
    let mut counts = vec![(clock(), processor_seconds(&pid))];
    let begun = now();
    // Those of the second in which it began may be about the one before.
    let usage = |received: &Received| -> Vec<(f64, f64)> {
        let points = of(received, "docker.cpu.usage", "burner").into_iter();
        let after = points.filter(|point| point.time > begun);
        after.map(|point| (point.time as f64, point.value)).collect()
    };
    let seen = watcher.wait(mark, "ten seconds of work", |received| {
        counts.push((clock(), processor_seconds(&pid)));
        usage(received).len() > 10
    });
    let points = usage(&seen);
    let told: f64 = points.windows(2).map(|two| two[1].1 / 100.0 * (two[1].0 - two[0].0)).sum();
    // A point's reading was at some time of its second.
    let (first, last) = (points[0].0, points[points.len() - 1].0);
    let before = |time: f64| counts.iter().rfind(|count| count.0 <= time).expect("a count").1;
    let after = |time: f64| counts.iter().find(|count| count.0 >= time).expect("a count").1;
    let (least, most) = (before(last) - after(first + 1.0), after(last + 1.0) - before(first));
    println!(
        "docker: a loop under a quota of 50 % used {least:.2} to {most:.2} s, {told:.2} were told"
    );
    assert!(0.95 * least < told && told < 1.05 * most, "{told} is not {least} to {most}");
    assert!(told < 0.56 * (last - first), "{points:?}");
    // On a machine that is busy with more, the quota may be more than it gets.
    let held = held_back() - held_before;
    let throttled = of(&seen, "docker.cpu.throttled", "burner");
    let told: f64 = throttled.iter().map(|point| point.value).sum();
    println!("docker: {held} periods ran out, {told:.0} were told");
    assert!(held < 5 || told > 0.0 && told <= held as f64 + 20.0, "{held}: {throttled:?}");
    let whole: f64 = of(&seen, "docker.cpu.usage", "burner").iter().map(|p| p.value).sum();
    let parts: f64 = ["docker.cpu.user", "docker.cpu.system"]
        .iter()
        .flat_map(|name| of(&seen, name, "burner"))
        .map(|point| point.value)
        .sum();
    // The parts are sampled by ticks.
    assert!((whole - parts).abs() < 0.35 * whole, "{whole} is not {parts}");
}

fn see_networks(engine: &Engine, watcher: &Watcher) {
    let published = engine.docker(&["port", "web", "8080"]);
    let pid = engine.pid("web");
    let mark = watcher.mark();
    let total = |received: &Received| -> f64 {
        of(received, "docker.net.bytes_rcvd", "web").iter().map(|point| point.value).sum()
    };
    // Rates begin with the second reading.
    watcher
        .wait(mark, "a rate", |received| !of(received, "docker.net.bytes_rcvd", "web").is_empty());
    let (mark, before) = (watcher.mark(), received_bytes(&pid));
    let fetch = || http(published.parse().unwrap(), "GET", "/", b"");
    for _ in 0..20 {
        assert_eq!(engine.namespace.enter(fetch).unwrap(), (200, "ok\n".to_owned()));
    }
    let moved = received_bytes(&pid) - before;
    assert!(moved > 20.0 * 100.0, "{moved}");
    let networks = |received: &Received, who: &str| {
        let points = of(received, "docker.net.bytes_rcvd", who).into_iter();
        let tags = points.flat_map(|point| point.tags.split(','));
        let networks = tags.filter_map(|tag| tag.strip_prefix("docker_network:"));
        networks.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    let seen = watcher.wait(mark, "the traffic", |received| {
        total(received) > 0.8 * moved && networks(received, "client").len() >= 2
    });
    let total = total(&seen);
    println!("docker: {moved} bytes came in, {total:.0} were told");
    assert!((total - moved).abs() < 0.2 * moved + 1000.0, "{moved} came, {total} were told");
    assert_eq!(networks(&seen, "web"), ["bridge"]);
    assert_eq!(networks(&seen, "client"), ["bridge", "fxnet"]);
    assert!(networks(&seen, "hostnet").is_empty() && networks(&seen, "sharednet").is_empty());
}

fn see_health(engine: &Engine, watcher: &Watcher) {
    let health = |received: &Received| statuses(received, "docker.container_health", "web");
    watcher.wait(0, "health", |received| health(received).last() == Some(&0));
    engine.docker(&["exec", "web", "rm", "/tmp/ok"]);
    let seen = watcher.wait(0, "illness", |received| health(received).last() == Some(&2));
    let told = health(&seen);
    // Perhaps it was seen before its first check, or checked before its file was there.
    let known: [&[i64]; 4] = [&[0, 2], &[3, 0, 2], &[2, 0, 2], &[3, 2, 0, 2]];
    assert!(known.contains(&&*told), "{told:?}");
    let seen = watcher.wait(0, "an event", |r| !told_of_health(r).is_empty());
    assert!(told_of_health(&seen).iter().all(|event| !event.to_string().contains("exec_")));
}

fn told_of_health(received: &Received) -> Vec<Json> {
    told(received, "HEALTH_STATUS", "web")
}

fn see_states_and_filters(engine: &Engine, watcher: &Watcher) {
    // When containers were counted last, those in this state.
    let counted = |received: &Received, state: &str| {
        let counts = received.named("docker.container.count").into_iter();
        let of = counts.filter(|point| point.tags.contains(state));
        of.map(|point| (point.time, point.value)).max_by_key(|(time, _)| *time)
    };
    let (running, paused) = ("container_state:running", "container_state:paused");
    let mark = watcher.mark();
    engine.docker(&["pause", "client"]);
    let seen = watcher.wait(mark, "a pause, and memory that is still taken", |received| {
        let pause = counted(received, paused).map_or(i64::MAX, |(time, _)| time);
        let of = of(received, "docker.mem.rss", "client");
        of.last().is_some_and(|point| point.time >= pause)
    });
    assert_eq!(counted(&seen, paused).unwrap().1, 1.0);
    engine.docker(&["unpause", "client"]);
    let time = |counted: Option<(i64, f64)>| counted.map(|(time, _)| time);
    watcher.wait(mark, "the end of the pause", |received| {
        time(counted(received, running)) > time(counted(received, paused))
    });
    let all = watcher.since(0);
    let hidden: Vec<_> = all.points.iter().filter(|p| p.tags.contains("hidden")).collect();
    assert!(hidden.iter().any(|p| p.name == "docker.containers.running"), "{hidden:?}");
    assert!(hidden.iter().all(|p| p.name.starts_with("docker.containers.")), "{hidden:?}");
    assert!(told(&all, "START", "hidden").is_empty());
}

/// Ends by code, by want of memory and by flapping.
fn see_ends(watcher: &Watcher) {
    let exits = |received: &Received, who: &str| statuses(received, "docker.exit", who);
    let kills = |received: &Received, who: &str| -> f64 {
        of(received, "docker.mem.oom_kills", who).iter().map(|p| p.value).sum()
    };
    let killed = |received: &Received, who: &str| {
        exits(received, who).len() == 1
            && kills(received, who) > 0.0
            && !told(received, "OOM", who).is_empty()
    };
    let seen = watcher.wait(0, "all ends", |received| {
        exits(received, "flap").len() == 4
            && last(received, "docker.container.restarts", "flap") == Some(3.0)
            && killed(received, "oom")
            && killed(received, "oomchild")
    });
    assert_eq!(exits(&seen, "flap"), [2, 2, 2, 2]);
    assert_eq!(exits(&seen, "oom"), [2]);
    assert_eq!(exits(&seen, "oomchild"), [0], "its first process lived on");
    let code = |who: &str| {
        let tag = format!("container_name:{who}");
        let check =
            seen.checks.iter().find(|c| c["check"] == "docker.exit" && tags(c).any(|t| t == tag));
        tags(check.unwrap())
            .find_map(|tag| tag.strip_prefix("exit_code:").map(str::to_owned))
            .unwrap()
    };
    assert_eq!((&*code("oom"), &*code("oomchild"), &*code("flap")), ("137", "0", "1"));
    for who in ["oom", "oomchild"] {
        let events = told(&seen, "OOM", who);
        assert_eq!(events.len(), 1, "{events:#?}");
        assert_eq!(events[0]["alert_type"], "error");
        assert_eq!(kills(&seen, who), 1.0, "{who}");
    }
    let lives: usize = told(&seen, "DIE", "flap").len();
    assert!((1..=4).contains(&lives), "at most one event per run and image");
}

/// The engine is killed: what is known is measured on, and the return is noticed.
fn see_a_crash(engine: &mut Engine, watcher: &Watcher) {
    let up = |received: &Received| {
        let checks = received.checks.iter().filter(|c| c["check"] == "docker.service_up");
        checks.map(|check| check["status"].as_i64().unwrap()).next_back()
    };
    engine.kill();
    let killed = now();
    let mark = watcher.mark();
    let seen = watcher.wait(mark, "the crash", |received| up(received) == Some(2));
    let well = |check: &&Json| check["check"] == "docker.service_up" && check["status"] == 0;
    let late = |check: &&Json| check["timestamp"].as_i64().unwrap() > killed;
    // One run may have been under way. It is not for want of runs.
    let wrong: Vec<_> = seen.checks.iter().filter(well).filter(late).collect();
    assert!(wrong.len() <= 1, "{wrong:?}");
    let down = |check: &&Json| check["check"] == "docker.service_up" && check["status"] == 2;
    let late = seen.checks.iter().find(down).unwrap()["timestamp"].as_i64().unwrap() - killed;
    assert!(late <= LATE, "told after {late} s");
    let mark = watcher.mark();
    watcher.wait(mark, "figures without an engine", |received| {
        of(received, "docker.mem.rss", "web").len() >= 2
            && last(received, "docker.cpu.usage", "burner").is_some()
    });
    engine.up().expect("it comes back");
    watcher.wait(mark, "the return", |received| up(received) == Some(0));
    engine.run("late", &["--network", "none"], &["sleep", "600"]);
    watcher.wait(mark, "a container of afterwards, and its event", |received| {
        last(received, "docker.mem.rss", "late").is_some()
            && !told(received, "START", "late").is_empty()
    });
}

/// Containers that the figures of [`idle_containers`] are about.
const IDLE: usize = 200;

/// For how long containers are started; those that came into being have to do.
const STARTING: Duration = Duration::from_secs(60);

/// Within this a process has told its first profile, at the end of a minute of the clock.
const PROFILED: Duration = Duration::from_secs(90);

/// What idle containers cost, for [`IDLE`] of them, or for as many as can be had in time: the time
/// of a processor that all of tallyd takes, in twenty runs with their flushes and deliveries.
#[test]
fn idle_containers_cost_next_to_nothing() {
    let name = "idle_containers_cost_next_to_nothing";
    let engine = match Engine::start() {
        Ok(engine) => engine,
        Err(reason) => return println!("SKIP {name}: {reason}"),
    };
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while started.elapsed() < STARTING {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= IDLE {
                        return;
                    }
                    let options = ["--network", "none", "--log-driver", "none"];
                    engine.run(&format!("idle-{number}"), &options, &["sleep", "6000"]);
                }
            });
        }
    });
    let count = next.load(Relaxed).min(IDLE);
    println!("docker: {count} idle containers after {:.1} s", started.elapsed().as_secs_f64());
    // Fifteen times as often as usual, so that ten runs are soon seen.
    let watcher = Watcher::start(&engine.host(), |launch| {
        launch.set("collectors.docker.interval", "1").set("collectors.docker.budget", "1")
    });
    let runs = |received: &Received| received.named("docker.mem.rss").len() / count;
    watcher.wait(0, "all containers", |received| runs(received) >= 1);
    let mut shortest = f64::INFINITY;
    let mut seen_runs = 0;
    let mark = watcher.mark();
    watcher.wait(mark, "five runs", |received| {
        let runs = runs(received);
        if std::mem::replace(&mut seen_runs, runs) != runs {
            let took = watcher.tallyd.figure("tallyd_collector_seconds", "docker");
            shortest = f64::min(shortest, took);
        }
        runs >= 5
    });
    // Its first profile, within a minute, finds out what functions are called: once in a life.
    let waiting = Instant::now();
    while !watcher.tallyd.stderr().contains("CPU in ") {
        assert!(waiting.elapsed() < PROFILED, "no profile:\n{}", watcher.tallyd.stderr());
        std::thread::sleep(Duration::from_millis(500));
    }
    // Nobody asks for its pages meanwhile: one of so many series costs a good part of a run.
    let processor = || processor_seconds(&watcher.tallyd.id().to_string());
    let (mark, before) = (watcher.mark(), processor());
    let seen = watcher.wait(mark, "twenty runs", |received| runs(received) >= 20);
    let run = (processor() - before) / runs(&seen) as f64;
    println!(
        "docker: {count} idle containers: a run took {shortest:.3} s; with its flush and delivery \
         {run:.4} s of a processor, {:.2} % of it at 15 s",
        run / 15.0 * 100.0
    );
    // Of a program as it is delivered, on a machine that does nothing else (`cargo test --release`).
    if !cfg!(debug_assertions) {
        let each = |seconds: f64| seconds / count as f64 * IDLE as f64;
        assert!(each(shortest) < 0.3, "{shortest} s");
        assert!(each(run) / 15.0 < 0.01, "{run} s of a processor");
    }
}
