//! The thread that finds out who senders are.
//!
//! From a pid to a container: `/proc/PID/cgroup`, and with it the start of the process, so that a
//! later process with the same number is not taken for it. It is looked at again every second; for
//! that long a number that was given away anew can lead astray. `/proc` is that of this process,
//! whose pid namespace the kernel's numbers are meant in.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use super::{Answer, IDLE, Key, Origin, Origins};
use crate::cgroup::hierarchy::{Bounds, Hierarchy, Index};
use crate::cgroup::identity::{Identity, is_container_id};
use crate::cgroup::proc::{self, Proc};
use crate::cgroup::roots::Roots;
use crate::time::Time;

/// How long the thread sleeps at most.
const TICK: Duration = Duration::from_secs(1);

/// Milliseconds between two looks at all cgroups, which are taken for an unknown inode only.
const INDEX_AGE: i64 = 1000;

/// Processes looked at again in one tick; if there are more, each has its turn.
const PROCESSES_PER_TICK: usize = 4096;

/// The running thread.
pub struct Running {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Starts the thread. `patience` is how long, in milliseconds, collectors have to publish a
/// container before it goes without their tags.
///
/// # Errors
/// When the system gives no further thread.
pub fn start(origins: Arc<Origins>, roots: &Roots, patience: i64) -> io::Result<Running> {
    let mut resolver = Resolver::new(Arc::clone(&origins), Proc::new("/proc"), roots, patience);
    let stopping = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopping);
    let thread = std::thread::Builder::new().name("origin".to_owned()).spawn(move || {
        while !stop.load(Ordering::Acquire) {
            resolver.step(Time::now());
            std::thread::park_timeout(TICK);
        }
        resolver.fall_silent();
    })?;
    origins.heard_by(thread.thread().clone());
    Ok(Running { stopping, thread })
}

impl Running {
    /// Ends the thread. What is still asked gets no answer.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        self.thread.thread().unpark();
        // If it panicked, it has said so.
        let _ = self.thread.join();
    }
}

struct Resolver {
    origins: Arc<Origins>,
    proc: Proc,
    roots: Roots,
    patience: i64,
    /// Keys whose tags collectors have still to publish, and since when they are asked for.
    later: Vec<(Key, Lead, Time)>,
    /// All cgroups, and when they were looked at.
    index: Option<(Index, Time)>,
    changes: u64,
    ticked: Time,
    ticks: usize,
}

/// Where a key leads to.
#[derive(Clone, Debug, Default)]
struct Lead {
    container: Option<Arc<str>>,
    pod_uid: Option<String>,
    /// When the process started, in ticks.
    started: Option<u64>,
    /// What its program is called.
    program: Option<Arc<str>>,
}

impl Resolver {
    fn new(origins: Arc<Origins>, proc: Proc, roots: &Roots, patience: i64) -> Self {
        Self {
            origins,
            proc,
            roots: roots.clone(),
            patience,
            later: Vec::new(),
            index: None,
            changes: 0,
            ticked: Time::default(),
            ticks: 0,
        }
    }

    fn fall_silent(&self) {
        let mut questions = self.origins.questions.lock().expect("no panic under this lock");
        questions.heard = false;
        questions.open.clear();
        questions.fresh.clear();
    }

    /// Answers what can be answered now.
    fn step(&mut self, now: Time) {
        let changes = self.origins.directory.changes();
        let changed = std::mem::replace(&mut self.changes, changes) != changes;
        let fresh = {
            let mut questions = self.origins.questions.lock().expect("no panic under this lock");
            std::mem::take(&mut questions.fresh)
        };
        for key in fresh {
            let lead = self.lead(&key, now);
            self.settle(key, lead, now, now);
        }
        for (key, lead, since) in std::mem::take(&mut self.later) {
            if changed || now.0 - since.0 >= self.patience {
                self.settle(key, lead, since, now);
            } else {
                self.later.push((key, lead, since));
            }
        }
        // A clock that was set back must not stop the ticks.
        let tick = now.0 - self.ticked.0 >= 1000 || now < self.ticked;
        if tick {
            self.ticked = now;
            self.ticks = self.ticks.wrapping_add(1);
            self.check_processes();
            self.forget_idle(now);
            self.origins.directory.tick(now);
        }
        if tick || changed {
            self.refresh(now);
        }
    }

