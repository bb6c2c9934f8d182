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

/// A machine made here: its mounts, what is in its cgroup tree, and where a process finds itself.
struct Layout {
    name: &'static str,
    version: Version,
    /// Lines of mountinfo behind the mount's numbers; `{}` stands for the folder of cgroups.
    mounts: &'static [&'static str],
    /// The cgroup, below the root of each tree; `{A}` stands for an id.
    path: &'static str,
    /// Trees in which it is made.
    trees: &'static [&'static str],
    /// `/proc/7/cgroup`.
    membership: &'static str,
    /// Runtime, container id or name, pod, task and unit.
    identity: [&'static str; 5],
}

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0001";
const V1: &[&str] = &["cpu,cpuacct", "memory", "pids", "blkio", "systemd"];
const V1_MOUNTS: &[&str] = &[
    "/ {}/cpu,cpuacct rw - cgroup cgroup rw,cpuacct,cpu",
    "/ {}/memory rw,relatime shared:9 - cgroup cgroup rw,memory",
    "/ {}/pids rw - cgroup cgroup rw,pids",
    "/ {}/blkio rw - cgroup cgroup rw,blkio",
    "/ {}/systemd rw - cgroup cgroup rw,xattr,name=systemd",
];
const V2: &[&str] = &[""];
const V2_MOUNTS: &[&str] = &["/ {} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"];
const V1_LINES: &str = "5:cpuacct,cpu:PATH\n4:memory:PATH\n3:pids:PATH\n1:name=systemd:PATH\n";

