//! The profile of tallyd's own CPU time: taken all the time, told each minute, kept for an hour.
//!
//! A timer's signal takes samples ([`sampler`]); the thread here gathers them into windows of a
//! minute ([`window`]), names their functions ([`symbols`]) and says in one line of the log where
//! the time went ([`report`]). The windows kept are shown as profiles for `pprof` ([`pprof`]) and
//! as drawings ([`flame`]). A window on demand is fed from the same samples and disturbs nothing.

pub mod flame;
pub mod maps;
pub mod pprof;
pub mod report;
pub mod sampler;
pub mod stage;
pub mod symbols;
pub mod window;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use object::Object as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::logging::Format;
use crate::sys;
use crate::telemetry::Telemetry;
use crate::time::Time;
use pprof::Program;
use report::Report;
use sampler::Sampler;
use symbols::Symbols;
use window::{Collector, Window};

/// The profile of tallyd's own CPU time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Sample where CPU time goes, all the time: a line in the log each period, profiles and flame
    /// graphs below `/debug/pprof/`.
    pub enabled: bool,
    /// Samples per second of CPU time. An odd number does not fall into step with other timers.
    pub hz: u32,
    /// Seconds from one line to the next, aligned to the clock.
    pub period: u32,
    /// Periods kept, unless they take more than 4 MiB together.
    pub keep: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { enabled: true, hz: 99, period: 60, keep: 60 }
    }
}

/// What the windows kept may take together.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// How often samples are collected at least, and at most.
const DRAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A point in time, by each of the clocks that a window is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    pub time: Time,
    /// Since some moment in the past; never set back.
    pub uptime: Duration,
    /// CPU time that the process has used.
    pub cpu: Duration,
}

/// The profile while it is being taken.
pub struct Profile {
    sampler: Sampler,
    config: Config,
    started: Instant,
    windows: Mutex<Windows>,
    symbols: Mutex<Symbols>,
    build_id: String,
    telemetry: Arc<Telemetry>,
}

/// Windows that are being filled, and those that are full.
struct Windows {
    hz: u32,
    period: u32,
    keep: usize,
    current: Open,
    /// Those on demand, by number.
    others: Vec<(u64, Open)>,
    next: u64,
    /// The newest first.
    kept: VecDeque<Arc<Window>>,
}

/// A window that is being filled.
struct Open {
    begun: Moment,
    collector: Collector,
}

/// A window on demand. It is given up when dropped.
pub struct Recording {
    profile: Arc<Profile>,
    number: u64,
}

/// The thread that collects samples and tells of them.
pub struct Thread {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Profile {
    /// Begins to sample.
    ///
    /// # Errors
    /// When another profile is taken in this process, or the kernel refuses.
    pub fn start(config: &Config, telemetry: Arc<Telemetry>) -> io::Result<Arc<Self>> {
        let sampler = Sampler::start(config.hz)?;
        if !sampler::sees_callers() {
            tracing::info!("the profile knows no callers: the kernel copies no stacks");
        }
        let started = Instant::now();
        let windows = Windows::new(config, Moment::now(started));
        Ok(Arc::new(Self {
            sampler,
            config: config.clone(),
            started,
            windows: Mutex::new(windows),
            symbols: Mutex::default(),
            build_id: build_id().unwrap_or_default(),
            telemetry,
        }))
    }

    /// Begins a window on demand.
    pub fn record(self: &Arc<Self>) -> Recording {
        let mut windows = self.collected();
        let number = windows.next;
        windows.next += 1;
        windows.others.push((number, Open::new(Moment::now(self.started))));
        Recording { profile: Arc::clone(self), number }
    }

    /// A full window, if it is still kept: 0 is the newest.
    pub fn kept(&self, number: usize) -> Option<Arc<Window>> {
        self.windows().kept.get(number).cloned()
    }

    /// When each of the windows kept began, the newest first, and its samples.
    pub fn list(&self) -> Vec<(Time, u64)> {
        self.windows().kept.iter().map(|window| (window.begun, window.samples())).collect()
    }

    /// A window in the format of `pprof`.
    ///
    /// # Errors
    /// As [`pprof::encode`].
    pub fn encode(&self, window: &Window) -> io::Result<Vec<u8>> {
        let mut mappings = maps::code().unwrap_or_default();
        // The program itself comes first.
        let code = maps::holding(Self::start as *const () as usize).map(|own| own.start);
        mappings.sort_by_key(|mapping| (code.as_ref().ok() != Some(&mapping.start), mapping.start));
        let program = Program { mappings, build_id: self.build_id.clone() };
        pprof::encode(window, &self.symbols_of(window), &program)
    }

    /// A window as a drawing.
    pub fn draw(&self, window: &Window) -> String {
        flame::draw(window, &self.symbols_of(window))
    }

    /// What a window says.
    pub fn report(&self, window: &Window) -> Report {
        Report::new(window, &self.symbols_of(window))
    }