    /// Follows a key as far as files lead.
    fn lead(&mut self, key: &Key, now: Time) -> Lead {
        match key {
            Key::Process(pid) => self.process(*pid),
            Key::Inode(inode) => self.inode(*inode, now),
            Key::Container(id) => Lead { container: Some((**id).into()), ..Lead::default() },
            Key::Pod(_) | Key::ContainerInPod(..) => Lead::default(),
        }
    }

    fn process(&self, pid: u32) -> Lead {
        let stat = self.stat(pid);
        let started = stat.as_ref().map(|stat| stat.started_ticks);
        let program = stat.map(|stat| stat.name.into());
        let Ok(memberships) = self.proc.of(pid, "cgroup") else {
            // It has ended, and nobody else has its number yet.
            return Lead { container: self.origins.directory.process(pid), ..Lead::default() };
        };
        let paths = proc::memberships(&memberships).map(|line| Identity::of_path(line.path));
        let Some(identity) = paths.into_iter().find(|identity| identity.container_id.is_some())
        else {
            return Lead { started, program, ..Lead::default() };
        };
        let container = identity.container_id.as_deref().map(Arc::from);
        Lead { container, pod_uid: identity.pod_uid, started, program }
    }

    fn stat(&self, pid: u32) -> Option<proc::Stat> {
        proc::stat(&self.proc.of(pid, "stat").ok()?)
    }

    fn inode(&mut self, inode: u64, now: Time) -> Lead {
        let known = |index: &Index| index.by_inode(inode).map(Identity::of_path);
        let mut found = self.index.as_ref().and_then(|(index, _)| known(index));
        if found.is_none() && self.index.as_ref().is_none_or(|(_, at)| now.0 - at.0 >= INDEX_AGE) {
            let index = Hierarchy::find(&self.roots).map(|all| all.index(Bounds::default()));
            let index = index.unwrap_or_default();
            found = known(&index);
            self.index = Some((index, now));
        }
        let identity = found.unwrap_or_default();
        let container = identity.container_id.map(Arc::from);
        Lead { container, pod_uid: identity.pod_uid, ..Lead::default() }
    }

    /// Answers a key that was asked for at `since`, or puts it off until collectors have told more.
    fn settle(&mut self, key: Key, lead: Lead, since: Time, now: Time) {
        let origins = &self.origins;
        let in_time = now.0 - since.0 < self.patience;
        let known = match (&key, &lead.container) {
            (_, Some(id)) => origins.directory.container(id),
            (Key::Pod(_) | Key::ContainerInPod(..), None) => origins.origin(&key, now),
            (Key::Process(_) | Key::Container(_) | Key::Inode(_), None) => Some(Origin::NONE),
        };
        let asked = || match &lead.container {
            Some(id) => since < now || origins.directory.want(id),
            None => origins.directory.has_collectors(),
        };
        if known.is_none() && in_time && asked() {
            self.later.push((key, lead, since));
            return;
        }
        let origin = known.unwrap_or_else(|| self.supposed(&lead, now));
        let Lead { container, started, program, .. } = lead;
        let answer = Answer { origin, container, started, program, used: now.0.into() };
        origins.settle(key, answer);
    }

    /// What the path of a cgroup, or a container's name for itself, tells.
    fn supposed(&self, lead: &Lead, now: Time) -> Origin {
        match &lead.container {
            Some(id) if is_container_id(id) => {
                self.origins.directory.suppose(id, lead.pod_uid.as_deref(), now)
            }
            _ => Origin::NONE,
        }
    }

