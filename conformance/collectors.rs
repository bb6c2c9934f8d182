//! Collectors over machines in folders, over a machine made here, and over real cgroups.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tallyd::cgroup::roots::Roots;
use tallyd::collectors::cgroup::{self, CgroupCheck};
use tallyd::collectors::{Collector, Samples};
use tallyd::origin::directory::{Directory, EntityTags, Place, Source, Told};
use tallyd::sample::Kind;
use tallyd::time::Time;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/fixtures/cgroup")
}

fn check(roots: Roots) -> CgroupCheck {
    check_with(cgroup::Config::default(), roots)
}

/// Where no other collector tells anything.
fn check_with(config: cgroup::Config, roots: Roots) -> CgroupCheck {
    CgroupCheck::new(config, roots, Arc::new(Directory::new(Arc::default())))
}

/// One run at a second, whose samples stay in `samples`.
fn run(check: &mut CgroupCheck, samples: &mut Samples, second: i64) -> anyhow::Result<()> {
    run_at(check, samples, Time::from_seconds(second))
}

fn run_at(check: &mut CgroupCheck, samples: &mut Samples, now: Time) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    samples.begin(now, Duration::from_secs(60));
    let outcome = runtime.block_on(check.run(samples, now));
    samples.end(outcome.is_ok());
    outcome
}

/// Figures by name.
type Found = BTreeMap<String, f64>;

/// What was found of the cgroup that has a tag.
fn of(samples: &Samples, tag: &str) -> Found {
    let has = |tags: &tallyd::collectors::Tags| tags.iter().any(|own| own == tag);
    let of_tag = samples.numbers().filter(|(.., tags)| has(tags));
    of_tag.map(|(name, _, value, _)| (name.to_owned(), value)).collect()
}

#[test]
fn rates_of_a_real_machine_are_what_another_program_computes() {
    let folder = tempfile::tempdir().expect("a folder");
    // The second reading takes the place of the first: the same cgroups, as inodes go.
    let machine = folder.path().join("machine");
    copy(&fixtures().join("v2_docker/round1"), &machine);
    let text = fs::read_to_string(fixtures().join("expected_v2_docker.json")).expect("a fixture");
    let rounds: Value = serde_json::from_str(&text).expect("JSON");
    let (mut check, mut samples) = (check(Roots::of_machine(&machine)), Samples::default());
    run(&mut check, &mut samples, 1000).expect("a run");
    assert!(samples.numbers().all(|(name, kind, ..)| {
        kind == Kind::Gauge && !name.starts_with("container.io") && !name.ends_with("_stall")
    }));
    copy(&fixtures().join("v2_docker/round2"), &machine);
    run(&mut check, &mut samples, 1005).expect("a run");
    let (first, second) = (&rounds["round1"], &rounds["round2"]);
    for who in ["fx-web", "fx-worker", "fx-hostcg"] {
        let id = second[who]["id"].as_str().expect("an id");
        let found = of(&samples, &format!("container_id:{id}"));
        let gauge = |name: &str| second[who]["gauges"][name].as_f64();
        let delta = |section: &str, name: &str| {
            let total = |round: &Value| round[who][section][name].as_f64().expect("a total");
            total(second) - total(first)
        };
        let per_second = |section, name, scale: f64| Some(delta(section, name) * scale / 5.0);
        for (name, expected) in [
            ("container.cpu.usage", per_second("raw_cumulative", "cpu.usage_ns", 1.0)),
            ("container.cpu.user", per_second("raw_cumulative", "cpu.user_ns", 1.0)),
            ("container.cpu.system", per_second("raw_cumulative", "cpu.system_ns", 1.0)),
            (
                "container.cpu.throttled",
                per_second("raw_cumulative", "docker.cpu.throttled_ns", 1.0),
            ),
            (
                "container.cpu.throttled.periods",
                per_second("raw_cumulative", "docker.cpu.throttled_periods", 1.0),
            ),
            ("container.cpu.partial_stall", per_second("psi_total_usec", "cpu.some", 1e3)),
            ("container.cpu.full_stall", per_second("psi_total_usec", "cpu.full", 1e3)),
            ("container.memory.partial_stall", per_second("psi_total_usec", "memory.some", 1e3)),
            ("container.io.full_stall", per_second("psi_total_usec", "io.full", 1e3)),
            ("container.cpu.limit", gauge("docker.cpu.limit_pct").map(|percent| percent * 1e7)),
            ("container.memory.usage", gauge("mem.usage")),
            ("container.memory.usage.peak", gauge("mem.peak")),
            ("container.memory.rss", gauge("docker.mem.rss")),
            ("container.memory.cache", gauge("docker.mem.cache")),
            ("container.memory.swap", gauge("docker.mem.swap")),
            ("container.memory.working_set", gauge("docker.mem.working_set")),
            ("container.memory.limit", gauge("docker.mem.limit")),
            ("container.memory.soft_limit", gauge("docker.mem.soft_limit")),
            ("container.pid.thread_count", gauge("docker.thread.count")),
            ("container.pid.thread_limit", gauge("docker.thread.limit")),
            ("container.memory.oom_events", Some(delta("gauges", "oom"))),
            ("container.memory.oom_kills", Some(delta("gauges", "oom_kill"))),
        ] {
            let found = found.get(name).copied();
            let near = match (found, expected) {
                (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs(),
                (a, b) => a == b,
            };
            assert!(near, "{who}: {name} is {found:?}, not {expected:?}");
        }
        let written = delta("raw_cumulative", "io.wbytes") / 5.0;
        assert_eq!(found.get("container.io.write").copied().unwrap_or_default(), written, "{who}");
    }
    let io = samples.numbers().find(|(name, ..)| *name == "container.io.write").expect("block I/O");
    let tags: Vec<_> = io.3.iter().filter(|tag| tag.starts_with("device")).collect();
    assert_eq!(tags, ["device:vda", "device_name:vda"]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::write(&target, fs::read(entry.path()).expect("a file")).expect("a file");
        }
    }
}

