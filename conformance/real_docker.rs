//! A real engine: started here, in a folder and a network namespace of its own, with an image that
//! holds busybox alone. Only what was made here is removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value as Json;
use tempfile::TempDir;

use super::process::{Launch, Tallyd};
use super::received::{Point, Received};
use super::test_intake::Intake;

/// Until when whatever is waited for must have happened.
const DEADLINE: Duration = Duration::from_secs(40);

const IMAGE: &str = "registry.example.test:5000/team/bbfixture:1.35";

/// A `dockerd` of the test's own.
struct Engine {
    folder: TempDir,
    namespace: String,
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
        let namespace = format!("tallyd-{}", std::process::id());
        out("ip", &["netns", "add", &namespace])?;
        let folder = TempDir::new().map_err(|error| error.to_string())?;
        let mut engine = Self { folder, namespace, daemon: None };
        out("ip", &["-n", &engine.namespace, "link", "set", "lo", "up"])?;
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
            .arg(format!("--net=/run/netns/{}", self.namespace))
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
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

/// What tallyd sent.
struct Watcher {
    intake: Intake,
    tallyd: Tallyd,
}

impl Watcher {
    fn start(engine: &Engine, settings: &[(&str, &str)]) -> Self {
        let intake = Intake::start();
        let mut launch = Launch::new()
            .to(&intake)
            .set("sinks.spool.enabled", "false")
            .set("collectors.docker.enabled", "on")
            .set("collectors.docker.url", &engine.host());
        for (name, value) in settings {
            launch = launch.set(name, value);
        }
        Self { intake, tallyd: launch.start() }
    }

    /// A place in what is received, for [`Watcher::since`].
    fn mark(&self) -> usize {
        self.intake.requests().len()
    }

    fn since(&self, mark: usize) -> Received {
        Received::of(&self.intake.requests()[mark..])
    }

    /// Waits until what came after a mark is as wished.
    #[track_caller]
    fn wait(&self, mark: usize, what: &str, wished: impl Fn(&Received) -> bool) -> Received {
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
fn of<'a>(received: &'a Received, name: &str, container: &str) -> Vec<&'a Point> {
    let tag = format!("container_name:{container}");
    let points = received.named(name).into_iter();
    points.filter(|point| point.tags.split(',').any(|own| own == tag)).collect()
}

fn last(received: &Received, name: &str, container: &str) -> Option<f64> {
    of(received, name, container).last().map(|point| point.value)
}

/// Statuses of a service check by container, in the order of arrival.
fn statuses(received: &Received, check: &str, container: &str) -> Vec<i64> {
    let tag = format!("container_name:{container}");
    let of = received.checks.iter().filter(|c| c["check"] == check);
    of.filter(|c| tags(c).any(|own| own == tag)).map(|c| c["status"].as_i64().unwrap()).collect()
}

fn tags(json: &Json) -> impl Iterator<Item = &str> {
    json["tags"].as_array().into_iter().flatten().filter_map(Json::as_str)
}

/// Events whose text names what a container did.
fn told(received: &Received, action: &str, container: &str) -> Vec<Json> {
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
    let watcher = Watcher::start(
        &engine,
        &[
            ("collectors.docker.interval", "1"),
            ("collectors.docker.budget", "1"),
            ("collectors.docker.collect_exit_codes", "true"),
            ("collectors.docker.collect_container_count", "true"),
            ("collectors.docker.exclude", r#"["docker_image:hidden"]"#),
        ],
    );
    let limited = limits(&engine);
    start_everything(&engine);
    see_limits(&engine, &watcher, limited);
    see_processor(&engine, &watcher);
    see_networks(&engine, &watcher);
    see_health(&engine, &watcher);
    see_states_and_filters(&engine, &watcher);
    see_ends(&watcher);
    see_a_crash(&mut engine, &watcher);
    let finished = watcher.tallyd.stop();
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
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
    let seen =
        watcher.wait(0, "limits", |received| last(received, "docker.mem.limit", "web").is_some());
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
    });
    let points = of(&seen, "docker.mem.limit", "web");
    let first = points.iter().find(|point| point.value == 50_331_648.0).unwrap();
    assert!(first.time <= changed + 3, "{} s late", first.time - changed);
    if swap {
        assert_eq!(last(&seen, "docker.mem.sw_limit", "web"), Some(83_886_080.0));
    }
}

/// What a quota of half a processor lets through; on a machine that is busy it is less, by the
/// kernel's own count of the only process.
fn see_processor(engine: &Engine, watcher: &Watcher) {
    let pid = engine.pid("burner");
    let used = || processor_seconds(&pid);
    let (mark, before, started) = (watcher.mark(), used(), Instant::now());
    let seen = watcher.wait(mark, "ten seconds of work", |received| {
        of(received, "docker.cpu.usage", "burner").len() >= 10
    });
    let share = 100.0 * (used() - before) / started.elapsed().as_secs_f64();
    let points = of(&seen, "docker.cpu.usage", "burner");
    let average = points.iter().map(|point| point.value).sum::<f64>() / points.len() as f64;
    println!("docker: a loop under a quota of 50 % used {share:.1} %, {average:.1} % were told");
    assert!((average - share).abs() < 0.2 * share && average < 56.0, "{average} is not {share}");
    let throttled = of(&seen, "docker.cpu.throttled", "burner");
    assert!(throttled.iter().any(|point| point.value > 0.0), "{throttled:?}");
    let whole: f64 = points.iter().map(|point| point.value).sum();
    let parts: f64 = ["docker.cpu.user", "docker.cpu.system"]
        .iter()
        .flat_map(|name| of(&seen, name, "burner"))
        .map(|point| point.value)
        .sum();
    // The parts are sampled by ticks.
    assert!((whole - parts).abs() < 0.35 * whole, "{whole} is not {parts}");
}

