//! Control groups and processes, as the kernel's files tell them.
//!
//! Parsers are pure functions from text to values; around them is just enough to open the files.
//! All of it starts at [`roots::Roots`], so that a folder with `proc` and `sys/fs/cgroup` in it is
//! a machine. What a file does not say is `None`, never zero.

pub mod hierarchy;
pub mod identity;
pub mod proc;
pub mod roots;
pub mod usage;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes of one file that are looked at. The longest that are real, mount tables, stay far below.
const TEXT_MAX: u64 = 4 << 20;

/// What the file holds. Kernel files may hold any bytes in names.
fn read(path: &Path) -> io::Result<String> {
    // With room for most files, one call reads all of it and another sees the end.
    let mut bytes = Vec::with_capacity(4096);
    File::open(path)?.take(TEXT_MAX).read_to_end(&mut bytes)?;
    Ok(match String::from_utf8(bytes) {
        Ok(valid) => valid,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}