/// The tags of every cgroup that is reported, after two runs: all have processor time.
fn tags_of_all(check: &mut CgroupCheck, samples: &mut Samples) -> Vec<String> {
    run(check, samples, 0).expect("a run");
    run(check, samples, 10).expect("a run");
    let cpu = samples.numbers().filter(|(name, ..)| *name == "container.cpu.usage");
    let mut tags: Vec<_> = cpu.map(|(.., tags)| tags.as_str().to_owned()).collect();
    tags.sort_unstable();
    tags
}

/// Every cgroup of the machine with all styles of names.
#[test]
fn tags_tell_what_a_cgroup_is() {
    let machine = fixtures().join("v2_layouts");
    let (mut check, mut samples) = (check(Roots::of_machine(&machine)), Samples::default());
    let tags = tags_of_all(&mut check, &mut samples);
    let a = format!("{}0001", "a".repeat(60));
    let b = format!("{}0002", "b".repeat(60));
    let c = format!("{}0003", "c".repeat(60));
    let d = format!("{}0004", "d".repeat(60));
    let pod = "11111111-2222-3333-4444-555555555555";
    assert_eq!(
        tags,
        [
            format!(
                "cgroup_level:container,runtime:containerd,container_id:{b},\
                 container_name:{},pod_uid:{pod}",
                &b[..12]
            ),
            format!(
                "cgroup_level:container,runtime:docker,container_id:{a},container_name:{},\
                 systemd_slice:system.slice",
                &a[..12]
            ),
            format!(
                "cgroup_level:container,runtime:docker,container_id:{d},container_name:{}",
                &d[..12]
            ),
            format!(
                "cgroup_level:container,runtime:podman,container_id:{c},container_name:{},\
                 systemd_slice:machine.slice",
                &c[..12]
            ),
            format!("cgroup_level:pod,pod_uid:{pod}"),
            "cgroup_level:slice,systemd_slice:system.slice".to_owned(),
            "cgroup_level:unit,systemd_unit:sshd.service,systemd_slice:system.slice".to_owned(),
        ]
    );
}

#[test]
fn patterns_and_levels_choose() {
    let chosen = |change: fn(&mut cgroup::Config)| {
        let mut config = cgroup::Config::default();
        change(&mut config);
        let mut check = check_with(config, Roots::of_machine(&fixtures().join("v2_layouts")));
        let mut samples = Samples::default();
        let tags = tags_of_all(&mut check, &mut samples);
        (tags.len(), samples.left_out())
    };
    assert_eq!(chosen(|_| {}), (7, 0));
    assert_eq!(chosen(|c| c.levels = vec!["container".into()]), (4, 0));
    assert_eq!(chosen(|c| c.levels = vec!["unit".into(), "pod".into()]), (2, 0));
    assert_eq!(chosen(|c| c.exclude = vec!["/system.slice*".into()]), (4, 0));
    assert_eq!(chosen(|c| c.exclude = vec!["runtime:docker".into()]), (5, 0));
    assert_eq!(chosen(|c| c.exclude = vec!["runtime:dock".into()]), (7, 0), "not a whole word");
    assert_eq!(
        chosen(|c| {
            c.exclude = vec!["*".into()];
            c.include = vec!["systemd_unit:ssh*".into(), "runtime:podman".into()];
        }),
        (2, 0)
    );
    assert_eq!(chosen(|c| c.include = vec!["runtime:podman".into()]), (7, 0));
    assert_eq!(chosen(|c| c.max_depth = 1), (1, 0));
    // Eleven cgroups, of which the folder of Docker is of no level; containers go first. Three
    // slices were caught without their files.
    assert_eq!(chosen(|c| c.max_cgroups = 4), (4, 6));
    assert_eq!(chosen(|c| c.max_cgroups = 5), (5, 5));
}

