//! The thread of all stream listeners and their connections.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Registry, Token};

use super::datagrams::SHORT_POLL;
use crate::fail;
use crate::reader::Reader;
use crate::sample::Reject;
use crate::stream::Framer;
use crate::sys::{self, Receiver, Sender};
use crate::time::Time;

/// Reads of one connection before the others get their turn.
const READS_PER_TURN: usize = 16;

/// Turns of each connection at the stop, so that a sender who does not stop cannot prevent it.
const LAST_TURNS: usize = 64;

/// How long accepting pauses after it failed, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the thread sleeps at most.
const POLL: Duration = Duration::from_secs(1);

/// A listening stream socket.
#[derive(Debug)]
pub enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

struct Connection {
    stream: Stream,
    sender: Sender,
    framer: Framer,
    /// Index of its listener.
    listener: usize,
}

struct Listener {
    listening: Listening,
    reader: Reader,
    /// What is read through, so that it outlives the process.
    receiver: Option<Receiver>,
    /// Number of its connections that are open.
    open: usize,
}

/// All stream listeners, their readers and their connections.
pub(super) struct Streams {
    listeners: Vec<Listener>,
    connections: HashMap<Token, Connection>,
    /// Connections with more to read than one turn allows.
    unfinished: Vec<Token>,
    /// Accepting failed and is tried again.
    accept_again: bool,
    next: usize,
    buffer_size: usize,
    connections_max: usize,
}

/// Whether a connection has more to read.
enum Turn {
    Waits,
    Unfinished,
    Over,
}

impl Streams {
    pub(super) fn new(
        listeners: Vec<(Listening, Reader)>,
        buffer_size: usize,
        connections_max: usize,
    ) -> Self {
        Self {
            next: listeners.len(),
            listeners: listeners
                .into_iter()
                .map(|(listening, reader)| {
                    let receiver = reader.stream_receiver(buffer_size);
                    Listener { listening, reader, receiver, open: 0 }
                })
                .collect(),
            connections: HashMap::new(),
            unfinished: Vec::new(),
            accept_again: false,
            buffer_size,
            connections_max,
        }
    }

    /// Reads until `stopping`, then takes what still waits.
    pub(super) fn run(&mut self, mut poll: Poll, stopping: &AtomicBool) -> io::Result<()> {
        for (number, one) in self.listeners.iter_mut().enumerate() {
            let source = one.listening.source();
            poll.registry().register(source, Token(number), Interest::READABLE)?;
        }
        let mut events = Events::with_capacity(256);
        while !stopping.load(Ordering::Acquire) {
            match poll.poll(&mut events, Some(self.patience())) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if std::mem::take(&mut self.accept_again) {
                for number in 0..self.listeners.len() {
                    self.accept(number, poll.registry());
                }
            }
            let now = Time::now();
            self.listeners.iter_mut().for_each(|listener| listener.reader.release(now));
            let mut turn = std::mem::take(&mut self.unfinished);
            for event in &events {
                match event.token() {
                    Token(number) if number < self.listeners.len() => {
                        self.accept(number, poll.registry());
                    }
                    token if !turn.contains(&token) => turn.push(token),
                    _ => {}
                }
            }
            for token in turn {
                self.read(token, poll.registry());
            }
        }
        self.drain(poll.registry());
        Ok(())
    }

    fn patience(&self) -> Duration {
        if !self.unfinished.is_empty() {
            Duration::ZERO
        } else if self.accept_again {
            ACCEPT_PAUSE
        } else if self.listeners.iter().any(|listener| listener.reader.holds()) {
            SHORT_POLL
        } else {
            POLL
        }
    }

    /// Takes new connections, and what they and the old ones have sent.
    fn drain(&mut self, registry: &Registry) {
        for number in 0..self.listeners.len() {
            self.accept(number, registry);
        }
        let mut turn: Vec<Token> = self.connections.keys().copied().collect();
        for _ in 0..LAST_TURNS {
            for token in turn {
                self.read(token, registry);
            }
            turn = std::mem::take(&mut self.unfinished);
            if turn.is_empty() {
                break;
            }
        }
        for listener in &mut self.listeners {
            listener.reader.release_all(Time::now());
        }
        for connection in self.connections.values_mut() {
            connection.cut(&mut self.listeners[connection.listener].reader);
        }
    }

