//! When collectors run, and what becomes of a run.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::task::JoinSet;

use super::{Collector, Samples, blocking};
use crate::reader::Reader;
use crate::telemetry::{CollectorFigures, Telemetry};
use crate::time::Time;

/// The wall clock is looked at again at least this often, since it may be set.
const NAP: Duration = Duration::from_secs(1);

/// A collector and when it runs.
pub struct Planned {
    pub collector: Box<dyn Collector>,
    /// Whole seconds.
    pub interval: Duration,
    /// What one run may take.
    pub budget: Duration,
}

/// The running collectors, each in a task of its own.
#[derive(Default)]
pub struct Collectors {
    tasks: JoinSet<()>,
}

impl Collectors {
    /// Starts them on the current runtime. What they find goes through `reader`.
    pub fn start(planned: Vec<Planned>, reader: Reader, telemetry: &Telemetry) -> Self {
        let reader = Arc::new(Mutex::new(reader));
        let mut tasks = JoinSet::new();
        for planned in planned {
            let interval = planned.interval;
            let runner = Runner::new(planned, Arc::clone(&reader), telemetry);
            tasks.spawn(runner.run_on_schedule(interval));
        }
        Self { tasks }
    }

    /// Ends all, waiting no longer than `grace` for reads that are under way.
    pub async fn stop(mut self, grace: Duration) {
        self.tasks.abort_all();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        // A read that hangs is left behind.
        let _ = tokio::time::timeout(grace, ended).await;
    }
}

/// Runs one collector and accounts for it.
pub struct Runner {
    collector: Box<dyn Collector>,
    budget: Duration,
    samples: Samples,
    reader: Arc<Mutex<Reader>>,
    figures: Arc<CollectorFigures>,
    failing: bool,
}

impl Runner {
    pub fn new(planned: Planned, reader: Arc<Mutex<Reader>>, telemetry: &Telemetry) -> Self {
        Self {
            figures: telemetry.collector(planned.collector.name()),
            collector: planned.collector,
            budget: planned.budget,
            samples: Samples::default(),
            reader,
            failing: false,
        }
    }

    /// The first run is at once, so that rates begin early; the others when an interval begins.
    async fn run_on_schedule(mut self, interval: Duration) {
        let mut due = Time::now();
        loop {
            self.run(Time::now()).await;
            let (next, missed) = following(due, Time::now(), interval);
            self.figures.skipped.add(missed);
            due = next;
            sleep_until(due, interval).await;
        }
    }

    /// One run: it ends by itself, by an error, by a panic or by its budget, and whatever it found
    /// until then is sent.
    pub async fn run(&mut self, now: Time) {
        let begun = Instant::now();
        self.samples.begin(now, self.budget);
        let run = caught(self.collector.run(&mut self.samples, now));
        let outcome = match tokio::time::timeout(self.budget, run).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("took longer than its {:?}", self.budget)),
        };
        self.samples.end(outcome.is_ok());
        self.figures.runs.add(1);
        self.figures.samples.add(self.samples.len() as u64);
        self.figures.left_out.add(self.samples.left_out());
        blocking(|| {
            let mut reader = self.reader.lock().expect("no panic under this lock");
            self.samples.send(&mut reader);
        });
        self.figures.micros.store(begun.elapsed().as_micros() as u64, Relaxed);
        self.figures.last.store(now.seconds(), Relaxed);
        let problem = outcome.as_ref().err().map_or_else(String::new, |error| format!("{error:#}"));
        *self.figures.problem.lock().expect("no panic under this lock") = problem;
        self.account(outcome);
    }

    /// Counts an error, and tells of the first one and of the recovery.
    fn account(&mut self, outcome: anyhow::Result<()>) {
        let name = self.collector.name();
        match outcome {
            Ok(()) if self.failing => tracing::info!("collector {name} works again"),
            Ok(()) => {}
            Err(error) => {
                self.figures.errors.add(1);
                if self.failing {
                    tracing::debug!("collector {name}: {error:#}");
                } else {
                    tracing::warn!("collector {name}: {error:#}; tried again at each interval");
                }
                self.failing = true;
                return;
            }
        }
        self.failing = false;
    }
}

/// Makes an error of a panic.
async fn caught(run: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut run = pin!(run);
    poll_fn(|context| {
        // After a panic the run is not polled again; what it left half done, the next one meets.
        catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(context))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            Poll::Ready(Err(anyhow!("panicked: {}", text.unwrap_or("without a word"))))
        })
    })
    .await
}

/// When the next run is due, and how many were missed since the one that was due at `due`.
fn following(due: Time, now: Time, interval: Duration) -> (Time, u64) {
    let interval = interval.as_millis().max(1) as i64;
    let slot = |time: Time| time.0.div_euclid(interval);
    let missed = slot(now).saturating_sub(slot(due)).max(0);
    (Time((slot(now) + 1) * interval), missed as u64)
}

