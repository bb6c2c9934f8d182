//! Payload formats: pure functions from a batch to bytes. Nothing here knows of sockets or time.

pub mod datadog;
pub mod exposition;
pub mod protobuf;
pub mod table;