/// Every machine together sends each name of the table, by its kind, and no other; but for what
/// these kernels do not have.
#[test]
fn the_names_are_those_of_the_table() {
    let more = cgroup::Config::default();
    let config = cgroup::Config {
        memory_details: true,
        pressure_averages: true,
        cadvisor_names: true,
        ..more
    };
    let mut sent = BTreeSet::new();
    for machine in ["v1", "v2_docker/round1", "v2_layouts"] {
        let roots = Roots::of_machine(&fixtures().join(machine));
        let (mut check, mut samples) = (check_with(config.clone(), roots), Samples::default());
        for second in [0, 15] {
            run(&mut check, &mut samples, second).expect("a run");
            // One row stands for all averages.
            let row = |name: &str| match name.split_once(".avg") {
                Some((_, "10" | "60" | "300")) => "container.cpu.partial_stall.avg10".to_owned(),
                _ => name.to_owned(),
            };
            sent.extend(samples.numbers().map(|(name, kind, ..)| (row(name), kind)));
        }
    }
    let kind = |word| if word == "count" { Kind::Count } else { Kind::Gauge };
    let all = cgroup::METRICS.iter().chain(cgroup::cadvisor::METRICS);
    let mut listed: Vec<_> = all.map(|m| (m.name.to_owned(), kind(m.kind))).collect();
    listed.sort();
    let absent = |(name, _): &(String, Kind)| {
        // Nor do the folders have their processes' files.
        let none = [
            "container.memory.min",
            "container.pid.open_files",
            "container.uptime",
            "container.restarts",
            "container_start_time_seconds",
        ];
        name.starts_with("container.irq") || none.contains(&name.as_str())
    };
    listed.retain(|row| !absent(row));
    assert_eq!(sent.into_iter().collect::<Vec<_>>(), listed);
}

#[test]
fn cadvisors_names_have_the_same_figures_in_base_units() {
    let folder = tempfile::tempdir().expect("a folder");
    let machine = folder.path().join("machine");
    copy(&fixtures().join("v2_docker/round1"), &machine);
    let text = fs::read_to_string(fixtures().join("expected_v2_docker.json")).expect("a fixture");
    let rounds: Value = serde_json::from_str(&text).expect("JSON");
    let id = rounds["round2"]["fx-worker"]["id"].as_str().expect("an id");
    let directory = Arc::new(Directory::new(Arc::default()));
    let low = ["kube_namespace:shop", "image_name:reg:5000/web", "image_tag:7"].map(str::to_owned);
    let orchestrator = vec!["pod_name:web-0".to_owned()];
    let high = vec!["container_name:fx".to_owned()];
    let tags = Arc::new(EntityTags { low: low.to_vec(), orchestrator, high });
    directory.publish(Source::Kubelet, id, Told { tags, ..Told::default() });
    let config = cgroup::Config { cadvisor_names: true, ..cgroup::Config::default() };
    let mut check = CgroupCheck::new(config, Roots::of_machine(&machine), directory);
    let mut samples = Samples::default();
    run(&mut check, &mut samples, 1000).expect("a run");
    copy(&fixtures().join("v2_docker/round2"), &machine);
    run(&mut check, &mut samples, 1005).expect("a run");
    let found = of(&samples, "pod:web-0");
    let total = |round: &str, section: &str, name: &str| {
        rounds[round]["fx-worker"][section][name].as_f64().expect("a total")
    };
    let added = |section, name| total("round2", section, name) - total("round1", section, name);
    for (name, expected) in [
        ("container_cpu_usage_seconds_total", added("raw_cumulative", "cpu.usage_ns") / 1e9),
        ("container_pressure_cpu_waiting_seconds_total", added("psi_total_usec", "cpu.some") / 1e6),
        ("container_memory_rss", total("round2", "gauges", "docker.mem.rss")),
        ("container_memory_working_set_bytes", total("round2", "gauges", "docker.mem.working_set")),
        ("container_last_seen", 1005.0),
    ] {
        let found = found.get(name).copied().unwrap_or(f64::NAN);
        assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{name}: {found}, {expected}");
    }
    let of_container = samples.numbers().find(|(name, .., tags)| {
        *name == "container_memory_rss" && tags.iter().any(|tag| tag == "pod:web-0")
    });
    let labels: BTreeSet<_> = of_container.expect("a figure").3.iter().collect();
    let path = labels.iter().find_map(|label| label.strip_prefix("id:")).expect("a path");
    assert!(path.starts_with('/') && path.contains(id), "{path}");
    let rest = ["image:reg:5000/web:7", "name:fx", "namespace:shop", "pod:web-0"];
    assert!(rest.iter().all(|label| labels.contains(label)) && labels.len() == 5, "{labels:?}");
}

