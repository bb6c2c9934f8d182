//! Reading lines. An iteration is one line, so times are per line.

mod lines;
mod rig;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use tallyd::grammar;
use tallyd::parse::{self, Options};

use lines::{Datagram, Random};
use rig::Part;

const SIZE: usize = 8192;
/// Lines of each sort: about 1.2 MB of the mix, more than fits a small cache.
const LINES: u64 = 10_000;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse (time is per line)");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(1));
    let fast = |line: &[u8]| _ = black_box(parse::line(line, Options::default()));
    let mix = lines::datagrams(LINES, 1, SIZE);
    for (name, datagrams) in [
        ("mix of 115 to 136 bytes, 5 tags", &mix),
        ("short", &of(|random| format!("page.views:{}|c", random.below(100)))),
        ("8 packed values, 3 tags", &of(packed)),
        ("event", &of(event)),
    ] {
        group.bench_function(name, |b| b.iter_custom(|n| time(datagrams, n, fast)));
    }
    let defined = |line: &[u8]| _ = black_box(grammar::message(line, Options::default()));
    group.bench_function("mix, by the grammar", |b| b.iter_custom(|n| time(&mix, n, defined)));
}

fn time(datagrams: &[Datagram], lines: u64, mut read: impl FnMut(&[u8])) -> Duration {
    let mut whole = Part::default();
    while whole.done < lines {
        for datagram in datagrams.chunks(16) {
            whole.time(|| {
                let lines = datagram.iter().flat_map(|d| parse::lines(&d.bytes));
                lines.inspect(|line| read(black_box(line))).count() as u64
            });
        }
    }
    whole.of(lines)
}

fn of(line: fn(&mut Random) -> String) -> Vec<Datagram> {
    let mut random = Random(2);
    let lines: Vec<_> = (0..LINES).map(|_| line(&mut random)).collect();
    lines::packed(lines.iter(), SIZE)
}

fn packed(random: &mut Random) -> String {
    let values: Vec<_> = (0..8).map(|_| format!(":{}.5", random.below(1000))).collect();
    format!("checkout.request.time{}|d|#env:prod,service:shop,status:200", values.concat())
}

fn event(random: &mut Random) -> String {
    let title = format!("Deploy of shop-frontend {}", random.below(1000));
    let text = r"Build finished\nAll 12 instances are up";
    let lengths = format!("{},{}", title.len(), text.len());
    format!("_e{{{lengths}}}:{title}|{text}|d:1800000000|p:low|t:success|#env:prod,service:shop")
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = bench
}
criterion_main!(benches);
