//! How long a reader lets datagrams gather before it reads them.
//!
//! At the rates of a normal day waking up costs more than the work: a reader that is woken for each
//! datagram spends several times the processor time of one that finds a few together. So it naps
//! between reads, while the socket's buffer should have room: the nap is made for an eighth
//! of the buffer at the highest rate of late, a buffer that is fuller than a quarter is read at
//! once, and so is for a minute a socket that has lost a datagram.

use std::time::{Duration, Instant};

use crate::sys::Buffer;

/// The longest nap: it delays a sample by as much.
const NAP_MAX: Duration = Duration::from_millis(5);

/// Shorter naps save nothing.
const NAP_MIN: Duration = Duration::from_micros(100);

/// Datagrams that come further apart than this are not waited for: there would be none.
const QUIET: Duration = Duration::from_millis(2);

/// Part of the buffer that a nap may fill, and the fill beyond which there is none.
const NAP_FILL: u32 = 8;
const FULL: u32 = 4;

/// In this time half of a high rate is forgotten: clients send in bursts, some seconds apart.
const RATE_HALVES: Duration = Duration::from_secs(10);

/// How long there are no naps after a loss.
const AWAKE: Duration = Duration::from_secs(60);

/// Remembers how fast the buffer fills.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last_read: Option<Instant>,
    /// Bytes of the buffer a second.
    rate: f64,
    nap: Duration,
    /// The kernel's count of drops.
    drops: u32,
    awake_until: Option<Instant>,
}

impl Pace {
    /// How long to nap now that datagrams are there and the buffer is as full as this.
    pub(super) fn nap(&mut self, buffer: Buffer, now: Instant) -> Duration {
        if buffer.drops != self.drops {
            self.drops = buffer.drops;
            self.awake_until = Some(now + AWAKE);
        }
        let quiet = self.last_read.is_none_or(|last| now.duration_since(last) > QUIET);
        let awake = self.awake_until.is_some_and(|until| now < until);
        let full = buffer.fill > buffer.capacity / FULL;
        self.nap = if quiet || awake || full || self.rate <= 0.0 {
            Duration::ZERO
        } else {
            // A nap doubles at most from one read to the next: rates are not steady.
            let most = (self.nap * 2).clamp(NAP_MIN, NAP_MAX);
            let nap = f64::from(buffer.capacity / NAP_FILL) / self.rate;
            Duration::from_secs_f64(nap.min(most.as_secs_f64()))
        };
        if self.nap < NAP_MIN {
            self.nap = Duration::ZERO;
        }
        self.nap
    }

    /// The buffer is about to be read, and as full as this.
    pub(super) fn read(&mut self, buffer: Buffer, now: Instant) {
        if let Some(last) = self.last_read.replace(now) {
            let gathered = now.duration_since(last).max(Duration::from_micros(1));
            let rate = f64::from(buffer.fill) / gathered.as_secs_f64();
            let halvings = gathered.as_secs_f64() / RATE_HALVES.as_secs_f64();
            self.rate = rate.max(self.rate * (-halvings).exp2());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: u32 = 212_992;

    /// Runs a reader for a second of datagrams of this size in the buffer, at a steady rate.
    /// Returns the number of reads and the highest fill.
    fn second(rate: u32, size: u32) -> (u32, u32) {
        let start = Instant::now();
        let mut pace = Pace::default();
        let (mut now, mut read, mut reads, mut highest) = (start, 0, 0, 0);
        let arrived =
            |now: Instant| (now.duration_since(start).as_secs_f64() * f64::from(rate)) as u32;
        while now < start + Duration::from_secs(1) {
            // Woken by the next datagram.
            while arrived(now) == read {
                now += Duration::from_micros(5);
            }
            let buffer = |now| {
                let fill = (arrived(now) - read) * size;
                Buffer { fill, capacity: CAPACITY, drops: 0 }
            };
            now += pace.nap(buffer(now), now);
            pace.read(buffer(now), now);
            highest = highest.max(buffer(now).fill);
            read = arrived(now);
            // Reading takes a while.
            now += Duration::from_micros(20);
            reads += 1;
        }
        (reads, highest)
    }

    #[test]
    fn datagrams_gather_and_the_buffer_keeps_room() {
        for (rate, size, reads_max) in
            [(20_000, 2304, 2500), (50_000, 768, 2500), (2_000, 768, 700), (200_000, 768, 9000)]
        {
            let (reads, highest) = second(rate, size);
            assert!(reads <= reads_max, "{reads} reads at {rate} datagrams a second");
            assert!(highest <= CAPACITY / FULL, "{highest} bytes at {rate} datagrams a second");
        }
    }

    #[test]
    fn nothing_is_waited_for_in_vain_or_without_room() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let buffer = |fill| Buffer { fill, capacity: CAPACITY, drops: 0 };
        let mut pace = Pace::default();
        let mut cycle = |fill, at| {
            let nap = pace.nap(buffer(fill), at);
            pace.read(buffer(fill), at + nap);
            nap
        };
        assert_eq!(cycle(768, at(0)), Duration::ZERO, "the first one");
        assert_eq!(cycle(768, at(100)), Duration::ZERO, "it is quiet");
        assert!(cycle(768, at(101)) > Duration::ZERO);
        assert_eq!(cycle(CAPACITY / 2, at(102)), Duration::ZERO, "there is no room");
        assert_eq!(cycle(768, at(200)), Duration::ZERO, "it is quiet again");
    }

    #[test]
    fn bursts_and_losses_are_remembered() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let buffer = |fill, drops| Buffer { fill, capacity: CAPACITY, drops };
        let steady = |pace: &mut Pace, from: u64, drops| {
            for ms in from..from + 100 {
                pace.nap(buffer(768, drops), at(ms));
                pace.read(buffer(768, drops), at(ms));
            }
            pace.nap(buffer(768, drops), at(from + 100))
        };
        let mut pace = Pace::default();
        let long = steady(&mut pace, 0, 0);
        assert_eq!(long, NAP_MAX);
        pace.read(buffer(CAPACITY / 2, 0), at(101));
        assert!(steady(&mut pace, 102, 0) < NAP_MAX / 2, "half the buffer came in a millisecond");
        let later = steady(&mut pace, 60_000, 0);
        assert!(later > long / 2, "{later:?}: that was a minute ago");
        assert_eq!(steady(&mut pace, 61_000, 1), Duration::ZERO, "a datagram was lost");
        assert!(steady(&mut pace, 130_000, 1) > Duration::ZERO);
    }
}