    /// The function at an address.
    pub fn function(&self, address: usize) -> String {
        let node = window::Node { caller: window::Caller::Thread(0), address, own: 0 };
        let window = Window { nodes: vec![node], ..Window::default() };
        let lines = self.symbols_of(&window).at(address);
        lines.first().map_or_else(String::new, |line| line.function.to_string())
    }

    fn symbols_of(&self, window: &Window) -> MutexGuard<'_, Symbols> {
        let mut symbols = self.symbols.lock().expect("no panic under this lock");
        symbols.learn(window);
        symbols
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().expect("no panic under this lock")
    }

    /// The windows, with all that has been sampled so far.
    fn collected(&self) -> MutexGuard<'_, Windows> {
        let mut windows = self.windows();
        let mut taken = 0;
        let lost = self.sampler.drain(|sample| {
            taken += u64::from(sample.times);
            windows.all().for_each(|window| window.collector.add(&sample));
        });
        windows.all().for_each(|window| window.collector.add_lost(lost));
        self.telemetry.profile_samples.add(taken);
        self.telemetry.profile_lost.add(lost);
        windows
    }

    /// Says where the time of a window went.
    fn tell(&self, window: &Window, format: Format) {
        let report = self.report(window);
        match format {
            Format::Text => tracing::info!("{}", report.text()),
            Format::Json => match serde_json::to_string(&report) {
                Ok(document) => tracing::info!(document, "CPU profile"),
                Err(error) => tracing::error!("cannot write the profile: {error}"),
            },
        }
    }
}

impl Recording {
    /// Ends the window.
    pub fn finish(self) -> Window {
        let mut windows = self.profile.collected();
        let now = Moment::now(self.profile.started);
        windows.end(self.number, now).unwrap_or_default()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.profile.windows().others.retain(|(number, _)| *number != self.number);
    }
}

impl Moment {
    /// `started` is where uptime counts from.
    fn now(started: Instant) -> Self {
        Self { time: Time::now(), uptime: started.elapsed(), cpu: sys::cpu_time() }
    }
}

impl Open {
    fn new(begun: Moment) -> Self {
        Self { begun, collector: Collector::default() }
    }

    fn close(self, now: Moment, hz: u32) -> Window {
        let length = now.uptime.saturating_sub(self.begun.uptime);
        let cpu = now.cpu.saturating_sub(self.begun.cpu);
        self.collector.close(self.begun.time, length, cpu, hz)
    }
}

impl Windows {
    fn new(config: &Config, now: Moment) -> Self {
        let Config { hz, period, keep, .. } = *config;
        let (current, kept) = (Open::new(now), VecDeque::new());
        Self { hz, period, keep, current, others: Vec::new(), next: 0, kept }
    }

    /// Every window that is being filled.
    fn all(&mut self) -> impl Iterator<Item = &mut Open> {
        std::iter::once(&mut self.current).chain(self.others.iter_mut().map(|(_, open)| open))
    }

    /// Closes the current window if its period is over, and keeps it.
    fn advance(&mut self, now: Moment) -> Option<Arc<Window>> {
        if now.time.bucket(self.period) == self.current.begun.time.bucket(self.period) {
            return None;
        }
        let full = std::mem::replace(&mut self.current, Open::new(now));
        let window = Arc::new(full.close(now, self.hz));
        self.kept.push_front(Arc::clone(&window));
        self.kept.truncate(self.keep);
        while self.kept.iter().map(|window| window.bytes()).sum::<usize>() > KEPT_BYTES_MAX {
            self.kept.pop_back();
        }
        Some(window)
    }

    /// Closes a window on demand.
    fn end(&mut self, number: u64, now: Moment) -> Option<Window> {
        let at = self.others.iter().position(|(other, _)| *other == number)?;
        let (_, open) = self.others.swap_remove(at);
        Some(open.close(now, self.hz))
    }
}

impl Thread {
    /// Collects the samples of this profile, and tells of each window in this form of the log.
    ///
    /// # Errors
    /// When the system gives no further thread.
    pub fn start(profile: Arc<Profile>, format: Format) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let run = move || run(&profile, format, &stopped);
        let thread = std::thread::Builder::new().name("profile".to_owned()).spawn(run)?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread.
    pub fn stop(self) {
        drop(self.stop);
        // One that panicked has said so already.
        let _ = self.thread.join();
    }
}

