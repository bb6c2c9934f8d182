//! The thread that reads standard input.

use std::io::{self, ErrorKind, Read};

use crate::reader::Reader;
use crate::stream::Framer;
use crate::sys::Sender;
use crate::time::Time;

/// Starts the thread. It is never joined: a read of standard input cannot be interrupted.
pub(super) fn start(
    mut reader: Reader,
    line_max: usize,
    ended: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        let mut framer = Framer::lines(line_max);
        let mut input = io::stdin().lock();
        loop {
            match input.read(framer.space()) {
                Ok(0) => break,
                Ok(bytes) => framer.filled(bytes),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!("cannot read standard input: {error}");
                    break;
                }
            }
            reader.payloads(&mut framer, Sender::Unknown, 0, Time::now(), || ());
        }
        framer.end();
        reader.payloads(&mut framer, Sender::Unknown, 0, Time::now(), || ());
        ended();
    };
    std::thread::Builder::new().name("intake-stdin".to_owned()).spawn(run).map(drop)
}
