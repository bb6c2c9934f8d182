//! Payload formats: pure functions from a batch to bytes. Nothing here knows of sockets or time.

pub mod datadog;
pub mod exposition;
pub mod protobuf;
pub mod table;

use std::sync::Arc;

use crate::batch::{Batch, Row};

/// What a batch became.
#[derive(Debug, Default)]
pub struct Encoded {
    pub payloads: Vec<Payload>,
    /// Points that no payload can hold, such as a series too large for the destination's limit.
    pub dropped: u64,
}

/// One unit of delivery.
#[derive(Clone, Debug)]
pub struct Payload {
    /// What it holds, in the sink's words: `series`, `sketches`, `events`, ...
    pub kind: &'static str,
    /// Points within, for the counters.
    pub points: u64,
    pub coding: Coding,
    pub body: Body,
}

/// How the bytes of a payload are compressed: it may be sent by a process with other settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Coding {
    #[default]
    Identity,
    Deflate,
    Gzip,
    Zstd,
}

impl Coding {
    pub const ALL: [Self; 4] = [Self::Identity, Self::Deflate, Self::Gzip, Self::Zstd];

    /// The word in `Content-Encoding`. A zlib stream is called `deflate` there (RFC 9110).
    pub const fn word(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Deflate => "deflate",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// The content of a payload.
#[derive(Clone, Debug)]
pub enum Body {
    /// Ready for the wire, compressed where the sink does.
    Bytes(Vec<u8>),
    /// The batch itself, for sinks that keep a state instead of sending.
    Batch(Arc<Batch>),
}

impl Payload {
    /// What it weighs against a queue's bound.
    pub fn bytes(&self) -> usize {
        match &self.body {
            Body::Bytes(bytes) => bytes.len(),
            Body::Batch(batch) => (batch.rows.len() + batch.own.len()) * size_of::<Row>(),
        }
    }
}