#[test]
fn what_others_know_of_a_container_counts() {
    let (folder, root) = empty_machine();
    let id = |i: u32| format!("{i:064x}");
    let add = |i: u32| {
        let cgroup = root.join(format!("docker/{}", id(i)));
        fs::create_dir_all(&cgroup).expect("a folder");
        fs::write(cgroup.join("pids.current"), "3\n").expect("a file");
        fs::write(cgroup.join("cgroup.procs"), format!("{}\n{}\n", 70 + i, 700 + i)).unwrap();
        for (pid, ticks) in [(70 + i, 2000), (700 + i, 2500)] {
            let process = folder.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&process).expect("a folder");
            let zeros = "0 ".repeat(17);
            fs::write(process.join("stat"), format!("{pid} (a) S 1 {zeros}{ticks} 0 0 0 0\n"))
                .unwrap();
        }
    };
    let proc = folder.path().join("proc");
    fs::create_dir_all(&proc).expect("a folder");
    let at = |seconds: i64| fs::write(proc.join("uptime"), format!("{seconds}.50 9.00\n")).unwrap();
    [1, 2, 3].into_iter().for_each(add);
    let directory = Arc::new(Directory::new(Arc::default()));
    let roots = Roots::of_machine(folder.path());
    let mut samples = Samples::default();
    let told = |low: &str, is_measured| Told {
        tags: Arc::new(EntityTags { low: vec![low.to_owned()], ..EntityTags::default() }),
        is_measured,
        restarts: Some(2),
        ..Told::default()
    };
    let start = |docker_too| {
        let config = cgroup::Config { docker_too, ..cgroup::Config::default() };
        CgroupCheck::new(config, roots.clone(), Arc::clone(&directory))
    };
    let seen = |samples: &Samples| {
        [1, 2, 3, 4].map(|i| !of(samples, &format!("container_id:{}", id(i))).is_empty())
    };
    let mut check = start(false);
    at(100);
    // Nobody else is there.
    run(&mut check, &mut samples, 0).expect("a run");
    assert_eq!(seen(&samples), [true, true, true, false]);
    directory.publish(Source::Engine, &id(1), told("image_name:web", true));
    directory.publish(Source::Kubelet, &id(2), told("container_name:app", false));
    let _engine = directory.wanted();
    add(4);
    run(&mut check, &mut samples, 15).expect("a run");
    assert_eq!(seen(&samples), [false, true, true, false], "an engine may tell of the fourth");
    let named = of(&samples, "container_name:app");
    assert_eq!((named["container.uptime"], named["container.restarts"]), (80.5, 2.0));
    assert_eq!(named["container.pid.thread_count"], 3.0);
    at(115);
    run(&mut check, &mut samples, 30).expect("a run");
    assert_eq!(seen(&samples), [false, true, true, true], "nobody did");
    directory.publish(Source::Kubelet, &id(2), told("container_name:new", false));
    run(&mut check, &mut samples, 45).expect("a run");
    assert_eq!(of(&samples, "container_name:new")["container.uptime"], 95.5);
    assert!(of(&samples, "container_name:app").is_empty());
    let mut check = start(true);
    run(&mut check, &mut samples, 60).expect("a run");
    assert_eq!(seen(&samples), [true; 4]);
    assert_eq!(of(&samples, "image_name:web")["container.restarts"], 2.0);
}

const POD: &str = "0b1c2d3e-1111-2222-3333-444455556666";

/// A pod of two containers, and of one that holds their network, as containerd's are named. Returns
/// their ids, and the file of what their network has moved.
fn pod_in(machine: &Path) -> ([String; 3], PathBuf) {
    let name = format!("kubepods.slice/kubepods-pod{}.slice", POD.replace('-', "_"));
    let pod = machine.join("sys/fs/cgroup").join(name);
    fs::create_dir_all(&pod).unwrap();
    fs::write(pod.join("pids.current"), "9\n").unwrap();
    let network = |pid: u32| machine.join(format!("proc/{pid}/net/dev"));
    fs::create_dir_all(network(1).parent().unwrap()).unwrap();
    fs::write(network(1), "").unwrap();
    let ids = [(11, "web"), (12, "side"), (13, "pause")].map(|(pid, program)| {
        let id = format!("{pid:064x}");
        let cgroup = pod.join(format!("cri-containerd-{id}.scope"));
        fs::create_dir_all(&cgroup).unwrap();
        fs::write(cgroup.join("pids.current"), "3\n").unwrap();
        fs::write(cgroup.join("cgroup.procs"), format!("{pid}\n")).unwrap();
        let process = machine.join(format!("proc/{pid}"));
        fs::create_dir_all(process.join("net")).unwrap();
        let stat = format!("{pid} ({program}) S 1 {}2000 0 0 0 0\n", "0 ".repeat(17));
        fs::write(process.join("stat"), stat).unwrap();
        // Networks are told apart by the inode.
        if pid == 11 {
            fs::write(network(11), "").unwrap();
        } else {
            fs::hard_link(network(11), network(pid)).unwrap();
        }
        id
    });
    (ids, network(11))
}

