//! How long things take.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::{Endpoint, Listener, Telemetry};
use crate::time::Time;

/// Quantiles shown.
pub const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 1.0];

/// Quantiles are of the last one to two spans of so many seconds: those of a whole life say nothing
/// about now.
const SPAN: u32 = 60;

/// The longest that is told apart, in microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;

/// Significant digits of a quantile.
const DIGITS: u8 = 2;

/// How long one kind of work takes, each time that it is done. A lock is taken to record: by one
/// thread as a rule, once per batch.
pub struct Latency(Mutex<Recorded>);

struct Recorded {
    count: u64,
    sum: Duration,
    /// Start of the newest span, in Unix seconds.
    span: i64,
    /// Of the newest span and of the one before, in microseconds.
    recent: [Histogram<u32>; 2],
}

/// What was recorded, for a page.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Since the start.
    pub count: u64,
    pub seconds: f64,
    /// Of the last minute or two, one for each of [`QUANTILES`]; NaN when nothing was done.
    pub quantiles: [f64; QUANTILES.len()],
}

/// An own summary, as shown on `/metrics`.
pub struct Timed {
    /// Without the prefix `tallyd_`.
    pub name: &'static str,
    pub help: &'static str,
    of: Of,
}

enum Of {
    Listener(fn(&Listener) -> &Latency),
    Process(fn(&Telemetry) -> &Latency),
    Endpoint(fn(&Endpoint) -> &Latency),
}

/// Every own summary: METRICS.md is written from this list too.
pub const TIMED: &[Timed] = &[
    Timed {
        name: "listener_batch_seconds",
        help: "From asking the kernel for datagrams until all values of those it gave are added, by listener.",
        of: Of::Listener(|l| &l.batch),
    },
    Timed {
        name: "flush_duration_seconds",
        help: "A flush: from the close of the buckets to the batch for the sinks.",
        of: Of::Process(|t| &t.flush),
    },
    Timed {
        name: "flush_shard_seconds",
        help: "The part of one shard in a flush: how long closing its buckets took.",
        of: Of::Process(|t| &t.flush_shard),
    },
    Timed {
        name: "sink_encode_seconds",
        help: "Encoding and compressing a batch, by sink and endpoint.",
        of: Of::Endpoint(|e| &e.encode),
    },
    Timed {
        name: "sink_send_seconds",
        help: "Sending a payload and waiting for the answer, whatever it is, by sink and endpoint.",
        of: Of::Endpoint(|e| &e.send),
    },
    Timed {
        name: "sink_delivered_seconds",
        help: "From a flush to the delivery of a payload of it, to the second, by sink and endpoint.",
        of: Of::Endpoint(|e| &e.age),
    },
    Timed {
        name: "sink_ingest_to_delivered_seconds",
        help: "From the arrival of the first of a flush's samples to the delivery of a payload of it, by sink and endpoint.",
        of: Of::Endpoint(|e| &e.ingest),
    },
];

impl Latency {
    /// It has taken so long this time.
    pub fn record(&self, took: Duration, now: Time) {
        let mut recorded = self.0.lock().expect("no panic under this lock");
        recorded.advance(now);
        recorded.count += 1;
        recorded.sum = recorded.sum.saturating_add(took);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        recorded.recent[0].saturating_record(micros.min(LONGEST));
    }
}

impl Recorded {
    /// Forgets what is older than the span before.
    fn advance(&mut self, now: Time) {
        let span = now.bucket(SPAN);
        if span == self.span {
            return;
        }
        self.recent.swap(0, 1);
        self.recent[0].reset();
        // A clock that was set back begins anew as well.
        if span != self.span + i64::from(SPAN) {
            self.recent[1].reset();
        }
        self.span = span;
    }
}

impl Default for Latency {
    fn default() -> Self {
        let empty = || Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("good bounds");
        let recent = [empty(), empty()];
        Self(Mutex::new(Recorded { count: 0, sum: Duration::ZERO, span: 0, recent }))
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Latency")
    }
}

