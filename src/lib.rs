//! tallyd: a statsd and DogStatsD compatible aggregation server.
//!
//! Two planes. The data plane is plain threads: [`intake`] reads datagrams, [`parse`] reads their
//! lines where they lie, [`shard`] adds them up. The control plane is one tokio runtime: sinks,
//! HTTP, signals. They meet once per flush, in an immutable [`batch::Batch`].
//!
//! The modules below: who starts the rest, the vocabulary, then what a datagram meets on its way
//! from the socket to the sinks, and last what serves them all.

pub mod cli;
pub mod config;
pub mod server;

pub mod bins;
pub mod compact;
pub mod context;
pub mod hash;
pub mod sample;
pub mod time;

pub mod intake;
pub mod reader;
pub mod replay;
pub mod spellings;
pub mod stream;

pub mod blocklist;
pub mod grammar;
pub mod parse;
pub mod rules;

pub mod batch;
pub mod flush;
pub mod journal;
pub mod shard;
pub mod sketch;
pub mod value;

pub mod cgroup;
pub mod collectors;

pub mod encode;
pub mod sinks;

pub mod capture;
pub mod cost;
pub mod fail;
pub mod ledger;
pub mod logging;
pub mod origin;
pub mod profile;
pub mod secrets;
pub mod service;
pub mod state;
pub mod status;
pub mod sys;
pub mod telemetry;

#[doc(hidden)]
pub mod fuzzing;
