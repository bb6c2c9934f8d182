//! Work for an instruction counter: `callgrind MODE PASSES`. The difference between runs of many
//! passes and of few is free of what it takes to get ready. See RESULTS.md.

mod lines;
mod rig;

use std::hint::black_box;

use tallyd::parse::{self, Options};

use rig::Rig;

const SERIES: u64 = 10_000;
const SIZE: usize = 8192;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [mode, passes] = &arguments[..] else {
        // A plain `cargo bench` comes by here.
        println!("usage: callgrind parse|aggregate PASSES, of {SERIES} lines each");
        return;
    };
    let passes: u64 = passes.parse().expect("a number of passes");
    match mode.as_str() {
        "parse" => read(passes),
        "aggregate" => {
            let mut rig = Rig::new(SERIES, SIZE);
            let _ = rig.time_lines(passes * SERIES);
        }
        other => panic!("no mode {other}: parse or aggregate"),
    }
}

fn read(passes: u64) {
    let datagrams = lines::datagrams(SERIES, 1, SIZE);
    for _ in 0..passes {
        for line in datagrams.iter().flat_map(|datagram| parse::lines(&datagram.bytes)) {
            let _ = black_box(parse::line(black_box(line), Options::default()));
        }
    }
}
