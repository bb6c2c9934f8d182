//! The table on the console.
