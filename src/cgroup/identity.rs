//! What the path of a cgroup says about who lives in it.
//!
//! Runtimes name cgroups by a dozen habits: a bare id below a folder of the runtime's (cgroupfs
//! driver), `docker-<id>.scope` (systemd driver), `slice:cri-containerd:<id>` (containerd below
//! systemd without its driver), and so on. The path is read from the outside inwards, so that of
//! containers in containers the innermost counts.

use std::borrow::Cow;

/// Who made a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Runtime {
    Docker,
    Containerd,
    Crio,
    Podman,
    Lxc,
    Garden,
    EcsFargate,
}

impl Runtime {
    /// The value of the tag `runtime`, in the Agent's words.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Crio => "cri-o",
            Self::Podman => "podman",
            Self::Lxc => "lxc",
            Self::Garden => "garden",
            Self::EcsFargate => "ecsfargate",
        }
    }
}

/// What a cgroup itself is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Level {
    /// None of the below: the root, a folder of a runtime, a container's monitor.
    #[default]
    Other,
    /// The outermost cgroup of a container.
    Container,
    /// A pod of Kubernetes.
    Pod,
    /// A service, scope or socket of systemd.
    Unit,
    /// A slice of systemd.
    Slice,
    /// Below a container or a unit, whose figures include this one's.
    Inside,
}

/// What is known of a cgroup and of the processes in it by its path alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub level: Level,
    pub runtime: Option<Runtime>,
    /// The innermost container's id, in full.
    pub container_id: Option<String>,
    /// The container's name where the path holds one: LXC.
    pub container_name: Option<String>,
    /// With hyphens.
    pub pod_uid: Option<String>,
    /// The id of a task of ECS.
    pub ecs_task: Option<String>,
    /// The unit of systemd, unescaped: `ssh.service`. None for the scope of a container.
    pub unit: Option<String>,
    /// The innermost slice of systemd, unescaped.
    pub slice: Option<String>,
}

impl Identity {
    /// Reads a path such as `/system.slice/docker-<id>.scope`, from the root of the hierarchy or
    /// from anywhere within.
    pub fn of_path(path: &str) -> Self {
        let mut identity = Self::default();
        let mut parent = "";
        for name in path.split('/').filter(|name| !matches!(*name, "" | "." | "..")) {
            identity.enter(name, parent);
            parent = name;
        }
        identity
    }

    /// Goes one folder down.
    fn enter(&mut self, name: &str, parent: &str) {
        if let Some((slice, runtime, id)) = colons(name) {
            self.read_slice(slice);
            self.enter_container(runtime, Some(id), None);
        } else if is_monitor(name) {
            self.level = if self.is_in_container() { Level::Inside } else { Level::Other };
        } else if let Some((runtime, id)) = scope(name) {
            self.enter_container(Some(runtime), Some(id), None);
        } else if let Some(container) = lxc(name, parent) {
            self.enter_container(Some(Runtime::Lxc), None, Some(container));
        } else if is_container_id(name) {
            let runtime = by_parent(name, parent, self.ecs_task.is_some());
            self.enter_container(runtime, Some(name), None);
        } else if name.ends_with(".slice") {
            self.read_slice(name);
        } else if let Some(uid) = name.strip_prefix("pod").filter(|uid| is_uid(uid)) {
            self.pod_uid = Some(uid.to_owned());
            self.level = Level::Pod;
        } else if is_unit(name) {
            self.unit = Some(unescaped(name).into_owned());
            self.level = if self.is_in_container() { Level::Inside } else { Level::Unit };
        } else {
            if parent == "ecs" {
                self.ecs_task = Some(name.to_owned());
            }
            self.level = match self.level {
                Level::Container | Level::Unit | Level::Inside => Level::Inside,
                Level::Other | Level::Pod | Level::Slice => Level::Other,
            };
        }
    }

    const fn is_in_container(&self) -> bool {
        self.container_id.is_some() || self.container_name.is_some()
    }

    fn enter_container(&mut self, runtime: Option<Runtime>, id: Option<&str>, name: Option<&str>) {
        self.level = Level::Container;
        self.runtime = runtime;
        self.container_id = id.map(str::to_owned);
        self.container_name = name.map(str::to_owned);
        self.unit = None;
    }

