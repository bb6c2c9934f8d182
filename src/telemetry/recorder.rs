//! Copies of whole datagrams for whoever captures the traffic: nothing but a look at a flag while
//! nobody does.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tokio::sync::mpsc::{Receiver, Sender, channel, error::TrySendError};

use crate::time::Time;

/// Datagrams that wait for the one who captures.
const DATAGRAMS_MAX: usize = 4096;

/// A datagram, frame or run of text lines as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub time: Time,
    pub bytes: Box<[u8]>,
    /// The sender's process; 0 when it is not known.
    pub pid: u32,
}

/// Where readers put them.
#[derive(Debug, Default)]
pub struct Recorder {
    on: AtomicBool,
    to: Mutex<Option<Sender<Datagram>>>,
    missed: AtomicU64,
}

impl Recorder {
    /// Whether [`Recorder::record`] would do anything.
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// Copies a datagram, unless whoever captures is too slow: then it is counted as missed.
    pub fn record(&self, bytes: &[u8], pid: u32, time: Time) {
        let mut to = self.to.lock().expect("no panic under this lock");
        let Some(sender) = &*to else { return };
        match sender.try_send(Datagram { time, bytes: bytes.into(), pid }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.missed.fetch_add(1, Relaxed);
            }
            Err(TrySendError::Closed(_)) => {
                *to = None;
                self.on.store(false, Relaxed);
            }
        }
    }

    /// Begins a capture, until the receiver is dropped. `None` while there is another.
    pub fn start(&self) -> Option<Receiver<Datagram>> {
        let mut to = self.to.lock().expect("no panic under this lock");
        if to.as_ref().is_some_and(|sender| !sender.is_closed()) {
            return None;
        }
        let (sender, receiver) = channel(DATAGRAMS_MAX);
        *to = Some(sender);
        self.missed.store(0, Relaxed);
        self.on.store(true, Relaxed);
        Some(receiver)
    }

    /// Datagrams that the capture under way, or the last one, misses.
    pub fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_captures_at_a_time_and_misses_rather_than_holds_up() {
        let recorder = Recorder::default();
        recorder.record(b"a", 0, Time(1));
        let mut capture = recorder.start().unwrap();
        assert!(recorder.start().is_none());
        for i in 0..DATAGRAMS_MAX + 3 {
            recorder.record(b"b", 7, Time(i as i64));
        }
        assert_eq!(recorder.missed(), 3);
        let first = Datagram { time: Time(0), bytes: (*b"b").into(), pid: 7 };
        assert_eq!(capture.try_recv(), Ok(first));
        drop(capture);
        recorder.record(b"c", 0, Time(1));
        assert!(!recorder.is_on());
        assert!(recorder.start().is_some());
    }
}
