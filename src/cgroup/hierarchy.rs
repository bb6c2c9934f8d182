//! Where cgroups are: one tree (version 2), one for each controller (version 1), or both beside
//! each other (hybrid).
//!
//! A cgroup is named by its path in the *base* hierarchy, below the point where that is mounted: the
//! hierarchy of the memory controller on version 1, as clients' libraries take it, and the only one
//! on version 2.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::identity::{Identity, Level};
use super::proc::{self, Membership, Mount, Proc, ProcessIo};
use super::roots::Roots;
use super::usage::DeviceIo;

/// How the kernel was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Controllers have hierarchies of their own.
    V1,
    /// There is one hierarchy.
    V2,
    /// As version 1, and beside them a unified hierarchy that has pressure but no controllers of
    /// interest.
    Hybrid,
}

impl Version {
    pub const fn word(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
        }
    }
}

/// Controllers of version 1 whose files are read; the first that is mounted is the base.
const CONTROLLERS: [&str; 6] = ["memory", "cpuacct", "cpu", "pids", "blkio", "cpuset"];

/// One mounted tree.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tree {
    /// Where it is seen.
    point: PathBuf,
    /// Its folder that is seen there; not `/` in a container that has only its own part.
    root: String,
}

impl Tree {
    /// The folder of a cgroup, unless its path leads out of what is seen.
    fn directory(&self, path: &str) -> Option<PathBuf> {
        let path = path.trim_matches('/');
        if path.split('/').any(|name| name == "..") {
            return None;
        }
        Some(if path.is_empty() { self.point.clone() } else { self.point.join(path) })
    }

    /// The path below the point of what a process says of itself; `None` when that is outside. In
    /// another cgroup namespace both root and path begin with steps upwards from the reader's own
    /// cgroup, whose name is not known: they meet only if there are as many.
    fn seen<'a>(&self, membership: &'a str) -> Option<&'a str> {
        if self.root == "/" {
            return (!membership.starts_with("/../")).then_some(membership);
        }
        let below = membership.strip_prefix(self.root.as_str())?;
        let whole = below.is_empty() || below.starts_with('/');
        whole.then_some(if below.is_empty() { "/" } else { below })
    }

    fn shows_more_than(&self, other: &Self) -> bool {
        self.root.len() < other.root.len()
    }
}

/// All cgroup trees of a machine.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// By controller, on version 1.
    separate: Vec<(&'static str, Tree)>,
    unified: Option<Tree>,
}

/// What is not accounted, and how to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The controller, by its name on version 1, or `swap` or `psi`.
    pub what: &'static str,
    /// The argument of the kernel that brings it.
    pub kernel_argument: String,
}

/// How far a walk goes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Folders below the root.
    pub depth: usize,
    /// Cgroups visited.
    pub visits: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { depth: 6, visits: 20_000 }
    }
}

/// Cgroups within one whose processes are looked for.
const GROUPS_MAX: usize = 1000;

/// One cgroup met on a walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Begins with a slash.
    pub path: String,
    /// Of its folder in the base hierarchy. A cgroup made anew under an old path has another one.
    pub inode: u64,
}

/// Cgroups by the words that senders use for them.
#[derive(Clone, Debug, Default)]
pub struct Index {
    by_inode: HashMap<u64, String>,
    by_container: HashMap<String, String>,
    /// The walk ended at its bound.
    pub cut: bool,
}

impl Index {
    /// The path of the cgroup whose folder has this inode.
    pub fn by_inode(&self, inode: u64) -> Option<&str> {
        self.by_inode.get(&inode).map(String::as_str)
    }

    /// The path of the outermost cgroup of a container.
    pub fn by_container(&self, id: &str) -> Option<&str> {
        self.by_container.get(id).map(String::as_str)
    }

    /// Ids of all containers and the paths of their cgroups.
    pub fn containers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_container.iter().map(|(id, path)| (id.as_str(), path.as_str()))
    }
}