/// Tells of a container of the pod as the kubelet does.
fn tell(directory: &Directory, id: &str, is_excluded: bool) {
    let high = vec![format!("container_name:{}", id.trim_start_matches('0'))];
    let tags = Arc::new(EntityTags { high, ..EntityTags::default() });
    let low = vec!["kube_namespace:shop".to_owned()];
    let of_pod = Some(Arc::new(EntityTags { low, ..EntityTags::default() }));
    let pod = Some(Place { uid: POD.into(), name: "".into(), tags: of_pod });
    let told = Told { pod, tags, is_excluded, ..Told::default() };
    directory.publish(Source::Kubelet, id, told);
}

#[test]
fn pods_have_tags_and_what_is_excluded_is_left_out() {
    let (folder, _) = empty_machine();
    let (ids, _) = pod_in(folder.path());
    let directory = Arc::new(Directory::new(Arc::default()));
    let start = |exclude_pause_container| {
        let config = cgroup::Config { exclude_pause_container, ..cgroup::Config::default() };
        CgroupCheck::new(config, Roots::of_machine(folder.path()), Arc::clone(&directory))
    };
    let mut samples = Samples::default();
    let mut seen = |check: &mut CgroupCheck| {
        run(check, &mut samples, 0).expect("a run");
        let is_there = |tag: &str| of(&samples, tag).contains_key("container.pid.thread_count");
        let containers = ids.each_ref().map(|id| is_there(&format!("container_id:{id}")));
        (containers, is_there("cgroup_level:pod"), is_there("kube_namespace:shop"))
    };
    let tell = |i: usize, is_excluded| tell(&directory, &ids[i], is_excluded);
    let mut check = start(true);
    assert_eq!(seen(&mut check), ([true, true, false], true, false), "nobody tells of the pod");
    tell(0, false);
    tell(1, true);
    assert_eq!(seen(&mut check), ([true, false, false], true, true));
    tell(0, true);
    assert_eq!(seen(&mut check), ([false; 3], false, false), "nothing is left of it");
    tell(0, false);
    tell(1, false);
    assert_eq!(seen(&mut check), ([true, true, false], true, true), "it is wanted again");
    assert_eq!(seen(&mut start(false)), ([true; 3], true, true));
}

