//! Files of `/proc`: who a process is, where it is mounted and grouped, what it uses.

use std::borrow::Cow;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::read;

/// Clock ticks in a second as the kernel tells them to processes (USER_HZ), on every architecture
/// that tallyd runs on.
pub const TICKS_PER_SECOND: u64 = 100;

/// A `/proc`, not necessarily the one of this process.
#[derive(Clone, Debug)]
pub struct Proc {
    root: PathBuf,
}

impl Proc {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The text of a file below the root: `stat`, `self/mountinfo`.
    ///
    /// # Errors
    /// When it cannot be read; `NotFound` and ESRCH for a process that has ended.
    pub fn text(&self, path: &str) -> io::Result<String> {
        read(&self.root.join(path))
    }

    /// The text of a file of a process: `cgroup`, `net/dev`.
    ///
    /// # Errors
    /// As [`Proc::text`].
    pub fn of(&self, pid: u32, file: &str) -> io::Result<String> {
        read(&self.root.join(pid.to_string()).join(file))
    }

    /// Number of open files of a process.
    ///
    /// # Errors
    /// When it has ended, or belongs to somebody else and this process lacks the right.
    pub fn open_files(&self, pid: u32) -> io::Result<u64> {
        self.open_files_of(&pid.to_string())
    }

    /// The same by the name of its folder, such as `self`.
    ///
    /// # Errors
    /// As [`Proc::open_files`].
    pub fn open_files_of(&self, process: &str) -> io::Result<u64> {
        Ok(std::fs::read_dir(self.root.join(process).join("fd"))?.count() as u64)
    }

    /// Two processes share their network exactly when this number is the same. Takes no special
    /// right.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn network(&self, pid: u32) -> io::Result<u64> {
        Ok(std::fs::metadata(self.root.join(pid.to_string()).join("net/dev"))?.ino())
    }

    /// Processors of the machine, by `/proc/stat`.
    pub fn processors(&self) -> Option<u32> {
        processors(&self.text("stat").ok()?)
    }

    /// Seconds since the start of the machine, by `/proc/uptime`.
    pub fn uptime(&self) -> Option<f64> {
        let text = self.text("uptime").ok()?;
        let seconds = text.split_whitespace().next()?.parse::<f64>().ok()?;
        Some(seconds).filter(|seconds| seconds.is_finite())
    }

    /// All processes.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn pids(&self) -> io::Result<impl Iterator<Item = u32> + use<>> {
        let entries = std::fs::read_dir(&self.root)?;
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
    }
}

/// One line of `/proc/PID/cgroup`: where the process is in one hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership<'a> {
    /// Empty for version 2; `name=systemd` for a named hierarchy.
    pub controllers: &'a str,
    /// Relative to the cgroup namespace of whoever reads the file.
    pub path: &'a str,
}

impl Membership<'_> {
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|own| own == controller)
    }

    /// The hierarchy of version 2.
    pub const fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }
}

/// Reads `/proc/PID/cgroup`. Lines that are none are left out.
pub fn memberships(text: &str) -> impl Iterator<Item = Membership<'_>> {
    text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(':')?;
        number.parse::<u32>().ok()?;
        let (controllers, path) = rest.split_once(':')?;
        // The kernel says so of a cgroup that was removed under a process that is ending.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        path.starts_with('/').then_some(Membership { controllers, path })
    })
}

/// One line of `/proc/PID/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The folder of the file system that is seen at `point`.
    pub root: Cow<'a, str>,
    pub point: Cow<'a, str>,
    pub kind: &'a str,
    /// What is mounted: a device, or a name.
    pub source: &'a str,
    /// Options of the file system: for a hierarchy of version 1 its controllers are among them.
    pub options: &'a str,
}

