//! The thread of one datagram socket.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use smallvec::SmallVec;

use super::pace::Pace;
use crate::fail;
use crate::reader::Reader;
use crate::sys::{self, BATCH, Datagram, Receiver};
use crate::time::Time;

/// How long a thread sleeps at most, so that the kernel's drops are noticed on a quiet socket too.
const POLL: Duration = Duration::from_secs(1);

/// The same while datagrams wait for the tags of their senders.
pub(super) const SHORT_POLL: Duration = Duration::from_millis(20);

/// Batches taken at the stop, so that a sender who does not stop cannot prevent it.
const LAST_BATCHES: usize = 1024;

/// One datagram socket and what is done with its datagrams.
pub(super) struct Datagrams {
    socket: OwnedFd,
    reader: Reader,
    receiver: Receiver,
    /// Where raw copies go.
    forward: Option<UdpSocket>,
    /// Lets datagrams gather, on sockets whose queue is long enough.
    pace: Option<Pace>,
    /// The kernel's own count of drops, as it was last read.
    drops: u32,
    /// When drops were last read, in Unix seconds.
    drops_read: i64,
    /// When drops were last logged, in Unix seconds.
    drops_logged: i64,
}

impl Datagrams {
    pub(super) fn new(
        socket: OwnedFd,
        reader: Reader,
        forward: Option<UdpSocket>,
        pace: Option<Pace>,
        receiver: Receiver,
        drops: u32,
    ) -> Self {
        Self { socket, reader, receiver, forward, pace, drops, drops_read: 0, drops_logged: 0 }
    }

    /// Reads until `stopping`, then takes what still waits.
    pub(super) fn run(&mut self, mut poll: Poll, stopping: &AtomicBool) -> io::Result<()> {
        let fd = self.socket.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), Token(0), Interest::READABLE)?;
        let mut events = Events::with_capacity(8);
        while !stopping.load(Ordering::Acquire) {
            let patience = if self.reader.holds() { SHORT_POLL } else { POLL };
            match poll.poll(&mut events, Some(patience)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.gather();
            // Readiness is told once: read until there is nothing.
            while self.take_batch(Time::now()) == BATCH && !stopping.load(Ordering::Acquire) {}
        }
        for _ in 0..LAST_BATCHES {
            if self.take_batch(Time::now()) == 0 {
                break;
            }
        }
        self.reader.release_all(Time::now());
        Ok(())
    }

    /// Waits for more datagrams to come, if the pace and the room for them allow it.
    fn gather(&mut self) {
        let Some(pace) = &mut self.pace else { return };
        let Ok(before) = sys::buffer(self.socket.as_fd()) else { return };
        let nap = pace.nap(before, Instant::now());
        if !nap.is_zero() {
            // Nobody unparks this thread; if somebody did, it would only read earlier.
            std::thread::park_timeout(nap);
        }
        if let Ok(now) = sys::buffer(self.socket.as_fd()) {
            pace.read(now, Instant::now());
        }
    }

    /// Takes one batch and returns the number of its datagrams.
    fn take_batch(&mut self, now: Time) -> usize {
        let begun = Instant::now();
        let mut count = 0;
        self.reader.release(now);
        let number = self.receiver.expect(now.0);
        match self.receiver.receive(self.socket.as_fd()) {
            Ok(received) => {
                let landed = received.landed();
                let datagrams: SmallVec<[Datagram<'_>; BATCH]> = received.collect();
                count = datagrams.len();
                if let Some(forward) = &self.forward {
                    let failed = |datagram: &&Datagram<'_>| forward.send(datagram.bytes).is_err();
                    let failures = datagrams.iter().filter(failed).count();
                    self.reader.listener().forward_errors.add(failures as u64);
                }
                fail::point("intake.received");
                self.reader.batch(&datagrams, number, now, || landed.is_safe());
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => {}
                // Tried again at once: the caller goes on while a batch is full.
                ErrorKind::Interrupted => count = BATCH,
                _ => self.reader.listener().read_errors.add(1),
            },
        }
        if count > 0 {
            self.reader.listener().batch.record(begun.elapsed(), now);
        }
        if now.seconds() != self.drops_read {
            self.drops_read = now.seconds();
            self.count_drops(now);
        }
        count
    }

    fn count_drops(&mut self, now: Time) {
        let Ok(sys::Buffer { drops, .. }) = sys::buffer(self.socket.as_fd()) else { return };
        let new = drops.wrapping_sub(self.drops);
        self.drops = drops;
        let listener = self.reader.listener();
        listener.kernel_drops.add(new.into());
        if new > 0 && (now.seconds() - self.drops_logged).abs() >= 60 {
            self.drops_logged = now.seconds();
            tracing::warn!(
                listener = listener.name,
                so_far = listener.kernel_drops.get(),
                "the kernel drops datagrams because the socket's buffer is full; \
                 raise intake.receive_buffer, or send less often"
            );
        }
    }
}