const LAYOUTS: &[Layout] = &[
    Layout {
        name: "v1, Docker, cgroupfs",
        version: Version::V1,
        mounts: V1_MOUNTS,
        path: "/docker/{A}",
        trees: V1,
        membership: V1_LINES,
        identity: ["docker", "{A}", "", "", ""],
    },
    Layout {
        name: "v1, Docker, systemd, without a table of mounts",
        version: Version::V1,
        mounts: &[],
        path: "/system.slice/docker-{A}.scope",
        trees: V1,
        membership: V1_LINES,
        identity: ["docker", "{A}", "", "", ""],
    },
    Layout {
        name: "v1, Docker in Docker",
        version: Version::V1,
        mounts: V1_MOUNTS,
        path: "/docker/ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff/docker/{A}",
        trees: V1,
        membership: V1_LINES,
        identity: ["docker", "{A}", "", "", ""],
    },
    Layout {
        name: "v1, Kubernetes, cgroupfs, burstable",
        version: Version::V1,
        mounts: V1_MOUNTS,
        path: "/kubepods/burstable/pod11111111-2222-3333-4444-555555555555/{A}",
        trees: V1,
        membership: V1_LINES,
        identity: ["", "{A}", "11111111-2222-3333-4444-555555555555", "", ""],
    },
    Layout {
        name: "v1, Kubernetes, guaranteed, containerd's colons",
        version: Version::V1,
        mounts: V1_MOUNTS,
        path: "/system.slice/containerd.service/\
               kubepods-pod11111111_2222_3333_4444_555555555555.slice:cri-containerd:{A}",
        trees: V1,
        membership: V1_LINES,
        identity: ["containerd", "{A}", "11111111-2222-3333-4444-555555555555", "", ""],
    },
    Layout {
        name: "v1, ECS",
        version: Version::V1,
        mounts: V1_MOUNTS,
        path: "/ecs/5a0d5ceddf6c44c1928d367a815d890f/{A}",
        trees: V1,
        membership: V1_LINES,
        identity: ["docker", "{A}", "", "5a0d5ceddf6c44c1928d367a815d890f", ""],
    },
    Layout {
        name: "v1, LXC",
        version: Version::V1,
        mounts: V1_MOUNTS,
        path: "/lxc/web",
        trees: V1,
        membership: V1_LINES,
        identity: ["lxc", "web", "", "", ""],
    },
    Layout {
        name: "v1, a unit that only systemd's own tree knows",
        version: Version::V1,
        mounts: V1_MOUNTS,
        path: "/docker/{A}",
        trees: V1,
        // The base hierarchy names no container.
        membership: "5:cpuacct,cpu:/\n4:memory:/\n1:name=systemd:PATH\n",
        identity: ["docker", "{A}", "", "", ""],
    },
    Layout {
        name: "hybrid, Docker",
        version: Version::Hybrid,
        mounts: &[
            "/ {}/unified rw - cgroup2 cgroup2 rw",
            "/ {}/memory rw - cgroup cgroup rw,memory",
            "/ {}/cpuacct,cpu rw - cgroup cgroup rw,cpu,cpuacct",
        ],
        path: "/docker/{A}",
        trees: &["unified", "memory", "cpuacct,cpu"],
        membership: "4:memory:PATH\n2:cpu,cpuacct:PATH\n0::PATH\n",
        identity: ["docker", "{A}", "", "", ""],
    },
    Layout {
        name: "v1 seen from a container that has the machine's mounts too",
        version: Version::V1,
        mounts: &[
            "/docker/bbbb /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
            "/ {}/memory ro - cgroup cgroup rw,memory",
        ],
        path: "/docker/{A}",
        trees: &["memory"],
        membership: "4:memory:PATH\n",
        identity: ["docker", "{A}", "", "", ""],
    },
    Layout {
        name: "v1 seen from a container that has its own part only",
        version: Version::V1,
        mounts: &["/docker /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"],
        path: "/{A}",
        trees: &["memory"],
        membership: "4:memory:/docker/{A}\n",
        identity: ["", "{A}", "", "", ""],
    },
    Layout {
        name: "v2, Docker, systemd",
        version: Version::V2,
        mounts: V2_MOUNTS,
        path: "/system.slice/docker-{A}.scope",
        trees: V2,
        membership: "0::PATH\n",
        identity: ["docker", "{A}", "", "", ""],
    },
    Layout {
        name: "v2 seen from another cgroup namespace",
        version: Version::V2,
        mounts: &["/../.. {} ro - cgroup2 cgroup rw"],
        path: "/system.slice/docker-{A}.scope",
        trees: V2,
        membership: "0::/../docker-{A}.scope\n",
        identity: ["docker", "{A}", "", "", ""],
    },
    Layout {
        name: "v2, Kubernetes, besteffort, CRI-O",
        version: Version::V2,
        mounts: V2_MOUNTS,
        path: "/kubepods.slice/kubepods-besteffort.slice/\
               kubepods-besteffort-pod11111111_2222_3333_4444_555555555555.slice/crio-{A}.scope",
        trees: V2,
        membership: "0::PATH\n",
        identity: ["cri-o", "{A}", "11111111-2222-3333-4444-555555555555", "", ""],
    },
    Layout {
        name: "v2, Podman, root",
        version: Version::V2,
        mounts: &[],
        path: "/machine.slice/libpod-{A}.scope",
        trees: V2,
        membership: "0::PATH/container\n",
        identity: ["podman", "{A}", "", "", ""],
    },
    Layout {
        name: "v2, Podman, rootless",
        version: Version::V2,
        mounts: V2_MOUNTS,
        path: "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope",
        trees: V2,
        membership: "0::PATH\n",
        identity: ["podman", "{A}", "", "", ""],
    },
    Layout {
        name: "v2, ECS",
        version: Version::V2,
        mounts: V2_MOUNTS,
        path: "/ecstasks.slice/ecstasks-5a0d5ceddf6c44c1928d367a815d890f.slice/docker-{A}.scope",
        trees: V2,
        membership: "0::PATH\n",
        identity: ["docker", "{A}", "", "5a0d5ceddf6c44c1928d367a815d890f", ""],
    },
    Layout {
        name: "v2, LXC with systemd in it",
        version: Version::V2,
        mounts: V2_MOUNTS,
        path: "/lxc.payload.web/system.slice/ssh.service",
        trees: V2,
        membership: "0::PATH\n",
        identity: ["lxc", "web", "", "", "ssh.service"],
    },
    Layout {
        name: "v2, a unit",
        version: Version::V2,
        mounts: V2_MOUNTS,
        path: "/system.slice/system-getty.slice/getty@tty1.service",
        trees: V2,
        membership: "0::PATH\n",
        identity: ["", "", "", "", "getty@tty1.service"],
    },
];