/// Reads `/proc/PID/mountinfo`. Lines that are none are left out.
pub fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(|line| {
        // Any number of optional fields stands before the lonely dash.
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, point) = (mount.next()?, mount.next()?);
        let mut system = system.split(' ');
        let (kind, source) = (system.next()?, system.next()?);
        let options = system.next().unwrap_or_default();
        Some(Mount { root: unescaped(root), point: unescaped(point), kind, source, options })
    })
}

/// Reads `/proc/mounts`, which knows no roots.
pub fn simple_mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (source, point) = (fields.next()?, fields.next()?);
        let (kind, options) = (fields.next()?, fields.next()?);
        Some(Mount { root: Cow::Borrowed("/"), point: unescaped(point), kind, source, options })
    })
}

/// Undoes `\040` and the like: three octal digits are a byte.
fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let digits = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        match digits.and_then(octal) {
            Some(byte) => {
                plain.push(byte);
                i += 4;
            }
            None => {
                plain.push(bytes[i]);
                i += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&plain).into_owned())
}

fn octal(digits: &[u8]) -> Option<u8> {
    let digit = |sum: u32, d: &u8| matches!(d, b'0'..=b'7').then(|| sum * 8 + u32::from(d - b'0'));
    u8::try_from(digits.iter().try_fold(0, digit)?).ok()
}

/// What `/proc/PID/stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// At most 15 bytes of the program's name.
    pub name: String,
    pub state: char,
    pub parent: u32,
    /// Processor time in ticks, of all threads.
    pub user_ticks: u64,
    pub system_ticks: u64,
    pub threads: u64,
    /// Ticks from the start of the machine to that of the process. With the pid it tells a process
    /// from another that got the same number later.
    pub started_ticks: u64,
    pub resident_pages: u64,
}

/// Reads `/proc/PID/stat`. The name may hold anything, parentheses and blanks too.
pub fn stat(text: &str) -> Option<Stat> {
    let (name, rest) = (text.find('(')? + 1, text.rfind(')')?);
    let fields: Vec<&str> = text.get(rest + 1..)?.split_ascii_whitespace().collect();
    // Counted from the field behind the name, which proc(5) gives the number 3.
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        name: text.get(name..rest)?.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: u32::try_from(number(4)?).ok()?,
        user_ticks: number(14)?,
        system_ticks: number(15)?,
        threads: number(20)?,
        started_ticks: number(22)?,
        resident_pages: number(24)?,
    })
}

/// What `/proc/PID/status` tells. A kernel thread has no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub resident_bytes: Option<u64>,
    pub threads: Option<u64>,
    /// The process's number in each pid namespace from the reader's inwards.
    pub pids: Vec<u32>,
}

/// Reads `/proc/PID/status`.
pub fn status(text: &str) -> Status {
    let mut status = Status::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let mut words = value.split_ascii_whitespace();
        match key {
            "VmRSS" => {
                let kilobytes = words.next().and_then(|word| word.parse::<u64>().ok());
                status.resident_bytes = kilobytes.and_then(|kb| kb.checked_mul(1024));
            }
            "Threads" => status.threads = words.next().and_then(|word| word.parse().ok()),
            "NSpid" => status.pids = words.filter_map(|word| word.parse().ok()).collect(),
            _ => {}
        }
    }
    status
}

/// What one network interface has moved, by `/proc/PID/net/dev`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface<'a> {
    pub name: &'a str,
    pub received: Traffic,
    pub sent: Traffic,
}

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// Reads `/proc/PID/net/dev`. Its two lines of headings have no colon.
pub fn interfaces(text: &str) -> impl Iterator<Item = Interface<'_>> {
    text.lines().filter_map(|line| {
        // The first number may touch the colon; a name may hold one of its own.
        let (name, figures) = line.rsplit_once(':')?;
        let mut numbers = figures.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
        let mut traffic = || {
            let [bytes, packets, errors, dropped] = std::array::from_fn(|_| numbers.next()?);
            numbers.by_ref().take(4).for_each(drop);
            Some(Traffic { bytes: bytes?, packets: packets?, errors: errors?, dropped: dropped? })
        };
        Some(Interface { name: name.trim(), received: traffic()?, sent: traffic()? })
    })
}

