//! From the datagram to the shards, on one thread. An iteration is one metric of a known series, so
//! times are per metric. `SERIES_MAX=1000000 cargo bench --bench aggregate` adds a million series.

mod lines;
mod rig;

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

use rig::Rig;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("aggregate (time is per metric)");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(1));
    let max = std::env::var("SERIES_MAX").map_or(100_000, |max| max.parse().expect("a number"));
    for size in [1432, 8192] {
        for series in [1_000, 10_000, 100_000, 1_000_000] {
            if series > max {
                continue;
            }
            let mut rig = None;
            group.bench_function(format!("{series} series, {size} bytes"), |b| {
                // Made only for a bench that the filter lets through.
                let rig = rig.get_or_insert_with(|| Rig::new(series, size));
                b.iter_custom(|n| rig.time_lines(n));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = bench
}
criterion_main!(benches);