impl Summary {
    /// Of several places that do the same work.
    fn of<'a>(places: impl Iterator<Item = &'a Latency>, now: Time) -> Self {
        let (mut count, mut sum) = (0, Duration::ZERO);
        let mut all = Histogram::<u64>::new_with_bounds(1, LONGEST, DIGITS).expect("good bounds");
        for latency in places {
            let mut recorded = latency.0.lock().expect("no panic under this lock");
            recorded.advance(now);
            count += recorded.count;
            sum = sum.saturating_add(recorded.sum);
            for value in recorded.recent.iter().flat_map(Histogram::iter_recorded) {
                all.saturating_record_n(value.value_iterated_to(), value.count_at_value().into());
            }
        }
        let quantiles = QUANTILES.map(|quantile| match all.is_empty() {
            true => f64::NAN,
            false => all.value_at_quantile(quantile) as f64 / 1e6,
        });
        Self { count, seconds: sum.as_secs_f64(), quantiles }
    }
}

/// One own summary: its labels and figures.
pub type Figure = (Vec<(&'static str, String)>, Summary);

impl Telemetry {
    /// The figures of an own summary at this time. Each set of labels comes once.
    pub fn timed(&self, timed: &Timed, now: Time) -> Vec<Figure> {
        match timed.of {
            Of::Process(latency) => {
                vec![(Vec::new(), Summary::of(std::iter::once(latency(self)), now))]
            }
            Of::Listener(latency) => {
                let listeners = self.listeners();
                let all =
                    listeners.iter().map(|l| (vec![("listener", l.name.clone())], latency(l)));
                by_labels(all.collect(), now)
            }
            Of::Endpoint(latency) => {
                let endpoints = self.endpoints();
                let all = endpoints.iter().map(|e| (e.labels(), latency(e)));
                by_labels(all.collect(), now)
            }
        }
    }
}

/// Sockets that share an address share their labels.
fn by_labels(all: Vec<(Vec<(&'static str, String)>, &Latency)>, now: Time) -> Vec<Figure> {
    let mut figures = Vec::<Figure>::new();
    for (labels, _) in &all {
        if !figures.iter().any(|(known, _)| known == labels) {
            let same = all.iter().filter(|(other, _)| other == labels);
            let summary = Summary::of(same.map(|(_, latency)| *latency), now);
            figures.push((labels.clone(), summary));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_seconds(seconds)
    }

    #[test]
    fn quantiles_are_those_of_the_last_minutes() {
        let latency = Latency::default();
        (1..=1000).for_each(|ms| latency.record(Duration::from_millis(ms), at(600)));
        let summary = |now| Summary::of(std::iter::once(&latency), now);
        for now in [at(600), at(719)] {
            let Summary { count, seconds, quantiles } = summary(now);
            assert_eq!((count, seconds), (1000, 500.5));
            for (quantile, exact) in quantiles.into_iter().zip([0.5, 0.9, 0.99, 1.0]) {
                assert!((quantile / exact - 1.0).abs() < 0.01, "{quantile} for {exact}");
            }
        }
        latency.record(Duration::from_secs(10_000), at(725));
        let Summary { count, seconds, quantiles } = summary(at(725));
        assert_eq!((count, seconds), (1001, 10_500.5));
        assert!(quantiles.iter().all(|quantile| (quantile / 3600.0 - 1.0).abs() < 0.01));
        // A later minute, and an earlier one, know nothing.
        for now in [at(900), at(60)] {
            assert!(summary(now).quantiles.iter().all(|quantile| quantile.is_nan()));
            assert_eq!(summary(now).count, 1001);
        }
    }

    #[test]
    fn every_summary_has_figures_and_sockets_of_one_address_share_them() {
        let telemetry = Telemetry::default();
        for (name, ms) in [("udp://x", 1), ("udp://y", 100), ("udp://x", 3)] {
            let listener = telemetry.listener(name.to_owned());
            listener.batch.record(Duration::from_millis(ms), at(600));
        }
        telemetry.endpoint("datadog", "https://y".to_owned());
        for timed in TIMED {
            assert!(!telemetry.timed(timed, at(600)).is_empty(), "{}", timed.name);
        }
        let figures = telemetry.timed(&TIMED[0], at(600));
        let figures: Vec<_> = figures
            .iter()
            .map(|(labels, summary)| (labels[0].1.as_str(), summary.count, summary.seconds))
            .collect();
        assert_eq!(figures, [("udp://x", 2, 0.004), ("udp://y", 1, 0.1)]);
    }
}
