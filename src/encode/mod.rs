//! Payload formats.

pub mod exposition;
pub mod table;