    fn accept(&mut self, number: usize, registry: &Registry) {
        loop {
            let Listener { listening, reader, open, .. } = &mut self.listeners[number];
            let listener = reader.listener();
            let (mut stream, sender) = match listening.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    listener.read_errors.add(1);
                    self.accept_again = true;
                    return;
                }
            };
            if *open >= self.connections_max {
                listener.connections_refused.add(1);
                continue;
            }
            let framer = match listening {
                Listening::Tcp(_) => Framer::lines(self.buffer_size),
                Listening::Unix(_) => Framer::new(self.buffer_size),
            };
            let token = Token(self.next);
            self.next += 1;
            if registry.register(stream.source(), token, Interest::READABLE).is_err() {
                listener.connections_refused.add(1);
                continue;
            }
            listener.connections.add(1);
            *open += 1;
            self.connections.insert(token, Connection { stream, sender, framer, listener: number });
        }
    }

    fn read(&mut self, token: Token, registry: &Registry) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let listener = &mut self.listeners[connection.listener];
        match connection.turn(&mut listener.reader, listener.receiver.as_mut()) {
            Turn::Waits => {}
            Turn::Unfinished => self.unfinished.push(token),
            Turn::Over => {
                listener.open -= 1;
                listener.reader.listener().connections_closed.add(1);
                if let Some(mut connection) = self.connections.remove(&token) {
                    // Closing it takes it out of the poll in any case.
                    let _ = registry.deregister(connection.stream.source());
                }
            }
        }
    }
}

impl Connection {
    fn turn(&mut self, reader: &mut Reader, mut receiver: Option<&mut Receiver>) -> Turn {
        for _ in 0..READS_PER_TURN {
            let now = Time::now();
            match self.read(reader, receiver.as_deref_mut(), now) {
                Ok(Some(true)) => continue,
                Ok(Some(false)) => return Turn::Over,
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Waits,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => reader.listener().read_errors.add(1),
            }
            self.framer.end();
            reader.payloads(&mut self.framer, self.sender, 0, now, || ());
            return Turn::Over;
        }
        Turn::Unfinished
    }

    /// Reads once and takes in what is complete. Returns whether there may be more, or nothing at
    /// the end of the connection.
    fn read(
        &mut self,
        reader: &mut Reader,
        receiver: Option<&mut Receiver>,
        now: Time,
    ) -> io::Result<Option<bool>> {
        let Self { stream, sender, framer, .. } = self;
        let Some(receiver) = receiver else {
            let bytes = stream.read(framer.space())?;
            framer.filled(bytes);
            return Ok((bytes > 0).then(|| reader.payloads(framer, *sender, 0, now, || ())));
        };
        let number = receiver.expect(now.0);
        let (kept, form, space) = framer.kept_and_space();
        let (bytes, landed) = receiver.read(stream.as_fd(), kept, form, space)?;
        framer.filled(bytes);
        fail::point("intake.read");
        let is_safe = || landed.is_safe();
        Ok((bytes > 0).then(|| reader.payloads(framer, *sender, number, now, is_safe)))
    }

    /// Ends a connection that its client has not ended. A line without its newline may be half a
    /// line, which could be read as something else: it is refused, as half a frame is.
    fn cut(&mut self, reader: &mut Reader) {
        self.framer.end();
        if let Some(payload) = self.framer.payload() {
            let line = payload.unwrap_or_default();
            reader.refuse(Reject::Unterminated, line, self.sender, Time::now());
        }
    }
}

impl Listening {
    fn accept(&self) -> io::Result<(Stream, Sender)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, from) = listener.accept()?;
                Ok((Stream::Tcp(stream), Sender::Address(from.ip().to_canonical())))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                let sender = sys::peer(stream.as_fd());
                Ok((Stream::Unix(stream), sender))
            }
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(listener) => listener,
            Self::Unix(listener) => listener,
        }
    }
}

impl Stream {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(space),
            Self::Unix(stream) => stream.read(space),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    fn source(&mut self) -> &mut dyn Source {
        match self {
            Self::Tcp(stream) => stream,
            Self::Unix(stream) => stream,
        }
    }
}