#[test]
fn a_network_is_reported_once() {
    let (folder, _) = empty_machine();
    let (ids, network) = pod_in(folder.path());
    let directory = Arc::new(Directory::new(Arc::default()));
    let moved = |bytes: u32| {
        let figures = format!("{bytes} {0} 0 0 0 0 0 0 {1} {0} 0 0 0 0 0 0", bytes / 10, bytes * 2);
        let text = format!("Inter-| Receive\n face |bytes\n    lo: {figures}\n  eth0: {figures}\n");
        // Written in place: it stays the same network.
        fs::write(&network, text).unwrap();
    };
    let mut samples = Samples::default();
    let mut seen = |check: &mut CgroupCheck| {
        let mut found = Vec::new();
        for (second, bytes) in [(0, 1000), (10, 2000)] {
            moved(bytes);
            run(check, &mut samples, second).expect("a run");
            let net = samples.numbers().filter(|(name, ..)| name.starts_with("container.net."));
            found =
                net.map(|(name, _, value, tags)| (name.to_owned(), value, tags.clone())).collect();
            assert!(second > 0 || found.is_empty(), "{found:?}");
        }
        found
    };
    let start = |network| {
        let config = cgroup::Config { network, ..cgroup::Config::default() };
        CgroupCheck::new(config, Roots::of_machine(folder.path()), Arc::clone(&directory))
    };
    assert_eq!(seen(&mut start(false)), []);
    ids[..2].iter().for_each(|id| tell(&directory, id, false));
    let all = seen(&mut start(true));
    let values: Vec<_> = all.iter().map(|(name, value, _)| (&**name, *value)).collect();
    assert_eq!(
        values,
        [
            ("container.net.rcvd", 100.0),
            ("container.net.sent", 200.0),
            ("container.net.rcvd.packets", 10.0),
            ("container.net.sent.packets", 10.0),
        ]
    );
    let tags = |all: &[(String, f64, tallyd::collectors::Tags)]| {
        all[0].2.iter().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let pod = format!("pod_uid:{POD}");
    let expected = ["interface:eth0", "kube_namespace:shop", &pod, "runtime:containerd"];
    assert_eq!(tags(&all), BTreeSet::from(expected.map(str::to_owned)));
    // Of one container alone it has its tags.
    tell(&directory, &ids[1], true);
    let all = seen(&mut start(true));
    assert!(tags(&all).contains("container_name:b"), "{all:?}");
    assert_eq!(all.len(), 4);
    // The machine's own is nobody's.
    let of_machine = folder.path().join("proc/1/net/dev");
    fs::remove_file(&of_machine).unwrap();
    fs::hard_link(&network, of_machine).unwrap();
    assert_eq!(seen(&mut start(true)), []);
}

#[test]
fn a_run_without_time_ends_with_what_it_has() {
    let roots = Roots::of_machine(&fixtures().join("v2_layouts"));
    let (mut check, mut samples) = (check(roots), Samples::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    samples.begin(Time::default(), Duration::ZERO);
    let outcome = runtime.block_on(check.run(&mut samples, Time::default()));
    let error = outcome.expect_err("there was no time").to_string();
    assert_eq!(error, "out of time after 0 of 10 cgroups");
}

/// A machine of version 2 with nothing in it.
fn empty_machine() -> (tempfile::TempDir, PathBuf) {
    // In memory where there is such a place: some tests touch many files.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let folder = folder.expect("a folder");
    let root = folder.path().join("sys/fs/cgroup");
    fs::create_dir_all(&root).expect("a folder");
    fs::write(root.join("cgroup.controllers"), "cpu io memory pids\n").expect("a file");
    (folder, root)
}

#[test]
fn a_hundred_thousand_short_lived_containers_leave_nothing_behind() {
    const AT_ONCE: usize = 250;
    const GENERATIONS: usize = 400;
    // With one controller, so that there is little to read.
    let (folder, root) = empty_machine();
    fs::remove_file(root.join("cgroup.controllers")).expect("a file");
    let (mut check, mut samples) = (check(Roots::of_machine(folder.path())), Samples::default());
    let path = |generation: usize, i: usize| {
        root.join("pids/docker").join(format!("{:064x}", generation * AT_ONCE + i))
    };
    for i in 0..AT_ONCE {
        let container = path(0, i);
        fs::create_dir_all(&container).expect("a folder");
        fs::write(container.join("pids.current"), "1\n").expect("a file");
        fs::write(container.join("pids.events"), "max 1\n").expect("a file");
    }
    let (mut most_known, mut most_totals) = (0, 0);
    for generation in 0..GENERATIONS {
        run(&mut check, &mut samples, 15 * generation as i64).expect("a run");
        most_known = most_known.max(check.known());
        most_totals = most_totals.max(samples.totals());
        assert_eq!(samples.len(), AT_ONCE, "each has its gauge, and none a past to count from");
        for i in 0..AT_ONCE {
            fs::rename(path(generation, i), path(generation + 1, i)).expect("a new container");
        }
    }
    // The folder that they are in is known too.
    assert_eq!((most_known, most_totals), (AT_ONCE + 1, AT_ONCE));
    fs::remove_dir_all(root.join("pids/docker")).expect("all gone");
    run(&mut check, &mut samples, 15 * GENERATIONS as i64).expect("a run");
    assert_eq!((check.known(), samples.totals(), samples.len()), (0, 0, 0));
}

#[test]
fn a_cgroup_made_anew_under_its_old_path_has_no_past() {
    let (folder, root) = empty_machine();
    let (mut check, mut samples) = (check(Roots::of_machine(folder.path())), Samples::default());
    let unit = root.join("system.slice/web.service");
    let total = |usec: u64| {
        fs::create_dir_all(&unit).expect("a folder");
        fs::write(unit.join("cpu.stat"), format!("usage_usec {usec}\n")).expect("a file");
    };
    let mut rate = |second| {
        run(&mut check, &mut samples, second).expect("a run");
        of(&samples, "systemd_unit:web.service").get("container.cpu.usage").copied()
    };
    total(1_000_000);
    assert_eq!(rate(0), None);
    total(3_000_000);
    assert_eq!(rate(10), Some(2e8));
    fs::rename(&unit, root.join("old")).expect("out of the way");
    total(50_000_000);
    assert_eq!(rate(20), None, "the inode is another one");
    total(51_000_000);
    assert_eq!(rate(30), Some(1e8));
}

#[test]
fn what_the_kernel_does_not_say_is_absent() {
    let (folder, root) = empty_machine();
    let (mut check, mut samples) = (check(Roots::of_machine(folder.path())), Samples::default());
    let unit = root.join("system.slice/web.service");
    fs::create_dir_all(&unit).expect("a folder");
    fs::write(unit.join("pids.current"), "7\n").expect("a file");
    fs::write(unit.join("pids.max"), "max\n").expect("a file");
    fs::write(unit.join("memory.max"), "max\n").expect("a file");
    fs::write(unit.join("io.stat"), "").expect("a file");
    for second in [0, 10] {
        run(&mut check, &mut samples, second).expect("a run");
    }
    let found = of(&samples, "systemd_unit:web.service");
    assert_eq!(found, BTreeMap::from([("container.pid.thread_count".to_owned(), 7.0)]));
}

#[test]
fn no_cgroups_at_all_is_an_error_that_says_where_they_were_looked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut check, mut samples) = (check(Roots::of_machine(folder.path())), Samples::default());
    let error = run(&mut check, &mut samples, 0).expect_err("nothing is there");
    let place = folder.path().join("sys/fs/cgroup").display().to_string();
    assert!(format!("{error:#}").contains(&place), "{error:#}");
    // They may come late.
    let unit = folder.path().join("sys/fs/cgroup/system.slice");
    fs::create_dir_all(&unit).expect("a folder");
    fs::write(unit.parent().expect("a parent").join("cgroup.controllers"), "").expect("a file");
    fs::write(unit.join("pids.current"), "1").expect("a file");
    run(&mut check, &mut samples, 10).expect("a run");
    assert_eq!(samples.len(), 1);
}

