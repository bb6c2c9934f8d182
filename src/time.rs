//! Time as a value. Only threads that talk to the world read the clock; everything else is told.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, by the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub i64);

impl Time {
    /// Reads the wall clock.
    pub fn now() -> Self {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(elapsed.as_millis() as i64)
    }

    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds * 1000)
    }

    /// Whole seconds, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// Start, in Unix seconds, of the bucket of `interval` seconds that holds this time. Buckets
    /// are aligned to the epoch.
    pub const fn bucket(self, interval: u32) -> i64 {
        let seconds = self.seconds();
        seconds - seconds.rem_euclid(interval as i64)
    }
}

/// Unix seconds in four bytes, for what there is much of: from 1970 to 2106.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u32);

impl Moment {
    /// Before every other.
    pub const NEVER: Self = Self(0);

    /// The nearest there is.
    pub fn new(seconds: i64) -> Self {
        Self(seconds.clamp(1, u32::MAX.into()) as u32)
    }

    /// Unix seconds; of [`Self::NEVER`] far before every other, and far enough from the end of the
    /// numbers.
    pub const fn seconds(self) -> i64 {
        if self.0 == 0 { i64::MIN / 2 } else { self.0 as i64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_aligned_and_hold_their_time() {
        for (ms, interval, start) in [
            (1_003_999, 10, 1000),
            (1_000_000, 10, 1000),
            (999_999, 10, 990),
            (-1, 10, -10),
            (7_000, 1, 7),
        ] {
            assert_eq!(Time(ms).bucket(interval), start, "{ms} ms in buckets of {interval} s");
        }
    }

    #[test]
    fn moments_are_seconds_within_their_range() {
        for (seconds, nearest) in
            [(1, 1), (0, 1), (-9, 1), (1_800_000_000, 1_800_000_000), (1 << 40, 0xffff_ffff)]
        {
            assert_eq!(Moment::new(seconds).seconds(), nearest);
            assert!(Moment::new(seconds) > Moment::NEVER);
        }
        assert!(Moment::NEVER.seconds() < -0xffff_ffff);
    }
}
