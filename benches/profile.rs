//! What the profile costs: `profile [PAIRS]`. Lines are parsed and aggregated on one thread, in short
//! turns with the sampler and without it; then single samples are timed. See RESULTS.md.

mod lines;
mod rig;

use std::hint::black_box;
use std::time::Duration;

use tallyd::profile::sampler::{self, Sampler};
use tallyd::sys;

use rig::{Pairs, Rig};

const HZ: u32 = 99;
const SERIES: u64 = 10_000;
const SIZE: usize = 8192;
/// Lines of a turn: some ten samples.
const LINES: u64 = 600_000;
/// Turns with and without, side by side, unless told otherwise.
const PAIRS: usize = 50;
/// Frames on the stack, beside those of a bench, while single samples are timed.
const DEPTH: usize = 20;
const SAMPLES: u32 = 100_000;

fn main() {
    let pairs = rig::pairs(PAIRS);
    let mut rig = Rig::new(SERIES, SIZE);
    let mut samples = 0;
    let mut all = Pairs::time(pairs, |with| {
        if with {
            let (took, taken) = sampled(&mut rig);
            samples += taken;
            took
        } else {
            plain(&mut rig)
        }
    });
    println!(
        "{pairs} pairs of {LINES} lines, {HZ} Hz: {samples} samples in {:.1} s; CPU time with the \
         sampler against without: {}",
        all.with.as_secs_f64(),
        all.spread(),
    );
    single();
}

/// CPU time of a turn.
fn plain(rig: &mut Rig) -> Duration {
    let before = sys::cpu_time();
    let _ = rig.time_lines(LINES);
    sys::cpu_time().saturating_sub(before)
}

/// The same with the sampler, and the samples taken. What starts and stops it is not counted, what
/// empties its table is.
fn sampled(rig: &mut Rig) -> (Duration, u32) {
    let sampler = Sampler::start(HZ).expect("a sampler");
    let before = sys::cpu_time();
    let _ = rig.time_lines(LINES);
    let mut taken = 0;
    sampler.drain(|sample| taken += sample.times);
    (sys::cpu_time().saturating_sub(before), taken)
}

/// What one sample takes: the signal, the handler and a walk of the stack.
fn single() {
    let sampler = Sampler::start(1).expect("a sampler");
    let took = deep(DEPTH, &mut || {
        let mut took = Duration::ZERO;
        for _ in 0..SAMPLES / 100 {
            let before = sys::cpu_time();
            (0..100).for_each(|_| sampler::provoke());
            took += sys::cpu_time().saturating_sub(before);
            sampler.drain(|sample| assert!(sample.stack.len() > DEPTH));
        }
        took
    });
    let each = took.as_secs_f64() / f64::from(SAMPLES);
    println!(
        "one sample of {DEPTH} frames and more: {:.2} us, so {HZ} a second are {:.3} % of a core",
        each * 1e6,
        each * f64::from(HZ) * 100.0
    );
}

#[inline(never)]
fn deep<T>(frames: usize, work: &mut dyn FnMut() -> T) -> T {
    // As large as a frame of real work.
    let local = black_box([frames; 16]);
    let result = if frames == 0 { work() } else { deep(frames - 1, work) };
    black_box(local);
    result
}
