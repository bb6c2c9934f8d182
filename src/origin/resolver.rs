//! The thread that finds out who senders are.
//!
//! From a pid to a container: `/proc/PID/cgroup`, and with it the start of the process, so that a
//! later process with the same number is not taken for it. It is looked at again every second; for
//! that long a number that was given away anew can lead astray. `/proc` is that of this process,
//! whose pid namespace the kernel's numbers are meant in.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
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
    let mut resolver = Resolver::new(origins, Proc::new("/proc"), roots, patience);
    let stopping = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&stopping);
    let thread = std::thread::Builder::new().name("origin".to_owned()).spawn(move || {
        resolver.listen();
        while !stop.load(Ordering::Acquire) {
            resolver.step(Time::now());
            std::thread::park_timeout(TICK);
        }
        resolver.fall_silent();
    })?;
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

    /// Takes questions from now on, on this thread.
    fn listen(&self) {
        let thread = std::thread::current();
        self.origins.directory.watch(thread.clone());
        let _ = self.origins.resolver.set(thread);
        self.origins.questions.lock().expect("no panic under this lock").heard = true;
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
        let started = self.started(pid);
        let Ok(memberships) = self.proc.of(pid, "cgroup") else {
            // It has ended, and nobody else has its number yet.
            return Lead { container: self.origins.directory.process(pid), ..Lead::default() };
        };
        let paths = proc::memberships(&memberships).map(|line| Identity::of_path(line.path));
        let Some(identity) = paths.into_iter().find(|identity| identity.container_id.is_some())
        else {
            return Lead { started, ..Lead::default() };
        };
        let container = identity.container_id.as_deref().map(Arc::from);
        Lead { container, pod_uid: identity.pod_uid, started }
    }

    fn started(&self, pid: u32) -> Option<u64> {
        proc::stat(&self.proc.of(pid, "stat").ok()?).map(|stat| stat.started_ticks)
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
        Lead { container, pod_uid: identity.pod_uid, started: None }
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
        let Lead { container, started, .. } = lead;
        origins.settle(key, Answer { origin, container, started, used: now.0.into() });
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
            let now = self.started(*pid);
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
    /// Makes an answer known to those who wait for it.
    fn settle(&self, key: Key, answer: Answer) {
        let mut questions = self.questions.lock().expect("no panic under this lock");
        questions.open.remove(&key);
        self.answers.write().expect("no panic under this lock").insert(key, answer);
        drop(questions);
        self.news.fetch_add(1, Ordering::Release);
    }
}
