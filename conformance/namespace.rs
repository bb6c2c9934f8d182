//! Network namespaces for tests: links that can be cut, and networks that lead nowhere.
//!
//! A socket stays in the namespace in which it was made, and a process in that of the thread that
//! started it; so a test reaches into a namespace by a thread that enters it for a moment.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace, which goes when this is dropped.
pub struct Namespace {
    pub name: String,
}

/// Runs `ip` with these words.
pub fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    let said = || format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    output.status.success().then_some(()).ok_or_else(said)
}

impl Namespace {
    /// With a loopback, and nothing else.
    ///
    /// # Errors
    /// With the reason, where namespaces cannot be made.
    pub fn new() -> Result<Self, String> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Relaxed);
        let name = format!("tallyd-{}-{number}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let namespace = Self { name };
        ip(&format!("-n {} link set lo up", namespace.name))?;
        namespace.enter(|| ())?;
        Ok(namespace)
    }

    /// Runs something on a thread in this namespace.
    ///
    /// # Errors
    /// With the reason, where namespaces cannot be entered.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T, String> {
        let place = File::open(format!("/run/netns/{}", self.name));
        let place = place.map_err(|error| format!("/run/netns: {error}"))?;
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|error| format!("setns: {error}"))?;
                Ok(inside())
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
    }
}
