//! Named points at which a test has the process die, as from `kill -9`.
//!
//! `TALLYD_FAIL_POINT=spool.rename:3` kills at the third pass of `spool.rename`. Release builds
//! know nothing of it.

/// Dies here if the environment says so.
#[cfg(debug_assertions)]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    static WANTED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| {
        let set = std::env::var("TALLYD_FAIL_POINT").ok()?;
        let (name, pass) = set.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(pass.parse().ok()?)))
    });
    if let Some((wanted, left)) = wanted
        && wanted == name
        && left.fetch_sub(1, Relaxed) == 1
    {
        crate::sys::kill_own_process();
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &str) {}