fn run(profile: &Profile, format: Format, stopped: &Receiver<()>) {
    // Names of functions take a tenth of a second each minute: on one processor a reader would lack it.
    sys::give_way();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let drain = drain_interval(profile.config.hz, processors);
    loop {
        // What cannot be followed now can be later; its samples are missing, not wrong.
        let _ = profile.sampler.follow();
        let window = profile.collected().advance(Moment::now(profile.started));
        if let Some(window) = window {
            profile.tell(&window, format);
        }
        let now = Time::now();
        let end = Time::from_seconds(
            now.bucket(profile.config.period) + i64::from(profile.config.period),
        );
        let left = Duration::from_millis((end.0 - now.0).max(1) as u64);
        match stopped.recv_timeout(left.min(drain)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Often enough that the table is half full at most while every processor is busy.
fn drain_interval(hz: u32, processors: usize) -> Duration {
    let rate = f64::from(hz) * processors as f64;
    Duration::from_secs_f64(sampler::SLOTS as f64 / 2.0 / rate).clamp(DRAIN.0, DRAIN.1)
}

/// What the linker noted to tell this build from others, in hexadecimal digits.
fn build_id() -> Option<String> {
    let file = object::ReadCache::new(File::open("/proc/self/exe").ok()?);
    let program = object::File::parse(&file).ok()?;
    let id = program.build_id().ok()??;
    Some(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(seconds: i64, uptime: u64, cpu_ms: u64) -> Moment {
        Moment {
            time: Time::from_seconds(seconds),
            uptime: Duration::from_secs(uptime),
            cpu: Duration::from_millis(cpu_ms),
        }
    }

    fn windows(config: Config, now: Moment) -> Windows {
        Windows::new(&config, now)
    }

    #[test]
    fn a_window_ends_with_its_minute() {
        let mut windows = windows(Config::default(), moment(630, 5, 100));
        let sample = window::tests::sample("one", &[1]);
        for (now, closed) in [
            (moment(630, 5, 100), None),
            (moment(659, 34, 150), None),
            // Begun within a minute: the first is shorter.
            (moment(660, 35, 200), Some((630, 30, 100, 1))),
            (moment(719, 94, 300), None),
            (moment(725, 100, 1200), Some((660, 65, 1000, 1))),
            // The clock was set back, and then ahead by an hour.
            (moment(100, 101, 1200), Some((725, 1, 0, 1))),
            (moment(3700, 102, 1201), Some((100, 1, 1, 1))),
        ] {
            windows.all().for_each(|open| open.collector.add(&sample));
            let window = windows
                .advance(now)
                .map(|w| (w.begun.seconds(), w.length.as_secs(), w.cpu.as_millis(), w.nodes.len()));
            assert_eq!(window, closed, "{now:?}");
        }
        let kept: Vec<_> = windows.kept.iter().map(|w| (w.begun.seconds(), w.samples())).collect();
        assert_eq!(kept, [(100, 1), (725, 1), (660, 2), (630, 3)]);
    }

    #[test]
    fn windows_on_demand_disturb_nothing() {
        let mut windows = windows(Config::default(), moment(600, 0, 0));
        let add = |windows: &mut Windows, address| {
            let sample = window::tests::sample("one", &[address]);
            windows.all().for_each(|open| open.collector.add(&sample));
        };
        add(&mut windows, 1);
        windows.others.push((7, Open::new(moment(610, 10, 0))));
        add(&mut windows, 2);
        windows.others.push((8, Open::new(moment(620, 20, 0))));
        add(&mut windows, 3);
        let first = windows.end(7, moment(630, 30, 500)).expect("it is open");
        add(&mut windows, 4);
        let minute = windows.advance(moment(660, 60, 900)).expect("it is over");
        let second = windows.end(8, moment(665, 65, 1000)).expect("it is open");
        assert_eq!([first.samples(), second.samples(), minute.samples()], [2, 2, 4]);
        assert_eq!(
            (first.length, first.cpu),
            (Duration::from_secs(20), Duration::from_millis(500))
        );
        assert!(windows.end(7, moment(665, 65, 1000)).is_none());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut few = windows(Config { keep: 2, ..Config::default() }, moment(0, 0, 0));
        let mut large = windows(Config { keep: 1000, ..Config::default() }, moment(0, 0, 0));
        for minute in 1..=40 {
            for address in 0..window::NODES_MAX {
                large.current.collector.add(&window::tests::sample("one", &[address]));
            }
            assert!(few.advance(moment(60 * minute, 0, 0)).is_some());
            assert!(large.advance(moment(60 * minute, 0, 0)).is_some());
        }
        assert_eq!(few.kept.len(), 2);
        assert_eq!(few.kept[0].begun, Time::from_seconds(39 * 60));
        assert_eq!(large.kept[0].begun, Time::from_seconds(39 * 60));
        let bytes: usize = large.kept.iter().map(|window| window.bytes()).sum();
        assert!((KEPT_BYTES_MAX * 9 / 10..=KEPT_BYTES_MAX).contains(&bytes), "{bytes}");
    }

    #[test]
    fn samples_are_collected_before_the_table_is_full() {
        let ms = |hz, processors| drain_interval(hz, processors).as_millis();
        assert_eq!([ms(99, 1), ms(99, 2), ms(99, 8), ms(1000, 64)], [1000, 1000, 323, 50]);
    }

    #[test]
    fn this_program_has_a_build_id() {
        let path = std::env::current_exe().expect("a path");
        let Ok(output) = std::process::Command::new("readelf").arg("-n").arg(path).output() else {
            println!("SKIP this_program_has_a_build_id: readelf is not installed");
            return;
        };
        let text = String::from_utf8(output.stdout).expect("text");
        let noted = text.split("Build ID: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        assert_eq!(build_id().as_deref(), noted);
    }
}
