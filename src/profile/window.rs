//! The samples of a stretch of time, as a tree of calls.

use std::collections::HashMap;
use std::time::Duration;

use super::sampler::Sample;
use crate::time::Time;

/// Nodes of one window's tree. Beyond them a sample that needs a further one is lost.
pub const NODES_MAX: usize = 16_384;

/// The samples of a stretch of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// When it began.
    pub begun: Time,
    pub length: Duration,
    /// CPU time that the process used meanwhile, by the kernel's account.
    pub cpu: Duration,
    /// Samples per second of CPU time.
    pub hz: u32,
    /// Samples that there was no room for.
    pub lost: u64,
    /// Names of threads; several threads may share one.
    pub threads: Vec<String>,
    /// A node comes behind its caller.
    pub nodes: Vec<Node>,
}

/// A place in the program, reached by a certain path of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub caller: Caller,
    pub address: usize,
    /// Samples taken right here.
    pub own: u32,
}

/// What has led to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// It is the outermost place of this thread.
    Thread(u32),
    Node(u32),
}

impl Window {
    pub fn samples(&self) -> u64 {
        self.nodes.iter().map(|node| u64::from(node.own)).sum()
    }

    /// The places from this node outwards, and the thread they belong to.
    pub fn path(&self, node: &Node) -> (Vec<usize>, &str) {
        let mut addresses = vec![node.address];
        let mut caller = node.caller;
        loop {
            match caller {
                Caller::Thread(thread) => return (addresses, &self.threads[thread as usize]),
                Caller::Node(outer) => {
                    let outer = &self.nodes[outer as usize];
                    addresses.push(outer.address);
                    caller = outer.caller;
                }
            }
        }
    }

    /// Nanoseconds of CPU time that a sample stands for.
    pub fn period(&self) -> u64 {
        1_000_000_000 / u64::from(self.hz.max(1))
    }

    /// Bytes it takes, about.
    pub const fn bytes(&self) -> usize {
        size_of::<Self>() + self.nodes.len() * size_of::<Node>() + self.threads.len() * 32
    }
}

/// Makes a window of samples.
#[derive(Debug, Default)]
pub struct Collector {
    threads: Vec<String>,
    nodes: Vec<Node>,
    /// Where a node is, by what leads to it.
    places: HashMap<(Caller, usize), u32>,
    lost: u64,
}

impl Collector {
    pub fn add(&mut self, sample: &Sample) {
        let end = sample.thread.iter().position(|&byte| byte == 0).unwrap_or(sample.thread.len());
        let mut caller = Caller::Thread(self.thread(&sample.thread[..end]));
        for &address in sample.stack.iter().rev() {
            let Some(node) = self.node(caller, address) else {
                self.lost += u64::from(sample.times);
                return;
            };
            caller = Caller::Node(node);
        }
        match caller {
            Caller::Node(node) => {
                let own = &mut self.nodes[node as usize].own;
                *own = own.saturating_add(sample.times);
            }
            Caller::Thread(_) => self.lost += u64::from(sample.times),
        }
    }

    /// Samples that were lost before they came here.
    pub const fn add_lost(&mut self, lost: u64) {
        self.lost += lost;
    }

    fn thread(&mut self, name: &[u8]) -> u32 {
        let name = String::from_utf8_lossy(name);
        let known = self.threads.iter().position(|known| *known == name);
        known.unwrap_or_else(|| {
            self.threads.push(name.into_owned());
            self.threads.len() - 1
        }) as u32
    }

    fn node(&mut self, caller: Caller, address: usize) -> Option<u32> {
        if let Some(&node) = self.places.get(&(caller, address)) {
            return Some(node);
        }
        let node = self.nodes.len() as u32;
        (self.nodes.len() < NODES_MAX).then(|| {
            self.nodes.push(Node { caller, address, own: 0 });
            self.places.insert((caller, address), node);
            node
        })
    }

    pub fn close(mut self, begun: Time, length: Duration, cpu: Duration, hz: u32) -> Window {
        self.nodes.shrink_to_fit();
        let Self { threads, nodes, lost, .. } = self;
        Window { begun, length, cpu, hz, lost, threads, nodes }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::profile) fn sample(thread: &str, stack: &[usize]) -> Sample {
        let mut name = [0; 16];
        name[..thread.len()].copy_from_slice(thread.as_bytes());
        Sample { times: 1, thread: name, stack: stack.to_vec() }
    }

    pub(in crate::profile) fn window(samples: &[(&str, &[usize])]) -> Window {
        let mut collector = Collector::default();
        for (thread, stack) in samples {
            collector.add(&sample(thread, stack));
        }
        let second = Duration::from_secs(1);
        collector.close(Time::from_seconds(1_000), 60 * second, second, 100)
    }

    #[test]
    fn samples_come_out_as_they_went_in() {
        let samples: [(&str, &[usize]); 6] = [
            ("one", &[3, 2, 1]),
            ("one", &[3, 2, 1]),
            ("one", &[2, 1]),
            ("two", &[3, 2, 1]),
            ("one", &[3, 1]),
            ("a name of 16 let", &[1, 1, 1]),
        ];
        let window = window(&samples);
        assert_eq!((window.samples(), window.lost), (6, 0));
        let mut found: Vec<(String, Vec<usize>)> = Vec::new();
        for node in &window.nodes {
            let (path, thread) = window.path(node);
            found.extend((0..node.own).map(|_| (thread.to_owned(), path.clone())));
        }
        let mut expected = samples.map(|(thread, stack)| (thread.to_owned(), stack.to_vec()));
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        // 1, 2, 3 and 1 > 3 of the first thread, and three of either of the others.
        assert_eq!(window.nodes.len(), 4 + 3 + 3);
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let mut collector = Collector::default();
        for address in 0..NODES_MAX + 5 {
            collector.add(&sample("one", &[address]));
        }
        collector.add(&sample("one", &[7]));
        collector.add(&sample("one", &[]));
        collector.add_lost(100);
        let window = collector.close(Time(0), Duration::ZERO, Duration::ZERO, 99);
        assert_eq!((window.samples(), window.lost), (NODES_MAX as u64 + 1, 5 + 1 + 100));
        assert!(window.bytes() < 1 << 20);
    }
}