impl Hierarchy {
    /// Finds what is mounted, by the table of mounts, and where there is none by the folders
    /// themselves.
    ///
    /// # Errors
    /// When there is nothing that looks like cgroups; tells where they were looked for.
    pub fn find(roots: &Roots) -> io::Result<Self> {
        let proc = Proc::new(&roots.proc);
        let mut found = Self { separate: Vec::new(), unified: None };
        if let Ok(text) = proc.text("self/mountinfo") {
            found.add_mounts(proc::mounts(&text), &roots.sys_fs_cgroup);
        }
        if found.is_empty()
            && let Ok(text) = proc.text("mounts")
        {
            found.add_mounts(proc::simple_mounts(&text), &roots.sys_fs_cgroup);
        }
        if found.is_empty() {
            found.add_folders(&roots.sys_fs_cgroup);
        }
        // By the order of preference for the base.
        let rank = |name: &str| CONTROLLERS.iter().position(|known| *known == name);
        found.separate.sort_by_key(|(name, _)| rank(name));
        if found.is_empty() {
            let place = roots.sys_fs_cgroup.display();
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no cgroup file system is mounted at {place}"),
            ));
        }
        Ok(found)
    }

    const fn is_empty(&self) -> bool {
        self.separate.is_empty() && self.unified.is_none()
    }

    /// A mount counts when it is seen below the root that was asked for, directly or in the usual
    /// place of the machine that the root stands for. Of several the shortest root wins: it shows
    /// the most.
    fn add_mounts<'a>(&mut self, mounts: impl Iterator<Item = Mount<'a>>, sys_fs_cgroup: &Path) {
        for mount in mounts.filter(|mount| matches!(mount.kind, "cgroup" | "cgroup2")) {
            let point = Path::new(&*mount.point);
            let point = if point.starts_with(sys_fs_cgroup) {
                point.to_owned()
            } else if let Ok(below) = point.strip_prefix("/sys/fs/cgroup") {
                sys_fs_cgroup.join(below)
            } else {
                continue;
            };
            if !point.is_dir() {
                continue;
            }
            let tree = Tree { point, root: mount.root.into_owned() };
            if mount.kind == "cgroup2" {
                if self.unified.as_ref().is_none_or(|known| tree.shows_more_than(known)) {
                    self.unified = Some(tree);
                }
                continue;
            }
            for option in mount.options.split(',') {
                self.add_controller(option, &tree);
            }
        }
    }

    fn add_controller(&mut self, name: &str, tree: &Tree) {
        let Some(controller) = CONTROLLERS.iter().find(|known| **known == name) else { return };
        match self.separate.iter_mut().find(|(known, _)| known == controller) {
            None => self.separate.push((controller, tree.clone())),
            Some((_, known)) if tree.shows_more_than(known) => *known = tree.clone(),
            Some(_) => {}
        }
    }

    /// Folders named by controllers, with commas between if there are several.
    fn add_folders(&mut self, sys_fs_cgroup: &Path) {
        let tree = |point: PathBuf| Tree { point, root: "/".to_owned() };
        let is_unified = |folder: &Path| folder.join("cgroup.controllers").is_file();
        if is_unified(sys_fs_cgroup) {
            self.unified = Some(tree(sys_fs_cgroup.to_owned()));
            return;
        }
        let folders = sys_fs_cgroup.read_dir().into_iter().flatten().flatten();
        for folder in folders.map(|entry| entry.path()).filter(|path| path.is_dir()) {
            let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name == "unified" {
                self.unified = Some(tree(folder));
                continue;
            }
            for controller in name.split(',') {
                self.add_controller(controller, &tree(folder.clone()));
            }
        }
    }

    pub const fn version(&self) -> Version {
        match (self.separate.is_empty(), &self.unified) {
            (true, _) => Version::V2,
            (false, None) => Version::V1,
            (false, Some(_)) => Version::Hybrid,
        }
    }

    fn base(&self) -> Option<&Tree> {
        self.separate.first().map(|(_, tree)| tree).or(self.unified.as_ref())
    }

    /// The folder of a cgroup in the base hierarchy.
    pub fn directory(&self, path: &str) -> Option<PathBuf> {
        self.base()?.directory(path)
    }

    /// The folder of a cgroup in the hierarchy of version 2.
    pub fn unified_directory(&self, path: &str) -> Option<PathBuf> {
        self.unified.as_ref()?.directory(path)
    }

    /// The folder of a cgroup in the hierarchy of a controller of version 1.
    pub fn controller_directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let (_, tree) = self.separate.iter().find(|(name, _)| *name == controller)?;
        tree.directory(path)
    }

    /// Whether a controller has a hierarchy of its own, as on version 1; then it is nowhere else.
    pub fn is_separate(&self, controller: &str) -> bool {
        self.separate.iter().any(|(name, _)| *name == controller)
    }

    /// What this machine does not account. `subsystems` is the text of `/proc/cgroups`, `pressure`
    /// tells whether it has `/proc/pressure`.
    pub fn missing(&self, proc: &Proc) -> Vec<Missing> {
        let subsystems = proc.text("cgroups").unwrap_or_default();
        let known =
            |name: &str| subsystems.lines().any(|line| line.split('\t').next() == Some(name));
        let mut missing = Vec::new();
        let mut add =
            |what, kernel_argument: String| missing.push(Missing { what, kernel_argument });
        for what in ["cpu", "memory", "blkio", "pids"] {
            if self.has(what) {
                if !self.hands_down(what) {
                    add(what, "none: cgroup.subtree_control of the root lacks it".to_owned());
                }
                continue;
            }
            add(
                what,
                match what {
                    "memory" => "cgroup_enable=memory swapaccount=1".to_owned(),
                    _ if subsystems.is_empty() || known(what) => format!("cgroup_enable={what}"),
                    _ => "none: this kernel was built without it".to_owned(),
                },
            );
        }
        if self.has("memory") && !self.accounts_swap() {
            add("swap", "swapaccount=1".to_owned());
        }
        if proc.text("pressure/cpu").is_err() {
            add("psi", "psi=1".to_owned());
        }
        missing
    }

    /// Whether a controller, by its name on version 1, is there.
    pub fn has(&self, controller: &str) -> bool {
        if self.is_separate(controller) {
            return true;
        }
        let Some(unified) = &self.unified else { return false };
        let controllers = super::read(&unified.point.join("cgroup.controllers"));
        let name = unified_name(controller);
        controllers.is_ok_and(|list| list.split_ascii_whitespace().any(|known| known == name))
    }

    /// Whether cgroups below the root have a controller that is there, which on version 2 is for
    /// whoever manages them to say.
    fn hands_down(&self, controller: &str) -> bool {
        let Some(unified) = self.unified.as_ref().filter(|_| self.separate.is_empty()) else {
            return true;
        };
        let handed = super::read(&unified.point.join("cgroup.subtree_control"));
        let name = unified_name(controller);
        handed.map_or(true, |list| list.split_ascii_whitespace().any(|known| known == name))
    }

    /// Version 2 shows it in cgroups below the root only, of which there may be none.
    fn accounts_swap(&self) -> bool {
        let memory = self.separate.iter().find(|(name, _)| *name == "memory");
        memory.is_none_or(|(_, tree)| tree.point.join("memory.memsw.usage_in_bytes").exists())
    }

    /// The path of the cgroup that a process is in.
    ///
    /// Where that is outside of what is seen, as from another cgroup namespace, it is as the process
    /// says it: good for its [`Identity`], by whose container [`Index`] may know the folder.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn path_of_pid(&self, proc: &Proc, pid: u32) -> io::Result<Option<String>> {
        Ok(self.path_of(&proc.of(pid, "cgroup")?))
    }

    /// The same by the text of `/proc/PID/cgroup`: the base hierarchy's line, or one that names a
    /// container where that one does not.
    pub fn path_of(&self, memberships: &str) -> Option<String> {
        let base = self.separate.first().map(|(name, _)| *name);
        let is_base = |line: &Membership| match base {
            Some(controller) => line.has(controller),
            None => line.is_unified(),
        };
        let lines = || proc::memberships(memberships);
        let names_container = |line: &Membership| {
            let identity = Identity::of_path(line.path);
            identity.container_id.is_some() || identity.container_name.is_some()
        };
        let line = lines()
            .find(|line| is_base(line) && names_container(line))
            .or_else(|| lines().find(names_container))
            .or_else(|| lines().find(is_base))
            .or_else(|| lines().find(Membership::is_unified));
        let path = line?.path;
        let seen = self.base().and_then(|tree| tree.seen(path));
        Some(seen.unwrap_or(path).to_owned())
    }

    /// Visits the cgroups below the root, the outer ones first; `visit` says whether to go further
    /// down from there. Returns how many were not visited because of the bound, at least.
    pub fn walk(&self, bounds: Bounds, mut visit: impl FnMut(Found) -> bool) -> usize {
        let Some(base) = self.base() else { return 0 };
        let mut waiting = VecDeque::from([(base.point.clone(), String::new(), 0)]);
        let (mut visits, mut left_out) = (0, 0);
        while let Some((folder, path, depth)) = waiting.pop_front() {
            // One that has gone meanwhile has nothing in it.
            let Ok(entries) = folder.read_dir() else { continue };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if visits == bounds.visits {
                    left_out += 1;
                    continue;
                }
                visits += 1;
                let name = entry.file_name();
                let path = format!("{path}/{}", name.to_string_lossy());
                let found = Found { path: path.clone(), inode: entry.ino() };
                if visit(found) && depth + 1 < bounds.depth {
                    waiting.push_back((entry.path(), path, depth + 1));
                }
            }
        }
        left_out
    }

    /// All cgroups by inode and by container.
    pub fn index(&self, bounds: Bounds) -> Index {
        let mut index = Index::default();
        let left_out = self.walk(bounds, |found| {
            let identity = Identity::of_path(&found.path);
            if let (Some(id), Level::Container) = (identity.container_id, identity.level) {
                index.by_container.entry(id).or_insert_with(|| found.path.clone());
            }
            index.by_inode.insert(found.inode, found.path);
            true
        });
        index.cut = left_out > 0;
        index
    }

    /// The inode of a cgroup's folder in the base hierarchy.
    pub fn inode(&self, path: &str) -> Option<u64> {
        Some(std::fs::metadata(self.directory(path)?).ok()?.ino())
    }

    /// The processes of a cgroup itself, without those of the cgroups in it. Zeros, which stand for
    /// processes of other pid namespaces, are left out.
    pub fn pids(&self, path: &str) -> Vec<u32> {
        let Some(folder) = self.directory(path) else { return Vec::new() };
        pids_in(&folder)
    }

    /// The same with those of the cgroups in it; at most a thousand of them are looked into.
    pub fn pids_within(&self, path: &str) -> Vec<u32> {
        let mut folders = Vec::from_iter(self.directory(path));
        let mut next = 0;
        while let Some(folder) = folders.get(next) {
            let inner = folder.read_dir().into_iter().flatten().flatten();
            let inner = inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let room = GROUPS_MAX.saturating_sub(folders.len());
            let inner: Vec<_> = inner.map(|entry| entry.path()).take(room).collect();
            folders.extend(inner);
            next += 1;
        }
        folders.iter().flat_map(|folder| pids_in(folder)).collect()
    }

    /// What processes of a cgroup have moved to and from storage, over all devices: for kernels
    /// that count block I/O of version 1 only where there is a rule about it. Takes the right to
    /// trace the processes; `None` where that is lacking for all, or there are none.
    pub fn process_io(proc: &Proc, pids: &[u32]) -> Option<DeviceIo> {
        let text = |pid| proc.of(pid, "io").ok();
        let all: Vec<ProcessIo> =
            pids.iter().filter_map(|pid| proc::process_io(&text(*pid)?)).collect();
        let sum = |of: fn(&ProcessIo) -> u64| all.iter().map(of).fold(0, u64::saturating_add);
        (!all.is_empty()).then(|| DeviceIo {
            device: DeviceIo::UNKNOWN,
            read_bytes: Some(sum(|io| io.read_bytes)),
            write_bytes: Some(sum(|io| io.write_bytes)),
            reads: None,
            writes: None,
        })
    }
}

