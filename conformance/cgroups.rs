//! Cgroups of real machines, kept as folders of their files, against figures that another program
//! computed from the same files; and layouts made here against tables.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tallyd::cgroup::hierarchy::{Bounds, Hierarchy, Version};
use tallyd::cgroup::identity::{Identity, Level};
use tallyd::cgroup::proc::{self, Proc};
use tallyd::cgroup::roots::Roots;
use tallyd::cgroup::usage::{Usage, UsageReader};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/fixtures/cgroup")
}

fn machine(name: &str) -> Roots {
    Roots::of_machine(&fixtures().join(name))
}

fn expected(name: &str) -> Map<String, Value> {
    let text = fs::read_to_string(fixtures().join(name)).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

/// Asserts that every figure that is expected is there, and that there is nothing of what is
/// judged beyond it.
fn compare(who: &str, expected: &Value, found: &[(&str, Option<f64>)]) {
    let expected = expected.as_object().expect("a map");
    for (name, value) in found {
        let wanted = expected.get(*name).and_then(Value::as_f64);
        assert_eq!(*value, wanted, "{who}: {name}");
    }
    for name in expected.keys() {
        assert!(found.iter().any(|(known, _)| known == name), "{who}: {name} is not judged");
    }
}

fn float(number: Option<u64>) -> Option<f64> {
    number.map(|number| number as f64)
}

fn ratio(part: Option<u64>, whole: Option<u64>) -> Option<f64> {
    Some(part? as f64 / whole? as f64)
}

fn read(roots: &Roots, path: &str) -> Usage {
    let hierarchy = Hierarchy::find(roots).expect("cgroups");
    UsageReader::default().read(&hierarchy, path).unwrap_or_else(|| panic!("no cgroup at {path}"))
}

fn compare_network(roots: &Roots, pid: u32, who: &str, expected: &Value) {
    let text = Proc::new(&roots.proc).of(pid, "net/dev").expect("net/dev");
    let interfaces: Vec<_> = proc::interfaces(&text).filter(|i| i.name != "lo").collect();
    let expected = expected.as_object().expect("a map");
    assert_eq!(interfaces.len(), expected.len(), "{who}");
    for interface in interfaces {
        let figures = [
            ("bytes_rcvd", float(Some(interface.received.bytes))),
            ("bytes_sent", float(Some(interface.sent.bytes))),
            ("packets_rcvd", float(Some(interface.received.packets))),
            ("packets_sent", float(Some(interface.sent.packets))),
        ];
        compare(who, &expected[interface.name], &figures);
    }
}

fn pid(container: &Value) -> u32 {
    container["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}

#[test]
fn a_machine_of_version_1_reads_as_another_program_reads_it() {
    let roots = machine("v1");
    let hierarchy = Hierarchy::find(&roots).expect("cgroups");
    assert_eq!(hierarchy.version(), Version::Hybrid);
    let containers = expected("expected_v1.json");
    assert_eq!(containers.len(), 5);
    for (who, container) in &containers {
        let id = container["id"].as_str().expect("an id");
        let path = format!("/docker/{id}");
        let pid = pid(container);
        let proc = Proc::new(&roots.proc);
        assert_eq!(hierarchy.path_of_pid(&proc, pid).expect("it runs"), Some(path.clone()));
        let Usage { cpu, memory, pids, pressure, io } = read(&roots, &path);
        let limit = memory.limit;
        let with_swap = memory.rss.zip(memory.swap).map(|(rss, swap)| rss + swap);
        let gauges = [
            ("docker.cpu.shares", float(cpu.shares)),
            ("docker.cpu.limit_pct", cpu.limit(None).map(|cores| cores * 100.0)),
            ("docker.kmem.usage", float(memory.kernel)),
            ("docker.mem.cache", float(memory.cache)),
            ("docker.mem.failed_count", float(memory.limit_hits)),
            ("docker.mem.in_use", ratio(memory.rss, limit)),
            ("docker.mem.limit", float(limit)),
            ("docker.mem.rss", float(memory.rss)),
            ("docker.mem.soft_limit", float(memory.soft_limit)),
            ("docker.mem.sw_in_use", ratio(with_swap, memory.limit_with_swap)),
            ("docker.mem.sw_limit", float(memory.limit_with_swap)),
            ("docker.mem.swap", float(memory.swap)),
            ("docker.mem.working_set", float(memory.working_set())),
            ("docker.thread.count", float(pids.current)),
            ("docker.thread.limit", float(pids.limit)),
        ];
        compare(who, &container["gauges"], &gauges);
        let ticks = |ns: Option<u64>| ns.map(|ns| ns as f64 / 1e7);
        let totals = [
            ("docker.cpu.system_jiffies", ticks(cpu.system_ns)),
            ("docker.cpu.user_jiffies", ticks(cpu.user_ns)),
            ("docker.cpu.usage_ns", float(cpu.usage_ns)),
            ("docker.cpu.throttled_ns", float(cpu.throttled_ns)),
            ("docker.cpu.throttled_periods", float(cpu.throttled_periods)),
            ("nr_periods", float(cpu.periods)),
        ];
        compare(who, &container["raw_cumulative"], &totals);
        compare_network(&roots, pid, who, &container["net"]);
        assert_eq!(io, Some(Vec::new()), "{who}: this kernel counts none without a rule");
        let waited =
            pressure.cpu.and_then(|stalls| stalls.some).expect("pressure of the other tree");
        assert!(waited.total_us > 0, "{who}");
    }
}

/// The judge knows no file of version 1 with block I/O, so the figures are the files' own.
#[test]
fn block_io_of_version_1_is_read_where_the_kernel_counts_it() {
    let [io] = read(&machine("v1"), &format!("/docker/{}", "d".repeat(64))).io.expect("files")[..]
    else {
        panic!("one device")
    };
    assert_eq!((io.device.major, io.device.minor), (254, 0));
    assert_eq!((io.read_bytes, io.write_bytes), (Some(4_194_304), Some(6_299_648)));
    assert_eq!((io.reads, io.writes), (Some(64), Some(68)));
}

/// Compares a cgroup of version 2.
fn compare_unified(who: &str, expected: &Value, usage: &Usage) {
    let Usage { cpu, memory, pids, pressure, io } = usage;
    let kernel = memory.kernel_stack.zip(memory.slab).map(|(stack, slab)| stack + slab);
    let shares = cpu.weight.map(|weight| {
        // The judge's formula, to have it judge the weight.
        ((weight as f64 - 1.0) * 262_142.0 / 9999.0 + 2.0).round()
    });
    let gauges = [
        ("cpu.weight", float(cpu.weight)),
        ("docker.cpu.shares(linear inverse)", shares),
        ("docker.cpu.limit_pct", cpu.limit(None).map(|cores| cores * 100.0)),
        ("docker.kmem.usage", float(kernel)),
        ("docker.mem.cache", float(memory.cache)),
        ("docker.mem.failed_count(max)", float(memory.limit_hits)),
        ("docker.mem.in_use", ratio(memory.rss, memory.limit)),
        ("docker.mem.limit", float(memory.limit)),
        ("docker.mem.rss", float(memory.rss)),
        ("docker.mem.soft_limit", float(memory.soft_limit)),
        ("docker.mem.sw_limit(total=max+swap.max)", float(memory.limit_with_swap)),
        ("docker.mem.swap", float(memory.swap)),
        ("docker.mem.working_set", float(memory.working_set())),
        ("docker.thread.count", float(pids.current)),
        ("docker.thread.limit", float(pids.limit)),
        ("mem.peak", float(memory.peak)),
        ("mem.usage", float(memory.usage)),
        ("oom", float(memory.oom_events)),
        ("oom_kill", float(memory.oom_kills)),
    ];
    compare(who, &expected["gauges"], &gauges);
    let io = io.as_ref().expect("io.stat");
    let sum = |of: fn(&tallyd::cgroup::usage::DeviceIo) -> Option<u64>| {
        Some(io.iter().filter_map(of).sum::<u64>() as f64)
    };
    let totals = [
        ("cpu.system_ns", float(cpu.system_ns)),
        ("cpu.usage_ns", float(cpu.usage_ns)),
        ("cpu.user_ns", float(cpu.user_ns)),
        ("docker.cpu.throttled_ns", float(cpu.throttled_ns)),
        ("docker.cpu.throttled_periods", float(cpu.throttled_periods)),
        ("io.rbytes", sum(|io| io.read_bytes)),
        ("io.rios", sum(|io| io.reads)),
        ("io.wbytes", sum(|io| io.write_bytes)),
        ("io.wios", sum(|io| io.writes)),
    ];
    compare(who, &expected["raw_cumulative"], &totals);
    let stalls = [
        ("cpu.some", pressure.cpu.and_then(|p| p.some)),
        ("cpu.full", pressure.cpu.and_then(|p| p.full)),
        ("memory.some", pressure.memory.and_then(|p| p.some)),
        ("memory.full", pressure.memory.and_then(|p| p.full)),
        ("io.some", pressure.io.and_then(|p| p.some)),
        ("io.full", pressure.io.and_then(|p| p.full)),
    ];
    let stalls = stalls.map(|(name, stall)| (name, stall.map(|stall| stall.total_us as f64)));
    compare(who, &expected["psi_total_usec"], &stalls);
}

#[test]
fn a_machine_of_version_2_reads_as_another_program_reads_it() {
    let rounds = expected("expected_v2_docker.json");
    assert_eq!(rounds.len(), 2);
    for (round, containers) in &rounds {
        let roots = machine(&format!("v2_docker/{round}"));
        let hierarchy = Hierarchy::find(&roots).expect("cgroups");
        assert_eq!(hierarchy.version(), Version::V2);
        let containers = containers.as_object().expect("a map");
        assert_eq!(containers.len(), 3);
        for (who, container) in containers {
            let id = container["id"].as_str().expect("an id");
            let path = format!("/docker/{id}");
            let pid = pid(container);
            let proc = Proc::new(&roots.proc);
            assert_eq!(hierarchy.path_of_pid(&proc, pid).expect("it runs"), Some(path.clone()));
            compare_unified(who, container, &read(&roots, &path));
            compare_network(&roots, pid, who, &container["net"]);
        }
    }
}

#[test]
fn every_style_of_naming_is_found_and_reads_as_another_program_reads_it() {
    let roots = machine("v2_layouts");
    let hierarchy = Hierarchy::find(&roots).expect("cgroups");
    let groups = expected("expected_v2_layouts.json");
    let mut walked = Vec::new();
    hierarchy.walk(Bounds::default(), |found| {
        walked.push(found.path[1..].to_owned());
        true
    });
    for path in groups.keys() {
        assert!(walked.contains(path), "{path} is not in {walked:#?}");
    }
    for (path, group) in &groups {
        compare_unified(path, group, &read(&roots, path));
    }
    let mut containers: Vec<_> = walked
        .iter()
        .map(|path| Identity::of_path(path))
        .filter(|identity| identity.level == Level::Container)
        .map(|identity| {
            let id = identity.container_id.expect("an id");
            (id[..1].to_owned(), identity.runtime.map(|r| r.word()), identity.pod_uid)
        })
        .collect();
    containers.sort();
    let pod = "11111111-2222-3333-4444-555555555555".to_owned();
    assert_eq!(
        containers,
        [
            ("a".to_owned(), Some("docker"), None),
            ("b".to_owned(), Some("containerd"), Some(pod)),
            ("c".to_owned(), Some("podman"), None),
            ("d".to_owned(), Some("docker"), None),
        ]
    );
}