/// One row of `/proc/PID/net/route`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    pub interface: &'a str,
    pub destination: Ipv4Addr,
    pub gateway: Ipv4Addr,
    pub mask: Ipv4Addr,
}

impl Route<'_> {
    /// Whether this row is for the address. The row of the default route is for all.
    pub fn covers(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask.to_bits() == self.destination.to_bits()
    }

    pub fn is_default(&self) -> bool {
        self.mask.is_unspecified()
    }
}

/// Reads `/proc/PID/net/route`. Its heading holds no numbers.
pub fn routes(text: &str) -> impl Iterator<Item = Route<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        // The kernel prints the address's four bytes as one number of the machine's own order.
        let address = |i: usize| {
            let number = u32::from_str_radix(fields.get(i)?, 16).ok()?;
            Some(Ipv4Addr::from(number.to_ne_bytes()))
        };
        Some(Route {
            interface: fields.first()?,
            destination: address(1)?,
            gateway: address(2)?,
            mask: address(7)?,
        })
    })
}

/// What a process has moved to and from storage, by `/proc/PID/io`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessIo {
    pub read_bytes: u64,
    pub write_bytes: u64,
}

/// Reads `/proc/PID/io`.
pub fn process_io(text: &str) -> Option<ProcessIo> {
    let number = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    Some(ProcessIo { read_bytes: number("read_bytes")?, write_bytes: number("write_bytes")? })
}

/// Number of a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    /// Reads `254:0`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// Names of block devices, by `/proc/diskstats`.
pub fn block_devices(text: &str) -> impl Iterator<Item = (DeviceNumber, &str)> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((DeviceNumber { major, minor }, words.next()?))
    })
}