impl Layout {
    fn make(&self, folder: &Path) -> Roots {
        let roots = Roots::of_machine(folder);
        let cgroups = roots.sys_fs_cgroup.display().to_string();
        for tree in self.trees {
            let tree = roots.sys_fs_cgroup.join(tree);
            fs::create_dir_all(tree.join(&self.path()[1..])).expect("a folder");
            fs::write(tree.join(&self.path()[1..]).join("cgroup.procs"), "0\n7\n").expect("a file");
        }
        if self.version == Version::V2 {
            let controllers = roots.sys_fs_cgroup.join("cgroup.controllers");
            fs::write(controllers, "cpu io memory pids\n").expect("a file");
        }
        fs::create_dir_all(roots.proc.join("self")).expect("a folder");
        fs::create_dir_all(roots.proc.join("7")).expect("a folder");
        if !self.mounts.is_empty() {
            let lines = self.mounts.iter().map(|mount| format!("31 23 0:28 {mount}\n"));
            let text = lines.collect::<String>().replace("{}", &cgroups);
            fs::write(roots.proc.join("self/mountinfo"), text).expect("a file");
        }
        let membership = self.membership.replace("PATH", &self.path()).replace("{A}", A);
        fs::write(roots.proc.join("7/cgroup"), membership).expect("a file");
        roots
    }

    fn path(&self) -> String {
        self.path.replace("{A}", A)
    }
}

#[test]
fn every_layout_is_found() {
    for layout in LAYOUTS {
        let name = layout.name;
        let folder = tempfile::tempdir().expect("a folder");
        let roots = layout.make(folder.path());
        let hierarchy = Hierarchy::find(&roots).expect(name);
        assert_eq!(hierarchy.version(), layout.version, "{name}");
        let path = layout.path();

        // By walking, and from there by inode and by container.
        let mut walked = Vec::new();
        hierarchy.walk(Bounds { depth: 6, visits: 100 }, |found| {
            walked.push(found.path);
            true
        });
        assert!(walked.contains(&path), "{name}: {walked:?}");
        let inode = hierarchy.inode(&path).expect("an inode");
        let index = hierarchy.index(Bounds::default());
        assert_eq!(index.by_inode(inode), Some(&*path), "{name}");
        assert!(!index.cut, "{name}");
        let id = layout.identity[1].replace("{A}", A);
        if id == A {
            assert_eq!(index.by_container(A), Some(&*path), "{name}");
        }
        let [cut, whole] = [1, walked.len()].map(|visits| {
            let bounds = Bounds { depth: 6, visits };
            hierarchy.index(bounds).cut
        });
        assert_eq!((cut, whole), (walked.len() > 1, false), "{name}");

        // The folders of all controllers.
        for tree in layout.trees {
            for controller in tree.split(',').filter(|c| !["systemd", "unified", ""].contains(c)) {
                let found = hierarchy.controller_directory(controller, &path).expect(name);
                assert!(found.is_dir(), "{name}: {}", found.display());
            }
        }
        if layout.version != Version::V1 {
            assert!(hierarchy.unified_directory(&path).expect(name).is_dir(), "{name}");
        }

        // From a process.
        let proc = Proc::new(&roots.proc);
        let of_process = hierarchy.path_of_pid(&proc, 7).expect("it runs").expect("a path");
        let identity = Identity::of_path(&of_process);
        let found = [
            identity.runtime.map(|runtime| runtime.word().to_owned()),
            identity.container_id.or(identity.container_name),
            identity.pod_uid,
            identity.ecs_task,
            identity.unit,
        ];
        let expected = layout.identity.map(|text| text.replace("{A}", A));
        assert_eq!(found.map(Option::unwrap_or_default), expected, "{name}");
        assert_eq!(hierarchy.pids(&path), [7], "{name}: 0 is of another pid namespace");
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        assert_eq!(hierarchy.pids_within(parent), [7], "{name}");
    }
}