    /// Forgets processes whose number now belongs to another. One that has ended is kept: what it
    /// sent last may still be in the socket.
    fn check_processes(&self) {
        let processes: Vec<(u32, Option<u64>)> = {
            let answers = self.origins.answers.read().expect("no panic under this lock");
            let processes = answers.iter().filter_map(|(key, answer)| match key {
                Key::Process(pid) => Some((*pid, answer.started)),
                Key::Container(_) | Key::Inode(_) | Key::Pod(_) | Key::ContainerInPod(..) => None,
            });
            let turns = answers.len().div_ceil(PROCESSES_PER_TICK).max(1);
            processes.filter(|(pid, _)| *pid as usize % turns == self.ticks % turns).collect()
        };
        let others = processes.into_iter().filter(|(pid, started)| {
            let now = self.stat(*pid).map(|stat| stat.started_ticks);
            now.is_some() && now != *started
        });
        for (pid, _) in others {
            let mut answers = self.origins.answers.write().expect("no panic under this lock");
            answers.remove(&Key::Process(pid));
        }
    }

    fn forget_idle(&self, now: Time) {
        let idle = |answer: &Answer| (now.0 - answer.used.load(Ordering::Relaxed)).abs() >= IDLE;
        let any = {
            let answers = self.origins.answers.read().expect("no panic under this lock");
            self.origins.telemetry.origin_senders.store(answers.len() as u64, Ordering::Relaxed);
            answers.values().any(idle)
        };
        if any {
            let mut answers = self.origins.answers.write().expect("no panic under this lock");
            answers.retain(|_, answer| !idle(answer));
        }
    }

    /// Takes over the tags that containers have got since they were looked up.
    fn refresh(&self, now: Time) {
        let containers: Vec<(Key, Arc<str>, Origin)> = {
            let answers = self.origins.answers.read().expect("no panic under this lock");
            let known = answers.iter().filter_map(|(key, answer)| {
                Some((key.clone(), answer.container.clone()?, answer.origin))
            });
            known.collect()
        };
        for (key, id, old) in containers {
            let new = self.origins.directory.keep(&id, now);
            if new.is_some_and(|new| new != old)
                && let Some(new) = new
            {
                let mut answers = self.origins.answers.write().expect("no panic under this lock");
                if let Some(answer) = answers.get_mut(&key) {
                    answer.origin = new;
                }
            }
        }
    }
}

impl Origins {
    /// Takes questions from now on, and unparks this thread for them.
    fn heard_by(&self, thread: Thread) {
        self.directory.watch(thread.clone());
        let _ = self.resolver.set(thread);
        self.questions.lock().expect("no panic under this lock").heard = true;
    }

    /// Makes an answer known to those who wait for it.
    fn settle(&self, key: Key, answer: Answer) {
        let mut questions = self.questions.lock().expect("no panic under this lock");
        questions.open.remove(&key);
        self.answers.write().expect("no panic under this lock").insert(key, answer);
        drop(questions);
        self.news.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use tempfile::TempDir;

    use super::*;
    use crate::origin::directory::{Source, Told};
    use crate::origin::{Config, Directory, EntityTags};

    const PATIENCE: i64 = 10_000;
    const A: &str = "aaaaaaaaaaaa0000000000000000000000000000000000000000000000000001";
    const POD: &str = "0b1c2d3e-1111-2222-3333-444455556666";

    /// A machine in a folder, and a resolver that is told the time.
    struct Machine {
        folder: TempDir,
        resolver: Resolver,
        now: Time,
    }

    impl Machine {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            for path in ["proc", "sys/fs/cgroup/memory"] {
                fs::create_dir_all(folder.path().join(path)).expect("a folder");
            }
            let telemetry = Arc::default();
            let directory = Arc::new(Directory::new(Arc::clone(&telemetry)));
            let origins = Arc::new(Origins::new(Config::default(), directory, telemetry));
            let roots = Roots::of_machine(folder.path());
            let resolver = Resolver::new(origins, Proc::new(&roots.proc), &roots, PATIENCE);
            resolver.origins.heard_by(std::thread::current());
            Self { folder, resolver, now: Time(1_000_000) }
        }

        fn process(&self, pid: u32, started: u64, cgroup: &str) {
            let folder = self.folder.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&folder).expect("a folder");
            let zeros = "0 ".repeat(17);
            let stat = format!("{pid} (app) S 1 {zeros}{started} 0 0 0 0\n");
            fs::write(folder.join("stat"), stat).expect("a file");
            let lines = format!("9:name=systemd:/\n4:memory:{cgroup}\n0::{cgroup}\n");
            fs::write(folder.join("cgroup"), lines).expect("a file");
        }