fn see_networks(engine: &Engine, watcher: &Watcher) {
    let address = engine.docker(&[
        "inspect",
        "-f",
        "{{(index .NetworkSettings.Networks \"bridge\").IPAddress}}",
        "web",
    ]);
    let pid = engine.pid("web");
    let mark = watcher.mark();
    let total = |received: &Received| -> f64 {
        of(received, "docker.net.bytes_rcvd", "web").iter().map(|point| point.value).sum()
    };
    // Rates begin with the second reading.
    watcher
        .wait(mark, "a rate", |received| !of(received, "docker.net.bytes_rcvd", "web").is_empty());
    let (mark, before) = (watcher.mark(), received_bytes(&pid));
    let fetch = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do wget -q -O /dev/null http://{address}:8080/; done"
    );
    engine.docker(&["exec", "client", "sh", "-c", &fetch]);
    let moved = received_bytes(&pid) - before;
    assert!(moved > 20.0 * 100.0, "{moved}");
    let seen = watcher.wait(mark, "the traffic", |received| total(received) > 0.8 * moved);
    let total = total(&seen);
    println!("docker: {moved} bytes came in, {total:.0} were told");
    assert!((total - moved).abs() < 0.2 * moved + 1000.0, "{moved} came, {total} were told");
    let networks = |who: &str| {
        let points = of(&seen, "docker.net.bytes_rcvd", who).into_iter();
        let tags = points.flat_map(|point| point.tags.split(','));
        let networks = tags.filter_map(|tag| tag.strip_prefix("docker_network:"));
        networks.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(networks("web"), ["bridge"]);
    assert_eq!(networks("client"), ["bridge", "fxnet"]);
    assert!(networks("hostnet").is_empty() && networks("sharednet").is_empty());
}

fn see_health(engine: &Engine, watcher: &Watcher) {
    let health = |received: &Received| statuses(received, "docker.container_health", "web");
    watcher.wait(0, "health", |received| health(received).last() == Some(&0));
    engine.docker(&["exec", "web", "rm", "/tmp/ok"]);
    let seen = watcher.wait(0, "illness", |received| health(received).last() == Some(&2));
    let told = health(&seen);
    // Perhaps it was seen before its first check.
    assert!(told == [0, 2] || told == [3, 0, 2], "{told:?}");
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
    let seen = watcher.wait(mark, "a pause", |received| counted(received, paused).is_some());
    assert_eq!(counted(&seen, paused).unwrap().1, 1.0);
    assert!(last(&seen, "docker.mem.rss", "client").is_some(), "it still takes memory");
    engine.docker(&["unpause", "client"]);
    watcher.wait(mark, "the end of the pause", |received| {
        counted(received, running).unwrap().0 > counted(received, paused).unwrap().0
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
    let seen = watcher.wait(0, "all ends", |received| {
        exits(received, "flap").len() == 4
            && exits(received, "oom").len() == 1
            && exits(received, "oomchild").len() == 1
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
        let kills: f64 = of(&seen, "docker.mem.oom_kills", who).iter().map(|p| p.value).sum();
        assert_eq!(kills, 1.0, "{who}");
    }
    let lives: usize = told(&seen, "DIE", "flap").len();
    assert!((1..=4).contains(&lives), "at most one event per run and image");
    assert_eq!(last(&seen, "docker.container.restarts", "flap"), Some(3.0));
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
    let check = seen.checks.iter().find(|c| c["check"] == "docker.service_up" && c["status"] == 2);
    let late = check.unwrap()["timestamp"].as_i64().unwrap() - killed;
    assert!(late <= 3, "told after {late} s");
    let mark = watcher.mark();
    let seen = watcher.wait(mark, "figures without an engine", |received| {
        of(received, "docker.mem.rss", "web").len() >= 2
    });
    assert!(last(&seen, "docker.cpu.usage", "burner").is_some());
    engine.up().expect("it comes back");
    watcher.wait(mark, "the return", |received| up(received) == Some(0));
    engine.run("late", &["--network", "none"], &["sleep", "600"]);
    let seen = watcher.wait(mark, "a container of afterwards", |received| {
        last(received, "docker.mem.rss", "late").is_some()
    });
    assert!(!told(&seen, "START", "late").is_empty(), "events are heard again");
}

/// What two hundred idle containers cost. Takes minutes, so it has to be asked for.
#[test]
fn two_hundred_idle_containers() {
    if std::env::var("TALLYD_DOCKER_MANY").is_err() {
        println!("SKIP two_hundred_idle_containers: takes minutes; set TALLYD_DOCKER_MANY=1");
        return;
    }
    let engine = match Engine::start() {
        Ok(engine) => engine,
        Err(reason) => {
            println!("SKIP two_hundred_idle_containers: {reason}");
            return;
        }
    };
    for i in 0..200 {
        engine.run(&format!("idle-{i}"), &["--network", "none"], &["sleep", "6000"]);
    }
    let watcher = Watcher::start(&engine, &[("flush.interval", "15")]);
    watcher.wait(0, "all containers", |received| received.named("docker.mem.rss").len() >= 200);
    let processor = || processor_seconds(&watcher.tallyd.id().to_string());
    let (before, started) = (processor(), Instant::now());
    std::thread::sleep(Duration::from_secs(90));
    let share = (processor() - before) / started.elapsed().as_secs_f64() * 100.0;
    let seconds = watcher.tallyd.figure("tallyd_collector_seconds", "docker");
    println!(
        "docker: 200 idle containers: a run took {seconds:.3} s; tallyd used {share:.2} % of a core"
    );
    assert!(seconds < 3.0 && share < 10.0, "far from what it should cost");
}
