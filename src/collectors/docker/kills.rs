//! Kills for want of memory, of which two tell: the counter of the cgroup, which goes with the
//! container, and the engine's events. What the counter could not tell in time, events do.

use std::collections::HashMap;

/// The lives of containers, by id, in which anything was told.
#[derive(Debug, Default)]
pub(super) struct Kills(HashMap<String, Life>);

#[derive(Debug, Default)]
struct Life {
    events: u64,
    /// The first and the last reading of the counter. What it had counted before the first one
    /// nobody has told.
    counter: Option<(u64, u64)>,
}

impl Kills {
    /// The counter of a container stood at this.
    pub(super) fn read(&mut self, id: &str, counter: u64) {
        let life = self.0.entry(id.to_owned()).or_default();
        let (first, _) = life.counter.unwrap_or((counter, counter));
        life.counter = Some((first, counter));
    }

    /// The engine told of a kill.
    pub(super) fn event(&mut self, id: &str) {
        self.0.entry(id.to_owned()).or_default().events += 1;
    }

    /// The container has ended. Returns the kills that its counter did not tell.
    pub(super) fn ended(&mut self, id: &str) -> u64 {
        let Life { events, counter } = self.0.remove(id).unwrap_or_default();
        let told = counter.map_or(0, |(first, last)| last.saturating_sub(first));
        events.saturating_sub(told)
    }

    /// Forgets containers that are not there any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        self.0.retain(|id, _| is_there(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kill_is_told_once() {
        // Readings and events ('e') of a life, and what is left to tell at its end.
        for (told, left) in [
            ("", 0),
            ("0e", 1),
            ("01e", 0),
            ("0e1", 0),
            ("e", 1),
            // What was there before the first reading was not told by the counter.
            ("1e", 1),
            ("1e2", 0),
            ("01ee", 1),
            ("02e", 0),
        ] {
            let mut kills = Kills::default();
            for one in told.chars() {
                match one.to_digit(10) {
                    Some(counter) => kills.read("a", counter.into()),
                    None => kills.event("a"),
                }
            }
            assert_eq!(kills.ended("a"), left, "{told}");
            assert_eq!(kills.ended("a"), 0, "the next life begins anew");
        }
    }
}