#[test]
fn a_missing_controller_is_named_with_the_argument_that_brings_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let roots = Roots::of_machine(folder.path());
    let file = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    let missing = || {
        let hierarchy = Hierarchy::find(&roots).expect("cgroups");
        let missing = hierarchy.missing(&Proc::new(&roots.proc));
        let lines = missing.into_iter().map(|m| format!("{}: {}", m.what, m.kernel_argument));
        lines.collect::<Vec<_>>()
    };
    file("sys/fs/cgroup/cgroup.controllers", "cpuset cpu\n");
    file("proc/cgroups", "#subsys_name\thierarchy\nmemory\t0\t1\t0\nblkio\t0\t1\t0\n");
    assert_eq!(
        missing(),
        [
            "memory: cgroup_enable=memory swapaccount=1",
            "blkio: cgroup_enable=blkio",
            "pids: none: this kernel was built without it",
            "psi: psi=1",
        ]
    );
    file("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n");
    file("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n");
    assert_eq!(missing(), Vec::<String>::new());
    file("sys/fs/cgroup/cgroup.subtree_control", "cpu io pids\n");
    assert_eq!(missing(), ["memory: none: cgroup.subtree_control of the root lacks it"]);
    // Version 1 without the accounting of swap.
    fs::remove_file(folder.path().join("sys/fs/cgroup/cgroup.controllers")).expect("a file");
    for controller in ["cpu", "memory", "blkio", "pids"] {
        file(&format!("sys/fs/cgroup/{controller}/cgroup.procs"), "");
    }
    assert_eq!(missing(), ["swap: swapaccount=1"]);
    file("sys/fs/cgroup/memory/memory.memsw.usage_in_bytes", "0");
    assert_eq!(missing(), Vec::<String>::new());
}

/// What the files of a process of a container say, by reading them with one's own eyes.
#[test]
fn files_of_processes_are_read() {
    let roots = machine("v1");
    let proc = Proc::new(&roots.proc);
    let stat = proc::stat(&proc.of(22824, "stat").expect("stat")).expect("its form");
    assert_eq!((stat.name.as_str(), stat.state, stat.parent), ("httpd", 'S', 22804));
    assert_eq!((stat.user_ticks, stat.system_ticks, stat.threads), (1, 1, 1));
    assert_eq!((stat.started_ticks, stat.resident_pages), (68718, 366));
    let status = proc::status(&proc.of(22824, "status").expect("status"));
    assert_eq!((status.threads, status.pids), (Some(1), vec![22824, 1]));
    let io = proc::process_io(&proc.of(22824, "io").expect("io")).expect("its form");
    assert_eq!((io.read_bytes, io.write_bytes), (135_168, 8192));
    let text = proc.of(22824, "net/route").expect("route");
    let routes: Vec<_> = proc::routes(&text).collect();
    assert_eq!(routes.len(), 2);
    assert!(routes[0].is_default() && routes[0].gateway.to_string() == "172.17.0.1");
    assert_eq!(routes[1].destination.to_string(), "172.17.0.0");
    assert!(routes[1].covers("172.17.3.4".parse().expect("an address")));
    assert!(!routes[1].covers("172.18.0.1".parse().expect("an address")));
    let text = Proc::new(machine("v2_docker/round1").proc).text("diskstats").expect("diskstats");
    let (device, name) = proc::block_devices(&text).next().expect("a device");
    assert_eq!((device.major, device.minor, name), (254, 0, "vda"));
    assert_eq!(Proc::new(machine("v2_docker/round1").proc).processors(), Some(2));
    // The mounts of a container, as the machine and as the container itself see them.
    for file in ["mountinfo", "mountinfo.inside"] {
        let text = proc.of(22824, file).expect("mounts");
        let own = proc::mounts(&text).find(|mount| mount.point == "/etc/hostname");
        let own = own.expect("Docker mounts it").root;
        assert!(own.contains("ad711093891fc758eafed33d7e070c98e722d9c3fd18bee7edd7e21267fb8174"));
    }
}