    fn read_slice(&mut self, name: &str) {
        self.slice = Some(unescaped(name).into_owned());
        self.level = if self.is_in_container() { Level::Inside } else { Level::Slice };
        let stem = name.strip_suffix(".slice").unwrap_or(name);
        let last = stem.rsplit('-').next().unwrap_or(stem);
        if let Some(uid) = last.strip_prefix("pod").filter(|_| stem.contains("kubepods")) {
            self.pod_uid = Some(uid.replace('_', "-"));
            self.level = Level::Pod;
        } else if stem.starts_with("ecstasks-") {
            self.ecs_task = Some(last.to_owned());
        }
    }

    /// `foo@.service` for the unit `foo@bar.service`.
    pub fn unit_template(&self) -> Option<String> {
        let unit = self.unit.as_deref()?;
        let (name, instance) = unit.split_once('@')?;
        let (_, suffix) = instance.rsplit_once('.')?;
        Some(format!("{name}@.{suffix}"))
    }
}

/// `kubepods-...slice:cri-containerd:<id>`.
fn colons(name: &str) -> Option<(&str, Option<Runtime>, &str)> {
    let mut parts = name.split(':');
    let (slice, runtime, id) = (parts.next()?, parts.next()?, parts.next()?);
    let complete = parts.next().is_none() && is_container_id(id);
    complete.then(|| (slice, by_prefix(runtime), id))
}

/// `docker-<id>.scope`, and the same without its end where a runtime names folders so.
fn scope(name: &str) -> Option<(Runtime, &str)> {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    // An id of Fargate or Garden has hyphens of its own, but those come bare.
    let (prefix, id) = stem.rsplit_once('-')?;
    let id_is_whole = id.len() == 64 && is_hex(id);
    by_prefix(prefix).filter(|_| id_is_whole).map(|runtime| (runtime, id))
}

fn by_prefix(prefix: &str) -> Option<Runtime> {
    match prefix {
        "docker" => Some(Runtime::Docker),
        "cri-containerd" | "containerd" | "nerdctl" => Some(Runtime::Containerd),
        "crio" => Some(Runtime::Crio),
        "libpod" | "libpod-payload" => Some(Runtime::Podman),
        _ => None,
    }
}

/// The runtime of a container whose cgroup is a bare id. The folders of Kubernetes do not tell.
fn by_parent(name: &str, parent: &str, ecs: bool) -> Option<Runtime> {
    match parent {
        "docker" => Some(Runtime::Docker),
        "libpod_parent" => Some(Runtime::Podman),
        "garden" => Some(Runtime::Garden),
        _ if name.matches('-').count() == 1 => Some(Runtime::EcsFargate),
        _ if name.contains('-') => Some(Runtime::Garden),
        _ if ecs => Some(Runtime::Docker),
        _ => None,
    }
}

/// `lxc/<name>`, `lxc.payload/<name>` and `lxc.payload.<name>`.
fn lxc<'a>(name: &'a str, parent: &str) -> Option<&'a str> {
    if matches!(parent, "lxc" | "lxc.payload") {
        return Some(name);
    }
    name.strip_prefix("lxc.payload.").filter(|name| !name.is_empty())
}

/// The process that watches over a container from outside.
fn is_monitor(name: &str) -> bool {
    ["crio-conmon-", "libpod-conmon-", "lxc.monitor"].iter().any(|start| name.starts_with(start))
}

/// 64 hexadecimal digits; 32 and a number on ECS Fargate; a UUID of Garden's shape.
pub fn is_container_id(name: &str) -> bool {
    if name.len() == 64 {
        return is_hex(name);
    }
    let parts = || name.split('-');
    let lengths = || parts().map(str::len);
    if lengths().eq([8, 4, 4, 4, 4]) {
        return parts().all(is_hex);
    }
    name.split_once('-').is_some_and(|(task, number)| {
        let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
        task.len() == 32 && is_hex(task) && is_number
    })
}

/// A UUID, or the 32 digits by which Kubernetes names a static pod.
fn is_uid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    let shaped = lengths.eq([8, 4, 4, 4, 12]) || (text.len() == 32 && !text.contains('-'));
    shaped && text.split('-').all(is_hex)
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Kinds of units that have cgroups. Mounts and swaps have some too, of no interest.
fn is_unit(name: &str) -> bool {
    [".service", ".scope", ".socket"].iter().any(|end| name.ends_with(end))
}

