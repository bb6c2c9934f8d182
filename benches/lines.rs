//! Input for the benches: DogStatsD lines as a web service sends them, the same in every run.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::fmt::Write;

use tallyd::sys;

/// Kinds of twenty series: 50 % counts, 20 % gauges, 10 % histograms, 15 % distributions, 5 % sets.
const KINDS: [&str; 20] = [
    "c", "g", "c", "d", "c", "h", "c", "g", "c", "d", "c", "s", "c", "g", "c", "h", "c", "g", "c",
    "d",
];

const COMPONENTS: [&str; 8] = [
    "checkout.http",
    "checkout.cart",
    "payments.card",
    "catalogue.api",
    "inventory.db",
    "session.cache",
    "mailer.queue",
    "search.shard",
];
const MEASURES: [&str; 8] = [
    "request.time",
    "retries.sum",
    "response.size",
    "queue.depth",
    "errors.total",
    "pool.in_use",
    "users.active",
    "batch.length",
];
const REGIONS: [&str; 4] = ["eu-west-1", "us-east-1", "eu-north-1", "ap-south-1"];
const ENDPOINTS: [&str; 4] = ["/v2/orders", "/v2/carts/:id", "/v1/logins", "/healthz/db"];
const SERVICES: [&str; 4] = ["shop-frontend", "shop-backend", "order-worker", "stock-keeper"];

/// Bytes of a line.
const LENGTHS: std::ops::RangeInclusive<usize> = 115..=136;
/// Members that a set is sent.
const MEMBERS: u64 = 50;

/// Some lines, with newlines between, as one datagram.
pub struct Datagram {
    pub bytes: Vec<u8>,
    pub lines: u64,
}

impl Datagram {
    /// As a socket gives it, of a sender that it does not tell.
    pub fn received(&self) -> sys::Datagram<'_> {
        sys::Datagram { bytes: &self.bytes, truncated: false, sender: sys::Sender::Unknown }
    }
}

impl AsRef<[u8]> for Datagram {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Numbers that look random (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// One line of the series with this number.
pub fn line(series: u64, random: &mut Random) -> String {
    // What belongs to the series depends on its number alone.
    let mut own = Random(series);
    let mut pick = |list: &[&'static str]| list[own.below(list.len() as u64) as usize];
    let kind = KINDS[(series % 20) as usize];
    let (component, measure) = (pick(&COMPONENTS), pick(&MEASURES));
    let (service, region, endpoint) = (pick(&SERVICES), pick(&REGIONS), pick(&ENDPOINTS));
    let mut line = format!("{component}.{measure}:");
    let _ = match kind {
        "c" => write!(line, "{}", 1 + random.below(9)),
        "s" => write!(line, "user-{:02}", random.below(MEMBERS)),
        _ => write!(line, "{}.{:02}", random.below(1000), random.below(100)),
    };
    let _ = write!(
        line,
        "|{kind}|#env:prod,service:{service},region:{region},endpoint:{endpoint},instance:i-{series:07x}"
    );
    assert!(LENGTHS.contains(&line.len()), "{} bytes: {line}", line.len());
    line
}

/// One line without tags of the series with this number, whose kind is one of `kinds` in turn.
pub fn plain_line(kinds: &[&str], series: u64, random: &mut Random) -> String {
    let mut own = Random(series);
    let mut pick = |list: &[&'static str]| list[own.below(list.len() as u64) as usize];
    let (component, measure) = (pick(&COMPONENTS), pick(&MEASURES));
    let kind = kinds[(series % kinds.len() as u64) as usize];
    let mut line = format!("{component}.{measure}.{series:03}:");
    let _ = match kind {
        "c" => write!(line, "{}", 1 + random.below(9)),
        _ => write!(line, "{}.{:02}", random.below(1000), random.below(100)),
    };
    line + "|" + kind
}

/// `rounds` lines of each of `series` series, every round in an order of its own, in datagrams of
/// at most `size` bytes.
pub fn datagrams(series: u64, rounds: u64, size: usize) -> Vec<Datagram> {
    rounds_of(line, series, rounds, size)
}

/// The same of other lines.
pub fn rounds_of(
    line: impl Fn(u64, &mut Random) -> String,
    series: u64,
    rounds: u64,
    size: usize,
) -> Vec<Datagram> {
    let mut random = Random(1);
    let mut order: Vec<_> = (0..series).collect();
    let mut lines = Vec::new();
    for _ in 0..rounds {
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i as u64 + 1) as usize);
        }
        lines.extend(order.iter().map(|&series| line(series, &mut random)));
    }
    packed(lines.iter(), size)
}

/// Lines of any sort in datagrams of at most `size` bytes, or of one line each where that is less
/// than a line.
pub fn packed<'a>(lines: impl Iterator<Item = &'a String>, size: usize) -> Vec<Datagram> {
    let mut datagrams: Vec<Datagram> = Vec::new();
    for line in lines {
        match datagrams.last_mut() {
            Some(last) if last.bytes.len() + 1 + line.len() <= size => {
                last.bytes.push(b'\n');
                last.bytes.extend_from_slice(line.as_bytes());
                last.lines += 1;
            }
            _ => datagrams.push(Datagram { bytes: line.clone().into_bytes(), lines: 1 }),
        }
    }
    datagrams
}
