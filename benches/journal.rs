//! What the journal costs: `journal [PAIRS]`. Lines are parsed and aggregated on one thread, in turns
//! with the journal and without it. See RESULTS.md.

mod lines;
mod rig;

use std::time::Duration;

use tempfile::TempDir;

use rig::Rig;

const SERIES: u64 = 10_000;
const SIZE: usize = 8192;
/// Lines of a turn.
const LINES: u64 = 6_000_000;
/// Turns of a bucket.
const TURNS: usize = 10;
/// Turns with and without, side by side, unless told otherwise.
const PAIRS: usize = 50;

fn main() {
    // A plain `cargo bench` passes its own flags.
    let pairs = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(PAIRS);
    let folder = TempDir::new().expect("a folder");
    let mut rigs = [Rig::new(SERIES, SIZE), Rig::with_journal(SERIES, SIZE, Some(folder.path()))];
    let mut ratios = Vec::with_capacity(pairs);
    let mut sums = [Duration::ZERO; 2];
    for pair in 0..pairs {
        if pair % TURNS == TURNS - 1 {
            rigs.iter_mut().for_each(|rig| drop(rig.close()));
        }
        let mut took = [Duration::ZERO; 2];
        // Neither is always the first.
        for which in [pair % 2, 1 - pair % 2] {
            took[which] = rigs[which].cpu_of(LINES);
            sums[which] += took[which];
        }
        ratios.push(took[1].as_secs_f64() / took[0].as_secs_f64());
    }
    let [without, with] = sums.map(|sum| sum.as_secs_f64());
    println!(
        "{pairs} pairs of {LINES} lines: {:.0} ns of CPU time a line without the journal; with it {}, \
         sums {:+.2} %; {} datagrams not protected",
        without / (pairs as u64 * LINES) as f64 * 1e9,
        rig::spread(&mut ratios),
        100.0 * (with / without - 1.0),
        rigs[1].unprotected(),
    );
}
