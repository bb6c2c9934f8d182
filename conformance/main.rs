//! Whether tallyd does what it says, seen from outside.

mod config_examples;