fn pids_in(folder: &Path) -> Vec<u32> {
    let text = super::read(&folder.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
}

/// The name on version 2 of a controller of version 1.
fn unified_name(controller: &str) -> &str {
    if controller == "blkio" { "io" } else { controller }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_says_becomes_what_is_seen() {
        for (root, membership, seen) in [
            ("/", "/docker/a", Some("/docker/a")),
            ("/", "/", Some("/")),
            ("/", "/../a", None),
            ("/", "/..a", Some("/..a")),
            ("/docker", "/docker/a", Some("/a")),
            ("/docker", "/docker", Some("/")),
            ("/docker", "/dockers/a", None),
            ("/docker", "/system.slice", None),
            ("/../..", "/../../system.slice/a", Some("/system.slice/a")),
            ("/../..", "/../a", None),
            ("/..", "/../a", Some("/a")),
        ] {
            let tree = Tree { point: PathBuf::from("/c"), root: root.to_owned() };
            assert_eq!(tree.seen(membership), seen, "{membership} below {root}");
        }
    }

    #[test]
    fn no_path_leads_out_of_the_tree() {
        let tree = Tree { point: PathBuf::from("/c"), root: "/".to_owned() };
        for (path, folder) in [
            ("/a/b", Some("/c/a/b")),
            ("a/b/", Some("/c/a/b")),
            ("/", Some("/c")),
            ("", Some("/c")),
            ("//etc", Some("/c/etc")),
            ("/../etc", None),
            ("/a/../../etc", None),
            ("/a/..b", Some("/c/a/..b")),
        ] {
            assert_eq!(tree.directory(path), folder.map(PathBuf::from), "{path}");
        }
    }
}
