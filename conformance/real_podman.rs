//! A real Podman behind its compatible socket: started here, with storage of its own.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::DEADLINE;
use super::real_docker::{Watcher, last, of, statuses, told};

struct Podman {
    folder: TempDir,
    service: Option<Child>,
}

impl Podman {
    /// `Err` tells why there cannot be one.
    fn start() -> Result<Self, String> {
        let folder = TempDir::new().map_err(|error| error.to_string())?;
        let mut podman = Self { folder, service: None };
        podman.run(&["version"])?;
        let socket = podman.socket();
        let service = podman.command(&["system", "service", "--time", "0", &socket]).spawn();
        podman.service = Some(service.map_err(|error| format!("podman: {error}"))?);
        let path = podman.folder.path().join("podman.sock");
        let started = Instant::now();
        while !path.exists() {
            if started.elapsed() > DEADLINE {
                return Err("podman system service: no socket".to_owned());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let root = podman.folder.path().join("image/bin");
        fs::create_dir_all(&root).map_err(|error| error.to_string())?;
        let script = format!(
            "set -e; cp $(which busybox) {root}/busybox; ln -s busybox {root}/sleep; \
             tar -C {root}/.. -cf {folder}/image.tar .",
            root = root.display(),
            folder = podman.folder.path().display(),
        );
        let made = Command::new("sh").args(["-c", &script]).status();
        if !made.is_ok_and(|status| status.success()) {
            return Err("no image: busybox and tar are needed".to_owned());
        }
        let image = podman.folder.path().join("image.tar").display().to_string();
        podman.run(&["import", &image, "localhost/bbfixture:1.35"])?;
        Ok(podman)
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.folder.path().join("podman.sock").display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        for option in ["root", "runroot"] {
            command.arg(format!("--{option}")).arg(self.folder.path().join(option));
        }
        let alone = ["--cgroup-manager", "cgroupfs", "--storage-driver", "vfs"];
        command.args(alone).args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let output = self.command(arguments).stderr(Stdio::piped()).output();
        let output = output.map_err(|error| format!("podman: {error}"))?;
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        output.status.success().then_some(()).ok_or_else(|| format!("podman: {error}"))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

#[test]
fn a_real_podman_is_seen_as_docker_is() {
    let name = "a_real_podman_is_seen_as_docker_is";
    let podman = match Podman::start() {
        Ok(podman) => podman,
        Err(reason) => return println!("SKIP {name}: {reason}"),
    };
    let options = ["-m", "64m", "--label", "com.datadoghq.tags.env=test", "--network", "none"];
    // What the machine's own limits are may be more than may be given on.
    let own = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--name", "web"];
    let command = ["localhost/bbfixture:1.35", "sleep", "600"];
    if let Err(reason) = podman.run(&[&["run", "-d"], &options[..], &own, &command].concat()) {
        return println!("SKIP {name}: no container: {reason}");
    }
    let watcher = Watcher::start(&podman.socket(), |launch| {
        launch
            .set("collectors.docker.interval", "1")
            .set("collectors.docker.budget", "1")
            .set("collectors.docker.collect_exit_codes", "true")
            .set("collectors.docker.collect_container_count", "true")
    });
    let seen =
        watcher.wait(0, "figures", |received| last(received, "docker.cpu.usage", "web").is_some());
    assert_eq!(last(&seen, "docker.mem.limit", "web"), Some(67_108_864.0));
    assert_eq!(last(&seen, "docker.thread.count", "web"), Some(1.0));
    assert!(last(&seen, "docker.uptime", "web").is_some_and(|age| age < 600.0));
    let tags = &of(&seen, "docker.mem.rss", "web")[0].tags;
    for tag in ["docker_image:localhost/bbfixture:1.35", "short_image:bbfixture", "env:test"] {
        assert!(tags.split(',').any(|own| own == tag), "{tag} in {tags}");
    }
    let counted = seen.named("docker.container.count");
    let running = counted.iter().find(|point| point.tags.contains("container_state:running"));
    assert_eq!(running.map(|point| point.value), Some(1.0));
    let mark = watcher.mark();
    podman.run(&["stop", "--time", "0", "web"]).expect("it stops");
    let exits = |received: &_| statuses(received, "docker.exit", "web");
    let seen = watcher.wait(mark, "its end", |received| {
        exits(received) == [2] && !told(received, "DIE", "web").is_empty()
    });
    assert!(seen.checks.iter().any(|check| {
        check["check"] == "docker.exit" && check["tags"].to_string().contains("exit_code:137")
    }));
    podman.run(&["start", "web"]).expect("it starts");
    watcher.wait(watcher.mark(), "its return", |received| {
        last(received, "docker.mem.rss", "web").is_some()
    });
    println!("podman: figures, states, events and exits of a real Podman came as Docker's do");
    watcher.stop();
    see_without_engine(&podman);
}

/// The kernel's files alone tell of the container, too.
fn see_without_engine(podman: &Podman) {
    let watcher = Watcher::start(&podman.socket(), |launch| {
        launch
            .set("collectors.docker.enabled", "off")
            .set("collectors.cgroup.enabled", "on")
            .set("collectors.cgroup.interval", "1")
            .set("collectors.cgroup.budget", "1")
            .set("collectors.cgroup.exclude", r#"["*"]"#)
            .set("collectors.cgroup.include", r#"["runtime:podman"]"#)
    });
    let seen =
        watcher.wait(0, "a rate", |received| !received.named("container.cpu.usage").is_empty());
    for (name, value) in
        [("container.memory.limit", 67_108_864.0), ("container.pid.thread_count", 1.0)]
    {
        let points = seen.named(name);
        let of_it = points.iter().find(|point| {
            point.value == value
                && point.tags.contains("runtime:podman")
                && point.tags.contains("cgroup_level:container")
        });
        assert!(of_it.is_some(), "{name}: {points:?}");
    }
    assert!(seen.points.iter().all(|point| !point.name.starts_with("docker.")));
    println!("podman: the cgroup check measured its container without it");
    watcher.stop();
}