/// Cgroups made below the mounted hierarchies of version 1, removed at the end.
struct RealCgroups {
    unit: String,
    children: Vec<Child>,
}

const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];

impl RealCgroups {
    /// Makes `/<slice>/<unit>` for each controller, or says why that cannot be.
    fn new() -> Result<Self, String> {
        let unit = format!("tallyd-test-{}.service", std::process::id());
        for controller in CONTROLLERS {
            let folder = Self::root(controller);
            if !folder.join("cgroup.procs").exists() {
                return Err(format!("no {controller} hierarchy of version 1 is mounted"));
            }
        }
        let made = Self { unit, children: Vec::new() };
        for controller in CONTROLLERS {
            fs::create_dir_all(made.folder(controller))
                .map_err(|e| format!("{controller}: {e}"))?;
        }
        Ok(made)
    }

    fn root(controller: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(controller)
    }

    fn folder(&self, controller: &str) -> PathBuf {
        Self::root(controller).join("tallydtest.slice").join(&self.unit)
    }

    fn set(&self, controller: &str, file: &str, value: &str) {
        let path = self.folder(controller).join(file);
        fs::write(&path, value).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Runs a shell in the cgroups. It waits for a line before it does anything.
    fn spawn(&mut self, script: &str) -> &mut Child {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        for controller in CONTROLLERS {
            self.set(controller, "cgroup.procs", &child.id().to_string());
        }
        child.stdin.take().expect("a pipe").write_all(b"go\n").expect("it listens");
        self.children.push(child);
        self.children.last_mut().expect("it was pushed")
    }
}

impl Drop for RealCgroups {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for controller in CONTROLLERS {
            let folder = self.folder(controller);
            // Nobody but children of those children can be in there.
            let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines() {
                let _ = Command::new("kill").args(["-9", pid]).status();
            }
            // What was killed takes a moment to leave.
            let deadline = Instant::now() + Duration::from_secs(5);
            while fs::remove_dir(&folder).is_err() && folder.exists() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            // Another test may still have its own in there.
            let _ = fs::remove_dir(folder.parent().expect("a slice"));
        }
    }
}

