//! Where the files of the machine are, which is elsewhere than usual in a container.

use std::path::{Path, PathBuf};

/// The folders that everything else starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// The machine's `/proc`.
    pub proc: PathBuf,
    /// The machine's `/sys/fs/cgroup`.
    pub sys_fs_cgroup: PathBuf,
    /// Either of them was named or found under `/host`: whoever set that up wants the machine
    /// watched.
    pub named: bool,
}

impl Roots {
    /// Takes the first that there is of: the setting, the Agent's and gopsutil's variables
    /// (`DD_CONTAINER_PROC_ROOT`, `HOST_PROC`; `DD_CONTAINER_CGROUP_ROOT`, `HOST_SYS`), the usual
    /// mounts in a container (`/host/proc`; `/host/sys/fs/cgroup`, `/host/cgroup`), and the
    /// system's own place. A setting or variable is taken as it is; the mounts must be there.
    pub fn find(
        proc: &str,
        sys_fs_cgroup: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        Self::find_in(Path::new("/"), proc, sys_fs_cgroup, variable)
    }

    /// The same for a system that lies in `base`.
    fn find_in(
        base: &Path,
        proc: &str,
        sys_fs_cgroup: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let setting = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        let named = |name: &str| variable(name).as_deref().and_then(setting);
        let mount = |path: &str| Some(base.join(path)).filter(|path| is_filled(path));
        let proc = setting(proc)
            .or_else(|| named("DD_CONTAINER_PROC_ROOT"))
            .or_else(|| named("HOST_PROC"))
            .or_else(|| mount("host/proc"));
        let sys_fs_cgroup = setting(sys_fs_cgroup)
            .or_else(|| named("DD_CONTAINER_CGROUP_ROOT"))
            .or_else(|| named("HOST_SYS").map(|sys| sys.join("fs/cgroup")))
            .or_else(|| mount("host/sys/fs/cgroup"))
            .or_else(|| mount("host/cgroup"));
        Self {
            named: proc.is_some() || sys_fs_cgroup.is_some(),
            proc: proc.unwrap_or_else(|| base.join("proc")),
            sys_fs_cgroup: sys_fs_cgroup.unwrap_or_else(|| base.join("sys/fs/cgroup")),
        }
    }

    /// A machine whose files lie in a folder.
    pub fn of_machine(folder: &Path) -> Self {
        Self { proc: folder.join("proc"), sys_fs_cgroup: folder.join("sys/fs/cgroup"), named: true }
    }
}

/// Docker makes an empty folder of a bind mount whose source is missing.
fn is_filled(folder: &Path) -> bool {
    folder.read_dir().is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_variables_mounts_and_the_usual_place_in_this_order() {
        let base = tempfile::tempdir().expect("a folder");
        let find = |proc: &str, cgroup: &str, variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let roots = Roots::find_in(base.path(), proc, cgroup, variable);
            let relative = |path: PathBuf| match path.strip_prefix(base.path()) {
                Ok(below) => below.display().to_string(),
                Err(_) => path.display().to_string(),
            };
            (relative(roots.proc), relative(roots.sys_fs_cgroup), roots.named)
        };
        let found = |proc: &str, cgroup: &str, named| (proc.to_owned(), cgroup.to_owned(), named);
        assert_eq!(find("", "", &[]), found("proc", "sys/fs/cgroup", false));
        std::fs::create_dir_all(base.path().join("host/proc/1")).expect("a folder");
        std::fs::create_dir_all(base.path().join("host/cgroup/memory")).expect("a folder");
        std::fs::create_dir_all(base.path().join("host/sys/fs/cgroup")).expect("a folder");
        assert_eq!(find("", "", &[]), found("host/proc", "host/cgroup", true));
        std::fs::create_dir_all(base.path().join("host/sys/fs/cgroup/memory")).expect("a folder");
        assert_eq!(find("", "", &[]), found("host/proc", "host/sys/fs/cgroup", true));
        let gopsutil = [("HOST_PROC", "/a/proc"), ("HOST_SYS", "/a/sys")];
        assert_eq!(find("", "", &gopsutil), found("/a/proc", "/a/sys/fs/cgroup", true));
        let agent = [
            ("HOST_PROC", "/a/proc"),
            ("HOST_SYS", "/a/sys"),
            ("DD_CONTAINER_PROC_ROOT", "/b/proc"),
            ("DD_CONTAINER_CGROUP_ROOT", "/b/cgroup"),
        ];
        assert_eq!(find("", "", &agent), found("/b/proc", "/b/cgroup", true));
        assert_eq!(find("/c", "/d", &agent), found("/c", "/d", true));
        assert_eq!(find("", "", &[("HOST_PROC", "")]).0, "host/proc", "empty is not set");
    }
}
