//! What the journal costs: `journal [PAIRS]`. Lines are parsed and aggregated on one thread, in turns
//! with the journal and without it. See RESULTS.md.

mod lines;
mod rig;

use tempfile::TempDir;

use rig::{Pairs, Rig};

const SERIES: u64 = 10_000;
const SIZE: usize = 8192;
/// Lines of a turn.
const LINES: u64 = 6_000_000;
/// Turns of a bucket.
const TURNS: usize = 10;
/// Turns with and without, side by side, unless told otherwise.
const PAIRS: usize = 50;

fn main() {
    let pairs = rig::pairs(PAIRS);
    let folder = TempDir::new().expect("a folder");
    let mut without = Rig::new(SERIES, SIZE);
    let mut with = Rig::with_journal(SERIES, SIZE, Some(folder.path()));
    let mut turns = 0;
    let mut all = Pairs::time(pairs, |journal| {
        turns += 1;
        if turns % (2 * TURNS) == 1 && turns > 1 {
            drop((without.close(), with.close()));
        }
        if journal { with.cpu_of(LINES) } else { without.cpu_of(LINES) }
    });
    println!(
        "{pairs} pairs of {LINES} lines: {:.0} ns of CPU time a line without the journal; with it {}; \
         {} datagrams not protected",
        all.without.as_secs_f64() / (pairs as u64 * LINES) as f64 * 1e9,
        all.spread(),
        with.unprotected(),
    );
}