#[test]
fn a_real_cgroup_under_a_quota_and_a_limit() {
    let mut cgroups = match RealCgroups::new() {
        Ok(cgroups) => cgroups,
        Err(reason) => {
            println!("SKIP a_real_cgroup_under_a_quota_and_a_limit: {reason}");
            return;
        }
    };
    cgroups.set("cpu", "cpu.cfs_period_us", "20000");
    cgroups.set("cpu", "cpu.cfs_quota_us", "4000");
    cgroups.set("pids", "pids.max", "50");
    let config = cgroup::Config {
        include: vec![format!("systemd_unit:{}", cgroups.unit)],
        exclude: vec!["*".to_owned()],
        open_files: true,
        ..cgroup::Config::default()
    };
    let roots = Roots::find("/proc", "/sys/fs/cgroup", |_| None);
    let (mut check, mut samples) = (check_with(config, roots), Samples::default());
    let tag = format!("systemd_unit:{}", cgroups.unit);
    let mut measured =
        |cgroups: &mut RealCgroups, script: &str, enough: &dyn Fn(&Found) -> bool| {
            cgroups.spawn(script);
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let begun = Instant::now();
                run_at(&mut check, &mut samples, Time::now()).expect("a run");
                let found = of(&samples, &tag);
                if enough(&found) {
                    return found;
                }
                assert!(Instant::now() < deadline, "{script}: {found:#?}");
                std::thread::sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
            }
        };
    // A fifth of a processor, as far as the machine has one to give.
    let busy = measured(&mut cgroups, "while :; do :; done", &|found| {
        let usage = found.get("container.cpu.usage").copied().unwrap_or_default();
        (1.4e8..2.6e8).contains(&usage)
            && found.get("container.cpu.throttled.periods").is_some_and(|rate| *rate > 1.0)
    });
    assert_eq!(busy["container.cpu.limit"], 2e8);
    assert!(busy["container.cpu.throttled"] > 0.0, "{busy:#?}");
    assert!(busy["container.cpu.periods"] >= busy["container.cpu.throttled.periods"]);
    assert_eq!(busy["container.pid.thread_count"], 1.0);
    assert_eq!(busy["container.pid.thread_limit"], 50.0);
    assert!(busy["container.pid.open_files"] >= 3.0, "{busy:#?}");
    assert!(!busy.contains_key("container.memory.limit"), "it has none");
    // The page cache of a file longer than the limit: it is hit, and nothing is killed.
    cgroups.children.iter_mut().for_each(|child| drop(child.kill()));
    cgroups.set("cpu", "cpu.cfs_quota_us", "-1");
    cgroups.set("memory", "memory.limit_in_bytes", "8388608");
    let scratch = tempfile::tempdir().expect("a folder");
    let file = scratch.path().join("file").display().to_string();
    let script = format!("dd if=/dev/zero of={file} bs=65536 count=512; sleep 60");
    let limited = measured(&mut cgroups, &script, &|found| {
        found.get("container.memory.failed_count").is_some_and(|count| *count > 0.0)
    });
    assert_eq!(limited["container.memory.limit"], 8_388_608.0);
    assert!(limited["container.memory.usage"] <= 8_388_608.0, "{limited:#?}");
    assert_eq!(limited["container.memory.oom_kills"], 0.0);
}

/// The program, told by dd-agent's file and by dd-agent's variables where to look, over a machine in
/// a folder.
#[test]
fn the_program_collects_what_conf_d_asks_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("tallyd.yaml");
    fs::write(&config, "flush: {interval: 1}\n").expect("a file");
    fs::create_dir(folder.path().join("conf.d")).expect("a folder");
    let check = "init_config:\ninstances:\n  - levels: container\n    min_collection_interval: 1\n    colour: red\n";
    fs::write(folder.path().join("conf.d/cgroup.yaml"), check).expect("a file");
    let machine = fixtures().join("v2_docker/round1");
    let mut tallyd = Command::new(env!("CARGO_BIN_EXE_tallyd"));
    for setting in ["intake.socket=", "intake.port=0", "status.listen=127.0.0.1:0"] {
        tallyd.args(["--set", setting]);
    }
    let mut tallyd = tallyd
        .args(["--set", r#"intake.listeners=[{"address":"udp://127.0.0.1:0"}]"#, "--config"])
        .arg(&config)
        .args(["--datadog-config", "/dev/null"])
        .env_clear()
        .env("HOST_PROC", machine.join("proc"))
        .env("DD_CONTAINER_CGROUP_ROOT", machine.join("sys/fs/cgroup"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("tallyd");
    let mut said = BufReader::new(tallyd.stderr.take().expect("a pipe")).lines();
    let mut wait_for = |part: &str| loop {
        let line = said.next().unwrap_or_else(|| panic!("{part:?} was not said")).expect("text");
        if let Some((_, behind)) = line.split_once(part) {
            return behind.to_owned();
        }
    };
    wait_for("cgroup.yaml:5: unknown option \"colour\"");
    let address = wait_for("serving http://");
    let deadline = Instant::now() + Duration::from_secs(30);
    let page = loop {
        let page = get(&address, "/metrics");
        let done = |page: &String| {
            page.contains("container_memory_rss{") && page.contains("tallyd_process_memory_rss ")
        };
        if done(&page) || Instant::now() > deadline {
            break page;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    tallyd.kill().expect("it runs");
    tallyd.wait().expect("an end");
    let text = fs::read_to_string(fixtures().join("expected_v2_docker.json")).expect("a fixture");
    let rounds: Value = serde_json::from_str(&text).expect("JSON");
    for (who, container) in rounds["round1"].as_object().expect("containers") {
        let id = container["id"].as_str().expect("an id");
        let rss = container["gauges"]["docker.mem.rss"].to_string();
        let of_it = |line: &&str| line.contains("container_memory_rss{") && line.contains(id);
        let line = page.lines().find(of_it).unwrap_or_else(|| panic!("{who} is not on {page}"));
        assert!(line.ends_with(&format!(" {rss}")), "{line}");
    }
    assert!(!page.contains("cgroup_level=\"slice\""), "{page}");
    assert!(page.contains("tallyd_collector_errors_total{collector=\"cgroup\"} 0"), "{page}");
    assert!(page.contains("tallyd_process_threads "), "{page}");
}

/// The body of a page.
fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("the server");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it listens");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("a page");
    page
}