/// Undoes systemd's `\x2d`.
fn unescaped(name: &str) -> Cow<'_, str> {
    if !name.contains("\\x") {
        return Cow::Borrowed(name);
    }
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.strip_prefix(b"x").and_then(|digits| digits.get(..2));
        let code = digits.filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        // A sign is no digit, whatever the standard library's parser says.
        let code = code.filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&plain).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0001";
    const B: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const POD: &str = "11111111-2222-3333-4444-555555555555";

    /// What a path says in one line: level, then what is known.
    fn told(path: &str) -> String {
        let path = path.replace("{A}", A).replace("{B}", B).replace("{POD}", POD);
        let path = path.replace("{POD_}", &POD.replace('-', "_"));
        let identity = Identity::of_path(&path);
        let mut told = format!("{:?}", identity.level);
        let short = |id: String| id.replace(A, "A").replace(B, "B").replace(POD, "POD");
        for (key, value) in [
            ("runtime", identity.runtime.map(|runtime| runtime.word().to_owned())),
            ("id", identity.container_id),
            ("name", identity.container_name),
            ("pod", identity.pod_uid),
            ("task", identity.ecs_task),
            ("unit", identity.unit),
            ("slice", identity.slice),
        ] {
            if let Some(value) = value {
                told += &format!(" {key}={}", short(value));
            }
        }
        told
    }

    #[test]
    fn paths_of_every_runtime() {
        for (path, expected) in [
            // Docker.
            ("/docker/{A}", "Container runtime=docker id=A"),
            ("/system.slice/docker-{A}.scope", "Container runtime=docker id=A slice=system.slice"),
            ("/docker-daemon/docker/{A}", "Container runtime=docker id=A"),
            ("/system/docker/{A}", "Container runtime=docker id=A"),
            ("/init.scope/docker/{A}", "Container runtime=docker id=A"),
            (
                "/system.slice/docker.service/docker/{A}",
                "Container runtime=docker id=A slice=system.slice",
            ),
            ("/actions_job/{A}", "Container id=A"),
            ("/../{A}", "Container id=A"),
            ("/../docker-{A}.scope", "Container runtime=docker id=A"),
            // In a container: a helper's folder, an init system, containers.
            (
                "/system.slice/docker-{A}.scope/init",
                "Inside runtime=docker id=A slice=system.slice",
            ),
            ("/docker/{A}/init.scope", "Inside runtime=docker id=A unit=init.scope"),
            (
                "/docker/{A}/system.slice/ssh.service",
                "Inside runtime=docker id=A unit=ssh.service slice=system.slice",
            ),
            ("/docker/{A}/docker/{B}", "Container runtime=docker id=B"),
            ("/docker/{A}/kubelet/kubepods/besteffort/pod{POD}/{B}", "Container id=B pod=POD"),
            // Kubernetes with the cgroupfs driver does not name the runtime.
            ("/kubepods/pod{POD}/{A}", "Container id=A pod=POD"),
            ("/kubepods/burstable/pod{POD}/{A}", "Container id=A pod=POD"),
            ("/kubepods/besteffort/pod{POD}", "Pod pod=POD"),
            (
                "/kubepods/burstable/pod0123456789abcdef0123456789abcdef/{A}",
                "Container id=A pod=0123456789abcdef0123456789abcdef",
            ),
            ("/kubepods/burstable", "Other"),
            // And with systemd's.
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice/cri-containerd-{A}.scope",
                "Container runtime=containerd id=A pod=POD slice=kubepods-burstable-pod11111111_2222_3333_4444_555555555555.slice",
            ),
            (
                "/kubepods.slice/kubepods-pod{POD_}.slice",
                "Pod pod=POD slice=kubepods-pod11111111_2222_3333_4444_555555555555.slice",
            ),
            ("/kubepods.slice/kubepods-besteffort.slice", "Slice slice=kubepods-besteffort.slice"),
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{POD_}.slice/crio-{A}.scope",
                "Container runtime=cri-o id=A pod=POD slice=kubelet-kubepods-pod11111111_2222_3333_4444_555555555555.slice",
            ),
            (
                "/kubepods.slice/kubepods-pod{POD_}.slice/crio-conmon-{A}.scope",
                "Other pod=POD slice=kubepods-pod11111111_2222_3333_4444_555555555555.slice",
            ),
            (
                "/system.slice/containerd.service/kubepods-burstable-pod{POD_}.slice:cri-containerd:{A}",
                "Container runtime=containerd id=A pod=POD slice=kubepods-burstable-pod11111111_2222_3333_4444_555555555555.slice",
            ),
            // Podman.
            (
                "/machine.slice/libpod-{A}.scope",
                "Container runtime=podman id=A slice=machine.slice",
            ),
            (
                "/machine.slice/libpod-{A}.scope/container",
                "Inside runtime=podman id=A slice=machine.slice",
            ),
            ("/machine.slice/libpod-conmon-{A}.scope", "Other slice=machine.slice"),
            ("/libpod_parent/libpod-{A}", "Container runtime=podman id=A"),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope",
                "Container runtime=podman id=A slice=user.slice",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_{B}.slice/libpod-{A}.scope/container",
                "Inside runtime=podman id=A slice=user-libpod_pod_B.slice",
            ),
            // ECS.
            (
                "/ecs/5a0d5ceddf6c44c1928d367a815d890f/{A}",
                "Container runtime=docker id=A task=5a0d5ceddf6c44c1928d367a815d890f",
            ),
            ("/ecs/{POD}/{A}", "Container runtime=docker id=A task=POD"),
            (
                "/ecs/5a0d5ceddf6c44c1928d367a815d890f/5a0d5ceddf6c44c1928d367a815d890f-2532839721",
                "Container runtime=ecsfargate id=5a0d5ceddf6c44c1928d367a815d890f-2532839721 task=5a0d5ceddf6c44c1928d367a815d890f",
            ),
            (
                "/ecstasks.slice/ecstasks-5a0d5ceddf6c44c1928d367a815d890f.slice/docker-{A}.scope",
                "Container runtime=docker id=A task=5a0d5ceddf6c44c1928d367a815d890f slice=ecstasks-5a0d5ceddf6c44c1928d367a815d890f.slice",
            ),
            // LXC and LXD.
            ("/lxc/web-1", "Container runtime=lxc name=web-1"),
            (
                "/lxc/101/ns/system.slice/ssh.service",
                "Inside runtime=lxc name=101 unit=ssh.service slice=system.slice",
            ),
            ("/lxc.payload.web", "Container runtime=lxc name=web"),
            ("/lxc.payload/web", "Container runtime=lxc name=web"),
            ("/lxc.monitor.web", "Other"),
            ("/lxc.payload.web/docker/{A}", "Container runtime=docker id=A"),
            // Garden.
            (
                "/garden/6f265890-5165-7fab-6b52-18d1",
                "Container runtime=garden id=6f265890-5165-7fab-6b52-18d1",
            ),
            // systemd.
            ("/system.slice/ssh.service", "Unit unit=ssh.service slice=system.slice"),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                "Unit unit=getty@tty1.service slice=system-getty.slice",
            ),
            (r"/system.slice/dev\x2ddisk.service", "Unit unit=dev-disk.service slice=system.slice"),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                "Unit unit=session-3.scope slice=user-1000.slice",
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                "Unit unit=init.scope slice=user-1000.slice",
            ),
            ("/system.slice/web.service/supervisor", "Inside unit=web.service slice=system.slice"),
            ("/system.slice/dev-hugepages.mount", "Other slice=system.slice"),
            ("/system.slice", "Slice slice=system.slice"),
            // Nobody's.
            ("/", "Other"),
            ("", "Other"),
            ("/docker", "Other"),
            ("/docker/buildkit", "Other"),
            ("/docker/AAAA", "Other"),
            ("/a:b:c", "Other"),
        ] {
            assert_eq!(told(path), expected, "{path}");
        }
    }

    #[test]
    fn what_an_id_looks_like() {
        for (name, is_id) in [
            (A, true),
            ("6f265890-5165-7fab-6b52-18d1", true),
            ("5a0d5ceddf6c44c1928d367a815d890f-2532839721", true),
            (&A[1..], false),
            (&A.to_uppercase(), false),
            ("5a0d5ceddf6c44c1928d367a815d890f-", false),
            ("5a0d5ceddf6c44c1928d367a815d890f", false),
            (POD, false),
            ("", false),
            ("----", false),
        ] {
            assert_eq!(is_container_id(name), is_id, "{name}");
        }
    }

    #[test]
    fn units_are_unescaped_and_have_templates() {
        for (name, plain) in [
            (r"a\x2db", "a-b"),
            (r"\x2d\x2D", "--"),
            (r"a\x2", r"a\x2"),
            (r"a\x+1", r"a\x+1"),
            (r"\xc3\xa4", "ä"),
            (r"\\x2d", r"\-"),
            (r"\", r"\"),
        ] {
            assert_eq!(unescaped(name), plain, "{name}");
        }
        let template = |path| Identity::of_path(path).unit_template();
        assert_eq!(template("/system.slice/web@1.service"), Some("web@.service".to_owned()));
        assert_eq!(template("/system.slice/web.service"), None);
    }
}