        fn end(&self, pid: u32) {
            fs::remove_dir_all(self.folder.path().join(format!("proc/{pid}")))
                .expect("it is there");
        }

        fn cgroup(&self, path: &str) -> u64 {
            let folder = self.folder.path().join("sys/fs/cgroup/memory").join(path);
            fs::create_dir_all(&folder).expect("a folder");
            fs::metadata(folder).expect("its data").ino()
        }

        fn after(&mut self, milliseconds: i64) {
            self.now.0 += milliseconds;
            self.resolver.step(self.now);
        }

        fn ask(&mut self, key: &Key) -> Option<Vec<String>> {
            assert!(self.resolver.origins.ask(key, self.now), "there is room");
            self.after(0);
            self.tags(key)
        }

        /// At the highest cardinality.
        fn tags(&self, key: &Key) -> Option<Vec<String>> {
            let origins = &self.resolver.origins;
            let origin = origins.origin(key, self.now)?;
            let tags = origins.directory.tags(origin).unwrap_or_default();
            Some(tags.at(crate::parse::Cardinality::High).cloned().collect())
        }

        fn publish(&self, id: &str, tag: &str) {
            let low = vec![tag.to_owned()];
            let tags = Arc::new(EntityTags { low, ..EntityTags::default() });
            let told = Told { tags, ..Told::default() };
            self.resolver.origins.directory.publish(Source::Engine, id, told);
        }
    }

    fn strings(tags: &[&str]) -> Option<Vec<String>> {
        Some(tags.iter().map(|tag| (*tag).to_owned()).collect())
    }

    #[test]
    fn from_a_process_to_its_container() {
        let mut machine = Machine::new();
        machine.process(7, 100, &format!("/docker/{A}"));
        machine.process(8, 100, "/system.slice/ssh.service");
        machine.publish(A, "image_name:web");
        assert_eq!(machine.ask(&Key::Process(7)), strings(&["image_name:web"]));
        assert_eq!(machine.ask(&Key::Process(8)), strings(&[]), "no container");
        assert_eq!(machine.ask(&Key::Process(9)), strings(&[]), "no process");
        // What is asked for once is known without another look.
        machine.end(7);
        machine.after(1000);
        assert_eq!(machine.tags(&Key::Process(7)), strings(&["image_name:web"]));
    }

    #[test]
    fn without_an_engine_the_path_tells_what_it_can() {
        let mut machine = Machine::new();
        let pod = POD.replace('-', "_");
        machine.process(7, 1, &format!("/docker/{A}"));
        let b = A.replace('1', "2");
        let slice = format!("/kubepods.slice/kubepods-pod{pod}.slice/cri-containerd-{b}.scope");
        machine.process(8, 1, &slice);
        let id = format!("container_id:{A}");
        assert_eq!(machine.ask(&Key::Process(7)), strings(&[&id]));
        assert_eq!(machine.ask(&Key::Container(A.into())), strings(&[&id]));
        let ids = [format!("pod_uid:{POD}"), format!("container_id:{b}")];
        assert_eq!(machine.ask(&Key::Process(8)), strings(&[&ids[0], &ids[1]]));
        // What does not look like a container's id is taken for none.
        assert_eq!(machine.ask(&Key::Container("a,b".into())), strings(&[]));
        // They are kept for as long as they are asked for.
        for _ in 0..1000 {
            machine.after(1000);
            assert_eq!(machine.tags(&Key::Process(7)), strings(&[&id]));
        }
        machine.after(1_000_000);
        machine.after(1000);
        assert!(machine.resolver.origins.directory.is_empty());
        assert!(machine.resolver.origins.answers.read().expect("no panic").is_empty());
    }

    #[test]
    fn a_collector_is_asked_and_waited_for_but_not_for_long() {
        let mut machine = Machine::new();
        let mut wanted = machine.resolver.origins.directory().wanted();
        machine.process(7, 1, &format!("/docker/{A}"));
        assert_eq!(machine.ask(&Key::Process(7)), None);
        assert_eq!(wanted.try_recv().as_deref(), Ok(A));
        let news = machine.resolver.origins.news();
        machine.publish(A, "image_name:web");
        machine.after(5);
        assert_eq!(machine.tags(&Key::Process(7)), strings(&["image_name:web"]));
        assert!(machine.resolver.origins.news() > news);

        let b = A.replace('1', "2");
        machine.process(8, 1, &format!("/docker/{b}"));
        assert_eq!(machine.ask(&Key::Process(8)), None);
        assert_eq!(machine.ask(&Key::Pod("nobody".into())), None);
        machine.after(PATIENCE - 1);
        assert_eq!(machine.tags(&Key::Process(8)), None);
        machine.after(1);
        assert_eq!(machine.tags(&Key::Process(8)), strings(&[&format!("container_id:{b}")]));
        assert_eq!(machine.tags(&Key::Pod("nobody".into())), strings(&[]));
        // Better late than never.
        machine.publish(&b, "image_name:late");
        machine.after(5);
        assert_eq!(machine.tags(&Key::Process(8)), strings(&["image_name:late"]));
    }

    #[test]
    fn a_number_that_is_given_away_anew_is_another_process() {
        let mut machine = Machine::new();
        machine.publish(A, "image_name:web");
        machine.process(7, 100, &format!("/docker/{A}"));
        assert_eq!(machine.ask(&Key::Process(7)), strings(&["image_name:web"]));
        machine.process(7, 200, "/system.slice/ssh.service");
        machine.after(1000);
        assert_eq!(machine.tags(&Key::Process(7)), None);
        assert_eq!(machine.ask(&Key::Process(7)), strings(&[]));
    }

    #[test]
    fn an_inode_is_that_of_a_containers_cgroup() {
        let mut machine = Machine::new();
        machine.publish(A, "image_name:web");
        let inode = machine.cgroup(&format!("docker/{A}"));
        assert_eq!(machine.ask(&Key::Inode(inode)), strings(&["image_name:web"]));
        // A new one is found by another look, of which there is one a second.
        let b = A.replace('1', "2");
        let late = machine.cgroup(&format!("docker/{b}"));
        machine.after(INDEX_AGE);
        assert_eq!(machine.ask(&Key::Inode(late)), strings(&[&format!("container_id:{b}")]));
        machine.after(INDEX_AGE);
        assert_eq!(machine.ask(&Key::Inode(u64::MAX)), strings(&[]));
    }

    #[test]
    fn there_is_an_end_to_what_is_remembered() {
        let mut machine = Machine::new();
        let origins = Arc::clone(&machine.resolver.origins);
        for pid in 0..super::super::KEYS_MAX as u32 {
            assert!(origins.ask(&Key::Process(pid), machine.now));
        }
        assert!(!origins.ask(&Key::Process(u32::MAX), machine.now));
        assert_eq!(origins.telemetry.origin_senders_refused.get(), 1);
        machine.after(0);
        assert!(!origins.ask(&Key::Process(u32::MAX), machine.now), "answers count too");
        machine.after(IDLE);
        assert!(origins.ask(&Key::Process(u32::MAX), machine.now));
    }
}