/// Number of processors that are on, by `/proc/stat`.
pub fn processors(text: &str) -> Option<u32> {
    let is_processor = |line: &&str| {
        let number = line.strip_prefix("cpu").and_then(|rest| rest.split(' ').next());
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let count = text.lines().filter(is_processor).count();
    u32::try_from(count).ok().filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn memberships_of_both_versions() {
        let text = "12:name=systemd:/a\n3:cpu,cpuacct:/b:c\n0::/d e (deleted)\n";
        let found: Vec<_> = memberships(text).map(|m| (m.controllers, m.path)).collect();
        assert_eq!(found, [("name=systemd", "/a"), ("cpu,cpuacct", "/b:c"), ("", "/d e")]);
        let line = memberships("3:cpu,cpuacct:/").next().expect("a line");
        assert!(line.has("cpuacct") && !line.has("cpua") && !line.is_unified());
        for broken in ["", "x::/", "0:", "0::", "0::a", "::/a", "-1::/"] {
            assert_eq!(memberships(broken).next(), None, "{broken}");
        }
    }

    #[test]
    fn mounts_with_any_number_of_optional_fields_and_escapes() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                    32 31 0:29 /a\\040b /mnt/\\134x\\011\\012 rw shared:1 master:2 - cgroup none rw,cpu\n\
                    33 31 0:30 / /c rw - cgroup2 none\n";
        let found: Vec<_> = mounts(text).collect();
        let mount = |root, point, kind, source, options| Mount {
            root: Cow::Borrowed(root),
            point: Cow::Borrowed(point),
            kind,
            source,
            options,
        };
        assert_eq!(
            found,
            [
                mount("/", "/sys/fs/cgroup", "tmpfs", "tmpfs", "rw,mode=755"),
                mount("/a b", "/mnt/\\x\t\n", "cgroup", "none", "rw,cpu"),
                mount("/", "/c", "cgroup2", "none", ""),
            ]
        );
        for broken in ["", "1 2 3", "1 2 3 / /x rw cgroup none rw", "1 2 3 / - a b c", " - "] {
            assert_eq!(mounts(broken).next(), None, "{broken}");
        }
        let simple = simple_mounts("none /a\\040b cgroup rw,memory 0 0\nbroken\n").next();
        assert_eq!(simple, Some(mount("/", "/a b", "cgroup", "none", "rw,memory")));
    }

    #[test]
    fn escapes_are_undone_and_nothing_else() {
        for (text, plain) in [
            (r"a\040b", "a b"),
            (r"\101\102", "AB"),
            (r"\303\244", "ä"),
            (r"\04", r"\04"),
            (r"\0", r"\0"),
            (r"\", r"\"),
            (r"\089", r"\089"),
            (r"\777", r"\777"),
            (r"ä\040", "ä "),
        ] {
            assert_eq!(unescaped(text), plain, "{text}");
        }
    }

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let rest = " S 1 1 1 0 -1 4194560 1065 0 1 0 12 34 0 0 20 0 3 0 68718 2322432 366 18446744073709551615";
        for name in ["sh", "a) S (b", ") 1 2 (", "", "a\nb"] {
            let found = stat(&format!("7 ({name}){rest}")).expect("its form");
            assert_eq!((found.name.as_str(), found.state, found.parent), (name, 'S', 1));
            assert_eq!((found.user_ticks, found.system_ticks, found.threads), (12, 34, 3));
            assert_eq!((found.started_ticks, found.resident_pages), (68718, 366));
        }
        for broken in ["", "7 (sh", ")(", "7 (sh) S", "7 (sh) S 1 x"] {
            assert_eq!(stat(broken), None, "{broken}");
        }
    }

    #[test]
    fn interfaces_of_old_and_new_kernels() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n\
                    eth0:10884 134 1 2 0 0 0 0 12322 121 3 4 0 0 0 0\n\
                    eth0.7@x: 1 2 3 4 5 6 7 8 18446744073709551615 10 11 12 13 14 15 16\n\
                    broken: 1 2\n";
        let found: Vec<_> = interfaces(text).collect();
        let traffic = |bytes, packets, errors, dropped| Traffic { bytes, packets, errors, dropped };
        assert_eq!(
            found,
            [
                Interface {
                    name: "eth0",
                    received: traffic(10884, 134, 1, 2),
                    sent: traffic(12322, 121, 3, 4)
                },
                Interface {
                    name: "eth0.7@x",
                    received: traffic(1, 2, 3, 4),
                    sent: traffic(u64::MAX, 10, 11, 12)
                },
            ]
        );
    }

    #[test]
    fn processors_are_counted() {
        assert_eq!(processors("cpu  1 2\ncpu0 1\ncpu11 2\ncpufreq 3\nintr 1\n"), Some(2));
        assert_eq!(processors("cpu  1 2\n"), None);
        assert_eq!(processors(""), None);
    }

    #[test]
    fn files_of_the_own_process_make_sense() {
        let proc = Proc::new("/proc");
        let pid = std::process::id();
        let own = stat(&proc.of(pid, "stat").expect("stat")).expect("its form");
        let status = status(&proc.of(pid, "status").expect("status"));
        assert!(status.pids.contains(&pid) && status.resident_bytes > Some(100_000));
        assert!(own.threads > 0 && own.started_ticks > 0);
        assert!(proc.open_files(pid).expect("fd") > 2);
        assert!(proc.pids().expect("processes").any(|known| known == pid));
        assert_eq!(proc.network(pid).expect("net"), proc.network(pid).expect("net"));
        assert!(proc.processors() > Some(0));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ :/0-9a-z()\\n\\\\-]{0,200}") {
            memberships(&text).for_each(drop);
            mounts(&text).for_each(drop);
            simple_mounts(&text).for_each(drop);
            interfaces(&text).for_each(drop);
            routes(&text).for_each(drop);
            block_devices(&text).for_each(drop);
            let _ = (stat(&text), status(&text), process_io(&text), processors(&text));
        }
    }
}
