//! Docker check.
pub mod api;
pub mod config;
pub mod engine;
pub mod events;
pub mod filter;
pub mod image;
pub mod tags;