/// Sleeps until the wall clock says so, or was set back by more than an interval.
async fn sleep_until(due: Time, interval: Duration) {
    loop {
        let left = due.0 - Time::now().0;
        if left <= 0 || left > 2 * interval.as_millis() as i64 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(left as u64).min(NAP)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectors::Tags;
    use crate::parse;
    use crate::reader::Shared;
    use crate::rules::Rules;
    use crate::shard::{self, Shards};
    use crate::value::{Plan, Value};
    use std::pin::Pin;

    /// Sends a gauge, then does what the run's number asks for.
    struct Script {
        runs: usize,
        steps: &'static [Step],
    }

    #[derive(Clone, Copy)]
    enum Step {
        Succeed,
        Fail,
        Panic,
        Hang,
    }

    impl Collector for Script {
        fn name(&self) -> &'static str {
            "script"
        }

        fn run<'a>(
            &'a mut self,
            samples: &'a mut Samples,
            _now: Time,
        ) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + 'a>> {
            Box::pin(async move {
                self.runs += 1;
                samples.gauge("script.run", self.runs as f64, &Tags::new(["a:b"]));
                match self.steps[self.runs - 1] {
                    Step::Succeed => Ok(()),
                    Step::Fail => Err(anyhow!("no engine")),
                    Step::Panic => panic!("a bug"),
                    Step::Hang => std::future::pending().await,
                }
            })
        }
    }

    fn shared() -> Shared {
        let telemetry = Arc::new(Telemetry::default());
        let shards = Shards::new(
            shard::Config::default(),
            Plan::from_config(&Default::default()),
            10,
            "host".to_owned(),
            Arc::clone(&telemetry),
            Time::from_seconds(1000),
        );
        Shared {
            rules: Arc::new(Rules::new(&Default::default(), "host").expect("rules")),
            shards: Arc::new(shards),
            origins: Arc::default(),
            telemetry,
            distribution_prefix: None,
            log_rejects: false,
            line_max: 8192,
            spellings_max: 1000,
            journal: None,
        }
    }

    fn reader(shared: &Shared) -> Reader {
        let listener = shared.telemetry.listener("collectors".to_owned());
        Reader::new(shared.clone(), listener, parse::Options::default(), false)
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_fails_panics_or_hangs_ends_alone_and_what_it_found_counts() {
        let shared = shared();
        let steps = &[Step::Succeed, Step::Fail, Step::Panic, Step::Hang, Step::Succeed];
        let planned = Planned {
            collector: Box::new(Script { runs: 0, steps }),
            interval: Duration::from_secs(10),
            budget: Duration::from_secs(8),
        };
        let reader = Arc::new(Mutex::new(reader(&shared)));
        let mut runner = Runner::new(planned, reader, &shared.telemetry);
        let (mut failing, mut errors, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..steps.len() as i64 {
            let now = Time::from_seconds(1001 + 10 * run);
            runner.run(now).await;
            failing.push(runner.failing);
            errors.push(runner.figures.errors.get());
            problems.push(runner.figures.problem.lock().unwrap().clone());
            assert_eq!(runner.figures.last.load(Relaxed), now.seconds());
            // What was collected in an interval leaves in its batch.
            let rows = shared.shards.flush(Time(now.0 + 9000), false).rows;
            let [row] = &rows[..] else { panic!("one row, not {rows:?}") };
            assert_eq!((row.context.name(), row.time), ("script.run", 1000 + 10 * run));
            assert!(matches!(row.value, Value::Gauge(n) if n == (run + 1) as f64), "{row:?}");
        }
        assert_eq!(failing, [false, true, true, true, false]);
        assert_eq!(errors, [0, 1, 2, 3, 3]);
        let expected = ["", "no engine", "panicked: a bug", "took longer than its 8s", ""];
        assert_eq!(problems, expected);
        assert_eq!((runner.figures.runs.get(), runner.figures.samples.get()), (5, 5));
    }

    #[test]
    fn a_late_run_is_skipped_and_the_next_begins_with_an_interval() {
        let seconds = Duration::from_secs;
        for (due, now, interval, next, missed) in [
            (1000.0, 1000.1, 10, 1010, 0),
            // The first run is wherever the start was.
            (1003.5, 1003.6, 10, 1010, 0),
            (1000.0, 1009.9, 10, 1010, 0),
            (1000.0, 1010.0, 10, 1020, 1),
            (1000.0, 1035.0, 10, 1040, 3),
            (1000.0, 1035.0, 20, 1040, 1),
            // The clock was set back.
            (1000.0, 500.0, 10, 510, 0),
        ] {
            let time = |s: f64| Time((s * 1000.0) as i64);
            let found = following(time(due), time(now), seconds(interval));
            assert_eq!(found, (Time::from_seconds(next), missed), "{due} {now} {interval}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn collectors_run_on_their_own_and_one_that_panics_costs_nobody_else() {
        let shared = shared();
        let planned = |steps| Planned {
            collector: Box::new(Script { runs: 0, steps }),
            interval: Duration::from_secs(1),
            budget: Duration::from_secs(1),
        };
        let list = vec![planned(&[Step::Panic; 100]), planned(&[Step::Succeed; 100])];
        let collectors = Collectors::start(list, reader(&shared), &shared.telemetry);
        let deadline = Instant::now() + Duration::from_secs(20);
        let figures = shared.telemetry.collectors();
        while figures.iter().any(|figures| figures.runs.get() < 2) {
            assert!(Instant::now() < deadline, "{figures:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        collectors.stop(Duration::from_secs(5)).await;
        let runs: Vec<_> = figures.iter().map(|figures| figures.runs.get()).collect();
        assert!(figures.iter().map(|f| f.errors.get() > 0).eq([true, false]), "{figures:?}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(figures.iter().map(|f| f.runs.get()).eq(runs), "none runs after the stop");
    }
}
